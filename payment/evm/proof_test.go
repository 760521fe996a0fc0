package evm_test

import (
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment/evm"
)

var (
	theToken   = common.HexToAddress("0x036CbD53842c5426634e7929541eC2318f3dCF7e")
	otherToken = common.HexToAddress("0x0000000000000000000000000000000000007777")
)

func word(a common.Address) common.Hash { return common.BytesToHash(a[:]) }

func usedLog(index uint, token, from common.Address, nonce common.Hash) evm.Log {
	return evm.Log{Address: token, Topics: []common.Hash{evm.TopicAuthorizationUsed, word(from), nonce}, Index: index}
}

func transferLog(index uint, token, from, to common.Address, value *big.Int) evm.Log {
	return evm.Log{Address: token, Topics: []common.Hash{evm.TopicTransfer, word(from), word(to)}, Data: common.BigToHash(value).Bytes(), Index: index}
}

func TestOnlyTheAuthorizedTransferRightAfterTheUsedNonceIsProofOfPayment(t *testing.T) {
	_, payer := account(t, "payer/1")
	_, payee := account(t, "payee/1")
	_, other := account(t, "server/1")
	nonce, otherNonce := common.Hash{1}, common.Hash{2}
	value := big.NewInt(10000)
	a := &evm.Authorization{From: payer, To: payee, Value: value, ValidAfter: new(big.Int), ValidBefore: big.NewInt(4102444800), Nonce: nonce}

	used := usedLog(7, theToken, payer, nonce)
	moved := transferLog(8, theToken, payer, payee, value)
	with := func(l evm.Log, change func(*evm.Log)) evm.Log {
		l.Topics = append([]common.Hash(nil), l.Topics...)
		l.Data = append([]byte(nil), l.Data...)
		change(&l)
		return l
	}
	canceled := with(used, func(l *evm.Log) { l.Topics[0] = evm.TopicAuthorizationCanceled })
	noise := evm.Log{Address: otherToken, Topics: []common.Hash{crypto.Keccak256Hash([]byte("Noise()"))}, Index: 6}

	for name, row := range map[string]struct {
		logs  []evm.Log
		fate  evm.Fate
		index uint
	}{
		"no logs":                       {nil, evm.Untouched, 0},
		"used and moved":                {[]evm.Log{used, moved}, evm.Paid, 8},
		"among other logs":              {[]evm.Log{noise, used, moved, with(noise, func(l *evm.Log) { l.Index = 9 })}, evm.Paid, 8},
		"other logs only":               {[]evm.Log{noise, moved}, evm.Untouched, 0},
		"a transfer without the nonce":  {[]evm.Log{moved}, evm.Untouched, 0},
		"used, nothing moved":           {[]evm.Log{used}, evm.Spent, 0},
		"used, moved by another token":  {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Address = otherToken })}, evm.Spent, 0},
		"used, log between":             {[]evm.Log{used, with(noise, func(l *evm.Log) { l.Index = 8 }), with(moved, func(l *evm.Log) { l.Index = 9 })}, evm.Spent, 0},
		"used, gap in the indices":      {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Index = 9 })}, evm.Spent, 0},
		"used, same index":              {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Index = 7 })}, evm.Spent, 0},
		"moved before it was used":      {[]evm.Log{with(moved, func(l *evm.Log) { l.Index = 6 }), used}, evm.Spent, 0},
		"moved to somebody else":        {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Topics[2] = word(other) })}, evm.Spent, 0},
		"moved to the payer himself":    {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Topics[2] = word(payer) })}, evm.Spent, 0},
		"moved from somebody else":      {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Topics[1] = word(other) })}, evm.Spent, 0},
		"moved less":                    {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Data[31]-- })}, evm.Spent, 0},
		"moved more":                    {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Data[0]++ })}, evm.Spent, 0},
		"value in 31 bytes":             {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Data = l.Data[1:] })}, evm.Spent, 0},
		"value in 33 bytes":             {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Data = append([]byte{0}, l.Data...) })}, evm.Spent, 0},
		"value as a topic":              {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Topics, l.Data = append(l.Topics, common.BigToHash(value)), nil })}, evm.Spent, 0},
		"another event than Transfer":   {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Topics[0] = crypto.Keccak256Hash([]byte("Approval(address,address,uint256)")) })}, evm.Spent, 0},
		"to with dirt above it":         {[]evm.Log{used, with(moved, func(l *evm.Log) { l.Topics[2][0] = 1 })}, evm.Spent, 0},
		"canceled":                      {[]evm.Log{canceled}, evm.Spent, 0},
		"canceled, then a transfer":     {[]evm.Log{canceled, moved}, evm.Spent, 0},
		"nonce of another payment":      {[]evm.Log{usedLog(7, theToken, payer, otherNonce), moved}, evm.Untouched, 0},
		"nonce of another payer":        {[]evm.Log{usedLog(7, theToken, other, nonce), moved}, evm.Untouched, 0},
		"nonce of another token":        {[]evm.Log{usedLog(7, otherToken, payer, nonce), moved}, evm.Untouched, 0},
		"canceled on another token":     {[]evm.Log{with(canceled, func(l *evm.Log) { l.Address = otherToken })}, evm.Untouched, 0},
		"nonce not among the topics":    {[]evm.Log{with(used, func(l *evm.Log) { l.Topics, l.Data = l.Topics[:2], nonce[:] }), moved}, evm.Untouched, 0},
		"no topics at all":              {[]evm.Log{with(used, func(l *evm.Log) { l.Topics = nil }), with(moved, func(l *evm.Log) { l.Topics = nil })}, evm.Untouched, 0},
		"used by another, then by ours": {[]evm.Log{usedLog(5, theToken, payer, otherNonce), transferLog(6, theToken, payer, payee, value), used, moved}, evm.Paid, 8},
		"a token that uses it twice":    {[]evm.Log{usedLog(5, theToken, payer, nonce), transferLog(6, theToken, payer, other, value), used, moved}, evm.Paid, 8},
	} {
		if fate, index := a.Look(theToken, row.logs); fate != row.fate || index != row.index {
			t.Errorf("%s: fate %d at %d, want %d at %d", name, fate, index, row.fate, row.index)
		}
	}
}

// Fifty payments in one transaction, half of them of one value to one payee.
// Every fifth of them failed: some left no log, some spent the nonce without
// the transfer, some moved the money elsewhere. Each is told apart.
func TestEachPaymentOfABatchHasItsOwnFate(t *testing.T) {
	_, payee := account(t, "payee/1")
	_, other := account(t, "server/1")
	var items []*evm.Authorization
	var want []evm.Fate
	var at []uint
	var logs []evm.Log
	index := uint(100)
	for i := range 50 {
		value := big.NewInt(10000)
		if i%2 == 1 {
			value = big.NewInt(int64(20000 + i))
		}
		a := &evm.Authorization{From: common.BigToAddress(big.NewInt(int64(1 + i%7))), To: payee, Value: value, Nonce: crypto.Keccak256Hash([]byte{byte(i)})}
		fate, where := evm.Paid, index+1
		switch i % 15 {
		case 0: // its call failed
			fate, where = evm.Untouched, 0
		case 5: // its nonce was used, and the next item follows at once
			logs = append(logs, usedLog(index, theToken, a.From, a.Nonce))
			index, fate, where = index+1, evm.Spent, 0
		case 10: // its nonce was used for another transfer of the same value
			logs = append(logs, usedLog(index, theToken, a.From, a.Nonce), transferLog(index+1, theToken, a.From, other, value))
			index, fate, where = index+2, evm.Spent, 0
		default:
			logs = append(logs, usedLog(index, theToken, a.From, a.Nonce), transferLog(index+1, theToken, a.From, a.To, value))
			index += 2
		}
		items, want, at = append(items, a), append(want, fate), append(at, where)
	}
	count := map[evm.Fate]int{}
	for i, a := range items {
		fate, where := a.Look(theToken, logs)
		if fate != want[i] || where != at[i] {
			t.Errorf("item %d: fate %d at %d, want %d at %d", i, fate, where, want[i], at[i])
		}
		count[fate]++
	}
	if count[evm.Paid] != 40 || count[evm.Untouched] != 4 || count[evm.Spent] != 6 {
		t.Errorf("fates %v", count)
	}
}

func FuzzLook(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7})
	f.Fuzz(func(t *testing.T, script []byte) {
		payer, payee := common.Address{1}, common.Address{2}
		a := &evm.Authorization{From: payer, To: payee, Value: big.NewInt(5), Nonce: common.Hash{3}}
		var logs []evm.Log
		index := uint(0)
		for _, c := range script {
			pick := func(bit byte, yes, no common.Address) common.Address {
				if c&bit != 0 {
					return yes
				}
				return no
			}
			index += 1 + uint(c>>7)
			token := pick(2, theToken, otherToken)
			if c&1 != 0 {
				logs = append(logs, usedLog(index, token, pick(4, payer, payee), common.Hash{2 + c>>3&1}))
			} else {
				logs = append(logs, transferLog(index, token, pick(4, payer, payee), pick(8, payee, payer), big.NewInt(int64(4+c>>4&1))))
			}
		}
		fate, at := a.Look(theToken, logs)
		// Independently: the pair must stand somewhere, and only then.
		paid := false
		for i := 1; i < len(logs); i++ {
			u, m := logs[i-1], logs[i]
			if u.Address == theToken && m.Address == theToken && u.Topics[0] == evm.TopicAuthorizationUsed && u.Topics[1] == word(payer) && u.Topics[2] == (common.Hash{3}) &&
				m.Topics[0] == evm.TopicTransfer && m.Topics[1] == word(payer) && m.Topics[2] == word(payee) && new(big.Int).SetBytes(m.Data).Int64() == 5 && m.Index == u.Index+1 {
				paid = paid || at == m.Index
			}
		}
		if (fate == evm.Paid) != paid {
			t.Fatalf("fate %d at %d, paid: %v, logs %+v", fate, at, paid, logs)
		}
	})
}
