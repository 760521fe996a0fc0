package botauth

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what is read before anything is known about who sent it.
const (
	maxField   = 8 << 10 // bytes of all lines of a field together
	maxMembers = 16      // of a dictionary
	maxItems   = 32      // of an inner list
	maxParams  = 16      // of an item
)

// A kind is the type of a bare item. Decimals, dates and display strings have
// no place in signatures and are refused.
type kind byte

const (
	boolean kind = iota
	integer
	text
	token
	binary
)

// A bare is an item of a structured field without its parameters.
type bare struct {
	kind kind
	flag bool   // of a boolean
	n    int64  // of an integer
	s    string // of a text or a token
	b    []byte // of a binary
}

type param struct {
	name  string
	value bare
}

// An item is a bare item or, where list is not nil, an inner list.
type item struct {
	bare
	list   []item
	params []param
}

// A member is an entry of a dictionary.
type member struct {
	name string
	item
}

// param returns the parameter of a name, or nil.
func (i *item) param(name string) *bare {
	for at := range i.params {
		if i.params[at].name == name {
			return &i.params[at].value
		}
	}
	return nil
}

// find returns the member of a name, or nil.
func find(members []member, name string) *member {
	if i := slices.IndexFunc(members, func(m member) bool { return m.name == name }); i >= 0 {
		return &members[i]
	}
	return nil
}

// parseDictionary reads the lines of a field that is a dictionary (RFC 8941,
// section 3.2). It is stricter than the RFC where the RFC lets one text be
// read in two ways: names that are given twice are refused, in a dictionary
// and among parameters, and so are numbers and base64 in other than their
// canonical forms.
func parseDictionary(lines []string) ([]member, error) {
	size := 0
	for _, line := range lines {
		if size += len(line); size > maxField {
			return nil, fmt.Errorf("it is longer than %d bytes", maxField)
		}
	}
	p := &parser{rest: strings.Trim(strings.Join(lines, ", "), " ")}
	if !printable(p.rest) {
		return nil, errors.New("it has a character that is not printable ASCII")
	}
	var list []member
	for p.rest != "" {
		m, err := p.member()
		if err != nil {
			return nil, err
		}
		if find(list, m.name) != nil {
			return nil, errors.New("a name is given twice")
		}
		if list = append(list, m); len(list) > maxMembers {
			return nil, fmt.Errorf("it has more than %d members", maxMembers)
		}
		p.rest = strings.TrimLeft(p.rest, " \t")
		if p.rest == "" {
			break
		}
		if !p.eat(',') {
			return nil, errors.New("a comma is missing")
		}
		if p.rest = strings.TrimLeft(p.rest, " \t"); p.rest == "" {
			return nil, errors.New("nothing follows the last comma")
		}
	}
	return list, nil
}

// A parser has what is not read yet.
type parser struct{ rest string }

// eat moves past a character if it is next.
func (p *parser) eat(c byte) bool {
	if p.rest == "" || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

// take moves past the characters that belong, and returns them.
func (p *parser) take(belongs func(byte) bool) string {
	n := 0
	for n < len(p.rest) && belongs(p.rest[n]) {
		n++
	}
	taken := p.rest[:n]
	p.rest = p.rest[n:]
	return taken
}

func (p *parser) member() (m member, err error) {
	if m.name, err = p.key(); err != nil {
		return m, err
	}
	if !p.eat('=') {
		m.bare = bare{kind: boolean, flag: true}
		m.params, err = p.params()
		return m, err
	}
	if p.eat('(') {
		m.list, err = p.innerList()
	} else {
		m.bare, err = p.bare()
	}
	if err != nil {
		return m, err
	}
	m.params, err = p.params()
	return m, err
}

// innerList reads what follows an opening parenthesis, without the list's
// parameters. The result is not nil.
func (p *parser) innerList() ([]item, error) {
	list := []item{}
	for {
		p.rest = strings.TrimLeft(p.rest, " ")
		if p.eat(')') {
			return list, nil
		}
		var i item
		var err error
		if i.bare, err = p.bare(); err != nil {
			return nil, err
		}
		if i.params, err = p.params(); err != nil {
			return nil, err
		}
		if list = append(list, i); len(list) > maxItems {
			return nil, fmt.Errorf("a list has more than %d items", maxItems)
		}
		if p.rest == "" || p.rest[0] != ' ' && p.rest[0] != ')' {
			return nil, errors.New("a list is not closed")
		}
	}
}

func (p *parser) params() ([]param, error) {
	var list []param
	for p.eat(';') {
		p.rest = strings.TrimLeft(p.rest, " ")
		name, err := p.key()
		if err != nil {
			return nil, err
		}
		value := bare{kind: boolean, flag: true}
		if p.eat('=') {
			if value, err = p.bare(); err != nil {
				return nil, err
			}
		}
		if slices.ContainsFunc(list, func(q param) bool { return q.name == name }) {
			return nil, errors.New("a parameter is given twice")
		}
		if list = append(list, param{name, value}); len(list) > maxParams {
			return nil, fmt.Errorf("an item has more than %d parameters", maxParams)
		}
	}
	return list, nil
}

func lower(c byte) bool { return c >= 'a' && c <= 'z' }
func digit(c byte) bool { return c >= '0' && c <= '9' }
func alpha(c byte) bool { return lower(c) || c >= 'A' && c <= 'Z' }

func (p *parser) key() (string, error) {
	if p.rest == "" || !lower(p.rest[0]) && p.rest[0] != '*' {
		return "", errors.New("a name must begin with a lower case letter")
	}
	return p.take(func(c byte) bool { return lower(c) || digit(c) || strings.IndexByte("_-.*", c) >= 0 }), nil
}

func (p *parser) bare() (bare, error) {
	if p.rest == "" {
		return bare{}, errors.New("a value is missing")
	}
	switch c := p.rest[0]; {
	case c == '"':
		return p.text()
	case c == ':':
		return p.binary()
	case c == '?':
		if strings.HasPrefix(p.rest, "?0") || strings.HasPrefix(p.rest, "?1") {
			flag := p.rest[1] == '1'
			p.rest = p.rest[2:]
			return bare{kind: boolean, flag: flag}, nil
		}
		return bare{}, errors.New("a boolean must be ?0 or ?1")
	case c == '-' || digit(c):
		return p.integer()
	case alpha(c) || c == '*':
		return bare{kind: token, s: p.take(func(c byte) bool {
			return alpha(c) || digit(c) || strings.IndexByte("!#$%&'*+-.^_`|~:/", c) >= 0
		})}, nil
	}
	return bare{}, errors.New("a value is no string, number, token, boolean or base64")
}

// integer reads at most 15 digits, without zeros in front.
func (p *parser) integer() (bare, error) {
	s := p.take(func(c byte) bool { return c == '-' || digit(c) })
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != s || len(strings.TrimPrefix(s, "-")) > 15 || strings.HasPrefix(p.rest, ".") {
		return bare{}, errors.New("a number is no integer in its shortest form, of at most 15 digits")
	}
	return bare{kind: integer, n: n}, nil
}

func (p *parser) text() (bare, error) {
	var out strings.Builder
	for i := 1; i < len(p.rest); i++ {
		c := p.rest[i]
		switch c {
		case '"':
			p.rest = p.rest[i+1:]
			return bare{kind: text, s: out.String()}, nil
		case '\t':
			return bare{}, errors.New("a string has a tab in it")
		case '\\':
			if i++; i == len(p.rest) || p.rest[i] != '"' && p.rest[i] != '\\' {
				return bare{}, errors.New("a string has an escape that is none")
			}
			c = p.rest[i]
		}
		out.WriteByte(c)
	}
	return bare{}, errors.New("a string is not closed")
}

func (p *parser) binary() (bare, error) {
	encoded, rest, closed := strings.Cut(p.rest[1:], ":")
	b, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !closed || err != nil {
		return bare{}, errors.New("a byte sequence is no base64 between colons")
	}
	p.rest = rest
	return bare{kind: binary, b: b}, nil
}

// String writes the item as RFC 8941, section 4.1, wants it: the one form that
// signatures are made over.
func (i *item) String() string {
	var out bytes.Buffer
	i.write(&out)
	return out.String()
}

func (i *item) write(out *bytes.Buffer) {
	if i.list != nil {
		out.WriteByte('(')
		for at := range i.list {
			if at > 0 {
				out.WriteByte(' ')
			}
			i.list[at].write(out)
		}
		out.WriteByte(')')
	} else {
		i.bare.write(out)
	}
	for _, p := range i.params {
		out.WriteByte(';')
		out.WriteString(p.name)
		if p.value.kind == boolean && p.value.flag {
			continue
		}
		out.WriteByte('=')
		p.value.write(out)
	}
}

func (v *bare) write(out *bytes.Buffer) {
	switch v.kind {
	case boolean:
		if v.flag {
			out.WriteString("?1")
		} else {
			out.WriteString("?0")
		}
	case integer:
		out.WriteString(strconv.FormatInt(v.n, 10))
	case text:
		out.WriteByte('"')
		for i := range len(v.s) {
			if v.s[i] == '"' || v.s[i] == '\\' {
				out.WriteByte('\\')
			}
			out.WriteByte(v.s[i])
		}
		out.WriteByte('"')
	case token:
		out.WriteString(v.s)
	case binary:
		out.WriteByte(':')
		out.WriteString(base64.StdEncoding.EncodeToString(v.b))
		out.WriteByte(':')
	}
}
