package till

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"
)

// inUse returns what a budget has given away.
func (b *Budget) inUse() (memory, disk int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.memory, b.disk
}

func newSpool(t *testing.T, l Limits) (*Budget, *spool) {
	t.Helper()
	b := &Budget{}
	if l.Dir == "" {
		l.Dir = t.TempDir()
	}
	b.Limit(l)
	s := b.admit(1 << 20)
	if s == nil {
		t.Fatal("not admitted")
	}
	t.Cleanup(s.close)
	return b, s
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	random := rand.NewChaCha8([32]byte{0: byte(seed), 1: byte(seed >> 8)})
	_, _ = random.Read(b) // never fails
	return b
}

func TestASpoolGivesBackWhatWasWritten(t *testing.T) {
	for i, size := range []int{0, 1, spillChunk - 1, spillChunk, spillChunk + 1, 2 * spillChunk, 3*spillChunk + 7, 1<<20 + 3} {
		b, s := newSpool(t, Limits{})
		want := noise(uint64(i), size)
		random := rand.New(rand.NewPCG(uint64(i), 402))
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+random.IntN(100_000))
			if wrote, err := s.Write(rest[:n]); wrote != n || err != nil {
				t.Fatalf("wrote %d of %d, %v", wrote, n, err)
			}
			rest = rest[n:]
		}
		if s.size != int64(size) {
			t.Errorf("%d bytes: it counts %d", size, s.size)
		}
		for range 2 { // it can be read again
			if err := iotest.TestReader(s.reader(), want); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
		if cap(s.tail) > 2*spillChunk {
			t.Errorf("%d bytes: %d of them in memory", size, cap(s.tail))
		}
		s.close()
		if memory, disk := b.inUse(); memory != 0 || disk != 0 {
			t.Errorf("%d bytes: %d and %d are still in use", size, memory, disk)
		}
	}
}

func TestNobodyFindsASpilledAnswerOnDisk(t *testing.T) {
	dir := t.TempDir()
	_, s := newSpool(t, Limits{Dir: dir})
	secret := bytes.Repeat([]byte("a secret of the upstream. "), 20_000)
	if _, err := s.Write(secret); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
		t.Errorf("a crash would leave %v, %v", left, err)
	}
	info, err := s.file.Stat()
	if err != nil || info.Size() < int64(len(secret)-spillChunk) || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("%d bytes with mode %s, %v", info.Size(), info.Mode(), err)
	}
	raw, err := io.ReadAll(io.NewSectionReader(s.file, 0, info.Size()))
	if err != nil || bytes.Contains(raw, []byte("secret")) {
		t.Errorf("it can be read, %v", err)
	}
	// The same bytes look different each time, even in one file.
	half := int64(spillChunk + s.sealer.Overhead())
	if bytes.Equal(raw[:half], raw[half:2*half]) {
		t.Error("equal chunks look equal")
	}
}

func TestASpilledAnswerThatWasChangedIsNotRead(t *testing.T) {
	for name, change := range map[string]func(f *os.File, sealed int64) error{
		"a byte": func(f *os.File, sealed int64) error {
			_, err := f.WriteAt([]byte{1, 2, 3}, sealed+100)
			return err
		},
		"the order": func(f *os.File, sealed int64) error {
			first, second := make([]byte, sealed), make([]byte, sealed)
			_, err1 := f.ReadAt(first, 0)
			_, err2 := f.ReadAt(second, sealed)
			_, err3 := f.WriteAt(second, 0)
			_, err4 := f.WriteAt(first, sealed)
			return errors.Join(err1, err2, err3, err4)
		},
		"the length": func(f *os.File, sealed int64) error { return f.Truncate(2*sealed - 1) },
	} {
		_, s := newSpool(t, Limits{})
		if _, err := s.Write(noise(1, 4*spillChunk)); err != nil {
			t.Fatal(err)
		}
		if err := change(s.file, int64(spillChunk+s.sealer.Overhead())); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(s.reader()); err == nil || len(got) > 2*spillChunk {
			t.Errorf("%s changed: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestABudgetAdmitsWhatItHasRoomFor(t *testing.T) {
	b := &Budget{}
	b.Limit(Limits{Memory: 3 * perAnswer, Disk: 1 << 20, Dir: t.TempDir()})
	var spools []*spool
	for range 3 {
		s := b.admit(4 << 20) // more than the disk has in all: then all of it must be free
		if s == nil {
			t.Fatal("not admitted")
		}
		spools = append(spools, s)
	}
	if b.admit(0) != nil {
		t.Error("admitted without memory")
	}
	if _, err := spools[0].Write(noise(1, 600<<10)); err != nil {
		t.Fatal(err)
	}
	if n, err := spools[1].Write(noise(2, 600<<10)); !errors.Is(err, errNoRoom) || n == 0 {
		t.Errorf("wrote %d bytes without disk: %v", n, err)
	}
	spools[2].close()
	spools[2].close()
	if b.admit(600<<10) != nil {
		t.Error("admitted although the disk is full")
	}
	if small := b.admit(spillChunk); small == nil {
		t.Error("an answer that needs no disk is not admitted")
	} else {
		small.close()
	}
	spools[0].close()
	spools[1].close()
	if memory, disk := b.inUse(); memory != 0 || disk != 0 {
		t.Errorf("%d and %d are still in use", memory, disk)
	}
	if _, err := spools[0].reader().Read(make([]byte, 1)); err == nil {
		t.Error("read after the end")
	}
}

func TestLimitsCanChangeWhileAnswersAreHeld(t *testing.T) {
	b, s := newSpool(t, Limits{Memory: perAnswer})
	if b.admit(0) != nil {
		t.Error("admitted")
	}
	b.Limit(Limits{Memory: 2 * perAnswer})
	other := b.admit(0)
	if other == nil {
		t.Fatal("not admitted")
	}
	b.Limit(Limits{Memory: 1})
	s.close()
	other.close()
	if memory, _ := b.inUse(); memory != 0 {
		t.Errorf("%d bytes are still in use", memory)
	}
}

func TestADiskThatFailsIsAnErrorAndLeavesNothing(t *testing.T) {
	b, s := newSpool(t, Limits{Dir: filepath.Join(t.TempDir(), "nowhere")})
	if n, err := s.Write(noise(1, 3*spillChunk)); err == nil || n != spillChunk {
		t.Errorf("wrote %d, %v", n, err)
	}
	s.close()
	if memory, disk := b.inUse(); memory != 0 || disk != 0 {
		t.Errorf("%d and %d are still in use", memory, disk)
	}
}

func TestManyAnswersShareABudget(t *testing.T) {
	b := &Budget{}
	b.Limit(Limits{Memory: 20 * perAnswer, Disk: 2 << 20, Dir: t.TempDir()})
	var group sync.WaitGroup
	for i := range 40 {
		group.Go(func() {
			for round := range 5 {
				s := b.admit(300 << 10)
				if s == nil {
					continue
				}
				want := noise(uint64(i*8+round), 200<<10+i)
				if _, err := s.Write(want); err == nil {
					if got, err := io.ReadAll(s.reader()); err != nil || !bytes.Equal(got, want) {
						t.Errorf("read %d bytes, %v", len(got), err)
					}
				} else if !errors.Is(err, errNoRoom) {
					t.Error(err)
				}
				s.close()
			}
		})
	}
	group.Wait()
	if memory, disk := b.inUse(); memory != 0 || disk != 0 {
		t.Errorf("%d and %d are still in use", memory, disk)
	}
}
