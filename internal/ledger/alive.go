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
	beatEvery = time.Second

	// deadAfter is how long a process must not have said so for the others to
	// take it for dead.
	deadAfter = 5 * time.Second

	// blindAfter is how long a process must not have been able to look for its
	// last look to prove nothing: what is left of deadAfter is the time that the
	// others have to say something once the store is there again.
	blindAfter = 3 * time.Second

	// unheardAfter is how long a process must not have been able to say that it
	// is alive for it to let go of what others would take over.
	unheardAfter = deadAfter - beatEvery

	// forgetAfter is how long the last word of a dead process is kept.
	forgetAfter = 10 * time.Minute
)

// A pulse is what this process has seen of another one.
type pulse struct {
	version uint64    // of its entry, or unseen
	changed time.Time // when the entry was first seen so, or asked for, by our own clock
	dead    bool
}

// unseen is the version of an entry that has not been there when somebody
// looked.
const unseen = 0

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
	now := l.now()
	l.pulse.Lock()
	first, silent := l.beaten.IsZero(), l.left
	idle := silent || l.exclusive || l.beating || !first && now.Sub(l.beaten) < beatEvery
	l.beating = l.beating || !idle
	l.pulse.Unlock()
	switch {
	case silent:
		return ErrLeft
	case idle:
		return nil
	}
	said, err := l.beat(ctx, first)
	l.pulse.Lock()
	defer l.pulse.Unlock()
	l.beating = false
	if said {
		l.beaten = now
	}
	return err
}

// beat is Beat without a lock, so that nobody who asks who is alive waits for
// the store. first says that this process has not been heard of. said reports
// that the others can hear of it now.
func (l *Ledger) beat(ctx context.Context, first bool) (said bool, err error) {
	if first {
		if err := l.unused(ctx); err != nil {
			return false, err
		}
	}
	if err := l.store.Commit(ctx, Write{Key: Key(aliveSpace + l.owner), If: AnyVersion, Value: []byte{}}); err != nil {
		return false, fmt.Errorf("ledger: saying that this process is alive: %w", err)
	}
	var all []Entry
	asked := l.now()
	for after := Key(""); ; after = all[len(all)-1].Key {
		page, err := l.store.Scan(ctx, aliveSpace, after, MaxScan)
		if err != nil {
			return true, err
		}
		if all = append(all, page...); len(page) < MaxScan {
			break
		}
	}
	for _, e := range l.observe(all, asked, l.now()) {
		err := l.store.Commit(ctx, Write{Key: e.Key, If: e.Version})
		if _, came := errors.AsType[*ConflictError](err); err != nil && !came {
			return true, err
		}
	}
	return true, nil
}

// unused returns ErrLeft if a process of this name has left.
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

// observe takes note of the entries of all processes, as they were at some
// moment after asked and before seen, and returns those that need not be kept
// any longer. How long the store takes counts for nobody's silence, and neither
// does the time in which this process could not look.
func (l *Ledger) observe(entries []Entry, asked, seen time.Time) (old []Entry) {
	l.pulse.Lock()
	defer l.pulse.Unlock()
	blind := asked.Sub(l.looked) > blindAfter
	l.looked = asked
	present := map[string]bool{}
	for _, e := range entries {
		owner := strings.TrimPrefix(string(e.Key), aliveSpace)
		present[owner] = true
		p, known := l.others[owner]
		switch {
		case owner == l.owner:
		case !known || p.version != e.Version || blind && !p.dead:
			gone := string(e.Value) == left
			if gone && !p.dead {
				l.deaths++
			}
			l.others[owner] = pulse{version: e.Version, changed: seen, dead: gone}
		case asked.Sub(p.changed) >= forgetAfter:
			old = append(old, e)
		default:
			l.await(owner, p, asked)
		}
	}
	for owner, p := range l.others {
		switch {
		case present[owner]:
		case p.version != unseen || asked.Sub(p.changed) >= forgetAfter:
			delete(l.others, owner)
		case blind && !p.dead:
			l.others[owner] = pulse{version: unseen, changed: seen}
		default:
			l.await(owner, p, asked)
		}
	}
	return old
}

// await takes a process for dead that has been silent for too long. l.pulse is
// held.
func (l *Ledger) await(owner string, p pulse, asked time.Time) {
	if p.dead || asked.Sub(p.changed) < deadAfter {
		return
	}
	p.dead = true
	l.others[owner] = p
	l.deaths++
}

// Leave says that this process has let go of the store for good, so that the
// others take over what it has left without waiting for its silence. It is
// the last call before the store is closed, once nothing works on a payment
// any more. It does nothing for a process that has never said that it is
// alive. After an error the others wait as after a crash.
func (l *Ledger) Leave(ctx context.Context) error {
	l.pulse.Lock()
	silent := l.left || l.exclusive || l.beaten.IsZero()
	l.left = true
	l.pulse.Unlock()
	if silent {
		return nil
	}
	if err := l.store.Commit(ctx, Write{Key: Key(aliveSpace + l.owner), If: AnyVersion, Value: []byte(left)}); err != nil {
		return fmt.Errorf("ledger: saying that this process has left: %w", err)
	}
	return nil
}

// Unheard reports whether other processes may take this one for dead, now or
// very soon: it has left, or could not say for a while that it is alive. They
// may then hand over what it is handing over, so it must not go on with that.
func (l *Ledger) Unheard() bool {
	l.pulse.Lock()
	defer l.pulse.Unlock()
	return l.shared && (l.left || !l.beaten.IsZero() && l.now().Sub(l.beaten) >= unheardAfter)
}

// Shared reports whether other processes write to the store.
func (l *Ledger) Shared() bool { return l.shared }

// Alive reports whether a process is this one, or was seen alive lately.
func (l *Ledger) Alive(owner string) bool {
	l.pulse.Lock()
	defer l.pulse.Unlock()
	p, known := l.others[owner]
	return owner == l.owner || !l.exclusive && known && !p.dead && p.version != unseen
}

// Gone reports whether a process need not be waited for any longer: it was
// seen to die or to leave, or nothing has been seen of it for as long since Gone
// was first asked about it. One that has begun lately is not gone only because
// nobody here has looked since.
func (l *Ledger) Gone(owner string) bool {
	l.pulse.Lock()
	defer l.pulse.Unlock()
	if owner == l.owner || l.exclusive {
		return owner != l.owner
	}
	p, known := l.others[owner]
	if !known {
		l.others[owner] = pulse{version: unseen, changed: l.now()}
	}
	return p.dead
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
