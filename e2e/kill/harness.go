package main

import (
	"context"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/failpoint"
)

//go:embed Caddyfile.shop
var shopFile string

//go:embed Caddyfile.teller
var tellerFile string

// A harness is everything that a run needs. Its goroutines are the clients;
// everything else is done by the one that calls cycles.
type harness struct {
	options
	dir      string
	chain    *devchain.Chain
	upstream *upstream
	book     *book
	plan     *plan
	auditor  *auditor
	shop     *process
	teller   *process // nil where the shop settles itself

	closing   chan struct{} // closed when clients are to begin nothing new
	stop      context.CancelFunc
	clients   sync.WaitGroup
	clientErr chan error

	cycle      int
	random     int
	points     map[failpoint.Point]int
	recoveries []time.Duration
	counts     map[kind]int
}

func newHarness(ctx context.Context, o options) (h *harness, err error) {
	h = &harness{
		options: o, book: newBook(), plan: newPlan(o.seed, o.facilitator == "remote", o.jams, without(o)), closing: make(chan struct{}),
		clientErr: make(chan error, o.clients), points: map[failpoint.Point]int{}, counts: map[kind]int{},
	}
	if h.dir, err = os.MkdirTemp("", "tollgate-kill-"); err != nil {
		return nil, err
	}
	if h.binary == "" {
		h.binary = filepath.Join(h.dir, "tollgate")
		build := exec.CommandContext(ctx, "go", "build", "-tags", "failpoint", "-o", h.binary, "./cmd/tollgate")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return h, fmt.Errorf("building cmd/tollgate, from the root of the checkout: %w", err)
		}
	}
	if h.chain, err = devchain.Start(devchain.Config{BlockTime: blockTime}); err != nil {
		return h, err
	}
	if h.upstream, err = startUpstream(); err != nil {
		return h, err
	}
	if err := h.openShop(); err != nil {
		return h, err
	}
	seller := h.chain.Account("seller").Address
	h.auditor = &auditor{
		book: h.book, chain: h.chain, seller: seller, upstream: h.upstream, scratch: filepath.Join(h.dir, "copy"), moved: new(big.Int),
		reruns: o.reruns,
		fresh:  map[string]map[*cheque]struct{}{},
	}
	for _, p := range h.processes() {
		h.auditor.fresh[p.ledger()] = map[*cheque]struct{}{}
	}
	return h, h.openClients(ctx)
}

// blockTime is the time between blocks: short, and long enough for a payment
// to be seen in every state.
const blockTime = 40 * time.Millisecond

func (p *process) ledger() string { return filepath.Join(p.dir, "ledger") }

// openShop writes the Caddyfiles. Nothing is started yet.
func (h *harness) openShop() error {
	lane := "TOLLGATE_LANE_KEY=" + hex.EncodeToString(crypto.FromECDSA(h.chain.Account("facilitator").Key))
	network := "{\n\t\t\trpc " + h.chain.WebSocketURL() + "\n\t\t\tlane key {env.TOLLGATE_LANE_KEY}\n\t\t}"
	var err error
	if h.facilitator == "embedded" {
		h.shop, err = h.open("shop", shopFile, lane, "%NETWORK%", network, "%FACILITATOR%", "facilitator embedded")
		return err
	}
	if h.teller, err = h.open("teller", tellerFile, lane, "%NETWORK%", network); err != nil {
		return err
	}
	h.shop, err = h.open("shop", shopFile, "", "%NETWORK%", "", "%FACILITATOR%", "facilitator http http://"+h.teller.address)
	return err
}

func (h *harness) open(name, source, secret string, replace ...string) (*process, error) {
	p := &process{name: name, binary: h.binary, dir: filepath.Join(h.dir, name)}
	p.caddyfile = filepath.Join(p.dir, "Caddyfile")
	for _, env := range []string{secret, failpoint.EnvBreak + "=" + string(h.broken)} {
		if !strings.HasSuffix(env, "=") && env != "" {
			p.env = append(p.env, env)
		}
	}
	var err error
	if p.admin, err = freeAddress(); err != nil {
		return nil, err
	}
	if p.address, err = freeAddress(); err != nil {
		return nil, err
	}
	doc := strings.NewReplacer(append(replace, "%ADMIN%", p.admin, "%LISTEN%", p.address, "%LEDGER%", p.ledger(),
		"%PAY_TO%", h.chain.Account("seller").Address.Hex(), "%UPSTREAM%", h.upstream.address)...).Replace(source)
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	return p, os.WriteFile(p.caddyfile, []byte(doc), 0o600)
}

// processes are the shop and, before it, the facilitator that it asks.
func (h *harness) processes() []*process {
	if h.teller == nil {
		return []*process{h.shop}
	}
	return []*process{h.teller, h.shop}
}

func (h *harness) openClients(ctx context.Context) error {
	accounts, err := payers(h.chain, h.options.clients)
	if err != nil {
		return err
	}
	ctx, h.stop = context.WithCancel(ctx)
	transport := &http.Transport{MaxIdleConnsPerHost: 2 * len(accounts), DisableCompression: true}
	for i, account := range accounts {
		rng := rand.New(rand.NewPCG(h.seed, uint64(i))) //nolint:gosec // what is bought, no secret
		c, err := newClient(h.book, &http.Client{Transport: transport, Timeout: 20 * time.Second}, "http://"+h.shop.address, account, rng)
		if err != nil {
			return err
		}
		h.clients.Go(func() { // ends with closing or ctx; close waits for it
			if err := c.run(ctx, h.closing); err != nil {
				h.clientErr <- err
			}
		})
	}
	return nil
}

const (
	startPatience = 30 * time.Second // for the first paid answer of a life
	pointPatience = 5 * time.Second  // for a life to reach its point
	jamPatience   = 40 * time.Second // the same, where the engine has to lose its patience first
	endPatience   = 90 * time.Second // for all clients to get what they wait for
)

// cycles is the run. It returns errGiveUp after it has printed a problem.
func (h *harness) cycles(ctx context.Context) error {
	for h.cycle < h.options.cycles {
		if err := h.live(ctx, h.plan.next()); err != nil {
			return err
		}
	}
	for range secondChances {
		for _, p := range h.plan.points {
			if h.points[p] > 0 {
				continue
			}
			if err := h.live(ctx, h.plan.at(p)); err != nil {
				return err
			}
		}
	}
	return h.end(ctx)
}

// secondChances is how many cycles beyond those asked for a point gets that
// was never reached.
const secondChances = 3

// live is one cycle.
func (h *harness) live(ctx context.Context, f fall) error {
	h.cycle++
	h.book.cycle.Store(int64(h.cycle))
	if err := h.cut(ctx, f); err != nil {
		return fmt.Errorf("seed %d, cycle %d: %w", h.seed, h.cycle, err)
	}
	return nil
}

// cut lets the shop live once, ends it as f says, and looks at what is left.
func (h *harness) cut(ctx context.Context, f fall) error {
	victim := h.shop
	if f.victim == "teller" {
		victim = h.teller
	}
	for _, p := range h.processes() {
		if p.alive() && p == victim {
			p.kill() // it has not met its failpoint yet
		}
		if !p.alive() {
			at := ""
			if p == victim && f.point != "" {
				at = fmt.Sprintf("%s:%d", f.point, f.pass)
			}
			if err := p.start(h.cycle, at); err != nil {
				return err
			}
		}
	}
	if err := h.serve(ctx, victim); err != nil {
		return err
	}
	if err := h.await(ctx, f, victim); err != nil {
		return err
	}
	victim.kill()
	if err := victim.murdered(); err != nil {
		return err
	}
	if f.both {
		for _, p := range h.processes() {
			p.kill()
		}
	}
	point, err := victim.taken()
	if err != nil {
		return err
	}
	if point != "" {
		h.points[point]++
	} else {
		h.random++ // also where a point was not reached in time
	}
	return h.audit(ctx, false)
}

// serve waits until the life that has begun gives somebody the goods, or ends.
func (h *harness) serve(ctx context.Context, victim *process) error {
	patience := time.After(startPatience)
	for !h.served(victim) {
		select {
		case <-victim.ended:
			return nil
		case err := <-h.clientErr:
			return h.clientFailed(err)
		case <-ctx.Done():
			return ctx.Err()
		case <-patience:
			h.counts[other]++
			return fmt.Errorf("%s served no paid request within %s; see %s", victim.name, startPatience, victim.log)
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// served reports whether a request that began after the process has been
// served, and notes how long that took.
func (h *harness) served(p *process) bool {
	first := time.Unix(0, h.book.fresh.Load())
	if first.Before(p.began) {
		return false
	}
	if !p.settled {
		p.settled = true
		h.recoveries = append(h.recoveries, time.Since(p.began))
	}
	return true
}

// await waits for the end that f has chosen.
func (h *harness) await(ctx context.Context, f fall, victim *process) error {
	patience := pointPatience
	switch {
	case f.point == "":
		patience = f.after
	case f.jammed:
		patience = jamPatience
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var side sync.WaitGroup
	var sideErr error
	if f.jammed {
		side.Go(func() { sideErr = jam(ctx, h.chain) }) // ends with ctx, as the next one
	}
	if f.reload {
		side.Go(func() {
			for ctx.Err() == nil {
				_ = victim.reload(ctx)
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	var err error
	select {
	case <-victim.ended:
	case err = <-h.clientErr:
		err = h.clientFailed(err)
	case <-ctx.Done():
	}
	victim.kill()
	cancel()
	side.Wait()
	return errors.Join(err, sideErr)
}

// clientFailed reports an answer that no client should get.
func (h *harness) clientFailed(err error) error {
	if p, ok := errors.AsType[*problem](err); ok {
		return h.report([]problem{*p})
	}
	return h.report([]problem{{other, err.Error(), nil}})
}

// audit holds the chain against the clients and the ledgers of dead
// processes.
func (h *harness) audit(ctx context.Context, ended bool) error {
	problems, err := h.auditor.scan(ctx)
	if err != nil {
		return err
	}
	problems = append(problems, h.auditor.clients()...)
	for _, p := range h.processes() {
		// The ledger grows; later in a long run it is looked at less often.
		if p.alive() || !ended && h.cycle%(1+h.cycle/100) != 0 {
			continue
		}
		found, err := h.auditor.ledger(ctx, p.ledger(), ended)
		if err != nil {
			return err
		}
		problems = append(problems, found...)
	}
	if ended {
		problems = append(problems, h.auditor.closing()...)
	}
	return h.report(problems)
}

// report prints problems with the history of their payments.
func (h *harness) report(problems []problem) error {
	if len(problems) == 0 {
		return nil
	}
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	for i, p := range problems {
		h.counts[p.kind]++
		if i >= 5 || i >= 1 && h.broken != "" {
			continue
		}
		fmt.Printf("%s, seed %d, cycle %d: %s\n", p.kind, h.seed, h.cycle, p.what)
		if p.cheque == nil {
			continue
		}
		for n, c := range p.cheque.order.cheques {
			fmt.Printf("  payment %d of order %s: %s, payer %s, nonce %s\n", n+1, c.order.id, c.key, c.payer, c.nonce)
			for _, line := range c.history {
				fmt.Printf("    %s\n", line)
			}
			orders, _ := h.upstream.did(c.key.String())
			fmt.Printf("    the upstream ran for it: %v\n", orders)
		}
	}
	fmt.Printf("%d problems\n", len(problems))
	return errGiveUp
}

// end lets the clients finish on a shop that is not killed, ends it in good
// order, and looks at everything.
func (h *harness) end(ctx context.Context) error {
	for _, p := range h.processes() {
		if !p.alive() {
			if err := p.start(h.cycle+1, ""); err != nil {
				return err
			}
		}
	}
	close(h.closing)
	finished := make(chan struct{})
	go func() { // ends with the clients
		defer close(finished)
		h.clients.Wait()
	}()
	select {
	case <-finished:
	case err := <-h.clientErr:
		return h.clientFailed(err)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(endPatience):
		return fmt.Errorf("%d payments got no final answer within %s", h.book.waiting(), endPatience)
	}
	if err := h.settle(ctx); err != nil {
		return err
	}
	for _, p := range slices.Backward(h.processes()) {
		if err := p.stop(); err != nil {
			return err
		}
	}
	return h.audit(ctx, true)
}

// settle gives the last life the time to find out what became of the payments
// that earlier ones left behind. Many are in their clients' hands already, so
// nobody has waited for that. What is still open when the patience is over is
// for the audit to judge.
func (h *harness) settle(ctx context.Context) error {
	for patience := time.Now().Add(endPatience); time.Now().Before(patience); {
		problems, err := h.auditor.scan(ctx)
		if err = errors.Join(err, h.report(problems)); err != nil {
			return err
		}
		open := 0
		for _, p := range h.processes() {
			keys, err := p.underway(ctx)
			if err != nil {
				return err
			}
			open += h.book.landed(keys)
		}
		if open == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

func (h *harness) totals() *totals {
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	slices.Sort(h.recoveries)
	t := &totals{
		cycles: h.cycle, orders: h.book.orders, payments: h.book.signatures, random: h.random, points: h.points,
		recoveries: h.recoveries, counts: h.counts,
	}
	if h.auditor != nil {
		t.settled = h.auditor.transfers
	}
	return t
}

// close ends everything. After a failed run logs and ledgers stay.
func (h *harness) close(failed bool) error {
	if h.stop != nil {
		h.stop()
	}
	h.clients.Wait()
	for _, p := range []*process{h.shop, h.teller} {
		if p != nil {
			p.kill()
		}
	}
	var errs []error
	if h.upstream != nil {
		errs = append(errs, h.upstream.server.Close())
	}
	if h.chain != nil {
		errs = append(errs, h.chain.Close())
	}
	if h.broken == "" && (failed || h.keep) {
		fmt.Fprintln(os.Stderr, "kill: logs and ledgers are in", h.dir)
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, os.RemoveAll(h.dir))...)
}
