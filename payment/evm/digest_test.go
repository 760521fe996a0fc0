package evm_test

import (
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"
	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// typedData is the same message in the form of a general EIP-712 encoder.
func typedData(d evm.Domain, a *evm.Authorization) apitypes.TypedData {
	return apitypes.TypedData{
		Types: apitypes.Types{
			"EIP712Domain": {
				{Name: "name", Type: "string"},
				{Name: "version", Type: "string"},
				{Name: "chainId", Type: "uint256"},
				{Name: "verifyingContract", Type: "address"},
			},
			"TransferWithAuthorization": {
				{Name: "from", Type: "address"},
				{Name: "to", Type: "address"},
				{Name: "value", Type: "uint256"},
				{Name: "validAfter", Type: "uint256"},
				{Name: "validBefore", Type: "uint256"},
				{Name: "nonce", Type: "bytes32"},
			},
		},
		PrimaryType: "TransferWithAuthorization",
		Domain: apitypes.TypedDataDomain{
			Name: d.Name, Version: d.Version, ChainId: (*math.HexOrDecimal256)(new(big.Int).SetUint64(d.ChainID)), VerifyingContract: d.Contract.Hex(),
		},
		Message: apitypes.TypedDataMessage{
			"from": a.From.Hex(), "to": a.To.Hex(), "value": a.Value.String(),
			"validAfter": a.ValidAfter.String(), "validBefore": a.ValidBefore.String(), "nonce": hexutil.Encode(a.Nonce[:]),
		},
	}
}

func sameDigest(t rapid.TB, d evm.Domain, a *evm.Authorization) {
	t.Helper()
	data := typedData(d, a)
	separator, err := data.HashStruct("EIP712Domain", data.Domain.Map())
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Separator(); got != common.BytesToHash(separator) {
		t.Fatalf("separator of %+v is %s, go-ethereum says %s", d, got, separator)
	}
	want, _, err := apitypes.TypedDataAndHash(data)
	if err != nil {
		t.Fatal(err)
	}
	if got := a.Digest(d.Separator()); got != common.BytesToHash(want) {
		t.Fatalf("digest of %+v in %+v is %s, go-ethereum says %x", a, d, got, want)
	}
}

// fields builds a message from bytes: numbers from up to 32 of them.
func fields(from, to, value, after, before, nonce []byte) *evm.Authorization {
	number := func(b []byte) *big.Int { return new(big.Int).SetBytes(b[:min(len(b), 32)]) }
	return &evm.Authorization{
		From: common.BytesToAddress(from), To: common.BytesToAddress(to), Value: number(value),
		ValidAfter: number(after), ValidBefore: number(before), Nonce: common.BytesToHash(nonce),
	}
}

func TestDigestsEqualThoseOfAGeneralEncoder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bytes := func(name string, most int) []byte { return rapid.SliceOfN(rapid.Byte(), 0, most).Draw(t, name) }
		sameDigest(t,
			evm.Domain{
				Name: rapid.StringN(1, 40, -1).Draw(t, "name"), Version: rapid.StringN(1, 10, -1).Draw(t, "version"),
				ChainID: rapid.Uint64().Draw(t, "chain"), Contract: common.BytesToAddress(bytes("contract", 20)),
			},
			fields(bytes("from", 20), bytes("to", 20), bytes("value", 32), bytes("after", 32), bytes("before", 32), bytes("nonce", 32)))
	})
}

func FuzzDigest(f *testing.F) {
	f.Add("USDC", "2", uint64(84532), []byte{1}, []byte{2}, []byte{3}, []byte{0x27, 0x10}, []byte{}, []byte{0xff, 0xff, 0xff, 0xff}, []byte{4})
	f.Fuzz(func(t *testing.T, name, version string, chain uint64, contract, from, to, value, after, before, nonce []byte) {
		if name == "" || version == "" {
			return // go-ethereum leaves empty members out of the domain
		}
		sameDigest(t, evm.Domain{Name: name, Version: version, ChainID: chain, Contract: common.BytesToAddress(contract)},
			fields(from, to, value, after, before, nonce))
	})
}

func TestDomainsAreTakenFromTokens(t *testing.T) {
	usdc, _ := payment.USDC("eip155:8453")
	want := evm.Domain{Name: "USD Coin", Version: "2", ChainID: 8453, Contract: common.HexToAddress("0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913")}
	if got := evm.DomainOf(usdc); got != want {
		t.Errorf("got %+v", got)
	}
}

func TestDigestNeedsNoMemory(t *testing.T) {
	transfer := transferFor(t, offerOn(t, "eip155:84532", 10000), 0, 4102444800)
	token := common.HexToAddress("0x036CbD53842c5426634e7929541eC2318f3dCF7e")
	for name, f := range map[string]func(){
		"Digest": func() { transfer.Digest(common.Hash{1}) },
		"Key":    func() { transfer.Key(84532, token) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkDigest(b *testing.B) {
	o := offerOn(b, "eip155:84532", 10000)
	transfer, separator := transferFor(b, o, 0, 4102444800), termsFor(o).Separator
	b.ReportAllocs()
	for b.Loop() {
		transfer.Digest(separator)
	}
}

// BenchmarkDigestApitypes is the same by go-ethereum's general encoder.
func BenchmarkDigestApitypes(b *testing.B) {
	o := offerOn(b, "eip155:84532", 10000)
	transfer, domain := transferFor(b, o, 0, 4102444800), evm.DomainOf(o.Amount.Token())
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := apitypes.TypedDataAndHash(typedData(domain, &transfer.Authorization)); err != nil {
			b.Fatal(err)
		}
	}
}
