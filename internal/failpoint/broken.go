//go:build failpoint

package failpoint

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A hasty facilitator takes an unknown outcome for a failure.
type hasty struct{ payment.Facilitator }

func (h *hasty) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	s, err := h.Facilitator.Settle(ctx, p, o, charge)
	if _, unknown := errors.AsType[*payment.UnavailableError](err); unknown {
		return nil, payment.Invalid(payment.EVMTransactionFailed, "it took too long")
	}
	return s, err
}

// forgets is how long what a forgetful store acknowledges is in memory only.
const forgets = time.Second

// A forgetful store acknowledges what is written about payments before it is
// on disk. Everything else, such as the lanes, is as durable as ever.
type forgetful struct {
	ledger.Store

	mu   sync.Mutex
	kept map[ledger.Key]ledger.Entry // guarded by mu: what was acknowledged; Version 0 is deleted
	gone bool                        // guarded by mu: Close was called
}

func newForgetful(s ledger.Store) *forgetful {
	return &forgetful{Store: s, kept: map[ledger.Key]ledger.Entry{}}
}

func (f *forgetful) Get(ctx context.Context, k ledger.Key) (ledger.Entry, error) {
	f.mu.Lock()
	e, kept := f.kept[k]
	f.mu.Unlock()
	switch {
	case !kept:
		return f.Store.Get(ctx, k)
	case e.Version == 0:
		return ledger.Entry{}, ledger.ErrNotFound
	}
	return e, nil
}

func (f *forgetful) Commit(ctx context.Context, writes ...ledger.Write) error {
	var payments, rest []ledger.Write
	for _, w := range writes {
		if strings.HasPrefix(string(w.Key), "pay/") || strings.HasPrefix(string(w.Key), "open/") {
			payments = append(payments, w)
		} else {
			rest = append(rest, w)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	changes, err := ledger.Decide(payments, func(k ledger.Key) (ledger.Entry, error) {
		if e, kept := f.kept[k]; kept {
			return e, nil
		}
		e, err := f.Store.Get(ctx, k)
		if errors.Is(err, ledger.ErrNotFound) {
			return ledger.Entry{}, nil
		}
		return e, err
	})
	if err != nil {
		return err
	}
	if err := f.Store.Commit(ctx, rest...); err != nil {
		return err
	}
	for _, e := range changes {
		f.kept[e.Key] = e
	}
	time.AfterFunc(forgets, func() { f.save(changes) })
	return nil
}

// Later does not wait for the disk in any build; here it makes no difference.
func (f *forgetful) Later(writes ...ledger.Write) {
	_ = f.Commit(context.Background(), writes...) // lost where a condition does not hold
}

// save writes what a commit of a while ago changed, as it is now, and in one
// commit: half of one is what no disk leaves behind, and what a ledger refuses
// to start on.
func (f *forgetful) save(changes []ledger.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone || len(changes) == 0 {
		return
	}
	writes := make([]ledger.Write, 0, len(changes))
	for _, e := range changes {
		writes = append(writes, disk(f.kept[e.Key]))
	}
	_ = f.Store.Commit(context.Background(), writes...) // a build that forgets may forget this too
}

func disk(e ledger.Entry) ledger.Write {
	w := ledger.Write{Key: e.Key, If: ledger.AnyVersion, Value: e.Value}
	if e.Version == 0 {
		w.Value = nil
	}
	return w
}

// Close saves what is left.
func (f *forgetful) Close() error {
	f.mu.Lock()
	f.gone = true
	for _, e := range f.kept {
		_ = f.Store.Commit(context.Background(), disk(e)) // as in save; nothing is killed on the way
	}
	f.mu.Unlock()
	return f.Store.Close()
}
