package evm_test

import (
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

func settledLog(index uint, proxy common.Address, sponsored bool) evm.Log {
	topic := evm.TopicSettled
	if sponsored {
		topic = evm.TopicSettledWithPermit
	}
	return evm.Log{Address: proxy, Topics: []common.Hash{topic}, Index: index}
}

// callOf is the call of a transaction that settles s, for charge by upto.
func callOf(s *evm.SignedPermit, charge int64) evm.Call {
	c := &evm.PermitCall{Permit: s}
	if s.Scheme == payment.Upto {
		c.Charge = big.NewInt(charge)
	}
	return evm.Call{To: s.Proxy(), Data: c.Calldata()}
}

func TestOnlyASettlementWithItsTransferIsProofThatAPermitWasPaid(t *testing.T) {
	_, other := account(t, "server/1")
	exact := permitFor(t, permitOffer(t, payment.Exact, "eip155:84532", 10000), 0, 4102444800)
	upto := permitFor(t, permitOffer(t, payment.Upto, "eip155:84532", 10000), 0, 4102444800)
	with := func(s *evm.SignedPermit, change func(p *evm.Permit)) *evm.SignedPermit {
		changed := *s
		change(&changed.Permit)
		return &changed
	}
	sponsored := evm.Call{To: exact.Proxy(), Data: (&evm.PermitCall{Permit: exact, Approval: approvalFor(t, &exact.Permit)}).Calldata()}
	stranger := evm.Call{To: other, Data: callOf(exact, 0).Data}
	suffixed := callOf(exact, 0)
	suffixed.Data = append(suffixed.Data, "with a builder's code"...)
	moved := func(index uint, s *evm.SignedPermit, value int64) evm.Log {
		return transferLog(index, s.Token, s.From, s.To, big.NewInt(value))
	}
	noise := func(index uint) evm.Log {
		return evm.Log{Address: other, Topics: []common.Hash{crypto.Keccak256Hash([]byte("Noise()"))}, Index: index}
	}
	approved := func(index uint) evm.Log {
		return evm.Log{Address: exact.Token, Topics: []common.Hash{crypto.Keccak256Hash([]byte("Approval(address,address,uint256)")), word(exact.From), word(evm.Permit2)}, Data: make([]byte, 32), Index: index}
	}
	settled := func(index uint) evm.Log { return settledLog(index, evm.ExactProxy, false) }
	settledUpto := func(index uint) evm.Log { return settledLog(index, evm.UptoProxy, false) }
	otherNonce := with(exact, func(p *evm.Permit) { p.Nonce = common.Big1 })
	otherPayer := with(exact, func(p *evm.Permit) { p.From = other })

	for name, row := range map[string]struct {
		of    *evm.SignedPermit
		calls []evm.Call
		logs  []evm.Log
		fate  evm.Fate
		moved int64
		index uint
	}{
		"nothing":                         {exact, nil, nil, evm.Untouched, 0, 0},
		"settled and moved":               {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Paid, 10000, 7},
		"with data after the call":        {exact, []evm.Call{suffixed}, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Paid, 10000, 7},
		"with the approval":               {exact, []evm.Call{sponsored}, []evm.Log{approved(6), moved(7, exact, 10000), settledLog(8, evm.ExactProxy, true)}, evm.Paid, 10000, 7},
		"the token logs more":             {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{moved(6, exact, 10000), approved(7), settled(8)}, evm.Paid, 10000, 6},
		"others log between":              {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{noise(5), moved(6, exact, 10000), noise(7), settled(8), noise(9)}, evm.Paid, 10000, 6},
		"upto, part of it":                {upto, []evm.Call{callOf(upto, 1858)}, []evm.Log{moved(7, upto, 1858), settledUpto(8)}, evm.Paid, 1858, 7},
		"upto, all of it":                 {upto, []evm.Call{callOf(upto, 10000)}, []evm.Log{moved(7, upto, 10000), settledUpto(8)}, evm.Paid, 10000, 7},
		"inside another call":             {exact, []evm.Call{{To: other, Data: []byte{1, 2, 3, 4}}, callOf(exact, 0), {To: evm.Permit2, Data: []byte{0x13, 0x7c, 0x29, 0xfe}}}, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Paid, 10000, 7},
		"signed again for another time":   {exact, []evm.Call{callOf(with(exact, func(p *evm.Permit) { p.Deadline, p.ValidAfter = big.NewInt(1), common.Big1 }), 0)}, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Paid, 10000, 7},
		"after that of another nonce":     {exact, []evm.Call{callOf(otherNonce, 0), callOf(exact, 0)}, []evm.Log{moved(5, exact, 10000), settled(6), moved(7, exact, 10000), settled(8)}, evm.Paid, 10000, 7},
		"before that of another nonce":    {exact, []evm.Call{callOf(exact, 0), callOf(otherNonce, 0)}, []evm.Log{moved(5, exact, 10000), settled(6), moved(7, exact, 10000), settled(8)}, evm.Paid, 10000, 5},
		"beside one of the other proxy":   {upto, []evm.Call{callOf(otherNonce, 0), callOf(upto, 5)}, []evm.Log{moved(5, exact, 10000), settled(6), moved(7, upto, 5), settledUpto(8)}, evm.Paid, 5, 7},
		"after a transfer of its own":     {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{transferLog(5, exact.Token, exact.From, other, big.NewInt(3)), moved(7, exact, 10000), settled(8)}, evm.Paid, 10000, 7},
		"the call to nobody":              {exact, []evm.Call{callOf(exact, 0)}, nil, evm.Untouched, 0, 0}, // no contract there
		"no call known":                   {exact, nil, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Untouched, 0, 0},
		"the call of a stranger":          {exact, []evm.Call{stranger}, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Untouched, 0, 0},
		"one of two calls known":          {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{moved(5, exact, 10000), settled(6), moved(7, exact, 10000), settled(8)}, evm.Untouched, 0, 0},
		"more calls than were made":       {exact, []evm.Call{callOf(exact, 0), callOf(otherNonce, 0)}, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Untouched, 0, 0},
		"the event of the other function": {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{moved(7, exact, 10000), settledLog(8, evm.ExactProxy, true)}, evm.Untouched, 0, 0},
		"the event of the other proxy":    {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{moved(7, exact, 10000), settledUpto(8)}, evm.Untouched, 0, 0},
		"the event of somebody else":      {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{moved(7, exact, 10000), settledLog(8, other, false)}, evm.Untouched, 0, 0},
		"an event with topics":            {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{moved(7, exact, 10000), {Address: evm.ExactProxy, Topics: []common.Hash{evm.TopicSettled, {}}, Index: 8}}, evm.Untouched, 0, 0},
		"another nonce":                   {exact, []evm.Call{callOf(otherNonce, 0)}, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Untouched, 0, 0},
		"another payer's same nonce":      {exact, []evm.Call{callOf(otherPayer, 0)}, []evm.Log{moved(7, otherPayer, 10000), settled(8)}, evm.Untouched, 0, 0},
		"the call cut short":              {exact, []evm.Call{{To: evm.ExactProxy, Data: callOf(exact, 0).Data[:200]}}, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Untouched, 0, 0},
		"another function of the proxy":   {exact, []evm.Call{{To: evm.ExactProxy, Data: evm.Permit2Call()}}, []evm.Log{moved(7, exact, 10000)}, evm.Untouched, 0, 0},
		"nothing moved":                   {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{settled(8)}, evm.Spent, 0, 0},
		"moved after the event":           {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{settled(7), moved(8, exact, 10000)}, evm.Spent, 0, 0},
		"moved before another's event":    {exact, []evm.Call{callOf(otherNonce, 0), callOf(exact, 0)}, []evm.Log{moved(6, exact, 10000), settled(7), settled(8)}, evm.Spent, 0, 0},
		"moved less":                      {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{moved(7, exact, 9999), settled(8)}, evm.Spent, 0, 0},
		"moved less than was asked for":   {upto, []evm.Call{callOf(upto, 1858)}, []evm.Log{moved(7, upto, 1857), settledUpto(8)}, evm.Spent, 0, 0},
		"moved a fee afterwards":          {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{moved(6, exact, 9900), transferLog(7, exact.Token, exact.From, other, big.NewInt(100)), settled(8)}, evm.Spent, 0, 0},
		"moved to somebody else":          {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{transferLog(7, exact.Token, exact.From, other, big.NewInt(10000)), settled(8)}, evm.Spent, 0, 0},
		"moved from somebody else":        {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{transferLog(7, exact.Token, other, exact.To, big.NewInt(10000)), settled(8)}, evm.Spent, 0, 0},
		"moved by another token":          {exact, []evm.Call{callOf(exact, 0)}, []evm.Log{transferLog(7, otherToken, exact.From, exact.To, big.NewInt(10000)), settled(8)}, evm.Spent, 0, 0},
		"the nonce for another payee":     {exact, []evm.Call{callOf(with(exact, func(p *evm.Permit) { p.To = other }), 0)}, []evm.Log{transferLog(7, exact.Token, exact.From, other, big.NewInt(10000)), settled(8)}, evm.Spent, 0, 0},
		"the nonce for another amount":    {exact, []evm.Call{callOf(with(exact, func(p *evm.Permit) { p.Amount = common.Big1 }), 0)}, []evm.Log{moved(7, exact, 1), settled(8)}, evm.Spent, 0, 0},
		"the nonce for another token":     {exact, []evm.Call{callOf(with(exact, func(p *evm.Permit) { p.Token = otherToken }), 0)}, []evm.Log{transferLog(7, otherToken, exact.From, exact.To, big.NewInt(10000)), settled(8)}, evm.Spent, 0, 0},
		"the nonce by the other scheme":   {exact, []evm.Call{callOf(upto, 10000)}, []evm.Log{moved(7, upto, 10000), settledUpto(8)}, evm.Spent, 0, 0},
		"the nonce of upto by exact":      {upto, []evm.Call{callOf(exact, 0)}, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Spent, 0, 0},
		"another token beside a transfer": {exact, []evm.Call{callOf(with(exact, func(p *evm.Permit) { p.Token = otherToken }), 0)}, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Spent, 0, 0},
		"another payee beside a transfer": {exact, []evm.Call{callOf(with(exact, func(p *evm.Permit) { p.To = other }), 0)}, []evm.Log{moved(7, exact, 10000), settled(8)}, evm.Spent, 0, 0},
		"the nonce by another lane":       {upto, []evm.Call{callOf(with(upto, func(p *evm.Permit) { p.Facilitator = other }), 1)}, []evm.Log{moved(7, upto, 1), settledUpto(8)}, evm.Spent, 0, 0},
		"the nonce for another maximum":   {upto, []evm.Call{callOf(with(upto, func(p *evm.Permit) { p.Amount = big.NewInt(20000) }), 1)}, []evm.Log{moved(7, upto, 1), settledUpto(8)}, evm.Spent, 0, 0},
	} {
		fate, amount, index := row.of.Look(row.calls, row.logs)
		if fate != row.fate || index != row.index || (amount != nil) != (row.fate == evm.Paid) || amount != nil && amount.Int64() != row.moved {
			t.Errorf("%s: fate %d, moved %s at %d, want %d, %d at %d", name, fate, amount, index, row.fate, row.moved, row.index)
		}
	}
}

// Fifty settlements in one transaction, most of them of one amount to one
// payee. Some calls failed and are not among those the trace shows; some
// tokens lied. Each is told apart.
func TestEachPermitOfABatchHasItsOwnFate(t *testing.T) {
	_, payee := account(t, "payee/1")
	var permits []*evm.SignedPermit
	var want []evm.Fate
	var at []uint
	var calls []evm.Call
	var logs []evm.Log
	index := uint(100)
	for i := range 50 {
		s := &evm.SignedPermit{Permit: evm.Permit{
			Scheme: payment.Exact, From: common.BigToAddress(big.NewInt(int64(1 + i%3))), Token: theToken, Amount: big.NewInt(10000),
			Spender: evm.ExactProxy, Nonce: big.NewInt(int64(i)), Deadline: big.NewInt(4102444800), To: payee, ValidAfter: new(big.Int),
		}}
		fate, where := evm.Paid, index
		switch {
		case i%5 == 0: // its call failed
			fate, where = evm.Untouched, 0
		case i%7 == 0: // the token moved nothing
			calls, logs = append(calls, callOf(s, 0)), append(logs, settledLog(index, evm.ExactProxy, false))
			index, fate, where = index+1, evm.Spent, 0
		default:
			calls = append(calls, callOf(s, 0))
			logs = append(logs, transferLog(index, theToken, s.From, payee, s.Amount), settledLog(index+1, evm.ExactProxy, false))
			index += 2
		}
		permits, want, at = append(permits, s), append(want, fate), append(at, where)
	}
	count := map[evm.Fate]int{}
	for i, s := range permits {
		fate, _, where := s.Look(calls, logs)
		if fate != want[i] || where != at[i] {
			t.Errorf("item %d: fate %d at %d, want %d at %d", i, fate, where, want[i], at[i])
		}
		count[fate]++
	}
	if count[evm.Paid] != 34 || count[evm.Untouched] != 10 || count[evm.Spent] != 6 {
		t.Errorf("fates %v", count)
	}
}

func TestAnInvalidationNamesPayerWordAndBit(t *testing.T) {
	_, payer := account(t, "payer/1")
	_, other := account(t, "server/1")
	p := &evm.Permit{Scheme: payment.Exact, From: payer, Nonce: big.NewInt(0x0203), Amount: new(big.Int)}
	log := func(contract, owner common.Address, place, mask int64) evm.Log {
		return evm.Log{
			Address: contract, Topics: []common.Hash{evm.TopicUnorderedNonceInvalidation, word(owner)},
			Data: append(common.BigToHash(big.NewInt(place)).Bytes(), common.BigToHash(big.NewInt(mask)).Bytes()...), Index: 9,
		}
	}
	good := log(evm.Permit2, payer, 2, 1<<3)
	short, topics := good, good
	short.Data, topics.Topics = good.Data[:63], append([]common.Hash(nil), append(good.Topics, common.Hash{})...)
	for name, row := range map[string]struct {
		logs []evm.Log
		want bool
	}{
		"the bit alone":        {[]evm.Log{good}, true},
		"among others":         {[]evm.Log{log(evm.Permit2, other, 2, 8), log(evm.Permit2, payer, 2, 0xff)}, true},
		"nothing":              {nil, false},
		"the other bits":       {[]evm.Log{log(evm.Permit2, payer, 2, 0xf7)}, false},
		"another word":         {[]evm.Log{log(evm.Permit2, payer, 3, 8)}, false},
		"another payer":        {[]evm.Log{log(evm.Permit2, other, 2, 8)}, false},
		"another contract":     {[]evm.Log{log(other, payer, 2, 8)}, false},
		"cut short":            {[]evm.Log{short}, false},
		"more topics":          {[]evm.Log{topics}, false},
		"another event of his": {[]evm.Log{{Address: evm.Permit2, Topics: []common.Hash{evm.TopicTransfer, word(payer)}, Data: good.Data}}, false},
	} {
		index, ok := p.Invalidated(row.logs)
		if ok != row.want || ok && index != 9 && index != row.logs[len(row.logs)-1].Index {
			t.Errorf("%s: %d, %v", name, index, ok)
		}
		// A payer may invalidate what has been paid already, so it proves nothing.
		if fate, _, _ := p.Look(nil, row.logs); fate != evm.Untouched {
			t.Errorf("%s: fate %d", name, fate)
		}
	}
}

func FuzzPermitLook(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7})
	f.Add([]byte{0x01, 0x02, 0x00})
	f.Add([]byte{0x11, 0x06, 0x42, 0x00, 0x04})
	f.Fuzz(func(t *testing.T, script []byte) {
		payer, payee := common.Address{1}, common.Address{2}
		permit := func(nonce int64, to common.Address) *evm.SignedPermit {
			return &evm.SignedPermit{Permit: evm.Permit{
				Scheme: payment.Exact, From: payer, Token: theToken, Amount: big.NewInt(5), Spender: evm.ExactProxy,
				Nonce: big.NewInt(nonce), Deadline: big.NewInt(9), To: to, ValidAfter: new(big.Int),
			}}
		}
		ours := permit(3, payee)
		var calls []evm.Call
		var logs []evm.Log
		for i, c := range script {
			pick := func(bit byte, yes, no common.Address) common.Address {
				if c&bit != 0 {
					return yes
				}
				return no
			}
			switch c & 3 {
			case 0:
				logs = append(logs, settledLog(uint(i), pick(4, evm.ExactProxy, evm.UptoProxy), c&8 != 0))
			case 1:
				calls = append(calls, callOf(permit(int64(2+c>>2&1), pick(8, payee, payer)), 0))
			default:
				logs = append(logs, transferLog(uint(i), pick(4, theToken, otherToken), payer, pick(8, payee, payer), big.NewInt(int64(4+c>>4&1))))
			}
		}
		fate, moved, at := ours.Look(calls, logs)
		if fate != evm.Paid {
			if moved != nil || at != 0 {
				t.Fatalf("fate %d moved %s at %d", fate, moved, at)
			}
			return
		}
		// Independently: there is our call, the transfer at that place, and
		// after it an event before which no other settlement ended.
		called := false
		for _, c := range calls {
			read, err := evm.ReadPermitCall(c.To, c.Data)
			called = called || err == nil && samePermit(read.Permit, ours)
		}
		l := logs[0]
		rest := logs
		for i := range logs {
			if logs[i].Index == at {
				l, rest = logs[i], logs[i+1:]
			}
		}
		ended := false
		for _, r := range rest {
			ended = ended || r.Address == evm.ExactProxy
		}
		if !called || !ended || moved.Int64() != 5 || l.Index != at || l.Address != theToken || l.Topics[2] != word(payee) || new(big.Int).SetBytes(l.Data).Int64() != 5 {
			t.Fatalf("paid at %d: %+v in %+v, calls %d", at, l, logs, len(calls))
		}
	})
}

func BenchmarkPermitLook(b *testing.B) {
	s := permitFor(b, permitOffer(b, payment.Exact, "eip155:84532", 10000), 0, 4102444800)
	calls := []evm.Call{callOf(s, 0)}
	logs := []evm.Log{transferLog(0, s.Token, s.From, s.To, s.Amount), settledLog(1, evm.ExactProxy, false)}
	b.ReportAllocs()
	for b.Loop() {
		if fate, _, _ := s.Look(calls, logs); fate != evm.Paid {
			b.Fatal(fate)
		}
	}
}
