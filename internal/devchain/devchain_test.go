package devchain_test

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"math/big"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/devchain"
)

func start(t testing.TB, cfg devchain.Config) *devchain.Chain {
	t.Helper()
	chain, err := devchain.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := chain.Close(); err != nil {
			t.Error(err)
		}
	})
	return chain
}

// clock is a wall clock that a test moves.
type clock struct{ seconds atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.seconds.Store(1_800_000_000)
	return c
}

func (c *clock) Now() time.Time          { return time.Unix(c.seconds.Load(), 0) }
func (c *clock) Advance(d time.Duration) { c.seconds.Add(int64(d / time.Second)) }

// startPaused runs a chain that seals only when told to, on a clock that stands still.
func startPaused(t testing.TB) (*devchain.Chain, *clock) {
	t.Helper()
	now := newClock()
	chain := start(t, devchain.Config{Now: now.Now})
	chain.Pause()
	return chain, now
}

// submit sends a transaction and returns before it is sealed.
func submit(t testing.TB, chain *devchain.Chain, from devchain.Account, to common.Address, data []byte) *types.Transaction {
	t.Helper()
	nonce, err := chain.Client().PendingNonceAt(t.Context(), from.Address)
	if err != nil {
		t.Fatal(err)
	}
	return submitNonce(t, chain, from, nonce, to, data)
}

func submitNonce(t testing.TB, chain *devchain.Chain, from devchain.Account, nonce uint64, to common.Address, data []byte) *types.Transaction {
	t.Helper()
	tx := signTx(t, chain, from.Key, nonce, to, data)
	if err := chain.Client().SendTransaction(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	return tx
}

func signTx(t testing.TB, chain *devchain.Chain, key *ecdsa.PrivateKey, nonce uint64, to common.Address, data []byte) *types.Transaction {
	t.Helper()
	id := new(big.Int).SetUint64(chain.ChainID())
	tx, err := types.SignNewTx(key, types.LatestSignerForChainID(id), &types.DynamicFeeTx{
		ChainID: id, Nonce: nonce, GasTipCap: big.NewInt(1e6), GasFeeCap: big.NewInt(1e9), Gas: 2_000_000, To: &to, Data: data,
	})
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// seal sends a transaction on a paused chain, seals it and returns its receipt.
func seal(t testing.TB, chain *devchain.Chain, from devchain.Account, to common.Address, data []byte) *types.Receipt {
	t.Helper()
	tx := submit(t, chain, from, to, data)
	if err := chain.Mine(1); err != nil {
		t.Fatal(err)
	}
	return receipt(t, chain, tx.Hash())
}

func receipt(t testing.TB, chain *devchain.Chain, hash common.Hash) *types.Receipt {
	t.Helper()
	r, err := chain.Client().TransactionReceipt(t.Context(), hash)
	if err != nil {
		t.Fatalf("receipt of %s: %v", hash, err)
	}
	return r
}

// await returns the receipt of a transaction as soon as a block holds it.
func await(t testing.TB, chain *devchain.Chain, hash common.Hash) *types.Receipt {
	t.Helper()
	var r *types.Receipt
	awaitHead(t, chain, func(*types.Header) bool {
		var err error
		r, err = chain.Client().TransactionReceipt(t.Context(), hash)
		if err != nil && !errors.Is(err, ethereum.NotFound) {
			t.Fatal(err)
		}
		return err == nil
	})
	return r
}

// awaitHead returns once done accepts the head, which it is shown at first and whenever it moves.
func awaitHead(t testing.TB, chain *devchain.Chain, done func(*types.Header) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	heads := make(chan *types.Header, 16)
	subscription, err := chain.Client().SubscribeNewHead(ctx, heads)
	if err != nil {
		t.Fatal(err)
	}
	defer subscription.Unsubscribe()
	for current := head(t, chain); !done(current); {
		select {
		case current = <-heads:
		case <-ctx.Done():
			t.Fatalf("waiting for the chain: %v; the head is %d", ctx.Err(), current.Number)
		}
	}
}

func head(t testing.TB, chain *devchain.Chain) *types.Header {
	t.Helper()
	h, err := chain.Client().HeaderByNumber(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func transferTo(t testing.TB, to common.Address, value int64) []byte {
	t.Helper()
	return pack(t, "transfer", to, big.NewInt(value))
}

func address(text string) common.Address {
	return common.BytesToAddress(crypto.Keccak256([]byte(text)))
}
