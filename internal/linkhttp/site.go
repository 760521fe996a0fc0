// Package linkhttp serves payment links: one URL for people and programs, the
// older API's way to pay it, what is told of its status as that changes, and
// receipts.
package linkhttp

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/linkpage"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

// A Collector moves the money of a payment for a bill: a *till.Till.
type Collector interface {
	Collect(ctx context.Context, b *till.Bill) (ledger.Record, error)
}

// A Site serves the links of a store. Its fields must not change once it is in
// use; it is safe for concurrent use.
type Site struct {
	Links *link.Store
	Till  Collector
	Book  *ledger.Ledger // where the payments are
	Pages *linkpage.Site // nil answers everybody in JSON

	// Base is the path that links are below, such as "/x402".
	Base string

	// Origin is the public scheme and host, such as "https://pay.example".
	// Empty takes them from the request, whose sender can put any host there
	// that the server answers to.
	Origin string

	// Window is how far ahead the end of an authorization may lie. Default:
	// 6 h.
	Window time.Duration

	// Deadline bounds how long a payment is waited for. Default: 10 s.
	Deadline time.Duration

	// Settles reports whether payments on a network can be settled now. Nil
	// says that all can.
	Settles func(payment.Network) bool

	// Ticket makes the token by which a payment of a link opens what the link
	// opens, on a host. Nil makes none.
	Ticket func(host, opens string, r *ledger.Record, token payment.Token) (string, error)

	// Explorers are the block explorers of networks, such as
	// "https://basescan.org". Receipts of other networks have no link to one.
	Explorers map[payment.Network]string

	Hub    *Hub             // tells of changes; nil asks the store again and again
	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil discards

	// Ending is closed when the site is about to go away: whoever is being
	// told of changes must ask again. Nil is never closed.
	Ending <-chan struct{}
}

const (
	defaultWindow = 6 * time.Hour
	maxBody       = 64 << 10
)

func (s *Site) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

func (s *Site) log() *slog.Logger {
	if s.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Logger
}

// Has reports whether a path is one of the site's.
func (s *Site) Has(path string) bool {
	rest, ok := strings.CutPrefix(path, s.Base)
	return ok && strings.HasPrefix(rest, "/") && len(rest) > 1
}

func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, s.Base+"/"), "/")
	if len(parts) == 2 && parts[0] == "-" && s.Pages != nil {
		s.Pages.Assets().ServeHTTP(w, r)
		return
	}
	id, err := link.ParseID(parts[0])
	switch {
	case err != nil && len(parts) == 2 && parts[1] == "pay" && r.Method == http.MethodPost:
		s.noOld(w, r)
	case err != nil:
		s.missing(w, r)
	case len(parts) == 1:
		s.link(w, r, id)
	case len(parts) == 2 && parts[1] == "pay":
		s.payOld(w, r, id)
	case len(parts) == 2 && parts[1] == "events":
		s.events(w, r, id)
	case len(parts) == 3 && parts[1] == "receipt":
		s.receipt(w, r, id, parts[2])
	default:
		s.missing(w, r)
	}
}

// origin returns scheme and host of the URLs that are given out.
func (s *Site) origin(r *http.Request) string {
	if s.Origin != "" {
		return s.Origin
	}
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// URL returns the link's own URL, for people and programs.
func (s *Site) URL(origin string, id link.ID) string { return origin + s.Base + "/" + string(id) }

func (s *Site) receiptURL(origin string, u *link.Use) string {
	return s.URL(origin, u.Link) + "/receipt/" + string(u.Receipt)
}

// explorer returns the URL of a transaction's page, or "".
func (s *Site) explorer(n payment.Network, transaction string) string {
	if base := s.Explorers[n]; base != "" && transaction != "" {
		return base + "/tx/" + transaction
	}
	return ""
}

// link shows a link, or takes a payment for it.
func (s *Site) link(w http.ResponseWriter, r *http.Request, id link.ID) {
	w.Header().Set("Vary", "Accept, Payment-Signature, X-Payment")
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost:
	default:
		s.method(w, r, "GET, HEAD, POST")
		return
	}
	p, err := payment.FromHeader(r.Header[payment.HeaderPayment], r.Header[payment.HeaderPaymentV1])
	// Whoever logs the request must not see them.
	r.Header.Del(payment.HeaderPayment)
	r.Header.Del(payment.HeaderPaymentV1)
	if err != nil {
		s.problem(w, r, http.StatusBadRequest, problem{Error: err.Error()})
		return
	}
	l, err := s.Links.Get(r.Context(), id)
	switch {
	case errors.Is(err, link.ErrNotFound):
		s.missing(w, r)
	case err != nil:
		s.failed(w, r, "reading a link", err)
	case p != nil && r.Method != http.MethodHead:
		s.pay(w, r, l, p)
	case r.Method == http.MethodPost:
		s.problem(w, r, http.StatusBadRequest, problem{Error: "to pay, send a payment in the header PAYMENT-SIGNATURE or X-PAYMENT: GET says what to sign", Status: l.Status(s.now())})
	default:
		s.show(w, r, l)
	}
}

// payable returns the offers by which a link can be paid now: those whose
// networks can be settled on, for no longer than the link lasts.
func (s *Site) payable(l *link.Link) []payment.Offer {
	now := s.now()
	if l.Status(now) != link.Active {
		return nil
	}
	left := l.Expires.Sub(now).Truncate(time.Second)
	var list []payment.Offer
	for _, o := range l.Offers {
		if s.Settles != nil && !s.Settles(o.Network()) {
			continue
		}
		if o.Timeout > left {
			o.Timeout = max(left, time.Second)
		}
		list = append(list, o)
	}
	return list
}

// show answers a request without a payment.
func (s *Site) show(w http.ResponseWriter, r *http.Request, l *link.Link) {
	if !s.wantsPage(r) {
		s.require(w, r, l, "")
		return
	}
	status := l.Status(s.now())
	offers := s.payable(l)
	if status == link.Active && len(offers) == 0 {
		s.done(s.Pages.Unavailable(w))
		return
	}
	if status != link.Active {
		offers = l.Offers // which say the amount
	}
	url := s.URL(s.origin(r), l.ID)
	page := &linkpage.Link{
		ID: string(l.ID), URL: url, Status: linkpage.Status(status), Description: l.Description, Offers: offers, Resource: payment.ResourceOf(url, l.Description, mimeType),
		Expires: l.Expires,
	}
	if status == link.Paid {
		page.Settled = &linkpage.Settled{At: l.PaidAt}
	}
	for _, f := range l.Fields {
		most := f.Max
		if most == 0 {
			most = link.MaxField
		}
		page.Fields = append(page.Fields, linkpage.Field{Name: f.Name, Label: f.Label, Required: f.Required, MaxLength: most})
	}
	s.done(s.Pages.Link(w, page))
}

// wantsPage reports whether a request is a person's.
func (s *Site) wantsPage(r *http.Request) bool {
	return s.Pages != nil && till.PrefersHTML(r.Header.Values("Accept"))
}

// done takes the error of a page, which is a bug of ours.
func (s *Site) done(err error) {
	if err != nil {
		s.log().Error("a page could not be shown", "error", err)
		panic(http.ErrAbortHandler)
	}
}

// A problem is an error in JSON. No member of it is ever a secret.
type problem struct {
	Error      string      `json:"error"`
	Status     link.Status `json:"status,omitempty"`
	ReceiptURL string      `json:"receiptUrl,omitempty"`
	RefundDue  bool        `json:"refundDue,omitempty"`
}

func (s *Site) problem(w http.ResponseWriter, r *http.Request, status int, p problem) {
	answer(w, r, status, p)
}

// answer writes a document as JSON.
func answer[D problem | paid | required | oldAnswer | receipt](w http.ResponseWriter, r *http.Request, status int, d D) {
	doc, err := json.Marshal(d)
	if err != nil {
		panic("linkhttp: encoding an answer failed: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(doc)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(doc) // nobody is left to tell
	}
}

// missing answers that there is no such link. It is the same for whatever is
// not there, so that nothing can be learnt from it.
func (s *Site) missing(w http.ResponseWriter, r *http.Request) {
	if s.wantsPage(r) {
		s.done(s.Pages.NotFound(w))
		return
	}
	answer(w, r, http.StatusNotFound, required{Version: payment.V1, Accepts: []accept{}, Error: reasonMissing})
}

func (s *Site) method(w http.ResponseWriter, r *http.Request, allowed string) {
	w.Header().Set("Allow", allowed)
	s.problem(w, r, http.StatusMethodNotAllowed, problem{Error: "send one of " + allowed})
}

// failed answers that something on our side did not work, where nothing was
// taken.
func (s *Site) failed(w http.ResponseWriter, r *http.Request, doing string, err error) {
	if r.Context().Err() == nil {
		s.log().Error("a payment link could not be served", "doing", doing, "error", err)
	}
	w.Header().Set("Retry-After", "2")
	if s.wantsPage(r) {
		s.done(s.Pages.Unavailable(w))
		return
	}
	s.problem(w, r, http.StatusServiceUnavailable, problem{Error: "this cannot be answered now; nothing was taken; try again"})
}

// What the member error says of a link that cannot be paid.
const (
	reasonMissing  = "not_found"
	reasonPaid     = "already_paid"
	reasonPending  = "being_paid"
	reasonExpired  = "expired"
	reasonDisabled = "disabled"
	reasonNoOffer  = "no_network_available"
)

func reasonOf(s link.Status) string {
	switch s {
	case link.Paid:
		return reasonPaid
	case link.Pending:
		return reasonPending
	case link.Expired:
		return reasonExpired
	case link.Disabled:
		return reasonDisabled
	case link.Active:
	}
	return ""
}

// An accept is one way to pay a link: what the older API says of it, and what
// offers of the protocol's version 1 do.
type accept struct {
	Amount            string `json:"amount"` // atomic units
	Currency          string `json:"currency"`
	Network           string `json:"network"`
	Recipient         string `json:"recipient"`
	VerifyingContract string `json:"verifyingContract"`
	ChainID           uint64 `json:"chainId"`
	AIURL             string `json:"aiUrl"`
	Name              string `json:"name"`
	Version           string `json:"version"`

	Scheme            string            `json:"scheme"`
	MaxAmountRequired string            `json:"maxAmountRequired"`
	Resource          string            `json:"resource"`
	Description       string            `json:"description"`
	MimeType          string            `json:"mimeType"`
	PayTo             string            `json:"payTo"`
	MaxTimeoutSeconds int64             `json:"maxTimeoutSeconds"`
	Asset             string            `json:"asset"`
	Extra             map[string]string `json:"extra"`
}

func acceptOf(o *payment.Offer, l *link.Link, url string) accept {
	t := o.Amount.Token()
	id, _ := o.Network().ChainID()
	return accept{
		Amount: o.Amount.Units(), Currency: t.Symbol, Network: o.Network().In(payment.V1), Recipient: o.PayTo, VerifyingContract: t.Address, ChainID: id, AIURL: url,
		Name: t.Name, Version: t.Version,
		Scheme: string(o.Scheme), MaxAmountRequired: o.Amount.Units(), Resource: url, Description: l.Description, MimeType: mimeType, PayTo: o.PayTo,
		MaxTimeoutSeconds: int64(o.Timeout / time.Second), Asset: t.Address, Extra: map[string]string{"name": t.Name, "version": t.Version},
	}
}

const mimeType = "application/json"

// required says what a link asks for.
type required struct {
	Version int         `json:"x402Version"`
	Accepts []accept    `json:"accepts"`
	Error   string      `json:"-"`
	Status  link.Status `json:"status,omitempty"`
}

// MarshalJSON writes the member error, which is null where there is none.
func (q required) MarshalJSON() ([]byte, error) {
	type plain required
	var reason *string
	if q.Error != "" {
		reason = &q.Error
	}
	return json.Marshal(struct {
		plain
		Error *string `json:"error"`
	}{plain(q), reason})
}

// require answers with what the link asks for, in both versions of the
// protocol, and why a payment was refused, if one was.
func (s *Site) require(w http.ResponseWriter, r *http.Request, l *link.Link, reason payment.Reason) {
	status := l.Status(s.now())
	url := s.URL(s.origin(r), l.ID)
	doc := required{Version: payment.V1, Accepts: []accept{}, Error: reasonOf(status), Status: status}
	offers := s.payable(l)
	if status == link.Active && len(offers) == 0 {
		doc.Error = reasonNoOffer
	}
	if len(offers) > 0 {
		doc.Error = string(reason)
		prepared, err := (&payment.Challenge{Description: l.Description, MimeType: mimeType, Offers: offers}).Prepare()
		if err != nil {
			s.failed(w, r, "encoding what a link asks for", err)
			return
		}
		if reason == "" {
			reason = payment.PaymentRequired
		}
		w.Header().Set(payment.HeaderRequired, prepared.V2(url, reason))
		w.Header().Set("Access-Control-Expose-Headers", exposed)
		for i := range offers {
			if offers[i].V1() {
				doc.Accepts = append(doc.Accepts, acceptOf(&offers[i], l, url))
			}
		}
	}
	answer(w, r, http.StatusPaymentRequired, doc)
}

const exposed = "PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE"

// offerFor returns the offer of a link by its token and recipient, or nil.
func offerFor(l *link.Link, token string) *payment.Offer {
	i := slices.IndexFunc(l.Offers, func(o payment.Offer) bool { return link.TokenName(o.Amount.Token()) == token })
	if i < 0 {
		return nil
	}
	return &l.Offers[i]
}
