package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tollgate402/tollgate/internal/ledger"
)

func wantAbsent(t *testing.T, s ledger.Store, key ledger.Key) {
	t.Helper()
	if e, err := s.Get(ctx, key); !errors.Is(err, ledger.ErrNotFound) {
		t.Fatalf("get %s returned %+v, %v, want not found", key, e, err)
	}
}

func wantThere(t *testing.T, s ledger.Store, key ledger.Key) {
	t.Helper()
	if _, err := s.Get(ctx, key); err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
}

// eventually waits for what the server or another goroutine brings about.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen within a minute", what)
		}
	}
}

// commits reports whether a round ends a transaction for good.
func commits(round *pgx.Batch) bool {
	return round.QueuedQueries[len(round.QueuedQueries)-1].SQL == "COMMIT"
}

// The answer to COMMIT is lost in every way it can be, and the outcome is found
// out.
func TestLostAnswersAreFoundOut(t *testing.T) {
	url := fromServer(t, serverVariable)
	for name, c := range map[string]struct {
		lose func(*testing.T, *pgx.Conn, *pgx.Batch)
		made bool
	}{
		"before the server had it": {func(_ *testing.T, conn *pgx.Conn, _ *pgx.Batch) { discard(conn) }, false},
		"after the server made it": {func(t *testing.T, conn *pgx.Conn, round *pgx.Batch) {
			if err := exchange(ctx, conn, round); err != nil {
				t.Error(err)
			}
			discard(conn)
		}, true},
		"while it is on its way":         {func(t *testing.T, conn *pgx.Conn, round *pgx.Batch) { detach(t, url, conn, round, "COMMIT") }, true},
		"while it is about to be undone": {func(t *testing.T, conn *pgx.Conn, round *pgx.Batch) { detach(t, url, conn, round, "ROLLBACK") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			lost := false
			s := startStore(t, url, Options{Schema: newSchema(t, url)}, func(_ *Store, w *writer) {
				w.exchange = func(ctx context.Context, conn *pgx.Conn, round *pgx.Batch) error {
					if lost || !commits(round) {
						return exchange(ctx, conn, round)
					}
					lost = true
					c.lose(t, conn, round)
					return io.ErrUnexpectedEOF
				}
			})
			err := s.Commit(ctx, create("a", "1"), create("b", "2"))
			var failed *ledger.FailedError
			if errors.As(err, &failed) || (err == nil) != c.made {
				t.Fatalf("commit returned %v", err)
			}
			if c.made {
				wantThere(t, s, "a")
				wantThere(t, s, "b")
			} else {
				wantAbsent(t, s, "a")
				wantAbsent(t, s, "b")
			}
			mustCommit(t, s, create("c", ""))
			wantThere(t, s, "c")
		})
	}
}

// detach makes all of round but its COMMIT, takes the connection away from the
// store and ends the transaction only when the store is already asking what
// became of it.
func detach(t *testing.T, url string, conn *pgx.Conn, round *pgx.Batch, end string) {
	last := len(round.QueuedQueries) - 1
	if err := exchange(ctx, conn, &pgx.Batch{QueuedQueries: round.QueuedQueries[:last]}); err != nil {
		t.Error(err)
	}
	loose, err := conn.PgConn().Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	go func() { // ends before the commit returns, which waits for it
		eventually(t, "the question", func() bool {
			return query(t, url, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO%writers AS w%'") != "0"
		})
		old, err := pgconn.Construct(loose)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := old.Exec(ctx, end).ReadAll(); err != nil {
			t.Error(err)
		}
		_ = old.Close(ctx)
	}()
}

func TestOutcomesThatCannotBeAskedAreUnknown(t *testing.T) {
	direct := fromServer(t, serverVariable)
	way, url := newRelay(t, direct)
	breaking := make(chan struct{}, 1)
	s := startStore(t, url, Options{Schema: newSchema(t, direct)}, func(s *Store, w *writer) {
		s.patience, w.doubt = 200*time.Millisecond, 300*time.Millisecond
		w.exchange = func(ctx context.Context, conn *pgx.Conn, round *pgx.Batch) error {
			if commits(round) {
				select {
				case <-breaking:
					way.set(cut)
				default:
				}
			}
			return exchange(ctx, conn, round)
		}
	})
	for i, limit := range []time.Duration{0, 50 * time.Millisecond} {
		key := ledger.Key(fmt.Sprint("a/", i))
		limited, cancel := ctx, context.CancelFunc(func() {})
		if limit != 0 {
			limited, cancel = context.WithTimeout(ctx, limit)
		}
		breaking <- struct{}{}
		err := s.Commit(limited, create(key, ""))
		cancel()
		var failed *ledger.FailedError
		if !errors.As(err, &failed) {
			t.Fatalf("a commit that nobody can tell the outcome of returned %v", err)
		}
		if _, err := s.Get(ctx, key); err == nil || errors.Is(err, ledger.ErrNotFound) {
			t.Fatalf("a read before the outcome is known returned %v", err)
		}
		if err := s.Commit(ctx, create("b", "")); err == nil || errors.As(err, &failed) {
			t.Fatalf("a commit without a database returned %v", err)
		}
		way.set(whole)
		eventually(t, "the answer", func() bool {
			_, err := s.Get(ctx, key)
			return errors.Is(err, ledger.ErrNotFound)
		})
	}
	mustCommit(t, s, create("a/0", ""))
}

func TestADeadServerGivesErrorsInTime(t *testing.T) {
	direct := fromServer(t, serverVariable)
	way, url := newRelay(t, direct)
	s := startStore(t, url, Options{Schema: newSchema(t, direct)}, func(s *Store, _ *writer) {
		s.patience, s.config.ConnectTimeout = 300*time.Millisecond, 300*time.Millisecond
	})
	mustCommit(t, s, create("a", ""))
	wantThere(t, s, "a")
	calls := map[string]func(context.Context) error{
		"get":    func(ctx context.Context) error { _, err := s.Get(ctx, "a"); return err },
		"scan":   func(ctx context.Context) error { _, err := s.Scan(ctx, "", "", 1); return err },
		"commit": func(ctx context.Context) error { return s.Commit(ctx, create("b", "")) },
	}
	for _, state := range []relayState{cut, silent} {
		way.set(state)
		for name, do := range calls {
			limited, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			err := do(limited)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s returned %v", name, err)
			}
			// Without a deadline the store sets one.
			begin := time.Now()
			if err := do(ctx); err == nil || errors.Is(err, ledger.ErrNotFound) || strings.Contains(err.Error(), "127.0.0.1") {
				t.Errorf("%s returned %v", name, err)
			}
			if took := time.Since(begin); took > time.Minute {
				t.Errorf("%s took %s", name, took)
			}
		}
		s.Later(create("lost", ""))
		way.set(whole)
		eventually(t, "a commit", func() bool {
			return s.Commit(ctx, ledger.Write{Key: "c", If: ledger.AnyVersion, Value: []byte{}}) == nil
		})
		wantThere(t, s, "a")
		wantAbsent(t, s, "b")
	}
}

// The server is killed and started again while 16 writers count.
func TestARestartOfTheServerLosesNothingAcknowledged(t *testing.T) {
	url := fromServer(t, victimVariable)
	restart := fromServer(t, restartVariable)
	s := openStore(t, url, Options{Schema: newSchema(t, url)})
	const writers, restarts = 16, 3
	stop := make(chan struct{})
	var counted [writers]int
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			key := ledger.Key(fmt.Sprint("counter/", w))
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := s.Commit(ctx, ledger.Write{Key: key, If: uint64(counted[w]), Value: []byte("x")},
					create(ledger.Key(fmt.Sprintf("mark/%d/%d", w, counted[w])), ""))
				var failed *ledger.FailedError
				var conflict *ledger.ConflictError
				switch {
				case err == nil:
					counted[w]++
				case errors.As(err, &failed):
					var e ledger.Entry
					for e, err = s.Get(ctx, key); err != nil && !errors.Is(err, ledger.ErrNotFound); {
						e, err = s.Get(ctx, key)
					}
					counted[w] = int(e.Version)
				case errors.As(err, &conflict):
					t.Errorf("writer %d has counted %d: %v", w, counted[w], err)
					return
				}
			}
		})
	}
	for range restarts {
		before := query(t, url, "SELECT sum(n_tup_ins) FROM pg_stat_user_tables")
		eventually(t, "a commit", func() bool { return query(t, url, "SELECT sum(n_tup_ins) FROM pg_stat_user_tables") != before })
		if out, err := exec.Command(restart).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
			break
		}
	}
	time.Sleep(50 * time.Millisecond) // let the writers meet the new server; nothing depends on it
	close(stop)
	all.Wait()
	for w, n := range counted {
		e, err := s.Get(ctx, ledger.Key(fmt.Sprint("counter/", w)))
		if err != nil || int(e.Version) != n || n == 0 {
			t.Errorf("writer %d has counted %d, its counter is at %d, %v", w, n, e.Version, err)
		}
		for i := range n {
			wantThere(t, s, ledger.Key(fmt.Sprintf("mark/%d/%d", w, i)))
		}
		wantAbsent(t, s, ledger.Key(fmt.Sprintf("mark/%d/%d", w, n)))
	}
}

func TestAServerThatMayLoseCommitsIsRefused(t *testing.T) {
	url := fromServer(t, victimVariable)
	s := openStore(t, url, Options{Schema: newSchema(t, url)})
	mustCommit(t, s, create("a", ""))
	set := func(value string) {
		query(t, url, "ALTER SYSTEM SET fsync = "+value)
		query(t, url, "SELECT pg_reload_conf()")
		eventually(t, "the setting", func() bool { return query(t, url, "SHOW fsync") == value })
	}
	defer set("on")
	set("off")
	const want = "fsync is off"
	if _, err := Open(ctx, url, Options{Schema: newSchema(t, url)}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("open returned %v", err)
	}
	eventually(t, "the refusal", func() bool {
		err := s.Commit(ctx, ledger.Write{Key: "a", If: ledger.AnyVersion, Value: []byte{}})
		return err != nil && strings.Contains(err.Error(), want)
	})
	set("on")
	eventually(t, "a commit", func() bool {
		return s.Commit(ctx, ledger.Write{Key: "a", If: ledger.AnyVersion, Value: []byte{}}) == nil
	})
}

func TestASessionThatForgetsItsSettingsIsRefused(t *testing.T) {
	url := fromServer(t, serverVariable)
	var settings string
	s := startStore(t, url, Options{Schema: newSchema(t, url)}, func(_ *Store, w *writer) {
		err := w.conn.QueryRow(ctx, "SELECT concat_ws(' ', current_setting('synchronous_commit'), current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'))").Scan(&settings)
		if err != nil {
			t.Error(err)
		}
		if _, err := w.conn.Exec(ctx, "SET synchronous_commit = off"); err != nil {
			t.Error(err)
		}
	})
	if settings != "on 0 10s 10s" {
		t.Errorf("the session has the settings %s", settings)
	}
	if err := s.Commit(ctx, create("a", "")); err == nil || !strings.Contains(err.Error(), "synchronous_commit is off") {
		t.Fatalf("commit returned %v", err)
	}
	wantAbsent(t, s, "a")
	mustCommit(t, s, create("a", "")) // by a new connection
}

func TestAReadOnlyDatabaseIsRefused(t *testing.T) {
	url := fromServer(t, serverVariable)
	limited, cancel := context.WithTimeout(ctx, 6*time.Second) // it is tried again: a standby may become the primary
	defer cancel()
	_, err := Open(limited, url+"&default_transaction_read_only=on", Options{Schema: newSchema(t, url)})
	if err == nil || !strings.Contains(err.Error(), "it is read-only") {
		t.Fatalf("open returned %v", err)
	}
}

// A role that is set to forget commits by default is told not to.
func TestDefaultsOfARoleDoNotWeakenCommits(t *testing.T) {
	url := fromServer(t, serverVariable)
	schema := newSchema(t, url)
	role := strings.Replace(schema, "test", "role", 1)
	query(t, url, "CREATE ROLE "+role+" LOGIN SUPERUSER")
	t.Cleanup(func() { query(t, url, "DROP OWNED BY "+role+"; DROP ROLE "+role) })
	for setting, value := range map[string]string{"synchronous_commit": "off", "statement_timeout": "'1h'", "default_transaction_isolation": "serializable"} {
		query(t, url, "ALTER ROLE "+role+" SET "+setting+" = "+value)
	}
	asRole := strings.Replace(url, "postgres@", role+"@", 1)
	const settings = "SELECT concat_ws(' ', current_setting('synchronous_commit'), current_setting('statement_timeout'))"
	if got := query(t, asRole, settings); got != "off 1h" {
		t.Fatalf("the role has the settings %s", got)
	}
	var got string
	s := startStore(t, asRole, Options{Schema: schema}, func(_ *Store, w *writer) {
		if err := w.conn.QueryRow(ctx, settings).Scan(&got); err != nil {
			t.Error(err)
		}
	})
	if got != "on 0" {
		t.Errorf("the session has the settings %s", got)
	}
	mustCommit(t, s, create("a", ""))
	wantThere(t, s, "a")
}

func TestErrorsAndLogsRepeatNothingOfTheConnectionString(t *testing.T) {
	url := fromServer(t, serverVariable)
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{"s3cret", "hidden", "sshh", config.Host, "127.0.0.1"}
	for what, given := range map[string]string{
		"nothing listens":   "postgres://hidden:s3cret@127.0.0.1:1/sshh",
		"unknown host":      "postgres://hidden:s3cret@hidden.invalid/sshh",
		"no URL":            "postgres://hidden:s3cret@%zz/sshh",
		"no port":           "postgres://hidden:s3cret@127.0.0.1:sshh/x",
		"refused user":      "postgres://locked:s3cret@/postgres?host=" + config.Host,
		"unknown user":      "postgres://hidden:s3cret@/postgres?host=" + config.Host,
		"unknown database":  "postgres://postgres:s3cret@/sshh?host=" + config.Host,
		"key and value":     "host=127.0.0.1 port=1 user=hidden password=s3cret dbname=sshh",
		"unknown parameter": url + "&sshh=s3cret",
	} {
		var log bytes.Buffer
		limited, cancel := context.WithTimeout(ctx, time.Second)
		_, err := Open(limited, given, Options{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		cancel()
		if err == nil {
			t.Errorf("%s: it was opened", what)
			continue
		}
		for _, secret := range secrets {
			if text := err.Error() + log.String(); strings.Contains(text, secret) {
				t.Errorf("%s: %q is in %q", what, secret, text)
			}
		}
	}
}

func TestManyInstancesMayCreateTheTablesAtOnce(t *testing.T) {
	url := fromServer(t, serverVariable)
	for range 5 {
		schema := newSchema(t, url)
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				s, err := Open(ctx, url, Options{Schema: schema, MaxConns: 2})
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Commit(ctx, create(ledger.Key(fmt.Sprint("k/", i)), "")); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if got := query(t, url, "SELECT version, (SELECT count(*) FROM "+schema+".entries) FROM "+schema+".schema_version"); got != "1 8" {
			t.Fatalf("version and entries are %s", got)
		}
	}
}

func TestTablesOfALaterVersionAreRefused(t *testing.T) {
	url := fromServer(t, serverVariable)
	schema := newSchema(t, url)
	s := openStore(t, url, Options{Schema: schema})
	mustCommit(t, s, create("a", ""))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := query(t, url, "SELECT count(*) FROM "+schema+".writers"); got != "0" {
		t.Errorf("a closed store has left %s rows in writers", got)
	}
	query(t, url, "UPDATE "+schema+".schema_version SET version = 99")
	if _, err := Open(ctx, url, Options{Schema: schema}); err == nil || !strings.Contains(err.Error(), "have version 99, this program knows 1") {
		t.Fatalf("open returned %v", err)
	}
}

// docs/ledger.md grants exactly this.
func TestARoleNeedsNoRightToCreateAnything(t *testing.T) {
	url := fromServer(t, serverVariable)
	schema := newSchema(t, url)
	role := strings.Replace(schema, "test", "role", 1)
	query(t, url, "CREATE ROLE "+role+" LOGIN")
	t.Cleanup(func() { query(t, url, "DROP OWNED BY "+role+"; DROP ROLE "+role) })
	asRole := strings.Replace(url, "postgres@", role+"@", 1)

	if _, err := Open(ctx, asRole, Options{Schema: schema}); err == nil || !strings.Contains(err.Error(), "docs/ledger.md") {
		t.Fatalf("without rights open returned %v", err)
	}
	if err := openStore(t, url, Options{Schema: schema}).Close(); err != nil {
		t.Fatal(err)
	}
	query(t, url, "GRANT USAGE ON SCHEMA "+schema+" TO "+role+
		"; GRANT SELECT, INSERT, UPDATE, DELETE ON "+schema+".entries, "+schema+".writers TO "+role+
		"; GRANT SELECT ON "+schema+".schema_version TO "+role)
	s := openStore(t, asRole, Options{Schema: schema})
	mustCommit(t, s, create("a", ""))
	mustCommit(t, s, ledger.Write{Key: "a", If: 1})
	wantAbsent(t, s, "a")
}

func TestBadOptionsAreRefused(t *testing.T) {
	for name, opts := range map[string]Options{
		"a schema with blanks":       {Schema: "a b"},
		"a schema in capitals":       {Schema: "Ledger"},
		"a schema with a quote":      {Schema: `a"b`},
		"a schema of the system":     {Schema: "pg_catalog"},
		"a schema that is too long":  {Schema: strings.Repeat("x", 64)},
		"one connection":             {MaxConns: 1},
		"a negative number of conns": {MaxConns: -1},
	} {
		if _, err := Open(ctx, "postgres://127.0.0.1:1/x", opts); err == nil || strings.Contains(err.Error(), "opening") {
			t.Errorf("%s: open returned %v", name, err)
		}
	}
}

// A hundred thousand keys must be found by the index, even by a connection that
// knew the table when it was empty.
func TestPlansDoNotDependOnWhenTheyWereMade(t *testing.T) {
	url := fromServer(t, serverVariable)
	schema := newSchema(t, url)
	var mode string
	s := startStore(t, url, Options{Schema: schema}, func(_ *Store, w *writer) {
		if err := w.conn.QueryRow(ctx, "SHOW plan_cache_mode").Scan(&mode); err != nil {
			t.Error(err)
		}
	})
	if mode != "force_custom_plan" {
		t.Errorf("plan_cache_mode is %s", mode)
	}
	for i := range 20 {
		mustCommit(t, s, create(ledger.Key(fmt.Sprint("few/", i)), ""))
	}
	query(t, url, "INSERT INTO "+schema+".entries SELECT convert_to('many/' || n, 'UTF8'), 1, '' FROM generate_series(1, 100000) AS n")
	scans := func() string {
		return query(t, url, "SELECT pg_stat_force_next_flush(); SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'entries' AND schemaname = '"+schema+"'")
	}
	before := scans()
	for i := range 20 {
		mustCommit(t, s, ledger.Write{Key: ledger.Key(fmt.Sprint("many/", i+1)), If: 1, Value: []byte("x")})
	}
	if err := s.Close(); err != nil { // which makes the server count
		t.Fatal(err)
	}
	if after := scans(); after != before {
		t.Errorf("rows read without the index: %s before, %s after 20 commits", before, after)
	}
}
