package extension_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tollgate402/tollgate/payment/extension"
)

func TestSchemasAcceptAndRefuse(t *testing.T) {
	for _, row := range []struct{ schema, good, bad string }{
		{`{"type":"object"}`, `{}`, ``},
		{`{"properties":{"a":{"type":"integer"}}}`, `{"a":1.0}`, `{"a":1.5}`},
		{`{"properties":{"a":{"type":["string","null"]}}}`, `{"a":null}`, `{"a":1}`},
		{`{"properties":{"a":{"const":{"b":[1,2]}}}}`, `{"a":{"b":[1.0,2]}}`, `{"a":{"b":[2,1]}}`},
		{`{"properties":{"a":{"enum":["x","y"]}}}`, `{"a":"y"}`, `{"a":"z"}`},
		{`{"required":["a"]}`, `{"a":1}`, `{"b":1}`},
		{`{"properties":{"a":true},"additionalProperties":false}`, `{"a":1}`, `{"b":1}`},
		{`{"additionalProperties":{"type":"string"}}`, `{"a":"x"}`, `{"a":1}`},
		{`{"propertyNames":{"maxLength":1}}`, `{"a":1}`, `{"ab":1}`},
		{`{"minProperties":1,"maxProperties":1}`, `{"a":1}`, `{}`},
		{`{"properties":{"a":{"items":{"type":"number"},"minItems":1,"maxItems":2}}}`, `{"a":[1,2]}`, `{"a":[1,"2"]}`},
		{`{"properties":{"a":{"prefixItems":[{"type":"string"}],"items":{"type":"number"}}}}`, `{"a":["x",1]}`, `{"a":[1]}`},
		{`{"properties":{"a":{"uniqueItems":true}}}`, `{"a":[1,2]}`, `{"a":[1,1.0]}`},
		{`{"properties":{"a":{"minLength":2,"maxLength":2}}}`, `{"a":"ää"}`, `{"a":"a"}`},
		{`{"properties":{"a":{"pattern":"^[a-z]+$"}}}`, `{"a":"x"}`, `{"a":"X"}`},
		{`{"properties":{"a":{"minimum":-1.5,"maximum":10}}}`, `{"a":-1.5}`, `{"a":-1.6}`},
		{`{"properties":{"a":{"minimum":2,"maximum":10}}}`, `{"a":9.99}`, `{"a":10.001}`},
		{`{"properties":{"a":{"exclusiveMinimum":0,"exclusiveMaximum":1e3}}}`, `{"a":999}`, `{"a":1000}`},
		{`{"properties":{"a":{"exclusiveMinimum":0}}}`, `{"a":1e-9}`, `{"a":0.0}`},
		{`{"allOf":[{"required":["a"]},{"required":["b"]}]}`, `{"a":1,"b":1}`, `{"a":1}`},
		{`{"anyOf":[{"required":["a"]},{"required":["b"]}]}`, `{"b":1}`, `{"c":1}`},
		{`{"oneOf":[{"required":["a"]},{"required":["b"]}]}`, `{"b":1}`, `{"a":1,"b":1}`},
		{`{"not":{"required":["a"]}}`, `{"b":1}`, `{"a":1}`},
		{`{"$defs":{"n":{"type":"number"}},"properties":{"a":{"$ref":"#/$defs/n"}}}`, `{"a":1}`, `{"a":"1"}`},
		{`{"properties":{"next":{"$ref":"#"}},"additionalProperties":false}`, `{"next":{"next":{}}}`, `{"next":{"last":{}}}`},
		{`{"$schema":"https://json-schema.org/draft/2020-12/schema","title":"t","format":"uri","examples":[1],"x-hint":2}`, `{}`, ``},
	} {
		s, err := extension.ParseSchema([]byte(row.schema))
		if err != nil {
			t.Errorf("%s: %v", row.schema, err)
			continue
		}
		if err := s.Validate([]byte(row.good)); err != nil {
			t.Errorf("%s refuses %s: %v", row.schema, row.good, err)
		}
		if row.bad != "" && s.Validate([]byte(row.bad)) == nil {
			t.Errorf("%s accepts %s", row.schema, row.bad)
		}
	}
}

func TestSchemasThatCannotBeCheckedAreRefused(t *testing.T) {
	for name, schema := range map[string]string{
		"a remote reference":   `{"properties":{"a":{"$ref":"https://example.com/schema"}}}`,
		"a relative reference": `{"$ref":"other.json"}`,
		"a dangling reference": `{"$ref":"#/$defs/a"}`,
		"an unknown keyword":   `{"if":{}}`,
		"an unknown type":      `{"type":"text"}`,
		"another draft":        `{"$schema":"http://json-schema.org/draft-07/schema#"}`,
		"look-ahead":           `{"pattern":"(?=a)"}`,
		"a long pattern":       `{"pattern":"` + strings.Repeat("a", 2000) + `"}`,
		"a list of properties": `{"properties":[]}`,
		"a negative length":    `{"minLength":-1}`,
		"half an item":         `{"minItems":0.5}`,
		"no schema inside":     `{"items":7}`,
		"no object":            `[]`,
		"nothing to choose":    `{"anyOf":[]}`,
		"a schema in a def":    `{"$defs":{"a":{"if":true}}}`,
	} {
		if _, err := extension.ParseSchema([]byte(schema)); err == nil {
			t.Errorf("%s is read", name)
		}
	}
}

func TestSchemasThatNeverEndAreStopped(t *testing.T) {
	many := strings.Repeat(`{"$ref":"#/$defs/%d"},`, 8)
	var defs []string
	for i := range 12 {
		defs = append(defs, fmt.Sprintf(`"%d":{"allOf":[%s]}`, i, strings.TrimSuffix(strings.ReplaceAll(many, "%d", fmt.Sprint(i+1)), ",")))
	}
	for name, schema := range map[string]string{
		"itself":      `{"$ref":"#"}`,
		"itself, not": `{"not":{"$ref":"#"}}`,
		"eightfold":   `{"$defs":{` + strings.Join(defs, ",") + `,"12":{}},"$ref":"#/$defs/0"}`,
	} {
		s, err := extension.ParseSchema([]byte(schema))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := s.Validate([]byte(`{}`)); err == nil || !strings.Contains(err.Error(), "too many steps") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzSchema: whatever is read as a schema answers for every document, the
// same each time.
func FuzzSchema(f *testing.F) {
	f.Add(`{"type":"object","properties":{"a":{"minimum":1}}}`, `{"a":0.1}`)
	f.Add(`{"$defs":{"a":{"anyOf":[{"$ref":"#"},true]}},"$ref":"#/$defs/a"}`, `{}`)
	f.Fuzz(func(t *testing.T, schema, doc string) {
		s, err := extension.ParseSchema([]byte(schema))
		if err != nil {
			return
		}
		first, second := s.Validate([]byte(doc)), s.Validate([]byte(doc))
		if (first == nil) != (second == nil) {
			t.Fatalf("%v and %v", first, second)
		}
	})
}
