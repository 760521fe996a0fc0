// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

interface Wallet {
    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4);
}

/// @title Stand-in for Uniswap's Permit2 on the sandbox chain: transfers of one token by signature.
///
/// Behaves as the SignatureTransfer half of Permit2 does towards a payment: the same functions, event, errors, order of
/// checks and signed types. Transfers of several tokens at once and lasting allowances are missing.
///
/// The runtime code is placed in genesis, so there is no constructor and no immutable: the domain separator is computed
/// when it is asked for.
contract Permit2 {
    struct TokenPermissions {
        address token;
        uint256 amount;
    }

    struct PermitTransferFrom {
        TokenPermissions permitted;
        uint256 nonce;
        uint256 deadline;
    }

    struct SignatureTransferDetails {
        address to;
        uint256 requestedAmount;
    }

    /// The used nonces of each owner: nonce n is bit n % 256 of word n / 256. They need no order.
    mapping(address => mapping(uint256 => uint256)) public nonceBitmap;

    event UnorderedNonceInvalidation(address indexed owner, uint256 word, uint256 mask);

    error SignatureExpired(uint256 signatureDeadline);
    error InvalidAmount(uint256 maxAmount);
    error InvalidNonce();
    error InvalidSignatureLength();
    error InvalidSignature();
    error InvalidSigner();
    error InvalidContractSignature();

    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)");
    bytes32 private constant TOKEN_PERMISSIONS_TYPEHASH = keccak256("TokenPermissions(address token,uint256 amount)");
    bytes32 private constant PERMIT_TYPEHASH = keccak256(
        "PermitTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline)TokenPermissions(address token,uint256 amount)"
    );

    /// What every type of a permit with a witness starts with. The rest, from the witness on, is up to the spender.
    string private constant WITNESS_PERMIT_TYPE =
        "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,";

    /// The domain has no version.
    function DOMAIN_SEPARATOR() public view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPEHASH, keccak256("Permit2"), block.chainid, address(this)));
    }

    /// Makes the nonces of the caller whose bits are set in mask unusable. Those that were used stay so.
    function invalidateUnorderedNonces(uint256 wordPos, uint256 mask) external {
        nonceBitmap[msg.sender][wordPos] |= mask;
        emit UnorderedNonceInvalidation(msg.sender, wordPos, mask);
    }

    /// Moves what owner has signed for the caller.
    function permitTransferFrom(
        PermitTransferFrom calldata permit,
        SignatureTransferDetails calldata transferDetails,
        address owner,
        bytes calldata signature
    ) external {
        bytes32 content = keccak256(
            abi.encode(PERMIT_TYPEHASH, _hash(permit.permitted), msg.sender, permit.nonce, permit.deadline)
        );
        _transfer(permit, transferDetails, owner, content, signature);
    }

    /// Moves what owner has signed for the caller together with a struct of the caller's, of which witness is the hash.
    function permitWitnessTransferFrom(
        PermitTransferFrom calldata permit,
        SignatureTransferDetails calldata transferDetails,
        address owner,
        bytes32 witness,
        string calldata witnessTypeString,
        bytes calldata signature
    ) external {
        bytes32 kind = keccak256(abi.encodePacked(WITNESS_PERMIT_TYPE, witnessTypeString));
        bytes32 content =
            keccak256(abi.encode(kind, _hash(permit.permitted), msg.sender, permit.nonce, permit.deadline, witness));
        _transfer(permit, transferDetails, owner, content, signature);
    }

    function _hash(TokenPermissions calldata permitted) private pure returns (bytes32) {
        return keccak256(abi.encode(TOKEN_PERMISSIONS_TYPEHASH, permitted.token, permitted.amount));
    }

    function _transfer(
        PermitTransferFrom calldata permit,
        SignatureTransferDetails calldata details,
        address owner,
        bytes32 content,
        bytes calldata signature
    ) private {
        if (block.timestamp > permit.deadline) revert SignatureExpired(permit.deadline);
        if (details.requestedAmount > permit.permitted.amount) revert InvalidAmount(permit.permitted.amount);
        _useNonce(owner, permit.nonce);
        _verify(owner, keccak256(abi.encodePacked(hex"1901", DOMAIN_SEPARATOR(), content)), signature);
        _pull(permit.permitted.token, owner, details.to, details.requestedAmount);
    }

    /// No event tells of it.
    function _useNonce(address owner, uint256 nonce) private {
        uint256 bit = 1 << (nonce & 0xff);
        uint256 word = nonceBitmap[owner][nonce >> 8];
        if (word & bit != 0) revert InvalidNonce();
        nonceBitmap[owner][nonce >> 8] = word | bit;
    }

    /// An account with code is asked (ERC-1271). Any other has signed with its key, in 65 bytes or, as EIP-2098
    /// describes, in 64. An s in the upper half is accepted.
    function _verify(address owner, bytes32 digest, bytes calldata signature) private view {
        if (owner.code.length != 0) {
            if (Wallet(owner).isValidSignature(digest, signature) != Wallet.isValidSignature.selector) {
                revert InvalidContractSignature();
            }
            return;
        }
        bytes32 s;
        uint8 v;
        if (signature.length == 65) {
            s = bytes32(signature[32:64]);
            v = uint8(signature[64]);
        } else if (signature.length == 64) {
            uint256 vs = uint256(bytes32(signature[32:64]));
            s = bytes32(vs & type(uint256).max >> 1);
            v = uint8(27 + (vs >> 255));
        } else {
            revert InvalidSignatureLength();
        }
        address signer = ecrecover(digest, v, bytes32(signature[:32]), s);
        if (signer == address(0)) revert InvalidSignature();
        if (signer != owner) revert InvalidSigner();
    }

    /// A token that answers nothing counts as having agreed, and so does an address without code, as in the original.
    function _pull(address token, address from, address to, uint256 amount) private {
        (bool ok, bytes memory answer) =
            token.call(abi.encodeWithSignature("transferFrom(address,address,uint256)", from, to, amount));
        if (ok && answer.length != 0) {
            ok = answer.length >= 32 && uint256(bytes32(answer)) == 1;
        }
        require(ok, "TRANSFER_FROM_FAILED");
    }
}
