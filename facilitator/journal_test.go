package facilitator_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A desk is a journal over a fake, with a claimed payment.
type desk struct {
	t       testing.TB
	fake    *facilitatortest.Fake
	other   facilitatortest.Fake // what another process asks
	store   ledger.Store
	ledger  *ledger.Ledger
	journal *facilitator.Journal
	offer   *payment.Offer
	payment *payment.Payment
	id      facilitator.Identity
}

func newDesk(t testing.TB) *desk {
	t.Helper()
	store := ledger.NewMemory()
	d := &desk{t: t, fake: &facilitatortest.Fake{}, store: store, ledger: ledger.New(store, "one", time.Now)}
	d.journal = &facilitator.Journal{Facilitator: d.fake, Ledger: d.ledger}
	d.offer, d.payment, _ = paying(t, payment.V2)
	d.payment.Binding = payment.Fingerprint{1}
	var err error
	if d.id, err = facilitator.Identify(d.payment, d.offer); err != nil {
		t.Fatal(err)
	}
	d.claim()
	return d
}

func (d *desk) claim() {
	d.t.Helper()
	if _, err := d.ledger.Claim(d.t.Context(), ledger.Record{
		Key: d.id.Key, State: ledger.Reserved, Binding: d.payment.Binding, Proof: d.id.Proof, Network: d.offer.Network(),
		Payer: d.id.Payer, Charge: "1000", Until: "included", Request: []byte("{}"),
	}, time.Minute); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) settle() (*payment.Settlement, error) {
	return d.journal.Settle(soon(d.t), d.payment, d.offer, d.offer.Amount)
}

func (d *desk) wantState(want ledger.State) ledger.Record {
	d.t.Helper()
	r, err := d.ledger.Get(d.t.Context(), d.id.Key)
	if err != nil || r.State != want {
		d.t.Fatalf("it is %s, %v, want %s", r.State, err, want)
	}
	return r
}

func TestIntentIsStoredBeforeTheRequestLeaves(t *testing.T) {
	d := newDesk(t)
	d.fake.Settling = func(context.Context) error {
		d.wantState(ledger.Intent)
		return nil
	}
	first, err := d.settle()
	if err != nil {
		t.Fatal(err)
	}
	if r := d.wantState(ledger.Settled); r.Transaction() != first.Transaction {
		t.Errorf("settled as %s, stored as %s", first.Transaction, r.Transaction())
	}
	again, err := d.settle()
	if err != nil || again.Transaction != first.Transaction || again.Payer != first.Payer || again.Amount.Cmp(first.Amount) != 0 {
		t.Errorf("got %+v, %v, want %+v", again, err, first)
	}
	if d.fake.Calls() != 1 || d.fake.Transfers() != 1 {
		t.Errorf("%d calls, %d transfers", d.fake.Calls(), d.fake.Transfers())
	}
}

func TestLostAnswerIsAskedForAgain(t *testing.T) {
	d := newDesk(t)
	lost := &payment.UnavailableError{Doing: "asking", Err: errors.New("the line was cut"), Pending: true}
	d.fake.Settled = func(context.Context) error { return lost }
	for range 3 {
		_, err := d.settle()
		wantUnavailable(t, err, true)
		d.wantState(ledger.Intent)
	}
	d.fake.Settled = nil
	s, err := d.settle()
	if err != nil {
		t.Fatal(err)
	}
	if r := d.wantState(ledger.Settled); r.Transaction() != s.Transaction || d.fake.Transfers() != 1 || d.fake.Calls() != 4 {
		t.Errorf("%d transfers in %d calls", d.fake.Transfers(), d.fake.Calls())
	}
}

// After an unclear call no refusal counts, whatever its reason: the money may
// have moved, and the refusal may be because of that.
func TestPaymentIsNeverReleasedAfterAnUnclearCall(t *testing.T) {
	for _, refusal := range []error{
		payment.Invalid(payment.EVMNonceUsed, ""), payment.Invalid(payment.EVMTransactionFailed, ""), payment.Invalid(payment.EVMInsufficientBalance, ""),
		payment.Invalid("anything", ""), &payment.UnavailableError{Doing: "dialing"},
	} {
		d := newDesk(t)
		answer := error(&payment.UnavailableError{Doing: "asking", Pending: true})
		d.fake.Settling = func(context.Context) error { return answer }
		_, err := d.settle()
		wantUnavailable(t, err, true)
		answer = refusal
		for range 2 {
			_, err = d.settle()
			wantUnavailable(t, err, true)
			d.wantState(ledger.Intent)
		}
	}
}

func TestRestartRepeatsTheRequest(t *testing.T) {
	d := newDesk(t)
	d.fake.Settling = func(context.Context) error { return &payment.UnavailableError{Doing: "asking", Pending: true} }
	_, err := d.settle()
	wantUnavailable(t, err, true)
	d.fake.Settling = nil
	d.journal = &facilitator.Journal{Facilitator: d.fake, Ledger: d.ledger}
	if n, err := d.ledger.Recover(t.Context(), true); n != 0 || err != nil {
		t.Errorf("recovery released %d, %v", n, err)
	}
	if _, err := d.settle(); err != nil {
		t.Fatal(err)
	}
	d.wantState(ledger.Settled)
}

func TestClearRefusalReleasesThePayment(t *testing.T) {
	d := newDesk(t)
	for _, refusal := range []error{payment.Invalid(payment.EVMInsufficientBalance, "poor"), &payment.UnavailableError{Doing: "dialing", Err: errors.New("refused")}} {
		d.fake.Settling = func(context.Context) error { return refusal }
		_, err := d.settle()
		if err != refusal {
			t.Errorf("got %v, want %v", err, refusal)
		}
		if r := d.wantState(ledger.Released); r.Reason == "" {
			t.Error("released without a reason")
		}
		d.claim()
	}
	d.fake.Settling = nil
	if _, err := d.settle(); err != nil {
		t.Fatal(err)
	}
	d.wantState(ledger.Settled)
}

func TestBugLeavesTheIntent(t *testing.T) {
	d := newDesk(t)
	bug := errors.New("a bug")
	d.fake.Settling = func(context.Context) error { return bug }
	if _, err := d.settle(); err != bug {
		t.Errorf("got %v", err)
	}
	d.wantState(ledger.Intent)
}

func TestJournalSettlesOnlyWhatIsClaimedForThisRequest(t *testing.T) {
	d := newDesk(t)
	d.payment.Binding = payment.Fingerprint{2}
	_, err := d.settle()
	wantInvalid(t, err, payment.DuplicateSettlement)
	d.wantState(ledger.Reserved)
	_, unclaimed, _ := paying(t, payment.V2)
	if _, err := d.journal.Settle(soon(t), unclaimed, d.offer, d.offer.Amount); err == nil {
		t.Error("settled what nobody has claimed")
	}
	if d.fake.Calls() != 0 {
		t.Errorf("%d calls", d.fake.Calls())
	}
}

func TestManyCallsThroughTheJournalAgree(t *testing.T) {
	d := newDesk(t)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if _, err := d.settle(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	d.wantState(ledger.Settled)
	if d.fake.Transfers() != 1 {
		t.Errorf("%d transfers", d.fake.Transfers())
	}
}

// another is a journal of another process on the desk's ledger and facilitator.
func (d *desk) another() *facilitator.Journal {
	store := ledger.NewShared(d.store, "two", time.Now)
	return &facilitator.Journal{Facilitator: &d.other, Ledger: store}
}

// While the first request for a payment is under way, another process asks,
// too, and gets no answer. That the first got nowhere says nothing then.
func TestRequestThatGetsNowhereReleasesNothingIfAnotherHasLeft(t *testing.T) {
	for _, answer := range []error{&payment.UnavailableError{Doing: "dialing"}, payment.Invalid(payment.EVMNonceUsed, "")} {
		d := newDesk(t)
		d.other.Settled = func(context.Context) error {
			return &payment.UnavailableError{Doing: "asking", Pending: true}
		}
		d.fake.Settling = func(ctx context.Context) error {
			_, err := d.another().Settle(ctx, d.payment, d.offer, d.offer.Amount)
			wantUnavailable(t, err, true)
			return answer
		}
		_, err := d.settle()
		wantUnavailable(t, err, true)
		d.wantState(ledger.Intent)
		if d.other.Transfers() != 1 {
			t.Error("the other process moved nothing")
		}
	}
}

// A process sleeps longer than its lease between reading a payment and storing
// its intent, and the payment is claimed for another request meanwhile.
func TestIntentIsNotStoredForSomebodyElsesClaim(t *testing.T) {
	d := newDesk(t)
	slow := &sleeper{Store: d.store}
	d.journal.Ledger = ledger.New(slow, "slow", time.Now)
	slow.wake = func() {
		_, err := d.ledger.Update(d.t.Context(), d.id.Key, func(r *ledger.Record) error { return r.To(ledger.Released) })
		if err != nil {
			t.Error(err)
		}
		mine := d.payment.Binding
		d.payment.Binding = payment.Fingerprint{2}
		d.claim()
		d.payment.Binding = mine
	}
	_, err := d.settle()
	wantInvalid(t, err, payment.DuplicateSettlement)
	if r := d.wantState(ledger.Reserved); r.Binding != (payment.Fingerprint{2}) || d.fake.Calls() != 0 {
		t.Errorf("bound to %v after %d calls", r.Binding, d.fake.Calls())
	}
}

// A sleeper calls wake after it has been read once.
type sleeper struct {
	ledger.Store
	wake func()
}

func (s *sleeper) Get(ctx context.Context, k ledger.Key) (ledger.Entry, error) {
	e, err := s.Store.Get(ctx, k)
	if wake := s.wake; wake != nil {
		s.wake = nil
		wake()
	}
	return e, err
}
