package pass_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/pass"
)

var (
	key    = pass.DeriveKey([]byte("a secret that is long enough for tests"))
	issued = time.Unix(1_790_000_000, 0)
)

func usual() *pass.Claims {
	return &pass.Claims{
		Scope: payment.Fingerprint{1, 2, 3}, Payment: payment.Key{4, 5, 6}, Network: "eip155:8453",
		Payer: "0x209693Bc6afc0C5328bA36FaF03C514EF312287C", Token: "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", Units: "10000",
		Issued: issued, Expires: issued.Add(24 * time.Hour), Calls: 100,
	}
}

func mustMake(t testing.TB, c *pass.Claims) string {
	t.Helper()
	text, err := key.Make(c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func isMalformed(err error) bool {
	_, ok := errors.AsType[*payment.MalformedError](err)
	return ok
}

func TestAPassSaysWhatItWasMadeOf(t *testing.T) {
	for what, change := range map[string]func(*pass.Claims){
		"time and calls": func(*pass.Claims) {},
		"time alone":     func(c *pass.Claims) { c.Calls = 0 },
		"calls alone":    func(c *pass.Claims) { c.Expires = time.Time{} },
		"long":           func(c *pass.Claims) { c.Payer, c.Token = strings.Repeat("p", 128), strings.Repeat("t", 128) },
	} {
		c := usual()
		change(c)
		text := mustMake(t, c)
		got, err := pass.Read(key.Public(), text)
		if err != nil || *got != *c {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
		if len(text) > pass.MaxLength || text != mustMake(t, c) {
			t.Errorf("%s: %q", what, text)
		}
	}
}

// The form of version 1 never changes: passes that were sold must stay good.
func TestTheFormOfAPassStaysAsItIs(t *testing.T) {
	raw, err := base64.RawURLEncoding.DecodeString(mustMake(t, usual()))
	if err != nil {
		t.Fatal(err)
	}
	const said = "\x01\x01\x02\x03"
	if len(raw) != 85+12+43+43+6+64 || !strings.HasPrefix(string(raw), said) || !strings.Contains(string(raw), "\x0beip155:8453\x2a0x2096") {
		t.Errorf("%d bytes: %q", len(raw), raw)
	}
}

func TestAPassEndsAtItsTime(t *testing.T) {
	c := usual()
	for now, want := range map[time.Time]bool{issued: false, c.Expires.Add(-1): false, c.Expires: true, c.Expires.Add(time.Hour): true} {
		if got := c.Ended(now); got != want {
			t.Errorf("at %s: %v", now, got)
		}
	}
	c.Expires = time.Time{}
	if c.Ended(issued.AddDate(1000, 0, 0)) {
		t.Error("a pass without an end has ended")
	}
}

func TestNoPassIsMadeOfWhatNoneCanSay(t *testing.T) {
	for what, change := range map[string]func(*pass.Claims){
		"no end":           func(c *pass.Claims) { c.Expires, c.Calls = time.Time{}, 0 },
		"ends before":      func(c *pass.Claims) { c.Expires = c.Issued },
		"no beginning":     func(c *pass.Claims) { c.Issued = time.Time{} },
		"before 1970":      func(c *pass.Claims) { c.Issued = time.Unix(-1, 0) },
		"after 9999":       func(c *pass.Claims) { c.Expires = time.Unix(1<<40, 0) },
		"no payer":         func(c *pass.Claims) { c.Payer = "" },
		"a blank":          func(c *pass.Claims) { c.Token = "a b" },
		"not ASCII":        func(c *pass.Claims) { c.Network = "é" },
		"too long a payer": func(c *pass.Claims) { c.Payer = strings.Repeat("p", 129) },
	} {
		c := usual()
		change(c)
		if text, err := key.Make(c); err == nil {
			t.Errorf("%s: %q", what, text)
		}
	}
}

// Every bit of a pass is flipped, and every character of its text replaced.
func TestAPassThatWasChangedInOneBitIsRefused(t *testing.T) {
	text := mustMake(t, usual())
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			if c, err := pass.Read(key.Public(), base64.RawURLEncoding.EncodeToString(raw)); !isMalformed(err) && !errors.Is(err, pass.ErrForeign) {
				t.Errorf("bit %d of byte %d: %+v, %v", bit, i, c, err)
			}
			raw[i] ^= 1 << bit
		}
	}
	for i := range text {
		for _, r := range []string{"A", "_", "=", "\n", " ", ""} {
			if r == text[i:i+1] {
				continue
			}
			if _, err := pass.Read(key.Public(), text[:i]+r+text[i+1:]); err == nil {
				t.Errorf("character %d as %q is accepted", i, r)
			}
		}
	}
}

func TestAPassHasOneSpelling(t *testing.T) {
	c := usual()
	c.Payer += "x" // so that the last character has bits to spare
	text := mustMake(t, c)
	for _, other := range []string{
		"", "=", text + "=", text + "\n", "\n" + text, " " + text, text + text, text + "A", text[:len(text)-1], strings.Repeat("A", pass.MaxLength), strings.Repeat("A", pass.MaxLength+1),
	} {
		if _, err := pass.Read(key.Public(), other); !isMalformed(err) && !errors.Is(err, pass.ErrForeign) {
			t.Errorf("%.60q…: %v", other, err)
		}
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	accepted := 0
	for _, r := range alphabet {
		if _, err := pass.Read(key.Public(), text[:len(text)-1]+string(r)); err == nil {
			accepted++
		}
	}
	if accepted != 1 {
		t.Errorf("%d last characters are accepted", accepted)
	}
}

func TestAPassOfAnotherKeyIsForeign(t *testing.T) {
	other := pass.DeriveKey([]byte("another secret that is long enough"))
	if _, err := pass.Read(other.Public(), mustMake(t, usual())); !errors.Is(err, pass.ErrForeign) {
		t.Error(err)
	}
	if same := pass.DeriveKey([]byte("a secret that is long enough for tests")); !same.Public().Equal(key.Public()) {
		t.Error("one secret has two keys")
	}
}

func TestWhatIsMadeIsRead(t *testing.T) {
	text := rapid.StringMatching(`[!-~]{1,128}`)
	rapid.Check(t, func(rt *rapid.T) {
		c := &pass.Claims{
			Network: payment.Network(text.Draw(rt, "network")), Payer: text.Draw(rt, "payer"), Token: text.Draw(rt, "token"), Units: text.Draw(rt, "units"),
			Issued: time.Unix(rapid.Int64Range(1, 1<<37).Draw(rt, "issued"), 0), Calls: rapid.Uint32Min(1).Draw(rt, "calls"),
		}
		copy(c.Scope[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(rt, "scope"))
		copy(c.Payment[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(rt, "payment"))
		if rapid.Bool().Draw(rt, "ends") {
			c.Expires = c.Issued.Add(time.Duration(rapid.Int64Range(1, 1<<30).Draw(rt, "seconds")) * time.Second)
		}
		made := mustMake(t, c)
		got, err := pass.Read(key.Public(), made)
		if err != nil || *got != *c || len(made) > pass.MaxLength {
			rt.Fatalf("%+v became %+v, %v", c, got, err)
		}
	})
}

// FuzzRead reads anything as a pass. What it accepts is what is made of it.
func FuzzRead(f *testing.F) {
	f.Add(mustMake(f, usual()))
	f.Add("")
	f.Add("AQ")
	f.Add(strings.Repeat("A", pass.MaxLength))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := pass.Read(key.Public(), text)
		if err != nil {
			if !isMalformed(err) && !errors.Is(err, pass.ErrForeign) {
				t.Errorf("another error: %v", err)
			}
			return
		}
		if again := mustMake(t, c); again != text {
			t.Errorf("%q is also %q", again, text)
		}
	})
}
