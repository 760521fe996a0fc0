package link

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// Key spaces. A link's own entry sorts the links of a merchant, the newest
// first. by leads from a payment to what it is to a link, for as long as
// either is known; open lists those payments whose end is not known yet, due
// the links that have not expired.
func linkKey(merchant string, created time.Time, id ID) ledger.Key {
	return ledger.Key(fmt.Sprintf("link/%s/%016x/%s", merchant, ^uint64(created.UnixNano()), id))
}

func idKey(id ID) ledger.Key { return ledger.Key("linkid/" + string(id)) }

func useKey(id, receipt ID) ledger.Key {
	return ledger.Key("linkuse/" + string(id) + "/" + string(receipt))
}

func byKey(k payment.Key) ledger.Key { return ledger.Key("linkby/" + k.String()) }

func openKey(k payment.Key) ledger.Key { return ledger.Key("linkopen/" + k.String()) }

func onceKey(merchant, sum string) ledger.Key {
	return ledger.Key("linkonce/" + merchant + "/" + sum)
}

func dueKey(expires time.Time, id ID) ledger.Key {
	return ledger.Key(fmt.Sprintf("linkdue/%016x/%s", expires.Unix(), id))
}

// A storedLink is a link as it is written down. Its id, merchant and time of
// creation are in its key, too.
type storedLink struct {
	ID          ID                `json:"id"`
	Merchant    string            `json:"merchant"`
	Amount      string            `json:"amount"`
	Offers      []storedOffer     `json:"offers"`
	Description string            `json:"description"`
	Uses        uint32            `json:"uses"`
	Fields      []Field           `json:"fields,omitempty"`
	Message     string            `json:"message,omitempty"`
	Redirect    string            `json:"redirect,omitempty"`
	Opens       string            `json:"opens,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Created     time.Time         `json:"created"`
	Expires     time.Time         `json:"expires"`
	DisabledAt  time.Time         `json:"disabled_at,omitzero"`
	ExpiredAt   time.Time         `json:"expired_at,omitzero"`
	PaidAt      time.Time         `json:"paid_at,omitzero"`
	Taken       uint32            `json:"taken,omitempty"`
	Sold        uint32            `json:"sold,omitempty"`
	Earned      map[string]string `json:"earned,omitempty"`
}

// A storedOffer is an offer with what the wire does not say of its token.
type storedOffer struct {
	Scheme   payment.Scheme             `json:"scheme"`
	Network  payment.Network            `json:"network"`
	Token    string                     `json:"token"` // address
	Symbol   string                     `json:"symbol"`
	Decimals uint8                      `json:"decimals"`
	Name     string                     `json:"name,omitempty"`
	Version  string                     `json:"version,omitempty"`
	Dollar   bool                       `json:"dollar,omitempty"`
	Units    string                     `json:"units"`
	PayTo    string                     `json:"pay_to"`
	Timeout  int64                      `json:"timeout"` // seconds
	Extra    map[string]json.RawMessage `json:"extra,omitempty"`
	Until    string                     `json:"until"`
}

func storeOffer(o *payment.Offer) storedOffer {
	t := o.Amount.Token()
	return storedOffer{
		Scheme: o.Scheme, Network: t.Network, Token: t.Address, Symbol: t.Symbol, Decimals: t.Decimals, Name: t.Name, Version: t.Version, Dollar: t.Dollar,
		Units: o.Amount.Units(), PayTo: o.PayTo, Timeout: int64(o.Timeout / time.Second), Extra: o.Extra, Until: o.Until.String(),
	}
}

func (s *storedOffer) offer() (payment.Offer, error) {
	amount, err := payment.ParseUnits(s.Units, payment.Token{
		Network: s.Network, Address: s.Token, Symbol: s.Symbol, Decimals: s.Decimals, Name: s.Name, Version: s.Version, Dollar: s.Dollar,
	})
	if err != nil {
		return payment.Offer{}, err
	}
	until, err := payment.ParseFinality(s.Until)
	if err != nil {
		return payment.Offer{}, err
	}
	return payment.Offer{Scheme: s.Scheme, Amount: amount, PayTo: s.PayTo, Timeout: time.Duration(s.Timeout) * time.Second, Extra: s.Extra, Until: until}, nil
}

// write returns the entry of a link as it stands now, under the condition that
// it has not changed since it was read.
func (l *Link) write() (ledger.Write, error) {
	stored := storedLink{
		ID: l.ID, Merchant: l.Merchant, Amount: l.Amount, Description: l.Description, Uses: l.Uses, Fields: l.Fields, Message: l.Message, Redirect: l.Redirect,
		Opens: l.Opens, Metadata: l.Metadata, Created: l.Created, Expires: l.Expires, DisabledAt: l.DisabledAt, ExpiredAt: l.ExpiredAt, PaidAt: l.PaidAt,
		Taken: l.Taken, Sold: l.Sold, Earned: l.Earned,
	}
	for i := range l.Offers {
		stored.Offers = append(stored.Offers, storeOffer(&l.Offers[i]))
	}
	doc, err := json.Marshal(stored)
	if err != nil {
		return ledger.Write{}, fmt.Errorf("link: writing link %s: %w", l.ID, err)
	}
	return ledger.Write{Key: linkKey(l.Merchant, l.Created, l.ID), If: l.version, Value: doc}, nil
}

func decodeLink(e ledger.Entry) (*Link, error) {
	var s storedLink
	if err := json.Unmarshal(e.Value, &s); err != nil {
		return nil, fmt.Errorf("link: reading %s: %w", e.Key, err)
	}
	l := &Link{
		ID: s.ID, Created: s.Created, Expires: s.Expires, DisabledAt: s.DisabledAt, ExpiredAt: s.ExpiredAt, PaidAt: s.PaidAt, Taken: s.Taken, Sold: s.Sold, Earned: s.Earned, version: e.Version,
		Terms: Terms{
			Merchant: s.Merchant, Amount: s.Amount, Description: s.Description, Life: s.Expires.Sub(s.Created), Uses: s.Uses, Fields: s.Fields,
			Message: s.Message, Redirect: s.Redirect, Opens: s.Opens, Metadata: s.Metadata,
		},
	}
	for i := range s.Offers {
		o, err := s.Offers[i].offer()
		if err != nil {
			return nil, fmt.Errorf("link: reading an offer of %s: %w", e.Key, err)
		}
		l.Offers = append(l.Offers, o)
	}
	if linkKey(l.Merchant, l.Created, l.ID) != e.Key {
		return nil, fmt.Errorf("link: %s holds another link", e.Key)
	}
	return l, nil
}

// A Step says what a payment is to a link.
type Step string

const (
	Claimed Step = "CLAIMED" // it holds a use, and may settle
	Settled Step = "SETTLED" // it has paid a use
	Dropped Step = "DROPPED" // it came to nothing, and holds none any more
)

// A Use is what one payment is to a link.
type Use struct {
	Link    ID     // whose it is
	Receipt ID     // names the receipt; nobody can guess it
	Payment string // the payment's key
	Step    Step
	Fields  map[string]string // as filled in
	Payer   string
	Units   string // atomic units
	Token   string // network and address, see TokenName

	Claimed     time.Time
	Paid        time.Time // zero before it was
	Transaction string    // once it is paid

	version uint64
}

type storedUse struct {
	Payment     string            `json:"payment"`
	Step        Step              `json:"step"`
	Fields      map[string]string `json:"fields,omitempty"`
	Payer       string            `json:"payer"`
	Units       string            `json:"units"`
	Token       string            `json:"token"`
	Claimed     time.Time         `json:"claimed"`
	Paid        time.Time         `json:"paid,omitzero"`
	Transaction string            `json:"transaction,omitempty"`
}

func (u *Use) write() (ledger.Write, error) {
	doc, err := json.Marshal(storedUse{u.Payment, u.Step, u.Fields, u.Payer, u.Units, u.Token, u.Claimed, u.Paid, u.Transaction})
	if err != nil {
		return ledger.Write{}, fmt.Errorf("link: writing a use of link %s: %w", u.Link, err)
	}
	return ledger.Write{Key: useKey(u.Link, u.Receipt), If: u.version, Value: doc}, nil
}

func decodeUse(id, receipt ID, e ledger.Entry) (*Use, error) {
	var s storedUse
	if err := json.Unmarshal(e.Value, &s); err != nil {
		return nil, fmt.Errorf("link: reading %s: %w", e.Key, err)
	}
	return &Use{id, receipt, s.Payment, s.Step, s.Fields, s.Payer, s.Units, s.Token, s.Claimed, s.Paid, s.Transaction, e.Version}, nil
}

// TokenName names a token among those that a link has earned: its network and
// its address.
func TokenName(t payment.Token) string { return string(t.Network) + "/" + t.Address }
