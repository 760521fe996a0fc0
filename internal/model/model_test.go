package model

import (
	"strings"
	"testing"
)

// most is more states than any case has.
const most = 6_000_000

func explore(t *testing.T, c *Case) *Result {
	t.Helper()
	r := Explore(c.Config, c.Variant, most, c.Want...)
	var row strings.Builder
	if err := Row(&row, c, r); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %v", strings.TrimSpace(row.String()), r.Took)
	if r.Capped {
		t.Errorf("%s: not all states were visited", c.Name)
	}
	missing, wrong := c.Missing(r)
	for _, v := range missing {
		t.Errorf("%s: %s was not found", c.Name, v)
	}
	for _, v := range wrong {
		t.Errorf("%s: %s:\n\t%s", c.Name, v, strings.Join(r.Traces[v], "\n\t"))
	}
	return r
}

func TestNothingBreaksTheProductAndEveryStepIsReached(t *testing.T) {
	if raceDetector {
		t.Skip("one goroutine has no races, and this would take minutes")
	}
	var results []*Result
	for _, c := range Product() {
		results = append(results, explore(t, &c))
	}
	for _, what := range Unreached(results) {
		t.Errorf("not reached: %s", what)
	}
}

func TestEveryNaiveWayIsSeenToBeWrong(t *testing.T) {
	if raceDetector {
		t.Skip("one goroutine has no races, and this would take minutes")
	}
	for _, c := range Variants() {
		r := explore(t, &c)
		for v, trace := range r.Traces {
			for _, line := range trace {
				if line == "" {
					t.Errorf("%s: the trace to %s has a gap:\n\t%s", c.Name, v, strings.Join(trace, "\n\t"))
				}
			}
		}
	}
}

func TestACapIsReported(t *testing.T) {
	c := Product()[0]
	r := Explore(c.Config, c.Variant, 1000)
	if !r.Capped || r.States != 1000 {
		t.Errorf("%d states, capped %v", r.States, r.Capped)
	}
	if len(Unreached([]*Result{r})) == 0 {
		t.Error("a thousand states reach every step")
	}
}

func TestTheIndexFindsWhatWasAddedAndNothingElse(t *testing.T) {
	x := newIndex()
	var all []state
	for i := range 200_000 {
		s := state{pool: uint8(i), sent: uint8(i >> 8), mined: uint8(i >> 16)}
		if _, known := x.find(all, &s); known {
			t.Fatalf("state %d was found before it was added", i)
		}
		x.add(uint32(i))
		all = append(all, s)
	}
	for i := range all {
		if k, known := x.find(all, &all[i]); !known || int(k) != i {
			t.Fatalf("state %d was found as %d, %v", i, k, known)
		}
	}
}
