package payment_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

func TestMoneyIsNeverAFloat(t *testing.T) {
	files := 0
	for _, dir := range []string{".", "evm", "extension"} {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			files++
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				found := ""
				switch n := n.(type) {
				case *ast.Ident:
					if strings.Contains(strings.ToLower(n.Name), "float") || strings.HasPrefix(n.Name, "complex") {
						found = n.Name // float64, ParseFloat, big.Float, Int64Float, …
					}
				case *ast.BasicLit:
					if n.Kind == token.FLOAT || n.Kind == token.IMAG {
						found = n.Value
					}
				}
				if found != "" {
					t.Errorf("%s uses %s", set.Position(n.Pos()), found)
				}
				return true
			})
		}
	}
	if files < 10 {
		t.Errorf("only %d files were read", files)
	}
}
