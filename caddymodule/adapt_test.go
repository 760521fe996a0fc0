package caddymodule

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
)

var update = flag.Bool("update", false, "write what the tests of testdata got into the files")

const separator = "\n----------\n"

// goldens runs a function on the Caddyfile of every file in a folder and
// compares what it returns with the rest of the file.
func goldens(t *testing.T, folder string, run func(t *testing.T, source string) string) {
	t.Setenv("TEST_LANE_KEY", laneKey)
	t.Setenv("TEST_HOOK_SECRET", strings.Repeat("secret", 6))
	t.Setenv("TEST_SHOP_KEY", strings.Repeat("key", 6))
	t.Setenv("TEST_REFUND_KEY", payerKey)
	t.Setenv("TEST_OFFER_KEY", payerKey)
	t.Setenv("TEST_PAY_TO", seller)
	t.Setenv("TEST_TOKEN", "a secret")
	t.Setenv("TEST_TOKEN2", "another secret")
	t.Setenv("TEST_QUOTE_SECRET", "a secret of quotes that is long enough")
	t.Setenv("TEST_DATABASE", "postgres://user:topsecret@db.example.com/pay")
	files, err := filepath.Glob(filepath.Join("testdata", folder, "*.caddyfiletest"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files (%v)", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			doc, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			source, want, ok := strings.Cut(string(doc), separator)
			if !ok {
				t.Fatal("there is no separator")
			}
			source += "\n"
			if formatted := string(caddyfile.Format([]byte(source))); formatted != source {
				t.Errorf("not formatted; caddy fmt writes\n%s", formatted)
			}
			got := run(t, source)
			if *update {
				if err := os.WriteFile(file, []byte(strings.TrimSuffix(source, "\n")+separator+got+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if strings.TrimSuffix(want, "\n") != got {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func adapt(source string) ([]byte, error) {
	doc, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(source), map[string]any{"filename": "Caddyfile"})
	return doc, err
}

func validate(doc []byte) error {
	var config *caddy.Config
	if err := json.Unmarshal(doc, &config); err != nil {
		return err
	}
	return caddy.Validate(config)
}

func TestCaddyfilesBecomeJSON(t *testing.T) {
	goldens(t, "adapt", func(t *testing.T, source string) string {
		doc, err := adapt(source)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(doc); err != nil {
			t.Errorf("the result is not valid: %v", err)
		}
		var out bytes.Buffer
		if err := json.Indent(&out, doc, "", "\t"); err != nil {
			t.Fatal(err)
		}
		return out.String()
	})
}

// Every file is wrong, and the message says where, and what to write instead.
func TestErrorsSayWhatToWrite(t *testing.T) {
	goldens(t, "errors", func(t *testing.T, source string) string {
		doc, err := adapt(source)
		if err == nil {
			err = validate(doc)
		}
		if err == nil {
			t.Fatal("no error")
		}
		for _, secret := range []string{laneKey, "topsecret", "a secret"} {
			if strings.Contains(err.Error(), secret) {
				t.Error("the error repeats a secret")
			}
		}
		return ownWords(err)
	})
}

// ownWords leaves out how Caddy came to the module that complains: which app
// it begins with depends on the order of a map.
func ownWords(err error) string {
	text := err.Error()
	for _, module := range []string{"provision x402: ", "provision http.handlers.x402: ", "provision http.handlers.x402_facilitator: ", "provision http.handlers.x402_receipts: ", "provision http.handlers.x402_discovery: ", "provision http.matchers.x402_bot: "} {
		if i := strings.LastIndex(text, module); i > 0 {
			text = text[i:]
		}
	}
	return text
}

func TestTheExampleIsFormattedAndValid(t *testing.T) {
	for name, value := range map[string]string{
		"TOLLGATE_PAY_TO": seller, "TOLLGATE_RPC": "http://127.0.0.1:1", "TOLLGATE_LANE_KEY": laneKey, "TOLLGATE_DATA": t.TempDir() + "/data",
	} {
		t.Setenv(name, value)
	}
	source, err := os.ReadFile("../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(caddyfile.Format(source), source) {
		t.Error("Caddyfile.example is not formatted: run caddy fmt")
	}
	doc, err := adapt(string(source))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate(doc); err != nil {
		t.Error(err)
	}
	if exists(os.Getenv("TOLLGATE_DATA")) {
		t.Error("validating it wrote files")
	}
	for _, directive := range []string{"x402 {", "x402 /", "x402_facilitator", "x402_receipts", "refunds key", "exposure", "otherwise", "redeliver", "entitled", "@paying x402", "format x402", "payment_identifier", "siwx", "discover {", "x402_discovery", "signed_by key", "sponsoring erc20_approval"} {
		if !strings.Contains(string(source), directive) {
			t.Errorf("the example does not show %q", directive)
		}
	}
}

// FuzzCaddyfile gives anything to everything here that reads Caddyfiles.
// Whatever is accepted must be JSON that loads back into the same setting.
func FuzzCaddyfile(f *testing.F) {
	for _, folder := range []string{"adapt", "errors"} {
		files, err := filepath.Glob(filepath.Join("testdata", folder, "*.caddyfiletest"))
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			doc, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			source, _, _ := strings.Cut(string(doc), separator)
			// The blocks are read without what is around them.
			for _, line := range strings.SplitAfter(source, "\n\t") {
				f.Add(line)
			}
			f.Add(source)
		}
	}
	f.Fuzz(func(t *testing.T, source string) {
		tokens, err := caddyfile.Tokenize([]byte(source), "Caddyfile")
		if err != nil {
			return
		}
		if value, err := parseApp(caddyfile.NewDispenser(tokens), nil); err == nil {
			var a App
			if err := caddy.StrictUnmarshalJSON(value.(httpcaddyfile.App).Value, &a); err != nil {
				t.Errorf("the app's JSON does not load: %v", err)
			}
		}
		for _, m := range []caddyfile.Unmarshaler{
			&Paywall{}, &FacilitatorAPI{}, &Receipts{}, &Discovery{}, &MatchPayment{}, &MatchBot{}, &HTTPFacilitator{}, &Embedded{}, &BadgerLedger{}, &MemoryLedger{}, &PostgresLedger{}, &KeySigner{}, &LogEncoder{},
		} {
			if err := m.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil {
				continue
			}
			doc, err := json.Marshal(m)
			if err != nil {
				t.Errorf("%T has no JSON: %v", m, err)
			}
			if err := caddy.StrictUnmarshalJSON(doc, m); err != nil {
				t.Errorf("the JSON of %T does not load: %v", m, err)
			}
		}
	})
}
