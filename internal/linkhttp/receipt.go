package linkhttp

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/linkpage"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
	"github.com/tollgate402/tollgate/payment/pass"
)

// A ReceiptStatus says how far the payment of a receipt is.
type ReceiptStatus string

const (
	ReceiptPending   ReceiptStatus = "PENDING"    // it may settle
	ReceiptPaid      ReceiptStatus = "PAID"       // the money has come
	ReceiptFailed    ReceiptStatus = "FAILED"     // nothing was taken, or it went back by a reorg
	ReceiptRefundDue ReceiptStatus = "REFUND_DUE" // the money has come too late, and is owed back
	ReceiptRefunded  ReceiptStatus = "REFUNDED"   // the money has gone back
)

// A receipt is a use of a link as programs see it.
type receipt struct {
	ID          link.ID           `json:"id"`
	Status      ReceiptStatus     `json:"status"`
	URL         string            `json:"url"`
	Link        string            `json:"link"`
	Description string            `json:"description"`
	Amount      string            `json:"amount"` // whole units
	Currency    string            `json:"currency"`
	Units       string            `json:"amountUnits"` // atomic units
	Token       string            `json:"token"`       // address
	Network     string            `json:"network"`
	NetworkName string            `json:"networkName"`
	Payer       string            `json:"payer"`
	PayTo       string            `json:"payTo"`
	Transaction string            `json:"transaction,omitempty"`
	Explorer    string            `json:"explorer,omitempty"` // the transaction's page
	Fields      map[string]string `json:"fields,omitempty"`
	PaidAt      string            `json:"paidAt,omitempty"` // RFC 3339, UTC
	Opens       *entrance         `json:"opens,omitempty"`
}

// An entrance is what a payment opens, once, with the token in a header.
type entrance struct {
	URL    string `json:"url"`
	Header string `json:"header"`
	Token  string `json:"token"`
}

// opens returns what a paid use opens, or nil.
func (s *Site) opens(origin string, l *link.Link, record *ledger.Record, o *payment.Offer) *entrance {
	if l.Opens == "" || s.Ticket == nil || o == nil || record.State == "" {
		return nil
	}
	_, host, _ := strings.Cut(origin, "://")
	token, err := s.Ticket(host, l.Opens, record, o.Amount.Token())
	if err != nil {
		s.log().Error("making the token of a link failed; its receipt goes out without one", "link", string(l.ID), "error", err)
		return nil
	}
	return &entrance{origin + l.Opens, pass.Header, token}
}

func (s *Site) receiptOf(origin string, l *link.Link, u *link.Use, record *ledger.Record, status ReceiptStatus) receipt {
	d := receipt{
		ID: u.Receipt, Status: status, URL: s.receiptURL(origin, u), Link: s.URL(origin, l.ID), Description: l.Description,
		Amount: l.Amount, Units: u.Units, Payer: u.Payer, Transaction: u.Transaction, Fields: u.Fields,
	}
	if !u.Paid.IsZero() {
		d.PaidAt = u.Paid.UTC().Format(time.RFC3339)
	}
	if o := offerFor(l, u.Token); o != nil {
		t := o.Amount.Token()
		d.Explorer = s.explorer(t.Network, u.Transaction)
		d.Currency, d.Token, d.Network, d.NetworkName, d.PayTo = t.Symbol, t.Address, string(t.Network), t.Network.Title(), o.PayTo
		if status == ReceiptPaid {
			d.Opens = s.opens(origin, l, record, o)
		}
	}
	return d
}

// receipt shows what became of a payment of a link to whoever knows where.
func (s *Site) receipt(w http.ResponseWriter, r *http.Request, id link.ID, name string) {
	w.Header().Set("Vary", "Accept")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		s.method(w, r, "GET, HEAD")
		return
	}
	rid, err := link.ParseID(name)
	if err != nil {
		s.missing(w, r)
		return
	}
	u, err := s.Links.Receipt(r.Context(), id, rid)
	if errors.Is(err, link.ErrNotFound) {
		s.missing(w, r)
		return
	}
	var l *link.Link
	if err == nil {
		l, err = s.Links.Get(r.Context(), id)
	}
	var record ledger.Record
	if err == nil {
		record, err = s.record(r.Context(), u)
	}
	if err != nil {
		s.failed(w, r, "reading a receipt", err)
		return
	}
	status := standing(&record, u)
	offer := offerFor(l, u.Token)
	if offer == nil || !s.wantsPage(r) {
		answer(w, r, http.StatusOK, s.receiptOf(s.origin(r), l, u, &record, status))
		return
	}
	page := &linkpage.Receipt{
		ID: string(u.Receipt), State: pageStates[status], LinkURL: s.URL(s.origin(r), l.ID), Description: l.Description, Amount: offer.Amount, PayTo: offer.PayTo,
		Payer: u.Payer, PaidAt: u.Paid, Transaction: u.Transaction, Explorer: s.explorer(offer.Network(), u.Transaction),
	}
	if status == ReceiptPaid {
		page.Message, page.Redirect = l.Message, l.Redirect
		if e := s.opens(s.origin(r), l, &record, offer); e != nil {
			page.Open = &linkpage.Entrance{URL: e.URL, Token: e.Token}
		}
	}
	for _, f := range l.Fields {
		if v := u.Fields[f.Name]; v != "" {
			page.Fields = append(page.Fields, linkpage.Answer{Label: f.Label, Value: v})
		}
	}
	s.done(s.Pages.Receipt(w, page))
}

var pageStates = map[ReceiptStatus]linkpage.ReceiptState{
	ReceiptPending: linkpage.Settling, ReceiptPaid: linkpage.Confirmed, ReceiptFailed: linkpage.Failed, ReceiptRefundDue: linkpage.RefundDue, ReceiptRefunded: linkpage.Refunded,
}

// record returns the payment of a use.
func (s *Site) record(ctx context.Context, u *link.Use) (ledger.Record, error) {
	var k payment.Key
	b, err := hex.DecodeString(u.Payment)
	if err != nil || len(b) != len(k) {
		return ledger.Record{}, errors.New("linkhttp: a use of link " + string(u.Link) + " names no payment")
	}
	copy(k[:], b)
	return s.Book.Get(ctx, k)
}

// standing returns how far the payment of a use is.
func standing(r *ledger.Record, u *link.Use) ReceiptStatus {
	switch {
	case r.State == ledger.Refunded:
		return ReceiptRefunded
	case r.State == ledger.RefundDue || r.State.Paid() && r.Delivery == ledger.Undeliverable:
		return ReceiptRefundDue
	case u.Step == link.Settled:
		return ReceiptPaid
	case u.Step == link.Claimed:
		return ReceiptPending
	}
	return ReceiptFailed
}
