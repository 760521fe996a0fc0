package extension_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/extension"
)

func decodeHeader(t testing.TB, value string) string {
	t.Helper()
	doc, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

func TestEchoesMayAddAndMustNotChange(t *testing.T) {
	for name, row := range map[string]struct {
		advertised, echoed string
		good               bool
	}{
		"more members":                 {`{"a":{"info":{"x":1}}}`, `{"a":{"info":{"x":1,"y":2}}}`, true},
		"more members inside":          {`{"a":{"info":{"x":{"y":1}}}}`, `{"a":{"info":{"x":{"z":2,"y":1}}}}`, true},
		"another value":                {`{"a":{"info":{"x":1}}}`, `{"a":{"info":{"x":2}}}`, false},
		"a number spelled otherwise":   {`{"a":{"info":{"x":100}}}`, `{"a":{"info":{"x":1.0e2}}}`, true},
		"a number as text":             {`{"a":{"info":{"x":1}}}`, `{"a":{"info":{"x":"1"}}}`, false},
		"a longer array":               {`{"a":{"info":{"x":[1]}}}`, `{"a":{"info":{"x":[1,2]}}}`, false},
		"an array in another order":    {`{"a":{"info":{"x":[1,2]}}}`, `{"a":{"info":{"x":[2,1]}}}`, false},
		"more members inside an array": {`{"a":{"info":{"x":[{"y":1}]}}}`, `{"a":{"info":{"x":[{"y":1,"z":2}]}}}`, false},
		"no info":                      {`{"a":{"info":{"x":1}}}`, `{"a":{}}`, false},
		"info is null":                 {`{"a":{"info":{"x":1}}}`, `{"a":{"info":null}}`, false},
		"another schema":               {`{"a":{"info":{"x":1},"schema":{"type":"object"}}}`, `{"a":{"info":{"x":1},"schema":{}}}`, true},
		"the extension is null":        {`{"a":{"info":{"x":1}}}`, `{"a":null}`, true},
		"a sign-in of its own":         {`{"sign-in-with-x":{"info":{"domain":"d","nonce":"1","issuedAt":"2","expirationTime":"3"}}}`, `{"sign-in-with-x":{"info":{"domain":"d","nonce":"4"}}}`, true},
		"a sign-in somewhere else":     {`{"sign-in-with-x":{"info":{"domain":"d","nonce":"1"}}}`, `{"sign-in-with-x":{"info":{"domain":"e","nonce":"1"}}}`, false},
		"an app code of its own":       {`{"builder-code":{"info":{"s":["m"]}}}`, `{"builder-code":{"info":{"a":"mine","s":["m"]}}}`, false},
		"other service codes":          {`{"builder-code":{"info":{"s":["m"]}}}`, `{"builder-code":{"info":{"s":["c"]}}}`, false},
		"eleven service codes":         {`{"builder-code":{"info":{"s":["m"]}}}`, `{"builder-code":{"info":{"s":["m"` + strings.Repeat(`,"c"`, 10) + `]}}}`, false},
	} {
		advertised, err := extension.Advertise([]byte(row.advertised))
		if err != nil {
			t.Fatal(err)
		}
		switch err := advertised.Check([]byte(row.echoed)); {
		case row.good && err != nil:
			t.Errorf("%s: %v", name, err)
		case !row.good:
			wantReason(t, err, payment.ExtensionEchoMismatch)
			if err == nil {
				t.Error(name)
			}
		}
	}
}

func TestNothingAdvertisedNothingChecked(t *testing.T) {
	advertised, err := extension.Advertise(nil)
	if err != nil || advertised.Check([]byte(`{"a":1}`)) != nil {
		t.Error(err)
	}
}

func TestExtensionsAreEncodedInTheirOrderAndBounded(t *testing.T) {
	doc, err := extension.Encode(extension.Identifier(true), extension.Extension{
		Name: "b", Info: json.RawMessage(`{}`), Beside: []extension.Member{{Name: "m", Value: json.RawMessage(`1`)}},
	})
	if err != nil || !strings.HasPrefix(string(doc), `{"payment-identifier":{"info":{"required":true},"schema":{`) || !strings.HasSuffix(string(doc), `,"b":{"info":{},"m":1}}`) {
		t.Errorf("%s, %v", doc, err)
	}
	if doc, err := extension.Encode(); doc != nil || err != nil {
		t.Errorf("%s, %v", doc, err)
	}
	for name, list := range map[string][]extension.Extension{
		"twice":    {extension.Identifier(true), extension.Identifier(false)},
		"too long": {{Name: "a", Info: json.RawMessage(`{"x":"` + strings.Repeat("y", 4096) + `"}`)}},
		"no JSON":  {{Name: "a", Info: json.RawMessage(`{`)}},
	} {
		if _, err := extension.Encode(list...); err == nil {
			t.Errorf("%s is encoded", name)
		}
	}
}

func TestPaymentIDsAreReadWithinTheirBounds(t *testing.T) {
	for name, row := range map[string]struct {
		extensions, id string
		good           bool
	}{
		"none":            {``, "", true},
		"no id":           {`{"payment-identifier":{"info":{"required":false}}}`, "", true},
		"id is null":      {`{"payment-identifier":{"info":{"id":null}}}`, "", true},
		"16 characters":   {`{"payment-identifier":{"info":{"id":"pay_7d5d747be160"}}}`, "pay_7d5d747be160", true},
		"128 characters":  {`{"payment-identifier":{"info":{"id":"` + strings.Repeat("a", 128) + `"}}}`, strings.Repeat("a", 128), true},
		"15 characters":   {`{"payment-identifier":{"info":{"id":"pay_7d5d747be16"}}}`, "", false},
		"129 characters":  {`{"payment-identifier":{"info":{"id":"` + strings.Repeat("a", 129) + `"}}}`, "", false},
		"a slash":         {`{"payment-identifier":{"info":{"id":"pay/7d5d747be160"}}}`, "", false},
		"a number":        {`{"payment-identifier":{"info":{"id":1234567890123456}}}`, "", false},
		"twice":           {`{"payment-identifier":{"info":{"id":"pay_7d5d747be160","id":"pay_7d5d747be161"}}}`, "", false},
		"in another case": {`{"Payment-Identifier":{"info":{"id":"pay_7d5d747be160"}}}`, "", false},
	} {
		id, err := extension.PaymentID([]byte(row.extensions))
		if id != row.id || (err == nil) != row.good {
			t.Errorf("%s: %q, %v", name, id, err)
		}
		var malformed *payment.MalformedError
		if err != nil && !errors.As(err, &malformed) {
			t.Errorf("%s: error of type %T", name, err)
		}
	}
}

// FuzzEcho: an echo that is the challenge itself is always good, and no echo
// is good and bad at once.
func FuzzEcho(f *testing.F) {
	for _, row := range readVectors(f).Echo {
		f.Add(string(row.Advertised), string(row.Echoed))
	}
	f.Add(`{"a":{"info":{"x":-0.1e-5}}}`, `{"a":{"info":{"x":-1e-6}}}`)
	f.Fuzz(func(t *testing.T, ours, theirs string) {
		advertised, err := extension.Advertise([]byte(ours))
		if err != nil {
			return
		}
		if err := advertised.Check([]byte(ours)); err != nil && !strings.Contains(ours, "builder-code") {
			t.Fatalf("%s does not echo itself: %v", ours, err)
		}
		first, second := advertised.Check([]byte(theirs)), advertised.Check([]byte(theirs))
		if (first == nil) != (second == nil) {
			t.Fatalf("%v and %v", first, second)
		}
	})
}

// FuzzPaymentExtensions gives anything to everything that reads the
// extensions of a payment or a settlement.
func FuzzPaymentExtensions(f *testing.F) {
	f.Add(`{"payment-identifier":{"info":{"required":false,"id":"pay_7d5d747be160"}}}`)
	f.Add(`{"bazaar":{"info":{"input":{"type":"http","method":"GET"}},"schema":{"type":"object"}}}`)
	f.Add(`{"offer-receipt":{"info":{"offers":[],"receipt":{"format":"eip712","payload":{"version":1},"signature":"0x"}}}}`)
	f.Fuzz(func(t *testing.T, doc string) {
		id, err := extension.PaymentID([]byte(doc))
		if err == nil && id != "" && (len(id) < 16 || len(id) > 128) {
			t.Errorf("id %q", id)
		}
		_, e2 := extension.ReadOffers([]byte(doc))
		_, e3 := extension.ReadReceipt([]byte(doc))
		l, e4 := extension.ReadListing([]byte(doc))
		if e4 == nil && l != nil && strings.Contains(l.Template, "..") {
			t.Errorf("template %q", l.Template)
		}
		for _, err := range []error{err, e2, e3, e4} {
			var malformed *payment.MalformedError
			if err != nil && !errors.As(err, &malformed) {
				t.Errorf("error of type %T: %v", err, err)
			}
		}
	})
}
