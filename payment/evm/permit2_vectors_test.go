package evm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// permitOffer returns an offer of units of USDC on n to the payee of the
// vectors, by Permit2.
func permitOffer(t testing.TB, scheme payment.Scheme, n payment.Network, units int64) *payment.Offer {
	t.Helper()
	o := offerOn(t, n, units)
	o.Scheme = scheme
	o.Extra = map[string]json.RawMessage{"assetTransferMethod": json.RawMessage(`"permit2"`)}
	if scheme == payment.Upto {
		_, facilitator := account(t, "facilitator/1")
		o.Extra["facilitatorAddress"] = json.RawMessage(`"` + facilitator.Hex() + `"`)
	}
	return o
}

func permitTermsFor(t testing.TB, o *payment.Offer) evm.PermitTerms {
	t.Helper()
	id, ok := o.Network().ChainID()
	if !ok {
		t.Fatalf("%s is no EVM chain", o.Network())
	}
	_, facilitator := account(t, "facilitator/1")
	return evm.PermitTerms{Offer: o, Separator: evm.Permit2Separator(id), Facilitators: []common.Address{{1}, facilitator}}
}

// permitFor returns what the payer of the vectors signs for o.
func permitFor(t testing.TB, o *payment.Offer, validAfter, deadline int64) *evm.SignedPermit {
	t.Helper()
	_, payer := account(t, "payer/1")
	s := &evm.SignedPermit{Permit: evm.Permit{
		Scheme: o.Scheme, From: payer, Token: common.HexToAddress(o.Amount.Token().Address), Amount: o.Amount.Big(),
		Nonce: new(big.Int).SetBytes(crypto.Keccak256([]byte("nonce"))), Deadline: big.NewInt(deadline),
		To: common.HexToAddress(o.PayTo), ValidAfter: big.NewInt(validAfter),
	}}
	s.Spender = s.Proxy()
	if o.Scheme == payment.Upto {
		_, s.Facilitator = account(t, "facilitator/1")
	}
	return signedPermit(t, s, permitTermsFor(t, o).Separator)
}

// signedPermit puts the signature of the vectors' payer on s.
func signedPermit(t testing.TB, s *evm.SignedPermit, separator common.Hash) *evm.SignedPermit {
	t.Helper()
	s.Signature = signatureBy(t, "payer/1", s.Digest(separator))
	return s
}

// signatureBy returns the signature of the vectors' account with a label.
func signatureBy(t testing.TB, label string, digest common.Hash) []byte {
	t.Helper()
	key, _ := account(t, label)
	signature, err := crypto.Sign(digest[:], key)
	if err != nil {
		t.Fatal(err)
	}
	signature[64] += 27
	return signature
}

func permitPayment(o *payment.Offer, s *evm.SignedPermit) *payment.Payment {
	return &payment.Payment{Version: payment.V2, Scheme: o.Scheme, Network: o.Network(), Payload: s.Encode()}
}

// permitReason checks p and returns why it is refused, or nothing.
func permitReason(t testing.TB, p *payment.Payment, terms evm.PermitTerms, at uint64) payment.Reason {
	t.Helper()
	s, contract, err := evm.CheckPermit(p, terms, at)
	if err == nil {
		if s == nil || contract {
			t.Errorf("no error, permit %v, contract %v", s, contract)
		}
		return ""
	}
	var invalid *payment.InvalidError
	if !errors.As(err, &invalid) || s != nil || contract {
		t.Fatalf("got %v, %v, %T: %v", s, contract, err, err)
	}
	return invalid.Reason
}

type permitVector struct {
	Network                           payment.Network
	DomainSeparator                   common.Hash
	WitnessHash, TokenPermissionsHash common.Hash
	StructHash, Digest                common.Hash
	Permit2Authorization              json.RawMessage
	Signature                         string
	NonceBitmap                       struct {
		WordPos string
		BitPos  uint
	}
	SettleAmount, SettleCalldata string
}

type permitVectors struct {
	Exact, Upto []permitVector
	Approvals   map[string]struct {
		Domain                   vectorDomain
		Digest                   common.Hash
		Message                  struct{ Owner, Spender, Value, Nonce, Deadline string }
		Signature                string
		Extension                json.RawMessage
		SettleWithPermitCalldata string
	}
}

func TestPermitsAreThoseOfTheVectors(t *testing.T) {
	file := readTestdata[permitVectors](t, "permit2.json")
	_, payer := account(t, "payer/1")
	for scheme, cases := range map[payment.Scheme][]permitVector{payment.Exact: file.Exact, payment.Upto: file.Upto} {
		if len(cases) != 6 {
			t.Errorf("%d cases of %s", len(cases), scheme)
		}
		for _, v := range cases {
			t.Run(string(scheme)+"/"+string(v.Network), func(t *testing.T) {
				id, _ := v.Network.ChainID()
				separator := evm.Permit2Separator(id)
				if separator != v.DomainSeparator {
					t.Errorf("separator %s, want %s", separator, v.DomainSeparator)
				}
				s, err := evm.DecodePermit(json.RawMessage(`{"signature":"` + v.Signature + `","permit2Authorization":` + string(v.Permit2Authorization) + `}`))
				if err != nil {
					t.Fatal(err)
				}
				if s.Scheme != scheme || s.Spender != s.Proxy() || s.From != payer {
					t.Errorf("got %+v", s)
				}
				permissions, witness, whole := permitByHand(t, &s.Permit)
				if permissions != v.TokenPermissionsHash || witness != v.WitnessHash || whole != v.StructHash {
					t.Errorf("hashes %s, %s, %s", permissions, witness, whole)
				}
				digest := s.Digest(separator)
				if digest != v.Digest {
					t.Errorf("digest %s, want %s", digest, v.Digest)
				}
				if !bytes.Equal(s.Signature, signatureBy(t, "payer/1", digest)) {
					t.Errorf("signature %x", s.Signature)
				}

				call := &evm.PermitCall{Permit: s}
				if scheme == payment.Upto {
					call.Charge, _ = new(big.Int).SetString(v.SettleAmount, 10)
				}
				if got := call.Calldata(); !bytes.Equal(got, unhex(t, v.SettleCalldata)) {
					t.Errorf("calldata %x", got)
				}

				place, _ := new(big.Int).SetString(v.NonceBitmap.WordPos, 10)
				ask := s.BitmapCall()
				if !bytes.Equal(ask[4:36], common.LeftPadBytes(payer[:], 32)) || new(big.Int).SetBytes(ask[36:]).Cmp(place) != 0 {
					t.Errorf("asks for %x", ask)
				}
				for bit := range uint(256) {
					answer := new(big.Int).Lsh(common.Big1, bit).FillBytes(make([]byte, 32))
					if used, err := s.Used(answer); err != nil || used != (bit == v.NonceBitmap.BitPos) {
						t.Errorf("bit %d: used %v, %v", bit, used, err)
					}
				}

				var wire struct{ Permit2Authorization, want any }
				if json.Unmarshal(s.Encode(), &wire) != nil || json.Unmarshal(v.Permit2Authorization, &wire.want) != nil || !reflect.DeepEqual(wire.Permit2Authorization, wire.want) {
					t.Errorf("is written as %s", s.Encode())
				}

				_, facilitator := account(t, "facilitator/1")
				o := permitOffer(t, scheme, v.Network, s.Amount.Int64())
				if got := permitReason(t, permitPayment(o, s), evm.PermitTerms{Offer: o, Separator: separator, Facilitators: []common.Address{facilitator}}, 1_790_000_000); got != "" {
					t.Errorf("is refused: %s", got)
				}
			})
		}
	}
}

// permitByHand hashes the struct and the two inside it with nothing but
// concatenation.
func permitByHand(t *testing.T, p *evm.Permit) (permissions, witness, whole common.Hash) {
	t.Helper()
	account := func(a common.Address) []byte { return common.LeftPadBytes(a[:], 32) }
	number := func(n *big.Int) []byte { return common.BigToHash(n).Bytes() }
	kind := permitTypehash(t, "TokenPermissions(")
	permissions = crypto.Keccak256Hash(kind[:], account(p.Token), number(p.Amount))
	const permit = "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,Witness witness)TokenPermissions(address token,uint256 amount)"
	suffix := "Witness(address to,uint256 validAfter)"
	if p.Scheme == payment.Upto {
		suffix = "Witness(address to,address facilitator,uint256 validAfter)"
		kind = permitTypehash(t, suffix)
		witness = crypto.Keccak256Hash(kind[:], account(p.To), account(p.Facilitator), number(p.ValidAfter))
	} else {
		kind = permitTypehash(t, suffix)
		witness = crypto.Keccak256Hash(kind[:], account(p.To), number(p.ValidAfter))
	}
	kind = permitTypehash(t, permit+suffix)
	return permissions, witness, crypto.Keccak256Hash(kind[:], permissions[:], account(p.Spender), number(p.Nonce), number(p.Deadline), witness[:])
}

type permitHashes struct {
	Typehashes             []struct{ TypeString, Keccak256 string }
	FunctionSelectors      []struct{ Label, Signature, Selector string }
	ErrorSelectors         []struct{ Signature, Selector string }
	EventTopics            []struct{ Signature, Topic0 string }
	DomainSeparatorAnchors []struct{ What, Separator string }
	Addresses              struct{ Permit2, X402ExactPermit2Proxy, X402UptoPermit2Proxy common.Address }
	Create2                struct {
		Deployer                     common.Address
		ExactSalt, ExactInitCodeHash common.Hash
		UptoSalt, UptoInitCodeHash   common.Hash
		ExactAddress, UptoAddress    common.Address
	}
}

func permitTypehash(t *testing.T, prefix string) common.Hash {
	t.Helper()
	for _, h := range readTestdata[permitHashes](t, "permit2-hashes.json").Typehashes {
		if strings.HasPrefix(h.TypeString, prefix) {
			got := crypto.Keccak256Hash([]byte(h.TypeString))
			if got != common.HexToHash(h.Keccak256) {
				t.Errorf("%s hashes to %s, the vectors say %s", h.TypeString, got, h.Keccak256)
			}
			return got
		}
	}
	t.Fatalf("no type %s", prefix)
	return common.Hash{}
}

func TestPermitContractsSelectorsAndTopicsAreThoseOfTheVectors(t *testing.T) {
	file := readTestdata[permitHashes](t, "permit2-hashes.json")
	if a := file.Addresses; a.Permit2 != evm.Permit2 || a.X402ExactPermit2Proxy != evm.ExactProxy || a.X402UptoPermit2Proxy != evm.UptoProxy {
		t.Errorf("addresses %+v", a)
	}
	c := file.Create2
	if exact := crypto.CreateAddress2(c.Deployer, c.ExactSalt, c.ExactInitCodeHash[:]); exact != evm.ExactProxy || c.ExactAddress != exact {
		t.Errorf("the exact proxy is deployed to %s", exact)
	}
	if upto := crypto.CreateAddress2(c.Deployer, c.UptoSalt, c.UptoInitCodeHash[:]); upto != evm.UptoProxy || c.UptoAddress != upto {
		t.Errorf("the upto proxy is deployed to %s", upto)
	}
	if len(file.DomainSeparatorAnchors) != 2 {
		t.Errorf("%d separators", len(file.DomainSeparatorAnchors))
	}
	for _, a := range file.DomainSeparatorAnchors {
		id := uint64(1)
		if strings.Contains(a.What, "Sepolia") {
			id = 11155111
		}
		if got := evm.Permit2Separator(id); got != common.HexToHash(a.Separator) {
			t.Errorf("%s: %s, want %s", a.What, got, a.Separator)
		}
	}

	exact := &evm.PermitCall{Permit: permitFor(t, permitOffer(t, payment.Exact, "eip155:84532", 10000), 0, 4102444800)}
	upto := &evm.PermitCall{Permit: permitFor(t, permitOffer(t, payment.Upto, "eip155:84532", 10000), 0, 4102444800)}
	sponsored := func(c *evm.PermitCall) []byte {
		return (&evm.PermitCall{Permit: c.Permit, Approval: approvalFor(t, &c.Permit.Permit)}).Calldata()
	}
	calls := map[string][]byte{
		"exact proxy settle":           exact.Calldata(),
		"exact proxy settleWithPermit": sponsored(exact),
		"upto proxy settle":            upto.Calldata(),
		"upto proxy settleWithPermit":  sponsored(upto),
		"Permit2 nonceBitmap":          exact.Permit.BitmapCall(),
		"allowance":                    evm.AllowanceCall(exact.Permit.From, evm.Permit2),
		"nonces":                       evm.NoncesCall(exact.Permit.From),
		"PERMIT2":                      evm.Permit2Call(),
	}
	for _, f := range file.FunctionSelectors {
		want := crypto.Keccak256([]byte(f.Signature))[:4]
		if !bytes.Equal(want, unhex(t, f.Selector)) {
			t.Errorf("%s: selector %x", f.Label, want)
		}
		if call, ok := calls[f.Label]; ok && (len(call)%32 != 4 || !bytes.Equal(call[:4], want)) {
			t.Errorf("%s: call %x", f.Label, call)
		}
		delete(calls, f.Label)
	}
	if len(calls) != 0 {
		t.Errorf("no selectors for %v", calls)
	}

	topics := map[string]common.Hash{
		"Settled": evm.TopicSettled, "SettledWithPermit": evm.TopicSettledWithPermit,
		"UnorderedNonceInvalidation": evm.TopicUnorderedNonceInvalidation, "Transfer": evm.TopicTransfer,
	}
	for _, e := range file.EventTopics {
		name, _, _ := strings.Cut(e.Signature, "(")
		want := crypto.Keccak256Hash([]byte(e.Signature))
		if got, ok := topics[name]; want != common.HexToHash(e.Topic0) || ok && got != want {
			t.Errorf("%s: topic %s, want %s", e.Signature, got, want)
		}
		delete(topics, name)
	}
	if len(topics) != 0 {
		t.Errorf("no topics for %v", topics)
	}
}

func TestRevertsOfTheProxiesHaveTheReasonsOfTheReference(t *testing.T) {
	reasons := map[string]payment.Reason{
		"InvalidAmount()":            payment.Permit2InvalidAmount,
		"InvalidAmount(uint256)":     payment.Permit2InvalidAmount,
		"InvalidDestination()":       payment.Permit2InvalidDestination,
		"InvalidOwner()":             payment.Permit2InvalidOwner,
		"PaymentTooEarly()":          payment.Permit2TooEarly,
		"Permit2612AmountMismatch()": payment.Permit2ApprovalMismatch,
		"AmountExceedsPermitted()":   payment.UptoExceedsPermitted,
		"UnauthorizedFacilitator()":  payment.UptoUnauthorizedFacilitator,
		"InvalidNonce()":             payment.Permit2InvalidNonce,
		"SignatureExpired(uint256)":  payment.Permit2Expired,
		"InvalidSigner()":            payment.Permit2Signature,
		"InvalidSignature()":         payment.Permit2Signature,
		"InvalidSignatureLength()":   payment.Permit2Signature,
		"InvalidContractSignature()": payment.Permit2Signature,
	}
	for _, e := range readTestdata[permitHashes](t, "permit2-hashes.json").ErrorSelectors {
		data := crypto.Keccak256([]byte(e.Signature))[:4]
		if !bytes.Equal(data, unhex(t, e.Selector)) {
			t.Errorf("%s: selector %x, the vectors say %s", e.Signature, data, e.Selector)
		}
		want, known := reasons[e.Signature]
		if got, ok := evm.PermitRevert(append(data, make([]byte, 32)...)); ok != known || got != want {
			t.Errorf("%s: %q, %v", e.Signature, got, ok)
		}
		delete(reasons, e.Signature)
	}
	if len(reasons) != 0 {
		t.Errorf("not among the vectors: %v", reasons)
	}
	for _, data := range [][]byte{nil, {0x75, 0x66, 0x88}, common.FromHex("0x08c379a0")} {
		if got, ok := evm.PermitRevert(data); ok {
			t.Errorf("%x: %s", data, got)
		}
	}
}

// The reference answers with a chain on which every call succeeds.
func TestCheckPermitGivesTheReasonsOfTheReference(t *testing.T) {
	file := readTestdata[struct {
		Now          uint64
		Facilitators []common.Address
		Cases        []struct {
			ID, Op             string
			Body               json.RawMessage
			ReferenceSdkResult struct {
				IsValid, Success           bool
				InvalidReason, ErrorReason payment.Reason
				Payer, Amount              string
			}
		}
	}](t, "permit2-verify.json")
	if len(file.Cases) != 13 {
		t.Errorf("%d cases", len(file.Cases))
	}
	for _, c := range file.Cases {
		t.Run(c.ID, func(t *testing.T) {
			p, o, err := payment.DecodeRequest(c.Body)
			if err != nil {
				t.Fatal(err)
			}
			charge := o.Amount.Big()
			o.Amount = p.Accepted.Amount // a settle request of upto has the charge in its place
			reference := c.ReferenceSdkResult
			want := reference.InvalidReason + reference.ErrorReason
			if (want == "") != (reference.IsValid || reference.Success) {
				t.Fatalf("the vector contradicts itself: %+v", reference)
			}

			terms := permitTermsFor(t, o)
			terms.Facilitators = file.Facilitators
			s, contract, err := evm.CheckPermit(p, terms, file.Now)
			if err == nil {
				usdc, _ := payment.USDC(o.Network())
				_, err = evm.CheckApproval(p.Extensions, &s.Permit, evm.DomainOf(usdc).Separator(), file.Now)
			}
			if err == nil {
				err = s.CheckCharge(charge)
			}
			var invalid *payment.InvalidError
			switch {
			case want == "":
				if err != nil || contract || s.From.Hex() != reference.Payer {
					t.Errorf("got %v, %v, %v", s, contract, err)
				}
			case !errors.As(err, &invalid) || invalid.Reason != want || invalid.Payer != reference.Payer:
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
}

// Headers and facilitator requests of the official client, on six networks.
func TestMessagesWithPermitsAreAccepted(t *testing.T) {
	file := readTestdata[struct {
		Messages []struct {
			ID, Header string
			Settle     bool
			Body       json.RawMessage
		}
	}](t, "permit2-messages.json")
	if len(file.Messages) != 24 {
		t.Errorf("%d messages", len(file.Messages))
	}
	for _, m := range file.Messages {
		t.Run(m.ID, func(t *testing.T) {
			var p *payment.Payment
			var err error
			var o *payment.Offer
			if m.Header != "" {
				if p, err = payment.FromHeader([]string{m.Header}, nil); err != nil {
					t.Fatal(err)
				}
				o = &p.Accepted.Offer
			} else if p, o, err = payment.DecodeRequest(m.Body); err != nil {
				t.Fatal(err)
			}
			o.Timeout = time.Minute
			charge := o.Amount.Big()
			if m.Settle {
				o.Amount = p.Accepted.Amount
			}
			s, contract, err := evm.CheckPermit(p, permitTermsFor(t, o), 1_790_000_000)
			if err != nil || contract {
				t.Fatalf("contract %v, %v", contract, err)
			}
			if err := s.CheckCharge(charge); err != nil {
				t.Error(err)
			}
		})
	}
}
