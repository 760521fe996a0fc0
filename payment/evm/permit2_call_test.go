package evm_test

import (
	"bytes"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// proxyABI returns the interface of a proxy, written down from PROTOCOL
// section 8.6.
func proxyABI(t testing.TB, scheme payment.Scheme) abi.ABI {
	t.Helper()
	word := func(kind, name string) string { return `{"type":"` + kind + `","name":"` + name + `"}` }
	tuple := func(name string, parts ...string) string {
		return `{"type":"tuple","name":"` + name + `","components":[` + strings.Join(parts, ",") + `]}`
	}
	permit2612 := tuple("permit2612", word("uint256", "value"), word("uint256", "deadline"), word("bytes32", "r"), word("bytes32", "s"), word("uint8", "v"))
	list := []string{
		tuple("permit", tuple("permitted", word("address", "token"), word("uint256", "amount")), word("uint256", "nonce"), word("uint256", "deadline")),
		word("address", "owner"), tuple("witness", word("address", "to"), word("uint256", "validAfter")), word("bytes", "signature"),
	}
	if scheme == payment.Upto {
		list = []string{
			list[0], word("uint256", "amount"), list[1],
			tuple("witness", word("address", "to"), word("address", "facilitator"), word("uint256", "validAfter")), list[3],
		}
	}
	a, err := abi.JSON(strings.NewReader(`[{"type":"function","name":"settle","inputs":[` + strings.Join(list, ",") + `]},` +
		`{"type":"function","name":"settleWithPermit","inputs":[` + permit2612 + "," + strings.Join(list, ",") + `]}]`))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

type (
	abiPermitted struct {
		Token  common.Address
		Amount *big.Int
	}
	abiPermit struct {
		Permitted       abiPermitted
		Nonce, Deadline *big.Int
	}
	abiExactWitness struct {
		To         common.Address
		ValidAfter *big.Int
	}
	abiUptoWitness struct {
		To, Facilitator common.Address
		ValidAfter      *big.Int
	}
	abi2612 struct {
		Value, Deadline *big.Int
		R, S            [32]byte
		V               uint8
	}
)

// packPermitCall is Calldata by go-ethereum's ABI encoder.
func packPermitCall(t rapid.TB, parsed abi.ABI, c *evm.PermitCall) []byte {
	t.Helper()
	s, method := c.Permit, "settle"
	args := []any{abiPermit{abiPermitted{s.Token, s.Amount}, s.Nonce, s.Deadline}, s.From, abiExactWitness{s.To, s.ValidAfter}, s.Signature}
	if s.Scheme == payment.Upto {
		args = []any{args[0], c.Charge, s.From, abiUptoWitness{s.To, s.Facilitator, s.ValidAfter}, s.Signature}
	}
	if a := c.Approval; a != nil {
		method = "settleWithPermit"
		args = append([]any{abi2612{a.Value, a.Deadline, [32]byte(a.Signature[:32]), [32]byte(a.Signature[32:64]), a.Signature[64]}}, args...)
	}
	data, err := parsed.Pack(method, args...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func drawPermitCall(t *rapid.T) *evm.PermitCall {
	number := func(name string) *big.Int {
		return new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 0, 32).Draw(t, name))
	}
	c := &evm.PermitCall{Permit: drawPermit(t)}
	c.Permit.Spender = c.Permit.Proxy()
	c.Charge = c.Permit.Amount
	if c.Permit.Scheme == payment.Upto {
		c.Charge = number("charge")
	}
	if rapid.Bool().Draw(t, "sponsored") {
		c.Approval = &evm.Approval{
			From: c.Permit.From, Token: c.Permit.Token, Spender: evm.Permit2, Value: number("value"), Deadline: number("until"),
			Signature: rapid.SliceOfN(rapid.Byte(), 65, 65).Draw(t, "approval"),
		}
	}
	return c
}

func samePermitCall(a, b *evm.PermitCall) bool {
	if !samePermit(a.Permit, b.Permit) || a.Charge.Cmp(b.Charge) != 0 || (a.Approval == nil) != (b.Approval == nil) {
		return false
	}
	x, y := a.Approval, b.Approval
	return x == nil || x.From == y.From && x.Token == y.Token && x.Spender == y.Spender && x.Value.Cmp(y.Value) == 0 &&
		x.Deadline.Cmp(y.Deadline) == 0 && bytes.Equal(x.Signature, y.Signature) && x.Nonce == y.Nonce
}

func TestPermitCallsAreEncodedAsTheGeneralEncoderDoesAndReadBack(t *testing.T) {
	proxies := map[payment.Scheme]abi.ABI{payment.Exact: proxyABI(t, payment.Exact), payment.Upto: proxyABI(t, payment.Upto)}
	rapid.Check(t, func(t *rapid.T) {
		c := drawPermitCall(t)
		data := c.Calldata()
		if want := packPermitCall(t, proxies[c.Permit.Scheme], c); !bytes.Equal(data, want) {
			t.Fatalf("got %x, want %x", data, want)
		}
		got, err := evm.ReadPermitCall(c.Permit.Proxy(), data)
		if err != nil || !samePermitCall(got, c) {
			t.Fatalf("read %+v, %v, want %+v", got, err, c)
		}
		for _, to := range []common.Address{{}, evm.Permit2, evm.Multicall3, c.Permit.Token} {
			if got, err := evm.ReadPermitCall(to, data); err == nil {
				t.Fatalf("a call to %s is read as %+v", to, got)
			}
		}
	})
}

// A nil charge is the whole amount.
func TestACallWithoutChargeMovesTheAmount(t *testing.T) {
	s := permitFor(t, permitOffer(t, payment.Upto, "eip155:84532", 10000), 0, 4102444800)
	whole := &evm.PermitCall{Permit: s, Charge: s.Amount}
	if got := (&evm.PermitCall{Permit: s}).Calldata(); !bytes.Equal(got, whole.Calldata()) {
		t.Errorf("got %x", got)
	}
}

// Whatever is changed in a call, it is refused or it is another call that can
// be read: nothing is hidden in it.
func TestNothingHidesInAPermitCall(t *testing.T) {
	for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		s := permitFor(t, permitOffer(t, scheme, "eip155:84532", 10000), 0, 4102444800)
		for _, c := range []*evm.PermitCall{{Permit: s, Charge: s.Amount}, {Permit: s, Charge: s.Amount, Approval: approvalFor(t, &s.Permit)}} {
			data := c.Calldata()
			for name, other := range map[string][]byte{
				"nothing":          nil,
				"a selector alone": data[:4],
				"the head alone":   data[:len(data)-32*4],
				"cut short":        data[:len(data)-1],
				"one byte more":    append(slices.Clone(data), 0),
				"one word more":    append(slices.Clone(data), make([]byte, 32)...),
			} {
				if got, err := evm.ReadPermitCall(s.Proxy(), other); err == nil {
					t.Errorf("%s: %s is read as %+v", scheme, name, got)
				}
			}
			for at := range data {
				for bit := range 8 {
					changed := slices.Clone(data)
					changed[at] ^= 1 << bit
					if got, err := evm.ReadPermitCall(s.Proxy(), changed); err == nil && !bytes.Equal(got.Calldata(), changed) {
						t.Fatalf("bit %d of byte %d is not seen", bit, at)
					}
				}
			}
		}
	}
}

func FuzzReadPermitCall(f *testing.F) {
	for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		s := permitFor(f, permitOffer(f, scheme, "eip155:84532", 10000), 0, 4102444800)
		f.Add((&evm.PermitCall{Permit: s}).Calldata(), scheme == payment.Upto)
		f.Add((&evm.PermitCall{Permit: s, Approval: approvalFor(f, &s.Permit)}).Calldata(), scheme == payment.Upto)
	}
	f.Fuzz(func(t *testing.T, data []byte, upto bool) {
		proxy := evm.ExactProxy
		if upto {
			proxy = evm.UptoProxy
		}
		c, err := evm.ReadPermitCall(proxy, data)
		if err == nil && (!bytes.Equal(c.Calldata(), data) || c.Permit.Proxy() != proxy) {
			t.Fatalf("%x is read as %+v", data, c)
		}
	})
}

func TestOnlyAWholeWordAnswersWhetherANonceIsUsed(t *testing.T) {
	p := &evm.Permit{Nonce: big.NewInt(0x1ff)}
	if place := p.BitmapCall()[36:]; new(big.Int).SetBytes(place).Uint64() != 1 {
		t.Errorf("asks for word %x", place)
	}
	answer := make([]byte, 32)
	answer[0] = 0x80
	if used, err := p.Used(answer); err != nil || !used {
		t.Errorf("bit 255 of the word: %v, %v", used, err)
	}
	answer[0] = 0x7f
	if used, err := p.Used(answer); err != nil || used {
		t.Errorf("the other bits of the byte: %v, %v", used, err)
	}
	for _, wrong := range [][]byte{nil, {1}, make([]byte, 31), make([]byte, 33), make([]byte, 64)} {
		if _, err := p.Used(wrong); err == nil {
			t.Errorf("%d bytes are taken for an answer", len(wrong))
		}
	}
}

func TestPermitCallsAreNotSharedBetweenCallers(t *testing.T) {
	first := evm.Permit2Call()
	first[0]++
	if second := evm.Permit2Call(); second[0] == first[0] {
		t.Error("one caller changed the call of another")
	}
	allowance := evm.AllowanceCall(common.Address{1}, common.Address{2})
	if len(allowance) != 68 || allowance[4+12] != 1 || allowance[36+12] != 2 {
		t.Errorf("allowance: %x", allowance)
	}
	if nonces := evm.NoncesCall(common.Address{3}); len(nonces) != 36 || nonces[4+12] != 3 {
		t.Errorf("nonces: %x", nonces)
	}
}
