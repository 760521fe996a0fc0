package sim

import (
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A profile is how rough a world is. Faults happen one time in so many; 0
// means never.
type profile struct {
	mild     bool
	mode     till.Mode
	until    payment.Finality
	payments int
	contract bool // payers' accounts have code
	wallet   bool // one of them has
	permits  bool // some pay by Permit2
	tight    bool // payers have little more than what they pay

	perPayer, total int64 // caps of what is handed over before it is paid, where that is metered

	arrive   time.Duration // within which clients come
	peace    time.Duration // after which nothing goes wrong any more
	deadline time.Duration // of the route
	patience time.Duration // of a client with one request
	upstream time.Duration // the longest that the upstream takes

	latency, hang, down time.Duration // the longest

	badCall, lateCall, staleCall, staleHead, slowTx, dropTx int
	badDisk, slowDisk                                       int
	crashes, reloads, reorgs                                int

	instances, lanes int
	rush             bool          // all payments come within a moment
	remote           bool          // somebody else settles
	twice            int           // a request to that one is delivered twice
	database         time.Duration // the longest that an exchange with the database takes
	inFlight         int           // how many transactions of a lane may wait for a block; 0 means what is usual

	interval          time.Duration // between blocks
	instant           bool          // blocks also come as soon as there is a transaction
	halts             time.Duration // when blocks stop for a while; 0 means never
	calm              int
	safeLag, finalLag uint64
	height            int // of the chain at the beginning
}

// drawProfile draws what kind of world a seed has.
func drawProfile(d dice) profile {
	pick := func(what string, of ...int) int { return of[d.of(what).below(len(of))] }
	span := func(what string, of ...time.Duration) time.Duration { return of[d.of(what).below(len(of))] }
	p := profile{
		mild: d.of("mild").oneIn(4), mode: till.Held, until: payment.Included, payments: pick("payments", 1, 1, 2, 3),
		arrive: span("arrive", 200*time.Millisecond, 3*time.Second), peace: span("peace", 15*time.Second, 30*time.Second),
		deadline: span("deadline", 4*time.Second, 10*time.Second), patience: 30 * time.Second, upstream: span("upstream", 30*time.Millisecond, 800*time.Millisecond),
		latency: span("latency", 3*time.Millisecond, 30*time.Millisecond, 200*time.Millisecond), hang: 8 * time.Second, down: 4 * time.Second,
		interval: span("interval", time.Second, 2*time.Second), instant: d.of("instant").oneIn(3), calm: 0,
		finalLag: uint64(pick("final", 3, 8, 10)), safeLag: uint64(pick("safe", 2, 3)), height: pick("height", 1, 50, 50, 50), //nolint:gosec // small
	}
	if d.of("mode").oneIn(2) {
		p.mode = till.First
	}
	p.instances, p.lanes = pick("instances", 1, 1, 1, 2), 1
	if p.instances == 1 && d.of("remote").oneIn(5) {
		p.remote, p.twice = true, pick("twice", 0, 0, 6)
	}
	if p.instances > 1 {
		if d.of("three").oneIn(6) {
			p.instances = 3
		}
		p.rush = d.of("rush").oneIn(3)
		p.payments, p.upstream = pick("shared payments", 1, 2, 3), span("shared upstream", 30*time.Millisecond, 800*time.Millisecond, 3*time.Second)
	}
	p.database = span("database", 2*time.Millisecond, 15*time.Millisecond, 80*time.Millisecond)
	if d.of("lanes").oneIn(7) {
		p.lanes, p.payments = pick("how many lanes", 2, 3, 3), pick("many", 3, 4, 6)
		p.inFlight, p.wallet, p.rush = pick("flying", 0, 1, 1, 2), d.of("wallet").oneIn(3), d.of("lanes rush").oneIn(2)
	}
	p.permits = d.of("permits").oneIn(2) && (p.lanes == 1 || d.of("no batches").oneIn(2))
	if d.of("metered").oneIn(4) {
		p.mode, p.permits = till.Metered, true
		p.perPayer, p.total = price*int64(pick("per payer", 1, 2, 3)), price*int64(pick("total", 2, 3, 6))
		p.tight = !p.mild && d.of("tight").oneIn(3)
	}
	p.until = []payment.Finality{
		payment.Included, payment.Included, payment.Included, payment.Confirmed(2), payment.Confirmed(4),
		payment.Safe, payment.Finalized, payment.Submitted,
	}[d.of("until").below(8)]
	if p.remote {
		p.until = payment.Included // a facilitator is not told how sure the seller wants to be
	}
	if p.mild {
		p.peace = 0
		return p
	}
	p.contract = d.of("contract").oneIn(8)
	p.badCall, p.lateCall = pick("bad", 0, 40, 10), pick("late", 0, 0, 60, 20)
	p.staleCall, p.staleHead = pick("stale", 0, 20, 5), pick("stale head", 0, 0, 10)
	p.slowTx, p.dropTx = pick("slow", 0, 0, 3), pick("drop", 0, 0, 4, 8)
	p.badDisk, p.slowDisk = pick("disk", 0, 0, 0, 60), pick("slow disk", 0, 0, 15)
	p.crashes, p.reloads, p.reorgs = pick("crashes", 0, 1, 1, 2, 3), pick("reloads", 0, 0, 1, 2), pick("reorgs", 0, 0, 1, 2, 3)
	p.calm = pick("calm", 0, 0, 8)
	if d.of("halt").oneIn(8) {
		p.halts = d.of("halts").between(time.Second, 15*time.Second)
	}
	return p
}

// An Event is one line of a world's history.
type Event struct {
	At                      time.Duration // since the world began
	Kind, Actor, ID, Detail string
}

func (e Event) String() string {
	return fmt.Sprintf("%13.6fs %-26s %-16s %-20s %s", e.At.Seconds(), e.Kind, e.Actor, e.ID, e.Detail)
}

// A world is everything around the seller's program, and its lives.
type world struct {
	purse   *Purse
	seed    uint64
	dice    dice
	flaw    Flaw
	verbose bool
	profile profile
	start   time.Time
	route   *till.Route
	over    chan struct{} // closed when the world ends
	group   sync.WaitGroup

	mu          sync.Mutex
	report      *Report // guarded by mu, as is all that follows
	chain       *chainModel
	funds       map[common.Address]uint64 // that payers have in the beginning, and never more
	purchases   []*purchase
	byKey       map[ledger.Key]*purchase
	seats       []*seat
	shops       []*seat    // where clients go
	facilitator *seat      // that the shops ask; nil where they settle themselves
	processes   []*process // all that ever were
	lives       map[string]*process
	nodes       []*node
	signed      map[laneNonce]bool
	sent        map[common.Hash]bool
	arrivals    chan struct{}
}

// spawn starts a goroutine that the world waits for in its end.
func (w *world) spawn(f func()) { w.group.Go(f) }

// rest waits for d, and reports whether the world still goes on then.
func (w *world) rest(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.over:
		return false
	}
}

func newWorld(p *Purse, seed uint64, o Options) (*world, error) {
	d := dice(seed).of("world")
	w := &world{
		purse: p, seed: seed, dice: d, flaw: o.Flaw, verbose: o.Verbose, profile: drawProfile(d.of("profile")), start: time.Now(),
		over: make(chan struct{}), lives: map[string]*process{}, byKey: map[ledger.Key]*purchase{}, funds: map[common.Address]uint64{}, signed: map[laneNonce]bool{}, sent: map[common.Hash]bool{},
		arrivals: make(chan struct{}, 1), report: &Report{Seed: seed, Seen: map[string]int{}},
	}
	w.report.Mild = w.profile.mild
	w.sit()
	for i, k := range p.payers {
		w.funds[k.Address()] = funds
		if w.profile.tight {
			w.funds[k.Address()] = price * uint64(1+d.of("funds").nth(i).below(2)) //nolint:gosec // small
		}
	}
	w.chain = newChain(d, w.start, w.profile.height, p, maps.Clone(w.funds))
	w.chain.coded = w.hasCode
	w.chain.safeLag, w.chain.finalLag, w.chain.calm = w.profile.safeLag, w.profile.finalLag, w.profile.calm
	w.route = w.sells(p.sheets[w.profile.lanes-1])
	for i := range w.profile.payments {
		one, err := w.draw(i)
		if err != nil {
			return nil, err
		}
		w.purchases = append(w.purchases, one)
		w.byKey[ledgerKey(one.key)] = one
	}
	w.report.Payments = len(w.purchases)
	return w, nil
}

// sells returns the seller's route, with the offers of a sheet.
func (w *world) sells(s *sheet) *till.Route {
	p := &w.profile
	offers := slices.Clone(s.offers)
	for i := range offers {
		offers[i].Until = p.until
	}
	each, perPayer := int64(eventPrice), p.perPayer
	switch w.flaw {
	case Overcharges:
		each = 2 * eventPrice
	case IgnoresCaps:
		perPayer = p.total
	default:
	}
	token := w.purse.token
	r := &till.Route{
		Challenge: s.challenge, Offers: offers, Mode: p.mode, Origin: "https://shop.example", Deadline: p.deadline, Upstream: 20 * time.Second,
		Tariffs: map[payment.Token]*meter.Tariff{token: {Rates: []meter.Rate{{Price: big.NewRat(each, 1), Of: meter.Events}}}},
	}
	if p.mode == till.Metered {
		r.Exposure = map[payment.Token]ledger.Caps{token: {Total: big.NewInt(p.total), PerPayer: big.NewInt(perPayer)}}
	}
	return r
}

// by draws what a payment is signed with.
func (w *world) by(d dice) instrument {
	d = d.of("by")
	switch {
	case !w.profile.permits:
		return byTransfer
	case w.profile.mode == till.Metered && d.below(6) > 0:
		return byUpto
	}
	return instrument(d.of("one").below(3))
}

// draw draws the i-th payment of the world.
func (w *world) draw(i int) (*purchase, error) {
	d := w.dice.of("purchase").nth(i)
	k := ticketKey{payer: d.of("payer").below(len(w.purse.payers)), serial: i, version: payment.V2, validity: time.Minute, instrument: w.by(d), lanes: w.profile.lanes}
	if d.of("version").oneIn(3) && k.instrument == byTransfer {
		k.version = payment.V1
	}
	switch {
	case !w.profile.mild:
		k.validity = []time.Duration{20 * time.Second, time.Minute, time.Minute, 90 * time.Second}[d.of("validity").below(4)]
	case k.instrument == byUpto:
		k.validity = 2 * time.Minute // some wait for others before they are served
	}
	t, err := w.purse.ticket(w.start, k)
	if err != nil {
		return nil, err
	}
	p := &purchase{
		name: "ABCDEF"[i : i+1], ticket: t, by: k.instrument, copies: 1, granted: map[string]struct{}{}, shown: map[string]struct{}{}, running: map[string]bool{}, runs: map[string]int{},
		key: t.signed.Key(chainID), auth: t.auth,
		again: d.of("again").oneIn(4), events: d.of("events").below(10),
	}
	if t.signed.Permit != nil {
		w.chain.permits[t.auth] = &t.signed.Permit.Permit
	}
	p.together = d.of("together").oneIn(2)
	if d.of("copies").oneIn(3) || w.profile.instances > 1 && d.of("more copies").oneIn(2) {
		p.copies = 2 + d.of("how many").below(2)
	}
	p.unsafe = d.of("unsafe").oneIn(4)
	if w.profile.mild {
		return p, nil
	}
	switch d.of("kind").below(14) {
	case 0, 1:
		p.split, p.copies = true, max(2, p.copies)
	case 2, 3:
		p.cancels = d.of("cancels").between(time.Millisecond, 12*time.Second)
	case 4:
		p.drains = d.of("drains").between(time.Millisecond, 6*time.Second)
		p.refills = d.of("refills").oneIn(2)
	case 5, 6:
		p.theft = true
	case 7:
		p.vanish = true
		p.theft = d.of("theft").oneIn(2)
	case 8, 9, 10:
		p.betrays = 1 + betrayal(d.of("betrays").below(int(betrayals)-1))
		p.refills = d.of("refills").oneIn(3)
	}
	if k.instrument == byTransfer {
		return p, nil
	}
	// The same nonce, for something else.
	other, to, units := k, w.purse.seller, int64(1)
	if d.of("other").oneIn(2) {
		to, units = common.HexToAddress("0xbb"), price
	}
	other.instrument = byPermit
	permit := t.signed.Permit
	p.other, err = w.purse.permit(other, to, units, permit.Nonce, permit.Deadline)
	return p, err
}

// run lives the world from its beginning to its end.
func (w *world) run() {
	for _, s := range w.seats {
		w.spawn(s.open)
	}
	w.spawn(w.makeBlocks)
	for i := range w.profile.reorgs {
		at := w.dice.of("reorg").nth(i)
		w.spawn(func() {
			if w.rest(at.between(500*time.Millisecond, w.profile.peace)) {
				w.reorganize(at)
			}
		})
	}
	for i := range w.profile.reloads {
		at := w.dice.of("reload").nth(i)
		w.spawn(func() {
			if w.rest(at.between(100*time.Millisecond, w.profile.peace)) {
				w.reload(at)
			}
		})
	}
	for _, p := range w.purchases {
		w.meddle(p)
		w.mu.Lock()
		p.open = p.copies
		w.mu.Unlock()
		for n := range p.copies {
			path := "/goods/" + p.name
			if p.split && n == 1 {
				path += "/other"
			}
			w.spawn(func() { w.buy(p, p.name+strconv.Itoa(n), path) })
		}
	}
	w.settle()
	w.end()
}

// settle waits until the faults are over and all payments rest.
func (w *world) settle() {
	limit := 5 * time.Minute
	w.rest(w.profile.peace)
	for !w.resting() {
		if time.Since(w.start) > limit {
			w.mu.Lock()
			w.violate("the world does not come to rest: %s", w.unrest())
			w.mu.Unlock()
			break
		}
		w.rest(time.Second)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.audit()
}

// end stops everything and waits for it.
func (w *world) end() {
	w.mu.Lock()
	w.report.Lasted = time.Since(w.start)
	close(w.over)
	var shifts []*shift
	for _, p := range w.processes {
		shifts = append(shifts, p.shifts...)
	}
	w.mu.Unlock()
	for _, s := range shifts {
		s.stop()
	}
	w.group.Wait()
}

// ended reports whether the world is over.
func (w *world) ended() bool {
	select {
	case <-w.over:
		return true
	default:
		return false
	}
}

// troubled reports whether faults still happen.
func (w *world) troubled() bool { return time.Since(w.start) < w.profile.peace }

// note adds to the history. The caller holds the lock.
func (w *world) note(kind, actor, id, detail string) {
	w.report.Log = append(w.report.Log, Event{time.Since(w.start), kind, actor, id, detail})
}

// covered notes that something has been seen. The caller holds the lock.
func (w *world) covered(what string) { w.report.Seen[what]++ }

// violate notes that something happened that must not. The caller holds the
// lock.
func (w *world) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.note("VIOLATION", "", "", text)
	w.report.Violations = append(w.report.Violations, text)
}

// luckFor throws the dice for an interaction. The caller holds the lock.
func (w *world) luckFor(d dice, i interaction) luck {
	l := luck{dice: d}
	if !w.troubled() {
		return l
	}
	p := &w.profile
	switch {
	case i.disk:
		l.broken, l.late = d.of("broken").oneIn(p.badDisk), d.of("late").oneIn(p.slowDisk)
		if l.late {
			w.covered("slow disk")
		}
		return l
	case d.of("late").oneIn(p.lateCall):
		l.late = true
	case d.of("broken").oneIn(p.badCall):
		l.broken = true
	case d.of("stale").oneIn(p.staleCall):
		l.stale = d.of("how stale").between(100*time.Millisecond, 5*time.Second)
	}
	return l
}

// makeBlocks is the chain's heartbeat.
func (w *world) makeBlocks() {
	for n := 0; ; n++ {
		d := w.dice.of("block").nth(n)
		next := time.NewTimer(w.profile.interval + d.between(0, time.Millisecond))
		prompt := w.arrivals
		if !w.profile.instant {
			prompt = nil
		}
		select {
		case <-w.over:
			next.Stop()
			return
		case <-next.C:
		case <-prompt:
			next.Stop()
			if !w.rest(d.of("prompt").between(time.Millisecond, 10*time.Millisecond)) {
				return
			}
		}
		since := time.Since(w.start)
		if h := w.profile.halts; h > 0 && since > h && since < h+20*time.Second {
			w.mu.Lock()
			w.covered("chain halts")
			w.mu.Unlock()
			if !w.rest(h + 20*time.Second - since) {
				return
			}
		}
		w.mu.Lock()
		spiked := w.chain.spike
		b := w.chain.mine(time.Now())
		if w.chain.spike != spiked {
			w.covered("base fee spike")
		}
		w.moved(b)
		w.mu.Unlock()
	}
}

// arrived tells that the pool has something new. The caller holds the lock.
func (w *world) arrived() {
	select {
	case w.arrivals <- struct{}{}:
	default:
	}
}

// moved tells everybody about a new tip. The caller holds the lock.
func (w *world) moved(b *block) {
	w.note("block", "", strconv.FormatUint(b.number, 10), short(b.hash)+" "+strconv.Itoa(len(b.txs)))
	for _, p := range w.purchases {
		if u, ok := b.state.used[p.auth]; ok && u.paid && w.chain.meets(w.profile.until, u.block, b) {
			p.reached = true
		}
	}
	for _, n := range w.nodes {
		if !n.p.dead {
			n.hear(len(w.chain.tips) - 1)
		}
	}
	for i, t := range b.txs {
		if t.tx == nil {
			continue
		}
		if b.receipts[i].Status != types.ReceiptStatusSuccessful {
			w.covered("transaction of a lane reverts")
		}
		for _, life := range w.living() {
			life.strike("mined", "", false)
		}
		w.batched(t)
	}
}

// reorganize replaces some blocks, none of them final.
func (w *world) reorganize(d dice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	most := min(w.chain.finalLag, w.chain.tip.number, 8)
	if most == 0 {
		return
	}
	depth := 1 + uint64(d.of("depth").below(int(most))) //nolint:gosec // small
	w.note("reorg", "", strconv.FormatUint(depth, 10), "")
	w.report.Reorgs++
	w.covered("reorg " + strconv.FormatUint(depth, 10) + " deep")
	w.chain.reorganize(depth, time.Now())
	w.moved(w.chain.tip)
}

// reload replaces the shift that serves.
func (w *world) reload(d dice) {
	w.mu.Lock()
	life := w.seats[d.of("seat").below(len(w.seats))].current
	if life == nil || life.serves == nil {
		w.mu.Unlock()
		return
	}
	w.covered("reload")
	w.note("reload", life.name, "", "")
	dead := life.strike("reload", "", false)
	w.mu.Unlock()
	if !dead {
		life.reload()
	}
}

// meddle lets happen what a payer and others do to a payment on the chain.
func (w *world) meddle(p *purchase) {
	deed := func(name string, at time.Duration, do func(s *state, b *block) outcome) {
		if at == 0 {
			return
		}
		w.spawn(func() {
			if !w.rest(at) {
				return
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.submit(name, p, do)
		})
	}
	deed("cancel", p.cancels, func(s *state, b *block) outcome { return w.cancel(p, s, b) })
	deed("drain", p.drains, func(s *state, _ *block) outcome { return w.drain(p, s) })
	if p.refills && p.drains > 0 {
		deed("refill", p.drains+8*time.Second, func(s *state, _ *block) outcome { return w.refill(p, s) })
	}
}

// cancel is what a payer does to a nonce that it wants to be good for nothing.
func (w *world) cancel(p *purchase, s *state, b *block) outcome {
	u := use{tx: w.deedHash("cancel", p), block: b.number}
	if p.by == byTransfer {
		out := w.chain.cancel(s, p.auth, u)
		if !out.failed {
			w.covered("payer cancels")
		}
		return out
	}
	w.covered("payer invalidates a permit")
	call := invalidation(&p.ticket.signed.Permit.Permit)
	return w.chain.call(s, frame{from: p.auth.from, at: b.time, block: b.number, tx: u.tx}, call.To, call.Data)
}

func (w *world) drain(p *purchase, s *state) outcome {
	w.covered("payer drained")
	s.balances[p.auth.from] = 0
	return outcome{gas: gasTransfer}
}

// refill gives a payer back what it had, money and allowance.
func (w *world) refill(p *purchase, s *state) outcome {
	s.balances[p.auth.from], s.allowances[p.auth.from] = w.funds[p.auth.from], unlimited
	return outcome{gas: gasTransfer}
}

// A betrayal is what a payer does once its payment is claimed.
type betrayal int

const (
	nothing     betrayal = iota
	invalidates          // gives the nonce up
	empties              // moves its money away
	revokes              // takes the allowance back
	respends             // uses the nonce for something else
	betrayals
)

// betray has a payer do it, some time after its payment was claimed. The caller
// holds the lock.
func (w *world) betray(p *purchase) {
	d := w.dice.of("betray" + p.name)
	at := d.between(time.Millisecond, 4*time.Second)
	w.spawn(func() {
		if !w.rest(at) {
			return
		}
		w.mu.Lock()
		switch {
		case p.betrays == invalidates || p.by == byTransfer && p.betrays == respends:
			w.submit("cancel", p, func(s *state, b *block) outcome { return w.cancel(p, s, b) })
		case p.betrays == empties:
			w.submit("drain", p, func(s *state, _ *block) outcome { return w.drain(p, s) })
		case p.betrays == revokes:
			w.submit("revoke", p, func(s *state, _ *block) outcome {
				w.covered("payer revokes the allowance")
				s.allowances[p.auth.from] = 0
				return outcome{gas: gasTransfer}
			})
		case p.betrays == respends:
			w.submitCall("respend", p, p.auth.from, w.settling(p.other, d), "payer uses the nonce for something else")
		}
		w.mu.Unlock()
		if p.refills && w.rest(8*time.Second) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.submit("refill", p, func(s *state, _ *block) outcome { return w.refill(p, s) })
		}
	})
}

// settling is a call that settles a permit, or one around it.
func (w *world) settling(s *evm.SignedPermit, d dice) evm.Call {
	call := evm.OfPermit(s, nil).Spend(s.Amount)
	if d.of("inside").oneIn(2) {
		return call
	}
	data, err := w.purse.aggregate.arguments.Pack([]call3{{call.To, true, call.Data}})
	if err != nil {
		panic("sim: encoding a batch: " + err.Error())
	}
	return evm.Call{To: multicall, Data: append(selAggregate3[:], data...)}
}

// submit gives the pool somebody else's transaction, ahead of the lane's or
// behind them. The caller holds the lock.
func (w *world) submit(name string, p *purchase, do func(s *state, b *block) outcome) {
	w.enter(name, p, &transaction{hash: w.deedHash(name, p), deed: do})
}

// submitCall is submit for a call whose data others can see. what is covered
// where it does something.
func (w *world) submitCall(name string, p *purchase, from common.Address, call evm.Call, what string) {
	t := &transaction{hash: w.deedHash(name, p), does: &call}
	t.deed = func(s *state, b *block) outcome {
		out := w.chain.call(s, frame{from: from, at: b.time, block: b.number, tx: t.hash}, call.To, call.Data)
		if len(out.logs) > 0 {
			w.covered(what)
		}
		return out
	}
	w.enter(name, p, t)
}

func (w *world) enter(name string, p *purchase, t *transaction) {
	w.note("deed", name, p.name, "")
	if w.dice.of(name + p.name).oneIn(2) {
		w.chain.pool = append([]*transaction{t}, w.chain.pool...)
	} else {
		w.chain.pool = append(w.chain.pool, t)
	}
	w.arrived()
}

func (w *world) deedHash(name string, p *purchase) common.Hash {
	return w.dice.of("deed " + name + p.name).bytes()
}

// steal has a stranger submit the authorization some time after it was
// claimed. The caller holds the lock.
func (w *world) steal(p *purchase) {
	at := w.dice.of("steal"+p.name).between(time.Millisecond, 4*time.Second)
	w.spawn(func() {
		if !w.rest(at) {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		switch p.by {
		case byTransfer:
			w.submit("stranger", p, func(s *state, b *block) outcome {
				out := w.chain.transfer(s, frame{at: b.time, block: b.number, tx: w.deedHash("stranger", p)}, p.ticket.signed.Transfer)
				if !out.failed {
					w.covered("included by a stranger")
				}
				return out
			})
		case byPermit, byUpto: // the proxy of upto refuses strangers; auditCharge would see it
			w.submitCall("stranger", p, common.HexToAddress("0xcc"), w.settling(p.ticket.signed.Permit, w.dice.of("settling"+p.name)), "permit included by a stranger")
		}
	})
}

// batched takes note of a mined transaction that carries several payments.
// The caller holds the lock.
func (w *world) batched(t *transaction) {
	if *t.tx.To() != multicall {
		return
	}
	w.covered("batch")
	for i, key := range w.purse.lanes {
		if i > 0 && key.Address() == t.lane {
			w.covered("batch on a second lane")
		}
	}
}

// hasCode reports whether an account is a contract's.
func (w *world) hasCode(a common.Address) bool {
	return w.profile.contract || w.profile.wallet && a == w.purse.payers[0].Address()
}

// codeAt returns the code of an account. The caller holds the lock.
func (w *world) codeAt(a common.Address) []byte {
	if a == evm.Permit2 {
		return []byte{0x60}
	}
	if w.hasCode(a) {
		return append([]byte{0xef, 0x01, 0x00}, a[:]...)
	}
	return nil
}

// parse reads a transaction that is to be broadcast.
func (w *world) parse(raw []byte) (*types.Transaction, common.Address, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	tx, lane, err := w.chain.parse(raw)
	if err != nil {
		w.violate("I6: %v", err)
	}
	if tx == nil {
		return nil, lane, err
	}
	return tx, lane, nil
}

// logger returns what a process logs to.
func (w *world) logger(name string) *slog.Logger {
	if !w.verbose {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(&scribe{w, name}, nil))
}

// A scribe writes log lines into the history.
type scribe struct {
	w    *world
	name string
}

func (s *scribe) Write(line []byte) (int, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	_, text, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
	s.w.note("log", s.name, "", text)
	return len(line), nil
}

// resting reports whether nothing is left to happen.
func (w *world) resting() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unrest() == ""
}

// unrest says what is not finished. The caller holds the lock.
func (w *world) unrest() string {
	for _, s := range w.seats {
		if !s.gone && (s.current == nil || s.current.serves == nil) {
			return "process " + s.name + " does not serve"
		}
	}
	var open []string
	for _, p := range w.purchases {
		if p.open > 0 {
			open = append(open, fmt.Sprintf("%d clients with payment %s have no answer", p.open, p.name))
		}
	}
	for _, b := range w.ledgers() {
		entries := w.seen(b)
		for _, p := range w.purchases {
			e, ok := entries[ledgerKey(p.key)]
			if now := stateOf(e.Value); ok && !w.rests(b, p, now) {
				open = append(open, fmt.Sprintf("payment %s is %s", p.name, now))
			}
		}
	}
	if len(w.openNonces()) > 0 {
		open = append(open, "a lane has nonces that are in no block")
	}
	return strings.Join(open, ", ")
}
