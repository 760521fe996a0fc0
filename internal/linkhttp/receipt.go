package linkhttp

import (
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/linkpage"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
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
}

func (s *Site) receiptOf(r *http.Request, l *link.Link, u *link.Use, status ReceiptStatus) receipt {
	origin := s.origin(r)
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
	var status ReceiptStatus
	if err == nil {
		status, err = s.standing(r, u)
	}
	if err != nil {
		s.failed(w, r, "reading a receipt", err)
		return
	}
	offer := offerFor(l, u.Token)
	if offer == nil || !s.wantsPage(r) {
		answer(w, r, http.StatusOK, s.receiptOf(r, l, u, status))
		return
	}
	page := &linkpage.Receipt{
		ID: string(u.Receipt), State: pageStates[status], LinkURL: s.URL(s.origin(r), l.ID), Description: l.Description, Amount: offer.Amount, PayTo: offer.PayTo,
		Payer: u.Payer, PaidAt: u.Paid, Transaction: u.Transaction, Explorer: s.explorer(offer.Network(), u.Transaction),
	}
	if status == ReceiptPaid {
		page.Message, page.Redirect = l.Message, l.Redirect
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

// standing returns how far the payment of a use is.
func (s *Site) standing(r *http.Request, u *link.Use) (ReceiptStatus, error) {
	var k payment.Key
	b, err := hex.DecodeString(u.Payment)
	if err != nil || len(b) != len(k) {
		return "", errors.New("linkhttp: a use of link " + string(u.Link) + " names no payment")
	}
	copy(k[:], b)
	record, err := s.Book.Get(r.Context(), k)
	if err != nil {
		return "", err
	}
	switch {
	case record.State == ledger.Refunded:
		return ReceiptRefunded, nil
	case record.State == ledger.RefundDue || record.State.Paid() && record.Delivery == ledger.Undeliverable:
		return ReceiptRefundDue, nil
	case u.Step == link.Settled:
		return ReceiptPaid, nil
	case u.Step == link.Claimed:
		return ReceiptPending, nil
	}
	return ReceiptFailed, nil
}
