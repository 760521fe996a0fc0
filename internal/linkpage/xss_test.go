package linkpage

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// polyglots returns texts that become markup or code wherever something is
// printed without care: each payload in each surrounding of testdata.
func polyglots(t *testing.T) []string {
	t.Helper()
	raw, err := os.ReadFile("testdata/polyglots.json")
	if err != nil {
		t.Fatal(err)
	}
	var source struct{ Payloads, Contexts []string }
	if err := json.Unmarshal(raw, &source); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	var list []string
	for _, c := range source.Contexts {
		for _, p := range source.Payloads {
			if s := strings.Replace(c, "%s", p, 1); !seen[s] {
				seen[s] = true
				list = append(list, s)
			}
		}
	}
	if len(list) < 500 {
		t.Fatalf("there are %d polyglots only", len(list))
	}
	return list
}

// A surface is a text that somebody else writes and a page prints.
type surface struct {
	name  string
	print func(s *Site, l *Link, r *Receipt, text string)
}

var surfaces = []surface{
	{"merchant of the site", func(s *Site, _ *Link, _ *Receipt, text string) { s.config.Merchant = text }},
	{"merchant of the link", func(_ *Site, l *Link, _ *Receipt, text string) { l.Merchant = text }},
	{"merchant of the receipt", func(_ *Site, _ *Link, r *Receipt, text string) { r.Merchant = text }},
	{"description of the link", func(_ *Site, l *Link, _ *Receipt, text string) { l.Description = text }},
	{"description of the receipt", func(_ *Site, _ *Link, r *Receipt, text string) { r.Description = text }},
	{"resource", func(_ *Site, l *Link, _ *Receipt, text string) { l.Resource, _ = json.Marshal([]string{text}) }},
	{"label of a field", func(_ *Site, l *Link, _ *Receipt, text string) { l.Fields[0].Label = text }},
	{"name of a field", func(_ *Site, l *Link, _ *Receipt, text string) { l.Fields[0].Name = text }},
	{"label of an answer", func(_ *Site, _ *Link, r *Receipt, text string) { r.Fields[0].Label = text }},
	{"the payer's answer", func(_ *Site, _ *Link, r *Receipt, text string) { r.Fields[0].Value = text }},
	{"message of success", func(_ *Site, _ *Link, r *Receipt, text string) { r.Message = text }},
	{"token of the entrance", func(_ *Site, _ *Link, r *Receipt, text string) { r.Open.Token = text }},
	{"transaction of the link", func(_ *Site, l *Link, _ *Receipt, text string) { l.Settled.Transaction = text }},
	{"transaction of the receipt", func(_ *Site, _ *Link, r *Receipt, text string) { r.Transaction = text }},
	{"id of the link", func(_ *Site, l *Link, _ *Receipt, text string) { l.ID = text }},
	{"id of the receipt", func(_ *Site, _ *Link, r *Receipt, text string) { r.ID = text }},
}

// texts are the attributes that may contain a stranger's text, as element and
// attribute.
var texts = []string{"input name"}

// render returns the pages that show what others write.
func render(t *testing.T, site *Site, change func(*Site, *Link, *Receipt)) []string {
	t.Helper()
	s := *site
	l := testLink(t)
	l.Fields = []Field{{Name: "reference", Label: "Reference"}}
	l.Settled = &Settled{At: noon, Transaction: hash, Explorer: "https://scan.example/tx/1"}
	r := testReceipt(t)
	r.Explorer = "https://scan.example/tx/1"
	r.Fields = []Answer{{"Reference", "harmless"}}
	r.Message = "harmless"
	r.Redirect = "https://harmless.example/"
	r.Open = &Entrance{"https://harmless.example/report", "harmless"}
	change(&s, l, r)
	var pages []string
	for _, status := range []Status{Active, Paid} {
		l.Status = status
		pages = append(pages, answer(t, func(w http.ResponseWriter) error { return s.Link(w, l) }).Body.String())
	}
	return append(pages,
		answer(t, func(w http.ResponseWriter) error { return s.Receipt(w, r) }).Body.String(),
		answer(t, s.NotFound).Body.String())
}

// skeleton lists a page's elements with their attributes, and with the values
// of the attributes but for those that may contain a stranger's text.
func skeleton(root *html.Node, places []string) []string {
	var list []string
	for _, e := range elements(root) {
		line := fmt.Sprintf("%d %s/%s", depth(e), e.Namespace, e.Data)
		for _, a := range e.Attr {
			line += " " + a.Namespace + a.Key
			if !slices.Contains(places, e.Data+" "+a.Key) {
				line += "=" + a.Val
			}
		}
		list = append(list, line)
	}
	return list
}

func depth(n *html.Node) (d int) {
	for ; n.Parent != nil; n = n.Parent {
		d++
	}
	return d
}

// Whatever others write, the pages have the elements and attributes that they
// have with a harmless text, and what the script reads is still JSON. In each
// round every text is another polyglot, and in the end each has been all.
func TestTextOfOthersIsNeverMarkup(t *testing.T) {
	t.Parallel()
	list, site := polyglots(t), testSite(t)
	pages := func(text func(i int) string) []string {
		return render(t, site, func(s *Site, l *Link, r *Receipt) {
			for i, surface := range surfaces {
				surface.print(s, l, r, text(i))
			}
		})
	}
	var want [][]string
	for _, page := range pages(func(int) string { return "harmless" }) {
		want = append(want, skeleton(parse(t, page), texts))
	}
	for round := range list {
		text := func(i int) string { return list[(round+i)%len(list)] }
		for i, page := range pages(text) {
			root := parse(t, page)
			if got := skeleton(root, texts); !slices.Equal(got, want[i]) {
				var said []string
				for i, surface := range surfaces {
					said = append(said, fmt.Sprintf("%s: %q", surface.name, text(i)))
				}
				t.Fatalf("with\n%s\npage %d is\n%s\nnot\n%s", strings.Join(said, "\n"), i, strings.Join(got, "\n"), strings.Join(want[i], "\n"))
			}
			checkEmbedded(t, root)
		}
	}
}

// checkEmbedded checks that what the script reads is one JSON object, and that
// no browser could end it early.
func checkEmbedded(t *testing.T, root *html.Node) {
	t.Helper()
	script := having(root, "id", "link")
	if script == nil {
		return
	}
	raw := rawText(script)
	if strings.ContainsAny(raw, "<>") || !json.Valid([]byte(raw)) || !strings.HasPrefix(raw, "{") {
		t.Fatalf("this is what the script reads: %s", raw)
	}
}

// Where others write addresses, a page links to them if they are of the web,
// and otherwise leaves the link out.
func TestAddressesOfOthersLeadToTheWebOnly(t *testing.T) {
	t.Parallel()
	site, places := testSite(t), []string{"a href"}
	receipt := func(at string) string {
		r := testReceipt(t)
		r.Redirect, r.Explorer, r.LinkURL, r.Open = at, at, at, &Entrance{at, "harmless"}
		return answer(t, func(w http.ResponseWriter) error { return site.Receipt(w, r) }).Body.String()
	}
	without := receipt("")
	with := skeleton(parse(t, receipt("https://harmless.example/")), places)
	for _, p := range polyglots(t) {
		if page := receipt(p); page != without {
			t.Fatalf("%q is linked to", p)
		}
		page := receipt("https://harmless.example/?q=" + p)
		if page == without {
			continue // it has a byte that no URL has
		}
		root := parse(t, page)
		if got := skeleton(root, places); !slices.Equal(got, with) {
			t.Fatalf("%q makes the page\n%s", p, strings.Join(got, "\n"))
		}
		for _, a := range all(root, "a") {
			if u, err := url.Parse(attribute(a, "href")); err != nil || u.Scheme != "https" || u.Host != "harmless.example" {
				t.Fatalf("%q makes a link to %q", p, attribute(a, "href"))
			}
		}
	}
}

// Text that reads from right to left, or that switches the direction, stays
// inside the element that it is in.
func TestTextOfOthersIsIsolated(t *testing.T) {
	const spoof = "\u202eecin si txet siht"
	for _, page := range render(t, testSite(t), func(s *Site, l *Link, r *Receipt) {
		s.config.Merchant, l.Description, r.Description, l.Fields[0].Label = spoof, spoof, spoof, spoof
		r.Fields[0], r.Message = Answer{spoof, spoof}, spoof
	}) {
		for n := range parse(t, page).Descendants() {
			if n.Type != html.TextNode || !strings.Contains(n.Data, "\u202e") {
				continue
			}
			switch parent := n.Parent; parent.Data {
			case "title", "script", "bdi":
			default:
				if attribute(parent, "dir") != "auto" {
					t.Errorf("<%s class=%q> lets a stranger's text out", parent.Data, attribute(parent, "class"))
				}
			}
		}
	}
}
