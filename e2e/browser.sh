#!/usr/bin/env bash
# Opens the pages of payment links in Debian's Chromium, as people with a wallet would, and pays: the product settles
# what they sign on a chain with play money. Writes a picture of every state to e2e/out/browser.
#
#   e2e/browser.sh [--only WORD]
#
# Exits non-zero if a scenario fails, or if a page violates its policy, asks another host for anything, or reads badly.
# Needs Go and Node.js 20; installs Chromium with apt-get where it is missing. The run itself has no network.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v chromium >/dev/null; then
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends chromium fonts-liberation fonts-inter
fi
e2e/npm.sh e2e/browser

mkdir -p e2e/out/browser
go build -o e2e/out/browser/ ./cmd/tollgate ./e2e/browser/shop

exec e2e/offline.sh node e2e/browser/run.mjs --server e2e/out/browser/shop "$@"
