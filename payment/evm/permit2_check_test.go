package evm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// Permit2 asks for validAfter <= block time <= deadline, and six seconds are
// left for the next block to come.
func TestThePermitsWindowIsCheckedToTheSecond(t *testing.T) {
	const after, deadline = 1_790_000_000, 1_790_000_060
	for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		o := permitOffer(t, scheme, "eip155:84532", 10000)
		p, terms := permitPayment(o, permitFor(t, o, after, deadline)), permitTermsFor(t, o)
		for at, want := range map[uint64]payment.Reason{
			0:                payment.Permit2NotYetValid,
			after - 1:        payment.Permit2NotYetValid,
			after:            "",
			deadline - 7:     "",
			deadline - 6:     "",
			deadline - 5:     payment.Permit2Expired,
			deadline:         payment.Permit2Expired,
			deadline + 1:     payment.Permit2Expired,
			1<<64 - 1:        payment.Permit2Expired,
			1<<64 - 1 - 1000: payment.Permit2Expired,
		} {
			if got := permitReason(t, p, terms, at); got != want {
				t.Errorf("%s at %d: %q, want %q", scheme, at, got, want)
			}
		}
	}
}

// Every wrong field has a reason of its own.
func TestEachWrongFieldOfAPermitHasItsReason(t *testing.T) {
	const now = 1_790_000_000
	_, other := account(t, "server/1")
	type change func(p *payment.Payment, o *payment.Offer, s *evm.SignedPermit)
	for name, row := range map[string]struct {
		change      change
		exact, upto payment.Reason
	}{
		"nothing":               {func(*payment.Payment, *payment.Offer, *evm.SignedPermit) {}, "", ""},
		"version":               {func(p *payment.Payment, _ *payment.Offer, _ *evm.SignedPermit) { p.Version = 3 }, payment.InvalidVersion, payment.InvalidVersion},
		"version 1":             {func(p *payment.Payment, _ *payment.Offer, _ *evm.SignedPermit) { p.Version = 1 }, payment.EVMPayloadType, payment.EVMPayloadType},
		"scheme of the payment": {func(p *payment.Payment, _ *payment.Offer, _ *evm.SignedPermit) { p.Scheme = "stream" }, payment.EVMPayloadType, payment.UptoScheme},
		"scheme of the offer":   {func(_ *payment.Payment, o *payment.Offer, _ *evm.SignedPermit) { o.Scheme = "stream" }, payment.EVMPayloadType, payment.EVMPayloadType},
		"scheme of both": {func(p *payment.Payment, o *payment.Offer, _ *evm.SignedPermit) {
			p.Scheme, o.Scheme = "stream", "stream"
		}, payment.EVMPayloadType, payment.EVMPayloadType},
		"offer by EIP-3009": {func(_ *payment.Payment, o *payment.Offer, _ *evm.SignedPermit) {
			o.Extra["assetTransferMethod"] = json.RawMessage(`"eip3009"`)
		}, payment.EVMPayloadType, payment.EVMPayloadType},
		"offer without method": {func(_ *payment.Payment, o *payment.Offer, _ *evm.SignedPermit) {
			delete(o.Extra, "assetTransferMethod")
		}, payment.EVMPayloadType, ""},
		"network": {func(p *payment.Payment, _ *payment.Offer, _ *evm.SignedPermit) { p.Network = "eip155:8453" }, payment.EVMNetworkMismatch, payment.UptoNetworkMismatch},
		"price of zero": {func(_ *payment.Payment, o *payment.Offer, s *evm.SignedPermit) {
			o.Amount, _ = payment.NewAmount(new(big.Int), o.Amount.Token())
			s.Amount = new(big.Int)
		}, payment.InvalidRequirements, payment.InvalidRequirements},
		"spender":              {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.Spender = other }, payment.Permit2Spender, payment.Permit2Spender},
		"spender Permit2":      {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.Spender = evm.Permit2 }, payment.Permit2Spender, payment.Permit2Spender},
		"spender of the other": {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.Spender[19] ^= 3 }, payment.Permit2Spender, payment.Permit2Spender},
		"recipient":            {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.To = other }, payment.Permit2RecipientMismatch, payment.Permit2RecipientMismatch},
		"zero recipient":       {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.To = common.Address{} }, payment.Permit2RecipientMismatch, payment.Permit2RecipientMismatch},
		"facilitator":          {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.Facilitator = other }, "", payment.UptoFacilitatorMismatch},
		"zero facilitator":     {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.Facilitator = common.Address{} }, "", payment.UptoFacilitatorMismatch},
		"expired":              {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.Deadline = big.NewInt(now) }, payment.Permit2Expired, payment.Permit2Expired},
		"not yet":              {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.ValidAfter = big.NewInt(now + 1) }, payment.Permit2NotYetValid, payment.Permit2NotYetValid},
		"not for 2^255 s": {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) {
			s.ValidAfter = new(big.Int).Lsh(common.Big1, 255)
		}, payment.Permit2NotYetValid, payment.Permit2NotYetValid},
		"for 2^255 s": {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) {
			s.Deadline = new(big.Int).Lsh(common.Big1, 255)
		}, "", ""},
		"one unit less": {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.Amount = big.NewInt(9999) }, payment.Permit2AmountMismatch, payment.Permit2AmountMismatch},
		"one unit more": {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.Amount = big.NewInt(10001) }, payment.Permit2AmountMismatch, payment.Permit2AmountMismatch},
		"amount plus 2^64": {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) {
			s.Amount = new(big.Int).Add(s.Amount, new(big.Int).Lsh(common.Big1, 64))
		}, payment.Permit2AmountMismatch, payment.Permit2AmountMismatch},
		"token": {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) { s.Token = other }, payment.Permit2TokenMismatch, payment.Permit2TokenMismatch},
		"witness of the other": {func(_ *payment.Payment, _ *payment.Offer, s *evm.SignedPermit) {
			s.Scheme = map[payment.Scheme]payment.Scheme{"exact": "upto", "upto": "exact"}[s.Scheme]
		}, payment.EVMPayloadType, payment.EVMPayloadType},
		"paid for with the other": {func(p *payment.Payment, _ *payment.Offer, _ *evm.SignedPermit) {
			p.Scheme = map[payment.Scheme]payment.Scheme{"exact": "upto", "upto": "exact"}[p.Scheme]
		}, payment.EVMPayloadType, payment.UptoScheme},
	} {
		for scheme, want := range map[payment.Scheme]payment.Reason{payment.Exact: row.exact, payment.Upto: row.upto} {
			o := permitOffer(t, scheme, "eip155:84532", 10000)
			terms := permitTermsFor(t, o)
			s := permitFor(t, o, now-600, now+60)
			p := permitPayment(o, s)
			row.change(p, o, s)
			p.Payload = signedPermit(t, s, terms.Separator).Encode()
			if got := permitReason(t, p, terms, now); got != want {
				t.Errorf("%s, %s: %q, want %q", name, scheme, got, want)
			}
		}
	}
}

// A changed field is a changed digest: each one is signed.
func TestEveryFieldOfAPermitIsSigned(t *testing.T) {
	for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		o := permitOffer(t, scheme, "eip155:84532", 10000)
		good, separator := permitFor(t, o, 1, 4102444800), permitTermsFor(t, o).Separator
		for name, change := range map[string]func(*evm.SignedPermit){
			"token":       func(s *evm.SignedPermit) { s.Token[19]++ },
			"amount":      func(s *evm.SignedPermit) { s.Amount = new(big.Int).Add(s.Amount, common.Big1) },
			"spender":     func(s *evm.SignedPermit) { s.Spender[0]++ },
			"nonce":       func(s *evm.SignedPermit) { s.Nonce = new(big.Int).Xor(s.Nonce, common.Big1) },
			"deadline":    func(s *evm.SignedPermit) { s.Deadline = big.NewInt(4102444801) },
			"to":          func(s *evm.SignedPermit) { s.To[10]++ },
			"validAfter":  func(s *evm.SignedPermit) { s.ValidAfter = new(big.Int) },
			"facilitator": func(s *evm.SignedPermit) { s.Facilitator[3]++ },
			"scheme": func(s *evm.SignedPermit) {
				s.Scheme = map[payment.Scheme]payment.Scheme{"exact": "upto", "upto": "exact"}[s.Scheme]
			},
		} {
			changed := &evm.SignedPermit{Permit: good.Permit, Signature: good.Signature}
			change(changed)
			same := changed.Digest(separator) == good.Digest(separator)
			if want := scheme == payment.Exact && name == "facilitator"; same != want {
				t.Errorf("%s of %s: the digest stays the same: %v", name, scheme, same)
			}
		}
		if good.Digest(separator) == good.Digest(evm.Permit2Separator(8453)) {
			t.Errorf("%s: the digest is the same on another chain", scheme)
		}
	}
}

// What is cheap to see is said before the signature is looked at.
func TestTheCheapestReasonOfAPermitComesFirst(t *testing.T) {
	const now = 1_790_000_000
	o := permitOffer(t, payment.Upto, "eip155:84532", 10000)
	terms := permitTermsFor(t, o)
	good := permitFor(t, o, 0, now+60)
	s := &evm.SignedPermit{Permit: good.Permit, Signature: bytes.Repeat([]byte{0x64, 0x92}, 16)}
	s.Spender, s.To, s.Facilitator, s.Token = common.Address{}, common.Address{}, common.Address{}, common.Address{}
	s.Deadline, s.ValidAfter, s.Amount = big.NewInt(now), big.NewInt(now+1), common.Big1
	p := permitPayment(o, s)
	p.Network, p.Scheme = "eip155:1", payment.Exact
	for _, step := range []struct {
		want payment.Reason
		fix  func()
	}{
		{payment.UptoScheme, func() { p.Scheme = payment.Upto }},
		{payment.UptoNetworkMismatch, func() { p.Network = o.Network() }},
		{payment.Permit2Spender, func() { s.Spender = evm.UptoProxy }},
		{payment.Permit2RecipientMismatch, func() { s.To = good.To }},
		{payment.UptoFacilitatorMismatch, func() { s.Facilitator = good.Facilitator }},
		{payment.Permit2Expired, func() { s.Deadline = good.Deadline }},
		{payment.Permit2NotYetValid, func() { s.ValidAfter = good.ValidAfter }},
		{payment.Permit2AmountMismatch, func() { s.Amount = good.Amount }},
		{payment.Permit2TokenMismatch, func() { s.Token = good.Token }},
		{payment.EVMFactoryNotAllowed, func() { signedPermit(t, s, terms.Separator); s.Signature[64] -= 27 }},
		{payment.Permit2Signature, func() { signedPermit(t, s, terms.Separator) }},
		{"", func() {}},
	} {
		p.Payload = s.Encode()
		if got := permitReason(t, p, terms, now); got != step.want {
			t.Errorf("%q, want %q", got, step.want)
		}
		step.fix()
	}
}

// Permit2 takes a signature in several forms. Of those by the payer's own key
// one is accepted; what may be a contract's is passed on as such.
func TestPermitsAreAcceptedInOneFormAndContractsAreNotJudged(t *testing.T) {
	o := permitOffer(t, payment.Exact, "eip155:84532", 10000)
	terms := permitTermsFor(t, o)
	good := permitFor(t, o, 0, 4102444800)
	n := crypto.S256().Params().N
	change := func(f func(s []byte) []byte) []byte { return f(bytes.Clone(good.Signature)) }
	mirrored := func(s []byte) []byte {
		new(big.Int).Sub(n, new(big.Int).SetBytes(s[32:64])).FillBytes(s[32:64])
		s[64] ^= 7
		return s
	}
	compact := func(s []byte) []byte { s[32] |= (s[64] - 27) << 7; return s[:64] }
	for name, row := range map[string]struct {
		signature []byte
		want      string
	}{
		"canonical":                      {good.Signature, "own"},
		"v of 0 or 1":                    {change(func(s []byte) []byte { s[64] -= 27; return s }), "refused"},
		"high s":                         {change(mirrored), "refused"},
		"high s, v of 0 or 1":            {change(func(s []byte) []byte { s = mirrored(s); s[64] -= 27; return s }), "refused"},
		"EIP-2098":                       {change(compact), "refused"},
		"by another key":                 {signatureBy(t, "server/1", good.Digest(terms.Separator)), "contract"},
		"for another chain":              {signatureBy(t, "payer/1", good.Digest(evm.Permit2Separator(1))), "contract"},
		"the other v":                    {change(func(s []byte) []byte { s[64] ^= 7; return s }), "contract"},
		"v of EIP-155":                   {change(func(s []byte) []byte { s[64] += 8; return s }), "contract"},
		"v of a Safe":                    {change(func(s []byte) []byte { s[64] += 4; return s }), "contract"},
		"empty":                          {nil, "contract"},
		"63 bytes":                       {good.Signature[:63], "contract"},
		"66 bytes":                       {append(bytes.Clone(good.Signature), 0), "contract"},
		"two of them":                    {append(bytes.Clone(good.Signature), good.Signature...), "contract"},
		"all zero":                       {make([]byte, 65), "contract"},
		"all ones":                       {bytes.Repeat([]byte{0xff}, 65), "contract"},
		"s = n":                          {append(append(bytes.Clone(good.Signature[:32]), n.Bytes()...), 27), "contract"},
		"64 bytes of ones":               {bytes.Repeat([]byte{0xff}, 64), "contract"},
		"wrapped by ERC-6492":            {append(bytes.Clone(good.Signature), bytes.Repeat([]byte{0x64, 0x92}, 16)...), "wrapped"},
		"the suffix of ERC-6492 alone":   {bytes.Repeat([]byte{0x64, 0x92}, 16), "wrapped"},
		"4096 bytes, as much as we read": {bytes.Repeat([]byte{1}, 4096), "contract"},
	} {
		s, contract, err := evm.CheckPermit(permitPayment(o, &evm.SignedPermit{Permit: good.Permit, Signature: row.signature}), terms, 1_790_000_000)
		got := "own"
		var invalid *payment.InvalidError
		switch {
		case errors.As(err, &invalid) && s == nil && !contract:
			got = map[payment.Reason]string{payment.Permit2Signature: "refused", payment.EVMFactoryNotAllowed: "wrapped"}[invalid.Reason]
		case err != nil || s == nil || !bytes.Equal(s.Signature, row.signature):
			t.Errorf("%s: %v, %v", name, s, err)
		case contract:
			got = "contract"
		}
		if got != row.want {
			t.Errorf("%s: %s (%v), want %s", name, got, err, row.want)
		}
	}
}

func TestAPermitForOneChainIsNotThePayersOnAnother(t *testing.T) {
	o := permitOffer(t, payment.Exact, "eip155:84532", 10000)
	s := permitFor(t, o, 0, 4102444800)
	terms := permitTermsFor(t, o)
	terms.Separator = evm.Permit2Separator(8453)
	if got, contract, err := evm.CheckPermit(permitPayment(o, s), terms, 1_790_000_000); err != nil || got == nil || !contract {
		t.Errorf("got %v, %v, %v: it should need a contract", got, contract, err)
	}
}

func TestPermitsThatCannotBeReadAreMalformedNotInvalid(t *testing.T) {
	o := permitOffer(t, payment.Exact, "eip155:84532", 10000)
	p := &payment.Payment{Version: 2, Scheme: payment.Exact, Network: o.Network(), Payload: json.RawMessage(`{"signature":"0x"}`)}
	s, contract, err := evm.CheckPermit(p, permitTermsFor(t, o), 0)
	var malformed *payment.MalformedError
	if s != nil || contract || !errors.As(err, &malformed) || err.Error() != "payment: payload.permit2Authorization: is missing" {
		t.Errorf("got %v, %v", s, err)
	}
}

func TestUptoChargesAtMostWhatIsPermittedAndExactAllOfIt(t *testing.T) {
	for charge, want := range map[int64][2]payment.Reason{
		0:     {payment.Permit2AmountMismatch, ""},
		1:     {payment.Permit2AmountMismatch, ""},
		9999:  {payment.Permit2AmountMismatch, ""},
		10000: {"", ""},
		10001: {payment.Permit2AmountMismatch, payment.UptoExceedsAmount},
	} {
		for i, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
			s := permitFor(t, permitOffer(t, scheme, "eip155:84532", 10000), 0, 4102444800)
			got := payment.Reason("")
			err := s.CheckCharge(big.NewInt(charge))
			if invalid, ok := errors.AsType[*payment.InvalidError](err); ok {
				got = invalid.Reason
			}
			if (err == nil) != (want[i] == "") || got != want[i] {
				t.Errorf("%d by %s: %v, want %q", charge, scheme, err, want[i])
			}
		}
	}
}

// FuzzCheckPermit changes a good payment in any way. What is still taken for
// the payer's own is what was signed, for the price, to the recipient.
func FuzzCheckPermit(f *testing.F) {
	const now = 1_790_000_000
	good := map[payment.Scheme]*evm.SignedPermit{}
	terms := map[payment.Scheme]evm.PermitTerms{}
	for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		o := permitOffer(f, scheme, "eip155:84532", 10000)
		good[scheme], terms[scheme] = permitFor(f, o, 0, now+60), permitTermsFor(f, o)
		f.Add([]byte(good[scheme].Encode()), 2, uint64(now), string(scheme), scheme == payment.Upto)
		f.Add([]byte(good[scheme].Encode()), 1, uint64(now), string(scheme), scheme == payment.Exact)
	}
	f.Add([]byte(exactPermit), 2, uint64(1<<64-1), "exact", false)
	f.Add([]byte(`{"authorization":{}}`), 2, uint64(now), "exact", false)
	f.Fuzz(func(t *testing.T, payload []byte, version int, at uint64, scheme string, upto bool) {
		offered := payment.Exact
		if upto {
			offered = payment.Upto
		}
		p := &payment.Payment{Version: version, Scheme: payment.Scheme(scheme), Network: "eip155:84532", Payload: payload}
		s, contract, err := evm.CheckPermit(p, terms[offered], at)
		if err != nil {
			var malformed *payment.MalformedError
			var invalid *payment.InvalidError
			if s != nil || contract || !errors.As(err, &malformed) && !errors.As(err, &invalid) {
				t.Fatalf("error of type %T with %v", err, s)
			}
			return
		}
		want := good[offered]
		if p.Scheme != offered || version != 2 || s.Amount.Cmp(want.Amount) != 0 || s.To != want.To || s.Token != want.Token || s.Spender != want.Spender ||
			s.Facilitator != want.Facilitator || s.Deadline.Cmp(new(big.Int).SetUint64(at)) <= 0 {
			t.Fatalf("accepted %s at %d", payload, at)
		}
		if !contract && !samePermit(s, want) {
			t.Fatalf("taken for the payer's: %s", payload)
		}
	})
}

// BenchmarkCheckPermit is all that a payment costs without the chain: from the
// payload's text to the recovered signer.
func BenchmarkCheckPermit(b *testing.B) {
	for _, scheme := range []payment.Scheme{payment.Exact, payment.Upto} {
		b.Run(string(scheme), func(b *testing.B) {
			o := permitOffer(b, scheme, "eip155:84532", 10000)
			p, terms := permitPayment(o, permitFor(b, o, 0, 4102444800)), permitTermsFor(b, o)
			b.ReportAllocs()
			for b.Loop() {
				if _, contract, err := evm.CheckPermit(p, terms, 1_790_000_000); err != nil || contract {
					b.Fatal(contract, err)
				}
			}
		})
	}
}

// BenchmarkCheckPermitRejectsPrice is what garbage costs that looks like a
// payment.
func BenchmarkCheckPermitRejectsPrice(b *testing.B) {
	o := permitOffer(b, payment.Exact, "eip155:84532", 10000)
	p, dearer := permitPayment(o, permitFor(b, o, 0, 4102444800)), permitTermsFor(b, permitOffer(b, payment.Exact, "eip155:84532", 10001))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := evm.CheckPermit(p, dearer, 1_790_000_000); err == nil {
			b.Fatal("accepted")
		}
	}
}
