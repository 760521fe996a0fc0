package postgres

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// statements of one transaction, with the schema in them.
//
// Row locks are taken in the order of the keys, then rows are inserted in
// that order, then rows are deleted. So no two instances ever wait for each
// other. At READ COMMITTED every statement sees what is committed when it
// begins; what the isolation does not promise, the locks do.
//
// All changes travel together with COMMIT, which the server does not reach when
// one of them fails. So each of them fails where it finds other rows than the
// plan: an insert where the row exists, the others by dividing by zero.
type statements struct {
	lock, present, values, insert, update, remove, mark, outcome, forget, forgetOld string
}

func newStatements(schema string) statements {
	s := statements{
		lock:    "SELECT key, version FROM {schema}.entries WHERE key = ANY($1::BYTEA[]) ORDER BY key FOR UPDATE",
		present: "SELECT count(*) FROM {schema}.entries WHERE key = ANY($1::BYTEA[])",
		values:  "SELECT key, value FROM {schema}.entries WHERE key = ANY($1::BYTEA[])",
		insert: `INSERT INTO {schema}.entries (key, version, value)
			SELECT n.key, n.version, n.value FROM unnest($1::BYTEA[], $2::BIGINT[], $3::BYTEA[]) AS n (key, version, value)
			ORDER BY n.key`,
		update: `WITH done AS (UPDATE {schema}.entries AS e SET version = n.version, value = n.value
			FROM unnest($1::BYTEA[], $2::BIGINT[], $3::BYTEA[]) AS n (key, version, value) WHERE e.key = n.key RETURNING 1)
			SELECT 1 / (CASE WHEN count(*) = $4::BIGINT THEN 1 ELSE 0 END) FROM done`,
		remove: `WITH done AS (DELETE FROM {schema}.entries WHERE key = ANY($1::BYTEA[]) RETURNING 1)
			SELECT 1 / (CASE WHEN count(*) = $2::BIGINT THEN 1 ELSE 0 END) FROM done`,
		mark: `INSERT INTO {schema}.writers (id, batch, seen) VALUES ($1, $2, now())
			ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, seen = excluded.seen`,
		outcome: `INSERT INTO {schema}.writers AS w (id, batch, seen) VALUES ($1, 0, now())
			ON CONFLICT (id) DO UPDATE SET batch = w.batch RETURNING batch`,
		forget:    "DELETE FROM {schema}.writers WHERE id = $1",
		forgetOld: "DELETE FROM {schema}.writers WHERE seen < now() - INTERVAL '30 days'",
	}
	for _, text := range []*string{
		&s.lock, &s.present, &s.values, &s.insert, &s.update, &s.remove, &s.mark, &s.outcome, &s.forget, &s.forgetOld,
	} {
		*text = inSchema(*text, schema)
	}
	return s
}

// try makes one transaction of batch and sets the results of its commits. After
// a *lostError it is unknown whether it was made; after any other error it was not.
func (w *writer) try(ctx context.Context, batch []*commit) error {
	keys := keysOf(batch)
	if len(keys) == 0 {
		return nil // everything before was written before this batch began
	}
	if err := w.session(ctx); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	p, err := w.plan(limited, batch, keys)
	switch {
	case err != nil:
	case len(p.changes) == 0:
		err = w.look(limited, p)
	case !send(batch):
		err = errAgain
	default:
		err = w.write(ctx, p)
	}
	if err == nil {
		return nil
	}
	if _, lost := errors.AsType[*lostError](err); lost {
		w.unknown = w.number
		w.store.settled(false)
		w.drop()
		return err
	}
	for _, c := range batch {
		c.state.CompareAndSwap(sent, waiting)
	}
	if clean(err) {
		w.rollback(ctx)
	} else {
		w.drop()
	}
	return err
}

// clean reports whether a connection is still good after err.
func clean(err error) bool {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return errors.Is(err, errAgain)
	}
	return refused.Severity == "ERROR" && refused.Code != readOnly
}

// send makes batch final for its callers. It returns false if one of them has
// withdrawn, and then changes nothing.
func send(batch []*commit) bool {
	for i, c := range batch {
		if c.state.CompareAndSwap(waiting, sent) {
			continue
		}
		for _, before := range batch[:i] {
			before.state.Store(waiting)
		}
		return false
	}
	return true
}

// keysOf returns the keys that batch writes, each once, in their order.
func keysOf(batch []*commit) [][]byte {
	seen := make(map[ledger.Key]struct{})
	for _, c := range batch {
		for _, w := range c.writes {
			seen[w.Key] = struct{}{}
		}
	}
	return bytesOf(slices.Sorted(maps.Keys(seen)))
}

func bytesOf(keys []ledger.Key) [][]byte {
	list := make([][]byte, len(keys))
	for i, k := range keys {
		list[i] = []byte(k)
	}
	return list
}

// A plan is what a batch does to the entries.
type plan struct {
	versions map[ledger.Key]uint64       // what the database has, locked
	changes  map[ledger.Key]ledger.Entry // what it is to have; Version 0 deletes
	asked    map[ledger.Key]struct{}     // whose version somebody's outcome rests on
	refused  []*ledger.ConflictError     // whose entry has yet to get its value
}

// plan begins the transaction, locks what batch writes, and evaluates it.
func (w *writer) plan(ctx context.Context, batch []*commit, keys [][]byte) (*plan, error) {
	p := &plan{
		versions: make(map[ledger.Key]uint64, len(keys)),
		changes:  make(map[ledger.Key]ledger.Entry, len(keys)),
		asked:    make(map[ledger.Key]struct{}, len(keys)),
	}
	var round pgx.Batch
	round.Queue("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
	round.Queue(promise).QueryRow(func(row pgx.Row) error {
		var synchronous, fsync string
		if err := row.Scan(&synchronous, &fsync); err != nil {
			return err
		}
		return checkSettings(synchronous, fsync)
	})
	round.Queue(w.sql.lock, keys).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var key []byte
			var version int64
			if err := rows.Scan(&key, &version); err != nil {
				return err
			}
			p.versions[ledger.Key(key)] = versionOf(version)
		}
		return rows.Err()
	})
	if err := w.exchange(ctx, w.conn, &round); err != nil {
		return nil, err
	}
	for _, c := range batch {
		c.result = p.evaluate(c.writes)
	}
	return p, nil
}

// evaluate adds a commit to the plan, or returns why it is refused.
func (p *plan) evaluate(writes []ledger.Write) error {
	changes, err := ledger.Decide(writes, func(k ledger.Key) (ledger.Entry, error) {
		p.asked[k] = struct{}{}
		if e, ok := p.changes[k]; ok {
			return e, nil
		}
		return ledger.Entry{Key: k, Version: p.versions[k]}, nil
	})
	var conflict *ledger.ConflictError
	if errors.As(err, &conflict) && conflict.Have.Version != 0 && conflict.Have.Value == nil {
		p.refused = append(p.refused, conflict)
	}
	for _, e := range changes {
		p.changes[e.Key] = e
	}
	return err
}

// look ends a transaction that changes nothing. What it found absent may have
// been created while it waited for its locks: then it did not see one moment.
func (w *writer) look(ctx context.Context, p *plan) error {
	var round pgx.Batch
	values := p.askValues(&round, w.sql.values)
	var absent []ledger.Key
	for k := range p.asked {
		if p.versions[k] == 0 {
			absent = append(absent, k)
		}
	}
	if len(absent) > 0 {
		round.Queue(w.sql.present, bytesOf(absent)).QueryRow(func(row pgx.Row) error {
			var n int
			if err := row.Scan(&n); err != nil {
				return err
			}
			if n > 0 {
				return errAgain
			}
			return nil
		})
	}
	round.Queue("ROLLBACK")
	if err := w.exchange(ctx, w.conn, &round); err != nil {
		return err
	}
	p.tell(values)
	return nil
}

// write makes the changes and commits them. Nobody can withdraw a commit of the
// batch any more.
//
// An absence has no row to lock. What somebody's outcome rests on being absent
// is therefore inserted and deleted again: whoever creates it meanwhile waits for
// this transaction, or this one for him.
func (w *writer) write(ctx context.Context, p *plan) error {
	var round pgx.Batch
	values := p.askValues(&round, w.sql.values)
	var created, updated rowsOf
	var gone [][]byte
	for _, k := range slices.Sorted(maps.Keys(p.asked)) {
		next, changes := p.changes[k]
		switch before := p.versions[k]; {
		case before == 0 && next.Version == 0:
			created.add(ledger.Entry{Key: k, Value: []byte{}})
			gone = append(gone, []byte(k))
		case before == 0:
			created.add(next)
		case changes && next.Version == 0:
			gone = append(gone, []byte(k))
		case changes:
			updated.add(next)
		}
	}
	if len(created.keys) > 0 {
		round.Queue(w.sql.insert, created.keys, created.versions, created.values)
	}
	if n := len(updated.keys); n > 0 {
		round.Queue(w.sql.update, updated.keys, updated.versions, updated.values, n)
	}
	if len(gone) > 0 {
		round.Queue(w.sql.remove, gone, len(gone))
	}
	w.number++
	changed := false
	round.Queue(w.sql.mark, w.id[:], w.number).Exec(func(pgconn.CommandTag) error {
		changed = true
		return nil
	})
	round.Queue("COMMIT").Exec(func(tag pgconn.CommandTag) error {
		if tag.String() != "COMMIT" {
			return &databaseError{"the database answered COMMIT with " + tag.String()}
		}
		return nil
	})
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
	defer cancel()
	err := w.exchange(limited, w.conn, &round)
	if err == nil {
		p.tell(values)
		return nil
	}
	refused, told := errors.AsType[*pgconn.PgError](err)
	switch {
	case told && refused.Severity == "ERROR" && !changed && refused.Code == uniqueViolation:
		return errAgain
	case told && refused.Severity == "ERROR" && !changed && refused.Code == divisionByZero:
		return errForeign
	case told && refused.Severity == "ERROR" && (!changed || contended(err)):
		return err // it has not come to COMMIT, or has rolled back and says so
	}
	return &lostError{err}
}

// askValues adds the question for the values that refusals have to tell, as they
// are before the changes. The map is filled by the answer.
func (p *plan) askValues(round *pgx.Batch, sql string) map[ledger.Key][]byte {
	keys := p.refusedKeys()
	values := make(map[ledger.Key][]byte, len(keys))
	if len(keys) > 0 {
		round.Queue(sql, keys).Query(func(rows pgx.Rows) error {
			for rows.Next() {
				var key, value []byte
				if err := rows.Scan(&key, &value); err != nil {
					return err
				}
				values[ledger.Key(key)] = value
			}
			return rows.Err()
		})
	}
	return values
}

// tell completes the refusals.
func (p *plan) tell(values map[ledger.Key][]byte) {
	for _, c := range p.refused {
		c.Have.Value = bytes.Clone(values[c.Key])
	}
}

// errForeign says that a locked row has changed.
var errForeign = &promiseError{"rows changed under our locks: let nothing else write to the tables"}

// exchange sends statements and reads all their answers.
func exchange(ctx context.Context, conn *pgx.Conn, round *pgx.Batch) error {
	return conn.SendBatch(ctx, round).Close()
}

func (p *plan) refusedKeys() [][]byte {
	seen := make(map[ledger.Key]struct{})
	for _, c := range p.refused {
		seen[c.Key] = struct{}{}
	}
	return bytesOf(slices.Sorted(maps.Keys(seen)))
}

// versionOf is the version that a column holds. The column never has a negative
// number: what is stored there was a version.
func versionOf(column int64) uint64 { return uint64(column) } //nolint:gosec // see above

// rowsOf are entries as the columns of a statement.
type rowsOf struct {
	keys     [][]byte
	versions []int64
	values   [][]byte
}

func (r *rowsOf) add(e ledger.Entry) {
	r.keys = append(r.keys, []byte(e.Key))
	r.versions = append(r.versions, int64(e.Version)) //nolint:gosec // versions grow by one from zero
	r.values = append(r.values, e.Value)
}
