package linkpage

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// An offerView is an offer as the template wants it.
type offerView struct {
	ID      string // of the element
	Index   int
	Price   price
	Network string
	Test    bool // play money
	PayTo   address
	ByHand  bool // a person's wallet can sign it on the page
	Chosen  bool
}

// Remark returns what sets the offer apart from others in a list.
func (v offerView) Remark() string {
	switch {
	case v.Test && !v.ByHand:
		return "test money, for programs only"
	case v.Test:
		return "test money"
	case !v.ByHand:
		return "for programs only"
	default:
		return ""
	}
}

// offerData is what the script knows of an offer: everything that a payment of
// it consists of, but for who pays, the times and a nonce.
type offerData struct {
	Accepted json.RawMessage `json:"accepted"` // as a payment repeats it
	Amount   string          `json:"amount"`   // for people
	Figure   string          `json:"figure"`
	Asset    string          `json:"asset"`
	Network  string          `json:"network"` // for people
	Test     bool            `json:"test"`
	PayTo    [3]string       `json:"payTo"`   // in the parts that are set apart
	Timeout  int64           `json:"timeout"` // seconds that a payment must stay valid

	// The rest is there where a wallet can sign the offer.
	ChainID string     `json:"chainId,omitempty"` // hexadecimal
	Chain   *chainData `json:"chain,omitempty"`   // the parameter of wallet_addEthereumChain
	Typed   *typedData `json:"typed,omitempty"`
}

type chainData struct {
	ChainID   string       `json:"chainId"`
	Name      string       `json:"chainName"`
	RPC       []string     `json:"rpcUrls"`
	Explorers []string     `json:"blockExplorerUrls,omitempty"`
	Currency  currencyData `json:"nativeCurrency"`
}

type currencyData struct {
	Name     string `json:"name"`
	Symbol   string `json:"symbol"`
	Decimals int    `json:"decimals"`
}

// typedData is the parameter of eth_signTypedData_v4, of which the message
// lacks what only the payer knows.
type typedData struct {
	Types       map[string][]typedMember `json:"types"`
	PrimaryType string                   `json:"primaryType"`
	Domain      typedDomain              `json:"domain"`
	Message     typedTransfer            `json:"message"`
}

type typedMember struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

type typedDomain struct {
	Name              string `json:"name"`
	Version           string `json:"version"`
	ChainID           uint64 `json:"chainId"`
	VerifyingContract string `json:"verifyingContract"`
}

type typedTransfer struct {
	To    string `json:"to"`
	Value string `json:"value"`
}

// transferTypes are what EIP-3009's TransferWithAuthorization consists of, and
// the domain that it is signed in.
var transferTypes = map[string][]typedMember{
	"EIP712Domain": {
		{"name", "string"},
		{"version", "string"},
		{"chainId", "uint256"},
		{"verifyingContract", "address"},
	},
	"TransferWithAuthorization": {
		{"from", "address"},
		{"to", "address"},
		{"value", "uint256"},
		{"validAfter", "uint256"},
		{"validBefore", "uint256"},
		{"nonce", "bytes32"},
	},
}

// byHand reports whether a person can pay o on the page: by EIP-3009 on an EVM
// chain. Permit2 takes an allowance first, and Solana a transaction of its own;
// programs do both.
func byHand(o *payment.Offer) bool {
	_, ok := o.Network().ChainID()
	method, set := o.Extra["assetTransferMethod"]
	token := o.Amount.Token()
	return ok && o.Scheme == payment.Exact && (!set || string(method) == `"eip3009"`) && token.Name != "" && token.Version != ""
}

// offer returns what the page and its script are told about an offer.
func (s *Site) offer(o *payment.Offer, index int) (offerView, offerData, error) {
	if err := o.Check(); err != nil {
		return offerView{}, offerData{}, err
	}
	network := o.Network()
	to, err := addressOf(network, o.PayTo)
	if err != nil {
		return offerView{}, offerData{}, err
	}
	v := offerView{
		ID: fmt.Sprintf("offer-%d", index+1), Index: index, Price: priceOf(o.Amount),
		Network: network.Title(), Test: network.Test(), PayTo: to, ByHand: byHand(o),
	}
	d := offerData{
		Accepted: o.Encode(), Amount: v.Price.String(), Figure: v.Price.Figure, Asset: v.Price.Asset, Network: v.Network, Test: v.Test,
		PayTo: [3]string{to.Head, to.Middle, to.Tail}, Timeout: int64(o.Timeout / time.Second),
	}
	if !v.ByHand {
		return v, d, nil
	}
	id, _ := network.ChainID()
	d.ChainID = "0x" + strconv.FormatUint(id, 16)
	if c, ok := s.config.Chains[network]; ok {
		d.Chain = c.data(d.ChainID, v.Network)
	}
	token := o.Amount.Token()
	d.Typed = &typedData{
		Types: transferTypes, PrimaryType: "TransferWithAuthorization",
		Domain:  typedDomain{token.Name, token.Version, id, token.Address},
		Message: typedTransfer{o.PayTo, o.Amount.Units()},
	}
	return v, d, nil
}

// data returns c in the form that wallets take.
func (c Chain) data(id, name string) *chainData {
	symbol := c.Currency
	if symbol == "" {
		symbol = "ETH"
	}
	d := &chainData{ChainID: id, Name: name, RPC: []string{c.RPC}, Currency: currencyData{symbol, symbol, 18}}
	if c.Explorer != "" {
		d.Explorers = []string{c.Explorer}
	}
	return d
}
