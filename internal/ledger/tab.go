package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// On a store that several processes share, what is exposed is added up in the
// store. The sums are changed in the same commit as the record, on the
// condition that nobody else has changed them: so the caps hold whoever asks
// at the same time, and no crash comes between a record and its sums.
//
// Everybody writes the sum of a network. So that the requests of one process
// do not wait for one another, one commit makes the changes of all that have
// come meanwhile.

// A tab is what is exposed to one payer on a network, or on a network to all
// of them. It is never deleted, so that its versions only grow.
type tab struct {
	// Exposed is in atomic units, in decimal digits, by token.
	Exposed map[string]string `json:"exposed,omitempty"`

	// Lost says that the payer has caused a loss.
	Lost bool `json:"lost,omitempty"`

	version uint64 // of the stored entry; 0 while there is none
}

const tabSpace = "tab/"

// tabsKept exists once the tabs are what the records say.
const tabsKept Key = "tabs"

func totalTab(n payment.Network) Key               { return tabSpace + Key(n) }
func payerTab(n payment.Network, payer string) Key { return totalTab(n) + Key("/"+payer) }

// units returns what is exposed in a token.
func (b *tab) units(token string) *big.Int {
	if sum, ok := new(big.Int).SetString(b.Exposed[token], 10); ok {
		return sum
	}
	return new(big.Int)
}

// add adds units, which may be negative. A sum does not fall below zero, where
// it would leave room that the caps do not.
func (b *tab) add(token string, units *big.Int) {
	sum := b.units(token)
	if sum.Add(sum, units).Sign() <= 0 {
		delete(b.Exposed, token)
		return
	}
	if b.Exposed == nil {
		b.Exposed = map[string]string{}
	}
	b.Exposed[token] = sum.String()
}

func (b *tab) clone() *tab {
	return &tab{Exposed: maps.Clone(b.Exposed), Lost: b.Lost, version: b.version}
}

func (b *tab) write(k Key) (Write, error) {
	doc, err := json.Marshal(b)
	if err != nil {
		return Write{}, fmt.Errorf("ledger: writing %s: %w", k, err)
	}
	return Write{Key: k, If: b.version, Value: doc}, nil
}

func decodeTab(e Entry) (*tab, error) {
	b := &tab{version: e.Version}
	if e.Version == 0 {
		return b, nil
	}
	if err := json.Unmarshal(e.Value, b); err != nil {
		return nil, fmt.Errorf("ledger: reading %s: %w", e.Key, err)
	}
	return b, nil
}

// readTab returns a tab, which is empty where there is none.
func readTab(ctx context.Context, s Store, k Key) (*tab, error) {
	e, err := s.Get(ctx, k)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("ledger: reading what is exposed: %w", err)
	}
	return decodeTab(e)
}

// A tabChange is a change of a record that changes what it exposes, on its
// way to the store.
type tabChange struct {
	ctx    context.Context
	record Record // as it is to be stored
	writes []Write
	before *Exposure // what the record exposes at present, or nil
	caps   Caps      // of what it is to expose, if anything
	lost   bool
	payer  *tab // as its caller has read it

	err  error         // written before done is closed
	done chan struct{} // closed when the outcome is known
}

func (c *tabChange) finish(err error) {
	c.err = err
	close(c.done)
}

func (c *tabChange) finished() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// apply changes the tabs of a network and of a payer, or returns ErrExposed
// and changes nothing.
func (c *tabChange) apply(all, own *tab) error {
	if x := c.record.Exposed; x != nil {
		units, ok := new(big.Int).SetString(x.Units, 10)
		if !ok || own.Lost || c.caps.exceeded(units, all.units(x.Token), own.units(x.Token)) {
			return ErrExposed
		}
		all.add(x.Token, units)
		own.add(x.Token, units)
	}
	if x := c.before; x != nil {
		if units, ok := new(big.Int).SetString(x.Units, 10); ok {
			units.Neg(units)
			all.add(x.Token, units)
			own.add(x.Token, units)
		}
	}
	own.Lost = own.Lost || c.lost
	return nil
}

// tabs brings the changes of this process to a shared store.
type tabs struct {
	kept atomic.Bool // tabsKept is known to exist

	// turn holds one token. Whoever has it works on what waits. It is a channel
	// for the reason that a keyLock's is one.
	turn  chan struct{}
	known map[Key]*tab // as the last commit left them; owned by whoever has the turn

	mu      sync.Mutex
	waiting []*tabChange // guarded by mu
}

func newTabs() *tabs {
	t := &tabs{turn: make(chan struct{}, 1)}
	t.turn <- struct{}{}
	return t
}

// updateTabs is UpdateWith for a change of what the record exposes. It returns
// ErrExposed, having stored nothing, where that would exceed caps or the payer
// has caused a loss. With lost the payer causes one.
func (l *Ledger) updateTabs(ctx context.Context, k payment.Key, caps Caps, lost bool, change func(*Record) error, riders ...Rider) (Record, error) {
	if err := l.keepTabs(ctx); err != nil {
		return Record{}, err
	}
	defer l.writing.lock(k)()
	for {
		r, err := l.Get(ctx, k)
		if err != nil {
			return Record{}, err
		}
		c := &tabChange{ctx: ctx, before: r.Exposed, caps: caps, lost: lost, done: make(chan struct{})}
		if err := change(&r); err != nil {
			return Record{}, err
		}
		if c.payer, err = readTab(ctx, l.store, payerTab(r.Network, r.Payer)); err != nil {
			return Record{}, err
		}
		if c.writes, err = l.writes(&r); err != nil {
			return Record{}, err
		}
		also, err := ride(ctx, &r, riders)
		if err != nil {
			return Record{}, err
		}
		c.writes = append(c.writes, also...)
		c.record = r
		err = l.tabs.bring(ctx, l.store, c)
		if conflict(err) {
			continue
		}
		if err != nil {
			return Record{}, err
		}
		return r, nil
	}
}

// bring returns when the outcome of c is known: a *ConflictError says that its
// record has changed. The end of ctx makes it give up what has not been taken
// up; see Commit.
func (t *tabs) bring(ctx context.Context, s Store, c *tabChange) error {
	t.mu.Lock()
	t.waiting = append(t.waiting, c)
	t.mu.Unlock()
	for !c.finished() {
		select {
		case <-c.done:
		case <-t.turn:
			t.work(ctx, s, c)
		case <-ctx.Done():
			if t.withdraw(c) {
				return fmt.Errorf("ledger: not committed: %w", ctx.Err())
			}
			select {
			case <-c.done:
			case <-t.turn: // then c is finished, or can be withdrawn
				t.turn <- struct{}{}
			}
		}
	}
	return c.err
}

// withdraw takes c back. It reports false if somebody works on it already.
func (t *tabs) withdraw(c *tabChange) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.waiting, c)
	if i < 0 {
		return false
	}
	t.waiting = slices.Delete(t.waiting, i, i+1)
	return true
}

// take takes as many of the changes that wait as one commit can make, in their
// order.
func (t *tabs) take() []*tabChange {
	const ofTabs, sizeOfTabs = 3, 4 << 10 // the two tabs and the strike
	t.mu.Lock()
	defer t.mu.Unlock()
	n, writes, size := 0, 0, 0
	for _, c := range t.waiting {
		writes, size = writes+len(c.writes)+ofTabs, size+sizeOfTabs
		for _, w := range c.writes {
			size += len(w.Key) + len(w.Value)
		}
		if n > 0 && (writes > MaxWrites || size > MaxCommit) {
			break
		}
		n++
	}
	batch := slices.Clone(t.waiting[:n])
	t.waiting = slices.Delete(t.waiting, 0, n)
	return batch
}

// work brings what waits to the store, until own, which is the caller's, is
// finished. The caller has the turn, which ends with it.
func (t *tabs) work(ctx context.Context, s Store, own *tabChange) {
	defer func() { t.turn <- struct{}{} }()
	batch := t.take()
	ctx = context.WithoutCancel(ctx) // the others do not depend on the caller
	known := map[Key]*tab{}
	for _, c := range batch {
		k := payerTab(c.record.Network, c.record.Payer)
		for _, b := range []*tab{t.known[k], c.payer} {
			if b != nil && (known[k] == nil || b.version > known[k].version) {
				known[k] = b
			}
		}
	}
	t.known = known
	for len(batch) > 0 && !own.finished() {
		batch = t.try(ctx, s, batch)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = append(batch, t.waiting...)
}

// try makes a batch of changes in one commit, and returns those that are to be
// tried again. The caller has the turn.
func (t *tabs) try(ctx context.Context, s Store, batch []*tabChange) (again []*tabChange) {
	ctx, cancel := untilFirst(ctx, batch)
	defer cancel()
	next, err := t.learn(ctx, s, batch)
	var writes []Write
	if err == nil {
		if batch, writes, err = t.plan(batch, next); len(batch) == 0 {
			return nil
		}
	}
	if err == nil {
		err = s.Commit(ctx, writes...)
	}
	refused, isConflict := errors.AsType[*ConflictError](err)
	_, isFailure := errors.AsType[*FailedError](err)
	switch {
	case err == nil:
		for k, b := range next {
			b.version++
			t.known[k] = b
		}
	case isConflict && next[refused.Key] != nil: // another process was faster
		if t.known[refused.Key], err = decodeTab(refused.Have); err == nil {
			return batch
		}
	case isConflict:
		i := slices.IndexFunc(batch, func(c *tabChange) bool { return paymentKey(c.record.Key) == refused.Key })
		if i >= 0 {
			batch[i].finish(err)
			return slices.Delete(batch, i, i+1)
		}
	case ctx.Err() != nil && !isFailure: // some of them have waited for long enough
		return slices.DeleteFunc(batch, func(c *tabChange) bool {
			end, limited := c.ctx.Deadline()
			over := limited && !time.Now().Before(end)
			if over {
				c.finish(err)
			}
			return over
		})
	}
	if err != nil {
		clear(t.known)
	}
	for _, c := range batch {
		c.finish(err)
	}
	return nil
}

// untilFirst returns a context that ends when the first of batch must not wait
// any longer.
func untilFirst(ctx context.Context, batch []*tabChange) (context.Context, context.CancelFunc) {
	var first time.Time
	for _, c := range batch {
		if end, limited := c.ctx.Deadline(); limited && (first.IsZero() || end.Before(first)) {
			first = end
		}
	}
	if first.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, first)
}

// learn returns copies of the tabs that batch changes. The tabs of networks
// are read the first time.
func (t *tabs) learn(ctx context.Context, s Store, batch []*tabChange) (map[Key]*tab, error) {
	next := map[Key]*tab{}
	for _, c := range batch {
		for _, k := range []Key{totalTab(c.record.Network), payerTab(c.record.Network, c.record.Payer)} {
			if next[k] != nil {
				continue
			}
			if t.known[k] == nil {
				read, err := readTab(ctx, s, k)
				if err != nil {
					return nil, err
				}
				t.known[k] = read
			}
			next[k] = t.known[k].clone()
		}
	}
	return next, nil
}

// plan applies batch to the tabs in next, one change after another, and tells
// those that the caps do not allow. It returns the others and what to write
// for them. Tabs that do not change leave next.
func (t *tabs) plan(batch []*tabChange, next map[Key]*tab) (allowed []*tabChange, writes []Write, err error) {
	changed := map[Key]bool{}
	struck := map[Key]bool{}
	for _, c := range batch {
		n, payer := c.record.Network, c.record.Payer
		if err := c.apply(next[totalTab(n)], next[payerTab(n, payer)]); err != nil {
			c.finish(err)
			continue
		}
		allowed = append(allowed, c)
		writes = append(writes, c.writes...)
		if c.before != nil || c.record.Exposed != nil {
			changed[totalTab(n)], changed[payerTab(n, payer)] = true, true
		}
		if c.lost {
			changed[payerTab(n, payer)], struck[strikeKey(n, payer)] = true, true
		}
	}
	for _, k := range slices.Sorted(maps.Keys(next)) {
		if !changed[k] {
			delete(next, k)
			continue
		}
		w, err := next[k].write(k)
		if err != nil {
			return allowed, nil, err
		}
		writes = append(writes, w)
	}
	for _, k := range slices.Sorted(maps.Keys(struck)) {
		writes = append(writes, Write{Key: k, If: AnyVersion, Value: []byte{}})
	}
	return allowed, writes, nil
}

// keepTabs sees to it that the tabs are in the store. Where an earlier version
// has kept none, they are made from the records.
func (l *Ledger) keepTabs(ctx context.Context) error {
	if l.tabs.kept.Load() {
		return nil
	}
	select {
	case <-l.tabs.turn: // one of this process is enough
		defer func() { l.tabs.turn <- struct{}{} }()
	case <-ctx.Done():
		return fmt.Errorf("ledger: adding up what is exposed: %w", ctx.Err())
	}
	for !l.tabs.kept.Load() {
		_, err := l.store.Get(ctx, tabsKept)
		if errors.Is(err, ErrNotFound) {
			err = l.makeTabs(ctx)
		}
		switch {
		case err == nil:
			l.tabs.kept.Store(true)
		case !conflict(err):
			return fmt.Errorf("ledger: adding up what is exposed: %w", err)
		}
	}
	return nil
}

// makeTabs makes the tabs from the records. Nobody changes what is exposed
// before they are made; a *ConflictError says that somebody else has made
// them.
func (l *Ledger) makeTabs(ctx context.Context) error {
	all := map[Key]*tab{}
	if err := l.walk(ctx, tabSpace, func(e Entry) error {
		all[e.Key] = &tab{} // of an attempt that has not come to its end
		return nil
	}); err != nil {
		return err
	}
	for r, err := range l.Open(ctx) {
		if err != nil {
			return err
		}
		addTo(all, &r)
	}
	if err := l.walk(ctx, "strike/", func(e Entry) error {
		of(all, tabSpace+Key(strings.TrimPrefix(string(e.Key), "strike/"))).Lost = true
		return nil
	}); err != nil {
		return err
	}
	const several = 500
	writes := []Write{{Key: tabsKept, If: Absent}}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		all[k].version = AnyVersion
		w, err := all[k].write(k)
		if err != nil {
			return err
		}
		if writes = append(writes, w); len(writes) > several {
			if err := l.store.Commit(ctx, writes...); err != nil {
				return err
			}
			writes = writes[:1]
		}
	}
	writes[0].Value = []byte{}
	return l.store.Commit(ctx, writes...)
}

// addTo adds what a record exposes to tabs.
func addTo(tabs map[Key]*tab, r *Record) {
	if r.Exposed == nil {
		return
	}
	if units, ok := new(big.Int).SetString(r.Exposed.Units, 10); ok {
		of(tabs, totalTab(r.Network)).add(r.Exposed.Token, units)
		of(tabs, payerTab(r.Network, r.Payer)).add(r.Exposed.Token, units)
	}
}

// of returns the tab of a key, which it opens where there is none.
func of(tabs map[Key]*tab, k Key) *tab {
	if tabs[k] == nil {
		tabs[k] = &tab{}
	}
	return tabs[k]
}

// checkTabs compares the tabs, where they are kept, with the records.
func (l *Ledger) checkTabs(ctx context.Context, s *Survey) error {
	if _, err := l.store.Get(ctx, tabsKept); errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	const tries = 4
	for try := range tries {
		var found Survey
		settled, err := l.compareTabs(ctx, &found)
		if err != nil {
			return err
		}
		if settled || try == tries-1 {
			for _, f := range found.Findings {
				s.find(Key(f.Key), "%s", f.Problem)
			}
			return nil
		}
	}
	return nil
}

// compareTabs notes where the tabs are not what the records say. Whatever
// changes what is exposed on a network changes the network's tab: where that
// has changed meanwhile nothing is noted, and the result is false.
func (l *Ledger) compareTabs(ctx context.Context, s *Survey) (settled bool, err error) {
	var struck []Key
	if err := l.walk(ctx, "strike/", func(e Entry) error {
		struck = append(struck, tabSpace+Key(strings.TrimPrefix(string(e.Key), "strike/")))
		return nil
	}); err != nil {
		return false, err
	}
	before := map[Key]*tab{}
	if err := l.walk(ctx, tabSpace, func(e Entry) error {
		b, err := decodeTab(e)
		if err != nil {
			s.find(e.Key, "what is exposed cannot be read: %s", err.Error())
			b = nil
		}
		before[e.Key] = b
		return nil
	}); err != nil {
		return false, err
	}
	for _, k := range struck {
		if b, ok := before[k]; !ok || b != nil && !b.Lost {
			s.find(k, "it does not say that the payer has caused a loss: the payer would be trusted again")
		}
	}
	sums, err := l.addUp(ctx)
	if err != nil {
		return false, err
	}
	settled = true
	for k := range before {
		of(sums, k)
	}
	for _, k := range slices.Sorted(maps.Keys(sums)) {
		network := totalTab(payment.Network(strings.Split(string(k), "/")[1]))
		now, err := l.store.Get(ctx, network)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return false, err
		}
		b, stored := before[k]
		switch {
		case stored && b == nil: // found above
		case now.Version != versionOf(before[network]):
			settled = false
		case !stored:
			s.find(k, "there is no sum of what is exposed")
		case !maps.Equal(b.Exposed, sums[k].Exposed):
			s.find(k, "it says that %s is exposed, the payments say %s", fmt.Sprint(b.Exposed), fmt.Sprint(sums[k].Exposed))
		}
	}
	return settled, nil
}

func versionOf(b *tab) uint64 {
	if b == nil {
		return 0
	}
	return b.version
}

// addUp returns the tabs as the records that can be read say that they are.
func (l *Ledger) addUp(ctx context.Context) (map[Key]*tab, error) {
	sums := map[Key]*tab{}
	return sums, l.walk(ctx, "open/", func(e Entry) error {
		k, err := parseKey(strings.TrimPrefix(string(e.Key), "open/"))
		if err != nil {
			return nil // found before
		}
		if r, err := l.Get(ctx, k); err == nil {
			addTo(sums, &r)
		}
		return nil
	})
}
