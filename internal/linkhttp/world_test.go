package linkhttp_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/linkhttp"
	"github.com/tollgate402/tollgate/internal/linkpage"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/payment/link"
)

// A world is a site on a chain of its own.
type world struct {
	t      *testing.T
	chain  *devchain.Chain
	clock  atomic.Int64 // seconds that the links are ahead of the time
	store  ledger.Store
	book   *ledger.Ledger
	links  *link.Store
	site   *linkhttp.Site
	url    string
	payer  devchain.Account
	seller devchain.Account

	contract *contract // that every answer is held against
}

func newWorld(t *testing.T) *world {
	t.Helper()
	c, err := devchain.Start(devchain.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	node := facilitatortest.Client(t, c.URL())
	w := &world{t: t, chain: c, store: ledger.NewMemory(), payer: c.Account("payer"), seller: c.Account("seller"), contract: newContract(t)}
	now := func() time.Time { return time.Now().Add(time.Duration(w.clock.Load()) * time.Second) }
	w.book = ledger.New(w.store, "test", now)
	engine, err := settle.New(settle.Config{
		Network: payment.EVM(84532), Chain: node, Ledger: w.book, Signers: []payment.CallSigner{facilitatortest.Lane{Key: c.Account("facilitator").Key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(engine.Stop)
	embedded, err := facilitator.NewEmbedded(w.book, []facilitator.Market{{Network: payment.EVM(84532), Tokens: []payment.Token{facilitatortest.USDC(t)}, Chain: node, Engine: engine}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	hub := &linkhttp.Hub{}
	pages, err := linkpage.New(linkpage.Config{Merchant: "The Shop"})
	if err != nil {
		t.Fatal(err)
	}
	w.links = &link.Store{Entries: w.store, Payments: w.book, Now: now, Random: rand.Reader, Changed: hub.Tell}
	w.site = &linkhttp.Site{
		Links: w.links, Till: &till.Till{Facilitator: embedded, Ledger: w.book, Now: now}, Book: w.book, Pages: pages,
		Base: "/x402", Deadline: 20 * time.Second, Hub: hub, Now: now,
	}
	server := httptest.NewServer(w.site)
	t.Cleanup(server.Close)
	w.url = server.URL
	return w
}

// bill makes a link over 0.05 USDC.
func (w *world) bill(change func(*link.Terms)) *link.Link {
	w.t.Helper()
	terms := link.Terms{Merchant: "main", Amount: "0.05", Offers: []payment.Offer{facilitatortest.Offer(w.t, 50_000, w.seller.Address)}, Description: "Website work"}
	if change != nil {
		change(&terms)
	}
	terms, err := terms.Check([]string{"shop.example"})
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := w.links.Create(w.t.Context(), terms, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// sign returns a payment of the link's offer, changed before it is signed.
func (w *world) sign(l *link.Link, change func(*evm.Authorization)) *evm.Transfer {
	w.t.Helper()
	drawn := facilitatortest.Authorize(w.t, w.payer.Key, &l.Offers[0], time.Now().Unix(), 600)
	a := drawn.Authorization
	if change != nil {
		change(&a)
	}
	return facilitatortest.Sign(w.t, w.payer.Key, a, l.Offers[0].Amount.Token())
}

// A reply is an answer of the site.
type reply struct {
	status int
	header http.Header
	body   string
}

func (r *reply) read(t *testing.T, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.body), into); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
}

func (w *world) ask(method, path, body string, header ...string) *reply {
	w.t.Helper()
	q, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		q.Header.Add(header[i], header[i+1])
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		w.t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	got := &reply{a.StatusCode, a.Header, string(text)}
	w.contract.check(method, path, body, got)
	return got
}

// old returns a body of the older API, with numbers as they are said to be.
func old(network string, transfer *evm.Transfer, texts, parts bool) map[string]any {
	a := transfer.Authorization
	number := func(n *big.Int) any {
		if texts {
			return n.String()
		}
		return json.Number(n.String())
	}
	payload := map[string]any{
		"from": a.From.Hex(), "to": a.To.Hex(), "value": number(a.Value), "nonce": fmt.Sprintf("0x%x", a.Nonce),
		"validAfter": number(a.ValidAfter), "validBefore": number(a.ValidBefore),
	}
	signature := transfer.Signature
	if parts {
		payload["v"], payload["r"], payload["s"] = signature[64], fmt.Sprintf("0x%x", signature[:32]), fmt.Sprintf("0x%x", signature[32:64])
	} else {
		payload["signature"] = fmt.Sprintf("0x%x", signature)
	}
	return map[string]any{"network": network, "payload": payload}
}

func encoded(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (w *world) status(l *link.Link) link.Status {
	w.t.Helper()
	now, err := w.links.Get(w.t.Context(), l.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return now.Status(time.Now().Add(time.Duration(w.clock.Load()) * time.Second))
}

// earned returns what the seller has, in atomic units.
func (w *world) earned() int64 { return w.chain.USDCBalance(w.seller.Address).Int64() }
