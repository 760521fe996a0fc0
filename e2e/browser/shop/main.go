// Command shop is the world that e2e/browser/run.mjs drives: the product with
// payment links in every state, settled on a chain with play money. The
// product runs as a process of its own, from a Caddyfile, on ports that the
// kernel has chosen.
//
// It prints one line of JSON when it is ready, which run.mjs describes, and
// serves until SIGTERM or SIGINT.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}

// world is what the driver is told.
type world struct {
	Base    string            `json:"base"`
	ChainID uint64            `json:"chainId"`
	Network string            `json:"network"`
	Payer   string            `json:"payer"`
	Pauper  string            `json:"pauper"`
	Open    []string          `json:"open"`
	Links   map[string]string `json:"links"`
	Hostile []string          `json:"hostile"`

	HostileTexts   int `json:"hostileTexts"`
	HostileRefused int `json:"hostileRefused"`
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	f := flag.NewFlagSet("shop", flag.ContinueOnError)
	binary := f.String("tollgate", "e2e/out/browser/tollgate", "the product: cmd/tollgate, built")
	polyglots := f.String("polyglots", "internal/linkpage/testdata/polyglots.json", "file with hostile texts")
	if err := f.Parse(args); err != nil {
		return err
	}
	s, err := open(ctx, *binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	w, err := s.fill(ctx, *polyglots)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(w); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-s.ended:
		return errors.New("the product has ended")
	}
}
