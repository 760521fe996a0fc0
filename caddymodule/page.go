package caddymodule

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"strconv"
	"strings"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/payment"
)

//go:embed pages/unpaid.html
var unpaidSource string

var (
	unpaid = template.Must(template.New("unpaid").Parse(unpaidSource))

	// unpaidPolicy lets the page use its own style and nothing else.
	unpaidPolicy = "default-src 'none'; style-src 'sha256-" + styleHash(unpaidSource) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// styleHash returns the hash by which a policy names the page's style.
func styleHash(page string) string {
	_, rest, _ := strings.Cut(page, "<style>")
	style, _, _ := strings.Cut(rest, "</style>")
	sum := sha256.Sum256([]byte(style))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// An unpaidOffer is an offer as the page shows it.
type unpaidOffer struct {
	Price, Network, PayTo, Token string
	PlayMoney                    bool
}

// unpaidPage returns what answers browsers that have not paid: the price, and
// how programs pay it.
func unpaidPage(description string) func(http.ResponseWriter, *http.Request, *till.Sheet) {
	return func(w http.ResponseWriter, r *http.Request, s *till.Sheet) {
		data := struct {
			URL, Description, Problem string
			Offers                    []unpaidOffer
		}{URL: s.URL, Description: description}
		if s.Reason != payment.PaymentRequired {
			data.Problem = string(s.Reason)
		}
		for i := range s.Offers {
			o := &s.Offers[i]
			price := o.Amount.String()
			if o.Scheme == payment.Upto {
				price = "at most " + price
			}
			data.Offers = append(data.Offers, unpaidOffer{
				Price: price, Network: o.Network().Title(), PayTo: o.PayTo, Token: o.Amount.Token().Address, PlayMoney: o.Network().Test(),
			})
		}
		var page bytes.Buffer
		if err := unpaid.Execute(&page, data); err != nil {
			page.Reset() // the headers say what has to be paid
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Length", strconv.Itoa(page.Len()))
		h.Set("Content-Security-Policy", unpaidPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		w.WriteHeader(http.StatusPaymentRequired)
		if r.Method != http.MethodHead {
			_, _ = w.Write(page.Bytes()) // nobody is left to tell
		}
	}
}
