package settle_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// newPermitWorld is newWorld with a payer who has approved Permit2.
func newPermitWorld(t testing.TB, adjust ...func(*settle.Config)) *world {
	t.Helper()
	w := newWorld(t, adjust...)
	data, err := devchain.TestUSDC().ABI.Pack("approve", evm.Permit2, new(big.Int).Lsh(common.Big1, 255))
	if err != nil {
		t.Fatal(err)
	}
	w.sendMined(w.payer, data)
	w.sees()
	return w
}

// permit signs a permit for the world's offer, valid for an hour.
func (w *world) permit(scheme payment.Scheme) *evm.SignedPermit {
	w.t.Helper()
	var nonce [32]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		w.t.Fatal(err)
	}
	s := &evm.SignedPermit{Permit: evm.Permit{
		Scheme: scheme, From: w.payer.Address, Token: devchain.USDC, Amount: w.offer.Amount.Big(), Nonce: new(big.Int).SetBytes(nonce[:]),
		Deadline: big.NewInt(w.clock.Now().Unix() + 3600), To: w.seller, ValidAfter: new(big.Int),
	}}
	s.Spender = s.Proxy()
	if scheme == payment.Upto {
		s.Facilitator = w.chain.Account("facilitator").Address
	}
	digest := s.Digest(evm.Permit2Separator(84532))
	signature, err := crypto.Sign(digest[:], w.payer.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	signature[64] += 27
	s.Signature = signature
	return s
}

// claimPermit makes a job of a permit, as a till does, for a charge in atomic
// units.
func (w *world) claimPermit(s *evm.SignedPermit, units int64, until payment.Finality) settle.Job {
	w.t.Helper()
	return w.claimWith(s, nil, units, until)
}

// claimWith is claimPermit of a payment with extensions.
func (w *world) claimWith(s *evm.SignedPermit, extensions json.RawMessage, units int64, until payment.Finality) settle.Job {
	w.t.Helper()
	o := w.offer
	o.Scheme = s.Scheme
	o.Extra = map[string]json.RawMessage{"assetTransferMethod": json.RawMessage(`"permit2"`)}
	prepared, err := (&payment.Challenge{Offers: []payment.Offer{o}}).Prepare()
	if err != nil {
		w.t.Fatal(err)
	}
	challenge, err := payment.DecodeRequired(prepared.V2("https://shop.example/", payment.PaymentRequired))
	if err != nil {
		w.t.Fatal(err)
	}
	draft := challenge.Pay(&challenge.Offers[0], s.Encode())
	draft.Extensions = extensions
	_, header := draft.Header()
	p, err := payment.FromHeader([]string{header}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := facilitator.Identify(p, &o)
	if err != nil {
		w.t.Fatal(err)
	}
	charge, err := payment.NewAmount(big.NewInt(units), o.Amount.Token())
	if err != nil {
		w.t.Fatal(err)
	}
	request, err := payment.EncodeRequest(p, &o, o.Amount)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := w.ledger.Claim(w.t.Context(), ledger.Record{
		Key: id.Key, State: ledger.Reserved, Mode: "test", Network: payment.EVM(84532), Proof: id.Proof,
		Payer: id.Payer, Charge: charge.Units(), Until: until.String(), Request: request,
	}, time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	return settle.Job{Record: r, Signed: evm.OfPermit(s, nil), Charge: charge, Until: until}
}

func (w *world) settleJob(j settle.Job) (*payment.Settlement, error) {
	w.t.Helper()
	ctx, cancel := within(w.t, 20*time.Second)
	defer cancel()
	return w.engine.Settle(ctx, j)
}

// invalidating returns the call to Permit2 by which a payer gives up a nonce.
func invalidating(t testing.TB, s *evm.SignedPermit) []byte {
	t.Helper()
	word := new(big.Int).Rsh(s.Nonce, 8)
	mask := new(big.Int).Lsh(common.Big1, uint(new(big.Int).And(s.Nonce, big.NewInt(255)).Uint64()))
	data, err := devchain.Permit2Contract().ABI.Pack("invalidateUnorderedNonces", word, mask)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func settling(s *evm.SignedPermit) []byte { return (&evm.PermitCall{Permit: s}).Calldata() }

// inside returns a call to Multicall3 that makes other calls.
func inside(t testing.TB, calls ...evm.Call) []byte {
	t.Helper()
	type call3 struct {
		Target       common.Address
		AllowFailure bool
		CallData     []byte
	}
	list := make([]call3, len(calls))
	for i, c := range calls {
		list[i] = call3{c.To, true, c.Data}
	}
	arguments := abi.Arguments{{Type: mustType(t)}}
	data, err := arguments.Pack(list)
	if err != nil {
		t.Fatal(err)
	}
	return append(common.FromHex("0x82ad56cb"), data...) // aggregate3
}

func mustType(t testing.TB) abi.Type {
	t.Helper()
	kind, err := abi.NewType("tuple[]", "", []abi.ArgumentMarshaling{
		{Name: "target", Type: "address"}, {Name: "allowFailure", Type: "bool"}, {Name: "callData", Type: "bytes"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return kind
}

func TestPermitMovesMoneyOnce(t *testing.T) {
	t.Parallel()
	w := newPermitWorld(t)
	for units, scheme := range map[int64]payment.Scheme{1000: payment.Exact, 300: payment.Upto} {
		before := w.earned()
		j := w.claimPermit(w.permit(scheme), units, payment.Included)
		s, err := w.settleJob(j)
		if err != nil || s.Amount.Big().Int64() != units {
			t.Fatalf("got %+v, %v", s, err)
		}
		w.wantEarned(before + units)
		w.mineUntilStored(j.Record.Key, ledger.Archived)
		w.wantEarned(before + units)
	}
	for _, d := range w.compare() {
		t.Errorf("ledger and chain differ: %+v", d)
	}
}

// compare returns the differences between ledger and chain that are no plain
// transfers.
func (w *world) compare() []settle.Difference {
	w.t.Helper()
	ctx, cancel := within(w.t, 20*time.Second)
	defer cancel()
	all, err := w.engine.Reconcile(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

func TestPermitThatSomebodyElseHasSettledCounts(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(*evm.SignedPermit) (common.Address, []byte){
		"by a call to the proxy": func(s *evm.SignedPermit) (common.Address, []byte) { return s.Proxy(), settling(s) },
		"by a call inside another": func(s *evm.SignedPermit) (common.Address, []byte) {
			return evm.Multicall3, inside(t, evm.Call{To: s.Proxy(), Data: settling(s)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newPermitWorld(t)
			s := w.permit(payment.Exact)
			to, data := call(s)
			theirs := w.sendMinedTo(w.chain.Account("facilitator2"), to, data)
			j := w.claimPermit(s, 1000, payment.Included)
			got, err := w.settleJob(j)
			if err != nil || got.Transaction != theirs.Hex() {
				t.Fatalf("got %+v, %v, want transaction %s", got, err, theirs)
			}
			if w.sent() {
				t.Error("it was sent again")
			}
			w.wantEarned(1000)
			w.mineUntilStored(j.Record.Key, ledger.Archived)

			after := w.permit(payment.Exact)
			to, data = call(after)
			w.node.simulated = once(func() { theirs = w.sendMinedTo(w.chain.Account("facilitator2"), to, data) })
			got, err = w.settleJob(w.claimPermit(after, 1000, payment.Included))
			if err != nil || got.Transaction != theirs.Hex() {
				t.Fatalf("after the simulation: %+v, %v, want transaction %s", got, err, theirs)
			}
			w.wantEarned(2000)
		})
	}
}

// A payer can give a nonce up and pay the seller the same amount in another
// way. Neither is the payment.
func TestInvalidatedPermitIsDeadOnlyWhenThatIsFinal(t *testing.T) {
	t.Parallel()
	w := newPermitWorld(t)
	s, other := w.permit(payment.Exact), w.permit(payment.Exact)
	plain, err := devchain.TestUSDC().ABI.Pack("transfer", w.seller, w.offer.Amount.Big())
	if err != nil {
		t.Fatal(err)
	}
	w.node.simulated = once(func() {
		w.sendMined(w.payer, plain)
		w.sendMinedTo(w.chain.Account("facilitator2"), other.Proxy(), settling(other))
		w.sendMined(w.payer, w.authorizedElsewhere())
		w.sendMinedTo(w.payer, evm.Permit2, invalidating(t, s)) // last, or the block below would make it final
		w.chain.Pause()
	})
	j := w.claimPermit(s, 1000, payment.Included)
	w.abandon(j, w.sent)
	w.mine(1)
	w.sees()
	if r := w.stored(j.Record.Key); r.State == ledger.Dead {
		t.Fatalf("dead although nothing is final: %s", r.Reason)
	}
	r := w.mineUntilStored(j.Record.Key, ledger.Dead)
	_, err = w.engine.Resume(t.Context(), r)
	wantInvalid(t, err, payment.EVMTransactionFailed)
	w.wantEarned(3000) // by the others
}

// authorizedElsewhere is a call that pays the seller by EIP-3009.
func (w *world) authorizedElsewhere() []byte { return w.authorize().Calldata() }

func TestInvalidatedPermitIsRefused(t *testing.T) {
	t.Parallel()
	w := newPermitWorld(t)
	s := w.permit(payment.Upto)
	w.sendMinedTo(w.payer, evm.Permit2, invalidating(t, s))
	j := w.claimPermit(s, 1000, payment.Included)
	_, err := w.settleJob(j)
	wantInvalid(t, err, payment.Permit2InvalidNonce)
	if r := w.stored(j.Record.Key); r.State != ledger.Reserved || w.sent() {
		t.Errorf("the payment is %s, sent %v", r.State, w.sent())
	}
}

// A payer may invalidate a nonce that a payment has used. It proves nothing.
func TestInvalidationAfterThePaymentUndoesNothing(t *testing.T) {
	t.Parallel()
	w := newPermitWorld(t)
	s := w.permit(payment.Exact)
	theirs := w.sendMinedTo(w.chain.Account("facilitator2"), s.Proxy(), settling(s))
	w.sendMinedTo(w.payer, evm.Permit2, invalidating(t, s))
	w.mine(8)
	w.sees()
	got, err := w.settleJob(w.claimPermit(s, 1000, payment.Finalized))
	if err != nil || got.Transaction != theirs.Hex() {
		t.Fatalf("got %+v, %v, want transaction %s", got, err, theirs)
	}
}

func TestExpiredPermitIsDeadOnceThatIsFinal(t *testing.T) {
	t.Parallel()
	w := newPermitWorld(t)
	w.node.mute.Store(true) // what is sent never arrives
	s := w.permit(payment.Upto)
	j := w.claimPermit(s, 10, payment.Included)
	w.abandon(j, w.sent)
	w.expire(3600 * time.Second) // the deadline is included
	w.mine(8)
	w.sees()
	if r := w.stored(j.Record.Key); r.State == ledger.Dead {
		t.Fatal("dead in the second of its deadline")
	}
	w.expire(time.Second)
	w.mineUntilStored(j.Record.Key, ledger.Dead)
	w.wantEarned(0)
}

func TestReorgSendsAPermitAgain(t *testing.T) {
	t.Parallel()
	w := newPermitWorld(t)
	w.chain.Pause()
	j := w.claimPermit(w.permit(payment.Upto), 700, payment.Finalized)
	done := make(chan error, 1)
	go func() { // ends with the time that settleJob allows
		_, err := w.settleJob(j)
		done <- err
	}()
	w.awaitStored(j.Record.Key, ledger.Sent)
	w.mine(1)
	w.awaitStored(j.Record.Key, ledger.Included)
	w.wantEarned(700)
	if err := w.chain.ReorgDropping(1); err != nil {
		t.Fatal(err)
	}
	w.awaitStored(j.Record.Key, ledger.Sent)
	// A broadcast can be swallowed by the reorganization, and replaced then.
	for deadline := time.Now().Add(15 * time.Second); !w.stored(j.Record.Key).State.Paid() && time.Now().Before(deadline); w.sees() {
		w.clock.Advance(5 * time.Second)
		w.mine(1)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.mine(8)
	w.sees()
	w.wantEarned(700)
}

func TestRestartSendsTheStoredPermit(t *testing.T) {
	t.Parallel()
	w := newPermitWorld(t)
	w.node.broadcast = func(ctx context.Context, _ []byte) error { // as if the process ended here
		<-ctx.Done()
		return ctx.Err()
	}
	j := w.claimPermit(w.permit(payment.Upto), 450, payment.Included)
	w.abandon(j, w.sent)
	w.engine.Stop()
	w.ledger = ledger.New(w.history, "two", time.Now)
	if _, err := w.ledger.Recover(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	next := &probe{Client: w.node.Client}
	w.engine = w.start(next)
	w.awaitStored(j.Record.Key, ledger.Settled, ledger.Archived)
	w.wantEarned(450)
}

// Permits and authorizations that are settled at once get in nobody's way.
func TestPermitsAndAuthorizationsShareALane(t *testing.T) {
	t.Parallel()
	w := newPermitWorld(t)
	const each = 6
	done := make(chan error, 2*each)
	for range each {
		job, transfer := w.claimPermit(w.permit(payment.Upto), 100, payment.Included), w.claim(w.authorize(), payment.Included)
		for _, j := range []settle.Job{job, transfer} {
			go func() { // ends with the time that settleJob allows
				_, err := w.settleJob(j)
				done <- err
			}()
		}
	}
	for range 2 * each {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	w.wantEarned(each*100 + each*1000)
}

func TestUptoOfALaneThatIsNotHereIsNotQueued(t *testing.T) {
	t.Parallel()
	w := newPermitWorld(t)
	s := w.permit(payment.Upto)
	s.Facilitator = w.chain.Account("facilitator2").Address
	j := w.claimPermit(s, 100, payment.Included)
	_, err := w.settleJob(j)
	wantUnavailable(t, err)
}

func TestQuorumJudgesAnInvalidatedPermitByItself(t *testing.T) {
	t.Parallel()
	w := newPermitWorld(t, ofTwo(1000))
	w.knowsLane()
	s := w.permit(payment.Exact)
	w.node.simulated = once(func() { w.sendMinedTo(w.payer, evm.Permit2, invalidating(t, s)) })
	j := w.claimPermit(s, 1000, payment.Included)
	w.abandon(j, w.sent)
	for range 8 {
		w.mine(1)
		time.Sleep(20 * time.Millisecond)
	}
	if r := w.stored(j.Record.Key); r.State == ledger.Dead {
		t.Fatal("it is dead on one node's word")
	}

	// With a second node that says the same it is.
	w.engine.Stop()
	w.ledger = ledger.New(w.history, "two", time.Now)
	if _, err := w.ledger.Recover(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	w.node = w.twoNodes()
	w.engine = w.start(w.node, ofTwo(1000))
	w.mineUntilStored(j.Record.Key, ledger.Dead)

	// And so does a payment inside somebody else's call count.
	s = w.permit(payment.Exact)
	theirs := w.sendMinedTo(w.chain.Account("facilitator2"), evm.Multicall3, inside(t, evm.Call{To: s.Proxy(), Data: settling(s)}))
	w.sees()
	got, err := w.settleJob(w.claimPermit(s, 1000, payment.Included))
	if err != nil || got.Transaction != theirs.Hex() {
		t.Fatalf("got %+v, %v, want transaction %s", got, err, theirs)
	}
}
