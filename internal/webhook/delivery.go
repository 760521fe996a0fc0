package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// A State is how far a delivery is.
type State string

// The states of a delivery.
const (
	Waiting   State = "WAITING" // to be tried, perhaps again
	Delivered State = "DELIVERED"
	Failed    State = "FAILED" // not tried any more, unless by Resend
)

// How long deliveries are kept once they have ended.
const (
	KeepDelivered = 7 * 24 * time.Hour
	KeepFailed    = 30 * 24 * time.Hour
)

// ParseState reads a state, in any case.
func ParseState(s string) (State, error) {
	if state := State(strings.ToUpper(s)); state.known() {
		return state, nil
	}
	return "", fmt.Errorf("webhook: there is no state %.20q: it is waiting, delivered or failed", s)
}

func (s State) known() bool { return s == Waiting || s == Delivered || s == Failed }

// A Delivery is an event on its way to an endpoint.
type Delivery struct {
	Event    Event  `json:"event"`
	Endpoint string `json:"endpoint"` // its name
	State    State  `json:"state"`

	// Due is when it is tried next, while it is WAITING. While Leased is true
	// somebody is trying it, and has until Due to say what came of it.
	Due    time.Time `json:"due,omitzero"`
	Leased bool      `json:"leased,omitempty"`

	// Since is when it was to be tried first. The time for which it is tried
	// again begins there.
	Since time.Time `json:"since"`

	Attempts int `json:"attempts,omitempty"` // since then, as far as it is known what came of them

	LastAt     time.Time `json:"last_at,omitzero"`      // when the last attempt ended
	LastStatus int       `json:"last_status,omitempty"` // of its answer, if there was one
	LastError  string    `json:"last_error,omitempty"`

	Ended time.Time `json:"ended,omitzero"` // when it stopped WAITING

	version uint64
}

// Key spaces. A delivery has its own key, and one place: in the queue of its
// endpoint, in the order in which it is due, or among those that have ended, in
// the order in which they are forgotten. Both are written in one commit.
const (
	deliverySpace = "hook/"
	dueSpace      = "hookdue/"
	endSpace      = "hookend/"
)

func deliveryKey(id, endpoint string) ledger.Key {
	return ledger.Key(deliverySpace + id + "/" + endpoint)
}
func queueOf(endpoint string) ledger.Key { return ledger.Key(dueSpace + endpoint + "/") }
func endedAs(s State) ledger.Key         { return ledger.Key(endSpace + string(s) + "/") }

// instant is a time in a key, where it sorts.
func instant(t time.Time) string { return fmt.Sprintf("%016x", t.UnixMilli()) }

func parseInstant(s string) (time.Time, error) {
	ms, err := strconv.ParseInt(s, 16, 64)
	t := time.UnixMilli(ms)
	if err != nil || instant(t) != s {
		return time.Time{}, errors.New("no time")
	}
	return t, nil
}

// place returns where a delivery is listed.
func (d *Delivery) place() ledger.Key {
	if d.State == Waiting {
		return queueOf(d.Endpoint) + ledger.Key(instant(d.Due)+"/"+d.Event.ID)
	}
	return endedAs(d.State) + ledger.Key(instant(d.Ended)+"/"+d.Event.ID+"/"+d.Endpoint)
}

// parsePlace reads what place returns.
func parsePlace(k ledger.Key) (at time.Time, id, endpoint string, err error) {
	parts := strings.Split(string(k), "/")
	var when string
	switch {
	case len(parts) == 4 && parts[0]+"/" == dueSpace:
		endpoint, when, id = parts[1], parts[2], parts[3]
	case len(parts) == 5 && parts[0]+"/" == endSpace:
		when, id, endpoint = parts[2], parts[3], parts[4]
	}
	at, err = parseInstant(when)
	if err != nil || !isID(id) || !nameForm.MatchString(endpoint) {
		return at, "", "", fmt.Errorf("webhook: %s is no place of a delivery", k)
	}
	return at, id, endpoint, nil
}

// decode reads a stored delivery.
func decode(e ledger.Entry) (*Delivery, error) {
	d := &Delivery{version: e.Version}
	if err := json.Unmarshal(e.Value, d); err != nil {
		return nil, fmt.Errorf("webhook: reading %s: %w", e.Key, err)
	}
	err := d.Event.check()
	switch {
	case err == nil && deliveryKey(d.Event.ID, d.Endpoint) != e.Key:
		err = errors.New("it is of another event or endpoint")
	case err == nil && !nameForm.MatchString(d.Endpoint):
		err = errors.New("its endpoint has no name")
	case err == nil && d.Attempts < 0:
		err = errors.New("it was tried less than never")
	case err == nil && !d.State.known():
		err = errors.New("its state does not exist")
	}
	if err != nil {
		return nil, fmt.Errorf("webhook: reading %s: %w", e.Key, err)
	}
	return d, nil
}

// move returns what stores next in place of d, which was read.
func (d *Delivery) move(next *Delivery) ([]ledger.Write, error) {
	for _, t := range []*time.Time{&next.Due, &next.Since, &next.LastAt, &next.Ended} {
		if !t.IsZero() {
			*t = t.UTC().Truncate(time.Millisecond) // as it is in a key
		}
	}
	doc, err := json.Marshal(next)
	if err != nil {
		return nil, fmt.Errorf("webhook: writing event %s: %w", next.Event.ID, err)
	}
	writes := []ledger.Write{{Key: deliveryKey(next.Event.ID, next.Endpoint), If: d.version, Value: doc}}
	from, to := d.place(), next.place()
	if d.version != ledger.Absent && from != to {
		writes = append(writes, ledger.Write{Key: from, If: ledger.AnyVersion})
	}
	return append(writes, ledger.Write{Key: to, If: ledger.AnyVersion, Value: []byte{}}), nil
}

// enqueue returns the entries of an event that is to be delivered.
func enqueue(e Event, endpoint string) ([]ledger.Write, error) {
	d := Delivery{Event: e, Endpoint: endpoint, State: Waiting, Due: e.Created, Since: e.Created}
	return (&Delivery{}).move(&d)
}

// settle notes what came of an attempt.
func (d *Delivery) settle(r *result, now time.Time, chance func() float64) {
	d.Leased, d.Attempts = false, d.Attempts+1
	d.LastAt, d.LastStatus, d.LastError = now, r.status, r.problem
	d.Due = now.Add(max(pause(d.Attempts, chance()), r.after))
	switch {
	case r.problem == "":
		d.State, d.Ended = Delivered, now
	case r.gone:
		d.State, d.Ended = Failed, now
	case d.Due.After(d.Since.Add(tryFor)):
		d.State, d.Ended = Failed, now
		d.LastError += "; it was tried for three days"
	}
	if d.State != Waiting {
		d.Due = time.Time{}
	}
}
