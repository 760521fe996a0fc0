package till

import (
	"context"
	"errors"
	"time"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A Bill is something that is paid for by itself, with no upstream behind it:
// what the payment buys is what Claim writes.
type Bill struct {
	Payment *payment.Payment // its Binding is set by Collect
	Offer   *payment.Offer   // the one that it pays

	// Binding names the bill: the payment pays this one, and nothing else.
	Binding payment.Fingerprint

	// Mode is who claims the payment.
	Mode string

	// Claim writes, in the commit that claims the payment, what the payment
	// is for. Its error keeps the payment from being claimed, and is
	// returned by Collect as it is.
	Claim ledger.Rider

	// Deadline bounds how long Collect waits for the chain or the
	// facilitator. Default: 10 s.
	Deadline time.Duration
}

// ErrBoundElsewhere says that a payment belongs to something else than it has
// come with.
var ErrBoundElsewhere = errors.New("till: this payment belongs to another request")

// forever is for how long what a bill's payment buys can be asked for: it was
// bought when the payment settled, whoever asks.
const forever = 100 * 365 * 24 * time.Hour

// Key returns which payment a bill is paid by. Its errors are those of
// facilitator.Identify.
func (b *Bill) Key() (payment.Key, error) {
	id, err := facilitator.Identify(b.Payment, b.Offer)
	return id.Key, err
}

// Collect moves the money of a payment for a bill, at most once, and returns
// the payment's record once that is settled. It can be called again with the
// same payment, at once, later, or after a crash, and goes on where it was.
// The caller's context only says how long it listens: money does not depend on
// it.
//
// Its errors are the three kinds of the facilitator's, ErrBoundElsewhere, and
// those of b.Claim. After a *payment.UnavailableError that is pending the
// outcome is not known, and Collect must be called again.
func (t *Till) Collect(ctx context.Context, b *Bill) (ledger.Record, error) {
	id, err := facilitator.Identify(b.Payment, b.Offer)
	if err != nil {
		return ledger.Record{}, err
	}
	b.Payment.Binding = b.Binding
	c := &collection{Till: t, bill: b, identity: id}
	until := t.now().Add(orElse(b.Deadline, defaultDeadline))
	for {
		done, busy := t.take(id.Key)
		if busy == nil {
			defer done()
			own, cancel := context.WithTimeout(context.WithoutCancel(ctx), until.Sub(t.now()))
			defer cancel()
			return c.alone(own)
		}
		wait := time.NewTimer(until.Sub(t.now()))
		select {
		case <-busy:
			wait.Stop()
		case <-ctx.Done():
			wait.Stop()
			return ledger.Record{}, c.pending("another request is using this payment", ctx.Err())
		case <-wait.C:
			return ledger.Record{}, c.pending("another request is using this payment", nil)
		}
	}
}

// A collection is one call of Collect.
type collection struct {
	*Till
	bill     *Bill
	identity facilitator.Identity
}

func (c *collection) pending(doing string, err error) error {
	return &payment.UnavailableError{Doing: doing, Err: err, Pending: true, Payer: c.identity.Payer}
}

func (c *collection) same(r *ledger.Record) bool {
	return r.Binding == c.bill.Binding && r.Proof == c.identity.Proof
}

// alone collects as the only one in this process that works on the payment.
func (c *collection) alone(ctx context.Context) (ledger.Record, error) {
	r, err := c.Ledger.Get(ctx, c.identity.Key)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return c.fresh(ctx, nil)
	case err != nil:
		return r, &payment.UnavailableError{Doing: "reading the ledger", Err: err}
	case c.Ledger.Free(&r):
		return c.fresh(ctx, &r)
	}
	return c.known(ctx, &r)
}

// known collects a payment that has been claimed.
func (c *collection) known(ctx context.Context, r *ledger.Record) (ledger.Record, error) {
	switch {
	case !c.same(r):
		return *r, ErrBoundElsewhere
	case r.State == ledger.Dead || r.State == ledger.WrittenOff:
		return *r, &payment.InvalidError{Reason: payment.EVMTransactionFailed, Message: r.Reason, Payer: r.Payer}
	case r.State.Paid():
		return *r, nil
	case r.State.Broadcast():
		return c.settle(ctx)
	}
	return *r, c.pending("another process is using this payment", nil)
}

// fresh collects a payment that nobody has claimed, or whose claim is free
// again. One that was let go, and whose nonce is used since, may have been
// settled by anybody: it is claimed once more, and the chain asked.
func (c *collection) fresh(ctx context.Context, released *ledger.Record) (ledger.Record, error) {
	b := c.bill
	// Of one that was given back, the nonce may have been used since.
	b.Payment.SettledFirst = released == nil
	if _, err := c.Facilitator.Verify(ctx, b.Payment, b.Offer); err != nil {
		now, failed := c.Ledger.Get(ctx, c.identity.Key)
		if failed == nil && !c.Ledger.Free(&now) {
			return c.known(ctx, &now) // another process was faster
		}
		if released == nil || !c.same(released) || !used(err) {
			return ledger.Record{}, err
		}
	}
	request, err := payment.EncodeRequest(b.Payment, b.Offer, b.Offer.Amount)
	if err != nil {
		return ledger.Record{}, err
	}
	var refused error // what keeps the bill from being paid by this payment
	rider := func(ctx context.Context, r *ledger.Record) ([]ledger.Write, error) {
		writes, err := b.Claim(ctx, r)
		refused = err
		return writes, err
	}
	r, err := c.Ledger.Claim(ctx, ledger.Record{
		Key: c.identity.Key, State: ledger.Reserved, Binding: b.Binding, Proof: c.identity.Proof, Mode: b.Mode, Due: c.now().Add(forever),
		Network: b.Offer.Network(), Payer: c.identity.Payer, Charge: b.Offer.Amount.Units(), Until: b.Offer.Until.String(), Request: request,
	}, 3*orElse(b.Deadline, defaultDeadline), rider)
	if held, ok := errors.AsType[*ledger.HeldError](err); ok {
		return c.known(ctx, &held.Record)
	}
	switch {
	case refused != nil:
		return ledger.Record{}, refused
	case err != nil:
		return ledger.Record{}, &payment.UnavailableError{Doing: "claiming the payment", Err: err}
	}
	stored, err := c.settle(ctx)
	if err != nil {
		c.giveBack(&r, err)
	}
	return stored, err
}

// settle asks the facilitator to move the money of a claimed payment.
func (c *collection) settle(ctx context.Context) (ledger.Record, error) {
	b := c.bill
	if _, err := c.Facilitator.Settle(ctx, b.Payment, b.Offer, b.Offer.Amount); err != nil {
		return ledger.Record{}, err
	}
	r, err := c.Ledger.Get(ctx, c.identity.Key)
	if err != nil {
		return r, c.pending("reading the ledger", err)
	}
	return r, nil
}

// giveBack releases a claimed payment if nothing was broadcast for it.
func (c *collection) giveBack(claimed *ledger.Record, cause error) {
	ctx, cancel := context.WithTimeout(context.Background(), orElse(c.bill.Deadline, defaultDeadline))
	defer cancel()
	_, err := c.Ledger.Update(ctx, claimed.Key, released(claimed, cause))
	if err != nil && !errors.Is(err, ledger.ErrStale) {
		c.log().Error("releasing a payment failed", "payment", claimed.Key.String(), "error", err)
	}
}

// released gives a claim back, unless something was broadcast for it or
// another one has been made since.
func released(claimed *ledger.Record, cause error) func(*ledger.Record) error {
	return func(r *ledger.Record) error {
		if !r.State.Working() || r.Claims != claimed.Claims {
			return ledger.ErrStale
		}
		r.Reason = cause.Error()
		return r.To(ledger.Released)
	}
}
