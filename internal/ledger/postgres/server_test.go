package postgres

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// Where the servers are: see e2e/postgres.sh.
const (
	serverVariable  = "TOLLGATE_TEST_POSTGRES"
	victimVariable  = "TOLLGATE_TEST_POSTGRES_VICTIM"
	restartVariable = "TOLLGATE_TEST_POSTGRES_RESTART"
)

var ctx = context.Background()

// fromServer returns what e2e/postgres.sh has put into the environment. Without it
// the test is skipped, and fails where nothing may be skipped.
func fromServer(t testing.TB, variable string) string {
	t.Helper()
	value := os.Getenv(variable)
	switch {
	case value != "":
		return value
	case os.Getenv("CI") == "true":
		t.Fatalf("%s is not set: run the tests with e2e/postgres.sh", variable)
	}
	t.Skipf("NOT TESTED: %s is not set; e2e/postgres.sh runs these tests beside a server of their own", variable)
	return ""
}

// query runs a statement on a connection of its own.
func query(t testing.TB, url, sql string) (result string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	for _, r := range results {
		for _, row := range r.Rows {
			for _, column := range row {
				result += string(column) + " "
			}
		}
	}
	return strings.TrimSpace(result)
}

// newSchema returns the name of a schema that does not exist, and is removed
// after the test.
func newSchema(t testing.TB, url string) string {
	t.Helper()
	var name [8]byte
	if _, err := rand.Read(name[:]); err != nil {
		t.Fatal(err)
	}
	schema := "test_" + hex.EncodeToString(name[:])
	t.Cleanup(func() { query(t, url, "DROP SCHEMA IF EXISTS "+schema+" CASCADE") })
	return schema
}

func openStore(t testing.TB, url string, opts Options) *Store {
	t.Helper()
	s, err := Open(ctx, url, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// startStore opens a store with a writer that change has altered.
func startStore(t testing.TB, url string, opts Options, change func(*Store, *writer)) *Store {
	t.Helper()
	s, w, err := open(ctx, url, opts)
	if err != nil {
		t.Fatal(err)
	}
	change(s, w)
	s.start(w)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func create(key ledger.Key, value string) ledger.Write {
	return ledger.Write{Key: key, If: ledger.Absent, Value: []byte(value)}
}

func mustCommit(t testing.TB, s ledger.Store, writes ...ledger.Write) {
	t.Helper()
	if err := s.Commit(ctx, writes...); err != nil {
		t.Fatalf("commit: %v", err)
	}
}
