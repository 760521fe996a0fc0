package caddymodule

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tollgate402/tollgate/payment"
)

// Offer is one way to pay for a route. What it does not say is taken from the
// route, and what neither says from the app.
type Offer struct {
	// The price: "$0.01", "0.01 USDC", or atomic units in plain digits. It
	// is never rounded: one that is finer than the token is refused. With the
	// scheme "upto" it is the maximum. A price with placeholders, such as
	// "{vars.price}", is computed for each request.
	Price string `json:"price,omitempty"`

	// A CEL expression that computes the price of a request, in place of
	// price. It gives a price as a string, or atomic units as an integer,
	// never a floating-point number. It knows method, host, path and size,
	// which is the length of the body; query["name"] and headers["name"],
	// which are errors where the name is given more than once; placeholders;
	// and usd("0.001") and units("0.5 USDC"), which are atomic units.
	PriceExpression string `json:"price_expression,omitempty"`

	// The most that a price may be that is computed. A request whose price
	// is above it, zero, empty or unreadable is answered with 500, and its
	// price is logged. Default: the app's; without either, prices cannot be
	// computed.
	MaxPrice string `json:"max_price,omitempty"`

	// The network that is paid on. Default: the app's first one.
	Network string `json:"network,omitempty"`

	// The token that is paid in: its symbol or its address. Default: the
	// network's first one.
	Token string `json:"token,omitempty"`

	// Who is paid: an address. Placeholders are resolved when the
	// configuration is loaded. Default: the app's.
	PayTo string `json:"pay_to,omitempty"`

	// How money moves: "exact", or "upto" where the price is a maximum and the
	// route's charge says what is taken of it. Default: "exact".
	Scheme string `json:"scheme,omitempty"`

	// By what payers allow that: "eip3009", which tokens such as USDC have, or
	// "permit2", which works with every token on networks that have Permit2
	// and x402's proxies, and for which payers need an allowance. Default:
	// "eip3009" for exact, "permit2" for upto.
	Method string `json:"method,omitempty"`

	// The account that payers by upto sign for, where somebody else settles:
	// the one that the facilitator names at /supported. Default: a lane of the
	// network, or what the facilitator says when it is asked.
	FacilitatorAddress string `json:"facilitator_address,omitempty"`

	// How long the payer's authorization must stay valid, in whole seconds.
	// Default: the app's.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// where the Caddyfile says what, for errors.
	where places
}

// over returns o with what it does not say taken from other.
func (o Offer) over(other Offer) Offer {
	for _, f := range []struct {
		own      *string
		fallback string
	}{
		{&o.MaxPrice, other.MaxPrice},
		{&o.Network, other.Network},
		{&o.Token, other.Token},
		{&o.PayTo, other.PayTo},
		{&o.Scheme, other.Scheme},
		{&o.Method, other.Method},
		{&o.FacilitatorAddress, other.FacilitatorAddress},
	} {
		if *f.own == "" {
			*f.own = f.fallback
		}
	}
	if o.Price == "" && o.PriceExpression == "" {
		o.Price, o.PriceExpression = other.Price, other.PriceExpression
	}
	if o.Timeout == 0 {
		o.Timeout = other.Timeout
	}
	return o
}

// build returns the offer as payers see it. Where its price is computed it has
// the most that it can be.
func (a *App) build(o Offer, until payment.Finality) (payment.Offer, error) {
	o = o.over(Offer{PayTo: a.PayTo, Scheme: string(payment.Exact), Timeout: a.Timeout})
	if o.Timeout == 0 {
		o.Timeout = caddy.Duration(payment.DefaultTimeout)
	}
	network, err := a.networkOf(o.Network)
	if err != nil {
		return payment.Offer{}, about("network", err)
	}
	token, err := a.tokenOf(network, o.Token)
	if err != nil {
		return payment.Offer{}, about("token", err)
	}
	price, err := o.most(token, a.MaxPrice)
	if err != nil {
		return payment.Offer{}, err
	}
	if o.PayTo == "" {
		return payment.Offer{}, errors.New("nobody is named to be paid: add \"pay_to <address>\" to the global option x402 or to the route")
	}
	payTo, err := resolve("pay_to", o.PayTo)
	if err != nil {
		return payment.Offer{}, about("pay_to", err)
	}
	if payTo, err = payment.ParseAddress(network, payTo); err != nil {
		return payment.Offer{}, about("pay_to", fmt.Errorf("pay_to: %w", err))
	}
	offer, err := a.moving(o, payment.Offer{Amount: price, PayTo: payTo, Timeout: time.Duration(o.Timeout), Until: until})
	if err != nil {
		return payment.Offer{}, err
	}
	return offer, about("price", offer.Check())
}

func (a *App) networkOf(name string) (payment.Network, error) {
	if name != "" {
		return payment.ParseNetwork(name)
	}
	if len(a.Networks) == 0 {
		return "", errors.New("no network is named: add \"network <name>\" to the global option x402 or to the route")
	}
	return a.Networks[0].network, nil
}

// tokenOf finds a token by symbol or address; an empty name is the first one.
func (a *App) tokenOf(n payment.Network, name string) (payment.Token, error) {
	var tokens []payment.Token
	if c, ok := a.networks[n]; ok {
		tokens = c.tokens
	} else if usdc, ok := payment.USDC(n); ok {
		tokens = []payment.Token{usdc}
	}
	if len(tokens) == 0 {
		return payment.Token{}, fmt.Errorf("no token is known on %s: add \"token <address> { … }\" to the network in the global option x402", n)
	}
	if name == "" {
		return tokens[0], nil
	}
	address, _ := payment.CanonicalAddress(n, name)
	known := make([]string, 0, len(tokens))
	for _, t := range tokens {
		if t.Symbol == name || t.Address == address {
			return t, nil
		}
		known = append(known, t.Symbol)
	}
	return payment.Token{}, fmt.Errorf("token %q is not taken on %s: write one of %s, or its address, or add it to the network in the global option x402", name, n, strings.Join(known, ", "))
}
