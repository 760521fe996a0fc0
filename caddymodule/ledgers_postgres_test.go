package caddymodule

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// postgresSchema puts the connection string of e2e/postgres.sh into TEST_DATABASE
// and returns the name of a schema for the test alone. Without a server the test is
// skipped, and fails where nothing may be skipped.
func postgresSchema(t *testing.T) string {
	t.Helper()
	url := os.Getenv("TOLLGATE_TEST_POSTGRES")
	switch {
	case url == "" && os.Getenv("CI") == "true":
		t.Fatal("TOLLGATE_TEST_POSTGRES is not set: run the tests with e2e/postgres.sh")
	case url == "":
		t.Skip("NOT TESTED: TOLLGATE_TEST_POSTGRES is not set; e2e/postgres.sh runs these tests beside a server of their own")
	}
	t.Setenv("TEST_DATABASE", url)
	var name [8]byte
	if _, err := rand.Read(name[:]); err != nil {
		t.Fatal(err)
	}
	schema := "caddy_" + hex.EncodeToString(name[:])
	t.Cleanup(func() {
		if out, err := exec.Command("psql", url, "-qc", "DROP SCHEMA IF EXISTS "+schema+" CASCADE").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return schema
}

func TestPostgresRemembersPaymentsAcrossReloadsAndRestarts(t *testing.T) {
	schema := postgresSchema(t)
	s := newSite(t)
	config := func(maxConns string) string {
		return paidSite("ledger postgres {env.TEST_DATABASE} {\n\t\t\tschema "+schema+"\n\t\t\tmax_conns "+maxConns+"\n\t\t}\n\t\tfacilitator fake", `x402 $0.01
	respond "goods"`)
	}
	s.load(config("2"))
	name, value := s.payFor("/a")
	for i, step := range []func(){
		func() {},
		func() { s.load(config("2")) },
		func() { s.load(config("4")) },
		func() {
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			s.load(config("4"))
		},
	} {
		step()
		if got := s.get("/a", name, value); got.StatusCode != http.StatusOK || got.body != "goods" {
			t.Errorf("step %d: %s %s", i, got.Status, got.body)
		}
		if got := s.get("/b", name, value); got.StatusCode != http.StatusConflict {
			t.Errorf("step %d: used for something else: %s", i, got.Status)
		}
	}
}

// Another instance that starts must leave alone what this one has claimed.
func TestPostgresInstancesLeaveEachOthersClaims(t *testing.T) {
	schema := postgresSchema(t)
	var opened []*openedLedger
	for range 2 {
		m := &PostgresLedger{URL: "{env.TEST_DATABASE}", Schema: schema}
		if err := m.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		l, err := newOpenedLedger(m)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := l.Destruct(); err != nil {
				t.Error(err)
			}
		}()
		opened = append(opened, l)
		claim := ledger.Record{Key: payment.Key{1}, State: ledger.Reserved, Network: "eip155:84532", Request: []byte("{}")}
		r, err := l.ledger.Claim(t.Context(), claim, time.Hour)
		var held *ledger.HeldError
		if len(opened) == 1 && err != nil {
			t.Fatal(err)
		}
		if len(opened) == 2 && (!errors.As(err, &held) || held.Record.Owner != opened[0].ledger.Owner()) {
			t.Fatalf("the second instance claimed %+v, %v", r, err)
		}
	}
}

func TestPostgresTellsNobodyItsConnectionString(t *testing.T) {
	const url = "postgres://user:topsecret@127.0.0.1:1/pay"
	t.Setenv("TEST_DATABASE", url)
	secretless := func(what, text string) {
		t.Helper()
		for _, part := range []string{"topsecret", "user", "127.0.0.1"} {
			if strings.Contains(text, part) {
				t.Errorf("%s contains %q: %s", what, part, text)
			}
		}
	}
	literal := &PostgresLedger{URL: url}
	err := literal.Provision(caddy.Context{})
	if err == nil {
		t.Fatal("a connection string in the configuration was accepted")
	}
	secretless("the error of a literal", err.Error())

	m := &PostgresLedger{URL: "{env.TEST_DATABASE}"}
	if err := m.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	doc, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	secretless("the JSON", string(doc))
	secretless("the key", m.LedgerKey())

	t.Setenv("TEST_DATABASE", url+"2")
	other := &PostgresLedger{URL: "{env.TEST_DATABASE}"}
	if err := other.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	if m.LedgerKey() == other.LedgerKey() {
		t.Error("two databases have the same key")
	}
}
