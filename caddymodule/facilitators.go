package caddymodule

import (
	"errors"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/payment"
)

func init() {
	caddy.RegisterModule(&Embedded{})
	caddy.RegisterModule(&HTTPFacilitator{})
}

// Embedded verifies and settles in this process, through the nodes and lanes
// of the app's networks.
type Embedded struct{}

// CaddyModule returns the Caddy module information.
func (*Embedded) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "x402.facilitators.embedded", New: func() caddy.Module { return new(Embedded) }}
}

// UnmarshalCaddyfile reads "embedded".
func (*Embedded) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return noSettings(d)
}

// Remote is a facilitator outside this process. Modules in the namespace
// x402.facilitators implement it; this process keeps the ledger for them.
type Remote interface {
	// Facilitator is called once, when the configuration starts. It does no
	// I/O.
	Facilitator() payment.Facilitator
}

// A Wrapper is a facilitator in this process, as Embedded is, that has a say
// in what the embedded one does. Modules in the namespace x402.facilitators
// implement it. What it wraps is what the paywalls and the facilitator API use.
type Wrapper interface {
	Wrap(payment.Facilitator) payment.Facilitator
}

// HTTPFacilitator is somebody else's facilitator, asked over HTTP.
type HTTPFacilitator struct {
	// Its base URL; /verify, /settle and /supported are below it.
	// Placeholders are resolved when the configuration is loaded.
	URL string `json:"url"`

	// A secret that is sent as Authorization: Bearer. It must be a
	// placeholder such as {env.X402_FACILITATOR_TOKEN}. Default: none.
	Bearer string `json:"bearer,omitempty"`

	client *facilitator.Client
}

// CaddyModule returns the Caddy module information.
func (*HTTPFacilitator) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "x402.facilitators.http", New: func() caddy.Module { return new(HTTPFacilitator) }}
}

// What errors call bearer tokens, and the name that they propose for this one.
const bearerToken, facilitatorExample = "a bearer token", "X402_FACILITATOR_TOKEN"

// Provision makes the client and asks nobody.
func (f *HTTPFacilitator) Provision(caddy.Context) error {
	if f.URL == "" {
		return errors.New("facilitator http: its URL is missing: write \"facilitator http https://facilitator.example.com\"")
	}
	url, err := resolve("facilitator http", f.URL)
	if err != nil {
		return err
	}
	bearer := ""
	if f.Bearer != "" {
		if bearer, err = secret(bearerToken, f.Bearer, facilitatorExample); err != nil {
			return err
		}
	}
	f.client, err = facilitator.NewClient(facilitator.ClientConfig{URL: url, Bearer: bearer})
	return err
}

// Facilitator implements Remote.
func (f *HTTPFacilitator) Facilitator() payment.Facilitator { return f.client }

// UnmarshalCaddyfile reads
//
//	http <url> {
//		bearer {env.X402_FACILITATOR_TOKEN}
//	}
func (f *HTTPFacilitator) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.NextArg() {
		return d.Err("facilitator http needs a URL: write it like https://facilitator.example.com")
	}
	f.URL = d.Val()
	if d.NextArg() {
		return d.Err("facilitator http takes one URL")
	}
	for d.NextBlock(0) {
		switch d.Val() {
		case "bearer":
			err := checked(d, &f.Bearer, func(s string) error { return checkSecret(bearerToken, s, facilitatorExample) })
			if err != nil {
				return err
			}
		default:
			return unknown(d, "facilitator http", "bearer")
		}
	}
	return nil
}

// Wrap implements Wrapper.
func (*Embedded) Wrap(f payment.Facilitator) payment.Facilitator { return f }

// loadFacilitator returns a Remote, or, where this process settles, a Wrapper.
func loadFacilitator(ctx caddy.Context, a *App) (Remote, Wrapper, error) {
	if len(a.FacilitatorRaw) == 0 {
		return nil, &Embedded{}, nil
	}
	guest, err := ctx.LoadModule(a, "FacilitatorRaw")
	if err != nil {
		return nil, nil, fmt.Errorf("facilitator: %w", err)
	}
	switch f := guest.(type) {
	case Remote:
		return f, nil, nil
	case Wrapper:
		return nil, f, nil
	}
	return nil, nil, fmt.Errorf("facilitator: %T is no facilitator", guest)
}

var (
	_ Remote                = (*HTTPFacilitator)(nil)
	_ Wrapper               = (*Embedded)(nil)
	_ caddy.Provisioner     = (*HTTPFacilitator)(nil)
	_ caddyfile.Unmarshaler = (*HTTPFacilitator)(nil)
	_ caddyfile.Unmarshaler = (*Embedded)(nil)
)
