package till

import (
	"context"
	"errors"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"

	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/internal/ledger"
)

// An unheldError says why an upstream's answer cannot be held back, and how
// that is answered. The payer has not been charged.
type unheldError struct {
	status  int
	reason  string // for the sale
	message string // for the payer
	err     error  // for the log, where there is more to say
}

func (e *unheldError) Error() string {
	if e.err != nil {
		return e.err.Error()
	}
	return "till: " + e.reason
}

func (e *unheldError) Unwrap() error { return e.err }

var (
	errTooLarge = &unheldError{
		status: http.StatusBadGateway, reason: "answer too large to hold",
		message: "the upstream's answer is larger than this route can hold back; you have not been charged; the seller can use \"settle first\" here",
	}
	errNoRoom = &unheldError{
		status: http.StatusServiceUnavailable, reason: "no room to hold the answer",
		message: "too many answers are being held back; you have not been charged; send the same request again",
	}
	errSwitching = &unheldError{
		status: http.StatusNotImplemented, reason: "protocol switch",
		message: "this route holds answers back and cannot switch protocols; you have not been charged; the seller can use \"settle first\" here",
	}
	errAborted = &unheldError{
		status: http.StatusBadGateway, reason: "upstream failed",
		message: "the upstream's answer ended too early; you have not been charged; send the same request again",
	}
	errLate = &unheldError{
		status: http.StatusGatewayTimeout, reason: "upstream failed",
		message: "the upstream took too long; you have not been charged; send the same request again",
	}
)

// errEnded is returned to whoever writes after the upstream has returned.
var errEnded = errors.New("till: the upstream has ended its answer")

// A heldWriter keeps an answer back. Nothing of it reaches the client: its
// headers are its own, informational answers are dropped, and it offers
// neither Flush, Hijack, Push nor full duplex, by which parts could slip out.
// Its methods may be called at any time, also after the upstream has ended.
type heldWriter struct {
	ctx    context.Context // of the upstream; nothing is written after its end
	head   bool            // the request is a HEAD: what is written is counted and dropped
	max    int64
	header http.Header // used by the upstream alone until it has ended

	mu       sync.Mutex
	sent     http.Header // guarded by mu, as is what follows: header as it stood when the status was written
	status   int         // 0 until it is written
	declared int64       // the answer's Content-Length, -1 without one
	written  int64
	body     *spool
	failed   error // why the answer cannot be held
	ended    bool

	tap     func(http.Header) *meter.Tap // returns what counts an answer with such a header, or nil
	counted *meter.Tap                   // guarded by mu; nil until the status is written, or where nothing counts
}

// admit makes room for one held answer. Without room, or if the request wants
// to switch protocols, it has answered, before the payment was touched, and
// returns nil.
func (v *visit) admit() *heldWriter {
	if switches(v.r) {
		v.unheld(errSwitching)
		return nil
	}
	limit := int64(orElse(v.route.MaxHeld, defaultMaxHeld))
	body := v.budget().admit(limit)
	if body == nil {
		v.unheld(errNoRoom)
		return nil
	}
	return &heldWriter{head: v.r.Method == http.MethodHead, max: limit, header: http.Header{}, declared: -1, body: body}
}

// budget returns what bounds the till's held answers.
func (t *Till) budget() *Budget {
	if t.Room != nil {
		return t.Room
	}
	return &t.room
}

// switches reports whether a request asks for another protocol than HTTP, by
// Upgrade (RFC 9110, section 7.8) or extended CONNECT (RFC 8441). Asking for
// another version of HTTP, as some clients always do, is not answered.
func switches(r *http.Request) bool {
	if r.Method == http.MethodConnect {
		return true
	}
	for _, line := range r.Header["Upgrade"] {
		for protocol := range strings.SplitSeq(line, ",") {
			name, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(protocol)), "/")
			if name != "" && name != "h2c" && name != "h2" && name != "http" && name != "tls" {
				return true
			}
		}
	}
	return false
}

// unheld answers that an answer cannot be held.
func (v *visit) unheld(why *unheldError) {
	if why.err != nil {
		v.log().Error("holding an answer failed", "payment", v.sale.Payment, "error", why.err)
	}
	v.sale.Reason = why.reason
	if why.status == http.StatusServiceUnavailable {
		v.w.Header().Set("Retry-After", "2")
	}
	v.problem(why.status, why.message)
}

// Header implements http.ResponseWriter.
func (w *heldWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *heldWriter) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if status == http.StatusSwitchingProtocols {
		w.fail(errSwitching)
	}
	w.begin(status)
}

// begin notes the final status. The caller holds mu.
func (w *heldWriter) begin(status int) {
	if w.ended || w.status != 0 || status < 200 {
		return
	}
	w.status, w.sent = status, w.header.Clone()
	if w.tap != nil && status < 400 {
		w.counted = w.tap(w.sent)
	}
	length := w.sent["Content-Length"]
	if len(length) == 0 {
		return
	}
	n, err := strconv.ParseInt(length[0], 10, 64)
	if err != nil || n < 0 || len(length) > 1 {
		delete(w.sent, "Content-Length") // what it says is not true of anything
		return
	}
	w.declared = n
	if n > w.max && !w.head && bodyAllowed(status) {
		w.fail(errTooLarge)
	}
}

// fail notes why the answer cannot be held; the first reason counts. The
// caller holds mu.
func (w *heldWriter) fail(err error) {
	if w.failed == nil {
		w.failed = err
	}
}

// Write implements http.ResponseWriter.
func (w *heldWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return 0, errEnded
	}
	w.begin(http.StatusOK)
	switch {
	case w.failed != nil:
		return 0, w.failed
	case w.ctx.Err() != nil:
		w.fail(errLate)
		return 0, w.ctx.Err()
	case !bodyAllowed(w.status):
		return 0, http.ErrBodyNotAllowed
	case w.declared >= 0 && w.written+int64(len(b)) > w.declared:
		return 0, http.ErrContentLength
	case w.head:
		w.written += int64(len(b))
		return len(b), nil
	case w.written+int64(len(b)) > w.max:
		w.fail(errTooLarge)
		return 0, errTooLarge
	}
	n, err := w.body.Write(b)
	w.written += int64(n)
	if w.counted != nil {
		_, _ = w.counted.Write(b[:n]) // never fails
	}
	if err != nil && !errors.Is(err, errNoRoom) {
		err = &unheldError{errNoRoom.status, errNoRoom.reason, errNoRoom.message, err}
	}
	if err != nil {
		w.fail(err)
	}
	return n, err
}

// run lets the upstream write its answer and ends it. It returns what the
// upstream returned, unless the answer cannot be held, and says how that is
// to be answered. A handler that aborts its answer, as reverse proxies do when
// theirs is cut off, has said nothing to the client yet, so that there is
// still something to answer; every other panic goes on.
func (w *heldWriter) run(upstream func() error) (err error) {
	defer func() {
		aborted := recover()
		if aborted != nil && aborted != http.ErrAbortHandler { //nolint:errorlint // the very value is what aborts
			panic(aborted)
		}
		err = w.end(err, aborted != nil)
	}()
	return upstream()
}

// end makes every later write harmless. err is what the upstream returned.
func (w *heldWriter) end(err error, aborted bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && !aborted {
		w.begin(http.StatusOK)
	}
	w.ended = true
	short := w.declared > w.written && !w.head && bodyAllowed(w.status)
	switch {
	case w.failed != nil:
		return w.failed
	case err != nil:
		return err
	case (aborted || short) && w.ctx.Err() != nil:
		return errLate
	case aborted || short:
		return errAborted
	}
	return nil
}

// answer returns what was written, with the trailers that were announced in
// the Trailer header or carry http.TrailerPrefix. It can be called once run
// has returned nil, and the answer be used until the writer is closed.
func (w *heldWriter) answer() *answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := &answer{Status: w.status, Header: w.sent, Trailer: http.Header{}, Size: w.body.size, body: w.body.reader}
	announced := map[string]bool{}
	for _, line := range w.sent["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			announced[textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	for name, values := range w.header {
		if plain, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			a.Trailer[plain] = values
			delete(a.Header, name)
		} else if announced[name] {
			a.Trailer[name] = values
			delete(a.Header, name)
		}
	}
	// What is about one connection is not about the answer.
	for _, name := range []string{"Trailer", "Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade"} {
		delete(a.Header, name)
	}
	strip(a.Header)
	strip(a.Trailer)
	switch {
	case len(a.Trailer) > 0 && bodyAllowed(a.Status) && !w.head:
		delete(a.Header, "Content-Length") // trailers need chunks
	case w.head && w.declared < 0 && w.written > 0, !w.head && bodyAllowed(a.Status):
		a.Header.Set("Content-Length", strconv.FormatInt(w.written, 10))
	}
	return a
}

// counter returns what has counted the answer, or nil. Nothing may be written
// any more.
func (w *heldWriter) counter() *meter.Tap {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counted
}

// close frees what the answer takes.
func (w *heldWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.body.close()
}

// abandoned answers a request whose upstream made nothing that can be held,
// and releases its payment.
func (v *visit) abandoned(r *ledger.Record, err error) error {
	v.giveBack(r, err)
	if why, ours := errors.AsType[*unheldError](err); ours {
		v.unheld(why)
		return nil
	}
	v.sale.Reason = "upstream failed"
	return err
}
