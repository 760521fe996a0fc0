//go:build !recoverchild

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// goBench runs benchmarks that stand beside the code they measure, and
// returns each one's metrics by their unit. Names are without the benchmark's
// own and without the number of processors, such as "Pebble/64".
func goBench(ctx context.Context, folder, name, benchtime string) (map[string]map[string]float64, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^"+name+"$", "-benchtime", benchtime, folder)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go test -bench %s %s, from the root of the checkout: %w\n%s%s", name, folder, err, out, stderr.Bytes())
	}
	found := map[string]map[string]float64{}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], name) {
			continue
		}
		full := strings.TrimPrefix(strings.TrimPrefix(fields[0], name), "/")
		if i := strings.LastIndexByte(full, '-'); i >= 0 {
			full = full[:i]
		}
		metrics := map[string]float64{}
		for i := 2; i+1 < len(fields); i += 2 {
			if metrics[fields[i+1]], err = strconv.ParseFloat(fields[i], 64); err != nil {
				return nil, fmt.Errorf("reading %q: %w", lines.Text(), err)
			}
		}
		found[full] = metrics
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("go test -bench %s %s measured nothing: %s", name, folder, out)
	}
	return found, nil
}

// benchLedger claims durably with 1 to 128 writers.
func benchLedger(ctx context.Context) ([]row, error) {
	const folder = "./internal/ledger/badger"
	disk, err := goBench(ctx, folder, "BenchmarkFsync", "500x")
	if err != nil {
		return nil, err
	}
	rows := []row{{Name: "disk", Ours: disk[""]["p50-ms"], Unit: "ms", Target: "-", Note: "one write and one fsync, p50; the floor of every claim"}}
	found, err := goBench(ctx, folder, "BenchmarkCommit", "1s")
	if err != nil {
		return nil, err
	}
	for _, writers := range []string{"1", "8", "64", "128"} {
		ours := found["GroupCommit/"+writers]
		target := "-"
		if writers == "64" || writers == "128" {
			target = ">= 5x Badger alone"
		}
		rows = append(rows, row{
			Name: "ledger " + writers, Ours: ours["commits/s"], Baseline: found["BadgerAlone/"+writers]["commits/s"], Unit: "claims/s", Target: target,
			Note: fmt.Sprintf("durable claims, %s writers, group commit beside Badger alone; p50 %.2f ms, p99 %.2f ms", writers, ours["p50-ms"], ours["p99-ms"]),
		}.compare(false))
		if target != "-" {
			rows = append(rows, row{
				Name: "ledger " + writers, Ours: ours["commits/s"], Baseline: found["Pebble/"+writers]["commits/s"], Unit: "claims/s", Target: ">= 1x Pebble",
				Note: "the same beside Pebble",
			}.compare(false))
		}
	}
	if os.Getenv("TOLLGATE_TEST_POSTGRES") == "" {
		fmt.Fprintln(os.Stderr, "bench: SKIPPED ledger on PostgreSQL: run it with e2e/postgres.sh go run ./cmd/bench -only ledger")
		return rows, nil
	}
	if found, err = goBench(ctx, "./internal/ledger/postgres", "BenchmarkCommit", "1s"); err != nil {
		return nil, err
	}
	for _, writers := range []string{"1", "8", "64", "128"} {
		rows = append(rows, row{
			Name: "postgres " + writers, Ours: found["GroupCommit/"+writers]["commits/s"], Unit: "claims/s", Target: "-",
			Note: fmt.Sprintf("durable claims on PostgreSQL, %s writers", writers),
		})
	}
	return rows, nil
}

// benchSettle settles through one lane of the development chain, whose own
// work is part of what is measured.
func benchSettle(ctx context.Context) ([]row, error) {
	const folder = "./facilitator/settle"
	found, err := goBench(ctx, folder, "BenchmarkSettle", "2000x")
	if err != nil {
		return nil, err
	}
	gas, err := goBench(ctx, folder, "BenchmarkGas", "1x")
	if err != nil {
		return nil, err
	}
	const official = 183 // settlements a second of the faster official facilitator on the same chain, measured elsewhere
	rows := []row{
		row{
			Name: "settle instant", Ours: found["instant"]["settlements/s"], Baseline: official, Unit: "/s", Target: ">= 3x official (134-183/s, not of this run)",
			Note: fmt.Sprintf("one lane, instant blocks, 32 callers; %.1f payments a transaction", found["instant"]["payments/tx"]),
		}.compare(false),
		{Name: "settle alone", Ours: found["alone"]["settlements/s"], Unit: "/s", Target: "-", Note: "the same with one caller"},
		{
			Name: "settle 2s", Ours: found["2s"]["settlements/s"], Unit: "/s", Target: ">= 200",
			Note: fmt.Sprintf("one lane, blocks every 2 s, 800 callers; %.1f payments a transaction", found["2s"]["payments/tx"]),
		},
	}
	single := gas["1"]["gas/payment"]
	for _, size := range []string{"1", "10", "50", "200"} {
		target := "-"
		if size == "50" || size == "200" {
			target = "<= 60 % of a single transfer"
		}
		rows = append(rows, row{
			Name: "gas " + size, Ours: gas[size]["gas/payment"], Baseline: single, Unit: "gas", Target: target,
			Note: fmt.Sprintf("a payment in a transaction of %s, in test USDC: %.0f %%", size, 100*gas[size]["gas/payment"]/single),
		}.compare(true))
	}
	return rows, nil
}
