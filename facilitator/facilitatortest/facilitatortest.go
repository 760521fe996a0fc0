// Package facilitatortest has what the tests of facilitators share: payers
// and lanes whose keys are in memory, payments as they come over the wire,
// and a client that knows its chain.
package facilitatortest

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A Lane signs calls. It implements payment.CallSigner.
type Lane struct{ Key *ecdsa.PrivateKey }

// Address implements payment.CallSigner.
func (l Lane) Address() common.Address { return crypto.PubkeyToAddress(l.Key.PublicKey) }

// SignCall implements payment.CallSigner.
func (l Lane) SignCall(ctx context.Context, c *payment.LaneCall) ([]byte, error) {
	id := new(big.Int).SetUint64(c.ChainID)
	tx, err := types.SignNewTx(l.Key, types.LatestSignerForChainID(id), &types.DynamicFeeTx{
		ChainID: id, Nonce: c.Nonce, To: &c.To, Data: c.Data, Gas: c.Gas, GasFeeCap: c.GasFeeCap, GasTipCap: c.GasTipCap,
	})
	if err != nil {
		return nil, err
	}
	return tx.MarshalBinary()
}

// Authorize returns what the owner of key signs for o: a transfer that is
// valid from now on, until so many seconds have passed since now, which is in
// unix seconds.
func Authorize(t testing.TB, key *ecdsa.PrivateKey, o *payment.Offer, now, seconds int64) *evm.Transfer {
	t.Helper()
	a := evm.Authorization{
		From: crypto.PubkeyToAddress(key.PublicKey), To: common.HexToAddress(o.PayTo), Value: o.Amount.Big(),
		ValidAfter: new(big.Int), ValidBefore: big.NewInt(now + seconds),
	}
	if _, err := rand.Read(a.Nonce[:]); err != nil {
		t.Fatal(err)
	}
	return Sign(t, key, a, o.Amount.Token())
}

// Sign signs an authorization as it stands.
func Sign(t testing.TB, key *ecdsa.PrivateKey, a evm.Authorization, token payment.Token) *evm.Transfer {
	t.Helper()
	digest := a.Digest(evm.DomainOf(token).Separator())
	signature, err := crypto.Sign(digest[:], key)
	if err != nil {
		t.Fatal(err)
	}
	signature[64] += 27
	return &evm.Transfer{Authorization: a, Signature: signature}
}

// Header returns the request header in which a client that was offered o
// sends a payment.
func Header(t testing.TB, version int, o *payment.Offer, transfer *evm.Transfer) (name, value string) {
	t.Helper()
	return header(t, version, o, transfer.Encode())
}

func header(t testing.TB, version int, o *payment.Offer, payload json.RawMessage) (name, value string) {
	t.Helper()
	prepared, err := (&payment.Challenge{Offers: []payment.Offer{*o}}).Prepare()
	if err != nil {
		t.Fatal(err)
	}
	const url = "https://shop.example/"
	challenge, err := payment.DecodeRequired(prepared.V2(url, payment.PaymentRequired))
	if version == payment.V1 {
		challenge, err = payment.DecodeRequiredBody(prepared.V1(url, payment.PaymentRequired))
	}
	if err != nil || len(challenge.Offers) != 1 {
		t.Fatalf("the challenge has offers %v, %v", challenge, err)
	}
	return challenge.Pay(&challenge.Offers[0], payload).Header()
}

// Payment returns a payment as it is decoded from that header.
func Payment(t testing.TB, version int, o *payment.Offer, transfer *evm.Transfer) *payment.Payment {
	t.Helper()
	name, value := Header(t, version, o, transfer)
	v2, v1 := []string{value}, []string(nil)
	if name == payment.HeaderPaymentV1 {
		v2, v1 = v1, v2
	}
	p, err := payment.FromHeader(v2, v1)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// USDC returns the token of Base Sepolia, and of the chain that tests run on.
func USDC(t testing.TB) payment.Token {
	t.Helper()
	token, ok := payment.USDC(payment.EVM(84532))
	if !ok {
		t.Fatal("no USDC")
	}
	return token
}

// Offer returns an offer of so many atomic units to an account.
func Offer(t testing.TB, units int64, payTo common.Address) payment.Offer {
	t.Helper()
	amount, err := payment.NewAmount(big.NewInt(units), USDC(t))
	if err != nil {
		t.Fatal(err)
	}
	return payment.Offer{Scheme: payment.Exact, Amount: amount, PayTo: payTo.Hex(), Timeout: time.Minute}
}

// Client returns a client of the node at url that knows its head. It looks
// often, so that tests need not wait, and is patient with a busy machine.
func Client(t testing.TB, url string) *chain.Client {
	t.Helper()
	c, err := chain.New(chain.Config{ChainID: 84532, Endpoints: []string{url}, PollInterval: 5 * time.Millisecond, CallTimeout: 15 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := c.WaitHead(ctx, common.Hash{}); err != nil {
		t.Fatal(err)
	}
	return c
}
