package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/tollgate402/tollgate/payment/link"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "link",
		Usage: "create | list | show | disable | stats",
		Short: "Makes payment links and looks after them",
		Long: `
A payment link is one URL: a person sees a page to pay on, and a program what to
pay by x402. These commands ask the running server, whose configuration needs
x402_links, over its admin API. They write tables on a terminal, and JSON where
the output goes elsewhere.

  tollgate link create 50 --description "Website work"
  tollgate link list --status active
  tollgate link show <id>
  tollgate link disable <id>
  tollgate link stats`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.RunE = linkRun(cmdLink)
			cmd.AddCommand(linkCreate(), linkList(), linkShow(), linkDisable(), linkStats())
		},
	})
}

// linkRun returns what cobra calls for a command.
func linkRun(command func(*console) error) func(*cobra.Command, []string) error {
	return caddycmd.WrapCommandFuncForCobra(func(fl caddycmd.Flags) (int, error) { return run(fl, command) })
}

// linkCommand adds to a command what all have.
func linkCommand(cmd *cobra.Command, command func(*console) error) *cobra.Command {
	cmd.RunE = linkRun(command)
	cmd.Long = strings.TrimSpace(cmd.Long)
	fs := cmd.Flags()
	fs.String("merchant", defaultMerchant, "Whose links are meant")
	fs.Bool("json", false, "Write JSON on a terminal, too")
	fs.String("address", "", "Address of the admin API (default: "+caddy.DefaultAdminListen+")")
	return cmd
}

func linkCreate() *cobra.Command {
	cmd := linkCommand(&cobra.Command{
		Use:   "create <amount> --description <text> [flags]",
		Short: "Makes a payment link and prints its URL",
		Long: `
Makes a link over an amount in whole units of the token, such as 50 or 12.50,
and prints its URL on the last line. Where the output goes elsewhere it is JSON,
or with --quiet nothing but the URL.

  tollgate link create 50 --description "Website work"
  tollgate link create 5 --description "Ticket" --uses 100 --expires 48h --field "name:Your name:required"
  url=$(tollgate link create 50 --description "Invoice 7" --idempotency-key invoice-7 --quiet)

What a link says never changes. To change it, disable it and make another.`,
	}, cmdLinkCreate)
	fs := cmd.Flags()
	fs.StringP("description", "d", "", "What is paid for: 1 to 500 characters (required)")
	fs.String("expires", "", "After what time it can be paid no more, in whole hours or days: 1h to 90d (default: 30d)")
	fs.Uint32("uses", 1, "How often it can be paid, up to 1000000")
	fs.String("message", "", "What whoever has paid is told")
	fs.String("redirect", "", "Where a browser goes then: an https URL, on a host that x402_links lists in redirects")
	fs.String("opens", "", "The path of a priced route, which each payment opens once")
	fs.StringArray("metadata", nil, "For you: key=value; may be repeated")
	fs.StringArray("field", nil, "What the payer fills in: name:Label or name:Label:required; may be repeated")
	fs.String("idempotency-key", "", "Repeating the command with the same key prints the same link")
	fs.Bool("quiet", false, "Print the URL and nothing else")
	return cmd
}

func linkList() *cobra.Command {
	cmd := linkCommand(&cobra.Command{
		Use:   "list [--status <status>] [--limit <n>] [--cursor <cursor>]",
		Short: "Lists payment links, the newest first",
		Long: `
Lists links, the newest first.

  tollgate link list --status active
  tollgate link list --limit 100 | jq -r '.links[].url'

The status is one of ACTIVE (it can be paid), PENDING (it is being paid), PAID,
EXPIRED and DISABLED.`,
	}, cmdLinkList)
	fs := cmd.Flags()
	fs.String("status", "", "Only links with this status")
	fs.Int("limit", 20, "How many at most, up to 100")
	fs.String("cursor", "", "Begin where another page has ended")
	return cmd
}

func linkShow() *cobra.Command {
	cmd := linkCommand(&cobra.Command{
		Use:   "show <id or URL> [--payments]",
		Short: "Shows a payment link and its payments",
		Long: `
Shows a link and, on a terminal, its payments with their receipts. In JSON it is
the link, or with --payments its payments: of the statuses PENDING (it may
settle), PAID, FAILED (nothing was taken), REFUND_DUE and REFUNDED.`,
	}, cmdLinkShow)
	fs := cmd.Flags()
	fs.Bool("payments", false, "Only the payments")
	fs.Int("limit", 100, "How many payments at most, up to 100")
	fs.String("cursor", "", "Begin where another page of payments has ended")
	return cmd
}

func linkDisable() *cobra.Command {
	return linkCommand(&cobra.Command{
		Use:   "disable <id or URL>",
		Short: "Ends a payment link, for good",
		Long: `
Ends a link: nobody can begin to pay it any more. A payment that is under way may
still settle, and pays the link then. A link that is paid cannot be disabled:
"tollgate refund" gives the money of a payment back.`,
	}, cmdLinkDisable)
}

func linkStats() *cobra.Command {
	return linkCommand(&cobra.Command{
		Use:   "stats",
		Short: "Adds up all payment links",
		Long: `
Says how many links there are of each status, and what was paid by token. Only
tokens of one currency are added up, and nothing is ever converted.`,
	}, cmdLinkStats)
}

func cmdLink(c *console) error {
	_, err := c.args(-1, "link create | list | show | disable | stats")
	return err
}

// A linkView is what commands read of a link.
type linkView struct {
	ID          string      `json:"id"`
	Amount      json.Number `json:"amount"`
	Currency    string      `json:"currency"`
	Description string      `json:"description"`
	URL         string      `json:"url"`
	Networks    []string    `json:"networks"`
	Status      link.Status `json:"status"`
	MaxUses     uint32      `json:"maxUses"`
	PaidCount   uint32      `json:"paidCount"`
	ExpiresAt   time.Time   `json:"expiresAt"`
}

// linkCall asks the server about the links of the merchant that is meant.
func (c *console) linkCall(header http.Header, method, path string, q url.Values, body string, into any) ([]byte, error) {
	if q == nil {
		q = url.Values{}
	}
	q.Set("merchant", c.flag("merchant"))
	resp, err := c.callWith(header, method, "/x402/links"+path+"?"+q.Encode(), body)
	if err != nil {
		return nil, inFlags(err)
	}
	return read(resp, into)
}

// inFlags says what is wrong in the words of the command line, where the
// server has said it in those of the API.
func inFlags(err error) error {
	for member, flag := range map[string]string{
		"amount": "the amount", "description": "--description", "expiresInHours": "--expires", "maxUses": "--uses", "customFields": "--field", "successMessage": "--message",
		"successUrl": "--redirect", "opens": "--opens", "metadata": "--metadata", "Idempotency-Key": "--idempotency-key", "limit": "--limit", "cursor": "--cursor", "status": "--status", "merchant": "--merchant",
	} {
		if rest, ok := strings.CutPrefix(err.Error(), member+" "); ok {
			return errors.New(flag + " " + rest)
		}
	}
	return err
}

// linkID reads a link's id, or the URL that ends in it.
func linkID(s string) (link.ID, error) {
	if u, err := url.Parse(s); err == nil {
		s = strings.TrimSuffix(u.Path, "/")
	}
	id, err := link.ParseID(s[strings.LastIndexByte(s, '/')+1:])
	if err != nil {
		return "", fmt.Errorf("this names no link: %w: \"tollgate link list\" lists them", err)
	}
	return id, nil
}

// A linkOrder is what the API is sent to make a link.
type linkOrder struct {
	Amount      string            `json:"amount"`
	Description string            `json:"description"`
	Hours       int               `json:"expiresInHours,omitempty"`
	Uses        json.Number       `json:"maxUses"`
	Message     string            `json:"successMessage,omitempty"`
	Redirect    string            `json:"successUrl,omitempty"`
	Opens       string            `json:"opens,omitempty"`
	Fields      []linkField       `json:"customFields,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

type linkField struct {
	Name     string `json:"name"`
	Label    string `json:"label"`
	Required bool   `json:"required,omitempty"`
}

func (c *console) linkOrder(amount string) (*linkOrder, error) {
	o := &linkOrder{
		Amount: amount, Description: c.flag("description"), Uses: json.Number(c.flag("uses")), Message: c.flag("message"), Redirect: c.flag("redirect"), Opens: c.flag("opens"),
	}
	if o.Description == "" {
		return nil, errors.New("a link says what is paid for: add --description \"Website work\"")
	}
	if s := c.flag("expires"); s != "" {
		life, err := caddy.ParseDuration(s)
		if err != nil || life < link.MinLife || life > link.MaxLife || life%time.Hour != 0 {
			return nil, fmt.Errorf("--expires %s must be whole hours or days, from 1h to 90d, such as 48h", s)
		}
		o.Hours = int(life / time.Hour)
	}
	for _, s := range c.list("metadata") {
		key, value, ok := strings.Cut(s, "=")
		if _, twice := o.Metadata[key]; !ok || key == "" || twice {
			return nil, fmt.Errorf("--metadata %q must be key=value, with each key once", s)
		}
		if o.Metadata == nil {
			o.Metadata = map[string]string{}
		}
		o.Metadata[key] = value
	}
	for _, s := range c.list("field") {
		name, label, ok := strings.Cut(s, ":")
		label, required := strings.CutSuffix(label, ":required")
		if !ok || name == "" || label == "" {
			return nil, fmt.Errorf("--field %q must be name:Label or name:Label:required, such as \"order:Order number:required\"", s)
		}
		o.Fields = append(o.Fields, linkField{name, label, required})
	}
	return o, nil
}

func cmdLinkCreate(c *console) error {
	args, err := c.args(1, "link create <amount> --description <text>")
	if err != nil {
		return err
	}
	order, err := c.linkOrder(args[0])
	if err != nil {
		return err
	}
	body, err := json.Marshal(order)
	if err != nil {
		return err
	}
	header := http.Header{}
	if key := c.flag("idempotency-key"); key != "" {
		header.Set("Idempotency-Key", key)
	}
	var l linkView
	doc, err := c.linkCall(header, http.MethodPost, "", nil, string(body), &l)
	if err != nil {
		return err
	}
	switch {
	case c.flag("quiet") == "true":
		_, err = fmt.Fprintln(c.out, l.URL)
	case !c.asTable:
		_, err = c.out.Write(doc)
	default:
		w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
		fmt.Fprintf(w, "amount\t%s %s\n", l.Amount, l.Currency)
		fmt.Fprintf(w, "networks\t%s\n", strings.Join(l.Networks, ", "))
		fmt.Fprintf(w, "expires\t%s\n", l.ExpiresAt.Local().Format(time.DateTime))
		fmt.Fprintf(w, "uses\t%d\n", l.MaxUses)
		fmt.Fprintf(w, "status\t%s\n\n", l.Status)
		if err := w.Flush(); err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.out, l.URL)
	}
	return err
}

func cmdLinkList(c *console) error {
	if _, err := c.args(0, "link list [--status <status>]"); err != nil {
		return err
	}
	q := c.linkPage()
	if s := c.flag("status"); s != "" {
		q.Set("status", s)
	}
	var list struct {
		Links      []linkView `json:"links"`
		NextCursor string     `json:"nextCursor"`
		Total      int        `json:"totalCount"`
		Active     int        `json:"activeCount"`
	}
	doc, err := c.linkCall(nil, http.MethodGet, "", q, "", &list)
	if err != nil {
		return err
	}
	if !c.asTable {
		_, err := c.out.Write(doc)
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTATUS\tAMOUNT\tPAID\tEXPIRES\tDESCRIPTION")
	for _, l := range list.Links {
		fmt.Fprintf(w, "%s\t%s\t%s %s\t%d/%d\t%s\t%s\n", l.ID, l.Status, l.Amount, l.Currency, l.PaidCount, l.MaxUses, l.ExpiresAt.Local().Format(time.DateTime), inLine(l.Description))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(c.errs, "%d links in all, %d active\n", list.Total, list.Active)
	c.linkMore(list.NextCursor)
	return nil
}

// linkPage returns which page of a list is wanted.
func (c *console) linkPage() url.Values {
	q := url.Values{"limit": {c.flag("limit")}}
	if s := c.flag("cursor"); s != "" {
		q.Set("cursor", s)
	}
	return q
}

func (c *console) linkMore(cursor string) {
	if cursor != "" {
		fmt.Fprintf(c.errs, "there are more: add --cursor %s\n", cursor)
	}
}

// inLine returns the beginning of a text, in one line.
func inLine(s string) string {
	const most = 50
	r := []rune(strings.Join(strings.Fields(s), " "))
	if len(r) <= most {
		return string(r)
	}
	return string(r[:most-1]) + "…"
}

func cmdLinkShow(c *console) error {
	args, err := c.args(1, "link show <id or URL>")
	if err != nil {
		return err
	}
	id, err := linkID(args[0])
	if err != nil {
		return err
	}
	payments := c.flag("payments") == "true"
	if !payments {
		fields := map[string]json.RawMessage{}
		doc, err := c.linkCall(nil, http.MethodGet, "/"+string(id), nil, "", &fields)
		if err != nil {
			return err
		}
		if !c.asTable {
			_, err := c.out.Write(doc)
			return err
		}
		if err := c.fields(fields); err != nil {
			return err
		}
	}
	return c.linkPayments(id)
}

// fields writes what is known of something, by name.
func (c *console) fields(fields map[string]json.RawMessage) error {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	for _, name := range names {
		if value := string(bytes.Trim(fields[name], `"`)); !slices.Contains([]string{"null", "[]", "{}"}, value) {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	return w.Flush()
}

func (c *console) linkPayments(id link.ID) error {
	var list struct {
		Payments []struct {
			Status      string `json:"status"`
			Amount      string `json:"amount"`
			Currency    string `json:"currency"`
			NetworkName string `json:"networkName"`
			Payer       string `json:"payer"`
			URL         string `json:"url"`
		} `json:"payments"`
		NextCursor string `json:"nextCursor"`
	}
	doc, err := c.linkCall(nil, http.MethodGet, "/"+string(id)+"/payments", c.linkPage(), "", &list)
	if err != nil {
		return err
	}
	if !c.asTable {
		_, err := c.out.Write(doc)
		return err
	}
	if len(list.Payments) == 0 {
		fmt.Fprintln(c.errs, "it has no payments")
		return nil
	}
	fmt.Fprintln(c.out)
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "STATUS\tAMOUNT\tNETWORK\tPAYER\tRECEIPT")
	for _, p := range list.Payments {
		fmt.Fprintf(w, "%s\t%s %s\t%s\t%s\t%s\n", p.Status, p.Amount, p.Currency, p.NetworkName, p.Payer, p.URL)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	c.linkMore(list.NextCursor)
	return nil
}

func cmdLinkDisable(c *console) error {
	args, err := c.args(1, "link disable <id or URL>")
	if err != nil {
		return err
	}
	id, err := linkID(args[0])
	if err != nil {
		return err
	}
	var l linkView
	doc, err := c.linkCall(nil, http.MethodPost, "/"+string(id)+"/cancel", nil, "{}", &l)
	if err != nil {
		return err
	}
	if !c.asTable {
		_, err := c.out.Write(doc)
		return err
	}
	fmt.Fprintf(c.out, "%s is %s\n", l.ID, l.Status)
	if l.Status == link.Pending {
		fmt.Fprintln(c.errs, "A payment is under way and may still settle. Nobody else can pay it.")
	}
	return nil
}

func cmdLinkStats(c *console) error {
	if _, err := c.args(0, "link stats"); err != nil {
		return err
	}
	var s struct {
		Total         int         `json:"totalLinks"`
		Active        int         `json:"activeLinks"`
		Pending       int         `json:"pendingLinks"`
		Paid          int         `json:"paidLinks"`
		Expired       int         `json:"expiredLinks"`
		Disabled      int         `json:"disabledLinks"`
		TotalEarnings json.Number `json:"totalEarnings"`
		Currency      string      `json:"currency"`
		Earnings      []struct {
			Network  string      `json:"network"`
			Token    string      `json:"token"`
			Currency string      `json:"currency"`
			Amount   json.Number `json:"amount"`
		} `json:"earnings"`
	}
	doc, err := c.linkCall(nil, http.MethodGet, "/stats", nil, "", &s)
	if err != nil {
		return err
	}
	if !c.asTable {
		_, err := c.out.Write(doc)
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "LINKS\tACTIVE\tPENDING\tPAID\tEXPIRED\tDISABLED\tEARNED")
	fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%d\t%s %s\n", s.Total, s.Active, s.Pending, s.Paid, s.Expired, s.Disabled, s.TotalEarnings, s.Currency)
	if err := w.Flush(); err != nil || len(s.Earnings) == 0 {
		return err
	}
	fmt.Fprintln(c.out)
	fmt.Fprintln(w, "NETWORK\tEARNED\tTOKEN")
	for _, e := range s.Earnings {
		fmt.Fprintf(w, "%s\t%s %s\t%s\n", e.Network, e.Amount, e.Currency, e.Token)
	}
	return w.Flush()
}
