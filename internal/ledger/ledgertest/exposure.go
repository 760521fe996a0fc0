package ledgertest

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A creditStep is one thing that an instance does with a payment: expose,
// cover, lose, or crash, of which only half leave the last commit behind.
type creditStep struct {
	what     string
	instance int
	payment  byte
	units    int64
}

// steps draws what several instances do.
func creditSteps(rt *rapid.T, atLeast, atMost int, name string) []creditStep {
	return rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) creditStep {
		return creditStep{
			what:     rapid.SampledFrom([]string{"expose", "expose", "expose", "expose", "cover", "cover", "lose", "crash", "crash, made"}).Draw(rt, "what"),
			instance: rapid.IntRange(0, instances-1).Draw(rt, "instance"),
			payment:  rapid.Byte().Draw(rt, "payment") % 12,
			units:    rapid.Int64Range(1, 6).Draw(rt, "units"),
		}
	}), atLeast, atMost).Draw(rt, name)
}

const asset = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"

// creditPayers is how many payers there are.
const creditPayers = 3

func creditPayer(n byte) string { return fmt.Sprint("0xPayer", n%creditPayers) }

// A creditRun is several instances that hand out on credit, on a network of
// their own in a store that they share. A crashed instance is replaced by
// another one.
type creditRun struct {
	stores  []ledger.Store
	number  uint32
	network payment.Network
	caps    ledger.Caps

	// before is called before an instance reads or writes.
	before func(instance int)

	mu       sync.Mutex
	ledgers  []*ledger.Ledger // guarded by mu, as is what follows
	lives    []*mortal
	owners   int
	struck   map[string]bool // the payers who are known to have caused a loss
	problems []string
}

func newCreditRun(rt *rapid.T, stores []ledger.Store, number uint32) *creditRun {
	total := rapid.Int64Range(4, 16).Draw(rt, "total")
	r := &creditRun{
		stores: stores, number: number, network: payment.EVM(uint64(number)),
		caps:    ledger.Caps{Total: big.NewInt(total), PerPayer: big.NewInt(rapid.Int64Range(3, total).Draw(rt, "per payer"))},
		ledgers: make([]*ledger.Ledger, instances), lives: make([]*mortal, instances), struck: map[string]bool{},
	}
	for i := range instances {
		r.begin(i)
	}
	return r
}

// begin starts an instance, in the place of the one that was there.
func (r *creditRun) begin(instance int) {
	r.owners++
	life := &mortal{Store: r.stores[instance], before: func() {
		if r.before != nil {
			r.before(instance)
		}
	}}
	r.lives[instance] = life
	r.ledgers[instance] = ledger.NewShared(life, fmt.Sprintf("run %d, %d", r.number, r.owners), time.Now)
}

func (r *creditRun) problem(format string, about any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problems = append(r.problems, fmt.Sprintf(format, about))
}

func (r *creditRun) key(n byte) payment.Key {
	var k payment.Key
	binary.BigEndian.PutUint32(k[:], r.number)
	k[4] = n
	return k
}

// do takes a step, and looks whether the caps hold.
func (r *creditRun) do(s creditStep) {
	r.mu.Lock()
	if s.what == "crash" || s.what == "crash, made" {
		r.lives[s.instance].kill(s.what != "crash")
		r.begin(s.instance)
		r.mu.Unlock()
		return
	}
	l, payer := r.ledgers[s.instance], creditPayer(s.payment)
	struck := r.struck[payer]
	r.mu.Unlock()

	var err error
	switch s.what {
	case "expose":
		err = r.expose(l, s)
		if err == nil && struck {
			r.problem("%s was trusted after a loss", payer)
		}
	case "cover":
		err = r.cover(l, s.payment, false)
	case "lose":
		if err = r.cover(l, s.payment, true); err == nil {
			r.mu.Lock()
			r.struck[payer] = true
			r.mu.Unlock()
		}
	}
	var held *ledger.HeldError
	var failed *ledger.FailedError
	if err != nil && !errors.Is(err, ledger.ErrExposed) && !errors.Is(err, ledger.ErrStale) && !errors.Is(err, ledger.ErrNotFound) &&
		!errors.Is(err, ledger.ErrClosed) && !errors.As(err, &held) && !errors.As(err, &failed) {
		r.problem("%v", err)
	}
	r.look()
}

func (r *creditRun) expose(l *ledger.Ledger, s creditStep) error {
	claimed, err := l.Claim(ctx, ledger.Record{
		Key: r.key(s.payment), State: ledger.Executing, Network: r.network, Payer: creditPayer(s.payment), Request: []byte("{}"),
	}, time.Hour)
	var held *ledger.HeldError
	if errors.As(err, &held) && held.Record.State == ledger.Executing { // by one that has crashed, or was refused
		claimed, err = held.Record, nil
	}
	if err != nil {
		return err
	}
	x := ledger.Exposure{Token: asset, Units: fmt.Sprint(s.units)}
	_, err = l.Expose(ctx, &claimed, x, r.caps, func(now *ledger.Record) error {
		if now.State != ledger.Executing {
			return ledger.ErrStale
		}
		now.Delivery = ledger.Delivering
		return now.To(ledger.Executed)
	}, []byte("goods"), time.Now().Add(time.Hour))
	return err
}

func (r *creditRun) cover(l *ledger.Ledger, n byte, lost bool) error {
	_, err := l.Covered(ctx, r.key(n), lost, func(now *ledger.Record) error {
		if now.Exposed == nil {
			return ledger.ErrStale
		}
		if !lost {
			return now.To(ledger.Settled)
		}
		return errors.Join(now.To(ledger.Released), now.To(ledger.WrittenOff))
	})
	return err
}

// records returns what the payments of this run expose, by payer and in all, as
// it is at one moment.
func (r *creditRun) records() (all int64, own map[string]int64, err error) {
	k := r.key(0)
	page, err := r.stores[0].Scan(ctx, ledger.Key("pay/"+hex.EncodeToString(k[:4])), "", ledger.MaxScan)
	own = map[string]int64{}
	for _, e := range page {
		var rec ledger.Record
		if err := json.Unmarshal(e.Value, &rec); err != nil {
			return 0, nil, err
		}
		if rec.Exposed != nil {
			var units int64
			if _, err := fmt.Sscan(rec.Exposed.Units, &units); err != nil {
				return 0, nil, err
			}
			all += units
			own[rec.Payer] += units
		}
	}
	return all, own, err
}

// look holds what is exposed against the caps.
func (r *creditRun) look() {
	all, own, err := r.records()
	if err != nil {
		r.problem("%v", err)
	}
	if all > r.caps.Total.Int64() {
		r.problem("%d are exposed in all", all)
	}
	for payer, units := range own {
		if units > r.caps.PerPayer.Int64() {
			r.problem("too much is exposed to %s", fmt.Sprint(payer, ": ", units))
		}
	}
}

// end checks that the store adds up, and that the caps are free again once
// everything is covered.
func (r *creditRun) end(rt *rapid.T) {
	r.before = nil
	all, own, err := r.records()
	if err != nil {
		rt.Fatal(err)
	}
	page, err := r.stores[0].Scan(ctx, ledger.Key("tab/"+r.network), "", ledger.MaxScan)
	if err != nil {
		rt.Fatal(err)
	}
	want := map[ledger.Key]int64{ledger.Key("tab/" + r.network): all}
	for payer, units := range own {
		want[ledger.Key("tab/"+string(r.network)+"/"+payer)] = units
	}
	for _, e := range page {
		var tab struct{ Exposed map[string]string }
		if err := json.Unmarshal(e.Value, &tab); err != nil {
			rt.Fatal(err)
		}
		if got := tab.Exposed[asset]; got != fmt.Sprint(want[e.Key]) && (got != "" || want[e.Key] != 0) {
			r.problem("%s", fmt.Sprintf("%s says that %q are exposed, the payments say %d", e.Key, got, want[e.Key]))
		}
		delete(want, e.Key)
	}
	for k, units := range want {
		if units != 0 {
			r.problem("there is no %s", k)
		}
	}
	r.begin(0)
	l := r.ledgers[0]
	for n := range byte(12) {
		if err := r.cover(l, n, false); err != nil && !errors.Is(err, ledger.ErrStale) && !errors.Is(err, ledger.ErrNotFound) {
			r.problem("%v", err)
		}
	}
	if sum, err := l.ExposedOn(ctx, r.network, asset); err != nil || sum.Sign() != 0 {
		r.problem("at the end %s", fmt.Sprint(sum, " are exposed, ", err))
	}
	for n := range byte(creditPayers) {
		err := r.expose(l, creditStep{payment: 12 + n, units: min(r.caps.PerPayer.Int64(), r.caps.Total.Int64())})
		_, loss := r.stores[0].Get(ctx, ledger.Key("strike/"+string(r.network)+"/"+creditPayer(12+n)))
		if struck := loss == nil; struck != errors.Is(err, ledger.ErrExposed) || !struck && err != nil {
			r.problem("after everything was covered: %v", err)
		}
		if err == nil {
			if err := r.cover(l, 12+n, false); err != nil {
				r.problem("%v", err)
			}
		}
	}
	if len(r.problems) > 0 {
		rt.Fatalf("with at most %s in all and %s per payer: %q", r.caps.Total, r.caps.PerPayer, r.problems)
	}
}

// exposuresStayWithinTheirCaps lets several instances hand out on credit at the
// same time.
func exposuresStayWithinTheirCaps(t *testing.T, stores []ledger.Store) {
	number := uint32(0)
	rapid.Check(t, func(rt *rapid.T) {
		number++
		r := newCreditRun(rt, stores, number)
		var scripts [2 * instances][]creditStep
		for i := range scripts {
			scripts[i] = creditSteps(rt, 1, 4, "steps")
		}
		parallel(len(scripts), func(caller int) {
			for _, s := range scripts[caller] {
				s.instance = caller % instances
				r.do(s)
			}
		})
		r.end(rt)
	})
	wantSound(t, stores[0])
}

// interleavedExposuresStayWithinTheirCaps has instances do something between two
// accesses of another one to the store, as often as is drawn.
func interleavedExposuresStayWithinTheirCaps(t *testing.T, stores []ledger.Store) {
	number := uint32(1 << 30)
	rapid.Check(t, func(rt *rapid.T) {
		number++
		r := newCreditRun(rt, stores, number)
		script := creditSteps(rt, 1, 25, "steps")
		meanwhile := rapid.SliceOfN(rapid.IntRange(0, 2), 0, 100).Draw(rt, "meanwhile") // 0: the next step is taken
		var busy [instances]bool
		next := func() {
			if len(script) == 0 {
				return
			}
			s := script[0]
			crash := s.what == "crash" || s.what == "crash, made"
			if busy[s.instance] && !crash {
				return
			}
			script = script[1:]
			was := busy[s.instance]
			busy[s.instance] = true
			r.do(s)
			busy[s.instance] = was
		}
		r.before = func(int) {
			if len(meanwhile) == 0 {
				return
			}
			now := meanwhile[0]
			meanwhile = meanwhile[1:]
			if now == 0 {
				next()
			}
		}
		for len(script) > 0 {
			next()
		}
		r.end(rt)
	})
	wantSound(t, stores[0])
}

// wantSound checks the whole ledger.
func wantSound(t *testing.T, s ledger.Store) {
	t.Helper()
	survey, err := ledger.NewShared(s, "auditor", time.Now).Check(ctx)
	if err != nil || len(survey.Findings) > 0 {
		t.Errorf("%+v, %v", survey, err)
	}
}

// A mortal store is that of a process that can crash: from its next commit on,
// nothing reaches it, or from the one after.
type mortal struct {
	ledger.Store
	before func()

	mu          sync.Mutex
	dying, dead bool // guarded by mu
	made        bool // guarded by mu: the last commit is made
}

// errCrash stands for what a process that has ended does not get to see.
var errCrash = errors.New("the process has ended")

func (m *mortal) kill(made bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dying, m.made = true, made
}

func (m *mortal) over() bool {
	m.before()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

func (m *mortal) Get(ctx context.Context, k ledger.Key) (ledger.Entry, error) {
	if m.over() {
		return ledger.Entry{}, ledger.ErrClosed
	}
	return m.Store.Get(ctx, k)
}

func (m *mortal) Scan(ctx context.Context, prefix, after ledger.Key, limit int) ([]ledger.Entry, error) {
	if m.over() {
		return nil, ledger.ErrClosed
	}
	return m.Store.Scan(ctx, prefix, after, limit)
}

func (m *mortal) Commit(ctx context.Context, writes ...ledger.Write) error {
	if m.over() {
		return ledger.ErrClosed
	}
	m.mu.Lock()
	last, made := m.dying, m.made
	m.dead = m.dead || last
	m.mu.Unlock()
	if last && !made {
		return &ledger.FailedError{Err: errCrash}
	}
	err := m.Store.Commit(ctx, writes...)
	if last {
		return &ledger.FailedError{Err: errors.Join(errCrash, err)}
	}
	return err
}
