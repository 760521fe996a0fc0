package sim

import (
	"context"
	"errors"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A Flaw is a mistake that is built into a world's program, to see that the
// world sees it.
type Flaw string

const (
	Sound            Flaw = ""
	VolatileCommit   Flaw = "a commit returns before it is on disk"
	DoubtIsFailure   Flaw = "an error of a broadcast is taken for a failure"
	TimeoutIsUnpaid  Flaw = "a timeout is taken for unpaid"
	TimeoutIsPaid    Flaw = "a timeout is taken for paid"
	SpentIsPaid      Flaw = "a used nonce is taken for a payment"
	LatestIsFinal    Flaw = "the latest block is taken for final"
	TakesOverAtOnce  Flaw = "an instance takes over without waiting for a heartbeat"
	IgnoresLeases    Flaw = "an instance takes over what is leased to another"
	SilenceIsRefusal Flaw = "no answer of a remote facilitator is taken for a refusal"
	IgnoresEpochs    Flaw = "an instance writes lanes without looking at their epoch"
	Overcharges      Flaw = "an answer is charged at twice its price"
	IgnoresCaps      Flaw = "a payer is trusted with more than its cap"
)

// Flaws lists them all.
func Flaws() []Flaw {
	return []Flaw{VolatileCommit, DoubtIsFailure, TimeoutIsUnpaid, TimeoutIsPaid, SpentIsPaid, LatestIsFinal, TakesOverAtOnce, IgnoresLeases, IgnoresEpochs, SilenceIsRefusal, Overcharges, IgnoresCaps}
}

// flawed returns f, or f with the world's flaw.
func flawed(w *world, n *node, f payment.Facilitator) payment.Facilitator {
	switch w.flaw {
	case DoubtIsFailure, TimeoutIsUnpaid, TimeoutIsPaid:
		return &hasty{f, n, w.flaw}
	default:
		return f
	}
}

// A hasty facilitator makes up its mind about what it cannot know.
type hasty struct {
	payment.Facilitator
	node *node
	flaw Flaw
}

func (h *hasty) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	doubts := func() (n int) {
		_ = h.node.p.enterThen(func() { n = h.node.doubtful })
		return n
	}
	before := doubts()
	s, err := h.Facilitator.Settle(ctx, p, o, charge)
	unsure, ok := errors.AsType[*payment.UnavailableError](err)
	if !ok || !unsure.Pending {
		return s, err
	}
	switch {
	case h.flaw == TimeoutIsPaid:
		return &payment.Settlement{Network: o.Network(), Transaction: unsure.Transaction, Payer: unsure.Payer, Amount: charge}, nil
	case h.flaw == TimeoutIsUnpaid, doubts() > before:
		return nil, &payment.InvalidError{Reason: payment.EVMTransactionFailed, Message: "not settled in time", Payer: unsure.Payer}
	}
	return s, err
}

// A flawedNode misreads the chain.
type flawedNode struct {
	*node
	flaw Flaw
}

// Finalized implements settle.Chain.
func (n *flawedNode) Finalized(ctx context.Context) (chain.Head, error) {
	if n.flaw == LatestIsFinal {
		return n.Head()
	}
	return n.node.Finalized(ctx)
}

// Receipt implements settle.Chain.
func (n *flawedNode) Receipt(ctx context.Context, hash common.Hash) (*types.Receipt, error) {
	r, err := n.node.Receipt(ctx, hash)
	if err != nil || r == nil || n.flaw != SpentIsPaid {
		return r, err
	}
	lie := *r
	lie.Logs = nil
	for _, l := range r.Logs {
		if l.Topics[0] != evm.TopicAuthorizationCanceled {
			lie.Logs = append(lie.Logs, l)
			continue
		}
		used := *l
		used.Topics = []common.Hash{evm.TopicAuthorizationUsed, l.Topics[1], l.Topics[2]}
		paid := types.Log{
			Address: l.Address, Topics: []common.Hash{evm.TopicTransfer, l.Topics[1], common.BytesToHash(n.p.w.purse.seller[:])},
			Data: common.BigToHash(big.NewInt(price)).Bytes(), Index: l.Index + 1,
		}
		lie.Logs = append(lie.Logs, &used, &paid)
	}
	return &lie, nil
}

var _ interface {
	Logs(context.Context, ethereum.FilterQuery) ([]types.Log, error)
} = (*flawedNode)(nil)
