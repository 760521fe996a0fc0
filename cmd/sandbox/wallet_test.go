package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/ethereum/go-ethereum/common/hexutil"

	"github.com/tollgate402/tollgate/internal/devchain"
)

const (
	scriptTag = `<script src="/_sandbox/wallet.js" defer></script>`
	someLink  = "/x402/00000000000000000000000000"
)

// walletBefore serves a wallet in front of a handler.
func walletBefore(t *testing.T, next http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := (&wallet{ChainID: playChain}).ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			next(w, r)
			return nil
		}))
		if err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return server
}

// ask sends a request and returns the whole answer.
func ask(t *testing.T, method, url, body string, header http.Header) *reply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(q.Header, header)
	if host := header.Get("Host"); host != "" {
		q.Host = host
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return &reply{a.StatusCode, a.Status, a.Header, string(text)}
}

func TestTheWalletIsOnPagesThatCanBePaidAndChangesNothingElse(t *testing.T) {
	const page = "<!doctype html><head><title>t</title></head><body></head></body>"
	for _, c := range []struct {
		name, method, path, kind string
		status                   int
		added                    bool
	}{
		{"a link", "GET", someLink, "text/html; charset=utf-8", 402, true},
		{"its head", "HEAD", someLink, "text/html; charset=utf-8", 402, true},
		{"a link as JSON", "GET", someLink, "application/json", 402, false},
		{"a paid link", "GET", someLink, "text/html; charset=utf-8", 200, false},
		{"a withdrawn link", "GET", someLink, "text/html; charset=utf-8", 410, false},
		{"a payment", "POST", someLink, "text/html; charset=utf-8", 402, false},
		{"a receipt", "GET", someLink + "/receipt/00000000000000000000000000", "text/html; charset=utf-8", 402, false},
		{"no link", "GET", "/x402/else", "text/html; charset=utf-8", 402, false},
		{"a priced page", "GET", "/weather", "text/html; charset=utf-8", 402, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := walletBefore(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", c.kind)
				w.Header().Set("Content-Length", strconv.Itoa(len(page)))
				w.Header().Set("Content-Security-Policy", "script-src 'self'")
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(page))
			})
			want := page
			if c.added {
				want = "<!doctype html><head><title>t</title>" + scriptTag + "\n</head><body></head></body>"
			}
			a := ask(t, c.method, server.URL+c.path, "", nil)
			if a.code != c.status || a.header.Get("Content-Length") != strconv.Itoa(len(want)) || a.header.Get("Content-Security-Policy") != "script-src 'self'" {
				t.Errorf("%d, headers %v", a.code, a.header)
			}
			if c.method != "HEAD" && a.body != want {
				t.Errorf("got %s", a.body)
			}
		})
	}
}

func TestTheWalletPassesEventsOnAsTheyCome(t *testing.T) {
	seen := make(chan struct{})
	server := walletBefore(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = w.Write([]byte("data: 1\n\n"))
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		select {
		case <-seen:
		case <-r.Context().Done():
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, "GET", server.URL+someLink+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	first := make([]byte, len("data: 1\n\n"))
	if _, err := io.ReadFull(a.Body, first); err != nil {
		t.Error(err)
	}
	close(seen)
}

// asked is a request to the wallet.
func asked(t *testing.T, method string, params ...any) string {
	t.Helper()
	doc, err := json.Marshal(map[string]any{"method": method, "params": params})
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

var asPage = http.Header{"Content-Type": {"application/json"}}

func TestTheWalletAnswersAsWalletsDo(t *testing.T) {
	server := walletBefore(t, func(http.ResponseWriter, *http.Request) { t.Error("it asked the next handler") })
	payer := devchain.DeriveAccount("payer").Address.Hex()
	mail := func(chain any) map[string]any {
		return map[string]any{
			"types":       map[string]any{"EIP712Domain": []any{map[string]string{"name": "chainId", "type": "uint256"}}, "Mail": []any{map[string]string{"name": "text", "type": "string"}}},
			"primaryType": "Mail", "domain": map[string]any{"chainId": chain}, "message": map[string]any{"text": "hello"},
		}
	}
	inText, err := json.Marshal(mail(playChain))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		body string
		says string // in the answer
	}{
		{asked(t, "eth_requestAccounts"), `{"result":["` + payer + `"]}`},
		{asked(t, "eth_accounts"), `{"result":["` + payer + `"]}`},
		{asked(t, "eth_chainId"), `{"result":"0x14a34"}`},
		{asked(t, "wallet_switchEthereumChain", map[string]string{"chainId": "0x14a34"}), `{"result":null}`},
		{asked(t, "wallet_switchEthereumChain", map[string]string{"chainId": "0x1"}), `"code":4902`},
		{asked(t, "wallet_switchEthereumChain"), `"code":-32602`},
		{asked(t, "eth_signTypedData_v4", payer, string(inText)), `{"result":"0x`},
		{asked(t, "eth_signTypedData_v4", payer, mail("84532")), `{"result":"0x`},
		{asked(t, "eth_signTypedData_v4", payer, mail(1)), `"code":-32602`},
		{asked(t, "eth_signTypedData_v4", payer, "hello"), `"code":-32602`},
		{asked(t, "eth_signTypedData_v4", payer, map[string]any{"primaryType": "Mail"}), `"code":-32602`},
		{asked(t, "eth_signTypedData_v4", payer), `"code":-32602`},
		{asked(t, "eth_signTypedData_v4", devchain.DeriveAccount("seller").Address.Hex(), string(inText)), `"code":4100`},
		{asked(t, "eth_sendTransaction", map[string]string{}), `"code":4200`},
		{asked(t, "eth_sign", payer, "0x00"), `"code":4200`},
	} {
		if a := ask(t, "POST", server.URL+walletPath, c.body, asPage); a.code != 200 || !strings.Contains(a.body, c.says) {
			t.Errorf("%s: %d %s", c.body, a.code, a.body)
		}
	}
	if a := ask(t, "POST", server.URL+walletPath, "hello", asPage); a.code != 400 {
		t.Errorf("no JSON: %d", a.code)
	}
	if a := ask(t, "GET", server.URL+walletPath, "", nil); a.code != 405 {
		t.Errorf("GET: %d", a.code)
	}
	if a := ask(t, "GET", server.URL+walletScript, "", nil); a.code != 200 || !strings.HasPrefix(a.header.Get("Content-Type"), "text/javascript") || !bytes.Equal([]byte(a.body), script) {
		t.Errorf("the script: %d %v", a.code, a.header)
	}
}

func TestTheWalletIsForItsOwnPagesOnly(t *testing.T) {
	server := walletBefore(t, func(http.ResponseWriter, *http.Request) { t.Error("it asked the next handler") })
	_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
	for name, c := range map[string]struct {
		header http.Header
		status int
	}{
		"its own page":         {http.Header{"Origin": {server.URL}}, 200},
		"a program":            {http.Header{}, 200},
		"another page":         {http.Header{"Origin": {"https://evil.example"}}, 403},
		"another port":         {http.Header{"Origin": {"http://127.0.0.1:1"}}, 403},
		"its address by https": {http.Header{"Origin": {"https://127.0.0.1:" + port}}, 403},
		"a page from nowhere":  {http.Header{"Origin": {"null"}}, 403},
		"two pages":            {http.Header{"Origin": {server.URL, "https://evil.example"}}, 403},
		"another name":         {http.Header{"Host": {"evil.example:" + port}, "Origin": {"http://evil.example:" + port}}, 403},
		"another name, silent": {http.Header{"Host": {"evil.example"}}, 403},
		"a form":               {http.Header{"Origin": {server.URL}, "Content-Type": {"text/plain"}}, 415},
	} {
		header := asPage.Clone()
		maps.Copy(header, c.header)
		if a := ask(t, "POST", server.URL+walletPath, asked(t, "eth_accounts"), header); a.code != c.status {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		}
	}
}

// TestAPersonPaysTheSandboxsLinkWithPlayMoney does what the script of the
// page does.
func TestAPersonPaysTheSandboxsLinkWithPlayMoney(t *testing.T) {
	for _, name := range []string{"LISTEN", "UPSTREAM", "ADMIN", "RPC", "PAY_TO", "LANE_KEY", "DATA", "LOG", "MERCHANT_KEY"} {
		t.Setenv("TOLLGATE_"+name, os.Getenv("TOLLGATE_"+name)) // the sandbox sets them
	}
	s, err := start(options{ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	url, err := s.bill(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	page := ask(t, "GET", url, "", http.Header{"Accept": {"text/html,*/*;q=0.8"}})
	if page.code != 402 || strings.Count(page.body, scriptTag) != 1 || page.header.Get("Content-Length") != strconv.Itoa(len(page.body)) {
		t.Fatalf("%d, headers %v: %s", page.code, page.header, page.body)
	}
	if policy := page.header.Get("Content-Security-Policy"); !strings.Contains(policy, "script-src 'self';") || !strings.Contains(policy, "connect-src 'self';") {
		t.Errorf("the policy is %s", policy)
	}
	if a := ask(t, "GET", s.apiURL()+walletScript, "", nil); a.code != 200 || a.body != string(script) {
		t.Errorf("the script: %d", a.code)
	}
	if a := ask(t, "GET", url, "", nil); a.code != 402 || !json.Valid([]byte(a.body)) {
		t.Errorf("as JSON: %d %s", a.code, a.body)
	}

	_, rest, _ := strings.Cut(page.body, `<script type="application/json" id="link">`)
	embedded, _, _ := strings.Cut(rest, "</script>")
	var link struct {
		Path     string
		Resource json.RawMessage
		Now      int64
		Offers   []struct {
			Accepted json.RawMessage
			ChainID  string
			Typed    map[string]json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(embedded), &link); err != nil || len(link.Offers) == 0 {
		t.Fatalf("%v: %s", err, embedded)
	}
	offer := link.Offers[0]
	own := http.Header{"Content-Type": {"application/json"}, "Origin": {s.apiURL()}}
	request := func(into any, method string, params ...any) {
		t.Helper()
		a := ask(t, "POST", s.apiURL()+walletPath, asked(t, method, params...), own)
		var answer struct{ Result json.RawMessage }
		if err := json.Unmarshal([]byte(a.body), &answer); err != nil || a.code != 200 {
			t.Fatalf("%s: %d %s", method, a.code, a.body)
		}
		if err := json.Unmarshal(answer.Result, into); err != nil {
			t.Fatalf("%s: %v: %s", method, err, a.body)
		}
	}
	var (
		accounts         []string
		chain, signature string
	)
	request(&accounts, "eth_requestAccounts")
	request(&chain, "eth_chainId")
	if len(accounts) != 1 || chain != offer.ChainID {
		t.Fatalf("accounts %v on %s", accounts, chain)
	}
	authorization := map[string]string{
		"from": accounts[0], "validAfter": "0", "validBefore": strconv.FormatInt(link.Now+300, 10), "nonce": hexutil.Encode(bytes.Repeat([]byte{7}, 32)),
	}
	if err := json.Unmarshal(offer.Typed["message"], &authorization); err != nil {
		t.Fatal(err)
	}
	if offer.Typed["message"], err = json.Marshal(authorization); err != nil {
		t.Fatal(err)
	}
	typed, err := json.Marshal(offer.Typed)
	if err != nil {
		t.Fatal(err)
	}
	request(&signature, "eth_signTypedData_v4", accounts[0], string(typed))
	payment, err := json.Marshal(map[string]any{
		"x402Version": 2, "resource": link.Resource, "accepted": offer.Accepted, "payload": map[string]any{"authorization": authorization, "signature": signature},
	})
	if err != nil {
		t.Fatal(err)
	}
	paid := ask(t, "POST", s.apiURL()+link.Path, `{"fields":{}}`, http.Header{
		"Payment-Signature": {base64.StdEncoding.EncodeToString(payment)}, "Accept": {"application/json"}, "Content-Type": {"application/json"}, "Origin": {s.apiURL()},
	})
	if paid.code != 200 || !strings.Contains(paid.body, `"status":"PAID"`) || !strings.Contains(paid.body, "Thank you.") {
		t.Fatalf("%d %s", paid.code, paid.body)
	}
	if got := s.chain.USDCBalance(s.seller().Address); fmt.Sprint(got) != "5000000" {
		t.Errorf("the seller has %s", got)
	}
	if a := ask(t, "GET", url, "", http.Header{"Accept": {"text/html"}}); a.code != 200 || strings.Contains(a.body, scriptTag) {
		t.Errorf("afterwards: %d, with the script: %v", a.code, strings.Contains(a.body, scriptTag))
	}
}
