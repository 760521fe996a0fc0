package till_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

// A counter is a shop that is paid by links.
type counter struct {
	*shop
	link    *link.Link
	patient time.Duration // how long a payment is waited for
}

func openCounter(t *testing.T, b *bank, uses uint32) *counter {
	t.Helper()
	c := &counter{shop: open(t, b, till.First), patient: 20 * time.Second}
	terms, err := link.Terms{Merchant: "main", Amount: "0.001", Offers: c.route.Offers, Description: "a greeting", Uses: uses}.Check(nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.link, err = c.links().Create(t.Context(), terms, ""); err != nil {
		t.Fatal(err)
	}
	return c
}

// links returns the store of the present process.
func (c *counter) links() *link.Store {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := func() time.Time { return time.Now().Add(time.Duration(c.clock.Load()) * time.Second) }
	return &link.Store{Entries: c.store, Payments: c.ledger, Now: now, Random: rand.Reader, Announce: func(event string, l *link.Link, _ *link.Use) ([]ledger.Write, error) {
		return []ledger.Write{{Key: ledger.Key("told/" + string(l.ID) + "/" + event), If: ledger.AnyVersion, Value: []byte{}}}, nil
	}}
}

// told returns what was announced of the link.
func (c *counter) told() string {
	c.t.Helper()
	entries, err := c.store.Scan(c.t.Context(), ledger.Key("told/"), "", 100)
	if err != nil {
		c.t.Fatal(err)
	}
	var events []string
	for _, e := range entries {
		_, event, _ := strings.Cut(strings.TrimPrefix(string(e.Key), "told/"), "/")
		events = append(events, event)
	}
	return strings.Join(events, " ")
}

func (c *counter) bill(p *purse) *till.Bill {
	c.t.Helper()
	read, err := payment.FromHeader([]string{p.value}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return &till.Bill{
		Payment: read, Offer: &c.link.Offers[0], Binding: sha256.Sum256([]byte(c.link.ID)), Mode: link.Mode,
		Claim: c.links().Claim(c.link.ID, &c.link.Offers[0], nil), Deadline: c.patient,
	}
}

// collect pays the link, and brings it up to what became of that.
func (c *counter) collect(p *purse) error {
	c.t.Helper()
	c.mu.Lock()
	t := c.till
	c.mu.Unlock()
	b := c.bill(p)
	_, err := t.Collect(context.Background(), b)
	k, failed := b.Key()
	if failed != nil {
		c.t.Fatal(failed)
	}
	if _, _, failed := c.links().Resolve(context.Background(), k); failed != nil && !errors.Is(failed, link.ErrNotFound) {
		c.t.Error(failed)
	}
	return err
}

func (c *counter) wantStatus(want link.Status) *link.Link {
	c.t.Helper()
	l, err := c.links().Get(c.t.Context(), c.link.ID)
	if err != nil {
		c.t.Fatal(err)
	}
	if got := l.Status(time.Now().Add(time.Duration(c.clock.Load()) * time.Second)); got != want {
		c.t.Fatalf("the link is %s, want %s", got, want)
	}
	return l
}

func (c *counter) sweep() {
	c.t.Helper()
	if err := c.links().Sweep(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}

func eachBank(t *testing.T, test func(t *testing.T, b *bank)) {
	for name, open := range banks {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func TestALinkIsPaidOnce(t *testing.T) {
	eachBank(t, func(t *testing.T, b *bank) {
		c := openCounter(t, b, 1)
		p := c.authorize(2)
		if err := c.collect(p); err != nil {
			t.Fatal(err)
		}
		l := c.wantStatus(link.Paid)
		if l.Earned[link.TokenName(l.Offers[0].Amount.Token())] != "1000" {
			t.Errorf("earned %v", l.Earned)
		}
		if got := c.told(); got != link.EventPaid {
			t.Errorf("announced %q", got)
		}
		// The same again is the same; another is too late, before anything is broadcast for it.
		if err := c.collect(p); err != nil {
			t.Errorf("the same payment again: %v", err)
		}
		late, ok := errors.AsType[*link.StatusError](c.collect(c.authorize(2)))
		if !ok || late.Status != link.Paid {
			t.Errorf("another payment: %v", late)
		}
		if n := b.transfers(); n != 1 {
			t.Errorf("%d transfers", n)
		}
		if r := c.awaitState(p, ledger.Settled, ledger.Archived); r.Delivery != ledger.Delivered || r.Mode != link.Mode {
			t.Errorf("the payment is %s and %q", r.State, r.Delivery)
		}
	})
}

func TestManyPayersOfOneLinkMakeOneTransfer(t *testing.T) {
	for name, payers := range map[string]int{"fake": 500, "embedded": 60} {
		t.Run(name, func(t *testing.T) {
			b := banks[name](t)
			c := openCounter(t, b, 1)
			purses := make([]*purse, payers)
			for i := range purses {
				purses[i] = c.authorize(2)
			}
			var paid, late atomic.Int64
			var all sync.WaitGroup
			for _, p := range purses {
				all.Go(func() {
					err := c.collect(p)
					if _, ok := errors.AsType[*link.StatusError](err); ok {
						late.Add(1)
					} else if err == nil {
						paid.Add(1)
					} else {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if paid.Load() != 1 || late.Load() != int64(payers-1) || b.transfers() != 1 {
				t.Fatalf("%d paid, %d were too late, %d transfers", paid.Load(), late.Load(), b.transfers())
			}
			c.wantStatus(link.Paid)
			// Nothing was broadcast, nor even stored, for those who came too late.
			n := 0
			for _, err := range c.ledger.Payments(t.Context(), nil) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
			if n != 1 {
				t.Errorf("%d payments are stored", n)
			}
		})
	}
}

func TestALinkWithUsesIsPaidThatOften(t *testing.T) {
	c := openCounter(t, fakeBank(t), 7)
	var paid, late atomic.Int64
	var all sync.WaitGroup
	for range 50 {
		p := c.authorize(2)
		all.Go(func() {
			err := c.collect(p)
			if _, ok := errors.AsType[*link.StatusError](err); ok {
				late.Add(1)
			} else if err == nil {
				paid.Add(1)
			}
		})
	}
	all.Wait()
	if paid.Load() != 7 || late.Load() != 43 || c.bank.transfers() != 7 {
		t.Fatalf("%d paid, %d were too late, %d transfers", paid.Load(), late.Load(), c.bank.transfers())
	}
	if l := c.wantStatus(link.Paid); l.Earned[link.TokenName(l.Offers[0].Amount.Token())] != "7000" {
		t.Errorf("earned %v", l.Earned)
	}
}

func TestALinkWhosePaymentFailsCanBePaidAgain(t *testing.T) {
	c := openCounter(t, fakeBank(t), 1)
	c.bank.poor()
	if _, ok := errors.AsType[*payment.InvalidError](c.collect(c.authorize(2))); !ok {
		t.Fatal("a payment without money was taken")
	}
	c.wantStatus(link.Active)
	c.bank.rich()
	if err := c.collect(c.authorize(2)); err != nil {
		t.Fatal(err)
	}
	c.wantStatus(link.Paid)
}

func TestALinkStaysPendingWhileItsPaymentIsUnknown(t *testing.T) {
	eachBank(t, func(t *testing.T, b *bank) {
		c := openCounter(t, b, 1)
		c.bank.stall()
		c.patient = time.Second
		p := c.authorize(2)
		unknown, ok := errors.AsType[*payment.UnavailableError](c.collect(p))
		if !ok || !unknown.Pending {
			t.Fatalf("a payment that is not in a block: %v", unknown)
		}
		c.wantStatus(link.Pending)
		if late, ok := errors.AsType[*link.StatusError](c.collect(c.authorize(2))); !ok || late.Status != link.Pending {
			t.Errorf("another payment meanwhile: %v", late)
		}
		// The link's time is over meanwhile: whoever has claimed it keeps it.
		c.clock.Store(int64(link.DefaultLife/time.Second) + 10)
		c.sweep()
		c.wantStatus(link.Pending)
		c.clock.Store(0)
		c.restart()
		c.bank.flow()
		c.patient = 20 * time.Second
		if err := c.collect(p); err != nil {
			t.Fatal(err)
		}
		c.wantStatus(link.Paid)
		if n := b.transfers(); n != 1 {
			t.Errorf("%d transfers", n)
		}
	})
}

func TestACrashBeforeALinkIsNotedPaidLosesNothing(t *testing.T) {
	c := openCounter(t, fakeBank(t), 1)
	p := c.authorize(2)
	if _, err := c.till.Collect(t.Context(), c.bill(p)); err != nil {
		t.Fatal(err)
	}
	c.wantStatus(link.Pending)
	c.restart()
	c.sweep()
	c.wantStatus(link.Paid)
	if c.told() != link.EventPaid {
		t.Errorf("announced %q", c.told())
	}
}

func TestACrashBeforeTheMoneyMovesGivesTheLinkBack(t *testing.T) {
	c := openCounter(t, fakeBank(t), 1)
	b := c.bill(c.authorize(2))
	k, err := b.Key()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ledger.Claim(t.Context(), ledger.Record{Key: k, State: ledger.Reserved, Binding: b.Binding, Mode: link.Mode, Network: b.Offer.Network()}, time.Minute, b.Claim); err != nil {
		t.Fatal(err)
	}
	c.wantStatus(link.Pending)
	c.restart()
	c.sweep()
	c.wantStatus(link.Active)
}

func TestAPaymentOfOneLinkPaysNoOther(t *testing.T) {
	c := openCounter(t, fakeBank(t), 1)
	p := c.authorize(2)
	if err := c.collect(p); err != nil {
		t.Fatal(err)
	}
	other, err := c.links().Create(t.Context(), c.link.Terms, "")
	if err != nil {
		t.Fatal(err)
	}
	c.link = other
	if err := c.collect(p); !errors.Is(err, till.ErrBoundElsewhere) {
		t.Fatalf("the same payment for another link: %v", err)
	}
	c.wantStatus(link.Active)
	if a := c.ask("GET", "/maps", "", p); a.status != 409 {
		t.Errorf("the same payment for a route: %d %s", a.status, a.body)
	}
}

func TestAPaymentThatDiesAfterItPaidALinkReversesIt(t *testing.T) {
	c := openCounter(t, fakeBank(t), 1)
	b := c.bill(c.authorize(2))
	k, err := b.Key()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ledger.Claim(t.Context(), ledger.Record{Key: k, State: ledger.Intent, Binding: b.Binding, Mode: link.Mode, Network: b.Offer.Network(), Due: time.Now().Add(time.Hour)}, time.Minute, b.Claim); err != nil {
		t.Fatal(err)
	}
	step := func(states ...ledger.State) {
		t.Helper()
		if _, err := c.ledger.Update(t.Context(), k, func(r *ledger.Record) error {
			for _, s := range states {
				if err := r.To(s); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		c.sweep()
	}
	step(ledger.Sent, ledger.Included, ledger.Settled)
	c.wantStatus(link.Paid)
	step(ledger.Sent) // a reorg; it may settle again
	c.wantStatus(link.Paid)
	step(ledger.Dead)
	if l := c.wantStatus(link.Active); l.Taken != 0 || l.Sold != 0 || l.Earned[link.TokenName(l.Offers[0].Amount.Token())] != "0" {
		t.Errorf("it has %d taken, %d sold, and earned %v", l.Taken, l.Sold, l.Earned)
	}
	if got := c.told(); got != link.EventPaid+" "+link.EventReversed {
		t.Errorf("announced %q", got)
	}
	if open, err := c.store.Scan(t.Context(), "linkopen/", "", 10); err != nil || len(open) != 0 {
		t.Errorf("still open: %v, %v", open, err)
	}
}

func TestALinkExpiresOnceAndIsNotPaidAfterThat(t *testing.T) {
	c := openCounter(t, fakeBank(t), 1)
	c.clock.Store(int64(link.DefaultLife/time.Second) + 1)
	if late, ok := errors.AsType[*link.StatusError](c.collect(c.wrap(2, facilitatortest.Authorize(t, c.bank.payer.Key, &c.route.Offers[0], time.Now().Unix()+c.clock.Load(), 600)))); !ok || late.Status != link.Expired {
		t.Fatalf("a payment after the end: %v", late)
	}
	for range 3 {
		c.sweep()
	}
	c.wantStatus(link.Expired)
	if c.told() != link.EventExpired {
		t.Errorf("announced %q", c.told())
	}
	if due, err := c.store.Scan(t.Context(), "linkdue/", "", 10); err != nil || len(due) != 0 {
		t.Errorf("still due: %v, %v", due, err)
	}
}
