#!/usr/bin/env bash
# Plays what the older API for payment links documents against a fresh sandbox: what a link asks, payments in every form
# and those that must be refused, and the merchants' side; and pays links by x402, with the official clients, too.
#
#   e2e/links.sh
#
# Prints a table, and exits non-zero if a row fails or is missing. Needs Go, Node.js 20 and, the first time, the package
# registries; the exchanges themselves run without a network. SANDBOX_BIN names a sandbox program that is already built.
set -euo pipefail
cd "$(dirname "$0")/.."

e2e/npm.sh e2e/interop/v1 e2e/interop/v2

mkdir -p e2e/out
sandbox=${SANDBOX_BIN:-$PWD/e2e/out/sandbox}
if [[ -z ${SANDBOX_BIN:-} ]]; then
	go build -o "$sandbox" ./cmd/sandbox
fi
go build -o e2e/out/links ./e2e/links

exec e2e/offline.sh e2e/out/links -sandbox "$sandbox" -clients e2e/interop
