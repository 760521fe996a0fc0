package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// defaultLaterDelay is how long writes that nobody waits for stay for the next
// commit, to travel with it, before they are written alone.
const defaultLaterDelay = 50 * time.Millisecond

// A commit is one call of Commit or Later.
type commit struct {
	writes []ledger.Write

	// state says who decides over the commit. The writer moves it from waiting
	// to sent just before it sends COMMIT, and back if the database refuses that;
	// the caller moves it from waiting to withdrawn.
	state atomic.Int32

	// outcome receives the result; nil if nobody waits.
	outcome chan error

	// lost is closed when the connection broke in COMMIT.
	lost chan struct{}

	result error // owned by the writer
}

const (
	waiting int32 = iota
	sent
	withdrawn
)

// An unknownError is a *ledger.FailedError in the words of this store.
type unknownError struct{ failed *ledger.FailedError }

func (e *unknownError) Error() string {
	return fmt.Sprintf("ledger: the connection broke while committing, and whether the commit was made is not known until the database answers again: %v", e.failed.Err)
}

func (e *unknownError) Unwrap() error { return e.failed }

func unknown(why error) error { return &unknownError{&ledger.FailedError{Err: why}} }

// Commit makes all writes or none; see ledger.Store. While the database is away
// it waits until ctx ends, but not for longer than a restart should take. If ctx
// ends before COMMIT was sent, nothing is written; from then on Commit waits for
// the answer, and where that is lost, until the database can be asked, ctx
// ends, or half a minute has passed.
func (s *Store) Commit(ctx context.Context, writes ...ledger.Write) error {
	if err := errors.Join(ledger.CheckCommit(writes), ctx.Err()); err != nil {
		return err
	}
	c := &commit{writes: writes, outcome: make(chan error, 1), lost: make(chan struct{})}
	if err := s.enqueue(ctx, c); err != nil {
		return err
	}
	select {
	case err := <-c.outcome:
		return err
	case <-ctx.Done():
	}
	if c.state.CompareAndSwap(waiting, withdrawn) {
		return s.tooLate(ctx)
	}
	select {
	case err := <-c.outcome:
		return err
	case <-c.lost:
		return unknown(ctx.Err())
	}
}

// tooLate is the error of a commit that was not made before ctx ended.
func (s *Store) tooLate(ctx context.Context) error {
	why := "the database is busy"
	if trouble := s.trouble.Load(); trouble != nil {
		why = *trouble
	}
	return fmt.Errorf("ledger: not committed, %s: %w", why, ctx.Err())
}

// Later commits writes without waiting for the outcome; see ledger.Store. It
// waits only while the queue is full.
func (s *Store) Later(writes ...ledger.Write) {
	if err := ledger.CheckCommit(writes); err != nil {
		s.log.Error("later write is invalid", "error", err)
		return
	}
	c := &commit{writes: ledger.CloneWrites(writes), lost: make(chan struct{})}
	if err := s.enqueue(context.Background(), c); err != nil {
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
		return s.tooLate(ctx)
	}
}

func (c *commit) size() int {
	n := 0
	for _, w := range c.writes {
		n += len(w.Key) + len(w.Value)
	}
	return n
}

func firstKey(writes []ledger.Write) ledger.Key {
	if len(writes) == 0 {
		return ""
	}
	return writes[0].Key
}
