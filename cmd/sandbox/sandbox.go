package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate"
	_ "github.com/tollgate402/tollgate/caddymodule"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment"
)

// The fixed ports on 127.0.0.1.
const (
	portAPI      = 4021
	portUpstream = 4022
	portAdmin    = 4023
	portRPC      = 8545
)

// A sandbox is everything that runs.
type sandbox struct {
	chain    *devchain.Chain
	upstream *http.Server
	grants   *atomic.Int64
	api      string // address of the API
	admin    string
	dir      string
	keep     bool // dir belongs to the user
	hostile  bool
	seed     uint64        // of the hostility
	peace    func()        // ends the reorgs; nil where there are none
	calm     chan struct{} // closed when they have ended
}

func start(o options) (s *sandbox, err error) {
	s = &sandbox{grants: &atomic.Int64{}, hostile: o.hostile, seed: o.seed}
	if s.hostile && s.seed == 0 {
		s.seed = rand.Uint64N(1 << 32) //nolint:gosec // no secret
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	if s.dir, s.keep, err = folder(o.data); err != nil {
		return s, err
	}
	var rpc, up string
	for _, p := range []struct {
		address *string
		port    int
		what    string
	}{{&rpc, portRPC, "the chain's RPC"}, {&s.api, portAPI, "the API"}, {&up, portUpstream, "the upstream"}, {&s.admin, portAdmin, "Caddy's admin API"}} {
		if *p.address, err = reserve(p.port, p.what, o.ephemeral); err != nil {
			return s, err
		}
	}
	if s.chain, err = devchain.Start(devchain.Config{Addr: rpc, BlockTime: o.blockTime}); err != nil {
		return s, fmt.Errorf("starting the chain: %w", err)
	}
	if err := s.serveUpstream(up); err != nil {
		return s, err
	}
	if s.hostile {
		s.startReorgs()
	}
	return s, s.runCaddy(o, up)
}

// startReorgs makes the chain hostile.
func (s *sandbox) startReorgs() {
	var ctx context.Context
	ctx, s.peace = context.WithCancel(context.Background())
	s.calm = make(chan struct{})
	go func() { // ends with peace; stop waits for it
		defer close(s.calm)
		if err := reorg(ctx, s.chain, s.seed); err != nil {
			fmt.Fprintln(os.Stderr, "sandbox: no block is replaced any more:", err)
		}
	}()
}

// folder returns where this run keeps its files. The chain forgets everything
// at the end, so each run gets a ledger of its own.
func folder(base string) (dir string, keep bool, err error) {
	if base == "" {
		dir, err = os.MkdirTemp("", "tollgate-sandbox-")
		return dir, false, err
	}
	dir, err = filepath.Abs(filepath.Join(base, time.Now().UTC().Format("20060102-150405.000")))
	if err != nil {
		return "", true, err
	}
	return dir, true, os.MkdirAll(dir, 0o700)
}

// reserve returns a free address on 127.0.0.1.
func reserve(port int, what string, ephemeral bool) (string, error) {
	if ephemeral {
		port = 0
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return "", fmt.Errorf("port %d for %s is taken: stop what listens there (another sandbox?), or use --ephemeral-ports", port, what)
	}
	if err != nil {
		return "", fmt.Errorf("listening for %s: %w", what, err)
	}
	return l.Addr().String(), l.Close()
}

// serveUpstream runs the API that is sold. It knows nothing of payments.
func (s *sandbox) serveUpstream(address string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_sandbox/grants", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]int64{"grants": s.grants.Load()})
	})
	mux.HandleFunc("GET /weather", func(w http.ResponseWriter, _ *http.Request) {
		s.grants.Add(1)
		writeJSON(w, map[string]string{"city": "Lisbon", "weather": "sunny", "temperature": "24 °C"})
	})
	mux.HandleFunc("GET /tides", func(w http.ResponseWriter, _ *http.Request) {
		s.grants.Add(1)
		writeJSON(w, map[string]string{"city": "Lisbon", "high": "04:12", "low": "10:31"})
	})
	mux.HandleFunc("GET /ferry", func(w http.ResponseWriter, _ *http.Request) {
		s.grants.Add(1)
		writeJSON(w, map[string]string{"from": "Cais do Sodré", "to": "Cacilhas", "next": "14:20"})
	})
	mux.HandleFunc("GET /quota", func(w http.ResponseWriter, _ *http.Request) {
		s.grants.Add(1)
		writeJSON(w, map[string]int{"requests": 100})
	})
	mux.HandleFunc("GET /chat", s.chat)
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		s.grants.Add(1)
		var body json.RawMessage
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&body); err != nil {
			http.Error(w, "the body must be JSON", http.StatusBadRequest)
			return
		}
		writeJSON(w, map[string]json.RawMessage{"echo": body})
	})
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listening for the upstream: %w", err)
	}
	s.upstream = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.upstream.Serve(l) }() // ends with Close in stop
	return nil
}

func writeJSON[T any](w http.ResponseWriter, v T) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the caller has gone
}

// runCaddy runs Caddyfile.example in this process.
func (s *sandbox) runCaddy(o options, upstream string) error {
	log := "file " + filepath.Join(s.dir, "caddy.log")
	if o.verbose {
		log = "stderr"
	}
	for name, value := range map[string]string{
		"TOLLGATE_LISTEN":   s.api,
		"TOLLGATE_UPSTREAM": upstream,
		"TOLLGATE_ADMIN":    s.admin,
		"TOLLGATE_RPC":      s.chain.WebSocketURL(),
		"TOLLGATE_PAY_TO":   s.seller().Address.Hex(),
		"TOLLGATE_LANE_KEY": keyHex(s.chain.Account("facilitator")),
		"TOLLGATE_DATA":     s.dir,
		"TOLLGATE_LOG":      log,

		"TOLLGATE_MERCHANT_KEY": merchantKey,
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	source, err := withPlayThings(tollgate.Caddyfile)
	if err != nil {
		return err
	}
	if s.hostile {
		source = bytes.Replace(source, []byte("facilitator embedded"), []byte("facilitator hostile "+strconv.FormatUint(s.seed, 10)), 1)
	}
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt(source, map[string]any{"filename": "Caddyfile.example"})
	if err != nil {
		return fmt.Errorf("reading Caddyfile.example: %w", err)
	}
	for _, w := range warnings {
		fmt.Fprintln(os.Stderr, "sandbox:", w)
	}
	if err := caddy.Load(config, true); err != nil {
		return fmt.Errorf("starting Caddy with Caddyfile.example: %w", err)
	}
	return nil
}

// withPlayThings adds to Caddyfile.example what nobody else has: a token that
// can be paid with by Permit2 only, which payers have to approve by a transaction
// of their own, a route that wants it, a wallet with play money for the pages of
// payment links, and a merchant whose key is public.
func withPlayThings(source []byte) ([]byte, error) {
	for _, part := range []struct{ before, after string }{
		{"# sponsoring erc20_approval\n", "sponsoring erc20_approval\n\n\t\t\ttoken " + devchain.Plain.Hex() + " {\n\t\t\t\tsymbol PLAIN\n\t\t\t\tdecimals 6\n\t\t\t}\n"},
		{"\tx402_receipts ", "\tx402 /ferry \"0.001 PLAIN\" \"The next ferry\" {\n\t\ttoken PLAIN\n\t\tmethod permit2\n\t}\n\n\tx402_receipts "},
		{"\tx402_links {\n", "\tsandbox_wallet\n\n\tx402_links {\n"},
		{"# merchant shop {\n\t\t#\tkey {env.TOLLGATE_MERCHANT_KEY}\n\t\t# }\n", "merchant shop {\n\t\t\tkey {env.TOLLGATE_MERCHANT_KEY}\n\t\t}\n"},
	} {
		if bytes.Count(source, []byte(part.before)) != 1 {
			return nil, fmt.Errorf("there is not one %q in Caddyfile.example, where the sandbox puts something of its own", part.before)
		}
		source = bytes.Replace(source, []byte(part.before), []byte(part.after), 1)
	}
	return source, nil
}

// stop ends everything and removes what only this run needed.
func (s *sandbox) stop() error {
	var errs []error
	errs = append(errs, caddy.Stop())
	if s.upstream != nil {
		errs = append(errs, s.upstream.Close())
	}
	if s.peace != nil {
		s.peace()
		<-s.calm
	}
	if s.chain != nil {
		errs = append(errs, s.chain.Close())
	}
	if s.dir != "" && !s.keep {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

func (s *sandbox) payer() devchain.Account  { return s.chain.Account("payer") }
func (s *sandbox) seller() devchain.Account { return s.chain.Account("seller") }
func (s *sandbox) apiURL() string           { return "http://" + s.api }
func (s *sandbox) paidURL() string          { return s.apiURL() + "/weather" }
func (s *sandbox) facilitatorURL() string   { return s.apiURL() + "/facilitator" }

// keyHex returns a private key that is public: those of the chain's accounts
// are derived from their labels.
func keyHex(a devchain.Account) string { return "0x" + hex.EncodeToString(crypto.FromECDSA(a.Key)) }

// print writes everything that a program needs to use the sandbox. link is the
// URL of a payment link.
func (s *sandbox) print(link string) error {
	type account struct {
		Label      string `json:"label"`
		Address    string `json:"address"`
		PrivateKey string `json:"private_key"`
	}
	var accounts []account
	for _, a := range s.chain.Accounts() {
		accounts = append(accounts, account{a.Label, a.Address.Hex(), keyHex(a)})
	}
	network := payment.EVM(s.chain.ChainID())
	return json.NewEncoder(os.Stdout).Encode(struct {
		ChainID        uint64    `json:"chain_id"`
		RPCURL         string    `json:"rpc_url"`
		APIURL         string    `json:"api_url"`
		PaidURL        string    `json:"paid_url"`
		FacilitatorURL string    `json:"facilitator_url"`
		AdminURL       string    `json:"admin_url"`
		LinkURL        string    `json:"link_url"`     // a payment link that is unpaid
		MerchantKey    string    `json:"merchant_key"` // for /v1/payment-links, as the merchant "shop"
		Token          string    `json:"token"`
		PlainToken     string    `json:"plain_token"` // without EIP-2612 and EIP-3009
		Network        string    `json:"network"`
		NetworkV1      string    `json:"network_v1"`
		Price          string    `json:"price"` // atomic units
		PayTo          string    `json:"pay_to"`
		Data           string    `json:"data"`
		Hostile        bool      `json:"hostile,omitempty"`
		Seed           uint64    `json:"seed,omitempty"` // of the hostility
		Accounts       []account `json:"accounts"`
	}{
		s.chain.ChainID(), s.chain.URL(), s.apiURL(), s.paidURL(), s.facilitatorURL(), "http://" + s.admin, link, merchantKey,
		devchain.USDC.Hex(), devchain.Plain.Hex(), string(network), network.In(payment.V1), "1000", s.seller().Address.Hex(), s.dir, s.hostile, s.seed, accounts,
	})
}
