package till

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/pass"
)

// A Pass says what a payment buys beside its answer: more requests to the same
// route. It must not change once it is in use.
type Pass struct {
	// Key makes the passes. Instances that serve the same routes need the
	// same one, and passes that were sold are good for as long as it stays.
	Key pass.Key

	// For is how long a pass is good, in whole seconds, counted from the first
	// use of its payment. Zero is without end; then Calls must be given.
	For time.Duration

	// Calls is for how many requests a pass is good; the one that pays is not
	// counted. Zero is no limit; then For must be given.
	Calls uint32

	// Scope names what passes are good for. Routes with the same one take
	// each other's passes, on the same host.
	Scope string
}

// Why a pass is not taken, as challenges say it.
const (
	PassForeign   payment.Reason = "pass_not_signed_here"
	PassElsewhere payment.Reason = "pass_of_another_route"
	PassExpired   payment.Reason = "pass_expired"
	PassUsedUp    payment.Reason = "pass_used_up"
	PassRevoked   payment.Reason = "pass_revoked"
	PassTooSmall  payment.Reason = "pass_paid_less_than_the_price"
)

// headerCallsLeft says in an answer how many calls of its pass are left.
const headerCallsLeft = "X-402-Pass-Calls"

const (
	// standingKept is for how long it is taken for granted that a payment
	// stands as it stood, and its pass with it.
	standingKept = 2 * time.Second

	// maxStandings is how many payments that is remembered of.
	maxStandings = 1 << 14
)

// standings remember for a moment which payments their passes can rely on.
// They are safe for concurrent use.
type standings struct {
	mu    sync.Mutex
	known map[payment.Key]standing // guarded by mu
}

// A standing is how a payment stood.
type standing struct {
	paid, pending bool // neither is revoked
	at            time.Time
}

func (s *standings) get(k payment.Key, now time.Time) (standing, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.known[k]
	age := now.Sub(known.at)
	return known, ok && age >= 0 && age < standingKept
}

func (s *standings) put(k payment.Key, known standing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[payment.Key]standing{}
	}
	for other := range s.known { // any one: it is read again when it is asked for
		if len(s.known) < maxStandings {
			break
		}
		delete(s.known, other)
	}
	s.known[k] = known
}

func (s *standings) forget(k payment.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, k)
}

// standing returns how a payment stands, which may be as it stood two seconds
// ago. What a reorg has put back on its way is pending.
func (t *Till) standing(ctx context.Context, k payment.Key) (standing, error) {
	now := t.now()
	if known, ok := t.standings.get(k, now); ok {
		return known, nil
	}
	p, err := t.Ledger.Pass(ctx, k)
	if err != nil {
		return standing{}, err
	}
	r, err := t.Ledger.Get(ctx, k)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return standing{}, err
	}
	known := standing{at: now}
	if err == nil && !p.Revoked && !givenUp(&r) {
		known.paid = r.State.Paid()
		known.pending = !known.paid && r.State.Broadcast()
	}
	t.standings.put(k, known)
	return known, nil
}

// RevokePass ends the pass of a payment for good. One that is good for a time
// may be used for two seconds more, one whose calls are counted is not.
// It returns ledger.ErrNotFound for a payment that is not known.
func (t *Till) RevokePass(ctx context.Context, k payment.Key) error {
	if _, err := t.Ledger.Get(ctx, k); err != nil {
		return err
	}
	defer t.standings.forget(k)
	return t.Ledger.RevokePass(ctx, k)
}

// scope names what the passes of the route are good for on this host.
func (v *visit) scope() payment.Fingerprint {
	origin := v.route.Origin
	if origin == "" {
		origin = strings.ToLower(v.r.Host)
	}
	return fold("pass", origin, v.route.Pass.Scope)
}

// makePass returns the pass that a payment has bought, or "". It is the same
// each time that the payment is answered.
func (v *visit) makePass(r *ledger.Record) string {
	p := v.route.Pass
	if p == nil || r.State != ledger.Settled && r.State != ledger.Archived || givenUp(r) || r.Charge == nothing {
		return ""
	}
	c := &pass.Claims{
		Scope: v.scope(), Payment: r.Key, Network: r.Network, Payer: r.Payer,
		Token: v.offer.Amount.Token().Address, Units: v.offer.Amount.Units(), Issued: r.Since.Truncate(time.Second), Calls: p.Calls,
	}
	if p.For > 0 {
		c.Expires = c.Issued.Add(p.For)
	}
	text, err := p.Key.Make(c)
	if err != nil {
		v.log().Error("making a pass failed; the answer goes out without one", "payment", r.Key.String(), "error", err)
		return ""
	}
	return text
}

// handPass puts the pass on the headers of an answer that has bought one.
func (v *visit) handPass(h http.Header) {
	if v.bought == "" {
		return
	}
	h.Set(pass.Header, v.bought)
	h.Add("Access-Control-Expose-Headers", pass.Header)
}

// withPass serves a request that comes with a pass in place of a payment.
func (v *visit) withPass(text string) error {
	key := v.route.Tickets
	if v.route.Pass != nil {
		key = &v.route.Pass.Key
	}
	c, err := pass.Read(key.Public(), text)
	if _, ok := errors.AsType[*payment.MalformedError](err); ok {
		v.sale.Reason = "malformed pass"
		v.problem(http.StatusBadRequest, err.Error())
		return nil
	}
	if err != nil {
		return v.noPass(PassForeign, err.Error())
	}
	v.sale.Payment, v.sale.Payer, v.sale.Network = c.Payment.String(), c.Payer, c.Network
	ticket := v.route.Tickets != nil && c.Scope == v.opened()
	switch {
	case !ticket && (v.route.Pass == nil || c.Scope != v.scope()):
		return v.noPass(PassElsewhere, "the pass was bought for something else")
	case c.Ended(v.now()):
		return v.noPass(PassExpired, "the time of the pass is over")
	case !ticket && !v.covered(c): // what a ticket costs is the link's business
		return v.noPass(PassTooSmall, "the pass was bought for less than what this costs")
	}
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	known, err := v.standing(ctx, c.Payment)
	switch {
	case err != nil:
		return v.passUnknown("the pass could not be checked now; send the same request again", err)
	case known.pending:
		return v.passUnknown("the payment of the pass is being settled again; do not pay again; send the same request again", nil)
	case !known.paid:
		return v.noPass(PassRevoked, "the pass was revoked")
	}
	used := uint32(0)
	if c.Calls > 0 {
		used, err = v.Ledger.UsePass(ctx, c.Payment, c.Calls)
		switch {
		case errors.Is(err, ledger.ErrPassUsedUp):
			return v.noPass(PassUsedUp, "all calls of the pass have been made")
		case errors.Is(err, ledger.ErrPassRevoked):
			return v.noPass(PassRevoked, "the pass was revoked")
		case err != nil:
			return v.passUnknown("the call could not be counted now; send the same request again", err)
		}
	}
	return v.pass(c, used)
}

// covered reports whether the pass was bought for at least what the request
// costs, where that is not always the same: what is paid for one thing must
// not be used for a dearer one.
func (v *visit) covered(c *pass.Claims) bool {
	if v.price == nil {
		return true
	}
	for i := range v.offers() {
		price := v.offers()[i].Amount
		if price.Token().Network != c.Network || price.Token().Address != c.Token {
			continue
		}
		paid, err := payment.ParseUnits(c.Units, price.Token())
		if err == nil && paid.Cmp(price) >= 0 {
			return true
		}
	}
	return false
}

// pass lets the upstream answer a request that has a good pass, of which so
// many calls are used now. A call that fails with 5xx is given back.
func (v *visit) pass(c *pass.Claims, used uint32) error {
	v.sale.Pass = true
	v.listens()
	up := v.r.Clone(v.r.Context())
	up.Body = v.r.Body
	strip(up.Header)
	v.unprice(up.Header)
	up.Header.Set("X-402-Payer", c.Payer)
	up.Header.Set("X-402-Network", string(c.Network))
	up.Header.Set("X-402-Payment", c.Payment.String())
	up.Header.Set("X-402-With-Pass", "true")
	w := &receiptWriter{ResponseWriter: v.w}
	w.stamp = func(h http.Header) {
		strip(h)
		v.unprice(h)
		unannounce(h, v.tariff)
		uncacheable(h)
		h.Add("Vary", pass.Header)
		if c.Calls > 0 {
			h.Set(headerCallsLeft, strconv.FormatUint(uint64(c.Calls-used), 10))
			h.Add("Access-Control-Expose-Headers", headerCallsLeft)
		}
	}
	failed := true // unless the upstream comes back
	defer func() {
		if c.Calls > 0 && (w.status >= 500 || w.status == 0 && failed) {
			v.sale.Reason = "upstream failed"
			v.returnPass(c)
		}
	}()
	err := v.next(w, up, v.sale)
	failed = err != nil
	w.end()
	v.unprice(w.Header())
	return err
}

// returnPass gives back a call that came to nothing.
func (v *visit) returnPass(c *pass.Claims) {
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	if err := v.Ledger.ReturnPass(ctx, c.Payment); err != nil {
		v.log().Error("giving back a call of a pass failed", "payment", c.Payment.String(), "error", err)
	}
}

// noPass answers a pass that is not taken: a challenge that says why.
func (v *visit) noPass(reason payment.Reason, message string) error {
	v.refuse(payment.Invalid(reason, message))
	return nil
}

// passUnknown answers that it could not be found out whether a pass is good.
func (v *visit) passUnknown(message string, err error) error {
	v.log().Warn("a pass could not be checked", "payment", v.sale.Payment, "error", err)
	v.sale.Reason = "unavailable"
	v.w.Header().Set("Retry-After", "2")
	v.problem(http.StatusServiceUnavailable, message)
	return nil
}
