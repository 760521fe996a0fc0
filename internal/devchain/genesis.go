package devchain

import (
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/eth/ethconfig"
	"github.com/ethereum/go-ethereum/params"
)

// Contracts in genesis.
var (
	// USDC is the address of the test token, which is that of USDC on Base Sepolia.
	USDC = common.HexToAddress("0x036CbD53842c5426634e7929541eC2318f3dCF7e")
	// Plain is the address of a token with ERC-20 and nothing else, which can be paid with by Permit2 only.
	Plain = common.HexToAddress("0x0020000000000000000000000000000000000020")
	// Multicall3 is the address of Multicall3 on every chain.
	Multicall3 = common.HexToAddress("0xcA11bde05977b3631167028862bE2a173976CA11")
	// Permit2 is the address of Uniswap's Permit2 on every chain.
	Permit2 = common.HexToAddress("0x000000000022D473030F116dDEE9F6B43aC78BA3")
	// ExactProxy and UptoProxy are the addresses of x402's proxies for Permit2 on every chain.
	ExactProxy = common.HexToAddress("0x402085c248EeA27D92E8b30b2C58ed07f9E20001")
	UptoProxy  = common.HexToAddress("0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002")
	// Wallet is an ERC-1271 wallet that holds USDC and is owned by the account "payer".
	Wallet = common.HexToAddress("0x1271000000000000000000000000000000001271")
)

var (
	// sequencer receives the tips; on Base it is the vault that does.
	sequencer = common.HexToAddress("0x4200000000000000000000000000000000000011")
	// editor is an account whose nonce counts the blocks that changed the state by hand.
	editor = common.HexToAddress("0x00000000000000000000000000000000000ed170")
)

// Gas and fees resemble Base: a block has room for some 700 lone payments, a transaction for 16.78 million gas
// (EIP-7825), and the base fee has a floor, which is where it is unless blocks are more than half full.
const (
	blockGasLimit  = 60_000_000
	baseFeeFloor   = 5_000_000 // wei
	suggestedTip   = 1_000_000 // wei
	genesisETH     = 10_000
	genesisUSDC    = 1_000_000
	poolPerAccount = 4096 // transactions of one account that may wait
	poolTotal      = 16384
)

// forks lists what is active on Base. It is our own value and not go-ethereum's for development chains, which turns on
// forks with other gas costs.
func forks() *params.ChainConfig {
	first, start := new(big.Int), new(uint64)
	return &params.ChainConfig{
		ChainID:                 big.NewInt(chainID),
		HomesteadBlock:          first,
		EIP150Block:             first,
		EIP155Block:             first,
		EIP158Block:             first,
		ByzantiumBlock:          first,
		ConstantinopleBlock:     first,
		PetersburgBlock:         first,
		IstanbulBlock:           first,
		MuirGlacierBlock:        first,
		BerlinBlock:             first,
		LondonBlock:             first,
		ArrowGlacierBlock:       first,
		GrayGlacierBlock:        first,
		MergeNetsplitBlock:      first,
		TerminalTotalDifficulty: first,
		ShanghaiTime:            start,
		CancunTime:              start,
		PragueTime:              start,
		OsakaTime:               start,
		BlobScheduleConfig: &params.BlobScheduleConfig{
			Cancun: params.DefaultCancunBlobConfig,
			Prague: params.DefaultPragueBlobConfig,
		},
	}
}

// genesis holds the contracts, the funded accounts and their tokens, as much of the plain one as of USDC. The two system
// contracts are those without which go-ethereum cannot assemble the "pending" block; the others would make every empty
// block change the state.
func genesis(timestamp uint64) *core.Genesis {
	token := TestUSDC()
	wallet, owner := TestWallet(), DeriveAccount("payer").Address
	usdc := new(big.Int).Mul(big.NewInt(genesisUSDC), big.NewInt(1e6))
	supply := new(big.Int)
	tokenStorage := make(map[common.Hash]common.Hash)
	give := func(holder common.Address) {
		tokenStorage[balanceSlot(holder)] = common.BigToHash(usdc)
		supply.Add(supply, usdc)
	}
	alloc := types.GenesisAlloc{
		params.WithdrawalQueueAddress:    {Nonce: 1, Code: params.WithdrawalQueueCode, Balance: new(big.Int)},
		params.ConsolidationQueueAddress: {Nonce: 1, Code: params.ConsolidationQueueCode, Balance: new(big.Int)},
		Multicall3:                       {Nonce: 1, Code: Multicall().Code, Balance: new(big.Int)},
		Permit2:                          {Nonce: 1, Code: Permit2Contract().Code, Balance: new(big.Int)},
		ExactProxy:                       {Nonce: 1, Code: ExactProxyContract().Code, Balance: new(big.Int)},
		UptoProxy:                        {Nonce: 1, Code: UptoProxyContract().Code, Balance: new(big.Int)},
		Wallet: {Nonce: 1, Code: wallet.Code, Balance: new(big.Int), Storage: map[common.Hash]common.Hash{
			walletOwnerSlot: common.BytesToHash(owner[:]),
		}},
	}
	eth := new(big.Int).Mul(big.NewInt(genesisETH), big.NewInt(params.Ether))
	for _, label := range append(accountLabels(), controlLabel) {
		account := DeriveAccount(label).Address
		alloc[account] = types.Account{Balance: eth}
		if label != "seller" && label != controlLabel {
			give(account)
		}
	}
	give(Wallet)
	tokenStorage[supplySlot] = common.BigToHash(supply)
	alloc[USDC] = types.Account{Nonce: 1, Code: token.Code, Balance: new(big.Int), Storage: tokenStorage}
	alloc[Plain] = types.Account{Nonce: 1, Code: PlainToken().Code, Balance: new(big.Int), Storage: tokenStorage}

	return &core.Genesis{
		Config:     forks(),
		Timestamp:  timestamp,
		GasLimit:   blockGasLimit,
		Difficulty: new(big.Int),
		BaseFee:    big.NewInt(baseFeeFloor),
		Alloc:      alloc,
	}
}

// nodeSettings returns the settings of the node: everything in memory and small, pools roomy.
func nodeSettings(timestamp uint64) *ethconfig.Config {
	cfg := ethconfig.Defaults
	cfg.Genesis = genesis(timestamp)
	cfg.SyncMode = ethconfig.FullSync
	cfg.LogNoHistory = true // logs are searched by bloom; an index would cost more than it saves here
	cfg.DatabaseCache, cfg.TrieCleanCache, cfg.TrieDirtyCache, cfg.SnapshotCache = 16, 16, 16, 16

	cfg.TxPool.NoLocals = true
	cfg.TxPool.Journal = ""
	cfg.TxPool.AccountSlots, cfg.TxPool.AccountQueue = poolPerAccount, poolPerAccount
	cfg.TxPool.GlobalSlots, cfg.TxPool.GlobalQueue = poolTotal, poolTotal
	cfg.BlobPool.Datadir = ""

	// The suggested tip starts here and cannot rise: a suggestion that follows recent tips, answered by
	// senders who double it, would grow for ever.
	cfg.Miner.GasPrice = big.NewInt(suggestedTip)
	cfg.Miner.GasCeil = blockGasLimit
	cfg.GPO.Blocks = 1
	cfg.GPO.MaxPrice = big.NewInt(suggestedTip)
	return &cfg
}
