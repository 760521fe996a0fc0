package facilitator_test

import (
	"encoding/binary"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// forgedBy returns a payment in somebody's name with the payer's signature.
func (w *world) forgedBy(from common.Address) *payment.Payment {
	w.t.Helper()
	a := w.authorize().Authorization
	a.From = from
	return facilitatortest.Payment(w.t, payment.V2, &w.offer, facilitatortest.Sign(w.t, w.payer.Key, a, w.offer.Amount.Token()))
}

// wallet puts a contract wallet of the payer's key at an address, with money.
func (w *world) wallet(address common.Address) {
	w.t.Helper()
	if err := errors.Join(w.chain.SetWallet(address, w.payer.Address), w.chain.Mint(address, big.NewInt(1_000_000))); err != nil {
		w.t.Fatal(err)
	}
	w.sees()
}

func TestForgedPayersCostFewCalls(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.embedded.Verify(soon(t), w.pay(), &w.offer); err != nil { // asks the contracts
		t.Fatal(err)
	}
	const made = 300
	before, began, turnedAway := w.node.Calls(), time.Now(), 0
	for i := range uint64(made) {
		p := w.forgedBy(common.BytesToAddress(binary.BigEndian.AppendUint64([]byte("nobody"), i)))
		for range 2 {
			_, err := w.embedded.Verify(soon(t), p, &w.offer)
			if _, unavailable := errors.AsType[*payment.UnavailableError](err); unavailable {
				turnedAway++
				continue
			}
			wantInvalid(t, err, payment.EVMSignature)
		}
	}
	seconds := int64(time.Since(began).Seconds()) + 2
	if calls := w.node.Calls() - before; int64(calls) > 50*seconds {
		t.Errorf("%d calls in %d seconds", calls, seconds)
	}
	if seconds <= made/50 && turnedAway == 0 {
		t.Error("nobody was turned away")
	}
	// Payments by keys go on.
	if _, err := w.embedded.Verify(soon(t), w.pay(), &w.offer); err != nil {
		t.Error(err)
	}
}

func TestContractWalletPays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	address := common.HexToAddress("0x3a11e7")
	w.wallet(address)
	for range 2 {
		p := w.forgedBy(address)
		v, err := w.embedded.Verify(soon(t), p, &w.offer)
		if err != nil || !v.Contract || v.Payer != address.Hex() {
			t.Fatalf("%+v, %v", v, err)
		}
		if _, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount); err != nil {
			t.Fatal(err)
		}
		w.sees()
	}
	w.wantEarned(2000)

	// Without the verification, and with a permit.
	if _, err := w.embedded.Settle(soon(t), w.forgedBy(address), &w.offer, w.offer.Amount); err != nil {
		t.Error(err)
	}
	w.wantEarned(3000)

	// It accepts its owner's signatures only.
	a := w.authorize().Authorization
	a.From = address
	stranger := facilitatortest.Payment(t, payment.V2, &w.offer, facilitatortest.Sign(t, w.chain.Account("payer2").Key, a, w.offer.Amount.Token()))
	w.sees()
	_, err := w.embedded.Verify(soon(t), stranger, &w.offer)
	wantInvalid(t, err, payment.EVMSimulationFailed)
	_, err = w.embedded.Settle(soon(t), stranger, &w.offer, w.offer.Amount)
	wantInvalid(t, err, payment.EVMSimulationFailed)
	w.wantEarned(3000)
}

// An account that delegates is asked as a contract is, and the key's signature
// alone does not do. What the chain says counts, each time.
func TestDelegationCountsAsItStands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v, err := w.embedded.Verify(soon(t), w.pay(), &w.offer)
	if err != nil || v.Contract {
		t.Fatalf("%+v, %v", v, err)
	}
	delegate := common.HexToAddress("0xde1e")
	if err := w.chain.SetCode(w.payer.Address, append([]byte{0xef, 0x01, 0x00}, delegate[:]...), nil); err != nil {
		t.Fatal(err)
	}
	w.sees()
	p := w.pay()
	_, err = w.embedded.Verify(soon(t), p, &w.offer) // the delegate has no code, and accepts nothing
	wantInvalid(t, err, payment.EVMSimulationFailed)
	if err := w.chain.SetCode(w.payer.Address, nil, nil); err != nil {
		t.Fatal(err)
	}
	w.sees()
	if v, err = w.embedded.Verify(soon(t), p, &w.offer); err != nil || v.Contract {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestUndeployedWalletIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.authorize()
	a.From = common.HexToAddress("0x3a11e8")
	a.Signature = append(a.Signature, make([]byte, 64)...)
	_, err := w.embedded.Verify(soon(t), facilitatortest.Payment(t, payment.V2, &w.offer, a), &w.offer)
	wantInvalid(t, err, payment.EVMUndeployedWallet)
}

// A wallet that is not deployed yet pays if its factory may be called.
func TestWalletIsDeployedOnTheWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	factory := common.HexToAddress("0xfac7041")
	if err := w.chain.SetWalletFactory(factory); err != nil {
		t.Fatal(err)
	}
	const create = "createAccount"
	contract := devchain.WalletFactory()
	salt := big.NewInt(7)
	where, err := contract.ABI.Pack("accountAddress", w.payer.Address, salt)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := w.chain.Call(t.Context(), factory, where)
	if err != nil {
		t.Fatal(err)
	}
	address := common.BytesToAddress(answer)
	if err := w.chain.Mint(address, big.NewInt(1_000_000)); err != nil {
		t.Fatal(err)
	}
	deploy, err := contract.ABI.Pack(create, w.payer.Address, salt)
	if err != nil {
		t.Fatal(err)
	}
	w.sees()
	pay := func(signer devchain.Account, calldata []byte) *payment.Payment {
		a := w.authorize().Authorization
		a.From = address
		transfer := facilitatortest.Sign(t, signer.Key, a, w.offer.Amount.Token())
		transfer.Signature = (&evm.Wrapper{Factory: factory, Calldata: calldata, Signature: transfer.Signature}).Encode()
		return facilitatortest.Payment(t, payment.V2, &w.offer, transfer)
	}
	_, err = w.embedded.Verify(soon(t), pay(w.payer, deploy), &w.offer)
	wantInvalid(t, err, payment.EVMFactoryNotAllowed)

	open := w.embedOpen(evm.Factories{factory: {[4]byte(contract.ABI.Methods[create].ID)}})
	for _, c := range []struct {
		p    *payment.Payment
		want payment.Reason
	}{
		{pay(w.chain.Account("payer2"), deploy), payment.EVMSimulationFailed},
		{pay(w.payer, append([]byte{1}, deploy[1:]...)), payment.EVMFactoryNotAllowed},
		{pay(w.payer, deploy[:40]), payment.EVMSimulationFailed},
	} {
		_, err := open.Verify(soon(t), c.p, &w.offer)
		wantInvalid(t, err, c.want)
		_, err = open.Settle(soon(t), c.p, &w.offer, w.offer.Amount)
		wantInvalid(t, err, c.want)
	}
	for range 2 { // the second time it is there
		p := pay(w.payer, deploy)
		v, err := open.Verify(soon(t), p, &w.offer)
		if err != nil || !v.Contract {
			t.Fatalf("%+v, %v", v, err)
		}
		first, err := open.Settle(soon(t), p, &w.offer, w.offer.Amount)
		if err != nil {
			t.Fatal(err)
		}
		again, err := open.Settle(soon(t), p, &w.offer, w.offer.Amount)
		if err != nil || again.Transaction != first.Transaction {
			t.Errorf("again: %+v, %v", again, err)
		}
		w.sees()
	}
	w.wantEarned(2000)
}
