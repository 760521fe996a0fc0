package botauth

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The key test-key-ed25519 of RFC 9421, appendix B.1.4, which the drafts of Web
// Bot Auth use as well.
const (
	testSeed  = "n4Ni-HpISpVObnQMW0wOhCKROaIKqKtW_2ZYb2p9KcU"
	testX     = "JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs"
	testKeyID = "poqkLGiymh_W0uP6PZFw-dvez3QJT5SolqXBCW38r0U"
)

// created is when the examples of the drafts were signed.
const created = 1735689600

func testKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	seed, err := base64.RawURLEncoding.DecodeString(testSeed)
	if err != nil {
		t.Fatal(err)
	}
	return ed25519.NewKeyFromSeed(seed)
}

func publicKey(t testing.TB) ed25519.PublicKey {
	t.Helper()
	key, err := ParseKey(testX)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func testVerifier(t testing.TB) *Verifier {
	t.Helper()
	return &Verifier{Keys: map[string]ed25519.PublicKey{testKeyID: publicKey(t)}}
}

func testMessage(header map[string][]string) *Message {
	return &Message{Method: "GET", Scheme: "https", Authority: "example.com", Path: "/path/to/resource", Header: header}
}

// signed returns a message with a signature of the test key over what input,
// a member of Signature-Input without its name, says.
func signed(t testing.TB, m *Message, input string) *Message {
	t.Helper()
	members, err := parseDictionary([]string{"sig=" + input})
	if err != nil {
		t.Fatal(err)
	}
	base, err := m.base(&members[0].item)
	if err != nil {
		t.Fatal(err)
	}
	whole := *m
	whole.Header = maps.Clone(m.Header)
	if whole.Header == nil {
		whole.Header = map[string][]string{}
	}
	whole.Header["Signature-Input"] = []string{"sig=" + input}
	whole.Header["Signature"] = []string{"sig=:" + base64.StdEncoding.EncodeToString(ed25519.Sign(testKey(t), base)) + ":"}
	return &whole
}

// usual returns what a crawler says of its signature.
func usual(components string) string {
	return "(" + components + ");created=" + strconv.Itoa(created) + `;keyid="` + testKeyID + `";alg="ed25519";expires=` + strconv.Itoa(created+300) + `;nonce="abc";tag="web-bot-auth"`
}

func TestThumbprintsAreThoseOfTheSpecifications(t *testing.T) {
	for x, want := range map[string]string{
		"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k", // RFC 8037, appendix A.3
		testX: testKeyID,
	} {
		key, err := ParseKey(x)
		if err != nil {
			t.Fatal(err)
		}
		if got := Thumbprint(key); got != want {
			t.Errorf("the thumbprint of %s is %s, want %s", x, got, want)
		}
	}
}

// The signatures come from the specifications. Those without the tag, or with
// a life that is too long, are only checked to be over the base that we make.
func TestSignaturesOfTheSpecificationsAreOverOurBase(t *testing.T) {
	const params = `;created=1735689600;keyid="` + testKeyID + `";alg="ed25519";expires=4889289600;nonce="`
	for _, c := range []struct {
		name      string
		message   *Message
		input     string
		signature string
		want      string
	}{
		{
			"RFC 9421, appendix B.2.6",
			&Message{Method: "POST", Scheme: "https", Authority: "example.com", Path: "/foo", Query: "param=Value&Pet=dog", Header: map[string][]string{
				"Date": {"Tue, 20 Apr 2021 02:07:55 GMT"}, "Content-Type": {"application/json"}, "Content-Length": {"18"},
			}},
			`("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519"`,
			"wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==",
			`"date": Tue, 20 Apr 2021 02:07:55 GMT
"@method": POST
"@path": /foo
"@authority": example.com
"content-type": application/json
"content-length": 18
"@signature-params": ("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519"`,
		},
		{
			"Web Bot Auth, without Signature-Agent",
			testMessage(nil),
			`("@authority")` + params + `zIW8+cdmA3vdYagbxojpONwa/l0EKJ/O3/wD486VvsQjO/RxPaSt6ZxvQaMcQzNnqKN/mQ6hpGiFro2L2qkz5A==";tag="web-bot-auth"`,
			"QKN4fTdIYfh82fvoZCQiQA1weuozfCS/Led2zTMbewMMqH8PI2Wsy/5c4ao6B6D09nraNQdBNOADg8aM1MqfCg==",
			"",
		},
		{
			"Web Bot Auth, with a member of Signature-Agent",
			testMessage(map[string][]string{"Signature-Agent": {`agent2="https://signature-agent.test"`}}),
			`("@authority" "signature-agent";key="agent2")` + params + `n9p433xm+NJ3ph3upfBIGmsuwHw387YV7Q/F+6BSpGCVjYCqQw6rznNA8PVVLySrAWsv0hQtFioQb6E1YsauiA==";tag="web-bot-auth"`,
			"RdNFx5Bj6au3YgAMQL/RzmUlZE8QZLIaXGRpw985hWnwPfMxT228NMk6ehRS1PSl4e8PhbNZACSanGdhEwYCCg==",
			"",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			members, err := parseDictionary([]string{"sig=" + c.input})
			if err != nil {
				t.Fatal(err)
			}
			base, err := c.message.base(&members[0].item)
			if err != nil {
				t.Fatal(err)
			}
			if c.want != "" && string(base) != c.want {
				t.Errorf("the base is\n%s\nwant\n%s", base, c.want)
			}
			signature, err := base64.StdEncoding.DecodeString(c.signature)
			if err != nil {
				t.Fatal(err)
			}
			if !ed25519.Verify(publicKey(t), base, signature) {
				t.Errorf("the signature is not over\n%s", base)
			}
		})
	}
}

// This one is of draft-meunier-web-bot-auth-architecture-05, appendix A.2.3.
func TestTheDraftsRequestIsVerified(t *testing.T) {
	m := testMessage(map[string][]string{
		"Signature-Agent": {`"https://signature-agent.test"`},
		"Signature-Input": {`sig2=("@authority" "signature-agent");created=1735689600;keyid="` + testKeyID + `";alg="ed25519";expires=1735693200;nonce="e8N7S2MFd/qrd6T2R3tdfAuuANngKI7LFtKYI/vowzk4lAZYadIX6wW25MwG7DCT9RUKAJ0qVkU0mEeLElW1qg==";tag="web-bot-auth"`},
		"Signature":       {"sig2=:jdq0SqOwHdyHr9+r5jw3iYZH6aNGKijYp/EstF4RQTQdi5N5YYKrD+mCT1HA1nZDsi6nJKuHxUi/5Syp3rLWBA==:"},
	})
	if keyid, err := testVerifier(t).Verify(m, time.Unix(created+60, 0)); err != nil || keyid != testKeyID {
		t.Errorf("%q, %v", keyid, err)
	}
	for name, change := range map[string]func(m *Message){
		"another host":          func(m *Message) { m.Authority = "example.org" },
		"another agent":         func(m *Message) { m.Header["Signature-Agent"] = []string{`"https://other.test"`} },
		"no agent":              func(m *Message) { delete(m.Header, "Signature-Agent") },
		"a second agent":        func(m *Message) { m.Header["Signature-Agent"] = append(m.Header["Signature-Agent"], `"x"`) },
		"no signature":          func(m *Message) { delete(m.Header, "Signature") },
		"another name":          func(m *Message) { m.Header["Signature"][0] = "sig1" + m.Header["Signature"][0][4:] },
		"a changed parameter":   func(m *Message) { replace(m, "expires=1735693200", "expires=1735693201") },
		"a changed nonce":       func(m *Message) { replace(m, "e8N7", "e8N8") },
		"a component too many":  func(m *Message) { replace(m, `("@authority"`, `("@method" "@authority"`) },
		"an unsigned component": func(m *Message) { replace(m, `"signature-agent")`, `"signature-agent" "x-none")`) },
	} {
		changed := *m
		changed.Header = map[string][]string{}
		for n, lines := range m.Header {
			changed.Header[n] = slices.Clone(lines)
		}
		change(&changed)
		if keyid, err := testVerifier(t).Verify(&changed, time.Unix(created+60, 0)); err == nil || keyid != "" {
			t.Errorf("%s: %q, %v", name, keyid, err)
		}
	}
}

func replace(m *Message, old, now string) {
	m.Header["Signature-Input"][0] = strings.Replace(m.Header["Signature-Input"][0], old, now, 1)
}

// Each signature is good for its text; what is wrong is what it says.
func TestSignaturesThatSayTheWrongThingAreRefused(t *testing.T) {
	whole := usual(`"@authority"`)
	without := func(param string) string { return strings.Replace(whole, param, "", 1) }
	with := func(old, now string) string { return strings.Replace(whole, old, now, 1) }
	at := func(seconds int) string { return strconv.Itoa(created + seconds) }
	for _, c := range []struct{ name, input, want string }{
		{"no tag", without(`;tag="web-bot-auth"`), ErrUnsigned.Error()},
		{"another tag", with("web-bot-auth", "web-bot-author"), ErrUnsigned.Error()},
		{"a tag that is a token", with(`"web-bot-auth"`, "web-bot-auth"), ErrUnsigned.Error()},
		{"another algorithm", with("ed25519", "hmac-sha256"), "alg"},
		{"an algorithm that is a token", with(`"ed25519"`, "ed25519"), "alg"},
		{"a nonce that is a number", with(`"abc"`, "7"), "nonce"},
		{"no created", without(";created=" + at(0)), "created or expires"},
		{"no expires", without(";expires=" + at(300)), "created or expires"},
		{"created in the future", with("created="+at(0), "created="+at(121)), "future"},
		{"too old", with("created="+at(0), "created="+at(60-3601)), "ago"},
		{"expired", with("expires="+at(300), "expires="+at(60)), "has passed"},
		{"a clock that is a little ahead", with("created="+at(0), "created="+at(119)), ""},
		{"a long life", with("expires="+at(300), "expires="+at(86401)), "after created"},
		{"no authority", usual(`"@method"`), "@authority"},
		{"nothing", usual(""), "@authority"},
		{"no keyid", without(`;keyid="` + testKeyID + `"`), "keyid"},
		{"a key's name", with(testKeyID, "test-key-ed25519"), "keyid"},
		{"another key", with(testKeyID, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"), "keyid"},
	} {
		keyid, err := testVerifier(t).Verify(signed(t, testMessage(nil), c.input), time.Unix(created+60, 0))
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if keyid != "" || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v; want an error with %q", c.name, keyid, err, c.want)
		}
	}
	v := testVerifier(t)
	v.MaxAge = 10 * time.Second
	if _, err := v.Verify(signed(t, testMessage(nil), whole), time.Unix(created+11, 0)); err == nil {
		t.Error("MaxAge is not kept")
	}
	backwards := with("expires="+at(300), "expires="+at(-1))
	if _, err := testVerifier(t).Verify(signed(t, testMessage(nil), backwards), time.Unix(created-30, 0)); err == nil || !strings.Contains(err.Error(), "before created") {
		t.Errorf("expires before created: %v", err)
	}
}

func TestAnAgentMustBeCovered(t *testing.T) {
	m := testMessage(map[string][]string{"Signature-Agent": {`a="https://one.test", b="https://two.test"`}})
	now := time.Unix(created+60, 0)
	if _, err := testVerifier(t).Verify(signed(t, m, usual(`"@authority"`)), now); err == nil || !strings.Contains(err.Error(), "Signature-Agent") {
		t.Errorf("not covered: %v", err)
	}
	for _, components := range []string{`"@authority" "signature-agent"`, `"signature-agent";key="b" "@authority"`} {
		if _, err := testVerifier(t).Verify(signed(t, m, usual(components)), now); err != nil {
			t.Errorf("%s: %v", components, err)
		}
	}
}

// A signature over @authority alone is good for every path: docs/tiers.md says
// so. One that covers more is not.
func TestASignatureIsGoodForWhatItDoesNotCover(t *testing.T) {
	now := time.Unix(created+60, 0)
	for _, c := range []struct {
		components string
		good       bool
	}{
		{`"@authority"`, true},
		{`"@authority" "@path"`, false},
		{`"@authority" "@target-uri"`, false},
	} {
		m := signed(t, testMessage(nil), usual(c.components))
		m.Path = "/other"
		if _, err := testVerifier(t).Verify(m, now); (err == nil) != c.good {
			t.Errorf("%s at another path: %v", c.components, err)
		}
	}
}

// Where a site answers to every host, what a crawler has signed for another
// site must not be good here.
func TestSignaturesAreOnlyTakenForOurHosts(t *testing.T) {
	m := signed(t, testMessage(nil), usual(`"@authority"`))
	for authority, good := range map[string]bool{"example.com": true, "example.org": false, "example.com:8443": false} {
		v := testVerifier(t)
		v.Authorities = []string{"first.example", authority}
		if _, err := v.Verify(m, time.Unix(created+60, 0)); (err == nil) != good {
			t.Errorf("with %s: %v", authority, err)
		}
	}
}

func TestOneGoodSignatureAmongOthersIsEnough(t *testing.T) {
	m := signed(t, testMessage(nil), usual(`"@authority"`))
	now := time.Unix(created+60, 0)
	good, proof := m.Header["Signature-Input"][0], m.Header["Signature"][0]
	other := `cdn=("@authority";req "x";bs);created=1;keyid=cdn`
	late := strings.Replace(strings.Replace(good, "sig=", "late=", 1), "expires", "nonce2=1;expires", 1)
	for _, lines := range [][]string{{other, good}, {other + ",\t" + good}, {late, good}, {good, late}} {
		m.Header["Signature-Input"] = lines
		m.Header["Signature"] = []string{"cdn=:AA==:", proof, "late=" + proof[4:]}
		if keyid, err := testVerifier(t).Verify(m, now); err != nil || keyid != testKeyID {
			t.Errorf("%q: %q, %v", lines, keyid, err)
		}
	}
	m.Header["Signature-Input"] = []string{other}
	if _, err := testVerifier(t).Verify(m, now); !errors.Is(err, ErrUnsigned) {
		t.Errorf("without the tag: %v", err)
	}
	var many []string
	for i := range maxTried {
		many = append(many, strings.Replace(late, "late", "l"+strconv.Itoa(i), 1))
	}
	m.Header["Signature-Input"] = append(many, good)
	if _, err := testVerifier(t).Verify(m, now); err == nil {
		t.Errorf("more than %d signatures were tried", maxTried)
	}
}

func TestComponentsHaveTheirNormalForms(t *testing.T) {
	m := &Message{Method: "GET", Scheme: "HTTPS", Authority: "Example.COM:443", Path: "/a%20b", Query: "q=1&q=2", Header: map[string][]string{
		"X-List": {" a ", "b\t", "", "c, d"}, "X-Empty": {""}, "X-Dict": {"a=1 , b = 2"}, "X-Members": {"a=(1  2);x, b;y=?1", "c"}, "X-Latin": {"caf\xe9"},
	}}
	for component, want := range map[string]string{
		`"@method"`: "GET", `"@scheme"`: "https", `"@authority"`: "example.com", `"@path"`: "/a%20b", `"@query"`: "?q=1&q=2",
		`"@target-uri"`: "https://example.com/a%20b?q=1&q=2",
		`"x-list"`:      "a, b, , c, d", `"x-empty"`: "", `"x-members";key="a"`: "(1 2);x", `"x-members";key="b"`: "?1;y", `"x-members";key="c"`: "?1",
	} {
		members, err := parseDictionary([]string{"s=(" + component + ")"})
		if err != nil {
			t.Fatal(err)
		}
		base, err := m.base(&members[0].item)
		if got := component + ": " + want + "\n" + `"@signature-params": (` + component + ")"; err != nil || string(base) != got {
			t.Errorf("%v\n%s\nwant\n%s", err, base, got)
		}
	}
	for _, components := range []string{
		`"@request-target"`, `"@status"`, `"@query-param";name="q"`, `"@authority";req`, `"@signature-params"`, `""`, `token`, `7`,
		`"x-list";bs`, `"x-list";sf`, `"x-list";tr`, `"x-list";req`, `"x-list";key=a`, `"x-members";key="a";sf`, `"x-members";key="z"`, `"x-dict";key="a"`,
		`"X-List"`, `"x-none"`, `"x list"`, `"x-latin"`, `"@path" "@path"`, `"x-list" "x-list"`,
	} {
		members, err := parseDictionary([]string{"s=(" + components + ")"})
		if err != nil {
			t.Fatal(err)
		}
		if base, err := m.base(&members[0].item); err == nil {
			t.Errorf("%s has the base %s", components, base)
		}
	}
	bare := &Message{Scheme: "http", Authority: "[::1]:80"}
	for component, want := range map[string]string{"@query": "?", "@path": "/", "@authority": "[::1]", "@target-uri": "http://[::1]/"} {
		if got, err := bare.component(&item{bare: quoted(component)}); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", component, got, err, want)
		}
	}
	if _, err := (&Message{Path: "/a\n\"@method\": GET"}).base(&item{list: []item{{bare: quoted("@path")}}}); err == nil {
		t.Error("a path may begin a new line")
	}
	long := &Message{Header: map[string][]string{"X-Long": {strings.Repeat("a", maxBase)}}}
	if _, err := long.base(&item{list: []item{{bare: quoted("x-long")}}}); err == nil {
		t.Error("a base may be too long")
	}
}

// quoted returns a string as components are named.
func quoted(s string) bare { return bare{kind: text, s: s} }

func TestKeysAreReadFromSets(t *testing.T) {
	one := `{"kty":"OKP","crv":"Ed25519","x":"` + testX + `","kid":"any","use":"sig"}`
	for _, doc := range []string{one, `{"keys":[` + one + `]}`, `{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB"},` + one + `],"purpose":"ai"}`} {
		keys, err := ParseKeys([]byte(doc))
		if err != nil || len(keys) != 1 || Thumbprint(keys[0]) != testKeyID {
			t.Errorf("%s: %v, %v", doc, keys, err)
		}
	}
	for _, doc := range []string{
		"", "[]", "{}", `{"keys":[]}`, `{"kty":"RSA"}`, `{"kty":"OKP","crv":"X25519","x":"` + testX + `"}`,
		`{"kty":"OKP","crv":"Ed25519","x":"` + testX + `","d":"` + testSeed + `"}`, `{"kty":"OKP","crv":"Ed25519","x":"` + testX + `="}`,
	} {
		keys, err := ParseKeys([]byte(doc))
		if err == nil || strings.Contains(err.Error(), testSeed) {
			t.Errorf("%s: %v, %v", doc, keys, err)
		}
	}
	for _, x := range []string{"", testX[1:], testX + "A", testX[:42] + "t", testX[:42] + "\n", testX + "\n", strings.Replace(testX, "_", "/", 1)} {
		if _, err := ParseKey(x); err == nil {
			t.Errorf("%q is taken", x)
		}
	}
}
