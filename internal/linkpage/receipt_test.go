package linkpage

import (
	"net/http"
	"strings"
	"testing"
)

func receiptPage(t *testing.T, r *Receipt) string {
	t.Helper()
	return answer(t, func(w http.ResponseWriter) error { return testSite(t).Receipt(w, r) }).Body.String()
}

func TestReceiptSaysEverything(t *testing.T) {
	r := testReceipt(t)
	r.Explorer = "https://sepolia.basescan.org/tx/" + hash
	r.Fields = []Answer{{"Reference", "INV-2026-118"}}
	r.Message = "We start on Monday."
	r.Redirect = "https://meridian.example/thanks"
	r.Open = &Entrance{URL: "https://meridian.example/report", Token: "s3cr3t"}
	root := parse(t, receiptPage(t, r))
	said := text(first(root, "main"))
	for _, part := range []string{
		"Meridian Studio", "50.00", "USDC", "Base Sepolia", "Test money", "Website work", "21 November 2026, 12:00 UTC", hash, r.ID, r.LinkURL,
		"Reference INV-2026-118", "We start on Monday.", "Continue to meridian.example", "https://meridian.example/report", "s3cr3t",
	} {
		if !strings.Contains(said, part) {
			t.Errorf("the receipt does not say %q", part)
		}
	}
	for _, whole := range []string{seller, buyer} {
		if !strings.Contains(strings.ReplaceAll(said, " ", ""), whole) {
			t.Errorf("the receipt does not name %s", whole)
		}
	}
}

// Only a payment that counts opens anything.
func TestReceiptOfWhatIsNotPaidOpensNothing(t *testing.T) {
	for _, state := range []ReceiptState{Settling, Failed, RefundDue, Refunded} {
		r := testReceipt(t)
		r.State = state
		r.Message = "We start on Monday."
		r.Redirect = "https://meridian.example/thanks"
		r.Open = &Entrance{URL: "https://meridian.example/report", Token: "s3cr3t"}
		page := receiptPage(t, r)
		for _, secret := range []string{"s3cr3t", "meridian.example/report", "meridian.example/thanks", "Monday"} {
			if strings.Contains(page, secret) {
				t.Errorf("a receipt that is %s shows %s", state, secret)
			}
		}
	}
}

func TestReceiptInAStateThatIsNoneIsAnError(t *testing.T) {
	r := testReceipt(t)
	r.State = "perhaps"
	if err := testSite(t).Receipt(nil, r); err == nil {
		t.Error("the receipt is shown")
	}
}
