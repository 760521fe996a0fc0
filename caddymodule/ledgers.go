package caddymodule

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap/exp/zapslog"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/internal/failpoint"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
)

func init() {
	caddy.RegisterModule(&BadgerLedger{})
	caddy.RegisterModule(&MemoryLedger{})
	caddy.RegisterModule(&PostgresLedger{})
}

// A LedgerModule says which ledger a configuration uses. Modules in the
// namespace x402.ledgers implement it.
type LedgerModule interface {
	// LedgerKey names the ledger in this process. Configurations with the
	// same key share one open store.
	LedgerKey() string

	// OpenLedger opens the store.
	OpenLedger(*slog.Logger) (ledger.Store, error)

	// Shared reports whether other processes may have the ledger open, too.
	// What they have claimed is theirs until its lease has passed.
	Shared() bool
}

// BadgerLedger keeps the ledger in a directory. One process may use it at a
// time. Who may read the directory learns who paid for what; who may write it
// can make the server serve for free; who loses it while payments are under
// way may serve them twice.
type BadgerLedger struct {
	// The directory. Default: x402/ledger in Caddy's data directory.
	// Placeholders are resolved when the configuration is loaded.
	Path string `json:"path,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*BadgerLedger) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "x402.ledgers.badger", New: func() caddy.Module { return new(BadgerLedger) }}
}

// Provision finds out the absolute path and opens nothing.
func (l *BadgerLedger) Provision(caddy.Context) error {
	if l.Path == "" {
		l.Path = filepath.Join(caddy.AppDataDir(), "x402", "ledger")
	}
	path, err := resolve("ledger badger", l.Path)
	if err != nil {
		return err
	}
	if l.Path, err = filepath.Abs(path); err != nil {
		return fmt.Errorf("ledger badger: %w", err)
	}
	return nil
}

// LedgerKey implements LedgerModule.
func (l *BadgerLedger) LedgerKey() string { return "badger " + l.Path }

// OpenLedger implements LedgerModule.
func (l *BadgerLedger) OpenLedger(logger *slog.Logger) (ledger.Store, error) {
	return badger.Open(l.Path, badger.Options{Logger: logger})
}

// Shared implements LedgerModule.
func (*BadgerLedger) Shared() bool { return false }

// UnmarshalCaddyfile reads "badger [<path>]".
func (l *BadgerLedger) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return optionalArg(d, &l.Path)
}

// MemoryLedger keeps the ledger in memory. A restart forgets it: payments
// whose authorization is still valid could then be used once more. It is for
// tests.
type MemoryLedger struct {
	// Configurations that give the same name share one ledger. Default: "".
	Name string `json:"name,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*MemoryLedger) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "x402.ledgers.memory", New: func() caddy.Module { return new(MemoryLedger) }}
}

// LedgerKey implements LedgerModule.
func (l *MemoryLedger) LedgerKey() string { return "memory " + l.Name }

// OpenLedger implements LedgerModule.
func (*MemoryLedger) OpenLedger(logger *slog.Logger) (ledger.Store, error) {
	logger.Warn("the ledger is in memory: a restart forgets which payments were used")
	return ledger.NewMemory(), nil
}

// Shared implements LedgerModule.
func (*MemoryLedger) Shared() bool { return false }

// UnmarshalCaddyfile reads "memory [<name>]".
func (l *MemoryLedger) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return optionalArg(d, &l.Name)
}

func loadLedger(ctx caddy.Context, a *App) (LedgerModule, error) {
	if len(a.LedgerRaw) == 0 {
		l := &BadgerLedger{}
		return l, l.Provision(ctx)
	}
	guest, err := ctx.LoadModule(a, "LedgerRaw")
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	l, ok := guest.(LedgerModule)
	if !ok {
		return nil, fmt.Errorf("ledger: %T is no ledger", guest)
	}
	return l, nil
}

// ledgers are the stores that are open in this process, by key, so that a
// reload goes on with the store that is open. opening makes one opening or
// closing wait for another: a store that is about to close cannot be opened.
var (
	ledgers = caddy.NewUsagePool()
	opening sync.Mutex
)

// An openedLedger is a store in use.
type openedLedger struct {
	store  ledger.Store
	ledger *ledger.Ledger
	shared bool // other processes use it, too
	stop   context.CancelFunc
	swept  chan struct{} // closed when the sweeper has ended

	catalogue facilitator.Catalogue // of the facilitator API, which a reload must not empty

	lingering sync.WaitGroup // engines on this ledger whose configuration has been replaced

	mu   sync.Mutex
	over chan struct{} // guarded by mu: closed when engines must not linger any longer
}

// linger waits for d, or until hurry is called.
func (l *openedLedger) linger(d time.Duration) {
	l.mu.Lock()
	over := l.over
	l.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-over:
	case <-timer.C:
	}
}

// hurry ends the engines that linger, because no configuration has replaced
// the last one, and waits a while for them.
func (l *openedLedger) hurry() {
	l.mu.Lock()
	close(l.over)
	l.over = make(chan struct{})
	l.mu.Unlock()
	gone := make(chan struct{})
	go func() { // ends with the last request of an engine that lingers
		l.lingering.Wait()
		close(gone)
	}()
	timer := time.NewTimer(linger)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C: // a request holds one up
	}
}

// sweepEvery is the pause between looks for stored answers that have expired.
const sweepEvery = time.Minute

// openLedger opens a ledger, or takes the one that is open. Claims that an
// earlier process left behind are released before it returns. giveBack must
// be called once.
func openLedger(m LedgerModule) (_ *openedLedger, giveBack func() error, err error) {
	key := m.LedgerKey()
	opening.Lock()
	defer opening.Unlock()
	v, _, err := ledgers.LoadOrNew(key, func() (caddy.Destructor, error) { return newOpenedLedger(m) })
	if err != nil {
		return nil, nil, err
	}
	return v.(*openedLedger), func() error {
		opening.Lock()
		defer opening.Unlock()
		_, err := ledgers.Delete(key)
		return err
	}, nil
}

func newOpenedLedger(m LedgerModule) (*openedLedger, error) {
	var owner [16]byte
	if _, err := rand.Read(owner[:]); err != nil {
		return nil, err
	}
	logger := slog.New(ledgerLog{})
	store, err := m.OpenLedger(logger)
	if err != nil {
		return nil, err
	}
	newLedger := ledger.New
	if m.Shared() {
		newLedger = ledger.NewShared
	}
	l := &openedLedger{
		store: store, ledger: newLedger(failpoint.Store(store), hex.EncodeToString(owner[:]), time.Now), shared: m.Shared(),
		swept: make(chan struct{}), over: make(chan struct{}),
	}
	n, err := l.ledger.Recover(context.Background(), !l.shared)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("recovering the ledger: %w", err), store.Close())
	}
	if n > 0 {
		logger.Info("released payments that an earlier process had claimed and not settled", "count", n)
	}
	var ctx context.Context
	ctx, l.stop = context.WithCancel(context.Background())
	go l.sweep(ctx, logger) // ends with ctx; Destruct waits for swept
	return l, nil
}

func (l *openedLedger) sweep(ctx context.Context, logger *slog.Logger) {
	defer close(l.swept)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := l.ledger.Sweep(ctx); err != nil && ctx.Err() == nil {
			logger.Error("forgetting expired answers failed", "error", err)
		}
		if _, err := l.ledger.SweepGuests(ctx); err != nil && ctx.Err() == nil {
			logger.Error("forgetting payers whose access has ended failed", "error", err)
		}
		if !l.shared {
			continue
		}
		if _, err := l.ledger.Recover(ctx, false); err != nil && ctx.Err() == nil {
			logger.Error("releasing what an instance that ended had claimed failed", "error", err)
		}
	}
}

// leavePatience is how long the last use of a ledger waits to tell the other
// instances that it was the last.
const leavePatience = 5 * time.Second

// Destruct leaves the ledger and closes the store. It runs when the last
// engine that uses them has ended, and not on a reload that goes on with them.
func (l *openedLedger) Destruct() error {
	l.stop()
	<-l.swept
	ctx, cancel := context.WithTimeout(context.Background(), leavePatience)
	defer cancel()
	if err := l.ledger.Leave(ctx); err != nil {
		slog.New(ledgerLog{}).Warn("other instances take over only after a few seconds", "error", err)
	}
	return l.store.Close()
}

// A ledgerLog writes to the logger of whatever configuration is running when
// something is logged: a store outlives the configuration that opened it.
type ledgerLog struct{ attrs []slog.Attr }

func (ledgerLog) current() slog.Handler {
	return zapslog.NewHandler(caddy.Log().Core(), zapslog.WithName("x402.ledger"))
}

func (l ledgerLog) Enabled(ctx context.Context, level slog.Level) bool {
	return l.current().Enabled(ctx, level)
}

func (l ledgerLog) Handle(ctx context.Context, r slog.Record) error {
	r = r.Clone()
	r.AddAttrs(l.attrs...)
	return l.current().Handle(ctx, r)
}

func (l ledgerLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return ledgerLog{append(slices.Clip(l.attrs), attrs...)}
}

func (l ledgerLog) WithGroup(string) slog.Handler { return l } // ledgers use none

var (
	_ LedgerModule          = (*BadgerLedger)(nil)
	_ LedgerModule          = (*MemoryLedger)(nil)
	_ caddy.Provisioner     = (*BadgerLedger)(nil)
	_ caddyfile.Unmarshaler = (*BadgerLedger)(nil)
	_ caddyfile.Unmarshaler = (*MemoryLedger)(nil)
	_ caddy.Destructor      = (*openedLedger)(nil)
)
