package extension_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/extension"
)

// vectors is what testdata/extensions.json holds.
type vectors struct {
	Echo []struct {
		Name               string
		Advertised, Echoed json.RawMessage
		Reference          struct{ Valid bool }
	}
	SIWX struct {
		Message, Eip191Digest, Signature, Signer, Header string
	}
	OfferReceipt struct {
		Offer, Receipt struct {
			Payload                   json.RawMessage
			Digest, Signature, Signer string
		}
	}
}

func readVectors(t testing.TB) vectors {
	t.Helper()
	doc, err := os.ReadFile("testdata/extensions.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(doc, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// vectorKey is the key of a label.
type vectorKey string

func (k vectorKey) sign(t testing.TB, digest common.Hash) []byte {
	t.Helper()
	key, err := crypto.ToECDSA(crypto.Keccak256([]byte("x402-vector/" + string(k))))
	if err != nil {
		t.Fatal(err)
	}
	signature, err := crypto.Sign(digest[:], key)
	if err != nil {
		t.Fatal(err)
	}
	signature[64] += 27
	return signature
}

// wantReason checks that err refuses a payment for the given reason.
func wantReason(t *testing.T, err error, reason payment.Reason) {
	t.Helper()
	var invalid *payment.InvalidError
	if !errors.As(err, &invalid) || invalid.Reason != reason {
		t.Errorf("got %v, want %s", err, reason)
	}
}

func TestEchoesAreJudgedAsTheReferenceDoes(t *testing.T) {
	rows := readVectors(t).Echo
	if len(rows) != 6 {
		t.Errorf("%d rows", len(rows))
	}
	for _, row := range rows {
		advertised, err := extension.Advertise(row.Advertised)
		if err != nil {
			t.Fatal(err)
		}
		if string(row.Echoed) == "null" {
			row.Echoed = nil // what package payment makes of null
		}
		err = advertised.Check(row.Echoed)
		if row.Reference.Valid && err != nil {
			t.Errorf("%s: %v", row.Name, err)
		}
		if !row.Reference.Valid {
			wantReason(t, err, payment.ExtensionEchoMismatch)
		}
	}
}

func TestSignInIsReadBuiltAndRecoveredAsInTheVector(t *testing.T) {
	v := readVectors(t).SIWX
	s, err := extension.DecodeSignIn(v.Header)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Message(); got != v.Message {
		t.Errorf("message\n%s\nwant\n%s", got, v.Message)
	}
	if got := s.Digest().Hex(); got != v.Eip191Digest {
		t.Errorf("digest %s, want %s", got, v.Eip191Digest)
	}
	now := time.Date(2026, 9, 21, 13, 47, 0, 0, time.UTC)
	address, err := s.Check("https://api.example.com/premium-data", []payment.Network{"eip155:84532"}, now)
	if err != nil || address != v.Signer {
		t.Errorf("%s, %v", address, err)
	}
	again, err := extension.DecodeSignIn(s.Header())
	if err != nil || again.Message() != v.Message || hex.EncodeToString(again.Signature) != v.Signature[2:] {
		t.Errorf("what is written is read as %+v, %v", again, err)
	}
}

func TestOffersAndReceiptsHaveTheDigestsOfTheVectors(t *testing.T) {
	v := readVectors(t).OfferReceipt
	o := extension.SignedOffer{
		Resource: "https://api.example.com/premium-data", Scheme: "exact", Network: "eip155:84532",
		Asset: "0x036CbD53842c5426634e7929541eC2318f3dCF7e", PayTo: "0x9ABD6cF932170C471d01d746fe796703eDa24890", Amount: "10000",
	}
	if got := o.Digest().Hex(); got != v.Offer.Digest {
		t.Errorf("offer %s, want %s", got, v.Offer.Digest)
	}
	r := extension.SignedReceipt{
		Network: "eip155:84532", Resource: "https://api.example.com/premium-data", Payer: "0xCC9315E4C2EC6d354d42adC84f599f83Ad715631", Issued: 1790000000,
	}
	if got := r.Digest().Hex(); got != v.Receipt.Digest {
		t.Errorf("receipt %s, want %s", got, v.Receipt.Digest)
	}
	offers, err := extension.ReadOffers(json.RawMessage(`{"offer-receipt":{"info":{"offers":[{"format":"jws","signature":"x.y.z"},` +
		`{"format":"eip712","acceptIndex":0,"payload":` + string(v.Offer.Payload) + `,"signature":"` + v.Offer.Signature + `"}]}}}`))
	if err != nil || len(offers) != 1 || offers[0].Document != o || offers[0].Signer.Hex() != v.Offer.Signer {
		t.Errorf("offers %+v, %v", offers, err)
	}
	receipt, err := extension.ReadReceipt(json.RawMessage(`{"offer-receipt":{"info":{"receipt":{"format":"eip712","payload":` +
		strings.Replace(string(v.Receipt.Payload), "1790000000", `"1790000000"`, 1) + `,"signature":"` + v.Receipt.Signature + `"}}}}`))
	if err != nil || receipt.Document != r || receipt.Signer.Hex() != v.Receipt.Signer {
		t.Errorf("receipt %+v, %v", receipt, err)
	}
}

// A testSigner signs with a key of the vectors.
type testSigner struct{ t testing.TB }

func (s testSigner) Address() common.Address {
	return common.HexToAddress("0x9ABD6cF932170C471d01d746fe796703eDa24890")
}

func (s testSigner) SignOffer(_ context.Context, o *extension.SignedOffer) ([]byte, error) {
	return vectorKey("seller").sign(s.t, o.Digest()), nil
}

func (s testSigner) SignReceipt(_ context.Context, r *extension.SignedReceipt) ([]byte, error) {
	return vectorKey("seller").sign(s.t, r.Digest()), nil
}

func TestWhatIsSignedIsReadWithItsSigner(t *testing.T) {
	usdc, _ := payment.USDC("eip155:84532")
	price, err := payment.ParseUnits("10000", usdc)
	if err != nil {
		t.Fatal(err)
	}
	offer := payment.Offer{Scheme: payment.Exact, Amount: price, PayTo: "0x9ABD6cF932170C471d01d746fe796703eDa24890", Timeout: time.Minute}
	e, err := extension.SignOffers(t.Context(), testSigner{t}, "https://a.example/x", []payment.Offer{offer, offer})
	if err != nil {
		t.Fatal(err)
	}
	doc, err := extension.Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	offers, err := extension.ReadOffers(doc)
	if err != nil || len(offers) != 2 || offers[1].Document != *extension.OfferFor("https://a.example/x", &offer) {
		t.Fatalf("%+v, %v", offers, err)
	}
	r := extension.SignedReceipt{Network: "eip155:84532", Resource: "https://a.example/x", Payer: "0x01", Issued: 7, Transaction: "0x02"}
	if doc, err = extension.SignReceipt(t.Context(), testSigner{t}, &r); err != nil {
		t.Fatal(err)
	}
	receipt, err := extension.ReadReceipt(doc)
	if err != nil || receipt.Document != r || receipt.Signer != offers[0].Signer {
		t.Errorf("%+v, %v", receipt, err)
	}
	tampered, err := extension.ReadReceipt([]byte(strings.Replace(string(doc), "0x02", "0x03", 1)))
	if err == nil && tampered.Signer == receipt.Signer {
		t.Error("a receipt that was changed still has its signer")
	}
}

func header(doc string) string { return base64.StdEncoding.EncodeToString([]byte(doc)) }
