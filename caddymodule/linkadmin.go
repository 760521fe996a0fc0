package caddymodule

import (
	"errors"
	"net/http"

	"github.com/caddyserver/caddy/v2"

	"github.com/tollgate402/tollgate/internal/linkhttp"
)

// defaultMerchant is whose links operators mean where they do not say.
const defaultMerchant = "main"

// serveLinks carries out what the operator wants of the links of a merchant. m
// is nil where there are none. path is what stands behind /x402/links.
func serveLinks(m *linkhttp.Merchant, w http.ResponseWriter, r *http.Request, path string) error {
	if m == nil {
		return apiError(http.StatusNotFound, "no x402_links in this configuration: add \"x402_links\" to a site of the Caddyfile, and load it again")
	}
	if m.Site.Origin == "" {
		return apiError(http.StatusConflict, "the links have no public address that is known here: add \"origin https://pay.example.com\" to x402_links, and load the configuration again")
	}
	if r.Method != http.MethodGet {
		if err := notFromAPage(r, "what the API for merchants asks for"); err != nil {
			return err
		}
	}
	merchant := defaultMerchant
	if q := r.URL.Query(); q.Has("merchant") {
		merchant = q.Get("merchant")
	}
	answer, err := m.As(merchant, r, path)
	if refused, ok := errors.AsType[*linkhttp.RequestError](err); ok {
		if refused.Allow != "" {
			w.Header().Set("Allow", refused.Allow)
		}
		if refused.Code == linkhttp.NotFound {
			return apiError(http.StatusNotFound, "merchant %s has no such link: \"tollgate link list\" lists those there are", merchant)
		}
		return caddy.APIError{HTTPStatus: refused.Status, Err: refused}
	}
	if err != nil {
		return apiError(http.StatusInternalServerError, "%w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(answer.Status)
	_, _ = w.Write(append(answer.Doc, '\n')) //nolint:gosec // JSON, which says so
	return nil
}
