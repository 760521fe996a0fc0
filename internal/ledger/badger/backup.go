package badger

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// A backup is backupMagic, then for every entry, in ascending order of the keys,
// the length of the key, the key, the version, the length of the value and the
// value, numbers as unsigned varints; then a key length of 0, and the SHA-256 of
// everything before it. Nothing follows.
const backupMagic = "tollgate ledger backup 1\n"

const backupPage = 1000

// Backup writes to w all entries as they were when Backup was called. Commits go on
// meanwhile. What it has written is a backup only if it returned nil; it is as
// confidential as the ledger's directory. One backup runs at a time, others wait.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	s.pinning.Lock()
	defer s.pinning.Unlock()
	at := s.durable.Load()

	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	// The errors of a bufio.Writer stay until Flush.
	_, _ = out.WriteString(backupMagic)
	var number []byte
	for last := ledger.Key(""); ; {
		page, err := s.pageAt(ctx, at, last)
		if err != nil {
			return fmt.Errorf("ledger: backing up %s: %w", s.dir, err)
		}
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			number = binary.AppendUvarint(number[:0], uint64(len(e.Key)))
			_, _ = out.Write(number)
			_, _ = out.WriteString(string(e.Key))
			number = binary.AppendUvarint(number[:0], e.Version)
			number = binary.AppendUvarint(number, uint64(len(e.Value)))
			_, _ = out.Write(number)
			_, _ = out.Write(e.Value)
		}
		last = page[len(page)-1].Key
	}
	_ = out.WriteByte(0)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("ledger: writing the backup of %s: %w", s.dir, err)
	}
	if _, err := w.Write(sum.Sum(nil)); err != nil {
		return fmt.Errorf("ledger: writing the backup of %s: %w", s.dir, err)
	}
	return nil
}

// pageAt holds reading for one page only, so that a slow writer of the backup
// keeps neither Close nor anybody else waiting.
func (s *Store) pageAt(ctx context.Context, at uint64, after ledger.Key) ([]ledger.Entry, error) {
	s.reading.RLock()
	defer s.reading.RUnlock()
	if s.closed {
		return nil, ledger.ErrClosed
	}
	return s.scanAt(ctx, at, "", after, backupPage)
}

// restoringFile is in a directory from before the first byte of a restore until
// after the last.
const restoringFile = "RESTORING"

// Restore creates the ledger in dir, which must be missing or empty, from a
// backup. Open refuses the directory until Restore has returned nil.
//
// A restored ledger has forgotten what happened after the backup: payments
// claimed since then and nonces of lanes used since then must be found on the chain
// before anything is served or sent.
func Restore(ctx context.Context, dir string, r io.Reader) error {
	if err := beginRestore(dir); err != nil {
		return fmt.Errorf("ledger: restoring into %s: %w", dir, err)
	}
	s, err := open(dir, Options{})
	if err != nil {
		return err
	}
	err = s.load(ctx, newBackupReader(r))
	if err = errors.Join(err, s.db.Close()); err != nil {
		return fmt.Errorf("ledger: restoring into %s: %w", dir, err)
	}
	return endRestore(dir)
}

func beginRestore(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(files) > 0 {
		return fmt.Errorf("the directory must be empty and has %s", files[0].Name())
	}
	f, err := os.OpenFile(filepath.Join(dir, restoringFile), os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), syncDir(dir))
}

// checkRestored returns an error if a restore into dir is under way or was cut off.
func checkRestored(dir string) error {
	_, err := os.Stat(filepath.Join(dir, restoringFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("ledger: %w", err)
	}
	return fmt.Errorf("ledger: the restore into %s was not completed; empty the directory and restore again", dir)
}

func endRestore(dir string) error {
	return errors.Join(os.Remove(filepath.Join(dir, restoringFile)), syncDir(dir))
}

// syncDir makes the creation and removal of files in dir durable, on systems that
// do not do so by themselves.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// load writes the entries of a backup.
func (s *Store) load(ctx context.Context, in *backupReader) error {
	if err := in.magic(); err != nil {
		return err
	}
	changes := make(map[ledger.Key]ledger.Entry)
	size := 0
	for {
		e, err := in.next()
		done := errors.Is(err, io.EOF)
		if err != nil && !done {
			return err
		}
		if done || size+len(e.Key)+len(e.Value) > ledger.MaxCommit || len(changes) == ledger.MaxWrites {
			if err := errors.Join(s.write(changes), ctx.Err()); err != nil {
				return err
			}
			clear(changes)
			size = 0
		}
		if done {
			return nil
		}
		changes[e.Key] = e
		size += len(e.Key) + len(e.Value)
	}
}

// backupReader reads a backup once, from its beginning.
type backupReader struct {
	in   *bufio.Reader
	sum  hash.Hash // of what was read
	last ledger.Key
}

func newBackupReader(r io.Reader) *backupReader {
	return &backupReader{in: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
}

func (b *backupReader) magic() error {
	got, err := b.bytes(uint64(len(backupMagic)))
	if err != nil {
		return err
	}
	if string(got) != backupMagic {
		return errors.New("this is not a backup of a ledger, or one of another version")
	}
	return nil
}

// next returns the next entry. It returns io.EOF after the last one, once it has
// found the backup to be complete and undamaged.
func (b *backupReader) next() (ledger.Entry, error) {
	n, err := b.number(ledger.MaxKey)
	if err != nil {
		return ledger.Entry{}, err
	}
	if n == 0 {
		return ledger.Entry{}, b.end()
	}
	key, err := b.bytes(n)
	if err != nil {
		return ledger.Entry{}, err
	}
	e := ledger.Entry{Key: ledger.Key(key)}
	if err := e.Key.Check(); err != nil {
		return ledger.Entry{}, err
	}
	if e.Key <= b.last {
		return ledger.Entry{}, fmt.Errorf("the backup is damaged: %s follows %s", e.Key, b.last)
	}
	b.last = e.Key
	if e.Version, err = b.number(ledger.AnyVersion - 1); err != nil {
		return ledger.Entry{}, err
	}
	if e.Version == 0 {
		return ledger.Entry{}, fmt.Errorf("the backup is damaged: %s has version 0", e.Key)
	}
	size, err := b.number(ledger.MaxValue)
	if err != nil {
		return ledger.Entry{}, err
	}
	e.Value, err = b.bytes(size)
	return e, err
}

func (b *backupReader) end() error {
	want := b.sum.Sum(nil)
	got, err := b.bytes(sha256.Size)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("the backup is damaged: its checksum is wrong")
	}
	if _, err := b.in.ReadByte(); !errors.Is(err, io.EOF) {
		return errors.New("the backup is damaged: something follows its end")
	}
	return io.EOF
}

func (b *backupReader) number(most uint64) (uint64, error) {
	n, err := binary.ReadUvarint(b)
	if err != nil {
		return 0, cut(err)
	}
	if n > most {
		return 0, fmt.Errorf("the backup is damaged: it has %d where %d is the most", n, most)
	}
	return n, nil
}

func (b *backupReader) bytes(n uint64) ([]byte, error) {
	p := make([]byte, n)
	if _, err := io.ReadFull(b.in, p); err != nil {
		return nil, cut(err)
	}
	b.sum.Write(p)
	return p, nil
}

// ReadByte is what binary.ReadUvarint reads with.
func (b *backupReader) ReadByte() (byte, error) {
	c, err := b.in.ReadByte()
	if err == nil {
		b.sum.Write([]byte{c})
	}
	return c, err
}

// cut makes an end of the file in the middle of a backup an error.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the backup is incomplete")
	}
	return err
}
