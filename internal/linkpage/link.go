package linkpage

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// A Status is where a link stands, in the words of the wire.
type Status string

// The statuses of a link that exists.
const (
	Active   Status = "ACTIVE"
	Pending  Status = "PENDING"
	Paid     Status = "PAID"
	Expired  Status = "EXPIRED"
	Disabled Status = "DISABLED"
)

// A Link is a payment link as its page shows it.
type Link struct {
	ID          string
	URL         string // absolute: what the QR code holds
	Status      Status
	Merchant    string // may be empty, see Config.Merchant
	Description string
	Fields      []Field // what the payer fills in

	// Offers are the ways to pay, best first. There must be one at least,
	// whatever the status: they say the amount.
	Offers []payment.Offer

	// Resource is the resource of the link's challenge, a JSON object that
	// payments repeat. Empty: an object with the link's URL.
	Resource json.RawMessage

	// Expires is when the link can no longer be paid; zero for never. No
	// payment that is signed on the page is valid for longer.
	Expires time.Time

	// Settled says how the link was paid. It is shown when Status is Paid;
	// may be nil. Whoever has the link sees it.
	Settled *Settled
}

// A Field is something that the payer fills in.
type Field struct {
	Name      string // by which the server gets it
	Label     string
	Required  bool
	MaxLength int // in characters; 0 means 200
}

// Settled is what everybody may know of a payment.
type Settled struct {
	At          time.Time
	Transaction string // hash
	Explorer    string // URL of the transaction's page; may be empty
}

// Link answers a request with the page of l. The status is 402 while the link
// is unpaid, 200 once it is paid, and 410 when it has expired or was disabled.
// After an error nothing has been written.
func (s *Site) Link(w http.ResponseWriter, l *Link) error {
	v, err := s.linkView(l)
	if err != nil {
		return fmt.Errorf("page of link %s: %w", l.ID, err)
	}
	status := http.StatusPaymentRequired
	switch l.Status {
	case Paid:
		status = http.StatusOK
	case Expired, Disabled:
		status = http.StatusGone
	case Active, Pending:
	default:
		return fmt.Errorf("page of link %s: %q is no status of a link", l.ID, l.Status)
	}
	merchant := s.merchant(l.Merchant, l.URL)
	return s.write(w, status, "link", page{
		Title: v.Price.String() + " to " + merchant, Merchant: merchant, Style: s.style, Script: s.script,
		Link: v, Notice: wordsOf(l.Status, isolated(merchant)),
	})
}

// wordsOf returns what the page says about a link before any script runs.
func wordsOf(status Status, merchant string) Words {
	switch status {
	case Pending:
		return Words{"pending", "This link is being paid", "A payment is on its way. Do not pay again: this page says when it has arrived."}
	case Paid:
		return Words{"paid", "Paid", "This link has been paid. There is nothing left to pay."}
	case Expired:
		return Words{"expired", "This link has expired", "It can no longer be paid, and nothing was taken. Ask " + merchant + " for a new one."}
	case Disabled:
		return Words{"disabled", "This link was withdrawn", merchant + " has withdrawn it. It can no longer be paid, and nothing was taken."}
	default:
		return Words{"ready", "Pay with your wallet", "Your wallet shows you what you sign. Nothing is taken before you do."}
	}
}

// A linkView is a link as the template wants it.
type linkView struct {
	ID, Initial, URL, Description string
	Open                          bool // it can be paid
	Waiting                       bool // it is being paid
	Price                         price
	Offers                        []offerView
	First                         offerView
	Fields                        []fieldView
	Expires                       *moment
	Paid                          *settledView
	Code                          code
	Apps                          []app
	Data                          linkData
}

type fieldView struct {
	ID        string // of the element
	Name      string
	Label     string
	Required  bool
	MaxLength int
}

type settledView struct {
	At                    *moment
	Transaction, Explorer string
}

// An app is a wallet for phones and the address that opens a page in it.
type app struct{ Name, URL string }

// linkData is what the script knows of a link.
type linkData struct {
	ID       string          `json:"id"`
	Status   Status          `json:"status"`
	Merchant string          `json:"merchant"`
	Path     string          `json:"path"`   // where payments are sent
	Events   string          `json:"events"` // where changes of the status come from
	Resource json.RawMessage `json:"resource"`
	Now      int64           `json:"now"`               // the server's time, unix seconds
	Expires  int64           `json:"expires,omitempty"` // unix seconds
	Offers   []offerData     `json:"offers"`
}

// defaultLength bounds fields whose length the seller left open.
const defaultLength = 200

func (s *Site) linkView(l *Link) (*linkView, error) {
	if len(l.Offers) == 0 {
		return nil, errNoOffer
	}
	if !isWeb(l.URL) {
		return nil, fmt.Errorf("its URL %q must be absolute, with http or https", l.URL)
	}
	merchant := s.merchant(l.Merchant, l.URL)
	v := &linkView{
		ID: l.ID, Initial: initial(merchant), URL: l.URL, Description: l.Description,
		Open: l.Status == Active, Waiting: l.Status == Pending,
		Expires: timeOf(l.Expires),
		Data: linkData{
			ID: l.ID, Status: l.Status, Merchant: merchant, Path: s.path(l.ID), Events: s.path(l.ID, "events"),
			Resource: l.Resource, Now: s.config.Now().Unix(), Offers: []offerData{},
		},
	}
	if !l.Expires.IsZero() {
		v.Data.Expires = l.Expires.Unix()
	}
	if len(l.Resource) == 0 {
		resource, err := json.Marshal(map[string]string{"url": l.URL})
		if err != nil {
			return nil, err
		}
		v.Data.Resource = resource
	} else if !json.Valid(l.Resource) {
		return nil, errors.New("its resource is not JSON")
	}
	for i := range l.Offers {
		shown, data, err := s.offer(&l.Offers[i], i)
		if err != nil {
			return nil, fmt.Errorf("offer %d: %w", i+1, err)
		}
		v.Offers = append(v.Offers, shown)
		v.Data.Offers = append(v.Data.Offers, data)
	}
	v.First = v.Offers[0]
	for i, o := range v.Offers {
		if o.ByHand {
			v.First, v.Offers[i].Chosen = o, true
			break
		}
	}
	v.Price = v.First.Price
	for i, f := range l.Fields {
		if f.MaxLength <= 0 {
			f.MaxLength = defaultLength
		}
		v.Fields = append(v.Fields, fieldView{fmt.Sprintf("field-%d", i+1), f.Name, f.Label, f.Required, f.MaxLength})
	}
	if l.Status == Paid && l.Settled != nil {
		v.Paid = &settledView{timeOf(l.Settled.At), l.Settled.Transaction, webOrNothing(l.Settled.Explorer)}
	}
	var err error
	if v.Code, err = codeOf(l.URL); err != nil {
		return nil, err
	}
	if v.First.ByHand {
		v.Apps = appsFor(l.URL)
	}
	return v, nil
}

// appsFor returns the wallets that can open a page in their own browser, where
// the page finds them. They ask for it over the public network, by https.
func appsFor(link string) []app {
	u, err := url.Parse(link)
	if err != nil || u.Scheme != "https" {
		return nil
	}
	whole := url.QueryEscape(link)
	return []app{
		{"MetaMask", "https://link.metamask.io/dapp/" + u.Host + u.EscapedPath()},
		{"Coinbase Wallet", "https://go.cb-w.com/dapp?cb_url=" + whole},
		{"Trust Wallet", "https://link.trustwallet.com/open_url?coin_id=60&url=" + whole},
	}
}
