package till_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

func TestUnpaidRequestsGetTheChallengeOfBothVersions(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"} {
		a := s.ask(method, "/a%2Fb/c?x=1&y=%20", "", nil)
		s.wantChallenge(a)
		v2, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired))
		if err != nil || !strings.Contains(string(v2.Resource), s.url+`/a%2Fb/c?x=1&y=%20"`) || v2.Error != string(payment.PaymentRequired) {
			t.Errorf("%s: resource %s, error %q, %v", method, v2.Resource, v2.Error, err)
		}
		if a.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %v", method, a.header)
		}
	}
	get, head := s.ask("GET", "/", "", nil), s.ask("HEAD", "/", "", nil)
	if head.status != 402 || head.body != "" || head.header.Get(payment.HeaderRequired) != get.header.Get(payment.HeaderRequired) || head.header.Get("Content-Length") != get.header.Get("Content-Length") {
		t.Errorf("HEAD: %d %v", head.status, head.header)
	}
	if sale := s.sale(); sale.Paid || sale.Reason != string(payment.PaymentRequired) || sale.Payment != "" {
		t.Errorf("sale %+v", sale)
	}
	s.want(0, 0)
}

func TestResourceIsNamedByItsPublicOrigin(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.offers(func(r *till.Route) { r.Origin = "https://api.example.com" })
	for _, host := range []string{"evil.example", "api.example.com", "[::1]:80"} {
		v2, err := payment.DecodeRequired(s.ask("GET", "/x", "", nil, "Host", host).header.Get(payment.HeaderRequired))
		if err != nil || !strings.Contains(string(v2.Resource), `"https://api.example.com/x"`) {
			t.Errorf("%s: %s, %v", host, v2.Resource, err)
		}
	}
}

func TestOnlyBrowsersGetThePage(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.offers(func(r *till.Route) {
		r.Page = func(w http.ResponseWriter, r *http.Request, sheet *till.Sheet) {
			w.WriteHeader(http.StatusPaymentRequired)
			fmt.Fprint(w, "page of ", sheet.URL, " ", len(sheet.Offers), " ", sheet.Reason)
		}
	})
	for accept, page := range map[string]bool{
		"":                 false,
		"*/*":              false,
		"application/json": false,
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": true,
		"text/html":                         true,
		"TEXT/HTML":                         true,
		"text/html;q=0.5, application/json": false,
		"text/html;q=0":                     false,
		"text/html, */*":                    false,
		"text/html;q=0.9,*/*;q=0.899":       true,
		"text/html;q=x":                     false,
		"text/plain":                        false,
	} {
		a := s.ask("GET", "/x", "", nil, "Accept", accept)
		if got := strings.HasPrefix(a.body, "page of "+s.url+"/x 1 Payment required"); got != page || a.status != 402 || a.header.Get(payment.HeaderRequired) == "" {
			t.Errorf("%q: %d %q", accept, a.status, a.body)
		}
		if vary := strings.Join(a.header.Values("Vary"), ","); !strings.Contains(vary, "Accept") {
			t.Errorf("%q: Vary %q", accept, vary)
		}
	}
}

func TestPreflightsAreFreeAndProveNothing(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sells(func(w http.ResponseWriter, r *http.Request, sale *till.Sale) error {
		for name := range r.Header {
			if strings.Contains(strings.ToLower(name), "402") || strings.Contains(strings.ToLower(name), "payment") {
				t.Errorf("the upstream sees %s", name)
			}
		}
		if sale.Paid {
			t.Error("a sale")
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	})
	p := s.authorize(payment.V2)
	a := s.ask("OPTIONS", "/", "", p, "Origin", "https://app.example", "Access-Control-Request-Method", "POST", "X-402-Payer", "me", "X_402_payer", "me")
	if a.status != http.StatusNoContent {
		t.Errorf("got %d", a.status)
	}
	s.want(0, 1)
	if _, err := s.record(p); !errors.Is(err, ledger.ErrNotFound) {
		t.Error("the preflight claimed a payment")
	}
	// Half a preflight is a request like any other.
	s.wantChallenge(s.ask("OPTIONS", "/", "", nil, "Origin", "https://app.example"))
	s.wantChallenge(s.ask("GET", "/", "", nil, "Origin", "https://app.example", "Access-Control-Request-Method", "POST"))
}

func TestPaidRequestsAreServedAndChargedOnce(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		for i, version := range []int{payment.V1, payment.V2} {
			p := s.authorize(version)
			s.wantPaid(s.ask("GET", "/x?y=1", "", p), p, 200, "hello GET /x?y=1")
			s.want(i+1, i+1)
			sale := s.sale()
			r := s.awaitState(p, ledger.Settled, ledger.Archived)
			if !sale.Paid || sale.Payer != p.transfer.From.Hex() || sale.Amount.Units() != "1000" || sale.Network != "eip155:84532" || sale.Transaction != r.Transaction() || sale.Payment != r.Key.String() || sale.Reason != "" || sale.Replayed {
				t.Errorf("sale %+v", sale)
			}
		}
	})
}

func TestUpstreamLearnsFromUsAloneWhoPays(t *testing.T) {
	for _, mode := range []till.Mode{till.Held, till.First} {
		s := open(t, fakeBank(t), mode)
		var seen http.Header
		var trailer http.Header
		s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			io.Copy(io.Discard, r.Body)
			seen, trailer = r.Header.Clone(), r.Trailer.Clone()
			return nil
		})
		p := s.authorize(payment.V2)
		a := s.ask("POST", "/x", "body", p, "X-402-Payer", "0xevil", "X-402-Anything", "evil", "x_402_payer", "evil", "X_402_Transaction", "evil",
			"Payment-Response", "evil", "PAYMENT_SIGNATURE", "evil", "Payment-Extra", "evil", "X-Payment-Response", "evil", "x_payment_foo", "evil", "X-Other", "kept")
		if a.status != 200 {
			t.Fatalf("got %d %q", a.status, a.body)
		}
		want := map[string]string{
			"X-402-Payer": p.transfer.From.Hex(), "X-402-Amount": "1000", "X-402-Network": "eip155:84532",
			"X-402-Token": s.route.Offers[0].Amount.Token().Address, "X-402-Payment": s.sale().Payment,
		}
		if mode == till.First {
			want["X-402-Transaction"] = s.sale().Transaction
		}
		for name, values := range seen {
			plain := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
			if strings.HasPrefix(plain, "x-402") && (len(values) != 1 || values[0] != want[name] || values[0] == "") {
				t.Errorf("%s: the upstream sees %s: %q", mode, name, values)
			}
			if strings.HasPrefix(plain, "payment") || strings.HasPrefix(plain, "x-payment") || strings.Contains(strings.Join(values, " "), "evil") {
				t.Errorf("%s: the upstream sees %s: %q", mode, name, values)
			}
			delete(want, name)
		}
		if len(want) != 0 || seen.Get("X-Other") != "kept" || trailer != nil {
			t.Errorf("%s: missing %v, trailer %v", mode, want, trailer)
		}
	}
}

func TestUpstreamSaysNothingAboutPayment(t *testing.T) {
	everyKind := []till.Mode{till.Held, till.First}
	for _, mode := range everyKind {
		s := open(t, fakeBank(t), mode)
		s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			for name, value := range map[string]string{
				"Payment-Response": "forged", "X-Payment-Response": "forged", "Payment-Required": "forged", "X-402-Payer": "forged", "payment_response": "forged",
				"Cache-Control": "public, max-age=3600", "Expires": "Thu, 01 Dec 2094 16:00:00 GMT", "Surrogate-Control": "max-age=9", "CDN-Cache-Control": "max-age=9",
				"Vary": "Accept-Encoding", "Access-Control-Expose-Headers": "X-Own", "X-Own": "kept", "Age": "3", "Pragma": "x",
			} {
				w.Header()[textproto.CanonicalMIMEHeaderKey(name)] = []string{value}
			}
			fmt.Fprint(w, "goods")
			return nil
		})
		p := s.authorize(payment.V2)
		for range 2 {
			a := s.ask("GET", "/", "", p)
			if mode == till.First && a.status == http.StatusGone {
				continue
			}
			s.wantPaid(a, p, 200, "goods")
			for name, values := range a.header {
				if strings.Contains(strings.Join(values, ","), "forged") {
					t.Errorf("%s: %s is %q", mode, name, values)
				}
			}
			if a.header.Get("X-Own") != "kept" || !strings.Contains(strings.Join(a.header.Values("Access-Control-Expose-Headers"), ","), "X-Own") || !strings.Contains(strings.Join(a.header.Values("Vary"), ","), "Accept-Encoding") {
				t.Errorf("%s: lost some of %v", mode, a.header)
			}
		}
	}
}

func TestHeadersThatCannotBeAPaymentAreMalformed(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	p, old := s.authorize(payment.V2), s.authorize(payment.V1)
	encode := func(doc string) string { return base64.StdEncoding.EncodeToString([]byte(doc)) }
	raw, err := base64.StdEncoding.DecodeString(p.value)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	for name, headers := range map[string][]string{
		"nothing":                    {"Payment-Signature", ""},
		"nothing in v1":              {"X-Payment", ""},
		"not base64":                 {"Payment-Signature", "%%%"},
		"not JSON":                   {"Payment-Signature", encode("hello")},
		"a list":                     {"Payment-Signature", encode("[]")},
		"twice":                      {"Payment-Signature", p.value, "Payment-Signature", p.value},
		"twice in v1":                {"X-Payment", old.value, "X-Payment", old.value},
		"both versions":              {"Payment-Signature", p.value, "X-Payment", old.value},
		"joined by a comma":          {"Payment-Signature", p.value + "," + p.value},
		"joined by a blank":          {"Payment-Signature", p.value + " " + p.value},
		"v1 in the header of v2":     {"Payment-Signature", old.value},
		"v2 in the header of v1":     {"X-Payment", p.value},
		"a quoted value":             {"Payment-Signature", `"` + p.value + `"`},
		"a long value":               {"Payment-Signature", strings.Repeat("A", payment.MaxHeader+4)},
		"duplicate members":          {"Payment-Signature", encode(strings.Replace(doc, `"x402Version":2`, `"x402Version":2,"x402Version":2`, 1))},
		"members in another case":    {"Payment-Signature", encode(strings.Replace(doc, `"payload"`, `"Payload"`, 1))},
		"a version that is unknown":  {"Payment-Signature", encode(strings.Replace(doc, `"x402Version":2`, `"x402Version":3`, 1))},
		"trailing data":              {"Payment-Signature", encode(doc + "{}")},
		"a number for a text":        {"Payment-Signature", encode(strings.Replace(doc, `"value":"1000"`, `"value":1000`, 1))},
		"a value with leading zeros": {"Payment-Signature", encode(strings.Replace(doc, `"value":"1000"`, `"value":"01000"`, 1))},
		"a short nonce":              {"Payment-Signature", encode(strings.Replace(doc, `"nonce":"0x`, `"nonce":"0x0`, 1))},
		"no signature":               {"Payment-Signature", encode(strings.Replace(doc, `"signature":"0x`, `"signatur":"0x`, 1))},
	} {
		a := s.ask("GET", "/", "", nil, headers...)
		if a.status != http.StatusBadRequest || !strings.Contains(a.body, `"error"`) || a.header.Get(payment.HeaderRequired) != "" || a.header.Get("Cache-Control") != "private, no-store" {
			t.Errorf("%s: %d %q", name, a.status, a.body)
		}
		if len(a.body) > 400 || strings.Contains(a.body, p.value[:40]) {
			t.Errorf("%s: the answer repeats the payment: %q", name, a.body)
		}
		if sale := s.sale(); sale.Paid || sale.Reason != "malformed payment" {
			t.Errorf("%s: sale %+v", name, sale)
		}
	}
	// What looks like a payment header to a careless eye is none.
	for _, name := range []string{"PAYMENT_SIGNATURE", "X_PAYMENT", "Payment-Signatures", "X-Payments"} {
		s.wantChallenge(s.ask("GET", "/", "", nil, name, p.value))
	}
	s.want(0, 0)
}

func TestPaymentsForOtherOffersAreRefused(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	dear := facilitatortest.Offer(t, 999, s.bank.seller)
	elsewhere := facilitatortest.Offer(t, 1000, common.HexToAddress("0x05"))
	for _, o := range []payment.Offer{dear, elsewhere} {
		name, value := facilitatortest.Header(t, payment.V2, &o, facilitatortest.Authorize(t, s.bank.payer.Key, &o, time.Now().Unix(), 600))
		a := s.ask("GET", "/", "", nil, name, value)
		s.wantChallenge(a)
		if v2, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired)); err != nil || v2.Error != string(payment.NoMatchingOffer) {
			t.Errorf("error %q, %v", v2.Error, err)
		}
	}
	s.want(0, 0)
}

func TestFormsOfOnePaymentAreOnePayment(t *testing.T) {
	everyBank(t, till.Held, func(t *testing.T, s *shop) {
		p := s.authorize(payment.V2)
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
		old := s.wrap(payment.V1, p.transfer)
		url := &purse{p.transfer, p.name, strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(p.value), "=")}
		raw, err := base64.StdEncoding.DecodeString(p.value)
		if err != nil {
			t.Fatal(err)
		}
		lower := &purse{p.transfer, p.name, base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(string(raw), p.transfer.From.Hex(), strings.ToLower(p.transfer.From.Hex()))))}
		spaced := &purse{p.transfer, p.name, base64.StdEncoding.EncodeToString([]byte(" " + strings.ReplaceAll(string(raw), `,"`, ` , "`)))}
		for _, form := range []*purse{old, url, lower, spaced} {
			s.wantPaid(s.ask("GET", "/", "", form), p, 200, "hello GET /")
		}
		s.want(1, 1)
	})
}

func TestManyCopiesOfOneRequestAreOneSale(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			time.Sleep(20 * time.Millisecond)
			fmt.Fprint(w, "goods")
			return nil
		})
		p := s.authorize(payment.V2)
		var served, gone atomic.Int64
		together(50, func(int) {
			a := s.ask("GET", "/x", "", p)
			switch a.status {
			case 200:
				served.Add(1)
				s.wantPaid(a, p, 200, "goods")
			case http.StatusGone: // what was streamed is not kept
				gone.Add(1)
				if string(a.settlement(t, payment.V2)["success"]) != "true" {
					t.Errorf("gone without a receipt: %v", a.header)
				}
			default:
				t.Errorf("got %d %q", a.status, a.body)
			}
		})
		s.want(1, 1)
		if held := s.route.Mode == till.Held; held && served.Load() != 50 || !held && (served.Load() != 1 || gone.Load() != 49) {
			t.Errorf("%d served, %d gone", served.Load(), gone.Load())
		}
	})
}

func TestManyPaymentsAreAsManySales(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		const payers = 16
		var purses []*purse
		for range payers {
			purses = append(purses, s.authorize(payment.V2))
		}
		together(payers, func(i int) {
			path := fmt.Sprintf("/%d", i)
			answer := s.ask("GET", path, "", purses[i])
			// A busy machine may be too slow for a deadline; then the same
			// request is sent again, as the answer asks for.
			for tries := 0; answer.status == http.StatusServiceUnavailable && tries < 50; tries++ {
				answer = s.ask("GET", path, "", purses[i])
			}
			s.wantPaid(answer, purses[i], 200, "hello GET "+path)
		})
		s.want(payers, payers)
	})
}

func TestPaymentBuysOneRequestOnly(t *testing.T) {
	others := []struct{ method, path, body, host string }{
		{"POST", "/a?b=1", "body", "shop.example"},
		{"PUT", "/a?b=1", "body", "other.example"},
		{"PUT", "/A?b=1", "body", "shop.example"},
		{"PUT", "/a/?b=1", "body", "shop.example"},
		{"PUT", "/%61?b=1", "body", "shop.example"},
		{"PUT", "/a?b=2", "body", "shop.example"},
		{"PUT", "/a", "body", "shop.example"},
		{"PUT", "/a?b=1", "bodY", "shop.example"},
		{"PUT", "/a?b=1", "", "shop.example"},
	}
	everyMode(t, func(t *testing.T, s *shop) {
		entered, leave := make(chan struct{}), make(chan struct{})
		s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			body, err := io.ReadAll(r.Body)
			if err != nil || r.ContentLength != int64(len(body)) {
				t.Errorf("body %q of %d, %v", body, r.ContentLength, err)
			}
			close(entered)
			<-leave
			fmt.Fprintf(w, "%s %s%s %s", r.Method, r.Host, r.URL, body)
			return nil
		})
		p := s.authorize(payment.V2)
		done := make(chan *reply, 1)
		go func() { done <- s.ask("PUT", "/a?b=1", "body", p, "Host", "shop.example") }() // ends when leave is closed
		<-entered
		elsewhere := func(when string) {
			t.Helper()
			for _, o := range others {
				a := s.ask(o.method, o.path, o.body, p, "Host", o.host)
				if a.status != http.StatusConflict || a.header.Get(payment.HeaderRequired) != "" {
					t.Errorf("%s: %+v: %d %q", when, o, a.status, a.body)
				}
			}
		}
		s.offers(func(r *till.Route) { r.Deadline = 20 * time.Millisecond }) // others wait no longer for the first
		elsewhere("meanwhile")
		s.wantPending(s.ask("PUT", "/a?b=1", "body", p, "Host", "shop.example"), payment.V2)
		s.offers(func(r *till.Route) { r.Deadline = 5 * time.Second })
		close(leave)
		s.wantPaid(<-done, p, 200, "PUT shop.example/a?b=1 body")
		elsewhere("afterwards")
		s.want(1, 1)
	})
}

func TestForgedCopyOfASettledPaymentGetsNothing(t *testing.T) {
	everyBank(t, till.Held, func(t *testing.T, s *shop) {
		p := s.authorize(payment.V2)
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
		forged := *p.transfer
		forged.Signature = append([]byte(nil), forged.Signature...)
		forged.Signature[10] ^= 1
		longer := p.transfer.Authorization
		longer.ValidBefore = new(big.Int).Add(longer.ValidBefore, big.NewInt(1))
		other := facilitatortest.Sign(t, s.bank.payer.Key, longer, s.route.Offers[0].Amount.Token())
		for name, q := range map[string]*purse{"another signature": s.wrap(payment.V2, &forged), "another authorization": s.wrap(payment.V2, other)} {
			a := s.ask("GET", "/", "", q)
			if a.status != http.StatusConflict || strings.Contains(a.body, "hello") || a.header.Get(payment.HeaderResponse) != "" {
				t.Errorf("%s: %d %q", name, a.status, a.body)
			}
		}
		s.want(1, 1)
	})
}

func TestStoredAnswerIsGivenAgainForAWhile(t *testing.T) {
	everyBank(t, till.Held, func(t *testing.T, s *shop) {
		s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			w.Header().Set("X-Count", fmt.Sprint(s.runs.Load()))
			w.Header().Set("Trailer", "X-Sum")
			w.Header().Add("Set-Cookie", "a=1")
			w.Header().Add("Set-Cookie", "b=2")
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, "goods")
			w.Header().Set("X-Sum", "42")
			return nil
		})
		p := s.authorize(payment.V1)
		for i := range 3 {
			a := s.ask("POST", "/", "order", p)
			s.wantPaid(a, p, http.StatusCreated, "goods")
			if a.header.Get("X-Count") != "1" || len(a.header.Values("Set-Cookie")) != 2 || a.trailer.Get("X-Sum") != "42" {
				t.Errorf("%d: %v, trailer %v", i, a.header, a.trailer)
			}
			if s.sale().Replayed != (i > 0) || !s.sale().Paid {
				t.Errorf("%d: sale %+v", i, s.sale())
			}
		}
		s.clock.Add(15*60 + 1)
		if n, err := s.ledger.Sweep(t.Context()); n != 1 || err != nil {
			t.Errorf("forgot %d, %v", n, err)
		}
		a := s.ask("POST", "/", "order", p)
		if a.status != http.StatusGone || string(a.settlement(t, payment.V1)["success"]) != "true" {
			t.Errorf("afterwards: %d %v", a.status, a.header)
		}
		s.want(1, 1)
	})
}

func TestHeadersThatAskForAPartAreNoWayAround(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		http.ServeContent(w, r, "x.txt", time.Unix(1000, 0), strings.NewReader("goods"))
		return nil
	})
	for _, header := range [][]string{{"Range", "bytes=0-1"}, {"If-None-Match", "*"}, {"If-Modified-Since", time.Now().Format(http.TimeFormat)}, {"Expect", "100-continue"}} {
		s.wantChallenge(s.ask("GET", "/", "", nil, header...))
	}
	p := s.authorize(payment.V2)
	a := s.ask("GET", "/", "", p, "If-Modified-Since", time.Now().UTC().Format(http.TimeFormat))
	if a.status != http.StatusNotModified || a.body != "" {
		t.Errorf("got %d %q", a.status, a.body)
	}
	p = s.authorize(payment.V2)
	s.wantPaid(s.ask("HEAD", "/", "", p), p, 200, "")
	s.want(2, 2)
}

// noSecrets checks that nothing of what an upstream said shows in an answer.
func noSecrets(t *testing.T, a *reply, informed []string) {
	t.Helper()
	for name, values := range a.header {
		if strings.Contains(strings.ToLower(name+strings.Join(values, " ")), "secret") {
			t.Errorf("header %s: %q", name, values)
		}
		switch name {
		case "Content-Type", "Content-Length", "Date", "Payment-Required", "Payment-Response", "Retry-After", "Cache-Control", "Vary", "Access-Control-Expose-Headers":
		default:
			t.Errorf("header %s: %q", name, values)
		}
	}
	if len(a.trailer) != 0 || strings.Contains(a.body, "secret") || len(informed) != 0 {
		t.Errorf("body %q, trailer %v, informational answers %v", a.body, a.trailer, informed)
	}
}

func TestNothingOfAHeldAnswerLeaksWhenSettlingFails(t *testing.T) {
	everyBank(t, till.Held, func(t *testing.T, s *shop) {
		for name, fail := range map[string]struct {
			bring, end func()
			status     int
		}{
			"refused": {s.bank.poor, s.bank.rich, http.StatusPaymentRequired},
			"pending": {s.bank.stall, s.bank.flow, http.StatusServiceUnavailable},
		} {
			s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
				h := w.Header()
				h.Set("Link", "</secret.css>; rel=preload")
				w.WriteHeader(http.StatusEarlyHints)
				h.Set("Set-Cookie", "session=secret")
				h.Set("X-Secret", "1")
				h.Set("Etag", `"secret"`)
				h.Set("Trailer", "X-Secret-Sum")
				h.Set("Content-Type", "application/secret")
				for _, what := range []func() error{
					func() error { return http.NewResponseController(w).Flush() },
					func() error { _, _, err := http.NewResponseController(w).Hijack(); return err },
					http.NewResponseController(w).EnableFullDuplex,
				} {
					if !errors.Is(what(), http.ErrNotSupported) {
						t.Error("a way out of the held answer")
					}
				}
				if _, ok := w.(http.Pusher); ok {
					t.Error("a held answer can push")
				}
				w.WriteHeader(http.StatusOK)
				io.WriteString(w, "secret")
				h.Set("X-Secret-Sum", "secret")
				h.Set(http.TrailerPrefix+"X-Secret-Too", "secret")
				fail.bring()
				return nil
			})
			s.offers(func(r *till.Route) { r.Deadline = 700 * time.Millisecond })
			p := s.authorize(payment.V2)
			var informed []string
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
				informed = append(informed, fmt.Sprint(code))
				return nil
			}})
			a, err := s.try(ctx, "GET", "/", "", p)
			fail.end()
			if err != nil || a.status != fail.status {
				t.Fatalf("%s: got %+v, %v", name, a, err)
			}
			noSecrets(t, a, informed)
			if string(a.settlement(t, payment.V2)["success"]) != "false" {
				t.Errorf("%s: receipt %v", name, a.header)
			}
			if name == "refused" {
				s.wantChallenge(a)
				if r, err := s.record(p); r.State != ledger.Released || err != nil {
					t.Errorf("it is %s, %v", r.State, err)
				}
			}
		}
	})
}

func TestFailingUpstreamCostsNothing(t *testing.T) {
	everyBank(t, till.Held, func(t *testing.T, s *shop) {
		p := s.authorize(payment.V2)
		free := func(what string, status int, upstream till.Upstream) {
			t.Helper()
			s.sells(upstream)
			a := s.ask("GET", "/", "", p)
			if a.status != status || a.header.Get(payment.HeaderResponse) != "" || a.header.Get(payment.HeaderRequired) != "" {
				t.Errorf("%s: %d %v", what, a.status, a.header)
			}
			if r, err := s.record(p); r.State != ledger.Released || err != nil {
				t.Errorf("%s: it is %s, %v", what, r.State, err)
			}
			if s.sale().Paid {
				t.Errorf("%s: sale %+v", what, s.sale())
			}
		}
		for _, status := range []int{400, 401, 404, 429, 500, 502, 503} {
			free(fmt.Sprint(status), status, func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
				w.Header().Set("Payment-Response", "forged")
				w.Header().Set("Cache-Control", "public")
				w.WriteHeader(status)
				return nil
			})
		}
		free("an error", 500, func(http.ResponseWriter, *http.Request, *till.Sale) error { return errUpstream })
		free("an error after some of the answer", 500, func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			fmt.Fprint(w, "secret")
			return errUpstream
		})
		s.offers(func(r *till.Route) { r.MaxHeld = 10 })
		free("too much", 502, func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			_, err := fmt.Fprint(w, strings.Repeat("x", 11))
			return err
		})
		free("too much, in silence", 502, func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			for range 11 {
				fmt.Fprint(w, "x")
			}
			return nil
		})
		s.want(0, 11)
		s.sells(func(http.ResponseWriter, *http.Request, *till.Sale) error { panic(http.ErrAbortHandler) })
		if a := s.ask("GET", "/", "", p); a.status != http.StatusBadGateway || !strings.Contains(a.body, "not been charged") {
			t.Errorf("aborted: %d %q", a.status, a.body)
		}
		s.awaitState(p, ledger.Released)
		// The payment is as good as new.
		s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			fmt.Fprint(w, "0123456789")
			return nil
		})
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, "0123456789")
		s.want(1, 13)
	})
}

func TestSlowUpstreamIsCutOffAndCostsNothing(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.offers(func(r *till.Route) { r.Upstream = 30 * time.Millisecond })
	s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		<-r.Context().Done()
		return r.Context().Err()
	})
	p := s.authorize(payment.V2)
	if a := s.ask("GET", "/", "", p); a.status != 500 {
		t.Errorf("got %d", a.status)
	}
	s.awaitState(p, ledger.Released)
	s.want(0, 1)
}

// A released payment may buy something else, but what was made for the first
// request is not given away with it.
func TestReleasedPaymentDoesNotBuyTwoAnswers(t *testing.T) {
	for _, mode := range []till.Mode{till.Held, till.First} {
		t.Run(string(mode), func(t *testing.T) {
			everyBank(t, till.Held, func(t *testing.T, s *shop) {
				s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
					if r.URL.Path == "/first" {
						s.bank.poor()
						fmt.Fprint(w, "first")
						return nil
					}
					fmt.Fprint(w, strings.Repeat("second", 200_000)) // more than is stored
					return nil
				})
				p := s.authorize(payment.V2)
				s.wantChallenge(s.ask("GET", "/first", "", p))
				s.bank.rich()
				s.offers(func(r *till.Route) { r.Mode, r.MaxStored = mode, 1000 })
				s.wantPaid(s.ask("GET", "/second", "", p), p, 200, strings.Repeat("second", 200_000))
				for range 2 {
					a := s.ask("GET", "/second", "", p)
					if a.status != http.StatusGone || strings.Contains(a.body, "first") {
						t.Errorf("got %d %.40q", a.status, a.body)
					}
				}
				if a := s.ask("GET", "/first", "", p); a.status != http.StatusConflict {
					t.Errorf("got %d %q", a.status, a.body)
				}
				s.want(1, 2)
			})
		})
	}
}

func TestBodiesAboveTheLimitAreRefusedBeforeAnythingElse(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.offers(func(r *till.Route) { r.MaxBody = 10 })
	p := s.authorize(payment.V2)
	a := s.ask("POST", "/", "01234567890", p)
	if a.status != http.StatusRequestEntityTooLarge || !strings.Contains(a.body, "not been charged") {
		t.Errorf("got %d %q", a.status, a.body)
	}
	if _, err := s.record(p); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("it was claimed, %v", err)
	}
	s.want(0, 0)
	s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		_, err := io.Copy(w, r.Body)
		return err
	})
	s.wantPaid(s.ask("POST", "/", "0123456789", p), p, 200, "0123456789")
}

func TestPendingSettlementIsFinishedByTheSameRequest(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		s.offers(func(r *till.Route) { r.Deadline = 3 * time.Second })
		p := s.authorize(payment.V2)
		s.bank.stall()
		for range 2 {
			m := s.wantPending(s.ask("GET", "/x", "", p), payment.V2)
			if len(m["transaction"]) < 4 {
				t.Errorf("pending as %s", m["transaction"])
			}
			if sale := s.sale(); sale.Paid || sale.Reason != string(payment.SettlementPending) {
				t.Errorf("sale %+v", sale)
			}
		}
		if a := s.ask("GET", "/y", "", p); a.status != http.StatusConflict {
			t.Errorf("got %d", a.status)
		}
		s.bank.flow()
		s.offers(func(r *till.Route) { r.Deadline = 10 * time.Second })
		s.wantPaid(s.ask("GET", "/x", "", p), p, 200, "hello GET /x")
		s.want(1, 1)
	})
}

func TestHangingFacilitatorIsAnsweredWithinTheDeadline(t *testing.T) {
	hang := func(ctx context.Context) error {
		<-ctx.Done()
		return &payment.UnavailableError{Doing: "waiting", Err: ctx.Err(), Pending: false}
	}
	for _, c := range []struct {
		name             string
		verifying        func(context.Context) error
		settling         func(context.Context) error
		mode             till.Mode
		state            ledger.State
		runs             int
		pending, claimed bool
	}{
		{name: "verify", verifying: hang, mode: till.Held},
		{name: "verify first", verifying: hang, mode: till.First},
		{name: "settle", settling: hang, mode: till.Held, runs: 1, claimed: true, state: ledger.Released},
		{name: "settle first", settling: hang, mode: till.First, claimed: true, state: ledger.Released},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := fakeBank(t)
			fake := &facilitatortest.Fake{Verifying: c.verifying, Settling: c.settling}
			b.facilitator = func(l *ledger.Ledger) payment.Facilitator { return journal(fake, l) }
			s := open(t, b, c.mode)
			s.offers(func(r *till.Route) { r.Deadline = 100 * time.Millisecond })
			p := s.authorize(payment.V2)
			began := time.Now()
			a := s.ask("GET", "/", "", p)
			if waited := time.Since(began); waited > 3*time.Second {
				t.Errorf("it took %s", waited)
			}
			if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || a.header.Get(payment.HeaderRequired) != "" || a.header.Get(payment.HeaderResponse) != "" {
				t.Errorf("got %d %v %q", a.status, a.header, a.body)
			}
			if int(s.runs.Load()) != c.runs {
				t.Errorf("%d runs", s.runs.Load())
			}
			r, err := s.record(p)
			if (err == nil) != c.claimed || c.claimed && r.State != c.state {
				t.Errorf("it is %s, %v", r.State, err)
			}
		})
	}
}

func TestRefusalComesWithTheReasonAndANewChallenge(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		poor := s.authorize(payment.V2)
		s.bank.poor()
		a := s.ask("GET", "/", "", poor)
		s.bank.rich()
		s.wantChallenge(a)
		m := a.settlement(t, payment.V2)
		if string(m["success"]) != "false" || len(m["errorReason"]) < 4 || string(m["payer"]) != `"`+poor.transfer.From.Hex()+`"` {
			t.Errorf("settlement %s", m)
		}
		if v2, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired)); err != nil || `"`+v2.Error+`"` != string(m["errorReason"]) {
			t.Errorf("challenge %+v, %v", v2, err)
		}
		if sale := s.sale(); sale.Paid || `"`+sale.Reason+`"` != string(m["errorReason"]) {
			t.Errorf("sale %+v", sale)
		}
		if got := s.bank.transfers(); got != 0 {
			t.Errorf("%d transfers", got)
		}
	})
}

func TestForgedPaymentIsRefused(t *testing.T) {
	for _, name := range []string{"embedded", "remote"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, banks[name](t), till.Held)
			p := s.authorize(payment.V2)
			p.transfer.Signature[3] ^= 1
			a := s.ask("GET", "/", "", s.wrap(payment.V2, p.transfer))
			s.wantChallenge(a)
			if m := a.settlement(t, payment.V2); string(m["errorReason"]) != `"`+string(payment.EVMSignature)+`"` {
				t.Errorf("settlement %s", m)
			}
			if _, err := s.record(p); !errors.Is(err, ledger.ErrNotFound) {
				t.Errorf("it was claimed, %v", err)
			}
			s.want(0, 0)
		})
	}
}

func TestStreamsArriveAsTheyAreMade(t *testing.T) {
	everyBank(t, till.First, func(t *testing.T, s *shop) {
		next := make(chan struct{})
		s.sells(func(w http.ResponseWriter, r *http.Request, sale *till.Sale) error {
			if !sale.Paid || sale.Transaction == "" || s.bank.transfers() != 1 {
				t.Errorf("it runs before it is paid: %+v", sale)
			}
			for i := range 3 {
				fmt.Fprintf(w, "line %d\n", i)
				if err := http.NewResponseController(w).Flush(); err != nil {
					t.Error(err)
				}
				<-next
			}
			return nil
		})
		p := s.authorize(payment.V2)
		r, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(p.name, p.value)
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		a := &reply{status: resp.StatusCode, header: resp.Header}
		lines := bufio.NewReader(resp.Body)
		for i := range 3 {
			line, err := lines.ReadString('\n')
			if err != nil || line != fmt.Sprintf("line %d\n", i) {
				t.Errorf("%q, %v", line, err)
			}
			next <- struct{}{}
		}
		s.wantPaid(a, p, 200, "")
		if rest, err := io.ReadAll(lines); err != nil || len(rest) != 0 {
			t.Errorf("%q, %v", rest, err)
		}
		s.want(1, 1)
	})
}

// What an upstream says about payment where the receipt is not, in an early
// answer or in a trailer, is taken out of a stream, too.
func TestStreamsSayNothingElseAboutPayment(t *testing.T) {
	s := open(t, fakeBank(t), till.First)
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		h := w.Header()
		h.Set("Payment-Response", "forged")
		h.Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		h.Set("Trailer", "X-Sum, Payment-Response")
		h.Add("Trailer", "X-Payment-Response")
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		if n, err := io.Copy(w, strings.NewReader("goods")); n != 5 || err != nil {
			t.Errorf("copied %d, %v", n, err)
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		h.Set("X-Sum", "42")
		h.Set("Payment-Response", "forged")
		h.Set("X-Payment-Response", "forged")
		h.Set(http.TrailerPrefix+"Payment-Required", "forged")
		h.Set(http.TrailerPrefix+"X-Late", "43")
		return nil
	})
	for version, d := range s.doors() {
		p := s.authorize(payment.V2)
		var early []textproto.MIMEHeader
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			early = append(early, h)
			return nil
		}})
		r, err := http.NewRequestWithContext(ctx, "GET", d.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(p.name, p.value)
		resp, err := d.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		s.wantPaid(&reply{resp.StatusCode, resp.Header, resp.Trailer, string(body)}, p, 200, "goods")
		if len(early) != 1 || early[0].Get("Link") == "" || early[0].Get("Payment-Response") != "" {
			t.Errorf("%s: early answers %v", version, early)
		}
		if len(resp.Trailer) != 2 || resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-Late") != "43" {
			t.Errorf("%s: trailers %v", version, resp.Trailer)
		}
	}
}

// The body of a tunnel ends with its answer: waiting for it would last for
// ever.
func TestTunnelsAreNotReadBeforeTheyArePaid(t *testing.T) {
	s := open(t, fakeBank(t), till.First)
	s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		_, err := io.CopyN(w, r.Body, 5)
		return err
	})
	p := s.authorize(payment.V2)
	reader, writer := io.Pipe()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodConnect, "https://shop.example/", reader)
	r.URL.Path = "/socket"
	r.Header.Set(p.name, p.value)
	w := httptest.NewRecorder()
	done := make(chan struct{})
	go func() { // ends when five bytes are written
		defer close(done)
		s.serve(w, r)
	}()
	s.awaitState(p, ledger.Settled)
	if _, err := io.WriteString(writer, "frame"); err != nil {
		t.Fatal(err)
	}
	<-done
	if w.Code != 200 || w.Body.String() != "frame" {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
}

func TestUpstreamThatFailsAfterPaymentMayBeAskedAgain(t *testing.T) {
	everyBank(t, till.First, func(t *testing.T, s *shop) {
		s.offers(func(r *till.Route) { r.Redeliver = 4 })
		p := s.authorize(payment.V2)
		s.sells(func(http.ResponseWriter, *http.Request, *till.Sale) error { return errUpstream })
		a := s.ask("GET", "/", "", p)
		if a.status != 500 || string(a.settlement(t, payment.V2)["success"]) != "true" {
			t.Errorf("an error: %d %v", a.status, a.header)
		}
		s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			w.WriteHeader(http.StatusBadGateway)
			return nil
		})
		if a = s.ask("GET", "/", "", p); a.status != 502 || string(a.settlement(t, payment.V2)["success"]) != "true" {
			t.Errorf("5xx: %d %v", a.status, a.header)
		}
		s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			fmt.Fprint(w, "half of")
			panic(http.ErrAbortHandler)
		})
		if _, err := s.try(t.Context(), "GET", "/", "", p); err == nil {
			t.Error("the abort did not reach the client")
		}
		s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			fmt.Fprint(w, "goods")
			return nil
		})
		if a := s.ask("GET", "/other", "", p); a.status != http.StatusConflict {
			t.Errorf("another request: %d", a.status)
		}
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, "goods")
		s.want(1, 4)
		a = s.ask("GET", "/", "", p)
		if a.status != http.StatusGone || string(a.settlement(t, payment.V2)["success"]) != "true" {
			t.Errorf("once more: %d %v", a.status, a.header)
		}
		s.want(1, 4)
	})
}

func TestClientErrorsOfTheUpstreamAreADelivery(t *testing.T) {
	s := open(t, fakeBank(t), till.First)
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		w.WriteHeader(http.StatusNotFound)
		return nil
	})
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask("GET", "/", "", p), p, 404, "")
	if a := s.ask("GET", "/", "", p); a.status != http.StatusGone {
		t.Errorf("got %d", a.status)
	}
	s.want(1, 1)
}

func TestClientThatHangsUpLosesNothing(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		entered, gone := make(chan struct{}, 1), make(chan struct{})
		s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			select {
			case entered <- struct{}{}:
				<-gone
			default:
			}
			fmt.Fprint(w, "goods")
			return nil
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
		if s.route.Mode == till.First {
			// The server must have noticed, or it counts as delivered.
			time.Sleep(50 * time.Millisecond)
		}
		close(gone)
		s.awaitState(p, ledger.Settled, ledger.Archived)
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, "goods")
		runs := 1
		if s.route.Mode == till.First {
			runs = 2
		}
		s.want(1, runs)
	})
}

func TestPayerWithCodePaysFirst(t *testing.T) {
	t.Parallel()
	b := fakeBank(t)
	fake := &facilitatortest.Fake{Contract: true}
	b.facilitator, b.transfers = func(l *ledger.Ledger) payment.Facilitator { return journal(fake, l) }, fake.Transfers
	s := open(t, b, till.Held)
	s.sells(func(w http.ResponseWriter, r *http.Request, sale *till.Sale) error {
		if !sale.Paid || fake.Transfers() != 1 {
			t.Errorf("it runs before it is paid: %+v", sale)
		}
		fmt.Fprint(w, "goods")
		return nil
	})
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask("GET", "/", "", p), p, 200, "goods")
	s.want(1, 1)
}

// Whatever happens between the first sight of a payment and its delivery, a
// new process on the same ledger finishes it without a second transfer.
func TestCrashAnywhereLosesAndDoublesNothing(t *testing.T) {
	for _, c := range []struct {
		name     string
		mode     till.Mode
		stop     func(s *shop, stopped func()) // arranges that the first process comes to a halt
		state    ledger.State                  // in which the record is then
		released int
		runs     int // of the upstream in all
	}{
		{"before the settlement", till.First, func(s *shop, stopped func()) { s.gate.before = stopped }, ledger.Reserved, 1, 1},
		{"in the upstream", till.Held, func(s *shop, stopped func()) { s.sells(stopping(stopped)) }, ledger.Executing, 1, 2},
		{"after the upstream", till.Held, func(s *shop, stopped func()) { s.gate.before = stopped }, ledger.Executed, 1, 2},
		{"after the settlement", till.Held, func(s *shop, stopped func()) { s.gate.after = stopped }, ledger.Settled, 0, 1},
		{"after the settlement, first", till.First, func(s *shop, stopped func()) { s.gate.after = stopped }, ledger.Settled, 0, 1},
		{"in the delivery", till.First, func(s *shop, stopped func()) { s.sells(stopping(stopped)) }, ledger.Settled, 0, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			everyBank(t, c.mode, func(t *testing.T, s *shop) {
				halted, free := make(chan struct{}), make(chan struct{})
				var once sync.Once
				c.stop(s, func() {
					once.Do(func() { close(halted) })
					<-free
				})
				p := s.authorize(payment.V2)
				zombie := make(chan struct{})
				go func() { // ends when free is closed
					defer close(zombie)
					_, _ = s.try(t.Context(), "GET", "/x", "", p)
				}()
				<-halted
				if r, err := s.record(p); err != nil || r.State != c.state && !(c.state == ledger.Settled && r.State == ledger.Archived) {
					t.Errorf("it is %s, %v", r.State, err)
				}
				if n := s.restart(); n != c.released {
					t.Errorf("%d payments were released", n)
				}
				s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
					fmt.Fprintf(w, "hello %s %s", r.Method, r.URL)
					return nil
				})
				s.wantPaid(s.ask("GET", "/x", "", p), p, 200, "hello GET /x")
				// The process that was thought dead goes on.
				close(free)
				<-zombie
				s.awaitState(p, ledger.Settled, ledger.Archived)
				if got := s.bank.transfers(); got != 1 {
					t.Errorf("%d transfers", got)
				}
				if runs := int(s.runs.Load()); runs != c.runs {
					t.Errorf("the upstream ran %d times, want %d", runs, c.runs)
				}
				if a := s.ask("GET", "/y", "", p); a.status != http.StatusConflict {
					t.Errorf("another request: %d", a.status)
				}
			})
		})
	}
}

// stopping returns an upstream that comes to a halt.
func stopping(stopped func()) till.Upstream {
	return func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		stopped()
		return errUpstream
	}
}

func TestCrashWhileTheSettlementIsPendingIsTakenUp(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		s.offers(func(r *till.Route) { r.Deadline = 700 * time.Millisecond })
		p := s.authorize(payment.V2)
		s.bank.stall()
		s.wantPending(s.ask("GET", "/x", "", p), payment.V2)
		if n := s.restart(); n != 0 {
			t.Errorf("%d payments were released", n)
		}
		s.wantPending(s.ask("GET", "/x", "", p), payment.V2)
		s.bank.flow()
		s.offers(func(r *till.Route) { r.Deadline = 10 * time.Second })
		s.wantPaid(s.ask("GET", "/x", "", p), p, 200, "hello GET /x")
		s.want(1, 1)
	})
}

func TestClaimOfAProcessThatHangsLapses(t *testing.T) {
	everyBank(t, till.Held, func(t *testing.T, s *shop) {
		halted, free := make(chan struct{}), make(chan struct{})
		s.sells(stopping(func() { close(halted); <-free }))
		p := s.authorize(payment.V2)
		zombie := make(chan struct{})
		go func() { // ends when free is closed
			defer close(zombie)
			_, _ = s.try(t.Context(), "GET", "/x", "", p)
		}()
		<-halted
		// Another process on the same ledger, without a recovery.
		s.mu.Lock()
		s.ledger = ledger.New(s.store, "another", s.till.Now)
		s.till = &till.Till{Facilitator: s.bank.facilitator(s.ledger), Ledger: s.ledger, Now: s.till.Now}
		s.mu.Unlock()
		s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			fmt.Fprint(w, "goods")
			return nil
		})
		s.wantPending(s.ask("GET", "/x", "", p), payment.V2)
		s.want(0, 1)
		s.clock.Add(60)
		s.wantPaid(s.ask("GET", "/x", "", p), p, 200, "goods")
		close(free)
		<-zombie
		s.want(1, 2)
	})
}

// Somebody else submits the authorization while nobody here works on it: the
// payer has paid, and the same request gets the goods.
func TestReleasedPaymentThatSomebodyElseLandsIsServed(t *testing.T) {
	t.Parallel()
	for _, mode := range []till.Mode{till.Held, till.First} {
		t.Run(string(mode), func(t *testing.T) {
			b, c, node := onChain(t)
			b.facilitator = func(l *ledger.Ledger) payment.Facilitator { return embed(t, c, node, l) }
			s := open(t, b, mode)
			p := s.authorize(payment.V2)
			b.poor()
			first := s.ask("GET", "/x", "", p)
			s.wantChallenge(first)
			b.rich()
			if _, err := s.record(p); err != nil { // it was refused before it was claimed
				s.sells(func(http.ResponseWriter, *http.Request, *till.Sale) error { return errUpstream })
				s.offers(func(r *till.Route) { r.Mode = till.Held })
				_ = s.ask("GET", "/x", "", p)
				s.offers(func(r *till.Route) { r.Mode = mode })
			}
			s.awaitState(p, ledger.Released)
			transact(t, c, c.Account("facilitator2"), p.transfer.Calldata())
			head := c.Snapshot()
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				if h, err := node.Head(); err == nil && h.Hash == head {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the client does not see the head")
				}
			}
			s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
				fmt.Fprint(w, "goods")
				return nil
			})
			runs := int(s.runs.Load())
			if a := s.ask("GET", "/other", "", p); a.status != http.StatusPaymentRequired {
				t.Errorf("another request: %d", a.status)
			}
			s.wantPaid(s.ask("GET", "/x", "", p), p, 200, "goods")
			s.want(1, runs+1)
			if a := s.ask("GET", "/other", "", p); a.status != http.StatusConflict {
				t.Errorf("another request: %d", a.status)
			}
		})
	}
}

func TestUnsafeMethodsRunAgainOnlyWhereTheRouteSaysSo(t *testing.T) {
	for _, retry := range []bool{false, true} {
		b := fakeBank(t)
		s := open(t, b, till.Held)
		s.offers(func(r *till.Route) { r.RetryUnsafe, r.Deadline, r.MaxStored = retry, 200*time.Millisecond, 1000 })
		s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			fmt.Fprint(w, strings.Repeat("x", 600_000)) // more than is stored
			return nil
		})
		p := s.authorize(payment.V2)
		b.stall()
		s.wantPending(s.ask("POST", "/", "order", p), payment.V2)
		b.flow()
		a := s.ask("POST", "/", "order", p)
		if retry {
			s.wantPaid(a, p, 200, strings.Repeat("x", 600_000))
			s.want(1, 2)
			continue
		}
		if a.status != http.StatusGone || string(a.settlement(t, payment.V2)["success"]) != "true" {
			t.Errorf("got %d %v", a.status, a.header)
		}
		s.want(1, 1)
	}
}

func TestLedgerThatFailsServesNothing(t *testing.T) {
	for _, mode := range []till.Mode{till.Held, till.First} {
		s := open(t, fakeBank(t), mode)
		p := s.authorize(payment.V2)
		if err := s.store.Close(); err != nil {
			t.Fatal(err)
		}
		a := s.ask("GET", "/", "", p)
		if a.status != http.StatusServiceUnavailable || a.header.Get(payment.HeaderRequired) != "" {
			t.Errorf("got %d %q", a.status, a.body)
		}
		s.want(0, 0)
	}
}

func TestBugOfAFacilitatorIsNoVerdict(t *testing.T) {
	b := fakeBank(t)
	fake := &facilitatortest.Fake{Verifying: func(context.Context) error { return errors.New("a bug") }}
	b.facilitator = func(l *ledger.Ledger) payment.Facilitator { return journal(fake, l) }
	s := open(t, b, till.Held)
	if a := s.ask("GET", "/", "", s.authorize(payment.V2)); a.status != 500 {
		t.Errorf("got %d", a.status)
	}
	s.want(0, 0)
}

// Two processes on one store: while one hands over the goods, the other one
// does not run the upstream for the same payment, until the lease has passed.
func TestAnotherProcessLeavesADeliveryAlone(t *testing.T) {
	s := open(t, fakeBank(t), till.First)
	share := func(owner string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ledger = ledger.NewShared(s.store, owner, s.till.Now)
		s.till = &till.Till{Facilitator: s.bank.facilitator(s.ledger), Ledger: s.ledger, Now: s.till.Now}
	}
	share("one")
	halted, free := make(chan struct{}), make(chan struct{})
	s.sells(stopping(func() { close(halted); <-free }))
	p := s.authorize(payment.V2)
	zombie := make(chan struct{})
	go func() { // ends when free is closed
		defer close(zombie)
		_, _ = s.try(t.Context(), "GET", "/x", "", p)
	}()
	<-halted
	share("two")
	s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		fmt.Fprint(w, "goods")
		return nil
	})
	s.wantPending(s.ask("GET", "/x", "", p), payment.V2)
	s.want(1, 1)
	s.clock.Add(60)
	s.wantPaid(s.ask("GET", "/x", "", p), p, 200, "goods")
	// The first one fails late, and takes nothing back.
	close(free)
	<-zombie
	if r, err := s.record(p); err != nil || r.Delivery != ledger.Delivered {
		t.Errorf("it is %q, %v", r.Delivery, err)
	}
	if a := s.ask("GET", "/x", "", p); a.status != http.StatusGone {
		t.Errorf("asked again: %d", a.status)
	}
	s.want(1, 2)
}

// A facilitator in front of the ledger finds that the payment has been claimed
// for another request: that one can still settle it.
func TestPaymentTakenOverByAnotherRequestIsNotAskedForAgain(t *testing.T) {
	s := open(t, fakeBank(t), till.First)
	s.till.Facilitator = refusing{s.gate.Facilitator}
	if a := s.ask("GET", "/x", "", s.authorize(payment.V2)); a.status != http.StatusConflict {
		t.Errorf("got %d", a.status)
	}
}

// refusing says of every payment that it is bound to something else.
type refusing struct{ payment.Facilitator }

func (refusing) Settle(context.Context, *payment.Payment, *payment.Offer, payment.Amount) (*payment.Settlement, error) {
	return nil, payment.Invalid(payment.DuplicateSettlement, "")
}
