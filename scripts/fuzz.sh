#!/usr/bin/env bash
# Builds the fuzzers of the readers of model directories with Clang and runs each
# for a time: scripts/fuzz.sh [SECONDS, default 600] [FUZZER...]
# What they find and what they learn stays in build/fuzz/corpus.
set -euo pipefail

# shellcheck source=scripts/build_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/build_env.sh"
seconds="${1:-600}"
fuzzers=("${@:2}")
((${#fuzzers[@]} > 0)) || fuzzers=(config_fuzz safetensors_fuzz tokenizer_fuzz)

command -v clang++ >/dev/null || {
  echo "$0: needs Clang: apt-get install clang" >&2
  exit 1
}
timed "configure fuzz" configure_preset fuzz
timed "build fuzz" cmake --build "$root/build/fuzz" --parallel "$build_jobs" \
  --target fuzzers

corpus="$root/build/fuzz/corpus"
[[ -d "$corpus" ]] || "$root/build/fuzz/tests/fuzz/fuzz_seeds" "$corpus"
[[ -d /dev/shm ]] && export TMPDIR="${TMPDIR:-/dev/shm}"

for fuzzer in "${fuzzers[@]}"; do
  timed "$fuzzer" "$root/build/fuzz/tests/fuzz/$fuzzer" "$corpus/$fuzzer" \
    -artifact_prefix="$corpus/$fuzzer-" -max_total_time="$seconds" \
    -max_len=65536 -rss_limit_mb=2048 -timeout=10 -print_final_stats=1
done
