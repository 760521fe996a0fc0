package linkhttp

import (
	"encoding/json"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment/link"
)

// News is what merchants are told of a link: the link as it stands after that
// and, where it is about one, the payment. URLs are left out where the site's
// origin is not configured.
type news struct {
	Link      linkDoc  `json:"link"`
	Payment   *receipt `json:"payment,omitempty"`
	Truncated bool     `json:"truncated,omitempty"` // metadata and fields are left out
}

// News returns what is told of a link in JSON of at most so many bytes. What a
// merchant and a payer have written into it gives way if it must: what has
// happened is told in any case.
func (s *Site) News(event string, l *link.Link, u *link.Use, most int) (json.RawMessage, error) {
	n := news{Link: s.linkDoc(s.Origin, l)}
	if u != nil {
		status := ReceiptPaid
		if event == link.EventReversed {
			status = ReceiptFailed
		}
		r := s.receiptOf(s.Origin, l, u, &ledger.Record{}, status)
		n.Payment = &r
	}
	if s.Origin == "" {
		n.Link.URL, n.Link.AIURL = "", ""
		if n.Payment != nil {
			n.Payment.URL, n.Payment.Link = "", ""
		}
	}
	doc, err := json.Marshal(n)
	if err != nil || len(doc) <= most {
		return doc, err
	}
	n.Truncated = true
	n.Link.Metadata, n.Link.CustomFields = map[string]string{}, []fieldDoc{}
	n.Link.SuccessMessage, n.Link.SuccessURL = nil, nil
	if n.Payment != nil {
		n.Payment.Fields = nil
	}
	return json.Marshal(n)
}
