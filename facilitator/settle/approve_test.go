package settle_test

import (
	"context"
	"encoding/json"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

func relaying(c *settle.Config) { c.RelayApprovals = true }

// claimUnapproved makes a job of a permit whose payer has not approved Permit2
// and sends the transaction along that does.
func (w *world) claimUnapproved(units int64, until payment.Finality) (settle.Job, *evm.RawApproval) {
	w.t.Helper()
	most := new(big.Int).Sub(new(big.Int).Lsh(common.Big1, 256), common.Big1)
	data, err := devchain.TestUSDC().ABI.Pack("approve", evm.Permit2, most)
	if err != nil {
		w.t.Fatal(err)
	}
	nonce, err := w.chain.Client().NonceAt(w.t.Context(), w.payer.Address, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	id := big.NewInt(84532)
	tx, err := types.SignNewTx(w.payer.Key, types.LatestSignerForChainID(id), &types.DynamicFeeTx{
		ChainID: id, Nonce: nonce, To: &devchain.USDC, Data: data, Gas: 70_000, GasFeeCap: big.NewInt(1e9), GasTipCap: big.NewInt(1e8),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := tx.MarshalBinary()
	if err != nil {
		w.t.Fatal(err)
	}
	said := &evm.RawApproval{From: w.payer.Address, Token: devchain.USDC, Value: most, Raw: raw}
	extensions := json.RawMessage(`{"` + evm.RawSponsoring + `":{"info":` + string(said.Encode()) + `}}`)
	s := w.permit(payment.Upto)
	a, err := evm.CheckRawApproval(extensions, &s.Permit, 84532)
	if err != nil || a == nil {
		w.t.Fatal(a, err)
	}
	j := w.claimWith(s, extensions, units, until)
	j.Approve = a
	return j, a
}

// sentTimes returns how often bytes were broadcast.
func (p *probe) sentTimes(raw []byte) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, sent := range p.sent {
		if string(sent) == string(raw) {
			n++
		}
	}
	return n
}

func TestApprovalIsMinedBeforeItsPaymentIsStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, relaying)
	w.sees()
	j, a := w.claimUnapproved(400, payment.Included)
	w.node.broadcast = func(ctx context.Context, raw []byte) error {
		if string(raw) == string(a.Raw) {
			if r := w.stored(j.Record.Key); r.State != ledger.Reserved || len(r.Slots) != 0 {
				t.Errorf("the payment is %s in %v when its approval is sent", r.State, r.Slots)
			}
		} else if receipt, err := w.node.Receipt(ctx, a.Hash()); err != nil || receipt == nil || receipt.Status != types.ReceiptStatusSuccessful {
			t.Errorf("the payment is sent and the approval is not in a block: %v, %v", receipt, err)
		}
		return w.node.Client.Broadcast(ctx, raw)
	}
	if _, err := w.settleJob(j); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(400)
	if n := w.node.sentTimes(a.Raw); n != 1 {
		t.Errorf("the approval was sent %d times", n)
	}
}

func TestApprovalIsNotSentByAnEngineThatRelaysNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.sees()
	j, _ := w.claimUnapproved(400, payment.Included)
	_, err := w.settleJob(j)
	wantInvalid(t, err, payment.Permit2SimulationFailed)
	if w.sent() {
		t.Error("something was sent")
	}
}

// Nodes that refuse the approval end the payment before it has begun.
func TestApprovalThatNodesRefuseEndsThePayment(t *testing.T) {
	t.Parallel()
	for _, kind := range []chain.Kind{chain.InsufficientFunds, chain.Underpriced, chain.FeeCapTooLow, chain.IntrinsicGas, chain.Invalid} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, relaying)
			w.sees()
			w.node.broadcast = func(context.Context, []byte) error { return &chain.RejectedError{Kind: kind, Reason: "no"} }
			j, _ := w.claimUnapproved(400, payment.Included)
			_, err := w.settleJob(j)
			wantInvalid(t, err, payment.ERC20ApprovalBroadcast)
			if r := w.stored(j.Record.Key); r.State != ledger.Reserved || w.node.broadcasts() != 1 {
				t.Errorf("the payment is %s after %d broadcasts", r.State, w.node.broadcasts())
			}
		})
	}
}

// What no node has confirmed is sent again, and so is what got lost.
func TestApprovalThatGetsLostIsSentAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, relaying)
	w.sees()
	j, a := w.claimUnapproved(400, payment.Included)
	w.node.broadcast = func(ctx context.Context, raw []byte) error {
		if w.node.sentTimes(a.Raw) <= 2 {
			w.clock.Advance(5 * time.Second)
			if err := w.chain.Mine(1); err != nil {
				t.Error(err)
			}
			return &chain.AmbiguousError{Err: context.DeadlineExceeded}
		}
		return w.node.Client.Broadcast(ctx, raw)
	}
	if _, err := w.settleJob(j); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(400)
	if n := w.node.sentTimes(a.Raw); n != 3 {
		t.Errorf("the approval was sent %d times", n)
	}
}

// A process that dies after it has sent an approval has not begun to settle.
// The next one finds the allowance, or sends the same bytes.
func TestRestartAfterAnApprovalSettlesOnce(t *testing.T) {
	t.Parallel()
	for name, arrives := range map[string]bool{"that was mined": true, "that got lost": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, relaying)
			w.sees()
			j, a := w.claimUnapproved(400, payment.Included)
			ctx, cancel := within(t, 20*time.Second)
			w.node.broadcast = func(_ context.Context, raw []byte) error { // as if the process ended here
				defer cancel()
				if arrives {
					return w.node.Client.Broadcast(t.Context(), raw)
				}
				return nil
			}
			_, err := w.engine.Settle(ctx, j)
			if unavailable := wantUnavailable(t, err); unavailable.Pending {
				t.Error("the outcome is said to be open")
			}
			w.engine.Stop()
			w.ledger = ledger.New(w.history, "two", time.Now)
			if n, err := w.ledger.Recover(t.Context(), true); err != nil || n != 1 {
				t.Fatal(n, err)
			}
			w.node = &probe{Client: w.node.Client}
			w.engine = w.start(w.node, relaying)
			r := w.stored(j.Record.Key)
			if r.State != ledger.Released {
				t.Fatalf("the payment is %s", r.State)
			}
			w.mine(1)
			w.sees()
			again := r
			again.State = ledger.Reserved
			if j.Record, err = w.ledger.Claim(t.Context(), again, time.Hour); err != nil {
				t.Fatal(err)
			}
			if _, err := w.settleJob(j); err != nil {
				t.Fatal(err)
			}
			w.wantEarned(400)
			if n := w.node.sentTimes(a.Raw); (n == 0) != arrives {
				t.Errorf("the approval was sent %d times more", n)
			}
		})
	}
}

// A reorg can take the approval away together with the payment. Both are sent
// again, also by a process that knows them from the ledger only.
func TestReorgSendsTheApprovalAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, relaying)
	w.sees()
	before := w.chain.Snapshot()
	j, a := w.claimUnapproved(400, payment.Included)
	if _, err := w.settleJob(j); err != nil {
		t.Fatal(err)
	}
	w.engine.Stop()
	w.ledger = ledger.New(w.history, "two", time.Now)
	if _, err := w.ledger.Recover(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	w.node = &probe{Client: w.node.Client}
	w.engine = w.start(w.node, relaying)
	// Unlike a reorg to a longer branch this leaves nothing in the node's pool.
	if err := w.chain.Revert(before); err != nil {
		t.Fatal(err)
	}
	if got := w.earned(); got != 0 {
		t.Fatalf("the seller has %d after the reorg", got)
	}
	for deadline := time.Now().Add(20 * time.Second); w.earned() == 0 && time.Now().Before(deadline); {
		w.clock.Advance(5 * time.Second)
		w.mine(1)
		w.sees()
		time.Sleep(20 * time.Millisecond)
	}
	w.wantEarned(400)
	if n := w.node.sentTimes(a.Raw); n == 0 {
		t.Error("the approval was not sent again")
	}
	w.mineUntilStored(j.Record.Key, ledger.Archived)
	w.wantEarned(400)
}
