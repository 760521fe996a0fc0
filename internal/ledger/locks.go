package ledger

import (
	"bytes"
	"slices"
	"sync"

	"github.com/tollgate402/tollgate/payment"
)

// A keyLocks lets one writer of this process at a time change a payment.
// Other processes are kept apart by versions; within one, versions are not
// enough, because a change that nobody waits for must not find out too late
// that it came second.
type keyLocks struct {
	mu   sync.Mutex
	held map[payment.Key]*keyLock // guarded by mu
}

type keyLock struct {
	// turn holds one token. It is a channel and no mutex because it is held
	// over disk writes, and the simulation's time goes on only while
	// everybody waits for something that it can see.
	turn  chan struct{}
	users int // guarded by keyLocks.mu: who has it or waits for it
}

// lock waits for the turn to change all of keys and returns what ends it. The
// keys are taken in their order, so that no two callers wait for each other.
func (l *keyLocks) lock(keys ...payment.Key) (unlock func()) {
	if len(keys) == 1 {
		return l.lockOne(keys[0])
	}
	keys = slices.Clone(keys)
	slices.SortFunc(keys, func(a, b payment.Key) int { return bytes.Compare(a[:], b[:]) })
	ends := make([]func(), 0, len(keys))
	for _, k := range slices.Compact(keys) {
		ends = append(ends, l.lockOne(k))
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}
}

func (l *keyLocks) lockOne(k payment.Key) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[payment.Key]*keyLock{}
	}
	own := l.held[k]
	if own == nil {
		own = &keyLock{turn: make(chan struct{}, 1)}
		own.turn <- struct{}{}
		l.held[k] = own
	}
	own.users++
	l.mu.Unlock()

	<-own.turn
	return func() {
		own.turn <- struct{}{}
		l.mu.Lock()
		defer l.mu.Unlock()
		if own.users--; own.users == 0 {
			delete(l.held, k)
		}
	}
}
