package linkhttp

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/strictjson"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

// oldAnswer is what POST <link>/pay answers.
type oldAnswer struct {
	Success     bool    `json:"success"`
	Transaction string  `json:"txHash"`
	Network     string  `json:"networkId"`
	Error       *string `json:"error"`

	// Beyond the older API: where the receipt is, or will be.
	ReceiptURL string `json:"receiptUrl,omitempty"`
}

// A mismatchError says that a payment does not fit the link.
type mismatchError struct{ problem string }

func (e *mismatchError) Error() string { return e.problem }

// noOld answers that there is no such link, as the older API does.
func (s *Site) noOld(w http.ResponseWriter, r *http.Request) {
	message := "there is no such payment link"
	answer(w, r, http.StatusNotFound, oldAnswer{Error: &message})
}

// payOld takes a payment in the older API's form.
func (s *Site) payOld(w http.ResponseWriter, r *http.Request, id link.ID) {
	if r.Method != http.MethodPost {
		s.method(w, r, "POST")
		return
	}
	network := ""
	refuse := func(status int, message string) {
		answer(w, r, status, oldAnswer{Network: network, Error: &message})
	}
	l, err := s.Links.Get(r.Context(), id)
	switch {
	case errors.Is(err, link.ErrNotFound):
		s.noOld(w, r)
		return
	case err != nil:
		s.log().Error("a payment link could not be read", "error", err)
		refuse(http.StatusInternalServerError, "the link cannot be read now; nothing was taken; try again")
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		refuse(http.StatusBadRequest, "the request body ended too early")
		return
	}
	sent, err := decodeOld(body)
	if err != nil {
		refuse(http.StatusBadRequest, err.Error())
		return
	}
	network = sent.network
	p, o, err := sent.payment(l)
	if mismatch, ok := errors.AsType[*mismatchError](err); ok {
		refuse(http.StatusForbidden, mismatch.problem)
		return
	}
	if err != nil {
		refuse(http.StatusBadRequest, err.Error())
		return
	}
	network = o.Network().In(payment.V1)
	got := s.attempt(r.Context(), l, p, o, sent.fields)
	switch {
	case got.err != nil:
		s.unpaidOld(w, r, &got, network)
	case got.before:
		message := "this payment has paid the link already: its nonce is used"
		answer(w, r, http.StatusConflict, oldAnswer{Network: network, Error: &message, ReceiptURL: s.receiptURL(s.origin(r), got.use)})
	default:
		s.stamp(w.Header(), o, got.use)
		answer(w, r, http.StatusOK, oldAnswer{Success: true, Transaction: got.use.Transaction, Network: network, ReceiptURL: s.receiptURL(s.origin(r), got.use)})
	}
}

// unpaidOld answers that a payment has not paid a link, or that it is not
// known, as the older API does.
func (s *Site) unpaidOld(w http.ResponseWriter, r *http.Request, got *outcome, network string) {
	var (
		unavailable *payment.UnavailableError
		invalid     *payment.InvalidError
		malformed   *payment.MalformedError
		state       *link.StatusError
		filled      fieldsError
		late        *lateError
	)
	status, message := http.StatusInternalServerError, "the payment could not be taken; nothing was taken"
	doc := oldAnswer{Network: network}
	switch err := got.err; {
	case errors.As(err, &unavailable) && unavailable.Pending:
		status, message = http.StatusServiceUnavailable, "settlement_pending: the payment is being settled; do not pay again; send the same request again"
		doc.ReceiptURL = s.heldURL(r, got)
		w.Header().Set("Retry-After", "2")
	case errors.As(err, &unavailable):
		status, message = http.StatusServiceUnavailable, "the payment could not be checked now; nothing was taken; send the same request again"
		w.Header().Set("Retry-After", "2")
	case errors.As(err, &state):
		status, message = http.StatusForbidden, state.Error()
		if state.Status == link.Paid || state.Status == link.Pending {
			status = http.StatusConflict
		}
	case errors.Is(err, till.ErrBoundElsewhere):
		status, message = http.StatusConflict, "the nonce is already used for something else"
	case errors.As(err, &invalid) && (invalid.NonceUsed() || invalid.Reason == payment.DuplicateSettlement):
		status, message = http.StatusConflict, "the nonce is already used: "+invalid.Error()
	case errors.As(err, &late):
		status, message = http.StatusConflict, late.Error()
	case errors.Is(err, errWindow):
		status, message = http.StatusBadRequest, s.windowProblem()
	case errors.As(err, &filled):
		status, message = http.StatusBadRequest, filled.Error()
	case errors.As(err, &malformed), errors.As(err, &invalid):
		status, message = http.StatusBadRequest, err.Error()
	default:
		s.log().Error("a link's payment could not be taken", "link", string(got.link.ID), "error", err)
	}
	doc.Error = &message
	answer(w, r, status, doc)
}

// An oldPayment is what the older API is sent, with every number as decimal
// digits.
type oldPayment struct {
	network                string
	from, to, value, nonce string
	after, before          string
	signature              string
	fields                 map[string]string
}

// decodeOld reads the body of POST <link>/pay. Numbers may be JSON numbers or
// decimal digits in a string; the signature is one text, or v, r and s.
func decodeOld(body []byte) (*oldPayment, error) {
	o, err := strictjson.Parse(body, "", maxBody)
	if err != nil {
		return nil, err
	}
	if err := o.Known("network", "payload", "fields"); err != nil {
		return nil, err
	}
	network, err := o.Text("network")
	if err != nil {
		return nil, err
	}
	inner, err := o.Object("payload")
	if err != nil {
		return nil, err
	}
	if err := inner.Known("from", "to", "value", "nonce", "validAfter", "validBefore", "data", "signature", "v", "r", "s"); err != nil {
		return nil, err
	}
	sent := &oldPayment{network: network}
	for name, into := range map[string]*string{"from": &sent.from, "to": &sent.to, "nonce": &sent.nonce} {
		if *into, err = inner.Text(name); err != nil {
			return nil, err
		}
	}
	for name, into := range map[string]*string{"value": &sent.value, "validAfter": &sent.after, "validBefore": &sent.before} {
		if *into, err = digits(inner, name); err != nil {
			return nil, err
		}
	}
	if sent.signature, err = signatureOf(inner); err != nil {
		return nil, err
	}
	if raw, ok := o.Value("fields"); ok && string(raw) != "null" {
		if err := json.Unmarshal(raw, &sent.fields); err != nil {
			return nil, o.Wrong("fields", "must be an object of texts")
		}
	}
	return sent, nil
}

// digits reads a natural number that is a JSON number or a text.
func digits(o strictjson.Object, name string) (string, error) {
	raw, ok := o.Value(name)
	if !ok {
		return "", o.Missing(name)
	}
	text := string(raw)
	if strings.HasPrefix(text, `"`) {
		var err error
		if text, err = o.Text(name); err != nil {
			return "", err
		}
	}
	n, err := payment.ParseUint256(text)
	if err != nil {
		return "", o.Wrong(name, "must be a whole number, in digits")
	}
	return n.String(), nil
}

// signatureOf reads a signature as one text of 65 bytes, or as v, r and s.
func signatureOf(o strictjson.Object) (string, error) {
	if text, ok, err := o.OptionalText("signature"); err != nil {
		return "", err
	} else if ok && text != "" {
		return text, nil
	}
	if !o.Has("v") && !o.Has("r") && !o.Has("s") {
		return "", o.Missing("signature")
	}
	v, err := digits(o, "v")
	if err != nil {
		return "", err
	}
	n, err := strconv.ParseUint(v, 10, 8)
	if err != nil || n != 27 && n != 28 && n > 1 {
		return "", o.Wrong("v", "must be 27 or 28")
	}
	if n < 27 {
		n += 27
	}
	var whole strings.Builder
	whole.WriteString("0x")
	for _, name := range []string{"r", "s"} {
		text, err := o.Text(name)
		if err != nil {
			return "", err
		}
		part, ok := strings.CutPrefix(text, "0x")
		b, err := hex.DecodeString(part)
		if !ok || err != nil || len(b) != 32 {
			return "", o.Wrong(name, "must be 0x and 64 hexadecimal digits")
		}
		whole.WriteString(part)
	}
	return whole.String() + strconv.FormatUint(n, 16), nil
}

// payment returns what was sent as a payment of the protocol, and the link's
// offer that it pays: the first one on its network that is paid by transfer
// with authorization. It returns an *mismatchError where it pays none.
func (sent *oldPayment) payment(l *link.Link) (*payment.Payment, *payment.Offer, error) {
	n, err := payment.ParseNetwork(sent.network)
	if err != nil {
		return nil, nil, err
	}
	var offer *payment.Offer
	for i := range l.Offers {
		if o := &l.Offers[i]; o.Network() == n && o.Scheme == payment.Exact && !o.ByPermit2() {
			offer = o
			break
		}
	}
	if offer == nil {
		return nil, nil, &mismatchError{"the link cannot be paid on " + sent.network}
	}
	to, err := payment.CanonicalAddress(n, sent.to)
	if err != nil {
		return nil, nil, errors.New("payload.to " + err.Error())
	}
	if to != offer.PayTo {
		return nil, nil, &mismatchError{"payload.to is not the recipient of the link"}
	}
	if sent.value != offer.Amount.Units() {
		return nil, nil, &mismatchError{"payload.value is not the amount of the link"}
	}
	var doc bytes.Buffer
	if err := json.NewEncoder(&doc).Encode(map[string]any{
		"x402Version": payment.V2,
		"accepted":    offer.Encode(),
		"payload": map[string]any{
			"signature": sent.signature,
			"authorization": map[string]string{
				"from": sent.from, "to": sent.to, "value": sent.value, "validAfter": sent.after, "validBefore": sent.before, "nonce": sent.nonce,
			},
		},
	}); err != nil {
		return nil, nil, err
	}
	p, err := payment.DecodePayment(bytes.TrimSpace(doc.Bytes()))
	return p, offer, err
}
