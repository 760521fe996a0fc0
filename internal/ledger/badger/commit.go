package badger

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	engine "github.com/dgraph-io/badger/v4"

	"github.com/tollgate402/tollgate/internal/ledger"
)

const (
	// defaultLaterDelay is how long writes that nobody waits for stay for the
	// next commit, to travel with it, before they are written alone.
	defaultLaterDelay = 50 * time.Millisecond

	// How often the committer looks at the free space of the disk, and after how
	// many such looks it lets Badger discard old versions.
	housekeepingInterval = time.Second
	looksPerDiscard      = 60
)

// commit is one call of Commit or Later.
type commit struct {
	writes []ledger.Write

	// seen are the versions that the caller has found on disk, one for each of
	// writes, and at is when: the timestamp that it read at. They spare the
	// committer the reading. Nil where nothing was read.
	seen []uint64
	at   uint64

	// taken is set by whoever decides over the commit: the committer that takes it
	// up, or the caller that no longer wants to wait for that.
	taken atomic.Bool

	// outcome receives the result; nil if nobody waits.
	outcome chan error
	result  error // owned by the committer
}

// Commit makes all writes or none; see ledger.Store.
func (s *Store) Commit(ctx context.Context, writes ...ledger.Write) error {
	if err := errors.Join(ledger.CheckCommit(writes), ctx.Err()); err != nil {
		return err
	}
	c := &commit{writes: writes, outcome: make(chan error, 1)}
	s.read(c)
	if err := s.enqueue(ctx, c); err != nil {
		return err
	}
	select {
	case err := <-c.outcome:
		return err
	case <-ctx.Done():
	}
	if c.taken.CompareAndSwap(false, true) {
		return fmt.Errorf("ledger: not committed, the disk is busy: %w", ctx.Err())
	}
	return <-c.outcome
}

// Later commits writes without waiting for the outcome; see ledger.Store. It
// waits only while the queue is full.
func (s *Store) Later(writes ...ledger.Write) {
	if err := ledger.CheckCommit(writes); err != nil {
		s.log.Error("later write is invalid", "error", err)
		return
	}
	c := &commit{writes: ledger.CloneWrites(writes)}
	s.read(c)
	if err := s.enqueue(context.Background(), c); err != nil {
		s.log.Warn("later write is lost", "key", firstKey(writes), "error", err)
	}
}

// read notes in c which versions are on disk. Callers do that beside one
// another, and beside the committer, which has the rest to do alone. What cannot
// be read now is left to the committer.
func (s *Store) read(c *commit) {
	s.reading.RLock()
	defer s.reading.RUnlock()
	if s.closed {
		return
	}
	at := s.durable.Load()
	txn := s.db.NewTransactionAt(at, false)
	defer txn.Discard()
	seen := make([]uint64, len(c.writes))
	for i, w := range c.writes {
		item, err := txn.Get(entryKey(w.Key))
		if errors.Is(err, engine.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return
		}
		e, err := decodeItem(item)
		if err != nil {
			return
		}
		seen[i] = e.Version
	}
	c.seen, c.at = seen, at
}

func (s *Store) enqueue(ctx context.Context, c *commit) error {
	s.accepting.RLock()
	defer s.accepting.RUnlock()
	if s.stopped {
		return ledger.ErrClosed
	}
	select {
	case s.queue <- c:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("ledger: not committed, the disk is busy: %w", ctx.Err())
	}
}

// committer is the one goroutine that writes. It takes up the commits that are
// waiting, without sleeping for more, evaluates them one after another against what
// is on disk and what those before them in the batch have changed, writes all
// changes in one Badger transaction with one fsync, and only then tells anybody
// an outcome, refusals included: a refusal may rest on a commit of the same batch.
//
// Badger's transaction is built from the changes after the evaluation, so a
// refused commit leaves no trace in it and a commit is never split.
//
// Its fields are set before run is called and then owned by run.
type committer struct {
	store      *Store
	maxBatch   int
	laterDelay time.Duration
	freeSpace  func() (uint64, error)
	write      func(changes map[ledger.Key]ledger.Entry) error

	// pending are the changes of the batch; Version 0 deletes.
	pending map[ledger.Key]ledger.Entry
	size    int64 // of pending, as Badger counts it, rounded up

	evaluated []*commit // of the batch, their results set
	waiting   int       // how many of them have somebody waiting

	recent recent

	diskFull error               // why commits are refused until there is room, nil if there is
	failed   *ledger.FailedError // set once, by the first error of the disk
	looks    int
}

// run commits what comes from queue until queue is closed and empty.
func (c *committer) run(queue <-chan *commit) {
	housekeeping := time.NewTicker(housekeepingInterval)
	defer housekeeping.Stop()
	var overdue <-chan time.Time
	c.recent.begin(c.store.durable.Load())
	c.housekeep()

	for {
		select {
		case next, open := <-queue:
			for n := 1; open; n++ {
				c.evaluate(next)
				if n == c.maxBatch {
					break
				}
				var more bool
				if next, open, more = poll(queue); !more {
					break
				}
			}
			if !open {
				c.flush()
				return
			}
		case <-overdue:
			c.flush()
		case <-housekeeping.C:
			c.housekeep()
		}

		if c.waiting > 0 {
			c.flush()
		}
		switch {
		case len(c.evaluated) == 0:
			overdue = nil
		case overdue == nil:
			overdue = time.After(c.laterDelay)
		}
	}
}

// poll receives from queue if it has something or is closed. Where it is empty,
// the callers that have just been told an outcome, and those about to commit, are
// first given their turn on the processor: one of them has woken the committer,
// and what the others bring then shares the fsync instead of waiting for the next.
func poll(queue <-chan *commit) (next *commit, open, received bool) {
	for yielded := false; ; yielded = true {
		select {
		case next, open = <-queue:
			return next, open, true
		default:
		}
		if yielded {
			return nil, true, false
		}
		runtime.Gosched()
	}
}

// evaluate adds next to the batch.
func (c *committer) evaluate(next *commit) {
	if !next.taken.CompareAndSwap(false, true) {
		return
	}
	changes, err := c.decide(next)
	size := changeSize(changes)
	if !c.fits(len(changes), size) {
		// What was decided stays true: the changes that it rests on are on disk
		// now, or nothing is written ever again.
		c.flush()
	}
	for _, e := range changes {
		c.pending[e.Key] = e
	}
	c.size += size
	next.result = err
	c.evaluated = append(c.evaluated, next)
	if next.outcome != nil {
		c.waiting++
	}
}

// decide decides over a commit by the versions that its caller has seen, as far
// as they are still the present ones. Only a refusal, which says what there is
// instead, needs the entries themselves.
func (c *committer) decide(next *commit) ([]ledger.Entry, error) {
	if err := c.refusal(); err != nil {
		return nil, err
	}
	if next.seen != nil && next.at >= c.recent.since {
		i := 0 // Decide asks for each key once, in their order
		changes, err := ledger.Decide(next.writes, func(k ledger.Key) (ledger.Entry, error) {
			e := ledger.Entry{Key: k, Version: next.seen[i]}
			i++
			if now, ok := c.pending[k]; ok {
				e.Version = now.Version
			} else if version, ok := c.recent.version(k); ok {
				e.Version = version
			}
			return e, nil
		})
		if err == nil {
			return changes, nil
		}
	}
	changes, err := ledger.Decide(next.writes, func(k ledger.Key) (ledger.Entry, error) {
		if e, ok := c.pending[k]; ok {
			return e, nil
		}
		return c.store.lookup(k)
	})
	var conflict *ledger.ConflictError
	if err != nil && !errors.As(err, &conflict) {
		return nil, c.fail(err)
	}
	return changes, err
}

// refusal returns why nothing can be written at present, or nil.
func (c *committer) refusal() error {
	if c.failed != nil {
		return c.failed
	}
	return c.diskFull
}

// flush writes the batch and tells everybody the outcome. If it cannot be written
// that is the outcome of all of it.
func (c *committer) flush() {
	err := c.refusal()
	if err == nil && len(c.pending) > 0 {
		if werr := c.write(c.pending); werr != nil {
			err = c.fail(werr)
		} else {
			c.recent.note(c.pending, c.store.durable.Load())
		}
	}
	for _, done := range c.evaluated {
		if err != nil {
			done.result = err
		}
		c.report(done)
	}
	clear(c.pending)
	clear(c.evaluated)
	c.evaluated = c.evaluated[:0]
	c.size, c.waiting = 0, 0
}

func (c *committer) report(done *commit) {
	switch {
	case done.outcome != nil:
		done.outcome <- done.result
	case done.result != nil:
		c.store.log.Info("later write is lost", "key", firstKey(done.writes), "error", done.result)
	}
}

// fail stops the store for good: after an error of the disk nobody knows what it
// holds, and an fsync that succeeds after one that failed proves nothing.
func (c *committer) fail(err error) error {
	if c.failed == nil {
		c.failed = &ledger.FailedError{Err: err}
		c.store.log.Error("stopped after a disk error", "error", err)
	}
	return c.failed
}

// housekeep notes whether there is room to write, and now and then lets Badger
// discard the versions that no read can ask for any more.
func (c *committer) housekeep() {
	// Where the free space cannot be found out it is taken to be as it was.
	if free, err := c.freeSpace(); err == nil {
		was := c.diskFull
		c.diskFull = shortOfSpace(c.store.dir, free)
		if was == nil && c.diskFull != nil {
			c.store.log.Error("refusing commits", "error", c.diskFull)
		}
		if was != nil && c.diskFull == nil {
			c.store.log.Info("commits resume")
		}
	}
	if c.looks++; c.looks%looksPerDiscard == 0 {
		c.store.discard()
	}
}

// discard lets Badger drop the versions that are not the latest. A backup under
// way puts it off.
func (s *Store) discard() {
	if !s.pinning.TryLock() {
		return
	}
	defer s.pinning.Unlock()
	s.reading.Lock()
	defer s.reading.Unlock()
	s.db.SetDiscardTs(s.durable.Load())
}

// write puts changes on disk in one transaction, and then makes them visible.
func (s *Store) write(changes map[ledger.Key]ledger.Entry) error {
	at := s.durable.Load() + 1
	txn := s.db.NewTransactionAt(at-1, true)
	defer txn.Discard()
	for key, e := range changes {
		var err error
		if e.Version == 0 {
			err = txn.Delete(entryKey(key))
		} else {
			err = txn.Set(entryKey(key), encodeValue(e.Version, e.Value))
		}
		if err != nil {
			return fmt.Errorf("writing %s: %w", key, err)
		}
	}
	if err := txn.CommitAt(at, nil); err != nil {
		return fmt.Errorf("writing to %s: %w", s.dir, err)
	}
	s.durable.Store(at)
	return nil
}

// fits reports whether a transaction has room for so many more changes of so many
// bytes. Any one commit fits into an empty one.
func (c *committer) fits(changes int, size int64) bool {
	db := c.store.db
	return int64(len(c.pending)+changes)+transactionOverhead < db.MaxBatchCount() &&
		c.size+size+transactionOverhead < db.MaxBatchSize()
}

// Badger adds less than this to a transaction, and less than this to an entry of it.
const (
	transactionOverhead = 64
	entryOverhead       = 32
)

func changeSize(changes []ledger.Entry) int64 {
	var size int64
	for _, e := range changes {
		size += int64(1 + len(e.Key) + headerSize + len(e.Value) + entryOverhead)
	}
	return size
}

func firstKey(writes []ledger.Write) ledger.Key {
	if len(writes) == 0 {
		return ""
	}
	return writes[0].Key
}

// recent remembers which versions the last batches have written, so that what a
// caller read a moment ago can be held against it. It is owned by the committer.
type recent struct {
	// since is the timestamp after which every change is in young or old.
	since uint64

	young, old map[ledger.Key]uint64 // versions, 0 where the entry was deleted
	turned     uint64                // the timestamp after which every change is in young
	most       int                   // how many keys young has before it becomes old; 0 means maxRecent
}

// maxRecent times two is how many keys are remembered: more than the commits of
// a full queue write.
const maxRecent = 4 * queueLength

func (r *recent) begin(at uint64) {
	r.since, r.turned = at, at
	r.young, r.old = map[ledger.Key]uint64{}, nil
}

// note remembers the changes of a batch that was written at a timestamp.
func (r *recent) note(changes map[ledger.Key]ledger.Entry, at uint64) {
	for k, e := range changes {
		r.young[k] = e.Version
	}
	most := r.most
	if most == 0 {
		most = maxRecent
	}
	if len(r.young) >= most {
		r.old, r.since = r.young, r.turned
		r.young, r.turned = make(map[ledger.Key]uint64, most), at
	}
}

// version returns which version of an entry was written lately, if any was.
func (r *recent) version(k ledger.Key) (uint64, bool) {
	if v, ok := r.young[k]; ok {
		return v, true
	}
	v, ok := r.old[k]
	return v, ok
}
