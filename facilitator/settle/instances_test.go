package settle_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// instance starts another process on the same store, with the same lane.
func (w *world) instance(owner string, adjust ...func(*settle.Config)) *world {
	w.t.Helper()
	other := *w
	other.node = &probe{Client: facilitatortest.Client(w.t, w.chain.URL())}
	other.ledger = ledger.New(w.history, owner, w.clock.Now)
	other.engine = other.start(other.node, adjust...)
	return &other
}

// lapse lets so much time pass, in which the living say in every second that
// they are alive, however long the machine takes for that.
func (w *world) lapse(d time.Duration, living ...string) {
	w.t.Helper()
	for range d / time.Second {
		before := map[string]uint64{}
		for _, owner := range living {
			before[owner] = w.heard(owner)
		}
		w.clock.Advance(time.Second)
		w.mine(1)
		for deadline := time.Now().Add(20 * time.Second); slices.ContainsFunc(living, func(owner string) bool { return w.heard(owner) == before[owner] }); {
			time.Sleep(2 * time.Millisecond)
			if time.Now().After(deadline) {
				w.t.Fatalf("%v do not say that they are alive", living)
			}
		}
	}
}

// heard returns how often an instance has said that it is alive.
func (w *world) heard(owner string) uint64 {
	w.t.Helper()
	e, err := w.history.Get(w.t.Context(), ledger.Key("alive/"+owner))
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		w.t.Fatal(err)
	}
	return e.Version
}

func (w *world) keeper() string {
	w.t.Helper()
	lane, _, err := w.ledger.Lane(w.t.Context(), payment.EVM(84532), w.engine.Lane().Hex())
	if err != nil {
		w.t.Fatal(err)
	}
	return lane.Keeper
}

// awaitKeeper mines until an instance keeps the lane.
func (w *world) awaitKeeper(owner string) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); w.keeper() != owner; time.Sleep(5 * time.Millisecond) {
		w.mine(1)
		if time.Now().After(deadline) {
			w.t.Fatalf("%q keeps the lane", w.keeper())
		}
	}
}

func TestTwoInstancesShareALaneWithoutSigningANonceTwice(t *testing.T) {
	t.Parallel()
	const each = 20
	w := newWorld(t)
	w.engine.Stop()
	one, two := w.instance("a"), w.instance("b")
	ctx, cancel := within(t, 60*time.Second)
	defer cancel()
	var group sync.WaitGroup
	for i := range 2 * each {
		in := one
		if i%2 == 1 {
			in = two
		}
		job := in.claim(in.authorize(), payment.Included)
		group.Go(func() {
			if _, err := in.engine.Settle(ctx, job); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	w.wantEarned(2 * each * 1000)
	data := map[uint64][]byte{}
	for _, in := range []*world{one, two} {
		for _, tx := range in.decoded() {
			if other, known := data[tx.Nonce()]; known && !bytes.Equal(other, tx.Data()) {
				t.Errorf("nonce %d was signed for two sets of payments", tx.Nonce())
			}
			data[tx.Nonce()] = tx.Data()
		}
	}
	if uint64(len(data)) != w.nonce() {
		t.Errorf("%d nonces were used, the lane is at %d", len(data), w.nonce())
	}
}

func TestThePaymentsAndTheLaneOfADeadInstanceAreTakenOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.engine.Stop()
	w.chain.Pause()
	dying := w.instance("a")
	settled := dying.authorize()
	if _, err := dying.settleMining(settled); err != nil {
		t.Fatal(err)
	}
	w.awaitKeeper("a")
	heir := w.instance("b")
	w.lapse(4*time.Second, "a", "b") // they see each other
	sent := len(heir.node.transactions())
	claimed, under := dying.authorize(), dying.authorize()
	dying.claim(claimed, payment.Included)
	dying.unsent(under)
	w.lapse(3*time.Second, "b")
	if r := w.record(claimed); w.keeper() != "a" || r.State != ledger.Reserved || len(heir.node.transactions()) != sent {
		t.Fatalf("after 3 seconds %q keeps the lane, the payment is %s", w.keeper(), r.State)
	}
	w.lapse(7*time.Second, "b")
	heir.awaitState(claimed, ledger.Released)
	heir.awaitState(under, ledger.Sent, ledger.Included, ledger.Settled, ledger.Archived)
	if w.keeper() != "b" {
		t.Errorf("%q keeps the lane", w.keeper())
	}
	w.mineUntil(under, ledger.Settled, ledger.Archived)
	w.wantEarned(2000)
	// The lane goes on.
	if _, err := heir.settleMining(heir.authorize()); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(3000)
}

func TestALivingInstanceKeepsItsLaneAndItsPayments(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.engine.Stop()
	w.chain.Pause()
	one := w.instance("a")
	if _, err := one.settleMining(one.authorize()); err != nil {
		t.Fatal(err)
	}
	w.awaitKeeper("a")
	two := w.instance("b")
	claimed := one.authorize()
	one.claim(claimed, payment.Included)
	if _, err := two.settleMining(two.authorize()); err != nil {
		t.Fatal(err)
	}
	w.lapse(15*time.Second, "a", "b")
	if r := w.record(claimed); w.keeper() != "a" || r.State != ledger.Reserved {
		t.Errorf("%q keeps the lane, the payment is %s", w.keeper(), r.State)
	}
	w.wantEarned(2000)
}

func TestAnInstanceWhoseNodeDoesNotAnswerIsNotTakenForDead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.engine.Stop()
	w.chain.Pause()
	one := w.instance("a")
	if _, err := one.settleMining(one.authorize()); err != nil {
		t.Fatal(err)
	}
	w.awaitKeeper("a")
	two := w.instance("b")
	claimed := one.authorize()
	one.claim(claimed, payment.Included)
	one.node.stalled.Store(true)
	if _, err := two.settleMining(two.authorize()); err != nil {
		t.Fatal(err)
	}
	w.lapse(15*time.Second, "a", "b")
	if r := w.record(claimed); w.keeper() != "a" || r.State != ledger.Reserved || two.ledger.Deaths() != 0 {
		t.Errorf("%q keeps the lane, the payment is %s, %d deaths", w.keeper(), r.State, two.ledger.Deaths())
	}
}

// What is planted is found, each kind once, and nothing else.
func TestReconcilingFindsEveryKindOfDifference(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.chain.Pause()
	honest := w.authorize()
	if _, err := w.settleMining(honest); err != nil {
		t.Fatal(err)
	}
	w.mineUntil(honest, ledger.Archived)
	if found, err := w.engine.Reconcile(t.Context()); err != nil || len(found) != 0 {
		t.Fatalf("differences %+v, %v", found, err)
	}

	unknown, dead, dearer, lost := w.authorize(), w.authorize(), w.authorize(), w.authorize()
	w.change(dead, func(r *ledger.Record) error { r.IntentBlock = 1; return r.To(ledger.Intent) })
	w.change(dead, func(r *ledger.Record) error { return r.To(ledger.Dead) })
	hashes := map[settle.DifferenceKind]common.Hash{}
	for kind, transfer := range map[settle.DifferenceKind]*evm.Transfer{settle.Unknown: unknown, settle.Contradicted: dead, settle.Mispriced: dearer} {
		hashes[kind] = w.send(w.chain.Account("facilitator2"), transfer.Calldata())
		w.mine(1)
	}
	hashes[settle.Plain] = w.send(w.payer, paying(w.seller, w.offer.Amount.Big()))
	w.mine(1)
	receipt, err := w.chain.Client().TransactionReceipt(t.Context(), hashes[settle.Mispriced])
	if err != nil {
		t.Fatal(err)
	}
	at := ledger.Inclusion{
		Transaction: receipt.TxHash.Hex(), Block: receipt.BlockNumber.Uint64(), BlockHash: receipt.BlockHash.Hex(), LogIndex: receipt.Logs[1].Index,
	}
	archive := func(transfer *evm.Transfer, charge string, included ledger.Inclusion) {
		w.change(transfer, func(r *ledger.Record) error {
			r.IntentBlock, r.Charge, r.Included = 1, charge, &included
			return r.To(ledger.Settled)
		})
		w.change(transfer, func(r *ledger.Record) error { return r.To(ledger.Archived) })
	}
	archive(dearer, "999", at)
	at.Transaction, hashes[settle.Missing] = common.HexToHash("0xdead").Hex(), common.HexToHash("0xdead")
	archive(lost, "1000", at)
	w.mine(6)
	w.sees()

	found, err := w.engine.Reconcile(t.Context())
	if err != nil || len(found) != len(hashes) {
		t.Fatalf("differences %+v, %v", found, err)
	}
	for _, d := range found {
		if d.Transaction != hashes[d.Kind].Hex() || d.Payer != w.payer.Address || d.PayTo != w.seller || d.Network != payment.EVM(84532) {
			t.Errorf("difference %+v", d)
		}
		delete(hashes, d.Kind)
	}
	if len(hashes) != 0 {
		t.Errorf("not found: %v", hashes)
	}
	w.mine(6)
	if found, err := w.engine.Reconcile(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("again differences %+v, %v", found, err)
	}
}

// change claims a payment, unless it is claimed already, and changes what is
// stored of it.
func (w *world) change(transfer *evm.Transfer, change func(*ledger.Record) error) {
	w.t.Helper()
	job := w.claimOrGet(transfer)
	if _, err := w.ledger.Update(context.Background(), job.Record.Key, change); err != nil {
		w.t.Fatal(err)
	}
}
