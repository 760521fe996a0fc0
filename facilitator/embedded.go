// Package facilitator decides whether a payment is good and moves the money,
// at most once. Embedded does it here, Client asks somebody else's
// facilitator over HTTP, and Handler offers a facilitator over HTTP to
// others.
package facilitator

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A Market is one EVM network that an embedded facilitator works on.
type Market struct {
	Network payment.Network
	Tokens  []payment.Token // those that are taken; no others are
	Chain   Chain
	Engine  *settle.Engine

	// Factories are those that wallets which are not deployed yet may name
	// (ERC-6492). Default: none.
	Factories evm.Factories

	// Strikes are whose payments failed in blocks, as the engine has told.
	// Default: nobody's.
	Strikes *Strikes
}

// Chain is what verification asks of a network's nodes. *chain.Client has it.
type Chain interface {
	// Head returns the latest block without I/O, or an error when none is
	// known that is fresh.
	Head() (chain.Head, error)

	// Ask makes one round trip.
	Ask(ctx context.Context, questions ...chain.Request) error
}

// Embedded is a facilitator in this process. Its methods are safe for
// concurrent use.
type Embedded struct {
	ledger  *ledger.Ledger
	markets map[payment.Network]*market
	logger  *slog.Logger
	now     func() time.Time
}

type market struct {
	Market
	tokens     map[string]*token // by canonical address
	rehearsals rehearsals
	payers     payers
	signatures signatures
	plain      plainAccounts
	strikes    *Strikes
	permit2    common.Hash // Permit2's domain separator
	proxies    map[payment.Scheme]*proxy
}

// A proxy is a contract that settles permits.
type proxy struct {
	turn    chan struct{} // as a token's
	checked atomic.Bool   // it is there, and so is Permit2; set by who has turn
}

// A token is one that is taken, with its domain separator.
type token struct {
	payment.Token
	separator common.Hash

	// turn holds one token. Whoever has it may ask the contract.
	turn    chan struct{}
	checked atomic.Bool // the contract has confirmed the separator; set by who has turn
}

// NewEmbedded returns a facilitator for the given markets.
func NewEmbedded(l *ledger.Ledger, markets []Market, logger *slog.Logger) (*Embedded, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	f := &Embedded{ledger: l, markets: map[payment.Network]*market{}, logger: logger, now: time.Now}
	for _, m := range markets {
		if _, twice := f.markets[m.Network]; twice {
			return nil, fmt.Errorf("facilitator: network %s is configured twice", m.Network)
		}
		own := &market{Market: m, tokens: map[string]*token{}, proxies: map[payment.Scheme]*proxy{}, strikes: m.Strikes}
		if own.strikes == nil {
			own.strikes = &Strikes{}
		}
		id, _ := m.Network.ChainID()
		own.permit2 = evm.Permit2Separator(id)
		for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
			own.proxies[scheme] = &proxy{turn: make(chan struct{}, 1)}
			own.proxies[scheme].turn <- struct{}{}
		}
		for _, t := range m.Tokens {
			if t.Network != m.Network {
				return nil, fmt.Errorf("facilitator: token %s is of %s, not of %s", t.Address, t.Network, m.Network)
			}
			known := &token{Token: t, separator: evm.DomainOf(t).Separator(), turn: make(chan struct{}, 1)}
			known.turn <- struct{}{}
			own.tokens[t.Address] = known
		}
		f.markets[m.Network] = own
	}
	return f, nil
}

// A quest is a payment on the way through the facilitator, with what was
// found out about it.
type quest struct {
	*market
	token  *token
	offer  payment.Offer // the caller's, with the token as it is configured here
	signed *evm.Instrument
	key    payment.Key
	proof  payment.Fingerprint
	head   chain.Head // the chain's latest block when it was checked

	// wallet reports that the signature is none by the payer's key. It is good
	// only if the payer is a contract that accepts it.
	wallet bool

	raw      *evm.RawApproval // the payer's own approval of Permit2, or nil
	settling bool             // it has been found good before
}

// Verify implements payment.Facilitator. A payment that no chain can make
// good costs no call to a node; any other costs one round trip for each block
// in which it is asked about. A new payment of a payer that was seen a moment
// ago costs none if it has SettledFirst.
func (f *Embedded) Verify(ctx context.Context, p *payment.Payment, o *payment.Offer) (*payment.Verification, error) {
	q, err := f.check(p, o)
	if err != nil {
		return nil, err
	}
	if err := q.confirm(ctx, f.now()); err != nil {
		return nil, err
	}
	shown, err := f.judge(ctx, q, p)
	if err != nil {
		return nil, err
	}
	return &payment.Verification{Payer: q.signed.Payer.Hex(), Key: q.key, Contract: shown.contract, Funds: shown.funds}, nil
}

// suspect is the payer, with the code at its account where that is known.
func (q *quest) suspect(code []byte) Suspect {
	return SuspectOf(q.Network, q.signed.Payer, code)
}

func (q *quest) rehearsal() rehearsal {
	this := rehearsal{key: q.key, proof: q.proof}
	if q.signed.Approval != nil {
		this.approval = sha256.Sum256(q.signed.Approval.Encode())
	} else if q.raw != nil {
		this.approval = payment.Fingerprint(q.raw.Hash())
	}
	return this
}

// check does everything that needs no node.
func (f *Embedded) check(p *payment.Payment, o *payment.Offer) (*quest, error) {
	q, err := f.find(p, o)
	if err != nil {
		return nil, err
	}
	head, err := q.Chain.Head()
	if err != nil {
		return nil, &payment.UnavailableError{Doing: "reading the chain's time on " + string(q.Network), Err: err}
	}
	if q.offer.ByPermit2() {
		err = q.checkPermit(p, head.Time)
	} else {
		err = q.checkTransfer(p, head.Time)
	}
	if err != nil {
		return nil, err
	}
	id, _ := q.Network.ChainID()
	q.key = q.signed.Key(id)
	q.head = head
	return q, nil
}

// checkTransfer checks an authorization by EIP-3009 at a time of the chain, in
// unix seconds.
func (q *quest) checkTransfer(p *payment.Payment, at uint64) error {
	t, err := evm.MatchTransfer(p, evm.Terms{Offer: &q.offer, Separator: q.token.separator, Factories: q.Factories}, at)
	if err != nil {
		return err
	}
	q.signed = evm.OfTransfer(common.HexToAddress(q.token.Address), t)
	return q.checkSigner(q.token.separator)
}

// checkSigner finds out whether the payer's key has signed, once for each
// signature. separator is that of the contract that asks for it.
func (q *quest) checkSigner(separator common.Hash) (err error) {
	q.proof = q.signed.Proof()
	this := signature{separator, q.proof}
	if wallet, known := q.signatures.recall(this); known {
		q.wallet = wallet
		return nil
	}
	if q.wallet, err = q.signed.CheckSigner(separator); err == nil {
		q.signatures.note(this, q.wallet)
	}
	return err
}

// checkPermit checks a permit, and the approval that may come with it.
func (q *quest) checkPermit(p *payment.Payment, at uint64) error {
	s, err := evm.MatchPermit(p, evm.PermitTerms{Offer: &q.offer, Facilitators: q.Engine.Lanes(), Factories: q.Factories}, at)
	if err != nil {
		return err
	}
	approval, err := evm.CheckApproval(p.Extensions, &s.Permit, q.token.separator, at)
	if err != nil {
		return err
	}
	q.signed = evm.OfPermit(s, approval)
	if err := q.checkRaw(p.Extensions); err != nil {
		return err
	}
	return q.checkSigner(q.permit2)
}

// find looks up network and token, and holds the caller's idea of the token
// against ours.
func (f *Embedded) find(p *payment.Payment, o *payment.Offer) (*quest, error) {
	if o.Scheme != payment.Exact && o.Scheme != payment.Upto {
		return nil, payment.Invalid(payment.UnsupportedScheme, "only exact and upto are settled here")
	}
	if method, set := o.Extra["assetTransferMethod"]; set && !o.ByPermit2() && string(method) != `"eip3009"` {
		return nil, payment.Invalid(payment.EVMPayloadType, "only EIP-3009 and Permit2 are settled here")
	}
	m, ok := f.markets[o.Network()]
	if !ok {
		return nil, payment.Invalid(payment.InvalidNetwork, "this facilitator does not work on "+string(o.Network()))
	}
	given := o.Amount.Token()
	t, ok := m.tokens[given.Address]
	refuse := func(reason payment.Reason, message string) (*quest, error) {
		return nil, &payment.InvalidError{Reason: reason, Message: message, Payer: payerOf(p, o)}
	}
	// Permit2 has a domain of its own: the token's is needed for approvals only.
	unnamed := o.ByPermit2() && given.Name == "" && given.Version == ""
	switch {
	case !ok:
		return refuse(payment.EVMAssetNotDeployed, "this facilitator does not take the token "+given.Address)
	case unnamed:
	case given.Name == "" || given.Version == "":
		return refuse(payment.EVMMissingDomain, "extra.name and extra.version are missing")
	case given.Name != t.Name:
		return refuse(payment.EVMTokenNameMismatch, fmt.Sprintf("extra.name must be %q", t.Name))
	case given.Version != t.Version:
		return refuse(payment.EVMTokenVersionMismatch, fmt.Sprintf("extra.version must be %q", t.Version))
	}
	amount, err := payment.NewAmount(o.Amount.Big(), t.Token)
	if err != nil {
		return nil, err
	}
	q := &quest{market: m, token: t, offer: *o}
	q.offer.Amount = amount
	return q, nil
}

// payerOf returns who a payment says has signed it, or "".
func payerOf(p *payment.Payment, o *payment.Offer) string {
	if signed, err := evm.ReadInstrument(p, o); err == nil {
		return signed.Payer.Hex()
	}
	return ""
}

// confirm asks whether the payer can have signed, where only its code tells,
// and the contracts that a payment goes through, once each, whether they are
// what they are taken for.
func (q *quest) confirm(ctx context.Context, now time.Time) error {
	if err := q.confirmWallet(ctx, now); err != nil {
		return err
	}
	switch {
	case q.signed.Permit == nil:
		return q.confirmDomain(ctx)
	case q.signed.Approval != nil:
		if err := q.confirmDomain(ctx); err != nil {
			return err
		}
	}
	return q.confirmProxy(ctx, q.signed.Permit.Scheme)
}

// confirmDomain compares the token's domain separator with ours, once. With a
// wrong domain every signature would look forged, or worse, good ones would
// fail only on the chain.
func (q *quest) confirmDomain(ctx context.Context) error {
	t := q.token
	if t.checked.Load() {
		return nil
	}
	select {
	case <-t.turn:
		defer func() { t.turn <- struct{}{} }()
	case <-ctx.Done():
		return &payment.UnavailableError{Doing: "reading the EIP-712 domain of " + t.Address, Err: ctx.Err()}
	}
	if t.checked.Load() {
		return nil
	}
	contract := common.HexToAddress(t.Address)
	ask := &chain.Call{Msg: ethereum.CallMsg{To: &contract, Data: evm.SeparatorCall()}}
	if err := q.Chain.Ask(ctx, ask); err != nil {
		return &payment.UnavailableError{Doing: "reading the EIP-712 domain of " + t.Address, Err: err}
	}
	if ask.Err != nil || len(ask.Output) != 32 || common.BytesToHash(ask.Output) != t.separator {
		return &payment.UnavailableError{Doing: fmt.Sprintf("checking token %s on %s: its EIP-712 domain is not name %q, version %q, chain %s: correct the token's configuration",
			t.Address, q.Network, t.Name, t.Version, strings.TrimPrefix(string(q.Network), "eip155:")), Err: ask.Err}
	}
	t.checked.Store(true)
	return nil
}

// simulate runs the payment as the lane will send it, and reads the payer's
// code and funds with the same round trip.
func (q *quest) simulate(ctx context.Context, at time.Time) (shown performed, err error) {
	msg, err := q.Engine.Message(ctx, q.signed, q.signed.Most, q.wallet)
	if err != nil {
		return shown, q.unavailable("preparing the simulation", err)
	}
	code := &chain.Code{Address: q.signed.Payer}
	run := &chain.Call{Msg: msg}
	balance := q.ask(evm.Call{To: q.signed.Token, Data: evm.BalanceCall(q.signed.Payer)})
	questions := []chain.Request{code, run, balance}
	var allowance *chain.Call
	if q.signed.Permit != nil && q.signed.Approval == nil {
		allowance = q.ask(evm.Call{To: q.signed.Token, Data: evm.AllowanceCall(q.signed.Payer, evm.Permit2)})
		questions = append(questions, allowance)
	}
	if err := q.Chain.Ask(ctx, questions...); err != nil {
		return shown, q.unavailable("simulating the payment", err)
	}
	if code.Err != nil {
		return shown, q.unavailable("reading the payer's code", code.Err)
	}
	shown.contract = len(code.Code) > 0 || q.signed.Wrapped()
	if _, err := q.signed.Way(evm.AccountOf(code.Code), q.wallet); err != nil {
		return shown, err
	}
	if err := q.strikes.Check(at, q.suspect(code.Code)); err != nil {
		return shown, err
	}
	var revert *chain.RevertError
	switch err := settle.Went(q.signed, run); {
	case errors.As(err, &revert) && q.needsRaw(revert, allowance):
		return q.foresee(ctx, shown, at)
	case errors.As(err, &revert):
		return shown, q.diagnose(ctx, at, revert)
	case err != nil:
		return shown, q.unavailable("simulating the payment", err)
	}
	if shown.funds = number(balance); allowance != nil {
		if n := number(allowance); n != nil && shown.funds != nil && n.Cmp(shown.funds) < 0 {
			shown.funds = n
		}
	} else if q.signed.Approval != nil {
		shown.funds = q.signed.Most // what is approved is for this payment
	}
	return shown, nil
}

// ask returns a question to a contract.
func (q *quest) ask(call evm.Call) *chain.Call {
	return &chain.Call{Msg: ethereum.CallMsg{To: &call.To, Data: call.Data}}
}

// number reads an answer that is one number, or returns nil.
func number(c *chain.Call) *big.Int {
	if c.Err != nil || len(c.Output) != 32 {
		return nil
	}
	return new(big.Int).SetBytes(c.Output)
}

// diagnose finds out why the payment reverts.
func (q *quest) diagnose(ctx context.Context, at time.Time, revert *chain.RevertError) error {
	permit := q.signed.Permit != nil
	if reason, ok := evm.PermitRevert(revert.Data); ok && permit {
		return q.refuse(reason, revert.Reason)
	}
	used := q.ask(q.signed.UsedCall())
	balance := q.ask(evm.Call{To: q.signed.Token, Data: evm.BalanceCall(q.signed.Payer)})
	allowance := q.ask(evm.Call{To: q.signed.Token, Data: evm.AllowanceCall(q.signed.Payer, evm.Permit2)})
	questions := []chain.Request{used, balance}
	if permit {
		questions = append(questions, allowance)
	}
	if err := q.Chain.Ask(ctx, questions...); err != nil {
		return q.unavailable("asking why the payment reverts", err)
	}
	less := func(c *chain.Call) bool {
		n := number(c)
		return n != nil && n.Cmp(q.signed.Most) < 0
	}
	reasons := q.signed.Reasons()
	if used.Err == nil {
		if yes, err := q.signed.Used(used.Output); err == nil && yes {
			return q.refuse(reasons.Used, "the authorization was used or cancelled")
		}
	}
	switch {
	case less(balance):
		q.payers.lacks(q, at, number(balance), reasons.Balance)
		return q.lacking(reasons.Balance)
	case permit && less(allowance):
		q.payers.lacks(q, at, number(allowance), payment.Permit2AllowanceRequired)
		return q.lacking(payment.Permit2AllowanceRequired)
	}
	return q.refuse(reasons.Simulation, revert.Reason)
}

// lacking refuses a payment for want of money, or of an allowance.
func (q *quest) lacking(reason payment.Reason) *payment.InvalidError {
	if reason == payment.Permit2AllowanceRequired {
		return q.refuse(reason, "Permit2 may not move "+q.offer.Amount.String()+" of the payer's: approve "+evm.Permit2.Hex()+" at the token")
	}
	return q.refuse(reason, "the payer holds less than "+q.offer.Amount.String())
}

func (q *quest) refuse(reason payment.Reason, message string) *payment.InvalidError {
	return &payment.InvalidError{Reason: reason, Message: message, Payer: q.signed.Payer.Hex()}
}

func (q *quest) unavailable(doing string, err error) error {
	return &payment.UnavailableError{Doing: doing + " on " + string(q.Network), Err: err, Payer: q.signed.Payer.Hex()}
}

// apiMode is the mode of payments that are claimed by the facilitator API.
const apiMode = "facilitator"

// apiLease is how long a claim made by the facilitator API is left to the
// process that made it.
const apiLease = time.Minute

// Settle implements payment.Facilitator. A payment with a Binding has been
// claimed by the till of this process, for this charge; any other is claimed
// here, for its offer.
func (f *Embedded) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	q, err := f.find(p, o)
	if err != nil {
		return nil, err
	}
	signed, err := evm.ReadInstrument(p, &q.offer)
	if err != nil {
		return nil, err
	}
	identity := identityOf(signed, q.Network)
	binding := p.Binding
	fromTill := binding != payment.Fingerprint{}
	if !fromTill {
		binding = bindingOf(&q.offer)
		if o.Scheme == payment.Upto {
			// The API's offer says what is charged. What may be is what was signed.
			if q.offer.Amount, err = payment.NewAmount(signed.Most, q.token.Token); err != nil {
				return nil, err
			}
		}
	}
	r, err := f.ledger.Get(ctx, identity.Key)
	switch {
	case errors.Is(err, ledger.ErrNotFound) && fromTill:
		return nil, fmt.Errorf("facilitator: payment %s is bound to a request, but nobody has claimed it", identity.Key)
	case errors.Is(err, ledger.ErrNotFound):
	case err != nil:
		return nil, &payment.UnavailableError{Doing: "reading the ledger", Err: err, Payer: identity.Payer}
	case f.ledger.Free(&r) && !fromTill:
	case r.Binding != binding || r.Proof != identity.Proof || r.Tenant != p.Tenant:
		return nil, &payment.InvalidError{Reason: payment.DuplicateSettlement, Message: "this payment is bound to something else", Payer: identity.Payer}
	case r.State.Broadcast() || r.State == ledger.Dead:
		return q.Engine.Resume(ctx, r)
	case !fromTill:
		return nil, &payment.UnavailableError{Doing: "settling: another call is settling this payment", Pending: true, Payer: identity.Payer}
	case r.Charge != charge.Units():
		return nil, fmt.Errorf("facilitator: payment %s is claimed for a charge of %s, not of %s", identity.Key, r.Charge, charge.Units())
	}

	// Nothing has been broadcast for the payment. Whatever was verified
	// before may have changed since.
	offer := q.offer
	if q, err = f.check(p, &offer); err != nil {
		return nil, err
	}
	if err := q.signed.CheckCharge(charge.Big()); err != nil {
		return nil, err
	}
	if err := q.confirm(ctx, f.now()); err != nil {
		return nil, err
	}
	approve, err := q.toSend(ctx, charge.Big(), f.now())
	if err != nil {
		return nil, err
	}
	if !fromTill {
		if r, err = f.claim(ctx, p, q, charge, identity, binding); err != nil {
			return nil, err
		}
	}
	if charge.Zero() {
		return f.settleNothing(ctx, &r, charge)
	}
	job := settle.Job{Record: r, Signed: q.signed, Charge: charge, Until: o.Until, Approve: approve}
	shown, known := q.rehearsals.recall(q.head.Hash, q.rehearsal(), f.now())
	known = known && !shown.presumed && shown.refusal == nil
	if job.Contract = known && shown.contract; known && !shown.contract && !shown.unapproved && q.signed.Most.Cmp(charge.Big()) == 0 {
		job.Rehearsed = q.head.Hash
	}
	q.payers.settling(q, f.now())
	s, err := q.Engine.Settle(ctx, job)
	q.learn(f.now(), o.Until, err)
	var invalid *payment.InvalidError
	if (job.Contract || approve != nil) && errors.As(err, &invalid) && !invalid.NonceUsed() && invalid.Reason != payment.ERC20ApprovalBroadcast {
		q.strikes.Strike(f.now(), q.suspect(nil)) // it had been found good a moment ago
	}
	if err != nil && !fromTill {
		f.release(ctx, &r, err)
	}
	return s, err
}

// settleNothing settles a payment that is charged nothing. The chain never
// hears of it, so it is the ledger that remembers that it was used; only one of
// our lanes could still spend it.
func (f *Embedded) settleNothing(ctx context.Context, claimed *ledger.Record, charge payment.Amount) (*payment.Settlement, error) {
	stored, err := f.ledger.Update(ctx, claimed.Key, func(r *ledger.Record) error {
		if !r.State.Working() || r.Claims != claimed.Claims || r.Charge != charge.Units() {
			return ledger.ErrStale
		}
		if err := r.To(ledger.Settled); err != nil {
			return err
		}
		return r.To(ledger.Archived) // there is nothing to watch
	})
	if err != nil {
		return nil, &payment.UnavailableError{Doing: "storing that nothing is charged", Err: err, Pending: true, Payer: claimed.Payer}
	}
	return &payment.Settlement{Network: stored.Network, Payer: stored.Payer, Amount: charge}, nil
}

// claim binds a payment that came through the facilitator API to its offer.
func (f *Embedded) claim(ctx context.Context, p *payment.Payment, q *quest, charge payment.Amount, identity Identity, binding payment.Fingerprint) (ledger.Record, error) {
	request, err := payment.EncodeRequest(p, &q.offer, charge)
	if err != nil {
		return ledger.Record{}, err
	}
	r, err := f.ledger.Claim(ctx, ledger.Record{
		Key: identity.Key, State: ledger.Reserved, Binding: binding, Proof: identity.Proof, Mode: apiMode, Tenant: p.Tenant,
		Network: q.Network, Payer: identity.Payer, Charge: charge.Units(), Until: q.offer.Until.String(), Request: request,
	}, apiLease)
	var held *ledger.HeldError
	switch {
	case errors.As(err, &held):
		return ledger.Record{}, &payment.UnavailableError{Doing: "settling: another call is settling this payment", Pending: true, Payer: identity.Payer}
	case err != nil:
		return ledger.Record{}, &payment.UnavailableError{Doing: "claiming the payment", Err: err, Payer: identity.Payer}
	}
	return r, nil
}

// release gives a claim back if nothing was broadcast for it.
func (f *Embedded) release(ctx context.Context, claimed *ledger.Record, cause error) {
	_, err := f.ledger.Update(context.WithoutCancel(ctx), claimed.Key, func(r *ledger.Record) error {
		if r.State != ledger.Reserved || r.Claims != claimed.Claims {
			return ledger.ErrStale
		}
		r.Reason = cause.Error()
		return r.To(ledger.Released)
	})
	if err != nil && !errors.Is(err, ledger.ErrStale) {
		f.logger.Error("releasing a payment failed", "payment", claimed.Key.String(), "error", err)
	}
}

// Supported implements payment.Facilitator. Permit2 is listed on networks where
// its proxies have been found; that is asked once.
func (f *Embedded) Supported(ctx context.Context) (*payment.Supported, error) {
	s := &payment.Supported{Signers: map[string][]string{}}
	sponsors, relays := false, false
	for n, m := range f.markets {
		s.Kinds = append(s.Kinds, payment.Kind{Version: payment.V2, Scheme: payment.Exact, Network: n})
		if _, ok := n.V1(); ok {
			s.Kinds = append(s.Kinds, payment.Kind{Version: payment.V1, Scheme: payment.Exact, Network: n})
		}
		permits := m.confirmProxy(ctx, payment.Exact) == nil
		if m.confirmProxy(ctx, payment.Upto) == nil {
			s.Kinds = append(s.Kinds, payment.Kind{Version: payment.V2, Scheme: payment.Upto, Network: n, Extra: uptoExtra(m.Engine)})
			permits = true
		}
		sponsors, relays = sponsors || permits, relays || permits && m.Engine.RelayApprovals
		for _, lane := range m.Engine.Lanes() {
			s.Signers["eip155:*"] = append(s.Signers["eip155:*"], lane.Hex())
		}
	}
	if sponsors {
		s.Extensions = append(s.Extensions, evm.Sponsoring)
	}
	if relays {
		s.Extensions = append(s.Extensions, evm.RawSponsoring)
	}
	sort.Slice(s.Kinds, func(i, j int) bool {
		a, b := s.Kinds[i], s.Kinds[j]
		switch {
		case a.Network != b.Network:
			return a.Network < b.Network
		case a.Scheme != b.Scheme:
			return a.Scheme < b.Scheme
		}
		return a.Version < b.Version
	})
	for _, list := range s.Signers {
		sort.Strings(list)
	}
	return s, nil
}

// uptoExtra is what sellers copy into their offers for upto: the lane that
// payers have to sign for, which is the one for what goes alone.
func uptoExtra(e *settle.Engine) json.RawMessage {
	lanes := e.Lanes()
	doc, err := json.Marshal(struct {
		Address string `json:"facilitatorAddress"`
	}{lanes[len(lanes)-1].Hex()})
	if err != nil {
		panic("facilitator: encoding an address failed: " + err.Error())
	}
	return doc
}

// confirmProxy asks the proxy that settles permits of a scheme for Permit2,
// once it has answered never again. A call to a contract that is not there goes
// well and moves nothing.
func (m *market) confirmProxy(ctx context.Context, scheme payment.Scheme) error {
	p := m.proxies[scheme]
	if p.checked.Load() {
		return nil
	}
	address := (&evm.Permit{Scheme: scheme}).Proxy()
	doing := "looking for the contract " + address.Hex() + " on " + string(m.Network)
	select {
	case <-p.turn:
		defer func() { p.turn <- struct{}{} }()
	case <-ctx.Done():
		return &payment.UnavailableError{Doing: doing, Err: ctx.Err()}
	}
	if p.checked.Load() {
		return nil
	}
	ask := &chain.Call{Msg: ethereum.CallMsg{To: &address, Data: evm.Permit2Call()}}
	code := &chain.Code{Address: evm.Permit2}
	if err := m.Chain.Ask(ctx, ask, code); err != nil {
		return &payment.UnavailableError{Doing: doing, Err: err}
	}
	if code.Err != nil {
		return &payment.UnavailableError{Doing: doing, Err: code.Err}
	}
	var revert *chain.RevertError
	switch {
	case ask.Err != nil && !errors.As(ask.Err, &revert):
		return &payment.UnavailableError{Doing: doing, Err: ask.Err}
	case len(code.Code) == 0 || ask.Err != nil || common.BytesToHash(ask.Output) != common.BytesToHash(evm.Permit2[:]):
		return payment.Invalid(payment.Permit2ProxyNotDeployed, "Permit2 cannot be used on "+string(m.Network)+": "+address.Hex()+" or "+evm.Permit2.Hex()+" is not there")
	}
	p.checked.Store(true)
	return nil
}
