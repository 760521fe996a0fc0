package settle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A lane is one account that pays gas. Its nonces come from the ledger.
type lane struct {
	address common.Address
	signer  payment.CallSigner // nil where the key is not configured any more: what it has signed is sent again, and that is all

	// turn holds one token. Whoever has it may take the next nonce; it is
	// handed back once the transaction with that nonce is on disk.
	turn chan struct{}

	room signal // fired when another transaction may be sent

	alternate bool      // guarded by Engine.mu: the last payer had code, so it is the others' turn
	refused   error     // guarded by Engine.mu: why the lane must not be used
	refusedAt time.Time // guarded by Engine.mu: when that was last found so
	ready     bool      // guarded by Engine.mu: the lane has been checked

	mu      sync.Mutex
	open    map[uint64]*slot // guarded by mu: by nonce
	head    common.Hash      // guarded by mu: the block for which mined was asked
	mined   uint64           // guarded by mu: how many nonces are used in that block
	final   uint64           // guarded by mu: how many nonces are used in a final block, at least
	balance *big.Int         // guarded by mu: in wei, when it was last asked for; nil before
	asked   time.Time        // guarded by mu: when that was
	low     bool             // guarded by mu: the log says that it runs out of money
	credit  *big.Int         // guarded by mu: wei of creditDay's budget that were reserved and not spent; nil is zero
	day     string           // guarded by mu: the day of credit
}

func newLane(address common.Address, signer payment.CallSigner) *lane {
	l := &lane{address: address, signer: signer, turn: make(chan struct{}, 1), open: map[uint64]*slot{}}
	l.turn <- struct{}{}
	return l
}

// slots returns what is open, in the order of the nonces.
func (l *lane) slots() []*slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*slot, 0, len(l.open))
	for _, nonce := range slices.Sorted(maps.Keys(l.open)) {
		list = append(list, l.open[nonce])
	}
	return list
}

// keep adds a slot, or updates the one that is there.
func (l *lane) keep(s *slot) *slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known := l.open[s.nonce]; known != nil {
		known.update(s.stored)
		return known
	}
	l.open[s.nonce] = s
	return s
}

// ahead returns how many transactions with lower nonces wait for a block.
func (l *lane) ahead(nonce uint64) int {
	n := 0
	for _, s := range l.slots() {
		if s.nonce < nonce && !s.isMined() {
			n++
		}
	}
	return n
}

func (l *lane) drop(s *slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[s.nonce] == s {
		delete(l.open, s.nonce)
	}
	l.room.fire()
}

// funds returns the balance less what the transactions that wait for a block
// may cost, or nil while it is not known.
func (l *lane) funds() *big.Int {
	l.mu.Lock()
	balance := l.balance
	l.mu.Unlock()
	if balance == nil {
		return nil
	}
	free := new(big.Int).Set(balance)
	for _, s := range l.slots() {
		if s.isMined() {
			continue
		}
		stored := s.snapshot()
		a := stored.Latest()
		if cost, err := a.Cost(); err == nil {
			free.Sub(free, cost)
		}
	}
	return free
}

// weighed notes the balance, and reports whether it has become low.
func (l *lane) weighed(wei *big.Int, now time.Time, low bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	became := low && !l.low
	l.balance, l.asked, l.low = wei, now, low
	return became
}

// unweighed reports whether the balance has not been asked for lately.
func (l *lane) unweighed(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.balance == nil || now.Sub(l.asked) >= weighEvery
}

// slot returns the open slot of a nonce, or nil. used reports that there is
// none because the nonce is used in a final block; unmined, that it is unused
// in the block with hash head.
func (l *lane) slot(nonce uint64, head common.Hash) (s *slot, used, unmined bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open[nonce], nonce < l.final, l.head == head && nonce >= l.mined
}

// counted notes how many nonces are used.
func (l *lane) counted(head common.Hash, mined, final uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head, l.mined, l.final = head, mined, max(l.final, final)
}

// laneOf returns the lane of an account, which it makes up if it is not known.
func (e *Engine) laneOf(address common.Address) *lane {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.lanes[address]
	if l == nil {
		l = newLane(address, nil)
		e.lanes[address] = l
	}
	return l
}

func (e *Engine) allLanes() []*lane {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := slices.Collect(maps.Values(e.lanes))
	slices.SortFunc(list, func(a, b *lane) int { return a.address.Cmp(b.address) })
	return list
}

// begin waits for the lane and returns its stored state, together with a
// function that hands it back. A lane that was never used starts at the
// account's nonce on the chain.
func (e *Engine) begin(ctx context.Context, l *lane) (ledger.Lane, func(), error) {
	select {
	case <-l.turn:
	case <-ctx.Done():
		return ledger.Lane{}, nil, fmt.Errorf("waiting for lane %s: %w", l.address, ctx.Err())
	}
	end := func() { l.turn <- struct{}{} }
	state, err := e.laneState(ctx, l)
	if err != nil {
		end()
		return ledger.Lane{}, nil, err
	}
	return state, end, nil
}

func (e *Engine) laneState(ctx context.Context, l *lane) (ledger.Lane, error) {
	for {
		state, known, err := e.Ledger.Lane(ctx, e.network, l.address.Hex())
		if err != nil || known {
			return state, err
		}
		// A wrong beginning would never be put right.
		nonce, err := e.nonceNow(ctx, l.address)
		if err != nil {
			return ledger.Lane{}, fmt.Errorf("reading the nonce of lane %s: %w", l.address, err)
		}
		state.Next = nonce
		if _, err := e.Ledger.SetLane(ctx, state); err != nil {
			return ledger.Lane{}, err
		}
	}
}

// checkLane refuses a key that something else is using: the chain has seen
// more transactions of the account than the ledger has handed out nonces.
func (e *Engine) checkLane(ctx context.Context, l *lane) error {
	state, known, err := e.Ledger.Lane(ctx, e.network, l.address.Hex())
	if err != nil || !known {
		return err
	}
	nonce, err := e.Chain.NonceAt(ctx, l.address)
	if err != nil {
		return fmt.Errorf("reading the nonce of lane %s: %w", l.address, err)
	}
	// Another engine may have taken a nonce, and had it mined, in between.
	if nonce > state.Next {
		if state, _, err = e.Ledger.Lane(ctx, e.network, l.address.Hex()); err != nil {
			return err
		}
	}
	// A lane that is refused stands still, so one node's word is not enough for
	// that where there is a quorum.
	if nonce > state.Next && e.Quorum.Nodes > 1 {
		if nonce, err = e.nonceNow(ctx, l.address); err != nil {
			return fmt.Errorf("reading the nonce of lane %s: %w", l.address, err)
		}
	}
	if nonce > state.Next {
		return &SharedKeyError{Lane: l.address, Chain: nonce, Ledger: state.Next}
	}
	return nil
}

// recheckAfter is how long a lane stays refused before the chain is asked again.
const recheckAfter = time.Minute

// recheck asks again about a lane that is refused: one wrong answer of a node is
// enough for that. A key that really is in use elsewhere stays refused, because
// the chain never forgets a transaction.
func (e *Engine) recheck(ctx context.Context, l *lane) error {
	e.mu.Lock()
	due := l.refused != nil && e.Now().Sub(l.refusedAt) >= recheckAfter
	e.mu.Unlock()
	if !due {
		return nil
	}
	err := e.checkLane(ctx, l)
	_, shared := errors.AsType[*SharedKeyError](err)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case shared:
		l.refused, l.refusedAt = err, e.Now()
	case err != nil:
		return err
	default:
		l.refused = nil
		e.Logger.Info("lane taken back: the chain knows of no transaction that the ledger does not", "lane", l.address.Hex())
		e.arrivals.fire()
	}
	return nil
}

// A SharedKeyError says that somebody else sends transactions from a lane's
// account. Settling through it could replace or lose payments.
type SharedKeyError struct {
	Lane          common.Address
	Chain, Ledger uint64 // next nonces
}

func (e *SharedKeyError) Error() string {
	return fmt.Sprintf("lane %s has sent %d transactions, but the ledger knows of %d: its key is in use elsewhere, or the ledger is not the one it was used with; give the lane a key of its own", e.Lane, e.Chain, e.Ledger)
}

// A price is what gas is to cost, in wei per gas.
type price struct{ feeCap, tip *big.Int }

// price returns what to pay for a transaction that is sent now. The cap
// leaves room for the base fee to double.
func (e *Engine) price(ctx context.Context) (price, error) {
	head, err := e.Chain.Head()
	if err != nil {
		return price{}, err
	}
	tip, err := e.Chain.TipCap(ctx)
	if err != nil {
		return price{}, fmt.Errorf("asking for the tip: %w", err)
	}
	base := head.BaseFee
	if base == nil {
		base = new(big.Int)
	}
	if e.MaxFeePerGas != nil {
		now := new(big.Int).Add(base, tip)
		if now.Cmp(e.MaxFeePerGas) > 0 {
			return price{}, fmt.Errorf("gas costs %s wei, the ceiling of %s is %s: wait, or raise max_fee_per_gas", now, e.network, e.MaxFeePerGas)
		}
	}
	p := price{new(big.Int).Add(new(big.Int).Lsh(base, 1), tip), tip}
	if e.MaxFeePerGas != nil && p.feeCap.Cmp(e.MaxFeePerGas) > 0 {
		p.feeCap.Set(e.MaxFeePerGas)
	}
	return p, nil
}

// sign signs a call with one of the lane's nonces.
func (e *Engine) sign(ctx context.Context, l *lane, nonce uint64, to common.Address, data []byte, gas uint64, p price) (ledger.Attempt, error) {
	if l.signer == nil {
		return ledger.Attempt{}, fmt.Errorf("the key of lane %s is not configured", l.address)
	}
	id, _ := e.network.ChainID()
	raw, err := l.signer.SignCall(ctx, &payment.LaneCall{
		ChainID: id, Nonce: nonce, To: to, Data: data, Gas: gas, GasFeeCap: p.feeCap, GasTipCap: p.tip,
	})
	if err != nil {
		return ledger.Attempt{}, fmt.Errorf("signing with lane %s: %w", l.address, err)
	}
	if len(raw) == 0 {
		return ledger.Attempt{}, errors.New("settle: the lane's signer returned nothing")
	}
	return ledger.Attempt{
		Hash: crypto.Keccak256Hash(raw).Hex(), Raw: raw, GasFeeCap: p.feeCap.String(), GasTipCap: p.tip.String(), Gas: gas,
		Fill: to == l.address && len(data) == 0,
	}, nil
}

// Message returns the call that charges an amount as the lane will send it,
// with real fees and gas, for simulation. Wallets that behave differently when
// gas is free are seen through this way. contract says that the payer has code.
func (e *Engine) Message(ctx context.Context, signed *evm.Instrument, charge *big.Int, contract bool) (ethereum.CallMsg, error) {
	p, err := e.price(ctx)
	if err != nil {
		return ethereum.CallMsg{}, err
	}
	l := e.own[0]
	for _, other := range e.own {
		if other.address == signed.Sender {
			l = other
		}
	}
	return e.message(l, signed.Settlement(charge), e.gas(contract), p), nil
}

func (e *Engine) message(l *lane, call evm.Call, gas uint64, p price) ethereum.CallMsg {
	return ethereum.CallMsg{From: l.address, To: &call.To, Data: call.Data, Gas: gas, GasFeeCap: p.feeCap, GasTipCap: p.tip}
}

// intend takes the lane's next nonce for some items and stores the signed
// transaction. It is the last step before which nothing has happened. With
// ledger.ErrStale nothing was stored because one of the items has changed.
func (e *Engine) intend(ctx context.Context, l *lane, items []*item, gas uint64, p price) (*slot, error) {
	head, err := e.Chain.Head()
	if err != nil {
		return nil, err
	}
	call := payload(items)
	records := make([]ledger.Record, len(items))
	for i, it := range items {
		records[i] = it.snapshot()
		if records[i].IntentBlock == 0 {
			records[i].IntentBlock = head.Number
		}
	}
	state, end, err := e.begin(ctx, l)
	if err != nil {
		return nil, err
	}
	defer end()
	for {
		attempt, err := e.sign(ctx, l, state.Next, call.To, call.Data, gas, p)
		if err != nil {
			return nil, err
		}
		cost, err := attempt.Cost()
		if err != nil {
			return nil, err
		}
		credit, done, err := e.reserve(ctx, l, &state, cost)
		if err != nil {
			return nil, err
		}
		stored, changed, err := e.Ledger.Intend(ctx, state, ledger.Slot{
			Network: e.network, Lane: state.Address, Nonce: state.Next, Attempts: []ledger.Attempt{attempt},
		}, records...)
		done(err == nil, credit)
		if err == nil {
			for i, it := range items {
				it.set(changed[i])
			}
			return l.keep(newSlot(l, stored, e.Now())), nil
		}
		if !errors.Is(err, ledger.ErrStale) {
			return nil, err
		}
		// Another engine on the same ledger used the lane, or a record
		// changed. The first is no harm; the second ends here.
		for i := range records {
			now, err := e.Ledger.Get(ctx, records[i].Key)
			if err != nil {
				return nil, err
			}
			if now.Newer(&records[i]) {
				return nil, fmt.Errorf("payment %s is %s now: %w", now.Key, now.State, ledger.ErrStale)
			}
		}
		if state, err = e.laneState(ctx, l); err != nil {
			return nil, err
		}
	}
}

// payload returns the call that spends what the items' payers have signed.
func payload(items []*item) evm.Call {
	if len(items) == 1 {
		return items[0].spend()
	}
	return batch(items, true)
}

// batch returns the call that spends several authorizations.
func batch(items []*item, allowFailure bool) evm.Call {
	list := make([]*evm.Instrument, len(items))
	for i, it := range items {
		list[i] = it.signed
	}
	return evm.Call{To: evm.Multicall3, Data: evm.BatchCalldata(list, allowFailure)}
}

// decode reads back what an attempt has signed.
func decode(a ledger.Attempt) (*types.Transaction, error) {
	tx := new(types.Transaction)
	if err := tx.UnmarshalBinary(a.Raw); err != nil {
		return nil, fmt.Errorf("settle: the stored transaction %s cannot be read: %w", a.Hash, err)
	}
	return tx, nil
}
