// Command reload is a storm: the built product is given a new configuration
// ten times a second, every third of them a bad one, while clients pay. It
// ends well only if every request was answered with what it paid for, the
// chain shows one transfer for each, the last good configuration is the one
// that runs, one ledger is open, and nothing has piled up.
//
//	go run ./e2e/reload [-seconds 60] [-rate 10] [-clients 8]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"os"
	"os/signal"
	"sync"
	"time"
)

func main() {
	seconds := flag.Int("seconds", 60, "how long the storm lasts")
	rate := flag.Int("rate", 10, "configurations a second")
	clients := flag.Int("clients", 8, "clients that pay all the time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, time.Duration(*seconds)*time.Second, time.Second/time.Duration(max(1, *rate)), *clients); err != nil {
		fmt.Fprintln(os.Stderr, "reload:", err)
		os.Exit(1)
	}
}

// goroutineSlack is how many goroutines the end may have more than the
// beginning: connections that clients keep open, and Caddy's own.
const goroutineSlack = 25

func run(ctx context.Context, length, pause time.Duration, clients int) (err error) {
	w, err := newWorld(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()

	storm, cancel := context.WithCancel(ctx)
	defer cancel()
	payers := make([]*client, clients)
	var paying sync.WaitGroup
	for i := range payers {
		payers[i] = newClient(w, i)
		paying.Go(func() { payers[i].shop(storm, ctx) })
	}
	if err := sleep(ctx, 2*time.Second); err != nil { // until every client has paid once or twice
		return err
	}
	before, err := w.goroutines(ctx)
	if err != nil {
		return err
	}
	report, err := w.storm(ctx, length, pause)
	cancel()
	paying.Wait()
	if err != nil {
		return err
	}
	return w.judge(ctx, report, payers, before)
}

// judge compares what the clients got with what the chain and the process
// show.
func (w *world) judge(ctx context.Context, report *report, payers []*client, before int) error {
	var wrong []error
	grants, failures, retries := 0, 0, 0
	for _, p := range payers {
		grants, failures, retries = grants+p.grants, failures+len(p.failed), retries+p.retries
		wrong = append(wrong, p.failed...)
	}
	units := w.chain.USDCBalance(w.seller())
	transfers := new(big.Int).Div(units, big.NewInt(price)).Int64()
	if transfers != int64(grants) {
		wrong = append(wrong, fmt.Errorf("%d transfers for %d grants", transfers, grants))
	}
	if grants < 10*len(payers) {
		wrong = append(wrong, fmt.Errorf("only %d grants: the storm proves nothing", grants))
	}
	live, err := w.generation(ctx)
	switch {
	case err != nil:
		wrong = append(wrong, err)
	case live != report.lastGood:
		wrong = append(wrong, fmt.Errorf("configuration %q runs, the last good one is %q", live, report.lastGood))
	}
	// Engines that were replaced take requests for two seconds more.
	var after, stores int
	for range 20 {
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
		if after, err = w.goroutines(ctx); err != nil {
			return err
		}
		if stores, err = w.openLedgers(); err != nil {
			return err
		}
		if after <= before+goroutineSlack && stores == 1 {
			break
		}
	}
	if after > before+goroutineSlack {
		wrong = append(wrong, fmt.Errorf("%d goroutines after the storm, %d before", after, before))
	}
	if stores != 1 || report.mostStores != 1 {
		wrong = append(wrong, fmt.Errorf("the ledger is open %d times, and was open %d times at once", stores, report.mostStores))
	}
	fmt.Printf("reloads=%d bad_refused=%d grants=%d transfers=%d retries=%d failed_paid_requests=%d open_stores=%d goroutines=%d->%d reload_p99_ms=%d\n",
		report.good, report.refused, grants, transfers, retries, failures, stores, before, after, report.p99().Milliseconds())
	if len(wrong) > 10 {
		wrong = append(wrong[:10], fmt.Errorf("and %d more", len(wrong)-10))
	}
	return errors.Join(wrong...)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
