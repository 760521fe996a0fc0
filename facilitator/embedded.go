// Package facilitator decides whether a payment is good and moves the money,
// at most once. Embedded does it here, Client asks somebody else's
// facilitator over HTTP, and Handler offers a facilitator over HTTP to
// others.
package facilitator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sort"
	"strings"
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
}

type market struct {
	Market
	tokens     map[string]*token // by canonical address
	rehearsals rehearsals
	signatures signatures
}

// A token is one that is taken, with its domain separator.
type token struct {
	payment.Token
	separator common.Hash

	// turn holds one token. Whoever has it may ask the contract.
	turn    chan struct{}
	checked bool // guarded by turn: the contract has confirmed the separator
}

// NewEmbedded returns a facilitator for the given markets.
func NewEmbedded(l *ledger.Ledger, markets []Market, logger *slog.Logger) (*Embedded, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	f := &Embedded{ledger: l, markets: map[payment.Network]*market{}, logger: logger}
	for _, m := range markets {
		if _, twice := f.markets[m.Network]; twice {
			return nil, fmt.Errorf("facilitator: network %s is configured twice", m.Network)
		}
		own := &market{Market: m, tokens: map[string]*token{}}
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
	token    *token
	offer    payment.Offer // the caller's, with the token as it is configured here
	transfer *evm.Transfer
	key      payment.Key
	proof    payment.Fingerprint
	head     common.Hash // the chain's latest block when it was checked
}

// Verify implements payment.Facilitator. A payment that no chain can make
// good costs no call to a node; any other costs one round trip for each block
// in which it is asked about.
func (f *Embedded) Verify(ctx context.Context, p *payment.Payment, o *payment.Offer) (*payment.Verification, error) {
	q, err := f.check(p, o)
	if err != nil {
		return nil, err
	}
	if err := q.confirmDomain(ctx); err != nil {
		return nil, err
	}
	this := rehearsal{q.key, q.proof}
	contract, known := q.rehearsals.recall(q.head, this)
	if !known {
		if contract, err = q.simulate(ctx); err != nil {
			return nil, err
		}
		q.rehearsals.note(q.head, this, contract)
	}
	return &payment.Verification{Payer: q.transfer.From.Hex(), Key: q.key, Contract: contract}, nil
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
	q.transfer, err = evm.Match(p, evm.Terms{Offer: &q.offer, Separator: q.token.separator}, head.Time)
	if err != nil {
		return nil, err
	}
	q.proof = evm.OfTransfer(common.HexToAddress(q.token.Address), q.transfer).Proof()
	if this := (signature{q.token.separator, q.proof}); !q.signatures.good(this) {
		if err := q.transfer.CheckSignature(q.token.separator); err != nil {
			return nil, err
		}
		q.signatures.note(this)
	}
	id, _ := q.Network.ChainID()
	q.key = q.transfer.Key(id, common.HexToAddress(q.token.Address))
	q.head = head.Hash
	return q, nil
}

// find looks up network and token, and holds the caller's idea of the token
// against ours.
func (f *Embedded) find(p *payment.Payment, o *payment.Offer) (*quest, error) {
	if o.Scheme != payment.Exact {
		return nil, payment.Invalid(payment.UnsupportedScheme, "only exact is settled here")
	}
	if method, set := o.Extra["assetTransferMethod"]; set && string(method) != `"eip3009"` {
		return nil, payment.Invalid(payment.EVMPayloadType, "only EIP-3009 is settled here")
	}
	m, ok := f.markets[o.Network()]
	if !ok {
		return nil, payment.Invalid(payment.InvalidNetwork, "this facilitator does not work on "+string(o.Network()))
	}
	given := o.Amount.Token()
	t, ok := m.tokens[given.Address]
	refuse := func(reason payment.Reason, message string) (*quest, error) {
		return nil, &payment.InvalidError{Reason: reason, Message: message, Payer: payerOf(p)}
	}
	switch {
	case !ok:
		return refuse(payment.EVMAssetNotDeployed, "this facilitator does not take the token "+given.Address)
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
func payerOf(p *payment.Payment) string {
	if t, err := evm.Decode(p.Payload); err == nil {
		return t.From.Hex()
	}
	return ""
}

// confirmDomain compares the token's domain separator with ours, once. With a
// wrong domain every signature would look forged, or worse, good ones would
// fail only on the chain.
func (q *quest) confirmDomain(ctx context.Context) error {
	t := q.token
	select {
	case <-t.turn:
		defer func() { t.turn <- struct{}{} }()
	case <-ctx.Done():
		return &payment.UnavailableError{Doing: "reading the EIP-712 domain of " + t.Address, Err: ctx.Err()}
	}
	if t.checked {
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
	t.checked = true
	return nil
}

// simulate runs the transfer as the lane will send it and reports whether the
// payer's account has code.
func (q *quest) simulate(ctx context.Context) (contract bool, err error) {
	msg, err := q.Engine.Message(ctx, common.HexToAddress(q.token.Address), q.transfer.Calldata())
	if err != nil {
		return false, q.unavailable("preparing the simulation", err)
	}
	code := &chain.Code{Address: q.transfer.From}
	run := &chain.Call{Msg: msg}
	if err := q.Chain.Ask(ctx, code, run); err != nil {
		return false, q.unavailable("simulating the transfer", err)
	}
	if code.Err != nil {
		return false, q.unavailable("reading the payer's code", code.Err)
	}
	var revert *chain.RevertError
	switch {
	case errors.As(run.Err, &revert):
		return false, q.diagnose(ctx, revert)
	case run.Err != nil:
		return false, q.unavailable("simulating the transfer", run.Err)
	}
	return len(code.Code) > 0, nil
}

// diagnose finds out why the transfer reverts.
func (q *quest) diagnose(ctx context.Context, revert *chain.RevertError) error {
	contract := common.HexToAddress(q.token.Address)
	used := &chain.Call{Msg: ethereum.CallMsg{To: &contract, Data: q.transfer.AuthorizationStateCall()}}
	balance := &chain.Call{Msg: ethereum.CallMsg{To: &contract, Data: evm.BalanceCall(q.transfer.From)}}
	if err := q.Chain.Ask(ctx, used, balance); err != nil {
		return q.unavailable("asking why the transfer reverts", err)
	}
	refuse := func(reason payment.Reason, message string) error {
		return &payment.InvalidError{Reason: reason, Message: message, Payer: q.transfer.From.Hex()}
	}
	if used.Err == nil && len(used.Output) == 32 && new(big.Int).SetBytes(used.Output).Sign() != 0 {
		return refuse(payment.EVMNonceUsed, "the authorization was used or cancelled")
	}
	if balance.Err == nil && len(balance.Output) == 32 && new(big.Int).SetBytes(balance.Output).Cmp(q.transfer.Value) < 0 {
		return refuse(payment.EVMInsufficientBalance, "the payer holds less than "+q.offer.Amount.String())
	}
	return refuse(payment.EVMSimulationFailed, revert.Reason)
}

func (q *quest) unavailable(doing string, err error) error {
	return &payment.UnavailableError{Doing: doing + " on " + string(q.Network), Err: err, Payer: q.transfer.From.Hex()}
}

// apiLease is how long a claim made by the facilitator API is left to the
// process that made it.
const apiLease = time.Minute

// Settle implements payment.Facilitator. A payment with a Binding has been
// claimed by the till of this process; any other is claimed here, for its
// offer.
func (f *Embedded) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	q, err := f.find(p, o)
	if err != nil {
		return nil, err
	}
	identity, err := Identify(p, &q.offer)
	if err != nil {
		return nil, err
	}
	if charge.Big().Cmp(q.offer.Amount.Big()) != 0 {
		return nil, &payment.InvalidError{Reason: payment.EVMValueMismatch, Message: "exact charges the whole amount", Payer: identity.Payer}
	}
	binding := p.Binding
	fromTill := binding != payment.Fingerprint{}
	if !fromTill {
		binding = bindingOf(&q.offer)
	}
	r, err := f.ledger.Get(ctx, identity.Key)
	switch {
	case errors.Is(err, ledger.ErrNotFound) && fromTill:
		return nil, fmt.Errorf("facilitator: payment %s is bound to a request, but nobody has claimed it", identity.Key)
	case errors.Is(err, ledger.ErrNotFound):
	case err != nil:
		return nil, &payment.UnavailableError{Doing: "reading the ledger", Err: err, Payer: identity.Payer}
	case f.ledger.Free(&r) && !fromTill:
	case r.Binding != binding || r.Proof != identity.Proof:
		return nil, &payment.InvalidError{Reason: payment.DuplicateSettlement, Message: "this payment is bound to something else", Payer: identity.Payer}
	case r.State.Broadcast() || r.State == ledger.Dead:
		return q.Engine.Resume(ctx, r)
	case !fromTill:
		return nil, &payment.UnavailableError{Doing: "settling: another call is settling this payment", Pending: true, Payer: identity.Payer}
	}

	// Nothing has been broadcast for the payment. Whatever was verified
	// before may have changed since.
	if q, err = f.check(p, o); err != nil {
		return nil, err
	}
	if err := q.confirmDomain(ctx); err != nil {
		return nil, err
	}
	if !fromTill {
		if r, err = f.claim(ctx, p, q, charge, identity, binding); err != nil {
			return nil, err
		}
	}
	job := settle.Job{Record: r, Transfer: q.transfer, Token: q.token.Token, Charge: charge, Until: o.Until}
	contract, known := q.rehearsals.recall(q.head, rehearsal{q.key, q.proof})
	if job.Contract = known && contract; known && !contract {
		job.Rehearsed = q.head
	}
	s, err := q.Engine.Settle(ctx, job)
	if err != nil && !fromTill {
		f.release(ctx, &r, err)
	}
	return s, err
}

// claim binds a payment that came through the facilitator API to its offer.
func (f *Embedded) claim(ctx context.Context, p *payment.Payment, q *quest, charge payment.Amount, identity Identity, binding payment.Fingerprint) (ledger.Record, error) {
	request, err := payment.EncodeRequest(p, &q.offer, charge)
	if err != nil {
		return ledger.Record{}, err
	}
	r, err := f.ledger.Claim(ctx, ledger.Record{
		Key: identity.Key, State: ledger.Reserved, Binding: binding, Proof: identity.Proof, Mode: "facilitator",
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

// Supported implements payment.Facilitator.
func (f *Embedded) Supported(context.Context) (*payment.Supported, error) {
	s := &payment.Supported{Signers: map[string][]string{}}
	for n, m := range f.markets {
		s.Kinds = append(s.Kinds, payment.Kind{Version: payment.V2, Scheme: payment.Exact, Network: n})
		if _, ok := n.V1(); ok {
			s.Kinds = append(s.Kinds, payment.Kind{Version: payment.V1, Scheme: payment.Exact, Network: n})
		}
		for _, lane := range m.Engine.Lanes() {
			s.Signers["eip155:*"] = append(s.Signers["eip155:*"], lane.Hex())
		}
	}
	sort.Slice(s.Kinds, func(i, j int) bool {
		a, b := s.Kinds[i], s.Kinds[j]
		return a.Network < b.Network || a.Network == b.Network && a.Version < b.Version
	})
	for _, list := range s.Signers {
		sort.Strings(list)
	}
	return s, nil
}
