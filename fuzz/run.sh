#!/usr/bin/env bash
# Fuzzes every reader, guided by the code that each case reaches: `fuzz/run.sh [SECONDS] [BINARY]`.
# What reached something new is kept in fuzz/corpus/<reader>.hex.gz, which the tests read too; a case
# that broke a reader stays in fuzz/artifacts/.
#
# Without BINARY it is built first: `cargo install cargo-fuzz`, then stable Rust is enough.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-600}
binary=${2:-}
if [ -z "$binary" ]; then
  cargo fuzz build --sanitizer none --release readers
  binary=$(ls -t target/*/release/readers | head -1)
fi
binary=$(realpath "$binary")
readers="archives configurations features foreign_weights overrides runs shards tables vocabularies weights"
work=${OUT:-$(mktemp -d)}
mkdir -p artifacts corpus

fuzz() {
  reader=$1 cases=$work/$1.cases
  export SSM_FUZZ_READER=$reader
  mkdir -p "$cases" "$work/$reader.small"
  python3 pack.py unpack "corpus/$reader.hex.gz" "$cases"
  SSM_FUZZ_SEEDS=$cases "$binary" -runs=0 "$work/$reader.small" 2>/dev/null
  "$binary" "$cases" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20 -max_len=8192 -len_control=0 \
    -artifact_prefix="artifacts/$reader-" -print_final_stats=1 >"$work/$reader.log" 2>&1 || true
  "$binary" -merge=1 "$work/$reader.small" "$cases" >/dev/null 2>&1 || true
  python3 pack.py pack "corpus/$reader.hex.gz" "$work/$reader.small"
}

# Each of them is one thread.
for reader in $readers; do
  fuzz "$reader" &
done
wait
for reader in $readers; do
  runs=$(grep -o 'number_of_executed_units: *[0-9]*' "$work/$reader.log" | grep -o '[0-9]*$' || echo 0)
  found=$(find artifacts -name "$reader-*" | wc -l)
  reached=$(grep -o 'cov: [0-9]*' "$work/$reader.log" | tail -1)
  echo "$reader: $runs cases, $reached, kept $(find "$work/$reader.small" -type f | wc -l), broke $found"
done
