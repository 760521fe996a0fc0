package main

import (
	"context"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net"
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
	"github.com/tollgate402/tollgate/payment"
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
	database *database // nil where the ledgers are in folders
	book     *book
	plan     *plan
	auditor  *auditor
	shops    []*process // the instances, one or more
	teller   *process   // nil where the shop settles itself

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
		options: o, book: newBook(o.instances), plan: newPlan(o), closing: make(chan struct{}),
		clientErr: make(chan error, o.clients), points: map[failpoint.Point]int{}, counts: map[kind]int{},
	}
	h.book.limit = o.takeover
	if o.ledger == onPostgres {
		if h.database, err = createDatabase(ctx, os.Getenv(databaseVariable)); err != nil {
			return nil, err
		}
	}
	if h.dir, err = os.MkdirTemp("", "tollgate-kill-"); err != nil {
		return h, err
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
	if err := h.openShops(); err != nil {
		return h, err
	}
	seller := h.chain.Account("seller").Address
	h.auditor = &auditor{
		book: h.book, chain: h.chain, seller: seller, upstream: h.upstream, scratch: filepath.Join(h.dir, "copy"), moved: new(big.Int),
		reruns: o.reruns,
		fresh:  map[string]map[*cheque]struct{}{},
	}
	if h.database != nil {
		h.auditor.shared = h.database.store
	}
	for _, p := range h.processes() {
		h.auditor.fresh[p.ledger] = map[*cheque]struct{}{}
	}
	return h, h.openClients(ctx)
}

// blockTime is the time between blocks: short, and long enough for a payment
// to be seen in every state.
const blockTime = 40 * time.Millisecond

// envDatabase is where the Caddyfile of a shop finds the connection string.
const envDatabase = "KILL_DATABASE_URL"

// openShops writes the Caddyfiles. Nothing is started yet.
func (h *harness) openShops() error {
	lane := "TOLLGATE_LANE_KEY=" + hex.EncodeToString(crypto.FromECDSA(h.chain.Account("facilitator").Key))
	network := "{\n\t\t\trpc " + h.chain.WebSocketURL() + "\n\t\t\tlane key {env.TOLLGATE_LANE_KEY}\n\t\t}"
	var err error
	if h.facilitator == remote {
		if h.teller, err = h.open("teller", tellerFile, lane, "%NETWORK%", network); err != nil {
			return err
		}
		shop, err := h.open("shop", shopFile, "", "%NETWORK%", "", "%FACILITATOR%", "facilitator http http://"+h.teller.address)
		h.shops = []*process{shop}
		return err
	}
	for i := range h.instances {
		name := "shop"
		if h.instances > 1 {
			name = fmt.Sprintf("shop%d", i+1)
		}
		p, err := h.open(name, shopFile, lane, "%NETWORK%", network, "%FACILITATOR%", "facilitator embedded")
		if err != nil {
			return err
		}
		p.number = i
		h.shops = append(h.shops, p)
	}
	return nil
}

func (h *harness) open(name, source, secret string, replace ...string) (*process, error) {
	p := &process{name: name, binary: h.binary, dir: filepath.Join(h.dir, name)}
	p.ledger = filepath.Join(p.dir, "ledger")
	ledger := "badger " + p.ledger
	if h.database != nil {
		p.ledger = h.database.name
		p.env = append(p.env, envDatabase+"="+h.database.url)
		ledger = "postgres {env." + envDatabase + "}"
	}
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
	_, port, err := net.SplitHostPort(p.address)
	if err != nil {
		return nil, err
	}
	doc := strings.NewReplacer(append(replace, "%ADMIN%", p.admin, "%PORT%", port, "%LEDGER%", ledger,
		"%PAY_TO%", h.chain.Account("seller").Address.Hex(), "%UPSTREAM%", h.upstream.address)...).Replace(source)
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	return p, os.WriteFile(p.caddyfile, []byte(doc), 0o600)
}

// processes are the shops and, before them, the facilitator that they ask.
func (h *harness) processes() []*process {
	if h.teller == nil {
		return h.shops
	}
	return append([]*process{h.teller}, h.shops...)
}

func (h *harness) openClients(ctx context.Context) error {
	accounts, err := payers(h.chain, h.options.clients)
	if err != nil {
		return err
	}
	ctx, h.stop = context.WithCancel(ctx)
	addresses := make([]string, len(h.shops))
	for i, p := range h.shops {
		addresses[i] = "http://" + p.address
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 2 * len(accounts), DisableCompression: true}
	for i, account := range accounts {
		rng := rand.New(rand.NewPCG(h.seed, uint64(i))) //nolint:gosec // what is bought, no secret
		c, err := newClient(h.book, &http.Client{Transport: transport, Timeout: 20 * time.Second}, addresses, i, account, rng)
		if err != nil {
			return err
		}
		if h.database != nil {
			c.updated = func(ctx context.Context, k payment.Key) (time.Time, error) {
				e, err := entryOf(ctx, h.database.store, k)
				return e.Updated, err
			}
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
	calmPatience  = 90 * time.Second // for what the dead have left to be answered
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
	victims := choose(f, h.shops)
	if f.victim == "teller" {
		victims = []*process{h.teller}
	}
	if f.both && h.teller != nil {
		victims = append(victims, h.teller, h.shops[0])
	}
	if err := h.begin(f, victims[0]); err != nil {
		return err
	}
	if err := h.serve(ctx, victims[0]); err != nil {
		return err
	}
	if h.database != nil && (f.calm || f.jammed) {
		if err := h.calm(ctx); err != nil {
			return err
		}
	}
	fallen, err := h.await(ctx, f, victims[0])
	if err != nil {
		return err
	}
	for _, p := range victims[1:] {
		p.kill()
	}
	if err := h.bury(fallen); err != nil {
		return err
	}
	return h.audit(ctx, false)
}

// choose returns the shops that f kills, first the one that it is about. Of
// several instances a point is met by one that is not running yet and can be
// told to. The one that has lived longest takes over what the others leave,
// and is spared unless it is meant.
func choose(f fall, shops []*process) []*process {
	if len(shops) == 1 {
		return shops
	}
	var eldest *process
	for _, p := range shops {
		if p.alive() && (eldest == nil || p.began.Before(eldest.began)) {
			eldest = p
		}
	}
	if f.eldest && eldest != nil {
		return []*process{eldest}
	}
	var able, dead []*process
	for _, p := range shops {
		if p != eldest {
			able = append(able, p)
		}
		if !p.alive() {
			dead = append(dead, p)
		}
	}
	from := able
	if f.point != "" && len(dead) > 0 {
		from = dead
	}
	victim := from[f.pick%len(from)]
	able = slices.DeleteFunc(able, func(p *process) bool { return p == victim })
	victims := []*process{victim}
	if f.both && len(able) > 0 {
		victims = append(victims, able[f.pick%len(able)])
	}
	return victims
}

// begin starts everything that is not running, and has the victim meet its
// point. Where there are several instances the others are set to die at K11:
// that is met by whichever looks after the lane, and only once a transaction
// has been stuck for longer than in any other cycle.
func (h *harness) begin(f fall, victim *process) error {
	for _, p := range h.processes() {
		if p.alive() && p == victim && (len(h.shops) == 1 || f.point != "") {
			p.kill() // it has not been told of its failpoint
		}
		if p.alive() {
			continue
		}
		at := ""
		switch {
		case p == victim && f.point != "":
			at = fmt.Sprintf("%s:%d", f.point, f.pass)
		case len(h.shops) > 1 && slices.Contains(h.plan.points, failpoint.Replaced):
			at = string(failpoint.Replaced) + ":1"
		}
		if err := p.start(h.cycle, at); err != nil {
			return err
		}
		p.settled = p != victim // how long the others take to serve is not measured
	}
	return nil
}

// bury looks into every death of this cycle, of which fallen's is the one that
// was planned.
func (h *harness) bury(fallen *process) error {
	for _, p := range h.processes() {
		if p.alive() || p.buried {
			continue
		}
		p.buried = true
		h.book.died(p.died)
		if err := p.murdered(); err != nil {
			return err
		}
		point, err := p.taken()
		if err != nil {
			return err
		}
		switch {
		case point != "":
			h.points[point]++
		case p == fallen:
			h.random++ // also where a point was not reached in time
		}
	}
	return nil
}

// abandoned reports payments that nobody has taken over.
func abandoned(orphans []*cheque) []problem {
	var problems []problem
	for _, c := range orphans {
		problems = append(problems, problem{late, fmt.Sprintf("an instance that had it under way died, and nobody has answered it within %s", calmPatience), c})
	}
	return problems
}

// calm waits until the payments that dead instances had under way are
// answered.
func (h *harness) calm(ctx context.Context) error {
	patience := time.After(calmPatience)
	for {
		select {
		case err := <-h.clientErr:
			return h.clientFailed(err)
		case <-ctx.Done():
			return ctx.Err()
		case <-patience:
			return h.report(abandoned(h.book.orphans()))
		case <-time.After(100 * time.Millisecond): // in which clients notice who has died
		}
		if len(h.book.orphans()) == 0 {
			return nil
		}
	}
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
	first := time.Unix(0, h.book.fresh[p.number].Load())
	if first.Before(p.began) {
		return false
	}
	if !p.settled {
		p.settled = true
		h.recoveries = append(h.recoveries, time.Since(p.began))
	}
	return true
}

// await waits for the end that f has chosen, and returns whose it was: the
// victim's, or at K11 that of the instance that looks after the lane.
func (h *harness) await(ctx context.Context, f fall, victim *process) (fallen *process, err error) {
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
	watched := []*process{victim}
	if f.point == failpoint.Replaced {
		watched = h.processes()
	}
	ends := make(chan *process, len(watched))
	for _, p := range watched {
		side.Go(func() { // ends with ctx
			select {
			case <-p.ended:
				ends <- p
			case <-ctx.Done():
			}
		})
	}
	fallen = victim
	select {
	case fallen = <-ends:
	case err = <-h.clientErr:
		err = h.clientFailed(err)
	case <-ctx.Done():
	}
	fallen.kill()
	cancel()
	side.Wait()
	return fallen, errors.Join(err, sideErr)
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
	read := ""
	for _, p := range h.processes() {
		// A folder is copied as a whole, and grows; later in a long run it is
		// looked at less often.
		if p.alive() || p.ledger == read || !ended && h.database == nil && h.cycle%(1+h.cycle/100) != 0 {
			continue
		}
		read = p.ledger
		found, err := h.auditor.ledger(ctx, p.ledger, ended)
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
		recoveries: h.recoveries, takeovers: slices.Sorted(slices.Values(h.book.takeovers)), counts: h.counts,
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
	for _, p := range h.processes() {
		if p != nil {
			p.kill()
		}
	}
	var errs []error
	if h.database != nil {
		if h.dir != "" && (failed || h.keep) {
			errs = append(errs, h.database.save(filepath.Join(h.dir, "ledger.txt")))
		}
		errs = append(errs, h.database.drop())
	}
	if h.upstream != nil {
		errs = append(errs, h.upstream.server.Close())
	}
	if h.chain != nil {
		errs = append(errs, h.chain.Close())
	}
	if failed || h.keep {
		fmt.Fprintln(os.Stderr, "kill: logs and ledgers are in", h.dir)
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, os.RemoveAll(h.dir))...)
}
