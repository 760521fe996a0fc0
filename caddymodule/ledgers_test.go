package caddymodule

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// A commonLedger is in memory and shared with other instances, which the test
// plays. Name is part of its settings.
type commonLedger struct {
	store *ledger.Memory
	name  string
}

func (m *commonLedger) LedgerKey() string { return "common " + m.name }
func (*commonLedger) Shared() bool        { return true }
func (m *commonLedger) OpenLedger(*slog.Logger) (ledger.Store, error) {
	return kept{m.store}, nil
}

// A kept store outlives those who close it, as a database does.
type kept struct{ *ledger.Memory }

func (kept) Close() error { return nil }

// use opens a ledger as an engine does, and lets it say that it is alive.
func use(t *testing.T, m LedgerModule) (*openedLedger, func()) {
	t.Helper()
	book, giveBack, err := openLedger(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := book.ledger.Beat(t.Context()); err != nil {
		t.Fatal(err)
	}
	return book, func() {
		t.Helper()
		if err := giveBack(); err != nil {
			t.Error(err)
		}
	}
}

// wantAlive checks whether a process that starts now takes another one for
// alive.
func wantAlive(t *testing.T, when string, s ledger.Store, owner string, want bool) {
	t.Helper()
	other := ledger.NewShared(s, strings.ReplaceAll(when, " ", "-"), time.Now)
	if err := other.Beat(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := other.Alive(owner); got != want {
		t.Errorf("%s: alive %v", when, got)
	}
}

func TestAReloadDoesNotLeaveTheLedger(t *testing.T) {
	m := &commonLedger{store: ledger.NewMemory(), name: "a"}
	before, endBefore := use(t, m)
	owner := before.ledger.Owner()
	after, endAfter := use(t, m)
	if after != before {
		t.Fatal("the reload opened the ledger again")
	}
	endBefore() // the engine of the configuration that was replaced
	wantAlive(t, "after the reload", m.store, owner, true)
	if err := after.ledger.Beat(t.Context()); err != nil {
		t.Errorf("the configuration that runs: %v", err)
	}

	// Other settings are another ledger, even if its store is the same one.
	changed, endChanged := use(t, &commonLedger{store: m.store, name: "b"})
	endAfter()
	wantAlive(t, "after the change of its settings", m.store, owner, false)
	wantAlive(t, "the one with other settings", m.store, changed.ledger.Owner(), true)
	endChanged()
	wantAlive(t, "after the end", m.store, changed.ledger.Owner(), false)
}

func TestAnOwnerNameIsNeverUsedAgain(t *testing.T) {
	m := &commonLedger{store: ledger.NewMemory(), name: "c"}
	owners := map[string]bool{}
	for range 5 {
		book, end := use(t, m)
		if owners[book.ledger.Owner()] {
			t.Errorf("%s was used before", book.ledger.Owner())
		}
		owners[book.ledger.Owner()] = true
		end()
		if err := book.ledger.Beat(t.Context()); !errors.Is(err, ledger.ErrLeft) {
			t.Errorf("after the end: %v", err)
		}
	}
}

// A database that is away does not hold up the end of the process for long.
func TestALedgerThatCannotBeLeftIsClosed(t *testing.T) {
	m := &commonLedger{store: ledger.NewMemory(), name: "d"}
	_, end := use(t, m)
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	end()
}
