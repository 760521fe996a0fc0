// Package badger keeps a ledger in a directory, with Badger underneath.
//
// One process may have the directory open. Commits of concurrent callers share
// one transaction and one fsync (see committer). The store chooses Badger's
// timestamps itself: reads are made at the timestamp of the last batch that is
// known to be on disk, so they never wait for a commit under way and never see
// one that may yet be lost.
package badger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	engine "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// ErrInUse says that a process, this one included, has the directory open.
var ErrInUse = errors.New("ledger: in use by another process")

// format is the number of the layout of the directory: which keys there are and
// how values are encoded. Badger keeps it in its manifest and refuses a
// directory that has another.
const format = 1

// Badger's keys begin with a byte that says what they name, which also keeps them
// apart from those that Badger has reserved.
const kindEntry = 0x01 // an entry of the ledger, whose key follows

const (
	// A transaction of Badger holds 15 % of the memtable. That must be more than
	// the largest commit, so that a commit never needs two.
	memTableSize = 16 << 20

	blockCacheSize = 8 << 20

	// Values are smaller, header included, than the threshold at which Badger
	// moves them to its value log. The value log stays empty, which matters:
	// Badger only logs an error of its fsync, while one of the write-ahead log,
	// where everything is then, reaches us. And there is no garbage to collect.
	valueThreshold   = 1 << 20
	valueLogFileSize = 1 << 20 // the smallest that Badger accepts

	// queueLength bounds the commits that wait for the committer. Beyond it
	// callers wait to queue.
	queueLength = 4096

	defaultMaxBatch = 512
)

// Options adjust a Store. The zero value is what production uses.
type Options struct {
	// Logger receives what the operator should know. Nil discards it.
	Logger *slog.Logger

	// MaxBatch is the largest number of commits that share an fsync.
	// Default: 512.
	MaxBatch int

	// NoGroupCommit gives every commit an fsync of its own: MaxBatch 1, under the
	// name that a benchmark prints. Badger alone, with concurrent transactions, is
	// the fairer baseline; BenchmarkCommit has both.
	NoGroupCommit bool
}

// Store is a ledger.Store in a directory.
type Store struct {
	db  *engine.DB
	dir string
	log *slog.Logger

	// durable is the timestamp of the last batch on disk. Only the committer
	// writes it.
	durable atomic.Uint64

	// reading is held shared during every read, and exclusively to close Badger
	// or to let it discard old versions: no read is under way then at a
	// timestamp whose versions go.
	reading sync.RWMutex
	closed  bool // guarded by reading

	// pinning is held by a backup, whose reads at one timestamp span many holds
	// of reading, to keep the old versions it needs.
	pinning sync.Mutex

	// accepting is held shared to send to queue, and exclusively to close it.
	accepting sync.RWMutex
	stopped   bool // guarded by accepting
	queue     chan *commit

	finished chan struct{} // closed when the committer has returned
	close    func() error
}

// Open opens the ledger in dir, and creates both if dir is missing or empty.
// Who may read dir learns who paid for what, who may write it can make the
// server serve for free, so it is created for its owner alone.
// If another process has it open, the error is ErrInUse.
func Open(dir string, opts Options) (*Store, error) {
	s, err := open(dir, opts)
	if err != nil {
		return nil, err
	}
	if err := checkRestored(s.dir); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	s.start(newCommitter(s, opts))
	return s, nil
}

// open opens the database without starting the committer.
func open(dir string, opts Options) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("ledger: creating its directory: %w", err)
	}
	if err := checkFiles(dir); err != nil {
		return nil, err
	}
	free, err := freeSpace(dir)
	if err = errors.Join(err, shortOfSpace(dir, free)); err != nil {
		return nil, err
	}
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = log.With("ledger", dir)
	db, err := engine.OpenManaged(engineOptions(dir, log))
	if err != nil {
		return nil, openError(dir, err)
	}
	s := &Store{db: db, dir: dir, log: log}
	s.durable.Store(db.MaxVersion())
	return s, nil
}

func newCommitter(s *Store, opts Options) *committer {
	c := &committer{
		store:      s,
		maxBatch:   opts.MaxBatch,
		laterDelay: defaultLaterDelay,
		freeSpace:  func() (uint64, error) { return freeSpace(s.dir) },
		write:      s.write,
		pending:    make(map[ledger.Key]ledger.Entry),
	}
	if c.maxBatch <= 0 {
		c.maxBatch = defaultMaxBatch
	}
	if opts.NoGroupCommit {
		c.maxBatch = 1
	}
	return c
}

// start starts c. From here on only c writes.
func (s *Store) start(c *committer) {
	s.queue = make(chan *commit, queueLength)
	s.finished = make(chan struct{})
	s.close = sync.OnceValue(func() error { return s.shutdown(c) })
	go func() {
		defer close(s.finished)
		c.run(s.queue)
	}()
}

func engineOptions(dir string, log *slog.Logger) engine.Options {
	return engine.DefaultOptions(dir).
		WithLogger(engineLog{log}).
		WithExternalMagic(format).
		WithSyncWrites(true).
		// The committer is the only writer and evaluates the conditions of every
		// commit against the outcome of all before it, so there is nothing for
		// Badger to detect.
		WithDetectConflicts(false).
		WithNumVersionsToKeep(1).
		// A flipped bit on the disk must be an error, not a record.
		WithChecksumVerificationMode(options.OnBlockRead).
		WithCompression(options.Snappy).
		WithMemTableSize(memTableSize).
		WithNumMemtables(2).
		WithNumCompactors(2).
		WithBlockCacheSize(blockCacheSize).
		WithValueThreshold(valueThreshold).
		WithValueLogFileSize(valueLogFileSize).
		WithMetricsEnabled(false)
}

// checkFiles refuses a directory whose manifest is gone. Badger would take the
// directory for new, and delete the tables that it does not know of.
func checkFiles(dir string) error {
	_, err := os.Stat(filepath.Join(dir, engine.ManifestFilename))
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	for _, f := range files {
		switch filepath.Ext(f.Name()) {
		case ".sst", ".mem", ".vlog":
			return fmt.Errorf("ledger: %s has data but its %s is missing; restore the directory from a backup",
				dir, engine.ManifestFilename)
		}
	}
	return nil
}

// openError says what an error of Badger on opening dir means. Badger has no
// error values for these two, so its words have to do; a test holds it to them.
func openError(dir string, err error) error {
	switch {
	case strings.Contains(err.Error(), "Another process is using this Badger database"):
		return inUseError{dir}
	case strings.Contains(err.Error(), "external magic number doesn't match"):
		return fmt.Errorf("ledger: %s was written by another program or by a version of this one that keeps it in another format: %w", dir, err)
	}
	return fmt.Errorf("ledger: opening %s: %w", dir, err)
}

type inUseError struct{ dir string }

func (e inUseError) Error() string {
	return fmt.Sprintf(`x402: %s is in use by another process; if Caddy is running, use "caddy reload" or the admin API instead`, e.dir)
}

func (e inUseError) Is(target error) bool { return target == ErrInUse }

// Get returns the entry of key, or ledger.ErrNotFound.
func (s *Store) Get(ctx context.Context, key ledger.Key) (ledger.Entry, error) {
	if err := errors.Join(key.Check(), ctx.Err()); err != nil {
		return ledger.Entry{}, err
	}
	s.reading.RLock()
	defer s.reading.RUnlock()
	if s.closed {
		return ledger.Entry{}, ledger.ErrClosed
	}
	e, err := s.lookup(key)
	if err != nil {
		return ledger.Entry{}, err
	}
	if e.Version == 0 {
		return ledger.Entry{}, ledger.ErrNotFound
	}
	return e, nil
}

// lookup returns the entry of key that is on disk, with Version 0 if there is none.
func (s *Store) lookup(key ledger.Key) (ledger.Entry, error) {
	txn := s.db.NewTransactionAt(s.durable.Load(), false)
	defer txn.Discard()
	item, err := txn.Get(entryKey(key))
	if errors.Is(err, engine.ErrKeyNotFound) {
		return ledger.Entry{}, nil
	}
	if err != nil {
		return ledger.Entry{}, fmt.Errorf("ledger: reading %s: %w", key, err)
	}
	return decodeItem(item)
}

// Scan returns the entries under prefix after a key, all from one moment.
func (s *Store) Scan(ctx context.Context, prefix, after ledger.Key, limit int) ([]ledger.Entry, error) {
	if err := errors.Join(ledger.CheckScan(prefix, after, limit), ctx.Err()); err != nil {
		return nil, err
	}
	s.reading.RLock()
	defer s.reading.RUnlock()
	if s.closed {
		return nil, ledger.ErrClosed
	}
	return s.scanAt(ctx, s.durable.Load(), prefix, after, limit)
}

// scanAt is Scan at the timestamp at. The caller holds reading, and if at is not
// the present one, pinning.
func (s *Store) scanAt(ctx context.Context, at uint64, prefix, after ledger.Key, limit int) ([]ledger.Entry, error) {
	txn := s.db.NewTransactionAt(at, false)
	defer txn.Discard()
	it := txn.NewIterator(engine.IteratorOptions{Prefix: entryKey(prefix)})
	defer it.Close()

	var page []ledger.Entry
	for it.Seek(entryKey(max(prefix, after))); it.Valid() && len(page) < limit; it.Next() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, err := decodeItem(it.Item())
		if err != nil {
			return nil, err
		}
		if e.Key > after {
			page = append(page, e)
		}
	}
	return page, nil
}

// Close waits for the commits that were accepted and releases the directory.
// After a *ledger.FailedError it leaves the directory as it is and locked until the
// process ends: what Badger still holds belongs to commits whose outcome is
// unknown, and flushing it may wait for the broken disk forever.
func (s *Store) Close() error { return s.close() }

func (s *Store) shutdown(c *committer) error {
	s.accepting.Lock()
	s.stopped = true
	close(s.queue)
	s.accepting.Unlock()
	<-s.finished

	s.reading.Lock()
	defer s.reading.Unlock()
	s.closed = true
	if c.failed != nil {
		return c.failed
	}
	// Badger retries its last write for ever where the disk refuses it. All
	// that was acknowledged is in its log, so nothing is lost by giving up.
	closed := make(chan error, 1)
	go func() { closed <- s.db.Close() }() // outlives Close only on a broken disk
	give := time.NewTimer(closePatience)
	defer give.Stop()
	select {
	case err := <-closed:
		if err != nil {
			return fmt.Errorf("ledger: closing %s: %w", s.dir, err)
		}
		return nil
	case <-give.C:
		return fmt.Errorf("ledger: closing %s takes longer than %s: is the disk there and writable? Nothing that was acknowledged is lost", s.dir, closePatience)
	}
}

// closePatience is how long Close waits for Badger.
const closePatience = 20 * time.Second

func entryKey(k ledger.Key) []byte { return append([]byte{kindEntry}, k...) }

// decodeItem returns the entry that item holds.
func decodeItem(item *engine.Item) (ledger.Entry, error) {
	e := ledger.Entry{Key: ledger.Key(item.Key()[1:])}
	err := item.Value(func(stored []byte) (err error) {
		e.Version, e.Value, err = decodeValue(stored)
		return err
	})
	if err != nil {
		return ledger.Entry{}, fmt.Errorf("ledger: reading %s: %w", e.Key, err)
	}
	return e, nil
}

// engineLog passes on what Badger has to say, its progress reports at debug level.
type engineLog struct{ log *slog.Logger }

func (l engineLog) Errorf(format string, args ...any) {
	l.log.Error("badger", "message", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (l engineLog) Warningf(format string, args ...any) {
	l.log.Warn("badger", "message", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (l engineLog) Infof(format string, args ...any) {
	l.Debugf(format, args...)
}

func (l engineLog) Debugf(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("badger", "message", strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
}

var _ ledger.Store = (*Store)(nil)
