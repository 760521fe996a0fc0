package strictjson

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseRefusesWhatAnotherReaderCouldReadDifferently(t *testing.T) {
	deep := strings.Repeat(`{"a":`, MaxDepth+1) + "1" + strings.Repeat("}", MaxDepth+1)
	for name, c := range map[string]struct{ doc, problem string }{
		"empty":               {``, "ends too early"},
		"not an object":       {`[1]`, "must be a JSON object"},
		"repeated name":       {`{"a":1,"a":2}`, "a: is given twice"},
		"name in other case":  {`{"payTo":1,"PayTo":2}`, "PayTo: is given twice"},
		"name by escape":      {`{"a":1,"\u0061":2}`, "a: is given twice"},
		"name by kelvin sign": {`{"k":1,"` + "\u212a" + `":2}`, "is given twice"},
		"nested repeat":       {`{"x":{"y":[{"a":1,"a":2}]}}`, "x.y.a: is given twice"},
		"trailing data":       {`{} {}`, "data after"},
		"trailing comma":      {`{"a":1,}`, "member name"},
		"too deep":            {deep, "nested deeper"},
		"leading zero":        {`{"a":01}`, "number is malformed"},
		"hex number":          {`{"a":0x1}`, "comma"},
		"plus sign":           {`{"a":+1}`, "a value is expected"},
		"NaN":                 {`{"a":NaN}`, "a value is expected"},
		"single quotes":       {`{'a':1}`, "member name"},
		"invalid utf-8":       {"{\"a\":\"\xff\"}", "UTF-8"},
		"lone surrogate":      {`{"a":"\ud800"}`, "surrogate"},
		"control character":   {"{\"a\":\"\x01\"}", "control"},
		"no end":              {`{"a":"b`, "no end"},
		"bad escape":          {`{"a":"\x"}`, "escape"},
		"comment":             {`{"a":1/**/}`, "comma"},
	} {
		_, err := Parse([]byte(c.doc), "", 1<<16)
		if err == nil || !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.problem)
		}
	}
}

func TestParseRefusesWhatIsTooLarge(t *testing.T) {
	if _, err := Parse([]byte(`{"a":"0123456789"}`), "doc", 10); err == nil || !strings.HasPrefix(err.Error(), "doc: is 18 bytes") {
		t.Errorf("got %v", err)
	}
}

func TestMembersKeepTheirPlaceAndType(t *testing.T) {
	o, err := Parse([]byte(` {"s":"a\u00e9\ud83d\ude00\n","n":42,"o":{"x":"y"},"l":[{"i":1},{"i":2}],"z":null} `), "", 1<<10)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := o.Text("s"); err != nil || s != "aé😀\n" {
		t.Errorf("s = %q, %v", s, err)
	}
	if n, err := o.Integer("n", 100); err != nil || n != 42 {
		t.Errorf("n = %d, %v", n, err)
	}
	if _, err := o.Integer("n", 41); err == nil {
		t.Error("42 passed a limit of 41")
	}
	sub, err := o.Object("o")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sub.Text("missing"); err == nil || err.Error() != "o.missing: is missing" {
		t.Errorf("got %v", err)
	}
	list, err := o.Objects("l", 2)
	if err != nil || len(list) != 2 || list[1].Path() != "l[1]" {
		t.Errorf("l = %v, %v", list, err)
	}
	if _, err := o.Objects("l", 1); err == nil {
		t.Error("two elements passed a limit of one")
	}
	if o.Has("z") {
		t.Error("null counted as present")
	}
	if _, err := o.Text("n"); err == nil {
		t.Error("a number was read as a string")
	}
	if err := o.Known("S"); err == nil || !strings.Contains(err.Error(), `spelled "S"`) {
		t.Errorf("got %v", err)
	}
}

func TestNamesThatDifferInCaseOnlyAreNotKnown(t *testing.T) {
	for doc, alike := range map[string]bool{
		`{"Scheme":1}`:                true,
		`{"schemE":1}`:                true,
		"{\"\u017fcheme\":1}":         true, // a long s
		"{\"networ\u212a\":1}":        true, // a Kelvin sign
		`{"scheme":1,"network":2}`:    false,
		`{"schema":1,"":2,"theme":3}`: false,
		`{"[etwork":1,"{etwork":2}`:   false,
	} {
		o, err := Parse([]byte(doc), "", 1<<10)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Known("scheme", "network", "[etwork"); (err != nil) != alike {
			t.Errorf("%s: %v", doc, err)
		}
	}
}

// BenchmarkParse reads a document like a payment and its parts.
func BenchmarkParse(b *testing.B) {
	doc := []byte(`{"x402Version":2,"resource":{"url":"https://api.example.com/maps","description":"a map"},"accepted":{"scheme":"exact",` +
		`"network":"eip155:84532","amount":"1000","asset":"0x036CbD53842c5426634e7929541eC2318f3dCF7e",` +
		`"payTo":"0x9ABD6cF932170C471d01d746fe796703eDa24890","maxTimeoutSeconds":60,"extra":{"name":"USDC","version":"2"}},` +
		`"payload":{"signature":"0x` + strings.Repeat("1f", 65) + `","authorization":{"from":"0xCC9315E4C2EC6d354d42adC84f599f83Ad715631",` +
		`"to":"0x9ABD6cF932170C471d01d746fe796703eDa24890","value":"1000","validAfter":"0","validBefore":"4102444800","nonce":"0x` + strings.Repeat("22", 32) + `"}}}`)
	b.ReportAllocs()
	for b.Loop() {
		o, err := Parse(doc, "", 1<<14)
		if err != nil {
			b.Fatal(err)
		}
		if err := o.Known("x402Version", "scheme", "network", "payload", "accepted", "resource", "extensions"); err != nil {
			b.Fatal(err)
		}
		payload, err := o.Object("payload")
		if err != nil {
			b.Fatal(err)
		}
		authorization, err := payload.Object("authorization")
		if err != nil {
			b.Fatal(err)
		}
		for _, name := range []string{"from", "to", "value", "validAfter", "validBefore", "nonce"} {
			if _, err := authorization.Text(name); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// FuzzParse holds this reader against encoding/json: whatever it accepts,
// encoding/json accepts too, with the same members and the same strings.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1}`, `{"a":"b\u0041","c":[1,2,{"d":null}]}`, `{"a":-1.5e+10,"b":true}`, `[]`, `{"a":"\ud83d\ude00"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		o, err := Parse(doc, "", 1<<16)
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("error of type %T", err)
			}
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(doc, &want); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if len(want) != len(o.Names()) {
			t.Fatalf("%d members, encoding/json has %d", len(o.Names()), len(want))
		}
		for name, raw := range want {
			got, ok := o.Value(name)
			if !ok && string(raw) != "null" {
				t.Fatalf("member %q is missing", name)
			}
			if !ok {
				continue
			}
			if string(got) != string(raw) {
				t.Fatalf("member %q: %s, encoding/json has %s", name, got, raw)
			}
			if raw[0] == '"' {
				var s string
				if err := json.Unmarshal(raw, &s); err != nil {
					t.Fatal(err)
				}
				text, err := o.Text(name)
				if err != nil || text != s || !utf8.ValidString(text) {
					t.Fatalf("member %q: %q, %v; encoding/json has %q", name, text, err, s)
				}
			}
		}
	})
}
