package ledgertest

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// tenantsShareTheirDays has several instances count settlements of two tenants
// around midnight, all at once. Each tenant gets what a day allows, no more and
// no less.
func tenantsShareTheirDays(t *testing.T, stores []ledger.Store) {
	const most, tries = 6, 5
	midnight := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	days := []time.Time{midnight.Add(-time.Second), midnight}
	tenants := []string{"one", "two"}
	var got [2][2]atomic.Int64
	parallel(len(stores)*4, func(i int) {
		l := ledger.NewShared(stores[i%len(stores)], fmt.Sprint("caller-", i), time.Now)
		for try := range tries * 4 {
			tenant, day := try%2, try/2%2
			ok, err := l.Book(ctx, tenants[tenant], days[day], most)
			if err != nil {
				t.Error(err)
				return
			}
			if ok {
				got[tenant][day].Add(1)
			}
		}
	})
	l := ledger.NewShared(stores[0], "reader", time.Now)
	for tenant, name := range tenants {
		for day, at := range days {
			n, err := l.Booked(ctx, name, at)
			if booked := got[tenant][day].Load(); booked != most || n != most || err != nil {
				t.Errorf("tenant %s got %d on day %d, and the ledger has %d (%v); want %d", name, booked, day, n, err, most)
			}
		}
	}
}
