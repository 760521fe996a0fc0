package model

import (
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// remotely takes the steps of request i between facilitator.Journal, the
// client of a remote facilitator, and that.
func (m *machine) remotely(s *state, i int, emit emitter) {
	q := s.requests[i]
	p := q.process
	r := *s.view(p)
	n := *s
	me := &n.requests[i]
	answer := func(n *state, pc, reply uint8, kind stepKind, why string) {
		n.requests[i].pc, n.requests[i].reply = pc, reply
		emit(n, kind, why)
	}
	switch q.pc {
	case atIntendOnce:
		if !m.same(&q, &r) && !m.v.Hasty {
			m.taken(s, i, emit)
			return
		}
		if states[r.state].Broadcast() {
			if !m.v.Hasty {
				n.write(p, r) // so that whoever asked before sees it
			}
			me.pc = atAsk
			emit(&n, fair, "journal: a settle request has left before")
			return
		}
		if !m.can(&r, ledger.Intent) {
			m.again(s, i, fair, emit, "journal: the record has changed: 503")
			return
		}
		if m.v.LateIntent {
			m.lazily(&n, p, r)
		} else {
			n.write(p, r)
		}
		me.pc, me.flags = atAsk, q.flags|fFirst|fCurrent
		emit(&n, fair, "journal: INTENT")

	case atAsk:
		me.flags &^= fAccepted
		answer(&n, atWaitReply, rNone, fair, "client: the settle request arrives")
		n = *s
		answer(&n, atReply, rRefused, fault, "client: cannot connect")
		n = *s
		answer(&n, atReply, rUnknown, fault, "client: the settle request is lost on the way")

	case atWaitReply:
		reply := m.facilitator(&n, i)
		switch reply {
		case rYes:
			answer(&n, atReply, rYes, fair, "facilitator: settled")
		case rNo:
			answer(&n, atReply, rNo, fair, "facilitator: refused")
		default:
			me.flags |= fPending
			answer(&n, atAsk, rNone, fair, "facilitator: pending")
			if m.c.Remote == Forgetful {
				me.pc = atWaitReply // it answers when it knows, and waits until then
				emit(&n, fair, "facilitator: waits for its transaction")
			}
		}
		answer(&n, atReply, rUnknown, fault, "client: the answer is lost, or late")

	case atReply:
		m.noted(s, i, emit)
	}
}

// facilitator is what a remote facilitator does with a settle request, and
// what it answers.
func (m *machine) facilitator(s *state, i int) uint8 {
	q := &s.requests[i]
	const bit = 1
	if m.c.Remote == Idempotent {
		switch {
		case s.paid() && (s.deep == 1 || m.c.Until == payment.Included):
			return rYes
		case s.paid():
			return rNone
		case s.remote == 0 && s.open():
			s.remote = 1
			s.sent |= bit
			s.pool |= bit
			return rNone
		case s.remote == 0, s.dead():
			return rNo
		}
		return rNone
	}
	switch {
	case q.flags&fAccepted == 0 && s.open():
		q.flags |= fAccepted
		s.sent |= bit
		s.pool |= bit
		s.mined &^= bit // it has another nonce
		return rNone
	case q.flags&fAccepted == 0:
		return rNo
	case s.use == paidOurs && (s.deep == 1 || m.c.Until == payment.Included):
		return rYes
	case s.use == paidOurs:
		return rNone
	case s.mined&bit != 0:
		return rNo
	}
	return rNone
}

// noted is Journal.Settle after the facilitator's answer, with afterwards and
// note, and what the till makes of it.
func (m *machine) noted(s *state, i int, emit emitter) {
	q := s.requests[i]
	p := q.process
	r := *s.view(p)
	n := *s
	me := &n.requests[i]
	reply := q.reply
	if q.flags&fPending != 0 && reply != rYes && !m.v.LaterNoIsNo {
		reply = rUnknown // the client itself holds that an earlier answer counts
	}
	if (q.flags&fFirst == 0 || q.flags&fCurrent == 0 && !m.v.Hasty) && reply != rYes && !m.v.LaterNoIsNo {
		reply = rUnknown
	}
	if m.v.NoAnswerIsNo && reply == rUnknown {
		reply = rRefused
	}
	me.reply = rNone
	switch reply {
	case rYes:
		if !states[r.state].Paid() {
			if !m.can(&r, ledger.Settled) {
				m.again(s, i, fair, emit, "till: 503 pending, the settlement cannot be noted")
				return
			}
			r.included = 1
			n.write(p, r)
		}
		me.pc = atPaid
		emit(&n, fair, "journal: SETTLED")
	case rUnknown:
		m.again(s, i, fair, emit, "till: 503 pending, the facilitator's answer is not known")
	default:
		if !states[r.state].Paid() {
			if !m.can(&r, ledger.Released) {
				m.again(s, i, fair, emit, "till: 503 pending, the refusal cannot be noted")
				return
			}
			n.write(p, r)
		}
		if reply == rNo {
			m.refuse(&n, i, fair, emit, "journal: RELEASED; till: 402, the facilitator refuses")
			return
		}
		m.again(&n, i, fair, emit, "journal: RELEASED; till: 503, not charged")
	}
}
