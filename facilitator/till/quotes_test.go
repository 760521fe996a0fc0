package till

import (
	"encoding/binary"
	"testing"
	"time"
)

// However many offers are made, the newest are remembered and the memory is
// bounded.
func TestTheNewestOffersAreRemembered(t *testing.T) {
	now := time.Unix(1_790_000_000, 0)
	q := &Quotes{Now: func() time.Time { return now }}
	name := func(i int) (n [32]byte) {
		binary.BigEndian.PutUint64(n[:], uint64(i))
		return n
	}
	const all = maxQuotes + 1000
	for i := range all {
		q.remember(name(i), now.Add(quoteFor))
		q.remember(name(all), now.Add(quoteFor)) // the same again takes no room
	}
	if len(q.offers) != maxQuotes || q.order.Len() != maxQuotes {
		t.Errorf("%d and %d are remembered", len(q.offers), q.order.Len())
	}
	for i, want := range map[int]bool{0: false, 1000: false, 1001: true, all - 1: true, all: true, all + 1: false} {
		if got := q.remembers(name(i)); got != want {
			t.Errorf("offer %d is remembered: %v", i, got)
		}
	}
	now = now.Add(quoteFor)
	if !q.remembers(name(all)) {
		t.Error("an offer is forgotten too early")
	}
	q.remember(name(all), now.Add(quoteFor))
	now = now.Add(time.Nanosecond)
	if !q.remembers(name(all)) || q.remembers(name(all-1)) || len(q.offers) != 1 {
		t.Errorf("%d are remembered when the time of all but one has passed", len(q.offers))
	}
}
