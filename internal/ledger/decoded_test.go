package ledger_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A record that is remembered must be the one that a process reads which has
// never seen it before.
func TestWhatIsRememberedIsWhatIsStored(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "one", time.Now)
		compare := func() {
			t.Helper()
			got, err := l.Get(t.Context(), key(1))
			if err != nil {
				t.Fatal(err)
			}
			want, err := ledger.New(s, "another", time.Now).Get(t.Context(), key(1))
			if err != nil {
				t.Fatal(err)
			}
			if g, w := document(t, &got), document(t, &want); g != w || got.Newer(&want) || want.Newer(&got) {
				t.Fatalf("remembered\n%s\nstored\n%s", g, w)
			}
			for _, same := range [][2]time.Time{{got.Since, want.Since}, {got.Updated, want.Updated}, {got.Lease, want.Lease}, {got.Due, want.Due}} {
				if !same[0].Equal(same[1]) {
					t.Fatalf("remembered %s, stored %s", same[0], same[1])
				}
			}
		}
		r := reserved(1)
		r.Request = json.RawMessage(`{ "a": "<b>", "c": [1,  2] }`)
		r.Due = time.Now().Add(time.Hour).In(time.FixedZone("", 5400))
		mustClaim(t, l, r)
		compare()
		held, err := l.Hold(t.Context(), key(1), to(ledger.Executing, ledger.Executed), []byte("goods"), time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		compare()
		lane := ledger.Lane{Network: "eip155:84532", Address: "0x01"}
		slot := ledger.Slot{Network: lane.Network, Lane: lane.Address, Attempts: []ledger.Attempt{{Hash: "0x02"}}}
		if _, _, err := l.Intend(t.Context(), lane, slot, held); err != nil {
			t.Fatal(err)
		}
		compare()
		if _, err := l.UpdateLater(t.Context(), key(1), func(r *ledger.Record) error {
			r.Included = &ledger.Inclusion{Transaction: "0x02", Block: 7}
			return r.To(ledger.Settled)
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(t.Context()); err != nil { // waits for what was handed over for later
			t.Fatal(err)
		}
		compare()
		other := ledger.New(s, "two", time.Now)
		mustUpdate(t, other, key(1), func(r *ledger.Record) error {
			r.Delivery = ledger.Delivered
			return nil
		})
		compare()
		if got := wantState(t, l, key(1), ledger.Settled); got.Delivery != ledger.Delivered {
			t.Error("what another process has stored is not seen")
		}
	})
}

func document(t *testing.T, r *ledger.Record) string {
	t.Helper()
	doc, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

// Changing a record that was read changes nobody else's.
func TestRecordsThatWereReadAreApart(t *testing.T) {
	l := ledger.New(ledger.NewMemory(), "one", time.Now)
	mustClaim(t, l, reserved(1))
	refused := func(r *ledger.Record) error {
		r.Payer, r.Slots = "0x01", append(r.Slots, ledger.SlotRef{Nonce: 1})
		return ledger.ErrStale
	}
	if _, err := l.Update(t.Context(), key(1), refused); err == nil {
		t.Fatal("it was not refused")
	}
	if r := wantState(t, l, key(1), ledger.Reserved); r.Payer != "" || len(r.Slots) != 0 {
		t.Errorf("read %+v after a change that was refused", r)
	}
}

// So many payments that the older ones are forgotten are read right all the
// same.
func TestForgottenRecordsAreReadAgain(t *testing.T) {
	l := ledger.New(ledger.NewMemory(), "one", time.Now)
	const n = 5000
	for i := range n {
		r := reserved(0)
		r.Key = payment.Key{byte(i), byte(i >> 8), 31: 1}
		r.IntentBlock = uint64(i)
		mustClaim(t, l, r)
	}
	for i := range n {
		k := payment.Key{byte(i), byte(i >> 8), 31: 1}
		if r := wantState(t, l, k, ledger.Reserved); r.IntentBlock != uint64(i) {
			t.Fatalf("payment %d is read as %d", i, r.IntentBlock)
		}
	}
	if kept := ledger.Decoded(l); kept == 0 || kept > 2048 {
		t.Errorf("%d records are remembered", kept)
	}
}
