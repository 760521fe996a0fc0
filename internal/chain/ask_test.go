package chain

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"reflect"
	"testing"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
)

func toCall() ethereum.CallMsg {
	return ethereum.CallMsg{From: common.Address{0xaa}, To: &common.Address{0xbb}, Data: []byte{1, 2}}
}

// errorString is the revert data of require(false, reason).
func errorString(reason string) []byte {
	word := func(n int) []byte { return common.LeftPadBytes(big.NewInt(int64(n)).Bytes(), 32) }
	data := append([]byte{0x08, 0xc3, 0x79, 0xa0}, word(32)...)
	data = append(data, word(len(reason))...)
	return append(data, common.RightPadBytes([]byte(reason), (len(reason)+31)/32*32)...)
}

func TestAskAnswersEverythingInOneRoundTrip(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_call", "0x0102")
	node.result("eth_getCode", "0xef0100")
	node.result("eth_getBalance", "0xde0b6b3a7640000")
	node.result("eth_getTransactionCount", "0x1f")
	c := startClient(t, calm, node.http())
	call, code := &Call{Msg: toCall()}, &Code{Address: common.Address{1}}
	balance, nonce := &Balance{Address: common.Address{2}}, &Nonce{Address: common.Address{3}}
	if err := c.Ask(testContext(t), call, code, balance, nonce); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(call.Output, []byte{1, 2}) || !bytes.Equal(code.Code, []byte{0xef, 1, 0}) ||
		balance.Wei.Cmp(big.NewInt(1e18)) != 0 || nonce.Nonce != 31 {
		t.Errorf("got %x %x %s %d", call.Output, code.Code, balance.Wei, nonce.Nonce)
	}
	for _, err := range []error{call.Err, code.Err, balance.Err, nonce.Err} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []string{"eth_call+eth_getCode+eth_getBalance+eth_getTransactionCount"}
	if got := node.asked(); !reflect.DeepEqual(got, want) || c.Calls() != 1 {
		t.Errorf("asked %v in %d calls", got, c.Calls())
	}
	for _, r := range node.lastExchange() {
		if string(r.Params[1]) != `"latest"` {
			t.Errorf("%s asks about %s", r.Method, r.Params[1])
		}
	}
	if err := c.Ask(testContext(t)); err != nil || c.Calls() != 1 {
		t.Errorf("asking nothing: %v, %d calls", err, c.Calls())
	}
}

func TestCallsCarrySenderAndFees(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_call", "0x")
	c := startClient(t, calm, node.http())
	msg := toCall()
	msg.Gas, msg.GasFeeCap, msg.GasTipCap, msg.Value = 100_000, big.NewInt(2e9), big.NewInt(1e6), big.NewInt(7)
	msg.AccessList = types.AccessList{{Address: common.Address{9}, StorageKeys: []common.Hash{}}}
	if err := c.Ask(testContext(t), &Call{Msg: msg}); err != nil {
		t.Fatal(err)
	}
	got := params[map[string]any](t, node.lastExchange()[0].Params[0])
	want := map[string]any{
		"from": "0xaa00000000000000000000000000000000000000", "to": "0xbb00000000000000000000000000000000000000",
		"input": "0x0102", "value": "0x7", "gas": "0x186a0", "maxFeePerGas": "0x77359400", "maxPriorityFeePerGas": "0xf4240",
		"accessList": []any{map[string]any{"address": "0x0900000000000000000000000000000000000000", "storageKeys": []any{}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("sent %v, want %v", got, want)
	}
}

func TestAskAtNamesACanonicalBlockByItsHash(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_getTransactionCount", "0x1")
	c := startClient(t, calm, node.http())
	if err := c.AskAt(testContext(t), blockHash(3, 0), &Nonce{}); err != nil {
		t.Fatal(err)
	}
	got := params[map[string]any](t, node.lastExchange()[0].Params[1])
	want := map[string]any{"blockHash": blockHash(3, 0).Hex(), "requireCanonical": true}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("sent %v, want %v", got, want)
	}

	node.failing("eth_getTransactionCount", fakeError{Code: -32000, Message: "hash is not currently canonical"})
	nonce := &Nonce{}
	if err := c.AskAt(testContext(t), blockHash(3, 0), nonce); err != nil {
		t.Fatal(err)
	}
	wantUnavailable(t, nonce.Err, "not currently canonical")
}

func TestARevertIsAnAnswer(t *testing.T) {
	bad, reserve := newFakeNode(t), newFakeNode(t)
	data := errorString("FiatTokenV2: invalid signature")
	bad.failing("eth_call", fakeError{3, "execution reverted: FiatTokenV2: invalid signature", "0x" + hex.EncodeToString(data)})
	c := startClient(t, calm, bad.http(), reserve.http())
	call := &Call{Msg: toCall()}
	if err := c.Ask(testContext(t), call); err != nil {
		t.Fatal(err)
	}
	var reverted *RevertError
	if !errors.As(call.Err, &reverted) || reverted.Reason != "FiatTokenV2: invalid signature" || !bytes.Equal(reverted.Data, data) {
		t.Errorf("got %v", call.Err)
	}
	if len(reserve.asked()) != 0 || c.Calls() != 1 {
		t.Errorf("a revert failed over: %v in %d calls", reserve.asked(), c.Calls())
	}
}

func TestAPartlyFailedBatchIsAskedElsewhereAsAWhole(t *testing.T) {
	pruned, full := newFakeNode(t), newFakeNode(t)
	pruned.result("eth_getTransactionCount", "0x1")
	pruned.failing("eth_getBalance", fakeError{Code: -32000, Message: "missing trie node"})
	full.result("eth_getTransactionCount", "0x2")
	full.result("eth_getBalance", "0x3")
	c := startClient(t, calm, pruned.http(), full.http())
	nonce, balance := &Nonce{}, &Balance{}
	if err := c.Ask(testContext(t), nonce, balance); err != nil {
		t.Fatal(err)
	}
	if nonce.Nonce != 2 || balance.Wei.Int64() != 3 || nonce.Err != nil || balance.Err != nil {
		t.Errorf("got %+v %+v: answers of two nodes, or an error left over", nonce, balance)
	}
}

func TestAPartlyFailedBatchTellsEachRequestItsOwn(t *testing.T) {
	node := newFakeNode(t)
	node.result("eth_getTransactionCount", "0x1")
	node.failing("eth_getBalance", fakeError{Code: -32000, Message: "missing trie node"})
	node.failing("eth_call", fakeError{Code: 3, Message: "execution reverted"})
	node.result("eth_getCode", "not hex")
	c := startClient(t, calm, node.http())
	nonce, balance, call, code := &Nonce{}, &Balance{Wei: big.NewInt(9)}, &Call{Msg: toCall()}, &Code{}
	if err := c.Ask(testContext(t), nonce, balance, call, code); err != nil {
		t.Fatal(err)
	}
	if nonce.Nonce != 1 || nonce.Err != nil {
		t.Errorf("nonce %+v", nonce)
	}
	wantUnavailable(t, balance.Err, "missing trie node")
	if balance.Wei != nil {
		t.Errorf("a failed balance still says %s", balance.Wei)
	}
	wantUnavailable(t, code.Err, "malformed")
	if _, ok := errors.AsType[*RevertError](call.Err); !ok {
		t.Errorf("call: %v", call.Err)
	}
}

func TestABatchNobodyAnswersFailsEveryRequest(t *testing.T) {
	node := newFakeNode(t)
	c := startClient(t, calm, node.http())
	node.setFault(fault{status: 502})
	nonce, balance := &Nonce{Nonce: 4}, &Balance{}
	err := c.Ask(testContext(t), nonce, balance)
	wantUnavailable(t, err, "HTTP status 502")
	wantUnavailable(t, nonce.Err, "HTTP status 502")
	wantUnavailable(t, balance.Err, "HTTP status 502")
	if nonce.Nonce != 0 {
		t.Error("a failed request kept an old result")
	}
}

func TestAMissingAnswerInABatchIsNoAnswer(t *testing.T) {
	node := newFakeNode(t)
	c := startClient(t, calm, node.http())
	node.setFault(fault{garbage: `[{"jsonrpc":"2.0","id":999,"result":"0x1"}]`})
	nonce, balance := &Nonce{}, &Balance{}
	if err := c.Ask(testContext(t), nonce, balance); err != nil {
		t.Fatal(err)
	}
	wantUnavailable(t, nonce.Err, "malformed answer")
	wantUnavailable(t, balance.Err, "malformed answer")
}

func TestFailuresOfACallAreToldFromThoseOfANode(t *testing.T) {
	reason := errorString("no")
	encoded := "0x" + hex.EncodeToString(reason)
	panicked := "0x4e487b71" + hex.EncodeToString(common.LeftPadBytes([]byte{0x11}, 32))
	for name, test := range map[string]struct {
		failed fakeError
		reason string
		data   []byte
		node   bool
	}{
		"geth":             {failed: fakeError{3, "execution reverted: no", encoded}, reason: "no", data: reason},
		"no data":          {failed: fakeError{-32000, "execution reverted", nil}},
		"reason in text":   {failed: fakeError{-32000, "execution reverted: too late", "0x"}, reason: "too late"},
		"prefixed data":    {failed: fakeError{-32015, "VM execution error.", "Reverted " + encoded}, reason: "no", data: reason},
		"nested data":      {failed: fakeError{-32603, "Error: VM Exception while processing transaction: reverted", map[string]any{"data": encoded}}, reason: "no", data: reason},
		"panic":            {failed: fakeError{3, "execution reverted", panicked}, reason: "arithmetic underflow or overflow", data: common.FromHex(panicked)},
		"custom error":     {failed: fakeError{3, "execution reverted", "0xdeadbeef"}, data: common.FromHex("0xdeadbeef")},
		"invalid opcode":   {failed: fakeError{-32000, "invalid opcode: INVALID", nil}, reason: "invalid opcode: INVALID"},
		"out of gas":       {failed: fakeError{-32000, "out of gas", nil}, reason: "out of gas"},
		"sender's funds":   {failed: fakeError{-32000, "err: insufficient funds for gas * price + value: address 0xaa have 0 want 1 (supplied gas 1)", nil}, node: true},
		"sender's fee cap": {failed: fakeError{-32000, "err: max fee per gas less than block base fee", nil}, node: true},
		"node's timeout":   {failed: fakeError{-32000, "execution aborted (timeout = 5s)", nil}, node: true},
		"unknown method":   {failed: fakeError{-32601, "method not found", nil}, node: true},
		"error is a text":  {failed: fakeError{0, "", nil}, node: true},
	} {
		t.Run(name, func(t *testing.T) {
			node := newFakeNode(t)
			node.failing("eth_call", test.failed)
			c := startClient(t, calm, node.http())
			call := &Call{Msg: toCall()}
			c.Ask(testContext(t), call)
			var reverted *RevertError
			var refused *NodeError
			switch {
			case test.node:
				if !errors.As(call.Err, &refused) || errors.As(call.Err, &reverted) {
					t.Errorf("got %v, want a node error", call.Err)
				}
			case !errors.As(call.Err, &reverted):
				t.Errorf("got %v, want a revert", call.Err)
			case reverted.Reason != test.reason || !bytes.Equal(reverted.Data, test.data):
				t.Errorf("got %q %x, want %q %x", reverted.Reason, reverted.Data, test.reason, test.data)
			}
		})
	}
}

func FuzzRevertData(f *testing.F) {
	f.Add(3, "execution reverted: no", `"0x`+hex.EncodeToString(errorString("no"))+`"`)
	f.Add(-32015, "VM execution error.", `"Reverted 0x4e487b71`+hex.EncodeToString(common.LeftPadBytes([]byte{1}, 32))+`"`)
	f.Add(3, "execution reverted", `{"data":"0x08c379a0"}`)
	f.Add(3, "execution reverted", `"0x08c379a0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"`)
	f.Add(-32000, "out of gas", `null`)
	f.Fuzz(func(t *testing.T, code int, message, data string) {
		var decoded any
		json.Unmarshal([]byte(data), &decoded)
		reverted, ok := asRevert(code, message, decoded)
		if !ok {
			if code == revertCode {
				t.Fatal("a revert by its code was not taken for one")
			}
			return
		}
		if reason := reverted.Reason; len(reason) > 3*256 || printable(reason) != reason && len(reason) <= 256 {
			t.Fatalf("reason %q is not fit to print", reason)
		}
		if len(reverted.Data) > len(data)/2 {
			t.Fatalf("%d bytes of data out of %d characters", len(reverted.Data), len(data))
		}
		if again := revertData(decoded); !bytes.Equal(again, reverted.Data) && reverted.Data != nil {
			t.Fatalf("data %x, then %x", reverted.Data, again)
		}
	})
}
