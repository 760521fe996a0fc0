package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// require plays GET of a link: every member that is documented.
func (w *world) require(ctx context.Context, t *table) error {
	b, err := w.newBill(ctx)
	if err != nil {
		return err
	}
	a, err := w.ask(ctx, http.MethodGet, b.url, "")
	if err != nil {
		return err
	}
	var doc struct {
		Accepts []map[string]json.RawMessage `json:"accepts"`
	}
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil || len(doc.Accepts) != 1 {
		return fmt.Errorf("GET %s: %s", b.url, a)
	}
	t.add("GET a link", "402 application/json, no-store", fmt.Sprintf("%d %s, %s", a.status, a.header.Get("Content-Type"), a.header.Get("Cache-Control")))
	for name, want := range inOrder(
		"x402Version", `1`,
		"error", `null`,
		"status", `"ACTIVE"`,
	) {
		t.add("its member "+name, want, string(a.object()[name]))
	}
	text := strconv.Quote
	for name, want := range inOrder(
		"amount", text(strconv.Itoa(price)),
		"currency", `"USDC"`,
		"network", `"base-sepolia"`,
		"recipient", text(w.PayTo),
		"verifyingContract", text(w.Token),
		"chainId", `84532`,
		"aiUrl", text(b.url),
		"name", `"USDC"`,
		"version", `"2"`,
		"scheme", `"exact"`,
		"maxAmountRequired", text(strconv.Itoa(price)),
		"resource", text(b.url),
		"description", text(work),
		"mimeType", `"application/json"`,
		"payTo", text(w.PayTo),
		"maxTimeoutSeconds", `300`,
		"asset", text(w.Token),
		"extra", `{"name":"USDC","version":"2"}`,
	) {
		t.add("accepts[0]."+name, want, string(doc.Accepts[0][name]))
	}
	transfer, err := w.sign(b.accept, "payer", nil)
	if err != nil {
		return err
	}
	_, err = transfer.headerV2(a.header.Get("Payment-Required"))
	t.add("its header PAYMENT-REQUIRED", "an offer", orError("an offer", err))
	return nil
}

// inOrder yields names with values, given by turns, in their order.
func inOrder(list ...string) func(yield func(name, value string) bool) {
	return func(yield func(name, value string) bool) {
		for i := 0; i+1 < len(list); i += 2 {
			if !yield(list[i], list[i+1]) {
				return
			}
		}
	}
}

func orError(text string, err error) string {
	if err != nil {
		return err.Error()
	}
	return text
}

// payInEveryForm plays POST <link>/pay with numbers as numbers and as texts,
// and the signature in one part and in three.
func (w *world) payInEveryForm(ctx context.Context, t *table) error {
	for _, form := range []struct {
		name         string
		texts, parts bool
	}{
		{"numbers, one signature", false, false},
		{"texts, one signature", true, false},
		{"numbers, v, r and s", false, true},
		{"texts, v, r and s", true, true},
	} {
		b, err := w.newBill(ctx)
		if err != nil {
			return err
		}
		transfer, err := w.sign(b.accept, "payer", func(t *transfer) { t.numbersAsText, t.inThreeParts = form.texts, form.parts })
		if err != nil {
			return err
		}
		got, err := w.payOld(ctx, b, transfer.old("base-sepolia"), "")
		if err != nil {
			return err
		}
		t.add("pay: "+form.name, accepted, got)
	}
	return nil
}

// stranger is the private key of an account that has nothing.
const stranger = "0x00000000000000000000000000000000000000000000000000000000000face5"

// refuse plays POST <link>/pay with what must not pay the link, and at the end
// what must.
func (w *world) refuse(ctx context.Context, t *table) error {
	b, err := w.newBill(ctx)
	if err != nil {
		return err
	}
	good, err := w.sign(b.accept, "payer", nil)
	if err != nil {
		return err
	}
	body := good.old("base-sepolia")
	now := time.Now().Unix()
	for _, c := range []struct {
		name   string
		change func(*transfer) // before it is signed
		status int
		says   string
	}{
		{"less than the amount", func(t *transfer) { t.value-- }, 403, "amount"},
		{"more than the amount", func(t *transfer) { t.value++ }, 403, "amount"},
		{"nothing", func(t *transfer) { t.value = 0 }, 403, "amount"},
		{"another recipient", func(t *transfer) { t.to = t.from }, 403, "recipient"},
		{"too long a window", func(t *transfer) { t.before = now + 7*3600 }, 400, "validBefore"},
		{"a window that is over", func(t *transfer) { t.before = now - 1 }, 400, "valid"},
		{"a window of tomorrow", func(t *transfer) { t.after, t.before = now+3600, now+7200 }, 400, "valid"},
		{"signed for another chain", func(t *transfer) { t.chain = 8453 }, 400, "signature"},
		{"signed for another token", func(t *transfer) { t.contract = t.to }, 400, "signature"},
		{"signed by somebody else", func(t *transfer) { t.from = w.PayTo }, 400, "signature"},
	} {
		transfer, err := w.sign(b.accept, "payer", c.change)
		if err != nil {
			return err
		}
		got, err := w.payOld(ctx, b, transfer.old("base-sepolia"), c.says)
		if err != nil {
			return err
		}
		t.add("pay: "+c.name, strconv.Itoa(c.status)+refused, got)
	}
	poor, err := w.sign(b.accept, stranger, nil)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name, body string
		status     int
		says       string
	}{
		{"by an account that has nothing", poor.old("base-sepolia"), 400, "balance"},
		{"on another network", good.old("base"), 403, "base"},
		{"on no network", good.old("nowhere"), 400, "network"},
		{"a signature with one digit wrong", oneDigitWrong(body), 400, "signature"},
		{"a short signature", strings.Replace(body, `"signature":"0x`+digits(good, 2), `"signature":"0x`, 1), 400, "signature"},
		{"no signature", strings.Replace(body, `"signature"`, `"data"`, 1), 400, "signature"},
		{"a short nonce", strings.Replace(body, good.nonce, good.nonce[:64], 1), 400, "nonce"},
		{"no payer", strings.Replace(body, good.from, "", 1), 400, "from"},
		{"a fraction", strings.Replace(body, `"value":50000`, `"value":50000.0`, 1), 400, "value"},
		{"an exponent", strings.Replace(body, `"value":50000`, `"value":5e4`, 1), 400, "value"},
		{"a negative value", strings.Replace(body, `"value":50000`, `"value":-50000`, 1), 400, "value"},
		{"two values", strings.Replace(body, `"value":50000`, `"value":1,"value":50000`, 1), 400, "value"},
		{"no payload", `{"network":"base-sepolia"}`, 400, "payload"},
		{"no network", strings.Replace(body, `"network":"base-sepolia",`, "", 1), 400, "network"},
		{"a list", `[` + body + `]`, 400, ""},
		{"no JSON", "hello", 400, ""},
		{"no body", "", 400, ""},
		{"half a body", body[:len(body)/2], 400, ""},
	} {
		got, err := w.payOld(ctx, b, c.body, c.says)
		if err != nil {
			return err
		}
		t.add("pay: "+c.name, strconv.Itoa(c.status)+refused, got)
	}
	got, err := w.payOld(ctx, b, body, "")
	if err != nil {
		return err
	}
	t.add("pay: after all of these, the good one", accepted, got)
	return nil
}

// digits returns the first n digits of a signature.
func digits(t *transfer, n int) string { return fmt.Sprintf("%x", t.signature)[:n] }

// oneDigitWrong changes a digit in the middle of the signature.
func oneDigitWrong(body string) string {
	at := strings.Index(body, `"signature":"0x`) + len(`"signature":"0x`) + 20
	other := "0"
	if body[at] == '0' {
		other = "1"
	}
	return body[:at] + other + body[at+1:]
}

// spendTwice plays what must be paid once only.
func (w *world) spendTwice(ctx context.Context, t *table) error {
	b, err := w.newBill(ctx)
	if err != nil {
		return err
	}
	other, err := w.newBill(ctx)
	if err != nil {
		return err
	}
	first, err := w.sign(b.accept, "payer", nil)
	if err != nil {
		return err
	}
	second, err := w.sign(b.accept, "payer2", nil)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name           string
		bill           *bill
		payment        *transfer
		expected, says string
	}{
		{"a link", b, first, accepted, ""},
		{"the same link with the same nonce", b, first, "409" + refused, "nonce"},
		{"another link with the same nonce", other, first, "409" + refused, "nonce"},
		{"a paid link with another payment", b, second, "409" + refused, "paid"},
		{"the other link with the other payment", other, second, accepted, ""},
	} {
		got, err := w.payOld(ctx, c.bill, c.payment.old("base-sepolia"), c.says)
		if err != nil {
			return err
		}
		t.add("pay: "+c.name, c.expected, got)
	}
	return w.race(ctx, t)
}

// racers is how many pay one link at once.
const racers = 20

func (w *world) race(ctx context.Context, t *table) error {
	b, err := w.newBill(ctx)
	if err != nil {
		return err
	}
	var bodies []string
	for range racers {
		transfer, err := w.sign(b.accept, "payer", nil)
		if err != nil {
			return err
		}
		bodies = append(bodies, transfer.old("base-sepolia"))
	}
	var (
		all     sync.WaitGroup
		mu      sync.Mutex
		answers = map[string]int{} // guarded by mu
	)
	moved, err := w.moved(ctx, func() error {
		for _, body := range bodies {
			all.Go(func() {
				a, err := w.ask(ctx, http.MethodPost, b.url+"/pay", body)
				said := orError("", err)
				if err == nil {
					said = fmt.Sprintf("%d %s", a.status, oldWords(a, ""))
				}
				mu.Lock()
				defer mu.Unlock()
				answers[said]++
			})
		}
		all.Wait()
		return nil
	})
	if err != nil {
		return err
	}
	t.add(fmt.Sprintf("pay: a link by %d at once", racers), fmt.Sprintf("map[200 success:1 409 refused:%d], moved 50000", racers-1), fmt.Sprintf("%v, moved %d", answers, moved))
	return nil
}

// standUnpayable plays links that cannot be paid, for programs and for people.
func (w *world) standUnpayable(ctx context.Context, t *table) error {
	open, err := w.newBill(ctx)
	if err != nil {
		return err
	}
	paid, err := w.newBill(ctx)
	if err != nil {
		return err
	}
	cancelled, err := w.newBill(ctx)
	if err != nil {
		return err
	}
	transfer, err := w.sign(paid.accept, "payer", nil)
	if err != nil {
		return err
	}
	if got, err := w.payOld(ctx, paid, transfer.old("base-sepolia"), ""); err != nil || got != accepted {
		return fmt.Errorf("paying a link: %s, %w", got, err)
	}
	if a, err := w.asMerchant(ctx, http.MethodPost, "/"+cancelled.id+"/cancel", ""); err != nil || a.status != http.StatusOK {
		return fmt.Errorf("cancelling a link: %v, %w", a, err)
	}
	unknown := &bill{url: open.url[:len(open.url)-len(open.id)] + strings.Repeat("0", len(open.id)), accept: open.accept}

	for _, c := range []struct {
		name     string
		bill     *bill
		expected string
	}{
		{"a paid link", paid, `402 accepts [], error "already_paid"`},
		{"a cancelled link", cancelled, `402 accepts [], error "disabled"`},
		{"an unknown link", unknown, `404 accepts [], error "not_found"`},
	} {
		a, err := w.ask(ctx, http.MethodGet, c.bill.url, "")
		if err != nil {
			return err
		}
		t.add("GET "+c.name, c.expected, fmt.Sprintf("%d accepts %s, error %s", a.status, a.object()["accepts"], a.object()["error"]))
	}
	for _, c := range []struct {
		name     string
		bill     *bill
		expected string
		says     string
	}{
		{"a cancelled link", cancelled, "403" + refused, "disabled"},
		{"an unknown link", unknown, "404" + refused, "no such"},
	} {
		if transfer, err = w.sign(c.bill.accept, "payer", nil); err != nil {
			return err
		}
		got, err := w.payOld(ctx, c.bill, transfer.old("base-sepolia"), c.says)
		if err != nil {
			return err
		}
		t.add("pay: "+c.name, c.expected, got)
	}
	a, err := w.ask(ctx, http.MethodGet, open.url+"/pay", "")
	if err != nil {
		return err
	}
	t.add("pay: by GET", "405 allowing POST", fmt.Sprintf("%d allowing %s", a.status, a.header.Get("Allow")))
	for _, c := range []struct {
		name   string
		bill   *bill
		status int
	}{{"a link", open, 402}, {"a paid link", paid, 200}, {"a cancelled link", cancelled, 410}, {"an unknown link", unknown, 404}} {
		a, err := w.ask(ctx, http.MethodGet, c.bill.url, "", "Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
		if err != nil {
			return err
		}
		t.add("GET "+c.name+" in a browser", fmt.Sprintf("%d text/html; charset=utf-8", c.status), fmt.Sprintf("%d %s", a.status, a.header.Get("Content-Type")))
	}
	return nil
}
