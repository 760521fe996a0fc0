package chaostest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/gorilla/websocket"
)

// oversize is more than a client reads of one answer.
const oversize = 33 << 20

// Config says what a Proxy is to do.
type Config struct {
	HTTP, WebSocket string // the honest node

	Seed uint64
	Plan Plan

	MaxDelay time.Duration // of an answer that comes late

	// Forge returns the logs that a transaction would leave that pays, or
	// cancels, the authorizations in it. Needed for lies about receipts.
	Forge func(tx *types.Transaction, cancels bool) []*types.Log
}

// A Proxy is a node that fails and lies.
type Proxy struct {
	Config
	server *httptest.Server
	client *http.Client
	calm   atomic.Bool

	mu     sync.Mutex
	asked  map[string]int                     // guarded by mu: how often what was drawn
	met    map[Fault]int                      // guarded by mu
	sent   map[common.Hash]*types.Transaction // guarded by mu: what clients sent
	looks  int                                // guarded by mu: polls of the head
	frozen uint64                             // guarded by mu: the head of a stale node; 0 if it is not
	conns  map[*websocket.Conn]bool           // guarded by mu
}

// New runs a proxy until the test ends.
func New(t testing.TB, c Config) *Proxy {
	t.Helper()
	p := &Proxy{
		Config: c, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}},
		asked: map[string]int{}, met: map[Fault]int{}, sent: map[common.Hash]*types.Transaction{}, conns: map[*websocket.Conn]bool{},
	}
	p.server = httptest.NewServer(p)
	t.Cleanup(func() {
		p.hangUp()
		p.server.CloseClientConnections()
		p.server.Close()
		p.client.CloseIdleConnections()
	})
	return p
}

// URL is where it answers over HTTP.
func (p *Proxy) URL() string { return p.server.URL }

// WebSocketURL is where it answers over WebSocket.
func (p *Proxy) WebSocketURL() string { return "ws" + strings.TrimPrefix(p.server.URL, "http") }

// Calm ends the chaos: from now on it passes everything on as it is.
func (p *Proxy) Calm() {
	p.calm.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = 0
}

// Met returns how often each fault was met.
func (p *Proxy) Met() map[Fault]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.met)
}

// draw returns the chance that the next thing of a name meets a fault by.
func (p *Proxy) draw(name string) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[name]++
	return chance(p.Seed, name, strconv.Itoa(p.asked[name]))
}

// meets reports whether the next request for a method meets a fault.
func (p *Proxy) meets(f Fault, method string) bool {
	c, planned := p.Plan[f]
	if !planned || p.calm.Load() || p.draw(string(f)+" "+method) >= c {
		return false
	}
	p.note(f)
	return true
}

func (p *Proxy) note(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.met[f]++
}

type request struct {
	Version string            `json:"jsonrpc"`
	ID      json.RawMessage   `json:"id,omitempty"`
	Method  string            `json:"method"`
	Params  []json.RawMessage `json:"params"`
}

type response struct {
	Version string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *nodeError      `json:"error,omitempty"`
}

type nodeError struct {
	Code    int             `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data,omitempty"`
}

func parse(body []byte) (requests []request, batch bool, err error) {
	if bytes.HasPrefix(bytes.TrimSpace(body), []byte("[")) {
		return requests, true, json.Unmarshal(body, &requests)
	}
	requests = make([]request, 1)
	return requests, false, json.Unmarshal(body, &requests[0])
}

func methods(requests []request) string {
	names := make([]string, len(requests))
	for i, r := range requests {
		names[i] = r.Method
	}
	return strings.Join(names, "+")
}

// ServeHTTP answers what clients ask.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if websocket.IsWebSocketUpgrade(r) {
		p.serveSocket(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	requests, batch, err := parse(body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	what := methods(requests)
	if p.meets(Delay, what) {
		late := time.NewTimer(delays(p.draw("lateness "+what), p.MaxDelay))
		defer late.Stop()
		select {
		case <-late.C:
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case p.meets(DropEarly, what):
		panic(http.ErrAbortHandler)
	case p.meets(Busy, what):
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return
	case p.meets(BadGateway, what):
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusBadGateway)
		_, _ = w.Write([]byte("<html><body><h1>502 Bad Gateway</h1></body></html>"))
		return
	}
	reply, err := p.reply(requests, batch)
	if err != nil || p.meets(DropLate, what) {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case p.meets(Truncated, what):
		reply = reply[:len(reply)/2]
	case p.Plan[Oversized] > 0 && p.first(Oversized) && p.meets(Oversized, ""):
		_, _ = w.Write(bytes.Repeat([]byte(" "), oversize))
	}
	_, _ = w.Write(reply) // a client that has left is no fault of ours
}

// first reports whether a fault has not been met yet.
func (p *Proxy) first(f Fault) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.met[f] == 0
}

// reply answers an exchange. An error means that the node is not there.
func (p *Proxy) reply(requests []request, batch bool) ([]byte, error) {
	responses := make([]response, len(requests))
	if methods(requests) == "eth_chainId+eth_getBlockByNumber" {
		if err := p.age(); err != nil {
			return nil, err
		}
	}
	for i, r := range requests {
		result, failed, err := p.answer(r)
		if err != nil {
			return nil, err
		}
		responses[i] = response{Version: "2.0", ID: r.ID, Result: result, Error: failed}
		if p.meets(WrongID, r.Method) {
			responses[i].ID = json.RawMessage("987654321")
		}
	}
	if batch {
		return json.Marshal(responses)
	}
	return json.Marshal(responses[0])
}

// ask asks the honest node.
func (p *Proxy) ask(method string, params ...json.RawMessage) (json.RawMessage, *nodeError, error) {
	if params == nil {
		params = []json.RawMessage{}
	}
	body, err := json.Marshal(request{Version: "2.0", ID: json.RawMessage("1"), Method: method, Params: params})
	if err != nil {
		return nil, nil, err
	}
	resp, err := p.client.Post(p.HTTP, "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	var r response
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		return nil, nil, err
	}
	if r.Error == nil && r.Result == nil {
		r.Result = json.RawMessage("null")
	}
	return r.Result, r.Error, nil
}

// read asks the honest node for something that it has.
func read[T any](p *Proxy, method string, params ...json.RawMessage) (value T, err error) {
	result, failed, err := p.ask(method, params...)
	if err == nil && failed != nil {
		err = errors.New(failed.Message)
	}
	if err != nil {
		return value, err
	}
	return value, json.Unmarshal(result, &value)
}
