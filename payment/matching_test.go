package payment_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// ruleOffer is the offer that the rows of testdata/matching.json answer to.
func ruleOffer(t testing.TB) payment.Offer {
	usdc, _ := payment.USDC("eip155:84532")
	return payment.Offer{
		Scheme: payment.Exact, Amount: amount(t, usdc, "10000"),
		PayTo: "0x209693Bc6afc0C5328bA36FaF03C514EF312287C", Timeout: time.Minute,
	}
}

const ruleAccepted = `{"scheme":"exact","network":"eip155:84532","amount":"10000","asset":"0x036CbD53842c5426634e7929541eC2318f3dCF7e",` +
	`"payTo":"0x209693Bc6afc0C5328bA36FaF03C514EF312287C","maxTimeoutSeconds":60,"extra":{"name":"USDC","version":"2"}}`

// outcome tells how a v2 payment with the given "accepted" fares against o:
// "matches", "no match" or "malformed".
func outcome(t testing.TB, accepted string, o payment.Offer) string {
	t.Helper()
	p, err := payment.FromHeader([]string{base64Header(`{"x402Version":2,"accepted":` + accepted + `,"payload":{}}`)}, nil)
	var malformed *payment.MalformedError
	switch {
	case errors.As(err, &malformed):
		return "malformed"
	case err != nil:
		t.Fatal(err)
	case payment.Match(p, []payment.Offer{o}) != nil:
		return "matches"
	}
	return "no match"
}

// The reference rows say what the TypeScript SDK 2.27 does, and what the rule
// of the Go and Python SDKs does, which compares five fields. Ours is the
// second one in every row but one: an extra that contradicts the offer, here
// by a version that is a number, is no match. What could not be read with one
// meaning is malformed rather than a mismatch.
func TestMatchFollowsTheFiveFieldRule(t *testing.T) {
	want := map[string]string{
		"key order differs":         "matches",
		"extra misses a key":        "matches",
		"amount with leading zero":  "malformed",
		"amount as number":          "malformed",
		"maxTimeoutSeconds differs": "matches",
		"maxTimeoutSeconds missing": "matches",
		"unknown top-level key":     "matches",
		"higher amount":             "no match",
		"extra value type differs":  "no match",
	}
	file := readTestdata[struct {
		Rules []struct {
			Name                string
			Accepted            json.RawMessage
			GoPythonRuleMatches bool
		}
	}](t, "matching.json")
	if len(file.Rules) != len(want) {
		t.Errorf("%d rows, want %d", len(file.Rules), len(want))
	}
	for _, row := range file.Rules {
		got := outcome(t, string(row.Accepted), ruleOffer(t))
		if got != want[row.Name] {
			t.Errorf("%s: %s, want %q", row.Name, got, want[row.Name])
		}
		if same := (got == "matches") == row.GoPythonRuleMatches; same == (row.Name == "extra value type differs") {
			t.Errorf("%s: %s, the five-field rule says %v", row.Name, got, row.GoPythonRuleMatches)
		}
	}
}

func TestMatchComparesAddressesInCanonicalFormAndExtraByMeaning(t *testing.T) {
	plain := ruleOffer(t)
	declared := ruleOffer(t)
	declared.Extra = map[string]json.RawMessage{
		"assetTransferMethod": json.RawMessage(`"eip3009"`),
		"features":            json.RawMessage(`{"a":1,"b":[2,3]}`),
	}
	replaced := func(old, new string) string {
		t.Helper()
		if !strings.Contains(ruleAccepted, old) {
			t.Fatalf("nothing to replace: %s", old)
		}
		return strings.Replace(ruleAccepted, old, new, 1)
	}
	extra := func(member string) string { return replaced(`"version":"2"}`, `"version":"2",`+member+`}`) }
	for name, row := range map[string]struct {
		accepted string
		offer    payment.Offer
		want     string
	}{
		"the offer itself":                 {ruleAccepted, plain, "matches"},
		"lower-case asset":                 {replaced("0x036CbD53842c5426634e7929541eC2318f3dCF7e", "0x036cbd53842c5426634e7929541ec2318f3dcf7e"), plain, "matches"},
		"upper-case recipient":             {replaced("0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "0x209693BC6AFC0C5328BA36FAF03C514EF312287C"), plain, "matches"},
		"0X prefix":                        {replaced("0x036C", "0X036C"), plain, "malformed"},
		"v1 name of the same network":      {replaced("eip155:84532", "base-sepolia"), plain, "matches"},
		"upper-case namespace":             {replaced("eip155:84532", "EIP155:84532"), plain, "malformed"},
		"chain id with leading zero":       {replaced("eip155:84532", "eip155:084532"), plain, "malformed"},
		"mainnet of the same token's name": {replaced("eip155:84532", "eip155:8453"), plain, "no match"},
		"no extra":                         {replaced(`,"extra":{"name":"USDC","version":"2"}`, ""), plain, "matches"},
		"extra is null":                    {replaced(`{"name":"USDC","version":"2"}`, "null"), plain, "matches"},
		"extra is a list":                  {replaced(`{"name":"USDC","version":"2"}`, "[]"), plain, "malformed"},
		"name is null":                     {replaced(`"name":"USDC"`, `"name":null`), plain, "matches"},
		"name of another deployment":       {replaced(`"name":"USDC"`, `"name":"USD Coin"`), plain, "no match"},
		"name in another case":             {replaced(`"name":"USDC"`, `"name":"usdc"`), plain, "no match"},
		"version contradicts":              {replaced(`"version":"2"`, `"version":"1"`), plain, "no match"},
		"undeclared member":                {extra(`"memo":"order-42"`), plain, "matches"},
		"undeclared fee payer":             {extra(`"feePayer":"x"`), plain, "matches"},
		"default transfer method":          {extra(`"assetTransferMethod":"eip3009"`), plain, "matches"},
		"undeclared transfer method":       {extra(`"assetTransferMethod":"permit2"`), plain, "no match"},
		"undeclared payment flow":          {extra(`"paymentFlow":"upfront"`), plain, "no match"},
		"member spelled in another case":   {extra(`"assettransfermethod":"permit2"`), plain, "malformed"},
		"declared member left out":         {ruleAccepted, declared, "matches"},
		"declared member contradicted":     {extra(`"assetTransferMethod":"permit2"`), declared, "no match"},
		"declared object in other order":   {extra(`"features":{ "b":[2,3], "a":1 }`), declared, "matches"},
		"declared object changed":          {extra(`"features":{"a":1,"b":[3,2]}`), declared, "no match"},
		"quote of another day":             {extra(`"quote":"x"`), plain, "matches"},
		"quote spelled in another case":    {extra(`"Quote":"x"`), plain, "malformed"},
		"timeout is fractional":            {replaced(":60", ":60.5"), plain, "malformed"},
		"timeout is text":                  {replaced(":60", `:"60"`), plain, "malformed"},
	} {
		if got := outcome(t, row.accepted, row.offer); got != row.want {
			t.Errorf("%s: %s, want %s", name, got, row.want)
		}
	}
}

// Every single byte of the compared members counts, except for the case of the
// letters in an address.
func TestMatchRefusesAnyOtherByteInWhatIsCompared(t *testing.T) {
	offer := ruleOffer(t)
	offer.Extra = map[string]json.RawMessage{"facilitatorAddress": json.RawMessage(`"0xabc"`)}
	accepted := strings.Replace(ruleAccepted, `"version":"2"}`, `"version":"2","facilitatorAddress":"0xabc"}`, 1)
	if got := outcome(t, accepted, offer); got != "matches" {
		t.Fatal(got)
	}
	tried := 0
	for _, value := range []string{
		"exact", "eip155:84532", "10000", "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
		"0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "USDC", "2", "0xabc",
	} {
		at := strings.Index(accepted, `"`+value+`"`) + 1
		if at == 0 {
			t.Fatalf("no %s", value)
		}
		for i := range len(value) {
			for _, c := range "0123456789abcdefABCDEFxXg: " {
				changed := value[:i] + string(c) + value[i+1:]
				if strings.EqualFold(changed, value) && (changed == value || len(value) == 42 && i > 1) {
					continue
				}
				tried++
				if got := outcome(t, accepted[:at]+changed+accepted[at+len(value):], offer); got == "matches" {
					t.Errorf("%q matched %q", changed, value)
				}
			}
			if got := outcome(t, accepted[:at]+value[:i]+value[i+1:]+accepted[at+len(value):], offer); got == "matches" && len(value) > 1 {
				t.Errorf("%q without its byte %d matched", value, i)
			}
		}
	}
	t.Logf("%d changes", tried)
}

func TestMatchTakesTheOfferThatWasAccepted(t *testing.T) {
	cheap, dear := ruleOffer(t), ruleOffer(t)
	dear.Amount = amount(t, dear.Amount.Token(), "20000")
	offers := []payment.Offer{dear, cheap}
	p, err := payment.FromHeader([]string{base64Header(`{"x402Version":2,"accepted":` + ruleAccepted + `,"payload":{}}`)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := payment.Match(p, offers); got != &offers[1] {
		t.Errorf("got %+v", got)
	}
	if got := payment.Match(p, nil); got != nil {
		t.Errorf("matched %+v among no offers", got)
	}
	p.Accepted = nil
	if got := payment.Match(p, offers); got != nil {
		t.Errorf("a v2 payment without accepted matched %+v", got)
	}
}

func TestMatchTakesTheFirstOfferThatV1CanName(t *testing.T) {
	upto, permit2, first, second := ruleOffer(t), ruleOffer(t), ruleOffer(t), ruleOffer(t)
	upto.Scheme = payment.Upto
	permit2.Extra = map[string]json.RawMessage{"assetTransferMethod": json.RawMessage(`"permit2"`)}
	second.Amount = amount(t, second.Amount.Token(), "1")
	mainnet, _ := payment.USDC("eip155:1")
	unknown := ruleOffer(t)
	unknown.Amount = amount(t, mainnet, "10000")
	offers := []payment.Offer{upto, permit2, unknown, first, second}
	for network, want := range map[string]*payment.Offer{"base-sepolia": &offers[3], "eip155:84532": &offers[3], "base": nil, "ethereum": nil} {
		p, err := payment.FromHeader(nil, []string{base64Header(`{"x402Version":1,"scheme":"exact","network":"` + network + `","payload":{}}`)})
		if err != nil {
			t.Fatal(err)
		}
		if got := payment.Match(p, offers); got != want {
			t.Errorf("%s: got %+v", network, got)
		}
	}
}
