package caddymodule

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/ethereum/go-ethereum/common"
	"github.com/spf13/cobra"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/linkhttp"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

// A counter is an admin API with payment links, and somebody at a terminal.
type counter struct {
	t     *testing.T
	admin string // address
	links *linkhttp.Merchant
	book  *ledger.Ledger
}

func newCounter(t *testing.T) *counter {
	t.Helper()
	entries := ledger.NewMemory()
	c := &counter{t: t, book: ledger.New(entries, "counter", time.Now)}
	store := &link.Store{Entries: entries, Payments: c.book, Now: time.Now, Random: rand.Reader}
	c.links = &linkhttp.Merchant{
		Links: store, Site: &linkhttp.Site{Links: store, Book: c.book, Base: "/x402", Origin: "https://pay.example"}, Redirects: []string{"shop.example"},
		Offers: func(amount string) ([]payment.Offer, error) {
			o := facilitatortest.Offer(t, 1, common.HexToAddress(seller))
			var err error
			o.Amount, err = payment.ParsePrice(amount+" USDC", o.Amount.Token())
			return []payment.Offer{o}, err
		},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := serveLinks(c.links, w, r, strings.TrimPrefix(r.URL.Path, "/x402/links"))
		if err == nil {
			return
		}
		var api caddy.APIError
		if !errors.As(err, &api) {
			t.Errorf("%v is no error of the admin API", err)
		}
		w.WriteHeader(api.HTTPStatus)
		if err := json.NewEncoder(w).Encode(map[string]string{"error": api.Err.Error()}); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	c.admin = strings.TrimPrefix(server.URL, "http://")
	return c
}

// run runs a command by its line, as cobra reads it.
func (c *counter) run(table bool, line ...string) (out, errs string, err error) {
	c.t.Helper()
	cmd := &cobra.Command{Use: "link"}
	caddycmd.Commands()["link"].CobraFunc(cmd)
	found, words, err := cmd.Find(line)
	if err != nil {
		c.t.Fatal(err)
	}
	if found != cmd {
		words = append([]string{"--address", c.admin}, words...) // of two the last one counts
	}
	if err := found.ParseFlags(words); err != nil {
		return "", "", err
	}
	command := map[string]func(*console) error{
		"link": cmdLink, "create": cmdLinkCreate, "list": cmdLinkList, "show": cmdLinkShow, "disable": cmdLinkDisable, "stats": cmdLinkStats,
	}[found.Name()]
	fs := found.Flags()
	var stdout, stderr bytes.Buffer
	err = command(&console{
		words: fs.Args(), in: strings.NewReader(""), out: &stdout, errs: &stderr, asTable: table,
		flag: func(name string) string { return fs.Lookup(name).Value.String() },
		list: func(name string) []string {
			values, err := fs.GetStringArray(name)
			if err != nil {
				c.t.Error(err)
			}
			return values
		},
	})
	return stdout.String(), stderr.String(), err
}

func (c *counter) must(table bool, line ...string) (out, errs string) {
	c.t.Helper()
	out, errs, err := c.run(table, line...)
	if err != nil {
		c.t.Fatalf("%v: %v", line, err)
	}
	return out, errs
}

// pay has a payment, which nothing has signed, pay a link.
func (c *counter) pay(id link.ID, n byte, states ...ledger.State) {
	c.t.Helper()
	ctx := c.t.Context()
	l, err := c.links.Links.Get(ctx, id)
	if err != nil {
		c.t.Fatal(err)
	}
	k := payment.Key{n}
	r := ledger.Record{Key: k, State: ledger.Reserved, Mode: link.Mode, Network: l.Offers[0].Network(), Payer: seller, Charge: l.Offers[0].Amount.Units(), Request: []byte("{}")}
	if _, err := c.book.Claim(ctx, r, time.Hour, c.links.Links.Claim(id, &l.Offers[0], nil)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.book.Update(ctx, k, func(r *ledger.Record) error {
		for _, s := range states {
			if err := r.To(s); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		c.t.Fatal(err)
	}
	if _, _, err := c.links.Links.Resolve(ctx, k); err != nil {
		c.t.Fatal(err)
	}
}

func TestLinksAreMadeFromTheTerminal(t *testing.T) {
	c := newCounter(t)
	out, errs := c.must(true, "create", "50", "--description", "Website work")
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	url := lines[len(lines)-1]
	if !strings.HasPrefix(url, "https://pay.example/x402/") || !strings.Contains(out, "50 USDC") || !strings.Contains(out, "base-sepolia") || errs != "" {
		t.Errorf("%s%s", out, errs)
	}
	if _, err := linkID(url); err != nil {
		t.Error(err)
	}
	quiet, _ := c.must(false, "create", "50", "-d", "Website work", "--quiet")
	if strings.Count(quiet, "\n") != 1 || !strings.HasPrefix(quiet, "https://pay.example/x402/") {
		t.Errorf("%q", quiet)
	}
	doc, _ := c.must(false, "create", "12.50", "-d", "Ticket", "--expires", "2d", "--uses", "3", "--redirect", "https://shop.example/thanks", "--message", "Thank you", "--opens", "/reports/7",
		"--metadata", "invoice=7", "--metadata", "note=a=b, c", "--field", "name:Your name: first, last:required", "--field", "order:Order")
	var l struct {
		linkView
		CreatedAt      time.Time
		SuccessMessage string
		SuccessURL     string
		Opens          string
		Metadata       map[string]string
		CustomFields   []linkField
	}
	mustJSON(t, doc, &l)
	if l.Amount != "12.50" || l.MaxUses != 3 || l.ExpiresAt.Sub(l.CreatedAt) != 48*time.Hour || l.SuccessMessage != "Thank you" || l.SuccessURL != "https://shop.example/thanks" || l.Opens != "/reports/7" ||
		len(l.Metadata) != 2 || l.Metadata["note"] != "a=b, c" || !slices.Equal(l.CustomFields, []linkField{{"name", "Your name: first, last", true}, {"order", "Order", false}}) {
		t.Errorf("%s", doc)
	}
	once := []string{"create", "50", "-d", "Invoice 7", "--idempotency-key", "invoice-7", "--quiet"}
	first, _ := c.must(true, once...)
	if again, _ := c.must(true, once...); again != first {
		t.Errorf("%s and %s", first, again)
	}
	theirs, _ := c.must(true, append(once, "--merchant", "other")...)
	if theirs == first {
		t.Error("another merchant has the same link")
	}
	once[1] = "51"
	if _, _, err := c.run(true, once...); err == nil || !strings.HasPrefix(err.Error(), "this Idempotency-Key has made a link with other terms") {
		t.Errorf("%v", err)
	}
}

func TestErrorsAboutLinksSayWhatToDo(t *testing.T) {
	c := newCounter(t)
	made, _ := c.must(true, "create", "1", "-d", "x", "--quiet")
	paid, err := linkID(strings.TrimSpace(made))
	if err != nil {
		t.Fatal(err)
	}
	c.pay(paid, 1, ledger.Settled)
	for _, bad := range []struct {
		says string
		line []string
	}{
		{"link create | list", nil},
		{"link create <amount>", []string{"create"}},
		{"--description", []string{"create", "50"}},
		{"the amount must be a decimal number", []string{"create", "fifty", "-d", "x"}},
		{"the amount must have at most 6 decimals", []string{"create", "0.0000001", "-d", "x"}},
		{"the amount must be at most 1000000", []string{"create", "1000001", "-d", "x"}},
		{"from 1h to 90d", []string{"create", "1", "-d", "x", "--expires", "90m"}},
		{"from 1h to 90d", []string{"create", "1", "-d", "x", "--expires", "91d"}},
		{"from 1h to 90d", []string{"create", "1", "-d", "x", "--expires", "soon"}},
		{"--uses must be a whole number", []string{"create", "1", "-d", "x", "--uses", "0"}},
		{"key=value", []string{"create", "1", "-d", "x", "--metadata", "invoice"}},
		{"each key once", []string{"create", "1", "-d", "x", "--metadata", "a=1", "--metadata", "a=2"}},
		{"name:Label", []string{"create", "1", "-d", "x", "--field", "order"}},
		{"--field have a name", []string{"create", "1", "-d", "x", "--field", "Order No:Order"}},
		{"redirects evil.example", []string{"create", "1", "-d", "x", "--redirect", "https://evil.example/"}},
		{"--merchant must be of", []string{"create", "1", "-d", "x", "--merchant", "a/b"}},
		{"--merchant must have", []string{"list", "--merchant", ""}},
		{"--limit must be 1 to 100", []string{"list", "--limit", "0"}},
		{"--status must be ACTIVE", []string{"list", "--status", "gone"}},
		{"--cursor must be", []string{"list", "--cursor", "%"}},
		{"link list [", []string{"list", "all"}},
		{"tollgate link list", []string{"show", "short"}},
		{"tollgate link list", []string{"show", "00000000000000000000000000"}},
		{"merchant other has no such link", []string{"show", string(paid), "--merchant", "other"}},
		{"merchant other has no such link", []string{"disable", string(paid), "--merchant", "other"}},
		{"link show <id", []string{"show"}},
		{"link disable <id", []string{"disable"}},
		{"refund the payment", []string{"disable", string(paid)}},
		{"link stats", []string{"stats", "all"}},
		{"--address", []string{"stats", "--address", "127.0.0.1:1"}},
	} {
		if out, _, err := c.run(true, bad.line...); err == nil || !strings.Contains(err.Error(), bad.says) {
			t.Errorf("%v: %v %s", bad.line, err, out)
		}
	}
	c.links.Site.Origin = ""
	if _, _, err := c.run(true, "create", "1", "-d", "x"); err == nil || !strings.Contains(err.Error(), "add \"origin https://pay.example.com\" to x402_links") {
		t.Errorf("without an origin: %v", err)
	}
}

func TestOperatorsSeeLinksAndEndThem(t *testing.T) {
	c := newCounter(t)
	var urls []string
	for _, d := range []string{"Website\nwork", strings.Repeat("long ", 30), "held", "paid"} {
		url, _ := c.must(true, "create", "12.5", "-d", d, "--quiet")
		urls = append(urls, strings.TrimSpace(url))
	}
	id := func(i int) link.ID {
		id, err := linkID(urls[i])
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	c.pay(id(2), 2)
	c.pay(id(3), 3, ledger.Settled)
	table, errs := c.must(true, "list")
	if strings.Count(table, "\n") != 5 || !strings.HasPrefix(table, "ID ") || !strings.Contains(table, "Website work") || !strings.Contains(table, "…") || !strings.Contains(table, "12.5 USDC") || errs != "4 links in all, 2 active\n" {
		t.Errorf("%s%s", table, errs)
	}
	if table, _ := c.must(true, "list", "--status", "paid"); strings.Count(table, "\n") != 2 || !strings.Contains(table, string(id(3))) || !strings.Contains(table, "1/1") {
		t.Errorf("%s", table)
	}
	page, errs := c.must(true, "list", "--limit", "3")
	_, cursor, more := strings.Cut(errs, "--cursor ")
	if strings.Count(page, "\n") != 4 || !more {
		t.Fatalf("%s%s", page, errs)
	}
	if rest, _ := c.must(true, "list", "--limit", "3", "--cursor", strings.TrimSpace(cursor)); strings.Count(rest, "\n") != 2 {
		t.Errorf("%s", rest)
	}
	doc, _ := c.must(false, "list")
	var list struct{ Links []linkView }
	if mustJSON(t, doc, &list); len(list.Links) != 4 {
		t.Errorf("%s", doc)
	}
	shown, errs := c.must(true, "show", urls[3])
	if !strings.Contains(shown, "PAID") || !strings.Contains(shown, urls[3]+"/receipt/") || strings.Contains(shown, "null") || errs != "" {
		t.Errorf("%s%s", shown, errs)
	}
	if _, errs := c.must(true, "show", urls[0]); !strings.Contains(errs, "no payments") {
		t.Errorf("%s", errs)
	}
	one, _ := c.must(false, "show", strings.ToUpper(string(id(3))))
	var l linkView
	if mustJSON(t, one, &l); l.URL != urls[3] || l.Status != link.Paid {
		t.Errorf("%s", one)
	}
	var payments struct{ Payments []struct{ Status string } }
	of, _ := c.must(false, "show", urls[3], "--payments")
	if mustJSON(t, of, &payments); len(payments.Payments) != 1 || payments.Payments[0].Status != "PAID" {
		t.Errorf("%s", of)
	}
	for range 2 {
		if out, errs := c.must(true, "disable", urls[0]); out != string(id(0))+" is DISABLED\n" || errs != "" {
			t.Errorf("%s%s", out, errs)
		}
	}
	if out, errs := c.must(true, "disable", urls[2]); out != string(id(2))+" is PENDING\n" || !strings.Contains(errs, "may still settle") {
		t.Errorf("%s%s", out, errs)
	}
	if doc, _ := c.must(false, "disable", urls[1]); !json.Valid([]byte(doc)) {
		t.Errorf("%s", doc)
	}
	if table, _ := c.must(true, "stats"); !strings.Contains(table, "12.5 USDC") || !strings.Contains(table, "base-sepolia") || !strings.Contains(table, facilitatortest.USDC(t).Address) {
		t.Errorf("%s", table)
	}
	if doc, _ := c.must(false, "stats", "--merchant", "nobody"); !strings.Contains(doc, `"totalLinks":0`) {
		t.Errorf("%s", doc)
	}
}

func TestLinksCannotBeMadeByAWebPage(t *testing.T) {
	c := newCounter(t)
	for name, bad := range map[string]struct {
		method, path, media, body string
		status                    int
	}{
		"a form":   {"POST", "", "application/x-www-form-urlencoded", `{"amount":1,"description":"x"}`, 415},
		"text":     {"POST", "", "text/plain", `{"amount":1,"description":"x"}`, 415},
		"no type":  {"POST", "/00000000000000000000000000/cancel", "", "", 415},
		"no body":  {"POST", "", "application/json", "", 400},
		"a method": {"PUT", "", "application/json", "", 405},
		"no path":  {"GET", "/a/b/c", "", "", 404},
	} {
		q, err := http.NewRequest(bad.method, "http://"+c.admin+"/x402/links"+bad.path, strings.NewReader(bad.body))
		if err != nil {
			t.Fatal(err)
		}
		if bad.media != "" {
			q.Header.Set("Content-Type", bad.media)
		}
		a, err := once(q)
		if err != nil || a.StatusCode != bad.status {
			t.Errorf("%s: %v %s %s", name, err, a.Status, a.body)
		}
	}
	if doc, _ := c.must(false, "list"); !strings.Contains(doc, `"totalCount":0`) {
		t.Errorf("%s", doc)
	}
}

func TestLinksNeedTheirDirective(t *testing.T) {
	o := newOffice(t)
	for _, path := range []string{"/x402/links", "/x402/links/stats?merchant=main"} {
		q, err := http.NewRequest("GET", "http://"+o.admin+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := once(q); err != nil || a.StatusCode != 404 || !strings.Contains(a.body, `add \"x402_links\"`) {
			t.Errorf("%s: %v %s %s", path, err, a.Status, a.body)
		}
	}
}

func TestLinkCommandsExplainThemselves(t *testing.T) {
	cmd := &cobra.Command{Use: "link", Long: caddycmd.Commands()["link"].Long}
	caddycmd.Commands()["link"].CobraFunc(cmd)
	for _, name := range []string{"", "create", "list", "show", "disable", "stats"} {
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(io.Discard)
		cmd.SetArgs(strings.Fields(name + " --help"))
		if err := cmd.Execute(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name == "" {
			if !strings.Contains(out.String(), "create ") || !strings.Contains(out.String(), "x402_links") {
				t.Errorf("%s", out.String())
			}
			continue
		}
		if !strings.Contains(out.String(), "link "+name) || !strings.Contains(out.String(), "--merchant") || !strings.Contains(out.String(), "--json") || !strings.Contains(out.String(), "--address") || strings.Count(out.String(), "\n") < 10 {
			t.Errorf("%s: %s", name, out.String())
		}
	}
}
