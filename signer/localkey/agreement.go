package localkey

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment/extension"
)

// SignOffer signs what a seller says about an offer. It moves no money.
func (k *Key) SignOffer(_ context.Context, o *extension.SignedOffer) ([]byte, error) {
	return k.agree(o.Digest())
}

// SignReceipt signs what a seller says about a payment. It moves no money.
func (k *Key) SignReceipt(_ context.Context, r *extension.SignedReceipt) ([]byte, error) {
	return k.agree(r.Digest())
}

func (k *Key) agree(digest common.Hash) ([]byte, error) {
	signature, err := crypto.Sign(digest[:], k.private)
	if err != nil {
		return nil, fmt.Errorf("localkey: signing an offer or a receipt: %w", err)
	}
	signature[crypto.RecoveryIDOffset] += 27
	return signature, nil
}

var _ extension.AgreementSigner = (*Key)(nil)
