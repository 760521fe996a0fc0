package till

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A Receipt says what has become of a payment.
type Receipt struct {
	// Status is unknown, reserved, pending, settled, final, dead, released,
	// refund_due or refunded. Unknown says nothing: it is not unpaid.
	Status string `json:"status"`

	Payment     string `json:"payment,omitempty"` // the payment's key
	Network     string `json:"network,omitempty"`
	Transaction string `json:"transaction,omitempty"`
	Token       string `json:"token,omitempty"`  // address
	Amount      string `json:"amount,omitempty"` // atomic units
	Payer       string `json:"payer,omitempty"`
	PayTo       string `json:"payTo,omitempty"`

	// Deliverable reports that the same request with the same payment is
	// answered with what was paid for, or may still be.
	Deliverable bool `json:"deliverable"`

	// Refund is the transaction that gave the money back.
	Refund string `json:"refundTransaction,omitempty"`

	Hint string `json:"hint,omitempty"` // what to do, for people
}

const (
	statusUnknown   = "unknown"
	statusReserved  = "reserved"
	statusPending   = "pending"
	statusSettled   = "settled"
	statusFinal     = "final"
	statusDead      = "dead"
	statusReleased  = "released"
	statusRefundDue = "refund_due"
	statusRefunded  = "refunded"
)

// hints say what to do next, by status.
var hints = map[string]string{
	statusUnknown:   "this seller has no record of the payment; that does not prove that it was not used: it can be submitted by anybody until it expires",
	statusReserved:  "a request with this payment is being worked on; send the same request again",
	statusPending:   "the payment is being settled; do not pay again; send the same request with the same payment again",
	statusSettled:   "paid",
	statusFinal:     "paid, and final",
	statusDead:      "this payment can never move money; a new one is needed",
	statusReleased:  "nothing was charged; the same payment can be used again until it expires",
	statusRefundDue: "paid, but not delivered; the seller owes a refund; do not pay again for it",
	statusRefunded:  "paid, not delivered, and refunded",
}

func status(r *ledger.Record) string {
	switch r.State {
	case ledger.Reserved, ledger.Executing, ledger.Executed:
		if r.Exposed != nil {
			return statusPending
		}
		return statusReserved
	case ledger.Intent, ledger.Sent, ledger.Included:
		return statusPending
	case ledger.Refunded:
		return statusRefunded
	case ledger.RefundDue:
		return statusRefundDue
	case ledger.Settled, ledger.Archived:
		switch {
		case r.Delivery == ledger.Undeliverable:
			return statusRefundDue
		case r.State == ledger.Archived:
			return statusFinal
		}
		return statusSettled
	case ledger.Dead, ledger.WrittenOff:
		return statusDead
	case ledger.Released:
		if r.Exposed != nil {
			return statusPending
		}
		return statusReleased
	}
	return statusUnknown
}

// describe returns the receipt of a record.
func (t *Till) describe(ctx context.Context, r *ledger.Record) *Receipt {
	d := &Receipt{
		Status: status(r), Payment: r.Key.String(), Network: string(r.Network), Amount: r.Charge, Payer: r.Payer,
		Deliverable: r.State.Paid() && !givenUp(r) && !r.Due.IsZero() && t.now().Before(r.Due) && r.Delivery != ledger.Delivered,
	}
	if r.State.Broadcast() || r.State.Paid() {
		d.Transaction = r.Transaction()
	}
	if _, o, err := payment.DecodeRequest(r.Request); err == nil {
		d.Token, d.PayTo = o.Amount.Token().Address, o.PayTo
	}
	if !d.Deliverable && r.State.Paid() && !givenUp(r) {
		if _, err := t.Ledger.Held(ctx, r); err == nil {
			d.Deliverable = true
		}
	}
	if r.State == ledger.Refunded {
		if refund, err := t.refundRecord(ctx, r); err == nil {
			d.Refund = refund.Transaction()
		}
	}
	d.Hint = hints[d.Status]
	return d
}

// Receipt says what has become of a payment, to whoever has it. tokens are
// those that it may be of: payments of version 1 do not say. It asks no node.
// Its errors are *payment.MalformedError, and those of the ledger.
func (t *Till) Receipt(ctx context.Context, p *payment.Payment, tokens []payment.Token) (*Receipt, error) {
	for _, token := range tokens {
		if token.Network != p.Network {
			continue
		}
		none, err := payment.ParseUnits("0", token)
		if err != nil {
			return nil, err
		}
		o := &payment.Offer{Scheme: payment.Exact, Amount: none}
		if p.Accepted != nil { // it says how it was signed
			o.Scheme, o.Extra = p.Scheme, p.Accepted.Extra
		}
		id, err := facilitator.Identify(p, o)
		if malformed := (*payment.MalformedError)(nil); errors.As(err, &malformed) {
			return nil, err
		} else if err != nil {
			continue
		}
		r, err := t.Ledger.Get(ctx, id.Key)
		if errors.Is(err, ledger.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// The key alone can be made up by whoever has watched the chain.
		if subtle.ConstantTimeCompare(r.Proof[:], id.Proof[:]) == 1 {
			return t.describe(ctx, &r), nil
		}
	}
	return &Receipt{Status: statusUnknown, Hint: hints[statusUnknown]}, nil
}

// Receipts answers "did I pay?" to whoever can show the payment: in its
// header, or as the body of a POST, in JSON or as the header has it.
type Receipts struct {
	Till   *Till
	Tokens []payment.Token
}

func (h *Receipts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	uncacheable(w.Header())
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost {
		w.Header().Set("Allow", "GET, HEAD, POST")
		answerJSON(w, r, http.StatusMethodNotAllowed, problem{Error: "send GET with the payment's header, or POST with the payment"})
		return
	}
	p, err := shown(r)
	r.Header.Del(payment.HeaderPayment)
	r.Header.Del(payment.HeaderPaymentV1)
	switch {
	case err != nil:
		answerJSON(w, r, http.StatusBadRequest, problem{Error: err.Error()})
		return
	case p == nil:
		answerJSON(w, r, http.StatusBadRequest, problem{Error: "show the payment: send its PAYMENT-SIGNATURE or X-PAYMENT header, or POST it"})
		return
	}
	receipt, err := h.Till.Receipt(r.Context(), p, h.Tokens)
	var malformed *payment.MalformedError
	switch {
	case errors.As(err, &malformed):
		answerJSON(w, r, http.StatusBadRequest, problem{Error: err.Error()})
	case err != nil:
		h.Till.log().Error("reading a receipt failed", "error", err)
		w.Header().Set("Retry-After", "2")
		answerJSON(w, r, http.StatusServiceUnavailable, problem{Error: "the ledger cannot be read now; this says nothing about the payment; ask again"})
	default:
		answerJSON(w, r, http.StatusOK, receipt)
	}
}

// shown returns the payment that a request shows, or nil.
func shown(r *http.Request) (*payment.Payment, error) {
	p, err := payment.FromHeader(r.Header[payment.HeaderPayment], r.Header[payment.HeaderPaymentV1])
	if p != nil || err != nil || r.Method != http.MethodPost {
		return p, err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, payment.MaxHeader+1))
	if err != nil {
		return nil, errors.New("the request body ended too early")
	}
	text := strings.TrimSpace(string(body))
	switch {
	case text == "":
		return nil, nil
	case strings.HasPrefix(text, "{"):
		return payment.DecodePayment([]byte(text))
	}
	if p, err = payment.FromHeader([]string{text}, nil); err != nil {
		if old, err := payment.FromHeader(nil, []string{text}); err == nil {
			return old, nil
		}
	}
	return p, err
}

// answerJSON writes an answer of the receipts.
func answerJSON[D *Receipt | problem](w http.ResponseWriter, r *http.Request, status int, d D) {
	doc, err := json.Marshal(d)
	if err != nil {
		panic("till: encoding a receipt failed: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(doc) // nobody is left to tell
	}
}

// ParseKey reads a payment's key as it is printed.
func ParseKey(s string) (payment.Key, error) {
	var k payment.Key
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, errors.New("a payment's id is 64 hexadecimal digits")
	}
	copy(k[:], b)
	return k, nil
}

var _ http.Handler = (*Receipts)(nil)
