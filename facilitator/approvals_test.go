package facilitator_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// plainToken is a token that Permit2 can only be approved for by a transaction
// of the payer's own.
var plainToken = payment.Token{Network: payment.EVM(84532), Address: devchain.Plain.Hex(), Symbol: "PLAIN", Decimals: 6}

// A spy is a node that remembers what is broadcast through it.
type spy struct {
	settle.Chain

	// swallow, if not nil, decides what is lost on the way.
	swallow func(*types.Transaction) bool

	mu   sync.Mutex
	sent []*types.Transaction // guarded by mu
}

func (s *spy) Broadcast(ctx context.Context, raw []byte) error {
	tx := new(types.Transaction)
	if err := tx.UnmarshalBinary(raw); err != nil {
		return err
	}
	s.mu.Lock()
	s.sent = append(s.sent, tx)
	s.mu.Unlock()
	if s.swallow != nil && s.swallow(tx) {
		return nil
	}
	return s.Chain.Broadcast(ctx, raw)
}

// approvals returns how many different approvals were sent, and how many times
// any was.
func (s *spy) approvals() (different, times int) {
	seen := map[common.Hash]bool{}
	for _, tx := range s.all() {
		if *tx.To() == devchain.Plain {
			seen[tx.Hash()], times = true, times+1
		}
	}
	return len(seen), times
}

// all returns what was sent.
func (s *spy) all() []*types.Transaction {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sent)
}

// newPlainWorld is newWorld with a facilitator that takes the plain token, and
// sends the payers' own approvals.
func newPlainWorld(t *testing.T) (*world, *spy) {
	w := newWorld(t)
	w.offer = w.plainOffer(payment.Exact)
	eye := &spy{}
	w.embedded = w.embedPlain(eye, true)
	return w, eye
}

func (w *world) embedPlain(eye *spy, relays bool) *facilitator.Embedded {
	w.t.Helper()
	return w.embedMarket([]*ecdsa.PrivateKey{w.chain.Account("facilitator").Key}, facilitator.Market{Tokens: []payment.Token{plainToken}}, func(c *settle.Config) {
		eye.Chain, c.Chain, c.RelayApprovals = c.Chain, eye, relays
	})
}

func (w *world) plainOffer(scheme payment.Scheme) payment.Offer {
	w.t.Helper()
	o := w.byPermit2(scheme)
	amount, err := payment.NewAmount(big.NewInt(1000), plainToken)
	if err != nil {
		w.t.Fatal(err)
	}
	o.Amount = amount
	return o
}

// plainPermit is permits for the plain token.
func (w *world) plainPermit(from devchain.Account, o *payment.Offer) *evm.SignedPermit {
	w.t.Helper()
	s := w.permits(from.Key, from.Address, o)
	s.Token = devchain.Plain
	s.Signature = sign(w.t, from.Key, s.Digest(evm.Permit2Separator(w.chain.ChainID())))
	return s
}

var mostUnits = new(big.Int).Sub(new(big.Int).Lsh(common.Big1, 256), common.Big1)

// rawApproval returns what the official client sends along: a transaction that
// approves Permit2 with the account's next nonce.
func (w *world) rawApproval(from devchain.Account, change func(*types.DynamicFeeTx)) json.RawMessage {
	w.t.Helper()
	nonce, err := w.chain.Client().NonceAt(w.t.Context(), from.Address, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	id := new(big.Int).SetUint64(w.chain.ChainID())
	data, err := devchain.PlainToken().ABI.Pack("approve", evm.Permit2, mostUnits)
	if err != nil {
		w.t.Fatal(err)
	}
	tx := &types.DynamicFeeTx{
		ChainID: id, Nonce: nonce, To: &devchain.Plain, Data: data, Gas: 70_000, GasFeeCap: big.NewInt(1e9), GasTipCap: big.NewInt(1e8),
	}
	if change != nil {
		change(tx)
	}
	signed, err := types.SignNewTx(from.Key, types.LatestSignerForChainID(id), tx)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := signed.MarshalBinary()
	if err != nil {
		w.t.Fatal(err)
	}
	a := &evm.RawApproval{From: from.Address, Token: devchain.Plain, Value: mostUnits, Raw: raw}
	return json.RawMessage(`{"` + evm.RawSponsoring + `":{"info":` + string(a.Encode()) + `}}`)
}

// unapproved returns a payment with an approval along.
func (w *world) unapproved(from devchain.Account, o *payment.Offer) *payment.Payment {
	w.t.Helper()
	return w.received(o, w.plainPermit(from, o).Encode(), w.rawApproval(from, nil))
}

func (w *world) wantPlain(units int64) {
	w.t.Helper()
	if got := w.chain.PlainBalance(w.chain.Account("seller").Address).Int64(); got != units {
		w.t.Errorf("the seller has %d units of the plain token, want %d", got, units)
	}
}

func (w *world) wei(a common.Address) *big.Int {
	w.t.Helper()
	wei, err := w.chain.Client().BalanceAt(w.t.Context(), a, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return wei
}

func TestPayersOwnApprovalIsSentBeforeThePayment(t *testing.T) {
	t.Parallel()
	for scheme, payer := range map[payment.Scheme]string{payment.Exact: "payer", payment.Upto: "payer2"} {
		t.Run(string(scheme), func(t *testing.T) {
			t.Parallel()
			w, eye := newPlainWorld(t)
			from, lane := w.chain.Account(payer), w.chain.Account("facilitator").Address
			o := w.plainOffer(scheme)
			p := w.unapproved(from, &o)
			v, err := w.embedded.Verify(soon(t), p, &o)
			if err != nil || v.Contract || v.Funds.Int64() != 1000 {
				t.Fatalf("%+v, %v", v, err)
			}
			if _, times := eye.approvals(); times != 0 {
				t.Error("verifying it has sent the approval")
			}
			before := w.wei(from.Address)
			s, err := w.embedded.Settle(soon(t), p, &o, o.Amount)
			if err != nil || s.Transaction == "" {
				t.Fatalf("%+v, %v", s, err)
			}
			w.wantPlain(1000)
			if spent := new(big.Int).Sub(before, w.wei(from.Address)); spent.Sign() <= 0 || spent.Cmp(big.NewInt(70_000*1e9)) > 0 {
				t.Errorf("the payer spent %s wei on its approval", spent)
			}
			for _, tx := range eye.all() {
				if tx.Value().Sign() != 0 {
					t.Errorf("%s wei were sent to %s", tx.Value(), tx.To())
				}
			}
			again, err := w.embedded.Settle(soon(t), p, &o, o.Amount)
			if err != nil || again.Transaction != s.Transaction {
				t.Errorf("again: %+v, %v", again, err)
			}
			if different, _ := eye.approvals(); different != 1 {
				t.Errorf("%d approvals were sent", different)
			}

			// Whoever has approved sends none, and what it sends is not used.
			w.sees()
			_, earlier := eye.approvals()
			for _, extensions := range []json.RawMessage{nil, w.rawApproval(from, nil)} {
				next := w.received(&o, w.plainPermit(from, &o).Encode(), extensions)
				if _, err := w.embedded.Settle(soon(t), next, &o, o.Amount); err != nil {
					t.Error(err)
				}
				w.sees()
			}
			if _, times := eye.approvals(); times != earlier {
				t.Error("an approval was sent that nobody needs")
			}
			w.wantPlain(3000)
			if w.wei(lane).Sign() == 0 {
				t.Error("the lane has nothing left")
			}
		})
	}
}

func TestApprovalsAreNotSentUnlessThatIsConfigured(t *testing.T) {
	t.Parallel()
	w, _ := newPlainWorld(t)
	eye := &spy{}
	off := w.embedPlain(eye, false)
	p := w.unapproved(w.payer, &w.offer)
	_, err := off.Verify(soon(t), p, &w.offer)
	wantInvalid(t, err, payment.Permit2AllowanceRequired)
	_, err = off.Settle(soon(t), p, &w.offer, w.offer.Amount)
	wantInvalid(t, err, payment.Permit2SimulationFailed)
	if sent := eye.all(); len(sent) != 0 {
		t.Errorf("%d transactions were sent", len(sent))
	}
	for f, want := range map[*facilitator.Embedded][]string{off: {evm.Sponsoring}, w.embedded: {evm.Sponsoring, evm.RawSponsoring}} {
		if s, err := f.Supported(soon(t)); err != nil || !slices.Equal(s.Extensions, want) {
			t.Errorf("supports %v, %v, want %v", s.Extensions, err, want)
		}
	}
}

// A payer that cannot pay for its approval, or whose approval no block will
// take, gets nothing from us.
func TestApprovalsThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	w, eye := newPlainWorld(t)
	poor, wallet, broke := w.chain.Account("payer2"), w.chain.Account("agent"), w.chain.Account("facilitator2")
	if err := w.chain.SetETHBalance(poor.Address, big.NewInt(70_000*1e9-1)); err != nil {
		t.Fatal(err)
	}
	code := common.HexToAddress("0x7702")
	if err := errors.Join(w.chain.SetDelegateWallet(code), w.chain.Delegate(wallet, code)); err != nil {
		t.Fatal(err)
	}
	data, err := devchain.PlainToken().ABI.Pack("transfer", poor.Address, w.chain.PlainBalance(broke.Address))
	if err != nil {
		t.Fatal(err)
	}
	w.callAt(broke, devchain.Plain, data)
	w.callAt(w.payer, evm.Permit2, nil) // whatever it is, it uses a nonce

	for name, row := range map[string]struct {
		from   devchain.Account
		change func(*types.DynamicFeeTx)
		want   payment.Reason
	}{
		"one wei too little":       {poor, nil, payment.ERC20ApprovalTxFailed},
		"a payer with code":        {wallet, nil, payment.ERC20ApprovalTxFailed},
		"a payer without tokens":   {broke, nil, payment.Permit2InsufficientBalance},
		"a nonce that is used":     {w.payer, func(tx *types.DynamicFeeTx) { tx.Nonce-- }, payment.ERC20ApprovalTxFailed},
		"a later nonce":            {w.payer, func(tx *types.DynamicFeeTx) { tx.Nonce++ }, payment.ERC20ApprovalTxFailed},
		"less than the base fee":   {w.payer, func(tx *types.DynamicFeeTx) { tx.GasFeeCap, tx.GasTipCap = big.NewInt(4_999_999), common.Big1 }, payment.ERC20ApprovalTxFailed},
		"less gas than it takes":   {w.payer, func(tx *types.DynamicFeeTx) { tx.Gas = 25_000 }, payment.ERC20ApprovalTxFailed},
		"a call of something else": {w.payer, func(tx *types.DynamicFeeTx) { tx.Data = data }, payment.ERC20ApprovalTxSelector},
		"money for the token":      {w.payer, func(tx *types.DynamicFeeTx) { tx.Value = common.Big1 }, payment.ERC20ApprovalTxFailed},
		"signed by somebody else":  {w.payer, nil, payment.ERC20ApprovalTxSigner},
		"an approval for another":  {w.payer, func(tx *types.DynamicFeeTx) { tx.Data = slices.Concat(tx.Data[:16], poor.Address[:], tx.Data[36:]) }, payment.ERC20ApprovalTxSpender},
	} {
		extensions := w.rawApproval(row.from, row.change)
		if row.want == payment.ERC20ApprovalTxSigner {
			theirs := w.rawApproval(poor, nil)
			extensions = json.RawMessage(strings.ReplaceAll(string(theirs), poor.Address.Hex(), row.from.Address.Hex()))
		}
		p := w.received(&w.offer, w.plainPermit(row.from, &w.offer).Encode(), extensions)
		for _, ask := range []func() error{
			func() error { _, err := w.embedded.Verify(soon(t), p, &w.offer); return err },
			func() error { _, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount); return err },
		} {
			if invalid, ok := errors.AsType[*payment.InvalidError](ask()); !ok || invalid.Reason != row.want || invalid.Payer != row.from.Address.Hex() {
				t.Errorf("%s: %v, want %s", name, invalid, row.want)
			}
		}
	}
	// A fee that the next block may not take is too little to begin with.
	scarce := w.rawApproval(w.payer, func(tx *types.DynamicFeeTx) { tx.GasFeeCap, tx.GasTipCap = big.NewInt(5_000_000), common.Big1 })
	_, err = w.embedded.Verify(soon(t), w.received(&w.offer, w.plainPermit(w.payer, &w.offer).Encode(), scarce), &w.offer)
	wantInvalid(t, err, payment.ERC20ApprovalTxFailed)
	if sent := eye.all(); len(sent) != 0 {
		t.Errorf("%d transactions were sent", len(sent))
	}
	w.wantPlain(0)
}

// What the payer has signed for Permit2 itself is looked at as it is of payers
// who need no approval.
func TestAnApprovalMakesNoBadPermitGood(t *testing.T) {
	t.Parallel()
	w, eye := newPlainWorld(t)
	used := w.plainPermit(w.payer, &w.offer)
	word := new(big.Int).Rsh(used.Nonce, 8)
	mask := new(big.Int).Lsh(common.Big1, uint(new(big.Int).And(used.Nonce, big.NewInt(255)).Uint64()))
	data, err := devchain.Permit2Contract().ABI.Pack("invalidateUnorderedNonces", word, mask)
	if err != nil {
		t.Fatal(err)
	}
	w.callAt(w.payer, evm.Permit2, data)
	_, err = w.embedded.Verify(soon(t), w.received(&w.offer, used.Encode(), w.rawApproval(w.payer, nil)), &w.offer)
	wantInvalid(t, err, payment.Permit2InvalidNonce)

	forged := w.plainPermit(w.payer, &w.offer)
	forged.Signature = w.plainPermit(w.chain.Account("payer2"), &w.offer).Signature
	_, err = w.embedded.Verify(soon(t), w.received(&w.offer, forged.Encode(), w.rawApproval(w.payer, nil)), &w.offer)
	wantInvalid(t, err, payment.Permit2Signature)
	if sent := eye.all(); len(sent) != 0 {
		t.Errorf("%d transactions were sent", len(sent))
	}
}

// A payer can use the nonce of its approval for something else once the payment
// has been verified. Nothing is lost by that.
func TestAPayerThatTakesItsApprovalBackLosesUsNothing(t *testing.T) {
	t.Parallel()
	w, eye := newPlainWorld(t)
	p := w.unapproved(w.payer, &w.offer)
	if _, err := w.embedded.Verify(soon(t), p, &w.offer); err != nil {
		t.Fatal(err)
	}
	lane := w.chain.Account("facilitator").Address
	before := w.wei(lane)
	eye.swallow = func(tx *types.Transaction) bool { // the payer's own is in a block first
		data, err := devchain.PlainToken().ABI.Pack("approve", evm.Permit2, new(big.Int))
		if err != nil {
			t.Error(err)
		}
		w.callAt(w.payer, devchain.Plain, data)
		return true
	}
	_, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
	wantInvalid(t, err, payment.ERC20ApprovalTxFailed)
	w.wantPlain(0)
	if after := w.wei(lane); after.Cmp(before) != 0 {
		t.Errorf("the lane had %s wei and has %s", before, after)
	}

	// It is the payer's to try again.
	eye.swallow = nil
	w.sees()
	p = w.received(&w.offer, p.Payload, w.rawApproval(w.payer, nil))
	if _, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount); err != nil {
		t.Fatal(err)
	}
	w.wantPlain(1000)
}

// By upto less is charged than was signed. What the payer has allowed may be
// enough for that, whatever has become of its approval.
func TestChargeThatIsAllowedNeedsNoApproval(t *testing.T) {
	t.Parallel()
	w, eye := newPlainWorld(t)
	o := w.plainOffer(payment.Upto)
	p := w.unapproved(w.payer, &o)
	if _, err := w.embedded.Verify(soon(t), p, &o); err != nil {
		t.Fatal(err)
	}
	data, err := devchain.PlainToken().ABI.Pack("approve", evm.Permit2, big.NewInt(600))
	if err != nil {
		t.Fatal(err)
	}
	w.callAt(w.payer, devchain.Plain, data) // with the approval's nonce
	for _, units := range []int64{601, 600} {
		allowed := units <= 600
		charge, err := payment.NewAmount(big.NewInt(units), plainToken)
		if err != nil {
			t.Fatal(err)
		}
		charged := o
		charged.Amount = charge
		if _, err = w.embedded.Settle(soon(t), p, &charged, charge); allowed && err != nil {
			t.Errorf("charging %d: %v", units, err)
		} else if !allowed {
			wantInvalid(t, err, payment.ERC20ApprovalTxFailed)
		}
	}
	w.wantPlain(600)
	if sent, _ := eye.approvals(); sent != 0 {
		t.Errorf("%d approvals were sent", sent)
	}

	// Nothing is charged whatever the payer has allowed.
	p = w.received(&o, w.plainPermit(w.payer, &o).Encode(), w.rawApproval(w.payer, func(tx *types.DynamicFeeTx) { tx.Nonce = 99 }))
	nothing, err := payment.NewAmount(new(big.Int), plainToken)
	if err != nil {
		t.Fatal(err)
	}
	o.Amount = nothing
	if s, err := w.embedded.Settle(soon(t), p, &o, nothing); err != nil || s.Transaction != "" {
		t.Errorf("charging nothing: %+v, %v", s, err)
	}
}

// Two payments can come at once, with the same approval or with two of which the
// chain takes one.
func TestOneApprovalServesTwoPayments(t *testing.T) {
	t.Parallel()
	for name, tip := range map[string]int64{"the same": 1e8, "another": 1e8 + 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, _ := newPlainWorld(t)
			done := make(chan error, 2)
			for i := range 2 {
				extensions := w.rawApproval(w.payer, func(tx *types.DynamicFeeTx) {
					if i == 1 {
						tx.GasTipCap = big.NewInt(tip)
					}
				})
				p := w.received(&w.offer, w.plainPermit(w.payer, &w.offer).Encode(), extensions)
				ctx := soon(t)
				go func() { // ends with ctx
					_, err := w.embedded.Settle(ctx, p, &w.offer, w.offer.Amount)
					done <- err
				}()
			}
			for range 2 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			w.wantPlain(2000)
			if nonce, err := w.chain.Client().NonceAt(t.Context(), w.payer.Address, nil); err != nil || nonce != 1 {
				t.Errorf("the payer has sent %d transactions, %v", nonce, err)
			}
		})
	}
}

// Whoever keeps taking back what has been found good is not listened to.
func TestPayersThatKeepTakingBackTheirApprovalAreRefused(t *testing.T) {
	t.Parallel()
	w, eye := newPlainWorld(t)
	eye.swallow = func(*types.Transaction) bool {
		w.callAt(w.payer, evm.Permit2, nil)
		return true
	}
	for range 2 {
		p := w.unapproved(w.payer, &w.offer)
		_, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
		wantInvalid(t, err, payment.ERC20ApprovalTxFailed)
	}
	_, sent := eye.approvals()
	p := w.unapproved(w.payer, &w.offer)
	_, err := w.embedded.Verify(soon(t), p, &w.offer)
	wantInvalid(t, err, payment.EVMSimulationFailed)
	_, err = w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
	wantInvalid(t, err, payment.EVMSimulationFailed)
	if _, times := eye.approvals(); times != sent {
		t.Error("its approval was sent all the same")
	}
}

// A payment whose approval is in no block yet is given up without a trace when
// its time is over, and may be tried again.
func TestPaymentWaitsForItsApproval(t *testing.T) {
	t.Parallel()
	w, eye := newPlainWorld(t)
	w.chain.Pause()
	p := w.unapproved(w.payer, &w.offer)
	ctx, cancel := context.WithCancel(soon(t))
	go func() { // ends with the approval, or with soon
		defer cancel()
		for ctx.Err() == nil {
			if _, times := eye.approvals(); times > 0 {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	_, err := w.embedded.Settle(ctx, p, &w.offer, w.offer.Amount)
	wantUnavailable(t, err, false)
	if r := w.record(p); r.State != ledger.Released || len(r.Slots) != 0 {
		t.Errorf("the payment is %s in %v", r.State, r.Slots)
	}
	if err := w.chain.Mine(1); err != nil {
		t.Fatal(err)
	}
	w.sees()
	w.chain.Resume()
	// The approval is in a block by now. Its nonce is used, and nobody minds.
	if _, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount); err != nil {
		t.Fatal(err)
	}
	w.wantPlain(1000)
	if different, _ := eye.approvals(); different != 1 {
		t.Errorf("%d approvals were sent", different)
	}
}
