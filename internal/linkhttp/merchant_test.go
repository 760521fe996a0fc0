package linkhttp_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/linkhttp"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

// Keys of the merchants of a shop.
const (
	mainKey   = "main-key-with-both-scopes"
	readKey   = "main-key-that-reads"
	writeKey  = "main-key-that-writes"
	otherKey  = "other-key-with-both-scopes"
	nobodyKey = "nobody-knows-this-key"
)

// A shop is a world with merchants.
type shop struct {
	*world
	merchant *linkhttp.Merchant
	broken   atomic.Bool // the store fails
	offers   []payment.Offer
}

// A failingStore fails while the shop is broken.
type failingStore struct {
	ledger.Store
	shop *shop
}

var errBroken = errors.New("the disk is on fire")

func (f failingStore) Get(ctx context.Context, k ledger.Key) (ledger.Entry, error) {
	if f.shop.broken.Load() {
		return ledger.Entry{}, errBroken
	}
	return f.Store.Get(ctx, k)
}

func (f failingStore) Commit(ctx context.Context, writes ...ledger.Write) error {
	if f.shop.broken.Load() {
		return errBroken
	}
	return f.Store.Commit(ctx, writes...)
}

func (f failingStore) Scan(ctx context.Context, prefix, after ledger.Key, limit int) ([]ledger.Entry, error) {
	if f.shop.broken.Load() {
		return nil, errBroken
	}
	return f.Store.Scan(ctx, prefix, after, limit)
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{world: newWorld(t)}
	s.links.Entries = failingStore{s.store, s}
	s.offers = []payment.Offer{facilitatortest.Offer(t, 1, s.seller.Address)}
	hash := func(key string) [32]byte { return sha256.Sum256([]byte(key)) }
	s.merchant = &linkhttp.Merchant{
		Links: s.links, Site: s.site, Redirects: []string{"shop.example"},
		Keys: []linkhttp.Key{
			{Merchant: "main", Hash: hash(mainKey), Read: true, Write: true},
			{Merchant: "main", Hash: hash(readKey), Read: true},
			{Merchant: "main", Hash: hash(writeKey), Write: true},
			{Merchant: "other", Hash: hash(otherKey), Read: true, Write: true},
		},
		Offers: func(amount string) ([]payment.Offer, error) {
			var list []payment.Offer
			for _, o := range s.offers {
				token := o.Amount.Token()
				price, err := payment.ParsePrice(amount+" "+token.Symbol, token)
				if err != nil {
					return nil, err
				}
				o.Amount = price
				list = append(list, o)
			}
			return list, nil
		},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case s.merchant.Has(r.URL.Path):
			s.merchant.ServeHTTP(w, r)
		case s.site.Has(r.URL.Path):
			s.site.ServeHTTP(w, r)
		default:
			http.Error(w, "nothing here", http.StatusNotFound)
		}
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

const (
	allLinks  = "/v1/payment-links"
	something = `{"amount":0.05,"description":"Website work"}`
)

// as makes a request with a key.
func (s *shop) as(key, method, path, body string, header ...string) *reply {
	s.t.Helper()
	return s.ask(method, path, body, append([]string{"Authorization", "Bearer " + key}, header...)...)
}

// A sold is a link as the API shows it.
type sold struct {
	ID, Description, URL, AIURL, Network, Status, Currency string

	Amount       json.RawMessage
	AmountUnits  string
	Networks     []string
	MaxUses      int
	PaidCount    int
	ExpiresAt    time.Time
	CreatedAt    time.Time
	PaidAt       *time.Time
	CustomFields []struct {
		Name, Label string
		Required    bool
		MaxLength   int
	}
	Metadata       map[string]string
	SuccessMessage *string
	SuccessURL     *string
	Opens          *string
}

// offer makes a link.
func (s *shop) offer(key, body string, header ...string) *sold {
	s.t.Helper()
	a := s.as(key, "POST", allLinks, body, header...)
	if a.status != 201 && a.status != 200 {
		s.t.Fatalf("%s: %d %s", body, a.status, a.body)
	}
	l := &sold{}
	a.read(s.t, l)
	return l
}

func (s *shop) show(id string) *sold {
	s.t.Helper()
	l := &sold{}
	s.as(mainKey, "GET", allLinks+"/"+id, "").read(s.t, l)
	return l
}

// A refusal is an error of the API.
type refusal struct {
	Error struct {
		Code, Message string
		Param         *string
	}
}

func refused(t *testing.T, a *reply) (code, param string) {
	t.Helper()
	var doc refusal
	a.read(t, &doc)
	if doc.Error.Message == "" {
		t.Errorf("an error without a message: %s", a.body)
	}
	if doc.Error.Param != nil {
		param = *doc.Error.Param
	}
	return doc.Error.Code, param
}

// settle has a payment, which nothing has signed, pay a link by one of its
// offers.
func (s *shop) settle(id string, offer, n int, states ...ledger.State) {
	s.t.Helper()
	l, err := s.links.Get(s.t.Context(), link.ID(id))
	if err != nil {
		s.t.Fatal(err)
	}
	o := &l.Offers[offer]
	k := payment.Key{byte(n), byte(n >> 8), 31: 1}
	r := ledger.Record{
		Key: k, State: ledger.Reserved, Mode: link.Mode, Network: o.Network(), Payer: s.payer.Address.Hex(), Charge: o.Amount.Units(), Request: []byte("{}"), Due: time.Now().Add(time.Hour),
	}
	if _, err := s.book.Claim(s.t.Context(), r, time.Hour, s.links.Claim(l.ID, o, nil)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.book.Update(s.t.Context(), k, func(r *ledger.Record) error {
		for _, state := range states {
			if err := r.To(state); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		s.t.Fatal(err)
	}
	if _, _, err := s.links.Resolve(s.t.Context(), k); err != nil {
		s.t.Fatal(err)
	}
}

func TestMerchantsMakeLinks(t *testing.T) {
	s := newShop(t)
	a := s.as(mainKey, "POST", allLinks, `{
		"amount": 50.25, "description": "Website work", "expiresInHours": 48, "maxUses": 3, "successMessage": "Thank you", "successUrl": "https://shop.example/thanks", "opens": "/reports/7",
		"customFields": [{"name": "order", "label": "Order number", "required": true, "maxlength": 20}, {"name": "note", "label": "Note"}],
		"metadata": {"invoice": "7", "a key with blanks": ""}}`)
	if a.status != 201 || !strings.Contains(a.body, `"amount":50.25,`) {
		t.Fatalf("%d %s", a.status, a.body)
	}
	var l sold
	a.read(t, &l)
	url := s.url + "/x402/" + l.ID
	if l.URL != url || l.AIURL != url || a.header.Get("Location") != allLinks+"/"+l.ID || l.AmountUnits != "50250000" || l.Currency != "USDC" || l.Network != "base-sepolia" || !slices.Equal(l.Networks, []string{"base-sepolia"}) {
		t.Errorf("%s", a.body)
	}
	if l.Status != "ACTIVE" || l.MaxUses != 3 || l.PaidCount != 0 || l.PaidAt != nil || l.ExpiresAt.Sub(l.CreatedAt) != 48*time.Hour || time.Since(l.CreatedAt) > time.Minute {
		t.Errorf("%s", a.body)
	}
	if f := l.CustomFields; len(f) != 2 || f[0].Name != "order" || f[0].Label != "Order number" || !f[0].Required || f[0].MaxLength != 20 || f[1].Required || f[1].MaxLength != 500 {
		t.Errorf("%s", a.body)
	}
	if len(l.Metadata) != 2 || l.Metadata["invoice"] != "7" || *l.SuccessMessage != "Thank you" || *l.SuccessURL != "https://shop.example/thanks" || *l.Opens != "/reports/7" {
		t.Errorf("%s", a.body)
	}
	if again := s.as(readKey, "GET", allLinks+"/"+strings.ToUpper(l.ID), ""); again.status != 200 || again.body != a.body {
		t.Errorf("shown as %d %s", again.status, again.body)
	}
	small := s.offer(writeKey, something)
	if small.MaxUses != 1 || small.ExpiresAt.Sub(small.CreatedAt) != 30*24*time.Hour || small.SuccessMessage != nil || small.SuccessURL != nil || small.Opens != nil || small.CustomFields == nil || small.Metadata == nil {
		t.Errorf("%+v", small)
	}
	nulls := s.offer(mainKey, `{"amount":"1","description":"x","expiresInHours":null,"maxUses":null,"customFields":null,"successMessage":null,"successUrl":null,"opens":null,"metadata":null}`)
	if nulls.MaxUses != 1 {
		t.Errorf("%+v", nulls)
	}
	if a := s.ask("GET", "/x402/"+l.ID, ""); a.status != 402 || !strings.Contains(a.body, `"amount":"50250000"`) {
		t.Errorf("payers see %d %s", a.status, a.body)
	}
}

func TestAmountsAreReadAsTheyAreWritten(t *testing.T) {
	s := newShop(t)
	for written, want := range map[string]struct{ amount, units string }{
		"50.25": {"50.25", "50250000"}, `"50.25"`: {"50.25", "50250000"}, "50": {"50", "50000000"}, "50.00": {"50.00", "50000000"}, "0.000001": {"0.000001", "1"},
		"0.1": {"0.1", "100000"}, "0.3": {"0.3", "300000"}, "1.10": {"1.10", "1100000"}, "999999.999999": {"999999.999999", "999999999999"}, "1000000": {"1000000", "1000000000000"},
		"1000000.000000": {"1000000.000000", "1000000000000"}, "0.29": {"0.29", "290000"}, "8.1": {"8.1", "8100000"}, "1.0000000000": {"1.000000", "1000000"}, `"0.10000000"`: {"0.100000", "100000"},
	} {
		l := s.offer(mainKey, `{"amount":`+written+`,"description":"x"}`)
		if string(l.Amount) != want.amount || l.AmountUnits != want.units {
			t.Errorf("%s is %s, %s units", written, l.Amount, l.AmountUnits)
		}
	}
	for _, written := range []string{
		"0", "0.0", "-1", `"-1"`, "0.0000001", "1.0000001", "1000000.000001", "1000001", "1e2", `"1e2"`, `"1,5"`, `"01"`, `".5"`, `"5."`, `""`, `" 5"`, `"5 "`, `"$5"`, `"5 USDC"`, `"+5"`, `"0x5"`, `"٥"`, "true", "{}", "[5]",
		strings.Repeat("9", 400), "1." + strings.Repeat("0", 400) + "1",
	} {
		a := s.as(mainKey, "POST", allLinks, `{"amount":`+written+`,"description":"x"}`)
		if code, param := refused(t, a); a.status != 400 || code != "invalid_parameter" || param != "amount" {
			t.Errorf("%s: %d %s", written, a.status, a.body)
		}
	}
}

func TestWhatIsWrongWithALinkIsSaidByName(t *testing.T) {
	s := newShop(t)
	with := func(more string) string { return `{"amount":1,"description":"x",` + more + `}` }
	long := strings.Repeat("é", 501)
	for _, c := range []struct{ body, code, param string }{
		{``, "missing_parameter", "amount"},
		{`{}`, "missing_parameter", "amount"},
		{`{"amount":1}`, "missing_parameter", "description"},
		{`{"amount":1,"description":null}`, "missing_parameter", "description"},
		{`{"amount":1,"description":""}`, "invalid_parameter", "description"},
		{`{"amount":1,"description":7}`, "invalid_parameter", "description"},
		{`{"amount":1,"description":"` + long + `"}`, "invalid_parameter", "description"},
		{`{"amount":1,"description":"a\u202eb"}`, "invalid_parameter", "description"},
		{`hello`, "invalid_json", ""},
		{`[]`, "invalid_json", ""},
		{`{"amount":1,"amount":2,"description":"x"}`, "invalid_json", "amount"},
		{`{"amount":1,"Amount":2,"description":"x"}`, "invalid_json", "Amount"},
		{`{"amount":1,"description":"x"} {}`, "invalid_json", ""},
		{`{"amount":1,"description":"` + strings.Repeat("x", 70_000) + `"}`, "invalid_json", ""},
		{with(`"price":2`), "unknown_parameter", "price"},
		{with(`"<b>":2`), "unknown_parameter", "?"},
		{with(`"maxuses":2`), "unknown_parameter", "maxuses"},
		{with(`"merchant":"other"`), "unknown_parameter", "merchant"},
		{with(`"expiresInHours":0`), "invalid_parameter", "expiresInHours"},
		{with(`"expiresInHours":2161`), "invalid_parameter", "expiresInHours"},
		{with(`"expiresInHours":1.5`), "invalid_parameter", "expiresInHours"},
		{with(`"expiresInHours":24.0`), "invalid_parameter", "expiresInHours"},
		{with(`"expiresInHours":1e1`), "invalid_parameter", "expiresInHours"},
		{with(`"expiresInHours":"24"`), "invalid_parameter", "expiresInHours"},
		{with(`"expiresInHours":-1`), "invalid_parameter", "expiresInHours"},
		{with(`"expiresInHours":99999999999999999999`), "invalid_parameter", "expiresInHours"},
		{with(`"maxUses":0`), "invalid_parameter", "maxUses"},
		{with(`"maxUses":1000001`), "invalid_parameter", "maxUses"},
		{with(`"successMessage":{}`), "invalid_parameter", "successMessage"},
		{with(`"successMessage":"` + long + `"`), "invalid_parameter", "successMessage"},
		{with(`"successUrl":"https://evil.example/"`), "invalid_parameter", "successUrl"},
		{with(`"successUrl":"http://shop.example/"`), "invalid_parameter", "successUrl"},
		{with(`"successUrl":"https://shop.example@evil.example/"`), "invalid_parameter", "successUrl"},
		{with(`"successUrl":"javascript:alert(1)"`), "invalid_parameter", "successUrl"},
		{with(`"successUrl":"//shop.example/"`), "invalid_parameter", "successUrl"},
		{with(`"opens":"https://evil.example/"`), "invalid_parameter", "opens"},
		{with(`"opens":"//evil.example"`), "invalid_parameter", "opens"},
		{with(`"customFields":{}`), "invalid_parameter", "customFields"},
		{with(`"customFields":["a"]`), "invalid_parameter", "customFields[0]"},
		{with(`"customFields":[{"name":"a"}]`), "invalid_parameter", "customFields[0].label"},
		{with(`"customFields":[{"name":"A b","label":"x"}]`), "invalid_parameter", "customFields"},
		{with(`"customFields":[{"name":"a","label":"x","required":"yes"}]`), "invalid_parameter", "customFields[0].required"},
		{with(`"customFields":[{"name":"a","label":"x","maxlength":501}]`), "invalid_parameter", "customFields[0].maxlength"},
		{with(`"customFields":[{"name":"a","label":"x","type":"email"}]`), "unknown_parameter", "customFields[0].type"},
		{with(`"customFields":[{"name":"a","label":"x"},{"name":"a","label":"y"}]`), "invalid_parameter", "customFields"},
		{with(`"customFields":[` + strings.Repeat(`{"name":"a","label":"x"},`, 10) + `{"name":"b","label":"x"}]`), "invalid_parameter", "customFields"},
		{with(`"metadata":[]`), "invalid_parameter", "metadata"},
		{with(`"metadata":{"a":1}`), "invalid_parameter", "metadata.a"},
		{with(`"metadata":{"a":"` + long + `"}`), "invalid_parameter", "metadata"},
	} {
		a := s.as(mainKey, "POST", allLinks, c.body)
		if code, param := refused(t, a); a.status != 400 || code != c.code || param != c.param {
			t.Errorf("%.100s: %d %s", c.body, a.status, a.body)
		}
	}
	s.offers = nil
	if a := s.as(mainKey, "POST", allLinks, something); a.status != 400 {
		t.Errorf("without a way to pay: %d %s", a.status, a.body)
	}
	coarse := facilitatortest.USDC(t)
	coarse.Decimals = 2
	price, err := payment.ParsePrice("1 USDC", coarse)
	if err != nil {
		t.Fatal(err)
	}
	s.offers = []payment.Offer{{Scheme: payment.Exact, Amount: price, PayTo: s.seller.Address.Hex(), Timeout: time.Minute, Until: payment.Included}}
	a := s.as(mainKey, "POST", allLinks, `{"amount":0.001,"description":"x"}`)
	if code, param := refused(t, a); a.status != 400 || code != "invalid_parameter" || param != "amount" || !strings.Contains(a.body, "finer") {
		t.Errorf("finer than the token: %d %s", a.status, a.body)
	}
	if stats, err := s.links.Stats(t.Context(), "main"); err != nil || stats.Total != 0 {
		t.Errorf("%d links were made, %v", stats.Total, err)
	}
}

func TestAnIdempotencyKeyMakesOneLink(t *testing.T) {
	s := newShop(t)
	var made, replayed atomic.Int64
	var ids sync.Map
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			a := s.as(mainKey, "POST", allLinks, something, "Idempotency-Key", "order 7")
			var l sold
			if err := json.Unmarshal([]byte(a.body), &l); err != nil {
				t.Error(err)
			}
			ids.Store(l.ID, true)
			switch {
			case a.status == 201 && a.header.Get("Idempotent-Replayed") == "":
				made.Add(1)
			case a.status == 200 && a.header.Get("Idempotent-Replayed") == "true":
				replayed.Add(1)
			default:
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	all.Wait()
	n := 0
	ids.Range(func(any, any) bool { n++; return true })
	if n != 1 || made.Load() != 1 || replayed.Load() != 19 {
		t.Errorf("%d links; %d were made and %d the same again", n, made.Load(), replayed.Load())
	}
	a := s.as(mainKey, "POST", allLinks, `{"amount":0.06,"description":"Website work"}`, "Idempotency-Key", "order 7")
	if code, param := refused(t, a); a.status != 409 || code != "idempotency_key_reused" || param != "Idempotency-Key" {
		t.Errorf("another body: %d %s", a.status, a.body)
	}
	if a := s.as(otherKey, "POST", allLinks, something, "Idempotency-Key", "order 7"); a.status != 201 {
		t.Errorf("another merchant: %d %s", a.status, a.body)
	}
	// Where links are paid to may change before a request is sent again.
	s.offers[0].PayTo = s.payer.Address.Hex()
	if a := s.as(mainKey, "POST", allLinks, something, "Idempotency-Key", "order 7"); a.status != 200 {
		t.Errorf("after a change of the configuration: %d %s", a.status, a.body)
	}
	if a := s.as(mainKey, "POST", allLinks, something, "Idempotency-Key", strings.Repeat("k", 255)); a.status != 201 {
		t.Errorf("a long key: %d %s", a.status, a.body)
	}
	for _, header := range [][]string{{"Idempotency-Key", ""}, {"Idempotency-Key", strings.Repeat("k", 256)}, {"Idempotency-Key", "a", "Idempotency-Key", "b"}} {
		a := s.as(mainKey, "POST", allLinks, something, header...)
		if code, param := refused(t, a); a.status != 400 || code != "invalid_parameter" || param != "Idempotency-Key" {
			t.Errorf("%.40v: %d %s", header, a.status, a.body)
		}
	}
}

func TestOnlyAGoodKeyComesInAndOnlyToItsOwn(t *testing.T) {
	s := newShop(t)
	mine, theirs := s.offer(mainKey, something), s.offer(otherKey, something)
	before := fmt.Sprint(s.entries())
	own, foreign := allLinks+"/"+mine.ID, allLinks+"/"+theirs.ID
	type request struct{ method, path, body string }
	reads := []request{{"GET", allLinks, ""}, {"GET", allLinks + "/stats", ""}, {"GET", own, ""}, {"GET", own + "/payments", ""}}
	writes := []request{{"POST", allLinks, something}, {"POST", own + "/cancel", ""}, {"POST", own + "/disable", ""}, {"DELETE", own, ""}}
	for _, r := range append(slices.Clone(reads), writes...) {
		for _, header := range [][]string{
			nil,
			{"Cookie", "key=" + mainKey + "; session=1"},
			{"Authorization", mainKey},
			{"Authorization", "Basic " + mainKey},
			{"Authorization", "Bearer"},
			{"Authorization", "Bearer "},
			{"Authorization", "Bearer " + nobodyKey},
			{"Authorization", "Bearer " + mainKey + "x"},
			{"Authorization", "Bearer " + mainKey, "Authorization", "Bearer " + otherKey},
			{"Authorization", "Bearer " + mainKey, "X-API-Key", otherKey},
			{"X-API-Key", ""},
			{"X-API-Key", nobodyKey},
			{"X-API-Key", fmt.Sprintf("%x", sha256.Sum256([]byte(mainKey)))},
		} {
			a := s.ask(r.method, r.path, r.body, header...)
			code, _ := refused(t, a)
			if a.status != 401 || !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer ") || code != "api_key_required" && code != "invalid_api_key" {
				t.Errorf("%v with %v: %d %s", r, header, a.status, a.body)
			}
		}
	}
	for _, c := range []struct {
		key      string
		requests []request
	}{{readKey, writes}, {writeKey, reads}} {
		for _, r := range c.requests {
			a := s.as(c.key, r.method, r.path, r.body)
			if code, _ := refused(t, a); a.status != 403 || code != "insufficient_scope" || !strings.Contains(a.header.Get("WWW-Authenticate"), "insufficient_scope") {
				t.Errorf("%v with %s: %d %s", r, c.key, a.status, a.body)
			}
		}
	}
	for _, r := range writes {
		for _, origin := range []string{"https://evil.example", "null", "https://" + strings.TrimPrefix(s.url, "http://"), s.url + ".evil.example", ""} {
			a := s.as(mainKey, r.method, r.path, r.body, "Origin", origin)
			if code, _ := refused(t, a); a.status != 403 || code != "origin_not_allowed" {
				t.Errorf("%v from %q: %d %s", r, origin, a.status, a.body)
			}
		}
	}
	missing := s.as(mainKey, "GET", allLinks+"/00000000000000000000000000", "")
	for _, path := range []string{foreign, allLinks + "/short", allLinks + "/"} {
		if a := s.as(mainKey, "GET", path, ""); a.status != 404 || a.body != missing.body {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	for _, r := range []request{{"POST", foreign + "/cancel", ""}, {"DELETE", foreign, ""}, {"GET", foreign + "/payments", ""}} {
		if a := s.as(mainKey, r.method, r.path, ""); a.status != 404 || a.body != missing.body {
			t.Errorf("%v: %d %s", r, a.status, a.body)
		}
	}
	if after := fmt.Sprint(s.entries()); after != before {
		t.Error("something has changed")
	}
	for _, header := range [][]string{
		{"Authorization", "Bearer " + mainKey},
		{"Authorization", "bearer " + mainKey},
		{"X-API-Key", mainKey},
		{"X-API-Key", mainKey, "Authorization", "Bearer " + mainKey},
		{"X-API-Key", mainKey, "Origin", s.url},
	} {
		if a := s.ask("POST", allLinks, something, header...); a.status != 201 {
			t.Errorf("with %v: %d %s", header, a.status, a.body)
		}
	}
	s.merchant.Keys = nil
	if a := s.as(mainKey, "GET", allLinks, ""); a.status != 401 {
		t.Errorf("without keys: %d", a.status)
	}
}

// entries returns all that is stored.
func (s *shop) entries() []ledger.Entry {
	s.t.Helper()
	var all []ledger.Entry
	for _, prefix := range []ledger.Key{"link", "pay/", "open/", "name/"} {
		some, err := s.store.Scan(s.t.Context(), prefix, "", 1000)
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, some...)
	}
	return all
}

func TestALinkIsCancelledOnceAndNotAfterItIsPaid(t *testing.T) {
	s := newShop(t)
	for name, cancel := range map[string]func(id string) *reply{
		"cancel":  func(id string) *reply { return s.as(mainKey, "POST", allLinks+"/"+id+"/cancel", "{}") },
		"disable": func(id string) *reply { return s.as(mainKey, "POST", allLinks+"/"+id+"/disable", "") },
		"delete":  func(id string) *reply { return s.as(mainKey, "DELETE", allLinks+"/"+id, "") },
	} {
		l := s.offer(mainKey, something)
		for range 2 {
			a := cancel(l.ID)
			var now sold
			a.read(t, &now)
			if a.status != 200 || now.Status != "DISABLED" || now.ID != l.ID {
				t.Errorf("%s: %d %s", name, a.status, a.body)
			}
		}
		if a := s.ask("GET", "/x402/"+l.ID, ""); !strings.Contains(a.body, `"error":"disabled"`) {
			t.Errorf("%s: payers see %s", name, a.body)
		}
	}
	paid := s.offer(mainKey, something)
	s.settle(paid.ID, 0, 1, ledger.Settled)
	a := s.as(mainKey, "POST", allLinks+"/"+paid.ID+"/cancel", "")
	if code, _ := refused(t, a); a.status != 409 || code != "already_paid" {
		t.Errorf("a paid one: %d %s", a.status, a.body)
	}
	held := s.offer(mainKey, something)
	s.settle(held.ID, 0, 2)
	a = s.as(mainKey, "POST", allLinks+"/"+held.ID+"/cancel", "")
	if a.status != 200 || !strings.Contains(a.body, `"status":"PENDING"`) {
		t.Errorf("one that is being paid: %d %s", a.status, a.body)
	}
	a = s.as(mainKey, "POST", allLinks+"/"+held.ID+"/cancel", `{"reason":"x"}`)
	if code, param := refused(t, a); a.status != 400 || code != "unknown_parameter" || param != "reason" {
		t.Errorf("with a reason: %d %s", a.status, a.body)
	}
}

func TestLinksAreListedByPageAndStatus(t *testing.T) {
	s := newShop(t)
	s.offer(otherKey, something)
	var made []string
	for i := range 5 {
		s.clock.Add(1)
		made = append(made, s.offer(mainKey, something).ID)
		if i%2 == 0 {
			s.as(mainKey, "DELETE", allLinks+"/"+made[i], "")
		}
	}
	slices.Reverse(made)
	type page struct {
		Links       []sold
		NextCursor  *string
		TotalCount  int
		ActiveCount int
		Pagination  struct {
			HasNextPage bool
			Limit       int
		}
	}
	walk := func(query string) (ids []string) {
		cursor := ""
		for range 10 {
			var p page
			a := s.as(readKey, "GET", allLinks+"?"+query+cursor, "")
			a.read(t, &p)
			if a.status != 200 || p.TotalCount != 5 || p.ActiveCount != 2 || p.Pagination.HasNextPage != (p.NextCursor != nil) || !strings.Contains(a.body, `"nextCursor":`) {
				t.Fatalf("%s: %d %s", query, a.status, a.body)
			}
			if len(p.Links) > p.Pagination.Limit {
				t.Errorf("%d links on a page of %d", len(p.Links), p.Pagination.Limit)
			}
			for _, l := range p.Links {
				ids = append(ids, l.ID)
			}
			if p.NextCursor == nil {
				return ids
			}
			cursor = "&cursor=" + *p.NextCursor
		}
		t.Fatalf("%s has no end", query)
		return nil
	}
	for query, want := range map[string][]string{
		"": made, "limit=2": made, "limit=5": made, "limit=100": made, "limit=1&status=disabled": {made[0], made[2], made[4]}, "status=ACTIVE": {made[1], made[3]}, "status=Paid": nil, "else=1": made,
	} {
		if got := walk(query); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
	var p page
	if s.as(mainKey, "GET", allLinks, "").read(t, &p); p.Pagination.Limit != 20 {
		t.Errorf("a page is of %d", p.Pagination.Limit)
	}
	for query, param := range map[string]string{
		"limit=0": "limit", "limit=101": "limit", "limit=many": "limit", "limit=1&limit=2": "limit", "status=GONE": "status", "cursor=%25": "cursor", "status=PAID&status=PAID": "status",
	} {
		a := s.as(mainKey, "GET", allLinks+"?"+query, "")
		if code, got := refused(t, a); a.status != 400 || code != "invalid_parameter" || got != param {
			t.Errorf("%s: %d %s", query, a.status, a.body)
		}
	}
}

func TestPaymentsOfALinkAreListed(t *testing.T) {
	s := newShop(t)
	l := s.offer(mainKey, `{"amount":0.05,"description":"Website work","maxUses":4}`)
	stored, err := s.links.Get(t.Context(), link.ID(l.ID))
	if err != nil {
		t.Fatal(err)
	}
	name, value := facilitatortest.Header(t, payment.V2, &stored.Offers[0], s.sign(stored, nil))
	var paid struct {
		Receipt struct{ URL, ID, Transaction string }
	}
	a := s.ask("GET", "/x402/"+l.ID, "", name, value)
	if a.read(t, &paid); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	s.settle(l.ID, 0, 1)
	s.settle(l.ID, 0, 2, ledger.Released)
	s.settle(l.ID, 0, 3, ledger.Settled)
	type page struct {
		Payments []struct {
			ID, Status, URL, Transaction, Payer string
			PaidAt                              string
		}
		NextCursor *string
	}
	var all page
	a = s.as(readKey, "GET", allLinks+"/"+l.ID+"/payments", "")
	a.read(t, &all)
	statuses := map[string]int{}
	for _, p := range all.Payments {
		statuses[p.Status]++
		receipt := s.ask("GET", strings.TrimPrefix(p.URL, s.url), "")
		if receipt.status != 200 || !strings.Contains(receipt.body, `"status":"`+p.Status+`"`) {
			t.Errorf("%s: %d %s", p.URL, receipt.status, receipt.body)
		}
		if p.ID == paid.Receipt.ID && (p.URL != paid.Receipt.URL || p.Transaction != paid.Receipt.Transaction || p.Payer != s.payer.Address.Hex() || p.PaidAt == "") {
			t.Errorf("%+v", p)
		}
	}
	if a.status != 200 || fmt.Sprint(statuses) != "map[FAILED:1 PAID:2 PENDING:1]" || all.NextCursor != nil {
		t.Errorf("%d %v %s", a.status, statuses, a.body)
	}
	cursor, n := "", 0
	for range 5 {
		var p page
		s.as(mainKey, "GET", allLinks+"/"+l.ID+"/payments?limit=3"+cursor, "").read(t, &p)
		for _, one := range p.Payments {
			if one.ID != all.Payments[n].ID {
				t.Errorf("%s instead of %s", one.ID, all.Payments[n].ID)
			}
			n++
		}
		if p.NextCursor == nil {
			break
		}
		cursor = "&cursor=" + *p.NextCursor
	}
	if n != 4 {
		t.Errorf("pages have %d payments", n)
	}
	a = s.as(mainKey, "GET", allLinks+"/"+l.ID+"/payments?cursor=x", "")
	if code, param := refused(t, a); a.status != 400 || code != "invalid_parameter" || param != "cursor" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if now := s.show(l.ID); now.PaidCount != 2 || now.Status != "ACTIVE" || now.PaidAt == nil {
		t.Errorf("%+v", now)
	}
}

func TestEarningsOfDifferentCurrenciesAreNotAddedUp(t *testing.T) {
	s := newShop(t)
	usdc := s.offers[0]
	offer := func(n payment.Network, symbol string, decimals uint8, address string) payment.Offer {
		price, err := payment.ParsePrice("1 "+symbol, payment.Token{Network: n, Address: address, Symbol: symbol, Decimals: decimals, Name: symbol, Version: "1"})
		if err != nil {
			t.Fatal(err)
		}
		return payment.Offer{Scheme: payment.Exact, Amount: price, PayTo: usdc.PayTo, Timeout: time.Minute, Until: payment.Included}
	}
	elsewhere := offer(payment.EVM(8453), "USDC", 6, "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913")
	euro := offer(payment.EVM(1), "EURC", 6, "0x1aBaEA1f7C830bD89Acc67eC4af516284b1bC33c")
	odd := offer(payment.EVM(56), "USDC", 18, "0x8AC76a51cc950d9822D68b83fE1Ad97B32Cd580d")
	s.offers = []payment.Offer{usdc, elsewhere, euro, odd}
	type stats struct {
		TotalLinks, ActiveLinks, PendingLinks, PaidLinks, ExpiredLinks, DisabledLinks int

		TotalEarnings json.RawMessage
		Currency      string
		Earnings      []struct {
			Network, Token, Currency, Units string
			Amount                          json.RawMessage
		}
	}
	now := func() (d stats, body string) {
		t.Helper()
		a := s.as(readKey, "GET", allLinks+"/stats", "")
		if a.read(t, &d); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		return d, a.body
	}
	if d, body := now(); string(d.TotalEarnings) != "0" || d.Currency != "USDC" || d.Earnings == nil || len(d.Earnings) != 0 {
		t.Errorf("at first: %s", body)
	}
	pay := func(n, by int, amount string) {
		t.Helper()
		s.settle(s.offer(mainKey, `{"amount":`+amount+`,"description":"x"}`).ID, by, n, ledger.Settled)
	}
	pay(1, 2, "7.000001")
	if d, body := now(); string(d.TotalEarnings) != "7.000001" || d.Currency != "EURC" || len(d.Earnings) != 1 {
		t.Errorf("with euros only: %s", body)
	}
	pay(2, 0, "0.1")
	pay(3, 1, "0.2")
	pay(4, 3, "1000000")
	s.settle(s.offer(mainKey, something).ID, 0, 5) // may settle
	s.settle(s.offer(otherKey, something).ID, 0, 6, ledger.Settled)
	s.as(mainKey, "DELETE", allLinks+"/"+s.offer(mainKey, something).ID, "")
	s.offer(mainKey, `{"amount":5,"description":"x","expiresInHours":1}`)
	s.clock.Store(3601)
	s.offer(mainKey, something)
	d, body := now()
	if string(d.TotalEarnings) != "0.3" || d.Currency != "USDC" || d.TotalLinks != 8 || d.ActiveLinks != 1 || d.PendingLinks != 1 || d.PaidLinks != 4 || d.ExpiredLinks != 1 || d.DisabledLinks != 1 {
		t.Errorf("%s", body)
	}
	var lines []string
	for _, e := range d.Earnings {
		lines = append(lines, fmt.Sprint(e.Network, " ", string(e.Amount), " ", e.Currency, " ", e.Units))
	}
	slices.Sort(lines)
	if want := []string{"base 0.2 USDC 200000", "base-sepolia 0.1 USDC 100000", "eip155:56 1000000 USDC 1000000000000000000000000", "ethereum 7.000001 EURC 7000001"}; !slices.Equal(lines, want) {
		t.Errorf("earned %q, want %q", lines, want)
	}
}

// A lame collector cannot find out about any payment.
type lame struct{}

func (lame) Collect(context.Context, *till.Bill) (ledger.Record, error) {
	return ledger.Record{}, &payment.UnavailableError{Doing: "asking a node", Err: errBroken}
}

// TestTheDescriptionIsTrue has every answer that is described, holds each
// against its schema, and finds nothing that is not described.
func TestTheDescriptionIsTrue(t *testing.T) {
	s := newShop(t)
	const terms = `{"amount":0.05,"description":"Website work","maxUses":2}`
	l := s.offer(mainKey, terms, "Idempotency-Key", "once")
	s.offer(mainKey, terms, "Idempotency-Key", "once")
	s.as(mainKey, "POST", allLinks, something, "Idempotency-Key", "once")
	s.as(mainKey, "POST", allLinks, "{}")
	stored, err := s.links.Get(t.Context(), link.ID(l.ID))
	if err != nil {
		t.Fatal(err)
	}
	own, public, nothing := allLinks+"/"+l.ID, "/x402/"+l.ID, "00000000000000000000000000"
	name, value := facilitatortest.Header(t, payment.V2, &stored.Offers[0], s.sign(stored, nil))
	var paid struct{ Receipt struct{ URL string } }
	s.ask("GET", public, "", name, value).read(t, &paid)
	receipt := strings.TrimPrefix(paid.Receipt.URL, s.url)
	s.ask("POST", public, `{"fields":{}}`, name, value) // the same payment
	second := encoded(t, old("base-sepolia", s.sign(stored, nil), true, false))
	s.ask("POST", public+"/pay", strings.Replace(second, `"base-sepolia"`, `"base"`, 1))
	s.ask("POST", public+"/pay", "{}")
	s.ask("POST", public+"/pay", second)
	s.ask("POST", public+"/pay", second)
	s.ask("POST", "/x402/"+nothing+"/pay", second)
	s.ask("POST", "/x402/short/pay", second)
	third, late := facilitatortest.Header(t, payment.V2, &stored.Offers[0], s.sign(stored, nil))
	s.as(mainKey, "DELETE", own, "") // it is paid
	s.as(mainKey, "POST", own+"/cancel", "")
	s.as(mainKey, "POST", own+"/disable", "")
	s.ask("GET", public, "", third, late)
	s.ask("POST", public, "{}", third, late)
	for _, verb := range []string{"/cancel", "/disable", ""} {
		method := "POST"
		if verb == "" {
			method = "DELETE"
		}
		one := allLinks + "/" + s.offer(mainKey, something).ID + verb
		s.as(mainKey, method, one, "no JSON")
		s.as(mainKey, method, one, "")
		s.as(mainKey, method, allLinks+"/"+nothing+verb, "")
	}
	open := s.offer(mainKey, something)
	reopened, err := s.links.Get(t.Context(), link.ID(open.ID))
	if err != nil {
		t.Fatal(err)
	}
	s.site.Till = lame{}
	for _, method := range []string{"GET", "POST"} {
		n, v := facilitatortest.Header(t, payment.V2, &reopened.Offers[0], s.sign(reopened, nil))
		s.ask(method, "/x402/"+open.ID, "", n, v)
		s.ask(method, "/x402/"+open.ID, "", n, "no payment")
	}
	s.ask("HEAD", "/x402/"+open.ID, "", third, "no payment")
	s.ask("POST", "/x402/"+open.ID+"/pay", encoded(t, old("base-sepolia", s.sign(reopened, nil), true, false)))
	n, v := facilitatortest.Header(t, payment.V2, &stored.Offers[0], s.sign(stored, nil)) // of a link with another amount
	s.ask("POST", "/x402/"+s.offer(mainKey, `{"amount":0.06,"description":"x"}`).ID, "", n, v)
	s.ask("GET", public+"/events", "") // paid, so that they end at once
	visit := func(method, path string) {
		s.as(mainKey, method, path, "")
		s.as(nobodyKey, method, path, "")
		s.as(readKey, method, path, "")
		s.as(writeKey, method, path, "")
	}
	everything := func(id, receipt string) {
		s.contract.described(func(method, template, _ string, _ map[string]any) {
			if template != "/x402/{id}/events" || id == l.ID || id == nothing {
				visit(method, strings.NewReplacer("{id}", id, "{receipt}", receipt).Replace(template))
			}
		})
	}
	everything(l.ID, receipt[len(receipt)-26:])
	everything(nothing, nothing)
	s.as(mainKey, "GET", allLinks+"?limit=0", "")
	s.as(mainKey, "GET", own+"/payments?limit=0", "")
	s.broken.Store(true)
	everything(l.ID, receipt[len(receipt)-26:])
	s.as(mainKey, "POST", allLinks, something)
	s.ask("POST", public+"/pay", second)
	s.ask("POST", public, "{}", name, value)
	s.broken.Store(false)

	never := map[string]string{"openLink 410": "only a page says it"}
	s.contract.described(func(_, _, name string, responses map[string]any) {
		for status := range responses {
			if reason := never[name+" "+status]; s.contract.seen[name+" "+status] == (reason != "") {
				t.Errorf("%s %s: %v %s", name, status, reason == "", reason)
			}
		}
	})

	// Nothing else is answered at any path that is described, or below it.
	for _, template := range s.contract.templates() {
		path := strings.NewReplacer("{id}", l.ID, "{receipt}", receipt[len(receipt)-26:]).Replace(template)
		for _, method := range methods {
			for _, more := range []string{"", "/", "/more"} {
				if s.contract.operation(method, path+more) != nil {
					continue
				}
				if a := s.as(mainKey, method, path+more, ""); a.status != 404 && a.status != 405 || a.status == 405 && a.header.Get("Allow") == "" {
					t.Errorf("%s %s: %d %s", method, path+more, a.status, a.body)
				}
			}
		}
	}
}

func TestTheDescriptionHasThePathsOfTheSite(t *testing.T) {
	s := newShop(t)
	s.site.Base = "/bills"
	a := s.ask("GET", "/v1/openapi.json", "")
	doc, err := decode(a.body)
	if err != nil {
		t.Fatal(err)
	}
	if at(doc, "paths", "/bills/{id}/pay", "post") == nil || at(doc, "paths", "/x402/{id}/pay") != nil || at(doc, "paths", allLinks, "post") == nil {
		t.Errorf("%d %.300s", a.status, a.body)
	}
}
