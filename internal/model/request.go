package model

import (
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
)

// Where a handler stands: before the step that the name says.
const (
	idle         = iota
	atVerify     // Facilitator.Verify (naive; else it is one step with what leads there)
	atClaim      // Ledger.Claim
	atUpstream   // held: the upstream is called
	atAnswer     // held: the upstream answers, and the answer is stored
	atSettle     // Facilitator.Settle: Ledger.Get, and the engine's simulation
	atSearch     // Engine.reverted: what used the nonce
	atIntend     // Ledger.Intend, with the transaction signed
	atSend       // Engine.send
	atAwait      // Engine.await
	atIntendOnce // Journal.intend
	atAsk        // Client: the settle request leaves
	atWaitReply  // Client: the facilitator has it, or it is lost
	atReply      // Journal.note
	atPaid       // the settlement is there: the answer goes out, or the upstream runs
	atNote       // held: DELIVERED is noted, later
	atStream     // the upstream runs for goods that are paid for
	atMark       // what became of them is stored
)

// reply of a remote facilitator, or of the client to the goods
const (
	rNone    = iota
	rYes     // settled; or: the client has it all
	rNo      // refused; or: the upstream failed
	rUnknown // no answer, or pending; or: lost on the wire
	rRefused // no connection
)

func (m *machine) mode(q *request) till.Mode { return m.c.Modes[q.resource-1] }

// end ends the handler of request i.
func (m *machine) end(s *state, i int, last uint8) {
	q := &s.requests[i]
	*q = request{resource: q.resource, last: last}
	s.records(func(r *record) {
		if int(r.by) == i+1 {
			r.by = 0
		}
	})
}

// client takes the steps of the payer: each request starts, and is repeated
// until its answer is final.
func (m *machine) client(s *state, i int, emit emitter) {
	q := &s.requests[i]
	if q.last == lFinal {
		return
	}
	kind := fair
	first := uint8(1)
	most := uint8(2)
	if q.last == lNever {
		kind = fault // nobody has to ask
		if m.c.Modes[0] == m.c.Modes[1] && !m.started(s) {
			most = 1 // the resources differ in nothing
		}
	} else {
		first, most = q.resource, q.resource
	}
	for p := range uint8(m.c.Instances) { //nolint:gosec // 1 or 2
		if s.processes[p].down == 1 {
			continue
		}
		for resource := first; resource <= most; resource++ {
			n := *s
			n.requests[i] = request{resource: resource, process: p, last: q.last}
			if m.v.Naive {
				n.requests[i].pc = atVerify
				emit(&n, kind, "client: sends the payment")
				continue
			}
			m.door(&n, i, kind, emit)
		}
	}
}

// again ends request i with 503 or 502: the client will ask again.
func (m *machine) again(s *state, i int, kind stepKind, emit emitter, why string) {
	n := *s
	m.giveBack(&n, i)
	m.end(&n, i, lAgain)
	emit(&n, kind, why)
}

// final ends request i with an answer other than the goods after which there
// is nothing to ask: 409 or 410.
func (m *machine) final(s *state, i int, kind stepKind, emit emitter, why string) {
	n := *s
	m.end(&n, i, lFinal)
	emit(&n, kind, why)
}

// refuse ends request i with 402. The honest payer signs another payment.
func (m *machine) refuse(s *state, i int, kind stepKind, emit emitter, why string) {
	n := *s
	m.giveBack(&n, i)
	m.end(&n, i, lFinal)
	if m.alive(s) {
		m.violate(PayAgain)
	}
	emit(&n, kind, why)
}

// alive reports whether a transaction that may have been sent can still move
// the money, or has.
func (m *machine) alive(s *state) bool {
	if s.sent == 0 || s.dead() {
		return false
	}
	if m.c.Remote != Embedded && !s.paid() && s.sent&^s.mined == 0 {
		return false // the facilitator that was asked is trusted to know
	}
	return true
}

// giveBack is the till's.
func (m *machine) giveBack(s *state, i int) {
	q := &s.requests[i]
	r := *s.view(q.process)
	if m.v.Naive || int(r.by) != i+1 || !states[r.state].Working() {
		return
	}
	m.to(&r, ledger.Released)
	s.write(q.process, r)
}

func (m *machine) same(q *request, r *record) bool { return m.v.Unbound || r.resource == q.resource }

// request takes the steps of request i.
func (m *machine) request(s *state, i int, emit emitter) { //nolint:gocyclo // one case for each place in the till
	q := s.requests[i]
	if q.pc == idle {
		m.client(s, i, emit)
		return
	}
	if m.v.Naive {
		m.naive(s, i, emit)
		return
	}
	p := q.process
	r := *s.view(p)
	n := *s
	me := &n.requests[i]
	switch q.pc {
	case atClaim:
		m.claim(s, i, emit)

	case atUpstream:
		me.pc = atAnswer
		m.run(&n, i)
		emit(&n, fair, "till: calls the upstream")

	case atAnswer:
		if int(r.by) == i+1 && m.can(&r, ledger.Executed) {
			if !m.c.Large {
				r.held = 1
			}
			n.write(p, r)
			me.pc, me.flags = atSettle, q.flags&fOverdue
			emit(&n, fair, "upstream: answers; ledger: EXECUTED, with the answer")
		} else {
			m.again(s, i, fair, emit, "upstream: answers; till: 503, the claim has lapsed")
		}
		m.again(s, i, fault, emit, "upstream: fails; not charged")

	case atSettle:
		m.settle(s, i, emit)

	case atSearch:
		switch {
		case s.paid() || m.v.UsedIsPaid && s.use == spent:
			me.pc = atAwait
			if int(r.by) == i+1 || q.flags&fLanded != 0 {
				n.processes[p].watch = 1
			}
			emit(&n, fair, "engine: somebody else's transaction made the transfer")
		case s.use == spent:
			m.refuse(s, i, fair, emit, "till: 402, the nonce was used by something else")
		}
		m.again(s, i, fair, emit, "till: 503 pending, what used the nonce is not known")

	case atIntend:
		if q.flags&fCurrent == 0 || !m.can(&r, ledger.Intent) {
			m.again(s, i, fair, emit, "ledger: the record is another one: 503")
			return
		}
		r.attempts++
		n.nonces = min(n.nonces+1, 2)
		if n.nonces > 1 {
			m.violate(TwoNonces)
		}
		if m.v.LateIntent {
			m.lazily(&n, p, r)
		} else {
			n.write(p, r)
		}
		me.pc = atSend
		emit(&n, fair, "ledger: INTENT, with the signed transaction")

	case atSend:
		n.processes[p].watch = 1
		me.pc = atAwait
		m.broadcast(&n, p, fair, emit)

	case atAwait:
		switch {
		case states[r.state].Paid():
			me.pc = atPaid
			emit(&n, fair, "engine: settled")
		case r.is(ledger.Dead):
			m.refuse(s, i, fair, emit, "till: 402, the payment is dead")
		}
		switch {
		case m.v.ForgetAfter && states[r.state].Broadcast():
			m.force(&r, ledger.Released)
			n.write(p, r)
			m.refuse(&n, i, fair, emit, "till: 402 and RELEASED, because it takes too long")
		case m.v.PayAgain:
			m.refuse(s, i, fair, emit, "till: 402, because it takes too long")
		default:
			m.again(s, i, fair, emit, "till: 503 pending, because it takes too long")
		}

	case atPaid:
		m.hand(s, i, emit)

	case atStream:
		m.goods(s, i, atMark, emit)

	case atNote:
		if r.delivery != delivered {
			r.delivery = delivered
			m.later(&n, p, r)
		}
		m.end(&n, i, map[bool]uint8{true: lFinal, false: lAgain}[q.reply == rYes])
		emit(&n, fair, "till: notes DELIVERED, later")

	case atMark:
		last := uint8(lAgain)
		if q.reply == rYes {
			last = lFinal
		}
		if m.v.Crowded || r.delivery == delivering && int(r.by) == i+1 {
			r.delivery, r.lapsed = delivered, 0
			if q.reply == rNo {
				r.delivery = undelivered
			}
			n.write(p, r)
		}
		m.end(&n, i, last)
		emit(&n, fair, "ledger: what became of the goods")

	default:
		m.remotely(s, i, emit)
	}
}

// door is the till's pay, alone and the beginning of fresh: it waits to be
// alone with the payment in its process, reads its record, and verifies what
// can be claimed. To wait is to ask again.
func (m *machine) door(s *state, i int, kind stepKind, emit emitter) {
	q := s.requests[i]
	r := s.view(q.process)
	me := &s.requests[i]
	for j := range s.requests {
		if o := &s.requests[j]; j != i && o.pc != idle && o.process == q.process && !m.v.Unlocked {
			if !r.is("") && !m.same(&q, r) {
				m.final(s, i, kind, emit, "till: 409, the payment belongs to another request")
				return
			}
			m.again(s, i, kind, emit, "till: 503 pending, another request has the payment")
			return
		}
	}
	switch {
	case r.is(""), m.free(r), m.v.TakeOver && states[r.state].Working():
		switch {
		case s.use != unused && s.clock == live:
			if !r.is("") && m.same(&q, r) {
				me.pc, me.flags = atSettle, fLanded
				emit(s, kind, "till: the payment was used since it was given back")
				return
			}
			m.refuse(s, i, kind, emit, "till: 402, the nonce is used")
		case !s.open():
			m.refuse(s, i, kind, emit, "till: 402, the payment does not verify")
		default:
			me.pc = atClaim
			emit(s, kind, "till: nobody has the payment, and it verifies")
		}
	case !m.same(&q, r):
		m.final(s, i, kind, emit, "till: 409, the payment belongs to another request")
	default:
		m.known(s, i, kind, emit)
	}
}

// known is the till's: the payment was claimed for this very request.
func (m *machine) known(s *state, i int, kind stepKind, emit emitter) {
	me := &s.requests[i]
	r := s.view(me.process)
	switch {
	case r.is(ledger.Dead):
		m.refuse(s, i, kind, emit, "till: 402, the payment is dead")
	case states[r.state].Paid():
		me.pc = atPaid
		emit(s, kind, "till: the payment is settled")
	case states[r.state].Broadcast():
		me.pc = atSettle
		emit(s, kind, "till: the payment is being settled")
	default:
		m.again(s, i, kind, emit, "till: 503 pending, another process has the payment")
	}
}

// claim is the till's fresh from Ledger.Claim on.
func (m *machine) claim(s *state, i int, emit emitter) {
	q := s.requests[i]
	r := s.view(q.process)
	n := *s
	me := &n.requests[i]
	if !r.is("") && !m.free(r) && !(m.v.TakeOver && states[r.state].Working()) {
		if !m.same(&q, r) {
			m.final(s, i, fair, emit, "ledger: claimed already; till: 409, the payment belongs to another request")
			return
		}
		m.known(&n, i, fair, emit)
		return
	}
	next := record{resource: q.resource, by: uint8(i + 1), state: uint8(len(states) - 2)} //nolint:gosec // at most 3; Released
	if r.is("") {
		next.state = 0
	}
	if m.mode(&q) == till.First {
		m.to(&next, ledger.Reserved)
		me.pc, me.way = atSettle, wFirst
	} else {
		m.to(&next, ledger.Executing)
		me.pc, me.way = atUpstream, wHeld
	}
	if m.v.LateClaim {
		m.lazily(&n, q.process, next)
	} else {
		n.write(q.process, next)
	}
	for p := range n.processes {
		n.processes[p].watch = 0 // the engine forgets an item of an earlier claim
	}
	emit(&n, fair, "ledger: the claim, "+string(states[next.state]))
}

// settle is the beginning of Embedded.Settle and of Journal.Settle.
func (m *machine) settle(s *state, i int, emit emitter) {
	q := s.requests[i]
	r := s.view(q.process)
	n := *s
	me := &n.requests[i]
	state := states[r.state]
	switch {
	case !m.same(&q, r):
		m.taken(s, i, emit)
	case m.c.Remote != Embedded && state.Paid():
		me.pc = atPaid
		emit(&n, fair, "journal: the payment is settled")
	case m.c.Remote != Embedded && r.is(ledger.Dead):
		m.refuse(s, i, fair, emit, "till: 402, the payment is dead")
	case m.c.Remote != Embedded:
		me.pc = atIntendOnce
		emit(&n, fair, "journal: the payment is not settled")
	case state.Broadcast() || r.is(ledger.Dead):
		me.pc = atAwait
		if !state.Resting() {
			n.processes[q.process].watch = 1
		}
		emit(&n, fair, "engine: waits for the settlement that is under way")
	default:
		m.simulate(s, i, emit)
	}
}

// taken ends request i, whose payment has been claimed for another one
// while it slept.
func (m *machine) taken(s *state, i int, emit emitter) {
	if m.v.PayAgain {
		m.refuse(s, i, fair, emit, "till: 402, the payment is bound to something else")
		return
	}
	m.final(s, i, fair, emit, "till: 409, the payment is bound to something else")
}

// simulate is Embedded.Settle from its second check on, and Engine.Settle up
// to the signature.
func (m *machine) simulate(s *state, i int, emit emitter) {
	n := *s
	me := &n.requests[i]
	switch {
	case s.clock != live:
		m.refuse(s, i, fair, emit, "till: 402, expired before anything was sent")
	case s.use != unused:
		me.pc = atSearch
		emit(&n, fair, "engine: the transfer reverts in simulation")
	case !s.funded():
		m.refuse(s, i, fair, emit, "till: 402, the payer's account is empty")
	default:
		me.pc, me.flags = atIntend, me.flags|fCurrent
		emit(&n, fair, "engine: signs the transaction")
	}
	m.again(s, i, fault, emit, "till: 503, the node is down; not charged")
}

// hand is what follows a settlement: the till's release, deliver and stream.
func (m *machine) hand(s *state, i int, emit emitter) {
	q := s.requests[i]
	r := *s.view(q.process)
	n := *s
	me := &n.requests[i]
	switch {
	case q.way == wHeld || q.way == wDeliver && r.held == 1:
		m.goods(s, i, atNote, emit)
	case q.way == wDeliver && (r.delivery == delivered || m.c.Unsafe && m.mode(&q) == till.Held):
		m.final(s, i, fair, emit, "till: 410, with the receipt")
	case r.delivery == delivered:
		m.again(s, i, fair, emit, "till: 503, the goods are out already")
	case m.elsewhere(&r) && !m.v.Crowded:
		m.again(s, i, fair, emit, "till: 503 pending, another process hands over the goods")
	default:
		r.delivery, r.lapsed, r.by = delivering, 0, uint8(i+1) //nolint:gosec // at most 3
		n.write(q.process, r)
		me.pc = atStream
		m.run(&n, i)
		emit(&n, fair, "ledger: DELIVERING; till: calls the upstream")
	}
}

// goods is the release of an answer to the client, after which the handler
// stands at after.
func (m *machine) goods(s *state, i int, after uint8, emit emitter) {
	q := s.requests[i]
	m.granting(s)
	finish := func(reply uint8, kind stepKind, why string) {
		n := *s
		n.requests[i].pc, n.requests[i].reply = after, reply
		if reply == rYes {
			n.got |= 1 << (q.resource - 1)
			if n.got == 3 {
				m.violate(TwoGrants)
			}
		}
		emit(&n, kind, why)
	}
	finish(rYes, fair, "client: has the GOODS")
	if after == atMark {
		finish(rNo, fault, "upstream: fails, or the client is gone")
	} else {
		n := *s
		m.end(&n, i, lAgain)
		emit(&n, fault, "till: the client is gone")
	}
	finish(rUnknown, fault, "till: the goods are lost on the wire, unnoticed")
}

// granting checks that goods that go out in s are paid for.
func (m *machine) granting(s *state) {
	paid := s.seen == 1
	if _, counted := m.c.Until.Confirmations(); !counted {
		paid = s.paid() && s.deep == 1
	}
	if !paid {
		m.violate(FreeGoods)
	}
}

// run checks request i's call of the upstream, which is under way in s
// already. What a process does that has overslept its lease is nobody's fault:
// no claim can keep it from calling the upstream when it wakes up.
func (m *machine) run(s *state, i int) {
	if m.v.Naive || s.requests[i].flags&fOverdue != 0 {
		return
	}
	running := 0
	for i := range s.requests {
		switch q := &s.requests[i]; {
		case q.flags&fOverdue != 0:
		case q.pc == atAnswer, q.pc == atStream, q.pc == atMark && q.reply != rNo:
			running++
		}
	}
	if running > 1 || s.served == 1 {
		m.violate(RunTwice)
	}
}
