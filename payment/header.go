package payment

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"

	"github.com/tollgate402/tollgate/internal/strictjson"
)

// HTTP headers of the protocol.
const (
	HeaderRequired   = "Payment-Required"   // v2, on 402: the challenge
	HeaderPayment    = "Payment-Signature"  // v2, request: the payment
	HeaderResponse   = "Payment-Response"   // v2, response: the settlement
	HeaderPaymentV1  = "X-Payment"          // v1, request
	HeaderResponseV1 = "X-Payment-Response" // v1, response
)

// maxVersion bounds the version numbers that are read before they are judged.
const maxVersion = 1 << 20

// MaxHeader is the largest payment header that is read, in bytes as sent.
const MaxHeader = 16 << 10

// FromHeader decodes the one payment header of a request: values are those of
// PAYMENT-SIGNATURE and of X-PAYMENT. It returns nil without an error when
// there is neither. More than one value, or both headers, are contradictory
// and refused: two programs could pick different ones.
func FromHeader(v2, v1 []string) (*Payment, error) {
	switch {
	case len(v2)+len(v1) == 0:
		return nil, nil
	case len(v2) > 0 && len(v1) > 0:
		return nil, malformed("PAYMENT-SIGNATURE", errors.New("comes together with X-PAYMENT: send one of them"))
	case len(v2) > 1:
		return nil, malformed("PAYMENT-SIGNATURE", errors.New("is given more than once"))
	case len(v1) > 1:
		return nil, malformed("X-PAYMENT", errors.New("is given more than once"))
	case len(v2) == 1:
		return decodeHeader("PAYMENT-SIGNATURE", v2[0], V2)
	}
	return decodeHeader("X-PAYMENT", v1[0], V1)
}

func decodeHeader(name, value string, version int) (*Payment, error) {
	if len(value) > MaxHeader {
		return nil, malformed(name, errors.New("is longer than 16 KiB"))
	}
	raw, err := decodeBase64(value)
	if err != nil {
		return nil, malformed(name, err)
	}
	o, err := strictjson.Parse(raw, "", MaxHeader)
	if err != nil {
		return nil, malformed(name, err)
	}
	p, err := decodePayment(o)
	if err != nil {
		return nil, malformed(name, err)
	}
	if p.Version != version {
		other := "X-PAYMENT"
		if version == V1 {
			other = "PAYMENT-SIGNATURE"
		}
		return nil, Malformed(name, "x402Version", "does not fit this header: send the payment in "+other)
	}
	return p, nil
}

// decodeBase64 reads standard or URL-safe base64, padded or not. It refuses
// what decoders disagree about: blanks, line ends, both alphabets in one
// text, wrong padding and non-zero trailing bits.
func decodeBase64(s string) ([]byte, error) {
	text := strings.TrimRight(s, "=")
	if pad := len(s) - len(text); pad > 0 && (len(s)%4 != 0 || pad > 2) {
		return nil, errors.New("is not base64: its padding is wrong")
	}
	encoding := base64.RawStdEncoding.Strict()
	if strings.IndexByte(text, '-') >= 0 || strings.IndexByte(text, '_') >= 0 {
		encoding = base64.RawURLEncoding.Strict()
	}
	// encoding/base64 skips line ends; nothing else here may.
	if strings.IndexByte(text, '\r') >= 0 || strings.IndexByte(text, '\n') >= 0 {
		return nil, errors.New("is not base64: it holds line ends")
	}
	raw, err := encoding.DecodeString(text)
	if err != nil || len(raw) == 0 {
		return nil, errors.New("is not base64")
	}
	return raw, nil
}

// encodeHeader writes JSON as the value of a payment header.
func encodeHeader(doc []byte) string { return base64.StdEncoding.EncodeToString(doc) }

// decodePayment reads a payment object of either version.
func decodePayment(o strictjson.Object) (*Payment, error) {
	if err := o.Known("x402Version", "scheme", "network", "payload", "accepted", "resource", "extensions"); err != nil {
		return nil, err
	}
	version, err := o.Integer("x402Version", maxVersion)
	if err != nil {
		return nil, err
	}
	p := &Payment{Version: version, raw: o.Raw()}
	switch version {
	case V1:
		scheme, err := o.Text("scheme")
		if err != nil {
			return nil, err
		}
		p.Scheme = Scheme(scheme)
		if p.Network, err = networkMember(o); err != nil {
			return nil, err
		}
	case V2:
		accepted, err := o.Object("accepted")
		if err != nil {
			return nil, err
		}
		offer, err := decodeOffer(V2, accepted)
		if err != nil {
			return nil, err
		}
		p.Accepted = &Accepted{*offer}
		p.Scheme, p.Network = offer.Scheme, offer.Network()
		if p.Resource, err = optionalRaw(o, "resource"); err != nil {
			return nil, err
		}
		if p.Extensions, err = optionalRaw(o, "extensions"); err != nil {
			return nil, err
		}
	default:
		return nil, o.Wrong("x402Version", "must be 1 or 2")
	}
	payload, err := o.Object("payload")
	if err != nil {
		return nil, err
	}
	p.Payload = payload.Raw()
	return p, nil
}

func optionalRaw(o strictjson.Object, name string) (json.RawMessage, error) {
	sub, ok, err := o.OptionalObject(name)
	if err != nil || !ok {
		return nil, err
	}
	return sub.Raw(), nil
}

// DecodePayment reads a payment object of either version, as headers and
// facilitator requests carry it.
func DecodePayment(doc []byte) (*Payment, error) {
	o, err := strictjson.Parse(doc, "", MaxHeader)
	if err != nil {
		return nil, malformed("payment", err)
	}
	p, err := decodePayment(o)
	if err != nil {
		return nil, malformed("payment", err)
	}
	return p, nil
}

// A PaymentDraft is what a payer fills in to pay: the chosen offer as it was
// received and the signed payload.
type PaymentDraft struct {
	Version    int
	Scheme     Scheme          // v1
	Network    string          // v1, as the offer spelled it
	Accepted   json.RawMessage // v2, the offer exactly as received
	Resource   json.RawMessage // v2, echoed
	Extensions json.RawMessage // v2, echoed
	Payload    json.RawMessage
}

// Header returns the name and value of the request header that carries the
// payment.
func (d *PaymentDraft) Header() (name, value string) {
	if d.Version == V1 {
		return HeaderPaymentV1, encodeHeader(encode(struct {
			Version int             `json:"x402Version"`
			Scheme  Scheme          `json:"scheme"`
			Network string          `json:"network"`
			Payload json.RawMessage `json:"payload"`
		}{V1, d.Scheme, d.Network, d.Payload}))
	}
	return HeaderPayment, encodeHeader(encode(struct {
		Version    int             `json:"x402Version"`
		Resource   json.RawMessage `json:"resource,omitempty"`
		Accepted   json.RawMessage `json:"accepted"`
		Payload    json.RawMessage `json:"payload"`
		Extensions json.RawMessage `json:"extensions,omitempty"`
	}{V2, d.Resource, d.Accepted, d.Payload, d.Extensions}))
}
