package caddymodule

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/payment"
)

func init() {
	caddy.RegisterModule(&uptoFake{})
}

// An uptoFake is a guest module that settles upto, too.
type uptoFake struct{ fakeFacilitator }

// uptoSays is what uptoFakes say that they support: JSON, or an error if empty.
var uptoSays atomic.Pointer[string]

func (*uptoFake) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "x402.facilitators.fake_upto", New: func() caddy.Module { return new(uptoFake) }}
}

func (f *uptoFake) UnmarshalCaddyfile(d *caddyfile.Dispenser) error { return noSettings(d) }

func (f *uptoFake) Facilitator() payment.Facilitator { return f }

func (f *uptoFake) Supported(context.Context) (*payment.Supported, error) {
	says := uptoSays.Load()
	if says == nil {
		return nil, &payment.UnavailableError{Doing: "asking"}
	}
	return payment.DecodeSupported([]byte(*says))
}

// says sets what uptoFakes say of the account that settles upto.
func says(t *testing.T, extra string) {
	t.Helper()
	doc := `{"kinds":[{"x402Version":2,"scheme":"exact","network":"eip155:84532"},{"x402Version":2,"scheme":"upto","network":"eip155:84532","extra":` + extra + `}]}`
	uptoSays.Store(&doc)
	t.Cleanup(func() { uptoSays.Store(nil) })
}

// chat is an upstream that streams, and says at the end what it has used.
func chat(t *testing.T, proceed <-chan struct{}) string {
	t.Helper()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 1000 {
			if r.URL.Path == "/short" && i == 2 {
				break
			}
			fmt.Fprintf(w, "data: {\"i\":%d}\n\n", i)
			if http.NewResponseController(w).Flush() != nil || r.Context().Err() != nil {
				return
			}
			if i == 0 {
				<-proceed
			}
		}
		fmt.Fprint(w, "data: {\"usage\":{\"total_tokens\":12}}\n\ndata: [DONE]\n\n")
	}))
	t.Cleanup(upstream.Close)
	return strings.TrimPrefix(upstream.URL, "http://")
}

// payUpto asks for a path and returns a header with a permit for its offer.
func (s *site) payUpto(path string) (name, value string) {
	s.t.Helper()
	unpaid := s.get(path)
	if unpaid.StatusCode != http.StatusPaymentRequired {
		s.t.Fatalf("%s: %s %s", path, unpaid.Status, unpaid.body)
	}
	c, err := payment.DecodeRequired(unpaid.Header.Get(payment.HeaderRequired))
	if err != nil {
		s.t.Fatal(err)
	}
	o := &c.Offers[0]
	if want := `"` + facilitatortest.UptoFacilitator.Hex() + `"`; o.Scheme != payment.Upto || string(o.Extra["facilitatorAddress"]) != want || string(o.Extra["assetTransferMethod"]) != `"permit2"` || o.Timeout != time.Minute {
		s.t.Fatalf("the offer is %s", o.Raw)
	}
	key, err := crypto.HexToECDSA(payerKey)
	if err != nil {
		s.t.Fatal(err)
	}
	return c.Pay(o, facilitatortest.Permit(s.t, key, &o.Offer, time.Now().Unix(), 60).Encode()).Header()
}

func chargeOf(t *testing.T, h http.Header) string {
	t.Helper()
	doc, err := base64.StdEncoding.DecodeString(h.Get(payment.HeaderResponse))
	var s struct {
		Success bool
		Amount  string
	}
	if err != nil || json.Unmarshal(doc, &s) != nil || !s.Success {
		t.Errorf("the receipt is %s, %v", doc, err)
	}
	return s.Amount
}

// Through Caddy and its reverse proxy: the first event is there before the
// upstream goes on, the receipt comes after the last one, and a stream that is
// too long is cut when the maximum is spent.
func TestStreamsAreChargedForWhatTheyDelivered(t *testing.T) {
	s := newSite(t)
	says(t, `{"facilitatorAddress":"`+facilitatortest.UptoFacilitator.Hex()+`"}`)
	proceed := make(chan struct{})
	s.load(paidSite("facilitator fake_upto\n\t\tledger memory "+t.Name(), `x402 upto $0.001 {
		settle metered
		exposure $1
		charge {
			base $0.0001
			per 1000 tokens $0.01 at usage.total_tokens estimate 2 per event
		}
	}
	header X-Charged {http.x402.amount}
	reverse_proxy `+chat(t, proceed)))

	name, value := s.payUpto("/short")
	resp, err := connections.RoundTrip(s.request(http.MethodGet, "/short", name, value))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body := bufio.NewReader(resp.Body)
	if line, err := body.ReadString('\n'); err != nil || line != "data: {\"i\":0}\n" {
		t.Fatalf("%q, %v", line, err)
	}
	close(proceed)
	if rest, err := io.ReadAll(body); err != nil || !strings.HasSuffix(string(rest), "[DONE]\n\n") {
		t.Errorf("%q, %v", rest, err)
	}
	if got := chargeOf(t, resp.Trailer); got != "220" { // 100, and 10 for each of 12 tokens
		t.Errorf("charged %s", got)
	}
	again := s.get("/short", name, value)
	if again.StatusCode != http.StatusGone || chargeOf(t, again.Header) != "220" {
		t.Errorf("again: %s %s", again.Status, again.body)
	}

	name, value = s.payUpto("/long")
	long := s.get("/long", name, value)
	if n := strings.Count(long.body, "data: "); n != 46 { // 100 + 45 × 20 is the maximum, 1000; one more uses it up
		t.Errorf("%d events came", n)
	}
	if got := chargeOf(t, long.Trailer); got != "1000" {
		t.Errorf("charged %s", got)
	}

	// A payment that names an account which has been replaced since is still
	// the payment that it was.
	says(t, `{"facilitatorAddress":"0x00000000000000000000000000000000000000A1"}`)
	s.load(paidSite("facilitator fake_upto\n\t\tledger memory "+t.Name(), `x402 upto $0.001 {
		settle metered
		exposure $1
		charge {
			per event $0.0001
		}
	}
	respond goods`))
	if again := s.get("/long", name, value); again.StatusCode != http.StatusGone || chargeOf(t, again.Header) != "1000" {
		t.Errorf("after the account was replaced: %s %s", again.Status, again.body)
	}
}

func TestWithoutAnAccountThereIsNoOfferByUpto(t *testing.T) {
	s := newSite(t)
	source := func(more string) string {
		return paidSite("facilitator fake_upto\n\t\tledger memory "+t.Name(), `x402 {
		charge {
			per KB $0.01
		}`+more+`
		offer {
			price upto $0.05
		}
	}
	respond goods`)
	}
	s.load(source(""))
	if got := s.get("/"); got.StatusCode != http.StatusServiceUnavailable || !strings.Contains(got.body, "not been charged") {
		t.Errorf("while it says nothing: %s %s", got.Status, got.body)
	}
	for _, extra := range []string{`{}`, `{"facilitatorAddress":"0x1"}`, `[]`} {
		says(t, extra)
		if got := s.get("/"); got.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("it says %s: %s %s", extra, got.Status, got.body)
		}
	}
	s.load(source("\n\t\toffer {\n\t\t\tprice $0.02\n\t\t}"))
	c, err := payment.DecodeRequired(s.get("/").Header.Get(payment.HeaderRequired))
	if err != nil || len(c.Offers) != 1 || c.Offers[0].Scheme != payment.Exact {
		t.Errorf("the other offer alone: %+v, %v", c, err)
	}
	says(t, `{"facilitatorAddress":"`+facilitatortest.UptoFacilitator.Hex()+`"}`)
	s.load(source(""))
	name, value := s.payUpto("/")
	if got := s.get("/", name, value); got.StatusCode != 200 || got.body != "goods" || chargeOf(t, got.Header) != "50" {
		t.Errorf("held: %s %q %v", got.Status, got.body, got.Header)
	}
}

func TestBrowsersAreToldThatThePriceIsAMaximum(t *testing.T) {
	s := newSite(t)
	says(t, `{"facilitatorAddress":"`+facilitatortest.UptoFacilitator.Hex()+`"}`)
	s.load(paidSite("facilitator fake_upto\n\t\tledger memory "+t.Name(), "x402 upto $0.05 {\n\t\tcharge {\n\t\t\tper KB $0.01\n\t\t}\n\t}\n\trespond goods"))
	if got := s.get("/", "Accept", "text/html"); !strings.Contains(got.body, "at most 0.05 USDC") {
		t.Errorf("%s %s", got.Status, got.body)
	}
}
