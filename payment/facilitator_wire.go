package payment

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/tollgate402/tollgate/internal/strictjson"
)

// MaxBody is the largest facilitator request or response that is read, in
// bytes.
const MaxBody = 64 << 10

// DecodeRequest reads the body of a facilitator's /verify or /settle: the
// payment and the offer it is to be held against.
func DecodeRequest(body []byte) (*Payment, *Offer, error) {
	const what = "request"
	o, err := strictjson.Parse(body, "", MaxBody)
	if err != nil {
		return nil, nil, malformed(what, err)
	}
	if err := o.Known("x402Version", "paymentPayload", "paymentRequirements"); err != nil {
		return nil, nil, malformed(what, err)
	}
	raw, err := o.Object("paymentPayload")
	if err != nil {
		return nil, nil, malformed(what, err)
	}
	p, err := decodePayment(raw)
	if err != nil {
		return nil, nil, malformed(what, err)
	}
	if o.Has("x402Version") {
		version, err := o.Integer("x402Version", maxVersion)
		if err != nil {
			return nil, nil, malformed(what, err)
		}
		if version != p.Version {
			return nil, nil, Malformed(what, "x402Version", "differs from paymentPayload.x402Version")
		}
	}
	requirements, err := o.Object("paymentRequirements")
	if err != nil {
		return nil, nil, malformed(what, err)
	}
	offer, err := decodeOffer(p.Version, requirements)
	if err != nil {
		return nil, nil, malformed(what, err)
	}
	return p, offer, nil
}

// EncodeRequest writes the body of a facilitator's /verify or /settle. charge
// takes the place of the offer's amount; for /verify it is the offer's. What
// would be longer than DecodeRequest reads is a *MalformedError.
func EncodeRequest(p *Payment, o *Offer, charge Amount) ([]byte, error) {
	if len(p.raw) == 0 {
		return nil, errors.New("payment: a payment that was not decoded cannot be forwarded")
	}
	charged := *o
	charged.Amount = charge
	var requirements []byte
	if p.Version == V1 {
		requirements = encode(charged.v1())
	} else {
		requirements = encode(charged.v2())
	}
	doc := make([]byte, 0, len(p.raw)+len(requirements)+64)
	doc = append(doc, `{"x402Version":`...)
	doc = strconv.AppendInt(doc, int64(p.Version), 10)
	doc = append(doc, `,"paymentPayload":`...)
	doc = append(doc, p.raw...)
	doc = append(doc, `,"paymentRequirements":`...)
	doc = append(doc, requirements...)
	if doc = append(doc, '}'); len(doc) > MaxBody {
		return nil, Malformed("request", "", fmt.Sprintf("has %d bytes with the offer, the most is %d", len(doc), MaxBody))
	}
	return doc, nil
}

type verifyResponse struct {
	IsValid        bool   `json:"isValid"`
	InvalidReason  Reason `json:"invalidReason,omitempty"`
	InvalidMessage string `json:"invalidMessage,omitempty"`
	Payer          string `json:"payer,omitempty"`
}

// EncodeVerification writes the answer of /verify.
func EncodeVerification(v *Verification) []byte {
	return encode(verifyResponse{IsValid: true, Payer: v.Payer})
}

// EncodeInvalid writes the answer of /verify for a payment that is not good.
func EncodeInvalid(e *InvalidError) []byte {
	return encode(verifyResponse{InvalidReason: e.Reason, InvalidMessage: truncate(e.Message), Payer: e.Payer})
}

// DecodeVerification reads the answer of a facilitator's /verify. It returns
// the verification, an *InvalidError, or another error when the body is no
// such answer.
func DecodeVerification(body []byte) (*Verification, error) {
	o, err := strictjson.Parse(body, "", MaxBody)
	if err != nil {
		return nil, malformed("verify answer", err)
	}
	valid, err := boolean(o, "isValid")
	if err != nil {
		return nil, malformed("verify answer", err)
	}
	payer, _, err := o.OptionalText("payer")
	if err != nil {
		return nil, malformed("verify answer", err)
	}
	if valid {
		return &Verification{Payer: payer}, nil
	}
	return nil, &InvalidError{Reason: reasonMember(o, "invalidReason", UnexpectedVerify), Message: messageMember(o, "invalidMessage"), Payer: payer}
}

type settleResponse struct {
	Success      bool   `json:"success"`
	ErrorReason  Reason `json:"errorReason,omitempty"`
	ErrorMessage string `json:"errorMessage,omitempty"`
	Payer        string `json:"payer,omitempty"`
	Transaction  string `json:"transaction"`
	Network      string `json:"network"`
	Amount       string `json:"amount,omitempty"`

	Extensions json.RawMessage `json:"extensions,omitempty"`
}

// EncodeSettlement writes a settlement in the form of the given version: the
// answer of /settle, and base64-encoded the response headers.
func EncodeSettlement(version int, scheme Scheme, s *Settlement) []byte {
	r := settleResponse{Success: true, Payer: s.Payer, Transaction: s.Transaction, Network: s.Network.In(version)}
	if scheme != Exact {
		r.Amount = s.Amount.Units()
	}
	if version != V1 {
		r.Extensions = s.Extensions
	}
	return encode(r)
}

// EncodeUnsettled writes why a payment was not settled, or, for an
// *UnavailableError that is pending, that it may still be. Errors of
// other kinds keep their text to themselves, which may name internal hosts.
func EncodeUnsettled(version int, n Network, err error) []byte {
	r := settleResponse{Network: n.In(version), ErrorReason: UnexpectedSettle}
	var invalid *InvalidError
	var unavailable *UnavailableError
	switch {
	case errors.As(err, &invalid):
		r.ErrorReason, r.ErrorMessage, r.Payer = invalid.Reason, truncate(invalid.Message), invalid.Payer
	case errors.As(err, &unavailable):
		r.Payer, r.Transaction = unavailable.Payer, unavailable.Transaction
		if unavailable.Pending {
			r.ErrorReason = SettlementPending
		}
	}
	return encode(r)
}

// SettlementHeader returns the value of a response header that carries the
// given answer of /settle.
func SettlementHeader(doc []byte) string { return encodeHeader(doc) }

// DecodeSettlement reads the answer of a facilitator's /settle. It returns
// the settlement; an *InvalidError when the facilitator says that it did not
// settle; an *UnavailableError when it says that the settlement is pending;
// or another error when the body is no such answer. o and charge are what was
// asked for, charge as a maximum: an answer for another network is no answer.
func DecodeSettlement(body []byte, o *Offer, charge Amount) (*Settlement, error) {
	const what = "settle answer"
	doc, err := strictjson.Parse(body, "", MaxBody)
	if err != nil {
		return nil, malformed(what, err)
	}
	success, err := boolean(doc, "success")
	if err != nil {
		return nil, malformed(what, err)
	}
	s := &Settlement{Network: o.Network(), Amount: charge}
	if s.Transaction, _, err = doc.OptionalText("transaction"); err != nil {
		return nil, malformed(what, err)
	}
	payer, _, err := doc.OptionalText("payer")
	if err != nil {
		return nil, malformed(what, err)
	}
	// What is no address stays empty: it changes nothing about the money.
	s.Payer, _ = CanonicalAddress(o.Network(), payer)
	if !success {
		reason := reasonMember(doc, "errorReason", UnexpectedSettle)
		message := messageMember(doc, "errorMessage")
		if reason == SettlementPending {
			return nil, &UnavailableError{Doing: "settling: " + string(reason), Pending: true, Transaction: s.Transaction, Payer: s.Payer}
		}
		return nil, &InvalidError{Reason: reason, Message: message, Payer: s.Payer}
	}
	spelled, err := doc.Text("network")
	if err != nil {
		return nil, malformed(what, err)
	}
	if n, err := ParseNetwork(spelled); err != nil || n != o.Network() {
		return nil, Malformed(what, "network", "is not the network of the offer")
	}
	// By upto it may be less than could have been charged. What makes no sense
	// is passed over: it changes nothing about the money.
	if text, ok, err := doc.OptionalText("amount"); err == nil && ok && o.Scheme == Upto {
		if amount, err := ParseUnits(text, charge.token); err == nil && amount.Cmp(charge) < 0 {
			s.Amount = amount
		}
	}
	if s.Transaction == "" && !s.Amount.Zero() {
		return nil, Malformed(what, "transaction", "is empty although money should have moved")
	}
	return s, nil
}

func boolean(o strictjson.Object, name string) (bool, error) {
	raw, ok := o.Value(name)
	if !ok {
		return false, o.Missing(name)
	}
	switch string(raw) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, o.Wrong(name, "must be true or false")
}

func reasonMember(o strictjson.Object, name string, otherwise Reason) Reason {
	s, ok, err := o.OptionalText(name)
	if err != nil || !ok || s == "" || len(s) > 200 {
		return otherwise
	}
	return Reason(s)
}

func messageMember(o strictjson.Object, name string) string {
	s, _, err := o.OptionalText(name)
	if err != nil {
		return ""
	}
	return truncate(s)
}

// truncate keeps messages at the 500 bytes that the protocol allows.
func truncate(s string) string {
	if len(s) <= 500 {
		return s
	}
	cut := 497
	for cut > 0 && s[cut]&0xc0 == 0x80 {
		cut--
	}
	return s[:cut] + "…"
}

type wireKind struct {
	Version int             `json:"x402Version"`
	Scheme  Scheme          `json:"scheme"`
	Network string          `json:"network"`
	Extra   json.RawMessage `json:"extra,omitempty"`
}

// Encode writes the answer of /supported.
func (s *Supported) Encode() []byte {
	kinds := make([]wireKind, 0, len(s.Kinds))
	for _, k := range s.Kinds {
		kinds = append(kinds, wireKind{k.Version, k.Scheme, k.Network.In(k.Version), k.Extra})
	}
	extensions, signers := s.Extensions, s.Signers
	if extensions == nil {
		extensions = []string{}
	}
	if signers == nil {
		signers = map[string][]string{}
	}
	return encode(struct {
		Kinds      []wireKind          `json:"kinds"`
		Extensions []string            `json:"extensions"`
		Signers    map[string][]string `json:"signers"`
	}{kinds, extensions, signers})
}

// DecodeSupported reads the kinds and the names of extensions in the answer of
// /supported. Kinds whose network is not known here, such as wildcards, are left
// out, and so are signers, on which nothing here depends. Extensions in another
// form than a list of names count as none.
func DecodeSupported(body []byte) (*Supported, error) {
	const what = "supported answer"
	o, err := strictjson.Parse(body, "", 1<<20)
	if err != nil {
		return nil, malformed(what, err)
	}
	list, err := o.Objects("kinds", 1000)
	if err != nil {
		return nil, malformed(what, err)
	}
	s := &Supported{}
	for _, k := range list {
		version, err := k.Integer("x402Version", maxVersion)
		if err != nil {
			return nil, malformed(what, err)
		}
		scheme, err := k.Text("scheme")
		if err != nil {
			return nil, malformed(what, err)
		}
		n, err := networkMember(k)
		if err != nil {
			continue
		}
		extra, err := optionalRaw(k, "extra")
		if err != nil {
			return nil, malformed(what, err)
		}
		s.Kinds = append(s.Kinds, Kind{version, Scheme(scheme), n, extra})
	}
	if names, ok := o.Value("extensions"); ok && json.Unmarshal(names, &s.Extensions) != nil {
		s.Extensions = nil
	}
	return s, nil
}

// Supports reports whether s has a kind that fits an offer in either version.
func (s *Supported) Supports(o *Offer) bool {
	for _, k := range s.Kinds {
		if k.Scheme == o.Scheme && k.Network == o.Network() {
			return true
		}
	}
	return false
}
