package chain

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/gorilla/websocket"
)

const testChain = 84532

// fakeNode is a JSON-RPC server over HTTP and WebSocket with a chain of its own and every fault a real one has.
type fakeNode struct {
	server *httptest.Server

	mu        sync.Mutex
	chainID   uint64
	blocks    []fakeBlock // by number
	tags      map[string]int
	faults    []fault
	answers   map[string]func(params []json.RawMessage) (any, *fakeError)
	exchanges [][]fakeRequest // what was asked, polls excluded
	polls     int
	answered  int              // exchanges over HTTP that got their reply
	sockets   map[*socket]bool // every open one; true when it has subscribed
	conns     map[string]bool  // remote addresses that spoke HTTP
	header    http.Header      // of the last HTTP request
	urls      []string
}

type fakeBlock struct {
	number       uint64
	hash, parent common.Hash
	time         uint64
}

type fakeRequest struct {
	Method string            `json:"method"`
	Params []json.RawMessage `json:"params"`
	ID     json.RawMessage   `json:"id"`
}

type fakeError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Data    any    `json:"data,omitempty"`
}

// fault is what goes wrong with an exchange. only limits it to exchanges with that method.
type fault struct {
	only     string
	hang     chan struct{} // answer nothing until it is closed or the client leaves
	drop     bool          // close the connection at once
	dropLate bool          // close the connection after doing what was asked
	status   int
	location string // of a redirect
	garbage  string
}

type socket struct {
	mu sync.Mutex
	ws *websocket.Conn
}

func newFakeNode(t *testing.T) *fakeNode {
	t.Helper()
	n := &fakeNode{
		chainID: testChain,
		tags:    map[string]int{},
		answers: map[string]func([]json.RawMessage) (any, *fakeError){},
		sockets: map[*socket]bool{},
		conns:   map[string]bool{},
	}
	n.blocks = []fakeBlock{{number: 0, hash: blockHash(0, 0), time: 1_700_000_000}}
	n.server = httptest.NewServer(n)
	t.Cleanup(func() {
		n.setFault()
		n.closeSockets()
		n.server.CloseClientConnections()
		n.server.Close()
	})
	return n
}

func blockHash(number uint64, branch byte) common.Hash {
	return crypto.Keccak256Hash(binary.BigEndian.AppendUint64(nil, number), []byte{branch})
}

func (n *fakeNode) http() string { return n.server.URL }
func (n *fakeNode) ws() string   { return "ws" + strings.TrimPrefix(n.server.URL, "http") }
func (n *fakeNode) host() string { return strings.TrimPrefix(n.server.URL, "http://") }

// secretURL is the node's URL with credentials in every place they can be.
func (n *fakeNode) secretURL(scheme string) string {
	u := url.URL{Scheme: scheme, User: url.UserPassword("alice-user", "pa55word"), Host: n.host(), Path: "/v2/pathtoken", RawQuery: "apikey=querytoken"}
	return u.String()
}

var secretWords = []string{"alice-user", "pa55word", "pathtoken", "querytoken", "apikey"}

// setFault replaces what goes wrong. Of several faults the first that applies counts. What hangs goes on.
func (n *fakeNode) setFault(faults ...fault) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.faults {
		if f.hang != nil {
			close(f.hang)
		}
	}
	n.faults = faults
}

func (n *fakeNode) setChainID(id uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.chainID = id
}

// on answers method with f.
func (n *fakeNode) on(method string, f func(params []json.RawMessage) (any, *fakeError)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[method] = f
}

func (n *fakeNode) result(method string, result any) {
	n.on(method, func([]json.RawMessage) (any, *fakeError) { return result, nil })
}

func (n *fakeNode) failing(method string, e fakeError) {
	n.on(method, func([]json.RawMessage) (any, *fakeError) { return nil, &e })
}

// mine adds count blocks on branch and pushes them to subscribers. It returns the last.
func (n *fakeNode) mine(count int, branch byte) fakeBlock {
	n.mu.Lock()
	defer n.mu.Unlock()
	for range count {
		tip := n.blocks[len(n.blocks)-1]
		next := fakeBlock{tip.number + 1, blockHash(tip.number+1, branch), tip.hash, tip.time + 2}
		n.blocks = append(n.blocks, next)
		for s, subscribed := range n.sockets {
			if !subscribed {
				continue
			}
			s.send(map[string]any{
				"jsonrpc": "2.0", "method": "eth_subscription",
				"params": map[string]any{"subscription": "0x1", "result": next.json()},
			})
		}
	}
	return n.blocks[len(n.blocks)-1]
}

// drop takes the last count blocks away.
func (n *fakeNode) drop(count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.blocks = n.blocks[:len(n.blocks)-count]
}

func (b fakeBlock) json() map[string]any {
	return map[string]any{
		"number": hexutil.Uint64(b.number), "hash": b.hash, "parentHash": b.parent, "timestamp": hexutil.Uint64(b.time),
		"baseFeePerGas": "0x3b9aca00", "gasLimit": "0x1c9c380", "transactions": []string{},
	}
}

// subscribers returns how many sockets get pushed heads.
func (n *fakeNode) subscribers() (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, subscribed := range n.sockets {
		if subscribed {
			count++
		}
	}
	return count
}

func (n *fakeNode) closeSockets() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for s := range n.sockets {
		s.ws.UnderlyingConn().Close()
	}
}

// asked returns the methods of every exchange so far, polls excluded.
func (n *fakeNode) asked() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []string
	for _, exchange := range n.exchanges {
		var methods []string
		for _, r := range exchange {
			methods = append(methods, r.Method)
		}
		all = append(all, strings.Join(methods, "+"))
	}
	return all
}

func (n *fakeNode) lastExchange() []fakeRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.exchanges[len(n.exchanges)-1]
}

func (n *fakeNode) pollCount() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.polls
}

func (n *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	n.header = r.Header.Clone()
	n.urls = append(n.urls, r.URL.String())
	n.mu.Unlock()
	if websocket.IsWebSocketUpgrade(r) {
		n.serveSocket(w, r)
		return
	}
	n.mu.Lock()
	n.conns[r.RemoteAddr] = true
	n.mu.Unlock()
	var body json.RawMessage
	if json.NewDecoder(r.Body).Decode(&body) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	requests, batch := parseRequests(body)
	f := n.record(requests)
	if f.hang != nil {
		select {
		case <-f.hang:
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case f.drop:
		panic(http.ErrAbortHandler)
	case f.status != 0:
		w.Header().Set("Location", f.location)
		w.WriteHeader(f.status)
		w.Write([]byte("refused for " + r.URL.String()))
		return
	case f.garbage != "":
		w.Write([]byte(f.garbage))
		return
	}
	reply := n.reply(requests, batch)
	if f.dropLate {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(reply)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answered++
}

func (n *fakeNode) serveSocket(w http.ResponseWriter, r *http.Request) {
	ws, err := new(websocket.Upgrader).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	s := &socket{ws: ws}
	n.mu.Lock()
	n.sockets[s] = false
	n.mu.Unlock()
	defer ws.Close()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.sockets, s)
	}()
	for {
		_, body, err := ws.ReadMessage()
		if err != nil {
			return
		}
		requests, batch := parseRequests(body)
		f := n.record(requests)
		if f.drop || f.dropLate {
			return
		}
		if f.hang != nil {
			continue
		}
		if f.garbage != "" {
			s.write([]byte(f.garbage))
			continue
		}
		s.write(n.reply(requests, batch))
		if requests[0].Method == "eth_subscribe" {
			n.mu.Lock()
			n.sockets[s] = true
			n.mu.Unlock()
		}
	}
}

func (s *socket) send(message map[string]any) {
	body, err := json.Marshal(message)
	if err == nil {
		s.write(body)
	}
}

func (s *socket) write(body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ws.WriteMessage(websocket.TextMessage, body)
}

func parseRequests(body []byte) (requests []fakeRequest, batch bool) {
	if json.Unmarshal(body, &requests) == nil {
		return requests, true
	}
	requests = make([]fakeRequest, 1)
	json.Unmarshal(body, &requests[0])
	return requests, false
}

// record notes an exchange and returns the fault that applies to it.
func (n *fakeNode) record(requests []fakeRequest) fault {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(requests) == 2 && requests[0].Method == "eth_chainId" {
		n.polls++
	} else if requests[0].Method != "eth_subscribe" {
		n.exchanges = append(n.exchanges, requests)
	}
	for _, f := range n.faults {
		if f.only == "" || slices.ContainsFunc(requests, func(r fakeRequest) bool { return r.Method == f.only }) {
			return f
		}
	}
	return fault{}
}

func (n *fakeNode) reply(requests []fakeRequest, batch bool) []byte {
	replies := make([]map[string]any, len(requests))
	for i, r := range requests {
		replies[i] = map[string]any{"jsonrpc": "2.0", "id": r.ID}
		if result, failed := n.answer(r); failed != nil {
			replies[i]["error"] = failed
		} else {
			replies[i]["result"] = result
		}
	}
	var body []byte
	if batch {
		body, _ = json.Marshal(replies)
	} else {
		body, _ = json.Marshal(replies[0])
	}
	return body
}

func (n *fakeNode) answer(r fakeRequest) (any, *fakeError) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f := n.answers[r.Method]; f != nil {
		return f(r.Params)
	}
	tip := len(n.blocks) - 1
	switch r.Method {
	case "eth_chainId":
		return hexutil.Uint64(n.chainID), nil
	case "eth_blockNumber":
		return hexutil.Uint64(n.blocks[tip].number), nil
	case "eth_subscribe":
		return "0x1", nil
	case "eth_getBlockByNumber":
		var block string
		json.Unmarshal(r.Params[0], &block)
		if block == "latest" {
			return n.blocks[tip].json(), nil
		}
		if at, ok := n.tags[block]; ok {
			return n.blocks[at].json(), nil
		}
		if number, err := hexutil.DecodeUint64(block); err == nil && number <= uint64(tip) {
			return n.blocks[number].json(), nil
		}
		if block == "safe" || block == "finalized" {
			return nil, &fakeError{Code: -32000, Message: block + " block not found"}
		}
		return nil, nil
	case "eth_sendRawTransaction":
		var raw hexutil.Bytes
		json.Unmarshal(r.Params[0], &raw)
		return crypto.Keccak256Hash(raw), nil
	}
	return nil, &fakeError{Code: -32601, Message: "the method " + r.Method + " does not exist"}
}

// newClient returns a client of the given endpoints, not started, with tests' timing.
func newClient(t *testing.T, adjust func(*Config), endpoints ...string) *Client {
	t.Helper()
	cfg := Config{ChainID: testChain, Endpoints: endpoints, CallTimeout: 2 * time.Second, PollInterval: 10 * time.Millisecond}
	if adjust != nil {
		adjust(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// startClient returns a started client once every endpoint is up.
func startClient(t *testing.T, adjust func(*Config), endpoints ...string) *Client {
	t.Helper()
	c := newClient(t, adjust, endpoints...)
	if err := c.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	for i := range endpoints {
		awaitState(t, c, i, stateUp)
	}
	return c
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// await returns when condition, which is called with c.mu held, is true. c tells when to look again.
func await(t *testing.T, c *Client, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		c.mu.Lock()
		ok, changed := condition(), c.changed
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-time.After(5 * time.Millisecond): // not every field tells
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func awaitState(t *testing.T, c *Client, i int, want state) {
	t.Helper()
	await(t, c, string(want), func() bool { return c.endpoints[i].state == want })
}

func awaitHead(t *testing.T, c *Client, want fakeBlock) Head {
	t.Helper()
	ctx := testContext(t)
	var last common.Hash
	for {
		head, err := c.WaitHead(ctx, last)
		if err != nil {
			t.Fatalf("waiting for block %d: %v", want.number, err)
		}
		if head.Hash == want.hash {
			return head
		}
		last = head.Hash
	}
}
