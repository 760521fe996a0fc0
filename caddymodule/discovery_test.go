package caddymodule

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/extension"
	"github.com/tollgate402/tollgate/signer/localkey"
)

// fair is a site with paywalls wherever a Caddyfile can put them.
const fair = `
	x402_discovery {
		title "A market"
	}
	x402 /weather $0.001 "Current weather" {
		mime_type application/json
		discover {
			query city Berlin
			input_schema ` + "`" + `{"type":"object","properties":{"city":{"type":"string","minLength":2}},"required":["city"]}` + "`" + `
			output ` + "`" + `{"celsius":21}` + "`" + `
		}
	}
	x402 /users/* $0.01 {
		discover {
			method PUT
			route_template /users/:id
			path_param id 42
			body ` + "`" + `{"name":"Ada"}` + "`" + `
		}
	}
	x402 /hidden $1 {
		discover off
	}
	@post {
		method POST
		path /posts /drafts/*
	}
	x402 @post $0.02 {
		settle first
	}
	handle_path /shop/* {
		x402 /cart $3
		handle /deep/* {
			x402 $4 {
				origin https://deep.example.com
			}
		}
		respond shop
	}
	handle /free {
		respond free
	}
	handle {
		respond goods
	}`

// formatted is what caddy fmt makes of a Caddyfile.
func formatted(source string) string { return string(caddyfile.Format([]byte(source))) }

func TestWhatIsSoldIsListed(t *testing.T) {
	s := newSite(t)
	s.load(formatted(paidSite("ledger memory listed\nfacilitator fake", fair) + `
http://other.example.com:` + s.address[strings.LastIndexByte(s.address, ':')+1:] + ` {
	bind 127.0.0.1
	x402 /elsewhere $9
	respond elsewhere
}
`))
	got := s.get("/.well-known/x402")
	var list struct {
		Version   int
		Resources []string
		Items     []facilitator.Listing
	}
	mustJSON(t, got.body, &list)
	origin := "http://" + s.address
	want := []string{
		origin + "/drafts/", origin + "/posts", origin + "/shop/cart", origin + "/users/42", origin + "/weather", "https://deep.example.com/shop/deep/",
	}
	slices.Sort(list.Resources)
	if got.StatusCode != http.StatusOK || list.Version != 1 || !slices.Equal(list.Resources, want) {
		t.Errorf("%s: %q, want %q", got.Status, list.Resources, want)
	}
	for _, l := range list.Items {
		path := strings.TrimPrefix(strings.TrimPrefix(l.Resource, "https://deep.example.com"), origin)
		method := http.MethodGet
		if path == "/drafts/" || path == "/posts" {
			method = http.MethodPost
		}
		unpaid := s.do(s.request(method, path))
		c, err := payment.DecodeRequired(unpaid.Header.Get(payment.HeaderRequired))
		if err != nil || len(c.Offers) != len(l.Accepts) || string(c.Offers[0].Raw) != string(l.Accepts[0]) || string(c.Extensions) != string(l.Extensions) || l.LastUpdated == "" {
			t.Errorf("%s is listed as %s, and asks for %+v, %v", l.Resource, l.Accepts, c, err)
		}
	}
	if got := s.do(s.request(http.MethodHead, "/.well-known/x402")); got.StatusCode != http.StatusOK || got.body != "" {
		t.Errorf("HEAD: %s %q", got.Status, got.body)
	}
	if got := s.do(s.request(http.MethodPost, "/.well-known/x402")); got.body != "goods" {
		t.Errorf("POST: %s %q", got.Status, got.body)
	}
}

func TestTheDescriptionIsOpenAPIWithPrices(t *testing.T) {
	s := newSite(t)
	s.load(formatted(paidSite("ledger memory described\nfacilitator fake", fair)))
	got := s.get("/openapi.json")
	if got.StatusCode != http.StatusOK || got.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%s %v", got.Status, got.Header)
	}
	doc, err := os.ReadFile("testdata/openapi.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	schema, err := extension.ParseSchema(doc)
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate([]byte(got.body)); err != nil {
		t.Errorf("%v in %s", err, got.body)
	}
	var api openAPI
	mustJSON(t, got.body, &api)
	for at, want := range map[string]string{
		"/weather get": "0.001", "/users/{id} put": "0.01", "/posts post": "0.02", "/drafts/{path} post": "0.02", "/shop/cart get": "3", "/shop/deep/{path} get": "4",
	} {
		path, method, _ := strings.Cut(at, " ")
		o, ok := api.Paths[path][method]
		if !ok || o.Price.Price.Amount != want || o.Price.Price.Currency != "USD" || len(api.Paths[path]) != 1 {
			t.Errorf("%s is %+v", at, api.Paths[path])
		}
	}
	if len(api.Paths) != 6 || api.Info.Title != "A market" || api.Servers[0].URL != "http://"+s.address {
		t.Errorf("%d paths, %+v, %+v", len(api.Paths), api.Info, api.Servers)
	}
	weather := api.Paths["/weather"]["get"]
	if p := weather.Parameters; weather.Summary != "Current weather" || len(p) != 1 || p[0].Name != "city" || !p[0].Required || p[0].Example != "Berlin" || !strings.Contains(string(p[0].Schema), "minLength") {
		t.Errorf("weather is %+v", weather)
	}
	if c := weather.Responses["200"].Content["application/json"]; string(c.Example) != `{"celsius":21}` {
		t.Errorf("weather answers %+v", weather.Responses)
	}
	user := api.Paths["/users/{id}"]["put"]
	if user.RequestBody == nil || string(user.RequestBody.Content["application/json"].Example) != `{"name":"Ada"}` || len(user.Parameters) != 1 || user.Parameters[0].Example != "42" {
		t.Errorf("users is %+v", user)
	}
	if deep := api.Paths["/shop/deep/{path}"]["get"]; len(deep.Servers) != 1 || deep.Servers[0].URL != "https://deep.example.com" {
		t.Errorf("deep is at %+v", deep.Servers)
	}
}

// The settings of a route come to the challenge, and to the till.
func TestRoutesHaveTheExtensionsOfTheirSettings(t *testing.T) {
	t.Setenv("TEST_OFFER_KEY", payerKey)
	s := newSite(t)
	s.load(formatted(paidSite("ledger memory extended\nfacilitator fake\nsigned_by key {env.TEST_OFFER_KEY}", `
	x402 /weather $0.001 {
		payment_identifier required
		siwx 1h
		discover {
		}
	}
	x402 /stream $0.001 {
		settle first
	}
	respond goods`)))
	unpaid := s.get("/weather")
	c, err := payment.DecodeRequired(unpaid.Header.Get(payment.HeaderRequired))
	if err != nil {
		t.Fatal(err)
	}
	var said map[string]json.RawMessage
	mustJSON(t, string(c.Extensions), &said)
	for _, name := range []string{"payment-identifier", "bazaar", "sign-in-with-x", "offer-receipt"} {
		if _, ok := said[name]; !ok {
			t.Errorf("%s is missing from %s", name, c.Extensions)
		}
	}
	name, value := s.payFor("/weather")
	if got := s.get("/weather", name, value); got.StatusCode != http.StatusBadRequest {
		t.Errorf("without an identifier: %s %s", got.Status, got.body)
	}
	c.Extensions = []byte(strings.Replace(string(c.Extensions), `"info":{"required":true`, `"info":{"id":"pay_0123456789abcdef","required":true`, 1))
	name, value = sign(t, c, payerKey)
	paid := s.get("/weather", name, value)
	if paid.StatusCode != http.StatusOK || paid.body != "goods" {
		t.Fatalf("%s %s", paid.Status, paid.body)
	}
	doc, err := base64.StdEncoding.DecodeString(paid.Header.Get(payment.HeaderResponse))
	if err != nil {
		t.Fatal(err)
	}
	var settlement struct{ Extensions json.RawMessage }
	mustJSON(t, string(doc), &settlement)
	if r, err := extension.ReadReceipt(settlement.Extensions); err != nil || r == nil || r.Document.Resource != "http://"+s.address+"/weather" {
		t.Errorf("receipt %+v, %v", r, err)
	}

	key, err := localkey.Parse(payerKey)
	if err != nil {
		t.Fatal(err)
	}
	private, err := crypto.HexToECDSA(payerKey)
	if err != nil {
		t.Fatal(err)
	}
	in := &extension.SignIn{
		Domain: s.address, URI: "http://" + s.address + "/weather", Version: "1", Chain: "eip155:84532", Address: key.Address().Hex(),
		Nonce: "0123456789abcdef", Issued: time.Now().UTC().Format(time.RFC3339),
	}
	digest := in.Digest()
	if in.Signature, err = crypto.Sign(digest[:], private); err != nil {
		t.Fatal(err)
	}
	in.Signature[64] += 27
	if got := s.get("/weather", extension.HeaderSignIn, in.Header()); got.StatusCode != http.StatusOK || got.body != "goods" {
		t.Errorf("signed in: %s %s", got.Status, got.body)
	}

	c, err = payment.DecodeRequired(s.get("/stream").Header.Get(payment.HeaderRequired))
	if err != nil || string(c.Offers[0].Extra["paymentFlow"]) != `"upfront"` {
		t.Errorf("a route that settles first offers %+v, %v", c, err)
	}
	name, value = sign(t, c, payerKey)
	if got := s.get("/stream", name, value); got.StatusCode != http.StatusOK {
		t.Errorf("it is paid with %s %s", got.Status, got.body)
	}
}

// What others were paid for stays listed when the configuration changes.
func TestTheFacilitatorListsItsOwnWaresAndThoseOfOthers(t *testing.T) {
	directives := `handle_path /facilitator/* {
		x402_facilitator {
			insecure_open
			discovery
		}
	}
	x402 /goods $0.01 {
		discover {
			query city Berlin
		}
	}
	respond goods`
	m := newMarket(t, directives)
	resources := func() []string {
		t.Helper()
		got := m.get("/facilitator/discovery/resources?type=http")
		var list struct{ Items []facilitator.Listing }
		mustJSON(t, got.body, &list)
		var names []string
		for _, l := range list.Items {
			names = append(names, l.Resource)
		}
		return names
	}
	own := "http://" + m.address + "/goods"
	if got := resources(); !slices.Equal(got, []string{own}) {
		t.Errorf("before anybody has paid: %q", got)
	}
	body := strings.Replace(m.verifyRequest(), own, "https://shop.example.com/tea", 1)
	req, err := http.NewRequest(http.MethodPost, "http://"+m.address+"/facilitator/settle", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if got := m.do(req); got.StatusCode != http.StatusOK || got.Header.Get(facilitator.HeaderExtensionResponses) == "" {
		t.Fatalf("%s %s %v", got.Status, got.body, got.Header)
	}
	m.load(m.source(strings.Replace(directives, "$0.01", "$0.02", 1)))
	if got := resources(); !slices.Equal(got, []string{own, "https://shop.example.com/tea"}) {
		t.Errorf("after a reload: %q", got)
	}
}
