package evm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

var (
	codeless   = evm.AccountOf(nil)
	deployed   = evm.AccountOf([]byte{0x60, 0x00})
	delegating = evm.AccountOf(common.FromHex("0xef01000102030405060708090a0b0c0d0e0f1011121314"))
)

func TestAnAccountIsWhatItsCodeSays(t *testing.T) {
	for code, want := range map[string]evm.Account{
		"0x": {},
		"0xef01000102030405060708090a0b0c0d0e0f1011121314":   {Kind: evm.Delegated, Delegate: common.HexToAddress("0x0102030405060708090a0b0c0d0e0f1011121314")},
		"0xef010001020304050607080900b0c0d0e0f101112131":     {Kind: evm.Contract}, // a byte short
		"0xef01000102030405060708090a0b0c0d0e0f101112131415": {Kind: evm.Contract}, // one more
		"0xef01010102030405060708090a0b0c0d0e0f1011121314":   {Kind: evm.Contract},
		"0x00": {Kind: evm.Contract},
	} {
		if got := evm.AccountOf(common.FromHex(code)); got != want {
			t.Errorf("%s: %v of %s", code, got.Kind, got.Delegate)
		}
	}
	if evm.Plain.String() != "plain" || delegating.Kind.String() != "delegated" || deployed.Kind.String() != "contract" {
		t.Error("a kind has another name")
	}
}

type walletVectors struct {
	FunctionSelectors []struct{ Label, Signature, Selector string }
	ERC6492           struct{ Factory, FactoryCalldata, InnerSignature, Wrapped string }
}

func TestTheWrapperOfTheVectorsIsReadAndWritten(t *testing.T) {
	v := readTestdata[walletVectors](t, "wallets.json").ERC6492
	w, wrapped, err := evm.ReadWrapper(unhex(t, v.Wrapped))
	if err != nil || !wrapped {
		t.Fatalf("wrapped: %v, %v", wrapped, err)
	}
	if w.Factory != common.HexToAddress(v.Factory) || !bytes.Equal(w.Calldata, unhex(t, v.FactoryCalldata)) || !bytes.Equal(w.Signature, unhex(t, v.InnerSignature)) {
		t.Errorf("read %+v", w)
	}
	if !bytes.Equal(w.Encode(), unhex(t, v.Wrapped)) {
		t.Errorf("written as %x", w.Encode())
	}
	if w, wrapped, err := evm.ReadWrapper(unhex(t, v.InnerSignature)); w != nil || wrapped || err != nil {
		t.Errorf("what is not wrapped is read as %v, %v, %v", w, wrapped, err)
	}
}

func TestWrappersAreReadInOneEncodingOnly(t *testing.T) {
	factory := common.HexToAddress("0x0102030405060708090a0b0c0d0e0f1011121314")
	good := evm.Wrapper{Factory: factory, Calldata: []byte{1, 2, 3, 4, 5}, Signature: make([]byte, 65)}
	encoded := good.Encode()
	if _, wrapped, err := evm.ReadWrapper(encoded); !wrapped || err != nil {
		t.Fatalf("%v, %v", wrapped, err)
	}
	magic := encoded[len(encoded)-32:]
	change := func(at int, to byte) []byte {
		b := bytes.Clone(encoded)
		b[at] = to
		return b
	}
	for name, signature := range map[string][]byte{
		"nothing but the magic end":  magic,
		"one word":                   append(make([]byte, 32), magic...),
		"no factory":                 (&evm.Wrapper{Calldata: good.Calldata, Signature: good.Signature}).Encode(),
		"no signature":               (&evm.Wrapper{Factory: factory, Calldata: good.Calldata}).Encode(),
		"a wrapper in the wrapper":   (&evm.Wrapper{Factory: factory, Calldata: good.Calldata, Signature: encoded}).Encode(),
		"a wide factory":             change(0, 1),
		"another place for the call": change(63, 0x40),
		"a huge offset":              change(32, 0xff),
		"a huge length":              change(96, 0xff),
		"a shorter call":             change(127, 4),
		"a word of trailing junk":    slices.Concat(encoded[:len(encoded)-32], make([]byte, 32), magic),
		"a byte of trailing junk":    slices.Concat(encoded[:len(encoded)-32], []byte{0}, magic),
		"something in the padding":   change(4*32+31, 1),
		"one byte less":              encoded[1:],
		"cut before the signature":   slices.Concat(encoded[:5*32], magic),
	} {
		if w, wrapped, err := evm.ReadWrapper(signature); w != nil || !wrapped || err == nil {
			t.Errorf("%s: read as %+v, %v", name, w, wrapped)
		}
	}
}

func TestOnlyTheNamedFunctionsOfTheNamedFactoriesMayBeCalled(t *testing.T) {
	factory, other := common.HexToAddress("0xfac7000000000000000000000000000000000001"), common.HexToAddress("0xfac7000000000000000000000000000000000002")
	allowed := evm.Factories{factory: {{1, 2, 3, 4}, {5, 6, 7, 8}}}
	if err := allowed.Validate(); err != nil {
		t.Error(err)
	}
	for _, row := range []struct {
		factory  common.Address
		calldata []byte
		want     bool
	}{
		{factory, []byte{1, 2, 3, 4}, true},
		{factory, []byte{5, 6, 7, 8, 9}, true},
		{factory, []byte{1, 2, 3, 5}, false},
		{factory, []byte{1, 2, 3}, false},
		{factory, nil, false},
		{other, []byte{1, 2, 3, 4}, false},
	} {
		w := &evm.Wrapper{Factory: row.factory, Calldata: row.calldata}
		if allowed.Allows(w) != row.want || evm.Factories(nil).Allows(w) {
			t.Errorf("%s with %x", row.factory, row.calldata)
		}
	}
	for _, never := range []common.Address{{}, {19: 4}, {18: 1}, evm.Multicall3, evm.Permit2, evm.ExactProxy, evm.UptoProxy} {
		if (evm.Factories{never: {{1, 2, 3, 4}}}).Validate() == nil {
			t.Errorf("%s is taken for a factory", never)
		}
	}
	if (evm.Factories{factory: nil}).Validate() == nil {
		t.Error("a factory that may do nothing is taken")
	}
}

// wrap puts a signature into a wrapper for a factory that factories allows.
func wrap(signature []byte) []byte {
	return (&evm.Wrapper{Factory: someFactory, Calldata: []byte{1, 2, 3, 4}, Signature: signature}).Encode()
}

var (
	someFactory = common.HexToAddress("0xfac7000000000000000000000000000000000001")
	factories   = evm.Factories{someFactory: {{1, 2, 3, 4}}}
)

func reasonIn(t *testing.T, err error) payment.Reason {
	t.Helper()
	if err == nil {
		return ""
	}
	invalid, ok := errors.AsType[*payment.InvalidError](err)
	if !ok {
		t.Fatalf("%T: %v", err, err)
	}
	if invalid.Payer == "" || invalid.Message == "" {
		t.Errorf("%v says too little", err)
	}
	return invalid.Reason
}

// verdict is what becomes of a payment: the way it is to be checked, or the
// reason it is refused for.
func verdict(t *testing.T, way evm.Way, err error) string {
	t.Helper()
	if err != nil {
		return string(reasonIn(t, err))
	}
	return way.String()
}

// How a signature is checked follows from who the payer is now, and from what
// can be seen without the chain.
func TestEachPayerIsCheckedInItsWay(t *testing.T) {
	const (
		now    = 1_790_000_000
		forged = "the reason for a signature that is not good"
	)
	o := offerOn(t, "eip155:84532", 10000)
	other, _ := account(t, "server/1")
	byOther := func(_ []byte, digest common.Hash) []byte {
		s, err := crypto.Sign(digest[:], other)
		if err != nil {
			t.Fatal(err)
		}
		s[64] += 27
		return s
	}
	mirrored := func(good []byte, _ common.Hash) []byte {
		s := bytes.Clone(good)
		new(big.Int).Sub(crypto.S256().Params().N, new(big.Int).SetBytes(s[32:64])).FillBytes(s[32:64])
		s[64] ^= 27 ^ 28
		return s
	}
	elsewhere := func(_ []byte, digest common.Hash) []byte {
		return (&evm.Wrapper{Factory: someFactory, Calldata: []byte{9, 9, 9, 9}, Signature: byOther(nil, digest)}).Encode()
	}
	for name, row := range map[string]struct {
		signature                    func(good []byte, digest common.Hash) []byte
		pure                         string // what refuses it before the chain is asked
		plain, delegated, contractor string
	}{
		"by the key":               {func(good []byte, _ common.Hash) []byte { return good }, "", "key", "contract", "contract"},
		"by the key, high s":       {mirrored, forged, "", "", ""},
		"by the key, v of 0 or 1":  {func(good []byte, _ common.Hash) []byte { return append(bytes.Clone(good[:64]), good[64]-27) }, forged, "", "", ""},
		"by another key":           {byOther, "", forged, "contract", "contract"},
		"65 bytes that are none":   {func([]byte, common.Hash) []byte { return make([]byte, 65) }, "", forged, "contract", "contract"},
		"64 bytes":                 {func([]byte, common.Hash) []byte { return make([]byte, 64) }, "", forged, "contract", "contract"},
		"one byte":                 {func([]byte, common.Hash) []byte { return make([]byte, 1) }, "", forged, "contract", "contract"},
		"longer than a key's":      {func(good []byte, _ common.Hash) []byte { return append(bytes.Clone(good), 0) }, "", string(payment.EVMUndeployedWallet), "contract", "contract"},
		"wrapped":                  {func(_ []byte, digest common.Hash) []byte { return wrap(byOther(nil, digest)) }, "", "factory", "contract", "contract"},
		"wrapped without need":     {func(good []byte, _ common.Hash) []byte { return wrap(good) }, forged, "", "", ""},
		"wrapped, high s":          {func(good []byte, digest common.Hash) []byte { return wrap(mirrored(good, digest)) }, forged, "", "", ""},
		"wrapped for another call": {elsewhere, string(payment.EVMFactoryNotAllowed), "", "", ""},
		"wrapped badly":            {func(good []byte, _ common.Hash) []byte { return wrap(good)[1:] }, string(payment.EVMSignatureFormat), "", "", ""},
	} {
		for _, scheme := range []string{"eip3009", "permit2", "upto"} {
			var i *evm.Instrument
			var contract bool
			var err error
			bad := payment.Permit2Signature
			if scheme == "eip3009" {
				bad = payment.EVMSignature
				terms := termsFor(o)
				terms.Factories = factories
				transfer := transferFor(t, o, 0, now+60)
				transfer.Signature = row.signature(transfer.Signature, transfer.Digest(terms.Separator))
				i = evm.OfTransfer(devUSDC, transfer)
				_, contract, err = evm.CheckTransfer(paymentOf(payment.V2, o, transfer), terms, now)
			} else {
				offer := permitOffer(t, payment.Exact, "eip155:84532", 10000)
				if scheme == "upto" {
					offer = permitOffer(t, payment.Upto, "eip155:84532", 10000)
				}
				terms := permitTermsFor(t, offer)
				terms.Factories = factories
				permit := permitFor(t, offer, 0, now+60)
				permit.Signature = row.signature(permit.Signature, permit.Digest(terms.Separator))
				i = evm.OfPermit(permit, nil)
				_, contract, err = evm.CheckPermit(permitPayment(offer, permit), terms, now)
			}
			exact := func(want string) string {
				switch {
				case want == forged:
					return string(bad)
				case want == "factory" && scheme == "upto": // its proxy asks who calls
					return string(payment.EVMUndeployedWallet)
				}
				return want
			}
			if got := string(reasonIn(t, err)); got != exact(row.pure) {
				t.Errorf("%s, %s: %q, want %q", name, scheme, got, exact(row.pure))
			}
			if err != nil {
				continue
			}
			for account, want := range map[evm.Account]string{codeless: row.plain, delegating: row.delegated, deployed: row.contractor} {
				way, err := i.Way(account, contract)
				if got := verdict(t, way, err); got != exact(want) {
					t.Errorf("%s, %s, %s: %q, want %q", name, scheme, account.Kind, got, exact(want))
				}
			}
		}
	}
}

var devUSDC = common.HexToAddress("0x036CbD53842c5426634e7929541eC2318f3dCF7e")

func TestASignatureThatIsNotThereIsNone(t *testing.T) {
	o := offerOn(t, "eip155:84532", 10000)
	transfer := transferFor(t, o, 0, 1_790_000_060)
	transfer.Signature = nil
	_, _, err := evm.CheckTransfer(paymentOf(payment.V2, o, transfer), termsFor(o), 1_790_000_000)
	if got := reasonIn(t, err); got != payment.EVMSignature {
		t.Errorf("%q", got)
	}
}

// Without an allow list a wrapper is refused before anybody is asked, be the
// wallet deployed or not, and whatever the wrapper says.
func TestWrappersAreRefusedWhereNoFactoryIsAllowed(t *testing.T) {
	o := offerOn(t, "eip155:84532", 10000)
	for _, signature := range [][]byte{wrap(make([]byte, 65)), wrap(make([]byte, 65))[1:], wrap(nil)} {
		transfer := transferFor(t, o, 0, 1_790_000_060)
		transfer.Signature = signature
		_, _, err := evm.CheckTransfer(paymentOf(payment.V2, o, transfer), termsFor(o), 1_790_000_000)
		if got := reasonIn(t, err); got != payment.EVMFactoryNotAllowed {
			t.Errorf("%x: %q", signature, got)
		}
	}
}

// The cases of the reference once more, as they are checked where contracts may
// pay: its chain has no code at the payer.
func TestWaysGiveTheReasonsOfTheReference(t *testing.T) {
	stricter := map[string]payment.Reason{
		"exact-eip3009-v-0-1":        payment.EVMSignature, // the token reverts
		"exact-eip3009-asset-is-eoa": "",                   // only the chain can tell
	}
	type cases struct {
		Now          uint64
		Facilitators []common.Address
		Cases        []struct {
			ID                 string
			Body               json.RawMessage
			ReferenceSdkResult struct {
				InvalidReason payment.Reason
				Payer         string
			}
		}
	}
	for _, file := range []string{"verify.json", "permit2-verify.json"} {
		f := readTestdata[cases](t, file)
		for _, c := range f.Cases {
			p, o, err := payment.DecodeRequest(c.Body)
			if err != nil {
				t.Fatal(err)
			}
			want := c.ReferenceSdkResult.InvalidReason
			if reason, ok := stricter[c.ID]; ok {
				want = reason
			}
			var i *evm.Instrument
			var isContract bool
			if file == "verify.json" {
				var transfer *evm.Transfer
				if transfer, isContract, err = evm.CheckTransfer(p, termsFor(o), f.Now); err == nil {
					i = evm.OfTransfer(devUSDC, transfer)
				}
			} else {
				o.Amount = p.Accepted.Amount
				terms := permitTermsFor(t, o)
				terms.Facilitators = f.Facilitators
				var permit *evm.SignedPermit
				if permit, isContract, err = evm.CheckPermit(p, terms, f.Now); err == nil {
					i = evm.OfPermit(permit, nil)
					usdc, _ := payment.USDC(o.Network())
					_, err = evm.CheckApproval(p.Extensions, &permit.Permit, evm.DomainOf(usdc).Separator(), f.Now)
				}
			}
			if err == nil {
				var way evm.Way
				if way, err = i.Way(codeless, isContract); err == nil && way != evm.ByKey {
					t.Errorf("%s is to be checked by %s", c.ID, way)
				}
			}
			invalid, _ := errors.AsType[*payment.InvalidError](err)
			if (err == nil) != (want == "") || err != nil && (invalid == nil || invalid.Reason != want || invalid.Payer != c.ReferenceSdkResult.Payer) {
				t.Errorf("%s: %v, want %q", c.ID, err, want)
			}
		}
	}
}

// go-ethereum's encoder is the judge of ours.
func TestWalletCallsAreEncodedAsTheContractsReadThem(t *testing.T) {
	for _, f := range readTestdata[walletVectors](t, "wallets.json").FunctionSelectors {
		want := crypto.Keccak256([]byte(f.Signature))[:4]
		call := evm.SignatureCall(common.Address{}, common.Hash{}, nil)
		if f.Label == "Multicall3 tryAggregate" {
			call = evm.TryCalls()
		}
		if !bytes.Equal(want, unhex(t, f.Selector)) || !bytes.HasPrefix(call.Data, want) {
			t.Errorf("%s: selector %x, call %x", f.Label, want, call.Data)
		}
	}
	kind := func(name string, members ...abi.ArgumentMarshaling) abi.Type {
		made, err := abi.NewType(name, "", members)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	wallet := common.HexToAddress("0x0102030405060708090a0b0c0d0e0f1011121314")
	for _, n := range []int{0, 1, 32, 65, 400} {
		digest, signature := common.HexToHash("0x1234"), bytes.Repeat([]byte{7}, n)
		want, err := abi.Arguments{{Type: kind("bytes32")}, {Type: kind("bytes")}}.Pack([32]byte(digest), signature)
		if err != nil {
			t.Fatal(err)
		}
		if got := evm.SignatureCall(wallet, digest, signature); got.To != wallet || !bytes.Equal(got.Data[4:], want) {
			t.Errorf("%d bytes: %x", n, got.Data)
		}

		type call struct {
			Target   common.Address
			CallData []byte
		}
		list := kind("tuple[]", abi.ArgumentMarshaling{Name: "target", Type: "address"}, abi.ArgumentMarshaling{Name: "callData", Type: "bytes"})
		want, err = abi.Arguments{{Type: kind("bool")}, {Type: list}}.Pack(false, []call{{wallet, signature}, {devUSDC, []byte{1, 2, 3}}})
		if err != nil {
			t.Fatal(err)
		}
		got := evm.TryCalls(evm.Call{To: wallet, Data: signature}, evm.Call{To: devUSDC, Data: []byte{1, 2, 3}})
		if got.To != evm.Multicall3 || !bytes.Equal(got.Data[4:], want) {
			t.Errorf("%d bytes: %x", n, got.Data)
		}

		arguments := abi.Arguments{{Type: kind("address")}, {Type: kind("bytes")}, {Type: kind("bytes")}}
		if want, err = arguments.Pack(wallet, []byte{1, 2, 3, 4}, signature); err != nil {
			t.Fatal(err)
		}
		if got := (&evm.Wrapper{Factory: wallet, Calldata: []byte{1, 2, 3, 4}, Signature: signature}).Encode(); !bytes.Equal(got[:len(got)-32], want) {
			t.Errorf("%d bytes: wrapper %x", n, got)
		}
	}
}

func TestAWalletAcceptsWithTheWholeWordOnly(t *testing.T) {
	magic := append([]byte{0x16, 0x26, 0xba, 0x7e}, make([]byte, 28)...)
	if !evm.SignatureAccepted(magic) {
		t.Error("the magic value is refused")
	}
	left := append(make([]byte, 28), magic[:4]...)
	dirty := bytes.Clone(magic)
	dirty[31] = 1
	for _, answer := range [][]byte{nil, magic[:4], magic[:31], append(bytes.Clone(magic), 0), left, dirty, bytes.Repeat([]byte{0xff}, 32)} {
		if evm.SignatureAccepted(answer) {
			t.Errorf("%x is taken for the magic value", answer)
		}
	}
}

// Contracts know nothing of wrappers, and every call built from what the payer
// sent must do without.
func TestContractsAreGivenTheSignatureInTheWrapper(t *testing.T) {
	o := offerOn(t, "eip155:84532", 10000)
	inner := bytes.Repeat([]byte{7}, 130)
	transfer := transferFor(t, o, 0, 1_790_000_060)
	permit := permitFor(t, permitOffer(t, payment.Exact, "eip155:84532", 10000), 0, 1_790_000_060)
	transfer.Signature, permit.Signature = inner, inner
	for _, bare := range []*evm.Instrument{evm.OfTransfer(devUSDC, transfer), evm.OfPermit(permit, nil)} {
		if bare.Unwrapped() != bare {
			t.Error("what has no wrapper has changed")
		}
		if _, err := bare.DeployAndSpend(bare.Most); err == nil {
			t.Error("a factory is called that nobody has named")
		}
		separator := common.HexToHash("0x5e")
		spend, ask, key, proof := bare.Spend(bare.Most), bare.SignatureCall(separator), bare.Key(84532), bare.Proof()

		var i *evm.Instrument
		if bare.Permit != nil {
			s := *permit
			s.Signature = wrap(inner)
			i = evm.OfPermit(&s, nil)
		} else {
			i = evm.OfTransfer(devUSDC, &evm.Transfer{Authorization: transfer.Authorization, Signature: wrap(inner)})
		}
		u := i.Unwrapped()
		for _, got := range []evm.Call{i.Spend(i.Most), u.Spend(u.Most)} {
			if got.To != spend.To || !bytes.Equal(got.Data, spend.Data) {
				t.Errorf("the call is %x, want %x", got.Data, spend.Data)
			}
		}
		if got := i.SignatureCall(separator); got.To != i.Payer || !bytes.Equal(got.Data, ask.Data) {
			t.Errorf("the wallet is asked %x, want %x", got.Data, ask.Data)
		}
		if i.Key(84532) != key || u.Key(84532) != key || i.Proof() == proof || u.Proof() != proof {
			t.Error("the wrapper is part of the key, or no part of the proof")
		}
		both, err := i.DeployAndSpend(i.Most)
		want := evm.TryCalls(evm.Call{To: someFactory, Data: []byte{1, 2, 3, 4}}, spend)
		if err != nil || both.To != evm.Multicall3 || !bytes.Equal(both.Data, want.Data) {
			t.Errorf("deploying: %x, %v", both.Data, err)
		}
	}
}

func TestOnlyAWholeAnswerTellsWhatWasSpent(t *testing.T) {
	answer := func(results ...byte) []byte {
		b := word32(32)
		b = append(b, word32(uint64(len(results)))...)
		for i := range results {
			b = append(b, word32(uint64(32*len(results)+96*i))...)
		}
		for _, ok := range results {
			b = append(b, word32(uint64(ok))...)
			b = append(b, word32(64)...)
			b = append(b, word32(0)...)
		}
		return b
	}
	for _, row := range []struct{ deployed, spent byte }{{0, 0}, {0, 1}, {1, 0}, {1, 1}} {
		deployed, spent, err := evm.DeployedAndSpent(answer(row.deployed, row.spent))
		if err != nil || deployed != (row.deployed == 1) || spent != (row.spent == 1) {
			t.Errorf("%v: %v, %v, %v", row, deployed, spent, err)
		}
	}
	for _, bad := range [][]byte{nil, answer(1), answer(1, 1, 1), answer(1, 1)[:100], answer(1, 2)} {
		if _, spent, err := evm.DeployedAndSpent(bad); err == nil || spent {
			t.Errorf("%x is read", bad)
		}
	}
}

func TestOnlyCallsThatMayFailEachAreReadBack(t *testing.T) {
	made := evm.TryCalls(evm.Call{To: someFactory, Data: []byte{1, 2, 3, 4, 5}}, evm.Call{To: devUSDC, Data: make([]byte, 64)})
	calls, err := evm.ReadTryCalls(made.Data)
	if err != nil || len(calls) != 2 || calls[0].To != someFactory || !bytes.Equal(calls[0].Data, []byte{1, 2, 3, 4, 5}) || calls[1].To != devUSDC || len(calls[1].Data) != 64 {
		t.Fatalf("%+v, %v", calls, err)
	}
	for at := range made.Data {
		changed := bytes.Clone(made.Data)
		changed[at] ^= 0x80
		calls, err := evm.ReadTryCalls(changed)
		if err == nil && !bytes.Equal(evm.TryCalls(calls...).Data, changed) {
			t.Errorf("with byte %d changed it is read as %+v", at, calls)
		}
		if calls, err := evm.ReadTryCalls(made.Data[:at]); err == nil {
			t.Errorf("%d bytes are read as %+v", at, calls)
		}
	}
	if _, err := evm.ReadTryCalls(append(made.Data, make([]byte, 32)...)); err == nil {
		t.Error("trailing junk is read")
	}
}

// A wrapper has somebody call a contract with data that the payer chooses
// (THREATS T30).
func TestHostileWrappersAreRefusedBeforeAnythingIsAsked(t *testing.T) {
	o := offerOn(t, "eip155:84532", 10000)
	terms := termsFor(o)
	terms.Factories = factories
	good := transferFor(t, o, 0, 1_790_000_060)
	call := func(signature string) []byte {
		return append(crypto.Keccak256([]byte(signature))[:4], make([]byte, 96)...)
	}
	wrappers := []evm.Wrapper{
		{Factory: someFactory, Calldata: call("upgradeToAndCall(address,bytes)")},
		{Factory: someFactory, Calldata: call("execute(address,uint256,bytes)")},
		{Factory: someFactory},
		{Factory: someFactory, Calldata: []byte{1, 2, 3}},
		{Factory: someFactory, Calldata: append([]byte{0}, 1, 2, 3, 4)},
	}
	targets := []common.Address{devUSDC, evm.Permit2, evm.Multicall3, evm.ExactProxy, evm.UptoProxy, good.From, good.To, {18: 1}}
	for i := range byte(0x12) { // the precompiled contracts
		targets = append(targets, common.Address{19: i + 1})
	}
	for _, to := range targets {
		for _, f := range []string{"transfer(address,uint256)", "approve(address,uint256)", "aggregate3((address,bool,bytes)[])", "grantRole(bytes32,address)"} {
			wrappers = append(wrappers, evm.Wrapper{Factory: to, Calldata: call(f)})
		}
		wrappers = append(wrappers, evm.Wrapper{Factory: to, Calldata: []byte{1, 2, 3, 4}}) // what the factory may do
	}
	for _, w := range wrappers {
		w.Signature = make([]byte, 65)
		transfer := &evm.Transfer{Authorization: good.Authorization, Signature: w.Encode()}
		_, _, err := evm.CheckTransfer(paymentOf(payment.V2, o, transfer), terms, 1_790_000_000)
		if got := reasonIn(t, err); got != payment.EVMFactoryNotAllowed {
			t.Errorf("%s with %x: %q", w.Factory, w.Calldata, got)
		}
	}
	if len(wrappers) < 40 {
		t.Errorf("only %d wrappers", len(wrappers))
	}
}

func word32(n uint64) []byte { return common.BigToHash(new(big.Int).SetUint64(n)).Bytes() }

func FuzzReadWrapper(f *testing.F) {
	f.Add(wrap(make([]byte, 65)))
	f.Add(wrap(nil))
	f.Add(wrap(wrap([]byte{1})))
	f.Add(evm.TryCalls(evm.Call{To: someFactory, Data: []byte{1}}, evm.Call{To: devUSDC}).Data)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, signature []byte) {
		w, wrapped, err := evm.ReadWrapper(signature)
		switch {
		case err != nil || !wrapped:
			if w != nil {
				t.Error("a wrapper beside an error")
			}
		case !bytes.Equal(w.Encode(), signature):
			t.Errorf("%x is written as %x", signature, w.Encode())
		case w.Factory == common.Address{} || len(w.Signature) == 0:
			t.Errorf("read %+v", w)
		}
		_ = evm.Factories{}.Allows(&evm.Wrapper{Calldata: signature})
		if _, spent, err := evm.DeployedAndSpent(signature); spent && err != nil {
			t.Error("spent, and an error")
		}
		if calls, err := evm.ReadTryCalls(signature); err == nil && !bytes.Equal(evm.TryCalls(calls...).Data, signature) {
			t.Errorf("%x is read as %+v", signature, calls)
		}
	})
}

// Whatever the signature is, deciding does not panic, and nobody without code
// passes by anything but the key or a factory that is allowed.
func FuzzCheckTransfer(f *testing.F) {
	o := offerOn(f, "eip155:84532", 10000)
	terms := termsFor(o)
	good := transferFor(f, o, 0, 1_790_000_060)
	f.Add(good.Signature, []byte{})
	f.Add(wrap(make([]byte, 65)), []byte{0xef, 1, 0})
	f.Add(wrap(good.Signature), []byte{1})
	f.Fuzz(func(t *testing.T, signature, code []byte) {
		terms.Factories = factories
		transfer := &evm.Transfer{Authorization: good.Authorization, Signature: signature}
		_, isContract, err := evm.CheckTransfer(paymentOf(payment.V2, o, transfer), terms, 1_790_000_000)
		if err != nil {
			return
		}
		i := evm.OfTransfer(devUSDC, transfer)
		way, err := i.Way(evm.AccountOf(code), isContract)
		if err != nil || len(code) > 0 {
			return
		}
		w, wrapped, _ := evm.ReadWrapper(signature)
		if way == evm.ByKey && !bytes.Equal(signature, good.Signature) || way == evm.ByFactory && (!wrapped || !factories.Allows(w)) || way == evm.ByContract {
			t.Errorf("%x passes by %s", signature, way)
		}
	})
}

func TestDecidingAllocatesNothing(t *testing.T) {
	o := offerOn(t, "eip155:84532", 10000)
	i := evm.OfTransfer(devUSDC, transferFor(t, o, 0, 1_790_000_060))
	code := common.FromHex("0xef01000102030405060708090a0b0c0d0e0f1011121314")
	if n := testing.AllocsPerRun(100, func() {
		for _, c := range [][]byte{nil, code} {
			if _, err := i.Way(evm.AccountOf(c), false); err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
