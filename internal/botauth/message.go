package botauth

import (
	"bytes"
	"errors"
	"fmt"
	"net/textproto"
	"strings"
)

// maxBase is the longest text that a signature may be about, in bytes.
const maxBase = 64 << 10

// A Message is the request as the client sent it. What something in front of
// the verifier has changed cannot be verified any more.
type Message struct {
	Method    string
	Scheme    string // "http" or "https"
	Authority string // the host that was asked for, with its port if there was one
	Path      string // still escaped; begins with "/"
	Query     string // still escaped; without its question mark

	// Header has the fields by their canonical names, as http.Header does.
	Header map[string][]string
}

// base returns the text that a signature is made over (RFC 9421, section 2.5).
// input is the signature's member of Signature-Input.
func (m *Message) base(input *item) ([]byte, error) {
	var out bytes.Buffer
	seen := map[string]bool{}
	for i := range input.list {
		c := &input.list[i]
		value, err := m.component(c)
		if err != nil {
			return nil, err
		}
		if !printable(value) {
			return nil, errors.New("a covered component has a character that is not printable ASCII")
		}
		name := c.String()
		if seen[name] {
			return nil, errors.New("a component is covered twice")
		}
		seen[name] = true
		out.WriteString(name + ": " + value + "\n")
		if out.Len() > maxBase {
			return nil, fmt.Errorf("more than %d bytes are covered", maxBase)
		}
	}
	out.WriteString(`"@signature-params": ` + input.String())
	return out.Bytes(), nil
}

// printable reports whether all of s is printable ASCII or a tab.
func printable(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '\t' && (c < ' ' || c > '~') {
			return false
		}
	}
	return true
}

// component returns the value of a covered component.
func (m *Message) component(c *item) (string, error) {
	if c.kind != text || c.s == "" {
		return "", errors.New("a covered component is no string")
	}
	if c.s[0] != '@' {
		return m.field(c)
	}
	if len(c.params) > 0 {
		return "", errors.New("a derived component has parameters")
	}
	switch c.s {
	case "@method":
		return m.Method, nil
	case "@scheme":
		return strings.ToLower(m.Scheme), nil
	case "@authority":
		return m.authority(), nil
	case "@path":
		return m.path(), nil
	case "@query":
		return "?" + m.Query, nil
	case "@target-uri":
		uri := strings.ToLower(m.Scheme) + "://" + m.authority() + m.path()
		if m.Query != "" {
			uri += "?" + m.Query
		}
		return uri, nil
	}
	return "", errors.New("a derived component is covered that is none of @authority, @method, @path, @query, @scheme and @target-uri")
}

// authority returns the normal form of the host: lower case, and without the
// scheme's own port (RFC 9421, section 2.2.3).
func (m *Message) authority() string {
	a := strings.ToLower(m.Authority)
	switch strings.ToLower(m.Scheme) {
	case "http":
		a = strings.TrimSuffix(a, ":80")
	case "https":
		a = strings.TrimSuffix(a, ":443")
	}
	return a
}

func (m *Message) path() string {
	if m.Path == "" {
		return "/"
	}
	return m.Path
}

// field returns the value of a header field, or of one member of it. A field
// that is not there cannot be covered.
func (m *Message) field(c *item) (string, error) {
	for i := range len(c.s) {
		if x := c.s[i]; !lower(x) && !digit(x) && strings.IndexByte("!#$%&'*+-.^_`|~", x) < 0 {
			return "", errors.New("a covered field has no lower case name")
		}
	}
	lines := m.Header[textproto.CanonicalMIMEHeaderKey(c.s)]
	if len(lines) == 0 {
		return "", errors.New("a covered field is not in the request")
	}
	if len(c.params) > 0 {
		return dictionaryMember(lines, c)
	}
	trimmed := make([]string, len(lines))
	for i, line := range lines {
		trimmed[i] = strings.Trim(line, " \t")
	}
	return strings.Join(trimmed, ", "), nil
}

// dictionaryMember returns what the parameter "key" of a component says (RFC
// 9421, section 2.1.2). The other parameters, "sf", "bs", "tr" and "req", are
// refused: no crawler needs them.
func dictionaryMember(lines []string, c *item) (string, error) {
	key := c.param("key")
	if key == nil || key.kind != text || len(c.params) > 1 {
		return "", errors.New(`a covered field has a parameter that is not "key"`)
	}
	members, err := parseDictionary(lines)
	if err != nil {
		return "", fmt.Errorf("a field of which a member is covered cannot be read: %w", err)
	}
	m := find(members, key.s)
	if m == nil {
		return "", errors.New("a covered member of a field is not in the request")
	}
	return m.String(), nil
}
