package evm

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
)

// Function selectors of the proxies, of Permit2 and of tokens.
var (
	selExactSettle           = [4]byte{0x13, 0xcd, 0x3b, 0x53} // settle(((address,uint256),uint256,uint256),address,(address,uint256),bytes)
	selExactSettleWithPermit = [4]byte{0xfa, 0x34, 0x03, 0x78} // settleWithPermit((uint256,uint256,bytes32,bytes32,uint8),((address,uint256),uint256,uint256),address,(address,uint256),bytes)
	selUptoSettle            = [4]byte{0xff, 0x11, 0xe7, 0xb4} // settle(((address,uint256),uint256,uint256),uint256,address,(address,address,uint256),bytes)
	selUptoSettleWithPermit  = [4]byte{0x01, 0x6c, 0x17, 0x48} // settleWithPermit((uint256,uint256,bytes32,bytes32,uint8),((address,uint256),uint256,uint256),uint256,address,(address,address,uint256),bytes)
	selNonceBitmap           = [4]byte{0x4f, 0xe0, 0x2b, 0x44} // nonceBitmap(address,uint256)
	selAllowance             = [4]byte{0xdd, 0x62, 0xed, 0x3e} // allowance(address,address)
	selNonces                = [4]byte{0x7e, 0xce, 0xbe, 0x00} // nonces(address)
	selPermit2               = [4]byte{0x6a, 0xfd, 0xd8, 0x50} // PERMIT2()
)

// A PermitCall is a call to a proxy that spends a permit. It goes to
// Permit.Proxy(). The upto proxy takes it from the permit's facilitator only,
// the exact proxy from anyone.
type PermitCall struct {
	Permit *SignedPermit

	// Charge is what moves, in atomic units. By exact it is the permit's
	// amount, which is also what nil means.
	Charge *big.Int

	// Approval, if not nil, is given to the token first, so that Permit2
	// has the allowance it needs.
	Approval *Approval
}

// Calldata returns the call's data.
func (c *PermitCall) Calldata() []byte {
	s := c.Permit
	upto := s.Scheme == payment.Upto
	selector, words := selExactSettle, 8
	switch {
	case upto && c.Approval != nil:
		selector, words = selUptoSettleWithPermit, 15
	case upto:
		selector, words = selUptoSettle, 10
	case c.Approval != nil:
		selector, words = selExactSettleWithPermit, 13
	}
	b := make([]byte, 0, 4+32*(words+1)+padded(len(s.Signature)))
	b = append(b, selector[:]...)
	var w [32]byte
	number := func(n *big.Int) { b = append(b, n.FillBytes(w[:])...) }
	account := func(a common.Address) { b = append(b, common.LeftPadBytes(a[:], 32)...) }
	if a := c.Approval; a != nil {
		number(a.Value)
		number(a.Deadline)
		b = append(b, a.Signature[:64]...)
		b = append(b, word(uint64(a.Signature[64]))...)
	}
	account(s.Token)
	number(s.Amount)
	number(s.Nonce)
	number(s.Deadline)
	if upto {
		number(c.charge())
	}
	account(s.From)
	account(s.To)
	if upto {
		account(s.Facilitator)
	}
	number(s.ValidAfter)
	b = append(b, word(uint64(32*words))...)
	b = append(b, word(uint64(len(s.Signature)))...)
	b = append(b, s.Signature...)
	return append(b, make([]byte, padded(len(s.Signature))-len(s.Signature))...)
}

func (c *PermitCall) charge() *big.Int {
	if c.Charge == nil {
		return c.Permit.Amount
	}
	return c.Charge
}

// ReadPermitCall says what a call to one of the proxies does. It is an error if
// the call is anything else than one of Calldata's, down to the last byte. The
// nonce of an approval is not part of the call and is nil.
func ReadPermitCall(to common.Address, data []byte) (*PermitCall, error) {
	c, head := readPermitHead(to, data)
	if c == nil {
		return nil, errors.New("evm: the call settles no permit")
	}
	r := reader{data[4:]}
	length, ok := r.length(head)
	if !ok || head+32+padded(length) != len(r.data) {
		return nil, errors.New("evm: the call has a length that no settlement of a permit has")
	}
	c.Permit.Signature = bytes.Clone(r.data[head+32 : head+32+length])
	if !bytes.Equal(data, c.Calldata()) {
		return nil, errors.New("evm: the call is not encoded as it should be")
	}
	return c, nil
}

// readPermitHead reads what has a fixed place in a call to a proxy, which is
// everything but the signature, and returns where the head ends after the
// selector. What follows the head may be anything: proxies accept a signature
// in other places and data after it. It returns nil if to is no proxy or the
// call is no settlement.
func readPermitHead(to common.Address, data []byte) (c *PermitCall, head int) {
	if len(data) < 4 {
		return nil, 0
	}
	c = &PermitCall{Permit: &SignedPermit{Permit: Permit{Scheme: payment.Exact, Spender: to}}}
	s := c.Permit
	sponsored := false
	switch selector := [4]byte(data); {
	case to == ExactProxy && selector == selExactSettle:
		head = 8
	case to == ExactProxy && selector == selExactSettleWithPermit:
		head, sponsored = 13, true
	case to == UptoProxy && selector == selUptoSettle:
		head, s.Scheme = 10, payment.Upto
	case to == UptoProxy && selector == selUptoSettleWithPermit:
		head, s.Scheme, sponsored = 15, payment.Upto, true
	default:
		return nil, 0
	}
	head *= 32
	rest := data[4:]
	if len(rest) < head {
		return nil, 0
	}
	next := func() []byte { w := rest[:32]; rest = rest[32:]; return w }
	number := func() *big.Int { return new(big.Int).SetBytes(next()) }
	account := func() common.Address { return common.BytesToAddress(next()) }
	if sponsored {
		c.Approval = &Approval{Spender: Permit2, Value: number(), Deadline: number()}
		c.Approval.Signature = append(bytes.Clone(rest[:64]), rest[95])
		rest = rest[96:]
	}
	s.Token, s.Amount, s.Nonce, s.Deadline = account(), number(), number(), number()
	c.Charge = s.Amount
	if s.Scheme == payment.Upto {
		c.Charge = number()
	}
	s.From, s.To = account(), account()
	if s.Scheme == payment.Upto {
		s.Facilitator = account()
	}
	s.ValidAfter = number()
	if sponsored {
		c.Approval.From, c.Approval.Token = s.From, s.Token
	}
	return c, head
}

// BitmapCall asks Permit2 for the word of the payer's nonces that the permit's
// nonce is in: see Used.
func (p *Permit) BitmapCall() []byte {
	b := append(make([]byte, 0, 68), selNonceBitmap[:]...)
	b = append(b, common.LeftPadBytes(p.From[:], 32)...)
	var w [32]byte
	p.Nonce.FillBytes(w[:])
	b = append(b, 0) // the nonce without its last byte
	return append(b, w[:31]...)
}

// Used reads Permit2's answer to BitmapCall: whether the nonce has been used,
// by a transfer or by its invalidation.
func (p *Permit) Used(answer []byte) (bool, error) {
	if len(answer) != 32 {
		return false, fmt.Errorf("evm: Permit2 answers with %d bytes to nonceBitmap, it must be 32: is there a contract at %s?", len(answer), Permit2)
	}
	var w [32]byte
	p.Nonce.FillBytes(w[:])
	bit := w[31]
	return answer[31-bit/8]>>(bit%8)&1 == 1, nil
}

// AllowanceCall asks a token how much spender may move of what owner has.
func AllowanceCall(owner, spender common.Address) []byte {
	b := append(make([]byte, 0, 68), selAllowance[:]...)
	b = append(b, common.LeftPadBytes(owner[:], 32)...)
	return append(b, common.LeftPadBytes(spender[:], 32)...)
}

// NoncesCall asks a token with EIP-2612 for the nonce of an account's next
// approval.
func NoncesCall(owner common.Address) []byte {
	return append(append(make([]byte, 0, 36), selNonces[:]...), common.LeftPadBytes(owner[:], 32)...)
}

// Permit2Call asks a proxy for the address of Permit2. Where it does not answer
// with it, the proxy is not deployed.
func Permit2Call() []byte { return append([]byte(nil), selPermit2[:]...) }

// permitReverts are the errors of the proxies and of Permit2 with the reason
// that each gives.
var permitReverts = map[[4]byte]payment.Reason{
	{0x2c, 0x52, 0x11, 0xc6}: payment.Permit2InvalidAmount,        // InvalidAmount()
	{0x37, 0x28, 0xb8, 0x3d}: payment.Permit2InvalidAmount,        // InvalidAmount(uint256)
	{0xac, 0x6b, 0x05, 0xf5}: payment.Permit2InvalidDestination,   // InvalidDestination()
	{0x49, 0xe2, 0x7c, 0xff}: payment.Permit2InvalidOwner,         // InvalidOwner()
	{0xa6, 0x55, 0x39, 0xfa}: payment.Permit2TooEarly,             // PaymentTooEarly()
	{0x05, 0x0c, 0xda, 0x49}: payment.Permit2ApprovalMismatch,     // Permit2612AmountMismatch()
	{0xfe, 0x64, 0xb4, 0xc7}: payment.UptoExceedsPermitted,        // AmountExceedsPermitted()
	{0x0f, 0x6f, 0xae, 0x87}: payment.UptoUnauthorizedFacilitator, // UnauthorizedFacilitator()
	{0x75, 0x66, 0x88, 0xfe}: payment.Permit2InvalidNonce,         // InvalidNonce()
	{0xcd, 0x21, 0xdb, 0x4f}: payment.Permit2Expired,              // SignatureExpired(uint256)
	{0x81, 0x5e, 0x1d, 0x64}: payment.Permit2Signature,            // InvalidSigner()
	{0x8b, 0xaa, 0x57, 0x9f}: payment.Permit2Signature,            // InvalidSignature()
	{0x4b, 0xe6, 0x32, 0x1b}: payment.Permit2Signature,            // InvalidSignatureLength()
	{0xb0, 0x66, 0x9c, 0xbc}: payment.Permit2Signature,            // InvalidContractSignature()
}

// PermitRevert returns the reason for which a call to a proxy reverted, or
// false where the data does not tell: a token that refuses gives none, and its
// balance and allowance must be looked at.
func PermitRevert(data []byte) (payment.Reason, bool) {
	if len(data) < 4 {
		return "", false
	}
	reason, ok := permitReverts[[4]byte(data)]
	return reason, ok
}
