package settle

import (
	"context"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A Quorum says for which payments the word of one node is not enough. Its
// zero value is none.
type Quorum struct {
	// Nodes is how many nodes must show the same before a payment counts as
	// settled, archived or dead; below 2 one is enough. As many must agree,
	// whatever is charged, with which nonce a new lane begins, that a lane's key
	// is in use elsewhere, and that one of its nonces is used for good.
	Nodes int

	// Above is, by the token's address, the charge in atomic units from
	// which on that is asked for. A token that is not in it always needs the
	// quorum.
	Above map[common.Address]*big.Int
}

func (q Quorum) wanted(it *item) bool {
	if q.Nodes < 2 {
		return false
	}
	above, ok := q.Above[it.signed.Token]
	return !ok || it.charge.Big().Cmp(above) >= 0
}

// agreed returns an error unless what a step is taken for is what as many
// nodes as are asked for show, too: the receipt with its logs, how far the
// chain has come since, and that the authorization is unused. It is an error of
// the look, which is made again: nothing is concluded from a disagreement.
func (e *Engine) agreed(ctx context.Context, it *item, r *ledger.Record, step Step, s Sight) error {
	final := step.To == ledger.Dead || step.To == ledger.Archived
	settles := step.To == ledger.Settled && !r.State.Paid()
	if !settles && !final || !e.Quorum.wanted(it) {
		return nil
	}
	seen := Sight{Mined: s.Mined, Head: s.Found.Block}
	switch n, counted := it.until.Confirmations(); {
	case final || it.until == payment.Finalized:
		// A block in which it can still be used proves no death.
		h, err := e.Chain.Reached(ctx, e.Quorum.Nodes, chain.Finalized, func(h chain.Head) bool {
			return h.Number >= s.Found.Block && (s.Fate != evm.Untouched || h.Time >= it.signed.Expiry)
		})
		if err != nil {
			return err
		}
		seen.Finalized, seen.FinalizedTime = h.Number, h.Time
		if s.Fate == evm.Untouched {
			used, err := e.usedByMany(ctx, it, h.Hash)
			if err != nil {
				return err
			}
			seen.Complete = !used
		}
	case it.until == payment.Safe:
		h, err := e.Chain.Reached(ctx, e.Quorum.Nodes, chain.Safe, func(h chain.Head) bool { return h.Number >= s.Found.Block })
		if err != nil {
			return err
		}
		seen.Safe = h.Number
	case counted && n > 1:
		h, err := e.Chain.Reached(ctx, e.Quorum.Nodes, chain.Latest, func(h chain.Head) bool { return h.Number+1 >= s.Found.Block+n })
		if err != nil {
			return err
		}
		seen.Head = h.Number
	}
	switch {
	case s.Fate == evm.Untouched:
	case s.Found.Transaction == "": // a nonce that is used without a payment
		if err := e.unpaidByMany(ctx, it, r, s, &seen); err != nil {
			return err
		}
	default:
		receipt, err := e.Chain.Witness(ctx, common.HexToHash(s.Found.Transaction), e.Quorum.Nodes)
		if err != nil {
			return err
		}
		if receipt != nil && receipt.BlockHash.Hex() == s.Found.BlockHash {
			if err := e.read(ctx, it, receipt, logsOf(receipt), nil, e.Quorum.Nodes, &seen); err != nil {
				return err
			}
		}
	}
	if got := Decide(r, it.until, it.signed.Expiry, seen); got.To != step.To || !same(got.Found, step.Found) {
		return fmt.Errorf("%d nodes do not show that payment %s is %s: one node alone says so", e.Quorum.Nodes, r.Key, step.To)
	}
	return nil
}

// usedByMany is usedAt by the word of the quorum.
func (e *Engine) usedByMany(ctx context.Context, it *item, block common.Hash) (bool, error) {
	used := it.usedCall()
	if err := e.Chain.AgreeAt(ctx, e.Quorum.Nodes, block, used); err != nil {
		return false, err
	}
	return it.used(used)
}

// unpaidByMany notes in seen, if the quorum shows it, that a nonce is used and
// that nothing up to the block where it is has paid by it.
func (e *Engine) unpaidByMany(ctx context.Context, it *item, r *ledger.Record, s Sight, seen *Sight) error {
	used, err := e.usedByMany(ctx, it, common.HexToHash(s.Found.BlockHash))
	if err != nil || !used {
		return err
	}
	head, err := e.Chain.Head()
	if err != nil {
		return err
	}
	h, err := e.finality(ctx, head)
	if err != nil {
		return err
	}
	logs, err := e.Chain.WitnessLogs(ctx, it.uses(since(r, h), s.Found.Block), e.Quorum.Nodes)
	if err != nil {
		return err
	}
	if err := e.judgeAll(ctx, it, logs, e.Quorum.Nodes, seen); err != nil || seen.Fate != evm.Untouched {
		return err
	}
	seen.Fate, seen.Found = evm.Spent, s.Found
	return nil
}

// nonceNow returns how many transactions of an account are in the chain, by the
// word of the quorum where there is one.
func (e *Engine) nonceNow(ctx context.Context, account common.Address) (uint64, error) {
	if e.Quorum.Nodes < 2 {
		return e.Chain.NonceAt(ctx, account)
	}
	head, err := e.Chain.Head()
	if err != nil {
		return 0, err
	}
	return e.nonceOfMany(ctx, account, chain.Latest, func(h chain.Head) bool { return h.Number >= head.Number })
}

// nonceOfMany returns how many transactions of an account are in the chain up
// to the block with a tag, by the word of the quorum.
func (e *Engine) nonceOfMany(ctx context.Context, account common.Address, tag chain.Tag, enough func(chain.Head) bool) (uint64, error) {
	h, err := e.Chain.Reached(ctx, e.Quorum.Nodes, tag, enough)
	if err != nil {
		return 0, err
	}
	n := &chain.Nonce{Address: account}
	if err := e.Chain.AgreeAt(ctx, e.Quorum.Nodes, h.Hash, n); err != nil {
		return 0, err
	}
	return n.Nonce, n.Err
}
