package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"
)

// The headers of a delivery.
const (
	SignatureHeader = "Tollgate-Signature"
	TypeHeader      = "Tollgate-Event"
	DeliveryHeader  = "Tollgate-Delivery" // the event's id
)

const (
	// MaxAge is how old a signature may be.
	MaxAge = 5 * time.Minute

	// maxAhead is how far a receiver's clock may be behind ours.
	maxAhead = time.Minute

	maxSignatureHeader = 2048 // bytes
	maxSignatures      = 10
)

var (
	// ErrSignature says that a delivery was not signed with the secret, or that
	// something was changed on its way.
	ErrSignature = errors.New("webhook: the signature is not the secret's for this body")

	// ErrTooOld says that a delivery was signed more than MaxAge ago: it may be
	// one that somebody has kept and sends again.
	ErrTooOld = errors.New("webhook: the signature is more than 5 minutes old")

	// ErrFuture says that a delivery is signed for a time that has not come.
	ErrFuture = errors.New("webhook: the signature is from the future; is the clock right?")

	errSignatureForm = errors.New("webhook: the header " + SignatureHeader + " is not of the form t=<unix seconds>,v1=<hex>")
)

// Sign returns the value of SignatureHeader for a body at a time: a signature
// for each of the secrets.
func Sign(secrets []string, body []byte, now time.Time) string {
	at := strconv.FormatInt(now.Unix(), 10)
	var header strings.Builder
	header.WriteString("t=" + at)
	for _, s := range secrets {
		header.WriteString(",v1=" + hex.EncodeToString(mac(s, at, body)))
	}
	return header.String()
}

// mac is HMAC-SHA256 of the time, a dot, and the body.
func mac(secret, at string, body []byte) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	_, _ = h.Write([]byte(at + ".")) // a hash never fails
	_, _ = h.Write(body)
	return h.Sum(nil)
}

// Verify is for receivers. It returns nil if body was signed with secret
// within the last 5 minutes, with header as the value of SignatureHeader. The
// body must be the bytes that came, not what a JSON library makes of them. A
// receiver that gets the same event again, by its id, has had it already.
func Verify(secret, header string, body []byte, now time.Time) error {
	at, signatures, err := parseSignature(header)
	if err != nil {
		return err
	}
	want := mac(secret, strconv.FormatInt(at, 10), body)
	good := false
	for _, s := range signatures {
		good = hmac.Equal(s, want) || good
	}
	signed := time.Unix(at, 0)
	switch {
	case !good:
		return ErrSignature
	case signed.Before(now.Add(-MaxAge)):
		return ErrTooOld
	case signed.After(now.Add(maxAhead)):
		return ErrFuture
	}
	return nil
}

// parseSignature reads the value of SignatureHeader. Fields that are neither t
// nor v1 are left out: later versions may have more.
func parseSignature(header string) (at int64, signatures [][]byte, err error) {
	if len(header) > maxSignatureHeader {
		return 0, nil, errSignatureForm
	}
	timed := false
	for field := range strings.SplitSeq(header, ",") {
		name, value, ok := strings.Cut(field, "=")
		switch {
		case !ok:
			return 0, nil, errSignatureForm
		case name == "t":
			at, err = strconv.ParseInt(value, 10, 64)
			if timed || err != nil || at < 0 || at > 1<<40 || strconv.FormatInt(at, 10) != value {
				return 0, nil, errSignatureForm
			}
			timed = true
		case name == "v1":
			s, err := hex.DecodeString(value)
			if err != nil || len(s) != sha256.Size || len(signatures) == maxSignatures {
				return 0, nil, errSignatureForm
			}
			signatures = append(signatures, s)
		}
	}
	if !timed || len(signatures) == 0 {
		return 0, nil, errSignatureForm
	}
	return at, signatures, nil
}
