package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// A quota counts what a tenant of the facilitator API has had on some days.
type quota struct {
	// Days are counts by day in UTC. There are at most three: the present day
	// and its neighbours, which another process may live in whose clock is a
	// little ahead or behind.
	Days map[string]uint64 `json:"days"`
}

func quotaKey(tenant string) Key { return Key("tenant/" + tenant) }

// Book counts one more settlement of a tenant on the day, in UTC, of a time,
// unless there have been most on it, and reports whether it has. What it has
// counted is on disk, and counts for every process that shares the store. A
// tenant's name is 1 to 64 bytes that a Key can have, without "/".
func (l *Ledger) Book(ctx context.Context, tenant string, at time.Time, most uint64) (bool, error) {
	booked := false
	err := l.changeQuota(ctx, tenant, at, func(n uint64) uint64 {
		if booked = n < most; booked {
			n++
		}
		return n
	})
	return booked && err == nil, err
}

// Unbook takes back one settlement that was counted by Book at a time.
func (l *Ledger) Unbook(ctx context.Context, tenant string, at time.Time) error {
	return l.changeQuota(ctx, tenant, at, func(n uint64) uint64 { return max(n, 1) - 1 })
}

// Booked returns how many settlements of a tenant count on the day, in UTC, of
// a time.
func (l *Ledger) Booked(ctx context.Context, tenant string, at time.Time) (uint64, error) {
	e, err := l.store.Get(ctx, quotaKey(tenant))
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	q, err := decodeQuota(e)
	return q.Days[dayOf(at)], err
}

// changeQuota changes a tenant's count on one day. change may be called again.
func (l *Ledger) changeQuota(ctx context.Context, tenant string, at time.Time, change func(uint64) uint64) error {
	k := quotaKey(tenant)
	e, err := l.store.Get(ctx, k)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	for {
		q, err := decodeQuota(e)
		if err != nil {
			return err
		}
		day := dayOf(at)
		before := q.Days[day]
		after := change(before)
		if after == before {
			return nil
		}
		days := map[string]uint64{day: after}
		for _, near := range []string{dayOf(at.AddDate(0, 0, -1)), dayOf(at.AddDate(0, 0, 1))} {
			if n := q.Days[near]; n > 0 {
				days[near] = n
			}
		}
		doc, err := json.Marshal(quota{days})
		if err != nil {
			return fmt.Errorf("ledger: writing the count of tenant %s: %w", tenant, err)
		}
		err = l.store.Commit(ctx, Write{Key: k, If: e.Version, Value: doc})
		var lost *ConflictError
		if !errors.As(err, &lost) {
			return err
		}
		e = lost.Have
	}
}

func decodeQuota(e Entry) (quota, error) {
	var q quota
	if e.Version == Absent {
		return q, nil
	}
	if err := json.Unmarshal(e.Value, &q); err != nil {
		return quota{}, fmt.Errorf("ledger: reading %s: %w", e.Key, err)
	}
	return q, nil
}

// dayOf names a day in UTC.
func dayOf(t time.Time) string { return t.UTC().Format(time.DateOnly) }
