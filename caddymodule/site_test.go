package caddymodule

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/signer/localkey"
)

const (
	seller = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"

	// Keys that every development chain publishes.
	payerKey = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
	laneKey  = "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"
)

func init() {
	caddy.RegisterModule(&fakeFacilitator{})
}

// A fakeFacilitator is a guest module that takes every payment it can read.
type fakeFacilitator struct {
	// Settles is what Settle answers: "" for yes, "pending", "no", or
	// "unavailable".
	Settles string `json:"settles,omitempty"`
}

// settled counts the settlements of all fake facilitators.
var settled atomic.Int64

func (*fakeFacilitator) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "x402.facilitators.fake", New: func() caddy.Module { return new(fakeFacilitator) }}
}

func (f *fakeFacilitator) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return optionalArg(d, &f.Settles)
}

func (f *fakeFacilitator) Facilitator() payment.Facilitator { return f }

func (f *fakeFacilitator) Verify(_ context.Context, p *payment.Payment, o *payment.Offer) (*payment.Verification, error) {
	id, err := facilitator.Identify(p, o)
	if err != nil {
		return nil, err
	}
	return &payment.Verification{Payer: id.Payer, Key: id.Key}, nil
}

func (f *fakeFacilitator) Settle(_ context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	id, err := facilitator.Identify(p, o)
	if err != nil {
		return nil, err
	}
	switch f.Settles {
	case "pending":
		return nil, &payment.UnavailableError{Doing: "settling", Pending: true, Payer: id.Payer}
	case "unavailable":
		return nil, &payment.UnavailableError{Doing: "settling", Payer: id.Payer}
	case "no":
		return nil, payment.Invalid(payment.EVMInsufficientBalance, "")
	}
	n := settled.Add(1)
	return &payment.Settlement{Network: o.Network(), Transaction: fmt.Sprintf("0x%064x", n), Payer: id.Payer, Amount: charge}, nil
}

func (f *fakeFacilitator) Supported(context.Context) (*payment.Supported, error) {
	return &payment.Supported{Kinds: []payment.Kind{{Version: payment.V2, Scheme: payment.Exact, Network: "eip155:84532"}}}, nil
}

// A site is Caddy with one configuration, running in this process.
type site struct {
	t       *testing.T
	address string
	dir     string // for a ledger; does not exist yet
}

// config returns the JSON of a Caddyfile in which ADDRESS stands for the
// site's address.
func (s *site) config(source string) []byte {
	s.t.Helper()
	doc, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(strings.ReplaceAll(source, "ADDRESS", s.address)), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		s.t.Fatal(err)
	}
	if len(warnings) > 0 {
		s.t.Fatal(warnings)
	}
	return doc
}

// newSite reserves an address.
func newSite(t *testing.T) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// The directory is removed after Caddy has let go of it.
	s := &site{t, l.Addr().String(), t.TempDir() + "/ledger"}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// load replaces the running configuration.
func (s *site) load(source string) {
	s.t.Helper()
	if err := caddy.Load(s.config(source), true); err != nil {
		s.t.Fatal(err)
	}
}

// paidSite is a configuration with the fake facilitator. app and site are put
// into the global option and into the site.
func paidSite(app, site string) string {
	return `{
	admin off
	persist_config off
	auto_https off
	grace_period 1s
	log {
		output discard
	}
	x402 {
		pay_to ` + seller + `
		network base-sepolia
		` + app + `
	}
}
http://ADDRESS {
	bind 127.0.0.1
	` + site + `
}
`
}

// connections are used once each: a reload may close any of them.
var connections = &http.Transport{DisableKeepAlives: true}

// An answer is a response that has been read.
type answer struct {
	*http.Response
	body string
}

// do makes a request. A reload resets connections that wait to be accepted by
// the old server; then the same request is made again, as payers do.
func (s *site) do(req *http.Request) answer {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		got, err := once(req)
		if err == nil {
			return got
		}
		if req.Body != nil || time.Now().After(deadline) {
			s.t.Error(err)
			return answer{Response: &http.Response{Status: "no answer", Header: http.Header{}}}
		}
	}
}

func once(req *http.Request) (answer, error) {
	resp, err := connections.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp, string(body)}, err
}

func (s *site) get(path string, header ...string) answer {
	s.t.Helper()
	return s.do(s.request(http.MethodGet, path, header...))
}

func (s *site) request(method, path string, header ...string) *http.Request {
	s.t.Helper()
	req, err := http.NewRequest(method, "http://"+s.address+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

// payFor asks for a path and returns a payment header for its first offer.
func (s *site) payFor(path string) (name, value string) {
	s.t.Helper()
	unpaid := s.get(path)
	if unpaid.StatusCode != http.StatusPaymentRequired {
		s.t.Fatalf("%s: %s %s", path, unpaid.Status, unpaid.body)
	}
	c, err := payment.DecodeRequired(unpaid.Header.Get(payment.HeaderRequired))
	if err != nil {
		s.t.Fatal(err)
	}
	return sign(s.t, c, payerKey)
}

var nonces struct {
	sync.Mutex
	last uint64
}

func sign(t testing.TB, c *payment.Received, key string) (name, value string) {
	t.Helper()
	k, err := localkey.Parse(key)
	if err != nil {
		t.Fatal(err)
	}
	return signWith(t, c, k)
}

func signWith(t testing.TB, c *payment.Received, k *localkey.Key) (name, value string) {
	t.Helper()
	offer := &c.Offers[0]
	nonces.Lock()
	nonces.last++
	nonce := [32]byte{0: 1}
	binary.BigEndian.PutUint64(nonce[24:], nonces.last)
	nonces.Unlock()
	transfer, err := k.SignTransfer(context.Background(), evm.DomainOf(offer.Amount.Token()), evm.Authorization{
		From: k.Address(), To: common.HexToAddress(offer.PayTo), Value: offer.Amount.Big(),
		ValidAfter: new(big.Int), ValidBefore: big.NewInt(time.Now().Add(time.Minute).Unix()), Nonce: nonce,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c.Pay(offer, transfer.Encode()).Header()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func mustJSON(t *testing.T, doc string, to any) {
	t.Helper()
	if err := json.Unmarshal([]byte(doc), to); err != nil {
		t.Fatalf("%v in %s", err, doc)
	}
}
