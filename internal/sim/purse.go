package sim

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/big"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/signer/localkey"
)

const (
	price    = 1000 // atomic units
	funds    = 8 * price
	maxLanes = 3
)

// A Purse holds keys, and payments that they have signed. Worlds begin at one
// moment, so that all can use the same payments, and none has to be signed
// twice. It is for one world at a time.
type Purse struct {
	token     payment.Token
	lanes     []*localkey.Key
	payers    []*localkey.Key
	seller    common.Address
	offer     payment.Offer
	challenge *payment.Prepared
	received  map[int]*payment.Received
	tickets   map[ticketKey]*ticket
	aggregate aggregate3
}

type ticketKey struct {
	payer, serial, version int
	validity               time.Duration
}

// A ticket is a signed payment and the header it is sent in.
type ticket struct {
	transfer      *evm.Transfer
	header, value string
}

// NewPurse returns a purse with keys made of nothing secret.
func NewPurse() (*Purse, error) {
	token, ok := payment.USDC(payment.EVM(chainID))
	if !ok {
		return nil, fmt.Errorf("sim: no token on %s", payment.EVM(chainID))
	}
	p := &Purse{token: token, seller: common.HexToAddress("0x00000000000000000000000000000000000000aa"), tickets: map[ticketKey]*ticket{}, received: map[int]*payment.Received{}}
	for _, name := range []string{"lane", "lane 2", "lane 3", "payer 1", "payer 2", "payer 3"} {
		key, err := localkey.Parse(fmt.Sprintf("%x", sha256.Sum256([]byte("tollgate simulation, "+name))))
		if err != nil {
			return nil, err
		}
		p.payers = append(p.payers, key)
	}
	p.lanes, p.payers = p.payers[:maxLanes], p.payers[maxLanes:]
	amount, err := payment.NewAmount(big.NewInt(price), token)
	if err != nil {
		return nil, err
	}
	p.offer = payment.Offer{Scheme: payment.Exact, Amount: amount, PayTo: p.seller.Hex(), Timeout: time.Minute}
	if p.challenge, err = (&payment.Challenge{Offers: []payment.Offer{p.offer}}).Prepare(); err != nil {
		return nil, err
	}
	const url = "https://shop.example/"
	if p.received[payment.V1], err = payment.DecodeRequiredBody(p.challenge.V1(url, payment.PaymentRequired)); err != nil {
		return nil, err
	}
	if p.received[payment.V2], err = payment.DecodeRequired(p.challenge.V2(url, payment.PaymentRequired)); err != nil {
		return nil, err
	}
	p.aggregate, err = newAggregate3()
	return p, err
}

// ticket returns a payment that is good for some time after the beginning of
// a world.
func (p *Purse) ticket(start time.Time, k ticketKey) (*ticket, error) {
	if t, ok := p.tickets[k]; ok {
		return t, nil
	}
	key := p.payers[k.payer]
	transfer, err := key.SignTransfer(context.Background(), evm.DomainOf(p.token), evm.Authorization{
		From: key.Address(), To: p.seller, Value: big.NewInt(price), ValidAfter: new(big.Int),
		ValidBefore: big.NewInt(start.Add(k.validity).Unix()), Nonce: sha256.Sum256(fmt.Appendf(nil, "%v", k)),
	})
	if err != nil {
		return nil, err
	}
	t := &ticket{transfer: transfer}
	r := p.received[k.version]
	t.header, t.value = r.Pay(&r.Offers[0], transfer.Encode()).Header()
	t.header = http.CanonicalHeaderKey(t.header)
	p.tickets[k] = t
	return t, nil
}
