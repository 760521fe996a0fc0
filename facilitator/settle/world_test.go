package settle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A clock stands still until a test advances it.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now().Truncate(time.Second)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// A history is a store that remembers through which states payments go, and
// fails the test if one takes a step that does not exist.
type history struct {
	ledger.Store
	t testing.TB

	broken atomic.Bool // its disk has failed

	mu     sync.Mutex
	states map[ledger.Key][]ledger.State // guarded by mu
}

func (h *history) Commit(ctx context.Context, writes ...ledger.Write) error {
	if h.broken.Load() {
		return &ledger.FailedError{Err: errors.New("input/output error")}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.Store.Commit(ctx, writes...); err != nil {
		return err
	}
	for _, w := range writes {
		if !strings.HasPrefix(string(w.Key), "pay/") {
			continue
		}
		var r ledger.Record
		if err := json.Unmarshal(w.Value, &r); err != nil {
			h.t.Error(err)
		}
		path := h.states[w.Key]
		last := ledger.State("")
		if len(path) > 0 {
			last = path[len(path)-1]
		}
		if r.State == last {
			continue
		}
		if !last.Can(r.State) {
			h.t.Errorf("a payment went from %q to %q", last, r.State)
		}
		h.states[w.Key] = append(path, r.State)
	}
	return nil
}

func (h *history) Later(writes ...ledger.Write) { _ = h.Commit(context.Background(), writes...) }

// path returns the states of a payment, joined by blanks.
func (h *history) path(k payment.Key) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var words []string
	for _, s := range h.states[ledger.Key("pay/"+k.String())] {
		words = append(words, string(s))
	}
	return strings.Join(words, " ")
}

// A probe is a node that a test can look over the shoulder of.
type probe struct {
	*chain.Client

	// simulated is called when a simulation has succeeded, before the engine
	// hears of it.
	simulated func()

	// broadcast, if it is set, decides what becomes of a transaction.
	broadcast func(ctx context.Context, raw []byte) error

	spike  atomic.Int64               // if set, the base fee it reports is so many times the real one
	frozen atomic.Pointer[chain.Head] // if set, it knows no other head

	gasLimit atomic.Uint64 // if set, the gas limit of the blocks that it reports

	// estimated, if it is set, says what it answers in place of an estimate.
	estimated func(msg ethereum.CallMsg, gas uint64) uint64

	mute atomic.Bool // what is broadcast goes nowhere, and nobody hears of it

	down atomic.Bool   // it answers no questions about payments
	hang chan struct{} // if set, those questions wait until it is closed

	stalled atomic.Bool // what it is asked about a block waits for the end of its context

	mu   sync.Mutex
	sent [][]byte // guarded by mu: what was broadcast
}

var errDown = &chain.UnavailableError{Op: "asking", Err: errors.New("the node is down")}

func (p *probe) Head() (chain.Head, error) {
	if frozen := p.frozen.Load(); frozen != nil {
		return *frozen, nil
	}
	head, err := p.Client.Head()
	if times := p.spike.Load(); err == nil && times > 0 {
		head.BaseFee = new(big.Int).Mul(head.BaseFee, big.NewInt(times))
	}
	if limit := p.gasLimit.Load(); limit > 0 {
		head.GasLimit = limit
	}
	return head, err
}

func (p *probe) EstimateGas(ctx context.Context, msg ethereum.CallMsg) (uint64, error) {
	gas, err := p.Client.EstimateGas(ctx, msg)
	if err == nil && p.estimated != nil {
		gas = p.estimated(msg, gas)
	}
	return gas, err
}

func (p *probe) Receipt(ctx context.Context, tx common.Hash) (*types.Receipt, error) {
	if p.down.Load() {
		return nil, errDown
	}
	if p.hang != nil {
		select {
		case <-p.hang:
		case <-ctx.Done():
		}
		return nil, errDown
	}
	return p.Client.Receipt(ctx, tx)
}

func (p *probe) AskAt(ctx context.Context, block common.Hash, questions ...chain.Request) error {
	if p.stalled.Load() {
		<-ctx.Done()
	}
	if p.down.Load() {
		return errDown
	}
	return p.Client.AskAt(ctx, block, questions...)
}

func (p *probe) Ask(ctx context.Context, questions ...chain.Request) error {
	err := p.Client.Ask(ctx, questions...)
	for _, q := range questions {
		run, simulates := q.(*chain.Call)
		if err == nil && simulates && run.Err == nil && run.Msg.GasFeeCap != nil && p.simulated != nil {
			p.simulated()
		}
	}
	return err
}

func (p *probe) Broadcast(ctx context.Context, raw []byte) error {
	p.mu.Lock()
	p.sent = append(p.sent, bytes.Clone(raw))
	p.mu.Unlock()
	if p.mute.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if p.broadcast != nil {
		return p.broadcast(ctx, raw)
	}
	return p.Client.Broadcast(ctx, raw)
}

// transactions returns the different transactions that were broadcast.
func (p *probe) transactions() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list [][]byte
	seen := map[string]bool{}
	for _, raw := range p.sent {
		if !seen[string(raw)] {
			seen[string(raw)] = true
			list = append(list, raw)
		}
	}
	return list
}

func (p *probe) broadcasts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sent)
}

// A world is a chain, a node client, a ledger and an engine.
type world struct {
	t       testing.TB
	chain   *devchain.Chain
	clock   *clock // of the chain and of the engine
	node    *probe
	history *history
	ledger  *ledger.Ledger
	engine  *settle.Engine
	offer   payment.Offer
	seller  common.Address
	payer   devchain.Account
}

func newWorld(t testing.TB, adjust ...func(*settle.Config)) *world {
	t.Helper()
	return newWorldOn(t, devchain.Config{}, adjust...)
}

// newWorldOn is newWorld on a chain of some configuration.
func newWorldOn(t testing.TB, c devchain.Config, adjust ...func(*settle.Config)) *world {
	t.Helper()
	w := &world{t: t, clock: newClock()}
	c.Now = w.clock.Now
	var err error
	if w.chain, err = devchain.Start(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.chain.Close() })
	w.node = &probe{Client: facilitatortest.Client(t, w.chain.URL())}
	w.history = &history{Store: ledger.NewMemory(), t: t, states: map[ledger.Key][]ledger.State{}}
	w.ledger = ledger.New(w.history, "one", time.Now)
	w.seller, w.payer = w.chain.Account("seller").Address, w.chain.Account("payer")
	w.offer = facilitatortest.Offer(t, 1000, w.seller)
	w.engine = w.start(w.node, adjust...)
	return w
}

// start runs an engine of the world's lane until the test ends.
func (w *world) start(node settle.Chain, adjust ...func(*settle.Config)) *settle.Engine {
	w.t.Helper()
	c := settle.Config{
		Network: payment.EVM(84532), Chain: node, Ledger: w.ledger,
		Signers: []payment.CallSigner{facilitatortest.Lane{Key: w.chain.Account("facilitator").Key}}, Now: w.clock.Now,
	}
	for _, f := range adjust {
		f(&c)
	}
	e, err := settle.New(c)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := e.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(e.Stop)
	return e
}

// authorize signs a payment for the world's offer, valid for an hour.
func (w *world) authorize() *evm.Transfer {
	w.t.Helper()
	return facilitatortest.Authorize(w.t, w.payer.Key, &w.offer, w.clock.Now().Unix(), 3600)
}

// claim makes a job of a payment, as a till does.
func (w *world) claim(transfer *evm.Transfer, until payment.Finality) settle.Job {
	w.t.Helper()
	p := facilitatortest.Payment(w.t, payment.V2, &w.offer, transfer)
	request, err := payment.EncodeRequest(p, &w.offer, w.offer.Amount)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := w.ledger.Claim(w.t.Context(), ledger.Record{
		Key: transfer.Key(84532, devchain.USDC), State: ledger.Reserved, Mode: "test", Network: payment.EVM(84532),
		Payer: transfer.From.Hex(), Charge: w.offer.Amount.Units(), Until: until.String(), Request: request,
	}, time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	job := settleJob(r, transfer, w.offer)
	job.Until = until
	return job
}

// settleJob is the job of a claimed payment for an offer.
func settleJob(r ledger.Record, transfer *evm.Transfer, o payment.Offer) settle.Job {
	return settle.Job{Record: r, Signed: evm.OfTransfer(common.HexToAddress(o.Amount.Token().Address), transfer), Charge: o.Amount, Until: payment.Included}
}

// settle claims and settles a payment.
func (w *world) settle(transfer *evm.Transfer, until payment.Finality) (*payment.Settlement, error) {
	w.t.Helper()
	ctx, cancel := within(w.t, 20*time.Second)
	defer cancel()
	return w.engine.Settle(ctx, w.claim(transfer, until))
}

// abandon begins to settle a payment, and gives up once the condition holds.
// The answer must be that the outcome is open.
func (w *world) abandon(job settle.Job, condition func() bool) *payment.UnavailableError {
	w.t.Helper()
	ctx, cancel := within(w.t, 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { // ends with ctx
		_, err := w.engine.Settle(ctx, job)
		done <- err
	}()
	for !condition() {
		select {
		case err := <-done:
			w.t.Fatalf("it gave up by itself: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	return wantPending(w.t, <-done)
}

// sent reports whether anything was broadcast.
func (w *world) sent() bool { return w.node.broadcasts() > 0 }

func within(t testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

func (w *world) record(transfer *evm.Transfer) ledger.Record {
	w.t.Helper()
	return w.stored(transfer.Key(84532, devchain.USDC))
}

func (w *world) stored(k payment.Key) ledger.Record {
	w.t.Helper()
	r, err := w.ledger.Get(w.t.Context(), k)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// awaitState waits until the payment is in one of some states.
func (w *world) awaitState(transfer *evm.Transfer, states ...ledger.State) ledger.Record {
	w.t.Helper()
	return w.awaitStored(transfer.Key(84532, devchain.USDC), states...)
}

func (w *world) awaitStored(k payment.Key, states ...ledger.State) ledger.Record {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		r := w.stored(k)
		if slices.Contains(states, r.State) {
			return r
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the payment is %s, want one of %s", r.State, states)
		}
	}
}

// mineUntil seals blocks until the payment is in one of some states.
func (w *world) mineUntil(transfer *evm.Transfer, states ...ledger.State) ledger.Record {
	w.t.Helper()
	return w.mineUntilStored(transfer.Key(84532, devchain.USDC), states...)
}

func (w *world) mineUntilStored(k payment.Key, states ...ledger.State) ledger.Record {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		w.mine(1)
		for seen := time.Now(); time.Since(seen) < 50*time.Millisecond; time.Sleep(2 * time.Millisecond) {
			if r := w.stored(k); slices.Contains(states, r.State) {
				return r
			}
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the payment is %s, want one of %s", w.stored(k).State, states)
		}
	}
}

func (w *world) mine(n int) {
	w.t.Helper()
	if err := w.chain.Mine(n); err != nil {
		w.t.Fatal(err)
	}
}

// sees waits until the node client knows the chain's head, or a later one.
func (w *world) sees() {
	w.t.Helper()
	head := w.chain.Snapshot()
	block, err := w.chain.Client().HeaderByHash(w.t.Context(), head)
	if err != nil {
		w.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if h, err := w.node.Head(); err == nil && (h.Hash == head || h.Number > block.Number.Uint64()) {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal("the client does not see the head")
		}
	}
}

// earned returns what the seller has got.
func (w *world) earned() int64 { return w.chain.USDCBalance(w.seller).Int64() }

// wantEarned checks what the seller has got.
func (w *world) wantEarned(units int64) {
	w.t.Helper()
	if got := w.earned(); got != units {
		w.t.Errorf("the seller has %d units, want %d", got, units)
	}
}

// send has an account call the token and returns the transaction's hash.
func (w *world) send(from devchain.Account, data []byte) common.Hash {
	w.t.Helper()
	return w.sendTo(from, devchain.USDC, data)
}

// sendTo is send to another contract.
func (w *world) sendTo(from devchain.Account, to common.Address, data []byte) common.Hash {
	w.t.Helper()
	hash, err := w.trySending(from, to, data)
	if err != nil {
		w.t.Fatal(err)
	}
	return hash
}

// trySending is sendTo for what the node may have no place for.
func (w *world) trySending(from devchain.Account, to common.Address, data []byte) (common.Hash, error) {
	w.t.Helper()
	client := w.chain.Client()
	nonce, err := client.PendingNonceAt(w.t.Context(), from.Address)
	if err != nil {
		w.t.Fatal(err)
	}
	id := new(big.Int).SetUint64(w.chain.ChainID())
	tx, err := types.SignNewTx(from.Key, types.LatestSignerForChainID(id), &types.DynamicFeeTx{
		ChainID: id, Nonce: nonce, To: &to, Data: data, Gas: 300_000,
		GasFeeCap: big.NewInt(1e11), GasTipCap: big.NewInt(5e10),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return tx.Hash(), client.SendTransaction(w.t.Context(), tx)
}

// sendMined is send, and waits for the block.
func (w *world) sendMined(from devchain.Account, data []byte) common.Hash {
	w.t.Helper()
	return w.sendMinedTo(from, devchain.USDC, data)
}

func (w *world) sendMinedTo(from devchain.Account, to common.Address, data []byte) common.Hash {
	w.t.Helper()
	hash := w.sendTo(from, to, data)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		receipt, err := w.chain.Client().TransactionReceipt(w.t.Context(), hash)
		if err == nil {
			if receipt.Status != types.ReceiptStatusSuccessful {
				w.t.Fatalf("transaction %s reverted", hash)
			}
			return hash
		}
		if time.Now().After(deadline) {
			w.t.Fatal(err)
		}
	}
}

// cancelling returns the call that cancels an authorization.
func (w *world) cancelling(transfer *evm.Transfer) []byte {
	w.t.Helper()
	separator := evm.DomainOf(w.offer.Amount.Token()).Separator()
	kind := crypto.Keccak256([]byte("CancelAuthorization(address authorizer,bytes32 nonce)"))
	inner := crypto.Keccak256(kind, common.LeftPadBytes(transfer.From[:], 32), transfer.Nonce[:])
	digest := crypto.Keccak256([]byte{0x19, 0x01}, separator[:], inner)
	sig, err := crypto.Sign(digest, w.payer.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	selector := crypto.Keccak256([]byte("cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)"))[:4]
	data := append(bytes.Clone(selector), common.LeftPadBytes(transfer.From[:], 32)...)
	data = append(data, transfer.Nonce[:]...)
	data = append(data, common.LeftPadBytes([]byte{sig[64] + 27}, 32)...)
	return append(data, sig[:64]...)
}

// draining returns the call that moves all of the payer's money away.
func (w *world) draining() []byte {
	selector := crypto.Keccak256([]byte("transfer(address,uint256)"))[:4]
	data := append(bytes.Clone(selector), common.LeftPadBytes(w.chain.Account("agent").Address.Bytes(), 32)...)
	return append(data, common.LeftPadBytes(w.chain.USDCBalance(w.payer.Address).Bytes(), 32)...)
}

func wantPending(t testing.TB, err error) *payment.UnavailableError {
	t.Helper()
	var unavailable *payment.UnavailableError
	if !errors.As(err, &unavailable) || !unavailable.Pending {
		t.Fatalf("got %v, want a pending *UnavailableError", err)
	}
	return unavailable
}

func wantUnavailable(t testing.TB, err error) *payment.UnavailableError {
	t.Helper()
	var unavailable *payment.UnavailableError
	if !errors.As(err, &unavailable) || unavailable.Pending {
		t.Fatalf("got %v, want an *UnavailableError that is not pending", err)
	}
	return unavailable
}

func wantInvalid(t testing.TB, err error, reason payment.Reason) {
	t.Helper()
	var invalid *payment.InvalidError
	if !errors.As(err, &invalid) || invalid.Reason != reason {
		t.Fatalf("got %v, want %s", err, reason)
	}
}

// once returns a function that runs f the first time it is called.
func once(f func()) func() {
	var done atomic.Bool
	return func() {
		if done.CompareAndSwap(false, true) {
			f()
		}
	}
}
