package sim

import (
	"context"
	"errors"
	"time"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/signer/localkey"
)

// errOver is what a dead process gets to hear once its world has ended, so
// that its goroutines end too.
var errOver = errors.New("sim: the process is dead")

// A process is one life of the seller's program. Whatever it does to the
// world goes through act or enter, which let nothing pass once it is dead.
type process struct {
	w     *world
	seat  *seat
	name  string
	dice  dice
	store storage

	// Guarded by the world's lock.
	dead   bool
	broken chan struct{} // closed when it dies: connections break
	plan   plan
	struck map[string]int // how often each point was passed
	counts map[string]int // of interactions, by what they are
	serves *shift         // nil until it takes requests
	shifts []*shift
	ledger *ledger.Ledger
}

// A shift is what a reload replaces: the till, the engine and its node client
// over the same ledger.
type shift struct {
	engine  *settle.Engine       // nil where somebody else settles
	journal *facilitator.Journal // that has somebody else settle, or nil
	handler *facilitator.Handler // what others ask
	till    *till.Till
	node    *node
	users   int           // guarded by the world's lock
	retired bool          // guarded by the world's lock
	idle    chan struct{} // closed when it is retired and nobody uses it
}

// A plan says when a process dies.
type plan struct {
	kind   string       // of the interaction; "" means no such plan
	state  ledger.State // that it stores; "" means any
	before bool         // just before it has its effect, not just after
	nth    int          // at which of them, from 1
	name   string       // the point's name in THREATS §2.5
}

// An interaction is one thing that a process does to the world.
type interaction struct {
	kind, id string
	state    ledger.State // that a commit stores
	disk     bool         // quick, and with a disk's faults
	least    time.Duration
	most     time.Duration // 0 means what is usual
	deaf     bool          // its end does not depend on ctx
}

// luck is what chance has for one interaction.
type luck struct {
	dice   dice
	broken bool // it fails, at once or after a while
	late   bool // it takes far too long and then fails
	stale  time.Duration
}

type actorKey struct{}

// as names who acts with a context.
func as(ctx context.Context, actor string) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

func actorOf(ctx context.Context) string {
	if name, ok := ctx.Value(actorKey{}).(string); ok {
		return name
	}
	return "engine"
}

// enter takes the world's lock for a living process. A dead one waits until
// the world ends.
func (p *process) enter() error {
	p.w.mu.Lock()
	if p.dead {
		p.w.mu.Unlock()
		return p.park()
	}
	return nil
}

// park keeps a goroutine of a dead process until the world ends.
func (p *process) park() error {
	<-p.w.over
	return errOver
}

// act does something to the world: it waits as long as that takes, and then
// runs effect under the world's lock. How long that is, and whether it fails,
// depends on who does what for which time, and on nothing else.
func (p *process) act(ctx context.Context, i interaction, effect func(l luck) error) error {
	if err := p.enter(); err != nil {
		return err
	}
	w := p.w
	actor := actorOf(ctx)
	what := actor + "|" + i.kind + "|" + i.id
	n := p.counts[what]
	p.counts[what]++
	l := w.luckFor(p.dice.of(what).nth(n), i)
	w.mu.Unlock()

	wait := l.dice.of("wait").between(200*time.Microsecond, w.profile.latency)
	switch {
	case l.late:
		wait = l.dice.of("wait").between(time.Second, w.profile.hang)
	case i.most > 0:
		wait = l.dice.of("wait").between(i.least, i.most)
	case i.disk:
		wait = l.dice.of("wait").between(50*time.Microsecond, 4*time.Millisecond)
	}
	ended := sleep(ctx, wait)
	if ended != nil && !i.deaf {
		if err := p.enter(); err != nil {
			return err
		}
		w.note(i.kind, p.name+"/"+actor, i.id, "given up")
		w.mu.Unlock()
		return ended
	}

	if err := p.enter(); err != nil {
		return err
	}
	if p.strike(i.kind, string(i.state), true) {
		w.mu.Unlock()
		return p.park()
	}
	err := effect(l)
	w.note(i.kind, p.name+"/"+actor, i.id, string(i.state)+outcomeText(err))
	if p.strike(i.kind, string(i.state), false) || err == nil && i.kind == "commit" && p.strike("wrote", string(i.state), false) {
		w.mu.Unlock()
		return p.park()
	}
	w.mu.Unlock()
	return err
}

func outcomeText(err error) string {
	if err == nil {
		return ""
	}
	return " " + clip(err.Error(), 60)
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	if ctx.Done() == nil {
		time.Sleep(d)
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// strike lets the process die if that is planned for this point. The caller
// holds the world's lock.
func (p *process) strike(kind, state string, before bool) bool {
	if p.dead {
		return true
	}
	if p.plan.kind != kind || p.plan.before != before || p.plan.state != "" && string(p.plan.state) != state {
		return false
	}
	p.struck[kind]++
	if p.struck[kind] != p.plan.nth || !p.w.troubled() {
		return false
	}
	p.w.covered(p.plan.name)
	p.crash(p.plan.name)
	return true
}

// crash ends the process at once: nothing of it acts any more, and what was
// not on the disk is gone. Another one comes up later. The caller holds the
// world's lock.
func (p *process) crash(why string) {
	if p.dead {
		return
	}
	w := p.w
	w.note("crash", p.name, "", why)
	w.report.Crashes++
	p.dead = true
	p.store.crash(p.dice.of("crash"))
	close(p.broken)
	p.seat.vacate(p.dice)
}

// doom has the operator restart the process soon. The caller holds the
// world's lock.
func (p *process) doom(why string) {
	after := p.dice.of("doom").between(100*time.Millisecond, 3*time.Second)
	p.w.spawn(func() {
		if p.w.rest(after) {
			p.w.mu.Lock()
			defer p.w.mu.Unlock()
			p.crash(why)
		}
	})
}

// reload puts a new shift in place of the one that serves.
func (p *process) reload() {
	w := p.w
	s, err := p.newShift()
	if p.enter() != nil {
		return
	}
	defer w.mu.Unlock()
	if w.ended() {
		return
	}
	if err != nil {
		w.violate("the engine does not start: %v", err)
		return
	}
	old := p.serves
	p.serves = s
	w.note("serve", p.name, "", "")
	if old == nil {
		return
	}
	old.retired = true
	if old.users == 0 {
		close(old.idle)
	}
	w.spawn(func() {
		select {
		case <-old.idle:
			old.stop()
		case <-w.over:
		}
	})
}

func (p *process) newShift() (*shift, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	w := p.w
	s := &shift{idle: make(chan struct{})}
	if p.seat.asks == nil {
		s.node = newNode(p, len(p.shifts))
	}
	p.shifts = append(p.shifts, s)
	w.mu.Unlock()
	if p.seat.asks != nil {
		return s, p.askRemote(s)
	}

	network := payment.EVM(chainID)
	var nodes settle.Chain = s.node
	if w.flaw == SpentIsPaid || w.flaw == LatestIsFinal {
		nodes = &flawedNode{node: s.node, flaw: w.flaw}
	}
	engine, err := settle.New(settle.Config{Network: network, Chain: nodes, Ledger: p.ledger, Signers: p.signers(), MaxInFlight: w.profile.inFlight, Now: time.Now, Logger: w.logger(p.name)})
	if err != nil {
		return nil, err
	}
	if err := p.enterThen(func() { s.engine = engine }); err != nil {
		return nil, err
	}
	for {
		// A disk that failed keeps the process from starting, no more.
		if err = engine.Start(); err == nil {
			break
		}
		if !w.rest(time.Second) {
			return nil, err
		}
	}
	embedded, err := facilitator.NewEmbedded(p.ledger, []facilitator.Market{{Network: network, Tokens: []payment.Token{w.purse.token}, Chain: nodes, Engine: engine}}, w.logger(p.name))
	if err != nil {
		return nil, err
	}
	patience, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, _ = s.node.WaitHead(as(patience, "start"), noHash) // without a head it answers 503
	settles := flawed(w, s.node, embedded)
	s.till = &till.Till{Facilitator: settles, Ledger: p.ledger, Now: time.Now, Logger: w.logger(p.name), Proves: true}
	p.start(s)
	s.handler = &facilitator.Handler{Facilitator: settles, Logger: w.logger(p.name)}
	return s, nil
}

// start begins what a shift's till does in the background.
func (p *process) start(s *shift) {
	if p.w.profile.mode == till.Metered && !p.w.ended() { // else nobody would stop it
		s.till.Start()
	}
}

// stop ends what a shift does in the background.
func (s *shift) stop() {
	if s.till != nil {
		s.till.Stop()
	}
	if s.engine != nil {
		s.engine.Stop()
	}
	if s.journal != nil {
		s.journal.Stop()
	}
}

// signers returns the lanes.
func (p *process) signers() []payment.CallSigner {
	var list []payment.CallSigner
	for _, key := range p.w.purse.lanes[:p.w.profile.lanes] {
		list = append(list, &lane{p: p, key: key})
	}
	return list
}

// A lane signs calls for a process.
type lane struct {
	p   *process
	key *localkey.Key
}
