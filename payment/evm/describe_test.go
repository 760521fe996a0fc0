package evm_test

import (
	"bytes"
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment/evm"
)

// pack encodes what a contract answers, with go-ethereum's general encoder.
func pack(t testing.TB, types []string, values ...any) []byte {
	t.Helper()
	var args abi.Arguments
	for _, name := range types {
		typ, err := abi.NewType(name, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, abi.Argument{Type: typ})
	}
	out, err := args.Pack(values...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var domainTypes = []string{"bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]"}

func TestQuestionsToATokenAreTheOnesItKnows(t *testing.T) {
	for signature, call := range map[string][]byte{
		"name()": evm.NameCall(), "version()": evm.VersionCall(), "symbol()": evm.SymbolCall(),
		"decimals()": evm.DecimalsCall(), "eip712Domain()": evm.DomainCall(),
	} {
		if want := crypto.Keccak256([]byte(signature))[:4]; !bytes.Equal(call, want) {
			t.Errorf("%s: got %x, want %x", signature, call, want)
		}
	}
}

func TestTextsOfContractsAreRead(t *testing.T) {
	for _, want := range []string{"", "USDC", "a name of more than thirty-two bytes, which takes two words", "€"} {
		if got, err := evm.ReadText(pack(t, []string{"string"}, want)); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if got, err := evm.ReadText(common.RightPadBytes([]byte("MKR"), 32)); err != nil || got != "MKR" {
		t.Errorf("got %q, %v", got, err)
	}
	good := pack(t, []string{"string"}, "USDC")
	for what, output := range map[string][]byte{
		"nothing":            nil,
		"a cut end":          good[:len(good)-32],
		"a place far away":   append(bytes.Repeat([]byte{0xff}, 32), good[32:]...),
		"an endless text":    append(append(bytes.Clone(good[:32]), bytes.Repeat([]byte{0xff}, 32)...), good[64:]...),
		"too long a text":    pack(t, []string{"string"}, strings.Repeat("x", 1000)),
		"no UTF-8":           pack(t, []string{"string"}, "\xff\xfe"),
		"33 bytes of zeros":  make([]byte, 33),
		"no UTF-8, 32 bytes": bytes.Repeat([]byte{0xfe}, 32),
	} {
		if text, err := evm.ReadText(output); err == nil && text != "" {
			t.Errorf("%s is read as %q", what, text)
		}
	}
}

func TestADomainIsReadAsTheTokenGivesIt(t *testing.T) {
	want := evm.Domain{Name: "USD Coin", Version: "2", ChainID: 8453, Contract: common.HexToAddress("0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913")}
	answer := func(fields byte, d evm.Domain) []byte {
		return pack(t, domainTypes, [1]byte{fields}, d.Name, d.Version, new(big.Int).SetUint64(d.ChainID), d.Contract, [32]byte{}, []*big.Int{})
	}
	if got, err := evm.ReadDomain(answer(0x0f, want)); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, fields := range []byte{0x00, 0x07, 0x0d, 0x1f, 0x2f} {
		if _, err := evm.ReadDomain(answer(fields, want)); err == nil || !strings.Contains(err.Error(), "fields") {
			t.Errorf("fields %02x: %v", fields, err)
		}
	}
	salted := pack(t, domainTypes, [1]byte{0x0f}, "a", "1", big.NewInt(1), want.Contract, [32]byte{1}, []*big.Int{})
	huge := pack(t, domainTypes, [1]byte{0x0f}, "a", "1", new(big.Int).Lsh(big.NewInt(1), 70), want.Contract, [32]byte{}, []*big.Int{})
	for what, output := range map[string][]byte{"nothing": nil, "a salt": salted, "a chain id beyond 64 bits": huge, "a cut end": answer(0x0f, want)[:6*32]} {
		if d, err := evm.ReadDomain(output); err == nil {
			t.Errorf("%s is read as %+v", what, d)
		}
	}
}

func TestDecimalsAreOneByte(t *testing.T) {
	if d, err := evm.ReadDecimals(pack(t, []string{"uint8"}, uint8(18))); err != nil || d != 18 {
		t.Errorf("got %d, %v", d, err)
	}
	for _, output := range [][]byte{nil, {6}, pack(t, []string{"uint256"}, big.NewInt(256))} {
		if d, err := evm.ReadDecimals(output); err == nil {
			t.Errorf("%x is read as %d", output, d)
		}
	}
}

// FuzzDescriptions feeds what contracts may answer to everything that reads it.
func FuzzDescriptions(f *testing.F) {
	f.Add(pack(f, []string{"string"}, "USDC"))
	f.Add(pack(f, domainTypes, [1]byte{0x0f}, "USDC", "2", big.NewInt(84532), common.Address{1}, [32]byte{}, []*big.Int{}))
	f.Fuzz(func(t *testing.T, output []byte) {
		if s, err := evm.ReadText(output); err == nil && len(s) > 256 {
			t.Errorf("a text of %d bytes", len(s))
		}
		if d, err := evm.ReadDomain(output); err == nil {
			// What is read is what its own encoding says.
			again, err := evm.ReadDomain(pack(t, domainTypes, [1]byte{0x0f}, d.Name, d.Version, new(big.Int).SetUint64(d.ChainID), d.Contract, [32]byte{}, []*big.Int{}))
			if err != nil || again != d {
				t.Errorf("%+v is read again as %+v, %v", d, again, err)
			}
		}
		_, _ = evm.ReadDecimals(output)
	})
}
