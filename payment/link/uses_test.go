package link_test

import (
	"slices"
	"testing"

	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

func TestUsesOfALinkAreListedByPage(t *testing.T) {
	d := newDesk(t, ledger.NewMemory())
	l, other := d.create(func(x *link.Terms) { x.Uses = 100 }, ""), d.create(nil, "")
	want := map[string]bool{}
	for n := range 20 {
		if err := d.claim(key(n), l.ID); err != nil {
			t.Fatal(err)
		}
		want[key(n).String()] = true
	}
	if err := d.claim(key(99), other.ID); err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int{1, 7, 20, 100} {
		got := map[string]bool{}
		for after := link.ID(""); ; {
			uses, next, err := d.links.Uses(t.Context(), l.ID, after, limit)
			if err != nil || len(uses) > limit || next != "" && len(uses) < limit {
				t.Fatalf("%d uses, then %q, %v", len(uses), next, err)
			}
			for _, u := range uses {
				if u.Link != l.ID || u.Step != link.Claimed || got[u.Payment] || !want[u.Payment] {
					t.Errorf("%+v", u)
				}
				got[u.Payment] = true
			}
			if after = next; next == "" {
				break
			}
		}
		if len(got) != len(want) {
			t.Errorf("by %d: %d uses", limit, len(got))
		}
	}
	if uses, next, err := d.links.Uses(t.Context(), "00000000000000000000000000", "", 10); err != nil || len(uses) != 0 || next != "" {
		t.Errorf("of no link: %v, %q, %v", uses, next, err)
	}
}

func TestCreateSaysWhetherAnIdempotencyKeyWasUsedBefore(t *testing.T) {
	d := newDesk(t, ledger.NewMemory())
	terms, err := d.terms().Check(nil)
	if err != nil {
		t.Fatal(err)
	}
	first, before, err := d.links.CreateOnce(t.Context(), terms, "order 7")
	if err != nil || before {
		t.Fatal(before, err)
	}
	// What offers there are follows from the configuration, which can change
	// before a request is sent again.
	changed := terms
	changed.Offers = slices.Clone(terms.Offers)
	changed.Offers[0].PayTo = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"
	again, before, err := d.links.CreateOnce(t.Context(), changed, "order 7")
	if err != nil || !before || again.ID != first.ID || again.Offers[0].PayTo != terms.Offers[0].PayTo {
		t.Errorf("%+v, %v, %v", again, before, err)
	}
}

func TestStatsNameTheTokensThatWereEarned(t *testing.T) {
	d := newDesk(t, ledger.NewMemory())
	if err := d.claim(key(1), d.create(nil, "").ID); err != nil {
		t.Fatal(err)
	}
	d.move(key(1), ledger.Settled)
	if _, _, err := d.links.Resolve(t.Context(), key(1)); err != nil {
		t.Fatal(err)
	}
	d.create(nil, "")
	stats, err := d.links.Stats(t.Context(), "main")
	usdc := d.offer.Amount.Token()
	if err != nil || len(stats.Tokens) != 1 || !stats.Tokens[link.TokenName(usdc)].Is(usdc) || stats.Earned[link.TokenName(usdc)].String() != "12500000" {
		t.Errorf("%+v, %v", stats, err)
	}
	var none payment.Token
	if other, err := d.links.Stats(t.Context(), "other"); err != nil || other.Tokens[link.TokenName(usdc)] != none || other.Total != 0 {
		t.Errorf("%+v, %v", other, err)
	}
}
