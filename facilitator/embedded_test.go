package facilitator_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

func TestVerdictsAreThoseOfTheReference(t *testing.T) {
	t.Parallel()
	// The reference recovers the signer; tokens revert.
	stricter := map[string]payment.Reason{"exact-eip3009-v-0-1": payment.EVMSignature}
	w := newWorld(t)
	key, err := crypto.ToECDSA(crypto.Keccak256([]byte("x402-vector/payer/1")))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.chain.Mint(crypto.PubkeyToAddress(key.PublicKey), big.NewInt(1e9)); err != nil {
		t.Fatal(err)
	}
	w.sees()
	for _, c := range vectors(t, "../payment/evm/testdata/verify.json") {
		t.Run(c.ID, func(t *testing.T) {
			p, o, err := payment.DecodeRequest(c.Body)
			if err != nil {
				t.Fatal(err)
			}
			want := c.ReferenceSdkResult.InvalidReason
			if reason, ok := stricter[c.ID]; ok {
				want = reason
			}
			payer := ""
			if c.Op == "settle" {
				var s *payment.Settlement
				if s, err = w.embedded.Settle(soon(t), p, o, o.Amount); err == nil {
					payer = s.Payer
				}
			} else {
				var v *payment.Verification
				if v, err = w.embedded.Verify(soon(t), p, o); err == nil {
					payer = v.Payer
				}
			}
			var invalid *payment.InvalidError
			if errors.As(err, &invalid) {
				payer = invalid.Payer
			}
			if want == "" && err != nil || want != "" && (invalid == nil || invalid.Reason != want) || payer != c.ReferenceSdkResult.Payer {
				t.Errorf("got %v for payer %s, want %q", err, payer, want)
			}
		})
	}
}

func TestOffersOfUnknownKindsAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pay()
	base, _ := payment.USDC("eip155:8453")
	other := facilitatortest.USDC(t)
	other.Address = common.HexToAddress("0x01").Hex()
	unnamed, named, newer := facilitatortest.USDC(t), facilitatortest.USDC(t), facilitatortest.USDC(t)
	unnamed.Name = ""
	named.Name = "USD Coin"
	newer.Version = "3"
	in := func(token payment.Token) *payment.Offer {
		o := w.offer
		var err error
		if o.Amount, err = payment.NewAmount(o.Amount.Big(), token); err != nil {
			t.Fatal(err)
		}
		return &o
	}
	upto, permit2, deferred, delegated := w.offer, w.offer, w.offer, w.offer
	upto.Scheme, deferred.Scheme = payment.Upto, "deferred"
	delegated.Extra = map[string]json.RawMessage{"assetTransferMethod": json.RawMessage(`"erc7710"`)}
	permit2.Extra = map[string]json.RawMessage{"assetTransferMethod": json.RawMessage(`"permit2"`)}
	for _, c := range []struct {
		offer *payment.Offer
		want  payment.Reason
	}{
		{in(base), payment.InvalidNetwork},
		{in(other), payment.EVMAssetNotDeployed},
		{in(unnamed), payment.EVMMissingDomain},
		{in(named), payment.EVMTokenNameMismatch},
		{in(newer), payment.EVMTokenVersionMismatch},
		{&deferred, payment.UnsupportedScheme},
		{&delegated, payment.EVMPayloadType},
		{&upto, payment.EVMPayloadType},
		{&permit2, payment.EVMPayloadType},
	} {
		before := w.node.Calls()
		_, err := w.embedded.Verify(t.Context(), p, c.offer)
		wantInvalid(t, err, c.want)
		_, err = w.embedded.Settle(t.Context(), p, c.offer, c.offer.Amount)
		wantInvalid(t, err, c.want)
		if after := w.node.Calls(); after != before {
			t.Errorf("%s: %d calls", c.want, after-before)
		}
	}
}

func TestChainThatIsDownSaysNothingAboutThePayment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	warm, p := w.pay(), w.pay()
	if _, err := w.embedded.Verify(soon(t), warm, &w.offer); err != nil {
		t.Fatal(err)
	}
	if err := w.chain.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := w.embedded.Verify(soon(t), p, &w.offer)
	wantUnavailable(t, err, false)
	_, err = w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
	wantUnavailable(t, err, false)
	if r := w.record(p); r.State != ledger.Released {
		t.Errorf("it is %s", r.State)
	}
}

func TestChainThatNeverAnsweredSaysNothingAboutThePayment(t *testing.T) {
	t.Parallel()
	node, err := chain.New(chain.Config{ChainID: 84532, Endpoints: []string{"http://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(node.Close)
	l := ledger.New(ledger.NewMemory(), "one", time.Now)
	key, err := crypto.ToECDSA(crypto.Keccak256([]byte("anybody")))
	if err != nil {
		t.Fatal(err)
	}
	engine, err := settle.New(settle.Config{Network: payment.EVM(84532), Chain: node, Ledger: l, Signers: []payment.CallSigner{facilitatortest.Lane{Key: key}}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := facilitator.NewEmbedded(l, []facilitator.Market{{Network: payment.EVM(84532), Tokens: []payment.Token{facilitatortest.USDC(t)}, Chain: node, Engine: engine}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := facilitatortest.Offer(t, 1000, common.HexToAddress("0x02"))
	p := facilitatortest.Payment(t, payment.V2, &o, facilitatortest.Authorize(t, key, &o, now, 60))
	_, err = f.Verify(t.Context(), p, &o)
	wantUnavailable(t, err, false)
	_, err = f.Settle(t.Context(), p, &o, o.Amount)
	wantUnavailable(t, err, false)
}

func TestTokenWithAnotherDomainIsNeverTrusted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	token := facilitatortest.USDC(t)
	token.Name = "USD Coin"
	w.embedded = w.embed(token)
	var err error
	if w.offer.Amount, err = payment.NewAmount(big.NewInt(1000), token); err != nil {
		t.Fatal(err)
	}
	p := w.pay()
	for range 2 {
		_, err = w.embedded.Verify(soon(t), p, &w.offer)
		if u := wantUnavailable(t, err, false); !strings.Contains(u.Error(), "correct the token's configuration") {
			t.Errorf("got %v", err)
		}
	}
	_, err = w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
	wantUnavailable(t, err, false)
}

func TestGarbageCostsNoCall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.embedded.Verify(soon(t), w.pay(), &w.offer); err != nil { // the domain is confirmed once
		t.Fatal(err)
	}
	forged := w.authorize()
	forged.Signature = facilitatortest.Sign(t, w.chain.Account("agent").Key, forged.Authorization, w.offer.Amount.Token()).Signature
	highS := w.authorize()
	order, _ := new(big.Int).SetString("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)
	s := new(big.Int).Sub(order, new(big.Int).SetBytes(highS.Signature[32:64]))
	s.FillBytes(highS.Signature[32:64])
	highS.Signature[64] ^= 27 ^ 28
	short := w.authorize()
	short.Signature = short.Signature[:64]
	wrapped := w.authorize()
	wrapped.Signature = append(wrapped.Signature, bytes.Repeat([]byte{0x64, 0x92}, 16)...)
	late := facilitatortest.Authorize(t, w.payer.Key, &w.offer, now, 5)
	early := w.authorize()
	early.ValidAfter = big.NewInt(now + 100)
	early = facilitatortest.Sign(t, w.payer.Key, early.Authorization, w.offer.Amount.Token())
	cheap, elsewhere := w.authorize(), w.authorize()
	cheap.Value = big.NewInt(999)
	elsewhere.To = common.HexToAddress("0x03")
	changed := w.authorize()
	changed.Nonce[0] ^= 1

	// That its payer is no contract, which might accept what no key has signed,
	// is asked once.
	_, err := w.embedded.Verify(soon(t), facilitatortest.Payment(t, payment.V2, &w.offer, forged), &w.offer)
	wantInvalid(t, err, payment.EVMSignature)
	calls := w.node.Calls()
	for _, c := range []struct {
		transfer func() *payment.Payment
		want     payment.Reason
	}{
		{func() *payment.Payment { return facilitatortest.Payment(t, payment.V2, &w.offer, forged) }, payment.EVMSignature},
		{func() *payment.Payment { return facilitatortest.Payment(t, payment.V2, &w.offer, highS) }, payment.EVMSignature},
		{func() *payment.Payment { return facilitatortest.Payment(t, payment.V2, &w.offer, short) }, payment.EVMSignature},
		{func() *payment.Payment { return facilitatortest.Payment(t, payment.V2, &w.offer, wrapped) }, payment.EVMFactoryNotAllowed},
		{func() *payment.Payment { return facilitatortest.Payment(t, payment.V2, &w.offer, late) }, payment.EVMValidBefore},
		{func() *payment.Payment { return facilitatortest.Payment(t, payment.V2, &w.offer, early) }, payment.EVMValidAfter},
		{func() *payment.Payment { return facilitatortest.Payment(t, payment.V2, &w.offer, cheap) }, payment.EVMValueMismatch},
		{func() *payment.Payment { return facilitatortest.Payment(t, payment.V1, &w.offer, cheap) }, payment.EVMValueMismatchV1},
		{func() *payment.Payment { return facilitatortest.Payment(t, payment.V2, &w.offer, elsewhere) }, payment.EVMRecipientMismatch},
		{func() *payment.Payment { return facilitatortest.Payment(t, payment.V2, &w.offer, changed) }, payment.EVMSignature},
	} {
		_, err := w.embedded.Verify(t.Context(), c.transfer(), &w.offer)
		if invalid := wantInvalid(t, err, c.want); invalid.Payer != w.payer.Address.Hex() {
			t.Errorf("%s: payer %q", c.want, invalid.Payer)
		}
		p := c.transfer()
		_, err = w.embedded.Settle(t.Context(), p, &w.offer, w.offer.Amount)
		wantInvalid(t, err, c.want)
		id, err := facilitator.Identify(p, &w.offer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.ledger.Get(t.Context(), id.Key); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("%s: garbage was claimed, %v", c.want, err)
		}
	}
	if after := w.node.Calls(); after != calls {
		t.Errorf("%d calls", after-calls)
	}
}

func TestGoodPaymentCostsOneRoundTrip(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.chain.Pause()
	w.sees()
	if _, err := w.embedded.Verify(soon(t), w.pay(), &w.offer); err != nil {
		t.Fatal(err)
	}
	p := w.pay()
	for _, want := range []uint64{1, 0} {
		before := w.node.Calls()
		v, err := w.embedded.Verify(soon(t), p, &w.offer)
		if err != nil || v.Payer != w.payer.Address.Hex() || v.Contract {
			t.Fatalf("got %+v, %v", v, err)
		}
		if calls := w.node.Calls() - before; calls != want {
			t.Errorf("%d calls, want %d", calls, want)
		}
	}
}

// What was good after one block may be bad after the next.
func TestVerificationIsForgottenWithTheNextBlock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pay()
	if _, err := w.embedded.Verify(soon(t), p, &w.offer); err != nil {
		t.Fatal(err)
	}
	w.call(w.payer, move(w.chain.Account("agent").Address, w.chain.USDCBalance(w.payer.Address)))
	_, err := w.embedded.Verify(soon(t), p, &w.offer)
	wantInvalid(t, err, payment.EVMInsufficientBalance)
}

func TestRevertsAreExplained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	used, blocked := w.authorize(), w.pay()
	w.call(w.chain.Account("facilitator2"), used.Calldata())
	_, err := w.embedded.Verify(soon(t), facilitatortest.Payment(t, payment.V2, &w.offer, used), &w.offer)
	if invalid := wantInvalid(t, err, payment.EVMNonceUsed); invalid.Payer != w.payer.Address.Hex() {
		t.Errorf("payer %s", invalid.Payer)
	}
	if err := w.chain.SetBlacklisted(w.payer.Address, true); err != nil {
		t.Fatal(err)
	}
	w.sees()
	_, err = w.embedded.Verify(soon(t), blocked, &w.offer)
	if invalid := wantInvalid(t, err, payment.EVMSimulationFailed); invalid.Message == "" {
		t.Error("without a word about why")
	}
}

func TestPayerWithCodeIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.chain.SetWallet(w.payer.Address, w.payer.Address); err != nil {
		t.Fatal(err)
	}
	w.sees()
	v, err := w.embedded.Verify(soon(t), w.pay(), &w.offer)
	if err != nil || !v.Contract {
		t.Errorf("got %+v, %v", v, err)
	}
}

func TestManyCopiesOfOnePaymentMoveMoneyOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pay()
	hashes := map[string]bool{}
	var mu sync.Mutex
	var settled atomic.Int64
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			s, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
			var unavailable *payment.UnavailableError
			switch {
			case err == nil:
				settled.Add(1)
				mu.Lock()
				defer mu.Unlock()
				hashes[s.Transaction] = true
			case !errors.As(err, &unavailable) || !unavailable.Pending:
				t.Errorf("got %v", err)
			}
		})
	}
	group.Wait()
	w.wantEarned(1000)
	if settled.Load() == 0 || len(hashes) != 1 {
		t.Errorf("%d settled, in transactions %v", settled.Load(), hashes)
	}
	s, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
	if err != nil || !hashes[s.Transaction] {
		t.Errorf("afterwards: %+v, %v", s, err)
	}
	w.wantEarned(1000)
}

func TestPaymentStaysWithTheOfferItWasSettledFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pay()
	if _, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount); err != nil {
		t.Fatal(err)
	}
	dearer := facilitatortest.Offer(t, 2000, common.HexToAddress(w.offer.PayTo))
	for _, o := range []payment.Offer{facilitatortest.Offer(t, 1000, w.chain.Account("agent").Address), dearer} {
		_, err := w.embedded.Settle(soon(t), p, &o, o.Amount)
		wantInvalid(t, err, payment.DuplicateSettlement)
	}
	// The same nonce under another signature is not this payment.
	forged := facilitatortest.Sign(t, w.chain.Account("agent").Key, w.authorize().Authorization, w.offer.Amount.Token())
	id, err := facilitator.Identify(p, &w.offer)
	if err != nil {
		t.Fatal(err)
	}
	copy(forged.Nonce[:], nonceOf(t, p))
	q := facilitatortest.Payment(t, payment.V2, &w.offer, forged)
	if other, err := facilitator.Identify(q, &w.offer); err != nil || other.Key != id.Key || other.Proof == id.Proof {
		t.Fatalf("identity %+v, %v", other, err)
	}
	_, err = w.embedded.Settle(soon(t), q, &w.offer, w.offer.Amount)
	wantInvalid(t, err, payment.DuplicateSettlement)
	w.wantEarned(1000)
}

func nonceOf(t *testing.T, p *payment.Payment) []byte {
	t.Helper()
	var payload struct{ Authorization struct{ Nonce common.Hash } }
	if err := json.Unmarshal(p.Payload, &payload); err != nil {
		t.Fatal(err)
	}
	return payload.Authorization.Nonce[:]
}

func TestPaymentOfATillIsSettledForThatTillOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pay()
	p.Binding = payment.Fingerprint{1}
	if _, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount); err == nil || wantsRetry(err) {
		t.Fatalf("settled what nobody has claimed: %v", err)
	}
	id, err := facilitator.Identify(p, &w.offer)
	if err != nil {
		t.Fatal(err)
	}
	request, err := payment.EncodeRequest(p, &w.offer, w.offer.Amount)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ledger.Claim(t.Context(), ledger.Record{
		Key: id.Key, State: ledger.Reserved, Binding: p.Binding, Proof: id.Proof, Network: w.offer.Network(),
		Payer: id.Payer, Charge: "1000", Until: "included", Request: request,
	}, time.Minute); err != nil {
		t.Fatal(err)
	}
	other := *p
	for _, binding := range []payment.Fingerprint{{}, {2}} {
		other.Binding = binding
		_, err = w.embedded.Settle(soon(t), &other, &w.offer, w.offer.Amount)
		wantInvalid(t, err, payment.DuplicateSettlement)
	}
	w.wantEarned(0)
	first, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
	if err != nil || again.Transaction != first.Transaction {
		t.Errorf("got %+v, %v", again, err)
	}
	w.wantEarned(1000)
}

// wantsRetry reports whether an error is of the kinds that a facilitator may
// answer with.
func wantsRetry(err error) bool {
	var invalid *payment.InvalidError
	var unavailable *payment.UnavailableError
	return errors.As(err, &invalid) || errors.As(err, &unavailable)
}

func TestRefusedSettlementCanBeTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pay()
	agent := w.chain.Account("agent")
	all := w.chain.USDCBalance(w.payer.Address)
	w.call(w.payer, move(agent.Address, all))
	_, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
	wantInvalid(t, err, payment.EVMSimulationFailed)
	if r := w.record(p); r.State != ledger.Released || !strings.Contains(r.Reason, "simulation") {
		t.Errorf("it is %s: %s", r.State, r.Reason)
	}
	w.call(agent, move(w.payer.Address, all))
	if _, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(1000)
}

func TestClaimOfAProcessThatDiedLapses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pay()
	id, err := facilitator.Identify(p, &w.offer)
	if err != nil {
		t.Fatal(err)
	}
	settled := func() error {
		_, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
		return err
	}
	// A claim as the API makes it, and nobody who goes on.
	other := w.pay()
	if _, err := w.embedded.Settle(soon(t), other, &w.offer, w.offer.Amount); err != nil {
		t.Fatal(err)
	}
	r := ledger.Record{Key: id.Key, State: ledger.Reserved, Binding: w.record(other).Binding, Proof: id.Proof, Network: w.offer.Network(), Request: []byte("{}")}
	if _, err := w.ledger.Claim(t.Context(), r, time.Minute); err != nil {
		t.Fatal(err)
	}
	wantUnavailable(t, settled(), true)
	w.clock.Add(61)
	if err := settled(); err != nil {
		t.Fatal(err)
	}
	w.wantEarned(2000)
}

func TestExactChargesTheWholeAmount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	half, err := payment.NewAmount(big.NewInt(500), w.offer.Amount.Token())
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.embedded.Settle(soon(t), w.pay(), &w.offer, half)
	wantInvalid(t, err, payment.EVMValueMismatch)
}

func TestSupportedNamesBothVersionsAndTheLane(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, err := w.embedded.Supported(t.Context())
	if err != nil || len(s.Kinds) != 3 || s.Kinds[0].Version != payment.V1 || s.Kinds[1].Version != payment.V2 || !s.Supports(&w.offer) {
		t.Fatalf("got %+v, %v", s, err)
	}
	lane := w.chain.Account("facilitator").Address.Hex()
	if upto := s.Kinds[2]; upto.Version != payment.V2 || upto.Scheme != payment.Upto || string(upto.Extra) != `{"facilitatorAddress":"`+lane+`"}` {
		t.Errorf("upto is %+v", upto)
	}
	if !slices.Equal(s.Extensions, []string{evm.Sponsoring}) {
		t.Errorf("extensions %v", s.Extensions)
	}
	if lanes := s.Signers["eip155:*"]; len(lanes) != 1 || lanes[0] != lane {
		t.Errorf("signers %v", s.Signers)
	}
}

func TestMarketsMustFit(t *testing.T) {
	t.Parallel()
	l := ledger.New(ledger.NewMemory(), "one", time.Now)
	usdc := facilitatortest.USDC(t)
	for name, markets := range map[string][]facilitator.Market{
		"twice":     {{Network: "eip155:84532"}, {Network: "eip155:84532"}},
		"elsewhere": {{Network: "eip155:8453", Tokens: []payment.Token{usdc}}},
	} {
		if _, err := facilitator.NewEmbedded(l, markets, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// That a signature was found to be good counts for the token that it was good
// for, and for nothing but what it signs.
func TestASignatureThatIsRememberedCountsForWhatItSignsOnly(t *testing.T) {
	w := newWorld(t)
	usdc := facilitatortest.USDC(t)
	other := usdc
	other.Address = "0x00000000000000000000000000000000000000AA"
	f := w.embed(usdc, other)
	transfer := w.authorize()
	good := facilitatortest.Payment(t, payment.V2, &w.offer, transfer)
	for range 2 {
		if _, err := f.Verify(soon(t), good, &w.offer); err != nil {
			t.Fatal(err)
		}
	}

	elsewhere := w.offer
	var err error
	if elsewhere.Amount, err = payment.ParseUnits(w.offer.Amount.Units(), other); err != nil {
		t.Fatal(err)
	}
	_, err = f.Verify(soon(t), facilitatortest.Payment(t, payment.V2, &elsewhere, transfer), &elsewhere)
	wantInvalid(t, err, payment.EVMSignature)

	for name, change := range map[string]func(*evm.Transfer){
		"payer":        func(t *evm.Transfer) { t.From = w.chain.Account("seller").Address },
		"valid before": func(t *evm.Transfer) { t.ValidBefore = new(big.Int).Add(t.ValidBefore, big.NewInt(1)) },
		"valid after":  func(t *evm.Transfer) { t.ValidAfter = new(big.Int).Add(t.ValidAfter, big.NewInt(1)) },
		"nonce":        func(t *evm.Transfer) { t.Nonce[0] ^= 1 },
		"signature":    func(t *evm.Transfer) { t.Signature = bytes.Clone(t.Signature); t.Signature[0] ^= 1 },
	} {
		changed := *transfer
		change(&changed)
		if _, err := f.Verify(soon(t), facilitatortest.Payment(t, payment.V2, &w.offer, &changed), &w.offer); err == nil {
			t.Errorf("with another %s it is taken", name)
		} else {
			wantInvalid(t, err, payment.EVMSignature)
		}
	}
}
