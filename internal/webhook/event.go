// Package webhook tells receivers by HTTP what has happened: from a durable
// queue, signed, and at least once.
//
// An event is written to the ledger in the very commit that makes it true, so
// nothing is lost and nothing is announced that did not happen. A Queue then
// delivers it until the receiver has taken it. A crash between a delivery and
// the note of it delivers again, so receivers go by the event's id; the same
// package has Verify for them.
package webhook

import (
	"bytes"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"time"
)

// MaxData is the length of the longest data of an event, in bytes. With it,
// and with MaxEndpoints of them, the entries of an event are far from filling a
// commit, so an event is never the reason that what it is about is not stored.
const (
	MaxData      = 16 << 10
	MaxEndpoints = 16
)

// An Event is something that has happened, as receivers get it.
type Event struct {
	// ID is 26 characters of Crockford's base 32 in lower case: 128 random bits.
	// However often the event is delivered, it stays.
	ID string `json:"id"`

	Type    string          `json:"type"`    // such as "link.paid"
	Created time.Time       `json:"created"` // in UTC, to the millisecond
	Data    json.RawMessage `json:"data"`    // as the type says; compact
}

const idBytes = 16

// crockford leaves out the letters that look like digits, and u.
var crockford = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewEvent returns an event of now, with an id of bits from random.
func NewEvent(random io.Reader, kind string, now time.Time, data json.RawMessage) (Event, error) {
	var bits [idBytes]byte
	if _, err := io.ReadFull(random, bits[:]); err != nil {
		return Event{}, fmt.Errorf("webhook: making an id: %w", err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return Event{}, fmt.Errorf("webhook: the data of a %s is no JSON: %w", kind, err)
	}
	e := Event{ID: crockford.EncodeToString(bits[:]), Type: kind, Created: now.UTC().Truncate(time.Millisecond), Data: compact.Bytes()}
	return e, e.check()
}

// A type goes into a header, and a name into a key of the ledger.
var (
	typeForm = regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$`)
	nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
)

func (e *Event) check() error {
	switch {
	case !isID(e.ID):
		return errors.New("webhook: an event's id is not 26 characters of base 32")
	case len(e.Type) > 64 || !typeForm.MatchString(e.Type):
		return fmt.Errorf("webhook: %.64q is no type of an event, such as link.paid", e.Type)
	case e.Created.Year() < 1970 || e.Created.Year() > 9999:
		return errors.New("webhook: an event has no date")
	case len(e.Data) > MaxData:
		return fmt.Errorf("webhook: the data of a %s has %d bytes, the most is %d", e.Type, len(e.Data), MaxData)
	case !json.Valid(e.Data):
		return fmt.Errorf("webhook: the data of a %s is no JSON", e.Type)
	}
	return nil
}

func isID(s string) bool {
	bits, err := crockford.DecodeString(s)
	return err == nil && len(bits) == idBytes && crockford.EncodeToString(bits) == s
}

// body returns what is sent for an event: each time the same.
func (e *Event) body() ([]byte, error) { return json.Marshal(e) }

// An Endpoint is where events are delivered. It prints as its name: its
// secrets, and often its URL, are for nobody's eyes.
type Endpoint struct {
	// Name is 1 to 64 of the characters a-z, 0-9, "-" and "_", and begins with
	// one of the first two kinds. Entries in the ledger have it, so what waits
	// for a name goes to whatever URL that has in the configuration then.
	Name string

	URL string

	// Secrets sign, each by itself: one, or two while a receiver changes from
	// one to the other. Each has MinSecret bytes or more.
	Secrets []string

	// Types are those of the events that are delivered; all if there are none.
	Types []string
}

// MinSecret is the length of the shortest secret, in bytes.
const MinSecret = 32

// String implements fmt.Stringer.
func (p Endpoint) String() string { return p.Name }

// GoString implements fmt.GoStringer.
func (p Endpoint) GoString() string { return "webhook.Endpoint(" + p.Name + ")" }

// LogValue implements slog.LogValuer.
func (p Endpoint) LogValue() slog.Value { return slog.StringValue(p.Name) }

// MarshalText implements encoding.TextMarshaler, which JSON uses too.
func (p Endpoint) MarshalText() ([]byte, error) { return []byte(p.Name), nil }

// check returns the URL of an endpoint that can be used.
func (p *Endpoint) check() (*url.URL, error) {
	if !nameForm.MatchString(p.Name) {
		return nil, fmt.Errorf("webhook: %.64q is no name of an endpoint: take a-z, 0-9, - and _", p.Name)
	}
	u, err := url.Parse(p.URL)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("webhook %s: its url is none", p.Name) // and may be a secret
	}
	if len(p.Secrets) < 1 || len(p.Secrets) > 2 {
		return nil, fmt.Errorf("webhook %s: it must have a secret, or two while you change it", p.Name)
	}
	for _, s := range p.Secrets {
		if len(s) < MinSecret {
			return nil, fmt.Errorf(`webhook %s: a secret must have %d characters or more: take one from "openssl rand -hex 32"`, p.Name, MinSecret)
		}
	}
	for _, t := range p.Types {
		if len(t) > 64 || !typeForm.MatchString(t) {
			return nil, fmt.Errorf("webhook %s: %.64q is no type of an event, such as link.paid", p.Name, t)
		}
	}
	return u, nil
}

func (p *Endpoint) wants(kind string) bool {
	return len(p.Types) == 0 || slices.Contains(p.Types, kind)
}
