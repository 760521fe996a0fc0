package caddymodule

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tollgate402/tollgate/internal/egress"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/webhook"
	"github.com/tollgate402/tollgate/payment/link"
)

// Webhook is where a seller is told what becomes of its links. What is told is
// stored together with what it is about, and is sent until it is taken, for
// three days. See docs/webhooks.md.
type Webhook struct {
	// The name by which the ledger knows it: 1 to 64 lower case letters,
	// digits, "-" and "_".
	Name string `json:"name"`

	// Where events are sent: an https URL, or a placeholder for one.
	URL string `json:"url"`

	// What they are signed with: one placeholder, such as
	// {env.X402_WEBHOOK_SECRET}, for at least 32 characters that are hard to
	// guess; or two, while the receiver changes from one to the other.
	Secrets []string `json:"secrets"`

	// Which events are sent: "link.paid", "link.expired", "link.reversed".
	// Default: all.
	Events []string `json:"events,omitempty"`
}

// WebhookAccess says where webhooks may go beside port 443 of public
// addresses.
type WebhookAccess struct {
	// The ports that https may go to. Default: 443.
	Ports []uint16 `json:"ports,omitempty"`

	// Hosts that may be reached without TLS, as "host" or "host:port".
	// Default: none.
	InsecureHTTP []string `json:"insecure_http,omitempty"`

	// Networks of private addresses that may be reached, such as
	// "10.1.2.0/24". Whoever chooses a webhook's URL reaches everything in
	// there. Default: none.
	InsecureAllow []string `json:"insecure_allow,omitempty"`
}

const (
	webhookSecret        = "the secret of a webhook"
	webhookSecretExample = "X402_WEBHOOK_SECRET" //nolint:gosec // a name
)

// endpoint returns the webhook with its secrets.
func (h *Webhook) endpoint() (webhook.Endpoint, error) {
	e := webhook.Endpoint{Name: h.Name, Types: h.Events}
	var err error
	if e.URL, err = resolve("the URL of webhook "+h.Name, h.URL); err != nil {
		return e, err
	}
	for _, s := range h.Secrets {
		text, err := longSecret(webhookSecret, s, webhookSecretExample)
		if err != nil {
			return e, err
		}
		e.Secrets = append(e.Secrets, text)
	}
	return e, nil
}

// config returns the way out that webhooks take.
func (w *WebhookAccess) config() (egress.Config, error) {
	c := egress.Config{Ports: w.Ports, InsecureHTTP: w.InsecureHTTP, Own: func() []netip.AddrPort {
		return []netip.AddrPort{netip.AddrPortFrom(netip.Addr{}, 2019)} // Caddy's admin endpoint
	}}
	for _, s := range w.InsecureAllow {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return c, fmt.Errorf("insecure_allow: %q must be a network, such as 10.1.2.0/24", s)
		}
		c.InsecureAllow = append(c.InsecureAllow, p)
	}
	return c, nil
}

// loadWebhooks checks the webhooks, and asks nobody.
func (a *App) loadWebhooks() error {
	if len(a.Webhooks) == 0 {
		return nil
	}
	_, err := a.webhooks(nil)
	return err
}

// webhooks returns the queue of what is told on a store.
func (a *App) webhooks(store ledger.Store) (*webhook.Queue, error) {
	access, err := a.WebhookAccess.config()
	if err != nil {
		return nil, err
	}
	client, err := egress.New(access)
	if err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	var list []webhook.Endpoint
	for i := range a.Webhooks {
		e, err := a.Webhooks[i].endpoint()
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return webhook.New(webhook.Config{Store: store, Sender: client, Endpoints: list, Log: a.logger})
}

// startWebhooks begins to tell what is to be told.
func (e *engine) startWebhooks(a *App, store ledger.Store) error {
	if len(a.Webhooks) == 0 {
		return nil
	}
	q, err := a.webhooks(store)
	if err != nil {
		return err
	}
	e.hooks = q
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with ctx; the engine's end waits for it
		defer close(done)
		q.Run(ctx)
	}()
	e.closers = append(e.closers, func() error {
		cancel()
		<-done
		return nil
	})
	return nil
}

// announce returns what is written with what becomes of a link.
func (d *desk) announce(q *webhook.Queue) func(event string, l *link.Link, u *link.Use) ([]ledger.Write, error) {
	if q == nil {
		return nil
	}
	return func(event string, l *link.Link, u *link.Use) ([]ledger.Write, error) {
		news, err := d.site.News(event, l, u, webhook.MaxData)
		if err != nil {
			return nil, err
		}
		e, err := webhook.NewEvent(rand.Reader, event, time.Now(), news)
		if err != nil {
			return nil, err
		}
		return q.Writes(e)
	}
}

// parseWebhook reads
//
//	webhook <name> <url> {
//		secret {env.NAME}...
//		events <type>...
//	}
func (a *App) parseWebhook(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 2 {
		return d.Err("webhook needs a name and a URL: write \"webhook shop https://shop.example.com/paid { secret {env." + webhookSecretExample + "} }\"")
	}
	h := Webhook{Name: args[0], URL: args[1]}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch d.Val() {
		case "secret":
			err = secrets(d, &h.Secrets, webhookSecret, webhookSecretExample)
		case "events":
			err = texts(d, &h.Events)
		default:
			err = unknown(d, "webhook", "secret", "events")
		}
		if err != nil {
			return err
		}
	}
	if err := h.check(); err != nil {
		return d.WrapErr(err)
	}
	for i := range a.Webhooks {
		if a.Webhooks[i].Name == h.Name {
			return d.Errf("webhook %s is given twice", h.Name)
		}
	}
	a.Webhooks = append(a.Webhooks, h)
	return nil
}

func (h *Webhook) check() error {
	if len(h.Secrets) == 0 {
		return fmt.Errorf("webhook %s has nothing to sign with: add \"secret {env.%s}\"", h.Name, webhookSecretExample)
	}
	for _, event := range h.Events {
		if event != link.EventPaid && event != link.EventExpired && event != link.EventReversed {
			return fmt.Errorf("webhook %s: there is no event %q: there are link.paid, link.expired and link.reversed", h.Name, event)
		}
	}
	return nil
}

// parse reads
//
//	webhooks {
//		ports          <port>...
//		insecure_http  <host>...
//		insecure_allow <network>...
//	}
func (w *WebhookAccess) parse(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.Err("webhooks has settings of all webhooks in a block; one of them is \"webhook <name> <url>\"")
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch d.Val() {
		case "ports":
			err = ports(d, &w.Ports)
		case "insecure_http":
			err = texts(d, &w.InsecureHTTP)
		case "insecure_allow":
			err = texts(d, &w.InsecureAllow)
		default:
			err = unknown(d, "webhooks", "ports", "insecure_http", "insecure_allow")
		}
		if err != nil {
			return err
		}
	}
	_, err := w.config()
	if err != nil {
		return d.WrapErr(err)
	}
	return nil
}

func ports(d *caddyfile.Dispenser, to *[]uint16) error {
	var list []string
	if err := texts(d, &list); err != nil {
		return err
	}
	for _, s := range list {
		p, err := netip.ParseAddrPort("[::]:" + s)
		if err != nil || p.Port() == 0 {
			return d.WrapErr(errors.New("ports: \"" + s + "\" is no port"))
		}
		*to = append(*to, p.Port())
	}
	return nil
}

// survey walks through the whole ledger.
func (e *engine) survey(ctx context.Context) (*ledger.Survey, error) {
	s, err := e.book.ledger.Check(ctx)
	if err != nil {
		return nil, err
	}
	_, found, err := webhook.Check(ctx, e.book.store)
	s.Findings = append(s.Findings, found...)
	return s, err
}
