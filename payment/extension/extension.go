// Package extension defines the extensions of protocol v2 that sellers
// advertise in a challenge and payers echo in a payment: what they look like,
// what makes an echo good, and what a payer says in them.
//
// It covers payment-identifier, bazaar, sign-in-with-x and offer-receipt. Like
// package payment it does no I/O and reads no clock; its decoders are bounded,
// and their errors name the member at fault without repeating its value.
package extension

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/tollgate402/tollgate/internal/strictjson"
	"github.com/tollgate402/tollgate/payment"
)

// Names of the extensions, as they stand in challenges and payments.
const (
	PaymentIdentifier = "payment-identifier"
	Bazaar            = "bazaar"
	SignInWithX       = "sign-in-with-x"
	OfferReceipt      = "offer-receipt"
)

// MaxEncoded is the most that the extensions of one challenge may take, in
// bytes of JSON. Proxies in the field cut headers at 8 KiB, and a payer echoes
// all of it.
const MaxEncoded = 4 << 10

// An Extension is one entry of the extensions of a challenge.
type Extension struct {
	Name   string
	Info   json.RawMessage // a JSON object
	Schema json.RawMessage // JSON Schema of Info; empty leaves it out
	Beside []Member        // members that stand beside info
}

// A Member is a named JSON value.
type Member struct {
	Name  string
	Value json.RawMessage
}

// Encode returns the extensions of a challenge as a JSON object, in the given
// order. Without any it returns nil.
func Encode(list ...Extension) (json.RawMessage, error) {
	if len(list) == 0 {
		return nil, nil
	}
	var names []string
	out := []byte{'{'}
	for i, e := range list {
		if slices.Contains(names, e.Name) {
			return nil, fmt.Errorf("the extension %s is given twice", e.Name)
		}
		names = append(names, e.Name)
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, e.member()...)
	}
	out = append(out, '}')
	if len(out) > MaxEncoded {
		return nil, fmt.Errorf("the extensions take %d bytes, the most is %d, because they travel in a header: shorten the samples", len(out), MaxEncoded)
	}
	if _, err := strictjson.Parse(out, "extensions", MaxEncoded); err != nil {
		return nil, err
	}
	return out, nil
}

// member returns the extension as a member of a JSON object.
func (e *Extension) member() []byte {
	out := append(quote(e.Name), `:{"info":`...)
	out = append(out, e.Info...)
	for _, m := range e.Beside {
		out = append(append(append(append(out, ','), quote(m.Name)...), ':'), m.Value...)
	}
	if len(e.Schema) > 0 {
		out = append(append(out, `,"schema":`...), e.Schema...)
	}
	return append(out, '}')
}

// info returns the info of an extension in what a payment says about
// extensions, or false where it says nothing about this one.
func info(extensions json.RawMessage, name string) (strictjson.Object, bool, error) {
	if len(extensions) == 0 {
		return strictjson.Object{}, false, nil
	}
	all, err := strictjson.Parse(extensions, "extensions", payment.MaxBody)
	if err != nil {
		return strictjson.Object{}, false, err
	}
	if err := all.Known(name); err != nil {
		return strictjson.Object{}, false, err
	}
	own, ok, err := all.OptionalObject(name)
	if err != nil || !ok {
		return strictjson.Object{}, false, err
	}
	if err := own.Known("info", "schema"); err != nil {
		return strictjson.Object{}, false, err
	}
	return own.OptionalObject("info")
}

// malformed makes an error of what is wrong with a payment; nil stays nil.
func malformed(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*payment.MalformedError](err); ok {
		return err
	}
	return &payment.MalformedError{What: "payment", Err: err}
}

// encode marshals a value of a type that cannot fail to marshal, without
// escaping for HTML.
func encode[T any](v T) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("extension: encoding wire JSON: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func quote(s string) []byte { return encode(s) }
