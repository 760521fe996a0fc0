// Package ledgertest holds what every ledger.Store promises as one suite of
// tests.
package ledgertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// Run runs the suite. open returns a new, empty store and sees to it that it is
// closed and removed after the test; closing a store twice must do no harm.
// reopen closes a store and opens it again on what it has kept; it is nil for stores
// that keep nothing.
func Run(t *testing.T, open func(t *testing.T) ledger.Store, reopen func(t *testing.T, s ledger.Store) ledger.Store) {
	for name, test := range map[string]func(*testing.T, ledger.Store){
		"VersionsGrowByOne":                  versionsGrowByOne,
		"ValuesAreCopied":                    valuesAreCopied,
		"EmptyValuesExist":                   emptyValuesExist,
		"MissingKeysAreNotFound":             missingKeysAreNotFound,
		"FirstConflictIsNamed":               firstConflictIsNamed,
		"RefusedCommitsLeaveNoTrace":         refusedCommitsLeaveNoTrace,
		"AnyVersionAlwaysHolds":              anyVersionAlwaysHolds,
		"DeletedKeysStartAgain":              deletedKeysStartAgain,
		"DeletingNothingOnlyChecks":          deletingNothingOnlyChecks,
		"InvalidCommitsAreRefused":           invalidCommitsAreRefused,
		"LargestCommitsAreAccepted":          largestCommitsAreAccepted,
		"ScanIsOrderedAndBounded":            scanIsOrderedAndBounded,
		"ScanPagesMeetWithoutOverlap":        scanPagesMeetWithoutOverlap,
		"InvalidScansAreRefused":             invalidScansAreRefused,
		"LaterPrecedesLaterCommits":          laterPrecedesLaterCommits,
		"LaterCopiesItsValues":               laterCopiesItsValues,
		"LaterIsLostOnConflict":              laterIsLostOnConflict,
		"OneOfManyCreatorsWins":              oneOfManyCreatorsWins,
		"ConcurrentCountersLoseNothing":      concurrentCountersLoseNothing,
		"CommitsAreSeenWholeOrNotAtAll":      commitsAreSeenWholeOrNotAtAll,
		"CancelledContextsAreRefused":        cancelledContextsAreRefused,
		"CancellationNeverHidesTheOutcome":   cancellationNeverHidesTheOutcome,
		"ClosedStoresRefuseEverything":       closedStoresRefuseEverything,
		"CloseAnswersEveryCommitUnderWay":    closeAnswersEveryCommitUnderWay,
		"AnySequenceBehavesLikeTheReference": func(t *testing.T, s ledger.Store) { anySequenceBehavesLikeTheReference(t, s, reopen) },
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
	if reopen != nil {
		t.Run("EverythingSurvivesReopening", func(t *testing.T) { everythingSurvivesReopening(t, open(t), reopen) })
	}
}

var ctx = context.Background()

func create(key ledger.Key, value string) ledger.Write {
	return ledger.Write{Key: key, If: ledger.Absent, Value: []byte(value)}
}

func replace(key ledger.Key, version uint64, value string) ledger.Write {
	return ledger.Write{Key: key, If: version, Value: []byte(value)}
}

func set(key ledger.Key, value string) ledger.Write {
	return ledger.Write{Key: key, If: ledger.AnyVersion, Value: []byte(value)}
}

func remove(key ledger.Key, version uint64) ledger.Write {
	return ledger.Write{Key: key, If: version}
}

func mustCommit(t *testing.T, s ledger.Store, writes ...ledger.Write) {
	t.Helper()
	if err := s.Commit(ctx, writes...); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

func wantEntry(t *testing.T, s ledger.Store, key ledger.Key, version uint64, value string) {
	t.Helper()
	e, err := s.Get(ctx, key)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	if e.Key != key || e.Version != version || string(e.Value) != value {
		t.Fatalf("%s is %q at version %d under %q, want %q at %d", key, e.Value, e.Version, e.Key, value, version)
	}
}

func wantAbsent(t *testing.T, s ledger.Store, key ledger.Key) {
	t.Helper()
	if e, err := s.Get(ctx, key); !errors.Is(err, ledger.ErrNotFound) {
		t.Fatalf("get %s returned %+v and %v, want not found", key, e, err)
	}
}

// wantConflict checks that err names key and carries its entry; version 0 means absent.
func wantConflict(t *testing.T, err error, key ledger.Key, version uint64, value string) {
	t.Helper()
	var conflict *ledger.ConflictError
	if !errors.As(err, &conflict) {
		t.Fatalf("commit returned %v, want a conflict", err)
	}
	have := conflict.Have
	if conflict.Key != key || have.Key != key || have.Version != version || string(have.Value) != value {
		t.Fatalf("the conflict is about %s with %+v, want %s with %q at version %d", conflict.Key, have, key, value, version)
	}
}

func versionsGrowByOne(t *testing.T, s ledger.Store) {
	mustCommit(t, s, create("a", "one"))
	wantEntry(t, s, "a", 1, "one")
	mustCommit(t, s, replace("a", 1, "two"))
	wantEntry(t, s, "a", 2, "two")
	mustCommit(t, s, replace("a", 2, "two"), create("b", "other"))
	wantEntry(t, s, "a", 3, "two")
	wantEntry(t, s, "b", 1, "other")
}

func valuesAreCopied(t *testing.T, s ledger.Store) {
	value := []byte("value")
	mustCommit(t, s, ledger.Write{Key: "a", Value: value})
	value[0] = 'X'
	wantEntry(t, s, "a", 1, "value")

	e, err := s.Get(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	e.Value[0] = 'X'
	wantEntry(t, s, "a", 1, "value")

	page, err := s.Scan(ctx, "", "", 10)
	if err != nil || len(page) != 1 {
		t.Fatalf("scan returned %v and %v", page, err)
	}
	page[0].Value[0] = 'X'
	wantEntry(t, s, "a", 1, "value")

	var conflict *ledger.ConflictError
	if err := s.Commit(ctx, create("a", "")); !errors.As(err, &conflict) {
		t.Fatalf("commit returned %v, want a conflict", err)
	}
	conflict.Have.Value[0] = 'X'
	wantEntry(t, s, "a", 1, "value")
}

func emptyValuesExist(t *testing.T, s ledger.Store) {
	mustCommit(t, s, create("a", ""))
	wantEntry(t, s, "a", 1, "")
	e, err := s.Get(ctx, "a")
	if err != nil || e.Value == nil {
		t.Fatalf("the empty value came back as %#v with %v", e.Value, err)
	}
}

func missingKeysAreNotFound(t *testing.T, s ledger.Store) {
	wantAbsent(t, s, "a")
	mustCommit(t, s, create("a/b", "x"))
	wantAbsent(t, s, "a")
	wantAbsent(t, s, "a/")
	wantAbsent(t, s, "a/b/c")
	if _, err := s.Get(ctx, "with space"); err == nil || errors.Is(err, ledger.ErrNotFound) {
		t.Fatalf("an invalid key was answered with %v", err)
	}
}

func firstConflictIsNamed(t *testing.T, s ledger.Store) {
	mustCommit(t, s, create("a", "1"), create("b", "2"))
	wantConflict(t, s.Commit(ctx, create("c", ""), create("b", ""), create("a", "")), "b", 1, "2")
	wantConflict(t, s.Commit(ctx, replace("a", 2, "")), "a", 1, "1")
	wantConflict(t, s.Commit(ctx, replace("missing", 1, "")), "missing", 0, "")
	wantConflict(t, s.Commit(ctx, remove("a", 7)), "a", 1, "1")
	wantConflict(t, s.Commit(ctx, remove("missing", 1)), "missing", 0, "")
}

func refusedCommitsLeaveNoTrace(t *testing.T, s ledger.Store) {
	mustCommit(t, s, create("a", "1"), create("gone", ""))
	err := s.Commit(ctx, create("new", "x"), set("a", "changed"), remove("gone", 1), replace("a2", 9, ""))
	wantConflict(t, err, "a2", 0, "")
	wantEntry(t, s, "a", 1, "1")
	wantEntry(t, s, "gone", 1, "")
	wantAbsent(t, s, "new")
}

func anyVersionAlwaysHolds(t *testing.T, s ledger.Store) {
	mustCommit(t, s, set("a", "1"))
	mustCommit(t, s, set("a", "2"))
	wantEntry(t, s, "a", 2, "2")
	mustCommit(t, s, remove("a", ledger.AnyVersion))
	wantAbsent(t, s, "a")
	mustCommit(t, s, remove("a", ledger.AnyVersion))
	wantAbsent(t, s, "a")
}

func deletedKeysStartAgain(t *testing.T, s ledger.Store) {
	mustCommit(t, s, create("a", "1"))
	mustCommit(t, s, replace("a", 1, "2"))
	mustCommit(t, s, remove("a", 2))
	wantAbsent(t, s, "a")
	wantConflict(t, s.Commit(ctx, replace("a", 2, "")), "a", 0, "")
	mustCommit(t, s, create("a", "3"))
	wantEntry(t, s, "a", 1, "3")
}

func deletingNothingOnlyChecks(t *testing.T, s ledger.Store) {
	mustCommit(t, s, remove("a", ledger.Absent), create("b", "x"))
	wantAbsent(t, s, "a")
	wantEntry(t, s, "b", 1, "x")
	wantConflict(t, s.Commit(ctx, remove("b", ledger.Absent), create("c", "")), "b", 1, "x")
	wantAbsent(t, s, "c")
}

func invalidCommitsAreRefused(t *testing.T, s ledger.Store) {
	tooMany := make([]ledger.Write, ledger.MaxWrites+1)
	for i := range tooMany {
		tooMany[i] = create(ledger.Key(fmt.Sprintf("many/%d", i)), "")
	}
	half := strings.Repeat("x", ledger.MaxCommit/2-1)
	for name, writes := range map[string][]ledger.Write{
		"empty key":        {create("", "")},
		"space in key":     {create("a b", "")},
		"newline in key":   {create("a\n", "")},
		"non-ASCII key":    {create("é", "")},
		"key too long":     {create(ledger.Key(strings.Repeat("k", ledger.MaxKey+1)), "")},
		"value too long":   {create("a", strings.Repeat("v", ledger.MaxValue+1))},
		"same key twice":   {create("a", "1"), create("b", ""), set("a", "2")},
		"too many writes":  tooMany,
		"too many bytes":   {create("a", half[:ledger.MaxValue]), create("b", half[:ledger.MaxValue]), create("c", half[:ledger.MaxValue])},
		"bad key at last":  {create("good", ""), create("\x7f", "")},
		"delete and write": {remove("a", ledger.AnyVersion), create("a", "")},
	} {
		err := s.Commit(ctx, writes...)
		var conflict *ledger.ConflictError
		if err == nil || errors.As(err, &conflict) {
			t.Errorf("%s: commit returned %v", name, err)
		}
	}
	if page, err := s.Scan(ctx, "", "", 10); err != nil || len(page) != 0 {
		t.Fatalf("something was written: %v, %v", page, err)
	}
}

func largestCommitsAreAccepted(t *testing.T, s ledger.Store) {
	longest := ledger.Key(strings.Repeat("k", ledger.MaxKey))
	mustCommit(t, s, create(longest, strings.Repeat("v", ledger.MaxValue)))
	wantEntry(t, s, longest, 1, strings.Repeat("v", ledger.MaxValue))

	writes := make([]ledger.Write, ledger.MaxWrites)
	room := ledger.MaxCommit / ledger.MaxWrites
	for i := range writes {
		key := ledger.Key(fmt.Sprintf("%0*d", ledger.MaxKey, i))
		writes[i] = create(key, strings.Repeat("v", room-len(key)))
	}
	mustCommit(t, s, writes...)
	for i := range writes {
		writes[i].If = 1
	}
	mustCommit(t, s, writes...)
	page, err := s.Scan(ctx, "0", "", ledger.MaxScan)
	if err != nil || len(page) != ledger.MaxWrites {
		t.Fatalf("scan found %d entries with %v", len(page), err)
	}
	for i, e := range page {
		if e.Key != writes[i].Key || e.Version != 2 || !bytes.Equal(e.Value, writes[i].Value) {
			t.Fatalf("entry %d is %s at version %d", i, e.Key, e.Version)
		}
	}
}

func scanIsOrderedAndBounded(t *testing.T, s ledger.Store) {
	for _, k := range []ledger.Key{"b/2", "a", "b", "b/1", "b0", "b/10", "c", "B/1", "b/1/x", "b/"} {
		mustCommit(t, s, create(k, string(k)))
	}
	mustCommit(t, s, create("b/15", ""), create("c/1", ""))
	mustCommit(t, s, remove("b/15", 1))

	for _, c := range []struct {
		prefix, after ledger.Key
		limit         int
		want          string
	}{
		{"", "", 100, "B/1 a b b/ b/1 b/1/x b/10 b/2 b0 c c/1"},
		{"b/", "", 100, "b/ b/1 b/1/x b/10 b/2"},
		{"b/", "b/", 100, "b/1 b/1/x b/10 b/2"},
		{"b/", "b/1", 2, "b/1/x b/10"},
		{"b/", "b/11", 100, "b/2"},
		{"b/", "a", 1, "b/"},
		{"b/", "b/2", 100, ""},
		{"b/", "c", 100, ""},
		{"b", "b/10", 100, "b/2 b0"},
		{"", "b0", 100, "c c/1"},
		{"x", "", 100, ""},
		{"~", "", 100, ""},
		{"", "~", 100, ""},
	} {
		page, err := s.Scan(ctx, c.prefix, c.after, c.limit)
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, e := range page {
			keys = append(keys, string(e.Key))
			if e.Version != 1 || (len(e.Value) > 0 && string(e.Value) != string(e.Key)) {
				t.Errorf("scan found %+v", e)
			}
		}
		if got := strings.Join(keys, " "); got != c.want {
			t.Errorf("scan of %q after %q: %q, want %q", c.prefix, c.after, got, c.want)
		}
	}
}

func scanPagesMeetWithoutOverlap(t *testing.T, s ledger.Store) {
	const n = 500
	var want []ledger.Key
	for i := range n {
		k := ledger.Key(fmt.Sprintf("page/%d", i))
		want = append(want, k)
		mustCommit(t, s, create(k, ""), create(ledger.Key(fmt.Sprintf("pagf/%d", i)), ""))
	}
	slices.Sort(want)
	var got []ledger.Key
	for after := ledger.Key(""); ; {
		page, err := s.Scan(ctx, "page/", after, 37)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			got = append(got, e.Key)
		}
		after = got[len(got)-1]
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%d keys in %d pages of 37, want %d", len(got), (len(got)+36)/37, len(want))
	}
}

func invalidScansAreRefused(t *testing.T, s ledger.Store) {
	for name, scan := range map[string]func() ([]ledger.Entry, error){
		"no limit":       func() ([]ledger.Entry, error) { return s.Scan(ctx, "", "", 0) },
		"negative limit": func() ([]ledger.Entry, error) { return s.Scan(ctx, "", "", -1) },
		"limit too high": func() ([]ledger.Entry, error) { return s.Scan(ctx, "", "", ledger.MaxScan+1) },
		"bad prefix":     func() ([]ledger.Entry, error) { return s.Scan(ctx, "a b", "", 1) },
		"bad after":      func() ([]ledger.Entry, error) { return s.Scan(ctx, "", "\xff", 1) },
	} {
		if page, err := scan(); err == nil {
			t.Errorf("%s: scan returned %v", name, page)
		}
	}
}

func laterPrecedesLaterCommits(t *testing.T, s ledger.Store) {
	const writers, rounds = 8, 50
	parallel(writers, func(w int) {
		later := ledger.Key(fmt.Sprintf("later/%d", w))
		now := ledger.Key(fmt.Sprintf("now/%d", w))
		for i := range uint64(rounds) {
			s.Later(replace(later, i, fmt.Sprint(i)))
			// The condition holds only if the write above came first.
			if err := s.Commit(ctx, replace(now, i, fmt.Sprint(i)), replace(later, i+1, "checked")); err != nil {
				t.Errorf("round %d: %v", i, err)
				return
			}
			s.Later(replace(later, i+2, "again"))
			s.Later(remove(later, i+3))
			s.Later(replace(later, 0, "from the start"))
			for v := uint64(1); v <= i; v++ {
				s.Later(replace(later, v, "counting up"))
			}
			if err := s.Commit(ctx); err != nil {
				t.Errorf("barrier: %v", err)
				return
			}
			e, err := s.Get(ctx, later)
			if err != nil || e.Version != i+1 {
				t.Errorf("after round %d the later entry is %+v, %v", i, e, err)
				return
			}
		}
	})
}

func laterCopiesItsValues(t *testing.T, s ledger.Store) {
	value := []byte("value")
	s.Later(ledger.Write{Key: "a", Value: value})
	value[0] = 'X'
	mustCommit(t, s, create("b", ""))
	wantEntry(t, s, "a", 1, "value")
}

func laterIsLostOnConflict(t *testing.T, s ledger.Store) {
	mustCommit(t, s, create("a", "1"))
	s.Later(create("trace", "x"), create("a", "2"))
	s.Later(set("valid", "x"), create("not valid", "x"))
	s.Later(create("b", "1"))
	mustCommit(t, s)
	wantEntry(t, s, "a", 1, "1")
	wantAbsent(t, s, "trace")
	wantAbsent(t, s, "valid")
	wantEntry(t, s, "b", 1, "1")
}

func oneOfManyCreatorsWins(t *testing.T, s ledger.Store) {
	const writers, rounds = 64, 20
	for round := range rounds {
		key := ledger.Key(fmt.Sprintf("claim/%d", round))
		var winner atomic.Int64
		var conflicts [writers]error
		winner.Store(-1)
		parallel(writers, func(w int) {
			mine := ledger.Key(fmt.Sprintf("mark/%d/%d", round, w))
			err := s.Commit(ctx, create(mine, ""), create(key, fmt.Sprint(w)))
			if err != nil {
				conflicts[w] = err
				return
			}
			if !winner.CompareAndSwap(-1, int64(w)) {
				t.Errorf("round %d: %d won as well", round, w)
			}
		})
		won := winner.Load()
		if won < 0 {
			t.Fatalf("round %d: nobody won: %v", round, conflicts[0])
		}
		wantEntry(t, s, key, 1, fmt.Sprint(won))
		for w, err := range conflicts {
			if int64(w) != won {
				wantConflict(t, err, key, 1, fmt.Sprint(won))
			}
		}
		marks, err := s.Scan(ctx, ledger.Key(fmt.Sprintf("mark/%d/", round)), "", writers)
		if err != nil || len(marks) != 1 || marks[0].Key != ledger.Key(fmt.Sprintf("mark/%d/%d", round, won)) {
			t.Fatalf("round %d: the marks are %v, %v, want that of %d alone", round, marks, err, won)
		}
	}
}

func concurrentCountersLoseNothing(t *testing.T, s ledger.Store) {
	const writers, each = 16, 25
	mustCommit(t, s, create("counter", "0"))
	parallel(writers, func(int) {
		have, err := s.Get(ctx, "counter")
		for done := 0; done < each; {
			if err != nil {
				t.Error(err)
				return
			}
			var n int
			if _, err := fmt.Sscan(string(have.Value), &n); err != nil {
				t.Error(err)
				return
			}
			err = s.Commit(ctx, replace("counter", have.Version, fmt.Sprint(n+1)))
			var conflict *ledger.ConflictError
			switch {
			case err == nil:
				done++
				have, err = s.Get(ctx, "counter")
			case errors.As(err, &conflict):
				have, err = conflict.Have, nil
			}
		}
	})
	wantEntry(t, s, "counter", 1+writers*each, fmt.Sprint(writers*each))
}

// commitsAreSeenWholeOrNotAtAll moves units between accounts while their sum is
// taken.
func commitsAreSeenWholeOrNotAtAll(t *testing.T, s ledger.Store) {
	const accounts, writers, moves, start = 10, 8, 40, 100
	name := func(i int) ledger.Key { return ledger.Key(fmt.Sprintf("account/%d", i%accounts)) }
	for i := range accounts {
		mustCommit(t, s, create(name(i), fmt.Sprint(start)))
	}
	sum := func() (total int) {
		page, err := s.Scan(ctx, "account/", "", accounts)
		if err != nil {
			t.Error(err)
		}
		for _, e := range page {
			var n int
			if _, err := fmt.Sscan(string(e.Value), &n); err != nil {
				t.Error(err)
			}
			total += n
		}
		return total
	}
	move := func(from, to ledger.Key) error {
		a, err := s.Get(ctx, from)
		if err != nil {
			return err
		}
		b, err := s.Get(ctx, to)
		if err != nil {
			return err
		}
		var na, nb int
		if _, err := fmt.Sscan(string(a.Value)+" "+string(b.Value), &na, &nb); err != nil {
			return err
		}
		return s.Commit(ctx, replace(from, a.Version, fmt.Sprint(na-1)), replace(to, b.Version, fmt.Sprint(nb+1)))
	}

	var moved atomic.Int64
	stop := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if got := sum(); got != accounts*start {
					t.Errorf("the accounts have %d in sum, want %d", got, accounts*start)
					return
				}
			}
		}
	})
	parallel(writers, func(w int) {
		for i := range moves {
			err := move(name(w+i), name(w+3*i+1))
			var conflict *ledger.ConflictError
			switch {
			case err == nil:
				moved.Add(1)
			case errors.As(err, &conflict):
			case name(w+i) == name(w+3*i+1): // the same account twice
			default:
				t.Error(err)
				return
			}
		}
	})
	close(stop)
	watcher.Wait()
	if got := sum(); got != accounts*start || moved.Load() == 0 {
		t.Fatalf("after %d moves the accounts have %d in sum, want %d", moved.Load(), got, accounts*start)
	}
}

func cancelledContextsAreRefused(t *testing.T, s ledger.Store) {
	mustCommit(t, s, create("a", ""))
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Commit(cancelled, create("b", "")); !errors.Is(err, context.Canceled) {
		t.Errorf("commit returned %v", err)
	}
	if _, err := s.Get(cancelled, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("get returned %v", err)
	}
	if _, err := s.Scan(cancelled, "", "", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("scan returned %v", err)
	}
	wantAbsent(t, s, "b")
}

// cancellationNeverHidesTheOutcome cancels commits at any moment: one that
// returned nil is there, one that returned an error is not.
func cancellationNeverHidesTheOutcome(t *testing.T, s ledger.Store) {
	const writers, each = 32, 30
	parallel(writers, func(w int) {
		for i := range each {
			key := ledger.Key(fmt.Sprintf("c/%d/%d", w, i))
			cancelling, cancel := context.WithCancel(ctx)
			go cancel()
			err := s.Commit(cancelling, create(key, ""))
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("commit: %v", err)
				return
			}
			// Whatever was accepted before has been written when this returns.
			if err := s.Commit(ctx); err != nil {
				t.Errorf("barrier: %v", err)
				return
			}
			_, getErr := s.Get(ctx, key)
			if err == nil && getErr != nil {
				t.Errorf("%s was committed and is not there: %v", key, getErr)
			}
			if err != nil && !errors.Is(getErr, ledger.ErrNotFound) {
				t.Errorf("%s was not committed (%v) and is there: %v", key, err, getErr)
			}
		}
	})
}

func closedStoresRefuseEverything(t *testing.T, s ledger.Store) {
	mustCommit(t, s, create("a", ""))
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	if _, err := s.Get(ctx, "a"); !errors.Is(err, ledger.ErrClosed) {
		t.Errorf("get returned %v", err)
	}
	if _, err := s.Scan(ctx, "", "", 1); !errors.Is(err, ledger.ErrClosed) {
		t.Errorf("scan returned %v", err)
	}
	if err := s.Commit(ctx, create("b", "")); !errors.Is(err, ledger.ErrClosed) {
		t.Errorf("commit returned %v", err)
	}
	s.Later(create("c", ""))
	if err := s.Close(); err != nil {
		t.Errorf("closing again returned %v", err)
	}
}

func closeAnswersEveryCommitUnderWay(t *testing.T, s ledger.Store) {
	const writers = 64
	var committed atomic.Int64
	var refused atomic.Int64
	started := make(chan struct{}, writers)
	closed := make(chan error, 1)
	go func() {
		for range writers / 2 {
			<-started
		}
		closed <- s.Close()
	}()
	parallel(writers, func(w int) {
		for i := 0; ; i++ {
			err := s.Commit(ctx, create(ledger.Key(fmt.Sprintf("w/%d/%d", w, i)), ""))
			if i == 0 {
				started <- struct{}{}
			}
			if errors.Is(err, ledger.ErrClosed) {
				refused.Add(1)
				return
			}
			if err != nil {
				t.Errorf("commit: %v", err)
				return
			}
			committed.Add(1)
		}
	})
	if err := <-closed; err != nil {
		t.Fatalf("close: %v", err)
	}
	if refused.Load() != writers || committed.Load() == 0 {
		t.Fatalf("%d commits, then %d of %d writers were refused", committed.Load(), refused.Load(), writers)
	}
}

func everythingSurvivesReopening(t *testing.T, s ledger.Store, reopen func(*testing.T, ledger.Store) ledger.Store) {
	const writers, each = 16, 40
	parallel(writers, func(w int) {
		for i := range each {
			err := s.Commit(ctx, create(ledger.Key(fmt.Sprintf("w/%02d/%02d", w, i)), fmt.Sprint(i)), set(ledger.Key(fmt.Sprintf("last/%d", w)), fmt.Sprint(i)))
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	mustCommit(t, s, remove("w/00/00", 1))
	s.Later(create("later", "x"))
	before, err := s.Scan(ctx, "w/", "", ledger.MaxScan)
	if err != nil {
		t.Fatal(err)
	}

	for range 3 {
		s = reopen(t, s)
		after, err := s.Scan(ctx, "w/", "", ledger.MaxScan)
		if err != nil || len(after) != writers*each-1 {
			t.Fatalf("%d entries after reopening, %v, want %d", len(after), err, writers*each-1)
		}
		if !slices.EqualFunc(before, after, equal) {
			t.Fatal("the entries differ after reopening")
		}
		for w := range writers {
			wantEntry(t, s, ledger.Key(fmt.Sprintf("last/%d", w)), each, fmt.Sprint(each-1))
		}
		wantEntry(t, s, "later", 1, "x")
		wantAbsent(t, s, "w/00/00")
	}
	mustCommit(t, s, replace("w/00/01", 1, "new"))
	wantEntry(t, s, "w/00/01", 2, "new")
}

func equal(a, b ledger.Entry) bool {
	return a.Key == b.Key && a.Version == b.Version && bytes.Equal(a.Value, b.Value)
}

// parallel runs do(0) to do(n-1) at the same time and waits for them.
func parallel(n int, do func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { do(i) })
	}
	all.Wait()
}
