package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A writer is the one goroutine of a store that writes, on one connection. It
// takes up the commits that are waiting, without waiting for more, evaluates them
// one after another against what the database has and what those before them in the
// batch have changed, writes all changes in one transaction, and only then
// tells anybody an outcome, refusals included: a refusal may rest on a commit of
// the same batch. A commit that is refused does not touch the others.
//
// Its fields are set before run is called and then owned by run.
type writer struct {
	store      *Store
	conn       *pgx.Conn // nil while there is none
	sql        statements
	maxBatch   int
	laterDelay time.Duration
	doubt      time.Duration

	id     [16]byte // names the store in the table writers
	number int64    // of its last transaction

	// unknown is the number of the transaction whose outcome is not known, or 0;
	// made is the outcome of the last of which it was not.
	unknown int64
	made    bool

	warned bool // whether the operator knows that commits wait

	// exchange sends statements and reads their answers. Tests lose some.
	exchange func(context.Context, *pgx.Conn, *pgx.Batch) error
}

// askAgain is the pause between questions for an outcome that nobody waits for
// any more.
const askAgain = time.Second

// run commits what comes from queue until queue is closed and empty. The end of
// ctx makes it give up what the database does not answer.
func (w *writer) run(ctx context.Context, queue <-chan *commit) {
	defer w.leave()
	var batch []*commit
	var overdue <-chan time.Time // set while batch waits for a commit that somebody waits for
	for open := true; open; {
		var ask <-chan time.Time
		if w.unknown != 0 {
			ask = time.After(askAgain)
		}
		full := false
		select {
		case next, more := <-queue:
			open = more
			if open {
				batch, full, open = w.collect(append(batch, next), queue)
			}
		case <-overdue:
			full = true
		case <-ask:
			w.trouble(w.session(ctx)) // if it fails it is asked for again
		}
		switch {
		case full || !open || anybodyWaits(batch):
			w.commit(ctx, batch)
			batch, overdue = nil, nil
		case len(batch) > 0 && overdue == nil:
			overdue = time.After(w.laterDelay)
		}
	}
}

// collect adds what is in queue to batch until that is full.
func (w *writer) collect(batch []*commit, queue <-chan *commit) (_ []*commit, full, open bool) {
	size := 0
	for _, c := range batch {
		size += c.size()
	}
	for len(batch) < w.maxBatch && size < maxBatchBytes {
		select {
		case next, open := <-queue:
			if !open {
				return batch, true, false
			}
			batch = append(batch, next)
			size += next.size()
		default:
			return batch, false, true
		}
	}
	return batch, true, true
}

func anybodyWaits(batch []*commit) bool {
	for _, c := range batch {
		if c.outcome != nil {
			return true
		}
	}
	return false
}

// commit decides over batch and tells everybody the outcome.
func (w *writer) commit(ctx context.Context, batch []*commit) {
	deadline := time.Now().Add(w.store.patience)
	for pause := firstPause; ; pause = longer(pause) {
		batch = stillWanted(batch)
		if len(batch) == 0 {
			w.trouble(nil)
			return
		}
		err := w.try(ctx, batch)
		var lost *lostError
		switch {
		case err == nil:
			w.trouble(nil)
			report(w.store, batch)
			return
		case errors.As(err, &lost):
			w.settle(ctx, batch, lost.err)
			return
		}
		w.trouble(err)
		if !passing(err) || ctx.Err() != nil || time.Now().After(deadline) {
			refuse(w.store, batch, fmt.Errorf("ledger: not committed: %w", plainly(err)))
			return
		}
		if contended(err) {
			pause = firstPause // somebody else got on, or somebody gave up
		}
		if !errors.Is(err, errAgain) {
			wait(ctx, pause)
		}
	}
}

// trouble notes why nothing can be written at present, for those who stop
// waiting, and for the operator when it begins and when it ends.
func (w *writer) trouble(err error) {
	if err == nil {
		w.store.trouble.Store(nil)
		if w.warned {
			w.store.log.Info("commits resume")
		}
		w.warned = false
		return
	}
	why := plainly(err).Error()
	w.store.trouble.Store(&why)
	if !w.warned && !contended(err) {
		w.warned = true
		w.store.log.Warn("commits wait", "error", why)
	}
}

// stillWanted leaves out the commits whose callers have stopped waiting.
func stillWanted(batch []*commit) []*commit {
	kept := make([]*commit, 0, len(batch))
	for _, c := range batch {
		if c.state.Load() != withdrawn {
			kept = append(kept, c)
		}
	}
	return kept
}

// report gives every commit of batch its result.
func report(s *Store, batch []*commit) {
	for _, c := range batch {
		switch {
		case c.outcome != nil:
			c.outcome <- c.result
		case c.result != nil:
			s.log.Info("later write is lost", "key", firstKey(c.writes), "error", c.result)
		}
	}
}

// refuse gives every commit of batch the same error.
func refuse(s *Store, batch []*commit, err error) {
	for _, c := range batch {
		c.result = err
	}
	report(s, batch)
}

// settle waits for the outcome of a transaction whose answer was lost.
func (w *writer) settle(ctx context.Context, batch []*commit, why error) {
	w.trouble(why)
	for _, c := range batch {
		close(c.lost)
	}
	deadline := time.Now().Add(w.doubt)
	for pause := firstPause; ; pause = longer(pause) {
		err := w.session(ctx)
		switch {
		case err == nil && w.made:
			w.trouble(nil)
			report(w.store, batch)
			return
		case err == nil:
			w.trouble(nil)
			refuse(w.store, batch, fmt.Errorf("ledger: not committed: %w", plainly(why)))
			return
		case ctx.Err() != nil || time.Now().After(deadline):
			w.store.log.Error("whether a commit was made is not known yet", "key", firstKey(batch[0].writes), "commits", len(batch), "error", plainly(err))
			refuse(w.store, batch, unknown(plainly(err)))
			return
		}
		w.trouble(err)
		wait(ctx, pause)
	}
}

// session sees to it that there is a connection and that no outcome is unknown.
func (w *writer) session(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	if w.conn != nil && w.conn.IsClosed() {
		w.conn = nil
	}
	if w.conn == nil {
		conn, err := connect(ctx, w.store.config)
		if err != nil {
			return err
		}
		w.conn = conn
	}
	if w.unknown == 0 {
		return nil
	}
	// Where the transaction is still under way this waits for its end, and where
	// it never came so far, nothing of it is left that could commit: it has
	// written the row, too.
	var last int64
	if err := w.conn.QueryRow(ctx, w.sql.outcome, w.id[:]).Scan(&last); err != nil {
		w.drop()
		return err
	}
	w.made = last == w.unknown
	w.unknown = 0
	w.store.settled(true)
	return nil
}

// drop gives the connection up.
func (w *writer) drop() {
	if w.conn != nil {
		discard(w.conn)
		w.conn = nil
	}
}

// rollback ends a transaction without a trace. If that fails the connection
// goes, and the transaction with it.
func (w *writer) rollback(ctx context.Context) {
	if w.conn == nil || w.conn.IsClosed() {
		return
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := w.conn.Exec(limited, "ROLLBACK"); err != nil {
		w.drop()
	}
}

// leave removes what the store has in the database besides entries, if the
// database answers.
func (w *writer) leave() {
	if w.conn == nil || w.unknown != 0 {
		w.drop()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), statementTimeout)
	defer cancel()
	_, _ = w.conn.Exec(ctx, w.sql.forget, w.id[:]) // the next store forgets it after a month
	w.drop()
}

// contended reports whether err is the ordinary consequence of several
// instances that write the same.
func contended(err error) bool {
	var refused *pgconn.PgError
	return errors.Is(err, errAgain) || errors.As(err, &refused) && (refused.Code == serializationFailure || refused.Code == deadlock)
}

// errAgain says that the batch has to be evaluated again, at once.
var errAgain = &databaseError{"other instances write the same entries"}

// A lostError is the error of a COMMIT, after which the outcome is unknown.
type lostError struct{ err error }

func (e *lostError) Error() string { return e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }
