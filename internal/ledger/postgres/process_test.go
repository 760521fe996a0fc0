package postgres

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// What tells the test binary to be one of the processes that share a ledger.
const (
	processURL    = "TOLLGATE_LEDGER_PROCESS_URL"
	processSchema = "TOLLGATE_LEDGER_PROCESS_SCHEMA"
	processName   = "TOLLGATE_LEDGER_PROCESS_NAME"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(processURL); url != "" {
		if err := beProcess(url, os.Getenv(processSchema), os.Getenv(processName)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// beProcess does what the lines of its input say, and says on its output, in
// lines, what was acknowledged.
func beProcess(url, schema, name string) error {
	s, err := Open(ctx, url, Options{Schema: schema})
	if err != nil {
		return err
	}
	l := ledger.New(s, name, time.Now)
	fmt.Println("ready")
	stop := make(chan struct{})
	var counting sync.WaitGroup
	for orders := bufio.NewScanner(os.Stdin); orders.Scan(); {
		var order string
		var number, copies int
		if _, err := fmt.Sscan(orders.Text(), &order, &number, &copies); err != nil {
			return err
		}
		switch order {
		case "claim":
			claimCopies(l, number, copies)
		case "count":
			for w := range copies {
				counting.Go(func() { count(s, fmt.Sprint(name, "/", w), stop) })
			}
		}
	}
	close(stop)
	counting.Wait()
	return s.Close()
}

func paymentNumber(n int) payment.Key {
	var k payment.Key
	binary.BigEndian.PutUint64(k[:], uint64(n)+1)
	return k
}

// claimCopies claims the same payment many times at once.
func claimCopies(l *ledger.Ledger, number, copies int) {
	var all sync.WaitGroup
	for range copies {
		all.Go(func() {
			r, err := l.Claim(ctx, ledger.Record{Key: paymentNumber(number), State: ledger.Reserved, Network: "eip155:84532", Request: []byte("{}")}, time.Hour)
			var held *ledger.HeldError
			switch {
			case err == nil:
				fmt.Println("won", number, r.Owner)
			case errors.As(err, &held):
				fmt.Println("held", number, held.Record.Owner)
			default:
				fmt.Println("failed", number, err)
			}
		})
	}
	all.Wait()
	fmt.Println("done", number, l.Owner())
}

// count adds one to the counter that all processes share, and leaves a mark in the same
// commit, until stop is closed.
func count(s *Store, name string, stop <-chan struct{}) {
	for n := 0; ; n++ {
		mark := ledger.Key(fmt.Sprintf("mark/%s/%d", name, n))
		for made := false; !made; {
			select {
			case <-stop:
				return
			default:
			}
			e, err := s.Get(ctx, "counter")
			if err != nil && !errors.Is(err, ledger.ErrNotFound) {
				continue // the server restarts
			}
			err = s.Commit(ctx, ledger.Write{Key: "counter", If: e.Version, Value: []byte("x")}, create(mark, ""))
			if _, unknown := errors.AsType[*ledger.FailedError](err); unknown {
				break // whether it was made shows at the end; the next mark has another name
			}
			made = err == nil
			if made {
				fmt.Println("counted", n, name)
			}
		}
	}
}

// A process is a child that shares the ledger.
type process struct {
	name  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // closed at its end
}

func startProcess(t *testing.T, url, schema, name string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{name: name, cmd: exec.Command(self), lines: make(chan string, 1000)}
	p.cmd.Env = append(os.Environ(), processURL+"="+url, processSchema+"="+schema, processName+"="+name)
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(3*time.Minute, func() { _ = p.cmd.Process.Kill() })
	read := make(chan struct{})
	go func() { // ends with the child's output
		defer close(read)
		defer close(p.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.lines <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it has ended if the test has passed
		for range p.lines {
		}
		<-read
		_ = p.cmd.Wait()
		stuck.Stop()
	})
	if line := <-p.lines; line != "ready" {
		t.Fatalf("%s said %q, want ready", name, line)
	}
	return p
}

func (p *process) order(t *testing.T, order string, number, copies int) {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, order, number, copies); err != nil {
		t.Fatal(err)
	}
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// A thousand copies of one payment arrive at three processes, in each of many rounds,
// in one of which a process is killed.
func TestOneOfAThousandCopiesAtThreeProcessesWins(t *testing.T) {
	url := fromServer(t, serverVariable)
	schema := newSchema(t, url)
	s := openStore(t, url, Options{Schema: schema})
	l := ledger.New(s, "judge", time.Now)
	var processes []*process
	for i := range 3 {
		processes = append(processes, startProcess(t, url, schema, fmt.Sprint("process-", i)))
	}
	const rounds, killed = 6, 3
	for round := range rounds {
		for i, p := range processes {
			copies := 1000 / len(processes)
			if i == 0 {
				copies += 1000 % len(processes)
			}
			p.order(t, "claim", round, copies)
		}
		if round == killed {
			// In the middle: it has answered some and not all.
			if line := <-processes[2].lines; !strings.HasPrefix(line, "won") && !strings.HasPrefix(line, "held") {
				t.Fatalf("round %d: %s", round, line)
			}
			processes[2].kill(t)
		}
		winners := make(map[string]int)
		holders := make(map[string]int)
		for _, p := range processes {
			for line := range p.lines {
				var what, owner string
				var number int
				if _, err := fmt.Sscan(line, &what, &number, &owner); err != nil || number != round {
					t.Fatalf("round %d: %s said %q", round, p.name, line)
				}
				if what == "done" {
					break
				}
				switch what {
				case "won":
					winners[owner]++
				case "held":
					holders[owner]++
				default:
					t.Fatalf("round %d: %s", round, line)
				}
			}
		}
		r, err := l.Get(t.Context(), paymentNumber(round))
		if err != nil || r.Claims != 1 || r.State != ledger.Reserved {
			t.Fatalf("round %d: the record is %+v, %v", round, r, err)
		}
		// The killed process may have won without coming to say so.
		if len(winners) > 1 || winners[r.Owner] > 1 || winners[r.Owner] == 0 && (round != killed || r.Owner != processes[2].name) {
			t.Fatalf("round %d: the ledger names %s, and these say that they won: %v", round, r.Owner, winners)
		}
		if len(holders) != 1 || holders[r.Owner] == 0 {
			t.Fatalf("round %d: the ledger names %s, and the others were told: %v", round, r.Owner, holders)
		}
		if answers := winners[r.Owner] + holders[r.Owner]; round < killed && answers != 1000 {
			t.Fatalf("round %d: %d answers to 1000 copies", round, answers)
		}
		if round == killed {
			processes = processes[:2]
		}
	}
}

// Three processes count while one of them is killed, and then the server.
func TestKilledProcessesAndServersConserveTheCount(t *testing.T) {
	url := fromServer(t, victimVariable)
	restart := fromServer(t, restartVariable)
	schema := newSchema(t, url)
	s := openStore(t, url, Options{Schema: schema})
	var processes []*process
	for i := range 3 {
		p := startProcess(t, url, schema, fmt.Sprint("process-", i))
		p.order(t, "count", 0, 4)
		processes = append(processes, p)
	}
	var acknowledged []ledger.Key
	hear := func(p *process) bool {
		line, open := <-p.lines
		if !open {
			return false
		}
		var n int
		var name string
		if _, err := fmt.Sscanf(line, "counted %d %s", &n, &name); err != nil {
			t.Fatalf("%s said %q", p.name, line)
		}
		acknowledged = append(acknowledged, ledger.Key(fmt.Sprintf("mark/%s/%d", name, n)))
		return true
	}
	hearEach := func(n int) {
		for range n {
			for _, p := range processes {
				if !hear(p) {
					t.Fatalf("%s has ended", p.name)
				}
			}
		}
	}
	hearEach(15)
	processes[0].kill(t)
	for hear(processes[0]) {
	}
	processes = processes[1:]
	hearEach(15)
	for range 2 {
		if out, err := exec.Command(restart).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		hearEach(30) // more than what the pipes held before
	}
	for _, p := range processes {
		if err := p.in.Close(); err != nil {
			t.Fatal(err)
		}
		for hear(p) {
		}
	}

	for _, mark := range acknowledged {
		wantThere(t, s, mark)
	}
	marks := 0
	for after := ledger.Key(""); ; {
		page, err := s.Scan(ctx, "mark/", after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		marks += len(page)
		after = page[len(page)-1].Key
	}
	counter, err := s.Get(ctx, "counter")
	if err != nil || int(counter.Version) != marks || marks < len(acknowledged) {
		t.Fatalf("the counter is at %d, %v, with %d marks, %d of them acknowledged", counter.Version, err, marks, len(acknowledged))
	}
}
