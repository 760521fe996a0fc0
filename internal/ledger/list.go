package ledger

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/tollgate402/tollgate/payment"
)

// Payments lists every payment that is remembered, after the one with a key,
// in the order of the keys. It starts at the first one if after is nil.
func (l *Ledger) Payments(ctx context.Context, after *payment.Key) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		from := Key("")
		if after != nil {
			from = paymentKey(*after)
		}
		for {
			entries, err := l.store.Scan(ctx, "pay/", from, 256)
			if err != nil {
				yield(Record{}, err)
				return
			}
			for _, e := range entries {
				from = e.Key
				k, err := parseKey(strings.TrimPrefix(string(e.Key), "pay/"))
				var r Record
				if err == nil {
					r, err = l.Get(ctx, k)
				}
				// One record that cannot be read does not hide the others.
				if !yield(r, err) {
					return
				}
			}
			if len(entries) == 0 {
				return
			}
		}
	}
}

// A Finding is something in the ledger that should not be there.
type Finding struct {
	Key     string `json:"key"` // of the entry
	Problem string `json:"problem"`
}

// A Survey is what a walk through the ledger has found.
type Survey struct {
	Payments int           `json:"payments"`
	ByState  map[State]int `json:"by_state"`
	Open     int           `json:"open"` // payments that do not rest
	Due      int           `json:"due"`  // payments whose money is owed back
	Held     int           `json:"held"` // stored answers
	Lanes    int           `json:"lanes"`

	Findings []Finding `json:"findings"` // empty when all is well
}

// maxFindings bounds what a survey lists.
const maxFindings = 1000

func (s *Survey) find(k Key, format string, args ...string) {
	if len(s.Findings) == maxFindings {
		return
	}
	list := make([]any, len(args))
	for i, a := range args {
		list[i] = a
	}
	s.Findings = append(s.Findings, Finding{string(k), fmt.Sprintf(format, list...)})
}

// Check walks through the whole ledger: whether the records can be read and
// are in states that exist, whether what does not rest is listed as open, and
// nothing else, whether stored answers belong to payments and are listed to be
// forgotten, whether the nonces of the lanes are ahead of those that the
// records use, and whether the sums of what is exposed are what the records
// say. It can run while the ledger is in use.
func (l *Ledger) Check(ctx context.Context) (*Survey, error) {
	s := &Survey{ByState: map[State]int{}, Findings: []Finding{}}
	for _, step := range []func(context.Context, *Survey) error{l.checkPayments, l.checkOpen, l.checkHeld, l.checkLanes, l.checkTabs} {
		if err := step(ctx, s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// walk calls see with every key of a space.
func (l *Ledger) walk(ctx context.Context, prefix Key, see func(Entry) error) error {
	for after := Key(""); ; {
		entries, err := l.store.Scan(ctx, prefix, after, 256)
		if err != nil {
			return err
		}
		for _, e := range entries {
			after = e.Key
			if err := see(e); err != nil {
				return err
			}
		}
		if len(entries) == 0 {
			return nil
		}
	}
}

func (l *Ledger) checkPayments(ctx context.Context, s *Survey) error {
	return l.walk(ctx, "pay/", func(e Entry) error {
		s.Payments++
		k, err := parseKey(strings.TrimPrefix(string(e.Key), "pay/"))
		if err != nil {
			s.find(e.Key, "the key names no payment")
			return nil
		}
		r, err := decodeRecord(k, e)
		if err != nil {
			s.find(e.Key, "the record cannot be read: %s", err.Error())
			return nil
		}
		s.ByState[r.State]++
		if !r.State.Known() {
			s.find(e.Key, "state %s does not exist", string(r.State))
		}
		if r.Owed() && r.Delivery == Undeliverable || r.State == RefundDue {
			s.Due++
		}
		return l.checkListed(ctx, s, k, &r)
	})
}

// checkListed holds a record against the list of open payments. What changes
// meanwhile is looked at once more.
func (l *Ledger) checkListed(ctx context.Context, s *Survey, k payment.Key, r *Record) error {
	for try := 0; ; try++ {
		_, err := l.store.Get(ctx, openKey(k))
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if listed := err == nil; listed == !r.rests() {
			return nil
		} else if try == 3 {
			if listed {
				s.find(openKey(k), "a payment that rests is listed as open")
			} else {
				s.find(paymentKey(k), "the payment is %s and not listed as open: nobody looks after it", string(r.State))
			}
			return nil
		}
		e, err := l.store.Get(ctx, paymentKey(k))
		if err != nil {
			return err
		}
		if *r, err = decodeRecord(k, e); err != nil {
			return err
		}
	}
}

func (l *Ledger) checkOpen(ctx context.Context, s *Survey) error {
	return l.walk(ctx, "open/", func(e Entry) error {
		s.Open++
		_, err := l.store.Get(ctx, "pay/"+e.Key[len("open/"):])
		if errors.Is(err, ErrNotFound) {
			s.find(e.Key, "a payment is listed as open that is not stored")
			return nil
		}
		return err
	})
}

func (l *Ledger) checkHeld(ctx context.Context, s *Survey) error {
	expiring := map[string]bool{}
	if err := l.walk(ctx, "expire/", func(e Entry) error {
		k, claim, err := parseExpiry(e.Key)
		if err != nil {
			s.find(e.Key, "no place in the order of expiry")
			return nil
		}
		expiring[string(heldKey(k, claim))] = true
		return nil
	}); err != nil {
		return err
	}
	return l.walk(ctx, "held/", func(e Entry) error {
		s.Held++
		if expiring[string(e.Key)] {
			return nil
		}
		// One that was stored since the expiries were read is listed by now.
		listed := false
		if err := l.walk(ctx, "expire/", func(x Entry) error {
			listed = listed || strings.HasSuffix(string(x.Key), strings.TrimPrefix(string(e.Key), "held"))
			return nil
		}); err != nil {
			return err
		}
		if !listed {
			s.find(e.Key, "a stored answer will never be forgotten")
		}
		return nil
	})
}

// A use is one nonce of a lane that a payment uses.
type use struct {
	lane  string
	nonce uint64
	key   payment.Key
}

func (l *Ledger) checkLanes(ctx context.Context, s *Survey) error {
	// The lanes are read after the records: their nonces only grow.
	var used []use
	if err := l.walk(ctx, "open/", func(e Entry) error {
		k, err := parseKey(strings.TrimPrefix(string(e.Key), "open/"))
		if err != nil {
			return nil // found before
		}
		r, err := l.Get(ctx, k)
		if err != nil {
			return nil // found before
		}
		for _, a := range r.Slots {
			used = append(used, use{string(laneKey(r.Network, a.Lane)), a.Nonce, k})
		}
		return nil
	}); err != nil {
		return err
	}
	next := map[string]uint64{}
	if err := l.walk(ctx, "lane/", func(e Entry) error {
		s.Lanes++
		parts := strings.Split(string(e.Key), "/")
		if len(parts) != 3 {
			s.find(e.Key, "the key names no lane")
			return nil
		}
		lane, _, err := l.Lane(ctx, payment.Network(parts[1]), parts[2])
		if err != nil {
			s.find(e.Key, "the lane cannot be read: %s", err.Error())
			return nil
		}
		next[string(e.Key)] = lane.Next
		return nil
	}); err != nil {
		return err
	}
	for _, u := range used {
		if n, ok := next[u.lane]; !ok || u.nonce >= n {
			s.find(paymentKey(u.key), "it uses nonce %s of a lane whose next nonce is %s: the lane could give it to another payment", fmt.Sprint(u.nonce), fmt.Sprint(n))
		}
	}
	return nil
}
