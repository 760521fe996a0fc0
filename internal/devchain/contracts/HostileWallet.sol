// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title A contract wallet (ERC-1271) that plays one trick on who pays the gas. It approves every signature otherwise.
///
/// It has no constructor: whoever places the code writes the trick into slot 0 and what the trick needs into slot 1.
/// The wallets that can tell a simulation from a transaction approve in the simulation, and burn what gas there is in
/// the transaction.
contract HostileWallet {
    enum Trick {
        None,
        BurnsGas, // burns all gas it is given
        ReturnsMuch, // approves with an answer of as many bytes as slot 1 says
        SeesGasPrice, // burns where gas has a price
        SeesBaseFee, // burns where the block has a base fee
        SeesOrigin, // burns unless nobody has sent the transaction
        SeesCoinbase, // burns unless the tips go to the address in slot 1
        SeesGas, // burns where it has less gas than slot 1 says
        SeesBlock, // burns in blocks of odd number
        Obeys // refuses once it was told to
    }

    Trick private _trick;
    uint256 private _argument;
    bool private _refuses;

    /// Makes a wallet that obeys refuse from now on, or approve again. Anyone may.
    function command(bool refuses) external {
        _refuses = refuses;
    }

    function isValidSignature(bytes32, bytes calldata) external view returns (bytes4) {
        Trick trick = _trick;
        uint256 argument = _argument;
        if (trick == Trick.ReturnsMuch) {
            bytes32 magic = this.isValidSignature.selector;
            assembly {
                mstore(0, magic)
                return(0, argument)
            }
        }
        if (trick == Trick.Obeys) {
            return _refuses ? bytes4(0xffffffff) : this.isValidSignature.selector;
        }
        bool burns = trick == Trick.BurnsGas || (trick == Trick.SeesGasPrice && tx.gasprice > 0)
            || (trick == Trick.SeesBaseFee && block.basefee > 0) || (trick == Trick.SeesOrigin && tx.origin != address(0))
            || (trick == Trick.SeesCoinbase && block.coinbase != address(uint160(argument)))
            || (trick == Trick.SeesGas && gasleft() < argument) || (trick == Trick.SeesBlock && block.number % 2 == 1);
        if (burns) {
            assembly {
                invalid()
            }
        }
        return this.isValidSignature.selector;
    }
}
