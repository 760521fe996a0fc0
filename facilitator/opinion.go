package facilitator

import (
	"context"
	"errors"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// judge says whether a payment that no node was needed to refuse is good as
// the chain stands. What was asked after the same block is not asked again, and
// what is known of the payer may do for a new payment: see payers.
func (f *Embedded) judge(ctx context.Context, q *quest, p *payment.Payment) (performed, error) {
	this := q.rehearsal()
	shown, known := q.rehearsals.recall(q.head.Hash, this, f.now())
	switch {
	case known && shown.refusal != nil:
		return shown, shown.refusal
	case known && (!shown.presumed || p.SettledFirst):
		return shown, nil
	}
	if err := q.strikes.Check(f.now(), q.suspect(nil)); err != nil {
		return shown, err
	}
	presumable := p.SettledFirst && q.plainly() && !known
	if presumable && p.Binding == (payment.Fingerprint{}) { // otherwise the till has looked
		switch _, err := f.ledger.Get(ctx, q.key); {
		case err == nil:
			presumable = false
		case !errors.Is(err, ledger.ErrNotFound):
			return shown, &payment.UnavailableError{Doing: "reading the ledger", Err: err, Payer: q.signed.Payer.Hex()}
		}
	}
	if presumable {
		shown, known, err := q.presume(f.now())
		if known || err != nil {
			q.rehearsals.note(q.head.Hash, this, shown)
			return shown, err
		}
	}
	answered, busy := q.payers.lead(q.passage().account)
	if presumable && busy != nil {
		select {
		case <-busy:
		case <-ctx.Done():
			return shown, q.unavailable("waiting for what is asked about the payer", ctx.Err())
		}
		shown, known, err := q.presume(f.now())
		if known || err != nil {
			q.rehearsals.note(q.head.Hash, this, shown)
			return shown, err
		}
		answered, _ = q.payers.lead(q.passage().account)
	}
	if answered != nil {
		defer answered()
	}
	asked := f.now()
	shown, err := q.simulate(ctx, asked)
	var unavailable *payment.UnavailableError
	var invalid *payment.InvalidError
	switch {
	case err == nil:
		q.payers.note(q, asked, shown)
	case errors.As(err, &unavailable) || !errors.As(err, &invalid):
		return shown, err
	default:
		shown = performed{refusal: invalid, at: asked}
	}
	q.rehearsals.note(q.head.Hash, this, shown)
	return shown, err
}

// presume is judge without asking anybody. known is false if that cannot be
// done; an error is an *payment.InvalidError.
func (q *quest) presume(now time.Time) (shown performed, known bool, err error) {
	left, short := q.payers.presume(q, now)
	switch {
	case short != "":
		refusal := q.lacking(short)
		return performed{refusal: refusal, at: now}, false, refusal
	case left != nil:
		return performed{funds: left, presumed: true}, true, nil
	}
	return performed{}, false, nil
}
