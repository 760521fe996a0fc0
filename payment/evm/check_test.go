package evm_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// The token asks for validAfter < block time < validBefore. The next block is
// later than the latest one, whose time Check is given, and six seconds are
// left for it to come.
func TestTheWindowIsCheckedToTheSecond(t *testing.T) {
	const after, before = 1_790_000_000, 1_790_000_060
	o := offerOn(t, "eip155:84532", 10000)
	for at, want := range map[uint64]payment.Reason{
		0:              payment.EVMValidAfter,
		after - 2:      payment.EVMValidAfter,
		after - 1:      payment.EVMValidAfter,
		after:          "",
		after + 1:      "",
		before - 6 - 1: "",
		before - 6:     "",
		before - 6 + 1: payment.EVMValidBefore,
		before - 1:     payment.EVMValidBefore,
		before:         payment.EVMValidBefore,
		before + 1:     payment.EVMValidBefore,
	} {
		for _, version := range []int{payment.V1, payment.V2} {
			p := paymentOf(version, o, transferFor(t, o, after, before))
			if got := reasonOf(t, p, termsFor(o), at); got != want {
				t.Errorf("at %d: %q, want %q", at, got, want)
			}
		}
	}
}

func TestTimesBeyond64BitsAreComparedAsTheyAre(t *testing.T) {
	o := offerOn(t, "eip155:84532", 10000)
	wide := new(big.Int).Lsh(big.NewInt(1), 255)
	transfer := transferFor(t, o, 0, 0)
	transfer.ValidBefore = wide
	if got := reasonOf(t, paymentOf(2, o, signed(t, transfer, termsFor(o).Separator)), termsFor(o), 1_790_000_000); got != "" {
		t.Errorf("validBefore of 256 bits: %s", got)
	}
	transfer.ValidAfter = new(big.Int).Add(wide, big.NewInt(1))
	if got := reasonOf(t, paymentOf(2, o, signed(t, transfer, termsFor(o).Separator)), termsFor(o), 1_790_000_000); got != payment.EVMValidAfter {
		t.Errorf("validAfter of 256 bits: %q", got)
	}
}

// Every wrong field has a reason of its own.
func TestEachWrongFieldHasItsReason(t *testing.T) {
	const now = 1_790_000_000
	_, other := account(t, "server/1")
	mainnet := offerOn(t, "eip155:8453", 10000)
	for name, row := range map[string]struct {
		change func(p *payment.Payment, o *payment.Offer, a *evm.Authorization)
		want   payment.Reason
		wantV1 payment.Reason // where it differs
	}{
		"nothing":               {func(*payment.Payment, *payment.Offer, *evm.Authorization) {}, "", ""},
		"version":               {func(p *payment.Payment, _ *payment.Offer, _ *evm.Authorization) { p.Version = 3 }, payment.InvalidVersion, ""},
		"scheme of the payment": {func(p *payment.Payment, _ *payment.Offer, _ *evm.Authorization) { p.Scheme = payment.Upto }, payment.EVMScheme, ""},
		"scheme of the offer":   {func(_ *payment.Payment, o *payment.Offer, _ *evm.Authorization) { o.Scheme = payment.Upto }, payment.EVMScheme, ""},
		"network":               {func(p *payment.Payment, _ *payment.Offer, _ *evm.Authorization) { p.Network = "eip155:8453" }, payment.EVMNetworkMismatch, ""},
		"domain name": {func(_ *payment.Payment, o *payment.Offer, _ *evm.Authorization) {
			token := o.Amount.Token()
			token.Name = ""
			o.Amount, _ = payment.NewAmount(o.Amount.Big(), token)
		}, payment.EVMMissingDomain, ""},
		"domain version": {func(_ *payment.Payment, o *payment.Offer, _ *evm.Authorization) {
			token := o.Amount.Token()
			token.Version = ""
			o.Amount, _ = payment.NewAmount(o.Amount.Big(), token)
		}, payment.EVMMissingDomain, ""},
		"price of zero": {func(_ *payment.Payment, o *payment.Offer, a *evm.Authorization) {
			o.Amount, _ = payment.NewAmount(new(big.Int), o.Amount.Token())
			a.Value = new(big.Int)
		}, payment.InvalidRequirements, ""},
		"recipient":      {func(_ *payment.Payment, _ *payment.Offer, a *evm.Authorization) { a.To = other }, payment.EVMRecipientMismatch, ""},
		"zero recipient": {func(_ *payment.Payment, _ *payment.Offer, a *evm.Authorization) { a.To = common.Address{} }, payment.EVMRecipientMismatch, ""},
		"one unit less":  {func(_ *payment.Payment, _ *payment.Offer, a *evm.Authorization) { a.Value = big.NewInt(9999) }, payment.EVMValueMismatch, payment.EVMValueMismatchV1},
		"one unit more":  {func(_ *payment.Payment, _ *payment.Offer, a *evm.Authorization) { a.Value = big.NewInt(10001) }, payment.EVMValueMismatch, payment.EVMValueMismatchV1},
		"value plus 2^64": {func(_ *payment.Payment, _ *payment.Offer, a *evm.Authorization) {
			a.Value = new(big.Int).Add(a.Value, new(big.Int).Lsh(big.NewInt(1), 64))
		}, payment.EVMValueMismatch, payment.EVMValueMismatchV1},
		"expired":    {func(_ *payment.Payment, _ *payment.Offer, a *evm.Authorization) { a.ValidBefore = big.NewInt(now) }, payment.EVMValidBefore, ""},
		"not yet":    {func(_ *payment.Payment, _ *payment.Offer, a *evm.Authorization) { a.ValidAfter = big.NewInt(now + 1) }, payment.EVMValidAfter, ""},
		"payer":      {func(_ *payment.Payment, _ *payment.Offer, a *evm.Authorization) { a.From = other }, payment.EVMSignature, ""},
		"zero payer": {func(_ *payment.Payment, _ *payment.Offer, a *evm.Authorization) { a.From = common.Address{} }, payment.EVMSignature, ""},
		"the same offer on another chain": {func(p *payment.Payment, o *payment.Offer, _ *evm.Authorization) {
			p.Network, o.Amount = mainnet.Network(), mainnet.Amount
		}, payment.EVMSignature, ""},
	} {
		for _, version := range []int{payment.V1, payment.V2} {
			o := offerOn(t, "eip155:84532", 10000)
			separator := termsFor(o).Separator
			transfer := transferFor(t, o, now-600, now+60)
			p := paymentOf(version, o, transfer)
			row.change(p, o, &transfer.Authorization)
			p.Payload = signed(t, transfer, separator).Encode()
			want := row.want
			if version == payment.V1 && row.wantV1 != "" {
				want = row.wantV1
			}
			if got := reasonOf(t, p, termsFor(o), now); got != want {
				t.Errorf("%s, version %d: %q, want %q", name, version, got, want)
			}
		}
	}
}

// A changed field is a changed digest: each one is signed.
func TestEveryFieldIsSigned(t *testing.T) {
	o := offerOn(t, "eip155:84532", 10000)
	good := transferFor(t, o, 1, 4102444800)
	separator := termsFor(o).Separator
	for name, change := range map[string]func(*evm.Transfer){
		"from":        func(x *evm.Transfer) { x.From[19]++ },
		"to":          func(x *evm.Transfer) { x.To[0]++ },
		"value":       func(x *evm.Transfer) { x.Value = new(big.Int).Add(x.Value, big.NewInt(1)) },
		"validAfter":  func(x *evm.Transfer) { x.ValidAfter = new(big.Int) },
		"validBefore": func(x *evm.Transfer) { x.ValidBefore = big.NewInt(4102444801) },
		"nonce":       func(x *evm.Transfer) { x.Nonce[31]++ },
		"r":           func(x *evm.Transfer) { x.Signature[5]++ },
		"s":           func(x *evm.Transfer) { x.Signature[50]++ },
		"v":           func(x *evm.Transfer) { x.Signature[64] ^= 7 }, // 27 and 28 change places
	} {
		changed := &evm.Transfer{Authorization: good.Authorization, Signature: append([]byte(nil), good.Signature...)}
		change(changed)
		if signer, err := evm.Recover(changed.Digest(separator), changed.Signature); err == nil && signer == good.From {
			t.Errorf("%s may be changed without the signature noticing", name)
		}
	}
}

func TestAPaymentForOneChainOrTokenIsWorthNothingOnAnother(t *testing.T) {
	const now = 1_790_000_000
	signedFor := offerOn(t, "eip155:84532", 10000)
	transfer := transferFor(t, signedFor, 0, now+60)
	for _, n := range []payment.Network{"eip155:1", "eip155:8453", "eip155:137", "eip155:11155111"} {
		o := offerOn(t, n, 10000)
		if got := reasonOf(t, paymentOf(2, o, transfer), termsFor(o), now); got != payment.EVMSignature {
			t.Errorf("%s: %q", n, got)
		}
	}
	// A token that copies name and version, at another address.
	fake := offerOn(t, "eip155:84532", 10000)
	token := fake.Amount.Token()
	token.Address = "0x0000000000000000000000000000000000007777"
	fake.Amount, _ = payment.NewAmount(fake.Amount.Big(), token)
	if got := reasonOf(t, paymentOf(2, fake, transfer), termsFor(fake), now); got != payment.EVMSignature {
		t.Errorf("another contract: %q", got)
	}
	// A domain name that is wrong for the chain.
	token = signedFor.Amount.Token()
	token.Name = "USD Coin"
	fake.Amount, _ = payment.NewAmount(fake.Amount.Big(), token)
	if got := reasonOf(t, paymentOf(2, fake, transfer), termsFor(fake), now); got != payment.EVMSignature {
		t.Errorf("another name: %q", got)
	}
}

// What is cheap to see is said before the signature is looked at.
func TestTheCheapestReasonComesFirst(t *testing.T) {
	const now = 1_790_000_000
	o := offerOn(t, "eip155:84532", 10000)
	transfer := transferFor(t, o, now+1, now)
	transfer.Signature = nil
	transfer.Value = big.NewInt(1)
	transfer.To = common.Address{}
	for _, step := range []struct {
		want payment.Reason
		fix  func()
	}{
		{payment.EVMRecipientMismatch, func() { transfer.To = common.HexToAddress(o.PayTo) }},
		{payment.EVMValueMismatch, func() { transfer.Value = o.Amount.Big() }},
		{payment.EVMValidBefore, func() { transfer.ValidBefore = big.NewInt(now + 60) }},
		{payment.EVMValidAfter, func() { transfer.ValidAfter = new(big.Int) }},
		{payment.EVMSignature, func() { signed(t, transfer, termsFor(o).Separator) }},
		{"", func() {}},
	} {
		if got := reasonOf(t, paymentOf(2, o, transfer), termsFor(o), now); got != step.want {
			t.Errorf("%q, want %q", got, step.want)
		}
		step.fix()
	}
}

func TestPayloadsThatCannotBeReadAreMalformedNotInvalid(t *testing.T) {
	o := offerOn(t, "eip155:84532", 10000)
	p := &payment.Payment{Version: 2, Scheme: payment.Exact, Network: o.Network(), Payload: json.RawMessage(`{"signature":"0x"}`)}
	transfer, err := evm.Check(p, termsFor(o), 0)
	var malformed *payment.MalformedError
	if transfer != nil || !errors.As(err, &malformed) || err.Error() != "payment: payload.authorization: is missing" {
		t.Errorf("got %v, %v", transfer, err)
	}
}

type signatureForms struct {
	Forms struct {
		Base struct {
			Digest, Signer string
			Canonical      string
		}
		HighS, YParityV, EIP2098Compact struct{ Signature string }
		WrongDomainName                 struct {
			Domain              vectorDomain
			DigestWithWrongName common.Hash
		}
	}
}

func TestOneSignatureFormIsCanonicalAndNoOtherIsAccepted(t *testing.T) {
	forms := readTestdata[signatureForms](t, "signatures.json").Forms
	digest := common.HexToHash(forms.Base.Digest)
	if signer, err := evm.Recover(digest, unhex(t, forms.Base.Canonical)); err != nil || signer.Hex() != forms.Base.Signer {
		t.Errorf("canonical: %s, %v", signer, err)
	}
	for name, s := range map[string]string{"high s": forms.HighS.Signature, "v of 0 or 1": forms.YParityV.Signature, "EIP-2098": forms.EIP2098Compact.Signature} {
		if signer, err := evm.Recover(digest, unhex(t, s)); err == nil || signer != (common.Address{}) {
			t.Errorf("%s: %s", name, signer)
		}
	}
	wrong := forms.WrongDomainName
	o := offerOn(t, "eip155:84532", 10000)
	if wrong.Domain.domain() == evm.DomainOf(o.Amount.Token()) {
		t.Error("the wrong name is ours")
	}
	if signer, err := evm.Recover(wrong.DigestWithWrongName, unhex(t, forms.Base.Canonical)); err == nil && signer.Hex() == forms.Base.Signer {
		t.Error("the signature holds under another domain name")
	}
}

func TestSignaturesAtTheEdgesOfTheCurveAreRefusedAsTheTokenDoes(t *testing.T) {
	n := crypto.S256().Params().N
	half := new(big.Int).Rsh(n, 1)
	plus := func(x *big.Int, d int64) *big.Int { return new(big.Int).Add(x, big.NewInt(d)) }
	top := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1))
	sig := func(r, s *big.Int, v byte) []byte {
		return append(append(common.BigToHash(r).Bytes(), common.BigToHash(s).Bytes()...), v)
	}

	o := offerOn(t, "eip155:84532", 10000)
	good := transferFor(t, o, 0, 4102444800)
	digest := good.Digest(termsFor(o).Separator)
	r, s, v := new(big.Int).SetBytes(good.Signature[:32]), new(big.Int).SetBytes(good.Signature[32:64]), good.Signature[64]
	if got := reasonOf(t, paymentOf(2, o, good), termsFor(o), 1); got != "" {
		t.Fatal(got)
	}
	// R is the point of the digest divided by s, so that recovery finds the
	// point at infinity, which is nobody's key.
	k := big.NewInt(12345)
	rx, ry := crypto.S256().ScalarBaseMult(k.Bytes())
	infinity := new(big.Int).Mul(new(big.Int).SetBytes(digest[:]), new(big.Int).ModInverse(k, n))
	infinity.Mod(infinity, n)
	parity := byte(27 + ry.Bit(0))
	if infinity.Cmp(half) > 0 {
		infinity.Sub(n, infinity)
		parity ^= 7
	}
	suffix := bytes.Repeat([]byte{0x64, 0x92}, 16)

	for name, row := range map[string]struct {
		signature []byte
		want      payment.Reason
	}{
		"empty":                          {nil, payment.EVMSignature},
		"one byte":                       {[]byte{27}, payment.EVMSignature},
		"64 bytes":                       {good.Signature[:64], payment.EVMSignature},
		"66 bytes":                       {append(append([]byte(nil), good.Signature...), 0), payment.EVMSignature},
		"66 bytes, zero in front":        {append([]byte{0}, good.Signature...), payment.EVMSignature},
		"130 bytes":                      {append(append([]byte(nil), good.Signature...), good.Signature...), payment.EVMSignature},
		"all zero":                       {make([]byte, 65), payment.EVMSignature},
		"all ones":                       {bytes.Repeat([]byte{0xff}, 65), payment.EVMSignature},
		"r zero":                         {sig(new(big.Int), s, v), payment.EVMSignature},
		"s zero":                         {sig(r, new(big.Int), v), payment.EVMSignature},
		"both zero":                      {sig(new(big.Int), new(big.Int), v), payment.EVMSignature},
		"r one":                          {sig(big.NewInt(1), s, v), payment.EVMSignature},
		"s one":                          {sig(r, big.NewInt(1), v), payment.EVMSignature},
		"r = n - 1":                      {sig(plus(n, -1), s, v), payment.EVMSignature},
		"r = n":                          {sig(n, s, v), payment.EVMSignature},
		"r = n + 1":                      {sig(plus(n, 1), s, v), payment.EVMSignature},
		"r = 2^256 - 1":                  {sig(top, s, v), payment.EVMSignature},
		"s = n / 2, of another key":      {sig(r, half, v), payment.EVMSignature},
		"s = n / 2 + 1":                  {sig(r, plus(half, 1), v), payment.EVMSignature},
		"s = n - 1":                      {sig(r, plus(n, -1), v), payment.EVMSignature},
		"s = n":                          {sig(r, n, v), payment.EVMSignature},
		"s = 2^256 - 1":                  {sig(r, top, v), payment.EVMSignature},
		"the other s, v unchanged":       {sig(r, new(big.Int).Sub(n, s), v), payment.EVMSignature},
		"the other s and the other v":    {sig(r, new(big.Int).Sub(n, s), v^7), payment.EVMSignature},
		"the other v":                    {sig(r, s, v^7), payment.EVMSignature},
		"v = 0 or 1":                     {sig(r, s, v-27), payment.EVMSignature},
		"v = 26":                         {sig(r, s, 26), payment.EVMSignature},
		"v = 29":                         {sig(r, s, 29), payment.EVMSignature},
		"v = 30":                         {sig(r, s, 30), payment.EVMSignature},
		"v of EIP-155":                   {sig(r, s, v+8), payment.EVMSignature},
		"v = 255":                        {sig(r, s, 255), payment.EVMSignature},
		"r and s exchanged":              {sig(s, r, v), payment.EVMSignature},
		"recovers the point at infinity": {sig(rx, infinity, parity), payment.EVMSignature},
		"r without a point on the curve": {sig(big.NewInt(5), s, v), payment.EVMSignature},
		"wrapped by ERC-6492":            {append(append([]byte(nil), good.Signature...), suffix...), payment.EVMFactoryNotAllowed},
		"the suffix of ERC-6492 alone":   {suffix, payment.EVMFactoryNotAllowed},
		"part of the suffix":             {suffix[1:], payment.EVMSignature},
	} {
		transfer := &evm.Transfer{Authorization: good.Authorization, Signature: row.signature}
		if got := reasonOf(t, paymentOf(2, o, transfer), termsFor(o), 1); got != row.want {
			t.Errorf("%s: %q, want %q", name, got, row.want)
		}
	}
}

// Recover takes what go-ethereum's own rule takes, and nothing else.
func TestTheUpperEdgeOfTheLowerHalfIsCanonical(t *testing.T) {
	n := crypto.S256().Params().N
	half := new(big.Int).Rsh(n, 1)
	rx, _ := crypto.S256().ScalarBaseMult([]byte{7})
	for d := int64(-2); d <= 2; d++ {
		s := new(big.Int).Add(half, big.NewInt(d))
		want := crypto.ValidateSignatureValues(0, rx, s, true)
		if want != (d <= 0) {
			t.Fatalf("go-ethereum's half differs at %d", d)
		}
		signature := append(append(common.BigToHash(rx).Bytes(), common.BigToHash(s).Bytes()...), 27)
		if _, err := evm.Recover(common.Hash{1}, signature); (err == nil) != want {
			t.Errorf("s = n/2 %+d: %v", d, err)
		}
	}
}

// FuzzCheck changes a good payment in any way. What is still accepted is what
// was signed, for the price, to the recipient.
func FuzzCheck(f *testing.F) {
	const now = 1_790_000_000
	o := offerOn(f, "eip155:84532", 10000)
	terms := termsFor(o)
	good := transferFor(f, o, 0, now+60)
	f.Add([]byte(good.Encode()), 2, uint64(now), "exact", "eip155:84532")
	f.Add([]byte(good.Encode()), 1, uint64(now+54), "exact", "eip155:84532")
	f.Add([]byte(strings.ToLower(string(good.Encode()))), 2, uint64(0), "exact", "eip155:84532")
	f.Add([]byte(`{"permit2Authorization":{}}`), 2, uint64(now), "exact", "eip155:84532")
	f.Add([]byte(good.Encode()), 3, uint64(now), "upto", "eip155:1")
	f.Fuzz(func(t *testing.T, payload []byte, version int, at uint64, scheme, network string) {
		p := &payment.Payment{Version: version, Scheme: payment.Scheme(scheme), Network: payment.Network(network), Payload: payload}
		transfer, err := evm.Check(p, terms, at)
		if err != nil {
			var malformed *payment.MalformedError
			var invalid *payment.InvalidError
			if transfer != nil || !errors.As(err, &malformed) && !errors.As(err, &invalid) {
				t.Fatalf("error of type %T with %v", err, transfer)
			}
			return
		}
		if !sameTransfer(transfer, good) || p.Scheme != payment.Exact || p.Network != o.Network() || version != 1 && version != 2 || at > now+60-6 {
			t.Fatalf("accepted %s at %d", payload, at)
		}
	})
}

// headerOf is a whole PAYMENT-SIGNATURE header for o.
func headerOf(o *payment.Offer, transfer *evm.Transfer) string {
	token := o.Amount.Token()
	accepted := `{"scheme":"exact","network":"` + string(o.Network()) + `","amount":"` + o.Amount.Units() + `","asset":"` + token.Address + `","payTo":"` + o.PayTo +
		`","maxTimeoutSeconds":60,"extra":{"name":"` + token.Name + `","version":"` + token.Version + `"}}`
	draft := payment.PaymentDraft{Version: payment.V2, Accepted: json.RawMessage(accepted), Resource: json.RawMessage(`{"url":"https://api.example.com/premium-data"}`), Payload: transfer.Encode()}
	_, value := draft.Header()
	return value
}

// BenchmarkCheck is all that a payment costs without the chain: from the
// header's text to the recovered signer.
func BenchmarkCheck(b *testing.B) {
	o := offerOn(b, "eip155:84532", 10000)
	header, terms, offers := []string{headerOf(o, transferFor(b, o, 0, 4102444800))}, termsFor(o), []payment.Offer{*o}
	b.ReportAllocs()
	for b.Loop() {
		p, err := payment.FromHeader(header, nil)
		if err != nil || payment.Match(p, offers) == nil {
			b.Fatal(err)
		}
		if _, err := evm.Check(p, terms, 1_790_000_000); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheckRejectsPrice is what garbage costs that looks like a payment.
func BenchmarkCheckRejectsPrice(b *testing.B) {
	o := offerOn(b, "eip155:84532", 10000)
	header, dearer := []string{headerOf(o, transferFor(b, o, 0, 4102444800))}, termsFor(offerOn(b, "eip155:84532", 10001))
	b.ReportAllocs()
	for b.Loop() {
		p, err := payment.FromHeader(header, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := evm.Check(p, dearer, 1_790_000_000); err == nil {
			b.Fatal("accepted")
		}
	}
}

func base64Header(doc string) string { return base64.StdEncoding.EncodeToString([]byte(doc)) }
