package sim

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// A seat is a place at which the seller's program runs, one process after
// another. The world's lock guards it.
type seat struct {
	w       *world
	name    string
	books   *books
	current *process // nil while none lives
	lives   int
	gone    bool  // nobody starts another process
	asks    *seat // whose facilitator settles for it; nil if it settles itself
}

// Books are what processes write down: one after the other on a disk of their
// own, or several at once in a database.
type books struct {
	entries image // what a crash leaves for certain
	shared  bool
}

// storage is what a process writes its books with.
type storage interface {
	ledger.Store

	// view is what reads see. The caller holds the world's lock.
	view() image

	// crash leaves in the books what a crash now would leave there. The
	// caller holds the world's lock.
	crash(d dice)
}

// sit makes the seats of the world.
func (w *world) sit() {
	w.seats, w.shops, w.facilitator = nil, nil, nil
	switch {
	case w.profile.remote:
		w.facilitator = &seat{w: w, name: "f", books: &books{entries: image{}}}
		w.shops = []*seat{{w: w, name: "t", books: &books{entries: image{}}, asks: w.facilitator}}
		w.seats = []*seat{w.shops[0], w.facilitator}
		return
	case w.profile.instances == 1:
		w.seats = []*seat{{w: w, name: "p", books: &books{entries: image{}}}}
	default:
		database := &books{entries: image{}, shared: true}
		for i := range w.profile.instances {
			w.seats = append(w.seats, &seat{w: w, name: "abc"[i : i+1], books: database})
		}
	}
	w.shops = w.seats
}

// ledgers returns the books of the world, each once.
func (w *world) ledgers() []*books {
	var all []*books
	for _, s := range w.seats {
		if len(all) == 0 || all[len(all)-1] != s.books {
			all = append(all, s.books)
		}
	}
	return all
}

// seen returns what is in the books as processes see it. The caller holds the
// lock.
func (w *world) seen(b *books) image {
	for _, s := range w.seats {
		if s.books == b && s.current != nil {
			return s.current.store.view()
		}
	}
	return b.entries
}

// living returns the processes that live. The caller holds the lock.
func (w *world) living() []*process {
	var all []*process
	for _, s := range w.seats {
		if s.current != nil {
			all = append(all, s.current)
		}
	}
	return all
}

// opening is within what time all seats have their first process.
const opening = 3 * time.Second

// open begins the lives of a seat.
func (s *seat) open() {
	if s == s.w.seats[0] || s.w.rest(s.w.dice.of("opening").of(s.name).between(0, opening)) {
		s.boot()
	}
}

// vacate has another process come up some time after one has died. In a
// world of several instances that can take longer than the others wait for
// it, and all but the first can stay away for good. The caller holds the
// lock.
func (s *seat) vacate(d dice) {
	w := s.w
	s.current = nil
	down := d.of("down").between(50*time.Millisecond, w.profile.down)
	if s.books.shared && d.of("away").oneIn(3) {
		down = d.of("away").between(8*time.Second, 40*time.Second)
		if s != w.seats[0] && d.of("gone").oneIn(3) {
			s.gone = true
			w.covered("instance stays away")
			return
		}
	}
	w.spawn(func() {
		if w.rest(down) {
			s.boot()
		}
	})
}

// boot starts a process on the books as they are.
func (s *seat) boot() {
	w := s.w
	w.mu.Lock()
	s.lives++
	name := fmt.Sprintf("%s%d", s.name, s.lives)
	p := &process{
		w: w, seat: s, name: name, dice: w.dice.of(name), broken: make(chan struct{}),
		struck: map[string]int{}, counts: map[string]int{},
	}
	if s.lives <= w.profile.crashes {
		p.plan = w.planFor(p.dice)
	}
	p.ledger = p.openLedger()
	s.current = p
	w.lives[name] = p
	w.processes = append(w.processes, p)
	w.note("boot", name, "", p.plan.name)
	if at, ok := w.timeOfDeath(p.dice); ok && s.lives <= w.profile.crashes {
		w.spawn(func() {
			if w.rest(at) {
				w.mu.Lock()
				defer w.mu.Unlock()
				p.crash("at random")
			}
		})
	}
	w.mu.Unlock()

	// As the product does: nothing is served before the ledger is recovered.
	alone := !s.books.shared
	if _, err := p.ledger.Recover(as(context.Background(), "recovery"), alone); err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		p.crash("recovery failed: " + err.Error())
		return
	}
	if s.books.shared {
		w.spawn(p.sweep)
	}
	p.reload()
}

// openLedger opens the books for a process. The caller holds the lock.
func (p *process) openLedger() *ledger.Ledger {
	b := p.seat.books
	if !b.shared {
		p.store = openDisk(p, b.entries)
		return ledger.New(p.store, p.name, time.Now)
	}
	session := &session{p: p, rows: b.entries}
	p.store = session
	now := time.Now
	if p.w.flaw == IgnoresLeases {
		now = func() time.Time { return time.Now().Add(time.Hour) }
	}
	if p.w.flaw == IgnoresEpochs {
		return ledger.NewShared(&unfenced{session}, p.name, now)
	}
	return ledger.NewShared(session, p.name, now)
}

// sweepEvery is how often a process looks for what others have left behind,
// as the product does.
const sweepEvery = time.Minute

func (p *process) sweep() {
	hasty := p.w.flaw == TakesOverAtOnce
	every := sweepEvery
	if hasty {
		every = time.Second
	}
	for p.w.rest(every) {
		if p.enter() != nil {
			return
		}
		p.w.mu.Unlock()
		_, _ = p.ledger.Recover(as(context.Background(), "sweep"), hasty) // what fails is done the next time
	}
}

// takenForDead is told that a process acts in the place of another one, and
// checks that there is a reason: that one is dead, or could not say that it is
// alive. The caller holds the lock.
func (w *world) takenForDead(by *process, other string) (dead, elsewhere bool) {
	p := w.lives[other]
	if p == nil || p == by {
		return false, false
	}
	if !p.dead && !p.excused() {
		w.violate("%s took %s for dead, which was alive and could say so", by.name, p.name)
	}
	return p.dead, p.seat != by.seat
}

// excused reports whether a process could not tell the others, lately, that
// it is alive. The caller holds the lock.
func (p *process) excused() bool {
	s, ok := p.store.(*session)
	return ok && s.troubled()
}

// kept notes what a commit says of the keeper of a lane. The caller holds the
// lock.
func (w *world) kept(by *process, before, after ledger.Lane) {
	if after.Keeper == before.Keeper || before.Keeper == "" {
		return
	}
	w.note("lane taken over", by.name, clip(after.Address, 8), "from "+before.Keeper)
	w.covered("lane taken over")
	switch dead, elsewhere := w.takenForDead(by, before.Keeper); {
	case !dead:
		w.covered("lane taken over from a living instance")
	case elsewhere:
		w.covered("lane taken over by another instance")
	}
}

func isLane(k ledger.Key) bool { return strings.HasPrefix(string(k), "lane/") }
