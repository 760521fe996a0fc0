package ledger_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/internal/ledger"
)

var states = []ledger.State{
	ledger.Reserved, ledger.Executing, ledger.Executed, ledger.Intent, ledger.Sent, ledger.Included,
	ledger.Settled, ledger.Archived, ledger.Released, ledger.Dead, ledger.RefundDue, ledger.Refunded, ledger.WrittenOff,
}

func TestOnlyTheStepsOfTheDesignExist(t *testing.T) {
	steps := map[ledger.State]string{
		"":               "RESERVED EXECUTING INTENT",
		ledger.Reserved:  "EXECUTING INTENT INCLUDED SETTLED RELEASED",
		ledger.Executing: "EXECUTED INCLUDED SETTLED RELEASED",
		ledger.Executed:  "INTENT INCLUDED SETTLED RELEASED",
		ledger.Released:  "RESERVED EXECUTING INTENT INCLUDED SETTLED DEAD WRITTEN_OFF",
		ledger.Intent:    "SENT INCLUDED SETTLED DEAD RELEASED",
		ledger.Sent:      "INCLUDED SETTLED DEAD",
		ledger.Included:  "SENT SETTLED DEAD",
		ledger.Settled:   "SENT ARCHIVED REFUND_DUE",
		ledger.Archived:  "REFUND_DUE",
		ledger.Dead:      "WRITTEN_OFF",
		ledger.RefundDue: "REFUNDED",

		ledger.Refunded: "", ledger.WrittenOff: "",
	}
	for from, list := range steps {
		allowed := map[string]bool{}
		for s := range bytes.FieldsSeq([]byte(list)) {
			allowed[string(s)] = true
		}
		for _, to := range append(states, "", "ELSEWHERE") {
			if got := from.Can(to); got != allowed[string(to)] {
				t.Errorf("from %q to %q: %v", from, to, got)
			}
			r := ledger.Record{State: from}
			if err := r.To(to); (err == nil) != allowed[string(to)] || err == nil && r.State != to || err != nil && r.State != from {
				t.Errorf("from %q to %q: %v, then it is %q", from, to, err, r.State)
			}
		}
	}
}

// Whatever path a payment takes: what may have been broadcast is never
// released by us, what rests stays, and nothing dies that is archived.
func TestNoPathLosesABroadcastPayment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := ledger.Record{}
		sent := false
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			var next []ledger.State
			for _, s := range states {
				if r.State.Can(s) {
					next = append(next, s)
				}
			}
			if len(next) == 0 {
				if !r.State.Resting() {
					t.Fatalf("%s is a dead end", r.State)
				}
				return
			}
			to := rapid.SampledFrom(next).Draw(t, "to")
			switch {
			case r.State.Resting() && !to.Resting():
				t.Fatalf("%s does not rest: it went to %s", r.State, to)
			case r.State.Paid() && !to.Paid() && to != ledger.Sent:
				t.Fatalf("money that had come was forgotten from %s to %s", r.State, to)
			case sent && (to == ledger.Released || to == ledger.Reserved || to == ledger.Executing || to == ledger.Executed):
				t.Fatalf("sent, it went from %s to %s", r.State, to)
			case to == ledger.Archived && !r.State.Paid():
				t.Fatalf("it was archived from %s", r.State)
			case to.Paid() && !to.Broadcast():
				t.Fatalf("%s is paid but not broadcast", to)
			}
			if err := r.To(to); err != nil {
				t.Fatal(err)
			}
			sent = sent || to == ledger.Sent || to == ledger.Included || to == ledger.Settled
		}
	})
}

func TestOnlyWhatComesInAfterAReleaseIsLetGo(t *testing.T) {
	r := ledger.Record{State: ledger.Executing}
	for _, step := range []struct {
		to    ledger.State
		letGo bool
	}{{ledger.Released, true}, {ledger.Executing, false}, {ledger.Released, true}, {ledger.Included, true}, {ledger.Settled, true}, {ledger.Archived, true}} {
		if err := r.To(step.to); err != nil || r.LetGo != step.letGo {
			t.Errorf("%s: let go %v, %v", step.to, r.LetGo, err)
		}
	}
}

func TestTheLatestTransactionIsTheOneOfTheTransfer(t *testing.T) {
	r := ledger.Record{}
	if r.Transaction() != "" {
		t.Error("a transaction from nowhere")
	}
	r.Slots = []ledger.SlotRef{{Hash: "0x01"}, {Hash: "0x02"}}
	if r.Transaction() != "0x02" {
		t.Errorf("got %s", r.Transaction())
	}
	r.Included = &ledger.Inclusion{Transaction: "0x03"}
	if r.Transaction() != "0x03" {
		t.Errorf("got %s", r.Transaction())
	}
}

func FuzzRecordsSurviveTheirEncoding(f *testing.F) {
	f.Add("SENT", []byte("raw"), uint64(7), "0x01", "why", `{"a":[1,2]}`, int64(1790000000), true)
	f.Add("", []byte{}, uint64(0), "", "", `null`, int64(0), false)
	f.Add("X\x00\"", []byte{0xff}, ^uint64(0), "é\u2028", "<>&", `"<"`, int64(-1), true)
	f.Fuzz(func(t *testing.T, state string, raw []byte, n uint64, hash, reason, request string, at int64, included bool) {
		if !utf8.ValidString(state+" "+hash+" "+reason) || !json.Valid([]byte(request)) || at < -1<<35 || at > 1<<37 {
			return
		}
		r := ledger.Record{
			State: ledger.State(state), Claims: int(n % 1000), Mode: reason, Request: json.RawMessage(request),
			Owner: hash, Lease: time.Unix(at, 7).UTC(), IntentBlock: n, Reason: reason,
			Slots: []ledger.SlotRef{{Lane: hash, Nonce: n, Hash: hash}},
			Since: time.Unix(at, 0).UTC(), Updated: time.Unix(at, 0).UTC(),
		}
		copy(r.Binding[:], raw)
		copy(r.Proof[:], hash)
		if included {
			r.Included = &ledger.Inclusion{Transaction: hash, Block: n, BlockHash: reason, LogIndex: uint(n % 7)}
		}
		once, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var back ledger.Record
		if err := json.Unmarshal(once, &back); err != nil {
			t.Fatal(err)
		}
		twice, err := json.Marshal(back)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s became %s, %v", once, twice, err)
		}
		if back.Slots[0] != r.Slots[0] || back.Binding != r.Binding || back.Proof != r.Proof ||
			back.IntentBlock != n || !back.Lease.Equal(r.Lease) || !reflect.DeepEqual(back.Included == nil, r.Included == nil) {
			t.Fatalf("%+v became %+v", r, back)
		}
	})
}
