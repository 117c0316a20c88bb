#!/usr/bin/env bash
# Looks the dependencies up among the known flaws of Rust crates. It needs the network and cargo-deny, which the
# gate installs for itself (`cargo install cargo-deny` does, too).
#
# Exit code 1 where the database cannot be fetched, so that silence is never taken for safety; else that of the check.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.cache/python/bin:$PATH"

command -v cargo-deny > /dev/null || { echo "cargo-deny is not there: cargo install cargo-deny"; exit 1; }
if ! cargo deny --locked fetch db; then
    echo "The database of advisories could not be fetched: nothing is known about the dependencies. Run this where there is a network."
    exit 1
fi
cargo deny --locked check advisories
