#!/usr/bin/env bash
# Proves the first command of the README: the sandbox, without a network, makes one real paid call and says so; and once
# more in a hostile sandbox, where the first answer to the payment is 503 settlement_pending.
#
#   e2e/sandbox.sh
#
# Exits non-zero unless the sandbox exits 0 both times and its last line states the amount, the transaction and both
# balances.
set -euo pipefail
cd "$(dirname "$0")/.."

go mod download # the sandbox itself may not ask for anything
mkdir -p e2e/out

# Makes one paid call in a sandbox with the given flags and checks what it says last.
pay_once() {
	local last hash amounts
	e2e/offline.sh go run ./cmd/sandbox --once "$@" </dev/null | tee e2e/out/sandbox.txt
	last=$(tail -n 1 e2e/out/sandbox.txt)
	hash=$(grep -oE '0x[0-9a-fA-F]{64}' <<<"$last" || true)
	amounts=$(sed -E 's/0x[0-9a-fA-F]+//g' <<<"$last" | grep -oE '[0-9]+(\.[0-9]+)?' | wc -l)
	if [[ $(wc -w <<<"$hash") -ne 1 || $amounts -lt 3 ]]; then
		echo "e2e/sandbox.sh: the last line should state the amount paid, one transaction hash and both balances" >&2
		exit 1
	fi
}

pay_once

pay_once --hostile --seed 27 # by this seed the first settlement is said to be pending
if ! grep -qF 'settlement_pending: 1.' e2e/out/sandbox.txt; then
	echo "e2e/sandbox.sh: the hostile sandbox should have said once that the settlement is pending" >&2
	exit 1
fi
