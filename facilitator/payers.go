package facilitator

import (
	"errors"
	"math/big"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
)

const (
	// seenFor is how long, until the next block, what was seen of a payer counts.
	seenFor = 5 * time.Second

	// brokeFor is how long a payer, at most, is taken to have no more than was
	// seen, and a refusal to stand, both only until the next block. It is short
	// because whoever has just sent the money, or the approval, may know of the
	// next block before we do.
	brokeFor = 500 * time.Millisecond

	// promisedFor is how long a payment that was found good is held against
	// what its payer has, if nothing is heard of it: as long as a request for
	// which it was claimed may take, by default, and some more.
	promisedFor = 2 * time.Minute

	// doubtedFor is how long a payer is asked about each time, after one of
	// its payments was refused that had been found good.
	doubtedFor = time.Minute

	// maxPayers bounds how many payers are remembered, and maxPromises how
	// many payments of all of them.
	maxPayers   = 1 << 14
	maxPromises = 1 << 17
)

// Payers remember what the chain has shown of payers a moment ago, so that a
// new payment of one of them costs no call. Its zero value is ready for use.
//
// Verification is an opinion: it says that a payment is good as the chain
// stood, and the payer can make it bad with the next block, whoever was asked
// before. Money and goods hang on the settlement, which simulates the very
// transaction that it is about to send, after the latest block, and broadcasts
// nothing that fails. Where nothing is handed over before that
// (payment.Payment.SettledFirst), an opinion from what was seen of the payer a
// moment ago does: if it is wrong, then the seller's upstream has worked for
// nothing, which the till risks only of requests that may run twice; no gas is
// spent, no answer is released, and the payer is not believed again for
// doubtedFor. Where goods go out first, which is on credit and by the
// meter, each payment is simulated by itself, and what the payer has is what
// that very question has shown.
//
// What was seen of a payer speaks for its next payment if all of this holds:
//
//   - A payment with the same token, recipient, scheme and contract went well
//     when it was simulated, and with the same round trip the payer's account
//     had no code. What contracts sign for can change with anything.
//   - That was no longer ago than seenFor, and after the chain's latest block, as
//     far as we follow it: any other may have used a nonce, moved the money or
//     taken back an allowance.
//   - What the payer had then, its balance and by Permit2 no more than the
//     allowance, covers the payment together with all others of the same token
//     that were found good since, and with those before whose settlement may
//     not have been in the balance yet. So no number of payments at once is
//     ever taken to be covered by more than what was seen.
//   - The payer's key has signed it, with nothing that has to be carried out
//     first: no wallet to deploy, no approval to submit.
//   - It is new: neither was it found good before, nor is it in the ledger. Nonces
//     are 32 random bytes, so that the nonce of a new payment has not been used,
//     unless its payer has set out to.
//
// Whoever does not pass is not refused but asked about. While a question about
// a payer is under way, others of the same payer wait for its answer.
//
// That a payer has too little is remembered as well, until the next block.
type payers struct {
	mu       sync.Mutex
	known    map[account]*payer        // guarded by mu
	promises int                       // guarded by mu: how many all of them have made
	swept    time.Time                 // guarded by mu: when what does not count any more was looked for
	broke    map[passage]shortage      // guarded by mu
	asking   map[account]chan struct{} // guarded by mu: closed once the question under way is answered
}

// An account is a payer's of one token.
type account struct{ token, owner common.Address }

// A passage is one way from an account: to whom, and by what.
type passage struct {
	account
	to     common.Address
	scheme payment.Scheme
	permit bool
}

// A payer is what is remembered of an account.
type payer struct {
	seen     map[passage]sight
	promised map[payment.Key]promise
	total    *big.Int      // of what is promised
	order    []payment.Key // of what is promised, the oldest first; may name some that are not any more
	settled  []settled     // those of which that was heard, the oldest first; the same holds
	doubted  time.Time     // until when nothing that was seen counts
}

// A sight is what was seen of a payer.
type sight struct {
	at     time.Time // when the question was put
	number uint64    // of the latest block then
	branch uint64    // that it was on
	funds  *big.Int  // what could be paid then
}

// A shortage is what was seen of a payer that has too little.
type shortage struct {
	at     time.Time
	head   common.Hash // of the latest block then
	funds  *big.Int
	reason payment.Reason // of more than that
}

// A promise is a payment that was found good.
type promise struct {
	units *big.Int
	at    time.Time
}

// Settled is a payment that has been settled, and when.
type settled struct {
	key payment.Key
	at  time.Time
}

// passage returns the way that a payment's money goes.
func (q *quest) passage() passage {
	s := q.signed
	return passage{account{s.Token, s.Payer}, s.Payee, q.offer.Scheme, s.Permit != nil}
}

// plainly reports whether a payment is one that what was seen of its payer can
// speak for.
func (q *quest) plainly() bool {
	return !q.wallet && !q.signed.Wrapped() && q.signed.Approval == nil && q.raw == nil
}

// presume says of a new payment whether its payer can pay it, from what was
// seen of it. If so, left is what the payer has beside its other payments, and
// this one is held against it from now on. If the payer lacks the money or the
// allowance, short says which.
func (p *payers) presume(q *quest, now time.Time) (left *big.Int, short payment.Reason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	way := q.passage()
	if s, ok := p.broke[way]; ok && s.head == q.head.Hash && now.Sub(s.at) < brokeFor && s.funds.Cmp(q.signed.Most) < 0 {
		return nil, s.reason
	}
	who := p.known[way.account]
	if who == nil || now.Before(who.doubted) {
		return nil, ""
	}
	s, ok := who.seen[way]
	if !ok || now.Sub(s.at) >= seenFor || s.branch != q.head.Branch || s.number != q.head.Number {
		return nil, ""
	}
	p.forget(who, now)
	if _, before := who.promised[q.key]; before {
		return nil, ""
	}
	if left = new(big.Int).Sub(s.funds, who.total); left.Cmp(q.signed.Most) < 0 || !p.promise(who, q, now) {
		return nil, ""
	}
	return left, ""
}

// note remembers what a question that was put at a time has shown of a payer
// whose payment it found good.
func (p *payers) note(q *quest, asked time.Time, shown performed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	way := q.passage()
	who := p.known[way.account]
	if shown.contract || shown.funds == nil || !q.plainly() {
		if who != nil {
			p.promise(who, q, asked)
		}
		if who != nil && shown.contract {
			clear(who.seen)
		}
		return
	}
	if who == nil {
		if !p.room(asked) {
			return
		}
		who = &payer{seen: map[passage]sight{}, promised: map[payment.Key]promise{}, total: new(big.Int)}
		p.known[way.account] = who
	}
	for k, s := range who.seen {
		if asked.Sub(s.at) >= seenFor {
			delete(who.seen, k)
		}
	}
	// What was settled some time before the question is in its answer, even if
	// it came from a node that is a little behind.
	for len(who.settled) > 0 && asked.Sub(who.settled[0].at) >= seenFor {
		p.drop(who, who.settled[0].key)
		who.settled = who.settled[1:]
	}
	p.forget(who, asked)
	if p.promise(who, q, asked) {
		who.seen[way] = sight{asked, q.head.Number, q.head.Branch, shown.funds}
	}
}

// lacks remembers that a payer has too little, and for what reason more than
// that is refused.
func (p *payers) lacks(q *quest, now time.Time, funds *big.Int, reason payment.Reason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broke == nil || len(p.broke) >= maxPayers {
		p.broke = map[passage]shortage{}
	}
	p.broke[q.passage()] = shortage{now, q.head.Hash, funds, reason}
}

// settling holds a payment that is about to be settled against what its payer
// has, whoever found it good.
func (p *payers) settling(q *quest, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if who := p.known[q.passage().account]; who != nil {
		p.promise(who, q, now)
	}
}

// settled notes that a payment's money has moved.
func (p *payers) settled(q *quest, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.known[q.passage().account]
	if who == nil {
		return
	}
	if _, ok := who.promised[q.key]; ok {
		who.settled = append(who.settled, settled{q.key, now})
	}
}

// doubt forgets what was seen of a payer, and sees nothing in it for a while.
func (p *payers) doubt(q *quest, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if who := p.known[q.passage().account]; who != nil {
		clear(who.seen)
		who.doubted = now.Add(doubtedFor)
	}
}

// lead begins a question about a payer. If one is under way, it returns a
// channel that is closed with its answer.
func (p *payers) lead(who account) (answered func(), busy <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.asking[who]; ok {
		return nil, c
	}
	if p.asking == nil {
		p.asking = map[account]chan struct{}{}
	}
	c := make(chan struct{})
	p.asking[who] = c
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.asking, who)
		close(c)
	}, nil
}

// promise holds a payment against what its payer has. It reports false where
// too many payments are remembered. The caller holds mu, as it does of what
// follows.
func (p *payers) promise(who *payer, q *quest, now time.Time) bool {
	if _, before := who.promised[q.key]; before {
		return true
	}
	if p.promises >= maxPromises && !p.sweep(now) {
		clear(who.seen) // since what is held against it is not all
		return false
	}
	who.promised[q.key] = promise{units: q.signed.Most, at: now}
	who.total.Add(who.total, q.signed.Most)
	who.order = append(who.order, q.key)
	p.promises++
	return true
}

func (p *payers) drop(who *payer, k payment.Key) {
	if made, ok := who.promised[k]; ok {
		who.total.Sub(who.total, made.units)
		delete(who.promised, k)
		p.promises--
	}
}

// forget drops promises of which nothing was heard for too long.
func (p *payers) forget(who *payer, now time.Time) {
	for len(who.order) > 0 {
		made, ok := who.promised[who.order[0]]
		if ok && now.Sub(made.at) < promisedFor {
			return
		}
		p.drop(who, who.order[0])
		who.order = who.order[1:]
	}
}

// room reports whether another payer can be remembered.
func (p *payers) room(now time.Time) bool {
	if p.known == nil {
		p.known = map[account]*payer{}
	}
	return len(p.known) < maxPayers || p.sweep(now)
}

// sweep forgets what does not count any more, now and then, and reports
// whether that has made room.
func (p *payers) sweep(now time.Time) bool {
	if now.Sub(p.swept) >= seenFor {
		p.swept = now
		for k, who := range p.known {
			p.forget(who, now)
			if len(who.promised) == 0 && !now.Before(who.doubted) {
				delete(p.known, k)
			}
		}
	}
	return len(p.known) < maxPayers && p.promises < maxPromises
}

// learn notes how a settlement went that was tried.
func (q *quest) learn(now time.Time, until payment.Finality, err error) {
	var unavailable *payment.UnavailableError
	var invalid *payment.InvalidError
	switch {
	case err == nil && until != payment.Submitted:
		q.payers.settled(q, now)
	case !errors.As(err, &unavailable) && errors.As(err, &invalid):
		q.payers.doubt(q, now)
	}
}
