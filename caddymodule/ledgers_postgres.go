package caddymodule

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/postgres"
)

// PostgresLedger keeps the ledger in PostgreSQL, which several instances may
// share. Who may read its tables learns who paid for what; who may write them
// can make the server serve for free; who loses them while payments are under
// way may serve them twice.
type PostgresLedger struct {
	// The connection string, as a placeholder: {env.DATABASE_URL} or
	// {file./run/secrets/database_url}. One that is written here is refused.
	URL string `json:"url"`

	// The schema that holds the tables. Ledgers in different schemas are
	// different ledgers. Default: x402.
	Schema string `json:"schema,omitempty"`

	// The most connections that this process opens. Default: 8, least: 2.
	MaxConns int `json:"max_conns,omitempty"`

	url string // what the placeholder stands for
}

// CaddyModule returns the Caddy module information.
func (*PostgresLedger) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "x402.ledgers.postgres", New: func() caddy.Module { return new(PostgresLedger) }}
}

// What errors call the connection string, and the name that they propose for it.
const connectionString, databaseExample = "a database's connection string", "DATABASE_URL"

// Provision finds out the connection string and connects to nothing.
func (l *PostgresLedger) Provision(caddy.Context) error {
	if l.URL == "" {
		return errors.New("ledger postgres: the connection string is missing: write \"ledger postgres {env.DATABASE_URL}\"")
	}
	var err error
	if l.url, err = secret(connectionString, l.URL, databaseExample); err != nil {
		return fmt.Errorf("ledger postgres: %w", err)
	}
	if l.url == "" {
		// To pgx an empty string is what PGHOST and its like say.
		return fmt.Errorf("ledger postgres: %s is empty", l.URL)
	}
	if l.Schema == "" {
		l.Schema = postgres.DefaultSchema
	}
	if l.MaxConns == 0 {
		l.MaxConns = postgres.DefaultMaxConns
	}
	return l.options(nil).Check()
}

func (l *PostgresLedger) options(logger *slog.Logger) postgres.Options {
	return postgres.Options{Logger: logger, Schema: l.Schema, MaxConns: l.MaxConns}
}

// LedgerKey implements LedgerModule. It tells nothing about the connection
// string.
func (l *PostgresLedger) LedgerKey() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %d", l.url, l.Schema, l.MaxConns))
	return "postgres " + hex.EncodeToString(sum[:])
}

// OpenLedger implements LedgerModule.
func (l *PostgresLedger) OpenLedger(logger *slog.Logger) (ledger.Store, error) {
	return postgres.Open(context.Background(), l.url, l.options(logger))
}

// Shared implements LedgerModule.
func (*PostgresLedger) Shared() bool { return true }

// UnmarshalCaddyfile reads
//
//	postgres {env.DATABASE_URL} {
//		schema    <name>
//		max_conns <n>
//	}
func (l *PostgresLedger) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.NextArg() {
		return d.Err("ledger postgres needs a connection string: write \"ledger postgres {env.DATABASE_URL}\"")
	}
	l.URL = d.Val()
	if err := checkSecret(connectionString, l.URL, databaseExample); err != nil {
		return d.WrapErr(err)
	}
	if d.NextArg() {
		return d.Err("after ledger postgres comes one placeholder, such as {env.DATABASE_URL}")
	}
	for d.NextBlock(0) {
		switch d.Val() {
		case "schema":
			if err := text(d, &l.Schema); err != nil {
				return err
			}
		case "max_conns":
			if l.MaxConns != 0 {
				return d.Err("max_conns is given twice")
			}
			var n uint64
			if err := number(d, &n, 16); err != nil {
				return err
			}
			l.MaxConns = int(n)
		default:
			return unknown(d, "ledger postgres", "schema", "max_conns")
		}
	}
	return nil
}

var (
	_ LedgerModule          = (*PostgresLedger)(nil)
	_ caddy.Provisioner     = (*PostgresLedger)(nil)
	_ caddyfile.Unmarshaler = (*PostgresLedger)(nil)
)
