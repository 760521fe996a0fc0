package tollgate

import (
	"encoding/json"
	"errors"
	"go/format"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tollgate402/tollgate"

type goPackage struct {
	ImportPath string
	Imports    []string // of the package itself, tests left out
	Deps       []string // of everything below it, tests left out
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal("go list: ", err)
	}
	var list []goPackage
	d := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		list = append(list, p)
	}
}

// below reports whether path is one of roots or inside one.
func below(path string, roots ...string) bool {
	for _, r := range roots {
		if path == r || strings.HasPrefix(path, r+"/") {
			return true
		}
	}
	return false
}

const (
	geth   = "github.com/ethereum/go-ethereum"
	badger = "github.com/dgraph-io/badger"
	pgx    = "github.com/jackc/pgx"
	caddy  = "github.com/caddyserver/caddy"
	tss    = "github.com/bnb-chain/tss-lib"
	zap    = "go.uber.org/zap"
)

// TestImportRules lists the edges that DESIGN's section "Layout" forbids.
func TestImportRules(t *testing.T) {
	// Direct imports that belong to a few packages only. Packages of an
	// owner may import theirs; everybody else may not.
	owned := []struct {
		what   []string
		owners []string
	}{
		{[]string{geth + "/ethclient", geth + "/rpc"}, []string{"internal/chain", "internal/devchain"}},
		{[]string{geth + "/node", geth + "/eth", geth + "/miner", geth + "/core/txpool"}, []string{"internal/devchain"}},
		{[]string{badger, pgx}, []string{"internal/ledger", "signer/mpc"}},
		{[]string{tss}, []string{"signer/mpc"}},
		{[]string{caddy, zap}, []string{"caddymodule", "cmd"}},
		{[]string{module + "/internal/devchain"}, []string{"internal/devchain", "cmd/sandbox", "cmd/bench", "e2e"}},
	}
	// What must be nowhere below a package.
	banned := []struct {
		below []string
		deps  []string
	}{
		{[]string{"payment", "payment/evm", "payment/extension", "payment/pass", "payment/quote", "payment/svm"}, []string{"net/http", geth + "/ethclient", badger, caddy, tss}},
		{[]string{"payment/link"}, []string{"net/http", geth + "/ethclient", badger, caddy, tss, module + "/facilitator"}},
		{[]string{"facilitator"}, []string{module + "/signer", caddy}},
		{[]string{"signer"}, []string{module + "/facilitator", caddy}},
		{[]string{"caddymodule"}, []string{tss, module + "/signer/mpc", module + "/internal/devchain"}},
		{[]string{"cmd/tollgate"}, []string{module + "/internal/devchain", geth + "/node"}},
	}
	pure := []string{geth + "/common", geth + "/crypto", geth + "/accounts/abi", geth + "/signer/core/apitypes", "filippo.io/edwards25519"}

	for _, p := range packages(t) {
		for _, o := range owned {
			for _, i := range p.Imports {
				if below(i, o.what...) && !below(p.ImportPath, o.owners...) {
					t.Errorf("%s imports %s, which only %s may", p.ImportPath, i, strings.Join(o.owners, " and "))
				}
			}
		}
		for _, b := range banned {
			if !slices.Contains(b.below, p.ImportPath) && !(below(p.ImportPath, b.below...) && !below(p.ImportPath, "payment", "caddymodule/mpc")) {
				continue
			}
			for _, d := range p.Deps {
				if below(d, b.deps...) {
					t.Errorf("%s reaches %s, which must not be below it", p.ImportPath, d)
				}
			}
		}
		if slices.Contains([]string{"payment", "payment/evm", "payment/extension", "payment/pass", "payment/quote", "payment/svm"}, p.ImportPath) {
			for _, i := range p.Imports {
				if standard := !strings.Contains(strings.SplitN(i, "/", 2)[0], "."); !standard && !slices.Contains(pure, i) && !below(i, module+"/payment", module+"/internal/strictjson") {
					t.Errorf("%s imports %s: it may import the standard library and a few pure packages only", p.ImportPath, i)
				}
			}
		}
	}
}

// TestSourcesAreFormatted is gofmt -l.
func TestSourcesAreFormatted(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git") {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		formatted, err := format.Source(src)
		if err != nil {
			return err
		}
		if string(formatted) != string(src) {
			t.Errorf("%s is not gofmt'd", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
