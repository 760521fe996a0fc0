package botauth

import (
	"strings"
	"testing"
	"time"
)

func TestDictionariesAreReadStrictly(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`  a=1  `, "a=1"},
		{"a=1\t,\t b", "a=1, b=?1"},
		{`a=-5, b=0`, "a=-5, b=0"},
		{`a=("x"  "y";p  );  q;r=?0;s=:AAE=:`, `a=("x" "y";p);q;r=?0;s=:AAE=:`},
		{`a=()`, "a=()"},
		{`a="b\"c\\d", e=tok/en:*`, `a="b\"c\\d", e=tok/en:*`},
		{`*a_-.*9=?1;x=?1`, "*a_-.*9=?1;x"},
		{`a=::`, "a=::"},
		{``, ""},
	} {
		members, err := parseDictionary([]string{c.in})
		if err != nil || serialized(members) != c.want {
			t.Errorf("%q: %q, %v; want %q", c.in, serialized(members), err, c.want)
		}
	}
	for _, in := range []string{
		"a=1,", "a=1, ", ",a", "a b", "A=1", "1", "=1", "a=", "a= 1", "a =1", "a=1 ;b", "a=(", "a=(1", `a=("x""y")`, "a=(1,2)", "a=((1))", "a=1)",
		"a=01", "a=-0", "a=+1", "a=--1", "a=1.5", "a=1234567890123456", "a=?2", "a=?", `a="x`, `a="\x"`, `a="\`, "a=\"\t\"", "a=:AA:", "a=:AB==:", "a=:A", "a=:_-8=:",
		"a=1, a=2", "a;b;b", "a=1;B", "a=@1735689600", "a=\x00", "a=\"caf\xe9\"", "a=\n1", "a=%\"x\"", "a=1;", "a=:AA\n==:",
		strings.Repeat("a", maxField+1), "a=(" + strings.Repeat("1 ", maxItems+1) + ")",
	} {
		if members, err := parseDictionary([]string{in}); err == nil {
			t.Errorf("%q is read as %q", in, serialized(members))
		}
	}
	many, params := "a0", "a"
	for i := range maxMembers {
		many += ", a" + strings.Repeat("x", i+1)
	}
	for i := range maxParams + 1 {
		params += ";p" + strings.Repeat("x", i)
	}
	for _, in := range []string{many, params} {
		if _, err := parseDictionary([]string{in}); err == nil {
			t.Errorf("%q has too many parts", in)
		}
	}
}

// serialized writes members as one line.
func serialized(members []member) string {
	list := make([]string, len(members))
	for i := range members {
		list[i] = members[i].name + "=" + members[i].String()
	}
	return strings.Join(list, ", ")
}

// FuzzDictionary reads anything. What is accepted has one canonical form.
func FuzzDictionary(f *testing.F) {
	f.Add("sig=" + usual(`"@authority" "signature-agent";key="a"`))
	f.Add("sig=:AAE=:, b;c=tok;d=?0, e=(1 \"x\\\"\" );f=-7")
	f.Fuzz(func(t *testing.T, in string) {
		members, err := parseDictionary([]string{in})
		if err != nil {
			return
		}
		once := serialized(members)
		if len(once) > maxField {
			return // an abbreviated ?1 is written out
		}
		again, err := parseDictionary([]string{once})
		if err != nil || serialized(again) != once {
			t.Errorf("%q becomes %q, and that %q, %v", in, once, serialized(again), err)
		}
	})
}

// FuzzVerify gives anything as the fields of a request. Only what the test
// key has signed may be verified, and these are the only such signatures.
func FuzzVerify(f *testing.F) {
	m := signed(f, testMessage(nil), usual(`"@authority"`))
	f.Add(m.Header["Signature-Input"][0], m.Header["Signature"][0], "", "example.com", "/", "")
	f.Add("sig="+usual(`"@authority" "@target-uri" "@query" "signature-agent";key="a"`), "sig=:AA==:", `a="https://a.test"`, "example.com", "/a", "b")
	f.Fuzz(func(t *testing.T, input, signature, agent, authority, path, query string) {
		m := &Message{Method: "GET", Scheme: "https", Authority: authority, Path: path, Query: query, Header: map[string][]string{
			"Signature-Input": {input}, "Signature": {signature},
		}}
		if agent != "" {
			m.Header["Signature-Agent"] = []string{agent}
		}
		keyid, err := testVerifier(t).Verify(m, time.Unix(created+60, 0))
		if (keyid == "") != (err != nil) {
			t.Errorf("%q, %v", keyid, err)
		}
		if err == nil && (m.authority() != "example.com" || agent != "") {
			t.Errorf("verified %q for %q with the agent %q", input, authority, agent)
		}
	})
}
