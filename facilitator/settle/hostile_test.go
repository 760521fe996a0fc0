package settle_test

import (
	"bytes"
	"context"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

var hostileToken = common.HexToAddress("0x4057113000000000000000000000000000000001")

// newHostileWorld is a world whose offer is in a token that breaks one
// promise, of which the payer has a million units.
func newHostileWorld(t *testing.T, h devchain.Hostility) *world {
	t.Helper()
	w := newWorld(t)
	if err := w.chain.SetHostileToken(hostileToken, h); err != nil {
		t.Fatal(err)
	}
	mint := append(crypto.Keccak256([]byte("mint(address,uint256)"))[:4], common.LeftPadBytes(w.payer.Address[:], 32)...)
	w.call(w.chain.Account("agent"), hostileToken, append(mint, common.BigToHash(big.NewInt(1_000_000)).Bytes()...))
	token := payment.Token{Network: payment.EVM(84532), Address: hostileToken.Hex(), Symbol: "HOST", Decimals: 6, Name: "Hostile", Version: "1"}
	amount, err := payment.ParseUnits("1000", token)
	if err != nil {
		t.Fatal(err)
	}
	w.offer.Amount = amount
	w.sees()
	return w
}

// call has an account call a contract, and waits for the block.
func (w *world) call(from devchain.Account, to common.Address, data []byte) {
	w.t.Helper()
	ctx, client := w.t.Context(), w.chain.Client()
	nonce, err := client.PendingNonceAt(ctx, from.Address)
	if err != nil {
		w.t.Fatal(err)
	}
	id := new(big.Int).SetUint64(w.chain.ChainID())
	tx, err := types.SignNewTx(from.Key, types.LatestSignerForChainID(id), &types.DynamicFeeTx{
		ChainID: id, Nonce: nonce, To: &to, Data: data, Gas: 300_000, GasFeeCap: big.NewInt(1e11), GasTipCap: big.NewInt(5e10),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := client.SendTransaction(ctx, tx); err != nil {
		w.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		receipt, err := client.TransactionReceipt(ctx, tx.Hash())
		if err == nil {
			if receipt.Status != types.ReceiptStatusSuccessful {
				w.t.Fatalf("a call of %s reverted", to)
			}
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal(err)
		}
	}
}

// hostileRecord returns the record of a payment in the hostile token.
func (w *world) hostileRecord(transfer *evm.Transfer) ledger.Record {
	w.t.Helper()
	r, err := w.ledger.Get(w.t.Context(), transfer.Key(84532, hostileToken))
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// settleHostile claims and settles a payment in the hostile token, for a
// while.
func (w *world) settleHostile(transfer *evm.Transfer, patience time.Duration) (*payment.Settlement, error) {
	w.t.Helper()
	p := facilitatortest.Payment(w.t, payment.V2, &w.offer, transfer)
	request, err := payment.EncodeRequest(p, &w.offer, w.offer.Amount)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := w.ledger.Claim(w.t.Context(), ledger.Record{
		Key: transfer.Key(84532, hostileToken), State: ledger.Reserved, Mode: "test", Network: payment.EVM(84532),
		Payer: transfer.From.Hex(), Charge: w.offer.Amount.Units(), Until: payment.Included.String(), Request: request,
	}, time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	return w.engine.Settle(ctx, settleJob(r, transfer, w.offer))
}

// hostileCancelling returns the call that cancels an authorization of the
// hostile token.
func (w *world) hostileCancelling(transfer *evm.Transfer) []byte {
	w.t.Helper()
	separator := evm.DomainOf(w.offer.Amount.Token()).Separator()
	kind := crypto.Keccak256([]byte("CancelAuthorization(address authorizer,bytes32 nonce)"))
	inner := crypto.Keccak256(kind, common.LeftPadBytes(transfer.From[:], 32), transfer.Nonce[:])
	sig, err := crypto.Sign(crypto.Keccak256([]byte{0x19, 0x01}, separator[:], inner), w.payer.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	sig[64] += 27
	data := bytes.Clone(crypto.Keccak256([]byte("cancelAuthorization(address,bytes32,bytes)"))[:4])
	data = append(data, common.LeftPadBytes(transfer.From[:], 32)...)
	data = append(data, transfer.Nonce[:]...)
	data = append(data, common.BigToHash(big.NewInt(96)).Bytes()...)
	data = append(data, common.BigToHash(big.NewInt(65)).Bytes()...)
	return append(data, common.RightPadBytes(sig, 96)...)
}

// neverPaid lets the authorization expire and everything become final, and
// checks that the payment was not taken for paid at any time.
func (w *world) neverPaid(transfer *evm.Transfer, err error) {
	w.t.Helper()
	if err == nil {
		w.t.Fatal("it was taken for paid")
	}
	key := transfer.Key(84532, hostileToken)
	for range 12 {
		w.clock.Advance(20 * time.Minute)
		w.mine(1)
		time.Sleep(50 * time.Millisecond) // whatever the engine makes of it, it may do
	}
	if r := w.hostileRecord(transfer); r.State.Paid() || r.State == ledger.Included {
		w.t.Errorf("it is %s in the end", r.State)
	}
	if path := w.history.path(key); bytes.Contains([]byte(path), []byte(ledger.Settled)) || bytes.Contains([]byte(path), []byte(ledger.Included)) {
		w.t.Errorf("it went through %s", path)
	}
}

func TestAnHonestTokenInPlaceOfAHostileOneSettles(t *testing.T) {
	t.Parallel()
	w := newHostileWorld(t, devchain.Honest)
	if _, err := w.settleHostile(w.authorize(), 20*time.Second); err != nil {
		t.Fatal(err)
	}
}

func TestATransactionThatSucceedsWithoutMovingMoneyIsNoPayment(t *testing.T) {
	t.Parallel()
	w := newHostileWorld(t, devchain.Forgives)
	transfer := w.authorize()
	w.node.simulated = once(func() { w.call(w.payer, hostileToken, w.hostileCancelling(transfer)) })
	_, err := w.settleHostile(transfer, 2*time.Second)
	w.neverPaid(transfer, err)
	for deadline := time.Now().Add(20 * time.Second); w.hostileRecord(transfer).State != ledger.Dead; time.Sleep(20 * time.Millisecond) {
		w.mine(1)
		if time.Now().After(deadline) {
			t.Fatalf("it is %s, and was cancelled long ago", w.hostileRecord(transfer).State)
		}
	}
}

func TestATransferOfLessIsNoPayment(t *testing.T) {
	t.Parallel()
	w := newHostileWorld(t, devchain.TakesFee)
	transfer := w.authorize()
	_, err := w.settleHostile(transfer, 2*time.Second)
	w.neverPaid(transfer, err)
}

func TestMoneyThatMovesWithoutALogIsNoPayment(t *testing.T) {
	t.Parallel()
	w := newHostileWorld(t, devchain.Silent)
	transfer := w.authorize()
	_, err := w.settleHostile(transfer, 2*time.Second)
	w.neverPaid(transfer, err)
}

// A seller chooses which tokens to take; the logs of one that is chosen are
// what it says about its own balances.
func TestTheLogsOfATokenThatTheSellerChoseAreBelieved(t *testing.T) {
	t.Parallel()
	w := newHostileWorld(t, devchain.Boasts)
	if _, err := w.settleHostile(w.authorize(), 20*time.Second); err != nil {
		t.Fatal(err)
	}
}

func TestAPayerWhoIsBlockedAfterTheSimulationCostsGasAndNothingElse(t *testing.T) {
	t.Parallel()
	for name, block := range map[string]func(w *world, on bool) error{
		"blacklisted payer": func(w *world, on bool) error { return w.chain.SetBlacklisted(w.payer.Address, on) },
		"paused token":      func(w *world, on bool) error { return w.chain.SetPaused(on) },
		"code at the payer": func(w *world, on bool) error {
			if !on {
				return w.chain.SetCode(w.payer.Address, nil, nil)
			}
			wallet := common.HexToAddress("0x7702770277027702770277027702770277027702")
			if err := w.chain.SetCode(wallet, devchain.TestWallet().Code, nil); err != nil {
				return err
			}
			return w.chain.SetCode(w.payer.Address, types.AddressToDelegation(wallet), nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			transfer := w.authorize()
			w.node.simulated = once(func() {
				if err := block(w, true); err != nil {
					t.Error(err)
				}
			})
			w.abandon(w.claim(transfer, payment.Included), func() bool { return w.nonce() == 1 })
			w.wantEarned(0)
			if r := w.record(transfer); r.State == ledger.Dead || r.State.Paid() {
				t.Fatalf("it is %s while the authorization lives", r.State)
			}
			if err := block(w, false); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(20 * time.Second); !w.record(transfer).State.Paid(); time.Sleep(5 * time.Millisecond) {
				w.clock.Advance(5 * time.Second)
				w.mine(1)
				if time.Now().After(deadline) {
					t.Fatalf("it is still %s when nothing is in the way any more", w.record(transfer).State)
				}
			}
			w.wantEarned(1000)
		})
	}
}
