package payment_test

import (
	"strings"
	"testing"

	"github.com/tollgate402/tollgate/payment"
)

func TestFinalityIsReadAsItIsPrinted(t *testing.T) {
	for _, row := range []struct {
		written string
		want    payment.Finality
		printed string
		blocks  uint64
		counted bool
	}{
		{"submitted", payment.Submitted, "submitted", 0, true},
		{"included", payment.Included, "included", 1, true},
		{"1", payment.Included, "included", 1, true},
		{"2", payment.Confirmed(2), "2", 2, true},
		{"1000", payment.Confirmed(1000), "1000", 1000, true},
		{"safe", payment.Safe, "safe", 0, false},
		{"finalized", payment.Finalized, "finalized", 0, false},
	} {
		f, err := payment.ParseFinality(row.written)
		if err != nil || f != row.want || f.String() != row.printed {
			t.Errorf("%s: got %s, %v", row.written, f, err)
		}
		if n, ok := f.Confirmations(); n != row.blocks || ok != row.counted {
			t.Errorf("%s: %d confirmations, %v", row.written, n, ok)
		}
		if again, err := payment.ParseFinality(f.String()); err != nil || again != f {
			t.Errorf("%s prints as %s, which reads as %s, %v", row.written, f, again, err)
		}
	}
}

func TestTheZeroFinalityAsksForInclusion(t *testing.T) {
	var zero payment.Finality
	if zero != payment.Included || payment.Confirmed(0) != zero || payment.Confirmed(1) != zero {
		t.Error("the zero value is not inclusion")
	}
}

func TestWhatIsNoFinalityIsRefused(t *testing.T) {
	for _, s := range []string{"", " ", "0", "1001", "-1", "+2", "1.5", "2 ", " 2", "0x2", "1e2", "Safe", "FINALIZED", "confirmed", "latest", "18446744073709551616", strings.Repeat("9", 500)} {
		f, err := payment.ParseFinality(s)
		if err == nil || f != (payment.Finality{}) {
			t.Errorf("%q became %s", s, f)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("the error has %d bytes", len(err.Error()))
		}
	}
}
