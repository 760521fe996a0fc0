package facilitator

import "time"

// SetClock has a facilitator that nobody uses yet take now for the time.
func SetClock(f *Embedded, now func() time.Time) { f.now = now }
