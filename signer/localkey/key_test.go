package localkey

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// The first account of the mnemonic that every development chain uses.
const (
	secret  = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
	address = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
)

func key(t *testing.T) *Key {
	t.Helper()
	k, err := Parse(secret)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestParseAcceptsHexWithAndWithoutPrefix(t *testing.T) {
	for _, s := range []string{secret, "0x" + secret, " 0x" + strings.ToUpper(secret) + "\n"} {
		k, err := Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if k.Address().Hex() != address {
			t.Errorf("address %s, want %s", k.Address(), address)
		}
	}
}

func TestParseNeverRepeatsWhatItRefuses(t *testing.T) {
	zero, order := strings.Repeat("0", 64), "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
	for _, s := range []string{"", "0x", secret[:62], secret + "00", "0x0x" + secret, secret[:63] + "g", zero, order} {
		_, err := Parse(s)
		if err == nil {
			t.Errorf("Parse accepted a text of %d characters", len(s))
			continue
		}
		if len(s) > 8 && strings.Contains(err.Error(), s[:8]) {
			t.Errorf("error repeats the key: %v", err)
		}
	}
}

func TestSignCallSignsWhatItWasGiven(t *testing.T) {
	k := key(t)
	transfer := &evm.Transfer{
		Authorization: evm.Authorization{Value: big.NewInt(1), ValidAfter: new(big.Int), ValidBefore: big.NewInt(2)}, Signature: make([]byte, 65),
	}
	call := &payment.LaneCall{
		ChainID: 84532, Nonce: 7, To: common.HexToAddress("0x036CbD53842c5426634e7929541eC2318f3dCF7e"), Data: transfer.Calldata(),
		Gas: 90_000, GasFeeCap: big.NewInt(3_000_000_000), GasTipCap: big.NewInt(1_000_000),
	}
	raw, err := k.SignCall(context.Background(), call)
	if err != nil {
		t.Fatal(err)
	}
	again, err := k.SignCall(context.Background(), call)
	if err != nil || !bytes.Equal(raw, again) {
		t.Fatalf("the same call gave other bytes (%v)", err)
	}
	var tx types.Transaction
	if err := tx.UnmarshalBinary(raw); err != nil {
		t.Fatal(err)
	}
	from, err := types.Sender(types.LatestSignerForChainID(big.NewInt(84532)), &tx)
	if err != nil || from != k.Address() {
		t.Errorf("signed by %s (%v)", from, err)
	}
	if tx.Type() != types.DynamicFeeTxType || tx.Value().Sign() != 0 || tx.Nonce() != 7 || *tx.To() != call.To ||
		!bytes.Equal(tx.Data(), call.Data) || tx.Gas() != call.Gas || tx.GasFeeCap().Cmp(call.GasFeeCap) != 0 || tx.GasTipCap().Cmp(call.GasTipCap) != 0 {
		t.Errorf("the transaction is not the call: %x", raw)
	}
}

func TestSignCallRefusesACallWithoutFees(t *testing.T) {
	if _, err := key(t).SignCall(context.Background(), &payment.LaneCall{ChainID: 1}); err == nil {
		t.Error("signed")
	}
}

func TestSignCallSignsOnlyWhatSettlesOrFills(t *testing.T) {
	k := key(t)
	transfer := &evm.Transfer{
		Authorization: evm.Authorization{Value: big.NewInt(1), ValidAfter: new(big.Int), ValidBefore: big.NewInt(2)}, Signature: make([]byte, 65),
	}
	token := common.HexToAddress("0x036CbD53842c5426634e7929541eC2318f3dCF7e")
	call := func(to common.Address, data []byte) error {
		_, err := k.SignCall(context.Background(), &payment.LaneCall{
			ChainID: 84532, To: to, Data: data, Gas: 90_000, GasFeeCap: big.NewInt(2), GasTipCap: big.NewInt(1),
		})
		return err
	}
	batch := evm.BatchCalldata([]*evm.Instrument{evm.OfTransfer(token, transfer)}, true)
	for name, err := range map[string]error{
		"a fill": call(k.Address(), nil), "a transfer": call(token, transfer.Calldata()), "a batch": call(evm.Multicall3, batch),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"a gift of nothing": call(token, nil), "any call": call(token, []byte{1, 2, 3}), "a batch elsewhere": call(token, batch),
		"a call of itself": call(k.Address(), []byte{1}), "any call by Multicall3": call(evm.Multicall3, batch[:100]),
	} {
		if err == nil {
			t.Errorf("%s was signed", name)
		}
	}
}

func TestSignTransferMakesASignatureThatRecovers(t *testing.T) {
	k := key(t)
	usdc, _ := payment.USDC(payment.EVM(84532))
	domain := evm.DomainOf(usdc)
	a := evm.Authorization{
		From: k.Address(), To: common.HexToAddress("0x209693Bc6afc0C5328bA36FaF03C514EF312287C"),
		Value: big.NewInt(1000), ValidAfter: new(big.Int), ValidBefore: big.NewInt(1_900_000_000), Nonce: [32]byte{1},
	}
	transfer, err := k.SignTransfer(context.Background(), domain, a)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := evm.Recover(a.Digest(domain.Separator()), transfer.Signature)
	if err != nil || signer != k.Address() {
		t.Errorf("recovered %s (%v)", signer, err)
	}
	a.From = common.HexToAddress("0x01")
	if _, err := k.SignTransfer(context.Background(), domain, a); err == nil {
		t.Error("signed an authorization of another account")
	}
}

func TestAKeyNeverShowsItself(t *testing.T) {
	k := key(t)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("using", "key", k, "nested", slog.GroupValue(slog.Any("key", k)))
	slog.New(slog.NewTextHandler(&log, nil)).Info("using", "key", k)
	doc, err := json.Marshal(struct{ Key *Key }{k})
	if err != nil {
		t.Fatal(err)
	}
	d := new(big.Int).SetBytes(common.FromHex(secret)).String()
	for _, s := range []string{
		k.String(), k.GoString(), log.String(), string(doc),
		fmt.Sprint(k), fmt.Sprintf("%v %+v %#v", *k, *k, []Key{*k}), fmt.Sprintf("%v %+v %#v %s %q %x %X %d", k, k, k, k, k, k, k, k),
	} {
		if strings.Contains(strings.ToLower(s), secret[:16]) || strings.Contains(s, d[:16]) {
			t.Errorf("the key shows in %s", s)
		}
		if !strings.Contains(s, address) {
			t.Errorf("the address is missing in %s", s)
		}
	}
}
