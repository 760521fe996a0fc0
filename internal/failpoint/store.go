//go:build failpoint

package failpoint

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// A store tells from the commits that pass how far payments have come.
type store struct {
	ledger.Store
	trap *trap

	mu   sync.Mutex
	seen map[ledger.Key]string // guarded by mu: the last state of each payment that has passed
	back [][]ledger.Write      // guarded by mu: what Later keeps back for K14

	lost chan struct{} // closed when the power is lost
}

func newStore(s ledger.Store, t *trap) *store {
	return &store{Store: s, trap: t, seen: map[ledger.Key]string{}, lost: make(chan struct{})}
}

// A move is what one write says about a payment, or about a nonce that
// carries several.
type move struct {
	key      ledger.Key
	from, to string // states of a payment; equal where only something else changes
	found    bool   // the transfer is in a block
	attempts int    // how many transactions were signed for it
}

// moves reads what writes are about.
func (s *store) moves(ctx context.Context, writes []ledger.Write) []move {
	var list []move
	for _, w := range writes {
		payment := strings.HasPrefix(string(w.Key), "pay/")
		if w.Value == nil || !payment && !strings.HasPrefix(string(w.Key), "slot/") {
			continue
		}
		var doc struct {
			State    string            `json:"state"`
			Included json.RawMessage   `json:"included"`
			Attempts []json.RawMessage `json:"attempts"`
		}
		if json.Unmarshal(w.Value, &doc) != nil {
			continue
		}
		m := move{key: w.Key, found: doc.Included != nil, attempts: len(doc.Attempts)}
		if payment {
			m.from, m.to = s.stateOf(ctx, w.Key), doc.State
		}
		list = append(list, m)
	}
	return list
}

// stateOf returns the state that a payment has before the commit at hand.
func (s *store) stateOf(ctx context.Context, k ledger.Key) string {
	s.mu.Lock()
	state, known := s.seen[k]
	s.mu.Unlock()
	if known {
		return state
	}
	e, err := s.Get(ctx, k)
	if err != nil {
		return ""
	}
	var doc struct {
		State string `json:"state"`
	}
	_ = json.Unmarshal(e.Value, &doc) // what cannot be read has no state
	return doc.State
}

func (s *store) note(moves []move) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range moves {
		if m.to != "" {
			s.seen[m.key] = m.to
		}
	}
}

// The states that tell the points apart, as they are stored.
const (
	reserved  = "RESERVED"
	executing = "EXECUTING"
	executed  = "EXECUTED"
	intent    = "INTENT"
	included  = "INCLUDED"
	settled   = "SETTLED"
	archived  = "ARCHIVED"
)

// before fires at the points that lie before a commit.
func (s *store) before(ctx context.Context, moves []move, writes []ledger.Write) {
	for _, m := range moves {
		if m.from == m.to {
			continue
		}
		switch m.to {
		case reserved, executing:
			s.trap.hit(Verified)
		case executed:
			s.trap.hit(Executing)
		case intent:
			if s.trap.due(Allocating) {
				s.torn(writes)
			}
		case included, settled:
			if m.found && m.from != included && m.from != settled && m.from != archived {
				s.trap.hit(Included)
			}
			if m.to == settled && m.from != archived && s.trap.due(Settled) {
				_ = s.Store.Commit(ctx) // what was handed to Later before gets on disk
				s.trap.spring()
			}
		}
	}
}

// torn dies while the store is at work on a commit.
func (s *store) torn(writes []ledger.Write) {
	go func() { _ = s.Store.Commit(context.Background(), writes...) }() // ends with the process
	time.Sleep(rand.N(3 * time.Millisecond))                            //nolint:gosec // no secret
	s.trap.spring()
}

// after fires at the points that lie after a commit.
func (s *store) after(moves []move) {
	for _, m := range moves {
		if m.attempts > 1 {
			s.trap.hit(Replaced)
		}
		if m.from == m.to {
			continue
		}
		switch m.to {
		case reserved, executing:
			s.trap.hit(Claimed)
		case executed:
			s.trap.hit(Executed)
		case intent:
			s.trap.hit(Intended)
		}
	}
}

// Commit implements ledger.Store.
func (s *store) Commit(ctx context.Context, writes ...ledger.Write) error {
	moves := s.moves(ctx, writes)
	s.before(ctx, moves, writes)
	if s.trap.point == PowerLost {
		s.power(len(moves) > 0)
	}
	err := s.Store.Commit(ctx, writes...)
	if err == nil {
		s.note(moves)
		s.after(moves)
	}
	return err
}

// Later implements ledger.Store.
func (s *store) Later(writes ...ledger.Write) {
	ctx := context.Background()
	moves := s.moves(ctx, writes)
	s.before(ctx, moves, writes)
	s.note(moves)
	if s.trap.point != PowerLost {
		s.Store.Later(writes...)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	copied := make([]ledger.Write, len(writes))
	for i, w := range writes {
		if w.Value != nil {
			w.Value = append([]byte{}, w.Value...)
		}
		copied[i] = w
	}
	s.back = append(s.back, copied)
}

// blackout is how long commits pile up before the power is gone.
const blackout = 20 * time.Millisecond

// power loses what nobody was promised, if it is time to; otherwise it sends
// on what was kept back.
func (s *store) power(counts bool) {
	if counts && s.trap.due(PowerLost) {
		close(s.lost)
		time.Sleep(blackout)
		s.trap.spring()
	}
	select {
	case <-s.lost:
		select {} // for the little that is left
	default:
	}
	s.release()
}

func (s *store) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, writes := range s.back {
		s.Store.Later(writes...)
	}
	s.back = nil
}

// Close implements ledger.Store.
func (s *store) Close() error {
	s.release()
	return s.Store.Close()
}
