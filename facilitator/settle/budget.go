package settle

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// today names the day whose gas budget is spent from.
func (e *Engine) today() string { return dayOf(e.Now()) }

func dayOf(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// reserve books what a transaction may cost in the lane's state, which is
// about to be stored, and gives the lane back what its finished transactions
// did not cost. It refuses what the day's budget does not allow. The caller
// reports by done whether the state was stored; until then no other
// transaction of this engine is booked. Processes that share a ledger can
// together spend more than the budget by one transaction each.
func (e *Engine) reserve(ctx context.Context, l *lane, state *ledger.Lane, wei *big.Int) (credit *big.Int, done func(stored bool, credit *big.Int), err error) {
	if e.GasBudget == nil {
		return nil, func(bool, *big.Int) {}, nil
	}
	day := e.today()
	e.booking.Lock()
	credit = l.takeCredit(day)
	state.Book(day, new(big.Int).Neg(credit))
	total := new(big.Int).Add(state.Booked(day), wei)
	for _, other := range e.own {
		if other == l {
			continue
		}
		its, _, err := e.Ledger.Lane(ctx, e.network, other.address.Hex())
		if err != nil {
			l.giveCredit(day, credit)
			e.booking.Unlock()
			return nil, nil, err
		}
		total.Add(total, its.Booked(day))
	}
	if total.Cmp(e.GasBudget) > 0 {
		l.giveCredit(day, credit)
		e.booking.Unlock()
		return nil, nil, fmt.Errorf("with this transaction the gas of %s may cost %s wei, the budget of a day is %s: wait, or raise gas_budget", day, total, e.GasBudget)
	}
	state.Book(day, wei)
	return credit, func(stored bool, credit *big.Int) {
		if !stored {
			l.giveCredit(day, credit)
		}
		e.booking.Unlock()
	}, nil
}

// refund notes what a finished slot did not cost of what was booked for it.
// Where that is not known all of it counts as spent.
func (e *Engine) refund(s *slot) {
	receipt := s.receiptKnown()
	if e.GasBudget == nil || receipt == nil || receipt.EffectiveGasPrice == nil {
		return
	}
	stored := s.snapshot()
	booked := new(big.Int)
	for _, a := range stored.Attempts {
		cost, err := a.Cost()
		if err != nil {
			return
		}
		if cost.Cmp(booked) > 0 {
			booked = cost
		}
	}
	spent := new(big.Int).Mul(receipt.EffectiveGasPrice, new(big.Int).SetUint64(receipt.GasUsed))
	if left := booked.Sub(booked, spent); left.Sign() > 0 {
		s.lane.giveCredit(dayOf(stored.Since), left)
	}
}

// takeCredit returns what is left over of a day, and forgets it.
func (l *lane) takeCredit(day string) *big.Int {
	l.mu.Lock()
	defer l.mu.Unlock()
	credit := l.credit
	l.credit = nil
	if credit == nil || l.day != day {
		return new(big.Int)
	}
	return credit
}

func (l *lane) giveCredit(day string, wei *big.Int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.credit == nil || l.day != day {
		l.credit, l.day = new(big.Int), day
	}
	l.credit.Add(l.credit, wei)
}
