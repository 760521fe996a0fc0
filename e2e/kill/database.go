package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os/exec"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/postgres"
)

// databaseVariable names the server on which a run makes a database.
const databaseVariable = "TOLLGATE_TEST_POSTGRES"

// A database is where the instances keep their ledger, made for one run. The
// server outlives them.
type database struct {
	server string // connection string of the server's own database
	name   string
	url    string // connection string
	store  ledger.Store
}

// createDatabase makes a database and opens it as a ledger.
func createDatabase(ctx context.Context, server string) (*database, error) {
	if server == "" {
		return nil, fmt.Errorf("%s is not set: run this with \"e2e/postgres.sh go run ./e2e/kill -ledger postgres\", which starts a server for it", databaseVariable)
	}
	var id [6]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	d := &database{server: server, name: "kill_" + hex.EncodeToString(id[:])}
	var err error
	if d.url, err = inDatabase(server, d.name); err != nil {
		return nil, err
	}
	if err := d.tell(ctx, "CREATE DATABASE "+d.name); err != nil {
		return nil, err
	}
	if d.store, err = postgres.Open(ctx, d.url, postgres.Options{MaxConns: 4}); err != nil {
		return nil, errors.Join(err, d.drop())
	}
	return d, nil
}

// inDatabase returns the connection string of another database of a server.
func inDatabase(server, name string) (string, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return "", fmt.Errorf("%s must be a URL like postgres://user@host/database", databaseVariable)
	}
	u.Path = "/" + name
	return u.String(), nil
}

// tell has the server run a statement outside of the run's database.
func (d *database) tell(ctx context.Context, statement string) error {
	out, err := exec.CommandContext(ctx, "psql", d.server, "-qXc", statement).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", statement, err, out)
	}
	return nil
}

// save writes the ledger to a file, without the answers that it holds.
func (d *database) save(file string) error {
	const all = `SELECT encode(key, 'escape'), version, encode(value, 'escape') FROM x402.entries WHERE encode(key, 'escape') NOT LIKE 'held/%' ORDER BY key`
	out, err := exec.Command("psql", d.url, "-qXAt", "-o", file, "-c", all).CombinedOutput()
	if err != nil {
		return fmt.Errorf("saving the ledger: %w: %s", err, out)
	}
	return nil
}

// drop removes the database, with the connections that killed processes have
// left behind.
func (d *database) drop() error {
	var err error
	if d.store != nil {
		err = d.store.Close()
	}
	return errors.Join(err, d.tell(context.Background(), "DROP DATABASE "+d.name+" WITH (FORCE)"))
}
