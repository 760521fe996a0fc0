package facilitator_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A silent node knows the head and answers nothing.
type silentNode struct{ asked chan struct{} }

func (n silentNode) Head() (chain.Head, error) {
	return chain.Head{Number: 1, Hash: common.Hash{1}, Time: now}, nil
}

func (n silentNode) Ask(ctx context.Context, _ ...chain.Request) error {
	n.asked <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

func TestNobodyWaitsForAnothersQuestionBeyondTheirOwnDeadline(t *testing.T) {
	node := silentNode{asked: make(chan struct{}, 2)}
	f, err := facilitator.NewEmbedded(ledger.New(ledger.NewMemory(), "one", time.Now), []facilitator.Market{
		{Network: payment.EVM(84532), Tokens: []payment.Token{facilitatortest.USDC(t)}, Chain: node},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	offer := facilitatortest.Offer(t, 1000, devchain.DeriveAccount("seller").Address)
	verify := func(ctx context.Context) error {
		p := facilitatortest.Payment(t, payment.V2, &offer, facilitatortest.Authorize(t, devchain.DeriveAccount("payer").Key, &offer, now, 3600))
		_, err := f.Verify(ctx, p, &offer)
		return err
	}
	patient, giveUp := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- verify(patient) }() // ends with patient
	<-node.asked

	hasty, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	second := make(chan error, 1)
	go func() { second <- verify(hasty) }() // ends with hasty
	var unavailable *payment.UnavailableError
	select {
	case err := <-second:
		if !errors.As(err, &unavailable) || unavailable.Pending {
			t.Errorf("got %v, want that it is not known", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the second payer still waits for the first one's question")
	}
	giveUp()
	if err := <-first; !errors.As(err, &unavailable) {
		t.Errorf("got %v, want that it is not known", err)
	}
}
