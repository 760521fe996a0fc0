package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

const (
	secretOne = "whsec-one-0123456789abcdef0123456789abcdef"
	secretTwo = "whsec-two-0123456789abcdef0123456789abcdef"
)

// seeded is randomness that a test can repeat.
func seeded(n byte) io.Reader { return rand.NewChaCha8([32]byte{n}) }

// A parcel is one request that a receiver got.
type parcel struct {
	endpoint string // the host
	id, kind string
	header   string // SignatureHeader
	body     []byte
	at       time.Time
}

// receivers is a Sender that hands every request to answer.
type receivers struct {
	answer func(ctx context.Context, p parcel) (int, error) // nil: 200

	mu     sync.Mutex
	got    []parcel
	now    map[string]int // under way, by host
	most   map[string]int
	all    int
	mostOf int
}

func (s *receivers) Check(*url.URL) error { return nil }

func (s *receivers) Do(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	p := parcel{r.URL.Host, r.Header.Get(DeliveryHeader), r.Header.Get(TypeHeader), r.Header.Get(SignatureHeader), body, time.Now()}
	s.mu.Lock()
	s.got = append(s.got, p)
	if s.now == nil {
		s.now, s.most = map[string]int{}, map[string]int{}
	}
	s.now[p.endpoint]++
	s.all++
	s.most[p.endpoint], s.mostOf = max(s.most[p.endpoint], s.now[p.endpoint]), max(s.mostOf, s.all)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.now[p.endpoint]--
		s.all--
	}()
	code := http.StatusOK
	if s.answer != nil {
		if code, err = s.answer(r.Context(), p); err != nil {
			return nil, err
		}
	}
	return &http.Response{StatusCode: code, Header: http.Header{}, Body: http.NoBody}, nil
}

// taken returns what was received so far.
func (s *receivers) taken() []parcel {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]parcel(nil), s.got...)
}

func always(code int) func(context.Context, parcel) (int, error) {
	return func(context.Context, parcel) (int, error) { return code, nil }
}

func endpoint(name string) Endpoint {
	return Endpoint{Name: name, URL: "https://" + name + ".example/hooks/path-secret?token=query-secret", Secrets: []string{secretOne}}
}

// office makes a queue with usual settings.
func office(t *testing.T, store ledger.Store, sender Sender, endpoints ...Endpoint) *Queue {
	t.Helper()
	if len(endpoints) == 0 {
		endpoints = []Endpoint{endpoint("shop")}
	}
	q, err := New(Config{Store: store, Sender: sender, Endpoints: endpoints, Chance: func() float64 { return 0.5 }})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// event makes one, with an id that n decides.
func event(t *testing.T, n int) Event {
	t.Helper()
	e, err := NewEvent(rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), 1}), "link.paid", time.Now(), json.RawMessage(fmt.Sprintf(`{ "n": %d, "note": "<b>" }`, n)))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// post commits events as whoever causes them does.
func post(t *testing.T, store ledger.Store, q *Queue, events ...Event) {
	t.Helper()
	for _, e := range events {
		writes, err := q.Writes(e)
		if err != nil {
			t.Fatal(err)
		}
		cause := ledger.Write{Key: ledger.Key("cause/" + e.ID), If: ledger.Absent, Value: []byte{}}
		if err := store.Commit(t.Context(), append(writes, cause)...); err != nil {
			t.Fatal(err)
		}
	}
	q.Wake()
}

// run runs queues until the test, or stop, ends them.
func run(t *testing.T, queues ...*Queue) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for _, q := range queues {
		group.Go(func() { q.Run(ctx) })
	}
	stop = func() { cancel(); group.Wait() }
	t.Cleanup(stop)
	return stop
}

// only returns the one delivery of an event.
func only(t *testing.T, q *Queue, e Event) Delivery {
	t.Helper()
	list, _, err := q.List(t.Context(), "", "", MaxList)
	if err != nil {
		t.Fatal(err)
	}
	var found []Delivery
	for _, d := range list {
		if d.Event.ID == e.ID {
			found = append(found, d)
		}
	}
	if len(found) != 1 {
		t.Fatalf("event %s has %d deliveries", e.ID, len(found))
	}
	return found[0]
}

// sound fails the test if Check finds anything.
func sound(t *testing.T, store ledger.Store) int {
	t.Helper()
	n, found, err := Check(context.Background(), store)
	if err != nil || len(found) > 0 {
		t.Errorf("the check: %v, %v", found, err)
	}
	return n
}

func TestAnEventIsDeliveredOnceAndSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, r := ledger.NewMemory(), &receivers{}
		q := office(t, store, r)
		run(t, q)
		synctest.Wait()
		e := event(t, 1)
		post(t, store, q, e)
		synctest.Wait() // no time passes
		got := r.taken()
		if len(got) != 1 {
			t.Fatalf("%d deliveries", len(got))
		}
		if got[0].id != e.ID || got[0].kind != "link.paid" {
			t.Errorf("headers %+v", got[0])
		}
		if err := Verify(secretOne, got[0].header, got[0].body, time.Now()); err != nil {
			t.Error(err)
		}
		var body struct {
			ID, Type string
			Created  time.Time
			Data     struct {
				N    int
				Note string
			}
		}
		if err := json.Unmarshal(got[0].body, &body); err != nil || body.ID != e.ID || body.Type != e.Type || !body.Created.Equal(e.Created) || body.Data.N != 1 || body.Data.Note != "<b>" {
			t.Errorf("%s: %v", got[0].body, err)
		}
		if d := only(t, q, e); d.State != Delivered || d.Attempts != 1 || d.LastStatus != 200 || d.LastError != "" {
			t.Errorf("%+v", d)
		}
		time.Sleep(24 * time.Hour)
		if n := len(r.taken()); n != 1 {
			t.Errorf("%d deliveries after a day", n)
		}
		sound(t, store)
	})
}

func TestEventsGoToWhoWantsThem(t *testing.T) {
	paid, expired := endpoint("paid"), endpoint("expired")
	paid.Types, expired.Types = []string{"link.paid", "link.reversed"}, []string{"link.expired"}
	q := office(t, ledger.NewMemory(), &receivers{}, paid, expired, endpoint("all"))
	e := event(t, 1)
	keys := func(names ...string) string {
		writes, err := q.Writes(e, names...)
		if err != nil {
			return err.Error()
		}
		var list []string
		for _, w := range writes {
			if name, ok := strings.CutPrefix(string(w.Key), deliverySpace+e.ID+"/"); ok {
				list = append(list, name)
			}
		}
		return strings.Join(list, " ")
	}
	for names, want := range map[string]string{"": "all paid", "expired": "", "paid": "paid", "paid paid all": "all paid", "nobody": `webhook: there is no endpoint "nobody"`} {
		if got := keys(strings.Fields(names)...); got != want {
			t.Errorf("%q: %q instead of %q", names, got, want)
		}
	}
	e.ID = "../" + e.ID[3:]
	if got := keys(); !strings.Contains(got, "id") {
		t.Errorf("a bad id: %s", got)
	}
}

// The largest event for the most endpoints fits into a commit, with room for
// what it is about.
func TestTheEntriesOfAnEventFitIntoACommit(t *testing.T) {
	var all []Endpoint
	for n := range MaxEndpoints {
		all = append(all, endpoint(fmt.Sprintf("%s%d", strings.Repeat("x", 62), n)[:63]+string(rune('a'+n))))
	}
	q := office(t, ledger.NewMemory(), &receivers{}, all...)
	e, err := NewEvent(seeded(1), "link.paid", time.Now(), json.RawMessage(`"`+strings.Repeat("<", MaxData-2)+`"`)) // each of them becomes six
	if err != nil {
		t.Fatal(err)
	}
	writes, err := q.Writes(e)
	if err != nil || len(writes) != 2*MaxEndpoints {
		t.Fatal(len(writes), err)
	}
	if err := ledger.CheckCommit(append(writes, ledger.Write{Key: "link", Value: make([]byte, 256<<10)})); err != nil {
		t.Error(err)
	}
	if _, err := New(Config{Store: ledger.NewMemory(), Sender: &receivers{}, Endpoints: append(all, endpoint("one-more"))}); err == nil {
		t.Error("one more endpoint is accepted")
	}
}

func TestNewEventTakesOnlyWhatItCanSend(t *testing.T) {
	for name, try := range map[string]func() (Event, error){
		"no data": func() (Event, error) { return NewEvent(seeded(1), "link.paid", time.Now(), nil) },
		"no JSON": func() (Event, error) { return NewEvent(seeded(1), "link.paid", time.Now(), json.RawMessage("{")) },
		"long": func() (Event, error) {
			return NewEvent(seeded(1), "link.paid", time.Now(), json.RawMessage(`"`+strings.Repeat("x", MaxData)+`"`))
		},
		"type": func() (Event, error) {
			return NewEvent(seeded(1), "link.paid\r\nX: y", time.Now(), json.RawMessage("{}"))
		},
		"no type": func() (Event, error) { return NewEvent(seeded(1), "", time.Now(), json.RawMessage("{}")) },
		"no bits": func() (Event, error) {
			return NewEvent(strings.NewReader("short"), "link.paid", time.Now(), json.RawMessage("{}"))
		},
		"no date": func() (Event, error) { return NewEvent(seeded(1), "link.paid", time.Time{}, json.RawMessage("{}")) },
	} {
		if _, err := try(); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	e, err := NewEvent(seeded(1), "link.paid", time.Now(), json.RawMessage("{ }"))
	if err != nil || len(e.ID) != 26 || string(e.Data) != "{}" {
		t.Errorf("%+v, %v", e, err)
	}
}

// The attempts come when the table says, the last one before three days are
// over, and then no more.
func TestFailedAttemptsAreRepeatedForThreeDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, r := ledger.NewMemory(), &receivers{answer: always(500)}
		q := office(t, store, r)
		run(t, q)
		e := event(t, 1)
		began := time.Now()
		post(t, store, q, e)
		time.Sleep(tryFor + time.Hour)
		want := []time.Duration{0, 5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour, 24 * time.Hour}
		got := r.taken()
		if len(got) != len(want) {
			t.Fatalf("%d attempts instead of %d", len(got), len(want))
		}
		at := began
		for i, p := range got {
			at = at.Add(want[i])
			if late := p.at.Sub(at); late < 0 || late > time.Second {
				t.Errorf("attempt %d is %s late", i+1, late)
			}
			at = p.at
			if p.id != e.ID || !bytes.Equal(p.body, got[0].body) {
				t.Errorf("attempt %d is another event", i+1)
			}
			if err := Verify(secretOne, p.header, p.body, p.at); err != nil {
				t.Errorf("attempt %d: %v", i+1, err)
			}
		}
		if d := only(t, q, e); d.State != Failed || d.LastStatus != 500 || !strings.Contains(d.LastError, "500 Internal Server Error; it was tried for three days") {
			t.Errorf("%+v", d)
		}
		sound(t, store)
	})
}

func TestPausesAreSpread(t *testing.T) {
	for n := range 15 {
		least, most := pause(n, 0), pause(n, 0.999999)
		base := pauses[min(max(n, 1), len(pauses))-1]
		if least != base*8/10 || most <= base || most > base*12/10 {
			t.Errorf("after %d: %s to %s", n, least, most)
		}
	}
}

func TestGoneEndsAtOnceAndRetryAfterIsHeeded(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		code  int
		after string
		state State
		pause time.Duration
	}{
		"gone":            {410, "", Failed, 0},
		"soon":            {503, "1", Waiting, 5 * time.Second}, // not sooner than our own
		"later":           {429, "3600", Waiting, time.Hour},
		"much later":      {429, "31536000", Waiting, 24 * time.Hour},
		"a date":          {503, "Fri, 02 Jan 2026 05:04:05 GMT", Waiting, 2 * time.Hour},
		"a past date":     {503, "Fri, 02 Jan 2025 05:04:05 GMT", Waiting, 5 * time.Second},
		"nonsense":        {503, "-5", Waiting, 5 * time.Second},
		"overflow":        {503, "99999999999999999999", Waiting, 5 * time.Second},
		"not found":       {404, "", Waiting, 5 * time.Second},
		"redirect":        {302, "", Waiting, 5 * time.Second},
		"done":            {204, "3600", Delivered, 0},
		"early hints":     {103, "", Waiting, 5 * time.Second},
		"no known status": {999, "", Waiting, 5 * time.Second},
	} {
		resp := &http.Response{StatusCode: c.code, Header: http.Header{}, Body: http.NoBody}
		if c.after != "" {
			resp.Header.Set("Retry-After", c.after)
		}
		r := read(resp, at)
		d := Delivery{State: Waiting, Due: at, Since: at}
		d.settle(&r, at, func() float64 { return 0.5 })
		if d.State != c.state || c.state == Waiting && !d.Due.Equal(at.Add(c.pause)) || c.state != Waiting && (!d.Due.IsZero() || !d.Ended.Equal(at)) {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// A receiver that hangs holds up its own events only, and there are never more
// deliveries at once than there may be.
func TestOneDeadReceiverDoesNotHoldUpTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receivers{answer: func(ctx context.Context, p parcel) (int, error) {
			if p.endpoint == "dead.example" {
				<-ctx.Done()
				return 0, ctx.Err()
			}
			time.Sleep(10 * time.Millisecond)
			return 200, nil
		}}
		store := ledger.NewMemory()
		q := office(t, store, r, endpoint("dead"), endpoint("live"), endpoint("other"))
		for n := range 200 {
			post(t, store, q, event(t, n))
		}
		run(t, q)
		time.Sleep(5 * time.Second)
		count := map[string]int{}
		for _, p := range r.taken() {
			count[p.endpoint]++
		}
		if count["live.example"] != 200 || count["other.example"] != 200 {
			t.Errorf("after five seconds %v", count)
		}
		if r.most["dead.example"] > few || r.mostOf > defaultAtOnce {
			t.Errorf("%v at once, %d in all", r.most, r.mostOf)
		}
		sound(t, store)
	})
}

func TestThereAreNeverMoreAtOnceThanMayBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receivers{answer: func(context.Context, parcel) (int, error) {
			time.Sleep(time.Second)
			return 200, nil
		}}
		store := ledger.NewMemory()
		var all []Endpoint
		for n := range MaxEndpoints {
			all = append(all, endpoint(fmt.Sprintf("shop-%d", n)))
		}
		q := office(t, store, r, all...)
		q.atOnce = 10
		post(t, store, q, event(t, 1), event(t, 2))
		run(t, q)
		time.Sleep(10 * time.Second)
		if len(r.taken()) != 2*MaxEndpoints || r.mostOf != q.atOnce {
			t.Errorf("%d deliveries, %d at once", len(r.taken()), r.mostOf)
		}
	})
}

// With room for one delivery, endpoints with much to do take turns.
func TestEndpointsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receivers{answer: func(context.Context, parcel) (int, error) {
			time.Sleep(time.Second)
			return 200, nil
		}}
		store := ledger.NewMemory()
		q := office(t, store, r, endpoint("a"), endpoint("b"), endpoint("c"))
		q.atOnce = 1
		for n := range 20 {
			post(t, store, q, event(t, n))
		}
		run(t, q)
		time.Sleep(29500 * time.Millisecond)
		count := map[string]int{}
		for _, p := range r.taken() {
			count[p.endpoint]++
		}
		if count["a.example"] != 10 || count["b.example"] != 10 || count["c.example"] != 10 {
			t.Errorf("after 30 deliveries: %v", count)
		}
	})
}

func TestProcessesOnOneStoreDeliverOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dice := rand.New(rand.NewPCG(1, 1))
		var mu sync.Mutex
		r := &receivers{answer: func(context.Context, parcel) (int, error) {
			mu.Lock()
			wait := time.Duration(dice.IntN(1000)) * time.Millisecond
			mu.Unlock()
			time.Sleep(wait)
			return 200, nil
		}}
		store := ledger.NewMemory()
		queues := []*Queue{office(t, store, r), office(t, store, r), office(t, store, r)}
		run(t, queues...)
		for n := range 100 {
			post(t, store, queues[n%3], event(t, n))
			for _, q := range queues {
				q.Wake() // so that they meet
			}
		}
		time.Sleep(5 * time.Minute)
		seen := map[string]int{}
		for _, p := range r.taken() {
			seen[p.id]++
		}
		for id, n := range seen {
			if n != 1 {
				t.Errorf("%s was delivered %d times", id, n)
			}
		}
		if len(seen) != 100 {
			t.Errorf("%d events were delivered", len(seen))
		}
		sound(t, store)
	})
}

// What another process has written is found although nobody wakes this one.
func TestOthersEventsAreFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, r := ledger.NewMemory(), &receivers{}
		run(t, office(t, store, r))
		synctest.Wait()
		post(t, store, office(t, store, r), event(t, 1))
		time.Sleep(lookEvery + time.Millisecond)
		if len(r.taken()) != 1 {
			t.Errorf("%d deliveries", len(r.taken()))
		}
	})
}

// mortal is a store whose process can die: from then on nothing it does
// reaches the store.
type mortal struct {
	ledger.Store
	mu   sync.Mutex
	dead error
}

func (m *mortal) die(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = err
}

func (m *mortal) err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

func (m *mortal) Get(ctx context.Context, k ledger.Key) (ledger.Entry, error) {
	if err := m.err(); err != nil {
		return ledger.Entry{}, err
	}
	return m.Store.Get(ctx, k)
}

func (m *mortal) Scan(ctx context.Context, prefix, after ledger.Key, limit int) ([]ledger.Entry, error) {
	if err := m.err(); err != nil {
		return nil, err
	}
	return m.Store.Scan(ctx, prefix, after, limit)
}

func (m *mortal) Commit(ctx context.Context, writes ...ledger.Write) error {
	if err := m.err(); err != nil {
		return err
	}
	return m.Store.Commit(ctx, writes...)
}

func TestACrashAfterThePostDeliversAgainWithTheSameID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := ledger.NewMemory()
		first := &mortal{Store: disk}
		r := &receivers{}
		r.answer = func(context.Context, parcel) (int, error) {
			first.die(ledger.ErrClosed)
			return 200, nil
		}
		q := office(t, first, r)
		stop := run(t, q)
		e := event(t, 1)
		post(t, first, q, e)
		synctest.Wait()
		stop()
		r.answer = nil
		again := office(t, disk, r)
		run(t, again)
		time.Sleep(leaseTime - time.Second)
		if n := len(r.taken()); n != 1 {
			t.Fatalf("%d deliveries while the lease lasts", n)
		}
		time.Sleep(time.Minute)
		got := r.taken()
		if len(got) != 2 || got[0].id != got[1].id || !bytes.Equal(got[0].body, got[1].body) {
			t.Fatalf("%d deliveries", len(got))
		}
		if d := only(t, again, e); d.State != Delivered {
			t.Errorf("%+v", d)
		}
		sound(t, disk)
	})
}

// A store that is away is asked now and then, and what waits goes out when it
// is back.
func TestAStoreThatIsAwayIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		store, r := &mortal{Store: ledger.NewMemory()}, &receivers{}
		q := office(t, store, r)
		q.log = slog.New(slog.NewTextHandler(&logged, nil))
		post(t, store, q, event(t, 1))
		store.die(errors.New("the database is away"))
		stop := run(t, q)
		time.Sleep(time.Hour)
		store.die(nil)
		time.Sleep(lookEvery + time.Second)
		stop()
		if len(r.taken()) != 1 {
			t.Errorf("%d deliveries", len(r.taken()))
		}
		if n := strings.Count(logged.String(), "webhooks wait for the ledger"); n != 1 {
			t.Errorf("it was logged %d times", n)
		}
	})
}

// Whatever fails and whoever dies, each event that was committed arrives, and
// the queue stays sound.
func TestNothingIsLostWhateverFails(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			dice := rand.New(rand.NewPCG(seed, 2))
			var mu sync.Mutex
			roll := func(n int) int {
				mu.Lock()
				defer mu.Unlock()
				return dice.IntN(n)
			}
			disk := ledger.NewMemory()
			r := &receivers{answer: func(context.Context, parcel) (int, error) {
				time.Sleep(time.Duration(roll(9000)) * time.Millisecond)
				switch roll(3) {
				case 0:
					return 0, errors.New("the connection broke")
				case 1:
					return 500, nil
				}
				return 200, nil
			}}
			n := 0
			for range 10 { // generations
				stores := []*mortal{{Store: disk}, {Store: disk}}
				queues := []*Queue{office(t, stores[0], r, endpoint("a"), endpoint("b")), office(t, stores[1], r, endpoint("a"), endpoint("b"))}
				stop := run(t, queues...)
				for range 5 {
					n++
					post(t, disk, queues[roll(2)], event(t, n))
					time.Sleep(time.Duration(roll(10000)) * time.Millisecond)
				}
				stores[roll(2)].die(ledger.ErrClosed)
				time.Sleep(time.Duration(roll(10000)) * time.Millisecond)
				stop()
			}
			last := office(t, disk, &receivers{}, endpoint("a"), endpoint("b"))
			run(t, last)
			time.Sleep(24 * time.Hour)
			list, _, err := last.List(t.Context(), Delivered, "", MaxList)
			if err != nil || len(list) != 2*n {
				t.Errorf("seed %d: %d of %d were delivered: %v", seed, len(list), 2*n, err)
			}
			if stored := sound(t, disk); stored != 2*n {
				t.Errorf("seed %d: %d are stored", seed, stored)
			}
		})
	}
}

func TestAnEndpointThatIsNoLongerThereIsSaidSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, r := ledger.NewMemory(), &receivers{}
		e := event(t, 1)
		post(t, store, office(t, store, r), e)
		q := office(t, store, r, endpoint("another"))
		stop := run(t, q)
		time.Sleep(time.Minute)
		if d := only(t, q, e); d.State != Waiting || !strings.Contains(d.LastError, "no webhook of this name") {
			t.Errorf("%+v", d)
		}
		stop()
		run(t, office(t, store, r)) // it is back
		time.Sleep(time.Hour)
		if d := only(t, q, e); d.State != Delivered {
			t.Errorf("%+v", d)
		}
	})
}

func TestResendDeliversAgainWithTheSameID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, r := ledger.NewMemory(), &receivers{answer: always(410)}
		q := office(t, store, r, endpoint("a"), endpoint("b"))
		run(t, q)
		e := event(t, 1)
		post(t, store, q, e)
		time.Sleep(time.Hour)
		if list, _, _ := q.List(t.Context(), Failed, "", 10); len(list) != 2 {
			t.Fatalf("%d have failed", len(list))
		}
		r.mu.Lock()
		r.answer = nil
		r.mu.Unlock()
		if n, err := q.Resend(t.Context(), e.ID, "b"); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		synctest.Wait()
		if n, err := q.Resend(t.Context(), e.ID); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		synctest.Wait()
		count := map[string]int{}
		for _, p := range r.taken() {
			if p.id != e.ID {
				t.Errorf("event %s", p.id)
			}
			count[p.endpoint]++
		}
		if count["a.example"] != 2 || count["b.example"] != 3 {
			t.Errorf("%v", count)
		}
		if list, _, _ := q.List(t.Context(), Delivered, "", 10); len(list) != 2 {
			t.Errorf("%d were delivered", len(list))
		}
		for _, id := range []string{"", "x", event(t, 2).ID, e.ID + "/a", strings.ToUpper(e.ID)} {
			if _, err := q.Resend(t.Context(), id); !errors.Is(err, ErrNotFound) {
				t.Errorf("%q: %v", id, err)
			}
		}
		for _, name := range []string{"c", "a/b", ""} {
			if _, err := q.Resend(t.Context(), e.ID, name); !errors.Is(err, ErrNotFound) {
				t.Errorf("endpoint %q: %v", name, err)
			}
		}
		sound(t, store)
	})
}

// What is being sent at the moment is not sent twice because somebody asks for
// it.
func TestResendLeavesWhatIsUnderWayAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := ledger.NewMemory()
		r := &receivers{answer: func(context.Context, parcel) (int, error) {
			time.Sleep(3 * time.Second)
			return 200, nil
		}}
		q := office(t, store, r)
		run(t, q)
		e := event(t, 1)
		post(t, store, q, e)
		time.Sleep(time.Second)
		if n, err := q.Resend(t.Context(), e.ID); n != 1 || err != nil {
			t.Error(n, err)
		}
		time.Sleep(time.Hour)
		if n := len(r.taken()); n != 1 {
			t.Errorf("%d deliveries", n)
		}
	})
}

func TestListPagesThroughEveryState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, r := ledger.NewMemory(), &receivers{}
		r.answer = func(_ context.Context, p parcel) (int, error) {
			return map[string]int{"good.example": 200, "bad.example": 500, "gone.example": 410}[p.endpoint], nil
		}
		q := office(t, store, r, endpoint("good"), endpoint("bad"), endpoint("gone"))
		run(t, q)
		for n := range 23 {
			post(t, store, q, event(t, n))
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		for state, want := range map[State]int{"": 69, Delivered: 23, Waiting: 23, Failed: 23} {
			for _, size := range []int{1, 5, 23, 1000} {
				seen := map[string]bool{}
				after := ""
				for pages := 0; pages == 0 || after != ""; pages++ {
					list, next, err := q.List(t.Context(), state, after, size)
					if err != nil || pages > want || len(list) > size || next != "" && len(list) != size {
						t.Fatalf("%s by %d: %d, %q, %v", state, size, len(list), next, err)
					}
					for i, d := range list {
						if state != "" && d.State != state || seen[d.Event.ID+d.Endpoint] {
							t.Fatalf("%s by %d: %+v", state, size, d)
						}
						if i > 0 && d.Ended.Before(list[i-1].Ended) && state != "" {
							t.Errorf("%s is out of order", state)
						}
						seen[d.Event.ID+d.Endpoint] = true
					}
					after = next
				}
				if len(seen) != want {
					t.Errorf("%s by %d: %d instead of %d", state, size, len(seen), want)
				}
			}
		}
		for _, bad := range []string{"a b", strings.Repeat("x", 600)} {
			if _, _, err := q.List(t.Context(), "", bad, 10); err == nil {
				t.Errorf("after %.10q", bad)
			}
		}
		if _, _, err := q.List(t.Context(), "OTHER", "", 10); err == nil {
			t.Error("another state")
		}
		if _, _, err := q.List(t.Context(), "", "", 0); err == nil {
			t.Error("no limit")
		}
	})
}

func TestWhatHasEndedIsForgottenInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, r := ledger.NewMemory(), &receivers{}
		r.answer = func(_ context.Context, p parcel) (int, error) {
			return map[string]int{"good.example": 200, "gone.example": 410}[p.endpoint], nil
		}
		q := office(t, store, r, endpoint("good"), endpoint("gone"))
		const many = sweepMost + 50
		for n := range many {
			post(t, store, q, event(t, n))
		}
		stop := run(t, q)
		time.Sleep(time.Minute)
		stop()
		left := func() (n int) {
			for e, state := range map[State]State{Delivered: Delivered, Failed: Failed} {
				list, _, err := q.List(t.Context(), e, "", MaxList)
				if err != nil {
					t.Fatal(state, err)
				}
				n += len(list)
			}
			return n
		}
		for _, step := range []struct {
			wait time.Duration
			want int
		}{
			{KeepDelivered - time.Hour, 2 * many},
			{3 * time.Hour, many},
			{KeepFailed - KeepDelivered - 4*time.Hour, many},
			{4 * time.Hour, 0},
		} {
			time.Sleep(step.wait)
			stop := run(t, q)
			time.Sleep(time.Minute)
			stop()
			if n := left(); n != step.want {
				t.Errorf("%d deliveries are left instead of %d", n, step.want)
			}
			sound(t, store)
		}
		rest, err := store.Scan(t.Context(), "hook", "", 10)
		if err != nil || len(rest) > 0 {
			t.Errorf("%d entries are left: %v", len(rest), err)
		}
	})
}

func TestSecretsAreNowhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		store := ledger.NewMemory()
		p := endpoint("shop")
		p.Secrets = append(p.Secrets, secretTwo)
		r := &receivers{answer: func(context.Context, parcel) (int, error) {
			return 0, fmt.Errorf("asking %s with %s\nfailed: %s", p.URL, secretTwo, strings.Repeat("long", 1000))
		}}
		q, err := New(Config{Store: store, Sender: r, Endpoints: []Endpoint{p}, Log: slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, q)
		e := event(t, 1)
		post(t, store, q, e)
		time.Sleep(24 * time.Hour)
		stop()
		d := only(t, q, e)
		if len(d.LastError) > maxProblem+100 || !strings.Contains(d.LastError, "[redacted]") || strings.Contains(d.LastError, "\n") {
			t.Errorf("%q", d.LastError)
		}
		all, err := store.Scan(t.Context(), "", "", ledger.MaxScan)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			_, _ = fmt.Fprintf(&out, "%s %s\n", e.Key, e.Value)
		}
		_, _ = fmt.Fprintf(&out, "%v %+v %#v %s %v", p, p, p, p, []*Endpoint{&p})
		slog.New(slog.NewJSONHandler(&out, nil)).Info("endpoint", "endpoint", p, "list", []Endpoint{p})
		if err := json.NewEncoder(&out).Encode([]Endpoint{p}); err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func(*Endpoint){
			"short":  func(p *Endpoint) { p.Secrets = []string{secretOne[:20]} },
			"three":  func(p *Endpoint) { p.Secrets = []string{secretOne, secretTwo, secretOne} },
			"none":   func(p *Endpoint) { p.Secrets = nil },
			"url":    func(p *Endpoint) { p.URL = "https://[shop.example/path-secret%zz" },
			"no url": func(p *Endpoint) { p.URL = "/path-secret" },
			"name":   func(p *Endpoint) { p.Name = "a/b" },
			"upper":  func(p *Endpoint) { p.Name = "Shop" },
			"type":   func(p *Endpoint) { p.Types = []string{"link paid"} },
		} {
			bad := p
			change(&bad)
			_, err := New(Config{Store: store, Sender: r, Endpoints: []Endpoint{bad}})
			if err == nil {
				t.Errorf("%s is accepted", name)
			}
			_, _ = fmt.Fprintln(&out, err)
		}
		if _, err := New(Config{Store: store, Sender: r, Endpoints: []Endpoint{p, p}}); err == nil {
			t.Error("two of one name")
		}
		for _, secret := range []string{secretOne, secretTwo, secretOne[:20], "path-secret", "query-secret"} {
			if i := strings.Index(out.String(), secret); i >= 0 {
				t.Errorf("%s is in %s", secret, out.String()[max(0, i-200):i])
			}
		}
	})
}

func TestCheckFindsWhatIsNotListed(t *testing.T) {
	q := office(t, ledger.NewMemory(), &receivers{})
	e := event(t, 1)
	writes, err := q.Writes(e)
	if err != nil || len(writes) != 2 {
		t.Fatal(writes, err)
	}
	record, place := writes[0], writes[1]
	ended := place
	ended.Key = endedAs(Delivered) + ledger.Key(instant(e.Created)+"/"+e.ID+"/shop")
	for name, c := range map[string]struct {
		entries []ledger.Write
		want    string
	}{
		"all is well": {[]ledger.Write{record, place}, ""},
		"no place":    {[]ledger.Write{record}, "not listed"},
		"no record":   {[]ledger.Write{place}, "not stored"},
		"two places":  {[]ledger.Write{record, place, ended}, "where it is not"},
		"no delivery": {[]ledger.Write{{Key: record.Key, Value: []byte("{}")}, place}, "cannot be read"},
		"bad place":   {[]ledger.Write{record, place, {Key: "hookdue/shop/x/y", Value: []byte{}}}, "no place"},
		"other place": {[]ledger.Write{record, place, {Key: "hookend/x", Value: []byte{}}}, "no place"},
	} {
		store := ledger.NewMemory()
		if err := store.Commit(t.Context(), c.entries...); err != nil {
			t.Fatal(err)
		}
		_, found, err := Check(t.Context(), store)
		if err != nil || len(found) > 1 || (len(found) == 1) != (c.want != "") || len(found) == 1 && !strings.Contains(found[0].Problem, c.want) {
			t.Errorf("%s: %v, %v", name, found, err)
		}
		// The ledger's own check knows nothing of them, and finds nothing.
		s, err := ledger.New(store, "one", time.Now).Check(t.Context())
		if err != nil || len(s.Findings) > 0 {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

// What cannot be read or is listed wrongly does not keep the rest, nor the
// processor, busy.
func TestABrokenEntryDoesNotStopTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, r := ledger.NewMemory(), &receivers{}
		q := office(t, store, r)
		for n, broken := range [][]byte{[]byte("{"), nil, []byte("{}")} {
			writes, err := q.Writes(event(t, n))
			if err != nil {
				t.Fatal(err)
			}
			if writes[0].Value = broken; broken == nil {
				writes = writes[1:]
			}
			if err := store.Commit(t.Context(), writes...); err != nil {
				t.Fatal(err)
			}
		}
		if err := store.Commit(t.Context(), ledger.Write{Key: "hookdue/!", Value: []byte{}}, ledger.Write{Key: "hookdue/shop/0", Value: []byte{}}, ledger.Write{Key: "hookend/DELIVERED/0", Value: []byte{}}); err != nil {
			t.Fatal(err)
		}
		run(t, q)
		post(t, store, q, event(t, 10))
		time.Sleep(3 * time.Hour)
		if got := r.taken(); len(got) != 1 {
			t.Errorf("%d deliveries", len(got))
		}
	})
}

func FuzzDecode(f *testing.F) {
	e, err := NewEvent(seeded(1), "link.paid", time.Unix(1e9, 0), json.RawMessage(`{"a":[1]}`))
	if err != nil {
		f.Fatal(err)
	}
	writes, err := enqueue(e, "shop")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(writes[0].Key), writes[0].Value)
	f.Add("hook/x/y", []byte("{}"))
	f.Fuzz(func(t *testing.T, key string, doc []byte) {
		d, err := decode(ledger.Entry{Key: ledger.Key(key), Version: 1, Value: doc})
		if err != nil {
			return
		}
		if err := ledger.Key(key).Check(); err != nil {
			t.Errorf("%q is accepted", key)
		}
		next := *d
		writes, err := d.move(&next)
		if err != nil {
			return // a time that JSON does not have
		}
		again, err := decode(ledger.Entry{Key: writes[0].Key, Version: 2, Value: writes[0].Value})
		if err != nil {
			t.Fatalf("what was stored cannot be read: %v", err)
		}
		if again.place() != next.place() {
			t.Errorf("%s has become %s", next.place(), again.place())
		}
	})
}
