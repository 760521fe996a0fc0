package model

import (
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment/evm"
)

func (s *state) paid() bool   { return s.use == paidOurs || s.use == paidOther }
func (s *state) funded() bool { return s.empty != 1 }

// open reports whether the authorization would be carried out now.
func (s *state) open() bool { return s.use == unused && s.clock == live && s.funded() }

// dead reports whether the authorization can never move money again, and has
// not.
func (s *state) dead() bool {
	return s.use == spent && s.deep == 1 || !s.paid() && s.clock == gone
}

// chain takes the steps of the chain, of the payer's account, of strangers
// and of time.
func (m *machine) chain(s *state, emit emitter) {
	for bit := uint8(1); bit <= 4; bit <<= 1 {
		if s.pool&bit == 0 {
			continue
		}
		n := *s
		n.pool &^= bit
		emit(&n, fault, "mempool: drops the transaction")
		n = *s
		m.include(&n, bit)
		emit(&n, fair, "chain: includes the transaction")
	}
	if m.c.Strangers && s.open() && m.started(s) {
		n := *s
		n.use, n.deep, n.seen = paidOther, 0, 1
		emit(&n, fault, "stranger: submits the authorization")
	}
	if m.c.Cancels && s.use == unused && s.cancel == 0 && m.started(s) {
		n := *s
		n.use, n.deep, n.cancel = spent, 0, 1
		emit(&n, fault, "payer: cancels the authorization")
	}
	if m.c.Drains && s.empty == 0 && s.use == unused && s.clock == live && m.started(s) {
		n := *s
		n.empty = 1
		emit(&n, fault, "payer: empties its account")
	}
	if s.empty == 1 {
		n := *s
		n.empty = 2
		emit(&n, fault, "payer: fills its account again")
	}
	if s.use != unused && s.deep == 0 {
		n := *s
		n.deep = 1
		emit(&n, fair, "chain: finalizes the block")
		if int(s.reorgs) < m.c.Reorgs {
			n = *s
			n.reorgs++
			n.use, n.own = unused, 0
			back := s.mined
			n.mined = 0
			emit(&n, fault, "chain: a REORG replaces the block, its transactions are lost")
			if back != 0 {
				n.pool |= back
				emit(&n, fault, "chain: a REORG replaces the block, its transactions wait again")
			}
		}
	}
	switch s.clock {
	case live:
		n := *s
		n.clock = late
		emit(&n, fair, "clock: validBefore passes")
	case late:
		if s.use == unused || s.deep == 1 {
			n := *s
			n.clock = gone
			emit(&n, fair, "clock: validBefore is behind a finalized block")
		}
		if int(s.reorgs) < m.c.Reorgs {
			n := *s
			n.reorgs++
			n.clock = live
			emit(&n, fault, "chain: a REORG replaces the block by one before validBefore")
		}
	}
	if m.c.Remote == Idempotent && s.remote == 1 && s.use == unused && s.pool == 0 && s.mined == 0 && s.clock == live {
		n := *s
		n.pool |= 1
		emit(&n, fair, "facilitator: broadcasts again")
	}
}

// include mines one transaction. Whoever's the lane's nonce is, the others
// that have the same are out.
func (m *machine) include(s *state, bit uint8) {
	s.mined |= bit
	if m.v.Naive {
		s.pool &^= bit
		if m.v.Shared {
			s.pool = 0
		}
	} else {
		s.pool = 0
	}
	if s.open() {
		s.use, s.deep, s.seen, s.own = paidOurs, 0, 1, bit
	}
}

// What the engine sees is packed into a byte.
const (
	sSeen = 1 << iota
	sPaid
	sSpent
	sFinal    // of the use
	sComplete // see settle.Sight
	sMined
	sExpired // at finality
)

// The numbers of the model's chain.
const (
	block       = 10 // the one with the use of the nonce
	validBefore = 150
)

// sightOf unpacks a sight.
func sightOf(b uint8) settle.Sight {
	s := settle.Sight{
		Head: block, Safe: block - 5, Finalized: block - 5, FinalizedTime: validBefore - 50,
		Complete: b&sComplete != 0, Mined: b&sMined != 0, Found: ledger.Inclusion{Block: block},
	}
	switch {
	case b&sPaid != 0:
		s.Fate = evm.Paid
	case b&sSpent != 0:
		s.Fate = evm.Spent
	}
	if b&sFinal != 0 {
		s.Head, s.Safe, s.Finalized = block+10, block+5, block+5
	}
	if b&sExpired != 0 {
		s.FinalizedTime = validBefore + 50
	}
	return s
}

// sights are what the engine can see of the chain now: all of it, or, on a
// node whose logs lag behind its state, a used nonce without what used it. By
// Permit2 the latter is what a nonce that was given up looks like, so the engine
// asks no such node.
func (m *machine) sights(s *state, r *record) []uint8 {
	b := uint8(sSeen)
	if r.attempts > 0 && s.mined&(1<<(r.attempts-1)) != 0 {
		b |= sMined
	}
	if s.clock == gone || m.v.HeadIsFinal && s.clock == late {
		b |= sExpired
	}
	if s.use == unused {
		return append(m.scratch[:0], b|sComplete)
	}
	blind := b
	if m.v.NoLogIsUnused {
		blind |= sComplete
	}
	if s.deep == 1 {
		b |= sFinal
	}
	if s.paid() || m.v.UsedIsPaid {
		b |= sPaid
	} else {
		b |= sSpent
	}
	switch {
	case m.c.Permit && !m.v.LagIsDeath:
		return append(m.scratch[:0], b)
	case m.c.Permit:
		blind |= sSpent | b&sFinal
	}
	return append(m.scratch[:0], b, blind)
}

// A decision is what settle.Decide makes of a record and a sight.
type decision struct {
	known  bool
	to     ledger.State
	found  bool
	resend bool
}

// decide asks the product, once for each record and sight that differ to it.
func (m *machine) decide(r *record, sight uint8) decision {
	at := &m.decided[r.state][r.included][sight]
	if !at.known {
		l := r.real()
		step := settle.Decide(&l, m.c.Until, validBefore, sightOf(sight))
		*at = decision{true, step.To, step.Found != nil, step.Resend}
	}
	return *at
}
