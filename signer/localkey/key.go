// Package localkey holds one secp256k1 key in memory: that of a lane, or of a
// payer in tests and in the sandbox.
//
// Whoever can read this process's memory has the key. A lane's account
// therefore holds gas money and nothing else.
package localkey

import (
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A Key is a private key that signs and never shows itself: however it is
// printed, only its address appears. Its methods are safe for concurrent use.
type Key struct {
	private *ecdsa.PrivateKey
	address common.Address
}

// Parse reads a private key as 64 hexadecimal digits, with or without 0x and
// with blanks around it. Its errors never repeat what was given.
func Parse(s string) (*Key, error) {
	raw, err := hex.DecodeString(strings.TrimPrefix(strings.TrimSpace(s), "0x"))
	if err != nil || len(raw) != 32 {
		return nil, errors.New("localkey: a private key is 64 hexadecimal digits, with or without 0x")
	}
	private, err := crypto.ToECDSA(raw)
	if err != nil {
		return nil, errors.New("localkey: these 32 bytes are no private key of the curve: generate another one")
	}
	return &Key{private, crypto.PubkeyToAddress(private.PublicKey)}, nil
}

// Address returns the account that the key belongs to.
func (k *Key) Address() common.Address { return k.address }

// SignCall signs an EIP-1559 transaction that carries no value and does
// nothing but what evm.ReadLaneCall can read: it spends authorizations, or
// fills a nonce. The same call gives the same bytes.
func (k *Key) SignCall(_ context.Context, c *payment.LaneCall) ([]byte, error) {
	if c.ChainID == 0 || c.GasFeeCap == nil || c.GasTipCap == nil {
		return nil, errors.New("localkey: a call needs a chain id, a fee cap and a tip")
	}
	if _, err := evm.ReadLaneCall(k.address, c); err != nil {
		return nil, fmt.Errorf("localkey: a lane signs settlements only: %w", err)
	}
	id := new(big.Int).SetUint64(c.ChainID)
	tx, err := types.SignNewTx(k.private, types.NewLondonSigner(id), &types.DynamicFeeTx{
		ChainID: id, Nonce: c.Nonce, To: &c.To, Value: new(big.Int), Data: c.Data,
		Gas: c.Gas, GasFeeCap: c.GasFeeCap, GasTipCap: c.GasTipCap,
	})
	if err != nil {
		return nil, fmt.Errorf("localkey: signing a transaction: %w", err)
	}
	return tx.MarshalBinary()
}

// SignTransfer signs an EIP-3009 authorization in the domain of a token. It
// refuses one that spends somebody else's money, whose signature nobody would
// accept.
func (k *Key) SignTransfer(_ context.Context, d evm.Domain, a evm.Authorization) (*evm.Transfer, error) {
	if a.From != k.address {
		return nil, fmt.Errorf("localkey: the authorization is from %s, this key is of %s", a.From, k.address)
	}
	digest := a.Digest(d.Separator())
	signature, err := crypto.Sign(digest[:], k.private)
	if err != nil {
		return nil, fmt.Errorf("localkey: signing an authorization: %w", err)
	}
	signature[crypto.RecoveryIDOffset] += 27
	return &evm.Transfer{Authorization: a, Signature: signature}, nil
}

func (k Key) String() string { return "key of " + k.address.Hex() }

// GoString implements fmt.GoStringer.
func (k Key) GoString() string { return "localkey.Key(" + k.address.Hex() + ")" }

// Format implements fmt.Formatter, for the verbs that look at fields.
func (k Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(k.String())) }

// MarshalText implements encoding.TextMarshaler, which JSON uses too.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// LogValue implements slog.LogValuer.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

var _ payment.CallSigner = (*Key)(nil)
