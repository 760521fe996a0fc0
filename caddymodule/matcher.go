package caddymodule

import (
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/tollgate402/tollgate/payment"
)

func init() {
	caddy.RegisterModule(&MatchPayment{})
}

// MatchPayment matches requests that carry a well-formed payment. It says
// nothing about whether the payment is good: only the paywall does. It must
// stand before the paywall, which takes the payment out of the request.
type MatchPayment struct{}

// CaddyModule returns the Caddy module information.
func (*MatchPayment) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.matchers.x402", New: func() caddy.Module { return new(MatchPayment) }}
}

// MatchWithError implements caddyhttp.RequestMatcherWithError.
func (*MatchPayment) MatchWithError(r *http.Request) (bool, error) {
	p, err := payment.FromHeader(r.Header[payment.HeaderPayment], r.Header[payment.HeaderPaymentV1])
	return err == nil && p != nil, nil
}

// UnmarshalCaddyfile reads "x402".
func (*MatchPayment) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	for d.Next() {
		if d.CountRemainingArgs() > 0 {
			return d.ArgErr()
		}
		if d.NextBlock(0) {
			return d.Errf("the matcher x402 has no settings, so not %q either", d.Val())
		}
	}
	return nil
}

var (
	_ caddyhttp.RequestMatcherWithError = (*MatchPayment)(nil)
	_ caddyfile.Unmarshaler             = (*MatchPayment)(nil)
)
