package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

const exposedToken = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"

// expose claims a payment and exposes units of it.
func expose(ctx context.Context, l *ledger.Ledger, n byte, payer string, units int64, caps ledger.Caps) error {
	r := reserved(n)
	r.State, r.Payer = ledger.Executing, payer
	claimed, err := l.Claim(ctx, r, time.Minute)
	if err != nil {
		return err
	}
	_, err = l.Expose(ctx, &claimed, ledger.Exposure{Token: exposedToken, Units: fmt.Sprint(units)}, caps, func(r *ledger.Record) error {
		r.Delivery = ledger.Delivering
		return r.To(ledger.Executed)
	}, nil, time.Time{})
	return err
}

func wantExposed(t *testing.T, l *ledger.Ledger, want int64) {
	t.Helper()
	got, err := l.ExposedOn(t.Context(), "eip155:84532", exposedToken)
	if err != nil || got.Int64() != want {
		t.Errorf("%s are exposed, %v, want %d", got, err, want)
	}
}

func caps(total, perPayer int64) ledger.Caps {
	return ledger.Caps{Total: big.NewInt(total), PerPayer: big.NewInt(perPayer)}
}

func TestExposureNeverExceedsItsCaps(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "process", time.Now)
		var group sync.WaitGroup
		var granted atomic.Int64
		for i := range 60 {
			group.Go(func() {
				switch err := expose(t.Context(), l, byte(i), fmt.Sprint("payer ", i%2), 10, caps(170, 100)); {
				case err == nil:
					granted.Add(1)
				case !errors.Is(err, ledger.ErrExposed):
					t.Error(err)
				}
			})
		}
		group.Wait()
		if granted.Load() != 17 {
			t.Errorf("%d were granted", granted.Load())
		}
		wantExposed(t, l, 170)
		// So does the next process find it.
		next := ledger.New(s, "next", time.Now)
		if n, err := next.Recover(t.Context(), true); err != nil || n != 43 {
			t.Errorf("%d released, %v", n, err)
		}
		wantExposed(t, next, 170)
		if err := expose(t.Context(), next, 200, "payer 9", 1, caps(170, 100)); !errors.Is(err, ledger.ErrExposed) {
			t.Errorf("above the cap: %v", err)
		}
		covered := 0
		for i := range 60 {
			r, err := next.Get(t.Context(), key(byte(i)))
			if err != nil {
				t.Fatal(err)
			}
			if r.Exposed == nil || covered == 4 {
				continue
			}
			covered++
			for range 2 { // the second time changes nothing
				if _, err := next.Covered(t.Context(), r.Key, false, func(*ledger.Record) error { return nil }); err != nil {
					t.Error(err)
				}
			}
		}
		wantExposed(t, next, 130)
	})
}

func TestPayerThatCausedALossIsNeverTrustedAgain(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "process", time.Now)
		if err := expose(t.Context(), l, 1, "bad", 10, caps(100, 100)); err != nil {
			t.Fatal(err)
		}
		mustUpdate(t, l, key(1), to(ledger.Released))
		r, err := l.Covered(t.Context(), key(1), true, to(ledger.WrittenOff))
		if err != nil || r.Exposed != nil || r.State != ledger.WrittenOff {
			t.Errorf("%+v, %v", r, err)
		}
		wantExposed(t, l, 0)
		for i, l := range []*ledger.Ledger{l, ledger.New(s, "next", time.Now)} {
			if err := expose(t.Context(), l, byte(10+i), "bad", 1, caps(100, 100)); !errors.Is(err, ledger.ErrExposed) {
				t.Errorf("trusted again: %v", err)
			}
			if err := expose(t.Context(), l, byte(20+i), "good", 1, caps(100, 100)); err != nil {
				t.Errorf("another payer: %v", err)
			}
		}
	})
}

func TestExposureThatIsNotStoredDoesNotCount(t *testing.T) {
	l := ledger.New(ledger.NewMemory(), "process", time.Now)
	claimed := mustClaim(t, l, reserved(1))
	bad := errors.New("bad")
	_, err := l.Expose(t.Context(), &claimed, ledger.Exposure{Token: exposedToken, Units: "10"}, caps(10, 10), func(*ledger.Record) error { return bad }, nil, time.Time{})
	if !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
	wantExposed(t, l, 0)
	for _, c := range []ledger.Caps{{}, caps(9, 100), caps(100, 9)} {
		if err := expose(t.Context(), l, 2, "payer", 10, c); !errors.Is(err, ledger.ErrExposed) && !errors.As(err, new(*ledger.HeldError)) {
			t.Errorf("caps %v: %v", c, err)
		}
	}
	wantExposed(t, l, 0)
}

// What is exposed stays claimed whatever happens to the process, and however
// long that takes.
func TestExposedPaymentsAreNeverFree(t *testing.T) {
	now := &clock{}
	s := ledger.NewMemory()
	l := ledger.New(s, "process", now.Now)
	if err := expose(t.Context(), l, 1, "payer", 10, caps(10, 10)); err != nil {
		t.Fatal(err)
	}
	now.Advance(time.Hour)
	next := ledger.New(s, "next", now.Now)
	if n, err := next.Recover(t.Context(), true); n != 0 || err != nil {
		t.Errorf("%d released, %v", n, err)
	}
	for _, state := range []ledger.State{ledger.Executed, ledger.Released} {
		if state == ledger.Released {
			mustUpdate(t, next, key(1), to(ledger.Released))
		}
		var held *ledger.HeldError
		if _, err := next.Claim(t.Context(), reserved(1), time.Minute); !errors.As(err, &held) {
			t.Errorf("%s: %v", state, err)
		}
	}
}

func TestWhatIsOwedStaysOpen(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "process", time.Now)
		wantOpen := func(when string, want bool) {
			t.Helper()
			if got := slices.Contains(open(t, l), key(1)); got != want {
				t.Errorf("%s: open %v", when, got)
			}
			if survey, err := l.Check(t.Context()); err != nil || len(survey.Findings) > 0 {
				t.Errorf("%s: %+v, %v", when, survey, err)
			}
		}
		r := reserved(1)
		r.Due = time.Now()
		mustClaim(t, l, r)
		mustUpdate(t, l, key(1), to(ledger.Settled, ledger.Archived))
		wantOpen("final and not delivered", true)
		mustUpdate(t, l, key(1), func(r *ledger.Record) error { r.Delivery = ledger.Delivered; return nil })
		wantOpen("delivered", false)
		mustUpdate(t, l, key(1), to(ledger.RefundDue))
		wantOpen("refund due", true)
		mustUpdate(t, l, key(1), to(ledger.Refunded))
		wantOpen("refunded", false)
	})
}

func TestCheckFindsWhatShouldNotBe(t *testing.T) {
	s := ledger.NewMemory()
	l := ledger.New(s, "process", time.Now)
	r := mustClaim(t, l, reserved(1))
	if _, _, err := l.Intend(t.Context(), ledger.Lane{Network: r.Network, Address: "0xLane", Next: 0}, ledger.Slot{Network: r.Network, Lane: "0xLane", Attempts: []ledger.Attempt{{Hash: "0x1", GasFeeCap: "1", GasTipCap: "1", Gas: 1}}}, r); err != nil {
		t.Fatal(err)
	}
	mustClaim(t, l, reserved(2))
	if _, err := l.Hold(t.Context(), key(2), to(ledger.Executing, ledger.Executed), []byte("answer"), time.Now()); err != nil {
		t.Fatal(err)
	}
	survey, err := l.Check(t.Context())
	if err != nil || len(survey.Findings) != 0 || survey.Payments != 2 || survey.Open != 2 || survey.Held != 1 || survey.Lanes != 1 || survey.ByState[ledger.Intent] != 1 {
		t.Fatalf("%+v, %v", survey, err)
	}
	for _, c := range []struct {
		name  string
		write ledger.Write
	}{
		{"a record in pieces", ledger.Write{Key: ledger.Key("pay/" + key(3).String()), Value: []byte("{")}},
		{"a state that does not exist", ledger.Write{Key: ledger.Key("pay/" + key(4).String()), Value: []byte(`{"state":"GONE"}`)}},
		{"no payment", ledger.Write{Key: "pay/x", Value: []byte("{}")}},
		{"open, not stored", ledger.Write{Key: ledger.Key("open/" + key(5).String()), Value: []byte{}}},
		{"open, at rest", ledger.Write{Key: ledger.Key("pay/" + key(5).String()), Value: []byte(`{"state":"DEAD"}`)}},
		{"not listed", ledger.Write{Key: ledger.Key("open/" + key(2).String())}},
		{"kept for ever", ledger.Write{Key: ledger.Key("held/" + key(2).String() + "/9"), Value: []byte{}}},
		{"a nonce that is free", ledger.Write{Key: "lane/eip155:84532/0xLane", Value: []byte(`{"network":"eip155:84532","address":"0xLane","next":0}`)}},
		{"a lane in pieces", ledger.Write{Key: "lane/eip155:84532/0xLane", Value: []byte(`{`)}},
	} {
		before := survey.Findings
		c.write.If = ledger.AnyVersion
		if err := s.Commit(t.Context(), c.write); err != nil {
			t.Fatal(err)
		}
		if survey, err = l.Check(t.Context()); err != nil || slices.Equal(survey.Findings, before) {
			t.Errorf("%s: %+v, %v", c.name, survey, err)
		}
	}
	n := 0
	for _, err := range l.Payments(t.Context(), nil) {
		if err == nil {
			n++
		}
	}
	if n != 4 { // 1, 2, 4 and 5
		t.Errorf("%d payments can be read", n)
	}
}
