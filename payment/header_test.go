package payment_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/tollgate402/tollgate/payment"
)

const (
	paymentV1 = `{"x402Version":1,"scheme":"exact","network":"base-sepolia","payload":{"signature":"0x"}}`
	paymentV2 = `{"x402Version":2,"accepted":` + ruleAccepted + `,"payload":{"signature":"0x"}}`
)

func base64Header(doc string) string { return base64.StdEncoding.EncodeToString([]byte(doc)) }

func TestOneHeaderWithOnePaymentIsReadAndEverythingElseRefused(t *testing.T) {
	v1, v2 := base64Header(paymentV1), base64Header(paymentV2)
	long := base64Header(`{"x402Version":2,"note":"` + strings.Repeat("x", payment.MaxHeader) + `"}`)
	for name, row := range map[string]struct {
		v2, v1 []string
		want   int    // version, 0 for no payment, -1 for an error
		what   string // header that the error names
	}{
		"no header":                      {nil, nil, 0, ""},
		"no values":                      {[]string{}, []string{}, 0, ""},
		"one v2":                         {[]string{v2}, nil, 2, ""},
		"one v1":                         {nil, []string{v1}, 1, ""},
		"both headers":                   {[]string{v2}, []string{v1}, -1, "PAYMENT-SIGNATURE"},
		"both headers, one empty":        {[]string{v2}, []string{""}, -1, "PAYMENT-SIGNATURE"},
		"both headers, both empty":       {[]string{""}, []string{""}, -1, "PAYMENT-SIGNATURE"},
		"v2 twice, equal":                {[]string{v2, v2}, nil, -1, "PAYMENT-SIGNATURE"},
		"v2 twice, other empty":          {[]string{v2, ""}, nil, -1, "PAYMENT-SIGNATURE"},
		"v1 twice":                       {nil, []string{v1, v1}, -1, "X-PAYMENT"},
		"v2 empty":                       {[]string{""}, nil, -1, "PAYMENT-SIGNATURE"},
		"v1 empty":                       {nil, []string{""}, -1, "X-PAYMENT"},
		"v1 payment in the v2 header":    {[]string{v1}, nil, -1, "PAYMENT-SIGNATURE"},
		"v2 payment in the v1 header":    {nil, []string{v2}, -1, "X-PAYMENT"},
		"two values joined":              {[]string{v2 + "," + v2}, nil, -1, "PAYMENT-SIGNATURE"},
		"two values joined with a blank": {[]string{v2 + ", " + v2}, nil, -1, "PAYMENT-SIGNATURE"},
		"value and empty value joined":   {[]string{v2 + ","}, nil, -1, "PAYMENT-SIGNATURE"},
		"quoted":                         {[]string{`"` + v2 + `"`}, nil, -1, "PAYMENT-SIGNATURE"},
		"with a scheme in front":         {[]string{"x402 " + v2}, nil, -1, "PAYMENT-SIGNATURE"},
		"plain JSON":                     {[]string{paymentV2}, nil, -1, "PAYMENT-SIGNATURE"},
		"encoded twice":                  {[]string{base64Header(v2)}, nil, -1, "PAYMENT-SIGNATURE"},
		"hexadecimal":                    {[]string{"7b7d"}, nil, -1, "PAYMENT-SIGNATURE"},
		"an array":                       {[]string{base64Header(`[` + paymentV2 + `]`)}, nil, -1, "PAYMENT-SIGNATURE"},
		"null":                           {[]string{base64Header(`null`)}, nil, -1, "PAYMENT-SIGNATURE"},
		"empty object":                   {[]string{base64Header(`{}`)}, nil, -1, "PAYMENT-SIGNATURE"},
		"two objects":                    {[]string{base64Header(paymentV2 + paymentV2)}, nil, -1, "PAYMENT-SIGNATURE"},
		"version 3":                      {[]string{base64Header(strings.Replace(paymentV2, "2", "3", 1))}, nil, -1, "PAYMENT-SIGNATURE"},
		"version 0":                      {nil, []string{base64Header(strings.Replace(paymentV1, ":1", ":0", 1))}, -1, "X-PAYMENT"},
		"version as text":                {[]string{base64Header(strings.Replace(paymentV2, ":2", `:"2"`, 1))}, nil, -1, "PAYMENT-SIGNATURE"},
		"version 2.0":                    {[]string{base64Header(strings.Replace(paymentV2, ":2", `:2.0`, 1))}, nil, -1, "PAYMENT-SIGNATURE"},
		"version 4294967298":             {[]string{base64Header(strings.Replace(paymentV2, ":2", ":4294967298", 1))}, nil, -1, "PAYMENT-SIGNATURE"},
		"version missing":                {[]string{base64Header(strings.Replace(paymentV2, `"x402Version":2,`, "", 1))}, nil, -1, "PAYMENT-SIGNATURE"},
		"accepted missing":               {[]string{base64Header(`{"x402Version":2,"payload":{}}`)}, nil, -1, "PAYMENT-SIGNATURE"},
		"payload missing":                {[]string{base64Header(`{"x402Version":2,"accepted":` + ruleAccepted + `}`)}, nil, -1, "PAYMENT-SIGNATURE"},
		"payload null":                   {nil, []string{base64Header(strings.Replace(paymentV1, `{"signature":"0x"}`, "null", 1))}, -1, "X-PAYMENT"},
		"payload a list":                 {nil, []string{base64Header(strings.Replace(paymentV1, `{"signature":"0x"}`, "[]", 1))}, -1, "X-PAYMENT"},
		"resource a string":              {[]string{base64Header(`{"resource":"https://a",` + paymentV2[1:])}, nil, -1, "PAYMENT-SIGNATURE"},
		"resource null":                  {[]string{base64Header(`{"resource":null,` + paymentV2[1:])}, nil, 2, ""},
		"unknown members":                {[]string{base64Header(`{"a":1,"b":{"c":[true,null]},` + paymentV2[1:])}, nil, 2, ""},
		"too long":                       {[]string{long}, nil, -1, "PAYMENT-SIGNATURE"},
	} {
		p, err := payment.FromHeader(row.v2, row.v1)
		var malformed *payment.MalformedError
		switch {
		case row.want == -1:
			if p != nil || !errors.As(err, &malformed) || malformed.What != row.what {
				t.Errorf("%s: got %v, %v; want an error about %s", name, p, err, row.what)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case row.want == 0:
			if p != nil {
				t.Errorf("%s: got %+v", name, p)
			}
		case p == nil || p.Version != row.want:
			t.Errorf("%s: got %+v", name, p)
		}
	}
}

// plusAndSlash is a payment whose base64 holds both characters in which the
// two alphabets differ.
func plusAndSlash(padding int) string {
	const fill = `>>>>????`
	for n := range 3 {
		doc := `{"resource":{"url":"` + fill + strings.Repeat("x", n) + `"},` + paymentV2[1:]
		if len(doc)%3 == (3-padding)%3 {
			return doc
		}
	}
	panic("unreachable")
}

// Four decoders in the field disagree about all but the first of the
// reference's forms. What they read differently is refused here, except for
// the URL-safe alphabet and missing padding, which lose nothing.
func TestBase64IsReadInTheFormsThatHaveOneMeaning(t *testing.T) {
	doc := plusAndSlash(1)
	std := base64.StdEncoding.EncodeToString([]byte(doc))
	url := base64.URLEncoding.EncodeToString([]byte(doc))
	raw := strings.TrimRight(std, "=")
	two := base64.StdEncoding.EncodeToString([]byte(plusAndSlash(2)))
	if !strings.Contains(std, "+") || !strings.Contains(std, "/") || !strings.HasSuffix(std, "=") || !strings.HasSuffix(two, "==") {
		t.Fatalf("the samples do not test what they should: %s %s", std, two)
	}
	// The last character before the padding carries two unused bits, or four.
	bits := func(s string) string {
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
		i := len(strings.TrimRight(s, "=")) - 1
		return s[:i] + string(alphabet[strings.IndexByte(alphabet, s[i])+1]) + s[i+1:]
	}
	rows := map[string]struct {
		value string
		ok    bool
	}{
		"standard, padded":                     {std, true},
		"standard, padding stripped":           {raw, true},
		"standard, two padding characters":     {two, true},
		"standard, both stripped":              {strings.TrimRight(two, "="), true},
		"no padding needed":                    {base64.StdEncoding.EncodeToString([]byte(plusAndSlash(0))), true},
		"URL-safe, padded":                     {url, true},
		"URL-safe, padding stripped":           {strings.TrimRight(url, "="), true},
		"mixed alphabets":                      {strings.Replace(std, "+", "-", 1), false},
		"mixed alphabets, other way":           {strings.Replace(url, "_", "/", 1), false},
		"newline inside":                       {std[:40] + "\n" + std[40:], false},
		"newline at the end":                   {std + "\n", false},
		"newline before the padding":           {raw + "\n=", false},
		"CR LF every 76":                       {std[:76] + "\r\n" + std[76:], false},
		"newline inside, padding stripped":     {raw[:40] + "\n" + raw[40:], false},
		"newlines that keep the length whole":  {std[:40] + "\n\r\n\n" + std[40:], false},
		"URL-safe, newline at the end":         {strings.TrimRight(url, "=") + "\n", false},
		"space inside":                         {std[:40] + " " + std[40:], false},
		"space in front":                       {" " + std, false},
		"space at the end":                     {std + " ", false},
		"tab inside":                           {std[:40] + "\t" + std[40:], false},
		"zero byte":                            {std + "\x00", false},
		"one padding character too many":       {std + "=", false},
		"one of two padding characters":        {two[:len(two)-1], false},
		"three padding characters":             {two + "=", false},
		"four padding characters":              {base64.StdEncoding.EncodeToString([]byte(plusAndSlash(0))) + "====", false},
		"padding where none is due":            {base64.StdEncoding.EncodeToString([]byte(plusAndSlash(0))) + "=", false},
		"padding inside":                       {std[:40] + "=" + std[40:], false},
		"only padding":                         {"====", false},
		"non-zero trailing bits":               {bits(std), false},
		"non-zero trailing bits, two":          {bits(two), false},
		"non-zero trailing bits, none padded":  {bits(raw), false},
		"non-zero trailing bits, URL-safe":     {strings.NewReplacer("+", "-", "/", "_").Replace(bits(std)), false},
		"one character left over":              {raw + "AA", false},
		"percent-encoded padding":              {raw + "%3D", false},
		"full-width letter":                    {"\uff41" + std, false},
		"data URL":                             {"data:application/json;base64," + std, false},
		"empty":                                {"", false},
		"characters that no alphabet has":      {"!" + std[1:], false},
		"two documents, each with its padding": {std + std, false},
	}
	reference := map[string]string{
		"standard alphabet, padded":           "standard, padded",
		"standard alphabet, padding stripped": "standard, padding stripped",
		"url-safe alphabet":                   "URL-safe, padded",
		"newline inside":                      "newline inside",
		"space inside":                        "space inside",
		"non-zero trailing bits":              "non-zero trailing bits",
	}
	for _, form := range readTestdata[struct{ Base64Tolerance []struct{ Form string } }](t, "matching.json").Base64Tolerance {
		if _, ok := rows[reference[form.Form]]; !ok {
			t.Errorf("no row for %q", form.Form)
		}
	}
	for name, row := range rows {
		p, err := payment.FromHeader([]string{row.value}, nil)
		if row.ok && (err != nil || p == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if !row.ok && err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
}

func TestHeadersAreReadUpToTheirLimit(t *testing.T) {
	pad := func(n int) string { return `{"note":"` + strings.Repeat("x", n) + `",` + paymentV2[1:] }
	limit := payment.MaxHeader/4*3 - len(pad(0))
	if _, err := payment.FromHeader([]string{base64Header(pad(limit))}, nil); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	if _, err := payment.FromHeader([]string{base64Header(pad(limit + 1))}, nil); err == nil {
		t.Error("above the limit: was accepted")
	}
}

func TestErrorsOfHeadersNameTheMemberAtFault(t *testing.T) {
	for doc, want := range map[string]string{
		strings.Replace(paymentV2, `"10000"`, `"1e3"`, 1):         "PAYMENT-SIGNATURE: accepted.amount: must be a decimal string without sign, leading zeros or fraction",
		strings.Replace(paymentV2, `"amount":"10000",`, ``, 1):    "PAYMENT-SIGNATURE: accepted.amount: is missing",
		strings.Replace(paymentV2, `"payTo":"0x`, `"payTo":"`, 1): "PAYMENT-SIGNATURE: accepted.payTo: must be an address: 0x and 40 hexadecimal digits",
		strings.Replace(paymentV2, `"payTo"`, `"PayTo"`, 1):       `PAYMENT-SIGNATURE: accepted.PayTo: must be spelled "payTo"`,
		paymentV1: `PAYMENT-SIGNATURE: x402Version: does not fit this header: send the payment in X-PAYMENT`,
	} {
		if _, err := payment.FromHeader([]string{base64Header(doc)}, nil); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// FuzzFromHeader holds the reader of payments against two others: one that
// reads names exactly and takes the last of several, like JavaScript, and one
// that ignores case, like encoding/json with structs. What is accepted here
// means the same to all three.
func FuzzFromHeader(f *testing.F) {
	for _, doc := range []string{
		paymentV1, paymentV2, plusAndSlash(1), `{}`, `[]`,
		strings.Replace(paymentV2, `"payTo"`, `"PayTo"`, 1),
		strings.Replace(paymentV2, `"amount":"10000"`, `"amount":"10000","amount":"1"`, 1),
		strings.Replace(paymentV2, `"USDC"`, `"\ud83d\ude00"`, 1),
		strings.Replace(paymentV2, `"payload":{`, `"payload":{"n":-1.5e+3,"z":null,`, 1),
	} {
		f.Add(doc)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		value := base64Header(doc)
		p, err := payment.FromHeader([]string{value}, nil)
		if err != nil {
			p, err = payment.FromHeader(nil, []string{value})
		}
		if err != nil {
			var malformed *payment.MalformedError
			if !errors.As(err, &malformed) || p != nil {
				t.Fatalf("error of type %T with %v", err, p)
			}
			return
		}
		readAlike(t, p, doc)
	})
}

// readAlike fails the test unless two other readers see in doc what p says.
func readAlike(t *testing.T, p *payment.Payment, doc string) {
	t.Helper()
	type terms struct{ Scheme, Network, Amount, Asset, PayTo string }
	var folded struct {
		X402Version     int `json:"x402Version"`
		Scheme, Network string
		Accepted        *terms
		Payload         json.RawMessage
	}
	if err := json.Unmarshal([]byte(doc), &folded); err != nil {
		t.Fatalf("accepted what encoding/json refuses: %v", err)
	}
	exact := members(t, []byte(doc))
	says := terms{Scheme: folded.Scheme, Network: folded.Network}
	at := exact
	if p.Version == payment.V2 {
		if folded.Accepted == nil {
			t.Fatal("accepted is missing elsewhere")
		}
		says = *folded.Accepted
		at = members(t, exact["accepted"])
	}
	if folded.X402Version != p.Version || string(exact["x402Version"]) != string(rune('0'+p.Version)) {
		t.Errorf("version %d, elsewhere %d", p.Version, folded.X402Version)
	}
	if string(p.Scheme) != says.Scheme || says.Scheme != text(t, at["scheme"]) {
		t.Errorf("scheme %q, elsewhere %q", p.Scheme, says.Scheme)
	}
	if n, err := payment.ParseNetwork(says.Network); err != nil || n != p.Network || says.Network != text(t, at["network"]) {
		t.Errorf("network %q, elsewhere %q", p.Network, says.Network)
	}
	if sorted(t, p.Payload) != sorted(t, folded.Payload) || sorted(t, p.Payload) != sorted(t, exact["payload"]) {
		t.Errorf("payload %s, elsewhere %s", p.Payload, folded.Payload)
	}
	if sorted(t, p.Raw()) != sorted(t, []byte(doc)) {
		t.Errorf("raw %s, elsewhere %s", p.Raw(), doc)
	}
	if p.Version == payment.V1 {
		return
	}
	same := func(name, got, folded string) {
		t.Helper()
		if !strings.EqualFold(got, folded) || folded != text(t, at[name]) {
			t.Errorf("accepted.%s %q, elsewhere %q", name, got, folded)
		}
	}
	same("amount", p.Accepted.Amount.Units(), says.Amount)
	same("asset", p.Accepted.Amount.Token().Address, says.Asset)
	same("payTo", p.Accepted.PayTo, says.PayTo)
}
