package ledger

// Pending returns how many records are kept in memory until they are stored.
func Pending(l *Ledger) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending)
}
