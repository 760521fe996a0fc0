package facilitator

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A Tenant is a seller who settles payments through a Handler, with limits of
// its own. Its exported fields do not change while it is served.
type Tenant struct {
	// Name is what records, logs and metrics call the tenant: 1 to 32 lower
	// case letters, digits, "-" and "_". A payment stays with the tenant of
	// this name, so another name makes another tenant of it.
	Name string

	// Keys are SHA-256 hashes of the keys of which one must be given as
	// Authorization: Bearer. No two tenants have the same.
	Keys [][32]byte

	// PayTo are the recipients, in canonical form, that payments may go to;
	// Networks and Tokens what they may be made on and in. Empty allows all.
	PayTo    []string
	Networks []payment.Network
	Tokens   []payment.Token

	// Least are the smallest amounts that are taken, at most one for each
	// token. By upto it is the charge that counts when a payment is settled,
	// unless it is nothing: that costs no gas.
	Least []payment.Amount

	// Rate bounds the requests, of whatever kind. Nil does not.
	Rate *rate.Limiter

	// PerDay bounds how many payments of one day, in UTC, may cost us gas,
	// whether they succeed or fail on the chain. Repeating a request costs
	// nothing, nor does a payment for which nothing is sent. 0 is no bound.
	PerDay uint64

	mu   sync.Mutex
	busy map[payment.Key]struct{} // guarded by mu: payments that a call settles, where days are counted
}

// A Call is a request of a seller, and what became of it.
type Call struct {
	Tenant   string // "" where nobody with a name asked
	Endpoint string // "verify", "settle" or "settlements"

	// Outcome is "ok", "refused", "pending", "unavailable", "limited" (by rate,
	// or the day is used up), "unauthorized", "malformed", "unknown" (no such
	// settlement) or "failed" (a bug).
	Outcome string

	Reason  string // the protocol's code, where the payment was refused
	Payment string // the payment's key, where it is known
}

const (
	outcomeOK           = "ok"
	outcomeRefused      = "refused"
	outcomePending      = "pending"
	outcomeUnavailable  = "unavailable"
	outcomeLimited      = "limited"
	outcomeUnauthorized = "unauthorized"
	outcomeMalformed    = "malformed"
	outcomeUnknown      = "unknown"
	outcomeFailed       = "failed"
)

// note puts down what a call returned.
func (c *Call) note(err error) {
	var spent *spentError
	var unavailable *payment.UnavailableError
	var invalid *payment.InvalidError
	var unreadable *payment.MalformedError
	switch {
	case err == nil:
		c.Outcome = outcomeOK
	case errors.As(err, &spent):
		c.Outcome = outcomeLimited
	case errors.As(err, &unavailable) && unavailable.Pending:
		c.Outcome, c.Reason = outcomePending, string(payment.SettlementPending)
	case errors.As(err, &unavailable):
		c.Outcome = outcomeUnavailable
	case errors.As(err, &invalid):
		c.Outcome, c.Reason = outcomeRefused, string(invalid.Reason)
	case errors.As(err, &unreadable):
		c.Outcome = outcomeMalformed
	default:
		c.Outcome = outcomeFailed
	}
}

func (h *Handler) observe(c *Call) {
	if h.Observe != nil {
		h.Observe(c)
	}
}

func (h *Handler) now() time.Time {
	if h.Now == nil {
		return time.Now()
	}
	return h.Now()
}

// receive finds out who asks. It answers and returns nil for the tenant if
// that is nobody who may, or may now.
func (h *Handler) receive(w http.ResponseWriter, r *http.Request, endpoint string) (*Tenant, *Call) {
	c := &Call{Endpoint: endpoint}
	t := h.admitted(r)
	if t == nil {
		c.Outcome = outcomeUnauthorized
		unauthorized(w)
		return nil, c
	}
	c.Tenant = t.Name
	if t.Rate == nil {
		return t, c
	}
	now := h.now()
	turn := t.Rate.ReserveN(now, 1)
	if wait := turn.DelayFrom(now); wait > 0 {
		turn.CancelAt(now)
		c.Outcome = outcomeLimited
		tooMany(w, wait, "more requests than this key may make")
		return nil, c
	}
	return t, c
}

func unauthorized(w http.ResponseWriter) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="x402"`)
	fail(w, http.StatusUnauthorized, "a bearer token is needed")
}

// tooMany answers a request that is good at another time.
func tooMany(w http.ResponseWriter, wait time.Duration, message string) {
	w.Header().Set("Retry-After", strconv.FormatInt(int64(math.Ceil(wait.Seconds())), 10))
	fail(w, http.StatusTooManyRequests, message)
}

// admitted returns whose key a request has, the unnamed tenant where it needs
// none, or nil. Every key is compared, each in constant time.
func (h *Handler) admitted(r *http.Request) *Tenant {
	given := r.Header.Get("Authorization")
	if len(h.Bearers) == 0 && (len(h.Tenants) == 0 || h.Open && given == "") {
		return &Tenant{PayTo: h.PayTo}
	}
	scheme, token, _ := strings.Cut(given, " ")
	hash := sha256.Sum256([]byte(token))
	var found *Tenant
	if holds(h.Bearers, hash) {
		found = &Tenant{PayTo: h.PayTo}
	}
	for _, t := range h.Tenants {
		if holds(t.Keys, hash) {
			found = t
		}
	}
	if !strings.EqualFold(scheme, "Bearer") {
		return nil
	}
	return found
}

func holds(keys [][32]byte, hash [32]byte) bool {
	found := 0
	for _, k := range keys {
		found |= subtle.ConstantTimeCompare(k[:], hash[:])
	}
	return found == 1
}

// headerPayment names the payment in the answers to those who can ask for its
// settlement.
const headerPayment = "X-402-Payment"

// name says which payment a request is about.
func (h *Handler) name(w http.ResponseWriter, t *Tenant, c *Call, p *payment.Payment, o *payment.Offer) {
	if t.Name == "" && len(h.Bearers) == 0 {
		return
	}
	if id, err := Identify(p, o); err == nil {
		c.Payment = id.Key.String()
		w.Header().Set(headerPayment, c.Payment)
	}
}

// takes refuses what the tenant may not be paid.
func (t *Tenant) takes(o *payment.Offer, settling bool) error {
	token := o.Amount.Token()
	switch {
	case len(t.PayTo) > 0 && !slices.Contains(t.PayTo, o.PayTo):
		return payment.Invalid(payment.InvalidRequirements, "this facilitator does not settle payments to "+o.PayTo)
	case len(t.Networks) > 0 && !slices.Contains(t.Networks, o.Network()):
		return payment.Invalid(payment.InvalidNetwork, "this key is not for payments on "+string(o.Network()))
	case len(t.Tokens) > 0 && !slices.ContainsFunc(t.Tokens, token.Is):
		return payment.Invalid(payment.InvalidRequirements, "this key is not for payments in the token "+token.Address)
	case settling && o.Scheme == payment.Upto && o.Amount.Zero():
		return nil
	}
	for _, least := range t.Least {
		if least.Token().Is(token) && o.Amount.Cmp(least) < 0 {
			return payment.Invalid(payment.InvalidRequirements, "this key is for payments of at least "+least.String())
		}
	}
	return nil
}

// A spentError says that a tenant has had what a day allows.
type spentError struct{ until time.Duration }

func (e *spentError) Error() string { return "facilitator: the settlements of the day are used up" }

// spent returns a *spentError that lasts until the next midnight.
func spent(at time.Time) error {
	y, m, d := at.UTC().Date()
	return &spentError{time.Date(y, m, d+1, 0, 0, 0, 0, time.UTC).Sub(at)}
}

// limited answers a request of a tenant whose day is used up.
func limited(w http.ResponseWriter, err error) bool {
	over, ok := errors.AsType[*spentError](err)
	if ok {
		tooMany(w, over.until, "the settlements that this key may have on one day, in UTC, are used up; nothing was done with the payment")
	}
	return ok
}

// left returns a *spentError if the tenant can have no settlement any more
// today: whoever is told that a payment is good relies on it.
func (h *Handler) left(ctx context.Context, t *Tenant) error {
	if t.PerDay == 0 {
		return nil
	}
	now := h.now()
	n, err := h.Ledger.Booked(ctx, t.Name, now)
	switch {
	case err != nil:
		return &payment.UnavailableError{Doing: "reading the ledger", Err: err}
	case n >= t.PerDay:
		return spent(now)
	}
	return nil
}

// settleFor settles a payment for a tenant. It counts the payment on the
// tenant's day before anything is claimed, and takes that back where nothing
// was sent for it.
func (h *Handler) settleFor(ctx context.Context, t *Tenant, p *payment.Payment, o *payment.Offer) (*payment.Settlement, error) {
	p.Tenant = t.Name
	if t.PerDay == 0 {
		return h.Facilitator.Settle(ctx, p, o, o.Amount)
	}
	id, err := Identify(p, o)
	if err != nil {
		return nil, err
	}
	first := t.enter(id.Key)
	if first {
		defer t.leave(id.Key) // after the count is right
	}
	r, err := h.Ledger.Get(ctx, id.Key)
	claimed := err == nil && !h.Ledger.Free(&r)
	switch {
	case err != nil && !errors.Is(err, ledger.ErrNotFound):
		return nil, &payment.UnavailableError{Doing: "reading the ledger", Err: err, Payer: id.Payer}
	case claimed && (first || !r.State.Working()): // a repetition, which was counted before
		return h.Facilitator.Settle(ctx, p, o, o.Amount)
	case !first: // and the other call has counted it, but may yet take that back
		return nil, &payment.UnavailableError{Doing: "settling: another call is settling this payment", Pending: true, Payer: id.Payer}
	}
	at := h.now()
	booked, err := h.Ledger.Book(ctx, t.Name, at, t.PerDay)
	switch {
	case err != nil:
		return nil, &payment.UnavailableError{Doing: "counting the settlement", Err: err, Payer: id.Payer}
	case !booked:
		h.log().Warn("the settlements of a day are used up", "tenant", t.Name, "settlements_per_day", t.PerDay)
		return nil, spent(at)
	}
	s, err := h.Facilitator.Settle(ctx, p, o, o.Amount)
	h.recount(ctx, t, id.Key, at, err)
	return s, err
}

// enter reports whether no other call settles the payment. If so, leave must
// follow.
func (t *Tenant) enter(k payment.Key) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, busy := t.busy[k]; busy {
		return false
	}
	if t.busy == nil {
		t.busy = map[payment.Key]struct{}{}
	}
	t.busy[k] = struct{}{}
	return true
}

func (t *Tenant) leave(k payment.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.busy, k)
}

// recountFor is how long taking a count back may take.
const recountFor = 5 * time.Second

// recount takes back what was counted for a payment at a time, unless a
// transaction was sent for it, or may yet be. Where that is not known, it
// counts.
func (h *Handler) recount(ctx context.Context, t *Tenant, k payment.Key, at time.Time, cause error) {
	if unavailable, ok := errors.AsType[*payment.UnavailableError](cause); ok && unavailable.Pending {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recountFor)
	defer cancel()
	r, err := h.Ledger.Get(ctx, k)
	if err == nil && r.Tenant == t.Name && len(r.Slots) > 0 {
		return
	}
	if err == nil || errors.Is(err, ledger.ErrNotFound) {
		err = h.Ledger.Unbook(ctx, t.Name, at)
	}
	if err != nil {
		h.log().Warn("a settlement counts on the day although it may have cost nothing", "tenant", t.Name, "payment", k.String(), "error", err)
	}
}

// A settlementStatus is the answer of /settlements.
type settlementStatus struct {
	Payment     string    `json:"payment"`
	Status      string    `json:"status"` // "settled", "pending", "released" or "failed"
	Message     string    `json:"message"`
	Transaction string    `json:"transaction"` // "" when none
	Network     string    `json:"network"`
	Asset       string    `json:"asset,omitempty"`
	Amount      string    `json:"amount"` // what is charged, in atomic units
	PayTo       string    `json:"payTo,omitempty"`
	Payer       string    `json:"payer"`
	Since       time.Time `json:"since"`
	Updated     time.Time `json:"updated"`
}

const settlements = "settlements" // the endpoint, below which payments have their keys

func isSettlement(endpoint string) bool {
	return strings.HasSuffix(path.Dir(endpoint), "/"+settlements)
}

// settlement tells the tenant that a payment is of what became of it. To
// everybody else there is no such payment.
func (h *Handler) settlement(w http.ResponseWriter, r *http.Request) {
	t, seen := h.receive(w, r, settlements)
	defer h.observe(seen)
	switch {
	case t == nil:
		return
	case t.Name == "" && len(h.Bearers) == 0:
		seen.Outcome = outcomeUnauthorized
		unauthorized(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.deadline())
	defer cancel()
	var k payment.Key
	found := false
	if b, err := hex.DecodeString(path.Base(r.URL.Path)); err == nil && len(b) == len(k) && h.Ledger != nil {
		k, found = payment.Key(b), true
	}
	var record ledger.Record
	if found {
		var err error
		record, err = h.Ledger.Get(ctx, k)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			err = &payment.UnavailableError{Doing: "reading the ledger", Err: err}
			seen.note(err)
			h.trouble(w, t, err)
			return
		}
		found = err == nil && record.Mode == apiMode && record.Tenant == t.Name
	}
	if !found {
		seen.Outcome = outcomeUnknown
		fail(w, http.StatusNotFound, "no payment of this id was settled with this key: the id is in the header "+headerPayment+" of the answers to /verify and /settle")
		return
	}
	seen.Outcome, seen.Payment = outcomeOK, k.String()
	status := describe(&record, h.Ledger.Free(&record))
	doc, err := json.Marshal(&status)
	if err != nil {
		panic("facilitator: encoding strings and times failed: " + err.Error())
	}
	answer(w, http.StatusOK, doc)
}

// describe puts a record into words. free reports that it can be claimed.
func describe(r *ledger.Record, free bool) settlementStatus {
	s := settlementStatus{
		Payment: r.Key.String(), Network: string(r.Network), Amount: r.Charge, Payer: r.Payer,
		Since: r.Since.UTC(), Updated: r.Updated.UTC(),
	}
	if r.State.Broadcast() || r.State == ledger.Dead {
		s.Transaction = r.Transaction()
	}
	if _, o, err := payment.DecodeRequest(r.Request); err == nil {
		s.Asset, s.PayTo = o.Amount.Token().Address, o.PayTo
	}
	switch {
	case r.State.Paid() && s.Transaction == "":
		s.Status, s.Message = "settled", "nothing was charged, so nothing had to move"
	case r.State.Paid():
		s.Status, s.Message = "settled", "the money has moved"
	case r.State.Broadcast():
		s.Status, s.Message = "pending", "a transaction is on its way: repeat the identical /settle to wait for it"
	case free || r.State == ledger.Released:
		s.Status, s.Message = "released", "nothing was sent: the payment can be settled as long as it is valid"
	case r.State.Working():
		s.Status, s.Message = "pending", "a call to /settle is at work and nothing has been sent: repeat the identical one"
	default:
		s.Status, s.Message = "failed", "the payment can never settle"
	}
	return s
}
