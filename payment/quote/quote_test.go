package quote_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/quote"
)

var (
	key   = quote.DeriveKey([]byte("a secret that is long enough for tests"))
	made  = time.UnixMilli(1_790_000_000_123)
	until = made.Add(time.Minute)
)

// offer returns an offer of so many units of a token, on a network.
func offer(t testing.TB, network payment.Network, address, units, payTo string) *payment.Offer {
	t.Helper()
	amount, err := payment.ParseUnits(units, payment.Token{Network: network, Address: address})
	if err != nil {
		t.Fatal(err)
	}
	return &payment.Offer{Scheme: payment.Exact, Amount: amount, PayTo: payTo, Timeout: time.Minute}
}

func usual(t testing.TB) *quote.Terms {
	t.Helper()
	return &quote.Terms{
		Request: []string{"https://api.example.com", "GET", "/img/1", "w=640"},
		Offer:   offer(t, "eip155:8453", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "10000", "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"),
	}
}

func TestAQuoteIsGoodForWhatItWasMadeForUntilItsTime(t *testing.T) {
	q := key.Make(usual(t), until)
	if len(q) != quote.Length || !quote.Legible(q) {
		t.Fatalf("quote %q", q)
	}
	for now, want := range map[time.Time]error{
		made:                                nil,
		until.Add(-time.Millisecond):        nil,
		until:                               nil,
		until.Add(time.Millisecond - 1):     nil, // the same millisecond
		until.Add(time.Millisecond):         quote.ErrExpired,
		until.Add(time.Hour):                quote.ErrExpired,
		time.UnixMilli(1<<62 + made.Unix()): quote.ErrExpired,
		time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC): nil,
	} {
		if err := key.Check(q, usual(t), now); !errors.Is(err, want) {
			t.Errorf("at %s: %v, want %v", now.UTC(), err, want)
		}
	}
}

// Every part that decides is changed by one bit, at every place.
func TestAQuoteIsForeignToTermsThatDifferInOneBit(t *testing.T) {
	q := key.Make(usual(t), until)
	tried := 0
	refused := func(what string, terms *quote.Terms) {
		t.Helper()
		tried++
		if err := key.Check(q, terms, made); !errors.Is(err, quote.ErrForeign) {
			t.Errorf("%s: %v", what, err)
		}
	}
	flipped := func(s string, each func(changed string)) {
		for i := range len(s) {
			for bit := range 8 {
				b := []byte(s)
				b[i] ^= 1 << bit
				each(string(b))
			}
		}
	}
	for i, part := range usual(t).Request {
		flipped(part, func(changed string) {
			terms := usual(t)
			terms.Request[i] = changed
			refused("request "+changed, terms)
		})
	}
	o := usual(t).Offer
	token := o.Amount.Token()
	flipped(string(o.Scheme), func(changed string) {
		terms := usual(t)
		terms.Offer.Scheme = payment.Scheme(changed)
		refused("scheme "+changed, terms)
	})
	flipped(o.PayTo, func(changed string) {
		terms := usual(t)
		terms.Offer.PayTo = changed
		refused("recipient "+changed, terms)
	})
	flipped(string(token.Network), func(changed string) {
		refused("network "+changed, &quote.Terms{Request: usual(t).Request, Offer: offer(t, payment.Network(changed), token.Address, "10000", o.PayTo)})
	})
	flipped(token.Address, func(changed string) {
		refused("token "+changed, &quote.Terms{Request: usual(t).Request, Offer: offer(t, token.Network, changed, "10000", o.PayTo)})
	})
	for bit := range 64 {
		units := fmt.Sprint(uint64(10000) ^ 1<<bit)
		refused("amount "+units, &quote.Terms{Request: usual(t).Request, Offer: offer(t, token.Network, token.Address, units, o.PayTo)})
	}
	for i := range key {
		for bit := range 8 {
			other := key
			other[i] ^= 1 << bit
			if err := other.Check(q, usual(t), made); !errors.Is(err, quote.ErrForeign) {
				t.Errorf("another key: %v", err)
			}
		}
	}
	t.Logf("%d changes", tried)
}

// A quote whose time or MAC is changed by one bit is foreign, even if its time
// would have passed.
func TestAChangedQuoteIsForeign(t *testing.T) {
	q := key.Make(usual(t), until)
	raw, err := base64.RawURLEncoding.DecodeString(q)
	if err != nil || len(raw) != 24 {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	for i := range raw {
		for bit := range 8 {
			changed := slices.Clone(raw)
			changed[i] ^= 1 << bit
			for _, now := range []time.Time{made, until.Add(time.Hour)} {
				if err := key.Check(base64.RawURLEncoding.EncodeToString(changed), usual(t), now); !errors.Is(err, quote.ErrForeign) {
					t.Errorf("byte %d, bit %d: %v", i, bit, err)
				}
			}
		}
	}
	for _, other := range []string{
		"", q[:31], q + "A", q + "=", "=" + q[1:], " " + q[1:], q[:31] + "\n", q[:16] + "\r\n" + q[18:], strings.Repeat("A", 32), strings.Repeat("+", 32),
		q[:30] + "==", strings.Repeat(q, 100),
	} {
		if err := key.Check(other, usual(t), made); !errors.Is(err, quote.ErrForeign) {
			t.Errorf("%q: %v", other, err)
		}
	}
}

func TestSecretsHaveDifferentKeys(t *testing.T) {
	one := []byte("one")
	if quote.DeriveKey(one) == quote.DeriveKey([]byte("two")) || quote.DeriveKey(one) != quote.DeriveKey([]byte("one")) {
		t.Error("a key does not follow from its secret alone")
	}
}

// However the parts of a request are cut, and whatever is in them, the quote
// of one request is foreign to every other one.
func TestAQuoteNeverPassesForAnotherRequest(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		text := rapid.StringOfN(rapid.RuneFrom([]rune("ab/?&=\x00 ")), 0, 6, -1)
		one := rapid.SliceOfN(text, 0, 5).Draw(r, "one")
		other := rapid.SliceOfN(text, 0, 5).Draw(r, "other")
		if rapid.Bool().Draw(r, "cut elsewhere") && len(one) > 1 {
			// The same text, with the border between two parts moved.
			whole := one[0] + one[1]
			at := rapid.IntRange(0, len(whole)).Draw(r, "at")
			other = append([]string{whole[:at], whole[at:]}, one[2:]...)
		}
		terms, changed := usual(t), usual(t)
		terms.Request, changed.Request = one, other
		err := key.Check(key.Make(terms, until), changed, made)
		if same := slices.Equal(one, other); same != (err == nil) {
			r.Errorf("a quote for %q, shown for %q: %v", one, other, err)
		}
		if (terms.Digest() == changed.Digest()) != slices.Equal(one, other) {
			r.Errorf("%q and %q have one name", one, other)
		}
	})
}

// FuzzQuote shows anything as a quote. Only what the key has made is good, and
// it has one spelling.
func FuzzQuote(f *testing.F) {
	good := key.Make(usual(f), until)
	f.Add(good)
	f.Add(key.Make(usual(f), time.UnixMilli(0)))
	f.Add(strings.Repeat("A", quote.Length))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		err := key.Check(s, usual(t), made)
		if err == nil && s != good {
			t.Errorf("%q is good", s)
		}
		if raw, failed := base64.RawURLEncoding.DecodeString(s); quote.Legible(s) != (failed == nil && len(raw) == 24 && base64.RawURLEncoding.EncodeToString(raw) == s) {
			t.Errorf("%q is legible: %v", s, quote.Legible(s))
		}
	})
}
