package caddymodule

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"golang.org/x/term"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "payments",
		Usage: "[--state <state>] [--due] [--limit <n>] [--after <id>] [--json] [--address <addr>]",
		Short: "Lists the payments that the ledger remembers",
		Long: `
Lists payments in the order of their ids: as a table on a terminal, as JSON
where the output goes elsewhere. It asks the running server over its admin API.

  tollgate payments --due
  tollgate payments --state SENT
  tollgate payments --json --limit 1000 | jq .`,
		Flags: flags("payments", func(fs *flag.FlagSet) {
			fs.String("state", "", "Only payments in this state, such as SETTLED")
			fs.Bool("due", false, "Only payments whose money is owed back")
			fs.Int("limit", defaultPage, "How many at most, up to 1000")
			fs.String("after", "", "Begin after the payment with this id")
			fs.Bool("json", false, "Write JSON on a terminal, too")
		}),
		Func: func(fl caddycmd.Flags) (int, error) { return run(fl, cmdPayments) },
	})
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "payment",
		Usage: "<id> [--json] [--address <addr>]",
		Short: "Shows one payment",
		Long:  "Shows what the ledger remembers of a payment, without what could spend it.",
		Flags: flags("payment", func(fs *flag.FlagSet) { fs.Bool("json", false, "Write JSON on a terminal, too") }),
		Func:  func(fl caddycmd.Flags) (int, error) { return run(fl, cmdPayment) },
	})
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "refund",
		Usage: "<id> [--yes] [--force] [--address <addr>]",
		Short: "Gives the money of a payment back to its payer",
		Long: `
Gives back the money of a payment that is REFUND_DUE, from the account that the
network's setting "refunds" names. The refund is a payment of its own in the
ledger, and the chain allows one for each payment, so the command is safe to
repeat, and safe to kill: what it has begun the server finishes.

--force also refunds payments that are settled and not REFUND_DUE. Then the
payer may have what it paid for, or may be getting it this very moment, and
nothing gets the money back.`,
		Flags: flags("refund", func(fs *flag.FlagSet) {
			fs.Bool("yes", false, "Do not ask before")
			fs.Bool("force", false, "Refund a payment whose payer may have the goods")
		}),
		Func: func(fl caddycmd.Flags) (int, error) { return run(fl, cmdRefund) },
	})
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "pass",
		Usage: "revoke <payment> | key [--address <addr>]",
		Short: "Revokes a pass, or shows the key by which passes are verified",
		Long: `
revoke ends the pass that a payment has bought, for good. The payment stays as
it is: "tollgate refund" gives money back, and ends the pass, too.

key writes the public key, by which whoever has it can verify a pass.`,
		Flags: flags("pass", func(fs *flag.FlagSet) { fs.Bool("json", false, "Write JSON on a terminal, too") }),
		Func:  func(fl caddycmd.Flags) (int, error) { return run(fl, cmdPass) },
	})
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "ledger",
		Usage: "check | backup <file> | restore <file> [--to <directory>] [--address <addr>]",
		Short: "Checks, backs up or restores the ledger",
		Long: `
check walks through the ledger of the running server and reports what should
not be there. It fails if there is something.

backup writes a backup of the running server's ledger. It holds who paid for
what and answers that were paid for: keep it as confidential as the ledger.

restore makes a ledger from a backup, in a directory that must be missing or
empty, while no server runs on it. A restored ledger has forgotten what came
after the backup: payments that were used since then could be used again for as
long as their authorizations live, so wait that long (timeout, 60s by default)
before you start the server on it, and give the lanes new keys.`,
		Flags: flags("ledger", func(fs *flag.FlagSet) {
			fs.String("to", "", "Directory to restore into (default: x402/ledger in the data directory)")
			fs.Bool("json", false, "Write JSON on a terminal, too")
		}),
		Func: func(fl caddycmd.Flags) (int, error) { return run(fl, cmdLedger) },
	})
}

// flags returns the flags of a command, with those that all have.
func flags(name string, add func(*flag.FlagSet)) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ExitOnError)
	fs.String("address", "", "Address of the admin API (default: "+caddy.DefaultAdminListen+")")
	add(fs)
	return fs
}

// A console is what a command talks to: its person, and the server.
type console struct {
	words   []string                   // what is on the command line beside flags
	flag    func(name string) string   // the value of a flag that the command has
	list    func(name string) []string // those of a flag that may be repeated
	in      io.Reader
	out     io.Writer
	errs    io.Writer
	asTable bool // a person reads the output
	asks    bool // a person can answer
}

func run(fl caddycmd.Flags, command func(*console) error) (int, error) {
	c := &console{
		words: fl.Args(), flag: func(name string) string { return fl.Lookup(name).Value.String() }, in: os.Stdin, out: os.Stdout, errs: os.Stderr,
		list: func(name string) []string {
			values, err := fl.GetStringArray(name)
			if err != nil {
				panic("caddymodule: " + err.Error()) // the command has no such flag
			}
			return values
		},
		asTable: term.IsTerminal(int(os.Stdout.Fd())), asks: term.IsTerminal(int(os.Stdin.Fd())),
	}
	if f := fl.Lookup("json"); f != nil && f.Value.String() == "true" {
		c.asTable = false
	}
	if err := command(c); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	return caddy.ExitCodeSuccess, nil
}

// args returns the arguments of a command, of which there must be n.
func (c *console) args(n int, usage string) ([]string, error) {
	if len(c.words) != n {
		return nil, fmt.Errorf("write \"tollgate %s\"; --help says more", usage)
	}
	return c.words, nil
}

// call asks the server.
func (c *console) call(method, path, body string) (*http.Response, error) {
	return c.callWith(nil, method, path, body)
}

// callWith asks the server, with headers beside the usual ones.
func (c *console) callWith(header http.Header, method, path, body string) (*http.Response, error) {
	address := c.flag("address")
	if address == "" {
		address = caddy.DefaultAdminListen
	}
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	resp, err := caddycmd.AdminAPIRequest(address, method, path, header, reader)
	if err == nil {
		return resp, nil
	}
	// What the server says comes as text: "caddy responded with error: HTTP 409: {…}".
	if _, answer, ok := strings.Cut(err.Error(), "caddy responded with error: HTTP "); ok {
		status, doc, _ := strings.Cut(answer, ": ")
		var said struct {
			Error string `json:"error"`
		}
		if json.Unmarshal([]byte(doc), &said) == nil && said.Error != "" {
			return nil, errors.New(said.Error)
		}
		if status == "404" {
			return nil, fmt.Errorf("the server at %s has no x402 in its admin API: is it Caddy without Tollgate? Run the one that was built with it", address)
		}
		return nil, fmt.Errorf("the server at %s answers with status %s: see its log", address, status)
	}
	return nil, fmt.Errorf("no server answers at %s: start one with \"tollgate run\", or say where its admin API is with --address (a configuration with \"admin off\" has none): %w", address, err)
}

// get asks the server for JSON.
func (c *console) get(path string, into any) ([]byte, error) {
	resp, err := c.call(http.MethodGet, path, "")
	if err != nil {
		return nil, err
	}
	return read(resp, into)
}

func read(resp *http.Response, into any) ([]byte, error) {
	defer resp.Body.Close()
	doc, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(doc, into)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the server's answer: %w: run the command again", err)
	}
	return doc, nil
}

func cmdPayments(c *console) error {
	if _, err := c.args(0, "payments [--state <state>] [--due]"); err != nil {
		return err
	}
	q := url.Values{"limit": {c.flag("limit")}}
	for _, name := range []string{"state", "after"} {
		if s := c.flag(name); s != "" {
			q.Set(name, s)
		}
	}
	if c.flag("due") == "true" {
		q.Set("due", "true")
	}
	var list paymentList
	doc, err := c.get("/x402/payments?"+q.Encode(), &list)
	if err != nil {
		return err
	}
	if !c.asTable {
		_, err := c.out.Write(doc)
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTATE\tDELIVERY\tAMOUNT\tNETWORK\tPAYER\tUPDATED")
	for _, p := range list.Payments {
		fmt.Fprintln(w, strings.Join([]string{p.ID, string(p.State), string(p.Delivery), p.amount(), p.Network, p.Payer, p.Updated.Local().Format(time.DateTime)}, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if list.Unreadable > 0 {
		fmt.Fprintf(c.errs, "%d records cannot be read: run \"tollgate ledger check\"\n", list.Unreadable)
	}
	if list.Next != "" {
		fmt.Fprintf(c.errs, "there are more: add --after %s\n", list.Next)
	}
	return nil
}

// amount returns what was paid, for people.
func (p *paymentView) amount() string {
	if p.Amount != "" {
		return p.Amount
	}
	return p.Units + " units"
}

func cmdPayment(c *console) error {
	args, err := c.args(1, "payment <id>")
	if err != nil {
		return err
	}
	p, doc, err := c.payment(args[0])
	if err != nil {
		return err
	}
	if !c.asTable {
		_, err := c.out.Write(doc)
		return err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(doc, &fields); err != nil {
		return err
	}
	fields["amount"], err = json.Marshal(p.amount())
	if err != nil {
		return err
	}
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	for _, name := range names {
		fmt.Fprintf(w, "%s\t%s\n", name, bytes.Trim(fields[name], `"`))
	}
	return w.Flush()
}

func (c *console) payment(id string) (*paymentView, []byte, error) {
	if _, err := till.ParseKey(id); err != nil {
		return nil, nil, fmt.Errorf("%w: \"tollgate payments\" lists them", err)
	}
	p := &paymentView{}
	doc, err := c.get("/x402/payments/"+id, p)
	return p, doc, err
}

func cmdRefund(c *console) error {
	args, err := c.args(1, "refund <id> [--yes]")
	if err != nil {
		return err
	}
	p, _, err := c.payment(args[0])
	if err != nil {
		return err
	}
	force := c.flag("force") == "true"
	if p.State != ledger.Refunded && c.flag("yes") != "true" {
		if err := c.confirm(p, force); err != nil {
			return err
		}
	}
	resp, err := c.call(http.MethodPost, "/x402/payments/"+p.ID+"/refund", fmt.Sprintf(`{"force":%t}`, force))
	if err != nil {
		return err
	}
	var done refundView
	doc, err := read(resp, &done)
	if err != nil {
		return err
	}
	if !c.asTable {
		_, err := c.out.Write(doc)
		return err
	}
	fmt.Fprintf(c.out, "%s to %s is %s, in transaction %s\n", p.amount(), p.Payer, done.State, done.Transaction)
	return nil
}

// confirm asks the person whether money is to leave.
func (c *console) confirm(p *paymentView, force bool) error {
	if !c.asks {
		return errors.New("nobody can be asked here: add --yes if the refund is meant")
	}
	fmt.Fprintf(c.errs, "%s goes back to %s on %s; the payment is %s.\n", p.amount(), p.Payer, p.Network, p.State)
	if force && !p.Due {
		fmt.Fprintln(c.errs, "The payer may have what it paid for, or may be getting it now. Nothing gets the money back.")
	}
	fmt.Fprint(c.errs, "Refund it? [y/N] ")
	answer, err := bufio.NewReader(c.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing was refunded: answer y, or add --yes, to refund it")
	}
	return nil
}

func cmdLedger(c *console) error {
	const usage = "ledger check | backup <file> | restore <file>"
	verb := ""
	if len(c.words) > 0 {
		verb = c.words[0]
	}
	switch verb {
	case "check":
		if _, err := c.args(1, usage); err != nil {
			return err
		}
		return c.check()
	case "backup":
		args, err := c.args(2, usage)
		if err != nil {
			return err
		}
		return c.backup(args[1])
	case "restore":
		args, err := c.args(2, usage)
		if err != nil {
			return err
		}
		return c.restore(args[1], c.flag("to"))
	}
	_, err := c.args(-1, usage)
	return err
}

func (c *console) check() error {
	var survey ledger.Survey
	doc, err := c.get("/x402/ledger/check", &survey)
	if err != nil {
		return err
	}
	if c.asTable {
		fmt.Fprintf(c.out, "%d payments, %d open, %d refunds due, %d stored answers, %d lanes\n", survey.Payments, survey.Open, survey.Due, survey.Held, survey.Lanes)
		for _, f := range survey.Findings {
			fmt.Fprintf(c.out, "%s: %s\n", f.Key, f.Problem)
		}
	} else if _, err := c.out.Write(doc); err != nil {
		return err
	}
	if n := len(survey.Findings); n > 0 {
		return fmt.Errorf("%d things in the ledger should not be there: keep a backup (\"tollgate ledger backup\"), and report them", n)
	}
	return nil
}

// backup writes a backup to a new file, which has its name only once it is
// complete and on disk.
func (c *console) backup(file string) (err error) {
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("%s exists: choose another name, a backup is never overwritten", file)
	}
	part := file + ".part"
	out, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("%w: choose a file in a directory that you can write", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.Close(), os.Remove(part))
		}
	}()
	resp, err := c.call(http.MethodGet, "/x402/ledger/backup", "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(out, resp.Body)
	if err != nil {
		return fmt.Errorf("the backup was cut off after %d bytes: see the server's log, and run the command again: %w", n, err)
	}
	if err := out.Sync(); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	if err := os.Rename(part, file); err != nil {
		return err
	}
	fmt.Fprintf(c.errs, "%d bytes in %s\n", n, file)
	return nil
}

func (c *console) restore(file, dir string) error {
	if dir == "" {
		dir = filepath.Join(caddy.AppDataDir(), "x402", "ledger")
	}
	in, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("%w: give the file that \"tollgate ledger backup\" wrote", err)
	}
	defer in.Close()
	if err := badger.Restore(context.Background(), dir, bufio.NewReader(in)); err != nil {
		return fmt.Errorf("restoring into %s, which must be missing or empty: %w", dir, err)
	}
	fmt.Fprintf(c.errs, "restored into %s. Wait until the authorizations that were used since the backup have expired before you start a server on it (timeout, 60s by default), and give its lanes new keys.\n", dir)
	return nil
}
