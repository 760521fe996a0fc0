// Package linkpage renders what people see of payment links: the bill, the
// receipt, and the answers when there is none. It also serves the stylesheet
// and the script that these pages use.
//
// Everything is embedded, nothing is built, and no page asks another host for
// anything. The pages read well without script; only the wallet needs it. The
// server knows everything about a payment but who pays and a random nonce, so
// the script neither hashes nor encodes anything for the chain: it hands the
// wallet the typed data of the page, and the server the wallet's signature.
//
// The package knows no store and no till. What it is told about a link it
// prints; text of sellers and payers is never more than text.
//
// # What the script expects of the server
//
// It pays by POST to the link's own path, with the payment in the header
// PAYMENT-SIGNATURE and {"fields":{…}} as the body. An answer is JSON with a
// receipt or an error, or it is none. These are final: one with a receipt (the
// payment is settled), 409 (error "being_paid" or "already_paid": by somebody
// else; any other error is shown, and with refundDue money was taken), and any
// other below 500 but 408, 425 and 429 (refused, and nothing was taken). 5xx with status PENDING, and no answer, leave open whether money
// moves: the script sends the very same payment again until an answer is
// final. Any other 5xx to the first attempt says that nothing was taken; the
// payer may then send the same payment again, and can sign nothing else while
// it is valid. To a later attempt it says nothing about the earlier ones.
//
// The status comes from the events below the link's path ("event: status", data
// {"status":"PAID"}) or, where there are none, from a GET of the link as JSON.
// What must be allowed is for the server to decide: the script follows any
// redirect of the web that it is given.
package linkpage

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tollgate402/tollgate/payment"
)

//go:embed web
var web embed.FS

// A Config says whose pages they are and where they are.
type Config struct {
	// Merchant is who gets the money, as people know them. A link may name
	// another. Where neither does, pages name the host of the link's URL.
	Merchant string

	// Base is the path below which links are, such as "/x402", the default.
	Base string

	// Chains are what wallets are told about networks that they do not know
	// yet. Without an entry the payer must add such a network by hand.
	Chains map[payment.Network]Chain

	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// A Chain is what a wallet needs to add a network.
type Chain struct {
	// RPC is the URL of a node that the wallet will use for the network from
	// then on. Every visitor can read it: it must not contain a key.
	RPC string

	// Explorer is the URL of a block explorer; may be empty.
	Explorer string

	// Currency is the symbol of what pays for gas. Default: "ETH".
	Currency string
}

// A Site renders the pages of one seller's links. It is immutable and safe for
// concurrent use.
type Site struct {
	config Config
	pages  *template.Template
	assets map[string]asset // by path
	style  string           // path of the stylesheet
	script string           // path of the script
}

// New returns a Site, or an error that says which part of c cannot be.
func New(c Config) (*Site, error) {
	if c.Base == "" {
		c.Base = "/x402"
	}
	if u, err := url.Parse(c.Base); err != nil || u.Path != c.Base || c.Base[0] != '/' || strings.HasSuffix(c.Base, "/") || strings.HasPrefix(c.Base, "//") {
		return nil, fmt.Errorf("base %q is no path of a site: write it like /x402, with a slash in front and none at the end", c.Base)
	}
	for n, chain := range c.Chains {
		if _, ok := n.ChainID(); !ok {
			return nil, fmt.Errorf("chain of %s: wallets can add EVM networks only", n)
		}
		if !isWeb(chain.RPC) {
			return nil, fmt.Errorf("chain of %s: its RPC %q must be an http or https URL that wallets may use", n, chain.RPC)
		}
		if chain.Explorer != "" && !isWeb(chain.Explorer) {
			return nil, fmt.Errorf("chain of %s: its explorer %q must be an http or https URL", n, chain.Explorer)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Site{config: c, assets: map[string]asset{}}
	var err error
	if s.style, err = s.addAsset("style.css", "text/css; charset=utf-8"); err != nil {
		return nil, err
	}
	if s.script, err = s.addAsset("pay.js", "text/javascript; charset=utf-8"); err != nil {
		return nil, err
	}
	s.pages, err = template.ParseFS(web, "web/*.html")
	if err != nil {
		return nil, fmt.Errorf("reading the embedded pages: %w", err)
	}
	return s, nil
}

// policy is what a page may do: run the one script, use the one stylesheet,
// show images of its own and the icons that wallets announce as data, and talk
// to its own server. Nothing else, and nobody may put it into a frame.
const policy = "default-src 'none'; script-src 'self'; script-src-elem 'self'; style-src 'self'; img-src 'self' data:; " +
	"connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"

// write renders a page and answers with it. The headers that others have set
// stay, but for those that keep the page safe.
func (s *Site) write(w http.ResponseWriter, status int, name string, p page) error {
	var body bytes.Buffer
	if err := s.pages.ExecuteTemplate(&body, name, p); err != nil {
		return fmt.Errorf("rendering the page %s: %w", name, err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin-allow-popups") // wallets open windows
	h.Set("X-Robots-Tag", "noindex")                                // the URL is the secret
	h.Set("Cache-Control", "no-store")
	addVary(h, "Accept")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // the visitor has gone; there is nobody to tell
	return nil
}

// addVary makes the answer depend on a request header, unless it does already.
func addVary(h http.Header, name string) {
	for _, line := range h.Values("Vary") {
		for listed := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(listed), name) {
				return
			}
		}
	}
	h.Add("Vary", name)
}

// A page is what all templates are given.
type page struct {
	Title         string // of the window
	Merchant      string
	Style, Script string
	Link          *linkView
	Receipt       *receiptView
	Notice        Words
}

// Words are what a page says about where a payment stands.
type Words struct {
	State string // what the stylesheet and the tests know it by
	Title string
	Text  string
}

// NotFound answers a request for a link or a receipt that does not exist: 404.
func (s *Site) NotFound(w http.ResponseWriter) error {
	return s.write(w, http.StatusNotFound, "notice", page{
		Title: "Not found", Merchant: s.config.Merchant, Style: s.style, Script: s.script,
		Notice: Words{"unknown", "There is nothing to pay here", "This address belongs to no payment. Check that you have copied all of it, or ask for it again."},
	})
}

// Unavailable answers while the seller cannot look up its links: 503.
func (s *Site) Unavailable(w http.ResponseWriter) error {
	w.Header().Set("Retry-After", "10")
	return s.write(w, http.StatusServiceUnavailable, "notice", page{
		Title: "Not available", Merchant: s.config.Merchant, Style: s.style, Script: s.script,
		Notice: Words{"unavailable", "The seller cannot take payments right now", "Nothing was taken. Please try again in a few minutes; the link stays the same."},
	})
}

// merchant returns the name that a page shows for the seller.
func (s *Site) merchant(own, link string) string {
	for _, name := range []string{own, s.config.Merchant} {
		if strings.TrimSpace(name) != "" {
			return name
		}
	}
	if u, err := url.Parse(link); err == nil && u.Host != "" {
		return u.Host
	}
	return "the seller"
}

// isolated returns a name whose letters cannot turn the sentence around it.
func isolated(name string) string { return "\u2068" + name + "\u2069" }

// initial returns the letter that stands for a name in the page's head.
func initial(name string) string {
	for _, c := range name {
		if unicode.IsLetter(c) || unicode.IsDigit(c) {
			return string(unicode.ToUpper(c))
		}
	}
	return "¤"
}

// path returns the path of a link, or of something below it.
func (s *Site) path(link string, below ...string) string {
	return s.config.Base + "/" + strings.Join(append([]string{url.PathEscape(link)}, below...), "/")
}

// isWeb reports whether a URL is one that a browser may be sent to: http or
// https, with a host, and without a name and password in it.
func isWeb(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil
}

// webOrNothing returns a URL that may be linked to, or "".
func webOrNothing(s string) string {
	if isWeb(s) {
		return s
	}
	return ""
}

// A moment is a time for people and for programs.
type moment struct{ Text, Stamp string }

// timeOf returns t as pages show it, in UTC; the script shows the visitor's
// own time instead. It returns nil for no time.
func timeOf(t time.Time) *moment {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &moment{t.Format("2 January 2006, 15:04 UTC"), t.Format(time.RFC3339)}
}

// A price is an amount in the parts that pages set apart.
type price struct {
	Figure string // "1,250.00"
	Asset  string // "USDC"
}

func (p price) String() string { return p.Figure + " " + p.Asset }

// Long reports that the figure needs smaller type.
func (p price) Long() bool { return utf8.RuneCountInString(p.Figure) > 9 }

// priceOf returns an amount for people: with commas, and money that is worth
// dollars with two decimals at least.
func priceOf(a payment.Amount) price {
	figure, asset, _ := strings.Cut(a.String(), " ")
	whole, fraction, _ := strings.Cut(figure, ".")
	var grouped strings.Builder
	for i, c := range whole {
		if i > 0 && (len(whole)-i)%3 == 0 {
			grouped.WriteByte(',')
		}
		grouped.WriteRune(c)
	}
	if a.Token().Dollar && len(fraction) < 2 {
		fraction += strings.Repeat("0", 2-len(fraction))
	}
	if fraction != "" {
		fraction = "." + fraction
	}
	return price{grouped.String() + fraction, asset}
}

// An address is one in three parts, so that its ends can be set apart: they
// are what people compare.
type address struct{ Head, Middle, Tail, Full string }

// addressOf returns an address of a network with its checksum.
func addressOf(n payment.Network, s string) (address, error) {
	full, err := payment.CanonicalAddress(n, s)
	if err != nil {
		return address{}, fmt.Errorf("address %q %w", s, err)
	}
	if len(full) <= 16 {
		return address{Head: full, Full: full}, nil
	}
	head := 6
	if strings.HasPrefix(full, "0x") {
		head += 2
	}
	return address{full[:head], full[head : len(full)-6], full[len(full)-6:], full}, nil
}

var errNoOffer = errors.New("the link has no offer")
