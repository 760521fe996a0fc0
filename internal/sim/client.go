package sim

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A purchase is one payment, with what its owner and others do with it.
type purchase struct {
	name   string
	key    payment.Key
	auth   authorization
	ticket *ticket
	by     instrument
	other  *evm.SignedPermit // one with the same nonce, for something else

	copies   int           // how many send the same request at once
	split    bool          // one of them asks for something else
	together bool          // they come within a moment
	vanish   bool          // nobody waits for an answer, and nobody asks again
	again    bool          // asks once more after it was served
	cancels  time.Duration // when the payer cancels; 0 means never
	drains   time.Duration // when the payer moves all money away; 0 means never
	refills  bool          // and back
	theft    bool          // a stranger submits the authorization once it is claimed
	betrays  betrayal      // what the payer does once it is claimed
	unsafe   bool          // by POST
	events   int           // that its answer has, by upto

	// Guarded by the world's lock.
	claimed   bool
	claimer   *process            // who claimed it last
	shown     map[string]struct{} // the instances that have got it
	presented []time.Time         // when requests with it began
	refusals  []refusal           // answers that ask to pay again
	granted   map[string]struct{} // the requests that got a byte of their goods
	served    int                 // how many whole answers were received
	open      int                 // copies that have none yet
	waiting   int                 // requests that wait for an answer
	reached   bool                // the transfer was once as final as the route asks for
	running   map[string]bool     // whether the upstream is at work, by process
	runs      map[string]int      // upstream calls, by claim
	handed    strings.Builder     // what has left of a metered answer
}

type refusal struct {
	at     time.Time
	reason string
	alone  bool // no other request with the payment waited for an answer
}

func (p *purchase) honest() bool { return !p.vanish }

// goods is what a path gives, in parts.
func (p *purchase) goods(path string) []string {
	if p.by != byUpto {
		return []string{"goods ", "of ", path}
	}
	if p.events == 0 {
		return []string{": costs nothing\n\n"}
	}
	parts := make([]string, p.events)
	for i := range parts {
		parts[i] = fmt.Sprintf("data: %d of %s\n\n", i, path)
	}
	return parts
}

// worth is what so many events cost.
func worth(events int) uint64 { return min(price, uint64(events)*eventPrice) } //nolint:gosec // it counts

// worth is what the payer has got for a payment by upto.
func (w *world) worth(p *purchase) uint64 {
	if w.metered(p) {
		return worth(strings.Count(p.handed.String(), "\n\n") - strings.Count(p.handed.String(), ": costs nothing\n\n"))
	}
	return worth(p.events)
}

// metered reports whether the goods of a payment are handed over before the
// money moves. A till whose facilitator is elsewhere is not told which payers
// have code.
func (w *world) metered(p *purchase) bool {
	return w.profile.mode == till.Metered && p.by == byUpto && (w.profile.remote || !w.hasCode(p.auth.from))
}

// hope is for how many seconds after a payment has expired its client asks for
// the goods where nobody may know what became of it.
const hope = 20

// buy sends a payment until there is a final answer.
func (w *world) buy(p *purchase, who, path string) {
	d := w.dice.of("client " + who)
	start := d.of("start").between(0, w.profile.arrive)
	switch {
	case w.profile.rush:
		start = opening + d.of("start").between(0, 150*time.Millisecond)
	case p.together:
		start = w.dice.of("start "+p.name).between(0, w.profile.arrive) + d.of("start").between(0, 100*time.Millisecond)
	}
	if !w.rest(start) {
		return
	}
	for try := 0; ; try++ {
		status := w.request(p, fmt.Sprintf("%s#%d", who, try), path, d.nth(try))
		if p.vanish {
			break
		}
		w.mu.Lock()
		done := false
		switch status {
		case http.StatusOK:
			done = !p.again || try > 0 && d.nth(try).oneIn(2)
		case http.StatusPaymentRequired, http.StatusConflict, http.StatusGone:
			done = true
		}
		if w.facilitator != nil && !w.troubled() && unix(time.Now()) > p.ticket.signed.Expiry+hope {
			done = true // a facilitator elsewhere need not ever say what became of a payment that has expired
		}
		w.mu.Unlock()
		if done || !w.rest(d.nth(try).of("pause").between(time.Second, 3*time.Second)*time.Duration(1+try/4)) {
			break
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p.open--
}

// request sends one request and returns the status of its answer, or 0 if
// there was none.
func (w *world) request(p *purchase, actor, path string, d dice) int {
	w.mu.Lock()
	life := w.shops[d.of("seat").below(len(w.shops))].current
	p.presented = append(p.presented, time.Now())
	if life == nil || life.serves == nil {
		w.note("refused connection", actor, p.name, "")
		w.mu.Unlock()
		return 0
	}
	w.shown(p, life)
	p.waiting++
	s := life.serves
	s.users++
	patience := w.profile.patience
	if p.vanish {
		patience = d.of("vanish").between(time.Millisecond, 4*time.Second)
	}
	ctx, hangUp := context.WithTimeout(as(context.Background(), actor), patience)
	defer hangUp()
	out := &wire{w: w, life: life, purchase: p, actor: actor, path: path, ctx: ctx, header: http.Header{}, whole: strings.Join(p.goods(path), "")}
	w.note("request", actor, p.name, path)
	w.mu.Unlock()

	done := make(chan struct{})
	w.spawn(func() {
		defer close(done)
		out.serve(s, w.requestFor(ctx, p, path))
	})
	select {
	case <-done:
	case <-life.broken:
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p.waiting--
	status := out.received(life)
	w.note("answer", actor, p.name, fmt.Sprintf("%d %s", status, out.reason()))
	switch status {
	case http.StatusOK:
		p.served++
	case http.StatusPaymentRequired:
		p.refusals = append(p.refusals, refusal{time.Now(), out.reason(), p.waiting == 0})
	}
	return status
}

// shown takes note of an instance that gets a payment. The caller holds the
// lock.
func (w *world) shown(p *purchase, to *process) {
	p.shown[to.seat.name] = struct{}{}
	if len(p.shown) > 1 {
		w.covered("same payment at two instances")
	}
	if c := p.claimer; c != nil && c.dead && c.seat != to.seat {
		w.covered("payment of a dead instance at another one")
	}
}

func (w *world) requestFor(ctx context.Context, p *purchase, path string) *http.Request {
	method := http.MethodGet
	if p.unsafe {
		method = http.MethodPost
	}
	r := &http.Request{
		Method: method, URL: &url.URL{Path: path}, Host: "shop.example", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{http.CanonicalHeaderKey(p.ticket.header): {p.ticket.value}}, Body: http.NoBody,
	}
	return r.WithContext(ctx)
}

// A wire is one connection from a client to a process.
type wire struct {
	w        *world
	life     *process
	purchase *purchase
	actor    string
	path     string
	whole    string // the goods
	ctx      context.Context
	header   http.Header

	// Guarded by the world's lock.
	status int
	sent   http.Header
	body   strings.Builder
	behind []byte // what the server still holds, of a metered answer
	ended  bool
	err    error
}

// errCut says that the server has broken the connection.
var errCut = errors.New("the connection was cut off")

// serve runs the till.
func (c *wire) serve(s *shift, r *http.Request) {
	err := c.handle(s, r)
	if c.metered() && !errors.Is(err, errCut) {
		_ = c.FlushError() // as a server does in the end
	}
	if c.life.enter() != nil {
		return
	}
	defer c.w.mu.Unlock()
	c.ended, c.err = true, err
	s.leave()
}

// handle is the till with a server around it, which breaks the connection where
// a handler asks for that.
func (c *wire) handle(s *shift, r *http.Request) (err error) {
	defer func() {
		switch gone := recover(); gone {
		case nil:
		case http.ErrAbortHandler:
			err = errCut
		default:
			panic(gone)
		}
	}()
	_, err = s.till.Serve(c, r, c.w.route, c.upstream)
	return err
}

// received returns the status of a whole answer. A connection that breaks
// after the last byte of the goods has delivered them.
func (c *wire) received(life *process) int {
	if c.status == http.StatusOK && c.body.String() == c.whole && c.sent.Get(payment.HeaderResponse) != "" {
		return http.StatusOK
	}
	if !c.ended || life.dead || c.ctx.Err() != nil || errors.Is(c.err, errCut) || c.metered() && c.err != nil && c.status == http.StatusOK {
		return 0
	}
	if c.err != nil && c.status == 0 {
		return http.StatusBadGateway
	}
	return c.status
}

// reason returns what the answer says about the settlement.
func (c *wire) reason() string {
	doc, err := base64.StdEncoding.DecodeString(c.sent.Get(payment.HeaderResponse) + c.sent.Get(payment.HeaderResponseV1))
	if err != nil || len(doc) == 0 {
		return ""
	}
	var answer struct{ ErrorReason string }
	_ = json.Unmarshal(doc, &answer) // what is no JSON has no reason
	return answer.ErrorReason
}

// Header implements http.ResponseWriter.
func (c *wire) Header() http.Header { return c.header }

// WriteHeader implements http.ResponseWriter.
func (c *wire) WriteHeader(status int) {
	if c.life.enter() != nil {
		return
	}
	defer c.w.mu.Unlock()
	if c.status == 0 && status >= 200 {
		c.status, c.sent = status, c.header.Clone()
	}
}

func (c *wire) metered() bool { return c.w.metered(c.purchase) }

// Write implements http.ResponseWriter. Of what is metered it keeps a part
// back, as a server does.
func (c *wire) Write(b []byte) (int, error) {
	if err := c.life.enter(); err != nil {
		return 0, err
	}
	if c.status == 0 {
		c.status, c.sent = http.StatusOK, c.header.Clone()
	}
	if c.metered() {
		c.behind = append(c.behind, b...)
		c.w.mu.Unlock()
		return len(b), nil
	}
	c.w.mu.Unlock()
	return c.deliver(b)
}

// FlushError is for http.ResponseController.
func (c *wire) FlushError() error {
	if !c.metered() {
		return http.ErrNotSupported
	}
	if err := c.life.enter(); err != nil {
		return err
	}
	b := c.behind
	c.behind = nil
	c.w.mu.Unlock()
	if len(b) == 0 {
		return c.ctx.Err()
	}
	_, err := c.deliver(b)
	return err
}

// deliver has bytes reach the client. The process can die before, in the
// middle of, and after that.
func (c *wire) deliver(b []byte) (int, error) {
	if err := c.life.enter(); err != nil {
		return 0, err
	}
	parts := []string{string(b)}
	paid := c.status == http.StatusOK
	if paid && len(b) > 1 {
		parts = []string{string(b[:len(b)/2]), string(b[len(b)/2:])}
	}
	for i, part := range parts {
		if paid && i == 0 && c.body.Len() == 0 && c.life.strike("answer", "", true) || paid && i == 1 && c.life.strike("answer", "", false) {
			c.w.mu.Unlock()
			return 0, c.life.park()
		}
		if c.ctx.Err() != nil {
			c.w.mu.Unlock()
			return 0, errors.New("broken pipe")
		}
		if paid {
			c.w.release(c.purchase, c.path, c.life)
			c.purchase.handed.WriteString(part)
		}
		c.body.WriteString(part)
	}
	if paid && c.body.String() == c.whole && c.life.strike("answered", "", false) {
		c.w.mu.Unlock()
		return 0, c.life.park()
	}
	c.w.mu.Unlock()
	return len(b), nil
}

// upstream makes the goods.
func (c *wire) upstream(out http.ResponseWriter, r *http.Request, _ *till.Sale) error {
	w, p := c.w, c.purchase
	if err := c.life.enter(); err != nil {
		return err
	}
	w.upstreamBegins(p, c.life, r.Method)
	w.mu.Unlock()
	var status int
	err := c.life.act(r.Context(), interaction{kind: "upstream", id: c.path, least: 2 * time.Millisecond, most: w.profile.upstream}, func(l luck) error {
		switch {
		case l.broken && l.dice.oneIn(2):
			w.covered("upstream fails")
			return errors.New("connection refused")
		case l.broken || l.late:
			w.covered("upstream answers 500")
			status = http.StatusInternalServerError
		}
		return nil
	})
	defer func() {
		if c.life.enter() == nil {
			defer w.mu.Unlock()
			delete(p.running, c.life.name)
		}
	}()
	if err != nil {
		return err
	}
	if status != 0 {
		out.WriteHeader(status)
		_, err = out.Write([]byte("sorry"))
		return err
	}
	if p.by == byUpto {
		out.Header().Set("Content-Type", "text/event-stream")
	}
	for i, part := range p.goods(c.path) {
		d := c.life.dice.of(c.actor).nth(i)
		switch {
		case i > 0 && c.metered():
			if err := sleep(r.Context(), d.between(time.Millisecond, w.profile.upstream)); err != nil {
				return err
			}
			if done, err := c.dies(d); done {
				return err
			}
		case i > 0 && w.route.Mode == till.First:
			if err := sleep(r.Context(), d.between(time.Millisecond, 20*time.Millisecond)); err != nil {
				return err
			}
		}
		if _, err := out.Write([]byte(part)); err != nil {
			return err
		}
		if c.metered() && d.of("flush").below(3) > 0 {
			if err := http.NewResponseController(out).Flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// dies reports whether the upstream dies in the middle of its answer. It can
// do that in the way of a reverse proxy whose upstream's connection breaks.
func (c *wire) dies(d dice) (done bool, err error) {
	if err := c.life.enter(); err != nil {
		return true, err
	}
	defer c.w.mu.Unlock()
	if c.w.profile.mild || !c.w.troubled() || !d.of("dies").oneIn(20) {
		return false, nil
	}
	c.w.covered("upstream dies in a stream")
	if d.of("aborts").oneIn(2) {
		panic(http.ErrAbortHandler)
	}
	return true, errors.New("unexpected end of the upstream's answer")
}

// ledgerKey names a payment's record in a store.
func ledgerKey(k payment.Key) ledger.Key { return ledger.Key("pay/" + k.String()) }
