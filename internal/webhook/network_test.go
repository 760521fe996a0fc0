package webhook

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/egress"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// eventually waits until done reports true.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

// tried waits for the first attempt at an event, and returns what came of it.
func tried(t *testing.T, q *Queue, e Event) Delivery {
	t.Helper()
	var d Delivery
	eventually(t, "an attempt", func() bool {
		d = only(t, q, e)
		return d.Attempts > 0
	})
	return d
}

// site is a receiver with TLS on loopback, and a way to it.
func site(t *testing.T, h http.HandlerFunc) (url string, sender func(timeout time.Duration) *egress.Client) {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.URL, func(timeout time.Duration) *egress.Client {
		c, err := egress.New(egress.Config{
			Ports:         []uint16{443, netip.MustParseAddrPort(s.Listener.Addr().String()).Port()},
			InsecureAllow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
			Roots:         roots,
			Timeout:       timeout,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.CloseIdle)
		return c
	}
}

func TestReceiversThatMisbehaveAreSaidSo(t *testing.T) {
	hang := make(chan struct{})
	var elsewhere, wrong atomic.Int64
	url, sender := site(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || Verify(secretOne, r.Header.Get(SignatureHeader), body, time.Now()) != nil {
			wrong.Add(1)
		}
		switch r.URL.Path {
		case "/hang":
			<-hang
		case "/redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		case "/elsewhere":
			elsewhere.Add(1)
		case "/long", "/long-failure":
			if r.URL.Path == "/long-failure" {
				w.WriteHeader(http.StatusInternalServerError)
			}
			for range 1 << 14 { // 1 GiB
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		case "/drip": // it says that it is done, and then does not end
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-hang
		}
	})
	t.Cleanup(func() { // after the last of them, and before the server is closed
		close(hang)
		if elsewhere.Load() != 0 || wrong.Load() != 0 {
			t.Errorf("%d came by a redirect, %d were not signed", elsewhere.Load(), wrong.Load())
		}
	})
	const short, long = 3 * time.Second, 20 * time.Second
	for name, want := range map[string]struct {
		url     string
		timeout time.Duration
		state   State
		says    string
	}{
		"good":         {url + "/good", long, Delivered, ""},
		"hang":         {url + "/hang", short, Waiting, "did not answer within 3s"},
		"redirect":     {url + "/redirect", long, Waiting, "redirects are not followed"},
		"long":         {url + "/long", long, Delivered, ""},
		"long-failure": {url + "/long-failure", long, Waiting, "500 Internal Server Error"},
		"drip":         {url + "/drip", short, Delivered, ""},
		"metadata":     {"https://169.254.169.254/latest/meta-data/", long, Waiting, "169.254.169.254:443 for 169.254.169.254 is refused: it is a metadata service"},
		"private":      {"https://10.0.0.1/", long, Waiting, "insecure_allow 10.0.0.1/32"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := ledger.NewMemory()
			q := office(t, store, sender(want.timeout), Endpoint{Name: "shop", URL: want.url, Secrets: []string{secretOne}})
			stop := run(t, q)
			e := event(t, 1)
			post(t, store, q, e)
			d := tried(t, q, e)
			stop()
			if d.State != want.state || !strings.Contains(d.LastError, want.says) || (d.LastError == "") != (want.says == "") {
				t.Errorf("%+v", d)
			}
			sound(t, store)
		})
	}
}

func TestAnURLThatWouldBeRefusedIsRefusedAtOnce(t *testing.T) {
	sender, err := egress.New(egress.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"http://shop.example/path-secret", "https://shop.example:8443/path-secret", "https://user:path-secret@shop.example/", "https://0x7f.1/path-secret"} {
		_, err := New(Config{Store: ledger.NewMemory(), Sender: sender, Endpoints: []Endpoint{{Name: "shop", URL: url, Secrets: []string{secretOne}}}})
		if _, ok := errors.AsType[*egress.RefusedError](err); !ok || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// openBadger opens the ledger in a directory; the caller closes it.
func openBadger(t *testing.T, dir string) *badger.Store {
	t.Helper()
	store, err := badger.Open(dir, badger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestACommittedEventIsDeliveredAfterACrash(t *testing.T) {
	dir := t.TempDir()
	store := openBadger(t, dir)
	r := &receivers{}
	e := event(t, 1)
	post(t, store, office(t, store, r), e)
	if err := store.Close(); err != nil { // and nobody has delivered
		t.Fatal(err)
	}
	store = openBadger(t, dir)
	defer store.Close()
	q := office(t, store, r)
	stop := run(t, q)
	defer stop()
	if d := tried(t, q, e); d.State != Delivered {
		t.Errorf("%+v", d)
	}
	got := r.taken()
	if len(got) != 1 || got[0].id != e.ID || !bytes.Contains(got[0].body, []byte(e.ID)) {
		t.Errorf("%d deliveries", len(got))
	}
	sound(t, store)
}

// Two queues, as a reload has for a moment, on the store that production uses.
func TestTwoQueuesOnBadgerDeliverOnce(t *testing.T) {
	store := openBadger(t, t.TempDir())
	defer store.Close()
	r := &receivers{}
	queues := []*Queue{office(t, store, r, endpoint("a"), endpoint("b")), office(t, store, r, endpoint("a"), endpoint("b"))}
	stop := run(t, queues...)
	defer stop()
	const many = 50
	var group sync.WaitGroup
	for n := range many {
		group.Go(func() {
			writes, err := queues[0].Writes(event(t, n))
			if err == nil {
				err = store.Commit(t.Context(), writes...)
			}
			if err != nil {
				t.Error(err)
			}
			queues[0].Wake()
			queues[1].Wake()
		})
	}
	group.Wait()
	eventually(t, "the delivery of all", func() bool {
		list, _, err := queues[0].List(t.Context(), Delivered, "", MaxList)
		if err != nil {
			t.Fatal(err)
		}
		return len(list) == 2*many
	})
	seen := map[string]int{}
	for _, p := range r.taken() {
		seen[fmt.Sprint(p.endpoint, p.id)]++
	}
	if len(seen) != 2*many || len(r.taken()) != 2*many {
		t.Errorf("%d deliveries of %d", len(r.taken()), len(seen))
	}
	sound(t, store)
}
