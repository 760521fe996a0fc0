package main

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tollgate402/tollgate/internal/failpoint"
)

// A fall says how one life of the shop, or of the facilitator that it asks,
// ends.
type fall struct {
	victim string          // shop or teller
	point  failpoint.Point // "" is any moment
	pass   int             // which time that the point is passed
	after  time.Duration   // with no point: how long after the shop has begun to serve
	jammed bool            // the chain includes nothing meanwhile
	reload bool            // the configuration is loaded again and again meanwhile
	both   bool            // the other process, or another instance, dies with it
	calm   bool            // what earlier lives had under way has been answered before
	eldest bool            // of several instances it is the one that has lived longest
	pick   int             // chooses among the instances that it may be
}

// A plan is the order in which lives end. It follows from its seed alone; at
// what a running process is when its time comes is up to the machine.
type plan struct {
	rng       *rand.Rand
	points    []failpoint.Point // that the run must hit
	remote    bool
	shared    bool // the ledger is one that others may use, too
	instances int
	jams      float64 // how many lives pass on a chain that includes nothing
	queue     []failpoint.Point
	rounds    int // how often the queue has been filled
	lives     int
}

func newPlan(o options) *plan {
	p := &plan{
		rng:    rand.New(rand.NewPCG(o.seed, 0x746f6c6c)), //nolint:gosec // a schedule that can be repeated, no secret
		remote: o.facilitator == remote, shared: o.ledger == onPostgres, instances: o.instances, jams: o.jams,
	}
	left := without(o)
	for _, point := range failpoint.Points() {
		if !slices.Contains(left, point) {
			p.points = append(p.points, point)
		}
	}
	return p
}

// tellers are the points that a facilitator passes; the others belong to the
// till.
var tellers = []failpoint.Point{
	failpoint.Claimed, failpoint.Intended, failpoint.Broadcast, failpoint.Included, failpoint.Settled,
	failpoint.Replaced, failpoint.Allocating, failpoint.PowerLost,
}

// slowRounds says that K11 comes up in one of so many rounds: a transaction is
// replaced only once it has been stuck for some ten seconds.
const slowRounds = 6

// On a shared ledger what a process had claimed is released when others have
// seen for five seconds that it is dead.
const (
	// eldestEvery says that of several instances the one that has lived longest,
	// and takes over from the others, dies in one of so many cycles.
	eldestEvery = 12

	// calmEvery says that one instance alone lives long enough, in one of so
	// many cycles, to take over from those before it.
	calmEvery = 4
)

// next returns how the next life ends: in two of three cases at a point, in an
// order in which each but K11 comes up once before any comes up again.
func (p *plan) next() fall {
	p.lives++
	f := fall{victim: "shop", both: (p.remote || p.instances > 2) && p.rng.IntN(8) == 0}
	if p.instances > 1 {
		f.pick = p.rng.IntN(1 << 16)
	}
	f.eldest = p.instances > 1 && p.lives%eldestEvery == 0
	if f.calm = f.eldest || p.shared && p.instances == 1 && p.lives%calmEvery == 0; f.calm {
		f.both, f.after = false, time.Duration(p.rng.IntN(350))*time.Millisecond
		return f
	}
	if p.rng.IntN(3) == 0 {
		f.after = time.Duration(p.rng.IntN(350)) * time.Millisecond
		f.jammed = p.rng.Float64() < p.jams
		f.reload = p.rng.IntN(6) == 0
		if f.jammed {
			f.after += 1500 * time.Millisecond // past the deadline of the routes
		}
		if p.remote && p.rng.IntN(2) == 0 {
			f.victim = "teller"
		}
		return f
	}
	if len(p.queue) == 0 {
		p.queue = slices.Clone(p.points)
		if p.rounds%slowRounds != 0 {
			p.queue = slices.DeleteFunc(p.queue, func(q failpoint.Point) bool { return q == failpoint.Replaced })
		}
		p.rounds++
		p.rng.Shuffle(len(p.queue), func(i, j int) { p.queue[i], p.queue[j] = p.queue[j], p.queue[i] })
	}
	f.point, p.queue = p.queue[0], p.queue[1:]
	return p.aim(f)
}

// at returns a life that ends at a point.
func (p *plan) at(point failpoint.Point) fall { return p.aim(fall{victim: "shop", point: point}) }

// aim chooses the rest about a life that ends at a point.
func (p *plan) aim(f fall) fall {
	f.pass = 1 + p.rng.IntN(24/max(1, p.instances)) // each instance has its share of the clients
	switch f.point {
	case failpoint.Replaced:
		f.pass, f.jammed = 1, true
	case failpoint.Reloading:
		f.pass, f.reload = 1+p.rng.IntN(2), true
	default:
	}
	if p.remote && slices.Contains(tellers, f.point) && (f.point == failpoint.Replaced || p.rng.IntN(2) == 0) {
		f.victim = "teller"
	}
	return f
}
