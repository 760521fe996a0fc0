package evm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
)

// A Wrapper is a signature by a contract wallet that may not be deployed yet,
// as ERC-6492 has it: the call that deploys the wallet, and the signature that
// the wallet accepts then.
type Wrapper struct {
	Factory   common.Address
	Calldata  []byte
	Signature []byte
}

// ReadWrapper reads a wrapped signature. isWrapped is false for one without the
// magic end that a wrapper has. Each wrapper has one encoding; what is not in
// it, or deploys nothing, or wraps nothing, is an error. The wrapper shares
// memory with the signature.
func ReadWrapper(signature []byte) (w *Wrapper, isWrapped bool, err error) {
	if !wrapped(signature) {
		return nil, false, nil
	}
	body := signature[:len(signature)-len(wrappedSuffix)]
	r := reader{body}
	call, ok := r.offset(0, 32)
	calldata, whole := r.length(call)
	inner, fits := r.offset(0, 64)
	length, complete := r.length(inner)
	if !ok || !whole || !fits || !complete || call+32+calldata > len(body) || inner+32+length > len(body) {
		return nil, true, errors.New("evm: the ERC-6492 wrapper cannot be read")
	}
	w = &Wrapper{
		Factory:   common.BytesToAddress(body[:32]),
		Calldata:  body[call+32 : call+32+calldata],
		Signature: body[inner+32 : inner+32+length],
	}
	switch {
	case w.Factory == common.Address{}:
		return nil, true, errors.New("evm: the ERC-6492 wrapper names no factory")
	case len(w.Signature) == 0 || wrapped(w.Signature):
		return nil, true, errors.New("evm: the ERC-6492 wrapper has no signature in it")
	case !bytes.Equal(signature, w.Encode()):
		return nil, true, errors.New("evm: the ERC-6492 wrapper is not encoded as it should be")
	}
	return w, true, nil
}

// Encode returns the wrapped signature.
func (w *Wrapper) Encode() []byte {
	calldata := appendBytes(nil, w.Calldata)
	b := make([]byte, 0, 32*5+len(calldata)+padded(len(w.Signature)))
	b = append(b, common.LeftPadBytes(w.Factory[:], 32)...)
	b = append(b, word(3*32)...)
	b = append(b, word(3*32+uint64(len(calldata)))...)
	b = append(b, calldata...)
	b = appendBytes(b, w.Signature)
	return append(b, wrappedSuffix...)
}

// appendBytes appends the encoding of bytes: their number, and they with zeros
// up to the next word.
func appendBytes(b, data []byte) []byte {
	b = append(b, word(uint64(len(data)))...)
	b = append(b, data...)
	return append(b, make([]byte, padded(len(data))-len(data))...)
}

// bare returns what a signature has in a wrapper, or the signature itself.
func bare(signature []byte) []byte {
	if w, isWrapped, err := ReadWrapper(signature); isWrapped && err == nil {
		return w.Signature
	}
	return signature
}

// Factories are the contracts whose wallets may pay before they are deployed,
// each with the functions of it that may be called, by their selectors. A
// factory is called with data that the payer chooses, so each function must do
// nothing but deploy a wallet, whoever calls it. The zero value allows nothing.
type Factories map[common.Address][][4]byte

// Allows reports whether the factory of a wrapper may be called as it says.
func (f Factories) Allows(w *Wrapper) bool {
	return len(w.Calldata) >= 4 && slices.Contains(f[w.Factory], [4]byte(w.Calldata[:4]))
}

// Validate returns an error for an entry that cannot be a factory of wallets,
// or allows nothing. It cannot know what the others do.
func (f Factories) Validate() error {
	for factory, selectors := range f {
		switch {
		case bytes.HasPrefix(factory[:], make([]byte, 18)):
			return fmt.Errorf("evm: %s is no factory of wallets: it is reserved for the chain itself", factory)
		case factory == Multicall3 || factory == Permit2 || factory == ExactProxy || factory == UptoProxy:
			return fmt.Errorf("evm: %s is no factory of wallets: payers could have it do other things", factory)
		case len(selectors) == 0:
			return fmt.Errorf("evm: factory %s has no functions that may be called: name their selectors", factory)
		}
	}
	return nil
}

// check refuses a wrapped signature unless its factory is allowed. Its errors
// are *payment.InvalidError.
func (f Factories) check(payer common.Address, signature []byte) error {
	w, isWrapped, err := ReadWrapper(signature)
	refuse := func(reason payment.Reason, message string) error {
		return &payment.InvalidError{Reason: reason, Message: message, Payer: payer.Hex()}
	}
	switch {
	case !isWrapped:
		return nil
	case len(f) == 0:
		return refuse(payment.EVMFactoryNotAllowed, "ERC-6492 signatures are not accepted here")
	case err != nil:
		return refuse(payment.EVMSignatureFormat, err.Error())
	case !f.Allows(w):
		return refuse(payment.EVMFactoryNotAllowed, "this call of factory "+w.Factory.Hex()+" is not accepted here")
	}
	return nil
}
