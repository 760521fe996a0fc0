package evm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

const goodPayload = `{"signature":"0x18d672be1acb6f9a0e10e9c6861406f7fdb9e39d22ff928b9e8d1c2a614e6c270b7fdbb5e453b327092ae34b0b194c7f72392f3b346ec3ad9f89d34ad44f25de1c",` +
	`"authorization":{"from":"0xCC9315E4C2EC6d354d42adC84f599f83Ad715631","to":"0x9ABD6cF932170C471d01d746fe796703eDa24890","value":"10000",` +
	`"validAfter":"0","validBefore":"4102444800","nonce":"0xa44ee3da8af015e82b1acaaf2079873cc6fa277f23c34ee4264a4e362c52e916"}}`

func replaced(t testing.TB, old, new string) string {
	t.Helper()
	if !strings.Contains(goodPayload, old) {
		t.Fatalf("nothing to replace: %s", old)
	}
	return strings.Replace(goodPayload, old, new, 1)
}

func TestPayloadsWithTwoMeaningsOrNoneAreMalformed(t *testing.T) {
	for name, doc := range map[string]string{
		"not JSON":                       "x",
		"a list":                         "[]",
		"empty object":                   "{}",
		"no signature":                   `{"authorization":` + goodPayload[strings.Index(goodPayload, `{"from"`):],
		"no authorization":               `{"signature":"0x"}`,
		"authorization null":             `{"signature":"0x","authorization":null}`,
		"authorization a list":           `{"signature":"0x","authorization":[]}`,
		"Authorization beside it":        replaced(t, `"authorization"`, `"Authorization":{},"authorization"`),
		"Signature alone":                replaced(t, `"signature"`, `"Signature"`),
		"From alone":                     replaced(t, `"from"`, `"From"`),
		"VALUE beside value":             replaced(t, `"value"`, `"VALUE":"1","value"`),
		"value twice":                    replaced(t, `"value"`, `"value":"1","value"`),
		"Permit2Authorization beside it": replaced(t, `"authorization"`, `"Permit2Authorization":{},"authorization"`),
		"Transaction beside it":          replaced(t, `"authorization"`, `"Transaction":"","authorization"`),
		"from missing":                   replaced(t, `"from":"0xCC9315E4C2EC6d354d42adC84f599f83Ad715631",`, ""),
		"from null":                      replaced(t, `"0xCC9315E4C2EC6d354d42adC84f599f83Ad715631"`, "null"),
		"from without 0x":                replaced(t, `"0xCC9315`, `"CC9315`),
		"from with 0X":                   replaced(t, `"0xCC9315`, `"0XCC9315`),
		"from too short":                 replaced(t, `"0xCC9315`, `"0xC9315`),
		"from too long":                  replaced(t, `"0xCC9315`, `"0x0CC9315`),
		"from as a word":                 replaced(t, `"0xCC9315`, `"0x000000000000000000000000CC9315`),
		"from with a blank":              replaced(t, `"0xCC9315`, `" 0xCC9315`),
		"to as a number":                 replaced(t, `"0x9ABD6cF932170C471d01d746fe796703eDa24890"`, "1"),
		"to as a name":                   replaced(t, `0x9ABD6cF932170C471d01d746fe796703eDa24890`, "payee.eth"),
		"value as a number":              replaced(t, `"10000"`, `10000`),
		"value as a boolean":             replaced(t, `"10000"`, `true`),
		"validBefore as a number":        replaced(t, `"4102444800"`, `4102444800`),
		"validBefore as a date":          replaced(t, `4102444800`, `2100-01-01T00:00:00Z`),
		"validAfter negative":            replaced(t, `"0"`, `"-1"`),
		"nonce without 0x":               replaced(t, `"0xa44ee3`, `"a44ee3`),
		"nonce with 0X":                  replaced(t, `"0xa44ee3`, `"0Xa44ee3`),
		"nonce too short":                replaced(t, `"0xa44ee3`, `"0x4ee3`),
		"nonce too short, odd":           replaced(t, `"0xa44ee3`, `"0x44ee3`),
		"nonce too long":                 replaced(t, `"0xa44ee3`, `"0x00a44ee3`),
		"nonce in decimal":               replaced(t, `0xa44ee3da8af015e82b1acaaf2079873cc6fa277f23c34ee4264a4e362c52e916`, "7"),
		"nonce with another letter":      replaced(t, `"0xa44ee3`, `"0xg44ee3`),
		"nonce empty":                    replaced(t, `0xa44ee3da8af015e82b1acaaf2079873cc6fa277f23c34ee4264a4e362c52e916`, ""),
		"signature without 0x":           replaced(t, `"0x18d672`, `"18d672`),
		"signature with 0X":              replaced(t, `"0x18d672`, `"0X18d672`),
		"signature of half bytes":        replaced(t, `"0x18d672`, `"0x8d672`),
		"signature in base64":            replaced(t, `"0x18d672`, `"GNZy`),
		"signature as a list":            replaced(t, `"signature":"0x`, `"signature":["0x"],"x":"0x`),
		"signature beyond 4096 bytes":    replaced(t, `"0x18d672`, `"0x`+strings.Repeat("00", 4096)+`18d672`),
		"beyond 16 KiB":                  replaced(t, `"signature"`, `"note":"`+strings.Repeat("x", payment.MaxHeader)+`","signature"`),
	} {
		transfer, err := evm.Decode(json.RawMessage(doc))
		var malformed *payment.MalformedError
		if transfer != nil || !errors.As(err, &malformed) {
			t.Errorf("%s: got %v, %v", name, transfer, err)
		}
	}
}

func TestPayloadsOfOtherKindsAreInvalidEvenBesideAnAuthorization(t *testing.T) {
	for name, doc := range map[string]string{
		"Permit2":             `{"signature":"0x","permit2Authorization":{"from":"0x"}}`,
		"Solana":              `{"transaction":"AgAA"}`,
		"both, Permit2 first": replaced(t, `"authorization"`, `"permit2Authorization":{},"authorization"`),
		"both, Permit2 last":  goodPayload[:len(goodPayload)-1] + `,"permit2Authorization":{}}`,
		"both, Solana":        replaced(t, `"authorization"`, `"transaction":"","authorization"`),
	} {
		transfer, err := evm.Decode(json.RawMessage(doc))
		var invalid *payment.InvalidError
		if transfer != nil || !errors.As(err, &invalid) || invalid.Reason != payment.EVMPayloadType {
			t.Errorf("%s: got %v, %v", name, transfer, err)
		}
	}
	if _, err := evm.Decode(json.RawMessage(replaced(t, `"authorization"`, `"permit2Authorization":null,"transaction":null,"authorization"`))); err != nil {
		t.Errorf("null does not count as present: %v", err)
	}
}

// The strings of THREATS T6, in each of the three numbers.
func TestNumbersAreReadInOneFormOnly(t *testing.T) {
	good := map[string]bool{
		"0": true, "1": true, "10000": true, "18446744073709551616": true,
		"115792089237316195423570985008687907853269984665640564039457584007913129639935": true,
	}
	bad := []string{
		"", " ", "00", "01", "010000", "+1", "-1", "-0", " 1", "1 ", "1\t", "1\n", "1e3", "1E3", "0x2710", "0X1", "0b1", "0o7", "1.0", "1.", ".5", "1,000", "1_000",
		"１", "١", "½", "1abc", "abc", "USD 10", "$1", "NaN", "Infinity", "null", "1n", "1\u0000", "\ufeff1", "10000%",
		"115792089237316195423570985008687907853269984665640564039457584007913129639936", strings.Repeat("9", 79),
	}
	for _, s := range bad {
		good[s] = false
	}
	for s, want := range good {
		quoted, _ := json.Marshal(s)
		for _, old := range []string{`"10000"`, `"0"`, `"4102444800"`} {
			transfer, err := evm.Decode(json.RawMessage(replaced(t, old, string(quoted))))
			if (err == nil) != want {
				t.Errorf("%q instead of %s: %v", s, old, err)
			}
			if err == nil && transfer.Value.String() != s && transfer.ValidAfter.String() != s && transfer.ValidBefore.String() != s {
				t.Errorf("%q instead of %s: got %+v", s, old, transfer)
			}
		}
	}
}

func TestErrorsNeverRepeatThePayload(t *testing.T) {
	const canary = "Canary31337"
	shapes := []string{
		`"` + canary + `"`, `"0x` + canary + `"`, `"10000` + canary + `"`, `{"a":"` + canary + `"}`, `["` + canary + `"]`, `31337313373133731337`, `"313373133731337313373133731337313373133731337313373133731337313373133731337313373133731337"`,
		`"\u0043anary31337"`, `"` + canary + `\ud800"`, `"` + canary + "\n\"",
	}
	refused := 0
	for _, name := range []string{"signature", "authorization", "from", "to", "value", "validAfter", "validBefore", "nonce"} {
		for _, shape := range shapes {
			start := strings.Index(goodPayload, `"`+name+`":`) + len(name) + 3
			end := start + strings.IndexAny(goodPayload[start:], ",}")
			if name == "authorization" {
				end = len(goodPayload) - 1
			}
			_, err := evm.Decode(json.RawMessage(goodPayload[:start] + shape + goodPayload[end:]))
			if _, ok := errors.AsType[*payment.MalformedError](err); !ok {
				t.Errorf("%s as %s: %v", name, shape, err)
				continue
			}
			refused++
			if s := err.Error(); strings.Contains(s, canary) || strings.Contains(s, "31337") || !strings.Contains(s, name) {
				t.Errorf("%s as %s: %s", name, shape, s)
			}
		}
	}
	if refused != 80 {
		t.Errorf("%d refused", refused)
	}
}

func transfers(t *rapid.T) *evm.Transfer {
	bytes := func(name string, most int) []byte { return rapid.SliceOfN(rapid.Byte(), 0, most).Draw(t, name) }
	return &evm.Transfer{
		Authorization: *fields(bytes("from", 20), bytes("to", 20), bytes("value", 32), bytes("after", 32), bytes("before", 32), bytes("nonce", 32)),
		Signature:     bytes("signature", 300),
	}
}

func sameTransfer(a, b *evm.Transfer) bool {
	return a.From == b.From && a.To == b.To && a.Value.Cmp(b.Value) == 0 && a.ValidAfter.Cmp(b.ValidAfter) == 0 &&
		a.ValidBefore.Cmp(b.ValidBefore) == 0 && a.Nonce == b.Nonce && bytes.Equal(a.Signature, b.Signature)
}

func TestTransfersSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := transfers(t)
		got, err := evm.Decode(sent.Encode())
		if err != nil || !sameTransfer(got, sent) {
			t.Fatalf("%s became %+v, %v", sent.Encode(), got, err)
		}
	})
}

// go-ethereum's ABI decoder reads both calls back, whatever the signature.
func TestCalldataIsWhatTheTokensABISays(t *testing.T) {
	inputs := func(signature string) string {
		var list []string
		for i, kind := range append([]string{"address", "address", "uint256", "uint256", "uint256", "bytes32"}, strings.Fields(signature)...) {
			list = append(list, fmt.Sprintf(`{"name":"a%d","type":"%s"}`, i, kind))
		}
		return `[{"type":"function","name":"transferWithAuthorization","inputs":[` + strings.Join(list, ",") + `]}]`
	}
	parse := func(signature string) abi.ABI {
		parsed, err := abi.JSON(strings.NewReader(inputs(signature)))
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	vrs, whole := parse("uint8 bytes32 bytes32"), parse("bytes")
	rapid.Check(t, func(t *rapid.T) {
		transfer := transfers(t)
		if rapid.Bool().Draw(t, "of 65 bytes") {
			transfer.Signature = rapid.SliceOfN(rapid.Byte(), 65, 65).Draw(t, "long signature")
		}
		check := func(call []byte, parsed abi.ABI, signature func(rest []any) []byte) {
			method, err := parsed.MethodById(call)
			if err != nil {
				t.Fatal(err)
			}
			args, err := method.Inputs.Unpack(call[4:])
			if err != nil {
				t.Fatal(err)
			}
			got := &evm.Transfer{Authorization: evm.Authorization{
				From: args[0].(common.Address), To: args[1].(common.Address), Value: args[2].(*big.Int),
				ValidAfter: args[3].(*big.Int), ValidBefore: args[4].(*big.Int), Nonce: args[5].([32]byte),
			}, Signature: signature(args[6:])}
			if !sameTransfer(got, transfer) {
				t.Fatalf("%x is %+v, want %+v", call, got, transfer)
			}
			packed, err := method.Inputs.Pack(args...)
			if err != nil || !bytes.Equal(packed, call[4:]) {
				t.Fatalf("go-ethereum writes %x, %v", packed, err)
			}
		}
		asBytes := func(rest []any) []byte { return rest[0].([]byte) }
		check(transfer.CalldataBytes(), whole, asBytes)
		if len(transfer.Signature) != 65 {
			check(transfer.Calldata(), whole, asBytes)
			return
		}
		check(transfer.Calldata(), vrs, func(rest []any) []byte {
			r, s := rest[1].([32]byte), rest[2].([32]byte)
			return append(append(r[:], s[:]...), rest[0].(uint8))
		})
	})
}

func TestCallsAreNotSharedBetweenCallers(t *testing.T) {
	first := evm.SeparatorCall()
	first[0]++
	if second := evm.SeparatorCall(); second[0] == first[0] {
		t.Error("one caller changed the call of another")
	}
}

func FuzzDecode(f *testing.F) {
	for _, doc := range []string{goodPayload, `{}`, `{"transaction":""}`, replaced(f, `"0x18d672`, `"0x`), replaced(f, `"10000"`, `"1e3"`), replaced(f, `"from"`, `"From"`)} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		transfer, err := evm.Decode(doc)
		if err != nil {
			var malformed *payment.MalformedError
			var invalid *payment.InvalidError
			if transfer != nil || !errors.As(err, &malformed) && !errors.As(err, &invalid) {
				t.Fatalf("error of type %T with %v", err, transfer)
			}
			return
		}
		again, err := evm.Decode(transfer.Encode())
		if err != nil || !sameTransfer(again, transfer) {
			t.Fatalf("%s was written as %s: %v", doc, transfer.Encode(), err)
		}
		if transfer.Key(1, common.Address{}) != again.Key(1, common.Address{}) {
			t.Fatalf("%s has two keys", doc)
		}
	})
}
