package caddymodule

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/pass"
)

// Pass says what a payment buys beside its answer: more requests to the same
// route. In a Caddyfile:
//
//	pass [<duration>] [<calls>] [as <name>]
//
// Whichever of both is over first ends the pass.
type Pass struct {
	// How long a pass is good, in whole seconds, counted from the first use of
	// its payment. Default: without end, where there are calls.
	For caddy.Duration `json:"for,omitempty"`

	// For how many requests it is good; the one that pays is not counted, and
	// one that is answered with 5xx is given back. Default: no limit, where
	// there is a duration.
	Calls uint32 `json:"calls,omitempty"`

	// What the pass is good for. Routes with the same name take each other's
	// passes, whatever they cost. One route can do without. Whoever changes
	// it ends the passes that were sold. Default: none.
	Name string `json:"name,omitempty"`
}

const howLong = "write \"pass 24h\", \"pass 100\" for a number of calls, or \"pass 24h 100\""

func (p *Pass) check() error {
	d := time.Duration(p.For)
	switch {
	case d < 0 || d%time.Second != 0:
		return errors.New("pass: a duration is of whole seconds, such as 24h")
	case d == 0 && p.Calls == 0:
		return errors.New("pass: it has no end: " + howLong)
	case strings.Trim(p.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "":
		return fmt.Errorf("pass: the name %q is not made of letters, digits, \"-\", \"_\" and \".\"", p.Name)
	}
	return nil
}

// parse reads the line that the type describes.
func (p *Pass) parse(d *caddyfile.Dispenser) error {
	words := d.RemainingArgs()
	if n := len(words); n >= 2 && words[n-2] == "as" {
		p.Name, words = words[n-1], words[:n-2]
	}
	for _, word := range words {
		if n, err := strconv.ParseUint(word, 10, 32); err == nil && n > 0 && p.Calls == 0 {
			p.Calls = uint32(n)
			continue
		}
		length, err := caddy.ParseDuration(word)
		if err != nil || length <= 0 || p.For != 0 || p.Calls != 0 {
			return d.Errf("%q cannot be in a pass: %s", word, howLong)
		}
		p.For = caddy.Duration(length)
	}
	if err := p.check(); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

// passes returns what payments for the route buy, or nil.
func (p *Paywall) passes(m till.Mode) (*till.Pass, error) {
	if p.Pass == nil {
		return nil, nil //nolint:nilnil // they buy their answers
	}
	if err := p.Pass.check(); err != nil {
		return nil, about("pass", err)
	}
	switch {
	case m == till.Optimistic || m == till.Metered:
		return nil, about("pass", errors.New("a pass comes with an answer that is paid for, which settle "+string(m)+" does not know when it answers: write settle held or settle first"))
	case p.app.PassSecret == "":
		return nil, about("pass", errors.New("passes are signed with a key that outlives this process: add \"pass_secret {env."+passExample+"}\" to the global option x402"))
	}
	terms := &till.Pass{For: time.Duration(p.Pass.For), Calls: p.Pass.Calls, Scope: p.Pass.Name}
	if p.app.passKey != nil { // it is not known while a Caddyfile is read
		terms.Key = *p.app.passKey
	}
	return terms, nil
}

// claimPass sees to it that passes are not good for another route by chance.
func (p *Paywall) claimPass() error {
	if p.Pass == nil || p.Pass.Name != "" {
		return nil
	}
	if p.app.unnamedPass {
		return errors.New("two routes have a pass without a name, so each would take the other's: add a name, such as \"pass 24h as images\"; routes with the same name share their passes")
	}
	p.app.unnamedPass = true
	return nil
}

const (
	passSecret  = "pass_secret"
	passExample = "X402_PASS_SECRET"
)

// passKeyOf returns the key that passes are made with, or nil where none is
// configured.
func passKeyOf(setting string) (*pass.Key, error) {
	s, err := longSecret(passSecret, setting, passExample)
	if err != nil || s == "" {
		return nil, err
	}
	key := pass.DeriveKey([]byte(s))
	return &key, nil
}

// A passView says that a pass was revoked.
type passView struct {
	ID      string `json:"id"`
	Revoked bool   `json:"revoked"`
	Used    uint32 `json:"used"` // calls
}

// A passKeyView is the key that recognises passes, which is no secret.
type passKeyView struct {
	Algorithm string `json:"algorithm"`
	PublicKey string `json:"public_key"` // URL-safe base64
}

func (a *Admin) passKey() (*passKeyView, error) {
	if a.app.passKey == nil {
		return nil, apiError(http.StatusNotFound, "there are no passes: add \"pass_secret {env.%s}\" to the global option x402", passExample)
	}
	return &passKeyView{"Ed25519", base64.RawURLEncoding.EncodeToString(a.app.passKey.Public())}, nil
}

func (a *Admin) revokePass(r *http.Request, e *engine, k payment.Key) (*passView, error) {
	if err := notFromAPage(r, "{}"); err != nil {
		return nil, err
	}
	err := e.till.RevokePass(r.Context(), k)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, unknownPayment(k)
	}
	if err != nil {
		return nil, err
	}
	p, err := e.book.ledger.Pass(r.Context(), k)
	return &passView{k.String(), p.Revoked, p.Used}, err
}

func cmdPass(c *console) error {
	const usage = "pass revoke <payment> | key"
	switch {
	case len(c.words) == 1 && c.words[0] == "key":
		var key passKeyView
		doc, err := c.get("/x402/passes/key", &key)
		if err == nil && c.asTable {
			doc = []byte(key.PublicKey + "\n")
		}
		if err != nil {
			return err
		}
		_, err = c.out.Write(doc)
		return err
	case len(c.words) == 2 && c.words[0] == "revoke":
		id := c.words[1]
		if _, err := till.ParseKey(id); err != nil {
			return fmt.Errorf("%w: \"tollgate payments\" lists them, and the access log has it as x402_payment", err)
		}
		resp, err := c.call(http.MethodPost, "/x402/passes/"+id+"/revoke", "{}")
		if err != nil {
			return err
		}
		var done passView
		doc, err := read(resp, &done)
		if err != nil {
			return err
		}
		if c.asTable {
			doc = fmt.Appendf(nil, "the pass of payment %s is revoked; %d calls were counted\n", done.ID, done.Used)
		}
		_, err = c.out.Write(doc)
		return err
	}
	_, err := c.args(-1, usage)
	return err
}
