package settle

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// An approval that came with a payment is the payer's own transaction, signed
// and paid for by the payer. It is sent as it is, as often as that helps:
// the chain takes it once. Nothing of it is written down apart from the payment
// that it came with. If the process dies, either the allowance is there when
// the payment is settled next, or the same bytes are sent again.

// approvalPatience is how long a payment that goes into another transaction
// waits for its approval first.
const approvalPatience = 30 * time.Second

// approvalIn returns the approval that came with a stored payment, or nil.
func (e *Engine) approvalIn(p *payment.Payment, signed *evm.Instrument) *evm.RawApproval {
	if !e.RelayApprovals || signed.Permit == nil || signed.Approval != nil {
		return nil
	}
	id, _ := e.network.ChainID()
	a, err := evm.CheckRawApproval(p.Extensions, &signed.Permit.Permit, id)
	if err != nil {
		return nil // one that is not in order was never sent
	}
	return a
}

// approve sees to it that Permit2 may move what a payment is charged. Where it
// may not it sends the approval and waits until that is in a block. Without an
// approval there is nothing to do. An
// *payment.InvalidError says that the approval can do nothing any more, an
// *payment.UnavailableError that ctx was over before. Nothing has happened to
// the payment itself in either case.
func (e *Engine) approve(ctx context.Context, signed *evm.Instrument, charge *big.Int, a *evm.RawApproval) error {
	if a == nil || !e.RelayApprovals {
		return nil
	}
	var last error
	var sent time.Time
	for {
		another := e.heads.wait()
		allowed, nonce, err := e.allowance(ctx, signed)
		wait := resendAfter
		switch {
		case err != nil:
			last, wait = err, lastPause
		case allowed.Cmp(charge) >= 0:
			return nil
		case nonce > a.Nonce:
			return a.Refuse(payment.ERC20ApprovalTxFailed, fmt.Sprintf("the payer's account has used nonce %d, and Permit2 may not move %s: approve it again", a.Nonce, charge))
		case sent.IsZero() || e.Now().Sub(sent) >= resendAfter:
			if sent.IsZero() {
				e.Logger.Info("approval sent for a payer", "payer", a.From.Hex(), "token", a.Token.Hex(), "tx", a.Hash().Hex(), "network", string(e.network))
			}
			sent = e.Now()
			last = e.Chain.Broadcast(ctx, a.Raw)
			rejected, ok := errors.AsType[*chain.RejectedError](last)
			// Of another transaction with this nonce it shows what it does when
			// it is in a block: it may be an approval, too.
			if ok && rejected.Kind != chain.NonceTooLow && rejected.Kind != chain.ReplacementUnderpriced {
				return a.Refuse(payment.ERC20ApprovalBroadcast, rejected.Reason)
			}
		}
		pause(ctx, another, wait)
		if ctx.Err() != nil {
			return &payment.UnavailableError{Doing: "waiting for the payer's approval of Permit2", Err: errors.Join(ctx.Err(), last), Payer: a.From.Hex()}
		}
	}
}

// allowance asks how much Permit2 may move of the payer's token, in atomic
// units, and how many transactions the payer has sent, both after the block that
// is known as the latest.
func (e *Engine) allowance(ctx context.Context, signed *evm.Instrument) (units *big.Int, nonce uint64, err error) {
	head, err := e.Chain.Head()
	if err != nil {
		return nil, 0, err
	}
	count := &chain.Nonce{Address: signed.Payer}
	ask := &chain.Call{Msg: ethereum.CallMsg{To: &signed.Token, Data: evm.AllowanceCall(signed.Payer, evm.Permit2)}}
	if err := e.Chain.AskAt(ctx, head.Hash, count, ask); err != nil {
		return nil, 0, err
	}
	if err := errors.Join(count.Err, ask.Err); err != nil {
		return nil, 0, err
	}
	if len(ask.Output) != 32 {
		return nil, 0, fmt.Errorf("token %s answers with %d bytes to allowance", signed.Token, len(ask.Output))
	}
	return new(big.Int).SetBytes(ask.Output), count.Nonce, nil
}

// queueAgain queues a payment for another transaction. One that came with an
// approval waits for that first: a reorg may have taken it away.
func (e *Engine) queueAgain(t *ticket) {
	queue := func() {
		if err := e.enqueue(t, false); err != nil {
			t.finish("", err)
		}
	}
	if t.it.approval == nil {
		queue()
		return
	}
	begun := e.spawn(func(ctx context.Context) { // ends with approvalPatience
		ctx, cancel := context.WithTimeout(ctx, approvalPatience)
		defer cancel()
		if err := e.approve(ctx, t.it.signed, t.it.charge.Big(), t.it.approval); err != nil {
			t.finish("", err)
			return
		}
		queue()
	})
	if !begun {
		t.finish("", errStopped)
	}
}
