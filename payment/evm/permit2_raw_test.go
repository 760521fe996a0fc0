package evm_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/rlp"
	"github.com/holiman/uint256"
	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

const rawChain = 84532

// rawPermit is what the payer of the vectors pays with in these tests: 10000
// units of USDC.
func rawPermit(t testing.TB) *evm.Permit {
	t.Helper()
	return &permitFor(t, permitOffer(t, payment.Exact, "eip155:84532", 10000), 0, 4102444800).Permit
}

// approving is the transaction that the official client makes for p.
func approving(p *evm.Permit) *types.DynamicFeeTx {
	most := new(big.Int).Sub(new(big.Int).Lsh(common.Big1, 256), common.Big1)
	return &types.DynamicFeeTx{
		ChainID: big.NewInt(rawChain), Nonce: 7, GasTipCap: big.NewInt(100_000_000), GasFeeCap: big.NewInt(1_000_000_000), Gas: 70_000,
		To: &p.Token, Value: new(big.Int), Data: approveData(evm.Permit2, most),
	}
}

func approveData(spender common.Address, value *big.Int) []byte {
	return append(append(common.FromHex("0x095ea7b3"), common.LeftPadBytes(spender[:], 32)...), common.LeftPadBytes(value.Bytes(), 32)...)
}

// signedTx returns a transaction as the owner of a label of the vectors sends it.
func signedTx(t testing.TB, label string, tx types.TxData) []byte {
	t.Helper()
	key, _ := account(t, label)
	signed, err := types.SignNewTx(key, types.LatestSignerForChainID(big.NewInt(rawChain)), tx)
	if err != nil {
		t.Fatal(err)
	}
	return binary(t, signed)
}

func binary(t testing.TB, tx *types.Transaction) []byte {
	t.Helper()
	raw, err := tx.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// withRaw returns the extensions of a payment that has a transaction along,
// which is said to be the official client's.
func withRaw(p *evm.Permit, raw []byte) string {
	most := new(big.Int).Sub(new(big.Int).Lsh(common.Big1, 256), common.Big1)
	a := &evm.RawApproval{From: p.From, Token: p.Token, Value: most, Raw: raw}
	return `{"` + evm.RawSponsoring + `":{"info":` + string(a.Encode()) + `}}`
}

func TestRawApprovalIsThatOfTheVectors(t *testing.T) {
	v := readTestdata[struct {
		ERC20Approval struct {
			SignedTransaction, TransactionHash, Signer string
			Extension                                  json.RawMessage
		}
	}](t, "erc20-approval.json").ERC20Approval
	p := rawPermit(t)
	a, err := evm.CheckRawApproval(v.Extension, p, rawChain)
	if err != nil || a == nil {
		t.Fatal(a, err)
	}
	if a.From.Hex() != v.Signer || a.Token != p.Token || a.Nonce != 7 || a.Gas != 70_000 || a.FeeCap.Int64() != 1e9 || a.Tip.Int64() != 1e8 || a.Value.BitLen() != 256 {
		t.Errorf("got %+v", a)
	}
	if a.Hash() != common.HexToHash(v.TransactionHash) || !bytes.Equal(a.Raw, unhex(t, v.SignedTransaction)) {
		t.Errorf("transaction %s: %x", a.Hash(), a.Raw)
	}
	if !bytes.Equal(a.Raw, signedTx(t, "payer/1", approving(p))) {
		t.Error("these tests sign something else")
	}
	if call := a.Call(); call.To != p.Token || !bytes.Equal(call.Data, approving(p).Data) {
		t.Errorf("it calls %+v", call)
	}
	if want := big.NewInt(70_000 * 1e9); a.Cost().Cmp(want) != 0 {
		t.Errorf("costs %s wei", a.Cost())
	}
	if again, err := evm.CheckRawApproval(json.RawMessage(withRaw(p, a.Raw)), p, rawChain); err != nil || again == nil {
		t.Errorf("as it is written here: %v, %v", again, err)
	}
}

func TestRawApprovalOfTheOldFormIsRead(t *testing.T) {
	p := rawPermit(t)
	tx := approving(p)
	raw := signedTx(t, "payer/1", &types.LegacyTx{Nonce: 0, GasPrice: big.NewInt(5), Gas: 70_000, To: &p.Token, Value: new(big.Int), Data: tx.Data})
	a, err := evm.CheckRawApproval(json.RawMessage(withRaw(p, raw)), p, rawChain)
	if err != nil || a == nil {
		t.Fatal(a, err)
	}
	if a.Nonce != 0 || a.FeeCap.Int64() != 5 || a.Tip.Int64() != 5 || a.Cost().Int64() != 350_000 {
		t.Errorf("got %+v", a)
	}
}

// What a payer can put in the place of an approval, from the threat model: the
// facilitator must not send any of these.
func TestMaliciousRawTransactionsAreRefused(t *testing.T) {
	p := rawPermit(t)
	_, other := account(t, "server/1")
	spare := new(big.Int).Lsh(common.Big1, 255)
	dynamic := func(change func(*types.DynamicFeeTx)) []byte {
		tx := approving(p)
		change(tx)
		return signedTx(t, "payer/1", tx)
	}
	data := func(b []byte) []byte { return dynamic(func(tx *types.DynamicFeeTx) { tx.Data = b }) }
	// Parts of the client's own transaction, to put together in other ways.
	good := dynamic(func(*types.DynamicFeeTx) {})
	var fields []rlp.RawValue
	if err := rlp.DecodeBytes(good[1:], &fields); err != nil {
		t.Fatal(err)
	}
	again := func(change func(f []rlp.RawValue) []rlp.RawValue) []byte {
		f := change(append([]rlp.RawValue{}, fields...))
		raw, err := rlp.EncodeToBytes(f)
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{2}, raw...)
	}
	field := func(n int, b []byte) []byte {
		return again(func(f []rlp.RawValue) []rlp.RawValue { f[n] = b; return f })
	}
	number := func(n *big.Int) []byte {
		b, err := rlp.EncodeToBytes(n)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	s := new(big.Int).SetBytes(fields[11][1:])
	order, _ := new(big.Int).SetString("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)
	legacy := func(change func(*types.LegacyTx), signer types.Signer) []byte {
		tx := &types.LegacyTx{Nonce: 7, GasPrice: big.NewInt(1e9), Gas: 70_000, To: &p.Token, Value: new(big.Int), Data: approving(p).Data}
		change(tx)
		key, _ := account(t, "payer/1")
		signed, err := types.SignNewTx(key, signer, tx)
		if err != nil {
			t.Fatal(err)
		}
		return binary(t, signed)
	}
	elsewhere := func() []byte {
		tx := approving(p)
		tx.ChainID = big.NewInt(1)
		key, _ := account(t, "payer/1")
		signed, err := types.SignNewTx(key, types.LatestSignerForChainID(big.NewInt(1)), tx)
		if err != nil {
			t.Fatal(err)
		}
		return binary(t, signed)
	}

	for name, row := range map[string]struct {
		raw  []byte
		want payment.Reason
	}{
		"the client's own": {good, ""},

		// It is no approval.
		"a transfer to somebody":              {data(append(common.FromHex("0xa9059cbb"), approveData(other, big.NewInt(10000))[4:]...)), payment.ERC20ApprovalTxSelector},
		"increaseAllowance":                   {data(append(common.FromHex("0x39509351"), approveData(evm.Permit2, spare)[4:]...)), payment.ERC20ApprovalTxSelector},
		"transferFrom":                        {data(append(common.FromHex("0x23b872dd"), make([]byte, 96)...)), payment.ERC20ApprovalTxSelector},
		"an approval for somebody else":       {data(approveData(other, spare)), payment.ERC20ApprovalTxSpender},
		"an approval for the proxy":           {data(approveData(evm.ExactProxy, spare)), payment.ERC20ApprovalTxSpender},
		"no call at all":                      {data(nil), payment.ERC20ApprovalTxSelector},
		"three bytes of the call":             {data(common.FromHex("0x095ea7")), payment.ERC20ApprovalTxSelector},
		"a call cut short":                    {data(approveData(evm.Permit2, spare)[:67]), payment.ERC20ApprovalTxCalldata},
		"something behind the call":           {data(append(approveData(evm.Permit2, spare), 0)), payment.ERC20ApprovalTxCalldata},
		"something above the spender":         {data(append(append(common.FromHex("0x095ea7b301"), make([]byte, 11)...), approveData(evm.Permit2, spare)[16:]...)), payment.ERC20ApprovalTxCalldata},
		"an approval that takes back":         {data(approveData(evm.Permit2, new(big.Int))), payment.ERC20ApprovalTxCalldata},
		"an approval of another amount":       {data(approveData(evm.Permit2, spare)), payment.ERC20ApprovalTxCalldata},
		"an approval at another token":        {dynamic(func(tx *types.DynamicFeeTx) { tx.To = &other }), payment.ERC20ApprovalTxTarget},
		"a call of Permit2":                   {dynamic(func(tx *types.DynamicFeeTx) { to := evm.Permit2; tx.To = &to }), payment.ERC20ApprovalTxTarget},
		"a transaction to the payer":          {dynamic(func(tx *types.DynamicFeeTx) { tx.To = &p.From }), payment.ERC20ApprovalTxTarget},
		"a deployment":                        {dynamic(func(tx *types.DynamicFeeTx) { tx.To = nil }), payment.ERC20ApprovalTxParse},
		"a deployment of the old form":        {legacy(func(tx *types.LegacyTx) { tx.To = nil }, types.NewEIP155Signer(big.NewInt(rawChain))), payment.ERC20ApprovalTxParse},
		"an approval that carries money":      {dynamic(func(tx *types.DynamicFeeTx) { tx.Value = big.NewInt(1) }), payment.ERC20ApprovalTxFailed},
		"all that the payer has":              {dynamic(func(tx *types.DynamicFeeTx) { tx.Value = new(big.Int).Lsh(common.Big1, 100) }), payment.ERC20ApprovalTxFailed},
		"the old form on no particular chain": {legacy(func(*types.LegacyTx) {}, types.HomesteadSigner{}), payment.ERC20ApprovalTxParse},
		"the old form on another chain":       {legacy(func(*types.LegacyTx) {}, types.NewEIP155Signer(big.NewInt(1))), payment.ERC20ApprovalTxParse},
		"the old form with money":             {legacy(func(tx *types.LegacyTx) { tx.Value = common.Big1 }, types.NewEIP155Signer(big.NewInt(rawChain))), payment.ERC20ApprovalTxFailed},
		"another chain":                       {elsewhere(), payment.ERC20ApprovalTxParse},

		// It is of a kind that can do more.
		"an access list": {dynamic(func(tx *types.DynamicFeeTx) { tx.AccessList = types.AccessList{{Address: other}} }), payment.ERC20ApprovalTxParse},
		"EIP-2930": {signedTx(t, "payer/1", &types.AccessListTx{
			ChainID: big.NewInt(rawChain), Nonce: 7, GasPrice: big.NewInt(1e9), Gas: 70_000, To: &p.Token, Data: approving(p).Data,
		}), payment.ERC20ApprovalTxParse},
		"a blob": {signedTx(t, "payer/1", &types.BlobTx{
			ChainID: uint256.NewInt(rawChain), Nonce: 7, GasFeeCap: uint256.NewInt(1e9), Gas: 70_000, To: p.Token, Data: approving(p).Data, BlobHashes: []common.Hash{{1}},
		}), payment.ERC20ApprovalTxParse},
		"a delegation": {signedTx(t, "payer/1", &types.SetCodeTx{
			ChainID: uint256.NewInt(rawChain), Nonce: 7, GasFeeCap: uint256.NewInt(1e9), Gas: 70_000, To: p.Token, Data: approving(p).Data,
			AuthList: []types.SetCodeAuthorization{{Address: other}},
		}), payment.ERC20ApprovalTxParse},

		// It costs too much, or can never be in a block.
		"no gas":                 {dynamic(func(tx *types.DynamicFeeTx) { tx.Gas = 0 }), payment.ERC20ApprovalTxFailed},
		"too little gas":         {dynamic(func(tx *types.DynamicFeeTx) { tx.Gas = 20_999 }), payment.ERC20ApprovalTxFailed},
		"too much gas":           {dynamic(func(tx *types.DynamicFeeTx) { tx.Gas = evm.MaxApprovalGas + 1 }), payment.ERC20ApprovalTxFailed},
		"all the gas there is":   {dynamic(func(tx *types.DynamicFeeTx) { tx.Gas = 1<<64 - 1 }), payment.ERC20ApprovalTxFailed},
		"a fee beyond all":       {dynamic(func(tx *types.DynamicFeeTx) { tx.GasFeeCap = big.NewInt(evm.MaxApprovalFee + 1) }), payment.ERC20ApprovalTxFailed},
		"a fee of 200 bits":      {dynamic(func(tx *types.DynamicFeeTx) { tx.GasFeeCap = new(big.Int).Lsh(common.Big1, 200) }), payment.ERC20ApprovalTxFailed},
		"a tip above the cap":    {dynamic(func(tx *types.DynamicFeeTx) { tx.GasTipCap = big.NewInt(1e9 + 1) }), payment.ERC20ApprovalTxFailed},
		"an old one too dear":    {legacy(func(tx *types.LegacyTx) { tx.GasPrice = big.NewInt(evm.MaxApprovalFee + 1) }, types.NewEIP155Signer(big.NewInt(rawChain))), payment.ERC20ApprovalTxFailed},
		"a nonce of 65 bits":     {field(1, number(new(big.Int).Lsh(common.Big1, 64))), payment.ERC20ApprovalTxParse},
		"a gas limit of 65 bits": {field(4, number(new(big.Int).Lsh(common.Big1, 64))), payment.ERC20ApprovalTxParse},

		// It is not the payer's.
		"signed by somebody else":  {signedTx(t, "server/1", approving(p)), payment.ERC20ApprovalTxSigner},
		"another nonce afterwards": {field(1, number(big.NewInt(8))), payment.ERC20ApprovalTxSigner},
		"the other parity":         {field(9, number(new(big.Int).Xor(new(big.Int).SetBytes(fields[9][:1]), big.NewInt(0x81)))), payment.ERC20ApprovalTxSigner},
		"s in the upper half":      {field(11, number(new(big.Int).Sub(order, s))), payment.ERC20ApprovalTxSignature},
		"s of zero":                {field(11, number(new(big.Int))), payment.ERC20ApprovalTxSignature},
		"r of zero":                {field(10, number(new(big.Int))), payment.ERC20ApprovalTxSignature},
		"r beyond the curve":       {field(10, number(order)), payment.ERC20ApprovalTxSignature},
		"r of 257 bits":            {field(10, number(new(big.Int).Lsh(common.Big1, 256))), payment.ERC20ApprovalTxParse},
		"v of 27":                  {field(9, number(big.NewInt(27))), payment.ERC20ApprovalTxParse},
		"not signed":               {again(func(f []rlp.RawValue) []rlp.RawValue { return f[:9] }), payment.ERC20ApprovalTxParse},

		// Nodes would read it in another way, or as another transaction.
		"nothing":                        {nil, payment.ERC20ApprovalTxParse},
		"a type and nothing":             {[]byte{2}, payment.ERC20ApprovalTxParse},
		"an unknown type":                {append([]byte{5}, good[1:]...), payment.ERC20ApprovalTxParse},
		"cut short":                      {good[:len(good)-1], payment.ERC20ApprovalTxParse},
		"something behind it":            {append(bytes.Clone(good), 0), payment.ERC20ApprovalTxParse},
		"a second one behind it":         {append(bytes.Clone(good), good...), payment.ERC20ApprovalTxParse},
		"a field more":                   {again(func(f []rlp.RawValue) []rlp.RawValue { return append(f, rlp.RawValue{0x80}) }), payment.ERC20ApprovalTxParse},
		"the access list as text":        {field(8, []byte{0x80}), payment.ERC20ApprovalTxParse},
		"a list in place of the value":   {field(6, []byte{0xc0}), payment.ERC20ApprovalTxParse},
		"a zero before the gas limit":    {field(4, append([]byte{0x84, 0}, fields[4][1:]...)), payment.ERC20ApprovalTxParse},
		"zero as a byte":                 {field(6, []byte{0}), payment.ERC20ApprovalTxParse},
		"a nonce in two bytes":           {field(1, []byte{0x81, 7}), payment.ERC20ApprovalTxParse},
		"a length in more than it needs": {append([]byte{2, 0xf9, 0}, good[2:]...), payment.ERC20ApprovalTxParse},
		"a length that is not there":     {[]byte{2, 0xfa, 0xff, 0xff}, payment.ERC20ApprovalTxParse},
		"a length of eight bytes":        {append([]byte{2, 0xff}, bytes.Repeat([]byte{0xff}, 8)...), payment.ERC20ApprovalTxParse},
		"wrapped in a text":              {append([]byte{0xb8, byte(len(good))}, good...), payment.ERC20ApprovalTxParse},
		"more than any has":              {append(bytes.Clone(good), make([]byte, evm.MaxRawApproval)...), payment.ERC20ApprovalFormat},
	} {
		a, err := evm.CheckRawApproval(json.RawMessage(withRaw(p, row.raw)), p, rawChain)
		wantRefusal(t, name, a, err, row.want)
	}
}

func wantRefusal(t testing.TB, name string, a *evm.RawApproval, err error, want payment.Reason) {
	t.Helper()
	reason := payment.Reason("")
	if invalid, ok := errors.AsType[*payment.InvalidError](err); ok {
		if reason = invalid.Reason; invalid.Payer == "" {
			t.Errorf("%s: nobody is named", name)
		}
	}
	if reason != want || (err == nil) != (want == "") || (a == nil) != (err != nil) {
		t.Errorf("%s: %v, %v, want %q", name, a, err, want)
	}
}

func TestWhatIsSaidOfARawApprovalMustBeSo(t *testing.T) {
	p := rawPermit(t)
	whole := withRaw(p, signedTx(t, "payer/1", approving(p)))
	_, other := account(t, "server/1")
	for name, row := range map[string]struct {
		old, new string
		want     payment.Reason
	}{
		"from somebody else":     {`"from":"` + p.From.Hex(), `"from":"` + other.Hex(), payment.ERC20ApprovalFromMismatch},
		"another token":          {`"asset":"` + p.Token.Hex(), `"asset":"` + other.Hex(), payment.ERC20ApprovalAssetMismatch},
		"another spender":        {`"spender":"` + evm.Permit2.Hex(), `"spender":"` + evm.UptoProxy.Hex(), payment.ERC20ApprovalSpender},
		"another amount":         {`"amount":"1`, `"amount":"`, payment.ERC20ApprovalTxCalldata},
		"amount in hexadecimal":  {`"amount":"1`, `"amount":"0x1`, payment.ERC20ApprovalFormat},
		"amount as a number":     {`"amount":"115792089237316195423570985008687907853269984665640564039457584007913129639935"`, `"amount":1`, payment.ERC20ApprovalFormat},
		"from too short":         {`"from":"0xCC`, `"from":"0xC`, payment.ERC20ApprovalFormat},
		"not hexadecimal":        {`"signedTransaction":"0x02`, `"signedTransaction":"0xzz`, payment.ERC20ApprovalFormat},
		"without 0x":             {`"signedTransaction":"0x`, `"signedTransaction":"`, payment.ERC20ApprovalFormat},
		"half a byte":            {`"signedTransaction":"0x0`, `"signedTransaction":"0x`, payment.ERC20ApprovalFormat},
		"version with a letter":  {`"version":"1"`, `"version":"v1"`, payment.ERC20ApprovalFormat},
		"version as a number":    {`"version":"1"`, `"version":1`, payment.ERC20ApprovalFormat},
		"From beside from":       {`"from"`, `"From":"0x","from"`, payment.ERC20ApprovalFormat},
		"two transactions":       {`"signedTransaction"`, `"signedTransaction":"0x02","signedTransaction"`, payment.ERC20ApprovalFormat},
		"Info beside info":       {`"info"`, `"Info":{},"info"`, payment.ERC20ApprovalFormat},
		"the extension's case":   {evm.RawSponsoring, "ERC20ApprovalGasSponsoring", payment.ERC20ApprovalFormat},
		"the extension as text":  {`{"info"`, `"",{"info"`, payment.ERC20ApprovalFormat},
		"beside other extension": {`{"erc20`, `{"bazaar":{"info":{}},"erc20`, ""},
	} {
		a, err := evm.CheckRawApproval(json.RawMessage(replacedIn(t, whole, row.old, row.new)), p, rawChain)
		wantRefusal(t, name, a, err, row.want)
	}
	tx := approving(p)
	tx.Data = approveData(evm.Permit2, big.NewInt(9999))
	doc := replacedIn(t, withRaw(p, signedTx(t, "payer/1", tx)), `"115792089237316195423570985008687907853269984665640564039457584007913129639935"`, `"9999"`)
	a, err := evm.CheckRawApproval(json.RawMessage(doc), p, rawChain)
	wantRefusal(t, "one unit less than is paid", a, err, payment.ERC20ApprovalTxCalldata)
}

// Clients that need no approval echo what the seller said about the extension.
func TestWithoutARawApprovalThereIsNothingToCheck(t *testing.T) {
	p := rawPermit(t)
	whole := withRaw(p, signedTx(t, "payer/1", approving(p)))
	for name, doc := range map[string]string{
		"no extensions":             "",
		"null":                      `{"erc20ApprovalGasSponsoring":null}`,
		"no info":                   `{"erc20ApprovalGasSponsoring":{"schema":{}}}`,
		"the seller's info":         `{"erc20ApprovalGasSponsoring":{"info":{"description":"free","version":"1"},"schema":{}}}`,
		"without the transaction":   replacedIn(t, whole, `"signedTransaction"`, `"note"`),
		"without the amount":        replacedIn(t, whole, `"amount"`, `"note"`),
		"the other extension alone": `{"eip2612GasSponsoring":{"info":{"version":"1"}}}`,
	} {
		if a, err := evm.CheckRawApproval(json.RawMessage(doc), p, rawChain); a != nil || err != nil {
			t.Errorf("%s: got %v, %v", name, a, err)
		}
	}
}

func TestApprovalsMustPayForTheNextBlocks(t *testing.T) {
	a := &evm.RawApproval{FeeCap: big.NewInt(900)}
	for base, ok := range map[int64]bool{0: true, 800: true, 801: false, 900: false, 10_000: false} {
		if err := a.CheckFee(big.NewInt(base), true); (err == nil) != ok {
			t.Errorf("base fee %d: %v", base, err)
		}
		if err := a.CheckFee(big.NewInt(base), false); (err == nil) != (base <= 900) {
			t.Errorf("base fee %d, nothing to spare: %v", base, err)
		}
	}
	if err := a.CheckFee(nil, true); err != nil {
		t.Errorf("without a base fee: %v", err)
	}
}

func TestTokensSayThatTheyAgree(t *testing.T) {
	for answer, want := range map[string]bool{
		"": true, strings.Repeat("0", 63) + "1": true, strings.Repeat("0", 64): false, strings.Repeat("0", 63) + "2": false, "01": false, strings.Repeat("0", 127) + "1": false,
	} {
		if got := evm.Agrees(unhex(t, answer)); got != want {
			t.Errorf("%q: %v", answer, got)
		}
	}
}

// What is read is what go-ethereum's nodes read: the same fields, the same
// sender, and nothing that they do not take.
func TestRawApprovalsAreWhatNodesRead(t *testing.T) {
	p := rawPermit(t)
	key, _ := account(t, "payer/1")
	signer := types.LatestSignerForChainID(big.NewInt(rawChain))
	rapid.Check(t, func(t *rapid.T) {
		fee := rapid.Int64Range(0, evm.MaxApprovalFee).Draw(t, "fee")
		var data types.TxData = &types.DynamicFeeTx{
			ChainID: big.NewInt(rawChain), Nonce: rapid.Uint64().Draw(t, "nonce"), GasFeeCap: big.NewInt(fee),
			GasTipCap: big.NewInt(rapid.Int64Range(0, fee).Draw(t, "tip")), Gas: rapid.Uint64Range(21_000, evm.MaxApprovalGas).Draw(t, "gas"),
			To: &p.Token, Data: approving(p).Data,
		}
		if rapid.Bool().Draw(t, "old") {
			data = &types.LegacyTx{Nonce: rapid.Uint64().Draw(t, "nonce"), GasPrice: big.NewInt(fee), Gas: 70_000, To: &p.Token, Data: approving(p).Data}
		}
		tx, err := types.SignNewTx(key, signer, data)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := tx.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		a, err := evm.CheckRawApproval(json.RawMessage(withRaw(p, raw)), p, rawChain)
		if err != nil || a == nil {
			t.Fatalf("%x: %v, %v", raw, a, err)
		}
		if a.Nonce != tx.Nonce() || a.Gas != tx.Gas() || a.FeeCap.Cmp(tx.GasFeeCap()) != 0 || a.Tip.Cmp(tx.GasTipCap()) != 0 || a.Hash() != tx.Hash() || a.Cost().Cmp(tx.Cost()) != 0 {
			t.Fatalf("%x: got %+v", raw, a)
		}
	})
}

func FuzzCheckRawApproval(f *testing.F) {
	p := rawPermit(f)
	f.Add(signedTx(f, "payer/1", approving(p)))
	f.Add(signedTx(f, "payer/1", &types.LegacyTx{GasPrice: big.NewInt(1), Gas: 70_000, To: &p.Token, Data: approving(p).Data}))
	f.Add([]byte{2, 0xc0})
	signer := types.LatestSignerForChainID(big.NewInt(rawChain))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := evm.CheckRawApproval(json.RawMessage(withRaw(p, raw)), p, rawChain)
		if _, invalid := errors.AsType[*payment.InvalidError](err); (a == nil) == (err == nil) || err != nil && !invalid {
			t.Fatalf("got %v, %v", a, err)
		}
		if a == nil {
			return
		}
		tx := new(types.Transaction)
		if err := tx.UnmarshalBinary(raw); err != nil {
			t.Fatalf("%s is no transaction: %v", hex.EncodeToString(raw), err)
		}
		from, err := types.Sender(signer, tx)
		if err != nil || from != p.From || *tx.To() != p.Token || tx.Value().Sign() != 0 || crypto.Keccak256Hash(tx.Data()) != crypto.Keccak256Hash(a.Call().Data) {
			t.Fatalf("%x: %+v from %s, %v", raw, tx, from, err)
		}
		if again := binary(t, tx); !bytes.Equal(again, raw) {
			t.Fatalf("%x is written as %x", raw, again)
		}
	})
}
