package facilitatortest

import (
	"context"
	"fmt"
	"sync"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A Fake is a facilitator in memory that believes every signature. It moves
// the money of a payment at most once, as a chain does. The zero value works.
type Fake struct {
	// Verifying and Settling are called first, and Settled once the money has
	// moved; what they return is the answer, unless it is nil. They may be nil.
	Verifying, Settling, Settled func(ctx context.Context) error

	// Contract is what Verify says about every payer's account.
	Contract bool

	mu    sync.Mutex
	calls int                                 // guarded by mu: of Settle
	moved map[payment.Key]*payment.Settlement // guarded by mu
}

// Verify implements payment.Facilitator.
func (f *Fake) Verify(ctx context.Context, p *payment.Payment, o *payment.Offer) (*payment.Verification, error) {
	if err := hook(ctx, f.Verifying); err != nil {
		return nil, err
	}
	t, key, err := read(p, o)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.moved[key] != nil {
		return nil, &payment.InvalidError{Reason: payment.EVMNonceUsed, Payer: t.From.Hex()}
	}
	return &payment.Verification{Payer: t.From.Hex(), Key: key, Contract: f.Contract}, nil
}

// Settle implements payment.Facilitator.
func (f *Fake) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	f.mu.Lock()
	f.calls++
	f.mu.Unlock()
	if err := hook(ctx, f.Settling); err != nil {
		return nil, err
	}
	s, err := f.move(p, o, charge)
	if err != nil {
		return nil, err
	}
	return s, hook(ctx, f.Settled)
}

func (f *Fake) move(p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	t, key, err := read(p, o)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.moved == nil {
		f.moved = map[payment.Key]*payment.Settlement{}
	}
	if f.moved[key] == nil {
		f.moved[key] = &payment.Settlement{
			Network: o.Network(), Transaction: fmt.Sprintf("0x%064x", len(f.moved)+1), Payer: t.From.Hex(), Amount: charge,
		}
	}
	return f.moved[key], nil
}

// Supported implements payment.Facilitator.
func (f *Fake) Supported(context.Context) (*payment.Supported, error) {
	return &payment.Supported{Kinds: []payment.Kind{
		{Version: payment.V1, Scheme: payment.Exact, Network: payment.EVM(84532)},
		{Version: payment.V2, Scheme: payment.Exact, Network: payment.EVM(84532)},
	}}, nil
}

// Transfers returns how many payments have moved money.
func (f *Fake) Transfers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.moved)
}

// Calls returns how often Settle was called.
func (f *Fake) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func hook(ctx context.Context, f func(context.Context) error) error {
	if f == nil {
		return nil
	}
	return f(ctx)
}

func read(p *payment.Payment, o *payment.Offer) (*evm.Transfer, payment.Key, error) {
	t, err := evm.Decode(p.Payload)
	if err != nil {
		return nil, payment.Key{}, err
	}
	id, _ := o.Network().ChainID()
	return t, t.Key(id, common.HexToAddress(o.Amount.Token().Address)), nil
}
