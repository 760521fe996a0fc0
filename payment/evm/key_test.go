package evm_test

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A form is one way to write one payment down.
type form struct {
	name   string
	v2, v1 []string // header values
}

// object writes members in the given order with sep between all tokens.
func object(sep string, members ...[2]string) string {
	var list []string
	for _, m := range members {
		list = append(list, sep+`"`+m[0]+`"`+sep+":"+sep+m[1]+sep)
	}
	return "{" + strings.Join(list, ",") + "}"
}

// written returns transfer in the forms that are the same payment to a reader
// who knows JSON, hexadecimal and base64.
func written(o *payment.Offer, transfer *evm.Transfer) []form {
	quote := func(s string) string { return `"` + s + `"` }
	from, to, nonce := transfer.From.Hex(), transfer.To.Hex(), "0x"+hex.EncodeToString(transfer.Nonce[:])
	signature := "0x" + hex.EncodeToString(transfer.Signature)
	upper := func(s string) string { return "0x" + strings.ToUpper(s[2:]) }
	lower := strings.ToLower
	fields := [][2]string{
		{"from", quote(from)},
		{"to", quote(to)},
		{"value", quote(transfer.Value.String())},
		{"validAfter", quote(transfer.ValidAfter.String())},
		{"validBefore", quote(transfer.ValidBefore.String())},
		{"nonce", quote(nonce)},
	}
	accepted := [][2]string{
		{"scheme", `"exact"`},
		{"network", quote(string(o.Network()))},
		{"amount", quote(o.Amount.Units())},
		{"asset", quote(o.Amount.Token().Address)},
		{"payTo", quote(o.PayTo)},
		{"maxTimeoutSeconds", "60"},
		{"extra", `{"name":"USDC","version":"2"}`},
	}
	set := func(list [][2]string, name, value string) [][2]string {
		list = append([][2]string(nil), list...)
		for i := range list {
			if list[i][0] == name {
				list[i][1] = value
			}
		}
		return list
	}
	payload := func(fields [][2]string, signature string) string {
		return object("", [2]string{"signature", quote(signature)}, [2]string{"authorization", object("", fields...)})
	}
	v2 := func(accepted [][2]string, payload string) string {
		return object("", [2]string{"x402Version", "2"}, [2]string{"accepted", object("", accepted...)}, [2]string{"payload", payload})
	}
	plain := payload(fields, signature)

	var forms []form
	addV2 := func(name, doc string) { forms = append(forms, form{name: name, v2: []string{base64Header(doc)}}) }
	add := func(name, payload string) {
		addV2(name, v2(accepted, payload))
		forms = append(forms, form{name: name + ", v1", v1: []string{base64Header(`{"x402Version":1,"scheme":"exact","network":"base-sepolia","payload":` + payload + `}`)}})
	}
	add("plain", plain)
	for i := 1; i < len(fields); i++ {
		add(fmt.Sprintf("members of the authorization rotated by %d", i), payload(append(append([][2]string(nil), fields[i:]...), fields[:i]...), signature))
	}
	add("authorization before the signature", `{"authorization":`+object("", fields...)+`,"signature":"`+signature+`"}`)
	for name, sep := range map[string]string{"blanks": " ", "tabs": "\t", "line ends": "\r\n"} {
		add(name, object(sep, [2]string{"signature", quote(signature)}, [2]string{"authorization", object(sep, fields...)}))
	}
	for name, write := range map[string]func(string) string{"lower": lower, "upper": upper} {
		add("from in "+name+" case", payload(set(fields, "from", quote(write(from))), signature))
		add("to in "+name+" case", payload(set(fields, "to", quote(write(to))), signature))
		add("nonce in "+name+" case", payload(set(fields, "nonce", quote(write(nonce))), signature))
		add("signature in "+name+" case", payload(fields, write(signature)))
		addV2("asset in "+name+" case", v2(set(accepted, "asset", quote(write(o.Amount.Token().Address))), plain))
		addV2("payTo in "+name+" case", v2(set(accepted, "payTo", quote(write(o.PayTo))), plain))
	}
	add("escaped digits", strings.Replace(plain, `"10000"`, `"\u0031\u00300\u00300"`, 1))
	add("escaped letters of an address", strings.Replace(plain, `"0xCC`, `"\u0030\u0078\u0043C`, 1))
	add("escaped member name", strings.Replace(plain, `"nonce"`, `"\u006eonce"`, 1))
	add("unknown members", `{"x":[1,{"y":null}],`+strings.Replace(plain, `"from"`, `"memo":"m","from"`, 1)[1:])
	add("other kinds null", `{"permit2Authorization":null,"transaction":null,`+plain[1:])
	addV2("v1 name of the network", v2(set(accepted, "network", `"base-sepolia"`), plain))
	addV2("no extra", v2(set(accepted, "extra", "null"), plain))
	addV2("another timeout", v2(set(accepted, "maxTimeoutSeconds", "61"), plain))
	addV2("a resource and extensions", `{"resource":{"url":"https://elsewhere"},"extensions":{"a":{}},`+v2(accepted, plain)[1:])
	addV2("members of v1 beside those of v2", `{"scheme":"upto","network":"base",`+v2(accepted, plain)[1:])
	forms = append(forms, form{name: "CAIP-2 name in v1", v1: []string{base64Header(`{"x402Version":1,"scheme":"exact","network":"eip155:84532","payload":` + plain + `}`)}})
	for size := range 3 {
		doc := []byte(v2(accepted, plain) + strings.Repeat(" ", size))
		for name, encoding := range map[string]*base64.Encoding{"raw": base64.RawStdEncoding, "URL-safe": base64.URLEncoding, "raw URL-safe": base64.RawURLEncoding, "standard": base64.StdEncoding} {
			forms = append(forms, form{name: fmt.Sprintf("%s base64 with %d blanks", name, size), v2: []string{encoding.EncodeToString(doc)}})
		}
	}
	return forms
}

func TestOnePaymentHasOneKeyHoweverItIsWritten(t *testing.T) {
	const now = 1_790_000_000
	o := offerOn(t, "eip155:84532", 10000)
	transfer, terms, token := transferFor(t, o, 0, now+60), termsFor(o), common.HexToAddress(o.Amount.Token().Address)
	want := transfer.Key(84532, token)
	forms := written(o, transfer)
	distinct := map[string]bool{}
	for _, f := range forms {
		distinct[fmt.Sprint(f.v2, f.v1)] = true
		p, err := payment.FromHeader(f.v2, f.v1)
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
			continue
		}
		if payment.Match(p, []payment.Offer{*o}) == nil {
			t.Errorf("%s: does not match its offer", f.name)
		}
		got, err := evm.Check(p, terms, now)
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
			continue
		}
		if key := got.Key(84532, token); key != want {
			t.Errorf("%s: key %s, want %s", f.name, key, want)
		}
	}
	if len(distinct) < 40 {
		t.Errorf("only %d forms", len(distinct))
	}
	t.Logf("%d forms", len(distinct))
}

// The same payment in forms that some program would read, and that would make
// a second key or a second meaning if they were read here.
func TestOtherFormsOfOnePaymentAreRefused(t *testing.T) {
	const now = 1_790_000_000
	o := offerOn(t, "eip155:84532", 10000)
	transfer, terms := transferFor(t, o, 0, now+60), termsFor(o)
	plain := string(transfer.Encode())
	rewrite := func(old, new string) string {
		t.Helper()
		if !strings.Contains(plain, old) {
			t.Fatalf("nothing to replace: %s", old)
		}
		return strings.Replace(plain, old, new, 1)
	}
	resigned := func(change func(s []byte) []byte) string {
		other := *transfer
		other.Signature = change(append([]byte(nil), transfer.Signature...))
		return string(other.Encode())
	}
	n := crypto.S256().Params().N
	docs := map[string]string{
		"0X in front of from":          rewrite(`"from":"0x`, `"from":"0X`),
		"0X in front of the nonce":     rewrite(`"nonce":"0x`, `"nonce":"0X`),
		"0X in front of the signature": rewrite(`"signature":"0x`, `"signature":"0X`),
		"from without 0x":              rewrite(`"from":"0x`, `"from":"`),
		"nonce without 0x":             rewrite(`"nonce":"0x`, `"nonce":"`),
		"nonce with a zero byte":       rewrite(`"nonce":"0x`, `"nonce":"0x00`),
		"from as a 32-byte word":       rewrite(`"from":"0x`, `"from":"0x000000000000000000000000`),
		"value with a leading zero":    rewrite(`"10000"`, `"010000"`),
		"value with a blank":           rewrite(`"10000"`, `" 10000"`),
		"value with a fraction":        rewrite(`"10000"`, `"10000.0"`),
		"value with an exponent":       rewrite(`"10000"`, `"1e4"`),
		"value in hexadecimal":         rewrite(`"10000"`, `"0x2710"`),
		"value as a number":            rewrite(`"10000"`, `10000`),
		"validAfter empty":             rewrite(`"validAfter":"0"`, `"validAfter":""`),
		"validAfter as a number":       rewrite(`"validAfter":"0"`, `"validAfter":0`),
		"validAfter as minus zero":     rewrite(`"validAfter":"0"`, `"validAfter":"-0"`),
		"nonce twice":                  rewrite(`"nonce"`, `"nonce":"0x00","nonce"`),
		"Nonce beside nonce":           rewrite(`"nonce"`, `"Nonce":"0x00","nonce"`),
		"Nonce instead of nonce":       rewrite(`"nonce"`, `"Nonce"`),
		"From instead of from":         rewrite(`"from"`, `"FROM"`),
		"Permit2 beside it":            rewrite(`"authorization"`, `"permit2Authorization":{},"authorization"`),
		"trailing comma":               rewrite(`}}`, `,}}`),
		"data after it":                plain + "{}",
		"zero byte in the nonce":       rewrite(`"nonce":"0x`, `"nonce":"0x\u0000`),
		"v of 0 or 1":                  resigned(func(s []byte) []byte { s[64] -= 27; return s }),
		"v of EIP-155":                 resigned(func(s []byte) []byte { s[64] += 8; return s }),
		"high s": resigned(func(s []byte) []byte {
			new(big.Int).Sub(n, new(big.Int).SetBytes(s[32:64])).FillBytes(s[32:64])
			s[64] ^= 7
			return s
		}),
		"EIP-2098":                      resigned(func(s []byte) []byte { s[32] |= (s[64] - 27) << 7; return s[:64] }),
		"a byte after the signature":    resigned(func(s []byte) []byte { return append(s, 0) }),
		"a byte before the signature":   resigned(func(s []byte) []byte { return append([]byte{0}, s...) }),
		"signature wrapped by ERC-6492": resigned(func(s []byte) []byte { return append(s, unhex(t, strings.Repeat("6492", 16))...) }),
	}
	for name, payload := range docs {
		for _, f := range []form{
			{v1: []string{base64Header(`{"x402Version":1,"scheme":"exact","network":"base-sepolia","payload":` + payload + `}`)}},
			{v2: []string{base64Header(strings.Replace(string(unbase64(t, headerOf(o, transfer))), plain, payload, 1))}},
		} {
			p, err := payment.FromHeader(f.v2, f.v1)
			if err == nil {
				_, err = evm.Check(p, terms, now)
			}
			var malformed *payment.MalformedError
			var invalid *payment.InvalidError
			if !errors.As(err, &malformed) && !errors.As(err, &invalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	header := headerOf(o, transfer)
	for name, value := range map[string]string{
		"line end":      header[:50] + "\n" + header[50:],
		"blank":         header[:50] + " " + header[50:],
		"at the end":    header + "\r\n",
		"too padded":    header + "=",
		"trailing bits": trailingBits(t, o, transfer),
	} {
		if p, err := payment.FromHeader([]string{value}, nil); err == nil {
			t.Errorf("base64 with %s: %+v", name, p)
		}
	}
}

// trailingBits is a header that lenient decoders read as the same bytes.
func trailingBits(t *testing.T, o *payment.Offer, transfer *evm.Transfer) string {
	t.Helper()
	doc := unbase64(t, headerOf(o, transfer))
	for len(doc)%3 != 1 {
		doc = append(doc, ' ')
	}
	value := []byte(base64.StdEncoding.EncodeToString(doc))
	value[len(value)-3]++ // of its six bits, four are padding
	if again, err := base64.StdEncoding.DecodeString(string(value)); err != nil || string(again) != string(doc) {
		t.Fatalf("the sample does not test what it should: %v", err)
	}
	return string(value)
}

func unbase64(t testing.TB, s string) []byte {
	t.Helper()
	doc, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// The key is what the token itself dedupes on: who, which nonce, which token,
// which chain. Two authorizations of one nonce are one payment, because only
// one of them can ever be spent.
func TestTheKeyIsChainTokenPayerAndNonce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bytes := func(name string, most int) []byte { return rapid.SliceOfN(rapid.Byte(), 0, most).Draw(t, name) }
		draw := func(name string) (uint64, common.Address, *evm.Authorization) {
			return rapid.Uint64().Draw(t, name+" chain"), common.BytesToAddress(bytes(name+" token", 3)),
				fields(bytes(name+" from", 3), bytes(name+" to", 3), bytes(name+" value", 3), bytes(name+" after", 3), bytes(name+" before", 3), bytes(name+" nonce", 3))
		}
		chain, token, a := draw("one")
		otherChain, otherToken, b := draw("other")
		same := chain == otherChain && token == otherToken && a.From == b.From && a.Nonce == b.Nonce
		if (a.Key(chain, token) == b.Key(otherChain, otherToken)) != same {
			t.Fatalf("%+v and %+v: same payment %v, keys %s and %s", a, b, same, a.Key(chain, token), b.Key(otherChain, otherToken))
		}
		b.From, b.Nonce = a.From, a.Nonce
		if a.Key(chain, token) != b.Key(chain, token) {
			t.Fatal("two authorizations of one nonce have two keys")
		}
		for name, other := range map[string]payment.Key{
			"chain": a.Key(chain+1, token),
			"token": a.Key(chain, common.BytesToAddress(append(token[:19:19], token[19]+1))),
			"payer": (&evm.Authorization{From: common.BytesToAddress(append(a.From[:19:19], a.From[19]+1)), Nonce: a.Nonce}).Key(chain, token),
			"nonce": (&evm.Authorization{From: a.From, Nonce: common.BytesToHash(append(a.Nonce[:31:31], a.Nonce[31]+1))}).Key(chain, token),
		} {
			if other == a.Key(chain, token) {
				t.Fatalf("the key does not depend on the %s", name)
			}
		}
	})
}

// Keys are stored, so their value is fixed: sha256("3009" || chain id in 32
// bytes || token || payer || nonce).
func TestTheKeyOfAPaymentNeverChanges(t *testing.T) {
	a := &evm.Authorization{From: common.HexToAddress("0xCC9315E4C2EC6d354d42adC84f599f83Ad715631"), Nonce: common.HexToHash("0xa44ee3da8af015e82b1acaaf2079873cc6fa277f23c34ee4264a4e362c52e916")}
	if got := a.Key(84532, common.HexToAddress("0x036CbD53842c5426634e7929541eC2318f3dCF7e")).String(); got != "a508da403c0034974ef8cf21324180118b2283abcfc33ee96c850f1217560fb4" {
		t.Errorf("got %s", got)
	}
}
