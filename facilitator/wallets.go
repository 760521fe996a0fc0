package facilitator

import (
	"context"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

const (
	// plainFor is how long an account is taken to have no code once that was
	// seen. A wallet that is deployed meanwhile is refused until then.
	plainFor = 10 * time.Second

	// maxPlain bounds how many such accounts are remembered.
	maxPlain = 1 << 14

	// lookups is how many accounts may be looked at within a second because
	// their key has not signed. Anybody can make up such payments.
	lookups = 50
)

// Plain accounts are those that were seen to have no code, so that forged
// signatures for them cost nothing. Its zero value is ready for use.
type plainAccounts struct {
	mu     sync.Mutex
	seen   map[common.Address]time.Time // guarded by mu
	second time.Time                    // guarded by mu: when the present second began
	looked int                          // guarded by mu: how many accounts were looked at in it
}

// has reports whether an account had no code a moment ago.
func (p *plainAccounts) has(a common.Address, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.seen[a]
	return ok && now.Sub(at) < plainFor
}

// look reports whether another account may be looked at, and counts it.
func (p *plainAccounts) look(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.second) >= time.Second {
		p.second, p.looked = now, 0
	}
	p.looked++
	return p.looked <= lookups
}

func (p *plainAccounts) note(a common.Address, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == nil || len(p.seen) >= maxPlain {
		p.seen = map[common.Address]time.Time{}
	}
	p.seen[a] = now
}

// confirmWallet makes sure, of a payment that the payer's key has not signed,
// that the payer has code which may accept it. Of payments that the key has
// signed it asks nothing.
func (q *quest) confirmWallet(ctx context.Context, now time.Time) error {
	if !q.wallet {
		return nil
	}
	payer := q.signed.Payer
	if !q.plain.has(payer, now) {
		if !q.plain.look(now) {
			return &payment.UnavailableError{Doing: "looking whether the payer is a contract: too many others are looked at", Payer: payer.Hex()}
		}
		code := &chain.Code{Address: payer}
		if err := q.Chain.Ask(ctx, code); err != nil {
			return q.unavailable("reading the payer's code", err)
		}
		if code.Err != nil {
			return q.unavailable("reading the payer's code", code.Err)
		}
		if len(code.Code) > 0 {
			return nil
		}
		q.plain.note(payer, now)
	}
	_, err := q.signed.Way(evm.Account{}, true)
	return err
}
