package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/devchain"
)

// price is what a request costs, in atomic units of test USDC.
const price = 1000

// A world is the product, running as its own process, and a chain.
type world struct {
	chain   *devchain.Chain
	dir     string
	site    string // address of the paid site
	admin   string // address of the admin API
	product *exec.Cmd
	ended   chan struct{} // closed when the product has ended
}

// The name of a configuration is in its answers.
const caddyfile = `{
	admin %[1]s
	auto_https off
	persist_config off
	grace_period 5s
	log {
		level ERROR
		exclude admin.api
	}
	x402 {
		pay_to %[2]s
		network base-sepolia {
			rpc %[3]s
			lane key {env.RELOAD_LANE_KEY}
		}
		ledger badger %[4]s
	}
}
http://%[5]s {
	header X-Generation %[6]s
	@priced path /goods/*
	x402 @priced 1000 "generation %[6]s"
	respond "{path}"
	%[7]s
}
`

func (w *world) source(generation, extra string) string {
	return fmt.Sprintf(caddyfile, w.admin, w.seller().Hex(), w.chain.WebSocketURL(), w.ledger(), w.site, generation, extra)
}

func (w *world) ledger() string         { return filepath.Join(w.dir, "ledger") }
func (w *world) seller() common.Address { return w.chain.Account("seller").Address }

func newWorld(ctx context.Context) (w *world, err error) {
	w = &world{ended: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.dir, err = os.MkdirTemp("", "tollgate-reload-"); err != nil {
		return w, err
	}
	binary := filepath.Join(w.dir, "tollgate")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/tollgate").CombinedOutput(); err != nil {
		return w, fmt.Errorf("building cmd/tollgate, from the root of the checkout: %w\n%s", err, out)
	}
	if w.chain, err = devchain.Start(devchain.Config{}); err != nil {
		return w, err
	}
	for _, a := range []*string{&w.site, &w.admin} {
		if *a, err = freeAddress(); err != nil {
			return w, err
		}
	}
	first := filepath.Join(w.dir, "Caddyfile")
	if err := os.WriteFile(first, []byte(w.source("first", "")), 0o600); err != nil {
		return w, err
	}
	w.product = exec.Command(binary, "run", "--config", first, "--adapter", "caddyfile")
	w.product.Env = append(os.Environ(), "HOME="+w.dir, "XDG_DATA_HOME="+w.dir, "XDG_CONFIG_HOME="+w.dir,
		"RELOAD_LANE_KEY="+hex.EncodeToString(crypto.FromECDSA(w.chain.Account("facilitator").Key)))
	w.product.Stderr = os.Stderr
	if err := w.product.Start(); err != nil {
		return w, err
	}
	go func() { // ends with the product
		_ = w.product.Wait() // killed or ended, its state says which
		close(w.ended)
	}()
	for range 200 {
		if _, err = w.generation(ctx); err == nil {
			return w, nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return w, err
		}
	}
	return w, fmt.Errorf("the product does not answer: %w", err)
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// close ends the product as an operator would, and fails if it does not end
// well.
func (w *world) close() error {
	var errs []error
	if w.product != nil && w.product.Process != nil {
		errs = append(errs, w.product.Process.Signal(syscall.SIGTERM))
		select {
		case <-w.ended:
			if !w.product.ProcessState.Success() {
				errs = append(errs, fmt.Errorf("the product ended with %s", w.product.ProcessState))
			}
		case <-time.After(30 * time.Second):
			errs = append(errs, errors.New("the product did not end within 30 s of SIGTERM"), w.product.Process.Kill())
		}
	}
	if w.chain != nil {
		errs = append(errs, w.chain.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

// generation returns the name of the configuration that answers.
func (w *world) generation(ctx context.Context) (string, error) {
	resp, err := get(ctx, "http://"+w.site+"/free")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	return resp.Header.Get("X-Generation"), nil
}

func get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	return http.DefaultClient.Do(req)
}

// goroutines returns how many goroutines the product has.
func (w *world) goroutines(ctx context.Context) (int, error) {
	resp, err := get(ctx, "http://"+w.admin+"/debug/pprof/goroutine?debug=1")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil {
		return 0, err
	}
	_, total, ok := strings.Cut(strings.TrimSpace(line), "total ")
	if !ok {
		return 0, fmt.Errorf("a goroutine profile begins with %q", line)
	}
	return strconv.Atoi(total)
}

// openLedgers counts how often the product has the ledger's directory open,
// which Badger does once for its lock.
func (w *world) openLedgers() (int, error) {
	folder := fmt.Sprintf("/proc/%d/fd", w.product.Process.Pid)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(folder, e.Name())); err == nil && target == w.ledger() {
			n++
		}
	}
	return n, nil
}

// A report is what became of the configurations.
type report struct {
	good, refused int
	lastGood      string
	mostStores    int
	times         []time.Duration
}

func (r *report) p99() time.Duration {
	if len(r.times) == 0 {
		return 0
	}
	slices.Sort(r.times)
	return r.times[len(r.times)*99/100]
}

// bad are configurations that must be refused, each at another step: reading
// it, checking the price, checking the network, starting the server.
func (w *world) bad() []string {
	return []string{
		w.source("bad", "x402 {"),
		w.source("bad", "x402 $0.0000001"),
		strings.Replace(w.source("bad", ""), "lane key {env.RELOAD_LANE_KEY}", "", 1),
		strings.Replace(w.source("bad", ""), "{env.RELOAD_LANE_KEY}", "{env.RELOAD_NO_SUCH_KEY}", 1),
		w.source("bad", "") + "http://192.0.2.1:1 {\n\tbind 192.0.2.1\n}\n",
	}
}

// storm loads configurations until length has passed.
func (w *world) storm(ctx context.Context, length, pause time.Duration) (*report, error) {
	r := &report{lastGood: "first"}
	bad := w.bad()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	end := time.Now().Add(length)
	for i := 0; time.Now().Before(end); i++ {
		select {
		case <-tick.C:
		case <-w.ended:
			return r, errors.New("the product ended in the storm")
		case <-ctx.Done():
			return r, ctx.Err()
		}
		began := time.Now()
		if i%3 == 2 {
			source := bad[i/3%len(bad)]
			status, answer, err := w.load(ctx, source)
			if err != nil {
				return r, err
			}
			if status < 400 {
				return r, fmt.Errorf("a bad configuration was taken: %s\n%s", answer, source)
			}
			r.refused++
		} else {
			name := "g" + strconv.Itoa(i)
			status, answer, err := w.load(ctx, w.source(name, ""))
			if err != nil {
				return r, err
			}
			if status != http.StatusOK {
				return r, fmt.Errorf("a good configuration was refused with %d: %s", status, answer)
			}
			r.good++
			r.lastGood = name
		}
		r.times = append(r.times, time.Since(began))
		n, err := w.openLedgers()
		if err != nil {
			return r, err
		}
		r.mostStores = max(r.mostStores, n)
	}
	return r, nil
}

// load hands a configuration to the admin API. The API's own listener is
// replaced with every configuration, so a connection that it resets is made
// again.
func (w *world) load(ctx context.Context, source string) (status int, answer string, err error) {
	for range 50 {
		if status, answer, err = w.loadOnce(ctx, source); err == nil || ctx.Err() != nil {
			return status, answer, err
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return 0, "", err
		}
	}
	return status, answer, fmt.Errorf("loading a configuration: %w", err)
}

func (w *world) loadOnce(ctx context.Context, source string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+w.admin+"/load", strings.NewReader(source))
	if err != nil {
		return 0, "", err
	}
	req.Close = true
	req.Header.Set("Content-Type", "text/caddyfile")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}
