// Package ledger is the durable record: what we remember before we act.
//
// A Store keeps bytes under keys and changes several of them at once, on
// disk, if they are as expected. Ledger, on top of it, keeps payments and
// lanes. Package badger stores in a directory; Memory is the model that
// tests hold it against.
package ledger

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// A Ledger remembers payments and lanes. Its methods are safe for concurrent
// use, by several processes if the store is; what they have returned survives
// a crash unless they say otherwise.
type Ledger struct {
	store  Store
	owner  string
	now    func() time.Time
	shared bool // other processes write to the store

	writing keyLocks // held from reading a payment to handing its change to the store

	mu sync.Mutex
	// pending holds what UpdateLater changed until Get finds it stored, or
	// overtaken. Guarded by mu.
	pending map[payment.Key]Record

	exposures exposures
	decoded   decodedRecords
	tabs      *tabs // nil unless shared

	pulse     sync.Mutex
	exclusive bool             // guarded by pulse: no other process can be alive
	beating   bool             // guarded by pulse: this process is about to say that it is alive
	beaten    time.Time        // guarded by pulse: when it last did
	looked    time.Time        // guarded by pulse: when it last saw which others are
	others    map[string]pulse // guarded by pulse
	deaths    int              // guarded by pulse
	left      bool             // guarded by pulse: Leave was called
}

// New returns a ledger on store. owner names this process among those that
// share the store; it must not be used by another one, nor again after a
// restart.
func New(store Store, owner string, now func() time.Time) *Ledger {
	return &Ledger{store: store, owner: owner, now: now, pending: map[payment.Key]Record{}, others: map[string]pulse{}}
}

// NewShared returns a ledger on a store to which other processes write, too,
// all of them through a ledger of NewShared.
// Its UpdateLater waits for the disk: of several changes in a row, the first
// would fail where another process was faster, and a later one could then meet
// just the version that it expects and undo what that process has stored.
func NewShared(store Store, owner string, now func() time.Time) *Ledger {
	l := New(store, owner, now)
	l.shared, l.tabs = true, newTabs()
	return l
}

// Owner returns the name of this process.
func (l *Ledger) Owner() string { return l.owner }

// A HeldError says that a payment is claimed already, and how far it is.
type HeldError struct{ Record Record }

func (e *HeldError) Error() string {
	return fmt.Sprintf("payment %s is already %s", e.Record.Key, e.Record.State)
}

// Key spaces. A payment has an open entry from its claim until it rests.
func paymentKey(k payment.Key) Key            { return Key("pay/" + k.String()) }
func openKey(k payment.Key) Key               { return Key("open/" + k.String()) }
func laneKey(n payment.Network, a string) Key { return Key("lane/" + string(n) + "/" + a) }

// A Rider returns what else the commit of a record writes. r is the record as
// it will be stored. Its writes must have conditions wherever they rest on
// what the rider has read: it is called again when one of them did not hold.
// An error keeps everything from being written, and is returned as it is.
type Rider func(ctx context.Context, r *Record) ([]Write, error)

// Claim stores r, whose state says what happens next, if nobody has claimed
// the payment, or if it is free again, see Free. Otherwise it returns a
// *HeldError with the record of the holder, or, if r has a name that belongs
// to another payment, a *NamedError. What riders write is on disk if the claim
// is. When Claim returns nil this process, and no other, may act on the
// payment until lease has passed.
func (l *Ledger) Claim(ctx context.Context, r Record, lease time.Duration, riders ...Rider) (Record, error) {
	defer l.writing.lock(r.Key)()
	for {
		held, err := l.Get(ctx, r.Key)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Record{}, err
		}
		if err == nil && !l.Free(&held) {
			return Record{}, &HeldError{held}
		}
		next := r
		next.State, next.Since = "", l.now()
		if err == nil {
			next.State, next.Since = Released, held.Since
			next.Ran = held.Ran && held.Binding == r.Binding
		}
		next.version, next.Claims = held.version, held.Claims+1
		next.Owner, next.Lease = l.owner, l.now().Add(lease)
		if err := next.To(r.State); err != nil {
			return Record{}, err
		}
		also, err := ride(ctx, &next, append([]Rider{l.naming}, riders...))
		if err != nil {
			return Record{}, err
		}
		stored, err := l.commit(ctx, next, also...)
		if conflict(err) {
			continue
		}
		return stored, err
	}
}

func ride(ctx context.Context, r *Record, riders []Rider) ([]Write, error) {
	var also []Write
	for _, rider := range riders {
		writes, err := rider(ctx, r)
		if err != nil {
			return nil, err
		}
		also = append(also, writes...)
	}
	return also, nil
}

// Free reports whether a stored payment can be claimed: its claim was
// released, or has lapsed before anything was broadcast for it. One that has
// bought something already is never free.
func (l *Ledger) Free(r *Record) bool {
	return r.Delivery == Undelivered && (r.State == Released || r.State.Working() && l.now().After(r.Lease))
}

// Elsewhere reports whether somebody else than the caller, who has not begun
// to, may be handing over the goods of a stored payment: another process, or
// in this one the configuration before a reload. A process that was seen to
// die hands over nothing any more, whatever its lease, and on a store that is
// not shared no other process is alive.
func (l *Ledger) Elsewhere(r *Record) bool {
	return r.Delivery == Delivering && (l.shared || r.Owner == l.owner) && !l.now().After(r.Lease) && !l.dead(r.Owner)
}

// Get returns the record of a payment, or ErrNotFound. What this process has
// changed with UpdateLater is seen at once.
func (l *Ledger) Get(ctx context.Context, k payment.Key) (Record, error) {
	for {
		l.mu.Lock()
		before, waiting := l.pending[k]
		l.mu.Unlock()
		e, err := l.store.Get(ctx, paymentKey(k))
		if err != nil {
			return Record{}, err
		}
		if r, ok := l.later(k, e.Version); ok {
			return r, nil
		}
		if !waiting || before.version <= e.Version {
			return l.decode(k, e)
		}
		// The store caught up after it was read, and somebody noticed.
	}
}

// later returns what is pending of a payment, if that is newer than the
// version that is stored, and forgets it otherwise.
func (l *Ledger) later(k payment.Key, stored uint64) (Record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.pending[k]
	if ok && r.version <= stored {
		delete(l.pending, k)
		return Record{}, false
	}
	return r, ok
}

// Update changes a record: change gets the stored record and alters it. It is
// called again if somebody else was faster, so it must have no side effects.
// An error of change ends the update and is returned as it is.
func (l *Ledger) Update(ctx context.Context, k payment.Key, change func(*Record) error) (Record, error) {
	return l.UpdateWith(ctx, k, change)
}

// UpdateWith is Update with what riders write in the same commit.
func (l *Ledger) UpdateWith(ctx context.Context, k payment.Key, change func(*Record) error, riders ...Rider) (Record, error) {
	defer l.writing.lock(k)()
	for {
		r, err := l.Get(ctx, k)
		if err != nil {
			return Record{}, err
		}
		if err := change(&r); err != nil {
			return Record{}, err
		}
		also, err := ride(ctx, &r, riders)
		if err != nil {
			return Record{}, err
		}
		stored, err := l.commit(ctx, r, also...)
		if conflict(err) {
			continue
		}
		return stored, err
	}
}

// UpdateLater is Update without waiting for the disk; it returns the record
// as it will be stored. A crash, or a writer in another process, can lose the
// change, so it must be one that recovery can find out again.
func (l *Ledger) UpdateLater(ctx context.Context, k payment.Key, change func(*Record) error) (Record, error) {
	if l.shared {
		return l.Update(ctx, k, change)
	}
	r, err := l.updateLater(ctx, k, change)
	if err == nil {
		l.tidy()
	}
	return r, err
}

func (l *Ledger) updateLater(ctx context.Context, k payment.Key, change func(*Record) error) (Record, error) {
	defer l.writing.lock(k)()
	r, err := l.Get(ctx, k)
	if err != nil {
		return Record{}, err
	}
	if err := change(&r); err != nil {
		return Record{}, err
	}
	writes, err := l.writes(&r)
	if err != nil {
		return Record{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending[r.Key] = r
	l.store.Later(writes...)
	return r, nil
}

// tidy looks at two entries of pending, in no particular order, and drops
// those that the store has caught up with. Every entry that is added pays for
// one such look, so that pending stays small although nobody asks for most
// payments again.
func (l *Ledger) tidy() {
	var some []payment.Key
	l.mu.Lock()
	for k := range l.pending {
		if some = append(some, k); len(some) == 2 {
			break
		}
	}
	l.mu.Unlock()
	for _, k := range some {
		_, _ = l.Get(context.Background(), k) // an error leaves the entry for another time
	}
}

// Lane returns the stored state of a lane; a lane that was never used has
// nonce 0 and the second result is false.
func (l *Ledger) Lane(ctx context.Context, n payment.Network, address string) (Lane, bool, error) {
	e, err := l.store.Get(ctx, laneKey(n, address))
	if errors.Is(err, ErrNotFound) {
		return Lane{Network: n, Address: address}, false, nil
	}
	if err != nil {
		return Lane{}, false, err
	}
	var lane Lane
	if err := json.Unmarshal(e.Value, &lane); err != nil {
		return Lane{}, false, fmt.Errorf("ledger: reading lane %s of %s: %w", address, n, err)
	}
	lane.version = e.Version
	return lane, true, nil
}

// SetLane stores the nonce at which a lane starts. It returns false when
// somebody else changed the lane.
func (l *Ledger) SetLane(ctx context.Context, lane Lane) (bool, error) {
	w, err := laneWrite(&lane)
	if err != nil {
		return false, err
	}
	err = l.store.Commit(ctx, w)
	if conflict(err) {
		return false, nil
	}
	return err == nil, err
}

// ErrStale says that a lane or a record has changed since it was read.
var ErrStale = errors.New("ledger: changed by somebody else meanwhile")

func laneWrite(lane *Lane) (Write, error) {
	doc, err := json.Marshal(lane)
	if err != nil {
		return Write{}, fmt.Errorf("ledger: writing lane %s: %w", lane.Address, err)
	}
	return Write{Key: laneKey(lane.Network, lane.Address), If: lane.version, Value: doc}, nil
}

// Open lists the payments that do not rest, in the order of their keys. A
// payment that is claimed while the list is read may be missing from it.
func (l *Ledger) Open(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		const page = 256
		after := Key("")
		for {
			entries, err := l.store.Scan(ctx, "open/", after, page)
			if err != nil {
				yield(Record{}, err)
				return
			}
			for _, e := range entries {
				after = e.Key
				k, err := parseKey(string(e.Key[len("open/"):]))
				if err != nil {
					yield(Record{}, err)
					return
				}
				r, err := l.Get(ctx, k)
				if errors.Is(err, ErrNotFound) {
					err = fmt.Errorf("ledger: payment %s is listed as open but not stored: run \"tollgate ledger check\"", k)
				}
				if !yield(r, err) || err != nil {
					return
				}
			}
			if len(entries) < page {
				return
			}
		}
	}
}

// Recover releases the payments that a process claimed and never came to
// settle: nothing was broadcast for them. With exclusive, no other process
// can be alive, now or later, so every claim of another owner is abandoned;
// otherwise those whose owner was seen to die, and, of this process too,
// those whose lease has passed. It returns how many there were.
func (l *Ledger) Recover(ctx context.Context, exclusive bool) (int, error) {
	if exclusive {
		l.pulse.Lock()
		l.exclusive = true
		l.pulse.Unlock()
	}
	n := 0
	for r, err := range l.Open(ctx) {
		if err != nil {
			return n, err
		}
		if !l.abandoned(&r, exclusive) {
			continue
		}
		_, err := l.Update(ctx, r.Key, func(r *Record) error {
			if !l.abandoned(r, exclusive) {
				return ErrStale
			}
			r.Reason = "the process that served it ended"
			return r.To(Released)
		})
		switch {
		case errors.Is(err, ErrStale):
		case err != nil:
			return n, err
		default:
			n++
		}
	}
	return n, nil
}

func (l *Ledger) abandoned(r *Record, exclusive bool) bool {
	return r.Delivery == Undelivered && r.State.Working() && (exclusive && r.Owner != l.owner || l.now().After(r.Lease) || l.dead(r.Owner))
}

// commit stores r, which must not have changed since it was read.
func (l *Ledger) commit(ctx context.Context, r Record, also ...Write) (Record, error) {
	writes, err := l.writes(&r)
	if err != nil {
		return Record{}, err
	}
	if err := l.store.Commit(ctx, append(writes, also...)...); err != nil {
		return Record{}, err
	}
	return r, nil
}

// writes returns the entries of r and advances its version and time.
func (l *Ledger) writes(r *Record) ([]Write, error) {
	r.Updated = l.now()
	for _, t := range []*time.Time{&r.Updated, &r.Since, &r.Lease, &r.Due} {
		*t = t.Round(0) // as it will be read
	}
	doc, err := encodeRecord(r)
	if err != nil {
		return nil, fmt.Errorf("ledger: writing payment %s: %w", r.Key, err)
	}
	writes := []Write{{Key: paymentKey(r.Key), If: r.version, Value: doc}}
	switch {
	case r.version == 0 || r.State == RefundDue: // of which a delivered one was at rest before
		writes = append(writes, Write{Key: openKey(r.Key), If: AnyVersion, Value: []byte{}})
	case r.rests():
		writes = append(writes, Write{Key: openKey(r.Key), If: AnyVersion})
	}
	if r.State == Archived && r.Included != nil {
		writes = append(writes, Write{Key: paidKey(r.Network, r.Included.Block, r.Key), If: AnyVersion, Value: []byte{}})
	}
	r.version++
	l.decoded.put(doc, r)
	return writes, nil
}

// decode returns the record that is stored in e.
func (l *Ledger) decode(k payment.Key, e Entry) (Record, error) {
	r, ok := l.decoded.get(k, e.Value)
	r.version = e.Version
	if ok {
		return r, nil
	}
	r, err := decodeRecord(k, e)
	if err == nil {
		l.decoded.put(e.Value, &r)
	}
	return r, err
}

// encodeRecord writes a record as JSON. The request, which is most of it and
// never changes, is put in as it is: encoding/json would read through it each
// time.
func encodeRecord(r *Record) ([]byte, error) {
	rest := *r
	rest.Request = nil
	doc, err := json.Marshal(&rest)
	if err != nil || len(r.Request) == 0 {
		return doc, err
	}
	doc = append(doc[:len(doc)-1], `,"request":`...)
	doc = append(doc, r.Request...)
	return append(doc, '}'), nil
}

func decodeRecord(k payment.Key, e Entry) (Record, error) {
	var r Record
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return Record{}, fmt.Errorf("ledger: reading payment %s: %w", k, err)
	}
	r.Key, r.version = k, e.Version
	return r, nil
}

func parseKey(s string) (payment.Key, error) {
	var k payment.Key
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, fmt.Errorf("ledger: %q is no payment key", s)
	}
	copy(k[:], b)
	return k, nil
}

func conflict(err error) bool {
	var c *ConflictError
	return errors.As(err, &c)
}
