package evm_test

import (
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"
	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// permitTypedData is the same message in the form of a general EIP-712 encoder.
func permitTypedData(chainID uint64, p *evm.Permit) apitypes.TypedData {
	witnessType := []apitypes.Type{{Name: "to", Type: "address"}, {Name: "validAfter", Type: "uint256"}}
	witness := apitypes.TypedDataMessage{"to": p.To.Hex(), "validAfter": p.ValidAfter.String()}
	if p.Scheme == payment.Upto {
		witnessType = []apitypes.Type{witnessType[0], {Name: "facilitator", Type: "address"}, witnessType[1]}
		witness["facilitator"] = p.Facilitator.Hex()
	}
	return apitypes.TypedData{
		Types: apitypes.Types{
			"EIP712Domain": {
				{Name: "name", Type: "string"},
				{Name: "chainId", Type: "uint256"},
				{Name: "verifyingContract", Type: "address"},
			},
			"TokenPermissions": {{Name: "token", Type: "address"}, {Name: "amount", Type: "uint256"}},
			"Witness":          witnessType,
			"PermitWitnessTransferFrom": {
				{Name: "permitted", Type: "TokenPermissions"},
				{Name: "spender", Type: "address"},
				{Name: "nonce", Type: "uint256"},
				{Name: "deadline", Type: "uint256"},
				{Name: "witness", Type: "Witness"},
			},
		},
		PrimaryType: "PermitWitnessTransferFrom",
		Domain: apitypes.TypedDataDomain{
			Name: "Permit2", ChainId: (*math.HexOrDecimal256)(new(big.Int).SetUint64(chainID)), VerifyingContract: "0x000000000022D473030F116dDEE9F6B43aC78BA3",
		},
		Message: apitypes.TypedDataMessage{
			"permitted": apitypes.TypedDataMessage{"token": p.Token.Hex(), "amount": p.Amount.String()},
			"spender":   p.Spender.Hex(), "nonce": p.Nonce.String(), "deadline": p.Deadline.String(), "witness": witness,
		},
	}
}

func samePermitDigest(t rapid.TB, chainID uint64, p *evm.Permit) {
	t.Helper()
	data := permitTypedData(chainID, p)
	separator, err := data.HashStruct("EIP712Domain", data.Domain.Map())
	if err != nil {
		t.Fatal(err)
	}
	if got := evm.Permit2Separator(chainID); got != common.BytesToHash(separator) {
		t.Fatalf("separator on %d is %s, go-ethereum says %s", chainID, got, separator)
	}
	want, _, err := apitypes.TypedDataAndHash(data)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Digest(evm.Permit2Separator(chainID)); got != common.BytesToHash(want) {
		t.Fatalf("digest of %+v on %d is %s, go-ethereum says %x", p, chainID, got, want)
	}
}

// permitFields builds a message from bytes: numbers from up to 32 of them.
func permitFields(upto bool, from, token, amount, spender, nonce, deadline, to, facilitator, after []byte) *evm.Permit {
	number := func(b []byte) *big.Int { return new(big.Int).SetBytes(b[:min(len(b), 32)]) }
	p := &evm.Permit{
		Scheme: payment.Exact, From: common.BytesToAddress(from), Token: common.BytesToAddress(token), Amount: number(amount),
		Spender: common.BytesToAddress(spender), Nonce: number(nonce), Deadline: number(deadline),
		To: common.BytesToAddress(to), ValidAfter: number(after),
	}
	if upto {
		p.Scheme, p.Facilitator = payment.Upto, common.BytesToAddress(facilitator)
	}
	return p
}

func drawPermit(t *rapid.T) *evm.SignedPermit {
	bytes := func(name string, most int) []byte { return rapid.SliceOfN(rapid.Byte(), 0, most).Draw(t, name) }
	return &evm.SignedPermit{
		Permit: *permitFields(rapid.Bool().Draw(t, "upto"), bytes("from", 20), bytes("token", 20), bytes("amount", 32), bytes("spender", 20),
			bytes("nonce", 32), bytes("deadline", 32), bytes("to", 20), bytes("facilitator", 20), bytes("after", 32)),
		Signature: bytes("signature", 300),
	}
}

func TestPermitDigestsEqualThoseOfAGeneralEncoder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		samePermitDigest(t, rapid.Uint64().Draw(t, "chain"), &drawPermit(t).Permit)
	})
}

func FuzzPermitDigest(f *testing.F) {
	f.Add(uint64(84532), false, []byte{1}, []byte{2}, []byte{0x27, 0x10}, []byte{3}, []byte{4}, []byte{0xff, 0xff, 0xff, 0xff}, []byte{5}, []byte{6}, []byte{})
	f.Add(uint64(1), true, []byte{1}, []byte{2}, []byte{0x27, 0x10}, []byte{3}, []byte{4}, []byte{0xff, 0xff, 0xff, 0xff}, []byte{5}, []byte{6}, []byte{})
	f.Fuzz(func(t *testing.T, chain uint64, upto bool, from, token, amount, spender, nonce, deadline, to, facilitator, after []byte) {
		samePermitDigest(t, chain, permitFields(upto, from, token, amount, spender, nonce, deadline, to, facilitator, after))
	})
}

func TestApprovalDigestsEqualThoseOfAGeneralEncoder(t *testing.T) {
	usdc, _ := payment.USDC("eip155:84532")
	domain := evm.DomainOf(usdc)
	rapid.Check(t, func(t *rapid.T) {
		bytes := func(name string, most int) []byte { return rapid.SliceOfN(rapid.Byte(), 0, most).Draw(t, name) }
		number := func(name string) *big.Int { return new(big.Int).SetBytes(bytes(name, 32)) }
		a := &evm.Approval{
			From: common.BytesToAddress(bytes("from", 20)), Spender: common.BytesToAddress(bytes("spender", 20)),
			Value: number("value"), Nonce: number("nonce"), Deadline: number("deadline"),
		}
		data := typedData(domain, &evm.Authorization{Value: new(big.Int), ValidAfter: new(big.Int), ValidBefore: new(big.Int)})
		data.PrimaryType = "Permit"
		data.Types["Permit"] = []apitypes.Type{
			{Name: "owner", Type: "address"},
			{Name: "spender", Type: "address"},
			{Name: "value", Type: "uint256"},
			{Name: "nonce", Type: "uint256"},
			{Name: "deadline", Type: "uint256"},
		}
		data.Message = apitypes.TypedDataMessage{
			"owner": a.From.Hex(), "spender": a.Spender.Hex(), "value": a.Value.String(), "nonce": a.Nonce.String(), "deadline": a.Deadline.String(),
		}
		want, _, err := apitypes.TypedDataAndHash(data)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Digest(domain.Separator()); got != common.BytesToHash(want) {
			t.Fatalf("digest of %+v is %s, go-ethereum says %x", a, got, want)
		}
	})
}

// The key is what Permit2 itself dedupes on. Two permits of one nonce are one
// payment, whatever they permit: only one of them can ever be used.
func TestThePermitKeyIsChainPayerAndNonce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chain, otherChain := rapid.Uint64().Draw(t, "chain"), rapid.Uint64().Draw(t, "other chain")
		a, b := drawPermit(t), drawPermit(t)
		same := chain == otherChain && a.From == b.From && a.Nonce.Cmp(b.Nonce) == 0
		if (a.Key(chain) == b.Key(otherChain)) != same {
			t.Fatalf("%+v and %+v: same payment %v", a, b, same)
		}
		b.From, b.Nonce = a.From, a.Nonce
		if a.Key(chain) != b.Key(chain) {
			t.Fatal("two permits of one nonce have two keys")
		}
		b.From[19]++
		if a.Key(chain) == b.Key(chain) || a.Key(chain) == a.Key(chain+1) {
			t.Fatal("the key does not depend on chain and payer")
		}
		b.From, b.Nonce = a.From, new(big.Int).Xor(a.Nonce, common.Big1)
		if a.Key(chain) == b.Key(chain) {
			t.Fatal("the key does not depend on the nonce")
		}
		transfer := &evm.Authorization{From: a.From, Nonce: common.BigToHash(a.Nonce)}
		if a.Key(chain) == transfer.Key(chain, evm.Permit2) {
			t.Fatal("a permit and a transfer have one key")
		}
	})
}

// Keys are stored, so their value is fixed: sha256("prm2" || chain id in 32
// bytes || Permit2 || payer || nonce).
func TestTheKeyOfAPermitNeverChanges(t *testing.T) {
	p := &evm.Permit{From: common.HexToAddress("0xCC9315E4C2EC6d354d42adC84f599f83Ad715631"), Nonce: big.NewInt(7)}
	if got := p.Key(84532).String(); got != "03719595a6bc477823e34f4f0843c4ac37fc0b439da3fc58c25cb86524c8f4ae" {
		t.Errorf("got %s", got)
	}
}

func TestPermitDigestNeedsNoMemory(t *testing.T) {
	for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		s := permitFor(t, permitOffer(t, scheme, "eip155:84532", 10000), 0, 4102444800)
		for name, f := range map[string]func(){
			"Digest": func() { s.Digest(common.Hash{1}) },
			"Key":    func() { s.Key(84532) },
		} {
			if n := testing.AllocsPerRun(100, f); n != 0 {
				t.Errorf("%s of %s allocates %v times", name, scheme, n)
			}
		}
	}
}

func BenchmarkPermitDigest(b *testing.B) {
	for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		b.Run(string(scheme), func(b *testing.B) {
			o := permitOffer(b, scheme, "eip155:84532", 10000)
			s, separator := permitFor(b, o, 0, 4102444800), permitTermsFor(b, o).Separator
			b.ReportAllocs()
			for b.Loop() {
				s.Digest(separator)
			}
		})
	}
}

// BenchmarkPermitDigestApitypes is the same by go-ethereum's general encoder.
func BenchmarkPermitDigestApitypes(b *testing.B) {
	s := permitFor(b, permitOffer(b, payment.Exact, "eip155:84532", 10000), 0, 4102444800)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := apitypes.TypedDataAndHash(permitTypedData(84532, &s.Permit)); err != nil {
			b.Fatal(err)
		}
	}
}
