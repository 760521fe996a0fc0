package model

import (
	"fmt"
	"slices"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A stepKind says whether a step is one that happens if nothing goes wrong.
type stepKind uint8

const (
	fair stepKind = iota
	fault
)

// An emitter is given each state that can follow.
type emitter func(next *state, kind stepKind, what string)

// A machine is the rules of one exploration.
type machine struct {
	c      Config
	v      Variant
	ledger *ledger.Ledger // for Free and Elsewhere alone

	decided [len(states)][2][256]decision
	scratch [2]uint8

	steps  [len(states)][len(states)]int // how often the money took a step
	points uint16                        // crash points that were reached, a bit each

	broken  [violations]bool // by the step that is emitted next
	anyway  bool             // one of broken is set
	order   [3]int           // where canonical took the requests from
	swapped bool             // canonical has exchanged the processes

	actor int // whose steps are emitted: a request from 0, -1-p for a process, none otherwise
}

const nobody = 100

func newMachine(c Config, v Variant) *machine {
	open := ledger.New
	if c.Instances > 1 {
		open = ledger.NewShared
	}
	return &machine{c: c, v: v, ledger: open(nil, "one", func() time.Time { return present })}
}

// violate says that the step that is emitted next breaks v.
func (m *machine) violate(v Violation) { m.broken[v], m.anyway = true, true }

// next emits all states that follow s.
func (m *machine) next(s *state, emit emitter) {
	m.actor = nobody
	m.chain(s, emit)
	m.faults(s, emit)
	for p := range uint8(m.c.Instances) { //nolint:gosec // 1 or 2
		if !m.v.Naive {
			m.actor = -1 - int(p)
			m.engine(s, p, emit)
		}
	}
	for i := range m.c.Requests {
		m.actor = i
		m.request(s, i, emit)
	}
}

// check finds what is wrong with s whatever led to it.
func (m *machine) check(s *state) Violation {
	if m.v.Naive {
		return NoViolation
	}
	bad := false
	s.records(func(r *record) {
		bad = bad || r.is(ledger.Dead) && !s.dead() || r.is(ledger.Released) && m.alive(s)
	})
	if !states[s.stored.state].Broadcast() && !s.stored.is(ledger.Dead) && m.alive(s) {
		bad = true // a transaction without a claim on disk
	}
	if bad {
		return Lost
	}
	return NoViolation
}

// atRest finds what is wrong with s, from which nothing goes on by itself.
func (m *machine) atRest(s *state) Violation {
	if m.v.Naive {
		if s.paid() && s.got == 0 && m.started(s) {
			return Lost
		}
		return NoViolation
	}
	if s.stored.is("") || m.c.Remote == Forgetful || m.c.Remote == Idempotent && s.use == paidOther {
		return NoViolation
	}
	if states[s.stored.state].Paid() != s.paid() {
		return Differs
	}
	return NoViolation
}

// content reports whether each request that was made has its answer.
func (s *state) content() bool {
	for i := range s.requests {
		if q := &s.requests[i]; q.pc != idle || q.last == lAgain {
			return false
		}
	}
	return true
}

// A Result is what an exploration found.
type Result struct {
	States int
	Steps  int // in the longest of the shortest ways to a state
	Took   time.Duration
	Capped bool // there are more states than were allowed

	// Traces has a shortest trace to each violation.
	Traces map[Violation][]string

	// Taken counts how often the money took each step of the ledger's table;
	// Points are the crash points of which a process was killed.
	Taken  map[[2]ledger.State]int
	Points []int
}

// Violations lists the violations that were found.
func (r *Result) Violations() []Violation {
	var list []Violation
	for v := range r.Traces {
		list = append(list, v)
	}
	slices.Sort(list)
	return list
}

// Explore visits every state that can be reached, up to limit of them. With
// enough, it stops when all of those violations have been found.
func Explore(c Config, v Variant, limit int, enough ...Violation) *Result {
	begun := time.Now()
	m := newMachine(c, v)
	var (
		all     = []state{{}}
		parents = []uint32{0}
		depths  = []uint16{0}
		index   = newIndex()
		edges   []uint32 // fair ones, in the order of their origins
		ends    []uint32 // where those of each state end
		found   = map[Violation]uint32{}
		from    = map[Violation]uint32{}
	)
	res := &Result{Traces: map[Violation][]string{}, Taken: map[[2]ledger.State]int{}}
	index.find(all, &all[0])
	index.add(0)
	live := !v.Naive && c.Remote != Forgetful
	satisfied := func() bool {
		for _, v := range enough {
			if _, ok := found[v]; !ok {
				return false
			}
		}
		return len(enough) > 0
	}
	for at := 0; at < len(all) && !satisfied(); at++ {
		s := all[at]
		moved := false
		m.next(&s, func(n *state, kind stepKind, _ string) {
			to := *n
			m.overtake(&s, &to)
			m.canonical(&to)
			broken, anyway := m.broken, m.anyway
			m.broken, m.anyway = [violations]bool{}, false
			if to == s && !anyway {
				return
			}
			moved = moved || kind == fair && to != s
			k, known := index.find(all, &to)
			if !known {
				if len(all) >= limit {
					res.Capped = true
					return
				}
				k = uint32(len(all)) //nolint:gosec // limit is far below
				index.add(k)
				all = append(all, to)
				parents = append(parents, uint32(at)) //nolint:gosec // as above
				depths = append(depths, depths[at]+1)
				if bad := m.check(&to); bad != NoViolation {
					broken[bad] = true
				}
			}
			for v, b := range broken {
				if _, had := found[Violation(v)]; b && !had {
					found[Violation(v)], from[Violation(v)] = k, uint32(at) //nolint:gosec // as above
				}
			}
			if kind == fair && to != s && live {
				edges = append(edges, k)
			}
		})
		ends = append(ends, uint32(len(edges))) //nolint:gosec // a few for each state
		if !moved {
			if bad := m.atRest(&s); bad != NoViolation {
				if _, had := found[bad]; !had {
					found[bad], from[bad] = uint32(at), parents[at] //nolint:gosec // as above
				}
			}
		}
	}
	if live && !res.Capped && !satisfied() {
		if k, ok := m.stuck(all, edges, ends); ok {
			found[Stuck], from[Stuck] = k, parents[k]
		}
	}
	res.States = len(all)
	res.Steps = int(depths[len(depths)-1])
	for i := range m.steps {
		for j, n := range m.steps[i] {
			if n > 0 {
				res.Taken[[2]ledger.State{states[i], states[j]}] = n
			}
		}
	}
	for k := range 15 {
		if m.points&(1<<k) != 0 {
			res.Points = append(res.Points, k)
		}
	}
	for v, k := range found {
		path := []uint32{k}
		for at := from[v]; at != 0; at = parents[at] {
			path = append(path, at)
		}
		slices.Reverse(path)
		res.Traces[v] = m.trace(all, path, v)
	}
	res.Took = time.Since(begun)
	return res
}

// stuck returns the first state from which no fair way leads to one where
// all requests are answered. With a remote facilitator and no node of our own
// it asks that only where money has moved.
func (m *machine) stuck(all []state, edges, ends []uint32) (uint32, bool) {
	starts := make([]uint32, len(all)+1) // of the edges that lead to each state
	for _, to := range edges {
		starts[to+1]++
	}
	for i := range all {
		starts[i+1] += starts[i]
	}
	back := make([]uint32, len(edges))
	fill := slices.Clone(starts)
	begin := uint32(0)
	for at, end := range ends {
		for _, to := range edges[begin:end] {
			back[fill[to]] = uint32(at)
			fill[to]++
		}
		begin = end
	}
	good := make([]bool, len(all))
	var todo []uint32
	for i := range all {
		if all[i].content() {
			good[i] = true
			todo = append(todo, uint32(i))
		}
	}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, b := range back[starts[at]:starts[at+1]] {
			if !good[b] {
				good[b] = true
				todo = append(todo, b)
			}
		}
	}
	for i, ok := range good {
		if !ok && (m.c.Remote == Embedded || all[i].paid() && all[i].deep == 1) {
			return uint32(i), true
		}
	}
	return 0, false
}

// trace walks along a path of canonical states and tells the steps. What the
// requests and processes are called stays the same along the way.
func (m *machine) trace(all []state, path []uint32, v Violation) []string {
	var told []string
	requests, processes := [3]int{0, 1, 2}, [2]int{0, 1} // what those of the present state are called
	at := all[0]
	if path[0] == 0 {
		path = path[1:]
	}
	for i, k := range path {
		var line string
		var order [3]int
		var swapped bool
		m.next(&at, func(n *state, _ stepKind, what string) {
			broken := m.broken[v]
			m.broken, m.anyway = [violations]bool{}, false
			to := *n
			m.overtake(&at, &to)
			m.canonical(&to)
			if to != all[k] || line != "" && !(i == len(path)-1 && broken) {
				return
			}
			order, swapped = m.order, m.swapped
			line = what
			switch {
			case m.actor == nobody:
			case m.actor < 0:
				line = fmt.Sprintf("process %d %s", processes[-1-m.actor]+1, what)
			default:
				q, is := &at.requests[m.actor], &n.requests[m.actor]
				if is.pc != idle {
					q = is
				}
				line = fmt.Sprintf("request %d (%c at %d) %s", requests[m.actor]+1, 'A'+rune(max(q.resource, is.resource, 1))-1, processes[q.process]+1, what)
			}
		})
		told = append(told, line)
		requests = [3]int{requests[order[0]], requests[order[1]], requests[order[2]]}
		if swapped {
			processes[0], processes[1] = processes[1], processes[0]
		}
		at = all[k]
	}
	return told
}

// overtake has each engine forget what it saw of a record that has changed
// since: its take finds another state or another claim.
func (m *machine) overtake(before, s *state) {
	for p := range s.processes {
		if own := &s.processes[p]; own.sight != 0 && before.view(uint8(p)).state != s.view(uint8(p)).state {
			own.sight = 0
		}
	}
}

// canonical puts what can be told apart only by its number into an order:
// the requests, and the processes.
func (m *machine) canonical(s *state) {
	m.forget(s)
	m.order, m.swapped = [3]int{0, 1, 2}, false
	if m.v.Naive {
		return // the transactions are numbered like the requests
	}
	if m.c.Instances == 2 && s.processes[1].less(&s.processes[0]) {
		m.swapped = true
		s.processes[0], s.processes[1] = s.processes[1], s.processes[0]
		for i := range s.requests {
			if q := &s.requests[i]; q.pc != idle {
				q.process = 1 - q.process
			}
		}
	}
	for i := 1; i < m.c.Requests; i++ {
		for j := i; j > 0 && s.requests[j].order() < s.requests[j-1].order(); j-- {
			s.requests[j], s.requests[j-1] = s.requests[j-1], s.requests[j]
			m.order[j], m.order[j-1] = m.order[j-1], m.order[j]
			a, b := uint8(j), uint8(j+1)
			s.records(func(r *record) {
				switch r.by {
				case a:
					r.by = b
				case b:
					r.by = a
				}
			})
		}
	}
}

// forget clears what can make no difference any more.
func (m *machine) forget(s *state) {
	for i := range s.requests {
		if q := &s.requests[i]; q.last == lFinal {
			*q = request{last: lFinal}
		}
	}
	if m.v.Naive {
		return
	}
	s.own = 0
	if m.c.Until == payment.Finalized {
		s.seen = 0
	}
	if s.deep == 1 || s.clock == gone {
		s.empty, s.cancel = 2, 1 // neither matters
		s.pool, s.sent = 0, min(s.sent, 1)
		s.mined = s.sent
		if s.clock == gone {
			s.reorgs = uint8(m.c.Reorgs) //nolint:gosec // 0 or 1
		}
	}
	if s.clock != live && s.empty != 1 {
		s.empty = 2
	}
	s.records(func(r *record) {
		switch states[r.state] {
		case ledger.Dead:
			r.held, r.attempts, r.included = 0, 0, 0
		case ledger.Archived:
			r.attempts = 0
		case ledger.Reserved, ledger.Executing, ledger.Executed, ledger.Intent, ledger.Sent, ledger.Included, ledger.Settled, ledger.Released,
			ledger.RefundDue, ledger.Refunded, ledger.WrittenOff: // the last three are not reached here
		}
	})
}

func (q *request) order() uint64 {
	return uint64(q.pc) | uint64(q.resource)<<8 | uint64(q.process)<<16 | uint64(q.flags)<<24 | uint64(q.way)<<32 | uint64(q.reply)<<40 | uint64(q.last)<<48
}

// less orders processes without looking at who has which claim, which
// depends on the order of the requests.
func (p *process) less(o *process) bool {
	a, b := p.order(), o.order()
	if a[0] != b[0] {
		return a[0] < b[0]
	}
	return a[1] < b[1]
}

func (p *process) order() [2]uint64 {
	r := &p.later
	return [2]uint64{
		uint64(p.down) | uint64(p.watch)<<8 | uint64(p.sight)<<16 | uint64(p.bump)<<24 | uint64(p.memo)<<32 | uint64(p.ahead)<<40,
		uint64(r.state) | uint64(r.delivery)<<8 | uint64(r.resource)<<16 | uint64(r.held)<<24 | uint64(r.lapsed)<<32 | uint64(r.attempts)<<40 | uint64(r.included)<<48,
	}
}
