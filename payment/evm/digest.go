package evm

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
)

// Type hashes of EIP-712 and EIP-3009.
var (
	domainTypeHash   = common.HexToHash("0x8b73c3c69bb8fe3d512ecc4cf759cc79239f7b179b0ffacaa9a75d522b39400f")
	transferTypeHash = common.HexToHash("0x7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267")
)

// A Domain is the EIP-712 domain of a token.
type Domain struct {
	Name     string
	Version  string
	ChainID  uint64
	Contract common.Address
}

// DomainOf returns the domain of a token on an EVM chain.
func DomainOf(t payment.Token) Domain {
	id, _ := t.Network.ChainID()
	return Domain{t.Name, t.Version, id, common.HexToAddress(t.Address)}
}

// Separator returns the domain separator, which the token's contract answers
// to DOMAIN_SEPARATOR(). It is worth keeping: computing it costs more than a
// digest.
func (d Domain) Separator() common.Hash {
	var b [5 * 32]byte
	copy(b[0:], domainTypeHash[:])
	copy(b[32:], crypto.Keccak256([]byte(d.Name)))
	copy(b[64:], crypto.Keccak256([]byte(d.Version)))
	binary.BigEndian.PutUint64(b[120:], d.ChainID)
	copy(b[140:], d.Contract[:])
	return crypto.Keccak256Hash(b[:])
}

// Digest returns what the payer signs: the EIP-712 digest of a in the domain
// with the given separator. Every field has one place in a fixed buffer, so
// nothing of it depends on a general encoder; tests hold it against one.
func (a *Authorization) Digest(separator common.Hash) common.Hash {
	var s [7 * 32]byte // the hashed struct
	copy(s[0:], transferTypeHash[:])
	copy(s[32+12:], a.From[:])
	copy(s[64+12:], a.To[:])
	a.Value.FillBytes(s[96:128])
	a.ValidAfter.FillBytes(s[128:160])
	a.ValidBefore.FillBytes(s[160:192])
	copy(s[192:], a.Nonce[:])
	return typedDigest(separator, s[:])
}

// typedDigest returns the EIP-712 digest of an encoded struct in the domain with
// the given separator.
func typedDigest(separator common.Hash, encoded []byte) (digest common.Hash) {
	var d [2 + 2*32]byte
	d[0], d[1] = 0x19, 0x01
	copy(d[2:], separator[:])

	// A state of our own stays on the stack, and so does what it reads.
	keccak := crypto.NewKeccakState()
	keccak.Write(encoded)
	keccak.Read(d[34:])
	keccak.Reset()
	keccak.Write(d[:])
	keccak.Read(digest[:])
	return digest
}

// Key names the payment by what the token itself dedupes on: chain, token,
// payer and nonce.
func (a *Authorization) Key(chainID uint64, token common.Address) payment.Key {
	var b [4 + 32 + 20 + 20 + 32]byte
	copy(b[0:], "3009")
	binary.BigEndian.PutUint64(b[28:], chainID)
	copy(b[36:], token[:])
	copy(b[56:], a.From[:])
	copy(b[76:], a.Nonce[:])
	return sha256.Sum256(b[:])
}
