package model

// naive takes the steps of a handler without a ledger, as the servers of the
// day have it: verify, run the upstream, broadcast, wait for the receipt,
// answer.
func (m *machine) naive(s *state, i int, emit emitter) {
	q := s.requests[i]
	own := &s.processes[q.process]
	n := *s
	me := &n.requests[i]
	bit := uint8(1) << i
	forget := func(n *state) { n.processes[q.process].memo = 0 }
	switch q.pc {
	case atVerify:
		switch {
		case !s.open():
			m.refuse(s, i, fair, emit, "naive: 402, the payment does not verify")
		case m.v.Memory && own.memo == 1:
			m.refuse(s, i, fair, emit, "naive: 402, a duplicate of a payment under way")
		default:
			if m.v.Memory {
				n.processes[q.process].memo = 1
			}
			me.pc = atAnswer
			emit(&n, fair, "naive: the payment verifies")
		}
	case atAnswer:
		me.pc = atSend
		emit(&n, fair, "upstream: answers")
		n = *s
		forget(&n)
		m.again(&n, i, fault, emit, "upstream: fails; not charged")
	case atSend:
		if !m.v.Shared && !s.open() {
			m.refuse(s, i, fair, emit, "naive: 402, the payment does not verify any more")
			return
		}
		me.pc = atAwait
		n.sent |= bit
		lost := n
		if n.mined&bit == 0 && (!m.v.Shared || n.mined == 0) {
			n.pool |= bit
		}
		emit(&n, fair, "naive: broadcasts")
		emit(&lost, fault, "naive: broadcasts, and the transaction is lost")
	case atAwait:
		sure := s.deep == 1 || m.v.OneBlock
		switch {
		case sure && s.use == paidOurs && (s.own == bit || m.v.Shared), sure && m.v.AnyReceipt && s.mined&bit != 0:
			me.pc = atPaid
			emit(&n, fair, "naive: a receipt with status 1")
		case s.mined&bit != 0 && s.own != bit && !m.v.AnyReceipt:
			m.refuse(s, i, fair, emit, "naive: 402, the transaction reverted")
			return
		}
		n = *s
		forget(&n)
		m.refuse(&n, i, fair, emit, "naive: 402, because it takes too long")
	case atPaid:
		m.granting(s)
		m.end(&n, i, lFinal)
		n.got |= 1 << (q.resource - 1)
		if n.got == 3 {
			m.violate(TwoGrants)
		}
		emit(&n, fair, "client: has the GOODS")
		n = *s
		m.end(&n, i, lAgain)
		emit(&n, fault, "naive: the goods are lost on the wire")
	}
}
