package till

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/tollgate402/tollgate/payment"
)

// resourceURL returns how challenges name the resource: origin, path and
// query of the request as they came.
func resourceURL(r *http.Request, origin string) string {
	if origin == "" {
		scheme := "http"
		if r.TLS != nil {
			scheme = "https"
		}
		origin = scheme + "://" + r.Host
	}
	url := origin + r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		url += "?" + r.URL.RawQuery
	}
	return url
}

// bind reads the request's body and sets the payment's binding to what the
// request asks for. If the body cannot be read it has answered already and
// returns an error.
func (v *visit) bind() error {
	if v.r.Method == http.MethodConnect { // its body is a tunnel, which ends with the answer
		v.payment.Binding = fingerprint(v.r, v.route.Origin, nil, v.offer)
		return nil
	}
	limit := orElse(v.route.MaxBody, defaultMaxBody)
	body, err := io.ReadAll(io.LimitReader(v.r.Body, int64(limit)+1))
	if err != nil {
		v.sale.Reason = "malformed request"
		v.problem(http.StatusBadRequest, "the request body ended too early")
		return err
	}
	if len(body) > limit {
		v.sale.Reason = "request too large"
		v.problem(http.StatusRequestEntityTooLarge, "the request body is larger than this route binds to a payment; you have not been charged")
		return errors.New("till: body too large")
	}
	v.r.Body = io.NopCloser(bytes.NewReader(body))
	v.r.ContentLength = int64(len(body))
	v.r.TransferEncoding = nil
	v.payment.Binding = fingerprint(v.r, v.route.Origin, body, v.offer)
	return nil
}

// fingerprint names a request: what of it decides what is bought.
func fingerprint(r *http.Request, origin string, body []byte, o *payment.Offer) payment.Fingerprint {
	if origin == "" {
		origin = strings.ToLower(r.Host)
	}
	content := sha256.Sum256(body)
	return fold(
		"request", origin, r.Method, r.URL.EscapedPath(), r.URL.RawQuery, string(content[:]),
		string(o.Scheme), string(o.Network()), o.Amount.Token().Address, o.Amount.Units(), o.PayTo,
	)
}

// fold returns a fingerprint of several texts.
func fold(parts ...string) payment.Fingerprint {
	h := sha256.New()
	for _, part := range parts {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		h.Write(size[:])
		h.Write([]byte(part))
	}
	return payment.Fingerprint(h.Sum(nil))
}

// forUpstream returns the request as the upstream gets it: without anything
// about payment that a stranger could have put there, and with our word on
// who pays.
func (v *visit) forUpstream(ctx context.Context) *http.Request {
	up := v.r.Clone(ctx)
	up.Body = v.r.Body
	up.Trailer = nil // no part of what is bound to the payment
	strip(up.Header)
	v.unprice(up.Header) // what a service repeats of a request must not set its price
	up.Header.Set("X-402-Payer", v.identity.Payer)
	up.Header.Set("X-402-Amount", v.offer.Amount.Units())
	up.Header.Set("X-402-Token", v.offer.Amount.Token().Address)
	up.Header.Set("X-402-Network", string(v.offer.Network()))
	up.Header.Set("X-402-Payment", v.identity.Key.String())
	if v.sale.Transaction != "" {
		up.Header.Set("X-402-Transaction", v.sale.Transaction)
	}
	return up
}

// strip removes from headers or trailers what only we may say.
func strip(h http.Header) {
	for name := range h {
		if ours(name) {
			delete(h, name)
		}
	}
}

// ours reports whether a header belongs to the protocol or to our word on who
// pays, in any spelling that a server behind us may take for it.
func ours(name string) bool {
	n := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	return strings.HasPrefix(n, "x-402-") || strings.HasPrefix(n, "payment-") || strings.HasPrefix(n, "x-payment")
}
