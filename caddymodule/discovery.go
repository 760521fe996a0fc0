package caddymodule

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/payment"
)

func init() {
	caddy.RegisterModule(&Discovery{})
	httpcaddyfile.RegisterHandlerDirective("x402_discovery", parseDiscovery)
	httpcaddyfile.RegisterDirectiveOrder("x402_discovery", httpcaddyfile.After, "forward_auth") // and before x402: looking costs nothing
}

// Discovery tells programs what the paywalls of its site sell: at GET
// /.well-known/x402 as a list, and at GET /openapi.json as an OpenAPI 3.1
// description with prices. Both are made of the configuration that runs, and
// are free. Requests for anything else go on.
//
// It finds the paths, methods and hosts of the paywalls in the matchers in
// front of them, wherever they are nested, handle_path included; paths are in
// lower case, as Caddy compares them. What other
// matchers or rewrites do cannot be told; a route whose path is not found so
// says it with route_template in its discover block. A path that ends in a
// wildcard is listed up to it.
type Discovery struct {
	// The title of the description. Default: "Paid API".
	Title string `json:"title,omitempty"`

	// The version of the API that is described. Default: "1".
	Version string `json:"version,omitempty"`

	// Where the description is. Default: "/openapi.json".
	OpenAPI string `json:"openapi,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*Discovery) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.x402_discovery", New: func() caddy.Module { return new(Discovery) }}
}

// Provision fills in the defaults.
func (h *Discovery) Provision(caddy.Context) error {
	for _, f := range []struct {
		to       *string
		fallback string
	}{{&h.Title, "Paid API"}, {&h.Version, "1"}, {&h.OpenAPI, "/openapi.json"}} {
		if *f.to == "" {
			*f.to = f.fallback
		}
	}
	return nil
}

// wellKnown is where the list is.
const wellKnown = "/.well-known/x402"

func (h *Discovery) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	path := r.URL.Path
	if path != wellKnown && path != h.OpenAPI || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return next.ServeHTTP(w, r)
	}
	server, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok {
		return next.ServeHTTP(w, r)
	}
	origin := "http://" + r.Host
	if r.TLS != nil {
		origin = "https://" + r.Host
	}
	sold := wares(server, r, func(*Paywall, *place) string { return origin })
	var doc json.RawMessage
	var err error
	if path == wellKnown {
		doc, err = listOf(sold)
	} else {
		doc, err = h.describe(origin, sold)
	}
	if err != nil {
		return caddyhttp.Error(http.StatusInternalServerError, err)
	}
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(len(doc)))
	header.Set("Access-Control-Allow-Origin", "*")
	header.Set("Cache-Control", "no-cache") // a reload may change prices
	header.Set("Vary", "Host")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(doc) // nobody is left to tell
	}
	return nil
}

// A ware is one thing that a paywall sells: a path, with methods.
type ware struct {
	*Paywall
	origin  string
	path    string // as OpenAPI writes it, with parameters in braces
	url     string
	methods []string
}

// wares returns what the paywalls of a server sell: all of them or, with r,
// those that a request to its host can reach. origin says where a paywall is
// that does not say so itself, or "".
func wares(server *caddyhttp.Server, r *http.Request, origin func(*Paywall, *place) string) []ware {
	var list []ware
	findPaywalls(server.Routes, place{}, func(p *Paywall, at place) {
		if p.route == nil || len(p.route.Offers) == 0 || p.Discover != nil && p.Discover.Hidden || r != nil && !at.holds(r) {
			return
		}
		base := p.Origin
		if base == "" {
			base = origin(p, &at)
		}
		if base == "" {
			return
		}
		for _, pattern := range p.patterns(&at) {
			w := ware{Paywall: p, origin: base, methods: p.methods(&at)}
			w.path, w.url = paths(pattern)
			if p.Discover != nil && p.Discover.RouteTemplate != "" {
				w.path, w.url = p.Discover.paths()
			}
			w.url = base + w.url
			if !slices.ContainsFunc(list, func(other ware) bool { return other.Paywall == p && other.url == w.url }) {
				list = append(list, w)
			}
		}
	})
	return list
}

// patterns returns the paths of a paywall at a place.
func (p *Paywall) patterns(at *place) []string {
	list := slices.DeleteFunc(slices.Clone(at.paths), func(s string) bool { return strings.Contains(s, "{") }) // a placeholder
	if len(at.paths) == 0 {
		list = []string{at.prefix + "/*"}
	}
	return list
}

// methods returns the methods of a paywall at a place that it has a price for.
func (p *Paywall) methods(at *place) []string {
	if p.Discover != nil && (p.Discover.Method != "" || len(at.methods) == 0) {
		return []string{p.Discover.description().Method}
	}
	known := []string{"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
	list := slices.DeleteFunc(slices.Clone(at.methods), func(m string) bool { return !slices.Contains(known, m) })
	if len(list) == 0 {
		return []string{"GET"}
	}
	return list
}

// paths returns a pattern as OpenAPI writes it, and up to its first wildcard.
func paths(pattern string) (template, url string) {
	url, _, _ = strings.Cut(pattern, "*")
	n := 0
	for {
		before, after, more := strings.Cut(pattern, "*")
		template += before
		if !more {
			return template, url
		}
		n++
		template += "{path" + strings.Repeat("_", n-1) + "}"
		pattern = after
	}
}

// paths returns the template as OpenAPI writes it, and with the samples in the
// place of the parameters.
func (d *Discover) paths() (template, url string) {
	segments := strings.Split(d.RouteTemplate, "/")
	sampled := slices.Clone(segments)
	for i, s := range segments {
		name, parameter := strings.CutPrefix(s, ":")
		if !parameter {
			continue
		}
		segments[i] = "{" + name + "}"
		if sample, ok := d.PathParams[name]; ok {
			sampled[i] = sample
		}
	}
	return strings.Join(segments, "/"), strings.Join(sampled, "/")
}

// listing returns the ware as catalogues have it.
func (w *ware) listing() facilitator.Listing {
	l := facilitator.Listing{
		Resource: w.url, Type: "http", Version: payment.V2, LastUpdated: facilitator.ListingTime(w.since),
		Description: w.Description, MimeType: w.MimeType, Extensions: w.advertised,
	}
	for i := range w.route.Offers {
		l.Accepts = append(l.Accepts, w.route.Offers[i].Encode())
	}
	return l
}

// listOf returns the list of /.well-known/x402.
func listOf(sold []ware) (json.RawMessage, error) {
	list := struct {
		Version     int                   `json:"version"` // of this list
		X402Version int                   `json:"x402Version"`
		Resources   []string              `json:"resources"`
		Items       []facilitator.Listing `json:"items"`
	}{1, payment.V2, []string{}, []facilitator.Listing{}}
	for i := range sold {
		list.Resources = append(list.Resources, sold[i].url)
		list.Items = append(list.Items, sold[i].listing())
	}
	return json.Marshal(list)
}

// own returns what all paywalls of the running configuration sell, as far as
// it is known under which host.
func (a *App) own() []facilitator.Listing {
	module, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return nil
	}
	app, ok := module.(*caddyhttp.App)
	if !ok {
		return nil
	}
	var list []facilitator.Listing
	for _, server := range app.Servers {
		for _, w := range wares(server, nil, func(_ *Paywall, at *place) string { return at.origin(server) }) {
			list = append(list, w.listing())
		}
	}
	return list
}

// parseDiscovery reads the directive:
//
//	x402_discovery [<matcher>] {
//		title   <text>
//		version <text>
//		openapi <path>
//	}
func parseDiscovery(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	d := &Discovery{}
	return d, d.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive x402_discovery.
func (h *Discovery) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.ArgErr()
	}
	for d.NextBlock(0) {
		var err error
		switch d.Val() {
		case "title":
			err = text(d, &h.Title)
		case "version":
			err = text(d, &h.Version)
		case "openapi":
			if err = text(d, &h.OpenAPI); err == nil && !strings.HasPrefix(h.OpenAPI, "/") {
				err = d.Errf("%q is no path: write it like /openapi.json", h.OpenAPI)
			}
		default:
			err = unknown(d, "x402_discovery", "title", "version", "openapi")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var (
	_ caddy.Provisioner           = (*Discovery)(nil)
	_ caddyhttp.MiddlewareHandler = (*Discovery)(nil)
	_ caddyfile.Unmarshaler       = (*Discovery)(nil)
)
