package badger

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// crashDir tells the test binary to be the process that is killed, and where its
// ledger is.
const crashDir = "TOLLGATE_LEDGER_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		commitUntilKilled(dir)
	}
	os.Exit(m.Run())
}

const crashWriters = 16

func crashKeys(round string, writer, i int) (left, right, later, counter ledger.Key) {
	return ledger.Key(fmt.Sprintf("left/%s/%d/%d", round, writer, i)),
		ledger.Key(fmt.Sprintf("right/%s/%d/%d", round, writer, i)),
		ledger.Key(fmt.Sprintf("later/%s/%d/%d", round, writer, i)),
		ledger.Key(fmt.Sprintf("counter/%s/%d", round, writer))
}

// commitUntilKilled writes a line for every commit that has been acknowledged.
func commitUntilKilled(dir string) {
	s, err := Open(dir, Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	round := os.Getenv(crashDir + "_ROUND")
	value := []byte(strings.Repeat("v", 600))
	var writers sync.WaitGroup
	for w := range crashWriters {
		writers.Go(func() {
			for i := range 1_000_000 {
				left, right, later, counter := crashKeys(round, w, i)
				err := s.Commit(ctx,
					ledger.Write{Key: left, Value: value},
					ledger.Write{Key: counter, If: uint64(i), Value: fmt.Append(nil, i)},
					ledger.Write{Key: right, Value: value})
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				s.Later(ledger.Write{Key: later, Value: value})
				fmt.Printf("%d %d\n", w, i) // one write call, so lines are whole
			}
		})
	}
	writers.Wait()
	os.Exit(1)
}

// The process is killed five times on the same ledger, at moments that have nothing to
// do with what it is doing.
func TestKilledProcessLosesNothingItAcknowledged(t *testing.T) {
	dir := t.TempDir()
	acknowledged := make(map[string][crashWriters]int) // how many commits of each writer
	for round := range 5 {
		name := fmt.Sprint(round)
		acknowledged[name] = killAfter(t, dir, name, 500+700*round)

		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatalf("opening after the kill: %v", err)
		}
		for name, counts := range acknowledged {
			for w, n := range counts {
				checkAfterCrash(t, s, name, w, n)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killAfter starts a process, kills it once it has acknowledged about n commits,
// and returns how many it had acknowledged to each writer by then.
func killAfter(t *testing.T, dir, round string, n int) (counts [crashWriters]int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	process := exec.Command(self)
	process.Env = append(os.Environ(), crashDir+"="+dir, crashDir+"_ROUND="+round)
	process.Stderr = os.Stderr
	out, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(time.Minute, func() { _ = process.Process.Kill() })
	defer stuck.Stop()

	total := 0
	for lines := bufio.NewScanner(out); lines.Scan(); total++ {
		var w, i int
		if _, err := fmt.Sscan(lines.Text(), &w, &i); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		if i != counts[w] {
			t.Fatalf("writer %d acknowledged %d after %d", w, i, counts[w])
		}
		counts[w]++
		if total == n {
			if err := process.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var exit *exec.ExitError
	if err := process.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 || total < n {
		t.Fatalf("the process ended after %d commits with %v, want it killed", total, err)
	}
	return counts
}

// checkAfterCrash checks what is there of writer's commits, of which n were
// acknowledged. The one after them may be there as well, but whole.
func checkAfterCrash(t *testing.T, s *Store, round string, writer, n int) {
	t.Helper()
	there := func(k ledger.Key) bool {
		_, err := s.Get(ctx, k)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	_, _, _, counter := crashKeys(round, writer, 0)
	e, err := s.Get(ctx, counter)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		t.Fatal(err)
	}
	committed := int(e.Version)
	if committed != n && committed != n+1 {
		t.Fatalf("round %s: %d commits of writer %d are there, %d were acknowledged", round, committed, writer, n)
	}
	for i := range committed + 1 {
		left, right, later, _ := crashKeys(round, writer, i)
		if want := i < committed; there(left) != want || there(right) != want {
			t.Fatalf("round %s: commit %d of writer %d is split: %v and %v with the counter at %d",
				round, i, writer, there(left), there(right), committed)
		}
		if i < committed-1 && !there(later) {
			t.Fatalf("round %s: the commit after later write %d of writer %d is there without it", round, i, writer)
		}
	}
}
