package devchain_test

import (
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/ethclient"

	"github.com/tollgate402/tollgate/internal/devchain"
)

// BenchmarkSettle is one caller over HTTP: send a payment, poll for its receipt.
func BenchmarkSettle(b *testing.B) {
	chain := start(b, devchain.Config{})
	client, err := ethclient.Dial(chain.URL())
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	payer, facilitator := chain.Account("payer"), chain.Account("facilitator")
	var times []time.Duration
	for i := uint64(0); b.Loop(); i++ {
		auth := authorize(chain, payer.Address, chain.Account("seller").Address, 1000)
		tx := signTx(b, chain, facilitator.Key, i, devchain.USDC, auth.call(b, auth.sign(b, payer.Key)))
		sent := time.Now()
		if err := client.SendTransaction(b.Context(), tx); err != nil {
			b.Fatal(err)
		}
		for {
			if r, err := client.TransactionReceipt(b.Context(), tx.Hash()); err == nil {
				if r.Status != 1 {
					b.Fatal("reverted")
				}
				times = append(times, time.Since(sent))
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkStart is a chain from nothing to its first answer.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		chain, err := devchain.Start(devchain.Config{})
		if err != nil {
			b.Fatal(err)
		}
		client, err := ethclient.Dial(chain.URL())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := client.ChainID(b.Context()); err != nil {
			b.Fatal(err)
		}
		client.Close()
		if err := chain.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
