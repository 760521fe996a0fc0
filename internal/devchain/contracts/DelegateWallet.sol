// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Code for accounts with a key that delegate to it (EIP-7702): it approves what that key signed (ERC-1271).
///
/// It has no state: the owner is the account that runs it.
contract DelegateWallet {
    /// Returns the magic value 0x1626ba7e for this account's own 65-byte signature (r, s, v) of digest, else 0xffffffff.
    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        if (signature.length != 65) {
            return 0xffffffff;
        }
        address signer = ecrecover(digest, uint8(signature[64]), bytes32(signature[:32]), bytes32(signature[32:64]));
        return signer == address(this) ? this.isValidSignature.selector : bytes4(0xffffffff);
    }
}
