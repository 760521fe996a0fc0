// Package quote keeps a price for a while: a quote is a text that goes out
// with an offer and comes back with its payment, and shows that this very
// offer was made for this very request a moment ago. Nobody has to remember
// it. The package asks no clock and makes no random numbers.
package quote

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// A Key makes quotes and recognises its own. Who has it can name any price.
type Key [32]byte

// DeriveKey returns the key that belongs to a secret, which must be hard to
// guess. Everybody who has the same secret recognises the same quotes.
func DeriveKey(secret []byte) Key {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte("tollgate: key of quotes, version 1"))
	return Key(h.Sum(nil))
}

// Terms are what a quote is for: an offer, and the request that it was made
// for. Two requests are the same if all their parts are, in their order.
type Terms struct {
	Request []string
	Offer   *payment.Offer
}

// Digest names the terms by what decides about money: the request, and the
// offer's scheme, network, token, amount and recipient.
func (t *Terms) Digest() [32]byte {
	o := t.Offer
	h := sha256.New()
	part := func(s string) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(s)))
		h.Write(size[:])
		h.Write([]byte(s))
	}
	// The offer's parts are always as many, so nothing of a request can be
	// taken for one of them.
	for _, s := range []string{"quote", string(o.Scheme), string(o.Network()), o.Amount.Token().Address, o.Amount.Units(), o.PayTo} {
		part(s)
	}
	for _, s := range t.Request {
		part(s)
	}
	return [32]byte(h.Sum(nil))
}

const (
	timeSize = 8  // milliseconds since 1970
	macSize  = 16 // of HMAC-SHA256

	// Length is how long a quote is, in characters of URL-safe base64.
	Length = (timeSize + macSize) * 4 / 3
)

var encoding = base64.RawURLEncoding.Strict()

// Make returns the quote of an offer that is made until a time, in whole
// milliseconds.
func (k Key) Make(t *Terms, until time.Time) string {
	var quote [timeSize + macSize]byte
	binary.BigEndian.PutUint64(quote[:], uint64(until.UnixMilli()))
	mac := k.mac(t, quote[:timeSize])
	copy(quote[timeSize:], mac[:])
	return encoding.EncodeToString(quote[:])
}

var (
	// ErrForeign says that a quote was not made for these terms, or not with
	// this key.
	ErrForeign = errors.New("quote: it was not made for this request and offer")

	// ErrExpired says that a quote was made for these terms, and that its
	// time has passed.
	ErrExpired = errors.New("quote: it has expired")
)

// Check returns nil if a quote was made with k for the terms and now is not
// after its time. Otherwise it returns ErrForeign or ErrExpired. How long it
// takes says nothing about the quote that would be right.
func (k Key) Check(quote string, t *Terms, now time.Time) error {
	until, mac, ok := decode(quote)
	if !ok {
		return ErrForeign
	}
	var moment [timeSize]byte
	binary.BigEndian.PutUint64(moment[:], until)
	want := k.mac(t, moment[:])
	if !hmac.Equal(mac[:], want[:]) {
		return ErrForeign
	}
	if now.UnixMilli() > int64(until) { //nolint:gosec // Make wrote it
		return ErrExpired
	}
	return nil
}

// Legible reports whether a text has the form of a quote, which says nothing
// about who made it.
func Legible(quote string) bool {
	_, _, ok := decode(quote)
	return ok
}

// decode reads a quote. Each has one spelling.
func decode(quote string) (until uint64, mac [macSize]byte, ok bool) {
	if len(quote) != Length {
		return 0, mac, false
	}
	var raw [timeSize + macSize]byte
	// The decoder skips line ends, and then has less.
	if n, err := encoding.Decode(raw[:], []byte(quote)); err != nil || n != len(raw) {
		return 0, mac, false
	}
	return binary.BigEndian.Uint64(raw[:]), [macSize]byte(raw[timeSize:]), true
}

func (k Key) mac(t *Terms, moment []byte) [macSize]byte {
	terms := t.Digest()
	h := hmac.New(sha256.New, k[:])
	h.Write(moment)
	h.Write(terms[:])
	return [macSize]byte(h.Sum(nil))
}
