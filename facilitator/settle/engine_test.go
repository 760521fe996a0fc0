package settle_test

import (
	"bytes"
	"context"
	"errors"
	"math/big"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

func TestOnePaymentMovesMoneyOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	s, err := w.settle(transfer, payment.Included)
	if err != nil {
		t.Fatal(err)
	}
	if s.Network != payment.EVM(84532) || s.Payer != w.payer.Address.Hex() || s.Amount.Units() != "1000" {
		t.Errorf("settlement %+v", s)
	}
	receipt, err := w.chain.Client().TransactionReceipt(t.Context(), common.HexToHash(s.Transaction))
	if err != nil || receipt.Status != types.ReceiptStatusSuccessful {
		t.Fatalf("receipt %+v, %v", receipt, err)
	}
	w.wantEarned(1000)
	if left := w.chain.USDCBalance(w.payer.Address); left.Cmp(big.NewInt(1e12-1000)) != 0 {
		t.Errorf("the payer has %s", left)
	}
	r := w.record(transfer)
	if !r.State.Paid() || r.Included == nil || r.Included.Block != receipt.BlockNumber.Uint64() || r.Included.BlockHash != receipt.BlockHash.Hex() || r.Transaction() != s.Transaction {
		t.Errorf("record %+v", r)
	}
	w.mineUntil(transfer, ledger.Archived)
	if path := w.history.path(r.Key); !strings.HasPrefix(path, "RESERVED INTENT ") || !strings.HasSuffix(path, "SETTLED ARCHIVED") {
		t.Errorf("it went through %s", path)
	}
	for r, err := range w.ledger.Open(t.Context()) {
		t.Errorf("%s %v is still open", r.Key, err)
	}
}

func TestIntentIsOnDiskBeforeTheFirstBroadcast(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	looked := 0
	w.node.broadcast = func(ctx context.Context, raw []byte) error {
		looked++
		// A fresh ledger on the same store sees only what is stored.
		r, err := ledger.New(w.history, "two", time.Now).Get(ctx, transfer.Key(84532, common.HexToAddress(w.offer.Amount.Token().Address)))
		if err != nil {
			t.Error(err)
			return err
		}
		slots, err := w.ledger.Slots(ctx, payment.EVM(84532))
		if err != nil || len(slots) != 1 {
			t.Errorf("%d slots, %v", len(slots), err)
			return err
		}
		a := slots[0].Latest()
		if r.State != ledger.Intent || len(r.Slots) != 1 || r.Slots[0].Hash != a.Hash || slots[0].Items[0] != r.Key || !bytes.Equal(a.Raw, raw) || a.Hash != crypto.Keccak256Hash(raw).Hex() {
			t.Errorf("when it was broadcast the ledger held %+v in %+v", r, slots[0])
		}
		return w.node.Client.Broadcast(ctx, raw)
	}
	if _, err := w.settle(transfer, payment.Included); err != nil {
		t.Fatal(err)
	}
	if looked != 1 {
		t.Errorf("%d broadcasts", looked)
	}
}

func TestSettledPaymentIsNotSentAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	first, err := w.settle(transfer, payment.Included)
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range []ledger.State{ledger.Settled, ledger.Archived} {
		r := w.awaitState(transfer, state, ledger.Archived)
		again, err := w.engine.Resume(t.Context(), r)
		if err != nil || again.Transaction != first.Transaction || again.Amount.Units() != "1000" {
			t.Errorf("%s: got %+v, %v, want %+v", state, again, err, first)
		}
		w.mine(5)
	}
	if n := w.node.broadcasts(); n != 1 {
		t.Errorf("%d broadcasts", n)
	}
	w.wantEarned(1000)
}

func TestSettlingWhatIsSettledAlreadyChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	job := w.claim(w.authorize(), payment.Included)
	ctx, cancel := within(t, 20*time.Second)
	defer cancel()
	first, err := w.engine.Settle(ctx, job)
	if err != nil {
		t.Fatal(err)
	}
	// The caller has an old record and asks again.
	again, err := w.engine.Settle(ctx, job)
	if err != nil || again.Transaction != first.Transaction {
		t.Errorf("got %+v, %v, want %+v", again, err, first)
	}
	if n := w.node.broadcasts(); n != 1 {
		t.Errorf("%d broadcasts", n)
	}
	w.wantEarned(1000)
}

func TestManyPaymentsShareALaneWithoutGaps(t *testing.T) {
	t.Parallel()
	const payments = 32
	w := newWorld(t)
	jobs := make([]settle.Job, payments)
	for i := range jobs {
		jobs[i] = w.claim(w.authorize(), payment.Included)
	}
	ctx, cancel := within(t, 30*time.Second)
	defer cancel()
	var group sync.WaitGroup
	for _, j := range jobs {
		group.Go(func() {
			if _, err := w.engine.Settle(ctx, j); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	w.wantEarned(1000 * payments)
	nonces := map[uint64]bool{}
	for _, j := range jobs {
		r, err := w.ledger.Get(ctx, j.Record.Key)
		if err != nil || len(r.Slots) != 1 {
			t.Fatalf("record %+v, %v", r, err)
		}
		nonces[r.Slots[0].Nonce] = true
	}
	for i := range len(nonces) {
		if !nonces[uint64(i)] {
			t.Fatalf("nonces %v", nonces)
		}
	}
	if n := len(w.node.transactions()); n != len(nonces) {
		t.Errorf("%d transactions with %d nonces", n, len(nonces))
	}
}

func TestTwoEnginesOnOneLedgerShareALane(t *testing.T) {
	t.Parallel()
	const each = 8
	w := newWorld(t)
	other := w.start(w.node)
	ctx, cancel := within(t, 30*time.Second)
	defer cancel()
	var group sync.WaitGroup
	for i := range 2 * each {
		j, e := w.claim(w.authorize(), payment.Included), w.engine
		if i%2 == 1 {
			e = other
		}
		group.Go(func() {
			if _, err := e.Settle(ctx, j); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	w.wantEarned(1000 * 2 * each)
	if n := len(w.node.transactions()); n > 2*each || uint64(n) != w.nonce() {
		t.Errorf("%d transactions, %d in the chain", n, w.nonce())
	}
}

func TestSomebodyElsesTransactionBeforeTheSimulationCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	theirs := w.sendMined(w.chain.Account("facilitator2"), transfer.Calldata())
	s, err := w.settle(transfer, payment.Included)
	if err != nil || s.Transaction != theirs.Hex() {
		t.Fatalf("got %+v, %v, want transaction %s", s, err, theirs)
	}
	r := w.awaitState(transfer, ledger.Settled, ledger.Archived)
	if len(r.Slots) != 0 || w.node.broadcasts() != 0 {
		t.Errorf("%d broadcasts, record %+v", w.node.broadcasts(), r)
	}
	w.wantEarned(1000)
	w.mineUntil(transfer, ledger.Archived)
}

func TestSomebodyElsesTransactionCountsOnlyWhenItIsAsFinalAsAsked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	w.chain.Pause()
	theirs := w.send(w.chain.Account("facilitator2"), transfer.Calldata())
	w.mine(1)
	w.sees()
	job := w.claim(transfer, payment.Finalized)
	u := w.abandon(job, func() bool { return w.record(transfer).State == ledger.Included })
	if r := w.record(transfer); u.Transaction != theirs.Hex() || r.Transaction() != theirs.Hex() {
		t.Errorf("pending as %s, record %+v", u.Transaction, r)
	}
	w.mineUntil(transfer, ledger.Settled, ledger.Archived)
	w.wantEarned(1000)
}

func TestSomebodyElsesTransactionThatAReorgTakesAwayIsStillWatched(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	w.chain.Pause()
	w.send(w.chain.Account("facilitator2"), transfer.Calldata())
	w.mine(1)
	w.sees()
	job := w.claim(transfer, payment.Finalized)
	w.abandon(job, func() bool { return w.record(transfer).State == ledger.Included })
	if err := w.chain.ReorgDropping(1); err != nil {
		t.Fatal(err)
	}
	w.awaitState(transfer, ledger.Sent)
	w.wantEarned(0)

	// Another process takes it up, and they send it again.
	w.engine.Stop()
	w.engine = w.start(w.node)
	w.send(w.chain.Account("facilitator2"), transfer.Calldata())
	w.mine(1)
	w.awaitState(transfer, ledger.Included)
	w.mineUntil(transfer, ledger.Settled, ledger.Archived)
	w.wantEarned(1000)
}

func TestSomebodyElsesTransactionAfterTheSimulationCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	var theirs common.Hash
	w.node.simulated = once(func() { theirs = w.sendMined(w.chain.Account("facilitator2"), transfer.Calldata()) })
	s, err := w.settle(transfer, payment.Included)
	if err != nil || s.Transaction != theirs.Hex() {
		t.Fatalf("got %+v, %v, want transaction %s", s, err, theirs)
	}
	if r := w.record(transfer); len(r.Slots) != 1 || r.Slots[0].Hash == theirs.Hex() {
		t.Errorf("record %+v", r)
	}
	w.wantEarned(1000)
}

func TestCancelledAuthorizationIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	w.sendMined(w.payer, w.cancelling(transfer))
	_, err := w.settle(transfer, payment.Included)
	wantInvalid(t, err, payment.EVMNonceUsed)
	if r := w.record(transfer); r.State != ledger.Reserved || w.node.broadcasts() != 0 {
		t.Errorf("%s after %d broadcasts", r.State, w.node.broadcasts())
	}
}

func TestPaymentThatRevertsInSimulationIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	w.sendMined(w.payer, w.draining())
	_, err := w.settle(transfer, payment.Included)
	wantInvalid(t, err, payment.EVMSimulationFailed)
	if r := w.record(transfer); r.State != ledger.Reserved || len(r.Slots) != 0 || w.node.broadcasts() != 0 {
		t.Errorf("%+v after %d broadcasts", r, w.node.broadcasts())
	}
}

// expire lets the authorization end and the blocks after that become final.
func (w *world) expire(d time.Duration) {
	w.t.Helper()
	w.clock.Advance(d)
	w.mine(1) // the first block after it
}

func TestCancellationAfterTheSimulationIsDeathOnlyWhenItIsFinal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	w.node.simulated = once(func() {
		w.sendMined(w.payer, w.cancelling(transfer))
		w.chain.Pause()
	})
	job := w.claim(transfer, payment.Included)
	w.abandon(job, w.sent)
	w.mine(3) // the cancellation is 3 blocks deep, 4 are final
	w.sees()
	r, err := w.ledger.Get(t.Context(), job.Record.Key)
	if err != nil || r.State == ledger.Dead {
		t.Fatalf("%s although the cancellation is not final, %v", r.State, err)
	}
	r = w.mineUntil(transfer, ledger.Dead)
	if !strings.Contains(r.Reason, "used by something other") {
		t.Errorf("reason %q", r.Reason)
	}
	_, err = w.engine.Resume(t.Context(), r)
	wantInvalid(t, err, payment.EVMTransactionFailed)
	w.wantEarned(0)
}

func TestDrainedPayerIsPendingUntilTheAuthorizationHasProvablyExpired(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	w.node.simulated = once(func() { w.sendMined(w.payer, w.draining()) })
	job := w.claim(transfer, payment.Included)
	mined := func() bool {
		return w.sent() && w.chain.USDCBalance(w.payer.Address).Sign() == 0 && w.record(transfer).State == ledger.Sent
	}
	if u := w.abandon(job, mined); u.Transaction == "" {
		t.Error("pending without a hash")
	}
	w.chain.Pause()
	w.expire(2 * time.Hour)
	w.mine(3) // the block after the end is not final yet
	w.sees()
	ctx, cancel := within(t, 200*time.Millisecond)
	defer cancel()
	_, err := w.engine.Resume(ctx, w.record(transfer))
	wantPending(t, err)
	if r := w.record(transfer); r.State == ledger.Dead {
		t.Fatalf("dead before that was final: %s", r.Reason)
	}
	r := w.mineUntil(transfer, ledger.Dead)
	if !strings.Contains(r.Reason, "expired") {
		t.Errorf("reason %q", r.Reason)
	}
	_, err = w.engine.Resume(t.Context(), r)
	wantInvalid(t, err, payment.EVMTransactionFailed)
}

func TestReorgSendsTheSameBytesAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		until payment.Finality
		state ledger.State
	}{{"when included", payment.Finalized, ledger.Included}, {"when settled", payment.Included, ledger.Settled}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.chain.Pause()
			transfer := w.authorize()
			job := w.claim(transfer, c.until)
			done := make(chan error, 1)
			ctx, cancel := within(t, 20*time.Second)
			defer cancel()
			go func() { // ends with ctx
				_, err := w.engine.Settle(ctx, job)
				done <- err
			}()
			w.awaitState(transfer, ledger.Sent)
			w.mine(1)
			w.awaitState(transfer, c.state)
			w.wantEarned(1000)
			if err := w.chain.ReorgDropping(1); err != nil {
				t.Fatal(err)
			}
			w.awaitState(transfer, ledger.Sent)
			w.wantEarned(0)
			for deadline := time.Now().Add(10 * time.Second); w.node.broadcasts() < 2; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("it was not sent again")
				}
			}
			// The reorganization may have swallowed the second broadcast.
			for deadline := time.Now().Add(10 * time.Second); !w.record(transfer).State.Paid() && time.Now().Before(deadline); w.sees() {
				w.clock.Advance(5 * time.Second)
				w.mine(1)
			}
			w.awaitState(transfer, ledger.Settled, ledger.Archived)
			if n := len(w.node.transactions()); n != 1 {
				t.Fatalf("%d different transactions", n)
			}
			w.wantEarned(1000)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestReorgThatOnlyMovesTheTransferIsNoted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.chain.Pause()
	transfer := w.authorize()
	job := w.claim(transfer, payment.Included)
	ctx, cancel := within(t, 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { // ends with ctx
		_, err := w.engine.Settle(ctx, job)
		done <- err
	}()
	w.awaitState(transfer, ledger.Sent)
	w.mine(1)
	before := w.awaitState(transfer, ledger.Settled)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.sees()
	if err := w.chain.Reorg(1); err != nil {
		t.Fatal(err)
	}
	w.mine(1) // from the pool
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		r := w.record(transfer)
		if r.State == ledger.Settled && r.Included != nil && r.Included.BlockHash != before.Included.BlockHash {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("record %+v, included %+v", r, r.Included)
		}
	}
	w.wantEarned(1000)
}

func TestStoppedChainLeavesThePaymentPendingAndTheWatcherSettlesIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.chain.Pause()
	transfer := w.authorize()
	job := w.claim(transfer, payment.Included)
	ctx, cancel := within(t, time.Second)
	defer cancel()
	began := time.Now()
	_, err := w.engine.Settle(ctx, job)
	if waited := time.Since(began); waited < time.Second || waited > 5*time.Second {
		t.Errorf("it answered after %s", waited)
	}
	u := wantPending(t, err)
	if r := w.record(transfer); r.State != ledger.Sent || u.Transaction != r.Slots[0].Hash || u.Payer != w.payer.Address.Hex() {
		t.Errorf("pending %+v, record %+v", u, r)
	}
	w.chain.Resume()
	w.awaitState(transfer, ledger.Settled, ledger.Archived)
	w.wantEarned(1000)
	if n := len(w.node.transactions()); n != 1 {
		t.Errorf("%d transactions", n)
	}
}

func TestRestartSendsTheStoredBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	w.node.broadcast = func(ctx context.Context, raw []byte) error { // as if the process ended here
		<-ctx.Done()
		return ctx.Err()
	}
	job := w.claim(transfer, payment.Included)
	w.abandon(job, w.sent)
	w.engine.Stop()
	stored := w.record(transfer)
	if stored.State != ledger.Intent {
		t.Fatalf("it is %s", stored.State)
	}
	next := &probe{Client: w.node.Client}
	w.ledger = ledger.New(w.history, "two", time.Now)
	if _, err := w.ledger.Recover(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	w.engine = w.start(next)
	r := w.awaitState(transfer, ledger.Settled, ledger.Archived)
	if sent := next.transactions(); len(sent) != 1 || crypto.Keccak256Hash(sent[0]).Hex() != stored.Slots[0].Hash || r.Transaction() != stored.Slots[0].Hash {
		t.Errorf("%d transactions, settled as %s", len(sent), r.Transaction())
	}
	w.wantEarned(1000)
	// The lane goes on from there.
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Error(err)
	}
	w.wantEarned(2000)
}

func TestRestartFindsWhatWasIncludedMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	var accepted atomic.Bool
	w.node.broadcast = func(ctx context.Context, raw []byte) error { // sent, but nobody hears of it
		accepted.Store(w.node.Client.Broadcast(ctx, raw) == nil)
		<-ctx.Done()
		return ctx.Err()
	}
	w.node.down.Store(true)
	job := w.claim(transfer, payment.Included)
	w.abandon(job, accepted.Load)
	w.engine.Stop()
	if r := w.record(transfer); r.State != ledger.Intent {
		t.Fatalf("it is %s", r.State)
	}
	w.mine(1)
	w.wantEarned(1000)
	next := &probe{Client: w.node.Client}
	w.engine = w.start(next)
	w.awaitState(transfer, ledger.Settled, ledger.Archived)
	if n := next.broadcasts(); n != 0 {
		t.Errorf("%d broadcasts of what is in a block", n)
	}
	w.wantEarned(1000)
}

// A pathless is a node that has nothing to say about blocks on the way to its
// head until the engine ends.
type pathless struct{ *probe }

func (p pathless) HeaderByNumber(ctx context.Context, _ uint64) (chain.Head, error) {
	<-ctx.Done()
	return chain.Head{}, ctx.Err()
}

// What nobody knows yet waited behind hundreds of payments that only had to
// become final, so that a process with short lives never came to it.
func TestRestartLooksAtWhatIsNotSettledFirst(t *testing.T) {
	t.Parallel()
	w := newWorldOn(t, devchain.Config{Finality: 64})
	for range 12 { // in the order of random keys it would be first once in thirteen times
		if _, err := w.settle(w.authorize(), payment.Included); err != nil {
			t.Fatal(err)
		}
	}
	transfer := w.authorize()
	var accepted atomic.Bool
	w.node.broadcast = func(ctx context.Context, raw []byte) error {
		accepted.Store(w.node.Client.Broadcast(ctx, raw) == nil)
		<-ctx.Done()
		return ctx.Err()
	}
	w.node.down.Store(true)
	w.abandon(w.claim(transfer, payment.Included), accepted.Load)
	w.engine.Stop()
	w.mine(3) // so that every settled one has to be looked for below the head
	w.sees()
	w.engine = w.start(pathless{&probe{Client: w.node.Client}})
	w.awaitState(transfer, ledger.Settled)
}

func TestUnclearBroadcastKeepsTheIntentAndIsRepeated(t *testing.T) {
	t.Parallel()
	for _, answer := range []error{
		&chain.AmbiguousError{Err: errors.New("gateway timeout")},
		&chain.RejectedError{Kind: chain.Underpriced, Reason: "transaction underpriced"},
		errors.New("anything"),
	} {
		t.Run(answer.Error(), func(t *testing.T) {
			w := newWorld(t)
			transfer := w.authorize()
			failed := false
			w.node.broadcast = func(ctx context.Context, raw []byte) error {
				if !failed {
					failed = true
					return answer
				}
				return w.node.Client.Broadcast(ctx, raw)
			}
			job := w.claim(transfer, payment.Included)
			w.abandon(job, w.sent)
			if r := w.record(transfer); r.State != ledger.Intent {
				t.Errorf("it is %s", r.State)
			}
			w.clock.Advance(5 * time.Second)
			w.mineUntil(transfer, ledger.Settled, ledger.Archived)
			w.wantEarned(1000)
			if n := len(w.node.transactions()); n != 1 {
				t.Errorf("%d transactions", n)
			}
		})
	}
}

func TestLaneWhoseKeyIsUsedElsewhereIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Fatal(err)
	}
	w.engine.Stop()
	w.sendMined(w.chain.Account("facilitator"), w.authorize().Calldata())
	w.engine = w.start(w.node)
	before := w.node.broadcasts()
	transfer := w.authorize()
	for range 2 {
		ctx, cancel := within(t, 20*time.Second)
		defer cancel()
		_, err := w.engine.Settle(ctx, w.claimOrGet(transfer))
		wantUnavailable(t, err)
		var shared *settle.SharedKeyError
		if !errors.As(err, &shared) || shared.Chain != 2 || shared.Ledger != 1 || shared.Lane != w.engine.Lane() {
			t.Fatalf("got %v", err)
		}
	}
	if r := w.record(transfer); r.State != ledger.Reserved || w.node.broadcasts() != before {
		t.Errorf("it is %s", r.State)
	}
}

// A boastful node says, until it is honest, that accounts have sent more than
// they have.
type boastful struct {
	*probe
	honest atomic.Bool
}

func (n *boastful) NonceAt(ctx context.Context, account common.Address) (uint64, error) {
	nonce, err := n.probe.NonceAt(ctx, account)
	if !n.honest.Load() {
		nonce += 5
	}
	return nonce, err
}

// A lane was refused until the next restart.
func TestALaneThatWasRefusedForOneWrongAnswerIsTakenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Fatal(err)
	}
	w.engine.Stop()
	node := &boastful{probe: &probe{Client: w.node.Client}}
	w.engine = w.start(node)
	var shared *settle.SharedKeyError
	transfer := w.authorize()
	ctx, cancel := within(t, 40*time.Second)
	defer cancel()
	if _, err := w.engine.Settle(ctx, w.claimOrGet(transfer)); !errors.As(err, &shared) {
		t.Fatalf("got %v", err)
	}
	node.honest.Store(true)
	w.clock.Advance(2 * time.Minute)
	w.mine(1)
	for {
		_, err := w.engine.Settle(ctx, w.claimOrGet(transfer))
		if err == nil {
			break
		}
		if !errors.As(err, &shared) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	w.wantEarned(2000)
}

// claimOrGet is claim for a payment that may be claimed already.
func (w *world) claimOrGet(transfer *evm.Transfer) settle.Job {
	w.t.Helper()
	key := transfer.Key(84532, common.HexToAddress(w.offer.Amount.Token().Address))
	r, err := w.ledger.Get(w.t.Context(), key)
	if err != nil {
		return w.claim(transfer, payment.Included)
	}
	return settle.Job{Record: r, Signed: evm.OfTransfer(common.HexToAddress(w.offer.Amount.Token().Address), transfer), Charge: w.offer.Amount}
}

func TestLaneWhoseKeyComesToBeUsedElsewhereIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w.sendMined(w.chain.Account("facilitator"), w.authorize().Calldata())
	}
	var refused atomic.Bool
	w.node.broadcast = func(ctx context.Context, raw []byte) error {
		err := w.node.Client.Broadcast(ctx, raw)
		var rejected *chain.RejectedError
		if errors.As(err, &rejected) && rejected.Kind == chain.NonceTooLow {
			defer refused.Store(true)
		}
		return err
	}
	w.abandon(w.claim(w.authorize(), payment.Included), refused.Load)
	var shared *settle.SharedKeyError
	if _, err := w.settle(w.authorize(), payment.Included); !errors.As(err, &shared) {
		t.Errorf("got %v", err)
	}
}

func TestGasAboveTheCeilingIsNotPaid(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *settle.Config) { c.MaxFeePerGas = big.NewInt(1) })
	transfer := w.authorize()
	_, err := w.settle(transfer, payment.Included)
	if u := wantUnavailable(t, err); !strings.Contains(u.Error(), "max_fee_per_gas") {
		t.Errorf("got %v", err)
	}
	if r := w.record(transfer); r.State != ledger.Reserved || len(r.Slots) != 0 || w.node.broadcasts() != 0 {
		t.Errorf("record %+v", r)
	}
}

func TestFeeCapNeverExceedsTheCeiling(t *testing.T) {
	t.Parallel()
	ceiling := big.NewInt(0)
	w := newWorld(t)
	head, err := w.node.Head()
	if err != nil {
		t.Fatal(err)
	}
	tip, err := w.node.TipCap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ceiling.Add(head.BaseFee, tip).Add(ceiling, big.NewInt(1e6))
	w.engine.Stop()
	w.engine = w.start(w.node, func(c *settle.Config) { c.MaxFeePerGas = ceiling })
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Fatal(err)
	}
	var tx types.Transaction
	if err := tx.UnmarshalBinary(w.node.transactions()[0]); err != nil || tx.GasFeeCap().Cmp(ceiling) > 0 || tx.GasTipCap().Cmp(tx.GasFeeCap()) > 0 {
		t.Errorf("fee cap %s, tip %s, ceiling %s, %v", tx.GasFeeCap(), tx.GasTipCap(), ceiling, err)
	}
}

func TestLaneWithoutMoneyStoresNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.chain.SetETHBalance(w.engine.Lane(), new(big.Int)); err != nil {
		t.Fatal(err)
	}
	transfer := w.authorize()
	_, err := w.settle(transfer, payment.Included)
	wantUnavailable(t, err)
	if r := w.record(transfer); r.State != ledger.Reserved || len(r.Slots) != 0 || w.node.broadcasts() != 0 {
		t.Errorf("record %+v", r)
	}
	if _, known, err := w.ledger.Lane(t.Context(), payment.EVM(84532), w.engine.Lane().Hex()); known || err != nil {
		t.Errorf("the lane is stored, %v", err)
	}
}

func TestSettlementsAreAsFinalAsTheyAskFor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		until  payment.Finality
		blocks int // in all, that of the transfer included; devchain finalizes after 4 more and calls 2 more safe
	}{
		{payment.Submitted, 0}, {payment.Included, 1}, {payment.Confirmed(3), 3}, {payment.Safe, 3}, {payment.Finalized, 5},
	} {
		t.Run(c.until.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.chain.Pause()
			transfer := w.authorize()
			job := w.claim(transfer, c.until)
			ctx, cancel := within(t, 20*time.Second)
			defer cancel()
			done := make(chan error, 1)
			go func() { // ends with ctx
				_, err := w.engine.Settle(ctx, job)
				done <- err
			}()
			if c.blocks > 0 {
				w.awaitState(transfer, ledger.Sent)
			}
			if c.blocks > 1 {
				w.mine(c.blocks - 1)
				w.awaitState(transfer, ledger.Included)
				w.sees()
				select {
				case err := <-done:
					t.Fatalf("settled %d blocks too early: %v", 1, err)
				case <-time.After(100 * time.Millisecond):
				}
			}
			if c.blocks > 0 {
				w.mine(1)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			r := w.record(transfer)
			if r.State.Paid() != (c.blocks > 0) || !r.State.Broadcast() {
				t.Errorf("it is %s", r.State)
			}
			w.mineUntil(transfer, ledger.Archived)
			w.wantEarned(1000)
		})
	}
}

func TestReleasedPaymentCanBeSettledLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	job := w.claim(transfer, payment.Included)
	w.release(job.Record)
	w.engine.Stop()
	w.engine = w.start(w.node) // it watches the released payment
	other := w.offer
	w.offer = facilitatortest.Offer(t, 1000, w.chain.Account("payer4").Address)
	again := facilitatortest.Sign(t, w.payer.Key, evm.Authorization{
		From: transfer.From, To: common.HexToAddress(w.offer.PayTo), Value: big.NewInt(1000),
		ValidAfter: transfer.ValidAfter, ValidBefore: transfer.ValidBefore, Nonce: transfer.Nonce,
	}, w.offer.Amount.Token())
	before := w.chain.USDCBalance(common.HexToAddress(w.offer.PayTo))
	s, err := w.settle(again, payment.Included)
	if err != nil {
		t.Fatal(err)
	}
	w.offer = other
	w.wantEarned(0)
	after := w.chain.USDCBalance(again.To)
	if new(big.Int).Sub(after, before).Int64() != 1000 || s.Transaction == "" {
		t.Errorf("from %s to %s", before, after)
	}
	w.mineUntil(again, ledger.Archived)
}

func (w *world) release(r ledger.Record) {
	w.t.Helper()
	if _, err := w.ledger.Update(w.t.Context(), r.Key, func(r *ledger.Record) error { return r.To(ledger.Released) }); err != nil {
		w.t.Fatal(err)
	}
}

func TestReleasedPaymentIsWatchedUntilItExpires(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.chain.Pause()
	unused, used := w.authorize(), w.authorize()
	w.release(w.claim(unused, payment.Included).Record)
	w.release(w.claim(used, payment.Included).Record)
	w.engine.Stop()
	w.engine = w.start(w.node)
	w.send(w.chain.Account("facilitator2"), used.Calldata())
	w.mine(2)
	w.sees()
	w.expire(2 * time.Hour)
	w.mine(3)
	w.sees()
	if r := w.record(unused); r.State != ledger.Released {
		t.Errorf("%s before its end is final", r.State)
	}
	w.mineUntil(unused, ledger.Dead)
	w.awaitState(used, ledger.Settled, ledger.Archived)
	w.mineUntil(used, ledger.Archived)
	w.wantEarned(1000)
}

func TestPaymentsOfARemoteFacilitatorAreLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	asked, paid := w.authorize(), w.authorize()
	for _, transfer := range []*evm.Transfer{asked, paid} {
		if _, err := w.ledger.Update(t.Context(), w.claim(transfer, payment.Included).Record.Key, func(r *ledger.Record) error {
			if err := r.To(ledger.Intent); err != nil || transfer == asked {
				return err
			}
			r.Included = &ledger.Inclusion{Transaction: "0x01"}
			return r.To(ledger.Settled)
		}); err != nil {
			t.Fatal(err)
		}
	}
	w.engine.Stop()
	w.engine = w.start(w.node)
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Fatal(err)
	}
	w.clock.Advance(2 * time.Hour)
	w.mine(8)
	w.sees()
	if a, p := w.record(asked).State, w.record(paid).State; a != ledger.Intent || p != ledger.Settled {
		t.Errorf("%s and %s", a, p)
	}
}

func TestEngineNeedsItsParts(t *testing.T) {
	t.Parallel()
	l := ledger.New(ledger.NewMemory(), "one", time.Now)
	for name, c := range map[string]settle.Config{
		"network": {Network: "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", Chain: &probe{}, Ledger: l, Signers: []payment.CallSigner{facilitatortest.Lane{}}},
		"chain":   {Network: "eip155:1", Ledger: l, Signers: []payment.CallSigner{facilitatortest.Lane{}}},
		"ledger":  {Network: "eip155:1", Chain: &probe{}, Signers: []payment.CallSigner{facilitatortest.Lane{}}},
		"signer":  {Network: "eip155:1", Chain: &probe{}, Ledger: l},
	} {
		if _, err := settle.New(c); err == nil {
			t.Errorf("an engine without its %s", name)
		}
	}
}

func TestHangingNodeDoesNotHoldUpTheDeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	w.node.hang = make(chan struct{})
	t.Cleanup(func() { close(w.node.hang) })
	job := w.claim(transfer, payment.Included)
	ctx, cancel := within(t, time.Second)
	defer cancel()
	began := time.Now()
	var group sync.WaitGroup
	group.Go(func() {
		_, err := w.engine.Settle(ctx, job)
		wantPending(t, err)
	})
	w.awaitState(transfer, ledger.Intent, ledger.Sent)
	for range 4 {
		group.Go(func() {
			_, err := w.engine.Resume(ctx, w.record(transfer))
			wantPending(t, err)
		})
	}
	group.Wait()
	if waited := time.Since(began); waited > 5*time.Second {
		t.Errorf("it answered after %s", waited)
	}
}

func TestTransferThatTakesTooMuchGasIsNotSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *settle.Config) { c.MaxGas = 30_000 })
	transfer := w.authorize()
	_, err := w.settle(transfer, payment.Included)
	if u := wantUnavailable(t, err); !strings.Contains(u.Error(), "the limit is 30000") {
		t.Errorf("got %v", err)
	}
	if r := w.record(transfer); r.State != ledger.Reserved || w.node.broadcasts() != 0 {
		t.Errorf("it is %s", r.State)
	}
}

func TestSignerThatFailsLeavesNoGap(t *testing.T) {
	t.Parallel()
	broken := &brokenSigner{}
	w := newWorld(t, func(c *settle.Config) { broken.CallSigner, c.Signers[0] = c.Signers[0], broken })
	transfer := w.authorize()
	for _, answer := range []func() ([]byte, error){
		func() ([]byte, error) { return nil, errors.New("the signer is away") },
		func() ([]byte, error) { return nil, nil },
	} {
		broken.answer = answer
		_, err := w.engine.Settle(t.Context(), w.claimOrGet(transfer))
		wantUnavailable(t, err)
		if r := w.record(transfer); r.State != ledger.Reserved || len(r.Slots) != 0 {
			t.Errorf("record %+v", r)
		}
	}
	broken.answer = nil
	ctx, cancel := within(t, 20*time.Second)
	defer cancel()
	if _, err := w.engine.Settle(ctx, w.claimOrGet(transfer)); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(1000)
}

// A brokenSigner answers as it is told, and signs otherwise.
type brokenSigner struct {
	payment.CallSigner
	answer func() ([]byte, error)
}

func (b *brokenSigner) SignCall(ctx context.Context, c *payment.LaneCall) ([]byte, error) {
	if b.answer != nil {
		return b.answer()
	}
	return b.CallSigner.SignCall(ctx, c)
}

func TestFailedDiskLeavesTheOutcomeOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	job := w.claim(transfer, payment.Included)
	w.history.broken.Store(true)
	_, err := w.engine.Settle(t.Context(), job)
	wantPending(t, err)
	if n := w.node.broadcasts(); n != 0 {
		t.Errorf("%d broadcasts", n)
	}
}
