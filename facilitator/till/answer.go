package till

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

const (
	// maxInline is the largest body that is stored in one piece, in the
	// commit that says that the upstream has answered. Larger ones are
	// stored in parts before it.
	maxInline = 512 << 10

	// maxHead is the most that may be said about a body that is stored.
	maxHead = 256 << 10

	// defaultMaxStored is up to which size answers are stored.
	defaultMaxStored = 4 << 20

	// replayFor is how long an answer can be had again.
	replayFor = 15 * time.Minute
)

// An answer is an upstream's whole response.
type answer struct {
	Status  int         `json:"status"`
	Header  http.Header `json:"header"`
	Trailer http.Header `json:"trailer,omitempty"`
	Size    int64       `json:"size"`            // of the body
	Parts   int         `json:"parts,omitempty"` // of the body, where it is stored in parts

	body func() io.Reader // the body from its start
}

// keep stores that the upstream has answered, and its answer if it is not too
// large.
func (v *visit) keep(ctx context.Context, claimed *ledger.Record, a *answer) error {
	until := v.now().Add(replayFor)
	doc, err := v.store(ctx, claimed, a, until)
	if err != nil {
		return err
	}
	if doc == nil {
		_, err = v.Ledger.Update(ctx, claimed.Key, executed(claimed))
		return err
	}
	_, err = v.Ledger.Hold(ctx, claimed.Key, executed(claimed), doc, until)
	return err
}

// executed notes that the upstream has answered the request that made a claim,
// and what claimed says that the answer costs.
func executed(claimed *ledger.Record) func(*ledger.Record) error {
	return func(r *ledger.Record) error {
		if r.Claims != claimed.Claims {
			return ledger.ErrStale // this request took longer than its lease
		}
		r.Charge = claimed.Charge // it is decided, and never changes again
		return r.To(ledger.Executed)
	}
}

// store returns what is to be stored for a, having stored the parts of a long
// body. It returns nil for an answer that is too large to be stored.
func (v *visit) store(ctx context.Context, claimed *ledger.Record, a *answer, until time.Time) ([]byte, error) {
	if a.Size > int64(orElse(v.route.MaxStored, defaultMaxStored)) {
		return nil, nil
	}
	stored := *a
	if a.Size > maxInline {
		stored.Parts = int((a.Size + ledger.MaxPart - 1) / ledger.MaxPart)
	}
	doc, err := json.Marshal(&stored)
	if err != nil {
		return nil, fmt.Errorf("till: encoding an answer: %w", err)
	}
	if len(doc) > maxHead {
		return nil, nil
	}
	body := a.body()
	if stored.Parts == 0 {
		whole := bytes.NewBuffer(append(doc, '\n'))
		whole.Grow(int(a.Size))
		_, err := whole.ReadFrom(body)
		return whole.Bytes(), err
	}
	part := make([]byte, ledger.MaxPart)
	for i := range stored.Parts {
		n, err := io.ReadFull(body, part)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
		if err := v.Ledger.HoldPart(ctx, claimed, i, part[:n], until); err != nil {
			return nil, err
		}
	}
	return append(doc, '\n'), nil
}

// stored returns the answer that is stored for the claim that r is of, or
// ledger.ErrNotFound.
func (v *visit) stored(ctx context.Context, r *ledger.Record) (*answer, error) {
	doc, err := v.Ledger.Held(ctx, r)
	if err != nil {
		return nil, err
	}
	head, body, ok := bytes.Cut(doc, []byte("\n"))
	a := &answer{}
	if err := json.Unmarshal(head, a); err != nil || !ok {
		return nil, fmt.Errorf("till: reading a stored answer: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	if a.Status < 200 || a.Status > 999 {
		return nil, fmt.Errorf("till: a stored answer has status %d", a.Status)
	}
	if a.Parts == 0 {
		a.body = func() io.Reader { return bytes.NewReader(body) }
		return a, nil
	}
	// The first part is read before anything is said: the answer may be
	// forgotten at any time.
	first, err := v.Ledger.HeldPart(ctx, r, 0)
	if err != nil {
		return nil, err
	}
	a.body = func() io.Reader { return &partsReader{v: v, record: r, parts: a.Parts, next: 1, rest: first} }
	return a, nil
}

// A partsReader reads a body that is stored in parts. A slow client may take
// longer for all of them than any deadline, so each has its own.
type partsReader struct {
	v      *visit
	record *ledger.Record
	parts  int
	next   int
	rest   []byte // of the part before next
}

func (p *partsReader) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.next == p.parts {
			return 0, io.EOF
		}
		ctx, cancel := detach(p.v.r, p.v.route.deadline())
		rest, err := p.v.Ledger.HeldPart(ctx, p.record, p.next)
		cancel()
		if err != nil {
			return 0, fmt.Errorf("till: reading part %d of a stored answer: %w", p.next, err)
		}
		p.rest = rest
		p.next++
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// writeTo sends the answer. An error means that the client may not have all
// of it. An answer that cannot be read to its end is aborted, so that nobody
// takes a part for the whole.
func (a *answer) writeTo(w http.ResponseWriter) error {
	h := w.Header()
	maps.Copy(h, a.Header)
	trailers := bodyAllowed(a.Status)
	for name := range a.Trailer {
		if trailers {
			h.Add("Trailer", name)
		}
	}
	w.WriteHeader(a.Status)
	if !bodyAllowed(a.Status) {
		return nil
	}
	body := &watchedReader{Reader: a.body()}
	if _, err := io.Copy(w, body); err != nil && !errors.Is(err, http.ErrBodyNotAllowed) {
		if body.failed {
			panic(http.ErrAbortHandler)
		}
		return err
	}
	maps.Copy(h, a.Trailer)
	return nil
}

// A watchedReader tells errors of reading from those of writing.
type watchedReader struct {
	io.Reader
	failed bool
}

func (r *watchedReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.failed = err != nil && !errors.Is(err, io.EOF)
	return n, err
}

func bodyAllowed(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}
