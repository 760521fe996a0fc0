package payment

import (
	"bytes"
	"encoding/json"
	"errors"
	"time"

	"github.com/tollgate402/tollgate/internal/strictjson"
)

// A Challenge is the 402 response: what is sold and the ways to pay for it.
type Challenge struct {
	Description string
	MimeType    string
	Offers      []Offer
	Extensions  json.RawMessage // v2 only, a JSON object with members; may be empty
}

// A Prepared is a challenge of which everything is encoded but the URL of the
// resource and the error, so that it can be served many times a second. It is
// immutable and safe for concurrent use.
type Prepared struct {
	beforeURL, afterURL []byte   // v2, around the resource's URL
	extended            bool     // the last thing in afterURL is the extensions
	v1                  [][]byte // v1, each offer up to its resource; empty if v1 clients can pay none
}

// Prepare encodes c. It fails when an offer cannot be served, see Offer.Check,
// or when the extensions are no JSON object.
func (c *Challenge) Prepare() (*Prepared, error) {
	if len(c.Offers) == 0 {
		return nil, errors.New("challenge has no offers")
	}
	v2 := make([]offerV2, 0, len(c.Offers))
	p := &Prepared{}
	for i := range c.Offers {
		o := c.Offers[i]
		if err := o.Check(); err != nil {
			return nil, err
		}
		v2 = append(v2, o.v2())
		if !o.V1() {
			continue
		}
		// v1 repeats description and MIME type in every offer. Both must be
		// there, or legacy clients refuse the whole challenge.
		o.Description, o.MimeType = c.Description, c.MimeType
		w := o.v1()
		doc := encode(struct {
			offerV1
			Resource *string `json:"resource,omitempty"` // hides offerV1's, which comes last here
		}{offerV1: w})
		p.v1 = append(p.v1, append(doc[:len(doc)-1], `,"resource":`...))
	}
	p.beforeURL = []byte(`,"resource":{"url":`)
	p.afterURL = append(p.afterURL, `,"description":`...)
	p.afterURL = append(p.afterURL, quote(c.Description)...)
	p.afterURL = append(p.afterURL, `,"mimeType":`...)
	p.afterURL = append(p.afterURL, quote(c.MimeType)...)
	p.afterURL = append(p.afterURL, `},"accepts":`...)
	p.afterURL = append(p.afterURL, encode(v2)...)
	if len(c.Extensions) > 0 {
		own, err := strictjson.Parse(c.Extensions, "extensions", MaxChallenge)
		if err != nil {
			return nil, err
		}
		if len(own.Names()) == 0 {
			return nil, errors.New("extensions: is an object without members: leave it out")
		}
		p.afterURL = append(append(p.afterURL, `,"extensions":`...), own.Raw()...)
		p.extended = true
	}
	p.afterURL = append(p.afterURL, '}')
	return p, nil
}

// V2 returns the value of the PAYMENT-REQUIRED header for the resource at url.
func (p *Prepared) V2(url string, reason Reason) string {
	return encodeHeader(p.v2(url, reason, 0))
}

// V2Extended is V2 with more extensions, a JSON object with at least one
// member, that are of this one challenge. None of them may be among the
// challenge's own.
func (p *Prepared) V2Extended(url string, reason Reason, more json.RawMessage) string {
	doc := p.v2(url, reason, len(more)+16)
	doc = bytes.TrimSuffix(doc, []byte("}"))
	if p.extended {
		doc = bytes.TrimSuffix(doc, []byte("}"))
		doc = append(append(doc, ','), more[1:]...)
	} else {
		doc = append(append(doc, `,"extensions":`...), more...)
	}
	return encodeHeader(append(doc, '}'))
}

// v2 returns the challenge as JSON, with room for more bytes.
func (p *Prepared) v2(url string, reason Reason, room int) []byte {
	doc := make([]byte, 0, 64+len(url)+len(p.beforeURL)+len(p.afterURL)+len(reason)+room)
	doc = append(doc, `{"x402Version":2,"error":`...)
	doc = appendQuoted(doc, string(reason))
	doc = append(doc, p.beforeURL...)
	doc = appendQuoted(doc, url)
	return append(doc, p.afterURL...)
}

// ResourceOf returns the resource of a v2 challenge, which payments repeat.
func ResourceOf(url, description, mimeType string) json.RawMessage {
	return encode(struct {
		URL         string `json:"url"`
		Description string `json:"description"`
		MimeType    string `json:"mimeType"`
	}{url, description, mimeType})
}

// V1 returns the body of the 402 response for the resource at url. Without an
// offer that v1 clients can pay it is an empty object, because legacy clients
// cannot read an empty list.
func (p *Prepared) V1(url string, reason Reason) []byte {
	if len(p.v1) == 0 {
		return []byte("{}")
	}
	if reason == PaymentRequired {
		reason = "X-PAYMENT header is required"
	}
	size := 64 + len(reason)
	for _, o := range p.v1 {
		size += len(o) + len(url) + 8
	}
	doc := make([]byte, 0, size)
	doc = append(doc, `{"x402Version":1,"error":`...)
	doc = appendQuoted(doc, string(reason))
	doc = append(doc, `,"accepts":[`...)
	for i, o := range p.v1 {
		if i > 0 {
			doc = append(doc, ',')
		}
		doc = append(doc, o...)
		doc = appendQuoted(doc, url)
		doc = append(doc, '}')
	}
	return append(doc, ']', '}')
}

// encode marshals a value of a type that cannot fail to marshal, without
// escaping for HTML.
func encode[T any](v T) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("payment: encoding wire JSON: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func quote(s string) json.RawMessage { return encode(s) }

// appendQuoted appends s as a JSON string, quickly where nothing in it needs
// an escape.
func appendQuoted(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			return append(dst, quote(s)...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// A Received is a challenge as a payer got it.
type Received struct {
	Version    int
	Error      string
	Resource   json.RawMessage // v2, to be echoed
	Extensions json.RawMessage // v2, to be echoed
	Offers     []ReceivedOffer
}

// A ReceivedOffer is an offer together with its text, which the payer must
// echo unchanged.
type ReceivedOffer struct {
	Offer
	Raw     json.RawMessage
	Network string // as the offer spelled it
}

// MaxChallenge is the largest challenge that is read, in bytes.
const MaxChallenge = 64 << 10

// DecodeRequired reads the value of a PAYMENT-REQUIRED header.
func DecodeRequired(value string) (*Received, error) {
	const what = "PAYMENT-REQUIRED"
	if len(value) > MaxChallenge {
		return nil, malformed(what, errors.New("is longer than 64 KiB"))
	}
	raw, err := decodeBase64(value)
	if err != nil {
		return nil, malformed(what, err)
	}
	return decodeChallenge(what, raw, V2)
}

// DecodeRequiredBody reads the body of a v1 402 response.
func DecodeRequiredBody(body []byte) (*Received, error) {
	return decodeChallenge("402 body", body, V1)
}

func decodeChallenge(what string, raw []byte, version int) (*Received, error) {
	o, err := strictjson.Parse(raw, "", MaxChallenge)
	if err != nil {
		return nil, malformed(what, err)
	}
	got, err := o.Integer("x402Version", maxVersion)
	if err != nil {
		return nil, malformed(what, err)
	}
	if got != version {
		return nil, Malformed(what, "x402Version", "is not the version that belongs here")
	}
	r := &Received{Version: version}
	if r.Error, _, err = o.OptionalText("error"); err != nil {
		return nil, malformed(what, err)
	}
	if r.Resource, err = optionalRaw(o, "resource"); err != nil {
		return nil, malformed(what, err)
	}
	if r.Extensions, err = optionalRaw(o, "extensions"); err != nil {
		return nil, malformed(what, err)
	}
	list, err := o.Objects("accepts", 64)
	if err != nil {
		return nil, malformed(what, err)
	}
	for _, e := range list {
		// An offer that cannot be read may be of a kind that is not known
		// here; it is no reason to refuse the others.
		offer, err := decodeOffer(version, e)
		if err != nil {
			continue
		}
		spelled, _ := e.Text("network")
		r.Offers = append(r.Offers, ReceivedOffer{Offer: *offer, Raw: e.Raw(), Network: spelled})
	}
	return r, nil
}

// Pay returns the draft of a payment for o.
func (r *Received) Pay(o *ReceivedOffer, payload json.RawMessage) *PaymentDraft {
	return &PaymentDraft{
		Version: r.Version, Scheme: o.Scheme, Network: o.Network, Accepted: o.Raw,
		Resource: r.Resource, Extensions: r.Extensions, Payload: payload,
	}
}

// DefaultTimeout is how long a payer's authorization must stay valid where
// the seller does not say.
const DefaultTimeout = 60 * time.Second
