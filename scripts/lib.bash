# Shared by the scripts of this folder: source it after "set -euo pipefail".
# shellcheck shell=bash

# die SENTENCE: ends the script. Scripts that clean up do so in their EXIT trap.
die() {
	printf '%s: %s\n' "$(basename "$0")" "$*" >&2
	exit 1
}

need_root() {
	[ "$(id -u)" = 0 ] || die "attaching to processes needs root; run: sudo $0 $*"
}

# find_go puts the Go toolchain on PATH. Under sudo, PATH is the system's, and
# Go is usually not on it.
find_go() {
	export HOME="${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}"
	command -v go >/dev/null && return
	local user_home="" dir
	if [ -n "${SUDO_USER:-}" ]; then
		user_home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
	fi
	for dir in /usr/local/go/bin /usr/lib/go/bin /usr/lib/go-*/bin /snap/bin "$user_home"/go/bin "$user_home"/sdk/go*/bin "$user_home"/.local/go/bin; do
		if [ -x "$dir/go" ]; then
			export PATH="$dir:$PATH"
			return
		fi
	done
	die "Go is not installed, or not where it is looked for; install it from https://go.dev/doc/install to /usr/local/go, or put it on root's PATH"
}

# free_port prints a TCP port of loopback that nothing listens on.
free_port() {
	local port
	while :; do
		port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
	done
	printf '%s\n' "$port"
}

# request METHOD URL: sends an HTTP/1.1 request without a body and prints the
# status code, "000" where there is no answer within 10 s. A fresh machine has
# no curl.
request() {
	local rest=${2#http://} status=""
	local address=${rest%%/*} line
	{
		exec 3<>"/dev/tcp/${address%:*}/${address##*:}"
	} 2>/dev/null || { printf '000\n'; return; }
	printf '%s /%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' \
		"$1" "${rest#*/}" "$address" "$(basename "$0")" >&3
	if read -r -t 10 line <&3; then
		status=$(cut -d' ' -f2 <<<"$line")
		# Read the answer to its end, so that the server is not cut off.
		timeout 10 cat <&3 >/dev/null || true
	fi
	exec 3<&- 3>&-
	printf '%s\n' "${status:-000}"
}

# alive PID
alive() { kill -0 "$1" 2>/dev/null; }

# end PID...: SIGTERM, and SIGKILL for what is still there after 12 s.
end() {
	local pid i
	for pid in "$@"; do
		[ -n "$pid" ] || continue
		kill "$pid" 2>/dev/null || continue
		for ((i = 0; i < 120; i++)); do
			alive "$pid" || break
			sleep 0.1
		done
		kill -KILL "$pid" 2>/dev/null || true
	done
}

# last_line FILE
last_line() { tail -n 1 "$1" 2>/dev/null; }

# address_from FILE PID WHAT: waits until FILE has the line "... listens on URL"
# and prints the URL.
address_from() {
	local i url
	for ((i = 0; i < 100; i++)); do
		url=$(sed -n 's/.* listens on \(http:[^ ]*\).*/\1/p' "$1" | head -n 1)
		if [ -n "$url" ]; then
			printf '%s\n' "$url"
			return
		fi
		alive "$2" || break
		sleep 0.1
	done
	return 1
}

# build_agent FILE, build_shop FILE [go build flags]: no VCS stamp, for git
# refuses to read the checkout of another user, which is what it is under sudo.
build_agent() {
	CGO_ENABLED=0 go build -buildvcs=false -o "$1" ./cmd/agent
}

build_shop() {
	local file=$1
	shift
	(cd scripts/shop && CGO_ENABLED=0 go build -buildvcs=false -o "$file" "$@" .)
}

# overlay_of_clock sets $overlay, to build programs with whose wall clock jumps, and
# TEST_WALL_CLOCK, the file that says how far. The folder is always the same one, so that
# what is built with it is kept.
overlay_of_clock() {
	local folder="${XDG_CACHE_HOME:-$HOME/.cache}/plain-agent/wallclock"
	# shellcheck disable=SC2034 # for the script that sources this
	overlay=$(go run ./scripts/wallclock "$folder")
	TEST_WALL_CLOCK=$(mktemp "$folder/clock.XXXXXX")
	export TEST_WALL_CLOCK
	head -c 8 /dev/zero >"$TEST_WALL_CLOCK"
}
