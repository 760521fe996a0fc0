package sim

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// release is told of every byte of the goods that leaves. The caller holds
// the lock.
func (w *world) release(p *purchase, path string, by *process) {
	if _, again := p.granted[path]; again {
		return
	}
	p.granted[path] = struct{}{}
	w.note("release", "", p.name, path)
	if len(p.granted) > 1 {
		w.violate("I2: payment %s was granted to two requests", p.name)
	}
	switch {
	case w.metered(p):
		if r, ok := by.seat.books.entries.record(ledgerKey(p.key)); !ok || r.Exposed == nil {
			w.violate("the goods of payment %s left, and nothing on disk says that they are owed for", p.name)
		}
	case w.free(p, by):
	case !p.reached && w.profile.until != payment.Submitted:
		w.violate("I1: the goods of payment %s left, but the transfer was never %s", p.name, w.profile.until)
	}
}

// free reports whether an answer turned out to cost nothing, and the ledger
// says so. The caller holds the lock.
func (w *world) free(p *purchase, by *process) bool {
	r, ok := by.store.view().record(ledgerKey(p.key))
	return ok && p.by == byUpto && p.events == 0 && r.State.Paid() && r.Charge == "0"
}

// trusted is told of every call of the upstream for a payment that is settled
// afterwards. What is exposed must be within the caps and what payers ever had,
// and nobody is trusted who has caused a loss. The caller holds the lock.
func (w *world) trusted(p *purchase, life *process) {
	var own, all uint64
	for _, other := range w.purchases {
		r, ok := life.store.view().record(ledgerKey(other.key))
		switch {
		case !ok:
			continue
		case r.State == ledger.WrittenOff && other.auth.from == p.auth.from:
			w.violate("payment %s is trusted, although its payer has never paid %s", p.name, other.name)
		case r.Exposed == nil:
			continue
		}
		all += price
		if other.auth.from == p.auth.from {
			own += price
		}
	}
	// A facilitator elsewhere does not say what a payer has.
	if own > uint64(w.profile.perPayer) || all > uint64(w.profile.total) || own > w.funds[p.auth.from] && w.facilitator == nil { //nolint:gosec // positive
		w.violate("with payment %s its payer is trusted with %d and all with %d; the caps are %d and %d, and it never had more than %d",
			p.name, own, all, w.profile.perPayer, w.profile.total, w.funds[p.auth.from])
	}
}

// upstreamBegins is told of every call of the upstream. The caller holds the
// lock.
func (w *world) upstreamBegins(p *purchase, life *process, method string) {
	for _, other := range w.living() {
		if p.running[other.name] && (other == life || !other.excused()) {
			w.violate("I5: the upstream runs twice at once for payment %s, by %s and %s", p.name, other.name, life.name)
		}
	}
	p.running[life.name] = true
	if w.metered(p) {
		w.trusted(p, life)
	}
	r, _ := life.store.view().record(ledgerKey(p.key))
	claim := strconv.Itoa(r.Claims)
	p.runs[claim]++
	if method == http.MethodPost && w.profile.mode == "held" && !w.hasCode(p.auth.from) && p.runs[claim] > 1 {
		w.violate("I5: the upstream ran twice for one claim of payment %s", p.name)
	}
}

// durableBefore checks that a transaction is on disk before it is sent. The
// caller holds the lock.
func (w *world) durableBefore(by *process, tx common.Hash) {
	if w.sent[tx] {
		return // it may be mined and forgotten by now
	}
	w.sent[tx] = true
	if !by.seat.books.entries.mentions(strings.TrimPrefix(tx.Hex(), "0x")) {
		w.violate("transaction %s was broadcast before it was on disk", short(tx))
	}
}

// transitions is told of every write that becomes durable, before it does. The
// caller holds the lock.
func (w *world) transitions(by *process, before image, writes []ledger.Write) {
	for _, write := range writes {
		if isLane(write.Key) {
			var old, next ledger.Lane
			if e, ok := before[write.Key]; ok && json.Unmarshal(e.Value, &old) == nil && json.Unmarshal(write.Value, &next) == nil {
				w.kept(by, old, next)
			}
		}
		p := w.byKey[write.Key]
		if p == nil || write.Value == nil {
			continue
		}
		old := ledger.State("")
		if e, ok := before[write.Key]; ok {
			old = stateOf(e.Value)
		}
		next := stateOf(write.Value)
		if !p.claimed {
			p.claimed = true
			if p.theft {
				w.steal(p)
			}
			if p.betrays != nothing {
				w.betray(p)
			}
		}
		if old == next {
			continue
		}
		w.covered(transition(old, next))
		switch {
		case next == ledger.Reserved || next == ledger.Executing:
			p.claimer = by
		case next == ledger.Released && by.seat.books.shared:
			if r, _ := before.record(write.Key); r.Owner != by.name && time.Now().Before(r.Lease) {
				w.covered("claim of another instance released")
				w.takenForDead(by, r.Owner)
			}
		}
		if old.Can(next) || next == ledger.Archived && old.Can(ledger.Settled) && chargeIn(write.Value) == "0" { // nothing to watch
			continue
		}
		// A claim that has lapsed is as good as released.
		if r, _ := before.record(write.Key); !(r.State.Working() && ledger.Released.Can(next) && time.Now().After(r.Lease)) {
			w.violate("payment %s went from %q to %q", p.name, old, next)
		}
	}
}

func transition(from, to ledger.State) string {
	if from == "" {
		from = "none"
	}
	return string(from) + " → " + string(to)
}

// audit compares the chain, the ledger, and what clients got, once everything
// rests. The caller holds the lock.
func (w *world) audit() {
	final := w.chain.tip.back(w.chain.finalLag)
	if final == nil {
		final = w.chain.tip.ancestor(0)
	}
	booked := uint64(0)
	for _, p := range w.purchases {
		if w.facilitator != nil {
			w.auditRemote(p, final)
		}
		w.auditPurchase(p, final)
		if r, ok := w.live(p); ok && isBooked(r.State) {
			booked += units(r.Charge)
		}
	}
	gifts := uint64(0)
	for _, u := range final.state.used {
		gifts += u.gift
	}
	// A till that has no node does not see what strangers and reorgs do.
	if have := final.state.balances[w.purse.seller]; have != booked+gifts && w.facilitator == nil {
		w.violate("I7: the seller has %d, the ledger says %d, and %d are of nobody", have, booked, gifts)
	}
	w.auditLosses()
	w.auditLanes()
}

// chargeIn reads the charge of a stored payment.
func chargeIn(value []byte) string {
	var r ledger.Record
	_ = json.Unmarshal(value, &r) // what is no record charges nothing
	return r.Charge
}

// units reads a charge.
func units(charge string) uint64 {
	n, err := strconv.ParseUint(charge, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// auditLosses compares what was handed over and never paid with the caps. The
// caller holds the lock.
func (w *world) auditLosses() {
	lost := map[common.Address]uint64{}
	for _, p := range w.purchases {
		r, ok := w.live(p)
		switch {
		case !ok:
			continue
		case r.Exposed != nil && (w.facilitator == nil || r.State != ledger.Intent):
			w.violate("payment %s is %s, and still counts as owed", p.name, r.State)
		case r.State == ledger.WrittenOff:
			w.covered("written off")
			lost[p.auth.from] += w.worth(p)
			if w.profile.mild {
				w.violate("payment %s is written off, and nothing went wrong", p.name)
			}
		}
	}
	for _, p := range w.purchases {
		if n := lost[p.auth.from]; n > uint64(max(0, w.profile.perPayer)) || n > w.funds[p.auth.from] && w.facilitator == nil {
			w.violate("%d are lost by one payer; its cap is %d, and it never had more than %d", n, w.profile.perPayer, w.funds[p.auth.from])
		}
	}
}

// auditCharge compares what was charged with what was signed and with what was
// handed over. The caller holds the lock.
func (w *world) auditCharge(p *purchase, u use, r *ledger.Record) {
	charge := units(r.Charge)
	switch {
	case u.paid && w.facilitator == nil && u.amount != charge:
		w.violate("payment %s has moved %d, the ledger says %d", p.name, u.amount, charge)
	case u.paid && !u.ours && p.by == byUpto:
		w.violate("payment %s has moved, and not by the facilitator that it was signed for", p.name)
	case charge > price || u.paid && u.amount > price:
		w.violate("payment %s is charged more than was signed", p.name)
	case p.by != byUpto && charge != price:
		w.violate("payment %s is charged %d, and exact is exact", p.name, charge)
	case p.by != byUpto || !isBooked(r.State):
		return
	case charge > w.worth(p):
		w.violate("payment %s is charged %d, and its answer was worth %d", p.name, charge, w.worth(p))
	case w.profile.mild && charge != w.worth(p):
		w.violate("payment %s is charged %d, and its answer was worth %d", p.name, charge, w.worth(p))
	case charge == 0 && u.paid:
		w.violate("payment %s costs nothing and has moved %d", p.name, u.amount)
	case charge == 0:
		w.covered("charged nothing")
	case charge < price:
		w.covered("charged a part")
	default:
		w.covered("charged the maximum")
	}
}

func (w *world) live(p *purchase) (ledger.Record, bool) {
	return w.seen(w.seats[0].books).record(ledgerKey(p.key))
}

func (w *world) auditPurchase(p *purchase, final *block) {
	u, used := final.state.used[p.auth]
	paid := used && u.paid
	r, known := w.live(p)
	switch {
	case w.facilitator != nil: // see auditRemote
	case paid && !(known && isBooked(r.State)):
		w.violate("I3: payment %s has moved money, but the ledger says %q", p.name, r.State)
	case !paid && known && isBooked(r.State) && r.Charge != "0":
		w.violate("payment %s is %s, but no money has moved", p.name, r.State)
	case !paid && known && r.State == ledger.Dead && !used && final.time < p.ticket.signed.Expiry:
		w.violate("payment %s is dead, but can still be used", p.name)
	}
	if paid {
		w.report.Transfers++
	}
	if known {
		w.auditCharge(p, u, &r)
	}
	for _, refused := range p.refusals {
		w.covered("402 " + refused.reason)
		switch {
		case !paid:
		case refused.reason == string(payment.EVMTransactionFailed), refused.reason == string(payment.UptoTransactionFailed):
			w.violate("I4: payment %s was refused for good, but has moved money", p.name)
		case u.ours && refused.alone && !p.presentedAfter(refused.at):
			w.violate("I4: payment %s was refused (%s) and not sent again, but we have moved its money", p.name, refused.reason)
		}
	}
	if !p.honest() {
		return
	}
	w.report.Honest++
	if p.served > 0 {
		w.report.Served++
	}
	if w.facilitator != nil && !u.ours {
		return // nobody here sees what a stranger submits too late
	}
	if p.handed.Len() > 0 && w.metered(p) {
		return // it has something, and auditCharge knows how much
	}
	if p.served == 0 && paid && (u.ours || len(p.refusals) == 0) && !owed(&r, p.unsafe) {
		w.violate("payment %s was charged, and its payer has nothing", p.name)
	}
}

// auditRemote compares the books of a till and of its facilitator with the
// chain. The caller holds the lock.
func (w *world) auditRemote(p *purchase, final *block) {
	u, used := final.state.used[p.auth]
	paid := used && u.paid
	ours, known := w.live(p)
	theirs, _ := w.seen(w.facilitator.books).record(ledgerKey(p.key))
	switch {
	case paid && u.ours && !isBooked(theirs.State):
		w.violate("I3: payment %s has moved money, but its facilitator's ledger says %q", p.name, theirs.State)
	case !paid && isBooked(theirs.State) && theirs.Charge != "0":
		w.violate("payment %s is %s for its facilitator, but no money has moved", p.name, theirs.State)
	case paid && u.ours && !(known && isBooked(ours.State)):
		w.violate("I3: payment %s has moved money, but the till's ledger says %q", p.name, ours.State)
	case known && isBooked(ours.State) && !p.reached && ours.Charge != "0":
		w.violate("payment %s is %s, but no money has ever moved", p.name, ours.State)
	}
}

// rests reports whether nothing is left to happen to a payment in some books.
// A till without a node does not watch what it has let go, nor what it was
// told is settled, and never learns what became of a payment that its
// facilitator does not settle any more. The caller holds the lock.
func (w *world) rests(b *books, p *purchase, now ledger.State) bool {
	r, ok := w.seen(b).record(ledgerKey(p.key))
	owes := ok && r.Exposed != nil
	if w.facilitator == nil || b == w.facilitator.books {
		return now.Resting() && !owes
	}
	if owes {
		return now == ledger.Intent && unix(time.Now()) > p.ticket.signed.Expiry+giveUp
	}
	if now != ledger.Intent {
		return !now.Working()
	}
	theirs, known := w.seen(w.facilitator.books).record(ledgerKey(p.key))
	expired := unix(time.Now()) > p.ticket.signed.Expiry+hope
	return expired && (!known || theirs.State.Resting()) && (!isBooked(theirs.State) || !p.byUs(w))
}

// giveUp is for how many seconds after a payment has expired the till may still
// ask a facilitator elsewhere for it.
const giveUp = 120

// byUs reports whether a lane moved the money. The caller holds the lock.
func (p *purchase) byUs(w *world) bool {
	u, used := w.chain.tip.state.used[p.auth]
	return used && u.paid && u.ours
}

// owed reports whether the money is to go back, or has. What is undeliverable
// becomes REFUND_DUE at the till's next round, once the money is final; and so
// does, once its authorization has expired, the money of a request that must
// not be repeated, which a stranger has moved after it was let go.
func owed(r *ledger.Record, unsafe bool) bool {
	return r.State == ledger.RefundDue || r.State == ledger.Refunded || r.Delivery == ledger.Undeliverable || unsafe && r.Ran && r.Owed()
}

// isBooked reports whether the ledger knows that the money has come.
func isBooked(s ledger.State) bool {
	return s.Paid() || s == ledger.RefundDue || s == ledger.Refunded
}

func (p *purchase) presentedAfter(t time.Time) bool {
	for _, at := range p.presented {
		if at.After(t) {
			return true
		}
	}
	return false
}

// auditLanes checks that every nonce handed out was used. The caller holds the
// lock.
func (w *world) auditLanes() {
	for lane, open := range w.openNonces() {
		w.violate("I6: lane %s has %d nonces that are in no block", lane, open)
	}
}

// openNonces counts, for each lane, the nonces that the ledger has handed out
// and that are in no block. The caller holds the lock.
func (w *world) openNonces() map[string]uint64 {
	open := map[string]uint64{}
	for _, b := range w.ledgers() {
		for k, e := range w.seen(b) {
			var lane ledger.Lane
			if !isLane(k) || json.Unmarshal(e.Value, &lane) != nil {
				continue
			}
			if used := w.chain.tip.state.nonces[common.HexToAddress(lane.Address)]; lane.Next > used {
				open[lane.Address] = lane.Next - used
			}
		}
	}
	return open
}
