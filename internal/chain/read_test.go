package chain

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// calm makes polls an hour apart, so that they play no part after the first.
func calm(cfg *Config) { cfg.PollInterval = time.Hour }

func TestReadsFailOverOnEveryFault(t *testing.T) {
	const method = "eth_getTransactionCount"
	for name, f := range map[string]fault{
		"hang":     {only: method, hang: make(chan struct{})},
		"drop":     {only: method, drop: true},
		"5xx":      {only: method, status: 503},
		"429":      {only: method, status: 429},
		"redirect": {only: method, status: 307},
		"garbage":  {only: method, garbage: "<html>welcome</html>"},
		"empty":    {only: method, garbage: "{}"},
		"nonsense": {only: method, garbage: `{"jsonrpc":"2.0","id":1,"result":"seven"}`},
		"null":     {only: method, garbage: `{"jsonrpc":"2.0","id":1,"result":null}`},
	} {
		t.Run(name, func(t *testing.T) {
			bad, good := newFakeNode(t), newFakeNode(t)
			good.result(method, "0x7")
			c := startClient(t, calm, bad.http(), good.http())
			bad.setFault(f)
			n, err := c.NonceAt(testContext(t), common.Address{})
			if n != 7 || err != nil {
				t.Fatalf("nonce %d, %v", n, err)
			}
			once := 1
			if f.drop {
				once = 2 // net/http takes the drop for a kept connection that had died, and tries a fresh one
			}
			if len(bad.asked()) != once || len(good.asked()) != 1 || c.Calls() != 2 {
				t.Errorf("asked %v and %v in %d calls", bad.asked(), good.asked(), c.Calls())
			}
		})
	}
}

func TestANodeErrorFailsOverWithoutBlame(t *testing.T) {
	limited, good := newFakeNode(t), newFakeNode(t)
	limited.failing("eth_getTransactionCount", fakeError{Code: -32005, Message: "limit exceeded"})
	good.result("eth_getTransactionCount", "0x7")
	c := startClient(t, calm, limited.http(), good.http())
	for range 2 {
		if n, err := c.NonceAt(testContext(t), common.Address{}); n != 7 || err != nil {
			t.Fatalf("nonce %d, %v", n, err)
		}
	}
	if got := len(limited.asked()); got != 2 {
		t.Errorf("the limited node was asked %d times, want 2: a payer may have caused its error", got)
	}
}

func TestAFailedEndpointIsAskedLastUntilItHasCooledDown(t *testing.T) {
	bad, good := newFakeNode(t), newFakeNode(t)
	for _, node := range []*fakeNode{bad, good} {
		node.result("eth_getTransactionCount", "0x7")
	}
	var mu sync.Mutex
	now := time.Now()
	c := startClient(t, func(cfg *Config) {
		calm(cfg)
		cfg.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	}, bad.http(), good.http())
	ask := func() {
		t.Helper()
		if n, err := c.NonceAt(testContext(t), common.Address{}); n != 7 || err != nil {
			t.Fatalf("nonce %d, %v", n, err)
		}
	}
	bad.setFault(fault{status: 500})
	ask()
	bad.setFault()
	ask()
	ask()
	if got := len(bad.asked()); got != 1 {
		t.Errorf("asked %d times while it cooled down, want 1", got)
	}

	good.setFault(fault{status: 500})
	ask() // cooling down is an order, not a refusal
	good.setFault()
	mu.Lock()
	now = now.Add(2 * coolDown)
	mu.Unlock()
	ask()
	if got := len(bad.asked()); got != 3 {
		t.Errorf("asked %d times in all, want 3", got)
	}
}

func TestASilentEndpointCostsAQuarterOfTheTimeout(t *testing.T) {
	silent, good := newFakeNode(t), newFakeNode(t)
	good.result("eth_getTransactionCount", "0x7")
	c := startClient(t, func(cfg *Config) { calm(cfg); cfg.CallTimeout = 4 * time.Second }, silent.http(), good.http())
	silent.setFault(fault{hang: make(chan struct{})})
	began := time.Now()
	n, err := c.NonceAt(testContext(t), common.Address{})
	if n != 7 || err != nil {
		t.Fatalf("nonce %d, %v", n, err)
	}
	if took := time.Since(began); took < time.Second || took > 2*time.Second {
		t.Errorf("took %s, want a little over 1s", took)
	}
}

func TestAnEndpointThatStaysSilentIsNoLongerAskedFirst(t *testing.T) {
	silent, good := newFakeNode(t), newFakeNode(t)
	good.result("eth_getTransactionCount", "0x7")
	c := startClient(t, func(cfg *Config) { cfg.CallTimeout = 100 * time.Millisecond }, silent.http(), good.http())
	silent.setFault(fault{hang: make(chan struct{})})
	awaitState(t, c, 0, stateDown)
	asked := len(silent.asked())
	if n, err := c.NonceAt(testContext(t), common.Address{}); n != 7 || err != nil {
		t.Fatalf("nonce %d, %v", n, err)
	}
	if len(silent.asked()) != asked {
		t.Error("an endpoint that is down was asked")
	}
	silent.setFault()
	awaitState(t, c, 0, stateUp)
}

func TestATimeoutIsUnavailableAndBounded(t *testing.T) {
	node := newFakeNode(t)
	c := startClient(t, func(cfg *Config) { calm(cfg); cfg.CallTimeout = 100 * time.Millisecond }, node.http())
	node.setFault(fault{hang: make(chan struct{})})
	_, err := c.NonceAt(context.Background(), common.Address{})
	wantUnavailable(t, err, "no answer in time")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not a deadline", err)
	}
}

func TestTheCallersDeadlineIsNotTheEndpointsFault(t *testing.T) {
	node := newFakeNode(t)
	c := startClient(t, calm, node.http())
	node.setFault(fault{hang: make(chan struct{})})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := c.NonceAt(ctx, common.Address{})
	wantUnavailable(t, err, "deadline")
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.endpoints[0].coolUntil.IsZero() {
		t.Error("the endpoint was blamed")
	}
}

func TestAnAnswerWithoutEndIsCutOff(t *testing.T) {
	node := newFakeNode(t)
	c := startClient(t, func(cfg *Config) { calm(cfg); cfg.CallTimeout = time.Minute }, node.http())
	node.setFault(fault{garbage: `{"jsonrpc":"2.0","id":1,"result":"0x` + strings.Repeat("00", maxAnswer/2) + `"}`})
	_, err := c.EstimateGas(testContext(t), toCall())
	wantUnavailable(t, err, "answer of more than")
}

func TestARedirectIsNotFollowed(t *testing.T) {
	node, elsewhere := newFakeNode(t), newFakeNode(t)
	c := startClient(t, calm, node.secretURL("http"))
	node.setFault(fault{status: http.StatusTemporaryRedirect, location: elsewhere.http()})
	_, err := c.NonceAt(testContext(t), common.Address{})
	wantUnavailable(t, err, "HTTP status 307")
	if len(elsewhere.asked()) != 0 {
		t.Errorf("the request went on to a host nobody configured: %v", elsewhere.asked())
	}
}

func TestConnectionsAreKept(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_getTransactionCount", "0x7")
	c := startClient(t, calm, node.http())
	for range 50 {
		if _, err := c.NonceAt(testContext(t), common.Address{}); err != nil {
			t.Fatal(err)
		}
	}
	node.mu.Lock()
	defer node.mu.Unlock()
	if len(node.conns) != 1 {
		t.Errorf("50 requests in a row used %d connections", len(node.conns))
	}
	if key, sent := node.header["X-Idempotency-Key"]; sent {
		t.Errorf("an idempotency key %q was sent", key)
	}
}

func TestAKeptConnectionThatTheNodeClosedGoesUnnoticed(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_getTransactionCount", "0x7")
	c := startClient(t, calm, node.http())
	for range 20 {
		node.server.CloseClientConnections()
		if n, err := c.NonceAt(testContext(t), common.Address{}); n != 7 || err != nil {
			t.Fatalf("nonce %d, %v", n, err)
		}
	}
}

func TestAReadRightAfterStartWaitsForTheFirstLook(t *testing.T) {
	for _, scheme := range []string{"http", "ws"} {
		t.Run(scheme, func(t *testing.T) {
			node := newFakeNode(t)
			node.result("eth_getTransactionCount", "0x7")
			c := newClient(t, nil, scheme+"://"+node.host())
			if err := c.Start(context.Background()); err != nil {
				t.Fatal(err)
			}
			await(t, c, "the watcher", func() bool { return c.endpoints[0].state != "" })
			if n, err := c.NonceAt(testContext(t), common.Address{}); n != 7 || err != nil {
				t.Errorf("nonce %d, %v", n, err)
			}
		})
	}
}

func TestNothingIsAskedBeforeStartOrAfterClose(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_getTransactionCount", "0x7")
	c := newClient(t, nil, node.http())
	_, err := c.NonceAt(testContext(t), common.Address{})
	wantUnavailable(t, err, "not started")
	if err := c.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	awaitState(t, c, 0, stateUp)
	c.Close()
	c.Close()
	_, err = c.NonceAt(testContext(t), common.Address{})
	wantUnavailable(t, err, "closed")
	_, err = c.Head()
	wantUnavailable(t, err, "closed")
	_, err = c.WaitHead(testContext(t), common.Hash{1})
	wantUnavailable(t, err, "closed")
	var ambiguous *AmbiguousError
	if err := c.Broadcast(testContext(t), []byte{1}); !errors.As(err, &ambiguous) {
		t.Errorf("broadcast after close: %v", err)
	}
	if len(node.asked()) != 0 {
		t.Errorf("asked %v", node.asked())
	}
}

func TestEstimatesAndTips(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_estimateGas", "0x5208")
	node.result("eth_maxPriorityFeePerGas", "0x64")
	c := startClient(t, nil, node.http())
	ctx := testContext(t)
	if gas, err := c.EstimateGas(ctx, toCall()); gas != 21000 || err != nil {
		t.Errorf("gas %d, %v", gas, err)
	}
	node.failing("eth_estimateGas", fakeError{Code: 3, Message: "execution reverted"})
	var reverted *RevertError
	if _, err := c.EstimateGas(ctx, toCall()); !errors.As(err, &reverted) {
		t.Errorf("a failing estimate gives %v", err)
	}

	first := awaitHead(t, c, node.mine(1, 0))
	before := c.Calls()
	for range 5 {
		tip, err := c.TipCap(ctx)
		if err != nil || tip.Int64() != 100 {
			t.Fatalf("tip %v, %v", tip, err)
		}
		tip.SetInt64(1) // the caller's own
	}
	if got := c.Calls() - before; got != 1 {
		t.Errorf("five tips at one head took %d calls", got)
	}
	node.result("eth_maxPriorityFeePerGas", "0x65")
	node.mine(1, 0)
	if _, err := c.WaitHead(ctx, first.Hash); err != nil {
		t.Fatal(err)
	}
	if tip, err := c.TipCap(ctx); err != nil || tip.Int64() != 101 {
		t.Errorf("tip at the next head %v, %v", tip, err)
	}
}

// Where the tip was asked for at one head it is asked for at the next, but no
// further until somebody uses it, and a failure of that is nobody's.
func TestTheNextTipIsAskedForAhead(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_maxPriorityFeePerGas", "0x64")
	c := startClient(t, nil, node.http())
	ctx := testContext(t)
	awaitHead(t, c, node.mine(1, 0))
	if _, err := c.TipCap(ctx); err != nil {
		t.Fatal(err)
	}
	awaitCalls := func(want uint64) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); c.Calls() != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d calls, want %d", c.Calls(), want)
			}
		}
	}
	before := c.Calls()
	awaitHead(t, c, node.mine(1, 0))
	awaitCalls(before + 1)
	for range 3 {
		awaitHead(t, c, node.mine(1, 0))
	}
	if got := c.Calls() - before; got != 1 {
		t.Errorf("%d calls for tips that nobody uses", got)
	}
	if _, err := c.TipCap(ctx); err != nil || c.Calls() != before+2 {
		t.Errorf("after %d calls: %v", c.Calls()-before, err)
	}
	node.failing("eth_maxPriorityFeePerGas", fakeError{Code: -32000, Message: "busy"})
	awaitHead(t, c, node.mine(1, 0))
	awaitCalls(before + 3)
	node.result("eth_maxPriorityFeePerGas", "0x65")
	if tip, err := c.TipCap(ctx); err != nil || tip.Int64() != 101 {
		t.Errorf("after a failure nobody has asked for: %v, %v", tip, err)
	}
}

func receiptJSON(hash common.Hash) map[string]any {
	return map[string]any{
		"transactionHash": hash, "blockHash": blockHash(5, 0), "blockNumber": "0x5", "transactionIndex": "0x0",
		"status": "0x1", "cumulativeGasUsed": "0x5208", "gasUsed": "0x5208", "type": "0x2", "logs": []any{},
		"logsBloom": "0x" + strings.Repeat("00", 256), "effectiveGasPrice": "0x1",
	}
}

func TestReceipts(t *testing.T) {
	node := newFakeNode(t)
	c := startClient(t, calm, node.http())
	hash := common.Hash{1}
	ctx := testContext(t)

	node.result("eth_getTransactionReceipt", receiptJSON(hash))
	receipt, err := c.Receipt(ctx, hash)
	if err != nil || receipt == nil || receipt.Status != 1 || receipt.BlockNumber.Int64() != 5 {
		t.Fatalf("receipt %+v, %v", receipt, err)
	}

	node.result("eth_getTransactionReceipt", nil)
	if receipt, err := c.Receipt(ctx, hash); receipt != nil || err != nil {
		t.Errorf("unknown transaction: %+v, %v", receipt, err)
	}

	pending := receiptJSON(hash)
	pending["blockHash"], pending["blockNumber"] = nil, nil
	node.result("eth_getTransactionReceipt", pending)
	if receipt, err := c.Receipt(ctx, hash); receipt != nil || err != nil {
		t.Errorf("pending transaction: %+v, %v", receipt, err)
	}

	silent := receiptJSON(hash)
	delete(silent, "status")
	node.result("eth_getTransactionReceipt", silent)
	_, err = c.Receipt(ctx, hash)
	wantUnavailable(t, err, "without a status")

	node.result("eth_getTransactionReceipt", receiptJSON(common.Hash{2}))
	_, err = c.Receipt(ctx, hash)
	wantUnavailable(t, err, "another transaction")

	node.failing("eth_getTransactionReceipt", fakeError{Code: -32000, Message: "transaction indexing is in progress"})
	_, err = c.Receipt(ctx, hash)
	wantUnavailable(t, err, "indexing")
	var refused *NodeError
	if !errors.As(err, &refused) || refused.Code != -32000 {
		t.Errorf("%v does not carry the node's error", err)
	}
}

func params[T any](t *testing.T, raw json.RawMessage) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return v
}

func FuzzAnswers(f *testing.F) {
	hash := common.Hash{1}
	for _, seed := range []any{receiptJSON(hash), []any{logJSON(5)}, fakeBlock{number: 1, hash: hash}.json(), nil, "0x", map[string]any{"status": "0x7"}} {
		raw, err := json.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if head, err := decodeHead(raw, time.Time{}); err == nil && head.Hash == (common.Hash{}) {
			t.Fatal("a head without a hash was taken")
		}
		if receipt, err := decodeReceipt(raw, hash); err == nil && receipt != nil && (receipt.TxHash != hash || receipt.Status > 1) {
			t.Fatalf("a receipt of %s with status %d was taken", receipt.TxHash, receipt.Status)
		}
		q := between(1, 9)
		logs, err := takeLogs(answer{result: raw}, q)
		for _, l := range logs {
			if err != nil || l.Address != token || l.BlockNumber > 9 || len(l.Topics) < 2 || l.Topics[0] != transfer {
				t.Fatalf("log %+v was taken, %v", l, err)
			}
		}
		for _, r := range []Request{&Call{}, &Code{}, &Balance{}, &Nonce{}} {
			if err := takeAll([]query{r.query(latest)}, []Request{r}, []answer{{result: raw}}); err != nil && strings.Contains(err.Error(), "\n") {
				t.Fatalf("%q is not one line", err)
			}
		}
	})
}
