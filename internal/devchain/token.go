package devchain

import (
	"context"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
)

// USDCBalance returns what account holds at the head, in millionths of a USDC. It panics once the chain is closed.
func (c *Chain) USDCBalance(account common.Address) *big.Int {
	return c.headState().GetState(USDC, balanceSlot(account)).Big()
}

// PlainBalance returns what account holds of the token Plain at the head, in millionths. It panics once the chain is
// closed.
func (c *Chain) PlainBalance(account common.Address) *big.Int {
	return c.headState().GetState(Plain, balanceSlot(account)).Big()
}

// Mint gives account more USDC, in millionths, in a transaction of its own; even while paused it is sealed on return.
func (c *Chain) Mint(account common.Address, amount *big.Int) error {
	return c.transact(TestUSDC().ABI.Pack("mint", account, amount))
}

// SetBlacklisted makes the token refuse account, or accept it again. Even while paused it is sealed on return.
func (c *Chain) SetBlacklisted(account common.Address, blacklisted bool) error {
	if blacklisted {
		return c.transact(TestUSDC().ABI.Pack("blacklist", account))
	}
	return c.transact(TestUSDC().ABI.Pack("unBlacklist", account))
}

// SetPaused makes the token refuse all transfers, or accept them again. Even while paused it is sealed on return.
func (c *Chain) SetPaused(paused bool) error {
	if paused {
		return c.transact(TestUSDC().ABI.Pack("pause"))
	}
	return c.transact(TestUSDC().ABI.Pack("unpause"))
}

// Call executes data at to on the head's state, without a transaction. An error of a contract names its reason.
func (c *Chain) Call(ctx context.Context, to common.Address, data []byte) ([]byte, error) {
	return c.client.CallContract(ctx, ethereum.CallMsg{To: &to, Data: data}, nil)
}

// transact sends a call to the token from the control account, in a block of its own. It takes the results of packing
// the call.
func (c *Chain) transact(data []byte, err error) error {
	if err != nil {
		return fmt.Errorf("devchain: %w", err)
	}
	return c.command("the token", func(nonce uint64, feeCap *big.Int) types.TxData {
		return &types.DynamicFeeTx{
			ChainID: big.NewInt(chainID), Nonce: nonce, GasFeeCap: feeCap, GasTipCap: big.NewInt(suggestedTip),
			Gas: 200_000, To: &USDC, Data: data,
		}
	})
}

// command sends a transaction from the control account, in a block of its own. whom is who may refuse it.
func (c *Chain) command(whom string, write func(nonce uint64, feeCap *big.Int) types.TxData) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.extend(func(d *draft) error {
		control := DeriveAccount(controlLabel)
		for _, tx := range c.waiting()[control.Address] { // returned by a reorganization
			if err := d.include(tx); err != nil {
				return fmt.Errorf("devchain: repeating a control transaction after a reorganization: %w", err)
			}
		}
		feeCap := new(big.Int).Mul(d.header.BaseFee, big.NewInt(1000)) // still enough after a reorganization
		signer := types.LatestSignerForChainID(big.NewInt(chainID))
		tx, err := types.SignNewTx(control.Key, signer, write(d.state.GetNonce(control.Address), feeCap))
		if err != nil {
			return fmt.Errorf("devchain: signing a control transaction: %w", err)
		}
		if err := d.include(tx); err != nil {
			return fmt.Errorf("devchain: control transaction: %w", err)
		}
		if d.receipts[len(d.receipts)-1].Status != types.ReceiptStatusSuccessful {
			return fmt.Errorf("devchain: %s refused a control transaction", whom)
		}
		return nil
	})
}
