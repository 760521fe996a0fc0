//go:build failpoint

package failpoint

import (
	"bufio"
	"context"
	"encoding/json"
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
	"testing"
	"testing/synctest"
	"time"

	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
	"github.com/tollgate402/tollgate/payment"
)

// The test binary is also the process that is killed: with envLife it lives
// one payment's life on a ledger in that folder, with envServe it serves one
// answer.
const (
	envLife  = "FAILPOINT_TEST_LIFE"
	envServe = "FAILPOINT_TEST_SERVE"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envLife) != "":
		exit(live(os.Getenv(envLife)))
	case os.Getenv(envServe) != "":
		exit(serve())
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	os.Exit(0)
}

const (
	paymentKey = ledger.Key("pay/aa")
	slotKey    = ledger.Key("slot/lane/1")
)

// live takes one payment through all its states, twice sent.
func live(dir string) error {
	disk, err := badger.Open(dir, badger.Options{})
	if err != nil {
		return err
	}
	s := Store(disk)
	ctx := context.Background()
	version := uint64(0)
	write := func(state, rest string) ledger.Write {
		version++
		return ledger.Write{Key: paymentKey, If: version - 1, Value: fmt.Appendf(nil, `{"state":%q%s}`, state, rest)}
	}
	found := `,"included":{"transaction":"0x1"}`
	nodes := Chain(acceptingNodes{})
	for _, step := range []func() error{
		func() error { return s.Commit(ctx, write("EXECUTING", "")) },
		func() error { return s.Commit(ctx, write("EXECUTED", "")) },
		func() error {
			return s.Commit(ctx, write("INTENT", ""), ledger.Write{Key: slotKey, Value: []byte(`{"attempts":[{}]}`)})
		},
		func() error { return nodes.Broadcast(ctx, nil) },
		func() error { s.Later(write("SENT", "")); return nil },
		func() error {
			return s.Commit(ctx, ledger.Write{Key: slotKey, If: 1, Value: []byte(`{"attempts":[{},{}]}`)})
		},
		func() error { s.Later(write("INCLUDED", found)); return nil },
		func() error { s.Later(write("SETTLED", found)); return nil },
		func() error { s.Later(write("SETTLED", found+`,"delivery":"DELIVERED"`)); return nil },
		func() error { return s.Commit(ctx, write("ARCHIVED", found)) },
		func() error { Reloaded(); return nil },
		s.Close,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// acceptingNodes take every transaction.
type acceptingNodes struct{ settle.Chain }

func (acceptingNodes) Broadcast(context.Context, []byte) error { return nil }

// serve answers requests with a paid answer, and says where.
func serve() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w = Writer(w)
		w.Header().Set(payment.HeaderResponse, "receipt")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(w, body)
		time.Sleep(time.Minute)
	}))
}

var body = strings.Repeat("0123456789", 200)

// run runs the test binary with a failpoint. It reports whether it was killed,
// and the point of which it left word.
func run(t *testing.T, point string, env ...string) (killed bool, word string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "hits")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, EnvPoint+"="+point, EnvFile+"="+file)...)
	cmd.Stderr = os.Stderr
	err := cmd.Run()
	if exited, ok := errors.AsType[*exec.ExitError](err); ok {
		status := exited.Sys().(syscall.WaitStatus)
		killed = status.Signaled() && status.Signal() == syscall.SIGKILL
	}
	if err != nil && !killed {
		t.Fatal(err)
	}
	doc, _ := os.ReadFile(file)
	return killed, string(doc)
}

// left returns what the ledger in dir says of the payment and of its nonce.
func left(t *testing.T, dir string) (state string, attempts int) {
	t.Helper()
	s, err := badger.Open(dir, badger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var pay struct {
		State    string `json:"state"`
		Delivery string `json:"delivery"`
	}
	var slot struct{ Attempts []struct{} }
	for k, v := range map[ledger.Key]any{paymentKey: &pay, slotKey: &slot} {
		e, err := s.Get(t.Context(), k)
		if errors.Is(err, ledger.ErrNotFound) {
			continue
		}
		if err := errors.Join(err, json.Unmarshal(e.Value, v)); err != nil {
			t.Fatal(err)
		}
	}
	return pay.State + pay.Delivery, len(slot.Attempts)
}

func TestProcessDiesWithThePointOnDisk(t *testing.T) {
	for _, c := range []struct {
		point    string
		states   []string // that the disk may have then
		attempts []int
	}{
		{"K0:1", []string{""}, []int{0}},
		{"K1:1", []string{"EXECUTING"}, []int{0}},
		{"K2:1", []string{"EXECUTING"}, []int{0}},
		{"K3:1", []string{"EXECUTED"}, []int{0}},
		{"K12:1", []string{"EXECUTED", "INTENT"}, []int{0, 1}},
		{"K4:1", []string{"INTENT"}, []int{1}},
		{"K5:1", []string{"INTENT"}, []int{1}},
		{"K11:1", []string{"SENT"}, []int{2}},
		{"K6:1", []string{"SENT"}, []int{2}},
		{"K7:1", []string{"INCLUDED"}, []int{2}},
		{"K13:1", []string{"ARCHIVED"}, []int{2}},
		{"K14:1", []string{""}, []int{0}},
		{"K14:3", []string{"EXECUTED"}, []int{0}},
		{"K14:4", []string{"INTENT"}, []int{1}}, // SENT was handed over, and nobody was promised it
	} {
		t.Run(c.point, func(t *testing.T) {
			dir := t.TempDir()
			killed, word := run(t, c.point, envLife+"="+dir)
			name, _, _ := strings.Cut(c.point, ":")
			if !killed || word != name+"\n" {
				t.Errorf("killed %v, left word of %q", killed, word)
			}
			state, attempts := left(t, dir)
			if !slices.Contains(c.states, state) || !slices.Contains(c.attempts, attempts) || (state == "INTENT") != (attempts == 1) && c.point == "K12:1" {
				t.Errorf("on disk is %q with %d attempts, want %v with %v", state, attempts, c.states, c.attempts)
			}
		})
	}
}

func TestProcessLivesUntilItsPointComes(t *testing.T) {
	for _, point := range []string{"", "K1:2", "K8:1", "K14:6"} {
		dir := t.TempDir()
		killed, word := run(t, point, envLife+"="+dir)
		if state, _ := left(t, dir); killed || word != "" || state != "ARCHIVED" {
			t.Errorf("%q: killed %v, left word of %q, on disk is %q", point, killed, word, state)
		}
	}
}

func TestAnswersAreCutWhereThePointSays(t *testing.T) {
	for point, want := range map[string]int{"K8:1": 0, "K9:1": len(body) / 2, "K10:1": len(body)} {
		t.Run(point, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "hits")
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), envServe+"=1", EnvPoint+"="+point, EnvFile+"="+file)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			address, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.Get("http://" + strings.TrimSpace(address))
			var got []byte
			if err == nil {
				got, _ = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if len(got) != want || (want == 0) != (err != nil) {
				t.Errorf("%d bytes arrived, want %d; %v", len(got), want, err)
			}
			_ = cmd.Wait()
			if doc, _ := os.ReadFile(file); string(doc) != strings.TrimSuffix(point, ":1")+"\n" {
				t.Errorf("left word of %q", doc)
			}
		})
	}
}

func TestUnpaidAnswersPassNoPoint(t *testing.T) {
	for _, c := range []struct {
		status  int
		receipt string
	}{{402, ""}, {503, "pending"}, {410, "receipt"}, {200, ""}} {
		trap := &trap{point: Answering}
		trap.left.Store(1)
		rec := &recorder{header: http.Header{}}
		w := &writer{ResponseWriter: rec, trap: trap}
		if c.receipt != "" {
			w.Header().Set(payment.HeaderResponse, c.receipt)
		}
		w.WriteHeader(c.status)
		if _, err := w.Write([]byte("x")); err != nil || trap.left.Load() != 1 || rec.status != c.status {
			t.Errorf("%d with receipt %q: %v, %d to go", c.status, c.receipt, err, trap.left.Load())
		}
	}
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(b []byte) (int, error) { return len(b), nil }

func TestForgetfulStoreForgetsPaymentsAlone(t *testing.T) {
	disk := ledger.NewMemory()
	s := newForgetful(disk)
	err := s.Commit(t.Context(), ledger.Write{Key: paymentKey, Value: []byte("p")}, ledger.Write{Key: "lane/a", Value: []byte("l")})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []ledger.Key{paymentKey, "lane/a"} {
		if e, err := s.Get(t.Context(), k); err != nil || e.Version != 1 {
			t.Errorf("%s: %+v, %v", k, e, err)
		}
	}
	if _, err := disk.Get(t.Context(), "lane/a"); err != nil {
		t.Errorf("the lane: %v", err)
	}
	if _, err := disk.Get(t.Context(), paymentKey); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("the payment is on disk at once: %v", err)
	}
	var conflict *ledger.ConflictError
	if err := s.Commit(t.Context(), ledger.Write{Key: paymentKey, Value: []byte("q")}); !errors.As(err, &conflict) {
		t.Errorf("a second claim: %v", err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := disk.Get(t.Context(), paymentKey); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the payment never got on disk")
		}
	}
}

// A kill between the two once left a ledger that refuses to start, so that the
// harness never saw what the broken build does to payments.
func TestForgetfulStoreSavesNoHalfACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := ledger.NewMemory()
		s := newForgetful(disk)
		claim := func(writes ...ledger.Write) {
			t.Helper()
			if err := s.Commit(t.Context(), writes...); err != nil {
				t.Fatal(err)
			}
		}
		claim(ledger.Write{Key: "pay/1", Value: []byte("reserved")}, ledger.Write{Key: "open/1", Value: []byte{}})
		time.Sleep(forgets / 2)
		claim(ledger.Write{Key: "pay/1", If: ledger.AnyVersion, Value: []byte("executing")})
		time.Sleep(forgets/2 + time.Millisecond)
		for k, want := range map[ledger.Key]string{"open/1": "", "pay/1": "executing"} {
			if e, err := disk.Get(t.Context(), k); err != nil || string(e.Value) != want {
				t.Errorf("%s is %q on disk, %v; want %q", k, e.Value, err, want)
			}
		}
	})
}

func TestHastyFacilitatorTakesPendingForRefused(t *testing.T) {
	for name, answer := range map[string]error{
		"pending": &payment.UnavailableError{Doing: "waiting", Pending: true},
		"good":    nil,
	} {
		h := &hasty{settling{err: answer}}
		_, err := h.Settle(t.Context(), nil, nil, payment.Amount{})
		var invalid *payment.InvalidError
		if errors.As(err, &invalid) != (answer != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type settling struct {
	payment.Facilitator
	err error
}

func (s settling) Settle(context.Context, *payment.Payment, *payment.Offer, payment.Amount) (*payment.Settlement, error) {
	if s.err != nil {
		return nil, s.err
	}
	return &payment.Settlement{}, nil
}
