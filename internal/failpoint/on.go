//go:build failpoint

package failpoint

import (
	"context"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// set is the trap of this process. The wrappers are functions without a
// receiver, so that other builds have nothing to carry around; this is where
// they meet.
var set = trapFrom(os.Getenv(EnvPoint), os.Getenv(EnvFile))

// A trap kills the process at one point.
type trap struct {
	point Point
	file  string
	left  atomic.Int64 // how often the point is still to be passed, this time included
}

// trapFrom reads "K4:3". The empty string never fires; what cannot be read is
// a mistake of the harness, which must not go unnoticed.
func trapFrom(setting, file string) *trap {
	t := &trap{file: file}
	if setting == "" {
		return t
	}
	point, count, _ := strings.Cut(setting, ":")
	n, err := strconv.ParseInt(count, 10, 32)
	if err != nil || n < 1 || file == "" {
		panic("failpoint: " + EnvPoint + " must be like K4:3, and " + EnvFile + " must name a file")
	}
	t.point = Point(point)
	t.left.Store(n)
	return t
}

// due reports whether p is the point, and this the time, to die. Whoever gets
// true calls spring.
func (t *trap) due(p Point) bool { return t.point == p && t.left.Add(-1) == 0 }

// hit dies if it is time to.
func (t *trap) hit(p Point) {
	if t.due(p) {
		t.spring()
	}
}

// spring leaves word of the point and kills the process. It does not return.
func (t *trap) spring() {
	f, err := os.OpenFile(t.file, os.O_WRONLY|os.O_CREATE|os.O_APPEND|os.O_SYNC, 0o600)
	if err == nil {
		_, err = f.WriteString(string(t.point) + "\n")
	}
	if err != nil {
		panic("failpoint: leaving word of " + string(t.point) + ": " + err.Error())
	}
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic("failpoint: killing the process: " + err.Error())
	}
	select {}
}

// Store fires at K0 to K4, K6, K7, K11, K12 and K14.
func Store(s ledger.Store) ledger.Store {
	if Break(os.Getenv(EnvBreak)) == ClaimNotDurable {
		s = newForgetful(s)
	}
	return newStore(s, set)
}

// Chain fires at K5.
func Chain(c settle.Chain) settle.Chain { return &broadcaster{c} }

type broadcaster struct{ settle.Chain }

func (b *broadcaster) Broadcast(ctx context.Context, raw []byte) error {
	err := b.Chain.Broadcast(ctx, raw)
	if err == nil {
		set.hit(Broadcast)
	}
	return err
}

// Remote fires at K5, for a facilitator elsewhere: when it has answered a
// request to settle.
func Remote(f payment.Facilitator) payment.Facilitator { return &remote{f} }

type remote struct{ payment.Facilitator }

func (r *remote) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	s, err := r.Facilitator.Settle(ctx, p, o, charge)
	set.hit(Broadcast)
	return s, err
}

// Facilitator is where TimeoutIsUnpaid makes its mistake.
func Facilitator(f payment.Facilitator) payment.Facilitator {
	if Break(os.Getenv(EnvBreak)) == TimeoutIsUnpaid {
		return &hasty{f}
	}
	return f
}

// Writer fires at K8 to K10.
func Writer(w http.ResponseWriter) http.ResponseWriter { return &writer{ResponseWriter: w, trap: set} }

// Reloaded fires at K13.
func Reloaded() { set.hit(Reloading) }
