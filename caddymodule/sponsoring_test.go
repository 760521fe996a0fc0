package caddymodule

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/tollgate402/tollgate/payment"
)

// The transaction that approves Permit2 is asked for only where that is
// configured, and where an offer is paid by Permit2. What is said of it has the
// form that the official packages give it, without the description.
func TestApprovalsAreAskedForWhereTheyAreSent(t *testing.T) {
	const token = `
			token 0x0020000000000000000000000000000000000020 {
				symbol PLAIN
				decimals 6
			}`
	const routes = `x402 /plain "0.001 PLAIN" {
		token PLAIN
		method permit2
	}
	x402 /usdc "0.001 USDC" {
		method permit2
	}
	x402 /transfer "0.001 USDC"
	respond ok`
	for on, want := range map[bool]map[string][]string{
		false: {"/plain": nil, "/usdc": {"eip2612GasSponsoring"}, "/transfer": nil},
		true:  {"/plain": {"erc20ApprovalGasSponsoring"}, "/usdc": {"eip2612GasSponsoring", "erc20ApprovalGasSponsoring"}, "/transfer": nil},
	} {
		network := "network base-sepolia {\n\t\t\ttoken 0x036CbD53842c5426634e7929541eC2318f3dCF7e" + token
		if on {
			network += "\n\t\t\tsponsoring erc20_approval"
		}
		s := newSite(t)
		s.load(strings.Replace(paidSite("facilitator fake\n\t\tledger memory "+t.Name(), routes), "network base-sepolia", network+"\n\t\t}", 1))
		for path, names := range want {
			unpaid := s.get(path)
			if unpaid.StatusCode != http.StatusPaymentRequired {
				t.Fatalf("%s: %s %s", path, unpaid.Status, unpaid.body)
			}
			c, err := payment.DecodeRequired(unpaid.Header.Get(payment.HeaderRequired))
			if err != nil {
				t.Fatal(err)
			}
			var said map[string]struct {
				Info   map[string]string
				Schema struct {
					Required   []string
					Properties map[string]struct{ Type, Pattern string }
				}
			}
			if len(c.Extensions) > 0 {
				mustJSON(t, string(c.Extensions), &said)
			}
			if got := slices.Sorted(maps.Keys(said)); !slices.Equal(got, names) {
				t.Errorf("%s, sponsoring %v: it says %v, want %v", path, on, got, names)
			}
			raw, ok := said["erc20ApprovalGasSponsoring"]
			if !ok {
				continue
			}
			members := []string{"from", "asset", "spender", "amount", "signedTransaction", "version"}
			if !maps.Equal(raw.Info, map[string]string{"version": "1"}) || !slices.Equal(raw.Schema.Required, members) || len(raw.Schema.Properties) != len(members) {
				t.Errorf("%s: it says %s", path, c.Extensions)
			}
			if p := raw.Schema.Properties["version"]; p.Type != "string" || p.Pattern != `^[0-9]+(\.[0-9]+)*$` {
				t.Errorf("%s: a version is %+v", path, p)
			}
			if extra := c.Offers[0].Extra; path == "/plain" && (extra["name"] != nil || string(extra["assetTransferMethod"]) != `"permit2"`) {
				doc, _ := json.Marshal(extra)
				t.Errorf("%s: extra is %s", path, doc)
			}
		}
	}
}
