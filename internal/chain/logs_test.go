package chain

import (
	"encoding/json"
	"errors"
	"math/big"
	"reflect"
	"testing"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
)

var (
	token    = common.Address{0x70}
	transfer = common.Hash{0xdd}
	payer    = common.Hash{0x01}
)

func logJSON(number uint64) map[string]any {
	return map[string]any{
		"address": token, "topics": []common.Hash{transfer, payer}, "data": "0x", "blockNumber": hexutil.Uint64(number),
		"blockHash": blockHash(number, 0), "transactionHash": common.Hash{byte(number)}, "logIndex": "0x0", "transactionIndex": "0x0",
	}
}

func between(from, to int64) ethereum.FilterQuery {
	q := ethereum.FilterQuery{Addresses: []common.Address{token}, Topics: [][]common.Hash{{transfer}, nil}}
	if from >= 0 {
		q.FromBlock = big.NewInt(from)
	}
	if to >= 0 {
		q.ToBlock = big.NewInt(to)
	}
	return q
}

func TestLogsOfARangeTakeOneRoundTrip(t *testing.T) {
	node := newFakeNode(t)
	block := node.mine(9, 0)
	node.result("eth_getLogs", []any{logJSON(4), logJSON(9)})
	c := startClient(t, calm, node.http())
	awaitHead(t, c, block)
	for name, q := range map[string]ethereum.FilterQuery{"explicit": between(4, 9), "to the head": between(4, -1)} {
		before := c.Calls()
		logs, err := c.Logs(testContext(t), q)
		if err != nil || len(logs) != 2 || logs[1].BlockNumber != 9 {
			t.Fatalf("%s: %d logs, %v", name, len(logs), err)
		}
		if c.Calls() != before+1 {
			t.Errorf("%s: took %d calls", name, c.Calls()-before)
		}
		got := params[map[string]any](t, node.lastExchange()[1].Params[0])
		want := map[string]any{"fromBlock": "0x4", "toBlock": "0x9", "address": []any{token.Hex()}, "topics": []any{[]any{transfer.Hex()}, nil}}
		wantJSON, _ := json.Marshal(want)
		gotJSON, _ := json.Marshal(got)
		if !reflect.DeepEqual(params[any](t, gotJSON), params[any](t, wantJSON)) && common.HexToAddress(got["address"].([]any)[0].(string)) != token {
			t.Errorf("%s: sent %s, want %s", name, gotJSON, wantJSON)
		}
	}
}

func TestLogsAboveTheHeadAreNone(t *testing.T) {
	node := newFakeNode(t)
	block := node.mine(5, 0)
	node.failing("eth_getLogs", fakeError{Code: -32602, Message: "block range extends beyond current head block"})
	c := startClient(t, calm, node.http())
	awaitHead(t, c, block)
	for _, q := range []ethereum.FilterQuery{between(6, -1), between(6, 9), between(4, 3)} {
		if logs, err := c.Logs(testContext(t), q); len(logs) != 0 || err != nil {
			t.Errorf("%s to %s: %v, %v", q.FromBlock, q.ToBlock, logs, err)
		}
	}
	if c.Calls() != 0 {
		t.Errorf("took %d calls", c.Calls())
	}
}

func TestANodeThatHasNotReachedTheEndOfTheRangeIsPassedOver(t *testing.T) {
	late, good := newFakeNode(t), newFakeNode(t)
	late.mine(7, 0)
	block := good.mine(9, 0)
	late.result("eth_getLogs", []any{logJSON(4)})
	good.result("eth_getLogs", []any{logJSON(4), logJSON(9)})
	c := startClient(t, calm, late.http(), good.http())
	awaitHead(t, c, block)
	logs, err := c.Logs(testContext(t), between(1, 9))
	if err != nil || len(logs) != 2 {
		t.Fatalf("%d logs, %v", len(logs), err)
	}
	good.setFault(fault{status: 503})
	_, err = c.Logs(testContext(t), between(1, 9))
	wantUnavailable(t, err, "has reached block 7, not 9")
}

func TestLogsThatWereNotAskedForAreRefused(t *testing.T) {
	node := newFakeNode(t)
	block := node.mine(9, 0)
	c := startClient(t, calm, node.http())
	awaitHead(t, c, block)
	for name, change := range map[string]func(map[string]any){
		"another token":  func(l map[string]any) { l["address"] = common.Address{0x71} },
		"another event":  func(l map[string]any) { l["topics"] = []common.Hash{{0xee}, payer} },
		"too few topics": func(l map[string]any) { l["topics"] = []common.Hash{transfer} },
		"outside":        func(l map[string]any) { l["blockNumber"] = "0x3" },
		"removed":        func(l map[string]any) { l["removed"] = true },
		"no block":       func(l map[string]any) { delete(l, "blockHash") },
	} {
		l := logJSON(5)
		change(l)
		node.result("eth_getLogs", []any{l})
		logs, err := c.Logs(testContext(t), between(4, 9))
		if len(logs) != 0 || err == nil {
			t.Errorf("%s: got %d logs, %v", name, len(logs), err)
		}
	}
}

func TestLogsOfOneBlock(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_getLogs", []any{logJSON(5)})
	c := startClient(t, calm, node.http())
	hash, other := blockHash(5, 0), blockHash(5, 1)
	q := ethereum.FilterQuery{BlockHash: &hash}
	if logs, err := c.Logs(testContext(t), q); err != nil || len(logs) != 1 {
		t.Errorf("%d logs, %v", len(logs), err)
	}
	q.BlockHash = &other
	_, err := c.Logs(testContext(t), q)
	wantUnavailable(t, err, "not asked for")
	q.FromBlock = big.NewInt(1)
	if _, err := c.Logs(testContext(t), q); err == nil {
		t.Error("a block and a range at once were accepted")
	}
}

func TestALimitOnLogsCanBeToldApart(t *testing.T) {
	node := newFakeNode(t)
	block := node.mine(9, 0)
	node.failing("eth_getLogs", fakeError{Code: -32005, Message: "query returned more than 10000 results"})
	c := startClient(t, calm, node.http())
	awaitHead(t, c, block)
	_, err := c.Logs(testContext(t), between(1, 9))
	var refused *NodeError
	if !errors.As(err, &refused) || refused.Code != -32005 {
		t.Errorf("got %v", err)
	}
}
