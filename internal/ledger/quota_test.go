package ledger_test

import (
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func book(t *testing.T, l *ledger.Ledger, tenant string, at time.Time, most uint64) bool {
	t.Helper()
	ok, err := l.Book(t.Context(), tenant, at, most)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func wantBooked(t *testing.T, l *ledger.Ledger, tenant string, at time.Time, want uint64) {
	t.Helper()
	if got, err := l.Booked(t.Context(), tenant, at); err != nil || got != want {
		t.Errorf("%s has had %d on %s (%v), want %d", tenant, got, at.Format(time.DateOnly), err, want)
	}
}

func TestEveryTenantAndDayIsCountedForItself(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "one", time.Now)
		tomorrow := noon.AddDate(0, 0, 1)
		if !book(t, l, "a", noon, 2) || !book(t, l, "a", noon.In(time.FixedZone("west", -12*3600)), 2) || book(t, l, "a", noon, 2) {
			t.Error("a cannot have exactly two")
		}
		if !book(t, l, "b", noon, 1) || !book(t, l, "a", tomorrow, 2) {
			t.Error("another tenant, or another day, counts")
		}
		// A clock that is behind finds its own day.
		if book(t, l, "a", noon, 2) {
			t.Error("midnight was passed twice")
		}
		if err := l.Unbook(t.Context(), "a", noon); err != nil {
			t.Fatal(err)
		}
		wantBooked(t, l, "a", noon, 1)
		wantBooked(t, l, "a", tomorrow, 1)
		wantBooked(t, l, "b", noon, 1)
		wantBooked(t, l, "nobody", noon, 0)
		for range 3 {
			if err := l.Unbook(t.Context(), "b", noon); err != nil {
				t.Fatal(err)
			}
		}
		wantBooked(t, l, "b", noon, 0)

		// What is long over is forgotten.
		later := noon.AddDate(0, 1, 0)
		if !book(t, l, "a", later, 2) {
			t.Error("an earlier month counts")
		}
		wantBooked(t, l, "a", noon, 0)
	})
}

func TestWhatATenantHasHadSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 {
		s, err := badger.Open(dir, badger.Options{})
		if err != nil {
			t.Fatal(err)
		}
		l := ledger.New(s, "one", time.Now)
		if ok := book(t, l, "shop", noon, 1); ok != (i == 0) {
			t.Errorf("opening %d: booked: %v", i, ok)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
