package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
)

// Request is one question in a batch: *Call, *Code, *Balance or *Nonce. Ask fills in its answer or its Err.
type Request interface {
	query(block json.RawMessage) query
	take(result json.RawMessage) error
	finish(err error) // sets Err, and clears the result unless err is nil
}

// Call runs Msg against the state and changes nothing. From, Gas, GasPrice, GasFeeCap, GasTipCap, Value and AccessList count, so
// that a call costs what the transaction would: a sender who cannot pay the fees is a node error. Blobs are not supported.
// Set Gas when the contract is not ours.
type Call struct {
	Msg    ethereum.CallMsg
	Output []byte // what it returned
	Err    error  // a *RevertError when the call failed in the EVM
}

// Code asks for the code at an account.
type Code struct {
	Address common.Address
	Code    []byte // empty for a plain account
	Err     error
}

// Balance asks for the native balance of an account.
type Balance struct {
	Address common.Address
	Wei     *big.Int
	Err     error
}

// Nonce asks how many transactions of an account are in the chain.
type Nonce struct {
	Address common.Address
	Nonce   uint64
	Err     error
}

var latest = json.RawMessage(`"latest"`)

// Ask puts requests to one node, in one round trip, against its latest block. It returns an *UnavailableError, also found in each
// Err, when no node answered. Otherwise it returns nil and each request has its result or its own Err: a *RevertError, or an
// *UnavailableError when the node had no sensible answer to that one and neither had the next nodes.
//
// The requests of one batch are not pinned to a block: a block may arrive between two of them, and behind one URL a late node
// would refuse a block it has not seen, which costs the round trip this saves. What must be consistent belongs into one Call (by
// Multicall3), or into AskAt.
func (c *Client) Ask(ctx context.Context, requests ...Request) error {
	return c.ask(ctx, latest, requests)
}

// AskAt is Ask against the state after one block, named by its hash (EIP-1898) and refused when it is no longer canonical, so
// that a proof about a finalized block cannot come from another branch or another height.
func (c *Client) AskAt(ctx context.Context, block common.Hash, requests ...Request) error {
	ref, err := blockRef(block)
	if err != nil {
		return err
	}
	return c.ask(ctx, ref, requests)
}

// blockRef names a block that must be canonical (EIP-1898).
func blockRef(block common.Hash) (json.RawMessage, error) {
	return json.Marshal(struct {
		BlockHash        common.Hash `json:"blockHash"`
		RequireCanonical bool        `json:"requireCanonical"`
	}{block, true})
}

func (c *Client) ask(ctx context.Context, block json.RawMessage, requests []Request) error {
	if len(requests) == 0 {
		return nil
	}
	queries := make([]query, len(requests))
	for i, r := range requests {
		queries[i] = r.query(block)
	}
	op := queries[0].method
	if len(queries) > 1 {
		op = fmt.Sprintf("batch of %d reads", len(queries))
	}
	answered := false
	err := c.read(ctx, op, queries, func(answers []answer) error {
		answered = true
		return takeAll(queries, requests, answers)
	})
	if err == nil || answered {
		return nil
	}
	for _, r := range requests {
		r.finish(err)
	}
	return err
}

// takeAll gives every request its answer, and returns the worst of the errors that another node might not make: that of a node
// which talks nonsense before that of one which refuses.
func takeAll(queries []query, requests []Request, answers []answer) error {
	var refused, nonsense error
	for i, r := range requests {
		err := answers[i].err
		if err == nil {
			err = r.take(answers[i].result)
		}
		var reverted *RevertError
		var node *NodeError
		switch {
		case err == nil || errors.As(err, &reverted):
			r.finish(err)
			continue
		case errors.As(err, &node):
			refused = err
		default:
			nonsense = err
		}
		r.finish(&UnavailableError{queries[i].method, err})
	}
	if nonsense != nil {
		return nonsense
	}
	return refused
}

func (r *Call) query(block json.RawMessage) query {
	return query{method: "eth_call", args: []any{callObject(r.Msg), block}, executes: true}
}

func (r *Call) take(result json.RawMessage) error {
	output, err := decode[hexutil.Bytes](result)
	r.Output = output
	return err
}

func (r *Call) finish(err error) {
	if r.Err = err; err != nil {
		r.Output = nil
	}
}

func (r *Code) query(block json.RawMessage) query {
	return query{method: "eth_getCode", args: []any{r.Address, block}}
}

func (r *Code) take(result json.RawMessage) error {
	code, err := decode[hexutil.Bytes](result)
	r.Code = code
	return err
}

func (r *Code) finish(err error) {
	if r.Err = err; err != nil {
		r.Code = nil
	}
}

func (r *Balance) query(block json.RawMessage) query {
	return query{method: "eth_getBalance", args: []any{r.Address, block}}
}

func (r *Balance) take(result json.RawMessage) error {
	wei, err := decode[hexutil.Big](result)
	r.Wei = wei.ToInt()
	return err
}

func (r *Balance) finish(err error) {
	if r.Err = err; err != nil {
		r.Wei = nil
	}
}

func (r *Nonce) query(block json.RawMessage) query {
	return query{method: "eth_getTransactionCount", args: []any{r.Address, block}}
}

func (r *Nonce) take(result json.RawMessage) error {
	nonce, err := decode[hexutil.Uint64](result)
	r.Nonce = uint64(nonce)
	return err
}

func (r *Nonce) finish(err error) {
	if r.Err = err; err != nil {
		r.Nonce = 0
	}
}

// callArgument is a message as eth_call and eth_estimateGas take it.
type callArgument struct {
	From      common.Address   `json:"from"`
	To        *common.Address  `json:"to,omitempty"`
	Input     hexutil.Bytes    `json:"input,omitempty"`
	Value     *hexutil.Big     `json:"value,omitempty"`
	Gas       hexutil.Uint64   `json:"gas,omitempty"`
	GasPrice  *hexutil.Big     `json:"gasPrice,omitempty"`
	GasFeeCap *hexutil.Big     `json:"maxFeePerGas,omitempty"`
	GasTipCap *hexutil.Big     `json:"maxPriorityFeePerGas,omitempty"`
	Access    types.AccessList `json:"accessList,omitempty"`
}

func callObject(msg ethereum.CallMsg) callArgument {
	return callArgument{
		From:      msg.From,
		To:        msg.To,
		Input:     msg.Data,
		Value:     (*hexutil.Big)(msg.Value),
		Gas:       hexutil.Uint64(msg.Gas),
		GasPrice:  (*hexutil.Big)(msg.GasPrice),
		GasFeeCap: (*hexutil.Big)(msg.GasFeeCap),
		GasTipCap: (*hexutil.Big)(msg.GasTipCap),
		Access:    msg.AccessList,
	}
}
