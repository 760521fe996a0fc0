package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

func init() {
	fs := flag.NewFlagSet("check", flag.ExitOnError)
	fs.String("config", "", "Configuration file (default: Caddyfile)")
	fs.String("adapter", "", "Name of the adapter of the configuration (default: by the file's name)")
	fs.Duration("patience", 5*time.Second, "How long to wait for each node and for the facilitator")
	fs.Bool("json", false, "Write JSON on a terminal, too")
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "check",
		Usage: "[--config <file>] [--adapter <name>] [--patience <duration>] [--json]",
		Short: "Holds a configuration against its networks",
		Long: `
Loads a configuration, as "validate" does, and asks the nodes, the token
contracts and the facilitator that it names whether it can work: the chain's id
and how fresh the node is, the token's EIP-712 domain, decimals and EIP-3009,
gas money in the lanes, tokens in the account of refunds.

Nothing is changed, the ledger is not opened, and no key is used; it may run
beside the server. It fails if payments would.`,
		Flags: fs,
		Func:  func(fl caddycmd.Flags) (int, error) { return run(fl, cmdCheck) },
	})
}

// A verdict says how one thing stands.
type verdict string

const (
	passed verdict = "ok"
	warned verdict = "warn" // payments work, but not as they could
	failed verdict = "fail" // payments will not work
)

// A remark is what a check found out about one thing.
type remark struct {
	Verdict verdict `json:"verdict"`
	Network string  `json:"network,omitempty"`
	About   string  `json:"about"`
	Says    string  `json:"says"`
}

// An inspection collects remarks.
type inspection struct {
	Remarks []remark `json:"remarks"`

	network string // that is looked at
}

func (i *inspection) say(v verdict, about, format string, args ...string) {
	list := make([]any, len(args))
	for n, a := range args {
		list[n] = a
	}
	i.Remarks = append(i.Remarks, remark{v, i.network, about, fmt.Sprintf(format, list...)})
}

func cmdCheck(c *console) error {
	if _, err := c.args(0, "check [--config <file>]"); err != nil {
		return err
	}
	patience, err := time.ParseDuration(c.flag("patience"))
	if err != nil || patience <= 0 {
		return errors.New("--patience must be a duration such as 5s")
	}
	app, err := loadApp(c.flag("config"), c.flag("adapter"))
	if err != nil {
		return err
	}
	found := app.inspect(context.Background(), patience, time.Now())
	failures := 0
	for _, r := range found.Remarks {
		if r.Verdict == failed {
			failures++
		}
	}
	if err := c.show(found); err != nil {
		return err
	}
	if failures > 0 {
		return fmt.Errorf("%d of %d checks failed", failures, len(found.Remarks))
	}
	return nil
}

func (c *console) show(found *inspection) error {
	if !c.asTable {
		doc, err := json.Marshal(found)
		if err != nil {
			return err
		}
		_, err = c.out.Write(append(doc, '\n'))
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	for _, r := range found.Remarks {
		fmt.Fprintln(w, strings.Join([]string{strings.ToUpper(string(r.Verdict)), r.Network, r.About, r.Says}, "\t"))
	}
	return w.Flush()
}

// loadApp provisions a configuration without starting it.
func loadApp(file, adapter string) (*App, error) {
	if file == "" {
		file = "Caddyfile"
	}
	doc, _, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return nil, err
	}
	var cfg caddy.Config
	if err := caddy.StrictUnmarshalJSON(caddy.RemoveMetaFields(doc), &cfg); err != nil {
		return nil, fmt.Errorf("decoding the configuration: %w", err)
	}
	cfg.Admin = &caddy.AdminConfig{Disabled: true}
	ctx, err := caddy.ProvisionContext(&cfg)
	if err != nil {
		return nil, err
	}
	app, err := ctx.AppIfConfigured("x402")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return nil, fmt.Errorf("%s takes no payments: it has no global option x402", file)
	}
	if err != nil {
		return nil, err
	}
	return app.(*App), nil
}

// inspect asks everybody that the configuration relies on.
func (a *App) inspect(ctx context.Context, patience time.Duration, now time.Time) *inspection {
	i := &inspection{}
	if a.remote != nil {
		i.remote(ctx, a, patience)
	}
	for _, n := range a.Networks {
		i.network = n.Network
		i.settling(ctx, a, n, patience, now)
	}
	i.network = ""
	if len(a.offers) == 0 {
		i.say(warned, "routes", "no route has a price")
	}
	return i
}

// remote asks a facilitator somewhere else what it supports.
func (i *inspection) remote(ctx context.Context, a *App, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	const about = "facilitator"
	supported, err := a.remote.Facilitator().Supported(ctx)
	if err != nil {
		i.say(failed, about, "does not say what it supports: %s", err.Error())
		return
	}
	i.say(passed, about, "answers")
	var seen []string
	for n := range a.offers {
		kind := string(a.offers[n].Scheme) + " on " + string(a.offers[n].Network())
		if slices.Contains(seen, kind) {
			continue
		}
		seen = append(seen, kind)
		if supported.Supports(&a.offers[n]) {
			i.say(passed, about, "settles %s", kind)
		} else {
			i.say(failed, about, "does not settle %s, which a route offers", kind)
		}
	}
	for _, n := range a.Networks {
		switch {
		case !n.relaysApprovals():
		case slices.Contains(supported.Extensions, evm.RawSponsoring):
			i.say(passed, about, "has %s", evm.RawSponsoring)
		default:
			i.say(failed, about, "has no %s, which payers on %s would be offered: leave out \"sponsoring %s\"", evm.RawSponsoring, n.Network, byRawApproval)
		}
	}
}

// settling looks at a network through its nodes, if it has any.
func (i *inspection) settling(ctx context.Context, a *App, n *Network, patience time.Duration, now time.Time) {
	if len(n.rpc) == 0 {
		if a.remote == nil {
			i.say(failed, "node", "there is none: add \"rpc <url>\"")
		}
		return
	}
	asked := false
	for _, endpoint := range n.rpc {
		node, err := i.node(ctx, n, endpoint, patience, now)
		if err != nil {
			i.say(failed, label(endpoint), "%s", err.Error())
			continue
		}
		if !asked { // what is on the chain is the same for all of them
			asked = true
			i.onChain(ctx, a, n, node, patience)
		}
		node.Close()
	}
}

// label names a node without what may be secret in its URL.
func label(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" {
		return "node"
	}
	return "node " + u.Scheme + "://" + u.Host
}

// staleAfter is from which age on a node's latest block is worth a warning.
const staleAfter = time.Minute

// node asks one node who it is and where its chain stands.
func (i *inspection) node(ctx context.Context, n *Network, endpoint string, patience time.Duration, now time.Time) (*chain.Client, error) {
	id, _ := n.network.ChainID()
	node, err := chain.New(chain.Config{ChainID: id, Endpoints: []string{endpoint}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	if err := node.Start(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	head, err := firstHead(ctx, node)
	if err != nil {
		node.Close()
		return nil, err
	}
	at := time.Unix(int64(head.Time), 0) //nolint:gosec // a block's time
	if age := now.Sub(at).Round(time.Second); age > staleAfter {
		i.say(warned, label(endpoint), "its latest block, %d, is %s old: is it syncing?", fmt.Sprint(head.Number), age.String())
	} else {
		i.say(passed, label(endpoint), "chain %s, block %s", fmt.Sprint(id), fmt.Sprint(head.Number))
	}
	if _, err := node.Finalized(ctx); err != nil {
		i.say(warned, label(endpoint), "does not say what is final (%s): payments are never archived, and \"until finalized\" waits for ever", err.Error())
	}
	return node, nil
}

// firstHead waits for a node's latest block, unless it is on another chain.
func firstHead(ctx context.Context, node *chain.Client) (chain.Head, error) {
	for {
		soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		head, err := node.WaitHead(soon, common.Hash{})
		cancel()
		if err == nil {
			return head, nil
		}
		if _, foreign := errors.AsType[*chain.WrongChainError](err); foreign || ctx.Err() != nil {
			return chain.Head{}, err
		}
	}
}

// onChain looks at the contracts and accounts that the network's settings name.
func (i *inspection) onChain(ctx context.Context, a *App, n *Network, node *chain.Client, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, t := range n.tokens {
		i.token(ctx, node, t, slices.ContainsFunc(a.offers, func(o payment.Offer) bool { return o.Amount.Token().Is(t) && !o.ByPermit2() }))
	}
	for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		if slices.ContainsFunc(a.offers, func(o payment.Offer) bool { return o.Network() == n.network && o.Scheme == scheme && o.ByPermit2() }) {
			i.proxy(ctx, node, scheme)
		}
	}
	if a.remote == nil {
		i.lanes(ctx, n, node)
	}
	i.recipients(ctx, a, n, node)
}

// proxy looks whether payments by Permit2 can be settled.
func (i *inspection) proxy(ctx context.Context, node *chain.Client, scheme payment.Scheme) {
	address := (&evm.Permit{Scheme: scheme}).Proxy()
	about := "Permit2 for " + string(scheme)
	ask := &chain.Call{Msg: ethereum.CallMsg{To: &address, Data: evm.Permit2Call()}}
	code := &chain.Code{Address: evm.Permit2}
	if err := node.Ask(ctx, ask, code); err != nil {
		i.say(failed, about, "the node says nothing about it: %s", err.Error())
		return
	}
	if ask.Err != nil || len(code.Code) == 0 || common.BytesToHash(ask.Output) != common.BytesToHash(evm.Permit2[:]) {
		i.say(failed, about, "%s or %s is not there: leave out \"method permit2\" and \"scheme upto\" on this network", address.Hex(), evm.Permit2.Hex())
		return
	}
	i.say(passed, about, "settled by %s", address.Hex())
}

// token holds a token's contract against what the configuration says of it.
// offered says that a route wants it by EIP-3009.
func (i *inspection) token(ctx context.Context, node *chain.Client, t payment.Token, offered bool) {
	about := "token " + t.Address
	if t.Symbol != "" {
		about = t.Symbol + " " + t.Address
	}
	contract := common.HexToAddress(t.Address)
	ask := func(data []byte) *chain.Call {
		return &chain.Call{Msg: ethereum.CallMsg{To: &contract, Data: data}}
	}
	code := &chain.Code{Address: contract}
	separator, domain, name, version := ask(evm.SeparatorCall()), ask(evm.DomainCall()), ask(evm.NameCall()), ask(evm.VersionCall())
	decimals, symbol := ask(evm.DecimalsCall()), ask(evm.SymbolCall())
	state := ask((&evm.Authorization{From: contract}).AuthorizationStateCall())
	if err := node.Ask(ctx, code, separator, domain, name, version, decimals, symbol, state); err != nil {
		i.say(failed, about, "the node says nothing about it: %s", err.Error())
		return
	}
	if code.Err == nil && len(code.Code) == 0 {
		i.say(failed, about, "there is no contract at this address: is it one of another network?")
		return
	}
	defer func() { i.denomination(about, t, decimals, symbol) }()
	if t.Name == "" {
		i.say(passed, about, "has no name and version here: it is paid with by Permit2 only")
		return
	}
	expected := evm.DomainOf(t)
	actual, known := domainOf(expected, domain, name, version)
	switch {
	case separator.Err == nil && len(separator.Output) == 32:
		switch got := common.BytesToHash(separator.Output); {
		case got == expected.Separator():
			i.say(passed, about, "EIP-712 domain: name %q, version %q", t.Name, t.Version)
		case known && got == actual.Separator():
			i.say(failed, about, "its EIP-712 domain has the name %q and the version %q: write these, not %q and %q", actual.Name, actual.Version, t.Name, t.Version)
		default:
			i.say(failed, about, "its EIP-712 domain is not the name %q with the version %q, and it does not say what it is", t.Name, t.Version)
		}
	case known && actual == expected:
		i.say(passed, about, "EIP-712 domain: name %q, version %q", t.Name, t.Version)
	default:
		i.say(failed, about, "it has no DOMAIN_SEPARATOR, so payments are refused until it does")
	}
	switch {
	case state.Err == nil && len(state.Output) == 32:
		i.say(passed, about, "has EIP-3009")
	case offered:
		i.say(failed, about, "has no EIP-3009 (authorizationState): it can be paid with by \"method permit2\" only")
	default:
		i.say(passed, about, "has no EIP-3009: it is paid with by Permit2")
	}
}

// denomination holds a token's decimals and symbol against the configuration.
func (i *inspection) denomination(about string, t payment.Token, decimals, symbol *chain.Call) {
	if d, err := evm.ReadDecimals(decimals.Output); decimals.Err != nil || err != nil {
		i.say(warned, about, "does not say how many decimals it has")
	} else if d != t.Decimals {
		i.say(failed, about, "has %s decimals, not %s: prices would be wrong", fmt.Sprint(d), fmt.Sprint(t.Decimals))
	} else {
		i.say(passed, about, "has %s decimals", fmt.Sprint(d))
	}
	if s, err := evm.ReadText(symbol.Output); symbol.Err == nil && err == nil && t.Symbol != "" && s != t.Symbol {
		i.say(warned, about, "calls itself %q", s)
	}
}

// domainOf returns the EIP-712 domain that a token says it has: by EIP-5267, or
// by its name and version.
func domainOf(expected evm.Domain, domain, name, version *chain.Call) (evm.Domain, bool) {
	if domain.Err == nil {
		if d, err := evm.ReadDomain(domain.Output); err == nil {
			return d, true
		}
	}
	if name.Err != nil || version.Err != nil {
		return evm.Domain{}, false
	}
	n, err1 := evm.ReadText(name.Output)
	v, err2 := evm.ReadText(version.Output)
	return evm.Domain{Name: n, Version: v, ChainID: expected.ChainID, Contract: expected.Contract}, err1 == nil && err2 == nil
}

// fewTransfers is how many transfers a lane should have the gas money for.
const fewTransfers = 100

// gasOfTransfer is what one takes, roughly.
const gasOfTransfer = 80_000

// lanes looks at the accounts that pay gas, and at that of refunds.
func (i *inspection) lanes(ctx context.Context, n *Network, node *chain.Client) {
	batch := &chain.Code{Address: evm.Multicall3}
	questions := []chain.Request{batch}
	balances := make([]*chain.Balance, len(n.lanes))
	codes := make([]*chain.Code, len(n.lanes))
	for k, lane := range n.lanes {
		balances[k], codes[k] = &chain.Balance{Address: lane.Address()}, &chain.Code{Address: lane.Address()}
		questions = append(questions, balances[k], codes[k])
	}
	if err := node.Ask(ctx, questions...); err != nil {
		i.say(failed, "lanes", "the node says nothing about them: %s", err.Error())
		return
	}
	if batch.Err == nil && len(batch.Code) == 0 {
		i.say(warned, "Multicall3", "is not deployed here: every payment takes a transaction of its own")
	}
	fee := new(big.Int)
	if head, err := node.Head(); err == nil && head.BaseFee != nil {
		fee.Lsh(head.BaseFee, 1)
	}
	if tip, err := node.TipCap(ctx); err == nil {
		fee.Add(fee, tip)
	}
	each := new(big.Int).Mul(fee, big.NewInt(gasOfTransfer))
	for k, lane := range n.lanes {
		about := "lane " + lane.Address().Hex()
		switch wei := balances[k].Wei; {
		case balances[k].Err != nil:
			i.say(failed, about, "%s", balances[k].Err.Error())
		case wei.Sign() == 0:
			i.say(failed, about, "has no gas money: send it some")
		case each.Sign() == 0:
			i.say(passed, about, "has %s wei of gas money", wei.String())
		default:
			v, more := passed, ""
			transfers := new(big.Int).Div(wei, each)
			if transfers.Cmp(big.NewInt(fewTransfers)) < 0 {
				v, more = warned, ": send it more"
			}
			i.say(v, about, "has gas money for about %s transfers%s", transfers.String(), more)
		}
		if codes[k].Err == nil && len(codes[k].Code) > 0 {
			i.say(warned, about, "has code: a lane must have no other use")
		}
	}
	if n.refunds == nil {
		return
	}
	for _, t := range n.tokens {
		contract := common.HexToAddress(t.Address)
		held := &chain.Call{Msg: ethereum.CallMsg{To: &contract, Data: evm.BalanceCall(n.refunds.Address())}}
		about := "refunds " + n.refunds.Address().Hex()
		if err := node.Ask(ctx, held); err != nil || held.Err != nil || len(held.Output) != 32 {
			i.say(failed, about, "the node does not say how much of %s it holds", t.Address)
			continue
		}
		units, err := payment.NewAmount(new(big.Int).SetBytes(held.Output), t)
		switch {
		case err != nil:
			i.say(warned, about, "%s", err.Error())
		case units.Zero():
			i.say(warned, about, "holds no %s: refunds will fail", t.Symbol)
		default:
			i.say(passed, about, "holds %s", units.String())
		}
	}
}

// recipients looks at who is paid.
func (i *inspection) recipients(ctx context.Context, a *App, n *Network, node *chain.Client) {
	var seen []string
	for k := range a.offers {
		o := &a.offers[k]
		if o.Network() != n.network || slices.Contains(seen, o.PayTo) {
			continue
		}
		seen = append(seen, o.PayTo)
		about := "pay_to " + o.PayTo
		address := common.HexToAddress(o.PayTo)
		if slices.ContainsFunc(n.tokens, func(t payment.Token) bool { return common.HexToAddress(t.Address) == address }) {
			i.say(failed, about, "is the token's own contract: money sent there is lost")
			continue
		}
		if slices.ContainsFunc(n.lanes, func(l payment.CallSigner) bool { return l.Address() == address }) {
			i.say(warned, about, "is a lane: whoever gets its key gets what was earned")
		}
		code := &chain.Code{Address: address}
		switch err := errors.Join(node.Ask(ctx, code), code.Err); {
		case err != nil:
			i.say(failed, about, "the node says nothing about it: %s", err.Error())
		case len(code.Code) > 0:
			i.say(passed, about, "is a contract: be sure that it can send tokens on")
		default:
			i.say(passed, about, "is a plain account")
		}
	}
}
