package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
)

const (
	// maxHeadAge is how long the head counts without any endpoint confirming that it is alive.
	maxHeadAge = 30 * time.Second

	// patience is how often in a row an endpoint must report a lower head before it is believed. Behind one URL there are often
	// several nodes, some of them late; a chain that has really gone back says so again.
	patience = 3
)

// Head is one block's header, as far as it matters here.
type Head struct {
	Number   uint64
	Hash     common.Hash
	Parent   common.Hash
	Time     uint64   // chain time, in seconds
	BaseFee  *big.Int // wei per gas; nil before EIP-1559; shared, do not change it
	GasLimit uint64
	SeenAt   time.Time // when we first heard of it, by our own clock

	// Branch counts how often the head had left its branch by then, where the client's own head is meant. A change of branch that
	// happened between heads which were never heard of is not seen.
	Branch uint64
}

// Head returns the best head known, without asking anyone: the highest that an endpoint on our chain reports as its latest. It is
// an *UnavailableError before the first answer, when nobody has answered for 30 seconds, and when every node is on another chain.
// A reorganisation shows as a Hash that is not a child of the one before; Number may also go back.
//
// A fresh head may be old: a chain that makes no blocks, or a node that is syncing, still answers. Compare Time.
func (c *Client) Head() (Head, error) {
	c.mu.Lock()
	head, age := c.head, c.now().Sub(c.freshAt)
	c.mu.Unlock()
	if head.Hash == (common.Hash{}) {
		return Head{}, &UnavailableError{"head", c.whyNone()}
	}
	if c.life.Err() != nil {
		return Head{}, &UnavailableError{"head", errClosed}
	}
	if age > maxHeadAge {
		return Head{}, &UnavailableError{"head", fmt.Errorf("no node has answered for %s: %w", age.Round(time.Second), c.whyNone())}
	}
	return head, nil
}

// WaitHead returns the head as soon as its hash is not after, which is at once when it already differs or after is zero. While
// the head is unavailable it waits; when ctx ends it returns an *UnavailableError. Heads that come and go while nobody waits are
// not delivered: a caller that needs every block walks the numbers in between.
func (c *Client) WaitHead(ctx context.Context, after common.Hash) (Head, error) {
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if head, err := c.Head(); err == nil && head.Hash != after {
			return head, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if _, err := c.Head(); err != nil {
				return Head{}, &UnavailableError{"waiting for a head", fmt.Errorf("%w: %w", ctx.Err(), c.whyNone())}
			}
			return Head{}, &UnavailableError{"waiting for a head", ctx.Err()}
		case <-c.life.Done():
			return Head{}, &UnavailableError{"waiting for a head", errClosed}
		}
	}
}

// Safe returns the latest block that the chain calls safe, asking a node each time. When the node does not know the tag, or has
// no such block yet, errors.Is(err, ErrUnknownBlock).
func (c *Client) Safe(ctx context.Context) (Head, error) { return c.header(ctx, "safe") }

// Finalized is Safe for the latest block that the chain calls final.
func (c *Client) Finalized(ctx context.Context) (Head, error) { return c.header(ctx, "finalized") }

// HeaderByNumber returns the header of the block that the node has at number now. When it has none yet,
// errors.Is(err, ErrUnknownBlock).
func (c *Client) HeaderByNumber(ctx context.Context, number uint64) (Head, error) {
	head, err := c.header(ctx, hexutil.EncodeUint64(number))
	if err == nil && head.Number != number {
		return Head{}, &UnavailableError{"eth_getBlockByNumber", fmt.Errorf("asked for block %d, got %d", number, head.Number)}
	}
	return head, err
}

// Headers returns the headers of the blocks that one node has at some numbers, in one round trip, so that they are of one branch.
// When it lacks one, errors.Is(err, ErrUnknownBlock).
func (c *Client) Headers(ctx context.Context, numbers ...uint64) ([]Head, error) {
	const op = "eth_getBlockByNumber"
	queries := make([]query, len(numbers))
	for i, n := range numbers {
		queries[i] = query{method: op, args: []any{hexutil.EncodeUint64(n), false}}
	}
	heads := make([]Head, len(numbers))
	err := c.read(ctx, op, queries, func(answers []answer) error {
		for i, a := range answers {
			head, err := takeHead(a, c.now())
			if err != nil {
				return err
			}
			if head.Number != numbers[i] {
				return fmt.Errorf("asked for block %d, got %d", numbers[i], head.Number)
			}
			heads[i] = head
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return heads, nil
}

func (c *Client) header(ctx context.Context, block string) (Head, error) {
	var head Head
	queries := []query{{method: "eth_getBlockByNumber", args: []any{block, false}}}
	err := c.read(ctx, "eth_getBlockByNumber", queries, func(answers []answer) error {
		var err error
		head, err = takeHead(answers[0], c.now())
		return err
	})
	return head, err
}

// header is a block as nodes report it. Its hash is taken as reported: other chains put fields into it that we do not know.
type header struct {
	Number    *hexutil.Uint64 `json:"number"`
	Hash      *common.Hash    `json:"hash"`
	Parent    *common.Hash    `json:"parentHash"`
	Timestamp *hexutil.Uint64 `json:"timestamp"`
	BaseFee   *hexutil.Big    `json:"baseFeePerGas"`
	GasLimit  *hexutil.Uint64 `json:"gasLimit"`
}

func (h *header) head(seen time.Time) (Head, error) {
	if h == nil || h.Number == nil || h.Hash == nil || h.Parent == nil || h.Timestamp == nil || h.GasLimit == nil || *h.Hash == (common.Hash{}) {
		return Head{}, errors.New("malformed answer: block without number, hash, parent, timestamp or gas limit")
	}
	return Head{
		Number:   uint64(*h.Number),
		Hash:     *h.Hash,
		Parent:   *h.Parent,
		Time:     uint64(*h.Timestamp),
		BaseFee:  (*big.Int)(h.BaseFee),
		GasLimit: uint64(*h.GasLimit),
		SeenAt:   seen,
	}, nil
}

// takeHead reads the answer to a question for a block. It is ErrUnknownBlock where the node has none.
func takeHead(a answer, seen time.Time) (Head, error) {
	if failed, ok := errors.AsType[*NodeError](a.err); ok && saysUnknownBlock(failed) {
		return Head{}, ErrUnknownBlock
	}
	if a.err != nil {
		return Head{}, a.err
	}
	return decodeHead(a.result, seen)
}

func decodeHead(raw json.RawMessage, seen time.Time) (Head, error) {
	h, err := decode[*header](raw)
	if err != nil {
		return Head{}, err
	}
	if h == nil {
		return Head{}, ErrUnknownBlock
	}
	return h.head(seen)
}

// observe records that e reports h as its latest block. The connection it came over was on our chain.
func (c *Client) observe(e *endpoint, h Head) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.state != stateUp {
		return // pushed over a connection that a read has just found broken
	}
	wasStale := h.SeenAt.Sub(c.freshAt) > maxHeadAge
	e.polled, c.freshAt = h.SeenAt, h.SeenAt
	switch {
	case h.Hash == e.head.Hash:
		e.older = 0
	case h.Number < e.head.Number && e.older+1 < patience:
		e.older++
	default:
		e.head, e.older = h, 0
	}
	best := c.highest()
	e.lagging = best.Number-e.head.Number > maxLag
	moved := best.Hash != c.head.Hash
	if moved {
		c.follow(best)
	}
	if moved || wasStale {
		c.wake()
	}
}

// highest returns the best head that an endpoint in good standing has reported lately; between equals, the endpoint that was
// configured first decides. c.mu is held.
func (c *Client) highest() Head {
	var best Head
	for _, e := range c.endpoints {
		if e.state != stateUp || c.now().Sub(e.polled) > maxHeadAge {
			continue
		}
		if best.Hash == (common.Hash{}) || e.head.Number > best.Number {
			best = e.head
		}
	}
	return best
}

// follow makes next the head and learns the chain's pace from it. c.mu is held.
func (c *Client) follow(next Head) {
	last := c.head
	if next.Number <= last.Number || (next.Number == last.Number+1 && next.Parent != last.Hash) {
		c.branch++
	}
	next.Branch = c.branch
	c.head = next
	if c.tip != nil && c.tip.used {
		c.askTip(next.Hash) // whoever settles at one head is likely to at the next
	}
	if last.Hash == (common.Hash{}) {
		return
	}
	if next.Number <= last.Number || (next.Number == last.Number+1 && next.Parent != last.Hash) {
		c.log.Info("head changed branch", "chain", c.chainID, "from", last.Number, "from_hash", last.Hash,
			"to", next.Number, "to_hash", next.Hash)
		return
	}
	blocks := time.Duration(min(next.Number-last.Number, 1000))
	gap := next.SeenAt.Sub(last.SeenAt) / blocks
	if c.blockGap == 0 {
		c.blockGap = gap
	}
	c.blockGap = (3*c.blockGap + gap) / 4
}
