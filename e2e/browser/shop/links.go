package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/link"
)

// What links cost, which decides how long their payments take to settle: see
// the Caddyfile.
const (
	cheap   = "50"
	dear    = "500"
	dearest = "5000"
)

// An order is what is said of a link to the API that makes it.
type order struct {
	Amount      string  `json:"amount"`
	Description string  `json:"description"`
	Hours       int     `json:"expiresInHours,omitempty"`
	Fields      []field `json:"customFields,omitempty"`
	Message     string  `json:"successMessage,omitempty"`
	Redirect    string  `json:"successUrl,omitempty"`
}

type field struct {
	Name     string `json:"name"`
	Label    string `json:"label"`
	Required bool   `json:"required,omitempty"`
	Max      int    `json:"maxlength,omitempty"`
}

// A made link is what the API says of it.
type made struct {
	ID       string   `json:"id"`
	URL      string   `json:"url"`
	Networks []string `json:"networks"`
}

// fill makes the links of the world.
func (s *shop) fill(ctx context.Context, polyglots string) (*world, error) {
	w := &world{
		Base: s.base, ChainID: s.chain.ChainID(), Network: payment.EVM(s.chain.ChainID()).Title(),
		Payer: keyOf(s.chain.Account("payer")), Pauper: keyOf(s.chain.Account("nobody")), // who is none of those that have money
		Links: map[string]string{"unknown": s.base + "/x402/00000000000000000000000000"},
	}
	maps.Copy(w.Links, s.old)
	for range 16 {
		l, err := s.create(ctx, order{Amount: cheap})
		if err != nil {
			return nil, err
		}
		w.Open = append(w.Open, l.URL)
	}
	for name, o := range map[string]order{
		"slow":     {Amount: dear},
		"reloaded": {Amount: dear},
		"short":    {Amount: cheap, Hours: 1},
	} {
		l, err := s.create(ctx, o)
		if err != nil {
			return nil, err
		}
		w.Links[name] = l.URL
	}
	for _, add := range []func(context.Context, *world) error{
		s.addRich, s.addDisabled, s.addPaid, s.addPending,
		func(ctx context.Context, w *world) error { return s.addHostile(ctx, w, polyglots) },
	} {
		if err := add(ctx, w); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func keyOf(a devchain.Account) string { return "0x" + hex.EncodeToString(crypto.FromECDSA(a.Key)) }

// create makes a link as "tollgate link create" does, which can be paid one
// way.
func (s *shop) create(ctx context.Context, o order) (*made, error) {
	return s.order(ctx, http.DefaultClient, "http://"+s.admin+"/x402/links", o, 1)
}

// order makes a link, which must be payable on as many networks as ways says.
func (s *shop) order(ctx context.Context, client *http.Client, url string, o order, ways int) (*made, error) {
	if o.Description == "" {
		o.Description = "Website work, second instalment"
	}
	body, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	doc, err := s.post(ctx, client, url, body)
	if err != nil {
		return nil, fmt.Errorf("making a link of %s: %w", body, err)
	}
	var l made
	if err := json.Unmarshal(doc, &l); err != nil {
		return nil, fmt.Errorf("reading %s: %w", doc, err)
	}
	if len(l.Networks) != ways {
		return nil, fmt.Errorf("link %s can be paid on %v, which are not %d networks", l.ID, l.Networks, ways)
	}
	return &l, nil
}

func (s *shop) post(ctx context.Context, client *http.Client, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if client == s.site {
		req.Header.Set("Authorization", "Bearer "+s.key)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	doc, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", resp.Status, doc)
	}
	return doc, err
}

// addRich has a merchant's program make a link with everything.
func (s *shop) addRich(ctx context.Context, w *world) error {
	l, err := s.order(ctx, s.site, s.base+"/v1/payment-links", order{
		Amount: cheap,
		Fields: []field{
			{Name: "reference", Label: "Your order number", Required: true, Max: 40},
			{Name: "note", Label: "A note to us", Max: 200},
		},
		Message:  "Thank you. We begin on Monday, and write to you before.",
		Redirect: s.base + "/thanks",
	}, 2)
	if err != nil {
		return err
	}
	w.Links["rich"] = l.URL
	return nil
}

func (s *shop) addDisabled(ctx context.Context, w *world) error {
	l, err := s.create(ctx, order{Amount: cheap})
	if err != nil {
		return err
	}
	if _, err := s.post(ctx, http.DefaultClient, "http://"+s.admin+"/x402/links/"+l.ID+"/cancel", []byte("{}")); err != nil {
		return fmt.Errorf("disabling a link: %w", err)
	}
	w.Links["disabled"] = l.URL
	return nil
}

// addPaid pays a link as an agent does.
func (s *shop) addPaid(ctx context.Context, w *world) error {
	l, err := s.create(ctx, order{Amount: cheap})
	if err != nil {
		return err
	}
	w.Links["paid"] = l.URL
	return s.payUntil(ctx, l.URL, link.Paid)
}

// addPending pays a link whose payment settles after the run, if ever.
func (s *shop) addPending(ctx context.Context, w *world) error {
	l, err := s.create(ctx, order{Amount: dearest})
	if err != nil {
		return err
	}
	w.Links["pending"] = l.URL
	return s.payUntil(ctx, l.URL, link.Pending)
}

// linksOfThePast makes, with the product's own store, links as they were made
// some hours ago: one that has expired since, and one that can be paid on a
// network only that the shop has left.
func linksOfThePast(ctx context.Context, entries ledger.Store, seller common.Address) (map[string]link.ID, error) {
	store := &link.Store{Entries: entries, Now: func() time.Time { return time.Now().Add(-5 * time.Hour) }, Random: rand.Reader}
	ids := map[string]link.ID{}
	for name, past := range map[string]struct {
		network payment.Network
		life    time.Duration
	}{
		"expired":     {"eip155:84532", link.MinLife},
		"unavailable": {"eip155:80002", link.DefaultLife},
	} {
		token, ok := payment.USDC(past.network)
		if !ok {
			return nil, fmt.Errorf("no USDC on %s", past.network)
		}
		amount, err := payment.ParsePrice("$"+cheap, token)
		if err != nil {
			return nil, err
		}
		terms, err := link.Terms{
			Merchant: "main", Amount: cheap, Description: "Website work, first instalment", Life: past.life,
			Offers: []payment.Offer{{Scheme: payment.Exact, Amount: amount, PayTo: seller.Hex(), Timeout: 5 * time.Minute}},
		}.Check(nil)
		if err != nil {
			return nil, err
		}
		l, err := store.Create(ctx, terms, "")
		if err != nil {
			return nil, err
		}
		ids[name] = l.ID
	}
	return ids, nil
}

// addHostile makes links of hostile texts, a dozen to a link: all those that
// links may have. Longer ones do not fit labels.
func (s *shop) addHostile(ctx context.Context, w *world, file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var source struct{ Payloads, Contexts []string }
	if err := json.Unmarshal(raw, &source); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	var long, short []string
	for _, c := range source.Contexts {
		for _, p := range source.Payloads {
			text := strings.Replace(c, "%s", p, 1)
			_, err := link.Terms{
				Merchant: "main", Amount: cheap, Description: text, Offers: make([]payment.Offer, 1),
			}.Check(nil)
			switch {
			case err != nil:
				w.HostileRefused++
			case utf8.RuneCountInString(text) > maxLabel:
				long = append(long, text)
			default:
				short = append(short, text)
			}
		}
	}
	w.HostileTexts = len(long) + len(short)
	texts := slices.Concat(long, short)
	for len(texts) > 0 {
		// The long ones come first, so labels are taken from the end.
		var o order
		o.Amount = cheap
		next := func() string {
			i := len(texts) - 1
			if i < 0 {
				return "nothing is left"
			}
			text := texts[i]
			texts = texts[:i]
			return text
		}
		for i := range link.MaxFields {
			o.Fields = append(o.Fields, field{Name: "field_" + strconv.Itoa(i+1), Label: next()})
		}
		if len(texts) > 1 {
			o.Description, o.Message, texts = texts[0], texts[1], texts[2:]
		} else {
			o.Description, o.Message = next(), next()
		}
		l, err := s.create(ctx, o)
		if err != nil {
			return err
		}
		w.Hostile = append(w.Hostile, l.URL)
	}
	if w.HostileTexts == 0 {
		return errors.New("links refuse every hostile text of " + file)
	}
	return nil
}

// maxLabel is how many characters a field's label may have.
const maxLabel = 100
