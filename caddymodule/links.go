package caddymodule

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/failpoint"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/linkhttp"
	"github.com/tollgate402/tollgate/internal/linkpage"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

func init() {
	caddy.RegisterModule(&Links{})
}

// Links serves payment links: each has one URL, at which a person sees a page
// to pay on and a program the same price as x402. Make them with "tollgate
// link create". What is not one of its paths goes on to the next handler.
//
// A link is paid once, or as often as it has uses. It always settles before
// anything is said to be paid.
type Links struct {
	// The path that links are below. Default: "/x402".
	Base string `json:"base,omitempty"`

	// How links can be paid: a network each, with a token of it. What one does
	// not say is taken from pay_to and timeout below, and from the app; prices
	// are the links' own. Default: every network of the app, each with its
	// first token.
	Accept []Offer `json:"accept,omitempty"`

	// Who is paid: an address. Default: the app's.
	PayTo string `json:"pay_to,omitempty"`

	// How long the payer's authorization must stay valid, in whole seconds.
	// Default: 5m, since people read before they sign.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How far ahead the end of an authorization may lie. Default: 6h.
	Window caddy.Duration `json:"window,omitempty"`

	// How final a settlement must be before a link is paid. Default: the
	// app's.
	Until string `json:"until,omitempty"`

	// The same by amount, in place of until. Default: the app's.
	UntilByAmount []UntilStep `json:"until_by_amount,omitempty"`

	// How long a payment is waited for. Default: the app's.
	Deadline caddy.Duration `json:"deadline,omitempty"`

	// The public scheme and host, such as "https://pay.example.com". Default:
	// as the request says.
	Origin string `json:"origin,omitempty"`

	// The hosts that browsers may be led to after a payment, such as
	// "shop.example.com". Default: none.
	Redirects []string `json:"redirects,omitempty"`

	// What people see as the seller's name. Default: the host of the link.
	Title string `json:"title,omitempty"`

	// Who may make links over HTTP, at /v1/payment-links. Default: nobody;
	// "tollgate link" works without.
	Merchants []LinkMerchant `json:"merchants,omitempty"`

	// What browsers' wallets and receipts are told of networks, by name.
	// Default: nothing, so that a wallet which does not know a network cannot
	// add it, and receipts lead to no block explorer.
	Chains map[string]Chain `json:"chains,omitempty"`

	app   *App
	pages *linkpage.Site
	keys  []linkhttp.Key
	where places
}

// LinkMerchant makes links of its own and sees no others. Those that "tollgate
// link" makes are the merchant's that it names, "main" where it names none.
type LinkMerchant struct {
	// What records and logs call it: 1 to 64 letters, digits, ".", "-" and "_".
	// Its links stay with the name.
	Name string `json:"name"`

	// Secrets of which one must come as Authorization: Bearer or X-API-Key.
	// Each must be a placeholder such as {env.SHOP_KEY}.
	Keys []string `json:"keys,omitempty"`

	// The same for programs that may look at links and make none.
	ReadKeys []string `json:"read_keys,omitempty"`

	// SHA-256 hashes of keys, in 64 hexadecimal digits, as
	// "printf %s $SHOP_KEY | sha256sum" prints them, in place of the keys.
	KeyHashes []string `json:"key_hashes,omitempty"`
}

// What errors call a merchant's key.
const merchantKey = "the key of a merchant"

// minKey is how long the key of a merchant must be.
const minKey = 16

// allowed returns the keys of a merchant.
func (m *LinkMerchant) allowed() ([]linkhttp.Key, error) {
	var list []linkhttp.Key
	for _, group := range []struct {
		secrets []string
		write   bool
	}{{m.Keys, true}, {m.ReadKeys, false}} {
		for _, s := range group.secrets {
			text, err := secret(merchantKey, s, tenantKeyExample)
			if err != nil {
				return nil, err
			}
			if len(text) < minKey {
				return nil, fmt.Errorf("%s has %d characters, and needs %d: make one with \"openssl rand -base64 24\"", merchantKey, len(text), minKey)
			}
			list = append(list, linkhttp.Key{Merchant: m.Name, Hash: sha256.Sum256([]byte(text)), Read: true, Write: group.write})
		}
	}
	for _, s := range m.KeyHashes {
		hash, err := keyHash(s)
		if err != nil {
			return nil, err
		}
		list = append(list, linkhttp.Key{Merchant: m.Name, Hash: hash, Read: true, Write: true})
	}
	return list, nil
}

func (m *LinkMerchant) check() error {
	if err := link.CheckMerchant(m.Name); err != nil {
		return fmt.Errorf("merchant: the name %q %w", m.Name, err)
	}
	if len(m.Keys)+len(m.ReadKeys)+len(m.KeyHashes) == 0 {
		return fmt.Errorf("merchant %s: nobody can be it: add \"key {env.%s}\" or \"key_hash <sha256>\"", m.Name, tenantKeyExample)
	}
	for _, s := range m.KeyHashes {
		if _, err := keyHash(s); err != nil {
			return fmt.Errorf("merchant %s: %w", m.Name, err)
		}
	}
	return nil
}

// Chain is what everybody may know of a network.
type Chain struct {
	// The URL of a node that wallets may use. Visitors can read it: it must
	// not hold a key, and should not be the one that settles.
	RPC string `json:"rpc"`

	// The URL of a block explorer, such as "https://basescan.org".
	Explorer string `json:"explorer,omitempty"`

	// What pays for gas there. Default: "ETH".
	Currency string `json:"currency,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*Links) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.x402_links", New: func() caddy.Module { return new(Links) }}
}

const (
	defaultLinkBase    = "/x402"
	defaultLinkTimeout = 5 * time.Minute
)

// Provision checks the settings. It asks nobody.
func (l *Links) Provision(ctx caddy.Context) error {
	app, err := ctx.App("x402")
	if err != nil {
		return err
	}
	l.app = app.(*App)
	if err := l.check(l.app); err != nil {
		return err
	}
	offers, err := l.offers(l.app, "1")
	if err != nil {
		return err
	}
	l.app.offers = append(l.app.offers, offers...) // for those who ask whether they can be settled
	for i := range l.Merchants {
		keys, err := l.Merchants[i].allowed()
		if err != nil {
			return fmt.Errorf("merchant %s: %w", l.Merchants[i].Name, err)
		}
		for _, k := range keys {
			if n := slices.IndexFunc(l.keys, func(other linkhttp.Key) bool { return other.Hash == k.Hash }); n >= 0 {
				return fmt.Errorf("merchant %s has the same key as %s, or has it twice: give each a key of its own", k.Merchant, l.keys[n].Merchant)
			}
			l.keys = append(l.keys, k)
		}
	}
	l.app.links = append(l.app.links, l)
	return nil
}

// check says what is wrong with the settings on an app.
func (l *Links) check(a *App) error {
	if l.Base != "" && (!strings.HasPrefix(l.Base, "/") || strings.HasSuffix(l.Base, "/") || strings.ContainsAny(l.Base, "{}?#%* ")) {
		return about("base", fmt.Errorf("base %q must be a path without a slash at its end, such as %s", l.Base, defaultLinkBase))
	}
	if l.Timeout < 0 || l.Window < 0 || l.Deadline < 0 {
		return errors.New("timeout, window and deadline must not be negative")
	}
	if err := checkOrigin(l.Origin); err != nil {
		return about("origin", err)
	}
	if err := checkUntil(l.Until, l.UntilByAmount); err != nil {
		return about("until", err)
	}
	for _, host := range l.Redirects {
		if host == "" || strings.ContainsAny(host, "/{}*@ ") || host != strings.ToLower(host) {
			return about("redirects", fmt.Errorf("redirects: %q must be a host in lower case, such as shop.example.com", host))
		}
	}
	for i := range l.Accept {
		if l.Accept[i].Price != "" || l.Accept[i].PriceExpression != "" || l.Accept[i].Scheme != "" && l.Accept[i].Scheme != string(payment.Exact) {
			return about("accept", errors.New("accept: the price is the link's own, and the scheme is exact"))
		}
	}
	for i := range l.Merchants {
		if err := l.Merchants[i].check(); err != nil {
			return about("merchant", err)
		}
		if slices.ContainsFunc(l.Merchants[:i], func(m LinkMerchant) bool { return m.Name == l.Merchants[i].Name }) {
			return about("merchant", fmt.Errorf("merchant %s is given twice: put everything into one block", l.Merchants[i].Name))
		}
	}
	pages, err := l.build()
	if err != nil {
		return about("chain", err)
	}
	l.pages = pages
	_, err = l.offers(a, "1")
	return err
}

func (l *Links) base() string {
	if l.Base == "" {
		return defaultLinkBase
	}
	return l.Base
}

// build returns the pages.
func (l *Links) build() (*linkpage.Site, error) {
	chains := map[payment.Network]linkpage.Chain{}
	for name, c := range l.Chains {
		n, err := payment.ParseNetwork(name)
		if err != nil {
			return nil, fmt.Errorf("chain: %w", err)
		}
		chains[n] = linkpage.Chain{RPC: c.RPC, Explorer: c.Explorer, Currency: c.Currency}
	}
	return linkpage.New(linkpage.Config{Merchant: l.Title, Base: l.base(), Chains: chains})
}

// explorers returns the block explorers that are known.
func (l *Links) explorers() map[payment.Network]string {
	known := map[payment.Network]string{}
	for name, c := range l.Chains {
		if n, err := payment.ParseNetwork(name); err == nil && c.Explorer != "" {
			known[n] = strings.TrimSuffix(c.Explorer, "/")
		}
	}
	return known
}

// offers returns the ways to pay an amount in whole units.
func (l *Links) offers(a *App, amount string) ([]payment.Offer, error) {
	accept := l.Accept
	if len(accept) == 0 {
		for _, n := range a.Networks {
			accept = append(accept, Offer{Network: n.Network})
		}
	}
	if len(accept) == 0 {
		return nil, errors.New("x402_links has no network to be paid on: add \"network <name> { rpc <url>; lane key {env.X402_LANE_KEY} }\" to the global option x402")
	}
	until, byAmount := l.Until, l.UntilByAmount
	if until == "" && len(byAmount) == 0 {
		until, byAmount = a.Until, a.UntilByAmount
	}
	timeout := l.Timeout
	if timeout == 0 {
		timeout = caddy.Duration(defaultLinkTimeout)
	}
	var offers []payment.Offer
	for i, o := range accept {
		o = o.over(Offer{PayTo: l.PayTo, Timeout: timeout})
		n, err := a.networkOf(o.Network)
		if err != nil {
			return nil, about("accept", err)
		}
		if a.remote == nil {
			if err := a.settles(n); err != nil {
				return nil, about("accept", err)
			}
		}
		token, err := a.tokenOf(n, o.Token)
		if err != nil {
			return nil, about("accept", err)
		}
		o.Price = amount + " " + token.Symbol
		offer, err := a.build(o, payment.Included)
		if err == nil {
			offer.Until, err = finality(until, byAmount, offer.Amount)
		}
		if err != nil {
			return nil, about("accept", fmt.Errorf("accept %d: %w", i+1, err))
		}
		if offer.Scheme != payment.Exact {
			return nil, about("accept", errors.New("accept: links are paid by the scheme exact"))
		}
		offers = append(offers, offer)
	}
	return offers, nil
}

// A desk is the links of one handler at work, in one engine.
type desk struct {
	settings *Links
	store    *link.Store
	site     *linkhttp.Site
	api      *linkhttp.Merchant
}

// open opens the desk of a handler. It must not be used before the engine's
// till is there.
func (l *Links) open(e *engine) *desk {
	hub := &linkhttp.Hub{}
	a := l.app
	store := &link.Store{
		Entries: failpoint.Store(e.book.store), Payments: e.book.ledger, Now: time.Now, Random: rand.Reader,
		Changed: func(id link.ID) {
			hub.Tell(id)
			if e.hooks != nil {
				e.hooks.Wake()
			}
		},
	}
	deadline := l.Deadline
	if deadline == 0 {
		deadline = a.Deadline
	}
	var ticket func(host, opens string, r *ledger.Record, token payment.Token) (string, error)
	if a.passKey != nil {
		ticket = func(host, opens string, r *ledger.Record, token payment.Token) (string, error) {
			return till.Ticket(*a.passKey, host, opens, r, token)
		}
	}
	d := &desk{settings: l, store: store, site: &linkhttp.Site{
		Ticket: ticket,
		Links:  store, Till: e.till, Book: e.book.ledger, Base: l.base(), Pages: l.pages, Explorers: l.explorers(), Origin: l.Origin, Window: time.Duration(l.Window), Deadline: time.Duration(deadline),
		Settles: func(n payment.Network) bool { return a.remote != nil || a.settles(n) == nil },
		Hub:     hub, Logger: a.logger, Ending: e.retiring,
	}}
	store.Announce = d.announce(e.hooks)
	d.api = &linkhttp.Merchant{
		Links: store, Site: d.site, Keys: l.keys, Redirects: l.Redirects,
		Offers: func(amount string) ([]payment.Offer, error) { return l.offers(a, amount) },
	}
	return d
}

// merchant returns what makes links and looks after them for the operator. All
// handlers have the same links; of several the one counts whose origin comes
// first in the alphabet, since servers are loaded in any order. It returns nil
// where there are none.
func (e *engine) merchant(a *App) *linkhttp.Merchant {
	if len(a.links) == 0 {
		return nil
	}
	first := slices.MinFunc(a.links, func(x, y *Links) int {
		if (x.Origin == "") != (y.Origin == "") {
			return strings.Compare(y.Origin, x.Origin) // without one there are no URLs
		}
		return strings.Compare(x.Origin, y.Origin)
	})
	return e.desks[first].api
}

// linkSweepEvery is the pause between looks for what has become of payments
// whose requests have ended, and for links that have expired.
const linkSweepEvery = 5 * time.Second

// startLinks opens the desks of an app, and looks after their links.
func (e *engine) startLinks(a *App) error {
	if err := e.startWebhooks(a, failpoint.Store(e.book.store)); err != nil {
		return err
	}
	if len(a.links) == 0 {
		return nil
	}
	e.desks = map[*Links]*desk{}
	var stores []*link.Store
	for _, l := range a.links {
		d := l.open(e)
		e.desks[l] = d
		stores = append(stores, d.store)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with ctx; the engine's end waits for it
		defer close(done)
		tick := time.NewTicker(linkSweepEvery)
		defer tick.Stop()
		for {
			// All desks have the same links: one looks after them.
			if err := stores[0].Sweep(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, ledger.ErrClosed) {
				a.logger.Error("looking after payment links failed; it is tried again", "error", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	e.closers = append(e.closers, func() error {
		cancel()
		<-done
		return nil
	})
	return nil
}

func (l *Links) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	api := len(l.keys) > 0 && (&linkhttp.Merchant{}).Has(r.URL.Path)
	if !api && !strings.HasPrefix(r.URL.Path, l.base()+"/") {
		return next.ServeHTTP(w, r)
	}
	l.app.unlogged(r)
	if api {
		l.app.unloggedKey(r)
	}
	e := l.app.acquire()
	if e == nil {
		notRunning(w)
		return nil
	}
	defer e.release()
	if d := e.desks[l]; api {
		d.api.ServeHTTP(w, r)
	} else {
		d.site.ServeHTTP(failpoint.Writer(w), r)
	}
	return nil
}

var (
	_ caddy.Provisioner           = (*Links)(nil)
	_ caddyhttp.MiddlewareHandler = (*Links)(nil)
)
