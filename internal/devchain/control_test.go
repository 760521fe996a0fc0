package devchain_test

import (
	"context"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/ethclient"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/tollgate402/tollgate/internal/devchain"
)

func isPending(t *testing.T, chain *devchain.Chain, hash common.Hash) bool {
	t.Helper()
	_, pending, err := chain.Client().TransactionByHash(t.Context(), hash)
	if err != nil {
		t.Fatalf("transaction %s: %v", hash, err)
	}
	return pending
}

func isUnknown(t *testing.T, chain *devchain.Chain, hash common.Hash) bool {
	t.Helper()
	_, _, err := chain.Client().TransactionByHash(t.Context(), hash)
	if err != nil && !errors.Is(err, ethereum.NotFound) {
		t.Fatal(err)
	}
	return err != nil
}

func mine(t *testing.T, chain *devchain.Chain, n int) {
	t.Helper()
	if err := chain.Mine(n); err != nil {
		t.Fatal(err)
	}
}

func tagged(t *testing.T, chain *devchain.Chain, tag rpc.BlockNumber) uint64 {
	t.Helper()
	h, err := chain.Client().HeaderByNumber(t.Context(), big.NewInt(int64(tag)))
	if err != nil {
		t.Fatalf("block %s: %v", tag, err)
	}
	return h.Number.Uint64()
}

func TestPausedChainKeepsTransactionsWaiting(t *testing.T) {
	chain := start(t, devchain.Config{})
	chain.Pause()
	before := head(t, chain)
	tx := submit(t, chain, chain.Account("payer"), devchain.USDC, transferTo(t, address("x"), 1))
	if !isPending(t, chain, tx.Hash()) {
		t.Fatal("a paused chain sealed a transaction")
	}
	if after := head(t, chain); after.Hash() != before.Hash() {
		t.Errorf("the head of a paused chain moved from %d to %d", before.Number, after.Number)
	}

	mine(t, chain, 2)
	if r := receipt(t, chain, tx.Hash()); r.BlockNumber.Uint64() != before.Number.Uint64()+1 {
		t.Errorf("sealed in block %d, want the first that was mined", r.BlockNumber)
	}
	if after := head(t, chain); after.Number.Uint64() != before.Number.Uint64()+2 {
		t.Errorf("head %d after mining two blocks on %d", after.Number, before.Number)
	}

	second := submit(t, chain, chain.Account("payer"), devchain.USDC, transferTo(t, address("x"), 1))
	chain.Resume()
	await(t, chain, second.Hash())
}

func TestReorgReturnsTransactionsToThePool(t *testing.T) {
	chain, _ := startPaused(t)
	x := address("x")
	r := seal(t, chain, chain.Account("payer"), devchain.USDC, transferTo(t, x, 1))
	mine(t, chain, 1)
	before := head(t, chain)

	if err := chain.Reorg(2); err != nil {
		t.Fatal(err)
	}
	if !isPending(t, chain, r.TxHash) {
		t.Error("the transaction is not pending again")
	}
	if _, err := chain.Client().TransactionReceipt(t.Context(), r.TxHash); !errors.Is(err, ethereum.NotFound) {
		t.Errorf("receipt of an undone transaction: %v, want not found", err)
	}
	checkUSDC(t, chain, x, 0)
	after := head(t, chain)
	if after.Number.Uint64() != before.Number.Uint64()+1 {
		t.Errorf("head %d, want a branch one longer than the old one of %d", after.Number, before.Number)
	}
	if again, err := chain.Client().HeaderByNumber(t.Context(), before.Number); err != nil || again.Hash() == before.Hash() {
		t.Errorf("block %d was not replaced: %v", before.Number, err)
	}

	mine(t, chain, 1)
	if again := receipt(t, chain, r.TxHash); again.BlockHash == r.BlockHash || again.BlockNumber.Cmp(r.BlockNumber) <= 0 {
		t.Errorf("sealed again in block %d, first in %d", again.BlockNumber, r.BlockNumber)
	}
	checkUSDC(t, chain, x, 1)
}

func TestInstantChainSealsAgainAfterReorg(t *testing.T) {
	chain := start(t, devchain.Config{})
	tx := submit(t, chain, chain.Account("payer"), devchain.USDC, transferTo(t, address("x"), 1))
	first := await(t, chain, tx.Hash())
	if err := chain.Reorg(1); err != nil {
		t.Fatal(err)
	}
	if again := await(t, chain, tx.Hash()); again.BlockHash == first.BlockHash {
		t.Error("the transaction is still in the block that was undone")
	}
}

func TestReorgTellsSubscribersWhichLogsAreGone(t *testing.T) {
	chain, _ := startPaused(t)
	client, err := ethclient.Dial(chain.WebSocketURL())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	logs := make(chan types.Log, 4)
	subscription, err := client.SubscribeFilterLogs(ctx, ethereum.FilterQuery{Addresses: []common.Address{devchain.USDC}}, logs)
	if err != nil {
		t.Fatal(err)
	}
	defer subscription.Unsubscribe()

	r := seal(t, chain, chain.Account("payer"), devchain.USDC, transferTo(t, address("x"), 1))
	if err := chain.ReorgDropping(1); err != nil {
		t.Fatal(err)
	}
	for _, removed := range []bool{false, true} {
		select {
		case l := <-logs:
			if l.TxHash != r.TxHash || l.Removed != removed {
				t.Errorf("log of %s, removed %t; want of %s, removed %t", l.TxHash, l.Removed, r.TxHash, removed)
			}
		case <-ctx.Done():
			t.Fatal("no log")
		}
	}
}

func TestDroppingReorgForgetsOnlyWhatItUndid(t *testing.T) {
	chain, _ := startPaused(t)
	undone := seal(t, chain, chain.Account("payer"), devchain.USDC, transferTo(t, address("x"), 1))
	waiting := submit(t, chain, chain.Account("payer2"), devchain.USDC, transferTo(t, address("x"), 1))
	if err := chain.ReorgDropping(1); err != nil {
		t.Fatal(err)
	}
	if !isUnknown(t, chain, undone.TxHash) {
		t.Error("the undone transaction is still known")
	}
	if !isPending(t, chain, waiting.Hash()) {
		t.Error("a transaction that waited was lost")
	}
	again := seal(t, chain, chain.Account("payer"), devchain.USDC, transferTo(t, address("x"), 2))
	if again.Status != types.ReceiptStatusSuccessful {
		t.Error("the nonce of the forgotten transaction is not free")
	}
}

func TestReorgNeverUndoesAFinalizedBlock(t *testing.T) {
	chain := start(t, devchain.Config{Finality: 3})
	chain.Pause()
	mine(t, chain, 10)
	number := head(t, chain).Number.Uint64()
	if safe, final := tagged(t, chain, rpc.SafeBlockNumber), tagged(t, chain, rpc.FinalizedBlockNumber); safe != number-1 || final != number-3 {
		t.Errorf("head %d, safe %d, finalized %d; want 1 and 3 behind", number, safe, final)
	}
	for _, depth := range []int{-1, 0, 4, 1000} {
		if err := chain.Reorg(depth); err == nil {
			t.Errorf("reorg of %d blocks succeeded", depth)
		}
	}
	final, err := chain.Client().HeaderByNumber(t.Context(), big.NewInt(int64(rpc.FinalizedBlockNumber)))
	if err != nil {
		t.Fatal(err)
	}
	if err := chain.Reorg(3); err != nil {
		t.Fatal(err)
	}
	if again, err := chain.Client().HeaderByNumber(t.Context(), final.Number); err != nil || again.Hash() != final.Hash() {
		t.Errorf("finalized block %d was replaced: %v", final.Number, err)
	}
	if now := tagged(t, chain, rpc.FinalizedBlockNumber); now < final.Number.Uint64() {
		t.Errorf("finalized went back from %d to %d", final.Number, now)
	}
}

func TestYoungChainHasAllTags(t *testing.T) {
	chain, _ := startPaused(t)
	if safe, final := tagged(t, chain, rpc.SafeBlockNumber), tagged(t, chain, rpc.FinalizedBlockNumber); safe != 0 || final != 0 {
		t.Errorf("safe %d, finalized %d, want genesis", safe, final)
	}
	if pending := tagged(t, chain, rpc.PendingBlockNumber); pending != 2 {
		t.Errorf("pending %d, want the one after the first", pending)
	}
}

func TestMintedMoneySurvivesAReorg(t *testing.T) {
	chain, _ := startPaused(t)
	x := address("x")
	for _, amount := range []int64{5, 7} {
		if err := chain.Mint(x, big.NewInt(amount)); err != nil {
			t.Fatal(err)
		}
	}
	if err := chain.Reorg(2); err != nil {
		t.Fatal(err)
	}
	checkUSDC(t, chain, x, 0)
	if err := chain.Mint(x, big.NewInt(11)); err != nil {
		t.Fatal(err)
	}
	checkUSDC(t, chain, x, 23)
}

func TestDroppedTransactionLeavesAGap(t *testing.T) {
	chain, _ := startPaused(t)
	payer := chain.Account("payer")
	first := submit(t, chain, payer, devchain.USDC, transferTo(t, address("x"), 1))
	second := submit(t, chain, payer, devchain.USDC, transferTo(t, address("x"), 2))
	other := submit(t, chain, chain.Account("payer2"), devchain.USDC, transferTo(t, address("x"), 4))
	if err := chain.DropPending(first.Hash()); err != nil {
		t.Fatal(err)
	}
	if err := chain.DropPending(first.Hash()); err == nil {
		t.Error("the same transaction was dropped twice")
	}
	if !isUnknown(t, chain, first.Hash()) {
		t.Error("the dropped transaction is still known")
	}
	mine(t, chain, 1)
	receipt(t, chain, other.Hash())
	if !isPending(t, chain, second.Hash()) {
		t.Error("a transaction was sealed although its predecessor is missing")
	}

	submitNonce(t, chain, payer, first.Nonce(), devchain.USDC, transferTo(t, address("x"), 8))
	mine(t, chain, 1)
	receipt(t, chain, second.Hash())
	checkUSDC(t, chain, address("x"), 14)
}

func TestRevertForgetsWhatWasSince(t *testing.T) {
	chain, _ := startPaused(t)
	payer, x := chain.Account("payer"), address("x")
	seal(t, chain, payer, devchain.USDC, transferTo(t, x, 1))
	snapshot := chain.Snapshot()
	later := seal(t, chain, payer, devchain.USDC, transferTo(t, x, 2))
	if err := chain.SetETHBalance(x, big.NewInt(9)); err != nil {
		t.Fatal(err)
	}
	mine(t, chain, 20)
	waiting := submit(t, chain, payer, devchain.USDC, transferTo(t, x, 4))

	for range 2 {
		if err := chain.Revert(snapshot); err != nil {
			t.Fatal(err)
		}
		if head(t, chain).Hash() != snapshot {
			t.Fatal("the head is not the snapshot")
		}
		checkUSDC(t, chain, x, 1)
		if chain.ETHBalance(x).Sign() != 0 {
			t.Error("a changed balance survived")
		}
		if !isUnknown(t, chain, later.TxHash) || !isUnknown(t, chain, waiting.Hash()) {
			t.Error("a later transaction is still known")
		}
	}
	seal(t, chain, payer, devchain.USDC, transferTo(t, x, 2)) // the same bytes, and so the same state, as before
	checkUSDC(t, chain, x, 3)
	if err := chain.Revert(common.Hash{1}); err == nil {
		t.Error("reverted to a block that does not exist")
	}
}

func TestRevertRefusesAStateThatIsGone(t *testing.T) {
	chain, _ := startPaused(t)
	snapshot := chain.Snapshot()
	for range 140 {
		if err := chain.SetETHBalance(address("x"), big.NewInt(1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := chain.Revert(snapshot); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("got %v, want a refusal", err)
	}
	mine(t, chain, 1)
}

func TestStateChangedByHandCanBeChangedBack(t *testing.T) {
	chain, _ := startPaused(t)
	x := address("x")
	for _, wei := range []int64{5, 0, 5, 0} {
		if err := chain.SetETHBalance(x, big.NewInt(wei)); err != nil {
			t.Fatal(err)
		}
		if got := chain.ETHBalance(x); got.Int64() != wei {
			t.Errorf("balance %s, want %d", got, wei)
		}
	}
	if err := chain.SetWallet(x, chain.Account("agent").Address); err != nil {
		t.Fatal(err)
	}
	if code, err := chain.Client().CodeAt(t.Context(), x, nil); err != nil || len(code) == 0 {
		t.Errorf("no code after SetWallet: %v", err)
	}
	if err := chain.Mint(x, big.NewInt(1)); err != nil {
		t.Fatal(err)
	}
	a := authorize(chain, x, chain.Account("seller").Address, 1)
	accepted(t, chain, a.call(t, a.sign(t, chain.Account("agent").Key)))
	if err := chain.SetETHBalance(x, big.NewInt(-1)); err == nil {
		t.Error("a negative balance was accepted")
	}
}

func TestControlsAndTrafficMixWithoutLosingTransactions(t *testing.T) {
	chain := start(t, devchain.Config{})
	const each = 40
	x := address("x")
	senders := []devchain.Account{chain.Account("payer"), chain.Account("payer2"), chain.Account("payer3")}
	var group sync.WaitGroup
	for _, sender := range senders {
		group.Go(func() {
			for nonce := range uint64(each) {
				tx := signTx(t, chain, sender.Key, nonce, devchain.USDC, transferTo(t, x, 1))
				if err := chain.Client().SendTransaction(t.Context(), tx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Go(func() {
		for range 10 {
			if err := chain.Mine(2); err != nil {
				t.Error(err)
			}
			if err := chain.Reorg(1); err != nil {
				t.Error(err)
			}
			if err := chain.Mint(address("y"), big.NewInt(1)); err != nil {
				t.Error(err)
			}
			chain.Pause()
			chain.Resume()
		}
	})
	group.Wait()
	all := each * int64(len(senders))
	awaitHead(t, chain, func(*types.Header) bool {
		return chain.USDCBalance(x).Int64() >= all && chain.USDCBalance(address("y")).Int64() >= 10
	})
	checkUSDC(t, chain, x, all)
	checkUSDC(t, chain, address("y"), 10)
}
