// Package failpoint ends the process with SIGKILL at the points of the crash
// matrix, K0 to K14, so that e2e/kill can find out what a crash there costs.
//
// Only a build with the tag "failpoint" has any of it. In every other build
// the wrappers return what they are given and the compiler removes them. The
// parts that are wrapped know nothing of this package: it reads from what
// passes the seams between them (commits to the ledger, broadcasts, answers)
// how far a payment has come.
//
// In a build with the tag, TOLLGATE_FAILPOINT names the point and the
// occurrence at which to fire, such as "K4:3" for the third time that K4 is
// passed, and TOLLGATE_FAILPOINT_FILE a file to which the name of the point
// is appended, on disk before the process dies. TOLLGATE_BREAK breaks the
// build on purpose, see Break.
package failpoint

// A Point is a place at which the process can be killed.
type Point string

// The crash matrix.
const (
	// Verified: a payment has been verified and its claim has not been
	// handed to the store.
	Verified Point = "K0"

	// Claimed: the claim is on disk, nothing has followed from it.
	Claimed Point = "K1"

	// Executing: the upstream has answered, and its answer has not been
	// handed to the store.
	Executing Point = "K2"

	// Executed: the upstream's answer is on disk, no intent is.
	Executed Point = "K3"

	// Intended: the intent to settle is on disk, nothing was broadcast.
	Intended Point = "K4"

	// Broadcast: the nodes, or the remote facilitator, have the settlement,
	// and nothing has been noted of that.
	Broadcast Point = "K5"

	// Included: the transfer has been seen in a block, and that has not been
	// handed to the store.
	Included Point = "K6"

	// Settled: the transfer is as final as the seller asks, and that has not
	// been handed to the store. Where the payment was INCLUDED before, that
	// is on disk.
	Settled Point = "K7"

	// Answering: the money has moved and no byte of the answer has left.
	Answering Point = "K8"

	// Midway: half of the answer's body has left.
	Midway Point = "K9"

	// Answered: the last byte of the answer has left, and DELIVERED has not
	// been handed to the store. The last byte is known by Content-Length.
	Answered Point = "K10"

	// Replaced: a transaction that takes another one's place is on disk and
	// was not sent.
	Replaced Point = "K11"

	// Allocating: the commit with the intent, and with the lane's nonce where
	// the lane is ours, is under way: it may be on disk or not, but not half.
	Allocating Point = "K12"

	// Reloading: a new configuration runs and the engine of the old one is
	// about to end.
	Reloading Point = "K13"

	// PowerLost: everything that nobody was promised to be on disk is lost.
	// Writes for which nobody waits are kept back until a commit takes them
	// along; from the moment at which the point is reached nothing gets to
	// the store any more, and a little later, when some commits have piled
	// up, the process dies. On disk is then exactly what has been
	// acknowledged. Whether the disk keeps what it has acknowledged, a killed
	// process cannot show.
	PowerLost Point = "K14"
)

// Points lists the crash matrix in its order.
func Points() []Point {
	return []Point{
		Verified, Claimed, Executing, Executed, Intended, Broadcast, Included, Settled,
		Answering, Midway, Answered, Replaced, Allocating, Reloading, PowerLost,
	}
}

// The environment of a build with the tag.
const (
	EnvPoint = "TOLLGATE_FAILPOINT"
	EnvFile  = "TOLLGATE_FAILPOINT_FILE"
	EnvBreak = "TOLLGATE_BREAK"
)

// A Break is a mistake that TOLLGATE_BREAK makes a build with the tag commit,
// to prove that the kill harness sees such mistakes.
type Break string

const (
	// ClaimNotDurable acknowledges what is stored about a payment a second
	// before it is on disk.
	ClaimNotDurable Break = "claim-not-durable"

	// TimeoutIsUnpaid takes a settlement whose outcome is not known yet for
	// one that has failed.
	TimeoutIsUnpaid Break = "timeout-is-unpaid"
)
