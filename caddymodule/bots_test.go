package caddymodule

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tollgate402/tollgate/internal/botauth"
)

const userAgent = "example-bot/1.0"

// A crawler signs its requests.
type crawler struct{ key ed25519.PrivateKey }

func newCrawler(t *testing.T) *crawler {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &crawler{key}
}

func (c *crawler) public() ed25519.PublicKey { return c.key.Public().(ed25519.PublicKey) }

// x returns the public key as JSON Web Keys have it.
func (c *crawler) x() string { return base64.RawURLEncoding.EncodeToString(c.public()) }

// sign returns headers with a signature over components, each with its value,
// made some time ago and good for five minutes.
func (c *crawler) sign(ago time.Duration, components ...string) []string {
	var names []string
	base := ""
	for i := 0; i < len(components); i += 2 {
		names = append(names, `"`+components[i]+`"`)
		base += `"` + components[i] + `": ` + components[i+1] + "\n"
	}
	created := time.Now().Add(-ago).Unix()
	params := fmt.Sprintf(`(%s);created=%d;expires=%d;keyid="%s";alg="ed25519";tag="web-bot-auth"`,
		strings.Join(names, " "), created, created+300, botauth.Thumbprint(c.public()))
	base += `"@signature-params": ` + params
	return []string{
		"User-Agent", userAgent,
		"Signature-Input", "sig1=" + params,
		"Signature", "sig1=:" + base64.StdEncoding.EncodeToString(ed25519.Sign(c.key, []byte(base))) + ":",
	}
}

func TestVerifiedCrawlersPassAndOthersPay(t *testing.T) {
	s := newSite(t)
	known, listed, stranger := newCrawler(t), newCrawler(t), newCrawler(t)
	jwks := filepath.Join(t.TempDir(), "keys.json")
	doc := `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"` + listed.x() + `"}]}`
	if err := os.WriteFile(jwks, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", r.Header.Get("X-Bot")+r.Header.Get("X-402-Payer"))
		w.Header().Set("Cache-Control", "public")
	}))
	defer upstream.Close()
	s.load(formatted(paidSite("ledger memory verified\nfacilitator fake", `@verified x402_bot {
		key known `+known.x()+`
		key listed {file.`+jwks+`}
	}
	handle_path /shop/* {
		handle @verified {
			request_header -X-402-*
			header >Cache-Control private
			reverse_proxy `+strings.TrimPrefix(upstream.URL, "http://")+` {
				header_up X-Bot "{http.x402.bot} {http.x402.bot_key}"
			}
		}
		handle {
			x402 $0.01
			respond "goods, {http.x402.bot}."
		}
	}`)))
	for _, c := range []struct {
		name   string
		path   string
		header []string
		bot    string // that is let in; "" if it has to pay
	}{
		{"signed", "/shop/a", known.sign(0, "@authority", s.address), "known " + botauth.Thumbprint(known.public())},
		{"by a key of a set", "/shop/a", listed.sign(0, "@authority", s.address), "listed " + botauth.Thumbprint(listed.public())},
		{"what was asked for, not what it was rewritten to", "/shop/a%2Fb?q=1", known.sign(0, "@authority", s.address, "@path", "/shop/a%2Fb", "@query", "?q=1", "@method", "GET", "@target-uri", "http://"+s.address+"/shop/a%2Fb?q=1"), "known " + botauth.Thumbprint(known.public())},
		{"replayed at another path, which it does not cover", "/shop/b", known.sign(0, "@authority", s.address), "known " + botauth.Thumbprint(known.public())},
		{"replayed at another path, which it covers", "/shop/b", known.sign(0, "@authority", s.address, "@path", "/shop/a"), ""},
		{"what it was rewritten to", "/shop/a", known.sign(0, "@authority", s.address, "@path", "/a"), ""},
		{"not signed, with the same User-Agent", "/shop/a", []string{"User-Agent", userAgent}, ""},
		{"for another site", "/shop/a", known.sign(0, "@authority", "other.example"), ""},
		{"too old", "/shop/a", known.sign(2*time.Hour, "@authority", s.address), ""},
		{"expired", "/shop/a", known.sign(6*time.Minute, "@authority", s.address), ""},
		{"by another key", "/shop/a", stranger.sign(0, "@authority", s.address), ""},
		{"with an agent that is not signed", "/shop/a", append(known.sign(0, "@authority", s.address), "Signature-Agent", `"https://known.example"`), ""},
		{"garbage", "/shop/a", []string{"Signature-Input", "sig1=(", "Signature", "x"}, ""},
	} {
		got := s.get(c.path, append(c.header, "X-402-Payer", "somebody", "X-Bot", "somebody")...)
		if c.bot == "" && got.StatusCode != http.StatusPaymentRequired {
			t.Errorf("%s: %s %s", c.name, got.Status, got.body)
		}
		if c.bot != "" && (got.StatusCode != http.StatusOK || got.Header.Get("X-Seen") != c.bot || strings.Join(got.Header["Cache-Control"], ",") != "private") {
			t.Errorf("%s: %s, and the upstream saw %q, want %q; %q", c.name, got.Status, got.Header.Get("X-Seen"), c.bot, got.Header["Cache-Control"])
		}
	}
	if name, value := s.payFor("/shop/a"); s.get("/shop/a", name, value).body != "goods, ." {
		t.Error("the placeholder is not empty for somebody who paid")
	}
}

func TestThePriceCanBeForEverybodyElse(t *testing.T) {
	s := newSite(t)
	known := newCrawler(t)
	s.load(formatted(paidSite("ledger memory exempt\nfacilitator fake", `@paid_only {
		not {
			x402_bot {
				key known `+known.x()+`
			}
		}
		not path /robots.txt /status/*
		not remote_ip 192.0.2.0/24
	}
	x402 @paid_only $0.01
	respond "goods, {http.x402.bot}."`)))
	signature := known.sign(0, "@authority", s.address)
	if got := s.get("/a", signature...); got.StatusCode != http.StatusOK || got.body != "goods, known." {
		t.Errorf("signed: %s %s", got.Status, got.body)
	}
	if got := s.get("/a", signature[:2]...); got.StatusCode != http.StatusPaymentRequired {
		t.Errorf("not signed: %s", got.Status)
	}
	for _, path := range []string{"/robots.txt", "/status/1"} {
		if got := s.get(path); got.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, got.Status)
		}
	}
}

// A site that answers to every host must say which ones are its own.
func TestASignatureForAnotherSiteIsNotGoodWhereEveryHostIsAnswered(t *testing.T) {
	s := newSite(t)
	known := newCrawler(t)
	port := s.address[strings.LastIndexByte(s.address, ':'):]
	load := func(authority string) {
		s.load(formatted(strings.Replace(paidSite("ledger memory anyhost\nfacilitator fake", `@paid_only not {
		x402_bot {
			key known `+known.x()+`
			`+authority+`
		}
	}
	x402 @paid_only $0.01
	respond goods`), "http://ADDRESS", "http://"+port, 1)))
	}
	ask := func(host string) int {
		req := s.request(http.MethodGet, "/", known.sign(0, "@authority", host)...)
		req.Host = host
		return s.do(req).StatusCode
	}
	load("")
	if got := ask("elsewhere.example"); got != http.StatusOK {
		t.Errorf("without authority: %d, so docs/tiers.md is wrong", got)
	}
	load("authority API.example.com")
	if got := ask("elsewhere.example"); got != http.StatusPaymentRequired {
		t.Errorf("for another host: %d", got)
	}
	if got := ask("api.example.com"); got != http.StatusOK {
		t.Errorf("for our host: %d", got)
	}
}

func TestTheAccessLogNamesTheCrawler(t *testing.T) {
	s := newSite(t)
	known := newCrawler(t)
	file := filepath.Join(t.TempDir(), "access.log")
	s.load(formatted(paidSite("ledger memory named\nfacilitator fake", `log {
		output file `+file+`
	}
	@verified x402_bot {
		key known `+known.x()+`
	}
	respond @verified free
	respond other`)))
	s.get("/", known.sign(0, "@authority", s.address)...)
	s.get("/", known.sign(0, "@authority", "other.example")...)
	s.get("/", "User-Agent", userAgent)
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	type entry struct {
		Bot    string `json:"x402_bot"`
		Reason string `json:"x402_bot_reason"`
	}
	var got []entry
	for line := range strings.Lines(string(doc)) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	if len(got) != 3 || got[0] != (entry{Bot: "known"}) || got[1].Bot != "" || !strings.Contains(got[1].Reason, "signature") || got[2] != (entry{}) {
		t.Errorf("the log has %+v", got)
	}
}

func TestTheExamplesOfTheTiersAreFormattedAndValid(t *testing.T) {
	checkExamples(t, "../docs/tiers.md", 3)
}
