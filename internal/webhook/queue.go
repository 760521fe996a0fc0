package webhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

const (
	// few is how many deliveries there may be at once before every host gets
	// one at a time.
	few = 4

	defaultAtOnce = 16

	// attemptTime bounds one attempt. A Sender has a bound of its own, which
	// should be shorter.
	attemptTime = 10 * time.Second

	// leaseTime is for how long nobody else tries what one process is trying:
	// attemptTime, and what it takes to note the outcome.
	leaseTime = 30 * time.Second

	// lookEvery is how often a queue looks for what other processes have
	// written or left behind.
	lookEvery = 5 * time.Second

	// sweepEvery is how often, and sweepMost how many at a time, deliveries are
	// forgotten.
	sweepEvery = time.Hour
	sweepMost  = 256
)

// A Sender makes the requests: an *egress.Client.
type Sender interface {
	// Check returns an error for a URL that Do would refuse.
	Check(u *url.URL) error

	// Do sends a request. Its errors must not have secrets of the URL. It must
	// not follow redirects.
	Do(r *http.Request) (*http.Response, error)
}

// Config is what a Queue needs.
type Config struct {
	Store     ledger.Store
	Sender    Sender
	Endpoints []Endpoint

	// Now is the time; nil means time.Now.
	Now func() time.Time

	// Chance returns a number from 0 up to 1, from any goroutine, by which pauses
	// are made longer or shorter. Nil means a random one.
	Chance func() float64

	// AtOnce is the largest number of deliveries under way. Default: 16. Beyond
	// four of them there is one for each host, so that receivers that hang do
	// not hold up the others.
	AtOnce int

	// Log receives what becomes of deliveries. Nil discards it.
	Log *slog.Logger
}

// A Queue keeps events and delivers them. Several queues, in one process or in
// many, may work on one store. Its methods are safe for concurrent use.
type Queue struct {
	store     ledger.Store
	sender    Sender
	endpoints map[string]*target
	names     []string // of the endpoints, in the order of the configuration
	now       func() time.Time
	chance    func() float64
	atOnce    int
	log       *slog.Logger
	wake      chan struct{} // has room for one
}

// A target is an endpoint with its URL.
type target struct {
	Endpoint
	url *url.URL
}

// New returns a queue. It does no I/O; Run delivers.
func New(c Config) (*Queue, error) {
	q := &Queue{
		store: c.Store, sender: c.Sender, endpoints: map[string]*target{},
		now: c.Now, chance: c.Chance, atOnce: c.AtOnce, log: c.Log, wake: make(chan struct{}, 1),
	}
	if q.now == nil {
		q.now = time.Now
	}
	if q.chance == nil {
		q.chance = rand.Float64
	}
	if q.atOnce == 0 {
		q.atOnce = defaultAtOnce
	}
	if q.log == nil {
		q.log = slog.New(slog.DiscardHandler)
	}
	if q.atOnce < 0 {
		return nil, errors.New("webhook: there must be at least one delivery at once")
	}
	if len(c.Endpoints) > MaxEndpoints {
		return nil, fmt.Errorf("webhook: there are %d endpoints, the most is %d", len(c.Endpoints), MaxEndpoints)
	}
	for _, p := range c.Endpoints {
		u, err := p.check()
		if err != nil {
			return nil, err
		}
		if err := q.sender.Check(u); err != nil {
			return nil, fmt.Errorf("webhook %s: %w", p.Name, err)
		}
		if q.endpoints[p.Name] != nil {
			return nil, fmt.Errorf("webhook %s: there are two of this name", p.Name)
		}
		p.Secrets, p.Types = slices.Clone(p.Secrets), slices.Clone(p.Types)
		q.endpoints[p.Name] = &target{p, u}
		q.names = append(q.names, p.Name)
	}
	return q, nil
}

// Writes returns the entries that deliver e to the endpoints of these names, or
// to all if there are none, as far as they want events of its type. The caller
// puts them into the commit that makes the event true, and calls Wake when that
// has been made. It does no I/O.
func (q *Queue) Writes(e Event, endpoints ...string) ([]ledger.Write, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	if len(endpoints) == 0 {
		endpoints = q.names
	}
	endpoints = slices.Compact(slices.Sorted(slices.Values(endpoints)))
	var writes []ledger.Write
	for _, name := range endpoints {
		p := q.endpoints[name]
		if p == nil {
			return nil, fmt.Errorf("webhook: there is no endpoint %.64q", name)
		}
		if !p.wants(e.Type) {
			continue
		}
		more, err := enqueue(e, name)
		if err != nil {
			return nil, err
		}
		writes = append(writes, more...)
	}
	return writes, nil
}

// Wake makes Run look at the queue. It never waits.
func (q *Queue) Wake() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// A round is what Run knows of the deliveries under way. Run's goroutine owns it.
type round struct {
	group *sync.WaitGroup
	ended chan ended // has room for all that are under way
	busy  map[ledger.Key]bool
	hosts map[string]int
	total int
	last  string // the endpoint that a delivery was begun for last

	// ignored are places that are left alone until a time.
	ignored map[ledger.Key]time.Time
}

// ended says that a delivery is not under way any more.
type ended struct {
	at     ledger.Key
	host   string
	ignore time.Duration // for which the place is to be left alone
}

// Run delivers until ctx ends. It then waits for the deliveries under way,
// which takes ten seconds at most and as long as the store takes to note them;
// the store must stay open until it returns.
func (q *Queue) Run(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	w := &round{group: &group, ended: make(chan ended, q.atOnce), busy: map[ledger.Key]bool{}, hosts: map[string]int{}, ignored: map[ledger.Key]time.Time{}}
	var swept time.Time
	failing := false
	for ctx.Err() == nil {
		var err error
		if now := q.now(); now.Sub(swept) >= sweepEvery {
			maps.DeleteFunc(w.ignored, func(_ ledger.Key, until time.Time) bool { return !until.After(now) })
			var n int
			if n, err = q.sweep(ctx, sweepMost); n < sweepMost {
				swept = now // else there is more for the next round
			}
		}
		next, passErr := q.pass(ctx, w)
		if passErr != nil {
			err = passErr
		}
		if err != nil && !failing && ctx.Err() == nil {
			q.log.Error("webhooks wait for the ledger", "error", err)
		}
		failing = err != nil
		wait := lookEvery
		if !next.IsZero() {
			wait = min(wait, max(next.Sub(q.now()), time.Millisecond))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-q.wake:
		case e := <-w.ended:
			w.end(e, q.now())
		}
		timer.Stop()
	}
}

// end notes that a delivery is not under way any more.
func (w *round) end(e ended, now time.Time) {
	delete(w.busy, e.at)
	w.total--
	if w.hosts[e.host]--; w.hosts[e.host] == 0 {
		delete(w.hosts, e.host)
	}
	if e.ignore > 0 {
		w.ignored[e.at] = now.Add(e.ignore)
	}
}

// pass begins what is due, as far as there is room, and returns when something
// else will be, or no time. The end of a delivery, where there was no room, is
// the reason for another pass.
func (q *Queue) pass(ctx context.Context, w *round) (next time.Time, err error) {
	names, err := q.queues(ctx)
	if err != nil {
		return next, err
	}
	i, found := slices.BinarySearch(names, w.last)
	if found {
		i++
	}
	for _, name := range slices.Concat(names[i:], names[:i]) { // so that each has its turn
		due, err := q.begin(ctx, w, name)
		if err != nil {
			return next, err
		}
		if !due.IsZero() && (next.IsZero() || due.Before(next)) {
			next = due
		}
	}
	return next, nil
}

// queues returns the names of the endpoints for which something waits, in
// ascending order.
func (q *Queue) queues(ctx context.Context) ([]string, error) {
	var names []string
	for after := ledger.Key(""); ; {
		page, err := q.store.Scan(ctx, dueSpace, after, 1)
		if err != nil || len(page) == 0 {
			slices.Sort(names) // keys are in the order of names with a "/" at the end
			return names, err
		}
		_, _, name, err := parsePlace(page[0].Key)
		if err != nil {
			after = page[0].Key // Check finds it
			continue
		}
		names = append(names, name)
		after = queueOf(name) + "~"
	}
}

// begin begins what is due to an endpoint, as far as there is room, and returns
// when the next one will be, or no time.
func (q *Queue) begin(ctx context.Context, w *round, name string) (time.Time, error) {
	const some = 32
	host := ""
	if p := q.endpoints[name]; p != nil {
		host = p.url.Host
	}
	for after := ledger.Key(""); ; {
		page, err := q.store.Scan(ctx, queueOf(name), after, some)
		if err != nil {
			return time.Time{}, err
		}
		for _, e := range page {
			after = e.Key
			due, id, _, err := parsePlace(e.Key)
			if err != nil || w.busy[e.Key] || w.ignored[e.Key].After(q.now()) {
				continue
			}
			if due.After(q.now()) {
				return due, nil
			}
			if w.total >= q.atOnce || w.total >= few && w.hosts[host] > 0 {
				return time.Time{}, nil
			}
			w.busy[e.Key] = true
			w.hosts[host]++
			w.total++
			w.last = name
			w.group.Go(func() { // ends with its attempt; Run waits for it
				w.ended <- ended{e.Key, host, q.deliver(context.WithoutCancel(ctx), e.Key, id, name)}
			})
		}
		if len(page) < some {
			return time.Time{}, nil
		}
	}
}

// get returns a stored delivery, or ledger.ErrNotFound.
func (q *Queue) get(ctx context.Context, id, endpoint string) (*Delivery, error) {
	e, err := q.store.Get(ctx, deliveryKey(id, endpoint))
	if err != nil {
		return nil, err
	}
	return decode(e)
}

// deliver makes one attempt at the delivery at a place, if nobody else makes
// it. It returns for how long the place is to be left alone where there is
// nothing to be done: it is somebody else's by now and about to be cleared, or
// Check will find it, or the store is away.
func (q *Queue) deliver(ctx context.Context, at ledger.Key, id, name string) (ignore time.Duration) {
	log := q.log.With("endpoint", name, "event", id)
	e, err := q.store.Get(ctx, deliveryKey(id, name))
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		log.Error("webhook waits for the ledger", "error", err)
		return lookEvery
	}
	if err != nil {
		return sweepEvery
	}
	d, err := decode(e)
	if err != nil {
		log.Error("webhook cannot be read", "error", err)
		return sweepEvery
	}
	if d.place() != at {
		return sweepEvery
	}
	leased := *d
	leased.Due, leased.Leased = q.now().Add(leaseTime), true
	if err := q.put(ctx, d, &leased); conflict(err) {
		return sweepEvery
	} else if err != nil {
		log.Error("webhook waits for the ledger", "error", err)
		return lookEvery
	}
	result := q.attempt(ctx, &leased)
	next := leased
	next.settle(&result, q.now(), q.chance)
	err = q.put(ctx, &leased, &next)
	log = log.With("type", next.Event.Type, "attempt", next.Attempts, "status", next.LastStatus)
	switch {
	case conflict(err):
		log.Warn("webhook took so long that somebody else tries it, too")
	case err != nil:
		log.Error("webhook will be sent again, because what came of it cannot be noted", "error", err)
	case next.State == Delivered:
		log.Info("webhook delivered")
	case next.State == Failed:
		log.Error("webhook failed for good", "reason", next.LastError)
	default:
		log.Warn("webhook not delivered", "reason", next.LastError, "next", next.Due)
	}
	return 0
}

// put stores next in place of d, in one commit, and gives next its version.
func (q *Queue) put(ctx context.Context, d, next *Delivery) error {
	writes, err := d.move(next)
	if err != nil {
		return err
	}
	if err := q.store.Commit(ctx, writes...); err != nil {
		return err
	}
	next.version = d.version + 1
	return nil
}

func conflict(err error) bool {
	_, ok := errors.AsType[*ledger.ConflictError](err)
	return ok
}
