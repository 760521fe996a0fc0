package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/tollgate402/tollgate/payment"
)

// An Attempt is one signed transaction with the nonce of a slot.
type Attempt struct {
	Hash string `json:"hash"`

	// Raw is the signed transaction; sent again as it is. It is kept of the
	// latest attempt, and of the latest one that is no fill.
	Raw []byte `json:"raw,omitempty"`

	GasFeeCap string `json:"gas_fee_cap"` // wei per gas, in decimal digits
	GasTipCap string `json:"gas_tip_cap"` // wei per gas, in decimal digits
	Gas       uint64 `json:"gas"`         // the limit

	// Fill says that it carries nothing and only uses the nonce up.
	Fill bool `json:"fill,omitempty"`
}

// Cost returns the most that the attempt can cost, in wei.
func (a *Attempt) Cost() (*big.Int, error) {
	feeCap, err := payment.ParseUint256(a.GasFeeCap)
	if err != nil {
		return nil, fmt.Errorf("ledger: the fee cap of transaction %s %w", a.Hash, err)
	}
	return feeCap.Mul(feeCap, new(big.Int).SetUint64(a.Gas)), nil
}

// A Slot is one nonce of a lane and everything that was signed with it. Every
// attempt carries the same payments, or nothing; so whichever of them is
// mined, the nonce can do nothing else. A slot is kept until its nonce is
// used in a final block.
type Slot struct {
	Network  payment.Network `json:"network"`
	Lane     string          `json:"lane"` // address of the account that pays gas
	Nonce    uint64          `json:"nonce"`
	Items    []payment.Key   `json:"-"` // never changes
	Attempts []Attempt       `json:"attempts"`
	Since    time.Time       `json:"since"` // when the nonce was taken

	version uint64 // of the stored entry
}

// Latest returns the attempt that is to be sent. A stored slot has one.
func (s *Slot) Latest() Attempt { return s.Attempts[len(s.Attempts)-1] }

// Payload returns the latest attempt that is no fill, which every stored slot
// has.
func (s *Slot) Payload() Attempt {
	for _, a := range slices.Backward(s.Attempts) {
		if !a.Fill {
			return a
		}
	}
	return s.Latest()
}

// Newer reports whether s was written after other, which is of the same
// nonce.
func (s *Slot) Newer(other *Slot) bool { return s.version > other.version }

func slotKey(n payment.Network, lane string, nonce uint64) Key {
	return Key(fmt.Sprintf("slot/%s/%s/%016x", n, lane, nonce))
}

// Intend stores, in one commit, that the lane's next nonce carries the one
// attempt of slot and that records are settled by it. It is on disk before
// anything may be sent. A record whose transaction did not settle it may be
// given to another slot. Intend returns ErrStale, having stored nothing, if
// the lane or a record is not as given.
func (l *Ledger) Intend(ctx context.Context, lane Lane, slot Slot, records ...Record) (Slot, []Record, error) {
	if slot.Nonce != lane.Next || slot.Lane != lane.Address || slot.Network != lane.Network {
		return Slot{}, nil, fmt.Errorf("ledger: slot %d of lane %s does not fit lane %s at %d", slot.Nonce, slot.Lane, lane.Address, lane.Next)
	}
	if len(slot.Attempts) != 1 || slot.Attempts[0].Fill || len(records) == 0 {
		return Slot{}, nil, fmt.Errorf("ledger: slot %d of lane %s must begin with one attempt that carries payments", slot.Nonce, slot.Lane)
	}
	slot.Items = make([]payment.Key, len(records))
	for i := range records {
		slot.Items[i] = records[i].Key
	}
	defer l.writing.lock(slot.Items...)()
	slot.Since, slot.version = l.now(), Absent
	lane.Next++
	writes := make([]Write, 0, 2+2*len(records))
	w, err := laneWrite(&lane)
	if err != nil {
		return Slot{}, nil, err
	}
	writes = append(writes, w)
	if w, err = slotWrite(&slot); err != nil {
		return Slot{}, nil, err
	}
	writes = append(writes, w)
	records = slices.Clone(records)
	for i := range records {
		r := &records[i]
		if r.State != Intent && r.State != Sent {
			if err := r.To(Intent); err != nil {
				return Slot{}, nil, err
			}
		}
		r.Slots = append(slices.Clip(r.Slots), SlotRef{Lane: slot.Lane, Nonce: slot.Nonce, Hash: slot.Attempts[0].Hash})
		own, err := l.writes(r)
		if err != nil {
			return Slot{}, nil, err
		}
		writes = append(writes, own...)
	}
	if err := l.store.Commit(ctx, writes...); err != nil {
		if conflict(err) {
			err = ErrStale
		}
		return Slot{}, nil, err
	}
	slot.version = 1
	return slot, records, nil
}

// Bump stores another attempt of a slot, before it is sent. The caller says
// with its signature that the attempt carries what the slot does, or nothing.
// The lane is written with it, so that nobody can add to a slot who does not
// know the lane's present state. Bump returns ErrStale, having stored
// nothing, if the lane or the slot is not as given.
func (l *Ledger) Bump(ctx context.Context, lane Lane, slot Slot, a Attempt) (Slot, error) {
	if slot.Lane != lane.Address || slot.Network != lane.Network || slot.Nonce >= lane.Next {
		return Slot{}, fmt.Errorf("ledger: slot %d of lane %s does not fit lane %s at %d", slot.Nonce, slot.Lane, lane.Address, lane.Next)
	}
	keep := ""
	if a.Fill {
		keep = slot.Payload().Hash
	}
	attempts := slices.Clone(slot.Attempts)
	for i := range attempts {
		if attempts[i].Hash != keep {
			attempts[i].Raw = nil
		}
	}
	slot.Attempts = append(attempts, a)
	writes := make([]Write, 0, 2)
	for _, write := range []func() (Write, error){
		func() (Write, error) { return laneWrite(&lane) },
		func() (Write, error) { return slotWrite(&slot) },
	} {
		w, err := write()
		if err != nil {
			return Slot{}, err
		}
		writes = append(writes, w)
	}
	err := l.store.Commit(ctx, writes...)
	if conflict(err) {
		return Slot{}, ErrStale
	}
	slot.version++
	return slot, err
}

// Retire forgets slots whose nonces are used in a final block. It returns
// ErrStale, having forgotten nothing, if one of them is not as given.
func (l *Ledger) Retire(ctx context.Context, slots ...Slot) error {
	writes := make([]Write, len(slots))
	for i, s := range slots {
		writes[i] = Write{Key: slotKey(s.Network, s.Lane, s.Nonce), If: s.version}
	}
	err := l.store.Commit(ctx, writes...)
	if conflict(err) {
		return ErrStale
	}
	return err
}

// Slots returns the slots of all lanes of a network, each lane's in the order
// of their nonces.
func (l *Ledger) Slots(ctx context.Context, n payment.Network) ([]Slot, error) {
	const page = 64
	prefix := Key("slot/" + string(n) + "/")
	var slots []Slot
	for after := Key(""); ; {
		entries, err := l.store.Scan(ctx, prefix, after, page)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			after = e.Key
			s, err := decodeSlot(e)
			if err != nil {
				return nil, err
			}
			slots = append(slots, s)
		}
		if len(entries) < page {
			return slots, nil
		}
	}
}

// A storedSlot is a slot as it is written down: its items in hexadecimal
// digits.
type storedSlot struct {
	*Slot
	Items []string `json:"items"`
}

func slotWrite(s *Slot) (Write, error) {
	stored := storedSlot{Slot: s}
	for _, k := range s.Items {
		stored.Items = append(stored.Items, k.String())
	}
	doc, err := json.Marshal(stored)
	if err != nil {
		return Write{}, fmt.Errorf("ledger: writing slot %d of lane %s: %w", s.Nonce, s.Lane, err)
	}
	return Write{Key: slotKey(s.Network, s.Lane, s.Nonce), If: s.version, Value: doc}, nil
}

func decodeSlot(e Entry) (Slot, error) {
	var s Slot
	stored := storedSlot{Slot: &s}
	if err := json.Unmarshal(e.Value, &stored); err != nil {
		return Slot{}, fmt.Errorf("ledger: reading %s: %w", e.Key, err)
	}
	for _, item := range stored.Items {
		k, err := parseKey(item)
		if err != nil {
			return Slot{}, fmt.Errorf("ledger: reading %s: %w", e.Key, err)
		}
		s.Items = append(s.Items, k)
	}
	if len(s.Attempts) == 0 || slotKey(s.Network, s.Lane, s.Nonce) != e.Key {
		return Slot{}, errors.New("ledger: " + string(e.Key) + " holds no slot: run \"tollgate ledger check\"")
	}
	s.version = e.Version
	return s, nil
}
