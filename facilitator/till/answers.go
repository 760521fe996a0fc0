package till

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/tollgate402/tollgate/payment"
)

// exposed lists the headers that scripts of other origins need to see.
const exposed = "PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE"

// uncacheable keeps an answer, which is one payer's business, out of shared
// caches.
func uncacheable(h http.Header) {
	for _, name := range []string{"Expires", "Pragma", "Age", "Surrogate-Control", "Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "private, no-store")
	for _, name := range []string{"Payment-Signature", "X-Payment"} {
		if !strings.Contains(strings.ToLower(strings.Join(h.Values("Vary"), ",")), strings.ToLower(name)) {
			h.Add("Vary", name)
		}
	}
}

// challenge answers that the resource is not paid for.
func (v *visit) challenge(reason payment.Reason) {
	prepared, err := v.prepared()
	if err != nil {
		v.log().Error("encoding a challenge failed", "error", err)
		v.problem(http.StatusInternalServerError, "the price of this cannot be told now; you have not been charged")
		return
	}
	h := v.w.Header()
	h.Set("Cache-Control", "private, no-store")
	h.Set("Vary", "Accept, Payment-Signature, X-Payment")
	expose(h)
	h.Set(payment.HeaderRequired, v.required(prepared, reason))
	status := http.StatusPaymentRequired
	if reason == payment.Permit2AllowanceRequired {
		status = http.StatusPreconditionFailed // as other sellers say that the payer has to approve Permit2 first
	}
	if status == http.StatusPaymentRequired && v.route.Page != nil && PrefersHTML(v.r.Header.Values("Accept")) {
		v.route.Page(v.w, v.r, &Sheet{URL: v.url, Offers: v.offers(), Reason: reason})
		return
	}
	h.Set("Content-Type", "application/json")
	body := prepared.V1(v.url, reason)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	v.w.WriteHeader(status)
	if v.r.Method != http.MethodHead {
		_, _ = v.w.Write(body) //nolint:gosec // JSON, never HTML; nobody is left to tell of an error
	}
}

// refuse answers a payment that is bad: a challenge that says why.
func (v *visit) refuse(e *payment.InvalidError) {
	v.sale.Reason = string(e.Reason)
	v.challenge(e.Reason)
}

// problem answers with an error in JSON.
func (v *visit) problem(status int, message string) {
	v.document(status, problem{Error: message})
}

// A problem is an error in JSON.
type problem struct {
	Error     string   `json:"error"`
	RefundDue bool     `json:"refund_due,omitempty"`
	Receipt   *Receipt `json:"receipt,omitempty"`
}

func (v *visit) document(status int, p problem) {
	h := v.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "private, no-store")
	h.Del("Content-Length")
	doc, err := json.Marshal(p)
	if err != nil {
		panic("till: encoding an error failed: " + err.Error())
	}
	v.w.WriteHeader(status)
	if v.r.Method != http.MethodHead {
		_, _ = v.w.Write(doc) // nobody is left to tell
	}
}

// boundElsewhere answers a payment that has been used for something else.
func (v *visit) boundElsewhere() error {
	v.sale.Reason = "bound elsewhere"
	v.problem(http.StatusConflict, "this payment belongs to another request")
	return nil
}

// settleProblem answers an error on the way from the payment to the money.
func (v *visit) settleProblem(err error) error {
	var unreadable *payment.MalformedError
	var invalid *payment.InvalidError
	var unavailable *payment.UnavailableError
	h := v.w.Header()
	switch {
	case errors.As(err, &unavailable): // whatever is inside
		v.log().Warn("payment not decided", "payment", v.sale.Payment, "pending", unavailable.Pending, "error", err)
		h.Set("Retry-After", "2")
		message := "the payment could not be checked now; you have not been charged; send the same request again"
		v.sale.Reason = "unavailable"
		if unavailable.Pending {
			v.sale.Reason, v.sale.Transaction = string(payment.SettlementPending), unavailable.Transaction
			v.settlementHeaders(h, payment.EncodeUnsettled(v.payment.Version, v.offer.Network(), unavailable), v.payment.Version)
			message = "the payment is being settled; do not pay again; send the same request with the same payment again"
		}
		v.problem(http.StatusServiceUnavailable, message)
		return nil

	case errors.As(err, &invalid) && invalid.Reason == payment.DuplicateSettlement:
		// Another request took the payment over when this one had overslept
		// its lease. It can still settle, so this must not ask for another.
		return v.boundElsewhere()

	case errors.As(err, &invalid):
		if invalid.Payer == "" {
			invalid = &payment.InvalidError{Reason: invalid.Reason, Message: invalid.Message, Payer: v.identity.Payer}
		}
		v.settlementHeaders(h, payment.EncodeUnsettled(v.payment.Version, v.offer.Network(), invalid), v.payment.Version)
		v.refuse(invalid)
		return nil

	case errors.As(err, &unreadable):
		v.sale.Reason = "malformed payment"
		v.problem(http.StatusBadRequest, err.Error())
		return nil
	}
	return err
}

// settlementHeaders sets the response header of the payment's version.
func (v *visit) settlementHeaders(h http.Header, doc []byte, version int) {
	name := payment.HeaderResponse
	if version == payment.V1 {
		name = payment.HeaderResponseV1
	}
	h.Set(name, payment.SettlementHeader(doc))
	expose(h)
}

// expose lets scripts of other origins read the payment headers, beside what
// the upstream lets them read.
func expose(h http.Header) {
	const name = "Access-Control-Expose-Headers"
	if slices.Contains(h.Values(name), exposed) {
		return
	}
	h.Add(name, exposed)
}

// stamp puts on the headers of an answer that is paid for what every such
// answer has: the settlement, in both versions, in place of whatever the
// upstream says about it, and what keeps it out of caches.
func (v *visit) stamp(h http.Header) {
	strip(h)
	v.settled(h)
	v.handPass(h)
	expose(h)
	uncacheable(h)
}

// settled sets what says, in both versions, that the sale is paid.
func (v *visit) settled(h http.Header) {
	s := &payment.Settlement{
		Network: v.offer.Network(), Transaction: v.sale.Transaction, Payer: v.identity.Payer, Amount: v.sale.Amount, Extensions: v.signedReceipt(),
	}
	h.Set(payment.HeaderResponse, payment.SettlementHeader(payment.EncodeSettlement(payment.V2, v.offer.Scheme, s)))
	h.Set(payment.HeaderResponseV1, payment.SettlementHeader(payment.EncodeSettlement(payment.V1, v.offer.Scheme, s)))
}

// stampPending puts on the headers of an answer that is handed over before
// its money has moved that this is so. The protocol has no form for it: with
// success there must be a transaction, and there is none yet, so the answer
// says settlement_pending, as it does where a settlement takes long.
func (v *visit) stampPending(h http.Header, transaction string) {
	pending := &payment.UnavailableError{Pending: true, Transaction: transaction, Payer: v.identity.Payer}
	strip(h)
	for version, name := range map[int]string{payment.V1: payment.HeaderResponseV1, payment.V2: payment.HeaderResponse} {
		h.Set(name, payment.SettlementHeader(payment.EncodeUnsettled(version, v.offer.Network(), pending)))
	}
	expose(h)
	uncacheable(h)
}

// receipt answers with the settlement and nothing else.
func (v *visit) receipt(status int, message string) {
	v.stamp(v.w.Header())
	v.problem(status, message)
}

// PrefersHTML reports whether a client ranks HTML above JSON and names it, as
// browsers do and programs do not (RFC 9110, section 12.5.1).
func PrefersHTML(accept []string) bool {
	html, other := 0, 0
	for _, line := range accept {
		for part := range strings.SplitSeq(line, ",") {
			media, params, _ := strings.Cut(part, ";")
			q := weight(params)
			switch strings.ToLower(strings.TrimSpace(media)) {
			case "text/html", "application/xhtml+xml":
				html = max(html, q)
			case "application/json", "application/*", "*/*":
				other = max(other, q)
			}
		}
	}
	return html > other
}

// weight reads the weight among the parameters of a media range, in
// thousandths (RFC 9110, section 12.4.2).
func weight(params string) int {
	for p := range strings.SplitSeq(params, ";") {
		value, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(p)), "q=")
		if !ok {
			continue
		}
		whole, fraction, _ := strings.Cut(value, ".")
		if whole == "1" {
			return 1000
		}
		n, err := strconv.ParseUint((fraction + "000")[:3], 10, 16)
		if whole != "0" || err != nil {
			return 0
		}
		return int(n)
	}
	return 1000
}
