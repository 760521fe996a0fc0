package sim

import (
	"encoding/binary"
	"math"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// unlimited is an allowance that does not shrink.
const unlimited = math.MaxUint64

// Selectors of what the world knows of Permit2, of its proxies, and of the
// token's part in it.
var (
	selBitmap     = [4]byte{0x4f, 0xe0, 0x2b, 0x44}
	selPermit2    = [4]byte{0x6a, 0xfd, 0xd8, 0x50}
	selAllowance  = [4]byte{0xdd, 0x62, 0xed, 0x3e}
	selInvalidate = [4]byte{0x3f, 0xf9, 0xdc, 0xb1} // invalidateUnorderedNonces(uint256,uint256)
)

// Errors of the proxies and of Permit2.
var (
	errInvalidAmount     = []byte{0x2c, 0x52, 0x11, 0xc6}
	errTooEarly          = []byte{0xa6, 0x55, 0x39, 0xfa}
	errExceedsPermitted  = []byte{0xfe, 0x64, 0xb4, 0xc7}
	errUnauthorized      = []byte{0x0f, 0x6f, 0xae, 0x87}
	errInvalidNonce      = []byte{0x75, 0x66, 0x88, 0xfe}
	errSignatureExpired  = []byte{0xcd, 0x21, 0xdb, 0x4f}
	errInvalidSigner     = []byte{0x81, 0x5e, 0x1d, 0x64}
	errInvalidContractSg = []byte{0xb0, 0x66, 0x9c, 0xbc}
)

// fails is a revert with the selector of an error.
func fails(selector []byte) outcome {
	out := revert("")
	out.data = selector
	return out
}

// permitAuthorization names what a permit is for the chain.
func permitAuthorization(p *evm.Permit) authorization {
	a := authorization{from: p.From, permit: true}
	p.Nonce.FillBytes(a.nonce[:])
	return a
}

// callPermit2 runs a call to Permit2 itself.
func (c *chainModel) callPermit2(s *state, f frame, data []byte) outcome {
	if len(data) != 4+64 {
		return revert("no such function")
	}
	first, second := data[4:36], data[36:]
	switch [4]byte(data) {
	case selBitmap:
		return outcome{output: s.bitmap(common.BytesToAddress(first), second), gas: 30_000}
	case selInvalidate:
		mask := new(big.Int).SetBytes(second)
		for bit := range 256 {
			if mask.Bit(bit) == 0 {
				continue
			}
			key := authorization{from: f.from, permit: true}
			copy(key.nonce[:], first[1:])
			key.nonce[31] = byte(bit)
			if _, used := s.used[key]; !used { // it may be, and is none the less
				s.used[key] = use{tx: f.tx, block: f.block}
			}
		}
		return outcome{gas: gasTransfer, logs: []*types.Log{{
			Address: evm.Permit2, Topics: []common.Hash{evm.TopicUnorderedNonceInvalidation, common.BytesToHash(f.from[:])}, Data: data[4:],
		}}}
	}
	return revert("no such function")
}

// bitmap returns a word of an account's nonces.
func (s *state) bitmap(owner common.Address, word []byte) []byte {
	sum := make([]byte, 32)
	for key := range s.used {
		if key.permit && key.from == owner && common.BytesToHash(key.nonce[:31]) == common.BytesToHash(word) {
			bit := key.nonce[31]
			sum[31-bit/8] |= 1 << (bit % 8)
		}
	}
	return sum
}

// callProxy runs a call to the proxy that settles permits of a scheme.
func (c *chainModel) callProxy(s *state, f frame, to common.Address, data []byte) outcome {
	if len(data) == 4 && [4]byte(data) == selPermit2 {
		return outcome{output: common.LeftPadBytes(evm.Permit2[:], 32), gas: 30_000}
	}
	call, err := evm.ReadPermitCall(to, data)
	if err != nil || call.Approval != nil {
		return revert("no such function")
	}
	p, charge := call.Permit, call.Charge
	now := new(big.Int).SetUint64(f.at)
	key := permitAuthorization(&p.Permit)
	_, used := s.used[key]
	switch {
	case p.Scheme == payment.Upto && charge.Sign() == 0:
		return fails(errInvalidAmount)
	case p.Scheme == payment.Upto && charge.Cmp(p.Amount) > 0:
		return fails(errExceedsPermitted)
	case p.Scheme == payment.Upto && p.Facilitator != f.from:
		return fails(errUnauthorized)
	case now.Cmp(p.ValidAfter) < 0:
		return fails(errTooEarly)
	case now.Cmp(p.Deadline) > 0:
		return fails(errSignatureExpired)
	case used:
		return fails(errInvalidNonce)
	case p.Token != c.token:
		return revert("no such token")
	case !c.signed(p.Digest(c.permit2), p.Signature, p.From):
		if c.coded(p.From) {
			return fails(errInvalidContractSg)
		}
		return fails(errInvalidSigner)
	case !charge.IsUint64() || s.allowances[p.From] < charge.Uint64():
		return revert("ERC20: transfer amount exceeds allowance")
	case s.balances[p.From] < charge.Uint64():
		return revert("ERC20: transfer amount exceeds balance")
	}
	if s.allowances[p.From] != unlimited {
		s.allowances[p.From] -= charge.Uint64()
	}
	u := use{paid: key.pays(c, p), amount: charge.Uint64(), tx: f.tx, block: f.block, ours: f.ours}
	if !u.paid && p.To == c.seller {
		u.gift = u.amount
	}
	s.used[key] = u
	out := c.move(s, p.From, p.To, charge.Uint64())
	out.logs = append(out.logs, &types.Log{Address: to, Topics: []common.Hash{evm.TopicSettled}})
	return out
}

// pays reports whether a permit is the one that its payer gave to the seller
// under its nonce: payers can sign others with the same.
func (a authorization) pays(c *chainModel, p *evm.SignedPermit) bool {
	own, ok := c.permits[a]
	return ok && p.Digest(c.permit2) == own.Digest(c.permit2)
}

// move moves money, which must be there.
func (c *chainModel) move(s *state, from, to common.Address, units uint64) outcome {
	s.balances[from] -= units
	s.balances[to] += units
	value := make([]byte, 32)
	binary.BigEndian.PutUint64(value[24:], units)
	return outcome{gas: gasTransfer, logs: []*types.Log{
		{Address: c.token, Topics: []common.Hash{evm.TopicTransfer, common.BytesToHash(from[:]), common.BytesToHash(to[:])}, Data: value},
	}}
}

// invalidation is the call by which a payer gives a nonce up.
func invalidation(p *evm.Permit) evm.Call {
	var nonce [32]byte
	p.Nonce.FillBytes(nonce[:])
	data := make([]byte, 4+64)
	copy(data, selInvalidate[:])
	copy(data[5:36], nonce[:31])
	bit := nonce[31]
	data[67-bit/8] |= 1 << (bit % 8)
	return evm.Call{To: evm.Permit2, Data: data}
}
