package webhook

import (
	"net/http"
	"strconv"
	"time"
)

// pauses are those after the first attempts that failed; the last one is
// repeated. With it the attempts of three days are eleven.
var pauses = [...]time.Duration{
	5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute,
	time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour,
}

const (
	// tryFor is for how long an event is tried.
	tryFor = 3 * 24 * time.Hour

	// maxRetryAfter bounds what a receiver may ask for.
	maxRetryAfter = 24 * time.Hour
)

// pause returns the time until the next attempt after n have failed. chance, of
// 0 up to 1, makes it up to a fifth shorter or longer, so that receivers who
// were away do not get everything at once.
func pause(n int, chance float64) time.Duration {
	base := pauses[min(max(n, 1), len(pauses))-1]
	return time.Duration(float64(base) * (0.8 + 0.4*chance))
}

// retryAfter returns for how long a receiver asks to be left alone (RFC 9110,
// section 10.2.3), up to maxRetryAfter.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	asked := time.Duration(0)
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		asked = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		asked = at.Sub(now)
	}
	return min(max(asked, 0), maxRetryAfter)
}
