package evm

import (
	"bytes"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
)

// MinValidity is how long an authorization must remain valid, in seconds of
// chain time, to be worth settling. The token refuses it in the very second
// of validBefore.
const MinValidity = 6

// Terms are what a transfer is held against: the seller's offer, the token's
// domain separator, and who may deploy the wallets of payers.
type Terms struct {
	Offer     *payment.Offer
	Separator common.Hash
	Factories Factories // unused by Check and Match
}

// Check decides everything about a payment that needs no chain, from the
// cheapest question to the recovery of the signer. at is the chain's time in
// unix seconds: that of its latest block. On success it returns the decoded
// transfer, signed by its From with a canonical signature.
//
// Errors are *payment.InvalidError, or *payment.MalformedError when the
// payload cannot be read.
func Check(p *payment.Payment, terms Terms, at uint64) (*Transfer, error) {
	t, err := Match(p, terms, at)
	if err == nil {
		err = t.CheckSignature(terms.Separator)
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Match is Check without the recovery of the signer, which takes most of its
// time: whoever calls CheckSignature after it has done the same.
func Match(p *payment.Payment, terms Terms, at uint64) (*Transfer, error) {
	t, err := matchTerms(p, terms, at)
	if err == nil {
		err = Factories(nil).check(t.From, t.Signature)
	}
	if err != nil {
		return nil, err
	}
	if problem := canonical(t.Signature); problem != "" {
		return nil, &payment.InvalidError{Reason: payment.EVMSignature, Message: problem, Payer: t.From.Hex()}
	}
	return t, nil
}

// matchTerms holds everything about a payment against terms but its signature.
func matchTerms(p *payment.Payment, terms Terms, at uint64) (*Transfer, error) {
	o := terms.Offer
	if p.Version != payment.V1 && p.Version != payment.V2 {
		return nil, payment.Invalid(payment.InvalidVersion, fmt.Sprintf("x402Version %d is not known", p.Version))
	}
	t, err := Decode(p.Payload)
	if err != nil {
		return nil, err
	}
	refuse := func(reason payment.Reason, message string) (*Transfer, error) {
		return nil, &payment.InvalidError{Reason: reason, Message: message, Payer: t.From.Hex()}
	}
	if p.Scheme != payment.Exact || o.Scheme != payment.Exact {
		return refuse(payment.EVMScheme, "")
	}
	if p.Network != o.Network() {
		return refuse(payment.EVMNetworkMismatch, "")
	}
	token := o.Amount.Token()
	if token.Name == "" || token.Version == "" {
		return refuse(payment.EVMMissingDomain, "extra.name and extra.version are missing")
	}
	if o.Amount.Zero() {
		return refuse(payment.InvalidRequirements, "the price is zero: there is nothing to settle")
	}
	if t.To != common.HexToAddress(o.PayTo) {
		return refuse(payment.EVMRecipientMismatch, "authorization.to is not "+o.PayTo)
	}
	if t.Value.Cmp(o.Amount.Big()) != 0 {
		reason := payment.EVMValueMismatch
		if p.Version == payment.V1 {
			reason = payment.EVMValueMismatchV1
		}
		return refuse(reason, fmt.Sprintf("authorization.value is %s, the price is %s", t.Value, o.Amount.Units()))
	}
	if min := new(big.Int).SetUint64(at + MinValidity); t.ValidBefore.Cmp(min) < 0 {
		return refuse(payment.EVMValidBefore, fmt.Sprintf("authorization.validBefore is %s, at chain time %d it must be at least %s", t.ValidBefore, at, min))
	}
	if t.ValidAfter.Cmp(new(big.Int).SetUint64(at)) > 0 {
		return refuse(payment.EVMValidAfter, fmt.Sprintf("authorization.validAfter is %s, chain time is %d", t.ValidAfter, at))
	}
	return t, nil
}

// CheckSignature returns a *payment.InvalidError unless t is signed by its
// From, with a canonical signature, for the token with a domain separator.
func (t *Transfer) CheckSignature(separator common.Hash) error {
	signer, err := Recover(t.Digest(separator), t.Signature)
	if err != nil || signer != t.From {
		return &payment.InvalidError{
			Reason: payment.EVMSignature, Message: "the signature is not by authorization.from for this token's EIP-712 domain", Payer: t.From.Hex(),
		}
	}
	return nil
}

// Recover returns the account that signed digest with a canonical signature
// of 65 bytes: r, s in the lower half, v 27 or 28.
func Recover(digest common.Hash, signature []byte) (common.Address, error) {
	if problem := canonical(signature); problem != "" {
		return common.Address{}, fmt.Errorf("evm: %s", problem)
	}
	var sig [65]byte
	copy(sig[:], signature)
	sig[64] -= 27
	pub, err := crypto.Ecrecover(digest[:], sig[:])
	if err != nil {
		return common.Address{}, fmt.Errorf("evm: recovering the signer: %w", err)
	}
	return common.BytesToAddress(crypto.Keccak256(pub[1:])[12:]), nil
}

// order is that of the secp256k1 curve, and halfOrder half of it, rounded down.
var (
	order     = common.HexToHash("0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141")
	halfOrder = common.HexToHash("0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0")
)

// canonical says what keeps a signature from being the one form that token
// contracts accept. Others would pass recovery here and revert there.
func canonical(signature []byte) string {
	if len(signature) != 65 {
		return fmt.Sprintf("the signature has %d bytes, it must have 65", len(signature))
	}
	v := signature[64]
	if v != 27 && v != 28 {
		return "the signature's v must be 27 or 28"
	}
	r, s := signature[:32], signature[32:64]
	if bytes.Compare(r, order[:]) >= 0 || bytes.Compare(s, halfOrder[:]) > 0 || zero(r) || zero(s) {
		return "the signature's r or s is out of range: s must be in the lower half"
	}
	return ""
}

// wrapped reports whether a signature is wrapped as ERC-6492 describes, for a
// wallet that is not deployed yet.
func wrapped(signature []byte) bool { return bytes.HasSuffix(signature, wrappedSuffix) }

var wrappedSuffix = bytes.Repeat([]byte{0x64, 0x92}, 16)

func zero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
