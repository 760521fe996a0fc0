package extension

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/tollgate402/tollgate/internal/strictjson"
)

// A kind is one of the types of JSON values.
type kind string

const (
	null    kind = "null"
	boolean kind = "boolean"
	number  kind = "number"
	text    kind = "string"
	array   kind = "array"
	object  kind = "object"
)

// A value is a JSON value that has been read. The zero value is none.
type value struct {
	kind  kind
	text  string // of a string, or true or false
	num   decimal
	items []value // of an array, and of an object in the order of names
	names []string
}

// parse reads doc, one JSON object of at most limit bytes, strictly.
func parse(doc []byte, path string, limit int) (value, error) {
	if _, err := strictjson.Parse(doc, path, limit); err != nil {
		return value{}, err
	}
	return read(doc)
}

// read reads a JSON value that has been found to be strict.
func read(doc []byte) (value, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	return next(d)
}

func next(d *json.Decoder) (value, error) {
	token, err := d.Token()
	if err != nil {
		return value{}, err
	}
	switch t := token.(type) {
	case nil:
		return value{kind: null}, nil
	case bool:
		return value{kind: boolean, text: strconv.FormatBool(t)}, nil
	case string:
		return value{kind: text, text: t}, nil
	case json.Number:
		n, err := parseDecimal(t.String())
		return value{kind: number, num: n}, err
	case json.Delim:
		v := value{kind: array}
		if t == '{' {
			v.kind = object
		}
		for d.More() {
			if v.kind == object {
				name, err := next(d)
				if err != nil {
					return value{}, err
				}
				v.names = append(v.names, name.text)
			}
			item, err := next(d)
			if err != nil {
				return value{}, err
			}
			v.items = append(v.items, item)
		}
		_, err := d.Token() // the end
		return v, err
	}
	return value{}, errors.New("is no JSON value")
}

// member returns a member of an object.
func (v value) member(name string) (value, bool) {
	for i, n := range v.names {
		if n == name {
			return v.items[i], true
		}
	}
	return value{}, false
}

// equal reports whether two values mean the same, whatever the order of
// members and the spelling of numbers.
func (v value) equal(w value) bool {
	if v.kind != w.kind || v.text != w.text || len(v.items) != len(w.items) || v.num != w.num {
		return false
	}
	for i, item := range v.items {
		other := w.items[i]
		if v.kind == object {
			var ok bool
			if other, ok = w.member(v.names[i]); !ok {
				return false
			}
		}
		if !item.equal(other) {
			return false
		}
	}
	return true
}

// within reports whether all of v is in w: objects may have more members
// there, arrays must be the same.
func (v value) within(w value) bool {
	if v.kind != object || w.kind != object {
		return v.equal(w)
	}
	for i, name := range v.names {
		other, ok := w.member(name)
		if !ok || !v.items[i].within(other) {
			return false
		}
	}
	return true
}

// A decimal is a number: 0.digits times ten to the power of exponent, where
// digits neither begins nor ends with a zero. The zero decimal is 0.
type decimal struct {
	negative bool
	digits   string
	exponent int
}

func parseDecimal(s string) (decimal, error) {
	var n decimal
	s, n.negative = strings.TrimPrefix(s, "-"), strings.HasPrefix(s, "-")
	mantissa, power, _ := strings.Cut(strings.ToLower(s), "e")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := whole + fraction
	n.exponent = len(whole)
	if power != "" {
		e, err := strconv.Atoi(power)
		if err != nil || e > 1<<20 || e < -1<<20 {
			return decimal{}, errors.New("has a number with an exponent that is too large")
		}
		n.exponent += e
	}
	trimmed := strings.TrimLeft(digits, "0")
	n.exponent -= len(digits) - len(trimmed)
	if n.digits = strings.TrimRight(trimmed, "0"); n.digits == "" {
		return decimal{}, nil
	}
	return n, nil
}

// integer reports whether n has no fraction.
func (n decimal) integer() bool { return n.exponent >= len(n.digits) }

// cmp compares two numbers.
func (n decimal) cmp(m decimal) int {
	switch {
	case n == m:
		return 0
	case n.sign() != m.sign():
		return n.sign() - m.sign()
	}
	less := -n.sign() // where n is nearer to zero
	if n.exponent != m.exponent {
		if n.exponent < m.exponent {
			return less
		}
		return -less
	}
	// Digits that neither begin nor end with zeros compare like fractions.
	if n.digits < m.digits {
		return less
	}
	return -less
}

func (n decimal) sign() int {
	switch {
	case n.digits == "":
		return 0
	case n.negative:
		return -1
	}
	return 1
}
