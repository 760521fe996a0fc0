//go:build !recoverchild

package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	_ "github.com/tollgate402/tollgate/caddymodule"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/signer/localkey"
)

// A stack is Caddy with a priced site, a plain one, and a facilitator, on a
// chain with instant blocks.
type stack struct {
	chain *devchain.Chain
	paid  string // address of the site with a price
	plain string // address of the site that answers the same body with respond
	open  string // address of the facilitator
	dir   string

	rpc   string       // of the chain, through node
	node  *http.Server // counts the calls to the chain; nil where nobody asks
	calls atomic.Int64 // round trips to the node
}

const caddyfile = `
{
	admin off
	log {
		output discard
	}
	auto_https off
	x402 {
		pay_to %[1]s
		network base-sepolia {
			rpc %[2]s
			lane key {env.TOLLGATE_BENCH_KEY}
		}
		ledger badger %[3]s
	}
}
http://%[4]s {
	x402 $0.001 "Bench"
	respond "{\"ok\":true}"
}
http://%[5]s {
	header Content-Type application/json
	respond %[6]s 402
}
http://%[7]s {
	x402_facilitator {
		insecure_open
	}
}
`

// newStack starts a stack. body is what the plain site answers.
func newStack(body string) (s *stack, err error) { return start(body, false) }

// newCountedStack is newStack with a node that counts its calls.
func newCountedStack(body string) (s *stack, err error) { return start(body, true) }

func start(body string, counted bool) (s *stack, err error) {
	s = &stack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.chain, err = devchain.Start(devchain.Config{}); err != nil {
		return s, err
	}
	if s.dir, err = os.MkdirTemp("", "tollgate-bench-"); err != nil {
		return s, err
	}
	s.rpc = s.chain.WebSocketURL()
	if counted {
		if err := s.count(); err != nil {
			return s, err
		}
	}
	for _, a := range []*string{&s.paid, &s.plain, &s.open} {
		if *a, err = freeAddress(); err != nil {
			return s, err
		}
	}
	if err := os.Setenv("TOLLGATE_BENCH_KEY", hex.EncodeToString(crypto.FromECDSA(s.chain.Account("facilitator").Key))); err != nil {
		return s, err
	}
	source := fmt.Sprintf(caddyfile, s.chain.Account("seller").Address.Hex(), s.rpc, filepath.Join(s.dir, "ledger"),
		s.paid, s.plain, strconv.Quote(body), s.open)
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(source), map[string]any{"filename": "bench"})
	if err != nil {
		return s, err
	}
	return s, caddy.Load(config, true)
}

// count puts a server in front of the chain that counts what is asked.
func (s *stack) count() error {
	target, err := url.Parse(s.chain.URL())
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 64}
	s.node = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		proxy.ServeHTTP(w, r)
	})}
	s.rpc = "http://" + l.Addr().String()
	go func() { _ = s.node.Serve(l) }() // ends with Close in close
	return nil
}

func (s *stack) close() error {
	err := caddy.Stop()
	if s.node != nil {
		err = errors.Join(err, s.node.Close())
	}
	if s.chain != nil {
		err = errors.Join(err, s.chain.Close())
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// offer returns the price of the paid site, by asking it.
func (s *stack) challenge(ctx context.Context) (*payment.Received, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.paid+"/", nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, err
	}
	c, err := payment.DecodeRequired(resp.Header.Get(payment.HeaderRequired))
	return c, body, err
}

// transfer signs a fresh payment for an offer.
func (s *stack) transfer(ctx context.Context, o *payment.Offer) (*evm.Transfer, error) {
	payer := s.chain.Account("payer")
	key, err := localkey.Parse(hex.EncodeToString(crypto.FromECDSA(payer.Key)))
	if err != nil {
		return nil, err
	}
	a := evm.Authorization{
		From: payer.Address, To: common.HexToAddress(o.PayTo), Value: o.Amount.Big(),
		ValidAfter: new(big.Int), ValidBefore: big.NewInt(time.Now().Add(time.Hour).Unix()),
	}
	if _, err := rand.Read(a.Nonce[:]); err != nil {
		return nil, err
	}
	return key.SignTransfer(ctx, evm.DomainOf(o.Amount.Token()), a)
}

const measureFor = 3 * time.Second

func benchChallenge(ctx context.Context) (rows []row, err error) {
	// The body has the address of the site in it, so the plain site can only
	// be given one of the same length.
	s, err := newStack(strings.Repeat("x", 480))
	if err != nil {
		return nil, err
	}
	_, body, err := s.challenge(ctx)
	if err := errors.Join(err, s.close()); err != nil {
		return nil, err
	}
	if s, err = newStack(string(body)); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	request := func(address string) func(int) []byte {
		doc := []byte("GET / HTTP/1.1\r\nHost: " + address + "\r\n\r\n")
		return func(int) []byte { return doc }
	}
	var ours, plain load
	for range 3 { // interleaved, the best of each
		a, err := generate(ctx, s.paid, request(s.paid), http.StatusPaymentRequired, 32, measureFor/2)
		if err != nil {
			return nil, err
		}
		b, err := generate(ctx, s.plain, request(s.plain), http.StatusPaymentRequired, 32, measureFor/2)
		if err != nil {
			return nil, err
		}
		if a.perSecond > ours.perSecond {
			ours = a
		}
		if b.perSecond > plain.perSecond {
			plain = b
		}
	}
	return []row{row{
		Name: "challenge", Ours: ours.perSecond, Baseline: plain.perSecond, Unit: "req/s", Target: ">= 0.9x respond",
		Note: fmt.Sprintf("32 connections; p50 %s, respond %s", ours.p50, plain.p50),
	}.compare(false)}, nil
}

func benchVerify(ctx context.Context) (rows []row, err error) {
	s, err := newCountedStack("x")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	c, _, err := s.challenge(ctx)
	if err != nil {
		return nil, err
	}
	ours, err := s.verifying(ctx, c, s.open)
	if err != nil {
		return nil, err
	}
	theirs, err := s.verifyingOfficially(ctx, c)
	if err != nil {
		return nil, err
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return []row{
		row{
			Name: "verify warm", Ours: ours.warm.perSecond, Baseline: theirs.warm.perSecond, Unit: "req/s", Target: ">= 30x TypeScript, 3x official Go (4000-5100)",
			Note: "16 connections, payments that were seen in this block; beside the official TypeScript facilitator",
		}.compare(false),
		row{Name: "verify cold", Ours: ours.cold.perSecond, Baseline: theirs.cold.perSecond, Unit: "req/s", Target: "-", Note: "the same, each payment for the first time"}.compare(false),
		row{Name: "verify p50", Ours: ms(ours.one.p50), Baseline: ms(theirs.one.p50), Unit: "ms", Target: "<= 0.3", Note: fmt.Sprintf("1 connection, warm; p99 %s, official %s", ours.one.p99, theirs.one.p99)}.compare(true),
		row{Name: "verify cold p50", Ours: ms(ours.cold.p50), Baseline: ms(theirs.cold.p50), Unit: "ms", Target: "-", Note: fmt.Sprintf("16 connections; p99 %s, official %s", ours.cold.p99, theirs.cold.p99)}.compare(true),
		row{
			Name: "verify known", Ours: ours.known.perSecond, Baseline: theirs.known.perSecond, Unit: "req/s", Target: "-",
			Note: "16 connections; new payments of a payer that was seen after the same block, exact, where the caller says that this does",
		}.compare(false),
		row{Name: "verify known p50", Ours: ms(ours.known.p50), Baseline: ms(theirs.known.p50), Unit: "ms", Target: "-", Note: fmt.Sprintf("16 connections; p99 %s, official %s", ours.known.p99, theirs.known.p99)}.compare(true),
		row{Name: "verify calls warm", Ours: ours.callsWarm, Baseline: theirs.callsWarm, Unit: "calls", Target: "0", Note: "round trips to the node for each payment; new blocks are asked for beside that"}.compare(true),
		row{Name: "verify calls cold", Ours: ours.callsCold, Baseline: theirs.callsCold, Unit: "calls", Target: "1", Note: "the same, each payment for the first time"}.compare(true),
		row{Name: "verify calls known", Ours: ours.callsKnown, Baseline: theirs.callsKnown, Unit: "calls", Target: "0", Note: "new payments of a known payer, which is asked about every five seconds"}.compare(true),
	}, nil
}

// verified is how a facilitator verified.
type verified struct {
	warm, cold, known, one           load
	callsWarm, callsCold, callsKnown float64 // to the node, for each payment
}

// verifying measures /verify of the facilitator at an address.
func (s *stack) verifying(ctx context.Context, c *payment.Received, address string) (v verified, err error) {
	const few, many = 512, 4096
	sign := func(n int, header string) (docs [][]byte, err error) {
		docs = make([][]byte, n)
		for i := range docs {
			if docs[i], err = s.verifyRequest(ctx, c, address, header); err != nil {
				return nil, err
			}
		}
		return docs, nil
	}
	seen, err := sign(few, "")
	if err != nil {
		return v, err
	}
	strange, err := sign(many, "")
	if err != nil {
		return v, err
	}
	// Of these what is known of the payer does.
	fresh, err := sign(many, "Cache-Control: max-stale\r\n")
	if err != nil {
		return v, err
	}
	again := func(i int) []byte { return seen[i%few] }
	once := func(docs [][]byte) func(int) []byte {
		return func(i int) []byte {
			if i >= len(docs) {
				return nil
			}
			return docs[i]
		}
	}
	if _, err := generate(ctx, address, again, http.StatusOK, 4, time.Second); err != nil {
		return v, err
	}
	count := func(to *load, per *float64, request func(i int) []byte, connections int) error {
		before := s.calls.Load()
		if *to, err = generate(ctx, address, request, http.StatusOK, connections, measureFor); err != nil {
			return err
		}
		if to.requests > 0 {
			*per = float64(s.calls.Load()-before) / float64(to.requests)
		}
		return nil
	}
	var ignored float64
	err = errors.Join(
		count(&v.warm, &v.callsWarm, again, 16),
		count(&v.one, &ignored, again, 1),
		count(&v.cold, &v.callsCold, once(strange), 16),
		count(&v.known, &v.callsKnown, once(fresh), 16),
	)
	return v, err
}

// verifyingOfficially is verifying of the official TypeScript facilitator, on
// the same chain. Without it there is nothing to measure.
func (s *stack) verifyingOfficially(ctx context.Context, c *payment.Received) (v verified, err error) {
	script, err := filepath.Abs("e2e/interop/v2/facilitator.mjs")
	if err != nil {
		return v, err
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(script), "node_modules")); err != nil {
		fmt.Fprintln(os.Stderr, "bench: SKIPPED the official facilitator: it is not installed; run e2e/interop.sh first, from the root of the checkout")
		return v, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", script)
	cmd.Env = append(os.Environ(), "RPC_URL="+s.rpc, "PRIVATE_KEY=0x"+hex.EncodeToString(crypto.FromECDSA(s.chain.Account("facilitator2").Key)))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return v, err
	}
	if err := cmd.Start(); err != nil {
		return v, fmt.Errorf("the official facilitator: %w", err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it was killed
	}()
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return v, fmt.Errorf("the official facilitator did not start: %w", err)
	}
	return s.verifying(ctx, c, strings.TrimSpace(address))
}

// verifyRequest returns the bytes of a POST /verify of a fresh payment, with
// a line of header or none.
func (s *stack) verifyRequest(ctx context.Context, c *payment.Received, address, header string) ([]byte, error) {
	offer := &c.Offers[0]
	t, err := s.transfer(ctx, &offer.Offer)
	if err != nil {
		return nil, err
	}
	_, signed := c.Pay(offer, t.Encode()).Header()
	p, err := base64.StdEncoding.DecodeString(signed)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(struct {
		Version      int             `json:"x402Version"`
		Payment      json.RawMessage `json:"paymentPayload"`
		Requirements json.RawMessage `json:"paymentRequirements"`
	}{payment.V2, p, offer.Raw})
	if err != nil {
		return nil, err
	}
	head := fmt.Sprintf("POST /verify HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n", address, header, len(body))
	return append([]byte(head), body...), nil
}

// paidAlone sends payments that are signed already, and measures the paid
// request alone: verified, claimed, served, settled and released.
func (s *stack) paidAlone(ctx context.Context) (row, error) {
	c, _, err := s.challenge(ctx)
	if err != nil {
		return row{}, err
	}
	docs := make([][]byte, 300)
	for i := range docs {
		t, err := s.transfer(ctx, &c.Offers[0].Offer)
		if err != nil {
			return row{}, err
		}
		name, value := c.Pay(&c.Offers[0], t.Encode()).Header()
		docs[i] = fmt.Appendf(nil, "GET / HTTP/1.1\r\nHost: %s\r\n%s: %s\r\n\r\n", s.paid, name, value)
	}
	request := func(i int) []byte {
		if i < len(docs) {
			return docs[i]
		}
		return nil
	}
	one, err := generate(ctx, s.paid, request, http.StatusOK, 1, 30*time.Second)
	if err != nil {
		return row{}, err
	}
	return row{
		Name: "paid request", Ours: float64(one.p50.Microseconds()) / 1000, Unit: "ms", Target: "part of paid",
		Note: fmt.Sprintf("verified, claimed, served, settled, released; p99 %s", one.p99),
	}, nil
}

// benchPaid lets the official client pay many times in one process.
func benchPaid(ctx context.Context) (rows []row, err error) {
	script, err := filepath.Abs("e2e/interop/v2/bench.mjs")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(script), "node_modules")); err != nil {
		if os.Getenv("CI") != "" {
			return nil, errors.New("the official client is not installed: run e2e/interop.sh first")
		}
		fmt.Fprintln(os.Stderr, "bench: SKIPPED paid: the official client is not installed; run e2e/interop.sh first, from the root of the checkout")
		return nil, nil
	}
	s, err := newStack("x")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	cmd := exec.CommandContext(ctx, "node", script)
	cmd.Env = append(os.Environ(), "RESOURCE_URL=http://"+s.paid+"/", "RPC_URL="+s.chain.URL(),
		"PRIVATE_KEY=0x"+hex.EncodeToString(crypto.FromECDSA(s.chain.Account("payer").Key)), "COUNT=200")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("the official client: %w", err)
	}
	var result struct {
		P50 float64 `json:"p50_ms"`
		P99 float64 `json:"p99_ms"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return nil, fmt.Errorf("reading what the official client printed: %w", err)
	}
	alone, err := s.paidAlone(ctx)
	if err != nil {
		return nil, err
	}
	return []row{alone, {
		Name: "paid", Ours: result.P50, Unit: "ms", Target: "<= 7 (official stacks: 8.4-28.8)",
		Note: fmt.Sprintf("@x402/fetch, both requests and the signature; p99 %.1f ms", result.P99),
	}}, nil
}
