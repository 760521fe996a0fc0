package facilitator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// checkRaw checks the transaction by which the payer approves Permit2 itself,
// where such are sent and one came along. Whoever has sent an EIP-2612 approval
// needs none.
func (q *quest) checkRaw(extensions json.RawMessage) (err error) {
	if !q.Engine.RelayApprovals || q.signed.Approval != nil {
		return nil
	}
	id, _ := q.Network.ChainID()
	q.raw, err = evm.CheckRawApproval(extensions, &q.signed.Permit.Permit, id)
	return err
}

// needsRaw reports whether a permit may have reverted for nothing but the want
// of an allowance that the payer's own approval would give. Permit2 looks at
// signature, nonce and deadline first, and says so.
func (q *quest) needsRaw(revert *chain.RevertError, allowance *chain.Call) bool {
	if _, told := evm.PermitRevert(revert.Data); told || q.raw == nil || allowance == nil {
		return false
	}
	n := number(allowance)
	return n != nil && n.Cmp(q.signed.Most) < 0
}

// foresee finds out whether a payment will go well once the payer's own
// approval is in a block. No node runs the one after the other everywhere, so
// it asks for the parts: whether the account can send the approval now and pay
// for it, whether the token takes it, and whether the token lets the payer move
// the amount to the payee. at is the time for strikes.
func (q *quest) foresee(ctx context.Context, shown performed, at time.Time) (performed, error) {
	a := q.raw
	if shown.contract || q.wallet {
		return shown, a.Refuse(payment.ERC20ApprovalTxFailed, "the payer's account has code: only plain accounts can have an approval sent for them")
	}
	head, err := q.Chain.Head()
	if err != nil {
		return shown, q.unavailable("reading the chain's head", err)
	}
	if err := a.CheckFee(head.BaseFee, !q.settling); err != nil {
		return shown, err
	}
	nonce, wei := &chain.Nonce{Address: a.From}, &chain.Balance{Address: a.From}
	used := q.ask(q.signed.UsedCall())
	balance := q.ask(evm.Call{To: q.signed.Token, Data: evm.BalanceCall(a.From)})
	transfer := &chain.Call{Msg: ethereum.CallMsg{From: a.From, To: &q.signed.Token, Data: evm.TransferCall(q.signed.Payee, q.signed.Most)}}
	call := a.Call()
	approve := &chain.Call{Msg: ethereum.CallMsg{From: a.From, To: &call.To, Data: call.Data, Gas: a.Gas}}
	allowance := q.ask(evm.Call{To: q.signed.Token, Data: evm.AllowanceCall(a.From, evm.Permit2)})
	if err := q.Chain.Ask(ctx, nonce, wei, used, balance, transfer, approve, allowance); err != nil {
		return shown, q.unavailable("asking about the payer's approval", err)
	}
	reasons := q.signed.Reasons()
	spent, unread := q.signed.Used(used.Output)
	if err := errors.Join(nonce.Err, wei.Err, used.Err, unread, balance.Err); err != nil {
		return shown, q.unavailable("asking about the payer's approval", err)
	}
	if n := number(allowance); n != nil && n.Cmp(q.signed.Most) >= 0 {
		q.raw = nil // it came into a block between the questions
		return q.simulate(ctx, at)
	}
	switch n := number(balance); {
	case spent:
		return shown, q.refuse(reasons.Used, "the authorization was used or cancelled")
	case n == nil || n.Cmp(q.signed.Most) < 0:
		return shown, q.refuse(reasons.Balance, "the payer holds less than "+q.offer.Amount.String())
	case nonce.Nonce != a.Nonce:
		return shown, a.Refuse(payment.ERC20ApprovalTxFailed, fmt.Sprintf("the approval has nonce %d, the payer's account is at %d", a.Nonce, nonce.Nonce))
	case wei.Wei.Cmp(a.Cost()) < 0:
		return shown, a.Refuse(payment.ERC20ApprovalTxFailed, fmt.Sprintf("the payer holds %s wei, the approval may cost %s: nobody else pays for it", wei.Wei, a.Cost()))
	}
	if err := q.agrees(approve, payment.ERC20ApprovalTxFailed, "the token refuses the approval"); err != nil {
		return shown, err
	}
	if err := q.agrees(transfer, reasons.Simulation, "the token does not let the payer move the amount"); err != nil {
		return shown, err
	}
	shown.unapproved, shown.funds = true, q.signed.Most // what is approved is for this payment
	return shown, nil
}

// toSend returns the payer's own approval if it has to be sent before an amount
// is charged, and nil otherwise. What a verification has found is looked at again
// where it was not after the latest block.
func (q *quest) toSend(ctx context.Context, charge *big.Int, now time.Time) (*evm.RawApproval, error) {
	if q.raw == nil || charge.Sign() == 0 {
		return nil, nil
	}
	shown, known := q.rehearsals.recall(q.head.Hash, q.rehearsal(), now)
	if !known || shown.presumed || shown.refusal != nil {
		// By upto less can be charged than was signed, and less allowed.
		allowance := q.ask(evm.Call{To: q.signed.Token, Data: evm.AllowanceCall(q.signed.Payer, evm.Permit2)})
		if err := q.Chain.Ask(ctx, allowance); err != nil {
			return nil, q.unavailable("asking what Permit2 may move", err)
		}
		if n := number(allowance); n != nil && n.Cmp(charge) >= 0 {
			return nil, nil
		}
		q.settling = true
		var err error
		var invalid *payment.InvalidError
		switch shown, err = q.simulate(ctx, now); {
		case errors.As(err, &invalid) && invalid.NonceUsed():
			return nil, nil // perhaps by this very payment, which the engine finds out
		case err != nil:
			return nil, err
		}
	}
	if !shown.unapproved {
		return nil, nil
	}
	return q.raw, nil
}

// agrees reads the answer of a token that was asked to do something for the
// payer, and refuses the payment where it would not.
func (q *quest) agrees(c *chain.Call, reason payment.Reason, message string) error {
	var revert *chain.RevertError
	switch {
	case errors.As(c.Err, &revert):
		return q.refuse(reason, message+": "+revert.Reason)
	case c.Err != nil:
		return q.unavailable("asking about the payer's approval", c.Err)
	case !evm.Agrees(c.Output):
		return q.refuse(reason, message)
	}
	return nil
}
