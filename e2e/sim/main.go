// Command sim lives many small worlds of internal/sim, each from a seed of
// its own, and fails if a promise about money is broken in any of them.
//
//	go run ./e2e/sim -seeds 20000              as CI does
//	go run ./e2e/sim -seeds 1000000            every night
//	go run ./e2e/sim -seed 4711 -v             one world again, with its history
//
// A world is a sequence of instants at each of which one goroutine runs, so
// every worker is a process of its own with one processor.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/sim"
)

// Standstill is how long one world may take. A world that takes longer has a
// goroutine that waits for a mutex whose holder waits for time to pass.
const standstill = 2 * time.Minute

// manySeeds is from how many worlds on everything that is listed must have
// been seen.
const manySeeds = 5000

type options struct {
	seeds, start    uint64
	workers, replay int
	flaw            string
	verbose         bool
	stride          uint64 // of a worker; 0 in the process that starts them
}

func main() {
	testing.Init()
	var o options
	one := ""
	flag.Uint64Var(&o.seeds, "seeds", 1000, "how many worlds to live")
	flag.Uint64Var(&o.start, "start", 0, "the first seed")
	flag.StringVar(&one, "seed", "", "live this world and no other")
	flag.BoolVar(&o.verbose, "v", false, "print histories")
	flag.IntVar(&o.workers, "workers", runtime.NumCPU(), "how many processes share the work")
	flag.IntVar(&o.replay, "replay", 20, "one world in so many is lived twice and must be the same; 0 for none")
	flag.StringVar(&o.flaw, "flaw", "", "build this mistake into the program, to see it found")
	flag.Uint64Var(&o.stride, "stride", 0, "used between the processes")
	flag.Parse()
	if one != "" {
		seed, err := strconv.ParseUint(one, 10, 64)
		if err != nil {
			fail(fmt.Errorf("-seed %q is no seed: write a number", one))
		}
		o.start, o.seeds, o.workers, o.replay = seed, 1, 1, 1
	}
	if o.stride > 0 {
		work(o)
		return
	}
	if err := lead(o); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "sim:", err)
	os.Exit(1)
}

// A tally is what came of some worlds.
type tally struct {
	Seeds, Payments, Crashes, Reorgs int
	Replayed, Mismatches             int
	MildHonest, MildServed, Broken   int
	Seen                             map[string]int
	Told                             []history
}

// A history is told of a world in which a promise was broken, and of any that
// somebody wants to hear of.
type history struct {
	Seed       uint64
	Violations []string
	Log        []string
}

func (t *tally) add(other *tally) {
	t.Seeds += other.Seeds
	t.Payments += other.Payments
	t.Crashes += other.Crashes
	t.Reorgs += other.Reorgs
	t.Replayed += other.Replayed
	t.Mismatches += other.Mismatches
	t.MildHonest += other.MildHonest
	t.MildServed += other.MildServed
	for _, h := range other.Told {
		if len(h.Violations) > 0 {
			t.Broken++
		}
	}
	for what, n := range other.Seen {
		t.Seen[what] += n
	}
}

// lead shares the seeds out among workers and sums up.
func lead(o options) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	began := time.Now()
	total := tally{Seen: map[string]int{}}
	var mu sync.Mutex // guards total and said
	said := 0
	report := func(t *tally) {
		mu.Lock()
		defer mu.Unlock()
		total.add(t)
		for _, h := range t.Told {
			if len(h.Violations) == 0 {
				fmt.Printf("seed %d: ", h.Seed)
			}
			fmt.Println(strings.Join(h.Log, "\n"))
			if len(h.Violations) > 0 {
				fmt.Printf("seed %d: %s\n  again: go run ./e2e/sim -seed %d -v\n", h.Seed, strings.Join(h.Violations, "; "), h.Seed)
			}
		}
		if total.Seeds-said >= 1000 {
			said = total.Seeds
			fmt.Printf("%d of %d worlds, %s\n", said, o.seeds, time.Since(began).Round(time.Second))
		}
	}
	workers := make(chan error)
	for i := range o.workers {
		go func() { workers <- follow(self, o, uint64(i), report) }() //nolint:gosec // i counts from 0
	}
	for range o.workers {
		err = errors.Join(err, <-workers)
	}
	if o.seeds > 1 {
		list := make([]string, 0, len(total.Seen))
		for what, n := range total.Seen {
			list = append(list, fmt.Sprintf("%10d  %s", n, what))
		}
		slices.SortFunc(list, func(a, b string) int { return strings.Compare(a[12:], b[12:]) })
		fmt.Println(strings.Join(list, "\n"))
		fmt.Printf("mild worlds: %d of %d payers got what they paid for; %d worlds lived twice\n", total.MildServed, total.MildHonest, total.Replayed)
	}
	fmt.Printf("seeds=%d payments=%d crashes=%d reorgs=%d violations=%d replay_mismatches=%d\n",
		total.Seeds, total.Payments, total.Crashes, total.Reorgs, total.Broken, total.Mismatches)
	return errors.Join(err, judge(o, &total))
}

// judge says what is wrong with the sum.
func judge(o options, total *tally) error {
	var errs []error
	if total.Broken > 0 {
		errs = append(errs, fmt.Errorf("promises were broken in %d worlds", total.Broken))
	}
	if uint64(total.Seeds) != o.seeds { //nolint:gosec // it counts
		errs = append(errs, fmt.Errorf("only %d of %d worlds were lived", total.Seeds, o.seeds))
	}
	if total.Mismatches > 3 && total.Mismatches*100 > total.Replayed {
		errs = append(errs, fmt.Errorf("%d of %d worlds that were lived twice were not the same again", total.Mismatches, total.Replayed))
	}
	if o.flaw == "" && total.MildServed*10 < total.MildHonest*9 {
		errs = append(errs, errors.New("fewer than nine in ten payers of mild worlds got what they paid for"))
	}
	if o.flaw == "" && total.Seeds >= manySeeds {
		for _, what := range sim.MustSee() {
			if total.Seen[what] == 0 {
				errs = append(errs, fmt.Errorf("never seen: %s", what))
			}
		}
	}
	return errors.Join(errs...)
}

// follow runs one worker and hands on what it says.
func follow(self string, o options, i uint64, report func(*tally)) error {
	c := exec.Command(self, "-stride", strconv.Itoa(o.workers), "-start", strconv.FormatUint(o.start+i, 10),
		"-seeds", strconv.FormatUint((o.seeds+uint64(o.workers)-1-i)/uint64(o.workers), 10), //nolint:gosec // there is a worker
		"-replay", strconv.Itoa(o.replay), "-flaw", o.flaw, "-v="+strconv.FormatBool(o.verbose))
	c.Env = append(os.Environ(), "GOMAXPROCS=1")
	c.Stderr = os.Stderr
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	c.ExtraFiles = []*os.File{out} // the first is number 3
	err = c.Start()
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	for said := json.NewDecoder(in); ; {
		t := tally{}
		if err := said.Decode(&t); err != nil {
			break // it has ended; Wait says how
		}
		report(&t)
	}
	if err := c.Wait(); err != nil {
		return fmt.Errorf("worker %d: %w", i, err)
	}
	return nil
}

// tallies is the file on which a worker says what came of its worlds.
// Standard output belongs to package testing.
const tallies = 3

// work lives worlds one after the other.
func work(o options) {
	purse, err := sim.NewPurse()
	if err != nil {
		fail(err)
	}
	var at atomic.Uint64
	seed := func() uint64 { return o.start + at.Load()*o.stride }
	guard := time.AfterFunc(standstill, func() {
		fmt.Fprintf(os.Stderr, "sim: the world of seed %d stands still: somebody waits for a mutex whose holder waits for time\n", seed())
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
		os.Exit(1)
	})
	out := json.NewEncoder(os.NewFile(tallies, "tallies"))
	live := func(t *testing.T) {
		for ; at.Load() < o.seeds; at.Add(1) {
			guard.Reset(standstill)
			if err := out.Encode(o.live(t, purse, seed(), int(at.Load()))); err != nil { //nolint:gosec // it counts worlds
				t.Error(err)
				return
			}
		}
	}
	// A bubble wants a test around it.
	all := func(string, string) (bool, error) { return true, nil }
	testing.Main(all, []testing.InternalTest{{Name: "Worlds", F: live}}, nil, nil)
}

// live lives the n-th world of a worker.
func (o *options) live(t *testing.T, purse *sim.Purse, seed uint64, n int) *tally {
	r := sim.Run(t, purse, seed, sim.Options{Flaw: sim.Flaw(o.flaw), Verbose: o.verbose})
	sum := &tally{Seeds: 1, Payments: r.Payments, Crashes: r.Crashes, Reorgs: r.Reorgs, Seen: r.Seen}
	if r.Mild {
		sum.MildHonest, sum.MildServed = r.Honest, r.Served
	}
	if len(r.Violations) > 0 || o.verbose {
		h := history{Seed: seed, Violations: r.Violations}
		for _, e := range r.Log {
			h.Log = append(h.Log, e.String())
		}
		sum.Told = []history{h}
	}
	if o.replay > 0 && n%o.replay == 0 {
		sum.Replayed = 1
		again := sim.Run(t, purse, seed, sim.Options{Flaw: sim.Flaw(o.flaw), Verbose: o.verbose})
		if again.Digest() != r.Digest() {
			sum.Mismatches = 1
			sum.Told = append(sum.Told, history{Seed: seed, Log: []string{r.Apart(again)}})
		}
	}
	return sum
}
