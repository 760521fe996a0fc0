package till

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

const (
	// checkpoint is the pause between notes of what an answer has cost so
	// far. After a crash the last note is what is charged.
	checkpoint = time.Second

	// meterPiece is how much is passed on at a time, in bytes, and meterStep
	// how much of it is counted at a time where there are no events. What is
	// handed over beyond the maximum is less than that, or one event.
	meterPiece = 32 << 10
	meterStep  = 2 << 10

	// meterFlush is how many bytes may wait in the server for more of them: as
	// many as it keeps at least (net/http, bufferBeforeChunkingSize). So it is
	// known what has left, and what has not is not charged to a payer who goes
	// away.
	meterFlush = 2 << 10
)

var (
	errUnmetered = &unheldError{
		status: http.StatusNotImplemented, reason: "protocol switch",
		message: "this route charges for what it sends and cannot switch protocols; you have not been charged; the seller can use \"settle first\" here",
	}

	// errSpent says that an answer costs more than its payer has signed.
	errSpent = errors.New("till: the answer costs more than the maximum that the payer has signed, and is cut off")

	// errExpiring is in place of errSpent where what the payer has signed is
	// soon no longer good.
	errExpiring = fmt.Errorf("%w: it takes longer than what the payer has signed is good", errSpent)
)

// metered lets the upstream stream, and settles what that has cost. From
// before its first byte on the payment is exposed with its maximum and charged
// with what is sure to have been delivered, so that whoever finds the record
// after a crash can settle it. The state says whether the charge is decided:
// while it is EXECUTING the stream goes on and the charge is a checkpoint,
// from EXECUTED on it never changes.
func (v *visit) metered(claimed ledger.Record) error {
	if v.lasts(&claimed) < 2*settleTime {
		err := &payment.InvalidError{
			Reason:  payment.Permit2Expired,
			Message: fmt.Sprintf("this route streams, and settles afterwards: sign a deadline that is at least %s away", 2*settleTime), Payer: v.identity.Payer,
		}
		v.giveBack(&claimed, err)
		return v.settleProblem(err)
	}
	r, err := v.expose(&claimed)
	if err != nil {
		v.giveBack(&claimed, err)
		if errors.Is(err, ledger.ErrExposed) {
			v.sale.Reason = "exposure cap reached"
			v.w.Header().Set("Retry-After", "2")
			v.problem(http.StatusServiceUnavailable, "too much is being handed out before it is paid, to you or to all together; you have not been charged; send the same request again")
			return nil
		}
		return v.settleProblem(&payment.UnavailableError{Doing: "storing what is exposed", Err: err})
	}
	v.sale.OnCredit, v.sale.Reason = true, string(payment.SettlementPending)

	ctx, cancel := context.WithCancelCause(v.r.Context())
	defer cancel(nil)
	w := &meterWriter{v: v, w: v.w, head: v.r.Method == http.MethodHead, began: v.now(), end: cancel}
	defer context.AfterFunc(v.r.Context(), w.gone)() // whoever has gone away uses no time any more
	stop := v.checkpoints(&r, w)
	settled := false
	defer func() {
		stop()
		if !settled { // it panicked
			v.broken(&r, w)
		}
	}()
	request := v.forUpstream(ctx)
	request.Header.Del("Accept-Encoding") // what is compressed cannot be counted
	aborted, err := w.run(func() error { return v.next(w, request, v.sale) })
	stop()
	settled = true
	return v.ended(&r, w, aborted, err)
}

// expose notes, if the route's caps and the payer's past allow it, that the
// upstream is about to hand over what can cost the maximum, and that nothing
// has been handed over yet.
func (v *visit) expose(claimed *ledger.Record) (ledger.Record, error) {
	token := v.offer.Amount.Token()
	caps, capped := v.caps(token)
	if !capped || !v.background.running() {
		return ledger.Record{}, ledger.ErrExposed
	}
	ctx, cancel := v.waiting()
	defer cancel()
	return v.Ledger.Expose(ctx, claimed, ledger.Exposure{Token: token.Address, Units: v.offer.Amount.Units()}, caps, func(now *ledger.Record) error {
		if now.Claims != claimed.Claims || now.State != ledger.Reserved {
			return ledger.ErrStale
		}
		now.Mode, now.Charge = string(Metered), nothing
		now.Delivery = ledger.Delivering
		now.Deliveries++
		now.Owner, now.Lease = v.Ledger.Owner(), v.now().Add(v.route.lease())
		return now.To(ledger.Executing)
	}, nil, time.Time{})
}

// streams reports whether now is the record of the stream that r is of, and
// nobody has ended that.
func streams(now, r *ledger.Record) bool {
	return now.Mode == string(Metered) && now.State == ledger.Executing && now.Delivery == ledger.Delivering &&
		now.Claims == r.Claims && now.Deliveries == r.Deliveries && now.Owner == r.Owner
}

// checkpoints notes about every second what the answer has cost so far, and
// that its process is alive, until the function that it returns is called for
// the first time. It cuts the answer off when its time alone has used up the
// maximum, or when it is not ours any more.
func (v *visit) checkpoints(r *ledger.Record, w *meterWriter) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(v.r.Context()))
	done := make(chan struct{})
	go func() { // ends with ctx; stop waits for it
		defer close(done)
		tick := time.NewTicker(checkpoint)
		defer tick.Stop()
		noted, lease := nothing, r.Lease
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if v.Ledger.Shared() && v.Ledger.Unheard() {
				w.cut(errLost)
				return
			}
			if v.lasts(r) < settleTime {
				w.cut(errExpiring)
				return
			}
			charge := w.sure()
			next := v.now().Add(v.route.lease())
			if charge == noted && lease.Sub(v.now()) > v.route.lease()/2 {
				continue
			}
			_, err := v.Ledger.UpdateLater(ctx, r.Key, func(now *ledger.Record) error {
				if !streams(now, r) {
					return ledger.ErrStale
				}
				now.Charge, now.Lease = charge, next
				return nil
			})
			switch {
			case err == nil:
				noted, lease = charge, next
			case errors.Is(err, ledger.ErrStale):
				w.cut(errLost)
				return
			case ctx.Err() == nil:
				v.log().Error("noting what an answer has cost so far failed", "payment", r.Key.String(), "error", err)
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// ended settles an answer that has ended, one way or another.
func (v *visit) ended(r *ledger.Record, w *meterWriter, aborted bool, err error) error {
	why := w.why()
	if why == nil && err == nil && !aborted && v.r.Context().Err() == nil {
		w.begin() // an upstream that writes nothing answers, too
	}
	if w.refused != nil {
		v.uncharged(r, w.refused)
		v.unheld(w.refused)
		return nil
	}
	left := !errors.Is(why, errLost) && w.finish() == nil
	if !w.charged() {
		v.uncharged(r, w.failure(err))
		w.trail()
		if aborted || errors.Is(why, errLost) && w.status != 0 && !w.free {
			panic(http.ErrAbortHandler) // as the upstream has it; or what the server still holds would leave
		}
		return err
	}
	if errors.Is(why, errLost) {
		v.log().Error("an answer was cut off: this process could not say for a while that it is alive, and another may have settled what was delivered", "payment", r.Key.String())
		panic(http.ErrAbortHandler) // nobody must take the part for the whole
	}
	whole := left && why == nil && err == nil && !aborted
	if !v.decide(r, w) {
		panic(http.ErrAbortHandler) // what it has cost is settled from the last checkpoint
	}
	if errors.Is(why, errSpent) {
		v.log().Info("an answer was cut off", "why", why, "payment", r.Key.String(), "payer", r.Payer, "maximum", v.offer.Amount.Units())
	}
	switch {
	case whole, left && errors.Is(why, errSpent) && w.events: // who reads events sees that the last one is missing
		v.collectNow(r)
		w.trail()
		return nil
	case err != nil && why == nil:
		v.collectLater(r.Key)
		w.trail()
		return err
	}
	v.collectLater(r.Key)
	panic(http.ErrAbortHandler) // nobody must take the part for the whole
}

// broken settles an answer whose upstream has panicked.
func (v *visit) broken(r *ledger.Record, w *meterWriter) {
	_ = w.finish() // what cannot leave is not charged
	if !w.charged() {
		v.uncharged(r, errors.New("the upstream panicked"))
		return
	}
	if v.decide(r, w) {
		v.collectLater(r.Key)
	}
}

// uncharged releases a payment for which nothing was handed over.
func (v *visit) uncharged(r *ledger.Record, cause error) {
	v.sale.OnCredit, v.sale.Reason = false, "upstream failed"
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	_, err := v.Ledger.Covered(ctx, r.Key, false, func(now *ledger.Record) error {
		if !streams(now, r) {
			return ledger.ErrStale
		}
		now.Delivery, now.Reason = ledger.Undelivered, cause.Error()
		now.Charge = v.offer.Amount.Units() // as it was claimed: no checkpoint counts any more
		return now.To(ledger.Released)
	})
	if err != nil && !errors.Is(err, ledger.ErrStale) {
		v.log().Error("releasing a payment failed", "payment", r.Key.String(), "error", err)
	}
}

// decide stores, on disk, what the payer is charged and that the payer has
// what that is for. It reports false if somebody else has, or if it failed.
func (v *visit) decide(r *ledger.Record, w *meterWriter) bool {
	charge := w.cost()
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	_, err := v.Ledger.Update(ctx, r.Key, func(now *ledger.Record) error {
		if !streams(now, r) {
			return ledger.ErrStale
		}
		now.Charge, now.Delivery = charge.String(), ledger.Delivered
		return now.To(ledger.Executed)
	})
	if err != nil {
		v.log().Error("noting what an answer has cost failed; the last checkpoint will be charged", "payment", r.Key.String(), "units", charge.String(), "error", err)
		return false
	}
	if amount, err := payment.NewAmount(charge, v.offer.Amount.Token()); err == nil {
		v.sale.Amount = amount
	}
	v.log().Info("metered", "payment", r.Key.String(), "payer", r.Payer, "units", charge.String(), "network", string(r.Network))
	return true
}

// collectNow settles what has been delivered, for as long as the route lets a
// request wait, and leaves it to the background then.
func (v *visit) collectNow(r *ledger.Record) {
	v.until = v.now().Add(v.route.deadline())
	ctx, cancel := v.waiting()
	defer cancel()
	done, err := v.collectOnce(ctx, r.Key)
	if !done {
		v.log().Warn("what was handed over is not paid yet", "payment", r.Key.String(), "error", err)
		v.collectLater(r.Key)
		return
	}
	if stored, err := v.Ledger.Get(ctx, r.Key); err == nil && stored.State.Paid() {
		v.sale.OnCredit = false
		v.paid(&stored)
	}
}

// endStream decides that a payment is charged with its last checkpoint,
// because the process that streamed the answer has died. It reports false
// while that may be alive.
func (t *Till) endStream(ctx context.Context, r *ledger.Record) (ended bool, err error) {
	done, busy := t.take(r.Key)
	if busy != nil {
		return false, nil
	}
	defer done()
	stored, err := t.Ledger.Update(ctx, r.Key, func(now *ledger.Record) error {
		if !streams(now, r) || t.Ledger.Elsewhere(now) {
			return ledger.ErrStale
		}
		now.Delivery, now.Reason = ledger.Delivered, "the process that served it ended"
		return now.To(ledger.Executed)
	})
	if errors.Is(err, ledger.ErrStale) {
		return false, nil
	}
	if err == nil {
		t.log().Warn("an answer was broken off when its process ended; what it had cost by then is charged", "payment", r.Key.String(), "payer", r.Payer, "units", stored.Charge)
		*r = stored
	}
	return err == nil, err
}

// A meterWriter passes an answer on as it comes, and counts it. It holds
// nothing back. What it does not offer are ways past it: Hijack, full duplex
// and io.ReaderFrom.
type meterWriter struct {
	v    *visit
	w    http.ResponseWriter
	head bool // the request is a HEAD: nothing of the body is sent

	began time.Time               // when the upstream was called
	end   context.CancelCauseFunc // ends the upstream

	// Written by the upstream's goroutine alone.
	status  int // 0 until it is written
	free    bool
	events  bool         // the answer is a stream of events
	trailer bool         // the receipt comes as a trailer, too
	refused *unheldError // why the answer cannot be metered

	mu      sync.Mutex
	tap     *meter.Tap  // guarded by mu, as is what follows; nil until the status is written
	flushed meter.Usage // what had been counted when everything last left
	outside bool        // flushed counts: something has left
	overdue bool        // a checkpoint waits for the next flush
	spent   bool        // what was written last has used up the maximum
	stopped error       // why the answer is cut off
	over    time.Time   // when the payer went away; zero while it listens
}

// run calls the upstream. A handler that aborts its answer, as reverse proxies
// do when theirs or ours is cut off, is no panic.
func (w *meterWriter) run(upstream func() error) (aborted bool, err error) {
	defer func() {
		if p := recover(); p == http.ErrAbortHandler { //nolint:errorlint // the very value is what aborts
			aborted = true
		} else if p != nil {
			panic(p)
		}
	}()
	return false, upstream()
}

// Header implements http.ResponseWriter.
func (w *meterWriter) Header() http.Header { return w.w.Header() }

// WriteHeader implements http.ResponseWriter.
func (w *meterWriter) WriteHeader(status int) {
	h := w.w.Header()
	switch {
	case w.status != 0 || w.refused != nil:
		return
	case status == http.StatusSwitchingProtocols:
		w.refused = errUnmetered
		return
	case status < 200:
		strip(h) // the receipt comes with the final answer
		w.v.unprice(h)
		w.w.WriteHeader(status)
		return
	}
	w.status, w.free = status, status >= 400
	if w.free {
		strip(h)
		w.v.unprice(h)
		uncacheable(h)
		unannounce(h, w.v.tariff)
		w.w.WriteHeader(status)
		return
	}
	tap := w.v.tap(h)
	w.mu.Lock()
	w.tap = tap
	w.mu.Unlock()
	media, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	w.events = strings.EqualFold(strings.TrimSpace(media), "text/event-stream")
	w.v.unprice(h)
	w.v.stampPending(h, "")
	unannounce(h, w.v.tariff)
	if bodyAllowed(status) && !w.head && w.v.r.ProtoAtLeast(1, 1) {
		w.trailer = true
		h.Del("Content-Length") // trailers need chunks
		h.Add("Trailer", payment.HeaderResponse)
		h.Add("Trailer", payment.HeaderResponseV1)
	}
	w.w.WriteHeader(status)
}

// begin writes the status if the upstream has not.
func (w *meterWriter) begin() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
}

// Write implements http.ResponseWriter.
func (w *meterWriter) Write(b []byte) (int, error) {
	w.begin()
	if w.refused != nil {
		return 0, w.refused
	}
	if w.free {
		return w.w.Write(b)
	}
	written := 0
	for first := true; first || written < len(b); first = false {
		if err := w.open(); err != nil {
			return written, err
		}
		n, flush := w.count(b[written:min(written+meterPiece, len(b))])
		n, err := w.w.Write(b[written : written+n])
		written += n
		if err != nil {
			return written, err
		}
		if flush {
			if err := w.FlushError(); err != nil && !errors.Is(err, http.ErrNotSupported) {
				return written, err
			}
		}
	}
	return written, nil
}

// open returns why nothing more may be passed on, or nil.
func (w *meterWriter) open() error {
	if w.v.Ledger.Shared() && w.v.Ledger.Unheard() {
		w.cut(errLost)
	}
	if err := w.v.r.Context().Err(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.spent {
		w.stop(errSpent)
	}
	return w.stopped
}

// count counts what is about to be passed on, up to where it has used up the
// maximum: nothing may follow that, and what ends there is whole. flush reports
// that it must leave at once: there is much of it, or a checkpoint waits for it.
func (w *meterWriter) count(b []byte) (n int, flush bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.head {
		return len(b), false
	}
	most := w.v.offer.Amount.Big()
	for !w.spent && n < len(b) {
		step := w.step(b[n:])
		_, _ = w.tap.Write(b[n : n+step]) // never fails
		n += step
		usage := w.tap.Usage()
		w.spent = w.v.tariff.Spent(&usage, w.took(), most)
	}
	return n, w.overdue || w.tap.Usage().Bytes-w.flushed.Bytes >= meterFlush
}

// step returns how many of some bytes are counted at a time.
func (w *meterWriter) step(b []byte) int {
	if !w.events {
		return min(meterStep, len(b))
	}
	for i := 0; i < len(b); i++ { // up to the end of an event
		next := bytes.IndexByte(b[i:], '\n')
		if next < 0 {
			break
		}
		i += next
		rest := b[i+1:]
		if len(rest) > 0 && rest[0] == '\n' {
			return i + 2
		}
		if len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n' {
			return i + 3
		}
	}
	return len(b)
}

// Flush implements http.Flusher.
func (w *meterWriter) Flush() {
	_ = w.FlushError() // a writer that cannot flush sends when it likes
}

// FlushError is Flush for http.ResponseController.
func (w *meterWriter) FlushError() error {
	w.begin()
	if w.refused != nil {
		return w.refused
	}
	err := http.NewResponseController(w.w).Flush()
	if err != nil && !errors.Is(err, http.ErrNotSupported) || w.free { // without support it sends when it likes
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flushed, w.outside, w.overdue = w.tap.Usage(), true, false
	return err
}

// SetReadDeadline is for http.ResponseController.
func (w *meterWriter) SetReadDeadline(at time.Time) error {
	return http.NewResponseController(w.w).SetReadDeadline(at)
}

// SetWriteDeadline is for http.ResponseController.
func (w *meterWriter) SetWriteDeadline(at time.Time) error {
	return http.NewResponseController(w.w).SetWriteDeadline(at)
}

// finish sends what the server still holds, if the answer has begun.
func (w *meterWriter) finish() error {
	if w.status == 0 {
		return nil
	}
	if err := w.FlushError(); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil // it sends when it likes
}

// cut ends the answer, and the upstream with it. The first reason counts.
func (w *meterWriter) cut(why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stop(why)
}

// stop is cut. The caller holds mu.
func (w *meterWriter) stop(why error) {
	if w.stopped == nil {
		w.stopped = why
		w.end(why)
	}
}

// why returns why the answer is cut off, or nil.
func (w *meterWriter) why() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stopped
}

// gone notes that the payer has gone away.
func (w *meterWriter) gone() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over.IsZero() {
		w.over = w.v.now()
	}
}

// took returns for how long the payer has been served. The caller holds mu.
func (w *meterWriter) took() time.Duration {
	if w.over.IsZero() {
		return w.v.now().Sub(w.began)
	}
	return w.over.Sub(w.began)
}

// sure returns what costs what has left. What has not waits for the next
// write. Where the time alone has
// used up the maximum it cuts the answer off.
func (w *meterWriter) sure() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	most := w.v.offer.Amount.Big()
	if w.tap != nil {
		w.overdue = true
		usage := w.tap.Usage()
		if !w.spent && w.v.tariff.Spent(&usage, w.took(), most) {
			w.stop(errSpent)
		}
	}
	if !w.outside {
		return nothing
	}
	return w.v.tariff.Charge(&w.flushed, w.took(), most).String()
}

// charged reports whether the answer costs something: it is no failure, and
// has begun to leave.
func (w *meterWriter) charged() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.outside
}

// failure says why nothing is charged.
func (w *meterWriter) failure(err error) error {
	switch {
	case w.free:
		return errors.New("the upstream answered with status " + strconv.Itoa(w.status))
	case err != nil:
		return err
	case w.v.r.Context().Err() != nil:
		return errors.New("the payer went away before the answer began")
	}
	return errAborted
}

// cost returns what costs what has left. Nothing may be written any more.
func (w *meterWriter) cost() *big.Int {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.w.Header()
	w.v.listen(w.tap, h) // a trailer by now
	usage := w.flushed
	usage.Said = w.tap.Usage().Said
	return w.v.cost(w.tap, &usage, w.took())
}

// trail takes from the trailers what only we may say, and writes the receipt
// into them if the money has moved.
func (w *meterWriter) trail() {
	h := w.w.Header()
	for name := range h {
		if plain, ok := strings.CutPrefix(name, http.TrailerPrefix); ok && (ours(plain) || pricing(w.v.tariff, plain)) {
			delete(h, name)
		}
	}
	if w.trailer && w.v.sale.Paid {
		w.v.settled(h)
	}
}

var _ http.Flusher = (*meterWriter)(nil)
