package sim

import (
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

const chainID = 84532

// A transaction is one that a block can have. Those of lanes are real and
// signed; those of payers and strangers do what their deed says.
type transaction struct {
	hash common.Hash
	lane common.Address // who pays gas; zero for other people's
	tx   *types.Transaction
	deed func(s *state, b *block) outcome // nil for a lane's
	does *evm.Call                        // what a deed calls, if it is known
	from uint64                           // the first block that may have it
}

// A block is one of the chain, with what it did.
type block struct {
	number   uint64
	hash     common.Hash
	parent   *block
	time     uint64
	baseFee  *big.Int
	txs      []*transaction
	receipts []*types.Receipt
	calls    [][]chain.InnerCall // of each transaction
	state    *state              // after it
}

func (b *block) head() chain.Head {
	h := chain.Head{Number: b.number, Hash: b.hash, Time: b.time, BaseFee: b.baseFee, GasLimit: 30_000_000, SeenAt: time.Now()}
	if b.parent != nil {
		h.Parent = b.parent.hash
	}
	return h
}

// ancestor returns the block with a number on b's branch, or nil.
func (b *block) ancestor(number uint64) *block {
	if number > b.number {
		return nil
	}
	for b != nil && b.number > number {
		b = b.parent
	}
	return b
}

// back returns the block n below b, or nil where the chain is younger.
func (b *block) back(n uint64) *block {
	if n > b.number {
		return nil
	}
	return b.ancestor(b.number - n)
}

// A sighting is when a block became the tip.
type sighting struct {
	at  time.Time
	tip *block
}

// A chainModel is the chain as it really is. The world's lock guards it.
type chainModel struct {
	d         dice
	token     common.Address
	seller    common.Address
	separator common.Hash
	permit2   common.Hash                   // Permit2's separator
	permits   map[authorization]*evm.Permit // that payers gave to the seller
	coded     func(common.Address) bool     // accounts with code
	aggregate aggregate3
	signers   map[string]common.Address // of transfers, by digest and signature

	safeLag, finalLag uint64
	calm              int // one block in so many begins a spike of the base fee; 0 means none does
	spike             uint64

	tip    *block
	tips   []sighting
	pool   []*transaction                    // in the order of their arrival
	known  map[common.Hash]*transaction      // every transaction of a lane that ever came
	blocks map[common.Hash][]*block          // those that have a transaction, on any branch
	items  map[laneNonce]map[string]struct{} // what every transaction with a lane's nonce settles
	forks  int
}

type laneNonce struct {
	lane  common.Address
	nonce uint64
}

func newChain(d dice, start time.Time, height int, p *Purse, holders map[common.Address]uint64) *chainModel {
	c := &chainModel{
		d: d.of("chain"), token: common.HexToAddress(p.token.Address), seller: p.seller, separator: evm.DomainOf(p.token).Separator(), aggregate: p.aggregate,
		signers: map[string]common.Address{}, known: map[common.Hash]*transaction{}, blocks: map[common.Hash][]*block{},
		items: map[laneNonce]map[string]struct{}{}, permits: map[authorization]*evm.Permit{}, permit2: evm.Permit2Separator(chainID),
		coded: func(common.Address) bool { return false },
	}
	allowances := map[common.Address]uint64{}
	for holder := range holders {
		allowances[holder] = unlimited
	}
	genesis := &state{balances: holders, allowances: allowances, used: map[authorization]use{}, nonces: map[common.Address]uint64{}}
	for n := range height + 1 {
		age := time.Duration(height-n) * 2 * time.Second
		b := &block{number: uint64(n), parent: c.tip, time: unix(start.Add(-age)), baseFee: big.NewInt(1e9), state: genesis}
		b.hash = c.d.of("block").nth(n).bytes()
		c.tip = b
	}
	c.tips = []sighting{{start, c.tip}}
	return c
}

func unix(t time.Time) uint64 { return uint64(t.Unix()) } //nolint:gosec // virtual time begins in 2000

// seen returns the tip as it was some time ago.
func (c *chainModel) seen(ago time.Duration) *block {
	then := time.Now().Add(-ago)
	for _, s := range slices.Backward(c.tips) {
		if !s.at.After(then) {
			return s.tip
		}
	}
	return c.tips[0].tip
}

// fee returns the base fee that follows b. It wanders by an eighth at most,
// but for spikes, which multiply it by fifty.
func (c *chainModel) fee(b *block) *big.Int {
	d := c.d.of("fee").nth(int(b.number)) //nolint:gosec // block numbers are small
	wei := 800_000_000 + int64(d.below(400_000_000))
	if c.spike == 0 && d.of("spike").oneIn(c.calm) {
		c.spike = b.number + 2 + uint64(d.below(6)) //nolint:gosec // small
	}
	if b.number < c.spike {
		return big.NewInt(50 * wei)
	}
	return big.NewInt(wei)
}

// mine makes the next block, with what the pool has for it.
func (c *chainModel) mine(at time.Time) *block {
	b := &block{number: c.tip.number + 1, parent: c.tip, time: max(unix(at), c.tip.time), baseFee: c.fee(c.tip), state: c.tip.state}
	b.hash = c.d.of("block").nth(int(b.number)).nth(c.forks).bytes() //nolint:gosec // block numbers are small
	waiting := c.pool
	for progress := true; progress; {
		progress = false
		var left []*transaction
		for _, t := range waiting {
			if c.include(b, t) {
				progress = true
				continue
			}
			left = append(left, t)
		}
		waiting = left
	}
	c.pool = slices.DeleteFunc(waiting, func(t *transaction) bool { return t.tx != nil && t.tx.Nonce() < b.state.nonces[t.lane] })
	var index uint
	for i, r := range b.receipts {
		r.BlockHash, r.BlockNumber, r.TransactionIndex = b.hash, new(big.Int).SetUint64(b.number), uint(i)
		for _, l := range r.Logs {
			l.BlockNumber, l.BlockHash, l.TxHash, l.TxIndex, l.Index = b.number, b.hash, r.TxHash, r.TransactionIndex, index
			index++
		}
	}
	c.become(b)
	return b
}

// include puts t into b if it can be next.
func (c *chainModel) include(b *block, t *transaction) bool {
	if b.number < t.from || t.tx != nil && (t.tx.Nonce() != b.state.nonces[t.lane] || t.tx.GasFeeCap().Cmp(b.baseFee) < 0) {
		return false
	}
	next := b.state.clone()
	var out outcome
	if t.tx == nil {
		out = t.deed(next, b)
	} else if out = c.call(next, frame{t.lane, b.time, b.number, t.hash, true}, *t.tx.To(), t.tx.Data()); out.gas > t.tx.Gas() {
		out = outcome{failed: true, reason: "out of gas", gas: t.tx.Gas()}
	}
	r := &types.Receipt{TxHash: t.hash, GasUsed: out.gas, EffectiveGasPrice: b.baseFee, Status: types.ReceiptStatusSuccessful, Logs: out.logs}
	if out.failed {
		next = b.state.clone()
		r.Status, r.Logs, out.calls = types.ReceiptStatusFailed, nil, nil
	}
	if t.tx != nil {
		next.nonces[t.lane]++
	}
	b.state = next
	b.txs, b.receipts, b.calls = append(b.txs, t), append(b.receipts, r), append(b.calls, out.calls)
	return true
}

// become makes b the tip.
func (c *chainModel) become(b *block) {
	for _, t := range b.txs {
		c.blocks[t.hash] = append(c.blocks[t.hash], b)
	}
	c.tip = b
	c.tips = append(c.tips, sighting{time.Now(), b})
}

// reorganize replaces the last blocks by another branch that is one longer.
// Most transactions find their way into it, some only later, some never.
func (c *chainModel) reorganize(depth uint64, at time.Time) {
	c.forks++
	var times []uint64
	var orphans []*transaction
	for b := c.tip; b.number > c.tip.number-depth; b = b.parent {
		times = append(times, b.time)
		orphans = append(slices.Clone(b.txs), orphans...)
	}
	fork := c.tip.back(depth)
	d := c.d.of("reorg").nth(c.forks)
	var back []*transaction
	for i, t := range orphans {
		again := *t
		switch luck := d.nth(i); luck.below(8) {
		case 0: // lost
			continue
		case 1, 2:
			again.from = fork.number + 2 + uint64(luck.of("late").below(int(depth)+2)) //nolint:gosec // small
		}
		back = append(back, &again)
	}
	if d.of("order").oneIn(2) { // whoever waited may be first now
		c.pool = append(c.pool, back...)
	} else {
		c.pool = append(back, c.pool...)
	}
	c.tip = fork
	for _, t := range slices.Backward(times) {
		c.mine(time.Unix(int64(t), 0)) //nolint:gosec // it came from Unix
	}
	c.mine(at)
}

// offer gives the pool a lane's transaction, as eth_sendRawTransaction does.
func (c *chainModel) offer(tx *types.Transaction, lane common.Address, from uint64) error {
	reject := func(kind chain.Kind) error { return &chain.RejectedError{Kind: kind, Reason: string(kind)} }
	if tx.Nonce() < c.tip.state.nonces[lane] {
		return reject(chain.NonceTooLow)
	}
	for i, t := range c.pool {
		if t.tx == nil || t.lane != lane || t.tx.Nonce() != tx.Nonce() {
			continue
		}
		if t.hash == tx.Hash() {
			return nil
		}
		if tenth(t.tx.GasFeeCap()).Cmp(tx.GasFeeCap()) > 0 || tenth(t.tx.GasTipCap()).Cmp(tx.GasTipCap()) > 0 {
			return reject(chain.ReplacementUnderpriced)
		}
		c.pool = slices.Delete(c.pool, i, i+1)
		break
	}
	c.pool = append(c.pool, &transaction{hash: tx.Hash(), lane: lane, tx: tx, from: from})
	return nil
}

// tenth returns n and a tenth of it.
func tenth(n *big.Int) *big.Int {
	return new(big.Int).Div(new(big.Int).Mul(n, big.NewInt(11)), big.NewInt(10))
}

// parse reads a signed transaction and notes what it settles. It returns an
// error if it is not one, or contradicts an earlier one with its nonce.
func (c *chainModel) parse(raw []byte) (*types.Transaction, common.Address, error) {
	tx := new(types.Transaction)
	if err := tx.UnmarshalBinary(raw); err != nil {
		return nil, common.Address{}, fmt.Errorf("no transaction was broadcast: %w", err)
	}
	if t, ok := c.known[tx.Hash()]; ok {
		return t.tx, t.lane, nil
	}
	lane, err := types.Sender(types.LatestSignerForChainID(big.NewInt(chainID)), tx)
	if err != nil || tx.To() == nil {
		return nil, lane, errors.Join(errors.New("a transaction was broadcast that no lane signed"), err)
	}
	c.known[tx.Hash()] = &transaction{hash: tx.Hash(), lane: lane, tx: tx}
	at := laneNonce{lane, tx.Nonce()}
	if c.items[at] == nil {
		c.items[at] = map[string]struct{}{}
	}
	if names := c.itemsOf(*tx.To(), tx.Data()); names != "" { // filling a nonce settles nothing
		c.items[at][names] = struct{}{}
	}
	if len(c.items[at]) > 1 {
		return tx, lane, fmt.Errorf("nonce %d carries different payments", tx.Nonce())
	}
	return tx, lane, nil
}

// find returns the place of a transaction on view's branch, or false.
func (c *chainModel) find(view *block, hash common.Hash) (in *block, at int, ok bool) {
	for _, b := range c.blocks[hash] {
		if view.ancestor(b.number) != b {
			continue
		}
		for i, t := range b.txs {
			if t.hash == hash {
				return b, i, true
			}
		}
	}
	return nil, 0, false
}

// receipt returns the receipt of a transaction on view's branch, or nil.
func (c *chainModel) receipt(view *block, hash common.Hash) *types.Receipt {
	if b, i, ok := c.find(view, hash); ok {
		return b.receipts[i]
	}
	return nil
}

// transaction returns a lane's transaction, or one on view's branch, or nil.
func (c *chainModel) transaction(view *block, hash common.Hash) *types.Transaction {
	if t, ok := c.known[hash]; ok {
		return t.tx
	}
	b, i, ok := c.find(view, hash)
	if !ok {
		return nil
	}
	to, data := common.Address{}, []byte(nil)
	if call := b.txs[i].does; call != nil {
		to, data = call.To, call.Data
	}
	return types.NewTx(&types.LegacyTx{To: &to, Data: data})
}

// meets reports whether a transfer in a block is as final on view's branch as
// f asks for.
func (c *chainModel) meets(f payment.Finality, number uint64, view *block) bool {
	if n, counted := f.Confirmations(); counted {
		return view.number+1 >= number+n
	}
	lag := c.finalLag
	if f == payment.Safe {
		lag = c.safeLag
	}
	return view.number >= number+lag
}
