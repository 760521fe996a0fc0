package evm

import (
	"errors"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// A rawTx is a signed transaction that calls a contract: one of EIP-1559
// without an access list, or one of the old form that names its chain
// (EIP-155). There is no other that a payer has a reason to send here.
type rawTx struct {
	chainID     *big.Int
	nonce, gas  uint64
	feeCap, tip *big.Int // wei per gas; alike in the old form
	to          common.Address
	value       *big.Int // wei
	data        []byte
	signature   []byte // r, s and v of 27 or 28
	digest      common.Hash
}

// dynamicFee is the first byte of a transaction of EIP-1559.
const dynamicFee = 0x02

var errRawTx = errors.New("it is no EIP-1559 transaction without access list, nor an EIP-155 one, in its only encoding")

// readRawTx reads a transaction. There is one way to write each, and it accepts
// no other: every number without leading zeros, every length as short as it can
// be, nothing after the end.
func readRawTx(b []byte) (*rawTx, error) {
	dynamic := len(b) > 0 && b[0] == dynamicFee
	if dynamic {
		b = b[1:]
	}
	body, list, rest, ok := rlpItem(b)
	if !ok || !list || len(rest) > 0 {
		return nil, errRawTx
	}
	t := &rawTx{}
	var ofSignature int // where the signature begins in body
	if dynamic {
		ofSignature, ok = t.readDynamic(body)
		t.digest = crypto.Keccak256Hash([]byte{dynamicFee}, rlpList(body[:ofSignature]))
	} else if ofSignature, ok = t.readLegacy(body); ok {
		unsigned := append(body[:ofSignature:ofSignature], rlpNumber(t.chainID)...)
		t.digest = crypto.Keccak256Hash(rlpList(append(unsigned, 0x80, 0x80)))
	}
	if !ok {
		return nil, errRawTx
	}
	return t, nil
}

// readDynamic reads chain, nonce, tip, fee cap, gas, to, value, data, access
// list, v, r and s.
func (t *rawTx) readDynamic(body []byte) (ofSignature int, ok bool) {
	r := rlpReader{rest: body, ok: true}
	t.chainID, t.nonce, t.tip, t.feeCap, t.gas = r.number(), r.small(), r.number(), r.number(), r.small()
	t.readCall(&r)
	if entries, list := r.item(); !list || len(entries) > 0 {
		return 0, false
	}
	ofSignature = len(body) - len(r.rest)
	v := r.number()
	if !r.ok || v.BitLen() > 1 {
		return 0, false
	}
	return ofSignature, t.sign(&r, byte(v.Bit(0))) //nolint:gosec // 0 or 1
}

// readLegacy reads nonce, price, gas, to, value, data, v, r and s.
func (t *rawTx) readLegacy(body []byte) (ofSignature int, ok bool) {
	r := rlpReader{rest: body, ok: true}
	t.nonce, t.feeCap, t.gas = r.small(), r.number(), r.small()
	t.tip = t.feeCap
	t.readCall(&r)
	ofSignature = len(body) - len(r.rest)
	// v is twice the chain and 35 or 36.
	v := r.number()
	if v.Sub(v, big.NewInt(35)).Sign() < 0 {
		return 0, false
	}
	t.chainID = new(big.Int).Rsh(v, 1)
	return ofSignature, t.sign(&r, byte(v.Bit(0))) //nolint:gosec // 0 or 1
}

func (t *rawTx) readCall(r *rlpReader) {
	to := r.text()
	if len(to) != common.AddressLength {
		r.ok = false // it would deploy a contract
	}
	t.to = common.BytesToAddress(to)
	t.value, t.data = r.number(), r.text()
}

// sign reads r and s, which end the transaction. odd is the parity of the
// point.
func (t *rawTx) sign(r *rlpReader, odd byte) bool {
	x, s := r.number(), r.number()
	if !r.ok || len(r.rest) > 0 {
		return false
	}
	t.signature = make([]byte, 65)
	x.FillBytes(t.signature[:32])
	s.FillBytes(t.signature[32:64])
	t.signature[64] = 27 + odd
	return true
}

// An rlpReader reads the items of a list one after another. What it returns
// means nothing once ok is false.
type rlpReader struct {
	rest []byte
	ok   bool
}

func (r *rlpReader) item() (content []byte, list bool) {
	content, list, rest, ok := rlpItem(r.rest)
	r.rest, r.ok = rest, r.ok && ok
	return content, list
}

func (r *rlpReader) text() []byte {
	content, list := r.item()
	r.ok = r.ok && !list
	return content
}

// number reads a number of at most 256 bits.
func (r *rlpReader) number() *big.Int {
	b := r.text()
	if len(b) > 32 || len(b) > 0 && b[0] == 0 {
		r.ok = false
		return new(big.Int)
	}
	return new(big.Int).SetBytes(b)
}

// small reads a number of at most 64 bits.
func (r *rlpReader) small() uint64 {
	n := r.number()
	r.ok = r.ok && n.IsUint64()
	return n.Uint64()
}

// rlpItem reads the first item of b, a text or a list, which must be written as
// short as it can be, and returns what is in it and what follows it.
func rlpItem(b []byte) (content []byte, list bool, rest []byte, ok bool) {
	if len(b) == 0 {
		return nil, false, nil, false
	}
	if b[0] < 0x80 { // a byte that is itself
		return b[:1], false, b[1:], true
	}
	list = b[0] >= 0xc0
	length, b := int(b[0]&0x3f), b[1:]
	if length > 55 { // the length is written after it
		width := length - 55
		if width > 2 || len(b) < width || b[0] == 0 { // nothing here has more than 65535 bytes
			return nil, false, nil, false
		}
		length = 0
		for _, digit := range b[:width] {
			length = length<<8 | int(digit)
		}
		if b = b[width:]; length <= 55 {
			return nil, false, nil, false
		}
	}
	if len(b) < length || !list && length == 1 && b[0] < 0x80 {
		return nil, false, nil, false
	}
	return b[:length], list, b[length:], true
}

// rlpList writes a list of items that are written already, and of which there
// are less than 65536 bytes.
func rlpList(items []byte) []byte {
	n := len(items)
	var b []byte
	switch {
	case n <= 55:
		b = []byte{0xc0 + byte(n)}
	case n < 1<<8:
		b = []byte{0xf8, byte(n)}
	default:
		b = []byte{0xf9, byte(n >> 8), byte(n)} //nolint:gosec // the two halves
	}
	return append(b, items...)
}

// rlpNumber writes a number of at most 256 bits.
func rlpNumber(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) == 1 && b[0] < 0x80 {
		return b
	}
	return append([]byte{0x80 + byte(len(b))}, b...) //nolint:gosec // at most 32
}
