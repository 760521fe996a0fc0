package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ethereum/go-ethereum/common"
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
			Logs   []*types.Log
		}{receipt.BlockHash, receipt.BlockNumber.String(), receipt.Status, receipt.Logs})
		return receipt, string(vote), err
	})
}

// AgreeAt is AskAt of one call for amounts at which one node is not enough: it returns what at least quorum endpoints say that
// the call returns after the block, or a *RevertError when as many say that it fails there.
func (c *Client) AgreeAt(ctx context.Context, quorum int, block common.Hash, call *Call) ([]byte, error) {
	ref, err := blockRef(block)
	if err != nil {
		return nil, err
	}
	type verdict struct {
		output   []byte
		reverted *RevertError
	}
	queries := []query{call.query(ref)}
	v, err := agree(ctx, c, queries[0].method, queries, quorum, func(answers []answer) (verdict, string, error) {
		if reverted, ok := errors.AsType[*RevertError](answers[0].err); ok {
			return verdict{reverted: reverted}, "reverted", nil
		}
		if answers[0].err != nil {
			return verdict{}, "", answers[0].err
		}
		one := &Call{}
		if err := one.take(answers[0].result); err != nil {
			return verdict{}, "", err
		}
		return verdict{output: one.Output}, "output " + string(one.Output), nil
	})
	if err == nil && v.reverted != nil {
		return nil, v.reverted
	}
	return v.output, err
}

// agree puts queries to every usable endpoint at once and returns the first opinion that quorum of them share. read makes an
// opinion of one endpoint's answers; equal votes are one opinion.
func agree[T any](ctx context.Context, c *Client, op string, queries []query, quorum int, read func([]answer) (opinion T, vote string, err error)) (T, error) {
	var none T
	if quorum < 1 {
		return none, fmt.Errorf("chain: a quorum of %d", quorum)
	}
	endpoints, err := c.usable(ctx)
	if err != nil {
		return none, &UnavailableError{op, err}
	}
	if len(endpoints) < quorum {
		return none, &UnavailableError{op, fmt.Errorf("a quorum of %d nodes is asked for, %d can be asked: add endpoints, or wait until they are back", quorum, len(endpoints))}
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
	votes := map[string][]string{} // who is of one opinion
	var failures hostErrors
	for ; pending > 0; pending-- {
		var out outcome
		select {
		case out = <-outcomes:
		case <-ctx.Done():
			return none, &UnavailableError{op, append(failures, hostError{"quorum", ctx.Err()})}
		}
		err := out.err
		var opinion T
		var vote string
		if err == nil {
			opinion, vote, err = read(out.answers)
		}
		if err != nil {
			failures = append(failures, hostError{out.e.host, out.e.describe(err)})
			var refused *NodeError
			if ctx.Err() == nil && c.life.Err() == nil && !errors.As(err, &refused) {
				c.blame(out.e, out.conn, err)
			}
			continue
		}
		votes[vote] = append(votes[vote], out.e.host)
		if len(votes[vote]) >= quorum {
			return opinion, nil
		}
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
