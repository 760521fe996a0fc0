package payment

import (
	"encoding/json"
	"fmt"
	"maps"
	"sort"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/strictjson"
)

// An Offer is one way to pay for a resource.
type Offer struct {
	Scheme Scheme
	Amount Amount // the price, or for upto the maximum; its token says the network
	PayTo  string // recipient in the network's canonical form

	// Timeout is how long the payer's authorization must stay valid, in
	// whole seconds.
	Timeout time.Duration

	// Extra holds members of the wire's "extra" beyond the token's name and
	// version, such as feePayer. Values are JSON.
	Extra map[string]json.RawMessage

	// Until is how final a settlement must be before anything is released
	// for it. It is the seller's own decision and not on the wire.
	Until Finality

	// Resource, Description and MimeType are what v1 repeats in each offer.
	// Sellers leave them empty and set the challenge's instead.
	Resource    string
	Description string
	MimeType    string
}

// Network returns the network the offer is paid on.
func (o *Offer) Network() Network { return o.Amount.token.Network }

// V1 reports whether clients of protocol v1 can pay the offer.
func (o *Offer) V1() bool {
	method, set := o.Extra["assetTransferMethod"]
	return o.Scheme == Exact && o.Network().Legacy() && (!set || string(method) == `"eip3009"`)
}

// ByPermit2 reports whether o is paid by Permit2. upto knows nothing else on EVM
// chains; exact says so.
func (o *Offer) ByPermit2() bool {
	method, set := o.Extra["assetTransferMethod"]
	return set && string(method) == `"permit2"` || !set && o.Scheme == Upto
}

// extra encodes the wire's "extra" with its members in a fixed order.
func (o *Offer) extra() json.RawMessage {
	members := map[string]json.RawMessage{}
	maps.Copy(members, o.Extra)
	if o.Amount.token.Name != "" {
		members["name"] = quote(o.Amount.token.Name)
	}
	if o.Amount.token.Version != "" {
		members["version"] = quote(o.Amount.token.Version)
	}
	if len(members) == 0 {
		return nil
	}
	names := make([]string, 0, len(members))
	for k := range members {
		names = append(names, k)
	}
	sort.Strings(names)
	out := []byte{'{'}
	for i, k := range names {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, quote(k)...), ':'), members[k]...)
	}
	return append(out, '}')
}

// offerV2 and offerV1 are the wire forms of an offer.
type offerV2 struct {
	Scheme            Scheme          `json:"scheme"`
	Network           string          `json:"network"`
	Amount            string          `json:"amount"`
	Asset             string          `json:"asset"`
	PayTo             string          `json:"payTo"`
	MaxTimeoutSeconds int64           `json:"maxTimeoutSeconds"`
	Extra             json.RawMessage `json:"extra,omitempty"`
}

type offerV1 struct {
	Scheme            Scheme          `json:"scheme"`
	Network           string          `json:"network"`
	MaxAmountRequired string          `json:"maxAmountRequired"`
	Resource          string          `json:"resource"`
	Description       string          `json:"description"`
	MimeType          string          `json:"mimeType"`
	PayTo             string          `json:"payTo"`
	MaxTimeoutSeconds int64           `json:"maxTimeoutSeconds"`
	Asset             string          `json:"asset"`
	Extra             json.RawMessage `json:"extra,omitempty"`
}

func (o *Offer) v2() offerV2 {
	return offerV2{o.Scheme, string(o.Network()), o.Amount.Units(), o.Amount.token.Address, o.PayTo, int64(o.Timeout / time.Second), o.extra()}
}

func (o *Offer) v1() offerV1 {
	return offerV1{
		o.Scheme, o.Network().In(V1), o.Amount.Units(), o.Resource, o.Description, o.MimeType, o.PayTo,
		int64(o.Timeout / time.Second), o.Amount.token.Address, o.extra(),
	}
}

// Encode returns the offer as v2 challenges have it.
func (o *Offer) Encode() json.RawMessage { return encode(o.v2()) }

// maxTimeout bounds what the wire may ask for: ten years, in seconds.
const maxTimeout = 10 * 366 * 24 * 3600

var offerMembers = []string{"scheme", "network", "amount", "maxAmountRequired", "asset", "payTo", "maxTimeoutSeconds", "extra", "resource", "description", "mimeType"}

// decodeOffer reads one offer in the form of the given version. The token it
// returns has no symbol or decimals: those are not on the wire.
func decodeOffer(version int, o strictjson.Object) (*Offer, error) {
	if err := o.Known(offerMembers...); err != nil {
		return nil, err
	}
	amountName := "amount"
	if version == V1 {
		amountName = "maxAmountRequired"
	}
	var offer Offer
	scheme, err := o.Text("scheme")
	if err != nil {
		return nil, err
	}
	offer.Scheme = Scheme(scheme)
	token := Token{}
	if token.Network, err = networkMember(o); err != nil {
		return nil, err
	}
	if token.Address, err = addressMember(o, "asset", token.Network); err != nil {
		return nil, err
	}
	if offer.PayTo, err = addressMember(o, "payTo", token.Network); err != nil {
		return nil, err
	}
	seconds := 0
	if version == V1 || o.Has("maxTimeoutSeconds") {
		if seconds, err = o.Integer("maxTimeoutSeconds", maxTimeout); err != nil {
			return nil, err
		}
	}
	offer.Timeout = time.Duration(seconds) * time.Second
	extra, ok, err := o.OptionalObject("extra")
	if err != nil {
		return nil, err
	}
	if ok {
		if err := extra.Known("name", "version", "assetTransferMethod", "paymentFlow", "feePayer", "facilitatorAddress", "quote"); err != nil {
			return nil, err
		}
		for _, name := range extra.Names() {
			value, present := extra.Value(name)
			if !present {
				continue
			}
			switch name {
			case "name", "version":
				// A value that is not a string cannot be a domain member;
				// it stays in Extra, where it contradicts every token.
				if s, _, err := extra.OptionalText(name); err == nil {
					if name == "name" {
						token.Name = s
					} else {
						token.Version = s
					}
					continue
				}
			}
			if offer.Extra == nil {
				offer.Extra = map[string]json.RawMessage{}
			}
			offer.Extra[name] = value
		}
	}
	units, err := o.Text(amountName)
	if err != nil {
		return nil, err
	}
	if offer.Amount, err = ParseUnits(units, token); err != nil {
		return nil, o.Wrong(amountName, err.Error())
	}
	if version == V1 {
		for _, m := range []struct {
			name string
			to   *string
		}{{"resource", &offer.Resource}, {"description", &offer.Description}, {"mimeType", &offer.MimeType}} {
			if *m.to, _, err = o.OptionalText(m.name); err != nil {
				return nil, err
			}
		}
	}
	return &offer, nil
}

func networkMember(o strictjson.Object) (Network, error) {
	s, err := o.Text("network")
	if err != nil {
		return "", err
	}
	n, err := ParseNetwork(s)
	if err != nil {
		return "", o.Wrong("network", "is no network name that is known here, nor CAIP-2")
	}
	return n, nil
}

func addressMember(o strictjson.Object, name string, n Network) (string, error) {
	s, err := o.Text(name)
	if err != nil {
		return "", err
	}
	a, err := CanonicalAddress(n, s)
	if err != nil {
		return "", o.Wrong(name, err.Error())
	}
	return a, nil
}

// An Accepted is the offer that a v2 payment says it accepted.
type Accepted struct {
	Offer
}

// Match returns the offer that p pays, or nil when p pays none of them.
//
// A v2 payment names its offer: scheme, network, amount, asset and recipient
// must be the same after putting addresses into canonical form, and no member
// of the offer's "extra" may be contradicted. Servers in the field compare
// more (the TypeScript SDK) or less (the Go SDK); clients that copy the offer,
// as the specification asks, match under each of these rules. A v1 payment
// names scheme and network only, so the first such offer is taken.
func Match(p *Payment, offers []Offer) *Offer {
	for i := range offers {
		o := &offers[i]
		if p.Scheme != o.Scheme || p.Network != o.Network() {
			continue
		}
		if p.Version == V1 {
			if o.V1() {
				return o
			}
			continue
		}
		a := p.Accepted
		if a != nil && a.PayTo == o.PayTo && a.Amount.token.Is(o.Amount.token) && a.Amount.Cmp(o.Amount) == 0 && !a.contradicts(o) {
			return o
		}
	}
	return nil
}

// contradicts reports whether a says something else than o about a member of
// "extra" that o declares.
func (a *Accepted) contradicts(o *Offer) bool {
	ours, theirs := o.Amount.token, a.Amount.token
	if theirs.Name != "" && theirs.Name != ours.Name || theirs.Version != "" && theirs.Version != ours.Version {
		return true
	}
	for name, value := range a.Extra {
		if name == "name" || name == "version" {
			return true // not a string, see decodeOffer
		}
		if own, ok := o.Extra[name]; ok && compact(own) != compact(value) {
			return true
		}
		// What the seller did not declare is the payer's own business,
		// except for members that change how the money moves.
		if _, ok := o.Extra[name]; !ok && (name == "paymentFlow" || name == "assetTransferMethod" && string(value) != `"eip3009"`) {
			return true
		}
	}
	return false
}

// compact returns JSON in a comparable form: members sorted, blanks removed.
func compact(raw json.RawMessage) string {
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return string(raw)
	}
	out, err := json.Marshal(v)
	if err != nil {
		return string(raw)
	}
	return string(out)
}

// Check reports what keeps a seller's own offer from being served.
func (o *Offer) Check() error {
	switch {
	case o.Scheme == "":
		return fmt.Errorf("offer has no scheme")
	case o.Amount.Zero():
		return fmt.Errorf("offer has no price")
	case o.PayTo == "":
		return fmt.Errorf("offer has no recipient: add pay_to")
	case o.Timeout < time.Second || o.Timeout%time.Second != 0:
		return fmt.Errorf("offer has timeout %s: it must be at least 1s and in whole seconds", o.Timeout)
	}
	for name, value := range o.Extra {
		if !json.Valid(value) {
			return fmt.Errorf("offer has extra %q, whose value is not JSON", name)
		}
	}
	return nil
}
