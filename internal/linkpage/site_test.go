package linkpage

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

const (
	seller = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
	buyer  = "0x857b06519E91e3A54538791bDbb0E22373e36b66"
	hash   = "0x8b73c3c69bb8fe3d512ecc4cf759cc79239f7b179b0ffacaa9a75d522b39400f"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func testSite(t *testing.T) *Site {
	t.Helper()
	s, err := New(Config{
		Merchant: "Meridian Studio",
		Chains: map[payment.Network]Chain{
			"eip155:84532": {RPC: "https://sepolia.base.org", Explorer: "https://sepolia.basescan.org"},
		},
		Now: func() time.Time { return noon },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// usdc returns an offer of an amount of USDC, in atomic units.
func usdc(t *testing.T, n payment.Network, units string) payment.Offer {
	t.Helper()
	token, ok := payment.USDC(n)
	if !ok {
		t.Fatalf("no USDC on %s", n)
	}
	return payment.Offer{Scheme: payment.Exact, Amount: amount(t, token, units), PayTo: seller, Timeout: 5 * time.Minute}
}

func amount(t *testing.T, token payment.Token, units string) payment.Amount {
	t.Helper()
	a, err := payment.ParseUnits(units, token)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func testLink(t *testing.T) *Link {
	t.Helper()
	return &Link{
		ID: "7ZZ0V8M9K3Q1X5T6R2W4Y8N0PA", URL: "https://pay.example/x402/7ZZ0V8M9K3Q1X5T6R2W4Y8N0PA", Status: Active,
		Description: "Website work", Expires: noon.Add(30 * 24 * time.Hour),
		Offers: []payment.Offer{usdc(t, "eip155:84532", "50000000")},
	}
}

func testReceipt(t *testing.T) *Receipt {
	t.Helper()
	token, _ := payment.USDC("eip155:84532")
	return &Receipt{
		ID: "4K3Q1X5T6R2W4Y8N0PA7ZZ0V8M", State: Confirmed, LinkURL: "https://pay.example/x402/7ZZ0V8M9K3Q1X5T6R2W4Y8N0PA",
		Description: "Website work", Amount: amount(t, token, "50000000"), PayTo: seller, Payer: buyer, PaidAt: noon, Transaction: hash,
	}
}

// answer returns what write answers a request with.
func answer(t *testing.T, write func(http.ResponseWriter) error) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	if err := write(w); err != nil {
		t.Fatal(err)
	}
	return w
}

// everyPage answers with each kind of page there is.
func everyPage(t *testing.T, s *Site) map[string]*httptest.ResponseRecorder {
	t.Helper()
	pages := map[string]*httptest.ResponseRecorder{
		"unknown":     answer(t, s.NotFound),
		"unavailable": answer(t, s.Unavailable),
	}
	for _, status := range []Status{Active, Pending, Paid, Expired, Disabled} {
		l := testLink(t)
		l.Status = status
		pages[string(status)] = answer(t, func(w http.ResponseWriter) error { return s.Link(w, l) })
	}
	for _, state := range []ReceiptState{Settling, Confirmed, Failed, RefundDue, Refunded} {
		r := testReceipt(t)
		r.State = state
		pages["receipt "+string(state)] = answer(t, func(w http.ResponseWriter) error { return s.Receipt(w, r) })
	}
	return pages
}

func TestEveryPageIsLockedDown(t *testing.T) {
	for name, w := range everyPage(t, testSite(t)) {
		for header, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; script-src-elem 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
				"form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
			"X-Content-Type-Options":     "nosniff",
			"Referrer-Policy":            "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin-allow-popups",
			"Cache-Control":              "no-store",
			"Vary":                       "Accept",
			"Content-Type":               "text/html; charset=utf-8",
		} {
			if got := w.Header().Values(header); len(got) != 1 || got[0] != want {
				t.Errorf("%s: %s is %q, not %q", name, header, got, want)
			}
		}
	}
}

func TestVaryIsAddedToWhatOthersSaidOnce(t *testing.T) {
	s := testSite(t)
	for _, c := range []struct{ before, after []string }{
		{nil, []string{"Accept"}},
		{[]string{"Origin"}, []string{"Origin", "Accept"}},
		{[]string{"Origin, accept"}, []string{"Origin, accept"}},
	} {
		w := httptest.NewRecorder()
		w.Header()["Vary"] = c.before
		if err := s.NotFound(w); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(w.Header().Values("Vary"), "|"); got != strings.Join(c.after, "|") {
			t.Errorf("Vary %q became %q, not %q", c.before, got, c.after)
		}
	}
}

func TestStatusSaysWhetherALinkCanBePaid(t *testing.T) {
	want := map[string]int{
		"ACTIVE": 402, "PENDING": 402, "PAID": 200, "EXPIRED": 410, "DISABLED": 410, "unknown": 404, "unavailable": 503,
		"receipt settling": 200, "receipt paid": 200, "receipt failed": 200, "receipt refund-due": 200, "receipt refunded": 200,
	}
	pages := everyPage(t, testSite(t))
	if len(pages) != len(want) {
		t.Errorf("there are %d kinds of page, %d of them are checked", len(pages), len(want))
	}
	for name, w := range pages {
		if w.Code != want[name] {
			t.Errorf("%s is answered with %d, not %d", name, w.Code, want[name])
		}
	}
}

func TestEveryStateHasItsOwnWords(t *testing.T) {
	seen := map[string]string{}
	for name, w := range everyPage(t, testSite(t)) {
		state := attribute(first(parse(t, w.Body.String()), "main"), "data-state")
		if strings.HasPrefix(name, "receipt ") {
			state = "receipt " + state
		}
		said := text(byRole(t, w.Body.String(), "status"))
		if said == "" {
			t.Errorf("%s says nothing", name)
		}
		if other, ok := seen[said]; ok {
			t.Errorf("%s and %s both say %q", name, other, said)
		}
		seen[said] = name
		if state == "" || state == "receipt " {
			t.Errorf("%s has no state for the stylesheet", name)
		}
	}
}

func TestPagesPromiseThatNothingWasTakenWhereItIsSo(t *testing.T) {
	pages := everyPage(t, testSite(t))
	for _, name := range []string{"EXPIRED", "DISABLED", "unavailable", "receipt failed"} {
		if !strings.Contains(strings.ToLower(text(byRole(t, pages[name].Body.String(), "status"))), "nothing was taken") {
			t.Errorf("%s does not say that nothing was taken", name)
		}
	}
	for _, name := range []string{"PENDING", "receipt settling"} {
		if !strings.Contains(text(byRole(t, pages[name].Body.String(), "status")), "Do not pay again") {
			t.Errorf("%s does not say that one must not pay again", name)
		}
	}
}

func TestPagesAreAccessible(t *testing.T) {
	s := testSite(t)
	pages := everyPage(t, s)
	full := testLink(t)
	full.Offers = append(full.Offers, usdc(t, "eip155:8453", "50000000"))
	full.Fields = []Field{{Name: "email", Label: "E-mail", Required: true}, {Name: "ref", Label: "Reference", MaxLength: 40}}
	pages["full"] = answer(t, func(w http.ResponseWriter) error { return s.Link(w, full) })
	for name, w := range pages {
		root := parse(t, w.Body.String())
		for _, tag := range []string{"main", "h1"} {
			if n := len(all(root, tag)); n != 1 {
				t.Errorf("%s has %d <%s>", name, n, tag)
			}
		}
		if lang := attribute(first(root, "html"), "lang"); lang != "en" {
			t.Errorf("%s is in language %q", name, lang)
		}
		if first(root, "title") == nil || text(first(root, "title")) == "" {
			t.Errorf("%s has no title", name)
		}
		labelled := map[string]bool{}
		for _, l := range all(root, "label") {
			labelled[attribute(l, "for")] = text(l) != ""
		}
		for _, input := range all(root, "input") {
			if !labelled[attribute(input, "id")] {
				t.Errorf("%s: an input has no label", name)
			}
		}
		for _, e := range elements(root) {
			for _, a := range e.Attr {
				if a.Key == "style" || strings.HasPrefix(a.Key, "on") {
					t.Errorf("%s: <%s> has the attribute %s, which the policy forbids", name, e.Data, a.Key)
				}
			}
			if e.Data == "svg" && attribute(e, "aria-label") == "" {
				t.Errorf("%s: the image says nothing to those who do not see it", name)
			}
		}
	}
}

// Pages ask no other host for anything: what they load is the site's own.
func TestPagesLoadNothingFromElsewhere(t *testing.T) {
	for name, w := range everyPage(t, testSite(t)) {
		for _, e := range elements(parse(t, w.Body.String())) {
			at := attribute(e, "src")
			if e.Data == "link" {
				at = attribute(e, "href")
			}
			if at != "" && !strings.HasPrefix(at, "/x402/-/") && !strings.HasPrefix(at, "data:image/") {
				t.Errorf("%s: <%s> loads %s", name, e.Data, at)
			}
		}
	}
	for _, file := range []string{"web/style.css", "web/pay.js"} {
		body, err := web.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, forbidden := range []string{"@import", "http://", "https://", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "setAttribute(\"on"} {
			if strings.Contains(string(body), forbidden) {
				t.Errorf("%s contains %s", file, forbidden)
			}
		}
	}
}

func TestConfigThatCannotBeIsRefused(t *testing.T) {
	for _, base := range []string{"x402", "/x402/", "/", "//x402", "/x402?a", "https://pay.example/x402"} {
		if _, err := New(Config{Base: base}); err == nil {
			t.Errorf("base %q is taken", base)
		}
	}
	for name, chains := range map[string]map[payment.Network]Chain{
		"no URL":             {"eip155:1": {RPC: "sepolia.base.org"}},
		"a script":           {"eip155:1": {RPC: "javascript:alert(1)"}},
		"a password":         {"eip155:1": {RPC: "https://user:secret@node.example"}},
		"no EVM chain":       {"solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp": {RPC: "https://node.example"}},
		"an explorer of air": {"eip155:1": {RPC: "https://node.example", Explorer: "etherscan"}},
	} {
		if _, err := New(Config{Chains: chains}); err == nil {
			t.Errorf("a chain with %s is taken", name)
		}
	}
}

func TestMerchantIsNamedOrTheHostIs(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	l := testLink(t)
	body := answer(t, func(w http.ResponseWriter) error { return s.Link(w, l) }).Body.String()
	if !strings.Contains(text(first(parse(t, body), "h1")), "pay.example") {
		t.Error("without a name the page does not show the host")
	}
	l.Merchant = "Harbour Books"
	body = answer(t, func(w http.ResponseWriter) error { return testSite(t).Link(w, l) }).Body.String()
	if got := text(first(parse(t, body), "h1")); !strings.Contains(got, "Harbour Books") || strings.Contains(got, "Meridian") {
		t.Errorf("the link's own merchant is not shown: %q", got)
	}
}
