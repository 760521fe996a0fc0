package till

import (
	"net/url"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/pass"
)

// Ticket returns the pass that opens one path of a site, once, for whoever has
// paid a link by the payment of r, in token. It is taken by routes that have
// Tickets and the same host. opens is a path, with a query if it has one.
func Ticket(key pass.Key, host, opens string, r *ledger.Record, token payment.Token) (string, error) {
	return key.Make(&pass.Claims{
		Scope: ticketScope(host, opens), Payment: r.Key, Network: r.Network, Payer: r.Payer, Token: token.Address, Units: r.Charge,
		Issued: r.Since.Truncate(time.Second), Calls: 1,
	})
}

func ticketScope(host, opens string) payment.Fingerprint {
	return fold("ticket", strings.ToLower(host), opens)
}

// opened returns the scope of the tickets that open what is asked for.
func (v *visit) opened() payment.Fingerprint {
	host := v.r.Host
	if u, err := url.Parse(v.route.Origin); err == nil && v.route.Origin != "" {
		host = u.Host
	}
	path := v.r.URL.EscapedPath()
	if v.r.URL.RawQuery != "" {
		path += "?" + v.r.URL.RawQuery
	}
	return ticketScope(host, path)
}
