//go:build !failpoint

package failpoint

import (
	"net/http"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// Store returns s.
func Store(s ledger.Store) ledger.Store { return s }

// Chain returns c.
func Chain(c settle.Chain) settle.Chain { return c }

// Remote returns f.
func Remote(f payment.Facilitator) payment.Facilitator { return f }

// Facilitator returns f.
func Facilitator(f payment.Facilitator) payment.Facilitator { return f }

// Writer returns w.
func Writer(w http.ResponseWriter) http.ResponseWriter { return w }

// Reloaded does nothing.
func Reloaded() {}
