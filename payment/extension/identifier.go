package extension

import (
	"encoding/json"
	"strconv"
)

// The lengths that a payment's id may have.
const (
	minID = 16
	maxID = 128
)

// Identifier advertises payment-identifier: payers may name a payment with an
// id of their own, or must, so that repeating it cannot cost them twice.
func Identifier(required bool) Extension {
	return Extension{
		Name: PaymentIdentifier,
		Info: json.RawMessage(`{"required":` + strconv.FormatBool(required) + `}`),
		Schema: json.RawMessage(`{"$schema":"` + dialect + `","type":"object","properties":{"required":{"type":"boolean"},` +
			`"id":{"type":"string","minLength":16,"maxLength":128,"pattern":"^[a-zA-Z0-9_-]+$"}},"required":["required"]}`),
	}
}

// PaymentID returns the id that a payer gave its payment, or "" where it gave
// none. An id that cannot be one is a *payment.MalformedError.
func PaymentID(extensions json.RawMessage) (string, error) {
	info, ok, err := info(extensions, PaymentIdentifier)
	if err != nil || !ok {
		return "", malformed(err)
	}
	if err := info.Known("id"); err != nil {
		return "", malformed(err)
	}
	id, ok, err := info.OptionalText("id")
	switch {
	case err != nil:
		return "", malformed(err)
	case !ok:
		return "", nil
	case len(id) < minID || len(id) > maxID || !plain(id):
		return "", malformed(info.Wrong("id", "must be 16 to 128 characters of a-z, A-Z, 0-9, _ and -"))
	}
	return id, nil
}

// plain reports whether s has only letters, digits, _ and -.
func plain(s string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}
