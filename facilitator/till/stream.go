package till

import (
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/payment/pass"
)

// errLost says that a delivery is not ours any more.
var errLost = errors.New("till: other processes may have taken this one for dead, and the delivery over")

// A receiptWriter passes an answer on as it comes, with the receipt stamped
// on its headers. It holds nothing back: a byte that is written or flushed is
// written or flushed by the writer below, in the same call.
type receiptWriter struct {
	http.ResponseWriter
	stamp  func(http.Header)
	began  func() // called before an answer that is no failure begins; may be nil
	status int    // 0 until it is written

	// lost, if it is set, reports that the delivery is not ours any more. From
	// then on nothing is passed on, and the answer is cut off.
	lost func() bool
	cut  bool
}

func (w *receiptWriter) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	if status < 200 && status != http.StatusSwitchingProtocols {
		strip(w.Header()) // the receipt comes with the final answer
		w.ResponseWriter.WriteHeader(status)
		return
	}
	w.stamp(w.Header())
	if status >= 500 {
		w.Header().Del(pass.Header) // what has failed may yet be given back
	}
	unannounce(w.Header(), nil)
	w.status = status
	if w.began != nil && status < 500 {
		w.began()
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *receiptWriter) Write(b []byte) (int, error) {
	if w.ours() != nil {
		return 0, errLost
	}
	w.begin()
	return w.ResponseWriter.Write(b)
}

// ours returns errLost once the delivery is not ours any more.
func (w *receiptWriter) ours() error {
	if w.lost != nil && w.lost() {
		w.cut = true
	}
	if w.cut {
		return errLost
	}
	return nil
}

// ReadFrom implements io.ReaderFrom, for writers below that have a short way
// from a file to the client.
func (w *receiptWriter) ReadFrom(r io.Reader) (int64, error) {
	if w.lost != nil {
		return io.Copy(struct{ io.Writer }{w}, r) // each part is looked at
	}
	w.begin()
	return io.Copy(w.ResponseWriter, r)
}

// Flush implements http.Flusher.
func (w *receiptWriter) Flush() {
	_ = w.FlushError() // a writer that cannot flush sends when it likes
}

// FlushError is Flush for http.ResponseController.
func (w *receiptWriter) FlushError() error {
	if err := w.ours(); err != nil {
		return err
	}
	w.begin()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *receiptWriter) begin() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
}

// end takes from the trailers what only we may say. The server sends them
// after the handler has returned.
func (w *receiptWriter) end() {
	h := w.Header()
	for name := range h {
		if plain, ok := strings.CutPrefix(name, http.TrailerPrefix); ok && ours(plain) {
			delete(h, name)
		}
	}
}

// finish sends what the server still holds of an answer that is complete.
func (w *receiptWriter) finish() error {
	if w.status == http.StatusSwitchingProtocols {
		return nil // the connection is not the server's any more
	}
	if err := w.FlushError(); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil // it sends when it likes
}

// unannounce takes from the announced trailers what only we may say, and what
// a tariff listens to. What is not announced with the headers is not sent as a
// trailer by that name.
func unannounce(h http.Header, t *meter.Tariff) {
	lines, ok := h["Trailer"]
	if !ok {
		return
	}
	var kept []string
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name != "" && !ours(name) && (t == nil || !pricing(t, name)) {
				kept = append(kept, name)
			}
		}
	}
	delete(h, "Trailer")
	if len(kept) > 0 {
		h.Set("Trailer", strings.Join(kept, ", "))
	}
}

// Unwrap lets http.ResponseController reach Hijack, full duplex and the
// deadlines.
func (w *receiptWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
