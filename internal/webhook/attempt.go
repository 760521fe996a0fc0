package webhook

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"
)

// A result is what came of one attempt.
type result struct {
	status  int           // of the answer; 0 if there was none
	problem string        // empty if it was delivered
	gone    bool          // there is no use in trying again
	after   time.Duration // for which the receiver asks to be left alone
}

const (
	// maxProblem is the length of what is kept of an error, in bytes.
	maxProblem = 400

	// maxDrained is how much of an answer is read so that its connection can be
	// used again. Nothing in it matters.
	maxDrained = 4 << 10
)

// attempt sends an event once.
func (q *Queue) attempt(ctx context.Context, d *Delivery) result {
	p := q.endpoints[d.Endpoint]
	if p == nil {
		return result{problem: "the configuration has no webhook of this name any more"}
	}
	body, err := d.Event.body()
	if err != nil {
		return result{problem: "the event cannot be written as JSON", gone: true}
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url.String(), bytes.NewReader(body))
	if err != nil {
		return result{problem: "its url is none"}
	}
	r.Header = http.Header{
		"Content-Type":  {"application/json"},
		"User-Agent":    {"Tollgate-Webhook"},
		SignatureHeader: {Sign(p.Secrets, body, q.now())},
		TypeHeader:      {d.Event.Type},
		DeliveryHeader:  {d.Event.ID},
	}
	resp, err := q.sender.Do(r)
	if err != nil {
		return result{problem: p.tellable(err.Error())}
	}
	defer resp.Body.Close()
	if n := resp.ContentLength; n >= 0 && n <= maxDrained {
		_, _ = io.CopyN(io.Discard, resp.Body, n) // the status has said everything
	}
	return read(resp, q.now())
}

// read says what an answer means.
func read(resp *http.Response, now time.Time) result {
	r := result{status: resp.StatusCode, after: retryAfter(resp.Header, now)}
	said := fmt.Sprintf("the receiver answered %d %s", r.status, http.StatusText(r.status))
	switch {
	case r.status >= 200 && r.status < 300:
		r.after = 0
	case r.status == http.StatusGone:
		r.problem, r.gone = said+": it wants no more of it", true
	case r.status >= 300 && r.status < 400:
		r.problem = said + ": redirects are not followed; set the webhook's url to where it leads"
	default:
		r.problem = said
	}
	return r
}

// tellable is an error as it may be kept and logged.
func (p *target) tellable(text string) string {
	secrets := p.Secrets
	if uri := p.url.RequestURI(); len(uri) > 1 {
		secrets = append([]string{uri}, secrets...)
	}
	for _, s := range secrets {
		text = strings.ReplaceAll(text, s, "[redacted]")
	}
	text = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, text)
	if len(text) > maxProblem {
		text = strings.ToValidUTF8(text[:maxProblem], "") + "…"
	}
	return text
}
