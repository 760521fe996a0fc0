package linkhttp_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// A contract is the description of the API. It holds answers against what it
// says of them.
type contract struct {
	t   *testing.T
	doc map[string]any

	mu   sync.Mutex
	seen map[string]bool // operation and status; guarded by mu
}

func newContract(t *testing.T) *contract {
	t.Helper()
	text, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	value, err := decode(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return &contract{t: t, doc: value.(map[string]any), seen: map[string]bool{}}
}

func decode(text string) (any, error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var value any
	err := d.Decode(&value)
	return value, err
}

// at follows names into a document. What is not there is nil.
func at(value any, names ...string) any {
	for _, name := range names {
		object, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = object[name]
	}
	return value
}

// follow returns what a value refers to, or the value itself.
func (c *contract) follow(value any) any {
	ref, ok := at(value, "$ref").(string)
	if !ok {
		return value
	}
	target := at(c.doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
	if target == nil {
		c.t.Errorf("%s leads nowhere", ref)
	}
	return target
}

// templates returns the paths that the description has.
func (c *contract) templates() []string {
	var list []string
	for path := range at(c.doc, "paths").(map[string]any) {
		list = append(list, path)
	}
	slices.Sort(list)
	return list
}

var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}

// operation finds what the description says of a method at a path.
func (c *contract) operation(method, path string) any {
	path, _, _ = strings.Cut(path, "?")
	parts := strings.Split(path, "/")
	var best any
	least := 10
	for _, template := range c.templates() {
		names := strings.Split(template, "/")
		open := 0
		fits := len(names) == len(parts)
		for i := 0; fits && i < len(names); i++ {
			if strings.HasPrefix(names[i], "{") {
				open++
			} else {
				fits = names[i] == parts[i]
			}
		}
		if fits && open < least {
			best, least = at(c.doc, "paths", template, strings.ToLower(method)), open
		}
	}
	return best
}

// check holds an answer, and the request if it was accepted, against the
// description.
func (c *contract) check(method, path, body string, a *reply) {
	c.t.Helper()
	if strings.HasPrefix(path, "/x402/-/") {
		return // what pages are made of is nobody else's business
	}
	o := c.operation(method, path)
	if o == nil {
		if a.status != 404 && a.status != 405 {
			c.t.Errorf("%s %s, which is not described, answers %d %s", method, path, a.status, a.body)
		}
		return
	}
	name, _ := at(o, "operationId").(string)
	answer := c.follow(at(o, "responses", fmt.Sprint(a.status)))
	if answer == nil {
		c.t.Errorf("%s answers %d, which is not described: %s", name, a.status, a.body)
		return
	}
	c.mu.Lock()
	c.seen[fmt.Sprint(name, " ", a.status)] = true
	c.mu.Unlock()
	if a.status < 300 && body != "" {
		if schema := at(o, "requestBody", "content", "application/json", "schema"); schema == nil {
			c.t.Errorf("%s takes a body, which is not described", name)
		} else if value, err := decode(body); err != nil {
			c.t.Errorf("%s takes %s", name, body)
		} else {
			c.report(name+", request", c.validate(schema, value, ""))
		}
	}
	if method == "HEAD" {
		if a.body != "" {
			c.t.Errorf("%s answers with a body", name)
		}
		return
	}
	media, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	schema := at(answer, "content", media, "schema")
	if schema == nil {
		c.t.Errorf("%s answers %d with %q, which is not described", name, a.status, media)
		return
	}
	if media != "application/json" {
		return
	}
	value, err := decode(a.body)
	if err != nil {
		c.t.Errorf("%s answers %s", name, a.body)
		return
	}
	c.report(fmt.Sprint(name, " ", a.status), c.validate(schema, value, ""))
}

func (c *contract) report(what string, problems []string) {
	c.t.Helper()
	for _, p := range problems {
		c.t.Errorf("%s: %s", what, p)
	}
}

// validate says in what a value differs from a schema. Objects have no members
// that are not described. Of JSON Schema it knows what the description uses,
// and complains about the rest.
func (c *contract) validate(schema, value any, path string) (problems []string) {
	s, ok := c.follow(schema).(map[string]any)
	if !ok {
		return []string{path + " has no schema"}
	}
	wrong := func(format string, args ...any) {
		problems = append(problems, path+" "+fmt.Sprintf(format, args...))
	}
	for keyword, rule := range s {
		switch keyword {
		case "description", "default", "required", "properties", "additionalProperties": // those are for objects
		case "type":
			if !slices.ContainsFunc(list(rule), func(t any) bool { return is(value, t) }) {
				wrong("is %v, and should be %v", value, rule)
			}
		case "const":
			if fmt.Sprint(value) != fmt.Sprint(rule) {
				wrong("is %v, and should be %v", value, rule)
			}
		case "enum":
			if !slices.Contains(list(rule), value) {
				wrong("is %v, and should be one of %v", value, rule)
			}
		case "anyOf":
			if !slices.ContainsFunc(list(rule), func(one any) bool { return len(c.validate(one, value, path)) == 0 }) {
				wrong("is %v, which is none of those that are described", value)
			}
		case "items":
			elements, _ := value.([]any)
			for i, element := range elements {
				problems = append(problems, c.validate(rule, element, fmt.Sprintf("%s[%d]", path, i))...)
			}
		case "maxItems":
			if elements, ok := value.([]any); ok && compare(json.Number(fmt.Sprint(len(elements))), rule) > 0 {
				wrong("has %d elements", len(elements))
			}
		case "minLength", "maxLength", "pattern", "format":
			if text, ok := value.(string); ok && !fits(keyword, rule, text) {
				wrong("is %q, which is not by %s %v", text, keyword, rule)
			}
		case "minimum", "maximum", "exclusiveMinimum", "multipleOf":
			if n, ok := value.(json.Number); ok && !within(keyword, n, rule) {
				wrong("is %v, which is not by %s %v", n, keyword, rule)
			}
		default:
			wrong("has a schema with %s, which nobody checks", keyword)
		}
	}
	if members, ok := value.(map[string]any); ok {
		problems = append(problems, c.members(s, members, path)...)
	}
	return problems
}

func (c *contract) members(s, members map[string]any, path string) (problems []string) {
	for _, name := range list(s["required"]) {
		if _, ok := members[name.(string)]; !ok {
			problems = append(problems, fmt.Sprintf("%s has no %v", path, name))
		}
	}
	for name, member := range members {
		schema, known := at(s, "properties", name), true
		if schema == nil {
			schema = s["additionalProperties"]
			_, known = schema.(map[string]any)
		}
		switch {
		case known:
			problems = append(problems, c.validate(schema, member, path+"."+name)...)
		case schema != true && s["anyOf"] == nil:
			problems = append(problems, fmt.Sprintf("%s.%s is not described", path, name))
		}
	}
	return problems
}

func list(value any) []any {
	switch value := value.(type) {
	case nil:
		return nil
	case []any:
		return value
	}
	return []any{value}
}

func is(value, kind any) bool {
	switch value := value.(type) {
	case nil:
		return kind == "null"
	case bool:
		return kind == "boolean"
	case string:
		return kind == "string"
	case []any:
		return kind == "array"
	case map[string]any:
		return kind == "object"
	case json.Number:
		return kind == "number" || kind == "integer" && rational(value).IsInt()
	}
	return false
}

func fits(keyword string, rule any, text string) bool {
	switch keyword {
	case "minLength":
		return compare(json.Number(fmt.Sprint(utf8.RuneCountInString(text))), rule) >= 0
	case "maxLength":
		return compare(json.Number(fmt.Sprint(utf8.RuneCountInString(text))), rule) <= 0
	case "pattern":
		return regexp.MustCompile(rule.(string)).MatchString(text)
	}
	_, err := time.Parse(time.RFC3339, text)
	return rule == "date-time" && err == nil
}

func within(keyword string, n json.Number, rule any) bool {
	switch keyword {
	case "minimum":
		return compare(n, rule) >= 0
	case "maximum":
		return compare(n, rule) <= 0
	case "exclusiveMinimum":
		return compare(n, rule) > 0
	}
	return new(big.Rat).Quo(rational(n), rational(rule)).IsInt()
}

func rational(n any) *big.Rat {
	r, ok := new(big.Rat).SetString(fmt.Sprint(n))
	if !ok {
		panic(fmt.Sprint(n, " is no number"))
	}
	return r
}

func compare(a, b any) int { return rational(a).Cmp(rational(b)) }

// described calls each for every operation of the description.
func (c *contract) described(each func(method, template, name string, responses map[string]any)) {
	for _, template := range c.templates() {
		for _, method := range methods {
			o := at(c.doc, "paths", template, strings.ToLower(method))
			if o == nil {
				continue
			}
			name, _ := at(o, "operationId").(string)
			responses, _ := at(o, "responses").(map[string]any)
			each(method, template, name, responses)
		}
	}
}

func TestTheDescriptionIsWhole(t *testing.T) {
	c := newContract(t)
	if c.doc["openapi"] != "3.1.0" || at(c.doc, "info", "title") == nil || at(c.doc, "info", "version") == nil {
		t.Error("it is no description by OpenAPI 3.1")
	}
	names := map[string]bool{}
	c.described(func(method, template, name string, responses map[string]any) {
		if name == "" || names[name] || len(responses) == 0 {
			t.Errorf("%s %s: the name %q, %d responses", method, template, name, len(responses))
		}
		names[name] = true
		o := at(c.doc, "paths", template, strings.ToLower(method))
		given := map[string]bool{}
		for _, p := range append(list(at(c.doc, "paths", template, "parameters")), list(at(o, "parameters"))...) {
			p = c.follow(p)
			if at(p, "in") == "path" {
				given["{"+at(p, "name").(string)+"}"] = true
			}
		}
		for part := range strings.SplitSeq(template, "/") {
			if strings.HasPrefix(part, "{") && !given[part] {
				t.Errorf("%s %s: %s is not described", method, template, part)
			}
			delete(given, part)
		}
		if len(given) > 0 {
			t.Errorf("%s %s: its path has no %v", method, template, given)
		}
	})
	// Every reference leads somewhere, and something leads to every component.
	used := map[string]bool{}
	var walk func(any)
	walk = func(value any) {
		switch value := value.(type) {
		case map[string]any:
			if ref, ok := value["$ref"].(string); ok {
				used[ref] = true
				c.follow(value)
			}
			for _, member := range value {
				walk(member)
			}
		case []any:
			for _, element := range value {
				walk(element)
			}
		}
	}
	walk(c.doc)
	for _, kind := range []string{"schemas", "responses", "parameters", "headers"} {
		for name := range at(c.doc, "components", kind).(map[string]any) {
			if !used["#/components/"+kind+"/"+name] {
				t.Errorf("nothing uses %s %s", kind, name)
			}
		}
	}
}

func TestTheCheckerSeesWhatIsWrong(t *testing.T) {
	c := newContract(t)
	for _, bad := range []struct{ schema, value string }{
		{`{"type":"integer"}`, `1.5`},
		{`{"type":["string","null"]}`, `1`},
		{`{"type":"object"}`, `{"more":1}`},
		{`{"type":"object","required":["a"],"properties":{"a":{}}}`, `{}`},
		{`{"type":"object","additionalProperties":{"type":"string"}}`, `{"a":1}`},
		{`{"type":"array","items":{"type":"string"}}`, `["a",1]`},
		{`{"type":"array","maxItems":1}`, `[1,2]`},
		{`{"enum":["a"]}`, `"b"`},
		{`{"const":1}`, `2`},
		{`{"anyOf":[{"type":"string"},{"type":"null"}]}`, `1`},
		{`{"minLength":2}`, `"é"`},
		{`{"maxLength":1}`, `"éé"`},
		{`{"pattern":"^a$"}`, `"b"`},
		{`{"format":"date-time"}`, `"yesterday"`},
		{`{"minimum":1}`, `0.9`},
		{`{"maximum":1}`, `1.1`},
		{`{"exclusiveMinimum":0}`, `0`},
		{`{"multipleOf":0.000001}`, `0.0000001`},
		{`{"oneOf":[]}`, `1`},
		{`{"$ref":"#/components/schemas/ID"}`, `"u"`},
	} {
		schema, err := decode(bad.schema)
		if err != nil {
			t.Fatal(err)
		}
		value, err := decode(bad.value)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.validate(schema, value, "")) == 0 {
			t.Errorf("%s is taken for %s", bad.value, bad.schema)
		}
	}
}
