package till_test

import (
	"fmt"
	"math/big"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// trust opens a shop that hands out on credit, up to total and perPayer atomic
// units. Its price is 1000.
func trust(t testing.TB, b *bank, total, perPayer int64) *shop {
	t.Helper()
	s := trusting(t, b, total, perPayer)
	s.begin()
	return s
}

// trusting is trust before the till has begun to work in the background.
func trusting(t testing.TB, b *bank, total, perPayer int64) *shop {
	t.Helper()
	s := open(t, b, till.Optimistic)
	s.offers(func(r *till.Route) {
		r.Exposure = map[payment.Token]ledger.Caps{facilitatortest.USDC(t): {Total: big.NewInt(total), PerPayer: big.NewInt(perPayer)}}
	})
	return s
}

// begin starts what the till does in the background.
func (s *shop) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.till.Every = 10 * time.Millisecond
	s.till.Start()
	s.t.Cleanup(s.till.Stop)
}

// wantOnCredit checks goods that came before the money has moved.
func (s *shop) wantOnCredit(a *reply, body string) {
	s.t.Helper()
	if a.status != 200 || a.body != body || a.header.Get(payment.HeaderRequired) != "" {
		s.t.Errorf("got %d %v with %q", a.status, a.header, a.body)
		return
	}
	for _, version := range []int{payment.V1, payment.V2} {
		m := a.settlement(s.t, version)
		if string(m["success"]) != "false" || string(m["errorReason"]) != `"settlement_pending"` || string(m["transaction"]) != `""` {
			s.t.Errorf("settlement %s", m)
		}
	}
	s.wantPrivate(a)
}

func (s *shop) exposed() int64 {
	s.t.Helper()
	sum, err := s.ledger.ExposedOn(s.t.Context(), payment.EVM(84532), devchain.USDC.Hex())
	if err != nil {
		s.t.Fatal(err)
	}
	return sum.Int64()
}

func (s *shop) awaitExposed(want int64) {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); s.exposed() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%d are exposed, want %d", s.exposed(), want)
		}
	}
}

func TestGoodsOnCreditAreSettledAfterwards(t *testing.T) {
	for name, b := range banks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := trust(t, b(t), 10_000, 10_000)
			settling := make(chan struct{})
			s.gate.before = func() { <-settling }
			p := s.authorize(payment.V2)
			s.wantOnCredit(s.ask("GET", "/", "", p), "hello GET /")
			s.want(0, 1)
			if got := s.exposed(); got != 1000 {
				t.Errorf("%d are exposed", got)
			}
			s.wantOnCredit(s.ask("GET", "/", "", p), "hello GET /")
			if a := s.ask("GET", "/other", "", p); a.status != http.StatusConflict {
				t.Errorf("another request: %d", a.status)
			}
			close(settling)
			s.awaitState(p, ledger.Settled, ledger.Archived)
			s.awaitExposed(0)
			s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
			s.want(1, 1)
		})
	}
}

func TestFailingUpstreamCostsNothingOnCredit(t *testing.T) {
	t.Parallel()
	s := trust(t, fakeBank(t), 10_000, 10_000)
	p := s.authorize(payment.V2)
	s.sells(fails)
	_ = s.ask("GET", "/", "", p)
	s.awaitState(p, ledger.Released)
	if got := s.exposed(); got != 0 {
		t.Errorf("%d are exposed", got)
	}
	s.want(0, 1)
}

// What the caps do not cover is not refused: it is settled first.
func TestRequestsAboveTheCapsWaitForTheMoney(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name            string
		total, perPayer int64
		credit          int
	}{{"total", 2000, 9000, 2}, {"per payer", 9000, 1999, 1}, {"no cap", 0, 0, 0}, {"just enough", 3000, 3000, 3}} {
		t.Run(c.name, func(t *testing.T) {
			s := trust(t, fakeBank(t), c.total, c.perPayer)
			settling := make(chan struct{})
			var hold atomic.Bool
			hold.Store(true)
			entered := make(chan struct{}, c.credit)
			s.gate.before = func() {
				if hold.Load() {
					entered <- struct{}{}
					<-settling
				}
			}
			for range c.credit {
				s.wantOnCredit(s.ask("GET", "/", "", s.authorize(payment.V2)), "hello GET /")
			}
			if c.credit > 0 {
				if got := s.exposed(); got != int64(1000*c.credit) {
					t.Errorf("%d are exposed", got)
				}
			}
			for range c.credit {
				<-entered
			}
			hold.Store(false)
			p := s.authorize(payment.V2)
			s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
			s.want(1, c.credit+1)
			close(settling)
			s.awaitExposed(0)
		})
	}
}

func TestManyRequestsAtOnceStayWithinTheCaps(t *testing.T) {
	t.Parallel()
	s := trust(t, fakeBank(t), 5000, 5000)
	var most atomic.Int64
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		fmt.Fprint(w, "goods")
		return nil
	})
	purses := make([]*purse, 40)
	for i := range purses {
		purses[i] = s.authorize(payment.V2)
	}
	s.gate.before = func() {
		for now := s.exposed(); ; {
			was := most.Load()
			if now <= was || most.CompareAndSwap(was, now) {
				break
			}
		}
	}
	together(len(purses), func(i int) {
		if a := s.ask("GET", "/", "", purses[i]); a.status != 200 || a.body != "goods" {
			t.Errorf("got %d %q", a.status, a.body)
		}
	})
	s.awaitExposed(0)
	if most.Load() > 5000 || most.Load() < 1000 {
		t.Errorf("%d were exposed at one time", most.Load())
	}
	s.want(len(purses), len(purses))
}

// processes starts several processes that share the store of a shop, in which
// before stands in front of every settlement. use has one of them answer the
// next requests.
func (s *shop) processes(n int, before func()) (use func(i int)) {
	s.t.Helper()
	var tills []*till.Till
	for i := range n {
		l := ledger.NewShared(s.store, fmt.Sprint("shared ", i), s.till.Now)
		tl := &till.Till{
			Facilitator: &gate{Facilitator: s.bank.facilitator(l), before: before}, Ledger: l, Now: s.till.Now,
			Every: time.Hour, // each collects what it has handed out itself
		}
		tl.Start()
		s.t.Cleanup(tl.Stop)
		tills = append(tills, tl)
	}
	return func(i int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.till, s.ledger = tills[i], tills[i].Ledger
	}
}

func TestProcessesTogetherStayWithinTheCaps(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name            string
		total, perPayer int64
	}{{"total", 2000, 2000}, {"per payer", 9000, 2999}} {
		t.Run(c.name, func(t *testing.T) {
			s := trusting(t, fakeBank(t), c.total, c.perPayer)
			settling := make(chan struct{})
			var hold atomic.Bool
			hold.Store(true)
			entered := make(chan struct{}, 2)
			use := s.processes(2, func() {
				if hold.Load() {
					entered <- struct{}{}
					<-settling
				}
			})
			for i := range 2 {
				use(i)
				s.wantOnCredit(s.ask("GET", "/", "", s.authorize(payment.V2)), "hello GET /")
			}
			for range 2 {
				<-entered
			}
			hold.Store(false)
			for i := range 2 {
				use(i)
				if got := s.exposed(); got != 2000 {
					t.Errorf("process %d says that %d are exposed", i, got)
				}
				p := s.authorize(payment.V2)
				s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
				s.want(i+1, i+3)
			}
			close(settling)
			s.awaitExposed(0)
			use(0)
			s.wantOnCredit(s.ask("GET", "/", "", s.authorize(payment.V2)), "hello GET /")
			s.awaitExposed(0)
		})
	}
}

func TestALossOfOneProcessIsKnownToTheOthers(t *testing.T) {
	t.Parallel()
	s := trusting(t, fakeBank(t), 10_000, 10_000)
	refused := make(chan struct{})
	use := s.processes(2, func() { <-refused })
	use(1)
	if got := s.exposed(); got != 0 { // it has looked before there is a loss
		t.Errorf("%d are exposed", got)
	}
	use(0)
	p := s.authorize(payment.V2)
	s.wantOnCredit(s.ask("GET", "/", "", p), "hello GET /")
	s.bank.poor()
	close(refused)
	s.clock.Add(700)
	s.awaitState(p, ledger.WrittenOff)
	s.bank.rich()
	for i := range 2 {
		use(i)
		next := s.wrap(payment.V2, facilitatortest.Authorize(t, s.bank.payer.Key, &s.route.Offers[0], time.Now().Unix(), 4000))
		s.wantPaid(s.ask("GET", "/", "", next), next, 200, "hello GET /")
	}
	s.awaitExposed(0)
}

// A crash after the answer went out forgets neither what is exposed nor that
// it is to be settled.
func TestCrashDoesNotExceedTheCaps(t *testing.T) {
	for name, b := range banks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := trust(t, b(t), 1000, 1000)
			dead := make(chan struct{})
			s.gate.before = func() { <-dead }
			p := s.authorize(payment.V2)
			s.wantOnCredit(s.ask("GET", "/", "", p), "hello GET /")
			old := s.till
			if n := s.restart(); n != 0 {
				t.Errorf("%d payments were released", n)
			}
			if got := s.exposed(); got != 1000 {
				t.Errorf("%d are exposed after the crash", got)
			}
			second := s.authorize(payment.V2)
			s.wantPaid(s.ask("GET", "/", "", second), second, 200, "hello GET /") // held: the till does not run yet
			if a := s.ask("GET", "/other", "", p); a.status != http.StatusConflict {
				t.Errorf("another request: %d", a.status)
			}
			s.begin()
			s.awaitState(p, ledger.Settled, ledger.Archived)
			s.awaitExposed(0)
			s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
			s.want(2, 2)
			close(dead)
			old.Stop()
		})
	}
}

func TestLossIsWrittenOffAndNeverTrustedAgain(t *testing.T) {
	for name, b := range map[string]func(testing.TB) *bank{"fake": fakeBank, "remote": remoteBank} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := trust(t, b(t), 10_000, 10_000)
			var lost atomic.Pointer[ledger.Record]
			s.till.Lost = func(r *ledger.Record) { lost.Store(r) }
			refused := make(chan struct{})
			s.gate.before = func() { <-refused }
			p := s.authorize(payment.V2)
			s.wantOnCredit(s.ask("GET", "/", "", p), "hello GET /")
			s.bank.poor()
			close(refused)
			s.awaitState(p, ledger.Released, ledger.Executed)
			if got := s.exposed(); got != 1000 {
				t.Errorf("while the authorization lives %d are exposed", got)
			}
			s.wantOnCredit(s.ask("GET", "/", "", p), "hello GET /")
			s.clock.Add(700)
			r := s.awaitState(p, ledger.WrittenOff)
			if r.Reason == "" {
				t.Error("no reason is stored")
			}
			s.awaitExposed(0)
			for deadline := time.Now().Add(20 * time.Second); lost.Load() == nil; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("nobody was told of the loss")
				}
			}
			s.wantChallenge(s.ask("GET", "/", "", p))
			s.bank.rich()
			for range 2 {
				next := s.wrap(payment.V2, facilitatortest.Authorize(t, s.bank.payer.Key, &s.route.Offers[0], time.Now().Unix(), 4000))
				s.wantPaid(s.ask("GET", "/", "", next), next, 200, "hello GET /")
				s.mu.Lock()
				s.till.Stop()
				s.mu.Unlock()
				s.restart() // which does not forgive
				s.begin()
			}
			s.want(2, 3)
		})
	}
}

// With a node of our own only the chain's proof ends what is exposed.
func TestLossIsProvenByTheChain(t *testing.T) {
	t.Parallel()
	b, c, node := onChain(t)
	b.facilitator = func(l *ledger.Ledger) payment.Facilitator { return embed(t, c, node, l) }
	s := trust(t, b, 10_000, 10_000)
	s.till.Proves = true
	refused := make(chan struct{})
	s.gate.before = func() { <-refused }
	p := s.authorize(payment.V2)
	s.wantOnCredit(s.ask("GET", "/", "", p), "hello GET /")
	b.poor()
	close(refused)
	s.clock.Add(700)
	s.awaitState(p, ledger.Released)
	if got := s.exposed(); got != 1000 {
		t.Errorf("%d are exposed before the proof", got)
	}
	if a := s.ask("GET", "/other", "", p); a.status != http.StatusConflict {
		t.Errorf("another request: %d", a.status)
	}
	b.later()
	s.mineUntil(c, p, ledger.WrittenOff)
	s.awaitExposed(0)
}

func TestRoutesWithoutCapsTrustNobody(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.Optimistic)
	s.begin()
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
	s.want(1, 1)
}

// Many payments at once are each covered by what the payer has, and not all of
// them together.
func TestNobodyIsTrustedWithMoreThanItHas(t *testing.T) {
	t.Parallel()
	b := fakeBank(t)
	fake := &facilitatortest.Fake{Funds: big.NewInt(2999)}
	b.facilitator, b.transfers = func(l *ledger.Ledger) payment.Facilitator { return journal(fake, l) }, fake.Transfers
	s := trust(t, b, 9000, 9000)
	settling := make(chan struct{})
	var hold atomic.Bool
	hold.Store(true)
	s.gate.before = func() {
		if hold.Load() {
			<-settling
		}
	}
	for range 2 {
		s.wantOnCredit(s.ask("GET", "/", "", s.authorize(payment.V2)), "hello GET /")
	}
	if got := s.exposed(); got != 2000 {
		t.Errorf("%d are exposed", got)
	}
	hold.Store(false)
	third := s.authorize(payment.V2)
	s.wantPaid(s.ask("GET", "/", "", third), third, 200, "hello GET /")
	close(settling)
	s.awaitExposed(0)
}
