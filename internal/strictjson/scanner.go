package strictjson

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A scanner walks a document. value checks everything that the grammar and
// this package ask for; skip and text may be used only where value has been.
type scanner struct {
	doc   []byte
	at    int
	path  string   // of the document, as errors name it
	trail [][]byte // names of the members that s.at is inside
}

// where returns the path of the member that s.at is inside.
func (s *scanner) where() string {
	path := s.path
	for _, name := range s.trail {
		path = join(path, string(name))
	}
	return path
}

func (s *scanner) space() {
	for s.at < len(s.doc) {
		switch s.doc[s.at] {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return
		}
	}
}

func (s *scanner) fail(problem string) error {
	return &Error{s.where(), fmt.Sprintf("is not valid JSON at byte %d: %s", s.at, problem)}
}

// value checks the JSON value at s.at and moves past it.
func (s *scanner) value(depth int) error {
	if s.at >= len(s.doc) {
		return s.fail("it ends too early")
	}
	switch c := s.doc[s.at]; {
	case c == '{':
		return s.object(depth)
	case c == '[':
		return s.array(depth)
	case c == '"':
		_, err := s.text()
		return err
	case c == '-' || '0' <= c && c <= '9':
		return s.number()
	}
	for _, word := range []string{"true", "false", "null"} {
		if strings.HasPrefix(string(s.doc[s.at:min(s.at+5, len(s.doc))]), word) {
			s.at += len(word)
			return nil
		}
	}
	return s.fail("a value is expected")
}

func (s *scanner) object(depth int) error {
	if depth > MaxDepth {
		return &Error{s.where(), fmt.Sprintf("is nested deeper than %d levels", MaxDepth)}
	}
	s.at++
	names := make([][]byte, 0, 8)
	for first := true; ; first = false {
		s.space()
		if s.at < len(s.doc) && s.doc[s.at] == '}' && first {
			s.at++
			return nil
		}
		if s.at >= len(s.doc) || s.doc[s.at] != '"' {
			return s.fail("a member name is expected")
		}
		name, err := s.text()
		if err != nil {
			return err
		}
		for _, other := range names {
			if alike(name, other) {
				return &Error{join(s.where(), string(name)), "is given twice"}
			}
		}
		if len(names) == 256 {
			return &Error{s.where(), "has an object with more than 256 members"}
		}
		names = append(names, name)
		s.space()
		if s.at >= len(s.doc) || s.doc[s.at] != ':' {
			return s.fail("a colon is expected")
		}
		s.at++
		s.space()
		s.trail = append(s.trail, name)
		if err := s.value(depth + 1); err != nil {
			return err
		}
		s.trail = s.trail[:len(s.trail)-1]
		if done, err := s.comma('}'); done || err != nil {
			return err
		}
	}
}

func (s *scanner) array(depth int) error {
	if depth > MaxDepth {
		return &Error{s.where(), fmt.Sprintf("is nested deeper than %d levels", MaxDepth)}
	}
	s.at++
	s.space()
	if s.at < len(s.doc) && s.doc[s.at] == ']' {
		s.at++
		return nil
	}
	for {
		s.space()
		if err := s.value(depth + 1); err != nil {
			return err
		}
		if done, err := s.comma(']'); done || err != nil {
			return err
		}
	}
}

// comma moves past a comma, or past end and reports that the list is done.
func (s *scanner) comma(end byte) (done bool, err error) {
	s.space()
	switch {
	case s.at >= len(s.doc):
		return false, s.fail("it ends too early")
	case s.doc[s.at] == end:
		s.at++
		return true, nil
	case s.doc[s.at] == ',':
		s.at++
		return false, nil
	}
	return false, s.fail("a comma is expected")
}

// number checks the grammar of RFC 8259, section 6.
func (s *scanner) number() error {
	digits := func() bool {
		start := s.at
		for s.at < len(s.doc) && '0' <= s.doc[s.at] && s.doc[s.at] <= '9' {
			s.at++
		}
		return s.at > start
	}
	next := func(set string) bool {
		if s.at < len(s.doc) && strings.IndexByte(set, s.doc[s.at]) >= 0 {
			s.at++
			return true
		}
		return false
	}
	next("-")
	start := s.at
	if !digits() || (s.doc[start] == '0' && s.at > start+1) {
		return s.fail("a number is malformed")
	}
	if next(".") && !digits() {
		return s.fail("a number is malformed")
	}
	if next("eE") {
		next("+-")
		if !digits() {
			return s.fail("a number is malformed")
		}
	}
	return nil
}

// skip moves past a value that value has already checked.
func (s *scanner) skip() {
	depth := 0
	for s.at < len(s.doc) {
		switch s.doc[s.at] {
		case '"':
			s.skipText()
		case '{', '[':
			depth++
			s.at++
		case '}', ']':
			if depth == 0 {
				return
			}
			depth--
			s.at++
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return
			}
			s.at++
			continue
		default:
			s.at++
			for s.at < len(s.doc) && strings.IndexByte(",:]} \t\r\n", s.doc[s.at]) < 0 {
				s.at++
			}
		}
		if depth == 0 {
			return
		}
	}
}

// skipText moves past a string that value has already checked.
func (s *scanner) skipText() {
	s.at++
	for {
		end := s.at + bytes.IndexByte(s.doc[s.at:], '"')
		escape := bytes.IndexByte(s.doc[s.at:end], '\\')
		if escape < 0 {
			s.at = end + 1
			return
		}
		s.at += escape + 2
	}
}

// text decodes the string at s.at and moves past it. The result may alias the
// document.
func (s *scanner) text() ([]byte, error) {
	s.at++
	start, ascii := s.at, true
	for i, c := range s.doc[start:] {
		if c >= 0x20 && c != '"' && c != '\\' {
			ascii = ascii && c < utf8.RuneSelf
			continue
		}
		s.at = start + i
		switch {
		case c == '\\':
			return s.escaped(start)
		case c != '"':
			return nil, s.fail("a string holds a control character")
		}
		raw := s.doc[start:s.at]
		if !ascii && !utf8.Valid(raw) {
			return nil, s.fail("a string is not valid UTF-8")
		}
		s.at++
		return raw, nil
	}
	s.at = len(s.doc)
	return nil, s.fail("a string has no end")
}

// escaped decodes a string that has at least one escape, the first at s.at.
func (s *scanner) escaped(start int) ([]byte, error) {
	out := append([]byte(nil), s.doc[start:s.at]...)
	for s.at < len(s.doc) {
		c := s.doc[s.at]
		switch {
		case c == '"':
			if !utf8.Valid(out) {
				return nil, s.fail("a string is not valid UTF-8")
			}
			s.at++
			return out, nil
		case c < 0x20:
			return nil, s.fail("a string holds a control character")
		case c != '\\':
			out = append(out, c)
			s.at++
			continue
		}
		if s.at+1 >= len(s.doc) {
			break
		}
		e := s.doc[s.at+1]
		if e == 'u' {
			r, err := s.unicode()
			if err != nil {
				return nil, err
			}
			out = utf8.AppendRune(out, r)
			continue
		}
		i := strings.IndexByte(`"\/bfnrt`, e)
		if i < 0 {
			return nil, s.fail("a string has an unknown escape")
		}
		out = append(out, "\"\\/\b\f\n\r\t"[i])
		s.at += 2
	}
	return nil, s.fail("a string has no end")
}

// unicode decodes a \uXXXX escape at s.at, or a pair of them that makes one
// character.
func (s *scanner) unicode() (rune, error) {
	r, ok := s.hex4()
	if !ok {
		return 0, s.fail(`a \u escape is malformed`)
	}
	if r < 0xd800 || r > 0xdfff {
		return r, nil
	}
	if r > 0xdbff || s.at+1 >= len(s.doc) || s.doc[s.at] != '\\' || s.doc[s.at+1] != 'u' {
		return 0, s.fail("a string has half a surrogate pair")
	}
	low, ok := s.hex4()
	if !ok || low < 0xdc00 || low > 0xdfff {
		return 0, s.fail("a string has half a surrogate pair")
	}
	return (r-0xd800)<<10 + (low - 0xdc00) + 0x10000, nil
}

func (s *scanner) hex4() (rune, bool) {
	if s.at+6 > len(s.doc) {
		return 0, false
	}
	var r rune
	for _, c := range s.doc[s.at+2 : s.at+6] {
		switch {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case 'A' <= c && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	s.at += 6
	return r, true
}
