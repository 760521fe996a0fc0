package payment_test

import (
	"testing"

	"github.com/tollgate402/tollgate/payment"
)

func TestEveryV1NameStandsForItsNetwork(t *testing.T) {
	const legacy, recent = true, false // whether npm x402 1.2.0 knows the name
	for _, row := range []struct {
		name    string
		network payment.Network
		legacy  bool
		test    bool
	}{
		{"base", payment.EVM(8453), legacy, false},
		{"base-sepolia", payment.EVM(84532), legacy, true},
		{"polygon", payment.EVM(137), legacy, false},
		{"polygon-amoy", payment.EVM(80002), legacy, true},
		{"avalanche", payment.EVM(43114), legacy, false},
		{"avalanche-fuji", payment.EVM(43113), legacy, true},
		{"abstract", payment.EVM(2741), legacy, false},
		{"abstract-testnet", payment.EVM(11124), legacy, true},
		{"iotex", payment.EVM(4689), legacy, false},
		{"sei", payment.EVM(1329), legacy, false},
		{"sei-testnet", payment.EVM(1328), legacy, true},
		{"peaq", payment.EVM(3338), legacy, false},
		{"story", payment.EVM(1514), legacy, false},
		{"educhain", payment.EVM(41923), legacy, false},
		{"skale-base-sepolia", payment.EVM(324705682), legacy, true},
		{"solana", "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", legacy, false},
		{"solana-devnet", "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1", legacy, true},
		{"solana-testnet", "solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z", recent, true},
		{"ethereum", payment.EVM(1), recent, false},
		{"sepolia", payment.EVM(11155111), recent, true},
		{"megaeth", payment.EVM(4326), recent, false},
		{"monad", payment.EVM(143), recent, false},
		{"stable", payment.EVM(988), recent, false},
		{"stable-testnet", payment.EVM(2201), recent, true},
		{"celo", payment.EVM(42220), recent, false},
		{"flare", payment.EVM(14), recent, false},
	} {
		n, err := payment.ParseNetwork(row.name)
		if err != nil || n != row.network {
			t.Errorf("%s: got %s, %v; want %s", row.name, n, err, row.network)
			continue
		}
		if again, err := payment.ParseNetwork(string(n)); err != nil || again != n {
			t.Errorf("%s: got %s, %v", n, again, err)
		}
		if name, ok := n.V1(); !ok || name != row.name {
			t.Errorf("%s: v1 name %q, %v", n, name, ok)
		}
		if n.In(payment.V1) != row.name || n.In(payment.V2) != string(row.network) {
			t.Errorf("%s: %s in v1, %s in v2", n, n.In(payment.V1), n.In(payment.V2))
		}
		if n.Legacy() != row.legacy || n.Test() != row.test {
			t.Errorf("%s: legacy %v, test %v", n, n.Legacy(), n.Test())
		}
		if n.Title() == "" || n.Title() == string(n) {
			t.Errorf("%s has no title", n)
		}
	}
}

func TestNetworksWithoutAV1NameKeepTheirCAIP2Name(t *testing.T) {
	for _, n := range []payment.Network{payment.EVM(42161), payment.EVM(421614), payment.EVM(31337), "cosmos:cosmoshub-4"} {
		if name, ok := n.V1(); ok || name != "" || n.Legacy() || n.In(payment.V1) != string(n) {
			t.Errorf("%s: v1 name %q, legacy %v, in v1 %s", n, name, n.Legacy(), n.In(payment.V1))
		}
		if got, err := payment.ParseNetwork(string(n)); err != nil || got != n {
			t.Errorf("%s: got %s, %v", n, got, err)
		}
	}
	if unknown := payment.EVM(31337); unknown.Title() != "eip155:31337" || unknown.Test() {
		t.Errorf("%s: title %s, test %v", unknown, unknown.Title(), unknown.Test())
	}
}

func TestChainIDsAreThoseOfEVMNetworksOnly(t *testing.T) {
	for n, want := range map[payment.Network]uint64{"eip155:8453": 8453, "eip155:18446744073709551615": 1<<64 - 1} {
		if id, ok := n.ChainID(); !ok || id != want {
			t.Errorf("%s: %d, %v", n, id, ok)
		}
	}
	for _, n := range []payment.Network{"", "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "eip155:0", "eip155:", "eip155:x", "eip1559:1"} {
		if id, ok := n.ChainID(); ok {
			t.Errorf("%s has chain id %d", n, id)
		}
	}
}

func TestWhatNamesNoNetworkIsRefused(t *testing.T) {
	for _, s := range []string{
		"", " ", ":", "Base", "BASE", "base ", " base", "base\n", "mainnet", "8453", "0x2105", "EIP155:8453", "eip155", "eip155:", "eip155:0", "eip155:08453",
		"eip155:+8453", "eip155:-1", "eip155:0x2105", "eip155:8453 ", "eip155: 8453", "eip155:8453:1", "eip155:8_453", "eip155:*", "eip155:18446744073709551616",
		"eip155:８４５３", "so:x", "solana:", "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp1", "toolongname:x", "sol ana:x", "solana:é", "unknown:unknown\x00",
	} {
		if n, err := payment.ParseNetwork(s); err == nil {
			t.Errorf("%q became %s", s, n)
		}
	}
}
