package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
	"github.com/tollgate402/tollgate/payment"
)

// An office is a site with an admin API and somebody at a terminal.
type office struct {
	*site
	admin string // address
}

// newOffice starts a site whose upstream fails where the path is /fails. All
// its payments are settled first, and delivered once at most.
func newOffice(t *testing.T) *office {
	t.Helper()
	t.Setenv("TEST_REFUND_KEY", laneKey)
	source := paidSite("facilitator fake\n\t\tsettle first\n\t\tredeliver 1\n\t\tledger badger DIR",
		"x402_receipts /did\n\tx402 $0.01 {\n\t\tmax_body 1KiB\n\t}\n\trespond /fails 502\n\trespond goods")
	return openOffice(t, strings.Replace(source, "network base-sepolia", "network base-sepolia {\n\t\t\trefunds key {env.TEST_REFUND_KEY}\n\t\t}", 1))
}

// openOffice starts a site with an admin API in place of "admin off". DIR
// stands for the ledger's folder.
func openOffice(t *testing.T, source string) *office {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &office{newSite(t), l.Addr().String()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	source = strings.Replace(source, "admin off", "admin "+o.admin, 1)
	o.load(strings.Replace(source, "DIR", o.dir, 1))
	return o
}

// buy pays for a path and returns the payment's id and header.
func (o *office) buy(path string, status int) (id, name, value string) {
	o.t.Helper()
	name, value = o.payFor(path)
	if a := o.get(path, name, value); a.StatusCode != status {
		o.t.Fatalf("%s: %s %s", path, a.Status, a.body)
	}
	var receipt till.Receipt
	mustJSON(o.t, o.get("/did", name, value).body, &receipt)
	return receipt.Payment, name, value
}

// run runs a command as if its output went to a terminal, if table, and its
// person answered.
func (o *office) run(command func(*console) error, table bool, answer string, flags map[string]string, words ...string) (out, errs string, err error) {
	var stdout, stderr bytes.Buffer
	c := &console{
		words: words, in: strings.NewReader(answer), out: &stdout, errs: &stderr, asTable: table, asks: answer != "",
		flag: func(name string) string {
			if s, ok := flags[name]; ok || name != "address" {
				return s
			}
			return o.admin
		},
	}
	if flags["limit"] == "" {
		if flags == nil {
			flags = map[string]string{}
		}
		flags["limit"] = "100"
	}
	err = command(c)
	return stdout.String(), stderr.String(), err
}

func TestOperatorsSeePaymentsAndNothingThatSpendsThem(t *testing.T) {
	o := newOffice(t)
	good, _, value := o.buy("/a", 200)
	due, _, _ := o.buy("/fails", 502)
	doc, _, err := o.run(cmdPayments, false, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	var list paymentList
	mustJSON(t, doc, &list)
	if len(list.Payments) != 2 || list.Next != "" {
		t.Fatalf("%s", doc)
	}
	for _, p := range list.Payments {
		if p.ID != good && p.ID != due || p.Amount != "0.01 USDC" || p.Units != "10000" || p.PayTo != seller || len(p.Transaction) != 66 || p.Due != (p.ID == due) {
			t.Errorf("%+v", p)
		}
	}
	for _, secret := range []string{value, "signature", "request", "proof", "binding", "raw"} {
		if strings.Contains(strings.ToLower(doc), strings.ToLower(secret)) {
			t.Errorf("the list has %q", secret)
		}
	}
	table, _, err := o.run(cmdPayments, true, "", map[string]string{"due": "true"})
	if err != nil || strings.Count(table, "\n") != 2 || !strings.Contains(table, due) || !strings.Contains(table, "REFUND_DUE") || !strings.HasPrefix(table, "ID ") {
		t.Errorf("%v\n%s", err, table)
	}
	if table, _, err = o.run(cmdPayments, true, "", map[string]string{"state": "settled"}); err != nil || !strings.Contains(table, good) || strings.Contains(table, due) {
		t.Errorf("%v\n%s", err, table)
	}
	page, errs, err := o.run(cmdPayments, true, "", map[string]string{"limit": "1"})
	_, next, more := strings.Cut(errs, "--after ")
	if err != nil || strings.Count(page, "\n") != 2 || !more {
		t.Fatalf("%v\n%s%s", err, page, errs)
	}
	last, errs, err := o.run(cmdPayments, true, "", map[string]string{"after": strings.TrimSpace(next)})
	if err != nil || strings.Count(last, "\n") != 2 || errs != "" || last == page {
		t.Errorf("%v\n%s%s", err, last, errs)
	}
	if table, _, err = o.run(cmdPayment, true, "", nil, good); err != nil || !strings.Contains(table, "0.01 USDC") || !strings.Contains(table, "DELIVERED") {
		t.Errorf("%v\n%s", err, table)
	}
}

func TestRefundFromTheTerminal(t *testing.T) {
	o := newOffice(t)
	due, name, value := o.buy("/fails", 502)
	good, _, _ := o.buy("/a", 200)
	before := settled.Load()
	for _, c := range []struct {
		what, answer string
		flags        map[string]string
		words        []string
		says         string
	}{
		{"nobody to ask", "", nil, []string{due}, "--yes"},
		{"no", "n\n", nil, []string{due}, "nothing was refunded"},
		{"nothing", "\n", nil, []string{due}, "nothing was refunded"},
		{"not due", "", map[string]string{"yes": "true"}, []string{good}, "--force"},
		{"unknown", "", map[string]string{"yes": "true"}, []string{strings.Repeat("0", 64)}, "tollgate payments"},
		{"no id", "", map[string]string{"yes": "true"}, []string{"abc"}, "64 hexadecimal digits"},
		{"nothing at all", "", nil, nil, "tollgate refund <id>"},
	} {
		if _, _, err := o.run(cmdRefund, true, c.answer, c.flags, c.words...); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if settled.Load() != before {
		t.Fatal("money has moved")
	}
	out, errs, err := o.run(cmdRefund, true, "y\n", nil, due)
	if err != nil || !strings.Contains(out, "REFUNDED") || !strings.Contains(errs, "0.01 USDC goes back to ") {
		t.Fatalf("%v\n%s%s", err, out, errs)
	}
	for range 2 {
		again, _, err := o.run(cmdRefund, true, "", nil, due)
		if err != nil || again != out {
			t.Errorf("%v\n%s", err, again)
		}
	}
	if got := settled.Load() - before; got != 1 {
		t.Errorf("%d refunds", got)
	}
	var receipt till.Receipt
	mustJSON(t, o.get("/did", name, value).body, &receipt)
	if receipt.Status != "refunded" || len(receipt.Refund) != 66 || !strings.Contains(out, receipt.Refund) {
		t.Errorf("%+v", receipt)
	}
	if a := o.get("/fails", name, value); a.StatusCode != http.StatusGone || !strings.Contains(a.body, `"refunded"`) {
		t.Errorf("%s %s", a.Status, a.body)
	}
	_, errs, err = o.run(cmdRefund, false, "yes\n", map[string]string{"force": "true"}, good)
	if err != nil || !strings.Contains(errs, "may have what it paid for") || settled.Load()-before != 2 {
		t.Errorf("%v %s, %d refunds", err, errs, settled.Load()-before)
	}
}

func TestRefundsCannotBeOrderedByAWebPage(t *testing.T) {
	o := newOffice(t)
	due, _, _ := o.buy("/fails", 502)
	before := settled.Load()
	url := "http://" + o.admin + "/x402/payments/" + due + "/refund"
	for name, c := range map[string]struct {
		method, media, body string
		status              int
	}{
		"a form":          {"POST", "application/x-www-form-urlencoded", "{}", 415},
		"text":            {"POST", "text/plain", "{}", 415},
		"no type":         {"POST", "", "{}", 415},
		"GET":             {"GET", "application/json", "", 405},
		"no body":         {"POST", "application/json", "", 400},
		"unknown setting": {"POST", "application/json", `{"forced":true}`, 400},
	} {
		req, err := http.NewRequest(c.method, url, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.media != "" {
			req.Header.Set("Content-Type", c.media)
		}
		a, err := once(req)
		if err != nil || a.StatusCode != c.status {
			t.Errorf("%s: %v %s %s", name, err, a.Status, a.body)
		}
	}
	if settled.Load() != before {
		t.Error("money has moved")
	}
}

func TestAdminSaysWhatThereIs(t *testing.T) {
	o := newOffice(t)
	for path, c := range map[string]struct {
		status int
		says   string
	}{
		"/x402/":                            {404, "/x402/payments"},
		"/x402/wallets":                     {404, "/x402/ledger/check"},
		"/x402/payments?state=GONE":         {400, "REFUND_DUE"},
		"/x402/payments?limit=0":            {400, "1 to 1000"},
		"/x402/payments?limit=many":         {400, "1 to 1000"},
		"/x402/payments?after=x":            {400, "64 hexadecimal"},
		"/x402/payments/x":                  {400, "tollgate payments"},
		"/x402/payments/x/refund":           {405, "POST"},
		"/x402/payments?state=refund_due":   {200, `"payments":[]`},
		"/x402/payments?due=1&limit=1":      {200, `"payments":[]`},
		"/x402/ledger/check":                {200, `"findings":[]`},
		"/x402/payments/" + key64("0"):      {404, "tollgate payments"},
		"/x402/payments?after=" + key64(""): {200, `"payments":[]`},
	} {
		req, err := http.NewRequest("GET", "http://"+o.admin+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := once(req)
		if err != nil || a.StatusCode != c.status || !strings.Contains(a.body, c.says) {
			t.Errorf("%s: %v %s %s", path, err, a.Status, a.body)
		}
	}
}

func key64(digit string) string { return strings.Repeat(digit+"f", 64)[:64] }

func TestLedgerIsCheckedBackedUpAndRestored(t *testing.T) {
	o := newOffice(t)
	id, _, _ := o.buy("/a", 200)
	out, _, err := o.run(cmdLedger, true, "", nil, "check")
	if err != nil || !strings.Contains(out, "1 payments") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, _, err = o.run(cmdLedger, false, "", nil, "check"); err != nil || !json.Valid([]byte(out)) {
		t.Errorf("%v\n%s", err, out)
	}
	file := filepath.Join(t.TempDir(), "backup")
	if _, _, err := o.run(cmdLedger, true, "", nil, "backup", file); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Size() == 0 || info.Mode().Perm() != 0o600 || exists(file+".part") {
		t.Errorf("%v, %v", info, err)
	}
	if _, _, err := o.run(cmdLedger, true, "", nil, "backup", file); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a backup was overwritten: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "ledger")
	if _, errs, err := o.run(cmdLedger, true, "", map[string]string{"to": dir}, "restore", file); err != nil || !strings.Contains(errs, dir) {
		t.Fatal(err, errs)
	}
	store, err := badger.Open(dir, badger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := store.Scan(context.Background(), "pay/", "", 10)
	if err != nil || len(entries) != 1 || string(entries[0].Key) != "pay/"+id {
		t.Errorf("%v, %v", entries, err)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
	for what, c := range map[string]struct {
		words []string
		says  string
	}{
		"twice":       {[]string{"restore", file}, "missing or empty"},
		"no file":     {[]string{"restore", file + "x"}, "tollgate ledger backup"},
		"no verb":     {nil, "check | backup"},
		"bad verb":    {[]string{"repair"}, "check | backup"},
		"too much":    {[]string{"check", "twice"}, "check | backup"},
		"unwritable":  {[]string{"backup", filepath.Join(dir, "no", "such")}, "directory"},
		"no argument": {[]string{"backup"}, "check | backup"},
	} {
		if _, _, err := o.run(cmdLedger, true, "", map[string]string{"to": dir}, c.words...); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestCommandsSayWhenNobodyAnswers(t *testing.T) {
	o := &office{&site{t: t}, "127.0.0.1:1"}
	for name, command := range map[string]func(*console) error{"payments": cmdPayments} {
		if _, _, err := o.run(command, true, "", nil); err == nil || !strings.Contains(err.Error(), "--address") {
			t.Errorf("%s: %v", name, err)
		}
	}
	file := filepath.Join(t.TempDir(), "backup")
	if _, _, err := o.run(cmdLedger, true, "", nil, "backup", file); err == nil || exists(file) || exists(file+".part") {
		t.Errorf("%v, and files are left behind", err)
	}
}

// Who asks what has been paid pays nothing, whatever the route is.
func TestReceiptsAreFreeAndPrivate(t *testing.T) {
	o := newOffice(t)
	_, name, value := o.buy("/a", 200)
	a := o.get("/did", name, value)
	if a.StatusCode != 200 || a.Header.Get("Cache-Control") != "private, no-store" || !strings.Contains(a.body, `"status":"settled"`) {
		t.Errorf("%s %v %s", a.Status, a.Header, a.body)
	}
	if a := o.get("/did"); a.StatusCode != 400 || !strings.Contains(a.body, "PAYMENT-SIGNATURE") {
		t.Errorf("%s %s", a.Status, a.body)
	}
	req := o.request("POST", "/did")
	req.Body = io.NopCloser(strings.NewReader(value))
	if a := o.do(req); a.StatusCode != 200 || !strings.Contains(a.body, `"status":"settled"`) {
		t.Errorf("%s %s", a.Status, a.body)
	}
}

func TestFinalityFollowsTheAmount(t *testing.T) {
	usdc, ok := payment.USDC(payment.EVM(84532))
	if !ok {
		t.Fatal("no USDC")
	}
	steps := []UntilStep{{"$1", "submitted"}, {"100 USDC", "included"}, {"", "finalized"}}
	for price, want := range map[string]payment.Finality{
		"$0.01": payment.Submitted, "$0.999999": payment.Submitted, "$1": payment.Included, "$99.999999": payment.Included, "$100": payment.Finalized, "$5000": payment.Finalized,
	} {
		amount, err := payment.ParsePrice(price, usdc)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := finality("", steps, amount); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", price, got, err, want)
		}
		if got, err := finality("safe", nil, amount); err != nil || got != payment.Safe {
			t.Errorf("%s: %s, %v", price, got, err)
		}
	}
	for name, bad := range map[string][]UntilStep{
		"no end": {{"$1", "included"}}, "middle": {{"", "included"}, {"", "safe"}}, "nothing": {{"$1", ""}, {"", "safe"}}, "typo": {{"$1", "now"}, {"", "safe"}},
	} {
		if err := checkUntil("", bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if checkUntil("safe", steps) == nil {
		t.Error("both at once were accepted")
	}
}

// The settings of the app count where a route says nothing.
func TestRoutesFallBackOnTheApp(t *testing.T) {
	app := &App{Settle: "optimistic", UntilByAmount: []UntilStep{{"", "safe"}}, Exposure: &Exposure{Total: "$1"}, Redeliver: 7, Entitled: 5, Deadline: 3}
	whole := (&Paywall{}).over(app)
	if whole.Settle != "optimistic" || len(whole.UntilByAmount) != 1 || whole.Exposure != app.Exposure || whole.Redeliver != 7 || whole.Entitled != 5 || whole.Deadline != 3 {
		t.Errorf("%+v", whole)
	}
	own := &Paywall{Settle: "first", Until: "included", Exposure: &Exposure{Total: "$2"}, Redeliver: 1, Entitled: 2, Deadline: 1}
	whole = own.over(app)
	if whole.Settle != "first" || whole.Until != "included" || len(whole.UntilByAmount) != 0 || whole.Exposure != own.Exposure || whole.Redeliver != 1 || whole.Entitled != 2 || whole.Deadline != 1 {
		t.Errorf("%+v", whole)
	}
}

func TestGoodsOnCreditThroughCaddy(t *testing.T) {
	s := newSite(t)
	s.load(paidSite("facilitator fake\n\t\tledger memory "+t.Name(), "x402 $0.01 {\n\t\tsettle optimistic\n\t\texposure $1\n\t}\n\tx402_receipts /did\n\trespond goods"))
	name, value := s.payFor("/")
	a := s.get("/", name, value)
	if a.StatusCode != 200 || a.body != "goods" || a.Header.Get(payment.HeaderResponse) == "" {
		t.Fatalf("%s %s", a.Status, a.body)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if got := s.get("/did", name, value); slices.Contains([]string{"settled", "final"}, status(t, got.body)) {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("%s", got.body)
		}
	}
}

func status(t *testing.T, doc string) string {
	t.Helper()
	var receipt till.Receipt
	mustJSON(t, doc, &receipt)
	return receipt.Status
}
