package link

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// Mode is the mode of the records of payments that claim links.
const Mode = "link"

// Claim returns what claims a use of a link in the commit that claims a
// payment for it. offer is the link's that is paid, fields are those that Fill
// has returned. It keeps the payment from being claimed, with a *StatusError,
// where the link has no use left for it, or with ErrNotFound. A payment that
// holds a use already keeps it.
func (s *Store) Claim(id ID, offer *payment.Offer, fields map[string]string) ledger.Rider {
	return func(ctx context.Context, r *ledger.Record) ([]ledger.Write, error) {
		l, err := s.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		u, err := s.By(ctx, r.Key)
		switch {
		case errors.Is(err, ErrNotFound):
			if u, err = s.newUse(id, r); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, err
		case u.Link != id:
			return nil, fmt.Errorf("link: payment %s belongs to another link", r.Key)
		}
		fresh := u.version == 0
		if fresh || u.Step == Dropped {
			if status := l.Status(s.Now()); status != Active {
				return nil, &StatusError{status}
			}
			l.Taken++
		}
		u.Step, u.Fields, u.Payer = Claimed, fields, r.Payer
		u.Units, u.Token = offer.Amount.Units(), TokenName(offer.Amount.Token())
		u.Claimed = s.Now().UTC().Truncate(time.Millisecond)
		// The link is written even where it does not change: whoever is about
		// to take the use away from a payment that was released then fails.
		writes, err := both(l, u)
		if err != nil {
			return nil, err
		}
		if fresh {
			at, err := json.Marshal(struct{ Link, Receipt ID }{id, u.Receipt})
			if err != nil {
				return nil, fmt.Errorf("link: writing a use of link %s: %w", id, err)
			}
			writes = append(writes, ledger.Write{Key: byKey(r.Key), If: ledger.Absent, Value: at})
		}
		return append(writes, ledger.Write{Key: openKey(r.Key), If: ledger.AnyVersion, Value: []byte{}}), nil
	}
}

func (s *Store) newUse(id ID, r *ledger.Record) (*Use, error) {
	receipt, err := NewID(s.Random)
	if err != nil {
		return nil, fmt.Errorf("link: drawing an id: %w", err)
	}
	return &Use{Link: id, Receipt: receipt, Payment: r.Key.String()}, nil
}

func both(l *Link, u *Use) ([]ledger.Write, error) {
	w, err := l.write()
	if err != nil {
		return nil, err
	}
	x, err := u.write()
	if err != nil {
		return nil, err
	}
	return []ledger.Write{w, x}, nil
}

// errSettled ends a change that has nothing to change.
var errSettled = errors.New("link: nothing to change")

// Resolve brings a link up to what has become of a payment that has claimed
// it, and returns both as they stand then: a payment that is settled has paid
// a use, one that was released or is dead gives it back, and any other goes on
// holding it. It is called after every step of a payment, and by Sweep for
// those whose process has died. It returns ErrNotFound for a payment that has
// claimed none.
func (s *Store) Resolve(ctx context.Context, k payment.Key) (*Link, *Use, error) {
	for {
		u, err := s.By(ctx, k)
		if err != nil {
			return nil, nil, err
		}
		l, err := s.Get(ctx, u.Link)
		if err != nil {
			return nil, nil, err
		}
		r, err := s.Payments.Get(ctx, k)
		if err != nil {
			return nil, nil, fmt.Errorf("link: reading payment %s of link %s: %w", k, u.Link, err)
		}
		err = s.resolve(ctx, l, u, &r)
		switch {
		case errors.Is(err, errSettled):
			return l, u, nil
		case conflict(err), errors.Is(err, ledger.ErrStale):
			continue
		case err != nil:
			return nil, nil, err
		}
		s.changed(l.ID)
		// What was written is read again, with its versions.
	}
}

// resolve makes one step, or returns errSettled.
func (s *Store) resolve(ctx context.Context, l *Link, u *Use, r *ledger.Record) error {
	lost := r.Delivery == ledger.Undeliverable || r.State == ledger.RefundDue || r.State == ledger.Refunded
	switch {
	case u.Step == Claimed && r.State.Paid() && !lost:
		return s.pay(ctx, l, u, r)
	case u.Step == Claimed && (r.State == ledger.Released || r.State == ledger.Dead || r.State == ledger.WrittenOff || lost):
		return s.drop(ctx, l, u, r, "")
	case u.Step == Settled && (r.State == ledger.Dead || r.State == ledger.WrittenOff):
		if err := l.earn(u, -1); err != nil {
			return err
		}
		l.Sold--
		return s.drop(ctx, l, u, r, EventReversed)
	case u.Step == Claimed || u.Step == Settled && !r.State.Resting():
		return errSettled
	}
	// Nothing more can become of it.
	if _, err := s.Entries.Get(ctx, openKey(r.Key)); errors.Is(err, ledger.ErrNotFound) {
		return errSettled
	} else if err != nil {
		return err
	}
	w, err := u.write() // so that this fails if the payment has claimed the link again
	if err != nil {
		return err
	}
	return s.Entries.Commit(ctx, w, ledger.Write{Key: openKey(r.Key), If: ledger.AnyVersion})
}

// pay notes that a payment has paid the use that it holds, in one commit with
// the payment's record, which has delivered what it bought by that.
func (s *Store) pay(ctx context.Context, l *Link, u *Use, r *ledger.Record) error {
	now := s.Now().UTC().Truncate(time.Millisecond)
	u.Step, u.Paid, u.Transaction = Settled, now, r.Transaction()
	l.Sold++
	l.PaidAt = now
	if err := l.earn(u, +1); err != nil {
		return err
	}
	_, err := s.Payments.UpdateWith(ctx, r.Key, func(now *ledger.Record) error {
		if now.State != r.State || now.Claims != r.Claims || now.Delivery != r.Delivery {
			return ledger.ErrStale
		}
		now.Delivery = ledger.Delivered
		return nil
	}, func(ctx context.Context, _ *ledger.Record) ([]ledger.Write, error) {
		// A conflict may be one of the link's: what was read is read again.
		if err := s.unchanged(ctx, l, u); err != nil {
			return nil, err
		}
		writes, err := both(l, u)
		if err != nil {
			return nil, err
		}
		return s.announce(writes, EventPaid, l, u)
	})
	return err
}

// unchanged returns ledger.ErrStale if a link or a use is not stored as it was
// read.
func (s *Store) unchanged(ctx context.Context, l *Link, u *Use) error {
	now, err := s.Get(ctx, l.ID)
	if err != nil {
		return err
	}
	use, err := s.Receipt(ctx, u.Link, u.Receipt)
	if err != nil {
		return err
	}
	if now.version != l.version || use.version != u.version {
		return ledger.ErrStale
	}
	return nil
}

// drop gives back the use that a payment holds.
func (s *Store) drop(ctx context.Context, l *Link, u *Use, r *ledger.Record, event string) error {
	l.Taken--
	u.Step = Dropped
	writes, err := both(l, u)
	if err != nil {
		return err
	}
	writes = append(writes, ledger.Write{Key: openKey(r.Key), If: ledger.AnyVersion})
	if event != "" {
		if writes, err = s.announce(writes, event, l, u); err != nil {
			return err
		}
	}
	return s.Entries.Commit(ctx, writes...)
}

// earn adds what a use has paid to what the link has earned, or takes it away.
func (l *Link) earn(u *Use, sign int64) error {
	units, ok := new(big.Int).SetString(u.Units, 10)
	if !ok {
		return fmt.Errorf("link: a use of link %s costs %q", l.ID, u.Units)
	}
	sum := new(big.Int)
	if before, ok := l.Earned[u.Token]; ok {
		if sum, ok = sum.SetString(before, 10); !ok {
			return fmt.Errorf("link: link %s has earned %q", l.ID, before)
		}
	}
	if l.Earned == nil {
		l.Earned = map[string]string{}
	}
	l.Earned[u.Token] = sum.Add(sum, units.Mul(units, big.NewInt(sign))).String()
	return nil
}

func (s *Store) announce(writes []ledger.Write, event string, l *Link, u *Use) ([]ledger.Write, error) {
	if s.Announce == nil {
		return writes, nil
	}
	more, err := s.Announce(event, l, u)
	return append(writes, more...), err
}

// Sweep resolves the payments whose end is not known, and notes which links
// have expired. It goes on after an error of one, and returns them together.
func (s *Store) Sweep(ctx context.Context) error {
	return errors.Join(s.sweepOpen(ctx), s.sweepDue(ctx))
}

func (s *Store) sweepOpen(ctx context.Context) error {
	var failed []error
	err := s.walk(ctx, "linkopen/", func(e ledger.Entry) bool {
		var k payment.Key
		b, err := hex.DecodeString(strings.TrimPrefix(string(e.Key), "linkopen/"))
		if err != nil || len(b) != len(k) {
			failed = append(failed, fmt.Errorf("link: %s names no payment", e.Key))
			return true
		}
		copy(k[:], b)
		if _, _, err := s.Resolve(ctx, k); err != nil {
			failed = append(failed, err)
		}
		return ctx.Err() == nil
	})
	return errors.Join(append(failed, err)...)
}

func (s *Store) sweepDue(ctx context.Context) error {
	var failed []error
	now := s.Now()
	err := s.walk(ctx, "linkdue/", func(e ledger.Entry) bool {
		at, id, _ := strings.Cut(strings.TrimPrefix(string(e.Key), "linkdue/"), "/")
		due, err := strconv.ParseInt(at, 16, 64)
		if err != nil {
			failed = append(failed, fmt.Errorf("link: %s is no place in the order of expiry", e.Key))
			return true
		}
		if now.Unix() < due {
			return false
		}
		if err := s.expire(ctx, ID(id), e.Key); err != nil {
			failed = append(failed, err)
		}
		return ctx.Err() == nil
	})
	return errors.Join(append(failed, err)...)
}

// expire notes that the time of a link is over, unless a payment holds a use
// of it: then it is left for another time.
func (s *Store) expire(ctx context.Context, id ID, due ledger.Key) error {
	for {
		l, err := s.Get(ctx, id)
		if err != nil {
			return err
		}
		if l.Taken > l.Sold || s.Now().Before(l.Expires) {
			return nil
		}
		writes := []ledger.Write{{Key: due, If: ledger.AnyVersion}}
		silent := l.Sold >= l.Uses || !l.DisabledAt.IsZero() || !l.ExpiredAt.IsZero()
		if !silent {
			l.ExpiredAt = s.Now().UTC().Truncate(time.Millisecond)
			if writes, err = s.announce(writes, EventExpired, l, nil); err != nil {
				return err
			}
		}
		w, err := l.write()
		if err != nil {
			return err
		}
		err = s.Entries.Commit(ctx, append(writes, w)...)
		if conflict(err) {
			continue
		}
		if err == nil && !silent {
			s.changed(id)
		}
		return err
	}
}

// walk calls each for the entries of a prefix until it returns false.
func (s *Store) walk(ctx context.Context, prefix ledger.Key, each func(ledger.Entry) bool) error {
	const page = 256
	for after := ledger.Key(""); ; {
		entries, err := s.Entries.Scan(ctx, prefix, after, page)
		if err != nil {
			return err
		}
		for _, e := range entries {
			after = e.Key
			if !each(e) {
				return nil
			}
		}
		if len(entries) < page {
			return nil
		}
	}
}
