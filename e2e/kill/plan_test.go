package main

import (
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/failpoint"
)

func TestOnePlanFollowsFromOneSeed(t *testing.T) {
	a, b, c := newPlan(7, true, 0.1, nil), newPlan(7, true, 0.1, nil), newPlan(8, true, 0.1, nil)
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
		p := newPlan(seed, seed%2 == 0, 0.1, []failpoint.Point{failpoint.Midway})
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
	p := newPlan(1, true, 0, nil)
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
	if err := good.enough(nil); err != nil {
		t.Error(err)
	}
	few := totals{payments: 10, settled: 8, points: points}
	if few.enough(nil) == nil {
		t.Error("eight of ten were enough")
	}
	delete(points, failpoint.Replaced)
	if good.enough(nil) == nil || good.enough([]failpoint.Point{failpoint.Replaced}) != nil {
		t.Error("a point that was never reached must be named to be left out")
	}
}

func TestRecoveryIsAPercentile(t *testing.T) {
	r := totals{}
	if got := r.recovery(99); got != 0 {
		t.Errorf("nothing took %d ms", got)
	}
	for i := range 100 {
		r.recoveries = append(r.recoveries, time.Duration(i+1)*time.Millisecond)
	}
	for percent, want := range map[int]int64{50: 50, 99: 99, 100: 100} {
		if got := r.recovery(percent); got != want {
			t.Errorf("p%d is %d ms, want %d", percent, got, want)
		}
	}
}
