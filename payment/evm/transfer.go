// Package evm implements the exact scheme on EVM chains by EIP-3009 and by
// Permit2, and the upto scheme by Permit2: what a payer signs, what makes a
// signature good, the call that spends it, and the logs that prove it was
// spent.
//
// Nothing here does I/O or reads a clock.
package evm

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/strictjson"
	"github.com/tollgate402/tollgate/payment"
)

// An Authorization is EIP-3009's TransferWithAuthorization: From lets anyone
// move Value atomic units of a token to To, once, strictly after ValidAfter
// and strictly before ValidBefore. All numbers are below 2^256.
type Authorization struct {
	From, To    common.Address
	Value       *big.Int // atomic units
	ValidAfter  *big.Int // unix seconds
	ValidBefore *big.Int // unix seconds
	Nonce       [32]byte // chosen by the payer
}

// A Transfer is an authorization with its signature.
type Transfer struct {
	Authorization
	Signature []byte
}

// maxSignature bounds the signatures that are read, in bytes: wrapped ones of
// contract wallets are a few hundred.
const maxSignature = 4096

// Decode reads the payload of an exact payment by EIP-3009. Its errors are
// *payment.MalformedError, or an *payment.InvalidError where the payload is
// of another kind.
func Decode(payload json.RawMessage) (*Transfer, error) {
	const what = "payment"
	o, err := strictjson.Parse(payload, "payload", payment.MaxHeader)
	if err != nil {
		return nil, &payment.MalformedError{What: what, Err: err}
	}
	// Others choose the kind by these members, so a payload that has one beside
	// an authorization would be one payment here and another one there.
	if o.Has("permit2Authorization") || o.Has("transaction") {
		return nil, payment.Invalid(payment.EVMPayloadType, "the offer asks for an EIP-3009 authorization and nothing else")
	}
	t, err := decode(o)
	if err != nil {
		return nil, &payment.MalformedError{What: what, Err: err}
	}
	return t, nil
}

func decode(o strictjson.Object) (*Transfer, error) {
	if err := o.Known("signature", "authorization", "permit2Authorization", "transaction"); err != nil {
		return nil, err
	}
	a, err := o.Object("authorization")
	if err != nil {
		return nil, err
	}
	if err := a.Known("from", "to", "value", "validAfter", "validBefore", "nonce"); err != nil {
		return nil, err
	}
	t := &Transfer{}
	for _, m := range []struct {
		name string
		to   *common.Address
	}{{"from", &t.From}, {"to", &t.To}} {
		if *m.to, err = address(a, m.name); err != nil {
			return nil, err
		}
	}
	for _, m := range []struct {
		name string
		to   **big.Int
	}{{"value", &t.Value}, {"validAfter", &t.ValidAfter}, {"validBefore", &t.ValidBefore}} {
		if *m.to, err = number(a, m.name); err != nil {
			return nil, err
		}
	}
	nonce, err := hexMember(a, "nonce", 32)
	if err != nil {
		return nil, err
	}
	if len(nonce) != 32 {
		return nil, a.Wrong("nonce", "must be 32 bytes: 0x and 64 hexadecimal digits")
	}
	copy(t.Nonce[:], nonce)
	t.Signature, err = hexMember(o, "signature", maxSignature)
	return t, err
}

type wireTransfer struct {
	Signature     string            `json:"signature"`
	Authorization wireAuthorization `json:"authorization"`
}

type wireAuthorization struct {
	From        string `json:"from"`
	To          string `json:"to"`
	Value       string `json:"value"`
	ValidAfter  string `json:"validAfter"`
	ValidBefore string `json:"validBefore"`
	Nonce       string `json:"nonce"`
}

// Encode writes the payload of an exact payment by EIP-3009.
func (t *Transfer) Encode() json.RawMessage {
	doc, err := json.Marshal(wireTransfer{
		Signature: "0x" + hex.EncodeToString(t.Signature),
		Authorization: wireAuthorization{
			From: t.From.Hex(), To: t.To.Hex(), Value: t.Value.String(),
			ValidAfter: t.ValidAfter.String(), ValidBefore: t.ValidBefore.String(),
			Nonce: "0x" + hex.EncodeToString(t.Nonce[:]),
		},
	})
	if err != nil {
		panic("evm: encoding strings failed: " + err.Error())
	}
	return doc
}

func address(o strictjson.Object, name string) (common.Address, error) {
	s, err := o.Text(name)
	if err != nil {
		return common.Address{}, err
	}
	// As payment.CanonicalAddress reads it, without making up its checksum.
	var a common.Address
	if len(s) != 2+2*len(a) || s[:2] != "0x" {
		return common.Address{}, o.Wrong(name, notAddress)
	}
	if _, err := hex.Decode(a[:], []byte(s[2:])); err != nil {
		return common.Address{}, o.Wrong(name, notAddress)
	}
	return a, nil
}

const notAddress = "must be an address: 0x and 40 hexadecimal digits"

func number(o strictjson.Object, name string) (*big.Int, error) {
	s, err := o.Text(name)
	if err != nil {
		return nil, err
	}
	n, err := payment.ParseUint256(s)
	if err != nil {
		return nil, o.Wrong(name, err.Error())
	}
	return n, nil
}

func hexMember(o strictjson.Object, name string, max int) ([]byte, error) {
	s, err := o.Text(name)
	if err != nil {
		return nil, err
	}
	if len(s) < 2 || s[:2] != "0x" {
		return nil, o.Wrong(name, "must start with 0x")
	}
	if len(s) > 2+2*max {
		return nil, o.Wrong(name, fmt.Sprintf("is longer than %d bytes", max))
	}
	b, err := hex.DecodeString(s[2:])
	if err != nil {
		return nil, o.Wrong(name, "must be hexadecimal")
	}
	return b, nil
}
