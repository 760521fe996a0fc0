package ledgertest

import (
	"testing"

	"github.com/anishathalye/porcupine"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// at is a call that began and ended at the given moments.
func at(from, to int64, input any, answer string) porcupine.Operation {
	return porcupine.Operation{ClientId: int(from), Input: input, Output: answer, Call: from, Return: to}
}

// The search must be able to see what it is there for.
func TestWrongStoreHistoriesAreNotExplained(t *testing.T) {
	made := storeCall{writes: []ledger.Write{create("a", "1")}}
	changed := storeCall{writes: []ledger.Write{replace("a", 1, "2")}}
	moved := storeCall{writes: []ledger.Write{remove("a", 1), create("b", "1")}}
	get := storeCall{key: "a"}
	scan := storeCall{scan: true}
	const one, other = `[a v1 "1"]`, `[b v1 "1"]`
	for name, c := range map[string]struct {
		history  []porcupine.Operation
		explains bool
	}{
		"one creator wins":          {[]porcupine.Operation{at(0, 9, made, "committed"), at(1, 8, made, "conflict about "+one)}, true},
		"two creators win":          {[]porcupine.Operation{at(0, 9, made, "committed"), at(1, 8, made, "committed")}, false},
		"both are refused":          {[]porcupine.Operation{at(0, 9, made, "conflict about "+one), at(1, 8, made, "conflict about "+one)}, false},
		"an update is lost":         {[]porcupine.Operation{at(0, 1, made, "committed"), at(2, 9, changed, "committed"), at(3, 8, changed, "committed")}, false},
		"a read during the commit":  {[]porcupine.Operation{at(0, 9, made, "committed"), at(1, 2, get, "[]")}, true},
		"a stale read":              {[]porcupine.Operation{at(0, 1, made, "committed"), at(2, 3, get, "[]")}, false},
		"a read goes back":          {[]porcupine.Operation{at(0, 9, made, "committed"), at(1, 2, get, one), at(3, 4, get, "[]")}, false},
		"half a commit in a scan":   {[]porcupine.Operation{at(0, 1, made, "committed"), at(2, 9, moved, "committed"), at(3, 4, scan, "[]")}, false},
		"the whole commit":          {[]porcupine.Operation{at(0, 1, made, "committed"), at(2, 9, moved, "committed"), at(3, 4, scan, other)}, true},
		"an error nobody expected":  {[]porcupine.Operation{at(0, 1, made, "ledger: closed")}, false},
		"a refusal with old values": {[]porcupine.Operation{at(0, 1, made, "committed"), at(2, 3, changed, "committed"), at(4, 5, made, "conflict about "+one)}, false},
	} {
		if got := explains(storeModel, c.history); got != c.explains {
			t.Errorf("%s: %v, want %v", name, got, c.explains)
		}
	}
}

func TestWrongPaymentHistoriesAreNotExplained(t *testing.T) {
	by := func(owner, what string) paymentCall { return paymentCall{what, payment.Key{1}, owner} }
	mine := paymentState{ledger.Reserved, "me", 1}
	yours := paymentState{ledger.Reserved, "you", 1}
	freed := paymentState{ledger.Released, "me", 1}
	again := paymentState{ledger.Reserved, "you", 2}
	for name, c := range map[string]struct {
		history  []porcupine.Operation
		explains bool
	}{
		"one claim wins":                  {[]porcupine.Operation{at(0, 9, by("me", "claim"), mine.String()), at(1, 8, by("you", "claim"), "held: "+mine.String())}, true},
		"two claims win":                  {[]porcupine.Operation{at(0, 9, by("me", "claim"), mine.String()), at(1, 8, by("you", "claim"), yours.String())}, false},
		"a claim after a release":         {[]porcupine.Operation{at(0, 1, by("me", "claim"), mine.String()), at(2, 9, by("me", "release"), freed.String()), at(3, 8, by("you", "claim"), again.String())}, true},
		"a claim before the release":      {[]porcupine.Operation{at(0, 1, by("me", "claim"), mine.String()), at(2, 3, by("you", "claim"), again.String()), at(4, 5, by("me", "release"), freed.String())}, false},
		"a release of somebody else":      {[]porcupine.Operation{at(0, 1, by("me", "claim"), mine.String()), at(2, 3, by("you", "release"), freed.String())}, false},
		"a claim that the next one loses": {[]porcupine.Operation{at(0, 1, by("me", "claim"), mine.String()), at(2, 3, by("you", "get"), "not found")}, false},
	} {
		if got := explains(paymentModel, c.history); got != c.explains {
			t.Errorf("%s: %v, want %v", name, got, c.explains)
		}
	}
}
