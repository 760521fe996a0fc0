package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// lockedBuffer collects log lines from several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func wantNoSecret(t *testing.T, where, text string) {
	t.Helper()
	for _, secret := range secretWords {
		if strings.Contains(text, secret) {
			t.Errorf("%s tells %q: %s", where, secret, text)
		}
	}
}

// everyText is everything that printing err, or whatever is wrapped in it, can show.
func everyText(err error) string {
	text := fmt.Sprintf("%v %+v %#v\n", err, err, err)
	switch wrapper := err.(type) {
	case interface{ Unwrap() error }:
		if inner := wrapper.Unwrap(); inner != nil {
			text += everyText(inner)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range wrapper.Unwrap() {
			text += everyText(inner)
		}
	}
	return text
}

func TestNoErrorAndNoLogTellsASecret(t *testing.T) {
	for _, scheme := range []string{"http", "ws"} {
		t.Run(scheme, func(t *testing.T) {
			node := newFakeNode(t)
			node.mine(3, 0)
			echo := fakeError{Code: -32000, Message: "bad key querytoken for " + node.secretURL(scheme) + " user alice-user pathtoken"}
			var log lockedBuffer
			c := startClient(t, func(cfg *Config) {
				cfg.CallTimeout = 100 * time.Millisecond
				cfg.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			}, node.secretURL(scheme))
			node.mu.Lock()
			header, path := node.header, node.urls[0]
			node.mu.Unlock()
			if header.Get("Authorization") == "" || path != "/v2/pathtoken?apikey=querytoken" {
				t.Fatalf("the node saw %q and authorization %q", path, header.Get("Authorization"))
			}

			ask := func(what string) {
				t.Helper()
				ctx := testContext(t)
				_, headErr := c.Finalized(ctx)
				_, nonceErr := c.NonceAt(ctx, common.Address{})
				_, tipErr := c.TipCap(ctx)
				_, logsErr := c.Logs(ctx, between(1, 2))
				call := &Call{Msg: toCall()}
				c.Ask(ctx, call, &Nonce{})
				for i, err := range []error{headErr, nonceErr, tipErr, logsErr, call.Err, c.Broadcast(ctx, rawTx)} {
					if err == nil {
						t.Fatalf("%s: question %d was answered", what, i)
					}
					wantNoSecret(t, what, everyText(err))
				}
			}
			for _, method := range []string{"eth_getTransactionCount", "eth_maxPriorityFeePerGas", "eth_getLogs", "eth_call", "eth_sendRawTransaction"} {
				node.failing(method, echo)
			}
			ask("echoed")
			node.failing("eth_call", fakeError{Code: 3, Message: "execution reverted: " + echo.Message})
			ask("echoed by a revert")
			faults := map[string]fault{"drop": {drop: true}, "garbage": {garbage: node.secretURL(scheme)}, "hang": {hang: make(chan struct{})}}
			if scheme == "http" {
				faults["status"] = fault{status: 401}
			}
			for name, f := range faults {
				node.setFault(f)
				ask(name)
				node.setFault()
				awaitState(t, c, 0, stateUp)
			}
			node.setChainID(1)
			awaitState(t, c, 0, stateForeign)
			ask("wrong chain")
			if _, err := c.Head(); err == nil {
				t.Error("a head of another chain")
			} else {
				wantNoSecret(t, "head", everyText(err))
			}
			if !strings.Contains(log.String(), node.host()) {
				t.Errorf("the log does not name the host: %s", log.String())
			}
			wantNoSecret(t, "log", log.String())
		})
	}
}

func TestAnEndpointThatCannotBeReachedTellsNoSecret(t *testing.T) {
	for _, endpoint := range []string{
		"http://alice-user:pa55word@127.0.0.1:1/v2/pathtoken?apikey=querytoken",
		"ws://alice-user:pa55word@127.0.0.1:1/v2/pathtoken?apikey=querytoken",
		"https://alice-user:pa55word@name.invalid/v2/pathtoken?apikey=querytoken",
	} {
		var log lockedBuffer
		c := newClient(t, func(cfg *Config) { cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)) }, endpoint)
		if err := c.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		awaitState(t, c, 0, stateDown)
		_, err := c.Head()
		wantUnavailable(t, err, c.endpoints[0].host)
		wantNoSecret(t, endpoint[:5], everyText(err)+log.String())
	}
}

func TestScrubKeepsWordsAndDropsSecrets(t *testing.T) {
	u, err := url.Parse("https://a-user:p%40ss@host/v3/0123456789abcdef?key=k-value")
	if err != nil {
		t.Fatal(err)
	}
	e := &endpoint{secrets: secretsIn(u)}
	for text, want := range map[string]string{
		"header not found":                   "header not found",
		"project 0123456789abcdef is paused": "project [redacted] is paused",
		"p@ss p%40ss k-value a-user":         "[redacted] [redacted] [redacted] [redacted]",
		"see https://help.example/x now":     "see [redacted] now",
		"two\nlines\x1b[31m":                 "two lines [31m",
	} {
		if got := e.scrub(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	if got := e.scrub(strings.Repeat("long ", 1000)); len(got) > 256 {
		t.Errorf("%d bytes are left", len(got))
	}
}

// ours reports the goroutines that a client started, directly or in go-ethereum and net/http.
func ours() string {
	all := make([]byte, 1<<20)
	all = all[:runtime.Stack(all, true)]
	var found []string
	for one := range strings.SplitSeq(string(all), "\n\n") {
		one, _, _ = strings.Cut(one, "\ncreated by ") // a goroutine on its way out is in no function of ours
		for _, mark := range []string{"chain.(*Client)", "rpc.(*Client)", "rpc.(*websocketCodec)", "rpc.(*ClientSubscription)", "http.(*persistConn)"} {
			if strings.Contains(one, mark) && !strings.Contains(one, "testing.tRunner") {
				found = append(found, one)
				break
			}
		}
	}
	return strings.Join(found, "\n\n")
}

func TestCloseLeavesNoGoroutine(t *testing.T) {
	good, silent, pushing, broken := newFakeNode(t), newFakeNode(t), newFakeNode(t), newFakeNode(t)
	broken.setFault(fault{status: 500})
	c := newClient(t, nil, silent.http(), good.http(), pushing.ws(), broken.http(), "http://127.0.0.1:1", "ws://127.0.0.1:1")
	if err := c.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	for i, want := range []state{stateUp, stateUp, stateUp, stateDown, stateDown, stateDown} {
		awaitState(t, c, i, want)
	}
	good.result("eth_getTransactionCount", "0x7")
	silent.setFault(fault{hang: make(chan struct{})})

	// Leave something under way of every kind.
	waiting := make(chan error, 2)
	go func() {
		_, err := c.WaitHead(context.Background(), good.blocks[0].hash)
		waiting <- err
	}()
	good.setFault(fault{only: "eth_estimateGas", hang: make(chan struct{})})
	pushing.setFault(fault{hang: make(chan struct{})})
	go func() {
		_, err := c.EstimateGas(context.Background(), toCall())
		waiting <- err
	}()
	await(t, c, "the estimate", func() bool { return len(silent.asked()) > 0 })
	if err := c.Broadcast(testContext(t), rawTx); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for range 2 {
		wantUnavailable(t, <-waiting, "")
	}
	if left := ours(); strings.Contains(left, "chain.(*Client)") {
		t.Errorf("still running when Close returned:\n%s", left)
	}
	// net/http lets go of its connections just after it is told to.
	for deadline := time.Now().Add(10 * time.Second); ours() != ""; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("still running:\n%s", ours())
		}
	}
}

func TestTheStartContextEndsTheClient(t *testing.T) {
	node := newFakeNode(t)
	c := newClient(t, nil, node.http())
	ctx, cancel := context.WithCancel(context.Background())
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	awaitState(t, c, 0, stateUp)
	cancel()
	<-c.life.Done()
	_, err := c.NonceAt(testContext(t), common.Address{})
	wantUnavailable(t, err, "closed")
	if !errors.Is(err, errClosed) {
		t.Errorf("got %v", err)
	}
}

func TestManyCallersAtOnce(t *testing.T) {
	a, b := newFakeNode(t), newFakeNode(t)
	for _, node := range []*fakeNode{a, b} {
		node.result("eth_getTransactionCount", "0x7")
		node.result("eth_getBalance", "0x8")
		node.result("eth_maxPriorityFeePerGas", "0x9")
	}
	c := startClient(t, nil, a.http(), b.ws())
	var callers sync.WaitGroup
	for i := range 32 {
		callers.Go(func() {
			ctx := testContext(t)
			for round := range 20 {
				nonce, balance := &Nonce{}, &Balance{}
				if err := c.Ask(ctx, nonce, balance); err != nil || nonce.Nonce != 7 || balance.Wei.Int64() != 8 {
					t.Errorf("caller %d: %v, %+v %+v", i, err, nonce, balance)
				}
				if err := c.Broadcast(ctx, []byte{byte(i), byte(round)}); err != nil {
					t.Errorf("caller %d: %v", i, err)
				}
				if tip, err := c.TipCap(ctx); err != nil || tip.Int64() != 9 {
					t.Errorf("caller %d: tip %v, %v", i, tip, err)
				}
				if i == 0 {
					a.mine(1, 0)
					b.mine(1, 0)
				}
				if i == 1 && round%5 == 0 {
					b.closeSockets()
				}
			}
		})
	}
	callers.Wait()
}

func BenchmarkAskFourReads(b *testing.B) {
	t := &testing.T{}
	node := newFakeNode(t)
	for _, method := range []string{"eth_call", "eth_getCode"} {
		node.result(method, "0x01")
	}
	node.result("eth_getBalance", "0x8")
	node.result("eth_getTransactionCount", "0x7")
	c, err := New(Config{ChainID: testChain, Endpoints: []string{node.http()}, PollInterval: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	defer node.server.Close()
	if err := c.Start(context.Background()); err != nil {
		b.Fatal(err)
	}
	if _, err := c.WaitHead(context.Background(), common.Hash{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := c.Ask(context.Background(), &Call{Msg: toCall()}, &Code{}, &Balance{}, &Nonce{}); err != nil {
			b.Fatal(err)
		}
	}
}
