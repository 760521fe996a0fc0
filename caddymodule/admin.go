package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

func init() {
	caddy.RegisterModule(&Admin{})
}

// Admin is the operators' part of Caddy's admin API, below /x402/. It shows
// payments, without what could spend them, gives money back, and looks after
// the ledger:
//
//   - GET /x402/payments lists them; state, due, limit and after narrow it down
//   - GET /x402/payments/<id> shows one
//   - POST /x402/payments/<id>/refund gives its money back
//   - POST /x402/passes/<id>/revoke ends the pass that a payment has bought
//   - GET /x402/passes/key is the public key by which passes can be verified
//   - GET /x402/links lists payment links, and POST makes one, as the API for
//     merchants has it; merchant says whose
//   - GET /x402/links/stats adds them up
//   - GET /x402/links/<id> shows one, POST /x402/links/<id>/cancel ends it
//   - GET /x402/links/<id>/payments lists its payments
//   - GET /x402/ledger/check walks through the ledger
//   - GET /x402/ledger/backup is a backup of it
type Admin struct{ app *App }

// CaddyModule returns the Caddy module information.
func (*Admin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "admin.api.x402", New: func() caddy.Module { return new(Admin) }}
}

// Provision finds the app, if there is one.
func (a *Admin) Provision(ctx caddy.Context) error {
	app, err := ctx.AppIfConfigured("x402")
	if err != nil {
		return nil //nolint:nilerr // a configuration without payments has an admin API, too
	}
	a.app = app.(*App)
	return nil
}

// Routes implements caddy.AdminRouter.
func (a *Admin) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: "/x402/", Handler: caddy.AdminHandlerFunc(a.serve)}}
}

func apiError(status int, format string, args ...any) error {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

func (a *Admin) serve(w http.ResponseWriter, r *http.Request) error {
	if a.app == nil {
		return apiError(http.StatusNotFound, "the running configuration takes no payments: it has no global option x402")
	}
	e := a.app.acquire()
	if e == nil {
		return apiError(http.StatusServiceUnavailable, "the engine is starting: try again in a moment")
	}
	defer e.release()
	w.Header().Set("Cache-Control", "no-store")
	parts := strings.Split(strings.Trim(strings.TrimPrefix(r.URL.Path, "/x402/"), "/"), "/")
	if parts[0] == "links" {
		return serveLinks(e.merchant(a.app), w, r, strings.TrimPrefix(r.URL.Path, "/x402/links"))
	}
	want := http.MethodGet
	switch {
	case len(parts) == 3 && parts[0] == "payments" && parts[2] == "refund":
		want = http.MethodPost
	case len(parts) == 3 && parts[0] == "passes" && parts[2] == "revoke":
		want = http.MethodPost
	case len(parts) == 3 && parts[0] == "webhooks" && parts[2] == "resend":
		want = http.MethodPost
	case len(parts) == 1 && parts[0] == "webhooks":
	case len(parts) == 2 && parts[0] == "passes" && parts[1] == "key":
	case len(parts) == 1 && parts[0] == "payments", len(parts) == 2 && parts[0] == "payments":
	case len(parts) == 2 && parts[0] == "ledger" && (parts[1] == "check" || parts[1] == "backup"):
	default:
		return apiError(http.StatusNotFound, "there is no %s here: there are /x402/payments, /x402/payments/<id>, /x402/payments/<id>/refund, /x402/passes/<id>/revoke, /x402/passes/key, /x402/links, /x402/webhooks, /x402/webhooks/<id>/resend, /x402/ledger/check and /x402/ledger/backup", r.URL.Path)
	}
	if r.Method != want {
		w.Header().Set("Allow", want)
		return apiError(http.StatusMethodNotAllowed, "send %s", want)
	}
	switch {
	case parts[0] == "ledger" && parts[1] == "check":
		survey, err := e.survey(r.Context())
		return reply(w, survey, err)
	case parts[0] == "ledger":
		return a.backup(w, r, e)
	case parts[0] == "webhooks" && len(parts) == 1:
		list, err := a.deliveries(r, e)
		return reply(w, list, err)
	case parts[0] == "webhooks":
		done, err := a.resend(r, e, parts[1])
		return reply(w, done, err)
	case len(parts) == 2 && parts[0] == "passes":
		key, err := a.passKey()
		return reply(w, key, err)
	case len(parts) == 1:
		list, err := a.list(r, e)
		return reply(w, list, err)
	}
	k, err := till.ParseKey(parts[1])
	if err != nil {
		return apiError(http.StatusBadRequest, "%w: \"tollgate payments\" lists them", err)
	}
	if parts[0] == "passes" {
		done, err := a.revokePass(r, e, k)
		return reply(w, done, err)
	}
	if want == http.MethodPost {
		return a.refund(w, r, e, k)
	}
	record, err := e.book.ledger.Get(r.Context(), k)
	if errors.Is(err, ledger.ErrNotFound) {
		return unknownPayment(k)
	}
	return reply(w, a.view(&record), err)
}

func unknownPayment(k payment.Key) error {
	return apiError(http.StatusNotFound, "the ledger knows no payment %s: \"tollgate payments\" lists those it knows", k)
}

// notFromAPage refuses orders that a page in a browser could send without
// asking first. body says what the order must have.
func notFromAPage(r *http.Request, body string) error {
	if media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(media) != "application/json" {
		return apiError(http.StatusUnsupportedMediaType, "send Content-Type: application/json, with %s", body)
	}
	return nil
}

// reply writes what was found out, or says why it was not.
func reply[D *ledger.Survey | *paymentList | *paymentView | *refundView | *passView | *passKeyView | *deliveryList | *resentView](w http.ResponseWriter, d D, err error) error {
	if api := (caddy.APIError{}); errors.As(err, &api) {
		return err
	}
	if err != nil {
		return apiError(http.StatusInternalServerError, "%w", err)
	}
	doc, err := json.Marshal(d)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(doc, '\n')) // nobody is left to tell
	return nil
}

// A paymentView is a payment as operators see it. It has nothing by which the
// payment could be spent or its answer fetched.
type paymentView struct {
	ID          string       `json:"id"`
	State       ledger.State `json:"state"`
	Due         bool         `json:"due"` // a refund is owed
	Mode        string       `json:"mode"`
	Network     string       `json:"network"`
	Token       string       `json:"token,omitempty"`
	Units       string       `json:"units"`            // atomic units of the token
	Amount      string       `json:"amount,omitempty"` // for people
	Payer       string       `json:"payer"`
	PayTo       string       `json:"pay_to,omitempty"`
	Resource    string       `json:"resource,omitempty"`
	Transaction string       `json:"transaction,omitempty"`
	Block       uint64       `json:"block,omitempty"`
	Until       string       `json:"until"`

	Delivery   ledger.Delivery `json:"delivery,omitempty"`
	Deliveries int             `json:"deliveries,omitempty"`
	Entitled   *time.Time      `json:"entitled_until,omitempty"`
	Exposed    string          `json:"exposed_units,omitempty"` // handed out and not paid yet
	Refund     string          `json:"refund,omitempty"`        // the payment that gives the money back
	Claims     int             `json:"claims"`
	Reason     string          `json:"reason,omitempty"`
	Since      time.Time       `json:"since"`
	Updated    time.Time       `json:"updated"`
}

func (a *Admin) view(r *ledger.Record) *paymentView {
	v := &paymentView{
		ID: r.Key.String(), State: r.State, Due: refundDue(r), Mode: r.Mode, Network: string(r.Network), Units: r.Charge,
		Payer: r.Payer, Transaction: r.Transaction(), Until: r.Until, Delivery: r.Delivery, Deliveries: r.Deliveries,
		Refund: r.Refund, Claims: r.Claims, Reason: r.Reason, Since: r.Since, Updated: r.Updated,
	}
	if !r.Due.IsZero() {
		v.Entitled = &r.Due
	}
	if r.Exposed != nil {
		v.Exposed = r.Exposed.Units
	}
	if r.Included != nil {
		v.Block = r.Included.Block
	}
	_, o, err := payment.DecodeRequest(r.Request)
	if err != nil {
		return v
	}
	v.Token, v.PayTo, v.Resource = o.Amount.Token().Address, o.PayTo, o.Resource
	for _, t := range a.app.tokens() {
		if t.Network != r.Network || t.Address != v.Token {
			continue
		}
		if amount, err := payment.ParseUnits(r.Charge, t); err == nil {
			v.Amount = amount.String()
		}
	}
	return v
}

func refundDue(r *ledger.Record) bool {
	return r.State == ledger.RefundDue || r.Owed() && r.Delivery == ledger.Undeliverable
}

// A paymentList is one page of payments.
type paymentList struct {
	Payments   []*paymentView `json:"payments"`
	Next       string         `json:"next,omitempty"`       // give it as after for the next page
	Unreadable int            `json:"unreadable,omitempty"` // records that cannot be read
}

const (
	defaultPage = 100
	largestPage = 1000
)

func (a *Admin) list(r *http.Request, e *engine) (*paymentList, error) {
	q := r.URL.Query()
	state := ledger.State(strings.ToUpper(q.Get("state")))
	if state != "" && !state.Known() {
		return nil, apiError(http.StatusBadRequest, "there is no state %q: there are %s", state, strings.Join(ledger.StateNames(), ", "))
	}
	limit := defaultPage
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > largestPage {
			return nil, apiError(http.StatusBadRequest, "limit must be 1 to %d", largestPage)
		}
		limit = n
	}
	var after *payment.Key
	if s := q.Get("after"); s != "" {
		k, err := till.ParseKey(s)
		if err != nil {
			return nil, apiError(http.StatusBadRequest, "after: %w", err)
		}
		after = &k
	}
	due := q.Get("due") != "" && q.Get("due") != "false"
	records := e.book.ledger.Payments(r.Context(), after)
	if due {
		records = e.book.ledger.Open(r.Context()) // which has all that are, and no more than it must
	}
	list := &paymentList{Payments: []*paymentView{}}
	for record, err := range records {
		switch {
		case r.Context().Err() != nil:
			return nil, r.Context().Err()
		case err != nil && record.Key == (payment.Key{}):
			return nil, err
		case err != nil:
			list.Unreadable++
			continue
		case state != "" && record.State != state, due && !refundDue(&record), due && after != nil && record.Key.String() <= after.String():
			continue
		}
		if len(list.Payments) == limit {
			list.Next = list.Payments[limit-1].ID
			break
		}
		list.Payments = append(list.Payments, a.view(&record))
	}
	return list, nil
}

// A refundView says that money was given back.
type refundView struct {
	ID          string `json:"id"`
	State       string `json:"state"`
	Transaction string `json:"transaction"`
}

// refundDeadline bounds one refund.
const refundDeadline = 60 * time.Second

func (a *Admin) refund(w http.ResponseWriter, r *http.Request, e *engine, k payment.Key) error {
	if err := notFromAPage(r, `{} or {"force":true}`); err != nil {
		return err
	}
	var order struct {
		Force bool `json:"force"`
	}
	body := json.NewDecoder(io.LimitReader(r.Body, 1<<10))
	body.DisallowUnknownFields()
	if err := body.Decode(&order); err != nil {
		return apiError(http.StatusBadRequest, "the body must be {} or {\"force\":true}: %w", err)
	}
	// Money must not depend on whether the operator still listens.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), refundDeadline)
	defer cancel()
	s, err := e.till.Refund(ctx, k, order.Force)
	var (
		refused     *till.RefundError
		invalid     *payment.InvalidError
		unavailable *payment.UnavailableError
	)
	switch {
	case err == nil:
		return reply(w, &refundView{ID: k.String(), State: string(ledger.Refunded), Transaction: s.Transaction}, nil)
	case errors.As(err, &refused):
		return apiError(http.StatusConflict, "%w", err)
	case errors.As(err, &unavailable) && unavailable.Pending:
		return apiError(http.StatusServiceUnavailable, "the refund is under way: %w; it goes on by itself; run the same command again to see whether it has arrived", err)
	case errors.As(err, &unavailable):
		return apiError(http.StatusServiceUnavailable, "%w; nothing was sent; it is tried again by itself, and by the same command", err)
	case errors.As(err, &invalid):
		return apiError(http.StatusUnprocessableEntity, "%w; nothing was sent; see that the refund account holds enough of the token; it is tried again by itself, and by the same command", err)
	}
	return apiError(http.StatusInternalServerError, "%w", err)
}

// A backupStore is a ledger that can be backed up while it is in use.
type backupStore interface {
	Backup(ctx context.Context, w io.Writer) error
}

func (a *Admin) backup(w http.ResponseWriter, r *http.Request, e *engine) error {
	store, ok := e.book.store.(backupStore)
	if !ok {
		return apiError(http.StatusNotImplemented, "this ledger has no backup of its own: back it up with the tools of its database")
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := store.Backup(r.Context(), w); err != nil {
		a.app.logger.Error("a backup of the ledger was cut off", "error", err)
		panic(http.ErrAbortHandler) // so that nobody takes what was sent for a backup
	}
	return nil
}

var (
	_ caddy.AdminRouter = (*Admin)(nil)
	_ caddy.Provisioner = (*Admin)(nil)
)
