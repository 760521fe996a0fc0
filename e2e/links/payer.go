package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"
)

// A transfer is an authorization (EIP-3009) of a payer, and its signature.
type transfer struct {
	from, to, nonce             string
	value, after, before        int64
	signature                   []byte
	name, version, contract     string // of the token, as the link says
	chain                       int64
	numbersAsText, inThreeParts bool // how it is written in the older API
}

// sign authorizes what a link asks for as a wallet does, changed before it is
// signed. payer is the label of an account, or a private key.
func (w *world) sign(a accept, payer string, change func(*transfer)) (*transfer, error) {
	if key := w.key(payer); key != "" {
		payer = key
	}
	key, err := crypto.HexToECDSA(strings.TrimPrefix(payer, "0x"))
	if err != nil {
		return nil, err
	}
	value, err := strconv.ParseInt(a.Amount, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("the amount of a link: %w", err)
	}
	var nonce [32]byte
	_, _ = rand.Read(nonce[:]) // never fails
	t := &transfer{
		from: crypto.PubkeyToAddress(key.PublicKey).Hex(), to: a.Recipient, nonce: hexutil.Encode(nonce[:]), value: value, before: time.Now().Add(10 * time.Minute).Unix(),
		name: a.Name, version: a.Version, contract: a.VerifyingContract, chain: a.ChainID,
	}
	if change != nil {
		change(t)
	}
	digest, _, err := apitypes.TypedDataAndHash(t.typed())
	if err != nil {
		return nil, err
	}
	if t.signature, err = crypto.Sign(digest, key); err != nil {
		return nil, err
	}
	t.signature[crypto.RecoveryIDOffset] += 27
	return t, nil
}

func (t *transfer) typed() apitypes.TypedData {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	return apitypes.TypedData{
		Types: apitypes.Types{
			"EIP712Domain": {{Name: "name", Type: "string"}, {Name: "version", Type: "string"}, {Name: "chainId", Type: "uint256"}, {Name: "verifyingContract", Type: "address"}},
			"TransferWithAuthorization": {
				{Name: "from", Type: "address"},
				{Name: "to", Type: "address"},
				{Name: "value", Type: "uint256"},
				{Name: "validAfter", Type: "uint256"},
				{Name: "validBefore", Type: "uint256"},
				{Name: "nonce", Type: "bytes32"},
			},
		},
		PrimaryType: "TransferWithAuthorization",
		Domain:      apitypes.TypedDataDomain{Name: t.name, Version: t.version, ChainId: (*math.HexOrDecimal256)(big.NewInt(t.chain)), VerifyingContract: t.contract},
		Message: apitypes.TypedDataMessage{
			"from": t.from, "to": t.to, "value": number(t.value), "validAfter": number(t.after), "validBefore": number(t.before), "nonce": t.nonce,
		},
	}
}

// old writes a transfer as the body of POST <link>/pay.
func (t *transfer) old(network string) string {
	number := func(n int64) string {
		if t.numbersAsText {
			return strconv.Quote(strconv.FormatInt(n, 10))
		}
		return strconv.FormatInt(n, 10)
	}
	signature := fmt.Sprintf(`"signature":"%s"`, hexutil.Encode(t.signature))
	if t.inThreeParts {
		signature = fmt.Sprintf(`"v":%d,"r":"%s","s":"%s"`, t.signature[64], hexutil.Encode(t.signature[:32]), hexutil.Encode(t.signature[32:64]))
	}
	return fmt.Sprintf(`{"network":%q,"payload":{"from":%q,"to":%q,"value":%s,"nonce":%q,"validAfter":%s,"validBefore":%s,%s}}`,
		network, t.from, t.to, number(t.value), t.nonce, number(t.after), number(t.before), signature)
}

// payload writes a transfer as x402 does in both versions.
func (t *transfer) payload() string {
	return fmt.Sprintf(`{"signature":"%s","authorization":{"from":%q,"to":%q,"value":"%d","validAfter":"%d","validBefore":"%d","nonce":%q}}`,
		hexutil.Encode(t.signature), t.from, t.to, t.value, t.after, t.before, t.nonce)
}

// headerV1 is the value of X-PAYMENT.
func (t *transfer) headerV1(network string) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `{"x402Version":1,"scheme":"exact","network":%q,"payload":%s}`, network, t.payload()))
}

// headerV2 is the value of PAYMENT-SIGNATURE for the first offer of a challenge.
func (t *transfer) headerV2(challenge string) (string, error) {
	doc, err := base64.StdEncoding.DecodeString(challenge)
	if err != nil {
		return "", fmt.Errorf("PAYMENT-REQUIRED: %w", err)
	}
	var required struct {
		Resource json.RawMessage
		Accepts  []json.RawMessage
	}
	if err := json.Unmarshal(doc, &required); err != nil || len(required.Accepts) == 0 {
		return "", fmt.Errorf("PAYMENT-REQUIRED has no offer: %s", doc)
	}
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `{"x402Version":2,"resource":%s,"accepted":%s,"payload":%s}`, required.Resource, required.Accepts[0], t.payload())), nil
}

var hash = regexp.MustCompile(`^0x[0-9a-f]{64}$`)

// What POST <link>/pay comes to, in the words of the table.
const (
	accepted = "200 success, moved 50000"
	refused  = " refused, moved 0" // after the status
)

// payOld sends a body to POST <link>/pay and says what came of it. says is a
// word that an error must have.
func (w *world) payOld(ctx context.Context, b *bill, body, says string) (string, error) {
	var a *reply
	moved, err := w.moved(ctx, func() (err error) {
		a, err = w.ask(ctx, http.MethodPost, b.url+"/pay", body)
		return err
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %s, moved %d", a.status, oldWords(a, says), moved), nil
}

// oldWords says whether an answer of the older API is a success, and what is
// wrong with its form.
func oldWords(a *reply, says string) string {
	var doc struct {
		Success   *bool   `json:"success"`
		TxHash    *string `json:"txHash"`
		NetworkID *string `json:"networkId"`
		Error     *string `json:"error"`
	}
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil || doc.Success == nil || doc.TxHash == nil || doc.NetworkID == nil || a.object()["error"] == nil {
		return "in another form: " + a.String()
	}
	switch {
	case *doc.Success && (!hash.MatchString(*doc.TxHash) || *doc.NetworkID != "base-sepolia" || doc.Error != nil):
		return "success in another form: " + a.String()
	case *doc.Success:
		return "success"
	case *doc.TxHash != "" || doc.Error == nil || *doc.Error == "":
		return "refused in another form: " + a.String()
	case !strings.Contains(*doc.Error, says):
		return fmt.Sprintf("refused without the word %q: %s", says, *doc.Error)
	}
	return "refused"
}
