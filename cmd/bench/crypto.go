//go:build !recoverchild

package main

import (
	"context"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"

	"github.com/tollgate402/tollgate/payment"
	"github.com/tollgate402/tollgate/payment/evm"
)

// nanoseconds returns the time of one call of f.
func nanoseconds(f func()) float64 {
	r := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			f()
		}
	})
	return float64(r.T.Nanoseconds()) / float64(r.N)
}

func benchDigest(context.Context) ([]row, error) {
	token, _ := payment.USDC("eip155:84532")
	domain := evm.DomainOf(token)
	a := evm.Authorization{
		From: common.HexToAddress("0x01"), To: common.HexToAddress("0x02"), Value: big.NewInt(10000),
		ValidAfter: new(big.Int), ValidBefore: big.NewInt(1790000000), Nonce: [32]byte{1},
	}
	separator := domain.Separator()
	want, err := generalDigest(domain, &a)
	if err != nil {
		return nil, err
	}
	if got := a.Digest(separator); got != want {
		return nil, fmt.Errorf("the digests differ: %s and %s", got, want)
	}
	ours := nanoseconds(func() { a.Digest(separator) })
	baseline := nanoseconds(func() { _, _ = generalDigest(domain, &a) })
	return []row{row{Name: "digest", Ours: ours, Baseline: baseline, Unit: "ns", Target: ">= 5x apitypes"}.compare(true)}, nil
}

// generalDigest computes the digest with go-ethereum's encoder.
func generalDigest(d evm.Domain, a *evm.Authorization) (common.Hash, error) {
	hash, _, err := apitypes.TypedDataAndHash(apitypes.TypedData{
		Types: apitypes.Types{
			"EIP712Domain": {{Name: "name", Type: "string"}, {Name: "version", Type: "string"}, {Name: "chainId", Type: "uint256"}, {Name: "verifyingContract", Type: "address"}},
			"TransferWithAuthorization": {
				{Name: "from", Type: "address"},
				{Name: "to", Type: "address"},
				{Name: "value", Type: "uint256"},
				{Name: "validAfter", Type: "uint256"},
				{Name: "validBefore", Type: "uint256"},
				{Name: "nonce", Type: "bytes32"},
			},
		},
		PrimaryType: "TransferWithAuthorization",
		Domain:      apitypes.TypedDataDomain{Name: d.Name, Version: d.Version, ChainId: (*math.HexOrDecimal256)(new(big.Int).SetUint64(d.ChainID)), VerifyingContract: d.Contract.Hex()},
		Message: apitypes.TypedDataMessage{
			"from": a.From.Hex(), "to": a.To.Hex(), "value": a.Value.String(),
			"validAfter": a.ValidAfter.String(), "validBefore": a.ValidBefore.String(), "nonce": a.Nonce[:],
		},
	})
	return common.BytesToHash(hash), err
}

// benchRecover builds this command once more, without cgo and with only the
// recovery in it, because that is how xcaddy builds by default.
func benchRecover(ctx context.Context) ([]row, error) {
	dir, err := os.MkdirTemp("", "tollgate-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	child := filepath.Join(dir, "recover")
	build := exec.CommandContext(ctx, "go", "build", "-tags", "recoverchild", "-o", child, "github.com/tollgate402/tollgate/cmd/bench")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("building without cgo: %w", err)
	}
	out, err := exec.CommandContext(ctx, child).Output()
	if err != nil {
		return nil, fmt.Errorf("running the build without cgo: %w", err)
	}
	without, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		return nil, err
	}
	with, err := recoverNanoseconds()
	if err != nil {
		return nil, err
	}
	note := "ours with cgo, baseline CGO_ENABLED=0"
	if !cgo {
		note = "this binary was built without cgo too"
	}
	return []row{row{Name: "recover", Ours: with, Baseline: without, Unit: "ns", Target: ">= 3x without cgo", Note: note}.compare(true)}, nil
}
