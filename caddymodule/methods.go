package caddymodule

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/payment/extension"
)

// The methods by which exact moves tokens on EVM chains.
const (
	byEIP3009 = "eip3009"
	byPermit2 = "permit2"
)

// moving returns the offer with what its scheme and method need: which method
// it is, and by upto who must settle.
func (a *App) moving(o Offer, offer payment.Offer) (payment.Offer, error) {
	switch payment.Scheme(o.Scheme) {
	case payment.Exact:
	case payment.Upto:
		if o.Method == byEIP3009 {
			return offer, about("method", errors.New("upto is paid by Permit2 only: leave out method"))
		}
		o.Method = byPermit2
	default:
		return offer, about("scheme", fmt.Errorf("scheme %q is not settled here: write exact or upto", o.Scheme))
	}
	offer.Scheme = payment.Scheme(o.Scheme)
	switch o.Method {
	case "", byEIP3009:
		if t := offer.Amount.Token(); t.Name == "" {
			return offer, about("method", fmt.Errorf("token %s has no EIP-712 domain, which EIP-3009 needs: say its name and version in the global option x402, or write \"method permit2\"", t.Symbol))
		}
		return offer, nil
	case byPermit2:
	default:
		return offer, about("method", fmt.Errorf("method %q is not known: write eip3009 or permit2", o.Method))
	}
	offer.Extra = map[string]json.RawMessage{"assetTransferMethod": json.RawMessage(`"permit2"`)}
	if offer.Scheme == payment.Upto {
		lane, known, err := a.settlesUpto(o, offer.Network())
		if err != nil {
			return offer, err
		}
		if known {
			offer.Extra[facilitatorAddress] = json.RawMessage(`"` + lane.Hex() + `"`)
		}
	}
	return offer, nil
}

// facilitatorAddress is the member of an offer's extra that says who settles
// upto.
const facilitatorAddress = "facilitatorAddress"

// settlesUpto returns the account that payers by upto sign for: where this
// process settles the lane for what goes alone. Of a facilitator elsewhere it is
// not known, unless it is written down, before it has been asked.
func (a *App) settlesUpto(o Offer, n payment.Network) (lane common.Address, known bool, err error) {
	if o.FacilitatorAddress != "" {
		text, err := payment.ParseAddress(n, o.FacilitatorAddress)
		if err != nil {
			return lane, false, about("facilitator_address", fmt.Errorf("facilitator_address: %w", err))
		}
		return common.HexToAddress(text), true, nil
	}
	own, ok := a.networks[n]
	if a.remote != nil || !ok || len(own.lanes) == 0 { // lanes are not loaded while a Caddyfile is read
		return lane, false, nil
	}
	return own.lanes[len(own.lanes)-1].Address(), true, nil
}

// factories reads which factories of wallets may be called, and how.
func factories(settings map[string][]string) (evm.Factories, error) {
	list := evm.Factories{}
	for text, functions := range settings {
		address, err := payment.ParseAddress(payment.EVM(1), text)
		if err != nil {
			return nil, fmt.Errorf("wallet_factory: %w", err)
		}
		for _, f := range functions {
			selector, err := selectorOf(f)
			if err != nil {
				return nil, err
			}
			list[common.HexToAddress(address)] = append(list[common.HexToAddress(address)], selector)
		}
	}
	if err := list.Validate(); err != nil {
		return nil, fmt.Errorf("wallet_factory: %w", err)
	}
	return list, nil
}

// selectorOf reads a function as four bytes in hexadecimal digits, or as its
// signature, whose hash begins with them.
func selectorOf(f string) (selector [4]byte, err error) {
	if strings.HasPrefix(f, "0x") {
		b, err := hex.DecodeString(f[2:])
		if err != nil || len(b) != 4 {
			return selector, fmt.Errorf("wallet_factory: %q is no selector, which is 0x and 8 hexadecimal digits", f)
		}
		return [4]byte(b), nil
	}
	name, _, ok := strings.Cut(f, "(")
	if !ok || name == "" || !strings.HasSuffix(f, ")") || strings.ContainsAny(f, " \t") {
		return selector, fmt.Errorf("wallet_factory: %q is no function: write it like createAccount(address,uint256), or its selector", f)
	}
	return [4]byte(crypto.Keccak256([]byte(f))), nil
}

// byRawApproval is what "sponsoring" may say.
const byRawApproval = "erc20_approval"

func checkSponsoring(ways []string) error {
	for i, way := range ways {
		if way != byRawApproval {
			return fmt.Errorf("sponsoring %q is not known: write erc20_approval", way)
		}
		if slices.Contains(ways[:i], way) {
			return fmt.Errorf("sponsoring %s is given twice", way)
		}
	}
	return nil
}

// relaysApprovals reports whether payers may send transactions along that
// approve Permit2.
func (n *Network) relaysApprovals() bool { return slices.Contains(n.Sponsoring, byRawApproval) }

// sponsoring returns the extensions that invite payers without allowance for
// Permit2 to send an approval along: a permit (EIP-2612) where an offer is paid
// by Permit2 in a token whose domain is known, a transaction where the network
// of such an offer has that on. There is no description in them, since some
// clients do not echo one.
func (a *App) sponsoring(offers []payment.Offer) []extension.Extension {
	permit, transaction := false, false
	for _, o := range offers {
		if !o.ByPermit2() {
			continue
		}
		t := o.Amount.Token()
		permit = permit || t.Name != "" && t.Version != ""
		n, known := a.networks[o.Network()]
		transaction = transaction || known && n.relaysApprovals()
	}
	info := json.RawMessage(`{"version":"1"}`)
	var list []extension.Extension
	if permit {
		list = append(list, extension.Extension{Name: evm.Sponsoring, Info: info, Schema: json.RawMessage(sponsoringForm)})
	}
	if transaction {
		list = append(list, extension.Extension{Name: evm.RawSponsoring, Info: info, Schema: json.RawMessage(rawSponsoringForm)})
	}
	return list
}

// sponsoringForm says what payers fill in, as a JSON Schema.
const sponsoringForm = `{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","properties":{` +
	`"from":{"type":"string","pattern":"^0x[a-fA-F0-9]{40}$"},` +
	`"asset":{"type":"string","pattern":"^0x[a-fA-F0-9]{40}$"},` +
	`"spender":{"type":"string","pattern":"^0x[a-fA-F0-9]{40}$"},` +
	`"amount":{"type":"string","pattern":"^[0-9]+$"},` +
	`"nonce":{"type":"string","pattern":"^[0-9]+$"},` +
	`"deadline":{"type":"string","pattern":"^[0-9]+$"},` +
	`"signature":{"type":"string","pattern":"^0x[a-fA-F0-9]+$"},` +
	`"version":{"type":"string","pattern":"^[0-9]+(\\.[0-9]+)*$"}},` +
	`"required":["from","asset","spender","amount","nonce","deadline","signature","version"]}`

// rawSponsoringForm is the same for an approval that is a transaction.
const rawSponsoringForm = `{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","properties":{` +
	`"from":{"type":"string","pattern":"^0x[a-fA-F0-9]{40}$"},` +
	`"asset":{"type":"string","pattern":"^0x[a-fA-F0-9]{40}$"},` +
	`"spender":{"type":"string","pattern":"^0x[a-fA-F0-9]{40}$"},` +
	`"amount":{"type":"string","pattern":"^[0-9]+$"},` +
	`"signedTransaction":{"type":"string","pattern":"^0x[a-fA-F0-9]+$"},` +
	`"version":{"type":"string","pattern":"^[0-9]+(\\.[0-9]+)*$"}},` +
	`"required":["from","asset","spender","amount","signedTransaction","version"]}`
