package payment_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/tollgate402/tollgate/payment"
)

// variants returns doc with each of its values, one at a time, replaced by
// each of others, which are JSON.
func variants(t *testing.T, doc string, others []string) []string {
	t.Helper()
	var root any
	if err := json.Unmarshal([]byte(doc), &root); err != nil {
		t.Fatal(err)
	}
	var list []string
	record := func() {
		out, err := json.Marshal(root)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, string(out))
	}
	var walk func(v any, set func(any))
	walk = func(v any, set func(any)) {
		for _, other := range others {
			set(json.RawMessage(other))
			record()
		}
		set(v)
		switch v := v.(type) {
		case map[string]any:
			for k, sub := range v {
				walk(sub, func(x any) { v[k] = x })
			}
		case []any:
			for i, sub := range v {
				walk(sub, func(x any) { v[i] = x })
			}
		}
	}
	walk(root, func(v any) { root = v })
	return list
}

func TestErrorsNeverRepeatWhatAStrangerSent(t *testing.T) {
	// The canary in shapes that get past one check each and fail at a later
	// one. It is also a valid part of a CAIP-2 name.
	const canary = "Canary31337"
	shapes := []string{
		`"` + canary + `"`, `"10000 ` + canary + `"`, `"0x` + canary + `"`, `"solana:` + canary + `"`, `"` + canary + strings.Repeat("x", 200) + `"`,
		`"cosmos:` + canary + `"`, `{"` + "a" + `":"` + canary + `"}`, `["` + canary + `"]`, `31337313373133731337`, `-31337`, `31337.5`, `"\u0043anary31337"`, `"<script>` + canary + `"`,
	}
	o := ruleOffer(t)
	v1requirements := strings.Replace(ruleAccepted, `"amount"`, `"maxAmountRequired"`, 1)
	decoders := []struct {
		name string
		docs []string
		read func(doc string) error
	}{
		{"FromHeader, v2", []string{paymentV2}, func(doc string) error { _, err := payment.FromHeader([]string{base64Header(doc)}, nil); return err }},
		{"FromHeader, v1", []string{paymentV1}, func(doc string) error { _, err := payment.FromHeader(nil, []string{base64Header(doc)}); return err }},
		{"FromHeader, not encoded", []string{paymentV2}, func(doc string) error { _, err := payment.FromHeader([]string{doc}, nil); return err }},
		{"DecodePayment", []string{paymentV1, paymentV2}, func(doc string) error { _, err := payment.DecodePayment([]byte(doc)); return err }},
		{
			"DecodeRequired",
			[]string{`{"x402Version":2,"error":"e","resource":{"url":"u"},"extensions":{},"accepts":[` + ruleAccepted + `]}`},
			func(doc string) error { _, err := payment.DecodeRequired(base64Header(doc)); return err },
		},
		{
			"DecodeRequiredBody",
			[]string{`{"x402Version":1,"error":"e","accepts":[` + v1requirements + `]}`},
			func(doc string) error { _, err := payment.DecodeRequiredBody([]byte(doc)); return err },
		},
		{
			"DecodeRequest",
			[]string{string(request(2, paymentV2, ruleAccepted)), string(request(1, paymentV1, v1requirements))},
			func(doc string) error { _, _, err := payment.DecodeRequest([]byte(doc)); return err },
		},
		{"DecodeVerification", []string{`{"isValid":true,"payer":"p"}`}, func(doc string) error { _, err := payment.DecodeVerification([]byte(doc)); return err }},
		{
			"DecodeSettlement",
			[]string{`{"success":true,"transaction":"0x","network":"base-sepolia","payer":"p"}`},
			func(doc string) error { _, err := payment.DecodeSettlement([]byte(doc), &o, o.Amount); return err },
		},
		{
			"DecodeSupported",
			[]string{`{"kinds":[{"x402Version":2,"scheme":"exact","network":"base","extra":{"a":"b"}}],"extensions":["e"],"signers":{}}`},
			func(doc string) error { _, err := payment.DecodeSupported([]byte(doc)); return err },
		},
	}
	for _, d := range decoders {
		refused := 0
		for _, doc := range d.docs {
			docs := variants(t, doc, shapes)
			// An unusable recipient on a network that is the canary.
			docs = append(docs, variants(t, strings.ReplaceAll(doc, "eip155:84532", "cosmos:"+canary), []string{`""`, `"` + strings.Repeat("x", 200) + `"`})...)
			// Documents that are no JSON, repeated values, names that nobody uses.
			docs = append(docs, canary, `{"a":`+canary, `{"a":"`+canary, `{"a":"`+canary+"\x01", `{"a":"`+canary+`\x"}`, doc+canary, `{"a":1,"a":"`+canary+`"}`,
				`{"<`+canary+`>":{"a":1,"a":2}}`, `{"`+canary+strings.Repeat("y", 64)+`":1,"`+canary+strings.Repeat("y", 64)+`":2}`, `{"`+canary+"\u00e9"+`":1,"`+canary+"\u00e9"+`":2}`)
			for _, doc := range docs {
				err := d.read(doc)
				if _, ok := errors.AsType[*payment.MalformedError](err); !ok {
					continue
				}
				refused++
				if s := err.Error(); strings.Contains(s, canary) || strings.Contains(s, "31337") || strings.ContainsAny(s, "<>\n\x01") || len(s) > 300 {
					t.Errorf("%s: %.200s\n%.300s", d.name, s, doc)
				}
			}
		}
		if refused < 15 {
			t.Errorf("%s refused only %d documents", d.name, refused)
		}
	}
}

func TestErrorsOfThreeKindsAreToldApartThroughWrapping(t *testing.T) {
	var malformed *payment.MalformedError
	var invalid *payment.InvalidError
	var unavailable *payment.UnavailableError

	err := fmt.Errorf("reading: %w", payment.Malformed("PAYMENT-SIGNATURE", "accepted.amount", "is missing"))
	if !errors.As(err, &malformed) || err.Error() != "reading: PAYMENT-SIGNATURE: accepted.amount: is missing" {
		t.Errorf("got %v", err)
	}
	err = fmt.Errorf("verifying: %w", payment.Invalid(payment.EVMSignature, "not by from"))
	if !errors.As(err, &invalid) || err.Error() != "verifying: invalid_exact_evm_signature: not by from" {
		t.Errorf("got %v", err)
	}
	if got := payment.Invalid(payment.EVMSignature, "").Error(); got != "invalid_exact_evm_signature" {
		t.Errorf("got %s", got)
	}
	err = fmt.Errorf("settling: %w", &payment.UnavailableError{Doing: "simulating the transfer", Err: io.ErrUnexpectedEOF})
	if !errors.As(err, &unavailable) || !errors.Is(err, io.ErrUnexpectedEOF) || err.Error() != "settling: simulating the transfer: unexpected EOF" {
		t.Errorf("got %v", err)
	}
	if got := (&payment.UnavailableError{Doing: "waiting"}).Error(); got != "waiting" {
		t.Errorf("got %s", got)
	}
	if errors.As(err, &invalid) && invalid.Reason == "" || errors.As(err, &malformed) && malformed.What == "" {
		t.Error("an unavailable answer was taken for a statement about the payment")
	}
}
