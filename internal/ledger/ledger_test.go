package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
	"github.com/tollgate402/tollgate/payment"
)

// A clock stands still until it is advanced.
type clock struct{ seconds atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Unix(1_790_000_000+c.seconds.Load(), 0).UTC() }
func (c *clock) Advance(d time.Duration) { c.seconds.Add(int64(d / time.Second)) }

// each runs a test on every kind of store.
func each(t *testing.T, test func(t *testing.T, s ledger.Store)) {
	t.Run("memory", func(t *testing.T) { test(t, ledger.NewMemory()) })
	t.Run("badger", func(t *testing.T) {
		s, err := badger.Open(t.TempDir(), badger.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		test(t, s)
	})
}

func key(n byte) payment.Key { return payment.Key{n, 31: 1} }

// reserved is a record that can be claimed.
func reserved(n byte) ledger.Record {
	return ledger.Record{Key: key(n), State: ledger.Reserved, Network: "eip155:84532", Request: []byte("{}")}
}

func mustClaim(t *testing.T, l *ledger.Ledger, r ledger.Record) ledger.Record {
	t.Helper()
	got, err := l.Claim(t.Context(), r, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// to returns a change that goes through some states.
func to(states ...ledger.State) func(*ledger.Record) error {
	return func(r *ledger.Record) error {
		for _, s := range states {
			if err := r.To(s); err != nil {
				return err
			}
		}
		return nil
	}
}

func mustUpdate(t *testing.T, l *ledger.Ledger, k payment.Key, change func(*ledger.Record) error) ledger.Record {
	t.Helper()
	r, err := l.Update(t.Context(), k, change)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantState(t *testing.T, l *ledger.Ledger, k payment.Key, want ledger.State) ledger.Record {
	t.Helper()
	r, err := l.Get(t.Context(), k)
	if err != nil || r.State != want || r.Key != k {
		t.Fatalf("got %q of %s, %v, want %q", r.State, r.Key, err, want)
	}
	return r
}

func open(t *testing.T, l *ledger.Ledger) []payment.Key {
	t.Helper()
	var list []payment.Key
	for r, err := range l.Open(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r.Key)
	}
	return list
}

func TestOneOfManyClaimsWins(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		var won atomic.Int64
		var group sync.WaitGroup
		for i := range 64 {
			group.Go(func() {
				l := ledger.New(s, fmt.Sprint("process ", i), now.Now)
				r := reserved(1)
				r.Binding = payment.Fingerprint{byte(i)}
				got, err := l.Claim(t.Context(), r, time.Minute)
				var held *ledger.HeldError
				switch {
				case err == nil:
					won.Add(1)
					if got.Owner != l.Owner() || got.Binding != r.Binding || got.Claims != 1 || !got.Lease.Equal(now.Now().Add(time.Minute)) {
						t.Errorf("claimed %+v", got)
					}
				case !errors.As(err, &held) || held.Record.State != ledger.Reserved || held.Record.Key != key(1) || held.Record.Owner == l.Owner():
					t.Errorf("got %v", err)
				}
			})
		}
		group.Wait()
		if won.Load() != 1 {
			t.Errorf("%d claims won", won.Load())
		}
	})
}

func TestReleasedPaymentCanBeClaimedAgainForSomethingElse(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		l := ledger.New(s, "one", now.Now)
		first := mustClaim(t, l, reserved(1))
		mustUpdate(t, l, key(1), to(ledger.Released))
		now.Advance(time.Hour)
		r := reserved(1)
		r.State, r.Binding = ledger.Executing, payment.Fingerprint{9}
		again := mustClaim(t, ledger.New(s, "two", now.Now), r)
		if again.State != ledger.Executing || again.Binding != r.Binding || again.Claims != 2 || !again.Since.Equal(first.Since) || again.Owner != "two" || again.Reason != "" {
			t.Errorf("claimed %+v", again)
		}
		if got := open(t, l); !slices.Equal(got, []payment.Key{key(1)}) {
			t.Errorf("open are %v", got)
		}
	})
}

func TestClaimLapsesOnlyBeforeTheIntent(t *testing.T) {
	for state, path := range map[ledger.State][]ledger.State{
		ledger.Reserved:  nil,
		ledger.Executing: {ledger.Executing},
		ledger.Executed:  {ledger.Executing, ledger.Executed},
		ledger.Intent:    {ledger.Intent},
		ledger.Sent:      {ledger.Intent, ledger.Sent},
		ledger.Included:  {ledger.Included},
		ledger.Settled:   {ledger.Settled},
		ledger.Archived:  {ledger.Settled, ledger.Archived},
		ledger.Dead:      {ledger.Intent, ledger.Dead},
	} {
		now := &clock{}
		l := ledger.New(ledger.NewMemory(), "one", now.Now)
		mustClaim(t, l, reserved(1))
		mustUpdate(t, l, key(1), to(path...))
		now.Advance(time.Minute)
		var held *ledger.HeldError
		if _, err := l.Claim(t.Context(), reserved(1), time.Minute); !errors.As(err, &held) {
			t.Errorf("%s: at the end of the lease: %v", state, err)
		}
		now.Advance(time.Second)
		_, err := l.Claim(t.Context(), reserved(1), time.Minute)
		lapses := state == ledger.Reserved || state == ledger.Executing || state == ledger.Executed
		if lapses != (err == nil) || !lapses && !errors.As(err, &held) {
			t.Errorf("%s: after the lease: %v", state, err)
		}
	}
}

func TestUpdatesLoseNothing(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		mustClaim(t, ledger.New(s, "one", now.Now), reserved(1))
		const writers, times = 8, 10
		var group sync.WaitGroup
		for range writers {
			l := ledger.New(s, "one", now.Now)
			group.Go(func() {
				for range times {
					if _, err := l.Update(t.Context(), key(1), func(r *ledger.Record) error {
						r.IntentBlock++
						return nil
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		if r := wantState(t, ledger.New(s, "one", now.Now), key(1), ledger.Reserved); r.IntentBlock != writers*times {
			t.Errorf("%d of %d updates", r.IntentBlock, writers*times)
		}
	})
}

func TestErrorOfAChangeEndsTheUpdate(t *testing.T) {
	l := ledger.New(ledger.NewMemory(), "one", (&clock{}).Now)
	mustClaim(t, l, reserved(1))
	mine := errors.New("mine")
	for name, update := range map[string]func(context.Context, payment.Key, func(*ledger.Record) error) (ledger.Record, error){"Update": l.Update, "UpdateLater": l.UpdateLater} {
		if _, err := update(t.Context(), key(1), func(r *ledger.Record) error {
			r.Reason = "changed"
			return mine
		}); err != mine {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := update(t.Context(), key(2), to(ledger.Intent)); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r := wantState(t, l, key(1), ledger.Reserved); r.Reason != "" {
		t.Error("the change was stored")
	}
}

// A lazy store keeps what is handed to Later until the test lets it go on.
type lazy struct {
	ledger.Store
	mu      sync.Mutex
	waiting [][]ledger.Write // guarded by mu
}

func (s *lazy) Later(writes ...ledger.Write) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = append(s.waiting, writes)
}

func (s *lazy) Commit(ctx context.Context, writes ...ledger.Write) error {
	s.goOn()
	return s.Store.Commit(ctx, writes...)
}

func (s *lazy) goOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, writes := range s.waiting {
		s.Store.Later(writes...)
	}
	s.waiting = nil
}

func (s *lazy) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = nil
}

func TestLaterUpdatesAreSeenAtOnceAndStoredInOrder(t *testing.T) {
	store := &lazy{Store: ledger.NewMemory()}
	now := &clock{}
	l, other := ledger.New(store, "one", now.Now), ledger.New(store, "two", now.Now)
	mustClaim(t, l, reserved(1))
	mustUpdate(t, l, key(1), to(ledger.Intent))
	for _, next := range []ledger.State{ledger.Sent, ledger.Included, ledger.Settled} {
		r, err := l.UpdateLater(t.Context(), key(1), to(next))
		if err != nil || r.State != next {
			t.Fatalf("got %s, %v", r.State, err)
		}
		wantState(t, l, key(1), next)
		wantState(t, other, key(1), ledger.Intent)
	}
	r := mustUpdate(t, l, key(1), to(ledger.Archived)) // its commit comes after all of them
	if r.State != ledger.Archived {
		t.Errorf("it is %s", r.State)
	}
	wantState(t, other, key(1), ledger.Archived)
	wantState(t, l, key(1), ledger.Archived)
}

func TestLaterUpdateThatACrashLosesIsGone(t *testing.T) {
	store := &lazy{Store: ledger.NewMemory()}
	now := &clock{}
	l := ledger.New(store, "one", now.Now)
	mustClaim(t, l, reserved(1))
	mustUpdate(t, l, key(1), to(ledger.Intent))
	if _, err := l.UpdateLater(t.Context(), key(1), to(ledger.Sent)); err != nil {
		t.Fatal(err)
	}
	store.forget()
	wantState(t, ledger.New(store, "two", now.Now), key(1), ledger.Intent)
}

func TestFasterProcessWinsOverALaterUpdate(t *testing.T) {
	store := &lazy{Store: ledger.NewMemory()}
	now := &clock{}
	l, other := ledger.New(store, "one", now.Now), ledger.New(store.Store, "two", now.Now)
	mustClaim(t, l, reserved(1))
	mustUpdate(t, l, key(1), to(ledger.Intent))
	if _, err := l.UpdateLater(t.Context(), key(1), to(ledger.Sent)); err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, other, key(1), to(ledger.Included))
	store.goOn()
	wantState(t, l, key(1), ledger.Included)
	mustUpdate(t, l, key(1), to(ledger.Settled))
	wantState(t, other, key(1), ledger.Settled)
}

func TestConcurrentLaterUpdatesOfOneProcessLoseNothing(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "one", (&clock{}).Now)
		mustClaim(t, l, reserved(1))
		const writers, times = 8, 25
		var group sync.WaitGroup
		for range writers {
			group.Go(func() {
				last := uint64(0)
				for range times {
					r, err := l.UpdateLater(t.Context(), key(1), func(r *ledger.Record) error {
						r.IntentBlock++
						return nil
					})
					if err != nil || r.IntentBlock <= last {
						t.Errorf("%d after %d, %v", r.IntentBlock, last, err)
					}
					last = r.IntentBlock
				}
			})
		}
		group.Wait()
		if r := mustUpdate(t, l, key(1), func(*ledger.Record) error { return nil }); r.IntentBlock != writers*times {
			t.Errorf("%d of %d updates", r.IntentBlock, writers*times)
		}
	})
}

func TestLaterUpdatesTakeNoMemoryForLong(t *testing.T) {
	l := ledger.New(ledger.NewMemory(), "one", (&clock{}).Now)
	for i := range 2000 {
		r := reserved(0)
		r.Key = payment.Key{byte(i), byte(i >> 8)}
		mustClaim(t, l, r)
		if _, err := l.UpdateLater(t.Context(), r.Key, func(r *ledger.Record) error {
			r.Delivery = ledger.Delivered
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if n := ledger.Pending(l); n > 2 {
		t.Errorf("%d updates are still kept in memory", n)
	}
}

func TestIntendStoresEverythingOrNothing(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		l := ledger.New(s, "one", now.Now)
		const address = "0x01"
		first, second := mustClaim(t, l, reserved(1)), mustClaim(t, l, reserved(2))
		lane, known, err := l.Lane(t.Context(), "eip155:84532", address)
		if err != nil || known || lane.Next != 0 {
			t.Fatalf("lane %+v, %v, %v", lane, known, err)
		}
		lane.Next = 41
		if ok, err := l.SetLane(t.Context(), lane); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if ok, err := l.SetLane(t.Context(), lane); ok || err != nil {
			t.Errorf("a lane was set twice: %v, %v", ok, err)
		}
		lane, known, err = l.Lane(t.Context(), "eip155:84532", address)
		if err != nil || !known || lane.Next != 41 {
			t.Fatalf("lane %+v, %v, %v", lane, known, err)
		}
		slot := ledger.Slot{Network: "eip155:84532", Lane: address, Nonce: 41, Attempts: []ledger.Attempt{{Hash: "0x02", Raw: []byte("raw"), GasFeeCap: "7", GasTipCap: "1", Gas: 3}}}
		stored, records, err := l.Intend(t.Context(), lane, slot, first)
		if err != nil || len(records) != 1 || len(first.Slots) != 0 {
			t.Fatalf("got %+v, %v", records, err)
		}
		if r := records[0]; r.State != ledger.Intent || len(r.Slots) != 1 || r.Transaction() != "0x02" {
			t.Fatalf("got %+v", r)
		}
		slots, err := l.Slots(t.Context(), "eip155:84532")
		if err != nil || len(slots) != 1 || !reflect.DeepEqual(slots[0], stored) || slots[0].Items[0] != key(1) || string(slots[0].Latest().Raw) != "raw" {
			t.Fatalf("slots %+v, %v, stored %+v", slots, err, stored)
		}
		wantState(t, l, key(1), ledger.Intent)

		unchanged := func(what string) {
			t.Helper()
			now, known, err := l.Lane(t.Context(), "eip155:84532", address)
			if err != nil || !known || now.Next != 42 {
				t.Errorf("%s: lane %+v, %v", what, now, err)
			}
			if r := wantState(t, l, key(2), ledger.Reserved); len(r.Slots) != 0 {
				t.Errorf("%s: record %+v", what, r)
			}
			if slots, err := l.Slots(t.Context(), "eip155:84532"); err != nil || len(slots) != 1 {
				t.Errorf("%s: slots %+v, %v", what, slots, err)
			}
		}
		if _, _, err := l.Intend(t.Context(), lane, slot, second); !errors.Is(err, ledger.ErrStale) {
			t.Errorf("on an old lane: %v", err)
		}
		unchanged("on an old lane")
		lane, _, err = l.Lane(t.Context(), "eip155:84532", address)
		if err != nil {
			t.Fatal(err)
		}
		slot.Nonce = 42
		stale := second
		second = mustUpdate(t, l, key(2), func(r *ledger.Record) error { r.Reason = "newer"; return nil })
		if _, _, err := l.Intend(t.Context(), lane, slot, stale); !errors.Is(err, ledger.ErrStale) {
			t.Errorf("with an old record: %v", err)
		}
		unchanged("with an old record")
		for what, change := range map[string]func(*ledger.Slot){
			"another nonce":   func(s *ledger.Slot) { s.Nonce = 43 },
			"another lane":    func(s *ledger.Slot) { s.Lane = "0x02" },
			"another network": func(s *ledger.Slot) { s.Network = "eip155:1" },
			"no attempt":      func(s *ledger.Slot) { s.Attempts = nil },
			"a fill":          func(s *ledger.Slot) { s.Attempts = []ledger.Attempt{{Hash: "0x03", Fill: true}} },
		} {
			wrong := slot
			change(&wrong)
			if _, _, err := l.Intend(t.Context(), lane, wrong, second); err == nil || errors.Is(err, ledger.ErrStale) {
				t.Errorf("a slot with %s: %v", what, err)
			}
		}
		if _, _, err := l.Intend(t.Context(), lane, slot); err == nil {
			t.Error("a slot for nobody")
		}
		unchanged("with a wrong attempt")
		if _, _, err := l.Intend(t.Context(), lane, slot, second); err != nil {
			t.Error(err)
		}
	})
}

func TestOpenListsWhatDoesNotRest(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := ledger.New(s, "one", (&clock{}).Now)
		var want []payment.Key
		for i := range 600 { // several pages
			r := reserved(0)
			r.Key = payment.Key{byte(i >> 8), byte(i)}
			mustClaim(t, l, r)
			switch i % 5 {
			case 0:
				mustUpdate(t, l, r.Key, to(ledger.Intent, ledger.Dead))
				continue
			case 1:
				mustUpdate(t, l, r.Key, to(ledger.Settled, ledger.Archived))
				continue
			case 2:
				mustUpdate(t, l, r.Key, to(ledger.Released))
			case 3:
				mustUpdate(t, l, r.Key, to(ledger.Settled))
			}
			want = append(want, r.Key)
		}
		if got := open(t, l); !slices.Equal(got, want) {
			t.Errorf("%d are open, want %d", len(got), len(want))
		}
		n := 0
		for range l.Open(t.Context()) {
			if n++; n == 3 {
				break
			}
		}
		if n != 3 {
			t.Errorf("the list went on after %d", n)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for _, err := range l.Open(ended) {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		}
	})
}

func TestRecoveryReleasesOnlyWhatWasAbandonedBeforeTheIntent(t *testing.T) {
	for _, c := range []struct {
		name      string
		exclusive bool
		after     time.Duration
		owner     string // who recovers
		released  bool
	}{
		{"after a restart", true, 0, "two", true},
		{"by the owner itself", true, 0, "one", false},
		{"while others live", false, time.Minute, "two", false},
		{"once the lease has passed", false, time.Minute + time.Second, "two", true},
		{"its own, once the lease has passed", true, time.Minute + time.Second, "one", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := &clock{}
			store := ledger.NewMemory()
			l := ledger.New(store, "one", now.Now)
			paths := map[ledger.State][]ledger.State{
				ledger.Reserved: nil, ledger.Executing: {ledger.Executing}, ledger.Executed: {ledger.Executing, ledger.Executed},
				ledger.Intent: {ledger.Intent}, ledger.Sent: {ledger.Intent, ledger.Sent}, ledger.Included: {ledger.Included},
				ledger.Settled: {ledger.Settled}, ledger.Released: {ledger.Released},
			}
			keys := map[ledger.State]payment.Key{}
			for s, path := range paths {
				keys[s] = key(byte(len(keys) + 1))
				mustClaim(t, l, reserved(keys[s][0]))
				mustUpdate(t, l, keys[s], to(path...))
			}
			now.Advance(c.after)
			next := ledger.New(store, c.owner, now.Now)
			n, err := next.Recover(t.Context(), c.exclusive)
			if want := map[bool]int{true: 3}[c.released]; err != nil || n != want {
				t.Errorf("released %d, %v, want %d", n, err, want)
			}
			for s, k := range keys {
				want := s
				if c.released && (s == ledger.Reserved || s == ledger.Executing || s == ledger.Executed) {
					want = ledger.Released
				}
				wantState(t, next, k, want)
			}
			if n, err := next.Recover(t.Context(), c.exclusive); n != 0 || err != nil {
				t.Errorf("again %d, %v", n, err)
			}
		})
	}
}

func TestWhatIsHeldBelongsToOneClaim(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		l := ledger.New(s, "one", now.Now)
		r := mustClaim(t, l, reserved(1))
		if _, err := l.Held(t.Context(), &r); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("before: %v", err)
		}
		r, err := l.Hold(t.Context(), key(1), to(ledger.Executing, ledger.Executed), []byte("answer"), now.Now().Add(time.Hour))
		if err != nil || r.State != ledger.Executed {
			t.Fatal(r.State, err)
		}
		if held, err := l.Held(t.Context(), &r); err != nil || string(held) != "answer" {
			t.Errorf("%q, %v", held, err)
		}
		if _, err := l.Hold(t.Context(), key(1), to(ledger.Executing), []byte("other"), now.Now().Add(time.Hour)); err == nil {
			t.Error("held although the change failed")
		}
		if held, err := l.Held(t.Context(), &r); err != nil || string(held) != "answer" {
			t.Errorf("%q, %v", held, err)
		}
		mustUpdate(t, l, key(1), to(ledger.Released))
		again := mustClaim(t, l, reserved(1))
		if held, err := l.Held(t.Context(), &again); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("what was made for the first claim is given for the second: %q, %v", held, err)
		}
	})
}

func TestSweepForgetsWhatHasBeenHeldLongEnough(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		now := &clock{}
		l := ledger.New(s, "one", now.Now)
		hold := func(n byte, d time.Duration) ledger.Record {
			t.Helper()
			mustClaim(t, l, reserved(n))
			if _, err := l.Hold(t.Context(), key(n), to(ledger.Executing, ledger.Executed), []byte{n}, now.Now().Add(d)); err != nil {
				t.Fatal(err)
			}
			return mustUpdate(t, l, key(n), to(ledger.Settled))
		}
		var records []ledger.Record
		for n := range byte(20) {
			records = append(records, hold(n+1, time.Duration(20-n)*time.Minute))
		}
		sweep := func(want int) {
			t.Helper()
			if n, err := l.Sweep(t.Context()); err != nil || n != want {
				t.Errorf("forgot %d, %v, want %d", n, err, want)
			}
		}
		sweep(0)
		now.Advance(10*time.Minute + time.Second)
		sweep(10)
		sweep(0)
		for i, r := range records {
			_, err := l.Held(t.Context(), &r)
			if kept := i < 10; kept != (err == nil) || !kept && !errors.Is(err, ledger.ErrNotFound) {
				t.Errorf("%d: %v", i, err)
			}
		}
		now.Advance(time.Hour)
		sweep(10)
		if left, err := s.Scan(t.Context(), "expire/", "", 10); len(left) != 0 || err != nil {
			t.Errorf("left are %v, %v", left, err)
		}
		if left, err := s.Scan(t.Context(), "held/", "", 10); len(left) != 0 || err != nil {
			t.Errorf("left are %v, %v", left, err)
		}
	})
}

func TestSweepKeepsWhatIsStillBeingSettled(t *testing.T) {
	now := &clock{}
	l := ledger.New(ledger.NewMemory(), "one", now.Now)
	mustClaim(t, l, reserved(1))
	r, err := l.Hold(t.Context(), key(1), to(ledger.Executing, ledger.Executed, ledger.Intent), []byte("answer"), now.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		now.Advance(time.Hour)
		if n, err := l.Sweep(t.Context()); n != 0 || err != nil {
			t.Errorf("forgot %d, %v", n, err)
		}
		if held, err := l.Held(t.Context(), &r); err != nil || string(held) != "answer" {
			t.Errorf("%q, %v", held, err)
		}
	}
	mustUpdate(t, l, key(1), to(ledger.Settled))
	now.Advance(time.Hour)
	if n, err := l.Sweep(t.Context()); n != 1 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
}

func TestSweepOfAnEarlierClaimLeavesTheLaterOne(t *testing.T) {
	now := &clock{}
	l := ledger.New(ledger.NewMemory(), "one", now.Now)
	mustClaim(t, l, reserved(1))
	if _, err := l.Hold(t.Context(), key(1), to(ledger.Executing, ledger.Executed, ledger.Released), []byte("first"), now.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	mustClaim(t, l, reserved(1))
	r, err := l.Hold(t.Context(), key(1), to(ledger.Executing, ledger.Executed, ledger.Settled), []byte("second"), now.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	now.Advance(2 * time.Minute)
	if n, err := l.Sweep(t.Context()); n != 1 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
	if held, err := l.Held(t.Context(), &r); err != nil || string(held) != "second" {
		t.Errorf("%q, %v", held, err)
	}
}

// Many processes claim, settle, release and recover at random. However they
// interleave, no payment has two attempts and no lane gives a nonce twice.
func TestRandomProcessesNeverIntendTwice(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		const processes, payments, steps = 6, 5, 40
		var group sync.WaitGroup
		for p := range processes {
			group.Go(func() {
				random := rand.New(rand.NewPCG(uint64(p), 402))
				// Every process has its own idea of the time, so that leases lapse.
				now := &clock{}
				l := ledger.New(s, fmt.Sprint("process ", p), now.Now)
				for range steps {
					now.Advance(time.Duration(random.IntN(40)) * time.Second)
					r := reserved(byte(random.IntN(payments) + 1))
					claimed, err := l.Claim(t.Context(), r, time.Minute)
					if _, ok := errors.AsType[*ledger.HeldError](err); ok {
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					switch random.IntN(3) {
					case 0:
						if _, err := l.Recover(t.Context(), false); err != nil {
							t.Error(err)
						}
					case 1:
						lane, _, err := l.Lane(t.Context(), "eip155:84532", "0x01")
						if err != nil {
							t.Error(err)
						}
						_, _, err = l.Intend(t.Context(), lane, ledger.Slot{
							Network: lane.Network, Lane: "0x01", Nonce: lane.Next, Attempts: []ledger.Attempt{{Hash: fmt.Sprint(p, lane.Next)}},
						}, claimed)
						if err != nil && !errors.Is(err, ledger.ErrStale) {
							t.Error(err)
						}
					default:
						_, err := l.Update(t.Context(), r.Key, func(now *ledger.Record) error {
							if now.Claims != claimed.Claims || now.State != ledger.Reserved {
								return ledger.ErrStale
							}
							return now.To(ledger.Released)
						})
						if err != nil && !errors.Is(err, ledger.ErrStale) {
							t.Error(err)
						}
					}
				}
			})
		}
		group.Wait()
		l := ledger.New(s, "auditor", (&clock{}).Now)
		nonces := map[uint64]payment.Key{}
		for n := range payments {
			r, err := l.Get(t.Context(), key(byte(n+1)))
			if errors.Is(err, ledger.ErrNotFound) {
				continue
			}
			if err != nil || len(r.Slots) > 1 {
				t.Fatalf("record %+v, %v", r, err)
			}
			for _, a := range r.Slots {
				if other, twice := nonces[a.Nonce]; twice {
					t.Errorf("nonce %d carries %s and %s", a.Nonce, r.Key, other)
				}
				nonces[a.Nonce] = r.Key
			}
		}
		lane, _, err := l.Lane(t.Context(), "eip155:84532", "0x01")
		if err != nil || int(lane.Next) != len(nonces) {
			t.Errorf("the lane is at %d, %d nonces are used, %v", lane.Next, len(nonces), err)
		}
	})
}

// Two processes on one store: what one of them changes later must not undo
// what the other has stored meanwhile.
func TestChangeMadeLaterUndoesNothingOnASharedStore(t *testing.T) {
	store := ledger.NewMemory()
	one, two := ledger.NewShared(store, "one", time.Now), ledger.NewShared(store, "two", time.Now)
	k := payment.Key{7}
	if _, err := one.Claim(t.Context(), ledger.Record{Key: k, State: ledger.Reserved, Request: []byte("{}")}, time.Minute); err != nil {
		t.Fatal(err)
	}
	to := func(l *ledger.Ledger, s ledger.State) {
		t.Helper()
		if _, err := l.UpdateLater(t.Context(), k, func(r *ledger.Record) error { return r.To(s) }); err != nil {
			t.Fatal(err)
		}
		for _, l := range []*ledger.Ledger{one, two} {
			if r, err := l.Get(t.Context(), k); err != nil || r.State != s {
				t.Fatalf("%s sees %s, %v, not %s", l.Owner(), r.State, err, s)
			}
		}
	}
	to(one, ledger.Intent)
	to(one, ledger.Sent)
	to(two, ledger.Included)
	to(one, ledger.Settled)
}

func TestDeliveryIsLeftToWhoHasBegunItUntilItsLeaseHasPassed(t *testing.T) {
	now := time.Unix(1_000, 0)
	clock := func() time.Time { return now }
	shared, alone := ledger.NewShared(nil, "one", clock), ledger.New(nil, "one", clock)
	for _, c := range []struct {
		delivery      ledger.Delivery
		owner         string
		left          time.Duration
		shared, alone bool
	}{
		{ledger.Delivering, "two", time.Second, true, false}, // there is no other process where the store is not shared
		{ledger.Delivering, "two", -time.Second, false, false},
		{ledger.Delivering, "one", time.Second, true, true}, // the configuration before a reload
		{ledger.Delivering, "one", -time.Second, false, false},
		{ledger.Undelivered, "two", time.Second, false, false},
		{ledger.Delivered, "two", time.Second, false, false},
	} {
		r := ledger.Record{State: ledger.Settled, Delivery: c.delivery, Owner: c.owner, Lease: now.Add(c.left)}
		if got := shared.Elsewhere(&r); got != c.shared {
			t.Errorf("%+v: %v", c, got)
		}
		if got := alone.Elsewhere(&r); got != c.alone {
			t.Errorf("%+v: %v where the store is not shared", c, got)
		}
	}
}
