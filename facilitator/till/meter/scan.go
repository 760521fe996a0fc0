package meter

import (
	"encoding/json"
	"math/big"
	"strconv"
	"strings"
)

const (
	// maxKey bounds the part of a member's name that is kept, in bytes as
	// they are written: a step of a path, each byte of it escaped.
	maxKey = 6 * maxStep

	// maxNumber and maxExponent bound the numbers that are read. Larger ones
	// are no counts of anything.
	maxNumber   = 40
	maxExponent = 30
)

// A scanner finds the numbers at some paths of JSON that comes in pieces, one
// value after another. It keeps the way from the top to where it is, as far
// as the paths go, and one name or number, so that what it takes does not
// grow with the document. It finds no fault with what is not quite JSON: such
// a text has no numbers, or it has some.
type scanner struct {
	paths []Path
	deep  int // the length of the longest path
	found func(path int, n *big.Rat)
	wrong func(path int) // there is something at a path that is no count

	frames []frame // of the containers that are open, as deep as the paths go
	depth  int     // of all containers that are open
	values int64   // containers that were closed at the top

	in     lexeme
	escape bool   // the next byte of a string is escaped
	asKey  bool   // the string is a member's name that may matter
	text   []byte // of the name or the number
	long   bool   // it has more than is kept
}

type lexeme int

const (
	between lexeme = iota
	inString
	inNumber
	inWord // true, false, null
)

// A frame is an open object or array.
type frame struct {
	array bool
	index int
	here  pathSet // the paths that lead into it
	next  pathSet // those of them that lead on to the value that comes next
	named bool    // a name has been read, and what comes next is its value
}

// A pathSet is a set of paths, by their order.
type pathSet uint32

func newScanner(paths []Path, found func(int, *big.Rat), wrong func(int)) *scanner {
	s := &scanner{paths: paths, found: found, wrong: wrong}
	for _, p := range paths {
		s.deep = max(s.deep, len(p))
	}
	return s
}

// reset forgets where it is: what comes next is a new document.
func (s *scanner) reset() {
	s.frames, s.depth = s.frames[:0], 0
	s.in, s.escape, s.asKey, s.text, s.long = between, false, false, s.text[:0], false
}

// here returns the paths that lead to the value that comes next.
func (s *scanner) here() pathSet {
	if s.depth > len(s.frames) {
		return 0 // deeper than any path
	}
	if s.depth == 0 {
		return pathSet(1)<<len(s.paths) - 1
	}
	return s.frames[s.depth-1].next
}

func (s *scanner) write(b []byte) {
	for _, c := range b {
		switch s.in {
		case inString:
			s.inside(c)
			continue
		case inNumber:
			if numeral(c) {
				s.keep(c, maxNumber)
				continue
			}
			s.number()
		case inWord:
			if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
				continue
			}
			s.in = between
		case between:
		}
		s.begin(c)
	}
}

// begin takes a byte that belongs to no string, number or word yet.
func (s *scanner) begin(c byte) {
	switch {
	case c == '{' || c == '[':
		s.open(c == '[')
	case c == '}' || c == ']':
		s.close()
	case c == ',':
		s.comma()
	case c == ':':
		if f := s.top(); f != nil && !f.array {
			f.named = true
		}
	case c == '"':
		f := s.top()
		s.in, s.text, s.long = inString, s.text[:0], false
		s.asKey = f != nil && !f.array && !f.named && f.here != 0
		if f != nil && !f.array && !f.named {
			f.next = 0
		}
	case c == '-' || c >= '0' && c <= '9':
		s.in, s.text, s.long = inNumber, append(s.text[:0], c), false
	case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
		s.in = inWord
	}
}

// top returns the innermost container, or nil if there is none, or if it is
// deeper than any path.
func (s *scanner) top() *frame {
	if s.depth == 0 || s.depth > len(s.frames) {
		return nil
	}
	return &s.frames[s.depth-1]
}

func (s *scanner) open(array bool) {
	here := s.here()
	s.depth++
	if s.depth > s.deep || s.depth > len(s.frames)+1 {
		return
	}
	f := frame{array: array, here: here}
	if array {
		f.next = s.leading(here, "0")
	}
	s.frames = append(s.frames, f)
}

func (s *scanner) close() {
	if s.depth == 0 {
		return
	}
	if s.depth == len(s.frames) {
		s.frames = s.frames[:s.depth-1]
	}
	if s.depth--; s.depth == 0 {
		s.values++
	}
}

func (s *scanner) comma() {
	f := s.top()
	switch {
	case f == nil:
	case f.array:
		f.index++
		if f.next = 0; f.here != 0 {
			f.next = s.leading(f.here, strconv.Itoa(f.index))
		}
	default:
		f.named, f.next = false, 0
	}
}

// leading returns the paths of a set that lead on by a step from the
// innermost container.
func (s *scanner) leading(from pathSet, step string) pathSet {
	var on pathSet
	for i, p := range s.paths {
		if from&(1<<i) != 0 && len(p) >= s.depth && p[s.depth-1] == step {
			on |= 1 << i
		}
	}
	return on
}

// inside takes a byte of a string.
func (s *scanner) inside(c byte) {
	if c == '"' && !s.escape {
		s.in = between
		if f := s.top(); s.asKey && f != nil {
			if name, ok := s.name(); ok {
				f.next = s.leading(f.here, name)
			}
		}
		s.asKey = false
		return
	}
	s.escape = c == '\\' && !s.escape
	if s.asKey {
		s.keep(c, maxKey)
	}
}

// keep adds a byte to the text, up to a limit.
func (s *scanner) keep(c byte, limit int) {
	if len(s.text) < limit {
		s.text = append(s.text, c)
	} else {
		s.long = true
	}
}

// name returns the member's name that was read.
func (s *scanner) name() (string, bool) {
	if s.long {
		return "", false
	}
	raw := string(s.text)
	if !strings.Contains(raw, `\`) {
		return raw, true
	}
	var name string
	err := json.Unmarshal([]byte(`"`+raw+`"`), &name)
	return name, err == nil
}

// number ends a number.
func (s *scanner) number() {
	s.in = between
	on := s.here()
	if f := s.top(); f != nil && !f.array && !f.named {
		return // in the place of a name
	}
	for i, p := range s.paths {
		if on&(1<<i) == 0 || len(p) != s.depth {
			continue
		}
		if n, ok := count(string(s.text)); ok && !s.long {
			s.found(i, n)
		} else {
			s.wrong(i)
		}
	}
}

func numeral(c byte) bool {
	return c >= '0' && c <= '9' || c == '.' || c == 'e' || c == 'E' || c == '+' || c == '-'
}

// count reads a number of JSON that can be a count: one that is not negative,
// and not too long to be computed with.
func count(text string) (*big.Rat, bool) {
	if !json.Valid([]byte(text)) || text[0] == '-' {
		return nil, false
	}
	if _, exponent, ok := strings.Cut(strings.ToLower(text), "e"); ok {
		if n, err := strconv.Atoi(exponent); err != nil || n > maxExponent || n < -maxExponent {
			return nil, false
		}
	}
	return new(big.Rat).SetString(text)
}
