//go:build race

package settle_test

import "time"

// Under the race detector a world is several times as expensive.
const (
	chaosDefault = 2                      // with how many seeds each chaos test runs
	chaosAtOnce  = 2                      // how many worlds live at once
	chaosBlock   = 250 * time.Millisecond // between blocks; half of it between looks at the head
	chaosCall    = 5 * time.Second        // how long a node may take to answer
)
