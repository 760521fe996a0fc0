package caddymodule

import (
	"encoding/base64"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/tollgate402/tollgate/payment/pass"
)

const somePassSecret = "a secret of passes that is long enough"

// passOffice starts a site, with an admin API, of which two routes have
// passes.
func passOffice(t *testing.T) *office {
	t.Helper()
	t.Setenv("TEST_PASS_SECRET", somePassSecret)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &office{newSite(t), l.Addr().String()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	o.load(o.passConfig())
	return o
}

func (o *office) passConfig() string {
	source := paidSite("facilitator fake\n\t\tpass_secret {env.TEST_PASS_SECRET}\n\t\tledger badger "+o.dir,
		"x402 /day/* $0.01 {\n\t\tpass 24h\n\t}\n\tx402 /few/* $0.01 {\n\t\tsettle first\n\t\tpass 24h 2 as few\n\t}\n\trespond \"{http.request.header.X-402-Pass}goods {http.x402.pass} {http.x402.paid} {http.x402.payer} [{http.x402.amount}]\"")
	return strings.Replace(source, "admin off", "admin "+o.admin, 1)
}

// buyPass pays for a path and returns the pass.
func (o *office) buyPass(path string) (text string, c *pass.Claims) {
	o.t.Helper()
	name, value := o.payFor(path)
	a := o.get(path, name, value)
	text = a.Header.Get(pass.Header)
	c, err := pass.Read(pass.DeriveKey([]byte(somePassSecret)).Public(), text)
	if a.StatusCode != http.StatusOK || err != nil {
		o.t.Fatalf("%s %v, %v", a.Status, a.Header, err)
	}
	return text, c
}

func TestAPassServesItsRouteAcrossReloads(t *testing.T) {
	o := passOffice(t)
	text, c := o.buyPass("/day/1")
	want := "goods true false " + c.Payer + " []"
	for range 2 {
		if a := o.get("/day/2", pass.Header, text); a.StatusCode != http.StatusOK || a.body != want {
			t.Errorf("%s %q, want %q", a.Status, a.body, want)
		}
		if a := o.get("/few/2", pass.Header, text); a.StatusCode != http.StatusPaymentRequired {
			t.Errorf("another route: %s", a.Status)
		}
		o.load(o.passConfig())
	}
	few, _ := o.buyPass("/few/1")
	for i, status := range []int{200, 200, 402} {
		if a := o.get("/few/2", pass.Header, few); a.StatusCode != status {
			t.Errorf("call %d: %s", i+1, a.Status)
		}
		if i == 0 {
			o.load(o.passConfig()) // forgets no call
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+o.admin+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	if a := o.do(req); !strings.Contains(a.body, `caddy_x402_payments_total{network="eip155:84532",outcome="pass"} 1`) {
		t.Errorf("%s %s", a.Status, a.body)
	}
}

func TestOperatorsRevokePasses(t *testing.T) {
	o := passOffice(t)
	text, c := o.buyPass("/few/1")
	if a := o.get("/few/2", pass.Header, text); a.StatusCode != http.StatusOK {
		t.Fatal(a.Status)
	}
	for what, says := range map[string]struct {
		words []string
		says  string
	}{
		"nothing":    {nil, "revoke <payment>"},
		"no payment": {[]string{"revoke"}, "revoke <payment>"},
		"no id":      {[]string{"revoke", "0x1"}, "64 hexadecimal"},
		"unknown":    {[]string{"revoke", strings.Repeat("0", 64)}, "knows no payment"},
	} {
		if _, _, err := o.run(cmdPass, true, "", nil, says.words...); err == nil || !strings.Contains(err.Error(), says.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	table, _, err := o.run(cmdPass, true, "", nil, "revoke", c.Payment.String())
	if err != nil || !strings.Contains(table, "revoked; 1 calls") {
		t.Errorf("%q %v", table, err)
	}
	if a := o.get("/few/2", pass.Header, text); a.StatusCode != http.StatusPaymentRequired || !strings.Contains(a.body, "pass_revoked") {
		t.Errorf("%s %s", a.Status, a.body)
	}
	doc, _, err := o.run(cmdPass, false, "", nil, "revoke", c.Payment.String())
	if err != nil || strings.TrimSpace(doc) != `{"id":"`+c.Payment.String()+`","revoked":true,"used":1}` {
		t.Errorf("%q %v", doc, err)
	}

	key, _, err := o.run(cmdPass, true, "", nil, "key")
	raw, bad := base64.RawURLEncoding.DecodeString(strings.TrimSpace(key))
	if err != nil || bad != nil {
		t.Fatalf("%q %v %v", key, err, bad)
	}
	if _, err := pass.Read(raw, text); err != nil {
		t.Errorf("the pass cannot be verified: %v", err)
	}

	// A page in a browser can send this without asking.
	for path, want := range map[string]int{"/x402/passes/" + c.Payment.String() + "/revoke": http.StatusUnsupportedMediaType, "/x402/passes/key": http.StatusMethodNotAllowed} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+o.admin+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "text/plain")
		if a := o.do(req); a.StatusCode != want {
			t.Errorf("%s: %s %s", path, a.Status, a.body)
		}
	}
}

// A pass is a bearer's: who reads it can use it.
func TestPassesStayOutOfTheLogs(t *testing.T) {
	t.Setenv("TEST_PASS_SECRET", somePassSecret)
	for _, format := range []string{"", "\n\t\tformat x402"} {
		file := filepath.Join(t.TempDir(), "caddy.log")
		s := newSite(t)
		config := paidSite("ledger memory\n\t\tfacilitator fake\n\t\tpass_secret {env.TEST_PASS_SECRET}", "log\n\tx402 $0.01 {\n\t\tpass 24h\n\t}\n\trespond goods")
		s.load(strings.Replace(config, "output discard", "output file "+file+"\n\t\tlevel DEBUG"+format, 1))
		o := &office{s, ""}
		text, c := o.buyPass("/")
		if a := s.get("/", pass.Header, text); a.StatusCode != http.StatusOK {
			t.Fatal(a.Status)
		}
		if a := s.get("/", pass.Header, text+"A"); a.StatusCode != http.StatusBadRequest {
			t.Fatal(a.Status)
		}
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		log, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(log), text[len(text)/2:]) {
			t.Errorf("with %q a pass is in the log", format)
		}
		if format != "" && strings.Count(string(log), `"x402_payment":"`+c.Payment.String()) != 2 {
			t.Errorf("the log does not say whose pass was used: %s", log)
		}
	}
}
