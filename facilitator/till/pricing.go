package till

import (
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/payment/quote"
)

// ReasonNoPrice is the reason of a sale whose price could not be computed.
const ReasonNoPrice = "no price"

// A Pricer computes what the requests of a route cost. Its methods are safe
// for concurrent use.
type Pricer interface {
	// Price returns what a request costs now. It must leave the request's
	// body alone. An error is a fault of the seller's: such a request is
	// neither served nor charged.
	Price(r *http.Request) (*Price, error)

	// At returns one of the route's offers, counted from 0, at another
	// amount of its token.
	At(offer int, amount payment.Amount) (payment.Offer, error)
}

// A Price is what one request costs.
type Price struct {
	// Challenge has the route's offers in their order. Its Offers belong to
	// this price alone.
	Challenge payment.Challenge

	// Basis is what has decided the price beside the request's method, path
	// and query: the route's price list, and such things as a header. A price
	// that is not asked any more is good for requests with the same basis
	// only, so that nobody gets a dear thing at a cheap one's price.
	Basis []string
}

// fingerprint names the basis of a price; that of no price is zero.
func (p *Price) fingerprint() payment.Fingerprint {
	if p == nil {
		return payment.Fingerprint{}
	}
	h := sha256.New()
	for _, part := range p.Basis {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		h.Write(size[:])
		h.Write([]byte(part))
	}
	return payment.Fingerprint(h.Sum(nil))
}

const (
	// quoteFor is how long a price that has been offered can be paid.
	quoteFor = time.Minute

	// maxQuotes is how many offers to clients of version 1 are remembered.
	maxQuotes = 1 << 16

	// extraQuote is the member of an offer's extra that has its quote.
	extraQuote = "quote"
)

// Quotes keep computed prices for a minute. An offer of version 2 carries a
// quote, which comes back with its payment. Payments of version 1 bring
// nothing back, so what they were offered is remembered here: the last 65536
// different offers, of which the newest stay. An offer that is forgotten too
// early is made anew.
//
// The tills of one process share one. Its methods are safe for concurrent use.
type Quotes struct {
	// Key makes the quotes. Instances that serve the same routes need the
	// same one.
	Key quote.Key

	Now func() time.Time // nil means time.Now

	mu     sync.Mutex
	offers map[[32]byte]*list.Element // guarded by mu, as is order
	order  list.List                  // of remembered, those that expire first in front
}

// A remembered is an offer that was made.
type remembered struct {
	terms [32]byte
	until time.Time
}

func (q *Quotes) now() time.Time {
	if q.Now == nil {
		return time.Now()
	}
	return q.Now()
}

// remember notes that an offer is good until a time.
func (q *Quotes) remember(terms [32]byte, until time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if known, ok := q.offers[terms]; ok {
		q.order.Remove(known)
	} else if q.order.Len() == maxQuotes {
		q.forget(q.order.Front())
	}
	if q.offers == nil {
		q.offers = map[[32]byte]*list.Element{}
	}
	q.offers[terms] = q.order.PushBack(remembered{terms, until})
}

// forget removes an offer. The caller holds mu.
func (q *Quotes) forget(e *list.Element) {
	delete(q.offers, q.order.Remove(e).(remembered).terms)
}

// remembers reports whether an offer was made and is still good.
func (q *Quotes) remembers(terms [32]byte) bool {
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for e := q.order.Front(); e != nil && now.After(e.Value.(remembered).until); e = q.order.Front() {
		q.forget(e)
	}
	_, ok := q.offers[terms]
	return ok
}

// offers returns the offers that the request can be paid by.
func (v *visit) offers() []payment.Offer {
	if v.price == nil {
		return v.route.Offers
	}
	return v.price.Challenge.Offers
}

// ask computes the price of the request, where it is not always the same.
func (v *visit) ask() error {
	if v.route.Pricer == nil {
		return nil
	}
	price, err := v.route.Pricer.Price(v.r)
	for i := 0; err == nil && i < len(price.Challenge.Offers); i++ {
		err = price.Challenge.Offers[i].Check()
	}
	if err != nil {
		v.sale.Reason = ReasonNoPrice
		return fmt.Errorf("pricing %s %s: %w", v.r.Method, v.r.URL.EscapedPath(), err)
	}
	v.price = price
	return nil
}

// terms returns what a quote of an offer is bound to.
func (v *visit) terms(o *payment.Offer) *quote.Terms {
	origin := v.route.Origin
	if origin == "" {
		origin = strings.ToLower(v.r.Host)
	}
	request := append([]string{origin, v.r.Method, v.r.URL.EscapedPath(), v.r.URL.RawQuery}, v.price.Basis...)
	return &quote.Terms{Request: request, Offer: o}
}

// prepared returns the request's challenge, and keeps a computed price for a
// while.
func (v *visit) prepared() (*payment.Prepared, error) {
	if v.price == nil {
		return v.route.Challenge, nil
	}
	c := v.price.Challenge
	if v.Quotes == nil {
		return c.Prepare()
	}
	until := v.Quotes.now().Add(quoteFor)
	c.Offers = make([]payment.Offer, 0, len(c.Offers))
	for i := range v.price.Challenge.Offers {
		o := v.price.Challenge.Offers[i]
		terms := v.terms(&o)
		if o.V1() {
			v.Quotes.remember(terms.Digest(), until)
		}
		c.Offers = append(c.Offers, quoted(o, v.Quotes.Key.Make(terms, until)))
	}
	return c.Prepare()
}

// quoted returns an offer with its quote, which needs no escapes in JSON.
func quoted(o payment.Offer, q string) payment.Offer {
	extra := make(map[string]json.RawMessage, len(o.Extra)+1)
	maps.Copy(extra, o.Extra)
	extra[extraQuote] = json.RawMessage(`"` + q + `"`)
	o.Extra = extra
	return o
}

// choose returns the offer that the payment pays, or nil when it pays none. An
// offer at a price that is not asked any more, and for which there is no good
// quote, has lapsed: it can finish what was begun with it, and nothing else.
func (v *visit) choose() (chosen *payment.Offer, lapsed bool) {
	if v.price == nil {
		return payment.Match(v.payment, v.route.Offers), false
	}
	offers := v.price.Challenge.Offers
	if v.payment.Version == payment.V1 {
		return v.chooseV1(offers)
	}
	q := v.quote()
	if o := payment.Match(v.payment, offers); o != nil {
		return v.echo(o, q), false
	}
	for i := range offers {
		if !v.payment.Accepted.Amount.Token().Is(offers[i].Amount.Token()) {
			continue
		}
		earlier := v.at(i, v.payment.Accepted.Amount.Big())
		if earlier == nil || payment.Match(v.payment, []payment.Offer{*earlier}) == nil {
			continue
		}
		if v.Quotes != nil && v.Quotes.Key.Check(q, v.terms(earlier), v.Quotes.now()) == nil {
			return v.echo(earlier, q), false
		}
		if chosen == nil {
			chosen, lapsed = v.echo(earlier, q), true
		}
	}
	return chosen, lapsed
}

// chooseV1 is choose for payments of version 1. They do not say which offer
// they accept, but they sign its amount.
func (v *visit) chooseV1(offers []payment.Offer) (chosen *payment.Offer, lapsed bool) {
	for i := range offers {
		if payment.Match(v.payment, offers[i:i+1]) == nil {
			continue
		}
		signed, err := evm.ReadInstrument(v.payment, &offers[i])
		if err != nil || signed.Most.Cmp(offers[i].Amount.Big()) == 0 {
			return &offers[i], false // whoever looks closer says what is wrong
		}
		earlier := v.at(i, signed.Most)
		if earlier == nil {
			return nil, false
		}
		return earlier, v.Quotes == nil || !v.Quotes.remembers(v.terms(earlier).Digest())
	}
	return nil, false
}

// at returns one of the offers at another amount, or nil if it cannot have it.
func (v *visit) at(i int, units *big.Int) *payment.Offer {
	amount, err := payment.NewAmount(units, v.price.Challenge.Offers[i].Amount.Token())
	if err != nil {
		return nil
	}
	o, err := v.route.Pricer.At(i, amount)
	if err != nil || o.Check() != nil {
		return nil
	}
	return &o
}

// quote returns the quote that came back with the payment, or "" where there is
// nothing in the form of one.
func (v *visit) quote() string {
	var q string
	if err := json.Unmarshal(v.payment.Accepted.Extra[extraQuote], &q); err != nil || !quote.Legible(q) {
		return ""
	}
	return q
}

// echo returns an offer as the payer has accepted it: some facilitators
// compare the two.
func (v *visit) echo(o *payment.Offer, q string) *payment.Offer {
	if q == "" {
		return o
	}
	accepted := quoted(*o, q)
	return &accepted
}

// begun reports whether a stored payment was first claimed for this very
// request while its price was good, no longer ago than payments are good for
// what they have bought. It need not be paid at today's price then: it may yet
// move money, so nobody must be asked to pay again.
func (v *visit) begun(r *ledger.Record) bool {
	return r != nil && v.same(r) && v.now().Before(r.Since.Add(v.route.entitled()))
}
