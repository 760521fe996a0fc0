package till_test

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// change rewrites the record of a payment, whatever the transitions say.
func (s *shop) change(p *purse, change func(*ledger.Record)) ledger.Record {
	s.t.Helper()
	s.mu.Lock()
	l := s.ledger
	s.mu.Unlock()
	r, err := l.Update(s.t.Context(), p.transfer.Key(84532, p.token()), func(r *ledger.Record) error {
		change(r)
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// forget has the stored answer of a payment expire, and nothing else.
func (s *shop) forget() {
	s.t.Helper()
	s.clock.Add(16 * 60)
	if _, err := s.ledger.Sweep(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// Every state of a payment, with every state of its goods, asked for by the
// request that it was used for and by another one.
func TestEveryStateHasItsAnswer(t *testing.T) {
	const (
		goods    = "the goods, with the receipt"
		pending  = "503, not to pay again"
		unpaid   = "a challenge, with the reason"
		receipt  = "410 with the receipt"
		refund   = "410 with the receipt, and that a refund is due"
		refunded = "410 with the receipt, and that it was refunded"
		foreign  = "409"
		fresh    = "a sale"
	)
	type row struct {
		name     string
		paid     bool // money has moved for it
		state    ledger.State
		delivery ledger.Delivery
		stored   bool // its answer is
		stalled  bool // the chain is
		lapsed   bool // its claim has
		same     string
		other    string
	}
	rows := []row{
		{name: "claimed", state: ledger.Reserved, same: pending, other: foreign},
		{name: "executing", state: ledger.Executing, same: pending, other: foreign},
		{name: "executed", state: ledger.Executed, same: pending, other: foreign},
		{name: "lapsed", state: ledger.Executing, lapsed: true, same: fresh, other: fresh},
		{name: "released", state: ledger.Released, same: fresh, other: fresh},
		{name: "decided, stalled", state: ledger.Intent, stalled: true, same: pending, other: foreign},
		{name: "dead", state: ledger.Dead, same: unpaid, other: foreign},
		{name: "written off", state: ledger.WrittenOff, delivery: ledger.Delivered, same: unpaid, other: foreign},
		{name: "refund due", paid: true, state: ledger.RefundDue, delivery: ledger.Undeliverable, same: refund, other: foreign},
		{name: "refund due, stored", paid: true, state: ledger.RefundDue, delivery: ledger.Undeliverable, stored: true, same: refund, other: foreign},
		{name: "refunded", paid: true, state: ledger.Refunded, delivery: ledger.Undeliverable, same: refunded, other: foreign},
	}
	for _, state := range []ledger.State{ledger.Intent, ledger.Sent, ledger.Included, ledger.Settled, ledger.Archived} {
		for _, d := range []ledger.Delivery{ledger.Undelivered, ledger.Delivering, ledger.Interrupted} {
			rows = append(rows,
				row{name: string(state + " " + ledger.State(d)), paid: true, state: state, delivery: d, same: goods, other: foreign},
				row{name: string(state+" "+ledger.State(d)) + ", stored", paid: true, state: state, delivery: d, stored: true, same: goods, other: foreign})
		}
		rows = append(rows,
			row{name: string(state) + " delivered", paid: true, state: state, delivery: ledger.Delivered, same: receipt, other: foreign},
			row{name: string(state) + " delivered, stored", paid: true, state: state, delivery: ledger.Delivered, stored: true, same: goods, other: foreign},
			row{name: string(state) + " given up", paid: true, state: state, delivery: ledger.Undeliverable, same: refund, other: foreign})
	}
	for _, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := fakeBank(t)
			for i, want := range []string{c.same, c.other} {
				s := open(t, b, till.Held)
				p := s.authorize(payment.V2)
				if c.paid {
					s.wantPaid(s.ask("GET", "/x", "", p), p, 200, "hello GET /x")
				} else {
					greet := s.upstream
					s.sells(func(http.ResponseWriter, *http.Request, *till.Sale) error { return errUpstream })
					_ = s.ask("GET", "/x", "", p)
					s.sells(greet)
				}
				if !c.stored {
					s.forget()
				}
				s.change(p, func(r *ledger.Record) {
					r.State, r.Delivery, r.Owner = c.state, c.delivery, "another process"
					r.Lease = time.Now().Add(time.Hour)
					if c.lapsed {
						r.Lease = time.Now().Add(-time.Hour)
					}
				})
				if c.stalled {
					b.stall()
				}
				path := []string{"/x", "/other"}[i]
				transfers := b.transfers()
				a := s.ask("GET", path, "", p)
				b.flow()
				switch want {
				case goods:
					s.wantPaid(a, p, 200, "hello GET "+path)
				case fresh:
					s.wantPaid(a, p, 200, "hello GET "+path)
					transfers++
				case pending:
					s.wantPending(a, payment.V2)
					if c.stalled {
						transfers++ // which nobody here knows of yet
					}
				case unpaid:
					s.wantChallenge(a)
					if m := a.settlement(t, payment.V2); string(m["success"]) != "false" {
						t.Errorf("settlement %s", m)
					}
				case foreign:
					if a.status != http.StatusConflict || a.header.Get(payment.HeaderRequired) != "" || a.header.Get(payment.HeaderResponse) != "" || a.header.Get("Cache-Control") != "private, no-store" {
						t.Errorf("got %d %v with %q", a.status, a.header, a.body)
					}
				default:
					s.wantGone(a, map[string]string{receipt: "", refund: "refund_due", refunded: "refunded"}[want])
				}
				if got := b.transfers(); got != transfers {
					t.Errorf("%s: %d transfers, want %d", path, got, transfers)
				}
			}
		})
	}
}

// wantGone checks an answer that has the receipt and no goods. status is what
// it says of a refund.
func (s *shop) wantGone(a *reply, status string) {
	s.t.Helper()
	var doc struct {
		RefundDue bool          `json:"refund_due"`
		Receipt   *till.Receipt `json:"receipt"`
	}
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil || a.status != http.StatusGone || a.header.Get(payment.HeaderRequired) != "" {
		s.t.Errorf("got %d %v with %q, %v", a.status, a.header, a.body, err)
		return
	}
	if m := a.settlement(s.t, payment.V2); string(m["success"]) != "true" {
		s.t.Errorf("settlement %s", m)
	}
	s.wantPrivate(a)
	got := ""
	if doc.Receipt != nil {
		got = doc.Receipt.Status
	}
	if reason := map[string]string{"": "", "refund_due": till.ReasonRefundDue, "refunded": "refunded"}[status]; s.sale().Reason != reason || !s.sale().Paid {
		s.t.Errorf("the sale is %+v", s.sale())
	}
	if got != status || doc.RefundDue != (status == "refund_due") {
		s.t.Errorf("the answer says %q, refund_due %v; want %q", got, doc.RefundDue, status)
	}
}

// Payers who only have to approve Permit2 are told so with a status of its own,
// as other sellers do.
func TestMissingAllowanceIsAPreconditionThatFails(t *testing.T) {
	b := fakeBank(t)
	fake := &facilitatortest.Fake{Verifying: func(context.Context) error {
		return payment.Invalid(payment.Permit2AllowanceRequired, "approve Permit2")
	}}
	b.facilitator = func(l *ledger.Ledger) payment.Facilitator { return journal(fake, l) }
	s := open(t, b, till.Held)
	a := s.ask("GET", "/", "", s.authorize(payment.V2))
	v2, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired))
	if a.status != http.StatusPreconditionFailed || err != nil || v2.Error != string(payment.Permit2AllowanceRequired) || len(v2.Offers) == 0 {
		t.Errorf("got %d, %+v, %v", a.status, v2, err)
	}
	s.want(0, 0)
}
