// Command links plays the exchanges that the older API for payment links
// documents, against a running sandbox: what a link asks, payments in every
// form and those that must be refused, and the merchants' side. It pays the
// same links by x402 as well, with the official clients among the payers. It
// knows of the product only what those who use it know: it shares no code with
// it, and hashes and signs with go-ethereum.
//
//	e2e/links.sh, which builds what it needs
//
// It prints a table and ends well only if every row is as expected and there
// are as many rows as there should be.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// expectedRows is how many rows the table must have.
const expectedRows = 129

func main() {
	sandbox := flag.String("sandbox", "", "the sandbox `program`")
	clients := flag.String("clients", "", "the `folder` with the official clients: e2e/interop, installed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *sandbox, *clients); err != nil {
		fmt.Fprintln(os.Stderr, "links:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, sandbox, clients string) (err error) {
	if sandbox == "" || clients == "" {
		return errors.New("say which programs to run: e2e/links.sh does")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	w, err := newWorld(ctx, sandbox)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	t := &table{}
	for _, play := range []func(context.Context, *table) error{
		w.manage, // first, while there are no links but its own
		w.require,
		w.payInEveryForm,
		w.refuse,
		w.spendTwice,
		w.standUnpayable,
		w.payByHeader,
		func(ctx context.Context, t *table) error { return w.payByOfficialClients(ctx, t, clients) },
	} {
		if err := play(ctx, t); err != nil {
			return errors.Join(err, t.print())
		}
	}
	if err := t.print(); err != nil {
		return err
	}
	fmt.Println("\nAn expired link is left out: links live an hour at least. The tests of internal/linkhttp play it with a clock of their own.")
	return t.judge()
}

// A table has what was expected of each exchange, and what came.
type table struct {
	rows []row
}

type row struct{ exchange, expected, got string }

func (t *table) add(exchange, expected, got string) {
	t.rows = append(t.rows, row{exchange, expected, got})
}

func (t *table) print() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "exchange\texpected\tgot\t")
	for _, r := range t.rows {
		result := "PASS"
		if r.got != r.expected {
			result = "FAIL"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", inLine(r.exchange), inLine(r.expected), inLine(r.got), result)
	}
	return w.Flush()
}

func inLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func (t *table) judge() error {
	failed := 0
	for _, r := range t.rows {
		if r.got != r.expected {
			failed++
		}
	}
	fmt.Printf("%d of %d exchanges are as documented\n", len(t.rows)-failed, len(t.rows))
	switch {
	case failed > 0:
		return fmt.Errorf("%d rows FAIL", failed)
	case len(t.rows) != expectedRows:
		return fmt.Errorf("there are %d rows and should be %d", len(t.rows), expectedRows)
	}
	return nil
}
