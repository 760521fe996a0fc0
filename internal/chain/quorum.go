package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"
)

// Witness is Receipt for amounts at which one node is not enough: all endpoints are asked at once, and the receipt is returned
// when at least quorum of them show the same one, in the same block, with the same status and the same logs. When as many agree
// that there is none it is nil. Otherwise the error is an *UnavailableError: too few endpoints answer, or they contradict each
// other, which is no evidence of anything.
//
// Endpoints that one operator runs, or that ask each other, are one witness; only the configuration can know.
func (c *Client) Witness(ctx context.Context, hash common.Hash, quorum int) (*types.Receipt, error) {
	queries := []query{{method: "eth_getTransactionReceipt", args: []any{hash}}}
	return agree(ctx, c, "eth_getTransactionReceipt", queries, quorum, func(answers []answer) (*types.Receipt, string, error) {
		if answers[0].err != nil {
			return nil, "", answers[0].err
		}
		receipt, err := decodeReceipt(answers[0].result, hash)
		if err != nil || receipt == nil {
			return nil, "none", err
		}
		vote, err := json.Marshal(struct {
			Block  common.Hash
			Number string
			Status uint64
			Logs   []loggedAlike
		}{receipt.BlockHash, receipt.BlockNumber.String(), receipt.Status, alike(receipt.Logs)})
		return receipt, string(vote), err
	})
}

// loggedAlike is what nodes of every make tell of a log. Some add the block's time.
type loggedAlike struct {
	Address common.Address
	Topics  []common.Hash
	Data    []byte
	Index   uint
}

func alike(logs []*types.Log) []loggedAlike {
	list := make([]loggedAlike, len(logs))
	for i, l := range logs {
		list[i] = loggedAlike{l.Address, l.Topics, l.Data, l.Index}
	}
	return list
}

// AgreeAt is AskAt of one request for amounts at which one node is not enough: its answer is what at least quorum endpoints say
// after the block, and its Err is a *RevertError when as many say that a call fails there.
func (c *Client) AgreeAt(ctx context.Context, quorum int, block common.Hash, r Request) error {
	ref, err := blockRef(block)
	if err != nil {
		return err
	}
	queries := []query{r.query(ref)}
	won, err := agree(ctx, c, queries[0].method, queries, quorum, func(answers []answer) (answer, string, error) {
		a := answers[0]
		if _, reverted := errors.AsType[*RevertError](a.err); reverted {
			return a, "reverted", nil
		}
		if a.err == nil {
			a.err = r.take(a.result) // for now, to see that it makes sense
		}
		return a, "result " + strings.ToLower(string(a.result)), a.err
	})
	if err != nil {
		r.finish(err)
		return err
	}
	if won.err == nil {
		won.err = r.take(won.result)
	}
	r.finish(won.err)
	return nil
}

// A Tag names a block by how sure it is.
type Tag string

// The tags of a chain's latest block, of its latest safe one, and of its latest final one.
const (
	Latest    Tag = "latest"
	Safe      Tag = "safe"
	Finalized Tag = "finalized"
)

// Reached asks all endpoints at once for their block with a tag, and returns one that is far enough when at least quorum of them
// have come as far: the block that as many have at the least of their heights. Where the word of one node about how deep a block
// is, or about the time, is not enough.
func (c *Client) Reached(ctx context.Context, quorum int, tag Tag, enough func(Head) bool) (Head, error) {
	const op = "eth_getBlockByNumber"
	least, votes := uint64(math.MaxUint64), 0
	var behind hostErrors
	queries := []query{{method: op, args: []any{tag, false}}}
	failures, done, err := c.everyone(ctx, op, queries, quorum, func(host string, answers []answer) (bool, error) {
		head, err := takeHead(answers[0], c.now())
		if err != nil {
			return false, err
		}
		if !enough(head) {
			behind = append(behind, hostError{host, fmt.Errorf("its %s block is %d", tag, head.Number)})
			return false, nil
		}
		least = min(least, head.Number)
		votes++
		return votes >= quorum, nil
	})
	if err != nil {
		return Head{}, err
	}
	if !done {
		behind = append(behind, hostError{"quorum", fmt.Errorf("fewer than %d nodes have come as far", quorum)})
		return Head{}, &UnavailableError{op, append(failures, behind...)}
	}
	queries = []query{{method: op, args: []any{hexutil.EncodeUint64(least), false}}}
	head, err := agree(ctx, c, op, queries, quorum, func(answers []answer) (Head, string, error) {
		head, err := takeHead(answers[0], c.now())
		return head, fmt.Sprint(head.Number, head.Hash, head.Time), err
	})
	if err == nil && (head.Number != least || !enough(head)) {
		err = &UnavailableError{op, hostErrors{{"quorum", fmt.Errorf("block %d is not what a node says of it", least)}}}
	}
	return head, err
}

// agree puts queries to every usable endpoint at once and returns the first opinion that quorum of them share. read makes an
// opinion of one endpoint's answers; equal votes are one opinion.
func agree[T any](ctx context.Context, c *Client, op string, queries []query, quorum int, read func([]answer) (opinion T, vote string, err error)) (T, error) {
	var none, won T
	votes := map[string][]string{} // who is of one opinion
	failures, done, err := c.everyone(ctx, op, queries, quorum, func(host string, answers []answer) (bool, error) {
		opinion, vote, err := read(answers)
		if err != nil {
			return false, err
		}
		votes[vote] = append(votes[vote], host)
		won = opinion
		return len(votes[vote]) >= quorum, nil
	})
	if err != nil {
		return none, err
	}
	if done {
		return won, nil
	}
	if len(votes) > 1 {
		var sides []string
		for _, hosts := range votes {
			sides = append(sides, strings.Join(hosts, " and "))
		}
		c.log.Error("nodes contradict each other", "chain", c.chainID, "about", op, "sides", strings.Join(sides, " against "))
		failures = append(failures, hostError{"quorum", errors.New("the nodes contradict each other")})
	}
	if len(failures) == 0 {
		failures = append(failures, hostError{"quorum", fmt.Errorf("fewer than %d nodes agree", quorum)})
	}
	return none, &UnavailableError{op, failures}
}

// everyone puts queries to every usable endpoint at once, until hear, which gets the answers of one endpoint after another on the
// caller's goroutine, has heard enough. An error of hear is that endpoint's failure. done reports whether it was enough; if not,
// failures are those of the endpoints.
func (c *Client) everyone(
	ctx context.Context, op string, queries []query, quorum int, hear func(host string, answers []answer) (enough bool, err error),
) (failures hostErrors, done bool, err error) {
	if quorum < 1 {
		return nil, false, fmt.Errorf("chain: a quorum of %d", quorum)
	}
	endpoints, err := c.usable(ctx)
	if err != nil {
		return nil, false, &UnavailableError{op, err}
	}
	if len(endpoints) < quorum {
		return nil, false, &UnavailableError{op, fmt.Errorf("a quorum of %d nodes is asked for, %d can be asked: add endpoints, or wait until they are back", quorum, len(endpoints))}
	}
	type outcome struct {
		e       *endpoint
		conn    *rpc.Client
		answers []answer
		err     error
	}
	outcomes := make(chan outcome, len(endpoints))
	attempts, cancel := context.WithCancel(ctx)
	defer cancel()
	pending := 0
	for _, e := range endpoints {
		if c.spawn(func() {
			conn, answers, err := c.attempt(attempts, e, queries)
			outcomes <- outcome{e, conn, answers, err}
		}) {
			pending++
		}
	}
	for ; pending > 0; pending-- {
		var out outcome
		select {
		case out = <-outcomes:
		case <-ctx.Done():
			return nil, false, &UnavailableError{op, append(failures, hostError{"quorum", ctx.Err()})}
		}
		err := out.err
		if err == nil {
			if done, err = hear(out.e.host, out.answers); done {
				return nil, true, nil
			}
		}
		if err != nil {
			failures = append(failures, hostError{out.e.host, out.e.describe(err)})
			var refused *NodeError
			if ctx.Err() == nil && c.life.Err() == nil && !errors.As(err, &refused) && !errors.Is(err, ErrUnknownBlock) {
				c.blame(out.e, out.conn, err)
			}
		}
	}
	return failures, false, nil
}
