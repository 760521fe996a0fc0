// Package meter computes what an answer costs from what is in it: its bytes,
// its events, the time that it takes, numbers in its JSON, or what the
// upstream says. A Tariff has the prices, a Tap counts while the answer
// flows by.
//
// It does no I/O and reads no clock. All arithmetic is exact; what is charged
// is rounded up to one atomic unit, once, at the end, and is never above the
// maximum that the payer has signed.
package meter

import (
	"errors"
	"fmt"
	"math/big"
	"time"
)

// A Quantity is something of which there can be more or less in an answer.
type Quantity int

// What can be counted.
const (
	Bytes   Quantity = iota // of the body, as they are passed on
	Events                  // server-sent events with data, but for [DONE]; lines of NDJSON
	Seconds                 // from the request until the end of the answer
	Field                   // the number at a path of the body's JSON
)

// A Tariff says what an answer costs: a base, and the rates on top of it. It
// must not change once it is in use.
type Tariff struct {
	// Base is charged for every answer that is begun, in atomic units. Nil is
	// nothing.
	Base *big.Rat

	Rates []Rate

	// Header names a header in which the upstream says what the answer costs,
	// in place of the base and the rates. It never reaches the payer. Empty
	// means that the upstream has no say.
	Header string
}

// A Rate is the price of one quantity.
type Rate struct {
	Price *big.Rat // atomic units for one
	Of    Quantity
	Path  Path // of a Field

	// Estimate counts in place of a Field for as long as the body has not
	// said it: an answer that ends early never does. Nil counts nothing.
	Estimate *Estimate
}

// An Estimate takes a number for each event, or for each byte.
type Estimate struct {
	Number *big.Rat
	Per    Quantity // Events or Bytes
}

// MaxRates is how many rates a tariff can have.
const MaxRates = 16

// Check returns what is wrong with a tariff.
func (t *Tariff) Check() error {
	if t.Base == nil && len(t.Rates) == 0 && t.Header == "" {
		return errors.New("the tariff charges for nothing: give it a base, a rate or a header")
	}
	if len(t.Rates) > MaxRates {
		return fmt.Errorf("the tariff has %d rates, the most is %d", len(t.Rates), MaxRates)
	}
	if t.Base != nil && t.Base.Sign() < 0 {
		return errors.New("the base is negative")
	}
	for i := range t.Rates {
		r := &t.Rates[i]
		switch {
		case r.Price == nil || r.Price.Sign() < 0:
			return fmt.Errorf("rate %d has no price", i+1)
		case r.Of < Bytes || r.Of > Field:
			return fmt.Errorf("rate %d is of nothing that can be counted", i+1)
		case (r.Of == Field) != (len(r.Path) > 0):
			return fmt.Errorf("rate %d: a field, and nothing else, has a path", i+1)
		case r.Estimate != nil && (r.Of != Field || r.Estimate.Per != Events && r.Estimate.Per != Bytes || r.Estimate.Number == nil || r.Estimate.Number.Sign() < 0):
			return fmt.Errorf("rate %d has an estimate that cannot be counted", i+1)
		}
	}
	return nil
}

// reads reports whether the tariff depends on more of a body than its length.
func (t *Tariff) reads() bool {
	for i := range t.Rates {
		if r := &t.Rates[i]; r.Of == Field || r.Of == Events {
			return true
		}
	}
	return false
}

// A Usage is what has been counted of an answer. The zero Usage is nothing.
type Usage struct {
	Bytes  int64
	Events int64

	// Fields has what the body last said of each rate's field, by the rates'
	// order; nil where it has said nothing.
	Fields []*big.Rat

	// Said is what the upstream says that the answer costs, in atomic units,
	// or nil.
	Said *big.Int
}

// Charge returns what an answer costs of which so much has been counted, and
// that has taken so long, in atomic units: at most most.
func (t *Tariff) Charge(u *Usage, took time.Duration, most *big.Int) *big.Int {
	sum := t.sum(u, took)
	// Rounded up: the remainder of a positive fraction is positive.
	charge, rest := new(big.Int).QuoRem(sum.Num(), sum.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		charge.Add(charge, big.NewInt(1))
	}
	if charge.Cmp(most) > 0 {
		charge.Set(most)
	}
	return charge
}

// Spent reports whether so much costs more than most: what follows would not
// be paid.
func (t *Tariff) Spent(u *Usage, took time.Duration, most *big.Int) bool {
	return t.sum(u, took).Cmp(new(big.Rat).SetInt(most)) > 0
}

// sum returns the price, neither rounded nor capped.
func (t *Tariff) sum(u *Usage, took time.Duration) *big.Rat {
	if u.Said != nil {
		return new(big.Rat).SetInt(u.Said)
	}
	sum := new(big.Rat)
	if t.Base != nil {
		sum.Set(t.Base)
	}
	for i := range t.Rates {
		r := &t.Rates[i]
		if n := r.count(u, i, took); n.Sign() > 0 {
			sum.Add(sum, n.Mul(n, r.Price))
		}
	}
	return sum
}

// count returns how much there is of what a rate is of. The caller may change
// the result.
func (r *Rate) count(u *Usage, i int, took time.Duration) *big.Rat {
	switch r.Of {
	case Bytes:
		return new(big.Rat).SetInt64(u.Bytes)
	case Events:
		return new(big.Rat).SetInt64(u.Events)
	case Seconds:
		return big.NewRat(max(int64(took), 0), int64(time.Second))
	case Field:
	}
	if i < len(u.Fields) && u.Fields[i] != nil {
		return new(big.Rat).Set(u.Fields[i])
	}
	n := new(big.Rat)
	switch e := r.Estimate; {
	case e == nil:
	case e.Per == Events:
		n.Mul(n.SetInt64(u.Events), e.Number)
	default:
		n.Mul(n.SetInt64(u.Bytes), e.Number)
	}
	return n
}
