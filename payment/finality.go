package payment

import (
	"fmt"
	"strconv"
)

// Finality says how sure a settlement must be before it counts. The zero
// value asks for inclusion in a block.
type Finality struct {
	kind          finality
	confirmations uint64
}

type finality uint8

const (
	included finality = iota
	submitted
	confirmed
	safe
	finalized
)

// The levels, from the least sure to the surest; Confirmed(n) stands between
// Included and Safe.
var (
	Submitted = Finality{kind: submitted} // a node has accepted the transaction
	Included  = Finality{}                // it is in a block
	Safe      = Finality{kind: safe}      // its block is at or below the chain's "safe" block
	Finalized = Finality{kind: finalized} // its block is at or below the chain's "finalized" block
)

// Confirmed asks for n blocks, counting the one with the transaction.
func Confirmed(n uint64) Finality {
	if n <= 1 {
		return Included
	}
	return Finality{confirmed, n}
}

// ParseFinality reads "submitted", "included", "safe", "finalized" or a
// number of blocks from 1 to 1000.
func ParseFinality(s string) (Finality, error) {
	for _, f := range []Finality{Submitted, Included, Safe, Finalized} {
		if s == f.String() {
			return f, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n < 1 || n > 1000 {
		return Finality{}, fmt.Errorf("%q is no finality: write submitted, included, a number of blocks from 1 to 1000, safe or finalized", clip(s))
	}
	return Confirmed(n), nil
}

// Confirmations returns how many blocks are asked for: 0 for Submitted, 1 for
// Included, n for Confirmed(n). ok is false for Safe and Finalized, which are
// not counted in blocks.
func (f Finality) Confirmations() (n uint64, ok bool) {
	switch f.kind {
	case submitted:
		return 0, true
	case included:
		return 1, true
	case confirmed:
		return f.confirmations, true
	default:
		return 0, false
	}
}

func (f Finality) String() string {
	switch f.kind {
	case submitted:
		return "submitted"
	case confirmed:
		return strconv.FormatUint(f.confirmations, 10)
	case safe:
		return "safe"
	case finalized:
		return "finalized"
	default:
		return "included"
	}
}
