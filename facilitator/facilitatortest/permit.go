package facilitatortest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// UptoFacilitator is the account that a Fake settles upto from.
var UptoFacilitator = common.HexToAddress("0x00000000000000000000000000000000FacADe01")

// UptoOffer returns an offer by upto of at most so many atomic units to an
// account.
func UptoOffer(t testing.TB, units int64, payTo common.Address) payment.Offer {
	t.Helper()
	o := Offer(t, units, payTo)
	o.Scheme = payment.Upto
	o.Extra = map[string]json.RawMessage{
		"assetTransferMethod": json.RawMessage(`"permit2"`),
		"facilitatorAddress":  json.RawMessage(`"` + UptoFacilitator.Hex() + `"`),
	}
	return o
}

// Permit returns what the owner of key signs for an offer by upto: a permit
// that is valid from now on, until so many seconds have passed since now,
// which is in unix seconds.
func Permit(t testing.TB, key *ecdsa.PrivateKey, o *payment.Offer, now, seconds int64) *evm.SignedPermit {
	t.Helper()
	var nonce [32]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		t.Fatal(err)
	}
	p := evm.Permit{
		Scheme: payment.Upto, From: crypto.PubkeyToAddress(key.PublicKey), Token: common.HexToAddress(o.Amount.Token().Address),
		Amount: o.Amount.Big(), Spender: evm.UptoProxy, Nonce: new(big.Int).SetBytes(nonce[:]), Deadline: big.NewInt(now + seconds),
		To: common.HexToAddress(o.PayTo), Facilitator: UptoFacilitator, ValidAfter: new(big.Int),
	}
	id, _ := o.Network().ChainID()
	digest := p.Digest(evm.Permit2Separator(id))
	signature, err := crypto.Sign(digest[:], key)
	if err != nil {
		t.Fatal(err)
	}
	signature[64] += 27
	return &evm.SignedPermit{Permit: p, Signature: signature}
}

// PermitHeader returns the request header in which a client that was offered
// o sends a permit.
func PermitHeader(t testing.TB, o *payment.Offer, permit *evm.SignedPermit) (name, value string) {
	t.Helper()
	return header(t, payment.V2, o, permit.Encode())
}
