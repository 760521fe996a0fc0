package ledgertest

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// passesAreUsedAsOftenAsBought has several instances use two passes at once,
// and give some calls back. What is kept is never more than was bought,
// and is what the ledger says; after a revocation nothing is used any more.
func passesAreUsedAsOftenAsBought(t *testing.T, stores []ledger.Store) {
	const most, tries = 6, 8
	passes := []payment.Key{{1}, {2}}
	var kept [2]atomic.Int64
	use := func(l *ledger.Ledger, i int) bool {
		n, err := l.UsePass(ctx, passes[i], most)
		switch {
		case errors.Is(err, ledger.ErrPassUsedUp):
		case err != nil:
			t.Error(err)
		case n < 1 || n > most:
			t.Errorf("call %d of %d", n, most)
		default:
			kept[i].Add(1)
			return true
		}
		return false
	}
	parallel(len(stores)*4, func(caller int) {
		l := ledger.NewShared(stores[caller%len(stores)], fmt.Sprint("caller-", caller), time.Now)
		for try := range tries {
			i := try % 2
			if use(l, i) && caller%4 == 0 {
				kept[i].Add(-1)
				if err := l.ReturnPass(ctx, passes[i]); err != nil {
					t.Error(err)
				}
			}
		}
	})
	l := ledger.NewShared(stores[0], "reader", time.Now)
	for i, k := range passes {
		p, err := l.Pass(ctx, k)
		if n := kept[i].Load(); int64(p.Used) != n || n > most || n < 1 || err != nil {
			t.Errorf("%d calls of pass %d count, and the ledger has %+v (%v); %d were bought", n, i, p, err, most)
		}
	}
	if err := l.RevokePass(ctx, passes[0]); err != nil {
		t.Fatal(err)
	}
	for i, s := range stores {
		if _, err := ledger.NewShared(s, fmt.Sprint("late-", i), time.Now).UsePass(ctx, passes[0], 1000); !errors.Is(err, ledger.ErrPassRevoked) {
			t.Errorf("instance %d: %v", i, err)
		}
	}
}
