package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/caddymodule"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
)

func init() {
	caddy.RegisterModule(&hostile{})
}

// How hostile a hostile sandbox is. All of it happens to careful sellers on
// real chains; clients that get along with it lose no money there.
const (
	pendings = 0.05 // settlements at the paywall that have worked and are answered with settlement_pending
	slow     = 0.3  // settlements that take longer
	slowest  = 1500 * time.Millisecond
	reorgs   = 0.02 // blocks that are replaced by others
)

// hostile is the embedded facilitator in a bad mood. The mood follows from the
// seed and the order of the settlements.
type hostile struct {
	Seed uint64 `json:"seed,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*hostile) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "x402.facilitators.hostile", New: func() caddy.Module { return new(hostile) }}
}

// UnmarshalCaddyfile reads "hostile <seed>".
func (h *hostile) UnmarshalCaddyfile(d *caddyfile.Dispenser) (err error) {
	d.Next()
	if !d.NextArg() {
		return d.ArgErr()
	}
	if h.Seed, err = strconv.ParseUint(d.Val(), 10, 64); err != nil {
		return d.Errf("the seed %w", err)
	}
	return nil
}

// Wrap implements caddymodule.Wrapper.
func (h *hostile) Wrap(f payment.Facilitator) payment.Facilitator {
	return &moody{Facilitator: f, mood: newMood(h.Seed)}
}

// A moody facilitator settles as it should, only later, and does not always
// say so.
type moody struct {
	payment.Facilitator
	mood *mood
}

// Settle implements payment.Facilitator. Only the paywall is told that a
// settlement is pending when it is not: the official servers take that for a
// failure and never ask again.
func (m *moody) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	fromPaywall := p.Binding != payment.Fingerprint{}
	delay, pending := m.mood.next()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
	}
	s, err := m.Facilitator.Settle(ctx, p, o, charge)
	if err == nil && pending && fromPaywall {
		return nil, &payment.UnavailableError{
			Doing: "settling in a hostile sandbox", Err: errors.New("it has worked, but that would be too easy"),
			Pending: true, Transaction: s.Transaction, Payer: s.Payer,
		}
	}
	return s, err
}

// A mood is a sequence of decisions. Its methods are safe for concurrent use.
type mood struct {
	mu  sync.Mutex
	rng *rand.Rand // guarded by mu
}

func newMood(seed uint64) *mood {
	return &mood{rng: rand.New(rand.NewPCG(seed, 0x686f7374))} //nolint:gosec // a mood that can be repeated, no secret
}

// next decides on one settlement.
func (m *mood) next() (delay time.Duration, pending bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pending = m.rng.Float64() < pendings
	if m.rng.Float64() < slow {
		delay = time.Duration(m.rng.Int64N(int64(slowest)))
	}
	return delay, pending
}

// reorg replaces some of a chain's blocks until ctx ends: the latest one by
// two empty ones, and what was in it follows in a third.
func reorg(ctx context.Context, c *devchain.Chain, seed uint64) error {
	heads := make(chan *types.Header, 64)
	subscription, err := c.Client().SubscribeNewHead(ctx, heads)
	if err != nil {
		return err
	}
	defer subscription.Unsubscribe()
	rng := rand.New(rand.NewPCG(seed, 0x72656f72)) //nolint:gosec // as above
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-subscription.Err():
			return err
		case <-heads:
		}
		if rng.Float64() < reorgs {
			_ = c.Reorg(1) // the first blocks cannot be replaced, and the chain may be closing
		}
	}
}

// bury waits until the block of a transaction is not the latest one any more.
// A one-block reorg cannot undo it then, and what it did can be counted.
func bury(ctx context.Context, c *devchain.Chain, hash string) error {
	for {
		receipt, err := c.Client().TransactionReceipt(ctx, common.HexToHash(hash))
		if err == nil {
			head, err := c.Client().BlockNumber(ctx)
			if err != nil {
				return err
			}
			if head > receipt.BlockNumber.Uint64() {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// persist sends one request until the answer is another than 503, which says
// that nothing is known yet and the same payment is to be sent again. It
// returns the last answer and how many were 503.
func persist(ctx context.Context, url string, header http.Header) (answer *reply, again int, err error) {
	for {
		answer, err = get(ctx, url, header)
		if err != nil || answer.code != http.StatusServiceUnavailable {
			return answer, again, err
		}
		again++
		seconds, err := strconv.Atoi(answer.header.Get("Retry-After"))
		if err != nil || seconds < 0 {
			seconds = 1
		}
		select {
		case <-ctx.Done():
			return nil, again, ctx.Err()
		case <-time.After(time.Duration(seconds) * time.Second):
		}
	}
}

var (
	_ caddyfile.Unmarshaler = (*hostile)(nil)
	_ caddymodule.Wrapper   = (*hostile)(nil)
)
