package payment

import (
	"context"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
)

// A LaneCall is one EIP-1559 transaction of a lane: a call that settles
// payments, or one that fills a nonce. It never carries value.
type LaneCall struct {
	ChainID   uint64
	Nonce     uint64
	To        common.Address
	Data      []byte
	Gas       uint64
	GasFeeCap *big.Int // wei per gas
	GasTipCap *big.Int // wei per gas
}

// A CallSigner holds the key of a lane. It is given the whole call, never a
// digest, so that whoever holds the key can read what it signs.
// Implementations are safe for concurrent use.
type CallSigner interface {
	Address() common.Address

	// SignCall returns the signed transaction in its wire encoding. The
	// same call gives the same bytes, or at least the same effect.
	SignCall(ctx context.Context, call *LaneCall) (raw []byte, err error)
}
