package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"
)

// How long things may take before the connection is taken for dead.
const (
	connectTimeout   = 5 * time.Second
	statementTimeout = 15 * time.Second // of one exchange; longer than the server's lockTimeout

	// The server ends a transaction of ours that is idle for so long, and with it
	// the locks of an instance that hangs or is cut off.
	idleTimeout = "10s"

	// The server refuses a statement that waits for a lock for so long.
	lockTimeout = "10s"
)

// Conditions of PostgreSQL that are told apart here.
const (
	undefinedTable       = "42P01"
	invalidSchema        = "3F000"
	insufficientRights   = "42501"
	uniqueViolation      = "23505"
	duplicateTable       = "42P07"
	duplicateSchema      = "42P06"
	duplicateObject      = "42710"
	internalError        = "XX000" // "tuple concurrently updated", from two at once who create
	serializationFailure = "40001"
	deadlock             = "40P01"
	lockNotAvailable     = "55P03"
	queryCanceled        = "57014"
	tooManyConnections   = "53300"
	readOnly             = "25006"
	idleInTransaction    = "25P03"
	noDatabase           = "3D000"
	diskFull             = "53100"
	divisionByZero       = "22012"
)

// parse reads a connection string. Its errors do not repeat any part of it.
func parse(url string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("ledger: the connection string of the database cannot be read: write it like postgres://user:password@host:5432/database?sslmode=verify-full")
	}
	config.ConnConfig.ConnectTimeout = connectTimeout
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "tollgate"
	}
	// A caller who gives up while his question is under way must not cost a
	// connection: the answer is worth waiting for.
	config.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: conn.Conn(), DeadlineDelay: 250 * time.Millisecond}
	}
	config.AfterConnect = prepare
	return config, nil
}

// connect opens one connection that is fit for the ledger.
func connect(ctx context.Context, config *pgx.ConnConfig) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := prepare(ctx, conn); err != nil {
		discard(conn)
		return nil, err
	}
	return conn, nil
}

// discard closes a connection of which nothing is expected any more.
func discard(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // it is gone either way
}

// encrypted reports whether every connection that config allows is encrypted
// or stays on this machine.
func encrypted(config *pgx.ConnConfig) bool {
	safe := func(host string, tls bool) bool {
		ip := net.ParseIP(host)
		return tls || strings.HasPrefix(host, "/") || host == "localhost" || ip != nil && ip.IsLoopback()
	}
	all := safe(config.Host, config.TLSConfig != nil)
	for _, f := range config.Fallbacks {
		all = all && safe(f.Host, f.TLSConfig != nil)
	}
	return all
}

// A promiseError says that the database would not keep what the ledger promises.
type promiseError struct{ why string }

func (e *promiseError) Error() string { return "the database is refused: " + e.why }

// errReadOnly may pass: a standby becomes the primary.
var errReadOnly = &promiseError{"it is read-only, a standby perhaps: connect to the primary"}

// prepare makes a new connection fit for the ledger, or refuses it.
func prepare(ctx context.Context, conn *pgx.Conn) error {
	// A statement_timeout would end the wait for a synchronous standby with a
	// commit that the standby does not have, reported as made.
	const session = `SELECT set_config('statement_timeout', '0', false),
		set_config('lock_timeout', '` + lockTimeout + `', false),
		set_config('idle_in_transaction_session_timeout', '` + idleTimeout + `', false)`
	if _, err := conn.Exec(ctx, session); err != nil {
		return err
	}
	var version, synchronous, readOnly string
	err := conn.QueryRow(ctx, "SELECT version(), coalesce(current_setting('synchronous_commit', true), 'on'), current_setting('transaction_read_only')").
		Scan(&version, &synchronous, &readOnly)
	if err != nil {
		return err
	}
	if readOnly != "off" {
		return errReadOnly
	}
	if !strings.HasPrefix(version, "PostgreSQL") {
		return checkPromise(ctx, conn)
	}
	if !waitsForDisk(synchronous) {
		if _, err := conn.Exec(ctx, "SET synchronous_commit = on"); err != nil {
			return err
		}
	}
	// A plan that was made while the tables were small reads them whole when
	// they are large.
	if _, err := conn.Exec(ctx, "SET plan_cache_mode = force_custom_plan"); err != nil {
		return err
	}
	return checkPromise(ctx, conn)
}

// promise asks what checkSettings checks. CockroachDB has no setting fsync and
// always waits for its disks.
const promise = "SELECT coalesce(current_setting('synchronous_commit', true), 'on'), coalesce(current_setting('fsync', true), 'on')"

func checkPromise(ctx context.Context, conn *pgx.Conn) error {
	var synchronous, fsync string
	if err := conn.QueryRow(ctx, promise).Scan(&synchronous, &fsync); err != nil {
		return err
	}
	return checkSettings(synchronous, fsync)
}

// checkSettings returns a *promiseError if a commit that was acknowledged could
// be lost.
func checkSettings(synchronous, fsync string) error {
	switch {
	case fsync != "on":
		return &promiseError{"fsync is off, so a crash of its machine would lose payments: set fsync = on in postgresql.conf"}
	case !waitsForDisk(synchronous):
		return &promiseError{"synchronous_commit is " + synchronous + " although the session set it to on: connect to the server itself, not through a pool that shares connections between transactions"}
	}
	return nil
}

// waitsForDisk reports whether a commit at this level of synchronous_commit is
// on the disk of the server, and of its synchronous standbys, when it returns.
func waitsForDisk(level string) bool { return level == "on" || level == "remote_apply" }

// passing reports whether what failed with err may work when it is tried again,
// on another connection if this one is gone.
func passing(err error) bool {
	if refused, ok := errors.AsType[*promiseError](err); ok {
		return refused == errReadOnly
	}
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return true // the connection
	}
	switch refused.Code {
	case serializationFailure, deadlock, lockNotAvailable, queryCanceled, tooManyConnections, readOnly, idleInTransaction:
		return true
	}
	return strings.HasPrefix(refused.Code, "08") || strings.HasPrefix(refused.Code, "57P") || strings.HasPrefix(refused.Code, "40")
}

// crossed reports whether err is what an instance gets that creates the tables
// at the same time as another one.
func crossed(err error) bool {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return false
	}
	switch refused.Code {
	case uniqueViolation, duplicateTable, duplicateSchema, duplicateObject, internalError:
		return true
	}
	return false
}

// A databaseError says what the database, or the way to it, did, without
// repeating any part of the connection string: what pgx says names host, user
// and database.
type databaseError struct{ why string }

func (e *databaseError) Error() string { return e.why }

// plainly returns err in words that may be logged.
func plainly(err error) error {
	var promise *promiseError
	var plain *databaseError
	var refused *pgconn.PgError
	var dns *net.DNSError
	var number syscall.Errno
	switch {
	case errors.As(err, &promise):
		return promise
	case errors.As(err, &plain):
		return plain
	case errors.As(err, &refused):
		var connecting *pgconn.ConnectError
		return &databaseError{refusal(refused, errors.As(err, &connecting))}
	case errors.As(err, &dns):
		return &databaseError{"the host of the database is not known"}
	case errors.As(err, &number):
		return &databaseError{"the database cannot be reached: " + number.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		return &databaseError{"the database does not answer"}
	case errors.Is(err, context.Canceled):
		return &databaseError{"nobody waits for the database any more"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return &databaseError{"the connection to the database was lost"}
	}
	return &databaseError{fmt.Sprintf("the connection to the database failed (%T)", rootOf(err))}
}

// rootOf returns the innermost error, of which the type tells something and the
// text may tell too much.
func rootOf(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// refusal is what the server says. While a connection is made that may repeat
// what it was given.
func refusal(e *pgconn.PgError, connecting bool) string {
	switch {
	case strings.HasPrefix(e.Code, "28"):
		return "the database refuses the user or the password (SQLSTATE " + e.Code + ")"
	case e.Code == noDatabase:
		return "there is no such database on the server (SQLSTATE " + e.Code + ")"
	case e.Code == insufficientRights:
		return "the user may not do this, see docs/ledger.md for what to grant: " + e.Message + " (SQLSTATE " + e.Code + ")"
	case e.Code == diskFull:
		return "the disk of the database is full (SQLSTATE " + e.Code + ")"
	case e.Code == tooManyConnections:
		return "the database has no connection to spare: lower max_conns or raise max_connections (SQLSTATE " + e.Code + ")"
	}
	if connecting {
		return "the database refuses the connection (SQLSTATE " + e.Code + "); its log says why"
	}
	return "the database says: " + e.Message + " (SQLSTATE " + e.Code + ")"
}

// warnIfOpen tells the operator that others may read the connection.
func warnIfOpen(config *pgx.ConnConfig, log *slog.Logger) {
	if !encrypted(config) {
		log.Warn("the connection to the database may be unencrypted: add sslmode=verify-full to its connection string")
	}
}
