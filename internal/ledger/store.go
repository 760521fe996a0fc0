package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
)

// The limits of every store, so that no store refuses what another accepts.
const (
	// MaxKey is the length of the longest key, in bytes.
	MaxKey = 512

	// MaxValue is the length of the longest value, in bytes: 1 MiB less 1 KiB,
	// which leaves a store room to keep a value and what it knows about the
	// value in 1 MiB.
	MaxValue = 1<<20 - 1<<10

	// MaxWrites and MaxCommit bound one commit: how many writes it has, and how
	// many bytes their keys and values have together.
	MaxWrites = 1000
	MaxCommit = 2 << 20

	// MaxScan is the largest number of entries that one Scan returns.
	MaxScan = 10000
)

// Absent is the condition of a Write that creates a key.
const Absent uint64 = 0

// AnyVersion is the condition of a Write that always holds.
const AnyVersion = ^uint64(0)

var (
	// ErrNotFound says that there is no entry of the key.
	ErrNotFound = errors.New("ledger: no such entry")

	// ErrClosed says that the store was closed before it accepted the call.
	ErrClosed = errors.New("ledger: closed")
)

// Key names one entry: 1 to MaxKey bytes of printable ASCII without spaces.
// By convention its parts are separated by "/". Keys are ordered by their bytes.
type Key string

// Check returns an error if k is not a valid key.
func (k Key) Check() error {
	if k == "" {
		return errors.New("ledger: a key is empty")
	}
	return k.checkPart()
}

// checkPart is Check for what may also be empty: a prefix, the start of a scan.
func (k Key) checkPart() error {
	if len(k) > MaxKey {
		return fmt.Errorf("ledger: a key has %d bytes, the most is %d: %.40q…", len(k), MaxKey, string(k))
	}
	for i := range len(k) {
		if k[i] <= ' ' || k[i] > '~' {
			return fmt.Errorf("ledger: key %q has a byte that is not printable ASCII", string(k))
		}
	}
	return nil
}

// Entry is what a store holds under a key.
type Entry struct {
	Key Key

	// Version is 1 when the key is created and grows by 1 with every write of
	// it. A key that is created again after its deletion starts at 1 again, so a
	// version that somebody has read before the deletion may then hold for
	// another value. Delete only what is never written on the strength of an
	// earlier read, such as the entries of an index.
	Version uint64

	// Value is never nil in an entry that exists; it may be empty.
	Value []byte
}

// Write sets or deletes one entry under a condition.
type Write struct {
	Key Key

	// If is the version that the entry must have when the write is made:
	// Absent if it must not exist, AnyVersion if it does not matter.
	If uint64

	// Value is the new value; nil deletes the entry. Deleting an entry that does
	// not exist, where If allows it, only checks the condition.
	Value []byte
}

// ConflictError is returned for a commit whose conditions did not all hold.
// Nothing of the commit was written.
type ConflictError struct {
	// Key is the first key, in the order of the commit, whose condition did not hold.
	Key Key

	// Have is its entry when the commit was refused, which is on disk. Its
	// Version is 0 if there is none.
	Have Entry
}

func (e *ConflictError) Error() string {
	if e.Have.Version == 0 {
		return fmt.Sprintf("ledger: %s does not exist", e.Key)
	}
	return fmt.Sprintf("ledger: %s is already at version %d", e.Key, e.Have.Version)
}

// FailedError says that the store met an error of its disk and has stopped:
// it accepts no more commits until it is opened again. Whether the commits that
// were under way are on disk is known only then.
type FailedError struct {
	Err error
}

func (e *FailedError) Error() string {
	return fmt.Sprintf("ledger: stopped after a disk error, restart once the disk is sound: %v", e.Err)
}

func (e *FailedError) Unwrap() error { return e.Err }

// Store is the durable record. Its commits happen one after another, in an
// order in which a commit that returned before another one was made precedes it.
// Reads see what has been committed: all of a commit or nothing of it, and every
// commit that returned before the read was made. Values are copied on their way in
// and out. All methods may be called concurrently.
type Store interface {
	// Get returns the entry of key, or ErrNotFound.
	Get(ctx context.Context, key Key) (Entry, error)

	// Commit makes all writes or none. When it returns nil they are on disk.
	// When it returns a *ConflictError a condition did not hold and nothing was
	// written; after a *FailedError the outcome is unknown until the store is
	// opened again; after any other error nothing was written.
	//
	// ctx bounds only the wait until the store takes the commit up: from then on
	// Commit returns when the outcome is known, and returns that outcome.
	//
	// Two writes of one key are an error. A commit without writes waits for
	// what was handed to Later before.
	Commit(ctx context.Context, writes ...Write) error

	// Later is Commit for which nobody waits. The writes are made after every
	// commit that returned before Later was called and before every commit that
	// is made after Later returned, under the same conditions; until then reads
	// may not see them. They are lost if a condition does not hold, if the store
	// cannot write, or in a crash that comes first, so Later is only for what
	// recovery can derive again.
	Later(writes ...Write)

	// Scan returns up to limit entries, 1 to MaxScan, whose keys begin with prefix and
	// are greater than after, in ascending order of their keys. It sees one
	// moment: no commit is half visible in its result.
	Scan(ctx context.Context, prefix, after Key, limit int) ([]Entry, error)

	// Close waits for the commits that were accepted and releases the store.
	// Every other call then returns ErrClosed.
	Close() error
}

// CheckCommit returns an error if writes are not a commit that a store accepts.
// It is what every Store calls first.
func CheckCommit(writes []Write) error {
	if len(writes) > MaxWrites {
		return fmt.Errorf("ledger: a commit has %d writes, the most is %d", len(writes), MaxWrites)
	}
	size := 0
	seen := make(map[Key]struct{}, len(writes))
	for _, w := range writes {
		if err := w.Key.Check(); err != nil {
			return err
		}
		if len(w.Value) > MaxValue {
			return fmt.Errorf("ledger: the value of %s has %d bytes, the most is %d", w.Key, len(w.Value), MaxValue)
		}
		if _, twice := seen[w.Key]; twice {
			return fmt.Errorf("ledger: a commit writes %s twice", w.Key)
		}
		seen[w.Key] = struct{}{}
		size += len(w.Key) + len(w.Value)
	}
	if size > MaxCommit {
		return fmt.Errorf("ledger: a commit has %d bytes, the most is %d", size, MaxCommit)
	}
	return nil
}

// CloneWrites returns a copy of writes that shares no value with them, for
// stores that keep them after their caller has gone on.
func CloneWrites(writes []Write) []Write {
	copied := make([]Write, len(writes))
	for i, w := range writes {
		w.Value = bytes.Clone(w.Value)
		copied[i] = w
	}
	return copied
}

// CheckScan returns an error if the arguments are not those of a Scan that a
// store accepts.
func CheckScan(prefix, after Key, limit int) error {
	if err := prefix.checkPart(); err != nil {
		return err
	}
	if err := after.checkPart(); err != nil {
		return err
	}
	if limit < 1 || limit > MaxScan {
		return fmt.Errorf("ledger: a scan for %d entries, it must be 1 to %d", limit, MaxScan)
	}
	return nil
}

// Decide says what a commit does to a store in which have finds the present
// entry of a key, with Version 0 if there is none. It returns the entries to store,
// those with Version 0 to be deleted, or a *ConflictError if the commit must be
// refused, or the error of have. The values it returns are those of writes, not copies.
func Decide(writes []Write, have func(Key) (Entry, error)) ([]Entry, error) {
	changes := make([]Entry, 0, len(writes))
	for _, w := range writes {
		now, err := have(w.Key)
		if err != nil {
			return nil, err
		}
		switch {
		case w.If != AnyVersion && w.If != now.Version:
			return nil, &ConflictError{
				Key:  w.Key,
				Have: Entry{Key: w.Key, Version: now.Version, Value: bytes.Clone(now.Value)},
			}
		case w.Value != nil:
			changes = append(changes, Entry{Key: w.Key, Version: now.Version + 1, Value: w.Value})
		case now.Version != 0:
			changes = append(changes, Entry{Key: w.Key})
		}
	}
	return changes, nil
}
