package linkpage

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func fetchAsset(t *testing.T, s *Site, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	s.Assets().ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

func TestAssetsMayBeKeptForEver(t *testing.T) {
	s := testSite(t)
	for path, kind := range map[string]string{s.style: "text/css; charset=utf-8", s.script: "text/javascript; charset=utf-8"} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			w := fetchAsset(t, s, method, path)
			if w.Code != http.StatusOK {
				t.Fatalf("%s %s is answered with %d", method, path, w.Code)
			}
			for header, want := range map[string]string{
				"Content-Type": kind, "Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff",
			} {
				if got := w.Header().Get(header); got != want {
					t.Errorf("%s: %s is %q, not %q", path, header, got, want)
				}
			}
			if empty := w.Body.Len() == 0; empty != (method == http.MethodHead) {
				t.Errorf("%s %s has %d bytes", method, path, w.Body.Len())
			}
		}
	}
}

func TestOtherAssetsAreNotThere(t *testing.T) {
	s := testSite(t)
	for _, path := range []string{"/x402/-/", "/x402/-/style.css", "/x402/-/link.html", "/x402/-/../-/pay.js", strings.Replace(s.script, ".js", ".css", 1)} {
		w := fetchAsset(t, s, http.MethodGet, path)
		if w.Code != http.StatusNotFound || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s is answered with %d, %q", path, w.Code, w.Header().Get("Cache-Control"))
		}
	}
	if w := fetchAsset(t, s, http.MethodPost, s.script); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered with %d", w.Code)
	}
}

// The page names exactly what the handler has, under any base.
func TestPagesNameAssetsThatExist(t *testing.T) {
	s, err := New(Config{Base: "/shop/bills"})
	if err != nil {
		t.Fatal(err)
	}
	root := parse(t, answer(t, s.NotFound).Body.String())
	for _, e := range append(all(root, "script"), all(root, "link")...) {
		at := attribute(e, "src") + attribute(e, "href")
		if strings.HasPrefix(at, "data:") {
			continue
		}
		if !strings.HasPrefix(at, "/shop/bills/-/") {
			t.Errorf("the page asks for %s", at)
		}
		if w := fetchAsset(t, s, http.MethodGet, at); w.Code != http.StatusOK {
			t.Errorf("the page asks for %s, which is answered with %d", at, w.Code)
		}
	}
}
