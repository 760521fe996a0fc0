package ledgertest

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// RunShared runs what is promised when several callers share a ledger: whatever
// they see can be explained by their calls having been made one after
// another, each at some moment between its beginning and its end. open returns the
// stores of so many instances on one new, empty ledger; where one process has a ledger
// for itself they are the same store.
func RunShared(t *testing.T, open func(t *testing.T, instances int) []ledger.Store) {
	t.Run("StoreHistoriesAreLinearizable", func(t *testing.T) { storeHistoriesAreLinearizable(t, open(t, instances)) })
	t.Run("PaymentHistoriesAreLinearizable", func(t *testing.T) { paymentHistoriesAreLinearizable(t, open(t, instances)) })
	t.Run("AbsenceIsPartOfACommit", func(t *testing.T) { absenceIsPartOfACommit(t, open(t, 2)) })
	t.Run("CommitsAreSeenByTheOthers", func(t *testing.T) { commitsAreSeenByTheOthers(t, open(t, instances)) })
	t.Run("ExposuresStayWithinTheirCaps", func(t *testing.T) { exposuresStayWithinTheirCaps(t, open(t, instances)) })
	t.Run("InterleavedExposuresStayWithinTheirCaps", func(t *testing.T) { interleavedExposuresStayWithinTheirCaps(t, open(t, instances)) })
	t.Run("ANameIsOfOnePayment", func(t *testing.T) { aNameIsOfOnePayment(t, open(t, instances)) })
	t.Run("SignInsAreUsedOnce", func(t *testing.T) { signInsAreUsedOnce(t, open(t, instances)) })
	t.Run("TenantsShareTheirDays", func(t *testing.T) { tenantsShareTheirDays(t, open(t, instances)) })
	t.Run("PassesAreUsedAsOftenAsBought", func(t *testing.T) { passesAreUsedAsOftenAsBought(t, open(t, instances)) })
	t.Run("OppositeOrdersDoNotBlock", func(t *testing.T) { oppositeOrdersDoNotBlock(t, open(t, instances)) })
}

const (
	instances = 3

	// repeats is how often each of the scripts that rapid draws is run: a hundred
	// of them make three hundred histories.
	repeats = 3

	// patience is how long the search for an explanation may take: short
	// histories take milliseconds.
	patience = time.Minute
)

// A call is what a caller asked for, in words that the model understands; its
// answer is put into words, too, so that both can be compared and printed.
type call[I any] struct {
	input I
	do    func() (answer string)
}

// history runs the scripts of all callers at the same time and returns what
// each call was answered, and when.
func history[I any](scripts [][]call[I]) []porcupine.Operation {
	begin := time.Now()
	done := make([][]porcupine.Operation, len(scripts))
	parallel(len(scripts), func(caller int) {
		for _, c := range scripts[caller] {
			from := time.Since(begin)
			answer := c.do()
			done[caller] = append(done[caller], porcupine.Operation{
				ClientId: caller, Input: c.input, Output: answer, Call: int64(from), Return: int64(time.Since(begin)),
			})
		}
	})
	return slices.Concat(done...)
}

// explains reports whether some order of the calls of h explains their answers.
func explains(model porcupine.Model, h []porcupine.Operation) bool {
	return porcupine.CheckOperationsTimeout(model, h, patience) == porcupine.Ok
}

func mustExplain(t *rapid.T, model porcupine.Model, h []porcupine.Operation) {
	if explains(model, h) {
		return
	}
	slices.SortFunc(h, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var lines strings.Builder
	for _, o := range h {
		fmt.Fprintf(&lines, "%9d to %9d ns, caller %d: %+v: %s\n", o.Call, o.Return, o.ClientId, o.Input, o.Output)
	}
	t.Fatalf("no order of these calls explains the answers:\n%s", lines.String())
}

// A storeCall is a commit, a scan, or a get of one key.
type storeCall struct {
	writes []ledger.Write
	scan   bool
	key    ledger.Key // of a get; the prefix of a scan
}

// on makes the call and puts the answer into words.
func (c storeCall) on(s ledger.Store) string {
	switch {
	case c.scan:
		page, err := s.Scan(ctx, c.key, "", ledger.MaxScan)
		if err != nil {
			return err.Error()
		}
		return inWords(page...)
	case c.key != "":
		e, err := s.Get(ctx, c.key)
		if errors.Is(err, ledger.ErrNotFound) {
			return inWords()
		}
		if err != nil {
			return err.Error()
		}
		return inWords(e)
	}
	err := s.Commit(ctx, c.writes...)
	var conflict *ledger.ConflictError
	switch {
	case err == nil:
		return "committed"
	case errors.As(err, &conflict):
		return "conflict about " + inWords(conflict.Have)
	}
	return err.Error()
}

// on is the same on the sequential model. It returns the next state.
func (r reference) on(c storeCall) (answer string, next reference) {
	switch {
	case c.scan:
		return inWords(r.scan(c.key, "", ledger.MaxScan)...), r
	case c.key != "":
		if e, exists := r[c.key]; exists {
			return inWords(e), r
		}
		return inWords(), r
	}
	next = maps.Clone(r)
	if refused := next.commit(c.writes); refused != nil {
		have := r[refused.Key]
		have.Key = refused.Key
		return "conflict about " + inWords(have), r
	}
	return "committed", next
}

func inWords(entries ...ledger.Entry) string {
	var words []string
	for _, e := range entries {
		words = append(words, fmt.Sprintf("%s v%d %q", e.Key, e.Version, e.Value))
	}
	return "[" + strings.Join(words, ", ") + "]"
}

var storeModel = porcupine.Model{
	Init: func() any { return reference{} },
	Step: func(state, input, output any) (bool, any) {
		answer, next := state.(reference).on(input.(storeCall))
		return answer == output, next
	},
	Equal: func(a, b any) bool { return maps.EqualFunc(a.(reference), b.(reference), equal) },
}

// storeHistoriesAreLinearizable lets several instances commit, get and scan
// the same few keys.
func storeHistoriesAreLinearizable(t *testing.T, stores []ledger.Store) {
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		drawn := drawStoreScripts(rt)
		for range repeats {
			run++
			root := ledger.Key(fmt.Sprintf("history/%d/", run))
			scripts := make([][]call[storeCall], len(drawn))
			for caller, script := range drawn {
				s := stores[caller%len(stores)]
				for _, c := range script {
					c := c.below(root)
					scripts[caller] = append(scripts[caller], call[storeCall]{c, func() string { return c.on(s) }})
				}
			}
			mustExplain(rt, storeModel, history(scripts))
		}
	})
}

// below returns c with its keys below root.
func (c storeCall) below(root ledger.Key) storeCall {
	writes := slices.Clone(c.writes)
	for i := range writes {
		writes[i].Key = root + writes[i].Key
	}
	c.writes = writes
	if c.scan || c.key != "" {
		c.key = root + c.key
	}
	return c
}

func drawStoreScripts(rt *rapid.T) [][]storeCall {
	keys := rapid.SampledFrom([]ledger.Key{"a", "b", "c"})
	value := 0
	writes := rapid.Custom(func(rt *rapid.T) storeCall {
		var c storeCall
		for _, k := range rapid.SliceOfNDistinct(keys, 1, 3, rapid.ID).Draw(rt, "keys") {
			w := ledger.Write{Key: k, If: rapid.SampledFrom([]uint64{ledger.Absent, ledger.Absent, 1, 1, 2, 3, ledger.AnyVersion}).Draw(rt, "if")}
			if rapid.IntRange(0, 3).Draw(rt, "delete") > 0 {
				value++
				w.Value = fmt.Append(nil, value)
			}
			c.writes = append(c.writes, w)
		}
		return c
	})
	calls := rapid.OneOf(writes, writes, writes,
		rapid.Map(keys, func(k ledger.Key) storeCall { return storeCall{key: k} }),
		rapid.Just(storeCall{scan: true}))
	return rapid.SliceOfN(rapid.SliceOfN(calls, 1, 5), 2, 2*instances).Draw(rt, "scripts")
}

// A paymentCall is what an instance does with a payment.
type paymentCall struct {
	what    string // claim, work, release or get
	payment payment.Key
	owner   string
}

// A paymentState is what the sequential model knows of a payment.
type paymentState struct {
	state  ledger.State // "" before the first claim
	owner  string
	claims int
}

func stateOf(r *ledger.Record) paymentState { return paymentState{r.State, r.Owner, r.Claims} }

func (s paymentState) String() string {
	return fmt.Sprintf("%q of %s, claim %d", s.state, s.owner, s.claims)
}

// A refusedError is the answer to a change to a payment of somebody else.
type refusedError struct{ have paymentState }

func (e refusedError) Error() string { return "refused: " + e.have.String() }

// change is what work and release do: only to what its owner has claimed.
func (c paymentCall) change(r *ledger.Record) error {
	next, allowed := stateOf(r).after(c)
	if !allowed {
		return refusedError{stateOf(r)}
	}
	return r.To(next.state)
}

// after returns the state of a payment after work or release.
func (s paymentState) after(c paymentCall) (next paymentState, allowed bool) {
	next = s
	switch {
	case s.owner != c.owner || !s.state.Working():
		return s, false
	case c.what == "release":
		next.state = ledger.Released
	case s.state == ledger.Reserved:
		next.state = ledger.Executing
	case s.state == ledger.Executing:
		next.state = ledger.Executed
	default:
		return s, false
	}
	return next, true
}

// on makes the call and puts the answer into words.
func (c paymentCall) on(l *ledger.Ledger) string {
	var r ledger.Record
	var err error
	switch c.what {
	case "claim":
		r, err = l.Claim(ctx, ledger.Record{Key: c.payment, State: ledger.Reserved, Network: "eip155:84532", Request: []byte("{}")}, time.Hour)
	case "get":
		r, err = l.Get(ctx, c.payment)
	default:
		r, err = l.Update(ctx, c.payment, c.change)
	}
	var held *ledger.HeldError
	switch {
	case errors.As(err, &held):
		return "held: " + stateOf(&held.Record).String()
	case errors.Is(err, ledger.ErrNotFound):
		return "not found"
	case err != nil:
		return err.Error()
	}
	return stateOf(&r).String()
}

// on is the same on the sequential model.
func (s paymentState) on(c paymentCall) (answer string, next paymentState) {
	switch {
	case c.what == "claim" && (s.state == "" || s.state == ledger.Released):
		next = paymentState{ledger.Reserved, c.owner, s.claims + 1}
		return next.String(), next
	case c.what == "claim":
		return "held: " + s.String(), s
	case s.state == "":
		return "not found", s
	case c.what == "get":
		return s.String(), s
	}
	next, allowed := s.after(c)
	if !allowed {
		return refusedError{s}.Error(), s
	}
	return next.String(), next
}

var paymentModel = porcupine.Model{
	Partition: byPayment,
	Init:      func() any { return paymentState{} },
	Step: func(state, input, output any) (bool, any) {
		answer, next := state.(paymentState).on(input.(paymentCall))
		return answer == output, next
	},
}

// paymentHistoriesAreLinearizable lets several instances claim, work on,
// release and read the same two payments.
func paymentHistoriesAreLinearizable(t *testing.T, stores []ledger.Store) {
	now := time.Unix(1_790_000_000, 0)
	var ledgers []*ledger.Ledger
	for i, s := range stores {
		ledgers = append(ledgers, ledger.New(s, fmt.Sprint("instance ", i), func() time.Time { return now }))
	}
	calls := rapid.Custom(func(rt *rapid.T) paymentCall {
		return paymentCall{
			what:    rapid.SampledFrom([]string{"claim", "claim", "work", "release", "release", "get"}).Draw(rt, "what"),
			payment: payment.Key{rapid.SampledFrom([]byte{0, 1}).Draw(rt, "payment")},
		}
	})
	run := uint32(0)
	rapid.Check(t, func(rt *rapid.T) {
		drawn := rapid.SliceOfN(rapid.SliceOfN(calls, 1, 6), 2, 2*instances).Draw(rt, "scripts")
		for range repeats {
			run++
			scripts := make([][]call[paymentCall], len(drawn))
			for caller, script := range drawn {
				l := ledgers[caller%len(ledgers)]
				for _, c := range script {
					c.owner = l.Owner()
					binary.BigEndian.PutUint32(c.payment[len(c.payment)-4:], run)
					scripts[caller] = append(scripts[caller], call[paymentCall]{c, func() string { return c.on(l) }})
				}
			}
			mustExplain(rt, paymentModel, history(scripts))
		}
	})
}

func byPayment(h []porcupine.Operation) [][]porcupine.Operation {
	parts := make(map[payment.Key][]porcupine.Operation)
	for _, o := range h {
		k := o.Input.(paymentCall).payment
		parts[k] = append(parts[k], o)
	}
	return slices.Collect(maps.Values(parts))
}

// absenceIsPartOfACommit makes commits each of which takes away what the other
// brings: only one of the two can have been the last.
func absenceIsPartOfACommit(t *testing.T, stores []ledger.Store) {
	for round := range 100 {
		a, b := ledger.Key(fmt.Sprintf("skew/%d/a", round)), ledger.Key(fmt.Sprintf("skew/%d/b", round))
		condition := ledger.AnyVersion
		if round%2 == 0 {
			condition = ledger.Absent
		}
		var errs [2]error
		parallel(2, func(i int) {
			mine, other := a, b
			if i == 1 {
				mine, other = b, a
			}
			errs[i] = stores[i].Commit(ctx, remove(other, condition), create(mine, ""))
		})
		page, err := stores[0].Scan(ctx, ledger.Key(fmt.Sprintf("skew/%d/", round)), "", 2)
		if err != nil || len(page) != 1 {
			t.Fatalf("round %d: afterwards there are %v, %v, want one entry; the commits returned %v", round, page, err, errs)
		}
		refused := 0
		for _, err := range errs {
			var conflict *ledger.ConflictError
			switch {
			case errors.As(err, &conflict):
				refused++
			case err != nil:
				t.Fatal(err)
			}
		}
		if condition == ledger.Absent && refused != 1 || condition == ledger.AnyVersion && refused != 0 {
			t.Fatalf("round %d: %d commits were refused: %v", round, refused, errs)
		}
	}
}

func commitsAreSeenByTheOthers(t *testing.T, stores []ledger.Store) {
	for round := range 100 {
		key := ledger.Key(fmt.Sprintf("seen/%d", round))
		writer := round % len(stores)
		mustCommit(t, stores[writer], create(key, "1"))
		for i, s := range stores {
			wantEntry(t, s, key, 1, "1")
			if page, err := s.Scan(ctx, key, "", 1); err != nil || len(page) != 1 {
				t.Fatalf("instance %d does not list what instance %d has committed: %v, %v", i, writer, page, err)
			}
		}
		mustCommit(t, stores[(round+1)%len(stores)], replace(key, 1, "2"))
		wantConflict(t, stores[writer].Commit(ctx, replace(key, 1, "3")), key, 2, "2")
	}
}

// oppositeOrdersDoNotBlock has all instances write the same keys, each commit in
// an order of its own.
func oppositeOrdersDoNotBlock(t *testing.T, stores []ledger.Store) {
	const callers, each, keys = 12, 15, 20
	parallel(callers, func(caller int) {
		for i := range each {
			random := rand.New(rand.NewPCG(uint64(caller), uint64(i))) //nolint:gosec // a test that can be repeated
			var writes []ledger.Write
			for _, k := range random.Perm(keys) {
				writes = append(writes, set(ledger.Key(fmt.Sprintf("order/%d", k)), "x"))
			}
			if err := stores[caller%len(stores)].Commit(ctx, writes...); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for k := range keys {
		wantEntry(t, stores[0], ledger.Key(fmt.Sprintf("order/%d", k)), callers*each, "x")
	}
}
