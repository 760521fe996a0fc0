package facilitator_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"errors"
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// byPermit2 returns the world's offer, by Permit2; of upto for the world's
// lane.
func (w *world) byPermit2(scheme payment.Scheme) payment.Offer {
	o := w.offer
	o.Scheme = scheme
	o.Extra = map[string]json.RawMessage{"assetTransferMethod": json.RawMessage(`"permit2"`)}
	if scheme == payment.Upto {
		o.Extra["facilitatorAddress"] = json.RawMessage(`"` + w.chain.Account("facilitator").Address.Hex() + `"`)
	}
	return o
}

// permits returns what the owner of a key signs for an offer by Permit2, in
// the name of from.
func (w *world) permits(key *ecdsa.PrivateKey, from common.Address, o *payment.Offer) *evm.SignedPermit {
	w.t.Helper()
	var nonce [32]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		w.t.Fatal(err)
	}
	s := &evm.SignedPermit{Permit: evm.Permit{
		Scheme: o.Scheme, From: from, Token: devchain.USDC, Amount: o.Amount.Big(), Nonce: new(big.Int).SetBytes(nonce[:]),
		Deadline: big.NewInt(now + 3600), To: common.HexToAddress(o.PayTo), ValidAfter: new(big.Int),
	}}
	s.Spender = s.Proxy()
	if s.Scheme == payment.Upto {
		var address string
		if err := json.Unmarshal(o.Extra["facilitatorAddress"], &address); err != nil {
			w.t.Fatal(err)
		}
		s.Facilitator = common.HexToAddress(address)
	}
	s.Signature = sign(w.t, key, s.Digest(evm.Permit2Separator(w.chain.ChainID())))
	return s
}

func sign(t testing.TB, key *ecdsa.PrivateKey, digest common.Hash) []byte {
	t.Helper()
	signature, err := crypto.Sign(digest[:], key)
	if err != nil {
		t.Fatal(err)
	}
	signature[64] += 27
	return signature
}

// received returns a payment of version 2 as it is decoded from its header.
func (w *world) received(o *payment.Offer, payload, extensions json.RawMessage) *payment.Payment {
	w.t.Helper()
	prepared, err := (&payment.Challenge{Offers: []payment.Offer{*o}}).Prepare()
	if err != nil {
		w.t.Fatal(err)
	}
	challenge, err := payment.DecodeRequired(prepared.V2("https://shop.example/", payment.PaymentRequired))
	if err != nil {
		w.t.Fatal(err)
	}
	draft := challenge.Pay(&challenge.Offers[0], payload)
	draft.Extensions = extensions
	_, value := draft.Header()
	p, err := payment.FromHeader([]string{value}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) permitted(o *payment.Offer) *payment.Payment {
	w.t.Helper()
	return w.received(o, w.permits(w.payer.Key, w.payer.Address, o).Encode(), nil)
}

// approve lets Permit2 move all of an account's USDC.
func (w *world) approve(owner devchain.Account) {
	w.t.Helper()
	data, err := devchain.TestUSDC().ABI.Pack("approve", evm.Permit2, new(big.Int).Lsh(common.Big1, 255))
	if err != nil {
		w.t.Fatal(err)
	}
	w.call(owner, data)
}

func (w *world) units(n int64) payment.Amount {
	w.t.Helper()
	a, err := payment.NewAmount(big.NewInt(n), w.offer.Amount.Token())
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *world) spent(s *evm.SignedPermit) bool {
	w.t.Helper()
	answer, err := w.chain.Call(w.t.Context(), evm.Permit2, s.BitmapCall())
	if err != nil {
		w.t.Fatal(err)
	}
	used, err := s.Used(answer)
	if err != nil {
		w.t.Fatal(err)
	}
	return used
}

func TestVerdictsOnPermitsAreThoseOfTheReference(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	vectorKey := func(label string) devchain.Account {
		key, err := crypto.ToECDSA(crypto.Keccak256([]byte("x402-vector/" + label)))
		if err != nil {
			t.Fatal(err)
		}
		a := devchain.Account{Address: crypto.PubkeyToAddress(key.PublicKey), Key: key}
		if err := errors.Join(w.chain.Mint(a.Address, big.NewInt(1e9)), w.chain.SetETHBalance(a.Address, big.NewInt(1e18))); err != nil {
			t.Fatal(err)
		}
		return a
	}
	payer, lane := vectorKey("payer/1"), vectorKey("facilitator/1")
	w.sees()
	w.approve(payer)
	embedded := w.embedWith([]*ecdsa.PrivateKey{lane.Key}, facilitatortest.USDC(t))
	for _, c := range vectors(t, "../payment/evm/testdata/permit2-verify.json") {
		t.Run(c.ID, func(t *testing.T) {
			p, o, err := payment.DecodeRequest(c.Body)
			if err != nil {
				t.Fatal(err)
			}
			want := c.ReferenceSdkResult
			reason, settled, payer := want.InvalidReason, (*payment.Settlement)(nil), ""
			if c.Op == "settle" {
				reason = want.ErrorReason
				if settled, err = embedded.Settle(soon(t), p, o, o.Amount); err == nil {
					payer = settled.Payer
				}
			} else if v, failed := embedded.Verify(soon(t), p, o); failed == nil {
				payer = v.Payer
			} else {
				err = failed
			}
			var invalid *payment.InvalidError
			if errors.As(err, &invalid) {
				payer = invalid.Payer
			}
			if reason == "" && err != nil || reason != "" && (invalid == nil || invalid.Reason != reason) || payer != want.Payer {
				t.Errorf("got %v for payer %s, want %q for %s", err, payer, reason, want.Payer)
			}
			if settled != nil && (settled.Transaction == "") != (want.Transaction == "") {
				t.Errorf("settled in transaction %q, the reference in %q", settled.Transaction, want.Transaction)
			}
		})
	}
}

func TestPermitIsSettledOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.approve(w.payer)
	o := w.byPermit2(payment.Exact)
	p := w.permitted(&o)
	if _, err := w.embedded.Verify(soon(t), p, &o); err != nil {
		t.Fatal(err)
	}
	first, err := w.embedded.Settle(soon(t), p, &o, o.Amount)
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.embedded.Settle(soon(t), p, &o, o.Amount)
	if err != nil || again.Transaction != first.Transaction || first.Transaction == "" {
		t.Errorf("settled in %v and again in %v, %v", first, again, err)
	}
	w.wantEarned(1000)
	w.sees()
	_, err = w.embedded.Verify(soon(t), p, &o)
	wantInvalid(t, err, payment.Permit2InvalidNonce)
}

func TestUptoChargesWhatWasUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.approve(w.payer)
	for _, charge := range []int64{1, 400, 1000} {
		o := w.byPermit2(payment.Upto)
		p := w.permitted(&o)
		if _, err := w.embedded.Verify(soon(t), p, &o); err != nil {
			t.Fatal(err)
		}
		before := w.chain.USDCBalance(w.chain.Account("seller").Address).Int64()
		o.Amount = w.units(charge) // as the API has it
		s, err := w.embedded.Settle(soon(t), p, &o, o.Amount)
		if err != nil || s.Amount.Units() != o.Amount.Units() || s.Transaction == "" {
			t.Fatalf("charging %d: %+v, %v", charge, s, err)
		}
		w.wantEarned(before + charge)
		again, err := w.embedded.Settle(soon(t), p, &o, o.Amount)
		if err != nil || again.Transaction != s.Transaction {
			t.Errorf("again: %+v, %v", again, err)
		}
		// The rest cannot be charged later.
		o.Amount = w.units(2)
		_, err = w.embedded.Settle(soon(t), p, &o, o.Amount)
		wantInvalid(t, err, payment.DuplicateSettlement)
	}
}

func TestUptoChargedNothingIsUsedUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.approve(w.payer)
	o := w.byPermit2(payment.Upto)
	permit := w.permits(w.payer.Key, w.payer.Address, &o)
	p := w.received(&o, permit.Encode(), nil)
	o.Amount = w.units(0)
	for range 2 {
		s, err := w.embedded.Settle(soon(t), p, &o, o.Amount)
		if err != nil || s.Transaction != "" || !s.Amount.Zero() || s.Payer != w.payer.Address.Hex() {
			t.Fatalf("got %+v, %v", s, err)
		}
	}
	if w.spent(permit) {
		t.Error("the chain has heard of it")
	}
	id, err := facilitator.Identify(p, &o)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := w.ledger.Get(t.Context(), id.Key); err != nil || r.State != ledger.Archived {
		t.Errorf("the payment is %s, %v", r.State, err)
	}
	o.Amount = w.units(1000)
	_, err = w.embedded.Settle(soon(t), p, &o, o.Amount)
	wantInvalid(t, err, payment.DuplicateSettlement)
	w.wantEarned(0)
}

func TestUptoIsNeverChargedMoreThanWasSigned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.approve(w.payer)
	o := w.byPermit2(payment.Upto)
	p := w.permitted(&o)
	o.Amount = w.units(1001)
	_, err := w.embedded.Settle(soon(t), p, &o, o.Amount)
	wantInvalid(t, err, payment.UptoExceedsAmount)
	w.wantEarned(0)
}

func TestUptoIsSettledByTheLaneThatWasSignedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.approve(w.payer)
	one, two := w.chain.Account("facilitator"), w.chain.Account("facilitator2")
	embedded := w.embedWith([]*ecdsa.PrivateKey{one.Key, two.Key}, facilitatortest.USDC(t))
	for _, lane := range []devchain.Account{one, two, one} {
		o := w.byPermit2(payment.Upto)
		o.Extra["facilitatorAddress"] = json.RawMessage(`"` + lane.Address.Hex() + `"`)
		p := w.permitted(&o)
		o.Amount = w.units(10)
		s, err := embedded.Settle(soon(t), p, &o, o.Amount)
		if err != nil {
			t.Fatal(err)
		}
		tx, err := w.node.Transaction(soon(t), common.HexToHash(s.Transaction))
		if err != nil || tx == nil {
			t.Fatal(err)
		}
		if call, err := evm.ReadPermitCall(*tx.To(), tx.Data()); err != nil || call.Permit.Facilitator != lane.Address || call.Charge.Int64() != 10 {
			t.Errorf("sent %+v, %v", call, err)
		}
	}
	w.wantEarned(30)
	stranger := w.byPermit2(payment.Upto)
	stranger.Extra["facilitatorAddress"] = json.RawMessage(`"` + w.chain.Account("agent").Address.Hex() + `"`)
	_, err := embedded.Verify(soon(t), w.permitted(&stranger), &stranger)
	wantInvalid(t, err, payment.UptoFacilitatorMismatch)
}

func TestPayerWithoutAllowanceMayBeSponsored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		o := w.byPermit2(scheme)
		permit := w.permits(w.payer.Key, w.payer.Address, &o)
		_, err := w.embedded.Verify(soon(t), w.received(&o, permit.Encode(), nil), &o)
		wantInvalid(t, err, payment.Permit2AllowanceRequired)

		p := w.received(&o, permit.Encode(), w.approval(&permit.Permit))
		if _, err := w.embedded.Verify(soon(t), p, &o); err != nil {
			t.Fatal(err)
		}
		if _, err := w.embedded.Settle(soon(t), p, &o, o.Amount); err != nil {
			t.Fatal(err)
		}
		w.sees()
	}
	w.wantEarned(2000)
}

// approval returns the extensions of a payment with what the payer signs so
// that Permit2 may move what a permit moves.
func (w *world) approval(p *evm.Permit) json.RawMessage {
	w.t.Helper()
	answer, err := w.chain.Call(w.t.Context(), devchain.USDC, evm.NoncesCall(p.From))
	if err != nil {
		w.t.Fatal(err)
	}
	a := &evm.Approval{From: p.From, Token: p.Token, Spender: evm.Permit2, Value: p.Amount, Nonce: new(big.Int).SetBytes(answer), Deadline: p.Deadline}
	a.Signature = sign(w.t, w.payer.Key, a.Digest(evm.DomainOf(w.offer.Amount.Token()).Separator()))
	return json.RawMessage(`{"` + evm.Sponsoring + `":{"info":` + string(a.Encode()) + `}}`)
}

func TestPermitNeedsItsPayersSignature(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.approve(w.payer)
	o := w.byPermit2(payment.Exact)
	stranger := w.chain.Account("payer2")
	p := w.received(&o, w.permits(stranger.Key, w.payer.Address, &o).Encode(), nil)
	_, err := w.embedded.Verify(soon(t), p, &o)
	wantInvalid(t, err, payment.Permit2Signature)

	// The same signature is good where the payer is a contract that says so.
	wallet := common.HexToAddress("0x3a11e7")
	if err := errors.Join(w.chain.SetWallet(wallet, stranger.Address), w.chain.Mint(wallet, big.NewInt(1000))); err != nil {
		t.Fatal(err)
	}
	p = w.received(&o, w.permits(stranger.Key, wallet, &o).Encode(), nil)
	w.sees()
	_, err = w.embedded.Verify(soon(t), p, &o)
	wantInvalid(t, err, payment.Permit2AllowanceRequired) // which comes after the signature
}

func TestPermit2IsNotTakenWhereItsProxiesAreMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.approve(w.payer)
	if err := w.chain.SetCode(evm.UptoProxy, nil, nil); err != nil {
		t.Fatal(err)
	}
	w.sees()
	o := w.byPermit2(payment.Upto)
	p := w.permitted(&o)
	_, err := w.embedded.Verify(soon(t), p, &o)
	wantInvalid(t, err, payment.Permit2ProxyNotDeployed)
	_, err = w.embedded.Settle(soon(t), p, &o, o.Amount)
	wantInvalid(t, err, payment.Permit2ProxyNotDeployed)
	s, err := w.embedded.Supported(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range s.Kinds {
		if k.Scheme == payment.Upto {
			t.Errorf("offers %+v", k)
		}
	}
}

func TestFundsAreWhatThePayerCouldPay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	approved := int64(5000)
	data, err := devchain.TestUSDC().ABI.Pack("approve", evm.Permit2, big.NewInt(approved))
	if err != nil {
		t.Fatal(err)
	}
	w.call(w.payer, data)
	transfer := w.pay()
	upto := w.byPermit2(payment.Upto)
	permit := w.permits(w.payer.Key, w.payer.Address, &upto)
	balance := w.chain.USDCBalance(w.payer.Address).Int64()
	for _, c := range []struct {
		p    *payment.Payment
		o    *payment.Offer
		want int64
	}{
		{transfer, &w.offer, balance},
		{w.received(&upto, permit.Encode(), nil), &upto, approved},
		{w.received(&upto, permit.Encode(), w.approval(&permit.Permit)), &upto, 1000}, // which replaces the allowance
	} {
		for range 2 { // the second is remembered
			w.sees()
			v, err := w.embedded.Verify(soon(t), c.p, c.o)
			if err != nil || v.Funds == nil || v.Funds.Int64() != c.want {
				t.Errorf("%s: %+v, %v, want %d", c.o.Scheme, v, err, c.want)
			}
		}
	}
}
