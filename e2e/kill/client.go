package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/signer/localkey"
)

// A client buys one thing after the other and never lies: while it cannot
// tell whether it has paid it asks again with the same payment, and it signs
// another one only when it is told 402. It takes what it wants to one instance
// of the shop, and where that does not answer, to the next one.
type client struct {
	book  *book
	http  *http.Client
	shops []string // URLs of the instances
	home  int      // the instance that each order is taken to first
	at    int      // the instance that is asked now

	// updated returns when the ledger's entry of a payment was last written,
	// zero where there is none. Nil where each life goes on with what the last
	// one left.
	updated func(context.Context, payment.Key) (time.Time, error)

	account devchain.Account
	key     *localkey.Key
	rng     *mathrand.Rand
}

func newClient(b *book, h *http.Client, shops []string, home int, account devchain.Account, rng *mathrand.Rand) (*client, error) {
	key, err := localkey.Parse(hex.EncodeToString(crypto.FromECDSA(account.Key)))
	if err != nil {
		return nil, err
	}
	return &client{book: b, http: h, shops: shops, home: home % len(shops), account: account, key: key, rng: rng}, nil
}

// The routes of the shop, see the Caddyfile. An order is a POST, which must
// not run twice.
var routes = []string{"held", "order", "first", "deep"}

const (
	mostCheques = 6   // for one order; a client that is refused so often gives up
	oddity      = 0.1 // how many purchases are followed by an attempt at another one with the same payment
	haste       = 0.1 // how many payments are sent to two instances at once, where there are two
)

// run buys until closing is closed, and then finishes what it has begun, or
// stops when ctx ends.
func (c *client) run(ctx context.Context, closing <-chan struct{}) error {
	for {
		select {
		case <-closing:
			return nil
		case <-ctx.Done():
			return nil
		case <-time.After(time.Duration(c.rng.IntN(60)) * time.Millisecond):
		}
		o := c.book.order(routes[c.rng.IntN(len(routes))], 1+c.rng.IntN(2))
		if err := c.buy(ctx, o); err != nil && ctx.Err() == nil {
			return err
		}
		if c.rng.Float64() < oddity {
			if err := c.again(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// buy gets what is ordered. An error is a *problem, or one of the harness or
// of the protocol, such as a challenge that cannot be read.
func (c *client) buy(ctx context.Context, o *order) error {
	c.at = c.home
	for range mostCheques {
		q, err := c.sign(ctx, o)
		if err != nil {
			return err
		}
		var twin sync.WaitGroup
		var twinErr error
		if len(c.shops) > 1 && c.rng.Float64() < haste {
			at := (c.at + 1) % len(c.shops)
			twin.Go(func() { twinErr = c.copy(ctx, q, at) }) // ends with its answer
		}
		done, err := c.redeem(ctx, q)
		twin.Wait()
		err = errors.Join(err, twinErr)
		c.book.ended(q, err == nil)
		if err != nil || done {
			return err
		}
	}
	return nil
}

// copy sends a payment to another instance while it is sent to one. Whatever
// says that it is under way there is fine.
func (c *client) copy(ctx context.Context, q *cheque, at int) error {
	began := time.Now()
	a, sent, err := c.ask(ctx, at, q.order, q)
	switch {
	case err != nil:
		return c.lose(ctx, q, sent, err)
	case a.status == http.StatusOK && string(a.body) != goods(q.order):
		return &problem{doubleGrant, fmt.Sprintf("its copy got other goods: %.60q", a.body), q}
	case a.status == http.StatusOK:
		c.book.servedBy(q, at, began)
	case a.status == http.StatusPaymentRequired:
		c.book.refusedWith(q, "to a copy: "+a.reason())
	default:
		c.book.note(q, "a copy at %s: %d: %s", c.name(at), a.status, a.reason())
	}
	return nil
}

// name is what histories call an instance.
func (c *client) name(at int) string { return fmt.Sprintf("instance %d", at+1) }

// next goes on with the next instance.
func (c *client) next() { c.at = (c.at + 1) % len(c.shops) }

// lose notes that an instance ended which, if it had been sent the payment,
// has left it behind. An instance that is only slow has not died.
func (c *client) lose(ctx context.Context, q *cheque, sent bool, why error) error {
	if c.updated == nil || !sent || kindOf(why) == slow || ctx.Err() != nil {
		return nil
	}
	now := time.Now()
	if c.book.orphanedAt(q).IsZero() {
		c.book.orphan(q, now, time.Time{})
		return nil
	}
	updated, err := c.updated(ctx, q.key)
	if err == nil {
		c.book.orphan(q, now, updated)
	}
	return err
}

// patience is the pause before a client asks again.
func (c *client) patience(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10*time.Millisecond + time.Duration(c.rng.IntN(50))*time.Millisecond):
		return nil
	}
}

// sign asks for the price and signs a payment.
func (c *client) sign(ctx context.Context, o *order) (*cheque, error) {
	for {
		a, _, err := c.ask(ctx, c.at, o, nil)
		if err != nil {
			c.next()
		}
		if err != nil || a.status != http.StatusPaymentRequired {
			if err := c.patience(ctx); err != nil {
				return nil, err
			}
			continue
		}
		challenge, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired))
		if o.version == payment.V1 {
			challenge, err = payment.DecodeRequiredBody(a.body)
		}
		if err != nil {
			return nil, err
		}
		if len(challenge.Offers) == 0 {
			return nil, errors.New("the challenge has no offer that can be read")
		}
		offer := &challenge.Offers[0]
		authorization := evm.Authorization{
			From: c.account.Address, To: common.HexToAddress(offer.PayTo), Value: offer.Amount.Big(),
			ValidAfter: new(big.Int), ValidBefore: big.NewInt(time.Now().Add(offer.Timeout).Unix()),
		}
		if _, err := rand.Read(authorization.Nonce[:]); err != nil {
			return nil, err
		}
		transfer, err := c.key.SignTransfer(ctx, evm.DomainOf(offer.Amount.Token()), authorization)
		if err != nil {
			return nil, err
		}
		id, _ := offer.Offer.Network().ChainID()
		q := &cheque{
			order: o, payer: c.account.Address, nonce: authorization.Nonce,
			key: transfer.Key(id, common.HexToAddress(offer.Amount.Token().Address)),
		}
		q.header, q.value = challenge.Pay(offer, transfer.Encode()).Header()
		c.book.signed(q)
		return q, nil
	}
}

// redeem asks with a cheque until there is an answer that says how it ended.
// done is false if the answer was to pay again.
func (c *client) redeem(ctx context.Context, q *cheque) (done bool, err error) {
	o := q.order
	last := -1 // the instance that has been sent it last
	for {
		began := time.Now()
		a, sent, err := c.ask(ctx, c.at, o, q)
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case err != nil:
			c.book.note(q, "%s: no answer: %s", c.name(c.at), kindOf(err))
			if err := c.lose(ctx, q, sent || last == c.at, err); err != nil {
				return false, err
			}
			c.next()
		case a.status == http.StatusOK:
			if want := goods(o); string(a.body) != want {
				return false, &problem{doubleGrant, fmt.Sprintf("it got other goods: %.60q, want %.60q", a.body, want), q}
			}
			if !strings.Contains(a.receipt(), "0x") {
				return false, &problem{unpaid, fmt.Sprintf("it was served without a receipt: %v", a.header), q}
			}
			c.book.servedBy(q, c.at, began)
			return true, nil
		case a.status == http.StatusPaymentRequired:
			c.book.refusedWith(q, a.reason())
			return false, nil
		case a.status >= 500:
			c.book.note(q, "%s: %d: %s", c.name(c.at), a.status, a.reason())
		default:
			c.book.note(q, "%s: final answer %d: %s", c.name(c.at), a.status, a.reason())
			return true, nil
		}
		if err == nil {
			last = c.at
		}
		if err := c.patience(ctx); err != nil {
			return false, err
		}
	}
}

// again tries to get more for a payment that has bought something: another
// thing, which must fail, or the same thing, which may. It asks any instance.
func (c *client) again(ctx context.Context) error {
	q := c.book.oldOne(c.rng.IntN(keptRecent))
	if q == nil {
		return nil
	}
	o := *q.order
	other := c.rng.IntN(2) == 0
	if other {
		o.id += "x"
	}
	a, _, err := c.ask(ctx, c.rng.IntN(len(c.shops)), &o, q)
	switch {
	case err != nil || a.status >= 500:
		return nil // no answer is none
	case other && a.status < 300:
		return &problem{doubleGrant, "the payment also bought " + o.id, q}
	case !other && a.status < 300 && string(a.body) != goods(&o):
		return &problem{doubleGrant, fmt.Sprintf("the payment bought something else when it was used again: %.60q", a.body), q}
	case a.status == http.StatusPaymentRequired:
		c.book.refusedWith(q, "for a payment that was served: "+a.reason())
	}
	return nil
}

// An answer is a response that has arrived whole.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// receipt returns the settlement that the answer carries, in whatever version.
func (a *answer) receipt() string {
	for _, name := range []string{payment.HeaderResponse, payment.HeaderResponseV1} {
		if doc := decodeBase64(a.header.Get(name)); doc != "" {
			return doc
		}
	}
	return ""
}

// reason returns what the answer says in words.
func (a *answer) reason() string {
	text := a.receipt()
	if text == "" {
		text = string(a.body)
	}
	return fmt.Sprintf("%.300s", text)
}

// ask sends an order to an instance, with a payment or, if q is nil, without
// one. sent reports whether the instance was there to be sent it.
func (c *client) ask(ctx context.Context, at int, o *order, q *cheque) (_ *answer, sent bool, _ error) {
	var body io.Reader
	if content := o.content(); content != "" {
		body = strings.NewReader(content)
	}
	var wrote atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(i httptrace.WroteRequestInfo) {
		if i.Err == nil {
			wrote.Store(true)
		}
	}})
	req, err := http.NewRequestWithContext(traced, o.method, c.shops[at]+o.path(), body)
	if err != nil {
		return nil, false, err
	}
	req.Host = host
	req.GetBody = nil // the transport repeats nothing on its own: what is repeated is counted here
	if q != nil {
		req.Header.Set(q.header, q.value)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, wrote.Load(), err
	}
	defer resp.Body.Close()
	a := &answer{status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return a, true, err
}

// host is what the shop is called, whichever instance is asked: a payment is
// bound to it.
const host = "shop.test"

// slow is the kind of error of an instance that takes too long to answer.
const slow = "deadline exceeded"

// kindOf shortens the text of a transport error, so that repetitions look the
// same.
func kindOf(err error) string {
	text := err.Error()
	for _, kind := range []string{"connection refused", "connection reset", "EOF", slow, "broken pipe"} {
		if strings.Contains(text, kind) {
			return kind
		}
	}
	return text
}
