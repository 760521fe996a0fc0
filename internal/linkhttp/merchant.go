package linkhttp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	_ "embed" // of the description
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/tollgate402/tollgate/internal/strictjson"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

// A Key lets a merchant's programs in.
type Key struct {
	Merchant string            // whose it is
	Hash     [sha256.Size]byte // SHA-256 of the key, which must be hard to guess
	Read     bool              // it may look at links and payments
	Write    bool              // it may make and cancel links
}

// A Merchant serves the programs of merchants: they make links, look at them
// and at what they have earned, and cancel them. Nobody sees the links of
// another merchant. It reads no cookies. Its fields must not change once it is
// in use; it is safe for concurrent use.
type Merchant struct {
	Links *link.Store
	Site  *Site // where the links are
	Keys  []Key // who may come in; none lets nobody in

	// Offers returns the ways to pay an amount in whole units, such as
	// "12.50". Its error says why the amount cannot be asked for, to the
	// merchant.
	Offers func(amount string) ([]payment.Offer, error)

	// Redirects are the hosts that links may lead to.
	Redirects []string

	// Limit is the size of a page where a request does not say. Default: 20.
	Limit int
}

const (
	linksPath    = "/v1/payment-links"
	describePath = "/v1/openapi.json"

	defaultLimit = 20
	maxOnceKey   = 255 // characters of an idempotency key

	headerOnce     = "Idempotency-Key"
	headerReplayed = "Idempotent-Replayed"
)

// Has reports whether a path is one of the merchants' API.
func (m *Merchant) Has(path string) bool {
	return path == linksPath || strings.HasPrefix(path, linksPath+"/") || path == describePath
}

// A Code names the kind of an error for programs.
type Code string

const (
	InvalidJSON      Code = "invalid_json"            // send one JSON object
	InvalidParameter Code = "invalid_parameter"       // change the parameter
	MissingParameter Code = "missing_parameter"       // add the parameter
	UnknownParameter Code = "unknown_parameter"       // leave the parameter out
	KeyRequired      Code = "api_key_required"        // send a key
	InvalidKey       Code = "invalid_api_key"         // send another key
	ScopeMissing     Code = "insufficient_scope"      // send a key that may do this
	ForeignOrigin    Code = "origin_not_allowed"      // send it from a server, not from a page
	NotFound         Code = "not_found"               // there is no such thing
	WrongMethod      Code = "method_not_allowed"      // use one of the methods in Allow
	AlreadyPaid      Code = "already_paid"            // nothing is left to cancel
	OnceKeyReused    Code = "idempotency_key_reused"  // use a new idempotency key
	Unavailable      Code = "temporarily_unavailable" // send the same request again
)

// A RequestError says why a merchant's request was not carried out. Nothing
// has changed.
type RequestError struct {
	Status  int // of HTTP
	Code    Code
	Message string // says what to do
	Param   string // what it is about; empty for none
	Allow   string // the methods that there are, with WrongMethod
}

func (e *RequestError) Error() string { return e.Message }

// MarshalJSON writes the error as the API has it.
func (e *RequestError) MarshalJSON() ([]byte, error) {
	type body struct {
		Code    Code    `json:"code"`
		Message string  `json:"message"`
		Param   *string `json:"param"`
	}
	doc := struct {
		Error body `json:"error"`
	}{body{Code: e.Code, Message: e.Message}}
	if e.Param != "" {
		doc.Error.Param = &e.Param
	}
	return json.Marshal(doc)
}

func invalid(param, problem string) error {
	return &RequestError{Status: http.StatusBadRequest, Code: InvalidParameter, Message: param + " " + problem, Param: param}
}

// A Reply answers a merchant's request.
type Reply struct {
	Status   int
	Doc      json.RawMessage
	Location string // of what was made; empty for none
	Replayed bool   // an earlier request with the same idempotency key has made it
}

func replyWith[D linkDoc | linkList | statsDoc | useList](status int, d D) (*Reply, error) {
	doc, err := json.Marshal(d)
	return &Reply{Status: status, Doc: doc}, err
}

func (m *Merchant) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	reply, err := m.serve(r)
	if err != nil {
		m.refuse(w, m.explain(r.Context(), err))
		return
	}
	if reply.Location != "" {
		h.Set("Location", reply.Location)
	}
	if reply.Replayed {
		h.Set(headerReplayed, "true")
	}
	writeDoc(w, reply.Status, reply.Doc)
}

func writeDoc(w http.ResponseWriter, status int, doc []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(doc)))
	w.WriteHeader(status)
	_, _ = w.Write(doc) // nobody is left to tell
}

// explain turns an error into one for the merchant.
func (m *Merchant) explain(ctx context.Context, err error) *RequestError {
	if refused, ok := errors.AsType[*RequestError](err); ok {
		return refused
	}
	if errors.Is(err, link.ErrNotFound) {
		return &RequestError{Status: http.StatusNotFound, Code: NotFound, Message: "you have no such payment link: GET " + linksPath + " lists yours"}
	}
	if ctx.Err() == nil {
		m.Site.log().Error("a merchant's request could not be carried out", "error", err)
	}
	return &RequestError{
		Status: http.StatusServiceUnavailable, Code: Unavailable,
		Message: "this cannot be done now: send the same request again, with the same " + headerOnce + " if it makes a link",
	}
}

func (m *Merchant) refuse(w http.ResponseWriter, e *RequestError) {
	h := w.Header()
	switch e.Code {
	case KeyRequired:
		h.Set("WWW-Authenticate", `Bearer realm="payment links"`)
	case InvalidKey:
		h.Set("WWW-Authenticate", `Bearer realm="payment links", error="invalid_token"`)
	case ScopeMissing:
		h.Set("WWW-Authenticate", `Bearer realm="payment links", error="insufficient_scope"`)
	case WrongMethod:
		h.Set("Allow", e.Allow)
	case Unavailable:
		h.Set("Retry-After", "2")
	default:
	}
	doc, err := json.Marshal(e)
	if err != nil {
		panic("linkhttp: encoding an error failed: " + err.Error())
	}
	writeDoc(w, e.Status, doc)
}

//go:embed openapi.json
var description []byte

// describe returns the description of the API with the paths that the links
// of this site have.
func (m *Merchant) describe() []byte {
	base, err := json.Marshal(m.Site.Base + "/{id}")
	if err != nil {
		panic("linkhttp: encoding a path failed: " + err.Error())
	}
	return bytes.ReplaceAll(description, []byte(`"/x402/{id}`), bytes.TrimSuffix(base, []byte(`"`)))
}

// serve carries out a request of whoever has a key.
func (m *Merchant) serve(r *http.Request) (*Reply, error) {
	if r.URL.Path == describePath {
		if r.Method != http.MethodGet {
			return nil, wrongMethod(http.MethodGet)
		}
		return &Reply{Status: http.StatusOK, Doc: m.describe()}, nil
	}
	key, err := m.key(r)
	if err != nil {
		return nil, err
	}
	if err := m.fromHere(r); err != nil {
		return nil, err
	}
	return m.do(r, r.URL.Path, key)
}

// As carries out a request for a merchant, who may do everything; who it is
// the caller has found out. path is what stands behind /v1/payment-links in the
// API, in place of the request's path. The error is a *RequestError.
func (m *Merchant) As(merchant string, r *http.Request, path string) (*Reply, error) {
	if err := link.CheckMerchant(merchant); err != nil {
		return nil, invalid("merchant", err.Error())
	}
	reply, err := m.do(r, linksPath+path, &Key{Merchant: merchant, Read: true, Write: true})
	if err != nil {
		return nil, m.explain(r.Context(), err)
	}
	return reply, nil
}

// key returns the key that a request has. Every key is compared, each in
// constant time.
func (m *Merchant) key(r *http.Request) (*Key, error) {
	given := slices.Clone(r.Header.Values("X-API-Key"))
	for _, value := range r.Header.Values("Authorization") {
		scheme, token, _ := strings.Cut(value, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			token = ""
		}
		given = append(given, strings.TrimSpace(token))
	}
	if len(given) == 0 {
		return nil, &RequestError{
			Status: http.StatusUnauthorized, Code: KeyRequired, Message: "send an API key, in the header Authorization as \"Bearer KEY\", or in X-API-Key",
		}
	}
	hash := sha256.Sum256([]byte(given[0]))
	found := -1
	for i := range m.Keys {
		if subtle.ConstantTimeCompare(m.Keys[i].Hash[:], hash[:]) == 1 {
			found = i
		}
	}
	// Of two that differ nobody could tell which one is meant.
	if found < 0 || given[0] == "" || len(slices.Compact(given)) > 1 {
		return nil, &RequestError{Status: http.StatusUnauthorized, Code: InvalidKey, Message: "the API key is not one that is known here: see that it is complete, and of this site"}
	}
	return &m.Keys[found], nil
}

// fromHere refuses orders that a page of another site has sent.
func (m *Merchant) fromHere(r *http.Request) error {
	if r.Method == http.MethodGet {
		return nil
	}
	for _, origin := range r.Header.Values("Origin") {
		if !strings.EqualFold(origin, m.Site.origin(r)) {
			return &RequestError{Status: http.StatusForbidden, Code: ForeignOrigin, Message: "pages of other sites may not send this: send it from a server, where the API key is safe, too"}
		}
	}
	return nil
}

func wrongMethod(allowed ...string) error {
	list := strings.Join(allowed, ", ")
	return &RequestError{Status: http.StatusMethodNotAllowed, Code: WrongMethod, Message: "send one of " + list, Allow: list}
}

// An order is a merchant's request whose sender is known.
type order struct {
	*http.Request
	merchant string
	id       link.ID // what it is about, if it is about one link
}

// An operation is something that merchants can do.
type operation struct {
	method string
	writes bool
	one    bool // it is about one link
	do     func(*Merchant, *order) (*Reply, error)
}

// operations returns what can be done at a path, which is none where there is
// nothing, and what the path has in the place of a link's id.
func operations(path string) (list []operation, id string) {
	rest, ok := strings.CutPrefix(path, linksPath)
	if !ok {
		return nil, ""
	}
	parts := strings.Split(rest, "/") // the first one is what stands before the first slash
	switch {
	case parts[0] != "":
	case len(parts) == 1:
		return []operation{{http.MethodGet, false, false, (*Merchant).list}, {http.MethodPost, true, false, (*Merchant).create}}, ""
	case len(parts) == 2 && parts[1] == "stats":
		return []operation{{http.MethodGet, false, false, (*Merchant).stats}}, ""
	case len(parts) == 2:
		return []operation{{http.MethodGet, false, true, (*Merchant).show}, {http.MethodDelete, true, true, (*Merchant).cancel}}, parts[1]
	case len(parts) == 3 && (parts[2] == "cancel" || parts[2] == "disable"):
		return []operation{{http.MethodPost, true, true, (*Merchant).cancel}}, parts[1]
	case len(parts) == 3 && parts[2] == "payments":
		return []operation{{http.MethodGet, false, true, (*Merchant).uses}}, parts[1]
	}
	return nil, ""
}

// do carries out what a path and a method ask for, as far as the key allows.
func (m *Merchant) do(r *http.Request, path string, key *Key) (*Reply, error) {
	list, name := operations(path)
	if len(list) == 0 {
		return nil, &RequestError{Status: http.StatusNotFound, Code: NotFound, Message: "there is nothing here: GET " + describePath + " says what there is"}
	}
	i := slices.IndexFunc(list, func(o operation) bool { return o.method == r.Method })
	if i < 0 {
		var allowed []string
		for _, o := range list {
			allowed = append(allowed, o.method)
		}
		return nil, wrongMethod(allowed...)
	}
	if list[i].writes && !key.Write || !list[i].writes && !key.Read {
		scope := "read"
		if list[i].writes {
			scope = "write"
		}
		return nil, &RequestError{Status: http.StatusForbidden, Code: ScopeMissing, Message: "this API key may not do that: use one with the scope " + scope}
	}
	o := &order{Request: r, merchant: key.Merchant}
	if list[i].one {
		id, err := link.ParseID(name)
		if err != nil {
			return nil, link.ErrNotFound // as for any other that is not theirs
		}
		o.id = id
	}
	return list[i].do(m, o)
}

// body reads the object that a request has, and refuses members that are not
// in names. No body is an empty object.
func (o *order) body(names ...string) (strictjson.Object, error) {
	text, err := io.ReadAll(io.LimitReader(o.Body, maxBody+1))
	if err != nil {
		return strictjson.Object{}, &RequestError{Status: http.StatusBadRequest, Code: InvalidJSON, Message: "the body ended too early: send it again"}
	}
	if len(text) == 0 {
		return strictjson.Object{}, nil
	}
	doc, err := strictjson.Parse(text, "", maxBody)
	if bad, ok := errors.AsType[*strictjson.Error](err); ok {
		problem := "the body " + bad.Problem
		if bad.Path != "" {
			problem = bad.Path + " " + bad.Problem
		}
		return doc, &RequestError{Status: http.StatusBadRequest, Code: InvalidJSON, Message: problem + ": send one JSON object", Param: bad.Path}
	}
	if err != nil {
		return doc, err
	}
	return doc, known(doc, names...)
}

// known refuses members that are not in names.
func known(doc strictjson.Object, names ...string) error {
	for _, name := range doc.Names() {
		if slices.Contains(names, name) {
			continue
		}
		bad, ok := errors.AsType[*strictjson.Error](doc.Wrong(name, ""))
		if !ok {
			return errors.New("linkhttp: strictjson has another error")
		}
		list := "none"
		if len(names) > 0 {
			list = strings.Join(names, ", ")
		}
		return &RequestError{
			Status: http.StatusBadRequest, Code: UnknownParameter, Param: bad.Path,
			Message: fmt.Sprintf("%s is not known here: leave it out; what is known: %s", bad.Path, list),
		}
	}
	return nil
}

// malformed turns what is wrong with a member into an error for the merchant.
func malformed(err error) error {
	if bad, ok := errors.AsType[*strictjson.Error](err); ok {
		return invalid(bad.Path, bad.Problem)
	}
	return err
}
