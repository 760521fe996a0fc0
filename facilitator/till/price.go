package till

import (
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// nothing is a charge of zero, as the ledger has it.
const nothing = "0"

// overrides is the header in which the services of the reference say what an
// answer costs. It never reaches a payer of a metered answer.
const overrides = "Settlement-Overrides"

// charged returns what a payment is charged, as the ledger has it.
func charged(r *ledger.Record, o *payment.Offer) (payment.Amount, error) {
	charge, err := payment.ParseUnits(r.Charge, o.Amount.Token())
	if err != nil {
		return charge, fmt.Errorf("till: the stored charge of payment %s %w", r.Key, err)
	}
	return charge, nil
}

// pricing reports whether an upstream says by a header what an answer costs,
// in any spelling that a server may take for it.
func pricing(t *meter.Tariff, name string) bool {
	plain := strings.ReplaceAll(name, "_", "-")
	return strings.EqualFold(plain, overrides) || t.Header != "" && strings.EqualFold(plain, strings.ReplaceAll(t.Header, "_", "-"))
}

// unprice removes from headers or trailers what says what an answer costs.
func (v *visit) unprice(h http.Header) {
	if v.tariff == nil {
		return
	}
	for name := range h {
		if pricing(v.tariff, strings.TrimPrefix(name, http.TrailerPrefix)) {
			delete(h, name)
		}
	}
}

// unpriced is unprice for an answer.
func (v *visit) unpriced(a *answer) *answer {
	v.unprice(a.Header)
	v.unprice(a.Trailer)
	return a
}

// tap returns what counts an answer with such a header, or nil where nothing
// is counted.
func (v *visit) tap(h http.Header) *meter.Tap {
	if v.tariff == nil {
		return nil
	}
	tap := v.tariff.NewTap(h)
	v.listen(tap, h)
	return tap
}

// listen notes what the upstream says in headers or trailers that the answer
// costs. What cannot be read, or is more than the maximum, is logged and does
// not count: then the rest of the tariff does, and never the maximum for that
// reason.
func (v *visit) listen(tap *meter.Tap, h http.Header) {
	if v.tariff.Header == "" {
		return
	}
	name := http.CanonicalHeaderKey(v.tariff.Header)
	values := h[name]
	if len(values) == 0 {
		values = h[http.TrailerPrefix+name]
	}
	switch len(values) {
	case 0:
		return
	case 1:
	default:
		v.log().Error("what the upstream says that its answer costs is not charged: it says it more than once", "payment", v.sale.Payment, "header", name)
		return
	}
	said, err := meter.ParseSaid(values[0], v.offer.Amount)
	if err != nil {
		v.log().Error("what the upstream says that its answer costs is not charged", "payment", v.sale.Payment, "header", name, "value", values[0][:min(len(values[0]), 80)], "error", err)
		return
	}
	tap.Say(said)
}

// price decides what an answer that is held costs, and notes that in the
// record that is to be stored.
func (v *visit) assess(r *ledger.Record, kept *heldWriter, a *answer, took time.Duration) {
	tap := kept.counter()
	if tap == nil {
		return
	}
	v.listen(tap, a.Trailer)
	v.unpriced(a)
	usage := tap.Usage()
	r.Charge = v.cost(tap, &usage, took).String()
}

// cost returns what a usage that a tap has counted costs, in atomic units.
func (v *visit) cost(tap *meter.Tap, usage *meter.Usage, took time.Duration) *big.Int {
	if problem := tap.Problem(); problem != "" {
		v.log().Warn("not everything of an answer could be counted", "payment", v.sale.Payment, "problem", problem)
	}
	if usage.Said == nil && v.tariff.Base == nil && len(v.tariff.Rates) == 0 {
		v.log().Error("nothing is charged: the upstream has not said what its answer costs, and the tariff has nothing else", "payment", v.sale.Payment, "header", v.tariff.Header)
	}
	return v.tariff.Charge(usage, took, v.offer.Amount.Big())
}
