package ledger

import (
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// A State says how far the money of a payment has come.
type State string

const (
	Reserved  State = "RESERVED"  // claimed for a request; nothing done yet
	Executing State = "EXECUTING" // the upstream may have been called
	Executed  State = "EXECUTED"  // the upstream has answered and its answer is held
	Intent    State = "INTENT"    // a settlement is decided and stored; it may be under way
	Sent      State = "SENT"      // a node has the transaction
	Included  State = "INCLUDED"  // the transfer is in a block
	Settled   State = "SETTLED"   // the transfer is as final as the seller asked for
	Archived  State = "ARCHIVED"  // the transfer is final; nothing watches it any more
	Released  State = "RELEASED"  // nothing was broadcast; the payer may use the payment again
	Dead      State = "DEAD"      // proven: the payment can never move money

	RefundDue  State = "REFUND_DUE"  // the money has come, and what it buys will never be handed over
	Refunded   State = "REFUNDED"    // the money has gone back to the payer, by a payment of its own
	WrittenOff State = "WRITTEN_OFF" // the goods were handed over, and the money will never come
)

// transitions lists every step that the money of a payment can take.
var transitions = map[State][]State{
	"":        {Reserved, Executing, Intent},
	Reserved:  {Executing, Intent, Included, Settled, Released}, // Included and Settled before Intent: by somebody else's transaction
	Executing: {Executed, Included, Settled, Released},
	Executed:  {Intent, Included, Settled, Released},
	Released:  {Reserved, Executing, Intent, Included, Settled, Dead, WrittenOff}, // WrittenOff only on the word of a remote facilitator
	Intent:    {Sent, Included, Settled, Dead, Released},                          // Released only on the word of a remote facilitator
	Sent:      {Included, Settled, Dead},
	Included:  {Sent, Settled, Dead},       // back to Sent by a reorg
	Settled:   {Sent, Archived, RefundDue}, // back to Sent by a reorg before finality; RefundDue where nobody here watches for one
	Archived:  {RefundDue},
	Dead:      {WrittenOff},
	RefundDue: {Refunded},

	Refunded:   {},
	WrittenOff: {},
}

// Can reports whether money can go from s to next.
func (s State) Can(next State) bool {
	return slices.Contains(transitions[s], next)
}

// Known reports whether s is one of the states.
func (s State) Known() bool {
	_, ok := transitions[s]
	return ok && s != ""
}

// StateNames lists the states, sorted.
func StateNames() []string {
	var names []string
	for s := range transitions {
		if s != "" {
			names = append(names, string(s))
		}
	}
	slices.Sort(names)
	return names
}

// Resting reports whether the chain has nothing left to say about the
// payment. Goods or a refund may still be owed for it.
func (s State) Resting() bool {
	switch s {
	case Archived, Dead, RefundDue, Refunded, WrittenOff:
		return true
	default:
		return false
	}
}

// Working reports whether a request is at work on the payment, or was, and
// nothing has been broadcast for it.
func (s State) Working() bool { return s == Reserved || s == Executing || s == Executed }

// Broadcast reports whether a transaction for the payment may exist.
func (s State) Broadcast() bool {
	switch s {
	case Intent, Sent, Included, Settled, Archived, RefundDue, Refunded:
		return true
	default:
		return false
	}
}

// Paid reports whether the money has moved as surely as the seller asked for.
// It may have gone back since.
func (s State) Paid() bool {
	switch s {
	case Settled, Archived, RefundDue, Refunded:
		return true
	default:
		return false
	}
}

// A Delivery says how far the goods have come. It is independent of the
// money: some sellers hand out before the money is final.
type Delivery string

const (
	Undelivered   Delivery = ""
	Delivering    Delivery = "DELIVERING"    // the first byte may have left
	Interrupted   Delivery = "INTERRUPTED"   // the payer went away while it got the goods, and may ask for them again
	Delivered     Delivery = "DELIVERED"     // the last byte has left, or the payer has used up what it paid for
	Undeliverable Delivery = "UNDELIVERABLE" // given up; the payer is owed its money once that is final
)

// A SlotRef names one slot in which a payment was to be settled.
type SlotRef struct {
	Lane  string `json:"lane"` // address of the account that pays gas
	Nonce uint64 `json:"nonce"`
	Hash  string `json:"hash"` // of the slot's first attempt
}

// An Inclusion says where the chain made the transfer.
type Inclusion struct {
	Transaction string `json:"transaction"` // ours or anybody's
	Block       uint64 `json:"block"`
	BlockHash   string `json:"block_hash"`
	LogIndex    uint   `json:"log_index"` // of the Transfer in its block
}

// A Record is everything that is remembered of one payment.
type Record struct {
	Key      payment.Key         `json:"-"`
	State    State               `json:"state"`
	Claims   int                 `json:"claims"`         // how often it was claimed; the last claim is the one that counts
	Binding  payment.Fingerprint `json:"binding"`        // what the payment was claimed for
	Proof    payment.Fingerprint `json:"proof"`          // hash of what was signed and of the signature
	Basis    payment.Fingerprint `json:"basis,omitzero"` // what else of the request had decided a price that was computed
	Mode     string              `json:"mode"`           // who claimed it and how it is served
	Delivery Delivery            `json:"delivery,omitempty"`

	// Tenant is who claimed the payment through the facilitator API, or "".
	// Nobody else is told what became of it.
	Tenant string `json:"tenant,omitempty"`

	// Name is what the payer calls the payment, if it has a name: printable
	// ASCII without blanks that also says whose name it is. It is given with
	// a claim, and names no other payment while this one may move money.
	Name string `json:"name,omitempty"`

	// Deliveries counts how often the handing over has begun. A mark that
	// belongs to an earlier one is out of date.
	Deliveries int `json:"deliveries,omitempty"`

	// Due is until when what the payment buys can be asked for. It is zero
	// for a payment that buys nothing here: one that came through the
	// facilitator API, or a refund.
	Due time.Time `json:"due,omitzero"`

	// LetGo reports that the claim was given back, so that money which comes
	// in later comes in for nobody.
	LetGo bool `json:"let_go,omitempty"`

	// Exposed is what was handed over before the money moved, for as long as
	// it counts against the caps of the sellers.
	Exposed *Exposure `json:"exposed,omitempty"`

	// Refund is the key of the payment that gives the money back, from when
	// that was ordered.
	Refund string `json:"refund,omitempty"`

	Network payment.Network `json:"network"`
	Payer   string          `json:"payer"`
	Charge  string          `json:"charge"` // atomic units of the offer's token

	Until string `json:"until"` // how final the settlement must be, as payment.Finality prints it

	// Request is what a facilitator is asked, so that the same can be asked
	// again: the payment and the offer in the protocol's own form. It never
	// changes during a claim.
	Request json.RawMessage `json:"request,omitempty"`

	// Owner is the process that works on the payment before it is settled, or
	// hands over what it buys; Lease is until when the others leave it to that
	// process.
	Owner string    `json:"owner"`
	Lease time.Time `json:"lease"`

	// Ran says that the upstream may have run, before it was paid, for this
	// payment and the request that it is bound to.
	Ran bool `json:"ran,omitempty"`

	Slots       []SlotRef  `json:"slots,omitempty"`        // the last one is the one that counts
	IntentBlock uint64     `json:"intent_block,omitempty"` // chain head when the first slot was stored, or the block of somebody else's; 0 where our node has no part in it
	Included    *Inclusion `json:"included,omitempty"`
	Reason      string     `json:"reason,omitempty"` // why Dead or Released

	Since   time.Time `json:"since"`
	Updated time.Time `json:"updated"`

	version uint64 // of the stored entry; 0 while it is not stored
}

// To moves the money to next. It is an error, and a bug, if it cannot go
// there.
func (r *Record) To(next State) error {
	if !r.State.Can(next) {
		return fmt.Errorf("ledger: payment %s cannot go from %q to %q", r.Key, r.State, next)
	}
	r.State = next
	switch next {
	case Released:
		r.LetGo = true
	case Executing:
		r.LetGo, r.Ran = false, true
	case Reserved, Intent:
		r.LetGo = false
	default:
	}
	return nil
}

// Owed reports whether the money has come and the payer can still ask for
// what it buys, or must get the money back.
func (r *Record) Owed() bool {
	return !r.Due.IsZero() && (r.State == Settled || r.State == Archived) && r.Delivery != Delivered
}

// rests reports whether nothing is left to do for the payment.
func (r *Record) rests() bool {
	return r.State.Resting() && r.State != RefundDue && !r.Owed() && r.Exposed == nil
}

// Newer reports whether r was written after other, which is a record of the
// same payment.
func (r *Record) Newer(other *Record) bool { return r.version > other.version }

// Transaction returns the hash under which the payment is settled or may be,
// or "".
func (r *Record) Transaction() string {
	if r.Included != nil {
		return r.Included.Transaction
	}
	if n := len(r.Slots); n > 0 {
		return r.Slots[n-1].Hash
	}
	return ""
}

// A Lane is the one nonce stream of an account that pays gas. Its next nonce
// comes from here and never from a node, whose answer lags behind what was
// signed.
type Lane struct {
	Network payment.Network `json:"network"`
	Address string          `json:"address"`
	Next    uint64          `json:"next"` // the nonce of the next transaction

	// Keeper is the process that looks after the lane's slots: it sends them
	// again, replaces them and fills them. Epoch grows whenever another one
	// takes over, which makes whatever the former keeper still tries fail.
	Keeper string `json:"keeper,omitempty"`
	Epoch  uint64 `json:"epoch,omitempty"`

	// GasDay is the day, in UTC, on which GasBooked wei, in decimal digits,
	// were spent or may yet be. See Book.
	GasDay    string `json:"gas_day,omitempty"`
	GasBooked string `json:"gas_booked,omitempty"`

	version uint64
}

// Book adds wei, which may be negative, to what the lane may spend on a day.
// What was booked on another day is forgotten.
func (l *Lane) Book(day string, wei *big.Int) {
	sum := l.Booked(day)
	if sum.Add(sum, wei).Sign() < 0 {
		sum.SetInt64(0)
	}
	l.GasDay, l.GasBooked = day, sum.String()
}

// Booked returns what was booked on a day, in wei.
func (l *Lane) Booked(day string) *big.Int {
	if sum, ok := new(big.Int).SetString(l.GasBooked, 10); ok && l.GasDay == day {
		return sum
	}
	return new(big.Int)
}
