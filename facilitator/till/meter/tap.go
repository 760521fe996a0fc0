package meter

import (
	"fmt"
	"math/big"
	"mime"
	"net/http"
	"slices"
	"strings"
)

// A Tap counts what of an answer flows by. What it takes of memory does not
// depend on the answer, however long an event or a document of it is. It is
// used by one goroutine at a time.
type Tap struct {
	tariff  *Tariff
	usage   Usage
	events  *eventReader // nil unless the body is a stream of events
	json    *scanner     // nil unless the body is JSON; each value counts as an event where lines says so
	lines   bool
	problem string
}

// NewTap returns a tap for the body of an answer with the given header. Of a
// body that is neither a stream of events nor JSON, or that is compressed,
// only the bytes are counted.
func (t *Tariff) NewTap(h http.Header) *Tap {
	tap := &Tap{tariff: t, usage: Usage{Fields: make([]*big.Rat, len(t.Rates))}}
	if !t.reads() {
		return tap
	}
	if e := strings.ToLower(strings.TrimSpace(strings.Join(h["Content-Encoding"], ","))); e != "" && e != "identity" {
		tap.note("the body is encoded (" + e[:min(len(e), 20)] + "), so only its bytes are counted")
		return tap
	}
	media, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		media, _, _ = strings.Cut(strings.ToLower(h.Get("Content-Type")), ";")
	}
	switch media = strings.TrimSpace(media); {
	case media == "text/event-stream":
		tap.events = &eventReader{json: tap.scanner()}
	case slices.Contains([]string{"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-lines"}, media):
		tap.json, tap.lines = tap.scanner(), true
	case media == "application/json" || strings.HasSuffix(media, "+json"):
		tap.json = tap.scanner()
	}
	return tap
}

// scanner returns one for the paths of the tariff.
func (t *Tap) scanner() *scanner {
	var paths []Path
	var rates []int
	for i := range t.tariff.Rates {
		if r := &t.tariff.Rates[i]; r.Of == Field {
			paths, rates = append(paths, r.Path), append(rates, i)
		}
	}
	return newScanner(paths,
		func(i int, n *big.Rat) { t.usage.Fields[rates[i]] = n },
		func(i int) {
			t.note(fmt.Sprintf("what the body has at %s is no number that can be charged", paths[i]))
		})
}

// Write counts b, which has been passed on. It never fails, and implements
// io.Writer.
func (t *Tap) Write(b []byte) (int, error) {
	t.usage.Bytes += int64(len(b))
	switch {
	case t.events != nil:
		t.events.write(b)
		t.usage.Events = t.events.events
	case t.json != nil:
		t.json.write(b)
		if t.lines {
			t.usage.Events = t.json.values
		}
	}
	return len(b), nil
}

// Say notes what the upstream says that the answer costs, in atomic units.
func (t *Tap) Say(charge *big.Int) { t.usage.Said = charge }

// Usage returns what has been counted so far. What is counted later does not
// change it.
func (t *Tap) Usage() Usage {
	u := t.usage
	u.Fields = slices.Clone(t.usage.Fields)
	return u
}

// Problem returns what could not be counted and why, for whoever runs the
// upstream, or "".
func (t *Tap) Problem() string { return t.problem }

// note notes a problem; the first one counts.
func (t *Tap) note(problem string) {
	if t.problem == "" {
		t.problem = problem
	}
}
