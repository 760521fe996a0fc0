package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/pass"
)

func init() {
	caddy.RegisterModule(&LogEncoder{})
}

// LogEncoder keeps payments out of a log: it leaves out the headers that
// carry them, wherever in an entry they are, and passes everything else to
// another encoder. Until a payment is used or has expired, whoever reads it
// can spend it on the same route, or ask for the answer that it has bought.
//
// Caddy copies a request for its logs before any handler sees it, so no
// handler could do this.
type LogEncoder struct {
	// The encoder that writes the entries. Default: "json", or "console"
	// where the log goes to a terminal.
	WrappedRaw json.RawMessage `json:"wrap,omitempty" caddy:"namespace=caddy.logging.encoders inline_key=format"`

	zapcore.Encoder `json:"-"`

	ctx       caddy.Context
	byDefault bool // nothing said which encoder to wrap
}

// CaddyModule returns the Caddy module information.
func (*LogEncoder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.encoders.x402", New: func() caddy.Module { return new(LogEncoder) }}
}

// Provision loads the wrapped encoder.
func (l *LogEncoder) Provision(ctx caddy.Context) error {
	l.ctx = ctx
	if len(l.WrappedRaw) == 0 {
		l.byDefault = true
		return l.wrap(&logging.JSONEncoder{})
	}
	guest, err := ctx.LoadModule(l, "WrappedRaw")
	if err != nil {
		return fmt.Errorf("loading the wrapped encoder: %w", err)
	}
	encoder, ok := guest.(zapcore.Encoder)
	if !ok {
		return fmt.Errorf("%T is no encoder", guest)
	}
	l.Encoder = encoder
	return nil
}

type provisionedEncoder interface {
	zapcore.Encoder
	caddy.Provisioner
}

func (l *LogEncoder) wrap(e provisionedEncoder) error {
	l.Encoder = e
	return e.Provision(l.ctx)
}

// ConfigureDefaultFormat chooses the encoder that suits the output, as Caddy
// does where no format is given.
func (l *LogEncoder) ConfigureDefaultFormat(w caddy.WriterOpener) error {
	if !l.byDefault {
		if next, ok := l.Encoder.(caddy.ConfiguresFormatterDefault); ok {
			return next.ConfigureDefaultFormat(w)
		}
		return nil
	}
	if caddy.IsWriterStandardStream(w) && term.IsTerminal(int(os.Stderr.Fd())) {
		return l.wrap(&logging.ConsoleEncoder{})
	}
	return nil
}

// UnmarshalCaddyfile reads
//
//	x402 {
//		wrap <encoder> { ... }
//	}
func (l *LogEncoder) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.ArgErr()
	}
	for d.NextBlock(0) {
		if d.Val() != "wrap" {
			return unknown(d, "format x402", "wrap")
		}
		if err := guest(d, &l.WrappedRaw, "caddy.logging.encoders.", "format"); err != nil {
			return err
		}
	}
	return nil
}

// Clone implements zapcore.Encoder.
func (l *LogEncoder) Clone() zapcore.Encoder { return &LogEncoder{Encoder: l.Encoder.Clone()} }

// EncodeEntry implements zapcore.Encoder.
func (l *LogEncoder) EncodeEntry(e zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	own := l.Encoder.Clone()
	for _, f := range fields {
		f.AddTo(discreet{own})
	}
	return own.EncodeEntry(e, nil)
}

// AddArray implements zapcore.ObjectEncoder.
func (l *LogEncoder) AddArray(key string, v zapcore.ArrayMarshaler) error {
	return discreet{l.Encoder}.AddArray(key, v)
}

// AddObject implements zapcore.ObjectEncoder.
func (l *LogEncoder) AddObject(key string, v zapcore.ObjectMarshaler) error {
	return discreet{l.Encoder}.AddObject(key, v)
}

// AddString implements zapcore.ObjectEncoder.
func (l *LogEncoder) AddString(key, v string) { discreet{l.Encoder}.AddString(key, v) }

// discreet is an object, or an object in an object, of an entry. Headers are
// arrays in Caddy's logs, and text where somebody logs just one.
type discreet struct{ zapcore.ObjectEncoder }

func (d discreet) AddArray(key string, v zapcore.ArrayMarshaler) error {
	if confidential(key) {
		return nil
	}
	return d.ObjectEncoder.AddArray(key, v)
}

func (d discreet) AddString(key, v string) {
	if !confidential(key) {
		d.ObjectEncoder.AddString(key, v)
	}
}

func (d discreet) AddObject(key string, v zapcore.ObjectMarshaler) error {
	return d.ObjectEncoder.AddObject(key, zapcore.ObjectMarshalerFunc(func(inner zapcore.ObjectEncoder) error {
		return v.MarshalLogObject(discreet{inner})
	}))
}

// confidential reports whether a header has to do with payments, or has the key
// of a merchant who makes links; Caddy itself leaves out Authorization. Spellings
// that Caddy drops are in its logs nevertheless.
func confidential(name string) bool {
	if len(name) < len("x-api-key") || len(name) > len("x-payment-response") {
		return false
	}
	switch strings.ReplaceAll(strings.ToLower(name), "_", "-") {
	case "payment-signature", "x-payment", "payment-required", "payment-response", "x-payment-response", "sign-in-with-x", "x-402-pass", "x-api-key":
		return true
	}
	return false
}

// readsPayments reports whether what is written to a logger's outputs would
// contain the payments of requests. It finds out by handing each encoder a
// request that notices when its payment is written, and writes nothing.
func readsPayments(l *zap.Logger) bool {
	read := false
	l.Core().With([]zap.Field{zap.Object("request", zapcore.ObjectMarshalerFunc(func(request zapcore.ObjectEncoder) error {
		return request.AddObject("headers", zapcore.ObjectMarshalerFunc(func(headers zapcore.ObjectEncoder) error {
			return headers.AddArray("Payment-Signature", zapcore.ArrayMarshalerFunc(func(zapcore.ArrayEncoder) error {
				read = true
				return nil
			}))
		}))
	}))})
	return read
}

// checkLogs finds out whether the web server's logs leave payments out. Where
// they do not, it says so, and requests that carry a payment are not logged.
func (a *App) checkLogs() {
	server, err := a.ctx.AppIfConfigured("http")
	if err != nil || len(a.offers) == 0 {
		return
	}
	m, ok := server.(caddy.Module)
	if !ok {
		return
	}
	if a.discreet.Store(!readsPayments(a.ctx.Logger(m))); a.discreet.Load() {
		return
	}
	a.logger.Warn("the logs would show payments to whoever reads them, so requests that carry one are left out of the access log; " +
		"add \"format x402\" to each log block, and a global option log with it for the default log, to have them logged without the payment")
}

// unlogged reports whether Caddy must not log a request, and sees to it that
// no line about it gets into the access log.
func (a *App) unlogged(r *http.Request) bool {
	if a.discreet.Load() || len(r.Header[payment.HeaderPayment])+len(r.Header[payment.HeaderPaymentV1])+len(r.Header[pass.Header]) == 0 {
		return false
	}
	caddyhttp.SetVar(r.Context(), caddyhttp.LogSkipVar, true)
	return true
}

// unloggedKey is unlogged for requests that carry the key of a merchant.
func (a *App) unloggedKey(r *http.Request) {
	if !a.discreet.Load() && len(r.Header["X-Api-Key"]) > 0 {
		caddyhttp.SetVar(r.Context(), caddyhttp.LogSkipVar, true)
	}
}

// fail answers a request whose error Caddy would log together with the
// payment. Where the site has routes for errors they answer it; Caddy then
// logs it at debug level only.
func (a *App) fail(w http.ResponseWriter, r *http.Request, err error) error {
	server, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || server.Errors != nil && len(server.Errors.Routes) > 0 {
		return err
	}
	status := http.StatusInternalServerError
	if h := (caddyhttp.HandlerError{}); errors.As(err, &h) && h.StatusCode != 0 {
		status = h.StatusCode
	}
	a.logger.Error("request failed", "status", status, "method", r.Method, "host", r.Host, "path", r.URL.Path, "error", err)
	w.WriteHeader(status)
	return nil
}

var (
	_ zapcore.Encoder                  = (*LogEncoder)(nil)
	_ caddy.Provisioner                = (*LogEncoder)(nil)
	_ caddy.ConfiguresFormatterDefault = (*LogEncoder)(nil)
	_ caddyfile.Unmarshaler            = (*LogEncoder)(nil)
)
