package caddymodule

import (
	"crypto/sha256"
	"errors"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/payment"
)

func init() {
	caddy.RegisterModule(&FacilitatorAPI{})
}

// FacilitatorAPI offers the embedded facilitator to other sellers, as POST
// /verify, POST /settle and GET /supported below wherever it is mounted, and
// with discovery as GET /discovery/resources what it was paid for. Each
// settlement costs the lane gas, so it must say who may ask for one.
type FacilitatorAPI struct {
	// Secrets of which one must come as Authorization: Bearer. Each must be
	// a placeholder such as {env.SHOP_TOKEN}.
	Bearer []string `json:"bearer,omitempty"`

	// The addresses that may be paid. Placeholders are resolved when the
	// configuration is loaded. Default: all.
	PayTo []string `json:"pay_to,omitempty"`

	// Lets anybody settle payments to anybody at the lane's expense.
	// Default: false.
	InsecureOpen bool `json:"insecure_open,omitempty"`

	// Whether resources are listed: what the paywalls here sell and what
	// others were paid for through this facilitator and have described
	// (extension bazaar). The latter is kept in memory. Default: false.
	Discovery bool `json:"discovery,omitempty"`

	app     *App
	handler facilitator.Handler // without its facilitator, which is the running engine's
}

// CaddyModule returns the Caddy module information.
func (*FacilitatorAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.x402_facilitator", New: func() caddy.Module { return new(FacilitatorAPI) }}
}

// shopExample is the name that errors propose for a bearer token.
const shopExample = "SHOP_TOKEN"

// Provision reads the secrets and checks that the gas is guarded.
func (f *FacilitatorAPI) Provision(ctx caddy.Context) error {
	app, err := ctx.App("x402")
	if err != nil {
		return err
	}
	f.app = app.(*App)
	if err := f.check(f.app); err != nil {
		return err
	}
	f.handler.Logger = ctx.Slogger()
	for _, b := range f.Bearer {
		token, err := secret(bearerToken, b, shopExample)
		if err != nil {
			return err
		}
		f.handler.Bearers = append(f.handler.Bearers, sha256.Sum256([]byte(token)))
	}
	for _, a := range f.PayTo {
		if a, err = resolve("pay_to", a); err != nil {
			return err
		}
		// All networks here are EVM networks, whose addresses look the same.
		if a, err = payment.ParseAddress(f.app.Networks[0].network, a); err != nil {
			return err
		}
		f.handler.PayTo = append(f.handler.PayTo, a)
	}
	return nil
}

// check says what of the app keeps the API from being offered.
func (f *FacilitatorAPI) check(a *App) error {
	switch {
	case a.remote != nil:
		return errors.New("x402_facilitator offers the embedded facilitator, but the global option x402 lets another one settle: remove one of the two")
	case len(a.Networks) == 0:
		return errors.New("x402_facilitator has no network: add \"network <name> { rpc <url>; lane key {env.X402_LANE_KEY} }\" to the global option x402")
	case len(f.Bearer) == 0 && len(f.PayTo) == 0 && !f.InsecureOpen:
		return errors.New("x402_facilitator lets everybody spend the lane's gas: add \"bearer {env.SHOP_TOKEN}\" or \"pay_to <address>\", or insecure_open if that is meant")
	}
	for _, n := range a.Networks {
		if err := a.settles(n.network); err != nil {
			return err
		}
	}
	return nil
}

func (f *FacilitatorAPI) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	e := f.app.acquire()
	if e == nil {
		notRunning(w)
		return nil
	}
	defer e.release()
	h := f.handler
	h.Facilitator = e.facilitator
	if f.Discovery {
		h.Catalogue, h.Own = &e.book.catalogue, f.app.own
	}
	h.ServeHTTP(w, r)
	return nil
}

var (
	_ caddy.Provisioner           = (*FacilitatorAPI)(nil)
	_ caddyhttp.MiddlewareHandler = (*FacilitatorAPI)(nil)
)
