package main

import (
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/payment/evm"
)

// recoverNanoseconds returns the time that recovering a signer takes: the
// best of several rounds.
func recoverNanoseconds() (float64, error) {
	key, err := crypto.ToECDSA(crypto.Keccak256([]byte("bench")))
	if err != nil {
		return 0, err
	}
	digest := common.HexToHash("0x01")
	signature, err := crypto.Sign(digest[:], key)
	if err != nil {
		return 0, err
	}
	signature[64] += 27
	want := crypto.PubkeyToAddress(key.PublicKey)
	const rounds, calls = 20, 500
	best := time.Duration(1 << 62)
	for range rounds {
		start := time.Now()
		for range calls {
			got, err := evm.Recover(digest, signature)
			if err != nil || got != want {
				return 0, fmt.Errorf("recovered %s, %w", got, err)
			}
		}
		best = min(best, time.Since(start))
	}
	return float64(best.Nanoseconds()) / calls, nil
}
