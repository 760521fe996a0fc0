package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/internal/failpoint"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/pass"
)

func init() {
	caddy.RegisterModule(&Paywall{})
}

// Paywall puts a price on everything that is handled after it. A request
// without a payment is answered with 402 and the price; one with a good
// payment goes on, and its answer goes out once the money has moved.
//
// It sets these placeholders, which are empty where there is nothing to say.
// While the upstream runs, those about the payment are set, and in the mode
// "first" those about the settlement too; all are set afterwards, for headers
// and logs.
//
//   - {http.x402.paid} is true once the money has moved
//   - {http.x402.signed_in} is true where the payer had paid before, and signed in
//   - {http.x402.pass} is true where the request had a pass, which payment_id has bought
//   - {http.x402.payer} is who pays
//   - {http.x402.amount} is the price in atomic units of the token; once the
//     money has moved, what was charged
//   - {http.x402.token} is the token's address
//   - {http.x402.network} is the network's CAIP-2 name
//   - {http.x402.transaction} is the hash of the settlement
//   - {http.x402.payment_id} is the payment's key in the ledger
//   - {http.x402.reason} is why it was not paid
//
// The access log has the same as x402_paid, x402_payer, x402_amount,
// x402_network, x402_tx, x402_payment and x402_reason.
type Paywall struct {
	// The price and how it is paid, or what the offers fall back on.
	Offer

	// Several ways to pay, of which the payer chooses one. Default: the one
	// above.
	Offers []Offer `json:"offers,omitempty"`

	// What is sold, in a few words.
	Description string `json:"description,omitempty"`

	// The media type of what is sold, such as "application/json".
	MimeType string `json:"mime_type,omitempty"`

	// What is charged where the scheme is "upto".
	Charge *Charge `json:"charge,omitempty"`

	// When the money moves: "held", "first", "optimistic" or "metered".
	// Default: the app's.
	Settle string `json:"settle,omitempty"`

	// How final the settlement must be before the answer goes out. Default:
	// the app's.
	Until string `json:"until,omitempty"`

	// The same by amount, in place of until. Default: the app's.
	UntilByAmount []UntilStep `json:"until_by_amount,omitempty"`

	// What may be handed out before the money has moved, where settle is
	// "optimistic" or "metered". It is counted over all routes together. Default: the
	// app's.
	Exposure *Exposure `json:"exposure,omitempty"`

	// How often the handing over may begin for one payment, the first time
	// included. Default: the app's.
	Redeliver int `json:"redeliver,omitempty"`

	// For how long a payment that is settled and not delivered can be used
	// again. Default: the app's.
	Entitled caddy.Duration `json:"entitled,omitempty"`

	// The public scheme and host, such as "https://api.example.com".
	// Default: as the request says.
	Origin string `json:"origin,omitempty"`

	// How long a request waits for the chain or the facilitator, in all.
	// Default: the app's.
	Deadline caddy.Duration `json:"deadline,omitempty"`

	// How long the upstream may take where its answer is held back.
	// Default: 60s.
	UpstreamTimeout caddy.Duration `json:"upstream_timeout,omitempty"`

	// The largest answer that is held back, in bytes. What is more than
	// 64 KiB lies encrypted on disk. Default: 4 MiB.
	MaxHeld int `json:"max_held,omitempty"`

	// The largest answer that is stored with its payment, in bytes, so that
	// it can be had again when the connection is lost. Default: 4 MiB.
	MaxStored int `json:"max_stored,omitempty"`

	// The largest request body, in bytes. Default: 1 MiB.
	MaxBody int `json:"max_body,omitempty"`

	// Whether the upstream may run again for a method that is not safe,
	// such as POST, when its first answer was lost. Default: false.
	RetryUnsafe bool `json:"retry_unsafe,omitempty"`

	// Headers that a computed price may depend on and that its quote does
	// not: those that clients cannot set, because something in front of this
	// server does. Default: none. See docs/pricing.md.
	QuoteIgnores []string `json:"quote_ignores,omitempty"`

	// What a payment buys beside its answer. Not with settle "optimistic" or
	// "metered". Default: nothing.
	Pass *Pass `json:"pass,omitempty"`

	// Whether links that open a path of the route may do so: whoever has paid
	// one gets a token that is taken in place of a payment, once. Needs the
	// app's pass_secret. Default: false.
	Links bool `json:"links,omitempty"`

	// The extensions of protocol v2 that the route has.
	Extensions

	app       *App
	route     *till.Route
	challenge payment.Challenge // of the route
	upto      *uptoChallenge    // nil where it is known who settles
}

// CaddyModule returns the Caddy module information.
func (*Paywall) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.x402", New: func() caddy.Module { return new(Paywall) }}
}

// Provision builds the route's challenge. It asks nobody.
func (p *Paywall) Provision(ctx caddy.Context) error {
	app, err := ctx.App("x402")
	if err != nil {
		return err
	}
	p.app = app.(*App)
	if p.route, err = p.build(); err != nil {
		return err
	}
	if err := p.claimPass(); err != nil {
		return err
	}
	if slices.ContainsFunc(p.route.Offers, unpinned) {
		p.upto = &uptoChallenge{}
	}
	p.app.offers = append(p.app.offers, p.route.Offers...)
	p.since = time.Now()
	return nil
}

func (p *Paywall) build() (*till.Route, error) {
	whole := p.over(p.app)
	if whole.Deadline < 0 || p.UpstreamTimeout < 0 || p.MaxHeld < 0 || p.MaxStored < 0 || p.MaxBody < 0 || whole.Redeliver < 0 || whole.Entitled < 0 {
		return nil, errors.New("deadline, upstream_timeout, max_held, max_stored, max_body, redeliver and entitled must not be negative")
	}
	m, err := mode(whole.Settle)
	if err != nil {
		return nil, about("settle", err)
	}
	if (m == till.Optimistic || m == till.Metered) && whole.Exposure == nil {
		return nil, about("settle", errors.New("settle "+string(m)+" hands out before it is paid: say how much may be lost with \"exposure <total> per_payer <amount>\""))
	}
	if err := checkUntil(whole.Until, whole.UntilByAmount); err != nil {
		return nil, about("until", err)
	}
	if err := checkOrigin(p.Origin); err != nil {
		return nil, about("origin", err)
	}
	offers := p.Offers
	if len(offers) == 0 {
		offers = []Offer{p.Offer}
	}
	challenge := payment.Challenge{Description: p.Description, MimeType: p.MimeType}
	caps := map[payment.Token]ledger.Caps{}
	tariffs := map[payment.Token]*meter.Tariff{}
	for i, o := range offers {
		offer, err := p.offer(whole, o)
		token := offer.Amount.Token()
		if err == nil && (m == till.Optimistic || m == till.Metered) {
			caps[token], err = whole.Exposure.in(token)
			err = about("exposure", err)
		}
		if err == nil && offer.Scheme == payment.Upto && p.Charge != nil {
			if tariffs[token], err = p.Charge.tariff(offer.Amount); err != nil && settingOf(err) == "" {
				err = about("charge", err)
			}
		}
		if err == nil && m == till.Metered && offer.Scheme == payment.Upto {
			err = about("exposure", covers(caps[token], offer.Amount))
		}
		if err != nil && len(offers) > 1 {
			err = &settingError{i, settingOf(err), fmt.Errorf("offer %d: %w", i+1, err)}
		}
		if err != nil {
			return nil, err
		}
		challenge.Offers = append(challenge.Offers, offer)
	}
	extensions, err := p.extend(&challenge, m)
	if err != nil {
		return nil, err
	}
	passes, err := p.passes(m)
	if err != nil {
		return nil, err
	}
	if p.Links && p.app.PassSecret == "" {
		return nil, about("links", errors.New("links: the tokens of links are signed with a key that outlives this process: add \"pass_secret {env."+passExample+"}\" to the global option x402"))
	}
	if err := p.checkUpto(string(m), challenge.Offers); err != nil {
		return nil, err
	}
	p.challenge = challenge
	prepared, err := challenge.Prepare()
	if err != nil {
		return nil, err
	}
	pricer, err := p.pricer(whole, offers, challenge)
	if err != nil {
		return nil, err
	}
	if pricer != nil && p.app.remote != nil && slices.ContainsFunc(challenge.Offers, unpinned) {
		return nil, about("price", errors.New("who settles upto must be known where the price is computed: add \"facilitator_address <address>\", which the facilitator names at /supported"))
	}
	return &till.Route{
		Challenge: prepared, Offers: challenge.Offers, Pricer: pricer, Mode: m, Origin: p.Origin, Deadline: time.Duration(whole.Deadline),
		Upstream: time.Duration(p.UpstreamTimeout), MaxHeld: p.MaxHeld, MaxStored: p.MaxStored, MaxBody: p.MaxBody,
		RetryUnsafe: p.RetryUnsafe, Page: unpaidPage(p.Description),
		Redeliver: whole.Redeliver, Entitled: time.Duration(whole.Entitled), Exposure: caps, Tariffs: tariffs, Extensions: extensions, Pass: passes,
		Tickets: p.tickets(),
	}, nil
}

// tickets returns the key of the tokens that links open the route with, or nil
// where none do. While a Caddyfile is read it is not known.
func (p *Paywall) tickets() *pass.Key {
	if !p.Links {
		return nil
	}
	return p.app.passKey
}

// over returns p with what it does not say taken from the app.
func (p *Paywall) over(a *App) *Paywall {
	whole := *p
	if whole.Settle == "" {
		whole.Settle = a.Settle
	}
	if whole.Until == "" && len(whole.UntilByAmount) == 0 {
		whole.Until, whole.UntilByAmount = a.Until, a.UntilByAmount
	}
	if whole.Deadline == 0 {
		whole.Deadline = a.Deadline
	}
	if whole.Exposure == nil {
		whole.Exposure = a.Exposure
	}
	if whole.Redeliver == 0 {
		whole.Redeliver = a.Redeliver
	}
	if whole.Entitled == 0 {
		whole.Entitled = a.Entitled
	}
	return &whole
}

// offer returns one of the route's offers as payers see it. whole is the route
// with the app's defaults.
func (p *Paywall) offer(whole *Paywall, o Offer) (payment.Offer, error) {
	offer, err := p.app.build(o.over(p.Offer), payment.Included)
	if err != nil {
		return offer, err
	}
	if p.app.remote == nil {
		if err := p.app.settles(offer.Network()); err != nil {
			return offer, about("network", err)
		}
	}
	offer.Until, err = finality(whole.Until, whole.UntilByAmount, offer.Amount)
	return offer, about("until", err)
}

func checkOrigin(origin string) error {
	if origin == "" {
		return nil
	}
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("origin %q must be scheme and host, such as https://api.example.com", origin)
	}
	return nil
}

func (p *Paywall) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	unlogged := p.app.unlogged(r)
	err := p.serve(w, r, next)
	if err != nil && unlogged {
		return p.app.fail(w, r, err)
	}
	return err
}

func (p *Paywall) serve(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	e := p.app.acquire()
	if e == nil {
		notRunning(w)
		return nil
	}
	defer e.release()
	route := p.current(r.Context(), e)
	if route == nil {
		unpriced(w)
		return nil
	}
	var upstream error
	placeholders := publish(r.Context())
	sale, err := e.till.Serve(failpoint.Writer(w), r, route, func(w http.ResponseWriter, up *http.Request, s *till.Sale) error {
		placeholders.sale = s
		upstream = next.ServeHTTP(w, onto(r, up))
		return upstream
	})
	placeholders.sale = sale
	logSale(r.Context(), sale)
	p.app.metrics.count(p.route, sale)
	if err != nil && !errors.Is(err, upstream) {
		return caddyhttp.Error(http.StatusInternalServerError, err)
	}
	return err
}

// notRunning answers a request that comes before the app has started or after
// it has ended, both during a reload at most.
func notRunning(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Retry-After", "1")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write([]byte(`{"error":"starting; send the same request again"}`)) // nobody is left to tell
}

// onto makes the request that Caddy prepared into the one that the till wants
// the upstream to see, and returns it. Placeholders read the former, so a copy
// would part them from what the handlers after this one see and change.
func onto(r, up *http.Request) *http.Request {
	if up == r {
		return r
	}
	if up.Header != nil {
		header := maps.Clone(up.Header)
		clear(r.Header)
		maps.Copy(r.Header, header)
	}
	r.Body, r.ContentLength, r.TransferEncoding = up.Body, up.ContentLength, up.TransferEncoding
	return r.WithContext(up.Context())
}

// placeholders answers for {http.x402.*} from the sale that is being made.
type placeholders struct{ sale *till.Sale }

// publish registers the placeholders of a request.
func publish(ctx context.Context) *placeholders {
	p := &placeholders{}
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(p.get)
	}
	return p
}

func (p *placeholders) get(key string) (any, bool) {
	name, ours := strings.CutPrefix(key, "http.x402.")
	if !ours || p.sale == nil {
		return nil, false
	}
	switch s := p.sale; name {
	case "paid":
		return s.Paid, true
	case "signed_in":
		return s.SignedIn, true
	case "pass":
		return s.Pass, true
	case "payer":
		return s.Payer, true
	case "amount":
		return units(s), true
	case "token":
		return s.Amount.Token().Address, true
	case "network":
		return string(s.Network), true
	case "transaction":
		return s.Transaction, true
	case "payment_id":
		return s.Payment, true
	case "reason":
		return s.Reason, true
	}
	return nil, false
}

// units returns the amount in atomic units, or "" where there was no payment.
func units(s *till.Sale) string {
	if s.Payment == "" || s.Amount.Token().Address == "" { // the payment of a pass, which is shown and not made
		return ""
	}
	return s.Amount.Units()
}

// logSale adds to the access log what became of the request.
func logSale(ctx context.Context, s *till.Sale) {
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || server.Logs == nil {
		return
	}
	extra, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields)
	if !ok {
		return
	}
	extra.Set(zap.Bool("x402_paid", s.Paid))
	for _, f := range []struct{ name, value string }{
		{"x402_payer", s.Payer},
		{"x402_amount", units(s)},
		{"x402_network", string(s.Network)},
		{"x402_tx", s.Transaction},
		{"x402_payment", s.Payment},
		{"x402_reason", s.Reason},
	} {
		if f.value != "" {
			extra.Set(zap.String(f.name, f.value))
		}
	}
}

var (
	_ caddy.Provisioner           = (*Paywall)(nil)
	_ caddyhttp.MiddlewareHandler = (*Paywall)(nil)
)
