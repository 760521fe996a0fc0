package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/failpoint"
	"github.com/tollgate402/tollgate/internal/webhook"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// An engine is one configuration at work. It lives from the start of its app
// until the last request that uses it has ended.
type engine struct {
	till        *till.Till
	facilitator payment.Facilitator
	book        *openedLedger
	desks       map[*Links]*desk
	hooks       *webhook.Queue // nil where nobody is told anything
	retiring    chan struct{}  // closed when the engine is to end
	closers     []func() error // in the order in which things were started

	mu       sync.Mutex
	users    int           // guarded by mu
	retired  bool          // guarded by mu
	idle     chan struct{} // closed when the engine is retired and nobody uses it
	endsOnce sync.Once
	endErr   error // written by endsOnce
}

func newEngine() *engine { return &engine{idle: make(chan struct{}), retiring: make(chan struct{})} }

// start starts everything that the app's settings ask for. After an error,
// end stops what has been started.
func (e *engine) start(a *App) error {
	book, giveBack, err := openLedger(a.ledger)
	if err != nil {
		return err
	}
	e.book = book
	e.closers = append(e.closers, giveBack)
	if a.remote == nil {
		markets, err := e.startMarkets(a, book)
		if err != nil {
			return err
		}
		embedded, err := facilitator.NewEmbedded(book.ledger, markets, a.logger)
		if err != nil {
			return err
		}
		e.facilitator = a.wrapper.Wrap(embedded)
		awaitHeads(markets, a.logger)
	} else {
		e.startJournal(a, book)
		e.startSupportCheck(a)
	}
	room, leave, err := useRoom(&a.Held)
	if err != nil {
		return err
	}
	e.closers = append(e.closers, leave)
	quotes, drop, err := useQuotes(a.quoteKey)
	if err != nil {
		return err
	}
	e.closers = append(e.closers, drop)
	e.till = &till.Till{
		Facilitator: failpoint.Facilitator(e.facilitator), Ledger: book.ledger, Logger: a.logger, Room: room,
		Refunds: a.refunds(), Proves: a.remote == nil, Lost: a.metrics.lost, Quotes: quotes,
	}
	e.till.Start()
	e.closers = append(e.closers, func() error { e.till.Stop(); return nil })
	return e.startLinks(a)
}

// startMarkets starts what settles here, on every network that has a node and
// a lane.
func (e *engine) startMarkets(a *App, book *openedLedger) ([]facilitator.Market, error) {
	var markets []facilitator.Market
	for _, n := range a.Networks {
		if a.settles(n.network) != nil {
			continue // no route uses it: routes have been checked
		}
		id, _ := n.network.ChainID()
		client, err := chain.New(chain.Config{ChainID: id, Endpoints: n.rpc, Rate: n.Rate, PollInterval: time.Duration(n.PollInterval), Logger: a.logger})
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", n.Network, err)
		}
		if err := client.Start(context.Background()); err != nil { // ends with Close
			return nil, err
		}
		e.closers = append(e.closers, func() error { client.Close(); return nil })
		strikes := &facilitator.Strikes{}
		engine, err := settle.New(settle.Config{
			Network: n.network, Chain: failpoint.Chain(client), Ledger: book.ledger, Signers: n.lanes,
			MaxFeePerGas: n.maxFee, GasBudget: n.budget, MaxGas: n.MaxGas, MaxWalletGas: n.MaxWalletGas, Quorum: n.quorum, Logger: a.logger,
			RelayApprovals: n.relaysApprovals(),
			Failed: func(signed *evm.Instrument) {
				strikes.Strike(time.Now(), facilitator.SuspectOf(n.network, signed.Payer, nil))
			},
		})
		if err != nil {
			return nil, err
		}
		if err := engine.Start(); err != nil {
			return nil, err
		}
		e.closers = append(e.closers, func() error { engine.Stop(); return nil })
		markets = append(markets, facilitator.Market{Network: n.network, Tokens: n.tokens, Chain: client, Engine: engine, Strikes: strikes, Factories: n.factories})
	}
	return markets, nil
}

// headPatience is how long a start waits for nodes that do not answer.
const headPatience = 2 * time.Second

// awaitHeads waits a moment for the latest block of every network, without
// which nothing can be verified: a reload should not turn payers away. A node
// that is down is no error.
func awaitHeads(markets []facilitator.Market, logger *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), headPatience)
	defer cancel()
	for _, m := range markets {
		if _, err := m.Engine.Chain.WaitHead(ctx, common.Hash{}); err != nil {
			logger.Warn("no node answers; payments on this network get 503 until one does", "network", string(m.Network), "error", err)
		}
	}
}

// startJournal keeps the ledger for a facilitator somewhere else. What it has
// not answered for certain is asked again in the background.
func (e *engine) startJournal(a *App, book *openedLedger) {
	remote := a.remote.Facilitator()
	j := &facilitator.Journal{Facilitator: failpoint.Remote(remote), Ledger: book.ledger, Alone: !book.shared, Logger: a.logger}
	j.Start()
	e.facilitator = j
	e.closers = append(e.closers, func() error {
		j.Stop()
		if c, ok := remote.(interface{ CloseIdleConnections() }); ok {
			c.CloseIdleConnections()
		}
		return nil
	})
}

// startSupportCheck asks a remote facilitator once whether it can settle what
// the routes offer, and warns where it cannot. Nothing waits for the answer.
func (e *engine) startSupportCheck(a *App) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	done := make(chan struct{})
	go func() { // ends with ctx; the engine's end waits for it
		defer close(done)
		checkSupport(ctx, e.facilitator, a.offers, a.logger)
	}()
	e.closers = append(e.closers, func() error {
		cancel()
		<-done
		return nil
	})
}

func checkSupport(ctx context.Context, f payment.Facilitator, offers []payment.Offer, logger *slog.Logger) {
	supported, err := f.Supported(ctx)
	if err != nil {
		logger.Warn("the facilitator does not say what it supports", "error", err)
		return
	}
	warned := map[string]bool{}
	for i := range offers {
		kind := string(offers[i].Scheme) + " on " + string(offers[i].Network())
		if !warned[kind] && !supported.Supports(&offers[i]) {
			logger.Warn("the facilitator does not settle what a route offers; payments for it will fail", "kind", kind)
			warned[kind] = true
		}
	}
}

// acquire keeps the engine from ending until release. It reports false when
// the engine is ending.
func (e *engine) acquire() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.retired && e.users == 0 {
		return false
	}
	e.users++
	return true
}

func (e *engine) release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.users--
	if e.retired && e.users == 0 {
		close(e.idle)
	}
}

// retire says that the engine is to end, and returns what is closed once
// nobody uses it.
func (e *engine) retire() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.retired {
		e.retired = true
		close(e.retiring)
		if e.users == 0 {
			close(e.idle)
		}
	}
	return e.idle
}

// end stops everything, the last started first. Payments under way stay in
// the ledger for the next engine.
func (e *engine) end() error {
	e.endsOnce.Do(func() {
		var errs []error
		for _, end := range slices.Backward(e.closers) {
			errs = append(errs, end())
		}
		e.endErr = errors.Join(errs...)
	})
	return e.endErr
}
