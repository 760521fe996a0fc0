package badger

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

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
	if err := s.enqueue(context.Background(), &commit{writes: ledger.CloneWrites(writes)}); err != nil {
		s.log.Warn("later write is lost", "key", firstKey(writes), "error", err)
	}
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
// waiting, without waiting for more, evaluates them one after another against what
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

	diskFull error               // why commits are refused until there is room, nil if there is
	failed   *ledger.FailedError // set once, by the first error of the disk
	looks    int
}

// run commits what comes from queue until queue is closed and empty.
func (c *committer) run(queue <-chan *commit) {
	housekeeping := time.NewTicker(housekeepingInterval)
	defer housekeeping.Stop()
	var overdue <-chan time.Time
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

// poll receives from queue if it has something or is closed.
func poll(queue <-chan *commit) (next *commit, open, received bool) {
	select {
	case next, open = <-queue:
		return next, open, true
	default:
		return nil, true, false
	}
}

// evaluate adds next to the batch.
func (c *committer) evaluate(next *commit) {
	if !next.taken.CompareAndSwap(false, true) {
		return
	}
	changes, err := c.decide(next.writes)
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

func (c *committer) decide(writes []ledger.Write) ([]ledger.Entry, error) {
	if err := c.refusal(); err != nil {
		return nil, err
	}
	changes, err := ledger.Decide(writes, func(k ledger.Key) (ledger.Entry, error) {
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
