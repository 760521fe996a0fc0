package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"github.com/ethereum/go-ethereum/rpc"
	"github.com/gorilla/websocket"
)

// ErrUnknownBlock is inside the *UnavailableError of a lookup whose block, or tag, the node does not know.
var ErrUnknownBlock = errors.New("the node does not know this block")

var errClosed = errors.New("the client is closed")

// UnavailableError says that a question has no answer now: a timeout, a refused connection, an HTTP error, another chain, an
// answer that makes no sense. It says nothing about what was asked. Its text names hosts, never URLs.
type UnavailableError struct {
	Op  string // the JSON-RPC method, or what was being done
	Err error
}

func (e *UnavailableError) Error() string { return fmt.Sprintf("chain: %s: %v", e.Op, e.Err) }
func (e *UnavailableError) Unwrap() error { return e.Err }

// NodeError is a JSON-RPC error that is not the failure of a call: a limit, a pruned block, an unknown method. It comes inside an
// *UnavailableError.
type NodeError struct {
	Code    int
	Message string // printable, at most a line
}

func (e *NodeError) Error() string { return fmt.Sprintf("node error %d: %s", e.Code, e.Message) }

// hostError is what went wrong at one endpoint. Its err went through endpoint.describe.
type hostError struct {
	host string
	err  error
}

// hostErrors is what went wrong, endpoint by endpoint.
type hostErrors []hostError

func (h hostErrors) Error() string {
	parts := make([]string, len(h))
	for i, one := range h {
		parts[i] = one.host + ": " + one.err.Error()
	}
	return strings.Join(parts, "; ")
}

func (h hostErrors) Unwrap() []error {
	errs := make([]error, len(h))
	for i, one := range h {
		errs[i] = one.err
	}
	return errs
}

// WrongChainError says that an endpoint is on another chain, which it will stay. It comes inside an *UnavailableError.
type WrongChainError struct{ Got, Want uint64 } // chain ids

func (e *WrongChainError) Error() string {
	return fmt.Sprintf("on chain %d, not %d; correct the URL or the chain id", e.Got, e.Want)
}

// describe returns err as it may be printed and wrapped: nothing of e's URL but the host is left in its text or in its chain.
func (e *endpoint) describe(err error) error {
	var (
		ours      *NodeError
		foreign   *WrongChainError
		status    rpc.HTTPError
		inURL     *url.Error
		theirs    rpc.Error
		oversized *http.MaxBytesError
		timeout   net.Error
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ours):
		return ours
	case errors.As(err, &foreign):
		return foreign
	case errors.Is(err, ErrUnknownBlock):
		return ErrUnknownBlock
	case errors.Is(err, errClosed):
		return errClosed
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &theirs):
		return &NodeError{theirs.ErrorCode(), e.scrub(theirs.Error())}
	case errors.As(err, &status):
		return fmt.Errorf("HTTP status %d", status.StatusCode) // its body is the gateway's, and may quote the URL
	case errors.As(err, &oversized):
		return fmt.Errorf("answer of more than %d bytes", oversized.Limit)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	case errors.As(err, &inURL):
		return e.describe(inURL.Err)
	}
	return errors.New(e.scrub(err.Error()))
}

// connectionLost reports whether err means that the connection to the node is gone, so that the next one may lead elsewhere.
func connectionLost(err error) bool {
	var (
		op      *net.OpError
		closing *websocket.CloseError
	)
	switch {
	case errors.As(err, &op):
		return !op.Timeout()
	case errors.As(err, &closing):
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, rpc.ErrClientQuit)
}

// secretsIn lists the parts of u that must not be printed, as they are written and as they are meant, longest first.
func secretsIn(u *url.URL) []string {
	parts := []string{u.RawQuery, u.Fragment, u.User.Username(), u.User.String()}
	for key, values := range u.Query() {
		parts = append(append(parts, key), values...)
	}
	parts = append(parts, strings.Split(u.Path, "/")...)
	parts = append(parts, strings.Split(u.EscapedPath(), "/")...)
	// What is shorter is a version or a chain's number, and would spoil every other word.
	parts = slices.DeleteFunc(parts, func(part string) bool { return len(part) < 4 })
	if password, ok := u.User.Password(); ok && password != "" {
		_, written, _ := strings.Cut(u.User.String(), ":")
		parts = append(parts, password, written)
	}
	slices.SortFunc(parts, func(a, b string) int { return len(b) - len(a) })
	return parts
}

// scrub makes a node's own words fit to be printed: no secret of e, nothing that looks like a URL or an account, one short line.
func (e *endpoint) scrub(text string) string {
	for _, secret := range e.secrets {
		text = strings.ReplaceAll(text, secret, "[redacted]")
	}
	words := strings.Fields(printable(text))
	for i, word := range words {
		if strings.Contains(word, "://") || strings.Contains(word, "@") {
			words[i] = "[redacted]"
		}
	}
	return strings.Join(words, " ")
}

// printable returns at most 256 bytes of text, with everything but plain characters replaced.
func printable(text string) string {
	const limit = 256
	if len(text) > limit {
		text = text[:limit]
	}
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}
