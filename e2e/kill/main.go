// Command kill kills Tollgate while clients pay, again and again, and holds
// what the chain did against what the ledger says and what the clients got.
//
//	go run ./e2e/kill -cycles 200 -seed 1
//
// In each cycle the real program, built with the tag "failpoint", serves
// clients that pay on a chain of our own; it is killed with SIGKILL, at a
// point of the crash matrix (K0 to K14, see internal/failpoint) or at any
// moment, and started again on the same ledger. The chain, the clients and
// the upstream outlive it. The run fails if a client was charged twice for
// one order or told to pay again for a payment that settles, if money moved
// and nothing came of it, if one payment bought twice or nothing was paid for
// what was handed out, if fewer than 90 % of the honest payments settled (-settled), or
// if a point of the matrix was never reached.
//
//	e2e/postgres.sh go run ./e2e/kill -ledger postgres -instances 3
//
// does that to instances of the shop that share one ledger in PostgreSQL and
// one lane. While one is dead the others go on, and its clients turn to them
// with the same payments. The run also fails if those are not answered within
// ten seconds, with the goods or with a refusal.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tollgate402/tollgate/internal/failpoint"
)

type options struct {
	cycles      int
	seed        uint64
	clients     int
	facilitator string
	ledger      string
	instances   int
	takeover    time.Duration
	settled     int // percent
	without     string
	binary      string
	jams        float64
	broken      failpoint.Break
	keep        bool
	reruns      bool
}

// What options say.
const (
	embedded = "embedded"
	remote   = "remote"

	onBadger   = "badger"
	onPostgres = "postgres"
)

func main() {
	var o options
	var selfTest bool
	flag.IntVar(&o.cycles, "cycles", 200, "how often a process is killed")
	flag.Uint64Var(&o.seed, "seed", 1, "decides how each life ends")
	flag.IntVar(&o.clients, "clients", 24, "how many clients pay at the same time")
	flag.StringVar(&o.facilitator, "facilitator", embedded, "who settles: embedded, or remote, which is a second process that is killed too")
	flag.StringVar(&o.ledger, "ledger", onBadger, "where the ledger is: badger, or postgres, which makes a database of its own on the server that "+databaseVariable+" names")
	flag.IntVar(&o.instances, "instances", 1, "how many instances of the shop share the ledger; with postgres only, more than one")
	flag.DurationVar(&o.takeover, "takeover", takeoverLimit, "how long after the death of an instance the living may take to answer what it had under way")
	flag.IntVar(&o.settled, "settled", settledLimit, "how many `percent` of the honest payments must settle for the run to prove enough; on a slow machine more of them meet a kill")
	flag.StringVar(&o.without, "without", "", "points that this build cannot reach, such as `K11`; they are named in the result")
	flag.StringVar(&o.binary, "binary", "", "a cmd/tollgate that is already built with the tag failpoint")
	flag.BoolVar(&o.reruns, "allow-reruns", false, "let the upstream run again for a POST whose payment was released after a crash")
	flag.BoolVar(&o.keep, "keep", false, "keep ledgers and logs also after a run without problems")
	flag.BoolVar(&selfTest, "self-test", false, "run builds that are broken on purpose, and succeed if each of them is caught")
	flag.Parse()
	o.jams = 0.15
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := o.check(selfTest); err != nil {
		fmt.Fprintln(os.Stderr, "kill:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := run
	if selfTest {
		run = proveSight
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "kill:", err)
		os.Exit(1)
	}
}

// check returns an error if the options do not go together.
func (o *options) check(selfTest bool) error {
	switch {
	case o.cycles < 1 || o.clients < 1 || o.instances < 1:
		return errors.New("-cycles, -clients and -instances must be at least 1")
	case o.settled < 1 || o.settled > 100:
		return errors.New("-settled must be 1 to 100 percent")
	case o.facilitator != embedded && o.facilitator != remote:
		return fmt.Errorf("-facilitator is %q, it must be embedded or remote", o.facilitator)
	case o.ledger != onBadger && o.ledger != onPostgres:
		return fmt.Errorf("-ledger is %q, it must be badger or postgres", o.ledger)
	case o.instances > 1 && o.ledger != onPostgres:
		return errors.New("one process at a time can use a Badger ledger: for several -instances add -ledger postgres")
	case o.facilitator == remote && o.ledger != onBadger:
		return errors.New("-facilitator remote works with -ledger badger only")
	case selfTest && o.ledger != onBadger:
		return errors.New("-self-test works with -ledger badger only")
	}
	return nil
}

// run makes one run and prints its result.
func run(ctx context.Context, o options) (err error) {
	h, err := newHarness(ctx, o)
	if h != nil {
		defer func() { err = errors.Join(err, h.close(err != nil)) }()
	}
	if err != nil {
		return err
	}
	began := time.Now()
	fmt.Printf("seed %d, %d cycles, %d clients, facilitator %s, ledger %s, instances %d\n", o.seed, o.cycles, o.clients, o.facilitator, o.ledger, o.instances)
	failed := h.cycles(ctx)
	t := h.totals()
	points := make([]string, 0, len(t.points))
	for _, p := range failpoint.Points() {
		points = append(points, fmt.Sprintf("%s=%d", p, t.points[p]))
	}
	fmt.Printf("killed at %s and %d times at any moment, in %s\n", strings.Join(points, " "), t.random, time.Since(began).Round(time.Second))
	fmt.Printf("settled %.1f%% of the honest payments (%d of %d) for %d orders; recovery p50 %d ms, longest %d ms\n",
		100*float64(t.settled)/float64(max(1, t.payments)), t.settled, t.payments, t.orders, percentile(t.recoveries, 50), percentile(t.recoveries, 100))
	if o.without != "" {
		fmt.Printf("left out: %s\n", o.without)
	}
	takeover := ""
	if o.instances > 1 {
		fmt.Printf("of %d payments that instances had under way when they died: answered in the end p50 %d ms, longest %d ms after that\n",
			len(t.takeovers), percentile(t.takeovers, 50), percentile(t.takeovers, 100))
		takeover = fmt.Sprintf(" takeover_p99_ms=%d", percentile(t.takeovers, 99))
	}
	err = t.enough(o)
	if failed != nil {
		err = failed // what else is missing follows from that
	}
	fmt.Printf("cycles=%d payments=%d double_charges=%d lost=%d double_grants=%d recovery_p99_ms=%d%s\n",
		t.cycles, t.payments, t.counts[doubleCharge], t.counts[lost], t.counts[doubleGrant], percentile(t.recoveries, 99), takeover)
	return err
}

func without(o options) []failpoint.Point {
	var list []failpoint.Point
	for s := range strings.SplitSeq(o.without, ",") {
		list = append(list, failpoint.Point(s))
	}
	return list
}

// totals is what a run has come to.
type totals struct {
	cycles, orders, payments, settled int
	random                            int // lives that ended at any moment
	points                            map[failpoint.Point]int
	counts                            map[kind]int

	recoveries []time.Duration // sorted; from the start of a process to the first paid answer
	takeovers  []time.Duration // sorted; from the death of an instance to the last answer to what it had under way, payment by payment
}

// percentile returns one of sorted times, in milliseconds.
func percentile(sorted []time.Duration, percent int) int64 {
	if len(sorted) == 0 {
		return 0
	}
	at := (len(sorted)*percent + 99) / 100
	return sorted[max(at, 1)-1].Milliseconds()
}

// settledLimit is how many percent of the honest payments must settle where
// -settled does not say otherwise.
const settledLimit = 90

// enough returns an error if the run proves less than it should.
func (t *totals) enough(o options) error {
	var errs []error
	if 100*t.settled < o.settled*t.payments || t.payments == 0 {
		errs = append(errs, fmt.Errorf("only %d of %d honest payments settled; %d %% must", t.settled, t.payments, o.settled))
	}
	left := without(o)
	for _, p := range failpoint.Points() {
		if t.points[p] == 0 && !slices.Contains(left, p) {
			errs = append(errs, fmt.Errorf("%s was never reached", p))
		}
	}
	switch slow := percentile(t.takeovers, 99); {
	case o.instances <= 1:
	case len(t.takeovers) == 0:
		errs = append(errs, errors.New("no instance died with a payment under way"))
	case slow > o.takeover.Milliseconds():
		errs = append(errs, fmt.Errorf("what dead instances had under way took %d ms to be answered; %s are allowed", slow, o.takeover))
	}
	return errors.Join(errs...)
}

// enoughCycles is how many cycles a broken build gets to show itself.
const enoughCycles = 60

// proveSight runs every broken build until the harness sees what is wrong
// with it.
func proveSight(ctx context.Context, o options) error {
	o.cycles, o.jams = enoughCycles, 0.6
	for _, b := range []failpoint.Break{failpoint.ClaimNotDurable, failpoint.TimeoutIsUnpaid} {
		o.broken = b
		fmt.Printf("%s:\n", b)
		h, err := newHarness(ctx, o)
		if err == nil {
			err = h.cycles(ctx)
		}
		if h == nil {
			return err
		}
		t := h.totals()
		caught := errors.Is(err, errGiveUp) && t.counts[doubleCharge]+t.counts[lost]+t.counts[doubleGrant] > 0
		if closeErr := h.close(!caught); closeErr != nil {
			return closeErr
		}
		if !errors.Is(err, errGiveUp) {
			return fmt.Errorf("the build with %s was not caught: %w", b, errors.Join(err, errors.New("a run of it found no problem")))
		}
		if t.counts[doubleCharge]+t.counts[lost]+t.counts[doubleGrant] == 0 {
			return fmt.Errorf("the build with %s failed for another reason: %w", b, err)
		}
		fmt.Printf("%s: caught in cycle %d, double_charges=%d lost=%d double_grants=%d\n\n",
			b, t.cycles, t.counts[doubleCharge], t.counts[lost], t.counts[doubleGrant])
	}
	return nil
}
