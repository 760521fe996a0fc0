package devchain_test

import (
	"bytes"
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment/evm"
)

// contractCap is the gas that a payment by a contract wallet may take.
const contractCap = 500_000

// usdcSeparator is that of the token in genesis.
var usdcSeparator = evm.Domain{Name: "USDC", Version: "2", ChainID: 84532, Contract: devchain.USDC}.Separator()

// owed returns what an account owes the seller, for a key or a wallet to sign.
func owed(t testing.TB, chain *devchain.Chain, from common.Address, value int64) *evm.Transfer {
	t.Helper()
	a := authorize(chain, from, chain.Account("seller").Address, value)
	return &evm.Transfer{Authorization: evm.Authorization{
		From: a.from, To: a.to, Value: a.value, ValidAfter: big.NewInt(a.validAfter), ValidBefore: big.NewInt(a.validBefore), Nonce: a.nonce,
	}}
}

// signedBy is owed, with the signature of a key in it.
func signedBy(t testing.TB, chain *devchain.Chain, from common.Address, value int64, signer devchain.Account) *evm.Instrument {
	t.Helper()
	transfer := owed(t, chain, from, value)
	digest := transfer.Digest(usdcSeparator)
	transfer.Signature = signDigest(t, digest[:], signer.Key)
	return evm.OfTransfer(devchain.USDC, transfer)
}

// accountOf reads what an account is now.
func accountOf(t testing.TB, chain *devchain.Chain, account common.Address) evm.Account {
	t.Helper()
	code, err := chain.Client().CodeAt(t.Context(), account, nil)
	if err != nil {
		t.Fatal(err)
	}
	return evm.AccountOf(code)
}

// way decides as a facilitator does how a payment is to be checked.
func way(t testing.TB, chain *devchain.Chain, i *evm.Instrument) (evm.Way, error) {
	t.Helper()
	contract, err := i.CheckSigner(usdcSeparator)
	if err != nil {
		return 0, err
	}
	return i.Way(accountOf(t, chain, i.Payer), contract)
}

// accepts asks a wallet itself.
func accepts(t testing.TB, chain *devchain.Chain, i *evm.Instrument) bool {
	t.Helper()
	ask := i.SignatureCall(usdcSeparator)
	answer, err := chain.Call(t.Context(), ask.To, ask.Data)
	return err == nil && evm.SignatureAccepted(answer)
}

// sealCall sends a call with a limit of gas, and seals it.
func sealCall(t testing.TB, chain *devchain.Chain, gas uint64, call evm.Call) *types.Receipt {
	t.Helper()
	lane := chain.Account("facilitator")
	nonce, err := chain.Client().PendingNonceAt(t.Context(), lane.Address)
	if err != nil {
		t.Fatal(err)
	}
	id := new(big.Int).SetUint64(chain.ChainID())
	tx, err := types.SignNewTx(lane.Key, types.LatestSignerForChainID(id), &types.DynamicFeeTx{
		ChainID: id, Nonce: nonce, GasTipCap: big.NewInt(1e6), GasFeeCap: big.NewInt(1e9), Gas: gas, To: &call.To, Data: call.Data,
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
	return receipt(t, chain, tx.Hash())
}

// paid checks that a receipt's logs prove a payment.
func paid(t testing.TB, r *types.Receipt, i *evm.Instrument) {
	t.Helper()
	if fate, _, _ := i.Judge(nil, logsOf(r)); r.Status != types.ReceiptStatusSuccessful || fate != evm.Paid {
		t.Errorf("status %d, fate %v, want a payment", r.Status, fate)
	}
}

func TestAContractWalletPaysWithWhatItsOwnerSigned(t *testing.T) {
	chain, _ := startPaused(t)
	owner, stranger := chain.Account("payer"), chain.Account("payer2")
	if got := accountOf(t, chain, devchain.Wallet); got.Kind != evm.Contract {
		t.Errorf("the wallet is %s", got.Kind)
	}
	good, bad := signedBy(t, chain, devchain.Wallet, 7, owner), signedBy(t, chain, devchain.Wallet, 7, stranger)
	for _, i := range []*evm.Instrument{good, bad} {
		if w, err := way(t, chain, i); err != nil || w != evm.ByContract {
			t.Errorf("to be checked by %v, %v", w, err)
		}
	}
	if !accepts(t, chain, good) || accepts(t, chain, bad) {
		t.Error("the wallet accepts something else")
	}
	refused(t, chain, bad.Transfer.CalldataBytes(), "FiatTokenV2: invalid signature")
	refused(t, chain, bad.Transfer.Calldata(), "FiatTokenV2: invalid signature")
	r := sealCall(t, chain, contractCap, evm.Call{To: devchain.USDC, Data: good.Transfer.CalldataBytes()})
	paid(t, r, good)
	t.Logf("a payment by a contract wallet took %d gas", r.GasUsed)
	if r.GasUsed > 150_000 {
		t.Errorf("%d gas", r.GasUsed)
	}
}

var walletFactory = common.HexToAddress("0xfac7000000000000000000000000000000000001")

// undeployed returns a wallet of owner that does not exist yet, holds some
// money, and pays with it when deployed by the call that it names.
func undeployed(t testing.TB, chain *devchain.Chain, owner devchain.Account, salt int64) *evm.Instrument {
	t.Helper()
	factory := devchain.WalletFactory().ABI
	ask, err := factory.Pack("accountAddress", owner.Address, big.NewInt(salt))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := chain.Call(t.Context(), walletFactory, ask)
	if err != nil {
		t.Fatal(err)
	}
	wallet := common.BytesToAddress(answer)
	if err := chain.Mint(wallet, big.NewInt(1000)); err != nil {
		t.Fatal(err)
	}
	deploy, err := factory.Pack("createAccount", owner.Address, big.NewInt(salt))
	if err != nil {
		t.Fatal(err)
	}
	i := signedBy(t, chain, wallet, 10, owner)
	i.Transfer.Signature = (&evm.Wrapper{Factory: walletFactory, Calldata: deploy, Signature: i.Transfer.Signature}).Encode()
	return i
}

// tried simulates the deployment of a payer's wallet and its payment.
func tried(t testing.TB, chain *devchain.Chain, i *evm.Instrument) (deployed, spent bool) {
	t.Helper()
	call, err := i.DeployAndSpend(i.Most)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := chain.Call(t.Context(), call.To, call.Data)
	if err != nil {
		t.Fatal(err)
	}
	deployed, spent, err = evm.DeployedAndSpent(answer)
	if err != nil {
		t.Fatal(err)
	}
	return deployed, spent
}

func TestAWalletIsDeployedAndPaysInOneCall(t *testing.T) {
	chain, _ := startPaused(t)
	if err := chain.SetWalletFactory(walletFactory); err != nil {
		t.Fatal(err)
	}
	owner := chain.Account("payer")
	i := undeployed(t, chain, owner, 1)
	if w, err := way(t, chain, i); err != nil || w != evm.ByFactory {
		t.Fatalf("to be checked by %v, %v", w, err)
	}
	if got := accountOf(t, chain, i.Payer); got.Kind != evm.Plain {
		t.Errorf("before it is deployed the wallet is %s", got.Kind)
	}
	if deployed, spent := tried(t, chain, i); !deployed || !spent {
		t.Fatalf("deployed: %v, spent: %v", deployed, spent)
	}
	call, err := i.DeployAndSpend(i.Most)
	if err != nil {
		t.Fatal(err)
	}
	r := sealCall(t, chain, 1_000_000, call)
	paid(t, r, i)
	t.Logf("deploying a wallet of %d bytes and its payment took %d gas", len(devchain.TestWallet().Code), r.GasUsed)
	if r.GasUsed < 200_000 || r.GasUsed > contractCap {
		t.Errorf("%d gas", r.GasUsed)
	}
	if got := accountOf(t, chain, i.Payer); got.Kind != evm.Contract {
		t.Errorf("once it is deployed the wallet is %s", got.Kind)
	}

	// It is there now. Whoever says otherwise has the same payment checked by
	// the contract, and a factory that has nothing to do is no harm.
	again := undeployed(t, chain, owner, 1)
	if w, err := way(t, chain, again); err != nil || w != evm.ByContract || again.Payer != i.Payer {
		t.Errorf("to be checked by %v, %v", w, err)
	}
	if _, spent := tried(t, chain, again); !spent {
		t.Error("a wallet that is deployed already cannot pay with a wrapper")
	}
	paid(t, sealCall(t, chain, contractCap, again.Spend(again.Most)), again)
}

// What a wrapper deploys must be the payer, and must accept.
func TestAWrapperThatDeploysSomethingElsePaysNothing(t *testing.T) {
	chain, _ := startPaused(t)
	if err := chain.SetWalletFactory(walletFactory); err != nil {
		t.Fatal(err)
	}
	owner, stranger := chain.Account("payer"), chain.Account("payer2")
	one, other := undeployed(t, chain, owner, 1), undeployed(t, chain, owner, 2)
	mixed, _, err := evm.ReadWrapper(one.Transfer.Signature)
	if err != nil {
		t.Fatal(err)
	}
	deploysOther, _, err := evm.ReadWrapper(other.Transfer.Signature)
	if err != nil {
		t.Fatal(err)
	}
	forged := signedBy(t, chain, one.Payer, 10, stranger)
	for name, w := range map[string]*evm.Wrapper{
		"another wallet":      {Factory: walletFactory, Calldata: deploysOther.Calldata, Signature: mixed.Signature},
		"nothing":             {Factory: walletFactory, Calldata: []byte{1, 2, 3, 4}, Signature: mixed.Signature},
		"with a false key":    {Factory: walletFactory, Calldata: mixed.Calldata, Signature: forged.Transfer.Signature},
		"by no code":          {Factory: address("nobody"), Calldata: mixed.Calldata, Signature: mixed.Signature},
		"by taking the money": {Factory: devchain.USDC, Calldata: pack(t, "transfer", stranger.Address, big.NewInt(1)), Signature: mixed.Signature},
	} {
		i := evm.OfTransfer(devchain.USDC, &evm.Transfer{Authorization: one.Transfer.Authorization, Signature: w.Encode()})
		if _, spent := tried(t, chain, i); spent {
			t.Errorf("deploying %s pays", name)
		}
	}
}

// A delegated account is asked by the token as a contract is: a signature by
// its key is worth what the delegate makes of it, and nothing by itself.
func TestADelegatedAccountPaysIfItsDelegateAccepts(t *testing.T) {
	chain, _ := startPaused(t)
	payer, owner := chain.Account("payer3"), chain.Account("payer")
	delegate := address("a delegate")
	if err := chain.SetDelegateWallet(delegate); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		to     common.Address
		signer devchain.Account
		kind   evm.AccountKind
		way    evm.Way
		good   bool
	}{
		{"no delegate", common.Address{}, payer, evm.Plain, evm.ByKey, true},
		{"a delegate that knows the key", delegate, payer, evm.Delegated, evm.ByContract, true},
		{"a delegate that knows the key, with another key's signature", delegate, owner, evm.Delegated, evm.ByContract, false},
		{"a delegate that knows no owner", devchain.Wallet, payer, evm.Delegated, evm.ByContract, false},
		{"a delegate without isValidSignature", devchain.Multicall3, payer, evm.Delegated, evm.ByContract, false},
		{"a delegate without code", address("nobody"), payer, evm.Delegated, evm.ByContract, false},
		{"no delegate any more", common.Address{}, payer, evm.Plain, evm.ByKey, true},
	} {
		if err := chain.Delegate(payer, step.to); err != nil {
			t.Fatal(err)
		}
		account := accountOf(t, chain, payer.Address)
		if account.Kind != step.kind || account.Delegate != step.to {
			t.Errorf("%s: the account is %s of %s", step.name, account.Kind, account.Delegate)
		}
		i := signedBy(t, chain, payer.Address, 3, step.signer)
		if w, err := way(t, chain, i); err != nil || w != step.way {
			t.Errorf("%s: to be checked by %v, %v", step.name, w, err)
		}
		if step.kind != evm.Plain && accepts(t, chain, i) != step.good {
			t.Errorf("%s: the delegate accepts: %v", step.name, !step.good)
		}
		for _, data := range [][]byte{i.Transfer.Calldata(), i.Transfer.CalldataBytes()} {
			if step.good {
				accepted(t, chain, data)
			} else {
				refused(t, chain, data, "FiatTokenV2: invalid signature")
			}
		}
		if step.good {
			paid(t, sealCall(t, chain, contractCap, i.Spend(i.Most)), i)
		}
	}
}

// An account can take a delegate between the check and the settlement, which
// costs the lane what a refused signature does.
func TestADelegationAfterTheCheckCostsARefusal(t *testing.T) {
	chain, _ := startPaused(t)
	payer := chain.Account("payer3")
	i := signedBy(t, chain, payer.Address, 3, payer)
	if w, err := way(t, chain, i); err != nil || w != evm.ByKey {
		t.Fatalf("to be checked by %v, %v", w, err)
	}
	accepted(t, chain, i.Transfer.Calldata())
	if err := chain.Delegate(payer, devchain.Wallet); err != nil {
		t.Fatal(err)
	}
	r := sealCall(t, chain, contractCap, i.Spend(i.Most))
	t.Logf("a payment by an account that had delegated meanwhile reverted and took %d gas", r.GasUsed)
	if r.Status == types.ReceiptStatusSuccessful || r.GasUsed > 100_000 {
		t.Errorf("status %d, %d gas", r.Status, r.GasUsed)
	}
}

// Every hostile wallet either shows itself when the payment is simulated as it
// will be sent, or costs no more than the limit of gas.
func TestAHostileWalletCostsNoMoreThanTheLimit(t *testing.T) {
	const most = 63 * contractCap / 64
	wallet := address("a hostile wallet")
	lane := devchain.DeriveAccount("facilitator").Address
	sequencer := common.HexToAddress("0x4200000000000000000000000000000000000011")
	for _, row := range []struct {
		name     string
		trick    devchain.Trick
		argument int64
		fooled   bool // a simulation that nobody has thought about finds it good
		deceived bool // so does one of what will be sent
		gas      uint64
		least    uint64 // what it costs at least
	}{
		{"honest", devchain.NoTrick, 0, true, true, contractCap, 60_000},
		{"burns gas", devchain.BurnsGas, 0, false, false, contractCap, most * 9 / 10},
		{"returns a megabyte", devchain.ReturnsMuch, 1 << 20, true, false, contractCap, most * 9 / 10},
		{"returns a megabyte, with 6 million gas", devchain.ReturnsMuch, 1 << 20, true, true, 6_000_000, 3_500_000},
		{"returns 100 kilobytes", devchain.ReturnsMuch, 100_000, true, true, contractCap, 100_000},
		{"sees the price of gas", devchain.SeesGasPrice, 0, true, false, contractCap, most * 9 / 10},
		{"sees the base fee", devchain.SeesBaseFee, 0, true, false, contractCap, most * 9 / 10},
		{"sees who sends", devchain.SeesOrigin, 0, true, false, contractCap, most * 9 / 10},
		{"sees who gets the tips", devchain.SeesCoinbase, 1, false, false, contractCap, most * 9 / 10},
		{"sees how much gas there is", devchain.SeesGas, 1_000_000, true, false, contractCap, most * 9 / 10},
		{"sees which block it is", devchain.SeesBlock, 0, true, true, contractCap, most * 9 / 10},
		{"obeys", devchain.Obeys, 0, true, true, contractCap, 30_000},
	} {
		t.Run(row.name, func(t *testing.T) {
			chain, _ := startPaused(t)
			if err := chain.Mint(wallet, big.NewInt(1000)); err != nil {
				t.Fatal(err)
			}
			if err := chain.SetHostileWallet(wallet, row.trick, big.NewInt(row.argument)); err != nil {
				t.Fatal(err)
			}
			if h := head(t, chain); h.Coinbase != sequencer {
				t.Fatalf("the tips go to %s", h.Coinbase)
			}
			transfer := owed(t, chain, wallet, 1)
			transfer.Signature = []byte("anything")
			i := evm.OfTransfer(devchain.USDC, transfer)
			if w, err := way(t, chain, i); err != nil || w != evm.ByContract {
				t.Fatalf("to be checked by %v, %v", w, err)
			}
			call := i.Spend(i.Most)
			if row.trick == devchain.SeesBlock && head(t, chain).Number.Bit(0) == 1 {
				if err := chain.Mine(1); err != nil { // a simulation is made in the head, the transaction in the next block
					t.Fatal(err)
				}
			}
			if _, err := chain.Call(t.Context(), call.To, call.Data); (err == nil) != row.fooled {
				t.Errorf("a call without fees and sender: %v", err)
			}
			if _, err := chain.Client().CallContract(t.Context(), ethereum.CallMsg{
				From: lane, To: &call.To, Data: call.Data, Gas: row.gas, GasFeeCap: big.NewInt(1e9), GasTipCap: big.NewInt(1e6),
			}, nil); (err == nil) != row.deceived {
				t.Errorf("the call as it will be sent: %v", err)
			}
			if row.trick == devchain.Obeys {
				refuse, err := devchain.HostileWallet().ABI.Pack("command", true)
				if err != nil {
					t.Fatal(err)
				}
				seal(t, chain, chain.Account("agent"), wallet, refuse)
			}
			r := sealCall(t, chain, row.gas, call)
			t.Logf("status %d, %d gas of %d; a careless simulation finds it good: %v, one of what is sent: %v", r.Status, r.GasUsed, row.gas, row.fooled, row.deceived)
			if r.GasUsed > row.gas || r.GasUsed < row.least {
				t.Errorf("%d gas, want %d to %d", r.GasUsed, row.least, row.gas)
			}
			harmless := row.trick == devchain.NoTrick || row.trick == devchain.ReturnsMuch && row.deceived
			if (r.Status == types.ReceiptStatusSuccessful) != harmless {
				t.Errorf("status %d", r.Status)
			}
		})
	}
}

// A wallet that is asked with a limit of gas cannot answer more than it pays
// for.
func TestTheAnswerOfAWalletIsBoundedByItsGas(t *testing.T) {
	chain, _ := startPaused(t)
	wallet := address("a hostile wallet")
	i := signedBy(t, chain, wallet, 1, chain.Account("payer"))
	ask := i.SignatureCall(usdcSeparator)
	longest := 0
	for _, size := range []int64{32, 1 << 15, 1 << 18, 1 << 19, 1 << 20} {
		if err := chain.SetHostileWallet(wallet, devchain.ReturnsMuch, big.NewInt(size)); err != nil {
			t.Fatal(err)
		}
		answer, err := chain.Client().CallContract(t.Context(), ethereum.CallMsg{To: &ask.To, Data: ask.Data, Gas: contractCap}, nil)
		if err == nil {
			longest = max(longest, len(answer))
			if evm.SignatureAccepted(answer) != (size == 32) {
				t.Errorf("an answer of %d bytes is accepted: %v", size, size != 32)
			}
		}
	}
	t.Logf("with %d gas the longest answer had %d bytes", contractCap, longest)
	if longest < 1<<18 || longest >= 1<<19 {
		t.Errorf("the longest answer has %d bytes", longest)
	}
}

func TestTheFactoryDeploysWhereItSaysItDoes(t *testing.T) {
	chain, _ := startPaused(t)
	if err := chain.SetWalletFactory(walletFactory); err != nil {
		t.Fatal(err)
	}
	i := undeployed(t, chain, chain.Account("payer"), 5)
	w, _, err := evm.ReadWrapper(i.Transfer.Signature)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it has nothing to do
		if r := sealCall(t, chain, 1_000_000, evm.Call{To: w.Factory, Data: w.Calldata}); r.Status != types.ReceiptStatusSuccessful {
			t.Fatal("the factory reverts")
		}
	}
	code, err := chain.Client().CodeAt(t.Context(), i.Payer, nil)
	if err != nil || !bytes.Equal(crypto.Keccak256(code), crypto.Keccak256(devchain.TestWallet().Code)) {
		t.Errorf("%d bytes of code, %v", len(code), err)
	}
}
