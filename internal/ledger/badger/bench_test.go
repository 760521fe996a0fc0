package badger

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	engine "github.com/dgraph-io/badger/v4"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// benchValue does not compress, like signatures.
var benchValue = func() []byte {
	v := make([]byte, 600)
	_, _ = rand.NewChaCha8([32]byte{}).Read(v)
	return v
}()

func benchKey(n int64) ledger.Key { return ledger.Key(fmt.Sprintf("pay/%048x", n)) } // 52 bytes

// measure divides b.N calls of do among writers and reports their rate and latency.
func measure(b *testing.B, writers int, do func(n int64) error) {
	b.Helper()
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	var all sync.WaitGroup
	b.ResetTimer()
	for range writers {
		all.Go(func() {
			for n := next.Add(1) - 1; n < int64(b.N); n = next.Add(1) - 1 {
				start := time.Now()
				if err := do(n); err != nil {
					b.Error(err)
					return
				}
				took[n] = time.Since(start)
			}
		})
	}
	all.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
	b.ReportMetric(took[len(took)/2].Seconds()*1e3, "p50-ms")
	b.ReportMetric(took[len(took)*99/100].Seconds()*1e3, "p99-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkCommit creates keys durably. BadgerAlone is the same claim as a Badger
// transaction of each writer, with Badger's conflict detection and the same
// options; NoGroupCommit is our committer with one commit to an fsync. Pebble
// groups commits by itself; it detects no conflicts, so its claim is the cheaper
// one.
func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 8, 64, 128} {
		b.Run(fmt.Sprintf("BadgerAlone/%d", writers), func(b *testing.B) {
			db, err := engine.Open(engineOptions(b.TempDir(), slog.New(slog.DiscardHandler)).WithDetectConflicts(true))
			if err != nil {
				b.Fatal(err)
			}
			measure(b, writers, func(n int64) error {
				return db.Update(func(txn *engine.Txn) error {
					key := entryKey(benchKey(n))
					if _, err := txn.Get(key); err != engine.ErrKeyNotFound {
						return fmt.Errorf("the key exists, or: %w", err)
					}
					return txn.Set(key, encodeValue(1, benchValue))
				})
			})
			if err := db.Close(); err != nil {
				b.Fatal(err)
			}
		})
		b.Run(fmt.Sprintf("Pebble/%d", writers), func(b *testing.B) {
			db, err := pebble.Open(b.TempDir(), &pebble.Options{Logger: quiet{}})
			if err != nil {
				b.Fatal(err)
			}
			measure(b, writers, func(n int64) error {
				key := entryKey(benchKey(n))
				if _, _, err := db.Get(key); err != pebble.ErrNotFound {
					return fmt.Errorf("the key exists, or: %w", err)
				}
				return db.Set(key, encodeValue(1, benchValue), pebble.Sync)
			})
			if err := db.Close(); err != nil {
				b.Fatal(err)
			}
		})
		for name, opts := range map[string]Options{"NoGroupCommit": {NoGroupCommit: true}, "GroupCommit": {}} {
			b.Run(fmt.Sprintf("%s/%d", name, writers), func(b *testing.B) {
				s := openStore(b, b.TempDir(), opts)
				measure(b, writers, func(n int64) error {
					return s.Commit(ctx, ledger.Write{Key: benchKey(n), Value: benchValue})
				})
			})
		}
	}
}

// quiet is a logger for Pebble.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

// BenchmarkFsync is what the disk does by itself: the floor of every commit.
func BenchmarkFsync(b *testing.B) {
	f, err := os.Create(b.TempDir() + "/f")
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 4096)
	measure(b, 1, func(int64) error {
		if _, err := f.Write(block); err != nil {
			return err
		}
		return f.Sync()
	})
}

// BenchmarkGetWhileCommitting reads what is on disk while 64 writers commit.
func BenchmarkGetWhileCommitting(b *testing.B) {
	s := openStore(b, b.TempDir(), Options{})
	const known = 10_000
	for n := range int64(known) {
		s.Later(create(benchKey(n), string(benchValue)))
	}
	mustCommit(b, s)
	var stop atomic.Bool
	var writers sync.WaitGroup
	for w := range int64(64) {
		writers.Go(func() {
			for n := int64(known) + w; !stop.Load(); n += 64 {
				if err := s.Commit(ctx, ledger.Write{Key: benchKey(n), Value: benchValue}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	measure(b, 1, func(n int64) error {
		_, err := s.Get(ctx, benchKey(n%known))
		return err
	})
	stop.Store(true)
	writers.Wait()
}
