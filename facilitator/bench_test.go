package facilitator_test

import (
	"testing"

	"github.com/tollgate402/tollgate/payment"
)

// BenchmarkVerify verifies by EIP-3009 and by upto, of payments that were seen
// in this block (warm) and of others (cold), which ask the node.
func BenchmarkVerify(b *testing.B) {
	w := newWorld(b)
	w.approve(w.payer)
	upto := w.byPermit2(payment.Upto)
	for _, c := range []struct {
		name string
		o    *payment.Offer
		pay  func() *payment.Payment
	}{
		{"EIP-3009", &w.offer, w.pay},
		{"upto", &upto, func() *payment.Payment { return w.permitted(&upto) }},
	} {
		b.Run(c.name+"/warm", func(b *testing.B) {
			p := c.pay()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.embedded.Verify(b.Context(), p, c.o); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.name+"/cold", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				p := c.pay()
				b.StartTimer()
				if _, err := w.embedded.Verify(b.Context(), p, c.o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
