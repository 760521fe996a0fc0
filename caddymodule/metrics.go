package caddymodule

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate402/tollgate/facilitator"
	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/internal/ledger"
	"github.com/tollgate402/tollgate/payment"
)

// metrics count what became of requests. Their labels come from short closed
// lists: networks and tenants of the configuration, and outcomes.
type metrics struct {
	challenges *prometheus.CounterVec
	payments   *prometheus.CounterVec
	losses     *prometheus.CounterVec
	calls      *prometheus.CounterVec
}

func newMetrics(registry *prometheus.Registry) (*metrics, error) {
	m := &metrics{
		challenges: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "caddy", Subsystem: "x402", Name: "challenges_total",
			Help: "Requests without a payment, by the network of the route's first offer.",
		}, []string{"network"}),
		payments: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "caddy", Subsystem: "x402", Name: "payments_total",
			Help: "Requests with a payment, by network and by what became of them: paid, pass (paid before), on_credit, replayed, pending, unavailable, refund_due or refused.",
		}, []string{"network", "outcome"}),
		losses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "caddy", Subsystem: "x402", Name: "written_off_total",
			Help: "Payments whose goods were handed over and whose money will never come, by network.",
		}, []string{"network"}),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "caddy", Subsystem: "x402", Name: "facilitator_requests_total",
			Help: "Requests of other sellers to x402_facilitator, by tenant, endpoint and what became of them: ok, refused, pending, unavailable, limited, unauthorized, malformed, unknown or failed.",
		}, []string{"tenant", "endpoint", "outcome"}),
	}
	if registry == nil {
		return m, nil
	}
	for _, c := range []**prometheus.CounterVec{&m.challenges, &m.payments, &m.losses, &m.calls} {
		err := registry.Register(*c)
		if already, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
			*c = already.ExistingCollector.(*prometheus.CounterVec)
		} else if err != nil {
			return nil, err
		}
	}
	return m, nil
}

// count counts a request that a route has answered.
func (m *metrics) count(r *till.Route, s *till.Sale) {
	switch s.Reason {
	case string(payment.PaymentRequired):
		m.challenges.WithLabelValues(string(r.Offers[0].Network())).Inc()
		return
	case till.ReasonNoPrice:
		return // an error, which Caddy counts
	case "":
		if !s.Paid && !s.SignedIn && !s.Pass {
			return // a CORS preflight
		}
	}
	network := string(s.Network)
	if network == "" {
		network = "unknown" // the payment could not be read
	}
	m.payments.WithLabelValues(network, outcome(s)).Inc()
}

// lost counts a payment that was written off.
func (m *metrics) lost(r *ledger.Record) {
	m.losses.WithLabelValues(string(r.Network)).Inc()
}

// called counts a request to x402_facilitator.
func (m *metrics) called(c *facilitator.Call) {
	m.calls.WithLabelValues(c.Tenant, c.Endpoint, c.Outcome).Inc()
}

func outcome(s *till.Sale) string {
	switch {
	case s.SignedIn:
		return "signed_in"
	case s.Pass:
		return "pass"
	case s.OnCredit && !s.Replayed:
		return "on_credit"
	case s.Reason == till.ReasonRefundDue:
		return "refund_due"
	case s.Replayed:
		return "replayed"
	case s.Paid:
		return "paid"
	case s.Reason == string(payment.SettlementPending):
		return "pending"
	case s.Reason == "unavailable":
		return "unavailable"
	}
	return "refused"
}
