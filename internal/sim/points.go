package sim

import (
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// points are where a process can be made to die, named as in THREATS §2.5.
var points = []plan{
	{kind: "verify", name: "K0 verified, not claimed"},
	{kind: "commit", state: ledger.Executing, before: true, name: "K0 verified, not claimed"},
	{kind: "commit", state: ledger.Executing, name: "K1 claimed, upstream not called"},
	{kind: "commit", state: ledger.Reserved, name: "K1 claimed, upstream not called"},
	{kind: "upstream", before: true, name: "K2 upstream called, answer not stored"},
	{kind: "commit", state: ledger.Executed, before: true, name: "K2 upstream called, answer not stored"},
	{kind: "commit", state: ledger.Executed, name: "K3 answer stored, no intent"},
	{kind: "commit", state: ledger.Intent, name: "K4 intent stored, not broadcast"},
	{kind: "broadcast", before: true, name: "K4 intent stored, not broadcast"},
	{kind: "broadcast", name: "K5 broadcast, not noted"},
	{kind: "mined", name: "K6 in a block, not noted"},
	{kind: "wrote", state: ledger.Included, name: "K7 included, not settled"},
	{kind: "wrote", state: ledger.Settled, name: "K8 settled, nothing delivered"},
	{kind: "answer", before: true, name: "K8 settled, nothing delivered"},
	{kind: "answer", name: "K9 in the middle of the answer"},
	{kind: "answered", name: "K10 delivered, not noted"},
	{kind: "bump", name: "K11 during a fee bump"},
	{kind: "commit", state: ledger.Intent, before: true, name: "K12 while a nonce is taken"},
	{kind: "reload", name: "K13 during a reload"},
}

// planFor draws where a process dies, if at a certain point. The caller holds
// the lock.
func (w *world) planFor(d dice) plan {
	d = d.of("plan")
	if d.oneIn(6) {
		return plan{} // at a random time instead
	}
	p := points[d.of("point").below(len(points))]
	p.nth = 1 + d.of("nth").below(2)*d.of("which").below(3)
	return p
}

// timeOfDeath draws when a process dies, if no point was drawn.
func (w *world) timeOfDeath(d dice) (time.Duration, bool) {
	if !d.of("plan").oneIn(6) {
		return 0, false
	}
	return d.of("death").between(10*time.Millisecond, 10*time.Second), true
}
