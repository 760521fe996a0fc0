package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/devchain"
)

// An upstream is the API that is sold. It outlives the shop and remembers who
// made it work.
type upstream struct {
	server  *http.Server
	address string

	mu   sync.Mutex
	runs map[string]*work // guarded by mu, by the payment's name
}

// work is what the upstream did for one payment. It is guarded by upstream.mu.
type work struct {
	orders []string // the order of each run
	active int
	most   int // the largest active has been
}

func startUpstream() (*upstream, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u := &upstream{address: l.Addr().String(), runs: map[string]*work{}}
	u.server = &http.Server{Handler: u, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = u.server.Serve(l) }() // ends with Close
	return u, nil
}

// goods is what an order is answered with: larger than the buffers on its way.
func goods(o *order) string {
	return o.path() + " " + o.content() + strings.Repeat(" goods", 1000)
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, rest, _ := strings.Cut(r.URL.Path, "/")
	route, id, _ := strings.Cut(rest, "/")
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return // the shop has died
	}
	done := u.begin(r.Header.Get("X-402-Payment"), id)
	defer done()
	select {
	case <-r.Context().Done():
		return
	case <-time.After(rand.N(20 * time.Millisecond)): //nolint:gosec // no secret
	}
	doc := goods(&order{id: id, route: route, method: r.Method})
	if r.Method == http.MethodPost {
		doc = strings.Replace(doc, "order "+id, string(body), 1)
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Content-Length", strconv.Itoa(len(doc)))
	_, _ = io.WriteString(w, doc) //nolint:gosec // text for our own clients; the shop may have died
}

func (u *upstream) begin(payment, id string) (done func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	k, ok := u.runs[payment]
	if !ok {
		k = &work{}
		u.runs[payment] = k
	}
	k.orders = append(k.orders, id)
	k.active++
	k.most = max(k.most, k.active)
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		k.active--
	}
}

// did returns what was done for a payment.
func (u *upstream) did(payment string) (orders []string, most int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	k, ok := u.runs[payment]
	if !ok {
		return nil, 0
	}
	return k.orders, k.most
}

// forget drops what is known of a payment that is done with.
func (u *upstream) forget(payment string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.runs, payment)
}

// payers returns n accounts with money.
func payers(c *devchain.Chain, n int) ([]devchain.Account, error) {
	var list []devchain.Account
	for i := range n {
		a := devchain.DeriveAccount("kill client " + strconv.Itoa(i))
		if err := c.Mint(a.Address, big.NewInt(1e15)); err != nil {
			return nil, fmt.Errorf("giving money to a client: %w", err)
		}
		list = append(list, a)
	}
	return list, nil
}

// jam makes a chain seal empty blocks for a while: the head goes on, and
// whatever is sent waits in the pool.
func jam(ctx context.Context, c *devchain.Chain) error {
	c.Pause()
	defer c.Resume()
	idle := common.HexToAddress("0x00000000000000000000000000000000000c1061")
	for wei := int64(1); ; wei++ {
		if err := c.SetETHBalance(idle, big.NewInt(wei)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func decodeBase64(s string) string {
	doc, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return ""
	}
	return string(doc)
}

// errGiveUp ends a run whose problems have been printed.
var errGiveUp = errors.New("the run has failed")
