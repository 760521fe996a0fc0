package payment_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tollgate402/tollgate/payment"
)

// Each of these is read one way by one program and another way, or not at
// all, by another one.
func TestPaymentsThatTwoReadersCouldReadDifferentlyAreRefused(t *testing.T) {
	replaced := func(old, new string) string {
		t.Helper()
		if !strings.Contains(paymentV2, old) {
			t.Fatalf("nothing to replace: %s", old)
		}
		return strings.Replace(paymentV2, old, new, 1)
	}
	amount, payTo := `"amount":"10000"`, `"payTo":"0x209693Bc6afc0C5328bA36FaF03C514EF312287C"`
	other := `"payTo":"0x036CbD53842c5426634e7929541eC2318f3dCF7e"`
	for name, doc := range map[string]string{
		"amount twice":                        replaced(amount, amount+`,"amount":"1"`),
		"amount twice, first one other":       replaced(amount, `"amount":"1",`+amount),
		"amount twice, equal":                 replaced(amount, amount+`,`+amount),
		"amount twice, one escaped":           replaced(amount, amount+`,"\u0061mount":"1"`),
		"amount beside Amount":                replaced(amount, amount+`,"Amount":"1"`),
		"amount as AMOUNT only":               replaced(`"amount"`, `"AMOUNT"`),
		"payTo beside PayTo":                  replaced(payTo, payTo+`,`+strings.Replace(other, "payTo", "PayTo", 1)),
		"payTo beside payto, in front":        replaced(payTo, strings.Replace(other, "payTo", "payto", 1)+`,`+payTo),
		"network with a Kelvin sign only":     replaced(`"network"`, `"networ`+"\u212a"+`"`),
		"asset with a long s only":            replaced(`"asset"`, `"a`+"\u017f"+`set"`),
		"asset beside one with a long s":      replaced(`"asset"`, `"a`+"\u017f"+`set":"0x0","asset"`),
		"accepted twice":                      replaced(`"payload"`, `"accepted":{},"payload"`),
		"Accepted beside accepted":            replaced(`"payload"`, `"Accepted":{},"payload"`),
		"payload twice":                       replaced(`"payload"`, `"payload":{},"payload"`),
		"PAYLOAD beside payload":              replaced(`"payload"`, `"PAYLOAD":{},"payload"`),
		"Payload only":                        replaced(`"payload"`, `"Payload"`),
		"X402version only":                    replaced(`"x402Version"`, `"X402version"`),
		"Resource only":                       replaced(`"payload"`, `"Resource":{},"payload"`),
		"version twice":                       replaced(`"x402Version":2`, `"x402Version":1,"x402Version":2`),
		"X402Version beside x402Version":      replaced(`"x402Version":2`, `"X402Version":1,"x402Version":2`),
		"repeated name deep inside":           replaced(`{"signature":"0x"}`, `{"a":[{"b":{"c":1,"c":2}}]}`),
		"repeated name in an unknown member":  replaced(`"payload"`, `"x":{"y":1,"Y":2},"payload"`),
		"repeated name in extra":              replaced(`"name":"USDC"`, `"name":"USDC","name":"USD Coin"`),
		"Name beside name in extra":           replaced(`"name":"USDC"`, `"name":"USDC","Name":"USD Coin"`),
		"NaN":                                 replaced(`:60`, `:NaN`),
		"Infinity":                            replaced(`:60`, `:Infinity`),
		"hexadecimal number":                  replaced(`:60`, `:0x3c`),
		"number with leading zero":            replaced(`:60`, `:060`),
		"number with plus":                    replaced(`:60`, `:+60`),
		"number without digits":               replaced(`:60`, `:-`),
		"number ending in a point":            replaced(`:60`, `:60.`),
		"number with underscore":              replaced(`:60`, `:6_0`),
		"exponent":                            replaced(`:60`, `:6e1`),
		"negative":                            replaced(`:60`, `:-60`),
		"beyond 64 bits":                      replaced(`:60`, `:18446744073709551676`),
		"beyond ten years":                    replaced(`:60`, `:400000000`),
		"string as a number":                  replaced(`"10000"`, `10000`),
		"string as a list":                    replaced(`"10000"`, `["10000"]`),
		"string as an object":                 replaced(`"10000"`, `{"toString":"10000"}`),
		"string as a boolean":                 replaced(`"10000"`, `true`),
		"required member null":                replaced(`"10000"`, `null`),
		"accepted as a list":                  replaced(ruleAccepted, `[`+ruleAccepted+`]`),
		"accepted as a string":                replaced(ruleAccepted, `"{}"`),
		"data after the value":                paymentV2 + `{}`,
		"closing brace after the value":       paymentV2 + `}`,
		"zero byte after the value":           paymentV2 + "\x00",
		"byte order mark":                     "\ufeff" + paymentV2,
		"form feed between members":           replaced(`,"payload"`, ",\f\"payload\""),
		"no-break space between members":      replaced(`,"payload"`, ",\u00a0\"payload\""),
		"line comment":                        replaced(`,"payload"`, ",//\n\"payload\""),
		"block comment":                       replaced(`,"payload"`, `,/**/"payload"`),
		"trailing comma":                      replaced(`{"signature":"0x"}`, `{"signature":"0x",}`),
		"double comma":                        replaced(`,"payload"`, `,,"payload"`),
		"leading comma":                       `{,` + paymentV2[1:],
		"single quotes":                       strings.ReplaceAll(paymentV2, `"`, `'`),
		"name without quotes":                 replaced(`"payload"`, `payload`),
		"invalid UTF-8 in a value":            replaced(`USDC`, "US\xffDC"),
		"invalid UTF-8 in a name":             replaced(`"maxTimeoutSeconds"`, "\"max\xc0\xaf\""),
		"overlong UTF-8":                      replaced(`USDC`, "\xc1\x95SDC"),
		"surrogate in UTF-8":                  replaced(`USDC`, "\xed\xa0\x80"),
		"lone high surrogate":                 replaced(`USDC`, `\ud83dUSDC`),
		"lone low surrogate":                  replaced(`USDC`, `\ude00USDC`),
		"surrogates in the wrong order":       replaced(`USDC`, `\ude00\ud83d`),
		"control character in a string":       replaced(`USDC`, "US\nDC"),
		"unknown escape":                      replaced(`USDC`, `\x55SDC`),
		"short escape":                        replaced(`USDC`, `\u55`),
		"string without end":                  `{"x402Version":2,"accepted":"`,
		"nested too deep":                     replaced(`"0x"`, strings.Repeat(`[`, 20)+strings.Repeat(`]`, 20)),
		"too many members":                    replaced(`"signature":"0x"`, manyMembers(300)),
		"UTF-16":                              "\x00{\x00}",
		"amount in full-width digits":         replaced(`"10000"`, `"１００００"`),
		"amount in Arabic digits, by escapes": replaced(`"10000"`, `"\u0661"`),
		"zero byte in an address, by escape":  replaced(`"0x209693`, `"0x2096\u0000`),
	} {
		p, err := payment.FromHeader([]string{base64Header(doc)}, nil)
		var malformed *payment.MalformedError
		if p != nil || !errors.As(err, &malformed) {
			t.Errorf("%s: got %v, %v", name, p, err)
		}
	}
}

// These are unusual, but every reader agrees about them.
func TestPaymentsWithOneMeaningAreReadHoweverTheyAreWritten(t *testing.T) {
	for name, doc := range map[string]string{
		"blanks":                       " \t\r\n" + strings.NewReplacer(":", " : ", ",", "\n,\t", "{", "{ ").Replace(`{"x402Version":2,"payload":{},"accepted":`) + ruleAccepted + " }\r\n",
		"escaped letters":              strings.Replace(paymentV2, `"USDC"`, `"\u0055\u0053\u0044\u0043"`, 1),
		"escaped name":                 strings.Replace(paymentV2, `"amount"`, `"\u0061mount"`, 1),
		"escaped slash":                `{"resource":{"url":"https:\/\/a\/b"},` + paymentV2[1:],
		"surrogate pair":               `{"resource":{"url":"\ud83d\ude00"},` + paymentV2[1:],
		"optional members null":        `{"resource":null,"extensions":null,` + paymentV2[1:],
		"numbers in unknown members":   `{"n":[0,-0,1.5,-2e-3,1E+400,123456789012345678901234567890],` + paymentV2[1:],
		"empty names":                  `{"":{"":[{}]},` + paymentV2[1:],
		"prototype names":              `{"__proto__":{"x402Version":1},"constructor":null,` + paymentV2[1:],
		"similar names":                `{"x402version2":1,"pay-load":1,"accepted ":1,` + paymentV2[1:],
		"members of the other version": `{"scheme":"upto","network":"base",` + paymentV2[1:],
	} {
		p, err := payment.FromHeader([]string{base64Header(doc)}, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		readAlike(t, p, doc)
		if o := ruleOffer(t); payment.Match(p, []payment.Offer{o}) == nil {
			t.Errorf("%s: does not match its offer", name)
		}
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"m%d":0`, i)
	}
	return b.String()
}
