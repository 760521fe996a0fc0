package ledger

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// What is held for a claim of a payment has a key of its own, its parts come
// below it, and one entry in the order of expiry stands for all of it.
func heldKey(k payment.Key, claim int) Key {
	return Key(fmt.Sprintf("held/%s/%d", k, claim))
}

func partKey(k payment.Key, claim, part int) Key {
	return Key(fmt.Sprintf("%s/%06d", heldKey(k, claim), part))
}

// expiryKey sorts by time. What follows the time is a heldKey's rest.
func expiryKey(t time.Time, k payment.Key, claim int) Key {
	return Key(fmt.Sprintf("expire/%016x/%s/%d", t.Unix(), k, claim))
}

func parseExpiry(at Key) (k payment.Key, claim int, err error) {
	parts := strings.Split(string(at), "/")
	if len(parts) != 4 {
		return k, 0, fmt.Errorf("ledger: %q is no place in the order of expiry", at)
	}
	if k, err = parseKey(parts[2]); err != nil {
		return k, 0, err
	}
	claim, err = strconv.Atoi(parts[3])
	return k, claim, err
}

// anotherWhile is how much longer something is held when its payment is still
// being settled at the end of its time.
const anotherWhile = 15 * time.Minute

// MaxPart is the length of the longest part that HoldPart stores, in bytes.
const MaxPart = 512 << 10

// Hold stores bytes beside a payment, for its present claim, in one commit
// with a change of its record. Sweep forgets them once until has passed and
// the payment is not being settled.
func (l *Ledger) Hold(ctx context.Context, k payment.Key, change func(*Record) error, held []byte, until time.Time) (Record, error) {
	return l.UpdateWith(ctx, k, change, holding(held, until))
}

// holding returns what Hold writes beside a record.
func holding(held []byte, until time.Time) Rider {
	return func(_ context.Context, r *Record) ([]Write, error) {
		return []Write{
			{Key: heldKey(r.Key, r.Claims), If: AnyVersion, Value: held},
			{Key: expiryKey(until, r.Key, r.Claims), If: AnyVersion, Value: []byte{}},
		}, nil
	}
}

// HoldPart stores one part, up to MaxPart bytes, of what is too long to be
// held in one piece, for the claim that r is of. Parts are stored before the
// Hold that makes them count, with the same until: a part that is never
// counted is forgotten like all others.
func (l *Ledger) HoldPart(ctx context.Context, r *Record, part int, held []byte, until time.Time) error {
	if len(held) > MaxPart {
		return fmt.Errorf("ledger: a part of %d bytes is too long to be held", len(held))
	}
	return l.store.Commit(ctx,
		Write{Key: partKey(r.Key, r.Claims, part), If: AnyVersion, Value: held},
		Write{Key: expiryKey(until, r.Key, r.Claims), If: AnyVersion, Value: []byte{}})
}

// Held returns what Hold stored for the claim that r is of, or ErrNotFound.
func (l *Ledger) Held(ctx context.Context, r *Record) ([]byte, error) {
	e, err := l.store.Get(ctx, heldKey(r.Key, r.Claims))
	return e.Value, err
}

// HeldPart returns what HoldPart stored for the claim that r is of, or
// ErrNotFound.
func (l *Ledger) HeldPart(ctx context.Context, r *Record, part int) ([]byte, error) {
	e, err := l.store.Get(ctx, partKey(r.Key, r.Claims, part))
	return e.Value, err
}

// Sweep forgets what has been held long enough, and returns how many answers
// that were.
func (l *Ledger) Sweep(ctx context.Context) (int, error) {
	n := 0
	now := l.now()
	end := expiryKey(now, payment.Key{}, 0)
	for {
		entries, err := l.store.Scan(ctx, "expire/", "", 256)
		if err != nil {
			return n, err
		}
		for _, e := range entries {
			if e.Key > end {
				return n, nil
			}
			forgot, err := l.expire(ctx, e.Key, now)
			if err != nil {
				return n, err
			}
			if forgot {
				n++
			}
		}
		if len(entries) == 0 {
			return n, nil
		}
	}
}

// expire takes up one entry of the order in which Sweep goes.
func (l *Ledger) expire(ctx context.Context, at Key, now time.Time) (forgot bool, err error) {
	k, claim, err := parseExpiry(at)
	if err != nil {
		return false, err
	}
	r, err := l.Get(ctx, k)
	if err != nil {
		return false, err
	}
	done := Write{Key: at, If: AnyVersion}
	underWay := r.State == Executed && !l.Free(&r) || r.State.Broadcast() && !r.State.Paid()
	if r.Claims == claim && underWay {
		return false, l.store.Commit(ctx, done, Write{Key: expiryKey(now.Add(anotherWhile), k, claim), If: AnyVersion, Value: []byte{}})
	}
	head := Write{Key: heldKey(k, claim), If: AnyVersion}
	if err := l.forgetParts(ctx, head); err != nil {
		return false, err
	}
	return true, l.store.Commit(ctx, done, head)
}

// forgetParts deletes the parts of what is held, if it has any, and first of
// all head, which makes them count. What stands for them in the order of
// expiry is deleted after them, so that a crash leaves none behind.
func (l *Ledger) forgetParts(ctx context.Context, head Write) error {
	const few = 8 // each is read whole to learn its key
	for {
		entries, err := l.store.Scan(ctx, head.Key+"/", "", few)
		if err != nil || len(entries) == 0 {
			return err
		}
		writes := []Write{head}
		for _, e := range entries {
			writes = append(writes, Write{Key: e.Key, If: AnyVersion})
		}
		if err := l.store.Commit(ctx, writes...); err != nil {
			return err
		}
	}
}
