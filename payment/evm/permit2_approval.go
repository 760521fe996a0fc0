package evm

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/strictjson"
	"github.com/tollgate402/tollgate/payment"
)

// Sponsoring is the name of the extension in which a payer without allowance
// for Permit2 and without gas sends an Approval along.
const Sponsoring = "eip2612GasSponsoring"

// permitTypeHash is that of EIP-2612's Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline).
var permitTypeHash = common.HexToHash("0x6e71edae12b1b97f4d1f60370fef10105fa2faae0126114a169c64845d6126c9")

// An Approval is EIP-2612's Permit with its signature: From allows Spender to
// move Value of Token, if it is submitted until Deadline. Here Spender is
// Permit2 and Value the amount of the permit it comes with: the proxies accept
// no other. All numbers are below 2^256.
type Approval struct {
	From      common.Address
	Token     common.Address
	Spender   common.Address
	Value     *big.Int // atomic units
	Nonce     *big.Int // what the token counts for From
	Deadline  *big.Int // unix seconds, included
	Signature []byte   // 65 bytes
}

// Digest returns what the payer signs: the EIP-712 digest of a in the domain
// with the given separator, which is the token's.
func (a *Approval) Digest(separator common.Hash) common.Hash {
	var s [6 * 32]byte // the hashed struct
	copy(s[0:], permitTypeHash[:])
	copy(s[32+12:], a.From[:])
	copy(s[64+12:], a.Spender[:])
	a.Value.FillBytes(s[96:128])
	a.Nonce.FillBytes(s[128:160])
	a.Deadline.FillBytes(s[160:192])
	return typedDigest(separator, s[:])
}

var approvalMembers = []string{"from", "asset", "spender", "amount", "nonce", "deadline", "signature", "version"}

// DecodeApproval reads the approval in the extensions of a payment. It returns
// nil without an error where there is none: payers who need none echo what the
// seller said about the extension. Errors are *payment.InvalidError: the
// payment was read, the extension cannot be.
func DecodeApproval(extensions json.RawMessage) (*Approval, error) {
	a, err := decodeApproval(extensions)
	if err != nil {
		return nil, payment.Invalid(payment.EIP2612Format, err.Error())
	}
	return a, nil
}

func decodeApproval(extensions json.RawMessage) (*Approval, error) {
	info, ok, err := infoOf(extensions, Sponsoring, approvalMembers)
	if err != nil || !ok {
		return nil, err
	}
	a := &Approval{}
	for _, m := range []struct {
		name string
		to   *common.Address
	}{{"from", &a.From}, {"asset", &a.Token}, {"spender", &a.Spender}} {
		if *m.to, err = address(info, m.name); err != nil {
			return nil, err
		}
	}
	for _, m := range []struct {
		name string
		to   **big.Int
	}{{"amount", &a.Value}, {"nonce", &a.Nonce}, {"deadline", &a.Deadline}} {
		if *m.to, err = number(info, m.name); err != nil {
			return nil, err
		}
	}
	if a.Signature, err = hexMember(info, "signature", 65); err != nil {
		return nil, err
	}
	if len(a.Signature) != 65 {
		return nil, info.Wrong("signature", "must be 65 bytes")
	}
	return a, nil
}

// dotted reports whether s is a version such as "1" or "1.0.2".
func dotted(s string) bool {
	if len(s) > 32 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || strings.Trim(part, "0123456789") != "" {
			return false
		}
	}
	return true
}

type wireApproval struct {
	From      string `json:"from"`
	Asset     string `json:"asset"`
	Spender   string `json:"spender"`
	Amount    string `json:"amount"`
	Nonce     string `json:"nonce"`
	Deadline  string `json:"deadline"`
	Signature string `json:"signature"`
	Version   string `json:"version"`
}

// Encode writes the members that the payer adds to the extension's info.
func (a *Approval) Encode() json.RawMessage {
	doc, err := json.Marshal(wireApproval{
		From: a.From.Hex(), Asset: a.Token.Hex(), Spender: a.Spender.Hex(), Amount: a.Value.String(),
		Nonce: a.Nonce.String(), Deadline: a.Deadline.String(), Signature: "0x" + hex.EncodeToString(a.Signature), Version: "1",
	})
	if err != nil {
		panic("evm: encoding strings failed: " + err.Error())
	}
	return doc
}

// CheckApproval decides everything about the approval in the extensions of the
// payment that p is of, and that needs no chain: only whether the nonce is the
// token's next one is open then. separator is the token's, at the chain's time
// in unix seconds. Only plain accounts are sponsored: the signature must be by
// the key of From. It returns nil without an error where there is no approval.
// Errors are *payment.InvalidError.
func CheckApproval(extensions json.RawMessage, p *Permit, separator common.Hash, at uint64) (*Approval, error) {
	refuse := func(reason payment.Reason, message string) (*Approval, error) {
		return nil, &payment.InvalidError{Reason: reason, Message: message, Payer: p.From.Hex()}
	}
	a, err := decodeApproval(extensions)
	if err != nil {
		return refuse(payment.EIP2612Format, err.Error())
	}
	if a == nil {
		return nil, nil
	}
	const info = "extensions." + Sponsoring + ".info."
	if a.From != p.From {
		return refuse(payment.EIP2612FromMismatch, info+"from is not the payer")
	}
	if a.Token != p.Token {
		return refuse(payment.EIP2612AssetMismatch, info+"asset is not the token that is paid with")
	}
	if a.Spender != Permit2 {
		return refuse(payment.EIP2612Spender, info+"spender is not "+Permit2.Hex())
	}
	if min := new(big.Int).Add(new(big.Int).SetUint64(at), big.NewInt(MinValidity)); a.Deadline.Cmp(min) < 0 {
		return refuse(payment.EIP2612Expired, fmt.Sprintf("%sdeadline is %s, at chain time %d it must be at least %s", info, a.Deadline, at, min))
	}
	if a.Value.Cmp(p.Amount) != 0 {
		return refuse(payment.Permit2ApprovalMismatch, fmt.Sprintf("%samount is %s, it must be the permitted %s", info, a.Value, p.Amount))
	}
	if problem := canonical(a.Signature); problem != "" {
		return refuse(payment.EIP2612Format, info+"signature: "+problem)
	}
	if signer, err := Recover(a.Digest(separator), a.Signature); err != nil || signer != a.From {
		return refuse(payment.EIP2612Format, info+"signature is not by the payer for this token's EIP-712 domain")
	}
	return a, nil
}

// infoOf reads what payers add to the info of an extension by which an approval
// comes. ok is false where not all of it is there: payers who need no approval
// echo what the seller said.
func infoOf(extensions json.RawMessage, name string, members []string) (info strictjson.Object, ok bool, err error) {
	if len(extensions) == 0 {
		return info, false, nil
	}
	o, err := strictjson.Parse(extensions, "extensions", payment.MaxHeader)
	if err != nil {
		return info, false, err
	}
	if err := o.Known(name); err != nil {
		return info, false, err
	}
	extension, ok, err := o.OptionalObject(name)
	if err != nil || !ok {
		return info, false, err
	}
	if err := extension.Known("info"); err != nil {
		return info, false, err
	}
	if info, ok, err = extension.OptionalObject("info"); err != nil || !ok {
		return info, false, err
	}
	if err := info.Known(members...); err != nil {
		return info, false, err
	}
	for _, m := range members {
		if !info.Has(m) {
			return info, false, nil
		}
	}
	version, err := info.Text("version")
	if err != nil {
		return info, false, err
	}
	if !dotted(version) {
		return info, false, info.Wrong("version", "must be numbers with dots between them")
	}
	return info, true, nil
}
