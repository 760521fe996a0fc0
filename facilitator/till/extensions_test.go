package till_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/extension"
)

// extend gives the shop's route extensions, of which the fixed ones are in
// its challenge.
func (s *shop) extend(x till.Extensions, fixed ...extension.Extension) {
	s.t.Helper()
	doc, err := extension.Encode(fixed...)
	if err != nil {
		s.t.Fatal(err)
	}
	if x.Advertised, err = extension.Advertise(doc); err != nil {
		s.t.Fatal(err)
	}
	s.offers(func(r *till.Route) {
		prepared, err := (&payment.Challenge{Offers: r.Offers, Extensions: doc}).Prepare()
		if err != nil {
			s.t.Fatal(err)
		}
		r.Challenge, r.Extensions = prepared, x
	})
}

// saying signs a payment that says something in its extensions.
func (s *shop) saying(extensions string) *purse {
	s.t.Helper()
	return s.resaying(s.authorize(payment.V2), extensions)
}

// resaying is the same payment with other extensions.
func (s *shop) resaying(p *purse, extensions string) *purse {
	s.t.Helper()
	c := s.challenged("/x")
	draft := c.Pay(&c.Offers[0], p.transfer.Encode())
	draft.Extensions = json.RawMessage(extensions)
	name, value := draft.Header()
	return &purse{p.transfer, name, value}
}

// challenged returns what the shop asks for.
func (s *shop) challenged(path string, header ...string) *payment.Received {
	s.t.Helper()
	a := s.ask(http.MethodGet, path, "", nil, header...)
	c, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired))
	if err != nil || a.status != http.StatusPaymentRequired {
		s.t.Fatalf("%d %v", a.status, err)
	}
	return c
}

func TestAChangedEchoIsRefused(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.extend(till.Extensions{Identifier: true}, extension.Identifier(false))
	a := s.ask(http.MethodGet, "/x", "", s.saying(`{"payment-identifier":{"info":{"required":true}}}`))
	c, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired))
	if a.status != http.StatusPaymentRequired || err != nil || c.Error != "extension_echo_mismatch" {
		t.Errorf("%d %+v %v", a.status, c, err)
	}
	s.want(0, 0)
	for _, good := range []string{`{"payment-identifier":{"info":{"required":false}}}`, `{"another":{"info":{}}}`, `{}`} {
		p := s.saying(good)
		s.wantPaid(s.ask(http.MethodGet, "/x", "", p), p, http.StatusOK, "hello GET /x")
	}
}

const firstID, secondID = "pay_7d5d747be160e280504c099d984bcfe0", "pay_00000000000000000000000000000000"

func identified(id string) string {
	return `{"payment-identifier":{"info":{"required":false,"id":"` + id + `"}}}`
}

func TestAnIdentifierIsChargedOnce(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		s.extend(till.Extensions{Identifier: true}, extension.Identifier(false))
		first := s.saying(identified(firstID))
		s.wantPaid(s.ask(http.MethodGet, "/x", "", first), first, http.StatusOK, "hello GET /x")

		// The same payment is what it was without an identifier.
		again := s.ask(http.MethodGet, "/x", "", s.resaying(first, identified(secondID)))
		if again.status != http.StatusOK && again.status != http.StatusGone {
			t.Errorf("the same payment: %d %s", again.status, again.body)
		}
		for range 2 {
			other := s.saying(identified(firstID))
			if a := s.ask(http.MethodGet, "/x", "", other); a.status != http.StatusConflict || !strings.Contains(a.body, "identifier") {
				t.Errorf("another payment: %d %s", a.status, a.body)
			}
			if _, err := s.record(other); err == nil {
				t.Error("the other payment was claimed")
			}
		}
		s.want(1, 1)
		third := s.saying(identified(secondID))
		s.wantPaid(s.ask(http.MethodGet, "/x", "", third), third, http.StatusOK, "hello GET /x")
		s.want(2, 2)
	})
}

func TestCopiesOfARetryAreChargedOnceByOneIdentifier(t *testing.T) {
	everyBank(t, till.Held, func(t *testing.T, s *shop) {
		s.extend(till.Extensions{Identifier: true}, extension.Identifier(true))
		purses := make([]*purse, 8)
		for i := range purses {
			purses[i] = s.saying(strings.Replace(identified(firstID), "false", "true", 1))
		}
		var paid, refused atomic.Int64
		together(len(purses), func(i int) {
			switch a := s.ask(http.MethodGet, "/x", "", purses[i]); a.status {
			case http.StatusOK:
				paid.Add(1)
			case http.StatusConflict:
				refused.Add(1)
			default:
				t.Errorf("%d %s", a.status, a.body)
			}
		})
		if paid.Load() != 1 || refused.Load() != 7 {
			t.Errorf("%d paid, %d were refused", paid.Load(), refused.Load())
		}
		s.want(1, 1)
	})
}

func TestAnIdentifierIsFreeAgainWhenNothingWasCharged(t *testing.T) {
	everyBank(t, till.Held, func(t *testing.T, s *shop) {
		s.extend(till.Extensions{Identifier: true}, extension.Identifier(false))
		s.sells(func(http.ResponseWriter, *http.Request, *till.Sale) error { return errUpstream })
		first := s.saying(identified(firstID))
		if a := s.ask(http.MethodGet, "/x", "", first); a.status != http.StatusInternalServerError {
			t.Fatalf("%d %s", a.status, a.body)
		}
		s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
			fmt.Fprint(w, "hello")
			return nil
		})
		second := s.saying(identified(firstID))
		s.wantPaid(s.ask(http.MethodGet, "/x", "", second), second, http.StatusOK, "hello")
		// The one that was released has lost the name, and cannot charge.
		if a := s.ask(http.MethodGet, "/x", "", first); a.status != http.StatusConflict {
			t.Errorf("the first payment again: %d %s", a.status, a.body)
		}
		s.want(1, 2)
	})
}

func TestIdentifiersThatCannotBeAreRefusedBeforeAnythingHappens(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.extend(till.Extensions{Identifier: true, IDRequired: true}, extension.Identifier(true))
	for name, extensions := range map[string]string{
		"none":    `{}`,
		"null":    `{"payment-identifier":{"info":{"required":true,"id":null}}}`,
		"short":   `{"payment-identifier":{"info":{"required":true,"id":"short"}}}`,
		"a blank": `{"payment-identifier":{"info":{"required":true,"id":"pay 7d5d747be160e280"}}}`,
	} {
		if a := s.ask(http.MethodGet, "/x", "", s.saying(extensions)); a.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if a := s.ask(http.MethodGet, "/x", "", s.authorize(payment.V1)); a.status != http.StatusBadRequest {
		t.Errorf("v1: %d %s", a.status, a.body)
	}
	s.want(0, 0)
}

func TestAnIdentifierOfSomebodyElseIsNoObstacle(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.extend(till.Extensions{Identifier: true}, extension.Identifier(false))
	first := s.saying(identified(firstID))
	s.wantPaid(s.ask(http.MethodGet, "/x", "", first), first, http.StatusOK, "hello GET /x")
	transfer := facilitatortest.Authorize(t, devchain.DeriveAccount("agent").Key, &s.route.Offers[0], time.Now().Unix(), 600)
	other := s.resaying(&purse{transfer: transfer}, identified(firstID))
	s.wantPaid(s.ask(http.MethodGet, "/x", "", other), other, http.StatusOK, "hello GET /x")
}

// signIn signs in to what the shop sells at a path.
func (s *shop) signIn(account devchain.Account, path string, header ...string) *extension.SignIn {
	s.t.Helper()
	c := s.challenged(path, header...)
	var asked struct {
		SIWX struct {
			Info            struct{ Domain, URI, Version, Nonce, Statement, IssuedAt, ExpirationTime string }
			SupportedChains []struct{ ChainID, Type string }
		} `json:"sign-in-with-x"`
	}
	if err := json.Unmarshal(c.Extensions, &asked); err != nil || len(asked.SIWX.SupportedChains) != 1 {
		s.t.Fatalf("%s: %v", c.Extensions, err)
	}
	i := asked.SIWX.Info
	in := &extension.SignIn{
		Domain: i.Domain, URI: i.URI, Statement: i.Statement, Version: i.Version, Chain: payment.Network(asked.SIWX.SupportedChains[0].ChainID),
		Address: account.Address.Hex(), Nonce: i.Nonce, Issued: i.IssuedAt, Expires: i.ExpirationTime,
	}
	digest := in.Digest()
	signature, err := crypto.Sign(digest[:], account.Key)
	if err != nil {
		s.t.Fatal(err)
	}
	signature[64] += 27
	in.Signature = signature
	return in
}

func TestWhoHasPaidComesBackBySigningIn(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		s.extend(till.Extensions{SignIn: time.Hour})
		come := func(in *extension.SignIn, path string) *reply {
			return s.ask(http.MethodGet, path, "", nil, extension.HeaderSignIn, in.Header())
		}
		refused := func(a *reply, reason string) {
			t.Helper()
			c, err := payment.DecodeRequired(a.header.Get(payment.HeaderRequired))
			if a.status != http.StatusPaymentRequired || err != nil || c.Error != reason {
				t.Errorf("%d %+v %v, want %s", a.status, c, err, reason)
			}
		}
		refused(come(s.signIn(s.bank.payer, "/x"), "/x"), "Payment required")
		p := s.authorize(payment.V2)
		s.wantPaid(s.ask(http.MethodGet, "/x", "", p), p, http.StatusOK, "hello GET /x")

		s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			w.Header().Set("Payment-Response", "forged")
			fmt.Fprint(w, r.Header.Get("X-402-Payer"), " ", r.Header.Get("X-402-Signed-In"), " ", r.Header.Get(extension.HeaderSignIn))
			return nil
		})
		in := s.signIn(s.bank.payer, "/x?again")
		a := come(in, "/x?again")
		if a.status != http.StatusOK || a.body != s.bank.payer.Address.Hex()+" true " || a.header.Get("Payment-Response") != "" {
			t.Errorf("%d %q %v", a.status, a.body, a.header)
		}
		s.wantPrivate(a)
		if sale := s.sale(); !sale.SignedIn || sale.Paid || sale.Payer != s.bank.payer.Address.Hex() {
			t.Errorf("sale %+v", sale)
		}
		s.want(1, 2)

		refused(come(in, "/x"), "invalid_siwx_nonce") // the same once more
		refused(come(s.signIn(s.bank.payer, "/y"), "/y"), "Payment required")
		refused(come(s.signIn(devchain.DeriveAccount("agent"), "/x"), "/x"), "Payment required")
		refused(s.ask(http.MethodPost, "/x", "", nil, extension.HeaderSignIn, s.signIn(s.bank.payer, "/x").Header()), "Payment required")
		other := s.signIn(s.bank.payer, "/x", "Host", "evil.example.com")
		refused(come(other, "/x"), "invalid_siwx_domain_mismatch")
		refused(s.ask(http.MethodGet, "/x", "", nil, "Host", "evil.example.com", extension.HeaderSignIn, other.Header()), "Payment required")
		if a := s.ask(http.MethodGet, "/x", "", nil, extension.HeaderSignIn, "%"); a.status != http.StatusBadRequest {
			t.Errorf("what cannot be read: %d %s", a.status, a.body)
		}

		late := s.signIn(s.bank.payer, "/x")
		s.clock.Add(6 * 60)
		refused(come(late, "/x"), "invalid_siwx_issued_at_too_old")
		s.clock.Add(3600)
		refused(come(s.signIn(s.bank.payer, "/x"), "/x"), "Payment required")
		s.want(1, 2)
	})
}

func TestOneOfManyCopiesOfASignInGetsIn(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.extend(till.Extensions{SignIn: time.Hour})
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask(http.MethodGet, "/x", "", p), p, http.StatusOK, "hello GET /x")
	in := s.signIn(s.bank.payer, "/x").Header()
	var got atomic.Int64
	together(20, func(int) {
		if s.ask(http.MethodGet, "/x", "", nil, extension.HeaderSignIn, in).status == http.StatusOK {
			got.Add(1)
		}
	})
	if got.Load() != 1 {
		t.Errorf("%d copies got in", got.Load())
	}
	s.want(1, 2)
}

func TestNobodyComesBackToWhatFailed(t *testing.T) {
	for _, mode := range []till.Mode{till.Held, till.First} {
		s := open(t, fakeBank(t), mode)
		s.extend(till.Extensions{SignIn: time.Hour})
		s.sells(func(http.ResponseWriter, *http.Request, *till.Sale) error { return errUpstream })
		s.ask(http.MethodGet, "/x", "", s.authorize(payment.V2))
		a := s.ask(http.MethodGet, "/x", "", nil, extension.HeaderSignIn, s.signIn(s.bank.payer, "/x").Header())
		if a.status != http.StatusPaymentRequired {
			t.Errorf("%s: %d %s", mode, a.status, a.body)
		}
	}
}

func TestWithoutTheExtensionASignInIsTheUpstreamsBusiness(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		fmt.Fprint(w, r.Header.Get(extension.HeaderSignIn))
		return nil
	})
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask(http.MethodGet, "/x", "", p, extension.HeaderSignIn, "anything"), p, http.StatusOK, "anything")
}

// A notary signs offers and receipts as an account.
type notary struct{ account devchain.Account }

func (n notary) Address() common.Address { return n.account.Address }

func (n notary) SignOffer(_ context.Context, o *extension.SignedOffer) ([]byte, error) {
	return n.sign(o.Digest())
}

func (n notary) SignReceipt(_ context.Context, r *extension.SignedReceipt) ([]byte, error) {
	return n.sign(r.Digest())
}

func (n notary) sign(digest common.Hash) ([]byte, error) {
	signature, err := crypto.Sign(digest[:], n.account.Key)
	if err == nil {
		signature[64] += 27
	}
	return signature, err
}

func TestOffersAndReceiptsAreSigned(t *testing.T) {
	everyMode(t, func(t *testing.T, s *shop) {
		seller := devchain.DeriveAccount("seller")
		s.extend(till.Extensions{Identifier: true, Signer: notary{seller}}, extension.Identifier(false))
		c := s.challenged("/x?y=1")
		offers, err := extension.ReadOffers(c.Extensions)
		if err != nil || len(offers) != 1 || offers[0].Signer != seller.Address || offers[0].Document != *extension.OfferFor(s.url+"/x?y=1", &s.route.Offers[0]) {
			t.Errorf("%+v, %v in %s", offers, err, c.Extensions)
		}
		// An honest payer echoes all of it.
		p := s.saying(string(c.Extensions))
		a := s.ask(http.MethodGet, "/x?y=1", "", p)
		s.wantPaid(a, p, http.StatusOK, "hello GET /x?y=1")
		m := a.settlement(t, payment.V2)
		r, err := extension.ReadReceipt(m["extensions"])
		if err != nil || r == nil || r.Signer != seller.Address || r.Document.Payer != s.bank.payer.Address.Hex() ||
			`"`+r.Document.Transaction+`"` != string(m["transaction"]) || r.Document.Resource != s.url+"/x?y=1" {
			t.Errorf("%+v, %v in %s", r, err, m["extensions"])
		}
		if v1 := a.settlement(t, payment.V1); len(v1["extensions"]) > 0 {
			t.Errorf("v1 has %s", v1["extensions"])
		}
	})
}

// Anybody may submit an authorization. Its payer then gets what it paid for,
// although the payment has lost its name to another one.
func TestAPaymentWithoutItsNameThatSomebodyElseLandsIsServed(t *testing.T) {
	b, c, node := onChain(t)
	b.facilitator = func(l *ledger.Ledger) payment.Facilitator { return embed(t, c, node, l) }
	s := open(t, b, till.Held)
	s.extend(till.Extensions{Identifier: true}, extension.Identifier(false))
	s.sells(func(http.ResponseWriter, *http.Request, *till.Sale) error { return errUpstream })
	first := s.saying(identified(firstID))
	_ = s.ask(http.MethodGet, "/x", "", first)
	s.awaitState(first, ledger.Released)
	s.sells(func(w http.ResponseWriter, _ *http.Request, _ *till.Sale) error {
		fmt.Fprint(w, "goods")
		return nil
	})
	second := s.saying(identified(firstID))
	s.wantPaid(s.ask(http.MethodGet, "/x", "", second), second, http.StatusOK, "goods")

	transact(t, c, c.Account("facilitator2"), first.transfer.Calldata())
	sees(t, c, node)
	s.wantPaid(s.ask(http.MethodGet, "/x", "", first), first, http.StatusOK, "goods")
	if got := s.bank.transfers(); got != 2 {
		t.Errorf("%d transfers", got)
	}
}

// What the upstream says of its price reaches nobody, whoever asks.
func TestPricesStayInsideOfSignedInAnswers(t *testing.T) {
	s := open(t, fakeBank(t), till.Held)
	s.extend(till.Extensions{SignIn: time.Hour})
	p := s.authorize(payment.V2)
	s.wantPaid(s.ask(http.MethodGet, "/x", "", p), p, http.StatusOK, "hello GET /x")
	s.offers(func(r *till.Route) {
		r.Tariffs = map[payment.Token]*meter.Tariff{facilitatortest.USDC(t): {Header: "X-Charge"}}
	})
	var heard string
	s.sells(func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
		heard = r.Header.Get("X-Charge")
		w.Header().Set("X-Charge", "7")
		fmt.Fprint(w, "goods")
		return nil
	})
	a := s.ask(http.MethodGet, "/x", "", nil, extension.HeaderSignIn, s.signIn(s.bank.payer, "/x").Header(), "X-Charge", "1")
	if a.status != http.StatusOK || a.body != "goods" || a.header.Get("X-Charge") != "" || heard != "" {
		t.Errorf("%d %q %v, the upstream heard %q", a.status, a.body, a.header, heard)
	}
}
