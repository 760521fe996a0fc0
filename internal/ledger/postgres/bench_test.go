package postgres

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// benchValue does not compress, like signatures.
var benchValue = func() []byte {
	v := make([]byte, 600)
	_, _ = rand.NewChaCha8([32]byte{}).Read(v)
	return v
}()

// BenchmarkCommit creates keys durably, as Badger's benchmark of the same name
// does. Alone is the same claim as an INSERT on a connection of each writer;
// NoGroupCommit is our writer with one commit to a transaction.
func BenchmarkCommit(b *testing.B) {
	url := fromServer(b, serverVariable)
	for _, writers := range []int{1, 8, 64, 128} {
		b.Run(fmt.Sprintf("Alone/%d", writers), func(b *testing.B) {
			schema := newSchema(b, url)
			openStore(b, url, Options{Schema: schema}) // which makes the tables
			config, err := pgxpool.ParseConfig(url)
			if err != nil {
				b.Fatal(err)
			}
			config.MaxConns = int32(writers)
			pool, err := pgxpool.NewWithConfig(ctx, config)
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			insert := inSchema("INSERT INTO {schema}.entries (key, version, value) VALUES ($1, 1, $2) ON CONFLICT (key) DO NOTHING", schema)
			measure(b, writers, func(key ledger.Key) error {
				tag, err := pool.Exec(ctx, insert, []byte(key), benchValue)
				if err == nil && tag.RowsAffected() != 1 {
					return fmt.Errorf("%s exists", key)
				}
				return err
			})
		})
		for _, c := range []struct {
			name  string
			batch int
		}{{"NoGroupCommit", 1}, {"GroupCommit", 0}} {
			b.Run(fmt.Sprintf("%s/%d", c.name, writers), func(b *testing.B) {
				s := openStore(b, url, Options{Schema: newSchema(b, url), MaxBatch: c.batch})
				measure(b, writers, func(key ledger.Key) error {
					return s.Commit(ctx, ledger.Write{Key: key, Value: benchValue})
				})
			})
		}
	}
}

// measure divides b.N calls of do among writers and reports their rate and
// latency.
func measure(b *testing.B, writers int, do func(key ledger.Key) error) {
	b.Helper()
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	var all sync.WaitGroup
	b.ResetTimer()
	for range writers {
		all.Go(func() {
			for n := next.Add(1) - 1; n < int64(b.N); n = next.Add(1) - 1 {
				start := time.Now()
				if err := do(ledger.Key(fmt.Sprintf("pay/%048x", n))); err != nil {
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
