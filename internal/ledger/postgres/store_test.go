package postgres

import (
	"testing"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/ledgertest"
)

func conforms(t *testing.T, opts Options) {
	url := fromServer(t, serverVariable)
	schemas := make(map[ledger.Store]string)
	open := func(t *testing.T, schema string) ledger.Store {
		opts.Schema = schema
		s := openStore(t, url, opts)
		schemas[s] = schema
		return s
	}
	ledgertest.Run(t,
		func(t *testing.T) ledger.Store { return open(t, newSchema(t, url)) },
		func(t *testing.T, s ledger.Store) ledger.Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return open(t, schemas[s])
		})
}

func TestStoreConforms(t *testing.T)               { conforms(t, Options{}) }
func TestStoreConformsInSmallBatches(t *testing.T) { conforms(t, Options{MaxBatch: 7}) }

func TestSeveralInstancesShareALedger(t *testing.T) {
	url := fromServer(t, serverVariable)
	ledgertest.RunShared(t, func(t *testing.T, instances int) []ledger.Store {
		schema := newSchema(t, url)
		var stores []ledger.Store
		for range instances {
			stores = append(stores, openStore(t, url, Options{Schema: schema}))
		}
		return stores
	})
}
