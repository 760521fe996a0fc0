package payment_test

import (
	"strings"
	"testing"

	"github.com/tollgate402/tollgate/payment"
)

// The samples of EIP-55.
var checksummed = []string{
	"0x52908400098527886E0F7030069857D2E4169EE7",
	"0x8617E340B3D01FA5F11F306F4090FD50E238070D",
	"0xde709f2102306220921060314715629080e2fb77",
	"0x27b1fdb04752bbc536007a920d24acb045561c26",
	"0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
	"0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
	"0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
	"0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
}

func TestCanonicalAddressIsTheChecksummedOneWhateverTheCase(t *testing.T) {
	for _, want := range checksummed {
		for _, s := range []string{want, strings.ToLower(want), "0x" + strings.ToUpper(want[2:]), "0x" + strings.ToUpper(want[2:20]) + strings.ToLower(want[20:])} {
			if got, err := payment.CanonicalAddress("eip155:1", s); err != nil || got != want {
				t.Errorf("%s: got %s, %v", s, got, err)
			}
		}
	}
}

var notAddresses = []string{
	"", "0x", "0X52908400098527886E0F7030069857D2E4169EE7", "52908400098527886E0F7030069857D2E4169EE7", "0x52908400098527886E0F7030069857D2E4169EE",
	"0x52908400098527886E0F7030069857D2E4169EE70", "0x52908400098527886E0F7030069857D2E4169EEg", " 0x52908400098527886E0F7030069857D2E4169EE7",
	"0x52908400098527886E0F7030069857D2E4169EE7 ", "0x52908400098527886E0F7030069857D2E4169E\n7", "0x000000000000000000000000" + "52908400098527886E0F7030069857D2E4169EE7",
	"vitalik.eth", "0x５2908400098527886E0F7030069857D2E4169E", "-x52908400098527886E0F7030069857D2E4169EE7", "0x-2908400098527886E0F7030069857D2E4169EE7",
}

func TestWhatIsNoAddressIsRefused(t *testing.T) {
	for _, s := range notAddresses {
		if got, err := payment.CanonicalAddress("eip155:1", s); err == nil {
			t.Errorf("%q became %s", s, got)
		}
		if got, err := payment.ParseAddress("eip155:1", s); err == nil {
			t.Errorf("%q became %s", s, got)
		}
	}
}

func TestAddressesWrittenByPeopleMustHaveARightChecksumOrNone(t *testing.T) {
	for _, want := range checksummed {
		for _, s := range []string{want, strings.ToLower(want), "0x" + strings.ToUpper(want[2:])} {
			if got, err := payment.ParseAddress("eip155:1", s); err != nil || got != want {
				t.Errorf("%s: got %s, %v", s, got, err)
			}
		}
		// One letter in the wrong case.
		for i := 2; i < len(want); i++ {
			c := want[i : i+1]
			other := strings.ToUpper(c)
			if other == c {
				other = strings.ToLower(c)
			}
			s := want[:i] + other + want[i+1:]
			if s == want || strings.ToLower(s[2:]) == s[2:] || strings.ToUpper(s[2:]) == s[2:] {
				continue
			}
			if _, err := payment.ParseAddress("eip155:1", s); err == nil || !strings.Contains(err.Error(), "wrong checksum") {
				t.Errorf("%s: %v", s, err)
			}
		}
	}
}

func TestTheZeroAddressIsRefusedWherePeopleWriteIt(t *testing.T) {
	zero := "0x0000000000000000000000000000000000000000"
	if _, err := payment.ParseAddress("eip155:1", zero); err == nil || !strings.Contains(err.Error(), "money sent there is lost") {
		t.Errorf("got %v", err)
	}
	if got, err := payment.CanonicalAddress("eip155:1", zero); err != nil || got != zero {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestAddressesOfOtherNetworksAreKeptAsTheyAre(t *testing.T) {
	const n = payment.Network("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp")
	const mint = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
	for _, read := range []func(payment.Network, string) (string, error){payment.CanonicalAddress, payment.ParseAddress} {
		if got, err := read(n, mint); err != nil || got != mint {
			t.Errorf("got %s, %v", got, err)
		}
		for _, s := range []string{"", strings.Repeat("1", 129)} {
			if got, err := read(n, s); err == nil {
				t.Errorf("%q became %s", s, got)
			}
		}
	}
}

func TestTokensAreTheirContractsNotTheirNames(t *testing.T) {
	usdc, ok := payment.USDC("eip155:8453")
	if !ok {
		t.Fatal("no USDC on Base")
	}
	renamed, moved := usdc, usdc
	renamed.Name, renamed.Symbol, renamed.Decimals = "x", "y", 18
	moved.Network = "eip155:1"
	if !usdc.Is(renamed) || usdc.Is(moved) {
		t.Error("a token is known by something else than network and contract")
	}
	if _, ok := payment.USDC("eip155:999999"); ok {
		t.Error("USDC on an unknown network")
	}
}
