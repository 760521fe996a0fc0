package main

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
)

// An order is one thing that a client wants once, whatever it takes.
type order struct {
	id      string
	route   string // first part of the path: held, order, first or deep
	method  string
	version int
	cheques []*cheque // guarded by book.mu: what was signed for it, in this order
}

func (o *order) path() string { return "/" + o.route + "/" + o.id }

// content is the body that the order is sent with.
func (o *order) content() string {
	if o.method == http.MethodPost {
		return "order " + o.id
	}
	return ""
}

// A cheque is one signed payment. Everything but the first group is guarded by
// book.mu.
type cheque struct {
	order         *order
	key           payment.Key
	payer         common.Address
	nonce         common.Hash
	header, value string
	cycle         int // in which it was signed

	refused string      // the reason, where the answer was 402: pay again
	served  time.Time   // when the goods first arrived
	last    string      // the last answer that was neither the goods nor 402
	done    bool        // its client has stopped asking
	landed  common.Hash // the transaction that moved the money
	owed    bool        // the ledger says that the money goes back, when it was last looked at
	history []string

	// orphaned is since when its client waits for the living to take it over;
	// zero while no instance has died that had it under way.
	orphaned time.Time
	takeover time.Duration // how long that took, once it is answered
}

// A book is what clients did and were told, and what the chain did.
type book struct {
	began time.Time
	cycle atomic.Int64
	fresh []atomic.Int64 // unix nanoseconds, by instance: when the latest request that got goods there began

	mu         sync.Mutex
	orders     int                     // guarded by mu
	signatures int                     // guarded by mu
	cheques    map[common.Hash]*cheque // guarded by mu, by nonce
	byKey      map[string]*cheque      // guarded by mu, by the ledger's name
	open       map[*cheque]struct{}    // guarded by mu: those whose clients still ask
	recent     []*cheque               // guarded by mu: some that were served, to be tried again
	takeovers  []time.Duration         // guarded by mu: how long the payments of dead instances took to be answered
	late       []*cheque               // guarded by mu: those that took too long
	death      time.Time               // guarded by mu: when an instance died last
	limit      time.Duration           // see takeoverLimit
	alone      bool                    // there is one instance, and nobody lives to take over from it
}

func newBook(instances int) *book {
	return &book{limit: takeoverLimit, alone: instances == 1, began: time.Now(), fresh: make([]atomic.Int64, instances), cheques: map[common.Hash]*cheque{}, byKey: map[string]*cheque{}, open: map[*cheque]struct{}{}}
}

func (b *book) order(route string, version int) *order {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.orders++
	o := &order{id: fmt.Sprintf("n%d", b.orders), route: route, version: version, method: http.MethodGet}
	if route == "order" {
		o.method = http.MethodPost
	}
	return o
}

func (b *book) signed(c *cheque) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.signatures++
	c.cycle = int(b.cycle.Load())
	c.order.cheques = append(c.order.cheques, c)
	b.cheques[c.nonce], b.byKey[c.key.String()], b.open[c] = c, c, struct{}{}
	b.say(c, "signed as number %d of order %s, %s, v%d", len(c.order.cheques), c.order.id, c.order.route, c.order.version)
}

// say adds a line to a cheque's history, unless it repeats the last one. The
// caller holds mu.
func (b *book) say(c *cheque, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if text == c.last {
		return
	}
	c.last = text
	c.history = append(c.history, fmt.Sprintf("%9.3fs cycle %d: %s", time.Since(b.began).Seconds(), b.cycle.Load(), text))
}

// note adds a line to a cheque's history.
func (b *book) note(c *cheque, format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.say(c, format, args...)
}

// keptRecent is how many served cheques are kept to be tried again.
const keptRecent = 64

// servedBy notes that a request to an instance, which began at a moment, got
// the goods.
func (b *book) servedBy(c *cheque, at int, began time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fresh[at].Store(max(b.fresh[at].Load(), began.UnixNano()))
	if c.served.IsZero() {
		c.served = time.Now()
	}
	b.say(c, "goods")
	if b.recent = append(b.recent, c); len(b.recent) > keptRecent {
		b.recent = b.recent[1:]
	}
}

func (b *book) refusedWith(c *cheque, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c.refused = reason
	b.say(c, "402, pay again: %s", reason)
}

// ended notes that the client has stopped asking with a cheque, because of a
// final answer or, if not answered, for another reason.
func (b *book) ended(c *cheque, answered bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c.done = true
	delete(b.open, c)
	if !answered || c.orphaned.IsZero() {
		return
	}
	now := time.Now()
	c.takeover = now.Sub(c.orphaned)
	b.takeovers = append(b.takeovers, c.takeover)
	if now.Sub(latest(c.orphaned, b.death)) > b.limit && !b.alone {
		b.late = append(b.late, c)
	}
}

// takeoverLimit is how long after the death of an instance the living must
// have answered what it had under way: 99 of 100 payments however many others
// have died meanwhile, and every one after the last of these deaths. What one
// instance leaves behind can hold up what the living have taken over from
// another, since they share a lane. Where the machine is not ours alone,
// -takeover allows more.
const takeoverLimit = 10 * time.Second

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// died notes the death of an instance.
func (b *book) died(at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.death = latest(b.death, at)
}

// orphan notes that an instance has died that had a payment under way. updated
// is when the ledger's entry of the payment was last written. While nobody has
// touched it since an earlier death, the clock of that one runs on; otherwise
// somebody living had taken the payment up, and has died now.
func (b *book) orphan(c *cheque, now, updated time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.orphaned.IsZero() || updated.After(c.orphaned) {
		c.orphaned = now
	}
}

// orphanedAt returns since when a payment waits for the living, or zero.
func (b *book) orphanedAt(c *cheque) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return c.orphaned
}

// orphans returns the payments of dead instances that are not answered yet.
func (b *book) orphans() []*cheque {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []*cheque
	for c := range b.open {
		if !c.orphaned.IsZero() {
			list = append(list, c)
		}
	}
	return list
}

func (b *book) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.open)
}

// landed returns how many of the payments that the ledger names so the chain
// has made.
func (b *book) landed(keys []string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, k := range keys {
		if c := b.byKey[k]; c != nil && c.landed != (common.Hash{}) {
			n++
		}
	}
	return n
}

// oldOne returns a cheque that was served a while ago, or nil.
func (b *book) oldOne(n int) *cheque {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.recent) == 0 {
		return nil
	}
	return b.recent[n%len(b.recent)]
}
