package devchain

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestArtifactsMatchSources(t *testing.T) {
	sources, err := filepath.Glob("contracts/*.sol")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no sources: %v", err)
	}
	for _, source := range sources {
		name := strings.TrimSuffix(filepath.Base(source), ".sol")
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		a, err := load(name)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(text); a.SourceSHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%s changed since it was compiled; run \"npm ci && npm run build\" in internal/devchain/contracts", source)
		}
		if !strings.HasPrefix(a.Compiler, "0.8.37+") || len(a.DeployedBytecode) == 0 || len(a.ABI.Methods) == 0 {
			t.Errorf("%s: compiler %q, %d bytes of code, %d methods", name, a.Compiler, len(a.DeployedBytecode), len(a.ABI.Methods))
		}
	}
	committed, err := filepath.Glob("contracts/artifacts/*")
	if err != nil {
		t.Fatal(err)
	}
	if len(committed) != len(sources) {
		t.Errorf("%d artifacts for %d sources", len(committed), len(sources))
	}

	recompiled := recompile(t)
	for _, file := range committed {
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(recompiled, filepath.Base(file)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the compiler makes of its source", file)
		}
	}
}

// recompile returns a folder with fresh artifacts. Where the compiler is not installed it skips the test, except in CI,
// where it installs it into a copy.
func recompile(t *testing.T) string {
	t.Helper()
	folder, output := "contracts", t.TempDir()
	if _, err := os.Stat("contracts/node_modules/solc"); err != nil {
		if os.Getenv("CI") != "true" {
			t.Skip(`THE CONTRACTS WERE NOT RECOMPILED: solc is not installed; run "npm ci" in internal/devchain/contracts`)
		}
		folder = t.TempDir()
		if err := os.CopyFS(folder, os.DirFS("contracts")); err != nil {
			t.Fatal(err)
		}
		if err := command(t, folder, "npm", "ci"); err != nil {
			t.Logf("npm ci: %v; trying npm install", err)
			if err := command(t, folder, "npm", "install", "--no-audit", "--no-fund"); err != nil {
				t.Fatalf("installing the compiler: %v", err)
			}
		}
	} else if _, err := exec.LookPath("node"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("node is not installed")
		}
		t.Skip("THE CONTRACTS WERE NOT RECOMPILED: node is not installed")
	}
	if err := command(t, folder, "node", "build.mjs", output); err != nil {
		t.Fatal(err)
	}
	return output
}

// command runs a program in folder; what it prints goes to the test's log.
func command(t *testing.T, folder, name string, args ...string) error {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = folder
	printed, err := c.CombinedOutput()
	if err != nil {
		t.Logf("%s\n%s", c, printed)
	}
	return err
}
