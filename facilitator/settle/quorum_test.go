package settle_test

import (
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// ofTwo asks for two nodes from some units on.
func ofTwo(from int64) func(*settle.Config) {
	return func(c *settle.Config) {
		c.Quorum = settle.Quorum{Nodes: 2, Above: map[common.Address]*big.Int{devchain.USDC: big.NewInt(from)}}
	}
}

// knowsLane stores the lane as if it had been used before: with what nonce a
// lane begins is never one node's word, either.
func (w *world) knowsLane() {
	w.t.Helper()
	if _, err := w.ledger.SetLane(w.t.Context(), ledger.Lane{Network: payment.EVM(84532), Address: w.engine.Lane().Hex()}); err != nil {
		w.t.Fatal(err)
	}
}

func TestALaneDoesNotBeginOnOneNodesWord(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ofTwo(1000))
	_, err := w.settle(w.authorize(), payment.Included)
	wantUnavailable(t, err)
	if w.sent() {
		t.Error("something was sent")
	}
}

func TestOneNodesWordDoesNotSettleALargePayment(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ofTwo(1000))
	w.knowsLane()
	transfer := w.authorize()
	job := w.claim(transfer, payment.Included)
	w.abandon(job, func() bool { return w.earned() == 1000 })
	for range 8 { // final by now
		w.mine(1)
		time.Sleep(20 * time.Millisecond)
	}
	if r := w.record(transfer); r.State.Paid() {
		t.Errorf("it is %s on one node's word", r.State)
	}
}

func TestOneNodesWordDoesNotBuryALargePayment(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ofTwo(1000))
	w.knowsLane()
	transfer := w.authorize()
	w.node.simulated = once(func() { w.sendMined(w.payer, w.cancelling(transfer)) })
	w.abandon(w.claim(transfer, payment.Included), w.sent)
	for range 8 {
		w.mine(1)
		time.Sleep(20 * time.Millisecond)
	}
	if r := w.record(transfer); r.State == ledger.Dead {
		t.Error("it is dead on one node's word")
	}
}

func TestASmallPaymentNeedsNoQuorum(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ofTwo(1001))
	w.knowsLane()
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Fatal(err)
	}
}

func TestTwoNodesSettleALargePayment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.engine.Stop()
	w.engine = w.start(w.twoNodes(), ofTwo(1000))
	if _, err := w.settle(w.authorize(), payment.Included); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(1000)
	cancelled := w.authorize()
	w.chain.Pause()
	w.abandon(w.claim(cancelled, payment.Included), func() bool { return w.record(cancelled).State == ledger.Sent })
	w.expire(2 * time.Hour)
	w.mineUntil(cancelled, ledger.Dead)
}

// twoNodes returns a client of two endpoints of the chain, both of which have
// been heard of.
func (w *world) twoNodes() *probe {
	w.t.Helper()
	client, err := chain.New(chain.Config{ChainID: w.chain.ChainID(), Endpoints: []string{w.chain.URL(), w.chain.WebSocketURL()}, CallTimeout: 15 * time.Second})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := client.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(client.Close)
	// A node that has not been heard of yet is none of two.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := client.Reached(w.t.Context(), 2, chain.Latest, func(chain.Head) bool { return true })
		if err == nil {
			return &probe{Client: client}
		}
		if time.Now().After(deadline) {
			w.t.Fatal(err)
		}
	}
}
