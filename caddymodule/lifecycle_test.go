package caddymodule

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tollgate402/tollgate/internal/ledger/badger"
)

// openLedgers returns how many configurations and requests hold the ledger in
// dir.
func openLedgers(dir string) int {
	n, _ := ledgers.References((&BadgerLedger{Path: dir}).LedgerKey())
	return n
}

func TestAReloadKeepsTheLedgerUnderARequest(t *testing.T) {
	s := newSite(t)
	dir := s.dir
	arrived, goOn := make(chan struct{}), make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(arrived)
			<-goOn
		}
		_, _ = io.WriteString(w, "goods")
	}))
	defer upstream.Close()
	config := func(description string) string {
		return paidSite("ledger badger "+dir+"\n\t\tfacilitator fake", `x402 $0.01 `+description+`
	reverse_proxy `+strings.TrimPrefix(upstream.URL, "http://"))
	}
	s.load(config("before"))
	name, value := s.payFor("/slow")
	answered := make(chan answer, 1)
	go func() { answered <- s.get("/slow", name, value) }()
	<-arrived

	s.load(config("after"))
	if got := openLedgers(dir); got != 2 {
		t.Errorf("%d hold the ledger, want the new configuration and the old one's request", got)
	}
	otherName, otherValue := s.payFor("/other")
	if got := s.get("/other", otherName, otherValue); got.StatusCode != http.StatusOK {
		t.Errorf("after the reload: %s %s", got.Status, got.body)
	}
	close(goOn)
	if got := <-answered; got.StatusCode != http.StatusOK || got.body != "goods" {
		t.Errorf("the request that the reload interrupted: %s %s", got.Status, got.body)
	}
	waitFor(t, func() bool { return openLedgers(dir) == 1 })
	if got := s.get("/slow", name, value); got.StatusCode != http.StatusOK || got.body != "goods" {
		t.Errorf("its answer again, from the new configuration: %s %s", got.Status, got.body)
	}

	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := openLedgers(dir); got != 0 {
		t.Errorf("%d hold the ledger after the end", got)
	}
	store, err := badger.Open(dir, badger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}

// waitFor waits for what a goroutine of Caddy brings about.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 10 s")
		}
	}
}

func TestAPaymentIsUsedUpAcrossARestart(t *testing.T) {
	s := newSite(t)
	dir := s.dir
	config := paidSite("ledger badger "+dir+"\n\t\tfacilitator fake", `x402 $0.01
	respond "goods"`)
	s.load(config)
	name, value := s.payFor("/a")
	if got := s.get("/a", name, value); got.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", got.Status, got.body)
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s.load(config)
	if got := s.get("/b", name, value); got.StatusCode != http.StatusConflict {
		t.Errorf("used for something else after a restart: %s", got.Status)
	}
	if got := s.get("/a", name, value); got.StatusCode != http.StatusOK || got.body != "goods" {
		t.Errorf("the same again after a restart: %s %s", got.Status, got.body)
	}
}

func TestAConfigurationThatFailsToStartHoldsNothing(t *testing.T) {
	s := newSite(t)
	dir := s.dir
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	doc := s.config(paidSite("ledger badger "+dir+"\n\t\tfacilitator fake", `x402 $0.01`))
	if err := caddy.Load(doc, true); err == nil {
		t.Fatal("it started although its address is in use")
	}
	if got := openLedgers(dir); got != 0 {
		t.Errorf("%d hold the ledger", got)
	}
}

func TestValidatingTouchesNeitherDiskNorNetwork(t *testing.T) {
	s := newSite(t)
	dir := s.dir
	var asked atomic.Int64
	node := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer node.Close()
	t.Setenv("TEST_LANE_KEY", laneKey)
	for _, facilitator := range []string{"embedded", "http " + node.URL} {
		doc := s.config(strings.ReplaceAll(paidSite("ledger badger "+dir+"\n\t\tfacilitator "+facilitator, `x402 $0.01`),
			"network base-sepolia", "network base-sepolia {\n\t\t\trpc "+node.URL+"\n\t\t\tlane key {env.TEST_LANE_KEY}\n\t\t}"))
		var config *caddy.Config
		if err := json.Unmarshal(doc, &config); err != nil {
			t.Fatal(err)
		}
		if err := caddy.Validate(config); err != nil {
			t.Fatal(err)
		}
	}
	if exists(dir) {
		t.Error("the ledger was created")
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("%d requests were made", n)
	}
}

func TestALedgerInUseSaysWhatToDo(t *testing.T) {
	s := newSite(t)
	dir := s.dir
	store, err := badger.Open(dir, badger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	err = caddy.Load(s.config(paidSite("ledger badger "+dir+"\n\t\tfacilitator fake", `x402 $0.01`)), true)
	if err == nil || !strings.Contains(err.Error(), dir+" is in use by another process; if Caddy is running, use") {
		t.Errorf("error: %v", err)
	}
}
