// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title A contract wallet for tests: it approves what its owner's key signed (ERC-1271).
///
/// It has no constructor: whoever places the code sets the owner, in storage slot 0.
contract TestWallet {
    address public owner;

    /// Returns the magic value 0x1626ba7e for the owner's 65-byte signature (r, s, v) of digest, else 0xffffffff.
    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        if (signature.length != 65) {
            return 0xffffffff;
        }
        address signer = ecrecover(digest, uint8(signature[64]), bytes32(signature[:32]), bytes32(signature[32:64]));
        return signer != address(0) && signer == owner ? this.isValidSignature.selector : bytes4(0xffffffff);
    }
}
