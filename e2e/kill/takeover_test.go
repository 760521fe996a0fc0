package main

import (
	"context"
	"encoding/base64"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
)

// testCheque returns a payment that a book knows.
func testCheque(b *book) *cheque {
	q := &cheque{order: b.order("held", 2), nonce: common.Hash{1}, header: payment.HeaderPayment, value: "signed"}
	b.signed(q)
	return q
}

func TestTheClockOfAnOrphanStartsAgainOnlyWhenTheLivingHaveTakenItUp(t *testing.T) {
	b := newBook(3)
	q := testCheque(b)
	first := time.Now().Add(-5 * time.Second)
	second := first.Add(3 * time.Second)
	b.orphan(q, first, time.Time{})
	if b.orphan(q, second, first.Add(-time.Second)); b.orphanedAt(q) != first {
		t.Error("another death has stopped the clock of a payment that nobody had touched")
	}
	if b.orphan(q, second, first.Add(time.Second)); b.orphanedAt(q) != second {
		t.Error("a payment that had been taken up has no clock of its own")
	}
	if got := b.orphans(); !slices.Contains(got, q) {
		t.Errorf("%d orphans", len(got))
	}
	if b.ended(q, true); len(b.takeovers) != 1 || b.takeovers[0] < 2*time.Second || len(b.late) != 0 || len(b.orphans()) != 0 {
		t.Errorf("takeovers %v, %d late", b.takeovers, len(b.late))
	}
}

func TestPaymentsThatNobodyTakesOverInTimeAreFound(t *testing.T) {
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	for _, c := range []struct {
		what      string
		instances int
		orphaned  time.Time
		death     time.Time // of another instance
		answered  bool
		late      bool
	}{
		{"in time", 3, ago(9 * time.Second), time.Time{}, true, false},
		{"too late", 3, ago(11 * time.Second), time.Time{}, true, true},
		{"too late also after another death", 3, ago(30 * time.Second), ago(11 * time.Second), true, true},
		{"held up by another death", 3, ago(13 * time.Second), ago(6 * time.Second), true, false},
		{"nobody asked on", 3, ago(11 * time.Second), time.Time{}, false, false},
		{"nobody lived", 1, ago(11 * time.Second), time.Time{}, true, false},
	} {
		b := newBook(c.instances)
		q := testCheque(b)
		b.orphan(q, c.orphaned, time.Time{})
		b.died(c.death)
		b.ended(q, c.answered)
		a := &auditor{book: b, upstream: &upstream{runs: map[string]*work{}}}
		if problems := a.clients(); (len(problems) == 1) != c.late || c.late && problems[0].kind != late {
			t.Errorf("%s: %v", c.what, problems)
		}
		if problems := a.clients(); len(problems) != 0 {
			t.Errorf("%s, reported again: %v", c.what, problems)
		}
	}
}

// A shop front is an instance of which the test says how it answers.
func shopFront(t *testing.T, answer http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s
}

// dying takes a request and dies.
func dying(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		_ = conn.Close() // that is the point
	}
}

func testClient(t *testing.T, b *book, shops ...string) *client {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	c, err := newClient(b, &http.Client{Timeout: 20 * time.Second}, shops, 0, devchain.DeriveAccount("test"), rng)
	if err != nil {
		t.Fatal(err)
	}
	c.updated = func(context.Context, payment.Key) (time.Time, error) { return time.Time{}, nil }
	return c
}

func TestAClientWhoseInstanceDiesTakesItsPaymentToTheNext(t *testing.T) {
	b := newBook(3)
	q := testCheque(b)
	var asked []string
	sells := shopFront(t, func(w http.ResponseWriter, r *http.Request) {
		if asked = append(asked, r.Host+" "+r.Header.Get(payment.HeaderPayment)); len(asked) == 1 {
			http.Error(w, "wait", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set(payment.HeaderResponse, base64.StdEncoding.EncodeToString([]byte(`{"transaction":"0x1"}`)))
		_, _ = w.Write([]byte(goods(q.order))) // the client sees what arrives
	})
	dead := shopFront(t, nil)
	dead.Close()
	dies := shopFront(t, dying)
	c := testClient(t, b, dies.URL, dead.URL, sells.URL)
	if done, err := c.redeem(t.Context(), q); !done || err != nil {
		t.Fatal(done, err)
	}
	if want := []string{host + " signed", host + " signed"}; !slices.Equal(asked, want) {
		t.Errorf("asked with %q", asked)
	}
	if b.orphanedAt(q).IsZero() || b.fresh[2].Load() == 0 || b.fresh[0].Load() != 0 {
		t.Error("nobody noted who has died, or who has served")
	}
}

func TestAnInstanceThatWasNeverSentAPaymentLeavesNoneBehind(t *testing.T) {
	b := newBook(2)
	q := testCheque(b)
	dead := shopFront(t, nil)
	dead.Close()
	refuses := shopFront(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "pay", http.StatusPaymentRequired) })
	c := testClient(t, b, dead.URL, refuses.URL)
	if done, err := c.redeem(t.Context(), q); done || err != nil {
		t.Fatal(done, err)
	}
	if q.refused == "" || !b.orphanedAt(q).IsZero() {
		t.Errorf("refused with %q, orphaned at %s", q.refused, b.orphanedAt(q))
	}
}

func TestACopyThatGetsOtherGoodsIsADoubleGrant(t *testing.T) {
	b := newBook(2)
	q := testCheque(b)
	wrong := shopFront(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("something")) })
	c := testClient(t, b, wrong.URL, wrong.URL)
	p, ok := errors.AsType[*problem](c.copy(t.Context(), q, 1))
	if !ok || p.kind != doubleGrant {
		t.Errorf("problem %v", p)
	}
}

func TestADatabaseOfItsOwnIsOnTheSameServer(t *testing.T) {
	for server, want := range map[string]string{
		"postgres://postgres@/postgres?host=/tmp/s": "postgres://postgres@/kill_1?host=/tmp/s",
		"postgresql://a:b@db:5432/x":                "postgresql://a:b@db:5432/kill_1",
		"host=/tmp/s dbname=x":                      "",
		"mysql://db/x":                              "",
	} {
		got, err := inDatabase(server, "kill_1")
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", server, got, err)
		}
	}
	if _, err := createDatabase(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "e2e/postgres.sh") {
		t.Errorf("without a server: %v", err)
	}
}
