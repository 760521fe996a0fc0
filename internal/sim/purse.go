package sim

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/signer/localkey"
)

const (
	price    = 1000 // atomic units; a maximum by upto
	funds    = 8 * price
	maxLanes = 3

	eventPrice = 150 // of one event of what is metered
)

// An instrument is what a payment is signed with.
type instrument int

const (
	byTransfer instrument = iota // exact, EIP-3009
	byPermit                     // exact, Permit2
	byUpto                       // upto, Permit2
)

// A Purse holds keys, and payments that they have signed. Worlds begin at one
// moment, so that all can use the same payments, and none has to be signed
// twice. It is for one world at a time.
type Purse struct {
	token     payment.Token
	lanes     []*localkey.Key
	payers    []*localkey.Key
	private   []*ecdsa.PrivateKey // of the payers, for permits
	seller    common.Address
	sheets    []*sheet // by the number of lanes, from 1
	tickets   map[ticketKey]*ticket
	aggregate aggregate3
}

// A sheet is what a seller with so many lanes asks for.
type sheet struct {
	offers    []payment.Offer // by instrument
	challenge *payment.Prepared
	received  map[int]*payment.Received
}

type ticketKey struct {
	payer, serial, version int
	validity               time.Duration
	instrument             instrument
	lanes                  int // of the seller's
}

// A ticket is a signed payment and the header it is sent in.
type ticket struct {
	auth          authorization
	signed        *evm.Instrument
	header, value string
}

// NewPurse returns a purse with keys made of nothing secret.
func NewPurse() (*Purse, error) {
	token, ok := payment.USDC(payment.EVM(chainID))
	if !ok {
		return nil, fmt.Errorf("sim: no token on %s", payment.EVM(chainID))
	}
	p := &Purse{token: token, seller: common.HexToAddress("0x00000000000000000000000000000000000000aa"), tickets: map[ticketKey]*ticket{}}
	for _, name := range []string{"lane", "lane 2", "lane 3", "payer 1", "payer 2", "payer 3"} {
		secret := sha256.Sum256([]byte("tollgate simulation, " + name))
		key, err := localkey.Parse(hex.EncodeToString(secret[:]))
		if err != nil {
			return nil, err
		}
		private, err := crypto.ToECDSA(secret[:])
		if err != nil {
			return nil, err
		}
		p.payers, p.private = append(p.payers, key), append(p.private, private)
	}
	p.lanes, p.payers, p.private = p.payers[:maxLanes], p.payers[maxLanes:], p.private[maxLanes:]
	for lanes := range maxLanes {
		s, err := p.sheet(p.lanes[lanes].Address())
		if err != nil {
			return nil, err
		}
		p.sheets = append(p.sheets, s)
	}
	var err error
	p.aggregate, err = newAggregate3()
	return p, err
}

// sheet makes the offers of a seller whose lane settles by upto.
func (p *Purse) sheet(lane common.Address) (*sheet, error) {
	amount, err := payment.NewAmount(big.NewInt(price), p.token)
	if err != nil {
		return nil, err
	}
	offer := payment.Offer{Scheme: payment.Exact, Amount: amount, PayTo: p.seller.Hex(), Timeout: time.Minute}
	permit, upto := offer, offer
	permit.Extra = map[string]json.RawMessage{"assetTransferMethod": json.RawMessage(`"permit2"`)}
	upto.Scheme = payment.Upto
	upto.Extra = map[string]json.RawMessage{"facilitatorAddress": json.RawMessage(`"` + lane.Hex() + `"`)}
	s := &sheet{offers: []payment.Offer{byTransfer: offer, byPermit: permit, byUpto: upto}, received: map[int]*payment.Received{}}
	if s.challenge, err = (&payment.Challenge{Offers: s.offers}).Prepare(); err != nil {
		return nil, err
	}
	const url = "https://shop.example/"
	if s.received[payment.V1], err = payment.DecodeRequiredBody(s.challenge.V1(url, payment.PaymentRequired)); err != nil {
		return nil, err
	}
	s.received[payment.V2], err = payment.DecodeRequired(s.challenge.V2(url, payment.PaymentRequired))
	return s, err
}

// ticket returns a payment that is good for some time after the beginning of
// a world.
func (p *Purse) ticket(start time.Time, k ticketKey) (*ticket, error) {
	if t, ok := p.tickets[k]; ok {
		return t, nil
	}
	until := big.NewInt(start.Add(k.validity).Unix())
	nonce := sha256.Sum256(fmt.Appendf(nil, "%v", k))
	t := &ticket{}
	var payload json.RawMessage
	if k.instrument == byTransfer {
		key := p.payers[k.payer]
		transfer, err := key.SignTransfer(context.Background(), evm.DomainOf(p.token), evm.Authorization{
			From: key.Address(), To: p.seller, Value: big.NewInt(price), ValidAfter: new(big.Int), ValidBefore: until, Nonce: nonce,
		})
		if err != nil {
			return nil, err
		}
		t.signed, payload = evm.OfTransfer(common.HexToAddress(p.token.Address), transfer), transfer.Encode()
		t.auth = authorization{from: transfer.From, nonce: nonce}
	} else {
		permit, err := p.permit(k, p.seller, price, new(big.Int).SetBytes(nonce[:]), until)
		if err != nil {
			return nil, err
		}
		t.signed, payload = evm.OfPermit(permit, nil), permit.Encode()
		t.auth = permitAuthorization(&permit.Permit)
	}
	r := p.sheets[k.lanes-1].received[k.version]
	t.header, t.value = r.Pay(&r.Offers[k.instrument], payload).Header()
	t.header = http.CanonicalHeaderKey(t.header)
	p.tickets[k] = t
	return t, nil
}

// permit signs a permit.
func (p *Purse) permit(k ticketKey, to common.Address, units int64, nonce, until *big.Int) (*evm.SignedPermit, error) {
	s := &evm.SignedPermit{Permit: evm.Permit{
		Scheme: payment.Exact, From: p.payers[k.payer].Address(), Token: common.HexToAddress(p.token.Address), Amount: big.NewInt(units),
		Nonce: nonce, Deadline: until, To: to, ValidAfter: new(big.Int),
	}}
	if k.instrument == byUpto {
		s.Scheme, s.Facilitator = payment.Upto, p.lanes[k.lanes-1].Address()
	}
	s.Spender = s.Proxy()
	digest := s.Digest(evm.Permit2Separator(chainID))
	signature, err := crypto.Sign(digest[:], p.private[k.payer])
	if err != nil {
		return nil, err
	}
	signature[crypto.RecoveryIDOffset] += 27
	s.Signature = signature
	return s, nil
}
