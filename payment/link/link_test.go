package link_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// A desk is a store of links on a clock of its own.
type desk struct {
	t       rapid.TB
	clock   atomic.Int64 // seconds since start
	entries ledger.Store
	ledger  *ledger.Ledger
	links   *link.Store
	offer   payment.Offer
}

func newDesk(t rapid.TB, entries ledger.Store) *desk {
	d := &desk{t: t, entries: entries}
	now := func() time.Time { return start.Add(time.Duration(d.clock.Load()) * time.Second) }
	d.ledger = ledger.New(entries, "desk", now)
	d.links = &link.Store{Entries: entries, Payments: d.ledger, Now: now, Random: rand.Reader}
	usdc, ok := payment.USDC(payment.EVM(84532))
	if !ok {
		t.Fatal("there is no USDC on Base Sepolia")
	}
	price, err := payment.ParsePrice("12.5 USDC", usdc)
	if err != nil {
		t.Fatal(err)
	}
	d.offer = payment.Offer{Scheme: payment.Exact, Amount: price, PayTo: "0x70997970C51812dc3A010C7d01b50e0d17dc79C8", Timeout: time.Minute, Until: payment.Included}
	return d
}

func (d *desk) terms() link.Terms {
	return link.Terms{Merchant: "main", Amount: "12.5", Offers: []payment.Offer{d.offer}, Description: "Website work"}
}

func (d *desk) create(change func(*link.Terms), key string) *link.Link {
	terms := d.terms()
	if change != nil {
		change(&terms)
	}
	terms, err := terms.Check([]string{"shop.example"})
	if err != nil {
		d.t.Fatal(err)
	}
	l, err := d.links.Create(context.Background(), terms, key)
	if err != nil {
		d.t.Fatal(err)
	}
	return l
}

// claim claims a link for a payment.
func (d *desk) claim(k payment.Key, id link.ID) error {
	_, err := d.ledger.Claim(context.Background(), ledger.Record{
		Key: k, State: ledger.Reserved, Mode: link.Mode, Network: d.offer.Network(), Payer: "0x01", Charge: d.offer.Amount.Units(), Request: []byte("{}"), Due: start.Add(1000 * time.Hour),
	}, 1000*time.Hour, d.links.Claim(id, &d.offer, map[string]string{"order": "7"}))
	return err
}

// move takes a payment through states.
func (d *desk) move(k payment.Key, states ...ledger.State) {
	if _, err := d.ledger.Update(context.Background(), k, func(r *ledger.Record) error {
		for _, s := range states {
			if err := r.To(s); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		d.t.Fatal(err)
	}
}

func key(n int) payment.Key { return payment.Key{byte(n), byte(n >> 8), 31: 1} }

func TestIDsAreLongAndReadAsTheyAreSpelled(t *testing.T) {
	seen := map[link.ID]bool{}
	for range 1000 {
		id, err := link.NewID(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		back, err := link.ParseID(strings.ToUpper(string(id)))
		if err != nil || back != id || len(id) != 26 || seen[id] {
			t.Fatalf("%q reads as %q, %v", id, back, err)
		}
		seen[id] = true
	}
	for _, bad := range []string{"", "0", strings.Repeat("0", 25), strings.Repeat("0", 27), strings.Repeat("0", 25) + "1", strings.Repeat("u", 26), strings.Repeat("o", 26), "../../../../etc/passwd0000", strings.Repeat("é", 13)} {
		if id, err := link.ParseID(bad); err == nil {
			t.Errorf("%q was read as %q", bad, id)
		}
	}
}

func TestTermsHaveTheirLimits(t *testing.T) {
	d := newDesk(t, ledger.NewMemory())
	long := func(n int) string { return strings.Repeat("é", n) }
	for name, c := range map[string]struct {
		change func(*link.Terms)
		member string // that the problem is about; empty if there is none
	}{
		"the least":                  {func(x *link.Terms) { x.Amount, x.Description, x.Life = "0.000001", "x", time.Hour }, ""},
		"the most":                   {func(x *link.Terms) { x.Amount, x.Description, x.Life = "1000000", long(500), 90*24*time.Hour }, ""},
		"zeroes at the end":          {func(x *link.Terms) { x.Amount = "1.10000000000" }, ""},
		"a line break":               {func(x *link.Terms) { x.Description = "two\nlines" }, ""},
		"no amount":                  {func(x *link.Terms) { x.Amount = "" }, "amount"},
		"zero":                       {func(x *link.Terms) { x.Amount = "0.00" }, "amount"},
		"negative":                   {func(x *link.Terms) { x.Amount = "-1" }, "amount"},
		"exponent":                   {func(x *link.Terms) { x.Amount = "1e3" }, "amount"},
		"a leading zero":             {func(x *link.Terms) { x.Amount = "01" }, "amount"},
		"no whole part":              {func(x *link.Terms) { x.Amount = ".5" }, "amount"},
		"seven decimals":             {func(x *link.Terms) { x.Amount = "1.0000001" }, "amount"},
		"a little too much":          {func(x *link.Terms) { x.Amount = "1000000.000001" }, "amount"},
		"far too much":               {func(x *link.Terms) { x.Amount = "99999999" }, "amount"},
		"no description":             {func(x *link.Terms) { x.Description = "" }, "description"},
		"a blank description":        {func(x *link.Terms) { x.Description = " " }, "description"},
		"a long description":         {func(x *link.Terms) { x.Description = long(501) }, "description"},
		"not UTF-8":                  {func(x *link.Terms) { x.Description = "\xff" }, "description"},
		"text that runs backwards":   {func(x *link.Terms) { x.Description = "a\u202eb" }, "description"},
		"59 minutes":                 {func(x *link.Terms) { x.Life = 59 * time.Minute }, "expiresInHours"},
		"91 days":                    {func(x *link.Terms) { x.Life = 91 * 24 * time.Hour }, "expiresInHours"},
		"too many uses":              {func(x *link.Terms) { x.Uses = 1_000_001 }, "maxUses"},
		"a redirect":                 {func(x *link.Terms) { x.Redirect = "https://shop.example/thanks?x=1" }, ""},
		"a redirect elsewhere":       {func(x *link.Terms) { x.Redirect = "https://evil.example/" }, "successUrl"},
		"a redirect by the user":     {func(x *link.Terms) { x.Redirect = "https://shop.example@evil.example/" }, "successUrl"},
		"a redirect to a script":     {func(x *link.Terms) { x.Redirect = "javascript:alert(1)" }, "successUrl"},
		"a redirect without TLS":     {func(x *link.Terms) { x.Redirect = "http://shop.example/" }, "successUrl"},
		"a redirect to another port": {func(x *link.Terms) { x.Redirect = "https://shop.example:8443/" }, "successUrl"},
		"a path":                     {func(x *link.Terms) { x.Opens = "/reports/7?full=1" }, ""},
		"a path to another host":     {func(x *link.Terms) { x.Opens = "//evil.example/" }, "opens"},
		"a field":                    {func(x *link.Terms) { x.Fields = []link.Field{{Name: "order_id", Label: "Order"}} }, ""},
		"a field without a label":    {func(x *link.Terms) { x.Fields = []link.Field{{Name: "a"}} }, "customFields"},
		"a field with a bad name":    {func(x *link.Terms) { x.Fields = []link.Field{{Name: "a b", Label: "x"}} }, "customFields"},
		"a field twice":              {func(x *link.Terms) { x.Fields = []link.Field{{Name: "a", Label: "x"}, {Name: "a", Label: "y"}} }, "customFields"},
		"eleven fields":              {func(x *link.Terms) { x.Fields = make([]link.Field, 11) }, "customFields"},
		"metadata":                   {func(x *link.Terms) { x.Metadata = map[string]string{"order": "7"} }, ""},
		"metadata with a long key":   {func(x *link.Terms) { x.Metadata = map[string]string{long(41): ""} }, "metadata"},
		"no offer":                   {func(x *link.Terms) { x.Offers = nil }, "network"},
		"a merchant with a slash":    {func(x *link.Terms) { x.Merchant = "a/b" }, "merchant"},
	} {
		terms := d.terms()
		c.change(&terms)
		_, err := terms.Check([]string{"shop.example"})
		problem, _ := errors.AsType[*link.TermsError](err)
		switch {
		case c.member == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.member != "" && (problem == nil || problem.Member != c.member):
			t.Errorf("%s: %v, want a problem about %s", name, err, c.member)
		}
	}
}

func TestPayersFillInWhatIsAsked(t *testing.T) {
	l := &link.Link{Terms: link.Terms{Fields: []link.Field{{Name: "order", Label: "Order", Required: true, Max: 5}, {Name: "note", Label: "Note"}}}}
	got, err := l.Fill(map[string]string{"order": " 12345 ", "note": ""})
	if err != nil || !maps.Equal(got, map[string]string{"order": "12345"}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []map[string]string{nil, {"order": " "}, {"order": "123456"}, {"order": "1", "other": "x"}, {"order": "1\x00"}} {
		if _, err := l.Fill(bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

func TestLinksAreStoredAsTheyWereMade(t *testing.T) {
	disk, err := badger.Open(t.TempDir(), badger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for name, entries := range map[string]ledger.Store{"memory": ledger.NewMemory(), "badger": disk} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, entries)
			made := d.create(func(x *link.Terms) {
				x.Uses, x.Message, x.Redirect, x.Opens = 3, "Thanks", "https://shop.example/", "/a"
				x.Fields = []link.Field{{Name: "a", Label: "A", Required: true}}
				x.Metadata = map[string]string{"k": "v"}
			}, "")
			got, err := d.links.Get(t.Context(), made.ID)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(*got) != fmt.Sprint(*made) {
				t.Errorf("got  %v\nmade %v", *got, *made)
			}
			if _, err := d.links.Get(t.Context(), "00000000000000000000000000"); !errors.Is(err, link.ErrNotFound) {
				t.Errorf("a link that was not made: %v", err)
			}
			if _, err := d.links.Of(t.Context(), "other", made.ID); !errors.Is(err, link.ErrNotFound) {
				t.Errorf("another's link: %v", err)
			}
		})
	}
}

func TestAnIdempotencyKeyMakesOneLink(t *testing.T) {
	d := newDesk(t, ledger.NewMemory())
	var all sync.WaitGroup
	ids := make([]link.ID, 20)
	for i := range ids {
		all.Go(func() { ids[i] = d.create(nil, "order 7").ID })
	}
	all.Wait()
	if slices.Sort(ids); ids[0] != ids[len(ids)-1] {
		t.Errorf("made %v", ids)
	}
	terms, err := d.terms().Check(nil)
	if err != nil {
		t.Fatal(err)
	}
	terms.Description = "something else"
	if _, err := d.links.Create(t.Context(), terms, "order 7"); !errors.Is(err, link.ErrKeyUsed) {
		t.Errorf("other terms by the same key: %v", err)
	}
	terms.Merchant = "other"
	if _, err := d.links.Create(t.Context(), terms, "order 7"); err != nil {
		t.Errorf("the same key of another merchant: %v", err)
	}
}

func TestLinksAreListedNewestFirst(t *testing.T) {
	d := newDesk(t, ledger.NewMemory())
	var made []link.ID
	for i := range 300 {
		d.clock.Add(1)
		l := d.create(nil, "")
		if i%3 == 0 {
			if _, err := d.links.Disable(t.Context(), "main", l.ID); err != nil {
				t.Fatal(err)
			}
			continue
		}
		made = append(made, l.ID)
	}
	slices.Reverse(made)
	for _, limit := range []int{1, 7, 100} {
		var got []link.ID
		for cursor := ""; ; {
			page, err := d.links.List(t.Context(), "main", link.Query{Status: link.Active, Limit: limit, Cursor: cursor})
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range page.Links {
				got = append(got, l.ID)
			}
			if cursor = page.Next; cursor == "" {
				break
			}
			if len(page.Links) != limit {
				t.Fatalf("a page of %d links, with another after it", len(page.Links))
			}
		}
		if !slices.Equal(got, made) {
			t.Errorf("pages of %d: %d links, want %d in the order of making", limit, len(got), len(made))
		}
	}
	if _, err := d.links.List(t.Context(), "main", link.Query{Limit: 1, Cursor: "%"}); !errors.Is(err, link.ErrCursor) {
		t.Errorf("a bad cursor: %v", err)
	}
	stats, err := d.links.Stats(t.Context(), "main")
	if err != nil || stats.Total != 300 || stats.ByStatus[link.Disabled] != 100 || stats.ByStatus[link.Active] != 200 {
		t.Errorf("stats are %v, %v", stats, err)
	}
}

// TestALinkIsNeverTakenMoreOftenThanItHasUses lets payments claim a link,
// settle, be released and die in any order, with sweeps between, and counts.
func TestALinkIsNeverTakenMoreOftenThanItHasUses(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDesk(rt, ledger.NewMemory())
		uses := rapid.Uint32Range(1, 3).Draw(rt, "uses")
		l := d.create(func(x *link.Terms) { x.Uses = uses }, "")
		state := func(k payment.Key) ledger.State {
			r, err := d.ledger.Get(context.Background(), k)
			if errors.Is(err, ledger.ErrNotFound) {
				return ""
			} else if err != nil {
				rt.Fatal(err)
			}
			return r.State
		}
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			k := key(rapid.IntRange(0, 5).Draw(rt, "payment"))
			switch rapid.IntRange(0, 5).Draw(rt, "step") {
			case 0, 1:
				err := d.claim(k, l.ID)
				_, late := errors.AsType[*link.StatusError](err)
				_, held := errors.AsType[*ledger.HeldError](err)
				if err != nil && !late && !held {
					rt.Fatal(err)
				}
			case 2:
				if state(k) == ledger.Reserved {
					d.move(k, rapid.SampledFrom([]ledger.State{ledger.Intent, ledger.Released, ledger.Settled}).Draw(rt, "next"))
				}
			case 3:
				switch state(k) {
				case ledger.Intent:
					d.move(k, rapid.SampledFrom([]ledger.State{ledger.Sent, ledger.Dead, ledger.Included}).Draw(rt, "next"))
				case ledger.Sent:
					d.move(k, rapid.SampledFrom([]ledger.State{ledger.Included, ledger.Dead, ledger.Settled}).Draw(rt, "next"))
				case ledger.Included:
					d.move(k, rapid.SampledFrom([]ledger.State{ledger.Sent, ledger.Settled}).Draw(rt, "next"))
				case ledger.Settled:
					d.move(k, rapid.SampledFrom([]ledger.State{ledger.Sent, ledger.Archived}).Draw(rt, "next"))
				default:
				}
			case 4:
				if _, _, err := d.links.Resolve(context.Background(), k); err != nil && !errors.Is(err, link.ErrNotFound) {
					rt.Fatal(err)
				}
			case 5:
				if err := d.links.Sweep(context.Background()); err != nil {
					rt.Fatal(err)
				}
			}
			// What may still move money for the link never exceeds its uses.
			live := uint32(0)
			for i := range 6 {
				if u, err := d.links.By(context.Background(), key(i)); err == nil && u.Step != link.Dropped {
					live++
				}
				if s := state(key(i)); s.Broadcast() || s.Working() {
					if u, err := d.links.By(context.Background(), key(i)); err != nil || u.Step == link.Dropped {
						rt.Fatalf("payment %d is %s and holds no use of the link", i, s)
					}
				}
			}
			now, err := d.links.Get(context.Background(), l.ID)
			if err != nil {
				rt.Fatal(err)
			}
			if live != now.Taken || now.Taken > uses || now.Sold > now.Taken {
				rt.Fatalf("%d payments hold a use, the link says that %d of %d are taken and %d paid", live, now.Taken, uses, now.Sold)
			}
		}
		if err := d.links.Sweep(context.Background()); err != nil {
			rt.Fatal(err)
		}
		paid := uint32(0)
		for i := range 6 {
			if state(key(i)).Paid() {
				paid++
			}
		}
		now, err := d.links.Get(context.Background(), l.ID)
		if err != nil {
			rt.Fatal(err)
		}
		if now.Sold < paid {
			rt.Fatalf("%d payments are settled, the link says %d", paid, now.Sold)
		}
	})
}
