package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/extension"
)

// Extensions are the extensions of protocol v2 that a route has. All are off
// unless they are given here; clients of v1 do not see them.
type Extensions struct {
	// Whether payers may give a payment an id of their own: "optional" or
	// "required". Of all payments that one payer signs under one id, one is
	// charged. Default: ids are ignored.
	PaymentIdentifier string `json:"payment_identifier,omitempty"`

	// For how long a payer who has paid may come back to the same method and
	// path without paying, by signing in with its account (sign-in-with-x).
	// It is counted from the payment's first use. Not with settle
	// "optimistic". Default: never.
	SIWX caddy.Duration `json:"siwx,omitempty"`

	// How the resource is called and what it answers, for catalogues
	// (bazaar), and for what x402_discovery serves. Default: nothing is said
	// in challenges, and x402_discovery lists price and path.
	Discover *Discover `json:"discover,omitempty"`

	since      time.Time       // when the route was loaded
	advertised json.RawMessage // what the route's challenges always say in their extensions
}

// Discover describes a route to those who look for something to buy. Samples
// that are not as their schemas say are refused when the configuration is
// read. No schema may refer to anything outside itself.
type Discover struct {
	// Keeps the route out of every list. Default: false.
	Hidden bool `json:"hidden,omitempty"`

	// The HTTP method. Default: "POST" where there is a body, else "GET".
	Method string `json:"method,omitempty"`

	// Samples of query parameters, by name.
	Query map[string]string `json:"query,omitempty"`

	// Samples of the parameters in the path, by name.
	PathParams map[string]string `json:"path_params,omitempty"`

	// The path where it is not always the same, with parameters as ":name",
	// such as "/users/:id".
	RouteTemplate string `json:"route_template,omitempty"`

	// A sample of the body, JSON, and its type: "json", "form-data" or
	// "text". Default type: "json".
	Body     json.RawMessage `json:"body,omitempty"`
	BodyType string          `json:"body_type,omitempty"`

	// The JSON Schema (draft 2020-12) of the body or, without one, of the
	// query.
	InputSchema json.RawMessage `json:"input_schema,omitempty"`

	// A sample of the answer, JSON, its type, and its JSON Schema. Default
	// type: "json".
	Output       json.RawMessage `json:"output,omitempty"`
	OutputType   string          `json:"output_type,omitempty"`
	OutputSchema json.RawMessage `json:"output_schema,omitempty"`
}

// description returns the route as catalogues have it.
func (d *Discover) description() *extension.Discovery {
	e := &extension.Discovery{
		Type: extension.HTTP, Method: d.Method, BodyType: d.BodyType, Body: d.Body, Input: d.InputSchema,
		OutputType: d.OutputType, Output: d.Output, OutputSchema: d.OutputSchema, Template: d.RouteTemplate,
		Query: object(d.Query), Path: object(d.PathParams),
	}
	if e.Method == "" {
		e.Method = "GET"
		if len(e.Body) > 0 {
			e.Method = "POST"
		}
	}
	if e.BodyType == "" && len(e.Body) > 0 {
		e.BodyType = "json"
	}
	if e.OutputType == "" && len(e.Output) > 0 {
		e.OutputType = "json"
	}
	return e
}

// object returns texts as a JSON object; without any it returns nil.
func object(texts map[string]string) json.RawMessage {
	if len(texts) == 0 {
		return nil
	}
	doc, err := json.Marshal(texts)
	if err != nil {
		panic("caddymodule: encoding texts: " + err.Error())
	}
	return doc
}

// check checks what does not depend on other settings.
func (d *Discover) check() error {
	if d.Hidden {
		if d.Method != "" || len(d.Query)+len(d.PathParams)+len(d.Body)+len(d.Output) > 0 {
			return errors.New("discover: a route that is off has nothing to describe")
		}
		return nil
	}
	e, err := d.description().Extension()
	if err != nil {
		return fmt.Errorf("discover: %w", err)
	}
	_, err = extension.Encode(e)
	return err
}

// extend puts the route's extensions into its challenge and returns them as
// the till needs them.
func (p *Paywall) extend(c *payment.Challenge, m till.Mode) (till.Extensions, error) {
	x := till.Extensions{SignIn: time.Duration(p.SIWX), Signer: p.app.signedBy}
	if m == till.First {
		// Payers should know that their money moves before they get anything.
		for i := range c.Offers {
			extra := maps.Clone(c.Offers[i].Extra)
			if extra == nil {
				extra = map[string]json.RawMessage{}
			}
			extra["paymentFlow"] = json.RawMessage(`"upfront"`)
			c.Offers[i].Extra = extra
		}
	}
	if p.SIWX < 0 {
		return x, about("siwx", errors.New("siwx must not be negative"))
	}
	if p.SIWX > 0 && m == till.Optimistic {
		return x, about("siwx", errors.New("siwx lets those come back who have paid, which settle optimistic does not know when it answers: write settle held or settle first"))
	}
	fixed := p.app.sponsoring(c.Offers)
	if p.PaymentIdentifier != "" {
		if err := checkIdentifier(p.PaymentIdentifier); err != nil {
			return x, about("payment_identifier", err)
		}
		x.Identifier, x.IDRequired = true, p.PaymentIdentifier == "required"
		fixed = append(fixed, extension.Identifier(x.IDRequired))
	}
	if d := p.Discover; d != nil {
		if err := d.check(); err != nil {
			return x, about("discover", err)
		}
		if !d.Hidden {
			e, err := d.description().Extension()
			if err != nil {
				return x, about("discover", err)
			}
			fixed = append(fixed, e)
		}
	}
	var err error
	if c.Extensions, err = extension.Encode(fixed...); err != nil {
		return x, about("discover", err)
	}
	p.advertised = c.Extensions
	x.Advertised, err = extension.Advertise(c.Extensions)
	return x, err
}

func checkIdentifier(s string) error {
	if s != "optional" && s != "required" {
		return fmt.Errorf("payment_identifier %q is not known: write optional or required", s)
	}
	return nil
}

// loadSignedBy loads what signs offers and receipts.
func (a *App) loadSignedBy(ctx caddy.Context) error {
	if len(a.SignedByRaw) == 0 {
		return nil
	}
	guest, err := ctx.WithValue(signedBySetting, true).LoadModule(a, "SignedByRaw")
	if err != nil {
		return err
	}
	signer, ok := guest.(extension.AgreementSigner)
	if !ok {
		return fmt.Errorf("%T does not sign offers and receipts", guest)
	}
	a.signedBy = signer
	return nil
}

var extensionSettings = []string{"payment_identifier", "siwx", "discover"}

// parse reads one of extensionSettings.
func (e *Extensions) parse(d *caddyfile.Dispenser) error {
	switch d.Val() {
	case "payment_identifier":
		return checked(d, &e.PaymentIdentifier, checkIdentifier)
	case "siwx":
		return duration(d, &e.SIWX)
	}
	if e.Discover != nil {
		return d.Err("discover is given twice")
	}
	e.Discover = &Discover{}
	return e.Discover.parse(d)
}

// parse reads "discover off", or
//
//	discover {
//		method         <method>
//		query          <name> <sample>     # may be repeated
//		path_param     <name> <sample>     # may be repeated
//		route_template <path>
//		body           <json>
//		body_type      json | form-data | text
//		input_schema   <json>
//		output         <json>
//		output_type    <type>
//		output_schema  <json>
//	}
func (e *Discover) parse(d *caddyfile.Dispenser) error {
	at := d.Token()
	if d.NextArg() {
		if d.Val() != "off" {
			return d.Err("discover: write off, or a block that describes the route")
		}
		e.Hidden = true
		if d.NextArg() || d.NextBlock(d.Nesting()) {
			return d.Err("discover off takes no settings")
		}
		return nil
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch d.Val() {
		case "method":
			err = text(d, &e.Method)
		case "query":
			err = pair(d, &e.Query)
		case "path_param":
			err = pair(d, &e.PathParams)
		case "route_template":
			err = text(d, &e.RouteTemplate)
		case "body":
			err = document(d, &e.Body)
		case "body_type":
			err = text(d, &e.BodyType)
		case "input_schema":
			err = document(d, &e.InputSchema)
		case "output":
			err = document(d, &e.Output)
		case "output_type":
			err = text(d, &e.OutputType)
		case "output_schema":
			err = document(d, &e.OutputSchema)
		default:
			err = unknown(d, "discover", "method", "query", "path_param", "route_template", "body", "body_type", "input_schema", "output", "output_type", "output_schema")
		}
		if err != nil {
			return err
		}
	}
	if err := e.check(); err != nil {
		return wrap(at, err)
	}
	return nil
}

// pair reads a name and its value.
func pair(d *caddyfile.Dispenser, to *map[string]string) error {
	setting, args := d.Val(), d.RemainingArgs()
	if len(args) != 2 {
		return d.Errf("%s takes a name and a sample, such as: %s city Berlin", setting, setting)
	}
	if _, twice := (*to)[args[0]]; twice {
		return d.Errf("%s %s is given twice", setting, args[0])
	}
	if *to == nil {
		*to = map[string]string{}
	}
	(*to)[args[0]] = args[1]
	return nil
}

// document reads JSON.
func document(d *caddyfile.Dispenser, to *json.RawMessage) error {
	name, doc := d.Val(), string(*to)
	if err := text(d, &doc); err != nil {
		return err
	}
	if !json.Valid([]byte(doc)) {
		return d.Errf("%s is not JSON: write it in backquotes, such as: %s `{\"text\":\"hello\"}`", name, name)
	}
	*to = json.RawMessage(doc)
	return nil
}
