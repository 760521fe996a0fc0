package caddymodule

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
	"github.com/tollgate402/tollgate/payment/pass"
)

const linkSite = `{
	admin off
	skip_install_trust
	x402 {
		pay_to 0x209693Bc6afc0C5328bA36FaF03C514EF312287C
		network base-sepolia
		facilitator fake
		ledger badger DIR
	}
}
http://ADDRESS {
	x402_links {
		redirects shop.example.com
	}
	respond "not a link" 404
}
`

// bill makes a link at the running site.
func (s *site) bill(change func(*link.Terms)) *link.Link {
	s.t.Helper()
	running, err := caddy.ActiveContext().App("x402")
	if err != nil {
		s.t.Fatal(err)
	}
	app := running.(*App)
	e := app.acquire()
	if e == nil {
		s.t.Fatal("the app does not run")
	}
	defer e.release()
	d := e.desks[app.links[0]]
	terms := link.Terms{Merchant: "main", Amount: "0.05", Description: "Website work"}
	if terms.Offers, err = d.settings.offers(app, terms.Amount); err != nil {
		s.t.Fatal(err)
	}
	if change != nil {
		change(&terms)
	}
	if terms, err = terms.Check(d.settings.Redirects); err != nil {
		s.t.Fatal(err)
	}
	l, err := d.store.Create(s.t.Context(), terms, "")
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

func TestLinksAreServedAndOutliveAReload(t *testing.T) {
	s := newSite(t)
	source := strings.ReplaceAll(linkSite, "DIR", s.dir)
	s.load(source)
	l := s.bill(nil)
	if a := s.get("/x402"); a.StatusCode != 404 {
		t.Errorf("the path above the links: %d", a.StatusCode)
	}
	if a := s.get("/other"); a.StatusCode != 404 {
		t.Errorf("another path: %d", a.StatusCode)
	}
	path := "/x402/" + string(l.ID)
	a := s.get(path)
	required, err := payment.DecodeRequired(a.Header.Get(payment.HeaderRequired))
	if a.StatusCode != 402 || err != nil || required.Offers[0].Timeout != 5*time.Minute {
		t.Fatalf("%d, %v, %v", a.StatusCode, required, err)
	}

	// Whoever waits for a change does not hold up the end of the engine.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.address+path+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	events, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	told := bufio.NewScanner(events.Body)
	if !told.Scan() || told.Text() != "event: status" {
		t.Fatalf("told %q", told.Text())
	}
	s.load(strings.Replace(source, "redirects", "title Shop\n\t\tredirects", 1))
	for told.Scan() {
		continue // until the server ends it
	}

	payer := devchain.DeriveAccount("payer")
	name, value := facilitatortest.Header(t, payment.V2, &l.Offers[0], facilitatortest.Authorize(t, payer.Key, &l.Offers[0], time.Now().Unix(), 600))
	q, err = http.NewRequestWithContext(ctx, "GET", "http://"+s.address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set(name, value)
	paid, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	paid.Body.Close()
	if paid.StatusCode != 200 {
		t.Errorf("paid: %d", paid.StatusCode)
	}
	if a := s.get(path); a.StatusCode != 402 || a.Header.Get(payment.HeaderRequired) != "" {
		t.Errorf("afterwards: %d", a.StatusCode)
	}
}

func TestALinkOpensAPricedRouteOnce(t *testing.T) {
	t.Setenv("TEST_PASS_SECRET", strings.Repeat("secret", 6))
	s := newSite(t)
	s.load(strings.ReplaceAll(strings.Replace(strings.Replace(linkSite, "ledger badger DIR", "ledger badger DIR\n\t\tpass_secret {env.TEST_PASS_SECRET}", 1), `respond "not a link" 404`, `x402 /reports/* $5 {
		links
	}
	x402 /other/* $5
	respond /reports/broken "broken" 500
	respond "the report" 200`, 1), "DIR", s.dir))
	pay := func(opens string) string {
		t.Helper()
		l := s.bill(func(x *link.Terms) { x.Opens = opens })
		payer := devchain.DeriveAccount("payer")
		name, value := facilitatortest.Header(t, payment.V2, &l.Offers[0], facilitatortest.Authorize(t, payer.Key, &l.Offers[0], time.Now().Unix(), 600))
		a := s.get("/x402/"+string(l.ID), name, value)
		var doc struct {
			Receipt struct {
				Opens struct{ URL, Header, Token string }
			}
		}
		if err := json.Unmarshal([]byte(a.body), &doc); err != nil || a.StatusCode != 200 || doc.Receipt.Opens.Header != pass.Header || doc.Receipt.Opens.URL != "http://"+s.address+opens {
			t.Fatalf("%d, %v: %s", a.StatusCode, err, a.body)
		}
		return doc.Receipt.Opens.Token
	}
	token, broken, foreign := pay("/reports/7?full=1"), pay("/reports/broken"), pay("/other/7")
	for _, c := range []struct {
		path, token string
		status      int
	}{
		{"/reports/7?full=1", "", 402},
		{"/reports/8?full=1", token, 402},
		{"/reports/7", token, 402},
		{"/reports/7?full=1", broken, 402},
		{"/other/7", foreign, 402}, // the route takes no tokens
		{"/reports/7?full=1", token[:len(token)-2] + "AA", 402},
		{"/reports/7?full=1", "x", 400},
		{"/reports/7?full=1", token, 200},
		{"/reports/7?full=1", token, 402},
		{"/reports/broken", broken, 500},
		{"/reports/broken", broken, 500}, // it did not work, so it may be tried again
	} {
		header := []string{}
		if c.token != "" {
			header = []string{pass.Header, c.token}
		}
		if a := s.get(c.path, header...); a.StatusCode != c.status || strings.Contains(a.body, "the report") != (c.status == 200) {
			t.Errorf("%s with %.8s: %d %s", c.path, c.token, a.StatusCode, a.body)
		}
	}
}

func TestTheGuideToLinksHoldsTrue(t *testing.T) {
	t.Setenv("PAY_TO", seller)
	t.Setenv("SHOP_KEY", strings.Repeat("key", 8))
	t.Setenv("X402_PASS_SECRET", strings.Repeat("secret", 6))
	checkExamples(t, "../docs/links.md", 2)
}

func TestMerchantsComeInByKeyAndTheKeyIsNotLogged(t *testing.T) {
	const key = "a key of a shop that is long"
	t.Setenv("TEST_SHOP_KEY", key)
	s := newSite(t)
	log := t.TempDir() + "/access.log"
	s.load(strings.ReplaceAll(strings.Replace(linkSite, "x402_links {", "log {\n\t\toutput file "+log+"\n\t}\n\tx402_links {\n\t\tmerchant shop {\n\t\t\tkey {env.TEST_SHOP_KEY}\n\t\t}", 1), "DIR", s.dir))
	order := func(header ...string) answer {
		t.Helper()
		q := s.request("POST", "/v1/payment-links", append(header, "Content-Type", "application/json")...)
		q.Body = io.NopCloser(strings.NewReader(`{"amount": 12.5, "description": "Website work"}`))
		return s.do(q)
	}
	if a := order(); a.StatusCode != 401 {
		t.Errorf("without a key: %d %s", a.StatusCode, a.body)
	}
	var made struct{ ID, URL, Status string }
	a := order("X-API-Key", key)
	if err := json.Unmarshal([]byte(a.body), &made); err != nil || a.StatusCode != 201 || made.Status != "ACTIVE" {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	if a := order("Authorization", "Bearer "+key); a.StatusCode != 201 {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	if a := s.get(strings.TrimPrefix(made.URL, "http://"+s.address)); a.StatusCode != 402 {
		t.Errorf("the link: %d %s", a.StatusCode, a.body)
	}
	if doc, err := os.ReadFile(log); err != nil || strings.Contains(string(doc), key) {
		t.Errorf("the log: %v\n%s", err, doc)
	}
}
