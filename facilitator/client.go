package facilitator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// A Client is a facilitator somewhere else, asked over HTTP. Its methods are
// safe for concurrent use.
//
// An answer is three-valued: the facilitator says yes, it says no, or we
// cannot tell. Only a body in the protocol's own form is a yes or a no,
// whatever the status; everything else that happens after a settle request
// has left is a pending *payment.UnavailableError.
type Client struct {
	base   string
	bearer string
	http   *http.Client

	mu        sync.Mutex
	supported *payment.Supported // guarded by mu
	fetched   time.Time          // guarded by mu
	now       func() time.Time
}

// ClientConfig says where a facilitator is.
type ClientConfig struct {
	URL    string // base URL; /verify, /settle and /supported are below it
	Bearer string // secret, sent as Authorization: Bearer; may be empty

	HTTP *http.Client     // nil means one of its own; deadlines come from the callers; redirects are never followed
	Now  func() time.Time // nil means time.Now
}

// NewClient returns a client. It does no I/O.
func NewClient(c ClientConfig) (*Client, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("facilitator: the URL must be like https://facilitator.example.com/base, without user, query or fragment")
	}
	if c.HTTP == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConnsPerHost = 64
		c.HTTP = &http.Client{Transport: transport}
	}
	own := *c.HTTP
	// A redirect could carry the payment and the secret elsewhere.
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Client{base: strings.TrimRight(c.URL, "/"), bearer: c.Bearer, http: &own, now: c.Now}, nil
}

// Verify implements payment.Facilitator.
func (c *Client) Verify(ctx context.Context, p *payment.Payment, o *payment.Offer) (*payment.Verification, error) {
	const doing = "asking the facilitator to verify"
	body, err := payment.EncodeRequest(p, o, o.Amount)
	if err != nil {
		return nil, err
	}
	var directive []string
	if p.SettledFirst {
		directive = []string{"max-stale"} // what is known of the payer does
	}
	answer, status, _, err := c.do(ctx, http.MethodPost, "/verify", body, directive...)
	if err != nil {
		return nil, &payment.UnavailableError{Doing: doing, Err: err}
	}
	v, err := payment.DecodeVerification(answer)
	if invalid := (*payment.InvalidError)(nil); err != nil && !errors.As(err, &invalid) {
		return nil, &payment.UnavailableError{Doing: doing, Err: statusError(status, err)}
	}
	if v != nil {
		// What is no address stays empty: it changes nothing about the payment.
		v.Payer, _ = payment.CanonicalAddress(o.Network(), v.Payer)
	}
	return v, err
}

const (
	// repeatFirst and repeatMost bound the pauses before the identical settle
	// request is repeated while the facilitator says that the settlement is
	// pending. Each is twice the one before.
	repeatFirst = 500 * time.Millisecond
	repeatMost  = 4 * time.Second
)

// Settle implements payment.Facilitator. While the facilitator answers that
// the settlement is pending, the identical request is repeated until ctx
// ends; nothing else is ever repeated.
func (c *Client) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	var pending *payment.UnavailableError // the last such answer
	for pause := repeatFirst; ; pause = min(2*pause, repeatMost) {
		s, said, err := c.settle(ctx, p, o, charge)
		switch {
		case err == nil || pending == nil && !said:
			return s, err
		case !said:
			return nil, stillPending(pending, err)
		}
		pending, _ = errors.AsType[*payment.UnavailableError](err)
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, stillPending(pending, ctx.Err())
		case <-t.C:
		}
	}
}

// SettleOnce is Settle without repeating anything.
func (c *Client) SettleOnce(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	s, _, err := c.settle(ctx, p, o, charge)
	return s, err
}

// settle makes one request. said reports that the facilitator itself says
// that the settlement is pending.
func (c *Client) settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (_ *payment.Settlement, said bool, _ error) {
	const doing = "asking the facilitator to settle"
	body, err := payment.EncodeRequest(p, o, charge)
	if err != nil {
		return nil, false, err
	}
	answer, status, left, err := c.do(ctx, http.MethodPost, "/settle", body)
	if err != nil {
		return nil, false, &payment.UnavailableError{Doing: doing, Err: err, Pending: left}
	}
	s, err := payment.DecodeSettlement(answer, o, charge)
	if err == nil {
		return s, false, nil
	}
	if _, refused := errors.AsType[*payment.InvalidError](err); refused {
		return nil, false, err
	}
	if _, said = errors.AsType[*payment.UnavailableError](err); said {
		return nil, true, err
	}
	return nil, false, &payment.UnavailableError{Doing: doing, Err: statusError(status, err), Pending: true}
}

// stillPending is what a settlement that the facilitator has called pending
// stays after err: that a later request failed says nothing about the
// transaction of an earlier one. The nonce may be used, or the balance too
// low, because the money has moved.
func stillPending(last *payment.UnavailableError, err error) *payment.UnavailableError {
	if refusal, ok := errors.AsType[*payment.InvalidError](err); ok {
		err = unsaid(refusal)
	}
	u := *last
	u.Err, u.Pending = err, true
	return &u
}

// unsaid keeps the text of a refusal that does not count, so that nobody takes
// the error it ends up in for a refusal.
func unsaid(refusal *payment.InvalidError) error { return errors.New(refusal.Error()) }

// supportedFor is how long an answer of /supported is kept.
const supportedFor = 5 * time.Minute

// Supported implements payment.Facilitator. Answers are kept for a while.
func (c *Client) Supported(ctx context.Context) (*payment.Supported, error) {
	c.mu.Lock()
	if s := c.supported; s != nil && c.now().Sub(c.fetched) < supportedFor {
		c.mu.Unlock()
		return s, nil
	}
	c.mu.Unlock()
	const doing = "asking the facilitator what it supports"
	answer, status, _, err := c.do(ctx, http.MethodGet, "/supported", nil)
	if err != nil {
		return nil, &payment.UnavailableError{Doing: doing, Err: err}
	}
	s, err := payment.DecodeSupported(answer)
	if err != nil {
		return nil, &payment.UnavailableError{Doing: doing, Err: statusError(status, err)}
	}
	c.mu.Lock()
	c.supported, c.fetched = s, c.now()
	c.mu.Unlock()
	return s, nil
}

// CloseIdleConnections closes the connections that no request uses.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// do makes one request, with directives for caches. left reports whether the
// facilitator may have got it.
func (c *Client) do(ctx context.Context, method, path string, body []byte, directives ...string) (answer []byte, status int, left bool, err error) {
	var connected atomic.Bool // before that nothing can have been sent
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, false, err
	}
	// The request must not be sent twice by the transport on its own: a
	// body that cannot be read again keeps it from trying.
	req.GetBody = nil
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, d := range directives {
		req.Header.Add("Cache-Control", d)
	}
	if c.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+c.bearer)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		// The text of a *url.Error names the whole URL; its cause is enough.
		if outer, ok := errors.AsType[*url.Error](err); ok {
			err = outer.Err
		}
		return nil, 0, connected.Load(), fmt.Errorf("%s: %w", req.URL.Host, err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, resp.StatusCode, true, fmt.Errorf("%s: reading its answer: %w", req.URL.Host, err)
	}
	return answer, resp.StatusCode, true, nil
}

// statusError hides what kind of error err is: it is about the facilitator's
// message, not about the payer's.
func statusError(status int, err error) error {
	return fmt.Errorf("HTTP status %d with a body that is no answer: %v", status, err) //nolint:errorlint // hidden on purpose
}
