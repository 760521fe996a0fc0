#!/usr/bin/env bash
# Runs a command, by default the tests that need PostgreSQL, beside a real PostgreSQL that exists for as long as the
# command runs. Installs PostgreSQL from the distribution where it is missing.
#
#   e2e/postgres.sh [<command> [<argument>…]]
#
# The command finds a server in TOLLGATE_TEST_POSTGRES (a connection string), and one that may be restarted at any moment
# in TOLLGATE_TEST_POSTGRES_VICTIM, by the program named in TOLLGATE_TEST_POSTGRES_RESTART. Both listen on nothing but a
# socket in a directory that goes with them.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
from=$PWD

# Prints the directory of the newest installed server.
programs() {
	local dir
	for dir in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -t / -k 5 -rn) "$(dirname "$(command -v initdb || echo /-/-)")"; do
		if [[ -x $dir/initdb && -x $dir/postgres ]]; then
			echo "$dir"
			return
		fi
	done
}

bin=$(programs)
if [[ -z $bin ]]; then
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends postgresql >/dev/null
	bin=$(programs)
fi

dir=$(mktemp -d /tmp/tollgate-postgres.XXXXXX)
as=() # PostgreSQL refuses to run as root
if [[ $(id -u) -eq 0 ]]; then
	chown postgres: "$dir"
	as=(setpriv --reuid=postgres --regid=postgres --init-groups --)
fi

# Stops the servers that were started here, by the process ids in their directories.
stop() {
	local name
	for name in shared victim; do
		if [[ -f $dir/$name/postmaster.pid ]]; then
			"${as[@]}" "$bin/pg_ctl" -D "$dir/$name" -m immediate -w stop >/dev/null || true
		fi
	done
	rm -rf "$dir"
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

cd "$dir" # a directory that the servers may enter
for name in shared victim; do
	data=$dir/$name
	"${as[@]}" "$bin/initdb" -D "$data" -U postgres -A trust -E UTF8 --locale=C --no-sync >"$dir/initdb.log" 2>&1 || {
		cat "$dir/initdb.log"
		exit 1
	}
	# A user whom the server turns away, for the test of that.
	"${as[@]}" sed -i '1i local all locked reject' "$data/pg_hba.conf"
	"${as[@]}" mkdir "$dir/$name.socket"
	"${as[@]}" tee -a "$data/postgresql.conf" >/dev/null <<-CONF
		listen_addresses = ''
		unix_socket_directories = '$dir/$name.socket'
		max_connections = 200
		fsync = on
		synchronous_commit = on
	CONF
	"${as[@]}" "$bin/pg_ctl" -D "$data" -l "$dir/$name.log" -w -t 60 start >/dev/null || {
		cat "$dir/$name.log"
		exit 1
	}
done
cat >"$dir/restart" <<-RESTART
	#!/usr/bin/env bash
	cd "$dir" && exec ${as[*]} "$bin/pg_ctl" -D "$dir/victim" -l "$dir/victim.log" -m immediate -w -t 60 restart >/dev/null
RESTART
chmod 755 "$dir/restart"

export TOLLGATE_TEST_POSTGRES="postgres://postgres@/postgres?host=$dir/shared.socket"
export TOLLGATE_TEST_POSTGRES_VICTIM="postgres://postgres@/postgres?host=$dir/victim.socket"
export TOLLGATE_TEST_POSTGRES_RESTART=$dir/restart

cd "$from"
if [[ $# -eq 0 ]]; then
	cd "$root"
	go test -timeout 5m ./internal/ledger/postgres ./caddymodule
	go test -race -timeout 8m ./internal/ledger/postgres
else
	"$@"
fi
