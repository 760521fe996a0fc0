package linkpage

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// A ReceiptState says what became of the payment that a receipt is of.
type ReceiptState string

// The states of a receipt.
const (
	Settling  ReceiptState = "settling"   // it is signed and sent, and may still fail
	Confirmed ReceiptState = "paid"       // the money has moved
	Failed    ReceiptState = "failed"     // it can never settle: nothing was taken
	RefundDue ReceiptState = "refund-due" // the money has moved, and the seller owes it back
	Refunded  ReceiptState = "refunded"   // the money has moved, and back again
)

// A Receipt is what a payer is given, as its page shows it.
type Receipt struct {
	ID          string
	State       ReceiptState
	Merchant    string // may be empty, see Config.Merchant
	LinkURL     string // absolute: of the link that was paid
	Description string
	Amount      payment.Amount
	PayTo       string // recipient
	Payer       string // who signed
	PaidAt      time.Time
	Transaction string // hash; empty while there is none
	Explorer    string // URL of the transaction's page; may be empty
	Fields      []Answer
	Message     string // what the seller says to those who paid; may be empty
	Redirect    string // where the seller sends them; may be empty

	// Open is what the payment opens; nil for a bill.
	Open *Entrance
}

// An Answer is what the payer filled in.
type Answer struct{ Label, Value string }

// An Entrance is what a payment opens, once.
type Entrance struct {
	URL   string // absolute
	Token string // to be sent along; whoever has it may use it
}

// Receipt answers a request with the page of a receipt: 200, whatever its
// state. After an error nothing has been written.
func (s *Site) Receipt(w http.ResponseWriter, r *Receipt) error {
	v, err := receiptViewOf(r)
	if err != nil {
		return fmt.Errorf("page of receipt %s: %w", r.ID, err)
	}
	merchant := s.merchant(r.Merchant, r.LinkURL)
	v.Initial = initial(merchant)
	words := receiptWords(r.State, isolated(merchant))
	if words.State == "" {
		return fmt.Errorf("page of receipt %s: %q is no state of a receipt", r.ID, r.State)
	}
	return s.write(w, http.StatusOK, "receipt", page{
		Title: "Receipt: " + v.Price.String() + " to " + merchant, Merchant: merchant, Style: s.style, Script: s.script,
		Receipt: v, Notice: words,
	})
}

// receiptWords returns what a receipt says about its payment, or the zero
// Words for a state that is none.
func receiptWords(state ReceiptState, merchant string) Words {
	name := string(state)
	switch state {
	case Settling:
		return Words{name, "Not confirmed yet", "This payment is signed and sent. Do not pay again: this page looks every few seconds whether it has arrived."}
	case Confirmed:
		return Words{name, "Paid", "Thank you. Keep this receipt; its address is known to nobody else."}
	case Failed:
		return Words{name, "Not paid", "This payment did not go through, and it cannot any more. Nothing was taken."}
	case RefundDue:
		return Words{name, "To be refunded", "This payment arrived, but too late to count. " + merchant + " owes you a refund."}
	case Refunded:
		return Words{name, "Refunded", "This payment arrived too late to count, and was sent back."}
	default:
		return Words{}
	}
}

// A receiptView is a receipt as the template wants it.
type receiptView struct {
	ID, Initial, LinkURL, Description string
	Price                             price
	Network                           string
	Test, Waiting                     bool
	PayTo, Payer                      address
	PaidAt                            *moment
	Transaction, Explorer             string
	Fields                            []Answer
	Message, Redirect, RedirectHost   string
	Open                              *Entrance
}

func receiptViewOf(r *Receipt) (*receiptView, error) {
	network := r.Amount.Token().Network
	v := &receiptView{
		ID: r.ID, LinkURL: webOrNothing(r.LinkURL), Description: r.Description, Price: priceOf(r.Amount),
		Network: network.Title(), Test: network.Test(), Waiting: r.State == Settling,
		PaidAt: timeOf(r.PaidAt), Transaction: r.Transaction, Explorer: webOrNothing(r.Explorer), Fields: r.Fields,
	}
	var err error
	if v.PayTo, err = addressOf(network, r.PayTo); err != nil {
		return nil, fmt.Errorf("recipient: %w", err)
	}
	if v.Payer, err = addressOf(network, r.Payer); err != nil {
		return nil, fmt.Errorf("payer: %w", err)
	}
	if r.State != Confirmed {
		return v, nil
	}
	v.Message = r.Message
	if v.Redirect = webOrNothing(r.Redirect); v.Redirect != "" {
		if u, err := url.Parse(v.Redirect); err == nil {
			v.RedirectHost = u.Host
		}
	}
	if r.Open != nil && isWeb(r.Open.URL) {
		v.Open = r.Open
	}
	return v, nil
}
