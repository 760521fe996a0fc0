package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/payment/link"
	"github.com/tollgate402/tollgate/signer/localkey"
)

// payUntil pays a link as an agent does, by a header, and sends the same
// payment again until the link has a status. It gives up after patience.
func (s *shop) payUntil(ctx context.Context, url string, want link.Status) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	asked, err := s.ask(ctx, url, "", "")
	if err != nil {
		return err
	}
	name, value, err := s.sign(ctx, asked.header)
	if err != nil {
		return fmt.Errorf("paying %s: %w", url, err)
	}
	for {
		got, err := s.ask(ctx, url, name, value)
		if err != nil {
			return fmt.Errorf("paying %s: %w", url, err)
		}
		switch {
		case got.status == want:
			return nil
		case got.status != link.Pending:
			return fmt.Errorf("paying %s: %d: it is %q and not %q: %s", url, got.code, got.status, want, got.body)
		}
	}
}

// An answer is what a program is told of a link.
type answer struct {
	code   int
	header http.Header
	body   []byte
	status link.Status
}

func (s *shop) ask(ctx context.Context, url, name, value string) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if name != "" {
		req.Header.Set(name, value)
	}
	resp, err := s.site.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var doc struct {
		Status link.Status `json:"status"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("%d: %s: %w", resp.StatusCode, body, err)
	}
	return &answer{resp.StatusCode, resp.Header, body, doc.Status}, nil
}

// sign pays the first offer of a 402.
func (s *shop) sign(ctx context.Context, header http.Header) (name, value string, err error) {
	received, err := payment.DecodeRequired(header.Get(payment.HeaderRequired))
	if err != nil {
		return "", "", err
	}
	payer := s.chain.Account("agent")
	key, err := localkey.Parse(hex.EncodeToString(crypto.FromECDSA(payer.Key)))
	if err != nil {
		return "", "", err
	}
	offer := &received.Offers[0]
	a := evm.Authorization{
		From: payer.Address, To: common.HexToAddress(offer.PayTo), Value: offer.Amount.Big(),
		ValidAfter: new(big.Int), ValidBefore: big.NewInt(time.Now().Add(offer.Timeout).Unix()),
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
