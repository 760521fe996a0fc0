package sim

import (
	"bytes"
	"context"
	"errors"
	"hash/fnv"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"path"
	"strconv"
	"time"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/payment"
)

// askRemote makes a shift ask the facilitator at another seat.
func (p *process) askRemote(s *shift) error {
	w := p.w
	client, err := facilitator.NewClient(facilitator.ClientConfig{URL: "https://facilitator.example", HTTP: &http.Client{Transport: &line{p}}, Now: time.Now})
	if err != nil {
		return err
	}
	var asked payment.Facilitator = client
	if w.flaw == SilenceIsRefusal || w.flaw == TimeoutIsPaid {
		asked = &impatient{client, w.flaw == TimeoutIsPaid}
	}
	j := &facilitator.Journal{Facilitator: asked, Ledger: p.ledger, Alone: true, Jitter: p.jitter, Logger: w.logger(p.name), Now: time.Now}
	if err := p.enterThen(func() { s.journal = j }); err != nil {
		return err
	}
	if w.ended() {
		return errOver // nobody would stop it
	}
	j.Start()
	s.till = &till.Till{Facilitator: j, Ledger: p.ledger, Now: time.Now, Logger: w.logger(p.name)}
	p.start(s)
	return nil
}

// jitter is how much is taken off a pause before a settle request is repeated.
func (p *process) jitter(pause time.Duration) (less time.Duration) {
	_ = p.enterThen(func() {
		p.counts["jitter"]++
		less = p.dice.of("jitter").nth(p.counts["jitter"]).between(0, pause/4)
	})
	return less
}

// A line is the network between a till and its facilitator. It loses requests
// and answers, is slow, and now and then delivers a request twice.
type line struct{ p *process }

var errReset = errors.New("connection reset by peer")

// RoundTrip implements http.RoundTripper.
func (l *line) RoundTrip(r *http.Request) (*http.Response, error) {
	w, ctx := l.p.w, r.Context()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	h := fnv.New32a()
	_, _ = h.Write(body)
	id := path.Base(r.URL.Path) + " " + strconv.FormatUint(uint64(h.Sum32()), 36)

	var to *process
	if err := l.p.act(ctx, interaction{kind: "connect", id: id}, func(k luck) error {
		to = l.p.seat.asks.current
		if to == nil || to.serves == nil || k.broken {
			w.covered("facilitator cannot be reached")
			return errors.New("connection refused")
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	var first, second chan struct{}
	var out *httptest.ResponseRecorder
	if err := l.p.act(ctx, interaction{kind: "send", id: id}, func(k luck) error {
		if k.late || k.broken {
			w.covered("request to the facilitator lost")
			return errReset
		}
		out, first = l.hand(to, r, body, 0)
		if w.troubled() && k.dice.of("twice").oneIn(w.profile.twice) {
			w.covered("request delivered twice")
			_, second = l.hand(to, r, body, k.dice.of("second").between(time.Millisecond, 50*time.Millisecond))
		}
		return nil
	}); err != nil {
		return nil, err
	}
	select {
	case <-first:
	case <-to.broken:
		_ = l.p.enterThen(func() { w.covered("facilitator dies while it is asked") })
		return nil, errReset
	case <-l.p.broken:
		return nil, l.p.park()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-w.over:
		return nil, errOver
	}
	if second != nil {
		select {
		case <-second:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-to.broken:
		case <-w.over:
			return nil, errOver
		}
	}
	if err := l.p.act(ctx, interaction{kind: "receive", id: id}, func(k luck) error {
		if k.late || k.broken {
			w.covered("answer of the facilitator lost")
			return io.ErrUnexpectedEOF
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return out.Result(), nil
}

// hand gives a request to a facilitator, some time from now. The caller holds
// the world's lock.
func (l *line) hand(to *process, r *http.Request, body []byte, after time.Duration) (*httptest.ResponseRecorder, chan struct{}) {
	w, s := l.p.w, to.serves
	s.users++
	out, done := httptest.NewRecorder(), make(chan struct{})
	actor := "for " + l.p.name + "/" + actorOf(r.Context())
	if after > 0 {
		actor += " again"
	}
	w.spawn(func() {
		if !w.rest(after) {
			return
		}
		in := httptest.NewRequestWithContext(as(context.Background(), actor), r.Method, r.URL.Path, bytes.NewReader(body))
		s.handler.ServeHTTP(out, in)
		if to.enter() != nil {
			return
		}
		defer w.mu.Unlock()
		s.leave()
		close(done)
	})
	return out, done
}

// leave says that a request is done with a shift. The caller holds the
// world's lock.
func (s *shift) leave() {
	if s.users--; s.retired && s.users == 0 {
		close(s.idle)
	}
}

// An impatient client takes it for a refusal, or for a settlement, when its
// facilitator does not answer.
type impatient struct {
	payment.Facilitator
	trusts bool
}

// Settle implements payment.Facilitator.
func (i *impatient) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	s, err := i.Facilitator.Settle(ctx, p, o, charge)
	unsure, ok := errors.AsType[*payment.UnavailableError](err)
	switch {
	case !ok || !unsure.Pending:
	case i.trusts:
		return &payment.Settlement{Network: o.Network(), Transaction: unsure.Transaction, Payer: unsure.Payer, Amount: charge}, nil
	default:
		err = &payment.InvalidError{Reason: payment.UnexpectedSettle, Message: "no answer", Payer: unsure.Payer}
	}
	return s, err
}
