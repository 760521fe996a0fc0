package devchain

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/consensus/misc/eip1559"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/rawdb"
	"github.com/ethereum/go-ethereum/core/state"
	"github.com/ethereum/go-ethereum/core/txpool"
	"github.com/ethereum/go-ethereum/core/txpool/txorder"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/core/vm"
	"github.com/ethereum/go-ethereum/event"
	"github.com/holiman/uint256"
)

// watchPool turns arrivals in the pool into a token in wake. It never blocks: the pool waits for its listeners while
// sealing waits for the pool.
func (c *Chain) watchPool(arrivals <-chan core.NewTxsEvent, subscription event.Subscription) {
	defer c.wg.Done()
	defer subscription.Unsubscribe()
	for {
		select {
		case <-arrivals:
			c.prompt()
		case <-subscription.Err(): //nolint:errcheck // the error says no more than that it ended
			return
		case <-c.quit:
			return
		}
	}
}

// prompt asks run to look at the pool.
func (c *Chain) prompt() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run seals blocks until Close: on an instant chain when transactions arrive and after each idle second, else one
// every period.
func (c *Chain) run() {
	defer c.wg.Done()
	timer := time.NewTimer(c.period)
	defer timer.Stop()
	for {
		var err error
		select {
		case <-c.quit:
			return
		case <-c.wake:
			if !c.instant {
				continue
			}
			err = c.sealWaiting()
		case <-timer.C:
			err = c.sealOne()
		}
		if err != nil && !errors.Is(err, errClosed) {
			c.logger.Error("sealing a block failed", "err", err)
		}
		timer.Reset(c.period)
	}
}

// sealWaiting seals blocks until nothing in the pool can be included. Between blocks others may take mu.
func (c *Chain) sealWaiting() error {
	for {
		sealed, err := c.sealNext()
		if err != nil || !sealed {
			return err
		}
	}
}

// sealNext seals a block unless it would be empty.
func (c *Chain) sealNext() (sealed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused {
		return false, nil
	}
	draft, err := c.draft(c.head(), c.includeWaiting)
	if err != nil || len(draft.txs) == 0 {
		return false, err
	}
	return true, c.adopt(draft)
}

// sealOne seals one block of what is in the pool, which may be nothing.
func (c *Chain) sealOne() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused {
		return nil
	}
	return c.extend(c.includeWaiting)
}

// draft is a block in the making, with the state after what it holds so far.
type draft struct {
	header   *types.Header
	state    *state.StateDB
	evm      *vm.EVM
	gas      *core.GasPool
	txs      []*types.Transaction
	receipts []*types.Receipt
}

// draft starts a block on parent and lets fill put content into it. The caller holds mu.
//
// The block is not run through the checks for blocks from elsewhere, since they refuse two blocks in one second.
// Neither does it make the system calls of a beacon chain: like Base, this chain has no deposits or withdrawals.
func (c *Chain) draft(parent *types.Header, fill func(*draft) error) (*draft, error) {
	if c.closed {
		return nil, errClosed
	}
	chain := c.eth.BlockChain()
	c.built++
	header := &types.Header{
		ParentHash:       parent.Hash(),
		Number:           new(big.Int).Add(parent.Number, common.Big1),
		Time:             max(parent.Time, uint64(c.now().Unix())),
		Coinbase:         sequencer,
		Difficulty:       new(big.Int),
		GasLimit:         parent.GasLimit,
		BaseFee:          eip1559.CalcBaseFee(chain.Config(), parent),
		BlobGasUsed:      new(uint64),
		ExcessBlobGas:    new(uint64),
		ParentBeaconRoot: new(common.Hash),
		RequestsHash:     &types.EmptyRequestsHash,
	}
	binary.BigEndian.PutUint64(header.MixDigest[24:], c.built)
	if header.BaseFee.Cmp(big.NewInt(baseFeeFloor)) < 0 {
		header.BaseFee.SetInt64(baseFeeFloor)
	}
	before, err := chain.StateAt(parent.Root, parent.Number, parent.Time)
	if err != nil {
		return nil, fmt.Errorf("devchain: state of block %s: %w", parent.Number, err)
	}
	d := &draft{
		header: header,
		state:  before,
		evm:    vm.NewEVM(core.NewEVMBlockContext(header, chain, &header.Coinbase), before, chain.Config(), vm.Config{}),
		gas:    core.NewGasPool(header.GasLimit),
	}
	d.evm.SetJumpDestCache(chain.JumpDestCache())
	d.evm.SetPrecompileCache(chain.PrecompileCache())
	defer d.evm.Release()
	if err := fill(d); err != nil {
		return nil, err
	}
	return d, nil
}

// include executes tx and puts it into the block, whether it succeeds or reverts. A transaction that no block may hold
// here, because of its nonce, its fee or its gas, leaves the draft as it was and returns why.
func (d *draft) include(tx *types.Transaction) error {
	stateBefore, gasBefore := d.state.Snapshot(), d.gas.Snapshot()
	d.state.SetTxContext(tx.Hash(), len(d.txs), uint32(len(d.txs)+1))
	receipt, _, err := core.ApplyTransaction(context.Background(), d.evm, d.gas, d.state, d.header, tx)
	if err != nil {
		d.state.RevertToSnapshot(stateBefore)
		d.gas.Set(gasBefore)
		return err
	}
	d.header.GasUsed = d.gas.Used()
	d.txs = append(d.txs, tx)
	d.receipts = append(d.receipts, receipt)
	return nil
}

// includeWaiting fills d from the pool, best tip first and each account in the order of its nonces.
func (c *Chain) includeWaiting(d *draft) error {
	offers := make(map[common.Address][]*txpool.LazyTransaction)
	for sender, txs := range c.waiting() {
		for _, tx := range txs {
			offers[sender] = append(offers[sender], &txpool.LazyTransaction{
				Hash: tx.Hash(), Tx: tx, Time: tx.Time(), Gas: tx.Gas(),
				GasFeeCap: uint256.MustFromBig(tx.GasFeeCap()), GasTipCap: uint256.MustFromBig(tx.GasTipCap()),
			})
		}
	}
	signer := types.MakeSigner(d.evm.ChainConfig(), d.header.Number, d.header.Time)
	queue := txorder.NewTransactionsByPriceAndNonce(signer, offers, d.header.BaseFee)
	for {
		next, _ := queue.Peek()
		if next == nil {
			return nil
		}
		switch err := d.include(next.Tx); {
		case err == nil, errors.Is(err, core.ErrNonceTooLow):
			queue.Shift()
		default:
			queue.Pop()
		}
	}
}

// waiting returns what the pool holds, each account's transactions by nonce. The pool's own list of what is ready would
// not do: it can lack transactions that arrived while the pool followed a new head.
func (c *Chain) waiting() map[common.Address][]*types.Transaction {
	all, queued := c.eth.TxPool().Content()
	for sender, txs := range queued {
		all[sender] = append(all[sender], txs...)
	}
	return all
}

// store writes the finished block and its state, without making it part of the canonical chain.
func (c *Chain) store(d *draft) (*types.Block, error) {
	chain := c.eth.BlockChain()
	body := &types.Body{Transactions: d.txs, Withdrawals: types.Withdrawals{}}
	block := core.AssembleBlock(chain, d.header, d.state, body, d.receipts, nil)

	batch := c.eth.ChainDb().NewBatch()
	defer batch.Close()
	rawdb.WriteBlock(batch, block)
	rawdb.WriteReceipts(batch, block.Hash(), block.NumberU64(), d.receipts)
	if err := batch.Write(); err != nil {
		return nil, fmt.Errorf("devchain: writing block %s: %w", d.header.Number, err)
	}
	rules := chain.Config().Rules(d.header.Number, true, d.header.Time)
	if _, err := d.state.Commit(rules, block.NumberU64()); err != nil {
		return nil, fmt.Errorf("devchain: writing the state of block %s: %w", d.header.Number, err)
	}
	return block, nil
}

// adopt makes the finished draft the head.
func (c *Chain) adopt(d *draft) error {
	block, err := c.store(d)
	if err != nil {
		return err
	}
	return c.moveHead(block)
}

// moveHead makes a stored block the head and waits until the pool has followed: until then it counts nonces from the old
// head and holds what was just sealed.
func (c *Chain) moveHead(block *types.Block) error {
	if _, err := c.eth.BlockChain().SetCanonical(block); err != nil {
		return fmt.Errorf("devchain: moving the head to block %d: %w", block.NumberU64(), err)
	}
	c.markFinality(block.Header())
	if err := c.eth.TxPool().Sync(); err != nil {
		return fmt.Errorf("devchain: pool after block %d: %w", block.NumberU64(), err)
	}
	return nil
}

// extend drafts a block on the head and adopts it.
func (c *Chain) extend(fill func(*draft) error) error {
	draft, err := c.draft(c.head(), fill)
	if err != nil {
		return err
	}
	return c.adopt(draft)
}

// markFinality sets what "finalized" and "safe" mean while head is the head.
func (c *Chain) markFinality(head *types.Header) {
	chain := c.eth.BlockChain()
	number := head.Number.Uint64()
	chain.SetFinalized(chain.GetHeaderByNumber(number - min(number, c.finality)))
	chain.SetSafe(chain.GetHeaderByNumber(number - min(number, c.finality/2)))
}

func (c *Chain) head() *types.Header { return c.eth.BlockChain().CurrentBlock() }

// headState returns the state of the head once no block is being sealed: who has seen a receipt sees what it did. It
// panics once the chain is closed, when there is no state left to read.
func (c *Chain) headState() *state.StateDB {
	c.mu.Lock()
	defer c.mu.Unlock()
	head, err := c.eth.BlockChain().State()
	if err != nil {
		panic(fmt.Errorf("devchain: reading the state of the head: %w", err))
	}
	return head
}
