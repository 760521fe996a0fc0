package evm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

const (
	exactPermit = `{"signature":"0x22831df91a49d7befd619c235e1728de9211ebf23cf3e300eec01a4993d91b98570b0a65b4c4aefcd59ab632b601b664f510fb68014f383a675f6c1c8b650b611b",` +
		`"permit2Authorization":{"from":"0xCC9315E4C2EC6d354d42adC84f599f83Ad715631","permitted":{"token":"0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48","amount":"10000"},` +
		`"spender":"0x402085c248EeA27D92E8b30b2C58ed07f9E20001","nonce":"4088085408888527453838462878566412272174393977510598857841222539349641729266",` +
		`"deadline":"4102444800","witness":{"to":"0x9ABD6cF932170C471d01d746fe796703eDa24890","validAfter":"0"}}}`
	uptoPermit = `{"signature":"0x8bc30b29058c7a38c3c428acf364488f2742b4a42d95dc830fb5522eb14275d907ea814c4ae4d3ff478280177de4d4fb781c5af0d30aab28c909d29ab5d171261b",` +
		`"permit2Authorization":{"from":"0xCC9315E4C2EC6d354d42adC84f599f83Ad715631","permitted":{"token":"0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48","amount":"5000000"},` +
		`"spender":"0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002","nonce":"1904864546745382575555552629151683272610946836689252769141387703032866175475",` +
		`"deadline":"4102444800","witness":{"to":"0x9ABD6cF932170C471d01d746fe796703eDa24890","facilitator":"0x9093fDF8Df420a44e3d9c720fe23b75bB02f5F2E","validAfter":"0"}}}`
)

func replacedIn(t testing.TB, doc, old, new string) string {
	t.Helper()
	if !strings.Contains(doc, old) {
		t.Fatalf("nothing to replace: %s", old)
	}
	return strings.Replace(doc, old, new, 1)
}

func TestPermitsWithTwoMeaningsOrNoneAreMalformed(t *testing.T) {
	exact := func(old, new string) string { return replacedIn(t, exactPermit, old, new) }
	upto := func(old, new string) string { return replacedIn(t, uptoPermit, old, new) }
	for name, row := range map[string]struct{ doc, path string }{
		"not JSON":                        {"x", "payload"},
		"a list":                          {"[]", "payload"},
		"empty object":                    {"{}", "payload.permit2Authorization"},
		"no signature":                    {exact(`"signature"`, `"note"`), "payload.signature"},
		"no authorization":                {`{"signature":"0x"}`, "payload.permit2Authorization"},
		"authorization null":              {`{"signature":"0x","permit2Authorization":null}`, "payload.permit2Authorization"},
		"authorization a list":            {`{"signature":"0x","permit2Authorization":[]}`, "payload.permit2Authorization"},
		"Permit2Authorization beside it":  {exact(`"permit2Authorization"`, `"Permit2Authorization":{},"permit2Authorization"`), "payload.permit2Authorization"},
		"Authorization beside it":         {exact(`"permit2Authorization"`, `"Authorization":{},"permit2Authorization"`), "payload.Authorization"},
		"Transaction beside it":           {exact(`"permit2Authorization"`, `"Transaction":"","permit2Authorization"`), "payload.Transaction"},
		"Signature alone":                 {exact(`"signature"`, `"Signature"`), "payload.Signature"},
		"From alone":                      {exact(`"from"`, `"From"`), "payload.permit2Authorization.From"},
		"Witness beside witness":          {exact(`"witness"`, `"Witness":{},"witness"`), "payload.permit2Authorization.witness"},
		"TO beside to":                    {exact(`"to"`, `"TO":"0x","to"`), "payload.permit2Authorization.witness.to"},
		"Facilitator instead":             {upto(`"facilitator"`, `"Facilitator"`), "payload.permit2Authorization.witness.Facilitator"},
		"Amount beside amount":            {exact(`"amount"`, `"Amount":"1","amount"`), "payload.permit2Authorization.permitted.amount"},
		"amount twice":                    {exact(`"amount"`, `"amount":"1","amount"`), "payload.permit2Authorization.permitted"},
		"nonce twice":                     {exact(`"nonce"`, `"nonce":"1","nonce"`), "payload.permit2Authorization"},
		"from missing":                    {exact(`"from":"0xCC9315E4C2EC6d354d42adC84f599f83Ad715631",`, ""), "payload.permit2Authorization.from"},
		"from null":                       {exact(`"0xCC9315E4C2EC6d354d42adC84f599f83Ad715631"`, "null"), "payload.permit2Authorization.from"},
		"from with 0X":                    {exact(`"0xCC9315`, `"0XCC9315`), "payload.permit2Authorization.from"},
		"from too short":                  {exact(`"0xCC9315`, `"0xC9315`), "payload.permit2Authorization.from"},
		"from as a word":                  {exact(`"0xCC9315`, `"0x000000000000000000000000CC9315`), "payload.permit2Authorization.from"},
		"permitted missing":               {exact(`"permitted"`, `"allowed"`), "payload.permit2Authorization.permitted"},
		"permitted a list of one":         {exact(`{"token":"0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48","amount":"10000"}`, `[{"token":"0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48","amount":"10000"}]`), "payload.permit2Authorization.permitted"},
		"token without 0x":                {exact(`"0xA0b869`, `"A0b869`), "payload.permit2Authorization.permitted.token"},
		"token missing":                   {exact(`"token"`, `"asset"`), "payload.permit2Authorization.permitted.token"},
		"amount as a number":              {exact(`"10000"`, `10000`), "payload.permit2Authorization.permitted.amount"},
		"spender as a name":               {exact("0x402085c248EeA27D92E8b30b2C58ed07f9E20001", "proxy.eth"), "payload.permit2Authorization.spender"},
		"spender missing":                 {exact(`"spender"`, `"to"`), "payload.permit2Authorization.spender"},
		"nonce in hexadecimal":            {exact(`"nonce":"4088085408888527453838462878566412272174393977510598857841222539349641729266"`, `"nonce":"0x0909c63b"`), "payload.permit2Authorization.nonce"},
		"nonce with a leading zero":       {exact(`"nonce":"4`, `"nonce":"04`), "payload.permit2Authorization.nonce"},
		"nonce missing":                   {exact(`"nonce"`, `"salt"`), "payload.permit2Authorization.nonce"},
		"deadline as a number":            {exact(`"4102444800"`, `4102444800`), "payload.permit2Authorization.deadline"},
		"deadline negative":               {exact(`"4102444800"`, `"-1"`), "payload.permit2Authorization.deadline"},
		"witness missing":                 {exact(`"witness"`, `"extra"`), "payload.permit2Authorization.witness"},
		"witness as text":                 {exact(`{"to":"0x9ABD6cF932170C471d01d746fe796703eDa24890","validAfter":"0"}`, `"0x"`), "payload.permit2Authorization.witness"},
		"to missing":                      {exact(`"to"`, `"payTo"`), "payload.permit2Authorization.witness.to"},
		"validAfter missing":              {exact(`"validAfter"`, `"after"`), "payload.permit2Authorization.witness.validAfter"},
		"validAfter empty":                {exact(`"validAfter":"0"`, `"validAfter":""`), "payload.permit2Authorization.witness.validAfter"},
		"facilitator empty":               {upto("0x9093fDF8Df420a44e3d9c720fe23b75bB02f5F2E", ""), "payload.permit2Authorization.witness.facilitator"},
		"facilitator a list":              {upto(`"0x9093fDF8Df420a44e3d9c720fe23b75bB02f5F2E"`, `["0x9093fDF8Df420a44e3d9c720fe23b75bB02f5F2E"]`), "payload.permit2Authorization.witness.facilitator"},
		"signature without 0x":            {exact(`"0x22831d`, `"22831d`), "payload.signature"},
		"signature of half bytes":         {exact(`"0x22831d`, `"0x2831d`), "payload.signature"},
		"signature beyond 4096 bytes":     {exact(`"0x22831d`, `"0x`+strings.Repeat("00", 4096)+`22831d`), "payload.signature"},
		"beyond 16 KiB":                   {exact(`"signature"`, `"note":"`+strings.Repeat("x", payment.MaxHeader)+`","signature"`), "payload"},
		"data after it":                   {exactPermit + "{}", "payload"},
		"amount of 2^256":                 {exact(`"10000"`, `"115792089237316195423570985008687907853269984665640564039457584007913129639936"`), "payload.permit2Authorization.permitted.amount"},
		"nonce of 2^256":                  {exact(`"4088085408888527453838462878566412272174393977510598857841222539349641729266"`, `"115792089237316195423570985008687907853269984665640564039457584007913129639936"`), "payload.permit2Authorization.nonce"},
		"deadline of 2^256":               {exact(`"4102444800"`, `"115792089237316195423570985008687907853269984665640564039457584007913129639936"`), "payload.permit2Authorization.deadline"},
		"validAfter as a number":          {exact(`"validAfter":"0"`, `"validAfter":0`), "payload.permit2Authorization.witness.validAfter"},
		"amount with an exponent":         {exact(`"10000"`, `"1e4"`), "payload.permit2Authorization.permitted.amount"},
		"amount in hexadecimal":           {exact(`"10000"`, `"0x2710"`), "payload.permit2Authorization.permitted.amount"},
		"amount with digits of elsewhere": {exact(`"10000"`, `"１0000"`), "payload.permit2Authorization.permitted.amount"},
	} {
		s, err := evm.DecodePermit(json.RawMessage(row.doc))
		var malformed *payment.MalformedError
		if s != nil || !errors.As(err, &malformed) || !strings.HasPrefix(err.Error(), "payment: "+row.path) {
			t.Errorf("%s: got %v, %v", name, s, err)
		}
	}
}

func TestPayloadsOfOtherKindsAreNoPermitsEvenBesideOne(t *testing.T) {
	for name, doc := range map[string]string{
		"EIP-3009":     goodPayload,
		"Solana":       `{"transaction":"AgAA"}`,
		"both":         replacedIn(t, exactPermit, `"permit2Authorization"`, `"authorization":{},"permit2Authorization"`),
		"both, Solana": replacedIn(t, exactPermit, `"permit2Authorization"`, `"transaction":"","permit2Authorization"`),
	} {
		s, err := evm.DecodePermit(json.RawMessage(doc))
		var invalid *payment.InvalidError
		if s != nil || !errors.As(err, &invalid) || invalid.Reason != payment.EVMPayloadType {
			t.Errorf("%s: got %v, %v", name, s, err)
		}
	}
	plain := replacedIn(t, exactPermit, `"permit2Authorization"`, `"authorization":null,"transaction":null,"permit2Authorization"`)
	if s, err := evm.DecodePermit(json.RawMessage(replacedIn(t, plain, `"to"`, `"facilitator":null,"to"`))); err != nil || s.Scheme != payment.Exact {
		t.Errorf("null does not count as present: %v, %v", s, err)
	}
}

func TestErrorsNeverRepeatThePermit(t *testing.T) {
	const canary = "Canary31337"
	for _, shape := range []string{
		`"` + canary + `"`, `"0x` + canary + `"`, `"10000` + canary + `"`, `{"a":"` + canary + `"}`, `["` + canary + `"]`, `3133731337`,
		`"313373133731337313373133731337313373133731337313373133731337313373133731337313373133731337"`, `"` + canary + `\ud800"`,
	} {
		for _, name := range []string{"signature", "permit2Authorization", "from", "permitted", "token", "amount", "spender", "nonce", "deadline", "witness", "to", "facilitator", "validAfter"} {
			start := strings.Index(uptoPermit, `"`+name+`":`) + len(name) + 3
			end := start + strings.IndexAny(uptoPermit[start:], ",}")
			switch name {
			case "permit2Authorization":
				end = len(uptoPermit) - 1
			case "permitted":
				end = start + strings.Index(uptoPermit[start:], "}") + 1
			case "witness":
				end = len(uptoPermit) - 2
			}
			_, err := evm.DecodePermit(json.RawMessage(uptoPermit[:start] + shape + uptoPermit[end:]))
			if _, ok := errors.AsType[*payment.MalformedError](err); !ok {
				t.Errorf("%s as %s: %v", name, shape, err)
				continue
			}
			if s := err.Error(); strings.Contains(s, canary) || strings.Contains(s, "31337") || !strings.Contains(s, name) {
				t.Errorf("%s as %s: %s", name, shape, s)
			}
		}
	}
}

func samePermit(a, b *evm.SignedPermit) bool {
	return a.Scheme == b.Scheme && a.From == b.From && a.Token == b.Token && a.Amount.Cmp(b.Amount) == 0 && a.Spender == b.Spender &&
		a.Nonce.Cmp(b.Nonce) == 0 && a.Deadline.Cmp(b.Deadline) == 0 && a.To == b.To && a.Facilitator == b.Facilitator &&
		a.ValidAfter.Cmp(b.ValidAfter) == 0 && bytes.Equal(a.Signature, b.Signature)
}

func TestPermitsSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := drawPermit(t)
		got, err := evm.DecodePermit(sent.Encode())
		if err != nil || !samePermit(got, sent) {
			t.Fatalf("%s became %+v, %v", sent.Encode(), got, err)
		}
	})
}

func TestOnePermitHasOneKeyHoweverItIsWritten(t *testing.T) {
	want, err := evm.DecodePermit(json.RawMessage(uptoPermit))
	if err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string]string{
		"lower case":          strings.NewReplacer("0xCC9315E4C2EC6d354d42adC84f599f83Ad715631", "0xcc9315e4c2ec6d354d42adc84f599f83ad715631", "0x8bc30b", "0x8BC30B").Replace(uptoPermit),
		"blanks":              strings.NewReplacer(`":`, "\" :\n", `,"`, ` , "`).Replace(uptoPermit),
		"escaped digits":      replacedIn(t, uptoPermit, `"nonce":"1904`, `"nonce":"\u0031904`),
		"escaped member name": replacedIn(t, uptoPermit, `"nonce"`, `"\u006eonce"`),
		"unknown members":     replacedIn(t, uptoPermit, `"to"`, `"memo":[1,{"y":null}],"to"`),
	} {
		got, err := evm.DecodePermit(json.RawMessage(doc))
		if err != nil || doc == uptoPermit || !samePermit(got, want) || got.Key(1) != want.Key(1) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

func FuzzDecodePermit(f *testing.F) {
	for _, doc := range []string{
		exactPermit, uptoPermit, goodPayload, `{}`, `{"transaction":""}`, replacedIn(f, exactPermit, `"0x22831d`, `"0x`),
		replacedIn(f, exactPermit, `"10000"`, `"1e3"`), replacedIn(f, uptoPermit, `"facilitator"`, `"Facilitator"`), replacedIn(f, exactPermit, `"from"`, `"From"`),
	} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		s, err := evm.DecodePermit(doc)
		if err != nil {
			var malformed *payment.MalformedError
			var invalid *payment.InvalidError
			if s != nil || !errors.As(err, &malformed) && !errors.As(err, &invalid) {
				t.Fatalf("error of type %T with %v", err, s)
			}
			return
		}
		again, err := evm.DecodePermit(s.Encode())
		if err != nil || !samePermit(again, s) {
			t.Fatalf("%s was written as %s: %v", doc, s.Encode(), err)
		}
		if s.Key(1) != again.Key(1) {
			t.Fatalf("%s has two keys", doc)
		}
	})
}
