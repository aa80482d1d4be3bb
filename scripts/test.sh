#!/usr/bin/env bash
# Installs what is missing, builds everything, runs every test. Other presets of
# CMakePresets.json: scripts/test.sh asan
set -euo pipefail

# shellcheck source=scripts/build_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/build_env.sh"
preset="${1:-auto}"

# What the sanitizers overlook and why is in these files.
suppressions="$root/tests/sanitizers"
export TSAN_OPTIONS="suppressions=$suppressions/tsan.txt:halt_on_error=1:second_deadlock_stack=1:${TSAN_OPTIONS:-}"
export LSAN_OPTIONS="suppressions=$suppressions/lsan.txt:print_suppressions=0:${LSAN_OPTIONS:-}"
export ASAN_OPTIONS="detect_stack_use_after_return=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"

run_tests() {
  ctest --test-dir "$root/build/$preset" --output-on-failure \
    --parallel "$build_jobs" --progress
}

timed "dependencies" "$root/scripts/install_deps.sh"
timed "configure $preset" configure_preset "$preset"
timed "build $preset" cmake --build "$root/build/$preset" --parallel "$build_jobs"
timed "tests $preset" run_tests
printf '== scripts/test.sh %s: passed in %d s\n' "$preset" "$SECONDS"
