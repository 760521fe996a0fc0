// Package payment defines what the parties of x402 say to each other:
// challenges, offers, payments and settlements, in both protocol versions.
//
// A challenge is the 402 response, an offer is one entry of its "accepts", a
// payment is what the payer signed, a settlement is what the chain did with
// it. There is one Go type for each, whatever the version; versions and wire
// names exist only in the encoders and decoders of this package.
//
// Nothing here does I/O or reads a clock. Decoders accept bytes from
// strangers: they are bounded, and their errors name the member at fault
// without repeating its value.
package payment

import (
	"context"
	"encoding/json"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
)

// Protocol versions.
const (
	V1 = 1 // JSON bodies, X-PAYMENT
	V2 = 2 // PAYMENT-REQUIRED and PAYMENT-SIGNATURE headers
)

// A Scheme says how money moves.
type Scheme string

const (
	Exact Scheme = "exact" // the payer signs the amount itself
	Upto  Scheme = "upto"  // the payer signs a maximum
)

// A Key names a payment by the fields on which the chain itself rejects a
// second use, so that two encodings of one payment have one Key. The packages
// of the chains compute it.
type Key [32]byte

func (k Key) String() string { return common.Bytes2Hex(k[:]) }

// A Fingerprint names what a payment is bound to: the request it was first
// used for, or, when it came through the facilitator API, the offer.
type Fingerprint [32]byte

// A Payment is what a payer sent. It has been decoded but not checked.
type Payment struct {
	Version int // V1 or V2

	// Scheme and Network are what the payment says it uses: the members of
	// a v1 payload, or of the offer that a v2 payload says it accepted.
	Scheme  Scheme
	Network Network

	// Accepted is the offer that a v2 payer says it accepted; nil in v1.
	// It has no authority: checks use the seller's own offer.
	Accepted *Accepted

	// Payload is the scheme's own part, a JSON object as received.
	Payload json.RawMessage

	// Resource and Extensions are v2 members without meaning for the money,
	// as received; empty when absent.
	Resource   json.RawMessage
	Extensions json.RawMessage

	// Binding is what the payment was claimed for. It is not on the wire:
	// the till sets it, and a facilitator that finds it zero binds the
	// payment to the offer.
	Binding Fingerprint

	// SettledFirst says that nothing is handed over for the payment before its
	// money has moved. It is not on the wire: the till and the facilitator API
	// set it for payments that are new to them. What Verify knows of the payer
	// then does, although the chain was not asked about this very payment.
	SettledFirst bool

	// Tenant is who has a facilitator settle the payment over HTTP, or "". It
	// is not on the wire either: the facilitator API sets it, and a facilitator
	// gives the settlement to nobody else.
	Tenant string

	raw json.RawMessage
}

// Raw returns the whole payment as JSON, as the payer wrote it.
func (p *Payment) Raw() json.RawMessage { return p.raw }

// A Verification says that a payment is good: signed by Payer, for the offer
// it was checked against, and payable as the chain stood.
type Verification struct {
	Payer string // address in the network's canonical form
	Key   Key

	// Contract reports that the payer's account has code. What such an
	// account accepts can change at any time, so it is settled before
	// anything is served.
	Contract bool

	// Funds is the most that the payer could have paid as the chain stood, in
	// atomic units: its balance, and by Permit2 no more than its allowance. It
	// is nil where that is not known. All that is handed out to a payer before
	// its money has moved must be covered by it.
	Funds *big.Int
}

// A Settlement says that the money has moved.
type Settlement struct {
	Network     Network
	Transaction string // hash; empty when nothing had to move
	Payer       string // address in the network's canonical form
	Amount      Amount // what was charged

	// Extensions are what the seller adds for the payer, a JSON object of
	// v2; may be empty.
	Extensions json.RawMessage
}

// Supported lists what a facilitator verifies and settles.
type Supported struct {
	Kinds      []Kind
	Extensions []string
	Signers    map[string][]string // addresses by CAIP-2 pattern, such as "eip155:*"
}

// A Kind is one combination that a facilitator supports.
type Kind struct {
	Version int
	Scheme  Scheme
	Network Network
	Extra   json.RawMessage // scheme data that sellers copy into their offers; may be empty
}

// A Facilitator checks payments and settles them. Implementations are safe
// for concurrent use.
//
// Errors come in three kinds. An *InvalidError means that the payment is bad.
// An *UnavailableError means that the facilitator could not find out, which
// says nothing about the payment; the same call may be repeated. Any other
// error is a bug.
type Facilitator interface {
	// Verify checks p against o without moving money.
	Verify(ctx context.Context, p *Payment, o *Offer) (*Verification, error)

	// Settle moves charge, which is at most the offer's amount, from the
	// payer to the offer's recipient. Settling the same payment again
	// returns the first settlement. The end of ctx ends the wait, not the
	// transaction: after an *UnavailableError the money may have moved.
	Settle(ctx context.Context, p *Payment, o *Offer, charge Amount) (*Settlement, error)

	// Supported lists what Verify and Settle accept.
	Supported(ctx context.Context) (*Supported, error)
}
