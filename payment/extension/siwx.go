package extension

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/strictjson"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// HeaderSignIn is the request header that carries a sign-in.
const HeaderSignIn = "Sign-In-With-X"

// Reasons to refuse a sign-in.
const (
	SIWXDomain         payment.Reason = "invalid_siwx_domain_mismatch"
	SIWXURI            payment.Reason = "invalid_siwx_uri_mismatch"
	SIWXIssuedAt       payment.Reason = "invalid_siwx_issued_at"
	SIWXTooOld         payment.Reason = "invalid_siwx_issued_at_too_old"
	SIWXInFuture       payment.Reason = "invalid_siwx_issued_at_in_future"
	SIWXExpirationTime payment.Reason = "invalid_siwx_expiration_time"
	SIWXExpired        payment.Reason = "invalid_siwx_expired"
	SIWXNotBefore      payment.Reason = "invalid_siwx_not_before"
	SIWXNotYetValid    payment.Reason = "invalid_siwx_not_yet_valid"
	SIWXNonce          payment.Reason = "invalid_siwx_nonce"
	SIWXChainID        payment.Reason = "invalid_siwx_chain_id"
	SIWXUnsupported    payment.Reason = "invalid_siwx_unsupported_chain"
	SIWXMalformed      payment.Reason = "invalid_siwx_malformed_signature"
	SIWXSignature      payment.Reason = "invalid_siwx_signature"
)

const (
	// SignInAge is how old a sign-in may be.
	SignInAge = 5 * time.Minute

	// signInSkew is how far ahead of ours a wallet's clock may be.
	signInSkew = 30 * time.Second

	// SignInKept is for how long the nonce of a sign-in must be remembered.
	SignInKept = SignInAge + signInSkew + time.Second

	// maxSignIn is the longest SIGN-IN-WITH-X header, in bytes.
	maxSignIn = 8 << 10
)

// A SignIn is what a wallet signs to say who it is (EIP-4361), for a resource
// that it has paid for before.
type SignIn struct {
	Domain    string          // the host, with its port if it has one
	URI       string          // of the resource
	Statement string          // for a person; may be empty
	Version   string          // "1"
	Chain     payment.Network // that of the account
	Address   string          // of the account, as it spells it
	Nonce     string
	Issued    string // RFC 3339, as are the next two, which may be empty
	Expires   string
	NotBefore string
	RequestID string
	Resources []string // nil leaves the line out

	// Signature is the account's, over Message: 65 bytes.
	Signature []byte
}

// Message returns the text that is signed. It is as EIP-4361 has it, with
// optional lines only where they say something; without a statement there are
// two empty lines in its place.
func (s *SignIn) Message() string {
	var b strings.Builder
	b.WriteString(s.Domain + " wants you to sign in with your Ethereum account:\n" + s.Address + "\n\n")
	if s.Statement != "" {
		b.WriteString(s.Statement + "\n")
	}
	chain, _ := s.Chain.ChainID()
	b.WriteString("\nURI: " + s.URI + "\nVersion: " + s.Version + "\nChain ID: " + strconv.FormatUint(chain, 10) + "\nNonce: " + s.Nonce + "\nIssued At: " + s.Issued)
	for _, line := range []struct{ name, value string }{
		{"Expiration Time", s.Expires}, {"Not Before", s.NotBefore}, {"Request ID", s.RequestID},
	} {
		if line.value != "" {
			b.WriteString("\n" + line.name + ": " + line.value)
		}
	}
	if s.Resources != nil {
		b.WriteString("\nResources:")
		for _, r := range s.Resources {
			b.WriteString("\n- " + r)
		}
	}
	return b.String()
}

// Digest returns what is signed for the message (EIP-191).
func (s *SignIn) Digest() common.Hash {
	m := s.Message()
	return crypto.Keccak256Hash([]byte("\x19Ethereum Signed Message:\n" + strconv.Itoa(len(m)) + m))
}

// Sign-ins as a challenge asks for them.
type signInInfo struct {
	Domain         string `json:"domain"`
	URI            string `json:"uri"`
	Statement      string `json:"statement,omitempty"`
	Version        string `json:"version"`
	Nonce          string `json:"nonce"`
	IssuedAt       string `json:"issuedAt"`
	ExpirationTime string `json:"expirationTime"`
}

type supportedChain struct {
	ChainID string `json:"chainId"`
	Type    string `json:"type"`
}

// AskSignIn returns the extension sign-in-with-x for the resource at uri, to
// be signed on one of chains. nonce is 16 random bytes.
func AskSignIn(uri, statement string, chains []payment.Network, nonce [16]byte, now time.Time) Extension {
	const form = "2006-01-02T15:04:05.000Z"
	now = now.UTC()
	supported := make([]supportedChain, 0, len(chains))
	for _, c := range chains {
		supported = append(supported, supportedChain{string(c), "eip191"})
	}
	domain, _ := split(uri)
	return Extension{
		Name: SignInWithX,
		Info: encode(signInInfo{
			Domain: domain, URI: uri, Statement: statement, Version: "1", Nonce: hex.EncodeToString(nonce[:]),
			IssuedAt: now.Format(form), ExpirationTime: now.Add(SignInAge).Format(form),
		}),
		Beside: []Member{{"supportedChains", encode(supported)}},
	}
}

// split returns host and origin of a URI.
func split(uri string) (host, origin string) {
	u, err := url.Parse(uri)
	if err != nil {
		return "", ""
	}
	return u.Host, u.Scheme + "://" + u.Host
}

var signInMembers = []string{
	"domain", "address", "statement", "uri", "version", "chainId", "type", "signatureScheme", "nonce", "issuedAt", "expirationTime", "notBefore", "requestId", "resources", "signature",
}

// DecodeSignIn reads the value of a SIGN-IN-WITH-X header. What cannot be read
// is a *payment.MalformedError; what is no sign-in of an account whose
// signatures are known here is a *payment.InvalidError.
func DecodeSignIn(header string) (*SignIn, error) {
	const what = "SIGN-IN-WITH-X"
	fail := func(err error) (*SignIn, error) { return nil, &payment.MalformedError{What: what, Err: err} }
	if len(header) > maxSignIn {
		return fail(errors.New("is longer than 8 KiB"))
	}
	if strings.ContainsAny(header, "\r\n") {
		return fail(errors.New("is not base64: it holds line ends"))
	}
	doc, err := base64.StdEncoding.Strict().DecodeString(header)
	if err != nil {
		return fail(errors.New("is not base64"))
	}
	o, err := strictjson.Parse(doc, "", maxSignIn)
	if err != nil {
		return fail(err)
	}
	if err := o.Known(signInMembers...); err != nil {
		return fail(err)
	}
	s := &SignIn{}
	var chain, kind, scheme, signature string
	for _, m := range []struct {
		name     string
		to       *string
		required bool
	}{
		{"domain", &s.Domain, true},
		{"address", &s.Address, true},
		{"statement", &s.Statement, false},
		{"uri", &s.URI, true},
		{"version", &s.Version, true},
		{"chainId", &chain, true},
		{"type", &kind, true},
		{"signatureScheme", &scheme, false},
		{"nonce", &s.Nonce, true},
		{"issuedAt", &s.Issued, true},
		{"expirationTime", &s.Expires, false},
		{"notBefore", &s.NotBefore, false},
		{"requestId", &s.RequestID, false},
		{"signature", &signature, true},
	} {
		line, ok, err := o.OptionalText(m.name)
		switch {
		case err != nil:
			return fail(err)
		case m.required && line == "":
			return fail(o.Missing(m.name))
		case ok && !oneLine(line):
			// A line end would let one member pass for several.
			return fail(o.Wrong(m.name, "must be one line of printable text"))
		}
		*m.to = line
	}
	if raw, ok := o.Value("resources"); ok {
		list, err := read(raw)
		if err != nil || list.kind != array {
			return fail(o.Wrong("resources", "must be an array"))
		}
		s.Resources = []string{}
		for _, r := range list.items {
			if r.kind != text || !oneLine(r.text) {
				return fail(o.Wrong("resources", "must hold lines of printable text"))
			}
			s.Resources = append(s.Resources, r.text)
		}
	}
	if s.Chain, err = payment.ParseNetwork(chain); err != nil || !strings.Contains(chain, ":") {
		return nil, payment.Invalid(SIWXChainID, "chainId must be CAIP-2")
	}
	if _, evm := s.Chain.ChainID(); !evm || kind != "eip191" || scheme != "" && scheme != "eip191" {
		return nil, payment.Invalid(SIWXUnsupported, "only eip191 signatures of EVM accounts are known here")
	}
	raw, err := hex.DecodeString(strings.TrimPrefix(signature, "0x"))
	if err != nil || len(raw) != crypto.SignatureLength {
		return nil, payment.Invalid(SIWXMalformed, "signature must be 65 bytes in hex")
	}
	s.Signature = raw
	return s, nil
}

// oneLine reports whether s has no control characters.
func oneLine(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 })
}

// Header returns the value of the SIGN-IN-WITH-X header.
func (s *SignIn) Header() string {
	return base64.StdEncoding.EncodeToString(encode(struct {
		Domain         string   `json:"domain"`
		Address        string   `json:"address"`
		Statement      string   `json:"statement,omitempty"`
		URI            string   `json:"uri"`
		Version        string   `json:"version"`
		ChainID        string   `json:"chainId"`
		Type           string   `json:"type"`
		Nonce          string   `json:"nonce"`
		IssuedAt       string   `json:"issuedAt"`
		ExpirationTime string   `json:"expirationTime,omitempty"`
		NotBefore      string   `json:"notBefore,omitempty"`
		RequestID      string   `json:"requestId,omitempty"`
		Resources      []string `json:"resources,omitzero"`
		Signature      string   `json:"signature"`
	}{
		s.Domain, s.Address, s.Statement, s.URI, s.Version, string(s.Chain), "eip191", s.Nonce, s.Issued, s.Expires, s.NotBefore, s.RequestID, s.Resources,
		"0x" + hex.EncodeToString(s.Signature),
	}))
}

// Check reports whether the sign-in is one for the resource at uri, on one of
// chains, at the given time, and returns its account in canonical form. Whether
// its nonce was used before is the caller's to find out, once this has said
// that it is good. What is wrong is a *payment.InvalidError.
func (s *SignIn) Check(uri string, chains []payment.Network, now time.Time) (string, error) {
	host, origin := split(uri)
	_, theirs := split(s.URI)
	issued, err := time.Parse(time.RFC3339, s.Issued)
	switch {
	case s.Domain != host:
		return "", payment.Invalid(SIWXDomain, "the domain is not that of the resource")
	case s.URI == "" || theirs != origin:
		return "", payment.Invalid(SIWXURI, "the URI is not of the resource's origin")
	case s.Version != "1":
		return "", payment.Invalid(SIWXSignature, "the version must be 1")
	case err != nil:
		return "", payment.Invalid(SIWXIssuedAt, "issuedAt is no time")
	case now.Sub(issued) > SignInAge:
		return "", payment.Invalid(SIWXTooOld, "the sign-in is older than five minutes")
	case issued.Sub(now) > signInSkew:
		return "", payment.Invalid(SIWXInFuture, "issuedAt is in the future")
	case len(s.Nonce) < 8 || len(s.Nonce) > 128 || !plain(s.Nonce):
		return "", payment.Invalid(SIWXNonce, "the nonce must be 8 to 128 letters and digits")
	case !slices.Contains(chains, s.Chain):
		return "", payment.Invalid(SIWXUnsupported, "the chain is none that is paid on")
	}
	for _, bound := range []struct {
		at        string
		bad, then payment.Reason
		after     bool // the time must be after it
	}{{s.Expires, SIWXExpirationTime, SIWXExpired, false}, {s.NotBefore, SIWXNotBefore, SIWXNotYetValid, true}} {
		if bound.at == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339, bound.at)
		if err != nil {
			return "", payment.Invalid(bound.bad, "is no time")
		}
		if bound.after == now.Before(t) {
			return "", payment.Invalid(bound.then, "the sign-in is not valid now")
		}
	}
	return s.recover()
}

// recover returns the account, if the signature is its own.
func (s *SignIn) recover() (string, error) {
	address, err := payment.CanonicalAddress(s.Chain, s.Address)
	if err != nil {
		return "", payment.Invalid(SIWXSignature, "the address is none")
	}
	signer, err := evm.Recover(s.Digest(), s.Signature)
	if err != nil {
		return "", payment.Invalid(SIWXMalformed, err.Error())
	}
	if signer != common.HexToAddress(address) {
		return "", payment.Invalid(SIWXSignature, "the signature is not the account's")
	}
	return address, nil
}

// ParseMessage reads a text that Message has written, so that a wallet can
// see what it is asked to sign. The sign-in has no signature. A text that is
// in any way different from what Message would write for it is an error.
func ParseMessage(message string) (*SignIn, error) {
	fail := func(problem string) (*SignIn, error) {
		return nil, &payment.MalformedError{What: "sign-in message", Err: errors.New(problem)}
	}
	if len(message) > maxSignIn {
		return fail("is longer than 8 KiB")
	}
	lines := strings.Split(message, "\n")
	next := func(prefix string) (string, bool) {
		if len(lines) == 0 || !strings.HasPrefix(lines[0], prefix) {
			return "", false
		}
		line := lines[0][len(prefix):]
		lines = lines[1:]
		return line, true
	}
	s := &SignIn{}
	first, _ := next("")
	var ok bool
	if s.Domain, ok = strings.CutSuffix(first, " wants you to sign in with your Ethereum account:"); !ok || s.Domain == "" {
		return fail("does not begin with the domain that wants a sign-in")
	}
	s.Address, _ = next("")
	if empty, _ := next(""); empty != "" || len(lines) == 0 {
		return fail("has no empty line after the account")
	}
	if s.Statement, _ = next(""); s.Statement != "" {
		if empty, _ := next(""); empty != "" {
			return fail("has no empty line after the statement")
		}
	}
	var chain string
	for _, m := range []struct {
		name     string
		to       *string
		required bool
	}{
		{"URI", &s.URI, true},
		{"Version", &s.Version, true},
		{"Chain ID", &chain, true},
		{"Nonce", &s.Nonce, true},
		{"Issued At", &s.Issued, true},
		{"Expiration Time", &s.Expires, false},
		{"Not Before", &s.NotBefore, false},
		{"Request ID", &s.RequestID, false},
	} {
		if *m.to, ok = next(m.name + ": "); m.required && !ok {
			return fail("has no line \"" + m.name + ":\" where it must be")
		}
	}
	if _, ok := next("Resources:"); ok {
		s.Resources = []string{}
		for len(lines) > 0 {
			r, ok := next("- ")
			if !ok {
				return fail("has a line among its resources that is none")
			}
			s.Resources = append(s.Resources, r)
		}
	}
	id, err := strconv.ParseUint(chain, 10, 64)
	if err != nil {
		return fail("has a chain id that is no number")
	}
	if s.Chain = payment.EVM(id); s.Message() != message {
		return fail("is not in the form of EIP-4361")
	}
	return s, nil
}
