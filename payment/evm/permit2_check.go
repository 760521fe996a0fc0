package evm

import (
	"bytes"
	"fmt"
	"math/big"
	"slices"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
)

// PermitTerms are what a permit is held against: the seller's offer, Permit2's
// domain separator on the offer's network, for upto the accounts that can send
// the settlement, and who may deploy the wallets of payers.
type PermitTerms struct {
	Offer        *payment.Offer
	Separator    common.Hash
	Facilitators []common.Address // unused by exact
	Factories    Factories        // who may deploy the wallets of payers
}

// CheckPermit decides everything about a payment by Permit2 that needs no
// chain, from the cheapest question to the recovery of the signer. at is the
// chain's time in unix seconds: that of its latest block. On success it returns
// the decoded permit. The offer's amount is the price, or by upto the maximum;
// what is charged then is up to CheckCharge.
//
// contract reports that the signature is not one by the key of From. Such a
// permit is good only if From is a contract that accepts the signature, which
// this cannot know: Way refuses it where From has no code. Signatures by the
// key of From are accepted in their canonical form only, although Permit2 takes
// others.
//
// Errors are *payment.InvalidError, or *payment.MalformedError when the
// payload cannot be read.
func CheckPermit(p *payment.Payment, terms PermitTerms, at uint64) (permit *SignedPermit, contract bool, err error) {
	s, err := MatchPermit(p, terms, at)
	if err == nil {
		contract, err = checkSigner(s.Digest(terms.Separator), s.From, s.Signature, payment.Permit2Signature)
	}
	if err != nil {
		return nil, false, err
	}
	return s, contract, nil
}

// MatchPermit is CheckPermit without the recovery of the signer, as Match is
// Check.
func MatchPermit(p *payment.Payment, terms PermitTerms, at uint64) (*SignedPermit, error) {
	o := terms.Offer
	if p.Version != payment.V1 && p.Version != payment.V2 {
		return nil, payment.Invalid(payment.InvalidVersion, fmt.Sprintf("x402Version %d is not known", p.Version))
	}
	s, err := DecodePermit(p.Payload)
	if err != nil {
		return nil, err
	}
	refuse := func(reason payment.Reason, message string) (*SignedPermit, error) {
		return nil, &payment.InvalidError{Reason: reason, Message: message, Payer: s.From.Hex()}
	}
	// The reference names what does not fit an exact offer by its payload.
	scheme, network := payment.EVMPayloadType, payment.EVMNetworkMismatch
	if o.Scheme == payment.Upto {
		scheme, network = payment.UptoScheme, payment.UptoNetworkMismatch
	}
	if p.Scheme != o.Scheme || o.Scheme != payment.Exact && o.Scheme != payment.Upto {
		return refuse(scheme, "")
	}
	if p.Version == payment.V1 || s.Scheme != o.Scheme || !o.ByPermit2() {
		return refuse(payment.EVMPayloadType, "the offer does not ask for this kind of authorization")
	}
	if p.Network != o.Network() {
		return refuse(network, "")
	}
	if o.Amount.Zero() {
		return refuse(payment.InvalidRequirements, "the price is zero: there is nothing to settle")
	}
	if s.Spender != s.Proxy() {
		return refuse(payment.Permit2Spender, "permit2Authorization.spender is not "+s.Proxy().Hex())
	}
	if s.To != common.HexToAddress(o.PayTo) {
		return refuse(payment.Permit2RecipientMismatch, "permit2Authorization.witness.to is not "+o.PayTo)
	}
	if s.Scheme == payment.Upto && !slices.Contains(terms.Facilitators, s.Facilitator) {
		return refuse(payment.UptoFacilitatorMismatch, "permit2Authorization.witness.facilitator is no account of this facilitator")
	}
	now := new(big.Int).SetUint64(at)
	if min := new(big.Int).Add(now, big.NewInt(MinValidity)); s.Deadline.Cmp(min) < 0 {
		return refuse(payment.Permit2Expired, fmt.Sprintf("permit2Authorization.deadline is %s, at chain time %d it must be at least %s", s.Deadline, at, min))
	}
	if s.ValidAfter.Cmp(now) > 0 {
		return refuse(payment.Permit2NotYetValid, fmt.Sprintf("permit2Authorization.witness.validAfter is %s, chain time is %d", s.ValidAfter, at))
	}
	if s.Amount.Cmp(o.Amount.Big()) != 0 {
		return refuse(payment.Permit2AmountMismatch, fmt.Sprintf("permit2Authorization.permitted.amount is %s, the offer says %s", s.Amount, o.Amount.Units()))
	}
	if token := o.Amount.Token().Address; s.Token != common.HexToAddress(token) {
		return refuse(payment.Permit2TokenMismatch, "permit2Authorization.permitted.token is not "+token)
	}
	if err := terms.Factories.check(s.From, s.Signature); err != nil {
		return nil, err
	}
	return s, nil
}

// CheckCharge reports whether a permit lets charge be moved: by exact its
// amount, by upto at most that. A charge of zero is in order by upto, but there
// is nothing to send then: the proxy would refuse it. Errors are
// *payment.InvalidError.
func (p *Permit) CheckCharge(charge *big.Int) error {
	switch c := charge.Cmp(p.Amount); {
	case p.Scheme == payment.Upto && c > 0:
		return &payment.InvalidError{
			Reason:  payment.UptoExceedsAmount,
			Message: fmt.Sprintf("the charge is %s, the payer allowed %s", charge, p.Amount), Payer: p.From.Hex(),
		}
	case p.Scheme != payment.Upto && c != 0:
		return &payment.InvalidError{Reason: payment.Permit2AmountMismatch, Message: "exact charges the whole amount", Payer: p.From.Hex()}
	}
	return nil
}

// plainForm returns the canonical form of what is an ECDSA signature in one of
// its other forms: v of 0 or 1, s in the upper half, 64 bytes as in EIP-2098.
func plainForm(signature []byte) (plain [65]byte, ok bool) {
	copy(plain[:], signature)
	switch len(signature) {
	case 64:
		plain[64] = 27 + plain[32]>>7
		plain[32] &= 0x7f
	case 65:
		if plain[64] < 2 {
			plain[64] += 27
		}
	default:
		return plain, false
	}
	if s := plain[32:64]; bytes.Compare(s, halfOrder[:]) > 0 && bytes.Compare(s, order[:]) < 0 {
		new(big.Int).Sub(order.Big(), new(big.Int).SetBytes(s)).FillBytes(s)
		plain[64] ^= 27 ^ 28
	}
	return plain, true
}
