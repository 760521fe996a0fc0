package evm

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
)

// RawSponsoring is the name of the extension in which a payer without allowance
// for Permit2, and with a token that has no EIP-2612, sends a RawApproval along.
const RawSponsoring = "erc20ApprovalGasSponsoring"

const (
	// MaxRawApproval is the most bytes that a RawApproval has. Half of it is
	// enough.
	MaxRawApproval = 512

	// MaxApprovalGas is the most gas that a RawApproval may ask for, and
	// MaxApprovalFee the most that it may pay for it, in wei per gas. Both are
	// the payer's own loss; whoever goes beyond them has made a mistake.
	MaxApprovalGas = 200_000
	MaxApprovalFee = 1_000_000_000_000

	minApprovalGas = 21_000
)

var (
	selApprove  = [4]byte{0x09, 0x5e, 0xa7, 0xb3} // approve(address,uint256)
	selTransfer = [4]byte{0xa9, 0x05, 0x9c, 0xbb} // transfer(address,uint256)
)

// A RawApproval is a transaction that its payer has signed and not sent:
// From calls approve(Permit2, Value) of Token, pays the gas itself and does
// nothing else. CheckRawApproval makes it, and nothing in it changes.
type RawApproval struct {
	From   common.Address
	Token  common.Address
	Value  *big.Int // atomic units; at least what the permit that it comes with moves
	Nonce  uint64   // of the account From
	Gas    uint64   // the limit
	FeeCap *big.Int // wei per gas
	Tip    *big.Int // wei per gas; FeeCap in a transaction of the old form
	Raw    []byte   // as it is broadcast
}

// Hash returns the transaction's hash.
func (a *RawApproval) Hash() common.Hash { return crypto.Keccak256Hash(a.Raw) }

// Cost returns the most that the transaction can cost From, in wei, beside what
// some chains charge for its bytes.
func (a *RawApproval) Cost() *big.Int {
	return new(big.Int).Mul(a.FeeCap, new(big.Int).SetUint64(a.Gas))
}

// Call is what the transaction does.
func (a *RawApproval) Call() Call { return Call{a.Token, approveCall(Permit2, a.Value)} }

// CheckFee refuses an approval that a block with a base fee, in wei per gas,
// does not take or, with spare, that the next one may not: the base fee rises by
// at most an eighth a block. Nil means that the chain has no base fee. Errors are
// *payment.InvalidError.
func (a *RawApproval) CheckFee(base *big.Int, spare bool) error {
	if base == nil {
		return nil
	}
	least := new(big.Int).Set(base)
	if spare {
		least.Add(least, new(big.Int).Rsh(base, 3))
	}
	if a.FeeCap.Cmp(least) < 0 {
		return a.Refuse(payment.ERC20ApprovalTxFailed, fmt.Sprintf("the approval pays at most %s wei per gas, it must be at least %s", a.FeeCap, least))
	}
	return nil
}

// Refuse returns the error by which an approval is refused.
func (a *RawApproval) Refuse(reason payment.Reason, message string) error {
	return &payment.InvalidError{Reason: reason, Message: message, Payer: a.From.Hex()}
}

func approveCall(spender common.Address, value *big.Int) []byte {
	b := make([]byte, 4+64)
	copy(b, selApprove[:])
	copy(b[4+12:], spender[:])
	value.FillBytes(b[4+32:])
	return b
}

// TransferCall is the call by which an account moves its own tokens.
func TransferCall(to common.Address, value *big.Int) []byte {
	b := make([]byte, 4+64)
	copy(b, selTransfer[:])
	copy(b[4+12:], to[:])
	value.FillBytes(b[4+32:])
	return b
}

// Agrees reports whether what approve or transfer of a token returned says that
// it did what it was told. Tokens that return nothing revert where they do not.
func Agrees(answer []byte) bool {
	return len(answer) == 0 || len(answer) == 32 && new(big.Int).SetBytes(answer).Cmp(common.Big1) == 0
}

var rawMembers = []string{"from", "asset", "spender", "amount", "signedTransaction", "version"}

// A rawInfo is what the payer says of its approval, beside the transaction
// itself.
type rawInfo struct {
	from, asset, spender common.Address
	amount               *big.Int
	raw                  []byte
}

// decodeRaw reads the members that the payer adds to the extension's info. It
// returns nil without an error where they are not all there: payers who need no
// approval echo what the seller said.
func decodeRaw(extensions json.RawMessage) (*rawInfo, error) {
	info, ok, err := infoOf(extensions, RawSponsoring, rawMembers)
	if err != nil || !ok {
		return nil, err
	}
	said := &rawInfo{}
	for _, m := range []struct {
		name string
		to   *common.Address
	}{{"from", &said.from}, {"asset", &said.asset}, {"spender", &said.spender}} {
		if *m.to, err = address(info, m.name); err != nil {
			return nil, err
		}
	}
	if said.amount, err = number(info, "amount"); err != nil {
		return nil, err
	}
	said.raw, err = hexMember(info, "signedTransaction", MaxRawApproval)
	return said, err
}

type wireRaw struct {
	From        string `json:"from"`
	Asset       string `json:"asset"`
	Spender     string `json:"spender"`
	Amount      string `json:"amount"`
	Transaction string `json:"signedTransaction"`
	Version     string `json:"version"`
}

// Encode writes the members that the payer adds to the extension's info.
func (a *RawApproval) Encode() json.RawMessage {
	doc, err := json.Marshal(wireRaw{
		From: a.From.Hex(), Asset: a.Token.Hex(), Spender: Permit2.Hex(), Amount: a.Value.String(),
		Transaction: "0x" + hex.EncodeToString(a.Raw), Version: "1",
	})
	if err != nil {
		panic("evm: encoding strings failed: " + err.Error())
	}
	return doc
}

// CheckRawApproval decides everything about the raw approval in the extensions
// of the payment that p is of, and that needs no chain: not whether its nonce is
// the payer's next one, nor whether a block will take its fee. chainID is that
// of the payment's network. It returns nil without an error where there is no
// approval. What it accepts can do nothing but let Permit2 move the token that
// is paid with, at the payer's own expense. Errors are *payment.InvalidError.
func CheckRawApproval(extensions json.RawMessage, p *Permit, chainID uint64) (*RawApproval, error) {
	refuse := func(reason payment.Reason, message string) (*RawApproval, error) {
		return nil, &payment.InvalidError{Reason: reason, Message: message, Payer: p.From.Hex()}
	}
	said, err := decodeRaw(extensions)
	if err != nil {
		return refuse(payment.ERC20ApprovalFormat, err.Error())
	}
	if said == nil {
		return nil, nil
	}
	const info = "extensions." + RawSponsoring + ".info."
	if said.from != p.From {
		return refuse(payment.ERC20ApprovalFromMismatch, info+"from is not the payer")
	}
	if said.asset != p.Token {
		return refuse(payment.ERC20ApprovalAssetMismatch, info+"asset is not the token that is paid with")
	}
	if said.spender != Permit2 {
		return refuse(payment.ERC20ApprovalSpender, info+"spender is not "+Permit2.Hex())
	}
	const transaction = info + "signedTransaction: "
	tx, err := readRawTx(said.raw)
	if err != nil {
		return refuse(payment.ERC20ApprovalTxParse, transaction+err.Error())
	}
	if tx.chainID.Cmp(new(big.Int).SetUint64(chainID)) != 0 {
		return refuse(payment.ERC20ApprovalTxParse, fmt.Sprintf("%sit is for chain %s, the payment is on %d", transaction, tx.chainID, chainID))
	}
	if tx.to != p.Token {
		return refuse(payment.ERC20ApprovalTxTarget, transaction+"it goes to "+tx.to.Hex()+", not to the token")
	}
	if len(tx.data) < 4 || [4]byte(tx.data) != selApprove {
		return refuse(payment.ERC20ApprovalTxSelector, transaction+"it does not call approve(address,uint256)")
	}
	if len(tx.data) != 4+64 || !zero(tx.data[4:4+12]) {
		return refuse(payment.ERC20ApprovalTxCalldata, transaction+"the call of approve is not an address and a number")
	}
	if spender := common.BytesToAddress(tx.data[4 : 4+32]); spender != Permit2 {
		return refuse(payment.ERC20ApprovalTxSpender, transaction+"it approves "+spender.Hex()+", not "+Permit2.Hex())
	}
	a := &RawApproval{
		From: p.From, Token: p.Token, Value: new(big.Int).SetBytes(tx.data[4+32:]), Nonce: tx.nonce, Gas: tx.gas, FeeCap: tx.feeCap, Tip: tx.tip, Raw: said.raw,
	}
	if a.Value.Cmp(said.amount) != 0 {
		return refuse(payment.ERC20ApprovalTxCalldata, fmt.Sprintf("%sit approves %s, %samount is %s", transaction, a.Value, info, said.amount))
	}
	if a.Value.Cmp(p.Amount) < 0 {
		return refuse(payment.ERC20ApprovalTxCalldata, fmt.Sprintf("%sit approves %s, less than the permitted %s", transaction, a.Value, p.Amount))
	}
	if tx.value.Sign() != 0 {
		return refuse(payment.ERC20ApprovalTxFailed, transaction+"it carries money: its value must be 0")
	}
	if a.Gas < minApprovalGas || a.Gas > MaxApprovalGas {
		return refuse(payment.ERC20ApprovalTxFailed, fmt.Sprintf("%sits gas limit is %d, it must be %d to %d", transaction, a.Gas, minApprovalGas, MaxApprovalGas))
	}
	if a.FeeCap.Cmp(big.NewInt(MaxApprovalFee)) > 0 || a.Tip.Cmp(a.FeeCap) > 0 {
		return refuse(payment.ERC20ApprovalTxFailed, fmt.Sprintf("%sits fee cap is %s and its tip %s wei per gas: the tip must not be above the cap, and that not above %d", transaction, a.FeeCap, a.Tip, MaxApprovalFee))
	}
	if problem := canonical(tx.signature); problem != "" {
		return refuse(payment.ERC20ApprovalTxSignature, transaction+problem)
	}
	signer, err := Recover(tx.digest, tx.signature)
	if err != nil {
		return refuse(payment.ERC20ApprovalTxSignature, transaction+err.Error())
	}
	if signer != p.From {
		return refuse(payment.ERC20ApprovalTxSigner, transaction+"it is signed by "+signer.Hex()+", not by the payer")
	}
	return a, nil
}
