// Package link keeps payment links: bills that are paid once, or a set number
// of times, by whoever has their URL. It knows what a link says, which states
// it goes through, and how it is stored beside the payments that claim it. It
// knows nothing of HTTP, and moves no money.
//
// What it promises: a link is never claimed by more payments than it has uses,
// however many come at once and whatever crashes, because the claim of the
// link and the claim of the payment are one commit; and a link whose claim came
// to nothing can be paid again.
package link

import (
	"encoding/base32"
	"errors"
	"io"
	"strings"
)

// An ID names a link, or a receipt: 128 random bits as 26 characters of
// Crockford's base 32, in lower case. Whoever knows it may use it.
type ID string

// crockford leaves out the letters that look like digits, and u.
var crockford = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

const idBytes = 16

// NewID returns an ID of bits from random.
func NewID(random io.Reader) (ID, error) {
	var bits [idBytes]byte
	if _, err := io.ReadFull(random, bits[:]); err != nil {
		return "", err
	}
	return ID(crockford.EncodeToString(bits[:])), nil
}

var errNoID = errors.New("an id is 26 of the digits 0 to 9 and the letters a to z without i, l, o and u")

// ParseID reads an ID as people may spell it: upper case counts as lower case.
func ParseID(s string) (ID, error) {
	s = strings.ToLower(s)
	bits, err := crockford.DecodeString(s)
	if err != nil || len(bits) != idBytes || crockford.EncodeToString(bits) != s {
		return "", errNoID
	}
	return ID(s), nil
}
