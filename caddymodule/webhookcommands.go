package caddymodule

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/tollgate402/tollgate/internal/webhook"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "webhook",
		Usage: "list | resend <event> [<webhook>...] [--state <state>] [--limit <n>] [--after <cursor>] [--json] [--address <addr>]",
		Short: "Lists what webhooks were told, and tells it again",
		Long: `
list shows what waits to be delivered, was delivered in the last seven days, or
has failed in the last thirty, with the last answer of the receiver.

resend delivers an event again, with the same id, to the webhooks that are named
or to all that it was for, and for another three days if need be. A receiver
that knows the id has had it.

  tollgate webhook list --state FAILED
  tollgate webhook resend 01k9hzt3v6qk8x2m4c7dpnrw5e shop`,
		Flags: flags("webhook", func(fs *flag.FlagSet) {
			fs.String("state", "", "Only deliveries that are WAITING, DELIVERED or FAILED")
			fs.Int("limit", defaultPage, "How many at most, up to 1000")
			fs.String("after", "", "Begin where the list before has ended")
			fs.Bool("json", false, "Write JSON on a terminal, too")
		}),
		Func: func(fl caddycmd.Flags) (int, error) { return run(fl, cmdWebhook) },
	})
}

// A deliveryList is some of the deliveries of webhooks.
type deliveryList struct {
	Deliveries []deliveryView `json:"deliveries"`
	Next       string         `json:"next,omitempty"`
}

// A deliveryView is one event on its way to one webhook.
type deliveryView struct {
	Event      string        `json:"event"` // its id
	Type       string        `json:"type"`
	Created    time.Time     `json:"created"`
	Webhook    string        `json:"webhook"` // its name
	State      webhook.State `json:"state"`
	Due        time.Time     `json:"due,omitzero"`
	Attempts   int           `json:"attempts"`
	LastAt     time.Time     `json:"last_at,omitzero"`
	LastStatus int           `json:"last_status,omitempty"`
	LastError  string        `json:"last_error,omitempty"`
	Ended      time.Time     `json:"ended,omitzero"`
}

// A resentView says how many deliveries of an event were begun again.
type resentView struct {
	Event      string `json:"event"`
	Deliveries int    `json:"deliveries"`
}

var errNoWebhooks = apiError(http.StatusNotFound, "no webhook in this configuration: add \"webhook <name> <url> { secret {env.%s} }\" to the global option x402, and load it again", webhookSecretExample)

// deliveries lists what webhooks were told.
func (a *Admin) deliveries(r *http.Request, e *engine) (*deliveryList, error) {
	if e.hooks == nil {
		return nil, errNoWebhooks
	}
	q := r.URL.Query()
	var state webhook.State
	limit := defaultPage
	var err error
	if s := q.Get("state"); s != "" {
		if state, err = webhook.ParseState(s); err != nil {
			return nil, apiError(http.StatusBadRequest, "%w", err)
		}
	}
	if s := q.Get("limit"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > webhook.MaxList {
			return nil, apiError(http.StatusBadRequest, "limit must be 1 to %d", webhook.MaxList)
		}
	}
	list, next, err := e.hooks.List(r.Context(), state, q.Get("after"), limit)
	if err != nil {
		return nil, err
	}
	view := &deliveryList{Deliveries: []deliveryView{}, Next: next}
	for i := range list {
		d := &list[i]
		view.Deliveries = append(view.Deliveries, deliveryView{
			d.Event.ID, d.Event.Type, d.Event.Created, d.Endpoint, d.State, d.Due, d.Attempts, d.LastAt, d.LastStatus, d.LastError, d.Ended,
		})
	}
	return view, nil
}

// resend delivers an event again.
func (a *Admin) resend(r *http.Request, e *engine, id string) (*resentView, error) {
	if err := notFromAPage(r, "{}"); err != nil {
		return nil, err
	}
	if e.hooks == nil {
		return nil, errNoWebhooks
	}
	n, err := e.hooks.Resend(r.Context(), id, r.URL.Query()["webhook"]...)
	if errors.Is(err, webhook.ErrNotFound) {
		return nil, apiError(http.StatusNotFound, "no event %s is kept for such a webhook: \"tollgate webhook list\" lists those that are", id)
	}
	if err != nil {
		return nil, err
	}
	e.hooks.Wake()
	return &resentView{id, n}, nil
}

func cmdWebhook(c *console) error {
	switch {
	case len(c.words) == 1 && c.words[0] == "list":
		return c.deliveries()
	case len(c.words) >= 2 && c.words[0] == "resend":
		return c.resend(c.words[1], c.words[2:])
	}
	_, err := c.args(-1, "webhook list | resend <event> [<webhook>...]")
	return err
}

func (c *console) deliveries() error {
	q := url.Values{"limit": {c.flag("limit")}}
	for _, name := range []string{"state", "after"} {
		if v := c.flag(name); v != "" {
			q.Set(name, v)
		}
	}
	q.Set("state", strings.ToUpper(q.Get("state")))
	var list deliveryList
	doc, err := c.get("/x402/webhooks?"+q.Encode(), &list)
	if err != nil {
		return err
	}
	if !c.asTable {
		_, err = c.out.Write(doc)
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "EVENT\tTYPE\tWEBHOOK\tSTATE\tATTEMPTS\tLAST\tNEXT")
	for _, d := range list.Deliveries {
		last, next := d.LastError, ""
		if last == "" && d.LastStatus != 0 {
			last = strconv.Itoa(d.LastStatus)
		}
		if !d.Due.IsZero() {
			next = d.Due.Local().Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", d.Event, d.Type, d.Webhook, d.State, d.Attempts, inLine(last), next)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if list.Next != "" {
		fmt.Fprintf(c.errs, "more with --after %s\n", list.Next)
	}
	return nil
}

func (c *console) resend(id string, names []string) error {
	path := "/x402/webhooks/" + url.PathEscape(id) + "/resend"
	if len(names) > 0 {
		path += "?" + url.Values{"webhook": names}.Encode()
	}
	resp, err := c.call(http.MethodPost, path, "{}")
	if err != nil {
		return err
	}
	var done resentView
	doc, err := read(resp, &done)
	if err != nil {
		return err
	}
	if c.asTable {
		doc = fmt.Appendf(nil, "event %s is delivered again, %d times; \"tollgate webhook list\" says what comes of it\n", done.Event, done.Deliveries)
	}
	_, err = c.out.Write(doc)
	return err
}
