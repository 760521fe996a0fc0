// Command build builds Caddy with what xcaddy.json lists: its version, the
// plugins, and the modules that are replaced.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/caddyserver/xcaddy"
)

// ourModule is the one that a checkout stands in for.
const ourModule = "github.com/tollgate402/tollgate"

func main() {
	output := flag.String("o", "bin/caddy", "write the program to `FILE`")
	checkout := flag.String("checkout", ".", "read xcaddy.json in `DIR` and build this checkout; empty builds what is published, with ./xcaddy.json")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "build: unexpected argument %q; see --help\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := build(ctx, *output, *checkout); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, output, checkout string) error {
	b, err := read(filepath.Join(checkout, "xcaddy.json"))
	if err != nil {
		return err
	}
	if checkout != "" {
		dir, err := filepath.Abs(checkout)
		if err != nil {
			return err
		}
		b.Replacements = append(b.Replacements, xcaddy.NewReplace(ourModule, dir))
		if err := dontMissCheckout(ctx); err != nil {
			return err
		}
	}
	// xcaddy by itself never uses cgo; without it recovering a payer's
	// signature takes several times as long.
	cgo, err := goEnv(ctx, "CGO_ENABLED")
	if err != nil {
		return err
	}
	b.Cgo = cgo == "1"
	if err := os.MkdirAll(filepath.Dir(output), 0o750); err != nil {
		return err
	}
	return b.Build(ctx, output)
}

func read(path string) (*xcaddy.Builder, error) {
	doc, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist: run this in a checkout, or name one with -checkout", path)
	}
	if err != nil {
		return nil, err
	}
	b := &xcaddy.Builder{}
	d := json.NewDecoder(strings.NewReader(string(doc)))
	d.DisallowUnknownFields()
	if err := d.Decode(b); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return b, nil
}

// dontMissCheckout lets the build go on where a proxy refuses to say anything
// about the checkout's package. Go asks for a module of that name although the
// replacement holds it, and takes "not found" for an answer but not
// "forbidden".
func dontMissCheckout(ctx context.Context) error {
	proxies, err := goEnv(ctx, "GOPROXY")
	if err != nil {
		return err
	}
	for _, end := range []string{",direct", "|direct"} {
		proxies = strings.TrimSuffix(proxies, end)
	}
	if proxies == "direct" || proxies == "off" {
		return nil
	}
	return os.Setenv("GOPROXY", proxies+"|off")
}

func goEnv(ctx context.Context, name string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", name).Output()
	if err != nil {
		return "", fmt.Errorf("asking go for %s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}
