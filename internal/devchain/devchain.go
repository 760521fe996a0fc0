// Package devchain is the chain of the sandbox and of the tests: a go-ethereum node inside this process, with play
// money. It answers JSON-RPC as Base Sepolia would (chain id 84532, with USDC, Multicall3, Permit2 and x402's proxies at
// their addresses there), stores nothing and talks to no network. Its keys are public: see DeriveAccount.
//
// # Blocks
//
// The package seals blocks itself. With Config.BlockTime zero, whatever waits in the pool is sealed at once into one
// block: a lone transaction has its receipt about two milliseconds after it was sent, and a burst shares blocks.
//
// # Clock
//
// A block's timestamp is the wall clock in whole seconds, or its parent's where the clock has not moved on. So the
// chain never runs ahead of the wall clock, however fast blocks follow one another, and a block every second keeps the
// head within about two seconds of it while nobody sends. An authorization valid from ten seconds ago is valid here.
//
// Several blocks may therefore carry one timestamp, which Ethereum's rules forbid. The alternative, a second per block,
// either overtakes the wall clock, so that authorizations expire early, or must start minutes behind it, so that fresh
// ones are not yet valid, and runs out of minutes.
//
// # Finality
//
// "finalized" is Config.Finality blocks behind the head and "safe" half as many. Reorg never undoes a finalized block.
package devchain

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/eth"
	"github.com/ethereum/go-ethereum/eth/filters"
	"github.com/ethereum/go-ethereum/eth/tracers"
	_ "github.com/ethereum/go-ethereum/eth/tracers/native" // callTracer and prestateTracer for debug_trace*
	"github.com/ethereum/go-ethereum/ethclient"
	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/node"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/rpc"
)

const (
	chainID         = 84532
	defaultFinality = 4
	// maxFinality is how deep a reorganization may be for the pool to take the undone transactions back.
	maxFinality = 64
	// heartbeat is how long the chain stays without a block when nobody sends a transaction.
	heartbeat = time.Second
)

var errClosed = errors.New("devchain: the chain is closed")

// Config says how the chain runs. The zero value is an instant chain on a port chosen by the kernel.
type Config struct {
	// Addr is the loopback address that answers JSON-RPC, over HTTP and WebSocket alike. Default 127.0.0.1:0.
	Addr string

	// BlockTime is the time between blocks. Zero means that transactions are sealed as they arrive.
	BlockTime time.Duration

	// Finality is how many blocks "finalized" is behind the head, at most 64. Default 4.
	Finality int

	// Now is the clock that block timestamps follow; nil means the wall clock. It does not drive BlockTime.
	Now func() time.Time

	// Logger receives what the chain does to itself; nil discards it. The node inside stays silent.
	Logger *slog.Logger
}

// Chain is a running chain. Its methods may be called from several goroutines at once.
type Chain struct {
	node     *node.Node
	eth      *eth.Ethereum
	client   *ethclient.Client
	instant  bool
	period   time.Duration
	finality uint64
	now      func() time.Time
	logger   *slog.Logger

	wake chan struct{} // holds one token while there may be something to seal at once
	quit chan struct{}
	wg   sync.WaitGroup

	// mu is held while the head moves or the pool is edited; nothing outside this package does either.
	mu     sync.Mutex
	paused bool
	closed bool
	built  uint64 // blocks built so far, canonical or not; makes every block's hash its own
}

// Start runs a chain until Close.
func Start(cfg Config) (*Chain, error) {
	host, port, err := listenAddress(cfg.Addr)
	if err != nil {
		return nil, err
	}
	if cfg.Finality < 0 || cfg.Finality > maxFinality {
		return nil, fmt.Errorf("devchain: finality of %d blocks; use 1 to %d, or 0 for %d", cfg.Finality, maxFinality, defaultFinality)
	}
	if cfg.BlockTime < 0 {
		return nil, fmt.Errorf("devchain: negative block time %s", cfg.BlockTime)
	}
	c := &Chain{
		instant:  cfg.BlockTime == 0,
		period:   cfg.BlockTime,
		finality: uint64(cfg.Finality),
		now:      cfg.Now,
		logger:   cfg.Logger,
		wake:     make(chan struct{}, 1),
		quit:     make(chan struct{}),
	}
	if c.instant {
		c.period = heartbeat
	}
	if c.finality == 0 {
		c.finality = defaultFinality
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.logger == nil {
		c.logger = slog.New(slog.DiscardHandler)
	}
	if err := c.startNode(host, port); err != nil {
		return nil, fmt.Errorf("devchain: starting a node on %s: %w", net.JoinHostPort(host, strconv.Itoa(port)), err)
	}
	if err := c.sealFirst(); err != nil {
		return nil, errors.Join(err, c.node.Close())
	}
	arrivals := make(chan core.NewTxsEvent, 64)
	subscription := c.eth.TxPool().SubscribeTransactions(arrivals, true)
	c.wg.Add(2)
	go c.watchPool(arrivals, subscription)
	go c.run()
	c.logger.Info("devchain started", "url", c.URL(), "chain", chainID, "block_time", cfg.BlockTime)
	return c, nil
}

func (c *Chain) startNode(host string, port int) error {
	modules := []string{"eth", "net", "web3", "txpool", "debug"}
	cfg := node.DefaultConfig
	cfg.Name = "devchain"
	cfg.DataDir = ""
	cfg.P2P = p2p.Config{NoDiscovery: true, NoDial: true}
	cfg.Logger = log.NewLogger(log.DiscardHandler())
	cfg.HTTPHost, cfg.HTTPPort, cfg.HTTPModules = host, port, modules
	cfg.WSHost, cfg.WSPort, cfg.WSModules = host, port, modules
	stack, err := node.New(&cfg)
	if err != nil {
		return err
	}
	backend, err := eth.New(stack, nodeSettings(uint64(c.now().Unix())))
	if err != nil {
		return errors.Join(err, stack.Close())
	}
	filterSystem := filters.NewFilterSystem(backend.APIBackend, filters.Config{})
	stack.RegisterAPIs([]rpc.API{{Namespace: "eth", Service: filters.NewFilterAPI(filterSystem)}})
	stack.RegisterAPIs(tracers.APIs(backend.APIBackend))
	if err := stack.Start(); err != nil {
		return err // a node that fails to start has closed itself
	}
	c.node, c.eth, c.client = stack, backend, ethclient.NewClient(stack.Attach())
	return nil
}

// sealFirst seals the first block and waits until the node has indexed it. Until then the node answers a request for a
// receipt with an error and not with "unknown".
func (c *Chain) sealFirst() error {
	if err := c.Mine(1); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); !c.eth.BlockChain().TxIndexDone(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			return errors.New("devchain: the node did not index its first block within 10 s")
		}
	}
	return nil
}

// listenAddress splits addr and refuses what other machines could reach: anyone may move all money on this chain.
func listenAddress(addr string) (host string, port int, err error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("devchain: listen address: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", 0, fmt.Errorf("devchain: listen address %q is not a loopback address; use 127.0.0.1:%s", addr, service)
	}
	number, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("devchain: listen address %q: port: %w", addr, err)
	}
	return host, int(number), nil
}

// URL returns the address of JSON-RPC over HTTP.
func (c *Chain) URL() string { return c.node.HTTPEndpoint() }

// WebSocketURL returns the address of JSON-RPC over WebSocket, for subscriptions.
func (c *Chain) WebSocketURL() string { return c.node.WSEndpoint() }

// ChainID returns 84532, Base Sepolia's.
func (c *Chain) ChainID() uint64 { return chainID }

// Client returns a client that is connected inside the process. Close closes it.
func (c *Chain) Client() *ethclient.Client { return c.client }

// Close stops the chain and forgets it. When it returns every goroutine of the chain has ended. A second Close does
// nothing.
func (c *Chain) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()

	close(c.quit)
	c.wg.Wait()
	c.client.Close()
	if err := c.node.Close(); err != nil {
		return fmt.Errorf("devchain: stopping the node: %w", err)
	}
	c.logger.Info("devchain stopped")
	return nil
}
