package facilitator_test

import (
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/payment"
)

var strikeTime = time.Unix(1_800_000_000, 0)

// suspect returns the n-th payer, with some code or none.
func suspect(n int64, code string) facilitator.Suspect {
	return facilitator.SuspectOf("eip155:84532", common.BigToAddress(big.NewInt(n)), []byte(code))
}

// refusal checks s after a while and returns what it says, or "".
func refusal(t *testing.T, s *facilitator.Strikes, after time.Duration, who facilitator.Suspect) string {
	t.Helper()
	err := s.Check(strikeTime.Add(after), who)
	if err == nil {
		return ""
	}
	invalid, ok := errors.AsType[*payment.InvalidError](err)
	if !ok || invalid.Reason != payment.EVMSimulationFailed || invalid.Payer != who.Payer.Hex() {
		t.Errorf("%T: %v", err, err)
	}
	return err.Error()
}

func TestAPayerWhosePaymentsFailIsRefusedForAWhile(t *testing.T) {
	var s facilitator.Strikes
	who := suspect(1, "")
	s.Strike(strikeTime, who)
	if got := refusal(t, &s, 0, who); got != "" {
		t.Errorf("after one strike: %s", got)
	}
	s.Strike(strikeTime.Add(10*time.Minute), who)
	got := refusal(t, &s, 11*time.Minute, who)
	if !strings.Contains(got, "this payer") || !strings.Contains(got, strikeTime.Add(70*time.Minute).UTC().Format(time.RFC3339)) {
		t.Errorf("after two strikes: %q", got)
	}
	if got := refusal(t, &s, 70*time.Minute-time.Second, who); got == "" {
		t.Error("it is forgiven too early")
	}
	if got := refusal(t, &s, 70*time.Minute, who); got != "" {
		t.Errorf("it is not forgiven: %s", got)
	}
	for _, other := range []facilitator.Suspect{suspect(2, ""), {Network: "eip155:8453", Payer: who.Payer}} {
		if got := refusal(t, &s, 11*time.Minute, other); got != "" {
			t.Errorf("somebody else: %s", got)
		}
	}
	// It has not been forgotten altogether: the next one counts again.
	s.Strike(strikeTime.Add(70*time.Minute), who)
	if refusal(t, &s, 71*time.Minute, who) == "" {
		t.Error("two strikes within the hour")
	}
}

func TestStrikesThatAreFarApartCountForNothing(t *testing.T) {
	var s facilitator.Strikes
	who := suspect(1, "")
	for i := range 5 {
		at := time.Duration(i) * (time.Hour + time.Second)
		s.Strike(strikeTime.Add(at), who)
		if got := refusal(t, &s, at, who); got != "" {
			t.Errorf("strike %d: %s", i, got)
		}
	}
}

func TestWalletsWithCodeThatFailsAreRefusedWhoeverTheyAre(t *testing.T) {
	s := facilitator.Strikes{Code: 3}
	for i := range int64(3) {
		if got := refusal(t, &s, 0, suspect(100+i, "hostile")); got != "" {
			t.Errorf("after %d strikes: %s", i, got)
		}
		s.Strike(strikeTime, suspect(i, "hostile"))
	}
	if got := refusal(t, &s, time.Minute, suspect(9, "hostile")); !strings.Contains(got, "wallets with this code") {
		t.Errorf("a new wallet with the same code: %q", got)
	}
	for _, other := range []facilitator.Suspect{suspect(9, "other"), suspect(9, "")} {
		if got := refusal(t, &s, time.Minute, other); got != "" {
			t.Errorf("other code: %s", got)
		}
	}
	if got := refusal(t, &s, time.Hour, suspect(9, "hostile")); got != "" {
		t.Errorf("it is not forgiven: %s", got)
	}
}

// Anybody can make payments of a good wallet fail: the money moves away before
// the settlement.
func TestAWalletThatManyPayWithIsNotRefusedForTheFailuresOfSome(t *testing.T) {
	s := facilitator.Strikes{Code: 3}
	for i := range int64(20) {
		s.Strike(strikeTime, suspect(i, "popular"))
		s.Paid(suspect(1000+i, "popular"))
		if got := refusal(t, &s, 0, suspect(500, "popular")); got != "" {
			t.Fatalf("after %d strikes and payments: %s", i+1, got)
		}
	}
	s.Strike(strikeTime, suspect(30, "popular"))
	if refusal(t, &s, 0, suspect(500, "popular")) == "" {
		t.Error("it fails more often than it pays")
	}
	s.Paid(suspect(1030, "popular"))
	if got := refusal(t, &s, 0, suspect(500, "popular")); got != "" {
		t.Errorf("it pays again: %s", got)
	}
	// Payments do not make up for strikes of the payer's own.
	one := suspect(1, "popular")
	s.Strike(strikeTime, one)
	s.Paid(one)
	s.Paid(one)
	if refusal(t, &s, 0, one) == "" {
		t.Error("a payer buys strikes")
	}
}

func TestTheCodeOfADelegatedAccountNamesItsDelegate(t *testing.T) {
	code := "\xef\x01\x00" + strings.Repeat("a", 20)
	if suspect(1, code).Code != suspect(2, code).Code || suspect(1, code).Code == suspect(1, code[:22]+"b").Code {
		t.Error("the code is not the delegate's")
	}
	if suspect(1, "").Code != (common.Hash{}) {
		t.Error("a plain account has code")
	}
}

func TestNoMoreThanSoManyAreRemembered(t *testing.T) {
	s := facilitator.Strikes{Payer: 1, Most: 16}
	for i := range int64(1000) {
		s.Strike(strikeTime.Add(time.Duration(i)*time.Second), suspect(i, ""))
	}
	known := 0
	for i := range int64(1000) {
		if refusal(t, &s, 1000*time.Second, suspect(i, "")) != "" {
			known++
			if i < 980 {
				t.Errorf("strike %d is remembered, and later ones are not", i)
			}
		}
	}
	if known < 13 || known > 16 {
		t.Errorf("%d are remembered", known)
	}
	// Those whose time is over make room first.
	late := 3 * time.Hour
	for i := range int64(16) {
		s.Strike(strikeTime.Add(late), suspect(2000+i, ""))
	}
	for i := range int64(16) {
		if refusal(t, &s, late, suspect(2000+i, "")) == "" {
			t.Errorf("%d is forgotten", i)
		}
	}
}

func TestStrikesAreCountedFromManyGoroutines(t *testing.T) {
	s := facilitator.Strikes{Payer: 100, Code: 100}
	var wg sync.WaitGroup
	for i := range int64(10) {
		wg.Go(func() {
			for range 10 {
				s.Strike(strikeTime, suspect(1, "code"))
				s.Paid(suspect(2, "code"))
				_ = s.Check(strikeTime, suspect(i, "code"))
			}
		})
	}
	wg.Wait()
	if refusal(t, &s, 0, suspect(1, "code")) == "" {
		t.Error("strikes were lost")
	}
}
