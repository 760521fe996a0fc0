// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title A token with ERC-20 and nothing else: no EIP-2612, no EIP-3009, no EIP-712 domain.
///
/// It can be paid with by Permit2 only, and Permit2 can be approved only by a transaction of the holder's own. Anyone
/// may mint. Genesis places the runtime code and balances, which fixes the storage layout:
///
///   slot 0  balances
///   slot 1  total supply
contract PlainToken {
    mapping(address => uint256) public balanceOf;
    uint256 public totalSupply;
    mapping(address => mapping(address => uint256)) public allowance;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);

    function name() external pure returns (string memory) {
        return "Plain";
    }

    function symbol() external pure returns (string memory) {
        return "PLAIN";
    }

    function decimals() external pure returns (uint8) {
        return 6;
    }

    function mint(address to, uint256 value) external {
        totalSupply += value;
        balanceOf[to] += value;
        emit Transfer(address(0), to, value);
    }

    function approve(address spender, uint256 value) external returns (bool) {
        allowance[msg.sender][spender] = value;
        emit Approval(msg.sender, spender, value);
        return true;
    }

    function transfer(address to, uint256 value) external returns (bool) {
        _move(msg.sender, to, value);
        return true;
    }

    function transferFrom(address from, address to, uint256 value) external returns (bool) {
        uint256 allowed = allowance[from][msg.sender];
        require(allowed >= value, "PlainToken: allowance");
        if (allowed != type(uint256).max) {
            allowance[from][msg.sender] = allowed - value;
        }
        _move(from, to, value);
        return true;
    }

    function _move(address from, address to, uint256 value) private {
        require(to != address(0), "PlainToken: to nobody");
        require(balanceOf[from] >= value, "PlainToken: balance");
        balanceOf[from] -= value;
        balanceOf[to] += value;
        emit Transfer(from, to, value);
    }
}
