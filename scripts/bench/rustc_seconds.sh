#!/usr/bin/env bash
# Cargo's RUSTC_WRAPPER: runs the compiler and appends `crate<TAB>CPU seconds` to $RUSTC_SECONDS, one line a call.
# Build scripts count for their crate. The seconds are of the compiler's process with its threads and its linker.
crate=
previous=
for argument in "$@"; do
    [ "$previous" = --crate-name ] && crate=$argument
    previous=$argument
done
# Cargo also asks the compiler who it is.
[ -n "$crate" ] && [ "$crate" != ___ ] || exec "$@"
TIMEFORMAT='%U %S'
{ seconds=$({ time "$@" 1>&3 2>&4; } 2>&1); status=$?; } 3>&1 4>&2
awk -v crate="${CARGO_PKG_NAME:-$crate}" -v seconds="$seconds" \
    'BEGIN { split(seconds, s, " "); printf "%s\t%.2f\n", crate, s[1] + s[2] }' >> "$RUSTC_SECONDS"
exit "$status"
