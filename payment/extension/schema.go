package extension

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// dialect is the JSON Schema that extensions use.
const dialect = "https://json-schema.org/draft/2020-12/schema"

const (
	// maxSchema is the largest schema that is read, in bytes.
	maxSchema = 64 << 10

	// maxSteps bounds the work of one validation: how often a schema is held
	// against a value.
	maxSteps = 10_000

	// maxPattern is the length of the longest pattern, in bytes.
	maxPattern = 1024
)

// A Schema is a JSON Schema of draft 2020-12, or the part of it that
// descriptions of requests and answers use. It is immutable.
//
// Keywords that it does not know and that could refuse a value are an error,
// so that nothing counts as checked that was not. References lead to $defs of
// the same document and to nowhere else: nothing is ever fetched.
type Schema struct {
	root     value
	patterns map[string]*regexp.Regexp
}

// annotations are keywords that refuse nothing.
var annotations = []string{
	"$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
	"format", "contentMediaType", "contentEncoding",
}

// assertions are the other keywords that are known.
var assertions = []string{
	"$ref", "type", "const", "enum", "required", "properties", "additionalProperties", "propertyNames", "minProperties", "maxProperties",
	"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "minLength", "maxLength", "pattern",
	"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "allOf", "anyOf", "oneOf", "not",
}

// ParseSchema reads a schema and checks all of it.
func ParseSchema(doc []byte) (*Schema, error) {
	root, err := parse(doc, "", maxSchema)
	if err != nil {
		return nil, err
	}
	s := &Schema{root: root, patterns: map[string]*regexp.Regexp{}}
	if d, ok := root.member("$schema"); ok && strings.TrimSuffix(d.text, "#") != dialect {
		return nil, errors.New("$schema must be " + dialect)
	}
	return s, s.check(root, "")
}

// check checks a schema that stands at path.
func (s *Schema) check(schema value, path string) error {
	wrong := func(keyword, problem string) error { return fmt.Errorf("%s%s %s", path, keyword, problem) }
	switch schema.kind {
	case boolean:
		return nil
	case object:
	default:
		return fmt.Errorf("%smust be an object or a boolean", path)
	}
	for i, keyword := range schema.names {
		v := schema.items[i]
		sub := path + keyword + "."
		var err error
		switch keyword {
		case "$ref":
			if _, ok := s.refer(v.text); v.kind != text || !ok {
				err = wrong(keyword, "must lead to $defs of the same schema, such as \"#/$defs/name\"; nothing is fetched")
			}
		case "type":
			types := v.items
			if v.kind == text {
				types = []value{v}
			}
			for _, t := range types {
				if !slices.Contains([]string{"null", "boolean", "number", "integer", "string", "array", "object"}, t.text) {
					err = wrong(keyword, "must be null, boolean, number, integer, string, array or object")
				}
			}
			if len(types) == 0 {
				err = wrong(keyword, "must name a type")
			}
		case "enum", "required":
			if v.kind != array {
				err = wrong(keyword, "must be an array")
			}
		case "properties", "$defs", "definitions":
			if v.kind != object {
				err = wrong(keyword, "must be an object")
			}
			for j, name := range v.names {
				if err == nil {
					err = s.check(v.items[j], sub+name+".")
				}
			}
		case "prefixItems", "allOf", "anyOf", "oneOf":
			if v.kind != array || len(v.items) == 0 {
				err = wrong(keyword, "must be an array of schemas")
			}
			for j, item := range v.items {
				if err == nil {
					err = s.check(item, sub+strconv.Itoa(j)+".")
				}
			}
		case "additionalProperties", "propertyNames", "items", "not":
			err = s.check(v, sub)
		case "minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength":
			if v.kind != number || !v.num.integer() || v.num.sign() < 0 {
				err = wrong(keyword, "must be a whole number")
			}
		case "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum":
			if v.kind != number {
				err = wrong(keyword, "must be a number")
			}
		case "uniqueItems":
			if v.kind != boolean {
				err = wrong(keyword, "must be true or false")
			}
		case "pattern":
			err = s.compile(v, path)
		default:
			if !slices.Contains(annotations, keyword) && !slices.Contains(assertions, keyword) && !strings.HasPrefix(keyword, "x-") {
				err = wrong(strconv.Quote(keyword), "is no keyword that is known here")
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// compile compiles a pattern. Those of JSON Schema are of ECMAScript; what
// both languages have is nearly all that is in use.
func (s *Schema) compile(v value, path string) error {
	if v.kind != text || len(v.text) > maxPattern {
		return fmt.Errorf("%spattern must be a string of at most %d bytes", path, maxPattern)
	}
	p, err := regexp.Compile(v.text)
	if err != nil {
		return fmt.Errorf("%spattern cannot be used: look-around and back references are not known here", path)
	}
	s.patterns[v.text] = p
	return nil
}

// refer returns what a reference leads to.
func (s *Schema) refer(ref string) (value, bool) {
	if ref == "#" {
		return s.root, true
	}
	for _, folder := range []string{"$defs", "definitions"} {
		if name, ok := strings.CutPrefix(ref, "#/"+folder+"/"); ok {
			defs, _ := s.root.member(folder)
			return defs.member(strings.NewReplacer("~1", "/", "~0", "~").Replace(name))
		}
	}
	return value{}, false
}

// Validate reports what of doc, a JSON object, is not as the schema says.
// Errors name members and do not repeat what is in them.
func (s *Schema) Validate(doc []byte) error {
	v, err := parse(doc, "", maxSchema)
	if err != nil {
		return err
	}
	return s.validate(v, "")
}

func (s *Schema) validate(v value, path string) error {
	return (&validation{schema: s}).value(s.root, v, path)
}

// A validation holds one document against a schema.
type validation struct {
	schema *Schema
	steps  int
}

var errTooMuch = errors.New("takes too many steps to validate: make the schema simpler")

func (c *validation) value(schema, v value, path string) error {
	if c.steps++; c.steps > maxSteps {
		return errTooMuch
	}
	if schema.kind == boolean {
		if schema.text == "true" {
			return nil
		}
		return wrongAt(path, "must not be there")
	}
	for i, keyword := range schema.names {
		if err := c.keyword(schema, keyword, schema.items[i], v, path); err != nil {
			return err
		}
	}
	return nil
}

// keyword holds a value against one keyword of a schema.
func (c *validation) keyword(schema value, keyword string, rule, v value, path string) error {
	switch keyword {
	case "$ref":
		target, _ := c.schema.refer(rule.text)
		return c.value(target, v, path)
	case "type":
		types := rule.items
		if rule.kind == text {
			types = []value{rule}
		}
		for _, t := range types {
			if t.text == string(v.kind) || t.text == "integer" && v.kind == number && v.num.integer() {
				return nil
			}
		}
		return wrongAt(path, "has another type than the schema says")
	case "const":
		if !rule.equal(v) {
			return wrongAt(path, "is not the one value that the schema allows")
		}
	case "enum":
		if !slices.ContainsFunc(rule.items, v.equal) {
			return wrongAt(path, "is none of the values that the schema allows")
		}
	case "allOf":
		for _, s := range rule.items {
			if err := c.value(s, v, path); err != nil {
				return err
			}
		}
	case "anyOf", "oneOf":
		fits := 0
		for _, s := range rule.items {
			if err := c.value(s, v, path); errors.Is(err, errTooMuch) {
				return err
			} else if err == nil {
				fits++
			}
		}
		if fits == 0 || keyword == "oneOf" && fits > 1 {
			return wrongAt(path, "fits "+strconv.Itoa(fits)+" of the schemas in "+keyword)
		}
	case "not":
		if err := c.value(rule, v, path); errors.Is(err, errTooMuch) {
			return err
		} else if err == nil {
			return wrongAt(path, "is what the schema excludes")
		}
	}
	switch v.kind {
	case object:
		return c.object(schema, keyword, rule, v, path)
	case array:
		return c.array(schema, keyword, rule, v, path)
	case text:
		return c.text(keyword, rule, v, path)
	case number:
		return c.number(keyword, rule, v, path)
	default: // nothing more can be said of null and booleans
		return nil
	}
}

func (c *validation) object(schema value, keyword string, rule, v value, path string) error {
	switch keyword {
	case "required":
		for _, name := range rule.items {
			if _, ok := v.member(name.text); !ok {
				return wrongAt(at(path, name.text), "is missing")
			}
		}
	case "properties":
		for i, name := range rule.names {
			if m, ok := v.member(name); ok {
				if err := c.value(rule.items[i], m, at(path, name)); err != nil {
					return err
				}
			}
		}
	case "additionalProperties":
		properties, _ := schema.member("properties")
		for i, name := range v.names {
			if _, known := properties.member(name); !known {
				if err := c.value(rule, v.items[i], at(path, name)); err != nil {
					return err
				}
			}
		}
	case "propertyNames":
		for _, name := range v.names {
			if err := c.value(rule, value{kind: text, text: name}, at(path, name)); err != nil {
				return err
			}
		}
	case "minProperties", "maxProperties":
		return size(keyword, "minProperties", rule, len(v.names), path)
	}
	return nil
}

func (c *validation) array(schema value, keyword string, rule, v value, path string) error {
	switch keyword {
	case "items":
		prefix, _ := schema.member("prefixItems")
		for i := len(prefix.items); i < len(v.items); i++ {
			if err := c.value(rule, v.items[i], at(path, strconv.Itoa(i))); err != nil {
				return err
			}
		}
	case "prefixItems":
		for i, s := range rule.items[:min(len(rule.items), len(v.items))] {
			if err := c.value(s, v.items[i], at(path, strconv.Itoa(i))); err != nil {
				return err
			}
		}
	case "uniqueItems":
		for i := range v.items {
			if c.steps += i; c.steps > maxSteps {
				return errTooMuch
			}
			if rule.text == "true" && slices.ContainsFunc(v.items[:i], v.items[i].equal) {
				return wrongAt(path, "has an item twice")
			}
		}
	case "minItems", "maxItems":
		return size(keyword, "minItems", rule, len(v.items), path)
	}
	return nil
}

func (c *validation) text(keyword string, rule, v value, path string) error {
	switch keyword {
	case "pattern":
		if !c.schema.patterns[rule.text].MatchString(v.text) {
			return wrongAt(path, "does not fit the pattern of the schema")
		}
	case "minLength", "maxLength":
		return size(keyword, "minLength", rule, utf8.RuneCountInString(v.text), path)
	}
	return nil
}

func (c *validation) number(keyword string, rule, v value, path string) error {
	if rule.kind != number {
		return nil
	}
	than := v.num.cmp(rule.num)
	switch {
	case keyword == "minimum" && than < 0, keyword == "exclusiveMinimum" && than <= 0:
		return wrongAt(path, "is smaller than the schema allows")
	case keyword == "maximum" && than > 0, keyword == "exclusiveMaximum" && than >= 0:
		return wrongAt(path, "is larger than the schema allows")
	}
	return nil
}

// size holds a length against a keyword that is minimum or a maximum.
func size(keyword, minimum string, rule value, n int, path string) error {
	length, _ := parseDecimal(strconv.Itoa(n)) // digits always parse
	than := length.cmp(rule.num)
	if keyword == minimum && than < 0 || keyword != minimum && than > 0 {
		return wrongAt(path, "is longer or shorter than the schema allows")
	}
	return nil
}

func wrongAt(path, problem string) error {
	if path == "" {
		path = "the document"
	}
	return errors.New(path + " " + problem)
}

// at appends a name to a path. Names that no program uses are not repeated.
func at(path, name string) string {
	if name == "" || len(name) > 64 || !plain(name) {
		name = "?"
	}
	if path == "" {
		return name
	}
	return path + "." + name
}
