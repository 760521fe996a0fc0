package model

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// A Case is one line of the table: what is explored, and what must be found.
type Case struct {
	Name    string
	Config  Config
	Variant Variant
	Want    []Violation // at least these; none for the product
}

var (
	held  = [2]till.Mode{till.Held, till.Held}
	first = [2]till.Mode{till.First, till.First}
	mixed = [2]till.Mode{till.Held, till.First}
)

// Product are the cases of the product, each with all of its own faults.
func Product() []Case {
	chain := Config{Requests: 2, Instances: 1, Crashes: 2, Reorgs: 1, Strangers: true, Cancels: true}
	payer := Config{Requests: 2, Instances: 1, Crashes: 1, Strangers: true, Cancels: true, Drains: true, Bump: true, Until: payment.Finalized}
	leases := Config{Requests: 2, Instances: 2, Crashes: 1, Pauses: 1}
	remote := Config{Requests: 2, Instances: 2, Crashes: 1, Pauses: 1, Remote: Idempotent}
	with := func(c Config, modes [2]till.Mode, change ...func(*Config)) Config {
		c.Modes = modes
		for _, f := range change {
			f(&c)
		}
		return c
	}
	finalized := func(c *Config) { c.Until = payment.Finalized }
	return []Case{
		{Name: "held, until included", Config: with(chain, held)},
		{Name: "held, until finalized", Config: with(chain, held, finalized)},
		{Name: "first, until included", Config: with(chain, first)},
		{Name: "first, until finalized", Config: with(chain, first, finalized)},
		{Name: "held, payer empties its account, fee bumps", Config: with(payer, held)},
		{Name: "first, payer empties its account, fee bumps", Config: with(payer, first)},
		{Name: "held, by Permit2, until included", Config: with(chain, held, func(c *Config) { c.Crashes, c.Permit = 1, true })},
		{Name: "first, by Permit2, until finalized", Config: with(chain, first, finalized, func(c *Config) { c.Crashes, c.Permit = 1, true })},
		{Name: "held and first, answers too large to store", Config: with(chain, mixed, finalized, func(c *Config) { c.Crashes, c.Cancels, c.Large = 1, false, true })},
		{Name: "held, unsafe method, nothing stored", Config: with(chain, held, func(c *Config) { c.Crashes, c.Large, c.Unsafe = 1, true, true })},
		{Name: "held, two instances, until included", Config: with(leases, held)},
		{Name: "held, two instances, until finalized", Config: with(leases, held, finalized)},
		{Name: "first, two instances, until included", Config: with(leases, first)},
		{Name: "first, two instances, until finalized", Config: with(leases, first, finalized)},
		{Name: "held, remote facilitator", Config: with(remote, held)},
		{Name: "first, remote facilitator, until finalized", Config: with(remote, first, finalized, func(c *Config) { c.Reorgs = 1 })},
		{Name: "held, remote facilitator that forgets", Config: with(remote, held, func(c *Config) { c.Remote, c.Crashes, c.Cancels = Forgetful, 1, true })},
	}
}

// Variants are ways of working that must be seen to be wrong.
func Variants() []Case {
	naive := Config{Requests: 2, Instances: 1, Crashes: 2, Reorgs: 1, Cancels: true, Modes: held, Until: payment.Finalized}
	stored := Config{Requests: 2, Instances: 1, Crashes: 1, Reorgs: 1, Strangers: true, Cancels: true, Modes: held, Until: payment.Finalized}
	permits := stored
	permits.Permit = true
	included := stored
	included.Until = payment.Included
	late := stored
	late.Strangers = false
	two := Config{Requests: 2, Instances: 2, Crashes: 1, Pauses: 1, Modes: held}
	twoFirst := two
	twoFirst.Modes = first
	remote := Config{Requests: 2, Instances: 1, Crashes: 1, Modes: held, Remote: Idempotent, Cancels: true}
	forgetful := remote
	forgetful.Remote = Forgetful
	twoRemote := two
	twoRemote.Remote = Idempotent
	return []Case{
		{"naive: verify, run, settle, respond; one confirmation", naive, Variant{Naive: true, OneBlock: true}, []Violation{FreeGoods, Lost, PayAgain}},
		{"naive: a token whose used nonce does not revert, final", naive, Variant{Naive: true, AnyReceipt: true}, []Violation{FreeGoods, TwoGrants, PayAgain}},
		{"naive: one transaction for everybody (Solana)", naive, Variant{Naive: true, Shared: true, OneBlock: true}, []Violation{FreeGoods, TwoGrants, Lost, PayAgain}},
		{"naive: the same, remembered in memory", naive, Variant{Naive: true, Shared: true, OneBlock: true, Memory: true}, []Violation{FreeGoods, Lost, PayAgain}},
		{"naive: remembered in memory, final", naive, Variant{Naive: true, Memory: true}, []Violation{Lost, PayAgain}},
		{"a used nonce counts as paid", stored, Variant{UsedIsPaid: true}, []Violation{FreeGoods}},
		{"released on a timeout", stored, Variant{ForgetAfter: true}, []Violation{Lost, PayAgain}},
		{"402 on a timeout", stored, Variant{PayAgain: true}, []Violation{PayAgain}},
		{"the claim is not on disk, two instances", two, Variant{LateClaim: true}, []Violation{RunTwice}},
		{"the intent is not on disk before the broadcast", late, Variant{LateIntent: true}, []Violation{Lost, PayAgain}},
		{"a stranger's transfer is not on disk before the goods", func() Config { c := included; c.Crashes = 2; c.Cancels = false; return c }(), Variant{Forgets: true}, []Violation{TwoGrants}},
		{"expired in the latest block counts as dead", stored, Variant{HeadIsFinal: true}, []Violation{Lost, PayAgain}},
		{"by Permit2, no log counts as death", permits, Variant{LagIsDeath: true}, []Violation{Lost, PayAgain}},
		{"no log counts as an unused nonce", stored, Variant{NoLogIsUnused: true}, []Violation{Lost, PayAgain}},
		{"the request is not compared with the claim", included, Variant{Unbound: true}, []Violation{TwoGrants}},
		{"requests of one process do not wait, deliveries have no lease", func() Config { c := stored; c.Modes = first; c.Cancels = false; return c }(), Variant{Unlocked: true, Crowded: true}, []Violation{RunTwice}},
		{"whoever finds a claim takes it over", two, Variant{TakeOver: true}, []Violation{RunTwice}},
		{"two instances: deliveries have no lease", twoFirst, Variant{Crowded: true}, []Violation{RunTwice}},
		{"two instances: written later, unconditionally in effect", func() Config { c := twoFirst; c.Until = payment.Finalized; c.Crashes = 0; c.Pauses = 0; return c }(), Variant{Lagging: true}, []Violation{RunTwice}},
		{"remote: no answer counts as refused", remote, Variant{NoAnswerIsNo: true}, []Violation{Lost}},
		{"remote: a refusal of a repeated request counts", forgetful, Variant{LaterNoIsNo: true}, []Violation{Lost, PayAgain}},
		{"remote, two instances: what others stored is not looked at", twoRemote, Variant{Hasty: true}, []Violation{TwoGrants, Lost}},
	}
}

// Missing returns what the case should have found and has not, and what it
// must not have found.
func (c *Case) Missing(r *Result) (missing, wrong []Violation) {
	for _, v := range c.Want {
		if r.Traces[v] == nil {
			missing = append(missing, v)
		}
	}
	if len(c.Want) == 0 {
		wrong = r.Violations()
	}
	return missing, wrong
}

// Unreached lists the steps of the ledger's table that no result has taken,
// beside those that these modes cannot take, and the crash points K0 to K14
// at which no process was killed.
func Unreached(results []*Result) []string {
	exempt := map[[2]ledger.State]bool{
		{"", ledger.Intent}:                 true, // no mode claims without a state of its own
		{ledger.Reserved, ledger.Executing}: true, // held claims EXECUTING at once
		{ledger.Executing, ledger.Included}: true, // the engine looks for a stranger's transaction
		{ledger.Executing, ledger.Settled}:  true, // only when it is about to send its own
	}
	var list []string
	for _, from := range states {
		for _, to := range states {
			step := [2]ledger.State{from, to}
			taken := slices.ContainsFunc(results, func(r *Result) bool { return r.Taken[step] > 0 })
			switch {
			case from.Can(to) && !taken && !exempt[step]:
				list = append(list, fmt.Sprintf("the step from %q to %q", from, to))
			case !from.Can(to) && taken:
				list = append(list, fmt.Sprintf("a step from %q to %q that the table does not have was taken", from, to))
			}
		}
	}
	for k := range 15 {
		if !slices.ContainsFunc(results, func(r *Result) bool { return slices.Contains(r.Points, k) }) {
			list = append(list, fmt.Sprintf("the crash point K%d", k))
		}
	}
	return list
}

// Row prints a line of the table in Markdown.
func Row(w io.Writer, c *Case, r *Result) error {
	var found []string
	for _, v := range r.Violations() {
		found = append(found, fmt.Sprintf("%s (%d)", v, len(r.Traces[v])))
	}
	if len(found) == 0 {
		found = []string{"**0**"}
	}
	more := ""
	if r.Capped {
		more = "+"
	}
	_, err := fmt.Fprintf(w, "| %s | %d%s | %d | %s |\n", c.Name, r.States, more, r.Steps, strings.Join(found, ", "))
	return err
}

// Head prints what stands above the lines.
const Head = "| case | states | depth | violations (steps of a shortest trace) |\n|---|---:|---:|---|\n"
