package caddymodule

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/quote"
)

// computed reports whether the offer's price depends on the request.
func (o *Offer) computed() bool { return o.PriceExpression != "" || strings.Contains(o.Price, "{") }

// most returns the offer's price, or, where that is computed for each request,
// the most that it can be. max is the app's.
func (o *Offer) most(t payment.Token, max string) (payment.Amount, error) {
	if o.MaxPrice != "" {
		max = o.MaxPrice
	}
	switch {
	case o.Price != "" && o.PriceExpression != "":
		return payment.Amount{}, errors.New("there are two prices, price and price_expression: remove one of them")
	case o.Price == "" && o.PriceExpression == "":
		return payment.Amount{}, errors.New("the price is missing: write it like $0.01")
	case !o.computed():
		price, err := payment.ParsePrice(o.Price, t)
		if err != nil || o.MaxPrice == "" {
			return price, about("price", err)
		}
		most, err := payment.ParsePrice(o.MaxPrice, t)
		if err == nil && price.Cmp(most) > 0 {
			err = fmt.Errorf("the price %s is above it", o.Price)
		}
		return price, about("max_price", wrapped("max_price", err))
	case max == "":
		return payment.Amount{}, about("price", errors.New("the price is computed for each request: say what it can be at most with \"max_price <price>\", such as max_price $1, in the route or in the global option x402"))
	}
	most, err := payment.ParsePrice(max, t)
	return most, about("max_price", wrapped("max_price", err))
}

// wrapped says what an error is about; nil stays nil.
func wrapped(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// parsePrice reads one of
//
//	price [upto] <price>
//	price [upto] expression <cel>
func (o *Offer) parsePrice(d *caddyfile.Dispenser) error {
	if o.Price != "" || o.PriceExpression != "" {
		return d.Err("price is given twice")
	}
	const missing = "price needs one value: write price $0.01, price \"0.01 USDC\", or price upto $0.05"
	if !d.NextArg() {
		return d.Err(missing)
	}
	if d.Val() == string(payment.Upto) {
		if o.Scheme != "" && o.Scheme != d.Val() {
			return d.Errf("the price is upto a maximum, and the scheme is %s", o.Scheme)
		}
		o.Scheme = d.Val()
		if !d.NextArg() {
			return d.Err(missing)
		}
	}
	if d.Val() != "expression" {
		if d.Val() == "" || d.CountRemainingArgs() > 0 {
			return d.Err(missing)
		}
		o.Price = d.Val()
		return nil
	}
	switch d.CountRemainingArgs() {
	case 0:
		return d.Err("price expression needs an expression, such as: price expression `usd(\"0.001\") * size / 1024`")
	case 1: // its quotes are the Caddyfile's
		d.NextArg()
		o.PriceExpression = d.Val()
	default: // its quotes are CEL's
		o.PriceExpression = strings.Join(d.RemainingArgsRaw(), " ")
	}
	return nil
}

// A pricer computes what the requests of a route cost. It implements
// till.Pricer.
type pricer struct {
	challenge payment.Challenge // its offers are at the most that they can be
	prices    []price           // of the offers
	always    string            // until, and by amount
	steps     []UntilStep
	ignored   map[string]bool // headers, in canonical form, that a quote does not depend on

	// list names the route's prices as they are written: which of several
	// routes a request comes to is decided outside of them.
	list string
}

// A price is how one offer's price is found: it is the amount, unless there is
// a text with placeholders or a program.
type price struct {
	amount  payment.Amount
	text    string
	program cel.Program
}

// pricer returns what computes the prices of a route, or nil where all are
// always the same. whole is the route with the app's defaults, and challenge
// has the offers that it is about.
func (p *Paywall) pricer(whole *Paywall, offers []Offer, challenge payment.Challenge) (till.Pricer, error) {
	c := &pricer{challenge: challenge, always: whole.Until, steps: whole.UntilByAmount, ignored: map[string]bool{}}
	for _, name := range p.QuoteIgnores {
		c.ignored[textproto.CanonicalMIMEHeaderKey(name)] = true
	}
	needed := false
	for i, o := range offers {
		o = o.over(p.Offer)
		amount := challenge.Offers[i].Amount
		found := price{amount: amount}
		var err error
		switch {
		case o.PriceExpression != "":
			found.program, err = compile(o.PriceExpression, amount.Token())
		case o.computed():
			found.text, err = o.Price, checkPlaceholders(o.Price)
		}
		if err != nil && len(offers) > 1 {
			err = fmt.Errorf("offer %d: %w", i+1, err)
		}
		if err != nil {
			return nil, &settingError{i, "price", err}
		}
		needed = needed || o.computed()
		c.list += fmt.Sprintf("%q %q %s\n", o.Price, o.PriceExpression, amount.Units())
		c.prices = append(c.prices, found)
	}
	if !needed {
		return nil, nil //nolint:nilnil // there is nothing to compute
	}
	return c, nil
}

// Price implements till.Pricer.
func (p *pricer) Price(r *http.Request) (*till.Price, error) {
	in := &reading{request: r, seen: map[string]string{}}
	in.placeholders, _ = r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	c := p.challenge
	c.Offers = make([]payment.Offer, 0, len(p.prices))
	for i := range p.prices {
		most := p.challenge.Offers[i].Amount
		amount, err := p.prices[i].of(in)
		if err == nil && amount.Cmp(most) > 0 {
			err = fmt.Errorf("it is %s, and max_price allows %s", amount, most)
		}
		if err != nil {
			return nil, err
		}
		o, err := p.At(i, amount)
		if err != nil {
			return nil, err
		}
		c.Offers = append(c.Offers, o)
	}
	return &till.Price{Challenge: c, Basis: append([]string{p.list}, in.basis(p.ignored)...)}, nil
}

// At implements till.Pricer.
func (p *pricer) At(offer int, amount payment.Amount) (payment.Offer, error) {
	o := p.challenge.Offers[offer]
	o.Amount = amount
	var err error
	o.Until, err = finality(p.always, p.steps, amount)
	return o, err
}

// of returns the price of a request.
func (p *price) of(in *reading) (payment.Amount, error) {
	token := p.amount.Token()
	switch {
	case p.program != nil:
		out, _, err := p.program.Eval(in)
		if err != nil {
			return payment.Amount{}, fmt.Errorf("the price expression: %w", err)
		}
		switch v := out.(type) {
		case types.String:
			return payment.ParsePrice(strings.TrimSpace(string(v)), token)
		case types.Int:
			if v <= 0 {
				return payment.Amount{}, fmt.Errorf("the price expression gives %d: a price is at least 1", int64(v))
			}
			return payment.NewAmount(big.NewInt(int64(v)), token)
		}
		return payment.Amount{}, fmt.Errorf("the price expression gives a %s", out.Type().TypeName())
	case p.text != "":
		text, err := in.replace(p.text)
		if err != nil {
			return payment.Amount{}, err
		}
		return payment.ParsePrice(strings.TrimSpace(text), token)
	}
	return p.amount, nil
}

// placeholder finds placeholders as Caddy does in expressions. Others are
// written placeholder["name"].
var placeholder = regexp.MustCompile(`\{([a-zA-Z][\w.-]+)\}`)

// checkPlaceholders refuses a price that would have to read the request's body.
func checkPlaceholders(text string) error {
	for _, m := range placeholder.FindAllStringSubmatch(text, -1) {
		if err := readable(m[1]); err != nil {
			return err
		}
	}
	return nil
}

// readable refuses placeholders that are not known while a price is computed.
func readable(name string) error {
	if strings.HasPrefix(name, "http.request.body") {
		return fmt.Errorf("the price cannot depend on {%s}: it is decided before the body is read; its length is size, in a price expression", name)
	}
	return nil
}

var errFloat = errors.New("the price expression calculates with floating-point numbers, which are not exact: write a string such as \"$0.01\", or use units in integers, such as usd(\"0.001\") * size / 1024")

// compile reads a CEL expression that computes a price in a token.
func compile(source string, token payment.Token) (cel.Program, error) {
	if err := checkPlaceholders(source); err != nil {
		return nil, err
	}
	units := func(price string) ref.Val {
		amount, err := payment.ParsePrice(price, token)
		if err != nil {
			return types.WrapErr(err)
		}
		n := amount.Big()
		if !n.IsInt64() {
			return types.NewErr("%s is more than fits a number of an expression: write the whole price as a string", price)
		}
		return types.Int(n.Int64())
	}
	money := func(name, sign string) cel.EnvOption {
		return cel.Function(name, cel.Overload(name+"_string", []*cel.Type{cel.StringType}, cel.IntType, cel.UnaryBinding(func(v ref.Val) ref.Val {
			s, ok := v.(types.String)
			if !ok {
				return types.MaybeNoSuchOverloadErr(v)
			}
			return units(sign + string(s))
		})))
	}
	texts := cel.MapType(cel.StringType, cel.StringType)
	env, err := cel.NewEnv(
		cel.ClearMacros(), cel.Macros(cel.HasMacro), // what is looked up by name cannot be walked through
		cel.Variable("method", cel.StringType), cel.Variable("host", cel.StringType), cel.Variable("path", cel.StringType), cel.Variable("size", cel.IntType),
		cel.Variable("query", texts), cel.Variable("headers", texts), cel.Variable("placeholder", texts),
		money("units", ""), money("usd", "$"),
		ext.Strings(), ext.Math(), ext.Bindings(),
	)
	if err != nil {
		return nil, fmt.Errorf("setting up CEL: %w", err)
	}
	checked, issues := env.Compile(placeholder.ReplaceAllString(source, `placeholder["$1"]`))
	if issues.Err() != nil {
		first := issues.Errors()[0]
		message := strings.ReplaceAll(first.Message, " (in container '')", "")
		if strings.Contains(message, "double") {
			return nil, fmt.Errorf("%w (%s)", errFloat, message)
		}
		return nil, fmt.Errorf("the price expression: %s (line %d, character %d)", message, first.Location.Line(), first.Location.Column()+1)
	}
	for _, t := range checked.NativeRep().TypeMap() {
		if t.IsExactType(types.DoubleType) {
			return nil, errFloat
		}
	}
	if t := checked.OutputType(); !t.IsExactType(types.StringType) && !t.IsExactType(types.IntType) {
		return nil, fmt.Errorf("the price expression gives a %s: it must give a price as a string, such as \"$0.01\", or atomic units as an integer", t)
	}
	var wrong error
	ast.PreOrderVisit(checked.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if wrong != nil || e.Kind() != ast.CallKind {
			return
		}
		call := e.AsCall()
		name := call.FunctionName()
		if name != "usd" && name != "units" || len(call.Args()) != 1 || call.Args()[0].Kind() != ast.LiteralKind {
			return
		}
		literal, ok := call.Args()[0].AsLiteral().(types.String)
		if !ok {
			return
		}
		sign := ""
		if name == "usd" {
			sign = "$"
		}
		if failed, ok := units(sign + string(literal)).(*types.Err); ok {
			wrong = fmt.Errorf("the price expression: %w", failed)
		}
	}))
	if wrong != nil {
		return nil, wrong
	}
	return env.Program(checked, cel.EvalOptions(cel.OptOptimize))
}

// A reading is a request of which a price is computed. It notes what is read
// of it, and implements cel.Activation.
type reading struct {
	request      *http.Request
	placeholders *caddy.Replacer

	seen  map[string]string // what was read, by what it is, beside method, path and query
	whole bool              // something was read that could come from any header
}

// ResolveName implements cel.Activation.
func (in *reading) ResolveName(name string) (any, bool) {
	switch name {
	case "method":
		return in.request.Method, true
	case "path":
		return in.request.URL.Path, true
	case "host":
		host := strings.ToLower(in.request.Host)
		in.seen["host"] = host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		return host, true
	case "size":
		in.seen["size"] = strconv.FormatInt(in.request.ContentLength, 10)
		if in.request.ContentLength < 0 {
			return types.NewErr("the request does not say how long its body is"), true
		}
		return in.request.ContentLength, true
	case "query":
		return lookup{"query parameter", in.parameter}, true
	case "headers":
		return lookup{"header", in.header}, true
	case "placeholder":
		return lookup{"placeholder", in.placeholder}, true
	}
	return nil, false
}

// Parent implements cel.Activation.
func (in *reading) Parent() cel.Activation { return nil }

func (in *reading) parameter(name string) ([]string, error) {
	// What cannot be read as a whole might be read in another way upstream.
	values, err := url.ParseQuery(in.request.URL.RawQuery)
	if err != nil {
		return nil, errors.New("the query cannot be read")
	}
	return values[name], nil
}

func (in *reading) header(name string) ([]string, error) {
	name = textproto.CanonicalMIMEHeaderKey(name)
	values := in.request.Header[name]
	in.seen["header "+name] = fmt.Sprintf("%q", values)
	return values, nil
}

func (in *reading) placeholder(name string) ([]string, error) {
	if err := readable(name); err != nil {
		return nil, err
	}
	if in.placeholders == nil {
		return nil, errors.New("there are no placeholders here")
	}
	value, known := in.placeholders.Get(name)
	if !known {
		return nil, fmt.Errorf("the placeholder {%s} is not known", name)
	}
	in.note(name, value)
	return []string{caddy.ToString(value)}, nil
}

// replace returns a price with its placeholders filled in, each of which must
// have a value.
func (in *reading) replace(text string) (string, error) {
	if in.placeholders == nil {
		return "", errors.New("there are no placeholders here")
	}
	return in.placeholders.ReplaceFunc(text, func(name string, value any) (any, error) {
		if err := readable(name); err != nil {
			return nil, err
		}
		if err, failed := value.(error); failed {
			return nil, fmt.Errorf("the placeholder {%s}: %w", name, err)
		}
		if caddy.ToString(value) == "" {
			return nil, fmt.Errorf("the placeholder {%s} has no value", name)
		}
		in.note(name, value)
		return value, nil
	})
}

// note notes that a placeholder was read. What is said of the request itself
// is noted as it is. What comes from the seller may change, that is what
// quotes are for. Of any other one, such as a variable that map has set, it
// cannot be told what it was made from.
func (in *reading) note(name string, value any) {
	kind, _, _ := strings.Cut(name, ".")
	header, isHeader := strings.CutPrefix(name, "http.request.header.")
	switch {
	case kind == "env", kind == "file", kind == "system", kind == "time":
	case isHeader:
		_, _ = in.header(header) // fails never
	case strings.HasPrefix(name, "http.request."):
		in.seen["placeholder "+name] = caddy.ToString(value)
	default:
		in.whole = true
	}
}

// changing are headers that programs on the way, and the official client, set
// anew for each request.
var changing = map[string]bool{"Access-Control-Expose-Headers": true, "Traceparent": true, "Tracestate": true, "X-Request-Id": true}

// basis returns what was read, in a fixed order.
func (in *reading) basis(ignored map[string]bool) []string {
	if in.whole {
		in.seen["size"] = strconv.FormatInt(in.request.ContentLength, 10)
		in.seen["host"] = strings.ToLower(in.request.Host)
		for name, values := range in.request.Header {
			if !changing[name] {
				in.seen["header "+name] = fmt.Sprintf("%q", values)
			}
		}
	}
	for name := range ignored {
		delete(in.seen, "header "+name)
	}
	basis := make([]string, 0, 2*len(in.seen))
	for _, what := range slices.Sorted(maps.Keys(in.seen)) {
		basis = append(basis, what, in.seen[what])
	}
	return basis
}

// A lookup is a map of CEL whose values are looked up by name. What is given
// more than once is an error wherever it is asked for: the upstream might read
// another one of its values than the price does.
type lookup struct {
	what string
	of   func(name string) ([]string, error)
}

// Find implements traits.Mapper.
func (l lookup) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(key), false
	}
	values, err := l.of(string(name))
	switch {
	case err != nil:
		return types.WrapErr(err), false
	case len(values) == 0:
		return nil, false
	case len(values) > 1:
		return types.NewErr("the %s %s is given more than once", l.what, string(name)), false
	}
	return types.String(values[0]), true
}

// Get implements traits.Indexer.
func (l lookup) Get(key ref.Val) ref.Val {
	value, found := l.Find(key)
	if found || value != nil {
		return value
	}
	return types.NewErr("no such key: %v", key)
}

// Contains implements traits.Container.
func (l lookup) Contains(key ref.Val) ref.Val {
	value, found := l.Find(key)
	if !found && value != nil {
		return value
	}
	return types.Bool(found)
}

func (l lookup) notWhole() ref.Val { return types.NewErr("a %s is looked up by its name", l.what) }

// Iterator implements traits.Iterable.
func (l lookup) Iterator() traits.Iterator {
	return types.NewStringList(types.DefaultTypeAdapter, nil).Iterator()
}

// Size implements traits.Sizer.
func (l lookup) Size() ref.Val { return l.notWhole() }

// ConvertToNative implements ref.Val.
func (l lookup) ConvertToNative(reflect.Type) (any, error) {
	return nil, fmt.Errorf("a %s is looked up by its name", l.what)
}

// ConvertToType implements ref.Val.
func (l lookup) ConvertToType(ref.Type) ref.Val { return l.notWhole() }

// Equal implements ref.Val.
func (l lookup) Equal(ref.Val) ref.Val { return l.notWhole() }

// Type implements ref.Val.
func (l lookup) Type() ref.Type { return types.MapType }

// Value implements ref.Val.
func (l lookup) Value() any { return l }

const (
	quoteSecret   = "quote_secret"
	quotesExample = "X402_QUOTE_SECRET"
)

// quoteKeyOf returns the key that quotes are made with, or nil where each
// process makes up its own.
func quoteKeyOf(setting string) (*quote.Key, error) {
	s, err := longSecret(quoteSecret, setting, quotesExample)
	if err != nil || s == "" {
		return nil, err
	}
	key := quote.DeriveKey([]byte(s))
	return &key, nil
}

// quotes has the quotes of this process by the key that they are made with,
// which outlive the configurations that use them: a reload keeps them.
var quotes = caddy.NewUsagePool()

// A quoteSource says which quotes are meant: those of a key, or those of one
// that the process has made up.
type quoteSource struct {
	key  quote.Key
	ours bool
}

// quotesInUse are quotes in use.
type quotesInUse struct{ till.Quotes }

// Destruct implements caddy.Destructor.
func (*quotesInUse) Destruct() error { return nil }

// useQuotes returns the process's quotes. giveBack must be called once.
func useQuotes(key *quote.Key) (_ *till.Quotes, giveBack func() error, err error) {
	source := quoteSource{ours: true}
	if key != nil {
		source = quoteSource{key: *key}
	}
	v, _, err := quotes.LoadOrNew(source, func() (caddy.Destructor, error) {
		q := &quotesInUse{}
		if q.Key = source.key; source.ours {
			if _, err := rand.Read(q.Key[:]); err != nil {
				return nil, fmt.Errorf("making a key for quotes: %w", err)
			}
		}
		return q, nil
	})
	if err != nil {
		return nil, nil, err
	}
	return &v.(*quotesInUse).Quotes, func() error {
		_, err := quotes.Delete(source)
		return err
	}, nil
}

var (
	_ till.Pricer    = (*pricer)(nil)
	_ cel.Activation = (*reading)(nil)
	_ traits.Mapper  = lookup{}
)
