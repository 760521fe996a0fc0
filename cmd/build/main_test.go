package main

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
)

// goMod is what "go mod edit -json" prints of go.mod.
type goMod struct {
	Module  struct{ Path string }
	Require []struct{ Path, Version string }
	Replace []struct {
		Old, New struct{ Path, Version string }
	}
}

func readGoMod(t *testing.T) goMod {
	t.Helper()
	out, err := exec.Command("go", "mod", "edit", "-json", filepath.Join("..", "..", "go.mod")).Output()
	if err != nil {
		t.Fatal(err)
	}
	var m goMod
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestXcaddyJSONAgreesWithGoMod(t *testing.T) {
	b, err := read(filepath.Join("..", "..", "xcaddy.json"))
	if err != nil {
		t.Fatal(err)
	}
	m := readGoMod(t)
	if m.Module.Path != ourModule {
		t.Errorf("the module is %s, this command says %s", m.Module.Path, ourModule)
	}
	if len(b.Plugins) != 1 || b.Plugins[0].PackagePath != ourModule+"/caddymodule" {
		t.Errorf("plugins %v", b.Plugins)
	}
	caddy := ""
	for _, r := range m.Require {
		if r.Path == "github.com/caddyserver/caddy/v2" {
			caddy = r.Version
		}
	}
	if caddy == "" || b.CaddyVersion != caddy {
		t.Errorf("xcaddy.json builds Caddy %q, go.mod requires %q", b.CaddyVersion, caddy)
	}
	want := map[string]string{}
	for _, r := range m.Replace {
		want[r.Old.Path] = r.New.Path + "@" + r.New.Version
	}
	if len(want) != len(b.Replacements) {
		t.Errorf("go.mod replaces %d modules, xcaddy.json %d", len(want), len(b.Replacements))
	}
	for _, r := range b.Replacements {
		if got := want[string(r.Old)]; got != string(r.New) {
			t.Errorf("%s is replaced by %q in xcaddy.json and by %q in go.mod", r.Old, r.New, got)
		}
	}
}
