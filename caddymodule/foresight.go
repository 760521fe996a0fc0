package caddymodule

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/tollgate402/tollgate/payment"
)

// expected returns the app that the global option x402 of a Caddyfile will
// become, as far as that is known while the sites are read: without guest
// modules, and with placeholders that are not resolved.
func expected(option any) *App {
	a := &App{networks: map[payment.Network]*Network{}}
	if given, ok := option.(httpcaddyfile.App); ok {
		if err := json.Unmarshal(given.Value, a); err != nil {
			return a // it was written a moment ago
		}
	}
	for _, n := range a.Networks {
		if n.learn() == nil {
			a.networks[n.network] = n
		}
	}
	var kind struct {
		Module string `json:"module"`
	}
	if json.Unmarshal(a.FacilitatorRaw, &kind) == nil && kind.Module != "" && settlesElsewhere(kind.Module) {
		a.remote = elsewhere{}
	}
	a.PayTo = plausible(a.PayTo)
	return a
}

// settlesElsewhere reports whether a guest module lets somebody else settle.
func settlesElsewhere(module string) bool {
	info, err := caddy.GetModule("x402.facilitators." + module)
	if err != nil {
		return false // loading it says what is wrong
	}
	_, yes := info.New().(Remote)
	return yes
}

// elsewhere stands for a remote facilitator that is not loaded.
type elsewhere struct{}

func (elsewhere) Facilitator() payment.Facilitator { return nil }

// plausible returns an address in place of a placeholder, which has no value
// while a Caddyfile is read.
func plausible(payTo string) string {
	if strings.Contains(payTo, "{") {
		return "0x000000000000000000000000000000000000dEaD"
	}
	return payTo
}

// foresee builds the route on the app that is to be expected, so that what is
// wrong with it is said with the line of the Caddyfile that it is in.
func (p *Paywall) foresee(option any) error {
	draft := *p
	draft.app = expected(option)
	draft.PayTo = plausible(p.PayTo)
	draft.Offers = nil
	for _, o := range p.Offers {
		o.PayTo = plausible(o.PayTo)
		draft.Offers = append(draft.Offers, o)
	}
	_, err := draft.build()
	if err == nil {
		return nil
	}
	at := p.where[""]
	if s, ok := errors.AsType[*settingError](err); ok {
		if own, ok := p.where[s.setting]; ok {
			at = own
		}
		if s.offer < len(p.Offers) {
			if own, ok := p.Offers[s.offer].where[s.setting]; ok {
				at = own
			} else if _, ok := p.where[s.setting]; !ok {
				at = p.Offers[s.offer].where[""]
			}
		}
	}
	return wrap(at, err)
}

// foresee checks the links on the app that is to be expected.
func (l *Links) foresee(option any) error {
	draft := *l
	draft.PayTo = plausible(l.PayTo)
	draft.Accept = nil
	for _, o := range l.Accept {
		o.PayTo = plausible(o.PayTo)
		draft.Accept = append(draft.Accept, o)
	}
	err := draft.check(expected(option))
	if err == nil {
		return nil
	}
	at := l.where[""]
	if own, ok := l.where[settingOf(err)]; ok {
		at = own
	}
	return wrap(at, err)
}
