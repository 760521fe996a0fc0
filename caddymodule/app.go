// Package caddymodule is Tollgate in Caddy: a paywall, a facilitator for
// others, and the app that both work for. It reads configuration and wires
// packages together; it decides nothing about money.
package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/failpoint"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/payment/extension"
	"github.com/tollgate402/tollgate/payment/pass"
	"github.com/tollgate402/tollgate/payment/quote"
)

func init() {
	caddy.RegisterModule(&App{})
}

// App is what the paywalls and facilitators of one configuration share:
// networks with their nodes and lanes, the facilitator, the ledger, and what
// a route falls back on where it does not say.
//
// Nothing is opened and nobody is asked before the configuration starts, so
// that validating one needs neither the ledger nor a network.
type App struct {
	// Who is paid, where a route does not say: an address. Placeholders are
	// resolved when the configuration is loaded.
	PayTo string `json:"pay_to,omitempty"`

	// The networks that payments are made on. The first one is that of
	// every offer that does not say.
	Networks []*Network `json:"networks,omitempty"`

	// Who verifies and settles. Default: "embedded", which is this process.
	FacilitatorRaw json.RawMessage `json:"facilitator,omitempty" caddy:"namespace=x402.facilitators inline_key=module"`

	// What remembers payments. Default: "badger" in the folder x402/ledger
	// of Caddy's data directory.
	LedgerRaw json.RawMessage `json:"ledger,omitempty" caddy:"namespace=x402.ledgers inline_key=module"`

	// How long a payer's authorization must stay valid, in whole seconds,
	// where an offer does not say. Default: 60s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// When a route without a setting of its own settles: "held" (the
	// upstream's answer waits for the money), "first" (the upstream waits
	// for it), "optimistic" (nothing waits, within the exposure) or "metered"
	// (streams are charged for what they have delivered). Default: "held".
	Settle string `json:"settle,omitempty"`

	// How final a settlement must be for a route without a setting of its
	// own: "submitted", "included", a number of blocks, "safe" or
	// "finalized". Default: "included".
	Until string `json:"until,omitempty"`

	// The same by amount, in place of until.
	UntilByAmount []UntilStep `json:"until_by_amount,omitempty"`

	// What routes that settle optimistically, or by meter, may hand out before the money
	// has moved, in all: instances that share a ledger count together.
	// Default: nothing.
	Exposure *Exposure `json:"exposure,omitempty"`

	// How often the handing over of what was paid for may begin, the first
	// time included, for a route without a setting of its own. When the
	// upstream has failed as often, a refund is due. Default: 3.
	Redeliver int `json:"redeliver,omitempty"`

	// For how long a payment that is settled and not delivered can be used
	// again. Default: 24h.
	Entitled caddy.Duration `json:"entitled,omitempty"`

	// How long a request waits for the chain or the facilitator, in all.
	// Default: 10s.
	Deadline caddy.Duration `json:"deadline,omitempty"`

	// The key that signs offers and receipts (extension offer-receipt), so
	// that payers can show what they were offered and what they paid for. It
	// should be that of pay_to, and moves no money. Every 402 of every route
	// is signed anew. Default: none, and nothing is signed.
	SignedByRaw json.RawMessage `json:"signed_by,omitempty" caddy:"namespace=x402.signers inline_key=signer"`

	// What answers may take that wait for the money.
	Held HeldAnswers `json:"held,omitzero"`

	// The most that a price may be that is computed for a request, where an
	// offer does not say. Default: none.
	MaxPrice string `json:"max_price,omitempty"`

	// What computed prices are signed with, so that they can be paid for a
	// minute after they were offered: one placeholder, such as
	// {env.X402_QUOTE_SECRET}, for at least 32 characters that are hard to
	// guess. Several instances that serve the same routes need the same one.
	// Default: one that each process makes up.
	QuoteSecret string `json:"quote_secret,omitempty"`

	// What passes are signed with: one placeholder, such as
	// {env.X402_PASS_SECRET}, for at least 32 characters that are hard to
	// guess. Passes that were sold are good for as long as it stays, and
	// several instances that serve the same routes need the same one. Needed
	// where a route has a pass.
	PassSecret string `json:"pass_secret,omitempty"`

	// Where sellers are told what becomes of their links. Default: nowhere.
	Webhooks []Webhook `json:"webhooks,omitempty"`

	// Where webhooks may go. Default: to port 443 of public addresses.
	WebhookAccess WebhookAccess `json:"webhook_access,omitzero"`

	networks map[payment.Network]*Network
	remote   Remote  // nil where this process settles
	wrapper  Wrapper // nil where it does not
	ledger   LedgerModule
	offers   []payment.Offer           // of all routes
	links    []*Links                  // of all sites
	quoteKey *quote.Key                // nil where the process makes one up
	passKey  *pass.Key                 // nil where there are no passes
	signedBy extension.AgreementSigner // nil where nothing is signed
	metrics  *metrics
	ctx      caddy.Context
	logger   *slog.Logger

	unnamedPass bool // a route has a pass without a name

	engine   atomic.Pointer[engine] // nil unless the app runs
	discreet atomic.Bool            // the logs are known to leave payments out
}

// Network is one network that payments are made on.
type Network struct {
	// The network's name, such as "base-sepolia", or CAIP-2, such as
	// "eip155:84532".
	Network string `json:"network"`

	// URLs of nodes (http, https, ws, wss), the preferred one first. Needed
	// where this process settles. Placeholders are resolved when the
	// configuration is loaded; a URL with a secret in it should be one.
	RPC []string `json:"rpc,omitempty"`

	// The accounts that send settlements and pay their gas, in parallel. At
	// least one is needed where this process settles; of several the last
	// one is for payers whose accounts have code. They must have no other
	// use.
	LanesRaw []json.RawMessage `json:"lanes,omitempty" caddy:"namespace=x402.signers inline_key=signer"`

	// The account that refunds come from. It must hold the tokens, and must
	// not be the lane's. Default: none, and refunds are refused.
	RefundsRaw json.RawMessage `json:"refunds,omitempty" caddy:"namespace=x402.signers inline_key=signer"`

	// The tokens that are taken; the first one is that of every offer that
	// does not say. Default: the network's USDC.
	Tokens []Token `json:"tokens,omitempty"`

	// The highest price of gas to settle at, in wei, in decimal digits.
	// Default: no ceiling.
	MaxFeePerGas string `json:"max_fee_per_gas,omitempty"`

	// How much the gas of one day, in UTC, may cost, in wei, in decimal
	// digits. Default: no limit.
	GasBudget string `json:"gas_budget,omitempty"`

	// The most gas that one transfer may take. Default: 300000.
	MaxGas uint64 `json:"max_gas,omitempty"`

	// The same where the payer's account has code, which can burn all of it.
	// Default: 500000.
	MaxWalletGas uint64 `json:"max_wallet_gas,omitempty"`

	// The factories that wallets which are not deployed yet may name
	// (ERC-6492), by address, each with the functions of it that may be called:
	// selectors, such as "0x5fbfb9cf", or signatures, such as
	// "createAccount(address,uint256)". A payer chooses what they are called
	// with, so they must do nothing but deploy a wallet. Default: none.
	WalletFactories map[string][]string `json:"wallet_factories,omitempty"`

	// How payers without allowance for Permit2 may get one, beside EIP-2612,
	// which they always may: "erc20_approval" sends the transaction that such a
	// payer has signed to approve Permit2, before its payment. The payer pays
	// its gas. With a facilitator elsewhere it is offered only, and that
	// facilitator must have the extension. Default: none.
	Sponsoring []string `json:"sponsoring,omitempty"`

	// For which payments one node is not enough. Default: none.
	Quorum *Quorum `json:"quorum,omitempty"`

	// How many reads a second each node takes, as its operator's plan
	// allows. Looks at the latest block, and broadcasts, come on top.
	// Default: no limit.
	Rate float64 `json:"rate,omitempty"`

	// The pause between looks at the latest block. Default: adapts to the
	// chain.
	PollInterval caddy.Duration `json:"poll_interval,omitempty"`

	network payment.Network
	tokens  []payment.Token
	rpc     []string
	lanes   []payment.CallSigner
	refunds till.TransferSigner // nil where there is none
	maxFee  *big.Int
	budget  *big.Int
	quorum  settle.Quorum

	factories evm.Factories
}

// Token is a token that is taken. Of the network's USDC the address is enough;
// of any other one everything must be said.
type Token struct {
	// The contract's address.
	Address string `json:"address"`

	// What people call it, such as "USDC".
	Symbol string `json:"symbol,omitempty"`

	// How many decimals its amounts have.
	Decimals *uint8 `json:"decimals,omitempty"`

	// Name and version of its EIP-712 domain, which can differ from its
	// symbol and between networks. A token without them can be paid with by
	// the method permit2 only, and payers without an allowance must approve
	// Permit2 themselves.
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`

	// Whether one is worth one US dollar, so that prices may be written
	// with a dollar sign.
	Dollar bool `json:"dollar,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "x402", New: func() caddy.Module { return new(App) }}
}

// Provision loads the guest modules and checks everything that can be checked
// without a network and without the ledger.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx, a.logger = ctx, ctx.Slogger()
	a.networks = map[payment.Network]*Network{}
	var err error
	if a.metrics, err = newMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if a.PayTo, err = resolve("pay_to", a.PayTo); err != nil {
		return err
	}
	if a.quoteKey, err = quoteKeyOf(a.QuoteSecret); err != nil {
		return err
	}
	if a.passKey, err = passKeyOf(a.PassSecret); err != nil {
		return err
	}
	if a.remote, a.wrapper, err = loadFacilitator(ctx, a); err != nil {
		return err
	}
	if a.ledger, err = loadLedger(ctx, a); err != nil {
		return err
	}
	if err := a.loadWebhooks(); err != nil {
		return err
	}
	if err := a.loadSignedBy(ctx); err != nil {
		return fmt.Errorf("signed_by: %w", err)
	}
	for _, n := range a.Networks {
		if err := n.provision(ctx); err != nil {
			return fmt.Errorf("network %s: %w", n.Network, err)
		}
		if _, twice := a.networks[n.network]; twice {
			return fmt.Errorf("network %s is given twice", n.Network)
		}
		a.networks[n.network] = n
	}
	return nil
}

// Validate checks the defaults that routes fall back on.
func (a *App) Validate() error {
	if a.Timeout < 0 || a.Deadline < 0 || a.Held.Memory < 0 || a.Held.Disk < 0 {
		return errors.New("timeout, deadline, and memory and disk of held must not be negative")
	}
	if a.Redeliver < 0 || a.Entitled < 0 {
		return errors.New("redeliver and entitled must not be negative")
	}
	if _, err := mode(a.Settle); err != nil {
		return err
	}
	return checkUntil(a.Until, a.UntilByAmount)
}

// learn finds out which network and tokens are meant. It needs nothing but the
// configuration, so that a Caddyfile's errors are found while it is read.
func (n *Network) learn() error {
	var err error
	if n.network, err = payment.ParseNetwork(n.Network); err != nil {
		return err
	}
	if _, ok := n.network.ChainID(); !ok {
		return errors.New("only EVM networks can be paid on")
	}
	for _, t := range n.Tokens {
		token, err := t.on(n.network)
		if err != nil {
			return fmt.Errorf("token %s: %w", t.Address, err)
		}
		n.tokens = append(n.tokens, token)
	}
	if len(n.Tokens) == 0 {
		usdc, ok := payment.USDC(n.network)
		if !ok {
			return errors.New("no USDC is known here: say which tokens are taken with \"token <address> { … }\"")
		}
		n.tokens = []payment.Token{usdc}
	}
	if n.MaxFeePerGas != "" {
		if n.maxFee, err = payment.ParseUint256(n.MaxFeePerGas); err != nil {
			return fmt.Errorf("max_fee_per_gas %w", err)
		}
	}
	if n.Rate < 0 {
		return errors.New("rate must not be negative")
	}
	if n.factories, err = factories(n.WalletFactories); err != nil {
		return err
	}
	if err := checkSponsoring(n.Sponsoring); err != nil {
		return err
	}
	if n.Quorum != nil {
		if n.quorum, err = n.Quorum.in(n.tokens); err != nil {
			return err
		}
		if len(n.RPC) < n.quorum.Nodes {
			return fmt.Errorf("quorum asks for %d nodes, and rpc names %d: add nodes of other operators", n.quorum.Nodes, len(n.RPC))
		}
	}
	if n.GasBudget != "" {
		if n.budget, err = payment.ParseUint256(n.GasBudget); err != nil {
			return fmt.Errorf("gas_budget %w", err)
		}
	}
	return nil
}

func (n *Network) provision(ctx caddy.Context) error {
	if err := n.learn(); err != nil {
		return err
	}
	var err error
	for _, url := range n.RPC {
		if url, err = resolve("rpc", url); err != nil {
			return err
		}
		n.rpc = append(n.rpc, url)
	}
	if n.PollInterval < 0 {
		return errors.New("poll_interval must not be negative")
	}
	if err := n.loadRefunds(ctx); err != nil {
		return fmt.Errorf("refunds: %w", err)
	}
	if len(n.LanesRaw) == 0 {
		return nil
	}
	guests, err := ctx.LoadModule(n, "LanesRaw")
	if err != nil {
		return fmt.Errorf("lane: %w", err)
	}
	list, ok := guests.([]any)
	if !ok {
		return fmt.Errorf("lane: %T is no list of signers", guests)
	}
	for _, guest := range list {
		lane, ok := guest.(payment.CallSigner)
		if !ok {
			return fmt.Errorf("lane: %T does not sign settlements", guest)
		}
		for _, other := range n.lanes {
			if other.Address() == lane.Address() {
				return fmt.Errorf("lane %s is given twice: every lane needs a key of its own", lane.Address())
			}
		}
		if n.refunds != nil && n.refunds.Address() == lane.Address() {
			return errors.New("refunds and lane have the same key: a lane pays gas and must hold nothing else; give refunds a key of its own")
		}
		n.lanes = append(n.lanes, lane)
	}
	return nil
}

func (n *Network) loadRefunds(ctx caddy.Context) error {
	if len(n.RefundsRaw) == 0 {
		return nil
	}
	ctx = ctx.WithValue(refundsSetting, true)
	guest, err := ctx.LoadModule(n, "RefundsRaw")
	if err != nil {
		return err
	}
	refunds, ok := guest.(till.TransferSigner)
	if !ok {
		return fmt.Errorf("%T does not sign transfers", guest)
	}
	n.refunds = refunds
	return nil
}

// on returns the token as it is on a network, with what is known of USDC
// filled in.
func (t Token) on(n payment.Network) (payment.Token, error) {
	address, err := payment.ParseAddress(n, t.Address)
	if err != nil {
		return payment.Token{}, err
	}
	if usdc, ok := payment.USDC(n); ok && usdc.Address == address && t == (Token{Address: t.Address}) {
		return usdc, nil
	}
	for _, m := range []struct {
		name    string
		missing bool
	}{
		{"symbol", t.Symbol == ""}, {"decimals", t.Decimals == nil}, {"name", t.Name == "" && t.Version != ""}, {"version", t.Version == "" && t.Name != ""},
	} {
		if m.missing {
			return payment.Token{}, fmt.Errorf("it is not the network's USDC: say its %s", m.name)
		}
	}
	if *t.Decimals > 77 {
		return payment.Token{}, errors.New("more than 77 decimals do not fit an amount")
	}
	return payment.Token{
		Network: n, Address: address, Symbol: t.Symbol, Decimals: *t.Decimals, Name: t.Name, Version: t.Version, Dollar: t.Dollar,
	}, nil
}

// settles reports what keeps this process from settling on a network.
func (a *App) settles(n payment.Network) error {
	c, ok := a.networks[n]
	name := n.In(payment.V1)
	switch {
	case !ok:
		return fmt.Errorf("network %s is not configured: add \"network %s { rpc <url>; lane key {env.X402_LANE_KEY} }\" to the global option x402, or let somebody else settle with \"facilitator http <url>\"", name, name)
	case len(c.RPC) == 0:
		return fmt.Errorf("network %s has no node: add \"rpc <url>\" to it in the global option x402", c.Network)
	case len(c.LanesRaw) == 0 && len(c.lanes) == 0: // Caddy empties what it has loaded
		return fmt.Errorf("network %s has nobody to pay the gas: add \"lane key {env.X402_LANE_KEY}\" to it in the global option x402", c.Network)
	}
	return nil
}

// refunds returns the accounts that refunds come from.
func (a *App) refunds() map[payment.Network]till.TransferSigner {
	m := map[payment.Network]till.TransferSigner{}
	for _, n := range a.Networks {
		if n.refunds != nil {
			m[n.network] = n.refunds
		}
	}
	return m
}

// Start opens the ledger, recovers what an earlier process left behind, and
// starts to settle. Until it returns, requests are answered with 503.
func (a *App) Start() error {
	e := newEngine()
	if err := e.start(a); err != nil {
		return errors.Join(err, e.end())
	}
	a.checkLogs()
	a.engine.Store(e)
	return nil
}

// Stop does nothing. Caddy stops apps in any order and does not wait for
// requests on a reload, so everything ends in Cleanup.
func (a *App) Stop() error { return nil }

const (
	// exitPatience is how long the end of the process waits for requests that
	// still use the engine.
	exitPatience = 30 * time.Second

	// linger is how long an engine that another configuration has replaced
	// still takes requests: Caddy cleans modules up while its old servers
	// accept the last connections.
	linger = 2 * time.Second
)

// Cleanup ends the engine once the last request that uses it has ended. When
// the process ends it waits for that; on a reload it leaves it to a goroutine,
// and the engine goes on taking requests for a moment.
func (a *App) Cleanup() error {
	e := a.engine.Load()
	if e == nil {
		return nil
	}
	if a.replaced() {
		failpoint.Reloaded()
		e.book.lingering.Go(func() { // ends after linger, or when no configuration runs, and with the last request
			e.book.linger(linger)
			a.engine.Store(nil)
			<-e.retire()
			a.end(e)
		})
		return nil
	}
	a.engine.Store(nil)
	e.book.hurry()
	idle := e.retire()
	if caddy.Exiting() {
		ctx, cancel := context.WithTimeout(context.Background(), exitPatience)
		defer cancel()
		select {
		case <-idle:
		case <-ctx.Done():
		}
		return e.end()
	}
	select {
	case <-idle:
		return e.end()
	default:
	}
	go func() { // ends with the last request
		<-idle
		a.end(e)
	}()
	return nil
}

// replaced reports whether some configuration runs although a's has ended.
func (a *App) replaced() bool { return caddy.ActiveContext().Context != nil && !caddy.Exiting() }

// end ends an engine when nobody is left to return an error to.
func (a *App) end(e *engine) {
	if err := e.end(); err != nil {
		a.logger.Error("ending the engine of an earlier configuration failed", "error", err)
	}
}

// acquire returns the running engine, which stays until it is released, or
// nil while there is none.
func (a *App) acquire() *engine {
	e := a.engine.Load()
	if e == nil || !e.acquire() {
		return nil
	}
	return e
}

// mode reads a setting of settle; empty is held.
func mode(s string) (till.Mode, error) {
	switch m := till.Mode(s); m {
	case "":
		return till.Held, nil
	case till.Held, till.First, till.Optimistic, till.Metered:
		return m, nil
	}
	return "", fmt.Errorf("settle %q is not known: write held (the answer waits for the money), first (the upstream waits for it), optimistic (nothing waits, and losses are possible) or metered (streams are charged for what they have delivered)", s)
}

var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.Validator    = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
