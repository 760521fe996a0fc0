package evm

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
)

// Type hashes of Permit2 and of the witnesses that x402's proxies put into it.
var (
	permit2DomainTypeHash    = common.HexToHash("0x8cad95687ba82c2ce50e74f7b754645e5117c3a5bec8151c0726d5857980a866") // EIP712Domain(string name,uint256 chainId,address verifyingContract)
	tokenPermissionsTypeHash = common.HexToHash("0x618358ac3db8dc274f0cd8829da7e234bd48cd73c4a740aede1adec9846d06a1") // TokenPermissions(address token,uint256 amount)
	exactWitnessTypeHash     = common.HexToHash("0xd97b3239a7f32295517bd14cb074edfdd188dfe5eb42f802bb26d4fd1eb12c37") // Witness(address to,uint256 validAfter)
	uptoWitnessTypeHash      = common.HexToHash("0xd4171c445a74218b01d4fd8af34ff1106580ea1e36ff837e64484bfaa2253b75") // Witness(address to,address facilitator,uint256 validAfter)

	// PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,Witness witness)
	// and the types it refers to.
	exactPermitTypeHash = common.HexToHash("0xebc156cd23678a74c94df13d772ef5478420637f0c94bd10d509e1dc98f521c7")
	uptoPermitTypeHash  = common.HexToHash("0x51dff6974ad4388c499e7fcfe838d2bd767162553a144098ce20ea661d70c2ee")

	permit2NameHash = common.HexToHash("0x9ac997416e8ff9d2ff6bebeb7149f65cdae5e32e2b90440b566bb3044041d36a") // Permit2
)

// Permit2Separator returns the EIP-712 domain separator of Permit2 on a chain.
// Its domain has a name but no version.
func Permit2Separator(chainID uint64) common.Hash {
	var b [4 * 32]byte
	copy(b[0:], permit2DomainTypeHash[:])
	copy(b[32:], permit2NameHash[:])
	binary.BigEndian.PutUint64(b[88:], chainID)
	copy(b[108:], Permit2[:])
	return crypto.Keccak256Hash(b[:])
}

// Digest returns what the payer signs: the EIP-712 digest of p in the domain
// with the given separator, which is Permit2's. As for an Authorization, every
// field has one place in a fixed buffer.
func (p *Permit) Digest(separator common.Hash) common.Hash {
	var permitted [3 * 32]byte
	copy(permitted[0:], tokenPermissionsTypeHash[:])
	copy(permitted[32+12:], p.Token[:])
	p.Amount.FillBytes(permitted[64:96])

	var witness [4 * 32]byte
	signed := witness[:96]
	typeHash := &exactPermitTypeHash
	copy(witness[32+12:], p.To[:])
	if p.Scheme == payment.Upto {
		typeHash, signed = &uptoPermitTypeHash, witness[:]
		copy(witness[0:], uptoWitnessTypeHash[:])
		copy(witness[64+12:], p.Facilitator[:])
		p.ValidAfter.FillBytes(witness[96:128])
	} else {
		copy(witness[0:], exactWitnessTypeHash[:])
		p.ValidAfter.FillBytes(witness[64:96])
	}

	// A state of our own stays on the stack, and so does what it reads.
	keccak := crypto.NewKeccakState()
	var s [6 * 32]byte // the hashed struct
	copy(s[0:], typeHash[:])
	keccak.Write(permitted[:])
	keccak.Read(s[32:64])
	copy(s[64+12:], p.Spender[:])
	p.Nonce.FillBytes(s[96:128])
	p.Deadline.FillBytes(s[128:160])
	keccak.Reset()
	keccak.Write(signed)
	keccak.Read(s[160:192])
	return typedDigest(separator, s[:])
}

// Key names the payment by what Permit2 itself dedupes on: chain, payer and
// nonce. The token is not part of it, nor the spender: a payer has one set of
// nonces for all of them.
func (p *Permit) Key(chainID uint64) payment.Key {
	var b [4 + 32 + 20 + 20 + 32]byte
	copy(b[0:], "prm2")
	binary.BigEndian.PutUint64(b[28:], chainID)
	copy(b[36:], Permit2[:])
	copy(b[56:], p.From[:])
	p.Nonce.FillBytes(b[76:])
	return sha256.Sum256(b[:])
}
