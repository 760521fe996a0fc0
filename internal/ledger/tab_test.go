package ledger_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

func shared(s ledger.Store, owners ...string) []*ledger.Ledger {
	var list []*ledger.Ledger
	for _, owner := range owners {
		list = append(list, ledger.NewShared(s, owner, time.Now))
	}
	return list
}

func mustExpose(t *testing.T, l *ledger.Ledger, n byte, payer string, units int64) {
	t.Helper()
	if err := expose(t.Context(), l, n, payer, units, caps(1000, 1000)); err != nil {
		t.Fatal(err)
	}
}

func wantSound(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	if survey, err := l.Check(t.Context()); err != nil || len(survey.Findings) > 0 {
		t.Errorf("%+v, %v", survey, err)
	}
}

func TestProcessesTogetherNeverExceedTheCaps(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		processes := shared(s, "one", "two", "three")
		var group sync.WaitGroup
		var granted atomic.Int64
		for i := range 60 {
			group.Go(func() {
				switch err := expose(t.Context(), processes[i%3], byte(i), fmt.Sprint("payer", i%2), 10, caps(170, 100)); {
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
		next := shared(s, "next")[0]
		for _, l := range append(processes, next) {
			wantExposed(t, l, 170)
		}
		wantSound(t, next)
		for i := range 60 { // whoever was exposed by, the next one covers it
			for range 1 + max(0, 3-i) { // again changes nothing
				if _, err := next.Covered(t.Context(), key(byte(i)), false, func(*ledger.Record) error { return nil }); err != nil {
					t.Error(err)
				}
			}
		}
		wantExposed(t, processes[0], 0)
		wantSound(t, next)
		if err := expose(t.Context(), processes[1], 200, "payer1", 100, caps(170, 100)); err != nil {
			t.Errorf("after everything was covered: %v", err)
		}
	})
}

func TestALossCountsForEveryProcessAndEveryToken(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		processes := shared(s, "one", "two")
		mustExpose(t, processes[0], 1, "bad", 10)
		mustExpose(t, processes[1], 2, "bad", 10)
		mustUpdate(t, processes[0], key(1), to(ledger.Released))
		if r, err := processes[0].Covered(t.Context(), key(1), true, to(ledger.WrittenOff)); err != nil || r.State != ledger.WrittenOff || r.Exposed != nil {
			t.Fatalf("%+v, %v", r, err)
		}
		wantExposed(t, processes[1], 10)
		for i, l := range append(processes, shared(s, "next")...) {
			if err := expose(t.Context(), l, byte(10+i), "bad", 1, caps(100, 100)); !errors.Is(err, ledger.ErrExposed) {
				t.Errorf("trusted again: %v", err)
			}
			claimed := mustClaim(t, l, withPayer(reserved(byte(20+i)), "bad"))
			if _, err := l.Expose(t.Context(), &claimed, ledger.Exposure{Token: "another", Units: "1"}, caps(100, 100), to(ledger.Executing), nil, time.Time{}); !errors.Is(err, ledger.ErrExposed) {
				t.Errorf("trusted again with another token: %v", err)
			}
			mustExpose(t, l, byte(30+i), "good", 1)
		}
		wantSound(t, processes[0])
	})
}

func withPayer(r ledger.Record, payer string) ledger.Record {
	r.Payer = payer
	return r
}

// What was handed over before sums were kept counts, however many processes
// begin to keep them at once.
func TestWhatWasExposedBeforeSumsWereKeptCounts(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		old := ledger.New(s, "old", time.Now)
		for n := range byte(3) {
			mustExpose(t, old, n, fmt.Sprint("payer", n), 10)
		}
		const losses = 1200 // more than one commit makes
		for i := range losses {
			if err := s.Commit(t.Context(), ledger.Write{Key: ledger.Key(fmt.Sprint("strike/eip155:84532/bad", i)), Value: []byte{}}); err != nil {
				t.Fatal(err)
			}
		}
		leftover := ledger.Write{Key: "tab/eip155:84532/nobody", Value: []byte(`{"exposed":{"x":"1"}}`)} // by one that has crashed while it began
		if err := s.Commit(t.Context(), leftover); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for i := range byte(4) {
			group.Go(func() {
				l := shared(s, fmt.Sprint("new ", i))[0]
				if err := expose(t.Context(), l, 10+i, fmt.Sprint("bad", losses-1-int(i)), 1, caps(1000, 1000)); !errors.Is(err, ledger.ErrExposed) {
					t.Errorf("trusted after a loss: %v", err)
				}
				if err := expose(t.Context(), l, 20+i, "payer0", 1, caps(1000, 12)); err != nil && !errors.Is(err, ledger.ErrExposed) {
					t.Error(err)
				}
			})
		}
		group.Wait()
		l := shared(s, "last")[0]
		wantExposed(t, l, 32)
		wantSound(t, l)
	})
}

// A slow store needs a while for a commit, and counts those that write sums.
type slow struct {
	ledger.Store
	needs time.Duration
	away  time.Time    // until when it waits for a database that is away
	sums  atomic.Int64 // how many commits have written sums
	begun atomic.Int64 // how many commits were to begin with them
}

func (s *slow) Commit(ctx context.Context, writes ...ledger.Write) error {
	for _, w := range writes {
		if strings.HasPrefix(string(w.Key), "tab/") {
			s.sums.Add(1)
			break
		}
		if w.Key == "tabs" {
			s.begun.Add(1)
		}
	}
	back := time.NewTimer(time.Until(s.away))
	defer back.Stop()
	select {
	case <-back.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	time.Sleep(s.needs)
	return s.Store.Commit(ctx, writes...)
}

func TestRequestsOfOneProcessShareCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{Store: ledger.NewMemory(), needs: 5 * time.Millisecond}
		l := ledger.NewShared(s, "one", time.Now)
		begin := time.Now()
		var group sync.WaitGroup
		for i := range 200 {
			group.Go(func() {
				if err := expose(t.Context(), l, byte(i), fmt.Sprint("payer", i%50), 1, caps(200, 4)); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if n := s.begun.Load(); n != 1 {
			t.Errorf("%d requests have added everything up", n)
		}
		if n := s.sums.Load(); n > 3 {
			t.Errorf("%d commits were made for requests that came at the same time", n)
		}
		if d := time.Since(begin); d > 30*time.Millisecond {
			t.Errorf("they took %v", d)
		}
		wantExposed(t, l, 200)
		wantSound(t, l)
	})
}

// Answers that do not fit one commit together go one after another.
func TestLargeAnswersAreExposedOneAfterAnother(t *testing.T) {
	each(t, func(t *testing.T, s ledger.Store) {
		l := shared(s, "one")[0]
		answer := bytes.Repeat([]byte("x"), 900<<10)
		var group sync.WaitGroup
		for i := range byte(7) {
			group.Go(func() {
				r := withPayer(reserved(i), "payer")
				r.State = ledger.Executing
				claimed, err := l.Claim(t.Context(), r, time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				stored, err := l.Expose(t.Context(), &claimed, ledger.Exposure{Token: exposedToken, Units: "1"}, caps(7, 7), to(ledger.Executed), answer, time.Now())
				if err != nil {
					t.Error(err)
					return
				}
				if held, err := l.Held(t.Context(), &stored); err != nil || !bytes.Equal(held, answer) {
					t.Errorf("%d bytes are held, %v", len(held), err)
				}
			})
		}
		group.Wait()
		wantExposed(t, l, 7)
		wantSound(t, l)
	})
}

// Whoever stops waiting holds nobody up, and exposes nothing.
func TestRequestsThatGiveUpExposeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{Store: ledger.NewMemory()}
		l := ledger.NewShared(s, "one", time.Now)
		cancelled := make(chan error, 1)
		for n := range byte(5) {
			r := withPayer(reserved(n), "payer")
			r.State = ledger.Executing
			mustClaim(t, l, r)
		}
		wantExposed(t, l, 0)
		s.away = time.Now().Add(time.Second)
		began := time.Now()
		give := func(n byte, patience time.Duration) (time.Duration, error) {
			ctx := t.Context()
			if patience > 0 {
				limited, cancel := context.WithTimeout(ctx, patience)
				defer cancel()
				ctx = limited
			}
			_, err := l.Expose(ctx, &ledger.Record{Key: key(n)}, ledger.Exposure{Token: exposedToken, Units: "1"}, caps(9, 9), to(ledger.Executed), nil, time.Time{})
			return time.Since(began), err
		}
		var group sync.WaitGroup
		group.Go(func() { // the first one works
			if took, err := give(0, 400*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) || took != 400*time.Millisecond {
				t.Errorf("the first: %v after %v", err, took)
			}
		})
		synctest.Wait()
		group.Go(func() { // never taken up
			if took, err := give(1, 100*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) || took != 100*time.Millisecond {
				t.Errorf("the second: %v after %v", err, took)
			}
		})
		group.Go(func() { // in one commit with the next one
			if took, err := give(2, 600*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) || took != 600*time.Millisecond {
				t.Errorf("the third: %v after %v", err, took)
			}
		})
		group.Go(func() { // in the same, and cancelled while somebody works on it
			limited, cancel := context.WithCancel(t.Context())
			time.AfterFunc(700*time.Millisecond, cancel)
			_, err := l.Expose(limited, &ledger.Record{Key: key(4)}, ledger.Exposure{Token: exposedToken, Units: "1"}, caps(9, 9), to(ledger.Executed), nil, time.Time{})
			if exposed, _ := l.Get(t.Context(), key(4)); (err == nil) != (exposed.Exposed != nil) {
				t.Errorf("the fourth: %v, and %+v", err, exposed)
			}
			cancelled <- err
		})
		group.Go(func() {
			if took, err := give(3, 0); err != nil || took != time.Second {
				t.Errorf("the last: %v after %v", err, took)
			}
		})
		group.Wait()
		want := int64(1)
		if <-cancelled == nil {
			want++
		}
		wantExposed(t, l, want)
		wantSound(t, l)
	})
}

func TestAStoreThatFailsExposesNothing(t *testing.T) {
	s := ledger.NewMemory()
	l := shared(s, "one")[0]
	mustExpose(t, l, 1, "payer", 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Covered(t.Context(), key(1), false, func(*ledger.Record) error { return nil }); !errors.Is(err, ledger.ErrClosed) {
		t.Errorf("covered: %v", err)
	}
	if _, err := shared(s, "next")[0].ExposedOn(t.Context(), "eip155:84532", exposedToken); !errors.Is(err, ledger.ErrClosed) {
		t.Errorf("asked: %v", err)
	}
}

func TestCheckFindsSumsThatAreWrong(t *testing.T) {
	for _, c := range []struct {
		name, want string
		write      ledger.Write
	}{
		{"too much in all", "the payments say map", ledger.Write{Key: "tab/eip155:84532", Value: []byte(`{"exposed":{"` + exposedToken + `":"11"}}`)}},
		{"too little for a payer", "the payments say map", ledger.Write{Key: "tab/eip155:84532/payer", Value: []byte(`{"exposed":{"` + exposedToken + `":"9"}}`)}},
		{"somebody else", "the payments say map", ledger.Write{Key: "tab/eip155:84532/other", Value: []byte(`{"exposed":{"` + exposedToken + `":"1"}}`)}},
		{"another network", "the payments say map", ledger.Write{Key: "tab/eip155:1", Value: []byte(`{"exposed":{"x":"1"}}`)}},
		{"no sum", "there is no sum", ledger.Write{Key: "tab/eip155:84532/payer"}},
		{"in pieces", "cannot be read", ledger.Write{Key: "tab/eip155:84532/payer", Value: []byte(`{`)}},
		{"the network's in pieces", "cannot be read", ledger.Write{Key: "tab/eip155:84532", Value: []byte(`{`)}},
		{"a loss that is forgotten", "trusted again", ledger.Write{Key: "strike/eip155:84532/payer", Value: []byte{}}},
		{"a loss of nobody", "trusted again", ledger.Write{Key: "strike/eip155:84532/nobody", Value: []byte{}}},
	} {
		s := ledger.NewMemory()
		l := shared(s, "one")[0]
		mustExpose(t, l, 1, "payer", 10)
		wantSound(t, l)
		c.write.If = ledger.AnyVersion
		if err := s.Commit(t.Context(), c.write); err != nil {
			t.Fatal(err)
		}
		survey, err := l.Check(t.Context())
		if err != nil || len(survey.Findings) != 1 || !strings.Contains(survey.Findings[0].Problem, c.want) {
			t.Errorf("%s: %+v, %v", c.name, survey, err)
		}
	}
}

// What the check sees in a ledger at work is no fault.
func TestCheckLeavesSumsThatChangeAlone(t *testing.T) {
	s := ledger.NewMemory()
	l := shared(s, "one")[0]
	mustExpose(t, l, 0, "payer", 10)
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for n := byte(1); n != 0; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := expose(t.Context(), l, n, "payer", 1, caps(1000, 1000)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 20 {
		wantSound(t, l)
	}
	close(stop)
	group.Wait()
	wantSound(t, l)
}
