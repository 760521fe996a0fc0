package devchain_test

import (
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

func TestThePlainTokenCanBePaidWithByPermit2Only(t *testing.T) {
	t.Parallel()
	chain, _ := startPaused(t)
	payer, seller, facilitator := chain.Account("payer"), chain.Account("seller"), chain.Account("facilitator")
	for name, call := range map[string][]byte{
		"EIP-712":  evm.SeparatorCall(),
		"EIP-2612": evm.NoncesCall(payer.Address),
		"EIP-3009": (&evm.Authorization{From: payer.Address}).AuthorizationStateCall(),
	} {
		if answer, err := chain.Call(t.Context(), devchain.Plain, call); err == nil {
			t.Errorf("%s: it answers %x", name, answer)
		}
	}
	has := chain.PlainBalance(payer.Address)
	if got := number(t, chain, devchain.Plain, evm.BalanceCall(payer.Address)); has.Sign() == 0 || got.Cmp(has) != 0 {
		t.Errorf("the payer has %s, and %s by its storage", got, has)
	}

	s := permit(chain, payment.Exact, payer.Address, seller.Address, 1000, 1)
	s.Token = devchain.Plain
	signPermit(t, chain, s, payer)
	reverts(t, chain, facilitator, &evm.PermitCall{Permit: s}, "TRANSFER_FROM_FAILED")
	data, err := devchain.PlainToken().ABI.Pack("approve", devchain.Permit2, big.NewInt(1000))
	if err != nil {
		t.Fatal(err)
	}
	if r := seal(t, chain, payer, devchain.Plain, data); r.Status != types.ReceiptStatusSuccessful {
		t.Fatal("the approval reverted")
	}
	settled(t, chain, facilitator, &evm.PermitCall{Permit: s})
	if got := chain.PlainBalance(seller.Address); got.Int64() != 1000 {
		t.Errorf("the seller has %s", got)
	}
	if left := number(t, chain, devchain.Plain, evm.AllowanceCall(payer.Address, devchain.Permit2)); left.Sign() != 0 {
		t.Errorf("Permit2 may still move %s", left)
	}
	again := permit(chain, payment.Exact, payer.Address, seller.Address, 1, 2)
	again.Token = devchain.Plain
	reverts(t, chain, facilitator, &evm.PermitCall{Permit: signPermit(t, chain, again, payer)}, "TRANSFER_FROM_FAILED")
}
