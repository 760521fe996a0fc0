package linkhttp

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

// A linkDoc is a link as its merchant sees it.
type linkDoc struct {
	ID             link.ID           `json:"id"`
	Amount         json.Number       `json:"amount"`      // whole units, as they were written
	Units          string            `json:"amountUnits"` // atomic units of the first offer's token
	Currency       string            `json:"currency"`
	Description    string            `json:"description"`
	URL            string            `json:"url"`
	AIURL          string            `json:"aiUrl"` // the same
	Network        string            `json:"network"`
	Networks       []string          `json:"networks"`
	Status         link.Status       `json:"status"`
	MaxUses        uint32            `json:"maxUses"`
	PaidCount      uint32            `json:"paidCount"`
	ExpiresAt      string            `json:"expiresAt"` // RFC 3339, UTC, like all times
	CreatedAt      string            `json:"createdAt"`
	PaidAt         *string           `json:"paidAt"` // of the last payment
	CustomFields   []fieldDoc        `json:"customFields"`
	Metadata       map[string]string `json:"metadata"`
	SuccessMessage *string           `json:"successMessage"`
	SuccessURL     *string           `json:"successUrl"`
	Opens          *string           `json:"opens"`
}

type fieldDoc struct {
	Name      string `json:"name"`
	Label     string `json:"label"`
	Required  bool   `json:"required"`
	MaxLength int    `json:"maxlength"`
}

func (s *Site) linkDoc(origin string, l *link.Link) linkDoc {
	url := s.URL(origin, l.ID)
	d := linkDoc{
		ID: l.ID, Amount: json.Number(l.Amount), Description: l.Description, URL: url, AIURL: url, Networks: []string{}, Status: l.Status(s.now()),
		MaxUses: l.Uses, PaidCount: l.Sold, ExpiresAt: l.Expires.UTC().Format(time.RFC3339), CreatedAt: l.Created.UTC().Format(time.RFC3339),
		CustomFields: []fieldDoc{}, Metadata: map[string]string{},
		SuccessMessage: unlessEmpty(l.Message), SuccessURL: unlessEmpty(l.Redirect), Opens: unlessEmpty(l.Opens),
	}
	for i := range l.Offers {
		o := &l.Offers[i]
		if network := o.Network().In(payment.V1); !slices.Contains(d.Networks, network) {
			d.Networks = append(d.Networks, network)
		}
	}
	if len(l.Offers) > 0 {
		d.Units, d.Currency, d.Network = l.Offers[0].Amount.Units(), l.Offers[0].Amount.Token().Symbol, d.Networks[0]
	}
	if l.Sold > 0 {
		at := l.PaidAt.UTC().Format(time.RFC3339)
		d.PaidAt = &at
	}
	for _, f := range l.Fields {
		most := f.Max
		if most == 0 {
			most = link.MaxField
		}
		d.CustomFields = append(d.CustomFields, fieldDoc{f.Name, f.Label, f.Required, most})
	}
	if len(l.Metadata) > 0 {
		d.Metadata = l.Metadata
	}
	return d
}

func unlessEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (m *Merchant) show(o *order) (*Reply, error) {
	l, err := m.Links.Of(o.Context(), o.merchant, o.id)
	if err != nil {
		return nil, err
	}
	return replyWith(http.StatusOK, m.Site.linkDoc(m.Site.origin(o.Request), l))
}

// cancel ends a link: nobody can begin to pay it any more.
func (m *Merchant) cancel(o *order) (*Reply, error) {
	if _, err := o.body(); err != nil {
		return nil, err
	}
	l, err := m.Links.Disable(o.Context(), o.merchant, o.id)
	if err != nil {
		return nil, err
	}
	if l.DisabledAt.IsZero() {
		return nil, &RequestError{
			Status: http.StatusConflict, Code: AlreadyPaid, Message: "the link is paid, so nothing is left to cancel: to give the money back, refund the payment",
		}
	}
	return replyWith(http.StatusOK, m.Site.linkDoc(m.Site.origin(o.Request), l))
}

// A pageDoc says where a page of a list ends.
type pageDoc struct {
	HasNextPage bool `json:"hasNextPage"`
	Limit       int  `json:"limit"`
}

// A linkList is a page of a merchant's links, the newest first. The counts are
// of all its links.
type linkList struct {
	Links       []linkDoc `json:"links"`
	NextCursor  *string   `json:"nextCursor"`
	TotalCount  int       `json:"totalCount"`
	ActiveCount int       `json:"activeCount"`
	Pagination  pageDoc   `json:"pagination"`
}

func (m *Merchant) list(o *order) (*Reply, error) {
	limit, cursor, err := m.page(o)
	if err != nil {
		return nil, err
	}
	q := link.Query{Limit: limit, Cursor: cursor}
	status, err := once(o, "status")
	if err != nil {
		return nil, err
	}
	if status != "" {
		if q.Status, err = link.ParseStatus(status); err != nil {
			return nil, invalid("status", "must be ACTIVE, PENDING, PAID, EXPIRED or DISABLED")
		}
	}
	page, err := m.Links.List(o.Context(), o.merchant, q)
	if errors.Is(err, link.ErrCursor) {
		return nil, badCursor()
	}
	if err != nil {
		return nil, err
	}
	stats, err := m.Links.Stats(o.Context(), o.merchant)
	if err != nil {
		return nil, err
	}
	d := linkList{
		Links: []linkDoc{}, NextCursor: unlessEmpty(page.Next), TotalCount: stats.Total, ActiveCount: stats.ByStatus[link.Active], Pagination: pageDoc{page.Next != "", limit},
	}
	for _, l := range page.Links {
		d.Links = append(d.Links, m.Site.linkDoc(m.Site.origin(o.Request), l))
	}
	return replyWith(http.StatusOK, d)
}

func badCursor() error {
	return invalid("cursor", "must be the nextCursor of another page, or be left out")
}

// page returns which page of a list is wanted.
func (m *Merchant) page(o *order) (limit int, cursor string, err error) {
	limit = m.Limit
	if limit <= 0 {
		limit = defaultLimit
	}
	text, err := once(o, "limit")
	if err != nil {
		return 0, "", err
	}
	if text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > link.MaxPage {
			return 0, "", invalid("limit", fmt.Sprintf("must be 1 to %d", link.MaxPage))
		}
	}
	cursor, err = once(o, "cursor")
	return limit, cursor, err
}

// once returns a parameter of the query, which must not be given twice.
func once(o *order, name string) (string, error) {
	values := o.URL.Query()[name]
	switch {
	case len(values) > 1:
		return "", invalid(name, "is given twice: give it once")
	case len(values) == 1:
		return values[0], nil
	}
	return "", nil
}

// A useList is a page of the payments of a link, in no order of time.
type useList struct {
	Payments   []receipt `json:"payments"`
	NextCursor *string   `json:"nextCursor"`
	Pagination pageDoc   `json:"pagination"`
}

func (m *Merchant) uses(o *order) (*Reply, error) {
	limit, cursor, err := m.page(o)
	if err != nil {
		return nil, err
	}
	after := link.ID("")
	if cursor != "" {
		if after, err = link.ParseID(cursor); err != nil {
			return nil, badCursor()
		}
	}
	l, err := m.Links.Of(o.Context(), o.merchant, o.id)
	if err != nil {
		return nil, err
	}
	uses, next, err := m.Links.Uses(o.Context(), o.id, after, limit)
	if err != nil {
		return nil, err
	}
	d := useList{Payments: []receipt{}, NextCursor: unlessEmpty(string(next)), Pagination: pageDoc{next != "", limit}}
	for _, u := range uses {
		record, err := m.Site.record(o.Context(), u)
		if err != nil {
			return nil, err
		}
		// What the payment opens is the payer's: the token is left out.
		d.Payments = append(d.Payments, m.Site.receiptOf(m.Site.origin(o.Request), l, u, &ledger.Record{}, standing(&record, u)))
	}
	return replyWith(http.StatusOK, d)
}

// A statsDoc has the sums over all links of a merchant.
type statsDoc struct {
	TotalLinks    int `json:"totalLinks"`
	ActiveLinks   int `json:"activeLinks"`
	PendingLinks  int `json:"pendingLinks"`
	PaidLinks     int `json:"paidLinks"`
	ExpiredLinks  int `json:"expiredLinks"`
	DisabledLinks int `json:"disabledLinks"`

	// What was paid in one currency: that of the first offer of new links,
	// or where none was paid in that, of the first of Earnings.
	TotalEarnings json.Number `json:"totalEarnings"`
	Currency      string      `json:"currency"`

	Earnings []earningDoc `json:"earnings"` // by token
}

type earningDoc struct {
	Network  string      `json:"network"`
	Token    string      `json:"token"` // address
	Currency string      `json:"currency"`
	Amount   json.Number `json:"amount"`
	Units    string      `json:"units"` // atomic units
}

func (m *Merchant) stats(o *order) (*Reply, error) {
	s, err := m.Links.Stats(o.Context(), o.merchant)
	if err != nil {
		return nil, err
	}
	d := statsDoc{
		TotalLinks: s.Total, ActiveLinks: s.ByStatus[link.Active], PendingLinks: s.ByStatus[link.Pending], PaidLinks: s.ByStatus[link.Paid],
		ExpiredLinks: s.ByStatus[link.Expired], DisabledLinks: s.ByStatus[link.Disabled], TotalEarnings: "0", Earnings: []earningDoc{},
	}
	var first payment.Token
	if offers, err := m.Offers("1"); err == nil && len(offers) > 0 {
		first = offers[0].Amount.Token()
	}
	earned, err := earnings(s, first)
	if err != nil {
		return nil, err
	}
	sum := new(big.Int)
	for i, a := range earned {
		t := a.Token()
		if i == 0 {
			first = t
		}
		if sameCurrency(t, first) {
			sum.Add(sum, a.Big())
		}
		d.Earnings = append(d.Earnings, earningDoc{t.Network.In(payment.V1), t.Address, t.Symbol, number(a), a.Units()})
	}
	total, err := payment.NewAmount(sum, first)
	if err != nil {
		return nil, err
	}
	d.TotalEarnings, d.Currency = number(total), first.Symbol
	return replyWith(http.StatusOK, d)
}

// sameCurrency reports whether amounts of two tokens can be added up.
func sameCurrency(a, b payment.Token) bool { return a.Symbol == b.Symbol && a.Decimals == b.Decimals }

// earnings returns what was earned, by token: first what is of the currency of
// first, then by network and address.
func earnings(s *link.Stats, first payment.Token) ([]payment.Amount, error) {
	names := make([]string, 0, len(s.Earned))
	for name, units := range s.Earned {
		if units.Sign() > 0 { // a reorg leaves nothing behind
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		x, y := sameCurrency(s.Tokens[a], first), sameCurrency(s.Tokens[b], first)
		switch {
		case x && !y:
			return -1
		case y && !x:
			return +1
		}
		return strings.Compare(a, b)
	})
	var list []payment.Amount
	for _, name := range names {
		a, err := payment.NewAmount(s.Earned[name], s.Tokens[name])
		if err != nil {
			return nil, fmt.Errorf("linkhttp: what was earned in %s %w", name, err)
		}
		list = append(list, a)
	}
	return list, nil
}

// number returns an amount in whole units, exactly.
func number(a payment.Amount) json.Number {
	if a.Token().Symbol == "" {
		return json.Number(a.Units())
	}
	digits, _, _ := strings.Cut(a.String(), " ")
	return json.Number(digits)
}
