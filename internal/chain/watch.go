package chain

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

const (
	minPoll     = 100 * time.Millisecond
	maxPoll     = 2 * time.Second
	firstPoll   = 500 * time.Millisecond // until the chain's pace is known
	minBackoff  = 100 * time.Millisecond
	maxBackoff  = 2 * time.Second
	foreignWait = 30 * time.Second // before an endpoint on another chain is looked at again

	// tolerance is how many polls in a row may fail, over a connection that stands, before the endpoint is down.
	tolerance = 3
)

// watch keeps the state of e true until the client ends. One goroutine per endpoint runs it.
func (c *Client) watch(e *endpoint) {
	c.setState(e, stateUnknown, nil)
	backoff := minBackoff
	for c.life.Err() == nil {
		served, err := c.session(e)
		if served {
			backoff = minBackoff
		}
		if c.life.Err() != nil {
			return
		}
		wait := backoff
		if _, ok := errors.AsType[*WrongChainError](err); ok {
			c.setState(e, stateForeign, e.describe(err))
			wait = foreignWait
		} else {
			c.setState(e, stateDown, e.describe(err))
			backoff = min(2*backoff, maxBackoff)
		}
		pause := time.NewTimer(wait)
		select {
		case <-pause.C:
		case <-c.life.Done():
			pause.Stop()
		}
	}
}

// session connects to e, checks its chain and follows its head until that fails; err says how. served says that e was up.
func (c *Client) session(e *endpoint) (served bool, err error) {
	ctx, cancel := c.attemptContext(c.life)
	conn, err := e.dial(ctx)
	cancel()
	if err != nil {
		return false, err
	}
	if e.ws {
		defer conn.Close()
	}
	if err := c.poll(e, conn); err != nil {
		return false, err
	}

	pushed, broken := c.subscribe(e, conn)
	failures := 0
	next := time.NewTimer(c.interval(e, pushed != nil))
	defer next.Stop()
	for {
		select {
		case <-c.life.Done():
			return true, errClosed
		case err := <-broken:
			if err == nil {
				err = rpc.ErrClientQuit
			}
			return true, err
		case h := <-pushed:
			if head, err := h.head(c.now()); err == nil {
				c.observe(e, head)
			}
			continue
		case <-e.kick:
		case <-next.C:
		}
		err := c.poll(e, conn)
		var foreign *WrongChainError
		switch {
		case err == nil:
			failures = 0
		case connectionLost(err) || errors.As(err, &foreign) || failures+1 == tolerance:
			return true, err
		default:
			failures++
			c.blame(e, conn, err)
		}
		next.Reset(c.interval(e, pushed != nil))
	}
}

// poll asks e, over conn, which chain it is on and for its head, in one round trip, and records that it is up.
func (c *Client) poll(e *endpoint, conn *rpc.Client) error {
	ctx, cancel := c.attemptContext(c.life)
	defer cancel()
	var chainID hexutil.Uint64
	var block json.RawMessage
	batch := []rpc.BatchElem{
		{Method: "eth_chainId", Result: &chainID},
		{Method: "eth_getBlockByNumber", Args: []any{"latest", false}, Result: &block},
	}
	if err := conn.BatchCallContext(ctx, batch); err != nil {
		return err
	}
	if batch[0].Error != nil {
		return batch[0].Error
	}
	if uint64(chainID) != c.chainID {
		return &WrongChainError{Got: uint64(chainID), Want: c.chainID}
	}
	if batch[1].Error != nil {
		return batch[1].Error
	}
	head, err := decodeHead(block, c.now())
	if err != nil {
		return err
	}
	c.setUp(e, conn)
	c.observe(e, head)
	return nil
}

// setUp records that conn leads to a node on our chain.
func (c *Client) setUp(e *endpoint, conn *rpc.Client) {
	c.mu.Lock()
	already := e.state == stateUp
	e.conn = conn
	c.mu.Unlock()
	if !already {
		c.setState(e, stateUp, nil)
	}
}

// subscribe asks a WebSocket endpoint to push its heads, until conn closes or broken tells of an error. It returns nil channels
// when e cannot push, and is polled instead.
func (c *Client) subscribe(e *endpoint, conn *rpc.Client) (pushed <-chan *header, broken <-chan error) {
	if !e.ws {
		return nil, nil
	}
	ctx, cancel := c.attemptContext(c.life)
	defer cancel()
	heads := make(chan *header, 16)
	subscription, err := conn.EthSubscribe(ctx, heads, "newHeads")
	if err != nil {
		c.log.Warn("node does not push heads and is polled", "chain", c.chainID, "host", e.host, "err", e.describe(err))
		return nil, nil
	}
	return heads, subscription.Err()
}

// interval returns how long to wait before looking at e again: a quarter of a block for the endpoint that is asked first, and
// four times as long for those in reserve and for one that pushes its heads, where a look only shows that it is alive.
func (c *Client) interval(e *endpoint, pushes bool) time.Duration {
	ranked, _, _ := c.rank()
	c.mu.Lock()
	gap := c.blockGap
	c.mu.Unlock()
	every := c.pollEvery
	switch {
	case every > 0:
	case gap == 0:
		every = firstPoll
	default:
		every = min(max(gap/4, minPoll), maxPoll)
	}
	if pushes || (len(ranked) > 0 && ranked[0] != e) {
		every *= 4
	}
	return every
}
