package till_test

import (
	"context"
	"errors"
	"math/big"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A repayer signs refunds.
type repayer struct {
	t testing.TB
	devchain.Account
}

func (r repayer) Address() common.Address { return r.Account.Address }

func (r repayer) SignTransfer(_ context.Context, d evm.Domain, a evm.Authorization) (*evm.Transfer, error) {
	usdc := facilitatortest.USDC(r.t)
	if d != evm.DomainOf(usdc) || a.From != r.Account.Address {
		return nil, errors.New("not for this key")
	}
	return facilitatortest.Sign(r.t, r.Key, a, usdc), nil
}

// repays gives the till an account to refund from.
func (s *shop) repays(from devchain.Account) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.till.Refunds = map[payment.Network]till.TransferSigner{payment.EVM(84532): repayer{s.t, from}}
}

// fail makes a payment whose refund is due.
func (s *shop) fail() *purse {
	s.t.Helper()
	s.offers(func(r *till.Route) { r.Redeliver = 1 })
	s.sells(fails)
	p := s.authorize(payment.V2)
	_ = s.ask("GET", "/", "", p)
	return p
}

func (s *shop) key(p *purse) payment.Key { return p.transfer.Key(84532, devchain.USDC) }

func TestRefundGivesTheMoneyBackOnce(t *testing.T) {
	for _, name := range []string{"embedded", "remote"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, c, node := onChain(t)
			if name == "embedded" {
				b.facilitator = func(l *ledger.Ledger) payment.Facilitator { return embed(t, c, node, l) }
			} else {
				b = remoteBankOn(t, b, c, node)
			}
			s := open(t, b, till.First)
			purse := c.Account("agent")
			s.repays(purse)
			before, had := c.USDCBalance(b.payer.Address), c.USDCBalance(purse.Address)
			p := s.fail()
			s.mineUntil(c, p, ledger.RefundDue)
			first, err := s.till.Refund(t.Context(), s.key(p), false)
			if err != nil {
				t.Fatal(err)
			}
			s.awaitState(p, ledger.Refunded)
			var transactions atomic.Int32
			together(8, func(int) {
				again, err := s.till.Refund(t.Context(), s.key(p), true)
				if busy := (*till.RefundError)(nil); errors.As(err, &busy) {
					return
				}
				if err != nil || again.Transaction != first.Transaction {
					t.Errorf("%+v, %v; want %s", again, err, first.Transaction)
				}
				transactions.Add(1)
			})
			if transactions.Load() == 0 {
				t.Error("nobody was told of the refund")
			}
			if now := c.USDCBalance(b.payer.Address); now.Cmp(before) != 0 {
				t.Errorf("the payer has %s, had %s", now, before)
			}
			if now := c.USDCBalance(purse.Address); new(big.Int).Sub(had, now).Int64() != 1000 {
				t.Errorf("refunds cost %s", new(big.Int).Sub(had, now))
			}
			s.wantGone(s.ask("GET", "/", "", p), "refunded")
		})
	}
}

// Whatever happens while a refund is made, the next process finishes it, and
// no money goes out twice.
func TestRefundGoesOnAfterACrash(t *testing.T) {
	for _, at := range []string{"before settling", "after settling"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			b := fakeBank(t)
			s := open(t, b, till.First)
			s.repays(devchain.DeriveAccount("agent"))
			p := s.fail()
			s.awaitState(p, ledger.RefundDue)
			gone := make(chan struct{})
			halted := make(chan struct{})
			stop := func() { close(halted); <-gone }
			if at == "before settling" {
				s.gate.before = stop
			} else {
				s.gate.after = stop
			}
			zombie := make(chan struct{})
			old := s.till
			ctx, cancel := context.WithCancel(t.Context())
			go func() { // ends when gone is closed
				defer close(zombie)
				_, _ = old.Refund(ctx, s.key(p), false)
			}()
			<-halted
			s.restart() // without the key: what was ordered needs none
			s.tend()
			s.awaitState(p, ledger.Refunded)
			cancel()
			close(gone)
			<-zombie
			if got := b.transfers(); got != 2 { // in, and out
				t.Errorf("%d transfers", got)
			}
			s.awaitState(p, ledger.Refunded)
		})
	}
}

func TestRefundThatCannotBePaidCanBeRepeated(t *testing.T) {
	t.Parallel()
	b := fakeBank(t)
	s := open(t, b, till.First)
	p := s.fail()
	s.awaitState(p, ledger.RefundDue)
	_, err := s.till.Refund(t.Context(), s.key(p), false)
	if refused := (*till.RefundError)(nil); !errors.As(err, &refused) || !strings.Contains(err.Error(), "X402_REFUND_KEY") {
		t.Errorf("without an account: %v", err)
	}
	s.repays(devchain.DeriveAccount("agent"))
	b.poor()
	for range 2 {
		var invalid *payment.InvalidError
		if _, err := s.till.Refund(t.Context(), s.key(p), false); !errors.As(err, &invalid) {
			t.Errorf("poor: %v", err)
		}
		s.awaitState(p, ledger.RefundDue)
	}
	b.stall()
	b.rich()
	var unavailable *payment.UnavailableError
	if _, err := s.till.Refund(t.Context(), s.key(p), false); !errors.As(err, &unavailable) {
		t.Errorf("stalled: %v", err)
	}
	s.awaitState(p, ledger.RefundDue)
	b.flow()
	if _, err := s.till.Refund(t.Context(), s.key(p), false); err != nil {
		t.Error(err)
	}
	s.awaitState(p, ledger.Refunded)
	if got := b.transfers(); got != 2 {
		t.Errorf("%d transfers", got)
	}
}

func TestOnlyWhatIsDueIsRefundedUnlessForced(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		state         ledger.State
		delivery      ledger.Delivery
		plain, forced bool
	}{
		{"delivered", ledger.Settled, ledger.Delivered, false, true},
		{"undelivered", ledger.Archived, ledger.Undelivered, false, true},
		{"given up", ledger.Archived, ledger.Undeliverable, true, true},
		{"due", ledger.RefundDue, ledger.Undeliverable, true, true},
		{"released", ledger.Released, ledger.Undelivered, false, false},
		{"under way", ledger.Sent, ledger.Undelivered, false, false},
		{"dead", ledger.Dead, ledger.Undelivered, false, false},
		{"written off", ledger.WrittenOff, ledger.Delivered, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, force := range []bool{false, true} {
				b := fakeBank(t)
				s := open(t, b, till.Held)
				s.repays(devchain.DeriveAccount("agent"))
				p := s.authorize(payment.V2)
				_ = s.ask("GET", "/", "", p)
				s.change(p, func(r *ledger.Record) { r.State, r.Delivery = c.state, c.delivery })
				before := b.transfers()
				_, err := s.till.Refund(t.Context(), s.key(p), force)
				want := c.plain
				if force {
					want = c.forced
				}
				refused := (*till.RefundError)(nil)
				if want != (err == nil) || !want && !errors.As(err, &refused) || want != (b.transfers() == before+1) {
					t.Errorf("force %v: %v, %d transfers", force, err, b.transfers()-before)
				}
				if !force && c.forced && !c.plain && !strings.Contains(err.Error(), "--force") {
					t.Errorf("the error says nothing of --force: %v", err)
				}
			}
		})
	}
}

func TestMoneyThatIsNotFinalIsNotGivenBack(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.Held)
	s.repays(devchain.DeriveAccount("agent"))
	p := s.authorize(payment.V2)
	_ = s.ask("GET", "/", "", p)
	s.change(p, func(r *ledger.Record) { r.IntentBlock, r.Delivery = 7, ledger.Undeliverable })
	if _, err := s.till.Refund(t.Context(), s.key(p), true); err == nil || !strings.Contains(err.Error(), "final") {
		t.Errorf("got %v", err)
	}
	if _, err := s.till.Refund(t.Context(), payment.Key{1}, true); err == nil || !strings.Contains(err.Error(), "no such payment") {
		t.Errorf("got %v", err)
	}
	s.want(1, 1)
}
