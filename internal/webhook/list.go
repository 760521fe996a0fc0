package webhook

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// ErrNotFound says that no delivery of an event is kept.
var ErrNotFound = errors.New("webhook: there is no such event, or it has been forgotten")

// MaxList is the largest number of deliveries that List returns.
const MaxList = 1000

// List returns up to limit deliveries, 1 to MaxList: all of them by their
// events' ids, or, with a state, those in it, beginning with what has ended
// first or, for each endpoint, is due first. after is empty or what List has
// returned as next; next is empty when there are no more.
func (q *Queue) List(ctx context.Context, state State, after string, limit int) (list []Delivery, next string, err error) {
	if limit < 1 || limit > MaxList {
		return nil, "", fmt.Errorf("webhook: a list of %d deliveries: it must be 1 to %d", limit, MaxList)
	}
	space := ledger.Key(deliverySpace)
	switch state {
	case "":
	case Waiting:
		space = dueSpace
	case Delivered, Failed:
		space = endedAs(state)
	default:
		return nil, "", fmt.Errorf("webhook: there is no state %.20q", string(state))
	}
	list = []Delivery{}
	from := ledger.Key("")
	if after != "" {
		from = space + ledger.Key(after)
		if err := from.Check(); err != nil {
			return nil, "", errors.New("webhook: a list must go on after what the one before has returned")
		}
	}
	for {
		page, err := q.store.Scan(ctx, space, from, 256)
		if err != nil {
			return nil, "", err
		}
		for _, e := range page {
			if len(list) == limit {
				return list, string(from[len(space):]), nil
			}
			from = e.Key
			d, err := q.listed(ctx, e, state)
			if errors.Is(err, ledger.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, "", err
			}
			list = append(list, *d)
		}
		if len(page) == 0 {
			return list, "", nil
		}
	}
}

// listed returns the delivery of an entry of a list, or ledger.ErrNotFound
// where there is none any more in the state.
func (q *Queue) listed(ctx context.Context, e ledger.Entry, state State) (*Delivery, error) {
	if state == "" {
		return decode(e)
	}
	_, id, endpoint, err := parsePlace(e.Key)
	if err != nil {
		return nil, err
	}
	d, err := q.get(ctx, id, endpoint)
	if err == nil && d.place() != e.Key {
		return nil, ledger.ErrNotFound
	}
	return d, err
}

// Resend delivers an event again, to the endpoints of these names or to all to
// which it was to be delivered, whatever came of that: with the same id, at
// once, and for another three days. It returns how many deliveries that are,
// or ErrNotFound. What is being tried at the moment is left to it, and counts.
func (q *Queue) Resend(ctx context.Context, id string, endpoints ...string) (int, error) {
	if !isID(id) {
		return 0, ErrNotFound
	}
	if len(endpoints) == 0 {
		space := ledger.Key(deliverySpace + id + "/")
		page, err := q.store.Scan(ctx, space, "", ledger.MaxScan)
		if err != nil {
			return 0, err
		}
		for _, e := range page {
			endpoints = append(endpoints, string(e.Key[len(space):]))
		}
	}
	n := 0
	for _, name := range endpoints {
		if !nameForm.MatchString(name) {
			return n, ErrNotFound
		}
		if err := q.resend(ctx, id, name); err != nil {
			return n, err
		}
		n++
	}
	if n == 0 {
		return 0, ErrNotFound
	}
	q.Wake()
	return n, nil
}

func (q *Queue) resend(ctx context.Context, id, name string) error {
	for {
		d, err := q.get(ctx, id, name)
		if errors.Is(err, ledger.ErrNotFound) {
			return ErrNotFound
		}
		if err != nil {
			return err
		}
		now := q.now()
		if d.Leased && d.Due.After(now) {
			return nil
		}
		again := *d
		again.State, again.Due, again.Leased, again.Since, again.Attempts, again.Ended = Waiting, now, false, now, 0, time.Time{}
		if err := q.put(ctx, d, &again); !conflict(err) {
			return err
		}
	}
}

// sweep forgets up to most deliveries that have ended long enough ago, and
// returns how many those were. Run does it every hour.
func (q *Queue) sweep(ctx context.Context, most int) (int, error) {
	n := 0
	for state, keep := range map[State]time.Duration{Delivered: KeepDelivered, Failed: KeepFailed} {
		end := endedAs(state) + ledger.Key(instant(q.now().Add(-keep)))
		for after := ledger.Key(""); ; {
			page, err := q.store.Scan(ctx, endedAs(state), after, 256)
			if err != nil {
				return n, err
			}
			for _, e := range page {
				if after = e.Key; after > end || n == most {
					break
				}
				forgot, err := q.forget(ctx, e.Key)
				if err != nil {
					return n, err
				}
				if forgot {
					n++
				}
			}
			if len(page) == 0 || after > end || n == most {
				break
			}
		}
	}
	return n, nil
}

// forget deletes the delivery at a place where it has been for long enough.
func (q *Queue) forget(ctx context.Context, at ledger.Key) (forgot bool, err error) {
	_, id, endpoint, err := parsePlace(at)
	if err != nil {
		return false, nil //nolint:nilerr // Check finds it; it does not keep the others
	}
	writes := []ledger.Write{{Key: at, If: ledger.AnyVersion}}
	d, err := q.get(ctx, id, endpoint)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
	case err != nil:
		return false, nil //nolint:nilerr // as above
	case d.place() == at:
		forgot = true
		writes = append(writes, ledger.Write{Key: deliveryKey(id, endpoint), If: d.version})
	}
	err = q.store.Commit(ctx, writes...)
	if conflict(err) {
		return false, nil // it is sent again
	}
	return forgot && err == nil, err
}

// Check walks through all that is kept of webhooks: whether the deliveries can
// be read, and whether each is listed where it will be delivered or forgotten,
// and nothing else is. It belongs beside (*ledger.Ledger).Check, which knows
// nothing of them, and can run while the ledger is in use.
func Check(ctx context.Context, s ledger.Store) (deliveries int, found []ledger.Finding, err error) {
	find := func(k ledger.Key, problem string) {
		found = append(found, ledger.Finding{Key: string(k), Problem: problem})
	}
	err = walk(ctx, s, deliverySpace, func(e ledger.Entry) error {
		deliveries++
		return confirm(func() (bool, error) {
			d, err := decode(e)
			if err != nil {
				find(e.Key, "the delivery cannot be read: "+err.Error())
				return true, nil
			}
			_, err = s.Get(ctx, d.place())
			if !errors.Is(err, ledger.ErrNotFound) {
				return err == nil, err
			}
			now, err := s.Get(ctx, e.Key)
			if errors.Is(err, ledger.ErrNotFound) {
				return true, nil
			}
			if err == nil && now.Version == e.Version {
				find(e.Key, "the delivery is "+string(d.State)+" and not listed: it would neither be delivered nor forgotten")
				return true, nil
			}
			e = now
			return false, err
		})
	})
	for _, space := range []ledger.Key{dueSpace, endSpace} {
		if err != nil {
			return deliveries, found, err
		}
		err = walk(ctx, s, space, func(e ledger.Entry) error {
			_, id, endpoint, err := parsePlace(e.Key)
			if err != nil {
				find(e.Key, "it is no place of a delivery")
				return nil
			}
			listed, err := s.Get(ctx, deliveryKey(id, endpoint))
			if err != nil && !errors.Is(err, ledger.ErrNotFound) {
				return err
			}
			if err == nil {
				if d, err := decode(listed); err != nil || d.place() == e.Key {
					return nil // found above, or as it should be
				}
			}
			// The place may have been cleared meanwhile: never before its
			// delivery has moved.
			if _, gone := s.Get(ctx, e.Key); gone != nil {
				if errors.Is(gone, ledger.ErrNotFound) {
					return nil
				}
				return gone
			}
			if err != nil {
				find(e.Key, "a delivery is listed that is not stored")
			} else {
				find(e.Key, "a delivery is listed where it is not")
			}
			return nil
		})
	}
	return deliveries, found, err
}

// confirm calls look until it is sure of what it saw, a few times at most.
func confirm(look func() (sure bool, err error)) error {
	for range 4 {
		if sure, err := look(); sure || err != nil {
			return err
		}
	}
	return nil
}

// walk calls see with every entry of a space.
func walk(ctx context.Context, s ledger.Store, space ledger.Key, see func(ledger.Entry) error) error {
	for after := ledger.Key(""); ; {
		page, err := s.Scan(ctx, space, after, 256)
		if err != nil {
			return err
		}
		for _, e := range page {
			after = e.Key
			if err := see(e); err != nil {
				return err
			}
		}
		if len(page) == 0 {
			return nil
		}
	}
}
