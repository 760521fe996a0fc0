package chain

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

var rawTx = []byte{2, 0xf8, 1, 2, 3}

func wantAmbiguous(t *testing.T, err error, part string) {
	t.Helper()
	if _, ok := errors.AsType[*AmbiguousError](err); !ok {
		t.Fatalf("got %v, want an AmbiguousError", err)
	}
	if !strings.Contains(err.Error(), part) {
		t.Errorf("error %q does not say %q", err, part)
	}
}

func wantRejected(t *testing.T, err error, kind Kind) {
	t.Helper()
	var rejected *RejectedError
	if !errors.As(err, &rejected) {
		t.Fatalf("got %v, want a RejectedError", err)
	}
	if rejected.Kind != kind {
		t.Errorf("kind %q, want %q", rejected.Kind, kind)
	}
}

func TestBroadcastReachesEveryEndpoint(t *testing.T) {
	a, b, s := newFakeNode(t), newFakeNode(t), newFakeNode(t)
	c := startClient(t, calm, a.http(), b.http(), s.ws())
	if err := c.Broadcast(testContext(t), rawTx); err != nil {
		t.Fatal(err)
	}
	for _, node := range []*fakeNode{a, b, s} {
		await(t, c, "the bytes at every endpoint", func() bool { return len(node.asked()) == 1 })
		last := node.lastExchange()[0]
		if last.Method != "eth_sendRawTransaction" || string(last.Params[0]) != `"0x02f8010203"` {
			t.Errorf("got %s %s", last.Method, last.Params)
		}
	}
}

func TestOneAcceptanceIsEnough(t *testing.T) {
	for name, refusal := range map[string]fakeError{
		"beside a refusal":  {Code: -32000, Message: "nonce too low"},
		"beside an unknown": {Code: -32000, Message: "whatever"},
	} {
		t.Run(name, func(t *testing.T) {
			refusing, taking := newFakeNode(t), newFakeNode(t)
			refusing.failing("eth_sendRawTransaction", refusal)
			c := startClient(t, calm, refusing.http(), taking.http())
			if err := c.Broadcast(testContext(t), rawTx); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestASilentEndpointDoesNotDelayAnAcceptance(t *testing.T) {
	silent, taking := newFakeNode(t), newFakeNode(t)
	c := startClient(t, func(cfg *Config) { calm(cfg); cfg.CallTimeout = time.Minute }, silent.http(), taking.http())
	silent.setFault(fault{hang: make(chan struct{})})
	if err := c.Broadcast(testContext(t), rawTx); err != nil {
		t.Error(err)
	}
}

func TestARefusalBesideASilentEndpointIsAmbiguous(t *testing.T) {
	refusing, silent := newFakeNode(t), newFakeNode(t)
	refusing.failing("eth_sendRawTransaction", fakeError{Code: -32000, Message: "transaction underpriced"})
	c := startClient(t, func(cfg *Config) { calm(cfg); cfg.CallTimeout = 100 * time.Millisecond }, refusing.http(), silent.http())
	silent.setFault(fault{hang: make(chan struct{})})
	wantAmbiguous(t, c.Broadcast(testContext(t), rawTx), silent.host())
}

func TestARefusalBesideAnEndpointThatIsNotThereIsARefusal(t *testing.T) {
	refusing, gone := newFakeNode(t), newFakeNode(t)
	refusing.failing("eth_sendRawTransaction", fakeError{Code: -32000, Message: "transaction underpriced"})
	c := startClient(t, calm, refusing.http(), gone.http())
	gone.server.Close()
	c.transport.CloseIdleConnections()
	wantRejected(t, c.Broadcast(testContext(t), rawTx), Underpriced)
}

func TestARefusalBesideANodeThatDiedWithTheBytesIsAmbiguous(t *testing.T) {
	refusing, dying := newFakeNode(t), newFakeNode(t)
	refusing.failing("eth_sendRawTransaction", fakeError{Code: -32000, Message: "transaction underpriced"})
	c := startClient(t, calm, refusing.http(), dying.http())
	// It takes the bytes over the connection it has, and no other connection can be made after that.
	dying.setFault(fault{dropLate: true})
	dying.server.Listener.Close()
	wantAmbiguous(t, c.Broadcast(testContext(t), rawTx), dying.host())
	if got := dying.asked(); len(got) != 1 {
		t.Errorf("the dying node was asked %v", got)
	}
}

func TestFaultsOfABroadcastAreAmbiguous(t *testing.T) {
	for name, f := range map[string]fault{
		"hang":                   {hang: make(chan struct{})},
		"drop":                   {drop: true},
		"error after acceptance": {dropLate: true},
		"5xx":                    {status: 503},
		"429":                    {status: 429},
		"garbage":                {garbage: "nonce too low"},
		"another hash":           {garbage: `{"jsonrpc":"2.0","id":1,"result":"` + (common.Hash{9}).Hex() + `"}`},
		"no result":              {garbage: `{"jsonrpc":"2.0","id":1}`},
	} {
		t.Run(name, func(t *testing.T) {
			node := newFakeNode(t)
			c := startClient(t, func(cfg *Config) { calm(cfg); cfg.CallTimeout = 200 * time.Millisecond }, node.http())
			node.setFault(f)
			wantAmbiguous(t, c.Broadcast(testContext(t), rawTx), node.host())
		})
	}
}

func TestABroadcastToNobodyIsAmbiguous(t *testing.T) {
	c := newClient(t, nil, "http://127.0.0.1:1", "ws://127.0.0.1:1")
	wantAmbiguous(t, c.Broadcast(testContext(t), rawTx), "127.0.0.1:1")
}

func TestACancelledBroadcastIsAmbiguousAndGoesOn(t *testing.T) {
	node := newFakeNode(t)
	c := startClient(t, func(cfg *Config) { calm(cfg); cfg.CallTimeout = time.Minute }, node.http())
	node.setFault(fault{hang: make(chan struct{})})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Broadcast(ctx, rawTx) }()
	await(t, c, "the request", func() bool { return len(node.asked()) == 1 })
	cancel()
	wantAmbiguous(t, <-done, "canceled")
	node.setFault()
	await(t, c, "the node's answer", func() bool {
		node.mu.Lock()
		defer node.mu.Unlock()
		return node.answered == 2 // the first look, and the transaction
	})
}

func TestTheMostTellingRefusalIsReported(t *testing.T) {
	pool, spent := newFakeNode(t), newFakeNode(t)
	pool.failing("eth_sendRawTransaction", fakeError{Code: -32000, Message: "replacement transaction underpriced"})
	spent.failing("eth_sendRawTransaction", fakeError{Code: -32000, Message: "nonce too low: next nonce 6, tx nonce 5"})
	for range 5 {
		c := startClient(t, calm, pool.http(), spent.http())
		wantRejected(t, c.Broadcast(testContext(t), rawTx), NonceTooLow)
	}
}

func TestRefusalsAreRecognisedByTheirBeginning(t *testing.T) {
	for _, want := range []struct {
		message string
		verdict verdict
		kind    Kind
	}{
		{"already known", accepted, ""},
		{"AlreadyKnown", accepted, ""},
		{"Known transaction: 0xabc", accepted, ""},
		{"INTERNAL_ERROR: existing tx with same hash", accepted, ""},
		{"nonce too low: next nonce 6, tx nonce 5", rejected, NonceTooLow},
		{"Nonce too low", rejected, NonceTooLow},
		{"err: insufficient funds for gas * price + value: balance 0", rejected, InsufficientFunds},
		{"replacement transaction underpriced", rejected, ReplacementUnderpriced},
		{"transaction underpriced: gas tip cap 0, minimum needed 1", rejected, Underpriced},
		{"transaction gas price below minimum: gas tip cap 0", rejected, Underpriced},
		{"max fee per gas less than block base fee: address 0x1", rejected, FeeCapTooLow},
		{"intrinsic gas too low: gas 1, minimum needed 21000", rejected, IntrinsicGas},
		{"transaction gas limit too high (cap: 16777216, tx: 20000000)", rejected, GasLimit},
		{"exceeds block gas limit", rejected, GasLimit},
		{"invalid sender: invalid chain id for signer: have 1 want 2", rejected, WrongChain},
		{"invalid sender: invalid transaction v, r, s values", rejected, Invalid},
		{"rlp: expected List", rejected, Invalid},
		{"txpool is full", uncertain, ""},
		{"nonce too high", uncertain, ""},
		{"in-flight transaction limit reached for delegated accounts", uncertain, ""},
		{"failed to forward tx to sequencer: nonce too low", uncertain, ""},
		{"upstream timed out; last error: already known", uncertain, ""},
		{"insufficient funds in your provider account, please top up", uncertain, ""},
		{"internal error", uncertain, ""},
		{"", uncertain, ""},
	} {
		if verdict, kind := judge(want.message); verdict != want.verdict || kind != want.kind {
			t.Errorf("%q is %d %q, want %d %q", want.message, verdict, kind, want.verdict, want.kind)
		}
	}
}

func FuzzJudge(f *testing.F) {
	f.Add("nonce too low")
	f.Add("err: err: already known")
	f.Fuzz(func(t *testing.T, message string) {
		verdict, kind := judge(message)
		if (verdict == rejected) != (kind != "") || verdict == unsent {
			t.Fatalf("%q is %d %q", message, verdict, kind)
		}
		if quoted, _ := judge("the gateway says: " + message); quoted != uncertain {
			t.Fatalf("%q inside another text is %d", message, quoted)
		}
	})
}
