package settle

import (
	"context"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A Quorum says for which payments the word of one node is not enough. Its
// zero value is none.
type Quorum struct {
	// Nodes is how many nodes must show the same before a payment counts as
	// settled or as dead; below 2 one is enough.
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
	above, ok := q.Above[it.token]
	return !ok || it.charge.Big().Cmp(above) >= 0
}

// agreed returns an error unless as many nodes as are asked for show what a
// step is taken for: the same receipt, where the authorization was used, or
// that it is unused at the head that was looked at. It is an error of the look,
// which is made again: nothing is concluded from a disagreement.
func (e *Engine) agreed(ctx context.Context, it *item, r *ledger.Record, step Step, s Sight) error {
	settles := step.To == ledger.Settled && !r.State.Paid()
	if !settles && step.To != ledger.Dead || !e.Quorum.wanted(it) {
		return nil
	}
	if s.Fate != evm.Untouched {
		receipt, err := e.Chain.Witness(ctx, common.HexToHash(s.Found.Transaction), e.Quorum.Nodes)
		if err != nil {
			return err
		}
		if receipt == nil || receipt.BlockHash.Hex() != s.Found.BlockHash {
			return fmt.Errorf("%d nodes do not know transaction %s in block %s", e.Quorum.Nodes, s.Found.Transaction, s.Found.BlockHash)
		}
		return nil
	}
	head, err := e.Chain.Head()
	if err != nil {
		return err
	}
	used := it.stateCall()
	if used.Output, err = e.Chain.AgreeAt(ctx, e.Quorum.Nodes, head.Hash, used); err != nil {
		return err
	}
	yes, err := truth(used)
	if err == nil && yes {
		err = fmt.Errorf("%d nodes say that the authorization is used", e.Quorum.Nodes)
	}
	return err
}
