//go:build !failpoint

package failpoint_test

import (
	"net/http/httptest"
	"testing"

	"github.com/tollgate402/tollgate/internal/failpoint"
	"github.com/tollgate402/tollgate/internal/ledger"
)

func TestOrdinaryBuildsHaveNoFailpoints(t *testing.T) {
	t.Setenv(failpoint.EnvPoint, "K0:1")
	t.Setenv(failpoint.EnvBreak, string(failpoint.ClaimNotDurable))
	s := ledger.NewMemory()
	if failpoint.Store(s) != ledger.Store(s) {
		t.Error("the store is wrapped")
	}
	if w := httptest.NewRecorder(); failpoint.Writer(w) != w {
		t.Error("the writer is wrapped")
	}
	if failpoint.Chain(nil) != nil || failpoint.Remote(nil) != nil || failpoint.Facilitator(nil) != nil {
		t.Error("chain or facilitator are wrapped")
	}
	failpoint.Reloaded()
}
