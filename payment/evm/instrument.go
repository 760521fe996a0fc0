package evm

import (
	"crypto/sha256"
	"errors"
	"math/big"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
)

// An Instrument is what a payer has signed to move money once, whatever the
// contract that it is for. Nothing in it changes once it is made.
type Instrument struct {
	Payer common.Address
	Payee common.Address
	Token common.Address
	Most  *big.Int // the most that can be charged, in atomic units

	// Expiry is the first second, as blocks count time, in which it cannot be
	// used any more; the largest number where that is later than any block.
	Expiry uint64

	// Sender is the only account that can spend it. It is zero where anybody
	// can.
	Sender common.Address

	// Transfer is set by EIP-3009, Permit by Permit2. Approval may come with a
	// permit.
	Transfer *Transfer
	Permit   *SignedPermit
	Approval *Approval
}

// OfTransfer returns the instrument that an authorization by EIP-3009 is for a
// token.
func OfTransfer(token common.Address, t *Transfer) *Instrument {
	return &Instrument{
		Payer: t.From, Payee: t.To, Token: token, Most: t.Value, Expiry: seconds(t.ValidBefore), // excluded
		Transfer: t,
	}
}

// OfPermit returns the instrument that a permit is, with the approval that it
// may need or nil.
func OfPermit(s *SignedPermit, a *Approval) *Instrument {
	i := &Instrument{
		Payer: s.From, Payee: s.To, Token: s.Token, Most: s.Amount, Expiry: seconds(s.Deadline), Sender: s.Facilitator,
		Permit: s, Approval: a,
	}
	if i.Expiry < ^uint64(0) {
		i.Expiry++ // the deadline is included
	}
	return i
}

// ReadInstrument reads what p says its payer has signed, for o. Its errors are
// *payment.MalformedError and *payment.InvalidError.
func ReadInstrument(p *payment.Payment, o *payment.Offer) (*Instrument, error) {
	switch {
	case o.Scheme != payment.Exact && o.Scheme != payment.Upto:
		return nil, payment.Invalid(payment.UnsupportedScheme, "only exact and upto are known on EVM chains")
	case !o.ByPermit2():
		t, err := Decode(p.Payload)
		if err != nil {
			return nil, err
		}
		return OfTransfer(common.HexToAddress(o.Amount.Token().Address), t), nil
	}
	s, err := DecodePermit(p.Payload)
	if err != nil {
		return nil, err
	}
	a, err := decodeApproval(p.Extensions)
	if err != nil {
		return nil, &payment.InvalidError{Reason: payment.EIP2612Format, Message: err.Error(), Payer: s.From.Hex()}
	}
	return OfPermit(s, a), nil
}

// Key names the payment by what the chain dedupes on.
func (i *Instrument) Key(chainID uint64) payment.Key {
	if i.Permit != nil {
		return i.Permit.Key(chainID)
	}
	return i.Transfer.Key(chainID, i.Token)
}

// Proof is a hash of everything that was signed for the payment itself, in one
// form whatever the form it came in, and of that signature. An approval is no
// part of it: who repeats a payment may have got the allowance meanwhile.
func (i *Instrument) Proof() payment.Fingerprint {
	var b []byte
	if s := i.Permit; s != nil {
		b = append(make([]byte, 0, 5+4*20+4*32+20+len(s.Signature)), "prm2"...)
		for _, a := range [...]common.Address{s.From, s.Token, s.Spender, s.To, s.Facilitator} {
			b = append(b, a[:]...)
		}
		b = appendNumbers(b, s.Amount, s.Nonce, s.Deadline, s.ValidAfter)
		return sha256.Sum256(append(b, s.Signature...))
	}
	t := i.Transfer
	b = append(make([]byte, 0, 4+2*20+4*32+len(t.Signature)), "3009"...)
	b = append(append(b, t.From[:]...), t.To[:]...)
	b = appendNumbers(b, t.Value, t.ValidAfter, t.ValidBefore)
	b = append(b, t.Nonce[:]...)
	return sha256.Sum256(append(b, t.Signature...))
}

func appendNumbers(b []byte, numbers ...*big.Int) []byte {
	var w [32]byte
	for _, n := range numbers {
		b = append(b, n.FillBytes(w[:])...)
	}
	return b
}

// CheckCharge returns an *payment.InvalidError unless an amount, in atomic
// units, can be charged.
func (i *Instrument) CheckCharge(charge *big.Int) error {
	switch {
	case i.Permit != nil:
		return i.Permit.CheckCharge(charge)
	case charge.Cmp(i.Most) != 0:
		return &payment.InvalidError{Reason: payment.EVMValueMismatch, Message: "exact charges the whole amount", Payer: i.Payer.Hex()}
	}
	return nil
}

// Spend returns the call that charges an amount, of which CheckCharge has found
// that it can be. Of a wrapped signature it is what is in the wrapper: contracts
// know nothing of those.
func (i *Instrument) Spend(charge *big.Int) Call {
	i = i.Unwrapped()
	if i.Permit != nil {
		c := PermitCall{i.Permit, charge, i.Approval}
		return Call{i.Permit.Proxy(), c.Calldata()}
	}
	return Call{i.Token, i.Transfer.Calldata()}
}

// UsedCall asks the contract whether the nonce has been used, by this payment
// or by anything else.
func (i *Instrument) UsedCall() Call {
	if i.Permit != nil {
		return Call{Permit2, i.Permit.BitmapCall()}
	}
	return Call{i.Token, i.Transfer.AuthorizationStateCall()}
}

// Used reads the answer to UsedCall.
func (i *Instrument) Used(answer []byte) (bool, error) {
	switch {
	case i.Permit != nil:
		return i.Permit.Used(answer)
	case len(answer) != 32:
		return false, errors.New("evm: the token does not answer to authorizationState as EIP-3009 has it")
	}
	return new(big.Int).SetBytes(answer).Sign() != 0, nil
}

// Uses returns topics of logs of the token that lead to the transactions that
// may have used the instrument. By EIP-3009 whatever uses the nonce leaves such
// a log. By Permit2 only a payment does.
func (i *Instrument) Uses() [][]common.Hash {
	payer := []common.Hash{common.BytesToHash(i.Payer[:])}
	if i.Permit != nil {
		return [][]common.Hash{{TopicTransfer}, payer, {common.BytesToHash(i.Payee[:])}}
	}
	return [][]common.Hash{{TopicAuthorizationUsed, TopicAuthorizationCanceled}, payer, {i.Transfer.Nonce}}
}

// Judge reads what one successful transaction says. calls are needed by Permit2
// only, where SettlesPermits says so: see Permit.Look. moved is what was paid and at the position
// in its block of the log that tells.
func (i *Instrument) Judge(calls []Call, logs []Log) (fate Fate, moved *big.Int, at uint) {
	if i.Permit != nil {
		return i.Permit.Look(calls, logs)
	}
	fate, at = i.Transfer.Look(i.Token, logs)
	if fate == Paid {
		moved = i.Most
	}
	return fate, moved, at
}

// Reasons are what is said of an instrument that the chain refuses.
type Reasons struct {
	Used       payment.Reason // its nonce is used
	Balance    payment.Reason // the payer has less than it moves
	Simulation payment.Reason // it reverts, and nothing says why
	Failed     payment.Reason // it was sent and did not move the money
}

// Reasons returns how the protocol names the refusals of i.
func (i *Instrument) Reasons() Reasons {
	switch {
	case i.Permit == nil:
		return Reasons{payment.EVMNonceUsed, payment.EVMInsufficientBalance, payment.EVMSimulationFailed, payment.EVMTransactionFailed}
	case i.Permit.Scheme == payment.Upto:
		return Reasons{payment.Permit2InvalidNonce, payment.Permit2InsufficientBalance, payment.Permit2SimulationFailed, payment.UptoTransactionFailed}
	}
	return Reasons{payment.Permit2InvalidNonce, payment.Permit2InsufficientBalance, payment.Permit2SimulationFailed, payment.EVMTransactionFailed}
}

// seconds returns a unix time as blocks have it, the largest number for what is
// later than any of them.
func seconds(n *big.Int) uint64 {
	if !n.IsUint64() {
		return ^uint64(0)
	}
	return n.Uint64()
}
