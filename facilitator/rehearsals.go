package facilitator

import (
	"math/big"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
)

// maxRehearsals bounds how many simulations are remembered for one head.
const maxRehearsals = 1 << 16

// Rehearsals remember how transfers went when they were simulated after the
// chain's latest block, so that the same question costs no second call until
// there is another block; of those that failed not for long, since the node
// that was asked may have been behind. A plain account's transfer that went well
// is not simulated again for settling it, either; one that fails on the chain all
// the same is not paid for with anything but gas.
type rehearsals struct {
	mu   sync.Mutex
	head common.Hash             // guarded by mu
	done map[rehearsal]performed // guarded by mu
}

// performed is what a simulation has shown.
type performed struct {
	contract   bool     // the payer's account has code
	unapproved bool     // it goes well once the payer's own approval is in a block
	presumed   bool     // it was not simulated: the payer is known
	funds      *big.Int // see payment.Verification

	refusal *payment.InvalidError // nil if it went well
	at      time.Time             // when it was refused
}

// A rehearsal is what was signed, with its signature and the approval that came
// with it: without that the same permit may fail.
type rehearsal struct {
	key      payment.Key
	proof    payment.Fingerprint
	approval payment.Fingerprint // zero if there is none
}

// recall returns what note was told after the same head.
func (r *rehearsals) recall(head common.Hash, of rehearsal, now time.Time) (shown performed, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.head != head {
		return performed{}, false
	}
	if shown, ok = r.done[of]; shown.refusal != nil && now.Sub(shown.at) >= brokeFor {
		return performed{}, false
	}
	return shown, ok
}

// note remembers how a transfer went after head.
func (r *rehearsals) note(head common.Hash, of rehearsal, shown performed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.head != head || len(r.done) >= maxRehearsals {
		r.head, r.done = head, map[rehearsal]performed{}
	}
	r.done[of] = shown
}

// maxSignatures bounds how many signatures of one generation are remembered.
const maxSignatures = 1 << 13

// Signatures remember which were looked at and not refused, so that settling
// what was verified a moment ago costs no second recovery of the signer. Its
// zero value is ready for use.
type signatures struct {
	mu    sync.Mutex
	young map[signature]bool // guarded by mu: whether it is none by the payer's key
	old   map[signature]bool // guarded by mu: what was young until that was full
}

// A signature is what was signed with its signature, in one domain.
type signature struct {
	separator common.Hash
	proof     payment.Fingerprint
}

// recall returns what note was told.
func (s *signatures) recall(of signature) (wallet, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if wallet, ok = s.young[of]; !ok {
		wallet, ok = s.old[of]
	}
	return wallet, ok
}

func (s *signatures) note(of signature, wallet bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.young == nil || len(s.young) >= maxSignatures {
		s.young, s.old = make(map[signature]bool), s.young
	}
	s.young[of] = wallet
}
