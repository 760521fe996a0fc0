package devchain_test

import (
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/internal/devchain"
)

type call3 struct {
	Target       common.Address
	AllowFailure bool
	CallData     []byte
}

type call2 struct {
	Target   common.Address
	CallData []byte
}

func packMulticall(t *testing.T, method string, args ...any) []byte {
	t.Helper()
	data, err := devchain.Multicall().ABI.Pack(method, args...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestMulticallHasTheCanonicalSelectors(t *testing.T) {
	multicall := devchain.Multicall().ABI
	for method, want := range map[string]string{
		"aggregate3":               "0x82ad56cb",
		"aggregate":                "0x252dba42",
		"tryAggregate":             "0xbce38bd7",
		"getBlockNumber":           "0x42cbb15c",
		"getCurrentBlockTimestamp": "0x0f28c97d",
		"getBasefee":               "0x3e64a696",
		"getChainId":               "0x3408e470",
		"getEthBalance":            "0x4d2301cc",
	} {
		if got := hexutil.Encode(multicall.Methods[method].ID); got != want {
			t.Errorf("%s has selector %s, want %s", method, got, want)
		}
	}
}

func TestBatchSettlesEachAuthorizationOnItsOwn(t *testing.T) {
	chain, _ := startPaused(t)
	seller := chain.Account("seller")
	var auths []authorization
	var calls []call3
	for _, label := range []string{"payer", "payer2", "penniless", "payer3"} {
		from := chain.Account(label)
		a := authorize(chain, from.Address, seller.Address, 10)
		auths = append(auths, a)
		calls = append(calls, call3{devchain.USDC, true, a.callVRS(t, a.sign(t, from.Key))})
	}
	r := seal(t, chain, chain.Account("facilitator"), devchain.Multicall3, packMulticall(t, "aggregate3", calls))
	if r.Status != types.ReceiptStatusSuccessful || len(r.Logs) != 6 {
		t.Fatalf("status %d with %d logs, want three pairs", r.Status, len(r.Logs))
	}
	checkPair(t, r.Logs[0:2], auths[0])
	checkPair(t, r.Logs[2:4], auths[1])
	checkPair(t, r.Logs[4:6], auths[3])
	checkUSDC(t, chain, seller.Address, 30)

	calls = calls[2:3]
	calls[0].AllowFailure = false
	_, err := chain.Call(t.Context(), devchain.Multicall3, packMulticall(t, "aggregate3", calls))
	if err == nil || !strings.HasSuffix(err.Error(), "Multicall3: call failed") {
		t.Errorf("got %v, want the batch to revert", err)
	}
}

func TestMulticallReportsResultsInOrder(t *testing.T) {
	chain, _ := startPaused(t)
	payer := chain.Account("payer").Address
	calls := []call2{
		{devchain.USDC, pack(t, "balanceOf", payer)},
		{devchain.USDC, pack(t, "transfer", payer, big.NewInt(1))},
		{devchain.Multicall3, packMulticall(t, "getEthBalance", payer)},
	}
	result, err := chain.Call(t.Context(), devchain.Multicall3, packMulticall(t, "tryAggregate", false, calls))
	if err != nil {
		t.Fatal(err)
	}
	var results []struct {
		Success    bool
		ReturnData []byte
	}
	if err := devchain.Multicall().ABI.UnpackIntoInterface(&results, "tryAggregate", result); err != nil {
		t.Fatal(err)
	}
	if len(results) != 3 || !results[0].Success || results[1].Success || !results[2].Success {
		t.Fatalf("results %+v, want the second alone to fail", results)
	}
	if got := new(big.Int).SetBytes(results[0].ReturnData); got.Cmp(chain.USDCBalance(payer)) != 0 {
		t.Errorf("USDC balance %s", got)
	}
	if got := new(big.Int).SetBytes(results[2].ReturnData); got.Cmp(chain.ETHBalance(payer)) != 0 {
		t.Errorf("ETH balance %s", got)
	}
	for _, data := range [][]byte{packMulticall(t, "tryAggregate", true, calls), packMulticall(t, "aggregate", calls)} {
		if _, err := chain.Call(t.Context(), devchain.Multicall3, data); err == nil {
			t.Error("a failed call did not undo the others")
		}
	}
}

func TestMulticallReadsTheBlock(t *testing.T) {
	chain, _ := startPaused(t)
	if err := chain.Mine(3); err != nil {
		t.Fatal(err)
	}
	h := head(t, chain)
	for method, want := range map[string]*big.Int{
		"getBlockNumber":           h.Number,
		"getCurrentBlockTimestamp": new(big.Int).SetUint64(h.Time),
		"getChainId":               big.NewInt(84532),
	} {
		result, err := chain.Call(t.Context(), devchain.Multicall3, packMulticall(t, method))
		if err != nil {
			t.Fatal(err)
		}
		if got := new(big.Int).SetBytes(result); got.Cmp(want) != 0 {
			t.Errorf("%s is %s, want %s", method, got, want)
		}
	}
	// A call without a gas price sees a base fee of zero; one with a price sees the block's.
	result, err := chain.Client().CallContract(t.Context(), ethereum.CallMsg{
		From: chain.Account("payer").Address, To: &devchain.Multicall3, GasPrice: h.BaseFee, Data: packMulticall(t, "getBasefee"),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := new(big.Int).SetBytes(result); got.Cmp(h.BaseFee) != 0 {
		t.Errorf("base fee %s, want %s", got, h.BaseFee)
	}
}
