package till_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A life is a process that dies after so many steps: what it stores, what it
// sends, and what it asks the facilitator are one each, before and after.
type life struct {
	mu    sync.Mutex
	left  int // steps; guarded by mu, as is what follows
	dead  bool
	die   context.CancelFunc // ends the connections
	later [][]ledger.Write   // not on disk yet
}

var errDead = errors.New("this process is dead")

// step reports whether the process is still alive after one more step.
func (l *life) step() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dead && l.left == 0 {
		l.dead, l.later = true, nil
		l.die()
	}
	l.left--
	return !l.dead
}

// A disk is a store that outlives a process. What was handed to Later just
// before is lost with it.
type disk struct {
	*life
	ledger.Store
}

func (d *disk) Get(ctx context.Context, k ledger.Key) (ledger.Entry, error) {
	if d.isDead() {
		return ledger.Entry{}, errDead
	}
	return d.Store.Get(ctx, k)
}

func (d *disk) Commit(ctx context.Context, writes ...ledger.Write) error {
	if len(writes) == 1 && strings.HasPrefix(string(writes[0].Key), "alive/") && !d.isDead() {
		return d.Store.Commit(ctx, writes...) // it is no step of the payment's
	}
	if !d.step() {
		return errDead
	}
	d.catchUp()
	err := d.Store.Commit(ctx, writes...)
	if !d.step() {
		return errDead
	}
	return err
}

func (d *disk) Later(writes ...ledger.Write) {
	if !d.step() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.later = append(d.later, writes)
	time.AfterFunc(500*time.Millisecond, d.catchUp)
}

// catchUp brings to the store what waits.
func (d *disk) catchUp() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ; len(d.later) > 0; d.later = d.later[1:] {
		d.Store.Later(d.later[0]...)
	}
}

func (l *life) isDead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

// A mortalFacilitator is reached by a process as long as that lives.
type mortalFacilitator struct {
	*life
	payment.Facilitator
}

func (f *mortalFacilitator) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	if !f.step() {
		return nil, &payment.UnavailableError{Doing: "settling", Err: errDead}
	}
	s, err := f.Facilitator.Settle(ctx, p, o, charge)
	if !f.step() {
		return nil, &payment.UnavailableError{Doing: "settling", Err: errDead, Pending: true}
	}
	return s, err
}

// A line is a connection to a payer. What is flushed has come; the rest comes
// when the request has ended, or is lost with the process.
type line struct {
	*life
	header  http.Header
	status  int
	waiting bytes.Buffer
	came    []parcel
}

// A parcel is what came at one time.
type parcel struct {
	at   time.Time
	data string
}

func (c *line) Header() http.Header { return c.header }

func (c *line) WriteHeader(status int) {
	if status >= 200 && c.status == 0 {
		c.status = status
	}
}

func (c *line) Write(b []byte) (int, error) {
	if !c.step() {
		return 0, errDead
	}
	c.WriteHeader(http.StatusOK)
	return c.waiting.Write(b)
}

func (c *line) FlushError() error {
	if !c.step() {
		return errDead
	}
	c.came = append(c.came, parcel{time.Now(), c.waiting.String()})
	c.waiting.Reset()
	return nil
}

// A drama is one payment at a shop whose processes die.
type drama struct {
	t      *testing.T
	dice   *rand.Rand
	tariff *meter.Tariff
	route  *till.Route
	fake   *facilitatortest.Fake
	store  *ledger.Memory
	note   *note
	began  time.Time // when the upstream was called
	over   time.Time // when its answer had ended
	runs   int
	lives  int
	shared bool // other processes may be alive, as far as each of them knows
}

// upstream sends events, in its own time.
func (d *drama) upstream(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
	d.runs++
	d.began = time.Now()
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range 3 + d.dice.IntN(6) {
		select {
		case <-time.After(time.Duration(d.dice.IntN(1500)) * time.Millisecond):
		case <-r.Context().Done():
			return r.Context().Err()
		}
		if _, err := fmt.Fprintf(w, "data: %d\n\n", i); err != nil {
			return err
		}
		if d.dice.IntN(3) > 0 {
			if err := http.NewResponseController(w).Flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// live runs a process that serves the payment after a while, until it dies or
// for a long time, and returns what came of its answer. With gone the payer
// goes away in the middle.
func (d *drama) live(steps int, after time.Duration, gone bool) (*line, *life) {
	d.lives++
	ctx, die := context.WithCancel(d.t.Context())
	defer die()
	l := &life{left: steps, die: die}
	book := ledger.New(&disk{l, d.store}, fmt.Sprint("process", d.lives), time.Now)
	if d.shared {
		book = ledger.NewShared(&disk{l, d.store}, fmt.Sprint("process", d.lives), time.Now)
	}
	c := &line{life: l, header: http.Header{}}
	if d.shared {
		if book.Beat(ctx) != nil {
			return c, l
		}
		beating := make(chan struct{})
		defer func() { die(); <-beating }()
		go func() { // ends with ctx
			defer close(beating)
			for ctx.Err() == nil {
				time.Sleep(time.Second)
				_ = book.Beat(ctx) // it is dead, then
				_, _ = book.Recover(ctx, false)
			}
		}()
	} else if _, err := book.Recover(ctx, true); err != nil {
		return c, l
	}
	shop := &till.Till{
		Facilitator: &facilitator.Journal{Facilitator: &mortalFacilitator{l, d.fake}, Ledger: book}, Ledger: book, Every: 10 * time.Second,
	}
	shop.Start()
	time.Sleep(after)
	if gone {
		leave := time.AfterFunc(time.Duration(d.dice.IntN(6000))*time.Millisecond, die)
		defer leave.Stop()
	}
	func() {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				panic(p)
			}
		}()
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, "https://shop.example/", bytes.NewReader([]byte("a prompt")))
		r.Header.Set(d.note.name, d.note.value)
		if _, err := shop.Serve(c, r, d.route, d.upstream); err == nil && !l.isDead() {
			c.came = append(c.came, parcel{time.Now(), c.waiting.String()})
		}
	}()
	d.over = time.Now()
	if !l.isDead() {
		time.Sleep(5 * time.Minute) // what is left to do in the background
	}
	shop.Stop()
	return c, l
}

// costs returns what it costs that had come by some time.
func (d *drama) costs(c *line, by time.Time) *big.Int {
	if by.After(d.over) {
		by = d.over
	}
	tap := d.tariff.NewTap(http.Header{"Content-Type": {"text/event-stream"}})
	any := false
	for _, p := range c.came {
		if !p.at.After(by) {
			_, _ = tap.Write([]byte(p.data)) // never fails
			any = true
		}
	}
	if !any {
		return new(big.Int)
	}
	usage := tap.Usage()
	return d.tariff.Charge(&usage, max(by.Sub(d.began), 0), d.route.Offers[0].Amount.Big())
}

// Wherever a process dies, the payer is charged once, no more than what came
// costs, and no less than what had come a few seconds before.
func TestCrashesChargeNoMoreThanWhatCame(t *testing.T) {
	t.Parallel()
	deaths := 0
	for seed := range uint64(12) {
		for steps, died := 0, true; died && !t.Failed(); steps++ {
			synctest.Test(t, func(t *testing.T) { died = dieAfter(t, seed, steps) })
			if died {
				deaths++
			}
		}
	}
	if deaths < 100 {
		t.Errorf("only %d processes have died", deaths)
	}
}

// dieAfter lets a process die after so many steps, has the next ones find what
// it left, and reports whether it has died.
func dieAfter(t *testing.T, seed uint64, steps int) bool {
	t.Helper()
	d := &drama{t: t, dice: rand.New(rand.NewPCG(seed, 1)), fake: &facilitatortest.Fake{}, store: ledger.NewMemory(), shared: seed >= 8}
	d.tariff = &meter.Tariff{Base: big.NewRat(10, 1), Rates: []meter.Rate{
		{Price: big.NewRat(100, 1), Of: meter.Events}, {Price: big.NewRat(7, 1), Of: meter.Seconds},
	}}
	usdc := facilitatortest.USDC(t)
	offers := []payment.Offer{facilitatortest.UptoOffer(t, 500+500*int64(seed%2), devchain.DeriveAccount("seller").Address)}
	prepared, err := (&payment.Challenge{Offers: offers}).Prepare()
	if err != nil {
		t.Fatal(err)
	}
	d.route = &till.Route{
		Challenge: prepared, Offers: offers, Mode: till.Metered, Tariffs: map[payment.Token]*meter.Tariff{usdc: d.tariff},
		Exposure: map[payment.Token]ledger.Caps{usdc: {Total: big.NewInt(1000)}},
	}
	permit := facilitatortest.Permit(t, devchain.DeriveAccount("payer").Key, &offers[0], time.Now().Unix(), 3600)
	name, value := facilitatortest.PermitHeader(t, &offers[0], permit)
	d.note = &note{&purse{name: name, value: value}, permit}

	first, l := d.live(steps, 0, seed%3 == 2)
	ran := d.runs
	most, least := d.costs(first, d.over), d.costs(first, d.over.Add(-4*time.Second))
	if l.isDead() {
		d.live(d.dice.IntN(12), 0, false) // which dies while it looks
	}
	again, _ := d.live(1<<30, time.Minute, false)

	where := fmt.Sprintf("seed %d, %d steps", seed, steps)
	book := ledger.New(d.store, "auditor", time.Now)
	r, err := book.Get(t.Context(), d.note.key())
	if err != nil {
		t.Fatal(err)
	}
	charge, _ := new(big.Int).SetString(r.Charge, 10)
	asked := d.fake.Charges(d.note.key())
	switch {
	case r.State == ledger.Released && r.Delivery == ledger.Undelivered && len(first.came) == 0 && len(asked) == 0: // the payer went away before anything came
	case len(asked) != 1 || asked[0] != r.Charge:
		t.Errorf("%s: the facilitator was asked for %v, the ledger has %s", where, asked, r.Charge)
	case r.State != ledger.Settled || r.Delivery != ledger.Delivered || r.Exposed != nil:
		t.Errorf("%s: the payment is %s and %s, exposed %v", where, r.State, r.Delivery, r.Exposed)
	case charge.Cmp(offers[0].Amount.Big()) > 0:
		t.Errorf("%s: the charge is %s", where, charge)
	case d.runs > 1 && len(first.came) > 0:
		t.Errorf("%s: it was served twice, and %d parcels came the first time", where, len(first.came))
	case d.runs == ran && ran > 0 && charge.Cmp(most) > 0:
		t.Errorf("%s: charged %s, what came costs %s", where, charge, most)
	case d.runs == ran && ran > 0 && charge.Cmp(least) < 0:
		t.Errorf("%s: charged %s, what had come 4 s before costs %s", where, charge, least)
	case d.runs == ran && ran > 0 && again.status != http.StatusGone:
		t.Errorf("%s: the same payment afterwards: %d", where, again.status)
	}
	if exposed, err := book.ExposedOn(t.Context(), payment.EVM(84532), usdc.Address); err != nil || exposed.Sign() != 0 {
		t.Errorf("%s: %s are exposed, %v", where, exposed, err)
	}
	return l.isDead()
}

// Time alone can use up the maximum.
func TestSlowStreamsAreCutWhenTheirTimeIsSpent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &drama{t: t, dice: rand.New(rand.NewPCG(1, 1)), fake: &facilitatortest.Fake{}, store: ledger.NewMemory()}
		d.tariff = &meter.Tariff{Rates: []meter.Rate{{Price: big.NewRat(100, 1), Of: meter.Seconds}}}
		usdc := facilitatortest.USDC(t)
		offers := []payment.Offer{facilitatortest.UptoOffer(t, 1000, devchain.DeriveAccount("seller").Address)}
		prepared, err := (&payment.Challenge{Offers: offers}).Prepare()
		if err != nil {
			t.Fatal(err)
		}
		d.route = &till.Route{
			Challenge: prepared, Offers: offers, Mode: till.Metered, Tariffs: map[payment.Token]*meter.Tariff{usdc: d.tariff},
			Exposure: map[payment.Token]ledger.Caps{usdc: {Total: big.NewInt(1000)}},
		}
		permit := facilitatortest.Permit(t, devchain.DeriveAccount("payer").Key, &offers[0], time.Now().Unix(), 3600)
		name, value := facilitatortest.PermitHeader(t, &offers[0], permit)
		book := ledger.New(d.store, "process", time.Now)
		shop := &till.Till{Facilitator: &facilitator.Journal{Facilitator: d.fake, Ledger: book}, Ledger: book}
		shop.Start()
		defer shop.Stop()
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://shop.example/", nil)
		r.Header.Set(name, value)
		began := time.Now()
		if _, err := shop.Serve(w, r, d.route, func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			if err := events(w, 1); err != nil {
				return err
			}
			<-r.Context().Done() // nothing more comes
			return nil
		}); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("it was cut after %s", took)
		}
		wantReceipt(t, w.Result().Trailer, "1000")
	})
}
