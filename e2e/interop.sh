#!/usr/bin/env bash
# Lets the official x402 clients and servers trade with Tollgate on a fresh sandbox, and prints the matrix.
#
#   e2e/interop.sh [--update-docs]
#
# Exits non-zero if a row fails or is missing, or if the table in docs/interop.md is out of date; --update-docs
# rewrites that table. Needs Go, Node.js 20 and, the first time, the package registries; the trade itself runs
# without a network. SANDBOX_BIN names a sandbox program that is already built.
set -euo pipefail
cd "$(dirname "$0")/.."

e2e/npm.sh e2e/interop/v1 e2e/interop/v2 e2e/interop/v2-axios

sandbox=${SANDBOX_BIN:-$PWD/e2e/out/sandbox}
if [[ -z ${SANDBOX_BIN:-} ]]; then
	mkdir -p e2e/out
	go build -o "$sandbox" ./cmd/sandbox
fi

exec e2e/offline.sh node e2e/interop/run.mjs --sandbox "$sandbox" "$@"
