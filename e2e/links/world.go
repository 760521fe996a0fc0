package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// A world is a sandbox that runs as a process of its own, and what it says of
// itself.
type world struct {
	process *exec.Cmd
	ended   chan error // has the end of the process

	APIURL      string `json:"api_url"`
	RPCURL      string `json:"rpc_url"`
	LinkURL     string `json:"link_url"`
	MerchantKey string `json:"merchant_key"`
	Token       string `json:"token"`
	PayTo       string `json:"pay_to"`
	Accounts    []struct {
		Label      string `json:"label"`
		Address    string `json:"address"`
		PrivateKey string `json:"private_key"`
	} `json:"accounts"`
}

func newWorld(ctx context.Context, sandbox string) (w *world, err error) {
	w = &world{process: exec.Command(sandbox, "--json", "--ephemeral-ports"), ended: make(chan error, 1)}
	out, err := w.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var said bytes.Buffer
	w.process.Stderr = &said
	if err := w.process.Start(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close(), errors.New(said.String()))
		}
	}()
	lines := make(chan string, 1)
	go func() { // ends with the process
		reader := bufio.NewReader(out)
		line, _ := reader.ReadString('\n') // an incomplete one is no JSON
		lines <- line
		_, _ = io.Copy(io.Discard, reader)
		w.ended <- w.process.Wait()
	}()
	select {
	case line := <-lines:
		if err := json.Unmarshal([]byte(line), w); err != nil {
			return w, fmt.Errorf("the sandbox has not said where it is: %w", err)
		}
		return w, nil
	case <-time.After(time.Minute):
		return w, errors.New("the sandbox was not ready after a minute")
	case <-ctx.Done():
		return w, ctx.Err()
	}
}

// close ends the sandbox as Ctrl-C does, and fails if it does not end well.
func (w *world) close() error {
	errs := []error{w.process.Process.Signal(syscall.SIGTERM)}
	select {
	case err := <-w.ended:
		return errors.Join(append(errs, err)...)
	case <-time.After(30 * time.Second):
		return errors.Join(append(errs, errors.New("the sandbox did not end within 30 s of SIGTERM"), w.process.Process.Kill(), <-w.ended)...)
	}
}

func (w *world) key(label string) string {
	for _, a := range w.Accounts {
		if a.Label == label {
			return a.PrivateKey
		}
	}
	return ""
}

// A reply is an answer that has been read.
type reply struct {
	status int
	header http.Header
	body   string
}

func (r *reply) String() string { return fmt.Sprintf("%d %.300s", r.status, r.body) }

// object returns the answer's members, none where it is no JSON object.
func (r *reply) object() map[string]json.RawMessage {
	members := map[string]json.RawMessage{}
	if json.Unmarshal([]byte(r.body), &members) != nil {
		return nil
	}
	return members
}

// ask sends a request. header has names and values by turns.
func (w *world) ask(ctx context.Context, method, url, body string, header ...string) (*reply, error) {
	q, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != "" {
		q.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		q.Header.Set(header[i], header[i+1])
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	text, err := io.ReadAll(io.LimitReader(a.Body, 1<<20))
	return &reply{a.StatusCode, a.Header, string(text)}, err
}

// asMerchant sends a request to the merchants' API.
func (w *world) asMerchant(ctx context.Context, method, path, body string) (*reply, error) {
	return w.ask(ctx, method, w.APIURL+"/v1/payment-links"+path, body, "Authorization", "Bearer "+w.MerchantKey)
}

// earned returns what the seller has, in atomic units, as the chain says.
func (w *world) earned(ctx context.Context) (int64, error) {
	const balanceOf = "0x70a08231000000000000000000000000"
	call := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[{"to":%q,"data":%q},"latest"]}`,
		w.Token, balanceOf+strings.TrimPrefix(strings.ToLower(w.PayTo), "0x"))
	a, err := w.ask(ctx, http.MethodPost, w.RPCURL, call)
	if err != nil {
		return 0, err
	}
	var answer struct {
		Result string `json:"result"`
	}
	if err := json.Unmarshal([]byte(a.body), &answer); err != nil || len(answer.Result) != 66 {
		return 0, fmt.Errorf("the node has not told the seller's balance: %s", a)
	}
	return new(big.Int).SetBytes(common.FromHex(answer.Result)).Int64(), nil
}

// moved runs something and returns what the seller has earned meanwhile.
func (w *world) moved(ctx context.Context, do func() error) (int64, error) {
	before, err := w.earned(ctx)
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := w.earned(ctx)
	return after - before, err
}

// A bill is a link over price that was made for one exchange.
type bill struct {
	id, url string
	accept  accept
}

// What a bill is over, in atomic units and as merchants write it.
const (
	price      = 50_000
	priceWhole = "0.05"
	work       = "Website work"
)

// An accept is what the older API documents of one way to pay a link.
type accept struct {
	Amount            string `json:"amount"`
	Currency          string `json:"currency"`
	Network           string `json:"network"`
	Recipient         string `json:"recipient"`
	VerifyingContract string `json:"verifyingContract"`
	ChainID           int64  `json:"chainId"`
	AIURL             string `json:"aiUrl"`
	Name              string `json:"name"`
	Version           string `json:"version"`
}

// newBill makes a link by the merchants' API and asks what it costs.
func (w *world) newBill(ctx context.Context) (*bill, error) {
	made, err := w.asMerchant(ctx, http.MethodPost, "", `{"amount":`+priceWhole+`,"description":"`+work+`"}`)
	if err != nil {
		return nil, err
	}
	var b struct{ ID, URL string }
	if err := json.Unmarshal([]byte(made.body), &b); err != nil || made.status != http.StatusCreated {
		return nil, fmt.Errorf("a link could not be made: %s", made)
	}
	asks, err := w.ask(ctx, http.MethodGet, b.URL, "")
	if err != nil {
		return nil, err
	}
	var doc struct{ Accepts []accept }
	if err := json.Unmarshal([]byte(asks.body), &doc); err != nil || len(doc.Accepts) != 1 {
		return nil, fmt.Errorf("a new link should be payable in one way: %s", asks)
	}
	return &bill{b.ID, b.URL, doc.Accepts[0]}, nil
}

// runNode runs one of the official clients to its end, and returns the last
// line that it has printed.
func runNode(ctx context.Context, program string, env ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", program)
	cmd.Env = append(os.Environ(), env...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %.500s", program, err, said.String())
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return lines[len(lines)-1], nil
}
