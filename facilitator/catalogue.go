package facilitator

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/internal/strictjson"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/extension"
)

// HeaderExtensionResponses tells sellers, and nobody else, what a facilitator
// made of a payment's extensions.
const HeaderExtensionResponses = "Extension-Responses"

const (
	// maxListings is how many resources a catalogue has, and maxOfSeller how
	// many of them one recipient may have. Beyond that the one that was paid
	// for longest ago goes.
	maxListings = 1000
	maxOfSeller = 100

	// maxListing is the largest description that is catalogued, in bytes.
	maxListing = 8 << 10

	// maxURL and maxDescription bound texts of listings, in bytes.
	maxURL         = 2048
	maxDescription = 500
)

// A Listing is one paid resource as catalogues have it.
type Listing struct {
	Resource    string            `json:"resource"` // URL
	Type        string            `json:"type"`     // "http" or "mcp"
	Version     int               `json:"x402Version"`
	Accepts     []json.RawMessage `json:"accepts"`
	LastUpdated string            `json:"lastUpdated"` // RFC 3339
	Description string            `json:"description,omitempty"`
	MimeType    string            `json:"mimeType,omitempty"`
	Extensions  json.RawMessage   `json:"extensions,omitempty"`
}

// ListingTime returns a time as listings have it.
func ListingTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// A Catalogue remembers, in memory, the resources that others were paid for
// here and described in the extension bazaar. What is in it is the word of
// whoever paid: it fetches nothing, and what a resource costs says only its
// own challenge. The zero value is empty. Its methods are safe for concurrent
// use.
type Catalogue struct {
	Now func() time.Time // nil means time.Now

	mu      sync.Mutex
	entries map[entryKey]entry // guarded by mu
	count   uint64             // guarded by mu: of all notes, which orders them
}

// An entry is of one resource and one recipient, so that nobody can take
// another one's place.
type entryKey struct{ resource, tool, payTo string }

type entry struct {
	listing Listing
	number  uint64 // of its last note
}

// note puts a resource that was paid for into the catalogue. It reports false
// where the payment describes none, and an error where what it describes is
// not catalogued. Without enter it only looks.
func (c *Catalogue) note(p *payment.Payment, o *payment.Offer, enter bool) (bool, error) {
	described, err := extension.ReadListing(p.Extensions)
	if err != nil || described == nil {
		return err != nil, err
	}
	l := Listing{Type: described.Type, Version: payment.V2, Accepts: []json.RawMessage{o.Encode()}}
	if len(described.Extension) > maxListing {
		return true, errors.New("the description is longer than 8 KiB")
	}
	if err := l.resource(p.Resource, described.Template); err != nil {
		return true, err
	}
	if !enter {
		return true, nil
	}
	l.Extensions = slices.Concat([]byte(`{"bazaar":`), described.Extension, []byte("}"))
	c.enter(entryKey{l.Resource, described.Tool, o.PayTo}, l)
	return true, nil
}

// resource reads what a payment says about the resource that it is for.
func (l *Listing) resource(doc json.RawMessage, template string) error {
	if len(doc) == 0 {
		return errors.New("the payment does not name its resource")
	}
	o, err := strictjson.Parse(doc, "resource", payment.MaxHeader)
	if err != nil {
		return err
	}
	address, err := o.Text("url")
	if err != nil {
		return err
	}
	u, err := url.Parse(address)
	if err != nil || len(address) > maxURL || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
		return errors.New("resource.url: must be an http or https URL of at most 2048 bytes")
	}
	u.RawQuery, u.Fragment = "", ""
	l.Resource = u.String()
	if template != "" {
		l.Resource = u.Scheme + "://" + u.Host + template
	}
	if l.Description, _, err = o.OptionalText("description"); err != nil {
		return err
	}
	if l.MimeType, _, err = o.OptionalText("mimeType"); err != nil {
		return err
	}
	if len(l.Description) > maxDescription || len(l.MimeType) > maxDescription {
		return errors.New("resource.description: must have at most 500 bytes")
	}
	return nil
}

func (c *Catalogue) enter(k entryKey, l Listing) {
	now := time.Now()
	if c.Now != nil {
		now = c.Now()
	}
	l.LastUpdated = ListingTime(now)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[entryKey]entry{}
	}
	c.count++
	c.entries[k] = entry{l, c.count}
	c.drop(maxOfSeller, func(other entryKey) bool { return other.payTo == k.payTo })
	c.drop(maxListings, func(entryKey) bool { return true })
}

// drop removes the oldest of some entries if there are more than most. c.mu
// is held.
func (c *Catalogue) drop(most int, some func(entryKey) bool) {
	n, oldest := 0, entryKey{}
	for k := range c.entries {
		if !some(k) {
			continue
		}
		if n++; n == 1 || c.entries[k].number < c.entries[oldest].number {
			oldest = k
		}
	}
	if n > most {
		delete(c.entries, oldest)
	}
}

// listings returns what is in the catalogue.
func (c *Catalogue) listings() []Listing {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]Listing, 0, len(c.entries))
	for _, e := range c.entries {
		list = append(list, e.listing)
	}
	return list
}

// A listingFilter is what a query asks for.
type listingFilter struct {
	kind, payTo, scheme, network string
	limit, offset                int
}

func readFilter(q url.Values) (listingFilter, error) {
	f := listingFilter{kind: q.Get("type"), payTo: q.Get("payTo"), scheme: q.Get("scheme"), network: q.Get("network"), limit: 20}
	for _, n := range []struct {
		name       string
		to         *int
		least, max int
	}{{"limit", &f.limit, 1, 100}, {"offset", &f.offset, 0, 1 << 20}} {
		s := q.Get(n.name)
		if s == "" {
			continue
		}
		v, err := strconv.Atoi(s)
		if err != nil || v < n.least || v > n.max {
			return f, errors.New(n.name + " must be a number from " + strconv.Itoa(n.least) + " to " + strconv.Itoa(n.max))
		}
		*n.to = v
	}
	if f.kind != "" && f.kind != extension.HTTP && f.kind != extension.MCP {
		return f, errors.New("type must be http or mcp")
	}
	return f, nil
}

// fits reports whether a listing is asked for. Of its offers one must have
// all that is asked of offers.
func (f *listingFilter) fits(l *Listing) bool {
	if f.kind != "" && l.Type != f.kind {
		return false
	}
	return slices.ContainsFunc(l.Accepts, func(doc json.RawMessage) bool {
		var o struct{ Scheme, Network, PayTo string }
		if json.Unmarshal(doc, &o) != nil {
			return false
		}
		return (f.payTo == "" || strings.EqualFold(o.PayTo, f.payTo)) && (f.scheme == "" || o.Scheme == f.scheme) && (f.network == "" || o.Network == f.network)
	})
}

// discover answers GET /discovery/resources.
func (h *Handler) discover(w http.ResponseWriter, r *http.Request) {
	f, err := readFilter(r.URL.Query())
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	list := h.Catalogue.listings()
	if h.Own != nil {
		list = append(list, h.Own()...)
	}
	list = slices.DeleteFunc(list, func(l Listing) bool { return !f.fits(&l) })
	slices.SortFunc(list, func(a, b Listing) int {
		if c := strings.Compare(a.Resource, b.Resource); c != 0 {
			return c
		}
		return slices.Compare(a.Accepts[0], b.Accepts[0])
	})
	total := len(list)
	list = list[min(f.offset, total):]
	list = list[:min(f.limit, len(list))]
	doc, err := json.Marshal(struct {
		Version    int       `json:"x402Version"`
		Items      []Listing `json:"items"`
		Pagination struct {
			Limit  int `json:"limit"`
			Offset int `json:"offset"`
			Total  int `json:"total"`
		} `json:"pagination"`
	}{payment.V2, list, struct {
		Limit  int `json:"limit"`
		Offset int `json:"offset"`
		Total  int `json:"total"`
	}{f.limit, f.offset, total}})
	if err != nil {
		h.trouble(w, nil, err)
		return
	}
	answer(w, http.StatusOK, doc)
}

// catalogue looks at what a good payment says about its resource and tells
// the seller what becomes of it. A resource is listed when it has been paid
// for: a listing should cost something.
func (h *Handler) catalogue(w http.ResponseWriter, p *payment.Payment, o *payment.Offer, settled bool) {
	if h.Catalogue == nil || p.Version != payment.V2 {
		return
	}
	described, err := h.Catalogue.note(p, o, settled)
	if !described {
		return
	}
	type response struct {
		Status         string `json:"status"`
		RejectedReason string `json:"rejectedReason,omitempty"`
	}
	said := response{Status: "processing"}
	switch {
	case err != nil:
		said = response{"rejected", err.Error()}
	case settled:
		said.Status = "success"
	}
	doc, err := json.Marshal(map[string]response{extension.Bazaar: said})
	if err != nil {
		return // texts always marshal
	}
	w.Header().Set(HeaderExtensionResponses, base64.StdEncoding.EncodeToString(doc))
}
