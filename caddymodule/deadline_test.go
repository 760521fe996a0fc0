package caddymodule

import (
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
)

// patience is how long an answer may take on a busy machine where the
// deadline is 300 ms; without the deadline it would take 10 s or for ever.
const patience = 5 * time.Second

// prompt runs ask and checks that it does not take long.
func prompt(t *testing.T, what string, ask func() answer) answer {
	t.Helper()
	began := time.Now()
	got := ask()
	if took := time.Since(began); took > patience {
		t.Errorf("%s: it took %s", what, took)
	}
	return got
}

// wantUntouched checks an answer that says that the payment was not touched.
func wantUntouched(t *testing.T, what string, got answer) {
	t.Helper()
	if got.StatusCode != http.StatusServiceUnavailable || got.Header.Get("Retry-After") == "" || got.Header.Get(payment.HeaderRequired) != "" ||
		got.Header.Get(payment.HeaderResponse) != "" || !strings.Contains(got.body, "not been charged") {
		t.Errorf("%s: %s %v %q", what, got.Status, got.Header, got.body)
	}
}

// wantPending checks an answer that says that the payment is under way.
func wantPending(t *testing.T, what string, got answer) {
	t.Helper()
	doc, err := base64.StdEncoding.DecodeString(got.Header.Get(payment.HeaderResponse))
	if got.StatusCode != http.StatusServiceUnavailable || got.Header.Get("Retry-After") == "" || got.Header.Get(payment.HeaderRequired) != "" ||
		err != nil || !strings.Contains(string(doc), `"settlement_pending"`) || !strings.Contains(got.body, "do not pay again") {
		t.Errorf("%s: %s %q with %q, %v", what, got.Status, got.body, doc, err)
	}
}

// settlesGoroutines checks, after everything else has ended, that no more
// goroutines are left than there were.
func settlesGoroutines(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		connections.CloseIdleConnections()
		for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				t.Errorf("%d goroutines are left of %d:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
				return
			}
		}
	})
}

// warm runs Caddy once, so that goroutines which it keeps for ever are there.
func warm(t *testing.T) {
	t.Helper()
	s := newSite(t)
	s.load(paidSite(memory, `x402 $0.01`))
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
}

// A tap is a TCP proxy that can be turned off: then it accepts connections,
// and holds back every byte.
type tap struct {
	address string
	off     atomic.Bool
	open    atomic.Int64 // connections to it
}

func newTap(t *testing.T, target string) *tap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{address: l.Addr().String()}
	var group sync.WaitGroup
	stopped := make(chan struct{})
	t.Cleanup(func() {
		close(stopped)
		l.Close()
		group.Wait()
	})
	group.Go(func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.open.Add(1)
			group.Go(func() { // ends with either side, or with the test
				defer p.open.Add(-1)
				p.pass(c, target, stopped)
			})
		}
	})
	return p
}

func (p *tap) pass(c net.Conn, target string, stopped <-chan struct{}) {
	defer c.Close()
	up, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer up.Close()
	ended := make(chan struct{}, 2)
	half := func(to, from net.Conn) { // ends when either side is closed
		buffer := make([]byte, 32<<10)
		for {
			n, err := from.Read(buffer)
			if err != nil {
				break
			}
			if p.off.Load() {
				continue
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				break
			}
		}
		ended <- struct{}{}
	}
	go half(c, up)
	go half(up, c)
	select {
	case <-ended:
	case <-stopped:
	}
	c.Close()
	up.Close()
	<-ended
}

// chainSite is a configuration that settles here, on the node at address.
func chainSite(node, site string) string {
	return strings.ReplaceAll(paidSite("ledger memory\n\t\tdeadline 300ms", site), "network base-sepolia", `network base-sepolia {
			rpc http://`+node+`
			lane key {env.TEST_LANE_KEY}
			poll_interval 10ms
		}`)
}

func TestNodeThatNeverAnswersKeepsNobodyWaiting(t *testing.T) {
	warm(t)
	settlesGoroutines(t)
	t.Setenv("TEST_LANE_KEY", laneKey)
	s := newSite(t)
	// It accepts connections and says nothing, from the start.
	hanging := newTap(t, s.address) // what is behind it does not matter
	hanging.off.Store(true)
	s.load(chainSite(hanging.address, `x402 /held $0.01
	x402 /first $0.01 {
		settle first
	}
	respond "goods"`))
	for _, path := range []string{"/held", "/first"} {
		name, value := s.payFor(path)
		for range 2 {
			got := prompt(t, path, func() answer { return s.get(path, name, value) })
			wantUntouched(t, path, got)
		}
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return hanging.open.Load() == 0 })
}

// The node stops to answer at each step of a payment. Before anything is
// broadcast the payment is untouched, afterwards it is pending; and once the
// node is back the same request is served, for one transfer.
func TestNodeThatStopsToAnswerKeepsNobodyWaiting(t *testing.T) {
	for _, mode := range []string{"held", "first"} {
		t.Run(mode, func(t *testing.T) {
			c, err := devchain.Start(devchain.Config{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			t.Setenv("TEST_LANE_KEY", hexOf(c.Account("facilitator")))
			node := newTap(t, strings.TrimPrefix(c.URL(), "http://"))
			s := &market{newSite(t), c, key(t, c.Account("payer"))}
			var stop atomic.Bool
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if stop.Load() {
					node.off.Store(true)
				}
				_, _ = io.WriteString(w, "goods")
			}))
			t.Cleanup(upstream.Close)
			s.load(chainSite(node.address, `x402 $0.01 {
		settle `+mode+`
	}
	reverse_proxy `+strings.TrimPrefix(upstream.URL, "http://")))
			paid := func(name, value string) {
				t.Helper()
				var got answer
				for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
					if got = s.get("/", name, value); got.StatusCode == http.StatusOK {
						break
					}
					if got.StatusCode != http.StatusServiceUnavailable {
						break
					}
				}
				if got.StatusCode != http.StatusOK || got.body != "goods" {
					t.Fatalf("%s %s", got.Status, got.body)
				}
			}
			name, value := s.pay("/")
			paid(name, value) // everything works

			// The node hangs when the payment is to be verified.
			name, value = s.pay("/")
			node.off.Store(true)
			wantUntouched(t, "verifying", prompt(t, "verifying", func() answer { return s.get("/", name, value) }))
			node.off.Store(false)
			paid(name, value)

			// It hangs while the upstream works. What was simulated after the
			// latest block is broadcast without asking again, and whether
			// the node has it nobody knows. The payer is one that is seen for
			// the first time: of others the payment is simulated once more.
			if mode == "held" {
				stranger := &market{s.site, c, key(t, c.Account("payer2"))}
				name, value = stranger.pay("/")
				stop.Store(true)
				wantPending(t, "settling", prompt(t, "settling", func() answer { return s.get("/", name, value) }))
				stop.Store(false)
				node.off.Store(false)
				paid(name, value)
			}

			// No block comes after the broadcast.
			c.Pause()
			name, value = s.pay("/")
			wantPending(t, "mining", prompt(t, "mining", func() answer { return s.get("/", name, value) }))
			node.off.Store(true)
			wantPending(t, "again", prompt(t, "again", func() answer { return s.get("/", name, value) }))
			node.off.Store(false)
			c.Resume()
			paid(name, value)
		})
	}
}

// A remote is a facilitator elsewhere that can be made to hang.
type remote struct {
	fake *facilitatortest.Fake

	mu   sync.Mutex
	slow map[string]func(w http.ResponseWriter, r *http.Request, gone <-chan struct{}) // guarded by mu: by the end of the path
	busy atomic.Int64                                                                  // requests under way
	gone chan struct{}                                                                 // closed at the end of the test
}

func (f *remote) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.busy.Add(1)
	defer f.busy.Add(-1)
	f.mu.Lock()
	slow := f.slow[r.URL.Path]
	f.mu.Unlock()
	if slow != nil {
		_, _ = io.Copy(io.Discard, r.Body) // so that the server sees the client go
		slow(w, r, f.gone)
		return
	}
	(&facilitator.Handler{Facilitator: f.fake}).ServeHTTP(w, r)
}

// misbehaves sets what happens on a path; nil makes everything well again.
func (f *remote) misbehaves(path string, how func(w http.ResponseWriter, r *http.Request, gone <-chan struct{})) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slow = map[string]func(http.ResponseWriter, *http.Request, <-chan struct{}){path: how}
}

func wait(r *http.Request, gone <-chan struct{}) {
	select {
	case <-r.Context().Done():
	case <-gone:
	}
}

// ways of hanging.
var hangs = map[string]func(w http.ResponseWriter, r *http.Request, gone <-chan struct{}){
	"in the headers": func(_ http.ResponseWriter, r *http.Request, gone <-chan struct{}) { wait(r, gone) },
	"in the body": func(w http.ResponseWriter, r *http.Request, gone <-chan struct{}) {
		_, _ = io.WriteString(w, `{"success":`)
		_ = http.NewResponseController(w).Flush() // the client may be gone
		wait(r, gone)
	},
	"byte by byte": func(w http.ResponseWriter, r *http.Request, gone <-chan struct{}) {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-r.Context().Done():
				return
			case <-gone:
				return
			case <-tick.C:
			}
			_, _ = io.WriteString(w, " ")
			_ = http.NewResponseController(w).Flush()
		}
	},
}

func TestFacilitatorThatHangsKeepsNobodyWaiting(t *testing.T) {
	warm(t)
	for name, hang := range hangs {
		t.Run(name, func(t *testing.T) {
			settlesGoroutines(t)
			f := &remote{fake: &facilitatortest.Fake{}, gone: make(chan struct{})}
			server := httptest.NewServer(f)
			t.Cleanup(func() {
				close(f.gone)
				server.Close()
			})
			s := newSite(t)
			s.load(paidSite("ledger memory\n\t\tdeadline 300ms\n\t\tfacilitator http "+server.URL, `x402 /held* $0.01
	x402 /first* $0.01 {
		settle first
	}
	respond "goods"`))
			for _, path := range []string{"/held", "/first"} {
				header, value := s.payFor(path)
				f.misbehaves("/verify", hang)
				wantUntouched(t, path, prompt(t, path, func() answer { return s.get(path, header, value) }))
				// Copies of it wait for one another, but not longer.
				var group sync.WaitGroup
				for range 8 {
					group.Go(func() {
						got := prompt(t, path, func() answer { return s.get(path, header, value) })
						if got.StatusCode != http.StatusServiceUnavailable {
							t.Errorf("%s: %s", path, got.Status)
						}
					})
				}
				group.Wait()
				f.misbehaves("/settle", hang)
				for range 2 {
					wantPending(t, path, prompt(t, path, func() answer { return s.get(path, header, value) }))
				}
				f.misbehaves("", nil)
				var got answer
				for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
					if got = s.get(path, header, value); got.StatusCode != http.StatusServiceUnavailable {
						break
					}
				}
				if got.StatusCode != http.StatusOK || got.body != "goods" {
					t.Errorf("%s: %s %s", path, got.Status, got.body)
				}
			}
			if got := f.fake.Transfers(); got != 2 {
				t.Errorf("%d transfers", got)
			}
			// Nobody asks any more, and the last request has not been answered:
			// it is repeated in the background, and ends with Caddy.
			header, value := s.payFor("/first/other")
			f.misbehaves("/settle", hang)
			wantPending(t, "other", s.get("/first/other", header, value))
			waitFor(t, func() bool { return f.busy.Load() > 0 })
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { return f.busy.Load() == 0 })
		})
	}
}

func TestUpstreamThatHangsKeepsNobodyWaiting(t *testing.T) {
	warm(t)
	for name, hang := range hangs {
		t.Run(name, func(t *testing.T) {
			settlesGoroutines(t)
			gone := make(chan struct{})
			var busy atomic.Int64
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				busy.Add(1)
				defer busy.Add(-1)
				hang(w, r, gone)
			}))
			t.Cleanup(func() {
				close(gone)
				upstream.Close()
			})
			s := newSite(t)
			before := settled.Load()
			s.load(paidSite(memory, `x402 $0.01 {
		upstream_timeout 300ms
	}
	reverse_proxy `+strings.TrimPrefix(upstream.URL, "http://")+` {
		transport http {
			keepalive off
		}
	}`))
			header, value := s.payFor("/")
			for range 2 {
				got := prompt(t, name, func() answer { return s.get("/", header, value) })
				if got.StatusCode != http.StatusGatewayTimeout || got.Header.Get(payment.HeaderResponse) != "" || strings.Contains(got.body, "success") {
					t.Errorf("%s %v %q", got.Status, got.Header, got.body)
				}
			}
			waitFor(t, func() bool { return busy.Load() == 0 })
			if settled.Load() != before {
				t.Error("it was paid for")
			}
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
