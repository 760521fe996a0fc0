package till

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/extension"
	"github.com/tollgate402/tollgate/payment/pass"
)

// A visit is one request to a priced route that came with a payment.
type visit struct {
	*Till
	route *Route
	w     http.ResponseWriter
	r     *http.Request
	next  Upstream
	sale  *Sale

	url      string // of the resource, as challenges name it
	payment  *payment.Payment
	price    *Price // nil where it is always the same
	offer    *payment.Offer
	lapsed   bool // the offer's price is not asked any more
	identity facilitator.Identity
	name     string        // that the payer gave the payment, or ""
	funds    *big.Int      // what the payer could have paid when the payment was verified; nil if that is not known
	tariff   *meter.Tariff // nil where the charge is the offer's amount
	bought   string        // the pass that the payment has bought, or ""
	until    time.Time     // the end of all waiting for the chain; the upstream's time does not count
}

// Serve answers one request to a priced route. The sale it returns is never
// nil and says what happened. An error is either the upstream's, before
// anything was written and without a charge, or a bug.
func (t *Till) Serve(w http.ResponseWriter, r *http.Request, route *Route, next Upstream) (*Sale, error) {
	v := &visit{Till: t, route: route, w: w, r: r, next: next, sale: &Sale{}}
	if preflight(r) {
		strip(r.Header) // nobody has paid
		return v.sale, next(w, r, v.sale)
	}
	v.url = resourceURL(r, route.Origin)
	p, err := payment.FromHeader(r.Header[payment.HeaderPayment], r.Header[payment.HeaderPaymentV1])
	// From here on nobody needs the payment headers, and whoever logs the
	// request must not see them.
	r.Header.Del(payment.HeaderPayment)
	r.Header.Del(payment.HeaderPaymentV1)
	text := ""
	if route.Pass != nil || route.Tickets != nil {
		text = strings.Join(r.Header.Values(pass.Header), ",") // of which there must be one
	}
	r.Header.Del(pass.Header)
	signIn := ""
	if route.Extensions.SignIn > 0 {
		signIn = r.Header.Get(extension.HeaderSignIn)
		r.Header.Del(extension.HeaderSignIn)
	}
	if err != nil {
		v.sale.Reason = "malformed payment"
		v.problem(http.StatusBadRequest, err.Error())
		return v.sale, nil
	}
	if err := v.ask(); err != nil {
		return v.sale, err
	}
	switch {
	case p == nil && text != "":
		return v.sale, v.withPass(text)
	case p == nil && signIn != "":
		return v.sale, v.signIn(signIn)
	case p == nil:
		v.sale.Reason = string(payment.PaymentRequired)
		v.challenge(payment.PaymentRequired)
		return v.sale, nil
	}
	v.payment = p
	return v.sale, v.pay()
}

// preflight reports a CORS preflight, which browsers send without headers of
// their own and which buys nothing.
func preflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != ""
}

// pay handles a request that came with a readable payment.
func (v *visit) pay() error {
	matched, lapsed := v.choose()
	if matched == nil {
		v.refuse(&payment.InvalidError{Reason: payment.NoMatchingOffer})
		return nil
	}
	offer := *matched
	offer.Resource = v.url // facilitators of v1 ask for it
	v.offer, v.lapsed = &offer, lapsed
	if offer.Scheme == payment.Upto {
		v.tariff = v.route.Tariffs[offer.Amount.Token()]
		pin(&offer, v.payment)
	}
	identity, err := facilitator.Identify(v.payment, v.offer)
	if err != nil {
		return v.settleProblem(err)
	}
	v.identity = identity
	v.sale.Payment, v.sale.Payer = identity.Key.String(), identity.Payer
	v.sale.Amount, v.sale.Network = v.offer.Amount, v.offer.Network()
	if !v.heard() {
		return nil
	}
	if err := v.bind(); err != nil {
		return nil // answered
	}

	v.until = v.now().Add(v.route.deadline())
	for {
		done, busy := v.take(identity.Key)
		if busy == nil {
			defer done()
			return v.alone()
		}
		// Another request works on this payment. Its end says how it went.
		wait := time.NewTimer(v.until.Sub(v.now()))
		select {
		case <-busy:
			wait.Stop()
		case <-v.r.Context().Done():
			wait.Stop()
			return nil
		case <-wait.C:
			return v.inProgress()
		}
	}
}

// pin puts the account that a payer lets settle a payment by upto into the
// offer, where the route leaves it open. It has been offered some time, by a
// facilitator that may name another one by now, and that refuses all but its
// own.
func pin(o *payment.Offer, p *payment.Payment) {
	const name = "facilitatorAddress"
	if _, pinned := o.Extra[name]; pinned || p.Accepted == nil || p.Accepted.Extra[name] == nil {
		return
	}
	if o.Extra = maps.Clone(o.Extra); o.Extra == nil {
		o.Extra = map[string]json.RawMessage{}
	}
	o.Extra[name] = p.Accepted.Extra[name]
}

// waiting returns a context that outlives the client and ends when this
// request has waited for the chain as long as its route allows.
func (v *visit) waiting() (context.Context, context.CancelFunc) {
	return detach(v.r, v.until.Sub(v.now()))
}

// inProgress answers a request whose payment another one is working on.
func (v *visit) inProgress() error {
	ctx, cancel := detach(v.r, time.Second)
	defer cancel()
	r, err := v.Ledger.Get(ctx, v.identity.Key)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return v.settleProblem(&payment.UnavailableError{Doing: "reading the ledger", Err: err})
	}
	if err == nil && !v.same(&r) {
		return v.boundElsewhere()
	}
	return v.settleProblem(&payment.UnavailableError{Doing: "another request is using this payment", Pending: true, Transaction: r.Transaction(), Payer: v.identity.Payer})
}

// same reports whether the stored payment is this one, for this request. Where
// the request has another price now, what had decided that price must be the
// same: what is paid for one thing must not be used for a dearer one.
func (v *visit) same(r *ledger.Record) bool {
	return r.Binding == v.payment.Binding && r.Proof == v.identity.Proof && (!v.lapsed || r.Basis == v.price.fingerprint())
}

// alone handles the payment as the only request in this process that does.
func (v *visit) alone() error {
	ctx, cancel := v.waiting()
	defer cancel()
	r, err := v.Ledger.Get(ctx, v.identity.Key)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return v.fresh(ctx, nil)
	case err != nil:
		return v.settleProblem(&payment.UnavailableError{Doing: "reading the ledger", Err: err})
	case v.Ledger.Free(&r):
		return v.fresh(ctx, &r)
	case !v.same(&r):
		return v.boundElsewhere()
	}
	return v.known(ctx, r)
}

// fresh handles a payment that nobody has claimed, or whose claim is free
// again.
func (v *visit) fresh(ctx context.Context, released *ledger.Record) error {
	if v.lapsed && !v.begun(released) {
		v.refuse(&payment.InvalidError{Reason: payment.NoMatchingOffer, Payer: v.identity.Payer})
		return nil
	}
	var kept *heldWriter
	switch mode := v.mode(false); {
	case mode == Metered && switches(v.r):
		v.unheld(errUnmetered)
		return nil
	case mode == Held || mode == Optimistic:
		if kept = v.admit(); kept == nil {
			return nil // answered
		}
		defer kept.close()
	}
	if v.name != "" && released == nil { // the money of one that was released may have come since, whoever has its name
		if err := v.Ledger.Named(ctx, v.name, v.identity.Key); err != nil {
			if v.named(err) {
				return nil
			}
			return v.settleProblem(&payment.UnavailableError{Doing: "reading the ledger", Err: err})
		}
	}
	// Of one that was given back, the nonce may have been used since. And what
	// the upstream must not do twice it had better not do for nothing either,
	// nor wait with its answer, if the process dies, for another simulation.
	planned := v.mode(false)
	v.payment.SettledFirst = released == nil && (planned == First || planned == Held && v.repeatable())
	verified, err := v.Facilitator.Verify(ctx, v.payment, v.offer)
	if err != nil {
		// Another process, or the configuration before a reload, can have
		// claimed it meanwhile, and moved the money.
		if now, failed := v.Ledger.Get(ctx, v.identity.Key); failed == nil && !v.Ledger.Free(&now) {
			if !v.same(&now) {
				return v.boundElsewhere()
			}
			return v.known(ctx, now)
		}
		// Upto is settled by nobody but the facilitator, which has not, and
		// what it is to be charged is not known yet.
		if released != nil && v.same(released) && used(err) && v.offer.Scheme != payment.Upto {
			return v.landed(ctx, released, err)
		}
		return v.settleProblem(err)
	}
	if released != nil && v.same(released) && released.Ran && !v.repeatable() {
		v.sale.Reason = "not repeated"
		v.problem(http.StatusConflict, "the service may have acted on this request already, so it is not repeated for the same payment; you have not been charged; to repeat it, sign a new payment")
		return nil
	}
	v.funds = verified.Funds
	mode := v.mode(verified.Contract)
	if mode == Held && kept == nil {
		if kept = v.admit(); kept == nil {
			return nil // answered
		}
		defer kept.close()
	}
	request, err := payment.EncodeRequest(v.payment, v.offer, v.offer.Amount)
	if err != nil {
		return err
	}
	state, claimed := ledger.Executing, Held // Optimistic and Metered only once it is clear that the caps allow it
	switch mode {
	case First:
		state, claimed = ledger.Reserved, First
	case Metered:
		state = ledger.Reserved // the upstream runs only if the caps allow it
	case Held, Optimistic:
	}
	r, err := v.Ledger.Claim(ctx, ledger.Record{
		Key: v.identity.Key, State: state, Binding: v.payment.Binding, Basis: v.price.fingerprint(), Proof: v.identity.Proof, Mode: string(claimed), Name: v.name, Due: v.now().Add(v.route.entitled()),
		Network: v.offer.Network(), Payer: v.identity.Payer, Charge: v.offer.Amount.Units(), Until: v.offer.Until.String(), Request: request,
	}, v.route.lease())
	var held *ledger.HeldError
	switch {
	case errors.As(err, &held):
		if !v.same(&held.Record) {
			return v.boundElsewhere()
		}
		return v.known(ctx, held.Record)
	case err != nil:
		if v.named(err) {
			return nil
		}
		return v.settleProblem(&payment.UnavailableError{Doing: "claiming the payment", Err: err})
	}
	switch mode {
	case First:
		return v.first(r)
	case Metered:
		return v.metered(r)
	case Held, Optimistic:
	}
	return v.held(r, kept, mode == Optimistic)
}

// mode returns how the payment is served. What a wallet with code accepts can
// change while we work, so it is settled before anything is handed over.
func (v *visit) mode(contract bool) Mode {
	upto := v.offer.Scheme == payment.Upto // of which the charge is known when the answer is
	switch m := v.route.Mode; {
	case upto && m == Metered && v.tariff != nil && !contract:
		return Metered
	case upto:
		return Held
	case contract || m == Metered:
		return First
	default:
		return m
	}
}

// used reports whether a payment was refused because its nonce is used.
func used(err error) bool {
	var unavailable *payment.UnavailableError
	var invalid *payment.InvalidError
	return !errors.As(err, &unavailable) && errors.As(err, &invalid) && invalid.NonceUsed()
}

// landed handles a payment that this request had claimed and given back, and
// whose authorization has been used since: anybody may submit one. If the
// money has come, the payer gets what it paid for.
func (v *visit) landed(ctx context.Context, released *ledger.Record, refusal error) error {
	stored, err := v.settle(ctx, released)
	if _, ok := errors.AsType[*payment.UnavailableError](err); ok {
		return v.settleProblem(err)
	}
	if err != nil {
		return v.settleProblem(refusal)
	}
	return v.deliver(ctx, stored)
}

// known handles a payment that has been claimed for this very request.
func (v *visit) known(ctx context.Context, r ledger.Record) error {
	switch {
	case r.State == ledger.Dead || r.State == ledger.WrittenOff:
		return v.settleProblem(&payment.InvalidError{Reason: payment.EVMTransactionFailed, Message: r.Reason, Payer: r.Payer})
	case r.State.Paid():
		return v.deliver(ctx, r)
	case r.Exposed != nil:
		return v.onCreditAgain(ctx, r)
	case r.State.Broadcast():
		stored, err := v.settle(ctx, &r)
		if err != nil {
			return v.settleProblem(err)
		}
		return v.deliver(ctx, stored)
	}
	// Another process works on it, or did and left no trace since.
	return v.settleProblem(&payment.UnavailableError{Doing: "another process is using this payment", Pending: true, Payer: r.Payer})
}

// deliver gives what has been paid for: the stored answer, or, where it was
// never handed over and none is stored, another run of the upstream.
func (v *visit) deliver(ctx context.Context, r ledger.Record) error {
	v.paid(&r)
	if givenUp(&r) {
		return v.owing(&r)
	}
	kept, err := v.stored(ctx, &r)
	if err == nil {
		v.sale.Replayed = r.Delivery == ledger.Delivered
		return v.release(kept, &r)
	}
	if !errors.Is(err, ledger.ErrNotFound) {
		return v.settleProblem(&payment.UnavailableError{Doing: "reading the stored answer", Err: err, Pending: true, Transaction: r.Transaction()})
	}
	if r.Delivery == ledger.Delivered {
		return v.used()
	}
	if v.Ledger.Elsewhere(&r) {
		return v.settleProblem(&payment.UnavailableError{Doing: "another request is being given what was paid for", Pending: true, Transaction: r.Transaction(), Payer: r.Payer})
	}
	if why := v.exhausted(&r); why != "" {
		return v.close(ctx, &r, why)
	}
	return v.stream(r)
}

// used answers a payment whose goods the payer has had.
func (v *visit) used() error {
	v.sale.Replayed = true
	v.receipt(http.StatusGone, "this payment has been used: its answer is no longer kept")
	return nil
}

func safe(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// settle asks the facilitator to move the money that a stored payment is
// charged, and returns what the ledger holds once it has.
func (v *visit) settle(ctx context.Context, claimed *ledger.Record) (ledger.Record, error) {
	charge, err := charged(claimed, v.offer)
	if err != nil {
		return ledger.Record{}, err
	}
	if _, err := v.Facilitator.Settle(ctx, v.payment, v.offer, charge); err != nil {
		return ledger.Record{}, err
	}
	r, err := v.Ledger.Get(ctx, v.identity.Key)
	if err != nil {
		return r, &payment.UnavailableError{Doing: "reading the ledger", Err: err, Pending: true, Payer: v.identity.Payer}
	}
	return r, nil
}

// paid notes in the sale what r says.
func (v *visit) paid(r *ledger.Record) {
	v.sale.Paid, v.sale.Transaction, v.sale.Reason = true, r.Transaction(), ""
	if charge, err := charged(r, v.offer); err == nil {
		v.sale.Amount = charge
	}
	v.bought = v.makePass(r)
}

// first settles, and then lets the upstream stream.
func (v *visit) first(r ledger.Record) error {
	ctx, cancel := v.waiting()
	defer cancel()
	stored, err := v.settle(ctx, &r)
	if err != nil {
		v.giveBack(&r, err)
		return v.settleProblem(err)
	}
	v.paid(&stored)
	return v.stream(stored)
}

// stream runs the upstream for a payment that is settled and hands its answer
// on as it comes.
func (v *visit) stream(paid ledger.Record) error {
	r, err := v.Ledger.Update(v.r.Context(), paid.Key, func(r *ledger.Record) error {
		if r.Claims != paid.Claims || r.Deliveries != paid.Deliveries || !r.Owed() || v.Ledger.Elsewhere(r) {
			return ledger.ErrStale
		}
		r.Delivery = ledger.Delivering
		r.Deliveries++
		r.Owner, r.Lease = v.Ledger.Owner(), v.now().Add(v.route.lease())
		return nil
	})
	if err != nil {
		return v.settleProblem(&payment.UnavailableError{Doing: "noting the delivery", Err: err, Pending: true, Transaction: paid.Transaction()})
	}
	ctx, cancel := context.WithCancelCause(v.r.Context())
	defer cancel(nil)
	defer v.keepLease(&r, cancel)()
	w := &receiptWriter{ResponseWriter: v.w, stamp: v.stamp, began: func() { v.remember(&r) }}
	if v.Ledger.Shared() {
		w.lost = v.Ledger.Unheard
	}
	returned := false
	defer func() {
		if !returned { // it panicked, as reverse proxies do to abort
			v.undelivered(&r, w.status)
		}
	}()
	err = v.next(w, v.forUpstream(ctx), v.sale)
	returned = true
	w.end()
	// What has not left when the process dies was not delivered.
	left := err == nil && w.finish() == nil
	if w.cut || errors.Is(context.Cause(ctx), errLost) {
		v.log().Error("a delivery was cut off: this process could not say for a while that it is alive, and another may have taken the delivery over", "payment", r.Key.String())
		v.undelivered(&r, w.status)
		panic(http.ErrAbortHandler) // nobody must take the part for the whole
	}
	if !left || w.status >= 500 || v.r.Context().Err() != nil {
		v.undelivered(&r, w.status)
		if err != nil && w.status == 0 {
			v.bought = "" // what has failed may yet be given back
			v.stamp(v.w.Header())
		}
		return err
	}
	v.mark(&r, ledger.Delivered)
	return nil
}

// keepLease renews the lease of a delivery, which can take longer than any
// lease, until the function that it returns is called. It ends the delivery
// with errLost when it is not ours any more: what goes on without writing, or
// beside the writer, such as a tunnel, learns it so.
func (v *visit) keepLease(r *ledger.Record, end context.CancelCauseFunc) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(v.r.Context()))
	done := make(chan struct{})
	go func() { // ends with ctx; stop waits for it
		defer close(done)
		tick := time.NewTicker(v.route.lease() / 3)
		defer tick.Stop()
		var look <-chan time.Time
		if v.Ledger.Shared() {
			each := time.NewTicker(time.Second)
			defer each.Stop()
			look = each.C
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-look:
				if v.Ledger.Unheard() {
					end(errLost)
					return
				}
				continue
			case <-tick.C:
			}
			_, err := v.Ledger.Update(ctx, r.Key, func(now *ledger.Record) error {
				if now.Delivery != ledger.Delivering || now.Claims != r.Claims || now.Deliveries != r.Deliveries {
					return ledger.ErrStale
				}
				now.Lease = v.now().Add(v.route.lease())
				return nil
			})
			if errors.Is(err, ledger.ErrStale) {
				return
			}
			if err != nil && ctx.Err() == nil {
				v.log().Error("renewing the lease of a delivery failed", "payment", r.Key.String(), "error", err)
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// undelivered notes that a delivery has ended too early: the same payment may
// ask again, unless this was its last delivery. Whoever goes away while it
// gets the goods is owed no money for that.
func (v *visit) undelivered(r *ledger.Record, status int) {
	if v.r.Context().Err() != nil && status > 0 && status < 500 {
		v.mark(r, ledger.Interrupted)
		return
	}
	why := v.exhausted(r)
	if why == "" {
		v.mark(r, ledger.Undelivered)
		return
	}
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	if _, err := v.giveUp(ctx, r, why); err != nil && !errors.Is(err, ledger.ErrStale) {
		v.log().Error("noting that a refund is due failed", "payment", r.Key.String(), "error", err)
	}
}

// fenced sets how far the goods of r have come, unless another claim or
// another delivery of the payment has begun since r was read, or it is closed.
func fenced(r *ledger.Record, d ledger.Delivery) func(*ledger.Record) error {
	return func(now *ledger.Record) error {
		closed := now.Delivery == ledger.Delivered || now.Delivery == ledger.Undeliverable
		if now.Claims != r.Claims || now.Deliveries != r.Deliveries || closed {
			return ledger.ErrStale
		}
		now.Delivery = d
		return nil
	}
}

// mark notes how far the goods have come. It can be lost in a crash, after
// which they may be handed over once more, to the same payer.
func (v *visit) mark(r *ledger.Record, d ledger.Delivery) {
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	_, err := v.Ledger.Update(ctx, r.Key, fenced(r, d))
	v.complain(r, err)
}

// markLater is mark without waiting for the disk.
func (v *visit) markLater(r *ledger.Record, d ledger.Delivery) {
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	_, err := v.Ledger.UpdateLater(ctx, r.Key, fenced(r, d))
	v.complain(r, err)
}

func (v *visit) complain(r *ledger.Record, err error) {
	if err != nil && !errors.Is(err, ledger.ErrStale) {
		v.log().Error("noting a delivery failed", "payment", r.Key.String(), "error", err)
	}
}

// giveBack releases a claimed payment if nothing was broadcast for it: what is
// settled or under way is left alone.
func (v *visit) giveBack(claimed *ledger.Record, cause error) {
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	_, err := v.Ledger.Update(ctx, claimed.Key, released(claimed, cause))
	if err != nil && !errors.Is(err, ledger.ErrStale) {
		v.log().Error("releasing a payment failed", "payment", claimed.Key.String(), "error", err)
	}
}

// held runs the upstream, keeps its answer, settles, and releases the answer.
// With trusting, the answer goes out before it settles if the caps allow it.
func (v *visit) held(r ledger.Record, kept *heldWriter, trusting bool) error {
	up, cancel := detach(v.r, v.route.upstream())
	defer cancel()
	kept.ctx, kept.tap = up, v.tap
	returned := false
	defer func() {
		if !returned { // it panicked
			v.giveBack(&r, errors.New("the upstream panicked"))
		}
	}()
	request := v.forUpstream(up)
	request.Header.Del("Accept-Encoding") // the answer must suit whoever asks for it again
	began := v.now()
	err := kept.run(func() error { return v.next(kept, request, v.sale) })
	returned = true
	v.until = v.until.Add(v.now().Sub(began))
	switch {
	case err != nil:
		return v.abandoned(&r, err)
	case kept.status >= 400:
		v.giveBack(&r, errors.New("the upstream answered with status "+strconv.Itoa(kept.status)))
		v.sale.Reason = "upstream failed"
		return v.relay(v.unpriced(kept.answer()))
	}
	answer := kept.answer()
	v.assess(&r, kept, answer, v.now().Sub(began))
	ctx, cancel2 := v.waiting()
	defer cancel2()
	if trusting {
		done, err := v.onCredit(ctx, &r, answer)
		if done || err != nil {
			return err
		}
	}
	if err := v.keep(ctx, &r, answer); err != nil {
		v.giveBack(&r, err)
		return v.settleProblem(&payment.UnavailableError{Doing: "storing the upstream's answer", Err: err})
	}
	stored, err := v.settle(ctx, &r)
	if err != nil {
		v.giveBack(&r, err)
		return v.settleProblem(err)
	}
	v.paid(&stored)
	return v.release(answer, &stored)
}

// release hands over an answer that is paid for.
func (v *visit) release(a *answer, r *ledger.Record) error {
	v.remember(r)
	v.stamp(a.Header)
	v.handOver(a, r)
	return nil
}

// handOver sends an answer and notes that without waiting for the disk.
func (v *visit) handOver(a *answer, r *ledger.Record) {
	delivery := ledger.Delivered
	if err := a.writeTo(v.w); err != nil {
		// The payer has gone. The answer stays where it is.
		v.log().Info("payer gone before the answer was out", "payment", r.Key.String(), "error", err)
		delivery = ledger.Interrupted
	}
	if r.Delivery == ledger.Delivered {
		return
	}
	v.markLater(r, delivery)
}

// relay hands over an answer that costs nothing.
func (v *visit) relay(a *answer) error {
	uncacheable(a.Header)
	if err := a.writeTo(v.w); err != nil {
		v.log().Info("payer gone before the answer was out", "error", err)
	}
	return nil
}
