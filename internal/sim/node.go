package sim

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/big"
	"slices"
	"strconv"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/payment"
)

var noHash common.Hash

// Address implements payment.CallSigner.
func (l *lane) Address() common.Address { return l.key.Address() }

// SignCall implements payment.CallSigner.
func (l *lane) SignCall(ctx context.Context, c *payment.LaneCall) ([]byte, error) {
	raw, err := l.key.SignCall(ctx, c)
	if err != nil {
		return nil, err
	}
	w := l.p.w
	if err := l.p.enter(); err != nil {
		return nil, err
	}
	at := laneNonce{l.Address(), c.Nonce}
	kind := "sign"
	if w.signed[at] {
		kind = "bump"
	}
	w.signed[at] = true
	w.note(kind, l.p.name, strconv.FormatUint(c.Nonce, 10), "")
	if l.p.strike(kind, "", false) {
		w.mu.Unlock()
		return nil, l.p.park()
	}
	w.mu.Unlock()
	return raw, nil
}

// A node is what one shift knows of the chain: a client with nodes behind it
// that fail, hang and lag. It implements settle.Chain and facilitator.Chain
// with the promises of *chain.Client.
type node struct {
	p    *process
	name string

	// Guarded by the world's lock.
	tip      *block // nil until a node has answered
	heard    int    // which of the chain's tips it is
	changed  chan struct{}
	doubtful int // broadcasts that ended with an error
}

func newNode(p *process, shift int) *node {
	n := &node{p: p, name: p.name + "." + strconv.Itoa(shift), changed: make(chan struct{}), heard: -1}
	p.w.nodes = append(p.w.nodes, n)
	n.hear(len(p.w.chain.tips) - 1)
	return n
}

// hear lets the node learn of the chain's i-th tip, some time from now. The
// caller holds the world's lock.
func (n *node) hear(i int) {
	w := n.p.w
	d := n.p.dice.of(n.name).nth(i)
	delay := d.between(time.Millisecond, 150*time.Millisecond)
	if w.troubled() && d.of("slow").oneIn(w.profile.staleHead) {
		delay = d.between(time.Second, 12*time.Second)
		w.covered("stale head")
	}
	time.AfterFunc(delay, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if n.p.dead || i <= n.heard {
			return
		}
		n.heard, n.tip = i, w.chain.tips[i].tip
		w.note("head", n.name, strconv.FormatUint(n.tip.number, 10), "")
		close(n.changed)
		n.changed = make(chan struct{})
	})
}

func unavailable(op string, err error) error { return &chain.UnavailableError{Op: op, Err: err} }

var errNoHead = errors.New("no node has answered yet")

// Head implements settle.Chain.
func (n *node) Head() (chain.Head, error) {
	if err := n.p.enter(); err != nil {
		return chain.Head{}, unavailable("head", err)
	}
	defer n.p.w.mu.Unlock()
	if n.tip == nil {
		return chain.Head{}, unavailable("head", errNoHead)
	}
	return n.tip.head(), nil
}

// WaitHead implements settle.Chain. Those who wait wake one after the other.
func (n *node) WaitHead(ctx context.Context, after common.Hash) (chain.Head, error) {
	for waited := false; ; waited = true {
		if err := n.p.enter(); err != nil {
			return chain.Head{}, unavailable("waiting for a head", err)
		}
		changed, tip := n.changed, n.tip
		d := n.p.dice.of(actorOf(ctx) + "|" + n.name).nth(n.heard)
		n.p.w.mu.Unlock()
		if tip != nil && tip.hash != after {
			if waited {
				if err := sleep(ctx, d.between(time.Microsecond, time.Millisecond)); err != nil {
					return chain.Head{}, unavailable("waiting for a head", err)
				}
			}
			return tip.head(), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return chain.Head{}, unavailable("waiting for a head", ctx.Err())
		case <-n.p.w.over:
			return chain.Head{}, unavailable("waiting for a head", errOver)
		}
	}
}

// read asks a node. view is the tip as that node has it.
func (n *node) read(ctx context.Context, op, id string, answer func(view *block) error) error {
	err := n.p.act(ctx, interaction{kind: op, id: id}, func(l luck) error {
		w := n.p.w
		switch {
		case l.late:
			w.covered("call that hangs")
			return errors.New("no answer in time")
		case l.broken:
			w.covered("call that fails")
			return errors.New("HTTP status 502")
		case l.stale > 0:
			w.covered("stale node")
		}
		return answer(w.chain.seen(l.stale))
	})
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*chain.RevertError](err); ok {
		return err
	}
	return unavailable(op, err)
}

// header is what HeaderByNumber, Safe and Finalized share.
func (n *node) header(ctx context.Context, name string, find func(view *block) *block) (chain.Head, error) {
	var h chain.Head
	err := n.read(ctx, "eth_getBlockByNumber", name, func(view *block) error {
		b := find(view)
		if b == nil {
			return chain.ErrUnknownBlock
		}
		h = b.head()
		return nil
	})
	return h, err
}

// HeaderByNumber implements settle.Chain.
func (n *node) HeaderByNumber(ctx context.Context, number uint64) (chain.Head, error) {
	return n.header(ctx, strconv.FormatUint(number, 10), func(view *block) *block { return view.ancestor(number) })
}

// Headers implements settle.Chain.
func (n *node) Headers(ctx context.Context, numbers ...uint64) ([]chain.Head, error) {
	heads := make([]chain.Head, len(numbers))
	err := n.read(ctx, "eth_getBlockByNumber", fmt.Sprint(numbers), func(view *block) error {
		for i, number := range numbers {
			b := view.ancestor(number)
			if b == nil {
				return chain.ErrUnknownBlock
			}
			heads[i] = b.head()
		}
		return nil
	})
	return heads, err
}

// Safe implements settle.Chain.
func (n *node) Safe(ctx context.Context) (chain.Head, error) {
	return n.header(ctx, "safe", func(view *block) *block { return view.back(n.p.w.chain.safeLag) })
}

// Finalized implements settle.Chain.
func (n *node) Finalized(ctx context.Context) (chain.Head, error) {
	return n.header(ctx, "finalized", func(view *block) *block { return view.back(n.p.w.chain.finalLag) })
}

// Receipt implements settle.Chain. Requests whose payments are in one
// transaction ask in turns and wake at one instant, in no particular order; so
// it must not matter which of them asks.
func (n *node) Receipt(ctx context.Context, hash common.Hash) (*types.Receipt, error) {
	var r *types.Receipt
	err := n.read(as(ctx, "receipts"), "eth_getTransactionReceipt", short(hash), func(view *block) error {
		r = n.p.w.chain.receipt(view, hash)
		return nil
	})
	return r, err
}

// Witness implements settle.Chain. No world asks for a quorum.
func (n *node) Witness(ctx context.Context, hash common.Hash, _ int) (*types.Receipt, error) {
	return n.Receipt(ctx, hash)
}

// WitnessLogs implements settle.Chain, as Witness does.
func (n *node) WitnessLogs(ctx context.Context, q ethereum.FilterQuery, _ int) ([]types.Log, error) {
	return n.Logs(ctx, q)
}

// Transaction implements settle.Chain.
func (n *node) Transaction(ctx context.Context, hash common.Hash) (*types.Transaction, error) {
	var t *types.Transaction
	err := n.read(ctx, "eth_getTransactionByHash", short(hash), func(view *block) error {
		t = n.p.w.chain.transaction(view, hash)
		return nil
	})
	return t, err
}

// Trace implements settle.Chain.
func (n *node) Trace(ctx context.Context, hash common.Hash, _ int) ([]chain.InnerCall, error) {
	var calls []chain.InnerCall
	err := n.read(ctx, "debug_traceTransaction", short(hash), func(view *block) error {
		b, i, ok := n.p.w.chain.find(view, hash)
		if !ok {
			return errors.New("transaction not found")
		}
		calls = b.calls[i]
		n.p.w.covered("trace of somebody else's transaction")
		return nil
	})
	return calls, err
}

// AgreeAt implements settle.Chain, as Witness does.
func (n *node) AgreeAt(ctx context.Context, _ int, block common.Hash, question chain.Request) error {
	return n.AskAt(ctx, block, question)
}

// Reached implements settle.Chain, as Witness does.
func (n *node) Reached(ctx context.Context, _ int, _ chain.Tag, _ func(chain.Head) bool) (chain.Head, error) {
	return n.Finalized(ctx)
}

// Logs implements settle.Chain.
func (n *node) Logs(ctx context.Context, q ethereum.FilterQuery) ([]types.Log, error) {
	var logs []types.Log
	head, err := n.Head()
	if err != nil {
		return nil, err
	}
	from, to := uint64(0), head.Number
	if q.FromBlock != nil {
		from = q.FromBlock.Uint64()
	}
	if q.ToBlock != nil {
		to = q.ToBlock.Uint64()
	}
	if q.BlockHash == nil && (from > to || from > head.Number) {
		return nil, nil
	}
	id := strconv.FormatUint(from, 10)
	if q.BlockHash != nil {
		id = short(*q.BlockHash)
	}
	err = n.read(ctx, "eth_getLogs", id, func(view *block) error {
		logs = nil
		if q.BlockHash == nil && view.number < to {
			return errors.New("the node has not reached the end of the range")
		}
		var branch []*block
		for b := view; b != nil; b = b.parent {
			wanted := b.number >= from && b.number <= to
			if q.BlockHash != nil {
				wanted = b.hash == *q.BlockHash
			}
			if wanted {
				branch = append(branch, b)
			}
		}
		if q.BlockHash != nil && len(branch) == 0 {
			return chain.ErrUnknownBlock
		}
		for _, b := range slices.Backward(branch) {
			for _, r := range b.receipts {
				for _, l := range r.Logs {
					if asked(l, q) {
						logs = append(logs, *l)
					}
				}
			}
		}
		return nil
	})
	return logs, err
}

// asked reports whether a log matches the addresses and topics of q.
func asked(l *types.Log, q ethereum.FilterQuery) bool {
	if len(q.Addresses) > 0 && !slices.Contains(q.Addresses, l.Address) || len(q.Topics) > len(l.Topics) {
		return false
	}
	for i, list := range q.Topics {
		if len(list) > 0 && !slices.Contains(list, l.Topics[i]) {
			return false
		}
	}
	return true
}

// Ask implements settle.Chain and facilitator.Chain.
func (n *node) Ask(ctx context.Context, questions ...chain.Request) error {
	return n.ask(ctx, "", questions, func(view *block) *block { return view })
}

// AskAt implements settle.Chain.
func (n *node) AskAt(ctx context.Context, at common.Hash, questions ...chain.Request) error {
	return n.ask(ctx, short(at), questions, func(view *block) *block {
		for b := view; b != nil; b = b.parent {
			if b.hash == at {
				return b
			}
		}
		return nil
	})
}

func (n *node) ask(ctx context.Context, at string, questions []chain.Request, find func(view *block) *block) error {
	// The questions belong to the caller, who may be gone before the answer is
	// there; so they are answered by whoever is still there.
	var answers []func()
	kind := "eth_call"
	for _, q := range questions {
		if _, ok := q.(*chain.Code); ok {
			kind = "verify"
		}
	}
	err := n.read(ctx, kind, at+questionID(questions), func(view *block) error {
		b := find(view)
		if b == nil {
			return errors.New("unknown block")
		}
		answers = answers[:0]
		for _, q := range questions {
			answers = append(answers, n.answer(b, q))
		}
		return nil
	})
	if err != nil {
		answers = answers[:0]
		for _, q := range questions {
			answers = append(answers, refuse(q, err))
		}
	}
	for _, a := range answers {
		a()
	}
	return err
}

// answer computes one answer and returns what hands it over.
func (n *node) answer(b *block, q chain.Request) func() {
	w := n.p.w
	switch q := q.(type) {
	case *chain.Call:
		if q.Msg.GasFeeCap != nil && q.Msg.GasFeeCap.Cmp(b.baseFee) < 0 {
			return refuse(q, unavailable("eth_call", &chain.NodeError{Code: -32000, Message: "max fee per gas less than block base fee"}))
		}
		out := w.chain.call(b.state.clone(), frame{q.Msg.From, b.time, b.number, noHash, true}, *q.Msg.To, q.Msg.Data)
		if out.failed {
			return refuse(q, &chain.RevertError{Reason: out.reason, Data: out.data})
		}
		return func() { q.Output, q.Err = out.output, nil }
	case *chain.Code:
		code := w.codeAt(q.Address)
		return func() { q.Code, q.Err = code, nil }
	case *chain.Balance:
		return func() { q.Wei, q.Err = new(big.Int).Mul(big.NewInt(1e9), big.NewInt(1e9)), nil }
	case *chain.Nonce:
		nonce := b.state.nonces[q.Address]
		return func() { q.Nonce, q.Err = nonce, nil }
	}
	return refuse(q, unavailable("ask", errors.New("sim: a question that nobody taught it")))
}

// refuse returns what tells a question that it has no answer.
func refuse(q chain.Request, err error) func() {
	return func() {
		switch q := q.(type) {
		case *chain.Call:
			q.Output, q.Err = nil, err
		case *chain.Code:
			q.Code, q.Err = nil, err
		case *chain.Balance:
			q.Wei, q.Err = nil, err
		case *chain.Nonce:
			q.Nonce, q.Err = 0, err
		}
	}
}

// questionID names a batch of questions.
func questionID(questions []chain.Request) string {
	h := fnv.New64a()
	for _, q := range questions {
		switch q := q.(type) {
		case *chain.Call:
			_, _ = h.Write(q.Msg.To[:])
			_, _ = h.Write(q.Msg.Data)
		case *chain.Code:
			_, _ = h.Write(q.Address[:])
		case *chain.Balance:
			_, _ = h.Write(q.Address[:])
		case *chain.Nonce:
			_, _ = h.Write(q.Address[:])
		}
	}
	return strconv.FormatUint(h.Sum64(), 36)
}

// NonceAt implements settle.Chain.
func (n *node) NonceAt(ctx context.Context, account common.Address) (uint64, error) {
	q := &chain.Nonce{Address: account}
	err := n.Ask(ctx, q)
	return q.Nonce, err
}

// BalanceAt returns the gas money of an account, of which there is enough.
func (n *node) BalanceAt(ctx context.Context, account common.Address) (*big.Int, error) {
	q := &chain.Balance{Address: account}
	err := n.Ask(ctx, q)
	return q.Wei, err
}

// TipCap implements settle.Chain. Like *chain.Client it asks rarely.
func (n *node) TipCap(context.Context) (*big.Int, error) {
	if _, err := n.Head(); err != nil {
		return nil, err
	}
	return big.NewInt(1_000_000), nil
}

// EstimateGas implements settle.Chain.
func (n *node) EstimateGas(ctx context.Context, msg ethereum.CallMsg) (uint64, error) {
	var gas uint64
	id := questionID([]chain.Request{&chain.Call{Msg: msg}})
	err := n.read(ctx, "eth_estimateGas", id, func(view *block) error {
		if msg.GasFeeCap != nil && msg.GasFeeCap.Cmp(view.baseFee) < 0 {
			return &chain.NodeError{Code: -32000, Message: "max fee per gas less than block base fee"}
		}
		out := n.p.w.chain.call(view.state.clone(), frame{msg.From, view.time, view.number, noHash, true}, *msg.To, msg.Data)
		if out.failed {
			return &chain.RevertError{Reason: out.reason, Data: out.data}
		}
		gas = out.gas
		return nil
	})
	return gas, err
}

// Broadcast implements settle.Chain. Its errors prove nothing, and what has
// begun is not withdrawn when ctx ends.
func (n *node) Broadcast(ctx context.Context, raw []byte) error {
	w := n.p.w
	tx, lane, err := w.parse(raw)
	if err != nil {
		return err
	}
	if err := n.p.enterThen(func() { w.durableBefore(n.p, tx.Hash()) }); err != nil {
		return err
	}
	err = n.p.act(ctx, interaction{kind: "broadcast", id: short(tx.Hash()), deaf: true}, func(l luck) error {
		luck := l.dice.of("broadcast")
		from := uint64(0)
		if luck.of("slow").oneIn(w.profile.slowTx) {
			from = w.chain.tip.number + 2 + uint64(luck.below(4)) //nolint:gosec // small
		}
		switch {
		case (l.broken || l.late) && luck.of("lost").oneIn(2):
			w.covered("broadcast lost, with an error")
			return errors.New("connection reset by peer")
		case l.broken || l.late:
			_ = w.chain.offer(tx, lane, from) // what the node said was lost
			w.covered("broadcast accepted, with an error")
			w.arrived()
			return errors.New("no answer in time")
		case w.troubled() && luck.of("dropped").oneIn(w.profile.dropTx):
			w.covered("broadcast accepted, and dropped")
			return nil
		}
		err := w.chain.offer(tx, lane, from)
		if err == nil {
			w.arrived()
		}
		return err
	})
	var rejected *chain.RejectedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &rejected):
		return rejected
	}
	_ = n.p.enterThen(func() { n.doubtful++ })
	return &chain.AmbiguousError{Err: err}
}

// enterThen runs f under the world's lock for a living process.
func (p *process) enterThen(f func()) error {
	if err := p.enter(); err != nil {
		return err
	}
	defer p.w.mu.Unlock()
	f()
	return nil
}

func short(h common.Hash) string { return h.Hex()[2:10] }

var _ settle.Chain = (*node)(nil)
