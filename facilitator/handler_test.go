package facilitator_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// paying returns an offer, and a payment for it as a facilitator request.
func paying(t testing.TB, version int) (*payment.Offer, *payment.Payment, []byte) {
	t.Helper()
	o := facilitatortest.Offer(t, 1000, common.HexToAddress("0x00000000000000000000000000000000000000A1"))
	p := facilitatortest.Payment(t, version, &o, anyTransfer(t, &o))
	body, err := payment.EncodeRequest(p, &o, o.Amount)
	if err != nil {
		t.Fatal(err)
	}
	return &o, p, body
}

func anyTransfer(t testing.TB, o *payment.Offer) *evm.Transfer {
	t.Helper()
	return facilitatortest.Authorize(t, testKey(t), o, now, 60)
}

// ask sends a request to a handler and decodes the JSON object that it
// answers with.
func ask(t testing.TB, h http.Handler, method, path string, body string, header ...string) (int, map[string]json.RawMessage, http.Header) {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	resp := w.Result()
	doc, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer map[string]json.RawMessage
	if err := json.Unmarshal(doc, &answer); err != nil {
		t.Fatalf("%s %s: %d with %q", method, path, resp.StatusCode, doc)
	}
	if resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s %s: headers %v", method, path, resp.Header)
	}
	return resp.StatusCode, answer, resp.Header
}

func TestGoodPaymentsAreAnsweredInBothVersions(t *testing.T) {
	for _, version := range []int{payment.V1, payment.V2} {
		fake := &facilitatortest.Fake{}
		h := &facilitator.Handler{Facilitator: fake}
		o, p, body := paying(t, version)
		id, err := facilitator.Identify(p, o)
		if err != nil {
			t.Fatal(err)
		}
		status, answer, _ := ask(t, h, "POST", "/facilitator/verify", string(body))
		if status != 200 || string(answer["isValid"]) != "true" || string(answer["payer"]) != `"`+id.Payer+`"` {
			t.Errorf("v%d verify: %d %s", version, status, answer)
		}
		network := map[int]string{payment.V1: `"base-sepolia"`, payment.V2: `"eip155:84532"`}[version]
		for range 2 {
			status, answer, _ = ask(t, h, "POST", "/facilitator/settle", string(body))
			if status != 200 || string(answer["success"]) != "true" || string(answer["network"]) != network || len(answer["transaction"]) != 68 {
				t.Errorf("v%d settle: %d %s", version, status, answer)
			}
		}
		if fake.Transfers() != 1 {
			t.Errorf("%d transfers", fake.Transfers())
		}
	}
}

func TestDecidedPaymentsAreAnsweredWith200(t *testing.T) {
	_, _, body := paying(t, payment.V2)
	invalid := &payment.InvalidError{Reason: payment.EVMNonceUsed, Message: "used", Payer: "0x01"}
	pending := &payment.UnavailableError{Doing: "waiting", Err: errors.New("secret.host.internal"), Pending: true, Transaction: "0x02", Payer: "0x01"}
	fails := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	h := &facilitator.Handler{Facilitator: &facilitatortest.Fake{Verifying: fails(invalid), Settling: fails(invalid)}}
	status, answer, _ := ask(t, h, "POST", "/verify", string(body))
	if status != 200 || string(answer["isValid"]) != "false" || string(answer["invalidReason"]) != `"`+string(payment.EVMNonceUsed)+`"` || string(answer["payer"]) != `"0x01"` {
		t.Errorf("verify: %d %s", status, answer)
	}
	status, answer, _ = ask(t, h, "POST", "/settle", string(body))
	if status != 200 || string(answer["success"]) != "false" || string(answer["errorReason"]) != `"`+string(payment.EVMNonceUsed)+`"` || string(answer["transaction"]) != `""` || string(answer["network"]) != `"eip155:84532"` {
		t.Errorf("settle: %d %s", status, answer)
	}
	h = &facilitator.Handler{Facilitator: &facilitatortest.Fake{Settling: fails(pending)}}
	status, answer, _ = ask(t, h, "POST", "/settle", string(body))
	if status != 200 || string(answer["errorReason"]) != `"settlement_pending"` || string(answer["transaction"]) != `"0x02"` {
		t.Errorf("settle: %d %s", status, answer)
	}
}

func TestWhatCannotBeFoundOutIsNoVerdict(t *testing.T) {
	_, _, body := paying(t, payment.V2)
	for _, c := range []struct {
		err    error
		status int
	}{
		{&payment.UnavailableError{Doing: "asking", Err: errors.New("secret.host.internal")}, 503},
		{errors.New("a bug at secret.host.internal"), 500},
	} {
		fails := func(context.Context) error { return c.err }
		h := &facilitator.Handler{Facilitator: &facilitatortest.Fake{Verifying: fails, Settling: fails}}
		for _, path := range []string{"/verify", "/settle"} {
			status, answer, header := ask(t, h, "POST", path, string(body))
			if status != c.status || answer["isValid"] != nil || answer["success"] != nil || strings.Contains(string(answer["error"]), "secret") {
				t.Errorf("%s: %d %s", path, status, answer)
			}
			if (header.Get("Retry-After") != "") != (c.status == 503) {
				t.Errorf("%s: Retry-After %q", path, header.Get("Retry-After"))
			}
		}
	}
}

func TestRequestsThatCannotBeReadNameTheMember(t *testing.T) {
	h := &facilitator.Handler{Facilitator: &facilitatortest.Fake{}}
	_, _, good := paying(t, payment.V2)
	_, _, old := paying(t, payment.V1)
	change := func(doc []byte, path, value string) string {
		t.Helper()
		out, ok := replaceMember(string(doc), path, value)
		if !ok {
			t.Fatalf("no %s in %s", path, doc)
		}
		return out
	}
	for _, c := range []struct{ body, names string }{
		{"", "JSON"},
		{"[]", "object"},
		{"{", "JSON"},
		{string(good) + "x", "JSON"},
		{`{"paymentPayload":{},"paymentPayload":{}}`, "paymentPayload"},
		{`{"PaymentPayload":{}}`, "PaymentPayload"},
		{`{}`, "paymentPayload"},
		{`{"x402Version":2,"paymentPayload":[],"paymentRequirements":{}}`, "paymentPayload"},
		{strings.Repeat(" ", payment.MaxBody) + string(good), "65536"},
		{change(good, `"x402Version":`, `3`), "x402Version"},
		{change(good, `"payTo":`, `"0x1"`), "payTo"},
		{change(good, `"network":`, `"nowhere"`), "network"},
		{change(good, `"amount":`, `"01000"`), "amount"},
		{change(old, `"maxAmountRequired":`, `"1e3"`), "maxAmountRequired"},
		{change(good, `"nonce":`, `"0x12"`), "nonce"},
		{change(good, `"value":`, `1000`), "value"},
		{change(good, `"validBefore":`, `"-1"`), "validBefore"},
		{change(good, `"signature":`, `"zz"`), "signature"},
		{change(good, `"from":`, `"0x12"`), "from"},
	} {
		for _, path := range []string{"/verify", "/settle"} {
			status, answer, _ := ask(t, h, "POST", path, c.body)
			if status != 400 || !strings.Contains(string(answer["error"]), c.names) {
				t.Errorf("%s of %.80q: %d %s, want a word about %s", path, c.body, status, answer["error"], c.names)
			}
			verdict := answer["isValid"]
			if path == "/settle" {
				verdict = answer["success"]
			}
			if string(verdict) != "false" {
				t.Errorf("%s of %.80q: %s", path, c.body, answer)
			}
		}
	}
}

// replaceMember puts value in place of the first string or number after key.
func replaceMember(doc, key, value string) (string, bool) {
	before, after, ok := strings.Cut(doc, key)
	if !ok {
		return "", false
	}
	end := strings.IndexAny(after, ",}")
	return before + key + value + after[end:], true
}

func TestOtherMethodsAndPathsAreRefused(t *testing.T) {
	h := &facilitator.Handler{Facilitator: &facilitatortest.Fake{}}
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/verify", 405, "POST"},
		{"PUT", "/settle", 405, "POST"},
		{"POST", "/supported", 405, "GET, HEAD"},
		{"DELETE", "/supported", 405, "GET, HEAD"},
		{"POST", "/", 404, ""},
		{"POST", "/verify/", 404, ""},
		{"POST", "/unverify", 404, ""},
		{"GET", "/settle/x", 404, ""},
		{"GET", "/supported", 200, ""},
		{"HEAD", "/supported", 200, ""},
		{"GET", "/deep/below/supported", 200, ""},
	} {
		status, _, header := ask(t, h, c.method, c.path, "")
		if status != c.status || header.Get("Allow") != c.allow {
			t.Errorf("%s %s: %d, Allow %q", c.method, c.path, status, header.Get("Allow"))
		}
	}
}

func TestOnlyTheBearerOfATokenIsServed(t *testing.T) {
	fake := &facilitatortest.Fake{}
	h := &facilitator.Handler{Facilitator: fake, Bearers: [][32]byte{sha256.Sum256([]byte("first")), sha256.Sum256([]byte("second"))}}
	_, _, body := paying(t, payment.V2)
	for _, c := range []struct {
		authorization string
		status        int
	}{
		{"", 401},
		{"Bearer", 401},
		{"Bearer ", 401},
		{"Bearer third", 401},
		{"Basic first", 401},
		{"first", 401},
		{"Bearer first ", 401},
		{"Bearer first", 200},
		{"bearer second", 200},
	} {
		for _, path := range []string{"/verify", "/settle"} {
			var header []string
			if c.authorization != "" {
				header = []string{"Authorization", c.authorization}
			}
			transfers := fake.Transfers()
			_, _, fresh := paying(t, payment.V2)
			status, answer, got := ask(t, h, "POST", path, string(fresh), header...)
			if status != c.status || (status == 401) != (got.Get("WWW-Authenticate") != "") {
				t.Errorf("%q at %s: %d %s", c.authorization, path, status, answer)
			}
			if status == 401 && fake.Transfers() != transfers {
				t.Errorf("%q moved money", c.authorization)
			}
		}
	}
	if status, _, _ := ask(t, h, "GET", "/supported", ""); status != 200 {
		t.Errorf("supported: %d", status)
	}
	_ = body
}

func TestOnlyKnownRecipientsAreServed(t *testing.T) {
	fake := &facilitatortest.Fake{}
	o, _, body := paying(t, payment.V2)
	h := &facilitator.Handler{Facilitator: fake, PayTo: []string{common.HexToAddress("0xb1").Hex()}}
	status, answer, _ := ask(t, h, "POST", "/verify", string(body))
	if status != 200 || string(answer["isValid"]) != "false" || string(answer["invalidReason"]) != `"invalid_payment_requirements"` {
		t.Errorf("verify: %d %s", status, answer)
	}
	status, answer, _ = ask(t, h, "POST", "/settle", string(body))
	if status != 200 || string(answer["success"]) != "false" || fake.Calls() != 0 {
		t.Errorf("settle: %d %s", status, answer)
	}
	h.PayTo = append(h.PayTo, o.PayTo)
	if status, answer, _ = ask(t, h, "POST", "/settle", string(body)); status != 200 || string(answer["success"]) != "true" {
		t.Errorf("settle: %d %s", status, answer)
	}
}

func TestCallerThatHangsUpDoesNotStopTheSettlement(t *testing.T) {
	_, _, body := paying(t, payment.V2)
	fake := &facilitatortest.Fake{Settling: func(ctx context.Context) error { return ctx.Err() }}
	h := &facilitator.Handler{Facilitator: fake}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(gone, "POST", "/settle", strings.NewReader(string(body))))
	if fake.Transfers() != 1 {
		t.Errorf("%d transfers", fake.Transfers())
	}
}

func FuzzHandlerAnswersEveryBody(f *testing.F) {
	for _, version := range []int{payment.V1, payment.V2} {
		_, _, body := paying(f, version)
		f.Add(body)
	}
	f.Add([]byte("{}"))
	h := &facilitator.Handler{Facilitator: &facilitatortest.Fake{}}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, path := range []string{"/verify", "/settle"} {
			status, answer, _ := ask(t, h, "POST", path, string(body))
			if status != 200 && status != 400 {
				t.Errorf("%s: %d %s", path, status, answer)
			}
		}
	})
}

// A noter is a facilitator that notes whether what it verifies is settled first.
type noter struct {
	facilitatortest.Fake
	settledFirst []bool
}

func (n *noter) Verify(ctx context.Context, p *payment.Payment, o *payment.Offer) (*payment.Verification, error) {
	n.settledFirst = append(n.settledFirst, p.SettledFirst)
	return n.Fake.Verify(ctx, p, o)
}

// What a payer is known for does for exact payments where the caller says so, as
// our own client does of what is settled first.
func TestCallersCanDoWithWhatIsKnownOfAPayer(t *testing.T) {
	t.Parallel()
	n := &noter{}
	server := httptest.NewServer(&facilitator.Handler{Facilitator: n})
	t.Cleanup(server.Close)
	client, err := facilitator.NewClient(facilitator.ClientConfig{URL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	o, p, body := paying(t, payment.V2)
	for _, settledFirst := range []bool{true, false} {
		p.SettledFirst = settledFirst
		if _, err := client.Verify(soon(t), p, o); err != nil {
			t.Fatal(err)
		}
	}
	ask(t, &facilitator.Handler{Facilitator: n}, http.MethodPost, "/verify", string(body))
	ask(t, &facilitator.Handler{Facilitator: n}, http.MethodPost, "/verify", string(body), "Cache-Control", "no-transform, Max-Stale=5")
	upto := facilitatortest.UptoOffer(t, 1000, common.HexToAddress(o.PayTo))
	permit := facilitatortest.Permit(t, testKey(t), &upto, now, 60)
	_, value := facilitatortest.PermitHeader(t, &upto, permit)
	q, err := payment.FromHeader([]string{value}, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err = payment.EncodeRequest(q, &upto, upto.Amount)
	if err != nil {
		t.Fatal(err)
	}
	ask(t, &facilitator.Handler{Facilitator: n}, http.MethodPost, "/verify", string(body), "Cache-Control", "max-stale")
	if want := []bool{true, false, false, true, false}; !slices.Equal(n.settledFirst, want) {
		t.Errorf("got %v, want %v", n.settledFirst, want)
	}
}
