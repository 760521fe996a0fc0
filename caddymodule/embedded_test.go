package caddymodule

import (
	"encoding/hex"
	"encoding/json"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/signer/localkey"
)

// A market is a site whose payments are settled on a chain of this process.
type market struct {
	*site
	chain *devchain.Chain
	payer *localkey.Key
}

// newMarket runs a site on a chain with instant blocks.
func newMarket(t *testing.T, directives string) *market {
	t.Helper()
	chain, err := devchain.Start(devchain.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := chain.Close(); err != nil {
			t.Error(err)
		}
	})
	m := &market{newSite(t), chain, key(t, chain.Account("payer"))} // Caddy stops before the chain does
	t.Setenv("TEST_LANE_KEY", hexOf(chain.Account("facilitator")))
	t.Setenv("TEST_RPC", chain.URL())
	m.load(m.source(directives))
	return m
}

func (m *market) source(directives string) string {
	return strings.Replace(paidSite("ledger badger "+m.dir, directives), "network base-sepolia",
		"network base-sepolia {\n\t\t\trpc {env.TEST_RPC}\n\t\t\tlane key {env.TEST_LANE_KEY}\n\t\t}", 1)
}

func hexOf(a devchain.Account) string { return hex.EncodeToString(crypto.FromECDSA(a.Key)) }

func key(t *testing.T, a devchain.Account) *localkey.Key {
	t.Helper()
	k, err := localkey.Parse(hexOf(a))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// pay returns a payment header for a path, by the chain's payer.
func (m *market) pay(path string) (name, value string) {
	m.t.Helper()
	c, err := payment.DecodeRequired(m.get(path).Header.Get(payment.HeaderRequired))
	if err != nil {
		m.t.Fatal(err)
	}
	return signWith(m.t, c, m.payer)
}

func TestAPaidRequestMovesMoneyOnce(t *testing.T) {
	m := newMarket(t, `x402 $0.01
	respond "goods"`)
	const requests = 4
	name, value := m.pay("/a")
	var wg sync.WaitGroup
	for range requests {
		wg.Go(func() {
			if got := m.get("/a", name, value); got.StatusCode != http.StatusOK || got.body != "goods" {
				t.Errorf("%s %s", got.Status, got.body)
			}
		})
	}
	wg.Wait()
	if got := m.chain.USDCBalance(common.HexToAddress(seller)); got.Cmp(big.NewInt(10_000)) != 0 {
		t.Errorf("the seller has %s atomic units, want 10000", got)
	}
}

func TestPaymentsGoOnWhileTheConfigurationIsReloaded(t *testing.T) {
	m := newMarket(t, `x402 $0.01
	respond "goods"`)
	type paid struct{ name, value string }
	const payments = 24
	work := make(chan paid, payments)
	for range payments {
		name, value := m.pay("/a")
		work <- paid{name, value}
	}
	close(work)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for p := range work {
				// A payment may be in the hands of the old configuration;
				// then the answer asks for the same request again.
				got := m.get("/a", p.name, p.value)
				for tries := 0; got.StatusCode == http.StatusServiceUnavailable && tries < 1000; tries++ {
					got = m.get("/a", p.name, p.value)
				}
				if got.StatusCode != http.StatusOK || got.body != "goods" {
					t.Errorf("%s %s", got.Status, got.body)
				}
			}
		})
	}
	for i := range 6 {
		m.load(m.source("x402 $0.01 \"number " + strconv.Itoa(i) + "\"\n\trespond \"goods\""))
	}
	wg.Wait()
	if got := m.chain.USDCBalance(common.HexToAddress(seller)); got.Cmp(big.NewInt(payments*10_000)) != 0 {
		t.Errorf("the seller has %s atomic units, want %d", got, payments*10_000)
	}
}

func TestTheFacilitatorServesWhoMaySpendItsGas(t *testing.T) {
	t.Setenv("TEST_TOKEN", "correct horse")
	m := newMarket(t, `handle_path /guarded/* {
		x402_facilitator {
			bearer {env.TEST_TOKEN}
		}
	}
	handle_path /ours/* {
		x402_facilitator {
			pay_to `+strings.ToLower(seller)+`
		}
	}
	handle_path /others/* {
		x402_facilitator {
			pay_to 0x70997970C51812dc3A010C7d01b50e0d17dc79C8
		}
	}
	x402 /goods $0.01
	respond "goods"`)
	body := m.verifyRequest()
	post := func(path, token string) answer {
		req, err := http.NewRequest(http.MethodPost, "http://"+m.address+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		return m.do(req)
	}
	for _, c := range []struct {
		path, token string
		status      int
		want        string
	}{
		{"/guarded/verify", "", http.StatusUnauthorized, "bearer"},
		{"/guarded/settle", "wrong", http.StatusUnauthorized, "bearer"},
		{"/guarded/verify", "correct horse", http.StatusOK, `"isValid":true`},
		{"/ours/verify", "", http.StatusOK, `"isValid":true`},
		{"/others/verify", "", http.StatusOK, `"isValid":false`},
		{"/others/settle", "", http.StatusOK, `"success":false`},
		{"/ours/settle", "", http.StatusOK, `"success":true`},
	} {
		if got := post(c.path, c.token); got.StatusCode != c.status || !strings.Contains(got.body, c.want) {
			t.Errorf("%s with token %q: %s %s", c.path, c.token, got.Status, got.body)
		}
	}
	if got := m.get("/guarded/supported"); got.StatusCode != http.StatusOK || !strings.Contains(got.body, `"network":"base-sepolia"`) {
		t.Errorf("supported: %s %s", got.Status, got.body)
	}
	if got := m.chain.USDCBalance(common.HexToAddress(seller)); got.Cmp(big.NewInt(10_000)) != 0 {
		t.Errorf("the seller has %s atomic units, want 10000", got)
	}
}

// verifyRequest returns the body of a facilitator request for a fresh payment.
func (m *market) verifyRequest() string {
	m.t.Helper()
	c, err := payment.DecodeRequired(m.get("/goods").Header.Get(payment.HeaderRequired))
	if err != nil {
		m.t.Fatal(err)
	}
	name, value := signWith(m.t, c, m.payer)
	p, err := payment.FromHeader(map[bool][]string{true: {value}}[name == payment.HeaderPayment], nil)
	if err != nil {
		m.t.Fatal(err)
	}
	doc, err := json.Marshal(map[string]json.RawMessage{
		"x402Version": json.RawMessage("2"), "paymentPayload": p.Raw(), "paymentRequirements": c.Offers[0].Raw,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return string(doc)
}

func TestALiteralKeyInJSONIsRefusedAndNotRepeated(t *testing.T) {
	for _, lane := range []string{
		`{"signer":"key","key":"` + laneKey + `"}`,
		`{"signer":"key","key":"{env.A}` + laneKey + `{env.B}"}`,
		`{"signer":"key","key":"{env.A}","insecure_literal_key":"` + laneKey + `"}`,
		`{"signer":"key","insecure_literal_key":"` + laneKey + `00"}`,
	} {
		err := validate([]byte(`{"apps":{"x402":{"networks":[{"network":"base","lanes":[` + lane + `]}]}}}`))
		if err == nil || strings.Contains(err.Error(), laneKey) {
			t.Errorf("error %v", err)
		}
	}
}
