package botauth

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

// ParseKey reads the public part of an Ed25519 key as JSON Web Keys have it in
// "x": 32 bytes in base64url, which are 43 characters.
func ParseKey(x string) (ed25519.PublicKey, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(x)
	if err != nil || len(b) != ed25519.PublicKeySize || len(x) != base64.RawURLEncoding.EncodedLen(ed25519.PublicKeySize) {
		return nil, errors.New(`an Ed25519 key must be the 43 characters of a JSON Web Key's "x"`)
	}
	return b, nil
}

// jwk is a JSON Web Key (RFC 7517) as far as it is an Ed25519 key (RFC 8037),
// or a set of them.
type jwk struct {
	Kty  string  `json:"kty"`
	Crv  string  `json:"crv"`
	X    string  `json:"x"`
	D    *string `json:"d"`
	Keys []jwk   `json:"keys"`
}

// ParseKeys reads a JSON Web Key, or a set of them such as the directory
// /.well-known/http-message-signatures-directory of a crawler. Keys of other
// kinds in a set are left out. It is an error if none is left, and if a key is
// a private one; the error does not repeat it.
func ParseKeys(doc []byte) ([]ed25519.PublicKey, error) {
	var set jwk
	if err := json.Unmarshal(doc, &set); err != nil {
		return nil, errors.New("it is no JSON Web Key, and no set of them")
	}
	list := set.Keys
	if set.Kty != "" {
		list = []jwk{set}
	}
	var keys []ed25519.PublicKey
	for i := range list {
		if list[i].D != nil {
			return nil, errors.New(`it has a private key: remove "d", and keep it where the crawler signs`)
		}
		if list[i].Kty != "OKP" || list[i].Crv != "Ed25519" {
			continue
		}
		key, err := ParseKey(list[i].X)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New(`it has no Ed25519 key, with "kty":"OKP" and "crv":"Ed25519"`)
	}
	return keys, nil
}

// Thumbprint returns the thumbprint of the key's JSON Web Key (RFC 7638), which
// is the keyid of what it signs.
func Thumbprint(key ed25519.PublicKey) string {
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + base64.RawURLEncoding.EncodeToString(key) + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
