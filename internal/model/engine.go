package model

import (
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/ledger"
)

// engine takes the steps of the settlement engine of process p: what
// settle.Engine does in adopt, examine, take and send.
func (m *machine) engine(s *state, p uint8, emit emitter) {
	own := &s.processes[p]
	if own.down == 1 {
		return
	}
	r := s.view(p)
	if m.c.Instances > 1 && states[r.state].Working() && r.lapsed == 1 && s.stored == *r {
		n := *s
		free := *r
		m.to(&free, ledger.Released)
		free.by = 0
		n.write(p, free)
		emit(&n, fair, "ledger: Recover releases a lapsed claim")
	}
	if m.c.Remote != Embedded {
		return
	}
	if own.watch == 0 {
		if states[r.state].Broadcast() && !states[r.state].Resting() || r.is(ledger.Released) {
			n := *s
			n.processes[p].watch = 1
			emit(&n, fair, "engine: adopts the open payment")
		}
		return
	}
	if own.sight != 0 {
		m.act(s, p, emit)
		return
	}
	for _, sight := range m.sights(s, r) {
		d := m.decide(r, sight)
		if d.to == states[r.state] && d.found == (r.included == 1) && (!d.resend || !m.useful(s, r)) {
			continue // it would change nothing
		}
		n := *s
		n.processes[p].sight = sight
		emit(&n, fair, "engine: looks at the chain")
	}
	if m.c.Bump && r.attempts == 1 && (r.is(ledger.Intent) || r.is(ledger.Sent)) {
		n := *s
		n.processes[p].bump = 1
		if own.bump == 0 {
			emit(&n, fault, "engine: signs a replacement with a higher fee")
			return
		}
		n.processes[p].bump = 0
		more := *r
		more.attempts++
		n.write(p, more)
		emit(&n, fair, "engine: stores the replacement")
	}
}

// useful reports whether sending r's transaction again can change anything.
func (m *machine) useful(s *state, r *record) bool {
	return r.attempts > 0 && s.mined == 0 && s.pool&(1<<(r.attempts-1)) == 0
}

// conclusions name the steps that follow from what the engine has seen.
var conclusions = func() (names [len(states)]string) {
	for i, s := range states {
		names[i] = "engine: concludes " + string(s)
	}
	return names
}()

// act does what follows from what the engine has seen.
func (m *machine) act(s *state, p uint8, emit emitter) {
	n := *s
	sight := n.processes[p].sight
	n.processes[p].sight = 0
	r := *n.view(p)
	d := m.decide(&r, sight)
	resend := d.resend && m.useful(s, &r)
	if d.to != states[r.state] || d.found != (r.included == 1) {
		before := r.state
		r.included = 0
		if d.found {
			r.included = 1
		}
		if d.to != states[r.state] {
			m.to(&r, d.to)
		}
		if settle.Forgettable(states[before], d.to) || m.v.Forgets && d.to.Broadcast() {
			m.later(&n, p, r)
		} else {
			n.write(p, r)
		}
		if d.to.Resting() {
			n.processes[p].watch = 0
		}
	}
	if resend {
		m.broadcast(&n, p, fair, emit)
		return
	}
	emit(&n, fair, conclusions[r.state])
}

// broadcast sends the latest attempt of process p's record. kind is that of
// the step in which all goes well.
func (m *machine) broadcast(s *state, p uint8, kind stepKind, emit emitter) {
	r := *s.view(p)
	if r.attempts == 0 {
		emit(s, kind, "engine: has nothing to send")
		return
	}
	bit := uint8(1) << (r.attempts - 1)
	s.sent |= bit
	reached := func(n *state) {
		if n.mined == 0 {
			n.pool |= bit
		}
	}
	acked := func(n *state) {
		if r.is(ledger.Intent) {
			sent := r
			m.to(&sent, ledger.Sent)
			m.later(n, p, sent)
		}
	}
	n := *s
	reached(&n)
	acked(&n)
	emit(&n, kind, "engine: broadcasts, a node has the transaction")
	n = *s
	reached(&n)
	emit(&n, fault, "engine: broadcasts, a node has the transaction and answers with an error")
	n = *s
	acked(&n)
	emit(&n, fault, "engine: broadcasts, the node takes the transaction and loses it")
	emit(s, fault, "engine: broadcasts, the transaction is lost on the way")
}

// faults takes the steps that nobody wants: crashes, pauses, restarts.
func (m *machine) faults(s *state, emit emitter) {
	down := 0
	for p := range uint8(m.c.Instances) { //nolint:gosec // 1 or 2
		own := &s.processes[p]
		if own.down == 1 {
			down++
			n := *s
			m.restart(&n, p)
			emit(&n, fair, "process restarts, and recovers")
			continue
		}
		if own.ahead > 0 {
			n := *s
			n.flush(p)
			emit(&n, fair, "disk: stores what was written later")
		}
		if int(s.crash) < m.c.Crashes && m.started(s) {
			n := *s
			n.crash++
			m.note(s, p)
			m.kill(&n, p)
			if m.c.Instances == 1 {
				m.restart(&n, p) // nobody can tell when
			}
			emit(&n, fault, "process is KILLED, and restarts")
		}
		if own.watch == 1 && own.sight != 0 {
			n := *s
			n.processes[p].sight, n.processes[p].bump = 0, 0
			m.points |= 1 << 13
			emit(&n, fault, "process reloads its configuration: another engine takes over")
		}
	}
	if m.c.Instances > 1 && down == 0 && int(s.crash) < m.c.Crashes && m.started(s) {
		n := *s
		n.crash++
		for p := range uint8(m.c.Instances) { //nolint:gosec // 1 or 2
			m.note(s, p)
			m.kill(&n, p)
		}
		emit(&n, fault, "POWER LOSS")
	}
	r := &s.stored
	if r.leased() && r.lapsed == 0 {
		n := *s
		lapse := func(r *record) {
			if r.leased() {
				r.lapsed = 1
			}
		}
		n.records(lapse)
		switch {
		case r.by == 0:
			emit(&n, fair, "clock: the lease of a dead owner runs out")
		case int(s.pauses) < m.c.Pauses:
			n.pauses++
			n.requests[r.by-1].flags |= fOverdue
			emit(&n, fault, "process is PAUSED: its lease runs out while it works")
		}
	}
}

// started reports whether the payment has been presented.
func (m *machine) started(s *state) bool {
	for i := range s.requests {
		if s.requests[i].pc != idle || s.requests[i].last != lNever {
			return true
		}
	}
	return false
}

// kill ends process p. Its requests lose their connections.
func (m *machine) kill(s *state, p uint8) {
	for i := range s.requests {
		if q := &s.requests[i]; q.pc != idle && q.process == p {
			m.end(s, i, lAgain)
		}
	}
	s.processes[p] = process{down: 1}
}

// restart starts process p again: ledger.Recover, then the engine's adopt.
func (m *machine) restart(s *state, p uint8) {
	s.processes[p].down = 0
	r := s.stored
	if states[r.state].Working() && (m.c.Instances == 1 || r.lapsed == 1) && !m.v.Naive {
		m.to(&r, ledger.Released)
		r.by = 0
		s.write(p, r)
	}
	if m.c.Remote == Embedded && (r.is(ledger.Released) || states[r.state].Broadcast() && !states[r.state].Resting()) {
		s.processes[p].watch = 1
	}
}

// crashPoints are those of THREATS 2.5, counted from 1, by where a handler
// stands.
var crashPoints = [...]uint8{
	atClaim: 1, atUpstream: 2, atAnswer: 3, atSettle: 4, atIntend: 13, atSend: 5, atAsk: 5,
	atWaitReply: 6, atPaid: 9, atStream: 10, atNote: 11, atMark: 11,
}

// note marks the crash points of THREATS 2.5 at which process p is killed in
// s.
func (m *machine) note(s *state, p uint8) {
	r := &s.stored
	for i := range s.requests {
		q := &s.requests[i]
		if q.pc == idle || q.process != p {
			continue
		}
		if at := crashPoints[q.pc]; at != 0 {
			m.points |= 1 << (at - 1)
		}
	}
	known := r.is(ledger.Intent) || r.is(ledger.Sent)
	if r.is(ledger.Intent) && s.sent != 0 {
		m.points |= 1 << 5
	}
	if known && s.paid() {
		m.points |= 1 << 6
	}
	if r.is(ledger.Included) {
		m.points |= 1 << 7
	}
	if s.processes[p].bump == 1 {
		m.points |= 1 << 11
	}
	if s.processes[p].ahead > 0 {
		m.points |= 1 << 14 // what was not synced is lost, as by losing power
	}
}
