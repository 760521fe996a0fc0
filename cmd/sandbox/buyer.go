package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/signer/localkey"
)

// A paidCall is what happened when the sandbox bought from itself.
type paidCall struct {
	URL          string `json:"url"`
	Price        string `json:"price"`
	Status       string `json:"status"`
	Pending      int    `json:"pending,omitempty"` // answers that asked for the same payment again
	Body         string `json:"body"`
	Transaction  string `json:"transaction"`
	Token        string `json:"token"`
	PayerBefore  string `json:"payer_before"`
	PayerAfter   string `json:"payer_after"`
	SellerBefore string `json:"seller_before"`
	SellerAfter  string `json:"seller_after"`
}

// pay buys the priced resource, and notes what it did to the balances.
func (s *sandbox) pay(ctx context.Context) (*paidCall, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	token, _ := payment.USDC(payment.EVM(s.chain.ChainID()))
	call := &paidCall{URL: s.paidURL(), Token: token.Address}
	var err error
	if call.PayerBefore, call.SellerBefore, err = s.balances(token); err != nil {
		return nil, err
	}
	got, err := s.buy(ctx, call.URL)
	if err != nil {
		return nil, err
	}
	call.Price, call.Status, call.Pending, call.Body, call.Transaction = got.price, got.status, got.pending, got.body, got.transaction
	if s.hostile {
		if err := bury(ctx, s.chain, call.Transaction); err != nil {
			return nil, err
		}
	}
	call.PayerAfter, call.SellerAfter, err = s.balances(token)
	return call, err
}

// A purchase is what was paid for one URL, and what came back.
type purchase struct {
	price       string
	status      string
	pending     int // answers that asked for the same payment again
	body        string
	transaction string
}

// buy pays for a URL as any client would: it asks, reads the challenge, signs,
// and asks again.
func (s *sandbox) buy(ctx context.Context, url string) (*purchase, error) {
	token, _ := payment.USDC(payment.EVM(s.chain.ChainID()))
	unpaid, err := get(ctx, url, nil)
	if err != nil {
		return nil, err
	}
	if unpaid.code != http.StatusPaymentRequired {
		return nil, fmt.Errorf("the unpaid request was answered with %s, not with 402", unpaid.status)
	}
	challenge, err := payment.DecodeRequired(unpaid.header.Get(payment.HeaderRequired))
	if err != nil {
		return nil, err
	}
	if len(challenge.Offers) == 0 {
		return nil, errors.New("the challenge has no offer that can be read")
	}
	offer := &challenge.Offers[0]
	price, err := payment.NewAmount(offer.Amount.Big(), token)
	if err != nil {
		return nil, err
	}
	transfer, err := sign(ctx, s.payer(), &offer.Offer)
	if err != nil {
		return nil, err
	}
	name, value := challenge.Pay(offer, transfer.Encode()).Header()
	paid, again, err := persist(ctx, url, http.Header{name: {value}})
	if err != nil {
		return nil, err
	}
	got := &purchase{price: price.String(), status: paid.status, pending: again, body: strings.TrimSpace(paid.body)}
	if paid.code != http.StatusOK {
		return nil, fmt.Errorf("the paid request was answered with %s: %s", paid.status, got.body)
	}
	settled, err := settlementOf(paid.header.Get(payment.HeaderResponse), &offer.Offer)
	if err != nil {
		return nil, err
	}
	got.transaction = settled.Transaction
	return got, nil
}

// sign authorizes the transfer that an offer asks for.
func sign(ctx context.Context, payer devchain.Account, o *payment.Offer) (*evm.Transfer, error) {
	a := evm.Authorization{
		From: payer.Address, To: common.HexToAddress(o.PayTo), Value: o.Amount.Big(),
		ValidAfter: new(big.Int), ValidBefore: big.NewInt(time.Now().Add(o.Timeout).Unix()),
	}
	if _, err := rand.Read(a.Nonce[:]); err != nil {
		return nil, err
	}
	key, err := localkey.Parse(keyHex(payer))
	if err != nil {
		return nil, err
	}
	return key.SignTransfer(ctx, evm.DomainOf(o.Amount.Token()), a)
}

// A reply is a response that has been read.
type reply struct {
	code   int
	status string
	header http.Header
	body   string
}

func get(ctx context.Context, url string, header http.Header) (*reply, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, header)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return &reply{resp.StatusCode, resp.Status, resp.Header, string(body)}, err
}

func settlementOf(header string, o *payment.Offer) (*payment.Settlement, error) {
	doc, err := base64.StdEncoding.DecodeString(header)
	if err != nil || !json.Valid(doc) {
		return nil, errors.New("the answer has no readable PAYMENT-RESPONSE")
	}
	return payment.DecodeSettlement(doc, o, o.Amount)
}

func (s *sandbox) balances(token payment.Token) (payer, seller string, err error) {
	for _, b := range []struct {
		account devchain.Account
		to      *string
	}{{s.payer(), &payer}, {s.seller(), &seller}} {
		amount, err := payment.NewAmount(s.chain.USDCBalance(b.account.Address), token)
		if err != nil {
			return "", "", err
		}
		*b.to = amount.String()
	}
	return payer, seller, nil
}
