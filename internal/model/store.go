package model

import (
	"fmt"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// clockwork gives ledger.Ledger.Free its time, and records their leases.
var (
	present = time.Unix(1_000, 0)
	past    = time.Unix(999, 0)
	future  = time.Unix(1_001, 0)
)

// real is r as the product keeps it.
func (r *record) real() ledger.Record {
	l := ledger.Record{State: states[r.state], Delivery: deliveries[r.delivery], Lease: future}
	if r.lapsed == 1 {
		l.Lease = past
	}
	if r.included == 1 {
		l.Included = &ledger.Inclusion{Block: block}
	}
	return l
}

func (r *record) is(s ledger.State) bool { return states[r.state] == s }

// can moves r to next by the product's table, if that has such a step.
func (m *machine) can(r *record, next ledger.State) bool {
	l := ledger.Record{State: states[r.state]}
	if l.To(next) != nil {
		return false
	}
	m.set(r, l.State)
	return true
}

// to is can for a step that must be there.
func (m *machine) to(r *record, next ledger.State) {
	if from := states[r.state]; !m.can(r, next) {
		panic(fmt.Sprintf("model: the table has no step from %q to %q", from, next))
	}
}

// force is to for variants that do what the table forbids.
func (m *machine) force(r *record, next ledger.State) { m.set(r, next) }

func (m *machine) set(r *record, next ledger.State) {
	for i, s := range states {
		if s == next {
			m.steps[r.state][i]++
			r.state = uint8(i)
		}
	}
	if !r.leased() {
		r.lapsed = 0
	}
}

// leased reports whether r's lease counts for something.
func (r *record) leased() bool {
	return states[r.state].Working() || r.delivery == delivering
}

// free asks the product whether r can be claimed.
func (m *machine) free(r *record) bool {
	l := r.real()
	return m.ledger.Free(&l)
}

// elsewhere asks the product whether r's goods may be on their way from another
// process than the one that asks.
func (m *machine) elsewhere(r *record) bool {
	l := r.real()
	l.Owner = "another"
	return m.ledger.Elsewhere(&l)
}

// view is the record as process p sees it.
func (s *state) view(p uint8) *record {
	if s.processes[p].ahead > 0 {
		return &s.processes[p].later
	}
	return &s.stored
}

// write is ledger.Update by process p: what p changed before is stored first,
// and r is on disk when it returns.
func (s *state) write(p uint8, r record) {
	s.advance(p, s.processes[p].ahead+1)
	s.stored = r
	s.drop(p)
	s.stale(func(*request) bool { return true })
	if r.delivery == delivered {
		s.served = 1
	}
}

// later is ledger.UpdateLater by process p, which waits on a shared store.
func (m *machine) later(s *state, p uint8, r record) {
	if m.c.Instances > 1 && !m.v.Lagging {
		s.write(p, r)
		return
	}
	m.lazily(s, p, r)
}

// lazily leaves r to be stored later.
func (m *machine) lazily(s *state, p uint8, r record) {
	own := &s.processes[p]
	own.later = r
	if own.ahead == 0 || m.c.Instances > 1 {
		own.ahead++
	}
	s.stale(func(q *request) bool { return q.process == p })
}

// flush stores what process p has changed.
func (s *state) flush(p uint8) {
	own := s.processes[p]
	s.advance(p, own.ahead)
	s.stored = own.later
	s.drop(p)
	s.stale(func(*request) bool { return true })
	if own.later.delivery == delivered {
		s.served = 1
	}
}

// advance takes n versions of the stored record from the lead that the other
// process has. Its first writes fail by that, and those that follow find the
// version that they ask for: a lead that is left is stored.
func (s *state) advance(p, n uint8) {
	for i := range s.processes {
		if o := &s.processes[i]; uint8(i) != p && o.ahead > 0 {
			if o.ahead <= n {
				s.drop(uint8(i))
			} else {
				o.ahead -= n
			}
		}
	}
}

// drop forgets what process p has changed and not stored.
func (s *state) drop(p uint8) {
	s.processes[p].ahead, s.processes[p].later = 0, record{}
}

func (s *state) stale(which func(*request) bool) {
	for i := range s.requests {
		if q := &s.requests[i]; which(q) {
			q.flags &^= fCurrent
		}
	}
}

// records calls f for the stored record and for those that are not yet.
func (s *state) records(f func(*record)) {
	f(&s.stored)
	for i := range s.processes {
		if s.processes[i].ahead > 0 {
			f(&s.processes[i].later)
		}
	}
}
