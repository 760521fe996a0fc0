package caddymodule

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/tollgate402/tollgate/facilitator"
)

func init() {
	caddy.RegisterModule(&FacilitatorAPI{})
}

// FacilitatorAPI offers the embedded facilitator to other sellers, as POST
// /verify, POST /settle, GET /supported, for those with a key GET
// /settlements/<payment>, and with discovery GET /discovery/resources, below
// wherever it is mounted. Each settlement costs the lane gas, so it must say who
// may ask for one: whoever has a bearer token, or wants one of some addresses
// paid, or tenants, which have limits of their own.
//
// The access log has the name of the tenant as x402_tenant, the payment as
// x402_payment, and what became of the request as x402_outcome and
// x402_reason. The metric caddy_x402_facilitator_requests_total counts requests
// by tenant, endpoint and outcome.
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
	// Sellers with keys and limits of their own. The settings above do not
	// concern them. Where there are tenants, a request without a key is still
	// served as those settings say, and one with a wrong key is not.
	Tenants []FacilitatorTenant `json:"tenants,omitempty"`

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
	if f.handler.PayTo, err = addresses(f.app, f.PayTo); err != nil {
		return err
	}
	f.handler.Open = f.InsecureOpen || len(f.PayTo) > 0
	return f.provisionTenants()
}

// check says what of the app keeps the API from being offered.
func (f *FacilitatorAPI) check(a *App) error {
	switch {
	case a.remote != nil:
		return errors.New("x402_facilitator offers the embedded facilitator, but the global option x402 lets another one settle: remove one of the two")
	case len(a.Networks) == 0:
		return errors.New("x402_facilitator has no network: add \"network <name> { rpc <url>; lane key {env.X402_LANE_KEY} }\" to the global option x402")
	case len(f.Bearer) == 0 && len(f.PayTo) == 0 && len(f.Tenants) == 0 && !f.InsecureOpen:
		return errors.New("x402_facilitator lets everybody spend the lane's gas: add \"bearer {env.SHOP_TOKEN}\", \"pay_to <address>\" or \"tenant <name> { key {env.SHOP_KEY} }\", or insecure_open if that is meant")
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
	h.Facilitator, h.Ledger = e.facilitator, e.book.ledger
	if f.Discovery {
		h.Catalogue, h.Own = &e.book.catalogue, f.app.own
	}
	h.Observe = func(c *facilitator.Call) {
		logCall(r.Context(), c)
		f.app.metrics.called(c)
	}
	h.ServeHTTP(w, r)
	return nil
}

// logCall adds to the access log who asked and what became of it.
func logCall(ctx context.Context, c *facilitator.Call) {
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || server.Logs == nil {
		return
	}
	extra, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields)
	if !ok {
		return
	}
	for _, f := range []struct{ name, value string }{
		{"x402_tenant", c.Tenant},
		{"x402_payment", c.Payment},
		{"x402_outcome", c.Outcome},
		{"x402_reason", c.Reason},
	} {
		if f.value != "" {
			extra.Set(zap.String(f.name, f.value))
		}
	}
}

var (
	_ caddy.Provisioner           = (*FacilitatorAPI)(nil)
	_ caddyhttp.MiddlewareHandler = (*FacilitatorAPI)(nil)
)
