package till_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/pass"
)

var passes = pass.DeriveKey([]byte("a secret of passes"))

// sellsPasses has payments of the shop buy a pass.
func (s *shop) sellsPasses(d time.Duration, calls uint32) {
	s.t.Helper()
	s.offers(func(r *till.Route) { r.Pass = &till.Pass{Key: passes, For: d, Calls: calls, Scope: "greetings"} })
}

// buysPass pays, and returns the pass that the answer has.
func (s *shop) buysPass(path string) (text string, p *purse) {
	s.t.Helper()
	p = s.authorize(payment.V2)
	a := s.ask(http.MethodGet, path, "", p)
	if a.status != http.StatusOK {
		s.t.Fatalf("%d %s", a.status, a.body)
	}
	return s.passOf(a), p
}

// passOf returns the one pass that an answer has, or "".
func (s *shop) passOf(a *reply) string {
	s.t.Helper()
	values := a.header.Values(pass.Header)
	if len(values) == 0 {
		return ""
	}
	if _, err := pass.Read(passes.Public(), values[0]); err != nil || len(values) > 1 {
		s.t.Errorf("passes %q, %v", values, err)
	}
	if !strings.Contains(strings.Join(a.header.Values("Access-Control-Expose-Headers"), ","), pass.Header) {
		s.t.Error("scripts cannot read the pass")
	}
	return values[0]
}

// wantServed checks that a request with a pass gets the goods.
func (s *shop) wantServed(text string) {
	s.t.Helper()
	a := s.ask(http.MethodGet, "/more", "", nil, pass.Header, text)
	if a.status != http.StatusOK || a.body != "hello GET /more" {
		s.t.Errorf("%d with %q", a.status, a.body)
	}
	s.wantPrivate(a)
	if sale := s.sale(); !sale.Pass || sale.Paid || sale.Payer != s.bank.payer.Address.Hex() || sale.Reason != "" {
		s.t.Errorf("sale %+v", sale)
	}
}

// wantNoPass checks that a request with a pass is asked to pay, and why.
func (s *shop) wantNoPass(text string, reason payment.Reason) {
	s.t.Helper()
	runs := s.runs.Load()
	a := s.ask(http.MethodGet, "/more", "", nil, pass.Header, text)
	s.wantChallenge(a)
	c, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired))
	if err != nil || c.Error != string(reason) || !strings.Contains(a.body, string(reason)) {
		s.t.Errorf("%+v %v, want %s", c, err, reason)
	}
	if sale := s.sale(); sale.Pass || sale.Reason != string(reason) || s.runs.Load() != runs {
		s.t.Errorf("sale %+v, and the upstream ran %d times", sale, s.runs.Load()-runs)
	}
}

func TestAPassIsGoodUntilItsTimeIsOver(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		s.sellsPasses(time.Hour, 0)
		text, p := s.buysPass("/x")
		c, err := pass.Read(passes.Public(), text)
		if err != nil || c.Payer != s.bank.payer.Address.Hex() || c.Units != "1000" || c.Payment != p.transfer.Key(84532, devchain.USDC) || c.Expires.Sub(c.Issued) != time.Hour {
			t.Fatalf("%+v %v", c, err)
		}
		for range 3 {
			s.wantServed(text)
		}
		s.clock.Add(3601)
		s.wantNoPass(text, till.PassExpired)
		s.want(1, 4)
	})
}

func TestAPassIsGoodForItsCallsAndNotOneMore(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sellsPasses(0, 100)
	text, _ := s.buysPass("/x")
	for i := range 100 {
		a := s.ask(http.MethodGet, "/more", "", nil, pass.Header, text)
		if a.status != http.StatusOK || a.header.Get("X-402-Pass-Calls") != fmt.Sprint(99-i) {
			t.Fatalf("call %d: %d, %q left", i+1, a.status, a.header.Get("X-402-Pass-Calls"))
		}
	}
	s.wantNoPass(text, till.PassUsedUp)
	s.want(1, 101)

	// Another payment buys another pass.
	other, _ := s.buysPass("/x")
	s.wantServed(other)
	s.wantNoPass(text, till.PassUsedUp)
}

func TestAPassOfTimeAndCallsEndsWithTheFirstOfThem(t *testing.T) {
	s := open(t, fakeBank(t), till.First)
	s.sellsPasses(time.Hour, 2)
	text, _ := s.buysPass("/x")
	s.wantServed(text)
	s.wantServed(text)
	s.wantNoPass(text, till.PassUsedUp)
	text, _ = s.buysPass("/x")
	s.wantServed(text)
	s.clock.Add(3601)
	s.wantNoPass(text, till.PassExpired)
}

func TestConcurrentCallsNeverExceedAPass(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sellsPasses(0, 10)
	text, _ := s.buysPass("/x")
	var served, refused atomic.Int64
	together(30, func(int) {
		switch a := s.ask(http.MethodGet, "/more", "", nil, pass.Header, text); a.status {
		case http.StatusOK:
			served.Add(1)
		case http.StatusPaymentRequired:
			refused.Add(1)
		default:
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	if served.Load() != 10 || refused.Load() != 20 {
		t.Errorf("%d were served, %d refused", served.Load(), refused.Load())
	}
	s.want(1, 11)
	s.restart() // what was counted is on disk
	s.wantNoPass(text, till.PassUsedUp)
}

// A payment has one pass however often it is answered, so that no calls are
// made up by asking again.
func TestAnAnswerThatIsGivenAgainHasTheSamePass(t *testing.T) {
	for _, mode := range []till.Mode{till.Held, till.First} {
		s := open(t, fakeBank(t), mode)
		s.sellsPasses(time.Hour, 1)
		text, p := s.buysPass("/x")
		s.wantServed(text)
		s.clock.Add(60)
		again := s.ask(http.MethodGet, "/x", "", p)
		if got := s.passOf(again); got != text {
			t.Errorf("%s: %d with another pass: %q", mode, again.status, got)
		}
		s.wantNoPass(text, till.PassUsedUp)
	}
}

func TestAnotherRouteOrHostRefusesAPass(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sellsPasses(time.Hour, 0)
	text, _ := s.buysPass("/x")
	if a := s.ask(http.MethodGet, "/more", "", nil, pass.Header, text, "Host", "other.example.com"); a.status != http.StatusPaymentRequired {
		t.Errorf("another host: %d", a.status)
	}
	s.offers(func(r *till.Route) { r.Pass = &till.Pass{Key: passes, For: time.Hour, Scope: "farewells"} })
	s.wantNoPass(text, till.PassElsewhere)
	s.offers(func(r *till.Route) {
		r.Pass = &till.Pass{Key: pass.DeriveKey([]byte("another")), For: time.Hour, Scope: "greetings"}
	})
	s.wantNoPass(text, till.PassForeign)
	s.offers(func(r *till.Route) { r.Pass = nil })
	s.wantChallenge(s.ask(http.MethodGet, "/more", "", nil, pass.Header, text))
	s.want(1, 1)
}

func TestWhatIsNoPassIsMalformed(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sellsPasses(time.Hour, 0)
	text, _ := s.buysPass("/x")
	for _, bad := range []string{"x", text + "A", text[1:], text + "=", strings.Repeat("A", 5000)} {
		if a := s.ask(http.MethodGet, "/more", "", nil, pass.Header, bad); a.status != http.StatusBadRequest || !strings.Contains(a.body, "no pass") {
			t.Errorf("%.20q…: %d %s", bad, a.status, a.body)
		}
	}
	if a := s.ask(http.MethodGet, "/more", "", nil, pass.Header, text, pass.Header, text); a.status != http.StatusBadRequest {
		t.Errorf("two passes: %d", a.status)
	}
	s.want(1, 1)
}

func TestARevokedPassIsRefused(t *testing.T) {
	for what, calls := range map[string]uint32{"time": 0, "calls": 10} {
		s := open(t, fakeBank(t), till.Held)
		s.sellsPasses(time.Hour, calls)
		text, p := s.buysPass("/x")
		s.wantServed(text)
		if err := s.till.RevokePass(t.Context(), p.transfer.Key(84532, devchain.USDC)); err != nil {
			t.Fatal(err)
		}
		s.wantNoPass(text, till.PassRevoked)
		// Paying again for the same does not bring it back.
		if a := s.ask(http.MethodGet, "/x", "", p); s.passOf(a) != text {
			t.Errorf("%s: %d %v", what, a.status, a.header)
		}
		s.wantNoPass(text, till.PassRevoked)
		s.restart()
		s.wantNoPass(text, till.PassRevoked)
	}
}

// A revocation by another process is noticed after two seconds at most, and at
// once where calls are counted.
func TestARevocationElsewhereIsNoticed(t *testing.T) {
	for calls, after := range map[uint32]int64{0: 2, 10: 0} {
		s := open(t, fakeBank(t), till.Held)
		s.sellsPasses(time.Hour, calls)
		text, p := s.buysPass("/x")
		s.wantServed(text)
		elsewhere := ledger.New(s.store, "another process", time.Now)
		if err := elsewhere.RevokePass(t.Context(), p.transfer.Key(84532, devchain.USDC)); err != nil {
			t.Fatal(err)
		}
		s.clock.Add(after)
		s.wantNoPass(text, till.PassRevoked)
	}
}

func TestNoPassOfAnUnknownPaymentIsRevoked(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	if err := s.till.RevokePass(t.Context(), payment.Key{1}); !errors.Is(err, ledger.ErrNotFound) {
		t.Error(err)
	}
}

// A pass is worth what its payment is.
func TestAPassEndsWithItsPayment(t *testing.T) {
	for what, c := range map[string]struct {
		states []ledger.State // that the payment goes through
		status int
		reason string
	}{
		"archived":   {[]ledger.State{ledger.Archived}, http.StatusOK, ""},
		"reorged":    {[]ledger.State{ledger.Sent}, http.StatusServiceUnavailable, "unavailable"},
		"back again": {[]ledger.State{ledger.Sent, ledger.Included, ledger.Settled}, http.StatusOK, ""},
		"dead":       {[]ledger.State{ledger.Sent, ledger.Dead}, http.StatusPaymentRequired, string(till.PassRevoked)},
		"refund due": {[]ledger.State{ledger.RefundDue}, http.StatusPaymentRequired, string(till.PassRevoked)},
		"refunded":   {[]ledger.State{ledger.RefundDue, ledger.Refunded}, http.StatusPaymentRequired, string(till.PassRevoked)},
	} {
		s := open(t, fakeBank(t), till.Held)
		s.sellsPasses(time.Hour, 5)
		text, p := s.buysPass("/x")
		s.wantServed(text)
		s.sale()
		for _, next := range c.states {
			if _, err := s.ledger.Update(t.Context(), p.transfer.Key(84532, devchain.USDC), func(r *ledger.Record) error { return r.To(next) }); err != nil {
				t.Fatal(what, err)
			}
		}
		s.clock.Add(2)
		a := s.ask(http.MethodGet, "/more", "", nil, pass.Header, text)
		if a.status != c.status || s.sale().Reason != c.reason {
			t.Errorf("%s: %d %s, %+v", what, a.status, a.body, s.sale())
		}
		if c.status == http.StatusServiceUnavailable && (a.header.Get("Retry-After") == "" || a.header.Get(payment.HeaderRequired) != "") {
			t.Errorf("%s: it invites to pay again: %v", what, a.header)
		}
	}
}

func TestACallThatFailsIsGivenBack(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sellsPasses(0, 2)
	text, _ := s.buysPass("/x")
	with := func() (*reply, error) { return s.try(t.Context(), http.MethodGet, "/more", "", nil, pass.Header, text) }
	for what, upstream := range map[string]till.Upstream{
		"status": func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			w.WriteHeader(http.StatusBadGateway)
			return nil
		},
		"error": func(http.ResponseWriter, *http.Request, *till.Sale) error { return errUpstream },
		"abort": func(http.ResponseWriter, *http.Request, *till.Sale) error { panic(http.ErrAbortHandler) },
	} {
		s.sells(upstream)
		for range 3 {
			if a, err := with(); err == nil && a.status < 500 {
				t.Errorf("%s: %d", what, a.status)
			}
		}
	}
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error { // is an answer
		w.WriteHeader(http.StatusNotFound)
		return nil
	})
	if a, err := with(); err != nil || a.status != http.StatusNotFound || a.header.Get("X-402-Pass-Calls") != "1" {
		t.Errorf("%+v %v", a, err)
	}
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error { // has begun
		_, _ = w.Write([]byte("so"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	if a, err := with(); err == nil {
		t.Errorf("%+v", a)
	}
	s.sale()
	s.wantNoPass(text, till.PassUsedUp)
}

func TestNoPassComesWithAnAnswerThatFailed(t *testing.T) {
	for _, mode := range []till.Mode{till.Held, till.First} {
		for what, upstream := range map[string]till.Upstream{
			"status": func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
				w.Header().Set(pass.Header, "forged")
				w.WriteHeader(http.StatusBadGateway)
				return nil
			},
			"error": func(http.ResponseWriter, *http.Request, *till.Sale) error { return errUpstream },
		} {
			s := open(t, fakeBank(t), mode)
			s.offers(func(r *till.Route) { r.Redeliver = 2 })
			s.sellsPasses(time.Hour, 2)
			s.sells(upstream)
			p := s.authorize(payment.V2)
			for range 4 { // of which the last ones say that a refund is due, where it is
				if a := s.ask(http.MethodGet, "/x", "", p); a.status < 400 || a.header.Get(pass.Header) != "" {
					t.Errorf("%s, %s: %d %v", mode, what, a.status, a.header)
				}
			}
		}
	}
}

func TestOnlyTheTillSaysWhoHasAPass(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sellsPasses(time.Hour, 5)
	var seen atomic.Pointer[http.Header]
	s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		h := r.Header.Clone()
		seen.Store(&h)
		w.Header().Set(pass.Header, "forged")
		w.Header().Set("X_402_Pass", "forged")
		w.Header().Set("X-402-Pass-Calls", "1000")
		_, _ = w.Write([]byte("goods"))
		return nil
	})
	text, _ := s.buysPass("/x")
	if h := *seen.Load(); h.Get(pass.Header) != "" {
		t.Errorf("a request that pays: %v", h)
	}
	a := s.ask(http.MethodGet, "/more", "", nil, pass.Header, text, "X-402-With-Pass", "forged", "X-402-Payer", "forged")
	if a.status != http.StatusOK || a.header.Get(pass.Header) != "" || a.header.Get("X_402_Pass") != "" || a.header.Get("X-402-Pass-Calls") != "4" {
		t.Errorf("%d %v", a.status, a.header)
	}
	h := *seen.Load()
	if h.Get(pass.Header) != "" || h.Get("X-402-With-Pass") != "true" || len(h.Values("X-402-Payer")) != 1 || h.Get("X-402-Payer") != s.bank.payer.Address.Hex() || len(h.Get("X-402-Payment")) != 64 {
		t.Errorf("%v", h)
	}
}

func TestHeadCountsAndPreflightDoesNot(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sellsPasses(0, 2)
	text, _ := s.buysPass("/x")
	if a := s.ask(http.MethodHead, "/more", "", nil, pass.Header, text); a.status != http.StatusOK || a.body != "" || a.header.Get("X-402-Pass-Calls") != "1" {
		t.Errorf("HEAD: %d %v", a.status, a.header)
	}
	for range 3 {
		a := s.ask(http.MethodOptions, "/more", "", nil, pass.Header, text, "Origin", "https://example.com", "Access-Control-Request-Method", "GET")
		if a.status != http.StatusOK || a.header.Get("X-402-Pass-Calls") != "" || s.sale().Pass {
			t.Errorf("preflight: %d %v", a.status, a.header)
		}
	}
	if a := s.ask(http.MethodPost, "/more", "a body", nil, pass.Header, text); a.status != http.StatusOK || a.header.Get("X-402-Pass-Calls") != "0" {
		t.Errorf("POST: %d %v", a.status, a.header)
	}
	if a := s.ask(http.MethodHead, "/more", "", nil, pass.Header, text); a.status != http.StatusPaymentRequired || a.body != "" {
		t.Errorf("HEAD once more: %d", a.status)
	}
}

// Whoever has let a pass end can pay in the request that still shows it.
func TestAPaymentCountsBeforeAPass(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sellsPasses(0, 1)
	text, _ := s.buysPass("/x")
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask(http.MethodGet, "/x", "", p, pass.Header, text), p, http.StatusOK, "hello GET /x")
	s.want(2, 2)
	s.wantServed(text)
}

// What is paid for one thing must not be used for a dearer one.
func TestAPassIsGoodForWhatCostsNoMoreThanItDid(t *testing.T) {
	s, prices := openPriced(t, fakeBank(t), till.Held)
	s.sellsPasses(time.Hour, 0)
	p := s.signs(s.asks(payment.V2, http.MethodGet, "/x", "", "X-Times", "3"))
	text := s.passOf(s.ask(http.MethodGet, "/x", "", p, "X-Times", "3"))
	for times, status := range map[string]int{"1": http.StatusOK, "3": http.StatusOK, "4": http.StatusPaymentRequired} {
		if a := s.ask(http.MethodGet, "/more", "", nil, pass.Header, text, "X-Times", times); a.status != status {
			t.Errorf("at %s times the price: %d", times, a.status)
		}
	}
	prices.units.Store(5000)
	a := s.ask(http.MethodGet, "/more", "", nil, pass.Header, text)
	if c, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired)); err != nil || c.Error != string(till.PassTooSmall) || c.Offers[0].Amount.Units() != "5000" {
		t.Errorf("%d %+v %v", a.status, c, err)
	}
}

// A price that is the same for all requests may change: what was sold stays
// good.
func TestAPassOutlivesAPrice(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sellsPasses(time.Hour, 0)
	text, _ := s.buysPass("/x")
	s.offers(func(r *till.Route) {
		dear, err := payment.ParseUnits("9000", r.Offers[0].Amount.Token())
		if err != nil {
			t.Fatal(err)
		}
		offers := []payment.Offer{r.Offers[0]}
		offers[0].Amount = dear
		if r.Challenge, err = (&payment.Challenge{Offers: offers}).Prepare(); err != nil {
			t.Fatal(err)
		}
		r.Offers = offers
	})
	s.wantServed(text)
}

func TestAPassOfAMaximumIsBoughtByACharge(t *testing.T) {
	tariff := perByte()
	tariff.Header = "X-Charge"
	m := openMetered(t, till.Held, tariff)
	m.sellsPasses(time.Hour, 5)
	m.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		if r.URL.Path == "/free" {
			return nil
		}
		w.Header().Set("X-Charge", "7")
		w.Header().Set("Trailer", "X-Charge")
		_, _ = w.Write([]byte("goods"))
		return nil
	})
	if a := m.ask(http.MethodGet, "/free", "", m.permit().purse); a.status != http.StatusOK || m.passOf(a) != "" {
		t.Errorf("nothing was charged: %d %v", a.status, a.header)
	}
	n := m.permit()
	text := m.passOf(m.ask(http.MethodGet, "/x", "", n.purse))
	m.wantCharged(n, "7")
	a := m.ask(http.MethodGet, "/x", "", nil, pass.Header, text)
	if a.status != http.StatusOK || a.body != "goods" || a.header.Get("X-Charge") != "" || a.header.Get("Trailer") != "" {
		t.Errorf("%d %v", a.status, a.header)
	}
	m.wantCharged(n, "7")
}
