package facilitator

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
)

// Strikes remember whose payments looked good and then failed on the chain, at
// the cost of the lane, and refuse them for a while. The zero value is ready
// for use; the fields are not changed afterwards. Its methods are safe for
// concurrent use, and it forgets everything when the process ends.
type Strikes struct {
	// Payer is how many strikes within Window a payer is refused after, and
	// Code how many a contract's code is, of whomever. Defaults: 2 and 8.
	Payer, Code int

	// Window is how long a strike counts, and Refusal how long is refused after
	// the last one. Defaults: one hour each.
	Window, Refusal time.Duration

	// Most is how many payers, and how many codes, are remembered. Beyond it
	// those struck longest ago are forgotten. Default: 16384.
	Most int

	mu     sync.Mutex
	payers map[Suspect]*past // guarded by mu: by network and payer
	codes  map[Suspect]*past // guarded by mu: by network and code
}

// A Suspect is who is behind a payment.
type Suspect struct {
	Network payment.Network
	Payer   common.Address

	// Code is the hash of the code at the payer, which for a delegated account
	// names the delegate. It is zero for a plain account, and as long as the
	// code is not known.
	Code common.Hash
}

// SuspectOf returns the suspect that a payer is, with the code at its account.
func SuspectOf(n payment.Network, payer common.Address, code []byte) Suspect {
	s := Suspect{Network: n, Payer: payer}
	if len(code) > 0 {
		s.Code = crypto.Keccak256Hash(code)
	}
	return s
}

// A past is what is remembered of a payer or a code.
type past struct {
	strikes []time.Time // the last ones, the oldest first
	failed  int         // all of them
	paid    int         // payments that went well since the first of them
}

// Check returns an *payment.InvalidError if payments of a suspect are refused
// at a time. It asks nobody.
func (s *Strikes) Check(at time.Time, who Suspect) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	refuse := func(whose string, until time.Time) error {
		return &payment.InvalidError{
			Reason: payment.EVMSimulationFailed, Payer: who.Payer.Hex(),
			Message: fmt.Sprintf("payments of %s looked good and failed on the chain: none is taken before %s", whose, until.UTC().Format(time.RFC3339)),
		}
	}
	if until, refused := s.refused(s.payers[who.payer()], cmp.Or(s.Payer, 2), at); refused {
		return refuse("this payer", until)
	}
	if who.Code == (common.Hash{}) {
		return nil
	}
	r := s.codes[who.code()]
	// Somebody could strike a good wallet's code on purpose, by moving away
	// the money. It is refused only if it fails more often than it pays.
	if until, refused := s.refused(r, cmp.Or(s.Code, 8), at); refused && r.paid < r.failed {
		return refuse("wallets with this code", until)
	}
	return nil
}

// Strike notes that a payment of a suspect failed on the chain, or in a second
// simulation, after it had been found good. It is not for payments that were
// never found good, which cost nothing, nor for those that somebody else has
// settled before us.
func (s *Strikes) Strike(at time.Time, who Suspect) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.payers = s.strike(s.payers, who.payer(), cmp.Or(s.Payer, 2), at)
	if who.Code != (common.Hash{}) {
		s.codes = s.strike(s.codes, who.code(), cmp.Or(s.Code, 8), at)
	}
}

// Paid notes that a payment of a suspect went well. That is to the credit of
// its code. The payer's strikes stay: a payment now and then does not make up
// for what others cost.
func (s *Strikes) Paid(who Suspect) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.codes[who.code()]; r != nil && who.Code != (common.Hash{}) {
		r.paid++
	}
}

// payer and code are what a suspect is remembered by.
func (w Suspect) payer() Suspect { return Suspect{Network: w.Network, Payer: w.Payer} }
func (w Suspect) code() Suspect  { return Suspect{Network: w.Network, Code: w.Code} }

// refused reports whether one that is refused after a number of strikes is so
// at a time, and until when. The caller holds mu.
func (s *Strikes) refused(r *past, after int, at time.Time) (until time.Time, refused bool) {
	if r == nil || len(r.strikes) < after {
		return time.Time{}, false
	}
	last := r.strikes[len(r.strikes)-1]
	until = last.Add(cmp.Or(s.Refusal, time.Hour))
	within := last.Sub(r.strikes[len(r.strikes)-after]) <= cmp.Or(s.Window, time.Hour)
	return until, within && at.Before(until)
}

// strike adds a strike to one of the two lists, which it returns. The caller
// holds mu.
func (s *Strikes) strike(list map[Suspect]*past, of Suspect, keep int, at time.Time) map[Suspect]*past {
	if list == nil {
		list = map[Suspect]*past{}
	}
	r := list[of]
	if r != nil && s.stale(r, at) {
		r = nil
	}
	if r == nil {
		if _, known := list[of]; !known && len(list) >= cmp.Or(s.Most, 1<<14) {
			s.forget(list, at)
		}
		r = &past{}
		list[of] = r
	}
	r.failed++
	r.strikes = append(r.strikes, at)
	if len(r.strikes) > keep {
		r.strikes = slices.Delete(r.strikes, 0, len(r.strikes)-keep)
	}
	return list
}

// stale reports whether nothing follows from a past any more.
func (s *Strikes) stale(r *past, at time.Time) bool {
	last := r.strikes[len(r.strikes)-1]
	return at.Sub(last) > max(cmp.Or(s.Window, time.Hour), cmp.Or(s.Refusal, time.Hour))
}

// forget makes room: it drops what is stale, and of the rest an eighth, that
// struck longest ago. The caller holds mu.
func (s *Strikes) forget(list map[Suspect]*past, at time.Time) {
	var left []Suspect
	for key, r := range list {
		if s.stale(r, at) {
			delete(list, key)
			continue
		}
		left = append(left, key)
	}
	if len(left) < cmp.Or(s.Most, 1<<14) {
		return
	}
	last := func(key Suspect) time.Time { return list[key].strikes[len(list[key].strikes)-1] }
	slices.SortFunc(left, func(a, b Suspect) int { return last(a).Compare(last(b)) })
	for _, key := range left[:len(left)/8+1] {
		delete(list, key)
	}
}
