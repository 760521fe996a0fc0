package devchain

import (
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"
)

// SetWallet makes account an ERC-1271 wallet that approves what owner signs. It seals a block.
func (c *Chain) SetWallet(account, owner common.Address) error {
	return c.SetCode(account, TestWallet().Code, map[common.Hash]common.Hash{
		walletOwnerSlot: common.BytesToHash(owner[:]),
	})
}

// SetWalletFactory makes account a factory of such wallets: createAccount(owner, salt) deploys one at an address that
// accountAddress(owner, salt) knows before. It seals a block.
func (c *Chain) SetWalletFactory(account common.Address) error {
	return c.SetCode(account, WalletFactory().Code, nil)
}

// SetDelegateWallet makes account code that others may delegate to: whoever does is a wallet that approves what its own
// key signs. It seals a block.
func (c *Chain) SetDelegateWallet(account common.Address) error {
	return c.SetCode(account, DelegateWallet().Code, nil)
}

// Delegate has from run the code of to (EIP-7702), or none where to is the zero address. Somebody else pays for the
// transaction; even while paused it is sealed on return.
func (c *Chain) Delegate(from Account, to common.Address) error {
	delegation, err := types.SignSetCode(from.Key, types.SetCodeAuthorization{
		ChainID: *uint256.NewInt(chainID), Address: to, Nonce: c.headState().GetNonce(from.Address),
	})
	if err != nil {
		return fmt.Errorf("devchain: signing a delegation: %w", err)
	}
	err = c.command("the account", func(nonce uint64, feeCap *big.Int) types.TxData {
		return &types.SetCodeTx{
			ChainID: uint256.NewInt(chainID), Nonce: nonce, GasFeeCap: uint256.MustFromBig(feeCap), GasTipCap: uint256.NewInt(suggestedTip),
			Gas: 200_000, To: sequencer, AuthList: []types.SetCodeAuthorization{delegation},
		}
	})
	if err != nil {
		return err
	}
	// A delegation that does not apply is no reason for a transaction to fail.
	if got, delegated := types.ParseDelegation(c.headState().GetCode(from.Address)); got != to || delegated != (to != common.Address{}) {
		return fmt.Errorf("devchain: the delegation of %s did not apply: it sends transactions of its own meanwhile", from.Label)
	}
	return nil
}

// A Trick is what a hostile wallet does to who pays for the gas. Otherwise it approves every signature. Those that can
// tell a simulation from a transaction approve in the simulation, and burn all gas in the transaction.
type Trick uint64

const (
	NoTrick      Trick = iota
	BurnsGas           // burns all gas it is given
	ReturnsMuch        // approves with an answer of as many bytes as its argument says
	SeesGasPrice       // burns where gas has a price
	SeesBaseFee        // burns where the block has a base fee
	SeesOrigin         // burns unless the sender is the zero address
	SeesCoinbase       // burns unless the tips go to the address that its argument is
	SeesGas            // burns where it is given less gas than its argument says
	SeesBlock          // burns in blocks of odd number
	Obeys              // refuses once command(true) was called, by anyone, until command(false)
)

// SetHostileWallet makes account a contract wallet that plays one trick. It seals a block.
func (c *Chain) SetHostileWallet(account common.Address, trick Trick, argument *big.Int) error {
	return c.SetCode(account, HostileWallet().Code, map[common.Hash]common.Hash{
		{}:                            common.BigToHash(new(big.Int).SetUint64(uint64(trick))),
		common.BigToHash(common.Big1): common.BigToHash(argument),
	})
}
