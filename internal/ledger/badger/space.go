package badger

import "fmt"

// minFreeSpace is what a ledger's disk must have left. Badger writes through memory
// maps, where a full disk is not an error but the end of the process; this
// is room for its logs and compactions between two looks at the disk.
const minFreeSpace = 128 << 20

// shortOfSpace returns an error if free bytes are too few to go on writing to dir.
func shortOfSpace(dir string, free uint64) error {
	if free >= minFreeSpace {
		return nil
	}
	return fmt.Errorf("ledger: nothing is written to %s, there are %d MiB of disk left and it takes %d; make room and it goes on",
		dir, free>>20, minFreeSpace>>20)
}
