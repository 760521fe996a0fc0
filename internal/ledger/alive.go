package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	// beatEvery is how often a process says that it is alive.
	beatEvery = 2 * time.Second

	// deadAfter is how long a process must not have said so for the others to
	// take it for dead.
	deadAfter = 6 * time.Second

	// blindAfter is how long a process must not have been able to look for its
	// last look to prove nothing.
	blindAfter = 2 * beatEvery

	// forgetAfter is how long the last word of a dead process is kept.
	forgetAfter = 10 * time.Minute
)

// A pulse is what this process has seen of another one.
type pulse struct {
	version uint64    // of its entry
	changed time.Time // when the entry was first seen so, by our own clock
	dead    bool
}

const aliveSpace = "alive/"

// left is the last word of a process that has let go of the store.
const left = "left"

// ErrLeft says that a process has left the ledger for good, and its name with
// it.
var ErrLeft = errors.New("ledger: this process has left the ledger: a ledger that is opened again needs a name that was never used")

// Beat says that this process is alive, and looks which others are. Calls
// that follow one another too soon do nothing. No clock of another process
// is trusted: one is dead when its entry has not changed for a while, as this
// process sees it, or at once when it has said that it leaves. While the store
// was away nobody could say anything, so that time does not count. Being taken
// for dead is no danger to a process that is only slow, since whatever it
// stores is refused if somebody else has acted in its place. After Leave, and
// for a name that has left, Beat returns ErrLeft.
func (l *Ledger) Beat(ctx context.Context) error {
	l.pulse.Lock()
	defer l.pulse.Unlock()
	now := l.now()
	switch {
	case l.left:
		return ErrLeft
	case l.exclusive, !l.beaten.IsZero() && now.Sub(l.beaten) < beatEvery:
		return nil
	case l.beaten.IsZero():
		if err := l.unused(ctx); err != nil {
			return err
		}
	}
	if err := l.store.Commit(ctx, Write{Key: Key(aliveSpace + l.owner), If: AnyVersion, Value: []byte{}}); err != nil {
		return fmt.Errorf("ledger: saying that this process is alive: %w", err)
	}
	l.beaten = now
	blind := now.Sub(l.looked) > blindAfter
	present := map[string]bool{}
	for after := Key(""); ; {
		entries, err := l.store.Scan(ctx, aliveSpace, after, MaxScan)
		if err != nil {
			return err
		}
		for _, e := range entries {
			after = e.Key
			owner := strings.TrimPrefix(string(e.Key), aliveSpace)
			present[owner] = true
			if err := l.observe(ctx, owner, e, now, blind); err != nil {
				return err
			}
		}
		if len(entries) < MaxScan {
			break
		}
	}
	for owner := range l.others {
		if !present[owner] {
			delete(l.others, owner)
		}
	}
	l.looked = now
	return nil
}

// unused returns ErrLeft if a process of this name has left. l.pulse is held.
func (l *Ledger) unused(ctx context.Context) error {
	e, err := l.store.Get(ctx, Key(aliveSpace+l.owner))
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("ledger: looking whether the name of this process is free: %w", err)
	case string(e.Value) == left:
		return ErrLeft
	}
	return nil
}

// Leave says that this process has let go of the store for good, so that the
// others take over what it has left without waiting for its silence. It is
// the last call before the store is closed, once nothing works on a payment
// any more. It does nothing for a process that has never said that it is
// alive. After an error the others wait as after a crash.
func (l *Ledger) Leave(ctx context.Context) error {
	l.pulse.Lock()
	defer l.pulse.Unlock()
	if l.left || l.exclusive || l.beaten.IsZero() {
		l.left = true
		return nil
	}
	l.left = true
	if err := l.store.Commit(ctx, Write{Key: Key(aliveSpace + l.owner), If: AnyVersion, Value: []byte(left)}); err != nil {
		return fmt.Errorf("ledger: saying that this process has left: %w", err)
	}
	return nil
}

// observe takes note of another process's entry. blind says that this one has
// not been able to look for a while. l.pulse is held.
func (l *Ledger) observe(ctx context.Context, owner string, e Entry, now time.Time, blind bool) error {
	p, known := l.others[owner]
	switch {
	case owner == l.owner:
	case !known || p.version != e.Version || blind && !p.dead:
		gone := string(e.Value) == left
		if gone && !p.dead {
			l.deaths++
		}
		l.others[owner] = pulse{version: e.Version, changed: now, dead: gone}
	case now.Sub(p.changed) >= forgetAfter:
		err := l.store.Commit(ctx, Write{Key: e.Key, If: e.Version})
		if _, came := errors.AsType[*ConflictError](err); err != nil && !came {
			return err
		}
	case !p.dead && now.Sub(p.changed) >= deadAfter:
		p.dead = true
		l.others[owner] = p
		l.deaths++
	}
	return nil
}

// Alive reports whether a process is this one, or was seen alive lately.
func (l *Ledger) Alive(owner string) bool {
	l.pulse.Lock()
	defer l.pulse.Unlock()
	p, known := l.others[owner]
	return owner == l.owner || !l.exclusive && known && !p.dead
}

// dead reports whether a process was alive once and is not any more.
func (l *Ledger) dead(owner string) bool {
	l.pulse.Lock()
	defer l.pulse.Unlock()
	return owner != l.owner && (l.exclusive || l.others[owner].dead)
}

// Deaths returns how many processes this one has seen die or leave. Whoever sees the
// number grow takes over what they have left.
func (l *Ledger) Deaths() int {
	l.pulse.Lock()
	defer l.pulse.Unlock()
	return l.deaths
}
