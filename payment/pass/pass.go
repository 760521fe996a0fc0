// Package pass lets a payer come back with what it has paid for: a pass is a
// text that a seller hands out with what was paid, and that is good for more
// of it until a time, or for a number of calls. Whoever has the seller's
// public key can verify one without asking anybody. How many calls are left,
// and whether the pass was revoked, only the seller's ledger knows.
//
// A pass is a bearer's: it names who paid for it, and whoever shows it has
// it. The package asks no clock and makes no random numbers.
package pass

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// Header is the header that has a pass: of the answer that it comes with, and
// of the requests that are made with it.
const Header = "X-402-Pass"

// Claims are what a pass says.
type Claims struct {
	// Scope names what the pass is good for, in the seller's own terms.
	Scope payment.Fingerprint

	// Payment is what was paid, by Payer on Network, in the token at Token: up
	// to Units, in atomic units, as it was offered. Each text is 1 to 128
	// characters of printable ASCII without blanks.
	Payment payment.Key
	Network payment.Network
	Payer   string
	Token   string
	Units   string

	// Issued is when the pass begins, and Expires when it ends, in whole
	// seconds. Zero never ends; then Calls must be given.
	Issued, Expires time.Time

	// Calls is how many calls the pass is good for. Zero is no limit; then
	// Expires must be given.
	Calls uint32
}

// Ended reports whether the time of the pass is over.
func (c *Claims) Ended(now time.Time) bool { return !c.Expires.IsZero() && !now.Before(c.Expires) }

// texts returns the claims that are texts, in the order in which they are
// encoded.
func (c *Claims) texts() [4]string {
	return [4]string{string(c.Network), c.Payer, c.Token, c.Units}
}

const (
	version = 1
	maxText = 128

	fixed   = 1 + 32 + 32 + 8 + 8 + 4 // version, scope, payment, issued, expires, calls
	minSize = fixed + 4*2 + ed25519.SignatureSize
	maxSize = fixed + 4*(1+maxText) + ed25519.SignatureSize

	// maxTime is the last second that a pass can have: the end of 9999.
	maxTime = 253402300799

	// MaxLength is how long a pass is at most, in characters of URL-safe
	// base64.
	MaxLength = (maxSize*8 + 5) / 6
)

// label keeps signatures of passes apart from whatever else a key signs.
const label = "tollgate: pass, version 1\x00"

var encoding = base64.RawURLEncoding.Strict()

var (
	// ErrForeign says that a pass was not made with the key it is held
	// against, or was changed since.
	ErrForeign = errors.New("pass: it was not signed by this seller")

	errMalformed = errors.New("it is no pass: send it as it came")
)

// A Key makes passes. Who has it can make any.
type Key struct{ private ed25519.PrivateKey }

// DeriveKey returns the key that belongs to a secret, which must be hard to
// guess. Everybody who has the same secret makes the same passes.
func DeriveKey(secret []byte) Key {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte("tollgate: key of passes, version 1"))
	return Key{ed25519.NewKeyFromSeed(h.Sum(nil))}
}

// Public returns the key that recognises what k makes, which is no secret.
func (k Key) Public() ed25519.PublicKey {
	return k.private.Public().(ed25519.PublicKey)
}

// Make returns the pass that says c. It is always the same for the same
// claims. It returns an error if a claim is outside of what Claims allows.
func (k Key) Make(c *Claims) (string, error) {
	raw := make([]byte, 0, maxSize)
	raw = append(raw, version)
	raw = append(raw, c.Scope[:]...)
	raw = append(raw, c.Payment[:]...)
	for _, t := range []time.Time{c.Issued, c.Expires} {
		seconds := int64(0)
		if !t.IsZero() {
			seconds = t.Unix()
		}
		if seconds < 0 || seconds > maxTime {
			return "", fmt.Errorf("pass: the time %s cannot be in one", t)
		}
		raw = binary.BigEndian.AppendUint64(raw, uint64(seconds))
	}
	raw = binary.BigEndian.AppendUint32(raw, c.Calls)
	for _, s := range c.texts() {
		if len(s) > maxText {
			return "", fmt.Errorf("pass: %.40q… is too long for one", s)
		}
		raw = append(raw, byte(len(s))) //nolint:gosec // it was compared with maxText
		raw = append(raw, s...)
	}
	if _, ok := decode(raw); !ok {
		return "", fmt.Errorf("pass: no pass can say %+v", *c)
	}
	raw = append(raw, ed25519.Sign(k.private, signed(raw))...)
	return encoding.EncodeToString(raw), nil
}

// Read returns what a pass says that was made with the key of public. It
// returns a *payment.MalformedError for what is no pass, and ErrForeign for a
// pass that was made with another key. Whether its time is over, or it is good
// for what is asked, is for the caller to say.
func Read(public ed25519.PublicKey, text string) (*Claims, error) {
	if len(text) > MaxLength {
		return nil, malformed()
	}
	raw, err := encoding.DecodeString(text)
	if err != nil || len(raw) < minSize || encoding.EncodedLen(len(raw)) != len(text) { // the decoder skips line ends
		return nil, malformed()
	}
	said, signature := raw[:len(raw)-ed25519.SignatureSize], raw[len(raw)-ed25519.SignatureSize:]
	c, ok := decode(said)
	if !ok {
		return nil, malformed()
	}
	if !ed25519.Verify(public, signed(said), signature) {
		return nil, ErrForeign
	}
	return c, nil
}

func malformed() error { return &payment.MalformedError{What: Header, Err: errMalformed} }

func signed(said []byte) []byte { return append([]byte(label), said...) }

// decode reads what comes before the signature. All of said has a meaning, and
// every meaning has one form.
func decode(said []byte) (*Claims, bool) {
	if len(said) < fixed || said[0] != version {
		return nil, false
	}
	c := &Claims{Scope: payment.Fingerprint(said[1:33]), Payment: payment.Key(said[33:65])}
	issued, expires := binary.BigEndian.Uint64(said[65:]), binary.BigEndian.Uint64(said[73:])
	c.Calls = binary.BigEndian.Uint32(said[81:])
	if issued == 0 || issued > maxTime || expires > maxTime || expires != 0 && expires <= issued || expires == 0 && c.Calls == 0 {
		return nil, false
	}
	c.Issued = time.Unix(int64(issued), 0)
	if expires != 0 {
		c.Expires = time.Unix(int64(expires), 0)
	}
	rest := said[fixed:]
	var texts [4]string
	for i := range texts {
		if len(rest) == 0 || len(rest) <= int(rest[0]) {
			return nil, false
		}
		n := int(rest[0])
		texts[i], rest = string(rest[1:1+n]), rest[1+n:]
		if !printable(texts[i]) {
			return nil, false
		}
	}
	c.Network, c.Payer, c.Token, c.Units = payment.Network(texts[0]), texts[1], texts[2], texts[3]
	return c, len(rest) == 0
}

func printable(s string) bool {
	if s == "" || len(s) > maxText {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
