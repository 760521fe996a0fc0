package meter

// An eventReader takes a stream of server-sent events apart as it comes in
// pieces (WHATWG HTML, section 9.2.6). It keeps none of it: the data of each
// event goes to json as it is read.
type eventReader struct {
	json   *scanner // nil where nobody reads the data
	events int64    // that were complete and had data

	started bool // the first byte has come: a mark of byte order is skipped
	mark    int  // how many bytes of that mark have come
	cr      bool // the last byte was CR: an LF belongs to the same end of line

	part  linePart
	field int   // how many bytes of "data" the line begins with
	lines int   // lines of data in the event
	size  int64 // of the event's data
	done  int   // how many bytes of "[DONE]" the data begins with; -1 if it is something else
}

// A linePart is where in a line a byte is.
type linePart int

const (
	inField    linePart = iota // the field's name, so far a beginning of "data"
	afterColon                 // one space may follow
	inData
	ignored // another field, or a comment
)

const (
	dataField = "data"
	doneData  = "[DONE]" // how OpenAI's streams end: no JSON and nothing that is sold
	orderMark = "\ufeff"
)

func (r *eventReader) write(b []byte) {
	for i := 0; i < len(b); i++ {
		c := b[i]
		if !r.started {
			if r.mark < len(orderMark) && c == orderMark[r.mark] {
				if r.mark++; r.mark == len(orderMark) {
					r.started = true
				}
				continue
			}
			r.started = true
			if r.mark > 0 {
				r.part = ignored // the line begins with some other bytes
			}
		}
		switch {
		case c == '\n' && r.cr:
			r.cr = false
			continue
		case c == '\n' || c == '\r':
			r.cr = c == '\r'
			r.endLine()
			continue
		}
		r.cr = false
		switch r.part {
		case inField:
			switch {
			case r.field < len(dataField) && c == dataField[r.field]:
				r.field++
			case r.field == len(dataField) && c == ':':
				r.part = afterColon
				r.beginData()
			default:
				r.part = ignored
			}
		case afterColon:
			r.part = inData
			if c != ' ' {
				r.data(b[i : i+1])
			}
		case inData:
			end := i + 1
			for end < len(b) && b[end] != '\n' && b[end] != '\r' {
				end++
			}
			r.data(b[i:end])
			i = end - 1
		case ignored:
		}
	}
}

// beginData begins a line of data.
func (r *eventReader) beginData() {
	if r.lines++; r.lines > 1 {
		r.data([]byte{'\n'})
	}
}

func (r *eventReader) data(b []byte) {
	for i := 0; i < len(b) && r.done >= 0; i++ {
		if r.done < len(doneData) && b[i] == doneData[r.done] {
			r.done++
		} else {
			r.done = -1
		}
	}
	r.size += int64(len(b))
	if r.json != nil {
		r.json.write(b)
	}
}

func (r *eventReader) endLine() {
	empty := r.part == inField && r.field == 0
	if r.part == inField && r.field == len(dataField) { // "data" without a colon is an empty line of data
		r.beginData()
	}
	r.part, r.field = inField, 0
	if !empty {
		return
	}
	if r.size > 0 && r.done != len(doneData) {
		r.events++
	}
	r.lines, r.size, r.done = 0, 0, 0
	if r.json != nil {
		r.json.reset()
	}
}
