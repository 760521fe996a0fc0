#!/usr/bin/env bash
# Proves that anyone can build Caddy with Tollgate: xcaddy with the caddymodule package, our module replaced by this
# checkout, nothing else replaced and no build flags of our own; the result must list our modules.
#
#   e2e/xcaddy.sh
set -euo pipefail
cd "$(dirname "$0")/.."

module=$(go list -m)
caddy_version=$(go list -m -f '{{.Version}}' github.com/caddyserver/caddy/v2)
out=$PWD/e2e/out
mkdir -p "$out"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work # xcaddy leaves its folder behind when it skips the build

go build -o "$out/xcaddy" github.com/caddyserver/xcaddy/cmd/xcaddy

# Fetch first what both builds need, then build from what is there, its sums already checked. Go looks for a module
# named after each part of an import path, and a module proxy that answers "forbidden" rather than "not found" for the
# unpublished caddymodule would end the build although the replacement holds it.
go mod download
XCADDY_SKIP_BUILD=1 "$out/xcaddy" build "$caddy_version" --output "$out/caddy" >"$work/fetch.log" 2>&1 || {
	cat "$work/fetch.log" >&2
	exit 1
}
GOPROXY=off GOSUMDB=off "$out/xcaddy" build "$caddy_version" --output "$out/caddy" \
	--with "$module/caddymodule" --replace "$module=$PWD" >"$work/build.log" 2>&1 || {
	cat "$work/build.log" >&2
	exit 1
}

replaced=$(go version -m "$out/caddy" | grep -c '^[[:space:]]*=>')
if [[ $replaced -ne 1 ]]; then
	echo "e2e/xcaddy.sh: $replaced modules are replaced in the build; only $module may be" >&2
	exit 1
fi

listed=$("$out/caddy" list-modules)
for id in x402 http.handlers.x402 http.handlers.x402_facilitator; do
	if ! grep -qxF "$id" <<<"$listed"; then
		echo "e2e/xcaddy.sh: caddy list-modules does not list $id" >&2
		exit 1
	fi
	echo "$id"
done
echo "Caddy $caddy_version builds with $module/caddymodule"
