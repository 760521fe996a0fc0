package evm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// approvalFor returns what the payer of the vectors signs for the token so
// that Permit2 may move what p permits.
func approvalFor(t testing.TB, p *evm.Permit) *evm.Approval {
	t.Helper()
	a := &evm.Approval{From: p.From, Token: p.Token, Spender: evm.Permit2, Value: p.Amount, Nonce: new(big.Int), Deadline: big.NewInt(4102444800)}
	usdc, _ := payment.USDC("eip155:84532")
	a.Signature = signatureBy(t, "payer/1", a.Digest(evm.DomainOf(usdc).Separator()))
	return a
}

func extensionsOf(a *evm.Approval) string {
	return `{"` + evm.Sponsoring + `":{"info":` + string(a.Encode()) + `}}`
}

func TestApprovalsAreThoseOfTheVectors(t *testing.T) {
	file := readTestdata[permitVectors](t, "permit2.json")
	if len(file.Approvals) != 2 {
		t.Errorf("%d approvals", len(file.Approvals))
	}
	for scheme, v := range file.Approvals {
		t.Run(scheme, func(t *testing.T) {
			a, err := evm.DecodeApproval(v.Extension)
			if err != nil || a == nil {
				t.Fatal(a, err)
			}
			if a.From.Hex() != v.Message.Owner || a.Spender != evm.Permit2 || a.Value.String() != v.Message.Value || a.Nonce.String() != v.Message.Nonce || a.Deadline.String() != v.Message.Deadline {
				t.Errorf("got %+v", a)
			}
			separator := v.Domain.domain().Separator()
			if got := a.Digest(separator); got != v.Digest {
				t.Errorf("digest %s, want %s", got, v.Digest)
			}
			if !bytes.Equal(a.Signature, signatureBy(t, "payer/1", v.Digest)) || !bytes.Equal(a.Signature, unhex(t, v.Signature)) {
				t.Errorf("signature %x", a.Signature)
			}
			var wire map[string]struct{ Info json.RawMessage }
			if err := json.Unmarshal(v.Extension, &wire); err != nil || string(wire[evm.Sponsoring].Info) != string(a.Encode()) {
				t.Errorf("is written as %s", a.Encode())
			}

			proxy := evm.ExactProxy
			if scheme == "upto" {
				proxy = evm.UptoProxy
			}
			call, err := evm.ReadPermitCall(proxy, unhex(t, v.SettleWithPermitCalldata))
			if err != nil {
				t.Fatal(err)
			}
			if string(call.Permit.Scheme) != scheme || !bytes.Equal(call.Approval.Signature, a.Signature) || call.Approval.Value.Cmp(a.Value) != 0 {
				t.Errorf("read %+v, %+v", call, call.Approval)
			}
			call.Approval = a
			if got := call.Calldata(); !bytes.Equal(got, unhex(t, v.SettleWithPermitCalldata)) {
				t.Errorf("calldata %x", got)
			}
			if got, err := evm.CheckApproval(v.Extension, &call.Permit.Permit, separator, 1_790_000_000); err != nil || got == nil {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// Clients that need no approval echo what the seller said about the extension.
func TestWithoutAnApprovalThereIsNothingToCheck(t *testing.T) {
	p := &permitFor(t, permitOffer(t, payment.Exact, "eip155:84532", 10000), 0, 4102444800).Permit
	whole := extensionsOf(approvalFor(t, p))
	for name, doc := range map[string]string{
		"no extensions":        "",
		"other extensions":     `{"bazaar":{"info":{}}}`,
		"null":                 `{"eip2612GasSponsoring":null}`,
		"no info":              `{"eip2612GasSponsoring":{"schema":{}}}`,
		"the seller's info":    `{"eip2612GasSponsoring":{"info":{"description":"free","version":"1"},"schema":{}}}`,
		"without a signature":  strings.Replace(whole, `"signature"`, `"note"`, 1),
		"with a null in it":    strings.Replace(whole, `"nonce":"0"`, `"nonce":null`, 1),
		"without the deadline": strings.Replace(whole, `"deadline"`, `"until"`, 1),
	} {
		if doc == whole {
			t.Fatalf("%s: nothing to replace", name)
		}
		if a, err := evm.CheckApproval(json.RawMessage(doc), p, common.Hash{}, 0); a != nil || err != nil {
			t.Errorf("%s: got %v, %v", name, a, err)
		}
	}
}

func TestApprovalsThatCannotBeReadHaveTheReasonForThat(t *testing.T) {
	p := &permitFor(t, permitOffer(t, payment.Exact, "eip155:84532", 10000), 0, 4102444800).Permit
	whole := extensionsOf(approvalFor(t, p))
	for name, row := range map[string][2]string{
		"amount in hexadecimal":      {`"amount":"10000"`, `"amount":"0x10"`},
		"amount as a number":         {`"amount":"10000"`, `"amount":10000`},
		"nonce with a sign":          {`"nonce":"0"`, `"nonce":"+0"`},
		"deadline with a fraction":   {`"4102444800"`, `"4102444800.0"`},
		"from too short":             {`"from":"0xCC`, `"from":"0xC`},
		"asset as a name":            {`"asset":"0x036CbD53842c5426634e7929541eC2318f3dCF7e"`, `"asset":"USDC"`},
		"spender as a list":          {`"spender":"0x000000000022D473030F116dDEE9F6B43aC78BA3"`, `"spender":[]`},
		"signature without 0x":       {`"signature":"0x`, `"signature":"`},
		"signature of 66 bytes":      {`"signature":"0x`, `"signature":"0x00`},
		"version with a letter":      {`"version":"1"`, `"version":"v1"`},
		"version with an empty part": {`"version":"1"`, `"version":"1."`},
		"version as a number":        {`"version":"1"`, `"version":1`},
		"version too long":           {`"version":"1"`, `"version":"` + strings.Repeat("1", 33) + `"`},
		"From beside from":           {`"from"`, `"From":"0x","from"`},
		"amount twice":               {`"amount"`, `"amount":"1","amount"`},
		"Info beside info":           {`"info"`, `"Info":{},"info"`},
		"the extension's case":       {`"eip2612GasSponsoring"`, `"EIP2612GasSponsoring"`},
		"the extension as text":      {`{"info"`, `"",{"info"`},
	} {
		doc := replacedIn(t, whole, row[0], row[1])
		_, err := evm.CheckApproval(json.RawMessage(doc), p, common.Hash{}, 0)
		var invalid *payment.InvalidError
		if !errors.As(err, &invalid) || invalid.Reason != payment.EIP2612Format || invalid.Payer != p.From.Hex() {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := evm.DecodeApproval(json.RawMessage(doc)); !errors.As(err, &invalid) || invalid.Reason != payment.EIP2612Format {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEachWrongFieldOfAnApprovalHasItsReason(t *testing.T) {
	const now = 1_790_000_000
	p := &permitFor(t, permitOffer(t, payment.Upto, "eip155:84532", 10000), 0, now+60).Permit
	usdc, _ := payment.USDC("eip155:84532")
	separator := evm.DomainOf(usdc).Separator()
	_, other := account(t, "server/1")
	for name, row := range map[string]struct {
		change func(a *evm.Approval)
		sign   string
		want   payment.Reason
	}{
		"nothing":                  {func(*evm.Approval) {}, "payer/1", ""},
		"another nonce":            {func(a *evm.Approval) { a.Nonce = big.NewInt(7) }, "payer/1", ""},
		"the last second":          {func(a *evm.Approval) { a.Deadline = big.NewInt(now + 6) }, "payer/1", ""},
		"from":                     {func(a *evm.Approval) { a.From = other }, "payer/1", payment.EIP2612FromMismatch},
		"asset":                    {func(a *evm.Approval) { a.Token = other }, "payer/1", payment.EIP2612AssetMismatch},
		"spender":                  {func(a *evm.Approval) { a.Spender = evm.UptoProxy }, "payer/1", payment.EIP2612Spender},
		"deadline":                 {func(a *evm.Approval) { a.Deadline = big.NewInt(now + 5) }, "payer/1", payment.EIP2612Expired},
		"one unit less":            {func(a *evm.Approval) { a.Value = big.NewInt(9999) }, "payer/1", payment.Permit2ApprovalMismatch},
		"as much as there is":      {func(a *evm.Approval) { a.Value = new(big.Int).Sub(new(big.Int).Lsh(common.Big1, 256), common.Big1) }, "payer/1", payment.Permit2ApprovalMismatch},
		"signed by somebody else":  {func(*evm.Approval) {}, "server/1", payment.EIP2612Format},
		"signed for another nonce": {func(a *evm.Approval) { a.Nonce = big.NewInt(7) }, "", payment.EIP2612Format},
		"not canonical":            {func(a *evm.Approval) { a.Signature[64] -= 27 }, "", payment.EIP2612Format},
	} {
		a := approvalFor(t, p)
		row.change(a)
		if row.sign != "" {
			a.Signature = signatureBy(t, row.sign, a.Digest(separator))
		}
		got, err := evm.CheckApproval(json.RawMessage(extensionsOf(a)), p, separator, now)
		reason := payment.Reason("")
		if invalid, ok := errors.AsType[*payment.InvalidError](err); ok {
			reason = invalid.Reason
		}
		if reason != row.want || (err == nil) != (row.want == "") || (got == nil) != (err != nil) {
			t.Errorf("%s: %v, %v, want %q", name, got, err, row.want)
		}
	}
}

func FuzzDecodeApproval(f *testing.F) {
	p := &permitFor(f, permitOffer(f, payment.Exact, "eip155:84532", 10000), 0, 4102444800).Permit
	f.Add([]byte(extensionsOf(approvalFor(f, p))))
	f.Add([]byte(`{"eip2612GasSponsoring":{"info":{"description":"free","version":"1"},"schema":{}}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		a, err := evm.DecodeApproval(doc)
		var invalid *payment.InvalidError
		if err != nil && (a != nil || !errors.As(err, &invalid)) {
			t.Fatalf("got %v, %T", a, err)
		}
		if a == nil {
			return
		}
		again, err := evm.DecodeApproval(json.RawMessage(extensionsOf(a)))
		if err != nil || again == nil || string(again.Encode()) != string(a.Encode()) {
			t.Fatalf("%s was written as %s: %v", doc, a.Encode(), err)
		}
	})
}
