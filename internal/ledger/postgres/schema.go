package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// migrations are applied in the order of their names, each once. One that has
// been released never changes. They only add, so that instances of the version
// before go on while a new one starts, and they can be repeated, because a
// database that commits schema changes one by one may have made half of one.
//
//go:embed migrations/*.sql
var migrations embed.FS

// A step is one migration.
type step struct{ name, sql string }

func steps(schema string) ([]step, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var list []step
	for _, name := range names {
		doc, err := migrations.ReadFile(name)
		if err != nil {
			return nil, err
		}
		list = append(list, step{name, inSchema(string(doc), schema)})
	}
	return list, nil
}

// inSchema puts the name of the schema into statements. It is written out in
// each, and not left to search_path, which a connection pool in between may
// forget.
func inSchema(sql, schema string) string {
	return strings.ReplaceAll(sql, "{schema}", pgx.Identifier{schema}.Sanitize())
}

// checkSchema returns an error if name is not one that needs no quotes anywhere.
func checkSchema(name string) error {
	plain := len(name) <= 63 && name != "" && (name[0] < '0' || name[0] > '9') && !strings.HasPrefix(name, "pg_")
	for i := range len(name) {
		c := name[i]
		plain = plain && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_')
	}
	if !plain {
		return fmt.Errorf("ledger: the schema %q must be up to 63 lower-case letters, digits and underscores, and begin with a letter", name)
	}
	return nil
}

// migrate brings the tables of schema up to date. Several instances may do so
// at once: the row of schema_version is their lock. Where nothing is to be
// done it only reads, so that the role needs no right to create anything then.
func migrate(ctx context.Context, conn *pgx.Conn, schema string) error {
	list, err := steps(schema)
	if err != nil {
		return err
	}
	version, err := schemaVersion(ctx, conn, schema)
	if err != nil {
		return err
	}
	if version < len(list) {
		if err := found(ctx, conn, schema); err != nil {
			return err
		}
		if err := upgrade(ctx, conn, schema, list); err != nil {
			return err
		}
		if version, err = schemaVersion(ctx, conn, schema); err != nil {
			return err
		}
	}
	if version != len(list) {
		return &promiseError{fmt.Sprintf("the tables in schema %s have version %d, this program knows %d: run the version that made them, or a later one", schema, version, len(list))}
	}
	return nil
}

// schemaVersion returns how many migrations were applied; 0 if there is no
// table that says so.
func schemaVersion(ctx context.Context, conn *pgx.Conn, schema string) (version int, err error) {
	err = conn.QueryRow(ctx, inSchema("SELECT version FROM {schema}.schema_version WHERE one = 1", schema)).Scan(&version)
	var refused *pgconn.PgError
	switch {
	case err == nil || errors.Is(err, pgx.ErrNoRows):
		return version, nil
	case errors.As(err, &refused) && (refused.Code == undefinedTable || refused.Code == invalidSchema):
		return 0, nil
	}
	return 0, err
}

// found makes the schema and the table that is the lock. Two databases at once
// in the middle of CREATE … IF NOT EXISTS may both find nothing, and one of
// them fails: the caller tries again.
func found(ctx context.Context, conn *pgx.Conn, schema string) error {
	var exists bool
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1)", schema).Scan(&exists)
	if err != nil {
		return err
	}
	list := []string{
		"CREATE TABLE IF NOT EXISTS {schema}.schema_version (one INT PRIMARY KEY, version INT NOT NULL)",
		"INSERT INTO {schema}.schema_version (one, version) VALUES (1, 0) ON CONFLICT (one) DO NOTHING",
	}
	if !exists {
		list = slices.Insert(list, 0, "CREATE SCHEMA IF NOT EXISTS {schema}")
	}
	for _, sql := range list {
		if _, err := conn.Exec(ctx, inSchema(sql, schema)); err != nil {
			return err
		}
	}
	return nil
}

// upgrade applies what is missing, under the lock, in one transaction.
func upgrade(ctx context.Context, conn *pgx.Conn, schema string, list []step) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // does nothing after the commit, and the connection is of no use without it
	var version int
	err = tx.QueryRow(ctx, inSchema("SELECT version FROM {schema}.schema_version WHERE one = 1 FOR UPDATE", schema)).Scan(&version)
	if err != nil {
		return err
	}
	if version >= len(list) {
		return nil // another instance was faster
	}
	for _, s := range list[version:] {
		if _, err := tx.Exec(ctx, s.sql); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	_, err = tx.Exec(ctx, inSchema("UPDATE {schema}.schema_version SET version = $1 WHERE one = 1", schema), len(list))
	if err != nil {
		return err
	}
	return tx.Commit(ctx)
}
