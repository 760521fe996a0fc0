// Package botauth finds out which crawler sent a request, by its HTTP message
// signature (RFC 9421) in the form of Web Bot Auth
// (draft-meunier-web-bot-auth-architecture): Ed25519, the tag "web-bot-auth",
// and a keyid that is the thumbprint of the key.
//
// It does no I/O and has no clock. Nothing is fetched: which keys there are is
// said beforehand, and the header Signature-Agent is only checked to be signed.
//
// A signature that covers no more than @authority is good for every path, for
// everybody who has seen it, until it expires. Nonces are accepted and not
// remembered.
package botauth

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	tag       = "web-bot-auth"
	algorithm = "ed25519"

	skew     = time.Minute    // that a crawler's clock may be ahead
	lifetime = 24 * time.Hour // from created to expires at most

	// maxTried is how many signatures with the tag are looked at.
	maxTried = 4
)

// DefaultMaxAge is how old a signature may be where nothing else is said.
const DefaultMaxAge = time.Hour

// ErrUnsigned says that a request has no signature with the tag of Web Bot
// Auth. It may have others.
var ErrUnsigned = errors.New("there is no signature with the tag " + tag)

// A Verifier knows the keys of crawlers. It is not changed after it has been
// made, and is safe for concurrent use.
type Verifier struct {
	// Keys by their Thumbprint.
	Keys map[string]ed25519.PublicKey

	// The hosts that signatures may be for, in lower case, with their port
	// where it is not the scheme's own. Default: whichever the request asks
	// for, so something else must see to it that this is one of ours:
	// otherwise what a crawler has signed for another site is good here for
	// everybody who names that site.
	Authorities []string

	// How long ago a signature may have been made. Default: DefaultMaxAge.
	MaxAge time.Duration
}

// Verify returns the thumbprint of the key that signed the request. Without a
// good signature the error says what is wrong with the first one, in words that
// never repeat what the client sent.
func (v *Verifier) Verify(m *Message, now time.Time) (keyid string, err error) {
	if len(m.Header["Signature-Input"]) == 0 {
		return "", ErrUnsigned
	}
	inputs, err := parseDictionary(m.Header["Signature-Input"])
	if err != nil {
		return "", fmt.Errorf("reading Signature-Input: %w", err)
	}
	err = ErrUnsigned
	var signatures []member
	tried := 0
	for i := range inputs {
		input := &inputs[i]
		if t := input.param("tag"); input.list == nil || t == nil || t.kind != text || t.s != tag {
			continue
		}
		if tried++; tried > maxTried {
			break
		}
		if tried == 1 {
			var broken error
			if signatures, broken = parseDictionary(m.Header["Signature"]); broken != nil {
				return "", fmt.Errorf("reading Signature: %w", broken)
			}
		}
		keyid, wrong := v.verify(m, input, signatures, now)
		if wrong == nil {
			return keyid, nil
		}
		if tried == 1 {
			err = wrong
		}
	}
	return "", err
}

// verify checks one signature, cheapest first.
func (v *Verifier) verify(m *Message, input *member, signatures []member, now time.Time) (keyid string, err error) {
	signature := find(signatures, input.name)
	if signature == nil || signature.list != nil || signature.kind != binary || len(signature.b) != ed25519.SignatureSize {
		return "", fmt.Errorf("the field Signature has no %d bytes for it", ed25519.SignatureSize)
	}
	if alg := input.param("alg"); alg != nil && (alg.kind != text || alg.s != algorithm) {
		return "", errors.New("alg is not ed25519")
	}
	if nonce := input.param("nonce"); nonce != nil && nonce.kind != text {
		return "", errors.New("nonce is no string")
	}
	if err := v.timely(&input.item, now); err != nil {
		return "", err
	}
	if !covers(&input.item, "@authority") {
		return "", errors.New("@authority is not covered")
	}
	if len(v.Authorities) > 0 && !slices.Contains(v.Authorities, m.authority()) {
		return "", errors.New("the request asks for a host that signatures are not taken for")
	}
	if len(m.Header["Signature-Agent"]) > 0 && !covers(&input.item, "signature-agent") {
		return "", errors.New("the request has a Signature-Agent that is not covered")
	}
	id := input.param("keyid")
	if id == nil || id.kind != text {
		return "", errors.New("keyid is missing or no string")
	}
	key, known := v.Keys[id.s]
	if !known {
		return "", errors.New("keyid is not the thumbprint of a key that is configured")
	}
	base, err := m.base(&input.item)
	if err != nil {
		return "", err
	}
	if !ed25519.Verify(key, base, signature.b) {
		return "", errors.New("the signature is not the key's for this request")
	}
	return id.s, nil
}

// timely checks when a signature was made and until when it is good.
func (v *Verifier) timely(input *item, now time.Time) error {
	created, expires := input.param("created"), input.param("expires")
	if created == nil || created.kind != integer || expires == nil || expires.kind != integer {
		return errors.New("created or expires is missing or no integer")
	}
	maxAge := v.MaxAge
	if maxAge == 0 {
		maxAge = DefaultMaxAge
	}
	from, until := time.Unix(created.n, 0), time.Unix(expires.n, 0)
	switch {
	case from.After(now.Add(skew)):
		return errors.New("created is in the future")
	case from.Before(now.Add(-maxAge)):
		return fmt.Errorf("created is more than %s ago", maxAge)
	case !until.After(now):
		return errors.New("expires has passed")
	case until.Before(from):
		return errors.New("expires is before created")
	case until.After(from.Add(lifetime)):
		return fmt.Errorf("expires is more than %s after created", lifetime)
	}
	return nil
}

// covers reports whether a component, or a member of it, is covered.
func covers(input *item, name string) bool {
	for i := range input.list {
		if c := &input.list[i]; c.kind == text && c.s == name {
			return true
		}
	}
	return false
}
