package meter

import (
	"encoding/json"
	"errors"
	"math/big"
	"strings"

	"github.com/tollgate402/tollgate/payment"
)

var (
	errSaid     = errors.New("it must be atomic units in plain digits, a percentage of the maximum such as 12.5%, or dollars such as $0.05")
	errTooMuch  = errors.New("it is more than the maximum that the payer has signed")
	errNoDollar = errors.New("it is in dollars, but the token is not known to be worth one")
)

// ParseSaid reads what an upstream says that an answer costs, of at most most:
//
//	1858                 atomic units
//	33.33%               of the maximum, rounded down, with up to two decimals
//	$0.05                dollars, rounded down to what the token can be divided into
//	{"amount":"1858"}    any of these, as the reference's Settlement-Overrides has it
//
// Everything else is an error, and so is more than most.
func ParseSaid(s string, most payment.Amount) (*big.Int, error) {
	s = strings.TrimSpace(s)
	if strings.HasPrefix(s, "{") {
		var doc struct {
			Amount *string `json:"amount"`
		}
		if json.Unmarshal([]byte(s), &doc) != nil || doc.Amount == nil {
			return nil, errors.New(`it is no JSON object like {"amount":"1858"}`)
		}
		s = *doc.Amount
	}
	units, err := parseSaid(s, most)
	if err != nil {
		return nil, err
	}
	if units.Cmp(most.Big()) > 0 {
		return nil, errTooMuch
	}
	return units, nil
}

func parseSaid(s string, most payment.Amount) (*big.Int, error) {
	switch {
	case strings.HasSuffix(s, "%"):
		hundredths, ok := scaled(strings.TrimSuffix(s, "%"), 2, false)
		if !ok {
			return nil, errSaid
		}
		hundredths.Mul(hundredths, most.Big())
		return hundredths.Quo(hundredths, big.NewInt(10_000)), nil
	case strings.HasPrefix(s, "$"):
		if !most.Token().Dollar {
			return nil, errNoDollar
		}
		units, ok := scaled(s[1:], int(most.Token().Decimals), true)
		if !ok {
			return nil, errSaid
		}
		return units, nil
	}
	units, err := payment.ParseUint256(s)
	if err != nil {
		return nil, errSaid
	}
	return units, nil
}

// scaled reads a decimal number and multiplies it by ten as often as decimals
// says. Further decimals are cut off, or without cut refused.
func scaled(s string, decimals int, cut bool) (*big.Int, bool) {
	whole, fraction, point := strings.Cut(s, ".")
	if !digits(whole) || point && !digits(fraction) || len(s) > 78 {
		return nil, false
	}
	if len(fraction) > decimals {
		if !cut {
			return nil, false
		}
		fraction = fraction[:decimals]
	}
	return new(big.Int).SetString(whole+fraction+strings.Repeat("0", decimals-len(fraction)), 10)
}

func digits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}
