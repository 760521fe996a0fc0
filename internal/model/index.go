package model

import (
	"hash/maphash"
	"math"
)

// An index finds states by their content. It keeps their numbers only; the
// states themselves are in a slice.
type index struct {
	seed  maphash.Seed
	slots []uint64 // the upper half of the hash, and the number plus 1; 0 is free
	bits  int      // there are 1<<bits slots
	used  int

	at  int    // the slot at which find ended
	tag uint64 // of the state that find was asked for
}

const (
	numMask = 1<<32 - 1
	tagMask = math.MaxUint64 - numMask
)

func newIndex() *index {
	const bits = 16
	return &index{seed: maphash.MakeSeed(), slots: make([]uint64, 1<<bits), bits: bits}
}

// find returns the number of s among all, and false where it is not there.
func (x *index) find(all []state, s *state) (uint32, bool) {
	x.tag = maphash.Comparable(x.seed, *s) & tagMask
	mask := len(x.slots) - 1
	for x.at = int(x.tag >> (64 - x.bits)); ; x.at = (x.at + 1) & mask { //nolint:gosec // below len(x.slots)
		slot := x.slots[x.at]
		if slot == 0 {
			return 0, false
		}
		if k := slot&numMask - 1; slot&tagMask == x.tag && all[k] == *s {
			return uint32(k), true
		}
	}
}

// add enters the state that find has just missed, under number k.
func (x *index) add(k uint32) {
	x.slots[x.at] = x.tag | uint64(k+1)
	if x.used++; 2*x.used < len(x.slots) {
		return
	}
	old := x.slots
	x.bits++
	x.slots = make([]uint64, 1<<x.bits)
	mask := len(x.slots) - 1
	for _, slot := range old {
		if slot == 0 {
			continue
		}
		at := int(slot >> (64 - x.bits)) //nolint:gosec // below len(x.slots)
		for x.slots[at] != 0 {
			at = (at + 1) & mask
		}
		x.slots[at] = slot
	}
}
