package settle_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// BenchmarkSettle settles payments through one lane for 32 callers, each of
// which waits for one settlement after another: on a chain that seals at once,
// and on one with a block every two seconds, for 800 callers.
func BenchmarkSettle(b *testing.B) {
	for _, c := range []struct {
		name    string
		period  time.Duration
		callers int
	}{{"instant", 0, 32}, {"alone", 0, 1}, {"2s", 2 * time.Second, 800}} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorldOn(b, devchain.Config{BlockTime: c.period})
			jobs := make(chan settle.Job, b.N)
			for range b.N {
				jobs <- w.claim(w.authorize(), payment.Included)
			}
			close(jobs)
			var group sync.WaitGroup
			b.ResetTimer()
			for range c.callers {
				group.Go(func() {
					for job := range jobs {
						if _, err := w.engine.Settle(context.Background(), job); err != nil {
							b.Error(err)
						}
					}
				})
			}
			group.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "settlements/s")
			b.ReportMetric(float64(b.N)/float64(len(w.node.transactions())), "payments/tx")
		})
	}
}

// BenchmarkGas reports the gas of one payment in batches of some sizes, from
// as many payers as there are, to one seller who has been paid before.
func BenchmarkGas(b *testing.B) {
	for _, size := range []int{1, 10, 50, 200} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			w := newWorld(b)
			if _, err := w.settle(w.authorize(), payment.Included); err != nil {
				b.Fatal(err)
			}
			var gas atomic.Uint64
			for b.Loop() {
				var calls []*evm.Instrument
				for _, transfer := range w.authorizeMany(size) {
					calls = append(calls, evm.OfTransfer(devchain.USDC, transfer))
				}
				msg := ethereum.CallMsg{From: w.engine.Lane(), To: &devchain.USDC, Data: calls[0].Transfer.Calldata()}
				if size > 1 {
					msg.To, msg.Data = &evm.Multicall3, evm.BatchCalldata(calls, false)
				}
				n, err := w.node.EstimateGas(b.Context(), msg)
				if err != nil {
					b.Fatal(err)
				}
				gas.Store(n)
			}
			b.ReportMetric(float64(gas.Load())/float64(size), "gas/payment")
		})
	}
}
