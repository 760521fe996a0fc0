// Command standin serves the pages of payment links with canned states. It is
// a stand-in for the handlers of links, made to look at the pages and to drive
// them: it checks payments as the product does, but there is no till, no
// ledger and no chain behind it, and nothing is ever paid.
//
// It prints one line of JSON when it is ready, which e2e/browser/run.mjs
// describes, and serves until it is killed.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/linkpage"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "standin:", err)
		os.Exit(1)
	}
}

// A link is a link with its canned fate.
type link struct {
	page     linkpage.Link
	slow     bool // its first answer is that the settlement is pending
	message  string
	redirect string
	paid     map[string]*linkpage.Receipt // by the payment's header
}

// server owns everything below mu.
type server struct {
	site   *linkpage.Site
	base   string
	pauper string // address that has no money

	mu    sync.Mutex
	links map[string]*link
	next  int
}

// world is what the driver is told.
type world struct {
	Base    string            `json:"base"`
	ChainID uint64            `json:"chainId"`
	Network string            `json:"network"`
	Payer   string            `json:"payer"`
	Pauper  string            `json:"pauper"`
	Open    []string          `json:"open"`
	Links   map[string]string `json:"links"`
	Hostile []string          `json:"hostile"`

	HostileTexts int `json:"hostileTexts"`
}

func run(args []string, out io.Writer) error {
	f := flag.NewFlagSet("standin", flag.ContinueOnError)
	listen := f.String("listen", "127.0.0.1:0", "address to serve on")
	polyglots := f.String("polyglots", "internal/linkpage/testdata/polyglots.json", "file with hostile texts")
	if err := f.Parse(args); err != nil {
		return err
	}
	socket, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	s := &server{base: "http://" + socket.Addr().String(), links: map[string]*link{}}
	s.site, err = linkpage.New(linkpage.Config{
		Merchant: "Meridian Studio",
		Chains:   map[payment.Network]linkpage.Chain{"eip155:84532": {RPC: "https://sepolia.base.org", Explorer: "https://sepolia.basescan.org"}},
	})
	if err != nil {
		return err
	}
	w := world{
		Base: s.base, ChainID: 84532, Network: "Base Sepolia", Links: map[string]string{},
		Payer: hexutil.Encode(crypto.Keccak256([]byte("standin: payer"))), Pauper: hexutil.Encode(crypto.Keccak256([]byte("standin: pauper"))),
	}
	key, err := crypto.HexToECDSA(w.Pauper[2:])
	if err != nil {
		return err
	}
	s.pauper = crypto.PubkeyToAddress(key.PublicKey).Hex()
	if err := s.fill(&w); err != nil {
		return err
	}
	if err := s.fillHostile(&w, *polyglots); err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(w); err != nil {
		return err
	}
	h := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	return h.Serve(socket)
}

// add makes a link and returns its URL.
func (s *server) add(change func(*link)) (string, error) {
	s.next++
	id := strings.ToUpper(fmt.Sprintf("%026x", crypto.Keccak256(fmt.Appendf(nil, "link %d", s.next))[:13]))
	l := &link{paid: map[string]*linkpage.Receipt{}}
	l.page = linkpage.Link{
		ID: id, URL: s.base + "/x402/" + id, Status: linkpage.Active,
		Description: "Website work, second instalment", Expires: time.Now().Add(30 * 24 * time.Hour),
	}
	offer, err := usdc("eip155:84532", "50000000")
	if err != nil {
		return "", err
	}
	l.page.Offers = []payment.Offer{offer}
	change(l)
	s.links[id] = l
	return l.page.URL, nil
}

func usdc(n payment.Network, units string) (payment.Offer, error) {
	token, ok := payment.USDC(n)
	if !ok {
		return payment.Offer{}, fmt.Errorf("no USDC on %s", n)
	}
	a, err := payment.ParseUnits(units, token)
	return payment.Offer{Scheme: payment.Exact, Amount: a, PayTo: "0x209693Bc6afc0C5328bA36FaF03C514EF312287C", Timeout: 5 * time.Minute}, err
}

// unavailable is the path that answers as a seller who cannot look up its links.
const unavailable = "/x402/unavailable"

// transaction is shown where one would be.
var transaction = hexutil.Encode(crypto.Keccak256([]byte("standin: transaction")))

func (s *server) fill(w *world) error {
	for range 16 {
		at, err := s.add(func(*link) {})
		if err != nil {
			return err
		}
		w.Open = append(w.Open, at)
	}
	second, err := usdc("eip155:8453", "50000000")
	if err != nil {
		return err
	}
	programs, err := usdc("eip155:80002", "50000000")
	if err != nil {
		return err
	}
	programs.Extra = map[string]json.RawMessage{"assetTransferMethod": json.RawMessage(`"permit2"`)}
	for name, change := range map[string]func(*link){
		"rich": func(l *link) {
			l.page.Offers = append(l.page.Offers, second, programs)
			l.page.Fields = []linkpage.Field{
				{Name: "reference", Label: "Your order number", Required: true, MaxLength: 40},
				{Name: "note", Label: "A note to us", MaxLength: 200},
			}
			l.message = "Thank you. We begin on Monday, and write to you before."
			l.redirect = s.base + "/thanks"
		},
		"slow":     func(l *link) { l.slow = true },
		"reloaded": func(l *link) { l.slow = true },
		"short":    func(l *link) { l.page.Expires = time.Now().Add(15 * time.Minute) },
		"expired":  func(l *link) { l.page.Status = linkpage.Expired },
		"disabled": func(l *link) { l.page.Status = linkpage.Disabled },
		"pending":  func(l *link) { l.page.Status = linkpage.Pending },
		"paid": func(l *link) {
			l.page.Status = linkpage.Paid
			l.page.Settled = &linkpage.Settled{At: time.Now().Add(-time.Hour), Transaction: transaction, Explorer: "https://sepolia.basescan.org/tx/" + transaction}
		},
	} {
		if w.Links[name], err = s.add(change); err != nil {
			return err
		}
	}
	w.Links["unavailable"] = s.base + unavailable
	w.Links["unknown"] = s.base + "/x402/00000000000000000000000000"
	return nil
}

// fillHostile makes links of hostile texts, a dozen to a link.
func (s *server) fillHostile(w *world, file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var source struct{ Payloads, Contexts []string }
	if err := json.Unmarshal(raw, &source); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	var texts []string
	for _, c := range source.Contexts {
		for _, p := range source.Payloads {
			texts = append(texts, strings.Replace(c, "%s", p, 1))
		}
	}
	for dozen := range slices.Chunk(texts, 12) {
		at, err := s.add(func(l *link) {
			text := func(i int) string { return dozen[i%len(dozen)] }
			l.page.Description, l.page.Merchant, l.message, l.redirect = text(0), text(1), text(2), text(3)
			for i := 4; i < 12; i++ {
				l.page.Fields = append(l.page.Fields, linkpage.Field{Name: text(i), Label: text(i)})
			}
		})
		if err != nil {
			return err
		}
		w.Hostile = append(w.Hostile, at)
	}
	w.HostileTexts = len(texts)
	return nil
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/x402/")
	id, below, _ := strings.Cut(rest, "/")
	switch {
	case r.URL.Path == "/thanks":
		fmt.Fprintln(w, "Thanks.")
		return
	case ok && id == "-":
		s.site.Assets().ServeHTTP(w, r)
		return
	case r.URL.Path == unavailable:
		s.page(w, s.site.Unavailable)
		return
	}
	s.mu.Lock()
	l := s.links[id]
	s.mu.Unlock()
	if !ok || l == nil {
		s.page(w, s.site.NotFound)
		return
	}
	switch {
	case below == "events":
		s.events(w, r, l)
	case strings.HasPrefix(below, "receipt/"):
		s.receipt(w, l, strings.TrimPrefix(below, "receipt/"))
	case r.Method == http.MethodPost:
		s.pay(w, r, l)
	case strings.Contains(r.Header.Get("Accept"), "text/html"):
		s.mu.Lock()
		shown := l.page
		s.mu.Unlock()
		s.page(w, func(w http.ResponseWriter) error { return s.site.Link(w, &shown) })
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		refuse(w, http.StatusPaymentRequired, string(payment.PaymentRequired), l.page.Status)
	}
}

func (s *server) page(w http.ResponseWriter, write func(http.ResponseWriter) error) {
	if err := write(w); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// refusal is every answer but a receipt.
type refusal struct {
	Version    int               `json:"x402Version"`
	Accepts    []json.RawMessage `json:"accepts"`
	Error      string            `json:"error"`
	Status     linkpage.Status   `json:"status"`
	ReceiptURL string            `json:"receiptUrl,omitempty"`
}

func refuse(w http.ResponseWriter, code int, problem string, status linkpage.Status) {
	reply(w, code, refusal{Version: 1, Accepts: []json.RawMessage{}, Error: problem, Status: status})
}

func reply[T any](w http.ResponseWriter, code int, body T) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the driver has gone
}

// pay checks a payment as the product does, and then only says that it is paid.
func (s *server) pay(w http.ResponseWriter, r *http.Request, l *link) {
	header := r.Header.Get(payment.HeaderPayment)
	var body struct {
		Fields map[string]string `json:"fields"`
	}
	p, err := payment.FromHeader(r.Header.Values(payment.HeaderPayment), r.Header.Values(payment.HeaderPaymentV1))
	if err == nil {
		err = json.NewDecoder(r.Body).Decode(&body)
	}
	if err != nil || p == nil {
		refuse(w, http.StatusBadRequest, fmt.Sprint("no payment: ", err), linkpage.Active)
		return
	}
	offer := payment.Match(p, l.page.Offers)
	if offer == nil {
		refuse(w, http.StatusPaymentRequired, string(payment.NoMatchingOffer), linkpage.Active)
		return
	}
	t, err := evm.Check(p, evm.Terms{Offer: offer, Separator: evm.DomainOf(offer.Amount.Token()).Separator()}, uint64(max(0, time.Now().Unix())))
	var invalid *payment.InvalidError
	switch {
	case errors.As(err, &invalid):
		refuse(w, http.StatusPaymentRequired, string(invalid.Reason), linkpage.Active)
		return
	case err != nil:
		refuse(w, http.StatusBadRequest, err.Error(), linkpage.Active)
		return
	case t.From.Hex() == s.pauper:
		refuse(w, http.StatusPaymentRequired, string(payment.EVMInsufficientBalance), linkpage.Active)
		return
	}
	known, code, problem := s.claim(l, header, t.From.Hex(), offer, body.Fields)
	switch {
	case problem != "":
		s.mu.Lock()
		answer := refusal{Version: 1, Accepts: []json.RawMessage{}, Error: problem, Status: l.page.Status}
		if known != nil {
			answer.ReceiptURL = l.page.URL + "/receipt/" + known.ID
		}
		s.mu.Unlock()
		reply(w, code, answer)
	default:
		time.Sleep(900 * time.Millisecond) // a chain takes longer
		s.settle(l, known)
		reply(w, http.StatusOK, paidAnswer(l, known))
	}
}

// claim takes a link for a payment, once. It returns the receipt of the
// payment, and the answer where it is not paid now.
func (s *server) claim(l *link, header, payer string, offer *payment.Offer, fields map[string]string) (*linkpage.Receipt, int, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := l.paid[header]
	switch {
	case known != nil && known.State == linkpage.Settling:
		return known, http.StatusServiceUnavailable, string(payment.SettlementPending)
	case known != nil:
		return known, 0, ""
	case l.page.Status == linkpage.Pending:
		return nil, http.StatusConflict, "being_paid"
	case l.page.Status == linkpage.Paid:
		return nil, http.StatusConflict, "already_paid"
	case l.page.Status != linkpage.Active:
		return nil, http.StatusPaymentRequired, "link_expired"
	}
	known = &linkpage.Receipt{
		ID: "R" + l.page.ID[1:], State: linkpage.Settling, Merchant: l.page.Merchant, LinkURL: l.page.URL, Description: l.page.Description,
		Amount: offer.Amount, PayTo: offer.PayTo, Payer: payer, Message: l.message, Redirect: l.redirect,
	}
	for _, f := range l.page.Fields {
		if v := fields[f.Name]; v != "" {
			known.Fields = append(known.Fields, linkpage.Answer{Label: f.Label, Value: v})
		}
	}
	l.paid[header] = known
	l.page.Status = linkpage.Pending
	if !l.slow {
		return known, 0, ""
	}
	time.AfterFunc(4*time.Second, func() { s.settle(l, known) })
	return known, http.StatusServiceUnavailable, string(payment.SettlementPending)
}

func (s *server) settle(l *link, r *linkpage.Receipt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.page.Status = linkpage.Paid
	r.State, r.PaidAt, r.Transaction, r.Explorer = linkpage.Confirmed, time.Now(), transaction, "https://sepolia.basescan.org/tx/"+transaction
	l.page.Settled = &linkpage.Settled{At: r.PaidAt, Transaction: r.Transaction, Explorer: r.Explorer}
}

type answerReceipt struct {
	ID          string    `json:"id"`
	URL         string    `json:"url"`
	Transaction string    `json:"transaction"`
	Explorer    string    `json:"explorer"`
	Network     string    `json:"network"`
	Amount      string    `json:"amount"`
	Payer       string    `json:"payer"`
	PaidAt      time.Time `json:"paidAt"`
}

type answerSuccess struct {
	Message  string `json:"message,omitempty"`
	Redirect string `json:"redirect,omitempty"`
}

type answer struct {
	Status  linkpage.Status `json:"status"`
	Receipt answerReceipt   `json:"receipt"`
	Success answerSuccess   `json:"success"`
}

func paidAnswer(l *link, r *linkpage.Receipt) answer {
	return answer{
		linkpage.Paid,
		answerReceipt{r.ID, l.page.URL + "/receipt/" + r.ID, r.Transaction, r.Explorer, string(r.Amount.Token().Network), r.Amount.Units(), r.Payer, r.PaidAt},
		answerSuccess{l.message, l.redirect},
	}
}

func (s *server) receipt(w http.ResponseWriter, l *link, id string) {
	s.mu.Lock()
	var shown *linkpage.Receipt
	for _, r := range l.paid {
		if r.ID == id {
			c := *r
			shown = &c
		}
	}
	s.mu.Unlock()
	if shown == nil {
		s.page(w, s.site.NotFound)
		return
	}
	s.page(w, func(w http.ResponseWriter) error { return s.site.Receipt(w, shown) })
}

// events says the status of a link now and whenever it changes.
func (s *server) events(w http.ResponseWriter, r *http.Request, l *link) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	said := linkpage.Status("")
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		s.mu.Lock()
		status := l.page.Status
		s.mu.Unlock()
		if status != said {
			said = status
			fmt.Fprintf(w, "event: status\ndata: {\"status\":%q}\n\n", status)
			_ = http.NewResponseController(w).Flush() // the driver has gone
		}
		if status != linkpage.Active && status != linkpage.Pending {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}
