package till_test

import (
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A listener is a facilitator that notes the offer it is asked about.
type listener struct {
	payment.Facilitator
	asked []payment.Offer
}

func (l *listener) Verify(_ context.Context, _ *payment.Payment, o *payment.Offer) (*payment.Verification, error) {
	l.asked = append(l.asked, *o)
	return &payment.Verification{}, nil
}

func (l *listener) Settle(_ context.Context, _ *payment.Payment, o *payment.Offer, _ payment.Amount) (*payment.Settlement, error) {
	l.asked = append(l.asked, *o)
	return nil, payment.Invalid(payment.EVMInsufficientBalance, "")
}

// Facilitators of protocol v1 refuse a requirement whose resource is no URL.
func TestV1FacilitatorsAreToldTheResource(t *testing.T) {
	token, _ := payment.USDC("eip155:84532")
	price, err := payment.ParsePrice("$0.01", token)
	if err != nil {
		t.Fatal(err)
	}
	offers := []payment.Offer{{Scheme: payment.Exact, Amount: price, PayTo: "0x9ABD6cF932170C471d01d746fe796703eDa24890", Timeout: time.Minute}}
	challenge, err := (&payment.Challenge{Offers: offers}).Prepare()
	if err != nil {
		t.Fatal(err)
	}
	f := &listener{}
	shop := &till.Till{Facilitator: f, Ledger: ledger.New(ledger.NewMemory(), "test", time.Now)}
	r := httptest.NewRequest(http.MethodGet, "/maps?zoom=3", nil)
	r.Header.Set("X-Payment", base64.StdEncoding.EncodeToString([]byte(`{"x402Version":1,"scheme":"exact","network":"base-sepolia","payload":{"signature":"0x`+
		strings.Repeat("11", 65)+`","authorization":{"from":"0xCC9315E4C2EC6d354d42adC84f599f83Ad715631","to":"0x9ABD6cF932170C471d01d746fe796703eDa24890",`+
		`"value":"10000","validAfter":"0","validBefore":"4102444800","nonce":"0x`+strings.Repeat("22", 32)+`"}}}`)))
	w := httptest.NewRecorder()
	route := &till.Route{Challenge: challenge, Offers: offers, Mode: till.Held, Origin: "https://api.example.com"}
	if _, err := shop.Serve(w, r, route, func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		_, err := io.WriteString(w, "a map")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(f.asked) != 2 || w.Code != http.StatusPaymentRequired {
		t.Fatalf("asked %d times, answered %d: %s", len(f.asked), w.Code, w.Body)
	}
	for _, o := range f.asked {
		if o.Resource != "https://api.example.com/maps?zoom=3" {
			t.Errorf("asked about %q", o.Resource)
		}
	}
}

// A noter notes of each payment whether it was said to be settled before
// anything is handed over.
type noter struct {
	payment.Facilitator
	mu           sync.Mutex
	settledFirst []bool // guarded by mu
}

func (n *noter) Verify(ctx context.Context, p *payment.Payment, o *payment.Offer) (*payment.Verification, error) {
	n.mu.Lock()
	n.settledFirst = append(n.settledFirst, p.SettledFirst)
	n.mu.Unlock()
	return n.Facilitator.Verify(ctx, p, o)
}

// What is known of a payer must not do for what goes out on credit, nor for a
// payment that was given back and may have been used since.
func TestFacilitatorsAreToldWhatIsSettledFirst(t *testing.T) {
	t.Parallel()
	listen := func(s *shop) *noter {
		n := &noter{Facilitator: s.till.Facilitator}
		s.till.Facilitator = n
		return n
	}
	for mode, want := range map[till.Mode][]bool{till.Held: {true, false}, till.First: {true, false}} {
		s := open(t, fakeBank(t), mode)
		n := listen(s)
		p := s.authorize(payment.V2)
		s.bank.poor()
		s.ask("GET", "/", "", p)
		s.bank.rich()
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
		if !slices.Equal(n.settledFirst, want) {
			t.Errorf("%s: %v, want %v", mode, n.settledFirst, want)
		}
	}
	// What must not run twice must not run for nothing.
	s := open(t, fakeBank(t), till.Held)
	n := listen(s)
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask("POST", "/", "an order", p), p, 200, "hello POST /")
	if !slices.Equal(n.settledFirst, []bool{false}) {
		t.Errorf("an order: %v", n.settledFirst)
	}
	s = trust(t, fakeBank(t), 10_000, 10_000)
	n = listen(s)
	s.wantOnCredit(s.ask("GET", "/", "", s.authorize(payment.V2)), "hello GET /")
	m := openMetered(t, till.Metered, perByte())
	metered := listen(m.shop)
	if a := m.ask("GET", "/", "", m.permit().purse); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if !slices.Equal(n.settledFirst, []bool{false}) || !slices.Equal(metered.settledFirst, []bool{false}) {
		t.Errorf("on credit %v, by the meter %v", n.settledFirst, metered.settledFirst)
	}
}
