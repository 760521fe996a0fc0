package till_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A bank is what a shop needs to be paid: a facilitator, and somebody who
// knows what really happened to the money.
type bank struct {
	// facilitator returns the facilitator of a till on a ledger. It is called
	// again after a crash.
	facilitator func(l *ledger.Ledger) payment.Facilitator
	transfers   func() int // how often money has moved
	poor, rich  func()     // from poor on the payer cannot pay, from rich on it can again
	stall, flow func()     // from stall on nothing is included in a block, from flow on it is again
	later       func()     // puts the time of the chain's next blocks an hour ahead
	payer       devchain.Account
	seller      common.Address
}

// banks are the kinds of facilitators that every shop must work with.
var banks = map[string]func(t testing.TB) *bank{"fake": fakeBank, "embedded": embeddedBank, "remote": remoteBank}

func fakeBank(t testing.TB) *bank {
	var poor, stalled atomic.Bool
	fake := &facilitatortest.Fake{
		Settling: func(context.Context) error {
			if poor.Load() {
				return payment.Invalid(payment.EVMInsufficientBalance, "poor")
			}
			return nil
		},
		Settled: func(context.Context) error {
			if stalled.Load() {
				return &payment.UnavailableError{Doing: "settling", Pending: true, Transaction: "0x01"}
			}
			return nil
		},
	}
	return &bank{
		facilitator: func(l *ledger.Ledger) payment.Facilitator { return &facilitator.Journal{Facilitator: fake, Ledger: l} },
		transfers:   fake.Transfers,
		poor:        func() { poor.Store(true) }, rich: func() { poor.Store(false) },
		stall: func() { stalled.Store(true) }, flow: func() { stalled.Store(false) },
		payer: devchain.DeriveAccount("payer"), seller: devchain.DeriveAccount("seller").Address,
	}
}

// onChain returns a bank whose money is on a chain, without a facilitator.
func onChain(t testing.TB) (*bank, *devchain.Chain, *chain.Client) {
	t.Helper()
	var ahead atomic.Int64
	c, err := devchain.Start(devchain.Config{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	payer, agent, seller := c.Account("payer"), c.Account("agent"), c.Account("seller").Address
	all := c.USDCBalance(payer.Address)
	node := facilitatortest.Client(t, c.URL())
	b := &bank{
		transfers: func() int { return int(c.USDCBalance(seller).Int64() / 1000) },
		poor: func() {
			transact(t, c, payer, move(agent.Address, c.USDCBalance(payer.Address)))
			sees(t, c, node)
		},
		rich: func() {
			transact(t, c, agent, move(payer.Address, all))
			sees(t, c, node)
		},
		stall: c.Pause, flow: c.Resume,
		later: func() { ahead.Add(int64(time.Hour)) },
		payer: payer, seller: seller,
	}
	return b, c, node
}

// sees waits until the node client knows the chain's head: what was simulated
// after the one before is not simulated again.
func sees(t testing.TB, c *devchain.Chain, node *chain.Client) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		latest, err := c.Client().BlockNumber(context.Background())
		if err != nil {
			t.Error(err)
			return
		}
		if h, err := node.Head(); err == nil && h.Number >= latest {
			return
		}
		if time.Now().After(deadline) {
			t.Error("the client does not see the head")
			return
		}
	}
}

func embeddedBank(t testing.TB) *bank {
	b, c, node := onChain(t)
	b.facilitator = func(l *ledger.Ledger) payment.Facilitator { return embed(t, c, node, l) }
	return b
}

func remoteBank(t testing.TB) *bank {
	b, c, node := onChain(t)
	return remoteBankOn(t, b, c, node)
}

// remoteBankOn gives a bank somebody else's facilitator.
func remoteBankOn(t testing.TB, b *bank, c *devchain.Chain, node *chain.Client) *bank {
	t.Helper()
	theirs := embed(t, c, node, ledger.New(ledger.NewMemory(), "theirs", time.Now))
	server := httptest.NewServer(&facilitator.Handler{Facilitator: theirs, Deadline: time.Second})
	t.Cleanup(server.Close)
	b.facilitator = func(l *ledger.Ledger) payment.Facilitator {
		client, err := facilitator.NewClient(facilitator.ClientConfig{URL: server.URL})
		if err != nil {
			t.Fatal(err)
		}
		return &facilitator.Journal{Facilitator: client, Ledger: l}
	}
	return b
}

func embed(t testing.TB, c *devchain.Chain, node *chain.Client, l *ledger.Ledger) *facilitator.Embedded {
	t.Helper()
	engine, err := settle.New(settle.Config{
		Network: payment.EVM(84532), Chain: node, Ledger: l, Signers: []payment.CallSigner{facilitatortest.Lane{Key: c.Account("facilitator").Key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(engine.Stop)
	f, err := facilitator.NewEmbedded(l, []facilitator.Market{{Network: payment.EVM(84532), Tokens: []payment.Token{facilitatortest.USDC(t)}, Chain: node, Engine: engine}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// transact has an account call the token, in a block.
func transact(t testing.TB, c *devchain.Chain, from devchain.Account, data []byte) {
	t.Helper()
	ctx := context.Background()
	nonce, err := c.Client().PendingNonceAt(ctx, from.Address)
	if err != nil {
		t.Error(err)
		return
	}
	id := new(big.Int).SetUint64(c.ChainID())
	tx, err := types.SignNewTx(from.Key, types.LatestSignerForChainID(id), &types.DynamicFeeTx{
		ChainID: id, Nonce: nonce, To: &devchain.USDC, Data: data, Gas: 200_000, GasFeeCap: big.NewInt(1e11), GasTipCap: big.NewInt(1e9),
	})
	if err == nil {
		err = c.Client().SendTransaction(ctx, tx)
	}
	if err == nil {
		err = c.Mine(1)
	}
	if err != nil {
		t.Error(err)
	}
}

// move returns the call that moves units to an account.
func move(to common.Address, units *big.Int) []byte {
	data := append(crypto.Keccak256([]byte("transfer(address,uint256)"))[:4:4], common.LeftPadBytes(to[:], 32)...)
	return append(data, common.LeftPadBytes(units.Bytes(), 32)...)
}

// A shop is a till behind an HTTP server, with an upstream.
type shop struct {
	t     testing.TB
	bank  *bank
	store ledger.Store
	clock atomic.Int64 // seconds that the ledger and the till are ahead of the time
	gate  *gate

	mu       sync.Mutex
	ledger   *ledger.Ledger // guarded by mu, as is what follows
	till     *till.Till
	route    *till.Route
	upstream till.Upstream
	last     *till.Sale // of the last request that ended
	visits   int        // requests that have not ended

	url      string
	runs     atomic.Int64 // how often the upstream was called
	restarts int
}

// A gate stands before a facilitator's Settle, and after it.
type gate struct {
	payment.Facilitator
	before, after func()
}

func (g *gate) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	if g.before != nil {
		g.before()
	}
	s, err := g.Facilitator.Settle(ctx, p, o, charge)
	if g.after != nil {
		g.after()
	}
	return s, err
}

// open opens a shop. Its upstream greets.
func open(t testing.TB, b *bank, mode till.Mode) *shop {
	t.Helper()
	s := &shop{t: t, bank: b, store: ledger.NewMemory()}
	offers := []payment.Offer{facilitatortest.Offer(t, 1000, b.seller)}
	prepared, err := (&payment.Challenge{Description: "a greeting", MimeType: "text/plain", Offers: offers}).Prepare()
	if err != nil {
		t.Fatal(err)
	}
	s.route = &till.Route{Challenge: prepared, Offers: offers, Mode: mode, Deadline: 5 * time.Second, Upstream: 5 * time.Second}
	s.upstream = func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		fmt.Fprintf(w, "hello %s %s", r.Method, r.URL)
		return nil
	}
	s.restart()
	server := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// restart is what a new process does after a crash of the one before. It
// returns how many payments were released.
func (s *shop) restart() int {
	s.t.Helper()
	now := func() time.Time { return time.Now().Add(time.Duration(s.clock.Load()) * time.Second) }
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restarts++
	s.ledger = ledger.New(s.store, fmt.Sprint("process ", s.restarts), now)
	n, err := s.ledger.Recover(s.t.Context(), true)
	if err != nil {
		s.t.Fatal(err)
	}
	s.gate = &gate{Facilitator: s.bank.facilitator(s.ledger)}
	s.till = &till.Till{Facilitator: s.gate, Ledger: s.ledger, Now: now}
	return n
}

func (s *shop) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	t, route, upstream := s.till, s.route, s.upstream
	s.visits++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.visits--
	}()
	sale, err := t.Serve(w, r, route, func(w http.ResponseWriter, r *http.Request, sale *till.Sale) error {
		s.runs.Add(1)
		return upstream(w, r, sale)
	})
	s.mu.Lock()
	s.last = sale
	s.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// sells sets what the upstream does.
func (s *shop) sells(upstream till.Upstream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upstream = upstream
}

// offers changes the route.
func (s *shop) offers(change func(*till.Route)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	route := *s.route
	change(&route)
	s.route = &route
}

// sale returns what became of the last request. A client can have all of an
// answer a moment before the request has ended; one that still waits for
// something is not waited for long.
func (s *shop) sale() *till.Sale {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		last, visits := s.last, s.visits
		s.mu.Unlock()
		if visits == 0 || time.Now().After(deadline) {
			return last
		}
	}
}

// A purse is a payment in the form of a request header.
type purse struct {
	transfer    *evm.Transfer
	name, value string
}

// authorize signs a payment for the shop's offer.
func (s *shop) authorize(version int) *purse {
	s.t.Helper()
	transfer := facilitatortest.Authorize(s.t, s.bank.payer.Key, &s.route.Offers[0], time.Now().Unix(), 600)
	return s.wrap(version, transfer)
}

func (s *shop) wrap(version int, transfer *evm.Transfer) *purse {
	s.t.Helper()
	name, value := facilitatortest.Header(s.t, version, &s.route.Offers[0], transfer)
	return &purse{transfer, name, value}
}

// state returns how far a payment is.
func (s *shop) record(p *purse) (ledger.Record, error) {
	s.mu.Lock()
	l := s.ledger
	s.mu.Unlock()
	return l.Get(s.t.Context(), p.transfer.Key(84532, devchain.USDC))
}

// awaitState waits until a payment is in one of some states.
func (s *shop) awaitState(p *purse, states ...ledger.State) ledger.Record {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		r, err := s.record(p)
		if err == nil {
			if slices.Contains(states, r.State) {
				return r
			}
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the payment is %s, %v, want one of %s", r.State, err, states)
		}
	}
}

// A reply is an answer of the shop.
type reply struct {
	status  int
	header  http.Header
	trailer http.Header
	body    string
}

// transport sends a request once: on a connection that has been used before
// it would repeat one whose answer is cut off.
var transport = &http.Transport{DisableKeepAlives: true}

// ask sends a request, with a payment unless p is nil. header are names and
// values.
func (s *shop) ask(method, path, body string, p *purse, header ...string) *reply {
	s.t.Helper()
	a, err := s.try(s.t.Context(), method, path, body, p, header...)
	if err != nil {
		s.t.Error(err)
		return &reply{header: http.Header{}}
	}
	return a
}

func (s *shop) try(ctx context.Context, method, path, body string, p *purse, header ...string) (*reply, error) {
	var reader io.Reader = strings.NewReader(body)
	if body == "" {
		reader = nil
	}
	r, err := http.NewRequestWithContext(ctx, method, s.url+path, reader)
	if err != nil {
		return nil, err
	}
	if p != nil {
		r.Header.Set(p.name, p.value)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header[header[i]] = append(r.Header[header[i]], header[i+1])
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	doc, err := io.ReadAll(resp.Body)
	return &reply{resp.StatusCode, resp.Header, resp.Trailer, string(doc)}, err
}

// settlement returns what an answer says about the money, in one version.
func (a *reply) settlement(t testing.TB, version int) map[string]json.RawMessage {
	t.Helper()
	name := payment.HeaderResponse
	if version == payment.V1 {
		name = payment.HeaderResponseV1
	}
	values := a.header.Values(name)
	if len(values) != 1 {
		t.Errorf("%d: %s is %q", a.status, name, values)
		return nil
	}
	doc, err := base64.StdEncoding.DecodeString(values[0])
	var s map[string]json.RawMessage
	if err != nil || json.Unmarshal(doc, &s) != nil {
		t.Errorf("%s holds %q, %v", name, doc, err)
	}
	return s
}

// wantPaid checks an answer that is paid for.
func (s *shop) wantPaid(a *reply, p *purse, status int, body string) {
	s.t.Helper()
	if a.status != status || a.body != body {
		s.t.Errorf("got %d with %.200q, want %d with %.200q", a.status, a.body, status, body)
		return
	}
	hash := ""
	for version, network := range map[int]string{payment.V1: `"base-sepolia"`, payment.V2: `"eip155:84532"`} {
		m := a.settlement(s.t, version)
		if string(m["success"]) != "true" || string(m["network"]) != network || string(m["payer"]) != `"`+p.transfer.From.Hex()+`"` || len(m["transaction"]) != 68 {
			s.t.Errorf("v%d receipt %s", version, m)
		}
		if hash != "" && hash != string(m["transaction"]) {
			s.t.Errorf("two transactions: %s and %s", hash, m["transaction"])
		}
		hash = string(m["transaction"])
	}
	s.wantPrivate(a)
	if !strings.Contains(strings.Join(a.header.Values("Access-Control-Expose-Headers"), ","), "PAYMENT-RESPONSE") {
		s.t.Errorf("scripts cannot read the receipt: %v", a.header)
	}
}

// wantPrivate checks that no shared cache keeps an answer.
func (s *shop) wantPrivate(a *reply) {
	s.t.Helper()
	vary := strings.ToLower(strings.Join(a.header.Values("Vary"), ","))
	if a.header.Get("Cache-Control") != "private, no-store" || !strings.Contains(vary, "payment-signature") || !strings.Contains(vary, "x-payment") {
		s.t.Errorf("Cache-Control %q, Vary %q", a.header.Values("Cache-Control"), vary)
	}
	for _, name := range []string{"Expires", "Surrogate-Control", "Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "Age", "Pragma"} {
		if a.header.Get(name) != "" {
			s.t.Errorf("%s: %s", name, a.header.Get(name))
		}
	}
}

// wantPending checks an answer that must not invite to pay again.
func (s *shop) wantPending(a *reply, version int) map[string]json.RawMessage {
	s.t.Helper()
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || a.header.Get(payment.HeaderRequired) != "" || a.header.Get("Cache-Control") != "private, no-store" {
		s.t.Errorf("got %d %v with %q", a.status, a.header, a.body)
	}
	m := a.settlement(s.t, version)
	if string(m["success"]) != "false" || string(m["errorReason"]) != `"settlement_pending"` {
		s.t.Errorf("settlement %s", m)
	}
	return m
}

// wantChallenge checks that an answer asks for money, and nothing else.
func (s *shop) wantChallenge(a *reply) {
	s.t.Helper()
	if a.status != http.StatusPaymentRequired {
		s.t.Errorf("got %d with %q", a.status, a.body)
		return
	}
	s.wantPrivate(a)
	v2, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired))
	if err != nil || len(v2.Offers) != 1 || v2.Offers[0].Amount.Units() != "1000" {
		s.t.Errorf("challenge %+v, %v", v2, err)
	}
	v1, err := payment.DecodeRequiredBody([]byte(a.body))
	if err != nil || len(v1.Offers) != 1 || v1.Offers[0].PayTo != s.bank.seller.Hex() {
		s.t.Errorf("body %q, %v", a.body, err)
	}
}

// wantTransfers checks how often money has moved, and the upstream has run.
func (s *shop) want(transfers, runs int) {
	s.t.Helper()
	if got := s.bank.transfers(); got != transfers {
		s.t.Errorf("%d transfers, want %d", got, transfers)
	}
	if got := int(s.runs.Load()); got != runs {
		s.t.Errorf("the upstream ran %d times, want %d", got, runs)
	}
}

// everyBank runs a test with every kind of facilitator.
func everyBank(t *testing.T, mode till.Mode, test func(t *testing.T, s *shop)) {
	for name, b := range banks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t, b(t), mode))
		})
	}
}

// everyMode is everyBank in both modes.
func everyMode(t *testing.T, test func(t *testing.T, s *shop)) {
	for _, mode := range []till.Mode{till.Held, till.First} {
		t.Run(string(mode), func(t *testing.T) { everyBank(t, mode, test) })
	}
}

// together runs n copies of f at once.
func together(n int, f func(i int)) {
	var group sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		group.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	group.Wait()
}

var errUpstream = errors.New("the upstream is down")

func journal(f payment.Facilitator, l *ledger.Ledger) payment.Facilitator {
	return &facilitator.Journal{Facilitator: f, Ledger: l}
}
