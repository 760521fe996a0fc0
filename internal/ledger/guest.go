package ledger

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

const (
	// maxGrants is how many resources one payer may come back to. When it
	// pays for another one, the one that would end first ends.
	maxGrants = 1000

	// maxNonces is how often one payer may come back within the time for
	// which nonces are kept.
	maxNonces = 1000

	// stay is for how long a guest is kept after its last grant has ended, so
	// that nobody who read it before still writes it when it is gone.
	stay = time.Hour
)

// A guest is a payer who may come back to what it has paid for.
type guest struct {
	Grants []grant     `json:"grants"`
	Nonces []usedNonce `json:"nonces,omitempty"`
}

// A grant lets a payer have a resource again until a time.
type grant struct {
	Resource string    `json:"resource"`
	Until    time.Time `json:"until"`
}

// A usedNonce must not be used again before its time has passed.
type usedNonce struct {
	Nonce string    `json:"nonce"`
	Until time.Time `json:"until"`
}

var (
	// ErrNonceUsed says that a payer has come with the same nonce before.
	ErrNonceUsed = errors.New("ledger: the nonce was used before")

	// ErrTooOften says that a payer comes more often than is kept count of.
	ErrTooOften = errors.New("ledger: the payer signs in too often")
)

func guestKey(payer string) Key { return Key("guest/" + payer) }

// departureKey sorts guests by when a grant of theirs ends.
func departureKey(until time.Time, payer string) Key {
	return Key(fmt.Sprintf("depart/%016x/%s", until.Unix(), payer))
}

// Admit remembers that a payer may have a resource again until a time. Doing
// it again changes nothing, but may move that time ahead.
func (l *Ledger) Admit(ctx context.Context, payer string, resource payment.Fingerprint, until time.Time) error {
	return l.host(ctx, payer, func(g *guest) ([]Write, error) {
		name := hex.EncodeToString(resource[:])
		i := slices.IndexFunc(g.Grants, func(a grant) bool { return a.Resource == name })
		switch {
		case !until.After(l.now()) || i >= 0 && !until.After(g.Grants[i].Until):
			return nil, errNothingNew
		case i >= 0:
			g.Grants[i].Until = until.Round(0)
		default:
			g.Grants = append(g.Grants, grant{name, until.Round(0)})
		}
		if len(g.Grants) > maxGrants {
			slices.SortFunc(g.Grants, func(a, b grant) int { return a.Until.Compare(b.Until) })
			g.Grants = g.Grants[1:]
		}
		return []Write{{Key: departureKey(until, payer), If: AnyVersion, Value: []byte{}}}, nil
	})
}

// SignIn uses up a nonce with which a payer comes back to a resource, and
// keeps it until a time, after which the caller would not take it any more.
// Of all who come with one nonce, one gets nil, and that is on disk. It
// returns ErrNotFound for a payer who may not have the resource, ErrNonceUsed,
// or ErrTooOften.
func (l *Ledger) SignIn(ctx context.Context, payer string, resource payment.Fingerprint, nonce string, until time.Time) error {
	return l.host(ctx, payer, func(g *guest) ([]Write, error) {
		name := hex.EncodeToString(resource[:])
		switch {
		case !slices.ContainsFunc(g.Grants, func(a grant) bool { return a.Resource == name }):
			return nil, ErrNotFound
		case slices.ContainsFunc(g.Nonces, func(n usedNonce) bool { return n.Nonce == nonce }):
			return nil, ErrNonceUsed
		case len(g.Nonces) >= maxNonces:
			return nil, ErrTooOften
		}
		g.Nonces = append(g.Nonces, usedNonce{nonce, until.Round(0)})
		return nil, nil
	})
}

// errNothingNew ends a change without a commit.
var errNothingNew = errors.New("ledger: nothing to change")

// host changes what is remembered of a payer, in one commit with what change
// returns. What has ended is forgotten first. change is called again if
// somebody else was faster.
func (l *Ledger) host(ctx context.Context, payer string, change func(*guest) ([]Write, error)) error {
	for {
		g, version, err := l.guest(ctx, payer)
		if err != nil {
			return err
		}
		now := l.now()
		g.Grants = slices.DeleteFunc(g.Grants, func(a grant) bool { return !a.Until.After(now) })
		g.Nonces = slices.DeleteFunc(g.Nonces, func(n usedNonce) bool { return !n.Until.After(now) })
		also, err := change(&g)
		if errors.Is(err, errNothingNew) {
			return nil
		}
		if err != nil {
			return err
		}
		doc, err := json.Marshal(g)
		if err != nil {
			return fmt.Errorf("ledger: writing what %s may have: %w", payer, err)
		}
		err = l.store.Commit(ctx, append(also, Write{Key: guestKey(payer), If: version, Value: doc})...)
		if !conflict(err) {
			return err
		}
	}
}

// guest returns what is remembered of a payer, and its version, which is 0 for
// one that nothing is remembered of.
func (l *Ledger) guest(ctx context.Context, payer string) (guest, uint64, error) {
	var g guest
	e, err := l.store.Get(ctx, guestKey(payer))
	if errors.Is(err, ErrNotFound) {
		return g, Absent, nil
	}
	if err != nil {
		return g, 0, err
	}
	if err := json.Unmarshal(e.Value, &g); err != nil {
		return g, 0, fmt.Errorf("ledger: reading what %s may have: %w", payer, err)
	}
	return g, e.Version, nil
}

// SweepGuests forgets the payers who can come back to nothing any more, and
// returns how many those were.
func (l *Ledger) SweepGuests(ctx context.Context) (int, error) {
	n := 0
	end := departureKey(l.now().Add(-stay), "")
	for {
		entries, err := l.store.Scan(ctx, "depart/", "", 256)
		if err != nil {
			return n, err
		}
		for _, e := range entries {
			if e.Key > end {
				return n, nil
			}
			gone, err := l.depart(ctx, e.Key)
			if err != nil {
				return n, err
			}
			if gone {
				n++
			}
		}
		if len(entries) == 0 {
			return n, nil
		}
	}
}

// depart takes up one entry of the order in which SweepGuests goes.
func (l *Ledger) depart(ctx context.Context, at Key) (gone bool, err error) {
	parts := strings.SplitN(string(at), "/", 3)
	if len(parts) != 3 {
		return false, fmt.Errorf("ledger: %q is no place in the order of departure", at)
	}
	writes := []Write{{Key: at, If: AnyVersion}}
	g, version, err := l.guest(ctx, parts[2])
	if err != nil {
		return false, err
	}
	gone = version != Absent && !slices.ContainsFunc(g.Grants, func(a grant) bool { return a.Until.After(l.now().Add(-stay)) })
	if gone {
		writes = append(writes, Write{Key: guestKey(parts[2]), If: version})
	}
	err = l.store.Commit(ctx, writes...)
	if conflict(err) {
		return false, nil // it has come back; another time
	}
	return gone, err
}
