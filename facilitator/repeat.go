package facilitator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

const (
	// attemptFor is how long a settle request may take before it counts as
	// lost.
	attemptFor = 15 * time.Second

	// firstRepeat and mostRepeat bound the pauses between repetitions. Each
	// is twice the one before.
	firstRepeat = time.Second
	mostRepeat  = time.Minute

	// An authorization that expired lateAfter ago will not be settled any
	// more, but may have been: from then on its facilitator is asked every
	// lateRepeat only.
	lateAfter  = time.Hour
	lateRepeat = time.Hour

	// lookEvery is the pause between looks for payments that other processes
	// have left behind, and for those that are finished.
	lookEvery = time.Minute

	// restAfter is when a payment that is settled and delivered is archived:
	// no answer is kept for it any more.
	restAfter = time.Hour

	// repeatAtOnce is how many requests are repeated at one time.
	repeatAtOnce = 4
)

// A repetition is a payment whose settle request is to be repeated.
type repetition struct {
	due   time.Time
	tries int
	ours  bool // this journal has settled it before: a lease of this process is its own
	busy  bool // being repeated
	late  bool // it was said that it takes long
}

// A once settles without repeating anything by itself.
type once interface {
	SettleOnce(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error)
}

// Start begins to repeat the settle requests that have not been answered
// definitely, those of earlier processes included, until they are. It is
// called at most once, before the first Settle.
func (j *Journal) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	j.mu.Lock()
	j.open = map[payment.Key]*repetition{}
	j.mu.Unlock()
	j.news = make(chan struct{}, 1)
	j.stop, j.done = cancel, make(chan struct{})
	go j.repeat(ctx) // ends with ctx; Stop waits for done
}

// Stop ends the repetitions and waits for them. Payments that are not decided
// stay in the ledger for the next journal, to which it leaves their leases.
func (j *Journal) Stop() {
	if j.stop == nil {
		return
	}
	j.stop()
	<-j.done
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	j.mu.Lock()
	left := j.open
	j.open = nil
	j.mu.Unlock()
	for _, k := range slices.SortedFunc(maps.Keys(left), func(a, b payment.Key) int { return slices.Compare(a[:], b[:]) }) {
		if !left[k].ours {
			continue
		}
		_, err := j.Ledger.Update(ctx, k, func(r *ledger.Record) error {
			if !elsewhere(r) || r.State != ledger.Intent || r.Owner != j.Ledger.Owner() {
				return ledger.ErrStale
			}
			r.Lease = j.now()
			return nil
		})
		if err != nil && !errors.Is(err, ledger.ErrStale) {
			j.log().Warn("leaving a payment to the next process failed", "payment", k.String(), "error", err)
			return
		}
	}
}

func (j *Journal) now() time.Time {
	if j.Now == nil {
		return time.Now()
	}
	return j.Now()
}

func (j *Journal) log() *slog.Logger {
	if j.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return j.Logger
}

// longest returns the longest pause after so many tries.
func longest(tries int) time.Duration {
	if tries < 6 {
		return firstRepeat << max(tries-1, 0)
	}
	return mostRepeat
}

// pause returns how long to wait after so many tries.
func (j *Journal) pause(tries int) time.Duration {
	pause := longest(tries)
	if j.Jitter == nil {
		return pause - rand.N(pause/4) //nolint:gosec // nobody gains by guessing it
	}
	return pause - j.Jitter(pause)
}

// elsewhere reports whether a payment is one that is settled by somebody
// else: our own node has no part in it.
func elsewhere(r *ledger.Record) bool { return r.IntentBlock == 0 && len(r.Slots) == 0 }

// repeatLater notes that a payment of this journal is not decided.
func (j *Journal) repeatLater(k payment.Key) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.open == nil {
		return // not started
	}
	if rep := j.open[k]; rep == nil || !rep.ours && !rep.busy { // a look may have found it while it was being settled
		j.open[k] = &repetition{due: j.now().Add(j.pause(1)), tries: 1, ours: true}
	}
	j.wake()
}

// wake has the repeater look again at what is due.
func (j *Journal) wake() {
	select {
	case j.news <- struct{}{}:
	default: // it will
	}
}

// repeat repeats what is due, a few at a time, until ctx ends.
func (j *Journal) repeat(ctx context.Context) {
	defer close(j.done)
	var workers sync.WaitGroup
	defer workers.Wait()
	slots := make(chan struct{}, repeatAtOnce)
	var looked time.Time
	for first := true; ctx.Err() == nil; first = false {
		if first || j.now().Sub(looked) >= lookEvery {
			looked = j.now()
			if err := j.look(ctx, first); err != nil && ctx.Err() == nil {
				j.log().Error("looking for undecided settlements failed", "error", err)
			}
		}
		due, next := j.due()
		for _, k := range due {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			workers.Go(func() { // ends with ctx at the latest; repeat waits for it
				defer func() { <-slots }()
				j.again(ctx, k)
			})
		}
		wait := looked.Add(lookEvery).Sub(j.now())
		if !next.IsZero() {
			wait = min(wait, next.Sub(j.now()))
		}
		t := time.NewTimer(max(wait, time.Millisecond))
		select {
		case <-ctx.Done():
		case <-j.news:
		case <-t.C:
		}
		t.Stop()
	}
}

// due returns what is to be repeated now, the oldest first, and when the next
// one will be.
func (j *Journal) due() (now []payment.Key, next time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for k, rep := range j.open {
		switch {
		case rep.busy:
		case !rep.due.After(j.now()):
			now = append(now, k)
		case next.IsZero() || rep.due.Before(next):
			next = rep.due
		}
	}
	slices.SortFunc(now, func(a, b payment.Key) int {
		return cmp.Or(j.open[a].due.Compare(j.open[b].due), slices.Compare(a[:], b[:]))
	})
	for _, k := range now {
		j.open[k].busy = true
	}
	return now, next
}

// look finds payments that nobody here repeats yet, and archives those that
// are finished. With first, what other processes worked on is taken up at
// once if there are none any more.
func (j *Journal) look(ctx context.Context, first bool) error {
	for r, err := range j.Ledger.Open(ctx) {
		if err != nil {
			return err
		}
		switch {
		case !elsewhere(&r):
		case r.State == ledger.Intent:
			due := r.Lease
			if first && j.Alone && r.Owner != j.Ledger.Owner() {
				due = j.now()
			}
			j.find(r.Key, due)
		case j.finished(&r):
			if err := j.archive(ctx, r.Key); err != nil {
				return err
			}
		}
	}
	return nil
}

// find notes a payment that is not decided.
func (j *Journal) find(k payment.Key, due time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.open[k] == nil {
		j.open[k] = &repetition{due: due}
	}
}

// finished reports whether nothing is left to do for a payment: a facilitator
// said that it is settled, and we have nothing to hold that against.
func (j *Journal) finished(r *ledger.Record) bool {
	return r.State == ledger.Settled && r.Included != nil && r.Included.Block == 0 && r.Delivery == ledger.Delivered && j.now().Sub(r.Updated) > restAfter
}

func (j *Journal) archive(ctx context.Context, k payment.Key) error {
	_, err := j.Ledger.Update(ctx, k, func(r *ledger.Record) error {
		if !elsewhere(r) || !j.finished(r) {
			return ledger.ErrStale
		}
		return r.To(ledger.Archived)
	})
	if errors.Is(err, ledger.ErrStale) {
		return nil
	}
	return err
}

// again repeats the settle request of one payment, unless somebody else is
// at it.
func (j *Journal) again(ctx context.Context, k payment.Key) {
	done, busy := j.take(k)
	if busy != nil {
		j.postpone(k, j.pause(1)) // a payer asks
		return
	}
	defer done()
	r, err := j.lease(ctx, k)
	switch {
	case errors.Is(err, errDecided):
		j.drop(k)
		return
	case errors.Is(err, ledger.ErrStale):
		j.postpone(k, max(r.Lease.Sub(j.now()), 0)+j.pause(1))
		return
	case err != nil:
		if ctx.Err() == nil {
			j.log().Error("taking up an undecided settlement failed", "payment", k.String(), "error", err)
		}
		j.postpone(k, mostRepeat)
		return
	}
	p, o, charge, err := request(&r)
	if err != nil {
		j.log().Error("an undecided settlement cannot be repeated: its stored request cannot be read", "payment", k.String(), "error", err)
		j.postpone(k, lateRepeat)
		return
	}
	j.answer(ctx, &r, p, o, charge)
}

// errDecided says that a payment needs no repetition any more.
var errDecided = errors.New("facilitator: the settlement is decided")

// lease makes this process the one that repeats a payment's request, until
// the next repetition is over. It returns ledger.ErrStale, with the record, if
// another one is.
func (j *Journal) lease(ctx context.Context, k payment.Key) (ledger.Record, error) {
	j.mu.Lock()
	rep := *j.open[k]
	j.mu.Unlock()
	pause := longest(rep.tries + 1)
	if rep.late {
		pause = lateRepeat
	}
	until := j.now().Add(attemptFor + pause + attemptFor)
	var seen ledger.Record
	r, err := j.Ledger.Update(ctx, k, func(r *ledger.Record) error {
		seen = *r
		own := r.Owner == j.Ledger.Owner() && rep.ours
		abandoned := j.Alone && r.Owner != j.Ledger.Owner()
		switch {
		case r.State != ledger.Intent || !elsewhere(r):
			return errDecided
		case !own && !abandoned && j.now().Before(r.Lease):
			return ledger.ErrStale
		}
		r.Owner, r.Lease = j.Ledger.Owner(), until
		return nil
	})
	if err != nil {
		return seen, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open[k].ours = true
	return r, nil
}

// request reads what a facilitator was asked for a payment.
func request(r *ledger.Record) (*payment.Payment, *payment.Offer, payment.Amount, error) {
	p, o, err := payment.DecodeRequest(r.Request)
	if err != nil {
		return nil, nil, payment.Amount{}, err
	}
	charge, err := payment.ParseUnits(r.Charge, o.Amount.Token())
	if err != nil {
		return nil, nil, payment.Amount{}, fmt.Errorf("the charge %w", err)
	}
	identity, err := Identify(p, o)
	if err == nil && (identity.Key != r.Key || identity.Proof != r.Proof) {
		err = errors.New("facilitator: it is another payment's")
	}
	p.Binding = r.Binding
	return p, o, charge, err
}

// answer asks the facilitator once more and stores what it answers.
func (j *Journal) answer(ctx context.Context, r *ledger.Record, p *payment.Payment, o *payment.Offer, charge payment.Amount) {
	settle := j.Facilitator.Settle
	if f, ok := j.Facilitator.(once); ok {
		settle = f.SettleOnce
	}
	attempt, cancel := context.WithTimeout(ctx, attemptFor)
	s, err := settle(attempt, p, o, charge)
	cancel()
	if err != nil {
		err = afterwards(err)
	}
	if _, failed := j.note(context.WithoutCancel(ctx), r, s, err); failed != nil {
		err = failed
	}
	if err == nil {
		j.log().Info("settled after all", "payment", r.Key.String(), "tx", s.Transaction)
		j.drop(r.Key)
		return
	}
	if ctx.Err() == nil {
		j.stillOpen(r, p, o, err)
	}
}

// stillOpen arranges for the next repetition.
func (j *Journal) stillOpen(r *ledger.Record, p *payment.Payment, o *payment.Offer, err error) {
	late := j.late(p, o)
	j.mu.Lock()
	defer j.mu.Unlock()
	defer j.wake()
	rep := j.open[r.Key]
	rep.tries++
	rep.busy, rep.due = false, j.now().Add(j.pause(rep.tries))
	if !late {
		return
	}
	rep.due = j.now().Add(lateRepeat)
	if !rep.late {
		rep.late = true
		j.log().Warn("the facilitator does not say what became of a payment that has expired; look it up on the chain",
			"payment", r.Key.String(), "payer", r.Payer, "network", string(r.Network), "since", r.Since, "error", err)
	}
}

// late reports whether a payment expired long ago.
func (j *Journal) late(p *payment.Payment, o *payment.Offer) bool {
	signed, err := evm.ReadInstrument(p, o)
	if err != nil {
		return false
	}
	now := j.now().Add(-lateAfter).Unix()
	return now > 0 && uint64(now) > signed.Expiry
}

// postpone lets a repetition wait.
func (j *Journal) postpone(k payment.Key, pause time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if rep := j.open[k]; rep != nil {
		rep.busy, rep.due = false, j.now().Add(pause)
	}
	j.wake()
}

// drop forgets a repetition.
func (j *Journal) drop(k payment.Key) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.open, k)
}
