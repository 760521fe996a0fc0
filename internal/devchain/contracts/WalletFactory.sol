// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestWallet} from "./TestWallet.sol";

/// A wallet that is deployed, and so can have a constructor.
contract DeployedWallet is TestWallet {
    constructor(address first) {
        owner = first;
    }
}

/// @title A factory of contract wallets, at addresses that are known before they exist (CREATE2).
contract WalletFactory {
    event Created(address account);

    /// Deploys the wallet of an owner, unless it is there already.
    function createAccount(address owner, uint256 salt) external returns (address account) {
        account = accountAddress(owner, salt);
        if (account.code.length == 0) {
            new DeployedWallet{salt: bytes32(salt)}(owner);
            emit Created(account);
        }
    }

    /// Returns where createAccount deploys.
    function accountAddress(address owner, uint256 salt) public view returns (address) {
        bytes32 code = keccak256(abi.encodePacked(type(DeployedWallet).creationCode, abi.encode(owner)));
        return address(uint160(uint256(keccak256(abi.encodePacked(hex"ff", address(this), salt, code)))));
    }
}
