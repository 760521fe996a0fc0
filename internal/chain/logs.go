package chain

import (
	"context"
	"errors"
	"math/big"
	"slices"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
)

// filter is a query as eth_getLogs takes it. A nil list of topics means any.
type filter struct {
	BlockHash *common.Hash     `json:"blockHash,omitempty"`
	From      *hexutil.Big     `json:"fromBlock,omitempty"`
	To        *hexutil.Big     `json:"toBlock,omitempty"`
	Addresses []common.Address `json:"address,omitempty"`
	Topics    [][]common.Hash  `json:"topics,omitempty"`
}

// Logs returns the logs that match q: those of one block, or of the range FromBlock to ToBlock by number, where nil means genesis
// and the current Head. A range that begins above the Head is empty, and no node is asked.
//
// Otherwise the answer covers the whole range: a node that has not reached its end, which would leave logs out without a word, is
// passed over, in the same round trip. A caller that remembers how far it has read therefore loses nothing while blocks stay;
// after a reorganisation it reads again from the fork.
func (c *Client) Logs(ctx context.Context, q ethereum.FilterQuery) ([]types.Log, error) {
	const op = "eth_getLogs"
	f := filter{BlockHash: q.BlockHash, Addresses: q.Addresses, Topics: q.Topics}
	if q.BlockHash != nil {
		if q.FromBlock != nil || q.ToBlock != nil {
			return nil, errors.New("chain: logs of a block and of a range at once")
		}
		var logs []types.Log
		queries := []query{{method: op, args: []any{f}}}
		err := c.read(ctx, op, queries, func(answers []answer) error {
			var err error
			logs, err = takeLogs(answers[0], q)
			return err
		})
		return logs, err
	}

	head, err := c.Head()
	if err != nil {
		return nil, err
	}
	if q.FromBlock == nil {
		q.FromBlock = new(big.Int)
	}
	if q.ToBlock == nil {
		q.ToBlock = new(big.Int).SetUint64(head.Number)
	}
	if q.FromBlock.Sign() < 0 || q.ToBlock.Sign() < 0 || !q.ToBlock.IsUint64() {
		return nil, errors.New("chain: logs of a range that is not given by block numbers")
	}
	if q.FromBlock.Cmp(q.ToBlock) > 0 || q.FromBlock.Cmp(new(big.Int).SetUint64(head.Number)) > 0 {
		return nil, nil
	}
	f.From, f.To = (*hexutil.Big)(q.FromBlock), (*hexutil.Big)(q.ToBlock)
	var logs []types.Log
	queries := []query{{method: "eth_blockNumber"}, {method: op, args: []any{f}}}
	err = c.read(ctx, op, queries, func(answers []answer) error {
		var err error
		logs, err = takeRange(answers, q)
		return err
	})
	return logs, err
}

// takeLogs reads logs and checks that they are what q asked for, since a log that passes is taken for a payment.
func takeLogs(a answer, q ethereum.FilterQuery) ([]types.Log, error) {
	if a.err != nil {
		return nil, a.err
	}
	logs, err := decode[[]types.Log](a.result)
	if err != nil {
		return nil, err
	}
	for i := range logs {
		if !matches(&logs[i], q) {
			return nil, errors.New("malformed answer: a log that was not asked for")
		}
	}
	return logs, nil
}

func matches(l *types.Log, q ethereum.FilterQuery) bool {
	if l.Removed || l.BlockHash == (common.Hash{}) {
		return false
	}
	if q.BlockHash != nil && l.BlockHash != *q.BlockHash {
		return false
	}
	number := new(big.Int).SetUint64(l.BlockNumber)
	if q.FromBlock != nil && (number.Cmp(q.FromBlock) < 0 || number.Cmp(q.ToBlock) > 0) {
		return false
	}
	if len(q.Addresses) > 0 && !slices.Contains(q.Addresses, l.Address) {
		return false
	}
	if len(q.Topics) > len(l.Topics) {
		return false
	}
	for i, allowed := range q.Topics {
		if len(allowed) > 0 && !slices.Contains(allowed, l.Topics[i]) {
			return false
		}
	}
	return true
}
