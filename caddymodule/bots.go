package caddymodule

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/tollgate402/tollgate/internal/botauth"
)

func init() {
	caddy.RegisterModule(&MatchBot{})
}

// MatchBot matches requests that a known crawler has signed, by HTTP message
// signatures (RFC 9421) in the form of Web Bot Auth. The User-Agent does not
// matter. A signature that is missing or not good is no error: the request
// does not match, and goes on to where it has to pay.
//
// The signature must be by Ed25519, with the tag "web-bot-auth" and a keyid
// that is the key's JWK thumbprint, must cover @authority, and Signature-Agent
// where the request has one, and must expire within 24 hours. See
// docs/tiers.md for what it does not prove.
//
// It sets {http.x402.bot} to the crawler's name and {http.x402.bot_key} to the
// thumbprint of its key; both are empty where it has not matched. The access
// log has the name as x402_bot, and why a signature was not good as
// x402_bot_reason.
type MatchBot struct {
	// The crawlers.
	Bots []Bot `json:"bots,omitempty"`

	// The hosts that signatures are taken for, such as "api.example.com", with
	// the port where it is not the scheme's own. Needed where the site answers
	// to any host: otherwise what a crawler has signed for another site is
	// good here for everybody who asks for that site. Default: all.
	Authorities []string `json:"authorities,omitempty"`

	// How long ago a signature may have been made, 24h at most. Default: 1h.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	verifier *botauth.Verifier
	names    map[string]string // by the thumbprint of the key
}

// A Bot is a crawler, known by its keys.
type Bot struct {
	// What placeholders and logs call it: 1 to 64 lower case letters, digits,
	// "-", "_" and ".".
	Name string `json:"name"`

	// Its public keys. Each is the "x" of an Ed25519 JSON Web Key, the path of
	// a file with such a key or with a set of them, or a placeholder such as
	// {file./etc/keys/example.json} for "x", the key or the set. They are read
	// when the configuration is loaded.
	Keys []string `json:"keys"`
}

// CaddyModule returns the Caddy module information.
func (*MatchBot) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.matchers.x402_bot", New: func() caddy.Module { return new(MatchBot) }}
}

// Provision reads the keys.
func (m *MatchBot) Provision(caddy.Context) error {
	if err := checkBotAge(m.MaxAge); err != nil {
		return err
	}
	m.names = map[string]string{}
	m.verifier = &botauth.Verifier{Keys: map[string]ed25519.PublicKey{}, MaxAge: time.Duration(m.MaxAge)}
	for _, a := range m.Authorities {
		if err := checkAuthority(a); err != nil {
			return err
		}
		m.verifier.Authorities = append(m.verifier.Authorities, strings.ToLower(a))
	}
	for _, b := range m.Bots {
		if err := checkBotName(b.Name); err != nil {
			return err
		}
		for _, source := range b.Keys {
			keys, err := readBotKeys(source)
			if err != nil {
				return fmt.Errorf("key %s: %w", b.Name, err)
			}
			for _, key := range keys {
				id := botauth.Thumbprint(key)
				if other, taken := m.names[id]; taken && other != b.Name {
					return fmt.Errorf("key %s: it is a key of %s, too: a key must belong to one crawler", b.Name, other)
				}
				m.names[id], m.verifier.Keys[id] = b.Name, key
			}
		}
	}
	if len(m.names) == 0 {
		return errors.New("x402_bot matches nobody: add \"key <name> <public key>\"")
	}
	return nil
}

// readBotKeys reads what Bot.Keys says. What a placeholder stands for is not
// repeated in errors.
func readBotKeys(source string) ([]ed25519.PublicKey, error) {
	if err := checkBotKey(source); err != nil {
		return nil, err
	}
	content, err := resolve("the key", source)
	if err != nil {
		return nil, err
	}
	if key, err := botauth.ParseKey(content); err == nil {
		return []ed25519.PublicKey{key}, nil
	}
	if content != source && !strings.HasPrefix(content, "{") {
		return nil, fmt.Errorf("%s has neither the 43 characters of an Ed25519 key's \"x\" nor a JSON Web Key", source)
	}
	doc := []byte(content)
	if content == source {
		if doc, err = os.ReadFile(source); err != nil {
			return nil, err
		}
	}
	keys, err := botauth.ParseKeys(doc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	return keys, nil
}

// checkBotKey checks what can be known of a key's source without reading it.
func checkBotKey(source string) error {
	if strings.ContainsAny(source, "{./") {
		return nil
	}
	if _, err := botauth.ParseKey(source); err != nil {
		return fmt.Errorf("%w, the path of a file with the JSON Web Key, or {file./path/of/it}; a path has a \"/\" or a \".\" in it", err)
	}
	return nil
}

func checkBotName(s string) error {
	if s == "" || len(s) > 64 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		return errors.New("the name of a crawler must be 1 to 64 lower case letters, digits, \"-\", \"_\" or \".\", such as example-bot")
	}
	return nil
}

func checkAuthority(s string) error {
	if s == "" || strings.ContainsAny(s, "/*{} ") {
		return errors.New("authority must be a host as clients ask for it, such as api.example.com or localhost:8080, without a scheme, a path, wildcards and placeholders")
	}
	return nil
}

func checkBotAge(d caddy.Duration) error {
	if d < 0 || time.Duration(d) > 24*time.Hour {
		return errors.New("max_age must be 24h at most: no signature is good for longer")
	}
	return nil
}

// MatchWithError implements caddyhttp.RequestMatcherWithError.
func (m *MatchBot) MatchWithError(r *http.Request) (bool, error) {
	id, err := m.verifier.Verify(messageOf(r), time.Now())
	note(r.Context(), m.names[id], id)
	if err == nil {
		logBot(r.Context(), "x402_bot", m.names[id])
	} else if !errors.Is(err, botauth.ErrUnsigned) {
		logBot(r.Context(), "x402_bot_reason", err.Error())
	}
	return err == nil, nil
}

// messageOf returns the request as the client sent it: the directives before
// this one may have rewritten it.
func messageOf(r *http.Request) *botauth.Message {
	sent := r
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		sent = &original
	}
	m := &botauth.Message{
		Method: sent.Method, Scheme: "http", Authority: r.Host, Path: sent.URL.EscapedPath(), Query: sent.URL.RawQuery, Header: r.Header,
	}
	if r.TLS != nil {
		m.Scheme = "https"
	}
	if strings.HasPrefix(sent.RequestURI, "/") {
		m.Path, m.Query, _ = strings.Cut(sent.RequestURI, "?")
	}
	return m
}

// note sets the placeholders. Where this matcher has not matched, those of
// another one that has are left.
func note(ctx context.Context, name, id string) {
	repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return
	}
	if _, known := repl.Get("http.x402.bot"); name == "" && known {
		return
	}
	repl.Set("http.x402.bot", name)
	repl.Set("http.x402.bot_key", id)
}

// logBot adds a field to the access log.
func logBot(ctx context.Context, field, value string) {
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || server.Logs == nil {
		return
	}
	if extra, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.String(field, value))
	}
}

// UnmarshalCaddyfile reads
//
//	x402_bot {
//		key       <name> <x, file or placeholder>...    # may be repeated
//		authority <host>...
//		max_age   <duration>
//	}
func (m *MatchBot) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	for d.Next() {
		at := d.Token()
		if d.CountRemainingArgs() > 0 {
			return d.Err("x402_bot takes its settings in a block: write \"key <name> <public key>\" there")
		}
		for d.NextBlock(0) {
			if err := m.parse(d); err != nil {
				return err
			}
		}
		if len(m.Bots) == 0 {
			return wrap(at, errors.New("x402_bot matches nobody: add \"key <name> <public key>\""))
		}
	}
	return nil
}

func (m *MatchBot) parse(d *caddyfile.Dispenser) error {
	switch d.Val() {
	case "key":
		return m.parseKey(d)
	case "authority":
		var list []string
		if err := texts(d, &list); err != nil {
			return err
		}
		for _, a := range list {
			if err := checkAuthority(a); err != nil {
				return d.WrapErr(err)
			}
		}
		m.Authorities = append(m.Authorities, list...)
		return nil
	case "max_age":
		if err := duration(d, &m.MaxAge); err != nil {
			return err
		}
		if err := checkBotAge(m.MaxAge); err != nil {
			return d.WrapErr(err)
		}
		return nil
	}
	return unknown(d, "the matcher x402_bot", "key", "authority", "max_age")
}

func (m *MatchBot) parseKey(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 2 {
		return d.Err("key needs the name of a crawler and at least one public key of it")
	}
	name, keys := args[0], args[1:]
	if err := checkBotName(name); err != nil {
		return d.WrapErr(err)
	}
	for _, k := range keys {
		if err := checkBotKey(k); err != nil {
			return d.WrapErr(err)
		}
	}
	if i := slices.IndexFunc(m.Bots, func(b Bot) bool { return b.Name == name }); i >= 0 {
		m.Bots[i].Keys = append(m.Bots[i].Keys, keys...)
		return nil
	}
	m.Bots = append(m.Bots, Bot{name, keys})
	return nil
}

var (
	_ caddy.Provisioner                 = (*MatchBot)(nil)
	_ caddyhttp.RequestMatcherWithError = (*MatchBot)(nil)
	_ caddyfile.Unmarshaler             = (*MatchBot)(nil)
)
