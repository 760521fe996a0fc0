package facilitator

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A Journal keeps the ledger for a facilitator that settles somewhere else:
// before the settle request leaves, INTENT is on disk; what the facilitator
// answers follows. Payments must have been claimed, and carry a Binding.
//
// While nothing is known for certain the payment stays in INTENT, and each
// further Settle repeats the identical request. Between Start and Stop it is
// also repeated when nobody asks. Without a proof of our own from the chain a
// payment never becomes DEAD.
type Journal struct {
	payment.Facilitator
	Ledger *ledger.Ledger

	// Alone says that no other process uses the ledger, so that Start need
	// not wait for leases of one that has ended.
	Alone bool

	// Jitter returns how much is taken off a pause before a repetition, so
	// that many do not come at once. Nil means up to a quarter, at random.
	Jitter func(pause time.Duration) time.Duration

	Logger *slog.Logger     // nil discards
	Now    func() time.Time // nil means time.Now

	mu     sync.Mutex
	atWork map[payment.Key]chan struct{} // guarded by mu: closed when the call that settles the payment ends
	open   map[payment.Key]*repetition   // guarded by mu: what is to be repeated; nil unless the journal is started
	news   chan struct{}                 // has room for one: open has changed

	stop context.CancelFunc
	done chan struct{} // closed when the repeater has ended
}

// Settle implements payment.Facilitator. One call at a time settles a
// payment; the others wait for what it finds out.
func (j *Journal) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	identity, err := Identify(p, o)
	if err != nil {
		return nil, err
	}
	for {
		done, busy := j.take(identity.Key)
		if busy == nil {
			defer done()
			return j.settle(ctx, p, o, charge, identity)
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, &payment.UnavailableError{Doing: "another call is settling this payment", Err: ctx.Err(), Pending: true, Payer: identity.Payer}
		}
	}
}

// take makes this call the one that settles a payment. If another one already
// does, it returns a channel that is closed when that one ends.
func (j *Journal) take(k payment.Key) (done func(), busy <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if c, ok := j.atWork[k]; ok {
		return nil, c
	}
	if j.atWork == nil {
		j.atWork = map[payment.Key]chan struct{}{}
	}
	c := make(chan struct{})
	j.atWork[k] = c
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.atWork, k)
		close(c)
	}, nil
}

func (j *Journal) settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount, identity Identity) (*payment.Settlement, error) {
	r, err := j.Ledger.Get(ctx, identity.Key)
	if err != nil {
		return nil, &payment.UnavailableError{Doing: "reading the ledger", Err: err, Payer: identity.Payer}
	}
	if r.Binding != p.Binding || r.Proof != identity.Proof {
		return nil, &payment.InvalidError{Reason: payment.DuplicateSettlement, Message: "this payment is bound to something else", Payer: identity.Payer}
	}
	switch {
	case r.State.Paid():
		return &payment.Settlement{Network: r.Network, Transaction: r.Transaction(), Payer: r.Payer, Amount: charge}, nil
	case r.State == ledger.Dead:
		return nil, &payment.InvalidError{Reason: payment.EVMTransactionFailed, Message: r.Reason, Payer: r.Payer}
	}
	intended, first, err := j.intend(ctx, &r)
	if errors.Is(err, ledger.ErrStale) {
		return nil, &payment.InvalidError{Reason: payment.DuplicateSettlement, Message: "this payment is bound to something else", Payer: identity.Payer}
	}
	if err != nil {
		var failed *ledger.FailedError
		return nil, &payment.UnavailableError{Doing: "storing the intent to settle", Err: err, Pending: errors.As(err, &failed), Payer: identity.Payer}
	}
	s, err := j.Facilitator.Settle(ctx, p, o, charge)
	if err != nil && (!first || twice(err)) {
		err = afterwards(err)
	}
	alone, noting := j.note(context.WithoutCancel(ctx), &intended, s, err)
	if noting != nil {
		j.repeatLater(r.Key)
		return nil, &payment.UnavailableError{Doing: "storing the settlement", Err: noting, Pending: true, Payer: identity.Payer}
	}
	if err != nil && !alone {
		err = afterwards(err)
	}
	if undecided(err) {
		j.repeatLater(r.Key)
	}
	return s, err
}

// undecided reports whether err leaves it open whether the money moves.
func undecided(err error) bool {
	if unavailable, ok := errors.AsType[*payment.UnavailableError](err); ok {
		return unavailable.Pending
	}
	_, refused := errors.AsType[*payment.InvalidError](err)
	return err != nil && !refused
}

// intend stores that a settle request may leave, and that nobody else need
// repeat it while it is under way. first reports that none has left before.
// It returns ledger.ErrStale if the payment has been claimed for something
// else since it was read.
//
// Each request changes the record, if only its lease, so that note can see
// that it was not the only one.
func (j *Journal) intend(ctx context.Context, read *ledger.Record) (intended ledger.Record, first bool, err error) {
	intended, err = j.Ledger.Update(ctx, read.Key, func(r *ledger.Record) error {
		if r.Binding != read.Binding || r.Proof != read.Proof {
			return ledger.ErrStale
		}
		r.Owner, r.Lease = j.Ledger.Owner(), j.now().Add(attemptFor)
		if first = !r.State.Broadcast(); !first {
			return nil
		}
		return r.To(ledger.Intent)
	})
	return intended, first, err
}

// twice reports whether a refusal says that the payment was used before.
// Nobody but the chain knows what for: it may be this very transfer, which
// anybody may submit.
func twice(err error) bool {
	invalid, ok := errors.AsType[*payment.InvalidError](err)
	return ok && (invalid.NonceUsed() || invalid.Reason == payment.DuplicateSettlement)
}

// afterwards is what an error means when an earlier request for the payment
// has left: that this one failed says nothing about that one.
func afterwards(err error) error {
	if unavailable, ok := errors.AsType[*payment.UnavailableError](err); ok {
		pending := *unavailable
		pending.Pending = true
		return &pending
	}
	if invalid, ok := errors.AsType[*payment.InvalidError](err); ok {
		return &payment.UnavailableError{Doing: "repeating the settle request", Err: unsaid(invalid), Pending: true, Payer: invalid.Payer}
	}
	return err
}

// note stores what the facilitator answered. alone reports that no other
// request, of another process, has left since intended was stored: it may have
// been accepted where this one was refused or got nowhere.
func (j *Journal) note(ctx context.Context, intended *ledger.Record, s *payment.Settlement, answer error) (alone bool, err error) {
	var unavailable *payment.UnavailableError
	var invalid *payment.InvalidError
	_, err = j.Ledger.Update(ctx, intended.Key, func(r *ledger.Record) error {
		alone = !r.Newer(intended)
		switch {
		case r.State.Paid(), answer != nil && !alone:
			return ledger.ErrStale
		case answer == nil:
			r.Included = &ledger.Inclusion{Transaction: s.Transaction}
			return r.To(ledger.Settled)
		case errors.As(answer, &unavailable):
			if unavailable.Pending {
				return ledger.ErrStale
			}
			r.Reason = "the facilitator could not be reached"
			return r.To(ledger.Released)
		case errors.As(answer, &invalid):
			// The facilitator that we trust with settling says that it did
			// not, and will not.
			r.Reason = invalid.Error()
			return r.To(ledger.Released)
		}
		return ledger.ErrStale
	})
	if errors.Is(err, ledger.ErrStale) {
		return alone, nil
	}
	return alone, err
}
