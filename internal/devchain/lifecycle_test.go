package devchain_test

import (
	"context"
	"encoding/json"
	"math/big"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/ethclient"

	"github.com/tollgate402/tollgate/internal/devchain"
)

func TestBurstNeverOvertakesTheWallClock(t *testing.T) {
	chain := start(t, devchain.Config{})
	const burst = 300
	payer := chain.Account("payer")
	first := head(t, chain)
	heads := make(chan *types.Header, burst)
	subscription, err := chain.Client().SubscribeNewHead(t.Context(), heads)
	if err != nil {
		t.Fatal(err)
	}
	defer subscription.Unsubscribe()

	timeout := time.After(30 * time.Second)
	for nonce := range uint64(burst) {
		sent := time.Now().Unix()
		submitNonce(t, chain, payer, nonce, devchain.USDC, transferTo(t, address("x"), 1))
		for sealed := false; !sealed; { // one at a time, so that each has a block of its own
			select {
			case h := <-heads:
				sealed = h.GasUsed > 0
				if now := time.Now().Unix(); int64(h.Time) > now || sealed && int64(h.Time) < sent {
					t.Fatalf("block %d is of %d, sealed between %d and %d", h.Number, h.Time, sent, now)
				}
			case <-timeout:
				t.Fatalf("%d of %d blocks in time", nonce, burst)
			}
		}
	}
	last := head(t, chain)
	if blocks := last.Number.Uint64() - first.Number.Uint64(); blocks < burst {
		t.Errorf("%d blocks for %d transactions one after another", blocks, burst)
	}
	for n, earlier := first.Number.Uint64()+1, first; n <= last.Number.Uint64(); n++ {
		h, err := chain.Client().HeaderByNumber(t.Context(), new(big.Int).SetUint64(n))
		if err != nil {
			t.Fatal(err)
		}
		if h.Time < earlier.Time {
			t.Fatalf("block %d is of %d, its parent of %d", n, h.Time, earlier.Time)
		}
		earlier = h
	}
}

func TestFreshAuthorizationIsValidRightAfterABurst(t *testing.T) {
	chain := start(t, devchain.Config{})
	payer := chain.Account("payer")
	var last common.Hash
	for nonce := range uint64(200) {
		last = submitNonce(t, chain, chain.Account("payer2"), nonce, devchain.USDC, transferTo(t, address("x"), 1)).Hash()
	}
	await(t, chain, last)
	a := authorize(chain, payer.Address, chain.Account("seller").Address, 1)
	a.validAfter, a.validBefore = time.Now().Unix()-10, time.Now().Unix()+60
	data := a.call(t, a.sign(t, payer.Key))
	accepted(t, chain, data)
	if r := await(t, chain, submit(t, chain, chain.Account("facilitator"), devchain.USDC, data).Hash()); r.Status != types.ReceiptStatusSuccessful {
		t.Error("reverted")
	}
}

func TestIdleChainFollowsTheClock(t *testing.T) {
	chain := start(t, devchain.Config{})
	first := head(t, chain)
	awaitHead(t, chain, func(h *types.Header) bool { return h.Time > first.Time && h.Number.Cmp(first.Number) > 0 })
	h := head(t, chain)
	if lag := time.Now().Unix() - int64(h.Time); lag < 0 || lag > 5 {
		t.Errorf("the head of an idle chain is %d s behind", lag)
	}
	if h.GasUsed != 0 || h.Root != first.Root {
		t.Error("a block of an idle chain changed the state")
	}
}

func TestClockThatGoesBackDoesNotTakeTheChainBack(t *testing.T) {
	chain, now := startPaused(t)
	before := head(t, chain).Time
	now.Advance(-time.Hour)
	mine(t, chain, 2)
	if after := head(t, chain).Time; after != before {
		t.Errorf("block of %d after one of %d", after, before)
	}
	now.Advance(2 * time.Hour)
	mine(t, chain, 1)
	if after := head(t, chain).Time; after != before+3600 {
		t.Errorf("block of %d, want %d", after, before+3600)
	}
}

func TestBlockTimePacesBlocks(t *testing.T) {
	chain := start(t, devchain.Config{BlockTime: 150 * time.Millisecond})
	began, first := time.Now(), head(t, chain)
	tx := submit(t, chain, chain.Account("payer"), devchain.USDC, transferTo(t, address("x"), 1))
	waited := head(t, chain)
	r := await(t, chain, tx.Hash())
	awaitHead(t, chain, func(h *types.Header) bool { return h.Number.Uint64() >= first.Number.Uint64()+4 })
	if elapsed := time.Since(began); elapsed < 400*time.Millisecond {
		t.Errorf("four blocks of 150 ms in %s", elapsed)
	}
	if r.BlockNumber.Uint64() > waited.Number.Uint64()+2 { // the next may have been in the making
		t.Errorf("sealed in block %d although it waited at %d", r.BlockNumber, waited.Number)
	}
}

func TestTransactionsThatWaitShareABlock(t *testing.T) {
	chain, _ := startPaused(t)
	var last *types.Transaction
	for nonce := range uint64(100) {
		last = submitNonce(t, chain, chain.Account("payer"), nonce, devchain.USDC, transferTo(t, address("x"), 1))
	}
	before := head(t, chain).Number.Uint64()
	chain.Resume()
	if r := await(t, chain, last.Hash()); r.BlockNumber.Uint64() != before+1 {
		t.Errorf("the last of 100 is in block %d, want %d", r.BlockNumber, before+1)
	}
}

func TestBlockHoldsNoMoreThanItsGasLimit(t *testing.T) {
	chain, _ := startPaused(t)
	if err := chain.SetCode(address("burner"), []byte{0xfe}, nil); err != nil { // INVALID takes all gas at once
		t.Fatal(err)
	}
	var last *types.Transaction
	for nonce := range uint64(40) { // 2 million gas each
		last = submitNonce(t, chain, chain.Account("payer"), nonce, address("burner"), nil)
	}
	mine(t, chain, 1)
	full := head(t, chain)
	if full.GasUsed != 30*2_000_000 {
		t.Errorf("a block of %d gas, want 60 million", full.GasUsed)
	}
	if !isPending(t, chain, last.Hash()) {
		t.Error("80 million gas fit into one block")
	}
	mine(t, chain, 1)
	if r := receipt(t, chain, last.Hash()); r.Status != types.ReceiptStatusFailed {
		t.Error("running out of gas succeeded")
	}
	if after := head(t, chain); after.BaseFee.Cmp(full.BaseFee) <= 0 {
		t.Errorf("base fee %s after a full block of %s", after.BaseFee, full.BaseFee)
	}
	mine(t, chain, 20)
	if idle := head(t, chain).BaseFee; idle.Int64() != 5_000_000 {
		t.Errorf("base fee %s after empty blocks, want the floor", idle)
	}
}

func TestTipsAreNotEchoed(t *testing.T) {
	chain, _ := startPaused(t)
	client := chain.Client()
	for nonce := range uint64(5) {
		tip, err := client.SuggestGasTipCap(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if tip.Int64() != 1_000_000 {
			t.Fatalf("suggested tip %s after %d generous transactions", tip, nonce)
		}
		id := new(big.Int).SetUint64(chain.ChainID())
		tx, err := types.SignNewTx(chain.Account("payer").Key, types.LatestSignerForChainID(id), &types.DynamicFeeTx{
			ChainID: id, Nonce: nonce, GasTipCap: big.NewInt(5e9), GasFeeCap: big.NewInt(1e10), Gas: 100_000,
			To: &devchain.USDC, Data: transferTo(t, address("x"), 1),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := client.SendTransaction(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		mine(t, chain, 1)
	}
}

func TestOnePortSpeaksHTTPAndWebSocket(t *testing.T) {
	chain := start(t, devchain.Config{})
	if strings.TrimPrefix(chain.URL(), "http://") != strings.TrimPrefix(chain.WebSocketURL(), "ws://") {
		t.Errorf("%s and %s are different ports", chain.URL(), chain.WebSocketURL())
	}
	for _, url := range []string{chain.URL(), chain.WebSocketURL()} {
		client, err := ethclient.Dial(url)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		id, err := client.ChainID(t.Context())
		if err != nil || id.Uint64() != chain.ChainID() || id.Uint64() != 84532 {
			t.Errorf("%s: chain %v, %v", url, id, err)
		}
		if _, err := client.TransactionReceipt(t.Context(), common.Hash{1}); err != ethereum.NotFound {
			t.Errorf("%s: receipt of an unknown transaction: %v, want not found", url, err)
		}
	}
	client, err := ethclient.Dial(chain.WebSocketURL())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	heads := make(chan *types.Header, 4)
	if _, err := client.SubscribeNewHead(ctx, heads); err != nil {
		t.Fatal(err)
	}
	mine(t, chain, 1)
	select {
	case <-heads:
	case <-ctx.Done():
		t.Error("no head over WebSocket")
	}
}

func TestNodeAnswersEveryNamespaceItPromises(t *testing.T) {
	chain, _ := startPaused(t)
	r := seal(t, chain, chain.Account("payer"), devchain.USDC, transferTo(t, address("x"), 1))
	balance := map[string]any{"to": devchain.USDC, "data": hexutil.Bytes(pack(t, "balanceOf", address("x")))}
	tracer := map[string]any{"tracer": "callTracer"}
	client, err := ethclient.Dial(chain.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for method, args := range map[string][]any{
		"web3_clientVersion":     nil,
		"net_version":            nil,
		"txpool_status":          nil,
		"eth_syncing":            nil,
		"eth_gasPrice":           nil,
		"eth_feeHistory":         {"0x4", "latest", []float64{50}},
		"eth_estimateGas":        {balance},
		"eth_getBlockReceipts":   {"latest"},
		"eth_getLogs":            {map[string]any{"fromBlock": "0x0", "toBlock": "latest", "address": devchain.USDC}},
		"eth_createAccessList":   {balance, "pending"},
		"debug_traceCall":        {balance, "latest", tracer},
		"debug_traceTransaction": {r.TxHash, tracer},
	} {
		var result json.RawMessage
		if err := client.Client().CallContext(t.Context(), &result, method, args...); err != nil {
			t.Errorf("%s: %v", method, err)
		}
		if method == "eth_getLogs" && !strings.Contains(string(result), r.TxHash.Hex()) {
			t.Errorf("eth_getLogs: %s lacks the transfer", result)
		}
	}
	for _, method := range []string{"admin_nodeInfo", "miner_setGasPrice", "engine_exchangeCapabilities"} {
		if err := client.Client().CallContext(t.Context(), new(json.RawMessage), method); err == nil {
			t.Errorf("%s answers", method)
		}
	}
}

func TestGasIsThatOfBase(t *testing.T) {
	chain, _ := startPaused(t)
	payer := chain.Account("payer")
	a := authorize(chain, payer.Address, chain.Account("seller").Address, 1)
	r := seal(t, chain, chain.Account("facilitator"), devchain.USDC, a.callVRS(t, a.sign(t, payer.Key)))
	if r.GasUsed < 70_000 || r.GasUsed > 100_000 {
		t.Errorf("an authorized transfer costs %d gas; an unreleased fork may be active", r.GasUsed)
	}
}

func TestOnlyLoopbackIsListenedOn(t *testing.T) {
	for _, addr := range []string{":0", "0.0.0.0:0", "192.0.2.1:0", "[::]:0", "example.com:0", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000"} {
		if chain, err := devchain.Start(devchain.Config{Addr: addr}); err == nil {
			t.Errorf("%s was accepted", addr)
			chain.Close()
		}
	}
	chain := start(t, devchain.Config{Addr: "localhost:0"})
	taken := strings.TrimPrefix(chain.URL(), "http://")
	if second, err := devchain.Start(devchain.Config{Addr: taken}); err == nil || !strings.Contains(err.Error(), taken) {
		t.Errorf("a second chain on %s: %v", taken, err)
		if second != nil {
			second.Close()
		}
	}
	for _, cfg := range []devchain.Config{{Finality: -1}, {Finality: 65}, {BlockTime: -1}} {
		if chain, err := devchain.Start(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
			chain.Close()
		}
	}
}

func TestLabelsGiveTheSameAccountsEverywhere(t *testing.T) {
	chain, _ := startPaused(t)
	seen := make(map[common.Address]string)
	for _, account := range chain.Accounts() {
		if again := devchain.DeriveAccount(account.Label); again.Address != account.Address || !again.Key.Equal(account.Key) {
			t.Errorf("%s is derived differently", account.Label)
		}
		if other, twice := seen[account.Address]; twice {
			t.Errorf("%s and %s are one account", account.Label, other)
		}
		seen[account.Address] = account.Label
	}
	// The address is printed in guides; it may not change.
	if got := chain.Account("payer").Address.Hex(); got != "0x24Fc3d68ffa18492B42cA4a89De3C2780F3B834b" {
		t.Errorf("payer is %s", got)
	}
}

func TestClosedChainRefusesControls(t *testing.T) {
	chain, err := devchain.Start(devchain.Config{})
	if err != nil {
		t.Fatal(err)
	}
	snapshot := chain.Snapshot()
	for range 2 {
		if err := chain.Close(); err != nil {
			t.Fatal(err)
		}
	}
	chain.Pause()
	chain.Resume()
	for name, err := range map[string]error{
		"Mine":          chain.Mine(1),
		"Mint":          chain.Mint(address("x"), big.NewInt(1)),
		"Reorg":         chain.Reorg(1),
		"ReorgDropping": chain.ReorgDropping(1),
		"Revert":        chain.Revert(snapshot),
		"DropPending":   chain.DropPending(common.Hash{1}),
		"SetCode":       chain.SetCode(address("x"), []byte{1}, nil),
		"SetETHBalance": chain.SetETHBalance(address("x"), big.NewInt(1)),
	} {
		if err == nil {
			t.Errorf("%s works on a closed chain", name)
		}
	}
	client, err := ethclient.Dial(chain.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.ChainID(t.Context()); err == nil {
		t.Error("a closed chain answers")
	}
}

func TestCloseLeavesNoGoroutine(t *testing.T) {
	use := func() {
		chain, err := devchain.Start(devchain.Config{})
		if err != nil {
			t.Fatal(err)
		}
		client, err := ethclient.Dial(chain.WebSocketURL())
		if err != nil {
			t.Fatal(err)
		}
		subscription, err := client.SubscribeNewHead(t.Context(), make(chan *types.Header, 64))
		if err != nil {
			t.Fatal(err)
		}
		await(t, chain, submit(t, chain, chain.Account("payer"), devchain.USDC, transferTo(t, address("x"), 1)).Hash())
		if err := chain.Reorg(1); err != nil {
			t.Fatal(err)
		}
		subscription.Unsubscribe()
		client.Close()
		if err := chain.Close(); err != nil {
			t.Fatal(err)
		}
	}
	use() // starts what go-ethereum shares between all nodes of a process
	before := runtime.NumGoroutine()
	for range 3 {
		use()
	}
	var stacks strings.Builder
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			buffer := make([]byte, 1<<20)
			stacks.Write(buffer[:runtime.Stack(buffer, true)])
			t.Fatalf("%d goroutines, %d before\n%s", runtime.NumGoroutine(), before, stacks.String())
		}
	}
}
