package chain

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"strings"
	"sync/atomic"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/rpc"
)

// Kind is why nodes refuse a transaction.
type Kind string

const (
	NonceTooLow            Kind = "nonce too low" // the nonce is spent in the chain, perhaps by these very bytes: look for the receipt
	InsufficientFunds      Kind = "insufficient funds"
	ReplacementUnderpriced Kind = "replacement underpriced" // another transaction with this nonce waits, and this one does not pay enough more
	Underpriced            Kind = "underpriced"             // below what the node's pool takes
	FeeCapTooLow           Kind = "fee cap below base fee"
	IntrinsicGas           Kind = "intrinsic gas too low"
	GasLimit               Kind = "gas limit too high"
	WrongChain             Kind = "wrong chain"
	Invalid                Kind = "invalid" // these bytes will never be taken: signature, encoding, type, size, node's fee cap
)

// RejectedError says that every node which can have got the transaction from this broadcast refused it, for a reason we recognise.
// It speaks of this broadcast only: an earlier one of the same bytes, or of the same authorization, may still be mined.
type RejectedError struct {
	Kind   Kind
	Reason string // a node's own words, printable
}

func (e *RejectedError) Error() string {
	return fmt.Sprintf("chain: broadcast rejected: %s (%s)", e.Kind, e.Reason)
}

// AmbiguousError says that we do not know whether a node took the transaction: it timed out, it answered with an error we do not
// recognise, the connection broke after the bytes were written, or no node was there. It is never a failure: the transaction may
// be mined. Watch for it, and broadcast the same bytes again.
type AmbiguousError struct{ Err error }

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("chain: broadcast has no certain outcome: %v", e.Err)
}
func (e *AmbiguousError) Unwrap() error { return e.Err }

type verdict int

const (
	accepted verdict = iota // or already known
	rejected
	unsent // the bytes cannot have reached the node
	uncertain
)

// reply is what came of sending a transaction to one endpoint.
type reply struct {
	e       *endpoint
	verdict verdict
	kind    Kind
	err     error
}

// Broadcast sends a signed transaction to every endpoint at once. It returns nil as soon as one takes it or says that it has it
// already; a *RejectedError when every endpoint the bytes may have reached refuses them for a recognised reason; and otherwise an
// *AmbiguousError, also when ctx ends first. What has begun is not withdrawn: the other endpoints get the bytes, within the call
// timeout, even after Broadcast has returned.
func (c *Client) Broadcast(ctx context.Context, raw []byte) error {
	if err := ctx.Err(); err != nil {
		return &AmbiguousError{err}
	}
	hash := crypto.Keccak256Hash(raw)
	replies := make(chan reply, len(c.endpoints))
	for _, e := range c.endpoints {
		if !c.spawn(func() { replies <- c.send(e, raw, hash) }) {
			return &AmbiguousError{errClosed}
		}
	}
	var refusal *RejectedError
	var doubts, absences hostErrors
	for range c.endpoints {
		select {
		case <-ctx.Done():
			return &AmbiguousError{ctx.Err()}
		case r := <-replies:
			switch r.verdict {
			case accepted:
				return nil
			case rejected:
				// A spent nonce is a fact of the chain and outweighs what a pool thinks.
				if refusal == nil || r.kind == NonceTooLow {
					refusal = &RejectedError{r.kind, r.e.scrub(r.err.Error())}
				}
			case unsent:
				absences = append(absences, hostError{r.e.host, r.e.describe(r.err)})
			case uncertain:
				doubts = append(doubts, hostError{r.e.host, r.e.describe(r.err)})
			}
		}
	}
	switch {
	case len(doubts) > 0:
		return &AmbiguousError{append(doubts, absences...)}
	case refusal == nil:
		return &AmbiguousError{absences}
	}
	return refusal
}

// send gives raw to one endpoint. An endpoint that is not up is asked for its chain first.
func (c *Client) send(e *endpoint, raw []byte, hash common.Hash) reply {
	ctx, cancel := c.attemptContext(c.life)
	defer cancel()
	c.mu.Lock()
	conn, up := e.conn, e.state == stateUp
	c.mu.Unlock()
	if conn == nil {
		return reply{e: e, verdict: unsent, err: errors.New("not connected")}
	}
	if !up {
		c.calls.Add(1)
		var chainID hexutil.Uint64
		if err := conn.CallContext(ctx, &chainID, "eth_chainId"); err != nil {
			return reply{e: e, verdict: unsent, err: err}
		}
		if uint64(chainID) != c.chainID {
			return reply{e: e, verdict: unsent, err: &WrongChainError{Got: uint64(chainID), Want: c.chainID}}
		}
	}
	c.calls.Add(1)
	// Which error came last does not tell: net/http may have written the bytes, lost the connection, and failed to make another.
	var connected atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	var got common.Hash
	err := conn.CallContext(traced, &got, "eth_sendRawTransaction", hexutil.Bytes(raw))
	var refused rpc.Error
	switch {
	case err == nil && got == hash:
		return reply{e: e, verdict: accepted}
	case err == nil:
		return reply{e: e, verdict: uncertain, err: errors.New("malformed answer: the hash of another transaction")}
	case errors.As(err, &refused):
		verdict, kind := judge(refused.Error())
		return reply{e: e, verdict: verdict, kind: kind, err: err}
	}
	c.blame(e, conn, err)
	if !e.ws && !connected.Load() {
		return reply{e: e, verdict: unsent, err: err}
	}
	return reply{e: e, verdict: uncertain, err: err}
}

// judge reads a node's refusal. Only beginnings are compared: what one node quotes of another, or of a gateway, is uncertain, as
// is every text we do not know. A full pool, a gap in the nonces or a limit per account are uncertain too, since some sequencers
// hold such a transaction back and take it after all.
func judge(message string) (verdict, Kind) {
	text := strings.ToLower(strings.TrimSpace(message))
	for _, wrapper := range []string{"err: ", "internal_error: "} {
		text = strings.TrimPrefix(text, wrapper)
	}
	if hasAnyPrefix(text, knownPrefixes) {
		return accepted, ""
	}
	for _, r := range refusals {
		if strings.HasPrefix(text, r.prefix) {
			return rejected, r.kind
		}
	}
	return uncertain, ""
}

// knownPrefixes is how nodes (geth and its kin, Erigon, Besu, Nethermind, Parity, anvil) say that they have the transaction.
var knownPrefixes = []string{
	"already known",
	"alreadyknown",
	"known transaction",
	"already imported",
	"transaction already imported",
	"transaction with the same hash was already imported",
	"existing tx with same hash",
}

// refusals is how the same nodes say no, in lower case. The first that fits counts.
var refusals = []struct {
	prefix string
	kind   Kind
}{
	{"nonce too low", NonceTooLow},
	{"transaction nonce is too low", NonceTooLow},
	{"oldnonce", NonceTooLow},
	{"insufficient funds for", InsufficientFunds},
	{"insufficient funds. the account", InsufficientFunds},
	{"insufficientfunds", InsufficientFunds},
	{"upfront cost exceeds account balance", InsufficientFunds},
	{"transaction upfront cost exceeds account balance", InsufficientFunds},
	{"sender doesn't have enough funds", InsufficientFunds},
	{"replacement transaction underpriced", ReplacementUnderpriced},
	{"could not replace existing tx", ReplacementUnderpriced},
	{"replacementnotallowed", ReplacementUnderpriced},
	{"transaction underpriced", Underpriced},
	{"transaction gas price below minimum", Underpriced},
	{"gas price below configured minimum gas price", Underpriced},
	{"feetoolow", Underpriced},
	{"max fee per gas less than block base fee", FeeCapTooLow},
	{"intrinsic gas too low", IntrinsicGas},
	{"intrinsic gas exceeds gas limit", IntrinsicGas},
	{"insufficient gas for floor data gas cost", IntrinsicGas},
	{"exceeds block gas limit", GasLimit},
	{"transaction gas limit exceeds block gas limit", GasLimit},
	{"transaction gas limit too high", GasLimit},
	{"invalid sender: invalid chain id", WrongChain},
	{"invalid chain id", WrongChain},
	{"wrong chain id", WrongChain},
	{"only replay-protected", WrongChain},
	{"invalid sender", Invalid},
	{"transaction type not supported", Invalid},
	{"max priority fee per gas higher than max fee per gas", Invalid},
	{"oversized data", Invalid},
	{"negative value", Invalid},
	{"rlp: ", Invalid},
	{"typed transaction too short", Invalid},
	{"tx fee (", Invalid},
}
