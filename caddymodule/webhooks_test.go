package caddymodule

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/webhook"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

func TestAWebhookTellsThatALinkIsPaid(t *testing.T) {
	const hookSecret = "0123456789abcdef0123456789abcdef"
	t.Setenv("TEST_HOOK_SECRET", hookSecret)
	type told struct {
		header http.Header
		body   []byte
	}
	got := make(chan told, 10)
	fail := true
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if fail { // its first request; the queue makes the next one after that
			fail = false
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		got <- told{r.Header, body}
	}))
	t.Cleanup(receiver.Close)
	host := strings.TrimPrefix(receiver.URL, "http://")

	s := newSite(t)
	s.load(strings.ReplaceAll(strings.Replace(linkSite, "ledger badger DIR", `ledger badger DIR
		webhook shop `+receiver.URL+`/paid {
			secret {env.TEST_HOOK_SECRET}
			events link.paid
		}
		webhooks {
			insecure_http `+host+`
			insecure_allow 127.0.0.0/8
		}`, 1), "DIR", s.dir))
	big := map[string]string{}
	for i := range 50 { // more than an event can carry
		big[fmt.Sprint("key ", i)] = strings.Repeat("é", 500)
	}
	l := s.bill(func(x *link.Terms) { x.Metadata = big })
	payer := devchain.DeriveAccount("payer")
	name, value := facilitatortest.Header(t, payment.V2, &l.Offers[0], facilitatortest.Authorize(t, payer.Key, &l.Offers[0], time.Now().Unix(), 600))
	if a := s.get("/x402/"+string(l.ID), name, value); a.StatusCode != 200 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	select {
	case event := <-got:
		if err := webhook.Verify(hookSecret, event.header.Get("Tollgate-Signature"), event.body, time.Now()); err != nil {
			t.Error(err)
		}
		var doc struct {
			ID, Type string
			Data     struct {
				Link      struct{ ID, Status string }
				Payment   struct{ Payer, Transaction, Amount string }
				Truncated bool
			}
		}
		if err := json.Unmarshal(event.body, &doc); err != nil {
			t.Fatal(err)
		}
		d := doc.Data
		if doc.Type != link.EventPaid || d.Link.ID != string(l.ID) || d.Link.Status != "PAID" || d.Payment.Payer != payer.Address.Hex() || d.Payment.Transaction == "" || !d.Truncated {
			t.Errorf("told %s", event.body)
		}
	case <-time.After(60 * time.Second):
		t.Fatal("nothing was told")
	}
}

func TestWhatWebhooksWereToldCanBeListedAndToldAgain(t *testing.T) {
	t.Setenv("TEST_HOOK_SECRET", "0123456789abcdef0123456789abcdef")
	told := make(chan string, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { told <- r.Header.Get("Tollgate-Delivery") }))
	t.Cleanup(receiver.Close)
	host := strings.TrimPrefix(receiver.URL, "http://")
	o := openOffice(t, strings.Replace(linkSite, "ledger badger DIR", `ledger badger DIR
		webhook shop `+receiver.URL+`/paid {
			secret {env.TEST_HOOK_SECRET}
		}
		webhooks {
			insecure_http `+host+`
			insecure_allow 127.0.0.0/8
		}`, 1))
	l := o.bill(nil)
	payer := devchain.DeriveAccount("payer")
	name, value := facilitatortest.Header(t, payment.V2, &l.Offers[0], facilitatortest.Authorize(t, payer.Key, &l.Offers[0], time.Now().Unix(), 600))
	if a := o.get("/x402/"+string(l.ID), name, value); a.StatusCode != 200 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	await := func() string {
		t.Helper()
		select {
		case id := <-told:
			return id
		case <-time.After(60 * time.Second):
			t.Fatal("nothing was told")
			return ""
		}
	}
	id := await()
	var list deliveryList
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out, _, err := o.run(cmdWebhook, false, "", map[string]string{"state": "delivered", "limit": "10"}, "list")
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Deliveries) == 1 || time.Now().After(deadline) {
			break
		}
	}
	if len(list.Deliveries) != 1 || list.Deliveries[0].Event != id || list.Deliveries[0].Type != link.EventPaid || list.Deliveries[0].LastStatus != 200 {
		t.Fatalf("listed %v", list)
	}
	if out, _, err := o.run(cmdWebhook, true, "", map[string]string{"state": "", "limit": "10"}, "list"); err != nil || !strings.Contains(out, id) || !strings.Contains(out, "shop") {
		t.Errorf("%q, %v", out, err)
	}
	if out, _, err := o.run(cmdWebhook, true, "", nil, "resend", id, "shop"); err != nil || !strings.Contains(out, "again") {
		t.Errorf("%q, %v", out, err)
	}
	if again := await(); again != id {
		t.Errorf("told %s, and then %s", id, again)
	}
	if _, _, err := o.run(cmdWebhook, true, "", nil, "resend", "00000000000000000000000000"); err == nil || !strings.Contains(err.Error(), "tollgate webhook list") {
		t.Errorf("an event that is not there: %v", err)
	}
	if _, _, err := o.run(cmdWebhook, true, "", nil, "send"); err == nil {
		t.Error("another word was taken")
	}
	if out, _, err := o.run(cmdLedger, false, "", nil, "check"); err != nil || !strings.Contains(out, `"findings":[]`) {
		t.Errorf("the ledger: %s, %v", out, err)
	}
}
