package till_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A metered is a shop that charges by upto, at most 1000 atomic units, for
// what it has delivered.
type metered struct {
	*shop
	fake *facilitatortest.Fake
	poor atomic.Bool // the payer cannot pay
}

// perEvent charges 10 for an answer, 100 for each event, or by what the
// stream says at its end.
func perEvent(t testing.TB) *meter.Tariff {
	t.Helper()
	path, err := meter.ParsePath("usage.total_tokens")
	if err != nil {
		t.Fatal(err)
	}
	return &meter.Tariff{Base: big.NewRat(10, 1), Rates: []meter.Rate{{
		Price: big.NewRat(1, 1), Of: meter.Field, Path: path, Estimate: &meter.Estimate{Number: big.NewRat(100, 1), Per: meter.Events},
	}}}
}

// perByte charges one for each byte.
func perByte() *meter.Tariff {
	return &meter.Tariff{Rates: []meter.Rate{{Price: big.NewRat(1, 1), Of: meter.Bytes}}}
}

// openMetered opens such a shop.
func openMetered(t testing.TB, mode till.Mode, tariff *meter.Tariff) *metered {
	t.Helper()
	if err := tariff.Check(); err != nil {
		t.Fatal(err)
	}
	m := &metered{}
	m.fake = &facilitatortest.Fake{Settling: func(context.Context) error {
		if m.poor.Load() {
			return payment.Invalid(payment.EVMInsufficientBalance, "poor")
		}
		return nil
	}}
	b := &bank{
		facilitator: func(l *ledger.Ledger) payment.Facilitator {
			return &facilitator.Journal{Facilitator: m.fake, Ledger: l}
		},
		transfers: m.fake.Transfers, payer: devchain.DeriveAccount("payer"), seller: devchain.DeriveAccount("seller").Address,
	}
	m.shop = open(t, b, mode)
	offers := []payment.Offer{facilitatortest.UptoOffer(t, 1000, b.seller)}
	prepared, err := (&payment.Challenge{Offers: offers}).Prepare()
	if err != nil {
		t.Fatal(err)
	}
	m.offers(func(r *till.Route) {
		r.Challenge, r.Offers = prepared, offers
		r.Tariffs = map[payment.Token]*meter.Tariff{facilitatortest.USDC(t): tariff}
		r.Exposure = map[payment.Token]ledger.Caps{facilitatortest.USDC(t): {Total: big.NewInt(3000), PerPayer: big.NewInt(3000)}}
	})
	m.begin()
	return m
}

// A note is a permit in the form of a request header.
type note struct {
	*purse
	permit *evm.SignedPermit
}

func (n *note) key() payment.Key { return n.permit.Key(84532) }

// permit signs the maximum.
func (m *metered) permit() *note {
	m.t.Helper()
	permit := facilitatortest.Permit(m.t, m.bank.payer.Key, &m.route.Offers[0], time.Now().Unix(), 600)
	name, value := facilitatortest.PermitHeader(m.t, &m.route.Offers[0], permit)
	return &note{&purse{name: name, value: value}, permit}
}

func (m *metered) stored(n *note) ledger.Record {
	m.t.Helper()
	m.mu.Lock()
	l := m.ledger
	m.mu.Unlock()
	r, err := l.Get(m.t.Context(), n.key())
	if err != nil {
		m.t.Fatal(err)
	}
	return r
}

// await waits until a payment is in some state.
func (m *metered) await(n *note, state ledger.State) ledger.Record {
	m.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		r := m.stored(n)
		if r.State == state {
			return r
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("the payment is %s, want %s", r.State, state)
		}
	}
}

// wantCharged checks that a payment is charged so much, was never to be
// charged anything else, and counts no longer against the caps.
func (m *metered) wantCharged(n *note, units string) {
	m.t.Helper()
	r := m.await(n, ledger.Settled)
	if r.Charge != units || r.Delivery != ledger.Delivered {
		m.t.Errorf("charged %s and %s, want %s", r.Charge, r.Delivery, units)
	}
	if asked := m.fake.Charges(n.key()); len(asked) != 1 || asked[0] != units {
		m.t.Errorf("the facilitator was asked for %v, want %s", asked, units)
	}
	m.awaitExposed(0)
}

// wantUncharged checks that a payment is released.
func (m *metered) wantUncharged(n *note) {
	m.t.Helper()
	r := m.await(n, ledger.Released)
	if r.Delivery != ledger.Undelivered || r.Exposed != nil || m.fake.Calls() != 0 {
		m.t.Errorf("%s, exposed %v, %d calls", r.Delivery, r.Exposed, m.fake.Calls())
	}
	m.awaitExposed(0)
}

// receiptOf reads a settlement in headers or trailers.
func receiptOf(t testing.TB, h http.Header) (success, amount, reason string) {
	t.Helper()
	var s struct {
		Success             bool
		Amount, ErrorReason string
	}
	doc, err := base64.StdEncoding.DecodeString(h.Get(payment.HeaderResponse))
	if err != nil || json.Unmarshal(doc, &s) != nil || len(h.Values(payment.HeaderResponse)) != 1 {
		t.Errorf("%v has no settlement: %q, %v", h, doc, err)
	}
	return fmt.Sprint(s.Success), s.Amount, s.ErrorReason
}

// wantReceipt checks what headers or trailers say that was charged.
func wantReceipt(t testing.TB, h http.Header, units string) {
	t.Helper()
	if success, amount, reason := receiptOf(t, h); success != "true" || amount != units {
		t.Errorf("the receipt says %s, %s, %s; want %s", success, amount, reason, units)
	}
}

func wantSettling(t testing.TB, h http.Header) {
	t.Helper()
	if success, _, reason := receiptOf(t, h); success != "false" || reason != string(payment.SettlementPending) {
		t.Errorf("the header says %s, %s", success, reason)
	}
}

// events sends n events, and flushes each.
func events(w http.ResponseWriter, n int) error {
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range n {
		if _, err := fmt.Fprintf(w, "data: {\"i\":%d}\n\n", i); err != nil {
			return err
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return err
		}
	}
	return nil
}

func TestStreamsAreChargedByWhatTheySayAtTheirEnd(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	m.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		if r.Header.Get("Accept-Encoding") != "" || r.Header.Get("X-402-Amount") != "1000" {
			t.Errorf("the upstream got %v", r.Header)
		}
		w.Header().Set("Content-Length", "7") // which would leave no room for trailers
		w.Header().Set("Trailer", "X-Own, PAYMENT-RESPONSE")
		if err := events(w, 3); err != nil {
			return err
		}
		fmt.Fprint(w, "data: {\"usage\":{\"total_tokens\":42}}\n\ndata: [DONE]\n\n")
		w.Header().Set("X-Own", "kept")
		return nil
	})
	n := m.permit()
	a := m.ask("POST", "/", "a prompt", n.purse)
	if a.status != 200 || !strings.HasSuffix(a.body, "[DONE]\n\n") || a.trailer.Get("X-Own") != "kept" {
		t.Errorf("%d %q %v", a.status, a.body, a.trailer)
	}
	wantSettling(t, a.header)
	wantReceipt(t, a.trailer, "52")
	m.wantPrivate(a)
	m.wantCharged(n, "52")
	if s := m.sale(); !s.Paid || s.OnCredit || s.Amount.Units() != "52" || s.Transaction == "" || s.Reason != "" {
		t.Errorf("sale %+v", s)
	}

	again := m.ask("POST", "/", "a prompt", n.purse)
	if again.status != http.StatusGone {
		t.Errorf("again: %d %s", again.status, again.body)
	}
	wantReceipt(t, again.header, "52")
	if other := m.ask("POST", "/", "another prompt", n.purse); other.status != http.StatusConflict {
		t.Errorf("another request: %d", other.status)
	}
	m.want(1, 1)

	p, err := payment.FromHeader([]string{n.value}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if receipt, err := m.till.Receipt(t.Context(), p, []payment.Token{facilitatortest.USDC(t)}); err != nil || receipt.Status != "settled" || receipt.Amount != "52" {
		t.Errorf("receipt %+v, %v", receipt, err)
	}
}

// An event reaches the payer before the upstream goes on. Meanwhile the same
// payment is told to wait, and a checkpoint says what it has cost so far.
func TestMeteredStreamsAreNotHeldBack(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	m.offers(func(r *till.Route) { r.Deadline = 100 * time.Millisecond })
	next := make(chan struct{})
	m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		for range 3 {
			if err := events(w, 1); err != nil {
				return err
			}
			<-next
		}
		return nil
	})
	n := m.permit()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(n.name, n.value)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for i := range 3 {
		for range 2 {
			if _, err := lines.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if i == 1 {
			a := m.ask("GET", "/", "", n.purse)
			m.wantPending(a, payment.V2)
			if got := m.exposed(); got != 1000 {
				t.Errorf("%d are exposed", got)
			}
			for deadline := time.Now().Add(20 * time.Second); m.stored(n).Charge != "210"; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("the checkpoint is %s", m.stored(n).Charge)
				}
			}
		}
		next <- struct{}{}
	}
	if _, err := io.ReadAll(lines); err != nil {
		t.Error(err)
	}
	wantReceipt(t, resp.Trailer, "310")
	m.wantCharged(n, "310")
	m.want(1, 1)
}

// A stream of events ends with its receipt when the maximum is used up.
func TestEventStreamsAreCutWhenTheMaximumIsSpent(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	ended := make(chan error, 1)
	m.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		err := events(w, 100)
		if r.Context().Err() == nil {
			t.Error("the upstream is not told to end")
		}
		ended <- err
		panic(http.ErrAbortHandler) // as Caddy's reverse proxy does
	})
	n := m.permit()
	a := m.ask("GET", "/", "", n.purse)
	if got := strings.Count(a.body, "\n\n"); got != 10 { // 10 + 9 times 100 is below 1000, the tenth event uses it up
		t.Errorf("%d events came", got)
	}
	if err := <-ended; err == nil {
		t.Error("the upstream could write on")
	}
	wantReceipt(t, a.trailer, "1000")
	m.wantCharged(n, "1000")
	m.want(1, 1)
}

// Nobody must take a part of anything else for the whole.
func TestOtherAnswersAreAbortedWhenTheMaximumIsSpent(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perByte())
	m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		for range 300 {
			if _, err := w.Write(make([]byte, 10)); err != nil {
				return err
			}
		}
		return nil
	})
	n := m.permit()
	if a, err := m.try(t.Context(), "GET", "/", "", n.purse); err == nil {
		t.Errorf("%d with %d bytes came, as if they were all", a.status, len(a.body))
	}
	m.wantCharged(n, "1000")
	again := m.ask("GET", "/", "", n.purse)
	if again.status != http.StatusGone {
		t.Errorf("again: %d", again.status)
	}
	wantReceipt(t, again.header, "1000")
	m.want(1, 1)
}

// The last bytes may use up the maximum: what is complete is not cut.
func TestAnswersThatEndWithTheMaximumAreWhole(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1000, 1200} {
		m := openMetered(t, till.Metered, perByte())
		m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			_, err := w.Write(make([]byte, size))
			return err
		})
		n := m.permit()
		if a := m.ask("GET", "/", "", n.purse); len(a.body) != size {
			t.Errorf("%d bytes came", len(a.body))
		}
		m.wantCharged(n, "1000")
	}
}

func TestWhoGoesAwayPaysForWhatCame(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	read := make(chan struct{})
	m.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		if err := events(w, 2); err != nil {
			return err
		}
		<-read
		<-r.Context().Done()
		return events(w, 5) // nobody gets these
	})
	n := m.permit()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(n.name, n.value)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 2*len("data: {\"i\":0}\n\n"))); err != nil {
		t.Fatal(err)
	}
	close(read)
	cancel()
	resp.Body.Close()
	m.wantCharged(n, "210")
	m.want(1, 1)
}

func TestUpstreamsThatBreakOffAreChargedForWhatCame(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func() error{
		"abort": func() error { panic(http.ErrAbortHandler) },
		"panic": func() error { panic("a bug") },
	} {
		t.Run(name, func(t *testing.T) {
			m := openMetered(t, till.Metered, perEvent(t))
			m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
				if err := events(w, 3); err != nil {
					return err
				}
				return end()
			})
			n := m.permit()
			if a, err := m.try(t.Context(), "GET", "/", "", n.purse); err == nil {
				t.Errorf("%d %q came, as if it were all", a.status, a.body)
			}
			m.wantCharged(n, "310")
		})
	}
}

func TestFailingUpstreamsAreNotMetered(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		upstream till.Upstream
		status   int // 0 where the connection is aborted
	}{
		"status": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			w.Header().Set("Settlement-Overrides", "1000")
			w.Header().Set("Payment-Response", "forged")
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprint(w, strings.Repeat("data: no\n\n", 1000))
			return nil
		}, http.StatusTooManyRequests},
		"error": {func(http.ResponseWriter, *http.Request, *till.Sale) error { return errUpstream }, http.StatusInternalServerError},
		"abort": {func(http.ResponseWriter, *http.Request, *till.Sale) error { panic(http.ErrAbortHandler) }, 0},
		"panic": {func(http.ResponseWriter, *http.Request, *till.Sale) error { panic("a bug") }, 0},
		"tunnel": {func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			w.WriteHeader(http.StatusSwitchingProtocols)
			_, err := w.Write([]byte("unmetered"))
			return err
		}, http.StatusNotImplemented},
	} {
		t.Run(name, func(t *testing.T) {
			m := openMetered(t, till.Metered, perEvent(t))
			m.sells(c.upstream)
			n := m.permit()
			a, err := m.try(t.Context(), "GET", "/", "", n.purse)
			if (err != nil) != (c.status == 0) || err == nil && (a.status != c.status || a.header.Get("Settlement-Overrides") != "" || a.header.Get(payment.HeaderResponse) != "") {
				t.Errorf("%+v, %v", a, err)
			}
			m.wantUncharged(n)

			m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error { return events(w, 1) })
			wantReceipt(t, m.ask("GET", "/", "", n.purse).trailer, "110") // the same payment
			m.wantCharged(n, "110")
		})
	}
}

func TestRequestsToSwitchProtocolsAreNotMetered(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	if a := m.ask("GET", "/", "", m.permit().purse, "Connection", "Upgrade", "Upgrade", "websocket"); a.status != http.StatusNotImplemented {
		t.Errorf("%d %s", a.status, a.body)
	}
	m.want(0, 0)
}

// What the caps do not cover is refused before the upstream runs, and can be
// paid with the same payment later.
func TestMeteredRequestsAboveTheCapsAreRefused(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	m.offers(func(r *till.Route) {
		r.Exposure = map[payment.Token]ledger.Caps{facilitatortest.USDC(t): {Total: big.NewInt(1999)}}
	})
	entered, release := make(chan struct{}), make(chan struct{})
	m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		entered <- struct{}{}
		<-release
		return events(w, 1)
	})
	first, second := m.permit(), m.permit()
	answered := make(chan *reply)
	go func() { answered <- m.ask("POST", "/", "", first.purse) }() // ends with the shop
	<-entered
	a := m.ask("POST", "/", "", second.purse)
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "not been charged") || a.header.Get(payment.HeaderResponse) != "" {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	m.want(0, 1)
	go func() { release <- struct{}{} }() // taken by the first request
	wantReceipt(t, (<-answered).trailer, "110")
	m.awaitExposed(0)
	m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error { return events(w, 2) })
	wantReceipt(t, m.ask("POST", "/", "", second.purse).trailer, "210")
	m.want(2, 2)
}

// A route without caps, and a till that does not collect, hand nothing over.
func TestWithoutCapsNothingIsMetered(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	m.till.Stop()
	if a := m.ask("GET", "/", "", m.permit().purse); a.status != http.StatusServiceUnavailable {
		t.Errorf("without background: %d", a.status)
	}
	m.begin()
	m.offers(func(r *till.Route) { r.Exposure = nil })
	if a := m.ask("GET", "/", "", m.permit().purse); a.status != http.StatusServiceUnavailable {
		t.Errorf("without caps: %d", a.status)
	}
	m.want(0, 0)
}

// What a wallet with code accepts can change: its answers wait for the money.
func TestStreamsForContractsAreHeld(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	m.fake.Contract = true
	m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: 1\n\ndata: 2\n\n")
		return nil
	})
	n := m.permit()
	for range 2 { // the second time it is the stored answer
		a := m.ask("GET", "/", "", n.purse)
		if a.status != 200 || strings.Count(a.body, "\n\n") != 2 {
			t.Errorf("%d %q", a.status, a.body)
		}
		wantReceipt(t, a.header, "210")
	}
	m.wantCharged(n, "210")
	m.want(1, 1)
}

// An answer that costs nothing uses its payment up, or it could be had again
// and again.
func TestFreeAnswersUseTheirPaymentsUp(t *testing.T) {
	t.Parallel()
	for _, mode := range []till.Mode{till.Held, till.Metered} {
		t.Run(string(mode), func(t *testing.T) {
			m := openMetered(t, mode, perByte())
			m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
				w.WriteHeader(http.StatusOK)
				return nil
			})
			n := m.permit()
			if a := m.ask("GET", "/", "", n.purse); a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
			m.wantCharged(n, "0")
			a := m.ask("GET", "/", "", n.purse)
			if want := map[till.Mode]int{till.Held: 200, till.Metered: 410}[mode]; a.status != want {
				t.Errorf("again: %d", a.status)
			}
			wantReceipt(t, a.header, "0")
			m.want(1, 1)
		})
	}
}

// A settlement that fails is tried again, with the same charge, until the
// permit has ended; then it is a loss, and its payer is not trusted again.
func TestMeteredLossesAreWrittenOff(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	m.offers(func(r *till.Route) { r.Deadline = 50 * time.Millisecond })
	m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error { return events(w, 2) })
	m.poor.Store(true)
	late, lost := m.permit(), m.permit()
	a := m.ask("GET", "/", "", late.purse)
	wantSettling(t, a.trailer)
	m.wantPending(m.ask("GET", "/", "", late.purse), payment.V2)
	if got := m.exposed(); got != 1000 {
		t.Errorf("%d are exposed", got)
	}
	m.poor.Store(false)
	m.wantCharged(late, "210")

	m.poor.Store(true)
	wantSettling(t, m.ask("GET", "/", "", lost.purse).trailer)
	m.clock.Add(700)
	r := m.await(lost, ledger.WrittenOff)
	if r.Charge != "210" {
		t.Errorf("written off with %s", r.Charge)
	}
	m.awaitExposed(0)
	m.poor.Store(false)
	if a := m.ask("GET", "/", "", lost.purse); a.status != http.StatusPaymentRequired {
		t.Errorf("the lost payment again: %d", a.status)
	}
	m.clock.Store(0)
	if a := m.ask("GET", "/", "", m.permit().purse); a.status != http.StatusServiceUnavailable {
		t.Errorf("trusted again: %d", a.status)
	}
	m.want(1, 2)
}

// An upstream that says what its answer costs is believed up to the maximum.
// What cannot be read is never charged as the maximum.
func TestUpstreamsSayWhatTheirAnswersCost(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		said  []string
		units string
	}{
		{"units", []string{"70"}, "70"},
		{"percent", []string{"33.33%"}, "333"},
		{"dollars", []string{"$0.0002"}, "200"},
		{"reference", []string{`{"amount":"5"}`}, "5"},
		{"nothing said", nil, "110"},
		{"too much", []string{"1001"}, "110"},
		{"unreadable", []string{"lots"}, "110"},
		{"twice", []string{"1", "2"}, "110"},
	} {
		for _, mode := range []till.Mode{till.Held, till.Metered} {
			for _, trailer := range []bool{false, true} {
				t.Run(fmt.Sprint(c.name, mode, trailer), func(t *testing.T) {
					t.Parallel()
					tariff := perEvent(t)
					tariff.Header = "X-Charge"
					m := openMetered(t, mode, tariff)
					m.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
						if r.Header.Get("X-Charge") != "" || r.Header.Get("X_Charge") != "" {
							t.Errorf("the payer has a say: %v", r.Header)
						}
						h := w.Header()
						h.Set("Content-Type", "text/event-stream")
						if trailer {
							h.Set("Trailer", "X-Charge")
						} else if c.said != nil {
							h["X-Charge"] = c.said
						}
						fmt.Fprint(w, "data: 1\n\n")
						if trailer && c.said != nil {
							h["X-Charge"] = c.said
						}
						return nil
					})
					n := m.permit()
					a := m.ask("GET", "/", "", n.purse, "X-Charge", "0", "X_charge", "0")
					if a.status != 200 || a.header.Get("X-Charge") != "" || a.trailer.Get("X-Charge") != "" {
						t.Errorf("%d %v %v", a.status, a.header, a.trailer)
					}
					receipt := a.header
					if mode == till.Metered {
						receipt = a.trailer
					}
					wantReceipt(t, receipt, c.units)
					m.wantCharged(n, c.units)
				})
			}
		}
	}
}

// With settle held the charge is known, and settled, before the answer goes
// out.
func TestHeldAnswersAreChargedByWhatIsInThem(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Held, perEvent(t))
	m.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/bad" {
			w.WriteHeader(http.StatusBadRequest)
		}
		fmt.Fprint(w, `{"answer":"…","usage":{"total_tokens":`)
		fmt.Fprint(w, `64}}`)
		return nil
	})
	n := m.permit()
	if a := m.ask("GET", "/bad", "", n.purse); a.status != http.StatusBadRequest {
		t.Errorf("%d", a.status)
	}
	m.wantUncharged(n)
	for range 2 {
		a := m.ask("GET", "/", "", n.purse)
		if a.status != 200 || !strings.HasSuffix(a.body, "64}}") {
			t.Errorf("%d %q", a.status, a.body)
		}
		wantReceipt(t, a.header, "74")
	}
	m.wantCharged(n, "74")
	m.want(1, 2)
}

// A held answer that is not paid is not released, and what it costs next time
// is decided anew.
func TestHeldAnswersThatAreNotPaidAreNotReleased(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Held, perByte())
	m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		fmt.Fprint(w, "secret")
		return nil
	})
	m.poor.Store(true)
	n := m.permit()
	if a := m.ask("GET", "/", "", n.purse); a.status != http.StatusPaymentRequired || strings.Contains(a.body, "secret") {
		t.Errorf("%d %q", a.status, a.body)
	}
	m.poor.Store(false)
	a := m.ask("GET", "/", "", n.purse)
	wantReceipt(t, a.header, "6")
	m.wantCharged(n, "6")
}

// Exact offers of a metered route cost what they say.
func TestExactOffersOfMeteredRoutesAreSettledFirst(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBank(t), till.Metered)
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask("GET", "/", "", p), p, 200, "hello GET /")
	s.want(1, 1)
}

// What is large goes through in pieces, and HEAD has no body to charge for.
func TestWhatIsNotSentIsNotCharged(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, &meter.Tariff{Base: big.NewRat(3, 1), Rates: []meter.Rate{{Price: big.NewRat(1, 1000), Of: meter.Bytes}}})
	m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		_, err := w.Write(make([]byte, 500_000))
		return err
	})
	n := m.permit()
	if a := m.ask("GET", "/", "", n.purse); len(a.body) != 500_000 {
		t.Errorf("%d bytes came", len(a.body))
	}
	m.wantCharged(n, "503")
	n = m.permit()
	if a := m.ask("HEAD", "/", "", n.purse); a.status != 200 {
		t.Errorf("%d", a.status)
	}
	m.wantCharged(n, "3")
}

// A process that finds the payment of another one's stream leaves it alone for
// as long as that may be alive.
func TestOtherProcessesLeaveStreamsAlone(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	m.offers(func(r *till.Route) { r.Deadline = 100 * time.Millisecond })
	m.till.Stop()
	use := m.processes(2, nil)
	use(0)
	streaming, end := make(chan struct{}), make(chan struct{})
	m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		if err := events(w, 1); err != nil {
			return err
		}
		close(streaming)
		<-end
		return events(w, 1)
	})
	n := m.permit()
	answered := make(chan error)
	go func() { // ends with the stream
		_, err := m.try(t.Context(), "GET", "/", "", n.purse)
		answered <- err
	}()
	<-streaming
	use(1)
	for range 3 {
		if err := m.till.Tend(t.Context()); err != nil {
			t.Error(err)
		}
		m.wantPending(m.ask("GET", "/", "", n.purse), payment.V2)
	}
	if r := m.stored(n); r.State != ledger.Executing || m.fake.Calls() != 0 {
		t.Errorf("the payment is %s, after %d calls", r.State, m.fake.Calls())
	}
	m.clock.Add(3600) // its lease has passed: it counts as dead
	if err := m.till.Tend(t.Context()); err != nil {
		t.Error(err)
	}
	r := m.await(n, ledger.Settled)
	close(end)
	if err := <-answered; err == nil {
		t.Error("a stream that somebody else has settled goes on to its end")
	}
	m.wantCharged(n, r.Charge)
	if r.Charge != "0" && r.Charge != "110" {
		t.Errorf("charged %s", r.Charge)
	}
	m.want(1, 1)
}

// Whoever cancels a permit that was given back gets nothing for it.
func TestCancelledPermitsBuyNothing(t *testing.T) {
	t.Parallel()
	for _, mode := range []till.Mode{till.Held, till.Metered} {
		t.Run(string(mode), func(t *testing.T) {
			m := openMetered(t, mode, perByte())
			m.sells(fails)
			n := m.permit()
			_ = m.ask("GET", "/", "", n.purse)
			m.wantUncharged(n)
			if got := m.stored(n).Charge; got != "1000" {
				t.Errorf("what was given back is charged %s", got)
			}
			m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
				fmt.Fprint(w, "goods")
				return nil
			})
			m.fake.Verifying = func(context.Context) error { return payment.Invalid(payment.EVMNonceUsed, "cancelled") }
			m.poor.Store(true) // as the chain has it
			if a := m.ask("GET", "/", "", n.purse); a.status != http.StatusPaymentRequired && a.status != http.StatusServiceUnavailable || strings.Contains(a.body, "goods") {
				t.Errorf("%d %q", a.status, a.body)
			}
			m.want(0, 1)
		})
	}
}

// A node that lags behind, or a reorg, can have a nonce look used that is not.
// What was given back is not charged for that, and least of all its maximum:
// nobody knows yet what the answer costs.
func TestPermitsThatOnlySeemUsedAreNotChargedTheirMaximum(t *testing.T) {
	t.Parallel()
	for _, mode := range []till.Mode{till.Held, till.Metered} {
		t.Run(string(mode), func(t *testing.T) {
			m := openMetered(t, mode, perByte())
			m.sells(fails)
			n := m.permit()
			_ = m.ask("GET", "/", "", n.purse)
			m.wantUncharged(n)
			m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
				fmt.Fprint(w, "goods")
				return nil
			})
			m.fake.Verifying = func(context.Context) error { return payment.Invalid(payment.Permit2InvalidNonce, "as it seems") }
			if a := m.ask("GET", "/", "", n.purse); a.status != http.StatusPaymentRequired {
				t.Errorf("%d %q", a.status, a.body)
			}
			m.want(0, 1)
			m.fake.Verifying = nil
			_ = m.ask("GET", "/", "", n.purse)
			m.wantCharged(n, "5")
		})
	}
}

// The same where the answer that could not be settled had cost nothing.
func TestCancelledPermitsOfFreeAnswersBuyNothing(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Held, perByte())
	m.sells(func(http.ResponseWriter, *http.Request, *till.Sale) error { return nil })
	n := m.permit()
	m.poor.Store(true)
	_ = m.ask("GET", "/", "", n.purse)
	if got := m.await(n, ledger.Released).Charge; got != "0" {
		t.Fatalf("charged %s", got)
	}
	m.poor.Store(false)
	m.fake.Verifying = func(context.Context) error { return payment.Invalid(payment.EVMNonceUsed, "cancelled") }
	if a := m.ask("GET", "/", "", n.purse); a.status != http.StatusPaymentRequired {
		t.Errorf("%d %q", a.status, a.body)
	}
	m.want(0, 1)
}

// A payer chooses when its permit ends. What is streamed until then could not
// be settled any more.
func TestStreamsEndBeforeTheirPaymentDoes(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	m.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		if err := events(w, 1); err != nil {
			return err
		}
		m.clock.Store(590) // of the 600 seconds that the permit is good
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Second):
			t.Error("the upstream is not told to end")
		}
		panic(http.ErrAbortHandler) // as Caddy's reverse proxy does
	})
	n := m.permit()
	a := m.ask("GET", "/", "", n.purse)
	wantReceipt(t, a.trailer, "110")
	m.wantCharged(n, "110")
	m.want(1, 1)
}

func TestShortLivedPaymentsBuyNoStreams(t *testing.T) {
	t.Parallel()
	m := openMetered(t, till.Metered, perEvent(t))
	m.clock.Store(571)
	n := m.permit()
	a := m.ask("GET", "/", "", n.purse)
	if a.status != http.StatusPaymentRequired || m.stored(n).State != ledger.Released {
		t.Errorf("%d %s, the payment is %s", a.status, a.body, m.stored(n).State)
	}
	m.want(0, 0)
}

// What the server still holds of an answer that is not charged must not leave
// when the request ends.
func TestAStreamThatIsGivenUpBeforeItBeganLeavesNothingWithThePayer(t *testing.T) {
	t.Parallel()
	for name, rest := range map[string]func(w http.ResponseWriter) error{
		"says so":           func(w http.ResponseWriter) error { return events(w, 1) },
		"ignored the error": func(w http.ResponseWriter) error { _ = events(w, 1); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := openMetered(t, till.Metered, perEvent(t))
			m.till.Stop()
			shared := ledger.NewShared(m.store, "this", m.till.Now)
			if err := shared.Beat(t.Context()); err != nil {
				t.Fatal(err)
			}
			m.till.Ledger = shared
			m.begin()
			m.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
				if _, err := io.WriteString(w, "data: for nothing\n\n"); err != nil {
					return err
				}
				m.clock.Add(10) // in which this process could not say that it is alive
				return rest(w)
			})
			n := m.permit()
			if a, err := m.try(t.Context(), "GET", "/", "", n.purse); err == nil {
				t.Errorf("the payer has %q, and its payment", a.body)
			}
			m.wantUncharged(n)
		})
	}
}
