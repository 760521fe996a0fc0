package evm

import (
	"math/big"

	"github.com/ethereum/go-ethereum/common"
)

// Topics of the events that prove what became of an authorization.
var (
	TopicTransfer              = common.HexToHash("0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef") // Transfer(address,address,uint256)
	TopicAuthorizationUsed     = common.HexToHash("0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5") // AuthorizationUsed(address,bytes32)
	TopicAuthorizationCanceled = common.HexToHash("0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81") // AuthorizationCanceled(address,bytes32)
)

// A Log is an event of a successful transaction.
type Log struct {
	Address common.Address
	Topics  []common.Hash
	Data    []byte
	Index   uint // position in its block
}

// A Fate is what a transaction's logs say about an authorization.
type Fate int

const (
	Untouched Fate = iota // nothing
	Paid                  // the transfer it authorizes was made
	Spent                 // its nonce was used by something else
)

// Look reads what the logs of one successful transaction, in order, say about
// a. A used nonce alone proves nothing: cancelling uses it too, another
// transfer can carry the same nonce, and some tokens do not revert on a used
// one. Paid asks for AuthorizationUsed(from, nonce) of the token and, as the
// very next log, the token's Transfer(from, to, value) with the right
// members. index is the position of that Transfer in its block.
func (a *Authorization) Look(token common.Address, logs []Log) (fate Fate, index uint) {
	for i, l := range logs {
		if l.Address != token || len(l.Topics) != 3 || l.Topics[1] != common.BytesToHash(a.From[:]) || l.Topics[2] != a.Nonce {
			continue
		}
		switch l.Topics[0] {
		case TopicAuthorizationCanceled:
			fate = Spent
		case TopicAuthorizationUsed:
			if i+1 < len(logs) && a.moved(token, l, logs[i+1]) {
				return Paid, logs[i+1].Index
			}
			fate = Spent
		}
	}
	return fate, 0
}

// moved reports whether next follows used at once and is the authorized
// transfer.
func (a *Authorization) moved(token common.Address, used, next Log) bool {
	return next.Index == used.Index+1 && next.Address == token &&
		len(next.Topics) == 3 && next.Topics[0] == TopicTransfer &&
		next.Topics[1] == common.BytesToHash(a.From[:]) &&
		next.Topics[2] == common.BytesToHash(a.To[:]) &&
		len(next.Data) == 32 && new(big.Int).SetBytes(next.Data).Cmp(a.Value) == 0
}
