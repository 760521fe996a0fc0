//go:build !recoverchild

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/big"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/payment/evm"
)

// An instantChain answers at once and puts every transaction into a block of
// its own when it is broadcast, so that what is measured is ours alone. It
// does what transfers say without checking them.
type instantChain struct {
	separator common.Hash // of the one token

	mu       sync.Mutex
	head     chain.Head // guarded by mu
	nonce    uint64     // guarded by mu: of the one lane
	receipts map[common.Hash]*types.Receipt
	used     map[common.Hash]bool // guarded by mu: nonces of authorizations
	changed  chan struct{}        // guarded by mu: closed with the next block
}

// Transaction implements settle.Chain, and so do the others. Nobody asks them
// of payments by EIP-3009 without a quorum.
func (*instantChain) Transaction(context.Context, common.Hash) (*types.Transaction, error) {
	return nil, errNoPermits
}

func (*instantChain) Trace(context.Context, common.Hash, int) ([]chain.InnerCall, error) {
	return nil, errNoPermits
}

func (*instantChain) WitnessLogs(context.Context, ethereum.FilterQuery, int) ([]types.Log, error) {
	return nil, errNoPermits
}

var errNoPermits = errors.New("the chain of this benchmark knows no permits")

func newInstantChain(separator common.Hash) *instantChain {
	c := &instantChain{separator: separator, receipts: map[common.Hash]*types.Receipt{}, used: map[common.Hash]bool{}, changed: make(chan struct{})}
	c.mine()
	return c
}

// mine adds a block. c.mu is held, or nobody else knows c yet.
func (c *instantChain) mine() {
	number := c.head.Number + 1
	c.head = chain.Head{
		Number: number, Parent: c.head.Hash, Hash: hashOf(number),
		Time: clock(), BaseFee: big.NewInt(1e6), GasLimit: 30_000_000, SeenAt: time.Now(),
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// clock returns the time of a block made now.
func clock() uint64 { return uint64(max(0, time.Now().Unix())) }

func hashOf(number uint64) common.Hash {
	return crypto.Keccak256Hash(binary.BigEndian.AppendUint64(nil, number))
}

func (c *instantChain) Head() (chain.Head, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head, nil
}

func (c *instantChain) WaitHead(ctx context.Context, after common.Hash) (chain.Head, error) {
	for {
		c.mu.Lock()
		head, changed := c.head, c.changed
		c.mu.Unlock()
		if head.Hash != after {
			return head, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return chain.Head{}, ctx.Err()
		}
	}
}

func (c *instantChain) HeaderByNumber(_ context.Context, number uint64) (chain.Head, error) {
	return chain.Head{Number: number, Hash: hashOf(number), Time: clock()}, nil
}

func (c *instantChain) Headers(ctx context.Context, numbers ...uint64) ([]chain.Head, error) {
	heads := make([]chain.Head, len(numbers))
	for i, n := range numbers {
		heads[i], _ = c.HeaderByNumber(ctx, n)
	}
	return heads, nil
}

// Safe is Finalized.
func (c *instantChain) Safe(ctx context.Context) (chain.Head, error) { return c.Finalized(ctx) }

// Finalized is a few blocks behind.
func (c *instantChain) Finalized(ctx context.Context) (chain.Head, error) {
	head, err := c.Head()
	if err != nil {
		return head, err
	}
	return c.HeaderByNumber(ctx, head.Number-min(head.Number, 8))
}

func (c *instantChain) Receipt(_ context.Context, tx common.Hash) (*types.Receipt, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.receipts[tx], nil
}

func (c *instantChain) Witness(ctx context.Context, tx common.Hash, _ int) (*types.Receipt, error) {
	return c.Receipt(ctx, tx)
}

func (c *instantChain) AgreeAt(ctx context.Context, _ int, _ common.Hash, question chain.Request) error {
	return c.Ask(ctx, question)
}

func (c *instantChain) Reached(ctx context.Context, _ int, _ chain.Tag, _ func(chain.Head) bool) (chain.Head, error) {
	return c.Finalized(ctx)
}

func (c *instantChain) Logs(context.Context, ethereum.FilterQuery) ([]types.Log, error) {
	return nil, errors.New("nobody needs to search this chain")
}

func (c *instantChain) AskAt(ctx context.Context, _ common.Hash, questions ...chain.Request) error {
	return c.Ask(ctx, questions...)
}

func (c *instantChain) Ask(_ context.Context, questions ...chain.Request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range questions {
		switch q := q.(type) {
		case *chain.Call:
			q.Output = c.call(q.Msg.Data)
		case *chain.Balance:
			q.Wei = big.NewInt(1e18)
		case *chain.Nonce:
			q.Nonce = c.nonce
		case *chain.Code:
		}
	}
	return nil
}

// call answers what payments ask of the token. c.mu is held.
func (c *instantChain) call(data []byte) []byte {
	state, balance := (&evm.Authorization{}).AuthorizationStateCall()[:4], evm.BalanceCall(common.Address{})[:4]
	switch {
	case bytes.Equal(data, evm.SeparatorCall()):
		return c.separator[:]
	case bytes.HasPrefix(data, balance):
		return common.BigToHash(big.NewInt(1e15)).Bytes()
	case bytes.HasPrefix(data, state) && len(data) == 68:
		if c.used[common.Hash(data[36:68])] {
			return common.BigToHash(common.Big1).Bytes()
		}
		return make([]byte, 32)
	}
	return nil
}

func (c *instantChain) NonceAt(context.Context, common.Address) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nonce, nil
}

func (c *instantChain) BalanceAt(context.Context, common.Address) (*big.Int, error) {
	return big.NewInt(1e18), nil
}

func (c *instantChain) TipCap(context.Context) (*big.Int, error) { return big.NewInt(1e6), nil }

func (c *instantChain) EstimateGas(context.Context, ethereum.CallMsg) (uint64, error) {
	return 90_000, nil
}

func (c *instantChain) Broadcast(_ context.Context, raw []byte) error {
	var tx types.Transaction
	if err := tx.UnmarshalBinary(raw); err != nil {
		return err
	}
	data := tx.Data()
	if tx.To() == nil || len(data) < 4+6*32 {
		return errors.New("this chain knows single transfers only")
	}
	word := func(i int) common.Hash { return common.Hash(data[4+32*i:]) }
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.receipts[tx.Hash()]; known {
		return nil
	}
	c.mine()
	c.nonce = tx.Nonce() + 1
	c.used[word(5)] = true
	entry := func(index uint, data []byte, topics ...common.Hash) *types.Log {
		return &types.Log{Address: *tx.To(), Topics: topics, Data: data, BlockNumber: c.head.Number, BlockHash: c.head.Hash, TxHash: tx.Hash(), Index: index}
	}
	c.receipts[tx.Hash()] = &types.Receipt{
		Status: types.ReceiptStatusSuccessful, TxHash: tx.Hash(), BlockHash: c.head.Hash, BlockNumber: new(big.Int).SetUint64(c.head.Number), GasUsed: 90_000,
		Logs: []*types.Log{
			entry(0, nil, evm.TopicAuthorizationUsed, word(0), word(5)),
			entry(1, word(2).Bytes(), evm.TopicTransfer, word(0), word(1)),
		},
	}
	return nil
}
