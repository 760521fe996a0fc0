package caddymodule

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"

	"github.com/tollgate402/tollgate/payment"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("x402", parseApp)
	httpcaddyfile.RegisterHandlerDirective("x402", parsePaywall)
	httpcaddyfile.RegisterDirectiveOrder("x402", httpcaddyfile.After, "forward_auth")
	httpcaddyfile.RegisterHandlerDirective("x402_facilitator", parseFacilitatorAPI)
	httpcaddyfile.RegisterDirectiveOrder("x402_facilitator", httpcaddyfile.Before, "respond")
	httpcaddyfile.RegisterHandlerDirective("x402_receipts", parseReceipts)
	httpcaddyfile.RegisterDirectiveOrder("x402_receipts", httpcaddyfile.After, "forward_auth") // and before x402: who asks what was paid pays nothing
	httpcaddyfile.RegisterHandlerDirective("x402_links", parseLinks)
	httpcaddyfile.RegisterDirectiveOrder("x402_links", httpcaddyfile.After, "forward_auth") // and before x402: a link is paid for itself
}

// parseApp reads the global option:
//
//	x402 {
//		pay_to <address>
//		network <name> {
//			rpc <url>...
//			lane <signer> ...     # may be repeated
//			refunds <signer> ...
//			token <address> {
//				symbol   <symbol>
//				decimals <n>
//				name     <name>
//				version  <version>
//				dollar
//			}
//			max_fee_per_gas <wei>
//			gas_budget      <wei per day>
//			max_gas         <gas>
//			max_wallet_gas  <gas>
//			wallet_factory  <address> <function>...
//			sponsoring      erc20_approval
//			quorum          <nodes> [above <price>]
//			rate            <reads per second>
//			poll_interval   <duration>
//		}
//		facilitator embedded | http <url> { ... }
//		ledger badger [<path>] | postgres {env.NAME} { … } | memory [<name>]
//		settle    held | first | optimistic | metered
//		until     submitted | included | <blocks> | safe | finalized
//		until     { under <amount> <finality>; otherwise <finality> }
//		exposure  <total> [per_payer <amount>]
//		redeliver <n>
//		entitled  <duration>
//		timeout   <duration>
//		deadline  <duration>
//		signed_by <signer> ...
//		held      { memory <size>; disk <size>; dir <path> }
//		max_price <price>
//		quote_secret {env.NAME}
//		pass_secret {env.NAME}
//		webhook  <name> <url> { secret {env.NAME}; events <type>... }
//		webhooks { ports <port>...; insecure_http <host>...; insecure_allow <network>... }
//	}
//
// The settings of until by amount stand on lines of their own.
func parseApp(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next()
	if existing != nil {
		return nil, d.Err("the global option x402 is given twice: put everything into one block")
	}
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	a := &App{}
	for d.NextBlock(0) {
		if err := a.parse(d); err != nil {
			return nil, err
		}
	}
	return httpcaddyfile.App{Name: "x402", Value: caddyconfig.JSON(a, nil)}, nil
}

func (a *App) parse(d *caddyfile.Dispenser) (err error) {
	switch d.Val() {
	case "pay_to":
		return checked(d, &a.PayTo, checkAddress)
	case "network":
		return a.parseNetwork(d)
	case "facilitator":
		return guest(d, &a.FacilitatorRaw, "x402.facilitators.", "module")
	case "ledger":
		return guest(d, &a.LedgerRaw, "x402.ledgers.", "module")
	case "settle":
		return checked(d, &a.Settle, func(s string) error { _, err := mode(s); return err })
	case "until":
		return parseUntil(d, &a.Until, &a.UntilByAmount)
	case "exposure":
		return parseExposure(d, &a.Exposure)
	case "redeliver":
		return times(d, &a.Redeliver)
	case "entitled":
		return duration(d, &a.Entitled)
	case "timeout":
		return duration(d, &a.Timeout)
	case "deadline":
		return duration(d, &a.Deadline)
	case "signed_by":
		return guest(d, &a.SignedByRaw, "x402.signers.", "signer")
	case "held":
		return a.Held.parse(d)
	case "max_price":
		return text(d, &a.MaxPrice)
	case quoteSecret:
		return checked(d, &a.QuoteSecret, func(s string) error { return checkSecret(quoteSecret, s, quotesExample) })
	case passSecret:
		return checked(d, &a.PassSecret, func(s string) error { return checkSecret(passSecret, s, passExample) })
	case "webhook":
		return a.parseWebhook(d)
	case "webhooks":
		return a.WebhookAccess.parse(d)
	}
	return unknown(d, "the global option x402", "pay_to", "network", "facilitator", "ledger", "settle", "until", "exposure", "redeliver", "entitled", "timeout", "deadline", "signed_by", "held", "max_price", "quote_secret", "pass_secret", "webhook", "webhooks")
}

// checkAddress checks an address that is not a placeholder. The networks that
// can be paid on all have the same form of addresses.
func checkAddress(s string) error {
	if strings.Contains(s, "{") {
		return nil
	}
	if _, err := payment.ParseAddress(payment.EVM(1), s); err != nil {
		return fmt.Errorf("pay_to: %w", err)
	}
	return nil
}

// parseNetwork reads one network, and checks what does not depend on other
// settings while the place in the Caddyfile is known.
func (a *App) parseNetwork(d *caddyfile.Dispenser) error {
	n, at := &Network{}, d.Token()
	if err := n.parse(d); err != nil {
		return err
	}
	if err := n.learn(); err != nil {
		return wrap(at, fmt.Errorf("network %s: %w", n.Network, err))
	}
	for _, other := range a.Networks {
		if other.network == n.network {
			return wrap(at, fmt.Errorf("network %s is given twice", n.Network))
		}
	}
	a.Networks = append(a.Networks, n)
	return nil
}

func (n *Network) parse(d *caddyfile.Dispenser) error {
	if err := text(d, &n.Network); err != nil {
		return err
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch d.Val() {
		case "rpc":
			err = texts(d, &n.RPC)
		case "lane":
			var lane json.RawMessage // one of several
			err = guest(d, &lane, "x402.signers.", "signer")
			n.LanesRaw = append(n.LanesRaw, lane)
		case "refunds":
			err = guest(d, &n.RefundsRaw, "x402.signers.", "signer")
		case "token":
			err = n.parseToken(d)
		case "max_fee_per_gas":
			err = text(d, &n.MaxFeePerGas)
		case "gas_budget":
			err = text(d, &n.GasBudget)
		case "max_gas":
			err = number(d, &n.MaxGas, 64)
		case "max_wallet_gas":
			err = number(d, &n.MaxWalletGas, 64)
		case "wallet_factory":
			args := d.RemainingArgs()
			if len(args) < 2 {
				return d.Err("wallet_factory needs an address and the functions that may be called, such as: wallet_factory 0x… \"createAccount(address,uint256)\"")
			}
			if n.WalletFactories == nil {
				n.WalletFactories = map[string][]string{}
			}
			n.WalletFactories[args[0]] = append(n.WalletFactories[args[0]], args[1:]...)
			if _, err := factories(n.WalletFactories); err != nil {
				return d.WrapErr(err)
			}
		case "sponsoring":
			if err = texts(d, &n.Sponsoring); err == nil {
				if err := checkSponsoring(n.Sponsoring); err != nil {
					return d.WrapErr(err)
				}
			}
		case "quorum":
			n.Quorum = &Quorum{}
			err = n.Quorum.parse(d)
		case "rate":
			var perSecond uint64
			err = number(d, &perSecond, 32)
			n.Rate = float64(perSecond)
		case "poll_interval":
			err = duration(d, &n.PollInterval)
		default:
			err = unknown(d, "network", "rpc", "lane", "refunds", "token", "max_fee_per_gas", "gas_budget", "max_gas", "max_wallet_gas", "wallet_factory", "sponsoring", "quorum", "rate", "poll_interval")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) parseToken(d *caddyfile.Dispenser) error {
	var t Token
	if err := text(d, &t.Address); err != nil {
		return err
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch d.Val() {
		case "symbol":
			err = text(d, &t.Symbol)
		case "decimals":
			var decimals uint64
			err = number(d, &decimals, 8)
			small := uint8(decimals)
			t.Decimals = &small
		case "name":
			err = text(d, &t.Name)
		case "version":
			err = text(d, &t.Version)
		case "dollar":
			err = toggle(d, &t.Dollar)
		default:
			err = unknown(d, "token", "symbol", "decimals", "name", "version", "dollar")
		}
		if err != nil {
			return err
		}
	}
	n.Tokens = append(n.Tokens, t)
	return nil
}

// parsePaywall reads the directive:
//
//	x402 [<matcher>] [[upto] <price>] [<description>] {
//		price       [upto] <price>
//		price       expression <cel>
//		max_price   <price>
//		pay_to      <address>
//		network     <name>
//		token       <symbol or address>
//		scheme      exact | upto
//		method      eip3009 | permit2
//		facilitator_address <address>
//		timeout     <duration>
//		description <text>
//		mime_type   <type>
//		settle      held | first | optimistic | metered
//		charge      { base <price>; per … ; header <name> }
//		until       submitted | included | <blocks> | safe | finalized
//		until       { under <amount> <finality>; otherwise <finality> }
//		exposure    <total> [per_payer <amount>]
//		redeliver   <n>
//		entitled    <duration>
//		origin      <https://host>
//		deadline    <duration>
//		upstream_timeout <duration>
//		max_held    <size>
//		max_stored  <size>
//		max_body    <size>
//		retry_unsafe
//		quote_ignores <header>...
//		pass        [<duration>] [<calls>] [as <name>]
//		payment_identifier optional | required
//		siwx        <duration>
//		discover    off | { … }  # see docs/extensions.md
//		offer {
//			price   [upto] <price>
//			price   expression <cel>
//			max_price <price>
//			network <name>
//			token   <symbol or address>
//			pay_to  <address>
//			scheme  exact | upto
//			method  eip3009 | permit2
//			facilitator_address <address>
//			timeout <duration>
//		}
//	}
//
// The price can be left out where every offer has one. One with placeholders in
// it, such as {vars.price}, is computed for each request, and so is that of an
// expression; either needs a max_price. After upto it is a maximum, of which
// the block charge, see Charge, says what is taken.
func parsePaywall(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	p := &Paywall{}
	if err := p.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return p, p.foresee(h.Option("x402"))
}

// UnmarshalCaddyfile reads the directive x402.
func (p *Paywall) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	p.where.note(d, "")
	if d.NextArg() {
		p.where.note(d, "price")
		if d.Val() == string(payment.Upto) {
			p.Scheme = d.Val()
			if !d.NextArg() {
				return d.Err("after upto comes the maximum, such as: upto $0.05")
			}
		}
		p.Price = d.Val()
		if strings.Contains(p.Price, ".") && strings.Trim(p.Price, "0123456789.") == "" {
			return d.Errf("the price %s has no unit: write $%s, or \"%s USDC\" in quotes", p.Price, p.Price, p.Price)
		}
	}
	if d.NextArg() {
		p.Description = d.Val()
	}
	if d.NextArg() {
		return d.Errf("%q is too much: after the price there is one description; put it in quotes", d.Val())
	}
	for d.NextBlock(0) {
		if err := p.parse(d); err != nil {
			return err
		}
	}
	if p.Price == "" && p.PriceExpression == "" && len(p.Offers) == 0 {
		return d.Err("the price is missing: write it after x402, such as $0.01")
	}
	return nil
}

var offerSettings = []string{"price", "max_price", "pay_to", "network", "token", "scheme", "method", "facilitator_address", "timeout"}

func (p *Paywall) parse(d *caddyfile.Dispenser) error {
	if ok, err := p.Offer.parse(d); ok {
		return err
	}
	if slices.Contains(extensionSettings, d.Val()) {
		p.where.note(d, d.Val())
		return p.Extensions.parse(d)
	}
	switch setting := d.Val(); setting {
	case "settle", "until", "exposure", "charge", "pass":
		p.where.note(d, setting)
	}
	switch d.Val() {
	case "charge":
		if p.Charge != nil {
			return d.Err("charge is given twice")
		}
		p.Charge = &Charge{}
		return p.Charge.parse(d, &p.where)
	case "description":
		return text(d, &p.Description)
	case "mime_type":
		return text(d, &p.MimeType)
	case "settle":
		return checked(d, &p.Settle, func(s string) error { _, err := mode(s); return err })
	case "until":
		return parseUntil(d, &p.Until, &p.UntilByAmount)
	case "exposure":
		return parseExposure(d, &p.Exposure)
	case "redeliver":
		return times(d, &p.Redeliver)
	case "entitled":
		return duration(d, &p.Entitled)
	case "origin":
		return checked(d, &p.Origin, checkOrigin)
	case "deadline":
		return duration(d, &p.Deadline)
	case "upstream_timeout":
		return duration(d, &p.UpstreamTimeout)
	case "max_held":
		return size(d, &p.MaxHeld)
	case "max_stored":
		return size(d, &p.MaxStored)
	case "max_body":
		return size(d, &p.MaxBody)
	case "retry_unsafe":
		return toggle(d, &p.RetryUnsafe)
	case "pass":
		if p.Pass != nil {
			return d.Err("pass is given twice")
		}
		p.Pass = &Pass{}
		return p.Pass.parse(d)
	case "links":
		return toggle(d, &p.Links)
	case "quote_ignores":
		return texts(d, &p.QuoteIgnores)
	case "offer":
		return p.parseOffer(d)
	}
	return unknown(d, "x402", slices.Concat(offerSettings,
		[]string{"description", "mime_type", "settle", "until", "exposure", "redeliver", "entitled", "origin", "deadline", "upstream_timeout", "max_held", "max_stored", "max_body", "retry_unsafe", "quote_ignores", "charge", "pass", "links", "offer"},
		extensionSettings)...)
}

func (p *Paywall) parseOffer(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	var o Offer
	o.where.note(d, "")
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		ok, err := o.parse(d)
		if !ok {
			err = unknown(d, "offer", offerSettings...)
		}
		if err != nil {
			return err
		}
	}
	p.Offers = append(p.Offers, o)
	return nil
}

// parse reads one setting of an offer; ok is false if it is none.
func (o *Offer) parse(d *caddyfile.Dispenser) (ok bool, err error) {
	if slices.Contains(offerSettings, d.Val()) {
		o.where.note(d, d.Val())
	}
	switch d.Val() {
	case "price":
		return true, o.parsePrice(d)
	case "max_price":
		return true, text(d, &o.MaxPrice)
	case "pay_to":
		return true, text(d, &o.PayTo)
	case "network":
		return true, text(d, &o.Network)
	case "token":
		return true, text(d, &o.Token)
	case "scheme":
		return true, text(d, &o.Scheme)
	case "method":
		return true, text(d, &o.Method)
	case "facilitator_address":
		return true, text(d, &o.FacilitatorAddress)
	case "timeout":
		return true, duration(d, &o.Timeout)
	}
	return false, nil
}

// parseFacilitatorAPI reads the directive:
//
//	x402_facilitator [<matcher>] {
//		bearer <placeholder>...
//		pay_to <address>...
//		insecure_open
//		discovery
//		tenant <name> {             # may be repeated
//			key                 <placeholder>...
//			key_hash            <sha256>...
//			pay_to              <address>...
//			token               <symbol or address>...
//			network             <name>...
//			min_amount          <price>     # may be repeated, for other tokens
//			rate                <requests per second>
//			settlements_per_day <n>
//		}
//	}
func parseFacilitatorAPI(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	f := &FacilitatorAPI{}
	at := first(h.Dispenser)
	if err := f.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	app := expected(h.Option("x402"))
	if err := f.check(app); err != nil {
		return nil, wrap(at, err)
	}
	return f, f.foreseeTenants(app)
}

// first returns the token that a directive begins with.
func first(d *caddyfile.Dispenser) caddyfile.Token {
	d.Next()
	defer d.Reset()
	return d.Token()
}

// parseReceipts reads "x402_receipts [<matcher>]".
func parseReceipts(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	r := &Receipts{}
	return r, r.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive x402_facilitator.
func (f *FacilitatorAPI) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.ArgErr()
	}
	for d.NextBlock(0) {
		var err error
		switch d.Val() {
		case "bearer":
			err = secrets(d, &f.Bearer, bearerToken, shopExample)
		case "pay_to":
			err = texts(d, &f.PayTo)
		case "insecure_open":
			err = toggle(d, &f.InsecureOpen)
		case "discovery":
			err = toggle(d, &f.Discovery)
		case "tenant":
			var t FacilitatorTenant
			err = t.parse(d)
			f.Tenants = append(f.Tenants, t)
		default:
			err = unknown(d, "x402_facilitator", "bearer", "pay_to", "insecure_open", "discovery", "tenant")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parseLinks reads the directive x402_links:
//
//	x402_links [<matcher>] {
//		base      <path>
//		accept    <network> [<token>]   # may be repeated
//		accept    { network <name>; token <token>; method <method>; pay_to <address>; timeout <duration> }
//		pay_to    <address>
//		timeout   <duration>
//		window    <duration>
//		until     submitted | included | <blocks> | safe | finalized
//		until     { under <amount> <finality>; otherwise <finality> }
//		deadline  <duration>
//		origin    <scheme and host>
//		redirects <host>...
//		title     <text>
//		merchant  <name> { key {env.NAME}...; read_key {env.NAME}...; key_hash <sha256>... }
//		chain     <network> { rpc <url>; explorer <url>; currency <symbol> }
//	}
//
// The settings of a block in braces stand on lines of their own.
func parseLinks(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	l := &Links{}
	if err := l.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return l, l.foresee(h.Option("x402"))
}

// UnmarshalCaddyfile reads the directive x402_links.
func (l *Links) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	l.where.note(d, "")
	if d.NextArg() {
		return d.Errf("x402_links takes no %q: prices are the links' own, which \"tollgate link create\" makes", d.Val())
	}
	for d.NextBlock(0) {
		l.where.note(d, d.Val())
		if err := l.parse(d); err != nil {
			return err
		}
	}
	return nil
}

func (l *Links) parse(d *caddyfile.Dispenser) error {
	switch d.Val() {
	case "base":
		return text(d, &l.Base)
	case "accept":
		return l.parseAccept(d)
	case "pay_to":
		return checked(d, &l.PayTo, checkAddress)
	case "timeout":
		return duration(d, &l.Timeout)
	case "window":
		return duration(d, &l.Window)
	case "until":
		return parseUntil(d, &l.Until, &l.UntilByAmount)
	case "deadline":
		return duration(d, &l.Deadline)
	case "origin":
		return checked(d, &l.Origin, checkOrigin)
	case "redirects":
		return texts(d, &l.Redirects)
	case "title":
		return text(d, &l.Title)
	case "merchant":
		return l.parseMerchant(d)
	case "chain":
		return l.parseChain(d)
	}
	return unknown(d, "x402_links", "base", "accept", "pay_to", "timeout", "window", "until", "deadline", "origin", "redirects", "title", "merchant", "chain")
}

func (l *Links) parseMerchant(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 1 {
		return d.Errf("merchant needs a name: write \"merchant shop { key {env.%s} }\"", tenantKeyExample)
	}
	m := LinkMerchant{Name: args[0]}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch d.Val() {
		case "key":
			err = secrets(d, &m.Keys, merchantKey, tenantKeyExample)
		case "read_key":
			err = secrets(d, &m.ReadKeys, merchantKey, tenantKeyExample)
		case "key_hash":
			err = texts(d, &m.KeyHashes)
		default:
			err = unknown(d, "merchant", "key", "read_key", "key_hash")
		}
		if err != nil {
			return err
		}
	}
	l.Merchants = append(l.Merchants, m)
	return nil
}

func (l *Links) parseChain(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 1 {
		return d.Err("chain needs a network: write \"chain base { rpc <url> }\"")
	}
	if _, twice := l.Chains[args[0]]; twice {
		return d.Errf("chain %s is given twice", args[0])
	}
	var c Chain
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch d.Val() {
		case "rpc":
			err = text(d, &c.RPC)
		case "explorer":
			err = text(d, &c.Explorer)
		case "currency":
			err = text(d, &c.Currency)
		default:
			err = unknown(d, "chain", "rpc", "explorer", "currency")
		}
		if err != nil {
			return err
		}
	}
	if l.Chains == nil {
		l.Chains = map[string]Chain{}
	}
	l.Chains[args[0]] = c
	return nil
}

// parseAccept reads one way to pay a link: in a line, or in a block.
func (l *Links) parseAccept(d *caddyfile.Dispenser) error {
	var o Offer
	switch args := d.RemainingArgs(); len(args) {
	case 2:
		o.Token = args[1]
		fallthrough
	case 1:
		o.Network = args[0]
	case 0:
	default:
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		ok, err := o.parse(d)
		if !ok {
			err = unknown(d, "accept", offerSettings...)
		}
		if err != nil {
			return err
		}
	}
	if o.Network == "" {
		return d.Err("accept needs a network: write \"accept base\"")
	}
	l.Accept = append(l.Accept, o)
	return nil
}

// guest reads the name and the settings of a guest module into the JSON that
// the app loads it from.
func guest(d *caddyfile.Dispenser, to *json.RawMessage, namespace, inlineKey string) error {
	name := d.Val()
	if *to != nil {
		return d.Errf("%s is given twice", name)
	}
	if !d.NextArg() {
		return d.Errf("%s needs a value: %s", name, guests(namespace))
	}
	module := d.Val()
	info, err := caddy.GetModule(namespace + module)
	if err != nil {
		return d.Errf("%s %s is not known: write %s", name, module, guests(namespace))
	}
	settings, ok := info.New().(caddyfile.Unmarshaler)
	if !ok {
		return d.Errf("%s %s can be configured in JSON only", name, module)
	}
	own := d.NewFromNextSegment()
	own.SetContext(guestSetting, name)
	if err := settings.UnmarshalCaddyfile(own); err != nil {
		return err
	}
	*to = caddyconfig.JSONModuleObject(settings, inlineKey, module, nil)
	return nil
}

// guestSetting is where a guest module finds the name of the setting that it is
// read for.
const guestSetting = "x402_setting"

// guests lists the modules of a namespace for an error.
func guests(namespace string) string {
	var names []string
	for _, m := range caddy.GetModules(strings.TrimSuffix(namespace, ".")) {
		names = append(names, m.ID.Name())
	}
	return strings.Join(names, " or ")
}

// text reads the one argument of a setting, which may be given once. Errors
// do not repeat arguments: one may be a secret.
func text(d *caddyfile.Dispenser, to *string) error {
	name := d.Val()
	if *to != "" {
		return d.Errf("%s is given twice", name)
	}
	if !d.NextArg() || d.Val() == "" {
		return d.Errf("%s needs a value", name)
	}
	*to = d.Val()
	if d.NextArg() {
		return d.Errf("%s has more than one value: put what has blanks in it in quotes", name)
	}
	return nil
}

// checked reads one argument and checks it.
func checked(d *caddyfile.Dispenser, to *string, check func(string) error) error {
	if err := text(d, to); err != nil {
		return err
	}
	if err := check(*to); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

// texts reads at least one argument, and adds to what was read before.
func texts(d *caddyfile.Dispenser, to *[]string) error {
	name, list := d.Val(), d.RemainingArgs()
	if len(list) == 0 {
		return d.Errf("%s needs a value", name)
	}
	*to = append(*to, list...)
	return nil
}

// toggle reads a setting without an argument.
func toggle(d *caddyfile.Dispenser, to *bool) error {
	if name := d.Val(); d.NextArg() {
		return d.Errf("%s takes no value", name)
	}
	*to = true
	return nil
}

func duration(d *caddyfile.Dispenser, to *caddy.Duration) error {
	var s string
	if *to != 0 {
		return d.Errf("%s is given twice", d.Val())
	}
	if err := text(d, &s); err != nil {
		return err
	}
	parsed, err := caddy.ParseDuration(s)
	if err != nil || parsed <= 0 {
		return d.Errf("%q is no duration: write it like 10s or 2m", s)
	}
	*to = caddy.Duration(parsed)
	return nil
}

func number(d *caddyfile.Dispenser, to *uint64, bits int) error {
	var s string
	if err := text(d, &s); err != nil {
		return err
	}
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		return d.Errf("%q is no number from 0 to 2^%d-1", s, bits)
	}
	*to = n
	return nil
}

// times reads how often something may happen.
func times(d *caddyfile.Dispenser, to *int) error {
	if *to != 0 {
		return d.Errf("%s is given twice", d.Val())
	}
	var s string
	if err := text(d, &s); err != nil {
		return err
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n < 1 || n > 100 {
		return d.Errf("%q is no number from 1 to 100", s)
	}
	*to = int(n)
	return nil
}

func size(d *caddyfile.Dispenser, to *int) error {
	var s string
	if err := text(d, &s); err != nil {
		return err
	}
	n, err := humanize.ParseBytes(s)
	if err != nil || n == 0 || n > 1<<30 {
		return d.Errf("%q is no size from 1 byte to 1 GiB: write it like 512KiB or 4MiB", s)
	}
	*to = int(n)
	return nil
}

// unknown says which settings there are, and which one was probably meant.
func unknown(d *caddyfile.Dispenser, where string, allowed ...string) error {
	plain := func(s string) string {
		return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(s))
	}
	for _, a := range allowed {
		if plain(a) == plain(d.Val()) {
			return d.Errf("%s has no setting %q: write %s", where, d.Val(), a)
		}
	}
	return d.Errf("%s has no setting %q: it has %s", where, d.Val(), strings.Join(allowed, ", "))
}

// noSettings reads a module's name after which nothing may come.
func noSettings(d *caddyfile.Dispenser) error {
	d.Next()
	name := d.Val()
	if d.NextArg() || d.NextBlock(0) {
		return d.Errf("%s takes no settings", name)
	}
	return nil
}

// optionalArg reads a module's name and at most one argument.
func optionalArg(d *caddyfile.Dispenser, to *string) error {
	d.Next()
	name := d.Val()
	if d.NextArg() {
		*to = d.Val()
	}
	if d.NextArg() || d.NextBlock(0) {
		return d.Errf("%s takes at most one value", name)
	}
	return nil
}
