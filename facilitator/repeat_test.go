package facilitator_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A bureau is a facilitator elsewhere and the store of those who ask it. Time
// in it is that of a synctest bubble.
type bureau struct {
	t     *testing.T
	fake  *facilitatortest.Fake
	store ledger.Store
	began time.Time

	mu     sync.Mutex
	asked  []time.Duration // guarded by mu: when Settle was called, since the start
	flying int             // guarded by mu: calls under way
	most   int             // guarded by mu: the most of them at once
	answer func(ctx context.Context) error
}

var errPending = &payment.UnavailableError{Doing: "settling", Pending: true, Transaction: "0x01"}

func newBureau(t *testing.T) *bureau {
	b := &bureau{t: t, fake: &facilitatortest.Fake{}, store: ledger.NewMemory(), began: time.Now()}
	b.fake.Settling = func(ctx context.Context) error {
		b.mu.Lock()
		b.asked = append(b.asked, time.Since(b.began))
		b.flying++
		b.most = max(b.most, b.flying)
		answer := b.answer
		b.mu.Unlock()
		defer func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.flying--
		}()
		if answer == nil {
			return nil
		}
		return answer(ctx)
	}
	return b
}

// answers sets what Settle answers from now on; nil settles.
func (b *bureau) answers(answer func(ctx context.Context) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

func pending(context.Context) error { return errPending }

func hanging(ctx context.Context) error {
	<-ctx.Done()
	return &payment.UnavailableError{Doing: "waiting", Err: ctx.Err(), Pending: true}
}

// atOnce returns the most calls that there were at one time.
func (b *bureau) atOnce() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most
}

func (b *bureau) calls() []time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asked)
}

// instance is a process that asks. alone says that it is the only one.
func (b *bureau) instance(owner string, alone bool) *facilitator.Journal {
	return &facilitator.Journal{
		Facilitator: b.fake, Ledger: ledger.New(b.store, owner, time.Now), Alone: alone,
		Jitter: func(time.Duration) time.Duration { return 0 },
	}
}

// A bill is a payment that a till has claimed.
type bill struct {
	payment *payment.Payment
	offer   *payment.Offer
	key     payment.Key
}

// claim signs a payment that is valid for an hour and claims it.
func (b *bureau) claim(j *facilitator.Journal) *bill {
	b.t.Helper()
	key, err := crypto.GenerateKey()
	if err != nil {
		b.t.Fatal(err)
	}
	o := facilitatortest.Offer(b.t, 1000, common.HexToAddress("0x05"))
	o.Resource = "https://shop.example/a?b=1&c=<2>" // which JSON may write in more than one way
	p := facilitatortest.Payment(b.t, payment.V2, &o, facilitatortest.Authorize(b.t, key, &o, time.Now().Unix(), 3600))
	p.Binding = payment.Fingerprint{1}
	id, err := facilitator.Identify(p, &o)
	if err != nil {
		b.t.Fatal(err)
	}
	request, err := payment.EncodeRequest(p, &o, o.Amount)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := j.Ledger.Claim(b.t.Context(), ledger.Record{
		Key: id.Key, State: ledger.Reserved, Binding: p.Binding, Proof: id.Proof, Network: o.Network(),
		Payer: id.Payer, Charge: o.Amount.Units(), Until: "included", Request: request,
	}, time.Minute); err != nil {
		b.t.Fatal(err)
	}
	return &bill{p, &o, id.Key}
}

// settle asks for a bill as a payer's request does, with a deadline of ten
// seconds.
func (b *bureau) settle(j *facilitator.Journal, bill *bill) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := j.Settle(ctx, bill.payment, bill.offer, bill.offer.Amount)
	return err
}

func (b *bureau) state(bill *bill) ledger.State {
	b.t.Helper()
	r, err := ledger.New(b.store, "auditor", time.Now).Get(b.t.Context(), bill.key)
	if err != nil {
		b.t.Fatal(err)
	}
	return r.State
}

func (b *bureau) want(bill *bill, state ledger.State, transfers int) {
	b.t.Helper()
	if got := b.state(bill); got != state {
		b.t.Errorf("it is %s, want %s", got, state)
	}
	if got := b.fake.Transfers(); got != transfers {
		b.t.Errorf("%d transfers, want %d", got, transfers)
	}
}

// at returns moments in seconds.
func at(seconds ...int) []time.Duration {
	var moments []time.Duration
	for _, s := range seconds {
		moments = append(moments, time.Duration(s)*time.Second)
	}
	return moments
}

func TestLostAnswersAreAskedForAgainWithoutAPayer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBureau(t)
		j := b.instance("one", true)
		j.Start()
		defer j.Stop()
		bill := b.claim(j)
		// The facilitator has settled, and three answers are lost.
		lost := 3
		b.fake.Settled = func(context.Context) error {
			if lost--; lost >= 0 {
				return &payment.UnavailableError{Doing: "reading the answer", Err: io.ErrUnexpectedEOF, Pending: true}
			}
			return nil
		}
		wantUnavailable(t, b.settle(j, bill), true)
		b.want(bill, ledger.Intent, 1)
		time.Sleep(time.Minute)
		b.want(bill, ledger.Settled, 1)
		if got, want := b.calls(), at(0, 1, 3, 7); !slices.Equal(got, want) {
			t.Errorf("asked at %v, want %v", got, want)
		}
		if err := b.settle(j, bill); err != nil {
			t.Error(err)
		}
		if len(b.calls()) != 4 {
			t.Error("a settled payment is asked for again")
		}
	})
}

func TestPendingSettlementsAreAskedForMoreAndMoreSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBureau(t)
		j := b.instance("one", true)
		j.Start()
		defer j.Stop()
		bill := b.claim(j)
		b.answers(pending)
		wantUnavailable(t, b.settle(j, bill), true)
		time.Sleep(215 * time.Second)
		if got, want := b.calls(), at(0, 1, 3, 7, 15, 31, 91, 151, 211); !slices.Equal(got, want) {
			t.Errorf("asked at %v, want %v", got, want)
		}
		b.want(bill, ledger.Intent, 0)
		b.answers(nil)
		time.Sleep(time.Minute)
		b.want(bill, ledger.Settled, 1)
	})
}

// Whatever a facilitator answers to a repetition, only a yes is a decision.
func TestRefusedRepetitionsProveNothing(t *testing.T) {
	for _, refusal := range []error{
		payment.Invalid(payment.EVMNonceUsed, ""), payment.Invalid(payment.EVMInsufficientBalance, ""), payment.Invalid("expired", ""),
		&payment.UnavailableError{Doing: "dialing"}, errors.New("a bug"),
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBureau(t)
			j := b.instance("one", true)
			j.Start()
			defer j.Stop()
			bill := b.claim(j)
			b.answers(pending)
			wantUnavailable(t, b.settle(j, bill), true)
			b.answers(func(context.Context) error { return refusal })
			time.Sleep(3 * time.Minute)
			b.want(bill, ledger.Intent, 0)
			b.answers(nil)
			time.Sleep(time.Minute)
			b.want(bill, ledger.Settled, 1)
		})
	}
}

// A first refusal that says that the payment was used already leaves open by
// whom: anybody may submit it.
func TestRefusalBecauseOfAnEarlierUseIsNoNo(t *testing.T) {
	for _, reason := range []payment.Reason{payment.EVMNonceUsed, payment.DuplicateSettlement} {
		synctest.Test(t, func(t *testing.T) {
			b := newBureau(t)
			j := b.instance("one", true)
			j.Start()
			defer j.Stop()
			bill := b.claim(j)
			b.answers(func(context.Context) error { return payment.Invalid(reason, "") })
			wantUnavailable(t, b.settle(j, bill), true)
			b.want(bill, ledger.Intent, 0)
		})
	}
}

func TestNextProcessTakesUpWhatIsLeft(t *testing.T) {
	for name, alone := range map[string]bool{"alone": true, "beside others": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBureau(t)
				dead := b.instance("one", true) // it is never started, and gone after this
				bill := b.claim(dead)
				b.answers(pending)
				wantUnavailable(t, b.settle(dead, bill), true)
				if !alone {
					time.Sleep(20 * time.Second) // its lease has lapsed
				}
				next := b.instance("two", alone)
				b.answers(nil)
				next.Start()
				defer next.Stop()
				synctest.Wait()
				b.want(bill, ledger.Settled, 1)
				if got := len(b.calls()); got != 2 {
					t.Errorf("%d requests, want 2", got)
				}
			})
		})
	}
}

func TestFreshLeasesOfOthersAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBureau(t)
		dead := b.instance("one", false)
		bill := b.claim(dead)
		b.answers(pending)
		wantUnavailable(t, b.settle(dead, bill), true)
		next := b.instance("two", false)
		b.answers(nil)
		next.Start()
		defer next.Stop()
		time.Sleep(14 * time.Second)
		b.want(bill, ledger.Intent, 0)
		time.Sleep(2 * time.Second)
		b.want(bill, ledger.Settled, 1)
	})
}

func TestTwoInstancesDoNotAskTwiceAsOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBureau(t)
		one, two := b.instance("one", false), b.instance("two", false)
		one.Start()
		two.Start()
		defer two.Stop()
		bill := b.claim(one)
		b.answers(pending)
		wantUnavailable(t, b.settle(one, bill), true)
		time.Sleep(30 * time.Minute)
		if got := len(b.calls()); got < 30 || got > 36 {
			t.Errorf("%d requests in half an hour", got)
		}
		before := len(b.calls())
		one.Stop() // it leaves its lease
		time.Sleep(2*time.Minute + time.Second)
		if len(b.calls()) == before {
			t.Error("nobody has taken over")
		}
		b.answers(nil)
		time.Sleep(2 * time.Minute)
		b.want(bill, ledger.Settled, 1)
	})
}

func TestDeadInstanceIsReplacedWhenItsLeaseLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBureau(t)
		frozen := make(chan struct{})
		one, two := b.instance("one", false), b.instance("two", false)
		bill := b.claim(one)
		b.answers(pending)
		wantUnavailable(t, b.settle(one, bill), true)
		// It dies in its first repetition.
		b.answers(func(context.Context) error {
			<-frozen
			return errPending
		})
		one.Alone = true
		one.Start()
		time.Sleep(time.Minute)
		b.answers(nil)
		two.Start()
		time.Sleep(3 * time.Minute)
		b.want(bill, ledger.Settled, 1)
		close(frozen)
		one.Stop()
		two.Stop()
		b.want(bill, ledger.Settled, 1)
	})
}

// The payer asks while its settlement is being repeated: it waits for that
// answer, and nothing is asked twice at once.
func TestPayerWaitsForARepetitionUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBureau(t)
		j := b.instance("one", true)
		j.Start()
		defer j.Stop()
		bill := b.claim(j)
		b.answers(pending)
		wantUnavailable(t, b.settle(j, bill), true)
		b.answers(func(context.Context) error {
			time.Sleep(5 * time.Second)
			return nil
		})
		time.Sleep(2 * time.Second) // it is under way
		var group sync.WaitGroup
		for range 5 {
			group.Go(func() {
				if err := b.settle(j, bill); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		b.want(bill, ledger.Settled, 1)
		if got := len(b.calls()); got != 2 || b.atOnce() != 1 {
			t.Errorf("%d requests, %d at once", got, b.atOnce())
		}
		// And one that hangs keeps the payer no longer than its deadline.
		slow := b.claim(j)
		b.answers(hanging)
		began := time.Now()
		wantUnavailable(t, b.settle(j, slow), true)
		time.Sleep(1500 * time.Millisecond)
		wantUnavailable(t, b.settle(j, slow), true)
		if waited := time.Since(began); waited > 22*time.Second {
			t.Errorf("it took %s", waited)
		}
	})
}

func TestFewAreRepeatedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBureau(t)
		j := b.instance("one", true)
		var bills []*bill
		b.answers(pending)
		for range 50 {
			bills = append(bills, b.claim(j))
			wantUnavailable(t, b.settle(j, bills[len(bills)-1]), true)
		}
		b.answers(hanging)
		next := b.instance("two", true)
		next.Start()
		defer next.Stop()
		time.Sleep(3 * time.Minute)
		if most := b.atOnce(); most != 4 {
			t.Errorf("%d at once", most)
		}
		b.answers(nil)
		time.Sleep(5 * time.Minute)
		for _, bill := range bills {
			b.want(bill, ledger.Settled, 50)
		}
	})
}

// levels counts warnings.
type levels struct {
	slog.Handler
	warnings atomic.Int64
}

func (l *levels) Enabled(context.Context, slog.Level) bool { return true }
func (l *levels) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn {
		l.warnings.Add(1)
	}
	return nil
}

func TestExpiredPaymentsAreAskedForSeldomAndWarnedAboutOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBureau(t)
		j := b.instance("one", true)
		log := &levels{}
		j.Logger = slog.New(log)
		j.Start()
		defer j.Stop()
		bill := b.claim(j) // valid for an hour
		b.answers(pending)
		wantUnavailable(t, b.settle(j, bill), true)
		time.Sleep(2 * time.Hour)
		if got := len(b.calls()); got < 110 || log.warnings.Load() != 0 {
			t.Errorf("%d requests and %d warnings in time", got, log.warnings.Load())
		}
		time.Sleep(2 * time.Minute)
		before := len(b.calls())
		time.Sleep(24 * time.Hour)
		if got := len(b.calls()) - before; got < 23 || got > 25 || log.warnings.Load() != 1 {
			t.Errorf("%d requests in a day, %d warnings in all", got, log.warnings.Load())
		}
		b.want(bill, ledger.Intent, 0)
		b.answers(nil)
		time.Sleep(time.Hour)
		b.want(bill, ledger.Settled, 1)
	})
}

func TestStopEndsARepetitionThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBureau(t)
		j := b.instance("one", true)
		j.Start()
		bill := b.claim(j)
		b.answers(pending)
		wantUnavailable(t, b.settle(j, bill), true)
		b.answers(hanging)
		time.Sleep(2 * time.Second)
		began := time.Now()
		j.Stop()
		if waited := time.Since(began); waited != 0 {
			t.Errorf("it took %s", waited)
		}
		// The next one, of the same process, does not wait for the lease.
		b.answers(nil)
		next := b.instance("one", true)
		next.Start()
		defer next.Stop()
		time.Sleep(time.Second)
		b.want(bill, ledger.Settled, 1)
	})
}

// What is settled and delivered is not looked at for ever.
func TestFinishedPaymentsAreArchived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBureau(t)
		j := b.instance("one", true)
		j.Start()
		defer j.Stop()
		delivered, owed := b.claim(j), b.claim(j)
		for _, bill := range []*bill{delivered, owed} {
			if err := b.settle(j, bill); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := j.Ledger.Update(t.Context(), delivered.key, func(r *ledger.Record) error {
			r.Delivery = ledger.Delivered
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Minute)
		b.want(delivered, ledger.Settled, 2)
		time.Sleep(20 * time.Minute)
		b.want(delivered, ledger.Archived, 2)
		b.want(owed, ledger.Settled, 2) // somebody has paid and got nothing
		if err := b.settle(j, delivered); err != nil || len(b.calls()) != 2 {
			t.Errorf("again: %v, %d requests", err, len(b.calls()))
		}
	})
}

func TestPausesAreNotAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBureau(t)
		j := b.instance("one", true)
		j.Jitter = nil
		j.Start()
		defer j.Stop()
		b.answers(pending)
		for range 4 {
			wantUnavailable(t, b.settle(j, b.claim(j)), true)
		}
		time.Sleep(time.Second)
		calls := b.calls()
		if len(calls) != 8 {
			t.Fatalf("%d requests", len(calls))
		}
		different := map[time.Duration]bool{}
		for _, at := range calls[4:] {
			different[at] = true
			if at < 750*time.Millisecond || at > time.Second {
				t.Errorf("after %s", at)
			}
		}
		if len(different) < 2 {
			t.Errorf("at %v", calls)
		}
	})
}

// Over HTTP, and after a restart, the repeated request has the same bytes.
func TestRepeatedRequestsAreIdentical(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var bodies []string // guarded by mu
	enough := make(chan struct{})
	fake := &facilitatortest.Fake{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		bodies = append(bodies, string(body))
		n := len(bodies)
		mu.Unlock()
		if n < 3 { // lost after acceptance
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		(&facilitator.Handler{Facilitator: fake}).ServeHTTP(w, r)
		if n == 3 {
			close(enough)
		}
	}))
	t.Cleanup(server.Close)
	b := &bureau{t: t, store: ledger.NewMemory()}
	instance := func(owner string) *facilitator.Journal {
		return &facilitator.Journal{Facilitator: client(t, server.URL), Ledger: ledger.New(b.store, owner, time.Now), Alone: true}
	}
	one := instance("one")
	one.Start()
	bill := b.claim(one)
	wantUnavailable(t, b.settle(one, bill), true)
	wantUnavailable(t, b.settle(one, bill), true)
	one.Stop()
	two := instance("two")
	two.Start()
	defer two.Stop()
	select {
	case <-enough:
	case <-time.After(20 * time.Second):
		t.Fatal("it was not repeated")
	}
	for deadline := time.Now().Add(20 * time.Second); b.state(bill) != ledger.Settled; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it is %s", b.state(bill))
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(bodies) != 3 || bodies[0] != bodies[1] || bodies[1] != bodies[2] {
		t.Errorf("%d requests:\n%s", len(bodies), strings.Join(bodies, "\n"))
	}
}
