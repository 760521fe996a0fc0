package ledger_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

func TestPartsBelongToOneClaimAndGoWithIt(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		l := ledger.New(s, "one", now.Now)
		const parts = 11
		until := now.Now().Add(15 * time.Minute)
		r := mustClaim(t, l, reserved(1))
		for i := range parts {
			if err := l.HoldPart(t.Context(), &r, i, bytes.Repeat([]byte{byte(i)}, 1000+i), until); err != nil {
				t.Fatal(err)
			}
		}
		r, err := l.Hold(t.Context(), key(1), to(ledger.Executing, ledger.Executed, ledger.Settled), []byte("head"), until)
		if err != nil {
			t.Fatal(err)
		}
		for i := range parts {
			if b, err := l.HeldPart(t.Context(), &r, i); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{byte(i)}, 1000+i)) {
				t.Errorf("part %d has %d bytes, %v", i, len(b), err)
			}
		}
		if _, err := l.HeldPart(t.Context(), &r, parts); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("a part too many: %v", err)
		}
		other := r
		other.Claims++
		if _, err := l.HeldPart(t.Context(), &other, 0); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("a part of another claim: %v", err)
		}
		// Another payment's answer stays when this one goes.
		kept := mustClaim(t, l, reserved(2))
		if err := l.HoldPart(t.Context(), &kept, 0, []byte("kept"), now.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		now.Advance(15*time.Minute + time.Second)
		if n, err := l.Sweep(t.Context()); n != 1 || err != nil {
			t.Errorf("forgot %d, %v, want 1", n, err)
		}
		left, err := s.Scan(t.Context(), "held/", "", 100)
		if err != nil || len(left) != 1 || string(left[0].Value) != "kept" {
			t.Errorf("left are %d entries, %v", len(left), err)
		}
		if left, err := s.Scan(t.Context(), "expire/", "", 100); err != nil || len(left) != 1 {
			t.Errorf("%d are waiting to expire, %v", len(left), err)
		}
	})
}

// A process that dies between the parts and the commit that makes them count
// leaves nothing behind for ever.
func TestPartsThatNeverCountedAreForgotten(t *testing.T) {
	now := &clock{}
	store := ledger.NewMemory()
	l := ledger.New(store, "one", now.Now)
	r := mustClaim(t, l, reserved(1))
	for i := range 3 {
		if err := l.HoldPart(t.Context(), &r, i, []byte("part"), now.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	next := ledger.New(store, "two", now.Now)
	if n, err := next.Recover(t.Context(), true); n != 1 || err != nil {
		t.Fatalf("released %d, %v", n, err)
	}
	if _, err := next.Held(t.Context(), &r); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("parts alone are an answer: %v", err)
	}
	now.Advance(time.Hour)
	if n, err := next.Sweep(t.Context()); n != 1 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
	if left, err := store.Scan(t.Context(), "held/", "", 10); len(left) != 0 || err != nil {
		t.Errorf("left are %d entries, %v", len(left), err)
	}
}

func TestLongPartIsRefused(t *testing.T) {
	l := ledger.New(ledger.NewMemory(), "one", (&clock{}).Now)
	r := mustClaim(t, l, reserved(1))
	if err := l.HoldPart(t.Context(), &r, 0, make([]byte, ledger.MaxPart+1), time.Now()); err == nil {
		t.Error("held")
	}
	if err := l.HoldPart(t.Context(), &r, 0, make([]byte, ledger.MaxPart), time.Now()); err != nil {
		t.Error(err)
	}
}
