package facilitator_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// now is the time on every chain here: that of the vectors.
const now = 1_790_000_000

// A world is an embedded facilitator with its chain.
type world struct {
	t        testing.TB
	chain    *devchain.Chain
	node     *chain.Client
	ledger   *ledger.Ledger
	embedded *facilitator.Embedded
	offer    payment.Offer
	payer    devchain.Account
	clock    atomic.Int64 // of the ledger, in seconds after now
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t}
	var err error
	if w.chain, err = devchain.Start(devchain.Config{Now: func() time.Time { return time.Unix(now, 0) }}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.chain.Close() })
	w.node = facilitatortest.Client(t, w.chain.URL())
	w.ledger = ledger.New(ledger.NewMemory(), "one", func() time.Time { return time.Unix(now+w.clock.Load(), 0) })
	w.embedded = w.embed(facilitatortest.USDC(t))
	w.offer = facilitatortest.Offer(t, 1000, w.chain.Account("seller").Address)
	w.payer = w.chain.Account("payer")
	return w
}

// embed returns a facilitator that takes tokens.
func (w *world) embed(tokens ...payment.Token) *facilitator.Embedded {
	w.t.Helper()
	return w.embedWith([]*ecdsa.PrivateKey{w.chain.Account("facilitator").Key}, tokens...)
}

// embedWith is embed with lanes of these keys.
func (w *world) embedWith(lanes []*ecdsa.PrivateKey, tokens ...payment.Token) *facilitator.Embedded {
	w.t.Helper()
	return w.embedMarket(lanes, facilitator.Market{Tokens: tokens})
}

// embedOpen is embed for USDC, open to wallets of some factories.
func (w *world) embedOpen(f evm.Factories) *facilitator.Embedded {
	w.t.Helper()
	return w.embedMarket([]*ecdsa.PrivateKey{w.chain.Account("facilitator").Key}, facilitator.Market{Tokens: []payment.Token{facilitatortest.USDC(w.t)}, Factories: f})
}

func (w *world) embedMarket(lanes []*ecdsa.PrivateKey, m facilitator.Market, adjust ...func(*settle.Config)) *facilitator.Embedded {
	w.t.Helper()
	signers := make([]payment.CallSigner, len(lanes))
	for i, key := range lanes {
		signers[i] = facilitatortest.Lane{Key: key}
	}
	// The engine has a node of its own, so that the calls of the other one are
	// those of verification: the engine asks when it likes.
	c := settle.Config{
		Network: payment.EVM(84532), Chain: facilitatortest.Client(w.t, w.chain.URL()), Ledger: w.ledger,
		Signers: signers,
	}
	for _, f := range adjust {
		f(&c)
	}
	engine, err := settle.New(c)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := engine.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(engine.Stop)
	m.Network, m.Chain, m.Engine = payment.EVM(84532), w.node, engine
	f, err := facilitator.NewEmbedded(w.ledger, []facilitator.Market{m}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

func (w *world) authorize() *evm.Transfer {
	w.t.Helper()
	return facilitatortest.Authorize(w.t, w.payer.Key, &w.offer, now, 3600)
}

// pay returns a payment for the world's offer.
func (w *world) pay() *payment.Payment {
	w.t.Helper()
	return facilitatortest.Payment(w.t, payment.V2, &w.offer, w.authorize())
}

func (w *world) record(p *payment.Payment) ledger.Record {
	w.t.Helper()
	id, err := facilitator.Identify(p, &w.offer)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := w.ledger.Get(w.t.Context(), id.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) wantEarned(units int64) {
	w.t.Helper()
	if got := w.chain.USDCBalance(w.chain.Account("seller").Address).Int64(); got != units {
		w.t.Errorf("the seller has %d units, want %d", got, units)
	}
}

// call has an account call the token, in a block.
func (w *world) call(from devchain.Account, data []byte) common.Hash {
	w.t.Helper()
	return w.callAt(from, devchain.USDC, data)
}

// callAt has an account call a contract, in a block.
func (w *world) callAt(from devchain.Account, to common.Address, data []byte) common.Hash {
	w.t.Helper()
	client := w.chain.Client()
	nonce, err := client.PendingNonceAt(w.t.Context(), from.Address)
	if err != nil {
		w.t.Fatal(err)
	}
	id := new(big.Int).SetUint64(w.chain.ChainID())
	tx, err := types.SignNewTx(from.Key, types.LatestSignerForChainID(id), &types.DynamicFeeTx{
		ChainID: id, Nonce: nonce, To: &to, Data: data, Gas: 300_000,
		GasFeeCap: big.NewInt(1e11), GasTipCap: big.NewInt(1e9),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := client.SendTransaction(w.t.Context(), tx); err != nil {
		w.t.Fatal(err)
	}
	if err := w.chain.Mine(1); err != nil {
		w.t.Fatal(err)
	}
	w.sees()
	return tx.Hash()
}

// move returns the call that moves units to an account.
func move(to common.Address, units *big.Int) []byte {
	data := append(crypto.Keccak256([]byte("transfer(address,uint256)"))[:4:4], common.LeftPadBytes(to[:], 32)...)
	return append(data, common.LeftPadBytes(units.Bytes(), 32)...)
}

// sees waits until the node client knows the chain's head.
func (w *world) sees() {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if h, err := w.node.Head(); err == nil && h.Hash == w.chain.Snapshot() { // which a transaction can move on
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal("the client does not see the head")
		}
	}
}

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func wantInvalid(t testing.TB, err error, reason payment.Reason) *payment.InvalidError {
	t.Helper()
	var invalid *payment.InvalidError
	if !errors.As(err, &invalid) || invalid.Reason != reason {
		t.Fatalf("got %v, want %s", err, reason)
	}
	return invalid
}

// wantUnavailable checks that err says that nothing could be found out.
func wantUnavailable(t testing.TB, err error, pending bool) *payment.UnavailableError {
	t.Helper()
	var unavailable *payment.UnavailableError
	if !errors.As(err, &unavailable) || unavailable.Pending != pending {
		t.Fatalf("got %v, want an *UnavailableError, pending: %v", err, pending)
	}
	return unavailable
}

type vector struct {
	ID, Op             string
	Body               json.RawMessage
	ReferenceSdkResult struct {
		IsValid, Success           bool
		InvalidReason, ErrorReason payment.Reason
		Payer, Transaction         string
	}
}

func vectors(t testing.TB, file string) []vector {
	t.Helper()
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Now   int64
		Cases []vector
	}
	if err := json.Unmarshal(doc, &v); err != nil {
		t.Fatal(err)
	}
	if v.Now != now || len(v.Cases) < 10 {
		t.Fatalf("%d cases at %d", len(v.Cases), v.Now)
	}
	return v.Cases
}
