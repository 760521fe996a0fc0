// Package sim runs the seller's program in small worlds of their own and
// looks for money that goes astray.
//
// The till, the facilitator, the settlement engine and the ledger are the
// real ones. Everything around them is made up: the clock, the nodes and the
// chain behind them, the disk, the clients, and the processes, which can die
// at any moment. What goes wrong in a world follows from its seed, and so a
// world that breaks a promise can be lived again.
//
// A world runs in a bubble of testing/synctest, in which time passes only
// when everybody waits. Each interaction with the world ends at an instant of
// its own, drawn from the seed for that interaction and no other, so that one
// goroutine wakes at a time and their order is the same in every run.
package sim

import (
	"fmt"
	"hash/fnv"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Options change how a world is run.
type Options struct {
	Flaw    Flaw // a deliberate mistake that must be found
	Verbose bool // the history has what the program logs
}

// A Report is what came of one world.
type Report struct {
	Seed       uint64
	Mild       bool // nothing went wrong that was not the program's doing
	Payments   int
	Transfers  int // that are final
	Honest     int // payments whose payers wanted what they paid for
	Served     int // those of them that got it
	Crashes    int
	Reorgs     int
	Lasted     time.Duration
	Seen       map[string]int // what happened in the world, and how often
	Violations []string
	Log        []Event
}

// Digest names the history. Two runs of one seed have the same.
func (r *Report) Digest() string {
	h := fnv.New64a()
	for _, line := range r.lines() {
		_, _ = io.WriteString(h, line)
	}
	return strconv.FormatUint(h.Sum64(), 16)
}

// lines are the history without what the program logs, which it does as it
// likes. What happens at one instant happens in no order.
func (r *Report) lines() []string {
	lines := make([]string, 0, len(r.Log))
	for _, e := range r.Log {
		if e.Kind != "log" {
			lines = append(lines, fmt.Sprintf("%016x|%s|%s|%s|%s\n", int64(e.At), e.Kind, e.Actor, e.ID, e.Detail))
		}
	}
	slices.Sort(lines)
	return lines
}

// Apart says where the histories of two runs of one seed part. It is empty if
// they are the same.
func (r *Report) Apart(again *Report) string {
	one, other := append(r.lines(), "the end"), append(again.lines(), "the end")
	for i := range min(len(one), len(other)) {
		if one[i] != other[i] {
			return fmt.Sprintf("lived twice, it was another world from event %d on:\n  first %s\n  again %s", i, strings.TrimSpace(one[i]), strings.TrimSpace(other[i]))
		}
	}
	return ""
}

// Run lives one world. GOMAXPROCS should be 1, or the history is not quite
// the same each time.
func Run(t *testing.T, p *Purse, seed uint64, o Options) *Report {
	t.Helper()
	defer quiet()()
	var r *Report
	synctest.Test(t, func(t *testing.T) {
		w, err := newWorld(p, seed, o)
		if err != nil {
			t.Error(err)
			return
		}
		w.run()
		r = w.report
	})
	return r
}

// quiet keeps the garbage collector from changing the order of goroutines that
// can run at one instant, until its result is called: it makes those wait that
// it happens to interrupt, and when it runs depends on what was before.
func quiet() (end func()) {
	runtime.GC()
	before := debug.SetGCPercent(-1)
	return func() { debug.SetGCPercent(before) }
}
