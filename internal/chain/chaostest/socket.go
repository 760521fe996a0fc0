package chaostest

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// serveSocket answers over WebSocket. Subscriptions are the honest node's own.
func (p *Proxy) serveSocket(w http.ResponseWriter, r *http.Request) {
	node, resp, err := websocket.DefaultDialer.Dial(p.WebSocket, nil)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	_ = resp.Body.Close()
	client, err := new(websocket.Upgrader).Upgrade(w, r, nil)
	if err != nil {
		_ = node.Close()
		return
	}
	p.keep(client, node)
	var pump sync.WaitGroup
	defer pump.Wait()
	defer p.drop(client, node)
	var mu sync.Mutex // held while client is written to
	write := func(body []byte) {
		mu.Lock()
		defer mu.Unlock()
		_ = client.WriteMessage(websocket.TextMessage, body) // who has left is noticed when it is read
	}
	pump.Go(func() { // until the connection to the node is closed
		for {
			_, body, err := node.ReadMessage()
			if err != nil {
				return
			}
			var notice request
			pushed := json.Unmarshal(body, &notice) == nil && notice.Method == "eth_subscription"
			if pushed && (p.isFrozen() || p.meets(LosesNotices, "")) {
				continue
			}
			write(body)
		}
	})
	for {
		_, body, err := client.ReadMessage()
		if err != nil {
			return
		}
		requests, batch, err := parse(body)
		if err != nil {
			return
		}
		what := methods(requests)
		if strings.HasPrefix(what, "eth_subscribe") || strings.HasPrefix(what, "eth_unsubscribe") {
			if node.WriteMessage(websocket.TextMessage, body) != nil {
				return
			}
			continue
		}
		if p.meets(Delay, what) { // holds up what comes after it, too
			time.Sleep(delays(p.draw("lateness "+what), p.MaxDelay))
		}
		if p.meets(ClosesSockets, what) || p.meets(DropEarly, what) {
			return
		}
		reply, err := p.reply(requests, batch)
		if err != nil || p.meets(DropLate, what) {
			return
		}
		if p.meets(Truncated, what) {
			reply = reply[:len(reply)/2]
		}
		write(reply)
	}
}

func (p *Proxy) keep(conns ...*websocket.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = true
	}
}

func (p *Proxy) drop(conns ...*websocket.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
		_ = c.Close()
	}
}

// hangUp closes every WebSocket connection.
func (p *Proxy) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}
