package facilitatortest

import (
	"context"
	"fmt"
	"math/big"
	"slices"
	"sync"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A Fake is a facilitator in memory that believes every signature, by EIP-3009
// and by Permit2. It moves the money of a payment at most once, as a chain does.
// The zero value works.
type Fake struct {
	// Verifying and Settling are called first, and Settled once the money has
	// moved; what they return is the answer, unless it is nil. They may be nil.
	Verifying, Settling, Settled func(ctx context.Context) error

	// Contract is what Verify says about every payer's account.
	Contract bool

	// Funds is what Verify says that every payer could have paid.
	Funds *big.Int

	mu    sync.Mutex
	calls int                                 // guarded by mu: of Settle
	moved map[payment.Key]*payment.Settlement // guarded by mu
	asked map[payment.Key][]string            // guarded by mu: the charges that Settle was asked for, without repetitions
}

// Verify implements payment.Facilitator.
func (f *Fake) Verify(ctx context.Context, p *payment.Payment, o *payment.Offer) (*payment.Verification, error) {
	if err := hook(ctx, f.Verifying); err != nil {
		return nil, err
	}
	payer, key, err := read(p, o, o.Amount)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.moved[key] != nil {
		return nil, &payment.InvalidError{Reason: payment.EVMNonceUsed, Payer: payer}
	}
	return &payment.Verification{Payer: payer, Key: key, Contract: f.Contract, Funds: f.Funds}, nil
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
	payer, key, err := read(p, o, charge)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.moved == nil {
		f.moved, f.asked = map[payment.Key]*payment.Settlement{}, map[payment.Key][]string{}
	}
	if !slices.Contains(f.asked[key], charge.Units()) {
		f.asked[key] = append(f.asked[key], charge.Units())
	}
	if f.moved[key] == nil {
		f.moved[key] = &payment.Settlement{Network: o.Network(), Payer: payer, Amount: charge}
		if !charge.Zero() { // of nothing there is no transaction
			f.moved[key].Transaction = fmt.Sprintf("0x%064x", len(f.moved))
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

// Charges returns what Settle was asked to charge for a payment and did not
// refuse, in atomic units, each charge once.
func (f *Fake) Charges(k payment.Key) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked[k])
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

// read returns who pays, and with what, if the payment lets charge be moved.
func read(p *payment.Payment, o *payment.Offer, charge payment.Amount) (payer string, k payment.Key, err error) {
	signed, err := evm.ReadInstrument(p, o)
	if err != nil {
		return "", k, err
	}
	if o.Scheme == payment.Upto { // of exact the tests decide
		if err := signed.CheckCharge(charge.Big()); err != nil {
			return "", k, err
		}
	}
	id, _ := o.Network().ChainID()
	return signed.Payer.Hex(), signed.Key(id), nil
}
