package sim

import (
	"encoding/binary"
	"time"
)

// Dice decide everything that happens by chance in a world. A throw depends
// on the seed and on what it is thrown for, never on the throws before it, so
// that goroutines which run in another order do not change anybody's luck.
type dice uint64

// of returns the dice for one thing out of many.
func (d dice) of(what string) dice {
	h := uint64(d) ^ 0xcbf29ce484222325
	for i := range len(what) {
		h = (h ^ uint64(what[i])) * 0x100000001b3
	}
	return dice(scramble(h))
}

// nth returns the dice for one of several that have the same name.
func (d dice) nth(n int) dice {
	return dice(scramble(uint64(d) + uint64(n+1)*0x9e3779b97f4a7c15)) //nolint:gosec // n counts from 0
}

// scramble is the finalizer of splitmix64.
func scramble(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// below returns a number from 0 to n-1.
func (d dice) below(n int) int {
	return int(scramble(uint64(d)) % uint64(n)) //nolint:gosec // n is positive, and the rest below it
}

// between returns a time from least to most.
func (d dice) between(least, most time.Duration) time.Duration {
	return least + time.Duration(scramble(uint64(d))%uint64(most-least+1)) //nolint:gosec // the rest is below most-least
}

// oneIn reports true once in n throws; never if n is 0.
func (d dice) oneIn(n int) bool { return n > 0 && d.below(n) == 0 }

// bytes fills a 32-byte word.
func (d dice) bytes() (b [32]byte) {
	for i := range 4 {
		binary.BigEndian.PutUint64(b[8*i:], uint64(d.nth(i)))
	}
	return b
}
