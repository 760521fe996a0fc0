package chain

import (
	"context"
	"encoding/json"
	"errors"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
)

// Receipt returns the receipt of the transaction, or nil and no error when the node has none: it is pending, or the node does not
// know it, which proves nothing. A receipt's block may be reorganised away.
func (c *Client) Receipt(ctx context.Context, hash common.Hash) (*types.Receipt, error) {
	var receipt *types.Receipt
	queries := []query{{method: "eth_getTransactionReceipt", args: []any{hash}}}
	err := c.read(ctx, "eth_getTransactionReceipt", queries, func(answers []answer) error {
		if answers[0].err != nil {
			return answers[0].err
		}
		var err error
		receipt, err = decodeReceipt(answers[0].result, hash)
		return err
	})
	return receipt, err
}

// decodeReceipt reads a receipt as strictly as money needs: go-ethereum takes a missing status for a failed transaction. A
// receipt outside a block, which some nodes give for a pending transaction, is none.
func decodeReceipt(raw json.RawMessage, hash common.Hash) (*types.Receipt, error) {
	outline, err := decode[*struct {
		BlockHash   *common.Hash    `json:"blockHash"`
		BlockNumber *hexutil.Big    `json:"blockNumber"`
		Status      *hexutil.Uint64 `json:"status"`
	}](raw)
	if err != nil {
		return nil, err
	}
	if outline == nil || outline.BlockHash == nil || outline.BlockNumber == nil {
		return nil, nil
	}
	if outline.Status == nil || *outline.Status > 1 {
		return nil, errors.New("malformed answer: receipt without a status of 0 or 1")
	}
	receipt, err := decode[*types.Receipt](raw)
	if err != nil {
		return nil, err
	}
	if receipt.TxHash != hash {
		return nil, errors.New("malformed answer: receipt of another transaction")
	}
	return receipt, nil
}

// NonceAt returns how many transactions of account are in the latest block. It is not the next nonce of a lane: transactions
// that wait, or that this node has not seen, are not in it.
func (c *Client) NonceAt(ctx context.Context, account common.Address) (uint64, error) {
	r := Nonce{Address: account}
	err := c.Ask(ctx, &r)
	if err == nil {
		err = r.Err
	}
	return r.Nonce, err
}

// BalanceAt returns the native balance of account in the latest block, in wei.
func (c *Client) BalanceAt(ctx context.Context, account common.Address) (*big.Int, error) {
	r := Balance{Address: account}
	err := c.Ask(ctx, &r)
	if err == nil {
		err = r.Err
	}
	return r.Wei, err
}

// EstimateGas returns the gas that msg would use now. It returns a *RevertError when msg fails in the EVM.
func (c *Client) EstimateGas(ctx context.Context, msg ethereum.CallMsg) (uint64, error) {
	var gas hexutil.Uint64
	var reverted *RevertError
	queries := []query{{method: "eth_estimateGas", args: []any{callObject(msg)}, executes: true}}
	err := c.read(ctx, "eth_estimateGas", queries, func(answers []answer) error {
		if errors.As(answers[0].err, &reverted) {
			return nil
		}
		if answers[0].err != nil {
			return answers[0].err
		}
		var err error
		gas, err = decode[hexutil.Uint64](answers[0].result)
		return err
	})
	if err != nil {
		return 0, err
	}
	if reverted != nil {
		return 0, reverted
	}
	return uint64(gas), nil
}

// TipCap returns the tip per gas, in wei, that the node suggests at the current head; a node is asked once per head. Where one was
// asked for at the head before, it is there already, or under way. A node whose suggestion follows what others pay, ourselves
// included, may raise it without end: the caller sets the ceiling.
func (c *Client) TipCap(ctx context.Context) (*big.Int, error) {
	head, err := c.Head()
	if err != nil {
		return nil, err
	}
	for {
		c.mu.Lock()
		t := c.tip
		late := t == nil || t.head != head.Hash
		if late {
			t = c.askTip(head.Hash)
		}
		ahead := !late && !t.used
		t.used = true
		c.mu.Unlock()
		select {
		case <-t.known:
		case <-ctx.Done():
			return nil, &UnavailableError{tipMethod, ctx.Err()}
		}
		if t.err == nil {
			return new(big.Int).Set(t.wei), nil
		}
		c.mu.Lock()
		if c.tip == t {
			c.tip = nil
		}
		c.mu.Unlock()
		if !ahead { // otherwise it was not for this caller that it failed
			return nil, t.err
		}
	}
}

const tipMethod = "eth_maxPriorityFeePerGas"

// A suggestedTip is what a node was asked to suggest at one head.
type suggestedTip struct {
	head  common.Hash
	used  bool          // guarded by the client's mu: somebody has asked for it
	known chan struct{} // closed once there is an answer
	wei   *big.Int      // written before known is closed, as is err
	err   error
}

// askTip asks for the tip at a head. c.mu is held.
func (c *Client) askTip(head common.Hash) *suggestedTip {
	t := &suggestedTip{head: head, known: make(chan struct{})}
	c.tip = t
	ask := func() {
		defer close(t.known)
		queries := []query{{method: tipMethod}}
		t.err = c.read(c.life, tipMethod, queries, func(answers []answer) error {
			if answers[0].err != nil {
				return answers[0].err
			}
			suggested, err := decode[hexutil.Big](answers[0].result)
			t.wei = suggested.ToInt()
			return err
		})
	}
	if c.closed {
		t.err = &UnavailableError{tipMethod, errClosed}
		close(t.known)
	} else {
		c.jobs.Go(ask) // ends with the call timeout
	}
	return t
}
