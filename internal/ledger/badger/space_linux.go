package badger

import "syscall"

// freeSpace returns how many bytes a process without privileges may still write
// to the file system of dir.
func freeSpace(dir string) (uint64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	return fs.Bavail * uint64(fs.Bsize), nil //nolint:gosec // a block size is not negative
}
