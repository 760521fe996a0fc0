#!/usr/bin/env bash
# Installs the exact versions of package-lock.json in each folder given, unless they are there already.
#
#   e2e/npm.sh FOLDER…
set -euo pipefail
cd "$(dirname "$0")/.."

for folder in "$@"; do
	if [[ $folder/node_modules/.package-lock.json -nt $folder/package-lock.json ]]; then
		continue
	fi
	# npm ci refuses a lock file that lacks the optional binaries of some other platform; npm install then takes the
	# same versions from the same file.
	(
		cd "$folder"
		npm ci --no-audit --no-fund --loglevel=error || npm install --no-save --no-audit --no-fund --loglevel=error
	)
done
