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
	"slices"
	"strconv"
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
	lines := make([]string, 0, len(r.Log))
	for _, e := range r.Log {
		if e.Kind == "log" {
			continue // as the program likes
		}
		lines = append(lines, fmt.Sprintf("%016x|%s|%s|%s|%s\n", int64(e.At), e.Kind, e.Actor, e.ID, e.Detail))
	}
	slices.Sort(lines) // what happens at one instant happens in no order
	for _, line := range lines {
		_, _ = io.WriteString(h, line)
	}
	return strconv.FormatUint(h.Sum64(), 16)
}

// Run lives one world. GOMAXPROCS should be 1, or the history is not quite
// the same each time.
func Run(t *testing.T, p *Purse, seed uint64, o Options) *Report {
	t.Helper()
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
