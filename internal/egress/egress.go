// Package egress is the one way out to URLs that somebody else chose.
//
// Whoever may choose a URL for us to fetch must not reach what only we can
// reach: this machine, the networks behind it, a cloud's metadata service. A
// Client therefore looks at the address that it is about to connect to, after
// the name has been resolved, for every connection; what the URL looks like is
// checked before, so that a mistake is named early, and is not what the
// protection rests on.
package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// The bounds of a Client where its Config does not say others.
const (
	DefaultTimeout     = 5 * time.Second
	DefaultMaxResponse = 256 << 10 // bytes
	MaxRedirects       = 3

	maxHeader = 64 << 10 // bytes of a response's header
)

// Config says what a Client may reach. The zero value reaches public addresses
// by https on port 443, and nothing else.
type Config struct {
	// Ports are those that https may go to. Default: 443.
	Ports []uint16

	// InsecureHTTP are the hosts that may be reached without TLS, as "host",
	// which means its port 80, or "host:port".
	InsecureHTTP []string

	// InsecureAllow are addresses that would be refused: receivers of the
	// operator's own on private addresses. Everybody who may choose a URL
	// reaches everything in there. Metadata services and Own stay refused.
	InsecureAllow []netip.Prefix

	// Own returns what this process listens on and must not be reached through
	// it, such as the admin endpoint. One without an address, as of ":2019",
	// stands for every address of this machine. It is called for each
	// connection, from any goroutine. Nil means none.
	Own func() []netip.AddrPort

	// Redirects is how many are followed: 0 to MaxRedirects. The answer that
	// has one more is returned as it is. Every one is checked as the first URL.
	Redirects int

	// Timeout bounds a request from the look-up of the name to the end of the
	// response. Default: DefaultTimeout.
	Timeout time.Duration

	// MaxResponse bounds the body of a response, in bytes; reading more is
	// ErrTooLong. Default: DefaultMaxResponse.
	MaxResponse int64

	// Roots are the authorities whose certificates are accepted. Nil means the
	// system's.
	Roots *x509.CertPool

	// Resolver resolves names. Nil means the system's.
	Resolver *net.Resolver
}

// ErrTooLong says that a response is longer than MaxResponse.
var ErrTooLong = errors.New("egress: the response is too long")

// A RefusedError says what a Client did not do, and why. It has no part of a
// URL but the host and the port.
type RefusedError struct {
	What string // such as "connecting to 10.0.0.1:443"
	Why  string

	// Setting is the setting that would allow it, with its value, or empty if
	// none does.
	Setting string
}

func (e *RefusedError) Error() string {
	text := "egress: " + e.What + " is refused: " + e.Why
	if e.Setting != "" {
		text += "; if that is meant, set " + e.Setting
	}
	return text
}

// A Client makes requests within a Config. It sends no cookies, uses no proxy
// of the environment, and knows no other way to a host than the one that its
// URL names. It is safe for concurrent use.
type Client struct {
	guard guard
	http  *http.Client
	base  *http.Transport
}

// New returns a client. It does no I/O.
func New(c Config) (*Client, error) {
	g, err := newGuard(&c)
	if err != nil {
		return nil, err
	}
	if c.Redirects < 0 || c.Redirects > MaxRedirects {
		return nil, fmt.Errorf("egress: %d redirects: it must be 0 to %d", c.Redirects, MaxRedirects)
	}
	if c.Timeout < 0 || c.MaxResponse < 0 {
		return nil, errors.New("egress: the timeout and the longest response must not be negative")
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.MaxResponse == 0 {
		c.MaxResponse = DefaultMaxResponse
	}
	dialer := &net.Dialer{Timeout: c.Timeout, Resolver: c.Resolver, ControlContext: g.control}
	base := &http.Transport{
		Proxy:                  nil, // one of the environment would connect in our place, unchecked
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    c.Timeout,
		ResponseHeaderTimeout:  c.Timeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // what is read is what was sent, and bounded as that
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    2,
		IdleConnTimeout:        30 * time.Second,
	}
	return &Client{guard: *g, base: base, http: &http.Client{
		Transport: &transport{guard: g, base: base, most: c.MaxResponse},
		Timeout:   c.Timeout,
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			r.Header.Del("Referer") // http.Client has put the former URL there
			if len(via) > c.Redirects {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}}, nil
}

// Check returns a *RefusedError for a URL that would be refused whatever its
// host resolves to. It does no I/O.
func (c *Client) Check(u *url.URL) error {
	return c.guard.url(u)
}

// Do sends a request. A *RefusedError says that it was not sent, or that it
// would have been redirected to where it must not go. No error has a part of
// the URL but the host and the port: paths and queries of such URLs can be
// secrets. The caller closes the body.
func (c *Client) Do(r *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(r)
	if err == nil {
		return resp, nil
	}
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return nil, refused
	}
	outer, ok := errors.AsType[*url.Error](err) // which repeats the URL
	switch {
	case ok && outer.Timeout() && r.Context().Err() == nil:
		return nil, fmt.Errorf("egress: %s did not answer within %s", r.URL.Host, c.http.Timeout)
	case r.Context().Err() != nil:
		return nil, fmt.Errorf("egress: asking %s: %w", r.URL.Host, context.Cause(r.Context()))
	}
	return nil, fmt.Errorf("egress: asking %s: %w", r.URL.Host, tellable(err))
}

// errNoHTTP stands for errors that may repeat what was sent or received.
var errNoHTTP = errors.New("the connection broke, or what came back is no HTTP")

// tellable returns the part of an error that has nothing of a URL but its host.
func tellable(err error) error {
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return e
	}
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return e
	}
	for _, e := range []error{http.ErrSchemeMismatch, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return e
		}
	}
	return errNoHTTP
}

// CloseIdle closes the connections that are kept for later.
func (c *Client) CloseIdle() { c.base.CloseIdleConnections() }

// A transport checks every URL that an http.Client goes to, redirects
// included, and bounds what comes back.
type transport struct {
	guard *guard
	base  http.RoundTripper
	most  int64
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := t.guard.url(r.URL); err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // as a RoundTripper must; it was not read
		}
		return nil, err
	}
	resp, err := t.base.RoundTrip(r)
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		named := *refused
		named.What += " for " + r.URL.Host
		return nil, &named
	}
	if err != nil {
		return nil, err
	}
	if _, err := r.URL.Parse(resp.Header.Get("Location")); err != nil {
		resp.Header.Del("Location") // http.Client would repeat it in an error
	}
	resp.Body = &bounded{ReadCloser: resp.Body, left: t.most}
	return resp, nil
}

// bounded is a body of which no more than so many bytes can be read.
type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, ErrTooLong
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1] // one more, to know whether there is one
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n - 1, ErrTooLong
	}
	return n, err
}
