package chain

import (
	"context"
	"errors"
	"math/big"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
)

func wantUnavailable(t *testing.T, err error, part string) {
	t.Helper()
	if _, ok := errors.AsType[*UnavailableError](err); !ok {
		t.Fatalf("got %v, want an UnavailableError", err)
	}
	if !strings.Contains(err.Error(), part) {
		t.Errorf("error %q does not say %q", err, part)
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no chain id":      {Endpoints: []string{"http://127.0.0.1:1"}},
		"no endpoint":      {ChainID: 1},
		"no host":          {ChainID: 1, Endpoints: []string{"rpc.example.org"}},
		"another scheme":   {ChainID: 1, Endpoints: []string{"ftp://rpc.example.org"}},
		"broken URL":       {ChainID: 1, Endpoints: []string{"http://alice-user:pa55word@[::1"}},
		"negative timeout": {ChainID: 1, Endpoints: []string{"http://127.0.0.1:1"}, CallTimeout: -1},
	} {
		_, err := New(cfg)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "pa55word") {
			t.Errorf("%s: %q tells the password", name, err)
		}
	}
}

func TestHeadIsUnavailableUntilANodeHasAnswered(t *testing.T) {
	node := newFakeNode(t)
	block := node.mine(7, 0)
	c := newClient(t, nil, node.http())
	_, err := c.Head()
	wantUnavailable(t, err, "not started")

	if err := c.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	got := awaitHead(t, c, block)
	if got.Number != 7 || got.Parent != blockHash(6, 0) || got.Time != block.time || got.GasLimit != 30_000_000 ||
		got.BaseFee.Cmp(big.NewInt(1_000_000_000)) != 0 || got.SeenAt.IsZero() {
		t.Errorf("head is %+v", got)
	}
	if err := c.Start(context.Background()); err == nil {
		t.Error("a second Start was accepted")
	}
}

func TestStartSucceedsWhileTheNodeIsDownAndFindsItLater(t *testing.T) {
	node := newFakeNode(t)
	node.setFault(fault{drop: true})
	c := newClient(t, nil, node.http())
	if err := c.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	awaitState(t, c, 0, stateDown)
	_, err := c.Head()
	wantUnavailable(t, err, node.host())
	_, err = c.NonceAt(testContext(t), common.Address{})
	wantUnavailable(t, err, node.host())
	if n := c.Calls(); n != 0 {
		t.Errorf("a node that is down was asked %d times", n)
	}

	node.setFault()
	awaitHead(t, c, node.mine(1, 0))
}

func TestWaitHeadWakesOnEveryNewBlock(t *testing.T) {
	node := newFakeNode(t)
	c := startClient(t, nil, node.http())
	head, err := c.WaitHead(testContext(t), common.Hash{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		block := node.mine(1, 0)
		head, err = c.WaitHead(testContext(t), head.Hash)
		if err != nil || head.Hash != block.hash || head.Number != uint64(i+1) {
			t.Fatalf("got head %d %v, want %d", head.Number, err, block.number)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = c.WaitHead(ctx, head.Hash)
	wantUnavailable(t, err, "canceled")
}

func TestAReorganisationShowsInTheHash(t *testing.T) {
	node := newFakeNode(t)
	c := startClient(t, nil, node.http())
	old := awaitHead(t, c, node.mine(3, 0))
	node.drop(1)
	replaced := awaitHead(t, c, node.mine(1, 1))
	if replaced.Number != old.Number || replaced.Hash == old.Hash || replaced.Branch == old.Branch {
		t.Errorf("head went from %d %s to %d %s", old.Number, old.Hash, replaced.Number, replaced.Hash)
	}
	node.drop(2)
	longer := awaitHead(t, c, node.mine(3, 2))
	if longer.Number != old.Number+1 || longer.Parent == replaced.Hash || longer.Branch == replaced.Branch {
		t.Errorf("head %d with parent %s does not show the fork", longer.Number, longer.Parent)
	}
	if next := awaitHead(t, c, node.mine(5, 2)); next.Branch != longer.Branch {
		t.Errorf("the branch went from %d to %d with a child", longer.Branch, next.Branch)
	}
}

// TestALowerHeadIsBelievedOnlyWhenItStays drives the tracker directly: which of several nodes behind one URL answers is chance.
func TestALowerHeadIsBelievedOnlyWhenItStays(t *testing.T) {
	c := newClient(t, nil, "http://127.0.0.1:1")
	e := c.endpoints[0]
	e.state = stateUp
	report := func(number uint64) uint64 {
		c.observe(e, Head{Number: number, Hash: blockHash(number, 0), SeenAt: time.Now()})
		return c.head.Number
	}
	for i, step := range []struct{ reported, want uint64 }{
		{100, 100},
		{98, 100},
		{99, 100},
		{100, 100}, // a late node answered twice
		{98, 100},
		{98, 100},
		{101, 101},
		{97, 101},
		{97, 101},
		{97, 97}, // gone back for good
	} {
		if got := report(step.reported); got != step.want {
			t.Fatalf("step %d: after a report of %d the head is %d, want %d", i, step.reported, got, step.want)
		}
	}
}

func TestHeadGoesStaleAndRecovers(t *testing.T) {
	node := newFakeNode(t)
	var ahead atomic.Int64
	c := startClient(t, func(cfg *Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}, node.http())
	block := node.mine(1, 0)
	awaitHead(t, c, block)

	hang := make(chan struct{})
	node.setFault(fault{hang: hang})
	before := node.pollCount()
	await(t, c, "a hanging poll", func() bool { return node.pollCount() > before })
	ahead.Store(int64(31 * time.Second))
	_, err := c.Head()
	wantUnavailable(t, err, "no node has answered for 31s")

	node.setFault()
	if got, err := c.WaitHead(testContext(t), common.Hash{}); err != nil || got.Hash != block.hash {
		t.Errorf("after recovery the head is %d, %v", got.Number, err)
	}
}

func TestAnEndpointOnAnotherChainIsNeverAsked(t *testing.T) {
	wrong, right := newFakeNode(t), newFakeNode(t)
	wrong.setChainID(1)
	wrong.mine(50, 0)
	block := right.mine(2, 0)
	c := newClient(t, nil, wrong.http(), right.http())
	if err := c.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	awaitState(t, c, 0, stateForeign)
	awaitHead(t, c, block)
	right.result("eth_getTransactionCount", "0x5")
	if n, err := c.NonceAt(testContext(t), common.Address{}); n != 5 || err != nil {
		t.Errorf("nonce %d, %v", n, err)
	}
	if err := c.Broadcast(testContext(t), []byte{1, 2, 3}); err != nil {
		t.Error(err)
	}
	for _, asked := range wrong.asked() {
		if asked != "eth_chainId" {
			t.Errorf("the wrong chain was asked %s", asked)
		}
	}
}

func TestHeadNamesTheWrongChain(t *testing.T) {
	node := newFakeNode(t)
	node.setChainID(1)
	c := newClient(t, nil, node.http())
	if err := c.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	awaitState(t, c, 0, stateForeign)
	_, err := c.Head()
	wantUnavailable(t, err, node.host()+": on chain 1, not 84532")
}

func TestANodeThatBecomesAnotherChainIsExcludedAndItsHeadForgotten(t *testing.T) {
	node := newFakeNode(t)
	c := startClient(t, nil, node.http())
	awaitHead(t, c, node.mine(1, 0))
	node.setChainID(1)
	awaitState(t, c, 0, stateForeign)
	_, err := c.Head()
	wantUnavailable(t, err, "on chain 1")
	_, err = c.BalanceAt(testContext(t), common.Address{})
	wantUnavailable(t, err, "on chain 1")
}

func TestAfterALostConnectionTheChainIsCheckedBeforeTheNextRead(t *testing.T) {
	const method = "eth_getTransactionCount"
	node := newFakeNode(t)
	node.result(method, "0x1")
	c := startClient(t, calm, node.http())
	node.setChainID(1)
	// The connection breaks, and the check that follows takes its time.
	node.setFault(fault{only: method, drop: true}, fault{only: "eth_chainId", hang: make(chan struct{})})
	_, err := c.NonceAt(testContext(t), common.Address{})
	wantUnavailable(t, err, node.host())
	before := len(node.asked())
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = c.NonceAt(ctx, common.Address{})
	wantUnavailable(t, err, node.host())

	node.setFault()
	awaitState(t, c, 0, stateForeign)
	_, err = c.NonceAt(testContext(t), common.Address{})
	wantUnavailable(t, err, "on chain 1")
	if got := node.asked()[before:]; len(got) != 0 {
		t.Errorf("it was asked %v", got)
	}
}

func TestAfterALostConnectionReadsWaitForTheCheck(t *testing.T) {
	const method = "eth_getTransactionCount"
	node := newFakeNode(t)
	node.result(method, "0x1")
	c := startClient(t, calm, node.http())
	node.setFault(fault{only: method, drop: true}, fault{only: "eth_chainId", hang: make(chan struct{})})
	if _, err := c.NonceAt(testContext(t), common.Address{}); err == nil {
		t.Fatal("a dropped connection gave an answer")
	}
	awaitState(t, c, 0, stateUnknown)
	got := make(chan error)
	go func() {
		_, err := c.NonceAt(testContext(t), common.Address{})
		got <- err
	}()
	node.setFault()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestANodeThatCameBackWithAShorterChainIsBelievedAtOnce(t *testing.T) {
	node := newFakeNode(t)
	node.mine(10, 0)
	c := startClient(t, calm, node.http())
	node.setFault(fault{drop: true})
	if _, err := c.NonceAt(testContext(t), common.Address{}); err == nil {
		t.Fatal("a dropped connection gave an answer")
	}
	awaitState(t, c, 0, stateDown)
	node.drop(9)
	node.setFault()
	awaitHead(t, c, fakeBlock{number: 1, hash: blockHash(1, 0)})
}

func TestAWebSocketClientNeverConnectsTwice(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_getTransactionCount", "0x1")
	e, err := newEndpoint(node.ws(), nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := e.dial(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var nonce hexutil.Uint64
	if err := conn.CallContext(testContext(t), &nonce, "eth_getTransactionCount"); err != nil {
		t.Fatal(err)
	}
	node.closeSockets()
	for range 5 {
		// A request written before the loss is noticed waits for its deadline.
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		if err := conn.CallContext(ctx, &nonce, "eth_getTransactionCount"); !connectionLost(err) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after its connection broke it got %v", err)
		}
		cancel()
	}
	if got := len(node.asked()); got != 1 {
		t.Errorf("the node was asked %d times, want 1", got)
	}
}

func TestAnEndpointThatIsBehindIsAskedLast(t *testing.T) {
	late, good := newFakeNode(t), newFakeNode(t)
	late.mine(2, 0)
	block := good.mine(20, 0)
	c := startClient(t, nil, late.http(), good.http())
	awaitHead(t, c, block)
	await(t, c, "the lag to be noticed", func() bool { return c.endpoints[0].lagging })
	good.result("eth_getBalance", "0x2a")
	if wei, err := c.BalanceAt(testContext(t), common.Address{}); err != nil || wei.Int64() != 42 {
		t.Errorf("balance %v, %v", wei, err)
	}
	if got := late.asked(); len(got) != 0 {
		t.Errorf("the late node was asked %v", got)
	}

	late.mine(18, 0)
	await(t, c, "the lag to be over", func() bool { return !c.endpoints[0].lagging })
}

func TestWebSocketHeadsArePushed(t *testing.T) {
	node := newFakeNode(t)
	// Without a push the first look would come after an hour.
	c := startClient(t, func(cfg *Config) { cfg.PollInterval = time.Hour }, node.ws())
	await(t, c, "the subscription", func() bool { return node.subscribers() == 1 })
	for range 3 {
		awaitHead(t, c, node.mine(1, 0))
	}
	if polls := node.pollCount(); polls != 1 {
		t.Errorf("polled %d times", polls)
	}
	node.result("eth_getTransactionCount", "0x9")
	if n, err := c.NonceAt(testContext(t), common.Address{}); n != 9 || err != nil {
		t.Errorf("nonce %d, %v", n, err)
	}
}

func TestWebSocketWithoutSubscriptionsIsPolled(t *testing.T) {
	node := newFakeNode(t)
	node.failing("eth_subscribe", fakeError{Code: -32601, Message: "no subscriptions here"})
	c := startClient(t, nil, node.ws())
	awaitHead(t, c, node.mine(1, 0))
}

func TestABrokenWebSocketIsCheckedBeforeItIsUsedAgain(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_getTransactionCount", "0x1")
	c := startClient(t, nil, node.ws())
	awaitHead(t, c, node.mine(1, 0))
	node.setChainID(1)
	node.closeSockets()
	awaitState(t, c, 0, stateForeign)
	before := len(node.asked())
	_, err := c.NonceAt(testContext(t), common.Address{})
	wantUnavailable(t, err, "on chain 1")
	if got := node.asked()[before:]; len(got) != 0 {
		t.Errorf("it was asked %v", got)
	}
}

func TestABrokenWebSocketComesBack(t *testing.T) {
	node := newFakeNode(t)
	c := startClient(t, nil, node.ws())
	for range 3 {
		await(t, c, "the subscription", func() bool { return node.subscribers() == 1 })
		node.closeSockets()
		await(t, c, "the loss to be noticed", func() bool { return node.subscribers() == 0 })
		awaitHead(t, c, node.mine(1, 0))
	}
}

func TestTagsAndNumbersNameBlocks(t *testing.T) {
	node := newFakeNode(t)
	node.mine(9, 0)
	node.mu.Lock()
	node.tags["safe"], node.tags["finalized"] = 7, 4
	node.mu.Unlock()
	c := startClient(t, nil, node.http())
	ctx := testContext(t)
	if head, err := c.Safe(ctx); err != nil || head.Number != 7 {
		t.Errorf("safe is %d, %v", head.Number, err)
	}
	if head, err := c.Finalized(ctx); err != nil || head.Number != 4 {
		t.Errorf("finalized is %d, %v", head.Number, err)
	}
	if head, err := c.HeaderByNumber(ctx, 3); err != nil || head.Hash != blockHash(3, 0) {
		t.Errorf("block 3 is %d, %v", head.Number, err)
	}
	if _, err := c.HeaderByNumber(ctx, 99); !errors.Is(err, ErrUnknownBlock) {
		t.Errorf("block 99: %v", err)
	}
	node.mu.Lock()
	delete(node.tags, "finalized")
	node.mu.Unlock()
	_, err := c.Finalized(ctx)
	wantUnavailable(t, err, "does not know")
	if !errors.Is(err, ErrUnknownBlock) {
		t.Errorf("an unknown tag gives %v", err)
	}
}

func TestPollingFollowsThePaceOfTheChain(t *testing.T) {
	c := newClient(t, func(cfg *Config) { cfg.PollInterval = 0 }, "http://127.0.0.1:1", "http://127.0.0.1:2")
	first, reserve := c.endpoints[0], c.endpoints[1]
	first.state, reserve.state = stateUp, stateUp
	now := time.Now()
	for _, step := range []struct {
		gap  time.Duration
		want time.Duration
	}{
		{200 * time.Millisecond, 100 * time.Millisecond},
		{2 * time.Second, 500 * time.Millisecond},
		{12 * time.Second, 2 * time.Second},
	} {
		for range 40 {
			now = now.Add(step.gap)
			next := c.head.Number + 1
			c.observe(first, Head{Number: next, Hash: blockHash(next, 0), Parent: c.head.Hash, SeenAt: now})
		}
		if got := c.interval(first, false).Round(10 * time.Millisecond); got != step.want {
			t.Errorf("with a block every %s it polls every %s, want %s", step.gap, got, step.want)
		}
		if got := c.interval(reserve, false).Round(40 * time.Millisecond); got != 4*step.want {
			t.Errorf("with a block every %s a reserve is polled every %s, want %s", step.gap, got, 4*step.want)
		}
	}
}
