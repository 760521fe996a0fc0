//go:build !recoverchild

// Command bench measures Tollgate beside baselines in the same run and prints
// a table. Timings of one machine on one day mean little: the ratios are what
// to read.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"text/tabwriter"
)

// A row is one measurement.
type row struct {
	Name     string  `json:"name"`
	Ours     float64 `json:"ours"`
	Baseline float64 `json:"baseline,omitempty"` // 0: there is none in this run
	Unit     string  `json:"unit"`
	Ratio    float64 `json:"ratio,omitempty"` // above 1 is better than the baseline
	Target   string  `json:"target"`
	Note     string  `json:"note,omitempty"`
}

// compare fills in the ratio. For times, less is better.
func (r row) compare(lessIsBetter bool) row {
	if r.Baseline > 0 && r.Ours > 0 {
		r.Ratio = r.Ours / r.Baseline
		if lessIsBetter {
			r.Ratio = r.Baseline / r.Ours
		}
	}
	return r
}

// A benchmark measures one thing.
type benchmark struct {
	name string
	what string
	run  func(context.Context) ([]row, error)
}

var benchmarks = []benchmark{
	{"digest", "the EIP-712 digest of a transfer, beside go-ethereum's general encoder", benchDigest},
	{"recover", "recovery of a signer with cgo, beside the same without", benchRecover},
	{"challenge", "an unpaid 402, beside Caddy's respond with the same body", benchChallenge},
	{"verify", "the facilitator's /verify of a good payment", benchVerify},
	{"ledger", "durable claims by 1 to 128 writers, beside Badger alone and Pebble", benchLedger},
	{"settle", "settlements through one lane, and gas by the size of a batch", benchSettle},
	{"held", "what a held paid request adds, where chain and upstream take no time", benchHeld},
	{"paid", "a whole paid request on instant blocks, by the official client", benchPaid},
}

func main() {
	only := flag.String("only", "", "comma-separated names of the benchmarks to run (default: all)")
	asJSON := flag.Bool("json", false, "print a JSON array instead of a table")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go run ./cmd/bench [-only name,...] [-json]")
		flag.PrintDefaults()
		for _, b := range benchmarks {
			fmt.Fprintf(flag.CommandLine.Output(), "  %-10s %s\n", b.name, b.what)
		}
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	rows, err := run(ctx, *only)
	if err == nil {
		err = show(rows, *asJSON)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string) ([]row, error) {
	var chosen []benchmark
	for _, b := range benchmarks {
		if only == "" || slices.Contains(strings.Split(only, ","), b.name) {
			chosen = append(chosen, b)
		}
	}
	if only != "" && len(chosen) != len(strings.Split(only, ",")) {
		return nil, fmt.Errorf("-only %s names a benchmark that does not exist; see --help", only)
	}
	var rows []row
	for _, b := range chosen {
		fmt.Fprintf(os.Stderr, "bench: %s: %s\n", b.name, b.what)
		more, err := b.run(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

func show(rows []row, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(rows)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "name\tours\tbaseline\tunit\tratio\ttarget\tnote")
	for _, r := range rows {
		baseline, ratio := "-", "-"
		if r.Baseline > 0 {
			baseline, ratio = number(r.Baseline), fmt.Sprintf("%.2f", r.Ratio)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, number(r.Ours), baseline, r.Unit, ratio, r.Target, r.Note)
	}
	return w.Flush()
}

func number(f float64) string {
	if f >= 100 {
		return fmt.Sprintf("%.0f", f)
	}
	return fmt.Sprintf("%.2f", f)
}
