package facilitator_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/payment"
)

func testKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := crypto.ToECDSA(crypto.Keccak256([]byte("a payer in tests")))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func client(t testing.TB, url string) *facilitator.Client {
	t.Helper()
	c, err := facilitator.NewClient(facilitator.ClientConfig{URL: url, Bearer: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClientAndHandlerSayTheSameAsTheFacilitatorItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(&facilitator.Handler{Facilitator: w.embedded})
	t.Cleanup(server.Close)
	remote := client(t, server.URL+"/")
	for _, version := range []int{payment.V1, payment.V2} {
		good, bad := w.authorize(), w.authorize()
		bad.Signature[5] ^= 1
		p, q := facilitatortest.Payment(t, version, &w.offer, good), facilitatortest.Payment(t, version, &w.offer, bad)
		here, err := w.embedded.Verify(soon(t), p, &w.offer)
		if err != nil {
			t.Fatal(err)
		}
		there, err := remote.Verify(soon(t), p, &w.offer)
		if err != nil || there.Payer != here.Payer {
			t.Errorf("got %+v, %v, want %+v", there, err, here)
		}
		_, direct := w.embedded.Verify(soon(t), q, &w.offer)
		_, asked := remote.Verify(soon(t), q, &w.offer)
		if !reflect.DeepEqual(asked, direct) {
			t.Errorf("got %#v, want %#v", asked, direct)
		}
		first, err := remote.Settle(soon(t), p, &w.offer, w.offer.Amount)
		if err != nil {
			t.Fatal(err)
		}
		again, err := w.embedded.Settle(soon(t), p, &w.offer, w.offer.Amount)
		if err != nil || first.Transaction != again.Transaction || first.Payer != again.Payer || first.Network != again.Network || first.Amount.Cmp(again.Amount) != 0 {
			t.Errorf("got %+v, want %+v, %v", first, again, err)
		}
		_, direct = w.embedded.Settle(soon(t), q, &w.offer, w.offer.Amount)
		_, asked = remote.Settle(soon(t), q, &w.offer, w.offer.Amount)
		if invalid := wantInvalid(t, asked, payment.EVMSignature); !reflect.DeepEqual(direct, error(invalid)) {
			t.Errorf("got %#v, want %#v", asked, direct)
		}
	}
	w.wantEarned(2000)
	s, err := remote.Supported(soon(t))
	if err != nil || len(s.Kinds) != 3 || !s.Supports(&w.offer) {
		t.Errorf("supported %+v, %v", s, err)
	}
}

// Every way in which a facilitator somewhere else can answer, and what it
// means. Whatever is no clear word leaves the outcome open.
func TestHostileFacilitatorNeverTurnsUnknownIntoAnAnswer(t *testing.T) {
	t.Parallel()
	const hash = "0x00000000000000000000000000000000000000000000000000000000000000aa"
	success := `{"success":true,"transaction":"` + hash + `","network":"eip155:84532","payer":"0x0000000000000000000000000000000000000001"}`
	pending := `{"success":false,"errorReason":"settlement_pending","transaction":"` + hash + `","network":"eip155:84532"}`
	refused := `{"success":false,"errorReason":"invalid_exact_evm_nonce_already_used","transaction":"","network":"eip155:84532"}`
	failed := `{"success":false,"errorReason":"invalid_exact_evm_transaction_failed","transaction":"` + hash + `","network":"eip155:84532"}`
	says := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	inTurn := func(answers ...http.HandlerFunc) http.HandlerFunc {
		var n atomic.Int64
		return func(w http.ResponseWriter, r *http.Request) {
			answers[min(int(n.Add(1)), len(answers))-1](w, r)
		}
	}
	hangUp := func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }
	hang := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	cutOff := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, success[:20])
	}
	drip := func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, success[:20])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	const (
		settled = "settled"
		invalid = "invalid"
		open    = "open"
	)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"success":                       {says(200, success), settled},
		"success with another status":   {says(500, success), settled},
		"success without transaction":   {says(200, `{"success":true,"transaction":"","network":"eip155:84532"}`), open},
		"success without network":       {says(200, `{"success":true,"transaction":"`+hash+`"}`), open},
		"success on another network":    {says(200, `{"success":true,"transaction":"`+hash+`","network":"eip155:8453"}`), open},
		"success in another type":       {says(200, `{"success":"true","transaction":"`+hash+`","network":"eip155:84532"}`), open},
		"success twice":                 {says(200, `{"success":false,"success":true,"transaction":"`+hash+`","network":"eip155:84532"}`), open},
		"refusal":                       {says(200, refused), invalid},
		"refusal with another status":   {says(400, refused), invalid},
		"refusal with a transaction":    {says(200, failed), invalid},
		"5xx after the broadcast":       {says(502, `Bad Gateway`), open},
		"5xx with an error in JSON":     {says(503, `{"error":"overloaded"}`), open},
		"4xx with an error in JSON":     {says(401, `{"error":"no token"}`), open},
		"garbage":                       {says(200, `<html>welcome</html>`), open},
		"nothing":                       {says(200, ``), open},
		"a list":                        {says(200, `[]`), open},
		"an answer without end":         {says(200, `{"success":true,"x":"`+strings.Repeat("y", 2<<20)+`"}`), open},
		"pending, then success":         {inTurn(says(200, pending), says(200, success)), settled},
		"pending, then forgotten":       {inTurn(says(200, pending), says(200, refused)), open},
		"pending, then failed":          {inTurn(says(200, pending), says(200, failed)), open},
		"pending, then 5xx":             {inTurn(says(200, pending), says(500, `oops`)), open},
		"pending, then the line is cut": {inTurn(says(200, pending), hangUp), open},
		"pending for ever":              {says(200, pending), open},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere/settle", http.StatusTemporaryRedirect)
		}, open},
		"redirect to a GET": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere/settle", http.StatusFound)
		}, open},
		"the line is cut":               {hangUp, open},
		"the line is cut in the answer": {cutOff, open},
		"it hangs":                      {hang, open},
		"it hangs in the answer":        {drip, open},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var elsewhere atomic.Int64
			var mu sync.Mutex
			var bodies []string // guarded by mu
			mux := http.NewServeMux()
			mux.HandleFunc("/settle", func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				mu.Lock()
				bodies = append(bodies, string(body))
				mu.Unlock()
				if r.Header.Get("Authorization") != "Bearer secret" || r.Method != "POST" {
					t.Errorf("request %s %v", r.Method, r.Header)
				}
				c.answer(w, r)
			})
			mux.HandleFunc("/elsewhere/", func(w http.ResponseWriter, r *http.Request) { elsewhere.Add(1) })
			server := httptest.NewUnstartedServer(mux)
			server.Config.ErrorLog = nil
			server.Start()
			t.Cleanup(server.Close)
			o, p, _ := paying(t, payment.V2)
			ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
			defer cancel()
			began := time.Now()
			s, err := client(t, server.URL).Settle(ctx, p, o, o.Amount)
			if waited := time.Since(began); waited > 10*time.Second {
				t.Errorf("it took %s", waited)
			}
			var bad *payment.InvalidError
			var unavailable *payment.UnavailableError
			switch {
			case err == nil:
				if c.want != settled || s.Transaction != hash || s.Network != o.Network() || s.Amount.Cmp(o.Amount) != 0 {
					t.Errorf("settled as %+v", s)
				}
			case errors.As(err, &bad):
				if c.want != invalid {
					t.Errorf("refused: %v", err)
				}
			case errors.As(err, &unavailable):
				if c.want != open || !unavailable.Pending {
					t.Errorf("got %v, pending: %v", err, unavailable.Pending)
				}
				if strings.HasPrefix(name, "pending") && unavailable.Transaction != hash {
					t.Errorf("it has lost the transaction: %+v", unavailable)
				}
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("got %v", err)
				}
			default:
				t.Errorf("got %T: %v", err, err)
			}
			if elsewhere.Load() != 0 {
				t.Error("the payment went elsewhere")
			}
			mu.Lock()
			defer mu.Unlock()
			if n := len(bodies); n > 1 && (!strings.HasPrefix(name, "pending") || bodies[0] != bodies[n-1]) {
				t.Errorf("%d requests, the first %q, the last %q", n, bodies[0], bodies[n-1])
			}
		})
	}
}

func TestVerifyTakesOnlyAClearWord(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status     int
		body, want string
	}{
		{200, `{"isValid":true,"payer":"0x0000000000000000000000000000000000000001"}`, "valid"},
		{200, `{"isValid":false,"invalidReason":"insufficient_funds"}`, "invalid"},
		{412, `{"isValid":false,"invalidReason":"insufficient_funds"}`, "invalid"},
		{200, `{"isValid":"yes"}`, "unknown"},
		{200, `{}`, "unknown"},
		{500, `{"error":"oops"}`, "unknown"},
		{401, ``, "unknown"},
		{429, `slow down`, "unknown"},
		{302, ``, "unknown"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/verify2")
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		}))
		o, p, _ := paying(t, payment.V2)
		v, err := client(t, server.URL).Verify(soon(t), p, o)
		server.Close()
		var invalid *payment.InvalidError
		var unavailable *payment.UnavailableError
		got := map[bool]string{true: "valid"}[err == nil && v != nil]
		switch {
		case errors.As(err, &invalid):
			got = "invalid"
		case errors.As(err, &unavailable) && !unavailable.Pending:
			got = "unknown"
		}
		if got != c.want {
			t.Errorf("%d %s: %s, %v", c.status, c.body, got, err)
		}
	}
}

func TestFacilitatorThatCannotBeReachedWasAskedNothing(t *testing.T) {
	t.Parallel()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	urls := map[string]string{
		"nobody listens": "http://" + closed.Addr().String(),
		"no such host":   "http://facilitator.invalid",
		"no TLS":         "https" + strings.TrimPrefix(plain.URL, "http"),
	}
	closed.Close()
	for name, url := range urls {
		o, p, _ := paying(t, payment.V2)
		_, err := client(t, url).Settle(soon(t), p, o, o.Amount)
		if u := wantUnavailable(t, err, false); strings.Contains(u.Error(), "/settle") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSupportedIsKeptForAWhile(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		(&facilitator.Handler{Facilitator: &facilitatortest.Fake{}}).ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	var clock atomic.Int64
	c, err := facilitator.NewClient(facilitator.ClientConfig{URL: server.URL, Now: func() time.Time { return time.Unix(now+clock.Load(), 0) }})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int64{1, 1, 2} {
		if s, err := c.Supported(soon(t)); err != nil || len(s.Kinds) != 2 {
			t.Fatalf("%+v, %v", s, err)
		}
		if requests.Load() != want {
			t.Errorf("%d requests, want %d", requests.Load(), want)
		}
		if want == 1 && requests.Load() == 1 {
			clock.Add(150)
		}
	}
}

func TestURLOfAFacilitatorIsChecked(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "facilitator.example.com", "ftp://x", "https://", "https://user:pw@x", "https://x?a=b", "https://x#y", ":"} {
		if _, err := facilitator.NewClient(facilitator.ClientConfig{URL: url}); err == nil {
			t.Errorf("%q was accepted", url)
		} else if url != "" && strings.Contains(err.Error(), "pw") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

func TestClientForwardsThePaymentAsThePayerWroteIt(t *testing.T) {
	t.Parallel()
	o, p, _ := paying(t, payment.V2)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body map[string]json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		if string(body["paymentPayload"]) != string(p.Raw()) || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("forwarded %s", body["paymentPayload"])
		}
		fmt.Fprint(w, `{"isValid":true}`)
	}))
	t.Cleanup(server.Close)
	if _, err := client(t, server.URL+"//").Verify(soon(t), p, o); err != nil {
		t.Error(err)
	}
}
