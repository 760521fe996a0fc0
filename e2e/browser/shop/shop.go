package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
)

//go:embed Caddyfile
var caddyfile string

// blockTime is the time between blocks; the Caddyfile counts on it.
const blockTime = time.Second

// A shop is the product at work, and its chain.
type shop struct {
	dir     string
	chain   *devchain.Chain
	base    string // scheme and host of the site
	admin   string // address of the admin API
	key     string // of the merchant whose links can be paid in several ways
	product *exec.Cmd
	ended   chan struct{}     // closed when the product has ended; nil before it runs
	site    *http.Client      // trusts the site's certificate
	old     map[string]string // URLs of the links of the past, by their names in the world
}

// open starts a shop whose ledger has links already that were made long ago.
func open(ctx context.Context, binary string) (s *shop, err error) {
	s = &shop{key: rand.Text()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.dir, err = os.MkdirTemp("", "tollgate-browser-"); err != nil {
		return s, err
	}
	if s.chain, err = devchain.Start(devchain.Config{BlockTime: blockTime}); err != nil {
		return s, err
	}
	site, err := freePort()
	if err != nil {
		return s, err
	}
	admin, err := freePort()
	if err != nil {
		return s, err
	}
	s.base, s.admin = "https://localhost:"+site, "127.0.0.1:"+admin
	if err := s.remember(ctx); err != nil {
		return s, fmt.Errorf("making the links of the past: %w", err)
	}
	if err := s.run(binary, site); err != nil {
		return s, fmt.Errorf("starting %s: %w", binary, err)
	}
	return s, s.await(ctx)
}

func (s *shop) ledger() string { return filepath.Join(s.dir, "ledger") }

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}

// remember makes links before the product runs, as it would have made them
// then.
func (s *shop) remember(ctx context.Context) (err error) {
	store, err := badger.Open(s.ledger(), badger.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	ids, err := linksOfThePast(ctx, store, s.chain.Account("seller").Address)
	if err != nil {
		return err
	}
	s.old = map[string]string{}
	for name, id := range ids {
		s.old[name] = s.base + "/x402/" + string(id)
	}
	return nil
}

// run starts the product.
func (s *shop) run(binary, port string) error {
	file := filepath.Join(s.dir, "Caddyfile")
	source := strings.NewReplacer(
		"%ADMIN%", s.admin, "%PORT%", port, "%LEDGER%", s.ledger(), "%RPC%", s.chain.WebSocketURL(), "%WALLET_RPC%", s.chain.URL(),
		"%PAY_TO%", s.chain.Account("seller").Address.Hex(), "%PLAIN%", devchain.Plain.Hex(),
	).Replace(caddyfile)
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		return err
	}
	s.product = exec.Command(binary, "run", "--adapter", "caddyfile", "--config", file)
	s.product.Env = append(os.Environ(), "HOME="+s.dir, "XDG_DATA_HOME="+s.dir, "XDG_CONFIG_HOME="+s.dir,
		"SHOP_MERCHANT_KEY="+s.key, "SHOP_LANE_KEY="+hex.EncodeToString(crypto.FromECDSA(s.chain.Account("facilitator").Key)))
	s.product.Stderr = os.Stderr
	if err := s.product.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	s.ended = ended
	go func() { // ends with the product
		defer close(ended)
		_ = s.product.Wait() // how it ended is in s.product.ProcessState
	}()
	return nil
}

// patience is how long the product may take to start.
const patience = 30 * time.Second

// await returns when the product serves.
func (s *shop) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := s.knock(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-s.ended:
			return errors.New("the product ended before it served")
		case <-ctx.Done():
			return fmt.Errorf("the product does not serve within %s: %w", patience, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// knock learns what certificates the site has, and asks it for something.
func (s *shop) knock(ctx context.Context) error {
	chain, err := fetch(ctx, http.DefaultClient, "http://"+s.admin+"/pki/ca/local/certificates")
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(chain) {
		return errors.New("the admin API has no certificate of its authority")
	}
	s.site = &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	_, err = fetch(ctx, s.site, s.base+"/thanks")
	return err
}

func fetch(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers with %s", url, resp.Status)
	}
	return body, err
}

// close ends everything, and fails if the product does not end well.
func (s *shop) close() error {
	var errs []error
	if s.ended != nil {
		errs = append(errs, s.stop())
	}
	if s.chain != nil {
		errs = append(errs, s.chain.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// stop ends the product as an operator would.
func (s *shop) stop() error {
	if err := s.product.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended:
	case <-time.After(12 * time.Second): // the driver waits for 15
		err := s.product.Process.Kill()
		<-s.ended
		return errors.Join(errors.New("the product did not end within 12 s of SIGTERM"), err)
	}
	if !s.product.ProcessState.Success() {
		return fmt.Errorf("the product ended with %s", s.product.ProcessState)
	}
	return nil
}
