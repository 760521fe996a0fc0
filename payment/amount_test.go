package payment_test

import (
	"encoding/json"
	"math/big"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
)

var (
	maxUint256 = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1))

	dollar  = payment.Token{Network: "eip155:84532", Address: "0x036CbD53842c5426634e7929541eC2318f3dCF7e", Symbol: "USDC", Decimals: 6, Dollar: true}
	ether18 = payment.Token{Network: "eip155:1", Address: "0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2", Symbol: "WETH", Decimals: 18}
	yen     = payment.Token{Network: "eip155:1", Address: "0x431D5dfF03120AFA4bDf332c61A6e1766eF37BDB", Symbol: "JPYC", Decimals: 0}
)

// canonicalUnits is the wire's grammar of amounts, written another way than
// the parser.
var canonicalUnits = regexp.MustCompile(`\A(?:0|[1-9][0-9]{0,77})\z`)

func canonical(s string) bool {
	if !canonicalUnits.MatchString(s) {
		return false
	}
	n, _ := new(big.Int).SetString(s, 10)
	return n.Cmp(maxUint256) <= 0
}

// amountStrings are amounts that parsers in the field disagree about, among
// some that all of them accept.
var amountStrings = []string{
	"0", "1", "9", "10", "10000", "1000000", "18446744073709551615", "18446744073709551616", "340282366920938463463374607431768211456",
	maxUint256.String(), new(big.Int).Add(maxUint256, big.NewInt(1)).String(), strings.Repeat("9", 77), strings.Repeat("9", 78), strings.Repeat("9", 79), "1" + strings.Repeat("0", 5000),
	"", " ", "00", "01", "010000", "0010000", "+1", "+10000", "-1", "-0", "--1", "1-", "1+", " 10000", "10000 ", "10 000", "\t10000", "10000\n", "10000\r\n", "\u00a010000", "10000\x00",
	"1e3", "1E3", "1e+3", "1e-3", "10e", "0x2710", "0X2710", "2710h", "0b1", "0o17", "017", "10000n", "10000L", "10000.0", "10000.", ".1", "0.1", "0.01", "1,000", "1.000", "10_000", "1'000", "１００００", "١٠", "๑", "𝟏𝟎", "①", "½", "Ⅻ",
	"1abc", "abc", "USD 10", "10 USDC", "$10", "10$", "$0.01", "NaN", "Infinity", "-Infinity", "null", "true", "[]", "{}", `"10"`, "10000%", "10000;", "10000,10000", "10000/1", "1<<4", "ten", "0\u200b", "\ufeff10",
}

func TestAmountsAreReadInOneFormOnly(t *testing.T) {
	if len(amountStrings) < 60 {
		t.Errorf("only %d strings", len(amountStrings))
	}
	for _, s := range amountStrings {
		a, err := payment.ParseUnits(s, dollar)
		if (err == nil) != canonical(s) {
			t.Errorf("ParseUnits(%.90q): %v", s, err)
		}
		if err == nil && a.Units() != s {
			t.Errorf("ParseUnits(%q) is %s", s, a.Units())
		}
		// The same through a header: refused as malformed, or no match, or
		// the very amount of the offer.
		quoted, _ := json.Marshal(s)
		want := "malformed"
		switch {
		case s == "10000":
			want = "matches"
		case canonical(s):
			want = "no match"
		}
		if len(s) > 1000 {
			continue
		}
		if got := outcome(t, strings.Replace(ruleAccepted, `"10000"`, string(quoted), 1), ruleOffer(t)); got != want {
			t.Errorf("header with amount %q: %s, want %s", s, got, want)
		}
	}
}

func FuzzParseUnits(f *testing.F) {
	for _, s := range amountStrings {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := payment.ParseUnits(s, dollar)
		if (err == nil) != canonical(s) {
			t.Fatalf("%q: %v", s, err)
		}
		if err == nil && (a.Units() != s || a.Big().String() != s) {
			t.Fatalf("%q became %s", s, a.Units())
		}
	})
}

func TestPricesAreReadExactly(t *testing.T) {
	for _, row := range []struct {
		price string
		token payment.Token
		units string // empty: refused
	}{
		{"$0.01", dollar, "10000"},
		{"$1", dollar, "1000000"},
		{"$1.50", dollar, "1500000"},
		{"$0.000001", dollar, "1"},
		{"$0.0100000000", dollar, "10000"},
		{"$123456789.123456", dollar, "123456789123456"},
		{"0.01 USDC", dollar, "10000"},
		{"1 USDC", dollar, "1000000"},
		{"10000", dollar, "10000"},
		{"1", dollar, "1"},
		{"1 WETH", ether18, "1000000000000000000"},
		{"0.000000000000000001 WETH", ether18, "1"},
		{"1.000000000000000001 WETH", ether18, "1000000000000000001"},
		{"0.1 WETH", ether18, "100000000000000000"},
		{"10000", ether18, "10000"},
		{"150 JPYC", yen, "150"},
		{"150.0 JPYC", yen, "150"},
		{maxUint256.String(), ether18, maxUint256.String()},
		{maxUint256.String() + " JPYC", yen, maxUint256.String()},

		{"$0.0000019", dollar, ""}, // others charge 1 for it
		{"$0.0000001", dollar, ""}, // and nothing for this
		{"0.0000000000000000001 WETH", ether18, ""},
		{"1.5 JPYC", yen, ""},
		{"0.01", dollar, ""},
		{"1.0", dollar, ""},
		{"1.", dollar, ""},
		{".5", dollar, ""},
		{"$.5", dollar, ""},
		{"$1.", dollar, ""},
		{"$", dollar, ""},
		{"$ 1", dollar, ""},
		{"1$", dollar, ""},
		{"$01", dollar, ""},
		{"$00.01", dollar, ""},
		{"01 USDC", dollar, ""},
		{"$1,000", dollar, ""},
		{"$1e3", dollar, ""},
		{"1e3 USDC", dollar, ""},
		{"$-1", dollar, ""},
		{"-$1", dollar, ""},
		{"-1 USDC", dollar, ""},
		{"$+1", dollar, ""},
		{"$1 ", dollar, ""},
		{" $1", dollar, ""},
		{"$1 USDC", dollar, ""},
		{"$$1", dollar, ""},
		{"$1.2.3", dollar, ""},
		{"$1", ether18, ""},
		{"1 USDC", ether18, ""},
		{"1 usdc", dollar, ""},
		{"1  USDC", dollar, ""},
		{"1 USDC ", dollar, ""},
		{"1USDC", dollar, ""},
		{"USDC 1", dollar, ""},
		{"$0", dollar, ""},
		{"$0.000000", dollar, ""},
		{"0 USDC", dollar, ""},
		{"0", dollar, ""},
		{"", dollar, ""},
		{" ", dollar, ""},
		{"free", dollar, ""},
		{"０.０１ USDC", dollar, ""},
		{"$" + maxUint256.String(), dollar, ""},
		{"$" + strings.Repeat("9", 10000), dollar, ""},
		{strings.Repeat("9", 100), dollar, ""},
		{"$0." + strings.Repeat("0", 10000) + "1", dollar, ""},
	} {
		a, err := payment.ParsePrice(row.price, row.token)
		switch {
		case row.units == "" && err == nil:
			t.Errorf("%.80q %s: read as %s", row.price, row.token.Symbol, a)
		case row.units != "" && (err != nil || a.Units() != row.units || a.Token() != row.token):
			t.Errorf("%.80q %s: got %s, %v; want %s", row.price, row.token.Symbol, a, err, row.units)
		case err != nil && len(err.Error()) > 500:
			t.Errorf("%.80q: the error has %d bytes", row.price, len(err.Error()))
		}
	}
}

func TestPriceErrorsSayWhatToWrite(t *testing.T) {
	for _, row := range []struct {
		price string
		token payment.Token
		want  string
	}{
		{"0.01", dollar, `price "0.01" has no unit: write $0.01 or 0.01 USDC`},
		{"$1", ether18, `price "$1" is in dollars, but WETH is not known to be worth one: write it as 1.50 WETH or in atomic units`},
		{"1 EURC", dollar, `price "1 EURC" is in EURC, but the token here is USDC`},
		{"$0.0000001", dollar, `price "$0.0000001" is finer than USDC can be divided (6 decimals)`},
		{"$0", dollar, `price "$0" is zero: a free route needs no x402 directive`},
		{"1000 cents", payment.Token{Symbol: "cents", Decimals: 200}, `price "1000 cents" is too large`},
	} {
		if _, err := payment.ParsePrice(row.price, row.token); err == nil || err.Error() != row.want {
			t.Errorf("got  %v\nwant %s", err, row.want)
		}
	}
}

// The TypeScript SDK takes a bare decimal for dollars and cuts off what is
// finer than the token. Both are refused here: nobody should have to guess
// what was meant, or be charged something else than was written.
func TestPricesOfTheReferenceAreReadOrRefusedButNeverReadDifferently(t *testing.T) {
	want := map[string]bool{"0.01": false, "1.50 USDT": true, "$1,000": false, "1e-07": false, ".5": false, "1.": false, "USDC 1": false}
	file := readTestdata[struct {
		Money []struct {
			Input   json.RawMessage
			Atomic6 string
		}
	}](t, "matching.json")
	for _, row := range file.Money {
		input := strings.Trim(string(row.Input), `"`)
		accepted, known := want[input]
		if !known {
			t.Errorf("no expectation for %s", input)
		}
		token := dollar
		if strings.HasSuffix(input, "USDT") {
			token.Symbol = "USDT"
		}
		a, err := payment.ParsePrice(input, token)
		if (err == nil) != accepted {
			t.Errorf("%s: %v", input, err)
		}
		if err == nil && a.Units() != row.Atomic6 {
			t.Errorf("%s: %s, the reference says %s", input, a.Units(), row.Atomic6)
		}
	}
}

func TestPrintedAmountsAreReadBackAsThemselves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token := payment.Token{Network: "eip155:1", Address: "0x0", Symbol: "TOK", Decimals: rapid.Uint8().Draw(t, "decimals"), Dollar: true}
		bytes := rapid.SliceOfN(rapid.Byte(), 1, 32).Draw(t, "units")
		a, err := payment.NewAmount(new(big.Int).SetBytes(bytes), token)
		if err != nil {
			t.Fatal(err)
		}
		for _, written := range []string{a.String(), "$" + strings.TrimSuffix(a.String(), " TOK"), a.Units()} {
			back, err := payment.ParsePrice(written, token)
			if a.Zero() {
				if err == nil {
					t.Fatalf("the price %s was accepted", written)
				}
				continue
			}
			if err != nil || back.Cmp(a) != 0 {
				t.Fatalf("%s units with %d decimals print as %s, which reads as %s, %v", a.Units(), token.Decimals, written, back.Units(), err)
			}
		}
	})
}

func FuzzParsePrice(f *testing.F) {
	for _, s := range []string{"$0.01", "0.01 USDC", "10000", "$1,000", "1e3", "$.5", "1 USDC ", "$0"} {
		f.Add(s, uint8(6))
		f.Add(s, uint8(18))
	}
	f.Fuzz(func(t *testing.T, s string, decimals uint8) {
		token := payment.Token{Network: "eip155:1", Address: "0x0", Symbol: "USDC", Decimals: decimals, Dollar: true}
		a, err := payment.ParsePrice(s, token)
		if err != nil {
			return
		}
		if a.Zero() || !canonical(a.Units()) {
			t.Fatalf("%q became %s", s, a.Units())
		}
		back, err := payment.ParsePrice(a.String(), token)
		if err != nil || back.Cmp(a) != 0 {
			t.Fatalf("%q is %s, which reads as %s, %v", s, a, back, err)
		}
		// Independently: as a rational number, what was written is what is charged.
		number := strings.TrimPrefix(strings.TrimSuffix(s, " USDC"), "$")
		written, ok := new(big.Rat).SetString(number)
		if !ok {
			t.Fatalf("%q was accepted and is no number", s)
		}
		if number != s {
			written.Mul(written, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(decimals)), nil)))
		}
		if written.Cmp(new(big.Rat).SetInt(a.Big())) != 0 {
			t.Fatalf("%q became %s", s, a)
		}
	})
}

func TestAmountsPrintForPeople(t *testing.T) {
	for _, row := range []struct {
		token       payment.Token
		units, want string
	}{
		{dollar, "10000", "0.01 USDC"},
		{dollar, "1", "0.000001 USDC"},
		{dollar, "1000000", "1 USDC"},
		{dollar, "1500000", "1.5 USDC"},
		{dollar, "0", "0 USDC"},
		{ether18, "1", "0.000000000000000001 WETH"},
		{yen, "150", "150 JPYC"},
		{payment.Token{Address: "0xabc"}, "150", "150 atomic units of 0xabc"},
	} {
		if got := amount(t, row.token, row.units).String(); got != row.want {
			t.Errorf("%s units: %s, want %s", row.units, got, row.want)
		}
	}
}

func TestAmountsCannotBeChangedFromOutside(t *testing.T) {
	n := big.NewInt(10000)
	a, err := payment.NewAmount(n, dollar)
	if err != nil {
		t.Fatal(err)
	}
	n.SetInt64(1)
	a.Big().SetInt64(2)
	if a.Units() != "10000" {
		t.Errorf("the amount became %s", a.Units())
	}
}

func TestAmountsAreNeverNegativeNorBeyond256Bits(t *testing.T) {
	for _, n := range []*big.Int{big.NewInt(-1), new(big.Int).Add(maxUint256, big.NewInt(1)), new(big.Int).Neg(maxUint256)} {
		if a, err := payment.NewAmount(n, dollar); err == nil {
			t.Errorf("%s became %s", n, a)
		}
	}
	if a, err := payment.NewAmount(maxUint256, dollar); err != nil || a.Big().Cmp(maxUint256) != 0 {
		t.Errorf("got %s, %v", a, err)
	}
}

func TestTheZeroAmountIsNothing(t *testing.T) {
	var a payment.Amount
	if !a.Zero() || a.Units() != "0" || a.Big().Sign() != 0 || a.Cmp(payment.Amount{}) != 0 {
		t.Errorf("got %s", a)
	}
}

func TestComparingAmountsOfTwoTokensPanics(t *testing.T) {
	small, large := amount(t, dollar, "1"), amount(t, dollar, "2")
	if small.Cmp(large) != -1 || large.Cmp(small) != 1 || small.Cmp(small) != 0 {
		t.Error("amounts of one token compare wrongly")
	}
	elsewhere := dollar
	elsewhere.Network = "eip155:8453"
	defer func() {
		if recover() == nil {
			t.Error("dollars on two networks were compared")
		}
	}()
	small.Cmp(amount(t, elsewhere, "1"))
}
