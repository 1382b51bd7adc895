#!/usr/bin/env bash
# Compiles every *.bpf.c of this folder into one object for each architecture and
# generates its Go side. Called by `go generate ./bpf`; needs clang and libbpf-dev.
set -euo pipefail
cd "$(dirname "$0")"

# One translation unit: static functions and maps are shared, and a new library is
# a new file and nothing else.
unit=$(mktemp --suffix=.c)
trap 'rm -f "$unit"' EXIT
for file in *.bpf.c; do
	echo "#include \"$file\""
done >"$unit"
echo 'char _license[] SEC("license") = "GPL";' >>"$unit"

# Every named type of the contract gets a Go side. bpf2go sees only types that
# something refers to.
types=()
while read -r kind name; do
	case $name in *_small | *_large | *_texts | *_beginning | *_ending | probe | pt_regs | sdk_span) continue ;; esac
	types+=(-type "$name")
	echo "const $kind $name *refer_to_$name __attribute__((unused));" >>"$unit"
done < <(grep -hoE '^(struct|enum) [a-z0-9_]+ \{' ./*.h ./*.bpf.c | tr -d '{' | sort -u)

# Without block placement, which puts the end of a loop before its beginning: Linux 5.10
# refuses such loops. floor_test.go checks it.
go tool bpf2go -go-package bpf -output-stem agent -target amd64,arm64 -no-global-types \
	"${types[@]}" Agent "$unit" -- -I. -I"/usr/include/$(gcc -dumpmachine)" \
	-O2 -g -mcpu=v2 -mllvm -disable-block-placement -Wall -Wextra -Werror -Wpadded -Wno-unused-parameter \
	-Wno-unused-function -Wno-unused-variable -fdebug-prefix-map="$PWD"=.
