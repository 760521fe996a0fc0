package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// merchantKey is the key of the merchant "shop", whose programs make payment
// links. It is as public as those of the chain's accounts.
const merchantKey = "play-money-needs-no-secrets"

// bill makes a payment link as "tollgate link create" does, and returns its
// URL.
func (s *sandbox) bill(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	const terms = `{"amount":"5","description":"A bill to try out: five dollars of play money","successMessage":"Thank you. Nothing that is worth anything has moved."}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.admin+"/x402/links", strings.NewReader(terms))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("making a payment link: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("making a payment link: %w", err)
	}
	var made struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(body, &made); err != nil || resp.StatusCode != http.StatusCreated || made.URL == "" {
		return "", fmt.Errorf("making a payment link was answered with %s: %.200s", resp.Status, body)
	}
	return made.URL, nil
}

// payBill pays a payment link as an agent does.
func (s *sandbox) payBill(ctx context.Context, link string) (*purchase, error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	paid, err := s.buy(ctx, link)
	if err != nil {
		return nil, fmt.Errorf("paying the link failed: %w", err)
	}
	var told struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal([]byte(paid.body), &told); err != nil || told.Status != "PAID" {
		return nil, fmt.Errorf("the link should be PAID; it was answered with %s: %.200s", paid.status, paid.body)
	}
	return paid, nil
}
