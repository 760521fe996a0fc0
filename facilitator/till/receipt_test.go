package till_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// receipts asks "did I pay?".
func (s *shop) receipts(r *http.Request) (int, *till.Receipt, http.Header) {
	s.t.Helper()
	w := httptest.NewRecorder()
	(&till.Receipts{Till: s.till, Tokens: []payment.Token{facilitatortest.USDC(s.t)}}).ServeHTTP(w, r)
	var got till.Receipt
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil && r.Method != http.MethodHead {
		s.t.Errorf("%v in %q", err, w.Body)
	}
	return w.Code, &got, w.Result().Header
}

func (p *purse) shown(method string) *http.Request {
	r := httptest.NewRequest(method, "/", nil)
	r.Header.Set(p.name, p.value)
	return r
}

func TestReceiptSaysWhatHasBecomeOfEveryPayment(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		state       ledger.State
		delivery    ledger.Delivery
		want        string
		deliverable bool
	}{
		{ledger.Reserved, "", "reserved", false},
		{ledger.Executing, "", "reserved", false},
		{ledger.Executed, "", "reserved", false},
		{ledger.Intent, "", "pending", false},
		{ledger.Sent, "", "pending", false},
		{ledger.Included, "", "pending", false},
		{ledger.Settled, "", "settled", true},
		{ledger.Settled, ledger.Delivered, "settled", false},
		{ledger.Settled, ledger.Undeliverable, "refund_due", false},
		{ledger.Archived, "", "final", true},
		{ledger.Archived, ledger.Undeliverable, "refund_due", false},
		{ledger.Dead, "", "dead", false},
		{ledger.WrittenOff, ledger.Delivered, "dead", false},
		{ledger.Released, "", "released", false},
		{ledger.RefundDue, ledger.Undeliverable, "refund_due", false},
		{ledger.Refunded, ledger.Undeliverable, "refunded", false},
	} {
		s := open(t, fakeBank(t), till.First)
		p := s.authorize(payment.V2)
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
		s.change(p, func(r *ledger.Record) { r.State, r.Delivery = c.state, c.delivery })
		status, got, h := s.receipts(p.shown("GET"))
		if status != 200 || got.Status != c.want || got.Deliverable != c.deliverable || got.Hint == "" {
			t.Errorf("%s %s: %d %+v", c.state, c.delivery, status, got)
		}
		if got.Amount != "1000" || got.Payer != p.transfer.From.Hex() || got.PayTo != s.bank.seller.Hex() || got.Network != "eip155:84532" || got.Payment != s.key(p).String() {
			t.Errorf("%+v", got)
		}
		if h.Get("Cache-Control") != "private, no-store" || h.Get("Content-Type") != "application/json" {
			t.Errorf("%v", h)
		}
	}
}

func TestPaymentCanBeShownInEveryForm(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.Held)
	for _, version := range []int{payment.V1, payment.V2} {
		p := s.authorize(version)
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
		doc, err := base64.StdEncoding.DecodeString(p.value)
		if err != nil {
			t.Fatal(err)
		}
		for name, r := range map[string]*http.Request{
			"header": p.shown("GET"), "header of a POST": p.shown("POST"),
			"text": httptest.NewRequest("POST", "/", strings.NewReader(p.value+"\n")),
			"JSON": httptest.NewRequest("POST", "/", strings.NewReader(string(doc))),
		} {
			if status, got, _ := s.receipts(r); status != 200 || got.Status != "settled" || len(got.Transaction) != 66 || !got.Deliverable {
				t.Errorf("v%d in %s: %d %+v", version, name, status, got)
			}
		}
		if status, _, _ := s.receipts(p.shown("HEAD")); status != 200 {
			t.Errorf("HEAD: %d", status)
		}
	}
}

func TestReceiptIsForWhoeverHasThePayment(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.Held)
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
	// All that the chain shows, with another signature.
	forged := *p.transfer
	forged.Signature = append([]byte(nil), forged.Signature...)
	forged.Signature[40] ^= 1
	for name, q := range map[string]*purse{"forged": s.wrap(payment.V2, &forged), "never seen": s.authorize(payment.V2)} {
		status, got, _ := s.receipts(q.shown("GET"))
		if status != 200 || got.Status != "unknown" || got.Payment != "" || got.Payer != "" || got.Transaction != "" || !strings.Contains(got.Hint, "does not prove") {
			t.Errorf("%s: %d %+v", name, status, got)
		}
	}
}

func TestReceiptsRefuseWhatIsNoPayment(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.Held)
	for name, c := range map[string]struct {
		r      *http.Request
		status int
	}{
		"nothing":    {httptest.NewRequest("GET", "/?payment="+strings.Repeat("0", 64), nil), 400},
		"empty":      {httptest.NewRequest("POST", "/", strings.NewReader(" \n")), 400},
		"no payment": {httptest.NewRequest("POST", "/", strings.NewReader(`{"x402Version":2}`)), 400},
		"no base64":  {httptest.NewRequest("POST", "/", strings.NewReader("what?")), 400},
		"too long":   {httptest.NewRequest("POST", "/", io.LimitReader(zeros{}, 1<<20)), 400},
		"PUT":        {s.authorize(payment.V2).shown("PUT"), 405},
	} {
		if status, _, h := s.receipts(c.r); status != c.status || h.Get("Cache-Control") != "private, no-store" {
			t.Errorf("%s: %d %v", name, status, h)
		}
	}
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	if status, got, h := s.receipts(s.authorize(payment.V2).shown("GET")); status != 503 || got.Status != "" || h.Get("Retry-After") == "" {
		t.Errorf("without a ledger: %d %+v", status, got)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '0'
	}
	return len(b), nil
}

// What was handed over on credit is neither paid nor unpaid.
func TestReceiptOfCreditIsPending(t *testing.T) {
	t.Parallel()
	s := trust(t, fakeBank(t), 10_000, 10_000)
	settling := make(chan struct{})
	s.gate.before = func() { <-settling }
	p := s.authorize(payment.V2)
	s.wantOnCredit(s.ask("GET", "/", "", p), "hello GET /")
	if _, got, _ := s.receipts(p.shown("GET")); got.Status != "pending" || got.Transaction != "" {
		t.Errorf("%+v", got)
	}
	close(settling)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, got, _ := s.receipts(p.shown("GET")); got.Status == "settled" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%+v", got)
		}
	}
}
