package ledgertest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// reference says what a store does, in the simplest way.
type reference map[ledger.Key]ledger.Entry

// commit applies writes, or returns the first whose condition does not hold.
func (r reference) commit(writes []ledger.Write) (refused *ledger.Write) {
	for i, w := range writes {
		if w.If != ledger.AnyVersion && w.If != r[w.Key].Version {
			return &writes[i]
		}
	}
	for _, w := range writes {
		if w.Value == nil {
			delete(r, w.Key)
			continue
		}
		r[w.Key] = ledger.Entry{Key: w.Key, Version: r[w.Key].Version + 1, Value: bytes.Clone(w.Value)}
	}
	return nil
}

func (r reference) scan(prefix, after ledger.Key, limit int) (page []ledger.Entry) {
	for k, e := range r {
		if k > after && strings.HasPrefix(string(k), string(prefix)) {
			page = append(page, e)
		}
	}
	slices.SortFunc(page, func(a, b ledger.Entry) int { return strings.Compare(string(a.Key), string(b.Key)) })
	return page[:min(limit, len(page))]
}

// anySequenceBehavesLikeTheReference draws sequences of all operations, each
// under a prefix of its own in the same store.
func anySequenceBehavesLikeTheReference(t *testing.T, s ledger.Store, reopen func(*testing.T, ledger.Store) ledger.Store) {
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		root := ledger.Key(fmt.Sprintf("run/%d/", run))
		want := reference{}
		keys := rapid.Map(rapid.SampledFrom([]ledger.Key{"a", "a/1", "a/2", "a0", "b", "b/~", "c/!", "c/d/e"}),
			func(k ledger.Key) ledger.Key { return root + k })

		writes := rapid.Custom(func(rt *rapid.T) []ledger.Write {
			var out []ledger.Write
			for _, k := range rapid.SliceOfNDistinct(keys, 0, 5, rapid.ID).Draw(rt, "keys") {
				w := ledger.Write{Key: k, If: rapid.SampledFrom([]uint64{
					want[k].Version, want[k].Version, want[k].Version, ledger.AnyVersion, ledger.Absent, 1, want[k].Version + 1,
				}).Draw(rt, "if")}
				if rapid.IntRange(0, 3).Draw(rt, "delete") > 0 {
					w.Value = append([]byte{}, rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(rt, "value")...)
				}
				out = append(out, w)
			}
			return out
		})

		actions := map[string]func(*rapid.T){
			"commit": func(rt *rapid.T) {
				drawn := writes.Draw(rt, "writes")
				refused := want.commit(drawn)
				err := s.Commit(ctx, drawn...)
				if refused == nil {
					if err != nil {
						rt.Fatalf("commit of %v: %v", drawn, err)
					}
					return
				}
				var conflict *ledger.ConflictError
				if !errors.As(err, &conflict) {
					rt.Fatalf("commit of %v returned %v, want a conflict about %s", drawn, err, refused.Key)
				}
				have := want[refused.Key]
				have.Key = refused.Key
				if conflict.Key != refused.Key || !equal(conflict.Have, have) {
					rt.Fatalf("conflict about %s with %v, want %v", conflict.Key, conflict.Have, have)
				}
			},
			"later": func(rt *rapid.T) {
				drawn := writes.Draw(rt, "writes")
				want.commit(drawn)
				s.Later(drawn...)
			},
			"get": func(rt *rapid.T) {
				key := keys.Draw(rt, "key")
				if err := s.Commit(ctx); err != nil {
					rt.Fatal(err)
				}
				e, err := s.Get(ctx, key)
				have, exists := want[key]
				switch {
				case exists && (err != nil || !equal(e, have)):
					rt.Fatalf("get %s returned %v, %v, want %v", key, e, err, have)
				case !exists && !errors.Is(err, ledger.ErrNotFound):
					rt.Fatalf("get %s returned %v, %v, want not found", key, e, err)
				}
			},
			"scan": func(rt *rapid.T) {
				prefix := root + rapid.SampledFrom([]ledger.Key{"", "a", "a/", "b", "c/", "c/d/e", "d"}).Draw(rt, "prefix")
				after := rapid.OneOf(rapid.Just(ledger.Key("")), keys).Draw(rt, "after")
				limit := rapid.IntRange(1, 10).Draw(rt, "limit")
				if err := s.Commit(ctx); err != nil {
					rt.Fatal(err)
				}
				page, err := s.Scan(ctx, prefix, after, limit)
				if err != nil {
					rt.Fatal(err)
				}
				if expected := want.scan(prefix, after, limit); !slices.EqualFunc(page, expected, equal) {
					rt.Fatalf("scan of %s after %s found %v, want %v", prefix, after, page, expected)
				}
			},
		}
		rt.Repeat(actions)
		if reopen != nil && run%25 == 0 {
			s = reopen(t, s)
		}
		if err := s.Commit(ctx); err != nil {
			rt.Fatal(err)
		}
		page, err := s.Scan(ctx, root, "", ledger.MaxScan)
		if expected := want.scan(root, "", ledger.MaxScan); err != nil || !slices.EqualFunc(page, expected, equal) {
			rt.Fatalf("at the end the store has %v, %v, want %v", page, err, expected)
		}
	})
}
