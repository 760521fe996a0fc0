package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A kind of problem.
type kind string

const (
	doubleCharge kind = "double charge" // two transfers for one order, or one for a payment that was refused
	lost         kind = "lost"          // money moved, and nobody got anything for it, or the ledger does not know
	doubleGrant  kind = "double grant"  // one payment bought twice
	unpaid       kind = "served unpaid" // goods, and no money
	late         kind = "taken over late"
	other        kind = "other"
)

// A problem is one thing that must not be.
type problem struct {
	kind   kind
	what   string
	cheque *cheque // nil where it is about none
}

func (p *problem) Error() string { return string(p.kind) + ": " + p.what }

// An auditor holds what clients were told, what the ledgers say and what the
// upstream did against the chain.
type auditor struct {
	book     *book
	chain    *devchain.Chain
	seller   common.Address
	upstream *upstream
	scratch  string       // a folder for copies of ledgers
	shared   ledger.Store // the ledger, where processes share one; nil where each has a folder of its own
	reruns   bool         // the upstream may run again for an order after its payment was released

	next      uint64                          // the first block that has not been read
	scanned   time.Time                       // when that was found out
	overdue   int                             // how many of the book's late cheques have been reported
	transfers int                             // that were found
	moved     *big.Int                        // atomic units
	fresh     map[string]map[*cheque]struct{} // by ledger: whose transfer was found since it was last looked at
}

// scan reads the transfers of new blocks.
func (a *auditor) scan(ctx context.Context) ([]problem, error) {
	a.scanned = time.Now()
	client := a.chain.Client()
	head, err := client.BlockNumber(ctx)
	if err != nil || head < a.next {
		return nil, err
	}
	logs, err := client.FilterLogs(ctx, ethereum.FilterQuery{
		FromBlock: new(big.Int).SetUint64(a.next), ToBlock: new(big.Int).SetUint64(head), Addresses: []common.Address{devchain.USDC},
	})
	if err != nil {
		return nil, fmt.Errorf("reading the chain: %w", err)
	}
	a.next = head + 1
	var problems []problem
	a.book.mu.Lock()
	defer a.book.mu.Unlock()
	for i, l := range logs {
		if l.Topics[0] != evm.TopicAuthorizationUsed {
			continue
		}
		payer, nonce := common.BytesToAddress(l.Topics[1][:]), l.Topics[2]
		c, known := a.book.cheques[nonce]
		var t *types.Log
		if i+1 < len(logs) && logs[i+1].TxHash == l.TxHash && logs[i+1].Index == l.Index+1 && logs[i+1].Topics[0] == evm.TopicTransfer {
			t = &logs[i+1]
		}
		switch {
		case !known || c.payer != payer:
			problems = append(problems, problem{other, fmt.Sprintf("transaction %s spends nonce %s of %s, which no client signed", l.TxHash, nonce, payer), nil})
			continue
		case t == nil || common.BytesToAddress(t.Topics[1][:]) != payer || common.BytesToAddress(t.Topics[2][:]) != a.seller:
			problems = append(problems, problem{lost, "its nonce was used without a transfer to the seller, in " + l.TxHash.Hex(), c})
			continue
		case c.landed != (common.Hash{}):
			problems = append(problems, problem{doubleCharge, "it was transferred twice, in " + c.landed.Hex() + " and " + l.TxHash.Hex(), c})
			continue
		}
		c.landed = l.TxHash
		a.book.say(c, "the chain moved the money in %s, block %d", l.TxHash, l.BlockNumber)
		a.transfers++
		a.moved.Add(a.moved, new(big.Int).SetBytes(t.Data))
		for _, list := range a.fresh {
			list[c] = struct{}{}
		}
		// A refusal is a promise that holds for ever.
		if c.refused != "" {
			problems = append(problems, problem{doubleCharge, "the client was told to pay again, and the payment settled: " + c.refused, c})
		}
		for _, sibling := range c.order.cheques {
			if sibling != c && sibling.landed != (common.Hash{}) {
				problems = append(problems, problem{doubleCharge, fmt.Sprintf("order %s was paid twice, also by %s", c.order.id, sibling.key), c})
			}
		}
	}
	return problems, nil
}

// clients checks what clients that still ask or have lately asked were given.
// It forgets what is over and done with.
func (a *auditor) clients() []problem {
	var problems []problem
	a.book.mu.Lock()
	defer a.book.mu.Unlock()
	for _, c := range a.book.late[a.overdue:] {
		problems = append(problems, problem{late, fmt.Sprintf("an instance that had it under way died, and it was answered %s later, and more than %s after the last death",
			c.takeover.Round(time.Millisecond), a.book.limit), c})
	}
	a.overdue = len(a.book.late)
	for nonce, c := range a.book.cheques {
		orders, most := a.upstream.did(c.key.String())
		same := slices.Compact(slices.Sorted(slices.Values(orders)))
		switch {
		case len(same) > 1:
			problems = append(problems, problem{doubleGrant, fmt.Sprintf("the upstream ran for the orders %v", same), c})
		case most > 1:
			problems = append(problems, problem{doubleGrant, fmt.Sprintf("the upstream ran %d times at once", most), c})
		case len(orders) > 1 && c.order.route == "order" && !a.reruns:
			problems = append(problems, problem{doubleGrant, fmt.Sprintf("the upstream ran %d times for a POST", len(orders)), c})
		case !c.served.IsZero() && c.served.Before(a.scanned) && c.landed == (common.Hash{}):
			problems = append(problems, problem{unpaid, "the client has the goods, and no money moved", c})
		case c.refused != "" && c.landed != (common.Hash{}):
			problems = append(problems, problem{doubleCharge, "the client was told to pay again for a payment that has settled: " + c.refused, c})
		}
		over := c.done && !c.served.IsZero() && c.landed != (common.Hash{}) && c.cycle+10 < int(a.book.cycle.Load())
		for _, list := range a.fresh {
			_, listed := list[c]
			over = over && !listed
		}
		if over && !slices.Contains(a.book.recent, c) {
			// Only its place in the order's list and its transaction still count.
			c.value, c.history = "", nil
			delete(a.book.cheques, nonce)
			delete(a.book.byKey, c.key.String())
			a.upstream.forget(c.key.String())
		}
	}
	return problems
}

// closing checks, when nobody asks any more, that whoever paid has something
// for it.
func (a *auditor) closing() []problem {
	var problems []problem
	a.book.mu.Lock()
	defer a.book.mu.Unlock()
	for _, c := range a.book.cheques {
		if c.landed != (common.Hash{}) && c.served.IsZero() && c.refused == "" && !c.owed {
			problems = append(problems, problem{lost, "the money moved, and the client got nothing", c})
		}
	}
	if got := a.chain.USDCBalance(a.seller); got.Cmp(a.moved) != 0 {
		problems = append(problems, problem{other, fmt.Sprintf("the seller has %s units, the transfers add up to %s", got, a.moved), nil})
	}
	return problems
}

// ledger checks that the ledger of a dead process knows of the transfers that
// the chain has made since it was last looked at. ended says that the process
// has ended in good order with nothing left to do; then every payment is
// looked at.
func (a *auditor) ledger(ctx context.Context, name string, ended bool) (problems []problem, err error) {
	store := a.shared
	if store == nil {
		if store, err = a.duplicate(name); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
	}
	for _, c := range a.due(name, ended) {
		e, err := entryOf(ctx, store, c.key)
		if err != nil {
			return nil, err
		}
		a.book.mu.Lock()
		landed := c.landed != (common.Hash{})
		c.owed = e.owed()
		a.book.say(c, "the ledger says %q", e.State)
		a.book.mu.Unlock()
		if text := disagrees(e.State, landed, ended); text != "" {
			problems = append(problems, problem{lost, text, c})
		}
	}
	return problems, nil
}

// duplicate opens a copy of the ledger in a folder: what a crash leaves behind
// is for the product to open first.
func (a *auditor) duplicate(dir string) (ledger.Store, error) {
	if err := os.RemoveAll(a.scratch); err != nil {
		return nil, err
	}
	if err := copyFiles(a.scratch, dir); err != nil {
		return nil, fmt.Errorf("copying the ledger: %w", err)
	}
	store, err := badger.Open(a.scratch, badger.Options{})
	if err != nil {
		return nil, fmt.Errorf("opening a copy of the ledger of a killed process: %w", err)
	}
	return store, nil
}

// due returns the payments to look up in a ledger, and takes them off its list.
func (a *auditor) due(name string, all bool) []*cheque {
	a.book.mu.Lock()
	defer a.book.mu.Unlock()
	list := slices.Collect(maps.Keys(a.fresh[name]))
	if all {
		list = slices.Collect(maps.Values(a.book.cheques))
	}
	clear(a.fresh[name])
	return list
}

// disagrees says what is wrong with a state of the ledger, or "".
func disagrees(state string, landed, ended bool) string {
	switch state {
	case "", "RELEASED", "DEAD", "RESERVED", "EXECUTING", "EXECUTED":
		if landed {
			return fmt.Sprintf("the chain moved the money, and the ledger says %q", state)
		}
	case "SETTLED", "ARCHIVED", "REFUND_DUE", "REFUNDED":
		if !landed {
			return fmt.Sprintf("the ledger says %q, and the chain moved no money", state)
		}
	default: // on its way
		if ended && landed {
			return fmt.Sprintf("the chain moved the money long ago, and the ledger says %q", state)
		}
	}
	return ""
}

// An entry is what is read of a payment's entry in a ledger.
type entry struct {
	State    string    `json:"state"`
	Delivery string    `json:"delivery"`
	Updated  time.Time `json:"updated"`
}

// entryOf returns a payment's entry, the zero value where the ledger has none.
func entryOf(ctx context.Context, store ledger.Store, k payment.Key) (e entry, err error) {
	stored, err := store.Get(ctx, ledger.Key("pay/"+k.String()))
	if errors.Is(err, ledger.ErrNotFound) {
		return entry{}, nil
	}
	if err == nil {
		err = json.Unmarshal(stored.Value, &e)
	}
	if err != nil {
		return entry{}, fmt.Errorf("reading payment %s in the ledger: %w", k, err)
	}
	return e, nil
}

// owed reports whether the payer is to get its money back.
func (e *entry) owed() bool {
	return e.State == "REFUND_DUE" || e.State == "REFUNDED" || e.Delivery == "UNDELIVERABLE"
}

// copyFiles copies the files of a folder that has no folders in it.
func copyFiles(to, from string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "LOCK" || strings.HasSuffix(e.Name(), ".pid") {
			continue
		}
		if err := copyFile(filepath.Join(to, e.Name()), filepath.Join(from, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a file and leaves holes where it has zeros, of which
// Badger's files have megabytes.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	size, err := copySparse(out, in)
	return errors.Join(err, out.Truncate(size), out.Close())
}

func copySparse(out io.WriterAt, in io.Reader) (size int64, err error) {
	page, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(in, page)
		if n > 0 && string(page[:n]) != string(zeros[:n]) {
			if _, err := out.WriteAt(page[:n], size); err != nil {
				return size, err
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return size, nil
		}
		if err != nil {
			return size, err
		}
	}
}
