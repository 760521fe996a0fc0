package devchain

import (
	"crypto/ecdsa"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// Account is a labelled key pair.
type Account struct {
	Label   string
	Address common.Address
	Key     *ecdsa.PrivateKey
}

// controlLabel names the account whose transactions Mint, SetBlacklisted and SetPaused send.
const controlLabel = "control"

func accountLabels() []string {
	return []string{"facilitator", "facilitator2", "seller", "payer", "payer2", "payer3", "payer4", "agent"}
}

// DeriveAccount returns the account of a label: its key is keccak256("tollgate devchain/" + label). Anyone can compute
// it. Whatever such an account receives on a real chain is taken within seconds.
func DeriveAccount(label string) Account {
	seed := crypto.Keccak256([]byte("tollgate devchain/" + label))
	for {
		key, err := crypto.ToECDSA(seed)
		if err == nil {
			return Account{Label: label, Address: crypto.PubkeyToAddress(key.PublicKey), Key: key}
		}
		seed = crypto.Keccak256(seed) // not a scalar of the curve: one hash in 2^128
	}
}

// Accounts returns the accounts that are funded in genesis: each holds 10,000 ETH and, except "seller", 1,000,000 USDC.
func (c *Chain) Accounts() []Account {
	var accounts []Account
	for _, label := range accountLabels() {
		accounts = append(accounts, DeriveAccount(label))
	}
	return accounts
}

// Account returns the account of a label. One that Accounts does not list is valid and empty.
func (c *Chain) Account(label string) Account { return DeriveAccount(label) }

// ETHBalance returns what account holds at the head, in wei. It panics once the chain is closed.
func (c *Chain) ETHBalance(account common.Address) *big.Int {
	return c.headState().GetBalance(account).ToBig()
}
