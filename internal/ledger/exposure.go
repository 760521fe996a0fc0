package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// An Exposure is the worth of goods that were handed over before their money
// moved.
type Exposure struct {
	Token string `json:"token"` // address
	Units string `json:"units"` // atomic units of the token
}

// Caps bound what may be exposed at one time, in atomic units of one token.
type Caps struct {
	Total    *big.Int
	PerPayer *big.Int // nil means Total
}

// ErrExposed says that a cap allows no further exposure now, or that the
// payer has caused a loss before.
var ErrExposed = errors.New("ledger: the exposure cap is reached")

// exposures counts what is exposed, so that no two requests at once can
// exceed a cap. What is counted is in the records; this is the sum of the open
// ones. On a store that several processes share there are tabs instead.
type exposures struct {
	mu      sync.Mutex
	counted bool                 // guarded by mu: the stored records have been added
	sums    map[string]*big.Int  // guarded by mu: atomic units, by token and by token and payer
	strikes map[string]struct{}  // guarded by mu: payers, by network, that have caused a loss
	known   map[payment.Key]bool // guarded by mu: the payments in sums
}

func tokenSum(r *Record, token string) string { return string(r.Network) + " " + token }
func payerSum(r *Record, token string) string { return tokenSum(r, token) + " " + r.Payer }
func strikeKey(n payment.Network, payer string) Key {
	return Key("strike/" + string(n) + "/" + payer)
}

// add changes the sums of a record by sign times what it exposes. The caller
// holds mu.
func (e *exposures) add(r *Record, x *Exposure, sign int) {
	units, ok := new(big.Int).SetString(x.Units, 10)
	if !ok || e.known[r.Key] == (sign > 0) {
		return
	}
	if sign > 0 {
		e.known[r.Key] = true
	} else {
		delete(e.known, r.Key)
		units.Neg(units)
	}
	for _, sum := range []string{tokenSum(r, x.Token), payerSum(r, x.Token)} {
		if e.sums[sum] == nil {
			e.sums[sum] = new(big.Int)
		}
		if e.sums[sum].Add(e.sums[sum], units); e.sums[sum].Sign() == 0 {
			delete(e.sums, sum)
		}
	}
}

// sum returns one of the sums. The caller holds mu and changes nothing.
func (e *exposures) sum(name string) *big.Int {
	if now := e.sums[name]; now != nil {
		return now
	}
	return new(big.Int)
}

// count adds what earlier processes have exposed, once.
func (l *Ledger) count(ctx context.Context) error {
	e := &l.exposures
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.counted {
		return nil
	}
	e.sums, e.known, e.strikes = map[string]*big.Int{}, map[payment.Key]bool{}, map[string]struct{}{}
	for r, err := range l.Open(ctx) {
		if err != nil {
			return fmt.Errorf("ledger: adding up what is exposed: %w", err)
		}
		if r.Exposed != nil {
			e.add(&r, r.Exposed, +1)
		}
	}
	for after := Key(""); ; {
		entries, err := l.store.Scan(ctx, "strike/", after, 1000)
		if err != nil {
			return fmt.Errorf("ledger: reading who has caused a loss: %w", err)
		}
		for _, s := range entries {
			e.strikes[string(s.Key)] = struct{}{}
			after = s.Key
		}
		if len(entries) == 0 {
			e.counted = true
			return nil
		}
	}
}

// exceeded reports whether units on top of what is exposed, to all payers and
// to one, are more than c allows.
func (c *Caps) exceeded(units, all, own *big.Int) bool {
	if c.Total == nil {
		return true
	}
	perPayer := c.PerPayer
	if perPayer == nil {
		perPayer = c.Total
	}
	return new(big.Int).Add(all, units).Cmp(c.Total) > 0 || new(big.Int).Add(own, units).Cmp(perPayer) > 0
}

// Expose stores, in one commit with a change of r, that x is handed over
// before its money moves, and beside it what is held until a time, unless that
// is nil; see Hold. It returns ErrExposed, having stored nothing, where that
// would exceed caps or the payer has caused a loss before. What it has stored
// counts until Covered. On a store that several processes share, it counts for
// all of them.
func (l *Ledger) Expose(ctx context.Context, r *Record, x Exposure, caps Caps, change func(*Record) error, held []byte, until time.Time) (Record, error) {
	var riders []Rider
	if held != nil {
		riders = append(riders, holding(held, until))
	}
	expose := func(now *Record) error {
		if now.Exposed != nil {
			return ErrExposed
		}
		if err := change(now); err != nil {
			return err
		}
		now.Exposed = &x
		return nil
	}
	if l.shared {
		return l.updateTabs(ctx, r.Key, caps, false, expose, riders...)
	}
	if err := l.count(ctx); err != nil {
		return Record{}, err
	}
	if err := l.exposures.reserve(r, &x, caps); err != nil {
		return Record{}, err
	}
	stored, err := l.UpdateWith(ctx, r.Key, expose, riders...)
	var failed *FailedError
	if err != nil && !errors.As(err, &failed) { // else it may be on disk
		l.exposures.mu.Lock()
		defer l.exposures.mu.Unlock()
		l.exposures.add(r, &x, -1)
	}
	return stored, err
}

// reserve adds x to the sums if caps allow it.
func (e *exposures) reserve(r *Record, x *Exposure, caps Caps) error {
	units, ok := new(big.Int).SetString(x.Units, 10)
	if !ok {
		return ErrExposed
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, struck := e.strikes[string(strikeKey(r.Network, r.Payer))]; struck || e.known[r.Key] {
		return ErrExposed
	}
	if caps.exceeded(units, e.sum(tokenSum(r, x.Token)), e.sum(payerSum(r, x.Token))) {
		return ErrExposed
	}
	e.add(r, x, +1)
	return nil
}

// Covered stores, with a change of the record, that what it exposed counts no
// longer: the money has moved, or it is written off. With lost its payer is
// never trusted in advance again.
func (l *Ledger) Covered(ctx context.Context, k payment.Key, lost bool, change func(*Record) error) (Record, error) {
	var was *Exposure
	cover := func(r *Record) error {
		if err := change(r); err != nil {
			return err
		}
		was, r.Exposed = r.Exposed, nil
		return nil
	}
	if l.shared {
		return l.updateTabs(ctx, k, Caps{}, lost, cover)
	}
	if err := l.count(ctx); err != nil {
		return Record{}, err
	}
	stored, err := l.UpdateWith(ctx, k, cover, func(_ context.Context, r *Record) ([]Write, error) {
		if !lost {
			return nil, nil
		}
		return []Write{{Key: strikeKey(r.Network, r.Payer), If: AnyVersion, Value: []byte{}}}, nil
	})
	if err != nil {
		return Record{}, err
	}
	e := &l.exposures
	e.mu.Lock()
	defer e.mu.Unlock()
	if was != nil {
		e.add(&stored, was, -1)
	}
	if lost {
		e.strikes[string(strikeKey(stored.Network, stored.Payer))] = struct{}{}
	}
	return stored, nil
}

// ExposedOn returns what is exposed at present in a token of a network, in
// atomic units.
func (l *Ledger) ExposedOn(ctx context.Context, n payment.Network, token string) (*big.Int, error) {
	if l.shared {
		if err := l.keepTabs(ctx); err != nil {
			return nil, err
		}
		b, err := readTab(ctx, l.store, totalTab(n))
		if err != nil {
			return nil, err
		}
		return b.units(token), nil
	}
	if err := l.count(ctx); err != nil {
		return nil, err
	}
	l.exposures.mu.Lock()
	defer l.exposures.mu.Unlock()
	return new(big.Int).Set(l.exposures.sum(tokenSum(&Record{Network: n}, token))), nil
}
