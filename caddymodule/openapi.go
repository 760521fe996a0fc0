package caddymodule

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// The parts of OpenAPI 3.1 that a description here has.
type (
	openAPI struct {
		OpenAPI string                          `json:"openapi"`
		Info    apiInfo                         `json:"info"`
		Servers []apiServer                     `json:"servers"`
		Paths   map[string]map[string]operation `json:"paths"`
	}

	apiInfo struct {
		Title   string `json:"title"`
		Version string `json:"version"`
	}

	apiServer struct {
		URL string `json:"url"`
	}

	operation struct {
		Summary     string                 `json:"summary,omitempty"`
		Parameters  []parameter            `json:"parameters,omitempty"`
		RequestBody *requestBody           `json:"requestBody,omitempty"`
		Servers     []apiServer            `json:"servers,omitempty"` // where it is not that of the whole
		Price       priceInfo              `json:"x-payment-info"`
		Responses   map[string]apiResponse `json:"responses"`
	}

	parameter struct {
		Name     string          `json:"name"`
		In       string          `json:"in"`
		Required bool            `json:"required,omitempty"`
		Schema   json.RawMessage `json:"schema"`
		Example  string          `json:"example,omitempty"`
	}

	requestBody struct {
		Required bool               `json:"required"`
		Content  map[string]content `json:"content"`
	}

	content struct {
		Schema  json.RawMessage `json:"schema,omitempty"`
		Example json.RawMessage `json:"example,omitempty"`
	}

	apiResponse struct {
		Description string               `json:"description"`
		Headers     map[string]apiHeader `json:"headers,omitempty"`
		Content     map[string]content   `json:"content,omitempty"`
	}

	apiHeader struct {
		Description string          `json:"description"`
		Schema      json.RawMessage `json:"schema"`
	}

	// priceInfo is what catalogues in the field read of prices, with our
	// offers beside it.
	priceInfo struct {
		Price struct {
			Mode     string `json:"mode"`
			Currency string `json:"currency"`
			Amount   string `json:"amount"`
		} `json:"price"`
		Protocols []map[string]struct{} `json:"protocols"`
		Accepts   []json.RawMessage     `json:"accepts"`
	}
)

var (
	anyText = json.RawMessage(`{"type":"string"}`)

	mediaTypes = map[string]string{"json": "application/json", "form-data": "multipart/form-data", "text": "text/plain"}
)

// describe returns the description of what is sold. Where two paywalls sell
// the same path and method, which Caddy tells apart by something else, the
// first one is described.
func (h *Discovery) describe(origin string, sold []ware) (json.RawMessage, error) {
	doc := openAPI{
		OpenAPI: "3.1.0", Info: apiInfo{h.Title, h.Version}, Servers: []apiServer{{origin}}, Paths: map[string]map[string]operation{},
	}
	for i := range sold {
		w := &sold[i]
		item := doc.Paths[w.path]
		if item == nil {
			item = map[string]operation{}
			doc.Paths[w.path] = item
		}
		for _, method := range w.methods {
			if _, there := item[strings.ToLower(method)]; there {
				continue
			}
			o := w.operation(method)
			if w.origin != origin {
				o.Servers = []apiServer{{w.origin}}
			}
			item[strings.ToLower(method)] = o
		}
	}
	return json.Marshal(doc)
}

// operation describes one method of a ware.
func (w *ware) operation(method string) operation {
	o := operation{Summary: w.Description, Price: w.price()}
	good := content{}
	if d := w.Discover; d != nil && !d.Hidden {
		e := d.description()
		if method == e.Method {
			o.Parameters = d.query()
			if e.HasBody() {
				o.RequestBody = &requestBody{true, map[string]content{mediaTypes[e.BodyType]: {d.InputSchema, d.Body}}}
			}
		}
		good = content{d.OutputSchema, d.Output}
	}
	o.Parameters = append(w.pathParameters(), o.Parameters...)
	answer := apiResponse{Description: "What was paid for", Headers: map[string]apiHeader{
		"PAYMENT-RESPONSE": {"The settlement, as JSON in base64", anyText},
	}}
	media := w.MimeType
	if media == "" && len(good.Schema)+len(good.Example) > 0 {
		media = cmp.Or(mediaTypes[w.Discover.description().OutputType], "application/json")
	}
	if media != "" {
		answer.Content = map[string]content{media: good}
	}
	o.Responses = map[string]apiResponse{
		"200": answer,
		"402": {Description: "Payment required", Headers: map[string]apiHeader{
			"PAYMENT-REQUIRED": {"What it costs and how to pay (x402 version 2), as JSON in base64", anyText},
		}},
	}
	return o
}

// query returns the parameters of the query, each with the part of the schema
// that is its own.
func (d *Discover) query() []parameter {
	var schema struct {
		Properties map[string]json.RawMessage `json:"properties"`
		Required   []string                   `json:"required"`
	}
	if !d.description().HasBody() && len(d.InputSchema) > 0 {
		_ = json.Unmarshal(d.InputSchema, &schema) // it was read before; a boolean has no parts
	}
	var list []parameter
	for _, name := range slices.Sorted(maps.Keys(d.Query)) {
		p := parameter{Name: name, In: "query", Required: slices.Contains(schema.Required, name), Schema: schema.Properties[name], Example: d.Query[name]}
		if len(p.Schema) == 0 || strings.Contains(string(p.Schema), `"$ref"`) {
			p.Schema = anyText
		}
		list = append(list, p)
	}
	return list
}

// pathParameters returns the parameters in the path.
func (w *ware) pathParameters() []parameter {
	var list []parameter
	for _, part := range strings.Split(w.path, "{")[1:] {
		name, _, _ := strings.Cut(part, "}")
		p := parameter{Name: name, In: "path", Required: true, Schema: anyText}
		if w.Discover != nil {
			p.Example = w.Discover.PathParams[name]
		}
		list = append(list, p)
	}
	return list
}

// price returns what the first offer costs, and all offers.
func (w *ware) price() priceInfo {
	var p priceInfo
	amount := w.route.Offers[0].Amount
	number, unit, _ := strings.Cut(amount.String(), " ")
	p.Price.Mode, p.Price.Currency, p.Price.Amount = "fixed", unit, number
	if amount.Token().Dollar {
		p.Price.Currency = "USD"
	}
	p.Protocols = []map[string]struct{}{{"x402": {}}}
	for i := range w.route.Offers {
		p.Accepts = append(p.Accepts, w.route.Offers[i].Encode())
	}
	return p
}
