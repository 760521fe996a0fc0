package evm

import (
	"github.com/ethereum/go-ethereum/common"
)

// Function selectors: the first four bytes of the hash of the signature.
var (
	selTransferVRS        = [4]byte{0xe3, 0xee, 0x16, 0x0e} // transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)
	selTransferBytes      = [4]byte{0xcf, 0x09, 0x29, 0x95} // transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)
	selAuthorizationState = [4]byte{0xe9, 0x4a, 0x01, 0x02} // authorizationState(address,bytes32)
	selBalanceOf          = [4]byte{0x70, 0xa0, 0x82, 0x31} // balanceOf(address)
	selDomainSeparator    = [4]byte{0x36, 0x44, 0xe5, 0x15} // DOMAIN_SEPARATOR()
)

// Calldata returns the call to the token that spends the authorization: the
// overload with v, r, s for signatures of 65 bytes, which every EIP-3009
// token has, and the one with bytes for others.
func (t *Transfer) Calldata() []byte {
	b := make([]byte, 0, 4+32*9)
	if len(t.Signature) == 65 {
		b = t.appendFields(append(b, selTransferVRS[:]...))
		b = append(b, make([]byte, 31)...)
		b = append(b, t.Signature[64])
		return append(b, t.Signature[:64]...)
	}
	return t.CalldataBytes()
}

// CalldataBytes returns the call in the overload that takes the signature as
// bytes, whatever its length.
func (t *Transfer) CalldataBytes() []byte {
	padded := (len(t.Signature) + 31) / 32 * 32
	b := make([]byte, 0, 4+32*8+padded)
	b = t.appendFields(append(b, selTransferBytes[:]...))
	b = append(b, word(7*32)...)
	b = append(b, word(uint64(len(t.Signature)))...)
	b = append(b, t.Signature...)
	return append(b, make([]byte, padded-len(t.Signature))...)
}

func (t *Transfer) appendFields(b []byte) []byte {
	b = append(b, common.LeftPadBytes(t.From[:], 32)...)
	b = append(b, common.LeftPadBytes(t.To[:], 32)...)
	var w [32]byte
	b = append(b, t.Value.FillBytes(w[:])...)
	b = append(b, t.ValidAfter.FillBytes(w[:])...)
	b = append(b, t.ValidBefore.FillBytes(w[:])...)
	return append(b, t.Nonce[:]...)
}

// AuthorizationStateCall asks a token whether a nonce has been used, by a
// transfer or by its cancellation.
func (a *Authorization) AuthorizationStateCall() []byte {
	b := append(make([]byte, 0, 68), selAuthorizationState[:]...)
	b = append(b, common.LeftPadBytes(a.From[:], 32)...)
	return append(b, a.Nonce[:]...)
}

// BalanceCall asks a token for an account's balance.
func BalanceCall(account common.Address) []byte {
	return append(append(make([]byte, 0, 36), selBalanceOf[:]...), common.LeftPadBytes(account[:], 32)...)
}

// SeparatorCall asks a token for its EIP-712 domain separator.
func SeparatorCall() []byte { return append([]byte(nil), selDomainSeparator[:]...) }

func word(n uint64) []byte {
	var w [32]byte
	for i := 31; n > 0; i-- {
		w[i] = byte(n)
		n >>= 8
	}
	return w[:]
}
