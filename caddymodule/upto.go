package caddymodule

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/payment"
)

// uptoAgain is for how long it is believed which account of a facilitator
// settles payments by upto, and uptoRetry for how long that it does not say.
const (
	uptoAgain = time.Minute
	uptoRetry = 2 * time.Second
)

// An uptoChallenge is the challenge of a route that offers upto. Such an offer
// names the one account that may settle it, which only the facilitator knows
// once it runs.
type uptoChallenge struct {
	asking sync.Mutex // held while the facilitator is asked
	known  atomic.Pointer[uptoRoute]
}

// An uptoRoute is a route with a challenge that a facilitator's answer led to.
type uptoRoute struct {
	*till.Route         // nil if no offer can be made
	engine      *engine // whose facilitator was asked
	asked       time.Time
}

// unpinned reports whether an offer does not say yet who settles it.
func unpinned(o payment.Offer) bool {
	_, known := o.Extra[facilitatorAddress]
	return o.Scheme == payment.Upto && !known
}

// of returns what the facilitator of e has said, or nil.
func (u *uptoChallenge) of(e *engine) *uptoRoute {
	if k := u.known.Load(); k != nil && k.engine == e {
		return k
	}
	return nil
}

// recent reports whether the facilitator need not be asked again.
func (r *uptoRoute) recent() bool {
	again := uptoAgain
	if r.Route == nil {
		again = uptoRetry
	}
	return time.Since(r.asked) < again
}

// current returns the route as it is served now: nil where no offer can be
// made, because the facilitator has not said who settles them.
func (p *Paywall) current(ctx context.Context, e *engine) *till.Route {
	if p.upto == nil {
		return p.route
	}
	known := p.upto.of(e)
	if known != nil && (known.recent() || !p.upto.asking.TryLock()) {
		return known.Route
	}
	if known == nil {
		p.upto.asking.Lock()
	}
	defer p.upto.asking.Unlock()
	if known = p.upto.of(e); known != nil && known.recent() {
		return known.Route // somebody else has asked meanwhile
	}
	route, err := p.pinned(ctx, e)
	if err != nil {
		p.app.logger.Warn("not every offer by upto can be made", "error", err)
		if known != nil && known.Route != nil {
			route = known.Route // what was said before is better
		}
	}
	p.upto.known.Store(&uptoRoute{Route: route, engine: e, asked: time.Now()})
	return route
}

// pinned returns the route with a challenge whose offers by upto name the
// account that settles them, and says why some of them are missing; without
// any offer it is nil. The route's own offers name no account: the facilitator
// may use another one tomorrow, and refuses those that are not its own.
func (p *Paywall) pinned(ctx context.Context, e *engine) (*till.Route, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), headPatience) // the others wait for it, too
	defer cancel()
	supported, missing := e.facilitator.Supported(ctx)
	if missing != nil {
		supported = &payment.Supported{}
	}
	challenge := p.challenge
	challenge.Offers = nil
	for _, o := range p.challenge.Offers {
		if unpinned(o) {
			address, err := uptoFacilitator(supported, o.Network())
			if err != nil {
				missing = cmp.Or(missing, err)
				continue
			}
			o.Extra = maps.Clone(o.Extra)
			o.Extra[facilitatorAddress] = address
		}
		challenge.Offers = append(challenge.Offers, o)
	}
	if len(challenge.Offers) == 0 {
		return nil, missing
	}
	prepared, err := challenge.Prepare()
	if err != nil {
		return nil, err
	}
	route := *p.route
	route.Challenge = prepared
	return &route, missing
}

// uptoFacilitator returns, in JSON, the account that settles upto on a network,
// as a facilitator says in the extra of what it supports.
func uptoFacilitator(s *payment.Supported, n payment.Network) (json.RawMessage, error) {
	for _, k := range s.Kinds {
		if k.Version != payment.V2 || k.Scheme != payment.Upto || k.Network != n {
			continue
		}
		var extra struct {
			Address string `json:"facilitatorAddress"`
		}
		if err := json.Unmarshal(k.Extra, &extra); err != nil {
			return nil, fmt.Errorf("the facilitator says what it supports for upto on %s in a form that cannot be read", n)
		}
		address, err := payment.CanonicalAddress(n, extra.Address)
		if err != nil {
			return nil, fmt.Errorf("the facilitator supports upto on %s, but does not say by which account: facilitatorAddress: %w", n, err)
		}
		return json.Marshal(address)
	}
	return nil, fmt.Errorf("the facilitator does not settle upto on %s", n)
}

// unpriced answers a request to a route for which no offer can be made now.
func unpriced(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Retry-After", "5")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write([]byte(`{"error":"the facilitator has not said who settles payments here; you have not been charged; send the same request again"}`)) // nobody is left to tell
}
