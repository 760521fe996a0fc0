package webhook

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

var signedAt = time.Unix(1_800_000_000, 0)

func TestVerifyTakesWhatSignMakesForFiveMinutes(t *testing.T) {
	body := []byte(`{"id":"x"}`)
	header := Sign([]string{secretOne}, body, signedAt)
	for after, want := range map[time.Duration]error{
		0:                       nil,
		MaxAge:                  nil,
		MaxAge + time.Second:    ErrTooOld,
		24 * time.Hour:          ErrTooOld,
		-30 * time.Second:       nil, // a receiver's clock that is a little behind
		-maxAhead - time.Second: ErrFuture,
		-365 * 24 * time.Hour:   ErrFuture,
	} {
		if err := Verify(secretOne, header, body, signedAt.Add(after)); !errors.Is(err, want) {
			t.Errorf("after %s: %v", after, err)
		}
	}
	for name, err := range map[string]error{
		"another body":   Verify(secretOne, header, []byte(`{"id":"y"}`), signedAt),
		"another secret": Verify(secretTwo, header, body, signedAt),
		"no secret":      Verify("", header, body, signedAt),
		"another time":   Verify(secretOne, strings.Replace(header, "t=1800000000", "t=1800000001", 1), body, signedAt),
		"a changed bit":  Verify(secretOne, header[:len(header)-1]+string(header[len(header)-1]^1), body, signedAt),
	} {
		if err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// While a secret is changed, receivers may have the old one or the new one.
func TestBothSecretsOfARotationSign(t *testing.T) {
	body := []byte("{}")
	header := Sign([]string{secretTwo, secretOne}, body, signedAt)
	for _, s := range []string{secretOne, secretTwo} {
		if err := Verify(s, header, body, signedAt); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	if err := Verify("a third one", header, body, signedAt); !errors.Is(err, ErrSignature) {
		t.Error(err)
	}
}

func TestHeadersOfAnotherFormAreRefused(t *testing.T) {
	good := Sign([]string{secretOne}, nil, signedAt)
	v1 := good[strings.Index(good, "v1="):]
	if err := Verify(secretOne, good+",v2=later,scheme=x", nil, signedAt); err != nil {
		t.Errorf("fields of later versions: %v", err)
	}
	for _, header := range []string{
		"", "t", "t=", "v1=", "t=1800000000", v1, "t=1800000000,v1=", "t=1800000000,v1=zz", good[:len(good)-1], good + "00",
		good + ",t=1800000000", "t=+1800000000," + v1, "t=01800000000," + v1, "t=-1," + v1, "t=1.8e9," + v1, "t= 1800000000," + v1,
		"t=99999999999999999999," + v1, "t=9223372036854775807," + v1, " " + good, good + ",", good + strings.Repeat(","+v1, 10), good + "," + strings.Repeat("x", 3000) + "=",
	} {
		if err := Verify(secretOne, header, nil, signedAt); err == nil {
			t.Errorf("%.100q is accepted", header)
		}
	}
}

// The example of docs/webhooks.md, with which people try their own receivers,
// is right.
func TestTheExampleOfTheDocsVerifies(t *testing.T) {
	doc, err := os.ReadFile("../../docs/webhooks.md")
	if err != nil {
		t.Fatal(err)
	}
	field := func(pattern string) string {
		m := regexp.MustCompile(pattern).FindSubmatch(doc)
		if m == nil {
			t.Fatalf("the docs have no %s", pattern)
		}
		return string(m[1])
	}
	secret, header, body := field("secret    (\\S+)"), field("signature (t=\\S+)"), field("body      (\\{.*\\})")
	at, _, err := parseSignature(header)
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(secret, header, []byte(body), time.Unix(at, 0)); err != nil {
		t.Errorf("%v; it would be %s", err, Sign([]string{secret}, []byte(body), time.Unix(at, 0)))
	}
}

func FuzzParseSignature(f *testing.F) {
	f.Add(Sign([]string{secretOne, secretTwo}, nil, signedAt))
	f.Add("t=1,v1=00,v1=")
	f.Fuzz(func(t *testing.T, header string) {
		at, signatures, err := parseSignature(header)
		if err != nil {
			return
		}
		if at < 0 || len(signatures) == 0 || len(signatures) > maxSignatures {
			t.Errorf("%q: %d, %d signatures", header, at, len(signatures))
		}
		if err := Verify(secretOne, header, []byte("never signed"), time.Unix(at, 0)); err == nil {
			t.Errorf("%q is a signature", header)
		}
	})
}
