// Package chain is everything Tollgate asks of an EVM node, over JSON-RPC. No other package talks to one.
//
// A Client has one or more endpoints on one chain. Each is watched: its chain id and its head are polled (and pushed, over
// WebSocket), so that a request on the paid path goes straight to an endpoint that is known to be good and costs one round trip.
// Reads go to the first good endpoint in the configured order and fail over; a broadcast goes to all of them.
//
// Answers come in kinds that callers can tell apart with errors.As:
//
//   - *RevertError: the chain answered, and the call failed.
//   - *UnavailableError: we cannot tell. It is never evidence of anything about a payment.
//   - *RejectedError and *AmbiguousError, from Broadcast only; see there.
//
// One node is believed, except by Witness and AgreeAt, which compare the answers of several. What a single lying node can do to a
// caller of the others must be bounded by that caller.
package chain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultCallTimeout = 2 * time.Second
	idleConnections    = 32
	idleTimeout        = 90 * time.Second
)

// Config says which chain to talk to and how.
type Config struct {
	ChainID uint64 // required; an endpoint that reports another chain is never used

	// Endpoints are http, https, ws or wss URLs in order of preference; at least one. Their user information, path and query are
	// secrets: no error and no log line of this package contains them.
	Endpoints []string

	// Rate is how many reads a second each endpoint takes, as its operator's plan allows; a batch counts as the requests in it.
	// An endpoint that is at its rate is asked after the others, and waited for when there is no other. Watching the head comes on
	// top, see PollInterval, and so do broadcasts, which never wait. 0 means no limit.
	Rate float64

	CallTimeout  time.Duration    // per attempt at one endpoint; 0 means 2 s
	PollInterval time.Duration    // between looks at the head, four times that for reserves; 0 adapts to the chain's pace, 100 ms to 2 s
	Logger       *slog.Logger     // nil discards
	Now          func() time.Time // nil means time.Now
}

// Client asks one chain's nodes. Its methods are safe for concurrent use.
type Client struct {
	chainID     uint64
	callTimeout time.Duration
	pollEvery   time.Duration
	log         *slog.Logger
	now         func() time.Time
	transport   *http.Transport
	endpoints   []*endpoint

	life  context.Context // ends with Close, or with the context given to Start
	end   context.CancelFunc
	jobs  sync.WaitGroup // every goroutine this client started
	calls atomic.Uint64

	mu       sync.Mutex // guards what follows, and the state of every endpoint
	started  bool
	closed   bool
	changed  chan struct{} // closed and replaced when the head or an endpoint's state changes
	head     Head          // the best head known; zero while there is none
	branch   uint64        // counts the changes of branch of head
	freshAt  time.Time     // when an endpoint last reported a head
	blockGap time.Duration // smoothed time between blocks; 0 until two were seen
	tip      *suggestedTip // the last that was asked for; nil before
}

// New checks cfg and returns a client that has asked nothing yet.
func New(cfg Config) (*Client, error) {
	if cfg.ChainID == 0 {
		return nil, errors.New("chain: no chain id; set the network's number, for example 8453 for Base")
	}
	if len(cfg.Endpoints) == 0 {
		return nil, fmt.Errorf("chain %d: no endpoint; add at least one RPC URL", cfg.ChainID)
	}
	if cfg.CallTimeout < 0 || cfg.PollInterval < 0 || cfg.Rate < 0 {
		return nil, fmt.Errorf("chain %d: call timeout, poll interval and rate must not be negative", cfg.ChainID)
	}
	c := &Client{
		chainID:     cfg.ChainID,
		callTimeout: cfg.CallTimeout,
		pollEvery:   cfg.PollInterval,
		log:         cfg.Logger,
		now:         cfg.Now,
		changed:     make(chan struct{}),
	}
	if c.callTimeout == 0 {
		c.callTimeout = defaultCallTimeout
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	// HTTP/1.1 on purpose (a transport with its own dialer speaks nothing else): a request that times out takes its connection
	// with it, whereas a dead HTTP/2 connection would swallow every later request too.
	c.transport = &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: c.callTimeout}).DialContext,
		TLSHandshakeTimeout: c.callTimeout,
		MaxIdleConns:        idleConnections * len(cfg.Endpoints),
		MaxIdleConnsPerHost: idleConnections,
		IdleConnTimeout:     idleTimeout,
	}
	for i, raw := range cfg.Endpoints {
		e, err := newEndpoint(raw, c.transport)
		if err != nil {
			return nil, fmt.Errorf("chain %d: endpoint %d: %w", cfg.ChainID, i+1, err)
		}
		e.rate = newRate(cfg.Rate)
		c.endpoints = append(c.endpoints, e)
	}
	c.life, c.end = context.WithCancel(context.Background())
	return c, nil
}

// newEndpoint parses raw. Its errors never quote the URL, which url.Parse's own would.
func newEndpoint(raw string, transport *http.Transport) (*endpoint, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return nil, errors.New("not a URL with a host; write https://… or wss://…")
	}
	e := &endpoint{url: raw, host: u.Host, secrets: secretsIn(u), kick: make(chan struct{}, 1)}
	switch u.Scheme {
	case "http", "https":
		e.conn, err = dialHTTP(raw, transport)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.host, e.describe(err))
		}
	case "ws", "wss":
		e.ws = true
	default:
		return nil, fmt.Errorf("%s: unknown scheme; write http, https, ws or wss", e.host)
	}
	return e, nil
}

// Start begins to watch the endpoints, until Close or until ctx ends. It does not wait for them and does not fail when they are
// down: they are tried again, with backoff. A client starts once.
func (c *Client) Start(ctx context.Context) error {
	c.mu.Lock()
	if c.started || c.closed {
		c.mu.Unlock()
		return fmt.Errorf("chain %d: the client was already started or closed", c.chainID)
	}
	c.started = true
	c.mu.Unlock()

	unlink := context.AfterFunc(ctx, c.end)
	context.AfterFunc(c.life, func() { unlink() })
	for _, e := range c.endpoints {
		c.spawn(func() { c.watch(e) })
	}
	return nil
}

// Close ends every request under way and returns when no goroutine of the client is left. Later calls are unavailable.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
	c.jobs.Wait()
	c.transport.CloseIdleConnections()
}

// Calls returns how many round trips were made for callers, failovers and hedged attempts included. Watching the head is not
// counted, so that a benchmark can tell what a request costs.
func (c *Client) Calls() uint64 { return c.calls.Load() }

// spawn runs job in a goroutine that Close waits for. It reports false, and runs nothing, once the client is closed.
func (c *Client) spawn(job func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.jobs.Go(job)
	return true
}

// wake tells everyone who waits for a change to look again. c.mu is held.
func (c *Client) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// attemptContext bounds one attempt: by parent, by the client's life and by the call timeout.
func (c *Client) attemptContext(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(parent, c.callTimeout)
	unlink := context.AfterFunc(c.life, cancel)
	return ctx, func() { unlink(); cancel() }
}
