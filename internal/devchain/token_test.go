package devchain_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"
	"github.com/holiman/uint256"

	"github.com/tollgate402/tollgate/internal/devchain"
)

const (
	transferKind = "TransferWithAuthorization"
	receiveKind  = "ReceiveWithAuthorization"
)

// authorization is an EIP-3009 authorization and the domain it is signed under.
type authorization struct {
	chainID                 int64
	verifier                common.Address
	kind                    string
	from, to                common.Address
	value                   *big.Int
	validAfter, validBefore int64
	nonce                   [32]byte
}

// authorize returns an authorization without limits of time, with a nonce of its own.
func authorize(chain *devchain.Chain, from, to common.Address, value int64) authorization {
	a := authorization{
		chainID: int64(chain.ChainID()), verifier: devchain.USDC, kind: transferKind,
		from: from, to: to, value: big.NewInt(value), validBefore: 1 << 40,
	}
	rand.Read(a.nonce[:])
	return a
}

// digest is computed by go-ethereum's EIP-712, independently of the contract.
func (a authorization) digest(t testing.TB) []byte {
	t.Helper()
	return typedDigest(t, a.chainID, a.verifier, a.kind, []apitypes.Type{
		{Name: "from", Type: "address"},
		{Name: "to", Type: "address"},
		{Name: "value", Type: "uint256"},
		{Name: "validAfter", Type: "uint256"},
		{Name: "validBefore", Type: "uint256"},
		{Name: "nonce", Type: "bytes32"},
	}, apitypes.TypedDataMessage{
		"from": a.from.Hex(), "to": a.to.Hex(), "value": a.value.String(),
		"validAfter": big.NewInt(a.validAfter).String(), "validBefore": big.NewInt(a.validBefore).String(),
		"nonce": hexutil.Encode(a.nonce[:]),
	})
}

func typedDigest(t testing.TB, chainID int64, token common.Address, kind string, fields []apitypes.Type, message apitypes.TypedDataMessage) []byte {
	t.Helper()
	digest, _, err := apitypes.TypedDataAndHash(apitypes.TypedData{
		Types: apitypes.Types{
			"EIP712Domain": {
				{Name: "name", Type: "string"},
				{Name: "version", Type: "string"},
				{Name: "chainId", Type: "uint256"},
				{Name: "verifyingContract", Type: "address"},
			},
			kind: fields,
		},
		PrimaryType: kind,
		Domain: apitypes.TypedDataDomain{
			Name: "USDC", Version: "2", ChainId: math.NewHexOrDecimal256(chainID), VerifyingContract: token.Hex(),
		},
		Message: message,
	})
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func (a authorization) sign(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	return signDigest(t, a.digest(t), key)
}

// signDigest returns r, s and v, with v 27 or 28.
func signDigest(t testing.TB, digest []byte, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	signature, err := crypto.Sign(digest, key)
	if err != nil {
		t.Fatal(err)
	}
	signature[64] += 27
	return signature
}

// call packs the overload that takes the signature in bytes.
func (a authorization) call(t testing.TB, signature []byte) []byte {
	t.Helper()
	return pack(t, a.method(), a.from, a.to, a.value, big.NewInt(a.validAfter), big.NewInt(a.validBefore), a.nonce, signature)
}

// callVRS packs the overload that takes v, r and s.
func (a authorization) callVRS(t testing.TB, signature []byte) []byte {
	t.Helper()
	return pack(t, a.method()+"0", a.from, a.to, a.value, big.NewInt(a.validAfter), big.NewInt(a.validBefore), a.nonce,
		signature[64], [32]byte(signature[:32]), [32]byte(signature[32:64]))
}

func (a authorization) method() string { return strings.ToLower(a.kind[:1]) + a.kind[1:] }

var token = devchain.TestUSDC()

func pack(t testing.TB, method string, args ...any) []byte {
	t.Helper()
	data, err := token.ABI.Pack(method, args...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// refused checks that a call to the token would revert with exactly this reason.
func refused(t *testing.T, chain *devchain.Chain, data []byte, reason string) {
	t.Helper()
	_, err := chain.Call(t.Context(), devchain.USDC, data)
	if err == nil || err.Error() != "execution reverted: "+reason {
		t.Errorf("got %v, want the token to revert with %q", err, reason)
	}
}

// accepted checks that a call to the token would succeed.
func accepted(t *testing.T, chain *devchain.Chain, data []byte) {
	t.Helper()
	if _, err := chain.Call(t.Context(), devchain.USDC, data); err != nil {
		t.Errorf("the token refuses: %v", err)
	}
}

// read calls a function of the token that returns one value.
func read[T any](t *testing.T, chain *devchain.Chain, method string, args ...any) T {
	t.Helper()
	result, err := chain.Call(t.Context(), devchain.USDC, pack(t, method, args...))
	if err != nil {
		t.Fatal(err)
	}
	values, err := token.ABI.Unpack(method, result)
	if err != nil {
		t.Fatal(err)
	}
	return values[0].(T)
}

// checkPair checks that two logs of the token are the use of a's nonce and, directly after it, the transfer.
func checkPair(t *testing.T, logs []*types.Log, a authorization) {
	t.Helper()
	if len(logs) != 2 {
		t.Fatalf("%d logs, want 2", len(logs))
	}
	used, transfer := logs[0], logs[1]
	if transfer.Index != used.Index+1 {
		t.Errorf("log indices %d and %d are not adjacent", used.Index, transfer.Index)
	}
	wantUsed := []common.Hash{
		crypto.Keccak256Hash([]byte("AuthorizationUsed(address,bytes32)")), common.BytesToHash(a.from[:]), a.nonce,
	}
	wantTransfer := []common.Hash{
		crypto.Keccak256Hash([]byte("Transfer(address,address,uint256)")), common.BytesToHash(a.from[:]), common.BytesToHash(a.to[:]),
	}
	if used.Address != devchain.USDC || !slices.Equal(used.Topics, wantUsed) || len(used.Data) != 0 {
		t.Errorf("first log is %v %x, want AuthorizationUsed", used.Topics, used.Data)
	}
	if transfer.Address != devchain.USDC || !slices.Equal(transfer.Topics, wantTransfer) || new(big.Int).SetBytes(transfer.Data).Cmp(a.value) != 0 {
		t.Errorf("second log is %v %x, want Transfer", transfer.Topics, transfer.Data)
	}
}

func checkUSDC(t *testing.T, chain *devchain.Chain, holder common.Address, want int64) {
	t.Helper()
	if got := chain.USDCBalance(holder); got.Cmp(big.NewInt(want)) != 0 {
		t.Errorf("%s holds %s, want %d", holder, got, want)
	}
}

func TestTokenDescribesItselfAsUSDCOnBaseSepolia(t *testing.T) {
	chain, _ := startPaused(t)
	if name, symbol, version := read[string](t, chain, "name"), read[string](t, chain, "symbol"), read[string](t, chain, "version"); name != "USDC" || symbol != "USDC" || version != "2" {
		t.Errorf("name %q, symbol %q, version %q", name, symbol, version)
	}
	if decimals := read[uint8](t, chain, "decimals"); decimals != 6 {
		t.Errorf("%d decimals", decimals)
	}
	separator := read[[32]byte](t, chain, "DOMAIN_SEPARATOR")
	if text := hexutil.Encode(separator[:]); !strings.HasPrefix(text, "0x71f17a3b") || !strings.HasSuffix(text, "9818") {
		t.Errorf("domain separator %s, want Base Sepolia's 0x71f17a3b…9818", text)
	}
	kind := read[[32]byte](t, chain, "TRANSFER_WITH_AUTHORIZATION_TYPEHASH")
	if text := hexutil.Encode(kind[:]); text != "0x7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267" {
		t.Errorf("type hash %s", text)
	}
}

func TestTokenHasTheSelectorsThatPaymentsUse(t *testing.T) {
	for method, want := range map[string]string{
		"transferWithAuthorization":  "0xcf092995",
		"transferWithAuthorization0": "0xe3ee160e",
		"receiveWithAuthorization":   "0x88b7ab63",
		"receiveWithAuthorization0":  "0xef55bec6",
		"cancelAuthorization":        "0xb7b72899",
		"cancelAuthorization0":       "0x5a049a70",
		"permit":                     "0x9fd5a6cf",
		"permit0":                    "0xd505accf",
		"authorizationState":         "0xe94a0102",
	} {
		if got := hexutil.Encode(token.ABI.Methods[method].ID); got != want {
			t.Errorf("%s has selector %s, want %s", method, got, want)
		}
	}
}

func TestSupplyIsTheSumOfGenesisBalances(t *testing.T) {
	chain, _ := startPaused(t)
	sum := chain.USDCBalance(devchain.Wallet)
	for _, account := range chain.Accounts() {
		balance := chain.USDCBalance(account.Address)
		if read[*big.Int](t, chain, "balanceOf", account.Address).Cmp(balance) != 0 {
			t.Errorf("balanceOf %s is not what is in storage", account.Label)
		}
		if want := account.Label != "seller"; (balance.Sign() > 0) != want {
			t.Errorf("%s holds %s", account.Label, balance)
		}
		if chain.ETHBalance(account.Address).Sign() == 0 {
			t.Errorf("%s has no ETH", account.Label)
		}
		sum.Add(sum, balance)
	}
	if supply := read[*big.Int](t, chain, "totalSupply"); supply.Cmp(sum) != 0 {
		t.Errorf("supply %s, balances %s", supply, sum)
	}
}

func TestAuthorizedTransferLogsUseDirectlyBeforeTransfer(t *testing.T) {
	for name, call := range map[string]func(authorization, testing.TB, []byte) []byte{
		"bytes": authorization.call, "vrs": authorization.callVRS,
	} {
		t.Run(name, func(t *testing.T) {
			chain, _ := startPaused(t)
			payer, seller := chain.Account("payer"), chain.Account("seller")
			a := authorize(chain, payer.Address, seller.Address, 1234)
			r := seal(t, chain, chain.Account("facilitator"), devchain.USDC, call(a, t, a.sign(t, payer.Key)))
			if r.Status != types.ReceiptStatusSuccessful {
				t.Fatal("reverted")
			}
			checkPair(t, r.Logs, a)
			checkUSDC(t, chain, seller.Address, 1234)
			checkUSDC(t, chain, payer.Address, 1e12-1234)
			if !read[bool](t, chain, "authorizationState", payer.Address, a.nonce) {
				t.Error("the nonce is not marked as used")
			}
		})
	}
}

func TestAuthorizationIsGoodOnce(t *testing.T) {
	chain, _ := startPaused(t)
	payer, seller := chain.Account("payer"), chain.Account("seller")
	a := authorize(chain, payer.Address, seller.Address, 5)
	signature := a.sign(t, payer.Key)
	seal(t, chain, chain.Account("facilitator"), devchain.USDC, a.call(t, signature))

	refused(t, chain, a.callVRS(t, signature), "FiatTokenV2: authorization is used or canceled")
	if r := seal(t, chain, chain.Account("facilitator"), devchain.USDC, a.call(t, signature)); r.Status != types.ReceiptStatusFailed || len(r.Logs) != 0 {
		t.Errorf("replay has status %d and %d logs", r.Status, len(r.Logs))
	}
	checkUSDC(t, chain, seller.Address, 5)
}

func TestBothBoundsOfTimeAreStrict(t *testing.T) {
	chain, now := startPaused(t)
	payer := chain.Account("payer")
	if err := chain.Mine(1); err != nil {
		t.Fatal(err)
	}
	at := now.Now().Unix()
	for _, c := range []struct {
		validAfter, validBefore int64
		reason                  string
	}{
		{at - 1, at + 1, ""},
		{at, at + 1, "FiatTokenV2: authorization is not yet valid"},
		{at + 1, at + 2, "FiatTokenV2: authorization is not yet valid"},
		{at - 1, at, "FiatTokenV2: authorization is expired"},
		{0, at - 1, "FiatTokenV2: authorization is expired"},
	} {
		a := authorize(chain, payer.Address, chain.Account("seller").Address, 1)
		a.validAfter, a.validBefore = c.validAfter, c.validBefore
		if data := a.call(t, a.sign(t, payer.Key)); c.reason == "" {
			accepted(t, chain, data)
		} else {
			refused(t, chain, data, c.reason)
		}
	}
}

func TestExpiryFollowsTheClockOfTheChain(t *testing.T) {
	chain, now := startPaused(t)
	payer := chain.Account("payer")
	a := authorize(chain, payer.Address, chain.Account("seller").Address, 1)
	a.validBefore = now.Now().Unix() + 60
	data := a.call(t, a.sign(t, payer.Key))
	accepted(t, chain, data)

	now.Advance(time.Minute)
	if r := seal(t, chain, chain.Account("facilitator"), devchain.USDC, data); r.Status != types.ReceiptStatusFailed {
		t.Error("an expired authorization was accepted")
	}
	refused(t, chain, data, "FiatTokenV2: authorization is expired")
}

func TestTokenRefusesSignaturesThatAreNotCanonical(t *testing.T) {
	chain, _ := startPaused(t)
	payer := chain.Account("payer")
	a := authorize(chain, payer.Address, chain.Account("seller").Address, 1)
	good := a.sign(t, payer.Key)

	mirrored := slices.Clone(good)
	s := new(big.Int).Sub(crypto.S256().Params().N, new(big.Int).SetBytes(good[32:64]))
	s.FillBytes(mirrored[32:64])
	mirrored[64] = 27 + 28 - good[64]
	low := slices.Clone(good)
	low[64] -= 27
	zero := make([]byte, 65)
	zero[64] = 27
	otherToken, otherChain := a, a
	otherToken.verifier, otherChain.chainID = address("another token"), 8453
	otherKind, otherValue := a, a
	otherKind.kind, otherValue.value = receiveKind, big.NewInt(2)

	for name, c := range map[string]struct {
		signature []byte
		reason    string
	}{
		"high s":       {mirrored, "ECRecover: invalid signature 's' value"},
		"v of 0 or 1":  {low, "ECRecover: invalid signature 'v' value"},
		"zero":         {zero, "ECRecover: invalid signature"},
		"other key":    {a.sign(t, chain.Account("payer2").Key), "FiatTokenV2: invalid signature"},
		"other token":  {otherToken.sign(t, payer.Key), "FiatTokenV2: invalid signature"},
		"other chain":  {otherChain.sign(t, payer.Key), "FiatTokenV2: invalid signature"},
		"other kind":   {otherKind.sign(t, payer.Key), "FiatTokenV2: invalid signature"},
		"other amount": {otherValue.sign(t, payer.Key), "FiatTokenV2: invalid signature"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, chain, a.call(t, c.signature), c.reason)
			refused(t, chain, a.callVRS(t, c.signature), c.reason)
		})
	}
	refused(t, chain, a.call(t, good[:64]), "ECRecover: invalid signature length")
	refused(t, chain, a.call(t, append(good, 0)), "ECRecover: invalid signature length")
	refused(t, chain, a.call(t, nil), "ECRecover: invalid signature length")
	accepted(t, chain, a.call(t, good))
}

func TestWalletContractPaysWithItsOwnersSignature(t *testing.T) {
	chain, _ := startPaused(t)
	seller := chain.Account("seller")
	a := authorize(chain, devchain.Wallet, seller.Address, 7)
	refused(t, chain, a.call(t, a.sign(t, chain.Account("payer2").Key)), "FiatTokenV2: invalid signature")
	refused(t, chain, a.call(t, []byte("no signature at all")), "FiatTokenV2: invalid signature")

	signature := a.sign(t, chain.Account("payer").Key)
	accepted(t, chain, a.callVRS(t, signature))
	r := seal(t, chain, chain.Account("facilitator"), devchain.USDC, a.call(t, signature))
	checkPair(t, r.Logs, a)
	checkUSDC(t, chain, seller.Address, 7)
}

func TestWalletMustReturnTheWholeMagicWord(t *testing.T) {
	chain, _ := startPaused(t)
	if err := chain.Mint(devchain.Wallet, big.NewInt(1)); err != nil {
		t.Fatal(err)
	}
	a := authorize(chain, devchain.Wallet, chain.Account("seller").Address, 1)
	data := a.call(t, []byte("whatever"))
	for name, c := range map[string]struct {
		code string
		ok   bool
	}{
		"exact":     {"7f1626ba7e00000000000000000000000000000000000000000000000000000000" + "5f5260205ff3", true},
		"trailing":  {"7f1626ba7e00000000000000000000000000000000000000000000000000000001" + "5f5260205ff3", false},
		"left":      {"7f000000000000000000000000000000000000000000000000000000001626ba7e" + "5f5260205ff3", false},
		"too short": {"7f1626ba7e00000000000000000000000000000000000000000000000000000000" + "5f52601f5ff3", false},
		"reverting": {"7f1626ba7e00000000000000000000000000000000000000000000000000000000" + "5f5260205ffd", false},
		"mute":      {"00", false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := chain.SetCode(devchain.Wallet, common.FromHex(c.code), nil); err != nil {
				t.Fatal(err)
			}
			if c.ok {
				accepted(t, chain, data)
			} else {
				refused(t, chain, data, "FiatTokenV2: invalid signature")
			}
		})
	}
}

func TestAccountThatDelegatesIsAskedAsAWallet(t *testing.T) {
	chain, _ := startPaused(t)
	payer, payer2 := chain.Account("payer"), chain.Account("payer2")
	authorityNonce, err := chain.Client().PendingNonceAt(t.Context(), payer.Address)
	if err != nil {
		t.Fatal(err)
	}
	delegation, err := types.SignSetCode(payer.Key, types.SetCodeAuthorization{
		ChainID: *uint256.NewInt(chain.ChainID()), Address: devchain.Wallet, Nonce: authorityNonce,
	})
	if err != nil {
		t.Fatal(err)
	}
	id := new(big.Int).SetUint64(chain.ChainID())
	tx, err := types.SignNewTx(payer2.Key, types.LatestSignerForChainID(id), &types.SetCodeTx{
		ChainID: uint256.MustFromBig(id), GasTipCap: uint256.NewInt(1e6), GasFeeCap: uint256.NewInt(1e9), Gas: 200_000,
		To: payer2.Address, AuthList: []types.SetCodeAuthorization{delegation},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := chain.Client().SendTransaction(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	if err := chain.Mine(1); err != nil {
		t.Fatal(err)
	}
	code, err := chain.Client().CodeAt(t.Context(), payer.Address, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := append([]byte{0xef, 0x01, 0x00}, devchain.Wallet[:]...); !bytes.Equal(code, want) {
		t.Fatalf("code %x, want the delegation %x", code, want)
	}

	// The wallet's code runs on the payer's storage, where no owner is set.
	a := authorize(chain, payer.Address, chain.Account("seller").Address, 1)
	refused(t, chain, a.call(t, a.sign(t, payer.Key)), "FiatTokenV2: invalid signature")

	if err := chain.SetCode(payer.Address, code, map[common.Hash]common.Hash{{}: common.BytesToHash(payer2.Address[:])}); err != nil {
		t.Fatal(err)
	}
	accepted(t, chain, a.call(t, a.sign(t, payer2.Key)))
}

func TestOnlyThePayeeMayReceive(t *testing.T) {
	chain, _ := startPaused(t)
	payer, seller := chain.Account("payer"), chain.Account("seller")
	for name, call := range map[string]func(authorization, testing.TB, []byte) []byte{
		"bytes": authorization.call, "vrs": authorization.callVRS,
	} {
		a := authorize(chain, payer.Address, seller.Address, 3)
		a.kind = receiveKind
		data := call(a, t, a.sign(t, payer.Key))
		refused(t, chain, data, "FiatTokenV2: caller must be the payee")
		r := seal(t, chain, seller, devchain.USDC, data)
		if r.Status != types.ReceiptStatusSuccessful {
			t.Fatalf("%s: the payee was refused", name)
		}
		checkPair(t, r.Logs, a)
	}
	checkUSDC(t, chain, seller.Address, 6)
}

func TestCancelledAuthorizationMovesNothing(t *testing.T) {
	chain, _ := startPaused(t)
	payer := chain.Account("payer")
	fields := []apitypes.Type{{Name: "authorizer", Type: "address"}, {Name: "nonce", Type: "bytes32"}}
	for _, method := range []string{"cancelAuthorization", "cancelAuthorization0"} {
		a := authorize(chain, payer.Address, chain.Account("seller").Address, 1)
		digest := typedDigest(t, a.chainID, a.verifier, "CancelAuthorization", fields, apitypes.TypedDataMessage{
			"authorizer": a.from.Hex(), "nonce": hexutil.Encode(a.nonce[:]),
		})
		packCancel := func(signature []byte) []byte {
			if method == "cancelAuthorization" {
				return pack(t, method, a.from, a.nonce, signature)
			}
			return pack(t, method, a.from, a.nonce, signature[64], [32]byte(signature[:32]), [32]byte(signature[32:64]))
		}
		refused(t, chain, packCancel(signDigest(t, digest, chain.Account("payer2").Key)), "FiatTokenV2: invalid signature")

		cancel := packCancel(signDigest(t, digest, payer.Key))
		r := seal(t, chain, chain.Account("facilitator"), devchain.USDC, cancel)
		want := []common.Hash{crypto.Keccak256Hash([]byte("AuthorizationCanceled(address,bytes32)")), common.BytesToHash(a.from[:]), a.nonce}
		if len(r.Logs) != 1 || !slices.Equal(r.Logs[0].Topics, want) {
			t.Fatalf("%s: logs %v, want AuthorizationCanceled alone", method, r.Logs)
		}
		if !read[bool](t, chain, "authorizationState", a.from, a.nonce) {
			t.Errorf("%s: the nonce is not marked as used", method)
		}
		refused(t, chain, a.call(t, a.sign(t, payer.Key)), "FiatTokenV2: authorization is used or canceled")
		refused(t, chain, cancel, "FiatTokenV2: authorization is used or canceled")
	}
}

func TestPermitAllowsAndCountsItsNonces(t *testing.T) {
	chain, now := startPaused(t)
	payer, spender := chain.Account("payer"), chain.Account("facilitator")
	fields := []apitypes.Type{
		{Name: "owner", Type: "address"},
		{Name: "spender", Type: "address"},
		{Name: "value", Type: "uint256"},
		{Name: "nonce", Type: "uint256"},
		{Name: "deadline", Type: "uint256"},
	}
	sign := func(nonce, deadline int64) []byte {
		return signDigest(t, typedDigest(t, int64(chain.ChainID()), devchain.USDC, "Permit", fields, apitypes.TypedDataMessage{
			"owner": payer.Address.Hex(), "spender": spender.Address.Hex(), "value": "50",
			"nonce": big.NewInt(nonce).String(), "deadline": big.NewInt(deadline).String(),
		}), payer.Key)
	}
	permit := func(method string, nonce, deadline int64) []byte {
		signature := sign(nonce, deadline)
		if method == "permit" {
			return pack(t, method, payer.Address, spender.Address, big.NewInt(50), big.NewInt(deadline), signature)
		}
		return pack(t, method, payer.Address, spender.Address, big.NewInt(50), big.NewInt(deadline),
			signature[64], [32]byte(signature[:32]), [32]byte(signature[32:64]))
	}
	at := now.Now().Unix()
	refused(t, chain, permit("permit", 0, at-1), "FiatTokenV2: permit is expired")
	refused(t, chain, permit("permit", 1, at), "EIP2612: invalid signature")
	for nonce, method := range []string{"permit", "permit0"} {
		if r := seal(t, chain, chain.Account("agent"), devchain.USDC, permit(method, int64(nonce), at)); r.Status != types.ReceiptStatusSuccessful {
			t.Fatalf("%s with a deadline of this second was refused", method)
		}
		if got := read[*big.Int](t, chain, "allowance", payer.Address, spender.Address); got.Int64() != 50 {
			t.Errorf("%s: allowance %s", method, got)
		}
		refused(t, chain, permit(method, int64(nonce), at), "EIP2612: invalid signature")
	}
	if got := read[*big.Int](t, chain, "nonces", payer.Address); got.Int64() != 2 {
		t.Errorf("nonce %s after two permits", got)
	}

	seller := chain.Account("seller").Address
	refused(t, chain, pack(t, "transferFrom", payer.Address, seller, big.NewInt(51)), "ERC20: transfer amount exceeds allowance")
	seal(t, chain, spender, devchain.USDC, pack(t, "transferFrom", payer.Address, seller, big.NewInt(20)))
	checkUSDC(t, chain, seller, 20)
	if got := read[*big.Int](t, chain, "allowance", payer.Address, spender.Address); got.Int64() != 30 {
		t.Errorf("allowance %s after spending 20 of 50", got)
	}
}

func TestTransferNeedsTheBalance(t *testing.T) {
	chain, _ := startPaused(t)
	seller := chain.Account("seller")
	a := authorize(chain, seller.Address, chain.Account("payer").Address, 1)
	data := a.call(t, a.sign(t, seller.Key))
	refused(t, chain, data, "ERC20: transfer amount exceeds balance")
	if err := chain.Mint(seller.Address, big.NewInt(1)); err != nil {
		t.Fatal(err)
	}
	accepted(t, chain, data)
	refused(t, chain, pack(t, "transfer", seller.Address, big.NewInt(1)), "ERC20: transfer from the zero address")
}

func TestBlacklistedAccountNeitherPaysNorIsPaid(t *testing.T) {
	chain, _ := startPaused(t)
	payer, seller := chain.Account("payer"), chain.Account("seller")
	a := authorize(chain, payer.Address, seller.Address, 1)
	data := a.call(t, a.sign(t, payer.Key))
	for _, blocked := range []common.Address{payer.Address, seller.Address} {
		if err := chain.SetBlacklisted(blocked, true); err != nil {
			t.Fatal(err)
		}
		refused(t, chain, data, "Blacklistable: account is blacklisted")
		if err := chain.SetBlacklisted(blocked, false); err != nil {
			t.Fatal(err)
		}
		accepted(t, chain, data)
	}
}

func TestPausedTokenRefusesEverything(t *testing.T) {
	chain, _ := startPaused(t)
	payer := chain.Account("payer")
	a := authorize(chain, payer.Address, chain.Account("seller").Address, 1)
	data := a.call(t, a.sign(t, payer.Key))
	if err := chain.SetPaused(true); err != nil {
		t.Fatal(err)
	}
	refused(t, chain, data, "Pausable: paused")
	refused(t, chain, transferTo(t, payer.Address, 1), "Pausable: paused")
	refused(t, chain, pack(t, "approve", payer.Address, big.NewInt(1)), "Pausable: paused")
	if err := chain.SetPaused(false); err != nil {
		t.Fatal(err)
	}
	accepted(t, chain, data)
}
