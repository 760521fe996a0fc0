//go:build failpoint

package failpoint

import (
	"net/http"
	"strconv"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// A writer watches one answer on its way to the client.
type writer struct {
	http.ResponseWriter
	trap *trap

	paid bool  // it is the answer that was paid for
	size int64 // of its body by Content-Length, 0 where that is not known
	sent int64
}

// arrives is how long bytes that have been flushed get to reach the client.
const arrives = 10 * time.Millisecond

func (w *writer) WriteHeader(status int) {
	h := w.Header()
	if w.paid = status >= 200 && status < 300 && h.Get(payment.HeaderResponse) != ""; w.paid {
		w.trap.hit(Answering)
		w.size, _ = strconv.ParseInt(h.Get("Content-Length"), 10, 64)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(b []byte) (int, error) {
	if !w.paid {
		return w.ResponseWriter.Write(b)
	}
	if len(b) > 1 && w.trap.due(Midway) {
		_, _ = w.ResponseWriter.Write(b[:len(b)/2]) // a client that has gone changes nothing
		w.dieFlushed()
	}
	n, err := w.ResponseWriter.Write(b)
	w.sent += int64(n)
	if n > 0 && w.sent == w.size && w.trap.due(Answered) {
		w.dieFlushed()
	}
	return n, err
}

// dieFlushed dies once the client has what was written.
func (w *writer) dieFlushed() {
	_ = http.NewResponseController(w.ResponseWriter).Flush() // one that cannot flush sends when it likes
	time.Sleep(arrives)
	w.trap.spring()
}

// Unwrap lets http.ResponseController reach Flush, Hijack and the deadlines.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
