package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tollgate402/tollgate/payment"
)

// A Pass is what is remembered of the pass that a payment has bought.
type Pass struct {
	Used    uint32 `json:"used"`              // calls
	Revoked bool   `json:"revoked,omitempty"` // for good
}

var (
	// ErrPassRevoked says that a pass was revoked.
	ErrPassRevoked = errors.New("ledger: the pass was revoked")

	// ErrPassUsedUp says that all calls of a pass have been made.
	ErrPassUsedUp = errors.New("ledger: the pass is used up")
)

func passKey(k payment.Key) Key { return Key("pass/" + k.String()) }

// Pass returns what is remembered of the pass of a payment. Of one that was
// neither counted nor revoked nothing is.
func (l *Ledger) Pass(ctx context.Context, k payment.Key) (Pass, error) {
	p, _, err := l.pass(ctx, k)
	return p, err
}

func (l *Ledger) pass(ctx context.Context, k payment.Key) (Pass, uint64, error) {
	e, err := l.store.Get(ctx, passKey(k))
	if errors.Is(err, ErrNotFound) {
		return Pass{}, Absent, nil
	}
	if err != nil {
		return Pass{}, 0, err
	}
	var p Pass
	if err := json.Unmarshal(e.Value, &p); err != nil {
		return Pass{}, 0, fmt.Errorf("ledger: reading %s: %w", e.Key, err)
	}
	return p, e.Version, nil
}

// UsePass counts one more call of a pass that is good for most of them, and
// returns how many there were, this one included. It returns ErrPassUsedUp or
// ErrPassRevoked where there must be none. A call that it has counted is on
// disk, and counts for every process that shares the store.
func (l *Ledger) UsePass(ctx context.Context, k payment.Key, most uint32) (used uint32, err error) {
	err = l.changePass(ctx, k, func(p *Pass) error {
		switch {
		case p.Revoked:
			return ErrPassRevoked
		case p.Used >= most:
			return ErrPassUsedUp
		}
		p.Used++
		used = p.Used
		return nil
	})
	return used, err
}

// ReturnPass takes back one call that UsePass has counted.
func (l *Ledger) ReturnPass(ctx context.Context, k payment.Key) error {
	return l.changePass(ctx, k, func(p *Pass) error {
		if p.Used == 0 {
			return errNothingNew
		}
		p.Used--
		return nil
	})
}

// RevokePass ends the pass of a payment for good, whether there is one or not.
func (l *Ledger) RevokePass(ctx context.Context, k payment.Key) error {
	return l.changePass(ctx, k, func(p *Pass) error {
		if p.Revoked {
			return errNothingNew
		}
		p.Revoked = true
		return nil
	})
}

// changePass changes what is remembered of a pass. change is called again if
// somebody else was faster.
func (l *Ledger) changePass(ctx context.Context, k payment.Key, change func(*Pass) error) error {
	defer l.writing.lock(k)() // so that the callers of one process do not overtake each other again and again
	for {
		p, version, err := l.pass(ctx, k)
		if err != nil {
			return err
		}
		err = change(&p)
		if errors.Is(err, errNothingNew) {
			return nil
		}
		if err != nil {
			return err
		}
		doc, err := json.Marshal(p)
		if err != nil {
			return fmt.Errorf("ledger: writing the pass of payment %s: %w", k, err)
		}
		err = l.store.Commit(ctx, Write{Key: passKey(k), If: version, Value: doc})
		if !conflict(err) {
			return err
		}
	}
}
