package facilitator_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/facilitatortest"
	"github.com/tollgate402/tollgate/payment"
)

// describing returns a facilitator request whose payment describes a resource.
func describing(t testing.TB, payTo byte, url, bazaar string) string {
	t.Helper()
	o := facilitatortest.Offer(t, 1000, common.Address{19: payTo})
	prepared, err := (&payment.Challenge{Offers: []payment.Offer{o}}).Prepare()
	if err != nil {
		t.Fatal(err)
	}
	c, err := payment.DecodeRequired(prepared.V2(url, payment.PaymentRequired))
	if err != nil {
		t.Fatal(err)
	}
	draft := c.Pay(&c.Offers[0], anyTransfer(t, &o).Encode())
	draft.Extensions = json.RawMessage(`{"bazaar":` + bazaar + `}`)
	_, value := draft.Header()
	p, err := payment.FromHeader([]string{value}, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := payment.EncodeRequest(p, &o, o.Amount)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

const plainBazaar = `{"info":{"input":{"type":"http","method":"GET"}}}`

// listed returns the resources of a catalogue's page, and how many there are.
func listed(t testing.TB, h *facilitator.Handler, query string) (resources []string, total int) {
	t.Helper()
	status, answer, _ := ask(t, h, "GET", "/f/discovery/resources"+query, "")
	var items []facilitator.Listing
	var pages struct{ Total int }
	if status != 200 || json.Unmarshal(answer["items"], &items) != nil || json.Unmarshal(answer["pagination"], &pages) != nil || string(answer["x402Version"]) != "2" {
		t.Fatalf("%s: %d %s", query, status, answer)
	}
	for _, l := range items {
		resources = append(resources, l.Resource)
	}
	return resources, pages.Total
}

// said returns what a facilitator tells the seller about the extension.
func said(t testing.TB, header string) string {
	t.Helper()
	doc, err := base64.StdEncoding.DecodeString(header)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

func TestResourcesAreListedOnceTheyArePaidFor(t *testing.T) {
	c := &facilitator.Catalogue{Now: func() time.Time { return time.Unix(1_790_000_000, 0) }}
	h := &facilitator.Handler{Facilitator: &facilitatortest.Fake{}, Catalogue: c}
	body := describing(t, 1, "https://api.example.com/weather?city=Berlin", plainBazaar)
	_, _, header := ask(t, h, "POST", "/f/verify", body)
	if got := said(t, header.Get("Extension-Responses")); got != `{"bazaar":{"status":"processing"}}` {
		t.Errorf("verify says %s", got)
	}
	if list, _ := listed(t, h, ""); len(list) != 0 {
		t.Errorf("listed before it is paid for: %s", list)
	}
	_, settled, header := ask(t, h, "POST", "/f/settle", body)
	if got := said(t, header.Get("Extension-Responses")); got != `{"bazaar":{"status":"success"}}` {
		t.Errorf("settle says %s", got)
	}
	if len(settled["extensions"]) > 0 {
		t.Error("the payer would see it")
	}
	_, answer, _ := ask(t, h, "GET", "/f/discovery/resources", "")
	var items []facilitator.Listing
	if err := json.Unmarshal(answer["items"], &items); err != nil || len(items) != 1 {
		t.Fatalf("%s %v", answer["items"], err)
	}
	if l := items[0]; l.Resource != "https://api.example.com/weather" || l.Type != "http" || l.LastUpdated != "2026-09-21T14:13:20.000Z" ||
		string(l.Extensions) != `{"bazaar":`+plainBazaar+`}` || len(l.Accepts) != 1 || !strings.Contains(string(l.Accepts[0]), `"amount":"1000"`) {
		t.Errorf("listed as %+v", l)
	}
	for query, want := range map[string]int{
		"?type=http": 1, "?type=mcp": 0, "?payTo=0x0000000000000000000000000000000000000001": 1, "?payTo=0x02": 0,
		"?scheme=exact&network=eip155:84532": 1, "?scheme=upto": 0, "?network=eip155:1": 0, "?offset=1": 0,
	} {
		if list, _ := listed(t, h, query); len(list) != want {
			t.Errorf("%s finds %s", query, list)
		}
	}
	for _, query := range []string{"?limit=0", "?limit=101", "?limit=x", "?offset=-1", "?type=ftp"} {
		if status, answer, _ := ask(t, h, "GET", "/f/discovery/resources"+query, ""); status != 400 {
			t.Errorf("%s: %d %s", query, status, answer)
		}
	}
	if _, answer, _ := ask(t, h, "GET", "/f/supported", ""); string(answer["extensions"]) != `["bazaar"]` {
		t.Errorf("supported: %s", answer["extensions"])
	}
}

func TestDescriptionsThatAreRefusedAreReportedAndThePaymentIsGood(t *testing.T) {
	for name, body := range map[string]string{
		"not as its schema": describing(t, 1, "https://a.example/", `{"info":{"input":{"type":"http","method":"GET"}},"schema":{"required":["output"]}}`),
		"no web address":    describing(t, 1, "ftp://a.example/", plainBazaar),
		"with a password":   describing(t, 1, "https://user:pass@a.example/", plainBazaar),
		"too long":          describing(t, 1, "https://a.example/", `{"info":{"input":{"type":"http","method":"GET","headers":{"x":"`+strings.Repeat("y", 9<<10)+`"}}}}`),
	} {
		h := &facilitator.Handler{Facilitator: &facilitatortest.Fake{}, Catalogue: &facilitator.Catalogue{}}
		status, answer, header := ask(t, h, "POST", "/f/settle", body)
		if status != 200 || string(answer["success"]) != "true" || !strings.HasPrefix(said(t, header.Get("Extension-Responses")), `{"bazaar":{"status":"rejected","rejectedReason":"`) {
			t.Errorf("%s: %d %s %s", name, status, answer, said(t, header.Get("Extension-Responses")))
		}
		if list, _ := listed(t, h, ""); len(list) != 0 {
			t.Errorf("%s is listed", name)
		}
	}
}

func TestCataloguesAreBoundedBySellerAndKeepSellersApart(t *testing.T) {
	h := &facilitator.Handler{Facilitator: &facilitatortest.Fake{}, Catalogue: &facilitator.Catalogue{}}
	ask(t, h, "POST", "/f/settle", describing(t, 2, "https://api.example.com/000", plainBazaar))
	for i := range 105 {
		ask(t, h, "POST", "/f/settle", describing(t, 1, fmt.Sprintf("https://api.example.com/%03d", i), plainBazaar))
	}
	list, total := listed(t, h, "?limit=100")
	if total != 101 || len(list) != 100 || list[0] != "https://api.example.com/000" || list[1] != "https://api.example.com/005" {
		t.Errorf("%d listed: %s", total, list)
	}
	if list, _ := listed(t, h, "?limit=100&offset=100"); len(list) != 1 || list[0] != "https://api.example.com/104" {
		t.Errorf("the last page is %s", list)
	}
}

func TestWithoutACatalogueNothingIsListed(t *testing.T) {
	h := &facilitator.Handler{Facilitator: &facilitatortest.Fake{}}
	_, _, header := ask(t, h, "POST", "/f/settle", describing(t, 1, "https://a.example/", plainBazaar))
	if status, _, _ := ask(t, h, "GET", "/f/discovery/resources", ""); status != 404 || header.Get("Extension-Responses") != "" {
		t.Errorf("%d %v", status, header)
	}
}
