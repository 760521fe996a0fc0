package payment

import (
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// An Amount is a number of atomic units of a token: 10000 units of USDC are
// 0.01 USDC. Amounts are immutable, never negative and below 2^256. The zero
// Amount is zero of no token.
type Amount struct {
	units *big.Int // never modified; nil is zero
	token Token
}

var maxUnits = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1))

// NewAmount returns units of t.
func NewAmount(units *big.Int, t Token) (Amount, error) {
	if units.Sign() < 0 || units.Cmp(maxUnits) > 0 {
		return Amount{}, errors.New("must be between 0 and 2^256-1")
	}
	return Amount{new(big.Int).Set(units), t}, nil
}

// ParseUnits reads an amount as the wire writes it: decimal digits of atomic
// units without sign, leading zeros, fraction, exponent or blanks.
func ParseUnits(s string, t Token) (Amount, error) {
	n, err := ParseUint256(s)
	if err != nil {
		return Amount{}, err
	}
	return Amount{n, t}, nil
}

// ParseUint256 reads the decimal form that the wire uses for every large
// number.
func ParseUint256(s string) (*big.Int, error) {
	const problem = "must be a decimal string without sign, leading zeros or fraction"
	if len(s) == 0 || len(s) > 78 || s[0] == '0' && len(s) > 1 {
		return nil, errors.New(problem)
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return nil, errors.New(problem)
		}
	}
	n, _ := new(big.Int).SetString(s, 10)
	if n.Cmp(maxUnits) > 0 {
		return nil, errors.New("must be below 2^256")
	}
	return n, nil
}

// ParsePrice reads a price as a seller writes it, in one of three forms:
//
//	$0.01        dollars, for tokens worth one
//	0.01 USDC    the token's own units
//	10000        atomic units
//
// A price that has more decimals than the token, or that is zero, is refused.
// A number with a decimal point and nothing else is refused too, because a
// reader could not tell "1" from "1.0" by a factor of a million.
func ParsePrice(s string, t Token) (Amount, error) {
	wrong := func(format string, args ...string) (Amount, error) {
		list := []any{clip(s)}
		for _, a := range args {
			list = append(list, a)
		}
		return Amount{}, fmt.Errorf("price %q "+format, list...)
	}
	var whole, fraction string
	switch number, symbol, spaced := strings.Cut(s, " "); {
	case strings.HasPrefix(s, "$"):
		if !t.Dollar {
			return wrong("is in dollars, but %s is not known to be worth one: write it as %s or in atomic units", t.Symbol, "1.50 "+t.Symbol)
		}
		whole, fraction, _ = strings.Cut(s[1:], ".")
		number = s[1:]
		if !decimal(number) {
			return wrong("is not a number after the dollar sign: write it like $0.01")
		}
	case spaced:
		if symbol != t.Symbol {
			return wrong("is in %s, but the token here is %s", clip(symbol), t.Symbol)
		}
		if !decimal(number) {
			return wrong("is not a number: write it like 0.01 %s", t.Symbol)
		}
		whole, fraction, _ = strings.Cut(number, ".")
	case strings.Contains(s, "."):
		return wrong("has no unit: write $%s or %s", clip(s), clip(s)+" "+t.Symbol)
	default:
		a, err := ParseUnits(s, t)
		if err != nil {
			return wrong("is not a price: write $0.01, 0.01 %s, or atomic units in plain digits", t.Symbol)
		}
		if a.Zero() {
			return wrong("is zero: a free route needs no x402 directive")
		}
		return a, nil
	}
	fraction = strings.TrimRight(fraction, "0")
	if len(fraction) > int(t.Decimals) {
		return wrong("is finer than %s can be divided (%s decimals)", t.Symbol, fmt.Sprint(t.Decimals))
	}
	digits := strings.TrimLeft(whole+fraction+strings.Repeat("0", int(t.Decimals)-len(fraction)), "0")
	if digits == "" {
		return wrong("is zero: a free route needs no x402 directive")
	}
	a, err := ParseUnits(digits, t)
	if err != nil {
		return wrong("is too large")
	}
	return a, nil
}

// decimal reports whether s is digits, optionally with a point and more
// digits.
func decimal(s string) bool {
	whole, fraction, point := strings.Cut(s, ".")
	digits := func(s string) bool {
		for _, c := range []byte(s) {
			if c < '0' || c > '9' {
				return false
			}
		}
		return s != ""
	}
	if len(whole) > 1 && whole[0] == '0' {
		return false
	}
	return digits(whole) && (!point || digits(fraction))
}

// Token returns what the amount is counted in.
func (a Amount) Token() Token { return a.token }

// Units returns the number of atomic units in decimal digits, the wire form.
func (a Amount) Units() string {
	if a.units == nil {
		return "0"
	}
	return a.units.String()
}

// Big returns a copy of the number of atomic units.
func (a Amount) Big() *big.Int {
	if a.units == nil {
		return new(big.Int)
	}
	return new(big.Int).Set(a.units)
}

// Zero reports whether the amount is nothing.
func (a Amount) Zero() bool { return a.units == nil || a.units.Sign() == 0 }

// Cmp compares two amounts of one token: -1, 0 or +1. It panics if the tokens
// differ, because no answer would be right.
func (a Amount) Cmp(b Amount) int {
	if !a.token.Is(b.token) {
		panic("payment: comparing amounts of different tokens: " + a.String() + " and " + b.String())
	}
	return a.Big().Cmp(b.Big())
}

// String returns the amount for people: "0.01 USDC", or atomic units where
// the token's decimals are not known.
func (a Amount) String() string {
	if a.token.Symbol == "" {
		return a.Units() + " atomic units of " + a.token.Address
	}
	digits := a.Units()
	d := int(a.token.Decimals)
	if len(digits) <= d {
		digits = strings.Repeat("0", d+1-len(digits)) + digits
	}
	whole, fraction := digits[:len(digits)-d], strings.TrimRight(digits[len(digits)-d:], "0")
	if fraction != "" {
		whole += "." + fraction
	}
	return whole + " " + a.token.Symbol
}
