package payment_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tollgate402/tollgate/payment"
)

// shop is a challenge with offers of every kind: three that v1 clients can
// pay, and others for a network, a scheme or a method that they do not know.
func shop(t testing.TB) payment.Challenge {
	t.Helper()
	offer := func(n payment.Network, change func(*payment.Offer)) payment.Offer {
		usdc, ok := payment.USDC(n)
		if !ok {
			t.Fatalf("no USDC on %s", n)
		}
		o := payment.Offer{Scheme: payment.Exact, Amount: amount(t, usdc, "10000"), PayTo: "0x9ABD6cF932170C471d01d746fe796703eDa24890", Timeout: payment.DefaultTimeout}
		if change != nil {
			change(&o)
		}
		return o
	}
	extra := func(name, value string) func(*payment.Offer) {
		return func(o *payment.Offer) { o.Extra = map[string]json.RawMessage{name: json.RawMessage(value)} }
	}
	nameless := payment.Token{Network: "eip155:8453", Address: "0x9ABD6cF932170C471d01d746fe796703eDa24890"}
	solana := payment.Token{Network: "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", Address: "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", Symbol: "USDC", Decimals: 6}
	return payment.Challenge{
		Description: "Premium market data", MimeType: "application/json",
		Offers: []payment.Offer{
			offer("eip155:8453", nil),
			offer("eip155:8453", func(o *payment.Offer) { o.Scheme, o.Amount = payment.Upto, amount(t, nameless, "7") }),
			offer("eip155:1", nil), // not in the legacy list
			offer("eip155:84532", func(o *payment.Offer) { o.Scheme, o.Timeout = payment.Upto, 5*time.Minute }),
			offer("eip155:84532", extra("assetTransferMethod", `"permit2"`)),
			offer("eip155:84532", extra("assetTransferMethod", `"eip3009"`)),
			{
				Scheme: payment.Exact, Amount: amount(t, solana, "5"), PayTo: "J6tPSjkmvt67ktU2JmdW49GHVU4MaFg69kcUTaDUChtZ", Timeout: time.Second,
				Extra: map[string]json.RawMessage{"feePayer": json.RawMessage(`"2Gf2Dr8iWQWZTBnYi797BRCydBL3GxBXGZWkdFKHf7U2"`), "memo": json.RawMessage(`"order-42"`)},
			},
		},
		Extensions: json.RawMessage(`{"bazaar":{"info":{"input":{"type":"http"}},"schema":{}}}`),
	}
}

// generic encodes a challenge the plain way, by maps.
func generic(t testing.TB, c payment.Challenge, version int, url, reason string) []byte {
	t.Helper()
	accepts := []map[string]any{}
	for _, o := range c.Offers {
		token := o.Amount.Token()
		extra := map[string]any{}
		for k, v := range o.Extra {
			extra[k] = v
		}
		if token.Name != "" {
			extra["name"], extra["version"] = token.Name, token.Version
		}
		entry := map[string]any{
			"scheme": o.Scheme, "network": o.Network().In(version), "asset": token.Address, "payTo": o.PayTo,
			"maxTimeoutSeconds": int(o.Timeout.Seconds()),
		}
		if len(extra) > 0 {
			entry["extra"] = extra
		}
		if version == payment.V2 {
			entry["amount"] = o.Amount.Units()
		} else {
			entry["maxAmountRequired"] = o.Amount.Units()
			entry["resource"], entry["description"], entry["mimeType"] = url, c.Description, c.MimeType
		}
		if version == payment.V2 || o.V1() {
			accepts = append(accepts, entry)
		}
	}
	whole := map[string]any{"x402Version": version, "error": reason, "accepts": accepts}
	if version == payment.V2 {
		whole["resource"] = map[string]any{"url": url, "description": c.Description, "mimeType": c.MimeType}
		if len(c.Extensions) > 0 {
			whole["extensions"] = c.Extensions
		}
	}
	doc, err := json.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestPreparedChallengesEqualTheSameStructureEncodedPlainly(t *testing.T) {
	for _, description := range []string{
		"Premium market data", "", `"quoted" and back\slashed`, "Tägliche Wetterdaten für 5 €", "天気データ 😀", "</script><img src=x onerror=alert(1)> & more",
		"two\nlines\tand\x00\x1f\x7f", "line\u2028and paragraph\u2029separators", "broken \xff\xc0 bytes",
	} {
		for _, url := range []string{"https://api.example.com/premium-data", "", "https://api.example.com/a?b=c&d=<e>", `https://a/"><script>`, "https://a/ü/天気", "https://a/\\", "https://a/\n", "https://a/\x7f", "https://a/\xff"} {
			for _, reason := range []payment.Reason{payment.PaymentRequired, payment.EVMSignature, `an "odd" reason ü` + "\n"} {
				c := shop(t)
				c.Description, c.MimeType = description, description+"/json"
				p, err := c.Prepare()
				if err != nil {
					t.Fatal(err)
				}
				sameJSON(t, unbase64(t, p.V2(url, reason)), generic(t, c, payment.V2, url, string(reason)))
				old := string(reason)
				if reason == payment.PaymentRequired {
					old = "X-PAYMENT header is required"
				}
				body := p.V1(url, reason)
				sameJSON(t, body, generic(t, c, payment.V1, url, old))
				if !utf8.Valid(body) {
					t.Errorf("the body is not UTF-8: %q", body)
				}
			}
		}
	}
}

func TestLegacyClientsAreOfferedOnlyWhatTheyCanRead(t *testing.T) {
	c := shop(t)
	p, err := c.Prepare()
	if err != nil {
		t.Fatal(err)
	}
	var body struct {
		X402Version int
		Accepts     []map[string]json.RawMessage
	}
	if err := json.Unmarshal(p.V1("https://a/b", payment.PaymentRequired), &body); err != nil {
		t.Fatal(err)
	}
	var networks []string
	for _, entry := range body.Accepts {
		networks = append(networks, text(t, entry["network"]))
		for _, name := range []string{"scheme", "maxAmountRequired", "resource", "description", "mimeType", "payTo", "asset", "maxTimeoutSeconds"} {
			if _, ok := entry[name]; !ok {
				t.Errorf("%s is missing in %v", name, entry)
			}
		}
		for name, value := range entry {
			if string(value) == "null" {
				t.Errorf("%s is null, which npm 1.2.0 rejects", name)
			}
		}
	}
	if got, want := fmt.Sprint(networks), "[base base-sepolia solana]"; got != want {
		t.Errorf("offers for %s, want %s", got, want)
	}
}

func TestLegacyClientsGetAnEmptyObjectWhenTheyCanPayNothing(t *testing.T) {
	c := shop(t)
	c.Offers = c.Offers[1:5]
	p, err := c.Prepare()
	if err != nil {
		t.Fatal(err)
	}
	if got := string(p.V1("https://a/b", payment.PaymentRequired)); got != "{}" {
		t.Errorf("got %s", got)
	}
	if _, err := payment.DecodeRequired(p.V2("https://a/b", payment.PaymentRequired)); err != nil {
		t.Error(err)
	}
}

func TestOneChallengeIsServedToManyAtOnce(t *testing.T) {
	c := shop(t)
	p, err := c.Prepare()
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for i := range 32 {
		wait.Go(func() {
			url := fmt.Sprintf("https://api.example.com/%d?q=ü", i)
			for range 50 {
				v2, err := base64.StdEncoding.DecodeString(p.V2(url, payment.PaymentRequired))
				if err != nil {
					t.Error(err)
				}
				for _, doc := range [][]byte{v2, p.V1(url, payment.PaymentRequired)} {
					if !json.Valid(doc) || strings.Count(string(doc), url) == 0 {
						t.Errorf("%s: got %s", url, doc)
					}
				}
			}
		})
	}
	wait.Wait()
}

func TestChallengesThatCannotBeServedAreRefused(t *testing.T) {
	for want, change := range map[string]func(*payment.Challenge){
		"challenge has no offers":               func(c *payment.Challenge) { c.Offers = nil },
		"offer has no scheme":                   func(c *payment.Challenge) { c.Offers[0].Scheme = "" },
		"offer has no price":                    func(c *payment.Challenge) { c.Offers[0].Amount = payment.Amount{} },
		"offer has no recipient: add pay_to":    func(c *payment.Challenge) { c.Offers[1].PayTo = "" },
		"offer has timeout 0s: it must be":      func(c *payment.Challenge) { c.Offers[0].Timeout = 0 },
		"offer has timeout -1s: it must be":     func(c *payment.Challenge) { c.Offers[0].Timeout = -time.Second },
		"offer has timeout 1.5s: it must be":    func(c *payment.Challenge) { c.Offers[0].Timeout = 1500 * time.Millisecond },
		`offer has extra "a", whose value is`:   func(c *payment.Challenge) { c.Offers[0].Extra = map[string]json.RawMessage{"a": json.RawMessage("{")} },
		"extensions.a: is not valid JSON at by": func(c *payment.Challenge) { c.Extensions = json.RawMessage(`{"a":`) },
		"extensions: is an object without memb": func(c *payment.Challenge) { c.Extensions = json.RawMessage(`{}`) },
		"extensions: must be a JSON object":     func(c *payment.Challenge) { c.Extensions = json.RawMessage(`[]`) },
	} {
		c := shop(t)
		change(&c)
		if p, err := c.Prepare(); err == nil || p != nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestPayersSeeTheOffersThatTheyCanReadAndEchoThemUnchanged(t *testing.T) {
	offer := func(change string) string { return strings.Replace(ruleAccepted, `"scheme":"exact"`, change, 1) }
	odd := offer(`"scheme" :  "exact","foo":[1, 2]`)
	doc := `{"x402Version":2,"error":"Payment required","resource":{"url":"https://a"},"extensions":{"e":{"info":{}}},"accepts":[` +
		strings.Join([]string{
			offer(`"scheme":7`), strings.Replace(ruleAccepted, "eip155:84532", "eip155:*", 1), odd, strings.Replace(ruleAccepted, `"10000"`, "10000", 1),
			strings.Replace(ruleAccepted, "eip155:84532", "base-sepolia", 1),
		}, ",") + `]}`
	got, err := payment.DecodeRequired(base64Header(doc))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Offers) != 2 || got.Error != "Payment required" {
		t.Fatalf("got %+v", got)
	}
	first, second := got.Offers[0], got.Offers[1]
	if string(first.Raw) != odd || first.Offer.Network() != "eip155:84532" || first.Amount.Units() != "10000" || first.Timeout != time.Minute || first.Amount.Token().Name != "USDC" {
		t.Errorf("got %+v", first)
	}
	if second.Network != "base-sepolia" || second.Offer.Network() != "eip155:84532" {
		t.Errorf("got %+v", second)
	}
	_, value := got.Pay(&first, json.RawMessage(`{"signature":"0x"}`)).Header()
	sameJSON(t, unbase64(t, value), []byte(`{"x402Version":2,"resource":{"url":"https://a"},"accepted":`+odd+`,"payload":{"signature":"0x"},"extensions":{"e":{"info":{}}}}`))
}

func TestChallengesThatCannotBeReadAreMalformed(t *testing.T) {
	v2 := `{"x402Version":2,"resource":{"url":"https://a"},"accepts":[` + ruleAccepted + `]}`
	v1 := strings.Replace(v2, ":2", ":1", 1)
	for name, row := range map[string]struct {
		doc     string
		version int
	}{
		"version 1 in the header":  {v1, 2},
		"version 2 in the body":    {v2, 1},
		"no version":               {strings.Replace(v2, `"x402Version":2,`, "", 1), 2},
		"no accepts":               {`{"x402Version":2,"resource":{}}`, 2},
		"accepts in another case":  {strings.Replace(v2, "accepts", "Accepts", 1), 2},
		"accepts twice":            {strings.Replace(v2, `"accepts"`, `"Accepts":[],"accepts"`, 1), 2},
		"accepts is an object":     {`{"x402Version":2,"accepts":{}}`, 2},
		"an offer is a string":     {`{"x402Version":2,"accepts":["x"]}`, 2},
		"too many offers":          {`{"x402Version":2,"accepts":[` + strings.Repeat("{},", 64) + `{}]}`, 2},
		"error is an object":       {strings.Replace(v2, `"resource"`, `"error":{},"resource"`, 1), 2},
		"resource is a string":     {strings.Replace(v2, `{"url":"https://a"}`, `"https://a"`, 1), 2},
		"extensions are a list":    {strings.Replace(v2, `"resource"`, `"extensions":[],"resource"`, 1), 2},
		"HTML":                     {"<!doctype html>", 1},
		"empty":                    {"", 1},
		"too large":                {`{"x402Version":1,"note":"` + strings.Repeat("x", payment.MaxChallenge) + `"}`, 1},
		"too large for the header": {`{"x402Version":2,"note":"` + strings.Repeat("x", payment.MaxChallenge) + `"}`, 2},
		"control characters":       {"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09", 2},
	} {
		var got *payment.Received
		var err error
		if row.version == payment.V2 {
			got, err = payment.DecodeRequired(base64Header(row.doc))
		} else {
			got, err = payment.DecodeRequiredBody([]byte(row.doc))
		}
		var malformed *payment.MalformedError
		if got != nil || !errors.As(err, &malformed) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

func TestHeadersThatAreNoChallengeAreMalformed(t *testing.T) {
	for _, value := range []string{"", "not base64!", strings.Repeat("A", payment.MaxChallenge+1)} {
		var malformed *payment.MalformedError
		if got, err := payment.DecodeRequired(value); got != nil || !errors.As(err, &malformed) {
			t.Errorf("%.20q: got %v, %v", value, got, err)
		}
	}
}

func FuzzDecodeRequired(f *testing.F) {
	c := shop(f)
	p, err := c.Prepare()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(unbase64(f, p.V2("https://a", payment.PaymentRequired)))
	f.Add(p.V1("https://a", payment.PaymentRequired))
	f.Add([]byte(`{"x402Version":2,"accepts":[{},{"scheme":"x"}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		for _, read := range []func() (*payment.Received, error){
			func() (*payment.Received, error) {
				return payment.DecodeRequired(base64.StdEncoding.EncodeToString(doc))
			},
			func() (*payment.Received, error) { return payment.DecodeRequiredBody(doc) },
		} {
			got, err := read()
			if err != nil {
				var malformed *payment.MalformedError
				if !errors.As(err, &malformed) || got != nil {
					t.Fatalf("error of type %T with %v", err, got)
				}
				continue
			}
			for i := range got.Offers {
				o := &got.Offers[i]
				name, value := got.Pay(o, json.RawMessage(`{}`)).Header()
				var v2, v1 []string
				if name == payment.HeaderPayment {
					v2 = []string{value}
				} else {
					v1 = []string{value}
				}
				paid, err := payment.FromHeader(v2, v1)
				if err != nil {
					if len(value) > payment.MaxHeader {
						continue
					}
					t.Fatalf("paying %s gives a payment that cannot be read: %v", o.Raw, err)
				}
				if o.V1() || got.Version == payment.V2 {
					if payment.Match(paid, []payment.Offer{o.Offer}) == nil {
						t.Fatalf("paying %s gives a payment that does not match it", o.Raw)
					}
				}
			}
		}
	})
}

func TestExtensionsOfOneChallengeComeAfterItsOwn(t *testing.T) {
	for own, want := range map[string]string{
		"":             `{"b":{"info":{}},"c":1}`,
		` {"a": {} } `: `{"a":{},"b":{"info":{}},"c":1}`,
	} {
		c := payment.Challenge{Offers: []payment.Offer{ruleOffer(t)}, Extensions: json.RawMessage(own)}
		p, err := c.Prepare()
		if err != nil {
			t.Fatal(err)
		}
		got, err := payment.DecodeRequired(p.V2Extended("https://a.example/", payment.PaymentRequired, json.RawMessage(`{"b":{"info":{}},"c":1}`)))
		if err != nil || sorted(t, got.Extensions) != sorted(t, []byte(want)) || len(got.Offers) != 1 {
			t.Errorf("%s: %+v, %v", own, got, err)
		}
		if got, err = payment.DecodeRequired(p.V2("https://a.example/", payment.PaymentRequired)); err != nil || len(got.Offers) != 1 {
			t.Errorf("%s afterwards: %+v, %v", own, got, err)
		}
	}
}

func TestOnlyV2SettlementsHaveExtensions(t *testing.T) {
	o := ruleOffer(t)
	s := &payment.Settlement{Network: o.Network(), Transaction: "0x01", Amount: o.Amount, Extensions: json.RawMessage(`{"a":{"info":{}}}`)}
	if doc := string(payment.EncodeSettlement(payment.V2, payment.Exact, s)); !strings.Contains(doc, `"extensions":{"a":{"info":{}}}`) {
		t.Errorf("v2: %s", doc)
	}
	if doc := string(payment.EncodeSettlement(payment.V1, payment.Exact, s)); strings.Contains(doc, "extensions") {
		t.Errorf("v1: %s", doc)
	}
}
