package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// A link as merchants see it: the members that are documented.
type link struct {
	ID          string      `json:"id"`
	Amount      json.Number `json:"amount"`
	Currency    string      `json:"currency"`
	Description string      `json:"description"`
	URL         string      `json:"url"`
	AIURL       string      `json:"aiUrl"`
	Network     string      `json:"network"`
	Status      string      `json:"status"`
	ExpiresAt   time.Time   `json:"expiresAt"`
	CreatedAt   time.Time   `json:"createdAt"`
}

func (l *link) String() string {
	return fmt.Sprintf("%s %s on %s, %q, %s for %s", l.Amount, l.Currency, l.Network, l.Description, l.Status, l.ExpiresAt.Sub(l.CreatedAt))
}

func linkOf(a *reply) *link {
	l := &link{}
	if json.Unmarshal([]byte(a.body), l) != nil {
		return &link{Description: a.body}
	}
	return l
}

// manage plays the merchants' side.
func (w *world) manage(ctx context.Context, t *table) error {
	first, err := w.create(ctx, t)
	if err != nil {
		return err
	}
	if err := w.refuseToCreate(ctx, t); err != nil {
		return err
	}
	second, err := w.newBill(ctx)
	if err != nil {
		return err
	}
	third, err := w.newBill(ctx)
	if err != nil {
		return err
	}
	transfer, err := w.sign(third.accept, "payer", nil)
	if err != nil {
		return err
	}
	if got, err := w.payOld(ctx, third, transfer.old("base-sepolia"), ""); err != nil || got != accepted {
		return fmt.Errorf("paying a link: %s, %w", got, err)
	}
	for _, c := range []struct{ exchange, method, path, expected string }{
		{"get a link", http.MethodGet, "/" + first, "200 ACTIVE"},
		{"get a paid link", http.MethodGet, "/" + third.id, "200 PAID"},
		{"get an unknown link", http.MethodGet, "/" + strings.Repeat("0", len(first)), "404 "},
		{"cancel a link", http.MethodPost, "/" + second.id + "/cancel", "200 DISABLED"},
		{"get a cancelled link", http.MethodGet, "/" + second.id, "200 DISABLED"},
		{"cancel a paid link", http.MethodPost, "/" + third.id + "/cancel", "409 "},
		{"cancel an unknown link", http.MethodPost, "/" + strings.Repeat("0", len(first)) + "/cancel", "404 "},
	} {
		a, err := w.asMerchant(ctx, c.method, c.path, "")
		if err != nil {
			return err
		}
		t.add(c.exchange, c.expected, fmt.Sprintf("%d %s", a.status, linkOf(a).Status))
	}
	if err := w.list(ctx, t, map[string]string{first: "first", second.id: "second", third.id: "third"}); err != nil {
		return err
	}
	return w.stats(ctx, t)
}

// create plays POST /v1/payment-links, and returns the id of the one link that
// it makes.
func (w *world) create(ctx context.Context, t *table) (string, error) {
	a, err := w.asMerchant(ctx, http.MethodPost, "", `{"amount":12.5,"description":"Website work","expiresInHours":48}`)
	if err != nil {
		return "", err
	}
	l := linkOf(a)
	var missing []string
	for _, name := range []string{"id", "amount", "currency", "description", "url", "aiUrl", "network", "status", "expiresAt", "createdAt"} {
		if _, ok := a.object()[name]; !ok {
			missing = append(missing, name)
		}
	}
	t.add("create a link", "201, lacks []", fmt.Sprintf("%d, lacks %v", a.status, missing))
	t.add("what it says", `12.5 USDC on base-sepolia, "Website work", ACTIVE for 48h0m0s`, l.String())
	t.add("its url and aiUrl", "<api>/x402/<id>, the same", strings.NewReplacer(w.APIURL, "<api>", l.ID, "<id>").Replace(l.URL)+", "+sameAs(l.AIURL, l.URL))
	return l.ID, nil
}

func sameAs(a, b string) string {
	if a == b {
		return "the same"
	}
	return a
}

// refuseToCreate plays POST /v1/payment-links at and beyond its limits. What
// it makes it cancels.
func (w *world) refuseToCreate(ctx context.Context, t *table) error {
	long := strings.Repeat("w", 500)
	for _, c := range []struct{ name, body, expected string }{
		{"for 30 days where nothing is said", `{"amount":"1","description":"w"}`, "201 1 for 720h0m0s"},
		{"over the largest amount, for 90 days", `{"amount":1000000,"description":"` + long + `","expiresInHours":2160}`, "201 1000000 for 2160h0m0s"},
		{"over the smallest amount, for an hour", `{"amount":"0.000001","description":"w","expiresInHours":1}`, "201 0.000001 for 1h0m0s"},
		{"over nothing", `{"amount":0,"description":"w"}`, "400"},
		{"over less than nothing", `{"amount":-1,"description":"w"}`, "400"},
		{"over too much", `{"amount":"1000000.000001","description":"w"}`, "400"},
		{"with seven decimals", `{"amount":"0.0000001","description":"w"}`, "400"},
		{"without an amount", `{"description":"w"}`, "400"},
		{"without a description", `{"amount":1}`, "400"},
		{"with an empty description", `{"amount":1,"description":""}`, "400"},
		{"with 501 characters", `{"amount":1,"description":"` + long + `w"}`, "400"},
		{"for less than an hour", `{"amount":1,"description":"w","expiresInHours":0}`, "400"},
		{"for more than 90 days", `{"amount":1,"description":"w","expiresInHours":2161}`, "400"},
		{"by no JSON", `hello`, "400"},
	} {
		a, err := w.asMerchant(ctx, http.MethodPost, "", c.body)
		if err != nil {
			return err
		}
		got := fmt.Sprint(a.status)
		if a.status == http.StatusCreated {
			l := linkOf(a)
			got += fmt.Sprintf(" %s for %s", l.Amount, l.ExpiresAt.Sub(l.CreatedAt))
			if a, err := w.asMerchant(ctx, http.MethodDelete, "/"+l.ID, ""); err != nil || a.status != http.StatusOK {
				return fmt.Errorf("cancelling a link: %v, %w", a, err)
			}
		}
		t.add("create a link "+c.name, c.expected, got)
	}
	for _, c := range []struct{ name, header, value string }{
		{"without a key", "Accept", "*/*"},
		{"with a wrong key", "Authorization", "Bearer " + w.MerchantKey + "x"},
	} {
		for _, method := range []string{http.MethodPost, http.MethodGet} {
			body := ""
			if method == http.MethodPost {
				body = `{"amount":1,"description":"w"}`
			}
			a, err := w.ask(ctx, method, w.APIURL+"/v1/payment-links", body, c.header, c.value)
			if err != nil {
				return err
			}
			t.add(method+" /v1/payment-links "+c.name, "401", fmt.Sprint(a.status))
		}
	}
	return nil
}

// made is how many links manage makes, and cancels of them.
const (
	made      = 6
	cancelled = 4
)

// list plays GET /v1/payment-links. names has the first, second and third of
// the links that must be in it, by their ids.
func (w *world) list(ctx context.Context, t *table, names map[string]string) error {
	type page struct {
		Links       []link  `json:"links"`
		NextCursor  *string `json:"nextCursor"`
		TotalCount  int     `json:"totalCount"`
		ActiveCount int     `json:"activeCount"`
		Pagination  struct {
			HasNextPage bool `json:"hasNextPage"`
			Limit       int  `json:"limit"`
		} `json:"pagination"`
	}
	get := func(query string) (*page, *reply, error) {
		a, err := w.asMerchant(ctx, http.MethodGet, query, "")
		if err != nil {
			return nil, nil, err
		}
		p := &page{}
		_ = json.Unmarshal([]byte(a.body), p) // what is missing is seen
		return p, a, nil
	}
	p, a, err := get("")
	if err != nil {
		return err
	}
	t.add("list links", fmt.Sprintf("200, %d links of %d, 1 active, next page false", made, made),
		fmt.Sprintf("%d, %d links of %d, %d active, next page %t", a.status, len(p.Links), p.TotalCount, p.ActiveCount, p.Pagination.HasNextPage))
	var found, all, walked []string
	for _, l := range p.Links {
		all = append(all, l.ID)
		if name := names[l.ID]; name != "" {
			found = append(found, name)
		}
	}
	t.add("list links, the newest first", "[third second first]", fmt.Sprint(found))
	var sizes []int
	for query := "?limit=4"; ; {
		p, a, err := get(query)
		if err != nil {
			return err
		}
		for _, l := range p.Links {
			walked = append(walked, l.ID)
		}
		sizes = append(sizes, len(p.Links))
		if a.status != http.StatusOK || p.Pagination.Limit != 4 || p.Pagination.HasNextPage != (p.NextCursor != nil) {
			return fmt.Errorf("a page of links: %s", a)
		}
		if p.NextCursor == nil || len(walked) > made {
			break
		}
		query = "?limit=4&cursor=" + *p.NextCursor
	}
	t.add("list links, four a page", "pages of [4 2]", fmt.Sprint("pages of ", sizes))
	t.add("all pages together are the same list", "true", fmt.Sprint(slices.Equal(walked, all)))
	for _, c := range []struct {
		query    string
		expected int
	}{{"ACTIVE", 1}, {"PAID", 1}, {"DISABLED", cancelled}, {"EXPIRED", 0}, {"PENDING", 0}} {
		p, a, err := get("?status=" + c.query)
		if err != nil {
			return err
		}
		got := 0
		for _, l := range p.Links {
			if l.Status == c.query {
				got++
			}
		}
		t.add("list links that are "+c.query, fmt.Sprintf("200, %d of %d", c.expected, c.expected), fmt.Sprintf("%d, %d of %d", a.status, got, len(p.Links)))
	}
	for _, query := range []string{"?status=OPEN", "?limit=0", "?limit=101", "?cursor=x"} {
		_, a, err := get(query)
		if err != nil {
			return err
		}
		t.add("list links "+query, "400", fmt.Sprint(a.status))
	}
	return nil
}

// stats plays GET /v1/payment-links/stats.
func (w *world) stats(ctx context.Context, t *table) error {
	a, err := w.asMerchant(ctx, http.MethodGet, "/stats", "")
	if err != nil {
		return err
	}
	for name, want := range inOrder("totalLinks", fmt.Sprint(made), "activeLinks", "1", "paidLinks", "1", "expiredLinks", "0", "totalEarnings", priceWhole, "currency", `"USDC"`) {
		t.add("stats: "+name, want, string(a.object()[name]))
	}
	return nil
}
