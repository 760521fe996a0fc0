package till

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/extension"
)

// Extensions are the extensions of protocol v2 that a route has. The zero
// value has none. It must not change once it is in use.
type Extensions struct {
	// Advertised is what the route's challenge says in its extensions. What
	// payers echo of it must be the same.
	Advertised *extension.Advertised

	// Identifier says that payers may name their payments, and IDRequired
	// that they must (extension payment-identifier).
	Identifier, IDRequired bool

	// SignIn is for how long a payer who has paid may come back to the same
	// resource without paying, by signing in (extension sign-in-with-x). It
	// is not for routes that are Optimistic. Zero is never.
	SignIn time.Duration

	// Signer signs offers and receipts (extension offer-receipt). Nil signs
	// nothing.
	Signer extension.AgreementSigner
}

// extend returns the extensions that a challenge has beside those that are
// always the same: what is asked for once, and what is signed.
func (v *visit) extend() []byte {
	x := &v.route.Extensions
	var list []extension.Extension
	if x.SignIn > 0 {
		var nonce [16]byte
		_, _ = rand.Read(nonce[:]) // never fails
		list = append(list, extension.AskSignIn(v.url, "Sign in to what you have paid for", networks(v.offers()), nonce, v.now()))
	}
	if x.Signer != nil {
		ctx, cancel := context.WithTimeout(v.r.Context(), v.route.deadline())
		defer cancel()
		signed, err := extension.SignOffers(ctx, x.Signer, v.url, v.offers())
		if err != nil {
			v.log().Error("signing offers failed; they go out unsigned", "error", err)
		} else {
			list = append(list, signed)
		}
	}
	doc, err := extension.Encode(list...)
	if err != nil { // the URL is too long for it
		v.log().Warn("a challenge goes out without some of its extensions", "error", err)
		return nil
	}
	return doc
}

// required returns the challenge for the header.
func (v *visit) required(c *payment.Prepared, reason payment.Reason) string {
	if x := &v.route.Extensions; x.SignIn > 0 || x.Signer != nil {
		if more := v.extend(); len(more) > 0 {
			return c.V2Extended(v.url, reason, more)
		}
	}
	return c.V2(v.url, reason)
}

// networks returns the networks that offers are paid on.
func networks(offers []payment.Offer) []payment.Network {
	var list []payment.Network
	for i := range offers {
		if n := offers[i].Network(); !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}

// heard reads what the payment says in its extensions. It has answered if it
// returns false.
func (v *visit) heard() bool {
	x := &v.route.Extensions
	if v.payment.Version == payment.V2 {
		if err := x.Advertised.Check(v.payment.Extensions); err != nil {
			_ = v.settleProblem(err) // an answer, never a bug
			return false
		}
	}
	if !x.Identifier {
		return true
	}
	id, err := extension.PaymentID(v.payment.Extensions)
	if err != nil {
		_ = v.settleProblem(err) // an answer, never a bug
		return false
	}
	if id == "" && x.IDRequired {
		v.sale.Reason = "payment identifier missing"
		v.problem(http.StatusBadRequest, "this route asks for a payment identifier: put an id of your own, 16 to 128 characters of a-z, A-Z, 0-9, _ and -, into extensions[\"payment-identifier\"].info.id of the payment")
		return false
	}
	if id != "" {
		// An id is no secret: somebody else's says nothing about this payer.
		sum := sha256.Sum256([]byte(v.identity.Payer + "\n" + id))
		v.name = "id/" + hex.EncodeToString(sum[:])
	}
	return true
}

// named reports whether err says that the name of the payment is another
// payment's, and has answered if so.
func (v *visit) named(err error) bool {
	if _, ok := errors.AsType[*ledger.NamedError](err); !ok {
		return false
	}
	v.sale.Reason = "payment identifier in use"
	v.problem(http.StatusConflict, "you have used this payment identifier for another payment, which is settled or may still be; you have not been charged for this one; send that payment again, or choose another identifier")
	return true
}

// resource names what a payer may come back to: method, origin and path of
// the request, without the query.
func (v *visit) resource() payment.Fingerprint {
	origin := v.route.Origin
	if origin == "" {
		origin = strings.ToLower(v.r.Host)
	}
	return fold("resource", origin, v.r.Method, v.r.URL.EscapedPath())
}

// remember notes that the payer may come back. It is done before the payer
// has the whole answer, so that a payer who comes back at once is known.
func (v *visit) remember(r *ledger.Record) {
	if v.route.Extensions.SignIn <= 0 || r.State != ledger.Settled && r.State != ledger.Archived {
		return
	}
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	if err := v.Ledger.Admit(ctx, v.identity.Payer, v.resource(), r.Since.Add(v.route.Extensions.SignIn)); err != nil {
		v.log().Error("noting that a payer may come back failed", "payment", r.Key.String(), "error", err)
	}
}

// signIn serves a request that comes with a sign-in in place of a payment.
func (v *visit) signIn(header string) error {
	s, err := extension.DecodeSignIn(header)
	if _, ok := errors.AsType[*payment.MalformedError](err); ok {
		v.sale.Reason = "malformed sign-in"
		v.problem(http.StatusBadRequest, err.Error())
		return nil
	}
	var payer string
	if err == nil {
		payer, err = s.Check(v.url, networks(v.offers()), v.now())
	}
	if invalid, ok := errors.AsType[*payment.InvalidError](err); ok {
		v.refuse(invalid)
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	switch err := v.Ledger.SignIn(ctx, payer, v.resource(), s.Nonce, v.now().Add(extension.SignInKept)); {
	case errors.Is(err, ledger.ErrNotFound):
		v.refuse(&payment.InvalidError{Reason: payment.PaymentRequired})
		return nil
	case errors.Is(err, ledger.ErrNonceUsed):
		v.refuse(payment.Invalid(extension.SIWXNonce, "the nonce was used before"))
		return nil
	case errors.Is(err, ledger.ErrTooOften):
		v.sale.Reason = "signed in too often"
		v.w.Header().Set("Retry-After", "60")
		v.problem(http.StatusTooManyRequests, "this account signs in too often; try again in a minute")
		return nil
	case err != nil:
		return v.unavailable("reading the ledger", err)
	}
	v.sale.SignedIn, v.sale.Payer, v.sale.Network = true, payer, s.Chain
	up := v.r.Clone(v.r.Context())
	up.Body = v.r.Body
	strip(up.Header)
	v.listens()
	v.unprice(up.Header)
	up.Header.Set("X-402-Payer", payer)
	up.Header.Set("X-402-Signed-In", "true")
	w := &receiptWriter{ResponseWriter: v.w, stamp: func(h http.Header) {
		strip(h)
		v.unprice(h)
		unannounce(h, v.tariff)
		uncacheable(h)
		h.Add("Vary", extension.HeaderSignIn)
	}}
	err = v.next(w, up, v.sale)
	w.end()
	v.unprice(w.Header())
	return err
}

// listens sets the tariff of a request that is not charged, so that what the
// upstream says of its price is taken out all the same.
func (v *visit) listens() {
	for _, t := range v.route.Tariffs {
		v.tariff = t // all of a route listen to the same header
	}
}

// unavailable answers that something could not be found out, where there is
// no payment that could be charged.
func (v *visit) unavailable(doing string, err error) error {
	v.log().Warn("a sign-in could not be checked", "doing", doing, "error", err)
	v.sale.Reason = "unavailable"
	v.w.Header().Set("Retry-After", "2")
	v.problem(http.StatusServiceUnavailable, "the sign-in could not be checked now; sign in again")
	return nil
}

// signedReceipt returns the extensions of the settlement that goes to the
// payer.
func (v *visit) signedReceipt() []byte {
	x := &v.route.Extensions
	if x.Signer == nil {
		return nil
	}
	ctx, cancel := detach(v.r, v.route.deadline())
	defer cancel()
	now := v.now().Unix()
	doc, err := extension.SignReceipt(ctx, x.Signer, &extension.SignedReceipt{
		Network: v.offer.Network(), Resource: v.url, Payer: v.identity.Payer, Issued: uint64(max(now, 0)), Transaction: v.sale.Transaction,
	})
	if err != nil {
		v.log().Error("signing a receipt failed; it goes out unsigned", "payment", v.sale.Payment, "error", err)
		return nil
	}
	return doc
}
