// Package strictjson reads JSON that strangers send about money.
//
// Two programs that read one document differently can be played against each
// other, so this reader refuses whatever another one might read another way:
// repeated names, names that differ from a known one only in case, invalid
// UTF-8, lone surrogates, numbers where a string is due, data after the value,
// and documents that are too large or too deep. Unknown members are allowed,
// as the x402 specification asks; a member that is null counts as absent.
package strictjson

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxDepth is how many objects and arrays may stand inside each other.
const MaxDepth = 16

// An Error says what is wrong with a document and where.
type Error struct {
	Path    string // dotted path of the member, empty for the document itself
	Problem string // what is wrong, in words for the sender
}

func (e *Error) Error() string {
	if e.Path == "" {
		return e.Problem
	}
	return e.Path + ": " + e.Problem
}

// An Object is a JSON object whose members are still encoded.
// The zero Object has no members. An Object aliases the document that it was
// parsed from and must not outlive changes to it.
type Object struct {
	within  string // path of what the object is in
	name    string // in there; empty for the document itself
	raw     []byte
	members []member
}

type member struct{ name, value []byte }

// Parse reads doc, which must be exactly one JSON object of at most limit
// bytes. path is put in front of the names in errors.
func Parse(doc []byte, path string, limit int) (Object, error) {
	if len(doc) > limit {
		return Object{}, &Error{path, fmt.Sprintf("is %d bytes long, the limit is %d", len(doc), limit)}
	}
	s := scanner{doc: doc, path: path}
	s.space()
	start := s.at
	if err := s.value(1); err != nil {
		return Object{}, err
	}
	end := s.at
	s.space()
	if s.at != len(doc) {
		return Object{}, &Error{path, "has data after the JSON value"}
	}
	return open(doc[start:end], path, "")
}

// open splits an object that a scanner has found valid into its members.
func open(raw []byte, within, name string) (Object, error) {
	o := Object{within: within, name: name, raw: raw}
	if len(raw) == 0 || raw[0] != '{' {
		return Object{}, &Error{o.Path(), "must be a JSON object"}
	}
	o.members = make([]member, 0, 8)
	s := scanner{doc: raw, at: 1}
	for {
		s.space()
		if raw[s.at] == '}' {
			return o, nil
		}
		if raw[s.at] == ',' {
			s.at++
			s.space()
		}
		name, err := s.text()
		if err != nil {
			return Object{}, err
		}
		s.space()
		s.at++ // the colon
		s.space()
		start := s.at
		s.skip()
		o.members = append(o.members, member{name, raw[start:s.at]})
	}
}

// Raw returns the object as it stood in the document.
func (o Object) Raw() []byte { return o.raw }

// Path returns the object's place in the document, as errors name it.
func (o Object) Path() string {
	if o.name == "" {
		return o.within
	}
	return join(o.within, o.name)
}

// Names returns the names of all members, in order.
func (o Object) Names() []string {
	names := make([]string, len(o.members))
	for i, m := range o.members {
		names[i] = string(m.name)
	}
	return names
}

// Known refuses members whose name equals one of names except for case: a
// reader that ignores case would take them for the real ones.
func (o Object) Known(names ...string) error {
	for _, m := range o.members {
		for _, n := range names {
			if string(m.name) != n && alike(m.name, n) {
				return &Error{o.at(string(m.name)), fmt.Sprintf("must be spelled %q", n)}
			}
		}
	}
	return nil
}

// alike reports whether two names are equal but for case. A character of one
// may take three bytes where it takes one in the other.
func alike[T string | []byte](a []byte, b T) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	if a[0]|b[0] < utf8.RuneSelf && a[0]|0x20 != b[0]|0x20 {
		return false // most are told apart by their first letters
	}
	return len(a) < 3*len(b)+1 && strings.EqualFold(string(a), string(b))
}

// Value returns the member called name as raw JSON; a null counts as absent.
func (o Object) Value(name string) ([]byte, bool) {
	for _, m := range o.members {
		if string(m.name) == name {
			return m.value, string(m.value) != "null"
		}
	}
	return nil, false
}

// Has reports whether the member is there and not null.
func (o Object) Has(name string) bool {
	_, ok := o.Value(name)
	return ok
}

// Text returns a required string member.
func (o Object) Text(name string) (string, error) {
	s, ok, err := o.OptionalText(name)
	if err == nil && !ok {
		return "", o.Missing(name)
	}
	return s, err
}

// OptionalText returns a string member, or false when it is absent.
func (o Object) OptionalText(name string) (string, bool, error) {
	raw, ok := o.Value(name)
	if !ok {
		return "", false, nil
	}
	if raw[0] != '"' {
		return "", false, o.Wrong(name, "must be a JSON string")
	}
	s := scanner{doc: raw}
	text, err := s.text() // which has been valid before
	return string(text), true, err
}

// Integer returns a required member that is a JSON number without sign,
// fraction or exponent, at most max and of at most 9 digits.
func (o Object) Integer(name string, max int) (int, error) {
	raw, ok := o.Value(name)
	if !ok {
		return 0, o.Missing(name)
	}
	n, ok := parseInt(raw)
	if !ok {
		return 0, o.Wrong(name, "must be a JSON number of at most 9 digits, without sign, fraction or exponent")
	}
	if n > max {
		return 0, o.Wrong(name, fmt.Sprintf("must be at most %d", max))
	}
	return n, nil
}

// Object returns a required member that is an object.
func (o Object) Object(name string) (Object, error) {
	sub, ok, err := o.OptionalObject(name)
	if err == nil && !ok {
		return Object{}, o.Missing(name)
	}
	return sub, err
}

// OptionalObject returns a member that is an object, or false when it is absent.
func (o Object) OptionalObject(name string) (Object, bool, error) {
	raw, ok := o.Value(name)
	if !ok {
		return Object{}, false, nil
	}
	sub, err := open(raw, o.Path(), name)
	return sub, err == nil, err
}

// Objects returns a required member that is an array of at most max objects.
func (o Object) Objects(name string, max int) ([]Object, error) {
	raw, ok := o.Value(name)
	if !ok {
		return nil, o.Missing(name)
	}
	if raw[0] != '[' {
		return nil, o.Wrong(name, "must be a JSON array")
	}
	var list []Object
	s := scanner{doc: raw, at: 1}
	for {
		s.space()
		if raw[s.at] == ']' {
			return list, nil
		}
		if raw[s.at] == ',' {
			s.at++
			s.space()
		}
		if len(list) == max {
			return nil, o.Wrong(name, fmt.Sprintf("has more than %d elements", max))
		}
		start := s.at
		s.skip()
		sub, err := open(raw[start:s.at], fmt.Sprintf("%s[%d]", o.at(name), len(list)), "")
		if err != nil {
			return nil, err
		}
		list = append(list, sub)
	}
}

// Missing is the error for a required member that is not there.
func (o Object) Missing(name string) error { return &Error{o.at(name), "is missing"} }

// Wrong is the error for a member whose value cannot be used.
func (o Object) Wrong(name, problem string) error { return &Error{o.at(name), problem} }

func (o Object) at(name string) string { return join(o.Path(), name) }

// join appends a name that a stranger chose. Errors end up before people and in
// logs, so names that no protocol uses are not repeated there.
func join(path, name string) string {
	if !plain(name) {
		name = "?"
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

func plain(name string) bool {
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return 0 < len(name) && len(name) <= 64
}

func parseInt(raw []byte) (int, bool) {
	if len(raw) == 0 || len(raw) > 9 || (raw[0] == '0' && len(raw) > 1) {
		return 0, false
	}
	n := 0
	for _, c := range raw {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}
