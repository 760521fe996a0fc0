package facilitator

import (
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

var noon = time.Unix(1_790_000_000, 0)

// paying returns the quest of a payment of so many units, the n-th of one
// payer, at block 100.
func paying(n byte, units int64) *quest {
	return &quest{
		offer: payment.Offer{Scheme: payment.Exact}, key: payment.Key{n}, head: chain.Head{Number: 100, Hash: common.Hash{100}, Branch: 7},
		signed: &evm.Instrument{
			Payer: common.Address{1}, Payee: common.Address{2}, Token: common.Address{3}, Most: big.NewInt(units),
			Transfer: &evm.Transfer{},
		},
	}
}

// acquainted returns payers of whom one was seen with 1000 units at noon, when
// it paid 100.
func acquainted() *payers {
	p := &payers{}
	p.note(paying(0, 100), noon, performed{funds: big.NewInt(1000)})
	return p
}

func TestWhatWasSeenOfAPayerCountsWhile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		after  time.Duration
		change func(q *quest)
		counts bool
	}{
		"nothing has changed":          {0, func(*quest) {}, true},
		"it is not too long ago":       {seenFor - 1, func(*quest) {}, true},
		"it is too long ago":           {seenFor, func(*quest) {}, false},
		"there was a block":            {1, func(q *quest) { q.head.Number++ }, false},
		"the chain has gone back":      {1, func(q *quest) { q.head.Number-- }, false},
		"the chain has left a branch":  {1, func(q *quest) { q.head.Branch++ }, false},
		"it is covered to the last":    {1, func(q *quest) { q.signed.Most = big.NewInt(900) }, true},
		"it is not covered":            {1, func(q *quest) { q.signed.Most = big.NewInt(901) }, false},
		"somebody else pays":           {1, func(q *quest) { q.signed.Payer = common.Address{9} }, false},
		"somebody else is paid":        {1, func(q *quest) { q.signed.Payee = common.Address{9} }, false},
		"another token is paid":        {1, func(q *quest) { q.signed.Token = common.Address{9} }, false},
		"another scheme is used":       {1, func(q *quest) { q.offer.Scheme = payment.Upto }, false},
		"another contract is used":     {1, func(q *quest) { q.signed.Permit = &evm.SignedPermit{} }, false},
		"it is the same payment again": {1, func(q *quest) { q.key = payment.Key{0} }, false},
	} {
		q := paying(1, 100)
		c.change(q)
		if left, short := acquainted().presume(q, noon.Add(c.after)); (left != nil) != c.counts || short != "" {
			t.Errorf("%s: %v, %q", name, left, short)
		}
	}
}

func TestWhatAPayerHasCoversAllItsPaymentsTogether(t *testing.T) {
	t.Parallel()
	p := acquainted()
	good := 0
	for n := byte(1); n < 20; n++ {
		if left, _ := p.presume(paying(n, 100), noon); left != nil {
			if good++; left.Int64() != int64(1000-100*good) {
				t.Errorf("payment %d: %s are left", n, left)
			}
		}
	}
	if good != 9 { // beside the one that was asked about
		t.Errorf("%d payments of 100 were covered by 1000", good+1)
	}
	// To another recipient it is the same money.
	other := paying(30, 100)
	other.signed.Payee = common.Address{9}
	p.note(other, noon, performed{funds: big.NewInt(1000)})
	other.key = payment.Key{31}
	if left, _ := p.presume(other, noon); left != nil {
		t.Errorf("%s are left for another recipient", left)
	}
}

func TestSettledPaymentsCountUntilTheyMustHaveBeenSeen(t *testing.T) {
	t.Parallel()
	p := &payers{}
	first := paying(0, 600)
	p.note(first, noon, performed{funds: big.NewInt(1000)})
	p.settling(first, noon)
	p.settled(first, noon)
	var at time.Time
	for _, c := range []struct {
		after time.Duration
		good  bool
	}{{seenFor - 1, false}, {seenFor, true}} {
		at = noon.Add(c.after)
		asked := paying(1, 0) // what it shows is the balance without the first payment
		p.note(asked, at, performed{funds: big.NewInt(500)})
		if left, _ := p.presume(paying(2, 400), at); (left != nil) != c.good {
			t.Errorf("%s after the settlement: %v", c.after, left)
		}
	}
	// Of one that is never heard of, that takes longer.
	p = &payers{}
	p.note(first, noon, performed{funds: big.NewInt(1000)})
	for _, c := range []struct {
		after time.Duration
		good  bool
	}{{promisedFor - 1, false}, {promisedFor, true}} {
		at = noon.Add(c.after)
		p.note(paying(1, 0), at, performed{funds: big.NewInt(1000)})
		if left, _ := p.presume(paying(2, 500), at); (left != nil) != c.good {
			t.Errorf("%s after the verification: %v", c.after, left)
		}
	}
}

func TestPaymentThatNobodyVerifiedIsHeldAgainstItsPayer(t *testing.T) {
	t.Parallel()
	p := acquainted()
	p.settling(paying(1, 800), noon)
	if left, _ := p.presume(paying(2, 200), noon); left != nil {
		t.Errorf("%s are left of 1000 beside 900", left)
	}
}

func TestPayerIsDoubtedForAWhile(t *testing.T) {
	t.Parallel()
	p := acquainted()
	p.doubt(paying(0, 100), noon)
	for _, c := range []struct {
		after time.Duration
		good  bool
	}{{0, false}, {doubtedFor - 1, false}, {doubtedFor, true}} {
		at := noon.Add(c.after)
		p.note(paying(1, 0), at, performed{funds: big.NewInt(1000)})
		if left, _ := p.presume(paying(2, 100), at); (left != nil) != c.good {
			t.Errorf("after %s: %v", c.after, left)
		}
	}
}

func TestPayerWithCodeIsNotKnown(t *testing.T) {
	t.Parallel()
	p := acquainted()
	p.note(paying(1, 900), noon, performed{contract: true, funds: big.NewInt(1000)})
	if left, _ := p.presume(paying(2, 1), noon); left != nil {
		t.Error("it is taken for a plain account")
	}
	// What it has promised meanwhile still counts when the code is gone.
	p.note(paying(3, 0), noon, performed{funds: big.NewInt(1000)})
	if left, _ := p.presume(paying(4, 1), noon); left != nil {
		t.Errorf("%s are left", left)
	}
}

func TestWhoHasTooLittleIsRefusedUntilTheNextBlock(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		after  time.Duration
		change func(q *quest)
		short  bool
	}{
		"at once":              {0, func(*quest) {}, true},
		"later":                {brokeFor, func(*quest) {}, false},
		"after another block":  {0, func(q *quest) { q.head.Hash = common.Hash{101} }, false},
		"what it has":          {0, func(q *quest) { q.signed.Most = big.NewInt(99) }, false},
		"somebody else's":      {0, func(q *quest) { q.signed.Payer = common.Address{9} }, false},
		"by another contract":  {0, func(q *quest) { q.signed.Permit = &evm.SignedPermit{} }, false},
		"with an other payee ": {0, func(q *quest) { q.signed.Payee = common.Address{9} }, false},
	} {
		p := &payers{}
		p.lacks(paying(0, 100), noon, big.NewInt(99), payment.EVMInsufficientBalance)
		q := paying(1, 100)
		c.change(q)
		left, short := p.presume(q, noon.Add(c.after))
		if left != nil || (short == payment.EVMInsufficientBalance) != c.short {
			t.Errorf("%s: %v, %q", name, left, short)
		}
	}
}

// However many payers and payments there are, memory is bounded, and what is
// not remembered is not taken to be covered.
func TestPayersAreBounded(t *testing.T) {
	t.Parallel()
	p := &payers{}
	for i := range maxPayers + 10 {
		q := paying(0, 100)
		q.signed.Payer = common.BigToAddress(big.NewInt(int64(i) + 1000))
		p.note(q, noon, performed{funds: big.NewInt(1000)})
	}
	if len(p.known) != maxPayers {
		t.Errorf("%d payers are known", len(p.known))
	}
	later := noon.Add(promisedFor)
	p.note(paying(1, 100), later, performed{funds: big.NewInt(1000)})
	if left, _ := p.presume(paying(2, 100), later); left == nil || len(p.known) != 1 {
		t.Errorf("no room is made: %d payers", len(p.known))
	}

	p.promises = maxPromises // as if others had made them
	if left, _ := p.presume(paying(3, 100), later); left != nil {
		t.Error("a payment is good that cannot be remembered")
	}
	p.promises = 2
	if left, _ := p.presume(paying(3, 100), later); left != nil {
		t.Error("what was seen counts although not all is held against it")
	}
}
