package till_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

func (p *purse) token() common.Address { return devchain.USDC }

func fails(http.ResponseWriter, *http.Request, *till.Sale) error { return errUpstream }

// interrupted is an upstream that writes, and returns when its client is gone.
func interrupted(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
	fmt.Fprint(w, "half of")
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
	return nil
}

// hangUp asks and goes away once the first bytes have come.
func (s *shop) hangUp(p *purse) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", s.url+"/", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set(p.name, p.value)
	resp, err := transport.RoundTrip(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := resp.Body.Read(make([]byte, 4)); err != nil {
		s.t.Error(err)
	}
}

// awaitDelivery waits until the goods of a payment are as far as d.
func (s *shop) awaitDelivery(p *purse, d ledger.Delivery) ledger.Record {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		r, err := s.record(p)
		if err == nil && r.Delivery == d {
			return r
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the delivery is %q, %v, want %q", r.Delivery, err, d)
		}
	}
}

func (s *shop) tend() {
	s.t.Helper()
	if err := s.till.Tend(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// mineUntil makes blocks, and looks after what is owed, until a payment is in
// a state.
func (s *shop) mineUntil(c *devchain.Chain, p *purse, state ledger.State) {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r, err := s.record(p)
		if err == nil && r.State == state {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the payment is %s, %v, want %s", r.State, err, state)
		}
		if err := c.Mine(1); err != nil {
			s.t.Fatal(err)
		}
		s.tend()
	}
}

func TestDeliveriesThatFailThreeTimesAreARefund(t *testing.T) {
	everyBank(t, till.First, func(t *testing.T, s *shop) {
		p := s.authorize(payment.V2)
		s.sells(fails)
		for range 3 {
			if a := s.ask("GET", "/", "", p); a.status != 500 {
				t.Errorf("got %d %q", a.status, a.body)
			}
		}
		r, err := s.record(p)
		if err != nil || r.Delivery != ledger.Undeliverable || r.Deliveries != 3 {
			t.Errorf("%+v, %v", r, err)
		}
		s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			t.Error("it ran again")
			return nil
		})
		s.wantGone(s.ask("GET", "/", "", p), "refund_due")
		s.want(1, 3)
	})
}

func TestRedeliverSaysHowOften(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 5} {
		s := open(t, fakeBank(t), till.First)
		s.offers(func(r *till.Route) { r.Redeliver = n })
		p := s.authorize(payment.V2)
		s.sells(fails)
		for range n {
			_ = s.ask("GET", "/", "", p)
		}
		s.wantGone(s.ask("GET", "/", "", p), "refund_due")
		s.want(1, n)
		s.awaitState(p, ledger.RefundDue)
	}
}

func TestClientThatHangsUpHasUsedADelivery(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.First)
	s.sells(interrupted)
	p := s.authorize(payment.V2)
	for n := 1; n <= 3; n++ {
		s.hangUp(p)
		if r := s.awaitDelivery(p, ledger.Interrupted); r.Deliveries != n {
			t.Errorf("%d deliveries, want %d", r.Deliveries, n)
		}
	}
	// It had the goods, or could have: nothing is owed.
	s.wantGone(s.ask("GET", "/", "", p), "")
	s.awaitDelivery(p, ledger.Delivered)
	s.want(1, 3)
}

func TestClientThatLeavesAFailingUpstreamIsOwedItsMoney(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.First)
	s.offers(func(r *till.Route) { r.Redeliver = 1 })
	entered := make(chan struct{})
	s.sells(func(_ http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		close(entered)
		<-r.Context().Done() // it never writes
		return r.Context().Err()
	})
	p := s.authorize(payment.V2)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		_, _ = s.try(ctx, "GET", "/", "", p)
	}()
	<-entered
	cancel()
	<-done
	s.awaitState(p, ledger.RefundDue)
}

func TestEntitlementEndsWithItsTime(t *testing.T) {
	t.Parallel()
	for _, asked := range []bool{true, false} {
		s := open(t, fakeBank(t), till.First)
		p := s.authorize(payment.V2)
		s.sells(fails)
		_ = s.ask("GET", "/", "", p)
		s.clock.Add(24*3600 - 60)
		s.tend()
		_ = s.ask("GET", "/", "", p)
		s.want(1, 2)
		s.clock.Add(120)
		if asked {
			s.wantGone(s.ask("GET", "/", "", p), "refund_due")
		} else {
			s.tend()
		}
		s.awaitState(p, ledger.RefundDue)
		s.want(1, 2)
	}
}

func TestTimeThatPassesAfterAHangUpOwesNothing(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.First)
	s.sells(interrupted)
	p := s.authorize(payment.V2)
	s.hangUp(p)
	s.awaitDelivery(p, ledger.Interrupted)
	s.clock.Add(25 * 3600)
	s.tend()
	if r := s.awaitDelivery(p, ledger.Delivered); r.State != ledger.Settled {
		t.Errorf("the payment is %s", r.State)
	}
}

func TestDeliveredPaymentsAreLeftAlone(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		p := s.authorize(payment.V2)
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
		s.awaitDelivery(p, ledger.Delivered)
		s.clock.Add(48 * 3600)
		s.tend()
		if r, err := s.record(p); err != nil || r.Delivery != ledger.Delivered || !r.State.Paid() || r.State == ledger.RefundDue {
			t.Errorf("%s %s, %v", r.State, r.Delivery, err)
		}
	})
}

func TestUnsafeRequestWhoseDeliveryFailedIsARefund(t *testing.T) {
	t.Parallel()
	for _, retry := range []bool{false, true} {
		s := open(t, fakeBank(t), till.First)
		s.offers(func(r *till.Route) { r.RetryUnsafe = retry })
		p := s.authorize(payment.V2)
		s.sells(fails)
		_ = s.ask("POST", "/", "order", p)
		if !retry {
			s.wantGone(s.ask("POST", "/", "order", p), "refund_due")
			s.want(1, 1)
			continue
		}
		_ = s.ask("POST", "/", "order", p)
		s.want(1, 2)
	}
}

// Money that a reorg can still take away is owed, and not yet given back.
func TestRefundIsDueOnceTheMoneyIsFinal(t *testing.T) {
	t.Parallel()
	b, c, node := onChain(t)
	b.facilitator = func(l *ledger.Ledger) payment.Facilitator { return embed(t, c, node, l) }
	s := open(t, b, till.First)
	s.offers(func(r *till.Route) { r.Redeliver = 1 })
	p := s.authorize(payment.V2)
	s.sells(fails)
	_ = s.ask("GET", "/", "", p)
	r := s.awaitDelivery(p, ledger.Undeliverable)
	if r.State != ledger.Settled && r.State != ledger.RefundDue {
		t.Errorf("the payment is %s", r.State)
	}
	s.wantGone(s.ask("GET", "/", "", p), "refund_due")
	s.mineUntil(c, p, ledger.RefundDue)
	s.wantGone(s.ask("GET", "/", "", p), "refund_due")
}

// The claim was given back, somebody else submits the authorization, and its
// payer never asks again.
func TestMoneyThatComesInAfterWeLetGoIsOwedBack(t *testing.T) {
	t.Parallel()
	b, c, node := onChain(t)
	b.facilitator = func(l *ledger.Ledger) payment.Facilitator { return embed(t, c, node, l) }
	s := open(t, b, till.Held)
	p := s.authorize(payment.V2)
	s.sells(fails)
	_ = s.ask("GET", "/", "", p)
	s.awaitState(p, ledger.Released)
	transact(t, c, c.Account("facilitator2"), p.transfer.Calldata())
	s.restart() // the engine takes up what was released
	b.later()
	s.mineUntil(c, p, ledger.Archived)
	s.tend()
	if r, _ := s.record(p); r.State != ledger.Archived {
		t.Errorf("while the authorization lives the payer may ask again, but the payment is %s", r.State)
	}
	s.clock.Add(700)
	s.tend()
	s.awaitState(p, ledger.RefundDue)
	s.wantGone(s.ask("GET", "/", "", p), "refund_due")
	s.want(1, 1)
}

// A delivery that ends late must not undo what a newer one has noted.
func TestMarkOfAnOldDeliveryDoesNotOverwriteANewerOne(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.First)
	p := s.authorize(payment.V2)
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		s.change(p, func(r *ledger.Record) { // as another process does that delivers once more
			r.Deliveries++
			r.Delivery = ledger.Delivered
		})
		return errUpstream
	})
	_ = s.ask("GET", "/", "", p)
	if r, err := s.record(p); err != nil || r.Delivery != ledger.Delivered || r.Deliveries != 2 {
		t.Errorf("%q after %d deliveries, %v", r.Delivery, r.Deliveries, err)
	}
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		s.change(p, func(r *ledger.Record) {
			r.Deliveries++
			r.Delivery = ledger.Delivering
		})
		return nil
	})
	s.change(p, func(r *ledger.Record) { r.Deliveries, r.Delivery = 0, ledger.Undelivered })
	_ = s.ask("GET", "/", "", p)
	if r, err := s.record(p); err != nil || r.Delivery != ledger.Delivering {
		t.Errorf("an old delivery says that the newer one is %q, %v", r.Delivery, err)
	}
}

func TestMarkOfAnOldClaimDoesNotOverwriteANewerOne(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.First)
	p := s.authorize(payment.V2)
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		s.change(p, func(r *ledger.Record) { r.Claims++ })
		fmt.Fprint(w, "goods")
		return nil
	})
	_ = s.ask("GET", "/", "", p)
	if r, err := s.record(p); err != nil || r.Delivery != ledger.Delivering {
		t.Errorf("%q, %v", r.Delivery, err)
	}
}

// After a crash in the middle of a delivery it begins anew, and counts.
func TestCrashesInTheMiddleOfDeliveriesAreCounted(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.First)
	p := s.authorize(payment.V2)
	s.sells(fails)
	_ = s.ask("GET", "/", "", p)
	s.change(p, func(r *ledger.Record) { r.Deliveries, r.Delivery = 3, ledger.Delivering })
	s.restart()
	s.wantGone(s.ask("GET", "/", "", p), "refund_due")
	s.want(1, 1)
}

// Two processes on one ledger do not make the upstream run twice at once.
func TestDeliveryOfAnotherProcessIsLeftToIt(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{true, false} {
		s := open(t, fakeBank(t), till.First)
		p := s.authorize(payment.V2)
		s.sells(fails)
		_ = s.ask("GET", "/", "", p)
		if shared {
			s.till.Ledger = ledger.NewShared(s.store, "this process", func() time.Time { return time.Now().Add(time.Duration(s.clock.Load()) * time.Second) })
		}
		s.change(p, func(r *ledger.Record) {
			r.Delivery, r.Owner, r.Lease = ledger.Delivering, "another process", time.Now().Add(time.Minute)
		})
		s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			fmt.Fprint(w, "goods")
			return nil
		})
		if shared {
			s.wantPending(s.ask("GET", "/", "", p), payment.V2)
			s.want(1, 1)
			s.clock.Add(61)
		}
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, "goods")
		s.want(1, 2)
	}
}

// A process that the others may have taken for dead does not go on with what
// they may hand over instead.
func TestADeliveryEndsWhenOthersMayTakeItOver(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.First)
	shared := ledger.NewShared(s.store, "this", func() time.Time { return time.Now().Add(time.Duration(s.clock.Load()) * time.Second) })
	s.till.Ledger = shared
	if err := shared.Beat(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, rest := range map[string]func(w http.ResponseWriter, r *http.Request) error{
		"written": func(w http.ResponseWriter, _ *http.Request) error {
			_, err := io.WriteString(w, "rest")
			return err
		},
		"copied": func(w http.ResponseWriter, _ *http.Request) error {
			_, err := io.Copy(w, strings.NewReader("rest"))
			return err
		},
		"flushed":            func(w http.ResponseWriter, _ *http.Request) error { return http.NewResponseController(w).Flush() },
		"ignored the error":  func(w http.ResponseWriter, _ *http.Request) error { _, _ = io.WriteString(w, "rest"); return nil },
		"only looked at ctx": func(_ http.ResponseWriter, r *http.Request) error { <-r.Context().Done(); return nil },
	} {
		p := s.authorize(payment.V2)
		s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			_, _ = io.WriteString(w, "first part, ")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			s.clock.Add(10) // in which nothing could be said
			return rest(w, r)
		})
		if a, err := s.try(t.Context(), "GET", "/", "", p); err == nil {
			t.Errorf("%s: the client took %q for the whole answer", name, a.body)
		}
		if r, err := s.record(p); err != nil || r.Delivery == ledger.Delivered || !r.Owed() {
			t.Errorf("%s: it is %q, %v", name, r.Delivery, err)
		}
		if err := shared.Beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			fmt.Fprint(w, "goods")
			return nil
		})
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, "goods")
	}
}
