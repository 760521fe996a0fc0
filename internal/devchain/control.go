package devchain

import (
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/state"
	"github.com/ethereum/go-ethereum/core/tracing"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"
)

// Mine seals n blocks now, even while paused. The first holds what the pool holds, up to the gas limit.
func (c *Chain) Mine(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range n {
		if err := c.extend(c.includeWaiting); err != nil {
			return err
		}
	}
	return nil
}

// Pause stops sealing: transactions wait in the pool and the head, with its timestamp, stands still. When it returns no
// block is being sealed.
func (c *Chain) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = true
}

// Resume undoes Pause. An instant chain seals what has waited.
func (c *Chain) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = false
	c.prompt()
}

// Snapshot returns the head, for Revert.
func (c *Chain) Snapshot() common.Hash {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head().Hash()
}

// Revert makes an earlier head the head again and empties the pool, as if nothing had been sent since. It does so even
// where blocks that were called final are undone. The state of a block is kept for about 100 state changes.
func (c *Chain) Revert(snapshot common.Hash) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errClosed
	}
	chain := c.eth.BlockChain()
	block := chain.GetBlockByHash(snapshot)
	if block == nil || chain.GetCanonicalHash(block.NumberU64()) != snapshot {
		return fmt.Errorf("devchain: revert: %s is not a block of this chain", snapshot)
	}
	if !chain.HasState(block.Root()) {
		return fmt.Errorf("devchain: revert: the state of block %d is gone; take snapshots closer to their use", block.NumberU64())
	}
	if block.Hash() != c.head().Hash() {
		if err := c.moveHead(block); err != nil {
			return err
		}
	}
	c.eth.TxPool().Clear()
	c.logger.Info("chain reverted", "block", block.NumberU64())
	return nil
}

// Reorg replaces the last depth blocks by depth+1 empty ones. The transactions of the replaced blocks return to the
// pool, so an instant chain that is not paused seals them again at once, on the new branch; what was changed without a
// transaction (SetCode and what places contracts by it, SetETHBalance) is gone.
func (c *Chain) Reorg(depth int) error { return c.reorg(depth, false) }

// ReorgDropping is Reorg, except that the transactions of the replaced blocks are forgotten. A transaction that arrives
// at the same instant may be forgotten with them.
func (c *Chain) ReorgDropping(depth int) error { return c.reorg(depth, true) }

func (c *Chain) reorg(depth int, drop bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errClosed
	}
	chain, head := c.eth.BlockChain(), c.head()
	undoable := min(c.finality, head.Number.Uint64())
	if depth < 1 || uint64(depth) > undoable {
		return fmt.Errorf("devchain: reorg of %d blocks, but the chain can lose 1 to %d: the rest is final; raise Config.Finality", depth, undoable)
	}
	waiting := c.waiting()
	parent := chain.GetHeaderByNumber(head.Number.Uint64() - uint64(depth))
	var tip *types.Block
	for range depth + 1 {
		draft, err := c.draft(parent, func(*draft) error { return nil })
		if err != nil {
			return err
		}
		if tip, err = c.store(draft); err != nil {
			return err
		}
		parent = tip.Header()
	}
	if err := c.moveHead(tip); err != nil {
		return err
	}
	if drop {
		c.replacePool(waiting)
	}
	c.prompt()
	c.logger.Info("chain reorganized", "depth", depth, "head", tip.NumberU64(), "dropped", drop)
	return nil
}

// DropPending forgets a transaction that waits in the pool; later ones of its sender wait for a new one with its nonce.
// A transaction that arrives at the same instant may be forgotten with it.
func (c *Chain) DropPending(hash common.Hash) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errClosed
	}
	if !c.eth.TxPool().Has(hash) {
		return fmt.Errorf("devchain: transaction %s is not pending", hash)
	}
	waiting := c.waiting()
	for sender, txs := range waiting {
		waiting[sender] = slices.DeleteFunc(txs, func(tx *types.Transaction) bool { return tx.Hash() == hash })
	}
	c.replacePool(waiting)
	c.logger.Info("pending transaction dropped", "tx", hash)
	return nil
}

// replacePool empties the pool and offers it txs; it keeps those that the head allows.
func (c *Chain) replacePool(txs map[common.Address][]*types.Transaction) {
	c.eth.TxPool().Clear()
	for _, ofOne := range txs {
		c.eth.TxPool().Add(ofOne, true)
	}
}

// SetCode makes code, and nothing else, the code of account and writes the given storage slots. It seals a block.
func (c *Chain) SetCode(account common.Address, code []byte, storage map[common.Hash]common.Hash) error {
	return c.edit(func(s *state.StateDB) {
		s.SetCode(account, code, tracing.CodeChangeUnspecified)
		for slot, value := range storage {
			s.SetState(account, slot, value)
		}
	})
}

// A Hostility is the one promise that a hostile token breaks.
type Hostility uint64

const (
	Honest   Hostility = iota
	Forgives           // using a used nonce again succeeds, does nothing and logs nothing
	TakesFee           // a hundredth of each transfer goes to somebody else
	Silent             // money moves without a log
	Boasts             // logs tell of money that did not move
)

// SetHostileToken makes account a token with EIP-3009 that breaks one promise. Its EIP-712 name is "Hostile", its
// version "1", and it has 6 decimals. It seals a block.
func (c *Chain) SetHostileToken(account common.Address, h Hostility) error {
	return c.SetCode(account, HostileToken().Code, map[common.Hash]common.Hash{
		{}: common.BigToHash(new(big.Int).SetUint64(uint64(h))),
	})
}

// SetETHBalance makes wei what account holds. It seals a block.
func (c *Chain) SetETHBalance(account common.Address, wei *big.Int) error {
	amount, overflow := uint256.FromBig(wei)
	if wei.Sign() < 0 || overflow {
		return errors.New("devchain: a balance has 256 bits and no sign")
	}
	return c.edit(func(s *state.StateDB) { s.SetBalance(account, amount, tracing.BalanceChangeUnspecified) })
}

// edit seals a block without transactions whose state was changed by hand. The nonce it raises makes each state one
// that never was before; the node cannot return to a state it has.
func (c *Chain) edit(change func(*state.StateDB)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.extend(func(d *draft) error {
		change(d.state)
		d.state.SetNonce(editor, d.state.GetNonce(editor)+1, tracing.NonceChangeUnspecified)
		return nil
	})
}
