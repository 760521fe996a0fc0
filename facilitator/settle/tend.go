package settle

import (
	"context"
	"errors"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/ledger"
)

const (
	// resendAfter is how long a transaction may stay unseen before the same
	// bytes are sent again, or dearer ones if its fee is too low by now.
	resendAfter = 4 * time.Second

	// bumpAfter and bumpBlocks are how long a transaction with a sufficient
	// fee may stay unseen before it is replaced by a dearer one.
	bumpAfter  = 12 * time.Second
	bumpBlocks = 3

	// scanEvery is how often the ledger is searched for slots that another
	// engine has taken.
	scanEvery = 2 * time.Second

	// beatPause is the longest time between two calls of Beat, which decides
	// itself whether it is time to say something.
	beatPause = time.Second

	// tendPause is the least time between two looks at the lanes, for chains
	// that make blocks faster than anybody needs to look.
	tendPause = 20 * time.Millisecond

	// maxRetired bounds how many slots are forgotten in one commit.
	maxRetired = 100

	// maxDearer bounds a replacement's fee, as a multiple of what a new
	// transaction would pay, above dearFloor.
	maxDearer = 5

	// fillGas is the gas of a call that does nothing.
	fillGas = 21_000
)

// dearFloor is the fee, in wei per gas, up to which nobody minds what a
// replacement costs.
var dearFloor = big.NewInt(10_000_000_000)

// beat says again and again that this process is alive, and looks which others
// are. It does nothing else: a node that does not answer must not make this
// process look dead to the others.
func (e *Engine) beat(ctx context.Context) {
	for ctx.Err() == nil {
		another := e.heads.wait()
		if err := e.Ledger.Beat(ctx); err != nil && ctx.Err() == nil {
			e.Logger.Error("telling other processes that this one is alive failed", "error", err)
		}
		pause(ctx, nil, tendPause)
		pause(ctx, another, beatPause)
	}
}

// tend keeps every lane going: on every new block, and whenever it is woken,
// it sends what is not mined again, replaces what is stuck, and fills the
// nonces that nobody needs any more.
func (e *Engine) tend(ctx context.Context) {
	scanned := e.Now()
	deaths := e.Ledger.Deaths()
	for ctx.Err() == nil {
		head, nudge := e.heads.wait(), e.nudges.wait()
		if n := e.Ledger.Deaths(); n != deaths {
			if err := e.inherit(ctx); err == nil {
				deaths, scanned = n, e.Now()
			} else if ctx.Err() == nil {
				e.Logger.Error("taking over from a process that has died failed", "error", err)
			}
		}
		if e.Now().Sub(scanned) >= scanEvery {
			scanned = e.Now()
			if err := e.scan(ctx, scanned); err != nil && ctx.Err() == nil {
				e.Logger.Error("searching the ledger for open nonces failed", "error", err)
			}
		}
		for _, l := range e.allLanes() {
			if err := errors.Join(e.recheck(ctx, l), e.pass(ctx, l)); err != nil && ctx.Err() == nil {
				e.Logger.Warn("lane not tended", "lane", l.address.Hex(), "error", err)
			}
		}
		pause(ctx, nil, tendPause)
		t := time.NewTimer(scanEvery)
		select {
		case <-ctx.Done():
		case <-head:
		case <-nudge:
		case <-t.C:
		}
		t.Stop()
	}
}

// inherit takes over what a process has left that died: its payments, and the
// nonces that it took.
func (e *Engine) inherit(ctx context.Context) error {
	n, err := e.Ledger.Recover(ctx, false)
	if err != nil {
		return err
	}
	if n > 0 {
		e.Logger.Info("released payments that another process had claimed and not settled", "count", n)
	}
	if err := e.adopt(ctx); err != nil {
		return err
	}
	return e.scan(ctx, time.Time{})
}

// keeps reports whether this process is the keeper of a lane, and makes it
// the keeper if the former one is not alive any more. Somebody else's lane,
// whose key is not here, has no keeper: what it has sent may be sent again by
// anybody.
func (e *Engine) keeps(ctx context.Context, l *lane) (bool, error) {
	if l.signer == nil {
		return true, nil
	}
	for {
		state, err := e.laneState(ctx, l)
		if err != nil || state.Keeper == e.Ledger.Owner() {
			return err == nil, err
		}
		if state.Keeper != "" && !e.Ledger.Gone(state.Keeper) {
			return false, nil
		}
		former := state.Keeper
		state.Keeper = e.Ledger.Owner()
		state.Epoch++
		stored, err := e.Ledger.SetLane(ctx, state)
		if err != nil {
			return false, err
		}
		if stored {
			if former != "" {
				e.Logger.Info("lane taken over", "lane", l.address.Hex(), "from", former, "epoch", state.Epoch)
			}
			return true, nil
		}
	}
}

// scan takes up the slots that the ledger holds. New ones count as sent at
// the given time.
func (e *Engine) scan(ctx context.Context, sent time.Time) error {
	before := map[*slot]bool{} // what was followed when the ledger was read
	for _, l := range e.allLanes() {
		for _, s := range l.slots() {
			before[s] = true
		}
	}
	slots, err := e.Ledger.Slots(ctx, e.network)
	if err != nil {
		return err
	}
	for _, stored := range slots {
		l := e.laneOf(common.HexToAddress(stored.Lane))
		delete(before, l.keep(newSlot(l, stored, sent)))
	}
	for s := range before { // retired by another engine
		s.lane.drop(s)
	}
	return nil
}

// pass compares the nonces of a lane's account with its open slots.
func (e *Engine) pass(ctx context.Context, l *lane) error {
	if l.signer != nil {
		var shared *SharedKeyError
		if err := e.usable(ctx, l); err != nil && !errors.As(err, &shared) {
			return err
		}
	}
	slots := l.slots()
	if len(slots) == 0 && (l.signer == nil || !l.unweighed(e.Now())) {
		return nil
	}
	head, err := e.Chain.Head()
	if err != nil {
		return nil // nothing is known; the next head tells
	}
	mined, err := e.account(ctx, l, head.Hash)
	if err != nil || len(slots) == 0 {
		return err
	}
	final, err := e.finalNonce(ctx, l, head, slots[0].nonce, mined)
	if err != nil {
		return err
	}
	l.counted(head.Hash, mined, final)
	keeper, err := e.keeps(ctx, l)
	if err != nil {
		return err
	}
	var done []*slot
	flying := 0
	for _, s := range slots {
		s.usedNow(s.nonce < mined)
		switch {
		case !keeper:
		case s.nonce < final:
			if len(done) < maxRetired {
				done = append(done, s)
			}
		case s.nonce < mined:
		case flying < e.MaxInFlight:
			flying++
			if err := e.nurse(ctx, s, head, s.nonce == mined); err != nil {
				return err
			}
		}
	}
	return e.retire(ctx, done)
}

// finalNonce returns how many transactions of a lane are in final blocks, of
// which first is the first that is still followed. It asks only where that
// matters, and a quorum, where there is one, before anything is forgotten.
func (e *Engine) finalNonce(ctx context.Context, l *lane, head chain.Head, first, mined uint64) (uint64, error) {
	if first >= mined {
		return 0, nil
	}
	h, err := e.finality(ctx, head)
	if err != nil || h.finalized.Hash == (common.Hash{}) {
		return 0, err
	}
	final, err := e.nonceAt(ctx, l.address, h.finalized.Hash)
	if err != nil || final <= first || e.Quorum.Nodes < 2 {
		return final, err
	}
	return e.nonceOfMany(ctx, l.address, chain.Finalized, func(many chain.Head) bool { return many.Number >= h.finalized.Number })
}

// account asks for the state of a lane's account after a block, which must be
// canonical: it notes the balance and returns how many nonces are used.
func (e *Engine) account(ctx context.Context, l *lane, block common.Hash) (uint64, error) {
	n, b := &chain.Nonce{Address: l.address}, &chain.Balance{Address: l.address}
	if err := e.Chain.AskAt(ctx, block, n, b); err != nil {
		return 0, err
	}
	if n.Err != nil || b.Err != nil {
		return 0, errors.Join(n.Err, b.Err)
	}
	e.weigh(l, b.Wei)
	return n.Nonce, nil
}

// nonceAt returns how many transactions of an account are in the chain up to
// a block, which must be canonical.
func (e *Engine) nonceAt(ctx context.Context, account common.Address, block common.Hash) (uint64, error) {
	n := &chain.Nonce{Address: account}
	if err := e.Chain.AskAt(ctx, block, n); err != nil {
		return 0, err
	}
	return n.Nonce, n.Err
}

// retire forgets slots whose nonces are used for good.
func (e *Engine) retire(ctx context.Context, slots []*slot) error {
	if len(slots) == 0 {
		return nil
	}
	stored := make([]ledger.Slot, len(slots))
	for i, s := range slots {
		stored[i] = s.snapshot()
	}
	err := e.Ledger.Retire(ctx, stored...)
	if errors.Is(err, ledger.ErrStale) {
		return e.scan(ctx, e.Now()) // another engine was faster
	}
	if err != nil {
		return err
	}
	for _, s := range slots {
		e.refund(s)
		s.lane.drop(s)
	}
	return nil
}

// nurse looks after a slot that is not mined. next says that its nonce is the
// one that the chain waits for.
func (e *Engine) nurse(ctx context.Context, s *slot, head chain.Head, next bool) error {
	last, first, block := s.idle(e.Now())
	if last < resendAfter {
		return nil
	}
	// It can be in a block that is not known to be the head yet.
	if receipt, _, err := e.receipt(ctx, s); receipt != nil || err != nil {
		return err
	}
	stored := s.snapshot()
	a := stored.Latest()
	if first == 0 { // an earlier process may have taken the nonce long ago
		for _, k := range stored.Items {
			if it := e.item(k); it != nil {
				if err := e.examine(ctx, it, thorough); err != nil {
					return err
				}
			}
		}
	}
	useless, err := e.useless(ctx, &stored, head)
	if err != nil {
		return err
	}
	switch {
	case useless && !a.Fill:
		return e.bump(ctx, s, true)
	case first >= resendAfter && underpaid(a, head),
		first >= bumpAfter && head.Number >= block+bumpBlocks && next:
		return e.bump(ctx, s, a.Fill)
	}
	e.send(s)
	return nil
}

// underpaid reports whether an attempt cannot be mined at the present base
// fee.
func underpaid(a ledger.Attempt, head chain.Head) bool {
	feeCap, ok := new(big.Int).SetString(a.GasFeeCap, 10)
	return ok && head.BaseFee != nil && feeCap.Cmp(head.BaseFee) < 0
}

// useless reports whether no payment of a slot can still be settled by it.
func (e *Engine) useless(ctx context.Context, s *ledger.Slot, head chain.Head) (bool, error) {
	for _, k := range s.Items {
		it := e.item(k)
		if it == nil {
			r, err := e.Ledger.Get(ctx, k)
			if err != nil {
				return false, err
			}
			if it, err = e.itemOf(r); err != nil {
				return false, err
			}
		}
		if it.wants(s, head) {
			return false, nil
		}
	}
	return true, nil
}

// wants reports whether the item may still be settled by an attempt of s.
func (it *item) wants(s *ledger.Slot, head chain.Head) bool {
	r, spent := it.progress()
	switch {
	case spent || r.State.Resting() || head.Time >= it.signed.Expiry:
		return false
	case r.Included == nil:
		return true
	}
	for _, a := range s.Attempts {
		if a.Hash == r.Included.Transaction {
			return true
		}
	}
	return false
}

// bump replaces the latest attempt of a slot by a dearer one, which is stored
// before it is sent: one that does the same, or with fill one that does
// nothing. Where no replacement can be afforded, what there is is sent again.
func (e *Engine) bump(ctx context.Context, s *slot, fill bool) error {
	stored := s.snapshot()
	p, err := e.dearer(ctx, stored.Latest())
	if err != nil || p.feeCap == nil || s.lane.signer == nil {
		e.send(s)
		return err
	}
	a, err := e.replacement(ctx, s, stored.Payload(), fill, p)
	if err != nil {
		e.send(s)
		return err
	}
	state, end, err := e.begin(ctx, s.lane)
	if err != nil {
		return err
	}
	defer end()
	if state.Keeper != e.Ledger.Owner() {
		return nil // another process has taken over
	}
	before, after := stored.Latest(), a
	more, err := dearerBy(&before, &after)
	if err != nil {
		return err
	}
	credit, done, err := e.reserve(ctx, s.lane, &state, more)
	if err != nil {
		e.send(s)
		return err
	}
	stored, err = e.Ledger.Bump(ctx, state, stored, a)
	done(err == nil, credit)
	if errors.Is(err, ledger.ErrStale) {
		return nil // another engine was faster; the ledger is read again soon
	}
	if err != nil {
		return err
	}
	e.Logger.Info("transaction replaced", "lane", s.lane.address.Hex(), "nonce", s.nonce, "tx", a.Hash, "fee_cap", a.GasFeeCap, "fill", a.Fill)
	s.update(stored)
	e.send(s)
	return nil
}

// dearerBy returns how much more b can cost than a, in wei.
func dearerBy(a, b *ledger.Attempt) (*big.Int, error) {
	before, err := a.Cost()
	if err != nil {
		return nil, err
	}
	after, err := b.Cost()
	if err != nil {
		return nil, err
	}
	if after.Sub(after, before).Sign() < 0 {
		after.SetInt64(0)
	}
	return after, nil
}

// replacement signs what takes the place of a slot's attempts.
func (e *Engine) replacement(ctx context.Context, s *slot, payload ledger.Attempt, fill bool, p price) (ledger.Attempt, error) {
	if fill {
		return e.sign(ctx, s.lane, s.nonce, s.lane.address, nil, e.gasOfFill(ctx, s.lane.address, p), p)
	}
	tx, err := decode(payload)
	if err != nil {
		return ledger.Attempt{}, err
	}
	return e.sign(ctx, s.lane, s.nonce, *tx.To(), tx.Data(), tx.Gas(), p)
}

// dearer returns what to pay for a replacement: an eighth more than a, on
// both caps, and at least what a new transaction pays. It returns no price
// where that is more than may be paid.
func (e *Engine) dearer(ctx context.Context, a ledger.Attempt) (price, error) {
	now, err := e.price(ctx)
	if err != nil {
		return price{}, err
	}
	feeCap, ok := new(big.Int).SetString(a.GasFeeCap, 10)
	tip, valid := new(big.Int).SetString(a.GasTipCap, 10)
	if !ok || !valid {
		return price{}, errors.New("settle: the stored fees of transaction " + a.Hash + " cannot be read")
	}
	p := price{raised(feeCap), raised(tip)}
	if p.feeCap.Cmp(now.feeCap) < 0 {
		p.feeCap = now.feeCap
	}
	if p.tip.Cmp(now.tip) < 0 {
		p.tip = now.tip
	}
	if p.feeCap.Cmp(p.tip) < 0 {
		p.feeCap = p.tip
	}
	limit := new(big.Int).Mul(now.feeCap, big.NewInt(maxDearer))
	if limit.Cmp(dearFloor) < 0 {
		limit = dearFloor
	}
	if p.feeCap.Cmp(limit) > 0 || e.MaxFeePerGas != nil && p.feeCap.Cmp(e.MaxFeePerGas) > 0 {
		return price{}, nil
	}
	return p, nil
}

// raised returns an eighth more than n, rounded up: nodes ask for a tenth.
func raised(n *big.Int) *big.Int {
	more := new(big.Int).Add(n, big.NewInt(7))
	more.Rsh(more, 3)
	if more.Sign() == 0 {
		more.SetInt64(1)
	}
	return more.Add(more, n)
}

// gasOfFill returns what a call that does nothing takes: more than usual on
// some chains.
func (e *Engine) gasOfFill(ctx context.Context, lane common.Address, p price) uint64 {
	gas, err := e.Chain.EstimateGas(ctx, ethereum.CallMsg{From: lane, To: &lane, GasFeeCap: p.feeCap, GasTipCap: p.tip})
	if err != nil {
		return fillGas
	}
	return max(gas, fillGas)
}
