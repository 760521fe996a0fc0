package badger

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// writerFunc is an io.Writer that is a function.
type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func allEntries(t *testing.T, s *Store) []ledger.Entry {
	t.Helper()
	all, err := s.Scan(ctx, "", "", ledger.MaxScan)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func sameEntry(a, b ledger.Entry) bool {
	return a.Key == b.Key && a.Version == b.Version && bytes.Equal(a.Value, b.Value)
}

func TestBackupHoldsOneMomentWhileCommitsGoOn(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	for i := range 3 * backupPage {
		s.Later(create(ledger.Key(fmt.Sprintf("k/%d", i)), strings.Repeat("v", i%300)))
	}
	mustCommit(t, s, create("big", strings.Repeat("v", ledger.MaxValue)), create("empty", ""))
	mustCommit(t, s, ledger.Write{Key: "empty", If: 1, Value: []byte{}})
	before := allEntries(t, s)

	var backup bytes.Buffer
	disturbed := 0
	err := s.Backup(ctx, writerFunc(func(p []byte) (int, error) {
		mustCommit(t, s,
			create(ledger.Key(fmt.Sprintf("during/%d", disturbed)), ""),
			ledger.Write{Key: before[len(before)-1-disturbed].Key, If: ledger.AnyVersion},
			ledger.Write{Key: before[disturbed].Key, If: ledger.AnyVersion, Value: []byte("changed")})
		disturbed++
		s.discard()
		return backup.Write(p)
	}))
	if err != nil || disturbed < 3 {
		t.Fatalf("backup returned %v after %d writes", err, disturbed)
	}

	dir := filepath.Join(t.TempDir(), "restored")
	if err := Restore(ctx, dir, &backup); err != nil {
		t.Fatal(err)
	}
	restored := openStore(t, dir, Options{})
	if !slices.EqualFunc(allEntries(t, restored), before, sameEntry) {
		t.Fatal("the restored entries are not those at the start of the backup")
	}
	if err := restored.Commit(ctx, ledger.Write{Key: "empty", If: 2, Value: []byte("x")}); err != nil {
		t.Fatalf("a commit after the restore: %v", err)
	}
}

func smallBackup(t testing.TB) []byte {
	t.Helper()
	s := openStore(t, t.TempDir(), Options{})
	mustCommit(t, s, create("a", "1"), create("b/1", ""), create("b/2", strings.Repeat("x", 200)))
	mustCommit(t, s, ledger.Write{Key: "a", If: 1, Value: []byte("2")})
	var backup bytes.Buffer
	if err := s.Backup(ctx, &backup); err != nil {
		t.Fatal(err)
	}
	return backup.Bytes()
}

// readBackup returns nil if backup is one, complete and undamaged.
func readBackup(backup []byte) error {
	in := newBackupReader(bytes.NewReader(backup))
	err := in.magic()
	for err == nil {
		_, err = in.next()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func TestDamagedBackupsAreNoticed(t *testing.T) {
	backup := smallBackup(t)
	if err := readBackup(backup); err != nil {
		t.Fatalf("undamaged: %v", err)
	}
	for n := range backup {
		if readBackup(backup[:n]) == nil {
			t.Errorf("cut after %d of %d bytes", n, len(backup))
		}
		for bit := range 8 {
			damaged := bytes.Clone(backup)
			damaged[n] ^= 1 << bit
			if readBackup(damaged) == nil {
				t.Errorf("bit %d of byte %d flipped", bit, n)
			}
		}
	}
	if readBackup(append(bytes.Clone(backup), 0)) == nil {
		t.Error("a byte too much")
	}
}

func TestIncompleteRestoreCannotBeOpened(t *testing.T) {
	backup := smallBackup(t)
	for _, n := range []int{0, len(backupMagic), len(backup) - 40, len(backup) - 1} {
		dir := t.TempDir()
		if err := Restore(ctx, dir, bytes.NewReader(backup[:n])); err == nil {
			t.Fatalf("%d of %d bytes were restored", n, len(backup))
		}
		if s, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "not completed") {
			t.Fatalf("open after a restore of %d of %d bytes returned %v, %v", n, len(backup), s, err)
		}
		if err := Restore(ctx, dir, bytes.NewReader(backup)); err == nil {
			t.Fatal("restored over an incomplete restore")
		}
	}
}

func TestRestoreRefusesADirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	mustCommit(t, s, create("a", "x"))
	if err := Restore(ctx, dir, bytes.NewReader(smallBackup(t))); err == nil {
		t.Fatal("restored over an open ledger")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Restore(ctx, dir, bytes.NewReader(smallBackup(t))); err == nil {
		t.Fatal("restored over a ledger")
	}
	if _, err := openStore(t, dir, Options{}).Get(ctx, "a"); err != nil {
		t.Fatalf("the refused restore did damage: %v", err)
	}
}

func TestCloseEndsABackup(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	for i := range 2 * backupPage {
		s.Later(create(ledger.Key(fmt.Sprintf("k/%d", i)), strings.Repeat("v", 100)))
	}
	mustCommit(t, s)
	err := s.Backup(ctx, writerFunc(func(p []byte) (int, error) { return len(p), s.Close() }))
	if !errors.Is(err, ledger.ErrClosed) {
		t.Fatalf("backup returned %v", err)
	}
}

func FuzzBackupReaderNeverTakesWhatBackupDidNotWrite(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte(backupMagic))
	f.Add([]byte(backupMagic + "\x00"))
	f.Add([]byte(backupMagic + "\x01a\x01\x01x\x00"))
	f.Add(smallBackup(f))
	f.Fuzz(func(t *testing.T, backup []byte) {
		in := newBackupReader(bytes.NewReader(backup))
		if in.magic() != nil {
			return
		}
		var last ledger.Key
		for {
			e, err := in.next()
			if err != nil {
				return
			}
			if e.Key.Check() != nil || e.Key <= last || e.Version == 0 || len(e.Value) > ledger.MaxValue {
				t.Fatalf("read %+v after %s", e, last)
			}
			last = e.Key
		}
	})
}
