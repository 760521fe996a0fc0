package till

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A TransferSigner holds the key of the account that refunds come from. It is
// given the whole authorization, never a digest.
type TransferSigner interface {
	Address() common.Address
	SignTransfer(ctx context.Context, d evm.Domain, a evm.Authorization) (*evm.Transfer, error)
}

// A RefundError says why a payment is not refunded, and what to do. Nothing
// has been sent.
type RefundError struct{ Message string }

func (e *RefundError) Error() string { return e.Message }

func noRefund(format string, args ...string) *RefundError {
	list := make([]any, len(args))
	for i, a := range args {
		list[i] = a
	}
	return &RefundError{fmt.Sprintf(format, list...)}
}

// refundMode is the mode of the record of a payment that gives money back.
const refundMode = "refund"

// refundLease is how long the claim of a refund is left to the process that
// made it.
const refundLease = time.Minute

// refundEnd is when the authorization of a refund ends, in unix seconds: never,
// which is the end of the year 9999. As long as it lives its nonce cannot be
// given to another, so the chain itself allows one refund for a payment.
const refundEnd = 253402300799

// Refund gives the money of a payment back to its payer, at most once: the
// nonce of the transfer follows from the payment's key. It can be repeated, and
// after a crash at any step it goes on where it was. With force it refunds a
// payment whose goods are not known to be undeliverable, too: the payer may
// have them, or may still get them from a request that is under way.
//
// Its errors are *RefundError, and those of the facilitator.
func (t *Till) Refund(ctx context.Context, k payment.Key, force bool) (*payment.Settlement, error) {
	done, busy := t.take(k)
	if busy != nil {
		return nil, noRefund("a request is at work on this payment: try again when it has ended")
	}
	defer done()
	r, err := t.Ledger.Get(ctx, k)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, noRefund("the ledger knows no such payment: \"tollgate payments\" lists those it knows")
	}
	if err != nil {
		return nil, err
	}
	if r.State == ledger.Refunded {
		return t.refunded(ctx, &r)
	}
	if r, err = t.owe(ctx, r, force); err != nil {
		return nil, err
	}
	refund, err := t.order(ctx, &r)
	if err != nil {
		return nil, err
	}
	p, o, err := payment.DecodeRequest(refund.Request)
	if err != nil {
		return nil, fmt.Errorf("till: reading the stored refund of payment %s: %w", k, err)
	}
	p.Binding = refund.Binding
	if o.Until, err = payment.ParseFinality(refund.Until); err != nil {
		return nil, err
	}
	s, err := t.Facilitator.Settle(ctx, p, o, o.Amount)
	if err != nil {
		t.giveRefundBack(ctx, &refund, err)
		return nil, fmt.Errorf("refunding payment %s: %w", k, err)
	}
	if _, err := t.Ledger.Update(ctx, k, func(now *ledger.Record) error {
		if now.State == ledger.Refunded {
			return nil
		}
		now.Reason = orText(now.Reason, "refunded")
		return now.To(ledger.Refunded)
	}); err != nil {
		return nil, fmt.Errorf("the refund of payment %s is settled in %s, but noting that failed; run the same command again: %w", k, s.Transaction, err)
	}
	t.log().Info("refunded", "payment", k.String(), "refund", refund.Key.String(), "payer", r.Payer, "units", r.Charge, "network", string(r.Network), "tx", s.Transaction)
	return s, nil
}

// refunded returns the settlement of a refund that was made.
func (t *Till) refunded(ctx context.Context, r *ledger.Record) (*payment.Settlement, error) {
	refund, err := t.refundRecord(ctx, r)
	if err != nil {
		return nil, err
	}
	return &payment.Settlement{Network: refund.Network, Transaction: refund.Transaction(), Payer: refund.Payer}, nil
}

// refundRecord returns the record of the payment that gives the money of r
// back, or ledger.ErrNotFound.
func (t *Till) refundRecord(ctx context.Context, r *ledger.Record) (ledger.Record, error) {
	if r.Refund == "" {
		return ledger.Record{}, ledger.ErrNotFound
	}
	k, err := ParseKey(r.Refund)
	if err != nil {
		return ledger.Record{}, err
	}
	return t.Ledger.Get(ctx, k)
}

// owe makes sure that the money of r is owed back.
func (t *Till) owe(ctx context.Context, r ledger.Record, force bool) (ledger.Record, error) {
	switch {
	case r.State == ledger.RefundDue:
		return r, nil
	case r.Mode == refundMode:
		return r, noRefund("this payment is a refund itself: it cannot be refunded")
	case r.Mode == "facilitator":
		return r, noRefund("this payment came through the facilitator API: its money went to another seller, who must refund it")
	case !r.State.Paid():
		return r, noRefund("this payment is %s: no money has come, so none can go back", string(r.State))
	case !final(&r):
		return r, noRefund("the money of this payment is not final yet: a reorg could take it away after the refund; try again when \"tollgate payment\" says ARCHIVED")
	case r.Delivery != ledger.Undeliverable && !force:
		return r, noRefund("this payment is %s and %s, not REFUND_DUE: its payer has the goods or can still ask for them; to give the money away all the same add --force", string(r.State), orText(string(r.Delivery), "UNDELIVERED"))
	}
	return t.Ledger.Update(ctx, r.Key, func(now *ledger.Record) error {
		if now.State != r.State || now.Claims != r.Claims || now.Deliveries != r.Deliveries {
			return ledger.ErrStale
		}
		if now.Delivery != ledger.Undeliverable {
			now.Reason = "refunded by force while " + orText(string(now.Delivery), "UNDELIVERED")
		}
		now.Delivery = ledger.Undeliverable
		return now.To(ledger.RefundDue)
	})
}

// order claims the payment that gives the money of r back, and returns its
// record. What was ordered before is taken up again, with the very bytes that
// were signed then.
func (t *Till) order(ctx context.Context, r *ledger.Record) (ledger.Record, error) {
	before, err := t.refundRecord(ctx, r)
	switch {
	case err == nil && before.State == ledger.Dead:
		return before, noRefund("the refund's authorization was used up by something else (%s): somebody else has the key of %s; pay the payer %s by other means", before.Reason, before.Payer, r.Payer)
	case err == nil && !t.Ledger.Free(&before):
		return before, nil // settled, under way, or claimed by another process: settling it again finds out
	case err != nil && !errors.Is(err, ledger.ErrNotFound):
		return before, err
	}
	next := before
	if err != nil {
		if next, err = t.signRefund(ctx, r); err != nil {
			return next, err
		}
		if _, err := t.Ledger.Update(ctx, r.Key, func(now *ledger.Record) error {
			if now.State != ledger.RefundDue || now.Refund != r.Refund {
				return ledger.ErrStale
			}
			now.Refund = next.Key.String()
			return nil
		}); err != nil {
			return next, fmt.Errorf("ordering the refund of payment %s: %w", r.Key, err)
		}
	}
	next.State = ledger.Reserved
	claimed, err := t.Ledger.Claim(ctx, next, refundLease)
	if held := (*ledger.HeldError)(nil); errors.As(err, &held) {
		return held.Record, nil
	}
	return claimed, err
}

// signRefund returns the record, yet to be stored, of the payment that gives
// the money of r back.
func (t *Till) signRefund(ctx context.Context, r *ledger.Record) (ledger.Record, error) {
	signer, ok := t.Refunds[r.Network]
	if !ok {
		return ledger.Record{}, noRefund("no account is configured to refund from on %s: add \"refunds key {env.X402_REFUND_KEY}\" to the network in the global option x402", string(r.Network))
	}
	p, o, err := payment.DecodeRequest(r.Request)
	if err != nil {
		return ledger.Record{}, fmt.Errorf("till: reading the stored request of payment %s: %w", r.Key, err)
	}
	came, err := evm.ReadInstrument(p, o)
	if err != nil {
		return ledger.Record{}, fmt.Errorf("till: reading the stored authorization of payment %s: %w", r.Key, err)
	}
	charge, err := charged(r, o)
	if err != nil {
		return ledger.Record{}, err
	}
	back := payment.Offer{
		Scheme: payment.Exact, Amount: charge, PayTo: came.Payer.Hex(), Timeout: payment.DefaultTimeout,
		Resource: "urn:x402:refund:" + r.Key.String(),
	}
	if back.Until, err = payment.ParseFinality(r.Until); err != nil {
		return ledger.Record{}, err
	}
	binding := sha256.Sum256([]byte("refund " + r.Key.String()))
	transfer, err := signer.SignTransfer(ctx, evm.DomainOf(charge.Token()), evm.Authorization{
		From: signer.Address(), To: came.Payer, Value: charge.Big(), ValidAfter: new(big.Int), ValidBefore: big.NewInt(refundEnd), Nonce: binding,
	})
	if err != nil {
		return ledger.Record{}, fmt.Errorf("signing the refund of payment %s: %w", r.Key, err)
	}
	if p, err = received(&back, transfer); err != nil {
		return ledger.Record{}, err
	}
	id, err := facilitator.Identify(p, &back)
	if err != nil {
		return ledger.Record{}, err
	}
	request, err := payment.EncodeRequest(p, &back, charge)
	if err != nil {
		return ledger.Record{}, err
	}
	return ledger.Record{
		Key: id.Key, Binding: binding, Proof: id.Proof, Mode: refundMode, Network: r.Network, Payer: id.Payer,
		Charge: charge.Units(), Until: back.Until.String(), Request: request,
	}, nil
}

// received returns a payment as a seller would receive it.
func received(o *payment.Offer, t *evm.Transfer) (*payment.Payment, error) {
	prepared, err := (&payment.Challenge{Offers: []payment.Offer{*o}}).Prepare()
	if err != nil {
		return nil, err
	}
	challenge, err := payment.DecodeRequired(prepared.V2(o.Resource, payment.PaymentRequired))
	if err != nil {
		return nil, err
	}
	_, value := challenge.Pay(&challenge.Offers[0], t.Encode()).Header()
	return payment.FromHeader([]string{value}, nil)
}

// giveRefundBack releases the claim of a refund for which nothing was
// broadcast, so that it can be taken up at once.
func (t *Till) giveRefundBack(ctx context.Context, claimed *ledger.Record, cause error) {
	_, err := t.Ledger.Update(context.WithoutCancel(ctx), claimed.Key, func(r *ledger.Record) error {
		if !r.State.Working() || r.Claims != claimed.Claims || r.Owner != t.Ledger.Owner() {
			return ledger.ErrStale
		}
		r.Reason = cause.Error()
		return r.To(ledger.Released)
	})
	if err != nil && !errors.Is(err, ledger.ErrStale) {
		t.log().Error("releasing a refund failed", "payment", claimed.Key.String(), "error", err)
	}
}
