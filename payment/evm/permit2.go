package evm

import (
	"encoding/hex"
	"encoding/json"
	"math/big"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/strictjson"
	"github.com/tollgate402/tollgate/payment"
)

// Contracts that are at the same address on every chain that has them.
var (
	Permit2    = common.HexToAddress("0x000000000022D473030F116dDEE9F6B43aC78BA3") // Uniswap's; payers approve it once per token
	ExactProxy = common.HexToAddress("0x402085c248EeA27D92E8b30b2C58ed07f9E20001") // x402's, moves the permitted amount
	UptoProxy  = common.HexToAddress("0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002") // x402's, moves at most the permitted amount
)

// A Permit is Permit2's PermitWitnessTransferFrom with the witness of one of
// x402's proxies: From lets Spender move Amount of Token to To, once, from
// ValidAfter until Deadline, both included. By upto it is at most Amount, and
// only Facilitator may ask for it. All numbers are below 2^256.
type Permit struct {
	// Scheme is Exact or Upto: which of the two witnesses is signed.
	Scheme payment.Scheme

	From        common.Address
	Token       common.Address
	Amount      *big.Int // atomic units; a maximum by upto
	Spender     common.Address
	Nonce       *big.Int // chosen by the payer, one for all tokens
	Deadline    *big.Int // unix seconds
	To          common.Address
	Facilitator common.Address // upto only
	ValidAfter  *big.Int       // unix seconds
}

// A SignedPermit is a permit with its signature.
type SignedPermit struct {
	Permit
	Signature []byte
}

// Proxy returns the contract that settles payments of the permit's scheme, and
// that must be its spender.
func (p *Permit) Proxy() common.Address {
	if p.Scheme == payment.Upto {
		return UptoProxy
	}
	return ExactProxy
}

// DecodePermit reads the payload of a payment by Permit2. A witness that names
// a facilitator is one of upto, any other one of exact. Its errors are
// *payment.MalformedError, or an *payment.InvalidError where the payload is of
// another kind.
func DecodePermit(payload json.RawMessage) (*SignedPermit, error) {
	const what = "payment"
	o, err := strictjson.Parse(payload, "payload", payment.MaxHeader)
	if err != nil {
		return nil, &payment.MalformedError{What: what, Err: err}
	}
	// As in Decode: a payload of two kinds would be two payments.
	if o.Has("authorization") || o.Has("transaction") {
		return nil, payment.Invalid(payment.EVMPayloadType, "the offer asks for a Permit2 authorization and nothing else")
	}
	s, err := decodePermit(o)
	if err != nil {
		return nil, &payment.MalformedError{What: what, Err: err}
	}
	return s, nil
}

func decodePermit(o strictjson.Object) (*SignedPermit, error) {
	if err := o.Known("signature", "authorization", "permit2Authorization", "transaction"); err != nil {
		return nil, err
	}
	a, err := o.Object("permit2Authorization")
	if err != nil {
		return nil, err
	}
	if err := a.Known("from", "permitted", "spender", "nonce", "deadline", "witness"); err != nil {
		return nil, err
	}
	permitted, err := a.Object("permitted")
	if err != nil {
		return nil, err
	}
	if err := permitted.Known("token", "amount"); err != nil {
		return nil, err
	}
	witness, err := a.Object("witness")
	if err != nil {
		return nil, err
	}
	if err := witness.Known("to", "facilitator", "validAfter"); err != nil {
		return nil, err
	}
	s := &SignedPermit{Permit: Permit{Scheme: payment.Exact}}
	if witness.Has("facilitator") {
		s.Scheme = payment.Upto
		if s.Facilitator, err = address(witness, "facilitator"); err != nil {
			return nil, err
		}
	}
	for _, m := range []struct {
		in   strictjson.Object
		name string
		to   *common.Address
	}{{a, "from", &s.From}, {permitted, "token", &s.Token}, {a, "spender", &s.Spender}, {witness, "to", &s.To}} {
		if *m.to, err = address(m.in, m.name); err != nil {
			return nil, err
		}
	}
	for _, m := range []struct {
		in   strictjson.Object
		name string
		to   **big.Int
	}{{permitted, "amount", &s.Amount}, {a, "nonce", &s.Nonce}, {a, "deadline", &s.Deadline}, {witness, "validAfter", &s.ValidAfter}} {
		if *m.to, err = number(m.in, m.name); err != nil {
			return nil, err
		}
	}
	s.Signature, err = hexMember(o, "signature", maxSignature)
	if err != nil {
		return nil, err
	}
	return s, nil
}

type wirePermit struct {
	Signature     string                  `json:"signature"`
	Authorization wirePermitAuthorization `json:"permit2Authorization"`
}

type wirePermitAuthorization struct {
	From      string        `json:"from"`
	Permitted wirePermitted `json:"permitted"`
	Spender   string        `json:"spender"`
	Nonce     string        `json:"nonce"`
	Deadline  string        `json:"deadline"`
	Witness   wireWitness   `json:"witness"`
}

type wirePermitted struct {
	Token  string `json:"token"`
	Amount string `json:"amount"`
}

type wireWitness struct {
	To          string `json:"to"`
	Facilitator string `json:"facilitator,omitempty"`
	ValidAfter  string `json:"validAfter"`
}

// Encode writes the payload of a payment by Permit2.
func (s *SignedPermit) Encode() json.RawMessage {
	witness := wireWitness{To: s.To.Hex(), ValidAfter: s.ValidAfter.String()}
	if s.Scheme == payment.Upto {
		witness.Facilitator = s.Facilitator.Hex()
	}
	doc, err := json.Marshal(wirePermit{
		Signature: "0x" + hex.EncodeToString(s.Signature),
		Authorization: wirePermitAuthorization{
			From: s.From.Hex(), Permitted: wirePermitted{s.Token.Hex(), s.Amount.String()}, Spender: s.Spender.Hex(),
			Nonce: s.Nonce.String(), Deadline: s.Deadline.String(), Witness: witness,
		},
	})
	if err != nil {
		panic("evm: encoding strings failed: " + err.Error())
	}
	return doc
}
