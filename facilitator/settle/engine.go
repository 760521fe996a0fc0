// Package settle is the settlement engine: it moves the money of payments on
// one EVM network, each at most once, and finds out what became of them.
//
// A payment goes through the engine like this. Its call is simulated as it
// will be sent. The lane's next nonce, the signed transaction and the state
// INTENT go to disk in one commit. Only then is the transaction broadcast, to
// all nodes. From there on two things are watched apart from each other:
//
// Items are payments. What became of one is judged by logs of the token, not
// by our transaction's hash: anybody may submit an authorization, and a
// transfer counts whoever sent it. A timeout proves nothing.
//
// Slots are the nonces of a lane. Every nonce that was taken is used in the
// end, whatever became of its payments, or the lane would stand still: its
// bytes are sent again, replaced by dearer ones that do the same, or, where
// nobody needs them any more, by a call that does nothing.
package settle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// Chain is what settling asks of a network's nodes. *chain.Client has it.
type Chain interface {
	// Head returns the latest block, or an error when none is known that is
	// fresh. It does no I/O.
	Head() (chain.Head, error)

	// WaitHead waits for a latest block other than the one with hash after.
	WaitHead(ctx context.Context, after common.Hash) (chain.Head, error)

	// HeaderByNumber, Safe and Finalized fail with chain.ErrUnknownBlock where
	// the node has no such block.
	HeaderByNumber(ctx context.Context, number uint64) (chain.Head, error)

	// Headers is HeaderByNumber for several blocks of one branch.
	Headers(ctx context.Context, numbers ...uint64) ([]chain.Head, error)
	Safe(ctx context.Context) (chain.Head, error)
	Finalized(ctx context.Context) (chain.Head, error)

	// Receipt returns nil without an error for a transaction that is in no
	// block.
	Receipt(ctx context.Context, tx common.Hash) (*types.Receipt, error)
	Logs(ctx context.Context, q ethereum.FilterQuery) ([]types.Log, error)

	// Transaction returns a transaction, nil without an error for one that the
	// nodes do not know, and Trace the calls that it made. Trace fails where
	// nodes do not trace.
	Transaction(ctx context.Context, hash common.Hash) (*types.Transaction, error)
	Trace(ctx context.Context, hash common.Hash, nodes int) ([]chain.InnerCall, error)

	// Witness is Receipt, WitnessLogs is Logs, and AgreeAt is AskAt of one question, as a number of
	// nodes show it alike. Reached returns a block that is far enough and that
	// they have, when as many say that their block with the tag is as far.
	// All of them fail where fewer do.
	Witness(ctx context.Context, tx common.Hash, nodes int) (*types.Receipt, error)
	WitnessLogs(ctx context.Context, q ethereum.FilterQuery, nodes int) ([]types.Log, error)
	AgreeAt(ctx context.Context, nodes int, block common.Hash, question chain.Request) error
	Reached(ctx context.Context, nodes int, tag chain.Tag, enough func(chain.Head) bool) (chain.Head, error)

	// Ask asks about the state after the node's latest block, AskAt about
	// that after the block with a hash, which must be canonical.
	Ask(ctx context.Context, questions ...chain.Request) error
	AskAt(ctx context.Context, block common.Hash, questions ...chain.Request) error

	NonceAt(ctx context.Context, account common.Address) (uint64, error)
	TipCap(ctx context.Context) (*big.Int, error)

	// EstimateGas returns a *chain.RevertError if the call reverts.
	EstimateGas(ctx context.Context, msg ethereum.CallMsg) (uint64, error)

	// Broadcast sends a signed transaction to all nodes. No error of it
	// proves that the transaction will not be mined.
	Broadcast(ctx context.Context, raw []byte) error
}

// Config is what an Engine works with.
type Config struct {
	Network payment.Network
	Chain   Chain
	Ledger  *ledger.Ledger

	// Signers are the lanes: accounts that hold gas money and nothing else.
	// Of several the last one is for what goes alone: payers whose accounts
	// have code, and permits.
	Signers []payment.CallSigner

	// MaxFeePerGas is the highest price of gas to settle at, in wei. Nil
	// means no ceiling.
	MaxFeePerGas *big.Int

	// GasBudget is how much the gas of all lanes together may cost on one
	// day, in wei; days are those of UTC. It does not see what some chains
	// charge beside gas. Nil means no limit.
	GasBudget *big.Int

	// MaxWalletGas is MaxGas of payers whose accounts have code, which can
	// burn all of it. Default: 500000.
	MaxWalletGas uint64

	// RelayApprovals has the approvals of Permit2 sent that payers have signed
	// as transactions of their own, before their payments. They cost the payer
	// and not a lane. Default: no.
	RelayApprovals bool

	// Failed, if not nil, is told of each payment for which gas was paid and
	// that did not move, once for each transaction: what its payer had signed
	// failed in a block. It must not block.
	Failed func(*evm.Instrument)

	// MaxGas is the most gas one transfer may take, and the limit that one is
	// sent with alone. Default: 300000.
	MaxGas uint64

	// Quorum says for which payments one node is not enough.
	Quorum Quorum

	// MaxBatch is how many transfers may share a transaction. Default: 200.
	MaxBatch int

	// MaxInFlight is how many transactions of a lane may wait for a block at
	// once. Default: 16.
	MaxInFlight int

	Logger *slog.Logger     // nil discards
	Now    func() time.Time // nil means time.Now
}

// An Engine settles on one network. Its methods are safe for concurrent use.
type Engine struct {
	Config
	network payment.Network
	own     []*lane // those whose keys are configured

	heads    signal // fired when there is another head
	nudges   signal // fired when a lane is to be looked at before that
	arrivals signal // fired when a payment is queued

	booking     sync.Mutex    // held while gas is booked
	reconciling sync.Mutex    // held by Reconcile
	perItem     atomic.Uint64 // gas of one transfer in the batch that was estimated last; 0 before

	mu       sync.Mutex
	watched  map[payment.Key]*item    // guarded by mu: every payment that does not rest
	lanes    map[common.Address]*lane // guarded by mu: those of the ledger, too
	plain    []*ticket                // guarded by mu: the queue of plain accounts
	lonely   []*ticket                // guarded by mu: the queue of what goes alone
	accounts map[account]uint64       // guarded by mu: who is paid, and the block before the first payment
	horizon  horizon                  // guarded by mu

	life context.Context // ends with Stop
	stop context.CancelFunc
	jobs sync.WaitGroup // every goroutine of the engine
	over bool           // guarded by mu: no job may begin any more
}

// New returns an engine that has not been started.
func New(c Config) (*Engine, error) {
	if _, ok := c.Network.ChainID(); !ok {
		return nil, fmt.Errorf("settle: %s is no EVM network", c.Network)
	}
	if c.Chain == nil || c.Ledger == nil || len(c.Signers) == 0 {
		return nil, errors.New("settle: a chain, a ledger and a signer are needed")
	}
	if c.MaxGas == 0 {
		c.MaxGas = 300_000
	}
	if c.MaxWalletGas == 0 {
		c.MaxWalletGas = max(500_000, c.MaxGas)
	}
	if c.MaxBatch <= 0 {
		c.MaxBatch = 200
	}
	if c.MaxInFlight <= 0 {
		c.MaxInFlight = 16
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	e := &Engine{
		Config: c, network: c.Network, watched: map[payment.Key]*item{}, lanes: map[common.Address]*lane{}, accounts: map[account]uint64{},
	}
	for _, signer := range c.Signers {
		if signer == nil {
			return nil, errors.New("settle: a lane has no signer")
		}
		l := newLane(signer.Address(), signer)
		if e.lanes[l.address] != nil {
			return nil, fmt.Errorf("settle: lane %s is given twice", l.address)
		}
		e.lanes[l.address] = l
		e.own = append(e.own, l)
	}
	e.life, e.stop = context.WithCancel(context.Background())
	return e, nil
}

// Lane returns the first account that pays gas.
func (e *Engine) Lane() common.Address { return e.own[0].address }

// Lanes returns all accounts that pay gas.
func (e *Engine) Lanes() []common.Address {
	var list []common.Address
	for _, l := range e.own {
		list = append(list, l.address)
	}
	return list
}

// Start takes up what an earlier process left behind and begins to watch,
// until Stop. A node that is down delays it and is no error.
func (e *Engine) Start() error {
	if err := e.adopt(e.life); err != nil {
		return err
	}
	if err := e.scan(e.life, time.Time{}); err != nil {
		return fmt.Errorf("settle: reading open nonces: %w", err)
	}
	for _, job := range []func(context.Context){e.beat, e.follow, e.watch, e.tend, e.reconcileAlways} {
		e.spawn(job)
	}
	for _, l := range e.own {
		e.spawn(func(ctx context.Context) { e.drive(ctx, l) })
	}
	return nil
}

// Stop ends everything that the engine does, and waits for it. Payments under
// way stay in the ledger for the next engine.
func (e *Engine) Stop() {
	e.mu.Lock()
	e.over = true
	e.mu.Unlock()
	e.stop()
	e.jobs.Wait()
	e.turnAway()
}

// spawn runs job in a goroutine that Stop waits for, with a context that ends
// with Stop. It returns false, and runs nothing, once the engine has stopped.
func (e *Engine) spawn(job func(context.Context)) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return false
	}
	e.jobs.Go(func() { job(e.life) })
	return true
}

// follow tells the others of every new head.
func (e *Engine) follow(ctx context.Context) {
	var seen common.Hash
	for ctx.Err() == nil {
		head, err := e.Chain.WaitHead(ctx, seen)
		if err != nil {
			pause(ctx, nil, lastPause)
			continue
		}
		seen = head.Hash
		e.heads.fire()
	}
}

// A signal wakes everybody who waits for it. Its zero value is ready for use.
type signal struct {
	mu   sync.Mutex
	next chan struct{} // guarded by mu: closed when the signal is fired
}

// wait returns a channel that is closed when the signal is fired next.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = make(chan struct{})
	}
	return s.next
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		close(s.next)
	}
	s.next = nil
}

// A Job is one payment to settle. Its record is stored in a state from which
// it can be settled, and is owned by the caller.
type Job struct {
	Record ledger.Record
	Signed *evm.Instrument
	Charge payment.Amount // one that Signed lets be charged, and not zero
	Until  payment.Finality

	// Rehearsed is the hash of the block after which the payment, as Message
	// has it, went well and its payer had no code. While that is the latest
	// block it is not simulated again. Zero if there is none.
	Rehearsed common.Hash

	// Contract says that the payer's account has code.
	Contract bool

	// Approve, if not nil, is the payer's own transaction by which Permit2 may
	// move what the payment moves. Where that is not so yet it is sent, and
	// waited for, before anything else happens. Only with RelayApprovals.
	Approve *evm.RawApproval
}

// Settle moves the money of a job, or finds that it has moved, and waits
// until that is as sure as the job asks for.
//
// An *payment.InvalidError means that nothing was broadcast, or that the
// payment is proven dead: the record tells which. An *payment.UnavailableError
// that is not pending means that nothing was broadcast and the record is as
// it was; one that is, that the outcome is not known yet. The engine goes on
// watching then.
func (e *Engine) Settle(ctx context.Context, j Job) (*payment.Settlement, error) {
	if err := e.approve(ctx, j.Signed, j.Charge.Big(), j.Approve); err != nil {
		return nil, err
	}
	it := newItem(j.Record, j.Signed, j.Until, j.Charge)
	it.approval = j.Approve
	t := &ticket{it: it, rehearsed: j.Rehearsed, contract: j.Contract, most: e.MaxBatch, done: make(chan struct{})}
	if err := e.enqueue(t, false); err != nil {
		return nil, unavailable(j, "waiting for a lane", err)
	}
	select {
	case <-t.done:
	case <-ctx.Done():
		if t.withdraw() {
			return nil, unavailable(j, "waiting for a lane", ctx.Err())
		}
		// It is being stored. If that fails nothing has happened; but who
		// waits no longer does not learn it.
		return nil, &payment.UnavailableError{Doing: "storing the intent to settle", Err: ctx.Err(), Pending: true, Payer: j.Record.Payer}
	}
	if revert, ok := errors.AsType[*chain.RevertError](t.err); ok {
		return e.reverted(ctx, j, revert)
	}
	if t.err != nil {
		return nil, unavailable(j, t.doing, t.err)
	}
	return e.await(ctx, it, true)
}

// Resume waits for a payment that is being settled or has been.
func (e *Engine) Resume(ctx context.Context, r ledger.Record) (*payment.Settlement, error) {
	it, err := e.itemOf(r)
	if err != nil {
		return nil, err
	}
	if r.State.Resting() {
		return it.outcome(r, true)
	}
	return e.await(ctx, e.add(it), false)
}

// doubt has a lane checked again when a node says that a nonce of ours is
// used: most often by us, but perhaps by somebody else who has the key.
func (e *Engine) doubt(l *lane, err error) {
	var rejected *chain.RejectedError
	if !errors.As(err, &rejected) || rejected.Kind != chain.NonceTooLow {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	l.ready = false
}

// reverted handles a transfer that reverts in simulation. Nothing has been
// broadcast by us; but somebody else may have submitted this very
// authorization, and then the money has moved.
func (e *Engine) reverted(ctx context.Context, j Job, revert *chain.RevertError) (*payment.Settlement, error) {
	it := newItem(j.Record, j.Signed, j.Until, j.Charge)
	used, err := e.usedByNow(ctx, it)
	if err != nil {
		return nil, unavailable(j, "asking whether the authorization was used", err)
	}
	if !used {
		return nil, &payment.InvalidError{Reason: j.refusal(revert), Message: revert.Reason, Payer: j.Record.Payer}
	}
	// By what it was used shows when the block is known here, too.
	for wait := firstPause; ; wait = longer(wait) {
		sight, err := e.look(ctx, it, &j.Record, thorough)
		switch {
		case err == nil && sight.Fate == evm.Paid:
			// Watched from here on, even if nobody waits any longer.
			e.replace(it)
			if err = e.examine(ctx, it, thorough); err == nil {
				return e.await(ctx, it, false)
			}
		case err == nil && sight.Fate == evm.Spent:
			return nil, &payment.InvalidError{Reason: j.Signed.Reasons().Used, Message: "the authorization was used or cancelled", Payer: j.Record.Payer}
		}
		pause(ctx, nil, wait)
		if ctx.Err() != nil {
			r := it.snapshot()
			return nil, &payment.UnavailableError{Doing: "searching for what used the authorization", Err: errors.Join(ctx.Err(), err), Pending: true, Transaction: r.Transaction(), Payer: r.Payer}
		}
	}
}

// refusal is the code for a payment that reverts.
func (j *Job) refusal(revert *chain.RevertError) payment.Reason {
	if reason, ok := evm.PermitRevert(revert.Data); ok && j.Signed.Permit != nil {
		return reason
	}
	return j.Signed.Reasons().Simulation
}

// unavailable is the error of a step before the broadcast. Only when the disk
// failed it is not known whether an intent was stored, which the next process
// would carry out.
func unavailable(j Job, doing string, err error) error {
	var failed *ledger.FailedError
	return &payment.UnavailableError{Doing: doing, Err: err, Pending: errors.As(err, &failed), Payer: j.Record.Payer}
}

// usable checks a lane once against the chain before its first use.
func (e *Engine) usable(ctx context.Context, l *lane) error {
	e.mu.Lock()
	ready, refused := l.ready, l.refused
	e.mu.Unlock()
	if ready || refused != nil {
		return refused
	}
	err := e.checkLane(ctx, l)
	var shared *SharedKeyError
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case errors.As(err, &shared):
		l.refused, l.refusedAt = err, e.Now()
		e.Logger.Error("lane refused", "lane", l.address.Hex(), "error", err)
	case err == nil:
		l.ready = true
	}
	return err
}
