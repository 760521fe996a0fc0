package evm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
)

// Multicall3 is the address of the contract of that name on every chain that
// has it. It makes several calls in one transaction.
var Multicall3 = common.HexToAddress("0xcA11bde05977b3631167028862bE2a173976CA11")

var selAggregate3 = [4]byte{0x82, 0xad, 0x56, 0xcb} // aggregate3((address,bool,bytes)[])

// BatchCalldata returns the call to Multicall3 that spends a number of
// authorizations by EIP-3009, in their order. With allowFailure one that fails
// does not undo the others.
func BatchCalldata(list []*Instrument, allowFailure bool) []byte {
	calls := make([]Call, len(list))
	size := 4 + 32*(2+len(list))
	for i, one := range list {
		calls[i] = one.Spend(one.Most)
		size += 32*4 + padded(len(calls[i].Data))
	}
	flag := uint64(0)
	if allowFailure {
		flag = 1
	}
	b := append(make([]byte, 0, size), selAggregate3[:]...)
	b = append(b, word(32)...)
	b = append(b, word(uint64(len(calls)))...)
	offset := 32 * len(calls)
	for _, c := range calls {
		b = append(b, word(uint64(offset))...)
		offset += 32*4 + padded(len(c.Data))
	}
	for _, c := range calls {
		d := c.Data
		b = append(b, common.LeftPadBytes(c.To[:], 32)...)
		b = append(b, word(flag)...)
		b = append(b, word(3*32)...)
		b = append(b, word(uint64(len(d)))...)
		b = append(b, d...)
		b = append(b, make([]byte, padded(len(d))-len(d))...)
	}
	return b
}

func padded(n int) int { return (n + 31) / 32 * 32 }

// BatchResults reads what Multicall3 answers to BatchCalldata with
// allowFailure: for each of n calls whether it went well.
func BatchResults(output []byte, n int) ([]bool, error) {
	r := reader{output}
	start, ok := r.offset(0, 0)
	count, fits := r.length(start)
	if !ok || !fits || count != n {
		return nil, fmt.Errorf("evm: Multicall3 does not answer to %d calls", n)
	}
	list := start + 32
	results := make([]bool, n)
	for i := range results {
		at, ok := r.offset(list, list+32*i)
		flag, fits := r.length(at)
		if !ok || !fits || flag > 1 {
			return nil, fmt.Errorf("evm: Multicall3's answer to call %d cannot be read", i)
		}
		results[i] = flag == 1
	}
	return results, nil
}

// ReadLaneCall says what a lane's call does: what it spends, nothing if it only
// fills a nonce. It is an error if the call is anything else, down to the last
// byte; who signs for a lane signs nothing that this does not read.
func ReadLaneCall(lane common.Address, c *payment.LaneCall) ([]*Instrument, error) {
	switch c.To {
	case lane:
		if len(c.Data) == 0 {
			return nil, nil
		}
	case Multicall3:
		if bytes.HasPrefix(c.Data, selTryAggregate[:]) {
			return readDeployment(lane, c)
		}
		return readBatch(c.Data)
	case ExactProxy, UptoProxy:
		p, err := ReadPermitCall(c.To, c.Data)
		if err != nil {
			return nil, err
		}
		if f := p.Permit.Facilitator; p.Permit.Scheme == payment.Upto && f != lane {
			return nil, fmt.Errorf("evm: the call spends a permit that only %s can spend", f)
		}
		return []*Instrument{OfPermit(p.Permit, p.Approval)}, nil
	}
	t, err := readTransfer(c.Data)
	if err != nil {
		return nil, err
	}
	return []*Instrument{OfTransfer(c.To, t)}, nil
}

// readDeployment reads what DeployAndSpend returns. What the factory is told does
// not matter to the lane: it is Multicall3 that calls it.
func readDeployment(lane common.Address, c *payment.LaneCall) ([]*Instrument, error) {
	calls, err := ReadTryCalls(c.Data)
	if err != nil {
		return nil, err
	}
	if len(calls) != 2 {
		return nil, errors.New("evm: the call is neither a batch nor the deployment of a wallet that pays")
	}
	spend := calls[1]
	if spend.To == lane || spend.To == Multicall3 || spend.To == UptoProxy {
		return nil, errors.New("evm: what follows the deployment of a wallet is no payment")
	}
	inner := *c
	inner.To, inner.Data = spend.To, spend.Data
	return ReadLaneCall(lane, &inner)
}

func readTransfer(data []byte) (*Transfer, error) {
	const fields = 4 + 6*32
	if len(data) < fields+32 {
		return nil, errors.New("evm: the call is no transferWithAuthorization")
	}
	at := func(i int) []byte { return data[4+32*i : 4+32*(i+1)] }
	t := &Transfer{Authorization: Authorization{
		From: common.BytesToAddress(at(0)), To: common.BytesToAddress(at(1)), Value: new(big.Int).SetBytes(at(2)),
		ValidAfter: new(big.Int).SetBytes(at(3)), ValidBefore: new(big.Int).SetBytes(at(4)), Nonce: [32]byte(at(5)),
	}}
	var again []byte
	switch [4]byte(data[:4]) {
	case selTransferVRS:
		if len(data) != fields+3*32 {
			return nil, errors.New("evm: the call has a length that no transferWithAuthorization has")
		}
		t.Signature = append(bytes.Clone(data[fields+32:]), data[fields+31])
		again = t.Calldata()
	case selTransferBytes:
		r := reader{data[fields:]}
		length, ok := r.length(32)
		if !ok || 64+padded(length) != len(r.data) {
			return nil, errors.New("evm: the call has a length that no transferWithAuthorization has")
		}
		t.Signature = bytes.Clone(r.data[64 : 64+length])
		again = t.CalldataBytes()
	default:
		return nil, errors.New("evm: the call is no transferWithAuthorization")
	}
	if !bytes.Equal(data, again) {
		return nil, errors.New("evm: the call is not encoded as it should be")
	}
	return t, nil
}

func readBatch(data []byte) ([]*Instrument, error) {
	if !bytes.HasPrefix(data, selAggregate3[:]) {
		return nil, errors.New("evm: the call to Multicall3 is no aggregate3")
	}
	r := reader{data[4:]}
	start, ok := r.offset(0, 0)
	count, fits := r.length(start)
	if !ok || !fits || count == 0 {
		return nil, errors.New("evm: the batch cannot be read")
	}
	list := start + 32
	calls := make([]*Instrument, count)
	for i := range calls {
		at, ok := r.offset(list, list+32*i)
		where, fits := r.offset(at, at+64)
		length, whole := r.length(where)
		if !ok || !fits || !whole || where+32+length > len(r.data) {
			return nil, fmt.Errorf("evm: call %d of the batch cannot be read", i)
		}
		t, err := readTransfer(r.data[where+32 : where+32+length])
		if err != nil {
			return nil, fmt.Errorf("call %d of the batch: %w", i, err)
		}
		calls[i] = OfTransfer(common.BytesToAddress(r.data[at:at+32]), t)
	}
	if !bytes.Equal(data, BatchCalldata(calls, true)) {
		return nil, errors.New("evm: the batch is not encoded as it should be: each call may fail on its own")
	}
	return calls, nil
}

// A reader reads numbers from data that may be anything.
type reader struct{ data []byte }

// length returns the number at a place, if it is not larger than the data.
func (r reader) length(at int) (int, bool) {
	if at < 0 || at > len(r.data)-32 {
		return 0, false
	}
	w := r.data[at : at+32]
	n := int(binary.BigEndian.Uint32(w[28:]))
	return n, zero(w[:28]) && n <= len(r.data)
}

// offset returns the place that the number at a place points to from base.
func (r reader) offset(base, at int) (int, bool) {
	n, ok := r.length(at)
	return base + n, ok && base+n <= len(r.data)
}
