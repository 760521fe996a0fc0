package linkhttp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
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
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/payment/link"
)

func TestALinkSaysWhatItAsksInBothVersionsAndTheOlderForm(t *testing.T) {
	w := newWorld(t)
	l := w.bill(nil)
	a := w.ask("GET", "/x402/"+string(l.ID), "")
	var doc struct {
		Version int              `json:"x402Version"`
		Accepts []map[string]any `json:"accepts"`
		Error   *string          `json:"error"`
		Status  string           `json:"status"`
	}
	a.read(t, &doc)
	if a.status != 402 || doc.Version != 1 || doc.Error != nil || doc.Status != "ACTIVE" || len(doc.Accepts) != 1 || !strings.Contains(a.body, `"error":null`) {
		t.Fatalf("%d %s", a.status, a.body)
	}
	url := w.url + "/x402/" + string(l.ID)
	usdc := l.Offers[0].Amount.Token()
	for name, want := range map[string]any{
		"amount": "50000", "currency": "USDC", "network": "base-sepolia", "recipient": w.seller.Address.Hex(), "verifyingContract": usdc.Address, "chainId": 84532.0, "aiUrl": url,
		"name": usdc.Name, "version": usdc.Version,
		"scheme": "exact", "maxAmountRequired": "50000", "resource": url, "description": "Website work", "mimeType": "application/json", "payTo": w.seller.Address.Hex(), "maxTimeoutSeconds": 60.0, "asset": usdc.Address,
	} {
		if got := doc.Accepts[0][name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	required, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired))
	if err != nil || len(required.Offers) != 1 || required.Offers[0].Amount.Units() != "50000" {
		t.Errorf("the header says %v, %v", required, err)
	}
	if a.header.Get("Cache-Control") != "no-store" || !strings.Contains(a.header.Get("Vary"), "Accept") {
		t.Errorf("headers %v", a.header)
	}
	if v1, err := payment.DecodeRequiredBody([]byte(a.body)); err == nil && len(v1.Offers) != 1 {
		t.Errorf("v1 reads %v", v1)
	}
}

func TestLinksThatCannotBePaidSayWhy(t *testing.T) {
	w := newWorld(t)
	disabled, expired, claimed := w.bill(nil), w.bill(func(x *link.Terms) { x.Life = time.Hour }), w.bill(nil)
	if _, err := w.links.Disable(t.Context(), "main", disabled.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.book.Claim(t.Context(), ledger.Record{Key: payment.Key{1}, State: ledger.Intent, Network: "eip155:84532"}, time.Hour, w.links.Claim(claimed.ID, &claimed.Offers[0], nil)); err != nil {
		t.Fatal(err)
	}
	w.clock.Store(3601)
	for _, c := range []struct {
		id     string
		status int
		reason string
	}{
		{string(disabled.ID), 402, "disabled"},
		{string(expired.ID), 402, "expired"},
		{string(claimed.ID), 402, "being_paid"},
		{"00000000000000000000000000", 404, "not_found"},
		{"short", 404, "not_found"},
		{string(disabled.ID) + "/else", 404, "not_found"},
		{string(disabled.ID) + "/receipt/00000000000000000000000000", 404, "not_found"},
	} {
		a := w.ask("GET", "/x402/"+c.id, "")
		var doc struct {
			Accepts []any  `json:"accepts"`
			Error   string `json:"error"`
		}
		a.read(t, &doc)
		if a.status != c.status || doc.Error != c.reason || doc.Accepts == nil || len(doc.Accepts) != 0 || a.header.Get(payment.HeaderRequired) != "" {
			t.Errorf("%s: %d %s", c.id, a.status, a.body)
		}
	}
}

func TestLinksArePaidByHeader(t *testing.T) {
	for _, version := range []int{payment.V1, payment.V2} {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) {
			w := newWorld(t)
			l := w.bill(func(x *link.Terms) {
				x.Message, x.Redirect = "Thank you", "https://shop.example/thanks"
				x.Fields = []link.Field{{Name: "order", Label: "Order number"}}
			})
			name, value := facilitatortest.Header(t, version, &l.Offers[0], w.sign(l, nil))
			var doc struct {
				Status  string
				Receipt struct{ ID, URL, Status, Transaction, Payer, Amount, Currency, Network, PaidAt string }
				Success struct{ Message, Redirect string }
			}
			a := w.ask("GET", "/x402/"+string(l.ID), "", name, value)
			a.read(t, &doc)
			if a.status != 200 || doc.Status != "PAID" || doc.Receipt.Payer != w.payer.Address.Hex() || doc.Receipt.Amount != "0.05" || doc.Receipt.Currency != "USDC" || doc.Success.Redirect == "" {
				t.Fatalf("%d %s", a.status, a.body)
			}
			header := payment.HeaderResponse
			if version == payment.V1 {
				header = payment.HeaderResponseV1
			}
			if a.header.Get(header) == "" {
				t.Error("no settlement in the headers")
			}
			// The same request again gets the same answer; another payment is too late.
			if again := w.ask("GET", "/x402/"+string(l.ID), "", name, value); again.status != 200 || again.body != a.body {
				t.Errorf("again: %d %s", again.status, again.body)
			}
			name, value = facilitatortest.Header(t, version, &l.Offers[0], w.sign(l, nil))
			if late := w.ask("GET", "/x402/"+string(l.ID), "", name, value); late.status != 409 || !strings.Contains(late.body, "already_paid") {
				t.Errorf("another: %d %s", late.status, late.body)
			}
			if w.earned() != 50_000 || w.status(l) != link.Paid {
				t.Errorf("earned %d, and the link is %s", w.earned(), w.status(l))
			}
			r := w.ask("GET", strings.TrimPrefix(doc.Receipt.URL, w.url), "")
			if r.status != 200 || !strings.Contains(r.body, doc.Receipt.Transaction) || !strings.Contains(r.body, `"status":"PAID"`) {
				t.Errorf("the receipt: %d %s", r.status, r.body)
			}
		})
	}
}

func TestPayersFillInFieldsWithAPost(t *testing.T) {
	w := newWorld(t)
	l := w.bill(func(x *link.Terms) { x.Fields = []link.Field{{Name: "order", Label: "Order number", Required: true}} })
	name, value := facilitatortest.Header(t, payment.V2, &l.Offers[0], w.sign(l, nil))
	for body, want := range map[string]int{"": 400, `{"fields":{}}`: 400, `{"fields":{"other":"7"}}`: 400, `{"fields":["7"]}`: 400, `{`: 400} {
		if a := w.ask("POST", "/x402/"+string(l.ID), body, name, value); a.status != want {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
	if w.status(l) != link.Active {
		t.Fatalf("the link is %s", w.status(l))
	}
	a := w.ask("POST", "/x402/"+string(l.ID), `{"fields":{"order":" 7 "}}`, name, value)
	if a.status != 200 || !strings.Contains(a.body, `"fields":{"order":"7"}`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.ask("POST", "/x402/"+string(l.ID), ""); a.status != 400 {
		t.Errorf("without a payment: %d %s", a.status, a.body)
	}
}

// TestTheOlderAPIsExchanges plays what the older API documents.
func TestTheOlderAPIsExchanges(t *testing.T) {
	w := newWorld(t)
	l := w.bill(nil)
	other := w.bill(nil)
	expired := w.bill(func(x *link.Terms) { x.Life = time.Hour })
	good := w.sign(l, nil)
	fraud := w.sign(l, nil)
	fraud.Signature[10] ^= 1
	forms := 0
	for _, texts := range []bool{false, true} {
		for _, parts := range []bool{false, true} {
			forms++
			one := w.bill(nil)
			transfer := w.sign(one, func(a *evm.Authorization) { a.Nonce[0] = byte(forms) })
			a := w.ask("POST", "/x402/"+string(one.ID)+"/pay", encoded(t, old("base-sepolia", transfer, texts, parts)))
			var doc struct {
				Success   bool
				TxHash    string
				NetworkID string `json:"networkId"`
				Error     *string
			}
			a.read(t, &doc)
			if a.status != 200 || !doc.Success || len(doc.TxHash) != 66 || doc.NetworkID != "base-sepolia" || doc.Error != nil || !strings.Contains(a.body, `"error":null`) {
				t.Errorf("texts %v, parts %v: %d %s", texts, parts, a.status, a.body)
			}
		}
	}
	if w.earned() != int64(forms)*50_000 {
		t.Errorf("earned %d by %d payments", w.earned(), forms)
	}
	changed := func(change func(*evm.Authorization)) string {
		return encoded(t, old("base-sepolia", w.sign(l, change), true, false))
	}
	late := changed(func(a *evm.Authorization) { a.ValidBefore = big.NewInt(time.Now().Unix() + 7200) })
	for _, c := range []struct {
		name   string
		id     link.ID
		ahead  int64
		body   string
		status int
		says   string
	}{
		{"the wrong amount", l.ID, 0, changed(func(a *evm.Authorization) { a.Value = big.NewInt(49_999) }), 403, "amount"},
		{"too much", l.ID, 0, changed(func(a *evm.Authorization) { a.Value = big.NewInt(50_001) }), 403, "amount"},
		{"the wrong recipient", l.ID, 0, changed(func(a *evm.Authorization) { a.To = w.payer.Address }), 403, "recipient"},
		{"another network", l.ID, 0, encoded(t, old("base", good, true, false)), 403, "base"},
		{"an unknown network", l.ID, 0, encoded(t, old("nowhere", good, true, false)), 400, "network"},
		{"a bad signature", l.ID, 0, encoded(t, old("base-sepolia", fraud, true, false)), 400, "signature"},
		{"a short signature", l.ID, 0, strings.Replace(encoded(t, old("base-sepolia", good, true, false)), `"signature":"0x`, `"signature":"0x00`, 1), 400, "signature"},
		{"expired authorization", l.ID, 0, changed(func(a *evm.Authorization) { a.ValidBefore = big.NewInt(time.Now().Unix() - 1) }), 400, "valid"},
		{"authorization of tomorrow", l.ID, 0, changed(func(a *evm.Authorization) {
			a.ValidAfter, a.ValidBefore = big.NewInt(time.Now().Unix()+3600), big.NewInt(time.Now().Unix()+7200)
		}), 400, "valid"},
		{"too long a window", l.ID, 0, changed(func(a *evm.Authorization) { a.ValidBefore = big.NewInt(time.Now().Unix() + 6*3600 + 60) }), 400, "validBefore"},
		{"no JSON", l.ID, 0, "hello", 400, ""},
		{"no body", l.ID, 0, "", 400, ""},
		{"no payload", l.ID, 0, `{"network":"base-sepolia"}`, 400, "payload"},
		{"a fraction", l.ID, 0, strings.Replace(encoded(t, old("base-sepolia", good, false, false)), `"value":50000`, `"value":50000.0`, 1), 400, "value"},
		{"an exponent", l.ID, 0, strings.Replace(encoded(t, old("base-sepolia", good, false, false)), `"value":50000`, `"value":5e4`, 1), 400, "value"},
		{"negative", l.ID, 0, strings.Replace(encoded(t, old("base-sepolia", good, false, false)), `"value":50000`, `"value":-50000`, 1), 400, "value"},
		{"two values", l.ID, 0, strings.Replace(encoded(t, old("base-sepolia", good, false, false)), `"value":50000`, `"value":50000,"value":1`, 1), 400, "value"},
		{"an unknown link", "00000000000000000000000000", 0, encoded(t, old("base-sepolia", good, true, false)), 404, "no such"},
		{"no id of a link", "else", 0, encoded(t, old("base-sepolia", good, true, false)), 404, "no such"},
		{"an expired link", expired.ID, 3601, late, 403, "expired"},
		{"good", l.ID, 0, encoded(t, old("base-sepolia", good, true, false)), 200, ""},
		{"the same again", l.ID, 0, encoded(t, old("base-sepolia", good, true, false)), 409, "nonce"},
		{"the same for another link", other.ID, 0, encoded(t, old("base-sepolia", good, true, false)), 409, "nonce"},
		{"a paid link", l.ID, 0, changed(nil), 409, "paid"},
	} {
		w.clock.Store(c.ahead)
		before := w.earned()
		a := w.ask("POST", "/x402/"+string(c.id)+"/pay", c.body)
		var doc struct {
			Success bool
			TxHash  *string
			Error   string
		}
		a.read(t, &doc)
		if a.status != c.status || !strings.Contains(doc.Error, c.says) || doc.TxHash == nil {
			t.Errorf("%s: %d %s", c.name, a.status, a.body)
		}
		if c.status != 200 && (doc.Success || *doc.TxHash != "" || doc.Error == "" || w.earned() != before) {
			t.Errorf("%s: %s, earned %d", c.name, a.body, w.earned()-before)
		}
	}
	w.clock.Store(0)
	if w.status(other) != link.Active {
		t.Errorf("the other link is %s", w.status(other))
	}
	if a := w.ask("GET", "/x402/"+string(l.ID)+"/pay", ""); a.status != 405 {
		t.Errorf("GET: %d", a.status)
	}
}

func TestLookingAtALinkChangesNothing(t *testing.T) {
	w := newWorld(t)
	l := w.bill(nil)
	entries := func() []ledger.Entry {
		var all []ledger.Entry
		for _, prefix := range []ledger.Key{"link", "pay/", "open/", "name/"} {
			some, err := w.store.Scan(t.Context(), prefix, "", 1000)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, some...)
		}
		return all
	}
	before := fmt.Sprint(entries())
	agents := []string{"Slackbot-LinkExpanding 1.0", "facebookexternalhit/1.1", "Twitterbot/1.0", "curl/8", "Mozilla/5.0"}
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			client := &http.Client{}
			for n := range 1000 {
				method := []string{"GET", "HEAD"}[n%2]
				q, err := http.NewRequestWithContext(context.Background(), method, w.url+"/x402/"+string(l.ID), nil)
				if err != nil {
					t.Error(err)
					return
				}
				q.Header.Set("User-Agent", agents[(i+n)%len(agents)])
				a, err := client.Do(q)
				if err != nil {
					t.Error(err)
					return
				}
				if a.Body.Close(); a.StatusCode != 402 {
					t.Errorf("%s: %d", method, a.StatusCode)
				}
			}
		})
	}
	all.Wait()
	if after := fmt.Sprint(entries()); after != before {
		t.Error("the ledger has changed")
	}
}

func TestOneOfManyPayersPaysALink(t *testing.T) {
	w := newWorld(t)
	l := w.bill(nil)
	var statuses [600]atomic.Int64
	var all sync.WaitGroup
	for range 50 {
		name, value := facilitatortest.Header(t, payment.V2, &l.Offers[0], w.sign(l, nil))
		all.Go(func() { statuses[w.ask("GET", "/x402/"+string(l.ID), "", name, value).status].Add(1) })
	}
	all.Wait()
	if statuses[200].Load() != 1 || statuses[409].Load() != 49 || w.earned() != 50_000 {
		t.Errorf("%d were told that they have paid, %d that it is too late; earned %d", statuses[200].Load(), statuses[409].Load(), w.earned())
	}
}

func TestAPaymentThatIsNotKnownYetIsNotAskedForAgain(t *testing.T) {
	w := newWorld(t)
	w.site.Deadline = time.Second
	l := w.bill(nil)
	w.chain.Pause()
	name, value := facilitatortest.Header(t, payment.V2, &l.Offers[0], w.sign(l, nil))
	a := w.ask("GET", "/x402/"+string(l.ID), "", name, value)
	var doc struct{ Status, Error, ReceiptURL string }
	a.read(t, &doc)
	if a.status != 503 || doc.Status != "PENDING" || !strings.Contains(doc.Error, "do not pay again") || doc.ReceiptURL == "" || a.header.Get("Retry-After") == "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if r := w.ask("GET", strings.TrimPrefix(doc.ReceiptURL, w.url), ""); r.status != 200 || !strings.Contains(r.body, `"status":"PENDING"`) {
		t.Errorf("the receipt meanwhile: %d %s", r.status, r.body)
	}
	other, second := facilitatortest.Header(t, payment.V2, &l.Offers[0], w.sign(l, nil))
	if b := w.ask("GET", "/x402/"+string(l.ID), "", other, second); b.status != 409 || !strings.Contains(b.body, "being_paid") {
		t.Errorf("another meanwhile: %d %s", b.status, b.body)
	}
	w.chain.Resume()
	w.site.Deadline = 20 * time.Second
	if b := w.ask("GET", "/x402/"+string(l.ID), "", name, value); b.status != 200 {
		t.Errorf("the same again: %d %s", b.status, b.body)
	}
	if w.earned() != 50_000 {
		t.Errorf("earned %d", w.earned())
	}
}

// lateTill takes money that nothing can be handed over for any more.
type lateTill struct {
	linkhttp.Collector
	book *ledger.Ledger
}

func (l lateTill) Collect(ctx context.Context, b *till.Bill) (ledger.Record, error) {
	r, err := l.Collector.Collect(ctx, b)
	if err != nil {
		return r, err
	}
	return l.book.Update(ctx, r.Key, func(r *ledger.Record) error {
		r.Delivery = ledger.Undeliverable
		return nil
	})
}

func TestWhoseMoneyCameTooLateHasAReceiptForTheRefund(t *testing.T) {
	w := newWorld(t)
	w.site.Till = lateTill{w.site.Till, w.book}
	l := w.bill(nil)
	name, value := facilitatortest.Header(t, payment.V2, &l.Offers[0], w.sign(l, nil))
	a := w.ask("GET", "/x402/"+string(l.ID), "", name, value)
	var doc struct {
		Error, ReceiptURL string
		RefundDue         bool
	}
	a.read(t, &doc)
	if a.status != 409 || !doc.RefundDue || !strings.Contains(doc.Error, "refund") || doc.ReceiptURL == "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if r := w.ask("GET", strings.TrimPrefix(doc.ReceiptURL, w.url), ""); r.status != 200 || !strings.Contains(r.body, `"status":"REFUND_DUE"`) {
		t.Errorf("its receipt: %d %s", r.status, r.body)
	}
	if w.status(l) != link.Active {
		t.Errorf("the link is %s", w.status(l))
	}
}

func TestEventsTellOfALinkUntilItIsPaid(t *testing.T) {
	w := newWorld(t)
	l := w.bill(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, "GET", w.url+"/x402/"+string(l.ID)+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	if a.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("headers %v", a.Header)
	}
	var got []string
	paid := make(chan struct{})
	for lines := bufio.NewScanner(a.Body); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var doc struct{ Status string }
		if err := json.Unmarshal([]byte(data), &doc); err != nil {
			t.Fatal(err)
		}
		if got = append(got, doc.Status); len(got) == 1 {
			name, value := facilitatortest.Header(t, payment.V2, &l.Offers[0], w.sign(l, nil))
			go func() { // ends with the answer
				defer close(paid)
				w.ask("GET", "/x402/"+string(l.ID), "", name, value)
			}()
		}
	}
	<-paid
	if len(got) < 2 || got[0] != "ACTIVE" || got[len(got)-1] != "PAID" {
		t.Errorf("told %v", got)
	}
}

func TestWhoeverWaitsIsToldWhenTheSiteEnds(t *testing.T) {
	w := newWorld(t)
	ending := make(chan struct{})
	w.site.Ending = ending
	l := w.bill(nil)
	time.AfterFunc(50*time.Millisecond, func() { close(ending) })
	if a := w.ask("GET", "/x402/"+string(l.ID)+"/events", ""); !strings.Contains(a.body, "ACTIVE") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestPeopleSeePagesAndProgramsSeeJSON(t *testing.T) {
	w := newWorld(t)
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	open, disabled, expired, paid := w.bill(nil), w.bill(nil), w.bill(func(x *link.Terms) { x.Life = time.Hour }), w.bill(nil)
	if _, err := w.links.Disable(t.Context(), "main", disabled.ID); err != nil {
		t.Fatal(err)
	}
	name, value := facilitatortest.Header(t, payment.V2, &paid.Offers[0], w.sign(paid, nil))
	var got struct{ Receipt struct{ URL string } }
	w.ask("GET", "/x402/"+string(paid.ID), "", name, value).read(t, &got)
	for _, c := range []struct {
		path   string
		ahead  int64
		accept string
		status int
		page   bool
		says   string
	}{
		{"/x402/" + string(open.ID), 0, browser, 402, true, "Website work"},
		{"/x402/" + string(open.ID), 0, "", 402, false, `"accepts":[{`},
		{"/x402/" + string(open.ID), 0, "*/*", 402, false, `"accepts":[{`},
		{"/x402/" + string(open.ID), 0, "application/json", 402, false, `"accepts":[{`},
		{"/x402/" + string(open.ID), 0, "application/json, text/html;q=0.5", 402, false, `"accepts":[{`},
		{"/x402/" + string(disabled.ID), 0, browser, 410, true, "withdrawn"},
		{"/x402/" + string(expired.ID), 3601, browser, 410, true, "expired"},
		{"/x402/" + string(paid.ID), 0, browser, 200, true, "has been paid"},
		{"/x402/" + string(paid.ID), 0, "", 402, false, "already_paid"},
		{"/x402/00000000000000000000000000", 0, browser, 404, true, "nothing to pay here"},
		{strings.TrimPrefix(got.Receipt.URL, w.url), 0, browser, 200, true, "Paid"},
		{strings.TrimPrefix(got.Receipt.URL, w.url), 0, "", 200, false, `"status":"PAID"`},
		{"/x402/" + string(open.ID) + "/receipt/00000000000000000000000000", 0, browser, 404, true, "nothing to pay here"},
	} {
		w.clock.Store(c.ahead)
		header := []string{}
		if c.accept != "" {
			header = []string{"Accept", c.accept}
		}
		a := w.ask("GET", c.path, "", header...)
		html := strings.HasPrefix(a.header.Get("Content-Type"), "text/html")
		if a.status != c.status || html != c.page || !strings.Contains(a.body, c.says) || !strings.Contains(a.header.Get("Vary"), "Accept") || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s for %q: %d %v %.300s", c.path, c.accept, a.status, a.header, a.body)
		}
		if html && !strings.Contains(a.header.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: no policy", c.path)
		}
	}
	w.clock.Store(0)
	page := w.ask("GET", "/x402/"+string(open.ID), "", "Accept", browser).body
	for _, asset := range []string{"style", "pay"} {
		_, rest, _ := strings.Cut(page, `="/x402/-/`+asset+".")
		at, _, _ := strings.Cut(rest, `"`)
		if a := w.ask("GET", "/x402/-/"+asset+"."+at, ""); a.status != 200 || !strings.Contains(a.header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %d %v", asset, a.status, a.header)
		}
	}
}
