// Package till is the life of one payment at a seller's: it is claimed, the
// goods are made, the money is moved, the goods are handed over. Till does
// that for any payment.Facilitator, here or elsewhere, and knows nothing of
// the web server around it but net/http.
//
// What it promises: at most one transfer for a payment, which is the chain's
// doing; at most one request served for a payment; no transfer without a
// claim on disk; and no answer that asks to pay again while the payment can
// still move money.
package till

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/tollgate402/tollgate/facilitator/till/meter"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/pass"
)

// A Mode says in which order a route makes its goods and takes the money.
type Mode string

const (
	// Held runs the upstream, holds its answer back, settles, and then
	// releases the answer. A failing upstream costs the payer nothing, a
	// failing settlement releases nothing.
	Held Mode = "held"

	// First settles before the upstream runs, and streams its answer. When
	// the upstream fails, the same payment may be used again for the same
	// request.
	First Mode = "first"

	// Optimistic runs the upstream, hands its answer over, and settles
	// afterwards. What the payer then does not pay is lost, so it is done
	// within the route's Exposure only, and never again for a payer that has
	// caused a loss; other requests are served as in Held.
	Optimistic Mode = "optimistic"

	// Metered lets the upstream stream, counts what it sends by the route's
	// tariff, and settles what that costs afterwards. What is under way counts
	// with the maximum that its payer has signed against the route's Exposure;
	// what exceeds that is refused before the upstream runs. The answer is cut
	// off when it costs more than the maximum.
	//
	// Offers that are not upto are served as in First. Payers whose accounts
	// have code are served as in Held.
	Metered Mode = "metered"
)

// A Route is what the seller asks for behind one matcher. It must not change
// once it is in use.
type Route struct {
	Challenge *payment.Prepared
	Offers    []payment.Offer // those of the challenge
	Mode      Mode

	// Pricer computes the challenge for each request, in place of Challenge.
	// Offers then are examples: they say which tokens are taken. Nil means
	// that the price is always the same.
	Pricer Pricer

	// Origin is the public scheme and host, such as
	// "https://api.example.com". Empty takes them from the request, whose
	// sender can put any host there that the server answers to.
	Origin string

	// Deadline bounds how long a request waits for the chain or the
	// facilitator, in all. Default: 10 s.
	Deadline time.Duration

	// Upstream bounds the upstream's answer where it is held. Default: 60 s.
	Upstream time.Duration

	// MaxHeld is the largest answer that is held, in bytes. Default: 4 MiB.
	MaxHeld int

	// MaxStored is the largest answer that is stored with its payment, in
	// bytes, so that it can be given again when the connection is lost.
	// Default: 4 MiB.
	MaxStored int

	// MaxBody is the largest request body that is bound to the payment by
	// its hash, in bytes. Larger requests are refused. Default: 1 MiB.
	MaxBody int

	// RetryUnsafe allows the upstream to run again for a method that is not
	// safe (RFC 9110, section 9.2.1) when its first answer was lost.
	RetryUnsafe bool

	// Redeliver is how often the handing over may begin for one payment, the
	// first time included. After that, if the upstream has failed, the payer
	// is owed its money. Default: 3.
	Redeliver int

	// Entitled is for how long after its first use a payment that is settled
	// and not delivered can be used again. Default: 24 h.
	Entitled time.Duration

	// Exposure bounds what is handed over before its money has moved, by
	// token. Without caps for its token, a payment is never trusted.
	Exposure map[payment.Token]ledger.Caps

	// Extensions are those of protocol v2 that the route has.
	Extensions Extensions

	// Pass is what a payment buys beside its answer; nil is nothing. It is
	// for routes that are Held or First.
	Pass *Pass

	// Tickets is the key of the tickets that open the route in place of a
	// payment, see Ticket; nil takes none. It is the same as that of Pass.
	Tickets *pass.Key

	// Tariffs say what an answer costs that is paid by upto, by token. Without
	// one it costs the maximum. The modes are Held and Metered.
	Tariffs map[payment.Token]*meter.Tariff

	// Page writes the body of a 402 for browsers; nil answers them like
	// everybody else.
	Page func(w http.ResponseWriter, r *http.Request, s *Sheet)
}

// A Sheet is what a page about an unpaid resource shows.
type Sheet struct {
	URL    string
	Offers []payment.Offer
	Reason payment.Reason
}

// A Sale is what became of one request to a priced route.
type Sale struct {
	Paid        bool
	Payment     string // the payment's key; empty when there was none
	Payer       string
	Amount      payment.Amount // what was offered; once it is paid, what was charged
	Network     payment.Network
	Transaction string
	Reason      string // why it was not paid
	Replayed    bool   // an earlier answer was given again
	OnCredit    bool   // the answer was given before the money moved
	SignedIn    bool   // nothing was paid: the payer had paid for it before
	Pass        bool   // nothing was paid: the request had a pass, which Payment has bought
}

// An Upstream makes the goods. s says who pays for them.
type Upstream func(w http.ResponseWriter, r *http.Request, s *Sale) error

// A Till takes payments for routes. Its methods are safe for concurrent use.
type Till struct {
	Facilitator payment.Facilitator
	Ledger      *ledger.Ledger
	Logger      *slog.Logger     // nil discards
	Now         func() time.Time // nil means time.Now

	// Room bounds the answers that are held back. The tills of one process
	// share one; nil means one of its own.
	Room *Budget
	room Budget

	// Quotes keep what a Pricer has asked for. Without them a price can be
	// paid only as long as it is asked.
	Quotes *Quotes

	// Refunds are the accounts that money is given back from, by network.
	Refunds map[payment.Network]TransferSigner

	// Proves says that the facilitator watches released payments until the
	// chain has proven them dead. Otherwise its refusal of an authorization
	// that has expired is the last word.
	Proves bool

	// Lost is told of each payment that is written off. Nil is told nothing.
	Lost func(*ledger.Record)

	// Every is the pause between looks for what is owed. Default: 1 min.
	Every time.Duration

	mu     sync.Mutex
	atWork map[payment.Key]chan struct{} // guarded by mu: closed when the request that works on the payment ends

	standings standings // of payments that passes were shown of

	background background
}

const (
	defaultDeadline = 10 * time.Second
	defaultUpstream = 60 * time.Second
	defaultMaxHeld  = 4 << 20
	defaultMaxBody  = 1 << 20

	defaultRedeliver = 3
	defaultEntitled  = 24 * time.Hour
)

func (t *Till) now() time.Time {
	if t.Now == nil {
		return time.Now()
	}
	return t.Now()
}

func (t *Till) log() *slog.Logger {
	if t.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return t.Logger
}

func orElse[N int | int64 | time.Duration](n, otherwise N) N {
	if n > 0 {
		return n
	}
	return otherwise
}

func (r *Route) deadline() time.Duration { return orElse(r.Deadline, defaultDeadline) }
func (r *Route) upstream() time.Duration { return orElse(r.Upstream, defaultUpstream) }
func (r *Route) entitled() time.Duration { return orElse(r.Entitled, defaultEntitled) }

// lease is how long a claim is left to the request that made it.
func (r *Route) lease() time.Duration { return r.upstream() + 3*r.deadline() }

// detach returns a context that outlives the client and ends after d. Money
// must not depend on whether somebody still listens.
func detach(r *http.Request, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.Context()), d)
}

// take makes this request the one that works on a payment. If another one in
// this process already does, it returns a channel that is closed when that
// one ends.
func (t *Till) take(k payment.Key) (done func(), busy <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c, ok := t.atWork[k]; ok {
		return nil, c
	}
	if t.atWork == nil {
		t.atWork = map[payment.Key]chan struct{}{}
	}
	c := make(chan struct{})
	t.atWork[k] = c
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.atWork, k)
		close(c)
	}, nil
}
