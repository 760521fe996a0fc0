package linkhttp

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/payment/link"
)

// paid says that a payment has paid a link.
type paid struct {
	Status  link.Status `json:"status"`
	Receipt receipt     `json:"receipt"`
	Success success     `json:"success"`
}

type success struct {
	Message  string `json:"message,omitempty"`
	Redirect string `json:"redirect,omitempty"`
}

// An outcome is what has become of an attempt to pay a link. One of use and
// err is set; link is as it stands after it.
type outcome struct {
	link   *link.Link
	use    *link.Use // that the payment has paid
	held   *link.Use // that the payment holds, where it is not known yet whether it pays it
	before bool      // it had paid the use before this attempt
	err    error
}

// A fieldsError says that what the payer has filled in is not what is asked.
type fieldsError struct{ *link.TermsError }

// A lateError says that money has come when the link could not be paid by it
// any more.
type lateError struct{ refunded bool }

func (e *lateError) Error() string {
	if e.refunded {
		return "this payment came when it could not pay the link any more, and has been refunded"
	}
	return "this payment came when it could not pay the link any more; the seller owes you a refund; do not pay again for it"
}

// errWindow says that an authorization ends too far ahead.
var errWindow = errors.New("linkhttp: the authorization is valid for too long")

// attempt pays a link with a payment that matches o, which is one of the
// link's offers.
func (s *Site) attempt(ctx context.Context, l *link.Link, p *payment.Payment, o *payment.Offer, fields map[string]string) outcome {
	b := &till.Bill{Payment: p, Offer: o, Binding: binding(l, o), Mode: link.Mode, Deadline: s.Deadline}
	k, err := b.Key()
	if err != nil {
		return outcome{link: l, err: err}
	}
	use, err := s.Links.By(ctx, k)
	known := err == nil && use.Link == l.ID
	if err != nil && !errors.Is(err, link.ErrNotFound) {
		return outcome{link: l, err: &payment.UnavailableError{Doing: "reading a link", Err: err}}
	}
	if !known || use.Step == link.Dropped {
		// What would be refused in the end is refused before a node is asked.
		if status := l.Status(s.now()); status != link.Active {
			return outcome{link: l, err: &link.StatusError{Status: status}}
		}
		if err := s.checkWindow(p, o); err != nil {
			return outcome{link: l, err: err}
		}
		filled, err := l.Fill(fields)
		if terms, ok := errors.AsType[*link.TermsError](err); ok {
			return outcome{link: l, err: fieldsError{terms}}
		}
		fields = filled
	} else {
		fields = use.Fields
	}
	before := known && use.Step == link.Settled
	b.Claim = s.Links.Claim(l.ID, o, fields)
	record, err := s.Till.Collect(ctx, b)

	// What has become of the payment comes to the link whoever still listens.
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	now, use, failed := s.Links.Resolve(own, k)
	switch {
	case errors.Is(failed, link.ErrNotFound): // it was not claimed
		if err == nil {
			err = till.ErrBoundElsewhere
		}
		return outcome{link: l, err: err}
	case failed != nil:
		s.log().Error("noting what became of a link's payment failed; it is tried again", "link", string(l.ID), "payment", k.String(), "error", failed)
		if err == nil {
			err = &payment.UnavailableError{Doing: "noting that the link is paid", Err: failed, Pending: true}
		}
		return outcome{link: l, held: use, err: err}
	case use.Link != l.ID:
		return outcome{link: l, err: till.ErrBoundElsewhere}
	case err == nil && use.Step == link.Settled:
		return outcome{link: now, use: use, before: before}
	case err == nil && use.Step == link.Dropped:
		err = &lateError{refunded: record.State == ledger.Refunded}
	case err == nil: // a reorg has put it back on its way
		err = &payment.UnavailableError{Doing: "waiting for the payment", Pending: true, Transaction: record.Transaction()}
	}
	return outcome{link: now, held: use, err: err}
}

// binding names what a payment for a link pays.
func binding(l *link.Link, o *payment.Offer) payment.Fingerprint {
	t := o.Amount.Token()
	doc, err := json.Marshal([]string{"link", string(l.ID), string(o.Scheme), string(t.Network), t.Address, o.Amount.Units(), o.PayTo})
	if err != nil {
		panic("linkhttp: encoding strings failed: " + err.Error())
	}
	return sha256.Sum256(doc)
}

// checkWindow returns errWindow where the authorization ends too far ahead.
func (s *Site) checkWindow(p *payment.Payment, o *payment.Offer) error {
	signed, err := evm.ReadInstrument(p, o)
	if err != nil {
		return err
	}
	window := s.Window
	if window <= 0 {
		window = defaultWindow
	}
	if end := s.now().Add(window).Unix(); end >= 0 && signed.Expiry > uint64(end) {
		return errWindow
	}
	return nil
}

// pay takes a payment that has come in a header of the protocol.
func (s *Site) pay(w http.ResponseWriter, r *http.Request, l *link.Link, p *payment.Payment) {
	fields, err := fieldsOf(r)
	if err != nil {
		s.problem(w, r, http.StatusBadRequest, problem{Error: err.Error(), Status: l.Status(s.now())})
		return
	}
	offer := payment.Match(p, l.Offers)
	if offer == nil {
		s.require(w, r, l, payment.NoMatchingOffer)
		return
	}
	own := *offer
	own.Resource = s.URL(s.origin(r), l.ID) // facilitators of v1 ask for it
	got := s.attempt(r.Context(), l, p, &own, fields)
	if got.err == nil {
		s.stamp(w.Header(), &own, got.use)
		s.paid(w, r, got.link, got.use)
		return
	}
	s.unpaid(w, r, &got, p, &own)
}

// fieldsOf reads what the payer has filled in from the body of a POST.
func fieldsOf(r *http.Request) (map[string]string, error) {
	if r.Method != http.MethodPost || r.ContentLength == 0 {
		return nil, nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, errors.New("the request body ended too early")
	}
	if len(body) == 0 {
		return nil, nil
	}
	var doc struct {
		Fields map[string]string `json:"fields"`
	}
	if len(body) > maxBody || json.Unmarshal(body, &doc) != nil {
		return nil, errors.New("the body must be JSON such as {\"fields\":{\"name\":\"value\"}}")
	}
	return doc.Fields, nil
}

// stamp puts the settlement on the headers, in both versions.
func (s *Site) stamp(h http.Header, o *payment.Offer, u *link.Use) {
	settled := &payment.Settlement{Network: o.Network(), Transaction: u.Transaction, Payer: u.Payer, Amount: o.Amount}
	h.Set(payment.HeaderResponse, payment.SettlementHeader(payment.EncodeSettlement(payment.V2, o.Scheme, settled)))
	h.Set(payment.HeaderResponseV1, payment.SettlementHeader(payment.EncodeSettlement(payment.V1, o.Scheme, settled)))
	h.Set("Access-Control-Expose-Headers", exposed)
}

// paid answers that a payment has paid a link.
func (s *Site) paid(w http.ResponseWriter, r *http.Request, l *link.Link, u *link.Use) {
	record, err := s.record(r.Context(), u)
	if err != nil && r.Context().Err() == nil { // it is paid all the same
		s.log().Error("reading the payment of a link failed", "link", string(l.ID), "error", err)
	}
	status := ReceiptPaid
	if err == nil {
		status = standing(&record, u)
	}
	doc := paid{Status: link.Paid, Receipt: s.receiptOf(s.origin(r), l, u, &record, status), Success: success{l.Message, l.Redirect}}
	answer(w, r, http.StatusOK, doc)
}

// unpaid answers that a payment has not paid a link, or that it is not known.
func (s *Site) unpaid(w http.ResponseWriter, r *http.Request, got *outcome, p *payment.Payment, o *payment.Offer) {
	status := got.link.Status(s.now())
	var (
		unavailable *payment.UnavailableError
		invalid     *payment.InvalidError
		malformed   *payment.MalformedError
		state       *link.StatusError
		filled      fieldsError
		late        *lateError
	)
	h := w.Header()
	switch err := got.err; {
	case errors.As(err, &unavailable):
		s.log().Warn("a link's payment is not decided", "link", string(got.link.ID), "pending", unavailable.Pending, "error", err)
		h.Set("Retry-After", "2")
		if !unavailable.Pending {
			s.problem(w, r, http.StatusServiceUnavailable, problem{Error: "the payment could not be checked now; nothing was taken; send the same request again", Status: status})
			return
		}
		setUnsettled(h, p, o, unavailable)
		s.problem(w, r, http.StatusServiceUnavailable, problem{
			Error: "settlement_pending: the payment is being settled; do not pay again; send the same request with the same payment again", Status: link.Pending, ReceiptURL: s.heldURL(r, got),
		})
	case errors.As(err, &state) && (state.Status == link.Paid || state.Status == link.Pending):
		s.problem(w, r, http.StatusConflict, problem{Error: reasonOf(state.Status), Status: state.Status})
	case errors.As(err, &state):
		s.require(w, r, got.link, "")
	case errors.Is(err, till.ErrBoundElsewhere), errors.As(err, &invalid) && invalid.Reason == payment.DuplicateSettlement:
		s.problem(w, r, http.StatusConflict, problem{Error: "this payment belongs to another request", Status: status})
	case errors.As(err, &late):
		s.problem(w, r, http.StatusConflict, problem{Error: late.Error(), Status: status, RefundDue: !late.refunded, ReceiptURL: s.heldURL(r, got)})
	case errors.Is(err, errWindow):
		s.problem(w, r, http.StatusBadRequest, problem{Error: s.windowProblem(), Status: status})
	case errors.As(err, &filled):
		s.problem(w, r, http.StatusBadRequest, problem{Error: filled.Error(), Status: status})
	case errors.As(err, &malformed):
		s.problem(w, r, http.StatusBadRequest, problem{Error: err.Error(), Status: status})
	case errors.As(err, &invalid):
		setUnsettled(h, p, o, invalid)
		s.require(w, r, got.link, invalid.Reason)
	default:
		s.failed(w, r, "taking a payment", err)
	}
}

func setUnsettled(h http.Header, p *payment.Payment, o *payment.Offer, err error) {
	name := payment.HeaderResponse
	if p.Version == payment.V1 {
		name = payment.HeaderResponseV1
	}
	h.Set(name, payment.SettlementHeader(payment.EncodeUnsettled(p.Version, o.Network(), err)))
}

func (s *Site) heldURL(r *http.Request, got *outcome) string {
	if got.held == nil {
		return ""
	}
	return s.receiptURL(s.origin(r), got.held)
}

func (s *Site) windowProblem() string {
	window := s.Window
	if window <= 0 {
		window = defaultWindow
	}
	return "validBefore must be at most " + window.String() + " ahead"
}
