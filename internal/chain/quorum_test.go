package chain

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
)

var paidTx = common.HexToHash("0xabc1")

// receiptIn is the receipt of paidTx as a node shows it.
func receiptIn(block common.Hash, status string) map[string]any {
	return map[string]any{
		"transactionHash": paidTx, "transactionIndex": "0x0", "blockHash": block, "blockNumber": "0x7", "status": status,
		"cumulativeGasUsed": "0x5208", "gasUsed": "0x5208", "logsBloom": "0x" + strings.Repeat("0", 512), "type": "0x2",
		"logs": []map[string]any{{
			"address": common.HexToAddress("0xaa"), "topics": []common.Hash{paidTx}, "data": "0x01", "blockNumber": "0x7", "blockHash": block,
			"transactionHash": paidTx, "transactionIndex": "0x0", "logIndex": "0x0", "removed": false,
		}},
	}
}

func TestAQuorumIsNotFooledByOneNode(t *testing.T) {
	const receipt = "eth_getTransactionReceipt"
	here, elsewhere := blockHash(7, 0), blockHash(7, 1)
	for name, c := range map[string]struct {
		answers []any // of three nodes; nil for one that knows no receipt
		faults  []int // which fail
		block   common.Hash
		none    bool // they agree that there is no receipt
	}{
		"all agree":                    {answers: []any{receiptIn(here, "0x1"), receiptIn(here, "0x1"), receiptIn(here, "0x1")}, block: here},
		"one lies about the block":     {answers: []any{receiptIn(elsewhere, "0x1"), receiptIn(here, "0x1"), receiptIn(here, "0x1")}, block: here},
		"one lies about the status":    {answers: []any{receiptIn(here, "0x1"), receiptIn(here, "0x0"), receiptIn(here, "0x1")}, block: here},
		"one invents a payment":        {answers: []any{receiptIn(here, "0x1"), nil, nil}, none: true},
		"one hides a payment":          {answers: []any{nil, receiptIn(here, "0x1"), receiptIn(here, "0x1")}, block: here},
		"one is down":                  {answers: []any{nil, receiptIn(here, "0x1"), receiptIn(here, "0x1")}, faults: []int{0}, block: here},
		"two are down":                 {answers: []any{receiptIn(here, "0x1"), nil, nil}, faults: []int{1, 2}},
		"each says something else":     {answers: []any{receiptIn(here, "0x1"), receiptIn(elsewhere, "0x1"), nil}},
		"one lies and another is down": {answers: []any{receiptIn(elsewhere, "0x1"), receiptIn(here, "0x1"), nil}, faults: []int{2}},
	} {
		t.Run(name, func(t *testing.T) {
			var nodes []*fakeNode
			var urls []string
			for _, a := range c.answers {
				n := newFakeNode(t)
				n.result(receipt, a)
				nodes, urls = append(nodes, n), append(urls, n.http())
			}
			client := startClient(t, calm, urls...)
			for i := range nodes {
				awaitState(t, client, i, stateUp)
			}
			for _, i := range c.faults {
				nodes[i].setFault(fault{only: receipt, status: 503})
			}
			got, err := client.Witness(testContext(t), paidTx, 2)
			switch {
			case c.block != (common.Hash{}):
				if err != nil || got == nil || got.BlockHash != c.block || got.Status != 1 {
					t.Errorf("got %+v, %v", got, err)
				}
			case c.none:
				if err != nil || got != nil {
					t.Errorf("got %+v, %v, want none", got, err)
				}
			default:
				if _, ok := errors.AsType[*UnavailableError](err); !ok || got != nil {
					t.Errorf("got %+v, %v, want no answer", got, err)
				}
			}
		})
	}
}

func TestNodesOfDifferentMakesAgreeOnAReceipt(t *testing.T) {
	older, newer := newFakeNode(t), newFakeNode(t)
	timed := receiptIn(blockHash(7, 0), "0x1")
	timed["logs"].([]map[string]any)[0]["blockTimestamp"] = "0x65000000"
	older.result("eth_getTransactionReceipt", receiptIn(blockHash(7, 0), "0x1"))
	newer.result("eth_getTransactionReceipt", timed)
	c := startClient(t, calm, older.http(), newer.http())
	for i := range 2 {
		awaitState(t, c, i, stateUp)
	}
	if r, err := c.Witness(testContext(t), paidTx, 2); err != nil || r == nil {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestAChainHasReachedWhatAQuorumSays(t *testing.T) {
	from := func(least uint64) func(Head) bool { return func(h Head) bool { return h.Number >= least } }
	decades := func(h Head) bool { return h.Time > 2_000_000_000 }
	for name, c := range map[string]struct {
		final  [3]int // of each node; 0 for one that knows no final block
		enough func(Head) bool
		want   []uint64 // the blocks that may be returned; none for no answer
	}{
		"all are there":             {[3]int{6, 6, 6}, from(5), []uint64{6}},
		"one is behind":             {[3]int{2, 6, 6}, from(5), []uint64{6}},
		"one is ahead":              {[3]int{9, 5, 6}, from(5), []uint64{5, 6}},
		"one alone is there":        {[3]int{9, 5, 6}, from(7), nil},
		"one alone knows the tag":   {[3]int{9, 0, 0}, from(5), nil},
		"one makes up time":         {[3]int{-9, 6, 6}, decades, nil},
		"one makes up a block":      {[3]int{-9, 9, 0}, from(9), []uint64{9}},
		"one makes up a high block": {[3]int{-12, 9, 9}, from(10), nil},
	} {
		t.Run(name, func(t *testing.T) {
			var urls []string
			for _, final := range c.final {
				n := newFakeNode(t)
				n.mine(10, 0)
				switch {
				case final > 0:
					n.tags["finalized"] = final
				case final < 0:
					lie := fakeBlock{uint64(-final), blockHash(uint64(-final), 1), blockHash(0, 0), 3_000_000_000}
					n.result("eth_getBlockByNumber", lie.json())
				}
				urls = append(urls, n.http())
			}
			client := startClient(t, calm, urls...)
			for i := range urls {
				awaitState(t, client, i, stateUp)
			}
			got, err := client.Reached(testContext(t), 2, Finalized, c.enough)
			if _, ok := errors.AsType[*UnavailableError](err); len(c.want) == 0 && ok {
				return
			}
			if err != nil || !slices.Contains(c.want, got.Number) || got.Hash != blockHash(got.Number, 0) {
				t.Errorf("got block %d %s, %v, want one of %d", got.Number, got.Hash, err, c.want)
			}
		})
	}
}

func TestAQuorumAboutANonceComparesNumbers(t *testing.T) {
	liar, a, b := newFakeNode(t), newFakeNode(t), newFakeNode(t)
	liar.result("eth_getTransactionCount", "0x9")
	a.result("eth_getTransactionCount", "0x4")
	b.result("eth_getTransactionCount", "0x4")
	c := startClient(t, calm, liar.http(), a.http(), b.http())
	for i := range 3 {
		awaitState(t, c, i, stateUp)
	}
	n := &Nonce{}
	if err := c.AgreeAt(testContext(t), 2, blockHash(1, 0), n); err != nil || n.Err != nil || n.Nonce != 4 {
		t.Errorf("nonce %d, %v, %v", n.Nonce, err, n.Err)
	}
	b.result("eth_getTransactionCount", "0x5")
	if err := c.AgreeAt(testContext(t), 2, blockHash(1, 0), n); err == nil || n.Err == nil || n.Nonce != 0 {
		t.Errorf("nonce %d, %v, %v, and no two agree", n.Nonce, err, n.Err)
	}
}

func TestAQuorumNeedsAsManyNodes(t *testing.T) {
	n := newFakeNode(t)
	n.result("eth_getTransactionReceipt", receiptIn(blockHash(7, 0), "0x1"))
	c := startClient(t, calm, n.http())
	awaitState(t, c, 0, stateUp)
	if _, err := c.Witness(testContext(t), paidTx, 2); err == nil || !strings.Contains(err.Error(), "a quorum of 2 nodes is asked for, 1 can be asked") {
		t.Errorf("error %v", err)
	}
	if r, err := c.Witness(testContext(t), paidTx, 1); err != nil || r == nil {
		t.Errorf("a quorum of one: %v, %v", r, err)
	}
	if _, err := c.Witness(testContext(t), paidTx, 0); err == nil {
		t.Error("a quorum of none")
	}
}

func TestAQuorumAboutACallComparesOutputs(t *testing.T) {
	liar, a, b := newFakeNode(t), newFakeNode(t), newFakeNode(t)
	liar.result("eth_call", "0x01")
	a.result("eth_call", "0x00")
	b.result("eth_call", "0x00")
	c := startClient(t, calm, liar.http(), a.http(), b.http())
	for i := range 3 {
		awaitState(t, c, i, stateUp)
	}
	to := common.HexToAddress("0xaa")
	call := &Call{Msg: ethereum.CallMsg{To: &to}}
	if err := c.AgreeAt(testContext(t), 2, blockHash(1, 0), call); err != nil || call.Err != nil || len(call.Output) != 1 || call.Output[0] != 0 {
		t.Errorf("output %x, %v, %v", call.Output, err, call.Err)
	}
	b.failing("eth_call", fakeError{Code: 3, Message: "execution reverted", Data: "0x"})
	a.failing("eth_call", fakeError{Code: 3, Message: "execution reverted", Data: "0x"})
	err := c.AgreeAt(testContext(t), 2, blockHash(1, 0), call)
	if _, ok := errors.AsType[*RevertError](call.Err); err != nil || !ok {
		t.Errorf("two nodes say that it fails: %v, %v", err, call.Err)
	}
}

func TestANodeAtItsRateIsSparedWhileAnotherIsFree(t *testing.T) {
	first, second := newFakeNode(t), newFakeNode(t)
	for _, n := range []*fakeNode{first, second} {
		n.result("eth_getTransactionCount", "0x7")
	}
	c := startClient(t, func(cfg *Config) { calm(cfg); cfg.Rate = 5 }, first.http(), second.http())
	awaitState(t, c, 0, stateUp)
	awaitState(t, c, 1, stateUp)
	for range 10 {
		if n, err := c.NonceAt(testContext(t), common.Address{}); n != 7 || err != nil {
			t.Fatalf("nonce %d, %v", n, err)
		}
	}
	// Five at once go to each; what the clock allows beyond that is little.
	if a, b := len(first.asked()), len(second.asked()); a+b != 10 || a < 5 || b == 0 {
		t.Errorf("the first node was asked %d times, the second %d times", a, b)
	}
}

func TestANodeThatIsAskedTooOftenIsSparedForLonger(t *testing.T) {
	busy, free := newFakeNode(t), newFakeNode(t)
	free.result("eth_getTransactionCount", "0x7")
	now := time.Now()
	c := startClient(t, func(cfg *Config) { calm(cfg); cfg.Now = func() time.Time { return now } }, busy.http(), free.http())
	awaitState(t, c, 0, stateUp)
	awaitState(t, c, 1, stateUp)
	busy.setFault(fault{only: "eth_getTransactionCount", status: 429})
	if _, err := c.NonceAt(testContext(t), common.Address{}); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if got := c.endpoints[0].coolUntil; !got.Equal(now.Add(coolDownBusy)) {
		t.Errorf("it is spared until %s, want %s", got, now.Add(coolDownBusy))
	}
}
