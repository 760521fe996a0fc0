package ledgertest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// ledgersOn returns one ledger for each store.
func ledgersOn(stores []ledger.Store) []*ledger.Ledger {
	list := make([]*ledger.Ledger, 0, len(stores))
	for i, s := range stores {
		list = append(list, ledger.New(s, fmt.Sprint("named ", i), time.Now))
	}
	return list
}

// aNameIsOfOnePayment: of several payments that are claimed by one name at the
// same time, one gets it, and the others are not claimed.
func aNameIsOfOnePayment(t *testing.T, stores []ledger.Store) {
	ledgers := ledgersOn(stores)
	key := func(round, n byte) payment.Key { return payment.Key{0: round, 1: n, 31: 7} }
	for round := range byte(5) {
		name := fmt.Sprint("round/", round)
		claim := func(n byte) error {
			_, err := ledgers[int(n)%len(ledgers)].Claim(ctx, ledger.Record{Key: key(round, n), State: ledger.Reserved, Network: "eip155:1", Name: name}, time.Minute)
			return err
		}
		winners := make(chan byte, 9)
		var group sync.WaitGroup
		for n := range byte(9) {
			group.Go(func() {
				err := claim(n)
				var named *ledger.NamedError
				switch {
				case err == nil:
					winners <- n
				case !errors.As(err, &named):
					t.Errorf("claiming was answered with %v", err)
				}
			})
		}
		group.Wait()
		if len(winners) != 1 {
			t.Fatalf("%d payments have one name", len(winners))
		}
		first := <-winners
		for n := range byte(9) {
			if _, err := ledgers[0].Get(ctx, key(round, n)); (err == nil) != (n == first) {
				t.Errorf("payment %d of %d: %v", n, first, err)
			}
		}

		// What was released gives its name away, and does not get it back.
		if _, err := ledgers[0].Update(ctx, key(round, first), func(r *ledger.Record) error { return r.To(ledger.Released) }); err != nil {
			t.Fatal(err)
		}
		second := (first + 1) % 9
		if err := claim(second); err != nil {
			t.Fatalf("the name of a payment that was released: %v", err)
		}
		var named *ledger.NamedError
		if err := claim(first); !errors.As(err, &named) || named.Record.Key != key(round, second) {
			t.Fatalf("the first payment is claimed again: %v", err)
		}
		if err := ledgers[0].Named(ctx, name, key(round, second)); err != nil {
			t.Errorf("its own name: %v", err)
		}
	}
}

// signInsAreUsedOnce: of several who come with one nonce at the same time, one
// gets in.
func signInsAreUsedOnce(t *testing.T, stores []ledger.Store) {
	ledgers := ledgersOn(stores)
	resource, soon := payment.Fingerprint{1}, time.Now().Add(time.Minute)
	if err := ledgers[0].SignIn(ctx, "0xPayer", resource, "nonce", soon); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("who has not paid: %v", err)
	}
	if err := ledgers[0].Admit(ctx, "0xPayer", resource, soon); err != nil {
		t.Fatal(err)
	}
	if err := ledgers[0].SignIn(ctx, "0xPayer", payment.Fingerprint{2}, "nonce", soon); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("another resource: %v", err)
	}
	for round := range 5 {
		var in atomic.Int64
		var group sync.WaitGroup
		for n := range 9 {
			group.Go(func() {
				err := ledgers[n%len(ledgers)].SignIn(ctx, "0xPayer", resource, fmt.Sprint("nonce", round), soon)
				if err == nil {
					in.Add(1)
				} else if !errors.Is(err, ledger.ErrNonceUsed) {
					t.Errorf("a sign-in was answered with %v", err)
				}
			})
		}
		group.Wait()
		if in.Load() != 1 {
			t.Errorf("%d got in with one nonce", in.Load())
		}
	}
}
