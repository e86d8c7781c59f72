#!/bin/sh
# Installs what the commands of the Makefile need and the machine lacks.
#
#   setup.sh compiler    a C compiler: SQLite's driver is C
#   setup.sh postgres    PostgreSQL's server package, which the tests start; with
#                        SMALLBEN_POSTGRES_DSN in CI only, for tests that stop a server
#   setup.sh pgbouncer   PgBouncer, which a test of poolers starts
#   setup.sh prometheus  Prometheus and promtool, which check the dashboard and
#                        the alerts; tests that lack them are skipped, but fail in CI
#   setup.sh chromium    a browser, in which the tests look at the console; the same
#
# It knows Debian's and Ubuntu's packages; elsewhere it says what to install.
set -eu

have() { command -v "$1" >/dev/null 2>&1; }

# A compiler without the C library's headers is none.
has_compiler() {
	# CC may carry flags, so it is split into words.
	echo '#include <stdlib.h>' | $(go env CC) -E -x c - >/dev/null 2>&1
}

has_postgres() {
	{ [ -n "${SMALLBEN_POSTGRES_DSN:-}" ] && [ "${CI:-}" != true ]; } || have initdb ||
		ls /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb 2>/dev/null | grep -q . ||
		{ have pg_config && [ -x "$(pg_config --bindir)/initdb" ]; }
}

has_pgbouncer() { have pgbouncer || [ -x /usr/sbin/pgbouncer ]; }

has_chromium() {
	[ -n "${SMALLBEN_BROWSER:-}" ] || have chromium || have chromium-browser || have google-chrome ||
		have google-chrome-stable || have chrome
}

# install NAME INSTEAD PACKAGE...: INSTEAD says what to do where we cannot.
install() {
	name=$1 instead=$2
	shift 2
	if ! have apt-get; then
		echo "No $name found: $instead" >&2
		exit 1
	fi
	sudo=
	if [ "$(id -u)" -ne 0 ]; then
		if ! have sudo; then
			echo "No $name found, and no sudo to install it: as root, run apt-get install $*, or $instead" >&2
			exit 1
		fi
		sudo=sudo
	fi
	echo "No $name found: installing $*" >&2
	$sudo apt-get update -q
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@" || {
		echo "Could not install $*: $instead" >&2
		exit 1
	}
}

if ! have go; then
	echo "No Go found: install it from https://go.dev/dl/" >&2
	exit 1
fi

case ${1:-} in
compiler)
	has_compiler || install "C compiler" "install gcc or clang" gcc libc6-dev
	;;
postgres)
	has_postgres || install "PostgreSQL server" \
		"install its server package, or set SMALLBEN_POSTGRES_DSN to a database that the tests may use" postgresql
	;;
pgbouncer)
	has_pgbouncer || install PgBouncer "put pgbouncer in PATH" pgbouncer
	;;
prometheus)
	{ have prometheus && have promtool; } || install Prometheus \
		"put prometheus and promtool in PATH" prometheus
	;;
chromium)
	has_chromium || install "Chromium" \
		"install Chromium or Chrome, or set SMALLBEN_BROWSER to one; without it no test looks at the console" chromium fonts-liberation
	;;
*)
	echo "usage: $0 compiler|postgres|pgbouncer|prometheus|chromium" >&2
	exit 2
	;;
esac
