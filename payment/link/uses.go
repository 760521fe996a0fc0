package link

import (
	"context"
	"fmt"
	"strings"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// Uses returns at most limit uses of a link, in the order of the ids of their
// receipts, which is not that of time. after is the receipt that the page
// before has ended with, and empty for the first page; next is what to give as
// after for the next page, and empty if there is none.
func (s *Store) Uses(ctx context.Context, id, after ID, limit int) (uses []*Use, next ID, err error) {
	prefix := useKey(id, "")
	from := ledger.Key("")
	if after != "" {
		from = useKey(id, after)
	}
	entries, err := s.Entries.Scan(ctx, prefix, from, limit+1)
	if err != nil {
		return nil, "", err
	}
	for _, e := range entries {
		if len(uses) == limit {
			return uses, uses[limit-1].Receipt, nil
		}
		receipt, err := ParseID(strings.TrimPrefix(string(e.Key), string(prefix)))
		if err != nil {
			return nil, "", fmt.Errorf("link: %s names no receipt: %w", e.Key, err)
		}
		u, err := decodeUse(id, receipt, e)
		if err != nil {
			return nil, "", err
		}
		uses = append(uses, u)
	}
	return uses, "", nil
}
