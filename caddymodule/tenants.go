package caddymodule

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"golang.org/x/time/rate"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/payment"
)

// FacilitatorTenant is a seller who may settle payments through
// x402_facilitator, known by a key, within limits of its own. Only the tenant
// that has settled a payment can repeat that, and ask at GET
// /settlements/<payment> what has become of it; the payment's id is in the
// header X-402-Payment of the answers to /verify and /settle.
//
// What the limits exclude is refused before any node is asked. What comes too
// often is answered with 429 and Retry-After.
type FacilitatorTenant struct {
	// What records, logs and metrics call the tenant: 1 to 32 lower case
	// letters, digits, "-" and "_". Its payments stay with the name: whoever
	// is renamed cannot ask for earlier ones.
	Name string `json:"name"`

	// Secrets of which one must come as Authorization: Bearer. Each must be a
	// placeholder such as {env.SHOP_KEY}. Two at once allow to change them.
	Keys []string `json:"keys,omitempty"`

	// SHA-256 hashes of such secrets, in 64 hexadecimal digits, as
	// "printf %s $SHOP_KEY | sha256sum" prints them, so that this server need
	// not know the secrets. A hash hides only what cannot be guessed: make
	// keys with "openssl rand -base64 24".
	KeyHashes []string `json:"key_hashes,omitempty"`

	// The addresses that may be paid. Placeholders are resolved when the
	// configuration is loaded. Default: all.
	PayTo []string `json:"pay_to,omitempty"`

	// The tokens that may be paid in: their symbols or addresses. Default:
	// those of the networks.
	Tokens []string `json:"tokens,omitempty"`

	// The networks that may be paid on. Default: all that are configured.
	Networks []string `json:"networks,omitempty"`

	// The smallest amounts, such as "$0.01" or "0.01 USDC". Where there are
	// some, each token must have one; the first one that fits a token counts.
	// By upto it is the charge that must reach it, or be nothing. Default: all
	// amounts are settled.
	MinAmounts []string `json:"min_amounts,omitempty"`

	// How many requests a second are answered, of all kinds together. As many
	// may come at once, or one if that is more. It starts anew with each load
	// of the configuration, and in each instance. Default: no limit.
	Rate float64 `json:"rate,omitempty"`

	// How many payments a day, in UTC, may cost the lane gas, whether they
	// succeed or fail on the chain. They are counted in the ledger, over all
	// instances and reloads. Repeating a request is free, and so is what is
	// refused before anything is sent. When the day is used up, /verify says so,
	// too. A transaction costs at most max_gas times max_fee_per_gas of its
	// network, so the product of the three bounds what a day of the tenant's
	// can cost. Default: no limit.
	SettlementsPerDay uint64 `json:"settlements_per_day,omitempty"`

	// where the Caddyfile says what, for errors.
	where places
}

// What errors call a tenant's key, and the name that they propose for it.
const tenantKey, tenantKeyExample = "the key of a tenant", "SHOP_KEY"

// maxTenantName is the length of the longest name.
const maxTenantName = 32

func checkTenantName(s string) error {
	if s == "" || len(s) > maxTenantName || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return fmt.Errorf("the name of a tenant must be 1 to %d lower case letters, digits, \"-\" or \"_\", such as shop-1", maxTenantName)
	}
	return nil
}

// tenantsOn checks the tenants against the app's networks and returns them
// without the keys that are secrets.
func (f *FacilitatorAPI) tenantsOn(a *App) ([]*facilitator.Tenant, error) {
	var list []*facilitator.Tenant
	names := map[string]bool{}
	for i := range f.Tenants {
		own, err := f.Tenants[i].on(a)
		if err == nil && names[own.Name] {
			err = errors.New("it is given twice: put everything into one block")
		}
		if err != nil {
			return nil, &settingError{i, settingOf(err), fmt.Errorf("tenant %s: %w", f.Tenants[i].label(), err)}
		}
		names[own.Name] = true
		list = append(list, own)
	}
	return list, nil
}

// label is the name for errors, also where it is none.
func (t *FacilitatorTenant) label() string {
	if checkTenantName(t.Name) != nil {
		return "without a name"
	}
	return t.Name
}

// on returns the tenant as the app's networks have it, without the keys that
// are secrets.
func (t *FacilitatorTenant) on(a *App) (*facilitator.Tenant, error) {
	if err := checkTenantName(t.Name); err != nil {
		return nil, err
	}
	if len(t.Keys)+len(t.KeyHashes) == 0 {
		return nil, fmt.Errorf("nobody can be it: add \"key {env.%s}\" or \"key_hash <sha256>\"", tenantKeyExample)
	}
	if t.Rate < 0 || math.IsNaN(t.Rate) || math.IsInf(t.Rate, 0) {
		return nil, about("rate", errors.New("rate must not be negative"))
	}
	own := &facilitator.Tenant{Name: t.Name, PerDay: t.SettlementsPerDay}
	if t.Rate > 0 {
		own.Rate = rate.NewLimiter(rate.Limit(t.Rate), int(max(1, math.Ceil(min(t.Rate, 1<<30)))))
	}
	for _, h := range t.KeyHashes {
		hash, err := keyHash(h)
		if err != nil {
			return nil, about("key_hash", err)
		}
		own.Keys = append(own.Keys, hash)
	}
	payTo, err := addresses(a, t.PayTo)
	if err != nil {
		return nil, about("pay_to", err)
	}
	own.PayTo = payTo
	for _, name := range t.Networks {
		n, err := payment.ParseNetwork(name)
		if err == nil {
			err = a.settles(n)
		}
		if err != nil {
			return nil, about("network", err)
		}
		own.Networks = append(own.Networks, n)
	}
	tokens, err := t.tokensOn(a, own.Networks)
	if err != nil {
		return nil, about("token", err)
	}
	if len(t.Tokens) > 0 {
		own.Tokens = tokens
	}
	own.Least, err = t.leastOf(tokens)
	return own, about("min_amount", err)
}

// tokensOn returns the tokens that may be paid in on some networks, or on all
// if there are none.
func (t *FacilitatorTenant) tokensOn(a *App, networks []payment.Network) ([]payment.Token, error) {
	var all, chosen []payment.Token
	for _, n := range a.Networks {
		if len(networks) == 0 || slices.Contains(networks, n.network) {
			all = append(all, n.tokens...)
		}
	}
	if len(t.Tokens) == 0 {
		return all, nil
	}
	for _, name := range t.Tokens {
		found := false
		for _, token := range all {
			address, _ := payment.CanonicalAddress(token.Network, name)
			if token.Symbol != name && token.Address != address {
				continue
			}
			found = true
			if !slices.Contains(chosen, token) {
				chosen = append(chosen, token)
			}
		}
		if !found {
			return nil, fmt.Errorf("token %q is not taken on any network that the tenant may use: write a symbol or an address that is, or add the token to its network in the global option x402", name)
		}
	}
	return chosen, nil
}

// leastOf returns the smallest amount of each token.
func (t *FacilitatorTenant) leastOf(tokens []payment.Token) ([]payment.Amount, error) {
	if len(t.MinAmounts) == 0 {
		return nil, nil
	}
	var list []payment.Amount
	used := map[string]bool{}
	for _, token := range tokens {
		found := false
		for _, s := range t.MinAmounts {
			least, err := payment.ParsePrice(s, token)
			if err != nil {
				continue
			}
			list, found, used[s] = append(list, least), true, true
			break
		}
		if !found {
			_, err := payment.ParsePrice(t.MinAmounts[0], token)
			return nil, fmt.Errorf("min_amount: no amount is said of %s on %s: %w; add one, or leave that token out with \"token\"", token.Symbol, token.Network, err)
		}
	}
	for _, s := range t.MinAmounts {
		if !used[s] {
			return nil, fmt.Errorf("min_amount: %q counts for no token: an earlier one fits all that it fits", s)
		}
	}
	return list, nil
}

// keyHash reads a hash. Errors do not repeat it: it may be the key itself.
func keyHash(s string) ([32]byte, error) {
	var hash [32]byte
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(hash) {
		return hash, errors.New("key_hash must be the 64 hexadecimal digits that \"printf %s $SHOP_KEY | sha256sum\" prints")
	}
	copy(hash[:], b)
	return hash, nil
}

// addresses returns addresses in canonical form.
func addresses(a *App, list []string) ([]string, error) {
	var canonical []string
	for _, s := range list {
		s, err := resolve("pay_to", s)
		if err != nil {
			return nil, err
		}
		// All networks here are EVM networks, whose addresses look the same.
		if s, err = payment.ParseAddress(a.Networks[0].network, s); err != nil {
			return nil, fmt.Errorf("pay_to: %w", err)
		}
		canonical = append(canonical, s)
	}
	return canonical, nil
}

// provisionTenants adds the tenants, with their keys, to the handler.
func (f *FacilitatorAPI) provisionTenants() error {
	list, err := f.tenantsOn(f.app)
	if err != nil {
		return err
	}
	owners := map[[32]byte]string{}
	for _, hash := range f.handler.Bearers {
		owners[hash] = "bearer"
	}
	for i, own := range list {
		for _, k := range f.Tenants[i].Keys {
			key, err := secret(tenantKey, k, tenantKeyExample)
			if err != nil {
				return fmt.Errorf("tenant %s: %w", own.Name, err)
			}
			own.Keys = append(own.Keys, sha256.Sum256([]byte(key)))
		}
		for _, hash := range own.Keys {
			if hash == sha256.Sum256(nil) {
				return fmt.Errorf("tenant %s: a key is empty", own.Name)
			}
			if owner, twice := owners[hash]; twice {
				return fmt.Errorf("tenant %s has the same key as %s: give each a key of its own", own.Name, owner)
			}
			owners[hash] = own.Name
		}
	}
	f.handler.Tenants = list
	return nil
}

// foreseeTenants checks the tenants against the app that is to be expected, so
// that what is wrong with them is said with the line of the Caddyfile that it
// is in.
func (f *FacilitatorAPI) foreseeTenants(a *App) error {
	draft := *f
	draft.Tenants = slices.Clone(f.Tenants)
	for i := range draft.Tenants {
		payTo := slices.Clone(draft.Tenants[i].PayTo)
		for j := range payTo {
			payTo[j] = plausible(payTo[j])
		}
		draft.Tenants[i].PayTo = payTo
	}
	_, err := draft.tenantsOn(a)
	if s, ok := errors.AsType[*settingError](err); ok {
		where := f.Tenants[s.offer].where
		at, known := where[s.setting]
		if !known {
			at = where[""]
		}
		return wrap(at, err)
	}
	return err
}

// parse reads one tenant, as parseFacilitatorAPI says.
func (t *FacilitatorTenant) parse(d *caddyfile.Dispenser) error {
	t.where.note(d, "")
	if err := checked(d, &t.Name, checkTenantName); err != nil {
		return err
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		setting := d.Val()
		t.where.note(d, setting)
		var err error
		switch setting {
		case "key":
			err = secrets(d, &t.Keys, tenantKey, tenantKeyExample)
		case "key_hash":
			err = texts(d, &t.KeyHashes)
		case "pay_to":
			err = texts(d, &t.PayTo)
		case "token":
			err = texts(d, &t.Tokens)
		case "network":
			err = texts(d, &t.Networks)
		case "min_amount":
			err = t.parseMinAmount(d)
		case "rate":
			t.Rate, err = perSecond(d, t.Rate)
		case "settlements_per_day":
			err = positive(d, &t.SettlementsPerDay)
		default:
			err = unknown(d, "tenant", "key", "key_hash", "pay_to", "token", "network", "min_amount", "rate", "settlements_per_day")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *FacilitatorTenant) parseMinAmount(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Err("min_amount needs a value, such as $0.01 or 0.01 USDC")
	}
	t.MinAmounts = append(t.MinAmounts, strings.Join(args, " "))
	return nil
}

// secrets reads placeholders of secrets.
func secrets(d *caddyfile.Dispenser, to *[]string, what, example string) error {
	if err := texts(d, to); err != nil {
		return err
	}
	for _, s := range *to {
		if err := checkSecret(what, s, example); err != nil {
			return d.WrapErr(err)
		}
	}
	return nil
}

// perSecond reads a rate, which may be less than one.
func perSecond(d *caddyfile.Dispenser, before float64) (float64, error) {
	var s string
	if before != 0 {
		return 0, d.Err("rate is given twice")
	}
	if err := text(d, &s); err != nil {
		return 0, err
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || !(n > 0 && n <= 1e6) {
		return 0, d.Errf("%q is no number of requests per second: write it like 10 or 0.5", s)
	}
	return n, nil
}

// positive reads a number that is not 0.
func positive(d *caddyfile.Dispenser, to *uint64) error {
	name := d.Val()
	if *to != 0 {
		return d.Errf("%s is given twice", name)
	}
	if err := number(d, to, 63); err != nil {
		return err
	}
	if *to == 0 {
		return d.Errf("%s must be at least 1: remove the tenant to serve it no more", name)
	}
	return nil
}
