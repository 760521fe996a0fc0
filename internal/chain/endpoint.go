package chain

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/rpc"
	"github.com/gorilla/websocket"
	"golang.org/x/time/rate"
)

const (
	// maxAnswer is the most that is read of one answer, so that a node cannot exhaust our memory.
	maxAnswer = 32 << 20

	// coolDown is how long an endpoint that failed a read is asked last. It is never refused for that reason: what a payer can
	// provoke (a slow or oversized eth_call) may change the order of the endpoints but not take one away.
	coolDown = time.Second

	// coolDownBusy is how long an endpoint that says it was asked too often is asked last.
	coolDownBusy = 10 * time.Second

	// maxLag is how many blocks an endpoint may be behind the best head before the others are asked first.
	maxLag = 3
)

type state string

const (
	stateUnknown state = "unknown" // its watcher is about to find out
	stateUp      state = "up"      // on our chain when last looked at, and not disconnected since
	stateDown    state = "down"
	stateForeign state = "foreign" // on another chain
)

// endpoint is one node's URL and what we know of it.
type endpoint struct {
	url     string // secret
	host    string // what may be printed
	secrets []string
	ws      bool
	kick    chan struct{} // tells the watcher to poll now
	rate    *rate.Limiter // never nil

	// Guarded by Client.mu.
	state     state       // "" until Start
	fault     error       // why it is not up; safe to print
	conn      *rpc.Client // nil for a WebSocket endpoint that is not connected
	coolUntil time.Time
	lagging   bool
	head      Head // the last it reported and we believed
	older     int  // how often in a row it has since reported a lower one
	polled    time.Time
}

// newRate returns a limit of perSecond requests, with a second's worth at once; 0 means none.
func newRate(perSecond float64) *rate.Limiter {
	if perSecond == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond)))
}

// exhausted reports whether e has to be waited for.
func (e *endpoint) exhausted() bool { return e.rate.Limit() != rate.Inf && e.rate.Tokens() < 1 }

// admit waits until e may be sent a batch of n requests. A batch that is larger than what e takes in a second counts as that.
func (e *endpoint) admit(ctx context.Context, n int) error {
	if e.rate.Limit() == rate.Inf {
		return nil
	}
	if err := e.rate.WaitN(ctx, min(n, e.rate.Burst())); err != nil {
		return fmt.Errorf("the rate of this node is used up: %w", context.DeadlineExceeded)
	}
	return nil
}

// dialHTTP returns the client of an http endpoint, which holds for good: its connections come and go in transport.
func dialHTTP(rawURL string, transport *http.Transport) (*rpc.Client, error) {
	return rpc.DialOptions(context.Background(), rawURL,
		rpc.WithHTTPClient(&http.Client{
			Transport: cappedTransport{transport},
			// A redirect would carry the request, and perhaps its credentials, to a host nobody configured.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}),
		// Everything we send may be sent twice: reads, and transactions because they are the same bytes. An empty key tells
		// net/http so (it then retries on a fresh connection when a kept one turns out to be dead) and is not transmitted.
		rpc.WithHeaders(http.Header{"X-Idempotency-Key": {}}),
	)
}

// dial connects to e. A WebSocket client gets a single connection: go-ethereum would quietly make another when it breaks, to a
// node whose chain nobody has checked.
func (e *endpoint) dial(ctx context.Context) (*rpc.Client, error) {
	if !e.ws {
		return e.conn, nil
	}
	var dialed atomic.Bool
	dialer := websocket.Dialer{
		Proxy: http.ProxyFromEnvironment,
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dialed.Swap(true) {
				return nil, net.ErrClosed
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}
	return rpc.DialOptions(ctx, e.url, rpc.WithWebsocketDialer(dialer), rpc.WithWebsocketMessageSizeLimit(maxAnswer))
}

// cappedTransport cuts answers off at maxAnswer.
type cappedTransport struct{ base http.RoundTripper }

func (t cappedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	return resp, nil
}

// usable returns the endpoints that may be asked, best first. While none may but some are about to be looked at, it waits for
// that, at most one call timeout.
func (c *Client) usable(ctx context.Context) ([]*endpoint, error) {
	ranked, pending, changed := c.rank()
	if len(ranked) > 0 {
		return ranked, nil
	}
	ctx, cancel := c.attemptContext(ctx)
	defer cancel()
	for pending && len(ranked) == 0 {
		select {
		case <-changed:
			ranked, pending, changed = c.rank()
		case <-ctx.Done():
			return nil, c.whyNone()
		}
	}
	if len(ranked) == 0 {
		return nil, c.whyNone()
	}
	return ranked, nil
}

// rank returns the endpoints that are up: those in good order first, then those that cool down or lag. pending says that another
// may be up soon, which changed will tell.
func (c *Client) rank() (ranked []*endpoint, pending bool, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	var last []*endpoint
	for _, e := range c.endpoints {
		switch {
		case e.state == stateUnknown:
			pending = true
		case e.state != stateUp:
		case e.lagging || now.Before(e.coolUntil) || e.exhausted():
			last = append(last, e)
		default:
			ranked = append(ranked, e)
		}
	}
	return append(ranked, last...), pending && !c.closed, c.changed
}

// whyNone explains to an operator why no endpoint may be asked.
func (c *Client) whyNone() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.life.Err() != nil {
		return errClosed
	}
	if !c.started {
		return errors.New("the client was not started")
	}
	var why hostErrors
	for _, e := range c.endpoints {
		if e.fault != nil {
			why = append(why, hostError{e.host, e.fault})
		}
	}
	if len(why) == 0 {
		return errors.New("no node has answered yet")
	}
	return why
}

// setState records what became of e and tells the log when that is news.
func (c *Client) setState(e *endpoint, s state, fault error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s != stateUp {
		// What it said before is no evidence any more: it may come back as another node.
		e.head, e.older, e.lagging = Head{}, 0, false
		if e.ws {
			e.conn = nil
		}
	}
	news := e.state != s
	e.state, e.fault = s, fault
	if s == stateForeign {
		c.branch++
		c.head = c.highest() // it may have been this one's
		c.head.Branch = c.branch
	}
	c.wake()
	if !news {
		return
	}
	switch s {
	case stateUp:
		c.log.Info("node is up", "chain", c.chainID, "host", e.host)
	case stateDown:
		c.log.Warn("node is down", "chain", c.chainID, "host", e.host, "err", fault)
	case stateForeign:
		c.log.Error("node is on another chain and is not used", "chain", c.chainID, "host", e.host, "err", fault)
	case stateUnknown: // nothing returns there
	}
}

// blame records that an exchange with e over conn failed with err, which the asker's own deadline did not cause. When the
// connection is gone, e may be another node by the time it is back, so it is not asked again before its watcher has looked.
func (c *Client) blame(e *endpoint, conn *rpc.Client, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := coolDown
	if status, ok := errors.AsType[rpc.HTTPError](err); ok && status.StatusCode == http.StatusTooManyRequests {
		wait = coolDownBusy
	}
	e.coolUntil = c.now().Add(wait)
	if !connectionLost(err) || e.state != stateUp || e.conn != conn {
		return
	}
	e.state, e.fault = stateUnknown, e.describe(err)
	c.wake()
	select {
	case e.kick <- struct{}{}:
	default:
	}
}
