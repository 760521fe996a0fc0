package payment

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/ethereum/go-ethereum/common"
)

// A Token is the money an amount is counted in. Tokens are comparable.
type Token struct {
	Network  Network
	Address  string // contract or mint, in the network's canonical form
	Symbol   string
	Decimals uint8

	// Name and Version belong to the token's EIP-712 domain. They differ
	// between deployments of one token and never follow from the symbol.
	Name    string
	Version string

	// Dollar reports that one token is worth one US dollar, so that prices
	// may be written with a dollar sign.
	Dollar bool
}

// usdc is what is known of USDC: contract and domain name by network. All
// have 6 decimals and domain version "2". The domain separators of the first
// six and of Monad have been compared with the chains (evm/testdata/hashes.json).
var usdc = []struct {
	network Network
	address string
	name    string
}{
	{"eip155:1", "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", "USD Coin"},
	{"eip155:11155111", "0x1c7D4B196Cb0C7B01d743Fbc6116a902379C7238", "USDC"},
	{"eip155:8453", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin"},
	{"eip155:84532", "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC"},
	{"eip155:137", "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USD Coin"},
	{"eip155:80002", "0x41E94Eb019C0762f9Bfcf9Fb1E58725BfB0e7582", "USDC"},
	{"eip155:43114", "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E", "USD Coin"},
	{"eip155:43113", "0x5425890298aed601595a70AB815c96711a31Bc65", "USD Coin"},
	{"eip155:42161", "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USD Coin"},
	{"eip155:421614", "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", "USD Coin"},
	{"eip155:143", "0x754704Bc059F8C67012fEd69BC8A327a5aafb603", "USDC"},
	{"eip155:42220", "0xcebA9300f2b948710d2653dD7B07f33A8B32118C", "USDC"},
	{"eip155:1329", "0xe15fC38F6D8c56aF07bbCBe3BAf5708A2Bf42392", "USDC"},
}

// USDC returns the token of that name on an EVM network, or false where none
// is known.
func USDC(n Network) (Token, bool) {
	for _, u := range usdc {
		if u.network == n {
			return Token{Network: n, Address: u.address, Symbol: "USDC", Decimals: 6, Name: u.name, Version: "2", Dollar: true}, true
		}
	}
	return Token{}, false
}

// Is reports whether t is the same contract on the same network as other.
// Names, decimals and symbols do not count.
func (t Token) Is(other Token) bool {
	return t.Network == other.Network && t.Address == other.Address
}

// CanonicalAddress returns s in the one form in which this project stores and
// compares addresses of network n: EIP-55 on EVM chains. It accepts any case.
func CanonicalAddress(n Network, s string) (string, error) {
	if _, ok := n.ChainID(); !ok {
		if s == "" || len(s) > 128 {
			return "", errors.New("must be an address of 1 to 128 characters")
		}
		return s, nil
	}
	var a common.Address
	if len(s) != 2+2*len(a) || s[:2] != "0x" {
		return "", errNotAddress
	}
	if _, err := hex.Decode(a[:], []byte(s[2:])); err != nil {
		return "", errNotAddress
	}
	return a.Hex(), nil
}

var errNotAddress = errors.New("must be an address: 0x and 40 hexadecimal digits")

// ParseAddress is CanonicalAddress for what a person wrote down: where the
// letters are in mixed case their EIP-55 checksum must be right, and the zero
// address, where money is lost, is refused.
func ParseAddress(n Network, s string) (string, error) {
	a, err := CanonicalAddress(n, s)
	if err != nil {
		return "", fmt.Errorf("%q %w", clip(s), err)
	}
	if _, ok := n.ChainID(); !ok {
		return a, nil
	}
	digits := s[2:]
	if digits != strings.ToLower(digits) && digits != strings.ToUpper(digits) && a != s {
		return "", fmt.Errorf("%q has a wrong checksum (EIP-55): copy the address again, or write it in lower case if you are sure", s)
	}
	if (common.HexToAddress(a) == common.Address{}) {
		return "", fmt.Errorf("%q is the zero address: money sent there is lost", s)
	}
	return a, nil
}
