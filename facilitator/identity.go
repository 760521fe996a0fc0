package facilitator

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// An Identity says which payment a message is, without saying whether it is
// good.
type Identity struct {
	Key   payment.Key // what the chain dedupes on
	Payer string      // who the message says has signed

	// Proof is a hash of everything that was signed and of the signature.
	// Key can be made up by anybody who has seen the chain; what has been
	// bought with a payment is given only to a message with the same Proof.
	Proof payment.Fingerprint
}

// Identify reads the identity of a payment for o. Its errors are
// *payment.MalformedError and *payment.InvalidError.
func Identify(p *payment.Payment, o *payment.Offer) (Identity, error) {
	if _, ok := o.Network().ChainID(); !ok {
		return Identity{}, payment.Invalid(payment.UnsupportedScheme, fmt.Sprintf("%s on %s cannot be paid here", o.Scheme, o.Network()))
	}
	signed, err := evm.ReadInstrument(p, o)
	if err != nil {
		return Identity{}, err
	}
	return identityOf(signed, o.Network()), nil
}

func identityOf(signed *evm.Instrument, n payment.Network) Identity {
	id, _ := n.ChainID()
	return Identity{Key: signed.Key(id), Payer: signed.Payer.Hex(), Proof: signed.Proof()}
}

// bindingOf is what a payment is bound to when it comes through the
// facilitator API: the offer.
func bindingOf(o *payment.Offer) payment.Fingerprint {
	doc, err := json.Marshal([]string{
		"offer", string(o.Scheme), string(o.Network()), o.Amount.Token().Address, o.Amount.Units(), o.PayTo,
	})
	if err != nil {
		panic("facilitator: encoding strings failed: " + err.Error())
	}
	return sha256.Sum256(doc)
}
