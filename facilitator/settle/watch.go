package settle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
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
	// adoptEvery is how often the ledger is searched for payments that
	// another engine left behind, such as the one before a reload.
	adoptEvery = 15 * time.Second

	// searchAfter is how many looks may find no receipt before the logs are
	// searched for somebody else's transaction.
	searchAfter = 8

	// The pauses between looks of one waiter: short at first, because some
	// chains answer in milliseconds, and then longer.
	firstPause = 2 * time.Millisecond
	lastPause  = 250 * time.Millisecond
)

// add puts an item under watch, or returns the one that is there already for
// the same claim.
func (e *Engine) add(it *item) *item {
	e.mu.Lock()
	defer e.mu.Unlock()
	if known, ok := e.watched[it.key()]; ok && known.snapshot().Claims == it.snapshot().Claims {
		return known
	}
	e.watched[it.key()] = it
	return it
}

// replace puts an item under watch in place of the one that is there: that of
// an earlier claim, which may have been for another offer.
func (e *Engine) replace(it *item) *item {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.watched[it.key()] = it
	return it
}

// item returns the item of a payment that is under watch, or nil.
func (e *Engine) item(k payment.Key) *item {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.watched[k]
}

// adopt puts every open payment of the network under watch, except those that
// another living process watches.
func (e *Engine) adopt(ctx context.Context) error {
	for r, err := range e.Ledger.Open(ctx) {
		if err != nil {
			return fmt.Errorf("settle: reading open payments: %w", err)
		}
		if r.Network != e.network || !r.State.Broadcast() && r.State != ledger.Released || e.item(r.Key) != nil {
			continue
		}
		if r.Owner != e.Ledger.Owner() && e.Ledger.Alive(r.Owner) {
			continue
		}
		if r.IntentBlock == 0 && r.State != ledger.Released {
			continue // settled by a remote facilitator, which watches it
		}
		it, err := e.itemOf(r)
		if err != nil {
			e.Logger.Error("cannot watch a payment", "error", err)
			continue
		}
		e.add(it)
	}
	return nil
}

// watch looks at every payment on every new block, and again if that fails.
func (e *Engine) watch(ctx context.Context) {
	var seen chain.Head // the last one after which every look went well
	adopted := e.Now()
	again := firstPause
	for ctx.Err() == nil {
		another := e.heads.wait()
		if e.Now().Sub(adopted) >= adoptEvery {
			adopted = e.Now()
			if err := e.adopt(ctx); err != nil && ctx.Err() == nil {
				e.Logger.Error("searching the ledger for open payments failed", "error", err)
			}
		}
		head, err := e.Chain.Head()
		if err != nil || head.Hash == seen.Hash {
			pause(ctx, another, adoptEvery)
			continue
		}
		if e.lookAtAll(ctx, head, e.branched(ctx, seen, head)) {
			seen, again = head, firstPause
			continue
		}
		again = longer(again)
		pause(ctx, another, again)
	}
}

// lookAtAll looks at the payments for which a new head can have changed
// something: all of them where it is on another branch. It reports whether
// every look went well.
func (e *Engine) lookAtAll(ctx context.Context, head chain.Head, branched bool) bool {
	d, well := routine, true
	if branched {
		d = thorough
	}
	for _, it := range e.items() {
		if !branched && (it.attended() || !e.due(ctx, it, head)) {
			continue
		}
		if err := e.examine(ctx, it, d); err != nil && ctx.Err() == nil {
			well = false
			e.Logger.Warn("looking at a payment failed", "payment", it.key().String(), "error", err)
		}
	}
	return well
}

// branched reports whether the chain may have left the branch on which seen
// was its head, so that what is settled must be looked at again.
func (e *Engine) branched(ctx context.Context, seen, head chain.Head) bool {
	if seen.Hash == (common.Hash{}) || head.Parent == seen.Hash {
		return false
	}
	now, err := e.Chain.HeaderByNumber(ctx, seen.Number)
	return err != nil || now.Hash != seen.Hash
}

// items returns what is watched, always in the same order: first the payments
// of which it is not known yet what becomes of them. After a restart there may
// be thousands that have nothing left but to become final.
func (e *Engine) items() []*item {
	e.mu.Lock()
	defer e.mu.Unlock()
	keys := slices.SortedFunc(maps.Keys(e.watched), func(a, b payment.Key) int { return bytes.Compare(a[:], b[:]) })
	urgent, others := make([]*item, 0, len(keys)), []*item(nil)
	for _, k := range keys {
		if it := e.watched[k]; it.snapshot().State == ledger.Settled {
			others = append(others, it)
		} else {
			urgent = append(urgent, it)
		}
	}
	return append(urgent, others...)
}

// await looks at an item until it is settled, dead, or ctx ends. fresh says
// that its transaction is just being sent: there is nothing to be seen yet,
// and nodes have something better to do.
func (e *Engine) await(ctx context.Context, it *item, fresh bool) (*payment.Settlement, error) {
	nth := it.attend()
	defer e.leave(it)
	for wait := firstPause; ; wait = longer(wait) {
		r, changed := it.current()
		enough := r.State.Paid() || it.until == payment.Submitted && (r.State == ledger.Sent || r.State == ledger.Included)
		if s, err := it.outcome(r, enough); s != nil || err != nil {
			return s, err
		}
		another := e.heads.wait()
		var err error
		if !fresh {
			err = e.examine(ctx, it, eager)
		}
		fresh = false
		if now := it.snapshot(); now.State != r.State && ctx.Err() == nil {
			continue
		}
		t := time.NewTimer(wait + it.skew(nth))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-another:
		case <-t.C:
		}
		t.Stop()
		if ctx.Err() != nil {
			return nil, &payment.UnavailableError{Doing: "waiting for the settlement", Err: errors.Join(ctx.Err(), err), Pending: true, Transaction: e.transaction(&r), Payer: r.Payer}
		}
	}
}

// leave ends a wait for an item. The watcher leaves items to those who wait for
// them; what is not settled is looked at once more, because it may have been
// passed over at a head that is the last one for long.
func (e *Engine) leave(it *item) {
	it.leave()
	if r := it.snapshot(); r.State.Paid() || r.State.Resting() {
		return
	}
	e.spawn(func(ctx context.Context) {
		_ = e.examine(ctx, it, eager) // what fails is looked at after the next block
	})
}

// transaction returns the hash under which a payment is settled or may be:
// that of the latest attempt, which can have replaced the one in the record.
func (e *Engine) transaction(r *ledger.Record) string {
	if n := len(r.Slots); r.Included == nil && n > 0 {
		l := e.laneOf(common.HexToAddress(r.Slots[n-1].Lane))
		if s, _, _ := l.slot(r.Slots[n-1].Nonce, common.Hash{}); s != nil {
			stored := s.snapshot()
			return stored.Payload().Hash
		}
	}
	return r.Transaction()
}

// longer returns the pause that follows one of d.
func longer(d time.Duration) time.Duration { return min(d*3/2, lastPause) }

// pause waits until ctx ends, wake is closed, or d has passed.
func pause(ctx context.Context, wake <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-t.C:
	}
}

// A depth says how hard to look.
type depth int

const (
	routine  depth = iota // ask only for what the present head can have changed
	eager                 // ask for receipts, which can be there before their head is
	thorough              // ask the token, too, instead of trusting our own transactions
)

// examine asks the chain about an item and takes the steps that follow.
func (e *Engine) examine(ctx context.Context, it *item, d depth) error {
	select {
	case <-it.turn:
		defer func() { it.turn <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if it.look()%searchAfter == 0 {
		d = thorough
	}
	for ctx.Err() == nil { // each turn moves the payment on, and it has few steps to go
		kept := it.snapshot()
		r, err := e.Ledger.Get(ctx, kept.Key)
		if err != nil {
			return err
		}
		if r.Claims != kept.Claims {
			e.forget(it) // it was claimed anew, perhaps for another offer
			return nil
		}
		if r.State != kept.State || r.Newer(&kept) {
			it.set(r)
		}
		if r.State.Resting() {
			e.forget(it)
			return nil
		}
		sight, err := e.look(ctx, it, &r, d)
		if err != nil {
			return err
		}
		it.saw(sight.Fate)
		if sight.Fate == evm.Spent && sight.Mined {
			e.fail(it, len(r.Slots))
		}
		step := Decide(&r, it.until, it.signed.Expiry, sight)
		if step.To == r.State && same(step.Found, r.Included) {
			if step.Retry {
				e.again(it, &r)
			}
			return nil
		}
		if err := e.agreed(ctx, it, &r, step, sight); err != nil {
			return err
		}
		next, err := e.take(ctx, r, step)
		if errors.Is(err, ledger.ErrStale) {
			continue // somebody else was faster: go on from what is stored
		}
		if err != nil {
			return err
		}
		e.Logger.Info("payment", "payment", next.Key.String(), "from", string(r.State), "state", string(next.State), "tx", next.Transaction(),
			"payer", next.Payer, "units", next.Charge, "network", string(e.network), "reason", next.Reason)
		it.set(next)
		if step.Resend {
			e.urge(&next)
		}
		if d == eager && next.State.Paid() {
			return nil // somebody waits for no more; the watcher does the rest
		}
	}
	return ctx.Err()
}

// urge has the transactions of a payment sent again.
func (e *Engine) urge(r *ledger.Record) {
	for _, ref := range r.Slots {
		if s, _, _ := e.laneOf(common.HexToAddress(ref.Lane)).slot(ref.Nonce, common.Hash{}); s != nil {
			s.urge()
		}
	}
	e.nudges.fire()
}

// maxSlots is in how many transactions a payment is tried.
const maxSlots = 3

// again has a payment put into another transaction: those that it was in are
// in blocks and did not settle it, and the authorization is unused. The first
// time its transaction carries at most half of what the last one did, then
// nothing else. A transfer that fails when it is simulated stays as it is,
// until there is a proof of what becomes of it, and so does one whose payer has
// code. seen is the payment as it was
// looked at: another transaction that it got meanwhile has not been seen.
func (e *Engine) again(it *item, seen *ledger.Record) {
	r := it.snapshot()
	head, err := e.Chain.Head()
	if err != nil || len(r.Slots) != len(seen.Slots) || len(r.Slots) == 0 || len(r.Slots) >= maxSlots || head.Time+evm.MinValidity > it.signed.Expiry || !it.retry(e.Now()) {
		return
	}
	e.fail(it, len(r.Slots))
	t := &ticket{it: it, most: 1, retry: true, done: make(chan struct{})}
	if last := r.Slots[len(r.Slots)-1]; len(r.Slots) == 1 {
		if s, _, _ := e.laneOf(common.HexToAddress(last.Lane)).slot(last.Nonce, common.Hash{}); s != nil {
			t.most = (len(s.stored.Items) + 1) / 2 // they never change
		}
	}
	e.queueAgain(t)
}

// fail tells that so many transactions with a payment were in blocks and did
// nothing, unless that has been told.
func (e *Engine) fail(it *item, slots int) {
	if e.Failed != nil && it.failedIn(slots) {
		e.Failed(it.signed)
	}
}

// take stores a step. Nobody waits for the disk where the step is Forgettable;
// that a payment is dead invites the payer to pay again and must not be
// forgotten.
func (e *Engine) take(ctx context.Context, r ledger.Record, step Step) (ledger.Record, error) {
	change := func(now *ledger.Record) error {
		if now.State != r.State || now.Claims != r.Claims {
			return ledger.ErrStale
		}
		now.Included, now.Reason = step.Found, step.Reason
		if step.Found != nil && now.IntentBlock == 0 {
			now.IntentBlock = step.Found.Block // from here on the payment is ours to watch
		}
		if step.To == now.State {
			return nil
		}
		return now.To(step.To)
	}
	if Forgettable(r.State, step.To) {
		return e.Ledger.UpdateLater(ctx, r.Key, change)
	}
	return e.Ledger.Update(ctx, r.Key, change)
}

// forget ends the watch over an item, unless another has taken its place.
func (e *Engine) forget(it *item) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.watched[it.key()] == it {
		delete(e.watched, it.key())
	}
}

// look finds out what the chain shows of an item: the receipts of our own
// transactions first, and, when they say nothing or the depth asks for it,
// the token itself, for whoever may have submitted the authorization.
func (e *Engine) look(ctx context.Context, it *item, r *ledger.Record, d depth) (Sight, error) {
	head, err := e.Chain.Head()
	if err != nil {
		return Sight{}, err
	}
	s := Sight{Head: head.Number, Mined: len(r.Slots) > 0}
	search := d == thorough || len(r.Slots) == 0
	for i := len(r.Slots) - 1; i >= 0 && s.Fate == evm.Untouched; i-- {
		mined, err := e.lookAtSlot(ctx, it, r.Slots[i], head.Hash, d, &s)
		if err != nil {
			return Sight{}, err
		}
		s.Mined = s.Mined && mined
		search = search || mined // whatever it did, if it was not the transfer
	}
	// The receipt of a new block can be known before its head is.
	s.Head = max(s.Head, s.Found.Block)
	if s.Fate == evm.Paid && r.State != ledger.Settled && countable(it.until) {
		return s, e.confirm(ctx, it, &s, head, horizon{})
	}
	if s.Fate == evm.Untouched && !search && r.Included == nil && head.Time < it.signed.Expiry {
		return s, nil // on its way; nothing else can be known yet
	}
	h, err := e.finality(ctx, head)
	if err != nil {
		return Sight{}, err
	}
	s.Safe, s.Finalized, s.FinalizedTime = h.safe.Number, h.finalized.Number, h.finalized.Time
	expired := s.FinalizedTime >= it.signed.Expiry
	if s.Fate == evm.Untouched && (search || expired || r.Included != nil) {
		if err := e.search(ctx, it, r, h, &s); err != nil {
			return Sight{}, err
		}
	}
	return s, e.confirm(ctx, it, &s, head, h)
}

// errMoved says that a look combined what different branches of the chain
// show. It is looked at again.
var errMoved = errors.New("the chain has moved while it was looked at")

// confirm makes sure, before anything is concluded from how deep a block is,
// that the block and the one that its depth was reckoned from are of one
// branch: a receipt can come from a node that is late, or from before a reorg.
// That a block is the only thing asked for needs no depth.
func (e *Engine) confirm(ctx context.Context, it *item, s *Sight, head chain.Head, h horizon) error {
	if s.Fate == evm.Untouched {
		return nil
	}
	n, counted := it.until.Confirmations()
	var from chain.Head
	switch {
	case s.Found.Block <= s.Finalized:
		from = h.finalized
	case s.Found.Block <= s.Safe:
		from = h.safe
	case counted && n > 1 && final(it.until, s.Found.Block, *s):
		from = head
	default:
		return nil
	}
	now, err := e.Chain.Headers(ctx, s.Found.Block, from.Number)
	if err == nil && (now[0].Hash != common.HexToHash(s.Found.BlockHash) || now[1].Hash != from.Hash) {
		err = errMoved
	}
	return err
}

// lookAtSlot reads what a slot did for an item, and reports whether its nonce
// is used.
func (e *Engine) lookAtSlot(ctx context.Context, it *item, ref ledger.SlotRef, head common.Hash, d depth, s *Sight) (mined bool, err error) {
	known, used, unmined := e.laneOf(common.HexToAddress(ref.Lane)).slot(ref.Nonce, head)
	if unmined && d == routine {
		return false, nil
	}
	if known == nil {
		receipt, err := e.Chain.Receipt(ctx, common.HexToHash(ref.Hash))
		if receipt == nil || err != nil {
			return used, err
		}
		return true, e.read(ctx, it, receipt, logsOf(receipt), nil, 1, s)
	}
	receipt, logs, err := e.receipt(ctx, known)
	if receipt == nil || err != nil {
		return used, err
	}
	// Whatever is in a block of this nonce is ours, and does what the item
	// asks for, or nothing and has no logs.
	return true, e.read(ctx, it, receipt, logs, []evm.Call{it.signed.Spend(it.charge.Big())}, 1, s)
}

func countable(f payment.Finality) bool {
	_, ok := f.Confirmations()
	return ok
}

// A horizon is how far the chain is final, as asked for one head.
type horizon struct {
	head, safe, finalized chain.Head
}

// finality returns how far the chain is final. It asks once for each head.
func (e *Engine) finality(ctx context.Context, head chain.Head) (horizon, error) {
	e.mu.Lock()
	h := e.horizon
	e.mu.Unlock()
	if h.head.Hash == head.Hash {
		return h, nil
	}
	h = horizon{head: head}
	var err error
	// Where the node has no such block yet, nothing is final.
	if h.finalized, err = e.Chain.Finalized(ctx); err != nil && !errors.Is(err, chain.ErrUnknownBlock) {
		return horizon{}, err
	}
	if h.safe, err = e.Chain.Safe(ctx); err != nil && !errors.Is(err, chain.ErrUnknownBlock) {
		return horizon{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.horizon = h
	return h, nil
}

// due reports whether a look can show anything new on a chain that goes on to
// head: payments that have nothing left but to become final, or to expire,
// are left alone until then. But a transfer can be found in a block that is
// not on the way to the head that is known here, and may never be; it is
// looked at until it is.
func (e *Engine) due(ctx context.Context, it *item, head chain.Head) bool {
	r := it.snapshot()
	if r.State != ledger.Settled && r.State != ledger.Released {
		return true
	}
	h, err := e.finality(ctx, head)
	if err != nil {
		return false
	}
	if r.State == ledger.Settled && r.Included != nil {
		return r.Included.Block <= h.finalized.Number || !e.anchor(ctx, it, r.Included, head)
	}
	return h.finalized.Time >= it.signed.Expiry
}

// anchor reports whether the block with an item's transfer is on the way to
// head, as far as the nodes say.
func (e *Engine) anchor(ctx context.Context, it *item, found *ledger.Inclusion, head chain.Head) bool {
	if it.isAnchored(found.BlockHash) {
		return true
	}
	switch {
	case found.Block > head.Number:
		return false
	case found.Block == head.Number:
		if head.Hash.Hex() != found.BlockHash {
			return false
		}
	case found.Block+1 == head.Number:
		if head.Parent.Hex() != found.BlockHash {
			return false
		}
	default:
		now, err := e.Chain.HeaderByNumber(ctx, found.Block)
		if err != nil || now.Hash.Hex() != found.BlockHash {
			return false
		}
	}
	it.anchor(found.BlockHash)
	return true
}

// search asks whether the nonce has been used, and if so, reads the logs since
// the payment was decided on for what used it.
func (e *Engine) search(ctx context.Context, it *item, r *ledger.Record, h horizon, s *Sight) error {
	used, err := e.usedAt(ctx, it, h.head.Hash)
	if err != nil {
		return err
	}
	if !used {
		s.Complete = true
		return nil
	}
	q := it.uses(since(r, h), h.head.Number)
	logs, err := e.Chain.Logs(ctx, q)
	if err != nil {
		return err
	}
	if err := e.judgeAll(ctx, it, logs, 1, s); err != nil {
		return err
	}
	s.Head = max(s.Head, s.Found.Block)
	if s.Fate != evm.Untouched || it.signed.Permit == nil {
		return nil
	}
	// A payment by Permit2 would have left a Transfer, and none that is there
	// is one. Where that is final the nonce was used by something else.
	s.Fate, s.Found = evm.Spent, ledger.Inclusion{Block: h.head.Number, BlockHash: h.head.Hash.Hex()}
	if h.finalized.Hash == (common.Hash{}) {
		return nil
	}
	if used, err = e.usedAt(ctx, it, h.finalized.Hash); err == nil && used {
		s.Found = ledger.Inclusion{Block: h.finalized.Number, BlockHash: h.finalized.Hash.Hex()}
	}
	return err
}

// uses is the filter for the logs that lead to what may have used the item's
// nonce in some blocks.
func (it *item) uses(from, to uint64) ethereum.FilterQuery {
	return ethereum.FilterQuery{
		FromBlock: new(big.Int).SetUint64(from), ToBlock: new(big.Int).SetUint64(to),
		Addresses: []common.Address{it.signed.Token}, Topics: it.signed.Uses(),
	}
}

// judgeAll reads the transactions that logs are of, until one has paid. With nodes
// above 1 as many must show each.
func (e *Engine) judgeAll(ctx context.Context, it *item, logs []types.Log, nodes int, s *Sight) error {
	judged := map[common.Hash]bool{}
	for _, l := range logs {
		if l.Removed || judged[l.TxHash] {
			continue
		}
		judged[l.TxHash] = true
		receipt, err := e.receiptBy(ctx, l.TxHash, nodes)
		if err != nil {
			return err
		}
		if receipt == nil {
			return fmt.Errorf("transaction %s has logs but no receipt: a node lags behind", l.TxHash)
		}
		if err := e.read(ctx, it, receipt, logsOf(receipt), nil, nodes, s); err != nil || s.Fate == evm.Paid {
			return err
		}
	}
	return nil
}

// receiptBy is the receipt of a transaction, of which so many nodes must show
// the same, or nil.
func (e *Engine) receiptBy(ctx context.Context, tx common.Hash, nodes int) (*types.Receipt, error) {
	if nodes > 1 {
		return e.Chain.Witness(ctx, tx, nodes)
	}
	return e.Chain.Receipt(ctx, tx)
}

// lookBack is how many blocks before a payment was decided on the search
// begins: somebody else may have submitted the authorization while we still
// verified it.
const lookBack = 256

// since returns the block from which on the authorization of r may have been
// used. Where no block was noted, or one that the chain has not reached, it
// follows from the time of the claim and the chain's pace, twice over.
func since(r *ledger.Record, h horizon) uint64 {
	from := r.IntentBlock
	if from == 0 || from > h.head.Number {
		blocks, seconds := h.head.Number-min(h.head.Number, h.finalized.Number), h.head.Time-min(h.head.Time, h.finalized.Time)
		age := h.head.Time - min(h.head.Time, uint64(max(0, r.Since.Unix())))
		pace := blocks/max(1, seconds) + 1 // per second
		from = h.head.Number - min(h.head.Number, 2*age*pace)
	}
	return from - min(from, lookBack)
}

// read takes what one receipt with its logs says about the item. sent are the
// transaction's calls where they are known; they are asked for where they are
// needed and nil.
func (e *Engine) read(ctx context.Context, it *item, receipt *types.Receipt, logs []evm.Log, sent []evm.Call, nodes int, s *Sight) error {
	if receipt.Status != types.ReceiptStatusSuccessful {
		return nil
	}
	if sent == nil && it.signed.Permit != nil && evm.SettlesPermits(logs) {
		var err error
		if sent, err = e.calls(ctx, receipt.TxHash, nodes); err != nil {
			return err
		}
	}
	fate, moved, at := it.signed.Judge(sent, logs)
	if fate == evm.Untouched {
		return nil
	}
	if fate == evm.Paid && moved.Cmp(it.charge.Big()) != 0 {
		e.Logger.Error("a payment moved another amount than was charged", "payment", it.key().String(), "tx", receipt.TxHash.Hex(), "moved", moved.String(), "units", it.charge.Units())
	}
	s.Fate = fate
	s.Found = ledger.Inclusion{
		Transaction: receipt.TxHash.Hex(), Block: receipt.BlockNumber.Uint64(),
		BlockHash: receipt.BlockHash.Hex(), LogIndex: at,
	}
	return nil
}

// errUntraced says that only a trace shows what a transaction did, and that no
// node gives one.
var errUntraced = errors.New("permits are settled in an inner call: a node with debug_traceTransaction is needed to see which")

// calls returns the calls that a transaction made: its own if that settles a
// permit, else all of them, which only a trace shows. What a transaction's own
// call is follows from its hash; a trace must be shown by so many nodes.
func (e *Engine) calls(ctx context.Context, hash common.Hash, nodes int) ([]evm.Call, error) {
	tx, err := e.Chain.Transaction(ctx, hash)
	switch {
	case errors.Is(err, chain.ErrForeignTransaction):
	case err != nil:
		return nil, err
	case tx == nil:
		return nil, fmt.Errorf("transaction %s has a receipt, but a node does not know it", hash)
	case tx.To() != nil && (*tx.To() == evm.ExactProxy || *tx.To() == evm.UptoProxy):
		return []evm.Call{{To: *tx.To(), Data: tx.Data()}}, nil
	}
	inner, err := e.Chain.Trace(ctx, hash, max(1, nodes))
	if err != nil {
		return nil, fmt.Errorf("%w: transaction %s: %w", errUntraced, hash, err)
	}
	calls := make([]evm.Call, len(inner))
	for i, c := range inner {
		calls[i] = evm.Call{To: c.To, Data: c.Data}
	}
	return calls, nil
}

// usedByNow asks whether the item's nonce is used, in whatever block the node
// has just now, and usedAt after a block, which must be canonical.
func (e *Engine) usedByNow(ctx context.Context, it *item) (bool, error) {
	used := it.usedCall()
	if err := e.Chain.Ask(ctx, used); err != nil {
		return false, err
	}
	return it.used(used)
}

func (e *Engine) usedAt(ctx context.Context, it *item, block common.Hash) (bool, error) {
	used := it.usedCall()
	if err := e.Chain.AskAt(ctx, block, used); err != nil {
		return false, err
	}
	return it.used(used)
}

// usedCall is the question whether the nonce is used, and used reads the
// answer.
func (it *item) usedCall() *chain.Call {
	call := it.signed.UsedCall()
	return &chain.Call{Msg: ethereum.CallMsg{To: &call.To, Data: call.Data}}
}

func (it *item) used(c *chain.Call) (bool, error) {
	if c.Err != nil {
		return false, c.Err
	}
	return it.signed.Used(c.Output)
}

func same(a, b *ledger.Inclusion) bool {
	return a == b || a != nil && b != nil && *a == *b
}
