package settle_test

import (
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
)

// A planned restart: the next process need not wait for the silence of the one
// before. The clock stands still.
func TestTheLaneOfAnInstanceThatHasLeftIsTakenOverWithoutWaiting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.engine.Stop()
	w.chain.Pause()
	before := w.instance("a")
	if _, err := before.settleMining(before.authorize()); err != nil {
		t.Fatal(err)
	}
	awaitKeeper := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); w.keeper() != want; time.Sleep(5 * time.Millisecond) {
			w.mine(1)
			if time.Now().After(deadline) {
				t.Fatalf("%q keeps the lane", w.keeper())
			}
		}
	}
	awaitKeeper("a")
	under := before.authorize()
	before.unsent(under)
	before.engine.Stop()
	if err := before.ledger.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := w.instance("b")
	awaitKeeper("b")
	next.mineUntil(under, ledger.Settled, ledger.Archived)
	w.wantEarned(2000)
	if !next.ledger.Alive("b") || next.ledger.Alive("a") {
		t.Error("who is alive")
	}
}
