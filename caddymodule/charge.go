package caddymodule

import (
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// Charge says what an answer costs that is paid by upto. In a Caddyfile:
//
//	charge {
//		base <price>
//		per [<number>] <unit> <price>
//		per [<number>] <word> <price> at <path> [estimate <number> per [<number>] event|byte]
//		header <name>
//	}
//
// Units are byte, KB, MB, GB, KiB, MiB, GiB, second, minute, hour and event;
// all but the sizes can be written with an s. An event is a server-sent event
// with data, or a line of NDJSON. A path leads to a number in the JSON of the
// answer, or of each event of it, of which the last one counts; the word
// before the price says what it is a number of, for whoever reads it. So
//
//	charge {
//		base $0.0001
//		per 1000 tokens $0.002 at usage.total_tokens
//		per MB $0.01
//	}
//
// charges $0.0001 for each answer, $0.002 for a thousand tokens, by the piece,
// and $0.01 for a million bytes. The sum is rounded up to what the token can
// be divided into, once, and is never above the price of the offer.
//
// Streams say at their end how many tokens they had, if they come to it. Until
// then each event counts as one, or as estimate says.
type Charge struct {
	// What every answer costs that is not a failure, such as "$0.0001".
	// Default: nothing.
	Base string `json:"base,omitempty"`

	// What it costs on top of that.
	Per []Rate `json:"per,omitempty"`

	// A header, or trailer, in which the upstream says what the answer costs,
	// in place of everything else: atomic units, a percentage of the maximum
	// such as "12.5%", or "$0.05"; also as the reference's Settlement-Overrides
	// has it. It never reaches the payer. What cannot be read, or is above the
	// maximum, is logged and does not count: the rest of the charge does then,
	// and nothing where there is no rest. Whoever can make the upstream set
	// the header decides what is paid. Default: the upstream has no say.
	Header string `json:"header,omitempty"`
}

// Rate is a price by the piece.
type Rate struct {
	// How many pieces the price is for. Default: 1.
	Number uint64 `json:"number,omitempty"`

	// Of what: a unit, or with a path any word, such as "tokens".
	Of string `json:"of"`

	// The price, such as "$0.002". It must not be finer than the token: for
	// smaller ones make the number larger.
	Price string `json:"price"`

	// Where the JSON of the answer has the number, such as
	// "usage.total_tokens" or "data.0.count".
	At string `json:"at,omitempty"`

	// What counts until the answer has said the number. Default: one for each
	// event.
	Estimate *Estimate `json:"estimate,omitempty"`
}

// Estimate is so many for each event, or for some bytes.
type Estimate struct {
	Number uint64 `json:"number"`

	// For how many events or bytes. Default: 1.
	Per uint64 `json:"per,omitempty"`

	// "event" or "byte".
	Of string `json:"of"`
}

// countable is what can be counted without a path.
var countable = map[string]struct {
	of     meter.Quantity
	pieces int64
}{
	"byte": {meter.Bytes, 1}, "KB": {meter.Bytes, 1e3}, "MB": {meter.Bytes, 1e6}, "GB": {meter.Bytes, 1e9},
	"KiB": {meter.Bytes, 1 << 10}, "MiB": {meter.Bytes, 1 << 20}, "GiB": {meter.Bytes, 1 << 30},
	"second": {meter.Seconds, 1}, "minute": {meter.Seconds, 60}, "hour": {meter.Seconds, 3600},
	"event": {meter.Events, 1},
}

const unitNames = "byte, KB, MB, GB, KiB, MiB, GiB, second, minute, hour or event"

// tariff returns what is charged for answers of which most is the maximum.
func (c *Charge) tariff(most payment.Amount) (*meter.Tariff, error) {
	t := &meter.Tariff{Header: c.Header}
	token := most.Token()
	if c.Base != "" {
		base, err := payment.ParsePrice(c.Base, token)
		if err != nil {
			return nil, about("charge base", fmt.Errorf("charge base: %w", err))
		}
		if base.Cmp(most) > 0 {
			return nil, about("charge base", fmt.Errorf("charge: the base %s is more than the maximum %s", base, most))
		}
		t.Base = new(big.Rat).SetInt(base.Big())
	}
	for i := range c.Per {
		r := &c.Per[i]
		rate, err := r.rate(token)
		if err != nil {
			return nil, about(chargePer(i), fmt.Errorf("charge per %s: %w", r.Of, err))
		}
		t.Rates = append(t.Rates, rate)
	}
	if err := checkPriceHeader(c.Header); err != nil {
		return nil, err
	}
	if err := t.Check(); err != nil {
		return nil, fmt.Errorf("charge: %w", err)
	}
	return t, nil
}

// rate returns the price of one piece.
func (r *Rate) rate(token payment.Token) (meter.Rate, error) {
	var rate meter.Rate
	price, err := payment.ParsePrice(r.Price, token)
	if err != nil {
		return rate, err
	}
	pieces := new(big.Int).SetUint64(max(r.Number, 1))
	if r.At != "" {
		rate.Of = meter.Field
		if rate.Path, err = meter.ParsePath(r.At); err != nil {
			return rate, fmt.Errorf("at %q: %w", r.At, err)
		}
		if rate.Estimate, err = r.Estimate.estimate(); err != nil {
			return rate, err
		}
	} else {
		unit, ok := countable[r.Of]
		if !ok {
			unit, ok = countable[strings.TrimSuffix(r.Of, "s")]
		}
		if !ok {
			return rate, fmt.Errorf("it is no unit: write %s, or say with \"at <path>\" where the answer has the number", unitNames)
		}
		if r.Estimate != nil {
			return rate, errors.New("estimate belongs to a number of the answer: there is no \"at <path>\"")
		}
		rate.Of = unit.of
		pieces.Mul(pieces, big.NewInt(unit.pieces))
	}
	rate.Price = new(big.Rat).SetFrac(price.Big(), pieces)
	return rate, nil
}

// estimate returns what counts for one event, or for one byte.
func (e *Estimate) estimate() (*meter.Estimate, error) {
	if e == nil {
		return &meter.Estimate{Number: big.NewRat(1, 1), Per: meter.Events}, nil
	}
	n := new(big.Rat).SetFrac(new(big.Int).SetUint64(e.Number), new(big.Int).SetUint64(max(e.Per, 1)))
	switch strings.TrimSuffix(e.Of, "s") {
	case "event":
		return &meter.Estimate{Number: n, Per: meter.Events}, nil
	case "byte":
		return &meter.Estimate{Number: n, Per: meter.Bytes}, nil
	}
	return nil, fmt.Errorf("estimate is by event or by byte, not by %q", e.Of)
}

// checkPriceHeader checks the name of a header in which an upstream says what
// an answer costs.
func checkPriceHeader(name string) error {
	if name == "" {
		return nil
	}
	lower := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	taken := []string{"content-type", "content-length", "content-encoding", "transfer-encoding", "trailer", "connection", "cache-control", "set-cookie", "location", "vary", "date"}
	switch {
	case strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return fmt.Errorf("charge header: %q is no name of a header: write it like X-Charge", name)
	case strings.HasPrefix(lower, "x-402-"), strings.HasPrefix(lower, "payment-"), strings.HasPrefix(lower, "x-payment"), slices.Contains(taken, lower):
		return fmt.Errorf("charge header: %s has another meaning: write one of your own, such as X-Charge", name)
	}
	return nil
}

// chargePer names a line of a charge that begins with per, counted from 0, for
// the places of a Caddyfile.
func chargePer(i int) string { return "charge per " + strconv.Itoa(i) }

// parse reads the block that the type describes, and notes where it says what.
func (c *Charge) parse(d *caddyfile.Dispenser, where *places) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch d.Val() {
		case "base":
			if c.Base != "" {
				return d.Err("base is given twice")
			}
			where.note(d, "charge base")
			if c.Base = strings.Join(d.RemainingArgs(), " "); c.Base == "" {
				return d.Err("base needs a price, such as: base $0.0001")
			}
		case "per":
			var r Rate
			where.note(d, chargePer(len(c.Per)))
			err = r.parse(d)
			c.Per = append(c.Per, r)
		case "header":
			err = checked(d, &c.Header, checkPriceHeader)
		default:
			err = unknown(d, "charge", "base", "per", "header")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parse reads one line that begins with per.
func (r *Rate) parse(d *caddyfile.Dispenser) error {
	const how = "write \"per 1000 tokens $0.002 at usage.total_tokens\" or \"per MB $0.01\""
	words := d.RemainingArgs()
	if len(words) > 0 {
		if n, ok := pieces(words[0]); ok {
			r.Number, words = n, words[1:]
		}
	}
	if len(words) < 2 {
		return d.Err(how)
	}
	r.Of, words = words[0], words[1:]
	end := slices.IndexFunc(words, func(w string) bool { return w == "at" || w == "estimate" })
	if end < 0 {
		end = len(words)
	}
	r.Price, words = strings.Join(words[:end], " "), words[end:]
	if len(words) >= 2 && words[0] == "at" {
		r.At, words = words[1], words[2:]
	}
	if len(words) > 0 && words[0] == "estimate" {
		e, ok := parseEstimate(words[1:])
		if !ok {
			return d.Err("write \"estimate <number> per event\" or \"estimate <number> per <number> bytes\"")
		}
		r.Estimate, words = e, nil
	}
	if len(words) > 0 || r.Price == "" {
		return d.Err(how)
	}
	return nil
}

// parseEstimate reads "<number> per [<number>] event|byte".
func parseEstimate(words []string) (*Estimate, bool) {
	e := &Estimate{}
	if len(words) < 3 || len(words) > 4 || words[1] != "per" {
		return nil, false
	}
	var err error
	if e.Number, err = strconv.ParseUint(words[0], 10, 32); err != nil {
		return nil, false
	}
	if len(words) == 4 {
		var ok bool
		if e.Per, ok = pieces(words[2]); !ok {
			return nil, false
		}
	}
	e.Of = strings.TrimSuffix(words[len(words)-1], "s")
	return e, e.Of == "event" || e.Of == "byte"
}

// pieces reads a number that something is counted by.
func pieces(s string) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return n, err == nil && n > 0
}

// covers checks that caps allow one answer that can cost most.
func covers(c ledger.Caps, most payment.Amount) error {
	if c.Total.Cmp(most.Big()) < 0 || c.PerPayer != nil && c.PerPayer.Cmp(most.Big()) < 0 {
		return fmt.Errorf("exposure: it is less than one maximum of %s, so nothing could be handed out", most)
	}
	return nil
}

// checkUpto checks that what a route says about upto fits together.
func (p *Paywall) checkUpto(settle string, offers []payment.Offer) error {
	upto := slices.ContainsFunc(offers, func(o payment.Offer) bool { return o.Scheme == payment.Upto })
	switch {
	case !upto && p.Charge != nil:
		return about("charge", errors.New("charge is for prices that are a maximum: write \"price upto <maximum>\""))
	case !upto && settle == "metered":
		return about("settle", errors.New("settle metered charges for what was delivered: write the price as a maximum with \"price upto <maximum>\", and what is charged in a block \"charge\""))
	case upto && p.Charge == nil:
		return about("price", errors.New("a price upto a maximum needs a block \"charge\" that says what is charged, such as: charge { per MB $0.01 }"))
	case upto && settle == "first":
		return about("settle", errors.New("settle first takes the money before it is known how much: with a price upto a maximum write settle held or metered"))
	case upto && settle == "optimistic":
		return about("settle", errors.New("settle optimistic is for prices that are known: with a price upto a maximum write settle held or metered"))
	}
	return nil
}
