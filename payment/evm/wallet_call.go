package evm

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
)

// Function selectors.
var (
	selIsValidSignature = [4]byte{0x16, 0x26, 0xba, 0x7e} // isValidSignature(bytes32,bytes)
	selTryAggregate     = [4]byte{0xbc, 0xe3, 0x8b, 0xd7} // tryAggregate(bool,(address,bytes)[])
)

// SignatureCall asks a contract wallet whether it accepts a signature of a
// digest (ERC-1271). The wallet may be hostile: give the call little gas, and
// do not read an endless answer.
func SignatureCall(wallet common.Address, digest common.Hash, signature []byte) Call {
	b := append(make([]byte, 0, 4+32*3+padded(len(signature))), selIsValidSignature[:]...)
	b = append(b, digest[:]...)
	b = append(b, word(2*32)...)
	return Call{wallet, appendBytes(b, signature)}
}

// SignatureAccepted reads the answer to SignatureCall: one word, of which
// tokens compare all 32 bytes. Anything else is a refusal. (USDC takes a longer
// answer that starts with that word; no honest wallet gives one.)
func SignatureAccepted(answer []byte) bool {
	return len(answer) == 32 && bytes.HasPrefix(answer, selIsValidSignature[:]) && zero(answer[4:])
}

// SignatureCall asks the payer's code whether it accepts the signature, as the
// contract that moves the money does. It says why a payment fails, not that it
// will not: only a simulation of the payment says that. separator is as in
// CheckSigner.
func (i *Instrument) SignatureCall(separator common.Hash) Call {
	return SignatureCall(i.Payer, i.digest(separator), bare(i.signature()))
}

// Unwrapped returns i as contracts take it: with the signature in an ERC-6492
// wrapper in place of the wrapper, and i itself if there is none. Key is that of
// i. Proof is not: it is a hash of what was sent.
func (i *Instrument) Unwrapped() *Instrument {
	signature := i.signature()
	inner := bare(signature)
	if len(inner) == len(signature) {
		return i
	}
	plain := *i
	if i.Permit != nil {
		permit := *i.Permit
		permit.Signature = inner
		plain.Permit = &permit
	} else {
		plain.Transfer = &Transfer{Authorization: i.Transfer.Authorization, Signature: inner}
	}
	return &plain
}

// DeployAndSpend returns the call that deploys the payer's wallet and charges
// an amount then, for payments that are ByFactory. It is one to Multicall3, so
// that the factory is called by an account that owns nothing and may do
// nothing. It succeeds whatever the two calls do: DeployedAndSpent reads its
// answer. The same call can be sent as a transaction.
func (i *Instrument) DeployAndSpend(charge *big.Int) (Call, error) {
	w, isWrapped, err := ReadWrapper(i.signature())
	switch {
	case err != nil:
		return Call{}, err
	case !isWrapped:
		return Call{}, errors.New("evm: the signature names no factory")
	}
	return TryCalls(Call{w.Factory, w.Calldata}, i.Spend(charge)), nil
}

// Wrapped reports whether the signature names a factory, so that the payer's
// wallet may have to be deployed on the way.
func (i *Instrument) Wrapped() bool { return wrapped(i.signature()) }

// Settlement returns the call that a lane sends to charge an amount: Spend, or
// DeployAndSpend where the signature names a factory, which MatchTransfer or
// CheckPermit has found in order.
func (i *Instrument) Settlement(charge *big.Int) Call {
	if i.Wrapped() {
		if c, err := i.DeployAndSpend(charge); err == nil {
			return c
		}
	}
	return i.Spend(charge)
}

// DeployedAndSpent reads the answer to DeployAndSpend. The payment is good if
// it was spent. That the factory has failed is no matter then: somebody else
// may have deployed the wallet.
func DeployedAndSpent(answer []byte) (deployed, spent bool, err error) {
	results, err := BatchResults(answer, 2)
	if err != nil {
		return false, false, fmt.Errorf("reading the deployment of a wallet: %w", err)
	}
	return results[0], results[1], nil
}

// TryCalls returns the call to Multicall3 that makes all of calls, in their
// order. One that fails does not undo the others. BatchResults reads its
// answer.
func TryCalls(calls ...Call) Call {
	size := 4 + 32*(3+len(calls))
	for _, c := range calls {
		size += 32*3 + padded(len(c.Data))
	}
	b := append(make([]byte, 0, size), selTryAggregate[:]...)
	b = append(b, word(0)...) // not all need succeed
	b = append(b, word(2*32)...)
	b = append(b, word(uint64(len(calls)))...)
	offset := 32 * len(calls)
	for _, c := range calls {
		b = append(b, word(uint64(offset))...)
		offset += 32*3 + padded(len(c.Data))
	}
	for _, c := range calls {
		b = append(b, common.LeftPadBytes(c.To[:], 32)...)
		b = append(b, word(2*32)...)
		b = appendBytes(b, c.Data)
	}
	return Call{Multicall3, b}
}

// ReadTryCalls reads the data of a call that TryCalls has made, down to the
// last byte. Who signs for a lane finds with it which factory is called, and
// what is spent.
func ReadTryCalls(data []byte) ([]Call, error) {
	if !bytes.HasPrefix(data, selTryAggregate[:]) {
		return nil, errors.New("evm: the call is no tryAggregate")
	}
	r := reader{data[4:]}
	start, ok := r.offset(0, 32)
	count, fits := r.length(start)
	if !ok || !fits || count > len(data)/32 {
		return nil, errors.New("evm: the calls cannot be read")
	}
	list := start + 32
	calls := make([]Call, count)
	left := len(data) // calls that share their data would make much of little
	for i := range calls {
		at, ok := r.offset(list, list+32*i)
		where, fits := r.offset(at, at+32)
		length, whole := r.length(where)
		left -= length
		if !ok || !fits || !whole || where+32+length > len(r.data) || left < 0 {
			return nil, fmt.Errorf("evm: call %d cannot be read", i)
		}
		calls[i] = Call{common.BytesToAddress(r.data[at : at+32]), bytes.Clone(r.data[where+32 : where+32+length])}
	}
	if !bytes.Equal(data, TryCalls(calls...).Data) {
		return nil, errors.New("evm: the calls are not encoded as they should be: each may fail on its own")
	}
	return calls, nil
}
