package settle

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A slot is one nonce of a lane as the engine follows it, from the moment it
// is stored until it is used in a final block.
type slot struct {
	lane  *lane
	nonce uint64

	mu      sync.Mutex
	stored  ledger.Slot    // guarded by mu
	sent    time.Time      // guarded by mu: the last broadcast; zero asks for one at once
	sending bool           // guarded by mu: a broadcast is under way
	since   time.Time      // guarded by mu: when the latest attempt was first sent by this engine
	block   uint64         // guarded by mu: the head's number then
	mined   bool           // guarded by mu: the nonce is used in the latest block known
	asking  chan struct{}  // guarded by mu: closed when the question under way is answered; nil if there is none
	found   *types.Receipt // guarded by mu: of the attempt that is in a block
	logs    []evm.Log      // guarded by mu: of found
	at      common.Hash    // guarded by mu: the head when it was found
}

func newSlot(l *lane, stored ledger.Slot, sent time.Time) *slot {
	return &slot{lane: l, nonce: stored.Nonce, stored: stored, sent: sent}
}

func (s *slot) snapshot() ledger.Slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stored
}

// update takes over what the ledger holds, if it is newer.
func (s *slot) update(stored ledger.Slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stored.Newer(&s.stored) {
		s.stored = stored
		s.sent, s.since = time.Time{}, time.Time{}
	}
}

// urge has the slot's latest attempt sent at the next occasion.
func (s *slot) urge() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = time.Time{}
}

// usedNow notes whether the nonce is used in the latest block. One that was
// and is not any more has lost its transaction to a reorg.
func (s *slot) usedNow(mined bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mined && !mined {
		s.sent = time.Time{}
	}
	if mined && !s.mined {
		s.lane.room.fire()
	}
	s.mined = mined
}

// receiptKnown returns the receipt that was found last, or nil.
func (s *slot) receiptKnown() *types.Receipt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.found
}

func (s *slot) isMined() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mined
}

// begin notes that the latest attempt is being sent, and returns it; ok is
// false while another broadcast is under way.
func (s *slot) begin(now time.Time, head uint64) (raw ledger.Attempt, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sending {
		return ledger.Attempt{}, false
	}
	s.sending, s.sent = true, now
	if s.since.IsZero() {
		s.since, s.block = now, head
	}
	return s.stored.Latest(), true
}

func (s *slot) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending = false
}

// idle returns how long ago the slot was sent, and how long ago and at which
// head its latest attempt was sent first.
func (s *slot) idle(now time.Time) (last, first time.Duration, block uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		return now.Sub(s.sent), 0, s.block
	}
	return now.Sub(s.sent), now.Sub(s.since), s.block
}

// receipt returns the receipt of whichever attempt is in a block, with its
// logs, or nil. Callers that come while somebody asks share that answer, and
// what was found is not asked again until there is another head.
func (e *Engine) receipt(ctx context.Context, s *slot) (*types.Receipt, []evm.Log, error) {
	head, err := e.Chain.Head()
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	if s.found != nil && s.at == head.Hash {
		defer s.mu.Unlock()
		return s.found, s.logs, nil
	}
	if asking := s.asking; asking != nil {
		s.mu.Unlock()
		select {
		case <-asking:
		case <-ctx.Done():
		}
		if err := ctx.Err(); err != nil { // also where whoever asked gave up for the same reason
			return nil, nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.found, s.logs, nil
	}
	s.asking = make(chan struct{})
	attempts := s.stored.Attempts
	s.mu.Unlock()
	receipt, err := e.ask(ctx, attempts)
	return s.answer(receipt, err, head.Hash)
}

// ask looks for the receipt of one of some attempts, the latest first.
func (e *Engine) ask(ctx context.Context, attempts []ledger.Attempt) (*types.Receipt, error) {
	for _, a := range slices.Backward(attempts) {
		receipt, err := e.Chain.Receipt(ctx, common.HexToHash(a.Hash))
		if receipt != nil || err != nil {
			return receipt, err
		}
	}
	return nil, nil
}

// answer ends the question under way.
func (s *slot) answer(receipt *types.Receipt, err error, head common.Hash) (*types.Receipt, []evm.Log, error) {
	var logs []evm.Log
	if receipt != nil {
		logs = logsOf(receipt)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.asking)
	s.asking = nil
	s.found, s.logs, s.at = receipt, logs, head
	if receipt != nil && !s.mined {
		s.mined = true
		s.lane.room.fire()
	}
	return receipt, logs, err
}

func logsOf(receipt *types.Receipt) []evm.Log {
	logs := make([]evm.Log, len(receipt.Logs))
	for i, l := range receipt.Logs {
		logs[i] = evm.Log{Address: l.Address, Topics: l.Topics, Data: l.Data, Index: l.Index}
	}
	return logs
}

// send broadcasts the slot's latest attempt in the background. An error
// changes nothing: the node may have the transaction all the same, and it is
// sent again. While enough transactions of the lane wait for a block, it waits
// for its turn.
func (e *Engine) send(s *slot) {
	if s.lane.ahead(s.nonce) >= e.MaxInFlight {
		s.urge() // tend sends it
		return
	}
	head, _ := e.Chain.Head() // without one it counts as sent long ago
	a, ok := s.begin(e.Now(), head.Number)
	if !ok {
		return
	}
	started := e.spawn(func(ctx context.Context) {
		err := e.Chain.Broadcast(ctx, a.Raw)
		s.end()
		if err != nil {
			e.doubt(s.lane, err)
			e.Logger.Warn("broadcast not confirmed", "lane", s.lane.address.Hex(), "nonce", s.nonce, "tx", a.Hash, "error", err)
			return
		}
		if !a.Fill {
			e.noteSent(ctx, s)
		}
	})
	if !started {
		s.end()
	}
}

// noteSent moves the payments of a slot on to SENT.
func (e *Engine) noteSent(ctx context.Context, s *slot) {
	for _, k := range s.stored.Items { // they never change
		it := e.item(k)
		if it == nil || it.snapshot().State != ledger.Intent {
			continue
		}
		stored, err := e.Ledger.UpdateLater(ctx, k, func(r *ledger.Record) error {
			if r.State != ledger.Intent {
				return ledger.ErrStale // it is further by now
			}
			return r.To(ledger.Sent)
		})
		switch {
		case err == nil:
			it.advance(stored)
		case !errors.Is(err, ledger.ErrStale) && ctx.Err() == nil:
			e.Logger.Error("noting a broadcast failed", "payment", k.String(), "error", err)
		}
	}
}
