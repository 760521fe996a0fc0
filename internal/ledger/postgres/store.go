// Package postgres keeps a ledger in PostgreSQL, or in a database that speaks
// its language, such as CockroachDB. Any number of instances may share it.
//
// Commits of concurrent callers share one transaction, and with it the round
// trips and the fsync (see writer). A commit that was acknowledged is on the
// disk of the server: connections whose session or server does not promise that
// are refused, and every transaction asks again.
//
// The answer to a COMMIT can be lost with the connection. Every transaction
// therefore writes a number of its own into the row of its store in the table
// writers, and the store asks for that row on its next connection, which also
// waits for a transaction that is still under way. Nothing else is read or
// written by this store before it knows.
package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// DefaultSchema and DefaultMaxConns are what the zero value of Options means.
const (
	DefaultSchema   = "x402"
	DefaultMaxConns = 8
)

const (
	minConns = 2 // one to write, one to read
	maxConns = 1000

	// queueLength bounds the commits that wait for the writer. Beyond it callers
	// wait to queue.
	queueLength = 4096

	defaultMaxBatch = 512

	// maxBatchBytes ends the collection of a batch, so that one transaction holds
	// the keys and values of at most that much and one commit more.
	maxBatchBytes = 8 << 20

	// How long the database may be away before calls fail although their context
	// would let them wait: long enough for a restart of the server.
	defaultPatience = 10 * time.Second

	// How long a commit whose answer was lost waits for its outcome.
	defaultDoubt = 30 * time.Second

	// How long Close waits for the commits that were accepted.
	closePatience = 20 * time.Second
)

// Options adjust a Store. The zero value is what production uses.
type Options struct {
	// Logger receives what the operator should know. Nil discards it.
	Logger *slog.Logger

	// Schema holds the tables. Ledgers in different schemas are different ledgers.
	// Default: x402.
	Schema string

	// MaxConns bounds the connections of this store. Default: 8, least: 2.
	MaxConns int

	// MaxBatch is the largest number of commits that share a transaction.
	// Default: 512.
	MaxBatch int
}

// Check returns an error if the options cannot be used.
func (o Options) Check() error {
	o = o.withDefaults()
	if o.MaxConns < minConns || o.MaxConns > maxConns {
		return fmt.Errorf("ledger: max_conns is %d, it must be %d to %d", o.MaxConns, minConns, maxConns)
	}
	return checkSchema(o.Schema)
}

func (o Options) withDefaults() Options {
	if o.Schema == "" {
		o.Schema = DefaultSchema
	}
	if o.MaxConns == 0 {
		o.MaxConns = DefaultMaxConns
	}
	if o.MaxBatch <= 0 {
		o.MaxBatch = defaultMaxBatch
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Store is a ledger.Store in a database.
//
// After a *ledger.FailedError, which is returned only when the connection broke
// in a COMMIT and the database did not come back in time to ask it, the store
// goes on: the first read of an entry that succeeds after it shows the outcome.
type Store struct {
	pool   *pgxpool.Pool // for reads; the writer has a connection of its own
	log    *slog.Logger
	get    string // statements
	scan   string
	config *pgx.ConnConfig

	patience time.Duration

	// reading is held shared during every read, and exclusively to close the pool.
	reading sync.RWMutex
	closed  bool // guarded by reading

	// accepting is held shared to send to queue, and exclusively to close it.
	accepting sync.RWMutex
	stopped   bool // guarded by accepting
	queue     chan *commit

	// certain is closed while the outcome of every transaction is known. The
	// writer replaces it.
	certain atomic.Pointer[chan struct{}]

	// trouble is why the writer does not get on, nil if it does.
	trouble atomic.Pointer[string]

	giveUp   context.CancelFunc // ends what the writer does
	finished chan struct{}      // closed when the writer has returned
	close    func() error
}

// Open connects to the database that url names and brings its tables up to
// date. No error and no log repeats any part of url. Who may read the tables
// learns who paid for what; who may write them can make the server serve for free.
func Open(ctx context.Context, url string, opts Options) (*Store, error) {
	s, w, err := open(ctx, url, opts)
	if err != nil {
		return nil, err
	}
	s.start(w)
	return s, nil
}

// open does everything but start the writer.
func open(ctx context.Context, url string, opts Options) (*Store, *writer, error) {
	opts = opts.withDefaults()
	if err := opts.Check(); err != nil {
		return nil, nil, err
	}
	config, err := parse(url)
	if err != nil {
		return nil, nil, err
	}
	config.MinConns, config.MinIdleConns = 0, 0
	config.MaxConns = int32(opts.MaxConns) - 1 //nolint:gosec // at most maxConns
	warnIfOpen(config.ConnConfig, opts.Logger)

	s := &Store{
		log:      opts.Logger,
		get:      inSchema("SELECT version, value FROM {schema}.entries WHERE key = $1", opts.Schema),
		scan:     inSchema("SELECT key, version, value FROM {schema}.entries WHERE key >= $1 AND key < $2 AND key > $3 ORDER BY key LIMIT $4", opts.Schema),
		config:   config.ConnConfig.Copy(),
		patience: defaultPatience,
	}
	s.settled(true)
	conn, err := s.connectAndMigrate(ctx, opts.Schema)
	if err != nil {
		return nil, nil, err
	}
	if s.pool, err = pgxpool.NewWithConfig(context.WithoutCancel(ctx), config); err != nil {
		discard(conn)
		return nil, nil, fmt.Errorf("ledger: %w", plainly(err))
	}
	w := &writer{
		store:      s,
		conn:       conn,
		sql:        newStatements(opts.Schema),
		maxBatch:   opts.MaxBatch,
		exchange:   exchange,
		laterDelay: defaultLaterDelay,
		doubt:      defaultDoubt,
	}
	if _, err := rand.Read(w.id[:]); err != nil {
		return nil, nil, err
	}
	return s, w, nil
}

// connectAndMigrate waits a while for a database that is not there yet.
func (s *Store) connectAndMigrate(ctx context.Context, schema string) (*pgx.Conn, error) {
	deadline := time.Now().Add(s.patience)
	var last error // that says more than that time has run out, if one did
	for pause := firstPause; ; pause = longer(pause) {
		conn, err := connect(ctx, s.config)
		if err == nil {
			limited, cancel := context.WithTimeout(ctx, 4*statementTimeout)
			err = migrate(limited, conn, schema)
			if err == nil {
				_, err = conn.Exec(limited, newStatements(schema).forgetOld)
			}
			cancel()
			if err == nil {
				return conn, nil
			}
			discard(conn)
		}
		if last == nil || ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
			last = err // the connection has ctx's deadline, and may notice it first
		}
		if !passing(err) && !crossed(err) || ctx.Err() != nil || time.Now().After(deadline) {
			return nil, fmt.Errorf("ledger: opening it in PostgreSQL: %w", plainly(last))
		}
		wait(ctx, pause)
	}
}

// start starts w. From here on only w writes.
func (s *Store) start(w *writer) {
	s.queue = make(chan *commit, queueLength)
	s.finished = make(chan struct{})
	s.close = sync.OnceValue(func() error { return s.shutdown(w) })
	var ctx context.Context
	ctx, s.giveUp = context.WithCancel(context.Background())
	go func() {
		defer close(s.finished)
		w.run(ctx, s.queue)
	}()
}

// Get returns the entry of key, or ledger.ErrNotFound.
func (s *Store) Get(ctx context.Context, key ledger.Key) (ledger.Entry, error) {
	if err := errors.Join(key.Check(), ctx.Err()); err != nil {
		return ledger.Entry{}, err
	}
	e := ledger.Entry{Key: key}
	err := s.read(ctx, func(ctx context.Context) error {
		var version int64
		err := s.pool.QueryRow(ctx, s.get, []byte(key)).Scan(&version, &e.Value)
		e.Version = versionOf(version)
		if errors.Is(err, pgx.ErrNoRows) {
			return ledger.ErrNotFound
		}
		return err
	})
	if err != nil {
		return ledger.Entry{}, err
	}
	return e, nil
}

// Scan returns the entries under prefix after a key, by one statement and so
// all from one moment.
func (s *Store) Scan(ctx context.Context, prefix, after ledger.Key, limit int) ([]ledger.Entry, error) {
	if err := errors.Join(ledger.CheckScan(prefix, after, limit), ctx.Err()); err != nil {
		return nil, err
	}
	// No byte of a key is as large as the one that ends the range.
	end := append([]byte(prefix), 0xff)
	var page []ledger.Entry
	err := s.read(ctx, func(ctx context.Context) error {
		page = nil
		rows, err := s.pool.Query(ctx, s.scan, []byte(prefix), end, []byte(after), limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var key, value []byte
			var version int64
			if err := rows.Scan(&key, &version, &value); err != nil {
				return err
			}
			page = append(page, ledger.Entry{Key: ledger.Key(key), Version: versionOf(version), Value: value})
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	return page, nil
}

// read calls do, and again on another connection if the one it had was lost, as
// all are when the server restarts.
func (s *Store) read(ctx context.Context, do func(context.Context) error) error {
	s.reading.RLock()
	defer s.reading.RUnlock()
	if s.closed {
		return ledger.ErrClosed
	}
	limited, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	var last error
	for pause := firstPause; ; pause = longer(pause) {
		select {
		case <-*s.certain.Load():
		case <-limited.Done():
			return notRead(ctx, errUnsettled)
		}
		err := do(limited)
		switch {
		case err == nil || errors.Is(err, ledger.ErrNotFound):
			return err
		case ctx.Err() == nil && !passing(err):
			return fmt.Errorf("ledger: not read: %w", plainly(err))
		case limited.Err() == nil || last == nil:
			last = err
		}
		if limited.Err() != nil {
			return notRead(ctx, plainly(last))
		}
		s.pool.Reset()
		wait(limited, pause)
	}
}

var errUnsettled = &databaseError{"the database has to say first whether an earlier commit was made"}

// notRead is the error of a read that took too long. It is ctx's where ctx ended it.
func notRead(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("ledger: not read, %w: %w", err, ctx.Err())
	}
	return fmt.Errorf("ledger: not read: %w", err)
}

// settled notes whether the outcome of every transaction is known.
func (s *Store) settled(known bool) {
	gate := make(chan struct{})
	if known {
		close(gate)
	}
	if old := s.certain.Swap(&gate); old != nil && known {
		select {
		case <-*old:
		default:
			close(*old)
		}
	}
}

// Close waits for the commits that were accepted and gives the connections back.
func (s *Store) Close() error { return s.close() }

func (s *Store) shutdown(w *writer) error {
	s.accepting.Lock()
	s.stopped = true
	close(s.queue)
	s.accepting.Unlock()
	late := time.AfterFunc(closePatience, s.giveUp)
	<-s.finished
	late.Stop()
	s.giveUp()

	s.reading.Lock()
	defer s.reading.Unlock()
	s.closed = true
	s.pool.Close()
	if w.unknown != 0 {
		return errors.New("ledger: closed before the database could say whether the last commits were made")
	}
	return nil
}

// Pauses between attempts.
const (
	firstPause = 5 * time.Millisecond
	mostPause  = 500 * time.Millisecond
)

func longer(pause time.Duration) time.Duration { return min(2*pause, mostPause) }

func wait(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

var _ ledger.Store = (*Store)(nil)
