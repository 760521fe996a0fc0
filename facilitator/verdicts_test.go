package facilitator_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A verdict is one row: a request that the reference answers with a code, and
// what we answer.
type verdict struct {
	code string         // the reference's, as PROTOCOL §7 lists it; "" is none: the payment is good
	name string         // what is wrong, where one code has several rows
	path string         // of the facilitator; "" is /verify
	ours payment.Reason // where it is not the code; docs/payments.md must say so
	http int            // the status; 0 is 200

	// make returns a payment and the offer that it is held against, and edit
	// changes the request that is made of them; nil changes nothing.
	make func(b *bench) (*payment.Payment, *payment.Offer)
	edit func(request map[string]any)
}

// A bench makes payments for verdicts.
type bench struct {
	*world
	t *testing.T
}

// transfer signs an authorization that is good but for what change does.
func (b *bench) transfer(version int, change func(*evm.Authorization), spoil ...func(*evm.Transfer)) (*payment.Payment, *payment.Offer) {
	b.t.Helper()
	o := b.offer
	a := b.authorize().Authorization
	if change != nil {
		change(&a)
	}
	signed := facilitatortest.Sign(b.t, b.payer.Key, a, o.Amount.Token())
	for _, s := range spoil {
		s(signed)
	}
	return facilitatortest.Payment(b.t, version, &o, signed), &o
}

// permit signs a permit that is good but for what change does.
func (b *bench) permit(scheme payment.Scheme, from devchain.Account, change func(*evm.Permit)) (*payment.Payment, *payment.Offer) {
	b.t.Helper()
	o := b.byPermit2(scheme)
	s := b.permits(from.Key, from.Address, &o)
	if change != nil {
		change(&s.Permit)
		s.Signature = sign(b.t, from.Key, s.Digest(evm.Permit2Separator(b.chain.ChainID())))
	}
	return b.received(&o, s.Encode(), nil), &o
}

// sponsored is a good permit of a payer without an allowance, with an approval
// that is good but for what change does.
func (b *bench) sponsored(change func(info map[string]any)) (*payment.Payment, *payment.Offer) {
	b.t.Helper()
	o := b.byPermit2(payment.Exact)
	from := b.chain.Account("payer2")
	s := b.permits(from.Key, from.Address, &o)
	b.payer, from = from, b.payer // who signs the approval
	extensions := b.approval(&s.Permit)
	b.payer = from
	if change != nil {
		var all map[string]map[string]map[string]any
		if err := json.Unmarshal(extensions, &all); err != nil {
			b.t.Fatal(err)
		}
		change(all[evm.Sponsoring]["info"])
		var err error
		if extensions, err = json.Marshal(all); err != nil {
			b.t.Fatal(err)
		}
	}
	return b.received(&o, s.Encode(), extensions), &o
}

func member(m map[string]any, path ...string) map[string]any {
	for _, name := range path {
		m, _ = m[name].(map[string]any)
	}
	return m
}

// setting returns an edit of one member.
func setting(value any, path ...string) func(map[string]any) {
	return func(m map[string]any) { member(m, path[:len(path)-1]...)[path[len(path)-1]] = value }
}

// verdicts are the rows of PROTOCOL §7 on EVM chains, in its order.
func verdicts() []verdict {
	transfer := func(change func(*evm.Authorization), spoil ...func(*evm.Transfer)) func(*bench) (*payment.Payment, *payment.Offer) {
		return func(b *bench) (*payment.Payment, *payment.Offer) { return b.transfer(payment.V2, change, spoil...) }
	}
	v1 := func(change func(*evm.Authorization), spoil ...func(*evm.Transfer)) func(*bench) (*payment.Payment, *payment.Offer) {
		return func(b *bench) (*payment.Payment, *payment.Offer) { return b.transfer(payment.V1, change, spoil...) }
	}
	permit := func(scheme payment.Scheme, change func(*evm.Permit)) func(*bench) (*payment.Payment, *payment.Offer) {
		return func(b *bench) (*payment.Payment, *payment.Offer) { return b.permit(scheme, b.payer, change) }
	}
	sponsored := func(change func(map[string]any)) func(*bench) (*payment.Payment, *payment.Offer) {
		return func(b *bench) (*payment.Payment, *payment.Offer) { return b.sponsored(change) }
	}
	said := func(value any, name string) func(map[string]any) {
		return func(info map[string]any) { info[name] = value }
	}
	exact, upto := payment.Exact, payment.Upto
	stranger := common.HexToAddress("0x5747a46e7")
	var nonce [32]byte
	nonce[0] = 7
	charging := func(units string) func(map[string]any) { return setting(units, "paymentRequirements", "amount") }
	return []verdict{
		{code: "", name: "exact by EIP-3009", make: transfer(nil)},
		{code: "", name: "exact by EIP-3009, version 1", make: v1(nil)},
		{code: "", name: "exact by Permit2", make: permit(exact, nil)},
		{code: "", name: "upto", make: permit(upto, nil)},
		{code: "", name: "sponsored", make: sponsored(nil)},

		// §7.1
		{code: "invalid_x402_version", make: transfer(nil), edit: func(m map[string]any) { m["x402Version"] = 3; member(m, "paymentPayload")["x402Version"] = 3 }, ours: payment.InvalidPayload, http: 400},
		{code: "invalid_payload", make: transfer(nil), edit: setting("0x12", "paymentPayload", "payload", "authorization", "nonce"), http: 400},
		{code: "invalid_payment_requirements", make: transfer(nil), edit: setting("-1", "paymentRequirements", "amount"), ours: payment.InvalidPayload, http: 400},
		{code: "invalid_network", make: transfer(nil), edit: func(m map[string]any) {
			member(m, "paymentRequirements")["network"], member(m, "paymentPayload", "accepted")["network"] = "eip155:1", "eip155:1"
		}},
		{code: "unsupported_scheme", make: transfer(nil), edit: func(m map[string]any) {
			member(m, "paymentRequirements")["scheme"], member(m, "paymentPayload", "accepted")["scheme"] = "deferred", "deferred"
		}},

		// §7.2, requirement and payload
		{code: "invalid_exact_evm_scheme", make: transfer(nil), edit: setting("upto", "paymentPayload", "accepted", "scheme")},
		{code: "invalid_exact_evm_network_mismatch", make: transfer(nil), edit: setting("eip155:8453", "paymentPayload", "accepted", "network")},
		{code: "invalid_exact_evm_missing_eip712_domain", make: transfer(nil), edit: setting(map[string]any{}, "paymentRequirements", "extra")},
		{code: "invalid_exact_evm_recipient_mismatch", make: transfer(func(a *evm.Authorization) { a.To = stranger })},
		{code: "invalid_exact_evm_signature", name: "another's", make: transfer(nil, func(s *evm.Transfer) { s.Nonce[0]++ })},
		{code: "invalid_exact_evm_signature", name: "EIP-2098", make: transfer(nil, func(s *evm.Transfer) { s.Signature = s.Signature[:64] })},
		{code: "", name: "v of 0 or 1", ours: payment.EVMSignature, make: transfer(nil, func(s *evm.Transfer) { s.Signature[64] -= 27 })},
		{code: "", name: "s in the upper half", ours: payment.EVMSignature, make: transfer(nil, func(s *evm.Transfer) { flip(s.Signature) })},
		{code: "invalid_exact_evm_payload_authorization_valid_before", make: transfer(func(a *evm.Authorization) { a.ValidBefore = big.NewInt(now + 5) })},
		{code: "", name: "valid for 6 seconds", make: transfer(func(a *evm.Authorization) { a.ValidBefore = big.NewInt(now + 6) })},
		{code: "invalid_exact_evm_payload_authorization_valid_after", make: transfer(func(a *evm.Authorization) { a.ValidAfter = big.NewInt(now + 60) })},
		{code: "invalid_exact_evm_transaction_simulation_failed", name: "valid after this very second", make: transfer(func(a *evm.Authorization) { a.ValidAfter = big.NewInt(now) })},
		{code: "invalid_exact_evm_payload_authorization_value_mismatch", name: "less", make: transfer(func(a *evm.Authorization) { a.Value = big.NewInt(999) })},
		{code: "invalid_exact_evm_payload_authorization_value_mismatch", name: "more", make: transfer(func(a *evm.Authorization) { a.Value = big.NewInt(1001) })},
		{code: "invalid_exact_evm_authorization_value", make: v1(func(a *evm.Authorization) { a.Value = big.NewInt(999) })},
		{code: "asset_not_deployed_contract", make: transfer(nil), edit: func(m map[string]any) {
			member(m, "paymentRequirements")["asset"], member(m, "paymentPayload", "accepted")["asset"] = stranger.Hex(), stranger.Hex()
		}},
		{code: "unsupported_payload_type", make: func(b *bench) (*payment.Payment, *payment.Offer) {
			_, o := b.transfer(payment.V2, nil)
			p, _ := b.permit(exact, b.payer, nil)
			return p, o
		}},

		// EIP-3009 diagnosis
		{code: "invalid_exact_evm_token_name_mismatch", make: transfer(nil), edit: setting("USD Coin", "paymentRequirements", "extra", "name")},
		{code: "invalid_exact_evm_token_version_mismatch", make: transfer(nil), edit: setting("3", "paymentRequirements", "extra", "version")},
		{code: "invalid_exact_evm_eip3009_not_supported", ours: payment.EVMAssetNotDeployed, make: transfer(nil), edit: func(m map[string]any) {
			member(m, "paymentRequirements")["asset"], member(m, "paymentPayload", "accepted")["asset"] = evm.Multicall3.Hex(), evm.Multicall3.Hex()
		}},
		{code: "invalid_exact_evm_nonce_already_used", make: func(b *bench) (*payment.Payment, *payment.Offer) {
			p, o := b.transfer(payment.V2, nil)
			if _, err := b.embedded.Settle(soon(b.t), p, o, o.Amount); err != nil {
				b.t.Fatal(err)
			}
			b.sees()
			return p, o
		}},
		{code: "invalid_exact_evm_insufficient_balance", make: func(b *bench) (*payment.Payment, *payment.Offer) {
			poor := devchain.DeriveAccount("has nothing")
			a := b.authorize().Authorization
			a.From = poor.Address
			o := b.offer
			return facilitatortest.Payment(b.t, payment.V2, &o, facilitatortest.Sign(b.t, poor.Key, a, o.Amount.Token())), &o
		}},
		{code: "invalid_exact_evm_transaction_simulation_failed", make: func(b *bench) (*payment.Payment, *payment.Offer) {
			blocked := devchain.DeriveAccount("is blocked")
			if err := errors.Join(b.chain.Mint(blocked.Address, big.NewInt(5000)), b.chain.SetBlacklisted(blocked.Address, true)); err != nil {
				b.t.Fatal(err)
			}
			b.sees()
			a := b.authorize().Authorization
			a.From = blocked.Address
			o := b.offer
			return facilitatortest.Payment(b.t, payment.V2, &o, facilitatortest.Sign(b.t, blocked.Key, a, o.Amount.Token())), &o
		}},

		// wallets
		{code: "invalid_exact_evm_payload_undeployed_smart_wallet", make: transfer(func(a *evm.Authorization) { a.From = stranger }, func(s *evm.Transfer) { s.Signature = append(s.Signature, bytes.Repeat([]byte{0}, 64)...) })},
		{code: "eip6492_factory_not_allowed", make: transfer(func(a *evm.Authorization) { a.From = stranger }, func(s *evm.Transfer) {
			s.Signature = (&evm.Wrapper{Factory: stranger, Calldata: make([]byte, 4), Signature: s.Signature}).Encode()
		})},
		{code: "invalid_exact_evm_failed_to_parse_signature", ours: payment.EVMFactoryNotAllowed, make: transfer(func(a *evm.Authorization) { a.From = stranger }, func(s *evm.Transfer) {
			s.Signature = append(make([]byte, 96), bytes.Repeat([]byte{0x64, 0x92}, 16)...)
		})},

		// Permit2
		{code: "invalid_permit2_spender", make: permit(exact, func(p *evm.Permit) { p.Spender = stranger })},
		{code: "invalid_permit2_recipient_mismatch", make: permit(exact, func(p *evm.Permit) { p.To = stranger })},
		{code: "permit2_deadline_expired", make: permit(exact, func(p *evm.Permit) { p.Deadline = big.NewInt(now + 5) })},
		{code: "permit2_not_yet_valid", make: permit(exact, func(p *evm.Permit) { p.ValidAfter = big.NewInt(now + 1) })},
		{code: "permit2_amount_mismatch", make: permit(exact, func(p *evm.Permit) { p.Amount = big.NewInt(1001) })},
		{code: "permit2_token_mismatch", make: permit(exact, func(p *evm.Permit) { p.Token = stranger })},
		{code: "invalid_permit2_signature", make: func(b *bench) (*payment.Payment, *payment.Offer) {
			o := b.byPermit2(exact)
			return b.received(&o, b.permits(b.chain.Account("payer2").Key, b.payer.Address, &o).Encode(), nil), &o
		}},
		{code: "", name: "a permit with s in the upper half", ours: payment.Permit2Signature, make: func(b *bench) (*payment.Payment, *payment.Offer) {
			o := b.byPermit2(exact)
			s := b.permits(b.payer.Key, b.payer.Address, &o)
			flip(s.Signature)
			return b.received(&o, s.Encode(), nil), &o
		}},
		{code: "permit2_allowance_required", make: func(b *bench) (*payment.Payment, *payment.Offer) {
			return b.permit(exact, b.chain.Account("payer2"), nil)
		}},
		{code: "permit2_insufficient_balance", make: func(b *bench) (*payment.Payment, *payment.Offer) {
			return b.permit(exact, devchain.DeriveAccount("has nothing"), nil)
		}},
		{code: "permit2_simulation_failed", make: func(b *bench) (*payment.Payment, *payment.Offer) {
			blocked := devchain.DeriveAccount("is blocked with an allowance")
			if err := errors.Join(b.chain.Mint(blocked.Address, big.NewInt(5000)), b.chain.SetETHBalance(blocked.Address, big.NewInt(1e18))); err != nil {
				b.t.Fatal(err)
			}
			b.approve(blocked)
			if err := b.chain.SetBlacklisted(blocked.Address, true); err != nil {
				b.t.Fatal(err)
			}
			b.sees()
			return b.permit(exact, blocked, nil)
		}},
		{code: "permit2_invalid_nonce", make: func(b *bench) (*payment.Payment, *payment.Offer) {
			p, o := b.permit(exact, b.payer, nil)
			if _, err := b.embedded.Settle(soon(b.t), p, o, o.Amount); err != nil {
				b.t.Fatal(err)
			}
			b.sees()
			return p, o
		}},
		{code: "permit2_2612_amount_mismatch", make: func(b *bench) (*payment.Payment, *payment.Offer) {
			return b.sponsored(said("1001", "amount"))
		}},

		// EIP-2612
		{code: "invalid_eip2612_extension_format", make: sponsored(said("x", "version"))},
		{code: "eip2612_from_mismatch", make: sponsored(said(stranger.Hex(), "from"))},
		{code: "eip2612_asset_mismatch", make: sponsored(said(stranger.Hex(), "asset"))},
		{code: "eip2612_spender_not_permit2", make: sponsored(said(stranger.Hex(), "spender"))},
		{code: "eip2612_deadline_expired", make: sponsored(said("1790000005", "deadline"))},

		// §7.3
		{code: "invalid_upto_evm_scheme", make: permit(upto, nil), edit: setting("exact", "paymentPayload", "accepted", "scheme")},
		{code: "invalid_upto_evm_network_mismatch", make: permit(upto, nil), edit: setting("eip155:8453", "paymentPayload", "accepted", "network")},
		{code: "upto_facilitator_mismatch", make: permit(upto, func(p *evm.Permit) { p.Facilitator = stranger })},
		{code: "invalid_upto_evm_payload_settlement_exceeds_amount", path: "/settle", make: permit(upto, nil), edit: charging("1001")},
		{code: "", name: "charged nothing", path: "/settle", make: permit(upto, nil), edit: charging("0")},
		{code: "", name: "charged a part", path: "/settle", make: permit(upto, nil), edit: charging("400")},
		{code: "duplicate_settlement", path: "/settle", make: func(b *bench) (*payment.Payment, *payment.Offer) {
			p, o := b.permit(upto, b.payer, nil)
			if _, err := b.embedded.Settle(soon(b.t), p, o, o.Amount); err != nil {
				b.t.Fatal(err)
			}
			return p, o
		}, edit: charging("400")},
	}
}

// flip makes of a signature the other one that recovers to the same key.
func flip(signature []byte) {
	order, _ := new(big.Int).SetString("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)
	s := new(big.Int).SetBytes(signature[32:64])
	order.Sub(order, s).FillBytes(signature[32:64])
	signature[64] ^= 27 ^ 28
}

// noVerdict are codes of PROTOCOL §7 that no request of a payer brings about
// here, and why. docs/payments.md has those in a list, too.
var noVerdict = map[string]string{
	"permit2_proxy_not_deployed":                "TestPermit2IsNotTakenWhereItsProxiesAreMissing",
	"settlement_pending":                        "TestSettlePendingIsAnswered",
	"unexpected_verify_error":                   "is never said: what cannot be found out is 503",
	"unexpected_settle_error":                   "is never said: what cannot be found out is 503, or pending",
	"invalid_exact_evm_transaction_failed":      "TestHostileWalletsCostNoMoreThanTheirGasLimit, and package settle",
	"invalid_upto_evm_transaction_failed":       "package settle",
	"invalid_exact_evm_transfer_event_mismatch": "is never said: such a transaction is no payment, and death is proven",
	"invalid_transaction_state":                 "is never said: death is proven",
	"smart_wallet_deployment_failed":            "is never said: deployment and payment are simulated as one, see TestWalletIsDeployedOnTheWay",
	"permit2_invalid_amount":                    "the check before says permit2_amount_mismatch",
	"permit2_invalid_destination":               "the check before says invalid_permit2_recipient_mismatch",
	"permit2_invalid_owner":                     "the check before says invalid_permit2_signature",
	"permit2_payment_too_early":                 "the check before says permit2_not_yet_valid",
	"upto_amount_exceeds_permitted":             "the check before says invalid_upto_evm_payload_settlement_exceeds_amount",
	"upto_unauthorized_facilitator":             "the check before says upto_facilitator_mismatch",
}

func TestEveryCodeOfTheProtocolHasTheReferencesAnswer(t *testing.T) {
	t.Parallel()
	b := &bench{newWorld(t), t}
	b.approve(b.payer)
	h := &facilitator.Handler{Facilitator: b.embedded}
	rows := verdicts()
	for _, v := range rows {
		name := v.code
		if name == "" {
			name = "good"
		}
		if v.name != "" {
			name += ", " + v.name
		}
		t.Run(name, func(t *testing.T) {
			b.t = t
			p, o := v.make(b)
			body, err := payment.EncodeRequest(p, o, o.Amount)
			if err != nil {
				t.Fatal(err)
			}
			if v.edit != nil {
				d := json.NewDecoder(bytes.NewReader(body))
				d.UseNumber()
				var doc map[string]any
				if err := d.Decode(&doc); err != nil {
					t.Fatal(err)
				}
				v.edit(doc)
				if body, err = json.Marshal(doc); err != nil {
					t.Fatal(err)
				}
			}
			path := v.path
			if path == "" {
				path = "/verify"
			}
			status, answer, _ := ask(t, h, http.MethodPost, path, string(body), "Content-Type", "application/json")
			var good bool
			var reason payment.Reason
			for _, m := range []struct {
				name string
				to   any
			}{{"isValid", &good}, {"success", &good}, {"invalidReason", &reason}, {"errorReason", &reason}} {
				if text, ok := answer[m.name]; ok {
					if err := json.Unmarshal(text, m.to); err != nil {
						t.Fatal(err)
					}
				}
			}
			want := payment.Reason(v.code)
			if v.ours != "" {
				want = v.ours
			}
			wantStatus := v.http
			if wantStatus == 0 {
				wantStatus = http.StatusOK
			}
			if status != wantStatus || good != (want == "") || reason != want {
				t.Errorf("%d, good: %v, reason %q: want %d, %q\n%s", status, good, reason, wantStatus, want, answer["invalidMessage"])
			}
			if v.edit == nil && v.path == "" {
				wantAtThePaywall(t, b.world, p, o, want)
			}
		})
	}
}

// wantAtThePaywall presents a payment to a route with the offer, and checks
// that the answer says the same.
func wantAtThePaywall(t *testing.T, w *world, p *payment.Payment, o *payment.Offer, want payment.Reason) {
	t.Helper()
	prepared, err := (&payment.Challenge{Offers: []payment.Offer{*o}}).Prepare()
	if err != nil {
		t.Fatal(err)
	}
	shop := &till.Till{Facilitator: w.embedded, Ledger: w.ledger}
	route := &till.Route{Challenge: prepared, Offers: []payment.Offer{*o}, Mode: till.First, Origin: "https://shop.example"}
	r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
	header := payment.HeaderPayment
	if p.Version == payment.V1 {
		header = payment.HeaderPaymentV1
	}
	r.Header.Set(header, base64.StdEncoding.EncodeToString(p.Raw()))
	out := httptest.NewRecorder()
	if _, err := shop.Serve(out, r, route, func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		_, err := w.Write([]byte("goods"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if payment.Match(p, route.Offers) == nil {
		want = payment.NoMatchingOffer
	}
	switch used := want == payment.EVMNonceUsed || want == payment.Permit2InvalidNonce; {
	case want == "":
		if out.Code != http.StatusOK || out.Body.String() != "goods" {
			t.Errorf("the paywall answers %d %q", out.Code, out.Body)
		}
	case used: // for the facilitator's own client, as the ledger knows
		if out.Code != http.StatusConflict {
			t.Errorf("the paywall answers %d %q", out.Code, out.Body)
		}
	default:
		c, err := payment.DecodeRequired(out.Header().Get("PAYMENT-REQUIRED"))
		if p.Version == payment.V1 {
			c, err = payment.DecodeRequiredBody(out.Body.Bytes())
		}
		if err != nil {
			t.Fatalf("the paywall answers %d: %v", out.Code, err)
		}
		status := http.StatusPaymentRequired
		if want == payment.Permit2AllowanceRequired {
			status = http.StatusPreconditionFailed // the client may approve, and come again
		}
		if out.Code != status || c.Error != string(want) {
			t.Errorf("the paywall answers %d %q, want %q", out.Code, c.Error, want)
		}
	}
	w.sees()
}

// protocolCodes are the codes of PROTOCOL §7.1 to §7.3 that a facilitator for
// EVM chains can say, as SDK 2.27 spells them. Those of the extension for raw
// approvals are elsewhere: it is off unless a network has switched it on.
var protocolCodes = strings.Fields(`
	invalid_network invalid_payload invalid_payment_requirements unsupported_scheme invalid_x402_version invalid_transaction_state
	unexpected_verify_error unexpected_settle_error settlement_pending duplicate_settlement

	invalid_exact_evm_scheme invalid_exact_evm_network_mismatch invalid_exact_evm_missing_eip712_domain invalid_exact_evm_recipient_mismatch
	invalid_exact_evm_signature invalid_exact_evm_payload_authorization_valid_before invalid_exact_evm_payload_authorization_valid_after
	invalid_exact_evm_payload_authorization_value_mismatch invalid_exact_evm_authorization_value asset_not_deployed_contract unsupported_payload_type
	invalid_exact_evm_token_name_mismatch invalid_exact_evm_token_version_mismatch invalid_exact_evm_eip3009_not_supported
	invalid_exact_evm_nonce_already_used invalid_exact_evm_insufficient_balance invalid_exact_evm_transaction_simulation_failed
	invalid_exact_evm_payload_undeployed_smart_wallet eip6492_factory_not_allowed smart_wallet_deployment_failed invalid_exact_evm_failed_to_parse_signature
	invalid_exact_evm_transaction_failed invalid_exact_evm_transfer_event_mismatch
	invalid_permit2_spender invalid_permit2_recipient_mismatch permit2_deadline_expired permit2_not_yet_valid permit2_amount_mismatch
	permit2_token_mismatch invalid_permit2_signature permit2_allowance_required permit2_simulation_failed permit2_insufficient_balance
	permit2_proxy_not_deployed permit2_invalid_amount permit2_invalid_destination permit2_invalid_owner permit2_payment_too_early
	permit2_invalid_nonce permit2_2612_amount_mismatch
	invalid_eip2612_extension_format eip2612_from_mismatch eip2612_asset_mismatch eip2612_spender_not_permit2 eip2612_deadline_expired

	invalid_upto_evm_scheme invalid_upto_evm_network_mismatch invalid_upto_evm_payload_settlement_exceeds_amount upto_amount_exceeds_permitted
	upto_unauthorized_facilitator upto_facilitator_mismatch invalid_upto_evm_transaction_failed`)

func TestEveryCodeOfTheProtocolIsAccountedFor(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, v := range verdicts() {
		known[v.code] = true
	}
	for code := range noVerdict {
		if known[code] {
			t.Errorf("%s has a row and a reason to have none", code)
		}
		known[code] = true
	}
	for _, code := range protocolCodes {
		if !known[code] {
			t.Errorf("nothing is known of %s", code)
		}
	}
}

// What is refused that the reference accepts, or by another code, is in the
// docs: one line that names both.
func TestTheDocsListWhereWeAreStricter(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/payments.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(doc), "## Where Tollgate is stricter than the reference")
	if !ok {
		t.Fatal("docs/payments.md has lost its section")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	lines := strings.Split(section, "\n")
	named := func(words ...string) bool {
		return slices.ContainsFunc(lines, func(line string) bool {
			return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) })
		})
	}
	for _, v := range verdicts() {
		if v.ours == "" {
			continue
		}
		reference := "accept"
		if v.code != "" {
			reference = "`" + v.code + "`"
		}
		if !named(reference, "`"+string(v.ours)+"`") {
			t.Errorf("docs/payments.md does not say that the reference answers %q (%s) and we answer %q", v.code, v.name, v.ours)
		}
	}
	for code, why := range noVerdict {
		if strings.HasPrefix(why, "is never said") && !named("`"+code+"`") {
			t.Errorf("docs/payments.md does not say that we never answer %s", code)
		}
	}
}
