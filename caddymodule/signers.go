package caddymodule

import (
	"cmp"
	"context"
	"errors"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/ethereum/go-ethereum/common"

	"github.com/tollgate402/tollgate/facilitator/till"
	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
	"github.com/tollgate402/tollgate/payment/extension"
	"github.com/tollgate402/tollgate/signer/localkey"
)

func init() {
	caddy.RegisterModule(&KeySigner{})
}

// KeySigner signs with one private key in this process's memory.
type KeySigner struct {
	// The key, 64 hexadecimal digits, as a placeholder: {env.NAME} or
	// {file./run/secrets/name}. A key written here is refused.
	Key string `json:"key,omitempty"`

	// The key itself. Everybody who can read the configuration has it then,
	// so it is for play money only.
	InsecureLiteralKey string `json:"insecure_literal_key,omitempty"`

	signer *localkey.Key
}

// CaddyModule returns the Caddy module information.
func (*KeySigner) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "x402.signers.key", New: func() caddy.Module { return new(KeySigner) }}
}

// privateKey is what errors call the key.
const privateKey = "a private key"

// A keySetting is the setting that a key is given for. A Caddy context with a
// value for refundsSetting, or for signedBySetting, is that of this setting.
type keySetting string

const (
	laneSetting     keySetting = "lane"
	refundsSetting  keySetting = "refunds"
	signedBySetting keySetting = "signed_by"
)

// example returns the name that errors propose for the key.
func (s keySetting) example() string {
	switch s {
	case refundsSetting:
		return "X402_REFUND_KEY"
	case signedBySetting:
		return "X402_OFFER_KEY"
	default:
		return "X402_LANE_KEY"
	}
}

// keySettingOf returns the setting that a signer is loaded for.
func keySettingOf(ctx caddy.Context) keySetting {
	for _, s := range []keySetting{refundsSetting, signedBySetting} {
		if ctx.Context != nil && ctx.Value(s) != nil {
			return s
		}
	}
	return laneSetting
}

// Provision reads the key.
func (s *KeySigner) Provision(ctx caddy.Context) error {
	key, example := s.InsecureLiteralKey, keySettingOf(ctx).example()
	switch {
	case s.Key == "" && key == "":
		return errors.New("the key is missing: write \"key {env." + example + "}\"")
	case s.Key != "" && key != "":
		return errors.New("key and insecure_literal_key exclude each other")
	case s.Key != "":
		var err error
		if key, err = secret(privateKey, s.Key, example); err != nil {
			return err
		}
	}
	var err error
	s.signer, err = localkey.Parse(key)
	return err
}

// Address implements payment.CallSigner.
func (s *KeySigner) Address() common.Address { return s.signer.Address() }

// SignCall implements payment.CallSigner.
func (s *KeySigner) SignCall(ctx context.Context, c *payment.LaneCall) ([]byte, error) {
	return s.signer.SignCall(ctx, c)
}

// SignTransfer implements till.TransferSigner.
func (s *KeySigner) SignTransfer(ctx context.Context, d evm.Domain, a evm.Authorization) (*evm.Transfer, error) {
	return s.signer.SignTransfer(ctx, d, a)
}

// SignOffer implements extension.AgreementSigner.
func (s *KeySigner) SignOffer(ctx context.Context, o *extension.SignedOffer) ([]byte, error) {
	return s.signer.SignOffer(ctx, o)
}

// SignReceipt implements extension.AgreementSigner.
func (s *KeySigner) SignReceipt(ctx context.Context, r *extension.SignedReceipt) ([]byte, error) {
	return s.signer.SignReceipt(ctx, r)
}

// UnmarshalCaddyfile reads "key {env.NAME}", or
//
//	key {
//		insecure_literal_key <hex>
//	}
func (s *KeySigner) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	setting := cmp.Or(keySetting(d.GetContextString(guestSetting)), laneSetting)
	if d.NextArg() {
		s.Key = d.Val()
		if err := checkSecret(privateKey, s.Key, setting.example()); err != nil {
			return d.WrapErr(err)
		}
	}
	if d.NextArg() {
		return d.Errf("after %s key comes one placeholder, such as {env.%s}", setting, setting.example())
	}
	for d.NextBlock(0) {
		switch d.Val() {
		case "insecure_literal_key":
			if err := text(d, &s.InsecureLiteralKey); err != nil {
				return err
			}
		default:
			return unknown(d, string(setting)+" key", "insecure_literal_key")
		}
	}
	return nil
}

var (
	_ payment.CallSigner        = (*KeySigner)(nil)
	_ extension.AgreementSigner = (*KeySigner)(nil)
	_ till.TransferSigner       = (*KeySigner)(nil)
	_ caddy.Provisioner         = (*KeySigner)(nil)
	_ caddyfile.Unmarshaler     = (*KeySigner)(nil)
)
