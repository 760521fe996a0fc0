// Command sandbox is the whole product on play money: a chain inside this
// process, an API behind the paywall, the embedded facilitator, and a payer
// that makes one real paid call. It needs no network and no account anywhere.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const usage = `usage: go run ./cmd/sandbox [flags]

Starts a chain with play money, an API with a price and the facilitator that
settles its payments; makes one paid call and a payment link; says what
happened; and stays up until Ctrl-C, so that you can pay the API with any x402
client, and the link in a browser.

`

type options struct {
	once      bool
	json      bool
	ephemeral bool
	verbose   bool
	data      string
	blockTime time.Duration
	hostile   bool
	seed      uint64
}

func main() {
	var o options
	flag.BoolVar(&o.once, "once", false, "make the paid call, print it, pay the payment link, too, and exit: 0 if both were paid and served, 1 otherwise")
	flag.BoolVar(&o.json, "json", false, "print one line of JSON with every URL and test key when ready, and nothing else on stdout")
	flag.BoolVar(&o.ephemeral, "ephemeral-ports", false, "let the kernel choose the ports instead of the fixed ones")
	flag.BoolVar(&o.verbose, "v", false, "write Caddy's log to stderr instead of a file in the data folder")
	flag.StringVar(&o.data, "data", "", "keep ledger and logs in a new folder below `DIR` (default: a temporary folder, removed at the end)")
	flag.DurationVar(&o.blockTime, "block-time", 0, "time between blocks; 0 makes a block for each transaction at once")
	flag.BoolVar(&o.hostile, "hostile", false, "say now and then that a settlement is pending although it is not, settle late, and replace blocks")
	flag.Uint64Var(&o.seed, "seed", 0, "decides what --hostile does; 0 chooses one, which is printed")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "sandbox: unexpected argument %q; see --help\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	s, err := start(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()

	say := func(format string, args ...string) {
		if o.json {
			return
		}
		list := make([]any, len(args))
		for i, a := range args {
			list[i] = a
		}
		fmt.Printf(format+"\n", list...)
	}
	say("A chain with play money runs at %s (chain id 84532, as Base Sepolia).", s.chain.URL())
	say("An API with a price runs at %s. Its settings are Caddyfile.example.", s.paidURL())
	if s.hostile {
		say("Both are hostile, seed %s: settlements are late, some are said to be pending, and some blocks are replaced.", strconv.FormatUint(s.seed, 10))
		say("A client that gets 503 sends the same request with the same payment again, and never a second payment.")
	}
	say("")

	if o.json && !o.once {
		link, err := s.bill(ctx)
		if err != nil {
			return err
		}
		if err := s.print(link); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
	call, err := s.pay(ctx)
	if err != nil {
		return fmt.Errorf("the paid call failed: %w", err)
	}
	link, err := s.bill(ctx)
	if err != nil {
		return err
	}
	if o.json {
		paid, err := s.payBill(ctx, link)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(struct {
			*paidCall
			LinkURL         string `json:"link_url"`
			LinkTransaction string `json:"link_transaction"`
		}{call, link, paid.transaction})
	}
	say("1. GET %s without a payment: %s, price %s.", s.paidURL(), "402 Payment Required", call.Price)
	say("2. The payer signed an authorization for %s (EIP-3009). It costs no gas and moves nothing yet.", call.Price)
	say("3. The same request with PAYMENT-SIGNATURE: %s.", call.Status)
	if call.Pending > 0 {
		say("   Answers before that one which were 503, settlement_pending: %s. The same payment was sent again.", strconv.Itoa(call.Pending))
	}
	say("   The API answered: %s", call.Body)
	say("4. The facilitator settled it in transaction %s.", call.Transaction)
	say("")
	step := 5
	if !s.hostile { // by which a settlement can take longer than anybody wants to watch
		if err := s.tellChat(ctx, say); err != nil {
			return fmt.Errorf("the paid stream failed: %w", err)
		}
		step++
	}
	if o.once {
		paid, err := s.payBill(ctx, link)
		if err != nil {
			return err
		}
		say("%s. A payment link is one URL for people and programs. This one is a bill over %s: %s", strconv.Itoa(step), paid.price, link)
		say("   The payer paid it as an agent does, by PAYMENT-SIGNATURE on that URL: %s, in transaction %s.", paid.status, paid.transaction)
		say("")
	} else {
		say("Pay this bill in a browser; the page offers a wallet with play money:")
		say("  %s", link)
		say("")
		say("Try it yourself, with play money that anybody may spend:")
		say("  curl -i %s", s.paidURL())
		say("  RPC        %s", s.chain.URL())
		say("  token      %s (test USDC)", call.Token)
		say("  payer      %s", s.payer().Address.Hex())
		say("  its key    %s", keyHex(s.payer()))
		say("  facilitator for other sellers: %s", s.facilitatorURL())
		say("  payment links for merchants: %s/v1/payment-links, key %s", s.apiURL(), merchantKey)
		say("  ledger and logs: %s", s.dir)
		say("")
	}
	say("paid %s in transaction %s; payer %s -> %s, seller %s -> %s",
		call.Price, call.Transaction, call.PayerBefore, call.PayerAfter, call.SellerBefore, call.SellerAfter)
	if o.once {
		return nil
	}
	say("Ctrl-C stops everything.")
	<-ctx.Done()
	say("Stopping.")
	return nil
}
