package ledger_test

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// intend takes the next nonce of lane 0x01 for payments that it claims.
func intend(t *testing.T, l *ledger.Ledger, keys ...byte) (ledger.Slot, []ledger.Record) {
	t.Helper()
	var records []ledger.Record
	for _, k := range keys {
		records = append(records, mustClaim(t, l, reserved(k)))
	}
	lane := mustLane(t, l)
	slot, records, err := l.Intend(t.Context(), lane, ledger.Slot{
		Network: lane.Network, Lane: lane.Address, Nonce: lane.Next,
		Attempts: []ledger.Attempt{{Hash: fmt.Sprint("payload ", lane.Next), Raw: []byte("payload"), GasFeeCap: "100", GasTipCap: "1", Gas: 21000}},
	}, records...)
	if err != nil {
		t.Fatal(err)
	}
	return slot, records
}

func mustLane(t *testing.T, l *ledger.Ledger) ledger.Lane {
	t.Helper()
	lane, _, err := l.Lane(t.Context(), "eip155:84532", "0x01")
	if err != nil {
		t.Fatal(err)
	}
	return lane
}

func mustSlots(t *testing.T, l *ledger.Ledger) []ledger.Slot {
	t.Helper()
	slots, err := l.Slots(t.Context(), "eip155:84532")
	if err != nil {
		t.Fatal(err)
	}
	return slots
}

func TestASlotCarriesManyPaymentsInOneCommit(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "one", (&clock{}).Now)
		slot, records := intend(t, l, 3, 1, 2)
		if want := []payment.Key{key(3), key(1), key(2)}; !reflect.DeepEqual(slot.Items, want) || len(records) != 3 {
			t.Fatalf("items %v, %d records", slot.Items, len(records))
		}
		for _, k := range []byte{1, 2, 3} {
			r := wantState(t, l, key(k), ledger.Intent)
			if len(r.Slots) != 1 || r.Slots[0] != (ledger.SlotRef{Lane: "0x01", Nonce: 0, Hash: "payload 0"}) {
				t.Errorf("record %+v", r)
			}
		}
		if stored := mustSlots(t, l); len(stored) != 1 || !reflect.DeepEqual(stored[0], slot) {
			t.Errorf("stored %+v, returned %+v", stored, slot)
		}
		again := mustClaim(t, l, reserved(4))
		lane := mustLane(t, l)
		_, _, err := l.Intend(t.Context(), lane, ledger.Slot{Network: lane.Network, Lane: "0x01", Nonce: 1, Attempts: []ledger.Attempt{{Hash: "x"}}}, again, again)
		if err == nil || errors.Is(err, ledger.ErrStale) {
			t.Errorf("one payment twice in a slot: %v", err)
		}
	})
}

func TestAPaymentCanBePutIntoAnotherSlot(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "one", (&clock{}).Now)
		_, records := intend(t, l, 1)
		lane := mustLane(t, l)
		_, records, err := l.Intend(t.Context(), lane, ledger.Slot{Network: lane.Network, Lane: "0x01", Nonce: 1, Attempts: []ledger.Attempt{{Hash: "second"}}}, records...)
		if err != nil || records[0].State != ledger.Intent || len(records[0].Slots) != 2 || records[0].Transaction() != "second" {
			t.Errorf("got %+v, %v", records, err)
		}
	})
}

func TestAReplacementKeepsTheSlotsPayments(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "one", (&clock{}).Now)
		first, _ := intend(t, l, 1, 2)
		dearer := ledger.Attempt{Hash: "dearer", Raw: []byte("dearer"), GasFeeCap: "113", GasTipCap: "2", Gas: 21000}
		slot, err := l.Bump(t.Context(), mustLane(t, l), first, dearer)
		if err != nil || len(slot.Attempts) != 2 || slot.Attempts[0].Raw != nil || !reflect.DeepEqual(slot.Latest(), dearer) || !reflect.DeepEqual(slot.Payload(), dearer) {
			t.Fatalf("got %+v, %v", slot, err)
		}
		if first.Attempts[0].Raw == nil {
			t.Error("it changed what it was given")
		}
		fill := ledger.Attempt{Hash: "fill", Raw: []byte("fill"), GasFeeCap: "130", GasTipCap: "3", Gas: 21000, Fill: true}
		filled, err := l.Bump(t.Context(), mustLane(t, l), slot, fill)
		if err != nil || !reflect.DeepEqual(filled.Latest(), fill) || !reflect.DeepEqual(filled.Payload(), dearer) || !reflect.DeepEqual(filled.Items, first.Items) {
			t.Fatalf("got %+v, %v", filled, err)
		}
		if stored := mustSlots(t, l); len(stored) != 1 || !reflect.DeepEqual(stored[0], filled) || !filled.Newer(&slot) {
			t.Errorf("stored %+v", stored)
		}
		if _, err := l.Bump(t.Context(), mustLane(t, l), slot, dearer); !errors.Is(err, ledger.ErrStale) {
			t.Errorf("on an old slot: %v", err)
		}
		old := mustLane(t, l)
		intend(t, l, 3)
		if _, err := l.Bump(t.Context(), old, filled, dearer); !errors.Is(err, ledger.ErrStale) {
			t.Errorf("on an old lane: %v", err)
		}
		if err := l.Retire(t.Context(), slot); !errors.Is(err, ledger.ErrStale) {
			t.Errorf("an old slot was retired: %v", err)
		}
		if err := l.Retire(t.Context(), filled); err != nil {
			t.Fatal(err)
		}
		if stored := mustSlots(t, l); len(stored) != 1 || stored[0].Nonce != 1 {
			t.Errorf("stored %+v", stored)
		}
		if _, err := l.Bump(t.Context(), mustLane(t, l), filled, dearer); !errors.Is(err, ledger.ErrStale) {
			t.Errorf("a retired slot came back: %v", err)
		}
	})
}

func TestSlotsAreListedByLaneAndNonce(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "one", (&clock{}).Now)
		for i := range byte(80) { // more than a page
			intend(t, l, i)
		}
		slots := mustSlots(t, l)
		if len(slots) != 80 {
			t.Fatalf("%d slots", len(slots))
		}
		for i, slot := range slots {
			if slot.Nonce != uint64(i) {
				t.Fatalf("slot %d has nonce %d", i, slot.Nonce)
			}
		}
		if other, err := l.Slots(t.Context(), "eip155:8453"); err != nil || len(other) != 0 {
			t.Errorf("%d slots of another network, %v", len(other), err)
		}
	})
}

// Two intents for the same payments in another order do not wait for each
// other.
func TestIntentsForManyPaymentsDoNotBlockEachOther(t *testing.T) {
	l := ledger.New(ledger.NewMemory(), "one", time.Now)
	_, records := intend(t, l, 1, 2, 3, 4)
	lane := mustLane(t, l)
	var group sync.WaitGroup
	for i := range 64 {
		group.Go(func() {
			order := append(append([]ledger.Record(nil), records[i%4:]...), records[:i%4]...)
			_, _, err := l.Intend(t.Context(), lane, ledger.Slot{Network: lane.Network, Lane: "0x01", Nonce: 1, Attempts: []ledger.Attempt{{Hash: fmt.Sprint(i)}}}, order...)
			if err != nil && !errors.Is(err, ledger.ErrStale) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if slots := mustSlots(t, l); len(slots) != 2 {
		t.Errorf("%d slots", len(slots))
	}
}
