package ledger

import (
	"bytes"
	"sync"

	"github.com/tollgate402/tollgate/payment"
)

// decodedRecords remembers what stored bytes decode to. A payment is read
// several times in every step that it takes, and comparing its bytes costs a
// hundredth of decoding them. It is never wrong about what is stored, because
// it is asked with what is stored. Its zero value is ready for use.
//
// The records that it gives out share what their pointers and slices lead to,
// which nobody changes: a change puts another one in its place.
type decodedRecords struct {
	mu    sync.Mutex
	young map[payment.Key]decodedRecord // guarded by mu
	old   map[payment.Key]decodedRecord // guarded by mu: what was young until that was full
}

type decodedRecord struct {
	doc    []byte
	record Record
}

// maxDecoded is how many records of one generation are remembered, of about 3
// KB each.
const maxDecoded = 1024

// get returns what doc, stored for a payment, decodes to.
func (d *decodedRecords) get(k payment.Key, doc []byte) (Record, bool) {
	d.mu.Lock()
	known, ok := d.young[k]
	if !ok {
		known, ok = d.old[k]
	}
	d.mu.Unlock()
	if !ok || !bytes.Equal(known.doc, doc) {
		return Record{}, false
	}
	return known.record, true
}

// put remembers what doc, which nobody changes any more, decodes to.
func (d *decodedRecords) put(doc []byte, r *Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.young == nil || len(d.young) >= maxDecoded {
		d.young, d.old = make(map[payment.Key]decodedRecord), d.young
	}
	d.young[r.Key] = decodedRecord{doc, *r}
}
