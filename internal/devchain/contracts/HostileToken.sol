// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title A token with EIP-3009 that breaks one promise which payments rely on.
///
/// Which one is its kind. Everything else is as it should be, so that a test sees the one lie. Plain accounts only;
/// anyone may mint. A test places the runtime code and the kind, which fixes the storage layout:
///
///   slot 0  kind
contract HostileToken {
    uint256 private _kind;
    mapping(address => uint256) private _balances;
    mapping(address => mapping(bytes32 => bool)) private _authorizations;

    /// Using a used or cancelled nonce again succeeds, does nothing and logs nothing.
    uint256 private constant FORGIVES = 1;
    /// A hundredth of each transfer goes to somebody else.
    uint256 private constant TAKES_FEE = 2;
    /// Money moves without a log.
    uint256 private constant SILENT = 3;
    /// Logs tell of money that did not move.
    uint256 private constant BOASTS = 4;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
    event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);

    bytes32 private constant TRANSFER_TYPEHASH = keccak256(
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 private constant CANCEL_TYPEHASH = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");

    function name() public pure returns (string memory) {
        return "Hostile";
    }

    function version() public pure returns (string memory) {
        return "1";
    }

    function decimals() external pure returns (uint8) {
        return 6;
    }

    function balanceOf(address account) external view returns (uint256) {
        return _balances[account];
    }

    function authorizationState(address authorizer, bytes32 nonce) external view returns (bool) {
        return _authorizations[authorizer][nonce];
    }

    function mint(address to, uint256 value) external {
        _balances[to] += value;
        emit Transfer(address(0), to, value);
    }

    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external {
        _authorized(from, to, value, validAfter, validBefore, nonce, v, r, s);
    }

    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) external {
        (uint8 v, bytes32 r, bytes32 s) = _split(signature);
        _authorized(from, to, value, validAfter, validBefore, nonce, v, r, s);
    }

    function cancelAuthorization(address authorizer, bytes32 nonce, bytes memory signature) external {
        require(!_authorizations[authorizer][nonce], "Hostile: used");
        (uint8 v, bytes32 r, bytes32 s) = _split(signature);
        require(_signer(keccak256(abi.encode(CANCEL_TYPEHASH, authorizer, nonce)), v, r, s) == authorizer, "Hostile: signature");
        _authorizations[authorizer][nonce] = true;
        emit AuthorizationCanceled(authorizer, nonce);
    }

    function DOMAIN_SEPARATOR() public view returns (bytes32) {
        return keccak256(
            abi.encode(
                DOMAIN_TYPEHASH, keccak256(bytes(name())), keccak256(bytes(version())), block.chainid, address(this)
            )
        );
    }

    function _authorized(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) private {
        require(block.timestamp > validAfter && block.timestamp < validBefore, "Hostile: time");
        bytes32 content = keccak256(abi.encode(TRANSFER_TYPEHASH, from, to, value, validAfter, validBefore, nonce));
        require(_signer(content, v, r, s) == from, "Hostile: signature");
        if (_kind == FORGIVES && _authorizations[from][nonce]) {
            return;
        }
        require(!_authorizations[from][nonce], "Hostile: used");
        _authorizations[from][nonce] = true;
        if (_kind != SILENT) {
            emit AuthorizationUsed(from, nonce);
        }
        _move(from, to, value);
    }

    function _move(address from, address to, uint256 value) private {
        if (_kind == BOASTS) {
            emit Transfer(from, to, value);
            return;
        }
        uint256 fee = _kind == TAKES_FEE ? value / 100 : 0;
        require(_balances[from] >= value, "Hostile: balance");
        _balances[from] -= value;
        _balances[to] += value - fee;
        _balances[address(this)] += fee;
        if (_kind == SILENT) {
            return;
        }
        emit Transfer(from, to, value - fee);
        if (fee > 0) {
            emit Transfer(from, address(this), fee);
        }
    }

    function _signer(bytes32 content, uint8 v, bytes32 r, bytes32 s) private view returns (address) {
        return ecrecover(keccak256(abi.encodePacked(hex"1901", DOMAIN_SEPARATOR(), content)), v, r, s);
    }

    function _split(bytes memory signature) private pure returns (uint8 v, bytes32 r, bytes32 s) {
        require(signature.length == 65, "Hostile: signature");
        assembly {
            r := mload(add(signature, 0x20))
            s := mload(add(signature, 0x40))
            v := byte(0, mload(add(signature, 0x60)))
        }
    }
}
