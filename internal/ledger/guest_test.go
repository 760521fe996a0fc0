package ledger_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

func TestGrantsEndAndGuestsAreForgotten(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		c := &clock{}
		l := ledger.New(s, "p", c.Now)
		a, b := payment.Fingerprint{1}, payment.Fingerprint{2}
		admit := func(resource payment.Fingerprint, d time.Duration) {
			t.Helper()
			if err := l.Admit(t.Context(), "0xA", resource, c.Now().Add(d)); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		signIn := func(resource payment.Fingerprint) error {
			n++
			return l.SignIn(t.Context(), "0xA", resource, fmt.Sprint("nonce", n), c.Now().Add(5*time.Minute))
		}
		sweep := func(want, left int) {
			t.Helper()
			if got, err := l.SweepGuests(t.Context()); got != want || err != nil {
				t.Errorf("%d were forgotten, %v, want %d", got, err, want)
			}
			if guests, err := s.Scan(t.Context(), "guest/", "", 10); len(guests) != left || err != nil {
				t.Errorf("%d guests are left, %v, want %d", len(guests), err, left)
			}
		}
		admit(a, time.Hour)
		admit(a, time.Minute) // does not shorten it
		admit(b, 3*time.Hour)
		admit(payment.Fingerprint{3}, -time.Minute) // has ended already
		c.Advance(59 * time.Minute)
		if err := signIn(a); err != nil {
			t.Error(err)
		}
		c.Advance(2 * time.Minute)
		if err := signIn(a); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("after the end: %v", err)
		}
		if err := signIn(b); err != nil {
			t.Error(err)
		}
		c.Advance(2 * time.Hour)
		sweep(0, 1) // b's end is not an hour ago
		c.Advance(time.Hour)
		sweep(1, 0)
		if rest, err := s.Scan(t.Context(), "depart/", "", 10); len(rest) != 0 || err != nil {
			t.Errorf("%v, %v", rest, err)
		}
	})
}

func TestWhatOnePayerLeavesBehindIsBounded(t *testing.T) {
	c := &clock{}
	l := ledger.New(ledger.NewMemory(), "p", c.Now)
	resource := func(n int) payment.Fingerprint { return payment.Fingerprint{byte(n), byte(n >> 8), 1} }
	for n := range 1001 {
		if err := l.Admit(t.Context(), "0xA", resource(n), c.Now().Add(time.Hour+time.Duration(n)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	soon := c.Now().Add(5 * time.Minute)
	if err := l.SignIn(t.Context(), "0xA", resource(0), "x", soon); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("the first of too many: %v", err)
	}
	for n := range 1000 {
		if err := l.SignIn(t.Context(), "0xA", resource(1000), fmt.Sprint(n), soon); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.SignIn(t.Context(), "0xA", resource(1000), "one more", soon); !errors.Is(err, ledger.ErrTooOften) {
		t.Errorf("the 1001st sign-in: %v", err)
	}
	c.Advance(6 * time.Minute)
	if err := l.SignIn(t.Context(), "0xA", resource(1000), "one more", c.Now().Add(5*time.Minute)); err != nil {
		t.Errorf("later: %v", err)
	}
}

// What is lapsed may still be paid for by a request that was slow.
func TestANameStaysWithAPaymentWhoseClaimHasLapsed(t *testing.T) {
	c := &clock{}
	l := ledger.New(ledger.NewMemory(), "p", c.Now)
	r := reserved(1)
	r.Name = "n"
	mustClaim(t, l, r)
	c.Advance(time.Hour)
	other := reserved(2)
	other.Name = "n"
	var named *ledger.NamedError
	if _, err := l.Claim(t.Context(), other, time.Minute); !errors.As(err, &named) {
		t.Errorf("got %v", err)
	}
	mustUpdate(t, l, key(1), to(ledger.Released, ledger.Dead))
	mustClaim(t, l, other)
}
