package facilitator_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/time/rate"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// keyOf is the hash of a key that is the tenant's name and "-key".
func keyOf(name string) [32]byte { return sha256.Sum256([]byte(name + "-key")) }

func tenant(name string) *facilitator.Tenant {
	return &facilitator.Tenant{Name: name, Keys: [][32]byte{keyOf(name)}}
}

// as has a tenant ask. The body of a GET is empty.
func as(t testing.TB, h http.Handler, name, path, body string) (int, map[string]json.RawMessage, http.Header) {
	t.Helper()
	method := http.MethodPost
	if body == "" {
		method = http.MethodGet
	}
	return ask(t, h, method, path, body, "Authorization", "Bearer "+name+"-key")
}

// request returns the body of a request for a fresh payment in the world.
func (w *world) request() string {
	w.t.Helper()
	return w.requestFor(w.pay())
}

func (w *world) requestFor(p *payment.Payment) string {
	w.t.Helper()
	body, err := payment.EncodeRequest(p, &w.offer, w.offer.Amount)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(body)
}

// serve returns a handler in which the time is now.
func (w *world) serve(tenants ...*facilitator.Tenant) *facilitator.Handler {
	return &facilitator.Handler{
		Facilitator: w.embedded, Ledger: w.ledger, Tenants: tenants,
		Now: func() time.Time { return time.Unix(now+w.clock.Load(), 0) },
	}
}

func TestOnlyTenantsAreServedWhereThereAreSome(t *testing.T) {
	fake := &facilitatortest.Fake{}
	_, _, body := paying(t, payment.V2)
	h := &facilitator.Handler{Facilitator: fake, Tenants: []*facilitator.Tenant{tenant("a"), tenant("b")}}
	var calls []facilitator.Call
	h.Observe = func(c *facilitator.Call) { calls = append(calls, *c) }
	for _, c := range []struct {
		authorization string
		open          bool
		bearer        string
		status        int
		tenant        string
	}{
		{"", false, "", 401, ""},
		{"Bearer c-key", false, "", 401, ""},
		{"Basic a-key", false, "", 401, ""},
		{"Bearer a-key", false, "", 200, "a"},
		{"bearer b-key", false, "", 200, "b"},
		{"", true, "", 200, ""},
		{"Bearer c-key", true, "", 401, ""}, // a misspelt key is not nobody's
		{"Bearer old", false, "old", 200, ""},
		{"Bearer b-key", false, "old", 200, "b"},
		{"", true, "old", 401, ""},
	} {
		h.Open, h.Bearers, calls = c.open, nil, nil
		if c.bearer != "" {
			h.Bearers = [][32]byte{sha256.Sum256([]byte(c.bearer))}
		}
		for _, endpoint := range []string{"verify", "settle"} {
			var header []string
			if c.authorization != "" {
				header = []string{"Authorization", c.authorization}
			}
			status, answer, got := ask(t, h, "POST", "/f/"+endpoint, string(body), header...)
			if status != c.status || (status == 401) != (got.Get("WWW-Authenticate") != "") {
				t.Errorf("%q, open: %v, at %s: %d %s", c.authorization, c.open, endpoint, status, answer)
			}
			if last := calls[len(calls)-1]; last.Tenant != c.tenant || last.Endpoint != endpoint || (last.Outcome == "unauthorized") != (status == 401) {
				t.Errorf("%q, open: %v, at %s: observed %+v", c.authorization, c.open, endpoint, last)
			}
		}
		if len(calls) != 2 {
			t.Errorf("%d calls were observed", len(calls))
		}
	}
}

func TestWhatATenantMayNotHaveIsRefusedUnseen(t *testing.T) {
	o, _, body := paying(t, payment.V2)
	token := o.Amount.Token()
	other := token
	other.Address = common.HexToAddress("0xc1").Hex()
	units := func(digits string) payment.Amount {
		a, err := payment.ParseUnits(digits, token)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, c := range []struct {
		name   string
		tenant *facilitator.Tenant
		reason payment.Reason
		says   string
	}{
		{"recipient", &facilitator.Tenant{PayTo: []string{common.HexToAddress("0xb1").Hex()}}, payment.InvalidRequirements, o.PayTo},
		{"network", &facilitator.Tenant{Networks: []payment.Network{"eip155:8453"}}, payment.InvalidNetwork, "eip155:84532"},
		{"token", &facilitator.Tenant{Tokens: []payment.Token{other}}, payment.InvalidRequirements, token.Address},
		{"amount", &facilitator.Tenant{Least: []payment.Amount{units("1001")}}, payment.InvalidRequirements, "at least"},
		{"all as allowed", &facilitator.Tenant{
			PayTo: []string{o.PayTo}, Networks: []payment.Network{token.Network}, Tokens: []payment.Token{other, token}, Least: []payment.Amount{units("1000")},
		}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			fake := &facilitatortest.Fake{}
			c.tenant.Name, c.tenant.Keys = "a", [][32]byte{keyOf("a")}
			h := &facilitator.Handler{Facilitator: fake, Tenants: []*facilitator.Tenant{c.tenant}}
			good := map[bool]string{true: "true", false: "false"}[c.reason == ""]
			status, answer, _ := as(t, h, "a", "/verify", string(body))
			if status != 200 || string(answer["isValid"]) != good || c.reason != "" && string(answer["invalidReason"]) != `"`+string(c.reason)+`"` || !strings.Contains(string(answer["invalidMessage"]), c.says) {
				t.Errorf("verify: %d %s", status, answer)
			}
			status, answer, _ = as(t, h, "a", "/settle", string(body))
			if status != 200 || string(answer["success"]) != good || c.reason != "" && string(answer["errorReason"]) != `"`+string(c.reason)+`"` || !strings.Contains(string(answer["errorMessage"]), c.says) {
				t.Errorf("settle: %d %s", status, answer)
			}
			if c.reason != "" && fake.Calls() != 0 {
				t.Errorf("the facilitator was asked %d times", fake.Calls())
			}
		})
	}
}

func TestARateIsATenantsOwn(t *testing.T) {
	_, _, body := paying(t, payment.V2)
	slow := tenant("slow")
	slow.Rate = rate.NewLimiter(0.1, 2)
	clock := time.Unix(now, 0)
	h := &facilitator.Handler{
		Facilitator: &facilitatortest.Fake{}, Tenants: []*facilitator.Tenant{slow, tenant("other")}, Now: func() time.Time { return clock },
	}
	for i, want := range []int{200, 200, 429, 429} {
		status, answer, header := as(t, h, "slow", "/verify", string(body))
		if status != want || want == 429 && (header.Get("Retry-After") != "10" || answer["isValid"] != nil) {
			t.Errorf("request %d: %d %s, Retry-After %q", i, status, answer, header.Get("Retry-After"))
		}
	}
	if status, _, _ := as(t, h, "other", "/verify", string(body)); status != 200 {
		t.Errorf("another tenant: %d", status)
	}
	clock = clock.Add(10 * time.Second)
	if status, _, _ := as(t, h, "slow", "/settle", string(body)); status != 200 {
		t.Errorf("after ten seconds: %d", status)
	}
}

func TestADayCountsWhatCostsGasAndNothingElse(t *testing.T) {
	w := newWorld(t)
	shop := tenant("shop")
	shop.PerDay = 2
	h := w.serve(shop, tenant("free"))
	wantBooked := func(want uint64) {
		t.Helper()
		if got, err := w.ledger.Booked(t.Context(), "shop", h.Now()); err != nil || got != want {
			t.Errorf("%d settlements count (%v), want %d", got, err, want)
		}
	}
	settle := func(body string) map[string]json.RawMessage {
		t.Helper()
		status, answer, _ := as(t, h, "shop", "/settle", body)
		if status != 200 {
			t.Fatalf("settle: %d %s", status, answer)
		}
		return answer
	}
	// Bad payments, before and after they are claimed.
	broken, ok := replaceMember(w.request(), `"signature":`, `"0x`+strings.Repeat("11", 65)+`"`)
	if !ok {
		t.Fatal("no signature")
	}
	if answer := settle(broken); string(answer["success"]) != "false" {
		t.Fatalf("a bad signature: %s", answer)
	}
	rich := w.offer
	var err error
	if w.offer.Amount, err = payment.ParseUnits("99999999999999999", w.offer.Amount.Token()); err != nil {
		t.Fatal(err)
	}
	if answer := settle(w.request()); string(answer["success"]) != "false" {
		t.Fatalf("more than the payer has: %s", answer)
	}
	w.offer = rich
	wantBooked(0)

	first := w.request()
	for range 3 { // the same again costs nothing
		if answer := settle(first); string(answer["success"]) != "true" {
			t.Fatalf("settle: %s", answer)
		}
	}
	wantBooked(1)
	if answer := settle(w.request()); string(answer["success"]) != "true" {
		t.Fatalf("the second one: %s", answer)
	}
	wantBooked(2)

	third := w.request()
	for _, endpoint := range []string{"/verify", "/settle"} {
		status, answer, header := as(t, h, "shop", endpoint, third)
		if status != 429 || answer["success"] != nil || answer["isValid"] != nil || header.Get("Retry-After") != untilMidnight(h.Now()) {
			t.Errorf("%s: %d %s, Retry-After %q", endpoint, status, answer, header.Get("Retry-After"))
		}
	}
	if answer := settle(first); string(answer["success"]) != "true" {
		t.Errorf("a repetition when the day is used up: %s", answer)
	}
	if status, answer, _ := as(t, h, "free", "/settle", w.request()); status != 200 || string(answer["success"]) != "true" {
		t.Errorf("another tenant: %d %s", status, answer)
	}
	w.wantEarned(3000)

	// The next day is another one.
	w.clock.Add(24 * 3600)
	wantBooked(0)
	if status, _, _ := as(t, h, "shop", "/verify", third); status != 200 {
		t.Errorf("on the next day: %d", status)
	}
}

// untilMidnight returns the seconds until the day ends, in UTC.
func untilMidnight(at time.Time) string {
	return strconv.FormatInt(86400-at.Unix()%86400, 10)
}

func TestManyCallersWithOnePaymentCountOnce(t *testing.T) {
	w := newWorld(t)
	shop := tenant("shop")
	shop.PerDay = 1
	h := w.serve(shop)
	body := w.request()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for deadline := time.Now().Add(20 * time.Second); ; {
				status, answer, _ := as(t, h, "shop", "/settle", body)
				switch {
				case status == 200 && string(answer["success"]) == "true":
					return
				case status == 200 && string(answer["errorReason"]) == `"settlement_pending"` && time.Now().Before(deadline):
				default:
					t.Errorf("%d %s", status, answer)
					return
				}
			}
		})
	}
	wg.Wait()
	if n, err := w.ledger.Booked(t.Context(), "shop", h.Now()); n != 1 || err != nil {
		t.Errorf("%d settlements count (%v)", n, err)
	}
	w.wantEarned(1000)
}

func TestAPaymentWhoseOutcomeIsUnknownCounts(t *testing.T) {
	pending := &payment.UnavailableError{Doing: "waiting", Pending: true}
	gone := &payment.UnavailableError{Doing: "asking"}
	for _, c := range []struct {
		err  error
		want uint64
	}{{pending, 1}, {gone, 0}, {payment.Invalid(payment.EVMNonceUsed, ""), 0}} {
		_, _, body := paying(t, payment.V2)
		shop := tenant("shop")
		shop.PerDay = 5
		book := ledger.New(ledger.NewMemory(), "one", time.Now)
		h := &facilitator.Handler{
			Facilitator: &facilitatortest.Fake{Settling: func(context.Context) error { return c.err }},
			Tenants:     []*facilitator.Tenant{shop}, Ledger: book,
		}
		as(t, h, "shop", "/settle", string(body))
		if n, err := book.Booked(t.Context(), "shop", time.Now()); n != c.want || err != nil {
			t.Errorf("after %v: %d settlements count (%v), want %d", c.err, n, err, c.want)
		}
	}
}

func TestAPaymentBelongsToTheTenantThatSettledIt(t *testing.T) {
	w := newWorld(t)
	h := w.serve(tenant("a"), tenant("b"))
	h.Bearers = [][32]byte{keyOf("unnamed")}
	p := w.pay()
	body := w.requestFor(p)
	_, _, header := as(t, h, "a", "/verify", body)
	id := header.Get("X-402-Payment")
	if len(id) != 64 {
		t.Fatalf("X-402-Payment: %q", id)
	}
	status := func(name string) (int, map[string]json.RawMessage) {
		t.Helper()
		code, answer, _ := as(t, h, name, "/f/settlements/"+id, "")
		return code, answer
	}
	if code, _ := status("a"); code != 404 {
		t.Errorf("before it is settled: %d", code)
	}
	settled := map[string]json.RawMessage{}
	for range 2 {
		var code int
		if code, settled, _ = as(t, h, "a", "/settle", body); code != 200 || string(settled["success"]) != "true" {
			t.Fatalf("settle: %d %s", code, settled)
		}
	}
	for _, other := range []string{"b", "unnamed"} {
		code, answer, _ := as(t, h, other, "/settle", body)
		if code != 200 || string(answer["success"]) != "false" || string(answer["errorReason"]) != `"duplicate_settlement"` || string(answer["transaction"]) != `""` {
			t.Errorf("settled by %s: %d %s", other, code, answer)
		}
		if code, answer := status(other); code != 404 {
			t.Errorf("asked by %s: %d %s", other, code, answer)
		}
	}
	if code, _ := status("nobody"); code != 401 {
		t.Errorf("asked by nobody: %d", code)
	}
	code, answer := status("a")
	for member, want := range map[string]string{
		"payment": `"` + id + `"`, "status": `"settled"`, "transaction": string(settled["transaction"]), "network": `"eip155:84532"`,
		"amount": `"1000"`, "payTo": `"` + w.offer.PayTo + `"`, "asset": `"` + w.offer.Amount.Token().Address + `"`, "payer": string(settled["payer"]),
	} {
		if string(answer[member]) != want {
			t.Errorf("%s is %s, want %s", member, answer[member], want)
		}
	}
	if code != 200 || len(answer["message"]) < 10 {
		t.Errorf("asked by a: %d %s", code, answer)
	}
	if got := w.record(p).Tenant; got != "a" {
		t.Errorf("the record names %q", got)
	}
	w.wantEarned(1000)
	for _, path := range []string{"/settlements/", "/settlements/zz", "/settlements/" + id + "00", "/settlements/" + strings.Repeat("00", 32)} {
		if code, _, _ := as(t, h, "a", path, ""); code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
}

func TestTheStatusOfAPaymentIsInWords(t *testing.T) {
	book := ledger.New(ledger.NewMemory(), "one", time.Now)
	h := &facilitator.Handler{Facilitator: &facilitatortest.Fake{}, Tenants: []*facilitator.Tenant{tenant("a")}, Ledger: book}
	for i, c := range []struct {
		states      []ledger.State
		lease       time.Duration
		want        string
		transaction string
	}{
		{[]ledger.State{ledger.Reserved}, time.Hour, "pending", ""},
		{[]ledger.State{ledger.Reserved}, -time.Hour, "released", ""},
		{[]ledger.State{ledger.Reserved, ledger.Released}, time.Hour, "released", ""},
		{[]ledger.State{ledger.Intent}, time.Hour, "pending", "0x01"},
		{[]ledger.State{ledger.Intent, ledger.Sent, ledger.Included}, time.Hour, "pending", "0x01"},
		{[]ledger.State{ledger.Intent, ledger.Sent, ledger.Settled}, time.Hour, "settled", "0x01"},
		{[]ledger.State{ledger.Reserved, ledger.Settled, ledger.Archived}, time.Hour, "settled", ""},
		{[]ledger.State{ledger.Intent, ledger.Dead}, time.Hour, "failed", "0x01"},
	} {
		r := ledger.Record{Key: payment.Key{byte(i), 31: 1}, State: c.states[0], Mode: "facilitator", Tenant: "a", Network: "eip155:84532", Charge: "5", Request: []byte("{}")}
		if c.states[0] == ledger.Intent {
			r.Slots = []ledger.SlotRef{{Hash: "0x01"}}
		}
		if _, err := book.Claim(t.Context(), r, c.lease); err != nil {
			t.Fatal(err)
		}
		for _, next := range c.states[1:] {
			if _, err := book.Update(t.Context(), r.Key, func(r *ledger.Record) error { return r.To(next) }); err != nil {
				t.Fatal(err)
			}
		}
		code, answer, _ := as(t, h, "a", "/settlements/"+r.Key.String(), "")
		if code != 200 || string(answer["status"]) != `"`+c.want+`"` || string(answer["transaction"]) != `"`+c.transaction+`"` {
			t.Errorf("%v: %d %s, want %s", c.states, code, answer, c.want)
		}
	}
}
