package extension_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/tollgate402/tollgate/payment/extension"
)

func raw(s string) json.RawMessage { return json.RawMessage(s) }

func TestDescriptionsAreListedAsTheyWereMade(t *testing.T) {
	for name, row := range map[string]struct {
		d    extension.Discovery
		want string // what is in the info
	}{
		"a query": {extension.Discovery{
			Type: "http", Method: "GET", Query: raw(`{"city":"Berlin"}`),
			Input:      raw(`{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}`),
			OutputType: "json", Output: raw(`{"celsius":21}`), OutputSchema: raw(`{"type":"object"}`),
		}, `{"input":{"type":"http","method":"GET","queryParams":{"city":"Berlin"}},"output":{"type":"json","example":{"celsius":21}}}`},
		"a body": {extension.Discovery{
			Type: "http", Method: "POST", BodyType: "json", Body: raw(`{"text":"hello"}`), Input: raw(`{"type":"object","required":["text"]}`), Template: "/users/:id/echo",
		}, `{"input":{"type":"http","method":"POST","bodyType":"json","body":{"text":"hello"}}}`},
		"a tool": {extension.Discovery{
			Type: "mcp", Tool: "get_weather", Input: raw(`{"type":"object"}`), Transport: "sse",
		}, `{"input":{"type":"mcp","toolName":"get_weather","transport":"sse","inputSchema":{"type":"object"}}}`},
	} {
		e, err := row.d.Extension()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if string(e.Info) != row.want {
			t.Errorf("%s: info %s", name, e.Info)
		}
		doc, err := extension.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		l, err := extension.ReadListing(doc)
		if err != nil || l.Type != row.d.Type || l.Method != row.d.Method || l.Tool != row.d.Tool || l.Template != row.d.Template {
			t.Errorf("%s: listed as %+v, %v", name, l, err)
		}
	}
}

func TestDescriptionsThatContradictThemselvesAreRefused(t *testing.T) {
	good := extension.Discovery{Type: "http", Method: "GET"}
	for name, change := range map[string]func(*extension.Discovery){
		"a method that is none":     func(d *extension.Discovery) { d.Method = "TRACE" },
		"no body":                   func(d *extension.Discovery) { d.Method = "POST" },
		"a body of GET":             func(d *extension.Discovery) { d.BodyType, d.Body = "json", raw(`1`) },
		"an unknown type of body":   func(d *extension.Discovery) { d.Method, d.BodyType, d.Body = "POST", "xml", raw(`1`) },
		"a sample unlike its type":  func(d *extension.Discovery) { d.Query = raw(`[1]`) },
		"a sample unlike its rules": func(d *extension.Discovery) { d.Query, d.Input = raw(`{"a":1}`), raw(`{"required":["b"]}`) },
		"a remote reference":        func(d *extension.Discovery) { d.Query, d.Input = raw(`{}`), raw(`{"$ref":"https://evil.example/s"}`) },
		"output without its type":   func(d *extension.Discovery) { d.Output = raw(`1`) },
		"a tool without a name":     func(d *extension.Discovery) { d.Type = "mcp" },
		"a path upwards":            func(d *extension.Discovery) { d.Template = "/a/../b" },
		"samples that are no JSON":  func(d *extension.Discovery) { d.Query = raw(`{"a"}`) },
		"another type":              func(d *extension.Discovery) { d.Type = "grpc" },
	} {
		d := good
		change(&d)
		if e, err := d.Extension(); err == nil {
			t.Errorf("%s: %s", name, e.Info)
		}
	}
}

func TestPathTemplatesLeadNowhereElse(t *testing.T) {
	for template, good := range map[string]bool{
		"/users/:id":                    true,
		"/v1/%20x":                      true,
		"/":                             false,
		"":                              false,
		"users":                         false,
		"/a/../b":                       false,
		"/%2e%2e/b":                     false,
		"/%252e%252e/b":                 false,
		"/%25252525252e./b":             false,
		"/x?y":                          false,
		"/http://evil":                  false,
		"/http%3A//evil":                false,
		"/%zz":                          false,
		"/" + strings.Repeat("a", 1000): false,
	} {
		l, err := extension.ReadListing(raw(`{"bazaar":{"info":{"input":{"type":"http","method":"GET"}},"routeTemplate":"` + template + `"}}`))
		if err != nil {
			t.Fatal(err)
		}
		if (l.Template == template) != good && template != "" || !good && l.Template != "" {
			t.Errorf("%q: %q", template, l.Template)
		}
	}
}

func TestListingsThatCannotBeCataloguedAreRefused(t *testing.T) {
	for name, doc := range map[string]string{
		"no input":           `{"info":{}}`,
		"an unknown type":    `{"info":{"input":{"type":"ftp"}}}`,
		"an unknown method":  `{"info":{"input":{"type":"http","method":"get"}}}`,
		"no body":            `{"info":{"input":{"type":"http","method":"POST","bodyType":"json"}}}`,
		"no tool":            `{"info":{"input":{"type":"mcp","inputSchema":{}}}}`,
		"no input schema":    `{"info":{"input":{"type":"mcp","tool":"t"}}}`,
		"not as its schema":  `{"info":{"input":{"type":"http","method":"GET"}},"schema":{"required":["output"]}}`,
		"a remote reference": `{"info":{"input":{"type":"http","method":"GET"}},"schema":{"$ref":"https://evil.example/s"}}`,
		"an unknown keyword": `{"info":{"input":{"type":"http","method":"GET"}},"schema":{"unevaluatedProperties":false}}`,
		"no schema":          `{"info":{"input":{"type":"http","method":"GET"}},"schema":7}`,
	} {
		if l, err := extension.ReadListing(raw(`{"bazaar":` + doc + `}`)); err == nil {
			t.Errorf("%s: %+v", name, l)
		}
	}
	for _, name := range []string{"tool", "toolName"} {
		l, err := extension.ReadListing(raw(`{"bazaar":{"info":{"input":{"type":"mcp","` + name + `":"t","inputSchema":{}}}}}`))
		if err != nil || l.Tool != "t" {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
	if l, err := extension.ReadListing(nil); l != nil || err != nil {
		t.Errorf("%+v, %v", l, err)
	}
}
