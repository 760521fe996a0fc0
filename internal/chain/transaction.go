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

// ErrForeignTransaction is the error for a transaction of a type that only some chains have, such as the deposits of rollups.
var ErrForeignTransaction = errors.New("a transaction of a type that is not known here")

// Transaction returns a transaction, or nil and no error when the node does not know it, which proves nothing. What it holds
// follows from its hash, so no node can lie about it. ErrForeignTransaction says that there is one which cannot be read.
func (c *Client) Transaction(ctx context.Context, hash common.Hash) (*types.Transaction, error) {
	const op = "eth_getTransactionByHash"
	var tx *types.Transaction
	foreign := false
	err := c.read(ctx, op, []query{{method: op, args: []any{hash}}}, func(answers []answer) error {
		if answers[0].err != nil {
			return answers[0].err
		}
		raw := answers[0].result
		tx, foreign = nil, false
		if len(raw) == 0 || string(raw) == "null" {
			return nil
		}
		read := new(types.Transaction)
		err := json.Unmarshal(raw, read)
		switch {
		case errors.Is(err, types.ErrTxTypeNotSupported):
			foreign = true
			return nil
		case err != nil:
			return fmt.Errorf("malformed answer: %w", err)
		case read.Hash() != hash:
			return errors.New("malformed answer: another transaction than was asked for")
		}
		tx = read
		return nil
	})
	if err == nil && foreign {
		err = ErrForeignTransaction
	}
	return tx, err
}

// An InnerCall is a call that a transaction made and that was not undone: its own, or one of the calls inside it.
type InnerCall struct {
	To   common.Address
	Data []byte
}

// Trace returns the calls of a transaction that is in a block, in the order in which they began, without those that were undone,
// themselves or with a call around them. Delegate calls and static calls are none. At least quorum nodes must show the same. Nodes
// that do not trace (debug_traceTransaction) make the error an *UnavailableError.
func (c *Client) Trace(ctx context.Context, hash common.Hash, quorum int) ([]InnerCall, error) {
	const op = "debug_traceTransaction"
	queries := []query{{method: op, args: []any{hash, struct {
		Tracer string `json:"tracer"`
	}{"callTracer"}}}}
	read := func(answers []answer) ([]InnerCall, string, error) {
		if answers[0].err != nil {
			return nil, "", answers[0].err
		}
		calls, err := takeTrace(answers[0].result)
		if err != nil {
			return nil, "", err
		}
		vote, err := json.Marshal(calls)
		return calls, string(vote), err
	}
	if quorum > 1 {
		return agree(ctx, c, op, queries, quorum, read)
	}
	var calls []InnerCall
	err := c.read(ctx, op, queries, func(answers []answer) error {
		var err error
		calls, _, err = read(answers)
		return err
	})
	return calls, err
}

// maxFrames bounds how many calls of a trace are read. A transaction with the most gas that one may have (EIP-7825) makes fewer.
const maxFrames = 1 << 16

// frame is one call as callTracer shows it.
type frame struct {
	Type  string          `json:"type"`
	Error string          `json:"error"`
	To    *common.Address `json:"to"`
	Input hexutil.Bytes   `json:"input"`
	Calls []frame         `json:"calls"`
}

func takeTrace(raw json.RawMessage) ([]InnerCall, error) {
	root, err := decode[*frame](raw)
	if err != nil {
		return nil, err
	}
	if root == nil || root.Type == "" {
		return nil, errors.New("malformed answer: a trace without calls")
	}
	var calls []InnerCall
	frames := 0
	var walk func(f *frame) error
	walk = func(f *frame) error {
		if frames++; frames > maxFrames {
			return fmt.Errorf("malformed answer: a trace of more than %d calls", maxFrames)
		}
		if f.Error != "" {
			return nil
		}
		if f.Type == "CALL" && f.To != nil {
			calls = append(calls, InnerCall{*f.To, f.Input})
		}
		for i := range f.Calls {
			if err := walk(&f.Calls[i]); err != nil {
				return err
			}
		}
		return nil
	}
	return calls, walk(root)
}

// WitnessLogs is Logs of a range for amounts at which one node is not enough: at least quorum nodes, all of which have reached its
// end, must show the same. The range must be given.
func (c *Client) WitnessLogs(ctx context.Context, q ethereum.FilterQuery, quorum int) ([]types.Log, error) {
	const op = "eth_getLogs"
	if q.BlockHash != nil || q.FromBlock == nil || q.ToBlock == nil || !q.ToBlock.IsUint64() || q.FromBlock.Sign() < 0 {
		return nil, errors.New("chain: logs of a range that is not given by block numbers")
	}
	f := filter{From: (*hexutil.Big)(q.FromBlock), To: (*hexutil.Big)(q.ToBlock), Addresses: q.Addresses, Topics: q.Topics}
	queries := []query{{method: "eth_blockNumber"}, {method: op, args: []any{f}}}
	return agree(ctx, c, op, queries, quorum, func(answers []answer) ([]types.Log, string, error) {
		logs, err := takeRange(answers, q)
		if err != nil {
			return nil, "", err
		}
		type located struct {
			Tx, Block common.Hash
			Log       loggedAlike
		}
		list := make([]located, len(logs))
		for i := range logs {
			list[i] = located{logs[i].TxHash, logs[i].BlockHash, alike([]*types.Log{&logs[i]})[0]}
		}
		vote, err := json.Marshal(list)
		return logs, string(vote), err
	})
}

// takeRange reads the answers to eth_blockNumber and eth_getLogs: a node that has not reached the end of the range would leave logs
// out without a word.
func takeRange(answers []answer, q ethereum.FilterQuery) ([]types.Log, error) {
	if answers[0].err != nil {
		return nil, answers[0].err
	}
	reached, err := decode[hexutil.Uint64](answers[0].result)
	if err != nil {
		return nil, err
	}
	if q.ToBlock.Cmp(new(big.Int).SetUint64(uint64(reached))) > 0 {
		return nil, fmt.Errorf("the node has reached block %d, not %s", reached, q.ToBlock)
	}
	return takeLogs(answers[1], q)
}
