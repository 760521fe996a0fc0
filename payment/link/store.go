package link

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// What becomes of a link is announced under these names.
const (
	EventPaid     = "link.paid"     // a use is paid
	EventExpired  = "link.expired"  // the time is over, and not all uses are paid
	EventReversed = "link.reversed" // what was paid is not: a reorg has taken it away
)

// A Payments keeps the payments that claim links: a *ledger.Ledger.
type Payments interface {
	Get(ctx context.Context, k payment.Key) (ledger.Record, error)
	UpdateWith(ctx context.Context, k payment.Key, change func(*ledger.Record) error, riders ...ledger.Rider) (ledger.Record, error)
}

// A Store keeps links beside the payments that claim them, on the same ledger.
// Its methods are safe for concurrent use, by several processes if the ledger
// is; what they have returned is on disk. Its fields must not change once it
// is in use.
type Store struct {
	Entries  ledger.Store
	Payments Payments
	Now      func() time.Time
	Random   io.Reader // of unguessable bits; safe for concurrent use

	// Announce returns what else is written in the commit in which something
	// becomes of a link. u is the use that it is about; nil for
	// EventExpired. Nil announces nothing.
	Announce func(event string, l *Link, u *Use) ([]ledger.Write, error)

	// Changed is told of a link whose status may have changed, after the
	// commit. Nil is told nothing.
	Changed func(ID)
}

// A StatusError says that a link cannot be paid, because of its status.
type StatusError struct{ Status Status }

func (e *StatusError) Error() string {
	switch e.Status {
	case Paid:
		return "the link is paid already"
	case Pending:
		return "the link is being paid by another payment"
	case Expired:
		return "the link has expired"
	case Disabled:
		return "the link is disabled"
	case Active:
	}
	return "the link is " + string(e.Status)
}

var (
	// ErrNotFound says that there is no such link.
	ErrNotFound = errors.New("link: no such link")

	// ErrKeyUsed says that an idempotency key was used for other terms.
	ErrKeyUsed = errors.New("link: the idempotency key was used for another link")
)

// Create stores a link with terms, which Check has returned. With a key, an
// arbitrary text, a second Create with the same key and terms returns the link
// of the first, and one with other terms ErrKeyUsed. Offers do not count:
// they follow from the amount and the configuration, which may have changed
// before a request is sent again.
func (s *Store) Create(ctx context.Context, t Terms, key string) (*Link, error) {
	l, _, err := s.CreateOnce(ctx, t, key)
	return l, err
}

// CreateOnce is Create, and reports whether the key has made the link before.
func (s *Store) CreateOnce(ctx context.Context, t Terms, key string) (l *Link, before bool, err error) {
	id, err := NewID(s.Random)
	if err != nil {
		return nil, false, fmt.Errorf("link: drawing an id: %w", err)
	}
	created := s.Now().UTC().Truncate(time.Millisecond)
	l = &Link{ID: id, Terms: t, Created: created, Expires: created.Add(t.Life)}
	w, err := l.write()
	if err != nil {
		return nil, false, err
	}
	writes := []ledger.Write{
		w,
		{Key: idKey(id), If: ledger.Absent, Value: []byte(w.Key)},
		{Key: dueKey(l.Expires, id), If: ledger.AnyVersion, Value: []byte{}},
	}
	if key != "" {
		sum, err := t.sum()
		if err != nil {
			return nil, false, err
		}
		named := sha256.Sum256([]byte(key))
		once := onceKey(t.Merchant, hex.EncodeToString(named[:]))
		writes = append(writes, ledger.Write{Key: once, If: ledger.Absent, Value: []byte(string(id) + "/" + sum)})
		used, err := s.Entries.Get(ctx, once)
		if err == nil {
			l, err = s.again(ctx, used, sum)
			return l, true, err
		}
		if !errors.Is(err, ledger.ErrNotFound) {
			return nil, false, err
		}
	}
	err = s.Entries.Commit(ctx, writes...)
	if lost, ok := errors.AsType[*ledger.ConflictError](err); ok && key != "" && lost.Key == writes[len(writes)-1].Key {
		sum, err := t.sum()
		if err != nil {
			return nil, false, err
		}
		l, err = s.again(ctx, lost.Have, sum)
		return l, true, err
	}
	if err != nil {
		return nil, false, err
	}
	l.version = 1
	return l, false, nil
}

// again returns the link that an idempotency key has made before.
func (s *Store) again(ctx context.Context, once ledger.Entry, sum string) (*Link, error) {
	id, was, _ := strings.Cut(string(once.Value), "/")
	if was != sum {
		return nil, ErrKeyUsed
	}
	return s.Get(ctx, ID(id))
}

// sum names terms without their offers, so that two that differ have two names.
func (t *Terms) sum() (string, error) {
	l := Link{Terms: *t}
	l.Offers = nil
	w, err := l.write()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	h.Write(w.Value)
	fmt.Fprintf(h, "/%d", t.Life)
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Get returns a link, or ErrNotFound.
func (s *Store) Get(ctx context.Context, id ID) (*Link, error) {
	at, err := s.Entries.Get(ctx, idKey(id))
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	e, err := s.Entries.Get(ctx, ledger.Key(at.Value))
	if err != nil {
		return nil, fmt.Errorf("link: reading link %s: %w", id, err)
	}
	return decodeLink(e)
}

// Of returns a merchant's link, or ErrNotFound, also where it is another's.
func (s *Store) Of(ctx context.Context, merchant string, id ID) (*Link, error) {
	l, err := s.Get(ctx, id)
	if err == nil && l.Merchant != merchant {
		return nil, ErrNotFound
	}
	return l, err
}

// Disable ends a merchant's link: nobody can claim it any more. A payment that
// has claimed it may still settle. It changes nothing where the link is paid.
func (s *Store) Disable(ctx context.Context, merchant string, id ID) (*Link, error) {
	for {
		l, err := s.Of(ctx, merchant, id)
		if err != nil || !l.DisabledAt.IsZero() || l.Sold >= l.Uses {
			return l, err
		}
		l.DisabledAt = s.Now().UTC().Truncate(time.Millisecond)
		w, err := l.write()
		if err != nil {
			return nil, err
		}
		if err := s.Entries.Commit(ctx, w); conflict(err) {
			continue
		} else if err != nil {
			return nil, err
		}
		l.version++
		s.changed(id)
		return l, nil
	}
}

// A Query says which of a merchant's links are wanted.
type Query struct {
	Status Status // empty for all
	Limit  int    // 1 to MaxPage
	Cursor string // where the page before has ended; empty for the first
}

// MaxPage is the largest page of links.
const MaxPage = 100

// A Page is some of a merchant's links, the newest first.
type Page struct {
	Links []*Link
	Next  string // the cursor of the next page; empty if there is none
}

// ErrCursor says that a cursor is none that List has returned.
var ErrCursor = errors.New("link: the cursor is none that was returned with a page")

// List returns a page of a merchant's links.
func (s *Store) List(ctx context.Context, merchant string, q Query) (*Page, error) {
	prefix := ledger.Key("link/" + merchant + "/")
	after := ledger.Key("")
	if q.Cursor != "" {
		raw, err := base64.RawURLEncoding.DecodeString(q.Cursor)
		after = prefix + ledger.Key(raw)
		if err != nil || after.Check() != nil {
			return nil, ErrCursor
		}
	}
	now := s.Now()
	page := &Page{}
	for {
		entries, err := s.Entries.Scan(ctx, prefix, after, 256)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			l, err := decodeLink(e)
			if err != nil {
				return nil, err
			}
			if q.Status != "" && l.Status(now) != q.Status {
				after = e.Key
				continue
			}
			if len(page.Links) == q.Limit {
				page.Next = base64.RawURLEncoding.EncodeToString([]byte(strings.TrimPrefix(string(after), string(prefix))))
				return page, nil
			}
			page.Links = append(page.Links, l)
			after = e.Key
		}
		if len(entries) < 256 {
			return page, nil
		}
	}
}

// Stats are the sums over all links of a merchant.
type Stats struct {
	ByStatus map[Status]int
	Total    int
	Earned   map[string]*big.Int // atomic units by token, see TokenName

	// Tokens are those of Earned, by the same names.
	Tokens map[string]payment.Token
}

// Stats adds up a merchant's links. It reads all of them.
func (s *Store) Stats(ctx context.Context, merchant string) (*Stats, error) {
	now := s.Now()
	stats := &Stats{ByStatus: map[Status]int{}, Earned: map[string]*big.Int{}, Tokens: map[string]payment.Token{}}
	for after := ledger.Key(""); ; {
		entries, err := s.Entries.Scan(ctx, ledger.Key("link/"+merchant+"/"), after, 1000)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			after = e.Key
			l, err := decodeLink(e)
			if err != nil {
				return nil, err
			}
			stats.Total++
			stats.ByStatus[l.Status(now)]++
			for i := range l.Offers {
				t := l.Offers[i].Amount.Token()
				if _, earned := l.Earned[TokenName(t)]; earned {
					stats.Tokens[TokenName(t)] = t
				}
			}
			for token, units := range l.Earned {
				n, ok := new(big.Int).SetString(units, 10)
				if !ok {
					return nil, fmt.Errorf("link: link %s has earned %q", l.ID, units)
				}
				if sum := stats.Earned[token]; sum != nil {
					n.Add(n, sum)
				}
				stats.Earned[token] = n
			}
		}
		if len(entries) < 1000 {
			return stats, nil
		}
	}
}

// Receipt returns the use of a link that a receipt is about, or ErrNotFound.
func (s *Store) Receipt(ctx context.Context, id, receipt ID) (*Use, error) {
	e, err := s.Entries.Get(ctx, useKey(id, receipt))
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return decodeUse(id, receipt, e)
}

// By returns what a payment is to a link, or ErrNotFound for one that has
// claimed none.
func (s *Store) By(ctx context.Context, k payment.Key) (*Use, error) {
	e, err := s.Entries.Get(ctx, byKey(k))
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	var at struct{ Link, Receipt ID }
	if err := json.Unmarshal(e.Value, &at); err != nil {
		return nil, fmt.Errorf("link: reading %s: %w", e.Key, err)
	}
	return s.Receipt(ctx, at.Link, at.Receipt)
}

func (s *Store) changed(id ID) {
	if s.Changed != nil {
		s.Changed(id)
	}
}

func conflict(err error) bool {
	_, ok := errors.AsType[*ledger.ConflictError](err)
	return ok
}
