package till_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/quote"
)

// A fakePricer prices requests at so many units, times what the header
// X-Times says, which is part of the basis.
type fakePricer struct {
	offers []payment.Offer
	units  atomic.Int64
	asked  atomic.Int64
	fails  atomic.Bool
}

func (p *fakePricer) Price(r *http.Request) (*till.Price, error) {
	p.asked.Add(1)
	if p.fails.Load() {
		return nil, errors.New("the price list is on fire")
	}
	times := int64(1)
	if h := r.Header.Get("X-Times"); h != "" {
		if _, err := fmt.Sscan(h, &times); err != nil {
			return nil, err
		}
	}
	c := payment.Challenge{Description: "a greeting"}
	for i := range p.offers {
		amount, err := payment.NewAmount(big.NewInt(p.units.Load()*times), p.offers[i].Amount.Token())
		if err != nil {
			return nil, err
		}
		o, err := p.At(i, amount)
		if err != nil {
			return nil, err
		}
		c.Offers = append(c.Offers, o)
	}
	return &till.Price{Challenge: c, Basis: []string{"times", r.Header.Get("X-Times")}}, nil
}

func (p *fakePricer) At(i int, amount payment.Amount) (payment.Offer, error) {
	o := p.offers[i]
	o.Amount = amount
	return o, nil
}

// openPriced opens a shop whose price is computed: 1000 units at first.
func openPriced(t *testing.T, b *bank, mode till.Mode) (*shop, *fakePricer) {
	t.Helper()
	s := open(t, b, mode)
	p := &fakePricer{offers: s.route.Offers}
	p.units.Store(1000)
	s.offers(func(r *till.Route) { r.Challenge, r.Pricer = nil, p })
	s.quotes(quote.DeriveKey([]byte("test")))
	return s, p
}

// quotes gives the shop new quotes, which remember nothing.
func (s *shop) quotes(key quote.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.till.Quotes = &till.Quotes{Key: key, Now: s.till.Now}
}

// asks returns the challenge that a request gets, in a version.
func (s *shop) asks(version int, method, path, body string, header ...string) *payment.Received {
	s.t.Helper()
	a := s.ask(method, path, body, nil, header...)
	if a.status != http.StatusPaymentRequired {
		s.t.Fatalf("%d with %q", a.status, a.body)
	}
	c, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired))
	if version == payment.V1 {
		c, err = payment.DecodeRequiredBody([]byte(a.body))
	}
	if err != nil || len(c.Offers) == 0 {
		s.t.Fatalf("challenge %+v, %v", c, err)
	}
	return c
}

// signs pays the first offer of a challenge.
func (s *shop) signs(c *payment.Received) *purse {
	s.t.Helper()
	o := c.Offers[0].Offer
	transfer := facilitatortest.Authorize(s.t, s.bank.payer.Key, &o, time.Now().Unix(), 100_000)
	name, value := c.Pay(&c.Offers[0], transfer.Encode()).Header()
	return &purse{transfer, name, value}
}

// wantRefused checks that a payment is answered with another challenge, at a
// price, and has moved nothing.
func (s *shop) wantRefused(a *reply, units string) {
	s.t.Helper()
	if a.status != http.StatusPaymentRequired {
		s.t.Errorf("got %d with %q", a.status, a.body)
		return
	}
	c, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired))
	if err != nil || c.Offers[0].Amount.Units() != units || c.Error != string(payment.NoMatchingOffer) {
		s.t.Errorf("challenge %+v, %v, want %s units", c, err, units)
	}
}

func bothVersions(t *testing.T, test func(t *testing.T, version int)) {
	for _, version := range []int{payment.V1, payment.V2} {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) { test(t, version) })
	}
}

func TestAPriceThatHasChangedIsHonouredForAMinute(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		p := &fakePricer{offers: s.route.Offers}
		s.offers(func(r *till.Route) { r.Challenge, r.Pricer = nil, p })
		s.quotes(quote.DeriveKey([]byte("test")))
		for _, version := range []int{payment.V1, payment.V2} {
			for _, later := range []int64{3000, 1000} { // dearer, cheaper
				p.units.Store(2000)
				path := fmt.Sprint("/v", version, "/", later)
				c := s.asks(version, http.MethodGet, path, "")
				if c.Offers[0].Amount.Units() != "2000" {
					t.Fatalf("offer %+v", c.Offers[0].Offer)
				}
				p.units.Store(later)
				inTime, late := s.signs(c), s.signs(c)
				s.clock.Add(59)
				s.wantPaid(s.ask(http.MethodGet, path, "", inTime), inTime, http.StatusOK, "hello GET "+path)
				if got := s.sale(); !got.Paid || got.Amount.Units() != "2000" {
					t.Errorf("sale %+v", got)
				}
				s.clock.Add(2)
				s.wantRefused(s.ask(http.MethodGet, path, "", late), fmt.Sprint(later))
			}
		}
		if got := s.bank.transfers(); got != 4 && got != 8 { // on a chain they are counted by the thousand units
			t.Errorf("%d transfers", got)
		}
		if got := s.runs.Load(); got != 4 {
			t.Errorf("the upstream ran %d times", got)
		}
	})
}

func TestTheQuoteOfACheapRequestDoesNotBuyADearOne(t *testing.T) {
	bothVersions(t, func(t *testing.T, version int) {
		s, p := openPriced(t, fakeBank(t), till.Held)
		c := s.asks(version, http.MethodGet, "/a?q=1", "")
		p.units.Store(5000)
		for name, request := range map[string]struct {
			method, path string
			header       []string
		}{
			"path":   {http.MethodGet, "/b?q=1", nil},
			"query":  {http.MethodGet, "/a?q=2", nil},
			"cut":    {http.MethodGet, "/a", nil},
			"method": {http.MethodDelete, "/a?q=1", nil},
			"host":   {http.MethodGet, "/a?q=1", []string{"Host", "other.example"}},
		} {
			t.Log(name)
			s.wantRefused(s.ask(request.method, request.path, "", s.signs(c), request.header...), "5000")
		}
		s.wantRefused(s.ask(http.MethodGet, "/a?q=1", "", s.signs(c), "X-Times", "2"), "10000")
		s.want(0, 0)
		mine := s.signs(c)
		s.wantPaid(s.ask(http.MethodGet, "/a?q=1", "", mine), mine, http.StatusOK, "hello GET /a?q=1")
	})
}

// What a payer changes in an offer it has accepted, the quote does not cover.
func TestAQuoteCoversItsOfferOnly(t *testing.T) {
	s, p := openPriced(t, fakeBank(t), till.Held)
	a := s.ask(http.MethodGet, "/", "", nil)
	raw := a.header.Get(payment.HeaderRequired)
	c, err := payment.DecodeRequired(raw)
	if err != nil {
		t.Fatal(err)
	}
	p.units.Store(9000)
	quoted := string(c.Offers[0].Raw)
	var extra struct{ Extra struct{ Quote string } }
	if err := json.Unmarshal([]byte(quoted), &extra); err != nil || len(extra.Extra.Quote) != quote.Length {
		t.Fatalf("offer %s, %v", quoted, err)
	}
	q := extra.Extra.Quote
	other := quote.DeriveKey([]byte("another")).Make(&quote.Terms{Request: []string{"http://x"}, Offer: &c.Offers[0].Offer}, time.Now().Add(time.Hour))
	for name, change := range map[string][2]string{
		"amount":      {`"amount":"1000"`, `"amount":"1"`},
		"zero":        {`"amount":"1000"`, `"amount":"0"`},
		"recipient":   {s.bank.seller.Hex(), s.bank.payer.Address.Hex()},
		"no quote":    {`,"quote":"` + q + `"`, ``},
		"cut quote":   {q, q[:31]},
		"other quote": {q, other},
		"its type":    {`"` + q + `"`, `["` + q + `"]`},
	} {
		changed := strings.Replace(quoted, change[0], change[1], 1)
		if changed == quoted {
			t.Fatalf("%s: %s is not in %s", name, change[0], quoted)
		}
		o := c.Offers[0]
		o.Raw = json.RawMessage(changed)
		transfer := facilitatortest.Authorize(t, s.bank.payer.Key, &o.Offer, time.Now().Unix(), 600)
		header, value := c.Pay(&o, transfer.Encode()).Header()
		t.Log(name)
		s.wantRefused(s.ask(http.MethodGet, "/", "", &purse{transfer, header, value}), "9000")
	}
	s.want(0, 0)
	mine := s.signs(c)
	s.wantPaid(s.ask(http.MethodGet, "/", "", mine), mine, http.StatusOK, "hello GET /")
}

// Nobody is asked to pay again for what was begun, whatever has become of the
// price, of the quote, and of the process that made it.
func TestWhatWasPaidIsHadAgainWhenItsPriceHasGone(t *testing.T) {
	bothVersions(t, func(t *testing.T, version int) {
		s, p := openPriced(t, fakeBank(t), till.Held)
		mine := s.signs(s.asks(version, http.MethodPost, "/a", "body"))
		first := s.ask(http.MethodPost, "/a", "body", mine)
		s.wantPaid(first, mine, http.StatusOK, "hello POST /a")
		p.units.Store(7000)
		s.clock.Add(600)
		s.restart()
		s.quotes(quote.DeriveKey([]byte("another")))
		s.wantPaid(s.ask(http.MethodPost, "/a", "body", mine), mine, http.StatusOK, "hello POST /a")
		s.want(1, 1)
		for _, other := range [][2]string{{"/b", "body"}, {"/a", "other"}} {
			if a := s.ask(http.MethodPost, other[0], other[1], mine); a.status != http.StatusConflict {
				t.Errorf("for something else: %d with %q", a.status, a.body)
			}
		}
	})
}

func TestASettlementUnderWayIsNotAskedForAgainWhenItsPriceHasGone(t *testing.T) {
	bothVersions(t, func(t *testing.T, version int) {
		b := fakeBank(t)
		s, p := openPriced(t, b, till.First)
		mine := s.signs(s.asks(version, http.MethodGet, "/", ""))
		b.stall()
		s.wantPending(s.ask(http.MethodGet, "/", "", mine), version)
		p.units.Store(7000)
		s.clock.Add(120)
		s.wantPending(s.ask(http.MethodGet, "/", "", mine), version)
		b.flow()
		s.wantPaid(s.ask(http.MethodGet, "/", "", mine), mine, http.StatusOK, "hello GET /")
		s.want(1, 1)
	})
}

// An upstream that fails costs nothing, and the payment that was made in time
// stays good for the request, for as long as any payment can be used again.
func TestAFailingUpstreamKeepsThePriceOfItsRequest(t *testing.T) {
	bothVersions(t, func(t *testing.T, version int) {
		s, p := openPriced(t, fakeBank(t), till.Held)
		s.offers(func(r *till.Route) { r.Entitled = time.Hour })
		s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			w.WriteHeader(http.StatusBadGateway)
			return nil
		})
		mine, forgotten := s.signs(s.asks(version, http.MethodGet, "/", "")), s.signs(s.asks(version, http.MethodGet, "/", ""))
		for _, purse := range []*purse{mine, forgotten} {
			if a := s.ask(http.MethodGet, "/", "", purse); a.status != http.StatusBadGateway {
				t.Fatalf("%d", a.status)
			}
			s.awaitState(purse, ledger.Released)
		}
		p.units.Store(7000)
		s.clock.Add(3000)
		s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			_, err := w.Write([]byte("back"))
			return err
		})
		s.wantPaid(s.ask(http.MethodGet, "/", "", mine), mine, http.StatusOK, "back")
		s.wantRefused(s.ask(http.MethodGet, "/other", "", forgotten), "7000")
		s.clock.Add(1000)
		s.wantRefused(s.ask(http.MethodGet, "/", "", forgotten), "7000")
		if s.bank.transfers() != 1 {
			t.Errorf("%d transfers", s.bank.transfers())
		}
	})
}

// The payment of a cheap request whose upstream has failed, or that went away,
// does not make the upstream run for a dear one.
func TestAPaymentBegunForACheapRequestDoesNotBuyADearOne(t *testing.T) {
	bothVersions(t, func(t *testing.T, version int) {
		for _, mode := range []till.Mode{till.Held, till.First} {
			s, _ := openPriced(t, fakeBank(t), mode)
			s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
				if r.Header.Get("Accept") == "nothing" {
					w.WriteHeader(http.StatusBadGateway)
				}
				_, err := fmt.Fprint(w, "goods for ", r.Header.Get("X-Times"))
				return err
			})
			mine := s.signs(s.asks(version, http.MethodGet, "/", "", "X-Times", "2"))
			if a := s.ask(http.MethodGet, "/", "", mine, "X-Times", "2", "Accept", "nothing"); a.status != http.StatusBadGateway {
				t.Fatalf("%s: %d", mode, a.status)
			}
			a := s.ask(http.MethodGet, "/", "", mine, "X-Times", "3")
			if mode == till.Held { // it was not charged
				s.wantRefused(a, "3000")
			} else if a.status != http.StatusConflict {
				t.Errorf("%s: %d with %q", mode, a.status, a.body)
			}
			if got := s.runs.Load(); got != 1 {
				t.Errorf("%s: the upstream ran %d times", mode, got)
			}
			// Another spelling of what costs the same is no fraud.
			s.wantPaid(s.ask(http.MethodGet, "/", "", mine, "X-Times", "+2"), mine, http.StatusOK, "goods for +2")
			s.want(1, 2)
		}
	})
}

func TestARequestWithoutAPriceIsNeitherServedNorCharged(t *testing.T) {
	s, p := openPriced(t, fakeBank(t), till.Held)
	mine := s.signs(s.asks(payment.V2, http.MethodGet, "/", ""))
	for name, breaks := range map[string]func(){
		"error": func() { p.fails.Store(true) },
		"zero":  func() { p.fails.Store(false); p.units.Store(0) },
	} {
		breaks()
		for _, purse := range []*purse{nil, mine} {
			a := s.ask(http.MethodGet, "/", "", purse)
			if a.status != http.StatusInternalServerError || a.header.Get(payment.HeaderRequired) != "" || !strings.Contains(a.body, "pricing GET /") {
				t.Errorf("%s: %d with %q", name, a.status, a.body)
			}
			if got := s.sale(); got.Reason != till.ReasonNoPrice || got.Paid {
				t.Errorf("%s: sale %+v", name, got)
			}
		}
	}
	s.want(0, 0)
}

func TestComputedPricesAnswerHeadPreflightAndBrowsersAsOthersDo(t *testing.T) {
	s, p := openPriced(t, fakeBank(t), till.Held)
	head := s.ask(http.MethodHead, "/", "", nil)
	if c, err := payment.DecodeRequired(head.header.Get(payment.HeaderRequired)); head.status != http.StatusPaymentRequired || err != nil || c.Offers[0].Amount.Units() != "1000" {
		t.Errorf("HEAD: %d %v", head.status, err)
	}
	s.offers(func(r *till.Route) {
		r.Page = func(w http.ResponseWriter, _ *http.Request, sheet *till.Sheet) {
			w.WriteHeader(http.StatusPaymentRequired)
			_, _ = fmt.Fprint(w, sheet.Offers[0].Amount)
		}
	})
	if page := s.ask(http.MethodGet, "/", "", nil, "Accept", "text/html", "X-Times", "3"); page.body != "0.003 USDC" {
		t.Errorf("page %q", page.body)
	}
	asked := p.asked.Load()
	if a := s.ask(http.MethodOptions, "/", "", nil, "Origin", "https://shop.example", "Access-Control-Request-Method", "GET"); a.status != http.StatusOK {
		t.Errorf("preflight: %d", a.status)
	}
	if p.asked.Load() != asked {
		t.Error("a preflight was priced")
	}
	if a := s.ask(http.MethodOptions, "/", "", nil); a.status != http.StatusPaymentRequired {
		t.Errorf("OPTIONS: %d", a.status)
	}
	if a := s.ask(http.MethodGet, "/", "", &purse{nil, payment.HeaderPayment, "rubbish"}); a.status != http.StatusBadRequest {
		t.Errorf("rubbish: %d", a.status)
	}
}

// A payment of version 1 that is nothing but wrong is told so.
func TestAV1PaymentOfNoAmountThatWasAskedIsRefused(t *testing.T) {
	s, _ := openPriced(t, fakeBank(t), till.Held)
	c := s.asks(payment.V1, http.MethodGet, "/", "")
	o := c.Offers[0].Offer
	for _, units := range []int64{0, 1, 999, 1001} {
		amount, err := payment.NewAmount(big.NewInt(units), o.Amount.Token())
		if err != nil {
			t.Fatal(err)
		}
		o.Amount = amount
		transfer := facilitatortest.Authorize(t, s.bank.payer.Key, &o, time.Now().Unix(), 600)
		name, value := c.Pay(&c.Offers[0], transfer.Encode()).Header()
		s.wantRefused(s.ask(http.MethodGet, "/", "", &purse{transfer, name, value}), "1000")
	}
	s.want(0, 0)
}

func TestManyRequestsArePricedAtOnce(t *testing.T) {
	s, p := openPriced(t, fakeBank(t), till.Held)
	together(16, func(i int) {
		path, version := fmt.Sprint("/", i), payment.V1+i%2
		c := s.asks(version, http.MethodGet, path, "")
		p.units.Store(1000 + int64(i))
		mine := s.signs(c)
		s.wantPaid(s.ask(http.MethodGet, path, "", mine), mine, http.StatusOK, "hello GET "+path)
	})
	s.want(16, 16)
}

// BenchmarkUnpaid answers requests without a payment.
func BenchmarkUnpaid(b *testing.B) {
	s := open(b, fakeBank(b), till.Held)
	fixed := s.route
	p := &fakePricer{offers: s.route.Offers}
	p.units.Store(1000)
	computed := *fixed
	computed.Challenge, computed.Pricer = nil, p
	s.quotes(quote.DeriveKey([]byte("test")))
	for name, route := range map[string]*till.Route{"fixed": fixed, "computed": &computed} {
		b.Run(name, func(b *testing.B) {
			r := httptest.NewRequest(http.MethodGet, "http://shop.example/maps/1?zoom=2", nil)
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				if _, err := s.till.Serve(w, r, route, nil); err != nil || w.Code != http.StatusPaymentRequired {
					b.Fatal(w.Code, err)
				}
			}
		})
	}
}
