package badger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	engine "github.com/dgraph-io/badger/v4"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/ledgertest"
)

var ctx = context.Background()

func openStore(t testing.TB, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// startStore opens dir with a committer that change has altered.
func startStore(t *testing.T, dir string, change func(*Store, *committer)) *Store {
	t.Helper()
	s, err := open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := newCommitter(s, Options{})
	change(s, c)
	s.start(c)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func create(key ledger.Key, value string) ledger.Write {
	return ledger.Write{Key: key, If: ledger.Absent, Value: []byte(value)}
}

func mustCommit(t testing.TB, s *Store, writes ...ledger.Write) {
	t.Helper()
	if err := s.Commit(ctx, writes...); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

func conforms(t *testing.T, opts Options) {
	ledgertest.Run(t,
		func(t *testing.T) ledger.Store { return openStore(t, filepath.Join(t.TempDir(), "ledger"), opts) },
		func(t *testing.T, s ledger.Store) ledger.Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return openStore(t, s.(*Store).dir, opts)
		})
}

func TestStoreConforms(t *testing.T)               { conforms(t, Options{}) }
func TestStoreConformsInSmallBatches(t *testing.T) { conforms(t, Options{MaxBatch: 3}) }

func TestCallersShareALedger(t *testing.T) {
	ledgertest.RunShared(t, func(t *testing.T, instances int) []ledger.Store {
		return slices.Repeat([]ledger.Store{openStore(t, t.TempDir(), Options{})}, instances)
	})
}

func TestOpenDirectoryIsRefusedWithAdvice(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	_, err := Open(dir, Options{})
	want := "x402: " + dir + ` is in use by another process; if Caddy is running, use "caddy reload" or the admin API instead`
	if !errors.Is(err, ErrInUse) || err.Error() != want {
		t.Fatalf("a second open returned %q, want %q", err, want)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openStore(t, dir, Options{})
}

func TestDirectoryOfAnotherFormatIsRefused(t *testing.T) {
	for _, magic := range []uint16{0, format + 1} {
		dir := t.TempDir()
		db, err := engine.OpenManaged(engine.DefaultOptions(dir).WithLogger(nil).WithExternalMagic(magic))
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = Open(dir, Options{})
		if err == nil || !strings.Contains(err.Error(), "another format") {
			t.Errorf("format %d: open returned %v", magic, err)
		}
	}
}

func TestDirectoryWithoutManifestIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	mustCommit(t, s, create("a", "x"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(dir, engine.ManifestFilename)
	if err := os.Rename(manifest, manifest+".lost"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "restore") {
		t.Fatalf("open returned %v", err)
	}
	if err := os.Rename(manifest+".lost", manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(t, dir, Options{}).Get(ctx, "a"); err != nil {
		t.Fatalf("the refused open did damage: %v", err)
	}
}

func TestNewDirectoryIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "ledger")
	openStore(t, dir, Options{})
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Fatalf("the directory has mode %v", info.Mode())
	}
}

// A value log would need a second fsync and a garbage collector.
func TestValueLogStaysEmpty(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	for i := range 20 {
		mustCommit(t, s, create(ledger.Key(fmt.Sprintf("%0*d", ledger.MaxKey, i)), strings.Repeat("v", ledger.MaxValue)))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no value log: %v", err)
	}
	for _, log := range logs {
		info, err := os.Stat(log)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 100 {
			t.Errorf("%s has %d bytes", log, info.Size())
		}
	}
}

// gate holds the committer up in its first write, so that a test can fill the queue.
type gate struct {
	entered, open chan struct{}
	once          sync.Once
}

func newGate() *gate {
	return &gate{entered: make(chan struct{}), open: make(chan struct{})}
}

func (g *gate) pass() {
	g.once.Do(func() {
		close(g.entered)
		<-g.open
	})
}

func TestWaitingCommitsShareOneWrite(t *testing.T) {
	g := newGate()
	writes := 0 // owned by the committer until Close
	s := startStore(t, t.TempDir(), func(s *Store, c *committer) {
		c.write = func(changes map[ledger.Key]ledger.Entry) error {
			g.pass()
			writes++
			return s.write(changes)
		}
	})
	outcomes := make(chan error, 101)
	go func() { outcomes <- s.Commit(ctx, create("first", "")) }()
	<-g.entered
	for i := range 100 {
		go func() { outcomes <- s.Commit(ctx, create(ledger.Key(fmt.Sprint(i)), "")) }()
	}
	waitForQueue(t, s, 100)
	close(g.open)
	for range 101 {
		if err := <-outcomes; err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if writes != 2 {
		t.Fatalf("%d writes, want one for the first commit and one for the hundred that waited", writes)
	}
}

func waitForQueue(t *testing.T, s *Store, n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); len(s.queue) < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the queue has %d commits, want %d", len(s.queue), n)
		}
	}
}

// The committer is woken by the first commit of those that are about to come.
func TestCommitsThatAreAboutToComeAreTakenUpTogether(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // whoever may run then waits for its turn
	const rounds = 20
	together := 0
	for range rounds {
		queue := make(chan *commit, 1)
		go func() { queue <- &commit{} }()
		if _, _, received := poll(queue); received {
			together++
		}
	}
	// The scheduler gives the committer itself the turn now and then.
	if together < rounds/2 {
		t.Errorf("%d of %d commits were taken up, want all but a few", together, rounds)
	}
}

func TestBatchesLargerThanATransactionAreSplitBetweenCommits(t *testing.T) {
	g := newGate()
	var batches []int // owned by the committer until Close
	s := startStore(t, t.TempDir(), func(s *Store, c *committer) {
		c.write = func(changes map[ledger.Key]ledger.Entry) error {
			g.pass()
			batches = append(batches, len(changes))
			return s.write(changes)
		}
	})
	outcomes := make(chan error, 11)
	go func() { outcomes <- s.Commit(ctx, create("first", "")) }()
	<-g.entered
	half := strings.Repeat("v", ledger.MaxCommit/2-ledger.MaxKey-512)
	for i := range 10 {
		go func() {
			outcomes <- s.Commit(ctx,
				create(ledger.Key(fmt.Sprintf("%d/a", i)), half),
				create(ledger.Key(fmt.Sprintf("%d/b", i)), half))
		}()
	}
	waitForQueue(t, s, 10)
	close(g.open)
	for range 11 {
		if err := <-outcomes; err != nil {
			t.Fatal(err)
		}
	}
	page, err := s.Scan(ctx, "", "", 100)
	if err != nil || len(page) != 21 {
		t.Fatalf("%d entries, %v, want 21", len(page), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, n := range batches[1:] {
		if n != 2 {
			t.Fatalf("the batches have %v changes, want one commit of two in each", batches)
		}
	}
}

// A reader must not act on what may yet be lost, and must not wait for it either.
func TestReadsSeeNothingThatIsNotOnDisk(t *testing.T) {
	g := newGate()
	s := startStore(t, t.TempDir(), func(s *Store, c *committer) {
		c.write = func(changes map[ledger.Key]ledger.Entry) error {
			g.pass()
			return s.write(changes)
		}
	})
	outcome := make(chan error, 1)
	go func() { outcome <- s.Commit(ctx, create("a", "x")) }()
	<-g.entered
	if _, err := s.Get(ctx, "a"); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("get returned %v during the write", err)
	}
	if page, err := s.Scan(ctx, "", "", 1); err != nil || len(page) != 0 {
		t.Errorf("scan returned %v, %v during the write", page, err)
	}
	close(g.open)
	if err := <-outcome; err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, "a"); err != nil {
		t.Fatal(err)
	}
}

func TestCommitsThatWaitCanBeGivenUp(t *testing.T) {
	g := newGate()
	s := startStore(t, t.TempDir(), func(s *Store, c *committer) {
		c.write = func(changes map[ledger.Key]ledger.Entry) error {
			g.pass()
			return s.write(changes)
		}
	})
	short, cancel := context.WithCancel(ctx)
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- s.Commit(short, create("first", "")) }()
	<-g.entered
	go func() { second <- s.Commit(short, create("second", "")) }()
	waitForQueue(t, s, 1)
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("the commit in the queue returned %v", err)
	}
	select {
	case err := <-first:
		t.Errorf("the commit that was taken up returned %v before its outcome was known", err)
	default:
	}
	close(g.open)
	if err := <-first; err != nil {
		t.Errorf("the commit that was taken up returned %v", err)
	}
	if _, err := s.Get(ctx, "second"); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("the commit that was given up is there: %v", err)
	}
}

// recordWrites makes c send the number of changes of every write.
func recordWrites(s *Store, c *committer) <-chan int {
	written := make(chan int, 10)
	c.write = func(changes map[ledger.Key]ledger.Entry) error {
		written <- len(changes)
		return s.write(changes)
	}
	return written
}

func TestLaterIsWrittenAloneIfNoCommitComes(t *testing.T) {
	var written <-chan int
	s := startStore(t, t.TempDir(), func(s *Store, c *committer) { written = recordWrites(s, c) })
	s.Later(create("a", ""))
	select {
	case n := <-written:
		if n != 1 {
			t.Fatalf("a write of %d changes, want that of a", n)
		}
	case <-time.After(time.Minute):
		t.Fatal("the later write was never made")
	}
	mustCommit(t, s)
	if _, err := s.Get(ctx, "a"); err != nil {
		t.Fatal(err)
	}
}

func TestLaterTravelsWithTheNextCommit(t *testing.T) {
	var written <-chan int
	s := startStore(t, t.TempDir(), func(s *Store, c *committer) {
		c.maxBatch = 1
		c.laterDelay = time.Hour
		written = recordWrites(s, c)
	})
	s.Later(create("a", ""))
	s.Later(ledger.Write{Key: "a", If: 1, Value: []byte("x")})
	mustCommit(t, s, create("b", ""))
	if e, err := s.Get(ctx, "a"); err != nil || e.Version != 2 || string(e.Value) != "x" {
		t.Fatalf("a is %+v, %v", e, err)
	}
	s.Later(create("c", ""))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := <-written; n != 2 {
		t.Fatalf("the first write has %d changes, want a and b", n)
	}
	if n := <-written; n != 1 || len(written) != 0 {
		t.Fatalf("then a write of %d changes and %d more writes, want c alone", n, len(written))
	}
}

func TestFirstDiskErrorStopsTheStore(t *testing.T) {
	dir := t.TempDir()
	broken := errors.New("input/output error")
	g := newGate()
	healthy := true // owned by the committer
	s := startStore(t, dir, func(s *Store, c *committer) {
		c.write = func(changes map[ledger.Key]ledger.Entry) error {
			if _, ok := changes["slow"]; ok {
				g.pass()
			}
			if !healthy {
				t.Error("written after the error")
			}
			if _, ok := changes["bad"]; ok {
				healthy = false
				return broken
			}
			return s.write(changes)
		}
	})
	mustCommit(t, s, create("good", ""))

	// One commit holds the committer up while the others gather, of which the
	// second conflicts with the first.
	slow, outcomes := make(chan error, 1), make(chan error, 4)
	go func() { slow <- s.Commit(ctx, create("slow", "")) }()
	<-g.entered
	go func() { outcomes <- s.Commit(ctx, create("bad", "")) }()
	waitForQueue(t, s, 1)
	go func() { outcomes <- s.Commit(ctx, create("bad", "again")) }()
	s.Later(create("later", ""))
	go func() { outcomes <- s.Commit(ctx, create("waiting", "")) }()
	go func() { outcomes <- s.Commit(ctx, create("good", "conflict")) }()
	waitForQueue(t, s, 5)
	close(g.open)
	if err := <-slow; err != nil {
		t.Fatal(err)
	}
	for range 4 {
		wantFailed(t, <-outcomes, broken)
	}
	wantFailed(t, s.Commit(ctx, create("after", "")), broken)
	wantFailed(t, s.Commit(ctx), broken)

	if _, err := s.Get(ctx, "good"); err != nil {
		t.Errorf("what was on disk before cannot be read: %v", err)
	}
	for _, k := range []ledger.Key{"bad", "waiting", "later", "after"} {
		if _, err := s.Get(ctx, k); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("%s, whose outcome is unknown, is visible: %v", k, err)
		}
	}
	wantFailed(t, s.Close(), broken)
	if _, err := s.Get(ctx, "good"); !errors.Is(err, ledger.ErrClosed) {
		t.Errorf("get after close returned %v", err)
	}
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
}

func wantFailed(t *testing.T, err, cause error) {
	t.Helper()
	var failed *ledger.FailedError
	if !errors.As(err, &failed) || !errors.Is(err, cause) {
		t.Errorf("got %v, want a failure caused by %v", err, cause)
	}
}

func TestCommitsAreRefusedWhileTheDiskIsFull(t *testing.T) {
	free := uint64(minFreeSpace - 1)
	var c *committer
	s := startStore(t, t.TempDir(), func(_ *Store, it *committer) {
		it.freeSpace = func() (uint64, error) { return free, nil }
		it.housekeep()
		c = it
	})
	err := s.Commit(ctx, create("a", ""))
	var failed *ledger.FailedError
	if err == nil || errors.As(err, &failed) || !strings.Contains(err.Error(), "127 MiB of disk left") {
		t.Fatalf("commit returned %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	free = minFreeSpace
	c.housekeep()
	if err := c.refusal(); err != nil {
		t.Fatalf("with room again: %v", err)
	}
}

func TestStoreStartsAgainAfterEverythingWasDiscarded(t *testing.T) {
	dir := t.TempDir()
	for range 6 { // as many tables as make Badger compact
		s := openStore(t, dir, Options{})
		mustCommit(t, s, create("a", "x"), create("b", "y"))
		mustCommit(t, s, ledger.Write{Key: "a", If: 1}, ledger.Write{Key: "b", If: 1})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := openStore(t, dir, Options{})
	s.discard()
	if n := versionsAfterCompaction(t, s); n != 0 {
		t.Fatalf("%d versions are left of nothing", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, Options{})
	mustCommit(t, s, create("a", "z"))
	if e, err := s.Get(ctx, "a"); err != nil || e.Version != 1 || string(e.Value) != "z" {
		t.Fatalf("a is %+v, %v", e, err)
	}
}

func TestDamagedValueIsAnErrorAndNotARecord(t *testing.T) {
	s, err := open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	txn := s.db.NewTransactionAt(0, true)
	if err := txn.Set(entryKey("a"), []byte{valueFormat + 1, 0, 0, 0, 0, 0, 0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	if err := txn.CommitAt(1, nil); err != nil {
		t.Fatal(err)
	}
	s.durable.Store(1)
	s.start(newCommitter(s, Options{}))

	if e, err := s.Get(ctx, "a"); err == nil || errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("get returned %v, %v", e, err)
	}
	if page, err := s.Scan(ctx, "", "", 1); err == nil {
		t.Errorf("scan returned %v", page)
	}
	var failed *ledger.FailedError
	if err := s.Commit(ctx, create("a", "")); !errors.As(err, &failed) {
		t.Errorf("a commit that depends on it returned %v", err)
	}
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOldVersionsAreDiscardedUnlessABackupNeedsThem(t *testing.T) {
	dir := t.TempDir()
	written := 0
	// rewrite makes one more table of old versions.
	rewrite := func() {
		s := openStore(t, dir, Options{})
		for range 10 {
			mustCommit(t, s, ledger.Write{Key: "a", If: ledger.AnyVersion, Value: fmt.Append(nil, written)})
			written++
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		rewrite()
	}

	s := openStore(t, dir, Options{})
	s.pinning.Lock()
	s.discard()
	s.pinning.Unlock()
	if n := versionsAfterCompaction(t, s); n != written {
		t.Fatalf("%d versions are left while they are pinned, want %d", n, written)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	rewrite()
	s = openStore(t, dir, Options{})
	s.discard()
	if n := versionsAfterCompaction(t, s); n != 1 {
		t.Fatalf("%d versions are left, want the latest alone", n)
	}
	e, err := s.Get(ctx, "a")
	if err != nil || e.Version != uint64(written) || string(e.Value) != fmt.Sprint(written-1) {
		t.Fatalf("a is %+v, %v", e, err)
	}
}

func versionsAfterCompaction(t *testing.T, s *Store) (n int) {
	t.Helper()
	if err := s.db.Flatten(2); err != nil {
		t.Fatal(err)
	}
	txn := s.db.NewTransactionAt(s.durable.Load(), false)
	defer txn.Discard()
	it := txn.NewIterator(engine.IteratorOptions{AllVersions: true})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		n++
	}
	return n
}

// What a caller has seen can be out of date when the committer takes its commit
// up, and older than what the committer remembers.
func TestCommitsThatWereReadBeforeOthersAreHeldAgainstThem(t *testing.T) {
	for _, most := range []int{1, 2, 7, 0} {
		s := startStore(t, t.TempDir(), func(_ *Store, c *committer) { c.recent.most = most })
		const writers, each = 16, 60
		keys := []ledger.Key{"a", "b", "c"}
		var made [3]atomic.Uint64
		var group sync.WaitGroup
		for w := range writers {
			group.Go(func() {
				for n := range each {
					i := (w + n) % len(keys)
					e, err := s.Get(ctx, keys[i])
					if err != nil && !errors.Is(err, ledger.ErrNotFound) {
						t.Error(err)
						return
					}
					err = s.Commit(ctx,
						ledger.Write{Key: keys[i], If: e.Version, Value: []byte(fmt.Sprint(e.Version + 1))},
						ledger.Write{Key: ledger.Key(fmt.Sprintf("other/%d/%d", w, n)), If: ledger.Absent, Value: []byte{}})
					refused, conflict := errors.AsType[*ledger.ConflictError](err)
					switch {
					case err == nil:
						made[i].Add(1)
					case !conflict:
						t.Error(err)
						return
					case refused.Key != keys[i] || refused.Have.Version <= e.Version || string(refused.Have.Value) != fmt.Sprint(refused.Have.Version):
						t.Errorf("read version %d of %s, refused with %+v", e.Version, keys[i], refused)
					}
				}
			})
		}
		group.Wait()
		for i, k := range keys {
			e, err := s.Get(ctx, k)
			if err != nil || e.Version != made[i].Load() || string(e.Value) != fmt.Sprint(e.Version) {
				t.Errorf("%s is %+v, %v, after %d commits", k, e, err, made[i].Load())
			}
		}
	}
}

// An entry that was deleted after it was read, and perhaps made again, is seen
// as it is.
func TestCommitsThatWereReadBeforeADeletionSeeIt(t *testing.T) {
	g := newGate()
	s := startStore(t, t.TempDir(), func(s *Store, c *committer) {
		c.write = func(changes map[ledger.Key]ledger.Entry) error {
			if _, ok := changes["gate"]; ok {
				g.pass()
			}
			return s.write(changes)
		}
	})
	mustCommit(t, s, create("a", "old"))
	outcomes := make(chan error, 4)
	go func() { outcomes <- s.Commit(ctx, create("gate", "")) }()
	<-g.entered
	for n, writes := range [][]ledger.Write{
		{{Key: "a", If: 1}},                         // deletes it
		{{Key: "a", If: 1, Value: []byte("stale")}}, // has read it before
		{create("a", "new")},                        // has read it, too
	} {
		c := &commit{writes: writes, outcome: make(chan error, 1)}
		s.read(c)
		if c.seen[0] != 1 {
			t.Fatalf("read version %d", c.seen[0])
		}
		if err := s.enqueue(ctx, c); err != nil {
			t.Fatal(err)
		}
		go func() {
			err := <-c.outcome
			if n == 1 {
				if _, refused := errors.AsType[*ledger.ConflictError](err); !refused {
					err = fmt.Errorf("what was deleted was written: %w", err)
				} else {
					err = nil
				}
			}
			outcomes <- err
		}()
	}
	close(g.open)
	for range 4 {
		if err := <-outcomes; err != nil {
			t.Error(err)
		}
	}
	if e, err := s.Get(ctx, "a"); err != nil || e.Version != 1 || string(e.Value) != "new" {
		t.Errorf("a is %+v, %v", e, err)
	}
}
