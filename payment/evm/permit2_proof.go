package evm

import (
	"bytes"
	"math/big"
	"slices"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
)

// Topics of the events of the proxies and of Permit2.
var (
	TopicSettled                    = common.HexToHash("0x97088ec3606cfe8cc112180570d03fcde05f9b8e1bfef8e27784eaf5dd5691b6") // Settled()
	TopicSettledWithPermit          = common.HexToHash("0xde5b89d10fc800c459329c382fabfcad0be0ed7e5328e01fae04e507b09ef5d8") // SettledWithPermit()
	TopicUnorderedNonceInvalidation = common.HexToHash("0x3704902f963766a4e561bbaab6e6cdc1b1dd12f6e9e99648da8843b3f46b918d") // UnorderedNonceInvalidation(address,uint256,uint256)
)

// A Call is a call that a transaction made: its own, or one inside it as a
// trace shows it. Delegate calls and static calls are none.
type Call struct {
	To   common.Address
	Data []byte
}

// Look reads what one successful transaction says about p. Permit2 logs
// nothing when a permit is used and the proxies' events name no payment, so it
// takes the transaction's calls as well: the transaction's own call where that
// goes to a proxy, else all that a trace shows in their order, without those
// that were reverted, themselves or with a call around them. logs are all logs
// of the transaction, in order.
//
// A proxy runs one settlement at a time and ends each with an event, so the
// calls to it and its events belong together one by one. Paid asks for such a
// pair with p's payer and nonce, for the same token, recipient, amount and
// facilitator, and that the token's last Transfer of the payer's money before
// the event is the right one. moved is then what it moved and index its
// position in its block. Spent is such a pair with the nonce and without the
// rest.
//
// Untouched says nothing: neither that the nonce is unused nor that the
// transaction did not pay, where calls are missing. That the nonce's bit is set
// at the transaction's block is for the caller to see. An invalidation of the
// nonce does not count here, see Invalidated.
func (p *Permit) Look(calls []Call, logs []Log) (fate Fate, moved *big.Int, index uint) {
	for _, proxy := range [...]common.Address{ExactProxy, UptoProxy} {
		start := 0
		for _, r := range settlements(proxy, calls, logs) {
			part := logs[start:r.end]
			start = r.end + 1
			if r.From != p.From || r.Nonce.Cmp(p.Nonce) != 0 {
				continue
			}
			if at, ok := p.paidBy(r, part); ok {
				return Paid, r.charge, at
			}
			fate = Spent
		}
	}
	return fate, nil, 0
}

// PermitAt returns the permit by which the Transfer at a position in its block
// was made, of a transaction with these calls and logs: see Permit.Look.
func PermitAt(calls []Call, logs []Log, at uint) (*Permit, bool) {
	for _, proxy := range [...]common.Address{ExactProxy, UptoProxy} {
		start := 0
		for _, r := range settlements(proxy, calls, logs) {
			part := logs[start:r.end]
			start = r.end + 1
			if moved, ok := r.paidBy(r, part); ok && moved == at {
				return r.Permit, true
			}
		}
	}
	return nil, false
}

// A settled is one settlement that a proxy has made.
type settled struct {
	*Permit
	charge *big.Int
	end    int // place of the event that ends it among the logs
}

// settlements pairs the calls to a proxy with the events that end them. It
// returns nothing if they are not the same in number and kind: some of the
// calls are missing then.
func settlements(proxy common.Address, calls []Call, logs []Log) []settled {
	var list []settled
	var kinds []common.Hash
	for _, c := range calls {
		if c.To != proxy {
			continue
		}
		call, _ := readPermitHead(c.To, c.Data)
		if call == nil {
			continue
		}
		kind := TopicSettled
		if call.Approval != nil {
			kind = TopicSettledWithPermit
		}
		list, kinds = append(list, settled{Permit: &call.Permit.Permit, charge: call.Charge}), append(kinds, kind)
	}
	ends := 0
	for i, l := range logs {
		if !settlesAt(proxy, l) {
			continue
		}
		if ends == len(list) || kinds[ends] != l.Topics[0] {
			return nil
		}
		list[ends].end = i
		ends++
	}
	if ends != len(list) {
		return nil
	}
	return list
}

// SettlesPermits reports whether logs of a transaction say that permits were
// spent in it. Which ones only its calls tell.
func SettlesPermits(logs []Log) bool {
	return slices.ContainsFunc(logs, func(l Log) bool { return settlesAt(ExactProxy, l) || settlesAt(UptoProxy, l) })
}

// settlesAt reports whether a log is the event that ends a settlement by a proxy.
func settlesAt(proxy common.Address, l Log) bool {
	return l.Address == proxy && len(l.Topics) == 1 && (l.Topics[0] == TopicSettled || l.Topics[0] == TopicSettledWithPermit)
}

// paidBy reports whether s settles what p permits, and where in logs, which
// lead up to the event that ends it, the money moved.
func (p *Permit) paidBy(s settled, logs []Log) (index uint, ok bool) {
	if s.Scheme != p.Scheme || s.Token != p.Token || s.To != p.To || s.Amount.Cmp(p.Amount) != 0 ||
		s.Scheme == payment.Upto && s.Facilitator != p.Facilitator {
		return 0, false
	}
	payer := common.BytesToHash(p.From[:])
	for _, l := range slices.Backward(logs) {
		if l.Address != p.Token || len(l.Topics) != 3 || l.Topics[0] != TopicTransfer || l.Topics[1] != payer {
			continue
		}
		return l.Index, l.Topics[2] == common.BytesToHash(p.To[:]) &&
			len(l.Data) == 32 && new(big.Int).SetBytes(l.Data).Cmp(s.charge) == 0
	}
	return 0, false
}

// Invalidated reports whether logs of a successful transaction say that the
// payer has invalidated the permit's nonce, and the position of that log in its
// block. From there on nothing can use the permit. It is no proof that nothing
// has: Permit2 lets a payer invalidate a nonce that a payment has used.
func (p *Permit) Invalidated(logs []Log) (index uint, ok bool) {
	var nonce [32]byte
	p.Nonce.FillBytes(nonce[:])
	var place [32]byte // of the word that the nonce is in
	copy(place[1:], nonce[:31])
	bit := nonce[31]
	for _, l := range logs {
		if l.Address == Permit2 && len(l.Topics) == 2 && l.Topics[0] == TopicUnorderedNonceInvalidation && l.Topics[1] == common.BytesToHash(p.From[:]) &&
			len(l.Data) == 64 && bytes.Equal(l.Data[:32], place[:]) && l.Data[63-bit/8]>>(bit%8)&1 == 1 {
			return l.Index, true
		}
	}
	return 0, false
}
