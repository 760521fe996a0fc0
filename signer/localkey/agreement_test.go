package localkey_test

import (
	"testing"

	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/payment/extension"
	"github.com/tollgate402/tollgate/signer/localkey"
)

func TestOffersAndReceiptsAreTheKeysOwn(t *testing.T) {
	k, err := localkey.Parse("59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d")
	if err != nil {
		t.Fatal(err)
	}
	o := &extension.SignedOffer{Resource: "https://a.example/", Amount: "1"}
	signature, err := k.SignOffer(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if signer, err := evm.Recover(o.Digest(), signature); err != nil || signer != k.Address() {
		t.Errorf("the offer is signed by %s, %v", signer, err)
	}
	r := &extension.SignedReceipt{Resource: "https://a.example/", Issued: 1}
	if signature, err = k.SignReceipt(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if signer, err := evm.Recover(r.Digest(), signature); err != nil || signer != k.Address() {
		t.Errorf("the receipt is signed by %s, %v", signer, err)
	}
}
