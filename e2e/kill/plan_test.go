package main

import (
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/failpoint"
)

func TestOnePlanFollowsFromOneSeed(t *testing.T) {
	o := options{seed: 7, facilitator: remote, jams: 0.1}
	a, b := newPlan(o), newPlan(o)
	o.seed = 8
	c := newPlan(o)
	same := true
	for range 200 {
		x, y := a.next(), b.next()
		if x != y {
			t.Fatalf("%+v and %+v", x, y)
		}
		same = same && x == c.next()
	}
	if same {
		t.Error("another seed made the same plan")
	}
}

func TestEveryPointComesUpInAShortRun(t *testing.T) {
	for seed := range uint64(50) {
		o := options{seed: seed, jams: 0.1, without: string(failpoint.Midway), instances: 1}
		switch seed % 3 {
		case 1:
			o.facilitator = remote
		case 2:
			o.ledger, o.instances = onPostgres, 3
		}
		p := newPlan(o)
		seen := map[failpoint.Point]int{}
		for range 100 {
			f := p.next()
			seen[f.point]++
			if f.point == failpoint.Replaced && !f.jammed {
				t.Errorf("%+v: nothing is replaced on a chain that goes on", f)
			}
		}
		for _, point := range failpoint.Points() {
			if left := point == failpoint.Midway; (seen[point] == 0) != left {
				t.Errorf("seed %d: %s came up %d times", seed, point, seen[point])
			}
		}
	}
}

func TestPointsCanBeAimedAt(t *testing.T) {
	p := newPlan(options{seed: 1, facilitator: remote})
	for _, point := range failpoint.Points() {
		if f := p.at(point); f.point != point || f.pass < 1 {
			t.Errorf("%+v", f)
		}
	}
	if f := p.at(failpoint.Replaced); f.victim != "teller" {
		t.Errorf("%s never replaces a transaction where another process settles", f.victim)
	}
}

func TestLedgersThatDisagreeWithTheChainAreSeen(t *testing.T) {
	for _, c := range []struct {
		state         string
		landed, ended bool
		fine          bool
	}{
		{"", true, false, false},
		{"RELEASED", true, false, false},
		{"DEAD", true, false, false},
		{"EXECUTED", true, false, false},
		{"INTENT", true, false, true},
		{"SENT", true, false, true},
		{"SENT", true, true, false},
		{"SETTLED", true, true, true},
		{"SETTLED", false, false, false},
		{"ARCHIVED", false, true, false},
		{"RELEASED", false, true, true},
		{"", false, true, true},
	} {
		if text := disagrees(c.state, c.landed, c.ended); (text == "") != c.fine {
			t.Errorf("%q, moved %v, at the end %v: %q", c.state, c.landed, c.ended, text)
		}
	}
}

func TestRunsThatProveTooLittleFail(t *testing.T) {
	points := map[failpoint.Point]int{}
	for _, p := range failpoint.Points() {
		points[p] = 1
	}
	good := totals{payments: 10, settled: 9, points: points}
	if err := good.enough(options{settled: settledLimit}); err != nil {
		t.Error(err)
	}
	few := totals{payments: 10, settled: 8, points: points}
	if few.enough(options{settled: settledLimit}) == nil {
		t.Error("eight of ten were enough")
	}
	delete(points, failpoint.Replaced)
	if good.enough(options{settled: settledLimit}) == nil || good.enough(options{settled: settledLimit, without: string(failpoint.Replaced)}) != nil {
		t.Error("a point that was never reached must be named to be left out")
	}
}

func TestRecoveryIsAPercentile(t *testing.T) {
	var list []time.Duration
	if got := percentile(list, 99); got != 0 {
		t.Errorf("nothing took %d ms", got)
	}
	for i := range 100 {
		list = append(list, time.Duration(i+1)*time.Millisecond)
	}
	for percent, want := range map[int]int64{50: 50, 99: 99, 100: 100} {
		if got := percentile(list, percent); got != want {
			t.Errorf("p%d is %d ms, want %d", percent, got, want)
		}
	}
}

func TestOptionsThatDoNotGoTogetherAreRefused(t *testing.T) {
	fine := options{cycles: 1, clients: 1, instances: 1, settled: settledLimit, facilitator: embedded, ledger: onBadger}
	for _, c := range []struct {
		change   func(*options)
		selfTest bool
		want     string // "" is fine
	}{
		{change: func(*options) {}},
		{change: func(*options) {}, selfTest: true},
		{change: func(o *options) { o.facilitator = remote }},
		{change: func(o *options) { o.ledger = onPostgres }},
		{change: func(o *options) { o.ledger, o.instances = onPostgres, 3 }},
		{change: func(o *options) { o.instances = 3 }, want: "add -ledger postgres"},
		{change: func(o *options) { o.instances = 0 }, want: "at least 1"},
		{change: func(o *options) { o.ledger, o.facilitator = onPostgres, remote }, want: "-ledger badger only"},
		{change: func(o *options) { o.ledger = onPostgres }, selfTest: true, want: "-ledger badger only"},
		{change: func(o *options) { o.ledger = "paper" }, want: "must be badger or postgres"},
		{change: func(o *options) { o.facilitator = "nobody" }, want: "must be embedded or remote"},
	} {
		o := fine
		c.change(&o)
		err := o.check(c.selfTest)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", o, err, c.want)
		}
	}
}

// running returns processes, of which the ones that are alive have begun in
// the order of the numbers; 0 is dead.
func running(began ...int64) []*process {
	var list []*process
	for i, n := range began {
		p := &process{number: i}
		if n > 0 {
			p.cmd, p.ended, p.began = &exec.Cmd{}, make(chan struct{}), time.Unix(n, 0)
		}
		list = append(list, p)
	}
	return list
}

func TestWhoHasLivedLongestLivesOnUnlessMeant(t *testing.T) {
	points := append(failpoint.Points(), "")
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		shops := running(rng.Int64N(3)*8, 5+2*rng.Int64N(5), 30)
		f := fall{point: points[rng.IntN(len(points))], pick: rng.IntN(1 << 16), both: rng.IntN(2) == 0}
		eldest := shops[1]
		if shops[0].alive() && shops[0].began.Before(eldest.began) {
			eldest = shops[0]
		}
		victims := choose(f, shops)
		if slices.Contains(victims, eldest) || len(victims) == 0 || len(victims) == 3 || len(victims) == 2 && victims[0] == victims[1] {
			t.Errorf("%+v kills %d of the instances, the eldest too: %v", f, len(victims), slices.Contains(victims, eldest))
		}
		if (len(victims) == 2) != f.both {
			t.Errorf("%+v kills %d", f, len(victims))
		}
		if f.point != "" && !shops[0].alive() && victims[0] != shops[0] {
			t.Errorf("%+v is to be met by an instance that runs already", f)
		}
		if got := choose(fall{eldest: true, pick: f.pick}, shops); len(got) != 1 || got[0] != eldest {
			t.Errorf("the eldest was meant, and %d others die", len(got))
		}
	}
	if got := choose(fall{point: failpoint.Claimed}, running(0)); len(got) != 1 {
		t.Errorf("of one instance %d die", len(got))
	}
	if got := choose(fall{eldest: true}, running(0, 0)); len(got) != 1 {
		t.Errorf("of two instances that have not begun %d die", len(got))
	}
}

func TestEveryInstanceDiesInTheEnd(t *testing.T) {
	for _, instances := range []int{1, 2, 3} {
		p := newPlan(options{seed: 3, ledger: onPostgres, instances: instances})
		calm, eldest := 0, 0
		for range 48 {
			f := p.next()
			if f.calm {
				calm++
			}
			if f.eldest {
				eldest++
			}
			if f.eldest && (!f.calm || f.both || f.point != "") {
				t.Errorf("%+v: what the eldest has taken over dies with it", f)
			}
		}
		if calm == 0 || (eldest > 0) != (instances > 1) {
			t.Errorf("%d instances: %d times calm, the eldest dies %d times", instances, calm, eldest)
		}
	}
	if f := newPlan(options{ledger: onBadger, instances: 1}).next(); f.calm || f.eldest {
		t.Errorf("%+v on Badger", f)
	}
}

func TestARunWithoutTimelyTakeoversFails(t *testing.T) {
	points := map[failpoint.Point]int{}
	for _, p := range failpoint.Points() {
		points[p] = 1
	}
	for _, c := range []struct {
		takeovers []time.Duration
		instances int
		fine      bool
	}{
		{nil, 1, true},
		{[]time.Duration{time.Minute}, 1, true},
		{nil, 3, false},
		{[]time.Duration{8 * time.Second}, 3, true},
		{[]time.Duration{time.Second, 11 * time.Second}, 3, false},
	} {
		r := totals{payments: 10, settled: 10, points: points, takeovers: c.takeovers}
		if err := r.enough(options{instances: c.instances, settled: settledLimit, takeover: takeoverLimit}); (err == nil) != c.fine {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
