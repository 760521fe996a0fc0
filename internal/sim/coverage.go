package sim

import (
	"slices"
	"strconv"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// MustSee lists what some world out of many must have had: the steps of a
// payment, the points at which a process dies, and the faults. What is not
// seen is not tested.
func MustSee() []string {
	list := []string{
		"K14 unsynced writes lost", "reload",
		"disk failure", "slow disk",
		"call that fails", "call that hangs", "stale node", "stale head",
		"broadcast lost, with an error", "broadcast accepted, with an error", "broadcast accepted, and dropped",
		"upstream fails", "upstream answers 500",
		"base fee spike", "chain halts", "transaction of a lane reverts",
		"instance stays away", "same payment at two instances", "payment of a dead instance at another one",
		"lane taken over", "lane taken over by another instance", "lane taken over from a living instance",
		"lane changed by another instance meanwhile", "claim of another instance released",
		"database away", "connection to the database lost in a commit", "commit of unknown outcome",
		"facilitator cannot be reached", "request to the facilitator lost", "answer of the facilitator lost",
		"request delivered twice", "facilitator dies while it is asked",
		"batch", "batch on a second lane",
		"payer cancels", "payer drained", "included by a stranger",
		"payer invalidates a permit", "payer revokes the allowance", "payer uses the nonce for something else",
		"permit included by a stranger", "trace of somebody else's transaction",
		"upstream dies in a stream", "charged nothing", "charged a part", "charged the maximum", "written off",
	}
	for _, p := range points {
		list = append(list, p.name)
	}
	for depth := 1; depth <= 8; depth++ {
		list = append(list, "reorg "+strconv.Itoa(depth)+" deep")
	}
	steps := []struct {
		from ledger.State
		to   []ledger.State
	}{
		{"", []ledger.State{ledger.Reserved, ledger.Executing}},
		{ledger.Reserved, []ledger.State{ledger.Intent, ledger.Settled, ledger.Released}},
		{ledger.Executing, []ledger.State{ledger.Executed, ledger.Released}},
		{ledger.Executed, []ledger.State{ledger.Intent, ledger.Settled, ledger.Archived, ledger.Released}}, // Archived where it costs nothing
		{ledger.Released, []ledger.State{ledger.Reserved, ledger.Executing, ledger.Included, ledger.Settled, ledger.Dead}},
		{ledger.Intent, []ledger.State{ledger.Sent, ledger.Included, ledger.Settled, ledger.Dead}},
		{ledger.Sent, []ledger.State{ledger.Included, ledger.Settled, ledger.Dead}},
		{ledger.Included, []ledger.State{ledger.Sent, ledger.Settled}},
		{ledger.Settled, []ledger.State{ledger.Sent, ledger.Archived}},
		{ledger.Dead, []ledger.State{ledger.WrittenOff}},
	}
	for _, s := range steps {
		for _, to := range s.to {
			list = append(list, transition(s.from, to))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
