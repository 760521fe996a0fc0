package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// A session is a ledger.Store in a database that several processes share. Its
// promises are those of package postgres: a commit is on disk when it returns,
// and may be when the process dies before; when the connection breaks in the
// middle of one, the session asks for its outcome before it does anything
// else, and only gives up on that after a while.
//
// The world's lock guards it.
type session struct {
	p       *process
	rows    image     // those of the database
	flights []*flight // commits under way, in the order of their beginning
	cut     time.Time // until when the database cannot be reached

	asked map[int]time.Time // when the exchanges under way began
	asks  int
	slow  time.Time // when one ended last that had taken long
}

const (
	// patience is how long calls wait for the database, doubt how long a
	// commit waits for its outcome.
	patience = 10 * time.Second
	doubt    = 12 * time.Second

	// long is more than an exchange takes with a database that is well.
	long = 500 * time.Millisecond
)

var errAway = errors.New("the database cannot be reached")

func (s *session) view() image { return s.rows }

// begin notes that an exchange begins, and end that it has ended.
func (s *session) begin() (id int, err error) {
	err = s.p.enterThen(func() {
		if s.asked == nil {
			s.asked = map[int]time.Time{}
		}
		s.asks++
		id = s.asks
		s.asked[id] = time.Now()
	})
	return id, err
}

func (s *session) end(id int) {
	_ = s.p.enterThen(func() {
		if time.Since(s.asked[id]) > long {
			s.slow = time.Now()
		}
		delete(s.asked, id)
	})
}

// troubled reports whether an exchange takes long, or did lately. The caller
// holds the world's lock.
func (s *session) troubled() bool {
	if !s.slow.IsZero() && time.Since(s.slow) < 15*time.Second {
		return true
	}
	for _, at := range s.asked {
		if time.Since(at) > long {
			return true
		}
	}
	return false
}

// reach waits until the database can be reached. Those who wait do not all
// find out at one instant: turn is the number of the exchange.
func (s *session) reach(ctx context.Context, turn int) error {
	late := s.p.dice.of("reach").nth(turn).between(0, time.Millisecond)
	for limit := time.Now().Add(patience); ; {
		if err := s.p.enter(); err != nil {
			return err
		}
		cut := time.Until(s.cut)
		s.p.w.mu.Unlock()
		if cut <= 0 {
			return nil
		}
		if err := sleep(ctx, min(cut, time.Until(limit))+late); err != nil {
			return fmt.Errorf("%w: %w", errAway, err)
		}
		if !time.Now().Before(limit) {
			return errAway
		}
	}
}

// exchange is one with the database.
func (s *session) exchange(kind, id string, state ledger.State) interaction {
	return interaction{kind: kind, id: id, state: state, disk: true, least: 50 * time.Microsecond, most: s.p.w.profile.database}
}

// read asks the database for something.
func (s *session) read(ctx context.Context, id string, answer func() error) error {
	turn, err := s.begin()
	if err != nil {
		return err
	}
	defer s.end(turn)
	if err := s.reach(ctx, turn); err != nil {
		return err
	}
	return s.p.act(ctx, s.exchange("read", id, ""), func(l luck) error {
		if l.broken {
			s.p.w.covered("database away")
			s.slow = time.Now()
			return errAway
		}
		return answer()
	})
}

// Get implements ledger.Store.
func (s *session) Get(ctx context.Context, key ledger.Key) (e ledger.Entry, err error) {
	if err := errors.Join(key.Check(), ctx.Err()); err != nil {
		return ledger.Entry{}, err
	}
	err = s.read(ctx, clip(string(key), 20), func() error {
		var ok bool
		if e, ok = s.rows[key]; !ok {
			return ledger.ErrNotFound
		}
		e.Value = append([]byte{}, e.Value...)
		return nil
	})
	return e, err
}

// Scan implements ledger.Store.
func (s *session) Scan(ctx context.Context, prefix, after ledger.Key, limit int) (page []ledger.Entry, err error) {
	if err := errors.Join(ledger.CheckScan(prefix, after, limit), ctx.Err()); err != nil {
		return nil, err
	}
	err = s.read(ctx, string(prefix), func() error {
		page = s.rows.scan(prefix, after, limit)
		return nil
	})
	return page, err
}

// Commit implements ledger.Store.
func (s *session) Commit(ctx context.Context, writes ...ledger.Write) error {
	if err := errors.Join(ledger.CheckCommit(writes), ctx.Err()); err != nil {
		return err
	}
	turn, err := s.begin()
	if err != nil {
		return err
	}
	defer s.end(turn)
	if err := s.reach(ctx, turn); err != nil {
		return err
	}
	f := &flight{cloneWrites(writes)}
	if err := s.p.enter(); err != nil {
		return err
	}
	s.flights = append(s.flights, f)
	s.p.w.mu.Unlock()

	var away time.Duration
	who := context.WithoutCancel(ctx)
	err = s.p.act(who, s.exchange("commit", subject(writes), stateIn(writes)), func(l luck) error {
		s.flights = slices.DeleteFunc(s.flights, func(other *flight) bool { return other == f })
		if !l.broken {
			return s.apply(f.writes)
		}
		away = s.lose(l)
		if l.dice.of("made").oneIn(2) {
			return s.apply(f.writes)
		}
		return errAway
	})
	if away == 0 {
		return err
	}
	// The outcome is known once the database is back.
	time.Sleep(min(away, doubt))
	if failed := s.p.enter(); failed != nil {
		return failed
	}
	defer s.p.w.mu.Unlock()
	if away > doubt {
		s.p.w.covered("commit of unknown outcome")
		return &ledger.FailedError{Err: errAway}
	}
	return err
}

// lose breaks the connection in the middle of a commit, and returns for how
// long. The caller holds the world's lock.
func (s *session) lose(l luck) time.Duration {
	most := 4 * time.Second
	if l.dice.of("long").oneIn(3) {
		most = 16 * time.Second
	}
	away := l.dice.of("away").between(50*time.Millisecond, most)
	s.cut = time.Now().Add(away)
	s.p.w.covered("connection to the database lost in a commit")
	return away
}

// apply makes all writes or none. The caller holds the world's lock.
func (s *session) apply(writes []ledger.Write) error {
	w := s.p.w
	changes, err := s.rows.decide(writes)
	if err != nil {
		if conflict, ok := errors.AsType[*ledger.ConflictError](err); ok && isLane(conflict.Key) {
			w.covered("lane changed by another instance meanwhile")
		}
		return err
	}
	w.transitions(s.p, s.rows, writes)
	s.rows.change(changes)
	return nil
}

// crash leaves each of the commits under way made, or not.
func (s *session) crash(d dice) {
	for i, f := range s.flights {
		if d.of("kept").nth(i).oneIn(2) {
			_ = s.apply(f.writes)
		}
	}
	s.flights = nil
}

// Later implements ledger.Store. Nothing that shares a store calls it.
func (s *session) Later(writes ...ledger.Write) {
	s.p.w.mu.Lock()
	defer s.p.w.mu.Unlock()
	s.p.w.violate("%s is written later, in a database that others write to as well", subject(writes))
}

// Close implements ledger.Store.
func (s *session) Close() error { return nil }

// An unfenced session writes lanes and their slots as it thinks they are,
// whoever has changed them meanwhile.
type unfenced struct{ *session }

// Commit implements ledger.Store.
func (u *unfenced) Commit(ctx context.Context, writes ...ledger.Write) error {
	own := slices.Clone(writes)
	for i := range own {
		if isLane(own[i].Key) || strings.HasPrefix(string(own[i].Key), "slot/") {
			own[i].If = ledger.AnyVersion
		}
	}
	return u.session.Commit(ctx, own...)
}

var _ storage = (*session)(nil)
