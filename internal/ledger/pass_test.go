package ledger_test

import (
	"errors"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
	"github.com/tollgate402/tollgate/payment"
)

func wantPass(t *testing.T, l *ledger.Ledger, k payment.Key, want ledger.Pass) {
	t.Helper()
	if got, err := l.Pass(t.Context(), k); err != nil || got != want {
		t.Errorf("the pass is %+v (%v), want %+v", got, err, want)
	}
}

func TestAPassIsUsedAsOftenAsItWasBoughtFor(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "one", time.Now)
		k, other := payment.Key{1}, payment.Key{2}
		wantPass(t, l, k, ledger.Pass{})
		for i := range uint32(3) {
			if n, err := l.UsePass(t.Context(), k, 3); n != i+1 || err != nil {
				t.Errorf("call %d: %d, %v", i+1, n, err)
			}
		}
		if _, err := l.UsePass(t.Context(), k, 3); !errors.Is(err, ledger.ErrPassUsedUp) {
			t.Errorf("the fourth of three: %v", err)
		}
		if n, err := l.UsePass(t.Context(), other, 1); n != 1 || err != nil {
			t.Errorf("another pass: %d, %v", n, err)
		}
		for range 5 {
			if err := l.ReturnPass(t.Context(), other); err != nil {
				t.Error(err)
			}
		}
		wantPass(t, l, other, ledger.Pass{})
		if err := l.ReturnPass(t.Context(), k); err != nil {
			t.Error(err)
		}
		if n, err := l.UsePass(t.Context(), k, 3); n != 3 || err != nil {
			t.Errorf("what was given back: %d, %v", n, err)
		}
	})
}

func TestAPassThatWasRevokedStaysSo(t *testing.T) {
	dir := t.TempDir()
	k := payment.Key{1}
	for range 2 {
		s, err := badger.Open(dir, badger.Options{})
		if err != nil {
			t.Fatal(err)
		}
		l := ledger.New(s, "one", time.Now)
		if err := l.RevokePass(t.Context(), k); err != nil {
			t.Error(err)
		}
		if _, err := l.UsePass(t.Context(), k, 10); !errors.Is(err, ledger.ErrPassRevoked) {
			t.Error(err)
		}
		if err := l.ReturnPass(t.Context(), k); err != nil {
			t.Error(err)
		}
		wantPass(t, l, k, ledger.Pass{Revoked: true})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
