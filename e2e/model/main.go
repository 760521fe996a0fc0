// Command model explores the life of one payment, exhaustively, and prints
// the table of docs/reliability.md: that nothing breaks the product, and that
// each naive way of doing it is seen to be wrong. It exits with 1 otherwise.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/tollgate402/tollgate/internal/model"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "model:", err)
			os.Exit(1)
		}
	}
}

func run(args []string, out, usage io.Writer) error {
	f := flag.NewFlagSet("model", flag.ContinueOnError)
	f.SetOutput(usage)
	requests := f.Int("requests", 0, "concurrent requests with the same payment, 2 or 3; 0 leaves each case its own")
	instances := f.Int("instances", 0, "processes on one store, 1 or 2; 0 leaves each case its own")
	crashes := f.Int("crashes", -1, "kills and power losses, at most; -1 leaves each case its own")
	pauses := f.Int("pauses", -1, "leases that run out while their owner works, at most; -1 leaves each case its own")
	reorgs := f.Int("reorgs", -1, "replacements of the latest block, at most; -1 leaves each case its own")
	only := f.String("only", "", "explore only the cases whose name contains this")
	traces := f.Bool("traces", false, "print a shortest trace to each violation")
	limit := f.Int("limit", 20_000_000, "give up a case at this many states, about 120 bytes each")
	f.Usage = func() {
		fmt.Fprint(usage, `Usage: go run ./e2e/model [flags]

Explores every order of steps of requests, processes, chain, payer and
strangers for one payment, with the product's own table of states and its own
decisions, and prints a table in Markdown: first the product, in which nothing
may be found, then ways of working that must be found wrong. It exits with 1 if
the first finds something, a case does not fit the limit, or the second does
not find what it must. The flags apply to the product's cases; larger values
take minutes and gigabytes.

`)
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if *requests < 0 || *requests > 3 || *instances < 0 || *instances > 2 || *limit < 1 || *crashes > 9 || *pauses > 9 || *reorgs > 9 {
		return errors.New("a flag is out of its range: see -help")
	}
	product := model.Product()
	for i := range product {
		c := &product[i].Config
		set := func(to *int, flag, unset int) {
			if flag > unset {
				*to = flag
			}
		}
		set(&c.Requests, *requests, 0)
		set(&c.Instances, *instances, 0)
		set(&c.Crashes, *crashes, -1)
		set(&c.Pauses, *pauses, -1)
		if c.Remote == model.Embedded {
			set(&c.Reorgs, *reorgs, -1)
		}
	}
	var problems []string
	fmt.Fprint(out, model.Head)
	var results []*model.Result
	show := func(c *model.Case) error {
		if !strings.Contains(c.Name, *only) {
			return nil
		}
		r := model.Explore(c.Config, c.Variant, *limit)
		if err := model.Row(out, c, r); err != nil {
			return err
		}
		if len(c.Want) == 0 {
			results = append(results, r)
		}
		missing, wrong := c.Missing(r)
		for _, v := range wrong {
			problems = append(problems, fmt.Sprintf("%s: %s", c.Name, v))
		}
		for _, v := range missing {
			problems = append(problems, fmt.Sprintf("%s: %s was not found", c.Name, v))
		}
		if r.Capped {
			problems = append(problems, c.Name+": not all states were visited: raise -limit")
		}
		if *traces {
			for _, v := range r.Violations() {
				fmt.Fprintf(usage, "%s, %s:\n  %s\n", c.Name, v, strings.Join(r.Traces[v], "\n  "))
			}
		}
		return nil
	}
	for i := range product {
		if err := show(&product[i]); err != nil {
			return err
		}
	}
	variants := model.Variants()
	for i := range variants {
		if err := show(&variants[i]); err != nil {
			return err
		}
	}
	if *only == "" {
		for _, what := range model.Unreached(results) {
			problems = append(problems, "not reached: "+what)
		}
	}
	if len(problems) > 0 {
		return errors.New(strings.Join(problems, "\n  "))
	}
	return nil
}
