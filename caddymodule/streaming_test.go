package caddymodule

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/gorilla/websocket"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/tollgate402/tollgate/payment"
)

// A front is a site with TLS, and the ways to it.
type front struct {
	t    testing.TB
	port string
	dir  string // of the certificates
}

func newFront(t testing.TB) *front {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f := &front{t, port, t.TempDir()}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// load starts a configuration with the fake facilitator: site is put into the
// site.
func (f *front) load(site string) {
	f.t.Helper()
	doc, err := adapt(`{
	admin off
	persist_config off
	skip_install_trust
	local_certs
	auto_https disable_redirects
	storage file_system ` + f.dir + `
	grace_period 1s
	log {
		output discard
	}
	x402 {
		pay_to ` + seller + `
		network base-sepolia
		` + memory + `
	}
}
https://localhost:` + f.port + ` {
	bind 127.0.0.1
	` + site + `
}
`)
	if err == nil {
		err = caddy.Load(doc, true)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	// The certificate is made in the background.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := tls.Dial("tcp", "127.0.0.1:"+f.port, unchecked())
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatal(err)
		}
	}
}

// in returns f for a subtest.
func (f *front) in(t testing.TB) *front { return &front{t, f.port, f.dir} }

// unchecked trusts everybody: the certificate is made on the spot.
func unchecked(protocols ...string) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", NextProtos: protocols}
}

// clients returns a client for each version of HTTP.
func (f *front) clients() map[string]*http.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:"+f.port)
	}
	one := &http.Transport{TLSClientConfig: unchecked("http/1.1"), DialContext: dial}
	two := &http.Transport{TLSClientConfig: unchecked("h2"), DialContext: dial, ForceAttemptHTTP2: true}
	three := &http3.Transport{
		TLSClientConfig: unchecked("h3"),
		Dial: func(ctx context.Context, _ string, t *tls.Config, c *quic.Config) (*quic.Conn, error) {
			return quic.DialAddrEarly(ctx, "127.0.0.1:"+f.port, t, c)
		},
	}
	f.t.Cleanup(func() {
		one.CloseIdleConnections()
		two.CloseIdleConnections()
		if err := three.Close(); err != nil {
			f.t.Error(err)
		}
	})
	return map[string]*http.Client{"HTTP/1.1": {Transport: one}, "HTTP/2.0": {Transport: two}, "HTTP/3.0": {Transport: three}}
}

func (f *front) url(path string) string { return "https://localhost:" + f.port + path }

// open pays for a path and returns its answer, of which nothing but the
// headers is read.
func (f *front) open(ctx context.Context, client *http.Client, path string) *http.Response {
	f.t.Helper()
	name, value := f.pay(client, path)
	return f.again(ctx, client, path, name, value)
}

// pay returns a payment header for a path.
func (f *front) pay(client *http.Client, path string) (name, value string) {
	f.t.Helper()
	unpaid := f.again(f.t.Context(), client, path, "X-Nothing", "")
	defer unpaid.Body.Close()
	c, err := payment.DecodeRequired(unpaid.Header.Get(payment.HeaderRequired))
	if err != nil {
		f.t.Fatalf("%s: %s, %v", path, unpaid.Status, err)
	}
	return sign(f.t, c, payerKey)
}

func (f *front) again(ctx context.Context, client *http.Client, path, name, value string) *http.Response {
	f.t.Helper()
	resp, err := f.try(ctx, client, path, name, value)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp
}

func (f *front) try(ctx context.Context, client *http.Client, path, name, value string) (*http.Response, error) {
	f.t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url(path), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	r.Header.Set(name, value)
	return client.Do(r)
}

// wantReceipt checks that an answer is paid for, and says so.
func (f *front) wantReceipt(version string, resp *http.Response, status int) {
	f.t.Helper()
	if resp.StatusCode != status || version != "" && resp.Proto != version {
		f.t.Errorf("%s: got %s over %s", version, resp.Status, resp.Proto)
	}
	doc, err := base64.StdEncoding.DecodeString(resp.Header.Get(payment.HeaderResponse))
	if err != nil || !strings.Contains(string(doc), `"success":true`) {
		f.t.Errorf("%s: receipt %q, %v", version, doc, err)
	}
}

// serve starts an upstream and returns where.
func serve(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

const firstFor = `x402 $0.01 {
		settle first
	}
	reverse_proxy `

func TestEventsArriveOneByOne(t *testing.T) {
	f := newFront(t)
	const events = 5
	seen := make(chan int)
	f.load(firstFor + serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range events {
			fmt.Fprintf(w, "data: %d\n\n", i)
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			// The next event is made only once the client has this one.
			select {
			case got := <-seen:
				if got != i {
					t.Errorf("the client has event %d, want %d", got, i)
				}
			case <-r.Context().Done():
				return
			}
		}
	}))
	for version, client := range f.clients() {
		t.Run(version, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			f := f.in(t)
			resp := f.open(ctx, client, "/events")
			defer resp.Body.Close()
			f.wantReceipt(version, resp, http.StatusOK)
			if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
				t.Errorf("Content-Type %q", got)
			}
			lines := bufio.NewReader(resp.Body)
			for i := range events {
				line, err := lines.ReadString('\n')
				if err != nil || line != fmt.Sprintf("data: %d\n", i) {
					t.Fatalf("%q, %v", line, err)
				}
				if _, err := lines.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
				select {
				case seen <- i:
				case <-ctx.Done():
					t.Fatal(ctx.Err())
				}
			}
			if rest, err := io.ReadAll(lines); err != nil || len(rest) != 0 {
				t.Errorf("%q, %v", rest, err)
			}
		})
	}
}

func TestWebSocketsPassThePaywall(t *testing.T) {
	f := newFront(t)
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-402-Payer") == "" || r.Header.Get(payment.HeaderPayment) != "" {
			t.Errorf("the upstream sees %v", r.Header)
		}
		c, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if err := c.WriteMessage(websocket.TextMessage, []byte("welcome")); err != nil {
			t.Error(err)
		}
		for {
			kind, message, err := c.ReadMessage()
			if err != nil {
				return
			}
			if err := c.WriteMessage(kind, append([]byte("echo "), message...)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	f.load("x402 /held/* $0.01\n\t" + strings.ReplaceAll(firstFor, "x402 ", "x402 /first/* ") + upstream)
	dialer := &websocket.Dialer{
		TLSClientConfig: unchecked(),
		NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:"+f.port)
		},
	}
	dial := func(path, name, value string) (*websocket.Conn, answer) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		c, resp, err := dialer.DialContext(ctx, "wss"+strings.TrimPrefix(f.url(path), "https"), http.Header{name: {value}})
		if err != nil && resp == nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return c, answer{Response: resp}
	}
	client := f.clients()["HTTP/1.1"]
	before := settled.Load()
	if c, resp := dial("/first/socket", "X-Nothing", ""); c != nil || resp.StatusCode != http.StatusPaymentRequired {
		t.Fatalf("unpaid: %s", resp.Status)
	}
	name, value := f.pay(client, "/held/socket")
	if c, resp := dial("/held/socket", name, value); c != nil || resp.StatusCode != http.StatusNotImplemented {
		t.Fatalf("held: %s", resp.Status)
	}
	if settled.Load() != before {
		t.Error("a refused upgrade was paid for")
	}
	name, value = f.pay(client, "/first/socket")
	c, resp := dial("/first/socket", name, value)
	if c == nil {
		t.Fatalf("got %s", resp.Status)
	}
	f.wantReceipt("", resp.Response, http.StatusSwitchingProtocols)
	read := func(want string) {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, message, err := c.ReadMessage(); err != nil || string(message) != want {
			t.Fatalf("%q, %v, want %q", message, err, want)
		}
	}
	read("welcome")
	for i := range 10 {
		message := fmt.Sprint("frame ", i)
		if err := c.WriteMessage(websocket.TextMessage, []byte(message)); err != nil {
			t.Fatal(err)
		}
		read("echo " + message)
	}
	// Frames in both directions at once, more than any buffer between.
	big := bytes.Repeat([]byte("x"), 1<<20)
	written := make(chan error, 1)
	go func() { // ends when all is written or the connection is closed
		for range 8 {
			if err := c.WriteMessage(websocket.BinaryMessage, big); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	for range 8 {
		read("echo " + string(big))
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if got := settled.Load() - before; got != 1 {
		t.Errorf("%d settlements", got)
	}
	waitFor(t, func() bool { // once it has ended, it is used
		c, resp := dial("/first/socket", name, value)
		if c != nil {
			c.Close()
		}
		return resp.StatusCode == http.StatusGone
	})
}

// allocated returns how many bytes are allocated while f runs.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestLargeBodiesTakeNoMemory(t *testing.T) {
	f := newFront(t)
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.URL.Query().Get("chunks"))
		if err != nil {
			t.Error(err)
		}
		for range n {
			if _, err := w.Write(chunk); err != nil {
				t.Error(err)
				return
			}
		}
	})
	f.load(`x402 /held $0.01 {
		max_held 100MiB
	}
	` + strings.ReplaceAll(firstFor, "x402 ", "x402 /first ") + upstream)
	clients := f.clients()
	buffer := make([]byte, 64<<10)
	// The client is in this process, too, and over HTTP/2 makes buffers of
	// its own for what it has not read yet; over HTTP/3 for every packet.
	for _, c := range []struct {
		version string
		most    uint64
		paths   []string
	}{{"HTTP/1.1", 56 << 20, []string{"/first", "/held"}}, {"HTTP/2.0", 56 << 20, []string{"/first"}}} {
		version, client := c.version, clients[c.version]
		for _, path := range c.paths {
			fetch := func(chunks int) uint64 {
				return allocated(func() {
					resp := f.open(t.Context(), client, fmt.Sprint(path, "?chunks=", chunks, "&x="))
					defer resp.Body.Close()
					f.wantReceipt(version, resp, http.StatusOK)
					n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buffer)
					if err != nil || n != int64(chunks*len(chunk)) {
						t.Errorf("%s %s: %d bytes, %v", version, path, n, err)
					}
				})
			}
			fetch(16) // so that what is made once is made
			small, large := fetch(16), fetch(1024)
			t.Logf("%s %s: %d bytes for 1 MiB, %d for 64 MiB", version, path, small, large)
			if large > c.most {
				t.Errorf("%s %s: %d bytes are allocated for 64 MiB", version, path, large)
			}
		}
	}
}

func TestTrailersArrive(t *testing.T) {
	f := newFront(t)
	upstream := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum, Payment-Response")
		_, _ = io.WriteString(w, "goods")
		w.Header().Set("X-Sum", "42")
		w.Header().Set("Payment-Response", "forged")
		w.Header().Set(http.TrailerPrefix+"X-Late", "43")
		w.Header().Set(http.TrailerPrefix+"X-Payment-Response", "forged")
	})
	f.load("x402 /held $0.01\n\t" + strings.ReplaceAll(firstFor, "x402 ", "x402 /first ") + upstream)
	for version, client := range f.clients() {
		for _, path := range []string{"/first", "/held"} {
			resp := f.open(t.Context(), client, path)
			f.wantReceipt(version, resp, http.StatusOK)
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(body) != "goods" {
				t.Errorf("%s %s: %q, %v", version, path, body, err)
			}
			if resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-Late") != "43" || len(resp.Trailer) != 2 {
				t.Errorf("%s %s: trailers %v", version, path, resp.Trailer)
			}
		}
	}
}

// The client that goes away ends the upstream, and may come back.
func TestClientThatGoesAwayEndsTheStream(t *testing.T) {
	f := newFront(t)
	ended := make(chan struct{}, 1)
	var calls atomic.Int64
	f.load(firstFor + serve(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1)%2 == 0 {
			_, _ = io.WriteString(w, "whole")
			return
		}
		_, _ = io.WriteString(w, "part")
		_ = http.NewResponseController(w).Flush() // the client may be gone
		<-r.Context().Done()
		ended <- struct{}{}
	}))
	for version, client := range f.clients() {
		t.Run(version, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			f := f.in(t)
			name, value := f.pay(client, "/stream")
			leaving, leave := context.WithCancel(ctx)
			resp := f.again(leaving, client, "/stream", name, value)
			if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			leave()
			resp.Body.Close()
			select {
			case <-ended:
			case <-ctx.Done():
				t.Fatal("the upstream goes on for nobody")
			}
			for {
				resp := f.again(ctx, client, "/stream", name, value)
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode == http.StatusServiceUnavailable { // the first request is not quite over
					continue
				}
				f.wantReceipt(version, resp, http.StatusOK)
				if err != nil || string(body) != "whole" {
					t.Errorf("%q, %v", body, err)
				}
				return
			}
		})
	}
}

// An upstream that breaks off is seen to break off, and the same payment
// gets the whole.
func TestUpstreamThatBreaksOffIsNotTakenForTheWhole(t *testing.T) {
	f := newFront(t)
	var calls atomic.Int64
	upstream := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1)%2 == 0 {
			_, _ = io.WriteString(w, "whole")
			return
		}
		_, _ = io.WriteString(w, "part")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		panic(http.ErrAbortHandler)
	})
	f.load("x402 /held $0.01\n\t" + strings.ReplaceAll(firstFor, "x402 ", "x402 /first ") + upstream)
	before := settled.Load()
	for version, client := range f.clients() {
		name, value := f.pay(client, "/first")
		resp, err := f.try(t.Context(), client, "/first", name, value)
		if err == nil { // over HTTP/3 the end can overtake what comes before it
			f.wantReceipt(version, resp, http.StatusOK)
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil || !strings.HasPrefix("part", string(body)) {
				t.Errorf("%s: %q, %v", version, body, err)
			}
		}
		for { // until the server, too, has seen the end
			resp = f.again(t.Context(), client, "/first", name, value)
			if resp.StatusCode != http.StatusServiceUnavailable {
				break
			}
			resp.Body.Close()
		}
		f.wantReceipt(version, resp, http.StatusOK)
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "whole" {
			t.Errorf("%s: %q, %v", version, body, err)
		}
		resp.Body.Close()

		// Held back, nothing of the part is seen, and nothing is paid.
		name, value = f.pay(client, "/held")
		for _, want := range []int{http.StatusBadGateway, http.StatusOK} {
			resp = f.again(t.Context(), client, "/held", name, value)
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != want || strings.Contains(string(body), "part") {
				t.Errorf("%s: %s %q, %v", version, resp.Status, body, err)
			}
		}
	}
	if got := settled.Load() - before; got != 6 {
		t.Errorf("%d settlements, want one for each payment", got)
	}
}

// What cannot be held is answered, through a reverse proxy that aborts its
// answer then, and costs nothing.
func TestProxiedAnswerThatIsTooLargeIsAnswered(t *testing.T) {
	f := newFront(t)
	before := settled.Load()
	f.load(`x402 $0.01 {
		max_held 1KiB
	}
	reverse_proxy ` + serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/announced" {
			w.Header().Set("Content-Length", "5000")
		}
		_, _ = w.Write(make([]byte, 5000))
	}))
	for version, client := range f.clients() {
		for _, path := range []string{"/announced", "/found"} {
			resp := f.open(t.Context(), client, path)
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusBadGateway || !strings.Contains(string(body), "not been charged") {
				t.Errorf("%s %s: %s %q, %v", version, path, resp.Status, body, err)
			}
		}
	}
	if settled.Load() != before {
		t.Error("it was paid for")
	}
}

// BenchmarkFirstByte measures the time from a request to the first byte of
// its streamed answer, with the paywall and without.
func BenchmarkFirstByte(b *testing.B) {
	f := newFront(b)
	upstream := serve(b, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "x")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	f.load(strings.ReplaceAll(firstFor, "x402 ", "x402 /paid ") + upstream)
	clients := f.clients()
	for _, version := range []string{"HTTP/1.1", "HTTP/2.0", "HTTP/3.0"} {
		client := clients[version]
		for _, path := range []string{"/free", "/paid"} {
			b.Run(version+path, func(b *testing.B) {
				for b.Loop() {
					name, value := "X-Nothing", ""
					if path == "/paid" {
						b.StopTimer()
						name, value = f.pay(client, path)
						b.StartTimer()
					}
					ctx, cancel := context.WithCancel(b.Context())
					resp := f.again(ctx, client, path, name, value)
					if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					cancel()
					resp.Body.Close()
					b.StartTimer()
				}
			})
		}
	}
}
