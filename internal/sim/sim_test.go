package sim

import (
	"bytes"
	"fmt"
	"math/big"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1) // so that a seed means one history
	os.Exit(m.Run())
}

func newPurse(t *testing.T) *Purse {
	t.Helper()
	p, err := NewPurse()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// rare lists what not every few hundred worlds have. The twenty thousand of
// e2e/sim must have seen it all.
var rare = map[string]bool{
	transition(ledger.Reserved, ledger.Settled):  true,
	transition(ledger.Executed, ledger.Settled):  true,
	transition(ledger.Intent, ledger.Dead):       true,
	transition(ledger.Released, ledger.Included): true,
	"K3 answer stored, no intent":                true,
	"K7 included, not settled":                   true,
	"K6 in a block, not noted":                   true,
	"K13 during a reload":                        true,
	"K11 during a fee bump":                      true,
	"upstream fails":                             true,
	"commit of unknown outcome":                  true,
	"lane taken over from a living instance":     true,
	"disk failure":                               true,
	"batch on a second lane":                     true,
	"upstream dies in a stream":                  true,
	"permit included by a stranger":              true,
	"payer uses the nonce for something else":    true,
}

func TestNoWorldBreaksAPromise(t *testing.T) {
	p := newPurse(t)
	seen := map[string]int{}
	honest, served := 0, 0
	for seed := range uint64(300) {
		r := Run(t, p, seed, Options{})
		if len(r.Violations) > 0 {
			t.Errorf("seed %d: %q; go run ./e2e/sim -seed %d -v", seed, r.Violations, seed)
		}
		if r.Mild {
			honest, served = honest+r.Honest, served+r.Served
		}
		for what, n := range r.Seen {
			seen[what] += n
		}
	}
	if served*10 < honest*9 || honest == 0 {
		t.Errorf("in mild worlds %d of %d payers got what they paid for", served, honest)
	}
	for _, what := range MustSee() {
		if seen[what] == 0 && !rare[what] {
			t.Errorf("never seen: %s", what)
		}
	}
}

func TestASeedIsLivedTheSameWayAgain(t *testing.T) {
	p := newPurse(t)
	const worlds = 150
	same, apart := 0, ""
	for seed := range uint64(worlds) {
		first, again := Run(t, p, seed, Options{}), Run(t, p, seed, Options{})
		if first.Digest() == again.Digest() {
			same++
			continue
		}
		apart += fmt.Sprintf("\nseed %d: %s", seed, first.Apart(again))
	}
	t.Logf("%d of %d worlds had the same history twice", same, worlds)
	// A goroutine that is interrupted on a loaded machine can come after one
	// that it was before. That hardly ever happens.
	if same*100 < worlds*98 {
		t.Errorf("only %d of %d worlds had the same history twice:%s", same, worlds, apart)
	}
}

func TestEveryFlawIsFound(t *testing.T) {
	p := newPurse(t)
	for _, flaw := range Flaws() {
		t.Run(string(flaw), func(t *testing.T) {
			const within = 400
			for seed := range uint64(within) {
				if r := Run(t, p, seed, Options{Flaw: flaw}); len(r.Violations) > 0 {
					t.Logf("seed %d: %q", seed, r.Violations)
					return
				}
			}
			t.Errorf("not found in %d worlds", within)
		})
	}
}

func TestDifferentSeedsAreDifferentWorlds(t *testing.T) {
	p := newPurse(t)
	seen := map[string]uint64{}
	for seed := range uint64(50) {
		digest := Run(t, p, seed, Options{}).Digest()
		if other, twice := seen[digest]; twice {
			t.Errorf("seeds %d and %d are one world", other, seed)
		}
		seen[digest] = seed
	}
}

// stillWorld is a world in which a test does everything itself.
func stillWorld(t *testing.T) *world {
	t.Helper()
	w, err := newWorld(newPurse(t), 1, Options{})
	if err != nil {
		t.Fatal(err)
	}
	w.profile = profile{latency: 300 * time.Microsecond, instances: 1, lanes: 1}
	w.sit()
	return w
}

func (w *world) life() *process {
	p := &process{w: w, seat: w.seats[0], name: "p", dice: w.dice, broken: make(chan struct{}), struck: map[string]int{}, counts: map[string]int{}}
	p.store = openDisk(p, w.seats[0].books.entries)
	return p
}

func TestACrashKeepsCommitsAndNothingAfterWhatItLost(t *testing.T) {
	ctx := t.Context()
	lost, kept := 0, 0
	for n := range 40 {
		w := stillWorld(t)
		p := w.life()
		p.dice = w.dice.nth(n)
		s := p.store.(*disk)
		if err := s.Commit(ctx, ledger.Write{Key: "a", Value: []byte("1")}); err != nil {
			t.Fatal(err)
		}
		s.Later(ledger.Write{Key: "a", If: 1, Value: []byte("2")})
		s.Later(ledger.Write{Key: "a", If: 2, Value: []byte("3")})
		w.mu.Lock()
		s.crash(p.dice)
		e := w.seats[0].books.entries["a"]
		w.mu.Unlock()
		switch string(e.Value) {
		case "1", "2":
			lost++
		case "3":
			kept++
		}
		if e.Version != uint64(e.Value[0]-'0') {
			t.Fatalf("version %d has value %q", e.Version, e.Value)
		}
	}
	if lost == 0 || kept == 0 {
		t.Errorf("%d crashes lost what nobody waited for, %d kept it; both happen", lost, kept)
	}
}

func TestACommitSyncsWhatWasHandedToLaterBefore(t *testing.T) {
	ctx := t.Context()
	w := stillWorld(t)
	s := w.life().store.(*disk)
	if err := s.Commit(ctx, ledger.Write{Key: "a", Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	s.Later(ledger.Write{Key: "a", If: 1, Value: []byte("2")})
	if err := s.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	s.crash(1)
	got := string(w.seats[0].books.entries["a"].Value)
	w.mu.Unlock()
	if got != "2" {
		t.Errorf("the disk has %q", got)
	}
	conflict := s.Commit(ctx, ledger.Write{Key: "a", If: 1, Value: []byte("9")})
	if conflict == nil {
		t.Error("a commit on an old version was made")
	}
}

// TestTheModelOfTheTokenAgreesWithItsContract runs the same calls on the
// world's token and on the contract of the development chain.
func TestTheModelOfTheTokenAgreesWithItsContract(t *testing.T) {
	dev, err := devchain.Start(devchain.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	purse := newPurse(t)
	payer := purse.payers[0]
	if err := dev.Mint(payer.Address(), big.NewInt(3*price)); err != nil {
		t.Fatal(err)
	}
	model := newChain(1, time.Now(), 1, purse, map[common.Address]uint64{payer.Address(): 3 * price})
	now := time.Now().Unix()
	sign := func(value, after, before int64, nonce byte) *evm.Transfer {
		tr, err := payer.SignTransfer(t.Context(), evm.DomainOf(purse.token), evm.Authorization{
			From: payer.Address(), To: purse.seller, Value: big.NewInt(value), ValidAfter: big.NewInt(after), ValidBefore: big.NewInt(before), Nonce: [32]byte{nonce},
		})
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	good := sign(price, 0, now+3600, 1)
	forged := sign(price, 0, now+3600, 2)
	forged.Value = big.NewInt(price + 1)
	batch := func(calls ...call3) []byte {
		data, err := purse.aggregate.arguments.Pack(calls)
		if err != nil {
			t.Fatal(err)
		}
		return append(selAggregate3[:], data...)
	}
	for name, call := range map[string]struct {
		to   common.Address
		data []byte
	}{
		"a transfer":             {model.token, good.Calldata()},
		"a transfer by bytes":    {model.token, good.CalldataBytes()},
		"a forged transfer":      {model.token, forged.Calldata()},
		"too much":               {model.token, sign(4*price, 0, now+3600, 3).Calldata()},
		"an expired one":         {model.token, sign(price, 0, now-3600, 4).Calldata()},
		"an early one":           {model.token, sign(price, now+3600, now+7200, 5).Calldata()},
		"an unused nonce":        {model.token, good.AuthorizationStateCall()},
		"a balance":              {model.token, evm.BalanceCall(payer.Address())},
		"the domain":             {model.token, evm.SeparatorCall()},
		"a batch":                {multicall, batch(call3{model.token, true, good.Calldata()}, call3{model.token, true, forged.Calldata()})},
		"a batch that must work": {multicall, batch(call3{model.token, false, forged.Calldata()})},
		"the same one twice":     {multicall, batch(call3{model.token, true, good.Calldata()}, call3{model.token, true, good.Calldata()})},
		"an account":             {common.HexToAddress("0x77"), nil},
	} {
		want, err := dev.Call(t.Context(), call.to, call.data)
		got := model.call(model.tip.state.clone(), frame{at: uint64(now), block: 2}, call.to, call.data)
		if got.failed != (err != nil) {
			t.Errorf("%s: failed %v (%s), the contract says %v", name, got.failed, got.reason, err)
		}
		if err == nil && call.to == model.token && !bytes.Equal(got.output, want) {
			t.Errorf("%s returns %x, the contract %x", name, got.output, want)
		}
		if err == nil && call.to == multicall {
			equalResults(t, name, purse, got.output, want)
		}
	}
}

// equalResults compares which calls of a batch went well. Why others did not
// is for people.
func equalResults(t *testing.T, name string, p *Purse, a, b []byte) {
	t.Helper()
	read := func(data []byte) (oks []bool) {
		values, err := p.aggregate.results.Unpack(data)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range *convertResults(values[0]) {
			oks = append(oks, r.Success)
		}
		return oks
	}
	got, want := read(a), read(b)
	if len(got) != len(want) {
		t.Errorf("%s: %v, the contract says %v", name, got, want)
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: %v, the contract says %v", name, got, want)
		}
	}
}

func TestAReorganizationKeepsNoncesInOrder(t *testing.T) {
	for n := range 200 {
		w := stillWorld(t)
		c := newChain(dice(n), w.start, 20, w.purse, map[common.Address]uint64{w.purse.payers[0].Address(): 100 * price})
		c.finalLag = 8
		lane := w.purse.lanes[0]
		for nonce := range uint64(6) {
			raw, err := lane.SignCall(t.Context(), &payment.LaneCall{
				ChainID: chainID, Nonce: nonce, To: lane.Address(), Gas: 21_000, GasFeeCap: big.NewInt(1e12), GasTipCap: big.NewInt(1),
			})
			if err != nil {
				t.Fatal(err)
			}
			tx, from, err := c.parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.offer(tx, from, 0); err != nil {
				t.Fatal(err)
			}
			c.mine(w.start)
		}
		height := c.tip.number
		c.reorganize(uint64(1+n%8), w.start)
		if c.tip.number != height+1 {
			t.Fatalf("the tip is at %d after %d", c.tip.number, height)
		}
		next := uint64(0)
		for number := range c.tip.number + 1 {
			b := c.tip.ancestor(number)
			for i, tx := range b.txs {
				if tx.tx.Nonce() != next {
					t.Fatalf("nonce %d follows %d", tx.tx.Nonce(), next)
				}
				if r := c.receipt(c.tip, tx.hash); r == nil || r.BlockHash != b.hash || r != b.receipts[i] {
					t.Fatal("a transaction has no receipt, or another one's")
				}
				next++
			}
		}
		if next != c.tip.state.nonces[lane.Address()] {
			t.Fatalf("%d transactions are in blocks, the account has sent %d", next, c.tip.state.nonces[lane.Address()])
		}
	}
}

func convertResults(v any) *[]result3 { return abi.ConvertType(v, new([]result3)).(*[]result3) }
