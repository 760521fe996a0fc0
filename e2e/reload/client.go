package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/signer/localkey"
)

// A client buys one thing after another, as a careful program does: whatever
// goes wrong, it sends the same payment again.
type client struct {
	world *world
	name  int
	http  *http.Client

	grants, retries int
	failed          []error
}

func newClient(w *world, name int) *client {
	return &client{world: w, name: name, http: &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}}
}

// shop buys until storm ends. What it has paid for then, it still waits for.
func (c *client) shop(storm, ctx context.Context) {
	for i := 0; storm.Err() == nil; i++ {
		path := fmt.Sprintf("/goods/%d/%d", c.name, i)
		if err := c.buy(ctx, path); err != nil {
			c.failed = append(c.failed, fmt.Errorf("%s: %w", path, err))
			return
		}
		c.grants++
	}
}

// patience is how long a client asks for what it has paid for.
const patience = 60 * time.Second

func (c *client) buy(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	name, value := "", ""
	for {
		got, err := c.ask(ctx, path, name, value)
		switch {
		case ctx.Err() != nil:
			return errors.Join(errors.New("gave up"), ctx.Err(), err)
		case err != nil:
			// A reload resets connections; the payment stays good.
		case got.status == http.StatusOK:
			if got.body != path {
				return fmt.Errorf("got %q", got.body)
			}
			return nil
		case got.status == http.StatusPaymentRequired && value == "":
			if name, value, err = c.sign(ctx, got.header); err != nil {
				return err
			}
			continue
		case got.status == http.StatusServiceUnavailable:
		default:
			return fmt.Errorf("status %d: %s", got.status, got.body)
		}
		c.retries++
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// An answer is a response that has been read.
type answer struct {
	status int
	header http.Header
	body   string
}

func (c *client) ask(ctx context.Context, path, name, value string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.world.site+path, nil)
	if err != nil {
		return answer{}, err
	}
	if value != "" {
		req.Header.Set(name, value)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(body)}, err
}

// sign pays the first offer of a 402.
func (c *client) sign(ctx context.Context, header http.Header) (name, value string, err error) {
	received, err := payment.DecodeRequired(header.Get(payment.HeaderRequired))
	if err != nil {
		return "", "", err
	}
	payer := c.world.chain.Account("payer")
	key, err := localkey.Parse(hex.EncodeToString(crypto.FromECDSA(payer.Key)))
	if err != nil {
		return "", "", err
	}
	offer := &received.Offers[0]
	a := evm.Authorization{
		From: payer.Address, To: common.HexToAddress(offer.PayTo), Value: offer.Amount.Big(),
		ValidAfter: new(big.Int), ValidBefore: big.NewInt(time.Now().Add(10 * time.Minute).Unix()),
	}
	if _, err := rand.Read(a.Nonce[:]); err != nil {
		return "", "", err
	}
	transfer, err := key.SignTransfer(ctx, evm.DomainOf(offer.Amount.Token()), a)
	if err != nil {
		return "", "", err
	}
	name, value = received.Pay(offer, transfer.Encode()).Header()
	return name, value, nil
}
