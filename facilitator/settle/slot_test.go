package settle_test

import (
	"bytes"
	"context"
	"fmt"
	"math/big"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// nonce returns how many transactions of the lane are in the chain.
func (w *world) nonce() uint64 {
	w.t.Helper()
	n, err := w.node.NonceAt(w.t.Context(), w.engine.Lane())
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) slots() []ledger.Slot {
	w.t.Helper()
	slots, err := w.ledger.Slots(w.t.Context(), payment.EVM(84532))
	if err != nil {
		w.t.Fatal(err)
	}
	return slots
}

// drain lets time pass until every nonce that was taken is used for good.
func (w *world) drain() {
	w.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); len(w.slots()) > 0; time.Sleep(5 * time.Millisecond) {
		w.clock.Advance(5 * time.Second)
		w.mine(1)
		if time.Now().After(deadline) {
			w.t.Fatalf("%d nonces are still open: %+v", len(w.slots()), w.slots())
		}
	}
	for _, address := range w.engine.Lanes() {
		lane, _, err := w.ledger.Lane(w.t.Context(), payment.EVM(84532), address.Hex())
		if err != nil {
			w.t.Fatal(err)
		}
		n, err := w.node.NonceAt(w.t.Context(), address)
		if err != nil || n != lane.Next {
			w.t.Errorf("lane %s has taken %d nonces and used %d, %v", address, lane.Next, n, err)
		}
	}
}

// unsent claims a payment and takes a nonce for it, but nothing is sent: the
// process ends in between.
func (w *world) unsent(transfer *evm.Transfer) {
	w.t.Helper()
	w.node.mute.Store(true)
	w.abandon(w.claim(transfer, payment.Included), func() bool { return w.record(transfer).State == ledger.Intent })
	w.engine.Stop()
	w.node.mute.Store(false)
}

func TestALaneGoesOnAfterAPaymentThatCanNotBeSettledAnyMore(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(w *world, transfer *evm.Transfer){
		"cancelled": func(w *world, transfer *evm.Transfer) { w.sendMined(w.payer, w.cancelling(transfer)) },
		"front-run": func(w *world, transfer *evm.Transfer) {
			w.sendMined(w.chain.Account("facilitator2"), transfer.Calldata())
		},
		"expired":    func(w *world, _ *evm.Transfer) { w.expire(2 * time.Hour) },
		"drained":    func(w *world, _ *evm.Transfer) { w.sendMined(w.payer, w.draining()) },
		"unharmed":   func(w *world, _ *evm.Transfer) {},
		"long since": func(w *world, _ *evm.Transfer) { w.expire(2 * time.Hour); w.mine(8) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			transfer := w.authorize()
			w.unsent(transfer)
			end(w, transfer)
			w.sees()
			w.engine = w.start(w.node)
			w.drain()
			fills := 0
			for _, raw := range w.node.transactions() {
				var tx types.Transaction
				if err := tx.UnmarshalBinary(raw); err != nil {
					t.Fatal(err)
				}
				if len(tx.Data()) == 0 && *tx.To() == w.engine.Lane() && tx.Value().Sign() == 0 && tx.Gas() == 21000 {
					fills++
				}
			}
			if useless := name != "drained" && name != "unharmed"; useless != (fills > 0) {
				t.Errorf("%d fills", fills)
			}
			before := w.earned()
			w.payer = w.chain.Account("payer2")
			if _, err := w.settle(w.authorize(), payment.Included); err != nil {
				t.Fatal(err)
			}
			w.wantEarned(before + 1000)
		})
	}
}

func TestAPaymentThatWasNotMinedIsTriedAgainOnceItCanBe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	var back common.Hash
	w.node.simulated = once(func() {
		w.chain.Pause()
		back = w.chain.Snapshot()
		w.send(w.payer, w.draining())
	})
	w.abandon(w.claim(transfer, payment.Included), w.sent)
	w.awaitState(transfer, ledger.Sent)
	w.mine(1) // it reverts: the payer has nothing
	w.awaitState(transfer, ledger.Sent)
	if back == (common.Hash{}) || w.nonce() != 1 {
		t.Fatalf("nonce %d", w.nonce())
	}
	w.sees()
	amount := w.chain.USDCBalance(w.chain.Account("agent").Address)
	w.send(w.chain.Account("agent"), paying(w.payer.Address, amount))
	for deadline := time.Now().Add(20 * time.Second); !w.record(transfer).State.Paid(); time.Sleep(5 * time.Millisecond) {
		w.clock.Advance(5 * time.Second)
		w.mine(1)
		if time.Now().After(deadline) {
			t.Fatalf("record %+v", w.record(transfer))
		}
	}
	if r := w.record(transfer); len(r.Slots) != 2 || r.Slots[1].Nonce != 1 {
		t.Errorf("slots %+v", r.Slots)
	}
	w.wantEarned(1000)
	w.drain()
}

// paying returns the call that transfers units to an account.
func paying(to common.Address, units *big.Int) []byte {
	data := append(common.FromHex("0xa9059cbb"), common.LeftPadBytes(to[:], 32)...)
	return append(data, common.LeftPadBytes(units.Bytes(), 32)...)
}

func TestAPaymentThatFailsAgainAndAgainTakesFewNonces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	transfer := w.authorize()
	w.node.simulated = once(func() { w.sendMined(w.payer, w.draining()) })
	w.abandon(w.claim(transfer, payment.Included), func() bool { return w.nonce() == 1 })
	w.chain.Pause()
	for range 10 {
		w.clock.Advance(5 * time.Second)
		w.mine(1)
		w.sees()
	}
	if r := w.record(transfer); len(r.Slots) != 1 || w.nonce() != 1 {
		t.Errorf("nonce %d, record %+v", w.nonce(), r)
	}
	w.drain()
}

func TestAFeeSpikeIsFollowedByReplacementsThatAreStoredFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.chain.Pause()
	w.node.broadcast = func(ctx context.Context, raw []byte) error {
		slots, err := ledger.New(w.history, "two", time.Now).Slots(ctx, payment.EVM(84532))
		if err != nil || len(slots) != 1 || !bytes.Equal(slots[0].Latest().Raw, raw) {
			t.Errorf("when it was broadcast the ledger held %+v, %v", slots, err)
		}
		return w.node.Client.Broadcast(ctx, raw)
	}
	transfer := w.authorize()
	w.abandon(w.claim(transfer, payment.Included), w.sent)
	for i, times := range []int64{50, 50 * 50} {
		w.node.spike.Store(times)
		for deadline := time.Now().Add(30 * time.Second); len(w.node.transactions()) < i+2; time.Sleep(20 * time.Millisecond) {
			w.clock.Advance(time.Second)
			if time.Now().After(deadline) {
				t.Fatalf("%d transactions after a spike of %d", len(w.node.transactions()), times)
			}
		}
	}
	var last *types.Transaction
	for _, raw := range w.node.transactions() {
		tx := new(types.Transaction)
		if err := tx.UnmarshalBinary(raw); err != nil {
			t.Fatal(err)
		}
		if last != nil {
			if tx.Nonce() != last.Nonce() || *tx.To() != *last.To() || !bytes.Equal(tx.Data(), last.Data()) || tx.Gas() < last.Gas() {
				t.Errorf("the replacement does something else")
			}
			for _, caps := range [][2]*big.Int{{last.GasFeeCap(), tx.GasFeeCap()}, {last.GasTipCap(), tx.GasTipCap()}} {
				if tenth := new(big.Int).Div(new(big.Int).Mul(caps[0], big.NewInt(110)), big.NewInt(100)); caps[1].Cmp(tenth) < 0 {
					t.Errorf("a cap rises from %s to %s only", caps[0], caps[1])
				}
			}
		}
		last = tx
	}
	w.node.spike.Store(0)
	w.mineUntil(transfer, ledger.Settled, ledger.Archived)
	w.wantEarned(1000)
	w.drain()
}

func TestReplacementsStayUnderTheCeiling(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *settle.Config) { c.MaxFeePerGas = big.NewInt(1e10) })
	w.chain.Pause()
	w.abandon(w.claim(w.authorize(), payment.Included), w.sent)
	for _, times := range []int64{50, 500, 5000, 50000} {
		w.node.spike.Store(times)
		for range 10 {
			w.clock.Advance(5 * time.Second)
			time.Sleep(10 * time.Millisecond)
		}
	}
	time.Sleep(2500 * time.Millisecond) // the lanes are looked at every two seconds
	for _, raw := range w.node.transactions() {
		var tx types.Transaction
		if err := tx.UnmarshalBinary(raw); err != nil || tx.GasFeeCap().Cmp(big.NewInt(1e10)) > 0 || tx.GasTipCap().Cmp(tx.GasFeeCap()) > 0 {
			t.Errorf("fee cap %s, tip %s, %v", tx.GasFeeCap(), tx.GasTipCap(), err)
		}
	}
}

func TestOnlySoManyTransactionsWaitForABlock(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *settle.Config) { c.MaxInFlight, c.MaxBatch = 3, 1 })
	w.chain.Pause()
	var transfers []*evm.Transfer
	ctx, cancel := within(t, 60*time.Second)
	defer cancel()
	for range 8 {
		transfer := w.authorize()
		transfers = append(transfers, transfer)
		job := w.claim(transfer, payment.Included)
		go w.engine.Settle(ctx, job) // ends with ctx; the records tell
	}
	for deadline := time.Now().Add(20 * time.Second); len(w.node.transactions()) < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is sent")
		}
	}
	time.Sleep(100 * time.Millisecond)
	if n := len(w.node.transactions()); n != 3 {
		t.Errorf("%d transactions wait", n)
	}
	for _, transfer := range transfers {
		w.mineUntil(transfer, ledger.Settled, ledger.Archived)
	}
	w.wantEarned(8000)
}

func TestReorgsOfAnyDepthLoseNoPayment(t *testing.T) {
	t.Parallel()
	for depth := 1; depth <= 8; depth++ {
		for _, until := range []payment.Finality{payment.Submitted, payment.Included, payment.Confirmed(3), payment.Finalized} {
			t.Run(fmt.Sprint(depth, " ", until), func(t *testing.T) {
				t.Parallel()
				w := newWorldOn(t, devchain.Config{Finality: 9})
				w.chain.Pause()
				w.mine(10)
				w.sees()
				transfer := w.authorize()
				job := w.claim(transfer, until)
				ctx, cancel := within(t, 60*time.Second)
				defer cancel()
				done := make(chan error, 1)
				go func() { // ends with ctx
					_, err := w.engine.Settle(ctx, job)
					done <- err
				}()
				w.awaitState(transfer, ledger.Sent)
				w.mine(depth)
				w.sees()
				w.awaitState(transfer, ledger.Included, ledger.Settled)
				if err := w.chain.ReorgDropping(depth); err != nil {
					t.Fatal(err)
				}
				w.awaitState(transfer, ledger.Sent)
				w.wantEarned(0)
				for deadline := time.Now().Add(60 * time.Second); w.record(transfer).State != ledger.Archived; time.Sleep(5 * time.Millisecond) {
					w.clock.Advance(5 * time.Second)
					w.mine(1)
					if time.Now().After(deadline) {
						t.Fatalf("record %+v", w.record(transfer))
					}
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
				w.wantEarned(1000)
				if n := w.nonce(); n != 1 {
					t.Errorf("%d transactions of the lane are in the chain", n)
				}
				w.drain()
			})
		}
	}
}

// The node that found the receipt was ahead of the head that is tracked, on a
// branch that never became the chain.
func TestASettlementOnABranchThatWasNeverTheHeadIsLookedAtAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.chain.Pause()
	head, err := w.node.Head()
	if err != nil {
		t.Fatal(err)
	}
	w.node.frozen.Store(&head)
	transfer := w.authorize()
	job := w.claim(transfer, payment.Included)
	ctx, cancel := within(t, 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { // ends with ctx
		_, err := w.engine.Settle(ctx, job)
		done <- err
	}()
	w.awaitState(transfer, ledger.Sent)
	w.mine(1)
	w.awaitState(transfer, ledger.Settled)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := w.chain.ReorgDropping(1); err != nil {
		t.Fatal(err)
	}
	w.node.frozen.Store(nil)
	w.mine(1)
	w.awaitState(transfer, ledger.Sent)
	for deadline := time.Now().Add(20 * time.Second); !w.record(transfer).State.Paid() && time.Now().Before(deadline); w.sees() {
		w.clock.Advance(5 * time.Second)
		w.mine(1)
	}
	w.awaitState(transfer, ledger.Settled, ledger.Archived)
	w.wantEarned(1000)
}

// Whatever happens to payments, transactions, blocks and processes, every
// nonce that was taken is used in the end, and no payment is made twice.
func TestEveryNonceThatWasTakenIsUsedInTheEnd(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 402))
			w := newWorldOn(t, devchain.Config{Finality: 6})
			w.chain.Pause()
			ctx, cancel := within(t, 120*time.Second)
			defer cancel()
			var transfers []*evm.Transfer
			for range 25 {
				transfer := w.authorize()
				switch n := random.IntN(10); {
				case n < 4:
					transfers = append(transfers, transfer)
					e, job := w.engine, w.claim(transfer, payment.Included)
					go e.Settle(ctx, job) // ends with ctx; the records tell
					w.awaitState(transfer, ledger.Intent, ledger.Sent, ledger.Included, ledger.Settled, ledger.Archived)
				case n == 4:
					transfers = append(transfers, transfer)
					w.unsent(transfer)
					w.engine = w.start(w.node)
				case n == 5 && len(transfers) > 0:
					w.trySending(w.payer, devchain.USDC, w.cancelling(transfers[random.IntN(len(transfers))]))
				case n == 6 && len(transfers) > 0:
					w.trySending(w.chain.Account("facilitator2"), devchain.USDC, transfers[random.IntN(len(transfers))].Calldata())
				case n == 7:
					if sent := w.node.transactions(); len(sent) > 0 {
						_ = w.chain.DropPending(hashOf(t, sent[random.IntN(len(sent))])) // it may be mined already
					}
				case n == 8:
					_ = w.chain.ReorgDropping(1 + random.IntN(3)) // as far as there are blocks that are not final
				default:
					w.mine(1)
					w.clock.Advance(5 * time.Second)
				}
			}
			w.drain()
			paid := int64(0)
			for _, transfer := range transfers {
				for deadline := time.Now().Add(60 * time.Second); !w.record(transfer).State.Resting(); time.Sleep(5 * time.Millisecond) {
					w.clock.Advance(time.Minute)
					w.mine(1)
					if time.Now().After(deadline) {
						t.Fatalf("record %+v", w.record(transfer))
					}
				}
				if w.record(transfer).State == ledger.Archived {
					paid += 1000
				}
			}
			w.wantEarned(paid)
			w.drain()
		})
	}
}

func hashOf(t *testing.T, raw []byte) common.Hash {
	t.Helper()
	var tx types.Transaction
	if err := tx.UnmarshalBinary(raw); err != nil {
		t.Fatal(err)
	}
	return tx.Hash()
}

func TestARehearsedTransferIsNotSimulatedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	simulations := 0
	w.node.simulated = func() { simulations++ }
	job := w.claim(w.authorize(), payment.Included)
	head, err := w.node.Head()
	if err != nil {
		t.Fatal(err)
	}
	w.node.frozen.Store(&head)
	job.Rehearsed = head.Hash
	ctx, cancel := within(t, 20*time.Second)
	defer cancel()
	if _, err := w.engine.Settle(ctx, job); err != nil {
		t.Fatal(err)
	}
	if simulations != 0 {
		t.Errorf("%d simulations", simulations)
	}
	w.node.frozen.Store(nil)
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Fatal(err)
	}
	if simulations != 1 {
		t.Errorf("%d simulations of another one", simulations)
	}
	w.wantEarned(2000)
}
