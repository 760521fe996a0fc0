package caddymodule

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	dto "github.com/prometheus/client_model/go"

	"github.com/tollgate402/tollgate/payment"
)

const memory = `ledger memory
		facilitator fake`

func TestAnUnpaidRequestGetsThePriceInBothVersions(t *testing.T) {
	s := newSite(t)
	s.load(paidSite(memory, `x402 /maps/* $0.01 "Map tiles" {
		mime_type image/png
	}
	respond "free"`))
	got := s.get("/maps/1?zoom=2")
	if got.StatusCode != http.StatusPaymentRequired {
		t.Fatalf("status %d", got.StatusCode)
	}
	v2, err := payment.DecodeRequired(got.Header.Get("PAYMENT-REQUIRED"))
	if err != nil {
		t.Fatal(err)
	}
	v1, err := payment.DecodeRequiredBody([]byte(got.body))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*payment.Received{v2, v1} {
		if len(c.Offers) != 1 || c.Offers[0].Amount.Units() != "10000" || c.Offers[0].PayTo != seller || c.Offers[0].Offer.Network() != "eip155:84532" {
			t.Errorf("version %d offers %+v", c.Version, c.Offers)
		}
	}
	for _, want := range []string{`"url":"http://` + s.address + `/maps/1?zoom=2"`, `"description":"Map tiles"`, `"mimeType":"image/png"`} {
		if !strings.Contains(string(v2.Resource), want) {
			t.Errorf("the resource %s lacks %s", v2.Resource, want)
		}
	}
	if free := s.get("/other"); free.StatusCode != http.StatusOK || free.body != "free" {
		t.Errorf("what has no price is answered with %s", free.Status)
	}
}

func TestAPaidRequestReachesTheUpstreamWithWhoPaid(t *testing.T) {
	s := newSite(t)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if strings.HasPrefix(name, "Payment-") || strings.HasPrefix(name, "X-Payment") {
				t.Errorf("the upstream sees %s", name)
			}
		}
		w.Header().Set("X-Seen", r.Header.Get("X-402-Payer")+" "+r.Header.Get("X-402-Amount")+" "+r.Header.Get("X-Placeholder")+" "+r.Header.Get("X-Path"))
		_, _ = io.WriteString(w, "goods for "+r.URL.Path)
	}))
	defer upstream.Close()
	// The handlers after the paywall change the request and read
	// placeholders; both must be about the same request.
	s.load(paidSite(memory, `x402 $0.01
	header >X-Paid "{http.x402.paid} {http.x402.transaction}"
	route {
		x402 /never $1
		request_header X-Placeholder "{http.x402.payer}|{http.x402.paid}|{http.request.header.X-402-Network}|{http.request.header.X-402-Payer}"
		uri strip_prefix /shop
		reverse_proxy `+strings.TrimPrefix(upstream.URL, "http://")+` {
			header_up X-Path {http.request.uri.path}
		}
	}`))
	name, value := s.payFor("/shop/a")
	got := s.get("/shop/a", name, value, "X-402-Payer", "somebody else")
	if got.StatusCode != http.StatusOK || got.body != "goods for /a" {
		t.Fatalf("%s %s", got.Status, got.body)
	}
	payer := "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
	if want := payer + " 10000 " + payer + "|false|eip155:84532|" + payer + " /a"; got.Header.Get("X-Seen") != want {
		t.Errorf("the upstream saw %q, want %q", got.Header.Get("X-Seen"), want)
	}
	receipt, err := base64.StdEncoding.DecodeString(got.Header.Get("PAYMENT-RESPONSE"))
	if err != nil {
		t.Fatal(err)
	}
	var settlement struct {
		Success     bool
		Transaction string
	}
	mustJSON(t, string(receipt), &settlement)
	if !settlement.Success || settlement.Transaction == "" {
		t.Errorf("receipt %s", receipt)
	}
	if want := "true " + settlement.Transaction; got.Header.Get("X-Paid") != want {
		t.Errorf("X-Paid is %q, want %q", got.Header.Get("X-Paid"), want)
	}
	if again := s.get("/shop/a", name, value); again.StatusCode != http.StatusOK || again.body != got.body {
		t.Errorf("the same request again: %s %s", again.Status, again.body)
	}
	if other := s.get("/shop/b", name, value); other.StatusCode != http.StatusConflict {
		t.Errorf("the same payment for something else: %s", other.Status)
	}
}

func TestAnErrorOfTheUpstreamIsCaddysToHandle(t *testing.T) {
	s := newSite(t)
	before := settled.Load()
	s.load(paidSite(memory, `x402 $0.01
	error /broken "no" 418
	respond "fine"
	handle_errors {
		respond "handled {err.status_code}" {err.status_code}
	}`))
	name, value := s.payFor("/broken")
	if got := s.get("/broken", name, value); got.StatusCode != http.StatusTeapot || got.body != "handled 418" {
		t.Errorf("%s %s", got.Status, got.body)
	}
	if settled.Load() != before {
		t.Error("a failing upstream was paid for")
	}
}

func TestAReverseProxyWithoutUpstreamCostsNothing(t *testing.T) {
	s := newSite(t)
	before := settled.Load()
	s.load(paidSite(memory, `x402 $0.01
	reverse_proxy 127.0.0.1:1`))
	name, value := s.payFor("/")
	if got := s.get("/", name, value); got.StatusCode != http.StatusBadGateway {
		t.Errorf("%s %s", got.Status, got.body)
	}
	if settled.Load() != before {
		t.Error("an upstream that is down was paid for")
	}
}

func TestSettlingFirstStreams(t *testing.T) {
	s := newSite(t)
	goOn := make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "first,")
		_ = http.NewResponseController(w).Flush()
		<-goOn
		_, _ = io.WriteString(w, "second")
	}))
	defer upstream.Close()
	s.load(paidSite(memory, `x402 $0.01 {
		settle first
	}
	reverse_proxy `+strings.TrimPrefix(upstream.URL, "http://")+` {
		flush_interval -1
	}`))
	name, value := s.payFor("/")
	resp, err := connections.RoundTrip(s.request(http.MethodGet, "/", name, value))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	part := make([]byte, 6)
	if _, err := io.ReadFull(resp.Body, part); err != nil || string(part) != "first," {
		t.Fatalf("%q %v", part, err)
	}
	close(goOn)
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "second" {
		t.Errorf("%q %v", rest, err)
	}
	if resp.Header.Get("PAYMENT-RESPONSE") == "" {
		t.Error("no receipt")
	}
}

func TestABrowserGetsAPage(t *testing.T) {
	s := newSite(t)
	s.load(paidSite(memory, `x402 $0.01 "<script>alert(1)</script>"
	respond "paid"`))
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	got := s.get(`/a?q=<img>`, "Accept", browser)
	if got.StatusCode != http.StatusPaymentRequired || got.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%s, %s", got.Status, got.Header.Get("Content-Type"))
	}
	for _, want := range []string{"0.01 USDC", "Base Sepolia is a test network: this is play money", seller, "PAYMENT-SIGNATURE", "&lt;script&gt;alert(1)&lt;/script&gt;"} {
		if !strings.Contains(got.body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(got.body, "<script") || strings.Contains(got.body, "<img") {
		t.Error("somebody else's text is markup on the page")
	}
	_, rest, _ := strings.Cut(got.body, "<style>")
	style, _, _ := strings.Cut(rest, "</style>")
	hash := sha256.Sum256([]byte(style))
	policy := got.Header.Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(hash[:])+"'") {
		t.Errorf("the policy %q does not allow the style that was sent, or more", policy)
	}
	if strings.Contains(got.body, " style=") || strings.Contains(got.body, "http-equiv") || strings.Contains(got.body, "src=") {
		t.Error("the page uses what its policy forbids")
	}
	if got.Header.Get("PAYMENT-REQUIRED") == "" || !strings.Contains(got.Header.Get("Cache-Control"), "no-store") {
		t.Errorf("headers %v", got.Header)
	}
	head := s.do(s.request(http.MethodHead, "/a", "Accept", browser))
	if head.StatusCode != http.StatusPaymentRequired || head.body != "" {
		t.Errorf("HEAD: %s, %d bytes", head.Status, len(head.body))
	}
}

func TestSeveralOffersFallBackOnTheRoute(t *testing.T) {
	s := newSite(t)
	s.load(paidSite(memory, `x402 $0.01 {
		timeout 90s
		offer {
			network base
			pay_to 0x70997970C51812dc3A010C7d01b50e0d17dc79C8
		}
		offer {
			price "0.02 USDC"
			timeout 30s
		}
	}
	respond "paid"`))
	c, err := payment.DecodeRequired(s.get("/").Header.Get("PAYMENT-REQUIRED"))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Offers) != 2 {
		t.Fatalf("%d offers", len(c.Offers))
	}
	a, b := c.Offers[0], c.Offers[1]
	if a.Network != "eip155:8453" || a.Amount.Units() != "10000" || a.PayTo != "0x70997970C51812dc3A010C7d01b50e0d17dc79C8" || a.Timeout.Seconds() != 90 {
		t.Errorf("first offer %+v", a.Offer)
	}
	if b.Network != "eip155:84532" || b.Amount.Units() != "20000" || b.PayTo != seller || b.Timeout.Seconds() != 30 {
		t.Errorf("second offer %+v", b.Offer)
	}
}

func TestTheMatcherTellsWellFormedPayments(t *testing.T) {
	s := newSite(t)
	s.load(paidSite(memory, `@paying x402
	respond @paying "paying"
	x402 /priced $0.01
	respond "not"`))
	name, value := s.payFor("/priced")
	for _, c := range []struct{ name, value, want string }{
		{name, value, "paying"}, {name, "rubbish", "not"}, {"X-Other", "1", "not"}, {"X-PAYMENT", value, "not"},
	} {
		if got := s.get("/", c.name, c.value); got.body != c.want {
			t.Errorf("%s: %s…: %q, want %q", c.name, c.value[:1], got.body, c.want)
		}
	}
}

func TestRequestsBeforeTheStartAndAfterTheEndAreAskedToComeAgain(t *testing.T) {
	app := &App{logger: slog.New(slog.DiscardHandler)}
	gone := newEngine()
	gone.retire()
	next := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		t.Error("the upstream ran")
		return nil
	})
	for range 2 {
		for _, h := range []caddyhttp.MiddlewareHandler{&Paywall{app: app}, &FacilitatorAPI{app: app}} {
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil), next); err != nil {
				t.Fatal(err)
			}
			if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
				t.Errorf("%T: %d %v", h, w.Code, w.Header())
			}
		}
		app.engine.Store(gone)
	}
}

func TestMetricsCountWhatBecameOfRequests(t *testing.T) {
	s := newSite(t)
	s.load(paidSite(memory, `x402 $0.01
	respond "paid"`))
	name, value := s.payFor("/")
	s.get("/", name, value)
	s.get("/", name, value)
	s.get("/other", name, value)
	s.get("/", name, "rubbish")
	ctx := caddy.ActiveContext()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "caddy_x402_") {
			continue
		}
		for _, m := range f.GetMetric() {
			got[f.GetName()+labels(m)] = m.GetCounter().GetValue()
		}
	}
	for series, want := range map[string]float64{
		"caddy_x402_challenges_total network=eip155:84532":                1,
		"caddy_x402_payments_total network=eip155:84532 outcome=paid":     1,
		"caddy_x402_payments_total network=eip155:84532 outcome=replayed": 1,
		"caddy_x402_payments_total network=eip155:84532 outcome=refused":  1,
		"caddy_x402_payments_total network=unknown outcome=refused":       1,
	} {
		if got[series] != want {
			t.Errorf("%s is %v, want %v (all: %v)", series, got[series], want, got)
		}
	}
}

func labels(m *dto.Metric) string {
	out := ""
	for _, l := range m.GetLabel() {
		out += " " + l.GetName() + "=" + l.GetValue()
	}
	return out
}

func TestARemoteFacilitatorThatCannotSettleAnOfferIsWarnedOf(t *testing.T) {
	var log strings.Builder
	usdc, _ := payment.USDC("eip155:8453")
	price, err := payment.ParsePrice("$1", usdc)
	if err != nil {
		t.Fatal(err)
	}
	offer := payment.Offer{Scheme: payment.Exact, Amount: price}
	checkSupport(context.Background(), &fakeFacilitator{}, []payment.Offer{offer, offer}, slog.New(slog.NewTextHandler(&log, nil)))
	if strings.Count(log.String(), "level=WARN") != 1 || !strings.Contains(log.String(), "exact on eip155:8453") {
		t.Errorf("log: %s", log.String())
	}
}
