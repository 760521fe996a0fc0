package evm_test

import (
	"bytes"
	"math/big"
	"slices"
	"testing"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

const multicallABI = `[{"type":"function","name":"aggregate3","stateMutability":"payable",
	"inputs":[{"name":"calls","type":"tuple[]","components":[{"name":"target","type":"address"},{"name":"allowFailure","type":"bool"},{"name":"callData","type":"bytes"}]}],
	"outputs":[{"name":"returnData","type":"tuple[]","components":[{"name":"success","type":"bool"},{"name":"returnData","type":"bytes"}]}]}]`

func multicall(t rapid.TB) abi.ABI {
	t.Helper()
	a, err := abi.JSON(bytes.NewReader([]byte(multicallABI)))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func drawBatch(t *rapid.T) []*evm.Instrument {
	calls := make([]*evm.Instrument, rapid.IntRange(1, 12).Draw(t, "calls"))
	for i := range calls {
		size := rapid.SampledFrom([]int{0, 1, 64, 65, 66, 300}).Draw(t, "signature")
		word := func(name string) []byte { return rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, name) }
		calls[i] = evm.OfTransfer(common.BytesToAddress(word("token")), &evm.Transfer{
			Authorization: evm.Authorization{
				From: common.BytesToAddress(word("from")), To: common.BytesToAddress(word("to")), Value: new(big.Int).SetBytes(word("value")),
				ValidAfter: new(big.Int).SetBytes(word("after")), ValidBefore: new(big.Int).SetBytes(word("before")), Nonce: [32]byte(word("nonce")),
			},
			Signature: rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "bytes"),
		})
	}
	return calls
}

func TestBatchesAreEncodedAsTheGeneralEncoderDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		calls, allow := drawBatch(t), rapid.Bool().Draw(t, "allow")
		type call3 struct {
			Target       common.Address
			AllowFailure bool
			CallData     []byte
		}
		list := make([]call3, len(calls))
		for i, c := range calls {
			list[i] = call3{c.Token, allow, c.Transfer.Calldata()}
		}
		want, err := multicall(t).Pack("aggregate3", list)
		if err != nil {
			t.Fatal(err)
		}
		if got := evm.BatchCalldata(calls, allow); !bytes.Equal(got, want) {
			t.Fatalf("got %x, want %x", got, want)
		}
	})
}

func TestWhatALaneSignsCanBeReadBack(t *testing.T) {
	lane := common.HexToAddress("0x1a4e")
	rapid.Check(t, func(t *rapid.T) {
		calls := drawBatch(t)
		got, err := evm.ReadLaneCall(lane, &payment.LaneCall{To: evm.Multicall3, Data: evm.BatchCalldata(calls, true)})
		if err != nil || len(got) != len(calls) {
			t.Fatalf("read %d calls of %d, %v", len(got), len(calls), err)
		}
		for i, c := range calls {
			if got[i].Token != c.Token || !sameTransfer(got[i].Transfer, c.Transfer) {
				t.Fatalf("call %d is %+v, want %+v", i, got[i].Transfer, c.Transfer)
			}
			for _, data := range [][]byte{c.Transfer.Calldata(), c.Transfer.CalldataBytes()} {
				one, err := evm.ReadLaneCall(lane, &payment.LaneCall{To: c.Token, Data: data})
				if c.Token == evm.Multicall3 || c.Token == lane {
					continue
				}
				if err != nil || len(one) != 1 || !sameTransfer(one[0].Transfer, c.Transfer) {
					t.Fatalf("read %v, %v", one, err)
				}
			}
		}
	})
	if got, err := evm.ReadLaneCall(lane, &payment.LaneCall{To: lane}); err != nil || len(got) != 0 {
		t.Errorf("a fill is %v, %v", got, err)
	}
}

// Whatever is changed in a call, it is refused or it is another call that can
// be read: nothing is hidden in it.
func TestNothingHidesInALanesCall(t *testing.T) {
	lane := common.HexToAddress("0x1a4e")
	o := offerOn(t, "eip155:84532", 10000)
	transfer := transferFor(t, o, 0, 4102444800)
	token := common.HexToAddress(o.Amount.Token().Address)
	single, batch := transfer.Calldata(), evm.BatchCalldata([]*evm.Instrument{evm.OfTransfer(token, transfer), evm.OfTransfer(token, transfer)}, true)
	for name, c := range map[string]*payment.LaneCall{
		"no data to another account": {To: token},
		"a plain transfer":           {To: token, Data: append(common.FromHex("0xa9059cbb"), make([]byte, 64)...)},
		"an approval":                {To: token, Data: append(common.FromHex("0x095ea7b3"), make([]byte, 7*32)...)},
		"an authorization cut short": {To: token, Data: single[:len(single)-1]},
		"an authorization and more":  {To: token, Data: append(slices.Clone(single), make([]byte, 32)...)},
		"data to the lane itself":    {To: lane, Data: []byte{1}},
		"a batch to another address": {To: token, Data: batch},
		"a batch that fails whole":   {To: evm.Multicall3, Data: evm.BatchCalldata([]*evm.Instrument{evm.OfTransfer(token, transfer)}, false)},
		"an empty batch":             {To: evm.Multicall3, Data: evm.BatchCalldata(nil, true)},
		"a batch cut short":          {To: evm.Multicall3, Data: batch[:len(batch)-32]},
		"a batch and more":           {To: evm.Multicall3, Data: append(slices.Clone(batch), make([]byte, 32)...)},
		"another call of Multicall3": {To: evm.Multicall3, Data: append(common.FromHex("0x174dea71"), batch[4:]...)}, // aggregate3Value
		"a selector alone":           {To: evm.Multicall3, Data: batch[:4]},
	} {
		if got, err := evm.ReadLaneCall(lane, c); err == nil {
			t.Errorf("%s is read as %v", name, got)
		}
	}
	for at := range batch {
		for bit := range 8 {
			changed := slices.Clone(batch)
			changed[at] ^= 1 << bit
			got, err := evm.ReadLaneCall(lane, &payment.LaneCall{To: evm.Multicall3, Data: changed})
			if err == nil && !bytes.Equal(evm.BatchCalldata(got, true), changed) {
				t.Fatalf("bit %d of byte %d is not seen", bit, at)
			}
		}
	}
}

func TestResultsOfABatchAreReadInOrder(t *testing.T) {
	type result struct {
		Success    bool
		ReturnData []byte
	}
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Bool(), 1, 20).Draw(t, "results")
		list := make([]result, len(want))
		for i := range want {
			list[i] = result{want[i], rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "data")}
		}
		output, err := multicall(t).Methods["aggregate3"].Outputs.Pack(list)
		if err != nil {
			t.Fatal(err)
		}
		got, err := evm.BatchResults(output, len(want))
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
		if got, err := evm.BatchResults(output, len(want)+1); err == nil {
			t.Fatalf("read %v of another number of calls", got)
		}
		cut := output[:rapid.IntRange(0, 32*(2+2*len(want))).Draw(t, "cut")]
		if got, err := evm.BatchResults(cut, len(want)); err == nil && !slices.Equal(got, want) {
			t.Fatalf("read %v from %x", got, cut)
		}
	})
}

func FuzzReadLaneCall(f *testing.F) {
	o := offerOn(f, "eip155:84532", 10000)
	transfer := transferFor(f, o, 0, 4102444800)
	token := common.HexToAddress(o.Amount.Token().Address)
	f.Add(transfer.Calldata(), false)
	f.Add(transfer.CalldataBytes(), false)
	f.Add(evm.BatchCalldata([]*evm.Instrument{evm.OfTransfer(token, transfer), evm.OfTransfer(token, transfer)}, true), true)
	f.Fuzz(func(t *testing.T, data []byte, batch bool) {
		c := &payment.LaneCall{To: token, Data: data}
		if batch {
			c.To = evm.Multicall3
		}
		calls, err := evm.ReadLaneCall(token, c)
		switch {
		case err != nil:
		case batch && !bytes.Equal(evm.BatchCalldata(calls, true), data):
			t.Fatalf("%x is read as %v", data, calls)
		case !batch && len(data) > 0 && !bytes.Equal(calls[0].Transfer.Calldata(), data) && !bytes.Equal(calls[0].Transfer.CalldataBytes(), data):
			t.Fatalf("%x is read as %v", data, calls)
		}
		if _, err := evm.BatchResults(data, 3); err == nil && len(data) < 32 {
			t.Fatal("results from nothing")
		}
	})
}
