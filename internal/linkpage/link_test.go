package linkpage

import (
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"
	"rsc.io/qr"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// linkPage returns the page of a link as text.
func linkPage(t *testing.T, l *Link) string {
	t.Helper()
	return answer(t, func(w http.ResponseWriter) error { return testSite(t).Link(w, l) }).Body.String()
}

// embedded returns what the page tells its script.
func embedded(t *testing.T, page string) linkData {
	t.Helper()
	var d linkData
	if err := json.Unmarshal([]byte(rawText(having(parse(t, page), "id", "link"))), &d); err != nil {
		t.Fatal("what the page tells its script is not JSON: ", err)
	}
	return d
}

// The order is that of a phone, from top to bottom.
func TestPageTellsThingsInOrder(t *testing.T) {
	l := testLink(t)
	l.Fields = []Field{{Name: "ref", Label: "Your reference"}}
	page := linkPage(t, l)
	body := page[strings.Index(page, "<main"):]
	for _, part := range []string{
		"Meridian Studio", "50.00", "USDC", "Base Sepolia", "Test money", "Website work", "0x209693", "Your reference", `id="actions"`, "<svg", l.URL,
		"21 December 2026, 12:00 UTC", "You sign a message. You pay no gas.",
	} {
		i := strings.Index(body, part)
		if i < 0 {
			t.Fatalf("%q is missing, or not in its place", part)
		}
		body = body[i+len(part):]
	}
}

func TestAddressIsChecksummedAndWhole(t *testing.T) {
	l := testLink(t)
	l.Offers[0].PayTo = strings.ToLower(seller)
	recipient := having(parse(t, linkPage(t, l)), "id", "recipient")
	if got := strings.ReplaceAll(text(recipient), " ", ""); got != seller {
		t.Errorf("the page shows %s, not %s", got, seller)
	}
	ends := all(recipient, "b")
	if len(ends) != 2 || text(ends[0]) != "0x209693" || text(ends[1]) != "12287C" {
		t.Error("the ends of the address are not set apart")
	}
}

func TestTestMoneyIsCalledSo(t *testing.T) {
	for n, test := range map[payment.Network]bool{"eip155:84532": true, "eip155:8453": false} {
		l := testLink(t)
		l.Offers = []payment.Offer{usdc(t, n, "50000000")}
		shown := true
		for _, a := range having(parse(t, linkPage(t, l)), "id", "play").Attr {
			if a.Key == "hidden" {
				shown = false
			}
		}
		if shown != test {
			t.Errorf("on %s the banner is shown: %v", n, shown)
		}
	}
}

func TestAmountsAreReadable(t *testing.T) {
	dollars, _ := payment.USDC("eip155:8453")
	ether := payment.Token{Network: "eip155:8453", Address: dollars.Address, Symbol: "WETH", Decimals: 18}
	for _, c := range []struct {
		token payment.Token
		units string
		want  string
	}{
		{dollars, "50000000", "50.00 USDC"},
		{dollars, "1000", "0.001 USDC"},
		{dollars, "1", "0.000001 USDC"},
		{dollars, "12500000", "12.50 USDC"},
		{dollars, "1250000000", "1,250.00 USDC"},
		{dollars, "1000000000000", "1,000,000.00 USDC"},
		{ether, "1500000000000000000", "1.5 WETH"},
		{ether, "2000000000000000000", "2 WETH"},
		{payment.Token{Network: "eip155:8453", Address: "0xToken"}, "1234", "1,234 atomic units of 0xToken"},
	} {
		if got := priceOf(amount(t, c.token, c.units)).String(); got != c.want {
			t.Errorf("%s units are shown as %q, not %q", c.units, got, c.want)
		}
	}
}

// What the wallet is asked to sign has the digest that the token checks: the
// script adds the payer, the times and the nonce, and nothing else.
func TestTypedDataIsWhatTheTokenChecks(t *testing.T) {
	l := testLink(t)
	d := embedded(t, linkPage(t, l))
	if len(d.Offers) != 1 || d.Offers[0].Typed == nil {
		t.Fatal("the page has nothing to sign")
	}
	whole, err := json.Marshal(d.Offers[0].Typed)
	if err != nil {
		t.Fatal(err)
	}
	var typed apitypes.TypedData
	if err := json.Unmarshal(whole, &typed); err != nil {
		t.Fatal(err)
	}
	nonce := common.HexToHash("0xf3746613c2d920b5fdabc0856f2aeb2d4f88ee6037b8cc5d04a71a4462f13480")
	typed.Message["from"] = buyer
	typed.Message["validAfter"] = "0"
	typed.Message["validBefore"] = "1795262700"
	typed.Message["nonce"] = nonce.Hex()
	got, _, err := apitypes.TypedDataAndHash(typed)
	if err != nil {
		t.Fatal(err)
	}
	offer := &l.Offers[0]
	a := evm.Authorization{
		From: common.HexToAddress(buyer), To: common.HexToAddress(seller), Value: offer.Amount.Big(),
		ValidAfter: new(big.Int), ValidBefore: big.NewInt(1795262700), Nonce: nonce,
	}
	if want := a.Digest(evm.DomainOf(offer.Amount.Token()).Separator()); common.BytesToHash(got) != want {
		t.Errorf("the wallet signs %x, the token checks %s", got, want)
	}
}

func TestScriptKnowsWhatAPaymentRepeats(t *testing.T) {
	l := testLink(t)
	l.Resource = json.RawMessage(`{"url":"https://pay.example/x402/7ZZ0V8M9K3Q1X5T6R2W4Y8N0PA","description":"A & B <c>","mimeType":"application/json"}`)
	d := embedded(t, linkPage(t, l))
	if string(d.Resource) != strings.NewReplacer("&", `\u0026`, "<", `\u003c`, ">", `\u003e`).Replace(string(l.Resource)) {
		t.Errorf("the resource is %s", d.Resource)
	}
	o := d.Offers[0]
	if string(o.Accepted) != string(l.Offers[0].Encode()) {
		t.Errorf("the accepted offer is %s", o.Accepted)
	}
	if d.Path != "/x402/"+l.ID || d.Events != d.Path+"/events" || d.Now != noon.Unix() || d.Expires != l.Expires.Unix() || d.Status != Active {
		t.Errorf("the script is told %+v", d)
	}
	if o.ChainID != "0x14a34" || o.Timeout != 300 || o.Chain == nil || o.Chain.ChainID != "0x14a34" || o.Chain.Name != "Base Sepolia" ||
		o.Chain.RPC[0] != "https://sepolia.base.org" || o.Chain.Currency.Symbol != "ETH" || o.Chain.Currency.Decimals != 18 {
		t.Errorf("the script is told %+v of the chain", o)
	}
	l.Resource = nil
	if got := string(embedded(t, linkPage(t, l)).Resource); got != `{"url":"`+l.URL+`"}` {
		t.Errorf("without a resource the script is told %s", got)
	}
}

// An RPC URL for wallets is optional: without it the network cannot be added.
func TestChainIsLeftOutWhereNothingIsKnownOfIt(t *testing.T) {
	l := testLink(t)
	l.Offers = []payment.Offer{usdc(t, "eip155:8453", "50000000")}
	if o := embedded(t, linkPage(t, l)).Offers[0]; o.Chain != nil || o.ChainID != "0x2105" || o.Typed == nil {
		t.Errorf("the script is told %+v", o)
	}
}

func TestOffersThatAWalletCannotSignAreForPrograms(t *testing.T) {
	permit := usdc(t, "eip155:84532", "50000000")
	permit.Extra = map[string]json.RawMessage{"assetTransferMethod": json.RawMessage(`"permit2"`)}
	upto := usdc(t, "eip155:84532", "50000000")
	upto.Scheme = payment.Upto
	solana := payment.Offer{
		Scheme: payment.Exact, PayTo: "2wKupLR9q6wXYppw8Gr2NvWxKBUqm4PPJKkQfoxHDBg4", Timeout: time.Minute,
		Amount: amount(t, payment.Token{Network: "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", Address: "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", Symbol: "USDC", Decimals: 6, Dollar: true}, "50000000"),
	}
	l := testLink(t)
	l.Offers = []payment.Offer{permit, upto, solana, usdc(t, "eip155:8453", "50000000")}
	page := linkPage(t, l)
	for i, o := range embedded(t, page).Offers {
		if signed := o.Typed != nil; signed != (i == 3) {
			t.Errorf("offer %d can be signed on the page: %v", i+1, signed)
		}
	}
	root := parse(t, page)
	radios := 0
	for _, input := range all(root, "input") {
		if attribute(input, "type") == "radio" {
			radios++
		}
	}
	if radios != 4 || strings.Count(text(having(root, "id", "offers")), "for programs only") != 3 {
		t.Errorf("the choice is %q", text(having(root, "id", "offers")))
	}
	// What is shown first is what can be paid here.
	if got := text(having(root, "id", "network")); got != "Base" {
		t.Errorf("the page shows the network %s", got)
	}
}

func TestOneOfferIsNoChoice(t *testing.T) {
	if strings.Contains(linkPage(t, testLink(t)), "<fieldset") {
		t.Error("the page lets people choose between one offer")
	}
}

func TestFieldsHaveTheirLimits(t *testing.T) {
	l := testLink(t)
	l.Fields = []Field{{Name: "email", Label: "E-mail", Required: true, MaxLength: 80}, {Name: "note", Label: "Note"}}
	form := having(parse(t, linkPage(t, l)), "id", "fields")
	inputs := all(form, "input")
	if len(inputs) != 2 {
		t.Fatalf("there are %d inputs", len(inputs))
	}
	for i, want := range []struct {
		name, max string
		required  bool
	}{{"email", "80", true}, {"note", "200", false}} {
		required := false
		for _, a := range inputs[i].Attr {
			required = required || a.Key == "required"
		}
		if attribute(inputs[i], "name") != want.name || attribute(inputs[i], "maxlength") != want.max || required != want.required {
			t.Errorf("input %d is %v", i+1, inputs[i].Attr)
		}
	}
}

func TestPaidLinkNamesItsTransaction(t *testing.T) {
	l := testLink(t)
	l.Status = Paid
	l.Settled = &Settled{At: noon, Transaction: hash, Explorer: "https://sepolia.basescan.org/tx/" + hash}
	root := parse(t, linkPage(t, l))
	said := text(having(root, "id", "details"))
	if !strings.Contains(said, hash) || !strings.Contains(said, "21 November 2026, 12:00 UTC") {
		t.Errorf("the page says %q", said)
	}
	if having(root, "href", l.Settled.Explorer) == nil {
		t.Error("the transaction is not linked to")
	}
	l.Settled.Explorer = "javascript:alert(1)"
	if page := linkPage(t, l); strings.Contains(page, "javascript:") || !strings.Contains(page, hash) {
		t.Error("an explorer that is a script is linked to, or hides the transaction")
	}
	l.Status = Active
	if strings.Contains(linkPage(t, l), hash) {
		t.Error("a link that can still be paid names a transaction")
	}
}

// What can no longer be paid offers no way to pay.
func TestOnlyOpenLinksOfferPayment(t *testing.T) {
	for _, status := range []Status{Pending, Paid, Expired, Disabled} {
		l := testLink(t)
		l.Status = status
		l.Fields = []Field{{Name: "ref", Label: "Reference"}}
		l.Offers = append(l.Offers, usdc(t, "eip155:8453", "50000000"))
		root := parse(t, linkPage(t, l))
		for _, id := range []string{"fields", "offers", "elsewhere"} {
			if having(root, "id", id) != nil {
				t.Errorf("a link that is %s has %s", status, id)
			}
		}
	}
}

func TestLinkWithoutOffersIsAnError(t *testing.T) {
	s := testSite(t)
	for name, spoil := range map[string]func(*Link){
		"no offers":         func(l *Link) { l.Offers = nil },
		"no status":         func(l *Link) { l.Status = "" },
		"a relative URL":    func(l *Link) { l.URL = "/x402/1" },
		"a broken resource": func(l *Link) { l.Resource = json.RawMessage(`{`) },
		"a wrong recipient": func(l *Link) { l.Offers[0].PayTo = "0x12" },
	} {
		l := testLink(t)
		spoil(l)
		if err := s.Link(nil, l); err == nil {
			t.Errorf("a link with %s is shown", name)
		}
	}
}

// The code holds the URL: drawing the path again gives the encoder's modules.
func TestCodeIsTheLinksURL(t *testing.T) {
	const url = "https://pay.example/x402/7ZZ0V8M9K3Q1X5T6R2W4Y8N0PA"
	c, err := codeOf(url)
	if err != nil {
		t.Fatal(err)
	}
	want, err := qr.Encode(url, qr.M)
	if err != nil {
		t.Fatal(err)
	}
	dark := map[[2]int]bool{}
	for piece := range strings.SplitSeq(strings.TrimSuffix(c.Path, "z"), "z") {
		var x, y, width, back int
		if _, err := fmt.Sscanf(piece, "M%d %dh%dv1h-%d", &x, &y, &width, &back); err != nil || width != back {
			t.Fatalf("piece %q cannot be read: %v", piece, err)
		}
		for i := range width {
			dark[[2]int{x + i, y}] = true
		}
	}
	for y := range want.Size {
		for x := range want.Size {
			if dark[[2]int{x, y}] != want.Black(x, y) {
				t.Fatalf("the module at %d,%d is wrong", x, y)
			}
		}
	}
}

func TestWalletAppsAreOfferedForPublicLinksOnly(t *testing.T) {
	l := testLink(t)
	if !strings.Contains(linkPage(t, l), "https://link.metamask.io/dapp/pay.example/x402/") {
		t.Error("there is no way into a wallet's browser")
	}
	l.URL = "http://127.0.0.1:8402/x402/1"
	if strings.Contains(linkPage(t, l), "link.metamask.io") {
		t.Error("a wallet is sent to an address that it cannot reach")
	}
}
