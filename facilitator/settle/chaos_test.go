package settle_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/internal/chain/chaostest"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A seed decides how the nodes fail and lie, and what becomes of the payments.
// When what happens is up to the machine, so one seed is not one run.
var (
	chaosSeed  = flag.Uint64("chaos.seed", 0, "run the chaos tests with this seed alone")
	chaosSeeds = flag.Int("chaos.seeds", chaosDefault, "with how many seeds to run each chaos test")
)

const (
	// chaosSpeed is how much faster than the machine's the clock of the chain
	// and of the engine goes, so that what is stuck is soon sent again.
	chaosSpeed = 40

	// chaosBound is within how much time everything must settle that can.
	chaosBound = 90 * time.Second
)

// eachSeed runs a test with many seeds, several at once.
func eachSeed(t *testing.T, test func(t *testing.T, seed uint64)) {
	t.Helper()
	seeds := make(map[string]uint64)
	for i := range uint64(*chaosSeeds) {
		seeds[fmt.Sprintf("seed=%d", i+1)] = i + 1
	}
	if *chaosSeed != 0 {
		seeds = map[string]uint64{fmt.Sprintf("seed=%d", *chaosSeed): *chaosSeed}
	}
	atOnce(t, seeds, test)
}

// atOnce runs a test for each of some cases, several at once.
func atOnce[T any](t *testing.T, cases map[string]T, test func(t *testing.T, c T)) {
	t.Helper()
	free := make(chan struct{}, chaosAtOnce)
	var running sync.WaitGroup
	defer running.Wait()
	for name, c := range cases {
		free <- struct{}{}
		running.Go(func() {
			defer func() { <-free }()
			t.Run(name, func(t *testing.T) { test(t, c) })
		})
	}
}

// A chaos is a world with three nodes that are not to be relied on.
type chaos struct {
	*world
	seed    uint64
	quorum  bool          // nobody may be convinced by one node
	linger  time.Duration // for which what is sent is in no block
	nodes   []*chaostest.Proxy
	client  *chain.Client
	started time.Time

	skipped   atomic.Int64 // nanoseconds that the clock has leapt
	mu        sync.Mutex
	transfers []*evm.Transfer // guarded by mu: all payments
}

// newChaos makes a world of which node i fails as plan(i) says.
func newChaos(t *testing.T, seed uint64, plan func(i int) chaostest.Plan, adjust ...func(*settle.Config)) *chaos {
	t.Helper()
	c := &chaos{world: &world{t: t}, seed: seed, started: time.Now()}
	var err error
	if c.chain, err = devchain.Start(devchain.Config{BlockTime: chaosBlock, Now: c.now}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.chain.Close() })
	var urls []string
	for i := range 3 {
		p := chaostest.New(t, chaostest.Config{
			HTTP: c.chain.URL(), WebSocket: c.chain.WebSocketURL(), Seed: seed*3 + uint64(i), Plan: plan(i), MaxDelay: 2 * chaosCall, Forge: c.forge,
		})
		c.nodes = append(c.nodes, p)
		if c.nodes[i] = p; (seed+uint64(i))%4 == 0 {
			urls = append(urls, p.WebSocketURL())
		} else {
			urls = append(urls, p.URL())
		}
	}
	c.client, err = chain.New(chain.Config{
		ChainID: c.chain.ChainID(), Endpoints: urls, PollInterval: chaosBlock / 2, CallTimeout: chaosCall,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.client.Close)
	if err := c.client.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.history = &history{Store: ledger.NewMemory(), t: t, states: map[ledger.Key][]ledger.State{}}
	c.ledger = ledger.New(c.history, "one", c.now)
	c.seller, c.payer = c.chain.Account("seller").Address, c.chain.Account("payer")
	c.offer = facilitatortest.Offer(t, 1000, c.seller)
	c.engine = c.start(c.client, append([]func(*settle.Config){func(s *settle.Config) { s.Now = c.now }}, adjust...)...)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for i, p := range c.nodes {
			t.Logf("node %d plan %v met %v", i, p.Plan, p.Met())
		}
	})
	return c
}

// now is the time of the chain and of the engine.
func (c *chaos) now() time.Time {
	return c.started.Add(chaosSpeed*time.Since(c.started) + time.Duration(c.skipped.Load()))
}

// skip has the clock leap.
func (c *chaos) skip(d time.Duration) { c.skipped.Add(int64(d)) }

// pay signs a payment and claims it.
func (c *chaos) pay(payer devchain.Account, valid time.Duration, until payment.Finality) settle.Job {
	c.t.Helper()
	t := facilitatortest.Authorize(c.t, payer.Key, &c.offer, c.now().Unix(), int64(valid.Seconds()))
	c.mu.Lock()
	c.transfers = append(c.transfers, t)
	c.mu.Unlock()
	return c.claim(t, until)
}

// forge returns the logs that a transaction would leave.
func (c *chaos) forge(tx *types.Transaction, cancels bool) []*types.Log {
	c.mu.Lock()
	defer c.mu.Unlock()
	var logs []*types.Log
	for _, t := range c.transfers {
		if !bytes.Contains(tx.Data(), t.Nonce[:]) {
			continue
		}
		from, to := common.BytesToHash(t.From[:]), common.BytesToHash(t.To[:])
		if cancels {
			logs = append(logs, &types.Log{Address: devchain.USDC, Topics: []common.Hash{evm.TopicAuthorizationCanceled, from, t.Nonce}, Data: []byte{}})
			continue
		}
		logs = append(logs,
			&types.Log{Address: devchain.USDC, Topics: []common.Hash{evm.TopicAuthorizationUsed, from, t.Nonce}, Data: []byte{}},
			&types.Log{Address: devchain.USDC, Topics: []common.Hash{evm.TopicTransfer, from, to}, Data: common.LeftPadBytes(t.Value.Bytes(), 32)})
	}
	return logs
}

// calm ends the chaos.
func (c *chaos) calm() {
	for _, p := range c.nodes {
		p.Calm()
	}
}

// paid returns which payments the chain has made, by nonce, as the chain
// itself says.
func (c *chaos) paid() map[common.Hash]bool {
	c.t.Helper()
	logs, err := c.chain.Client().FilterLogs(context.Background(), ethereum.FilterQuery{
		FromBlock: new(big.Int), Addresses: []common.Address{devchain.USDC},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	paid := map[common.Hash]bool{}
	for i, l := range logs {
		if l.Topics[0] != evm.TopicAuthorizationUsed {
			continue
		}
		if i+1 == len(logs) || logs[i+1].Topics[0] != evm.TopicTransfer || logs[i+1].Topics[2] != common.BytesToHash(c.seller[:]) {
			c.t.Errorf("authorization %s moved no money to the seller", l.Topics[2])
		}
		if paid[l.Topics[2]] {
			c.t.Errorf("authorization %s was used twice", l.Topics[2])
		}
		paid[l.Topics[2]] = true
	}
	return paid
}

// insist settles a payment as a till does whose client does not give up: it
// asks again while it is not known what becomes of the payment.
func (c *chaos) insist(ctx context.Context, job settle.Job) (*payment.Settlement, error) {
	for {
		s, err := c.engine.Settle(ctx, job)
		for ctx.Err() == nil {
			if unavailable, ok := errors.AsType[*payment.UnavailableError](err); !ok || !unavailable.Pending {
				break
			}
			var r ledger.Record
			if r, err = c.ledger.Get(ctx, job.Record.Key); err != nil {
				break
			}
			s, err = c.engine.Resume(ctx, r)
		}
		if _, ok := errors.AsType[*payment.UnavailableError](err); !ok || ctx.Err() != nil {
			return s, err
		}
		// Nothing was broadcast.
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
		if r, err := c.ledger.Get(ctx, job.Record.Key); err == nil {
			job.Record = r
		}
	}
}

// states returns the state of every payment, by nonce.
func (c *chaos) states() map[common.Hash]ledger.State {
	c.t.Helper()
	states := map[common.Hash]ledger.State{}
	for _, t := range c.transfers {
		states[t.Nonce] = c.record(t).State
	}
	return states
}

// rests waits until every payment is in a state from which nothing changes
// any more, or was refused before anything was broadcast.
func (c *chaos) rests() {
	c.t.Helper()
	for deadline := time.Now().Add(chaosBound); ; time.Sleep(10 * time.Millisecond) {
		open := 0
		for _, s := range c.states() {
			if !s.Resting() && !s.Working() {
				open++
			}
		}
		if open == 0 {
			return
		}
		if time.Now().After(deadline) {
			for _, t := range c.transfers {
				c.t.Errorf("payment %x… went %s", t.Nonce[:4], c.history.path(t.Key(84532, devchain.USDC)))
			}
			c.t.Fatalf("%d payments are open", open)
		}
	}
}

// agrees checks that the ledger says of every payment what the chain does.
func (c *chaos) agrees() {
	c.t.Helper()
	paid := c.paid()
	for _, t := range c.transfers {
		path := c.history.path(t.Key(84532, devchain.USDC))
		r := c.record(t)
		switch {
		case paid[t.Nonce] && r.State != ledger.Archived:
			c.t.Errorf("payment %x… is paid, and went %s", t.Nonce[:4], path)
		case !paid[t.Nonce] && r.State.Paid():
			c.t.Errorf("payment %x… is not paid, and went %s", t.Nonce[:4], path)
		}
	}
	if want := int64(1000 * len(paid)); c.earned() != want {
		c.t.Errorf("the seller has %d units, want %d", c.earned(), want)
	}
}

var finalities = []payment.Finality{payment.Included, payment.Confirmed(2), payment.Safe, payment.Finalized}

// settleMany settles n payments of the payer, in a few bursts, until ctx ends.
func (c *chaos) settleMany(ctx context.Context, n int) (settled int, errs []error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range n {
		job := c.pay(c.payer, time.Hour, finalities[(int(c.seed)+i)%len(finalities)])
		if i%3 == 0 {
			time.Sleep(30 * time.Millisecond)
		}
		all.Go(func() {
			_, err := c.insist(ctx, job)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				settled++
			} else {
				errs = append(errs, err)
			}
		})
	}
	all.Wait()
	return settled, errs
}

func TestOneBadNodeOfThreeHoldsUpNobody(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		bad := int(seed % 3)
		c := newChaos(t, seed, func(i int) chaostest.Plan {
			if i == bad {
				return chaostest.Draw(seed, 1, chaostest.Failing()...)
			}
			return nil
		})
		ctx, cancel := within(t, chaosBound)
		defer cancel()
		began := time.Now()
		if settled, errs := c.settleMany(ctx, 8); settled != 8 {
			t.Errorf("%d of 8 payments are settled: %v", settled, errs)
		}
		t.Logf("settled after %s", time.Since(began))
		c.rests()
		t.Logf("archived after %s", time.Since(began))
		c.agrees()
		if got := len(c.paid()); got != 8 {
			t.Errorf("the chain has made %d payments, want 8", got)
		}
	})
}

func TestThreeBadNodesCostTimeAndNothingElse(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		c := newChaos(t, seed, func(i int) chaostest.Plan {
			return chaostest.Draw(seed*3+uint64(i), 0.6, chaostest.Failing()...)
		})
		calmed := time.AfterFunc(1500*time.Millisecond, c.calm)
		defer calmed.Stop()
		shaken := time.AfterFunc(time.Second, func() { _ = c.chain.Reorg(1 + int(seed%3)) }) // none where the chain is too short
		defer shaken.Stop()
		ctx, cancel := within(t, chaosBound)
		defer cancel()
		began := time.Now()
		if settled, errs := c.settleMany(ctx, 8); settled != 8 {
			t.Errorf("%d of 8 payments are settled: %v", settled, errs)
		}
		t.Logf("settled after %s", time.Since(began))
		c.calm()
		c.rests()
		t.Logf("archived after %s", time.Since(began))
		c.agrees()
		if got := len(c.paid()); got != 8 {
			t.Errorf("the chain has made %d payments, want 8", got)
		}
	})
}

// A fate is what the test has become of a payment.
type fate int

const (
	honest    fate = iota
	cancelled      // by its payer, in front of our transaction
	blocked        // the token refuses its payer before our transaction, until it has expired
)

// hostility settles payments of every fate, and has the nodes lie until what
// can expire has. Then it ends the chaos and waits until everything rests.
func (c *chaos) hostility() {
	c.t.Helper()
	const soon, late = time.Hour, 24 * time.Hour
	blockedPayer := c.chain.Account("payer2")
	c.chain.Pause()
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := within(c.t, chaosBound)
	defer cancel()
	var cancelling []*evm.Transfer
	var answered atomic.Int64
	for i := range 9 {
		payer, valid := c.payer, late
		if fate(i%3) == blocked {
			payer, valid = blockedPayer, soon
		}
		job := c.pay(payer, valid, finalities[(int(c.seed)+i)%len(finalities)])
		if fate(i%3) == cancelled {
			cancelling = append(cancelling, job.Signed.Transfer)
		}
		if i == 4 {
			time.Sleep(30 * time.Millisecond) // so that some go alone
		}
		all.Go(func() {
			_, err := c.insist(ctx, job)
			answered.Add(1)
			if err == nil && c.quorum && !c.paid()[job.Signed.Transfer.Nonce] {
				c.t.Errorf("payment %x… is called settled, and is not in the chain", job.Signed.Transfer.Nonce[:4])
			}
		})
	}
	// Most lies do not keep the transactions from the nodes.
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		waiting := int64(0)
		for _, s := range c.states() {
			if s.Working() || s == ledger.Intent {
				waiting++
			}
		}
		if waiting <= answered.Load() {
			break
		}
	}
	time.Sleep(c.linger)
	if err := c.chain.SetBlacklisted(blockedPayer.Address, true); err != nil {
		c.t.Fatal(err)
	}
	for i, t := range cancelling {
		c.cancel(uint64(i), t)
	}
	c.chain.Resume()
	time.Sleep(400 * time.Millisecond)
	c.skip(soon)
	time.Sleep(600 * time.Millisecond)
	c.calm()
	calmed := time.Now()
	c.rests()
	c.t.Logf("at rest %s after the last lie", time.Since(calmed))
}

// cancel has the payer cancel a payment, before anything else that waits, in
// the account's transaction with a nonce.
func (c *chaos) cancel(nonce uint64, t *evm.Transfer) {
	c.t.Helper()
	raw, err := facilitatortest.Lane{Key: c.payer.Key}.SignCall(context.Background(), &payment.LaneCall{
		ChainID: c.chain.ChainID(), Nonce: nonce, To: devchain.USDC, Data: c.cancelling(t), Gas: 200_000,
		GasFeeCap: big.NewInt(1e12), GasTipCap: big.NewInt(5e11),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	tx := new(types.Transaction)
	if err := tx.UnmarshalBinary(raw); err != nil {
		c.t.Fatal(err)
	}
	if err := c.chain.Client().SendTransaction(context.Background(), tx); err != nil {
		c.t.Fatal(err)
	}
}

// judge checks that no payment was ever called settled that the chain has not
// made, and none dead that it has.
func (c *chaos) judge() {
	c.t.Helper()
	paid := c.paid()
	for _, t := range c.transfers {
		path := c.history.path(t.Key(84532, devchain.USDC))
		if !paid[t.Nonce] && (strings.Contains(path, string(ledger.Settled)) || strings.Contains(path, string(ledger.Archived))) {
			c.t.Errorf("payment %x… is not paid, and went %s", t.Nonce[:4], path)
		}
		if paid[t.Nonce] && strings.Contains(path, string(ledger.Dead)) {
			c.t.Errorf("payment %x… is paid, and went %s", t.Nonce[:4], path)
		}
	}
}

// ofNodes asks for so many nodes for every payment.
func ofNodes(n int) func(*settle.Config) { return func(c *settle.Config) { c.Quorum.Nodes = n } }

func TestALiarConvincesNobodyWhereAQuorumIsAsked(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		liar := int(seed % 3)
		c := newChaos(t, seed, func(i int) chaostest.Plan {
			if i == liar {
				return chaostest.Draw(seed, 1, chaostest.Lies()...)
			}
			return nil
		}, ofNodes(2))
		c.quorum = true
		c.hostility()
		c.judge()
		c.agrees()
	})
}

// TestWhatOneLiarHasDone names what one node has once brought about by lying
// although a quorum was asked for.
func TestWhatOneLiarHasDone(t *testing.T) {
	atOnce(t, map[string]chaostest.Plan{
		"settled what had failed":              {chaostest.FalseSuccess: 1},
		"buried as cancelled what was paid":    {chaostest.FalseCancel: 1},
		"buried as expired what could be paid": {chaostest.FalseFinality: 1},
		"buried by the state of an old block":  {chaostest.NoReceipt: 1, chaostest.FalseFinality: 1, chaostest.OldHead: 1},
		"began a lane with a nonce too high":   {chaostest.NonceHigh: 1},
		"hid a cancellation behind its head":   {chaostest.FalseHead: 0.7},
	}, func(t *testing.T, lies chaostest.Plan) {
		c := newChaos(t, 1, func(i int) chaostest.Plan {
			if i == 0 {
				return lies
			}
			return nil
		}, ofNodes(2))
		c.quorum, c.linger = true, 500*time.Millisecond
		c.hostility()
		c.judge()
		c.agrees()
	})
}

func TestWithoutAQuorumWhatALiarHasDoneIsFoundByComparing(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		liar := int(seed % 3)
		c := newChaos(t, seed, func(i int) chaostest.Plan {
			if i == liar {
				return chaostest.Draw(seed, 1, chaostest.Lies()...).Without(chaostest.NonceHigh) // which can stop the lane
			}
			return nil
		})
		c.hostility()
		want := map[payment.Key]settle.DifferenceKind{}
		paid := c.paid()
		for _, transfer := range c.transfers {
			switch r := c.record(transfer); {
			case paid[transfer.Nonce] && r.State == ledger.Dead:
				want[r.Key] = settle.Contradicted
			case !paid[transfer.Nonce] && r.State.Paid():
				want[r.Key] = settle.Missing
			case paid[transfer.Nonce] && !r.State.Paid():
				t.Errorf("payment %x… is paid, and went %s", transfer.Nonce[:4], c.history.path(r.Key))
			}
		}
		got := map[payment.Key]settle.DifferenceKind{}
		all := func() bool {
			for k, kind := range want {
				if got[k] != kind {
					return false
				}
			}
			return true
		}
		for deadline := time.Now().Add(20 * time.Second); !all() && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			differences, err := c.engine.Reconcile(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range differences {
				got[d.Key] = d.Kind
			}
		}
		if !all() {
			t.Errorf("comparing finds %v, want %v", got, want)
		}
		for k, kind := range got {
			// The liar may be asked here, too, and leave out a transfer. It is
			// a false alarm that it can raise, and no other.
			if want[k] != kind && kind != settle.Missing {
				t.Errorf("comparing finds that payment %s is %s", k, kind)
			}
		}
		if units := int64(1000 * len(paid)); c.earned() != units {
			t.Errorf("the seller has %d units, want %d", c.earned(), units)
		}
	})
}
