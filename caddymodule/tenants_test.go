package caddymodule

import (
	"crypto/sha256"
	"encoding/hex"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/payment"
)

const (
	shopKey  = "correct horse battery staple"
	otherKey = "canary-of-the-other-shop"
)

// tenants are two sellers: the key of the second one is in the configuration
// as a hash. settings are the first one's.
func tenants(settings string) string {
	hash := sha256.Sum256([]byte(otherKey))
	return `handle_path /f/* {
		x402_facilitator {
			tenant shop {
				key {env.TEST_SHOP_KEY}
				` + settings + `
			}
			tenant other {
				key_hash ` + hex.EncodeToString(hash[:]) + `
				pay_to 0x70997970C51812dc3A010C7d01b50e0d17dc79C8
			}
		}
	}
	x402 /goods $0.01
	respond "goods"`
}

// post sends a facilitator request, again if a reload has cut it off.
func (m *market) post(path, key, body string) answer {
	m.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		req, err := http.NewRequest(http.MethodPost, "http://"+m.address+path, strings.NewReader(body))
		if err != nil {
			m.t.Fatal(err)
		}
		if key != "" {
			req.Header.Set("Authorization", "Bearer "+key)
		}
		got, err := once(req)
		if err == nil {
			return got
		}
		if time.Now().After(deadline) {
			m.t.Fatal(err)
		}
	}
}

func (m *market) wantEarned(units int64) {
	m.t.Helper()
	if got := m.chain.USDCBalance(common.HexToAddress(seller)); got.Cmp(big.NewInt(units)) != 0 {
		m.t.Errorf("the seller has %s atomic units, want %d", got, units)
	}
}

func TestTenantsGetWhatTheirLimitsAllow(t *testing.T) {
	t.Setenv("TEST_SHOP_KEY", shopKey)
	m := newMarket(t, tenants("pay_to "+strings.ToLower(seller)+"\n\t\t\t\ttoken USDC\n\t\t\t\tnetwork base-sepolia\n\t\t\t\tmin_amount $0.01"))
	good := m.verifyRequest()
	change := func(from, to string) string {
		t.Helper()
		// What is asked for comes after what was signed.
		at := strings.LastIndex(good, from)
		if at < 0 {
			t.Fatalf("no %s in %s", from, good)
		}
		return good[:at] + to + good[at+len(from):]
	}
	const usdc = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
	for _, c := range []struct {
		name, key, body string
		status          int
		says            string
	}{
		{"no key", "", good, http.StatusUnauthorized, "bearer"},
		{"a wrong key", "correct horse", good, http.StatusUnauthorized, "bearer"},
		{"the hash as a key", hex.EncodeToString(hashOf(otherKey)), good, http.StatusUnauthorized, "bearer"},
		{"another tenant's key", otherKey, good, http.StatusOK, "does not settle payments to " + seller},
		{"another recipient", shopKey, change(seller, "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"), http.StatusOK, "does not settle payments to 0x7099"},
		{"another token", shopKey, change(usdc, "0x4200000000000000000000000000000000000006"), http.StatusOK, "not for payments in the token"},
		{"another network", shopKey, change("eip155:84532", "eip155:8453"), http.StatusOK, "not for payments on eip155:8453"},
		{"too little", shopKey, change(`"10000"`, `"9999"`), http.StatusOK, "at least 0.01 USDC"},
	} {
		for _, endpoint := range []string{"verify", "settle"} {
			got := m.post("/f/"+endpoint, c.key, c.body)
			verdict := map[string]string{"verify": `"isValid":false`, "settle": `"success":false`}[endpoint]
			if got.StatusCode != c.status || !strings.Contains(got.body, c.says) || strings.Contains(got.body, verdict) != (c.status == http.StatusOK) {
				t.Errorf("%s at %s: %s %s", c.name, endpoint, got.Status, got.body)
			}
		}
	}
	m.wantEarned(0)
	if got := m.post("/f/settle", shopKey, good); got.StatusCode != http.StatusOK || !strings.Contains(got.body, `"success":true`) {
		t.Errorf("what is allowed: %s %s", got.Status, got.body)
	}
	m.wantEarned(10_000)
	if got := m.get("/f/supported"); got.StatusCode != http.StatusOK {
		t.Errorf("supported: %s", got.Status)
	}
}

func hashOf(key string) []byte {
	hash := sha256.Sum256([]byte(key))
	return hash[:]
}

func TestATenantThatAsksTooOftenIsToldWhenToComeBack(t *testing.T) {
	t.Setenv("TEST_SHOP_KEY", shopKey)
	m := newMarket(t, tenants("rate 0.01"))
	body := m.verifyRequest()
	if got := m.post("/f/verify", shopKey, body); got.StatusCode != http.StatusOK {
		t.Fatalf("the first request: %s %s", got.Status, got.body)
	}
	got := m.post("/f/settle", shopKey, body)
	wait, err := strconv.Atoi(got.Header.Get("Retry-After"))
	if got.StatusCode != http.StatusTooManyRequests || err != nil || wait < 1 || wait > 100 {
		t.Errorf("the second request: %s, Retry-After %q", got.Status, got.Header.Get("Retry-After"))
	}
	if got := m.post("/f/verify", otherKey, body); got.StatusCode != http.StatusOK {
		t.Errorf("another tenant: %s", got.Status)
	}
	m.wantEarned(0)
}

// awayFromMidnight lets a day begin that would begin during a test.
func awayFromMidnight() {
	now := time.Now().UTC()
	if left := now.Truncate(24 * time.Hour).Add(24 * time.Hour).Sub(now); left < 30*time.Second {
		time.Sleep(left)
	}
}

func TestTheDayOfATenantGoesOnAfterAReload(t *testing.T) {
	t.Setenv("TEST_SHOP_KEY", shopKey)
	awayFromMidnight()
	m := newMarket(t, tenants("settlements_per_day 1"))
	first, second := m.verifyRequest(), m.verifyRequest()
	settled := m.post("/f/settle", shopKey, first)
	if settled.StatusCode != http.StatusOK || !strings.Contains(settled.body, `"success":true`) {
		t.Fatalf("settle: %s %s", settled.Status, settled.body)
	}
	id := settled.Header.Get("X-402-Payment")
	for _, when := range []string{"before", "after"} {
		for _, endpoint := range []string{"verify", "settle"} {
			got := m.post("/f/"+endpoint, shopKey, second)
			wait, err := strconv.Atoi(got.Header.Get("Retry-After"))
			if got.StatusCode != http.StatusTooManyRequests || err != nil || wait < 1 || wait > 86400 {
				t.Errorf("%s %s a reload: %s %s, Retry-After %q", endpoint, when, got.Status, got.body, got.Header.Get("Retry-After"))
			}
		}
		if got := m.post("/f/settle", shopKey, first); got.StatusCode != http.StatusOK || got.body != settled.body {
			t.Errorf("the first payment again, %s a reload: %s %s", when, got.Status, got.body)
		}
		if got := m.get("/f/settlements/"+id, "Authorization", "Bearer "+shopKey); got.StatusCode != http.StatusOK || !strings.Contains(got.body, `"status":"settled"`) {
			t.Errorf("its status, %s a reload: %s %s", when, got.Status, got.body)
		}
		m.load(m.source(tenants("settlements_per_day 1\n\t\t\t\trate " + strconv.Itoa(1000+len(when)))))
	}
	m.load(m.source(tenants("settlements_per_day 2")))
	if got := m.post("/f/settle", shopKey, second); got.StatusCode != http.StatusOK || !strings.Contains(got.body, `"success":true`) {
		t.Errorf("with a longer day: %s %s", got.Status, got.body)
	}
	m.wantEarned(20_000)
}

func TestOnlyItsTenantIsToldOfASettlement(t *testing.T) {
	t.Setenv("TEST_SHOP_KEY", shopKey)
	m := newMarket(t, strings.Replace(tenants("rate 1000"), "pay_to 0x70997970C51812dc3A010C7d01b50e0d17dc79C8", "rate 1000", 1))
	body := m.verifyRequest()
	id := m.post("/f/settle", shopKey, body).Header.Get("X-402-Payment")
	own := m.get("/f/settlements/"+id, "Authorization", "Bearer "+shopKey)
	var status struct{ Payment, Status, Message, Transaction, Network, Asset, Amount, PayTo string }
	mustJSON(t, own.body, &status)
	if own.StatusCode != http.StatusOK || status.Payment != id || status.Status != "settled" || len(status.Transaction) != 66 ||
		status.Network != "eip155:84532" || status.Amount != "10000" || status.PayTo != seller || status.Message == "" {
		t.Errorf("%s %s", own.Status, own.body)
	}
	if got := m.get("/f/settlements/"+id, "Authorization", "Bearer "+otherKey); got.StatusCode != http.StatusNotFound || strings.Contains(got.body, "0x") {
		t.Errorf("another tenant: %s %s", got.Status, got.body)
	}
	if got := m.get("/f/settlements/" + id); got.StatusCode != http.StatusUnauthorized {
		t.Errorf("nobody: %s %s", got.Status, got.body)
	}
	if got := m.post("/f/settle", otherKey, body); got.StatusCode != http.StatusOK || !strings.Contains(got.body, "duplicate_settlement") || strings.Contains(got.body, status.Transaction) {
		t.Errorf("settled by another tenant: %s %s", got.Status, got.body)
	}
	// What the paywall here has sold is nobody's.
	c, err := payment.DecodeRequired(m.get("/goods").Header.Get(payment.HeaderRequired))
	if err != nil {
		t.Fatal(err)
	}
	name, value := signWith(t, c, m.payer)
	if got := m.get("/goods", name, value); got.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", got.Status, got.body)
	}
	p, err := payment.FromHeader([]string{value}, nil)
	if err != nil {
		t.Fatal(err)
	}
	sold, err := facilitator.Identify(p, &c.Offers[0].Offer)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{shopKey, otherKey} {
		if got := m.get("/f/settlements/"+sold.Key.String(), "Authorization", "Bearer "+k); got.StatusCode != http.StatusNotFound {
			t.Errorf("of what the paywall has sold: %s %s", got.Status, got.body)
		}
	}
	m.wantEarned(20_000)
}

func TestLogsAndMetricsNameTenantsAndNotTheirKeys(t *testing.T) {
	t.Setenv("TEST_SHOP_KEY", shopKey)
	file := filepath.Join(t.TempDir(), "caddy.log")
	m := newMarket(t, `respond "nothing"`)
	m.load(strings.Replace(m.source("log\n\t"+tenants("min_amount $0.01")), "output discard", "output file "+file+"\n\t\tlevel DEBUG", 1))
	body := m.verifyRequest()
	id := m.post("/f/settle", shopKey, body).Header.Get("X-402-Payment")
	m.post("/f/verify", otherKey, body)
	m.post("/f/verify", "canary-of-nobody", body)
	m.get("/f/settlements/"+strings.Repeat("ab", 32), "Authorization", "Bearer "+shopKey)

	ctx := caddy.ActiveContext()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.Metric {
			if family.GetName() == "caddy_x402_facilitator_requests_total" {
				counts[labels(metric)] = metric.GetCounter().GetValue()
			}
		}
	}
	for _, want := range []string{
		" endpoint=settle outcome=ok tenant=shop", " endpoint=verify outcome=refused tenant=other",
		" endpoint=verify outcome=unauthorized tenant=", " endpoint=settlements outcome=unknown tenant=shop",
	} {
		if counts[want] != 1 {
			t.Errorf("%q is %v in %v", want, counts[want], counts)
		}
	}

	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{shopKey, otherKey, "canary-of-nobody", hex.EncodeToString(hashOf(shopKey))} {
		if strings.Contains(string(log), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	for _, want := range []string{`"x402_tenant":"shop","x402_payment":"` + id + `","x402_outcome":"ok"`, `"x402_tenant":"other"`, `"x402_reason":"invalid_payment_requirements"`, `"x402_outcome":"unauthorized"`} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the log lacks %s", want)
		}
	}
}
