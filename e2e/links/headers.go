package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
)

// What a payment by x402 comes to, in the words of the table.
const acceptedByHeader = "200 PAID, settled, moved 50000"

// payByHeader pays links at their own URLs, in both versions of x402.
func (w *world) payByHeader(ctx context.Context, t *table) error {
	for _, version := range []int{1, 2} {
		b, err := w.newBill(ctx)
		if err != nil {
			return err
		}
		var values []string
		for range 2 {
			transfer, err := w.sign(b.accept, "payer", nil)
			if err != nil {
				return err
			}
			value := transfer.headerV1("base-sepolia")
			if version == 2 {
				asks, err := w.ask(ctx, http.MethodGet, b.url, "")
				if err != nil {
					return err
				}
				if value, err = transfer.headerV2(asks.header.Get("Payment-Required")); err != nil {
					return err
				}
			}
			values = append(values, value)
		}
		name, settled := "X-PAYMENT", "X-Payment-Response"
		if version == 2 {
			name, settled = "PAYMENT-SIGNATURE", "Payment-Response"
		}
		for _, c := range []struct{ exchange, value, expected string }{
			{"GET a link with " + name, values[0], acceptedByHeader},
			{"the same again", values[0], "200 PAID, settled, moved 0"},
			{"with another " + name, values[1], `409 "already_paid", moved 0`},
			{"with a " + name + " that is none", "aGVsbG8=", "400 an error, moved 0"},
		} {
			var a *reply
			moved, err := w.moved(ctx, func() (err error) {
				a, err = w.ask(ctx, http.MethodGet, b.url, "", name, c.value)
				return err
			})
			if err != nil {
				return err
			}
			t.add(c.exchange, c.expected, fmt.Sprintf("%d %s, moved %d", a.status, headerWords(a, settled), moved))
		}
	}
	return nil
}

// headerWords says what an answer to a payment by header comes to. settled is
// the header that has the settlement.
func headerWords(a *reply, settled string) string {
	doc := a.object()
	switch {
	case a.status == http.StatusConflict:
		return string(doc["error"])
	case a.status >= 400 && len(doc["error"]) > 2:
		return "an error"
	case string(doc["status"]) != `"PAID"`:
		return a.String()
	}
	decoded, err := base64.StdEncoding.DecodeString(a.header.Get(settled))
	var settlement struct {
		Success     bool   `json:"success"`
		Transaction string `json:"transaction"`
	}
	if err != nil || json.Unmarshal(decoded, &settlement) != nil || !settlement.Success || !hash.MatchString(settlement.Transaction) {
		return "PAID, without a settlement: " + string(decoded)
	}
	return "PAID, settled"
}

// payByOfficialClients has the official clients pay links, as they are.
func (w *world) payByOfficialClients(ctx context.Context, t *table, folder string) error {
	for _, c := range []struct{ name, program, header string }{
		{"x402-fetch", "v1/fetch.mjs", "X-PAYMENT"},
		{"@x402/fetch", "v2/fetch.mjs", "PAYMENT-SIGNATURE"},
	} {
		b, err := w.newBill(ctx)
		if err != nil {
			return err
		}
		var outcome struct {
			Status int
			Body   struct{ Status string }
			Receipt,
			Payment *struct {
				Success bool
				Header  string
			}
		}
		var line []byte
		moved, err := w.moved(ctx, func() (err error) {
			line, err = runNode(ctx, filepath.Join(folder, c.program), "RESOURCE_URL="+b.url, "PRIVATE_KEY="+w.key("agent"), "RPC_URL="+w.RPCURL)
			return err
		})
		var got string
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			got = err.Error()
		case json.Unmarshal(line, &outcome) != nil || outcome.Receipt == nil || outcome.Payment == nil:
			got = fmt.Sprintf("%.300s", line)
		default:
			got = fmt.Sprintf("%d %s by %s, receipt %t, moved %d", outcome.Status, outcome.Body.Status, outcome.Payment.Header, outcome.Receipt.Success, moved)
		}
		t.add(c.name+" pays a link", "200 PAID by "+c.header+", receipt true, moved 50000", got)
	}
	return nil
}
