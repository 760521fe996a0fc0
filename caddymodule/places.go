package caddymodule

import (
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"
)

// A place is where a request must go to come to a handler, as far as the
// matchers of hosts, paths and methods in front of it say. Other matchers are
// left out: whoever gets there may still find nothing for sale.
type place struct {
	hosts   []caddyhttp.MatchHost // each must match
	paths   []string              // patterns as clients see them; none is every path
	methods []string              // none is every method

	prefix  string // that has been taken from the path
	changed bool   // the path is not the client's any more in a way that is not known
}

// findPaywalls calls found for every paywall below some routes, with each
// place at which it is.
func findPaywalls(routes caddyhttp.RouteList, at place, found func(*Paywall, place)) {
	for _, route := range routes {
		sets := route.MatcherSets
		if len(sets) == 0 {
			sets = caddyhttp.MatcherSets{nil}
		}
		for _, set := range sets {
			here := at.narrow(set)
			for _, h := range route.Handlers {
				switch h := h.(type) {
				case *Paywall:
					found(h, here)
				case *caddyhttp.Subroute:
					findPaywalls(h.Routes, here, found)
				case *rewrite.Rewrite:
					here.rewrite(h)
				}
			}
			// What rewrites every request does so for the routes after it;
			// what rewrites some leaves the others as they came.
			if len(route.MatcherSets) == 0 {
				at.prefix, at.changed = here.prefix, here.changed
			}
		}
	}
}

// rewrite notes what a rewrite does to the path.
func (p *place) rewrite(r *rewrite.Rewrite) {
	switch {
	case r.URI != "" || r.StripPathSuffix != "" || len(r.URISubstring)+len(r.PathRegexp) > 0 || strings.Contains(r.StripPathPrefix, "{"):
		p.changed = true
	case r.StripPathPrefix != "":
		p.prefix += "/" + strings.Trim(r.StripPathPrefix, "/")
	}
}

// narrow returns the place behind a set of matchers.
func (p place) narrow(set caddyhttp.MatcherSet) place {
	for _, m := range set {
		switch m := m.(type) {
		case *caddyhttp.MatchHost:
			p.hosts = append(slices.Clip(p.hosts), *m)
		case *caddyhttp.MatchMethod:
			p.methods = *m
		case *caddyhttp.MatchPath:
			if p.changed {
				continue
			}
			var paths []string
			for _, pattern := range *m {
				if pattern == "*" || pattern == "/*" {
					paths = nil // as wide as what is around it
					break
				}
				paths = append(paths, p.prefix+"/"+strings.TrimPrefix(pattern, "/"))
			}
			if paths != nil {
				p.paths = paths
			}
		}
	}
	return p
}

// holds reports whether requests to the host of r come to the place.
func (p *place) holds(r *http.Request) bool {
	for _, h := range p.hosts {
		if ok, err := h.MatchWithError(r); err != nil || !ok {
			return false
		}
	}
	return true
}

// origin returns scheme and host of the place, or "" where it can be reached
// by hosts that are not known.
func (p *place) origin(s *caddyhttp.Server) string {
	if len(p.hosts) == 0 {
		return ""
	}
	host := p.hosts[len(p.hosts)-1][0]
	if strings.ContainsAny(host, "*{") {
		return ""
	}
	scheme, port := "http", "80"
	if len(s.TLSConnPolicies) > 0 {
		scheme, port = "https", "443"
	}
	if len(s.Listen) > 0 {
		if i := strings.LastIndexByte(s.Listen[0], ':'); i >= 0 && s.Listen[0][i+1:] != port {
			host += s.Listen[0][i:]
		}
	}
	return scheme + "://" + host
}
