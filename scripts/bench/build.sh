#!/usr/bin/env bash
# Times `cargo build --release` of two commits from fresh clones, in turn, with nothing built before, and prints the table of
# docs/benchmarks.md: seconds in all, and the CPU seconds of each crate before and after.
#
#   scripts/bench/build.sh BEFORE [AFTER] [--runs N] [--write]
#
# BEFORE and AFTER are commits; AFTER is HEAD where it is left out. --write puts the table between its marks in docs/benchmarks.md.
# The crates are fetched before the clock starts. It needs a machine that does nothing else.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
commits=()
runs=2
write=
while [ $# -gt 0 ]; do
    case "$1" in
        --runs) runs=$2; shift ;;
        --write) write=1 ;;
        -*) echo "unknown flag $1; hint: see the first lines of this script" >&2; exit 2 ;;
        *) commits+=("$1") ;;
    esac
    shift
done
[ ${#commits[@]} -ge 1 ] || { echo "no commit to compare with; hint: scripts/bench/build.sh BEFORE" >&2; exit 2; }
before=$(git rev-parse --short "${commits[0]}")
after=$(git rev-parse --short "${commits[1]:-HEAD}")

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# A clone of a commit in which nothing is built, built once: `side run wall CPU bytes` goes into $out/totals, the seconds of its crates
# into $out/SIDE-RUN.
build() {
    local side=$1 commit=$2 run=$3 clone=$out/clone
    rm -rf "$clone"
    git clone --quiet "$root" "$clone"
    git -C "$clone" checkout --quiet "$commit"
    (cd "$clone" && cargo fetch --locked --quiet)
    sync
    echo "$side ($commit), run $run" >&2
    (
        cd "$clone"
        export RUSTC_WRAPPER="$root/scripts/bench/rustc_seconds.sh" RUSTC_SECONDS="$out/$side-$run" CARGO_TARGET_DIR="$clone/target"
        TIMEFORMAT='%R %U %S'
        times=$({ time cargo build --release --locked --quiet 1>&2 2> "$out/log"; } 2>&1) || { cat "$out/log" >&2; exit 1; }
        echo "$side $run $times $(stat -c %s target/release/offshoot)" >> "$out/totals"
    )
    tail -1 "$out/totals" >&2
}
for run in $(seq "$runs"); do
    build before "$before" "$run"
    build after "$after" "$run"
done

crates() { cut -f 1 "$out/$1-1" | sort -u | wc -l; }
table() {
    echo "<!-- build: $(date +%F), $(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(uname -s)), $(rustc --version | cut -d ' ' -f 1-2) -->"
    echo
    echo "| \`cargo build --release\` | before ($before) | after ($after) | ratio |"
    echo "|---|---:|---:|---:|"
    awk -v before_crates="$(crates before)" -v after_crates="$(crates after)" '
        { n[$1]++; wall[$1] += $3; cpu[$1] += $4 + $5; bytes[$1] = $6
          walls[$1] = walls[$1] (walls[$1] == "" ? "" : ", ") sprintf("%.0f", $3)
          cpus[$1] = cpus[$1] (cpus[$1] == "" ? "" : ", ") sprintf("%.0f", $4 + $5) }
        END {
            printf "| wall, s | %s | %s | %.2f |\n", walls["before"], walls["after"], wall["after"] / wall["before"]
            printf "| CPU, s | %s | %s | %.2f |\n", cpus["before"], cpus["after"], cpu["after"] / cpu["before"]
            printf "| crates | %d | %d | %.2f |\n", before_crates, after_crates, after_crates / before_crates
            printf "| binary, MB | %.1f | %.1f | %.2f |\n", bytes["before"] / 1e6, bytes["after"] / 1e6, bytes["after"] / bytes["before"]
        }' "$out/totals"
    echo
    echo "CPU seconds of each crate, with its build script, the mean of $runs runs; those under 4 s in both are one line."
    echo
    echo "| crate | before | after |"
    echo "|---|---:|---:|"
    awk -F '\t' -v runs="$runs" '
        FILENAME ~ /before-[0-9]+$/ { before[$1] += $2 / runs; all[$1] }
        FILENAME ~ /after-[0-9]+$/ { after[$1] += $2 / runs; all[$1] }
        END {
            for (crate in all) {
                if (before[crate] < 4 && after[crate] < 4) { few++; b += before[crate]; a += after[crate] }
                else printf "%.1f\t%s\t%.1f\n", before[crate], crate, after[crate]
            }
            printf "-1\t%d others\t%.1f\t%.1f\n", few, b, a
        }' "$out"/before-* "$out"/after-* | sort -t "$(printf '\t')" -k 1,1nr |
        awk -F '\t' '$1 < 0 { printf "| %s | %s | %s |\n", $2, $3, $4; next } { printf "| %s | %s | %s |\n", $2, $1, $3 }'
    echo
    echo "<!-- end -->"
}
table > "$out/table.md"
cat "$out/table.md"
if [ -n "$write" ]; then
    awk -v table="$out/table.md" '
        /^<!-- build:/ { while ((getline line < table) > 0) print line; skip = 1; found = 1 }
        !skip
        skip && /^<!-- end -->/ { skip = 0 }
        END { exit !found }' docs/benchmarks.md > "$out/benchmarks.md" ||
        { echo "docs/benchmarks.md has no mark <!-- build: ... -->" >&2; exit 1; }
    cp "$out/benchmarks.md" docs/benchmarks.md
fi
