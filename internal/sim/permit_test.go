package sim

import (
	"bytes"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment/evm"
)

// TestTheModelOfPermit2AgreesWithItsContracts runs the same calls on the
// world's Permit2 and proxies and on the contracts of the development chain.
func TestTheModelOfPermit2AgreesWithItsContracts(t *testing.T) {
	dev, err := devchain.Start(devchain.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	purse := newPurse(t)
	payer, lane := purse.payers[0].Address(), purse.lanes[0].Address()
	for _, p := range purse.payers[:2] {
		if err := errors.Join(dev.Mint(p.Address(), big.NewInt(3*price)), dev.SetETHBalance(p.Address(), big.NewInt(1e18))); err != nil {
			t.Fatal(err)
		}
	}
	model := newChain(1, time.Now(), 1, purse, map[common.Address]uint64{payer: 3 * price, purse.payers[1].Address(): 3 * price})
	state := model.tip.state.clone()
	state.allowances[purse.payers[1].Address()] = 0
	approve := append([]byte{0x09, 0x5e, 0xa7, 0xb3}, common.LeftPadBytes(evm.Permit2[:], 32)...)
	approve = append(approve, bytes.Repeat([]byte{0xff}, 32)...)
	nonce := uint64(0)
	send := func(to common.Address, data []byte) {
		t.Helper()
		tx, err := types.SignNewTx(purse.private[0], types.LatestSignerForChainID(big.NewInt(chainID)), &types.DynamicFeeTx{
			ChainID: big.NewInt(chainID), Nonce: nonce, To: &to, Data: data, Gas: 200_000, GasFeeCap: big.NewInt(1e12), GasTipCap: big.NewInt(1),
		})
		if err != nil {
			t.Fatal(err)
		}
		nonce++
		if err := dev.Client().SendTransaction(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			receipt, err := dev.Client().TransactionReceipt(t.Context(), tx.Hash())
			if err == nil && receipt.Status == types.ReceiptStatusSuccessful {
				return
			}
			if err == nil || time.Now().After(deadline) {
				t.Fatalf("a transaction is not mined, or fails: %v", err)
			}
		}
	}
	send(common.HexToAddress(purse.token.Address), approve)

	now := time.Now().Unix()
	sign := func(payer int, by instrument, units, until int64, nonce int64) *evm.SignedPermit {
		s, err := purse.permit(ticketKey{payer: payer, instrument: by, lanes: 1}, purse.seller, units, big.NewInt(nonce), big.NewInt(until))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	call := func(s *evm.SignedPermit, charge int64) evm.Call {
		return evm.OfPermit(s, nil).Spend(big.NewInt(charge))
	}
	inside := func(calls ...evm.Call) evm.Call {
		var list []call3
		for _, c := range calls {
			list = append(list, call3{c.To, true, c.Data})
		}
		data, err := purse.aggregate.arguments.Pack(list)
		if err != nil {
			t.Fatal(err)
		}
		return evm.Call{To: multicall, Data: append(selAggregate3[:], data...)}
	}
	good, upto, given := sign(0, byPermit, price, now+3600, 1), sign(0, byUpto, price, now+3600, 2), sign(0, byPermit, price, now+3600, 300)
	forged := sign(0, byPermit, price, now+3600, 3)
	forged.Amount = big.NewInt(price + 1)
	early := sign(0, byPermit, price, now+3600, 4)
	early.ValidAfter = big.NewInt(now + 1800)
	bitmap := func(nonce int64) evm.Call {
		return evm.Call{To: evm.Permit2, Data: sign(0, byPermit, price, now, nonce).BitmapCall()}
	}
	compare := func(name string, from common.Address, c evm.Call) {
		t.Helper()
		want, err := dev.Client().CallContract(t.Context(), ethereum.CallMsg{From: from, To: &c.To, Data: c.Data}, nil)
		got := model.call(state.clone(), frame{from: from, at: uint64(now), block: 2}, c.To, c.Data)
		if got.failed != (err != nil) {
			t.Errorf("%s: failed %v (%s %x), the contract says %v", name, got.failed, got.reason, got.data, err)
			return
		}
		var reverted rpc.DataError
		if errors.As(err, &reverted) && got.data != nil {
			text, _ := reverted.ErrorData().(string)
			if data, err := hexutil.Decode(text); err != nil || !bytes.HasPrefix(data, got.data) {
				t.Errorf("%s reverts with %x, the contract with %s", name, got.data, text)
			}
		}
		switch {
		case err != nil:
		case c.To == multicall:
			equalResults(t, name, purse, got.output, want)
		case !bytes.Equal(got.output, want):
			t.Errorf("%s returns %x, the contract %x", name, got.output, want)
		}
	}
	stranger := common.HexToAddress("0x77")
	for _, c := range []struct {
		name string
		from common.Address
		call evm.Call
	}{
		{"exact", stranger, call(good, price)},
		{"exact, forged", stranger, call(forged, price+1)},
		{"exact, expired", stranger, call(sign(0, byPermit, price, now-3600, 5), price)},
		{"exact, early and with another signature", stranger, call(early, price)},
		{"exact, too much", stranger, call(sign(0, byPermit, 4*price, now+3600, 6), 4*price)},
		{"exact, without an allowance", stranger, call(sign(1, byPermit, price, now+3600, 7), price)},
		{"exact inside another call", stranger, inside(call(good, price), call(forged, price+1), call(good, price))},
		{"upto, a part", lane, call(upto, 300)},
		{"upto, the maximum", lane, call(upto, price)},
		{"upto, nothing", lane, call(upto, 0)},
		{"upto, more", lane, call(upto, price+1)},
		{"upto, by a stranger", stranger, call(upto, 300)},
		{"upto inside another call of its facilitator's", lane, inside(call(upto, 300))},
		{"an unused nonce", stranger, bitmap(1)},
		{"a proxy's Permit2", stranger, evm.Call{To: evm.ExactProxy, Data: evm.Permit2Call()}},
		{"the allowance", stranger, evm.Call{To: model.token, Data: evm.AllowanceCall(purse.payers[1].Address(), evm.Permit2)}},
	} {
		compare(c.name, c.from, c.call)
	}

	gone := invalidation(&given.Permit)
	send(gone.To, gone.Data)
	if out := model.call(state, frame{from: payer, at: uint64(now), block: 2}, gone.To, gone.Data); out.failed {
		t.Fatal("the model does not invalidate")
	}
	compare("an invalidated permit", stranger, call(given, price))
	compare("its nonce", stranger, bitmap(300))
	compare("its neighbour", stranger, call(sign(0, byPermit, price, now+3600, 301), price))
	settle := call(good, price)
	send(settle.To, settle.Data)
	if out := model.call(state, frame{from: payer, at: uint64(now), block: 2}, settle.To, settle.Data); out.failed {
		t.Fatal("the model does not settle")
	}
	compare("a settled permit", stranger, call(good, price))
	compare("its nonce", stranger, bitmap(1))
	compare("another one with its nonce", stranger, call(sign(0, byPermit, 1, now+3600, 1), 1))
	if used := state.used[permitAuthorization(&good.Permit)]; used.paid {
		t.Error("a permit that nobody has given to the seller counts as paid")
	}
}
