package caddymodule

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tollgate402/tollgate/payment"
)

// expressed computes the price of a request by an expression, in USDC, and
// says what a quote is bound to.
func expressed(t *testing.T, expression string, r *http.Request) (units string, basis []string, err error) {
	t.Helper()
	usdc, _ := payment.USDC("eip155:84532")
	most, err := payment.ParsePrice("$1", usdc)
	if err != nil {
		t.Fatal(err)
	}
	program, err := compile(expression, usdc)
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	p := &pricer{
		challenge: payment.Challenge{Offers: []payment.Offer{{Scheme: payment.Exact, Amount: most, PayTo: seller, Timeout: time.Minute}}},
		prices:    []price{{amount: most, program: program}},
	}
	got, err := p.Price(r)
	if err != nil {
		return "", nil, err
	}
	return got.Challenge.Offers[0].Amount.Units(), got.Basis, nil
}

// asked returns a request as Caddy hands it on, with placeholders.
func asked(method, target, body string, header ...string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	repl := caddy.NewReplacer()
	repl.Set("http.vars.tier", "gold")
	repl.Set("http.request.header.X-Tier", r.Header.Get("X-Tier"))
	repl.Set("http.request.remote.host", "192.0.2.1")
	return r.WithContext(context.WithValue(r.Context(), caddy.ReplacerCtxKey, repl))
}

func TestExpressionsComputeExactPrices(t *testing.T) {
	t.Setenv("TEST_PRICE", "$0.07")
	get := asked(http.MethodGet, "http://api.example.com:8080/img/large.png?w=640&q=a%2Bb&empty=", "", "X-Tier", "gold", "X-Width", "20")
	post := asked(http.MethodPost, "http://api.example.com/upload", strings.Repeat("x", 2500))
	for _, c := range []struct {
		expression, want string
		request          *http.Request
	}{
		{`"$0.01"`, "10000", get},
		{`" 0.01 USDC "`, "10000", get},
		{`"12345"`, "12345", get},
		{`12345`, "12345", get},
		{`usd("0.001") * size / 1024`, "2441", post},
		{`math.greatest(usd("0.001"), usd("0.001") * size / 1024)`, "1000", get},
		{`units("0.5 USDC") / 7`, "71428", get},
		{`method == "POST" ? usd("0.02") : usd("0.01")`, "20000", post},
		{`path.startsWith("/img/") ? "$0.03" : "$0.04"`, "30000", get},
		{`host == "api.example.com" ? 1 : 2`, "1", get},
		{`int(query.w) * 10`, "6400", get},
		{`query["q"] == "a+b" ? 3 : 4`, "3", get},
		{`has(query.w) && "w" in query && !has(query.h) && !("h" in query) ? 5 : 6`, "5", get},
		{`has(query.empty) && query.empty == "" ? 5 : 6`, "5", get},
		{`headers["x-tier"] == "gold" ? 7 : 8`, "7", get},
		{`int(headers["X-WIDTH"]) * usd("0.0001")`, "2000", get},
		{`"x-none" in headers ? 1 : 9`, "9", get},
		{`{http.vars.tier} == "gold" ? 11 : 12`, "11", get},
		{`placeholder["http.vars.tier"] == {http.request.header.X-Tier} ? 13 : 14`, "13", get},
		{`{http.request.header.X-Tier} == "" ? 15 : 16`, "15", post},
		{`{env.TEST_PRICE}`, "70000", get},
		{`cel.bind(n, int(query.w), n > 600 ? n : 600)`, "640", get},
	} {
		got, _, err := expressed(t, c.expression, c.request)
		if err != nil || got != c.want {
			t.Errorf("%s is %s, want %s (%v)", c.expression, got, c.want, err)
		}
	}
}

// Whatever goes wrong, there is no price: neither nothing nor the most.
func TestExpressionsThatGiveNoPriceAreErrors(t *testing.T) {
	twice := asked(http.MethodPost, "http://api.example.com/?w=1&w=1000&n=x&zero=0", "body", "X-Size", "1", "X-Size", "2")
	unread := asked(http.MethodGet, "http://api.example.com/?w=1;w=2", "")
	chunked := asked(http.MethodPost, "http://api.example.com/", "body")
	chunked.ContentLength = -1
	for _, c := range []struct {
		expression, want string
		request          *http.Request
	}{
		{`0`, "at least 1", twice},
		{`-5`, "at least 1", twice},
		{`""`, "price", twice},
		{`"$0"`, "zero", twice},
		{`"0.01"`, "has no unit", twice},
		{`"$0.0000001"`, "finer", twice},
		{`"$1e-3"`, "not a number", twice},
		{`"$2"`, "max_price allows 1 USDC", twice},
		{`1000001`, "max_price allows 1 USDC", twice},
		{`usd("0.001") * size / 1024 / 1024`, "at least 1", twice},
		{`9223372036854775807 + size`, "overflow", twice},
		{`1 / int(query.zero)`, "division by zero", twice},
		{`int(query.n)`, "type conversion", twice},
		{`int(query.none)`, "no such key", twice},
		{`headers["x-none"]`, "no such key", twice},
		{`query.w == "1" ? 1 : 1000`, "query parameter w is given more than once", twice},
		{`has(query.w) ? 1 : 1000`, "query parameter w is given more than once", twice},
		{`"w" in query ? 1 : 1000`, "query parameter w is given more than once", twice},
		{`headers["x-size"] == "1" ? 1 : 2`, "header x-size is given more than once", twice},
		{`has(query.w) ? 1 : 1000`, "the query cannot be read", unread},
		{`size > 1000 ? 1000 : 1`, "does not say how long its body is", chunked},
		{`size(query) > 1 ? 1 : 2`, "looked up by its name", twice},
		{`query == headers ? 1 : 2`, "looked up by its name", twice},
		{`{http.vars.none} == "" ? 1 : 2`, "{http.vars.none} is not known", twice},
		{`placeholder["http.request." + "body"] == "" ? 1 : 2`, "before the body is read", twice},
		{`usd(query.n)`, "not a number", twice},
	} {
		got, _, err := expressed(t, c.expression, c.request)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s is %q, %v; want an error with %q", c.expression, got, err, c.want)
		}
	}
}

func TestExpressionsThatCannotGiveAPriceAreRefusedAtTheStart(t *testing.T) {
	usdc, _ := payment.USDC("eip155:84532")
	for expression, want := range map[string]string{
		`0.01`:                            "floating-point",
		`double(size) * 0.001`:            "floating-point",
		`int(double(size) / 3.0)`:         "floating-point",
		`int(math.ceil(1.5))`:             "floating-point",
		`size > 1.5 ? 1 : 2`:              "floating-point",
		`double(size) > 1.5 ? 1 : 2`:      "floating-point",
		`size > 10`:                       "gives a bool",
		`[1, 2]`:                          "gives a list(int)",
		`1u`:                              "gives a uint",
		`dyn(1)`:                          "gives a dyn",
		`dyn(1.5) == 1 ? 1 : 2`:           "floating-point",
		`query`:                           "gives a map",
		`size > 1 ? 1 : "$1"`:             "no matching overload",
		`siez * 10`:                       "undeclared reference to 'siez' (line 1, character 1)",
		`1 +`:                             "Syntax error",
		``:                                "Syntax error",
		`usd("0.0000001") * size`:         "finer than USDC",
		`usd("one") * size`:               "not a number",
		`size > 0 ? units("1 DAI") : 1`:   "token here is USDC",
		`usd("99999999999999")`:           "write the whole price as a string",
		`{http.request.body} == "" ? 1:2`: "before the body is read",
		`query.exists(k, k == "w")? 1:2`:  "undeclared",
	} {
		_, err := compile(expression, usdc)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want an error with %q", expression, err, want)
		}
	}
}

// aQuoteSecret gives a site quotes of its own, on a clock that is so many
// seconds ahead. It must be called before newSite.
func aQuoteSecret(t *testing.T) (ahead *atomic.Int64) {
	t.Helper()
	t.Setenv("TEST_QUOTE_SECRET", "the secret of the quotes of "+t.Name())
	key, err := quoteKeyOf("{env.TEST_QUOTE_SECRET}")
	if err != nil {
		t.Fatal(err)
	}
	source := quoteSource{key: *key}
	ahead = new(atomic.Int64)
	_, loaded, err := quotes.LoadOrNew(source, func() (caddy.Destructor, error) {
		q := &quotesInUse{}
		q.Key, q.Now = *key, func() time.Time { return time.Now().Add(time.Duration(ahead.Load()) * time.Second) }
		return q, nil
	})
	if err != nil || loaded {
		t.Fatal("somebody else uses these quotes", err)
	}
	t.Cleanup(func() {
		if _, err := quotes.Delete(source); err != nil {
			t.Error(err)
		}
	})
	return ahead
}

const computed = memory + `
		max_price $1
		quote_secret {env.TEST_QUOTE_SECRET}`

// asks returns the challenge that a request gets, in a version.
func (s *site) asks(version int, req *http.Request) *payment.Received {
	s.t.Helper()
	unpaid := s.do(req)
	if unpaid.StatusCode != http.StatusPaymentRequired {
		s.t.Fatalf("%s: %s %s", req.URL, unpaid.Status, unpaid.body)
	}
	c, err := payment.DecodeRequired(unpaid.Header.Get(payment.HeaderRequired))
	if version == payment.V1 {
		c, err = payment.DecodeRequiredBody([]byte(unpaid.body))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// paying returns a request with a payment of its first offer.
func (s *site) paying(c *payment.Received, req *http.Request) *http.Request {
	s.t.Helper()
	name, value := sign(s.t, c, payerKey)
	req.Header.Set(name, value)
	return req
}

func (s *site) upload(path, body string, header ...string) *http.Request {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+s.address+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

func TestPricesFollowTheRequest(t *testing.T) {
	aQuoteSecret(t)
	s := newSite(t)
	s.load(paidSite(computed, `map {path} {img_price} {
		/img/small "$0.01"
		/img/large "0.05 USDC"
		default 20000
	}
	x402 /img/* {img_price}
	x402 /named {header.X-Price} "What you like" {
		max_price $0.10
	}
	vars /vip tier gold
	x402 /vip* {
		price expression {vars.tier} == "gold" ? "$0.30" : "$0.40"
	}
	x402 /upload {
		price expression `+"`usd(\"0.001\") * size / 1024 + (headers[\"x-fast\"] == \"yes\" ? usd(\"0.50\") : 0)`"+`
	}
	header /paid* >X-Amount {http.x402.amount}
	x402 /paid* {
		price "${query.dollars}"
	}
	respond "goods"`))
	for _, version := range []int{payment.V1, payment.V2} {
		for _, c := range []struct {
			request func() *http.Request
			want    string
		}{
			{func() *http.Request { return s.request(http.MethodGet, "/img/small") }, "10000"},
			{func() *http.Request { return s.request(http.MethodGet, "/img/large") }, "50000"},
			{func() *http.Request { return s.request(http.MethodGet, "/img/other") }, "20000"},
			{func() *http.Request { return s.request(http.MethodGet, "/named", "X-Price", "$0.07") }, "70000"},
			{func() *http.Request { return s.request(http.MethodGet, "/named", "X-Price", "123") }, "123"},
			{func() *http.Request { return s.request(http.MethodGet, "/vip") }, "300000"},
			{func() *http.Request { return s.request(http.MethodGet, "/vip/no") }, "400000"},
			{func() *http.Request { return s.upload("/upload", strings.Repeat("x", 2048), "X-Fast", "no") }, "2000"},
			{func() *http.Request { return s.upload("/upload", strings.Repeat("x", 2048), "X-Fast", "yes") }, "502000"},
			{func() *http.Request { return s.request(http.MethodGet, "/paid?dollars=0.25") }, "250000"},
		} {
			challenge := s.asks(version, c.request())
			if got := challenge.Offers[0].Amount.Units(); got != c.want {
				t.Errorf("%s costs %s, want %s", c.request().URL, got, c.want)
				continue
			}
			before := settled.Load()
			got := s.do(s.paying(challenge, c.request()))
			if got.StatusCode != http.StatusOK || got.body != "goods" || settled.Load() != before+1 {
				t.Errorf("%s: %s %s", c.request().URL, got.Status, got.body)
			}
			if strings.HasPrefix(c.request().URL.Path, "/paid") && got.Header.Get("X-Amount") != c.want {
				t.Errorf("%s: {http.x402.amount} is %q", c.request().URL, got.Header.Get("X-Amount"))
			}
		}
	}
}

// The price comes from the environment, which the seller changes.
func TestAChangedPriceIsHonouredForAMinuteInARealServer(t *testing.T) {
	ahead := aQuoteSecret(t)
	t.Setenv("TEST_PRICE", "$0.01")
	s := newSite(t)
	source := paidSite(computed, `x402 /text {env.TEST_PRICE}
	x402 /cel {
		price expression {env.TEST_PRICE} == "free" ? "0" : {env.TEST_PRICE}
	}
	respond "goods"`)
	s.load(source)
	for _, version := range []int{payment.V1, payment.V2} {
		for _, path := range []string{"/text", "/cel"} {
			t.Setenv("TEST_PRICE", "$0.01")
			c := s.asks(version, s.request(http.MethodGet, path))
			inTime, reloaded, late, elsewhere := s.paying(c, s.request(http.MethodGet, path)), s.paying(c, s.request(http.MethodGet, path)),
				s.paying(c, s.request(http.MethodGet, path)), s.paying(c, s.request(http.MethodGet, path+"?more"))
			t.Setenv("TEST_PRICE", "$0.02")
			if got := s.do(inTime); got.StatusCode != http.StatusOK {
				t.Errorf("v%d %s in time: %s %s", version, path, got.Status, got.body)
			}
			if got := s.do(elsewhere); got.StatusCode != http.StatusPaymentRequired {
				t.Errorf("v%d %s for another request: %s %s", version, path, got.Status, got.body)
			}
			s.load(source)
			ahead.Add(59)
			if got := s.do(reloaded); got.StatusCode != http.StatusOK {
				t.Errorf("v%d %s after a reload: %s %s", version, path, got.Status, got.body)
			}
			ahead.Add(2)
			got := s.do(late)
			again, err := payment.DecodeRequired(got.Header.Get(payment.HeaderRequired))
			if got.StatusCode != http.StatusPaymentRequired || err != nil || again.Offers[0].Amount.Units() != "20000" {
				t.Errorf("v%d %s too late: %s %s", version, path, got.Status, got.body)
			}
			ahead.Add(600)
			if got := s.do(inTime); got.StatusCode != http.StatusOK {
				t.Errorf("v%d %s: what was paid is not had again: %s %s", version, path, got.Status, got.body)
			}
		}
	}
}

// What decides the price is part of what a quote is for: each of these pays
// the price of the cheap request, and sends the dear one.
func TestAQuoteOfACheapRequestIsRefusedForADearOne(t *testing.T) {
	aQuoteSecret(t)
	t.Setenv("TEST_PRICE", "1")
	s := newSite(t)
	s.load(paidSite(computed, `map {header.X-Model} {model_price} {
		large "$0.50"
		default "$0.01"
	}
	x402 /header {header.X-Price}
	x402 /map {model_price}
	x402 /trusted {header.X-Price} {
		quote_ignores x-price
	}
	@small {
		path /routes
		header X-Model small
	}
	@large {
		path /routes
		header X-Model large
	}
	x402 @small $0.0{env.TEST_PRICE}
	x402 @large $0.5{env.TEST_PRICE}
	x402 /cel {
		price expression `+"`size + (headers[\"x-model\"] == \"large\" ? 1000 : 1)`"+`
	}
	respond "goods"`))
	for _, version := range []int{payment.V1, payment.V2} {
		for _, c := range []struct {
			name        string
			cheap, dear func() *http.Request
			want        int
		}{
			{
				"header", func() *http.Request { return s.request(http.MethodGet, "/header", "X-Price", "1") },
				func() *http.Request { return s.request(http.MethodGet, "/header", "X-Price", "2") }, 402,
			},
			{
				"header that clients cannot set", func() *http.Request { return s.request(http.MethodGet, "/trusted", "X-Price", "1") },
				func() *http.Request { return s.request(http.MethodGet, "/trusted", "X-Price", "2") }, 200,
			},
			{
				"header that map reads", func() *http.Request { return s.request(http.MethodGet, "/map", "X-Model", "small") },
				func() *http.Request { return s.request(http.MethodGet, "/map", "X-Model", "large") }, 402,
			},
			{
				"same header, ids of the way", func() *http.Request {
					return s.request(http.MethodGet, "/map", "X-Model", "small", "Traceparent", "00-1")
				},
				func() *http.Request {
					return s.request(http.MethodGet, "/map", "X-Model", "small", "Traceparent", "00-2", "Access-Control-Expose-Headers", "PAYMENT-RESPONSE")
				}, 200,
			},
			{
				"size", func() *http.Request { return s.upload("/cel", "x", "X-Model", "small") },
				func() *http.Request { return s.upload("/cel", strings.Repeat("x", 999), "X-Model", "small") }, 402,
			},
			{
				"header in an expression", func() *http.Request { return s.upload("/cel", "x", "X-Model", "small") },
				func() *http.Request { return s.upload("/cel", "x", "X-Model", "large") }, 402,
			},
			{
				"another route", func() *http.Request { return s.request(http.MethodGet, "/routes", "X-Model", "small") },
				func() *http.Request { return s.request(http.MethodGet, "/routes", "X-Model", "large") }, 402,
			},
			{
				"another header", func() *http.Request { return s.upload("/cel", "x", "X-Model", "small") },
				func() *http.Request { return s.upload("/cel", "x", "X-Model", "small", "X-Other", "1") }, 200,
			},
		} {
			before := settled.Load()
			got := s.do(s.paying(s.asks(version, c.cheap()), c.dear()))
			if got.StatusCode != c.want || (settled.Load() != before) != (c.want == http.StatusOK) {
				t.Errorf("v%d, %s: %s %s", version, c.name, got.Status, got.body)
			}
		}
	}
}

func TestARequestWithoutAGoodPriceIsAnError(t *testing.T) {
	aQuoteSecret(t)
	s := newSite(t)
	s.load(paidSite(computed, `x402 {header.X-Price} {
		max_price $0.05
	}
	respond "goods"
	handle_errors {
		respond "{err.message}" {err.status_code}
	}`))
	for price, want := range map[string]string{
		"":            "{http.request.header.X-Price} has no value",
		"0":           "is zero",
		"$0.00":       "is zero",
		"-1":          "is not a price",
		"0.01":        "has no unit",
		"$0.0000001":  "finer than USDC",
		"$0.050001":   "it is 0.050001 USDC, and max_price allows 0.05 USDC",
		"1e4":         "is not a price",
		"NaN":         "is not a price",
		"{env.HOME}":  "has no unit",
		"0.01 EURC":   "the token here is USDC",
		"$0.01 $0.01": "is not a number",
	} {
		got := s.get("/x", "X-Price", price)
		if got.StatusCode != http.StatusInternalServerError || !strings.Contains(got.body, "pricing GET /x: ") || !strings.Contains(got.body, want) || got.Header.Get(payment.HeaderRequired) != "" {
			t.Errorf("price %q: %s %s, want %q", price, got.Status, got.body, want)
		}
	}
	twice := s.request(http.MethodGet, "/x", "X-Price", "1")
	twice.Header.Add("X-Price", "2")
	if got := s.do(twice); got.StatusCode != http.StatusInternalServerError {
		t.Errorf("two prices: %s %s", got.Status, got.body)
	}
}

// The examples of the guide are what they say.
func TestTheExamplesOfTheGuideAreFormattedAndValid(t *testing.T) {
	t.Setenv("X402_QUOTE_SECRET", strings.Repeat("s", minSecret))
	checkExamples(t, "../docs/pricing.md", 3)
}

// checkExamples validates the Caddyfiles in a guide, of which there must be
// some.
func checkExamples(t *testing.T, file string, least int) {
	t.Helper()
	guide, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```caddyfile\n(.*?)```").FindAllStringSubmatch(string(guide), -1)
	if len(examples) < least {
		t.Fatalf("%d examples", len(examples))
	}
	for _, e := range examples {
		if string(caddyfile.Format([]byte(e[1]))) != e[1] {
			t.Errorf("not formatted:\n%s", e[1])
		}
		source := e[1]
		if !strings.HasPrefix(source, "{") {
			source = "{\n\tx402 {\n\t\tpay_to " + seller + "\n\t\tnetwork base\n\t\tfacilitator fake\n\t\tmax_price $1\n\t}\n}\n" + source
		}
		doc, err := adapt(source)
		if err == nil {
			err = validate(doc)
		}
		if err != nil {
			t.Errorf("%v in\n%s", err, e[1])
		}
	}
}

func TestAQuotedAmountHasItsOwnFinality(t *testing.T) {
	usdc, _ := payment.USDC("eip155:84532")
	amount := func(s string) payment.Amount {
		a, err := payment.ParsePrice(s, usdc)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	p := &pricer{
		challenge: payment.Challenge{Offers: []payment.Offer{{Scheme: payment.Exact, Amount: amount("$1"), PayTo: seller, Timeout: time.Minute}}},
		steps:     []UntilStep{{Under: "$0.10", Until: "submitted"}, {Until: "finalized"}},
	}
	for price, want := range map[string]payment.Finality{"$0.09": payment.Submitted, "$0.10": payment.Finalized} {
		o, err := p.At(0, amount(price))
		if err != nil || o.Until != want || o.Amount.Cmp(amount(price)) != 0 {
			t.Errorf("%s: until %v, %v", price, o.Until, err)
		}
	}
}
