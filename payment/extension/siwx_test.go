package extension_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/extension"
)

var signInTime = time.Date(2026, 9, 21, 13, 46, 40, 0, time.UTC)

const signInURI = "https://api.example.com/premium-data"

// signIn returns a good sign-in that change has been made to, signed.
func signIn(t testing.TB, change func(*extension.SignIn)) *extension.SignIn {
	t.Helper()
	key, err := crypto.ToECDSA(crypto.Keccak256([]byte("x402-vector/payer")))
	if err != nil {
		t.Fatal(err)
	}
	s := &extension.SignIn{
		Domain: "api.example.com", URI: signInURI, Version: "1", Chain: "eip155:84532", Address: crypto.PubkeyToAddress(key.PublicKey).Hex(),
		Nonce: "a1b2c3d4e5f67890a1b2c3d4e5f67890", Issued: "2026-09-21T13:46:40.000Z", Expires: "2026-09-21T13:51:40Z",
	}
	change(s)
	s.Signature = vectorKey("payer").sign(t, s.Digest())
	return s
}

func TestSignInsAreRefusedWithTheReasonOfTheProtocol(t *testing.T) {
	chains := []payment.Network{"eip155:8453", "eip155:84532"}
	if _, err := signIn(t, func(*extension.SignIn) {}).Check(signInURI, chains, signInTime); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		change func(*extension.SignIn)
		at     time.Duration // after it was issued
		want   payment.Reason
	}{
		"another host":               {func(s *extension.SignIn) { s.Domain = "evil.example.com" }, 0, extension.SIWXDomain},
		"the host with a port":       {func(s *extension.SignIn) { s.Domain += ":443" }, 0, extension.SIWXDomain},
		"another origin":             {func(s *extension.SignIn) { s.URI = "http://api.example.com/premium-data" }, 0, extension.SIWXURI},
		"no URI":                     {func(s *extension.SignIn) { s.URI = ":" }, 0, extension.SIWXURI},
		"no time":                    {func(s *extension.SignIn) { s.Issued = "yesterday" }, 0, extension.SIWXIssuedAt},
		"too old":                    {func(s *extension.SignIn) { s.Expires = "" }, 5*time.Minute + time.Second, extension.SIWXTooOld},
		"from the future":            {func(*extension.SignIn) {}, -time.Minute, extension.SIWXInFuture},
		"expiry is no time":          {func(s *extension.SignIn) { s.Expires = "soon" }, 0, extension.SIWXExpirationTime},
		"expired":                    {func(s *extension.SignIn) { s.Expires = "2026-09-21T13:47:00Z" }, time.Minute, extension.SIWXExpired},
		"not-before is no time":      {func(s *extension.SignIn) { s.NotBefore = "soon" }, 0, extension.SIWXNotBefore},
		"not valid yet":              {func(s *extension.SignIn) { s.NotBefore = "2026-09-21T13:48:00Z" }, 0, extension.SIWXNotYetValid},
		"a short nonce":              {func(s *extension.SignIn) { s.Nonce = "abc" }, 0, extension.SIWXNonce},
		"a nonce with a blank":       {func(s *extension.SignIn) { s.Nonce = "a1b2c3d4 5f67890" }, 0, extension.SIWXNonce},
		"a chain that is not taken":  {func(s *extension.SignIn) { s.Chain = "eip155:1" }, 0, extension.SIWXUnsupported},
		"another version":            {func(s *extension.SignIn) { s.Version = "2" }, 0, extension.SIWXSignature},
		"an account that is none":    {func(s *extension.SignIn) { s.Address = "0x12" }, 0, extension.SIWXSignature},
		"somebody else's account":    {func(s *extension.SignIn) { s.Address = "0x9ABD6cF932170C471d01d746fe796703eDa24890" }, 0, extension.SIWXSignature},
		"the sign-in may be in time": {func(s *extension.SignIn) { s.NotBefore = "2026-09-21T13:46:40Z" }, 20 * time.Second, ""},
		"a wallet's clock is ahead":  {func(s *extension.SignIn) { s.RequestID, s.Resources = "r1", []string{signInURI} }, -20 * time.Second, ""},
	} {
		_, err := signIn(t, row.change).Check(signInURI, chains, signInTime.Add(row.at))
		if row.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var invalid *payment.InvalidError
		if !errors.As(err, &invalid) || invalid.Reason != row.want {
			t.Errorf("%s: got %v, want %s", name, err, row.want)
		}
	}
}

func TestSignInsAreBoundToEveryWordOfTheMessage(t *testing.T) {
	s := signIn(t, func(s *extension.SignIn) { s.Statement = "Sign in" })
	s.Statement = "Sign out"
	_, err := s.Check(signInURI, []payment.Network{"eip155:84532"}, signInTime)
	wantReason(t, err, extension.SIWXSignature)

	s = signIn(t, func(*extension.SignIn) {})
	s.Signature[64] -= 27
	_, err = s.Check(signInURI, []payment.Network{"eip155:84532"}, signInTime)
	wantReason(t, err, extension.SIWXMalformed)
}

func TestSignInsThatCannotBeReadAreMalformed(t *testing.T) {
	good := signIn(t, func(*extension.SignIn) {})
	doc := func(old, new string) string {
		t.Helper()
		raw := decodeHeader(t, good.Header())
		if !strings.Contains(raw, old) {
			t.Fatalf("nothing to replace: %s", old)
		}
		return header(strings.Replace(raw, old, new, 1))
	}
	for name, row := range map[string]struct {
		header string
		want   payment.Reason // empty means malformed
	}{
		"no base64":             {"%", ""},
		"line ends":             {"YWJj\nZGVm", ""},
		"no JSON":               {header("x"), ""},
		"too long":              {strings.Repeat("A", 9<<10), ""},
		"no nonce":              {doc(`"nonce"`, `"n"`), ""},
		"another case":          {doc(`"nonce"`, `"Nonce"`), ""},
		"a line in the text":    {doc(`"version":"1"`, `"version":"1","statement":"a\nURI: b"`), ""},
		"a line in a resource":  {doc(`"version":"1"`, `"version":"1","resources":["a\nb"]`), ""},
		"resources are no list": {doc(`"version":"1"`, `"version":"1","resources":"a"`), ""},
		"a number":              {doc(`"version":"1"`, `"version":1`), ""},
		"a chain's old name":    {doc(`"eip155:84532"`, `"base-sepolia"`), extension.SIWXChainID},
		"Solana":                {doc(`"eip155:84532"`, `"solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1"`), extension.SIWXUnsupported},
		"another kind":          {doc(`"eip191"`, `"ed25519"`), extension.SIWXUnsupported},
		"a contract's scheme":   {doc(`"version":"1"`, `"version":"1","signatureScheme":"eip1271"`), extension.SIWXUnsupported},
		"a short signature":     {doc(`"signature":"0x`, `"signature":"0x00`), extension.SIWXMalformed},
	} {
		_, err := extension.DecodeSignIn(row.header)
		var malformed *payment.MalformedError
		var invalid *payment.InvalidError
		switch {
		case row.want == "" && !errors.As(err, &malformed):
			t.Errorf("%s: %v", name, err)
		case row.want != "" && (!errors.As(err, &invalid) || invalid.Reason != row.want):
			t.Errorf("%s: %v, want %s", name, err, row.want)
		}
	}
}

func TestASignInThatIsAskedForCanBeSigned(t *testing.T) {
	e := extension.AskSignIn(signInURI, "", []payment.Network{"eip155:84532"}, [16]byte{1}, signInTime)
	var asked struct {
		Domain, URI, Version, Nonce, IssuedAt, ExpirationTime string
	}
	if err := json.Unmarshal(e.Info, &asked); err != nil {
		t.Fatal(err)
	}
	s := signIn(t, func(s *extension.SignIn) {
		s.Domain, s.URI, s.Version, s.Nonce, s.Issued, s.Expires = asked.Domain, asked.URI, asked.Version, asked.Nonce, asked.IssuedAt, asked.ExpirationTime
	})
	if _, err := s.Check(signInURI, []payment.Network{"eip155:84532"}, signInTime.Add(time.Minute)); err != nil {
		t.Error(err)
	}
	doc, err := extension.Encode(e)
	if err != nil || !strings.Contains(string(doc), `"supportedChains":[{"chainId":"eip155:84532","type":"eip191"}]`) || len(asked.Nonce) != 32 {
		t.Errorf("%s, %v", doc, err)
	}
}

// FuzzDecodeSignIn: what is read is written so that it is read again, with the
// same message.
func FuzzDecodeSignIn(f *testing.F) {
	f.Add(decodeHeader(f, readVectors(f).SIWX.Header))
	f.Add(`{}`)
	f.Fuzz(func(t *testing.T, doc string) {
		s, err := extension.DecodeSignIn(header(doc))
		if err != nil {
			var malformed *payment.MalformedError
			var invalid *payment.InvalidError
			if !errors.As(err, &malformed) && !errors.As(err, &invalid) {
				t.Fatalf("error of type %T", err)
			}
			return
		}
		again, err := extension.DecodeSignIn(s.Header())
		if err != nil || again.Digest() != s.Digest() {
			t.Fatalf("%+v is read again as %+v, %v", s, again, err)
		}
		if _, err := s.Check(signInURI, []payment.Network{s.Chain}, signInTime); err == nil && s.Domain != "api.example.com" {
			t.Fatalf("%+v is good", s)
		}
	})
}

func TestMessagesAreReadAsTheyAreWritten(t *testing.T) {
	v := readVectors(t).SIWX
	s, err := extension.ParseMessage(v.Message)
	if err != nil || s.Statement != "Sign in to access premium data" || s.Chain != "eip155:84532" || len(s.Resources) != 1 || s.Digest().Hex() != v.Eip191Digest {
		t.Fatalf("%+v, %v", s, err)
	}
	for name, change := range map[string]func(*extension.SignIn){
		"no statement":               func(s *extension.SignIn) { s.Statement = "" },
		"a statement like a field":   func(s *extension.SignIn) { s.Statement = "URI: https://evil.example" },
		"everything that there is":   func(s *extension.SignIn) { s.NotBefore, s.RequestID = "2026-09-21T13:46:40Z", "r 1" },
		"nothing that can be absent": func(s *extension.SignIn) { s.Expires, s.Resources = "", nil },
	} {
		w := *s
		change(&w)
		if again, err := extension.ParseMessage(w.Message()); err != nil || again.Message() != w.Message() || again.Statement != w.Statement || again.URI != w.URI {
			t.Errorf("%s: %+v, %v", name, again, err)
		}
	}
	for name, bad := range map[string]string{
		"nothing":            "",
		"another first line": strings.Replace(v.Message, "Ethereum", "Solana", 1),
		"a line more":        v.Message + "\n",
		"another order":      strings.Replace(v.Message, "Version: 1\nChain ID: 84532", "Chain ID: 84532\nVersion: 1", 1),
		"a chain like 0x":    strings.Replace(v.Message, "84532", "0x14a34", 1),
		"leading zeros":      strings.Replace(v.Message, "84532", "084532", 1),
		"Windows line ends":  strings.ReplaceAll(v.Message, "\n", "\r\n"),
	} {
		if s, err := extension.ParseMessage(bad); err == nil {
			t.Errorf("%s is read as %+v", name, s)
		}
	}
}

// The texts are those that the TypeScript SDK 2.27 writes.
func TestMessagesAreTheReferencesWithAndWithoutAStatement(t *testing.T) {
	const begin = "api.example.com wants you to sign in with your Ethereum account:\n0xCC9315E4C2EC6d354d42adC84f599f83Ad715631\n\n"
	const end = "\nURI: https://api.example.com/x\nVersion: 1\nChain ID: 84532\nNonce: a1b2c3d4e5f67890\nIssued At: 2026-09-21T13:46:40.000Z"
	plain := extension.SignIn{
		Domain: "api.example.com", Address: "0xCC9315E4C2EC6d354d42adC84f599f83Ad715631", URI: "https://api.example.com/x", Version: "1",
		Chain: "eip155:84532", Nonce: "a1b2c3d4e5f67890", Issued: "2026-09-21T13:46:40.000Z",
	}
	if got := plain.Message(); got != begin+end {
		t.Errorf("without a statement: %q", got)
	}
	full := plain
	full.Statement, full.RequestID, full.Resources = "S", "r", []string{}
	full.Expires, full.NotBefore = "2026-09-21T13:56:40.000Z", "2026-09-21T13:46:40.000Z"
	if got := full.Message(); got != begin+"S\n"+end+"\nExpiration Time: 2026-09-21T13:56:40.000Z\nNot Before: 2026-09-21T13:46:40.000Z\nRequest ID: r\nResources:" {
		t.Errorf("with everything: %q", got)
	}
}

// FuzzParseMessage: what is read is what was written.
func FuzzParseMessage(f *testing.F) {
	f.Add(readVectors(f).SIWX.Message)
	f.Fuzz(func(t *testing.T, message string) {
		if s, err := extension.ParseMessage(message); err == nil && s.Message() != message {
			t.Fatalf("%q is read as %+v", message, s)
		}
	})
}
