//go:build !race

package settle_test

import "time"

const (
	chaosDefault = 12                      // with how many seeds each chaos test runs
	chaosAtOnce  = 4                       // how many worlds live at once: they mostly wait
	chaosBlock   = 80 * time.Millisecond   // between blocks; half of it between looks at the head
	chaosCall    = 1500 * time.Millisecond // how long a node may take to answer
)
