package extension

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/tollgate402/tollgate/internal/strictjson"
)

// A Discovery describes how a resource is called and what it answers, for
// catalogues of paid resources.
type Discovery struct {
	// Type is "http" or "mcp".
	Type string

	// Method is the HTTP method of the resource.
	Method string

	// Query, Path and Headers are samples of what a request may say: JSON
	// objects, or empty.
	Query, Path, Headers json.RawMessage

	// BodyType is "json", "form-data" or "text", for methods with a body;
	// Body is a sample of it, JSON.
	BodyType string
	Body     json.RawMessage

	// Tool, About, Transport and Example describe an MCP tool. Transport is
	// "streamable-http", which is what empty means, or "sse".
	Tool, About, Transport string
	Example                json.RawMessage

	// Input is the JSON Schema of the query, or of the body of a method that
	// has one, or of an MCP tool's arguments. Only the latter needs it.
	Input json.RawMessage

	// OutputType is what the resource answers with, such as "json"; empty
	// says nothing. Output is a sample, JSON, and OutputSchema its schema.
	OutputType, OutputFormat string
	Output, OutputSchema     json.RawMessage

	// Template is the path of the resource where it is not always the same,
	// with its parameters as ":name", such as "/users/:id".
	Template string
}

// The types of resources.
const (
	HTTP = "http"
	MCP  = "mcp"
)

var (
	plainMethods = []string{"GET", "HEAD", "DELETE"}
	bodyMethods  = []string{"POST", "PUT", "PATCH"}
	bodyTypes    = []string{"json", "form-data", "text"}
	transports   = []string{"streamable-http", "sse"}
)

// HasBody reports whether the resource is called with a body.
func (d *Discovery) HasBody() bool { return slices.Contains(bodyMethods, d.Method) }

// wire forms of bazaar's info.
type bazaarInfo struct {
	Input  bazaarInput   `json:"input"`
	Output *bazaarOutput `json:"output,omitempty"`
}

type bazaarInput struct {
	Type        string          `json:"type"`
	Method      string          `json:"method,omitempty"`
	Tool        string          `json:"toolName,omitempty"`
	Description string          `json:"description,omitempty"`
	Transport   string          `json:"transport,omitempty"`
	InputSchema json.RawMessage `json:"inputSchema,omitempty"`
	Example     json.RawMessage `json:"example,omitempty"`
	QueryParams json.RawMessage `json:"queryParams,omitempty"`
	PathParams  json.RawMessage `json:"pathParams,omitempty"`
	Headers     json.RawMessage `json:"headers,omitempty"`
	BodyType    string          `json:"bodyType,omitempty"`
	Body        json.RawMessage `json:"body,omitempty"`
}

type bazaarOutput struct {
	Type    string          `json:"type"`
	Format  string          `json:"format,omitempty"`
	Example json.RawMessage `json:"example,omitempty"`
}

// Extension returns the extension bazaar. It fails where the description
// contradicts itself: samples must be as their schemas say.
func (d *Discovery) Extension() (Extension, error) {
	if err := d.check(); err != nil {
		return Extension{}, err
	}
	info := bazaarInfo{Input: bazaarInput{
		Type: d.Type, Method: d.Method, Tool: d.Tool, Description: d.About, Transport: d.Transport, Example: d.Example,
		QueryParams: d.Query, PathParams: d.Path, Headers: d.Headers, BodyType: d.BodyType, Body: d.Body,
	}}
	if d.Type == MCP {
		info.Input.InputSchema = d.Input
	}
	if d.OutputType != "" {
		info.Output = &bazaarOutput{d.OutputType, d.OutputFormat, d.Output}
	}
	e := Extension{Name: Bazaar, Info: encode(info), Schema: d.schema()}
	if d.Template != "" {
		e.Beside = []Member{{"routeTemplate", quote(d.Template)}}
	}
	schema, err := ParseSchema(e.Schema)
	if err != nil {
		return Extension{}, fmt.Errorf("schema: %w", err)
	}
	if err := schema.Validate(e.Info); err != nil {
		return Extension{}, fmt.Errorf("a sample is not as its schema says: %w", err)
	}
	return e, nil
}

// check checks what the schema of the extension does not.
func (d *Discovery) check() error {
	switch {
	case d.Type == MCP && (d.Tool == "" || len(d.Input) == 0):
		return errors.New("an MCP tool needs a name and an input schema")
	case d.Type == MCP && d.Transport != "" && !slices.Contains(transports, d.Transport):
		return fmt.Errorf("transport must be %s", strings.Join(transports, " or "))
	case d.Type == MCP:
	case d.Type != HTTP:
		return errors.New("type must be http or mcp")
	case d.HasBody() && (len(d.Body) == 0 || !slices.Contains(bodyTypes, d.BodyType)):
		return fmt.Errorf("the method %s needs a sample of its body, of type %s", d.Method, strings.Join(bodyTypes, ", "))
	case !d.HasBody() && !slices.Contains(plainMethods, d.Method):
		return fmt.Errorf("method must be one of %s", strings.Join(slices.Concat(plainMethods, bodyMethods), ", "))
	case !d.HasBody() && (len(d.Body) > 0 || d.BodyType != ""):
		return fmt.Errorf("the method %s has no body", d.Method)
	}
	if d.OutputType == "" && (len(d.Output) > 0 || len(d.OutputSchema) > 0) {
		return errors.New("a sample of the output needs the output's type")
	}
	for _, sample := range []struct {
		name string
		doc  json.RawMessage
	}{{"query", d.Query}, {"path parameters", d.Path}, {"headers", d.Headers}, {"body", d.Body}, {"example", d.Example}, {"output", d.Output}} {
		if len(sample.doc) > 0 && !json.Valid(sample.doc) {
			return fmt.Errorf("the sample of the %s is not JSON", sample.name)
		}
	}
	for _, s := range []struct {
		name string
		doc  json.RawMessage
	}{{"input", d.Input}, {"output", d.OutputSchema}} {
		if len(s.doc) == 0 {
			continue
		}
		if _, err := ParseSchema(s.doc); err != nil {
			return fmt.Errorf("the schema of the %s: %w", s.name, err)
		}
	}
	if d.Template != "" && !goodTemplate(d.Template) {
		return errors.New("the path template must be like /users/:id")
	}
	return nil
}

// schema returns the schema of the extension's info.
func (d *Discovery) schema() json.RawMessage {
	properties := []Member{{"type", json.RawMessage(`{"type":"string","const":` + string(quote(d.Type)) + `}`)}}
	required := []string{"type"}
	add := func(name string, given bool, schema json.RawMessage) {
		if given {
			properties = append(properties, Member{name, schema})
		}
	}
	orObject := func(schema json.RawMessage) json.RawMessage {
		if len(schema) > 0 {
			return schema
		}
		return json.RawMessage(`{"type":"object"}`)
	}
	if d.Type == MCP {
		properties = append(properties, Member{"toolName", json.RawMessage(`{"type":"string"}`)}, Member{"inputSchema", json.RawMessage(`{"type":"object"}`)})
		required = append(required, "toolName", "inputSchema")
		add("description", d.About != "", json.RawMessage(`{"type":"string"}`))
		add("transport", d.Transport != "", json.RawMessage(`{"type":"string","enum":["streamable-http","sse"]}`))
		add("example", len(d.Example) > 0, orObject(d.Input))
	} else {
		properties = append(properties, Member{"method", json.RawMessage(`{"type":"string","enum":[` + string(quote(d.Method)) + `]}`)})
		required = append(required, "method")
		query := json.RawMessage(nil)
		if !d.HasBody() {
			query = d.Input
		}
		add("queryParams", len(d.Query) > 0, orObject(query))
		add("pathParams", len(d.Path) > 0, orObject(nil))
		add("headers", len(d.Headers) > 0, orObject(nil))
		if d.HasBody() {
			body := d.Input
			if len(body) == 0 {
				body = json.RawMessage(`{}`)
			}
			properties = append(properties, Member{"bodyType", json.RawMessage(`{"type":"string","enum":["json","form-data","text"]}`)}, Member{"body", body})
			required = append(required, "bodyType", "body")
		}
	}
	whole := []Member{{"input", encodeSchema(properties, required)}}
	if d.OutputType != "" {
		output := []Member{{"type", json.RawMessage(`{"type":"string"}`)}}
		if d.OutputFormat != "" {
			output = append(output, Member{"format", json.RawMessage(`{"type":"string"}`)})
		}
		if len(d.Output) > 0 {
			example := d.OutputSchema
			if len(example) == 0 {
				example = json.RawMessage(`{}`)
			}
			output = append(output, Member{"example", example})
		}
		whole = append(whole, Member{"output", encodeSchema(output, []string{"type"})})
	}
	doc := encodeSchema(whole, []string{"input"})
	return append(json.RawMessage(`{"$schema":"`+dialect+`",`), doc[1:]...)
}

// encodeSchema returns the schema of an object.
func encodeSchema(properties []Member, required []string) json.RawMessage {
	return encodeObject([]Member{
		{"type", quote("object")}, {"properties", encodeObject(properties)}, {"required", encode(required)},
	})
}

// encodeObject returns members as a JSON object, in order.
func encodeObject(members []Member) json.RawMessage {
	out := json.RawMessage{'{'}
	for i, m := range members {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, quote(m.Name)...), ':'), m.Value...)
	}
	return append(out, '}')
}

// A Listing is what a payment says, in the extension bazaar, about the
// resource that it is for.
type Listing struct {
	Type     string // HTTP or MCP
	Method   string // of an HTTP resource
	Tool     string // of an MCP tool
	Template string // path of the resource where it varies; empty if it was not given or cannot be used

	// Extension is all of it, as it was given.
	Extension json.RawMessage
}

// ReadListing reads the extension bazaar of a payment. It returns nil where
// there is none, and an error where what there is cannot be catalogued: its
// info must be of a known kind and as its schema says.
func ReadListing(extensions json.RawMessage) (*Listing, error) {
	info, ok, err := info(extensions, Bazaar)
	if err != nil || !ok {
		return nil, malformed(err)
	}
	all, err := strictjson.Parse(extensions, "extensions", maxSchema)
	if err != nil {
		return nil, malformed(err)
	}
	own, err := all.Object(Bazaar)
	if err != nil {
		return nil, malformed(err)
	}
	l := &Listing{Extension: own.Raw()}
	if err := l.read(info); err != nil {
		return nil, malformed(err)
	}
	if t, ok, err := own.OptionalText("routeTemplate"); err == nil && ok && goodTemplate(t) {
		l.Template = t
	}
	doc, ok := own.Value("schema")
	if !ok {
		return l, nil
	}
	schema, err := ParseSchema(doc)
	if err != nil {
		return nil, malformed(own.Wrong("schema", err.Error()))
	}
	if err := schema.Validate(info.Raw()); err != nil {
		return nil, malformed(own.Wrong("info", "is not as its schema says: "+err.Error()))
	}
	return l, nil
}

func (l *Listing) read(info strictjson.Object) error {
	input, err := info.Object("input")
	if err != nil {
		return err
	}
	if err := input.Known("type", "method", "tool", "toolName", "inputSchema", "bodyType", "body"); err != nil {
		return err
	}
	if l.Type, err = input.Text("type"); err != nil {
		return err
	}
	switch l.Type {
	case MCP:
		// The SDKs write toolName, the specification's text has tool.
		name := "toolName"
		if !input.Has(name) && input.Has("tool") {
			name = "tool"
		}
		if l.Tool, err = input.Text(name); err != nil {
			return err
		}
		if l.Tool == "" || len(l.Tool) > 256 {
			return input.Wrong(name, "must have 1 to 256 bytes")
		}
		_, err = input.Object("inputSchema")
		return err
	case HTTP:
		if l.Method, err = input.Text("method"); err != nil {
			return err
		}
		if slices.Contains(plainMethods, l.Method) {
			return nil
		}
		if !slices.Contains(bodyMethods, l.Method) {
			return input.Wrong("method", "must be GET, HEAD, DELETE, POST, PUT or PATCH")
		}
		kind, err := input.Text("bodyType")
		switch {
		case err != nil:
			return err
		case !slices.Contains(bodyTypes, kind):
			return input.Wrong("bodyType", "must be json, form-data or text")
		case !input.Has("body"):
			return input.Missing("body")
		}
		return nil
	}
	return input.Wrong("type", "must be http or mcp")
}

var templateForm = regexp.MustCompile(`^/[a-zA-Z0-9_/:.\-~%]+$`)

// maxTemplate is the length of the longest path template, in bytes.
const maxTemplate = 512

// goodTemplate reports whether a path template can be used as a path: it
// leads neither upwards nor to another host, however often it is decoded.
func goodTemplate(t string) bool {
	if len(t) > maxTemplate || !templateForm.MatchString(t) {
		return false
	}
	for range 5 {
		if strings.Contains(t, "..") || strings.Contains(t, "://") {
			return false
		}
		decoded, err := url.PathUnescape(t)
		if err != nil {
			return false
		}
		if decoded == t {
			return true
		}
		t = decoded
	}
	return false // what is encoded this often hides something
}
