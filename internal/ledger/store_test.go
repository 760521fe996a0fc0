package ledger_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/ledgertest"
)

func TestMemoryConforms(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T) ledger.Store {
		s := ledger.NewMemory()
		t.Cleanup(func() { _ = s.Close() })
		return s
	}, nil)
}

func TestCallersShareMemory(t *testing.T) {
	ledgertest.RunShared(t, func(t *testing.T, instances int) []ledger.Store {
		return slices.Repeat([]ledger.Store{ledger.NewMemory()}, instances)
	})
}

func FuzzKeyCheckAcceptsPrintableASCIIOnly(f *testing.F) {
	for _, k := range []string{"", "a", "pay/0x1f/3", "a b", "a\n", "\x7f", "~!", "é", strings.Repeat("k", 512), strings.Repeat("k", 513)} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, k string) {
		valid := len(k) >= 1 && len(k) <= 512
		for _, r := range k {
			valid = valid && '!' <= r && r <= '~'
		}
		if err := ledger.Key(k).Check(); (err == nil) != valid {
			t.Fatalf("Check of %q returned %v", k, err)
		}
		if err := ledger.CheckScan(ledger.Key(k), "", 1); (err == nil) != (valid || k == "") {
			t.Fatalf("a scan of the prefix %q was answered with %v", k, err)
		}
	})
}
