package linkpage

import (
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// parse reads a page as a browser does.
func parse(t *testing.T, page string) *html.Node {
	t.Helper()
	root, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// elements lists the elements below a node, in the order of the document.
func elements(root *html.Node) []*html.Node {
	var list []*html.Node
	for n := range root.Descendants() {
		if n.Type == html.ElementNode {
			list = append(list, n)
		}
	}
	return list
}

func all(root *html.Node, tag string) []*html.Node {
	var list []*html.Node
	for _, e := range elements(root) {
		if e.Data == tag {
			list = append(list, e)
		}
	}
	return list
}

// first returns the first element with a tag, or nil.
func first(root *html.Node, tag string) *html.Node {
	if list := all(root, tag); len(list) > 0 {
		return list[0]
	}
	return nil
}

// having returns the first element whose attribute has a value, or nil.
func having(root *html.Node, key, value string) *html.Node {
	for _, e := range elements(root) {
		if attribute(e, key) == value {
			return e
		}
	}
	return nil
}

func byRole(t *testing.T, page, role string) *html.Node {
	t.Helper()
	e := having(parse(t, page), "role", role)
	if e == nil {
		t.Fatalf("the page has no element of the role %s", role)
	}
	return e
}

func attribute(e *html.Node, key string) string {
	if e == nil {
		return ""
	}
	for _, a := range e.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

// text returns what is written in an element, with blanks between its parts.
func text(e *html.Node) string {
	if e == nil {
		return ""
	}
	var parts []string
	for n := range e.Descendants() {
		if n.Type == html.TextNode {
			parts = append(parts, strings.Fields(n.Data)...)
		}
	}
	return strings.Join(parts, " ")
}

// rawText returns the text in an element as it is.
func rawText(e *html.Node) string {
	if e == nil || e.FirstChild == nil {
		return ""
	}
	return e.FirstChild.Data
}
