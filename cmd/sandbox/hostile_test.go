package main

import (
	"context"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
)

func TestMoodFollowsFromTheSeed(t *testing.T) {
	a, b := newMood(5), newMood(5)
	pending, late := 0, 0
	for range 10_000 {
		d, p := a.next()
		if d2, p2 := b.next(); d != d2 || p != p2 {
			t.Fatal("one seed, two moods")
		}
		if p {
			pending++
		}
		if d > 0 {
			late++
		}
		if d < 0 || d > slowest {
			t.Fatalf("a delay of %s", d)
		}
	}
	if pending < 400 || pending > 600 || late < 2800 || late > 3200 {
		t.Errorf("of 10000 settlements %d are pending and %d late", pending, late)
	}
}

// seedOfPending is one whose first settlement is said to be pending.
// e2e/sandbox.sh and e2e/interop.sh rely on it.
const seedOfPending = 27

func TestOnlyThePaywallIsToldThatASettlementIsPending(t *testing.T) {
	for _, c := range []struct {
		name    string
		binding payment.Fingerprint
		fails   error
		pending bool
	}{
		{"paywall", payment.Fingerprint{1}, nil, true},
		{"another seller", payment.Fingerprint{}, nil, false},
		{"refused", payment.Fingerprint{1}, payment.Invalid(payment.EVMNonceUsed, "used"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inner := &settler{fails: c.fails}
			f := (&hostile{Seed: seedOfPending}).Wrap(inner)
			s, err := f.Settle(t.Context(), &payment.Payment{Binding: c.binding}, nil, payment.Amount{})
			var unavailable *payment.UnavailableError
			switch {
			case inner.calls != 1:
				t.Errorf("settled %d times", inner.calls)
			case c.pending && (!errors.As(err, &unavailable) || !unavailable.Pending || unavailable.Transaction != "0x1"):
				t.Errorf("got %v, %v", s, err)
			case !c.pending && !errors.Is(err, c.fails):
				t.Errorf("got %v, %v", s, err)
			}
		})
	}
}

type settler struct {
	payment.Facilitator
	fails error
	calls int
}

func (s *settler) Settle(context.Context, *payment.Payment, *payment.Offer, payment.Amount) (*payment.Settlement, error) {
	s.calls++
	if s.fails != nil {
		return nil, s.fails
	}
	return &payment.Settlement{Transaction: "0x1"}, nil
}

func TestBuyerAsksAgainWithTheSamePayment(t *testing.T) {
	var got []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Payment-Signature"))
		if len(got) < 3 {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	answer, again, err := persist(t.Context(), server.URL, http.Header{"Payment-Signature": {"p"}})
	if err != nil || answer.code != http.StatusOK || again != 2 || len(got) != 3 || got[0] != "p" || got[2] != "p" {
		t.Errorf("%v, %d, %v; the server saw %q", answer, again, err, got)
	}
}

func TestReplacedBlocksLoseNothing(t *testing.T) {
	c, err := devchain.Start(devchain.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	heads := make(chan *types.Header, 10_000)
	subscription, err := c.Client().SubscribeNewHead(t.Context(), heads)
	if err != nil {
		t.Fatal(err)
	}
	defer subscription.Unsubscribe()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- reorg(ctx, c, 1) }()
	somebody := common.HexToAddress("0x5000000000000000000000000000000000000005")
	const mints = 150 // of each fiftieth the block is replaced
	for range mints {
		if err := c.Mint(somebody, big.NewInt(1)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(30 * time.Second); c.USDCBalance(somebody).Int64() != mints; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("of %d transfers %s are left", mints, c.USDCBalance(somebody))
		}
	}
	replaced := 0
	canonical := map[uint64]common.Hash{}
	for len(heads) > 0 {
		h := <-heads
		n := h.Number.Uint64()
		if parent, seen := canonical[n-1]; seen && parent != h.ParentHash {
			replaced++
		}
		canonical[n] = h.Hash()
	}
	if replaced == 0 {
		t.Error("no block was replaced")
	}
}
