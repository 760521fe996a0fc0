package devchain

import (
	"embed"
	"encoding/json"
	"fmt"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
)

//go:embed contracts/artifacts/*.json
var artifacts embed.FS

// artifact is what contracts/build.mjs writes for one contract.
type artifact struct {
	Compiler         string        `json:"compiler"`
	ABI              abi.ABI       `json:"abi"`
	DeployedBytecode hexutil.Bytes `json:"deployedBytecode"`
	SourceSHA256     string        `json:"sourceSHA256"`
}

// Contract is a compiled contract: its interface and its runtime code.
type Contract struct {
	ABI  abi.ABI
	Code []byte
}

// TestUSDC returns the token of the address USDC. Of two overloads its ABI calls the one with the signature in bytes by
// the plain name and the one with (v, r, s) by that name and a 0: "permit" and "permit0".
func TestUSDC() Contract { return mustLoad("TestUSDC") }

// PlainToken returns the token of the address Plain.
func PlainToken() Contract { return mustLoad("PlainToken") }

// Multicall returns the contract of the address Multicall3.
func Multicall() Contract { return mustLoad("Multicall3") }

// Permit2Contract returns the contract of the address Permit2.
func Permit2Contract() Contract { return mustLoad("Permit2") }

// ExactProxyContract returns the contract of the address ExactProxy.
func ExactProxyContract() Contract { return mustLoad("ExactProxy") }

// UptoProxyContract returns the contract of the address UptoProxy.
func UptoProxyContract() Contract { return mustLoad("UptoProxy") }

// TestWallet returns the ERC-1271 wallet that SetWallet places.
func TestWallet() Contract { return mustLoad("TestWallet") }

// WalletFactory returns the factory of wallets that SetWalletFactory places.
func WalletFactory() Contract { return mustLoad("WalletFactory") }

// DelegateWallet returns the code that SetDelegateWallet places, for accounts to delegate to.
func DelegateWallet() Contract { return mustLoad("DelegateWallet") }

// HostileWallet returns the wallet that SetHostileWallet places.
func HostileWallet() Contract { return mustLoad("HostileWallet") }

// HostileToken returns the token that SetHostileToken places.
func HostileToken() Contract { return mustLoad("HostileToken") }

// mustLoad panics only if the artifacts in the binary are broken, which the tests exclude.
func mustLoad(name string) Contract {
	a, err := load(name)
	if err != nil {
		panic(err)
	}
	return Contract{ABI: a.ABI, Code: a.DeployedBytecode}
}

func load(name string) (artifact, error) {
	var a artifact
	data, err := artifacts.ReadFile("contracts/artifacts/" + name + ".json")
	if err != nil {
		return a, fmt.Errorf("devchain: contract %s: %w", name, err)
	}
	if err := json.Unmarshal(data, &a); err != nil {
		return a, fmt.Errorf("devchain: contract %s: %w", name, err)
	}
	return a, nil
}

// Storage slots that genesis and the controls write. They follow from the order of declarations in the sources.
var (
	supplySlot      = common.BigToHash(common.Big1)
	walletOwnerSlot = common.Hash{}
)

// balanceSlot returns where TestUSDC and PlainToken keep the balance of holder: the mapping is in slot 0.
func balanceSlot(holder common.Address) common.Hash {
	return crypto.Keccak256Hash(common.LeftPadBytes(holder[:], 32), make([]byte, 32))
}
