package evm

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"
	"unicode/utf8"

	"github.com/ethereum/go-ethereum/common"
)

// What a token says of itself.
var (
	selName     = [4]byte{0x06, 0xfd, 0xde, 0x03} // name()
	selVersion  = [4]byte{0x54, 0xfd, 0x4d, 0x50} // version()
	selSymbol   = [4]byte{0x95, 0xd8, 0x9b, 0x41} // symbol()
	selDecimals = [4]byte{0x31, 0x3c, 0xe5, 0x67} // decimals()
	selDomain   = [4]byte{0x84, 0xb0, 0x19, 0x6e} // eip712Domain()
)

// NameCall asks a token for its name, which most tokens use in their EIP-712
// domain. ReadText reads the answer.
func NameCall() []byte { return bytes.Clone(selName[:]) }

// VersionCall asks a token for the version of its EIP-712 domain. ReadText
// reads the answer; many tokens have none.
func VersionCall() []byte { return bytes.Clone(selVersion[:]) }

// SymbolCall asks a token for its symbol. ReadText reads the answer.
func SymbolCall() []byte { return bytes.Clone(selSymbol[:]) }

// DecimalsCall asks a token how many decimals its amounts have. ReadDecimals
// reads the answer.
func DecimalsCall() []byte { return bytes.Clone(selDecimals[:]) }

// DomainCall asks a token for its EIP-712 domain, as EIP-5267 has it.
// ReadDomain reads the answer.
func DomainCall() []byte { return bytes.Clone(selDomain[:]) }

// maxText is the longest text that is read from a contract, in bytes.
const maxText = 256

// ReadText reads what a contract answers with one string, or with 32 bytes
// that are filled up with zeros, as the oldest tokens do.
func ReadText(output []byte) (string, error) {
	if len(output) == 32 {
		return checkText(bytes.TrimRight(output, "\x00"))
	}
	return readText(output, 0)
}

// readText reads the string whose place is at a place.
func readText(output []byte, at int) (string, error) {
	r := reader{output}
	start, ok := r.offset(0, at)
	if !ok {
		return "", errors.New("the answer is no text")
	}
	n, ok := r.length(start)
	if !ok || n > len(output)-start-32 {
		return "", errors.New("the answer is no text")
	}
	return checkText(output[start+32 : start+32+n])
}

func checkText(b []byte) (string, error) {
	if len(b) > maxText || !utf8.Valid(b) {
		return "", fmt.Errorf("the answer is no text of at most %d bytes", maxText)
	}
	return string(b), nil
}

// ReadDecimals reads the answer to a DecimalsCall.
func ReadDecimals(output []byte) (uint8, error) {
	if len(output) != 32 || !zero(output[:31]) {
		return 0, errors.New("the answer is no number of decimals")
	}
	return output[31], nil
}

// ReadDomain reads the answer to a DomainCall: (bytes1 fields, string name,
// string version, uint256 chainId, address verifyingContract, bytes32 salt,
// uint256[] extensions). A domain with other fields than name, version, chain
// id and contract is an error: payers of x402 could not sign for it.
func ReadDomain(output []byte) (Domain, error) {
	const words = 7
	if len(output) < words*32 {
		return Domain{}, errors.New("the answer is no EIP-712 domain")
	}
	if output[0] != 0x0f || !zero(output[1:32]) {
		return Domain{}, fmt.Errorf("its EIP-712 domain has the fields 0x%02x, not name, version, chain id and contract", output[0])
	}
	name, err := readText(output, 32)
	if err != nil {
		return Domain{}, fmt.Errorf("the name of its EIP-712 domain: %w", err)
	}
	version, err := readText(output, 64)
	if err != nil {
		return Domain{}, fmt.Errorf("the version of its EIP-712 domain: %w", err)
	}
	id := new(big.Int).SetBytes(output[96:128])
	if !id.IsUint64() || !zero(output[128:140]) || !zero(output[160:192]) {
		return Domain{}, errors.New("the answer is no EIP-712 domain")
	}
	return Domain{Name: name, Version: version, ChainID: id.Uint64(), Contract: common.BytesToAddress(output[140:160])}, nil
}
