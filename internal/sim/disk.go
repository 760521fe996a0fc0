package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// An image is what a disk holds at one moment.
type image map[ledger.Key]ledger.Entry

// decide says what writes change, or why they cannot be made.
func (m image) decide(writes []ledger.Write) ([]ledger.Entry, error) {
	return ledger.Decide(writes, func(k ledger.Key) (ledger.Entry, error) { return m[k], nil })
}

// apply makes all writes or none.
func (m image) apply(writes []ledger.Write) error {
	changes, err := m.decide(writes)
	if err == nil {
		m.change(changes)
	}
	return err
}

func (m image) change(changes []ledger.Entry) {
	for _, e := range changes {
		if e.Version == 0 {
			delete(m, e.Key)
			continue
		}
		m[e.Key] = e
	}
}

// scan is what ledger.Store's Scan returns.
func (m image) scan(prefix, after ledger.Key, limit int) []ledger.Entry {
	var page []ledger.Entry
	for k, e := range m {
		if k > after && strings.HasPrefix(string(k), string(prefix)) {
			e.Value = append([]byte{}, e.Value...)
			page = append(page, e)
		}
	}
	slices.SortFunc(page, func(a, b ledger.Entry) int { return strings.Compare(string(a.Key), string(b.Key)) })
	return page[:min(limit, len(page))]
}

// mentions reports whether any entry's value contains text.
func (m image) mentions(text string) bool {
	for _, e := range m {
		if bytes.Contains(e.Value, []byte(text)) {
			return true
		}
	}
	return false
}

// record returns the state and claims of a payment, as far as they are there.
func (m image) record(k ledger.Key) (r ledger.Record, ok bool) {
	e, ok := m[k]
	return r, ok && json.Unmarshal(e.Value, &r) == nil
}

// A disk is a ledger.Store on a disk that can crash. A commit is on disk when
// it returns. What was handed to Later is on disk when a later commit has
// returned; until then a crash can lose it, from some write on. Of the commits
// under way a crash keeps as many as it likes.
//
// The world's lock guards it.
type disk struct {
	p       *process
	durable image // that of all processes, one after the other
	live    image // what reads see

	journal [][]ledger.Write // in live, but not known to be durable
	lazy    [][]ledger.Write // handed to Later, not in live yet
	flights []*flight        // commits under way, in the order of their beginning
	failed  error
}

type flight struct{ writes []ledger.Write }

func openDisk(p *process, durable image) *disk {
	return &disk{p: p, durable: durable, live: maps.Clone(durable)}
}

func (s *disk) view() image { return s.live }

func cloneWrites(writes []ledger.Write) []ledger.Write {
	own := slices.Clone(writes)
	for i := range own {
		if own[i].Value != nil {
			own[i].Value = append([]byte{}, own[i].Value...)
		}
	}
	return own
}

// Get implements ledger.Store.
func (s *disk) Get(ctx context.Context, key ledger.Key) (ledger.Entry, error) {
	if err := errors.Join(key.Check(), ctx.Err()); err != nil {
		return ledger.Entry{}, err
	}
	if err := s.p.enter(); err != nil {
		return ledger.Entry{}, err
	}
	defer s.p.w.mu.Unlock()
	e, ok := s.live[key]
	if !ok {
		return ledger.Entry{}, ledger.ErrNotFound
	}
	e.Value = append([]byte{}, e.Value...)
	return e, nil
}

// Scan implements ledger.Store.
func (s *disk) Scan(ctx context.Context, prefix, after ledger.Key, limit int) ([]ledger.Entry, error) {
	if err := errors.Join(ledger.CheckScan(prefix, after, limit), ctx.Err()); err != nil {
		return nil, err
	}
	if err := s.p.enter(); err != nil {
		return nil, err
	}
	defer s.p.w.mu.Unlock()
	return s.live.scan(prefix, after, limit), nil
}

// Commit implements ledger.Store.
func (s *disk) Commit(ctx context.Context, writes ...ledger.Write) error {
	if err := errors.Join(ledger.CheckCommit(writes), ctx.Err()); err != nil {
		return err
	}
	f := &flight{cloneWrites(writes)}
	if err := s.p.enter(); err != nil {
		return err
	}
	s.flights = append(s.flights, f)
	s.p.w.mu.Unlock()

	// Once it has begun it takes its time, whatever becomes of ctx.
	who := context.WithoutCancel(ctx)
	return s.p.act(who, interaction{kind: "commit", id: subject(writes), state: stateIn(writes), disk: true}, func(l luck) error {
		s.flights = slices.DeleteFunc(s.flights, func(other *flight) bool { return other == f })
		if s.failed != nil {
			return &ledger.FailedError{Err: s.failed}
		}
		if l.broken {
			s.fail(l, f)
			return &ledger.FailedError{Err: s.failed}
		}
		s.flush()
		if err := s.live.apply(f.writes); err != nil {
			return err
		}
		s.journal = append(s.journal, f.writes)
		if s.p.w.flaw != VolatileCommit {
			s.sync()
		}
		return nil
	})
}

// fail stops the store with a commit that is on the disk or not.
func (s *disk) fail(l luck, f *flight) {
	s.failed = errors.New("input/output error")
	s.p.w.covered("disk failure")
	if l.dice.of("kept").oneIn(2) {
		s.sync()
		s.settle(f.writes)
	}
	s.p.doom("the disk failed")
}

// Later implements ledger.Store. It never waits, also when the process is
// dead: who calls it may hold a mutex.
func (s *disk) Later(writes ...ledger.Write) {
	w := s.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if ledger.CheckCommit(writes) != nil || s.p.dead || s.failed != nil {
		return
	}
	s.lazy = append(s.lazy, cloneWrites(writes))
	what := "later " + subject(writes)
	s.p.counts[what]++
	w.note("later", s.p.name, subject(writes), string(stateIn(writes)))
	if s.p.strike("wrote", string(stateIn(writes)), false) {
		return
	}
	delay := s.p.dice.of(what).nth(s.p.counts[what]).between(time.Millisecond, 60*time.Millisecond)
	time.AfterFunc(delay, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !s.p.dead && s.failed == nil {
			s.flush()
		}
	})
}

// flush shows what was handed to Later.
func (s *disk) flush() {
	for _, writes := range s.lazy {
		if s.live.apply(writes) == nil {
			s.journal = append(s.journal, writes)
		}
	}
	s.lazy = nil
}

// sync makes everything durable that is shown.
func (s *disk) sync() {
	for _, writes := range s.journal {
		s.p.w.transitions(s.p, s.durable, writes)
		if err := s.durable.apply(writes); err != nil {
			panic("sim: the disk contradicts itself: " + err.Error())
		}
	}
	s.journal = nil
}

// settle makes writes durable, unless a condition of theirs does not hold.
func (s *disk) settle(writes []ledger.Write) {
	after := maps.Clone(s.durable)
	if after.apply(writes) != nil {
		return
	}
	s.p.w.transitions(s.p, s.durable, writes)
	_ = s.durable.apply(writes) // it has just been tried
}

// crash leaves on the disk what a crash now would leave there.
func (s *disk) crash(d dice) {
	tail := append(slices.Clone(s.journal), s.lazy...)
	for _, f := range s.flights {
		tail = append(tail, f.writes)
	}
	kept := d.of("kept").below(len(tail) + 1)
	if kept < len(s.journal)+len(s.lazy) {
		s.p.w.covered("K14 unsynced writes lost")
	}
	for _, writes := range tail[:kept] {
		s.settle(writes)
	}
	s.journal, s.lazy, s.flights = nil, nil, nil
}

// Close implements ledger.Store.
func (s *disk) Close() error { return nil }

// subject names the first entry of a commit, short enough for a log.
func subject(writes []ledger.Write) string {
	if len(writes) == 0 {
		return ""
	}
	return clip(string(writes[0].Key), 20)
}

func clip(s string, n int) string { return s[:min(n, len(s))] }

// stateIn returns the state that a commit gives a payment, or "".
func stateIn(writes []ledger.Write) ledger.State {
	for _, w := range writes {
		if strings.HasPrefix(string(w.Key), "pay/") && w.Value != nil {
			return stateOf(w.Value)
		}
	}
	return ""
}

// stateOf reads the state of a stored payment, which is the first thing that
// is written of it. It is asked for so often that decoding all of it would take
// a fifth of a world's time.
func stateOf(value []byte) ledger.State {
	rest, ok := bytes.CutPrefix(value, []byte(`{"state":"`))
	name, _, ended := bytes.Cut(rest, []byte(`"`))
	if !ok || !ended {
		return "?"
	}
	return ledger.State(name)
}

var _ storage = (*disk)(nil)
