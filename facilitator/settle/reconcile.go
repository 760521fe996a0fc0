package settle

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

const (
	// reconcileEvery is how often the ledger is compared with the chain.
	reconcileEvery = 5 * time.Minute

	// reconcileBlocks is how many blocks are asked for at once.
	reconcileBlocks = 2000
)

// A DifferenceKind says in what the chain and the ledger differ.
type DifferenceKind string

const (
	Unknown      DifferenceKind = "paid on the chain, but not in the ledger"
	Contradicted DifferenceKind = "paid on the chain, but dead in the ledger"
	Mispriced    DifferenceKind = "paid on the chain with another amount than in the ledger"
	Missing      DifferenceKind = "paid in the ledger, but not on the chain"
	Plain        DifferenceKind = "a transfer that is no payment" // for information
)

// A Difference is one transfer that final blocks and the ledger do not agree
// on.
type Difference struct {
	Kind        DifferenceKind
	Network     payment.Network
	Token       common.Address
	PayTo       common.Address
	Payer       common.Address
	Units       string      // atomic units; of the ledger where the chain has none
	Key         payment.Key // zero for a plain transfer
	Transaction string
	Block       uint64
	LogIndex    uint
}

// An account is one that is paid in a token.
type account struct{ token, payTo common.Address }

// A place is where a transfer is on the chain.
type place struct {
	transaction string
	log         uint
}

// reconcileAlways compares the ledger with the chain from time to time.
func (e *Engine) reconcileAlways(ctx context.Context) {
	for t := time.NewTicker(reconcileEvery); ; {
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if _, err := e.Reconcile(ctx); err != nil && ctx.Err() == nil {
			e.Logger.Error("comparing the ledger with the chain failed", "network", string(e.network), "error", err)
		}
	}
}

// Reconcile compares every transfer to an account that is paid here with the
// ledger, and the other way round, in the final blocks that have not been
// compared yet. It logs and returns the differences; each is reported once, or
// again if the process ends just then.
func (e *Engine) Reconcile(ctx context.Context) ([]Difference, error) {
	e.reconciling.Lock()
	defer e.reconciling.Unlock()
	finalized, err := e.Chain.Finalized(ctx)
	if errors.Is(err, chain.ErrUnknownBlock) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := e.storePaid(ctx, finalized.Number); err != nil {
		return nil, err
	}
	checkpoints, err := e.Ledger.Checkpoints(ctx, e.network)
	if err != nil {
		return nil, err
	}
	var all []Difference
	for _, c := range checkpoints {
		for c.Block < finalized.Number {
			from, to := c.Block+1, min(c.Block+reconcileBlocks, finalized.Number)
			found, err := e.compare(ctx, account{common.HexToAddress(c.Token), common.HexToAddress(c.PayTo)}, from, to)
			if err != nil {
				return all, fmt.Errorf("comparing the transfers to %s in blocks %d to %d: %w", c.PayTo, from, to, err)
			}
			for _, d := range found {
				e.report(d)
			}
			all = append(all, found...)
			c.Block = to
			if err := e.Ledger.SetCheckpoint(ctx, c); err != nil && !errors.Is(err, ledger.ErrStale) {
				return all, err
			}
			// Another process may compare, too, and be further.
			if c, err = e.checkpoint(ctx, c); err != nil {
				return all, err
			}
		}
	}
	return all, nil
}

// checkpoint reads a checkpoint again.
func (e *Engine) checkpoint(ctx context.Context, c ledger.Checkpoint) (ledger.Checkpoint, error) {
	list, err := e.Ledger.Checkpoints(ctx, e.network)
	for _, now := range list {
		if now.Token == c.Token && now.PayTo == c.PayTo {
			return now, nil
		}
	}
	return c, err
}

func (e *Engine) report(d Difference) {
	log := e.Logger.Error
	if d.Kind == Plain {
		log = e.Logger.Info
	}
	log("ledger and chain differ", "difference", string(d.Kind), "network", string(d.Network), "payment", d.Key.String(), "payer", d.Payer.Hex(),
		"pay_to", d.PayTo.Hex(), "token", d.Token.Hex(), "units", d.Units, "tx", d.Transaction, "block", d.Block, "log", d.LogIndex)
}

// pays notes who is paid by an item, so that its transfers are compared.
func (e *Engine) pays(it *item) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := account{it.signed.Token, it.signed.Payee}
	if _, known := e.accounts[a]; !known {
		e.accounts[a] = it.snapshot().IntentBlock
	}
}

// storePaid stores a checkpoint for every account that is paid and has none:
// before its first payment here.
func (e *Engine) storePaid(ctx context.Context, finalized uint64) error {
	for r, err := range e.Ledger.Open(ctx) {
		if err != nil {
			return err
		}
		if r.Network != e.network || r.IntentBlock == 0 {
			continue
		}
		if it, err := e.itemOf(r); err == nil {
			e.pays(it)
		}
	}
	known, err := e.Ledger.Checkpoints(ctx, e.network)
	if err != nil {
		return err
	}
	has := map[account]bool{}
	for _, c := range known {
		has[account{common.HexToAddress(c.Token), common.HexToAddress(c.PayTo)}] = true
	}
	e.mu.Lock()
	fresh := map[account]uint64{}
	for a, block := range e.accounts {
		if !has[a] {
			fresh[a] = block
		}
	}
	e.mu.Unlock()
	for a, block := range fresh {
		block = min(block, finalized)
		err := e.Ledger.SetCheckpoint(ctx, ledger.Checkpoint{
			Network: e.network, Token: a.token.Hex(), PayTo: a.payTo.Hex(), Block: block - min(block, lookBack),
		})
		if err != nil && !errors.Is(err, ledger.ErrStale) {
			return err
		}
	}
	return nil
}

// compare compares the transfers to one account in some final blocks with the
// ledger.
func (e *Engine) compare(ctx context.Context, a account, from, to uint64) ([]Difference, error) {
	logs, err := e.Chain.Logs(ctx, ethereum.FilterQuery{
		FromBlock: new(big.Int).SetUint64(from), ToBlock: new(big.Int).SetUint64(to),
		Addresses: []common.Address{a.token}, Topics: [][]common.Hash{{evm.TopicTransfer}, nil, {common.BytesToHash(a.payTo[:])}},
	})
	if err != nil {
		return nil, err
	}
	var differences []Difference
	found := map[place]bool{}
	receipts := map[common.Hash]*types.Receipt{}
	for _, l := range logs {
		found[place{l.TxHash.Hex(), l.Index}] = true
		receipt := receipts[l.TxHash]
		if receipt == nil {
			if receipt, err = e.Chain.Receipt(ctx, l.TxHash); err != nil {
				return nil, err
			}
			if receipt == nil {
				return nil, fmt.Errorf("transaction %s has logs but no receipt: a node lags behind", l.TxHash)
			}
			receipts[l.TxHash] = receipt
		}
		d, err := e.judge(ctx, a, l, receipt)
		if err != nil {
			return nil, err
		}
		if d != nil {
			differences = append(differences, *d)
		}
	}
	missing, err := e.missing(ctx, a, from, to, found)
	return append(differences, missing...), err
}

// judge compares one transfer with the ledger. It returns nil if they agree.
func (e *Engine) judge(ctx context.Context, a account, l types.Log, receipt *types.Receipt) (*Difference, error) {
	d := &Difference{
		Kind: Plain, Network: e.network, Token: a.token, PayTo: a.payTo, Payer: common.BytesToAddress(l.Topics[1][:]),
		Units: new(big.Int).SetBytes(l.Data).String(), Transaction: l.TxHash.Hex(), Block: l.BlockNumber, LogIndex: l.Index,
	}
	id, _ := e.network.ChainID()
	if nonce, ok := authorization(l, receipt); ok {
		d.Key = (&evm.Authorization{From: d.Payer, Nonce: nonce}).Key(id, a.token)
	} else if permit, err := e.permit(ctx, l, receipt); err != nil {
		return nil, err
	} else if permit != nil {
		d.Key = permit.Key(id)
	} else {
		return d, nil
	}
	r, err := e.Ledger.Get(ctx, d.Key)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		d.Kind = Unknown
	case err != nil:
		return nil, err
	case r.State == ledger.Dead:
		d.Kind = Contradicted
	case r.State.Paid() && r.Charge != d.Units:
		d.Kind = Mispriced
	default:
		return nil, nil // what is not settled yet is being watched
	}
	return d, nil
}

// authorization returns the nonce of the authorization by which a transfer
// was made: it stands in the log just before it.
func authorization(l types.Log, receipt *types.Receipt) (nonce [32]byte, ok bool) {
	for _, before := range receipt.Logs {
		if before.Index+1 == l.Index && before.Address == l.Address && len(before.Topics) == 3 &&
			before.Topics[0] == evm.TopicAuthorizationUsed && before.Topics[1] == l.Topics[1] {
			return before.Topics[2], true
		}
	}
	return nonce, false
}

// permit returns the permit by which a transfer was made, or nil.
func (e *Engine) permit(ctx context.Context, l types.Log, receipt *types.Receipt) (*evm.Permit, error) {
	logs := logsOf(receipt)
	if !evm.SettlesPermits(logs) {
		return nil, nil
	}
	calls, err := e.calls(ctx, receipt.TxHash, 1)
	if errors.Is(err, errUntraced) {
		e.Logger.Warn("a transfer cannot be told from a payment", "tx", receipt.TxHash.Hex(), "error", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	permit, _ := evm.PermitAt(calls, logs, l.Index)
	return permit, nil
}

// missing returns the payments that the ledger holds for settled in some
// final blocks and that were not found there.
func (e *Engine) missing(ctx context.Context, a account, from, to uint64, found map[place]bool) ([]Difference, error) {
	var differences []Difference
	check := func(r *ledger.Record) {
		it, err := e.itemOf(*r)
		if err != nil || (account{it.signed.Token, it.signed.Payee}) != a || found[place{r.Included.Transaction, r.Included.LogIndex}] {
			return
		}
		differences = append(differences, Difference{
			Kind: Missing, Network: e.network, Token: a.token, PayTo: a.payTo, Payer: it.signed.Payer, Units: r.Charge, Key: r.Key,
			Transaction: r.Included.Transaction, Block: r.Included.Block, LogIndex: r.Included.LogIndex,
		})
	}
	for r, err := range e.Ledger.Paid(ctx, e.network, from, to) {
		if err != nil {
			return nil, err
		}
		check(&r)
	}
	for r, err := range e.Ledger.Open(ctx) {
		if err != nil {
			return nil, err
		}
		if r.Network == e.network && r.State == ledger.Settled && r.Included != nil && r.Included.BlockHash != "" && r.Included.Block >= from && r.Included.Block <= to {
			check(&r)
		}
	}
	return differences, nil
}
