package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/rpc"
)

// query is one JSON-RPC request of a batch.
type query struct {
	method   string
	args     []any
	executes bool // runs a contract, so that an error may be a revert
}

// answer is what came back for one query: a result, or a *RevertError, a *NodeError, or another error for no sensible answer.
type answer struct {
	result json.RawMessage
	err    error
}

// read puts queries to the endpoints in turn, in one round trip each, until accept takes the answers. The next endpoint is asked
// when one fails, and when it has been silent for a quarter of the call timeout; then the first answer that is accepted counts.
// accept runs on the caller's goroutine, once at a time. When nobody's answers are accepted the error is an *UnavailableError.
func (c *Client) read(ctx context.Context, op string, queries []query, accept func([]answer) error) error {
	endpoints, err := c.usable(ctx)
	if err != nil {
		return &UnavailableError{op, err}
	}
	type outcome struct {
		e       *endpoint
		conn    *rpc.Client
		answers []answer
		err     error
	}
	outcomes := make(chan outcome, len(endpoints))
	attempts, cancel := context.WithCancel(ctx)
	defer cancel()
	asked, pending := 0, 0
	askNext := func() {
		e := endpoints[asked]
		asked++
		if c.spawn(func() {
			conn, answers, err := c.attempt(attempts, e, queries)
			outcomes <- outcome{e, conn, answers, err}
		}) {
			pending++
		}
	}

	var failures hostErrors
	askNext()
	hedge := time.NewTimer(c.callTimeout / 4)
	defer hedge.Stop()
	for pending > 0 {
		select {
		case <-hedge.C:
			if asked < len(endpoints) {
				askNext()
				hedge.Reset(c.callTimeout / 4)
			}
			continue
		case <-ctx.Done():
			return &UnavailableError{op, append(failures, hostError{endpoints[asked-1].host, ctx.Err()})}
		case out := <-outcomes:
			pending--
			err := out.err
			if err == nil {
				err = accept(out.answers)
			}
			if err == nil {
				return nil
			}
			failures = append(failures, hostError{out.e.host, out.e.describe(err)})
			if errors.Is(err, ErrUnknownBlock) {
				return &UnavailableError{op, failures}
			}
			var refused *NodeError
			if ctx.Err() == nil && c.life.Err() == nil && !errors.As(err, &refused) {
				c.blame(out.e, out.conn, err)
			}
			if asked < len(endpoints) {
				askNext()
			}
		}
	}
	if len(failures) == 0 || c.life.Err() != nil {
		return &UnavailableError{op, errClosed}
	}
	return &UnavailableError{op, failures}
}

// attempt puts queries to one endpoint. err is set when there was no exchange; otherwise there is one answer per query.
func (c *Client) attempt(ctx context.Context, e *endpoint, queries []query) (*rpc.Client, []answer, error) {
	c.mu.Lock()
	conn := e.conn
	c.mu.Unlock()
	if conn == nil {
		return nil, nil, errors.New("not connected")
	}
	ctx, cancel := c.attemptContext(ctx)
	defer cancel()
	if err := e.admit(ctx, len(queries)); err != nil {
		return conn, nil, err
	}
	c.calls.Add(1)

	results := make([]json.RawMessage, len(queries))
	batch := make([]rpc.BatchElem, len(queries))
	for i, q := range queries {
		batch[i] = rpc.BatchElem{Method: q.method, Args: q.args, Result: &results[i]}
	}
	if len(batch) == 1 {
		// Not every node takes a batch of one.
		err := conn.CallContext(ctx, &results[0], batch[0].Method, batch[0].Args...)
		var answered rpc.Error
		if err != nil && !errors.As(err, &answered) {
			return conn, nil, err
		}
		batch[0].Error = err
	} else if err := conn.BatchCallContext(ctx, batch); err != nil {
		return conn, nil, err
	}
	answers := make([]answer, len(queries))
	for i, q := range queries {
		answers[i] = answer{results[i], e.classify(q, batch[i].Error)}
	}
	return conn, answers, nil
}

// classify names the kind of what e answered to q in place of a result. Nothing of go-ethereum's own error is kept, and every word
// is fit to be printed.
func (e *endpoint) classify(q query, err error) error {
	var failed rpc.Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &failed):
		return errors.New("malformed answer: " + e.scrub(err.Error()))
	}
	if q.executes {
		var data any
		if detail, ok := errors.AsType[rpc.DataError](err); ok {
			data = detail.ErrorData()
		}
		if reverted, ok := asRevert(failed.ErrorCode(), failed.Error(), data); ok {
			reverted.Reason = e.scrub(reverted.Reason)
			return reverted
		}
	}
	return &NodeError{failed.ErrorCode(), e.scrub(failed.Error())}
}

// saysUnknownBlock reports whether a node's error means that it has no such block.
func saysUnknownBlock(err *NodeError) bool {
	const unknownBlock = -39001
	lower := strings.ToLower(err.Message)
	return err.Code == unknownBlock || strings.HasPrefix(lower, "unknown block") || strings.Contains(lower, "block not found")
}

// decode reads a result. A result that does not fit is the node's fault.
func decode[T any](raw json.RawMessage) (T, error) {
	var value T
	if err := json.Unmarshal(raw, &value); err != nil {
		return value, fmt.Errorf("malformed answer: %w", err)
	}
	return value, nil
}
