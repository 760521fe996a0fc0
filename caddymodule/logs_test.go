package caddymodule

import (
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/tollgate402/tollgate/payment"
)

// logged runs a configuration with logs of the given level and format, makes
// requests that end in every way there is, and returns the log and what must
// not be in it.
func logged(t *testing.T, level, format string) (log string, secrets []string) {
	t.Helper()
	if format != "" {
		format = "\n\t\t" + format
	}
	file := filepath.Join(t.TempDir(), "caddy.log")
	s := newSite(t)
	for _, c := range []struct {
		facilitator, site string
		status            int
	}{
		{"fake", `respond "goods"`, http.StatusOK},
		{"fake", `reverse_proxy 127.0.0.1:1`, http.StatusBadGateway},
		{"fake", `error "broken" 500`, http.StatusInternalServerError},
		{"fake", "error \"broken\" 500\n\thandle_errors {\n\t\trespond \"handled\" 500\n\t}", http.StatusInternalServerError},
		{"fake no", `respond "goods"`, http.StatusPaymentRequired},
		{"fake pending", `respond "goods"`, http.StatusServiceUnavailable},
	} {
		// A reload may leave one more connection to the server before it.
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		config := paidSite("ledger memory\n\t\tfacilitator "+c.facilitator, "log\n\tx402 $0.01\n\t"+c.site)
		config = strings.Replace(config, "output discard", "output file "+file+"\n\t\tlevel "+level+format, 1)
		s.load(config)
		name, value := s.payFor("/")
		if got := s.get("/", name, value); got.StatusCode != c.status {
			t.Fatalf("%s, %s: %s %s", c.facilitator, c.site, got.Status, got.body)
		}
		bad := "canary" + value
		if got := s.get("/", name, bad); got.StatusCode != http.StatusBadRequest {
			t.Fatalf("a payment that cannot be read: %s", got.Status)
		}
		s.get("/", payment.HeaderPaymentV1, value)
		doc, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			t.Fatal(err)
		}
		_, signature, _ := strings.Cut(string(doc), `"signature":"`)
		secrets = append(secrets, value[len(value)/2:], signature[:64])
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc), secrets
}

func TestPaymentsStayOutOfEveryLog(t *testing.T) {
	for _, format := range []string{"format x402", "format x402 {\n\t\t\twrap console\n\t\t}"} {
		log, secrets := logged(t, "DEBUG", format)
		for _, s := range secrets {
			if strings.Contains(log, s) {
				t.Errorf("%s: a payment is in the log", format)
			}
		}
		// Everything else is there.
		for _, want := range []string{
			"http.log.access", "http.log.error", "User-Agent", "x402_paid", "x402_payment", "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
			"x402_tx", "x402_reason", "settlement_pending", "malformed payment", "upstream roundtrip",
		} {
			if !strings.Contains(log, want) {
				t.Errorf("%s: the log lacks %q", format, want)
			}
		}
		if strings.Contains(log, "the logs would show payments") {
			t.Errorf("%s: the start warned of a log that is sound", format)
		}
	}
}

func TestPaymentsStayOutOfLogsWithoutAFormat(t *testing.T) {
	log, secrets := logged(t, "INFO", "")
	for _, s := range secrets {
		if strings.Contains(log, s) {
			t.Error("a payment is in the log")
		}
	}
	for _, want := range []string{"the logs would show payments", "http.log.access", "request failed", "broken"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q", want)
		}
	}
}

func TestTheStartWarnsOnlyOfLogsThatShowPayments(t *testing.T) {
	log, _ := logged(t, "DEBUG", `format filter {
			request>headers>Payment-Signature delete
		}`)
	if strings.Contains(log, "the logs would show payments") {
		t.Error("a warning although the header is filtered")
	}
}

func TestTheAccessLogSaysWhatBecameOfARequest(t *testing.T) {
	log, _ := logged(t, "DEBUG", "format x402")
	found := false
	for line := range strings.SplitSeq(log, "\n") {
		if !strings.Contains(line, `"x402_paid":true`) {
			continue
		}
		found = true
		var entry struct {
			Logger  string
			Status  int
			Payer   string `json:"x402_payer"`
			Amount  string `json:"x402_amount"`
			Network string `json:"x402_network"`
			Tx      string `json:"x402_tx"`
			Payment string `json:"x402_payment"`
		}
		mustJSON(t, line, &entry)
		if entry.Logger != "http.log.access" || entry.Status != 200 || entry.Payer == "" || entry.Amount != "10000" ||
			entry.Network != "eip155:84532" || !strings.HasPrefix(entry.Tx, "0x") || len(entry.Payment) != 64 {
			t.Errorf("entry %+v", entry)
		}
	}
	if !found {
		t.Error("no paid request in the log")
	}
}

func TestKeysOfMerchantsStayOutOfLogs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "caddy.log")
	s := newSite(t)
	s.load(strings.Replace(paidSite("ledger memory\n\t\tfacilitator fake", "log\n\tx402 /paid $0.01\n\trespond goods"), "output discard", "output file "+file+"\n\t\tlevel DEBUG\n\t\tformat x402", 1))
	for _, path := range []string{"/free", "/paid"} {
		s.get(path, "X-API-Key", "canary-key", "Authorization", "Bearer canary-key", "X-Other", "other-header")
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), "canary-key") || strings.Count(string(log), "other-header") < 2 {
		t.Errorf("%s", log)
	}
}
