// Package chaostest has a node that fails and lies: a JSON-RPC proxy, over
// HTTP and WebSocket, in front of an honest one. It exists for tests.
//
// What goes wrong follows from a seed. Whether the nth request for a method
// meets a fault depends on the seed, the fault, the method and n, and on
// nothing else, so that two runs in which the same is asked fail alike.
package chaostest

import (
	"encoding/binary"
	"hash/fnv"
	"slices"
	"time"
)

// A Fault is one way in which a node can be bad.
type Fault string

// Ways to fail. None of them tells anything false, except that a node is
// behind, or does not know, and that a transaction was accepted or refused.
const (
	Delay      Fault = "delay"       // answers late
	DropEarly  Fault = "drop early"  // closes the connection before it does what was asked
	DropLate   Fault = "drop late"   // closes it afterwards
	Busy       Fault = "busy"        // 429, with Retry-After
	BadGateway Fault = "bad gateway" // 502, with a page
	Truncated  Fault = "truncated"   // half of the answer
	Oversized  Fault = "oversized"   // more than anybody should read; once at most, since it takes its time
	WrongID    Fault = "wrong id"    // the answer to no question of ours
	Null       Fault = "null"        // null for a result, for reads
	NodeError  Fault = "node error"  // an error in place of a result, for reads
	Stale      Fault = "stale"       // for a while its head stands still, or has gone back, and all it says is of then

	Swallows      Fault = "swallows"       // takes a transaction, and loses it
	LateError     Fault = "late error"     // takes a transaction, and answers with an error that nobody knows
	AlreadyKnown  Fault = "already known"  // says so of a transaction that it has not got
	NonceTooLow   Fault = "nonce too low"  // refuses a transaction for that, having taken it or not
	Underpriced   Fault = "underpriced"    // the same, for a replacement
	LosesNotices  Fault = "loses notices"  // pushes no heads over WebSocket
	ClosesSockets Fault = "closes sockets" // closes a WebSocket connection instead of answering
)

// Lies.
const (
	Phantom       Fault = "phantom"        // a receipt of success for a transaction that is in no block
	FalseSuccess  Fault = "false success"  // success and its logs for a transaction that failed
	FalseFailure  Fault = "false failure"  // failure for one that succeeded
	FalseCancel   Fault = "false cancel"   // the logs of a cancellation for one that paid
	NoLogs        Fault = "no logs"        // no logs for one that paid, and none where they are searched
	NoReceipt     Fault = "no receipt"     // no receipt for what is in a block
	OtherBlock    Fault = "other block"    // a receipt of a block that is not canonical
	FalseState    Fault = "false state"    // authorizationState, negated
	FalseRevert   Fault = "false revert"   // every other call reverts
	FalseChain    Fault = "false chain"    // another chain's id
	NonceHigh     Fault = "nonce high"     // more transactions of an account than there are
	NonceLow      Fault = "nonce low"      // fewer
	FalseGas      Fault = "false gas"      // a thousand times the estimate
	FalseFee      Fault = "false fee"      // a thousand times the tip, and the base fee
	FalseFinality Fault = "false finality" // the head is final, and ten years on
	FalseHead     Fault = "false head"     // a head far above the real one
	OldHead       Fault = "old head"       // the hash of an old block for the head, with a high number
)

// Failing lists the ways to fail.
func Failing() []Fault {
	return []Fault{
		Delay, DropEarly, DropLate, Busy, BadGateway, Truncated, Oversized, WrongID, Null, NodeError, Stale,
		Swallows, LateError, AlreadyKnown, NonceTooLow, Underpriced, LosesNotices, ClosesSockets,
	}
}

// Lies lists the lies.
func Lies() []Fault {
	return []Fault{
		Phantom, FalseSuccess, FalseFailure, FalseCancel, NoLogs, NoReceipt, OtherBlock, FalseState, FalseRevert, FalseChain,
		NonceHigh, NonceLow, FalseGas, FalseFee, FalseFinality, FalseHead, OldHead,
	}
}

// A Plan says how often which fault is met, from 0 to 1.
type Plan map[Fault]float64

// Draw makes a plan of about half of some faults, each met with a chance of
// at most most.
func Draw(seed uint64, most float64, faults ...Fault) Plan {
	p := Plan{}
	for _, f := range faults {
		if chance(seed, "is it met", string(f)) < 0.5 {
			p[f] = most * chance(seed, "how often", string(f))
		}
	}
	return p
}

// Without returns the plan less some faults.
func (p Plan) Without(faults ...Fault) Plan {
	rest := Plan{}
	for f, c := range p {
		if !slices.Contains(faults, f) {
			rest[f] = c
		}
	}
	return rest
}

// delays returns how late an answer is: mostly little.
func delays(chance float64, most time.Duration) time.Duration {
	return time.Duration(chance * chance * chance * float64(most))
}

// chance returns a number from 0 to below 1 that follows from seed and what
// it is for.
func chance(seed uint64, of ...string) float64 {
	h := fnv.New64a()
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], seed)
	h.Write(b[:])
	for _, s := range of {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	// The last letters hardly reach the upper bits of the sum.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return float64(x>>11) / (1 << 53)
}
