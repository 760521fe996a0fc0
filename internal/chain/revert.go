package chain

import (
	"encoding/hex"
	"strings"

	"github.com/ethereum/go-ethereum/accounts/abi"
)

// RevertError says that a call failed in the EVM: it reverted, or it halted (out of gas, an invalid opcode). Asking another node
// about the same state would give the same answer.
type RevertError struct {
	// Reason is the string of Error(string), the meaning of Panic(uint256), or what halted the call; "" when there is none. Any
	// contract can put any text here: it is printable and short, and it is evidence of nothing.
	Reason string

	// Data is what the call returned, as far as the node tells.
	Data []byte
}

func (e *RevertError) Error() string {
	if e.Reason == "" {
		return "execution reverted"
	}
	return "execution reverted: " + e.Reason
}

// revertCode is the JSON-RPC error code for a revert in most nodes.
const revertCode = 3

// asRevert tells the failure of a call from every other JSON-RPC error. Nodes agree on neither code, text nor shape of data.
func asRevert(code int, message string, data any) (*RevertError, bool) {
	lower := strings.ToLower(message)
	if code == revertCode || hasAnyPrefix(lower, revertPrefixes) {
		payload := revertData(data)
		if reason, err := abi.UnpackRevert(payload); err == nil {
			return &RevertError{Reason: printable(reason), Data: payload}, true
		}
		_, reason, _ := strings.Cut(message, ": ")
		return &RevertError{Reason: printable(reason), Data: payload}, true
	}
	if hasAnyPrefix(strings.TrimPrefix(lower, "evm error: "), haltPrefixes) {
		return &RevertError{Reason: printable(message)}, true
	}
	return nil, false
}

var revertPrefixes = []string{
	"execution reverted",
	"vm execution error",
	"vm exception while processing transaction: revert",
	"error: vm exception while processing transaction: revert",
	"reverted",
}

// haltPrefixes are the EVM's own ways to fail without revert data. What may be the asker's doing (its funds, its fees, the gas it
// can pay for) is not among them: that says nothing about the contract.
var haltPrefixes = []string{
	"out of gas",
	"gas uint64 overflow",
	"invalid opcode",
	"invalidfeopcode",
	"opcodenotfound",
	"invalid jump destination",
	"invalidjump",
	"stack underflow",
	"stackunderflow",
	"stack limit reached",
	"stack overflow",
	"stackoverflow",
	"write protection",
	"return data out of bounds",
	"max call depth exceeded",
	"max code size exceeded",
	"max initcode size exceeded",
	"contract address collision",
	"contract creation code storage out of gas",
	"invalid code: must not begin with 0xef",
}

func hasAnyPrefix(text string, prefixes []string) bool {
	for _, prefix := range prefixes {
		if strings.HasPrefix(text, prefix) {
			return true
		}
	}
	return false
}

// revertData finds the returned bytes in the data of a JSON-RPC error: "0x…", "Reverted 0x…", or an object with one of these in
// its own data. It returns nil when there are none.
func revertData(data any) []byte {
	if object, ok := data.(map[string]any); ok {
		data = object["data"]
	}
	text, ok := data.(string)
	if !ok {
		return nil
	}
	if at := strings.LastIndexByte(text, ' '); at >= 0 {
		text = text[at+1:]
	}
	digits, ok := strings.CutPrefix(text, "0x")
	if !ok {
		return nil
	}
	raw, err := hex.DecodeString(digits)
	if err != nil || len(raw) == 0 {
		return nil
	}
	return raw
}
