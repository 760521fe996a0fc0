package payment

import (
	"fmt"
	"strconv"
	"strings"
)

// A Network names a chain by CAIP-2: "eip155:8453",
// "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp".
type Network string

// EVM returns the CAIP-2 name of the EVM chain with the given id.
func EVM(chainID uint64) Network {
	return Network("eip155:" + strconv.FormatUint(chainID, 10))
}

// A known network: its v1 name, whether the legacy v1 client (npm x402 1.2.0)
// knows that name, and a name for people. The legacy client rejects a whole
// challenge over one name it does not know.
type network struct {
	id     Network
	v1     string
	legacy bool
	title  string
	test   bool
}

var networks = []network{
	{"eip155:1", "ethereum", false, "Ethereum", false},
	{"eip155:11155111", "sepolia", false, "Sepolia", true},
	{"eip155:8453", "base", true, "Base", false},
	{"eip155:84532", "base-sepolia", true, "Base Sepolia", true},
	{"eip155:137", "polygon", true, "Polygon", false},
	{"eip155:80002", "polygon-amoy", true, "Polygon Amoy", true},
	{"eip155:43114", "avalanche", true, "Avalanche", false},
	{"eip155:43113", "avalanche-fuji", true, "Avalanche Fuji", true},
	{"eip155:2741", "abstract", true, "Abstract", false},
	{"eip155:11124", "abstract-testnet", true, "Abstract Testnet", true},
	{"eip155:4689", "iotex", true, "IoTeX", false},
	{"eip155:1329", "sei", true, "Sei", false},
	{"eip155:1328", "sei-testnet", true, "Sei Testnet", true},
	{"eip155:3338", "peaq", true, "peaq", false},
	{"eip155:1514", "story", true, "Story", false},
	{"eip155:41923", "educhain", true, "EDU Chain", false},
	{"eip155:324705682", "skale-base-sepolia", true, "SKALE Base Sepolia", true},
	{"eip155:4326", "megaeth", false, "MegaETH", false},
	{"eip155:143", "monad", false, "Monad", false},
	{"eip155:988", "stable", false, "Stable", false},
	{"eip155:2201", "stable-testnet", false, "Stable Testnet", true},
	{"eip155:42220", "celo", false, "Celo", false},
	{"eip155:14", "flare", false, "Flare", false},
	{"eip155:42161", "", false, "Arbitrum One", false},
	{"eip155:421614", "", false, "Arbitrum Sepolia", true},
	{"solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "solana", true, "Solana", false},
	{"solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1", "solana-devnet", true, "Solana Devnet", true},
	{"solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z", "solana-testnet", false, "Solana Testnet", true},
}

// ParseNetwork reads a CAIP-2 name or a v1 name such as "base-sepolia".
func ParseNetwork(s string) (Network, error) {
	for _, n := range networks {
		if s == n.v1 && s != "" || s == string(n.id) {
			return n.id, nil
		}
	}
	space, ref, ok := strings.Cut(s, ":")
	if !ok {
		return "", fmt.Errorf("%q is no network: write a name such as base or base-sepolia, or CAIP-2 such as eip155:8453", clip(s))
	}
	if space == "eip155" {
		id, err := strconv.ParseUint(ref, 10, 64)
		if err != nil || id == 0 || strconv.FormatUint(id, 10) != ref {
			return "", fmt.Errorf("%q is no network: after eip155: there must be a chain id in decimal digits", clip(s))
		}
		return Network(s), nil
	}
	if !caip2(space, ref) {
		return "", fmt.Errorf("%q is no CAIP-2 network name", clip(s))
	}
	return Network(s), nil
}

// caip2 checks CAIP-2's grammar: [-a-z0-9]{3,8}:[-_a-zA-Z0-9]{1,32}.
func caip2(space, ref string) bool {
	if len(space) < 3 || len(space) > 8 || len(ref) < 1 || len(ref) > 32 {
		return false
	}
	for _, c := range space {
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-') {
			return false
		}
	}
	for _, c := range ref {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// ChainID returns the id of an EVM chain, or false for other networks.
func (n Network) ChainID() (uint64, bool) {
	ref, ok := strings.CutPrefix(string(n), "eip155:")
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(ref, 10, 64)
	return id, err == nil && id > 0
}

// V1 returns the network's name in protocol v1, or false if it has none.
func (n Network) V1() (string, bool) {
	k, ok := n.known()
	return k.v1, ok && k.v1 != ""
}

// Legacy reports whether clients of the legacy v1 SDK know the network.
func (n Network) Legacy() bool {
	k, ok := n.known()
	return ok && k.legacy
}

// Title returns the network's name for people.
func (n Network) Title() string {
	if k, ok := n.known(); ok {
		return k.title
	}
	return string(n)
}

// Test reports whether the network is known to carry play money.
func (n Network) Test() bool {
	k, ok := n.known()
	return ok && k.test
}

// In returns the network's name in the given protocol version, falling back
// to CAIP-2 for networks that v1 has no name for.
func (n Network) In(version int) string {
	if version == V1 {
		if name, ok := n.V1(); ok {
			return name
		}
	}
	return string(n)
}

func (n Network) known() (network, bool) {
	for _, k := range networks {
		if k.id == n {
			return k, true
		}
	}
	return network{}, false
}

// clip keeps a stranger's word short enough for an error message.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
