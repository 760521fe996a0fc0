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
}

// A book is what clients did and were told, and what the chain did.
type book struct {
	began time.Time
	cycle atomic.Int64
	fresh atomic.Int64 // unix nanoseconds: when the latest request that got goods began

	mu         sync.Mutex
	orders     int                     // guarded by mu
	signatures int                     // guarded by mu
	cheques    map[common.Hash]*cheque // guarded by mu, by nonce
	byKey      map[string]*cheque      // guarded by mu, by the ledger's name
	open       map[*cheque]struct{}    // guarded by mu: those whose clients still ask
	recent     []*cheque               // guarded by mu: some that were served, to be tried again
}

func newBook() *book {
	return &book{began: time.Now(), cheques: map[common.Hash]*cheque{}, byKey: map[string]*cheque{}, open: map[*cheque]struct{}{}}
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

// servedBy notes that a request that began at a moment got the goods.
func (b *book) servedBy(c *cheque, began time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fresh.Store(max(b.fresh.Load(), began.UnixNano()))
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

// ended notes that the client has stopped asking with a cheque.
func (b *book) ended(c *cheque) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c.done = true
	delete(b.open, c)
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
