package settle_test

import (
	"reflect"
	"testing"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// Decide is held against its promises on every combination of what matters.
func TestDecideKeepsItsPromisesEverywhere(t *testing.T) {
	const validBefore = 1000
	states := []ledger.State{
		ledger.Reserved, ledger.Executing, ledger.Executed, ledger.Intent, ledger.Sent, ledger.Included,
		ledger.Settled, ledger.Archived, ledger.Released, ledger.Dead,
	}
	until := []payment.Finality{payment.Submitted, payment.Included, payment.Confirmed(3), payment.Safe, payment.Finalized}
	horizons := []settle.Sight{ // the block of the transfer is 100
		{Head: 100, Safe: 98, Finalized: 96},
		{Head: 102, Safe: 100, Finalized: 98},
		{Head: 104, Safe: 102, Finalized: 100},
		{Head: 200, Safe: 198, Finalized: 196},
	}
	here := ledger.Inclusion{Transaction: "0x01", Block: 100, BlockHash: "0xaa", LogIndex: 1}
	elsewhere := ledger.Inclusion{Transaction: "0x01", Block: 99, BlockHash: "0xbb"}
	cases := 0
	for _, state := range states {
		for _, u := range until {
			for _, sight := range horizons {
				for _, fate := range []evm.Fate{evm.Untouched, evm.Paid, evm.Spent} {
					for _, stored := range []*ledger.Inclusion{nil, &here, &elsewhere} {
						for _, time := range []uint64{validBefore - 1, validBefore} {
							for flags := range 4 {
								sight.Fate, sight.FinalizedTime = fate, time
								sight.Complete, sight.Mined = flags&1 != 0, flags&2 != 0
								sight.Found = ledger.Inclusion{}
								if fate != evm.Untouched {
									sight.Found = here
								}
								r := ledger.Record{State: state, Included: stored}
								before := r
								step := settle.Decide(&r, u, validBefore, sight)
								if !reflect.DeepEqual(r, before) || !reflect.DeepEqual(step, settle.Decide(&r, u, validBefore, sight)) {
									t.Fatal("it is not pure")
								}
								promises(t, &r, u, validBefore, sight, step)
								cases++
							}
						}
					}
				}
			}
		}
	}
	if cases != 10*5*4*3*3*2*4 {
		t.Errorf("%d cases", cases)
	}
}

func promises(t *testing.T, r *ledger.Record, until payment.Finality, validBefore uint64, s settle.Sight, step settle.Step) {
	t.Helper()
	sure := s.Found.Block <= s.Finalized
	switch until {
	case payment.Submitted, payment.Included:
		sure = true
	case payment.Confirmed(3):
		sure = s.Head >= s.Found.Block+2
	case payment.Safe:
		sure = s.Found.Block <= s.Safe
	}
	paid := s.Fate == evm.Paid
	final := s.Fate != evm.Untouched && s.Found.Block <= s.Finalized
	expired := s.Fate == evm.Untouched && s.Complete && s.FinalizedTime >= validBefore
	moved := step.To != r.State
	broken := ""
	switch {
	case moved && !r.State.Can(step.To):
		broken = "it takes a step that does not exist"
	case r.State.Resting() && moved:
		broken = "it wakes what rests"
	case moved && step.To == ledger.Dead && !expired && !(s.Fate == evm.Spent && final):
		broken = "it is dead without a proof"
	case step.To == ledger.Dead && moved && step.Reason == "":
		broken = "it is dead without a reason"
	case moved && step.To == ledger.Settled && !(paid && sure):
		broken = "it is settled too early"
	case moved && step.To == ledger.Archived && !(paid && final):
		broken = "it is archived too early"
	case moved && step.To == ledger.Included && !paid:
		broken = "it is included without a transfer"
	case moved && (step.To == ledger.Settled || step.To == ledger.Included || step.To == ledger.Archived) && (step.Found == nil || *step.Found != s.Found):
		broken = "it does not say where the transfer is"
	case paid && !r.State.Resting() && step.To != ledger.Included && step.To != ledger.Settled && step.To != ledger.Archived:
		broken = "it does not see the transfer"
	case paid && sure && !step.To.Paid() && !r.State.Resting():
		broken = "it does not see that the transfer is sure"
	case expired && r.State.Can(ledger.Dead) && r.State != ledger.Included && step.To != ledger.Dead:
		broken = "it does not see the death"
	case moved && step.To == ledger.Sent && (paid || s.Fate == evm.Untouched && !s.Complete):
		broken = "it forgets a transfer without a proof"
	case step.To == ledger.Sent && step.Found != nil && moved:
		broken = "it says where a transfer is that is gone"
	case step.Resend && (s.Fate != evm.Untouched || s.Mined || step.To != ledger.Intent && step.To != ledger.Sent):
		broken = "it sends for nothing"
	case !step.Resend && s.Fate == evm.Untouched && !s.Mined && (step.To == ledger.Intent || step.To == ledger.Sent):
		broken = "it does not send what is lost"
	case !paid && moved && (r.State == ledger.Reserved || r.State == ledger.Executing || r.State == ledger.Executed):
		broken = "it takes a payment from a request that is at work"
	}
	if broken != "" {
		t.Errorf("%s: from %s until %s with %+v it is %+v", broken, r.State, until, s, step)
	}
}

// What a crash may take back must leave the payment claimed.
func TestNoStepIsForgettableThatWouldLeaveThePaymentFree(t *testing.T) {
	for _, from := range []ledger.State{ledger.Reserved, ledger.Executing, ledger.Executed, ledger.Released} {
		for _, to := range []ledger.State{ledger.Included, ledger.Settled, ledger.Archived, ledger.Dead} {
			if settle.Forgettable(from, to) {
				t.Errorf("%s to %s can be forgotten", from, to)
			}
		}
	}
	for _, from := range []ledger.State{ledger.Intent, ledger.Sent, ledger.Included, ledger.Settled} {
		if !settle.Forgettable(from, ledger.Settled) || !settle.Forgettable(from, ledger.Archived) || settle.Forgettable(from, ledger.Dead) {
			t.Errorf("from %s the wrong steps can be forgotten", from)
		}
	}
}
