package caddymodule

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/payment"
)

func init() {
	caddy.RegisterModule(&witness{})
}

// A witness is a guest module that counts what the embedded facilitator
// settles.
type witness struct{}

// witnessed counts the settlements that all witnesses saw.
var witnessed atomic.Int64

func (*witness) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "x402.facilitators.witness", New: func() caddy.Module { return new(witness) }}
}

func (*witness) UnmarshalCaddyfile(d *caddyfile.Dispenser) error { return noSettings(d) }

func (*witness) Wrap(f payment.Facilitator) payment.Facilitator { return witnessing{f} }

type witnessing struct{ payment.Facilitator }

func (w witnessing) Settle(ctx context.Context, p *payment.Payment, o *payment.Offer, charge payment.Amount) (*payment.Settlement, error) {
	witnessed.Add(1)
	return w.Facilitator.Settle(ctx, p, o, charge)
}

func TestAModuleCanWrapTheEmbeddedFacilitator(t *testing.T) {
	directives := `x402 $0.01
	respond "goods"`
	m := newMarket(t, directives)
	m.load(strings.Replace(m.source(directives), "network base-sepolia", "facilitator witness\n\t\tnetwork base-sepolia", 1))
	before := witnessed.Load()
	name, value := m.pay("/a")
	if got := m.get("/a", name, value); got.StatusCode != http.StatusOK || got.body != "goods" {
		t.Errorf("%s %s", got.Status, got.body)
	}
	if n := witnessed.Load() - before; n != 1 {
		t.Errorf("it saw %d settlements", n)
	}
	if units := m.chain.USDCBalance(common.HexToAddress(seller)); units.Int64() != 10_000 {
		t.Errorf("the seller has %s atomic units", units)
	}
}
