package settle_test

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A crowd is many settlements at once.
type crowd struct {
	transfers []*evm.Transfer
	errs      []error
	group     sync.WaitGroup
}

// gather settles many payments at once, while the lane is held up by one that
// waits for a block, and returns once the others wait, too.
func (w *world) gather(ctx context.Context, transfers []*evm.Transfer) *crowd {
	w.t.Helper()
	c := &crowd{transfers: transfers, errs: make([]error, len(transfers))}
	var begun atomic.Int64
	for i, transfer := range transfers {
		job := w.claim(transfer, payment.Included)
		c.group.Go(func() {
			begun.Add(1)
			_, c.errs[i] = w.engine.Settle(ctx, job)
		})
		if i == 0 {
			w.awaitState(transfer, ledger.Sent)
		}
	}
	for begun.Load() < int64(len(transfers)) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // from there it is a step to the queue; who is later waits for the next batch
	return c
}

// mineAll seals blocks until everybody has an answer.
func (w *world) mineAll(c *crowd) {
	w.t.Helper()
	done := make(chan struct{})
	go func() { // ends with the context of the crowd
		c.group.Wait()
		close(done)
	}()
	for {
		select {
		case <-done:
			return
		case <-time.After(5 * time.Millisecond):
			w.mine(1)
		}
	}
}

func (w *world) authorizeMany(n int) []*evm.Transfer {
	var list []*evm.Transfer
	for range n {
		list = append(list, w.authorize())
	}
	return list
}

// decoded returns the different transactions that were broadcast.
func (w *world) decoded() []*types.Transaction {
	w.t.Helper()
	var list []*types.Transaction
	for _, raw := range w.node.transactions() {
		tx := new(types.Transaction)
		if err := tx.UnmarshalBinary(raw); err != nil {
			w.t.Fatal(err)
		}
		list = append(list, tx)
	}
	return list
}

func oneInFlight(c *settle.Config) { c.MaxInFlight = 1 }

func TestABacklogIsSettledInFewTransactions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, oneInFlight)
	w.chain.Pause()
	ctx, cancel := within(t, 60*time.Second)
	defer cancel()
	c := w.gather(ctx, w.authorizeMany(50))
	w.mineAll(c)
	if err := errors.Join(c.errs...); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(50_000)
	if n := len(w.node.transactions()); n > 10 {
		t.Errorf("%d transactions", n)
	}
	where := map[string]bool{}
	for _, transfer := range c.transfers {
		r := w.record(transfer)
		if place := fmt.Sprint(r.Included.Transaction, r.Included.LogIndex); where[place] {
			t.Errorf("two payments are at %s", place)
		} else {
			where[place] = true
		}
	}
	w.drain()
}

func TestAPaymentThatFailsInABatchHarmsNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, oneInFlight)
	w.chain.Pause()
	transfers := w.authorizeMany(20)
	poor := w.chain.Account("nobody has given this account anything")
	for _, i := range []int{3, 11, 19} {
		transfers[i] = facilitatortest.Authorize(t, poor.Key, &w.offer, w.clock.Now().Unix(), 3600)
	}
	ctx, cancel := within(t, 60*time.Second)
	defer cancel()
	c := w.gather(ctx, transfers)
	w.mineAll(c)
	for i, err := range c.errs {
		if transfers[i].From != poor.Address {
			if err != nil {
				t.Errorf("payment %d: %v", i, err)
			}
			continue
		}
		wantInvalid(t, err, payment.EVMSimulationFailed)
		if r := w.record(transfers[i]); r.State != ledger.Reserved || len(r.Slots) != 0 {
			t.Errorf("record %+v", r)
		}
	}
	w.wantEarned(17_000)
	if n := len(w.node.transactions()); n > 10 {
		t.Errorf("%d transactions", n)
	}
}

func TestBatchesTakeAShareOfABlock(t *testing.T) {
	t.Parallel()
	w := newWorld(t, oneInFlight)
	w.chain.Pause()
	w.node.gasLimit.Store(1_000_000)
	ctx, cancel := within(t, 60*time.Second)
	defer cancel()
	c := w.gather(ctx, w.authorizeMany(40))
	w.mineAll(c)
	if err := errors.Join(c.errs...); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(40_000)
	batches := 0
	for _, tx := range w.decoded() {
		if tx.Gas() > 700_000 {
			t.Errorf("a transaction with %d gas", tx.Gas())
		}
		if *tx.To() == evm.Multicall3 {
			batches++
		}
	}
	if batches < 2 {
		t.Errorf("%d batches", batches)
	}
}

func TestABatchThatRunsOutOfGasIsTriedAgainInHalves(t *testing.T) {
	t.Parallel()
	w := newWorld(t, oneInFlight)
	w.chain.Pause()
	var lies atomic.Int64
	w.node.estimated = func(msg ethereum.CallMsg, gas uint64) uint64 {
		if lies.Add(1) == 1 {
			return gas / 3
		}
		return gas
	}
	ctx, cancel := within(t, 60*time.Second)
	defer cancel()
	c := w.gather(ctx, w.authorizeMany(24))
	w.mineAll(c)
	if err := errors.Join(c.errs...); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(24_000)
	largest := 0
	for _, transfer := range c.transfers {
		r := w.record(transfer)
		for i, ref := range r.Slots {
			items := 0
			for _, other := range c.transfers {
				for _, slot := range w.record(other).Slots {
					if slot == ref {
						items++
					}
				}
			}
			if i == 0 {
				largest = max(largest, items)
			} else if items > 12 {
				t.Errorf("a second transaction carries %d payments", items)
			}
		}
	}
	if lies.Load() < 2 || largest < 3 {
		t.Errorf("%d estimates, the largest batch had %d payments", lies.Load(), largest)
	}
	w.drain()
}

func (w *world) signers(labels ...string) func(*settle.Config) {
	return func(c *settle.Config) {
		c.Signers = nil
		for _, label := range labels {
			c.Signers = append(c.Signers, facilitatortest.Lane{Key: devchain.DeriveAccount(label).Key})
		}
	}
}

func TestSeveralLanesShareTheWorkAndTheLastOneIsForContracts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, (*world)(nil).signers("facilitator", "facilitator2", "agent"), func(c *settle.Config) { c.MaxInFlight, c.MaxBatch = 1, 4 })
	w.chain.Pause()
	contract := w.chain.Account("payer2")
	if err := w.chain.SetWallet(contract.Address, contract.Address); err != nil {
		t.Fatal(err)
	}
	w.sees()
	transfers := w.authorizeMany(30)
	for _, i := range []int{5, 6, 20} {
		transfers[i] = facilitatortest.Authorize(t, contract.Key, &w.offer, w.clock.Now().Unix(), 3600)
	}
	ctx, cancel := within(t, 60*time.Second)
	defer cancel()
	c := w.gather(ctx, transfers)
	w.mineAll(c)
	if err := errors.Join(c.errs...); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(30_000)
	lanes := w.engine.Lanes()
	used := map[common.Address]int{}
	for i, transfer := range transfers {
		r := w.record(transfer)
		lane := common.HexToAddress(r.Slots[0].Lane)
		used[lane]++
		if alone := transfers[i].From == contract.Address; alone != (lane == lanes[2]) {
			t.Errorf("payment %d by %s went through lane %s", i, transfer.From, lane)
		}
	}
	if used[lanes[0]] == 0 || used[lanes[1]] == 0 || used[lanes[2]] != 3 {
		t.Errorf("the lanes have %v payments", used)
	}
	for _, tx := range w.decoded() {
		from, err := types.Sender(types.LatestSignerForChainID(tx.ChainId()), tx)
		if err != nil || from == lanes[2] && *tx.To() != devchain.USDC {
			t.Errorf("an account with code is in a batch, %v", err)
		}
	}
	w.drain()
}

func TestAccountsWithCodeGoAloneInASingleLane(t *testing.T) {
	t.Parallel()
	w := newWorld(t, oneInFlight)
	w.chain.Pause()
	contract := w.chain.Account("payer2")
	if err := w.chain.SetWallet(contract.Address, contract.Address); err != nil {
		t.Fatal(err)
	}
	w.sees()
	transfers := w.authorizeMany(12)
	for _, i := range []int{4, 8} {
		transfers[i] = facilitatortest.Authorize(t, contract.Key, &w.offer, w.clock.Now().Unix(), 3600)
	}
	ctx, cancel := within(t, 60*time.Second)
	defer cancel()
	c := w.gather(ctx, transfers)
	w.mineAll(c)
	if err := errors.Join(c.errs...); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(12_000)
	for _, tx := range w.decoded() {
		calls, err := evm.ReadLaneCall(w.engine.Lane(), &payment.LaneCall{To: *tx.To(), Data: tx.Data()})
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range calls {
			if call.Transfer.From == contract.Address && len(calls) > 1 {
				t.Error("an account with code is in a batch")
			}
		}
	}
}

func TestWhoGivesUpInTheQueueIsNotCharged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, oneInFlight)
	w.chain.Pause()
	w.abandon(w.claim(w.authorize(), payment.Included), w.sent)
	queued := w.authorize()
	ctx, cancel := within(t, 200*time.Millisecond)
	defer cancel()
	_, err := w.engine.Settle(ctx, w.claim(queued, payment.Included))
	wantUnavailable(t, err)
	w.mine(3)
	w.sees()
	if _, err := w.settleMining(w.authorize()); err != nil {
		t.Fatal(err)
	}
	if r := w.record(queued); r.State != ledger.Reserved || len(r.Slots) != 0 {
		t.Errorf("record %+v", r)
	}
	w.wantEarned(2000)
}

// settleMining is settle on a paused chain.
func (w *world) settleMining(transfer *evm.Transfer) (*payment.Settlement, error) {
	w.t.Helper()
	ctx, cancel := within(w.t, 60*time.Second)
	defer cancel()
	job := w.claim(transfer, payment.Included)
	var s *payment.Settlement
	c := &crowd{errs: make([]error, 1)}
	c.group.Go(func() { s, c.errs[0] = w.engine.Settle(ctx, job) })
	w.mineAll(c)
	return s, c.errs[0]
}

func TestTheGasBudgetOfADayIsKeptAcrossRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	head, err := w.node.Head()
	if err != nil {
		t.Fatal(err)
	}
	tip, err := w.node.TipCap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	one := new(big.Int).Add(new(big.Int).Lsh(head.BaseFee, 1), tip)
	one.Mul(one, big.NewInt(300_000))
	budget := func(c *settle.Config) { c.GasBudget = new(big.Int).Mul(one, big.NewInt(2)) }
	w.engine.Stop()
	for range 2 {
		w.engine = w.start(w.node, budget)
		if _, err := w.settle(w.authorize(), payment.Included); err != nil {
			t.Fatal(err)
		}
		w.engine.Stop()
	}
	w.engine = w.start(w.node, budget)
	transfer := w.authorize()
	_, err = w.settle(transfer, payment.Included)
	if u := wantUnavailable(t, err); !strings.Contains(u.Error(), "gas_budget") {
		t.Errorf("got %v", err)
	}
	if r := w.record(transfer); r.State != ledger.Reserved || len(r.Slots) != 0 {
		t.Errorf("record %+v", r)
	}
	w.clock.Advance(24 * time.Hour)
	w.mine(1)
	w.sees()
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Fatalf("on the next day: %v", err)
	}
	w.wantEarned(3000)
}

func TestGasThatWasNotUsedGoesBackToTheBudget(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *settle.Config) { c.GasBudget = big.NewInt(1e18) })
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Fatal(err)
	}
	lane, _, err := w.ledger.Lane(t.Context(), payment.EVM(84532), w.engine.Lane().Hex())
	if err != nil {
		t.Fatal(err)
	}
	booked := lane.Booked(lane.GasDay)
	day := lane.GasDay
	w.chain.Pause()
	for deadline := time.Now().Add(20 * time.Second); len(w.slots()) > 0; time.Sleep(5 * time.Millisecond) {
		w.mine(1)
		if time.Now().After(deadline) {
			t.Fatal("the nonce is still open")
		}
	}
	if _, err := w.settleMining(w.authorize()); err != nil {
		t.Fatal(err)
	}
	lane, _, err = w.ledger.Lane(t.Context(), payment.EVM(84532), w.engine.Lane().Hex())
	if err != nil {
		t.Fatal(err)
	}
	if twice := new(big.Int).Lsh(booked, 1); booked.Sign() <= 0 || lane.GasDay == day && lane.Booked(day).Cmp(twice) >= 0 {
		t.Errorf("after one transaction %s wei were booked, after two %s", booked, lane.Booked(day))
	}
}

func TestALaneThatCanNotPayForAnotherTransactionRefusesJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Fatal(err)
	}
	if err := w.chain.SetETHBalance(w.engine.Lane(), big.NewInt(1000)); err != nil {
		t.Fatal(err)
	}
	w.sees()
	w.engine.Stop()
	w.engine = w.start(w.node)
	transfer := w.authorize()
	job := w.claim(transfer, payment.Included)
	head, err := w.node.Head()
	if err != nil {
		t.Fatal(err)
	}
	w.node.frozen.Store(&head)
	job.Rehearsed = head.Hash // a simulation would notice, too
	ctx, cancel := within(t, 20*time.Second)
	defer cancel()
	_, err = w.engine.Settle(ctx, job)
	if u := wantUnavailable(t, err); !strings.Contains(u.Error(), "gas money") {
		t.Errorf("got %v", err)
	}
	if r := w.record(transfer); r.State != ledger.Reserved || len(r.Slots) != 0 {
		t.Errorf("record %+v", r)
	}
}
