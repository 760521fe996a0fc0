package linkpage

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
)

// An asset is a file that pages load.
type asset struct {
	body []byte
	kind string // its media type
}

// addAsset reads an embedded file and returns its path on the site, which has
// a part of its hash: another version has another path.
func (s *Site) addAsset(name, kind string) (string, error) {
	body, err := web.ReadFile("web/" + name)
	if err != nil {
		return "", fmt.Errorf("reading an embedded file: %w", err)
	}
	sum := sha256.Sum256(body)
	extension := path.Ext(name)
	at := s.config.Base + "/-/" + strings.TrimSuffix(name, extension) + "." + hex.EncodeToString(sum[:6]) + extension
	s.assets[at] = asset{body, kind}
	return at, nil
}

// Assets returns the handler of everything below Base + "/-/". It expects the
// whole path of the request.
func (s *Site) Assets() http.Handler { return http.HandlerFunc(s.serveAsset) }

func (s *Site) serveAsset(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	found, ok := s.assets[r.URL.Path]
	if !ok {
		h.Set("Cache-Control", "no-store") // another instance may have it in a moment
		http.Error(w, "There is no such file.", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "This file can only be read.", http.StatusMethodNotAllowed)
		return
	}
	h.Set("Content-Type", found.kind)
	h.Set("Content-Length", strconv.Itoa(len(found.body)))
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = w.Write(found.body) // the visitor has gone; there is nobody to tell
	}
}
