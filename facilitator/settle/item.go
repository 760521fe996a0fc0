package settle

import (
	"fmt"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// An item is a payment that the engine watches.
type item struct {
	signed   *evm.Instrument
	until    payment.Finality
	charge   payment.Amount
	approval *evm.RawApproval // that came with the payment, or nil; never changes

	// turn holds one token. Whoever has it may ask the chain about the item,
	// so that waiters and the watcher do not ask twice at once.
	turn chan struct{}

	mu       sync.Mutex
	record   ledger.Record // guarded by mu
	spent    bool          // guarded by mu: something else had used the authorization when the chain was last asked
	retried  time.Time     // guarded by mu: when another transaction was last thought of
	queued   bool          // guarded by mu: it waits for another transaction
	failed   int           // guarded by mu: of how many transactions it is known that they did nothing
	anchored string        // guarded by mu: hash of a block with the transfer that was seen on the way to the head
	looks    int           // guarded by mu: how often the chain was asked
	waiters  int           // guarded by mu: who look for themselves
	came     int           // guarded by mu: how many waiters there ever were
	changed  chan struct{} // guarded by mu: closed at the next change of record
}

func newItem(r ledger.Record, signed *evm.Instrument, until payment.Finality, charge payment.Amount) *item {
	it := &item{signed: signed, until: until, charge: charge, record: r, turn: make(chan struct{}, 1), changed: make(chan struct{})}
	it.turn <- struct{}{}
	return it
}

// itemOf rebuilds an item from what the ledger holds of it.
func (e *Engine) itemOf(r ledger.Record) (*item, error) {
	p, o, err := payment.DecodeRequest(r.Request)
	if err != nil {
		return nil, fmt.Errorf("settle: reading the stored request of payment %s: %w", r.Key, err)
	}
	signed, err := evm.ReadInstrument(p, o)
	if err != nil {
		return nil, fmt.Errorf("settle: reading the stored authorization of payment %s: %w", r.Key, err)
	}
	until, err := payment.ParseFinality(r.Until)
	if err != nil {
		return nil, fmt.Errorf("settle: payment %s: %w", r.Key, err)
	}
	charge, err := payment.ParseUnits(r.Charge, o.Amount.Token())
	if err != nil {
		return nil, fmt.Errorf("settle: the stored charge of payment %s %w", r.Key, err)
	}
	it := newItem(r, signed, until, charge)
	it.approval = e.approvalIn(p, signed)
	return it, nil
}

func (it *item) snapshot() ledger.Record {
	r, _ := it.current()
	return r
}

// spend is the call that moves the item's money.
func (it *item) spend() evm.Call { return it.signed.Settlement(it.charge.Big()) }

// current returns the record, and a channel that is closed when it changes.
func (it *item) current() (ledger.Record, <-chan struct{}) {
	it.mu.Lock()
	defer it.mu.Unlock()
	return it.record, it.changed
}

// key names the payment. It never changes.
func (it *item) key() payment.Key { return it.snapshot().Key }

// skew is what keeps those who wait for one transaction from waking at one
// instant: whoever is first asks for all of them, and who that is should not be
// left to chance. Of the waiters for one payment it is the nth's. It is below a
// third of a millisecond.
func (it *item) skew(nth int) time.Duration {
	k := it.key()
	return time.Duration(uint16(k[0])<<8|uint16(k[1]))*3*time.Nanosecond + time.Duration(nth%100)*time.Microsecond
}

// set replaces the record and wakes whoever waits for a change.
func (it *item) set(r ledger.Record) {
	it.mu.Lock()
	defer it.mu.Unlock()
	it.record = r
	close(it.changed)
	it.changed = make(chan struct{})
}

// advance is set, unless the record has been overtaken.
func (it *item) advance(r ledger.Record) {
	if now := it.snapshot(); r.Newer(&now) {
		it.set(r)
	}
}

// progress returns the record, and whether something else had used the
// authorization when the chain was last asked.
func (it *item) progress() (r ledger.Record, spent bool) {
	it.mu.Lock()
	defer it.mu.Unlock()
	return it.record, it.spent
}

// saw notes what the chain said of the authorization.
func (it *item) saw(fate evm.Fate) {
	it.mu.Lock()
	defer it.mu.Unlock()
	it.spent = fate == evm.Spent
}

// retry reports whether it is time to think of another transaction, and notes
// that somebody does, until unqueue.
func (it *item) retry(now time.Time) bool {
	it.mu.Lock()
	defer it.mu.Unlock()
	if it.queued || !it.retried.IsZero() && now.Sub(it.retried) < resendAfter {
		return false
	}
	it.retried, it.queued = now, true
	return true
}

// failedIn reports whether it is news that so many transactions did nothing.
func (it *item) failedIn(slots int) bool {
	it.mu.Lock()
	defer it.mu.Unlock()
	news := slots > it.failed
	it.failed = slots
	return news
}

func (it *item) unqueue() {
	it.mu.Lock()
	defer it.mu.Unlock()
	it.queued = false
}

// anchor notes that a block was seen on the way to the head.
func (it *item) anchor(block string) {
	it.mu.Lock()
	defer it.mu.Unlock()
	it.anchored = block
}

func (it *item) isAnchored(block string) bool {
	it.mu.Lock()
	defer it.mu.Unlock()
	return it.anchored == block
}

// attend counts those who wait for the item and look for themselves, and
// returns which of them this one is.
func (it *item) attend() (nth int) {
	it.mu.Lock()
	defer it.mu.Unlock()
	it.waiters++
	it.came++
	return it.came
}

// leave says that one of them waits no longer.
func (it *item) leave() {
	it.mu.Lock()
	defer it.mu.Unlock()
	it.waiters--
}

// attended reports whether somebody does.
func (it *item) attended() bool {
	it.mu.Lock()
	defer it.mu.Unlock()
	return it.waiters > 0
}

// look counts the looks at the item.
func (it *item) look() int {
	it.mu.Lock()
	defer it.mu.Unlock()
	it.looks++
	return it.looks
}

// outcome translates a record into what Settle answers. enough reports
// whether the caller need not wait any longer.
func (it *item) outcome(r ledger.Record, enough bool) (*payment.Settlement, error) {
	switch {
	case r.State == ledger.Dead:
		return nil, &payment.InvalidError{Reason: it.signed.Reasons().Failed, Message: r.Reason, Payer: r.Payer}
	case enough:
		return &payment.Settlement{Network: r.Network, Transaction: r.Transaction(), Payer: r.Payer, Amount: it.charge}, nil
	}
	return nil, nil
}
