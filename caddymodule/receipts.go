package caddymodule

import (
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/payment"
)

func init() {
	caddy.RegisterModule(&Receipts{})
}

// Receipts answers "did I pay?": whoever can show a payment, in its header or
// as the body of a POST, is told in JSON what has become of it. It asks no
// node, and tells nobody else anything.
type Receipts struct{ app *App }

// CaddyModule returns the Caddy module information.
func (*Receipts) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.x402_receipts", New: func() caddy.Module { return new(Receipts) }}
}

// Provision finds the app.
func (h *Receipts) Provision(ctx caddy.Context) error {
	app, err := ctx.App("x402")
	if err != nil {
		return err
	}
	h.app = app.(*App)
	return nil
}

func (h *Receipts) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	h.app.unlogged(r)
	e := h.app.acquire()
	if e == nil {
		notRunning(w)
		return nil
	}
	defer e.release()
	(&till.Receipts{Till: e.till, Tokens: h.app.tokens()}).ServeHTTP(w, r)
	return nil
}

// tokens returns every token that a payment here can be in.
func (a *App) tokens() []payment.Token {
	var list []payment.Token
	seen := map[payment.Token]bool{}
	add := func(t payment.Token) {
		if !seen[t] {
			seen[t] = true
			list = append(list, t)
		}
	}
	for _, n := range a.Networks {
		for _, t := range n.tokens {
			add(t)
		}
	}
	for i := range a.offers {
		add(a.offers[i].Amount.Token())
	}
	return list
}

// UnmarshalCaddyfile reads "x402_receipts".
func (*Receipts) UnmarshalCaddyfile(d *caddyfile.Dispenser) error { return noSettings(d) }

var (
	_ caddy.Provisioner           = (*Receipts)(nil)
	_ caddyhttp.MiddlewareHandler = (*Receipts)(nil)
	_ caddyfile.Unmarshaler       = (*Receipts)(nil)
)
