package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

func mustBeat(t *testing.T, ledgers ...*ledger.Ledger) {
	t.Helper()
	for _, l := range ledgers {
		if err := l.Beat(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAProcessIsDeadWhenItSaysNothingForAWhile(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		skewed := func() time.Time { return now.Now().Add(-40 * time.Hour) } // clocks of other machines prove nothing
		one, two := ledger.New(s, "one", now.Now), ledger.New(s, "two", skewed)
		if one.Alive("two") || !one.Alive("one") {
			t.Error("alive before anything was seen")
		}
		for range 10 {
			mustBeat(t, one, two)
			now.Advance(2 * time.Second)
		}
		mustBeat(t, one)
		if !one.Alive("two") || !two.Alive("one") || one.Deaths() != 0 {
			t.Fatal("not alive although they said so")
		}
		for range 3 {
			now.Advance(2 * time.Second)
			mustBeat(t, one)
		}
		if one.Alive("two") || one.Deaths() != 1 {
			t.Errorf("alive although it says nothing, %d deaths", one.Deaths())
		}
		now.Advance(2 * time.Second)
		mustBeat(t, two, one)
		now.Advance(2 * time.Second)
		mustBeat(t, one)
		if !one.Alive("two") || one.Deaths() != 1 {
			t.Errorf("not alive although it is back, %d deaths", one.Deaths())
		}
	})
}

func TestTheClaimsOfADeadProcessAreReleasedBeforeTheirLeaseEnds(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		one, two := ledger.New(s, "one", now.Now), ledger.New(s, "two", now.Now)
		mustBeat(t, one, two)
		if _, err := one.Claim(t.Context(), reserved(1), time.Hour); err != nil {
			t.Fatal(err)
		}
		if n, err := two.Recover(t.Context(), false); n != 0 || err != nil {
			t.Errorf("%d of a living process were released, %v", n, err)
		}
		for range 5 {
			now.Advance(2 * time.Second)
			mustBeat(t, two)
		}
		if n, err := two.Recover(t.Context(), false); n != 1 || err != nil {
			t.Errorf("%d of a dead process were released, %v", n, err)
		}
		wantState(t, two, key(1), ledger.Released)
		if two.Deaths() != 1 || one.Deaths() != 0 {
			t.Errorf("%d and %d deaths", two.Deaths(), one.Deaths())
		}
	})
}

func mustLeave(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	if err := l.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// said returns how many processes have an entry that says how they are.
func said(t *testing.T, s ledger.Store) int {
	t.Helper()
	entries, err := s.Scan(t.Context(), "alive/", "", 100)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestAProcessThatLeavesIsTakenOverFromAtOnce(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		one, two := ledger.New(s, "one", now.Now), ledger.New(s, "two", now.Now)
		mustBeat(t, one, two)
		for n, l := range map[byte]*ledger.Ledger{1: one, 2: one, 3: two} {
			if _, err := l.Claim(t.Context(), reserved(n), time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		mustLeave(t, one)
		mustLeave(t, one) // again changes nothing

		// A planned restart: the next process sees it when it looks for the
		// first time.
		next := ledger.New(s, "next", now.Now)
		mustBeat(t, next)
		if next.Alive("one") || !next.Alive("two") || next.Deaths() != 1 {
			t.Errorf("after it has left: alive %v, %d deaths", next.Alive("one"), next.Deaths())
		}
		if n, err := next.Recover(t.Context(), false); n != 2 || err != nil {
			t.Errorf("%d were released, %v", n, err)
		}
		wantState(t, next, key(3), ledger.Reserved)

		// One that has been there sees it the next time that it looks.
		now.Advance(2 * time.Second)
		for range 3 {
			mustBeat(t, two, next)
			now.Advance(2 * time.Second)
		}
		if two.Alive("one") || two.Deaths() != 1 || !two.Alive("next") || next.Deaths() != 1 {
			t.Errorf("alive %v, %d and %d deaths", two.Alive("one"), two.Deaths(), next.Deaths())
		}
		for range 10 * 60 / 2 {
			now.Advance(2 * time.Second)
			mustBeat(t, two, next)
		}
		if n := said(t, s); n != 2 || two.Deaths() != 1 || next.Deaths() != 1 {
			t.Errorf("later %d have an entry, %d and %d deaths", n, two.Deaths(), next.Deaths())
		}
	})
}

func TestACrashIsNoticedOnlyByItsSilence(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		crashed, next := ledger.New(s, "crashed", now.Now), ledger.New(s, "next", now.Now)
		mustBeat(t, crashed)
		if _, err := crashed.Claim(t.Context(), reserved(1), time.Hour); err != nil {
			t.Fatal(err)
		}
		for range 3 { // up to 4 seconds later
			mustBeat(t, next)
			if n, err := next.Recover(t.Context(), false); n != 0 || err != nil || !next.Alive("crashed") || next.Deaths() != 0 {
				t.Fatalf("%d were released, %v, %d deaths", n, err, next.Deaths())
			}
			now.Advance(2 * time.Second)
		}
		mustBeat(t, next)
		if n, err := next.Recover(t.Context(), false); n != 1 || err != nil || next.Alive("crashed") || next.Deaths() != 1 {
			t.Errorf("%d were released, %v, %d deaths", n, err, next.Deaths())
		}
	})
}

func TestTheNameOfAProcessThatHasLeftIsNotUsedAgain(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		one := ledger.New(s, "one", now.Now)
		mustBeat(t, one)
		mustLeave(t, one)
		now.Advance(time.Minute)
		for name, l := range map[string]*ledger.Ledger{"itself": one, "another": ledger.New(s, "one", now.Now)} {
			if err := l.Beat(t.Context()); !errors.Is(err, ledger.ErrLeft) {
				t.Errorf("%s: %v", name, err)
			}
		}
		two := ledger.New(s, "two", now.Now)
		mustBeat(t, two)
		if two.Alive("one") {
			t.Error("it is alive again")
		}
	})
}

func TestWhoNeverSaidThatItIsAliveLeavesSilently(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		silent, alone := ledger.New(s, "silent", now.Now), ledger.New(s, "alone", now.Now)
		if _, err := alone.Recover(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		mustBeat(t, alone)
		mustLeave(t, silent)
		mustLeave(t, alone)
		if n := said(t, s); n != 0 {
			t.Errorf("%d entries", n)
		}
		if err := silent.Beat(t.Context()); !errors.Is(err, ledger.ErrLeft) {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// While the database is away nobody can say that it is alive. Whoever is the
// first to reach it again must not take the others' claims from them.
func TestNobodyHasDiedBecauseTheStoreWasAway(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		one, two := ledger.NewShared(s, "one", now.Now), ledger.NewShared(s, "two", now.Now)
		for range 3 {
			mustBeat(t, one, two)
			now.Advance(2 * time.Second)
		}
		if _, err := one.Claim(t.Context(), reserved(1), time.Hour); err != nil {
			t.Fatal(err)
		}
		now.Advance(10 * time.Second)
		mustBeat(t, two)
		if n, err := two.Recover(t.Context(), false); n != 0 || err != nil || !two.Alive("one") || two.Deaths() != 0 {
			t.Errorf("%d claims were released, %v, %d deaths", n, err, two.Deaths())
		}
		for range 3 {
			now.Advance(2 * time.Second)
			mustBeat(t, two)
		}
		if two.Alive("one") || two.Deaths() != 1 {
			t.Errorf("alive although it says nothing since the store is back, %d deaths", two.Deaths())
		}
	})
}

// e2e/kill found payers who waited a minute for the second half of an answer.
func TestTheDeliveriesOfADeadProcessAreTakenOverBeforeTheirLeaseEnds(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		one, two := ledger.NewShared(s, "one", now.Now), ledger.NewShared(s, "two", now.Now)
		mustBeat(t, one, two)
		delivering := ledger.Record{State: ledger.Settled, Delivery: ledger.Delivering, Owner: "one", Lease: now.Now().Add(time.Hour)}
		for range 2 {
			now.Advance(2 * time.Second)
			mustBeat(t, two)
		}
		if !two.Elsewhere(&delivering) {
			t.Error("a delivery is free although its process may be alive")
		}
		for range 2 {
			now.Advance(2 * time.Second)
			mustBeat(t, two)
		}
		if two.Elsewhere(&delivering) {
			t.Error("a delivery is left to a process that is dead")
		}
		if !one.Elsewhere(&delivering) {
			t.Error("the process itself does not know that it delivers")
		}
	})
}

func TestWithoutOtherProcessesNobodyElseIsAlive(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		before, after := ledger.New(s, "before", now.Now), ledger.New(s, "after", now.Now)
		mustBeat(t, before)
		mustBeat(t, after)
		if _, err := after.Recover(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if after.Alive("before") || !after.Alive("after") {
			t.Error("the process before this one is alive")
		}
	})
}

func TestADeposedKeeperCanNotAddToASlot(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		one, two := ledger.New(s, "one", (&clock{}).Now), ledger.New(s, "two", (&clock{}).Now)
		slot, _ := intend(t, one, 1)
		lane := mustLane(t, one)
		lane.Keeper, lane.Epoch = "one", 1
		if ok, err := one.SetLane(t.Context(), lane); !ok || err != nil {
			t.Fatal(ok, err)
		}
		mine := mustLane(t, one)
		theirs := mustLane(t, two)
		theirs.Keeper, theirs.Epoch = "two", 2
		if ok, err := two.SetLane(t.Context(), theirs); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if _, err := one.Bump(t.Context(), mine, slot, ledger.Attempt{Hash: "mine"}); !errors.Is(err, ledger.ErrStale) {
			t.Errorf("the deposed keeper: %v", err)
		}
		if ok, err := one.SetLane(t.Context(), mine); ok || err != nil {
			t.Errorf("the deposed keeper changed the lane: %v, %v", ok, err)
		}
		if _, err := two.Bump(t.Context(), mustLane(t, two), slot, ledger.Attempt{Hash: "theirs"}); err != nil {
			t.Errorf("the keeper: %v", err)
		}
	})
}

func TestGasIsBookedByDay(t *testing.T) {
	l := &ledger.Lane{}
	for _, c := range []struct {
		day  string
		wei  int64
		want string
	}{{"2026-11-21", 5, "5"}, {"2026-11-21", 7, "12"}, {"2026-11-21", -2, "10"}, {"2026-11-21", -20, "0"}, {"2026-11-22", 3, "3"}} {
		l.Book(c.day, big.NewInt(c.wei))
		if got := l.Booked(c.day).String(); got != c.want {
			t.Errorf("on %s after %d: %s, want %s", c.day, c.wei, got, c.want)
		}
	}
	if got := l.Booked("2026-11-21"); got.Sign() != 0 {
		t.Errorf("yesterday %s", got)
	}
}

func TestArchivedPaymentsAreListedByBlock(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "one", (&clock{}).Now)
		const payments = 600 // several pages
		for i := range payments {
			r := reserved(0)
			r.Key = payment.Key{byte(i), byte(i >> 8), 9}
			mustClaim(t, l, r)
			for _, state := range []ledger.State{ledger.Settled, ledger.Archived} {
				if i%3 == 0 && state == ledger.Archived {
					continue
				}
				mustUpdate(t, l, r.Key, func(r *ledger.Record) error {
					r.Included = &ledger.Inclusion{Transaction: fmt.Sprint(i), Block: uint64(i)}
					return r.To(state)
				})
			}
		}
		for _, span := range [][2]uint64{{0, payments}, {100, 400}, {7, 7}, {9, 9}, {payments, payments + 5}} {
			want := []string{}
			for i := span[0]; i <= min(span[1], payments-1); i++ {
				if i%3 != 0 {
					want = append(want, fmt.Sprint(i))
				}
			}
			got := []string{}
			for r, err := range l.Paid(t.Context(), "eip155:84532", span[0], span[1]) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, r.Included.Transaction)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("from %d to %d: %v, want %v", span[0], span[1], got, want)
			}
		}
		for r, err := range l.Paid(t.Context(), "eip155:8453", 0, payments) {
			t.Errorf("%s is listed on another network, %v", r.Key, err)
		}
	})
}

func TestCheckpointsAreNotOverwrittenUnseen(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "one", (&clock{}).Now)
		c := ledger.Checkpoint{Network: "eip155:84532", Token: "0x01", PayTo: "0x02", Block: 7}
		if err := l.SetCheckpoint(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if err := l.SetCheckpoint(t.Context(), c); !errors.Is(err, ledger.ErrStale) {
			t.Errorf("set again: %v", err)
		}
		list, err := l.Checkpoints(t.Context(), "eip155:84532")
		if err != nil || len(list) != 1 || list[0].Block != 7 || list[0].PayTo != "0x02" {
			t.Fatalf("checkpoints %+v, %v", list, err)
		}
		list[0].Block = 9
		if err := l.SetCheckpoint(t.Context(), list[0]); err != nil {
			t.Error(err)
		}
		if err := l.SetCheckpoint(t.Context(), list[0]); !errors.Is(err, ledger.ErrStale) {
			t.Errorf("with an old version: %v", err)
		}
	})
}

// A slowStore lets time pass before a commit, once it is told to.
type slowStore struct {
	ledger.Store
	now  *clock
	take time.Duration
}

func (s *slowStore) Commit(ctx context.Context, writes ...ledger.Write) error {
	s.now.Advance(s.take)
	return s.Store.Commit(ctx, writes...)
}

func TestWhoWaitsLongForTheStoreDoesNotTakeTheOthersForDead(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		slow := &slowStore{Store: s, now: now, take: 8 * time.Second}
		one, two := ledger.New(slow, "one", now.Now), ledger.New(s, "two", now.Now)
		mustBeat(t, two, one) // it sees the other when it has waited
		slow.take = 0
		mustBeat(t, one)
		if !one.Alive("two") || one.Deaths() != 0 {
			t.Error("dead although it was seen only now")
		}
	})
}

func TestWhoeverAsksWhoIsAliveDoesNotWaitForTheStore(t *testing.T) {
	s := &stuckStore{Store: ledger.NewMemory(), stuck: make(chan struct{}), free: make(chan struct{})}
	l := ledger.New(s, "one", (&clock{}).Now)
	ended := make(chan error)
	go func() { ended <- l.Beat(t.Context()) }()
	<-s.stuck
	if l.Alive("two") || !l.Alive("one") || l.Deaths() != 0 {
		t.Error("alive without a sign")
	}
	if err := l.Beat(t.Context()); err != nil { // somebody is at it
		t.Error(err)
	}
	close(s.free)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A stuckStore commits when it is freed.
type stuckStore struct {
	ledger.Store
	stuck, free chan struct{}
}

func (s *stuckStore) Commit(ctx context.Context, writes ...ledger.Write) error {
	close(s.stuck)
	<-s.free
	return s.Store.Commit(ctx, writes...)
}

func TestAProcessThatNobodyHasLookedForYetIsNotGone(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		one, young := ledger.New(s, "one", now.Now), ledger.New(s, "young", now.Now)
		mustBeat(t, one)
		mustBeat(t, young)
		if one.Gone("young") || one.Gone("never") || one.Gone("one") {
			t.Fatal("gone although nobody has looked")
		}
		for range 2 {
			now.Advance(2 * time.Second)
			mustBeat(t, one, young)
		}
		if one.Gone("young") || one.Gone("never") {
			t.Error("gone too early")
		}
		for range 2 {
			now.Advance(2 * time.Second)
			mustBeat(t, one, young)
		}
		if one.Gone("young") || !one.Gone("never") || one.Deaths() != 1 {
			t.Errorf("the one that says so is gone, or the other is not; %d deaths", one.Deaths())
		}
	})
}

// What others may take over this process must let go of before they do.
func TestAProcessThatCouldNotSayThatItIsAliveKnowsBeforeTheOthersDo(t *testing.T) {
	store := ledger.NewMemory()
	mine, theirs := &clock{}, &clock{}
	l, other := ledger.NewShared(store, "one", mine.Now), ledger.NewShared(store, "another", theirs.Now)
	if l.Unheard() {
		t.Error("a process that nobody has heard of has nothing that others would take over")
	}
	for range 2 { // the other one needs a look that is not its first
		for _, p := range []*ledger.Ledger{l, other} {
			if err := p.Beat(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		mine.Advance(time.Second)
		theirs.Advance(time.Second)
	}
	for second := range 10 {
		if err := other.Beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !l.Unheard() && other.Gone("one") {
			t.Fatalf("after %d s the others take it for dead, and it does not know", second)
		}
		mine.Advance(time.Second)
		theirs.Advance(time.Second)
	}
	if !l.Unheard() || !other.Gone("one") {
		t.Errorf("unheard: %v, gone: %v", l.Unheard(), other.Gone("one"))
	}
	if err := l.Beat(t.Context()); err != nil || l.Unheard() {
		t.Errorf("it has said that it is alive, %v, and is unheard: %v", err, l.Unheard())
	}
	if err := l.Leave(t.Context()); err != nil || !l.Unheard() {
		t.Errorf("it has left, %v, and is unheard: %v", err, l.Unheard())
	}
	if alone := ledger.New(store, "alone", mine.Now); alone.Unheard() {
		t.Error("nobody else writes to a store that is not shared")
	}
}
