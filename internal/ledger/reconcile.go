package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/tollgate402/tollgate/payment"
)

// A Checkpoint says how far the transfers of a token to one account have been
// compared with the ledger.
type Checkpoint struct {
	Network payment.Network `json:"network"`
	Token   string          `json:"token"`
	PayTo   string          `json:"pay_to"`
	Block   uint64          `json:"block"` // the last one that has been compared

	version uint64
}

func checkpointKey(c *Checkpoint) Key {
	return Key(fmt.Sprintf("compared/%s/%s/%s", c.Network, c.Token, c.PayTo))
}

// paidKey sorts final transfers by their blocks.
func paidKey(n payment.Network, block uint64, k payment.Key) Key {
	return Key(fmt.Sprintf("paid/%s/%016x/%s", n, block, k))
}

// SetCheckpoint stores a checkpoint. It returns ErrStale if that is not as it
// was read, or, for a new one, if there is one already.
func (l *Ledger) SetCheckpoint(ctx context.Context, c Checkpoint) error {
	doc, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("ledger: writing a checkpoint: %w", err)
	}
	err = l.store.Commit(ctx, Write{Key: checkpointKey(&c), If: c.version, Value: doc})
	if conflict(err) {
		return ErrStale
	}
	return err
}

// Checkpoints returns the checkpoints of a network.
func (l *Ledger) Checkpoints(ctx context.Context, n payment.Network) ([]Checkpoint, error) {
	const page = 256
	var list []Checkpoint
	for after := Key(""); ; {
		entries, err := l.store.Scan(ctx, Key("compared/"+string(n)+"/"), after, page)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			after = e.Key
			c := Checkpoint{version: e.Version}
			if err := json.Unmarshal(e.Value, &c); err != nil {
				return nil, fmt.Errorf("ledger: reading %s: %w", e.Key, err)
			}
			list = append(list, c)
		}
		if len(entries) < page {
			return list, nil
		}
	}
}

// Paid lists the archived payments of a network whose transfers are in blocks
// from and to, or between them, in the order of the blocks.
func (l *Ledger) Paid(ctx context.Context, n payment.Network, from, to uint64) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		const page = 256
		prefix := Key("paid/" + string(n) + "/")
		after := Key(fmt.Sprintf("%s%016x", prefix, from))
		end := Key(fmt.Sprintf("%s%016x/~", prefix, to))
		for {
			entries, err := l.store.Scan(ctx, prefix, after, page)
			if err != nil {
				yield(Record{}, err)
				return
			}
			for _, e := range entries {
				after = e.Key
				if e.Key > end {
					return
				}
				k, err := parseKey(string(e.Key[strings.LastIndexByte(string(e.Key), '/')+1:]))
				if err != nil {
					yield(Record{}, err)
					return
				}
				r, err := l.Get(ctx, k)
				if errors.Is(err, ErrNotFound) {
					err = fmt.Errorf("ledger: payment %s is listed as paid but not stored: run \"tollgate ledger check\"", k)
				}
				if !yield(r, err) || err != nil {
					return
				}
			}
			if len(entries) < page {
				return
			}
		}
	}
}
