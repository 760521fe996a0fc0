package payment_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tollgate402/tollgate/payment"
)

const somePayer = "0xCC9315E4C2EC6d354d42adC84f599f83Ad715631"

func request(version int, pay, requirements string) []byte {
	return fmt.Appendf(nil, `{"x402Version":%d,"paymentPayload":%s,"paymentRequirements":%s}`, version, pay, requirements)
}

func TestRequestsCarryThePaymentUnchangedAndTheChargeAsAmount(t *testing.T) {
	odd := `{"x402Version":2, "accepted":` + strings.Replace(ruleAccepted, "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "0x036cbd53842c5426634e7929541ec2318f3dcf7e", 1) + `,"payload":{"b":1,"a":"\u0041"},"foo":null}`
	p, err := payment.DecodePayment([]byte(odd))
	if err != nil {
		t.Fatal(err)
	}
	o := ruleOffer(t)
	o.Scheme = payment.Upto
	body, err := payment.EncodeRequest(p, &o, amount(t, o.Amount.Token(), "1858"))
	if err != nil {
		t.Fatal(err)
	}
	sameJSON(t, body, request(2, odd, strings.NewReplacer(`"10000"`, `"1858"`, `"exact"`, `"upto"`).Replace(ruleAccepted)))
	if o.Amount.Units() != "10000" {
		t.Errorf("the offer was changed to %s", o.Amount)
	}
	if _, err := payment.EncodeRequest(&payment.Payment{Version: 2}, &o, o.Amount); err == nil {
		t.Error("a payment that was never decoded was forwarded")
	}
}

func TestRequestsThatCannotBeReadAreMalformed(t *testing.T) {
	good := string(request(2, paymentV2, ruleAccepted))
	if _, _, err := payment.DecodeRequest([]byte(good)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := payment.DecodeRequest([]byte(strings.Replace(good, `"x402Version":2,`, "", 1))); err != nil {
		t.Errorf("without the outer version: %v", err)
	}
	v1requirements := strings.Replace(ruleAccepted, `"amount"`, `"maxAmountRequired"`, 1)
	for name, doc := range map[string]string{
		"not JSON":                      "x",
		"an array":                      "[]",
		"no payment":                    `{"x402Version":2,"paymentRequirements":` + ruleAccepted + `}`,
		"no requirements":               `{"x402Version":2,"paymentPayload":` + paymentV2 + `}`,
		"payment in a string":           string(request(2, `"{}"`, ruleAccepted)),
		"other outer version":           string(request(1, paymentV2, ruleAccepted)),
		"outer version as text":         strings.Replace(good, `:2`, `:"2"`, 1),
		"requirements of v1 for v2":     string(request(2, paymentV2, v1requirements)),
		"requirements of v2 for v1":     string(request(1, paymentV1, ruleAccepted)),
		"v1 requirements, no timeout":   string(request(1, paymentV1, strings.Replace(v1requirements, `"maxTimeoutSeconds":60,`, "", 1))),
		"requirements for no network":   string(request(2, paymentV2, strings.Replace(ruleAccepted, "eip155:84532", "moon", 1))),
		"amount as number":              string(request(2, paymentV2, strings.Replace(ruleAccepted, `"10000"`, `10000`, 1))),
		"v1 description as number":      string(request(1, paymentV1, strings.Replace(v1requirements, `"scheme"`, `"description":7,"scheme"`, 1))),
		"v1 payment without scheme":     string(request(1, strings.Replace(paymentV1, `"scheme":"exact",`, "", 1), v1requirements)),
		"v1 payment without network":    string(request(1, strings.Replace(paymentV1, `"network":"base-sepolia",`, "", 1), v1requirements)),
		"extensions as a list":          string(request(2, `{"extensions":[],`+paymentV2[1:], ruleAccepted)),
		"PaymentPayload beside it":      strings.Replace(good, `"paymentPayload"`, `"PaymentPayload":{},"paymentPayload"`, 1),
		"PaymentRequirements alone":     strings.Replace(good, `"paymentRequirements"`, `"PaymentRequirements"`, 1),
		"larger than the limit":         strings.Replace(good, `"x402Version"`, `"note":"`+strings.Repeat("x", payment.MaxBody)+`","x402Version"`, 1),
		"a version that nobody defined": strings.ReplaceAll(good, `"x402Version":2`, `"x402Version":9`),
	} {
		p, o, err := payment.DecodeRequest([]byte(doc))
		var malformed *payment.MalformedError
		if p != nil || o != nil || !errors.As(err, &malformed) {
			t.Errorf("%s: got %v, %v, %v", name, p, o, err)
		}
	}
}

func TestVerificationsSurviveTheWire(t *testing.T) {
	got, err := payment.DecodeVerification(payment.EncodeVerification(&payment.Verification{Payer: somePayer}))
	if err != nil || got.Payer != somePayer {
		t.Errorf("got %+v, %v", got, err)
	}
	sent := &payment.InvalidError{Reason: payment.EVMSignature, Message: `not by "from" <ü>`, Payer: somePayer}
	v, err := payment.DecodeVerification(payment.EncodeInvalid(sent))
	var invalid *payment.InvalidError
	if v != nil || !errors.As(err, &invalid) || *invalid != *sent {
		t.Errorf("got %v, %v", v, err)
	}
	// A refusal without a code is still a refusal.
	for _, doc := range []string{
		`{"isValid":false}`, `{"isValid":false,"invalidReason":null}`, `{"isValid":false,"invalidReason":""}`,
		`{"isValid":false,"invalidReason":7}`, `{"isValid":false,"invalidReason":"` + strings.Repeat("x", 201) + `"}`, `{"isValid":false,"invalidMessage":{}}`,
	} {
		if _, err := payment.DecodeVerification([]byte(doc)); !errors.As(err, &invalid) || invalid.Reason != payment.UnexpectedVerify || invalid.Message != "" {
			t.Errorf("%.80s: %v", doc, err)
		}
	}
}

func TestAnswersThatAreNoVerificationAreNeverAYes(t *testing.T) {
	for _, doc := range []string{
		"", "null", "true", "[]", "{}", `{"isValid":"true"}`, `{"isValid":1}`, `{"isValid":null}`, `{"IsValid":true}`, `{"isvalid":true}`,
		`{"isValid":false,"isValid":true}`, `{"isValid":true,"ISVALID":false}`, `{"isValid":true}{}`, `{"isValid":true,"payer":7}`, `{"error":"x"}`, `{"success":true}`,
		`<html>`, `{"isValid":true,"note":"` + strings.Repeat("x", payment.MaxBody) + `"}`,
	} {
		v, err := payment.DecodeVerification([]byte(doc))
		var malformed *payment.MalformedError
		if v != nil || !errors.As(err, &malformed) {
			t.Errorf("%.80s: got %v, %v", doc, v, err)
		}
	}
}

func TestSettlementAnswersAreSettledRefusedPendingOrUnreadable(t *testing.T) {
	o := ruleOffer(t)
	zero := amount(t, o.Amount.Token(), "0")
	const tx = "0x90d68b1ab51f79c37bdaaa8972e237cf3c55cc20fe3fb35ecc50c2ebe04f8a91"
	settled := `{"success":true,"transaction":"` + tx + `","network":"eip155:84532","payer":"` + somePayer + `"}`
	for name, row := range map[string]struct {
		doc    string
		charge payment.Amount
		want   string
	}{
		"settled":                              {settled, o.Amount, "settled " + tx + " " + somePayer},
		"settled, named as in v1":              {strings.Replace(settled, "eip155:84532", "base-sepolia", 1), o.Amount, "settled " + tx + " " + somePayer},
		"settled, payer in lower case":         {strings.Replace(settled, somePayer, strings.ToLower(somePayer), 1), o.Amount, "settled " + tx + " " + somePayer},
		"settled, payer missing":               {strings.Replace(settled, `,"payer":"`+somePayer+`"`, "", 1), o.Amount, "settled " + tx + " "},
		"settled, payer is no address":         {strings.Replace(settled, somePayer, "alice", 1), o.Amount, "settled " + tx + " "},
		"settled, with unknown members":        {strings.Replace(settled, `"payer"`, `"extensions":{},"amount":"10000","extra":null,"payer"`, 1), o.Amount, "settled " + tx + " " + somePayer},
		"nothing had to move":                  {strings.Replace(settled, tx, "", 1), zero, "settled  " + somePayer},
		"success without transaction":          {strings.Replace(settled, tx, "", 1), o.Amount, "malformed"},
		"success, transaction missing":         {strings.Replace(settled, `"transaction":"`+tx+`",`, "", 1), o.Amount, "malformed"},
		"success, transaction null":            {strings.Replace(settled, `"`+tx+`"`, "null", 1), o.Amount, "malformed"},
		"success, transaction a list":          {strings.Replace(settled, `"`+tx+`"`, `["`+tx+`"]`, 1), o.Amount, "malformed"},
		"success on another network":           {strings.Replace(settled, "84532", "8453", 1), o.Amount, "malformed"},
		"success on no network":                {strings.Replace(settled, "eip155:84532", "unknown:unknown", 1), o.Amount, "malformed"},
		"success, network empty":               {strings.Replace(settled, "eip155:84532", "", 1), o.Amount, "malformed"},
		"success, network missing":             {strings.Replace(settled, `,"network":"eip155:84532"`, "", 1), o.Amount, "malformed"},
		"success as text":                      {strings.Replace(settled, "true", `"true"`, 1), o.Amount, "malformed"},
		"success missing":                      {strings.Replace(settled, `"success":true,`, "", 1), o.Amount, "malformed"},
		"success in another case":              {strings.Replace(settled, "success", "Success", 1), o.Amount, "malformed"},
		"success twice":                        {strings.Replace(settled, `"success":true`, `"success":false,"success":true`, 1), o.Amount, "malformed"},
		"refused":                              {`{"success":false,"errorReason":"invalid_exact_evm_signature","errorMessage":"m","transaction":"","network":"eip155:84532","payer":"` + somePayer + `"}`, o.Amount, "invalid invalid_exact_evm_signature m " + somePayer},
		"refused, network as x402-rs says":     {`{"success":false,"errorReason":"duplicate_settlement","transaction":"","network":""}`, o.Amount, "invalid duplicate_settlement  "},
		"refused, no reason":                   {`{"success":false}`, o.Amount, "invalid unexpected_settle_error  "},
		"refused, the reason is no text":       {`{"success":false,"errorReason":{}}`, o.Amount, "invalid unexpected_settle_error  "},
		"refused, the reason is very long":     {`{"success":false,"errorReason":"` + strings.Repeat("x", 201) + `"}`, o.Amount, "invalid unexpected_settle_error  "},
		"pending":                              {`{"success":false,"errorReason":"settlement_pending","transaction":"` + tx + `","network":"eip155:84532","payer":"` + somePayer + `"}`, o.Amount, "unavailable " + tx + " " + somePayer},
		"pending without transaction":          {`{"success":false,"errorReason":"settlement_pending","transaction":"","network":"eip155:84532"}`, o.Amount, "unavailable  "},
		"success overrides the pending reason": {strings.Replace(settled, `"payer"`, `"errorReason":"settlement_pending","payer"`, 1), o.Amount, "settled " + tx + " " + somePayer},
		"not JSON":                             {`upstream connect error`, o.Amount, "malformed"},
		"empty":                                {``, o.Amount, "malformed"},
		"null":                                 {`null`, o.Amount, "malformed"},
		"a verification":                       {`{"isValid":true}`, o.Amount, "malformed"},
		"an error object":                      {`{"error":"internal"}`, o.Amount, "malformed"},
		"two answers":                          {settled + settled, o.Amount, "malformed"},
		"larger than the limit":                {strings.Replace(settled, `"payer"`, `"x":"`+strings.Repeat("x", payment.MaxBody)+`","payer"`, 1), o.Amount, "malformed"},
	} {
		s, err := payment.DecodeSettlement([]byte(row.doc), &o, row.charge)
		var got string
		var invalid *payment.InvalidError
		var unavailable *payment.UnavailableError
		var malformed *payment.MalformedError
		switch {
		case err == nil:
			got = fmt.Sprintf("settled %s %s", s.Transaction, s.Payer)
			if s.Network != o.Network() || s.Amount.Cmp(row.charge) != 0 {
				t.Errorf("%s: got %+v", name, s)
			}
		case errors.As(err, &invalid):
			got = fmt.Sprintf("invalid %s %s %s", invalid.Reason, invalid.Message, invalid.Payer)
		case errors.As(err, &unavailable):
			if !unavailable.Pending {
				t.Errorf("%s: the money is said not to have moved", name)
			}
			got = fmt.Sprintf("unavailable %s %s", unavailable.Transaction, unavailable.Payer)
		case errors.As(err, &malformed):
			got = "malformed"
		default:
			t.Errorf("%s: error of type %T", name, err)
		}
		if got != row.want || (s != nil) != (err == nil) {
			t.Errorf("%s: got %q, want %q", name, got, row.want)
		}
	}
}

func TestSettlementsSurviveTheWireInBothVersions(t *testing.T) {
	o := ruleOffer(t)
	s := &payment.Settlement{Network: o.Network(), Transaction: "0xab", Payer: somePayer, Amount: amount(t, o.Amount.Token(), "1858")}
	for _, version := range []int{payment.V1, payment.V2} {
		for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
			doc := payment.EncodeSettlement(version, scheme, s)
			got, err := payment.DecodeSettlement(doc, &o, s.Amount)
			if err != nil || got.Network != s.Network || got.Transaction != s.Transaction || got.Payer != s.Payer || got.Amount.Cmp(s.Amount) != 0 {
				t.Errorf("version %d: got %+v, %v", version, got, err)
			}
			m := members(t, doc)
			if want := o.Network().In(version); text(t, m["network"]) != want {
				t.Errorf("version %d: network %s", version, m["network"])
			}
			if _, ok := m["amount"]; ok != (scheme == payment.Upto) {
				t.Errorf("%s: amount %s", scheme, m["amount"])
			}
		}
	}
}

func TestWhatWasNotSettledIsToldWithoutInternalDetails(t *testing.T) {
	secret := errors.New("dial tcp 10.0.0.7:8545: refused")
	pending := &payment.UnavailableError{Doing: "waiting for the receipt", Err: secret, Pending: true, Transaction: "0xab", Payer: somePayer}
	for name, row := range map[string]struct {
		err  error
		want string
	}{
		"invalid":             {&payment.InvalidError{Reason: payment.EVMNonceUsed, Message: "m", Payer: somePayer}, `{"success":false,"errorReason":"invalid_exact_evm_nonce_already_used","errorMessage":"m","payer":"` + somePayer + `","transaction":"","network":"eip155:84532"}`},
		"invalid, wrapped":    {fmt.Errorf("settling: %w", payment.Invalid(payment.EVMNonceUsed, "")), `{"success":false,"errorReason":"invalid_exact_evm_nonce_already_used","transaction":"","network":"eip155:84532"}`},
		"pending":             {pending, `{"success":false,"errorReason":"settlement_pending","payer":"` + somePayer + `","transaction":"0xab","network":"eip155:84532"}`},
		"pending, wrapped":    {fmt.Errorf("settling: %w", pending), `{"success":false,"errorReason":"settlement_pending","payer":"` + somePayer + `","transaction":"0xab","network":"eip155:84532"}`},
		"pending, no hash":    {&payment.UnavailableError{Doing: "settling", Err: secret, Pending: true}, `{"success":false,"errorReason":"settlement_pending","transaction":"","network":"eip155:84532"}`},
		"nothing was sent":    {&payment.UnavailableError{Doing: "simulating", Err: secret}, `{"success":false,"errorReason":"unexpected_settle_error","transaction":"","network":"eip155:84532"}`},
		"another error":       {secret, `{"success":false,"errorReason":"unexpected_settle_error","transaction":"","network":"eip155:84532"}`},
		"a malformed message": {payment.Malformed("x", "y", "z"), `{"success":false,"errorReason":"unexpected_settle_error","transaction":"","network":"eip155:84532"}`},
	} {
		doc := payment.EncodeUnsettled(payment.V2, "eip155:84532", row.err)
		if sorted(t, doc) != sorted(t, []byte(row.want)) {
			t.Errorf("%s: got %s", name, doc)
		}
	}
	v1 := payment.EncodeUnsettled(payment.V1, "eip155:84532", pending)
	if got := text(t, members(t, v1)["network"]); got != "base-sepolia" {
		t.Errorf("v1 network %s", got)
	}
}

func TestMessagesAreCutAt500BytesBetweenCharacters(t *testing.T) {
	for _, filler := range []string{"x", "é", "€", "😀"} {
		for shift := range 5 {
			for _, size := range []int{1, 490, 495, 500, 501, 505, 2000} {
				sent := strings.Repeat("x", shift) + strings.Repeat(filler, size/len(filler))
				_, err := payment.DecodeVerification(payment.EncodeInvalid(payment.Invalid(payment.EVMSignature, sent)))
				var invalid *payment.InvalidError
				if !errors.As(err, &invalid) {
					t.Fatal(err)
				}
				got := invalid.Message
				if len(sent) <= 500 {
					if got != sent {
						t.Errorf("%d bytes became %q", len(sent), got)
					}
					continue
				}
				kept, cut := strings.CutSuffix(got, "…")
				if !cut || len(got) > 500 || len(got) < 490 || !utf8.ValidString(got) || strings.ContainsRune(got, utf8.RuneError) || !strings.HasPrefix(sent, kept) {
					t.Errorf("%d bytes of %q became %d bytes", len(sent), filler, len(got))
				}
			}
		}
	}
	long := `{"success":false,"errorMessage":"` + strings.Repeat("€", 400) + `"}`
	o := ruleOffer(t)
	_, err := payment.DecodeSettlement([]byte(long), &o, o.Amount)
	var invalid *payment.InvalidError
	if !errors.As(err, &invalid) || len(invalid.Message) > 500 || !utf8.ValidString(invalid.Message) {
		t.Errorf("got %v", err)
	}
}

func TestSupportedKindsSurviveTheWire(t *testing.T) {
	s := payment.Supported{
		Kinds: []payment.Kind{
			{Version: 2, Scheme: payment.Exact, Network: "eip155:84532"},
			{Version: 1, Scheme: payment.Exact, Network: "eip155:84532"},
			{Version: 2, Scheme: payment.Upto, Network: "eip155:84532", Extra: json.RawMessage(`{"facilitatorAddress":"0xab"}`)},
		},
		Extensions: []string{"bazaar"},
		Signers:    map[string][]string{"eip155:*": {somePayer}},
	}
	doc := s.Encode()
	sameJSON(t, doc, []byte(`{"kinds":[{"x402Version":2,"scheme":"exact","network":"eip155:84532"},{"x402Version":1,"scheme":"exact","network":"base-sepolia"},`+
		`{"x402Version":2,"scheme":"upto","network":"eip155:84532","extra":{"facilitatorAddress":"0xab"}}],"extensions":["bazaar"],"signers":{"eip155:*":["`+somePayer+`"]}}`))
	got, err := payment.DecodeSupported(doc)
	if err != nil || len(got.Kinds) != len(s.Kinds) || !slices.Equal(got.Extensions, s.Extensions) {
		t.Fatalf("got %+v, %v", got, err)
	}
	for i, k := range got.Kinds {
		if want := s.Kinds[i]; k.Version != want.Version || k.Scheme != want.Scheme || k.Network != want.Network || string(k.Extra) != string(want.Extra) {
			t.Errorf("got %+v, want %+v", k, want)
		}
	}
	sameJSON(t, (&payment.Supported{}).Encode(), []byte(`{"kinds":[],"extensions":[],"signers":{}}`))
}

func TestSupportedAnswersOfOthersAreReadAsFarAsTheyAreKnownHere(t *testing.T) {
	got, err := payment.DecodeSupported([]byte(`{"kinds":[{"x402Version":2,"scheme":"exact","network":"eip155:*"},{"x402Version":1,"scheme":"exact","network":"aptos"},` +
		`{"x402Version":2,"scheme":"exact","network":"eip155:8453","extra":null},{"x402Version":7,"scheme":"deferred","network":"solana"}]}`))
	if err != nil || len(got.Kinds) != 2 {
		t.Fatalf("got %+v, %v", got, err)
	}
	o := ruleOffer(t)
	if got.Supports(&o) {
		t.Error("Base Sepolia is said to be supported")
	}
	base, _ := payment.USDC("eip155:8453")
	o.Amount = amount(t, base, "1")
	if !got.Supports(&o) {
		t.Error("Base is said not to be supported")
	}
	o.Scheme = payment.Upto
	if got.Supports(&o) {
		t.Error("upto on Base is said to be supported")
	}
	for _, other := range []string{`null`, `{"bazaar":{}}`, `["bazaar",7]`, `"bazaar"`} {
		if got, err := payment.DecodeSupported([]byte(`{"kinds":[],"extensions":` + other + `}`)); err != nil || len(got.Extensions) != 0 {
			t.Errorf("extensions %s: %+v, %v", other, got, err)
		}
	}
	for _, doc := range []string{
		"", "[]", "{}", `{"kinds":{}}`, `{"kinds":[7]}`, `{"kinds":[{}]}`, `{"kinds":[{"x402Version":"2","scheme":"exact","network":"base"}]}`,
		`{"kinds":[{"x402Version":2,"network":"base"}]}`, `{"kinds":[{"x402Version":2,"scheme":"exact","network":"base","extra":[]}]}`, `{"Kinds":[]}`,
	} {
		var malformed *payment.MalformedError
		if got, err := payment.DecodeSupported([]byte(doc)); got != nil || !errors.As(err, &malformed) {
			t.Errorf("%s: got %v, %v", doc, got, err)
		}
	}
}

// FuzzFacilitatorWire feeds one document to everything that reads what a
// facilitator or its client sends.
func FuzzFacilitatorWire(f *testing.F) {
	f.Add(request(2, paymentV2, ruleAccepted))
	f.Add(request(1, paymentV1, strings.Replace(ruleAccepted, `"amount"`, `"maxAmountRequired"`, 1)))
	for _, doc := range []string{
		`{"isValid":true,"payer":"0x"}`, `{"isValid":false,"invalidReason":"x"}`, `{"success":true,"transaction":"0x1","network":"base-sepolia"}`,
		`{"success":false,"errorReason":"settlement_pending"}`, `{"kinds":[{"x402Version":2,"scheme":"exact","network":"base"}]}`,
	} {
		f.Add([]byte(doc))
	}
	o := ruleOffer(f)
	f.Fuzz(func(t *testing.T, doc []byte) {
		known := func(err error) {
			var malformed *payment.MalformedError
			var invalid *payment.InvalidError
			var unavailable *payment.UnavailableError
			if err != nil && !errors.As(err, &malformed) && !errors.As(err, &invalid) && !errors.As(err, &unavailable) {
				t.Fatalf("error of type %T", err)
			}
		}
		p, offer, err := payment.DecodeRequest(doc)
		known(err)
		if err == nil {
			body, err := payment.EncodeRequest(p, offer, offer.Amount)
			if err != nil {
				known(err)
				return
			}
			again, offerAgain, err := payment.DecodeRequest(body)
			if err != nil || !json.Valid(body) {
				t.Fatalf("%s was written as %s, which is refused: %v", doc, body, err)
			}
			if sorted(t, again.Raw()) != sorted(t, p.Raw()) || again.Network != p.Network || offerAgain.Amount.Cmp(offer.Amount) != 0 || offerAgain.PayTo != offer.PayTo || offerAgain.Timeout != offer.Timeout {
				t.Fatalf("%s was written as %s", doc, body)
			}
		}
		_, err = payment.DecodeVerification(doc)
		known(err)
		s, err := payment.DecodeSettlement(doc, &o, o.Amount)
		known(err)
		if err == nil && (s.Transaction == "" || s.Network != o.Network()) {
			t.Fatalf("%s was taken for a settlement", doc)
		}
		if supported, err := payment.DecodeSupported(doc); err == nil {
			if again, err := payment.DecodeSupported(supported.Encode()); err != nil || len(again.Kinds) != len(supported.Kinds) {
				t.Fatalf("%s was written as %s: %v", doc, supported.Encode(), err)
			}
		} else {
			known(err)
		}
	})
}
