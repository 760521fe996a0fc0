package till

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// onCredit hands an answer over before its money has moved, if the route's
// caps and the payer's past allow that, and has it settled afterwards. What is
// exposed is on disk before the first byte goes out. done is false if the
// payment is to be settled first.
func (v *visit) onCredit(ctx context.Context, r *ledger.Record, a *answer) (done bool, err error) {
	caps, capped := v.caps(v.offer.Amount.Token())
	if !capped || !v.background.running() || v.lasts(r) < settleTime {
		return false, nil
	}
	until := v.now().Add(replayFor)
	doc, err := v.store(ctx, r, a, until)
	if err != nil {
		v.giveBack(r, err)
		return true, v.settleProblem(&payment.UnavailableError{Doing: "storing the upstream's answer", Err: err})
	}
	exposure := ledger.Exposure{Token: v.offer.Amount.Token().Address, Units: v.offer.Amount.Units()}
	exposed, err := v.Ledger.Expose(ctx, r, exposure, caps, func(now *ledger.Record) error {
		now.Mode = string(Optimistic)
		now.Delivery = ledger.Delivering
		now.Deliveries++
		return executed(r)(now)
	}, doc, until)
	switch {
	case errors.Is(err, ledger.ErrExposed):
		return false, nil
	case err != nil:
		v.giveBack(r, err)
		return true, v.settleProblem(&payment.UnavailableError{Doing: "storing what is exposed", Err: err})
	}
	v.sale.OnCredit, v.sale.Reason = true, string(payment.SettlementPending)
	v.stampPending(a.Header, "")
	v.handOver(a, &exposed)
	v.collectLater(r.Key)
	return true, nil
}

// settleTime is how long a payment must stay valid, at least, once what it pays
// for has been handed over: payers choose the end themselves, and one that
// comes before the settlement would make the goods free.
const settleTime = 15 * time.Second

// lasts returns for how long what the payer has signed is good yet.
func (v *visit) lasts(r *ledger.Record) time.Duration { return expiry(r).Sub(v.now()) }

// caps are the route's for a token, and no more of one payer than it could have
// paid when this payment was verified: many at once would each be covered, and
// not all of them together.
func (v *visit) caps(t payment.Token) (caps ledger.Caps, capped bool) {
	caps, capped = v.route.Exposure[t]
	if v.funds != nil && (caps.PerPayer == nil || v.funds.Cmp(caps.PerPayer) < 0) {
		caps.PerPayer = v.funds
	}
	return caps, capped
}

// onCreditAgain gives the answer again that was given on credit, to the same
// request.
func (v *visit) onCreditAgain(ctx context.Context, r ledger.Record) error {
	v.collectLater(r.Key)
	pending := &payment.UnavailableError{Doing: "settling what was handed over", Pending: true, Transaction: r.Transaction(), Payer: r.Payer}
	kept, err := v.stored(ctx, &r)
	if err != nil {
		return v.settleProblem(pending)
	}
	v.sale.OnCredit, v.sale.Replayed = true, true
	v.sale.Reason, v.sale.Transaction = string(payment.SettlementPending), r.Transaction()
	v.stampPending(kept.Header, r.Transaction())
	v.handOver(kept, &r)
	return nil
}

// A background is what a till does without a request: it settles what was
// handed over on credit and tends to what is owed.
type background struct {
	mu     sync.Mutex
	ctx    context.Context // guarded by mu: nil unless it runs
	cancel context.CancelFunc
	owing  map[payment.Key]bool // guarded by mu: the payments that are being collected
	group  sync.WaitGroup
}

func (b *background) running() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ctx != nil
}

// Start begins the work that no request waits for, with what an earlier
// process left of it. Until then nothing is handed over on credit.
func (t *Till) Start() {
	b := &t.background
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx != nil {
		return
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.owing = map[payment.Key]bool{}
	ctx := b.ctx
	b.group.Go(func() { t.tendForever(ctx) }) // ends with ctx; Stop waits
}

// Stop ends that work and waits for it. What is not done stays in the ledger
// for the next process.
func (t *Till) Stop() {
	b := &t.background
	b.mu.Lock()
	if b.ctx == nil {
		b.mu.Unlock()
		return
	}
	b.cancel()
	b.ctx = nil
	b.mu.Unlock()
	b.group.Wait()
}

func (t *Till) tendForever(ctx context.Context) {
	tick := time.NewTicker(orElse(t.Every, time.Minute))
	defer tick.Stop()
	for {
		if err := t.Tend(ctx); err != nil && ctx.Err() == nil {
			t.log().Error("looking for what is owed failed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// collectLater has a payment settled whose goods have been handed over.
func (t *Till) collectLater(k payment.Key) {
	b := &t.background
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx == nil || b.owing[k] {
		return
	}
	b.owing[k] = true
	ctx := b.ctx
	b.group.Go(func() { // ends with ctx, or when the payment is settled or lost; Stop waits
		t.collect(ctx, k)
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.owing, k)
	})
}

// The pauses between attempts to collect one payment.
const (
	firstCollect = 100 * time.Millisecond
	lastCollect  = 5 * time.Second
)

// collect settles a payment until it is settled or lost.
func (t *Till) collect(ctx context.Context, k payment.Key) {
	for wait := firstCollect; ; wait = min(2*wait, lastCollect) {
		done, err := t.collectOnce(ctx, k)
		if done || ctx.Err() != nil {
			return
		}
		t.log().Warn("what was handed over is not paid yet", "payment", k.String(), "error", err)
		pause := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
	}
}

// lapse is how long after the end of an authorization a refusal of it is
// believed to be for good.
const lapse = time.Minute

// collectOnce asks for the money once. done reports that it has come, or that
// it is lost.
func (t *Till) collectOnce(ctx context.Context, k payment.Key) (done bool, err error) {
	r, err := t.Ledger.Get(ctx, k)
	if err != nil {
		return false, err
	}
	if done, err := t.covered(ctx, &r); done || err != nil {
		return done, err
	}
	if r.Mode == string(Metered) && r.State == ledger.Executing {
		ended, err := t.endStream(ctx, &r)
		if err != nil || !ended {
			return err == nil, err // Tend looks again
		}
	}
	asked, cancel := context.WithTimeout(ctx, defaultDeadline)
	defer cancel()
	refusal := t.settleStored(asked, &r)
	if r, err = t.Ledger.Get(ctx, k); err != nil {
		return false, err
	}
	if done, err := t.covered(ctx, &r); done || err != nil {
		return done, err
	}
	var invalid *payment.InvalidError
	var unavailable *payment.UnavailableError
	if errors.As(refusal, &unavailable) || !errors.As(refusal, &invalid) || !t.now().After(expiry(&r).Add(lapse)) {
		return false, refusal // it may still come
	}
	switch {
	case r.State.Working():
		// Nothing of ours is under way. Whether somebody else's is shows
		// when the time has passed for good.
		_, err = t.Ledger.Update(ctx, k, func(now *ledger.Record) error {
			if now.Claims != r.Claims || !now.State.Working() {
				return ledger.ErrStale
			}
			now.Reason = invalid.Error()
			return now.To(ledger.Released)
		})
	case r.State == ledger.Released && !t.Proves:
		return true, t.writeOff(ctx, &r, invalid.Error())
	}
	return false, errors.Join(refusal, err)
}

// settleStored settles a payment from what the ledger holds of it.
func (t *Till) settleStored(ctx context.Context, r *ledger.Record) error {
	p, o, err := payment.DecodeRequest(r.Request)
	if err != nil {
		return fmt.Errorf("till: reading the stored request of payment %s: %w", r.Key, err)
	}
	p.Binding = r.Binding
	if o.Until, err = payment.ParseFinality(r.Until); err != nil {
		return fmt.Errorf("till: payment %s: %w", r.Key, err)
	}
	charge, err := charged(r, o)
	if err != nil {
		return err
	}
	_, err = t.Facilitator.Settle(ctx, p, o, charge)
	return err
}

// covered ends the exposure of a payment whose outcome is known.
func (t *Till) covered(ctx context.Context, r *ledger.Record) (done bool, err error) {
	switch {
	case r.Exposed == nil:
		return true, nil
	case r.State.Paid():
		_, err = t.Ledger.Covered(ctx, r.Key, false, func(*ledger.Record) error { return nil })
		return err == nil, err
	case r.State == ledger.Dead:
		err = t.writeOff(ctx, r, r.Reason)
		return err == nil, err
	}
	return false, nil
}

// writeOff books a loss. Its payer is never trusted again.
func (t *Till) writeOff(ctx context.Context, r *ledger.Record, why string) error {
	stored, err := t.Ledger.Covered(ctx, r.Key, true, func(now *ledger.Record) error {
		if now.State != r.State {
			return ledger.ErrStale
		}
		now.Reason = why
		return now.To(ledger.WrittenOff)
	})
	if err != nil {
		return err
	}
	t.log().Error("written off: the goods were handed over and never paid", "payment", r.Key.String(), "payer", r.Payer, "units", r.Charge, "network", string(r.Network), "reason", why)
	if t.Lost != nil {
		t.Lost(&stored)
	}
	return nil
}
