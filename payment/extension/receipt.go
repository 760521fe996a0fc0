package extension

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/strictjson"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A SignedOffer is what a seller puts its name to about an offer (extension
// offer-receipt): that this resource costs this much. Whether its signer may
// speak for the resource is the reader's to decide; the simplest rule is that
// it is the one who is paid.
type SignedOffer struct {
	Resource string // URL
	Scheme   payment.Scheme
	Network  payment.Network
	Asset    string
	PayTo    string
	Amount   string // atomic units
	Until    uint64 // unix seconds; 0 says nothing
}

// A SignedReceipt is what a seller puts its name to about a payment: that this
// payer has been given this resource for its money.
type SignedReceipt struct {
	Network     payment.Network
	Resource    string // URL
	Payer       string
	Issued      uint64 // unix seconds
	Transaction string // hash; empty says nothing
}

// signedVersion is the version of both.
const signedVersion = 1

// An AgreementSigner signs offers and receipts with the seller's key. It is
// given the whole of what it signs, never a digest.
type AgreementSigner interface {
	Address() common.Address
	SignOffer(ctx context.Context, o *SignedOffer) ([]byte, error)
	SignReceipt(ctx context.Context, r *SignedReceipt) ([]byte, error)
}

// Type hashes of EIP-712 and of what is signed.
var (
	domainTypeHash  = crypto.Keccak256Hash([]byte("EIP712Domain(string name,string version,uint256 chainId)"))
	offerTypeHash   = crypto.Keccak256Hash([]byte("Offer(uint256 version,string resourceUrl,string scheme,string network,string asset,string payTo,string amount,uint256 validUntil)"))
	receiptTypeHash = crypto.Keccak256Hash([]byte("Receipt(uint256 version,string network,string resourceUrl,string payer,uint256 issuedAt,string transaction)"))

	offerSeparator   = separator("x402 offer")
	receiptSeparator = separator("x402 receipt")
)

// separator returns the separator of a domain, which is on chain 1 whatever
// is paid on.
func separator(name string) common.Hash {
	return crypto.Keccak256Hash(domainTypeHash[:], crypto.Keccak256([]byte(name)), crypto.Keccak256([]byte("1")), word(1))
}

// word returns n as EIP-712 hashes it.
func word(n uint64) []byte {
	var b [32]byte
	binary.BigEndian.PutUint64(b[24:], n)
	return b[:]
}

// typed returns the EIP-712 digest of a struct whose members are given as
// they are hashed.
func typed(domain, kind common.Hash, members ...[]byte) common.Hash {
	doc := append([]byte{}, kind[:]...)
	for _, m := range members {
		doc = append(doc, m...)
	}
	return crypto.Keccak256Hash([]byte{0x19, 1}, domain[:], crypto.Keccak256(doc))
}

// Digest returns what is signed for the offer (EIP-712).
func (o *SignedOffer) Digest() common.Hash {
	return typed(offerSeparator, offerTypeHash, word(signedVersion), hash(o.Resource), hash(string(o.Scheme)), hash(string(o.Network)),
		hash(o.Asset), hash(o.PayTo), hash(o.Amount), word(o.Until))
}

// Digest returns what is signed for the receipt (EIP-712).
func (r *SignedReceipt) Digest() common.Hash {
	return typed(receiptSeparator, receiptTypeHash, word(signedVersion), hash(string(r.Network)), hash(r.Resource), hash(r.Payer),
		word(r.Issued), hash(r.Transaction))
}

func hash(s string) []byte { return crypto.Keccak256([]byte(s)) }

// Wire forms.
type signedOffer struct {
	Version     int            `json:"version"`
	ResourceURL string         `json:"resourceUrl"`
	Scheme      payment.Scheme `json:"scheme"`
	Network     string         `json:"network"`
	Asset       string         `json:"asset"`
	PayTo       string         `json:"payTo"`
	Amount      string         `json:"amount"`
	ValidUntil  uint64         `json:"validUntil"`
}

type signedReceipt struct {
	Version     int    `json:"version"`
	Network     string `json:"network"`
	ResourceURL string `json:"resourceUrl"`
	Payer       string `json:"payer"`
	IssuedAt    uint64 `json:"issuedAt"`
	Transaction string `json:"transaction"`
}

type sealedOffer struct {
	Format      string      `json:"format"`
	AcceptIndex int         `json:"acceptIndex"`
	Payload     signedOffer `json:"payload"`
	Signature   string      `json:"signature"`
}

type sealedReceipt struct {
	Format    string        `json:"format"`
	Payload   signedReceipt `json:"payload"`
	Signature string        `json:"signature"`
}

// format is how what is signed here is encoded and signed.
const format = "eip712"

// OfferFor returns what is to be signed about an offer for the resource at
// url.
func OfferFor(url string, o *payment.Offer) *SignedOffer {
	return &SignedOffer{
		Resource: url, Scheme: o.Scheme, Network: o.Network(), Asset: o.Amount.Token().Address, PayTo: o.PayTo, Amount: o.Amount.Units(),
	}
}

// SignOffers returns the extension offer-receipt of a challenge for the
// resource at url: every one of its offers, signed.
func SignOffers(ctx context.Context, s AgreementSigner, url string, offers []payment.Offer) (Extension, error) {
	info := struct {
		Offers []sealedOffer `json:"offers"`
	}{Offers: make([]sealedOffer, 0, len(offers))}
	for i := range offers {
		o := OfferFor(url, &offers[i])
		signature, err := s.SignOffer(ctx, o)
		if err != nil {
			return Extension{}, err
		}
		info.Offers = append(info.Offers, sealedOffer{
			format, i, signedOffer{signedVersion, o.Resource, o.Scheme, string(o.Network), o.Asset, o.PayTo, o.Amount, o.Until}, "0x" + hex.EncodeToString(signature),
		})
	}
	return Extension{Name: OfferReceipt, Info: encode(info)}, nil
}

// SignReceipt returns the extensions of a settlement: the receipt, signed.
func SignReceipt(ctx context.Context, s AgreementSigner, r *SignedReceipt) (json.RawMessage, error) {
	signature, err := s.SignReceipt(ctx, r)
	if err != nil {
		return nil, err
	}
	e := Extension{Name: OfferReceipt, Info: encode(struct {
		Receipt sealedReceipt `json:"receipt"`
	}{sealedReceipt{format, signedReceipt{signedVersion, string(r.Network), r.Resource, r.Payer, r.Issued, r.Transaction}, "0x" + hex.EncodeToString(signature)}})}
	return Encode(e)
}

// A Signed is a signed document together with who signed it.
type Signed[T SignedOffer | SignedReceipt] struct {
	Document T
	Signer   common.Address
}

// maxOffers is how many signed offers of one challenge are read.
const maxOffers = 64

// ReadOffers reads the signed offers among the extensions of a challenge.
// Formats that are not known are left out; an offer that is not as it was
// signed is told by its Signer, who is nobody that anybody knows.
func ReadOffers(extensions json.RawMessage) ([]Signed[SignedOffer], error) {
	info, ok, err := info(extensions, OfferReceipt)
	if err != nil || !ok {
		return nil, malformed(err)
	}
	list, err := info.Objects("offers", maxOffers)
	if err != nil {
		return nil, malformed(err)
	}
	var signed []Signed[SignedOffer]
	for _, o := range list {
		payload, signature, ok, err := sealed(o)
		if err != nil {
			return nil, malformed(err)
		}
		if !ok {
			continue
		}
		var d SignedOffer
		var scheme, network string
		if err := texts(payload, []textMember{
			{"resourceUrl", &d.Resource}, {"scheme", &scheme}, {"network", &network}, {"asset", &d.Asset}, {"payTo", &d.PayTo}, {"amount", &d.Amount},
		}); err != nil {
			return nil, malformed(err)
		}
		d.Scheme, d.Network = payment.Scheme(scheme), payment.Network(network)
		if d.Until, err = whole(payload, "validUntil"); err != nil {
			return nil, malformed(err)
		}
		signer, err := evm.Recover(d.Digest(), signature)
		if err != nil {
			return nil, malformed(o.Wrong("signature", err.Error()))
		}
		signed = append(signed, Signed[SignedOffer]{d, signer})
	}
	return signed, nil
}

// ReadReceipt reads the signed receipt among the extensions of a settlement.
// It returns nil where there is none of a format that is known.
func ReadReceipt(extensions json.RawMessage) (*Signed[SignedReceipt], error) {
	info, ok, err := info(extensions, OfferReceipt)
	if err != nil || !ok {
		return nil, malformed(err)
	}
	o, err := info.Object("receipt")
	if err != nil {
		return nil, malformed(err)
	}
	payload, signature, ok, err := sealed(o)
	if err != nil || !ok {
		return nil, malformed(err)
	}
	var d SignedReceipt
	var network string
	if err := texts(payload, []textMember{{"network", &network}, {"resourceUrl", &d.Resource}, {"payer", &d.Payer}, {"transaction", &d.Transaction}}); err != nil {
		return nil, malformed(err)
	}
	d.Network = payment.Network(network)
	if d.Issued, err = whole(payload, "issuedAt"); err != nil {
		return nil, malformed(err)
	}
	signer, err := evm.Recover(d.Digest(), signature)
	if err != nil {
		return nil, malformed(o.Wrong("signature", err.Error()))
	}
	return &Signed[SignedReceipt]{d, signer}, nil
}

// sealed returns payload and signature of something signed; ok is false where
// its format is not known.
func sealed(o strictjson.Object) (payload strictjson.Object, signature []byte, ok bool, err error) {
	kind, err := o.Text("format")
	if err != nil || kind != format {
		return payload, nil, false, err
	}
	if payload, err = o.Object("payload"); err != nil {
		return payload, nil, false, err
	}
	if v, err := payload.Integer("version", 1<<20); err != nil || v != signedVersion {
		return payload, nil, false, err
	}
	s, err := o.Text("signature")
	if err != nil {
		return payload, nil, false, err
	}
	signature, err = hex.DecodeString(strings.TrimPrefix(s, "0x"))
	if err != nil {
		return payload, nil, false, o.Wrong("signature", "must be hex")
	}
	return payload, signature, true, nil
}

type textMember struct {
	name string
	to   *string
}

// texts reads members that must be strings.
func texts(o strictjson.Object, members []textMember) error {
	for _, m := range members {
		var err error
		if *m.to, err = o.Text(m.name); err != nil {
			return err
		}
	}
	return nil
}

// whole reads a member that is a number of seconds, or such a number in a
// string, as JavaScript writes large ones.
func whole(o strictjson.Object, name string) (uint64, error) {
	raw, ok := o.Value(name)
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseUint(strings.Trim(string(raw), `"`), 10, 64)
	if err != nil {
		return 0, o.Wrong(name, "must be whole seconds")
	}
	return n, nil
}
