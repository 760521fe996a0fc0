package till_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A door is a server before a shop, with a client for it.
type door struct {
	url    string
	client *http.Client
}

// doors opens one for each version of HTTP.
func (s *shop) doors() map[string]*door {
	s.t.Helper()
	two := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	two.EnableHTTP2 = true
	two.StartTLS()
	s.t.Cleanup(two.Close)
	return map[string]*door{
		"HTTP/1.1": {s.url, &http.Client{Transport: transport}},
		"HTTP/2.0": {two.URL, two.Client()},
	}
}

// knock sends a request through a door. informed are the status codes of
// informational answers.
func (d *door) knock(t testing.TB, method string, p *purse) (a *reply, informed []string) {
	t.Helper()
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
		informed = append(informed, strconv.Itoa(code))
		return nil
	}})
	r, err := http.NewRequestWithContext(ctx, method, d.url+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(p.name, p.value)
	resp, err := d.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return &reply{resp.StatusCode, resp.Header, resp.Trailer, string(body)}, informed
}

// A hearse is a facilitator with which every payment dies.
type hearse struct {
	facilitatortest.Fake
	ledger *ledger.Ledger
}

func (h *hearse) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, _ payment.Amount) (*payment.Settlement, error) {
	id, err := facilitator.Identify(p, o)
	if err != nil {
		return nil, err
	}
	for _, next := range []ledger.State{ledger.Intent, ledger.Dead} {
		if _, err := h.ledger.Update(ctx, id.Key, func(r *ledger.Record) error {
			r.Reason = "the nonce was used"
			return r.To(next)
		}); err != nil {
			return nil, err
		}
	}
	return nil, payment.Invalid(payment.EVMTransactionFailed, "dead")
}

// tricks are what an upstream can do on the way to its answer, each of which
// has let something out of one product or another.
var tricks = map[string]struct {
	before, after func(t *testing.T, w http.ResponseWriter) // the status is written
}{
	"nothing": {},
	"a trailer that is announced": {
		func(_ *testing.T, w http.ResponseWriter) { w.Header().Set("Trailer", "X-Secret-Sum") },
		func(_ *testing.T, w http.ResponseWriter) { w.Header().Set("X-Secret-Sum", "secret") },
	},
	"a trailer that is not": {after: func(_ *testing.T, w http.ResponseWriter) { w.Header().Set(http.TrailerPrefix+"X-Secret-Too", "secret") }},
	"early hints": {before: func(_ *testing.T, w http.ResponseWriter) {
		w.Header().Set("Link", "</secret.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusProcessing)
	}},
	"headers": {before: func(_ *testing.T, w http.ResponseWriter) {
		for name, value := range map[string]string{
			"Set-Cookie": "session=secret", "X-Secret": "1", "Etag": `"secret"`, "Alt-Svc": `h3="secret:443"`, "Content-Type": "application/secret",
			"Content-Encoding": "secret", "Location": "/secret", "Last-Modified": "secret", "Content-Disposition": "secret", "Refresh": "1; url=secret",
			"Payment-Response": "secret", "Www-Authenticate": "secret", "Strict-Transport-Security": "secret", "Content-Range": "bytes 0-9/secret",
		} {
			w.Header().Set(name, value)
		}
	}},
	"a length": {before: func(_ *testing.T, w http.ResponseWriter) { w.Header().Set("Content-Length", "12") }},
	"the connection's headers": {before: func(_ *testing.T, w http.ResponseWriter) {
		w.Header().Set("Connection", "secret")
		w.Header().Set("Keep-Alive", "secret")
		w.Header().Set("Upgrade", "secret")
	}},
	"flushing": {after: func(t *testing.T, w http.ResponseWriter) {
		if _, ok := w.(http.Flusher); ok || !errors.Is(http.NewResponseController(w).Flush(), http.ErrNotSupported) {
			t.Error("a held answer can be flushed")
		}
	}},
	"hijacking": {after: func(t *testing.T, w http.ResponseWriter) {
		if _, _, err := http.NewResponseController(w).Hijack(); !errors.Is(err, http.ErrNotSupported) {
			t.Error("a held answer can be hijacked")
		}
	}},
	"pushing": {before: func(t *testing.T, w http.ResponseWriter) {
		if _, ok := w.(http.Pusher); ok {
			t.Error("a held answer can push")
		}
	}},
	"the controller": {before: func(t *testing.T, w http.ResponseWriter) {
		c := http.NewResponseController(w)
		for _, err := range []error{c.EnableFullDuplex(), c.SetReadDeadline(time.Now()), c.SetWriteDeadline(time.Now())} {
			if !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("a way to the client: %v", err)
			}
		}
		if _, ok := w.(interface{ Unwrap() http.ResponseWriter }); ok {
			t.Error("the client's writer can be had")
		}
	}},
	"reading from": {after: func(t *testing.T, w http.ResponseWriter) {
		if _, ok := w.(io.ReaderFrom); ok {
			t.Error("a held answer reads by itself")
		}
		// Only so that a header says less than the body: it has no effect.
		w.Header().Set("Content-Length", "3")
	}},
	"another status": {after: func(_ *testing.T, w http.ResponseWriter) {
		w.Header().Set("X-Secret", "late")
		w.WriteHeader(http.StatusTeapot)
	}},
	"a body that spills": {after: func(t *testing.T, w http.ResponseWriter) {
		if _, err := io.Copy(w, strings.NewReader(strings.Repeat("more secret ", 20_000))); err != nil && !errors.Is(err, http.ErrBodyNotAllowed) && !errors.Is(err, http.ErrContentLength) {
			t.Error(err)
		}
	}},
}

// T13 of our catalogue of threats: whatever the upstream does, if the money
// does not move nothing of it reaches the client.
func TestNothingLeaksWhateverTheUpstreamDoes(t *testing.T) {
	for failure, c := range map[string]struct {
		settle func(l *ledger.Ledger) payment.Facilitator
		status int
		state  ledger.State
	}{
		"invalid": {func(l *ledger.Ledger) payment.Facilitator {
			return journal(&facilitatortest.Fake{Settling: func(context.Context) error { return payment.Invalid(payment.EVMInsufficientBalance, "poor") }}, l)
		}, http.StatusPaymentRequired, ledger.Released},
		"unavailable": {func(l *ledger.Ledger) payment.Facilitator {
			return journal(&facilitatortest.Fake{Settling: func(context.Context) error { return &payment.UnavailableError{Doing: "dialing"} }}, l)
		}, http.StatusServiceUnavailable, ledger.Released},
		"pending": {func(l *ledger.Ledger) payment.Facilitator {
			return journal(&facilitatortest.Fake{Settled: func(context.Context) error { return &payment.UnavailableError{Doing: "waiting", Pending: true} }}, l)
		}, http.StatusServiceUnavailable, ledger.Intent},
		"dead": {func(l *ledger.Ledger) payment.Facilitator { return &hearse{ledger: l} }, http.StatusPaymentRequired, ledger.Dead},
	} {
		t.Run(failure, func(t *testing.T) {
			t.Parallel()
			b := fakeBank(t)
			b.facilitator = c.settle
			s := open(t, b, till.Held)
			for version, d := range s.doors() {
				for name, trick := range tricks {
					for _, status := range []int{200, 201, 204, 206, 301, 304, 404, 500} {
						s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
							if trick.before != nil {
								trick.before(t, w)
							}
							w.WriteHeader(status)
							_, _ = io.WriteString(w, "secret goods") // some statuses allow no body
							if trick.after != nil {
								trick.after(t, w)
							}
							return nil
						})
						p := s.authorize(payment.V2)
						a, informed := d.knock(t, "GET", p)
						at := fmt.Sprintf("%s, %s with status %d", version, name, status)
						r, err := s.record(p)
						if err != nil {
							t.Fatalf("%s: %v", at, err)
						}
						if status >= 400 { // that costs nothing, and is the upstream's to say
							if a.status != status || a.header.Get(payment.HeaderResponse) != "" || len(informed) != 0 || r.State != ledger.Released {
								t.Errorf("%s: got %d %v, informed by %v, it is %s", at, a.status, a.header, informed, r.State)
							}
							continue
						}
						if a.status != c.status || r.State != c.state {
							t.Errorf("%s: got %d, it is %s", at, a.status, r.State)
						}
						noSecrets(t, a, informed)
						if t.Failed() {
							t.Fatal(at)
						}
					}
				}
			}
		})
	}
}

// What is held back reaches the client whole once the money has moved, over
// every version of HTTP, and again from the ledger.
func TestHeldAnswersComeOutAsTheyWereMade(t *testing.T) {
	goods := bytes.Repeat([]byte("0123456789abcdef"), 100_000) // more than memory, and more than is stored in one piece
	s := open(t, fakeBank(t), till.Held)
	for version, d := range s.doors() {
		for name, c := range map[string]struct {
			upstream till.Upstream
			body     []byte
			length   string
			trailer  string
		}{
			"small": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
				_, err := w.Write(goods[:100])
				return err
			}, goods[:100], "100", ""},
			"nothing": {func(http.ResponseWriter, *http.Request, *till.Sale) error { return nil }, nil, "0", ""},
			"large, copied": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
				_, err := io.Copy(w, bytes.NewReader(goods))
				return err
			}, goods, strconv.Itoa(len(goods)), ""},
			"large, with its length": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
				w.Header().Set("Content-Length", strconv.Itoa(len(goods)))
				for rest := goods; len(rest) > 0; rest = rest[min(len(rest), 7777):] {
					if _, err := w.Write(rest[:min(len(rest), 7777)]); err != nil {
						return err
					}
				}
				return nil
			}, goods, strconv.Itoa(len(goods)), ""},
			"large, with trailers": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
				w.Header().Set("Trailer", "X-Sum")
				_, err := w.Write(goods)
				w.Header().Set("X-Sum", "42")
				w.Header().Set("X-Late", "not announced")
				return err
			}, goods, "", "42"},
			"a length that is no number": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
				w.Header().Set("Content-Length", "many")
				_, err := w.Write(goods[:10])
				return err
			}, goods[:10], "10", ""},
		} {
			s.sells(c.upstream)
			p := s.authorize(payment.V2)
			for i, what := range []string{"first", "again"} {
				a, _ := d.knock(t, "GET", p)
				if a.status != 200 || sha256.Sum256([]byte(a.body)) != sha256.Sum256(c.body) {
					t.Errorf("%s, %s, %s: %d with %d bytes", version, name, what, a.status, len(a.body))
				}
				if a.header.Get("Content-Length") != c.length || a.trailer.Get("X-Sum") != c.trailer || a.header.Get("X-Late") != "" || len(a.trailer) > 1 {
					t.Errorf("%s, %s, %s: length %q, trailers %v", version, name, what, a.header.Get("Content-Length"), a.trailer)
				}
				if s.sale().Replayed != (i > 0) {
					t.Errorf("%s, %s, %s: %+v", version, name, what, s.sale())
				}
			}
		}
	}
}

func TestHEADOfAHeldAnswerSaysWhatGETWould(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.offers(func(r *till.Route) { r.MaxHeld = 1000 })
	for name, c := range map[string]struct {
		upstream till.Upstream
		length   string
	}{
		"length only": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			w.Header().Set("Content-Length", "5000000000") // larger than can be held, but nobody will
			return nil
		}, "5000000000"},
		"body only": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			_, err := w.Write(make([]byte, 4000))
			return err
		}, "4000"},
		"neither": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			w.WriteHeader(http.StatusOK)
			return nil
		}, ""},
	} {
		s.sells(c.upstream)
		p := s.authorize(payment.V2)
		a := s.ask("HEAD", "/", "", p)
		s.wantPaid(a, p, 200, "")
		if a.header.Get("Content-Length") != c.length {
			t.Errorf("%s: length %q, want %q", name, a.header.Get("Content-Length"), c.length)
		}
	}
}

// What an upstream announced and did not deliver is not sold.
func TestShortAndLongAnswersCostNothing(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.offers(func(r *till.Route) { r.MaxHeld = 100_000 })
	for name, c := range map[string]struct {
		upstream till.Upstream
		status   int
	}{
		"shorter than announced": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			w.Header().Set("Content-Length", "10")
			_, err := io.WriteString(w, "secret")
			return err
		}, http.StatusBadGateway},
		"announced as too long": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			w.Header().Set("Content-Length", "100001")
			if _, err := io.WriteString(w, "secret"); err == nil {
				t.Error("it may write what cannot be held")
			}
			panic(http.ErrAbortHandler) // as a reverse proxy does
		}, http.StatusBadGateway},
		"too long, aborted": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			for {
				if _, err := io.WriteString(w, strings.Repeat("secret", 1000)); err != nil {
					panic(http.ErrAbortHandler)
				}
			}
		}, http.StatusBadGateway},
		"a switch of protocols": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			w.Header().Set("Upgrade", "secret")
			w.WriteHeader(http.StatusSwitchingProtocols)
			return nil
		}, http.StatusNotImplemented},
	} {
		s.sells(c.upstream)
		p := s.authorize(payment.V2)
		a := s.ask("GET", "/", "", p)
		if a.status != c.status || !strings.Contains(a.body, "not been charged") || strings.Contains(a.body, "secret") {
			t.Errorf("%s: %d %q", name, a.status, a.body)
		}
		noSecrets(t, a, nil)
		if r, err := s.record(p); err != nil || r.State != ledger.Released {
			t.Errorf("%s: it is %s, %v", name, r.State, err)
		}
	}
	// One byte more than announced is refused, and what was announced is sold.
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		w.Header().Set("Content-Length", "5")
		if _, err := io.WriteString(w, "goods"); err != nil {
			t.Error(err)
		}
		if _, err := io.WriteString(w, "!"); !errors.Is(err, http.ErrContentLength) {
			t.Errorf("more than announced: %v", err)
		}
		return nil
	})
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask("GET", "/", "", p), p, 200, "goods")
	s.want(1, 5)
}

// An upstream that never ends is cut off after its time, and answered.
func TestUpstreamThatNeverEndsIsCutOff(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.offers(func(r *till.Route) { r.Upstream = 50 * time.Millisecond })
	for name, upstream := range map[string]till.Upstream{
		"and aborts": func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			_, _ = io.WriteString(w, "secret")
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		},
		"and does not look at its context": func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			for {
				if _, err := io.WriteString(w, "s"); err != nil {
					return nil
				}
				time.Sleep(time.Millisecond)
			}
		},
	} {
		s.sells(upstream)
		p := s.authorize(payment.V2)
		a := s.ask("GET", "/", "", p)
		if a.status != http.StatusGatewayTimeout || !strings.Contains(a.body, "not been charged") {
			t.Errorf("%s: %d %q", name, a.status, a.body)
		}
		s.awaitState(p, ledger.Released)
	}
	s.want(0, 2)
}

// A bug of a handler is not an answer, but costs nothing either.
func TestPanicOfAnUpstreamCostsNothing(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if got := recover(); got != "a bug" {
				t.Errorf("recovered %v", got)
			}
			panic(http.ErrAbortHandler)
		}()
		s.serve(w, r)
	}))
	server.Start()
	t.Cleanup(server.Close)
	s.url = server.URL
	s.sells(func(http.ResponseWriter, *http.Request, *till.Sale) error { panic("a bug") })
	p := s.authorize(payment.V2)
	if _, err := s.try(t.Context(), "GET", "/", "", p); err == nil {
		t.Error("answered")
	}
	s.awaitState(p, ledger.Released)
}

// Whoever goes on writing after the upstream has returned changes nothing.
func TestWritingAfterTheEndIsHarmless(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	ended := make(chan http.ResponseWriter, 1)
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		_, err := io.WriteString(w, "goods")
		ended <- w
		return err
	})
	var group sync.WaitGroup
	s.gate.before = func() {
		w := <-ended
		group.Go(func() {
			for range 1000 {
				w.WriteHeader(http.StatusTeapot)
				if n, err := io.WriteString(w, "late"); err == nil || n != 0 {
					t.Error("it was written")
				}
			}
		})
	}
	for range 5 {
		p := s.authorize(payment.V2)
		for range 2 {
			s.wantPaid(s.ask("GET", "/", "", p), p, 200, "goods")
		}
	}
	group.Wait()
}

// Requests for another protocol are turned away before the payment is
// touched; those that only ask for another HTTP are served in this one.
func TestHeldRoutesDoNotSwitchProtocols(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	for protocol, status := range map[string]int{
		"websocket": http.StatusNotImplemented, "h2c, WebSocket": http.StatusNotImplemented, "foo/2": http.StatusNotImplemented,
		"h2c": 200, "HTTP/2.0": 200, "TLS/1.0": 200,
	} {
		p := s.authorize(payment.V2)
		a := s.ask("GET", "/", "", p, "Connection", "Upgrade", "Upgrade", protocol)
		if a.status != status {
			t.Errorf("%s: %d %q", protocol, a.status, a.body)
		}
		_, err := s.record(p)
		if untouched := errors.Is(err, ledger.ErrNotFound); untouched != (status != 200) {
			t.Errorf("%s: claimed: %v", protocol, err)
		}
		if status != 200 && !strings.Contains(a.body, "not been charged") {
			t.Errorf("%s: %q", protocol, a.body)
		}
	}
	s.want(3, 3)
}

// Without room for another answer a request is turned away before its
// payment is touched, and the room comes back.
func TestRequestsBeyondTheRoomAreTurnedAwayUntouched(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	room := &till.Budget{}
	dir := t.TempDir()
	room.Limit(till.Limits{Memory: 256 << 10, Disk: 1 << 20, Dir: dir}) // two answers
	s.till.Room = room
	s.offers(func(r *till.Route) { r.MaxHeld = 1 << 20 })
	entered, leave := make(chan struct{}, 2), make(chan struct{})
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		entered <- struct{}{}
		<-leave
		_, err := io.WriteString(w, "goods")
		return err
	})
	var group sync.WaitGroup
	for range 2 {
		p := s.authorize(payment.V2)
		group.Go(func() { s.wantPaid(s.ask("GET", "/", "", p), p, 200, "goods") })
		<-entered
	}
	p := s.authorize(payment.V2)
	a := s.ask("GET", "/", "", p)
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || a.header.Get(payment.HeaderRequired) != "" || a.header.Get(payment.HeaderResponse) != "" {
		t.Errorf("got %d %v %q", a.status, a.header, a.body)
	}
	if _, err := s.record(p); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("it was claimed, %v", err)
	}
	close(leave)
	group.Wait()
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		_, err := io.WriteString(w, strings.Repeat("goods", 150_000))
		return err
	})
	for range 5 {
		// A request gives its room back after its answer is out.
		a := s.ask("GET", "/", "", p)
		for tries := 0; a.status == http.StatusServiceUnavailable && tries < 1000; tries++ {
			a = s.ask("GET", "/", "", p)
		}
		s.wantPaid(a, p, 200, strings.Repeat("goods", 150_000))
		p = s.authorize(payment.V2)
	}
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		room.Limit(till.Limits{Disk: 1}) // others were faster
		_, err := io.WriteString(w, strings.Repeat("goods", 150_000))
		return err
	})
	a = s.ask("GET", "/", "", p)
	for tries := 0; s.runs.Load() == 7 && tries < 1000; tries++ { // as above
		a = s.ask("GET", "/", "", p)
	}
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "not been charged") {
		t.Errorf("got %d %v %q", a.status, a.header, a.body)
	}
	s.awaitState(p, ledger.Released)
	if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
		t.Errorf("left on disk are %v, %v", left, err)
	}
}

// A failing disk is nobody's fault who pays.
func TestDiskThatFailsCostsNothing(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	room := &till.Budget{}
	room.Limit(till.Limits{Dir: t.TempDir() + "/nowhere"})
	s.till.Room = room
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		_, err := io.WriteString(w, strings.Repeat("goods", 50_000))
		return err
	})
	p := s.authorize(payment.V2)
	a := s.ask("GET", "/", "", p)
	if a.status != http.StatusServiceUnavailable || strings.Contains(a.body, "nowhere") {
		t.Errorf("got %d %q", a.status, a.body)
	}
	s.awaitState(p, ledger.Released)
	s.want(0, 1)
}

// counted counts the commits of a store.
type counted struct {
	ledger.Store
	mu      sync.Mutex
	commits [][]ledger.Write // guarded by mu
}

func (c *counted) Commit(ctx context.Context, writes ...ledger.Write) error {
	c.mu.Lock()
	c.commits = append(c.commits, slices.Clone(writes))
	c.mu.Unlock()
	return c.Store.Commit(ctx, writes...)
}

// A small answer costs no commit of its own. A large one is on disk, in
// parts, before the commit that says that there is an answer.
func TestAnswersAreStoredBeforeTheyCount(t *testing.T) {
	for size, parts := range map[int]int{100: 0, 500_000: 0, 1_000_000: 2, 4 << 20: 8, 5 << 20: 0} {
		s := open(t, fakeBank(t), till.Held)
		s.offers(func(r *till.Route) { r.MaxHeld = 8 << 20 })
		store := &counted{Store: s.store}
		s.store = store
		s.restart()
		s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			_, err := w.Write(make([]byte, size))
			return err
		})
		p := s.authorize(payment.V2)
		s.wantPaid(s.ask("GET", "/", "", p), p, 200, string(make([]byte, size)))
		store.mu.Lock()
		commits := store.commits
		store.mu.Unlock()
		// Claim, parts, EXECUTED with the answer, INTENT, and SETTLED, for
		// which a facilitator elsewhere has no lazy step.
		if len(commits) != 4+parts {
			t.Errorf("%d bytes: %d commits, want %d", size, len(commits), 4+parts)
			continue
		}
		for i, writes := range commits {
			held := 0
			for _, w := range writes {
				if strings.HasPrefix(string(w.Key), "held/") {
					held++
				}
			}
			want := i >= 1 && i < 1+parts || i == 1+parts && size <= 4<<20
			if (held == 1) != want {
				t.Errorf("%d bytes: commit %d has %d held entries", size, i, held)
			}
		}
		if size > 4<<20 { // too large to be stored: used once
			s.sells(func(http.ResponseWriter, *http.Request, *till.Sale) error {
				t.Error("it runs again")
				return nil
			})
			if a := s.ask("GET", "/", "", p); a.status != http.StatusGone {
				t.Errorf("again: %d", a.status)
			}
		}
	}
}

// The connection is lost while a large answer goes out: what was paid for can
// be had again, also from the next process, until its time is over.
func TestLostConnectionDoesNotLoseALargeAnswer(t *testing.T) {
	everyBank(t, till.Held, func(t *testing.T, s *shop) {
		goods := strings.Repeat("0123456789", 300_000)
		s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			_, err := io.WriteString(w, goods)
			return err
		})
		p := s.authorize(payment.V2)
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, "POST", s.url+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(p.name, p.value)
		resp, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadFull(resp.Body, make([]byte, 1000))
		cancel()
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s, %v", resp.Status, err)
		}
		for range 2 {
			s.wantPaid(s.ask("POST", "/", "", p), p, 200, goods)
			s.restart()
		}
		s.clock.Add(15*60 + 1)
		if n, err := s.ledger.Sweep(t.Context()); n != 1 || err != nil {
			t.Errorf("forgot %d, %v", n, err)
		}
		if a := s.ask("POST", "/", "", p); a.status != http.StatusGone {
			t.Errorf("afterwards: %d", a.status)
		}
		if left, err := s.store.Scan(t.Context(), "held/", "", 10); len(left) != 0 || err != nil {
			t.Errorf("left are %d entries, %v", len(left), err)
		}
		s.want(1, 1)
	})
}

// A stored answer that is forgotten while it goes out is cut off, so that
// nobody takes the part for the whole.
func TestStoredAnswerThatEndsEarlyIsCutOff(t *testing.T) {
	goods := strings.Repeat("0123456789", 400_000)
	s := open(t, fakeBank(t), till.Held)
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		_, err := io.WriteString(w, goods)
		return err
	})
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask("GET", "/", "", p), p, 200, goods)
	parts, err := s.store.Scan(t.Context(), "held/", "", 100)
	if err != nil || len(parts) != 9 {
		t.Fatalf("%d entries, %v", len(parts), err)
	}
	if err := s.store.Commit(t.Context(), ledger.Write{Key: parts[5].Key, If: ledger.AnyVersion}); err != nil {
		t.Fatal(err)
	}
	if a, err := s.try(t.Context(), "GET", "/", "", p); err == nil || len(a.body) >= len(goods) {
		t.Errorf("got all of %d bytes, %v", len(a.body), err)
	}
	if err := s.store.Commit(t.Context(), ledger.Write{Key: parts[1].Key, If: ledger.AnyVersion}); err != nil {
		t.Fatal(err)
	}
	if a := s.ask("GET", "/", "", p); a.status != http.StatusGone {
		t.Errorf("without its start: %d", a.status)
	}
}

// A slow verification leaves less time for the settlement: a request waits
// once, not once for each of its steps.
func TestDeadlineBoundsAllWaitingTogether(t *testing.T) {
	for _, mode := range []till.Mode{till.Held, till.First} {
		b := fakeBank(t)
		const deadline = 600 * time.Millisecond
		var waited time.Duration // in Settle
		fake := &facilitatortest.Fake{
			Verifying: func(context.Context) error {
				time.Sleep(deadline / 2)
				return nil
			},
			Settling: func(ctx context.Context) error {
				began := time.Now()
				<-ctx.Done()
				waited = time.Since(began)
				return &payment.UnavailableError{Doing: "waiting", Err: ctx.Err(), Pending: true}
			},
		}
		b.facilitator = func(l *ledger.Ledger) payment.Facilitator { return journal(fake, l) }
		s := open(t, b, mode)
		s.offers(func(r *till.Route) { r.Deadline = deadline })
		s.sells(func(http.ResponseWriter, *http.Request, *till.Sale) error {
			time.Sleep(deadline) // the upstream's time is its own
			return nil
		})
		s.wantPending(s.ask("GET", "/", "", s.authorize(payment.V2)), payment.V2)
		if waited <= 0 || waited > deadline-deadline/4 {
			t.Errorf("%s: the settlement was waited for %s", mode, waited)
		}
	}
}
