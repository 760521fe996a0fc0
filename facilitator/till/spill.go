package till

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// A Budget bounds what all answers take that are held back at one time. Tills
// of one process share one. The zero value has the default limits.
type Budget struct {
	mu           sync.Mutex
	limits       Limits // guarded by mu, as is what follows
	memory, disk int64  // in use
}

// Limits are those of a Budget.
type Limits struct {
	// Memory is how many bytes held answers may take in memory. Each one
	// takes 128 KiB of it for as long as it is held, however small it is.
	// Default: 512 MiB, for 4096 requests at a time.
	Memory int64

	// Disk is how many bytes of them may lie encrypted on disk. Default:
	// 1 GiB.
	Disk int64

	// Dir is where they lie. What is written there has no name and cannot be
	// read without a key that never leaves memory. Default: the directory for
	// temporary files, which on some systems is memory, too.
	Dir string
}

// Limit changes the limits. What is held already stays, and counts.
func (b *Budget) Limit(l Limits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limits = l
}

const (
	defaultMemory = 512 << 20
	defaultDisk   = 1 << 30

	// spillChunk is how much of an answer is in memory before it goes to
	// disk, and how much goes there at a time.
	spillChunk = 64 << 10

	// perAnswer is what a held answer takes of memory at most: the chunk that
	// is being written and the one that is being read.
	perAnswer = 2 * spillChunk
)

// most returns the limits in force.
func (l *Limits) most() (memory, disk int64) {
	return orElse(l.Memory, defaultMemory), orElse(l.Disk, defaultDisk)
}

// admit reserves the memory of one answer of up to size bytes. It returns nil
// if there is none, or if the disk has no room for it now; what others write before it does may
// still use that up. The spool gives back what it takes when it is closed.
func (b *Budget) admit(size int64) *spool {
	b.mu.Lock()
	defer b.mu.Unlock()
	memory, disk := b.limits.most()
	if b.memory+perAnswer > memory || size > spillChunk && b.disk+min(size, disk) > disk {
		return nil
	}
	b.memory += perAnswer
	return &spool{budget: b, dir: b.limits.Dir}
}

// spill reserves n bytes of disk.
func (b *Budget) spill(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, disk := b.limits.most(); b.disk+n > disk {
		return errNoRoom
	}
	b.disk += n
	return nil
}

func (b *Budget) giveBack(memory, disk int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.memory -= memory
	b.disk -= disk
}

// A spool keeps the bytes of one answer: the last ones in memory, and those
// before them, in chunks of spillChunk bytes, encrypted in a file that nobody
// else can open. It is used by one goroutine at a time.
type spool struct {
	budget *Budget
	dir    string
	size   int64 // of everything
	tail   []byte

	file   *os.File // nil until something is spilled
	name   string   // of the file where it could not be unlinked at once
	sealer cipher.AEAD
	chunks int64 // in the file
	closed bool
}

// Write implements io.Writer. After an error nothing more can be written.
func (s *spool) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		if len(s.tail) == spillChunk {
			if err := s.spill(); err != nil {
				return n, err
			}
		}
		some := min(len(b), spillChunk-len(s.tail))
		s.tail = append(s.tail, b[:some]...)
		s.size += int64(some)
		n, b = n+some, b[some:]
	}
	return n, nil
}

// spill moves a full tail to the file.
func (s *spool) spill() error {
	if s.file == nil {
		if err := s.create(); err != nil {
			return fmt.Errorf("till: making a file for a held answer: %w", err)
		}
	}
	sealed := int64(spillChunk + s.sealer.Overhead())
	if err := s.budget.spill(sealed); err != nil {
		return err
	}
	s.chunks++
	box := s.sealer.Seal(s.tail[:0], s.nonce(s.chunks-1), s.tail, nil)
	s.tail = box[:0]
	if _, err := s.file.WriteAt(box, (s.chunks-1)*sealed); err != nil {
		return fmt.Errorf("till: writing a held answer: %w", err)
	}
	return nil
}

// create makes the file and the key, which are used for this answer alone.
func (s *spool) create() error {
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return err
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return err
	}
	if s.sealer, err = cipher.NewGCM(block); err != nil {
		return err
	}
	if s.file, err = os.CreateTemp(s.dir, "x402-held-*"); err != nil {
		s.file = nil
		return err
	}
	if err := os.Remove(s.file.Name()); err != nil {
		s.name = s.file.Name() // some systems keep the name of an open file
	}
	return nil
}

// nonce returns that of a chunk. The key seals each chunk once, so that
// counting is enough.
func (s *spool) nonce(chunk int64) []byte {
	n := make([]byte, s.sealer.NonceSize())
	binary.BigEndian.PutUint64(n[len(n)-8:], uint64(chunk)) //nolint:gosec // it counts up from 0
	return n
}

// reader returns everything that was written, from the start. Nothing may be
// written meanwhile.
func (s *spool) reader() io.Reader { return &spoolReader{spool: s} }

// close frees what the spool takes. It can be called again.
func (s *spool) close() {
	if s.closed {
		return
	}
	s.closed = true
	s.tail = nil
	disk := int64(0)
	if s.file != nil {
		_ = s.file.Close() // nobody needs what is in it
		if s.name != "" {
			_ = os.Remove(s.name) // without the key it is noise
		}
		disk = s.chunks * int64(spillChunk+s.sealer.Overhead())
	}
	s.budget.giveBack(perAnswer, disk)
}

// A spoolReader reads a spool once.
type spoolReader struct {
	spool *spool
	chunk int64  // the next one to be read
	box   []byte // for a chunk of the file
	rest  []byte // of the chunk that was read last
	tail  bool   // rest is the tail, the last there is
}

func (r *spoolReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.tail {
			return 0, io.EOF
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *spoolReader) next() error {
	s := r.spool
	if s.closed {
		return errors.New("till: a held answer was read after its end")
	}
	if r.chunk == s.chunks {
		r.rest, r.tail = s.tail, true
		return nil
	}
	if r.box == nil {
		r.box = make([]byte, spillChunk+s.sealer.Overhead())
	}
	if _, err := s.file.ReadAt(r.box, r.chunk*int64(len(r.box))); err != nil {
		return fmt.Errorf("till: reading a held answer: %w", err)
	}
	var err error
	if r.rest, err = s.sealer.Open(r.box[:0], s.nonce(r.chunk), r.box, nil); err != nil {
		return fmt.Errorf("till: a held answer was changed on disk: %w", err)
	}
	r.chunk++
	return nil
}
