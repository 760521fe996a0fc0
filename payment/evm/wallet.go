package evm

import (
	"bytes"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
)

// An AccountKind says who answers for an account.
type AccountKind int

const (
	Plain     AccountKind = iota // its key: there is no code
	Delegated                    // the code of another account, which it runs as its own (EIP-7702)
	Contract                     // its own code
)

func (k AccountKind) String() string {
	switch k {
	case Plain:
		return "plain"
	case Delegated:
		return "delegated"
	case Contract:
		return "contract"
	}
	return "unknown"
}

// An Account is what the code of an account says about it.
type Account struct {
	Kind     AccountKind
	Delegate common.Address // whose code a delegated account runs
}

// delegation is what the code of a delegated account starts with. No contract
// can be deployed with such code.
var delegation = []byte{0xef, 0x01, 0x00}

// AccountOf reads the code of an account, as eth_getCode returns it. It is
// true for the block it was read in only: an account can be deployed, and one
// with a key can delegate and stop delegating, at any time.
func AccountOf(code []byte) Account {
	switch {
	case len(code) == 0:
		return Account{}
	case len(code) == len(delegation)+common.AddressLength && bytes.HasPrefix(code, delegation):
		return Account{Delegated, common.BytesToAddress(code[len(delegation):])}
	}
	return Account{Kind: Contract}
}

// A Way is how it is decided whether a payer has signed.
type Way int

const (
	// ByKey: the signature is by the payer's key, and that is all there is to
	// find out.
	ByKey Way = iota

	// ByContract: the payer's code is asked (ERC-1271), by the contract that
	// moves the money. Simulating the payment asks it.
	ByContract

	// ByFactory: the payer's code is put in place by a factory and then asked
	// (ERC-6492). Simulating DeployAndSpend does both.
	ByFactory
)

func (w Way) String() string {
	switch w {
	case ByKey:
		return "key"
	case ByContract:
		return "contract"
	case ByFactory:
		return "factory"
	}
	return "unknown"
}

// Way decides how a payment is to be checked whose payer has an account as the
// chain says now. contract is what CheckTransfer or CheckPermit has returned
// for it. Its errors are *payment.InvalidError.
//
// Tokens and Permit2 ask the code wherever there is some, and never fall back
// to the key. So a delegated account whose key has signed is asked as a
// contract is: whether the signature is good is up to the delegate.
func (i *Instrument) Way(account Account, contract bool) (Way, error) {
	signature := i.signature()
	switch {
	case account.Kind != Plain:
		return ByContract, nil
	case !contract:
		return ByKey, nil
	case !wrapped(signature) && len(signature) > 65:
		return 0, i.refuse(payment.EVMUndeployedWallet, "the payer's account has no code, and the signature is none of a key")
	case !wrapped(signature):
		return 0, i.refuse(i.badSignature(), "the signature is not by the payer's key, and the payer's account has no code")
	case i.Sender != common.Address{}:
		return 0, i.refuse(payment.EVMUndeployedWallet, "by upto a contract wallet can pay once it is deployed")
	}
	return ByFactory, nil
}

// CheckSigner finds out what can be known of a payment's signature without the
// chain. With contract it is not one by the payer's key: it is good only if the
// payer is a contract that accepts it, which Way and a simulation tell. A
// signature by that key is accepted in its canonical form only. separator is
// that of the token or, for a permit, of Permit2. Errors are
// *payment.InvalidError.
//
// It does not look at the factory of an ERC-6492 wrapper: MatchTransfer and
// CheckPermit do.
func (i *Instrument) CheckSigner(separator common.Hash) (contract bool, err error) {
	return checkSigner(i.digest(separator), i.Payer, i.signature(), i.badSignature())
}

func checkSigner(digest common.Hash, payer common.Address, signature []byte, bad payment.Reason) (contract bool, err error) {
	refuse := func(message string) (bool, error) {
		return false, &payment.InvalidError{Reason: bad, Message: message, Payer: payer.Hex()}
	}
	inner := bare(signature)
	if !signedBy(payer, digest, inner) {
		return true, nil
	}
	if len(inner) != len(signature) {
		// With this the payer would have us call a factory for nothing.
		return refuse("a signature by the payer's key needs no ERC-6492 wrapper")
	}
	if problem := canonical(signature); problem != "" {
		return refuse(problem)
	}
	return false, nil
}

// signedBy reports whether a signature is by the key of an account, in any of
// the forms that some program takes for one.
func signedBy(account common.Address, digest common.Hash, signature []byte) bool {
	plain, ok := plainForm(signature)
	if !ok {
		return false
	}
	signer, err := Recover(digest, plain[:])
	return err == nil && signer == account
}

// MatchTransfer is Match for payers who may be contracts: of the signature it
// refuses only what none can be good, and ERC-6492 wrappers that
// terms.Factories does not allow. CheckSigner decides the rest.
func MatchTransfer(p *payment.Payment, terms Terms, at uint64) (*Transfer, error) {
	t, err := matchTerms(p, terms, at)
	if err == nil {
		err = terms.Factories.check(t.From, t.Signature)
	}
	if err == nil && len(t.Signature) == 0 {
		err = &payment.InvalidError{Reason: payment.EVMSignature, Message: "there is no signature", Payer: t.From.Hex()}
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// CheckTransfer is Check for payers who may be contracts. contract is as in
// CheckPermit: the signature is not one by the key of From, and good only if
// From is a contract that accepts it. Way says what to do then.
func CheckTransfer(p *payment.Payment, terms Terms, at uint64) (t *Transfer, contract bool, err error) {
	t, err = MatchTransfer(p, terms, at)
	if err == nil {
		contract, err = checkSigner(t.Digest(terms.Separator), t.From, t.Signature, payment.EVMSignature)
	}
	if err != nil {
		return nil, false, err
	}
	return t, contract, nil
}

func (i *Instrument) signature() []byte {
	if i.Permit != nil {
		return i.Permit.Signature
	}
	return i.Transfer.Signature
}

func (i *Instrument) digest(separator common.Hash) common.Hash {
	if i.Permit != nil {
		return i.Permit.Digest(separator)
	}
	return i.Transfer.Digest(separator)
}

// badSignature is the reason for a signature that is not good.
func (i *Instrument) badSignature() payment.Reason {
	if i.Permit != nil {
		return payment.Permit2Signature
	}
	return payment.EVMSignature
}

func (i *Instrument) refuse(reason payment.Reason, message string) error {
	return &payment.InvalidError{Reason: reason, Message: message, Payer: i.Payer.Hex()}
}
