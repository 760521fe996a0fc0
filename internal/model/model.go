// Package model checks the life of one payment exhaustively: every order in
// which requests, processes, the chain, the payer and strangers can take their
// steps, with crashes anywhere between them.
//
// # What is explored
//
// A state of the model holds the chain's view of one authorization (unused,
// used by a transfer of its payer to the seller, or used by something else;
// in the latest block or finalized; not expired, expired in the latest block,
// expired at finality), the transactions that carry it, the stored record,
// what each process has changed and not stored yet, what each process's
// engine has just seen, and where each request stands. The requests carry the
// same payment, for the same or for different resources, and the payer
// repeats each of them until it has an answer that is final. Explore goes
// breadth first through all states that can be reached, so that the first
// trace to a violation is a shortest one.
//
// Anything may happen between two steps: a process is killed and restarts
// (what was written later is lost, what was written is kept), all of them
// lose power, the engine is reloaded, a broadcast is lost, or accepted
// although the node says otherwise, a transaction is dropped from the
// mempool, mined, or mined and reverted, the latest block is replaced, the
// payer cancels the authorization or empties its account, a stranger submits
// the authorization, time passes it by, an answer is lost on its way, the
// upstream fails, a process sleeps for longer than its lease.
//
// By Permit2 nothing is logged when a nonce is used up. A node's logs count
// only where it has the block that the bit of the nonce was read at: then a
// transaction that settles our permit is the payment, and a set bit without one
// is its death, once both are final.
//
// # What it is bound to
//
// The money moves through ledger.Record.To and by no other way, a claim is
// free when ledger.Ledger.Free says so, and whatever follows from the chain
// is decided by settle.Decide from a settle.Sight. A change of the product's
// table or of its decisions changes the checked system; a step that the table
// forbids ends the check. The order of the steps inside a request is written
// here after facilitator/till, facilitator.Embedded and facilitator.Journal,
// function by function.
//
// # What must hold
//
// Each Violation is an invariant of which a trace was found. Beside them,
// from every state there must be a way, without any further fault, to an end
// where each request has its answer, and at such an end the ledger's paid
// payments are the chain's.
//
// A Variant breaks one rule of the design. It shows that the check would see
// it: each must have its violations, the product none.
package model

import (
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A Remote says who settles.
type Remote uint8

const (
	Embedded   Remote = iota // the engine in our processes
	Idempotent               // somebody else, who answers a repeated settle with the first settlement
	Forgetful                // somebody else, who verifies a repeated settle anew and then refuses it
)

func (r Remote) String() string { return [...]string{"embedded", "remote", "remote, forgetful"}[r] }

// A Config is what is explored, and how much of each fault.
type Config struct {
	Requests  int // 1 to 3, all with the same payment
	Instances int // 1, or 2 on one store

	// Modes are those of the two resources that requests may ask for.
	Modes [2]till.Mode

	Until  payment.Finality // Included or Finalized
	Remote Remote

	Crashes int // kills and power losses
	Reorgs  int // of the latest block
	Pauses  int // leases that run out while their owner works

	Strangers bool // somebody else may submit the authorization
	Cancels   bool // the payer may cancel the authorization
	Drains    bool // the payer may empty its account, and fill it again
	Permit    bool // by Permit2: a set bit without our transfer in a node's logs means that something else has set it
	Bump      bool // a second transaction with a higher fee may follow the first
	Large     bool // answers are too large to be stored
	Unsafe    bool // the method is not safe, and the route does not allow repeating it
}

// A Variant is a way of working that the design rules out. The zero Variant
// is the product.
type Variant struct {
	Name string

	Naive         bool // no ledger: verify, run the upstream, broadcast, wait for the receipt, answer
	OneBlock      bool // naive: a receipt in the latest block is enough
	AnyReceipt    bool // naive: the token does not revert on a used nonce, and a status of 1 is enough
	Shared        bool // naive: everybody's transaction is the same one, as on Solana
	Memory        bool // naive: payments under way are remembered, in memory
	UsedIsPaid    bool // a used nonce counts as a payment
	ForgetAfter   bool // waiting in vain releases the payment
	PayAgain      bool // waiting in vain is answered with 402
	LateClaim     bool // the claim is not on disk when the request goes on
	LateIntent    bool // the intent is not on disk when the transaction goes out
	HeadIsFinal   bool // an authorization that expired in the latest block counts as dead
	NoLogIsUnused bool // a node that shows no log counts as one that says that the nonce is unused
	LagIsDeath    bool // permits: the logs of a node that has not got to the block count as all there are
	Unbound       bool // what the payment was claimed for is not compared
	NoAnswerIsNo  bool // a settle request without an answer counts as refused
	LaterNoIsNo   bool // a refusal of a repeated settle request counts
	Unlocked      bool // requests of one process do not wait for each other
	Hasty         bool // remote: the journal trusts what it read before, whatever others have stored since
	Forgets       bool // a transfer by somebody else's transaction is not on disk when its goods go out
	Lagging       bool // UpdateLater does not wait on a shared store
	Crowded       bool // who hands over the goods has no lease on that
	TakeOver      bool // whoever finds a claim takes it over
}

// A Violation names an invariant that does not hold.
type Violation uint8

const (
	NoViolation Violation = iota
	FreeGoods             // I1: goods went out before the money was as sure as the seller asks
	TwoGrants             // I2: one payment bought two requests
	Lost                  // I3: the chain says paid, the ledger says that it cannot be, or does not know
	PayAgain              // I4: 402 for a payment that can still settle
	RunTwice              // I5: the upstream ran twice at once, or again after it had been delivered
	TwoNonces             // I6: two nonces of a lane for one payment
	Differs               // I7: at rest the ledger's paid payments are not the chain's
	Stuck                 // a payer that keeps asking never gets an answer that is final
	violations
)

func (v Violation) String() string {
	return [...]string{
		"none", "I1 goods without the money", "I2 one payment, two requests", "I3 payment lost",
		"I4 told to pay again", "I5 upstream run twice", "I6 two nonces", "I7 ledger differs", "stuck",
	}[v]
}

// The chain's view of the authorization.
const (
	unused    = iota
	paidOurs  // by one of our transactions, or the remote facilitator's
	paidOther // by a stranger's, with the same effect
	spent     // by something that is not the transfer
)

// The authorization's time.
const (
	live = iota
	late // past validBefore in the latest block
	gone // past validBefore in a finalized block
)

// A record is what the model keeps of a ledger.Record.
type record struct {
	state    uint8 // index into states
	delivery uint8 // index into deliveries
	resource uint8 // the Binding: 1 or 2
	held     uint8 // 1: the answer is stored for the present claim
	lapsed   uint8 // 1: the lease has run out; 0 unless leased
	attempts uint8
	included uint8 // 1: Included is set
	by       uint8 // the request whose claim or delivery it is, from 1; 0 when that has ended
}

var (
	states = [...]ledger.State{
		"", ledger.Reserved, ledger.Executing, ledger.Executed, ledger.Intent, ledger.Sent,
		ledger.Included, ledger.Settled, ledger.Archived, ledger.Released, ledger.Dead,
	}
	deliveries = [...]ledger.Delivery{ledger.Undelivered, ledger.Delivering, ledger.Delivered}
)

const (
	undelivered = iota
	delivering
	delivered
)

// A process is one instance: its engine and what it has not stored yet.
type process struct {
	down  uint8
	watch uint8 // 1: its engine has the payment under watch
	sight uint8 // what the engine has seen and not acted on, see sightOf; 0 is nothing
	bump  uint8 // 1: it has signed a replacement that is not stored
	memo  uint8 // 1: it remembers the payment, in memory (naive)

	// What UpdateLater changed: the record, and by how many versions it is
	// ahead of what is stored. A version that somebody else has stored
	// meanwhile is no longer ahead.
	later record
	ahead uint8
}

// A request is one of the payer's, with its handler's local state.
type request struct {
	pc       uint8
	resource uint8
	process  uint8
	flags    uint8
	way      uint8 // how it will hand over the goods
	reply    uint8
	last     uint8 // the answer to its latest try
}

// flags of a request
const (
	fCurrent  = 1 << iota // the record it read is the latest
	fFirst                // its settle request is the first that leaves
	fLanded               // the payment was refused as used, and is looked for
	fPending              // the facilitator has said "pending"
	fOverdue              // its lease has run out
	fAccepted             // the forgetful facilitator works on this very request
)

// ways
const (
	wDeliver = iota // what is stored, or the upstream again
	wHeld           // the answer in memory
	wFirst          // the upstream
)

// last
const (
	lNever = iota
	lFinal // the goods, or an answer after which there is nothing to ask
	lAgain // 503, 502, or a lost connection: the same will be asked again
)

// A state is everything. It is comparable, and has no padding.
type state struct {
	use    uint8 // of the nonce
	deep   uint8 // 1: that is final
	clock  uint8
	pool   uint8 // transactions in the mempool, a bit each
	sent   uint8 // transactions that may ever have reached a node
	mined  uint8 // transactions in a block, whatever they did
	own    uint8 // naive: whose transaction made the transfer, from 1
	seen   uint8 // 1: the transfer was in a block once
	empty  uint8 // 1: the payer's account is empty; 2: it was, and is full again
	cancel uint8 // 1: the payer has cancelled once
	reorgs uint8
	crash  uint8
	pauses uint8

	remote uint8 // 1: the idempotent facilitator works on the payment

	stored    record
	processes [2]process
	requests  [3]request

	got    uint8 // bits: resources whose goods the client has
	served uint8 // 1: DELIVERED is on disk
	nonces uint8 // how many of the lane's nonces were given to the payment
}
