package caddymodule

import (
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// UntilStep says how final settlements of some amounts must be. The steps of a
// list are read from the first one on, and the first one that fits counts.
type UntilStep struct {
	// It fits amounts below this one, such as "$1" or "100 USDC". The last
	// step has none and fits all.
	Under string `json:"under,omitempty"`

	// "submitted", "included", a number of blocks, "safe" or "finalized".
	Until string `json:"until"`
}

// Exposure bounds what is handed out before its money has moved.
type Exposure struct {
	// The most that may be open at one time, such as "$100". A price of
	// another token is an error.
	Total string `json:"total"`

	// The most that may be open of one payer. Default: the total.
	PerPayer string `json:"per_payer,omitempty"`
}

// in returns the caps in atomic units of a token.
func (e *Exposure) in(t payment.Token) (ledger.Caps, error) {
	total, err := payment.ParsePrice(e.Total, t)
	if err != nil {
		return ledger.Caps{}, fmt.Errorf("exposure: %w", err)
	}
	caps := ledger.Caps{Total: total.Big()}
	if e.PerPayer == "" {
		return caps, nil
	}
	perPayer, err := payment.ParsePrice(e.PerPayer, t)
	if err != nil {
		return ledger.Caps{}, fmt.Errorf("exposure per_payer: %w", err)
	}
	if perPayer.Big().Cmp(caps.Total) > 0 {
		return ledger.Caps{}, errors.New("exposure: per_payer is more than the total")
	}
	caps.PerPayer = perPayer.Big()
	return caps, nil
}

// A Quorum says for which payments the word of one node is not enough.
type Quorum struct {
	// How many nodes must show the same before a payment counts as settled
	// or as dead: at least 2.
	Nodes int `json:"nodes"`

	// The price from which on that is asked for, such as "100 USDC" or
	// "$100". Default: every price.
	Above string `json:"above,omitempty"`
}

// in returns the quorum with its price in atomic units of some tokens.
func (q *Quorum) in(tokens []payment.Token) (settle.Quorum, error) {
	if q.Nodes < 2 {
		return settle.Quorum{}, errors.New("quorum: at least 2 nodes make one")
	}
	s := settle.Quorum{Nodes: q.Nodes, Above: map[common.Address]*big.Int{}}
	for _, t := range tokens {
		if q.Above == "" {
			s.Above[common.HexToAddress(t.Address)] = new(big.Int)
			continue
		}
		above, err := payment.ParsePrice(q.Above, t)
		if err != nil {
			return settle.Quorum{}, fmt.Errorf("quorum above: %w", err)
		}
		s.Above[common.HexToAddress(t.Address)] = above.Big()
	}
	return s, nil
}

// parse reads "<nodes> [above <price>]".
func (q *Quorum) parse(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 1 && (len(args) != 3 || args[1] != "above") {
		return d.Err("quorum: write how many nodes must agree, such as 2, and from which price on, such as: quorum 2 above $100")
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 2 {
		return d.Errf("quorum: %q is no number of nodes that is at least 2", args[0])
	}
	q.Nodes = n
	if len(args) == 3 {
		q.Above = args[2]
	}
	return nil
}

// until reads a setting of until; empty is included.
func until(s string) (payment.Finality, error) {
	if s == "" {
		return payment.Included, nil
	}
	f, err := payment.ParseFinality(s)
	if err != nil {
		return f, fmt.Errorf("until: %w", err)
	}
	return f, nil
}

// checkUntil checks what can be checked of until without an amount.
func checkUntil(always string, steps []UntilStep) error {
	if always != "" && len(steps) > 0 {
		return errors.New("until and until_by_amount exclude each other")
	}
	if _, err := until(always); err != nil {
		return err
	}
	for i, s := range steps {
		last := i == len(steps)-1
		switch {
		case s.Until == "":
			return errors.New("until: a step says nothing: write submitted, included, a number of blocks, safe or finalized")
		case s.Under == "" && !last:
			return errors.New("until: only the last step fits all amounts")
		case s.Under != "" && last:
			return errors.New("until: nothing is said of the other amounts: add \"otherwise finalized\"")
		}
		if _, err := until(s.Until); err != nil {
			return err
		}
	}
	return nil
}

// finality returns how final a settlement of an amount must be.
func finality(always string, steps []UntilStep, amount payment.Amount) (payment.Finality, error) {
	if len(steps) == 0 {
		return until(always)
	}
	chosen, below := "", payment.Amount{}
	for i, s := range steps {
		if s.Under == "" {
			if chosen == "" {
				chosen = s.Until
			}
			break
		}
		under, err := payment.ParsePrice(s.Under, amount.Token())
		if err != nil {
			return payment.Finality{}, fmt.Errorf("until under %s: %w", s.Under, err)
		}
		if i > 0 && under.Big().Cmp(below.Big()) <= 0 {
			return payment.Finality{}, fmt.Errorf("until under %s comes after a larger amount and never counts: write the smallest amount first", s.Under)
		}
		if below = under; chosen == "" && amount.Big().Cmp(under.Big()) < 0 {
			chosen = s.Until
		}
	}
	return until(chosen)
}

// A settingError is about one setting of a route.
type settingError struct {
	offer   int // counted from 0, where there are several
	setting string
	err     error
}

func (e *settingError) Error() string { return e.err.Error() }
func (e *settingError) Unwrap() error { return e.err }

// about says which setting an error is about; nil stays nil.
func about(setting string, err error) error {
	if err == nil {
		return nil
	}
	return &settingError{setting: setting, err: err}
}

func settingOf(err error) string {
	if s, ok := errors.AsType[*settingError](err); ok {
		return s.setting
	}
	return ""
}

// places are where a Caddyfile has the settings, by name.
type places map[string]caddyfile.Token

func (p *places) note(d *caddyfile.Dispenser, setting string) {
	if *p == nil {
		*p = places{}
	}
	(*p)[setting] = d.Token()
}

// wrap adds the place of a token to an error, as Caddy does.
func wrap(at caddyfile.Token, err error) error {
	d := caddyfile.NewDispenser([]caddyfile.Token{at})
	d.Next()
	return d.WrapErr(err)
}

// parseUntil reads one of
//
//	until <finality>
//	until {
//		under <amount> <finality>
//		otherwise <finality>
//	}
func parseUntil(d *caddyfile.Dispenser, always *string, steps *[]UntilStep) error {
	if *always != "" || len(*steps) > 0 {
		return d.Err("until is given twice")
	}
	if d.CountRemainingArgs() > 0 {
		return checked(d, always, func(s string) error { _, err := until(s); return err })
	}
	at := d.Token()
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name, args := d.Val(), d.RemainingArgs()
		step := UntilStep{}
		switch {
		case name == "under" && len(args) >= 2:
			step.Under = strings.Join(args[:len(args)-1], " ")
		case name == "otherwise" && len(args) == 1:
		case name == "under" || name == "otherwise":
			return d.Errf("write \"under <amount> <finality>\", such as \"under 100 USDC included\", and at the end \"otherwise <finality>\"")
		default:
			return d.Errf("until has no setting %q: it has under, otherwise", name)
		}
		step.Until = args[len(args)-1]
		if _, err := until(step.Until); err != nil {
			return d.WrapErr(err)
		}
		if n := len(*steps); n > 0 && (*steps)[n-1].Under == "" {
			return d.Errf("nothing can follow otherwise: it fits all amounts")
		}
		*steps = append(*steps, step)
	}
	if len(*steps) == 0 {
		return wrap(at, errors.New("until needs a value: write submitted, included, a number of blocks, safe or finalized, or steps by amount in a block"))
	}
	if err := checkUntil("", *steps); err != nil {
		return wrap(at, err)
	}
	return nil
}

// parseExposure reads "exposure <total> [per_payer <amount>]". Amounts may be
// of two words, such as 100 USDC.
func parseExposure(d *caddyfile.Dispenser, to **Exposure) error {
	if *to != nil {
		return d.Err("exposure is given twice")
	}
	e := &Exposure{}
	words := &e.Total
	for _, word := range d.RemainingArgs() {
		if word == "per_payer" && words == &e.Total {
			words = &e.PerPayer
			continue
		}
		*words = strings.TrimSpace(*words + " " + word)
	}
	if e.Total == "" || words == &e.PerPayer && e.PerPayer == "" {
		return d.Err("write \"exposure <total> per_payer <amount>\", such as \"exposure $100 per_payer $1\"")
	}
	*to = e
	return nil
}
