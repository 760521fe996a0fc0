package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tollgate402/tollgate/internal/failpoint"
	"github.com/tollgate402/tollgate/internal/ledger"
)

// A process is the product, run from a Caddyfile, killed and run again.
type process struct {
	name      string
	number    int // among the shops, from 0
	binary    string
	dir       string // of its own: Caddyfile, logs, Caddy's data
	caddyfile string
	address   string // where it serves
	admin     string // where its configuration is loaded
	ledger    string // names what the audit reads; instances that share a ledger have the same
	env       []string

	cmd     *exec.Cmd
	began   time.Time
	ended   chan struct{} // closed when the process has ended
	died    time.Time     // written before ended is closed: when that was
	log     string        // of the present life
	settled bool          // it has been seen to serve, or nobody looks
	buried  bool          // its death has been looked into
}

// start gives the process a life, with a failpoint or without one.
func (p *process) start(cycle int, at string) error {
	p.log = filepath.Join(p.dir, fmt.Sprintf("%s-%d.log", p.name, cycle))
	_ = os.Remove(filepath.Join(p.dir, fmt.Sprintf("%s-%d.log", p.name, cycle-keptLogs))) // there may be none
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.binary, "run", "--adapter", "caddyfile", "--config", p.caddyfile)
	cmd.Env = append([]string{"HOME=" + p.dir, "PATH=" + os.Getenv("PATH"), failpoint.EnvFile + "=" + p.hits()}, p.env...)
	if at != "" {
		cmd.Env = append(cmd.Env, failpoint.EnvPoint+"="+at)
	}
	cmd.Stdout, cmd.Stderr = log, log
	p.began, p.settled, p.buried = time.Now(), false, false
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() { // ends with the process
		defer close(ended)
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		p.died = time.Now()
	}()
	return nil
}

// keptLogs is how many lives leave their logs behind.
const keptLogs = 5

func (p *process) alive() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// kill ends the process at once, if it is still there.
func (p *process) kill() {
	if p.alive() {
		_ = p.cmd.Process.Kill() // it may have died just now
		<-p.ended
	}
}

// stop asks the process to end, as a system does when it shuts down.
func (p *process) stop() error {
	if !p.alive() {
		return fmt.Errorf("%s is not running", p.name)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	select {
	case <-p.ended:
	case <-time.After(45 * time.Second):
		p.kill()
		return fmt.Errorf("%s did not stop within 45 s", p.name)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with %d; see %s", p.name, code, p.log)
	}
	return nil
}

// murdered returns an error if the process ended in any other way than by
// SIGKILL.
func (p *process) murdered() error {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return nil
	}
	return fmt.Errorf("%s ended on its own (%s); see %s", p.name, p.cmd.ProcessState, p.log)
}

// hits is the file in which the process leaves word of the points at which it
// dies.
func (p *process) hits() string { return filepath.Join(p.dir, "hits") }

// taken returns the point at which the last life ended, or "".
func (p *process) taken() (failpoint.Point, error) {
	doc, err := os.ReadFile(p.hits())
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return failpoint.Point(strings.TrimSpace(string(doc))), os.Remove(p.hits())
}

// reload has the process load its Caddyfile again, changed or not. It dies in
// many of these, so no outcome is wrong.
func (p *process) reload(ctx context.Context) error {
	doc, err := os.ReadFile(p.caddyfile)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.admin+"/load", bytes.NewReader(doc))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/caddyfile")
	req.Header.Set("Cache-Control", "must-revalidate") // load it although it has not changed
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil //nolint:nilerr // it has died, or is about to start
	}
	return resp.Body.Close()
}

// underway returns the payments, as the ledger names them, of which the
// process does not know yet what becomes of their money.
func (p *process) underway(ctx context.Context) (keys []string, err error) {
	for _, state := range []ledger.State{ledger.Intent, ledger.Sent, ledger.Included} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.admin+"/x402/payments?limit=1000&state="+string(state), nil)
		if err != nil {
			return nil, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, fmt.Errorf("asking %s for its payments: %w", p.name, err)
		}
		var list struct {
			Payments []struct {
				ID string `json:"id"`
			} `json:"payments"`
		}
		err = json.NewDecoder(resp.Body).Decode(&list)
		if resp.StatusCode != http.StatusOK {
			err = errors.New("no list of payments")
		}
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return nil, fmt.Errorf("reading the payments of %s, answered with %s: %w", p.name, resp.Status, err)
		}
		for _, one := range list.Payments {
			keys = append(keys, one.ID)
		}
	}
	return keys, nil
}
