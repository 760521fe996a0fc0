package settle

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment/evm"
)

const (
	// maxRequests bounds what the stored requests of one batch have together,
	// in bytes, so that it fits one commit of the ledger.
	maxRequests = 1 << 20

	// maxTxGas is the most gas one transaction may have (EIP-7825), and
	// gasShare how much of that, or of a block, a batch is to take, in
	// percent.
	maxTxGas = 1 << 24
	gasShare = 60

	// gasMargin is how much more gas a batch is given than it took when it
	// was simulated, in percent.
	gasMargin = 15
)

// A ticket is a payment on its way into a slot. Authorizations by EIP-3009 of
// plain accounts share one queue, from which a lane takes as many as there are
// when it is free: one while there is little to do, and batches when there is
// much. What goes alone has a queue of its own: accounts with code, since they
// can burn the gas of everything that is with them, and permits, of which a
// batch does not show which it has settled.
type ticket struct {
	it        *item
	rehearsed common.Hash // the head after which the transfer went well and its payer had no code; zero if none
	contract  bool        // the payer has code
	most      int         // how many payments its transaction may carry
	retry     bool        // it was in a transaction before, and nobody waits for it here

	done chan struct{} // closed once the ticket is in a slot, or err is set

	mu    sync.Mutex
	stage stage  // guarded by mu
	doing string // written before done is closed: at what it failed
	err   error  // written before done is closed
}

type stage int

const (
	queued    stage = iota
	storing         // the disk decides what becomes of it
	withdrawn       // nobody waits for it any more; nothing has happened
	finished
)

// commit is the last moment at which the ticket can be withdrawn. It reports
// whether it was not.
func (t *ticket) commit() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stage != queued && t.stage != storing {
		return false
	}
	t.stage = storing
	return true
}

// withdraw takes the ticket back, unless it is too late for that.
func (t *ticket) withdraw() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stage != queued {
		return false
	}
	t.stage = withdrawn
	return true
}

func (t *ticket) isWithdrawn() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stage == withdrawn
}

// finish says what became of the ticket: err is nil if it is in a slot.
func (t *ticket) finish(doing string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stage == finished {
		return
	}
	t.stage, t.doing, t.err = finished, doing, err
	t.it.unqueue()
	close(t.done)
}

var errStopped = errors.New("the engine has stopped")

// enqueue puts a ticket into its queue; in front, if it was in it before.
func (e *Engine) enqueue(t *ticket, front bool) error {
	e.mu.Lock()
	if e.over {
		e.mu.Unlock()
		return errStopped
	}
	if sender := t.it.signed.Sender; sender != (common.Address{}) && !slices.ContainsFunc(e.own, func(l *lane) bool { return l.address == sender }) {
		e.mu.Unlock()
		return fmt.Errorf("only %s can settle this payment, and its key is not configured here", sender)
	}
	queue := &e.plain
	if t.alone() {
		queue = &e.lonely
	}
	if front {
		*queue = append([]*ticket{t}, *queue...)
	} else {
		*queue = append(*queue, t)
	}
	e.mu.Unlock()
	e.arrivals.fire()
	return nil
}

// alone reports whether the ticket goes in a transaction of its own.
func (t *ticket) alone() bool {
	return t.contract || t.it.signed.Permit != nil || t.it.signed.Wrapped()
}

// serves reports whether a lane takes what goes alone, or the rest. With
// several lanes the last one is for the former, so that what accounts with
// code do to it holds up nobody else.
func (e *Engine) serves(l *lane, alone bool) bool {
	if len(e.own) == 1 {
		return true
	}
	return (l == e.own[len(e.own)-1]) == alone
}

// nextAlone takes the next ticket that goes alone, and in this lane, out of its
// queue, or returns nil. It is called with mu held. bound says to take only
// those that can go in no other lane.
func (e *Engine) nextAlone(l *lane, bound bool) *ticket {
	for i := 0; i < len(e.lonely); i++ {
		t := e.lonely[i]
		sender := t.it.signed.Sender
		switch {
		case t.isWithdrawn():
		case sender == l.address, sender == (common.Address{}) && !bound && e.serves(l, true):
			e.lonely = slices.Delete(e.lonely, i, i+1)
			return t
		default:
			continue
		}
		e.lonely = slices.Delete(e.lonely, i, i+1)
		i--
	}
	return nil
}

// fetch takes what a lane is to carry in its next transaction out of the
// queues: one that goes alone, or as many others as may go together.
func (e *Engine) fetch(l *lane) []*ticket {
	e.mu.Lock()
	defer e.mu.Unlock()
	bound := l.refused != nil && slices.ContainsFunc(e.own, func(other *lane) bool {
		return other.refused == nil && e.serves(other, e.serves(l, true))
	})
	if !(l.alternate && len(e.plain) > 0 && e.serves(l, false)) {
		if t := e.nextAlone(l, bound); t != nil {
			l.alternate = true
			return []*ticket{t}
		}
	}
	l.alternate = false
	if bound || !e.serves(l, false) {
		return nil
	}
	var tickets []*ticket
	most, size := e.MaxBatch, 0
	for len(e.plain) > 0 {
		t := e.plain[0]
		if t.isWithdrawn() {
			e.plain = e.plain[1:]
			continue
		}
		most = min(most, t.most)
		size += len(t.it.snapshot().Request)
		if len(tickets) > 0 && (len(tickets) == most || size > maxRequests) {
			break
		}
		tickets = append(tickets, t)
		e.plain = e.plain[1:]
		if len(tickets) == most {
			break
		}
	}
	return tickets
}

// drive has a lane carry what is queued, one transaction after another, while
// not too many of them wait for a block.
func (e *Engine) drive(ctx context.Context, l *lane) {
	for ctx.Err() == nil {
		arrived, room := e.arrivals.wait(), l.room.wait()
		if l.ahead(^uint64(0)) < e.MaxInFlight {
			if tickets := e.fetch(l); len(tickets) > 0 {
				e.carry(ctx, l, tickets)
				continue
			}
		}
		select {
		case <-ctx.Done():
		case <-arrived:
		case <-room:
		}
	}
}

// turnAway ends the wait of everybody who is queued.
func (e *Engine) turnAway() {
	e.mu.Lock()
	tickets := append(e.plain, e.lonely...)
	e.plain, e.lonely = nil, nil
	e.mu.Unlock()
	for _, t := range tickets {
		t.finish("waiting for a lane", errStopped)
	}
}

func finishAll(tickets []*ticket, doing string, err error) {
	for _, t := range tickets {
		t.finish(doing, err)
	}
}

// carry brings tickets into slots of the lane, and finishes those for which
// that cannot be done.
func (e *Engine) carry(ctx context.Context, l *lane, tickets []*ticket) {
	if err := e.usable(ctx, l); err != nil {
		finishAll(tickets, "checking the lane", err)
		return
	}
	head, err := e.Chain.Head()
	if err != nil {
		finishAll(tickets, "reading the chain's head", err)
		return
	}
	p, err := e.price(ctx)
	if err != nil {
		finishAll(tickets, "setting the fee", err)
		return
	}
	if tickets = e.sort(ctx, l, tickets, head, p); len(tickets) == 0 {
		return
	}
	gas := e.gas(tickets[0].contract)
	if len(tickets) > 1 {
		if tickets, gas = e.fit(ctx, l, tickets, head, p); len(tickets) == 0 {
			return
		}
	}
	if err := e.afford(ctx, l, gas, p); err != nil {
		finishAll(tickets, "paying for gas", err)
		return
	}
	e.store(ctx, l, tickets, gas, p)
}

// errTriedOnce says that a payment stays as it is until it can be told what
// became of it. An account with code can look good whenever it is simulated and
// burn the gas whenever it is not.
var errTriedOnce = errors.New("the payer has code, and its payment has failed in a block: it is not sent again")

// sort asks whether the payers have code, of those for which that is not
// known after head, and returns the tickets that go on: accounts with code
// queue for themselves. One that is alone is simulated with the same round
// trip.
func (e *Engine) sort(ctx context.Context, l *lane, tickets []*ticket, head chain.Head, p price) []*ticket {
	alone := len(tickets) == 1
	var questions []chain.Request
	codes := make([]*chain.Code, len(tickets))
	for i, t := range tickets {
		if t.rehearsed != head.Hash {
			codes[i] = &chain.Code{Address: t.it.signed.Payer}
			questions = append(questions, codes[i])
		}
	}
	run := &chain.Call{Msg: e.message(l, tickets[0].it.spend(), e.gas(tickets[0].contract), p)}
	if alone && len(questions) > 0 {
		questions = append(questions, run)
	}
	if len(questions) == 0 {
		return tickets
	}
	const doing = "simulating the payment"
	if err := e.Chain.Ask(ctx, questions...); err != nil {
		finishAll(tickets, doing, err)
		return nil
	}
	var rest []*ticket
	for i, t := range tickets {
		switch code := codes[i]; {
		case t.retry && code != nil && code.Err == nil && len(code.Code) > 0:
			t.finish(doing, errTriedOnce)
		case code == nil || t.alone():
			rest = append(rest, t)
		case code.Err != nil:
			t.finish(doing, code.Err)
		case len(code.Code) > 0 && (!alone || !e.serves(l, true)):
			t.contract = true
			if err := e.enqueue(t, false); err != nil {
				t.finish(doing, err)
			}
		default:
			rest = append(rest, t)
		}
	}
	if alone && len(rest) > 0 {
		if err := Went(rest[0].it.signed, run); err != nil {
			rest[0].finish(doing, e.failure(err, rest[0].contract))
			return nil
		}
	}
	return rest
}

// Went returns why a payment of which Message was simulated would move nothing,
// or nil if it would: a *chain.RevertError says that it is the payment's own
// fault. The call that deploys a wallet goes well whatever becomes of the
// payment.
func Went(signed *evm.Instrument, run *chain.Call) error {
	if run.Err != nil || !signed.Wrapped() {
		return run.Err
	}
	deployed, spent, err := evm.DeployedAndSpent(run.Output)
	switch {
	case err != nil:
		return err
	case spent:
		return nil
	case deployed:
		return &chain.RevertError{Reason: "the wallet is deployed and the payment fails"}
	}
	return &chain.RevertError{Reason: "the factory deploys no wallet that the payment comes from"}
}

// gas is the limit that a payment is sent with alone.
func (e *Engine) gas(contract bool) uint64 {
	if contract {
		return e.MaxWalletGas
	}
	return e.MaxGas
}

// failure tells a transfer's own failure from one for want of gas, which our
// limit is to blame for.
func (e *Engine) failure(err error, contract bool) error {
	if revert, ok := errors.AsType[*chain.RevertError](err); ok && len(revert.Data) == 0 && len(revert.Reason) >= 10 && revert.Reason[:10] == "out of gas" {
		setting := "max_gas"
		if contract {
			setting = "max_wallet_gas"
		}
		return fmt.Errorf("the transfer takes more gas than the limit is %d: raise %s", e.gas(contract), setting)
	}
	return err
}

// fit finds out how much gas a batch takes, and returns those of its tickets
// that can go together: transfers that fail are finished, and what is too
// much for one transaction is queued again.
func (e *Engine) fit(ctx context.Context, l *lane, tickets []*ticket, head chain.Head, p price) ([]*ticket, uint64) {
	const doing = "simulating a batch of transfers"
	limit := min(maxTxGas, head.GasLimit) * gasShare / 100
	if gas, ok := e.guess(ctx, l, tickets, limit, p); ok {
		return tickets, gas
	}
	halved := false
	for len(tickets) > 1 {
		gas, err := e.Chain.EstimateGas(ctx, ethereum.CallMsg{
			From: l.address, To: &evm.Multicall3, Data: batch(itemsOf(tickets), false).Data, GasFeeCap: p.feeCap, GasTipCap: p.tip,
		})
		_, reverts := errors.AsType[*chain.RevertError](err)
		switch {
		case reverts:
			sifted, err := e.sift(ctx, l, tickets, head, p)
			if err != nil {
				finishAll(tickets, doing, err)
				return nil, 0
			}
			if len(sifted) < len(tickets) {
				tickets = sifted
				continue
			}
			tickets = e.putBack(tickets, len(tickets)/2) // it is the whole that fails
		case err != nil && !halved && len(tickets) > 2:
			halved = true // it may have been too much for the node
			tickets = e.putBack(tickets, len(tickets)/2)
		case err != nil:
			finishAll(tickets, doing, err)
			return nil, 0
		case gas > limit:
			tickets = e.putBack(tickets, max(1, int(uint64(len(tickets))*limit/gas))) //nolint:gosec // at most the number of tickets
		default:
			e.perItem.Store((gas - min(gas, batchGas)) / uint64(len(tickets)))
			return tickets, gas + gas*gasMargin/100
		}
	}
	return tickets, e.MaxGas
}

// batchGas is roughly what a batch takes beside what its transfers take.
const batchGas = 30_000

// guess tries a batch with the gas that follows from the one before, which
// costs the node less than an estimate. ok is true if all transfers went well
// with it.
func (e *Engine) guess(ctx context.Context, l *lane, tickets []*ticket, limit uint64, p price) (gas uint64, ok bool) {
	each := e.perItem.Load()
	gas = batchGas + each*uint64(len(tickets))
	if each == 0 || gas > limit {
		return 0, false
	}
	gas += gas * gasMargin / 100
	run := &chain.Call{Msg: e.message(l, batch(itemsOf(tickets), false), gas, p)}
	err := e.Chain.Ask(ctx, run)
	return gas, err == nil && run.Err == nil
}

// putBack keeps the first n of tickets and queues the others again.
func (e *Engine) putBack(tickets []*ticket, n int) []*ticket {
	for i := len(tickets) - 1; i >= n; i-- {
		if err := e.enqueue(tickets[i], true); err != nil {
			tickets[i].finish("waiting for a lane", err)
		}
	}
	return tickets[:n]
}

// sift simulates a batch with as much gas as a transaction may have, and
// returns the tickets whose transfers went well in it. The others are
// simulated alone: those that fail are finished, those that do not are queued
// to go alone.
func (e *Engine) sift(ctx context.Context, l *lane, tickets []*ticket, head chain.Head, p price) ([]*ticket, error) {
	run := &chain.Call{Msg: e.message(l, batch(itemsOf(tickets), true), min(maxTxGas, head.GasLimit), p)}
	if err := e.Chain.Ask(ctx, run); err != nil {
		return nil, err
	}
	if _, reverts := errors.AsType[*chain.RevertError](run.Err); reverts {
		return tickets, nil
	}
	if run.Err != nil {
		return nil, run.Err
	}
	went, err := evm.BatchResults(run.Output, len(tickets))
	if err != nil {
		return nil, err
	}
	var well, badly []*ticket
	var questions []chain.Request
	for i, t := range tickets {
		if went[i] {
			well = append(well, t)
			continue
		}
		badly = append(badly, t)
		questions = append(questions, &chain.Call{Msg: e.message(l, t.it.spend(), e.MaxGas, p)})
	}
	if len(badly) == 0 {
		return tickets, nil
	}
	const doing = "simulating the transfer"
	if err := e.Chain.Ask(ctx, questions...); err != nil {
		finishAll(badly, doing, err)
		return well, nil
	}
	for i, t := range badly {
		if err := questions[i].(*chain.Call).Err; err != nil {
			t.finish(doing, e.failure(err, false))
			continue
		}
		t.most = 1
		if err := e.enqueue(t, true); err != nil {
			t.finish(doing, err)
		}
	}
	return well, nil
}

// store takes the lane's next nonce for the tickets and sends what it
// carries.
func (e *Engine) store(ctx context.Context, l *lane, tickets []*ticket, gas uint64, p price) {
	for {
		var ready []*ticket
		for _, t := range tickets {
			switch r := t.it.snapshot(); {
			case t.retry && r.State != ledger.Intent && r.State != ledger.Sent:
				t.finish("", ledger.ErrStale)
			case t.commit():
				ready = append(ready, t)
			}
		}
		if tickets = ready; len(tickets) == 0 {
			return
		}
		s, err := e.intend(ctx, l, itemsOf(tickets), gas, p)
		if errors.Is(err, ledger.ErrStale) {
			tickets = e.unchanged(ctx, tickets)
			continue
		}
		if err != nil {
			finishAll(tickets, "storing the intent to settle", err)
			return
		}
		for _, t := range tickets {
			e.replace(t.it)
			e.pays(t.it)
			if t.retry {
				e.Logger.Info("payment tried again", "payment", t.it.key().String(), "lane", l.address.Hex(), "nonce", s.nonce)
			}
		}
		e.send(s)
		finishAll(tickets, "", nil)
		return
	}
}

// unchanged returns the tickets whose payments are stored as they are known
// here, and finishes the others.
func (e *Engine) unchanged(ctx context.Context, tickets []*ticket) []*ticket {
	var same []*ticket
	for _, t := range tickets {
		r := t.it.snapshot()
		now, err := e.Ledger.Get(ctx, r.Key)
		if err == nil && now.Newer(&r) {
			err = fmt.Errorf("payment %s is %s now: %w", r.Key, now.State, ledger.ErrStale)
		}
		if err != nil {
			t.finish("storing the intent to settle", err)
			continue
		}
		same = append(same, t)
	}
	return same
}

func itemsOf(tickets []*ticket) []*item {
	items := make([]*item, len(tickets))
	for i, t := range tickets {
		items[i] = t.it
	}
	return items
}

// afford refuses a transaction that the lane has no money for. Nothing has
// been touched then.
func (e *Engine) afford(ctx context.Context, l *lane, gas uint64, p price) error {
	cost := new(big.Int).Mul(p.feeCap, new(big.Int).SetUint64(gas))
	if free := l.funds(); free != nil && free.Cmp(cost) >= 0 {
		return nil
	}
	now := &chain.Balance{Address: l.address}
	err := e.Chain.Ask(ctx, now)
	if err == nil {
		err = now.Err
	}
	if err != nil {
		return fmt.Errorf("reading the balance of lane %s: %w", l.address, err)
	}
	e.weigh(l, now.Wei)
	if free := l.funds(); free.Cmp(cost) < 0 {
		return fmt.Errorf("lane %s has %s wei to spare and the transaction may cost %s: send it gas money", l.address, free, cost)
	}
	return nil
}

const (
	// weighEvery is how often the balance of a lane is asked for that has
	// nothing to do.
	weighEvery = 30 * time.Second

	// lowFunds is how many transfers a lane must be able to pay for at least,
	// or the log says that it runs out of money.
	lowFunds = 20
)

// weigh notes a lane's balance, and warns when it runs low.
func (e *Engine) weigh(l *lane, wei *big.Int) {
	feeCap := new(big.Int)
	if head, err := e.Chain.Head(); err == nil && head.BaseFee != nil {
		feeCap.Lsh(head.BaseFee, 1)
	}
	low := wei.Cmp(feeCap.Mul(feeCap, new(big.Int).SetUint64(lowFunds*e.MaxGas))) < 0
	if l.weighed(wei, e.Now(), low) {
		e.Logger.Warn("a lane runs out of gas money: send it more", "lane", l.address.Hex(), "network", string(e.network), "wei", wei.String())
	}
}
