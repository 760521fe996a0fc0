//go:build !recoverchild

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/settle"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/internal/ledger/badger"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/signer/localkey"
)

// A counter counts the commits that somebody waits for, each of which is one
// wait for the disk.
type counter struct {
	ledger.Store
	waits atomic.Int64
}

func (c *counter) Commit(ctx context.Context, writes ...ledger.Write) error {
	c.waits.Add(1)
	return c.Store.Commit(ctx, writes...)
}

// A counterpart is a till with everything below it, on a chain that answers
// at once.
type counterpart struct {
	store    *counter
	ledger   *ledger.Ledger
	embedded *facilitator.Embedded
	engine   *settle.Engine
	offer    payment.Offer
	payer    *localkey.Key
	till     *till.Till
	route    *till.Route
	dir      string
}

func newCounterpart() (p *counterpart, err error) {
	const network = payment.Network("eip155:84532")
	p = &counterpart{}
	if p.dir, err = os.MkdirTemp("", "tollgate-bench-"); err != nil {
		return p, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	store, err := badger.Open(filepath.Join(p.dir, "ledger"), badger.Options{})
	if err != nil {
		return p, err
	}
	p.store = &counter{Store: store}
	p.ledger = ledger.New(p.store, "bench", time.Now)
	usdc, ok := payment.USDC(network)
	if !ok {
		return p, errors.New("the chain has no USDC")
	}
	node := newInstantChain(evm.DomainOf(usdc).Separator())
	lane, err := keyOf("facilitator")
	if err != nil {
		return p, err
	}
	if p.payer, err = keyOf("payer"); err != nil {
		return p, err
	}
	if p.engine, err = settle.New(settle.Config{Network: network, Chain: node, Ledger: p.ledger, Signers: []payment.CallSigner{lane}}); err != nil {
		return p, err
	}
	if err = p.engine.Start(); err != nil {
		return p, err
	}
	markets := []facilitator.Market{{Network: network, Tokens: []payment.Token{usdc}, Chain: node, Engine: p.engine}}
	if p.embedded, err = facilitator.NewEmbedded(p.ledger, markets, nil); err != nil {
		return p, err
	}
	amount, err := payment.ParseUnits("1000", usdc)
	if err != nil {
		return p, err
	}
	p.offer = payment.Offer{Scheme: payment.Exact, Amount: amount, PayTo: devchain.DeriveAccount("seller").Address.Hex(), Timeout: time.Hour, Until: payment.Included}
	challenge := payment.Challenge{Offers: []payment.Offer{p.offer}}
	prepared, err := challenge.Prepare()
	if err != nil {
		return p, err
	}
	p.till = &till.Till{Facilitator: p.embedded, Ledger: p.ledger}
	p.route = &till.Route{Challenge: prepared, Offers: challenge.Offers, Mode: till.Held}
	return p, nil
}

func keyOf(account string) (*localkey.Key, error) {
	return localkey.Parse(hex.EncodeToString(crypto.FromECDSA(devchain.DeriveAccount(account).Key)))
}

func (p *counterpart) close() error {
	if p.engine != nil {
		p.engine.Stop()
	}
	var err error
	if p.store != nil {
		err = p.store.Close()
	}
	return errors.Join(err, os.RemoveAll(p.dir))
}

// upstream is what both sites serve.
func upstream(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(`{"ok":true}`)) // the measurement would miss the answer
}

// serve answers on a free loopback address until stop is called.
func serve(h http.Handler) (address string, stop func() error, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }() // ends with stop
	return l.Addr().String(), func() error {
		if err := server.Close(); err != nil {
			return err
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}, nil
}

const heldPayments = 1500

// benchHeld measures what a held paid request costs beside the same upstream
// without a price, where neither chain nor upstream take any time.
func benchHeld(ctx context.Context) (rows []row, err error) {
	disk, err := goBench(ctx, "./internal/ledger/badger", "BenchmarkFsync", "500x")
	if err != nil {
		return nil, err
	}
	p, err := newCounterpart()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	paid, stopPaid, err := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := p.till.Serve(w, r, p.route, func(w http.ResponseWriter, r *http.Request, _ *till.Sale) error {
			upstream(w, r)
			return nil
		}); err != nil {
			panic(err)
		}
	}))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stopPaid()) }()
	plain, stopPlain, err := serve(http.HandlerFunc(upstream))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stopPlain()) }()

	requests, err := p.requests(ctx, paid, heldPayments)
	if err != nil {
		return nil, err
	}
	waits := p.store.waits.Load()
	before := cpu()
	ours, err := generate(ctx, paid, func(i int) []byte {
		if i < len(requests) {
			return requests[i]
		}
		return nil
	}, http.StatusOK, 1, time.Minute)
	if err != nil {
		return nil, err
	}
	oursCPU := (cpu() - before) / heldPayments
	perRequest := float64(p.store.waits.Load()-waits) / heldPayments

	request := fmt.Appendf(nil, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", plain)
	before = cpu()
	bare, err := generate(ctx, plain, func(i int) []byte {
		if i < heldPayments {
			return request
		}
		return nil
	}, http.StatusOK, 1, time.Minute)
	if err != nil {
		return nil, err
	}
	bareCPU := (cpu() - before) / heldPayments
	verifying, recovering, err := p.verifyAndClaim(ctx)
	if err != nil {
		return nil, err
	}
	return []row{
		{Name: "held p50", Ours: milliseconds(ours.p50 - bare.p50), Unit: "ms", Target: "<= 1", Note: fmt.Sprintf("added to an upstream that takes %s; disk fsync p50 %.2f ms", bare.p50, disk[""]["p50-ms"])},
		{Name: "held p99", Ours: milliseconds(ours.p99 - bare.p99), Unit: "ms", Target: "<= 5", Note: fmt.Sprintf("disk fsync p99 %.2f ms", disk[""]["p99-ms"])},
		{Name: "held fsyncs", Ours: perRequest, Unit: "waits", Target: "<= 3", Note: "commits that somebody waits for, to each paid request: three on its path, and the lane forgets its nonces by the dozen"},
		{Name: "held cpu", Ours: float64(oursCPU.Microseconds()), Unit: "us", Target: "-", Note: fmt.Sprintf("processor time of a whole paid request, settlement and this client included; without a price %s", bareCPU)},
		{Name: "verify+claim cpu", Ours: float64(verifying.Microseconds()), Unit: "us", Target: "<= 80", Note: fmt.Sprintf("processor time that verification and the claim add to a proxied request; %s of it recover the signer", recovering)},
	}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// cpu returns the processor time that this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// payment signs a fresh payment.
func (p *counterpart) payment(ctx context.Context) (*evm.Transfer, error) {
	a := evm.Authorization{
		From: p.payer.Address(), To: common.HexToAddress(p.offer.PayTo), Value: p.offer.Amount.Big(),
		ValidAfter: new(big.Int), ValidBefore: big.NewInt(time.Now().Add(time.Hour).Unix()),
	}
	if _, err := rand.Read(a.Nonce[:]); err != nil {
		return nil, err
	}
	return p.payer.SignTransfer(ctx, evm.DomainOf(p.offer.Amount.Token()), a)
}

// requests signs n payments ahead of time.
func (p *counterpart) requests(ctx context.Context, host string, n int) ([][]byte, error) {
	c, err := payment.DecodeRequired(p.route.Challenge.V2("http://"+host+"/", payment.PaymentRequired))
	if err != nil {
		return nil, err
	}
	list := make([][]byte, n)
	for i := range list {
		t, err := p.payment(ctx)
		if err != nil {
			return nil, err
		}
		name, value := c.Pay(&c.Offers[0], t.Encode()).Header()
		list[i] = fmt.Appendf(nil, "GET / HTTP/1.1\r\nHost: %s\r\n%s: %s\r\n\r\n", host, name, value)
	}
	return list, nil
}

// verifyAndClaim returns the processor time of reading, verifying and claiming
// a payment, and what of it recovering the signer takes, by itself.
func (p *counterpart) verifyAndClaim(ctx context.Context) (all, recovering time.Duration, err error) {
	const n = 2000
	c, err := payment.DecodeRequired(p.route.Challenge.V2("http://bench/", payment.PaymentRequired))
	if err != nil {
		return 0, 0, err
	}
	headers, transfers := make([]string, n), make([]*evm.Transfer, n)
	separator := evm.DomainOf(p.offer.Amount.Token()).Separator()
	for i := range headers {
		t, err := p.payment(ctx)
		if err != nil {
			return 0, 0, err
		}
		transfers[i] = t
		_, headers[i] = c.Pay(&c.Offers[0], t.Encode()).Header()
	}
	book := ledger.New(ledger.NewMemory(), "bench", time.Now)
	before := cpu()
	for _, h := range headers {
		received, err := payment.FromHeader([]string{h}, nil)
		if err != nil {
			return 0, 0, err
		}
		offer := payment.Match(received, p.route.Offers)
		if offer == nil {
			return 0, 0, errors.New("the payment fits no offer")
		}
		received.Binding, received.SettledFirst = payment.Fingerprint{1}, true // as the till says of what it holds back
		v, err := p.embedded.Verify(ctx, received, offer)
		if err != nil {
			return 0, 0, err
		}
		request, err := payment.EncodeRequest(received, offer, offer.Amount)
		if err != nil {
			return 0, 0, err
		}
		if _, err := book.Claim(ctx, ledger.Record{Key: v.Key, State: ledger.Executing, Network: offer.Network(), Payer: v.Payer, Request: request}, time.Minute); err != nil {
			return 0, 0, err
		}
	}
	all = (cpu() - before) / n
	before = cpu()
	for _, t := range transfers {
		if err := t.CheckSignature(separator); err != nil {
			return 0, 0, err
		}
	}
	return all, (cpu() - before) / n, nil
}
