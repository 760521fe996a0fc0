package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// chat answers as a language model does whose tokens are words: as many as
// ?tokens= says, each in an event of its own, and at the end how many there
// were. Without a number it goes on for as long as somebody listens.
func (s *sandbox) chat(w http.ResponseWriter, r *http.Request) {
	s.grants.Add(1)
	most, err := strconv.Atoi(r.URL.Query().Get("tokens"))
	if err != nil || most < 0 {
		most = 1 << 20
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	out := http.NewResponseController(w)
	words := strings.Fields("the tide comes in and the tide goes out and nobody has ever been charged for it before")
	for i := range most {
		_, err := fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":%q}}]}\n\n", words[i%len(words)]+" ")
		if err = errors.Join(err, out.Flush()); err != nil || r.Context().Err() != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Fprintf(w, "data: {\"usage\":{\"total_tokens\":%d}}\n\ndata: [DONE]\n\n", most)
}

// A chatted is what happened when the sandbox bought a stream from itself.
type chatted struct {
	Tokens      int
	Whole       bool // the stream came to its end by itself
	Maximum     string
	Charged     string
	Transaction string
}

// buyChat buys a stream by upto, as a payer who has neither gas nor an allowance
// for Permit2: it signs a maximum, and an approval of that.
func (s *sandbox) buyChat(ctx context.Context, query string) (*chatted, error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	url := strings.TrimSuffix(s.paidURL(), "/weather") + "/chat" + query
	unpaid, err := get(ctx, url, nil)
	if err != nil {
		return nil, err
	}
	challenge, err := payment.DecodeRequired(unpaid.header.Get(payment.HeaderRequired))
	if err != nil {
		return nil, err
	}
	if len(challenge.Offers) != 1 || challenge.Offers[0].Scheme != payment.Upto {
		return nil, fmt.Errorf("%s should be offered by upto", url)
	}
	o := &challenge.Offers[0]
	permit, err := s.permit(&o.Offer)
	if err != nil {
		return nil, err
	}
	draft := challenge.Pay(o, permit.Encode())
	if draft.Extensions, err = s.approval(ctx, &permit.Permit); err != nil {
		return nil, err
	}
	name, value := draft.Header()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(name, value)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<24))
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the stream was answered with %s: %.200s: %w", resp.Status, body, err)
	}
	settled, err := settlementOf(resp.Trailer.Get(payment.HeaderResponse), &o.Offer)
	if err != nil {
		return nil, fmt.Errorf("after the stream: %w", err)
	}
	token, _ := payment.USDC(payment.EVM(s.chain.ChainID()))
	call := &chatted{Tokens: strings.Count(string(body), `"content"`), Whole: strings.Contains(string(body), "[DONE]"), Transaction: settled.Transaction}
	for _, amount := range []struct {
		in *big.Int
		to *string
	}{{o.Amount.Big(), &call.Maximum}, {settled.Amount.Big(), &call.Charged}} {
		a, err := payment.NewAmount(amount.in, token)
		if err != nil {
			return nil, err
		}
		*amount.to = a.String()
	}
	return call, nil
}

// tellChat buys two streams and says what was charged for them.
func (s *sandbox) tellChat(ctx context.Context, say func(format string, args ...string)) error {
	say("5. GET /chat streams, and is priced by the token. The payer signed a maximum (upto, Permit2), and approved that (EIP-2612).")
	for _, c := range []struct{ query, what string }{{"?tokens=40", "A short answer"}, {"", "An answer without end"}} {
		call, err := s.buyChat(ctx, c.query)
		if err != nil {
			return err
		}
		end := "came to its end"
		if !call.Whole {
			end = "was cut when the maximum was spent"
		}
		say("   %s %s after %s tokens: charged %s of at most %s, in transaction %s.", c.what, end, strconv.Itoa(call.Tokens), call.Charged, call.Maximum, call.Transaction)
	}
	say("")
	return nil
}

// permit signs the maximum that an offer by upto asks for.
func (s *sandbox) permit(o *payment.Offer) (*evm.SignedPermit, error) {
	var facilitator string
	if err := json.Unmarshal(o.Extra["facilitatorAddress"], &facilitator); err != nil {
		return nil, fmt.Errorf("the offer does not say who settles it: %w", err)
	}
	var nonce [32]byte
	_, _ = rand.Read(nonce[:]) // never fails
	p := &evm.SignedPermit{Permit: evm.Permit{
		Scheme: payment.Upto, From: s.payer().Address, Token: common.HexToAddress(o.Amount.Token().Address), Amount: o.Amount.Big(),
		Spender: evm.UptoProxy, Nonce: new(big.Int).SetBytes(nonce[:]), Deadline: big.NewInt(time.Now().Add(o.Timeout).Unix()),
		To: common.HexToAddress(o.PayTo), Facilitator: common.HexToAddress(facilitator), ValidAfter: new(big.Int),
	}}
	var err error
	p.Signature, err = s.signed(p.Digest(evm.Permit2Separator(s.chain.ChainID())))
	return p, err
}

// approval signs that Permit2 may move what a permit moves, as the extensions of
// a payment.
func (s *sandbox) approval(ctx context.Context, p *evm.Permit) (json.RawMessage, error) {
	nonce, err := s.chain.Call(ctx, p.Token, evm.NoncesCall(p.From))
	if err != nil {
		return nil, err
	}
	token, _ := payment.USDC(payment.EVM(s.chain.ChainID()))
	a := &evm.Approval{From: p.From, Token: p.Token, Spender: evm.Permit2, Value: p.Amount, Nonce: new(big.Int).SetBytes(nonce), Deadline: p.Deadline}
	if a.Signature, err = s.signed(a.Digest(evm.DomainOf(token).Separator())); err != nil {
		return nil, err
	}
	return json.RawMessage(`{"` + evm.Sponsoring + `":{"info":` + string(a.Encode()) + `}}`), nil
}

func (s *sandbox) signed(digest common.Hash) ([]byte, error) {
	signature, err := crypto.Sign(digest[:], s.payer().Key)
	if err != nil {
		return nil, err
	}
	signature[crypto.RecoveryIDOffset] += 27
	return signature, nil
}
