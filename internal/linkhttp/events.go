package linkhttp

import (
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/payment/link"
)

// A Hub tells those who wait for changes of links that there was one. The zero
// value works. Its methods are safe for concurrent use.
type Hub struct {
	mu      sync.Mutex
	waiting map[link.ID]map[chan struct{}]struct{} // guarded by mu
	n       int                                    // guarded by mu: of all
}

// maxWaiting bounds how many wait in one process.
const maxWaiting = 2000

// Tell says that a link has changed.
func (h *Hub) Tell(id link.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.waiting[id] {
		select {
		case c <- struct{}{}:
		default: // it is told already
		}
	}
}

// wait returns a channel that gets something after each change of a link, and
// what ends that. It returns nil when too many wait.
func (h *Hub) wait(id link.ID) (<-chan struct{}, func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n >= maxWaiting {
		return nil, nil
	}
	h.n++
	c := make(chan struct{}, 1)
	if h.waiting == nil {
		h.waiting = map[link.ID]map[chan struct{}]struct{}{}
	}
	if h.waiting[id] == nil {
		h.waiting[id] = map[chan struct{}]struct{}{}
	}
	h.waiting[id][c] = struct{}{}
	return c, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.n--
		if delete(h.waiting[id], c); len(h.waiting[id]) == 0 {
			delete(h.waiting, id)
		}
	}
}

const (
	lookEvery  = 2 * time.Second // for changes that another process has made
	aliveEvery = 15 * time.Second
	eventsFor  = 10 * time.Minute
)

// events tells of a link's status as it changes, as server-sent events, until
// nothing more can become of it.
func (s *Site) events(w http.ResponseWriter, r *http.Request, id link.ID) {
	if r.Method != http.MethodGet {
		s.method(w, r, "GET")
		return
	}
	l, err := s.Links.Get(r.Context(), id)
	switch {
	case errors.Is(err, link.ErrNotFound):
		s.missing(w, r)
		return
	case err != nil:
		s.failed(w, r, "reading a link", err)
		return
	}
	var changed <-chan struct{}
	if s.Hub != nil {
		c, leave := s.Hub.wait(id)
		if c == nil {
			w.Header().Set("Retry-After", "5")
			s.problem(w, r, http.StatusServiceUnavailable, problem{Error: "too many are waiting; ask for the link itself again and again"})
			return
		}
		defer leave()
		changed = c
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	look, alive, end := time.NewTicker(lookEvery), time.NewTicker(aliveEvery), time.NewTimer(eventsFor)
	defer look.Stop()
	defer alive.Stop()
	defer end.Stop()
	for last := link.Status(""); ; {
		if status := l.Status(s.now()); status != last {
			last = status
			doc, err := json.Marshal(map[string]link.Status{"status": status})
			if err != nil {
				return
			}
			if _, err := w.Write([]byte("event: status\ndata: " + string(doc) + "\n\n")); err != nil || out.Flush() != nil {
				return
			}
			if status != link.Active && status != link.Pending {
				return
			}
		}
		select {
		case <-r.Context().Done():
			return
		case <-s.Ending:
			return
		case <-end.C:
			return
		case <-changed:
		case <-look.C:
		case <-alive.C:
			if _, err := w.Write([]byte(": still here\n\n")); err != nil || out.Flush() != nil {
				return
			}
		}
		if l, err = s.Links.Get(r.Context(), id); err != nil {
			return // the client asks again
		}
	}
}
