package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/tollgate402/tollgate/payment"
)

// A NamedError says that a name belongs to another payment, which has moved
// money or still may.
type NamedError struct{ Record Record }

func (e *NamedError) Error() string {
	return fmt.Sprintf("the name is that of payment %s, which is %s", e.Record.Key, e.Record.State)
}

func nameKey(name string) Key { return Key("name/" + name) }

// Named returns a *NamedError if a name belongs to another payment than k.
// It is a look ahead: what counts is the answer of Claim.
func (l *Ledger) Named(ctx context.Context, name string, k payment.Key) error {
	_, err := l.naming(ctx, &Record{Key: k, Name: name})
	return err
}

// naming returns the write that gives a payment its name, for the commit that
// claims it. A name goes over to another payment only from one that was
// released, or that is dead: nothing was paid under it then. The condition of
// the write keeps the former from being claimed again by that name meanwhile.
func (l *Ledger) naming(ctx context.Context, r *Record) ([]Write, error) {
	if r.Name == "" {
		return nil, nil
	}
	w := Write{Key: nameKey(r.Name), If: Absent, Value: []byte(r.Key.String())}
	e, err := l.store.Get(ctx, w.Key)
	if errors.Is(err, ErrNotFound) {
		return []Write{w}, nil
	}
	if err != nil {
		return nil, err
	}
	w.If = e.Version
	k, err := parseKey(string(e.Value))
	if err != nil || k == r.Key {
		return []Write{w}, err
	}
	other, err := l.Get(ctx, k)
	if err != nil {
		return nil, err
	}
	if other.State != Dead && (other.State != Released || other.Delivery != Undelivered) {
		return nil, &NamedError{other}
	}
	return []Write{w}, nil
}
