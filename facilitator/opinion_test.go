package facilitator_test

import (
	"errors"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// early returns a payment that is settled before anything is handed over, as
// the till and the API say.
func early(p *payment.Payment) *payment.Payment {
	p.SettledFirst = true
	return p
}

// stopped returns a world whose facilitator's clock stands still, however slow
// the machine is, until pass moves it.
func stopped(t *testing.T) (w *world, pass func(time.Duration)) {
	t.Helper()
	w = newWorld(t)
	return w, w.stop()
}

// stop has the facilitator's clock stand still.
func (w *world) stop() (pass func(time.Duration)) {
	began, passed := time.Now(), new(atomic.Int64)
	facilitator.SetClock(w.embedded, func() time.Time { return began.Add(time.Duration(passed.Load())) })
	return func(d time.Duration) { passed.Add(int64(d)) }
}

// meet makes the world's payer known.
func (w *world) meet(o *payment.Offer, pay func() *payment.Payment) {
	w.t.Helper()
	for range 2 { // the first time the contracts are asked, too
		if _, err := w.embedded.Verify(soon(w.t), pay(), o); err != nil {
			w.t.Fatal(err)
		}
	}
}

// verdict verifies a payment and returns how many calls that took.
func (w *world) verdict(p *payment.Payment, o *payment.Offer) (v *payment.Verification, calls uint64, err error) {
	w.t.Helper()
	before := w.node.Calls()
	v, err = w.embedded.Verify(soon(w.t), p, o)
	return v, w.node.Calls() - before, err
}

// A known payer's new payment costs no call, by EIP-3009 and by Permit2, and is
// settled like any other: what settles it is simulated first.
func TestKnownPayersNewPaymentCostsNoCall(t *testing.T) {
	t.Parallel()
	w, _ := stopped(t)
	w.approve(w.payer)
	permit2 := w.byPermit2(payment.Exact)
	earned := int64(0)
	for name, c := range map[string]struct {
		o   *payment.Offer
		pay func() *payment.Payment
	}{
		"EIP-3009": {&w.offer, w.pay},
		"Permit2":  {&permit2, func() *payment.Payment { return w.permitted(&permit2) }},
	} {
		w.meet(c.o, c.pay)
		p := early(c.pay())
		for range 2 { // the second time it is the same payment after the same block
			v, calls, err := w.verdict(p, c.o)
			if err != nil || v.Contract || v.Payer != w.payer.Address.Hex() || v.Funds == nil {
				t.Fatalf("%s: %+v, %v", name, v, err)
			}
			if calls != 0 {
				t.Errorf("%s: %d calls", name, calls)
			}
		}
		// What is handed over on credit is asked about.
		p.SettledFirst = false
		if _, calls, err := w.verdict(p, c.o); err != nil || calls != 1 {
			t.Errorf("%s, on credit: %d calls, %v", name, calls, err)
		}
		q := early(c.pay())
		if _, _, err := w.verdict(q, c.o); err != nil {
			t.Fatal(err)
		}
		if _, err := w.embedded.Settle(soon(t), q, c.o, c.o.Amount); err != nil {
			t.Fatal(err)
		}
		earned += 1000
		w.wantEarned(earned)
		w.sees()
		// What is used is not new, whoever pays.
		if _, _, err := w.verdict(early(c.pay()), c.o); err != nil {
			t.Fatal(err)
		}
		_, _, err := w.verdict(early(q), c.o)
		if invalid, ok := errors.AsType[*payment.InvalidError](err); !ok || !invalid.NonceUsed() {
			t.Errorf("%s, again: %v", name, err)
		}
	}
}

// What the ledger knows is not new, even to a facilitator that has just begun.
func TestPaymentInTheLedgerIsAskedAbout(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	used := w.pay()
	if _, err := w.embedded.Settle(soon(t), used, &w.offer, w.offer.Amount); err != nil {
		t.Fatal(err)
	}
	w.sees()
	w.embedded = w.embed(facilitatortest.USDC(t))
	w.stop()
	w.meet(&w.offer, w.pay)
	_, _, err := w.verdict(early(used), &w.offer)
	wantInvalid(t, err, payment.EVMNonceUsed)
}

func TestReorgAndOldHeadsMakeAPayerAStranger(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(w *world, pass func(time.Duration)) error{
		"reorg":           func(w *world, _ func(time.Duration)) error { return w.chain.Reorg(1) },
		"many blocks":     func(w *world, _ func(time.Duration)) error { return w.chain.Mine(9) },
		"too long a time": func(_ *world, pass func(time.Duration)) error { pass(5 * time.Second); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, pass := stopped(t)
			if err := w.chain.Mine(2); err != nil { // so that there is something to undo
				t.Fatal(err)
			}
			w.sees()
			w.meet(&w.offer, w.pay)
			if err := change(w, pass); err != nil {
				t.Fatal(err)
			}
			w.sees()
			if _, calls, err := w.verdict(early(w.pay()), &w.offer); err != nil || calls != 1 {
				t.Errorf("%d calls, %v", calls, err)
			}
		})
	}
}

// Whatever a payer does in a block after it was seen, its next payment is asked
// about, and the one that was found good is judged again before anything is
// sent: nothing reaches the chain, and nothing is released.
func TestSettlementJudgesAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		permit2 bool
		change  func(w *world)
		settle  payment.Reason // of the payment that was found good
		verify  payment.Reason // of the next one
	}{
		"spent elsewhere": {false, func(w *world) {
			w.call(w.payer, move(w.chain.Account("agent").Address, w.chain.USDCBalance(w.payer.Address)))
		}, payment.EVMSimulationFailed, payment.EVMInsufficientBalance},
		"allowance revoked": {true, func(w *world) {
			data, err := devchain.TestUSDC().ABI.Pack("approve", evm.Permit2, new(big.Int))
			if err != nil {
				w.t.Fatal(err)
			}
			w.call(w.payer, data)
		}, payment.Permit2SimulationFailed, payment.Permit2AllowanceRequired},
		"delegated": {false, func(w *world) {
			delegate := common.HexToAddress("0xde1e")
			if err := w.chain.SetCode(w.payer.Address, append([]byte{0xef, 0x01, 0x00}, delegate[:]...), nil); err != nil {
				w.t.Fatal(err)
			}
			w.sees()
		}, payment.EVMSimulationFailed, payment.EVMSimulationFailed},
		"blocked": {false, func(w *world) {
			if err := w.chain.SetBlacklisted(w.payer.Address, true); err != nil {
				w.t.Fatal(err)
			}
			w.sees()
		}, payment.EVMSimulationFailed, payment.EVMSimulationFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, _ := stopped(t)
			o, pay := w.offer, w.pay
			if c.permit2 {
				w.approve(w.payer)
				o = w.byPermit2(payment.Exact)
				pay = func() *payment.Payment { return w.permitted(&o) }
			}
			w.meet(&o, pay)
			p := early(pay())
			_, calls, err := w.verdict(p, &o)
			if err != nil || calls != 0 {
				t.Fatalf("%d calls, %v", calls, err)
			}
			c.change(w)
			if _, calls, err = w.verdict(early(pay()), &o); calls == 0 {
				t.Error("what was seen before the last block counts")
			}
			wantInvalid(t, err, c.verify)
			lane := w.chain.Account("facilitator").Address
			sent, err := w.chain.Client().NonceAt(t.Context(), lane, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.embedded.Settle(soon(t), p, &o, o.Amount)
			invalid, ok := errors.AsType[*payment.InvalidError](err)
			if !ok || invalid.Reason != c.settle {
				t.Errorf("settled: %v, want %s", err, c.settle)
			}
			id, err := facilitator.Identify(p, &o)
			if err != nil {
				t.Fatal(err)
			}
			r, err := w.ledger.Get(t.Context(), id.Key)
			if err != nil {
				t.Fatal(err)
			}
			if r.State != ledger.Released || len(r.Slots) > 0 {
				t.Errorf("it is %s, in %d transactions", r.State, len(r.Slots))
			}
			if now, err := w.chain.Client().PendingNonceAt(t.Context(), lane); err != nil || now != sent {
				t.Errorf("the lane has sent %d transactions, %v", now-sent, err)
			}
			w.wantEarned(0)
		})
	}
}

// Of two payments that one balance does not cover together, the second is asked
// about, and only one moves money.
func TestTwoPaymentsAgainstOneBalance(t *testing.T) {
	t.Parallel()
	w, _ := stopped(t)
	agent := w.chain.Account("agent").Address
	w.call(w.payer, move(agent, new(big.Int).Sub(w.chain.USDCBalance(w.payer.Address), big.NewInt(1500))))
	a, b := early(w.pay()), early(w.pay())
	if _, _, err := w.verdict(a, &w.offer); err != nil { // asks the contracts
		t.Fatal(err)
	}
	if _, calls, err := w.verdict(b, &w.offer); err != nil || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
	if _, err := w.embedded.Settle(soon(t), a, &w.offer, w.offer.Amount); err != nil {
		t.Fatal(err)
	}
	w.sees()
	_, err := w.embedded.Settle(soon(t), b, &w.offer, w.offer.Amount)
	wantInvalid(t, err, payment.EVMSimulationFailed)
	w.wantEarned(1000)
}

func TestManyNewPaymentsOfOnePayerAreOneCall(t *testing.T) {
	t.Parallel()
	w, _ := stopped(t)
	w.meet(&w.offer, w.pay) // asks the contracts
	if err := w.chain.Mine(9); err != nil {
		t.Fatal(err)
	}
	w.sees()
	payments := make([]*payment.Payment, 32)
	for i := range payments {
		payments[i] = early(w.pay())
	}
	before := w.node.Calls()
	var group sync.WaitGroup
	for _, p := range payments {
		group.Go(func() {
			if _, err := w.embedded.Verify(soon(t), p, &w.offer); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if calls := w.node.Calls() - before; calls != 1 {
		t.Errorf("%d calls", calls)
	}
}

// Who has too little is asked about once for a while, with one payment or with
// several, and what is sent meanwhile counts with the next block.
func TestRefusalsAreRememberedBriefly(t *testing.T) {
	t.Parallel()
	w, pass := stopped(t)
	agent := w.chain.Account("agent")
	all := w.chain.USDCBalance(w.payer.Address)
	w.call(w.payer, move(agent.Address, all))
	p := early(w.pay())
	_, _, err := w.verdict(p, &w.offer)
	wantInvalid(t, err, payment.EVMInsufficientBalance)
	other := early(w.pay())
	for _, again := range []*payment.Payment{p, other, other} {
		_, calls, err := w.verdict(again, &w.offer)
		if invalid := wantInvalid(t, err, payment.EVMInsufficientBalance); invalid.Payer != w.payer.Address.Hex() {
			t.Errorf("payer %q", invalid.Payer)
		}
		if calls != 0 {
			t.Errorf("%d calls", calls)
		}
	}
	pass(time.Second)
	if _, calls, err := w.verdict(p, &w.offer); calls == 0 {
		t.Errorf("it is refused for long: %v", err)
	}
	w.call(agent, move(w.payer.Address, all))
	for _, again := range []*payment.Payment{p, other} {
		if _, _, err := w.verdict(again, &w.offer); err != nil {
			t.Error(err)
		}
	}
}

// A node that is down says nothing about the payer, and nothing is remembered
// of it.
func TestQuestionWithoutAnAnswerIsNotRemembered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := early(w.pay())
	if err := w.chain.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, _, err := w.verdict(p, &w.offer)
		wantUnavailable(t, err, false)
	}
}
