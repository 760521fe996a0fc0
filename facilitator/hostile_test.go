package facilitator_test

import (
	"context"
	"errors"
	"math/big"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// walletGas is max_wallet_gas unless somebody has set it, and transferGas
// max_gas.
const walletGas, transferGas = 500_000, 300_000

// A sender is a node that lets something happen just before a transaction goes
// out, once each time it is armed.
type sender struct {
	*chain.Client
	armed  atomic.Bool
	before func()
}

func (s *sender) Broadcast(ctx context.Context, raw []byte) error {
	if s.armed.Swap(false) && s.before != nil {
		s.before()
	}
	return s.Client.Broadcast(ctx, raw)
}

// A siege is a facilitator that counts what attacks cost its lane.
type siege struct {
	*world
	node   *sender
	open   *facilitator.Embedded
	lane   common.Address
	ahead  atomic.Int64 // of the engine's clock, in seconds
	failed atomic.Int64 // transactions, as the engine has told
	wei    *big.Int     // the lane's in the beginning
	units  int64        // tokens that it had then
}

// besiege opens a facilitator as caddymodule does: what fails in a block counts
// against its payer. before happens before the first transaction of an attack
// goes out; nil is nothing.
func besiege(t *testing.T, before func(s *siege)) *siege {
	t.Helper()
	w := newWorld(t)
	lane := w.chain.Account("facilitator")
	s := &siege{world: w, lane: lane.Address, node: &sender{Client: facilitatortest.Client(t, w.chain.URL())}}
	if before != nil {
		s.node.before = func() { before(s) }
	}
	strikes := &facilitator.Strikes{}
	engine, err := settle.New(settle.Config{
		Network: payment.EVM(84532), Chain: s.node, Ledger: w.ledger, Signers: []payment.CallSigner{facilitatortest.Lane{Key: lane.Key}},
		Failed: func(signed *evm.Instrument) {
			strikes.Strike(time.Now(), facilitator.SuspectOf(payment.EVM(84532), signed.Payer, nil))
			s.failed.Add(1)
		},
		Now: func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load()) * time.Second) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(engine.Stop)
	if s.open, err = facilitator.NewEmbedded(w.ledger, []facilitator.Market{{
		Network: payment.EVM(84532), Tokens: []payment.Token{facilitatortest.USDC(t)}, Chain: w.node, Engine: engine, Strikes: strikes,
	}}, nil); err != nil {
		t.Fatal(err)
	}
	s.wei, s.units = w.chain.ETHBalance(s.lane), w.chain.USDCBalance(s.lane).Int64()
	return s
}

// attack verifies and settles a payment as a till does. Where its transaction
// fails in a block it gives the engine every reason to send it again.
func (s *siege) attack(p *payment.Payment, o *payment.Offer) (settled bool, refusal error) {
	s.t.Helper()
	s.sees()
	if _, err := s.open.Verify(soon(s.t), p, o); err != nil {
		return false, err
	}
	s.node.armed.Store(true)
	failed, sent := s.failed.Load(), s.sent()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { // ends with ctx
		_, err := s.open.Settle(ctx, p, o, o.Amount)
		done <- err
	}()
	for s.failed.Load() == failed {
		select {
		case err := <-done:
			if _, invalid := errors.AsType[*payment.InvalidError](err); err != nil && !invalid {
				s.t.Fatal(err)
			}
			if s.sent() > sent {
				return err == nil, nil
			}
			return err == nil, err
		case <-time.After(20 * time.Millisecond):
		}
		if s.sent() > sent { // what follows shows what became of it
			s.mine()
		}
	}
	for range 6 {
		s.ahead.Add(5)
		s.mine()
		time.Sleep(20 * time.Millisecond) // whatever the engine makes of it, it may do
	}
	cancel()
	<-done
	return false, nil
}

func (s *siege) mine() {
	s.t.Helper()
	if err := s.chain.Mine(1); err != nil {
		s.t.Fatal(err)
	}
}

// sent returns how many transactions of the lane are in blocks.
func (s *siege) sent() uint64 {
	s.t.Helper()
	n, err := s.chain.Client().NonceAt(s.t.Context(), s.lane, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *siege) height() uint64 {
	s.t.Helper()
	n, err := s.chain.Client().BlockNumber(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// wantCost checks that the lane has sent at most so many transactions, and that
// none could cost more than so much gas. It returns how many there are, what
// they have cost, and what they could have cost, in wei.
func (s *siege) wantCost(sent int, gas uint64) (count int, wei, most *big.Int) {
	s.t.Helper()
	most = new(big.Int)
	for n := range s.height() + 1 {
		b, err := s.chain.Client().BlockByNumber(s.t.Context(), new(big.Int).SetUint64(n))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, tx := range b.Transactions() {
			from, err := types.Sender(types.LatestSignerForChainID(tx.ChainId()), tx)
			if err != nil || from != s.lane {
				continue
			}
			count++
			if tx.Gas() > gas {
				s.t.Errorf("a transaction may use %d gas, the limit is %d", tx.Gas(), gas)
			}
			most.Add(most, new(big.Int).Mul(tx.GasFeeCap(), new(big.Int).SetUint64(tx.Gas())))
		}
	}
	wei = new(big.Int).Sub(s.wei, s.chain.ETHBalance(s.lane))
	if count > sent || wei.Cmp(most) > 0 {
		s.t.Errorf("%d transactions have cost %s wei of at most %s, want %d", count, wei, most, sent)
	}
	return count, wei, most
}

// wantUntouched checks that the lane has the tokens that it had, and the seller
// what is settled.
func (s *siege) wantUntouched(settled int) {
	s.t.Helper()
	s.wantEarned(int64(settled) * 1000)
	if n := s.chain.USDCBalance(s.lane).Int64(); n != s.units {
		s.t.Errorf("the lane has %d tokens of %d", n, s.units)
	}
}

// A wallet that shows itself when its payment is simulated as it will be sent
// costs nothing. One that does not costs one transaction for each payment, and
// after two it is refused.
func TestHostileWalletsCostNoMoreThanTheirGasLimit(t *testing.T) {
	t.Parallel()
	wallet := common.HexToAddress("0xbad0bad0")
	const attacks = 3
	for _, row := range []struct {
		name     string
		trick    devchain.Trick
		argument int64
		settled  int
		sent     int // transactions, at most
	}{
		{"no trick", devchain.NoTrick, 0, attacks, attacks},
		{"burns gas", devchain.BurnsGas, 0, 0, 0},
		{"returns a megabyte", devchain.ReturnsMuch, 1 << 20, 0, 0},
		{"returns 100 kilobytes", devchain.ReturnsMuch, 100_000, attacks, attacks},
		{"sees the price of gas", devchain.SeesGasPrice, 0, 0, 0},
		{"sees the base fee", devchain.SeesBaseFee, 0, 0, 0},
		{"sees who sends", devchain.SeesOrigin, 0, 0, 0},
		{"sees who gets the tips", devchain.SeesCoinbase, 1, 0, 0},
		{"sees how much gas there is", devchain.SeesGas, 1_000_000, 0, 0},
		{"sees which block it is", devchain.SeesBlock, 0, 0, 2},
		{"changes its mind", devchain.Obeys, 0, 0, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			tell := func(s *siege, refuse bool) {
				data, err := devchain.HostileWallet().ABI.Pack("command", refuse)
				if err != nil {
					s.t.Error(err)
					return
				}
				s.callAt(s.chain.Account("agent"), wallet, data)
			}
			s := besiege(t, func(s *siege) {
				switch {
				case row.trick == devchain.Obeys:
					tell(s, true)
				case row.trick == devchain.SeesBlock && s.height()%2 == 1:
					s.mine()
				}
			})
			if err := errors.Join(s.chain.Mint(wallet, big.NewInt(1_000_000)), s.chain.SetHostileWallet(wallet, row.trick, big.NewInt(row.argument))); err != nil {
				t.Fatal(err)
			}
			settled, refused := 0, 0
			for range attacks {
				if row.trick == devchain.Obeys {
					tell(s, false)
				}
				if row.trick == devchain.SeesBlock && s.height()%2 == 1 { // a simulation is made in the head, the transaction in the next block
					s.mine()
				}
				ok, refusal := s.attack(s.forgedBy(wallet), &s.offer)
				if ok {
					settled++
				}
				if refusal != nil {
					refused++
				}
			}
			sent, wei, most := s.wantCost(row.sent, walletGas)
			t.Logf("%d payments: %d settled, %d refused before anything was sent; %d transactions have cost %s wei of at most %s", attacks, settled, refused, sent, wei, most)
			if settled != row.settled || refused != attacks-sent {
				t.Errorf("%d settled and %d refused, want %d and %d", settled, refused, row.settled, attacks-sent)
			}
			s.wantUntouched(settled)
		})
	}
}

// A payer with a key can make its payment fail between its simulation and its
// block, too. That costs one transaction each time, and after two the payer is
// refused. A payment that can be made good again is sent again then, so there
// is one of those only.
func TestPayersWhoTurnCoatCostOneTransactionEach(t *testing.T) {
	t.Parallel()
	const had = 1000
	pack := func(t *testing.T, method string, args ...any) []byte {
		t.Helper()
		data, err := devchain.TestUSDC().ABI.Pack(method, args...)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for _, row := range []struct {
		name      string
		permit    bool
		sponsored bool
		attacks   int
		turns     func(t *testing.T, s *siege, payer devchain.Account, p *evm.SignedPermit)
	}{
		{"moves the money of an authorization away", false, false, 1, func(t *testing.T, s *siege, payer devchain.Account, _ *evm.SignedPermit) {
			s.call(payer, move(s.chain.Account("agent").Address, big.NewInt(had)))
		}},
		{"moves the money of a permit away", true, false, 1, func(t *testing.T, s *siege, payer devchain.Account, _ *evm.SignedPermit) {
			s.call(payer, move(s.chain.Account("agent").Address, big.NewInt(had)))
		}},
		{"takes the allowance back", true, false, 1, func(t *testing.T, s *siege, payer devchain.Account, _ *evm.SignedPermit) {
			s.call(payer, pack(t, "approve", evm.Permit2, new(big.Int)))
		}},
		{"invalidates the nonce", true, false, 3, func(t *testing.T, s *siege, payer devchain.Account, p *evm.SignedPermit) {
			word := new(big.Int).Rsh(p.Nonce, 8)
			mask := new(big.Int).Lsh(common.Big1, uint(new(big.Int).And(p.Nonce, big.NewInt(255)).Uint64()))
			data, err := devchain.Permit2Contract().ABI.Pack("invalidateUnorderedNonces", word, mask)
			if err != nil {
				t.Fatal(err)
			}
			s.callAt(payer, evm.Permit2, data)
		}},
		{"uses its sponsored approval up", true, true, 3, func(t *testing.T, s *siege, payer devchain.Account, _ *evm.SignedPermit) {
			// Its nonce at the token is spent by another one, for nothing.
			answer, err := s.chain.Call(t.Context(), devchain.USDC, evm.NoncesCall(payer.Address))
			if err != nil {
				t.Fatal(err)
			}
			a := &evm.Approval{From: payer.Address, Token: devchain.USDC, Spender: evm.Permit2, Value: new(big.Int), Nonce: new(big.Int).SetBytes(answer), Deadline: big.NewInt(now + 3600)}
			signature := sign(t, payer.Key, a.Digest(evm.DomainOf(s.offer.Amount.Token()).Separator()))
			s.call(s.chain.Account("agent"), pack(t, "permit", payer.Address, evm.Permit2, new(big.Int), a.Deadline, signature))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var permit *evm.SignedPermit
			s := besiege(t, nil)
			payer := s.chain.Account("turncoat")
			s.payer = payer
			s.node.before = func() { row.turns(t, s, payer, permit) }
			if err := s.chain.SetETHBalance(payer.Address, big.NewInt(1e18)); err != nil {
				t.Fatal(err)
			}
			refused := 0
			for range row.attacks {
				if err := s.chain.Mint(payer.Address, big.NewInt(had-s.chain.USDCBalance(payer.Address).Int64())); err != nil {
					t.Fatal(err)
				}
				o := s.offer
				var p *payment.Payment
				switch {
				case !row.permit:
					p = s.pay()
				case row.sponsored:
					o = s.byPermit2(payment.Exact)
					permit = s.permits(payer.Key, payer.Address, &o)
					p = s.received(&o, permit.Encode(), s.approval(&permit.Permit))
				default:
					s.approve(payer)
					o = s.byPermit2(payment.Exact)
					permit = s.permits(payer.Key, payer.Address, &o)
					p = s.received(&o, permit.Encode(), nil)
				}
				ok, refusal := s.attack(p, &o)
				if ok {
					t.Error("settled")
				}
				if refusal != nil {
					refused++
				}
			}
			sent, wei, most := s.wantCost(min(row.attacks, 2), transferGas)
			t.Logf("%d payments: %d refused before anything was sent; %d transactions have cost %s wei of at most %s", row.attacks, refused, sent, wei, most)
			if refused != row.attacks-sent {
				t.Errorf("%d refused", refused)
			}
			s.wantUntouched(0)
		})
	}
}
