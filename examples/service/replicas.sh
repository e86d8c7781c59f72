#!/bin/sh
# Runs three replicas of the service on one PostgreSQL until Ctrl-C, and leaves
# nothing behind. They answer on 127.0.0.1, ports 8081 to 8083, and log here. A
# Prometheus that is in PATH scrapes them, and answers on port 9090.
#
#   sh examples/service/replicas.sh          on a server of its own
#   sh examples/service/replicas.sh DSN      on a database that is there
#
# PORT=9001 makes them ports 9001 to 9003. SERVICE=path runs a binary that is built.
set -eu

dsn=${1:-}
port=${PORT:-8081}
service=${SERVICE:-}
bin= pids= prometheus=
dir=$(mktemp -d)

# PostgreSQL refuses root: it gets another user then.
user=
if [ "$(id -u)" -eq 0 ]; then
	user=postgres
	id "$user" >/dev/null 2>&1 || user=nobody
fi
postgres() {
	if [ -n "$user" ]; then
		(cd / && su -s /bin/sh -c 'exec "$0" "$@"' -- "$user" "$@")
	else
		"$@"
	fi
}

clean() {
	trap '' HUP INT TERM
	for pid in $pids $prometheus; do kill "$pid" 2>/dev/null || :; done
	wait
	if [ -n "$bin" ]; then postgres "$bin/pg_ctl" stop -D "$dir/data" -m immediate -s || :; fi
	rm -rf "$dir"
}
trap clean EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -z "$service" ]; then
	service=$dir/service
	# Without cgo: PostgreSQL needs no C compiler.
	(cd "$(dirname "$0")" && CGO_ENABLED=0 go build -o "$service" .)
fi

if [ -z "$dsn" ]; then
	# In PATH, or else where Debian and the PGDG packages keep them.
	found=
	for initdb in /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb "$(command -v initdb || :)"; do
		if [ -x "$(dirname "$initdb")/pg_ctl" ]; then found=$(dirname "$initdb"); fi
	done
	if [ -z "$found" ]; then
		echo "No PostgreSQL server found: install its package, or give the DSN of a database" >&2
		exit 1
	fi
	if [ -n "$user" ]; then chown "$user" "$dir"; fi
	postgres "$found/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C --no-sync >/dev/null
	bin=$found
	# A socket in a directory of ours cannot be in use.
	postgres "$bin/pg_ctl" start -D "$dir/data" -w -s -l "$dir/log" \
		-o "-c listen_addresses= -c unix_socket_directories='$dir' -c fsync=off"
	dsn="host=$dir user=postgres dbname=postgres"
	echo "PostgreSQL: psql -h $dir -U postgres"
fi

for replica in 0 1 2; do
	addr=127.0.0.1:$((port + replica))
	"$service" -addr "$addr" -dsn "$dsn" &
	pids="$pids $!"
	echo "http://$addr is process $!"
done

if command -v prometheus >/dev/null; then
	sed "s/service-a:8080/127.0.0.1:$port/; s/service-b:8080/127.0.0.1:$((port + 1))/; s/service-c:8080/127.0.0.1:$((port + 2))/" \
		"$(dirname "$0")/prometheus.yml" >"$dir/prometheus.yml"
	prometheus --config.file="$dir/prometheus.yml" --storage.tsdb.path="$dir/prometheus" \
		--web.listen-address=127.0.0.1:9090 --log.level=error &
	prometheus=$!
	echo "http://127.0.0.1:9090 is Prometheus"
fi

# One that is killed leaves the others alone.
for pid in $pids; do wait "$pid" || :; done
echo "No replica is left" >&2
exit 1
