package ledger

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
)

// Memory is a Store in memory: the model that the others are compared with, and
// the store of tests. What it holds is gone when the process ends.
type Memory struct {
	mu      sync.RWMutex
	closed  bool
	entries map[Key]Entry
	keys    []Key // of entries, in ascending order
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{entries: make(map[Key]Entry)}
}

// Get returns the entry of key, or ErrNotFound.
func (m *Memory) Get(ctx context.Context, key Key) (Entry, error) {
	if err := errors.Join(key.Check(), ctx.Err()); err != nil {
		return Entry{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return Entry{}, ErrClosed
	}
	e, ok := m.entries[key]
	if !ok {
		return Entry{}, ErrNotFound
	}
	return e.clone(), nil
}

// Commit makes all writes or none.
func (m *Memory) Commit(ctx context.Context, writes ...Write) error {
	if err := errors.Join(CheckCommit(writes), ctx.Err()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	changes, err := Decide(writes, func(k Key) (Entry, error) { return m.entries[k], nil })
	if err != nil {
		return err
	}
	for _, e := range changes {
		m.put(e.clone())
	}
	return nil
}

// put stores e, or deletes its key if its Version is 0. The caller holds mu.
func (m *Memory) put(e Entry) {
	i, exists := slices.BinarySearch(m.keys, e.Key)
	switch {
	case e.Version == 0:
		m.keys = slices.Delete(m.keys, i, i+1)
		delete(m.entries, e.Key)
		return
	case !exists:
		m.keys = slices.Insert(m.keys, i, e.Key)
	}
	m.entries[e.Key] = e
}

// Later commits writes at once and forgets the outcome.
func (m *Memory) Later(writes ...Write) {
	_ = m.Commit(context.Background(), writes...)
}

// Scan returns the entries under prefix after a key.
func (m *Memory) Scan(ctx context.Context, prefix, after Key, limit int) ([]Entry, error) {
	if err := errors.Join(CheckScan(prefix, after, limit), ctx.Err()); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return nil, ErrClosed
	}
	i, found := slices.BinarySearch(m.keys, max(prefix, after))
	if found && after >= prefix {
		i++
	}
	var page []Entry
	for _, k := range m.keys[i:] {
		if len(page) == limit || !strings.HasPrefix(string(k), string(prefix)) {
			break
		}
		page = append(page, m.entries[k].clone())
	}
	return page, nil
}

// Close makes every later call return ErrClosed.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.entries, m.keys = nil, nil
	return nil
}

func (e Entry) clone() Entry {
	e.Value = bytes.Clone(e.Value)
	return e
}

var _ Store = (*Memory)(nil)
