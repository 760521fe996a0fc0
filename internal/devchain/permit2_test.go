package devchain_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

var forever = new(big.Int).Sub(new(big.Int).Lsh(common.Big1, 256), common.Big1)

// permit returns a permit of the sandbox's USDC without limits of time, not signed, whose facilitator by upto is the
// account "facilitator".
func permit(chain *devchain.Chain, scheme payment.Scheme, from, to common.Address, amount, nonce int64) *evm.SignedPermit {
	s := &evm.SignedPermit{Permit: evm.Permit{
		Scheme: scheme, From: from, Token: devchain.USDC, Amount: big.NewInt(amount), Nonce: big.NewInt(nonce),
		Deadline: forever, To: to, ValidAfter: new(big.Int),
	}}
	s.Spender = s.Proxy()
	if scheme == payment.Upto {
		s.Facilitator = chain.Account("facilitator").Address
	}
	return s
}

// signPermit puts the signature of an account on s.
func signPermit(t testing.TB, chain *devchain.Chain, s *evm.SignedPermit, signer devchain.Account) *evm.SignedPermit {
	t.Helper()
	digest := s.Digest(evm.Permit2Separator(chain.ChainID()))
	s.Signature = signDigest(t, digest[:], signer.Key)
	return s
}

// approve lets Permit2 move all USDC of an account.
func approve(t testing.TB, chain *devchain.Chain, owner devchain.Account) {
	t.Helper()
	if r := seal(t, chain, owner, devchain.USDC, pack(t, "approve", devchain.Permit2, forever)); r.Status != types.ReceiptStatusSuccessful {
		t.Fatal("the approval reverted")
	}
}

// settle sends a settlement and seals it.
func settle(t testing.TB, chain *devchain.Chain, from devchain.Account, c *evm.PermitCall) *types.Receipt {
	t.Helper()
	return seal(t, chain, from, c.Permit.Proxy(), c.Calldata())
}

// settled is settle, which must succeed.
func settled(t testing.TB, chain *devchain.Chain, from devchain.Account, c *evm.PermitCall) *types.Receipt {
	t.Helper()
	r := settle(t, chain, from, c)
	if r.Status != types.ReceiptStatusSuccessful {
		t.Fatalf("the settlement reverts: %s", revertOf(t, chain, from.Address, c.Permit.Proxy(), c.Calldata()))
	}
	return r
}

// revertOf calls to without a transaction and says with which error it reverts, or "".
func revertOf(t testing.TB, chain *devchain.Chain, from, to common.Address, data []byte) string {
	t.Helper()
	_, err := chain.Client().CallContract(t.Context(), ethereum.CallMsg{From: from, To: &to, Data: data}, nil)
	if err == nil {
		return ""
	}
	answer := revertData(t, err)
	if text, err := abi.UnpackRevert(answer); err == nil {
		return text
	}
	for _, c := range []devchain.Contract{devchain.Permit2Contract(), devchain.ExactProxyContract(), devchain.UptoProxyContract()} {
		for _, e := range c.ABI.Errors {
			if bytes.HasPrefix(answer, e.ID[:4]) {
				return e.Sig
			}
		}
	}
	t.Fatalf("%v with %x", err, answer)
	return ""
}

func revertData(t testing.TB, err error) []byte {
	t.Helper()
	failure, ok := errors.AsType[rpc.DataError](err)
	if !ok {
		t.Fatalf("no revert: %v", err)
	}
	text, _ := failure.ErrorData().(string)
	data, err := hexutil.Decode(text)
	if err != nil {
		t.Fatalf("revert data %q: %v", text, err)
	}
	return data
}

// reverts checks that a settlement would revert with an error, or would not where want is empty.
func reverts(t *testing.T, chain *devchain.Chain, from devchain.Account, c *evm.PermitCall, want string) {
	t.Helper()
	if got := revertOf(t, chain, from.Address, c.Permit.Proxy(), c.Calldata()); got != want {
		t.Errorf("reverts with %q, want %q", got, want)
	}
}

// logsOf returns the logs of a receipt as payment/evm reads them.
func logsOf(r *types.Receipt) []evm.Log {
	var logs []evm.Log
	for _, l := range r.Logs {
		logs = append(logs, evm.Log{Address: l.Address, Topics: l.Topics, Data: l.Data, Index: l.Index})
	}
	return logs
}

// callsOf returns the calls of a transaction that were not undone, as its trace shows them.
func callsOf(t testing.TB, chain *devchain.Chain, r *types.Receipt) []evm.Call {
	t.Helper()
	type frame struct {
		Type, Error string
		To          common.Address
		Input       hexutil.Bytes
		Calls       []json.RawMessage
	}
	var trace json.RawMessage
	if err := chain.Client().Client().CallContext(t.Context(), &trace, "debug_traceTransaction", r.TxHash, map[string]string{"tracer": "callTracer"}); err != nil {
		t.Fatal(err)
	}
	var calls []evm.Call
	var walk func(raw json.RawMessage)
	walk = func(raw json.RawMessage) {
		var f frame
		if err := json.Unmarshal(raw, &f); err != nil {
			t.Fatal(err)
		}
		if f.Error != "" {
			return
		}
		if f.Type == "CALL" {
			calls = append(calls, evm.Call{To: f.To, Data: f.Input})
		}
		for _, inner := range f.Calls {
			walk(inner)
		}
	}
	walk(trace)
	return calls
}

// looks checks what a receipt says about a permit, from the transaction's own call and from its trace.
func looks(t *testing.T, chain *devchain.Chain, s *evm.SignedPermit, c *evm.PermitCall, r *types.Receipt, want evm.Fate, moved int64) {
	t.Helper()
	own := []evm.Call{{To: c.Permit.Proxy(), Data: c.Calldata()}}
	for name, calls := range map[string][]evm.Call{"own call": own, "trace": callsOf(t, chain, r)} {
		fate, amount, index := s.Look(calls, logsOf(r))
		if fate != want || fate == evm.Paid && (amount.Int64() != moved || r.Logs[len(r.Logs)-2].Index != index) {
			t.Errorf("%s: fate %d, moved %s at %d; want %d, %d", name, fate, amount, index, want, moved)
		}
	}
}

// used checks what Permit2 says about the nonce of a permit.
func used(t *testing.T, chain *devchain.Chain, s *evm.SignedPermit, want bool) {
	t.Helper()
	answer, err := chain.Call(t.Context(), devchain.Permit2, s.BitmapCall())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Used(answer); err != nil || got != want {
		t.Errorf("nonce %s used: %v, %v; want %v", s.Nonce, got, err, want)
	}
}

func number(t *testing.T, chain *devchain.Chain, to common.Address, data []byte) *big.Int {
	t.Helper()
	answer, err := chain.Call(t.Context(), to, data)
	if err != nil || len(answer) != 32 {
		t.Fatalf("%x, %v", answer, err)
	}
	return new(big.Int).SetBytes(answer)
}

func TestPermit2AndTheProxiesHaveTheCanonicalInterface(t *testing.T) {
	if devchain.Permit2 != evm.Permit2 || devchain.ExactProxy != evm.ExactProxy || devchain.UptoProxy != evm.UptoProxy {
		t.Error("not at the canonical addresses")
	}
	permit2, exact, upto := devchain.Permit2Contract().ABI, devchain.ExactProxyContract().ABI, devchain.UptoProxyContract().ABI
	for _, c := range []struct {
		in           abi.ABI
		method, want string
	}{
		{permit2, "permitTransferFrom", "0x30f28b7a"},
		{permit2, "permitWitnessTransferFrom", "0x137c29fe"},
		{permit2, "nonceBitmap", "0x4fe02b44"},
		{permit2, "invalidateUnorderedNonces", "0x3ff9dcb1"},
		{permit2, "DOMAIN_SEPARATOR", "0x3644e515"},
		{exact, "settle", "0x13cd3b53"},
		{exact, "settleWithPermit", "0xfa340378"},
		{upto, "settle", "0xff11e7b4"},
		{upto, "settleWithPermit", "0x016c1748"},
		{upto, "PERMIT2", "0x6afdd850"},
		{upto, "WITNESS_TYPEHASH", "0x2c03ae6a"},
		{upto, "WITNESS_TYPE_STRING", "0x156e2152"},
	} {
		if got := hexutil.Encode(c.in.Methods[c.method].ID); got != c.want {
			t.Errorf("%s has selector %s, want %s", c.method, got, c.want)
		}
	}
	proxyErrors := []string{"0x2c5211c6", "0x49e27cff", "0xac6b05f5", "0xa65539fa", "0x050cda49", "0x3ee5aeb5"}
	for _, c := range []struct {
		in   abi.ABI
		want []string
	}{
		{permit2, []string{"0xcd21db4f", "0x3728b83d", "0x756688fe", "0x4be6321b", "0x8baa579f", "0x815e1d64", "0xb0669cbc"}},
		{exact, proxyErrors},
		{upto, append([]string{"0xfe64b4c7", "0x0f6fae87"}, proxyErrors...)},
	} {
		var got []string
		for _, e := range c.in.Errors {
			got = append(got, hexutil.Encode(e.ID[:4]))
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("errors %s, want %s", got, c.want)
		}
	}
	for topic, want := range map[common.Hash]string{
		permit2.Events["UnorderedNonceInvalidation"].ID:  "0x3704902f963766a4e561bbaab6e6cdc1b1dd12f6e9e99648da8843b3f46b918d",
		exact.Events["Settled"].ID:                       "0x97088ec3606cfe8cc112180570d03fcde05f9b8e1bfef8e27784eaf5dd5691b6",
		exact.Events["SettledWithPermit"].ID:             "0xde5b89d10fc800c459329c382fabfcad0be0ed7e5328e01fae04e507b09ef5d8",
		exact.Events["EIP2612PermitFailedWithReason"].ID: "0x0fea7e5a0e14e9f700b9b0666ffd524bacb9ceb9e6234ea2bfb8e1d0ee2365e7",
		exact.Events["EIP2612PermitFailedWithPanic"].ID:  "0x278207c426558a8c6ef49e9a3c6f87d257ca5c1852f0c988ad5caf894d197623",
		exact.Events["EIP2612PermitFailedWithData"].ID:   "0x41d715076dfd9c1fd3135fbb7675020aab7fb8e82349a0cd5aaa970dcfb816fe",
	} {
		if topic.Hex() != want {
			t.Errorf("topic %s, want %s", topic, want)
		}
	}
	if len(exact.Events) != 5 || len(upto.Events) != 5 || len(permit2.Events) != 1 {
		t.Errorf("%d, %d and %d events", len(exact.Events), len(upto.Events), len(permit2.Events))
	}

	chain, _ := startPaused(t)
	separator := evm.Permit2Separator(84532)
	if got := number(t, chain, devchain.Permit2, evm.SeparatorCall()); got.Cmp(separator.Big()) != 0 {
		t.Errorf("separator %x, want %s", got, separator)
	}
	for proxy, row := range map[common.Address]struct {
		in         abi.ABI
		hash, text string
	}{
		devchain.ExactProxy: {exact, "0xd97b3239a7f32295517bd14cb074edfdd188dfe5eb42f802bb26d4fd1eb12c37", "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,uint256 validAfter)"},
		devchain.UptoProxy:  {upto, "0xd4171c445a74218b01d4fd8af34ff1106580ea1e36ff837e64484bfaa2253b75", "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,address facilitator,uint256 validAfter)"},
	} {
		if got := number(t, chain, proxy, evm.Permit2Call()); common.BigToAddress(got) != devchain.Permit2 {
			t.Errorf("PERMIT2 is %x", got)
		}
		for method, want := range map[string]any{"WITNESS_TYPEHASH": [32]byte(common.HexToHash(row.hash)), "WITNESS_TYPE_STRING": row.text} {
			answer, err := chain.Call(t.Context(), proxy, row.in.Methods[method].ID)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := row.in.Unpack(method, answer); err != nil || got[0] != want {
				t.Errorf("%s is %v, %v", method, got, err)
			}
		}
	}
}

// The calls of the published vectors, which were made for the real contracts and run against them, do the same here.
func TestTheSettlementsOfTheVectorsAreAccepted(t *testing.T) {
	doc, err := os.ReadFile("../../payment/evm/testdata/permit2.json")
	if err != nil {
		t.Fatal(err)
	}
	type vector struct {
		Network, SettleAmount string
		SettleCalldata        hexutil.Bytes
	}
	var file struct {
		Exact, Upto []vector
		Approvals   map[string]struct{ SettleWithPermitCalldata hexutil.Bytes }
	}
	if err := json.Unmarshal(doc, &file); err != nil {
		t.Fatal(err)
	}
	here := func(list []vector) vector {
		t.Helper()
		i := slices.IndexFunc(list, func(v vector) bool { return v.Network == "eip155:84532" })
		if i < 0 {
			t.Fatal("no vector for this chain")
		}
		return list[i]
	}
	vectorAccount := func(label string) devchain.Account {
		t.Helper()
		key, err := crypto.ToECDSA(crypto.Keccak256([]byte("x402-vector/" + label)))
		if err != nil {
			t.Fatal(err)
		}
		return devchain.Account{Label: label, Address: crypto.PubkeyToAddress(key.PublicKey), Key: key}
	}
	for name, row := range map[string]struct {
		proxy     common.Address
		data      []byte
		sponsored bool
		moved     int64
	}{
		"exact":                {devchain.ExactProxy, here(file.Exact).SettleCalldata, false, 10000},
		"upto":                 {devchain.UptoProxy, here(file.Upto).SettleCalldata, false, 1858},
		"exact, with approval": {devchain.ExactProxy, file.Approvals["exact"].SettleWithPermitCalldata, true, 10000},
		"upto, with approval":  {devchain.UptoProxy, file.Approvals["upto"].SettleWithPermitCalldata, true, 1858},
	} {
		t.Run(name, func(t *testing.T) {
			chain, _ := startPaused(t)
			payer, facilitator, payee := vectorAccount("payer/1"), vectorAccount("facilitator/1"), vectorAccount("payee/1")
			for _, a := range []devchain.Account{payer, facilitator} {
				if err := chain.SetETHBalance(a.Address, big.NewInt(1e18)); err != nil {
					t.Fatal(err)
				}
			}
			if err := chain.Mint(payer.Address, big.NewInt(5_000_000)); err != nil {
				t.Fatal(err)
			}
			if !row.sponsored {
				approve(t, chain, payer)
			}
			c, err := evm.ReadPermitCall(row.proxy, row.data)
			if err != nil {
				t.Fatal(err)
			}
			r := settled(t, chain, facilitator, c)
			checkUSDC(t, chain, payee.Address, row.moved)
			looks(t, chain, c.Permit, c, r, evm.Paid, row.moved)
		})
	}
}

func TestAPermitIsSettledInFullToItsPayeeByAnyoneOnce(t *testing.T) {
	chain, _ := startPaused(t)
	payer, seller, stranger := chain.Account("payer"), chain.Account("seller"), chain.Account("agent")
	approve(t, chain, payer)
	s := signPermit(t, chain, permit(chain, payment.Exact, payer.Address, seller.Address, 1234, 7), payer)
	c := &evm.PermitCall{Permit: s}

	for name, row := range map[string]struct {
		change func(*evm.Permit)
		want   string
	}{
		"to somebody else":        {func(p *evm.Permit) { p.To = stranger.Address }, "InvalidSigner()"},
		"to nobody":               {func(p *evm.Permit) { p.To = common.Address{} }, "InvalidDestination()"},
		"more":                    {func(p *evm.Permit) { p.Amount = big.NewInt(1235) }, "InvalidSigner()"},
		"less":                    {func(p *evm.Permit) { p.Amount = big.NewInt(1233) }, "InvalidSigner()"},
		"nothing":                 {func(p *evm.Permit) { p.Amount = new(big.Int) }, "InvalidAmount()"},
		"of another payer":        {func(p *evm.Permit) { p.From = chain.Account("payer2").Address }, "InvalidSigner()"},
		"of nobody":               {func(p *evm.Permit) { p.From = common.Address{} }, "InvalidOwner()"},
		"of another token":        {func(p *evm.Permit) { p.Token = address("another token") }, "InvalidSigner()"},
		"with another nonce":      {func(p *evm.Permit) { p.Nonce = big.NewInt(8) }, "InvalidSigner()"},
		"with another deadline":   {func(p *evm.Permit) { p.Deadline = big.NewInt(1 << 40) }, "InvalidSigner()"},
		"with another validAfter": {func(p *evm.Permit) { p.ValidAfter = common.Big1 }, "InvalidSigner()"},
		"by the other proxy":      {func(p *evm.Permit) { p.Scheme, p.Facilitator = payment.Upto, stranger.Address }, "InvalidSigner()"},
	} {
		changed := *s
		row.change(&changed.Permit)
		if got := revertOf(t, chain, stranger.Address, changed.Proxy(), (&evm.PermitCall{Permit: &changed}).Calldata()); got != row.want {
			t.Errorf("%s: reverts with %q, want %q", name, got, row.want)
		}
	}
	used(t, chain, s, false)

	r := settled(t, chain, stranger, c)
	if len(r.Logs) != 2 || r.Logs[0].Address != devchain.USDC || r.Logs[1].Address != devchain.ExactProxy || r.Logs[1].Topics[0] != evm.TopicSettled || len(r.Logs[1].Data) != 0 {
		t.Errorf("logs %v, want Transfer and Settled", r.Logs)
	}
	looks(t, chain, s, c, r, evm.Paid, 1234)
	used(t, chain, s, true)
	checkUSDC(t, chain, seller.Address, 1234)
	checkUSDC(t, chain, payer.Address, 1e12-1234)

	reverts(t, chain, stranger, c, "InvalidNonce()")
	if r := settle(t, chain, stranger, c); r.Status != types.ReceiptStatusFailed || len(r.Logs) != 0 {
		t.Errorf("a replay has status %d and %d logs", r.Status, len(r.Logs))
	}
	// The same nonce for something else: a word of 256 nonces is shared by all tokens and spenders, its neighbours are free.
	other := signPermit(t, chain, permit(chain, payment.Exact, payer.Address, seller.Address, 5, 7), payer)
	reverts(t, chain, stranger, &evm.PermitCall{Permit: other}, "InvalidNonce()")
	for i, nonce := range []int64{6, 8, 7 + 256, 255, 256, 0} {
		next := signPermit(t, chain, permit(chain, payment.Exact, payer.Address, seller.Address, 1, nonce), payer)
		used(t, chain, next, false)
		settled(t, chain, stranger, &evm.PermitCall{Permit: next})
		used(t, chain, next, true)
		checkUSDC(t, chain, seller.Address, 1235+int64(i))
	}
}

func TestUptoMovesAtMostTheMaximumAndOnlyForItsFacilitator(t *testing.T) {
	chain, _ := startPaused(t)
	payer, seller, facilitator, stranger := chain.Account("payer"), chain.Account("seller"), chain.Account("facilitator"), chain.Account("facilitator2")
	approve(t, chain, payer)
	s := signPermit(t, chain, permit(chain, payment.Upto, payer.Address, seller.Address, 5000, 1), payer)
	charge := func(units int64) *evm.PermitCall { return &evm.PermitCall{Permit: s, Charge: big.NewInt(units)} }

	reverts(t, chain, facilitator, charge(5001), "AmountExceedsPermitted()")
	reverts(t, chain, facilitator, charge(0), "InvalidAmount()")
	reverts(t, chain, stranger, charge(1858), "UnauthorizedFacilitator()")
	if r := settle(t, chain, stranger, charge(1858)); r.Status != types.ReceiptStatusFailed {
		t.Error("a stranger settled")
	}
	hijacked := *s
	hijacked.Facilitator = stranger.Address
	reverts(t, chain, stranger, &evm.PermitCall{Permit: &hijacked, Charge: big.NewInt(1858)}, "InvalidSigner()")
	redirected := *s
	redirected.To = stranger.Address
	reverts(t, chain, facilitator, &evm.PermitCall{Permit: &redirected, Charge: big.NewInt(1858)}, "InvalidSigner()")

	r := settled(t, chain, facilitator, charge(1858))
	looks(t, chain, s, charge(1858), r, evm.Paid, 1858)
	checkUSDC(t, chain, seller.Address, 1858)
	used(t, chain, s, true)
	reverts(t, chain, facilitator, charge(1), "InvalidNonce()") // the rest is not to be had

	whole := signPermit(t, chain, permit(chain, payment.Upto, payer.Address, seller.Address, 5000, 2), payer)
	r = settled(t, chain, facilitator, &evm.PermitCall{Permit: whole})
	looks(t, chain, whole, &evm.PermitCall{Permit: whole}, r, evm.Paid, 5000)
	checkUSDC(t, chain, seller.Address, 6858)
}

func TestBothBoundsOfAPermitsTimeAreIncluded(t *testing.T) {
	chain, now := startPaused(t)
	payer, facilitator := chain.Account("payer"), chain.Account("facilitator")
	approve(t, chain, payer)
	at := now.Now().Unix()
	for _, c := range []struct {
		validAfter, deadline int64
		want                 string
	}{
		{0, at, ""},
		{at, at, ""},
		{at, at + 1, ""},
		{at + 1, at + 2, "PaymentTooEarly()"},
		{0, at - 1, "SignatureExpired(uint256)"},
	} {
		for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
			s := permit(chain, scheme, payer.Address, chain.Account("seller").Address, 1, 3)
			s.ValidAfter, s.Deadline = big.NewInt(c.validAfter), big.NewInt(c.deadline)
			reverts(t, chain, facilitator, &evm.PermitCall{Permit: signPermit(t, chain, s, payer)}, c.want)
		}
	}
	s := permit(chain, payment.Exact, payer.Address, chain.Account("seller").Address, 1, 3)
	s.Deadline = big.NewInt(at + 60)
	c := &evm.PermitCall{Permit: signPermit(t, chain, s, payer)}
	now.Advance(61 * time.Second)
	if r := settle(t, chain, facilitator, c); r.Status != types.ReceiptStatusFailed {
		t.Error("an expired permit was settled")
	}
	used(t, chain, s, false)
}

// Permit2 takes forms of a signature that payment/evm refuses, and asks contracts.
func TestPermit2TakesSignaturesInSeveralForms(t *testing.T) {
	chain, _ := startPaused(t)
	payer, facilitator := chain.Account("payer"), chain.Account("facilitator")
	approve(t, chain, payer)
	s := signPermit(t, chain, permit(chain, payment.Exact, payer.Address, chain.Account("seller").Address, 1, 0), payer)
	good := s.Signature
	change := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	for name, row := range map[string]struct {
		signature []byte
		want      string
	}{
		"canonical": {good, ""},
		"high s": {change(func(b []byte) []byte {
			new(big.Int).Sub(crypto.S256().Params().N, new(big.Int).SetBytes(b[32:64])).FillBytes(b[32:64])
			b[64] ^= 7
			return b
		}), ""},
		"EIP-2098":    {change(func(b []byte) []byte { b[32] |= (b[64] - 27) << 7; return b[:64] }), ""},
		"v of 0 or 1": {change(func(b []byte) []byte { b[64] -= 27; return b }), "InvalidSignature()"},
		"zero":        {make([]byte, 65), "InvalidSignature()"},
		"other key":   {signPermit(t, chain, permit(chain, payment.Exact, payer.Address, s.To, 1, 0), facilitator).Signature, "InvalidSigner()"},
		"empty":       {nil, "InvalidSignatureLength()"},
		"66 bytes":    {append(slices.Clone(good), 0), "InvalidSignatureLength()"},
	} {
		t.Run(name, func(t *testing.T) {
			reverts(t, chain, facilitator, &evm.PermitCall{Permit: &evm.SignedPermit{Permit: s.Permit, Signature: row.signature}}, row.want)
		})
	}

	// The wallet belongs to the payer.
	wallet := signPermit(t, chain, permit(chain, payment.Exact, devchain.Wallet, s.To, 9, 0), payer)
	reverts(t, chain, facilitator, &evm.PermitCall{Permit: wallet}, "TRANSFER_FROM_FAILED")
	if r := seal(t, chain, facilitator, devchain.USDC, submitted(t, approval(t, chain, wallet, forever, payer))); r.Status != types.ReceiptStatusSuccessful {
		t.Fatal("the wallet's approval reverted")
	}
	reverts(t, chain, facilitator, &evm.PermitCall{Permit: signPermit(t, chain, permit(chain, payment.Exact, devchain.Wallet, s.To, 9, 0), facilitator)}, "InvalidContractSignature()")
	reverts(t, chain, facilitator, &evm.PermitCall{Permit: &evm.SignedPermit{Permit: wallet.Permit, Signature: []byte("none")}}, "InvalidContractSignature()")
	c := &evm.PermitCall{Permit: wallet}
	looks(t, chain, wallet, c, settled(t, chain, facilitator, c), evm.Paid, 9)
}

// approval returns what signer signs by EIP-2612 so that Permit2 may move value of the payer's money.
func approval(t testing.TB, chain *devchain.Chain, s *evm.SignedPermit, value *big.Int, signer devchain.Account) *evm.Approval {
	t.Helper()
	answer, err := chain.Call(t.Context(), devchain.USDC, evm.NoncesCall(s.From))
	if err != nil {
		t.Fatal(err)
	}
	a := &evm.Approval{From: s.From, Token: s.Token, Spender: devchain.Permit2, Value: value, Nonce: new(big.Int).SetBytes(answer), Deadline: forever}
	usdc, _ := payment.USDC(payment.EVM(chain.ChainID()))
	digest := a.Digest(evm.DomainOf(usdc).Separator())
	a.Signature = signDigest(t, digest[:], signer.Key)
	return a
}

// submitted packs an approval as a call to the token.
func submitted(t testing.TB, a *evm.Approval) []byte {
	t.Helper()
	return pack(t, "permit", a.From, a.Spender, a.Value, a.Deadline, a.Signature)
}

func TestAPayerWithoutAllowanceAndGasPaysInOneTransaction(t *testing.T) {
	for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		t.Run(string(scheme), func(t *testing.T) {
			chain, _ := startPaused(t)
			payer, seller, facilitator := chain.Account("payer"), chain.Account("seller"), chain.Account("facilitator")
			if err := chain.SetETHBalance(payer.Address, new(big.Int)); err != nil {
				t.Fatal(err)
			}
			s := signPermit(t, chain, permit(chain, scheme, payer.Address, seller.Address, 100, 0), payer)
			moved := int64(100)
			if scheme == payment.Upto {
				moved = 60
			}
			sponsored := func(a *evm.Approval) *evm.PermitCall {
				return &evm.PermitCall{Permit: s, Charge: big.NewInt(moved), Approval: a}
			}
			reverts(t, chain, facilitator, sponsored(nil), "TRANSFER_FROM_FAILED")
			reverts(t, chain, facilitator, sponsored(approval(t, chain, s, forever, payer)), "Permit2612AmountMismatch()")
			reverts(t, chain, facilitator, sponsored(approval(t, chain, s, s.Amount, facilitator)), "TRANSFER_FROM_FAILED")

			good := approval(t, chain, s, s.Amount, payer)
			r := settled(t, chain, facilitator, sponsored(good))
			if len(r.Logs) != 3 || r.Logs[0].Topics[0] != token.ABI.Events["Approval"].ID || r.Logs[1].Topics[0] != evm.TopicTransfer || r.Logs[2].Topics[0] != evm.TopicSettledWithPermit {
				t.Errorf("logs %v, want Approval, Transfer and SettledWithPermit", r.Logs)
			}
			looks(t, chain, s, sponsored(good), r, evm.Paid, moved)
			checkUSDC(t, chain, seller.Address, moved)
			if left := number(t, chain, devchain.USDC, evm.AllowanceCall(payer.Address, devchain.Permit2)); left.Int64() != 100-moved {
				t.Errorf("allowance %s", left)
			}
			if balance := number(t, chain, devchain.USDC, evm.BalanceCall(payer.Address)); balance.Cmp(chain.USDCBalance(payer.Address)) != 0 {
				t.Errorf("balance %s", balance)
			}
		})
	}
}

// Somebody else may have submitted the approval before.
func TestAnApprovalThatFailsDoesNotStopAPayerWhoHasTheAllowance(t *testing.T) {
	chain, _ := startPaused(t)
	payer, seller, facilitator := chain.Account("payer"), chain.Account("seller"), chain.Account("facilitator")
	s := signPermit(t, chain, permit(chain, payment.Exact, payer.Address, seller.Address, 100, 0), payer)
	a := approval(t, chain, s, s.Amount, payer)
	seal(t, chain, chain.Account("agent"), devchain.USDC, submitted(t, a))

	c := &evm.PermitCall{Permit: s, Approval: a}
	r := settled(t, chain, facilitator, c)
	failed := devchain.ExactProxyContract().ABI.Events["EIP2612PermitFailedWithReason"]
	if len(r.Logs) != 3 || r.Logs[0].Topics[0] != failed.ID || r.Logs[0].Topics[1] != common.BytesToHash(devchain.USDC[:]) || r.Logs[0].Topics[2] != common.BytesToHash(payer.Address[:]) {
		t.Fatalf("logs %v, want the failed approval first", r.Logs)
	}
	if reason, err := failed.Inputs.NonIndexed().Unpack(r.Logs[0].Data); err != nil || reason[0] != "EIP2612: invalid signature" {
		t.Errorf("reason %v, %v", reason, err)
	}
	looks(t, chain, s, c, r, evm.Paid, 100)
	checkUSDC(t, chain, seller.Address, 100)
}

func invalidate(t testing.TB, chain *devchain.Chain, owner devchain.Account, place, mask int64) *types.Receipt {
	t.Helper()
	data, err := devchain.Permit2Contract().ABI.Pack("invalidateUnorderedNonces", big.NewInt(place), big.NewInt(mask))
	if err != nil {
		t.Fatal(err)
	}
	r := seal(t, chain, owner, devchain.Permit2, data)
	if r.Status != types.ReceiptStatusSuccessful {
		t.Fatal("the invalidation reverted")
	}
	return r
}

func TestAnInvalidatedNonceCannotBeUsed(t *testing.T) {
	chain, _ := startPaused(t)
	payer, seller, facilitator := chain.Account("payer"), chain.Account("seller"), chain.Account("facilitator")
	approve(t, chain, payer)
	s := signPermit(t, chain, permit(chain, payment.Exact, payer.Address, seller.Address, 1, 2<<8+3), payer)
	next := signPermit(t, chain, permit(chain, payment.Exact, payer.Address, seller.Address, 1, 2<<8+4), payer)
	if r := invalidate(t, chain, seller, 2, 0xff); r != nil {
		if _, ok := s.Invalidated(logsOf(r)); ok {
			t.Error("somebody else invalidates the payer's nonce")
		}
	}
	used(t, chain, s, false)

	r := invalidate(t, chain, payer, 2, 1<<3)
	if index, ok := s.Invalidated(logsOf(r)); !ok || index != r.Logs[0].Index {
		t.Errorf("invalidated at %d: %v", index, ok)
	}
	if _, ok := next.Invalidated(logsOf(r)); ok {
		t.Error("the next nonce is invalidated too")
	}
	used(t, chain, s, true)
	reverts(t, chain, facilitator, &evm.PermitCall{Permit: s}, "InvalidNonce()")
	settled(t, chain, facilitator, &evm.PermitCall{Permit: next})
}

// Who takes an invalidation for the death of a payment is fooled by a payer who invalidates what he has paid.
func TestAPaidPermitCanBeInvalidatedAfterwardsAndStaysPaid(t *testing.T) {
	chain, _ := startPaused(t)
	payer, seller, facilitator := chain.Account("payer"), chain.Account("seller"), chain.Account("facilitator")
	approve(t, chain, payer)
	s := signPermit(t, chain, permit(chain, payment.Exact, payer.Address, seller.Address, 1, 3), payer)
	c := &evm.PermitCall{Permit: s}
	paid := settled(t, chain, facilitator, c)
	later := invalidate(t, chain, payer, 0, 1<<3)
	if _, ok := s.Invalidated(logsOf(later)); !ok {
		t.Error("there is no log of the invalidation")
	}
	looks(t, chain, s, c, paid, evm.Paid, 1)
	if fate, _, _ := s.Look(callsOf(t, chain, later), logsOf(later)); fate != evm.Untouched {
		t.Errorf("the invalidation says %d", fate)
	}
}

// A payer may sign one nonce twice. Whichever comes first is the only one.
func TestANonceSpentOnSomethingElseIsNoPayment(t *testing.T) {
	chain, _ := startPaused(t)
	payer, seller, facilitator, accomplice := chain.Account("payer"), chain.Account("seller"), chain.Account("facilitator"), chain.Account("facilitator2")
	approve(t, chain, payer)
	for nonce, other := range []*evm.SignedPermit{
		permit(chain, payment.Exact, payer.Address, accomplice.Address, 50, 0),
		permit(chain, payment.Exact, payer.Address, seller.Address, 1, 1),
		permit(chain, payment.Upto, payer.Address, seller.Address, 50, 2),
	} {
		if other.Scheme == payment.Upto {
			other.Facilitator = accomplice.Address
		}
		ours := signPermit(t, chain, permit(chain, payment.Exact, payer.Address, seller.Address, 50, int64(nonce)), payer)
		c := &evm.PermitCall{Permit: signPermit(t, chain, other, payer), Charge: common.Big1}
		looks(t, chain, ours, c, settled(t, chain, accomplice, c), evm.Spent, 0)
		reverts(t, chain, facilitator, &evm.PermitCall{Permit: ours}, "InvalidNonce()")
	}
}

// The payer himself can be a spender of Permit2. No log names the nonce, so only its bit tells.
func TestAPermitWithoutWitnessSpendsTheNonceUnseen(t *testing.T) {
	chain, _ := startPaused(t)
	payer, seller, facilitator := chain.Account("payer"), chain.Account("seller"), chain.Account("facilitator")
	approve(t, chain, payer)
	ours := signPermit(t, chain, permit(chain, payment.Exact, payer.Address, seller.Address, 50, 9), payer)

	typeHash := crypto.Keccak256([]byte("PermitTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline)TokenPermissions(address token,uint256 amount)"))
	permissionsHash := crypto.Keccak256([]byte("TokenPermissions(address token,uint256 amount)"))
	word := func(n *big.Int) []byte { return common.BigToHash(n).Bytes() }
	account := func(a common.Address) []byte { return common.LeftPadBytes(a[:], 32) }
	content := crypto.Keccak256(typeHash, crypto.Keccak256(permissionsHash, account(devchain.USDC), word(big.NewInt(50))), account(payer.Address), word(ours.Nonce), word(forever))
	separator := evm.Permit2Separator(chain.ChainID())
	signature := signDigest(t, crypto.Keccak256([]byte{0x19, 0x01}, separator[:], content), payer.Key)

	type tokenPermissions struct {
		Token  common.Address
		Amount *big.Int
	}
	type permitTransferFrom struct {
		Permitted       tokenPermissions
		Nonce, Deadline *big.Int
	}
	type details struct {
		To              common.Address
		RequestedAmount *big.Int
	}
	call := func(amount int64) []byte {
		data, err := devchain.Permit2Contract().ABI.Pack("permitTransferFrom", permitTransferFrom{tokenPermissions{devchain.USDC, big.NewInt(50)}, ours.Nonce, forever},
			details{payer.Address, big.NewInt(amount)}, payer.Address, signature)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if got := revertOf(t, chain, payer.Address, devchain.Permit2, call(51)); got != "InvalidAmount(uint256)" {
		t.Errorf("more than was permitted: %q", got)
	}
	if got := revertOf(t, chain, facilitator.Address, devchain.Permit2, call(50)); got != "InvalidSigner()" {
		t.Errorf("by another spender: %q", got)
	}
	r := seal(t, chain, payer, devchain.Permit2, call(50))
	if r.Status != types.ReceiptStatusSuccessful || len(r.Logs) != 1 || r.Logs[0].Address != devchain.USDC {
		t.Fatalf("status %d, logs %v; want a Transfer alone", r.Status, r.Logs)
	}
	if fate, _, _ := ours.Look(callsOf(t, chain, r), logsOf(r)); fate != evm.Untouched {
		t.Errorf("fate %d", fate)
	}
	used(t, chain, ours, true)
	reverts(t, chain, facilitator, &evm.PermitCall{Permit: ours}, "InvalidNonce()")
}

// Several settlements in one transaction, some of which fail: the trace shows which were made.
func TestEachPermitOfABatchIsJudgedByTheTrace(t *testing.T) {
	chain, _ := startPaused(t)
	payer, seller, facilitator := chain.Account("payer"), chain.Account("seller"), chain.Account("facilitator")
	approve(t, chain, payer)
	var permits []*evm.SignedPermit
	var calls []call3
	for i := range int64(8) {
		signer := payer
		if i%3 == 1 {
			signer = seller // not the payer's signature
		}
		s := signPermit(t, chain, permit(chain, payment.Exact, payer.Address, seller.Address, 10, i), signer)
		permits = append(permits, s)
		calls = append(calls, call3{devchain.ExactProxy, true, (&evm.PermitCall{Permit: s}).Calldata()})
	}
	r := seal(t, chain, facilitator, devchain.Multicall3, packMulticall(t, "aggregate3", calls))
	if r.Status != types.ReceiptStatusSuccessful {
		t.Fatal("the batch reverted")
	}
	trace, places := callsOf(t, chain, r), map[uint]bool{}
	for i, s := range permits {
		want := evm.Paid
		if i%3 == 1 {
			want = evm.Untouched
		}
		fate, _, index := s.Look(trace, logsOf(r))
		if fate != want || fate == evm.Paid && places[index] {
			t.Errorf("permit %d: fate %d at %d", i, fate, index)
		}
		places[index] = true
		used(t, chain, s, want == evm.Paid)
		if fate, _, _ := s.Look([]evm.Call{{To: devchain.Multicall3, Data: packMulticall(t, "aggregate3", calls)}}, logsOf(r)); fate != evm.Untouched {
			t.Errorf("permit %d: fate %d without a trace", i, fate)
		}
	}
	checkUSDC(t, chain, seller.Address, 50)
}

// Permit2 takes silence for a yes, so a token must be known to be one.
func TestATokenWithoutCodeIsSettledWithNothing(t *testing.T) {
	chain, _ := startPaused(t)
	payer, facilitator := chain.Account("payer"), chain.Account("facilitator")
	s := permit(chain, payment.Exact, payer.Address, chain.Account("seller").Address, 5, 0)
	s.Token = address("no token")
	c := &evm.PermitCall{Permit: signPermit(t, chain, s, payer)}
	r := settled(t, chain, facilitator, c)
	if fate, _, _ := s.Look(callsOf(t, chain, r), logsOf(r)); fate != evm.Spent {
		t.Errorf("fate %d", fate)
	}
}

// A token that says no, says nothing that counts, or is not there for the call.
func TestATokenMustAgree(t *testing.T) {
	chain, _ := startPaused(t)
	payer, facilitator := chain.Account("payer"), chain.Account("facilitator")
	evil := address("a token")
	s := permit(chain, payment.Exact, payer.Address, chain.Account("seller").Address, 5, 0)
	s.Token = evil
	c := &evm.PermitCall{Permit: signPermit(t, chain, s, payer)}
	for name, row := range map[string]struct{ code, want string }{
		"true":       {"60015f5260205ff3", ""},
		"silence":    {"00", ""},
		"false":      {"5f5f5260205ff3", "TRANSFER_FROM_FAILED"},
		"two":        {"60025f5260205ff3", "TRANSFER_FROM_FAILED"},
		"31 bytes":   {"60015f52601f5ff3", "TRANSFER_FROM_FAILED"},
		"a revert":   {"60015f5260205ffd", "TRANSFER_FROM_FAILED"},
		"no opcodes": {"fe", "TRANSFER_FROM_FAILED"},
	} {
		if err := chain.SetCode(evil, common.FromHex(row.code), nil); err != nil {
			t.Fatal(err)
		}
		if got := revertOf(t, chain, facilitator.Address, devchain.ExactProxy, c.Calldata()); got != row.want {
			t.Errorf("%s: reverts with %q, want %q", name, got, row.want)
		}
	}
}

// A proxy makes one settlement at a time, on which the judgement of logs relies.
func TestATokenCannotSettleDuringASettlement(t *testing.T) {
	chain, _ := startPaused(t)
	payer, facilitator := chain.Account("payer"), chain.Account("facilitator")
	approve(t, chain, payer)
	for nonce, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		evil := address("a token that settles by " + string(scheme))
		inner := signPermit(t, chain, permit(chain, scheme, payer.Address, chain.Account("seller").Address, 1, int64(nonce)), payer)
		data := (&evm.PermitCall{Permit: inner}).Calldata()
		size := []byte{byte(len(data) >> 8), byte(len(data))}
		code := slices.Concat(
			[]byte{0x61}, size, []byte{0x60, 0x2c, 0x5f, 0x39}, // copy the data behind the code to memory
			[]byte{0x60, 0x20, 0x5f, 0x61}, size, []byte{0x5f, 0x5f, 0x73}, inner.Spender[:], []byte{0x5a, 0xf1, 0x50}, // call the proxy with it
			[]byte{0x5f, 0x51, 0x5f, 0x55, 0x00}, // keep the first word of the answer
			data)
		if err := chain.SetCode(evil, code, nil); err != nil {
			t.Fatal(err)
		}
		outer := permit(chain, scheme, payer.Address, chain.Account("seller").Address, 1, int64(10+nonce))
		outer.Token = evil
		settled(t, chain, facilitator, &evm.PermitCall{Permit: signPermit(t, chain, outer, payer)})
		answer, err := chain.Client().StorageAt(t.Context(), evil, common.Hash{}, nil)
		if err != nil || !bytes.HasPrefix(answer, common.FromHex("0x3ee5aeb5")) {
			t.Errorf("%s: the inner settlement answers %x, %v; want ReentrancyGuardReentrantCall", scheme, answer, err)
		}
		used(t, chain, inner, false)
	}
}
