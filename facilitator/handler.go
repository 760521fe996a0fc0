package facilitator

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/extension"
)

// A Handler offers a facilitator to others over HTTP: POST /verify, POST
// /settle, GET /supported and, with a catalogue, GET /discovery/resources below
// wherever it is mounted, in both protocol versions. A decided payment, good or
// bad, is answered with 200; a request that cannot be read with 400; and what
// cannot be found out now with 503. Of a request with Cache-Control: max-stale,
// what /verify says of a new exact payment may follow from what was seen of its
// payer after the same block; of any other the chain is asked.
// Who has no key gets 401, and who has asked too often 429. GET
// /settlements/<payment> tells whoever has settled a payment with a key what
// became of it.
type Handler struct {
	Facilitator payment.Facilitator

	// Bearers are SHA-256 hashes of the tokens of which one must be given as
	// Authorization: Bearer for /verify and /settle. Empty asks for none where
	// there are no Tenants.
	Bearers [][32]byte

	// PayTo are the recipients, in canonical form, that payments may go to.
	// Empty allows all; then anybody who is let in can spend our gas.
	PayTo []string

	// Catalogue has the resources that payments describe (extension bazaar).
	// Nil catalogues nothing.
	Catalogue *Catalogue

	// Own returns what is sold here, to be listed with what is in the
	// catalogue; nil returns nothing.
	Own func() []Listing
	// Tenants are sellers with keys and limits of their own. Bearers and PayTo
	// do not concern them. Where there are some, a request without a key is
	// served only with Open, and one with a key that is nobody's never.
	Tenants []*Tenant
	Open    bool

	// Ledger is where Facilitator keeps its payments. It is needed for tenants.
	Ledger *ledger.Ledger

	// Observe, if not nil, is told what became of each request for which a
	// key may be needed, while it is served.
	Observe func(*Call)

	// Deadline bounds the work for one request. Default: 25 s, below what
	// the official clients wait for.
	Deadline time.Duration

	Logger *slog.Logger     // nil discards
	Now    func() time.Time // nil means time.Now
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	path := r.URL.Path
	switch {
	case strings.HasSuffix(path, "/supported"):
		if allow(w, r, http.MethodGet, http.MethodHead) {
			h.supported(w, r)
		}
	case h.Catalogue != nil && strings.HasSuffix(path, "/discovery/resources"):
		if allow(w, r, http.MethodGet, http.MethodHead) {
			h.discover(w, r)
		}
	case strings.HasSuffix(path, "/verify"):
		if allow(w, r, http.MethodPost) {
			h.pay(w, r, h.verify)
		}
	case strings.HasSuffix(path, "/settle"):
		if allow(w, r, http.MethodPost) {
			h.pay(w, r, h.settle)
		}
	case isSettlement(path):
		if allow(w, r, http.MethodGet, http.MethodHead) {
			h.settlement(w, r)
		}
	default:
		fail(w, http.StatusNotFound, "there is no such endpoint: use /verify, /settle, /supported or /settlements/<payment>")
	}
}

func allow(w http.ResponseWriter, r *http.Request, methods ...string) bool {
	if slices.Contains(methods, r.Method) {
		return true
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	fail(w, http.StatusMethodNotAllowed, "use "+methods[0])
	return false
}

func (h *Handler) supported(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), h.deadline())
	defer cancel()
	s, err := h.Facilitator.Supported(ctx)
	if err != nil {
		h.trouble(w, nil, err)
		return
	}
	if h.Catalogue != nil && !slices.Contains(s.Extensions, extension.Bazaar) {
		more := *s
		more.Extensions = append(slices.Clip(s.Extensions), extension.Bazaar)
		s = &more
	}
	answer(w, http.StatusOK, s.Encode())
}

// pay reads the request that /verify and /settle share.
func (h *Handler) pay(w http.ResponseWriter, r *http.Request, next func(context.Context, http.ResponseWriter, *Tenant, *payment.Payment, *payment.Offer) error) {
	t, seen := h.receive(w, r, r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
	defer h.observe(seen)
	if t == nil {
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, payment.MaxBody+1))
	if err != nil {
		seen.Outcome = outcomeMalformed
		fail(w, http.StatusBadRequest, "the body ended too early")
		return
	}
	p, o, err := payment.DecodeRequest(body)
	if err != nil {
		seen.Outcome = outcomeMalformed
		h.malformed(w, r, err)
		return
	}
	// The caller may hang up while money moves; the work goes on.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), h.deadline())
	defer cancel()
	h.name(w, t, seen, p, o)
	p.SettledFirst = settledFirst(r, o)
	seen.note(next(ctx, w, t, p, o))
}

// settledFirst reports whether who asks about a payment settles it before
// anything is handed over, and says that what is known of the payer does
// (RFC 9111, section 5.2.1.2), as our own client does. Others may take the
// answer for the chain's: one that did not know of a used nonce would be wrong.
// By upto an answer may stream, and be charged afterwards.
func settledFirst(r *http.Request, o *payment.Offer) bool {
	return o.Scheme == payment.Exact && strings.Contains(strings.ToLower(strings.Join(r.Header["Cache-Control"], ",")), "max-stale")
}

func (h *Handler) verify(ctx context.Context, w http.ResponseWriter, t *Tenant, p *payment.Payment, o *payment.Offer) error {
	v, err := (*payment.Verification)(nil), t.takes(o, false)
	if err == nil {
		err = h.left(ctx, t)
	}
	if err == nil {
		v, err = h.Facilitator.Verify(ctx, p, o)
	}
	var unavailable *payment.UnavailableError
	var invalid *payment.InvalidError
	var unreadable *payment.MalformedError
	switch {
	case err == nil:
		h.catalogue(w, p, o, false)
		answer(w, http.StatusOK, payment.EncodeVerification(v))
	case limited(w, err):
	case errors.As(err, &unavailable): // whatever is inside
		h.trouble(w, t, err)
	case errors.As(err, &invalid):
		answer(w, http.StatusOK, payment.EncodeInvalid(invalid))
	case errors.As(err, &unreadable):
		answer(w, http.StatusBadRequest, withError(payment.EncodeInvalid(payment.Invalid(payment.InvalidPayload, err.Error())), err))
	default:
		h.trouble(w, t, err)
	}
	return err
}

func (h *Handler) settle(ctx context.Context, w http.ResponseWriter, t *Tenant, p *payment.Payment, o *payment.Offer) error {
	s, err := (*payment.Settlement)(nil), t.takes(o, true)
	if err == nil {
		s, err = h.settleFor(ctx, t, p, o)
	}
	var unavailable *payment.UnavailableError
	var invalid *payment.InvalidError
	var unreadable *payment.MalformedError
	switch {
	case err == nil:
		h.catalogue(w, p, o, true)
		answer(w, http.StatusOK, payment.EncodeSettlement(p.Version, o.Scheme, s))
	case limited(w, err):
	case errors.As(err, &unavailable) && !unavailable.Pending: // whatever is inside
		h.trouble(w, t, err)
	case errors.As(err, &unavailable), errors.As(err, &invalid):
		answer(w, http.StatusOK, payment.EncodeUnsettled(p.Version, o.Network(), err))
	case errors.As(err, &unreadable):
		bad := payment.Invalid(payment.InvalidPayload, err.Error())
		answer(w, http.StatusBadRequest, withError(payment.EncodeUnsettled(p.Version, o.Network(), bad), err))
	default:
		h.trouble(w, t, err)
	}
	return err
}

// malformed answers a request that cannot be read, in the shape of the
// endpoint, so that clients that only know that shape read it too.
func (h *Handler) malformed(w http.ResponseWriter, r *http.Request, err error) {
	bad := payment.Invalid(payment.InvalidPayload, err.Error())
	doc := payment.EncodeInvalid(bad)
	if strings.HasSuffix(r.URL.Path, "/settle") {
		doc = payment.EncodeUnsettled(payment.V2, "unknown:unknown", bad)
	}
	answer(w, http.StatusBadRequest, withError(doc, err))
}

// trouble answers what says nothing about the payment. The cause goes to the
// log: it may name hosts that are nobody else's business. t is nil where
// nobody in particular asks.
func (h *Handler) trouble(w http.ResponseWriter, t *Tenant, err error) {
	log := h.log()
	if t != nil && t.Name != "" {
		log = log.With("tenant", t.Name)
	}
	if _, ok := errors.AsType[*payment.UnavailableError](err); ok {
		log.Warn("facilitator unavailable", "error", err)
		w.Header().Set("Retry-After", "2")
		fail(w, http.StatusServiceUnavailable, "the network cannot be reached now; this says nothing about the payment; repeat the identical request")
		return
	}
	log.Error("facilitator failed", "error", err)
	fail(w, http.StatusInternalServerError, "internal error")
}

func (h *Handler) log() *slog.Logger {
	if h.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Logger
}

func (h *Handler) deadline() time.Duration {
	if h.Deadline > 0 {
		return h.Deadline
	}
	return 25 * time.Second
}

func answer(w http.ResponseWriter, status int, doc []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(doc) //nolint:gosec // JSON, never HTML; where the caller has gone there is nobody to tell
}

func fail(w http.ResponseWriter, status int, message string) {
	answer(w, status, withError([]byte("{}"), errors.New(message)))
}

// withError adds the member "error" to a JSON object.
func withError(doc []byte, err error) []byte {
	text, _ := json.Marshal(err.Error()) // a string always marshals
	if string(doc) == "{}" {
		return append(append([]byte(`{"error":`), text...), '}')
	}
	out := append([]byte{}, doc[:len(doc)-1]...)
	return append(append(append(out, `,"error":`...), text...), '}')
}
