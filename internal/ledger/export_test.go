package ledger

// Pending returns how many records are kept in memory until they are stored.
func Pending(l *Ledger) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending)
}

// Decoded returns how many decoded records are remembered.
func Decoded(l *Ledger) int {
	l.decoded.mu.Lock()
	defer l.decoded.mu.Unlock()
	return len(l.decoded.young) + len(l.decoded.old)
}
