package till

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// ReasonRefundDue is the reason of a sale whose payment cannot be delivered.
const ReasonRefundDue = "refund due"

// givenUp reports whether what a payment buys will never be handed over.
func givenUp(r *ledger.Record) bool {
	return r.Delivery == ledger.Undeliverable || r.State == ledger.RefundDue || r.State == ledger.Refunded
}

// exhausted says why a payment that is settled, and whose answer is not
// stored, must not make the upstream run again, or "".
func (v *visit) exhausted(r *ledger.Record) string {
	n := orElse(v.route.Redeliver, defaultRedeliver)
	switch {
	case r.Deliveries >= n:
		return fmt.Sprintf("delivered %d times and never whole", r.Deliveries)
	case !r.Due.IsZero() && v.now().After(r.Due):
		return "not delivered in time"
	case (r.Ran || r.Deliveries > 0) && !v.repeatable():
		return "the upstream has run once, which is all that the route allows for " + v.r.Method
	}
	return ""
}

// repeatable reports whether the upstream may run more than once for one
// payment.
func (v *visit) repeatable() bool { return safe(v.r.Method) || v.route.RetryUnsafe }

// close ends the entitlement of a payment that is exhausted, and answers it.
func (v *visit) close(ctx context.Context, r *ledger.Record, why string) error {
	if r.Delivery == ledger.Interrupted || r.Charge == nothing {
		v.mark(r, ledger.Delivered)
		return v.used()
	}
	stored, err := v.giveUp(ctx, r, why)
	if err != nil {
		return v.settleProblem(&payment.UnavailableError{Doing: "noting that a refund is due", Err: err, Pending: true, Transaction: r.Transaction()})
	}
	return v.owing(&stored)
}

// owing answers a payment that is settled and will never be delivered.
func (v *visit) owing(r *ledger.Record) error {
	message := "this payment could not be delivered; the seller owes you a refund; do not pay again for it"
	v.sale.Reason = ReasonRefundDue
	if r.State == ledger.Refunded {
		message = "this payment could not be delivered, and has been refunded"
		v.sale.Reason = "refunded"
	}
	v.bought = ""
	v.stamp(v.w.Header())
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	receipt := v.describe(ctx, r)
	v.document(http.StatusGone, problem{Error: message, RefundDue: r.State != ledger.Refunded, Receipt: receipt})
	return nil
}

// giveUp stores that what r buys will never be handed over. It returns
// ledger.ErrStale if something else has become of r meanwhile.
func (t *Till) giveUp(ctx context.Context, r *ledger.Record, why string) (ledger.Record, error) {
	stored, err := t.Ledger.Update(ctx, r.Key, func(now *ledger.Record) error {
		if now.Claims != r.Claims || now.Deliveries != r.Deliveries || !now.Owed() {
			return ledger.ErrStale
		}
		now.Delivery, now.Reason = ledger.Undeliverable, why
		if now.Charge == nothing { // so nothing is owed
			now.Delivery = ledger.Delivered
			return nil
		}
		return due(now)
	})
	if err == nil {
		t.log().Warn("a payment cannot be delivered", "payment", r.Key.String(), "state", string(stored.State), "payer", r.Payer, "units", r.Charge, "network", string(r.Network), "reason", why)
	}
	return stored, err
}

// due moves money that cannot be delivered for to REFUND_DUE, once no reorg
// can take it away: what is given back must have come. Where no node of ours
// watches, the facilitator's word is as final as it gets.
func due(r *ledger.Record) error {
	if !final(r) {
		return nil
	}
	return r.To(ledger.RefundDue)
}

func final(r *ledger.Record) bool {
	return r.State == ledger.Archived || r.State == ledger.Settled && r.IntentBlock == 0
}

// Tend looks through the payments that do not rest for what is owed: answers
// that were given on credit are settled; goods that nobody has asked for in
// time, and money that came in after it had been let go, are put down as
// refunds due; and refunds that were ordered are finished.
func (t *Till) Tend(ctx context.Context) error {
	var failed []error
	for r, err := range t.Ledger.Open(ctx) {
		if err != nil {
			return errors.Join(append(failed, err)...)
		}
		switch {
		case r.Exposed != nil:
			t.collectLater(r.Key)
		case r.State == ledger.RefundDue && r.Refund != "":
			if _, err := t.Refund(ctx, r.Key, false); err != nil && ctx.Err() == nil {
				t.log().Warn("a refund is not finished", "payment", r.Key.String(), "error", err)
			}
		case r.Owed():
			if err := t.tend(ctx, r.Key); err != nil && !errors.Is(err, ledger.ErrStale) {
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

// tend ends the entitlement of a payment whose time has passed. It leaves
// alone what a request is at work on.
func (t *Till) tend(ctx context.Context, k payment.Key) error {
	done, busy := t.take(k)
	if busy != nil {
		return nil
	}
	defer done()
	r, err := t.Ledger.Get(ctx, k)
	if err != nil || !r.Owed() {
		return err
	}
	switch {
	case r.Delivery == ledger.Undeliverable:
		if !final(&r) {
			return nil
		}
		_, err = t.giveUp(ctx, &r, orText(r.Reason, "not delivered"))
	case r.LetGo && r.Deliveries == 0 && final(&r) && t.now().After(expiry(&r)):
		_, err = t.giveUp(ctx, &r, "it came in after it had been let go, and nobody asked again")
	case !t.now().After(r.Due):
	case r.Delivery == ledger.Interrupted:
		_, err = t.Ledger.Update(ctx, k, fenced(&r, ledger.Delivered))
	default:
		_, err = t.giveUp(ctx, &r, "not delivered in time")
	}
	return err
}

func orText(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}

// expiry returns when the authorization of a payment ends: the far future
// where that cannot be read.
func expiry(r *ledger.Record) time.Time {
	const end = 1 << 40
	never := time.Unix(end, 0)
	p, o, err := payment.DecodeRequest(r.Request)
	if err != nil {
		return never
	}
	signed, err := evm.ReadInstrument(p, o)
	if err != nil || signed.Expiry > end {
		return never
	}
	return time.Unix(int64(signed.Expiry), 0)
}
