package settle

import (
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A Sight is what the chain shows of one payment at one moment.
type Sight struct {
	// Fate is what the logs say of the authorization, and Found where they
	// say it: the Transfer if it was paid, the log that spent the nonce
	// otherwise. Complete reports that the token itself, after the latest
	// block, knows the nonce as unused; only then does Untouched prove
	// anything.
	Fate     evm.Fate
	Found    ledger.Inclusion
	Complete bool

	// Mined reports that we have transactions for the payment and that all
	// of them are in blocks, so that sending them again can do nothing.
	Mined bool

	Head          uint64 // number of the latest block
	Safe          uint64 // number of the latest safe block
	Finalized     uint64 // number of the latest finalized block
	FinalizedTime uint64 // its time, unix seconds
}

// A Step is what follows from a sight.
type Step struct {
	To     ledger.State      // the state to be in; the present one if nothing changes
	Found  *ledger.Inclusion // to be stored, nil to forget the one that is stored
	Reason string            // why, for Dead
	Resend bool              // the stored transactions are to be sent again
	Retry  bool              // they did nothing; another one may
}

// Decide says what becomes of r, which is to be settled as surely as until
// says and whose authorization is good until validBefore, in unix seconds.
// It is pure. It leaves the claim of a request that is still at work on r
// alone, except when the chain shows that the money has moved.
func Decide(r *ledger.Record, until payment.Finality, validBefore uint64, s Sight) Step {
	stay := Step{To: r.State, Found: r.Included}
	if r.State.Resting() {
		return stay
	}
	switch s.Fate {
	case evm.Paid:
		found := s.Found
		step := Step{To: ledger.Included, Found: &found}
		if final(until, found.Block, s) {
			step.To = ledger.Settled
		}
		if r.State.Paid() {
			step.To = r.State
			if found.Block <= s.Finalized {
				step.To = ledger.Archived
			}
		}
		return step

	case evm.Spent:
		switch {
		case s.Found.Block <= s.Finalized && r.State.Can(ledger.Dead):
			why := "the nonce was used by something other than this payment"
			if s.Found.Transaction != "" {
				why += ", in transaction " + s.Found.Transaction
			}
			return Step{To: ledger.Dead, Reason: why}
		case r.State == ledger.Included || r.State == ledger.Settled:
			return Step{To: ledger.Sent}
		}
		return stay

	default:
		if r.State == ledger.Included || r.State == ledger.Settled {
			if !s.Complete {
				return stay
			}
			return Step{To: ledger.Sent, Resend: !s.Mined} // a reorg took the block away
		}
		if s.Complete && s.FinalizedTime >= validBefore && r.State.Can(ledger.Dead) {
			return Step{To: ledger.Dead, Reason: "the authorization expired unused"}
		}
		if r.State == ledger.Intent || r.State == ledger.Sent {
			stay.Resend, stay.Retry = !s.Mined, s.Mined && s.Complete
		}
		return stay
	}
}

// Forgettable reports whether a crash may lose a step of a payment's money,
// because the chain tells it again. From a state in which nothing has been
// broadcast no step is: the goods may be gone when somebody else's transaction
// has paid for them, and what is left after the crash could be claimed for
// something else once a reorg has taken that transaction away.
func Forgettable(from, to ledger.State) bool {
	return from.Broadcast() && (to == ledger.Included || to == ledger.Settled || to == ledger.Archived)
}

// final reports whether a transfer in block is as sure as until asks for.
func final(until payment.Finality, block uint64, s Sight) bool {
	if n, counted := until.Confirmations(); counted {
		return s.Head+1 >= block+n
	}
	if until == payment.Safe {
		return block <= s.Safe
	}
	return block <= s.Finalized
}
