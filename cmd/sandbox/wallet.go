package main

import (
	"bytes"
	_ "embed" // of the wallet's script
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment/link"
)

func init() {
	caddy.RegisterModule(&wallet{})
	httpcaddyfile.RegisterHandlerDirective("sandbox_wallet", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		if h.NextArg() {
			return nil, h.ArgErr()
		}
		return &wallet{ChainID: playChain}, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("sandbox_wallet", httpcaddyfile.Before, "forward_auth") // and so before x402_links
}

// A wallet lets people pay links in a browser that has no wallet: it puts a
// script into the pages of links that can be paid, which announces a wallet
// like any other, and signs for the payer whose key is public. Everything else
// passes through it unchanged.
//
// What it signs is worth nothing but on the sandbox's chain. Still it signs for
// nobody but pages of its own host, so that it teaches nobody bad habits.
type wallet struct {
	ChainID uint64 `json:"chain_id"` // the one chain that it knows
}

// playChain is the chain id of devchain.
const playChain = 84532

const (
	walletPath   = "/_sandbox/wallet"
	walletScript = walletPath + ".js"
	maxAsked     = 64 << 10
)

//go:embed wallet.js
var script []byte

// CaddyModule returns the Caddy module information.
func (*wallet) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.sandbox_wallet", New: func() caddy.Module { return new(wallet) }}
}

func (k *wallet) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	switch {
	case r.URL.Path == walletScript:
		w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(script)
		return nil
	case r.URL.Path == walletPath:
		k.serve(w, r)
		return nil
	case isLink(r):
		return withScript(w, r, next)
	}
	return next.ServeHTTP(w, r)
}

// isLink reports whether a request looks at a link itself.
func isLink(r *http.Request) bool {
	id, ok := strings.CutPrefix(r.URL.Path, "/x402/")
	_, err := link.ParseID(id)
	return ok && err == nil && (r.Method == http.MethodGet || r.Method == http.MethodHead)
}

// withScript adds the wallet's script to a page on which something can be paid.
func withScript(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	var page bytes.Buffer
	recorder := caddyhttp.NewResponseRecorder(w, &page, func(status int, h http.Header) bool {
		return status == http.StatusPaymentRequired && strings.HasPrefix(h.Get("Content-Type"), "text/html")
	})
	if err := next.ServeHTTP(recorder, r); err != nil || !recorder.Buffered() {
		return err
	}
	const end = "</head>"
	whole := bytes.Replace(page.Bytes(), []byte(end), []byte(`<script src="`+walletScript+`" defer></script>`+"\n"+end), 1)
	w.Header().Set("Content-Length", strconv.Itoa(len(whole)))
	w.WriteHeader(recorder.Status())
	_, _ = w.Write(whole)
	return nil
}

// A walletError is what wallets answer to pages, with the codes of EIP-1193
// and JSON-RPC.
type walletError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (e *walletError) Error() string { return e.Message }

const (
	codeUnauthorized = 4100
	codeUnsupported  = 4200
	codeUnknownChain = 4902
	codeParameters   = -32602
)

func parameters(format string, args ...string) error {
	list := make([]any, len(args))
	for i, a := range args {
		list[i] = a
	}
	return &walletError{codeParameters, fmt.Sprintf(format, list...)}
}

// serve answers what the script asks for a page.
func (k *wallet) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "Wallets are asked by POST.", http.StatusMethodNotAllowed)
		return
	}
	if err := fromOwnPage(r); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/json" {
		http.Error(w, "Send Content-Type: application/json.", http.StatusUnsupportedMediaType)
		return
	}
	var asked struct {
		Method string            `json:"method"`
		Params []json.RawMessage `json:"params"`
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAsked))
	if err == nil {
		err = json.Unmarshal(body, &asked)
	}
	if err != nil {
		http.Error(w, "Send {\"method\":…,\"params\":[…]} as JSON.", http.StatusBadRequest)
		return
	}
	result, err := k.answer(asked.Method, asked.Params)
	if refused, ok := errors.AsType[*walletError](err); ok {
		writeJSON(w, map[string]*walletError{"error": refused})
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, map[string]json.RawMessage{"result": result})
}

// fromOwnPage refuses requests of pages from elsewhere, and under a name that
// somebody else has pointed here: whoever asks must have called the very
// address that the connection has come to.
func fromOwnPage(r *http.Request) error {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok || r.Host != local.String() {
		return errors.New("the wallet of the sandbox is only for its own address")
	}
	for _, origin := range r.Header.Values("Origin") {
		if origin != "http://"+r.Host {
			return errors.New("the wallet of the sandbox is only for its own pages")
		}
	}
	return nil
}

func (k *wallet) payer() devchain.Account { return devchain.DeriveAccount("payer") }

// answer does what a page wants, as a JSON document. Its error is a
// *walletError where it is the page's fault.
func (k *wallet) answer(method string, params []json.RawMessage) (json.RawMessage, error) {
	switch method {
	case "eth_requestAccounts", "eth_accounts":
		return json.Marshal([]string{k.payer().Address.Hex()})
	case "eth_chainId":
		return json.Marshal(hexutil.EncodeUint64(k.ChainID))
	case "wallet_switchEthereumChain":
		var to struct {
			ChainID string `json:"chainId"`
		}
		if len(params) != 1 || json.Unmarshal(params[0], &to) != nil {
			return nil, parameters("%s takes one parameter: {\"chainId\":\"0x…\"}", method)
		}
		if id, err := hexutil.DecodeUint64(to.ChainID); err != nil || id != k.ChainID {
			return nil, &walletError{codeUnknownChain, "there is play money on chain " + hexutil.EncodeUint64(k.ChainID) + " only"}
		}
		return json.RawMessage("null"), nil
	case "eth_signTypedData_v4":
		signature, err := k.sign(params)
		if err != nil {
			return nil, err
		}
		return json.Marshal(hexutil.Encode(signature))
	}
	return nil, &walletError{codeUnsupported, "the wallet of the sandbox knows no " + method}
}

// sign signs typed data (EIP-712) for the payer.
func (k *wallet) sign(params []json.RawMessage) ([]byte, error) {
	var (
		account common.Address
		typed   apitypes.TypedData
	)
	if len(params) != 2 || json.Unmarshal(params[0], &account) != nil {
		return nil, parameters("eth_signTypedData_v4 takes two parameters: an address and typed data")
	}
	if account != k.payer().Address {
		return nil, &walletError{codeUnauthorized, "that is not the account of this wallet"}
	}
	doc := []byte(params[1])
	if text := ""; json.Unmarshal(doc, &text) == nil {
		doc = []byte(text)
	}
	if err := json.Unmarshal(doc, &typed); err != nil {
		return nil, parameters("the typed data cannot be read: %s", err.Error())
	}
	if id := (*big.Int)(typed.Domain.ChainId); id == nil || !id.IsUint64() || id.Uint64() != k.ChainID {
		return nil, parameters("the typed data must be for the chain %s", hexutil.EncodeUint64(k.ChainID))
	}
	digest, _, err := apitypes.TypedDataAndHash(typed)
	if err != nil {
		return nil, parameters("the typed data cannot be hashed: %s", err.Error())
	}
	signature, err := crypto.Sign(digest, k.payer().Key)
	if err != nil {
		return nil, err
	}
	signature[crypto.RecoveryIDOffset] += 27
	return signature, nil
}

var _ caddyhttp.MiddlewareHandler = (*wallet)(nil)
