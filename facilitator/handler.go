package facilitator

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/extension"
)

// A Handler offers a facilitator to others over HTTP: POST /verify, POST
// /settle, GET /supported and, with a catalogue, GET /discovery/resources below
// wherever it is mounted, in both protocol versions. A decided payment, good or bad, is answered with 200; a request
// that cannot be read with 400; and what cannot be found out now with 503.
type Handler struct {
	Facilitator payment.Facilitator

	// Bearers are SHA-256 hashes of the tokens of which one must be given as
	// Authorization: Bearer for /verify and /settle. Empty asks for none.
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

	// Deadline bounds the work for one request. Default: 25 s, below what
	// the official clients wait for.
	Deadline time.Duration

	Logger *slog.Logger // nil discards
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
	default:
		fail(w, http.StatusNotFound, "there is no such endpoint: use /verify, /settle or /supported")
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
		h.trouble(w, err)
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
func (h *Handler) pay(w http.ResponseWriter, r *http.Request, next func(context.Context, http.ResponseWriter, *payment.Payment, *payment.Offer)) {
	if !h.admitted(r) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="x402"`)
		fail(w, http.StatusUnauthorized, "a bearer token is needed")
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, payment.MaxBody+1))
	if err != nil {
		fail(w, http.StatusBadRequest, "the body ended too early")
		return
	}
	p, o, err := payment.DecodeRequest(body)
	if err != nil {
		h.malformed(w, r, err)
		return
	}
	// The caller may hang up while money moves; the work goes on.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), h.deadline())
	defer cancel()
	next(ctx, w, p, o)
}

func (h *Handler) verify(ctx context.Context, w http.ResponseWriter, p *payment.Payment, o *payment.Offer) {
	v, err := (*payment.Verification)(nil), h.ours(o)
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
	case errors.As(err, &unavailable): // whatever is inside
		h.trouble(w, err)
	case errors.As(err, &invalid):
		answer(w, http.StatusOK, payment.EncodeInvalid(invalid))
	case errors.As(err, &unreadable):
		answer(w, http.StatusBadRequest, withError(payment.EncodeInvalid(payment.Invalid(payment.InvalidPayload, err.Error())), err))
	default:
		h.trouble(w, err)
	}
}

func (h *Handler) settle(ctx context.Context, w http.ResponseWriter, p *payment.Payment, o *payment.Offer) {
	s, err := (*payment.Settlement)(nil), h.ours(o)
	if err == nil {
		s, err = h.Facilitator.Settle(ctx, p, o, o.Amount)
	}
	var unavailable *payment.UnavailableError
	var invalid *payment.InvalidError
	var unreadable *payment.MalformedError
	switch {
	case err == nil:
		h.catalogue(w, p, o, true)
		answer(w, http.StatusOK, payment.EncodeSettlement(p.Version, o.Scheme, s))
	case errors.As(err, &unavailable) && !unavailable.Pending: // whatever is inside
		h.trouble(w, err)
	case errors.As(err, &unavailable), errors.As(err, &invalid):
		answer(w, http.StatusOK, payment.EncodeUnsettled(p.Version, o.Network(), err))
	case errors.As(err, &unreadable):
		bad := payment.Invalid(payment.InvalidPayload, err.Error())
		answer(w, http.StatusBadRequest, withError(payment.EncodeUnsettled(p.Version, o.Network(), bad), err))
	default:
		h.trouble(w, err)
	}
}

// ours refuses recipients that this facilitator does not work for.
func (h *Handler) ours(o *payment.Offer) error {
	if len(h.PayTo) == 0 {
		return nil
	}
	if slices.Contains(h.PayTo, o.PayTo) {
		return nil
	}
	return payment.Invalid(payment.InvalidRequirements, "this facilitator does not settle payments to "+o.PayTo)
}

func (h *Handler) admitted(r *http.Request) bool {
	if len(h.Bearers) == 0 {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	hash := sha256.Sum256([]byte(token))
	found := 0
	for _, b := range h.Bearers {
		found |= subtle.ConstantTimeCompare(b[:], hash[:])
	}
	return found == 1 && strings.EqualFold(scheme, "Bearer")
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
// log: it may name hosts that are nobody else's business.
func (h *Handler) trouble(w http.ResponseWriter, err error) {
	if _, ok := errors.AsType[*payment.UnavailableError](err); ok {
		h.log().Warn("facilitator unavailable", "error", err)
		w.Header().Set("Retry-After", "2")
		fail(w, http.StatusServiceUnavailable, "the network cannot be reached now; this says nothing about the payment; repeat the identical request")
		return
	}
	h.log().Error("facilitator failed", "error", err)
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
