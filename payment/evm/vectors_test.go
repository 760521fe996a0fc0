package evm_test

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

func readTestdata[T any](t testing.TB, name string) T {
	t.Helper()
	doc, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var v T
	if err := json.Unmarshal(doc, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.TrimPrefix(s, "0x"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// account returns the key that the vectors derive from a label. It is public:
// never fund it.
func account(t testing.TB, label string) (*ecdsa.PrivateKey, common.Address) {
	t.Helper()
	key, err := crypto.ToECDSA(crypto.Keccak256([]byte("x402-vector/" + label)))
	if err != nil {
		t.Fatal(err)
	}
	return key, crypto.PubkeyToAddress(key.PublicKey)
}

// offerOn returns an offer of units of USDC on n to the payee of the vectors.
func offerOn(t testing.TB, n payment.Network, units int64) *payment.Offer {
	t.Helper()
	usdc, ok := payment.USDC(n)
	if !ok {
		t.Fatalf("no USDC on %s", n)
	}
	a, err := payment.NewAmount(big.NewInt(units), usdc)
	if err != nil {
		t.Fatal(err)
	}
	_, payee := account(t, "payee/1")
	return &payment.Offer{Scheme: payment.Exact, Amount: a, PayTo: payee.Hex(), Timeout: time.Minute}
}

func termsFor(o *payment.Offer) evm.Terms {
	return evm.Terms{Offer: o, Separator: evm.DomainOf(o.Amount.Token()).Separator()}
}

// transferFor returns what the payer of the vectors signs for o.
func transferFor(t testing.TB, o *payment.Offer, validAfter, validBefore int64) *evm.Transfer {
	t.Helper()
	_, payer := account(t, "payer/1")
	transfer := &evm.Transfer{Authorization: evm.Authorization{
		From: payer, To: common.HexToAddress(o.PayTo), Value: o.Amount.Big(),
		ValidAfter: big.NewInt(validAfter), ValidBefore: big.NewInt(validBefore),
		Nonce: crypto.Keccak256Hash([]byte("nonce")),
	}}
	return signed(t, transfer, termsFor(o).Separator)
}

// signed puts the signature of the vectors' payer on transfer.
func signed(t testing.TB, transfer *evm.Transfer, separator common.Hash) *evm.Transfer {
	t.Helper()
	key, _ := account(t, "payer/1")
	digest := transfer.Digest(separator)
	signature, err := crypto.Sign(digest[:], key)
	if err != nil {
		t.Fatal(err)
	}
	signature[64] += 27
	transfer.Signature = signature
	return transfer
}

func paymentOf(version int, o *payment.Offer, transfer *evm.Transfer) *payment.Payment {
	return &payment.Payment{Version: version, Scheme: payment.Exact, Network: o.Network(), Payload: transfer.Encode()}
}

type vectorDomain struct {
	Name, Version     string
	ChainID           uint64
	VerifyingContract common.Address
}

func (d vectorDomain) domain() evm.Domain {
	return evm.Domain{Name: d.Name, Version: d.Version, ChainID: d.ChainID, Contract: d.VerifyingContract}
}

func TestDigestsSignaturesAndCalldataAreThoseOfTheVectors(t *testing.T) {
	type vector struct {
		Network, V1Network         string
		X402Version                int
		Domain                     vectorDomain
		DomainSeparator            common.Hash
		StructHash, Digest         common.Hash
		Authorization              json.RawMessage
		Signature                  string
		CalldataVRS, CalldataBytes string
	}
	file := readTestdata[struct{ Cases []vector }](t, "eip3009.json")
	typehash := typehash(t, "TransferWithAuthorization(")
	key, payer := account(t, "payer/1")
	if len(file.Cases) != 12 {
		t.Errorf("%d cases", len(file.Cases))
	}
	for _, v := range file.Cases {
		t.Run(v.Network+"/v"+string(rune('0'+v.X402Version)), func(t *testing.T) {
			usdc, ok := payment.USDC(payment.Network(v.Network))
			if !ok || evm.DomainOf(usdc) != v.Domain.domain() {
				t.Errorf("our USDC has domain %+v, the vector's is %+v", evm.DomainOf(usdc), v.Domain)
			}
			if name, ok := usdc.Network.V1(); !ok || name != v.V1Network {
				t.Errorf("v1 name %s, want %s", name, v.V1Network)
			}
			separator := v.Domain.domain().Separator()
			if separator != v.DomainSeparator {
				t.Errorf("separator %s, want %s", separator, v.DomainSeparator)
			}
			transfer, err := evm.Decode(json.RawMessage(`{"signature":"` + v.Signature + `","authorization":` + string(v.Authorization) + `}`))
			if err != nil {
				t.Fatal(err)
			}
			if got := byHand(typehash, &transfer.Authorization); got != v.StructHash {
				t.Errorf("struct hash %s, want %s", got, v.StructHash)
			}
			digest := transfer.Digest(separator)
			if digest != v.Digest {
				t.Errorf("digest %s, want %s", digest, v.Digest)
			}
			if signer, err := evm.Recover(digest, transfer.Signature); err != nil || signer != payer || transfer.From != payer {
				t.Errorf("signed by %s, %v", signer, err)
			}
			again, err := crypto.Sign(digest[:], key)
			if err != nil {
				t.Fatal(err)
			}
			again[64] += 27
			if !bytes.Equal(again, transfer.Signature) {
				t.Errorf("signature %x, want %x", again, transfer.Signature)
			}
			if got := transfer.Calldata(); !bytes.Equal(got, unhex(t, v.CalldataVRS)) {
				t.Errorf("calldata %x", got)
			}
			if got := transfer.CalldataBytes(); !bytes.Equal(got, unhex(t, v.CalldataBytes)) {
				t.Errorf("calldata with bytes %x", got)
			}
			var wire struct{ Authorization json.RawMessage }
			if err := json.Unmarshal(transfer.Encode(), &wire); err != nil {
				t.Fatal(err)
			}
			var got, want map[string]string
			if json.Unmarshal(wire.Authorization, &got) != nil || json.Unmarshal(v.Authorization, &want) != nil || len(got) != 6 {
				t.Fatalf("got %s", wire.Authorization)
			}
			for name := range want {
				if got[name] != want[name] {
					t.Errorf("%s is written as %s, the vector has %s", name, got[name], want[name])
				}
			}
		})
	}
}

// byHand hashes the struct of EIP-3009 with nothing but concatenation.
func byHand(typehash common.Hash, a *evm.Authorization) common.Hash {
	return crypto.Keccak256Hash(typehash[:], common.LeftPadBytes(a.From[:], 32), common.LeftPadBytes(a.To[:], 32),
		common.BigToHash(a.Value).Bytes(), common.BigToHash(a.ValidAfter).Bytes(), common.BigToHash(a.ValidBefore).Bytes(), a.Nonce[:])
}

type hashes struct {
	Typehashes             []struct{ TypeString, Keccak256 string }
	FunctionSelectors      []struct{ Label, Signature, Selector string }
	EventTopics            []struct{ Signature, Topic0 string }
	DomainSeparatorAnchors []struct{ What, Separator string }
}

// typehash returns the one of the vectors whose type string starts with
// prefix, after computing it again.
func typehash(t *testing.T, prefix string) common.Hash {
	t.Helper()
	for _, h := range readTestdata[hashes](t, "hashes.json").Typehashes {
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

func TestSeparatorsAndDigestsUseTheTypesOfTheVectors(t *testing.T) {
	domain := evm.Domain{Name: "Some Dollar", Version: "1", ChainID: 1 << 40, Contract: common.HexToAddress("0x0102030405060708090a0b0c0d0e0f1011121314")}
	domainType := typehash(t, "EIP712Domain(")
	want := crypto.Keccak256Hash(domainType[:], crypto.Keccak256([]byte(domain.Name)), crypto.Keccak256([]byte(domain.Version)),
		common.BigToHash(new(big.Int).SetUint64(domain.ChainID)).Bytes(), common.LeftPadBytes(domain.Contract[:], 32))
	if got := domain.Separator(); got != want {
		t.Errorf("separator %s, want %s", got, want)
	}
	transfer := transferFor(t, offerOn(t, "eip155:84532", 10000), 0, 4102444800)
	inner := byHand(typehash(t, "TransferWithAuthorization("), &transfer.Authorization)
	if got := transfer.Digest(want); got != crypto.Keccak256Hash([]byte{0x19, 0x01}, want[:], inner[:]) {
		t.Errorf("digest %s", got)
	}
}

func TestSelectorsAndTopicsAreThoseOfTheVectors(t *testing.T) {
	transfer := transferFor(t, offerOn(t, "eip155:84532", 10000), 0, 4102444800)
	calls := map[string][]byte{
		"transferWithAuthorization (v,r,s)": transfer.Calldata(),
		"transferWithAuthorization (bytes)": transfer.CalldataBytes(),
		"authorizationState":                transfer.AuthorizationStateCall(),
		"balanceOf":                         evm.BalanceCall(transfer.From),
		"DOMAIN_SEPARATOR":                  evm.SeparatorCall(),
	}
	file := readTestdata[hashes](t, "hashes.json")
	if len(file.FunctionSelectors) != len(calls) || len(file.EventTopics) != 3 {
		t.Errorf("%d selectors, %d topics", len(file.FunctionSelectors), len(file.EventTopics))
	}
	for _, f := range file.FunctionSelectors {
		want := crypto.Keccak256([]byte(f.Signature))[:4]
		call := calls[f.Label]
		if !bytes.Equal(want, unhex(t, f.Selector)) || len(call) < 4 || !bytes.Equal(call[:4], want) || len(call)%32 != 4 {
			t.Errorf("%s: selector %x, call %x", f.Label, want, call)
		}
	}
	topics := map[string]common.Hash{"Transfer": evm.TopicTransfer, "AuthorizationUsed": evm.TopicAuthorizationUsed, "AuthorizationCanceled": evm.TopicAuthorizationCanceled}
	for _, e := range file.EventTopics {
		name, _, _ := strings.Cut(e.Signature, "(")
		if want := crypto.Keccak256Hash([]byte(e.Signature)); want != common.HexToHash(e.Topic0) || topics[name] != want {
			t.Errorf("%s: topic %s, want %s", e.Signature, topics[name], want)
		}
	}
}

// Every USDC that is known has the contract and domain of PROTOCOL section
// 14.1; where its separator has been read on the chain, ours is that one.
func TestEveryKnownUSDCHasTheDomainOfItsChain(t *testing.T) {
	onChain := map[string]bool{}
	for _, a := range readTestdata[hashes](t, "hashes.json").DomainSeparatorAnchors {
		onChain[a.Separator] = true
	}
	for _, row := range []struct {
		chain         uint64
		address, name string
		read          bool // whether the separator has been read on the chain
	}{
		{1, "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", "USD Coin", true},
		{11155111, "0x1c7D4B196Cb0C7B01d743Fbc6116a902379C7238", "USDC", true},
		{8453, "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin", true},
		{84532, "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC", true},
		{137, "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USD Coin", true},
		{80002, "0x41E94Eb019C0762f9Bfcf9Fb1E58725BfB0e7582", "USDC", true},
		{143, "0x754704Bc059F8C67012fEd69BC8A327a5aafb603", "USDC", true},
		{43114, "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E", "USD Coin", false},
		{43113, "0x5425890298aed601595a70AB815c96711a31Bc65", "USD Coin", false},
		{42161, "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USD Coin", false},
		{421614, "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", "USD Coin", false},
		{42220, "0xcebA9300f2b948710d2653dD7B07f33A8B32118C", "USDC", false},
		{1329, "0xe15fC38F6D8c56aF07bbCBe3BAf5708A2Bf42392", "USDC", false},
	} {
		n := payment.EVM(row.chain)
		got, ok := payment.USDC(n)
		want := payment.Token{Network: n, Address: row.address, Symbol: "USDC", Decimals: 6, Name: row.name, Version: "2", Dollar: true}
		if !ok || got != want {
			t.Errorf("%s: got %+v", n, got)
		}
		if canonical, err := payment.ParseAddress(n, got.Address); err != nil || canonical != got.Address {
			t.Errorf("%s: %s is not in canonical form: %v", n, got.Address, err)
		}
		if separator := evm.DomainOf(got).Separator().Hex(); onChain[separator] != row.read {
			t.Errorf("%s: separator %s, read on the chain: %v", n, separator, onChain[separator])
		}
	}
}

func TestTheSampleOfTheSpecificationIsSignedByItsFrom(t *testing.T) {
	file := readTestdata[struct {
		SpecExample struct {
			Domain        vectorDomain
			Authorization json.RawMessage
			Signature     string
			Digest        common.Hash
		}
	}](t, "signatures.json")
	v := file.SpecExample
	payload := json.RawMessage(`{"signature":"` + v.Signature + `","authorization":` + string(v.Authorization) + `}`)
	transfer, err := evm.Decode(payload)
	if err != nil {
		t.Fatal(err)
	}
	digest := transfer.Digest(v.Domain.domain().Separator())
	if signer, err := evm.Recover(digest, transfer.Signature); digest != v.Digest || err != nil || signer != transfer.From {
		t.Errorf("digest %s, signed by %s, %v", digest, signer, err)
	}
	o := offerOn(t, "eip155:84532", 10000)
	o.PayTo = transfer.To.Hex()
	p := &payment.Payment{Version: payment.V1, Scheme: payment.Exact, Network: "eip155:84532", Payload: payload}
	if _, err := evm.Check(p, termsFor(o), 1740672100); err != nil {
		t.Errorf("while it was valid: %v", err)
	}
	if got := reasonOf(t, p, termsFor(o), 1790000000); got != payment.EVMValidBefore {
		t.Errorf("today: %s", got)
	}
}

// reasonOf checks p and returns why it is refused, or nothing.
func reasonOf(t testing.TB, p *payment.Payment, terms evm.Terms, at uint64) payment.Reason {
	t.Helper()
	transfer, err := evm.Check(p, terms, at)
	if err == nil {
		if transfer == nil {
			t.Error("no error and no transfer")
		}
		return ""
	}
	var invalid *payment.InvalidError
	if !errors.As(err, &invalid) || transfer != nil {
		t.Fatalf("got %v, %T: %v", transfer, err, err)
	}
	return invalid.Reason
}

// The reference answers with a chain on which every call succeeds.
func TestCheckGivesTheReasonsOfTheReference(t *testing.T) {
	// Refused here although the reference recovers the signer: tokens revert.
	stricter := map[string]payment.Reason{"exact-eip3009-v-0-1": payment.EVMSignature}
	// Only the chain can tell; everything that Check sees is in order.
	needsChain := map[string]payment.Reason{"exact-eip3009-asset-is-eoa": payment.EVMAssetNotDeployed}

	file := readTestdata[struct {
		Now   uint64
		Cases []struct {
			ID, Op             string
			Body               json.RawMessage
			ReferenceSdkResult struct {
				IsValid, Success bool
				InvalidReason    payment.Reason
				Payer            string
			}
		}
	}](t, "verify.json")
	if len(file.Cases) < 15 {
		t.Errorf("only %d cases", len(file.Cases))
	}
	for _, c := range file.Cases {
		t.Run(c.ID, func(t *testing.T) {
			p, o, err := payment.DecodeRequest(c.Body)
			if err != nil {
				t.Fatal(err)
			}
			want := c.ReferenceSdkResult.InvalidReason
			if (want == "") != (c.ReferenceSdkResult.IsValid || c.ReferenceSdkResult.Success) {
				t.Fatalf("the vector contradicts itself: %+v", c.ReferenceSdkResult)
			}
			if reason, ok := stricter[c.ID]; ok {
				if want != "" {
					t.Errorf("the reference refuses it too")
				}
				want = reason
			}
			if reason, ok := needsChain[c.ID]; ok {
				if want != reason {
					t.Errorf("the reference says %q", want)
				}
				want = ""
			}
			transfer, err := evm.Check(p, termsFor(o), file.Now)
			var invalid *payment.InvalidError
			switch {
			case want == "":
				if err != nil || transfer.From.Hex() != c.ReferenceSdkResult.Payer {
					t.Errorf("got %v, %v", transfer, err)
				}
			case !errors.As(err, &invalid) || invalid.Reason != want || invalid.Payer != c.ReferenceSdkResult.Payer:
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
}
